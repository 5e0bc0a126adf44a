"""Aberrations as data carry them: in the attrs, and out of them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from misr._provenance import append_history
from misr.optics import polar_aberrations

__all__ = ["aberration_attrs", "aberrations_of", "with_aberrations"]


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
        Polar coefficients, Å and rad; ``rotation_deg`` in it is used when the argument is None.
    rotation_deg : float, optional
        Scan-to-detector rotation, degrees.

    Returns
    -------
    xarray.DataArray
        The cube, relabelled.

    Raises
    ------
    ValueError
        For unknown aberrations.

    Examples
    --------
    >>> import xarray as xr
    >>> with_aberrations(xr.DataArray(0), {"defocus": 500}).attrs["C10_A"]
    -500.0
    """
    polar = polar_aberrations(aberrations)
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
