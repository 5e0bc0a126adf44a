"""Simulated 4D-STEM cubes: multislice by abTEM, expected counts and the projected phase they should give back.

The specimen is periodic and the scan covers its cell exactly, so the cube wraps around and has no borders. Each
slice's potential is made as in `misr.phase`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.aberrations import polar_aberrations
from misr.cube import cube_from_array, image_from_array, scan_step
from misr.optics import electron_wavelength, interaction_parameter, rotate
from misr.phase import cell_sides, check_positive, projected_potential, thermal_width

if TYPE_CHECKING:
    from abtem import PotentialArray, Probe
    from ase import Atoms
    from scipy.sparse import csr_matrix

__all__ = ["simulate_cube"]

_ALIAS_FREE = 1 / 3 - 0.011  # abTEM passes frequencies up to (2/3 Nyquist less its taper), in cycles per pixel
_BATCH_PIXELS = 2_500_000  # wave pixels held by one thread at a time: 20 MB of complex64
_SUBPIXELS = 6  # along each edge of a native diffraction pixel, for rotated detectors


class _Detector(NamedTuple):
    indices: np.ndarray  # of the exit wave's flattened Fourier transform, abTEM's [x, y] order
    weights: csr_matrix  # (detector pixels, indices)
    angles: tuple[np.ndarray, np.ndarray]  # mrad, (y, x)


def simulate_cube(
    atoms: Atoms,
    *,
    energy_eV: float = 300e3,
    semiangle_mrad: float = 10.0,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    scan_step_A: float | tuple[float, float] = 2.0,
    rotation_deg: float = 0.0,
    det_max_mrad: float | None = None,
    det_pixels: int = 64,
    slice_thickness_A: float = 5.0,
    potential_sampling_A: float | None = None,
    thermal_sigma_A: float | None = 0.08,
    progress: bool = True,
) -> xr.Dataset:
    """Noise-free 4D-STEM scan of a periodic specimen, with the phase image it was made from.

    Multislice by abTEM. Aberrations are those at the specimen's mean depth (weighted with its potential), where a
    projected image is in focus, not those at its entrance surface.

    Parameters
    ----------
    atoms : ase.Atoms
        Orthogonal cell, periodic in x and y, beam along +z. `amorphous_atoms` and its like make them.
    energy_eV : float, default 300e3
        Beam energy, eV.
    semiangle_mrad : float, default 10
        Convergence semi-angle, mrad.
    aberrations : mapping or Dataset, optional
        Polar coefficients such as ``{"C10": -500}`` or ``{"defocus": 500, "C12": 50, "phi12": 0.3}``, Å and rad.
    scan_step_A : float or (float, float), default 2
        About this step, Å, ``(y, x)`` if two: the scan covers the whole cell once, end point excluded, so each
        step is the cell's side over a whole number.
    rotation_deg : float, default 0
        Scan-to-detector rotation: the pattern at detector position k is the unrotated one at
        ``misr.optics.rotate(*k, rotation_deg)``. Each native diffraction pixel is a uniform rectangle shared out
        over the detector pixels by area (to 1/36), which keeps every electron; multiples of 90° are exact. The
        error is that of smearing by one native pixel: in a cell of side L, a view shifted by d loses about
        (π²/6) (d/L)² of its contrast.
    det_max_mrad : float, optional
        Half-width of the detector, mrad; twice the semi-angle when not given.
    det_pixels : int, default 64
        About this many detector pixels along each axis. A pixel is the sum of a whole number of native pixels
        (λ/L wide), and its coordinate is their mean angle: no pixel need lie at 0, and pixels of a cell that is
        not square need not be square.
    slice_thickness_A : float, default 5
        At most this much matter per slice, Å.
    potential_sampling_A : float, optional
        At most this pixel of the potential, Å; when not given it is just fine enough for the detector and for twice
        the semi-angle, whichever is more (0.32 Å for 20 mrad at 300 kV).
    thermal_sigma_A : float or None, default 0.08
        Root mean square thermal displacement along one axis, Å: atoms are smeared by it (Debye-Waller factor).
    progress : bool, default True
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
        ``counts`` ``("scan_y", "scan_x", "det_y", "det_x")``: float32 expected electrons at 1 e/Å², so that a
        pattern sums to step_y · step_x times the fraction of electrons within the detector (scan in Å from 0,
        detector in mrad from the optic axis, ``attrs["period_A"]``, the cell). ``phase`` ``("y", "x")``: projected
        phase in rad, as `projected_phase`, on the simulation's grid.

    Raises
    ------
    TypeError
        If ``atoms`` is not an ase.Atoms.
    ValueError
        For no atoms, a cell that is not orthogonal, or angles, lengths and samplings that do not fit together.

    Notes
    -----
    Scattering is followed to the detector's half-width, and to twice the semi-angle at least: the bright field
    holds object frequencies up to 2α/λ. Past that it is dropped, so a wide detector's corners are dark. ``make
    benchmark`` times 64 × 64 probes.

    Examples
    --------
    >>> from ase import Atoms
    >>> atom = Atoms("C", positions=[[8, 8, 1]], cell=[16, 16, 2], pbc=True)
    >>> scan = simulate_cube(atom, scan_step_A=4, det_pixels=16, progress=False)
    >>> scan.counts.shape, bool((scan.counts.sum(("det_y", "det_x")) > 15.9).all())
    ((4, 4, 16, 16), True)
    """
    arguments = {name: value for name, value in locals().items() if name not in ("atoms", "progress", "aberrations")}
    size = cell_sides(atoms)
    polar = polar_aberrations(aberrations)
    sigma = thermal_width(thermal_sigma_A)
    check_positive(energy_eV=energy_eV, semiangle_mrad=semiangle_mrad, slice_thickness_A=slice_thickness_A)
    half_width = 2 * semiangle_mrad if det_max_mrad is None else float(det_max_mrad)
    native = tuple(1e3 * electron_wavelength(energy_eV) / length for length in size)
    _check_angles(semiangle_mrad, half_width, det_pixels, native)
    axes = _detector_axes(native, rotation_deg, half_width, int(det_pixels), semiangle_mrad)
    # object frequencies up to 2α/λ beat into the bright field, however small the detector
    edge = max(2 * semiangle_mrad, *((pixels * bins + 1) * step / 2 for pixels, bins, step in axes))
    gpts = _grid(size, energy_eV, edge, potential_sampling_A)
    scan = _scan_shape(size, scan_step_A)
    slices, thickness = _slices(atoms, size, gpts, slice_thickness_A, sigma)
    detector = _detector(gpts, native, axes, rotation_deg)
    optics = {"energy_eV": float(energy_eV), "semiangle_mrad": float(semiangle_mrad)}
    patterns = _scan_probe(slices, thickness, size, scan, polar, optics, detector, progress)
    exact = (size[0] / scan[0], size[1] / scan[1])
    patterns *= np.float32(exact[0] * exact[1])
    counts = cube_from_array(
        patterns,
        scan_step_A=exact,
        det_step_mrad=(float(np.ptp(detector.angles[0][:2])), float(np.ptp(detector.angles[1][:2]))),
        dose_e_per_A2=1.0,
        rotation_deg=rotation_deg,
        aberrations=polar,
        **optics,
    )
    for name, angles in zip(("det_y", "det_x"), detector.angles, strict=True):
        counts = counts.assign_coords({name: (name, angles, {"units": "mrad"})})
    counts.attrs["period_A"] = [float(scan_step(counts)[i] * counts.shape[i]) for i in range(2)]
    counts.attrs["history"] = append_history(
        {}, "simulate_cube", atoms=atoms.get_chemical_formula(), aberrations=polar, **arguments
    )
    attrs = {name: value for name, value in counts.attrs.items() if name != "units"}
    phase = image_from_array(
        interaction_parameter(energy_eV) * slices.sum(axis=0, dtype=float),
        pixel_A=(size[0] / gpts[0], size[1] / gpts[1]),
        attrs=attrs,
    )
    return xr.Dataset({"counts": counts, "phase": phase}, attrs=attrs)


def _scan_shape(size: tuple[float, float], step_A: float | tuple[float, float]) -> tuple[int, int]:
    steps = np.broadcast_to(np.asarray(step_A, dtype=float), (2,))
    check_positive(scan_step_A=float(steps.min()))
    shape = (round(size[0] / steps[0]), round(size[1] / steps[1]))
    if min(shape) < 4:
        raise ValueError(f"scan_step_A={step_A} gives only {shape} positions in the cell: at least 4 each are needed")
    return shape


def _check_angles(semiangle: float, half_width: float, det_pixels: int, native: tuple[float, ...]) -> None:
    if not half_width >= semiangle:
        raise ValueError(
            f"semiangle_mrad={semiangle:g} does not fit into det_max_mrad={half_width:g}: widen the detector (twice "
            "the semi-angle is a good choice)"
        )
    if not det_pixels >= 2:
        raise ValueError(f"det_pixels={det_pixels} must be at least 2")
    if semiangle < 3 * max(native):
        raise ValueError(
            f"semiangle_mrad={semiangle:g} spans less than 3 diffraction pixels of {max(native):.3g} mrad (λ/L): "
            "repeat the atoms to a larger cell"
        )


def _grid(size: tuple[float, float], energy_eV: float, edge: float, sampling: float | None) -> tuple[int, int]:
    """Pixels (y, x) of the potential, fast for the FFT, fine enough for angles up to ``edge`` (mrad)."""
    from scipy.fft import next_fast_len

    coarsest = _ALIAS_FREE * electron_wavelength(energy_eV) / (edge * 1e-3)
    if sampling is None:
        sampling = coarsest
    check_positive(potential_sampling_A=sampling)
    if sampling > coarsest * (1 + 1e-9):
        raise ValueError(
            f"potential_sampling_A={sampling:g} is too coarse for angles up to {edge:.3g} mrad (the detector's edge "
            f"or twice the semi-angle, whichever is more): give at most {math.floor(1e4 * coarsest) / 1e4:g}, or none"
        )
    return next_fast_len(math.ceil(size[0] / sampling)), next_fast_len(math.ceil(size[1] / sampling))


def _slices(
    atoms: Atoms, size: tuple[float, float], gpts: tuple[int, int], thickest: float, sigma: float
) -> tuple[np.ndarray, float]:
    """Projected potential of each slice (slice, y, x) between the first and the last atom, and their thickness."""
    depth = atoms.positions[:, 2] - atoms.positions[:, 2].min()
    span = float(depth.max())
    number = max(1, math.ceil(span / thickest - 1e-9))
    thickness = span / number if span > 0 else thickest
    index = np.minimum((depth / thickness).astype(int), number - 1)
    symbols = np.asarray(atoms.get_chemical_symbols())
    slices = np.zeros((number, *gpts), dtype=np.float32)
    for level in np.unique(index):
        chosen = index == level
        slices[level] = projected_potential(
            atoms.positions[chosen], symbols[chosen].tolist(), size, gpts, sigma
        )  # fmt: skip
    return slices, thickness


def _detector_axes(
    native: tuple[float, ...], rotation_deg: float, half_width: float, det_pixels: int, semiangle: float
) -> list[tuple[int, int, float]]:
    """For y and x: the even number of pixels, native pixels in each, and the native pixel in mrad."""
    if not math.isfinite(rotation_deg):
        raise ValueError(f"rotation_deg={rotation_deg} must be a finite angle in degrees")
    angle = math.radians(rotation_deg)
    # a detector turned by about 90° has the scan's x diffraction grid along its y
    order = native if abs(math.cos(angle)) >= abs(math.sin(angle)) else native[::-1]
    axes = []
    for step in order:
        bins = max(1, round(2 * half_width / (det_pixels * step)))
        pixels = 2 * max(1, math.floor(half_width / (bins * step) + 1e-9))
        while pixels * bins * step / 2 < semiangle:
            pixels += 2
        axes.append((pixels, bins, step))
    return axes


def _detector(
    gpts: tuple[int, int], native: tuple[float, ...], axes: list[tuple[int, int, float]], rotation_deg: float
) -> _Detector:
    """Share out the native diffraction pixels (uniform rectangles) over the detector's, by area."""
    from scipy.sparse import coo_matrix

    order_y, order_x = (np.rint(np.fft.fftfreq(number) * number) for number in gpts)
    k_y, k_x = np.meshgrid(order_y * native[0], order_x * native[1], indexing="ij")
    reach = math.hypot(*(pixels * bins * step / 2 for pixels, bins, step in axes)) + sum(native)
    row_y, row_x = np.nonzero(k_y**2 + k_x**2 <= reach**2)
    k_y, k_x = k_y[row_y, row_x], k_x[row_y, row_x]
    parts = 1 if rotation_deg % 90 == 0 else _SUBPIXELS
    offsets = (np.arange(parts) + 0.5) / parts - 0.5
    rows, columns = [], []
    for offset_y in offsets:
        for offset_x in offsets:
            place = rotate(k_y + offset_y * native[0], k_x + offset_x * native[1], -rotation_deg)
            pixel = [
                np.floor(k / (bins * step) + pixels / 2 + 0.5 / bins).astype(int)
                for k, (pixels, bins, step) in zip(place, axes, strict=True)
            ]
            hit = np.flatnonzero((pixel[0] >= 0) & (pixel[0] < axes[0][0]) & (pixel[1] >= 0) & (pixel[1] < axes[1][0]))
            rows.append(pixel[0][hit] * axes[1][0] + pixel[1][hit])
            columns.append(hit)
    row, column = np.concatenate(rows), np.concatenate(columns)
    weight = np.full(len(row), 1 / parts**2, dtype=np.float32)
    weights = coo_matrix((weight, (row, column)), shape=(axes[0][0] * axes[1][0], len(k_y))).tocsr()
    angles = tuple(((np.arange(pixels) - pixels / 2) * bins + (bins - 1) / 2) * step for pixels, bins, step in axes)
    return _Detector(row_x * gpts[0] + row_y, weights, (angles[0], angles[1]))


