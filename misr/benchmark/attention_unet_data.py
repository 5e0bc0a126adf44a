"""What the published network is trained on: misr's random specimens under the one microscope of the benchmark.

The network takes no geometry, so energy, aberrations, scan and detector are those of the presets' fields of 64 Å, and
only the specimen and the electrons are random. Expected counts are stored; electrons are drawn anew at each step.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from misr.optics import electron_wavelength

if TYPE_CHECKING:
    import torch

    from misr.fusion.random_scans import Conditions

__all__ = ["FIELD_A", "STORED", "Examples", "Geometry", "example", "make_examples", "shard_path", "write_shard"]

_LOG = logging.getLogger(__name__)
FIELD_A = 64.0
SPECIMENS = 8  # of a shard
STORED = 256.0  # expected counts at 1 e/Å² are stored times this: about 1, where half precision is finest
_FIRST_SEED = 1_000_000  # none of the specimens of misr's own network


@dataclass(frozen=True)
class Geometry:
    """The one microscope and scan that a network was trained for.

    Attributes
    ----------
    energy_eV, semiangle_mrad, C10_A : float
        No other aberrations, and no rotation.
    scan_step_A : float
        Along both axes.
    det_step_mrad, det_first_mrad : float
        Pixel of the detector, and the angle of the first one, along both axes.
    det_pixels : int
        Along each axis; their square is the number of views.
    upsample : int
        Pixels of the image per scan step.
    """

    energy_eV: float
    semiangle_mrad: float
    C10_A: float
    scan_step_A: float
    det_step_mrad: float
    det_first_mrad: float
    det_pixels: int = 32
    upsample: int = 3

    @classmethod
    def of_benchmark(cls, *, det_pixels: int = 32) -> Geometry:
        """That of the presets, with the detector pixels about the axis that `misr.simulate_cube` makes of 64 Å."""
        from misr.benchmark.settings import preset_settings

        optics = preset_settings("small").optics
        native = 1e3 * float(electron_wavelength(optics["energy_eV"])) / FIELD_A
        across = max(1, round(4 * optics["semiangle_mrad"] / (optics["det_pixels"] * native)))
        step = across * native
        return cls(
            energy_eV=float(optics["energy_eV"]),
            semiangle_mrad=float(optics["semiangle_mrad"]),
            C10_A=float(optics["aberrations"]["C10"]),
            scan_step_A=float(optics["scan_step_A"]),
            det_step_mrad=step,
            det_first_mrad=-(det_pixels // 2) * step + (across - 1) / 2 * native,
            det_pixels=det_pixels,
        )

    @property
    def angles(self) -> np.ndarray:
        """Of the detector pixels along one axis, mrad."""
        return self.det_first_mrad + self.det_step_mrad * np.arange(self.det_pixels)

    @property
    def positions(self) -> int:
        """Of the probe along each axis of a field."""
        return round(FIELD_A / self.scan_step_A)

    @property
    def coverage(self) -> np.ndarray:
        """The part of each detector pixel that the bright-field disk covers, (det_y, det_x)."""
        fine = (np.arange(16) + 0.5) / 16 - 0.5
        at = (self.angles[:, None] + self.det_step_mrad * fine).ravel()
        inside = np.hypot(at[:, None], at) < self.semiangle_mrad
        return inside.reshape(self.det_pixels, 16, self.det_pixels, 16).mean(axis=(1, 3))

    @property
    def electrons(self) -> float:
        """In a detector pixel within the disk, for one pattern at 1 e/Å² in vacuum."""
        return self.scan_step_A**2 * self.det_step_mrad**2 / (math.pi * self.semiangle_mrad**2)

    @property
    def conditions(self) -> Conditions:
        """As misr's random specimens want them."""
        from misr.fusion.random_scans import Conditions

        aberrations = {"C10": self.C10_A}
        return Conditions(
            energy_eV=self.energy_eV, semiangle_mrad=self.semiangle_mrad, det_step_mrad=self.det_step_mrad,
            rotation_deg=0.0, aberrations=aberrations, believed=aberrations, believed_rotation_deg=0.0,
            positions=self.positions, window=self.positions, field_A=FIELD_A,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def example(seed: int, *, split: str, geometry: Geometry) -> tuple[np.ndarray, np.ndarray, str]:
    """One random specimen: its expected counts at 1 e/Å², the true image, and its kind.

    Parameters
    ----------
    seed : int
        Draws the kind and the atoms.
    split : {"train", "validation", "test"}
        Specimens of one are never in another.
    geometry : Geometry
        Microscope and scan.

    Returns
    -------
    tuple
        (view, y, x) of the scan; (y, x) of the image, rad, up to 2α/λ and what its pixels hold, mean 0; str.

    Examples
    --------
    >>> counts, truth, kind = example(0, split="train", geometry=Geometry.of_benchmark())  # doctest: +SKIP
    """
    from misr.fusion.random_specimens import SPECIMEN_KINDS
    from misr.fusion.training_data import KIND_SHARES, phase_slices, specimen_of

    rng = np.random.default_rng(np.random.SeedSequence([seed, ("train", "validation", "test").index(split), 11]))
    kind = str(rng.choice(SPECIMEN_KINDS, p=KIND_SHARES))
    conditions = geometry.conditions
    slices, layer_A = phase_slices(specimen_of(kind, conditions, seed=seed, split=split), conditions)
    counts = expected_counts(slices, layer_A, geometry)
    return counts, band_limited(slices.sum(axis=0), geometry), kind


def expected_counts(slices: np.ndarray, layer_A: float, geometry: Geometry) -> np.ndarray:
    """Expected electrons at 1 e/Å² in the network's detector pixels, (view, y, x), of a field of slices, rad."""
    from misr.fusion.tilted_waves import simulate_bright_field

    # a pixel more on each side: the simulation wants the whole disk on its detector
    cube = simulate_bright_field(
        slices,
        pixel_A=FIELD_A / slices.shape[-1],
        slice_thickness_A=layer_A,
        energy_eV=geometry.energy_eV,
        semiangle_mrad=geometry.semiangle_mrad,
        aberrations={"C10": geometry.C10_A},
        scan_shape=(geometry.positions, geometry.positions),
        det_step_mrad=geometry.det_step_mrad,
        det_pixels=geometry.det_pixels + 2,
        det_center_mrad=(float(geometry.angles.mean()),) * 2,
        device="cpu",
    )
    inner = cube.values[:, :, 1:-1, 1:-1]
    return inner.transpose(2, 3, 0, 1).reshape(-1, *inner.shape[:2])


def band_limited(phase: np.ndarray, geometry: Geometry) -> np.ndarray:
    """One period of a phase on the image's pixels, the first on the first probe position: (y, x), rad, mean 0."""
    size, pixels = len(phase), geometry.positions * geometry.upsample
    order = np.rint(np.fft.fftfreq(pixels) * pixels).astype(int)
    spectrum = np.fft.fft2(phase)[np.ix_(order % size, order % size)] * (pixels / size) ** 2
    radius = np.hypot(order[:, None], order) / FIELD_A
    limit = 2e-3 * geometry.semiangle_mrad / electron_wavelength(geometry.energy_eV)
    held = np.abs(order) < pixels / 2
    spectrum[(radius >= limit) | (radius == 0) | ~(held[:, None] & held)] = 0
    return np.fft.ifft2(spectrum).real


def shard_path(folder: Path, split: str, number: int) -> Path:
    """File of one shard."""
    return Path(folder) / f"{split}_{number:05d}.safetensors"


def write_shard(folder: Path, number: int, *, split: str, specimens: int = SPECIMENS) -> Path:
    """Make and write the examples of some specimens, unless they are there; whole or not at all.

    Parameters
    ----------
    folder : path
        Where to.
    number : int
        Of the shard.
    split : {"train", "validation", "test"}
        Of the specimens.
    specimens : int
        How many.

    Returns
    -------
    pathlib.Path
        The file.
    """
    import torch
    from safetensors.torch import save_file

    from misr.fusion.random_specimens import SPECIMEN_KINDS

    path = shard_path(folder, split, number)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    geometry = Geometry.of_benchmark()
    counts, truth, kinds = [], [], []
    first = _FIRST_SEED + number * specimens
    for seed in range(first, first + specimens):
        expected, image, kind = example(seed, split=split, geometry=geometry)
        counts.append(torch.from_numpy(expected * STORED).half())
        truth.append(torch.from_numpy(image).half())
        kinds.append(SPECIMEN_KINDS.index(kind))
    arrays = {"counts": torch.stack(counts), "truth": torch.stack(truth), "kind": torch.tensor(kinds)}
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(arrays, partial, metadata={"geometry": json.dumps(geometry.as_dict())})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


class Examples:
    """The examples of a split, as far as they are on disk; more are picked up as they come.

    Parameters
    ----------
    folder : path
        Of the shards.
    split : str
        Which.
    geometry : Geometry
        That they are to have been made with.

    Raises
    ------
    ValueError
        If there are none, or they were made with another geometry.
    """

    def __init__(self, folder: Path, split: str, geometry: Geometry) -> None:
        self.folder, self.split, self.geometry = Path(folder), split, geometry
        self.known: set[Path] = set()
        self.counts: list[torch.Tensor] = []  # (view, y, x) each, half precision, times `STORED`
        self.truth: list[torch.Tensor] = []  # (y, x) each
        self.refresh()
        if not self.known:
            raise ValueError(f"{folder} holds no {split} examples of the Attention U-Net: make_examples writes them")

    def __len__(self) -> int:
        return len(self.truth)

    def refresh(self) -> None:
        """Read the shards that are new."""
        from safetensors import safe_open

        for path in sorted(set(self.folder.glob(f"{self.split}_*.safetensors")) - self.known):
            with safe_open(path, framework="pt") as file:
                made = json.loads((file.metadata() or {}).get("geometry", "{}"))
                if made != self.geometry.as_dict():
                    raise ValueError(f"{path} was made for {made} and not for {self.geometry}: give another folder")
                self.counts += file.get_tensor("counts").unbind()
                self.truth += file.get_tensor("truth").unbind()
            self.known.add(path)


def make_examples(folder: Path, shards: Mapping[str, int], *, workers: int = 1) -> None:
    """Write the shards that are not there yet.

    Parameters
    ----------
    folder : path
        Where to.
    shards : mapping
        How many of each split.
    workers : int
        Processes.
    """
    from tqdm.auto import tqdm

    missing = [
        (split, number)
        for split, wanted in shards.items()
        for number in range(wanted)
        if not shard_path(folder, split, number).exists()
    ]
    if not missing:
        return
    _LOG.info("%d shards to make", len(missing))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, workers), mp_context=context, initializer=_one_thread) as pool:
        jobs = [pool.submit(write_shard, folder, number, split=split) for split, number in missing]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="examples", unit="shard"):
            job.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
