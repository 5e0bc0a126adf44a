"""The object's power from an image that says how much noise it holds and how much of the object it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from misr._rings import Rings

__all__ = ["image_and_spectra", "object_power"]

_SPECTRA = ("noise_std", "transfer")
_LEAST_TRANSFER = 0.1  # root mean square over a ring: below, the image says next to nothing of the object


def image_and_spectra(given: Any) -> tuple[Any, xr.Dataset | None]:
    """The phase image, and its ``noise_std`` and ``transfer`` if it came with them (`misr.fuse_linear`)."""
    if not isinstance(given, xr.Dataset):
        return given, None
    if "phase" not in given:
        raise ValueError(f"a Dataset of {sorted(map(str, given.data_vars))} holds no 'phase': give the image itself")
    spectra = given[list(_SPECTRA)] if set(_SPECTRA) <= set(given.data_vars) else None
    return given["phase"], spectra


def object_power(power: np.ndarray, rings: Rings, spectra: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Power of the object in each ring and whether the ring is told at all, from the power of its image.

    The image is ``t φ + n`` with transfer t and noise of the power ``noise_std²``, so its power in a ring is
    ``<t²> P_φ + <noise_std²>``.
    """
    noise, squared = (_ring_means(spectra[name] ** 2, rings) for name in _SPECTRA)
    told = squared >= _LEAST_TRANSFER**2
    found = np.divide(np.maximum(power - noise, 0), squared, out=np.zeros_like(power), where=told)
    return found, told


def _ring_means(values: xr.DataArray, rings: Rings) -> np.ndarray:
    """Over each ring, of values on their own grid of frequencies: that of a padded field is finer."""
    values = values.transpose("frequency_y", "frequency_x")
    q = np.hypot(values["frequency_y"].values[:, None], values["frequency_x"].values[None, :])
    ring = np.searchsorted(rings.edges, q.ravel(), side="right")
    ring[(q.ravel() == 0) | (ring >= rings.edges.size)] = 0
    count = np.bincount(ring, minlength=rings.edges.size)[1:]
    total = np.bincount(ring, weights=np.asarray(values.values, dtype=float).ravel(), minlength=rings.edges.size)[1:]
    held = count > 0
    if not held.any():
        raise ValueError("noise_std and transfer hold no frequencies of this image: they belong to another one")
    return np.interp(rings.frequency, rings.frequency[held], total[held] / count[held])
