"""Aberrations as data carry them: in the attrs, and out of them again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import xarray as xr

from misr._provenance import append_history

__all__ = ["aberration_attrs", "aberrations_of", "polar_aberrations", "transpose_detector", "with_aberrations"]

_TRANSPOSED = "detector_transposed"
_NAME = re.compile(r"^(C|phi)(\d)(\d)$")


def polar_aberrations(aberrations: Mapping[str, Any] | Any | None) -> dict[str, float]:
    """Aberrations as a plain dict of polar coefficients, checked.

    Parameters
    ----------
    aberrations : mapping, xarray.Dataset or None
        Names ``C10, C12, phi12, C21, phi21, …`` (Å and rad); ``defocus`` is accepted for ``-C10``. What a fit tells
        besides (``rotation_deg``, ``transposed``, ``*_stderr``) is left out. An empty mapping means in focus; None, not
        known.

    Returns
    -------
    dict
        ``{"C10": …}``; empty for None.

    Raises
    ------
    TypeError
        If it is no mapping.
    ValueError
        For an unknown name, an impossible order, a value that is not finite, or a mapping of other things only.

    Examples
    --------
    >>> polar_aberrations({"defocus": 500})
    {'C10': -500.0}
    """
    if aberrations is None:
        return {}
    if not hasattr(aberrations, "items"):
        raise TypeError(f"aberrations is {aberrations!r}: give a mapping such as {{'C10': -500}} (Å; C10 = -defocus)")
    result: dict[str, float] = {}
    for name, value in aberrations.items():
        name = str(name)
        if name in ("rotation_deg", "transposed") or name.endswith("_stderr"):
            continue
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"aberration {name}={number} is not finite: leave it out or give a number")
        if name == "defocus":
            name, number = "C10", -number
        match = _NAME.match(name)
        if match is None or not _order_exists(int(match[2]), int(match[3])):
            raise ValueError(
                f"unknown aberration {name!r}: expected polar names such as C10 (= -defocus), C12, phi12, C21, "
                "phi21, C30 (magnitudes in Å, angles in rad)"
            )
        if name in result and result[name] != number:
            raise ValueError(f"C10={result[name]} and defocus={-number} disagree: give one of them")
        result[name] = number
    if not result and len(aberrations):
        raise ValueError(f"{list(aberrations)} names no aberration: add C10 (= -defocus, Å), or give {{}} for in focus")
    return result or {"C10": 0.0}


def _order_exists(n: int, m: int) -> bool:
    return 1 <= n <= 5 and 0 <= m <= n + 1 and (n + 1 - m) % 2 == 0


def aberrations_of(array: xr.DataArray | xr.Dataset) -> dict[str, float] | None:
    """Polar aberrations in the attrs (``C10_A``, ``C12_A``, ``phi12_rad``, …), or None if there are none.

    Parameters
    ----------
    array : xarray.DataArray or Dataset
        A cube or anything made from one.

    Returns
    -------
    dict or None
        ``{"C10": …}`` in Å and rad.

    Raises
    ------
    ValueError
        For a value that is not a finite number.

    Examples
    --------
    >>> import xarray as xr
    >>> aberrations_of(xr.DataArray(0, attrs={"C10_A": -500.0}))
    {'C10': -500.0}
    """
    found = {}
    for name, value in array.attrs.items():
        stem, _, unit = str(name).partition("_")
        is_coefficient = (stem[:1] == "C" and unit == "A") or (stem[:3] == "phi" and unit == "rad")
        if is_coefficient and stem.lstrip("Cphi").isdigit():
            found[stem] = value
    return polar_aberrations(found) if found else None


def aberration_attrs(aberrations: Any) -> dict[str, float]:
    """Aberrations as attrs of a cube or an image: ``C10_A``, ``phi12_rad`` and so on."""
    return {
        name + ("_A" if name.startswith("C") else "_rad"): value
        for name, value in polar_aberrations(aberrations).items()
    }


def with_aberrations(
    cube: xr.DataArray, aberrations: Mapping[str, Any] | xr.Dataset, *, rotation_deg: float | None = None
) -> xr.DataArray:
    """The cube with these aberrations (and rotation) in its attrs, replacing any it had.

    Parameters
    ----------
    cube : xarray.DataArray
        A 4D-STEM cube; its data are shared, not copied.
    aberrations : mapping or Dataset
        Polar coefficients, Å and rad; ``rotation_deg`` in it is used when the argument is None. An empty mapping
        means in focus, and is recorded as ``C10_A = 0``. If it says that the detector is ``transposed`` (a fit does),
        the detector's axes are swapped, once (see `transpose_detector`).
    rotation_deg : float, optional
        Scan-to-detector rotation, degrees.

    Returns
    -------
    xarray.DataArray
        The cube, relabelled.

    Raises
    ------
    TypeError
        If ``aberrations`` is None or no mapping.
    ValueError
        For unknown aberrations.

    Examples
    --------
    >>> import xarray as xr
    >>> with_aberrations(xr.DataArray(0), {"defocus": 500}).attrs["C10_A"]
    -500.0
    """
    if aberrations is None:
        raise TypeError(
            "aberrations is None: give polar coefficients such as {'C10': -500} (Å; C10 = -defocus), or {} for in focus"
        )
    polar = polar_aberrations(aberrations)
    if "transposed" in aberrations and bool(aberrations["transposed"]) != bool(cube.attrs.get(_TRANSPOSED, 0)):
        cube = transpose_detector(cube)
    stale = aberration_attrs(aberrations_of(cube))
    result = cube.copy(deep=False)
    result.attrs = {name: value for name, value in cube.attrs.items() if name not in stale}
    result.attrs.update(aberration_attrs(polar))
    if rotation_deg is None and "rotation_deg" in aberrations:
        rotation_deg = float(aberrations["rotation_deg"])
    if rotation_deg is not None:
        result.attrs["rotation_deg"] = float(rotation_deg)
    result.attrs["history"] = append_history(cube.attrs, "with_aberrations", **polar, rotation_deg=rotation_deg)
    return result


def transpose_detector(cube: xr.DataArray) -> xr.DataArray:
    """The cube with the detector's axes swapped: for cameras read out column by column.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, NumPy or dask; its data are shared, not copied.

    Returns
    -------
    xarray.DataArray
        What was recorded at ``(det_y, det_x) = (a, b)`` is at ``(b, a)``; ``attrs["detector_transposed"]`` says so.

    Raises
    ------
    ValueError
        If there are no detector axes.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.arange(256.0).reshape(4, 4, 4, 4), scan_step_A=2, det_step_mrad=4,
    ...                             energy_eV=3e5, semiangle_mrad=6)
    >>> bool((transpose_detector(cube)[..., 1, 2] == cube[..., 2, 1].values).all())
    True
    """
    if not {"det_y", "det_x"} <= set(cube.dims):
        raise ValueError(f"expected a cube with dims det_y and det_x, got {cube.dims}: make one with cube_from_array")
    swapped = cube.rename(det_y="det_x", det_x="det_y").transpose("scan_y", "scan_x", "det_y", "det_x")
    swapped.attrs = {**cube.attrs, "history": append_history(cube.attrs, "transpose_detector")}
    swapped.attrs[_TRANSPOSED] = 1 - int(cube.attrs.get(_TRANSPOSED, 0))
    return swapped