def _scan_probe(
    slices: np.ndarray,
    thickness: float,
    size: tuple[float, float],
    scan: tuple[int, int],
    polar: Mapping[str, float],
    optics: Mapping[str, float],
    detector: _Detector,
    progress: bool,
) -> np.ndarray:
    """Fraction of the electrons in each detector pixel for each probe, (scan_y, scan_x, det_y, det_x)."""
    import abtem
    from tqdm.auto import tqdm

    weight = slices.sum(axis=(1, 2), dtype=float)
    depth = thickness * float(weight @ np.arange(len(slices))) / float(weight.sum())
    # abTEM's [x, y] order
    potential = abtem.PotentialArray(
        np.ascontiguousarray(slices.transpose(0, 2, 1)), slice_thickness=thickness, extent=(size[1], size[0])
    )
    probe = abtem.Probe(
        energy=optics["energy_eV"],
        semiangle_cutoff=optics["semiangle_mrad"],
        soft=False,
        aberrations={**polar, "C10": polar.get("C10", 0.0) - depth},
        gpts=slices.shape[:0:-1],
        extent=(size[1], size[0]),
    )
    y, x = np.meshgrid(*(np.arange(n) * side / n for n, side in zip(scan, size, strict=True)), indexing="ij")
    positions = np.stack([x.ravel(), y.ravel()], axis=1)
    shape = tuple(len(angles) for angles in detector.angles)
    result = np.empty((len(positions), shape[0] * shape[1]), dtype=np.float32)
    batch = max(1, min(64, _BATCH_PIXELS // slices[0].size))

    def compute(first: int) -> int:
        block = positions[first : first + batch]
        result[first : first + len(block)] = _patterns(probe, potential, block, detector)
        return len(block)

    starts = range(0, len(positions), batch)
    quiet = {"diagnostics.progress_bar": False, "fft": "fftw", "fftw.threads": 1, "device": "cpu"}
    with (
        abtem.config.set(quiet),
        ThreadPoolExecutor(_workers()) as pool,
        tqdm(total=len(positions), desc="simulate_cube", unit="probe", disable=not progress) as bar,
    ):
        for done in pool.map(compute, starts):
            bar.update(done)
    return result.reshape(*scan, *shape)


def _patterns(probe: Probe, potential: PotentialArray, positions: np.ndarray, detector: _Detector) -> np.ndarray:
    import abtem

    waves = probe.build(abtem.CustomScan(positions), lazy=False).multislice(potential)
    spectrum = waves.ensure_reciprocal_space().array.reshape(len(positions), -1)[:, detector.indices]
    intensity = spectrum.real**2 + spectrum.imag**2
    return (detector.weights @ np.ascontiguousarray(intensity.T)).T


def _workers() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)
