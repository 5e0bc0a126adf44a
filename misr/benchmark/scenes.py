"""The specimens of a benchmark, simulated once and kept: expected counts, truth, and the pixels of all images."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr.benchmark.settings import BenchmarkSettings, Specimen, digest
from misr.cube import image_from_array, scan_step
from misr.resample import phase_on_grid

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["make_scene", "scene_path", "structure_atoms"]

_MOST_STRAIN = 0.01
_MOST_REPEATS = 200


def scene_path(folder: Path, settings: BenchmarkSettings, specimen: Specimen, seed: int) -> Path:
    """Where a specimen's simulation is kept."""
    own = digest([asdict(specimen), dict(settings.optics)])
    drawn = "" if specimen.kind == "structure" else f"_s{seed}"
    return folder / "specimens" / f"{specimen.name}{drawn}_{own}.nc"


def make_scene(folder: Path, settings: BenchmarkSettings, specimen: Specimen, seed: int) -> xr.Dataset:
    """A specimen's simulation, from its file if it is there, else made and written to it.

    Parameters
    ----------
    folder : path
        Of the benchmark.
    settings : BenchmarkSettings
        Its optics.
    specimen : Specimen
        Which.
    seed : int
        Draws the atoms.

    Returns
    -------
    xarray.Dataset
        ``counts`` (expected, at 1 e/Å²), ``truth`` (rad) on the pixels ``("y", "x")`` that all images get, those that
        carry the whole band 2α/λ. In attrs the ``ring_width`` (1/Å) of every FRC on this specimen, ``upsample``,
        and ``simulate_s``, how long it took.

    Examples
    --------
    >>> scene = make_scene(folder, settings, settings.specimens[0], 0)  # doctest: +SKIP
    """
    path = scene_path(folder, settings, specimen, seed)
    if path.exists():
        return xr.load_dataset(path, engine="h5netcdf")
    scene = _simulate(settings, specimen, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        scene.to_netcdf(partial, engine="h5netcdf")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return scene


def _simulate(settings: BenchmarkSettings, specimen: Specimen, seed: int) -> xr.Dataset:
    from misr.simulate import simulate_cube

    start = time.perf_counter()
    made = simulate_cube(_atoms(specimen, seed), progress=False, **settings.optics)
    seconds = time.perf_counter() - start
    counts = made["counts"]
    factor = _whole_band(counts)
    steps = scan_step(counts)
    pixels = [size * factor for size in counts.shape[:2]]
    like = image_from_array(np.zeros(pixels), pixel_A=(steps[0] / factor, steps[1] / factor))
    truth = phase_on_grid(made["phase"], like=like)
    attrs = {"ring_width": _ring_width(truth, specimen), "upsample": factor, "simulate_s": seconds}
    return xr.Dataset({"counts": counts.drop_vars(["y", "x"], errors="ignore"), "truth": truth}, attrs=attrs)


def _whole_band(counts: xr.DataArray) -> int:
    """Pixels per scan step that show the band 2α/λ: geometry alone, so the dose does not matter."""
    from misr.fusion.geometry import pixels_for_band
    from misr.optics import electron_wavelength

    cutoff = 1e-3 * float(counts.attrs["semiangle_mrad"]) / electron_wavelength(float(counts.attrs["energy_eV"]))
    return pixels_for_band(cutoff, scan_step(counts))


def _ring_width(truth: xr.DataArray, specimen: Specimen) -> float:
    """One width for all methods and both kinds of FRC, from the truth if it is not given."""
    from misr.resolution import fourier_ring_correlation

    frc = fourier_ring_correlation(truth, truth, ring_width=specimen.ring_width)
    return float(frc.attrs["ring_width"])


def _atoms(specimen: Specimen, seed: int) -> Atoms:
    from misr.specimens import amorphous_atoms, crystalline_atoms, semicrystalline_atoms

    if specimen.kind == "structure":
        options = {name: value for name, value in specimen.options.items() if name != "content"}
        return structure_atoms(**options)
    make: dict[str, Any] = {
        "amorphous": amorphous_atoms,
        "semicrystalline": semicrystalline_atoms,
        "crystalline": crystalline_atoms,
    }
    return make[specimen.kind](**specimen.options, rng=seed)


def structure_atoms(path: str | Path, *, field_A: float = 64.0, thickness_A: float = 30.0) -> Atoms:
    """A structure file as a slab: orthogonal, repeated to about a size, its field made exactly square if that is near.

    Parameters
    ----------
    path : path
        What ASE reads, with a periodic cell; the beam goes along its c axis.
    field_A, thickness_A : float
        About this size, Å; a larger cell stays as it is.

    Returns
    -------
    ase.Atoms
        Orthogonal cell. ``atoms.info["strain_y"]`` and ``["strain_x"]`` say by how much it was strained to a square
        field (1 % at most, else 0 and the field is not square, which py4DSTEM refuses).

    Raises
    ------
    ValueError
        If the file cannot be read, has no cell, or its cell cannot be made orthogonal.

    Notes
    -----
    A cell that is not orthogonal is made so by abTEM's ``orthogonalize_cell``, without strain where that is possible
    within a few repeats.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from ase.build import bulk
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "gold.cif"
    >>> bulk("Au", cubic=True).write(file)
    >>> structure_atoms(file, field_A=20, thickness_A=8).cell.lengths().round(1).tolist()
    [20.4, 20.4, 8.2]
    """
    atoms = _orthogonal(_read(Path(path)), Path(path).name)
    sides = atoms.cell.lengths()
    n_x, n_y = _repeats((float(sides[0]), float(sides[1])), float(field_A))
    n_z = max(1, round(float(thickness_A) / float(sides[2])))
    atoms = atoms.repeat((n_x, n_y, n_z))
    own = atoms.cell.lengths()
    side = math.sqrt(own[0] * own[1])
    strain = np.array([side, side]) / own[:2] - 1
    if np.max(np.abs(strain)) > _MOST_STRAIN:
        strain = np.zeros(2)
    atoms.positions[:, :2] *= 1 + strain
    atoms.set_cell([*(own[:2] * (1 + strain)), own[2]])
    atoms.pbc = True
    atoms.wrap()
    atoms.info["strain_x"], atoms.info["strain_y"] = strain.tolist()
    return atoms


def _read(path: Path) -> Atoms:
    import ase.io
    from ase.io.formats import UnknownFileTypeError

    try:
        atoms = ase.io.read(path)
    except (OSError, ValueError, LookupError, TypeError, StopIteration, UnknownFileTypeError) as error:
        raise ValueError(f"ASE cannot read {path.name} as a structure: {error or type(error).__name__}") from error
    if abs(atoms.cell.volume) < 1e-6:
        raise ValueError(
            f"{path.name} has no periodic cell: give one (extended xyz with Lattice=..., cif), or set it with "
            "ase.Atoms.set_cell and a few Å of vacuum"
        )
    return atoms


def _orthogonal(atoms: Atoms, name: str) -> Atoms:
    cell = np.asarray(atoms.cell.array)
    if np.allclose(cell, np.diag(np.diag(cell)), atol=1e-6):
        return atoms
    import abtem

    try:
        return abtem.orthogonalize_cell(atoms, max_repetitions=6)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the cell of {name} cannot be made orthogonal within 6 repeats ({error}): orthogonalise it beforehand"
        ) from error


def _repeats(sides: tuple[float, float], field: float) -> tuple[int, int]:
    """Numbers of cells: those of the least strain to a square field near the wanted size, or else the nearest."""
    plain = tuple(max(1, round(field / side)) for side in sides)
    best, score = (plain[0], plain[1]), math.inf
    for n_x in range(1, min(_MOST_REPEATS, math.ceil(1.6 * field / sides[0]) + 2)):
        for n_y in range(1, min(_MOST_REPEATS, math.ceil(1.6 * field / sides[1]) + 2)):
            side = math.sqrt(n_x * sides[0] * n_y * sides[1])
            strain = abs(math.log(n_x * sides[0] / (n_y * sides[1]))) / 2
            if strain > 0.9 * _MOST_STRAIN or not 0.7 * field <= side <= 1.5 * field:
                continue
            # a percent of strain costs as much as a field a third off
            cost = abs(math.log(side / field)) + 30 * strain
            if cost < score:
                best, score = (n_x, n_y), cost
    return best
