"""Simulated 4D-STEM cubes: multislice by abTEM, expected counts and the projected phase they should give back.

The specimen is periodic and the scan covers its cell exactly, so the cube wraps around and has no borders. The
potential is the Fourier series of the atoms' scattering factors (Lobato & Van Dyck 2014, Acta Cryst. A 70, 636,
from abTEM) with exact phases: abTEM's own potential spreads an atom linearly over four pixels, which weakens it
near the Nyquist limit by up to half, depending on where in the pixel it lies.
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
from misr.cube import cube_from_array, image_from_array
from misr.optics import electron_wavelength, interaction_parameter, polar_aberrations, rotate
from misr.specimens import amorphous_atoms, crystalline_atoms, semicrystalline_atoms

if TYPE_CHECKING:
    from abtem import PotentialArray, Probe
    from ase import Atoms
    from scipy.sparse import csr_matrix

__all__ = [
    "amorphous_atoms",
    "crystalline_atoms",
    "phase_on_grid",
    "projected_phase",
    "semicrystalline_atoms",
    "simulate_cube",
]

_ALIAS_FREE = (
    1 / 3 - 0.011
)  # abTEM passes frequencies up to (2/3 Nyquist less its taper), in cycles per pixel
_BATCH_PIXELS = 2_500_000  # wave pixels held by one thread at a time: 20 MB of complex64
_ATOM_BLOCK = 4096
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
        1.6 (d/L)² of its contrast (1 % of it at 500 Å defocus, 10 mrad and 64 Å).
    det_max_mrad : float, optional
        Half-width of the detector, mrad; twice the semi-angle when not given.
    det_pixels : int, default 64
        About this many detector pixels along each axis. A pixel is the sum of a whole number of native pixels
        (λ/L wide), and its coordinate is their mean angle: no pixel need lie at 0, and pixels of a cell that is
        not square need not be square.
    slice_thickness_A : float, default 5
        At most this much matter per slice, Å.
    potential_sampling_A : float, optional
        At most this pixel of the potential, Å; when not given it is just fine enough for the detector (0.32 Å for
        20 mrad at 300 kV).
    thermal_sigma_A : float or None, default 0.08
        Root mean square thermal displacement along one axis, Å: atoms are smeared by it (Debye-Waller factor).
    progress : bool, default True
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
        ``counts`` ``("scan_y", "scan_x", "det_y", "det_x")``: float32 expected electrons at 1 e/Å², so that a
        pattern sums to step_y · step_x times the fraction of electrons within the detector (scan in Å from 0,
        detector in mrad from the optic axis, ``attrs["periodic"] = 1``). ``phase`` ``("y", "x")``: projected
        phase in rad, as `projected_phase`, on the simulation's grid.

    Raises
    ------
    TypeError
        If ``atoms`` is not an ase.Atoms.
    ValueError
        For no atoms, a cell that is not orthogonal, or angles, lengths and samplings that do not fit together.

    Notes
    -----
    Scattering past the detector's half-width is followed no further, so its corners are dark. With
    two cores a 64 Å cell, 30 Å thick, takes about 3 s, and a 128 Å cell (64 x 64 probes) about a minute.

    Examples
    --------
    >>> from ase import Atoms
    >>> atom = Atoms("C", positions=[[8, 8, 1]], cell=[16, 16, 2], pbc=True)
    >>> scan = simulate_cube(atom, scan_step_A=4, det_pixels=16, progress=False)
    >>> scan.counts.shape, bool((scan.counts.sum(("det_y", "det_x")) > 15.9).all())
    ((4, 4, 16, 16), True)
    """
    arguments = {
        name: value for name, value in locals().items() if name not in ("atoms", "progress", "aberrations")
    }
    size = _cell(atoms)
    polar = polar_aberrations(aberrations)
    sigma = _thermal(thermal_sigma_A)
    _positive(energy_eV=energy_eV, semiangle_mrad=semiangle_mrad, slice_thickness_A=slice_thickness_A)
    half_width = 2 * semiangle_mrad if det_max_mrad is None else float(det_max_mrad)
    native = tuple(1e3 * electron_wavelength(energy_eV) / length for length in size)
    _check_angles(semiangle_mrad, half_width, det_pixels, native)
    axes = _detector_axes(native, rotation_deg, half_width, int(det_pixels), semiangle_mrad)
    edge = max((pixels * bins + 1) * step / 2 for pixels, bins, step in axes)
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
    counts.attrs["periodic"] = 1
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


