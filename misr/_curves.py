"""Curves over frequency that share a Dataset: each one's interval is a pair of coordinates named after it.

Coordinates of a Dataset belong to all variables of their dimension, so an interval called ``frc_low`` may stand beside
``frc_full`` too: it is the interval of ``frc`` alone.
"""

from __future__ import annotations

from typing import Any

import xarray as xr

__all__ = ["interval_of", "named_curve"]

_ENDS = ("low", "high")
_RINGS = ("frequency", "n_independent", "n_additive")


def interval_of(curve: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray] | None:
    """Lower and upper end of a curve's interval, ``<name>_low`` and ``<name>_high``, or None if it has none.

    A curve without a name is taken for an FRC.
    """
    low, high = (f"{curve.name or 'frc'}_{end}" for end in _ENDS)
    return (curve[low], curve[high]) if {low, high} <= set(curve.coords) else None


def named_curve(curve: xr.DataArray, name: str, *, frequency: str = "frequency") -> xr.DataArray:
    """The curve and its interval under another name, and over another dimension where its rings are others.

    Parameters
    ----------
    curve : xarray.DataArray
        Over ``frequency``.
    name : str
        New name.
    frequency : str
        New name of the dimension; the other coordinates of the rings get the same ending.

    Returns
    -------
    xarray.DataArray
        With the coordinates of its rings and its own interval only.
    """
    interval = interval_of(curve)
    kept = curve.drop_vars([key for key in curve.coords if key not in _RINGS]).rename(name)
    if interval is not None:
        ends = {
            f"{name}_{end}": ("frequency", each.values, each.attrs) for end, each in zip(_ENDS, interval, strict=True)
        }
        kept = kept.assign_coords(ends)
    ending = frequency.removeprefix("frequency")
    others: dict[Any, str] = {key: f"{key}{ending}" for key in _RINGS if ending and key in kept.coords}
    return kept.rename(others)
