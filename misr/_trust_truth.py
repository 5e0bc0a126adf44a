"""Half maps against the truth, wherever its origin lies and whatever the sign of contrast."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from misr._curves import interval_of, named_curve
from misr._trust_prior import prior_share
from misr._trust_rows import Row, judged
from misr._trust_statistics import artanh, curve_spread
from misr._trust_substitution import on_rings
from misr.comparison import compare_images
from misr.cube import is_periodic, scan_step
from misr.halves import image_of

__all__ = ["checked_truth", "covers", "truth_row"]

_LEAST_SHARED = 0.5  # of the scan, along each axis
_NOTEWORTHY = 0.1  # Å


def checked_truth(truth: Any, cube: xr.DataArray, *, ring_width: float) -> xr.DataArray:
    """The truth as an image that can be compared with images of this scan, or an error before anything has run."""
    image = image_of(truth)
    if not np.all(np.isfinite(image.values)):
        raise ValueError("the truth holds NaN or infinite values: crop or fill them first")
    if np.ptp(image.values) <= 0:
        raise ValueError("the truth is flat: there is nothing to compare with")
    for dim in ("y", "x"):
        if dim not in image.coords:
            raise ValueError(f"the truth has no coordinate {dim!r}: give it positions in Å, on the scan's own origin")
    shared = [_shared(image, cube, axis) for axis in range(2)]
    needed = [max(_LEAST_SHARED * _length(cube, axis), 1 / ring_width) for axis in range(2)]
    if any(here < least * (1 - 1e-6) for here, least in zip(shared, needed, strict=True)):
        raise ValueError(
            f"the truth covers {shared[0]:.3g} × {shared[1]:.3g} Å (y, x) of the scanned field, of which "
            f"{needed[0]:.3g} × {needed[1]:.3g} Å are needed: give it over the whole field, on the scan's own origin"
        )
    return image


def covers(truth: xr.DataArray, cube: xr.DataArray) -> bool:
    """Whether the truth spans the scanned field, so that it can stand in for the specimen."""
    return all(_shared(truth, cube, axis) >= _length(cube, axis) * (1 - 1e-3) for axis in range(2))


def _length(cube: xr.DataArray, axis: int) -> float:
    return cube.shape[axis] * scan_step(cube)[axis]


def _shared(truth: xr.DataArray, cube: xr.DataArray, axis: int) -> float:
    """How much of the scanned field the truth spans along an axis, Å; pixels count with their whole width."""
    here, there = (
        np.asarray(truth["yx"[axis]].values, float),
        np.asarray(cube[("scan_y", "scan_x")[axis]].values, float),
    )
    ends = [(v[0], v[-1] + (v[-1] - v[0]) / max(1, v.size - 1)) for v in (here, there)]
    if is_periodic(truth):
        return min(ends[0][1] - ends[0][0], ends[1][1] - ends[1][0])
    return float(max(0.0, min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0])))


def truth_row(halves: xr.Dataset, truth: xr.DataArray, *, tolerance: float, alpha: float) -> Row:
    """Half maps that claim F correlate with the truth as √F, if they claim no more than is there.

    Shift and sign are found once, from the mean of both halves, so that neither is fitted to one half's noise.
    """
    plain = halves["frc"]
    width = float(plain.attrs["ring_width"])
    images = [image_of(halves[name]) for name in ("first", "second")]
    mean = images[0].copy(data=(images[0].values + images[1].values) / 2)
    if np.ptp(mean.values) <= 0:
        return Row("truth", judged(True), "the images are flat: they claim nothing")
    found = compare_images(mean, truth, ring_width=width)
    shift = {dim: float(found[f"shift_{dim}"]) for dim in ("y", "x")}
    moved = [
        image.assign_coords({dim: (dim, image[dim].values + by, image[dim].attrs) for dim, by in shift.items()})
        for image in images
    ]
    options: dict[str, Any] = {"register": False, "sign": int(found["sign"]), "ring_width": width}
    curves = [compare_images(image, truth, **options)["frc"] for image in moved]
    held = _held(curves, plain)
    claim = prior_share(plain, _squared(held), kind="half-map", tolerance=tolerance, alpha=alpha, warn=False)
    words = "the half maps claim no more than correlates with the truth"
    if not bool(claim["passed"]):
        words = (
            f"the half maps claim more than correlates with the truth: {float(claim['significant_share']):.0%} of the "
            "spectral SNR they claim, where it is worst, is not the specimen's"
        )
    if found.attrs["registration"] != "found":
        words += " (images and truth share too little to be aligned: compared as they lie)"
    elif max(abs(by) for by in shift.values()) > _NOTEWORTHY:
        words += f" (moved by {shift['y']:.2f}, {shift['x']:.2f} Å onto it)"
    share, p_value = float(claim["significant_share"]), float(claim["p_value"])
    return Row("truth", judged(bool(claim["passed"])), words, share, tolerance, p_value, {"frc_truth": held})


def _held(curves: list[xr.DataArray], plain: xr.DataArray) -> xr.DataArray:
    """Mean of both halves' curves against the truth on the rings of the half maps, with the interval of one of them."""
    mean = (curves[0].values + curves[1].values) / 2
    spread = 1.959963984540054 * curve_spread(curves[0])
    rings = {name: curves[0][name] for name in ("frequency", "n_independent")}
    ends = {
        f"frc_{end}": ("frequency", np.tanh(artanh(mean) + sign * spread)) for end, sign in (("low", -1), ("high", 1))
    }
    attrs = {**plain.attrs, "kind": "truth", "long_name": "FRC of a half map against the truth"}
    attrs["window"] = str(curves[0].attrs.get("window", attrs.get("window")))
    whole = xr.DataArray(mean, dims="frequency", coords=rings | ends, name="frc", attrs=attrs)
    return named_curve(on_rings(whole, plain), "frc_truth")


def _squared(held: xr.DataArray) -> xr.DataArray:
    """The half-map curve that a curve against truth allows, with its error bars: its square."""
    interval = interval_of(held)
    parts = (held, *interval) if interval is not None else (held, held, held)
    middle, low, high = (np.maximum(np.nan_to_num(part.values), 0.0) ** 2 for part in parts)
    rings = {name: held[name] for name in ("frequency", "n_independent")}
    coords = rings | {"frc_low": ("frequency", low), "frc_high": ("frequency", high)}
    return xr.DataArray(middle, dims="frequency", coords=coords, name="frc", attrs={**held.attrs, "kind": "half-map"})