def projected_phase(
    atoms: Atoms,
    *,
    energy_eV: float = 300e3,
    pixel_A: float | tuple[float, float] = 0.25,
    shape: tuple[int, int] | None = None,
    thermal_sigma_A: float | None = 0.08,
) -> xr.DataArray:
    """Projected phase ``σ ∫V dz`` of a periodic specimen: the truth of a phase image.

    Parameters
    ----------
    atoms : ase.Atoms
        Orthogonal cell, periodic in x and y.
    energy_eV : float, default 300e3
        Beam energy, eV.
    pixel_A : float or (float, float), default 0.25
        About this pixel, Å, ``(y, x)`` if two; the grid covers the cell exactly.
    shape : (int, int), optional
        Pixels ``(y, x)``, instead of ``pixel_A``.
    thermal_sigma_A : float or None, default 0.08
        Root mean square thermal displacement along one axis, Å.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, rad; the Fourier series of the phase, cut off at the grid's Nyquist frequency (exact
        to any shift by a part of a pixel, and ringing around atoms that the grid cannot resolve).

    Raises
    ------
    TypeError
        If ``atoms`` is not an ase.Atoms.
    ValueError
        For no atoms, a cell that is not orthogonal, or a bad grid.

    Examples
    --------
    >>> from ase import Atoms
    >>> atom = Atoms("C", positions=[[2, 5, 1]], cell=[8, 10, 2], pbc=True)
    >>> phase = projected_phase(atom, pixel_A=0.5)
    >>> peak = phase.argmax(...)
    >>> float(phase.y[peak["y"]]), float(phase.x[peak["x"]])
    (5.0, 2.0)
    """
    size = _cell(atoms)
    if shape is None:
        pixels = np.broadcast_to(np.asarray(pixel_A, dtype=float), (2,))
        _positive(pixel_A=float(pixels.min()))
        shape = (round(size[0] / pixels[0]), round(size[1] / pixels[1]))
    if len(shape) != 2 or min(shape) < 2:
        raise ValueError(
            f"a grid of {tuple(shape)} pixels is too small: give a finer pixel_A or a larger shape"
        )
    sigma = _thermal(thermal_sigma_A)
    values = interaction_parameter(energy_eV) * _projected_potential(
        atoms.positions, atoms.get_chemical_symbols(), size, shape, sigma
    )
    history = append_history(
        {}, "projected_phase", atoms=atoms.get_chemical_formula(), energy_eV=energy_eV, shape=shape,
        thermal_sigma_A=sigma,
    )  # fmt: skip
    pixel = (size[0] / shape[0], size[1] / shape[1])
    return image_from_array(
        values, pixel_A=pixel, attrs={"energy_eV": float(energy_eV), "periodic": 1, "history": history}
    )


def phase_on_grid(phase: xr.DataArray, *, like: xr.DataArray) -> xr.DataArray:
    """A periodic image on the grid of another, band-limited to what that grid can hold.

    The image's Fourier series, cut off at the Nyquist frequency of the new grid, is evaluated at the new pixel
    centres: exact for any shift, finer or coarser.

    Parameters
    ----------
    phase : xarray.DataArray
        Dims ``("y", "x")``, one period of a periodic image, such as `simulate_cube` and `projected_phase` return.
    like : xarray.DataArray
        Anything with coordinates ``y`` and ``x`` in Å on the same origin, within the same field.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, the coordinates of ``like``, the attrs of ``phase``.

    Raises
    ------
    ValueError
        If ``like`` has no such coordinates, they are not uniform, or it is larger than the field.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> wave = image_from_array(np.cos(2 * np.pi * np.arange(16) / 16) * np.ones((16, 1)), pixel_A=(0.5, 0.5))
    >>> fine = phase_on_grid(wave, like=image_from_array(np.zeros((4, 32)), pixel_A=(2.0, 0.25)))
    >>> bool(np.allclose(fine, np.cos(2 * np.pi * fine.x / 8)))
    True
    """
    values = phase.transpose("y", "x").values
    spectrum = np.fft.fft2(values) / values.size
    basis = [_evaluate(phase, like, dim) for dim in ("y", "x")]
    result = (basis[0] @ spectrum @ basis[1].T).real
    coords = {dim: like[dim] for dim in ("y", "x")}
    image = xr.DataArray(result, dims=("y", "x"), coords=coords, name=phase.name, attrs=dict(phase.attrs))
    image.attrs["history"] = append_history(phase.attrs, "phase_on_grid", shape=list(result.shape))
    return image


