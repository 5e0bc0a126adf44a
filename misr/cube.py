"""The labelled 4D-STEM cube: how it is made, what it must satisfy, and what can be read off it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, read_history
from misr.aberrations import aberration_attrs, aberrations_of, polar_aberrations

__all__ = [
    "CUBE_DIMS",
    "cube_from_array",
    "cube_history",
    "image_from_array",
    "is_lazy",
    "is_periodic",
    "scan_step",
    "validate_cube",
]

CUBE_DIMS = ("scan_y", "scan_x", "det_y", "det_x")
_UNITS = {"scan_y": "Å", "scan_x": "Å", "det_y": "mrad", "det_x": "mrad"}
_SHORTEST_SCAN = 4
_LOWEST_ENERGY = 5e3  # eV: below any electron microscope that transmits, above every energy given in keV
_OPTIONAL = ("semiangle_mrad",)  # what `misr.bright_field_disk` can tell
_UNIFORM = 1e-3  # spacing may differ by this fraction: coordinates stored as float32 differ by 1e-4


def cube_from_array(
    counts: Any,
    *,
    scan_step_A: float | tuple[float, float],
    det_step_mrad: float | tuple[float, float],
    energy_eV: float,
    semiangle_mrad: float | None = None,
    dose_e_per_A2: float | None = None,
    rotation_deg: float = 0.0,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
) -> xr.DataArray:
    """Label a bare array of electron counts as a 4D-STEM cube.

    Parameters
    ----------
    counts : array, shape (scan_y, scan_x, det_y, det_x)
        Electrons (not detector units). NumPy or dask; a dask array stays lazy.
    scan_step_A : float or (float, float)
        Distance between probe positions, Å; ``(y, x)`` if they differ.
    det_step_mrad : float or (float, float)
        Detector pixel, mrad; ``(y, x)`` if they differ.
    energy_eV : float
        Beam energy, eV.
    semiangle_mrad : float, optional
        Convergence semi-angle, mrad. Estimated from the bright-field disk when needed and not given
        (`bright_field_disk`).
    dose_e_per_A2 : float, optional
        Electrons per Å². Taken from the mean counts when not given and the array is in memory.
    rotation_deg : float, default 0
        Scan-to-detector rotation, degrees: a detector vector turned by it lies in the scan's frame.
    aberrations : mapping or Dataset, optional
        Polar coefficients (``C10 = -defocus``), Å and rad.

    Returns
    -------
    xarray.DataArray
        Dims ``("scan_y", "scan_x", "det_y", "det_x")``; scan in Å from 0, detector in mrad from its middle
        (`bright_field_disk` finds the optic axis from the data).

    Raises
    ------
    ValueError
        If the array is not 4-D or the cube is not valid: every problem is named in one message.

    Examples
    --------
    >>> import numpy as np
    >>> cube = cube_from_array(np.ones((8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2, energy_eV=300e3,
    ...                        semiangle_mrad=10)
    >>> cube.dims, float(cube.attrs["dose_e_per_A2"])
    (('scan_y', 'scan_x', 'det_y', 'det_x'), 64.0)
    """
    if getattr(counts, "ndim", None) != 4:
        counts = np.asarray(counts)
        if counts.ndim != 4:
            raise ValueError(f"counts has shape {counts.shape}: expected four axes (scan_y, scan_x, det_y, det_x)")
    scan_steps, det_steps = _pair(scan_step_A, "scan_step_A"), _pair(det_step_mrad, "det_step_mrad")
    size = counts.shape
    coords: dict[str, Any] = {}
    for axis, (name, step) in enumerate(zip(CUBE_DIMS, (*scan_steps, *det_steps), strict=True)):
        first = 0.0 if name.startswith("scan") else -step * (size[axis] - 1) / 2
        coords[name] = (name, first + step * np.arange(size[axis]), {"units": _UNITS[name]})
    cube = xr.DataArray(counts, dims=CUBE_DIMS, coords=coords, name="counts")
    cube.attrs = {
        "units": "electrons",
        "energy_eV": float(energy_eV),
        **({} if semiangle_mrad is None else {"semiangle_mrad": float(semiangle_mrad)}),
        "rotation_deg": float(rotation_deg),
    }
    if dose_e_per_A2 is None and not is_lazy(cube):
        dose_e_per_A2 = float(np.sum(counts, dtype=float)) / (size[0] * size[1]) / (scan_steps[0] * scan_steps[1])
    if dose_e_per_A2 is not None:
        cube.attrs["dose_e_per_A2"] = float(dose_e_per_A2)
    cube.attrs.update(aberration_attrs(aberrations))
    cube.attrs["history"] = append_history(
        {},
        "cube_from_array",
        shape=list(size),
        scan_step_A=scan_steps,
        det_step_mrad=det_steps,
        energy_eV=energy_eV,
        semiangle_mrad=semiangle_mrad,
        dose_e_per_A2=dose_e_per_A2,
        rotation_deg=rotation_deg,
        **polar_aberrations(aberrations),
    )
    validate_cube(cube, counts=not is_lazy(cube))
    return cube


def _pair(value: float | tuple[float, float], name: str) -> tuple[float, float]:
    pair = np.broadcast_to(np.asarray(value, dtype=float), (2,))
    if not np.all(np.isfinite(pair)) or np.any(pair <= 0):
        raise ValueError(f"{name}={value} must be one positive number, or two as (y, x)")
    return float(pair[0]), float(pair[1])


def validate_cube(cube: xr.DataArray, *, counts: bool = True) -> None:
    """Check that an array is a usable 4D-STEM cube; name every problem at once.

    Parameters
    ----------
    cube : xarray.DataArray
        The candidate.
    counts : bool, default True
        Also look for negative and non-finite counts, which reads the data once (in chunks, if it is dask-backed).

    Raises
    ------
    TypeError
        If ``cube`` is not a DataArray.
    ValueError
        With one line per problem.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> validate_cube(xr.DataArray(np.ones((8, 8)), dims=("y", "x")))
    Traceback (most recent call last):
        ...
    ValueError: not a valid 4D-STEM cube:
    - dims are ('y', 'x'), expected ('scan_y', 'scan_x', 'det_y', 'det_x'): rename or transpose them
    """
    if not isinstance(cube, xr.DataArray):
        raise TypeError(
            f"expected an xarray.DataArray, got {type(cube).__name__}: label it with misr.cube_from_array first"
        )
    if cube.dims != CUBE_DIMS:
        wish = f"expected {CUBE_DIMS}: rename or transpose them"
        raise ValueError(f"not a valid 4D-STEM cube:\n- dims are {cube.dims}, {wish}")
    problems = [text for name in CUBE_DIMS for text in _coordinate_problems(cube, name)]
    problems += _attribute_problems(cube)
    if not problems:
        problems += _disk_problems(cube)
    if counts:
        problems += _count_problems(cube)
    if problems:
        raise ValueError("not a valid 4D-STEM cube:\n" + "\n".join(f"- {text}" for text in problems))


def _coordinate_problems(cube: xr.DataArray, name: str) -> list[str]:
    if name not in cube.coords:
        return [f"no coordinate {name!r}: give positions in {_UNITS[name]}"]
    problems = []
    units = cube[name].attrs.get("units")
    if units != _UNITS[name]:
        problems.append(f"{name} has units {units!r}, expected {_UNITS[name]!r}: set cube[{name!r}].attrs['units']")
    shortest = _SHORTEST_SCAN if name.startswith("scan") else 2
    if cube.sizes[name] < shortest:
        problems.append(f"{name} has {cube.sizes[name]} positions, at least {shortest} are needed: not a 2-D scan?")
        return problems
    values = np.asarray(cube[name].values, dtype=float)
    steps = np.diff(values)
    if not np.all(np.isfinite(values)) or not np.all(steps > 0):
        problems.append(f"{name} does not increase: flip the axis (data and coordinate) with isel")
    elif np.ptp(steps) > _UNIFORM * steps.mean():
        problems.append(f"{name} is not uniform (steps {steps.min():.6g} to {steps.max():.6g}): interpolate first")
    return problems


def _attribute_problems(cube: xr.DataArray) -> list[str]:
    problems = []
    for name, example in (("energy_eV", "300e3"), ("semiangle_mrad", "10")):
        value = cube.attrs.get(name)
        if value is None:
            if name not in _OPTIONAL:
                problems.append(f"attrs[{name!r}] is missing: set it, e.g. cube.attrs[{name!r}] = {example}")
        elif not (isinstance(value, int | float | np.number) and math.isfinite(value) and value > 0):
            problems.append(f"attrs[{name!r}] is {value!r}, expected a positive number such as {example}")
    energy = cube.attrs.get("energy_eV")
    if isinstance(energy, int | float | np.number) and 0 < energy < _LOWEST_ENERGY:
        problems.append(f"attrs['energy_eV'] is {energy!r}: in eV, so 300 keV is 300e3")
    for name, least in (("rotation_deg", -math.inf), ("dose_e_per_A2", 0.0)):
        value = cube.attrs.get(name)
        if value is None:
            continue
        if not (isinstance(value, int | float | np.number) and math.isfinite(value) and value >= least):
            kind = "a finite number" if least < 0 else "a number of electrons, not below 0"
            problems.append(f"attrs[{name!r}] is {value!r}, expected {kind}")
    try:
        aberrations_of(cube)
    except ValueError as error:
        problems.append(str(error))
    return problems


def _disk_problems(cube: xr.DataArray) -> list[str]:
    if cube.attrs.get("semiangle_mrad") is None:
        return []
    semiangle = float(cube.attrs["semiangle_mrad"])
    edges = {name: _half_width(cube, name) for name in ("det_y", "det_x")}
    edge = min(edges.values())
    if semiangle <= edge:
        return []
    return [
        f"semiangle_mrad={semiangle:g} reaches past the detector (edge at {edge:.3g} mrad): crop less or check "
        "det_step_mrad"
    ]


def _half_width(cube: xr.DataArray, name: str) -> float:
    """Half of what an axis covers, outer pixel edge to outer pixel edge."""
    values = np.asarray(cube[name].values, dtype=float)
    return float(values[-1] - values[0]) * len(values) / (len(values) - 1) / 2


def _count_problems(cube: xr.DataArray) -> list[str]:
    if cube.dtype.kind in "ub":
        return []
    if cube.dtype.kind not in "if":
        return [f"counts have dtype {cube.dtype}, expected integers or real floats"]
    low = cube.min(skipna=False)
    finite = xr.apply_ufunc(np.isfinite, cube, dask="allowed").all()
    if is_lazy(cube):
        import dask

        low, finite = dask.compute(low, finite)
    if not bool(finite):
        return ["counts hold NaN or infinite values: mask dead pixels with cube.where(...).fillna(0)"]
    if float(low) < 0:
        return [f"counts are negative (down to {float(low):.4g}): subtract less background or clip at 0"]
    return []


def is_lazy(array: xr.DataArray) -> bool:
    """Whether the data are dask-backed."""
    return array.chunks is not None


def scan_step(array: xr.DataArray) -> tuple[float, float]:
    """Scan step ``(y, x)`` in Å of a cube or a stack of views.

    Parameters
    ----------
    array : xarray.DataArray
        Anything with coordinates ``scan_y`` and ``scan_x``.

    Returns
    -------
    tuple of float
        Å.

    Examples
    --------
    >>> import numpy as np
    >>> scan_step(cube_from_array(np.ones((8, 8, 4, 4)), scan_step_A=(2, 3), det_step_mrad=8, energy_eV=3e5,
    ...                           semiangle_mrad=10))
    (2.0, 3.0)
    """
    steps = []
    for name in ("scan_y", "scan_x"):
        values = np.asarray(array[name].values, dtype=float)
        steps.append(float(values[-1] - values[0]) / (len(values) - 1))
    return steps[0], steps[1]


def is_periodic(array: xr.DataArray) -> bool:
    """Whether a scan (or image) wraps round: its ``attrs["period_A"]``, ``[y, x]`` in Å, is what it covers.

    A crop or a thinned-out scan keeps the attribute and no longer covers the period, so it counts as not periodic.
    """
    period = array.attrs.get("period_A")
    if period is None:
        return False
    dims = ("scan_y", "scan_x") if "scan_y" in array.dims else ("y", "x")
    return all(
        array.sizes[dim] > 1 and abs(2 * _half_width(array, dim) - length) < _UNIFORM * length
        for dim, length in zip(dims, period, strict=True)
    )


def detector_step(cube: xr.DataArray) -> tuple[float, float]:
    """Detector pixel ``(y, x)`` in mrad."""
    steps = []
    for name in ("det_y", "det_x"):
        values = np.asarray(cube[name].values, dtype=float)
        steps.append(float(values[-1] - values[0]) / (len(values) - 1))
    return steps[0], steps[1]


def cube_history(array: xr.DataArray | xr.Dataset) -> list[dict[str, Any]]:
    """What was done to the data, oldest first.

    Parameters
    ----------
    array : xarray.DataArray or Dataset
        Anything misr returned.

    Returns
    -------
    list of dict
        Each with ``operation`` and its arguments.

    Raises
    ------
    ValueError
        If ``attrs["history"]`` is not JSON lines.

    Examples
    --------
    >>> import numpy as np
    >>> cube = cube_from_array(np.ones((8, 8, 4, 4)), scan_step_A=2, det_step_mrad=8, energy_eV=3e5,
    ...                        semiangle_mrad=10)
    >>> [line["operation"] for line in cube_history(cube)]
    ['cube_from_array']
    """
    return read_history(array.attrs)


def image_from_array(
    values: Any,
    *,
    pixel_A: tuple[float, float],
    origin_A: tuple[float, float] = (0.0, 0.0),
    name: str = "phase",
    units: str = "rad",
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Label a 2-D array as an image on the scan's own coordinates.

    Parameters
    ----------
    values : array, shape (y, x)
        Pixel values.
    pixel_A : (float, float)
        Pixel size ``(y, x)``, Å.
    origin_A : (float, float), default (0, 0)
        Coordinates of the first pixel's centre, Å.
    name, units : str
        Name and units of the values.
    attrs : mapping, optional
        Further attrs.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, coordinates in Å.

    Examples
    --------
    >>> import numpy as np
    >>> image_from_array(np.zeros((2, 2)), pixel_A=(0.5, 0.5)).x.values.tolist()
    [0.0, 0.5]
    """
    coords = {
        dim: (dim, origin + step * np.arange(size), {"units": "Å"})
        for dim, origin, step, size in zip(("y", "x"), origin_A, pixel_A, np.shape(values), strict=True)
    }
    return xr.DataArray(values, dims=("y", "x"), coords=coords, name=name, attrs={"units": units, **(attrs or {})})
