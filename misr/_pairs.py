"""A pair of images of one field, and the windows and masks that weigh them."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import xarray as xr

from misr._rings import Window

__all__ = ["check_pair", "mask_pair", "weighted", "window_pair"]

_SAME_GRID = 1e-3  # of a pixel
_UNEVEN = 1e-2  # of a step
_ANGSTROM = ("Å", "\u212b", "A", "Angstrom", "angstrom", "Angstroms")


def weighted(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The image less its mean under the weights, times the weights."""
    inside = weight > 0
    if not np.all(np.isfinite(values[inside])):
        raise ValueError("an image holds NaN or infinite values: crop or fill them first, or leave them out by a mask")
    values = np.where(inside, values, 0).astype(float)
    return (values - np.sum(values * weight) / np.sum(weight)) * weight


def window_pair(window: Any) -> tuple[Window, Window]:
    """Two windows; a name with a number is one of them."""
    if isinstance(window, tuple | list) and len(window) == 2 and not isinstance(window[1], numbers.Real):
        return window[0], window[1]
    return window, window


def mask_pair(mask: Any, image: xr.DataArray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Weights of each image's pixels, or None; rows of numbers are one mask, not as many masks."""
    if not isinstance(mask, tuple | list) or all(np.ndim(row) == 1 for row in mask):
        one = _mask(mask, image)
        return one, one
    if len(mask) != 2:
        raise ValueError(f"mask holds {len(mask)} masks: one for both images, or a pair")
    return _mask(mask[0], image), _mask(mask[1], image)


def _mask(mask: Any, image: xr.DataArray) -> np.ndarray | None:
    if mask is None:
        return None
    if isinstance(mask, xr.DataArray) and set(mask.dims) == {"y", "x"}:
        mask = mask.transpose("y", "x")
        if {"y", "x"} <= set(mask.coords):
            _check_grid(image, mask)
    weights = np.asarray(mask, dtype=float)
    if weights.shape != image.shape:
        raise ValueError(f"mask of shape {weights.shape} does not fit images of shape {image.shape}")
    if not (np.all((weights >= 0) & (weights <= 1)) and np.any(weights > 0)):
        raise ValueError("a mask holds weights from 0 to 1, some of them above 0")
    return weights


def check_pair(a: xr.DataArray, b: xr.DataArray) -> tuple[float, float]:
    """Pixel (y, x), Å, of two images on one grid."""
    for image in (a, b):
        if not isinstance(image, xr.DataArray) or image.dims != ("y", "x"):
            raise ValueError(
                f"expected images with dims ('y', 'x'), got {getattr(image, 'dims', type(image).__name__)}"
            )
        if min(image.shape) < 8:
            raise ValueError(f"image shape {image.shape} is too small for rings: at least 8 × 8 pixels")
        if image.dtype.kind == "c":
            raise ValueError("an image holds complex values: take its phase or its real part first")
        _check_axes(image)
    if a.shape != b.shape:
        raise ValueError(f"image shapes differ, {a.shape} and {b.shape}: resample one on the other's grid first")
    return _check_grid(a, b)


def _check_axes(image: xr.DataArray) -> None:
    """Positions in Å at a uniform step; pixels without positions would pass for ones of 1 Å."""
    for dim in ("y", "x"):
        if dim not in image.coords:
            raise ValueError(
                f"an image has no coordinate {dim!r}: give positions in Å, e.g. misr.cube.image_from_array(values, "
                "pixel_A=(0.5, 0.5))"
            )
        units = image[dim].attrs.get("units", "Å")
        if units not in _ANGSTROM:
            raise ValueError(f"coordinate {dim!r} is in {units}: expected Å")
        steps = np.diff(image[dim].values.astype(float))
        if not (np.all(np.isfinite(steps)) and abs(steps.mean()) > 0) or np.ptp(steps) > _UNEVEN * abs(steps.mean()):
            raise ValueError(f"coordinate {dim!r} is not uniform: resample the image on even steps first")


def _check_grid(a: xr.DataArray, b: xr.DataArray) -> tuple[float, float]:
    if a.shape != b.shape:
        raise ValueError(f"mask of shape {b.shape} does not fit images of shape {a.shape}")
    pixel = []
    for dim in ("y", "x"):
        here, there = a[dim].values.astype(float), b[dim].values.astype(float)
        step = abs(float(here[-1] - here[0])) / (here.size - 1)
        if np.max(np.abs(here - there)) > _SAME_GRID * step:
            raise ValueError(
                f"coordinate {dim!r} of the images differs by up to {np.max(np.abs(here - there)):.3g} Å: resample one "
                "on the other's grid first"
            )
        pixel.append(step)
    return pixel[0], pixel[1]
