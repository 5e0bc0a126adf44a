"""The published network, for comparison: an Attention U-Net on the detector pixels' views stacked as channels.

Written from its description (Wang et al., arXiv 2507.09953) and that of the Attention U-Net (Oktay et al., arXiv
1804.03999): 1024 views → Attention U-Net → nine channels → PReLU → PixelShuffle(3). It is told nothing of the geometry:
which view lies where in the disk, and by how much it is shifted, is in its weights. A cube that was recorded otherwise
than what it was trained for is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from misr.benchmark.attention_unet_data import Geometry

__all__ = [
    "UNIT_RAD",
    "AttentionUNet",
    "Trained",
    "attention_unet_image",
    "check_geometry",
    "load_trained",
    "network_input",
    "save_trained",
]

_LEVELS = 5
_FORMAT = "misr attention u-net 1"
_HALF_DOSE = 100.0  # e/Å², see `network_input`
UNIT_RAD = 0.1  # of the network's output
_LEAST_COVERED = 0.05  # of a detector pixel; what is outside the disk is none of the views
_SAME = {"energy_eV": 0.01, "semiangle_mrad": 0.02, "scan step": 0.03}  # relative; a cell's side rounds the step
_SAME_PIXEL = 0.1  # of the detector: the counts are shared out anew
_SAME_PHASE = 0.3  # rad of χ at the aperture's edge; 0.26 rad are 2 % of the defocus


class AttentionUNet(nn.Module):
    """35,467,189 parameters for 1024 views at full width, and the PReLU's slope.

    Parameters
    ----------
    views : int
        Channels of the input, (batch, view, y, x); y and x multiples of 16.
    width : int
        Channels of the first level; each of the five has twice those of the one above.
    upsample : int
        Pixels of the output per pixel of the input along each axis.
    """

    def __init__(self, views: int = 1024, *, width: int = 64, upsample: int = 3) -> None:
        super().__init__()
        self.views, self.width, self.upsample = views, width, upsample
        widths = [width * 2**level for level in range(_LEVELS)]
        self.down = nn.ModuleList(_double(first, last) for first, last in zip([views, *widths], widths, strict=False))
        self.up = nn.ModuleList(_Up(one) for one in widths[:-1])
        self.last = nn.Conv2d(width, upsample**2, 1)
        self.slope = nn.PReLU()
        self.shuffle = nn.PixelShuffle(upsample)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """(batch, view, y, x) to (batch, upsample · y, upsample · x)."""
        skipped, signal = [], views
        for level, block in enumerate(self.down):
            signal = block(signal if level == 0 else nn.functional.max_pool2d(signal, 2))
            skipped.append(signal)
        for level in reversed(range(_LEVELS - 1)):
            signal = self.up[level](signal, skipped[level])
        return self.shuffle(self.slope(self.last(signal)))[:, 0]


class _Up(nn.Module):
    """Twice the pixels at half the channels, beside what the level kept and the gate lets through."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Sequential(nn.Upsample(scale_factor=2), *_convolved(2 * channels, channels))
        self.gate = _Gate(channels)
        self.join = _double(2 * channels, channels)

    def forward(self, below: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        wide = self.widen(below)
        return self.join(torch.cat([self.gate(wide, skipped), wide], dim=1))


class _Gate(nn.Module):
    """Additive attention: how much of each pixel of the kept signal is let through."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.of_signal = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.of_skipped = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner))
        self.share = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, signal: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        return skipped * self.share(torch.relu(self.of_signal(signal) + self.of_skipped(skipped)))


def _convolved(first: int, last: int) -> list[nn.Module]:
    return [nn.Conv2d(first, last, 3, padding=1), nn.BatchNorm2d(last), nn.ReLU(inplace=True)]


def _double(first: int, last: int) -> nn.Sequential:
    return nn.Sequential(*_convolved(first, last), *_convolved(last, last))


@dataclass(frozen=True)
class Trained:
    """A network, what it was trained for, and how."""

    network: AttentionUNet
    geometry: Geometry
    training: Mapping[str, Any] = field(default_factory=dict)


def network_input(counts: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """What the network is shown: (batch, view, y, x), of the order of 1 at any dose.

    ``(n/m - 1) d/(d + d₀)`` with the mean ``m`` of a pixel in the disk, the dose ``d`` and d₀ = 100 e/Å²: the contrast
    where the dose is high, and proportional to the counts less their mean where it is low, so that noise is never
    blown up and the dose can be told from it.

    Parameters
    ----------
    counts : torch.Tensor
        (batch, view, y, x).
    geometry : Geometry
        Which pixels lie in the disk.

    Returns
    -------
    torch.Tensor
        float32.
    """
    coverage = torch.as_tensor(geometry.coverage, dtype=torch.float32, device=counts.device).flatten()
    used = coverage > _LEAST_COVERED
    total = counts.sum((2, 3)) @ used.float()
    mean = (total / (coverage[used].sum() * math.prod(counts.shape[2:])))[:, None, None, None].clamp(min=1e-12)
    dose = mean / geometry.electrons
    part = dose / (dose + _HALF_DOSE)
    given = counts * (part / mean * used[:, None, None])
    return given.sub_(part * (coverage * used)[:, None, None])


def save_trained(trained: Trained, path: str | Path) -> Path:
    """Write a network, whole or not at all.

    Parameters
    ----------
    trained : Trained
        With its geometry and how it was trained, which are stored too.
    path : path
        ``….safetensors``.

    Returns
    -------
    pathlib.Path
        The file.
    """
    from safetensors.torch import save_file

    path = Path(path)
    network = trained.network
    told = {
        "settings": {"views": network.views, "width": network.width, "upsample": network.upsample},
        "geometry": trained.geometry.as_dict(),
        "training": dict(trained.training),
    }
    arrays = {name: values.detach().contiguous() for name, values in network.state_dict().items()}
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(arrays, partial, metadata={"format": _FORMAT, "told": json.dumps(told)})
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_trained(path: str | Path) -> Trained:
    """A network from a file that `save_trained` or ``misr train --preset attention_unet`` wrote.

    Parameters
    ----------
    path : path
        ``….safetensors``.

    Returns
    -------
    Trained
        Ready to be used, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path} of an Attention U-Net: misr train --preset attention_unet writes one"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{path.name} is no safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path.name} holds {metadata.get('format', 'something')!r} and not {_FORMAT!r}: give the "
            "weights.safetensors that misr train --preset attention_unet wrote"
        )
    told = json.loads(metadata["told"])
    settings = told["settings"]
    network = AttentionUNet(settings["views"], width=settings["width"], upsample=settings["upsample"])
    network.load_state_dict(arrays)
    return Trained(network.eval(), Geometry(**told["geometry"]), told["training"])