def _evaluate(phase: xr.DataArray, like: xr.DataArray, dim: str) -> np.ndarray:
    """Matrix from Fourier coefficients of ``phase`` along one axis to values at the pixels of ``like``."""
    for name, array in (("phase", phase), ("like", like)):
        if dim not in array.coords or array.sizes.get(dim, 0) < 2:
            raise ValueError(
                f"{name} has no coordinate {dim!r} of two or more pixels: give both images y and x in Å"
            )
    source, target = (np.asarray(array[dim].values, dtype=float) for array in (phase, like))
    pixel, wanted = (float(axis[-1] - axis[0]) / (len(axis) - 1) for axis in (source, target))
    for name, axis, step in (("phase", source, pixel), ("like", target, wanted)):
        if not step > 0 or np.ptp(np.diff(axis)) > 1e-3 * step:
            raise ValueError(f"{dim} of {name} is not increasing in uniform steps: interpolate it first")
    number = len(source)
    field = number * pixel
    if len(target) * wanted > field + 0.5 * max(pixel, wanted):
        raise ValueError(
            f"like spans {len(target) * wanted:.4g} Å along {dim}, more than the field of {field:.4g} Å: crop it"
        )
    order = np.rint(np.fft.fftfreq(number) * number)
    turns = np.outer(target - source[0], order / field)
    matrix = np.exp(2j * np.pi * turns)
    if number % 2 == 0:
        # the lone Nyquist coefficient stands for a cosine
        matrix[:, number // 2] = np.cos(2 * np.pi * turns[:, number // 2])
    matrix[:, np.abs(order) / field > 0.5 / wanted * (1 + 1e-9)] = 0
    return matrix


def _cell(atoms: Atoms) -> tuple[float, float]:
    """Sides (y, x) of the cell, after checking that it can be simulated."""
    from ase import Atoms as AseAtoms

    if not isinstance(atoms, AseAtoms):
        raise TypeError(
            f"expected ase.Atoms, got {type(atoms).__name__}: make them with misr.amorphous_atoms or ase"
        )
    if len(atoms) == 0:
        raise ValueError("atoms is empty: there is nothing to simulate")
    cell = np.asarray(atoms.cell.array, dtype=float)
    sides = np.diag(cell)
    if not np.allclose(cell, np.diag(sides), atol=1e-6) or np.any(sides[:2] <= 0):
        raise ValueError(
            f"the cell {cell.round(3).tolist()} is not orthogonal with sides along x, y and z: try "
            "abtem.orthogonalize_cell(atoms)"
        )
    if not np.all(np.isfinite(atoms.positions)):
        raise ValueError("atoms holds positions that are not finite: remove those atoms")
    return float(sides[1]), float(sides[0])


def _scan_shape(size: tuple[float, float], step_A: float | tuple[float, float]) -> tuple[int, int]:
    steps = np.broadcast_to(np.asarray(step_A, dtype=float), (2,))
    _positive(scan_step_A=float(steps.min()))
    shape = (round(size[0] / steps[0]), round(size[1] / steps[1]))
    if min(shape) < 4:
        raise ValueError(
            f"scan_step_A={step_A} gives only {shape} positions in the cell: at least 4 each are needed"
        )
    return shape


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a positive number")


def _thermal(sigma: float | None) -> float:
    value = 0.0 if sigma is None else float(sigma)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"thermal_sigma_A={sigma} must be a length in Å, 0 or None for atoms at rest")
    return value


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


def _grid(
    size: tuple[float, float], energy_eV: float, edge: float, sampling: float | None
) -> tuple[int, int]:
    """Pixels (y, x) of the potential, fast for the FFT, fine enough for angles up to ``edge`` (mrad)."""
    from scipy.fft import next_fast_len

    coarsest = _ALIAS_FREE * electron_wavelength(energy_eV) / (edge * 1e-3)
    if sampling is None:
        sampling = coarsest
    _positive(potential_sampling_A=sampling)
    if sampling > coarsest * (1 + 1e-9):
        raise ValueError(
            f"potential_sampling_A={sampling:g} is too coarse for angles up to {edge:.3g} mrad: give {coarsest:.3g} "
            "or less, or lower det_max_mrad"
        )
    return next_fast_len(math.ceil(size[0] / sampling)), next_fast_len(math.ceil(size[1] / sampling))


def _projected_potential(
    positions: np.ndarray, symbols: list[str], size: tuple[float, float], shape: tuple[int, int], sigma: float
) -> np.ndarray:
    """∫V dz on a grid (y, x), V Å: structure factors summed atom by atom, below the Nyquist frequency."""
    from abtem.parametrizations import LobatoParametrization

    parametrization = LobatoParametrization()
    order_y = np.rint(np.fft.fftfreq(shape[0]) * shape[0])
    order_x = np.arange(shape[1] // 2 + 1)
    squared = (order_y[:, None] / size[0]) ** 2 + (order_x / size[1]) ** 2
    spectrum = np.zeros(squared.shape, dtype=np.complex128)
    names = np.asarray(symbols)
    for symbol in np.unique(names):
        chosen = positions[names == symbol]
        structure = np.zeros(squared.shape, dtype=np.complex128)
        for first in range(0, len(chosen), _ATOM_BLOCK):
            block = chosen[first : first + _ATOM_BLOCK]
            structure += _waves(order_y, block[:, 1] / size[0]) @ _waves(order_x, block[:, 0] / size[1]).T
        spectrum += structure * parametrization.projected_scattering_factor(symbol)(squared)
    spectrum *= np.exp(-2 * (math.pi * sigma) ** 2 * squared)
    if shape[0] % 2 == 0:
        spectrum[shape[0] // 2] = 0
    if shape[1] % 2 == 0:
        spectrum[:, -1] = 0
    return np.fft.irfft2(spectrum, s=shape) * (shape[0] * shape[1] / (size[0] * size[1]))


def _waves(order: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    # whole turns are dropped in double precision; what is left is safe in single
    turns = np.outer(order, fraction)
    angle = (-2 * math.pi * (turns - np.rint(turns))).astype(np.float32)
    return np.cos(angle) + np.complex64(1j) * np.sin(angle)


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
        slices[level] = _projected_potential(
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
            hit = np.flatnonzero(
                (pixel[0] >= 0) & (pixel[0] < axes[0][0]) & (pixel[1] >= 0) & (pixel[1] < axes[1][0])
            )
            rows.append(pixel[0][hit] * axes[1][0] + pixel[1][hit])
            columns.append(hit)
    row, column = np.concatenate(rows), np.concatenate(columns)
    weight = np.full(len(row), 1 / parts**2, dtype=np.float32)
    weights = coo_matrix((weight, (row, column)), shape=(axes[0][0] * axes[1][0], len(k_y))).tocsr()
    angles = tuple(
        ((np.arange(pixels) - pixels / 2) * bins + (bins - 1) / 2) * step for pixels, bins, step in axes
    )
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


def _patterns(
    probe: Probe, potential: PotentialArray, positions: np.ndarray, detector: _Detector
) -> np.ndarray:
    import abtem

    waves = probe.build(abtem.CustomScan(positions), lazy=False).multislice(potential)
    spectrum = waves.ensure_reciprocal_space().array.reshape(len(positions), -1)[:, detector.indices]
    intensity = spectrum.real**2 + spectrum.imag**2
    return (detector.weights @ np.ascontiguousarray(intensity.T)).T


def _workers() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)