def attention_unet_image(cube: xr.DataArray, *, weights: str | Path | Trained, like: xr.DataArray) -> xr.DataArray:
    """The published network's image of a cube that was recorded as those it was trained on.

    Parameters
    ----------
    cube : xarray.DataArray
        Counts, with the optics in its attrs. Detector pixels that differ a little from those trained for are no
        reason to refuse it: their counts are shared out over the latter by area.
    weights : path or Trained
        What ``misr train --preset attention_unet`` wrote, or that read by `load_trained`.
    like : xarray.DataArray
        Pixels of the image, Å.

    Returns
    -------
    xarray.DataArray
        ``phase`` ``("y", "x")``, rad.

    Raises
    ------
    FileNotFoundError
        If there are no such weights.
    ValueError
        If the cube's geometry is not the network's.

    Examples
    --------
    >>> attention_unet_image(cube, weights="unet/weights.safetensors", like=truth)  # doctest: +SKIP
    """
    from misr._provenance import append_history
    from misr.cube import image_from_array, scan_step
    from misr.resample import resample_like

    trained = weights if isinstance(weights, Trained) else load_trained(weights)
    check_geometry(cube, trained.geometry)
    counts = torch.from_numpy(_rebinned(cube, trained.geometry))[None]
    given = network_input(counts, trained.geometry)
    sides = given.shape[2:]
    multiple = 2 ** (_LEVELS - 1)
    rest = [-side % multiple for side in sides]
    # vacuum, which is what the convolutions put around the field as well
    given = nn.functional.pad(given, (0, rest[1], 0, rest[0]))
    factor = trained.network.upsample
    with torch.inference_mode():
        values = trained.network(given)[0, : factor * sides[0], : factor * sides[1]].double().numpy() * UNIT_RAD
    pixel = [step / factor for step in scan_step(cube)]
    image = resample_like(image_from_array(values - values.mean(), pixel_A=(pixel[0], pixel[1])), like)
    image.name = "phase"
    image.attrs = {name: value for name, value in cube.attrs.items() if name != "units"} | {"units": "rad"}
    image.attrs["history"] = append_history(cube.attrs, "attention_unet_image", **dict(trained.training))
    return image


def check_geometry(cube: xr.DataArray, geometry: Geometry) -> None:
    """A ValueError that says all in which a cube differs from what the network was trained for."""
    from misr.aberrations import aberrations_of
    from misr.cube import detector_step, scan_step
    from misr.optics import aberration_phase, electron_wavelength

    found = []
    missing = [name for name in ("energy_eV", "semiangle_mrad") if name not in cube.attrs]
    if missing:
        raise ValueError(f"the cube's attrs lack {' and '.join(missing)}: set them, the network is for one geometry")
    energy, semiangle = (float(cube.attrs[name]) for name in ("energy_eV", "semiangle_mrad"))
    pairs = [("energy_eV", energy, geometry.energy_eV), ("semiangle_mrad", semiangle, geometry.semiangle_mrad)]
    pairs += [("scan step", step, geometry.scan_step_A) for step in scan_step(cube)]
    found += [f"{name} {value:g} and not {own:g}" for name, value, own in pairs if abs(value / own - 1) > _SAME[name]]
    rotation = float(cube.attrs.get("rotation_deg", 0.0))
    if abs(rotation) > 1:
        found.append(f"rotation {rotation:g}° and not 0°")
    wavelength = float(electron_wavelength(geometry.energy_eV))
    edge, turn = geometry.semiangle_mrad * 1e-3 / wavelength, np.linspace(0, 2 * np.pi, 72)
    at = (edge * np.sin(turn), edge * np.cos(turn))
    own, believed = {"C10": geometry.C10_A}, aberrations_of(cube)
    phases = [aberration_phase(*at, aberrations=one or {}, wavelength=wavelength) for one in (believed, own)]
    if float(np.max(np.abs(phases[0] - phases[1]))) > _SAME_PHASE:
        found.append(f"aberrations {believed} and not {own}")
    for name, step in zip(("det_y", "det_x"), detector_step(cube), strict=True):
        angles = cube[name].values
        if abs(step / geometry.det_step_mrad - 1) > _SAME_PIXEL:
            found.append(f"pixels of {step:.3g} mrad along {name} and not {geometry.det_step_mrad:.3g}")
        elif angles[0] - step > geometry.angles[0] or angles[-1] + step < geometry.angles[-1]:
            found.append(f"{name} from {angles[0]:.3g} to {angles[-1]:.3g} mrad, short of {geometry.angles[-1]:.3g}")
    if found:
        raise ValueError(
            f"the Attention U-Net takes no geometry and was trained for another one: the cube has {'; '.join(found)}. "
            "Train it for this one, or use a method that is told the geometry"
        )


def _rebinned(cube: xr.DataArray, geometry: Geometry) -> np.ndarray:
    """Counts in the network's detector pixels, shared out by area: (view, y, x), float32."""
    from misr.cube import detector_step

    shares = []
    for name, step in zip(("det_y", "det_x"), detector_step(cube), strict=True):
        have, want = cube[name].values.astype(float), geometry.angles
        low = np.maximum(have - step / 2, want[:, None] - geometry.det_step_mrad / 2)
        high = np.minimum(have + step / 2, want[:, None] + geometry.det_step_mrad / 2)
        part = np.clip(high - low, 0, None) / step
        shares.append(np.where(np.abs(part - np.rint(part)) < 1e-3, np.rint(part), part).astype(np.float32))
    values = cube.transpose("scan_y", "scan_x", "det_y", "det_x").values.astype(np.float32)
    binned = np.einsum("yxkl,il->yxki", values, shares[1], optimize=True)
    binned = np.einsum("yxki,jk->jiyx", binned, shares[0], optimize=True)
    return np.ascontiguousarray(binned.reshape(-1, *values.shape[:2]))
