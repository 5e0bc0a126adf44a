"""Rings of frequencies: which pixel belongs to which, tapers against borders, and how many values are independent.

Spectra are halves, as `scipy.fft.rfft2` gives them; a real image's other half says the same.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np

__all__ = ["Rings", "half_spectrum", "independent_values", "make_rings", "window_taper"]

Window = str | tuple[Any, ...] | None
_EXACT_SHIFTS = 8  # a Hann window's likeness reaches no farther
_LEAST_LIKENESS = 1e-7
_CHUNK = 1 << 16
_NO_LENGTH = 1e-12


@dataclasses.dataclass(frozen=True)
class Rings:
    """Rings over the half spectrum of real images; ``label`` is 0 where a pixel belongs to none, else 1, 2, …."""

    label: np.ndarray
    columns: int
    pixel: tuple[float, float]
    width: float
    lowest: float
    nyquist: float
    edges: np.ndarray
    count: np.ndarray
    frequency: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Which rings hold any pixel."""
        return self.count > 0

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over each ring of what is the same at q and -q, both counted."""
        return _both_halves(self.label, self.edges.size - 1, values)

    def whole(self) -> np.ndarray:
        """Labels over the whole spectrum."""
        column = np.arange(self.columns)
        return self.label[:, np.minimum(column, self.columns - column)]


def make_rings(shape: tuple[int, ...], pixel: tuple[float, float], ring_width: float | None = None) -> Rings:
    """Rings of a field of ``shape`` pixels of ``pixel`` Å (y, x), up to the smaller Nyquist frequency.

    One-pixel rings (``ring_width=None``) are centred on whole frequency pixels of the shorter side; rings of a given
    width (1/Å) are counted from zero.
    """
    lowest = 1 / min(shape[0] * pixel[0], shape[1] * pixel[1])
    width = lowest if ring_width is None else float(ring_width)
    if not math.isfinite(width):
        raise ValueError(f"ring_width={ring_width} must be a finite width in 1/Å")
    if not width >= lowest * (1 - 1e-9):
        raise ValueError(f"ring_width={width:g} is below one frequency pixel of this field ({lowest:.4g} 1/Å)")
    nyquist = 0.5 / max(pixel)
    q = np.hypot(np.fft.fftfreq(shape[0], pixel[0])[:, None], np.fft.rfftfreq(shape[1], pixel[1])[None, :])
    offset = 0.5 if ring_width is None else 0.0
    label = (q / width + offset).astype(np.int32)
    label += 1
    # ring 0 takes what belongs to none: the zero frequency (the mean), Nyquist and what lies past it
    label[q >= nyquist * (1 - 1e-9)] = 0
    label[0, 0] = 0
    n_rings = int(label.max(initial=0))
    if n_rings < np.iinfo(np.int16).max:
        label = label.astype(np.int16)
    edges = np.clip((np.arange(n_rings + 1) - offset) * width, 0, nyquist)
    count = _both_halves(label, n_rings, None)
    total = _both_halves(label, n_rings, q)
    frequency = np.divide(total, count, out=np.zeros(n_rings), where=count > 0)
    return Rings(label, shape[1], pixel, width, lowest, nyquist, edges, count, frequency)


def _both_halves(label: np.ndarray, n_rings: int, values: np.ndarray | None) -> np.ndarray:
    """Ring sums over the whole spectrum from its half; the first column holds both q and -q already.

    The last column is its own mirror image too if their number is even, but it lies at Nyquist, in no ring.
    """
    flat = None if values is None else values.ravel()
    first = None if values is None else values[:, 0]
    twice = 2 * np.bincount(label.ravel(), weights=flat, minlength=n_rings + 1)
    return (twice - np.bincount(label[:, 0], weights=first, minlength=n_rings + 1))[1:].astype(float)


def half_spectrum(values: np.ndarray) -> np.ndarray:
    """Half of the discrete Fourier transform of real values, on all the cores this process may use."""
    import scipy.fft

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return scipy.fft.rfft2(values, workers=min(cores, 8) if values.size > _CHUNK else 1)


def window_taper(shape: tuple[int, ...], window: Window) -> np.ndarray:
    """Taper against a field's borders: all ones, Hann, or any window `scipy.signal.get_window` knows."""
    first, second = (_taper_1d(n, window) for n in shape)
    return np.outer(first, second)


def _taper_1d(n: int, window: Window) -> np.ndarray:
    if window is None:
        return np.ones(n)
    if window == "hann":
        return 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)
    import scipy.signal

    try:
        taper = scipy.signal.get_window(window, n, fftbins=False)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"window={window!r} must be 'hann' or None, another window of scipy.signal.get_window such as 'tukey' or "
            "('tukey', 0.3), or a pair of windows, one for each image"
        ) from error
    return np.asarray(taper, dtype=float)


def likeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How alike white noise is at two frequencies that lie (±δy, ±δx) pixels apart, by |δy| and |δx|, signs summed.

    White noise under a weight w correlates at two frequencies δ apart as the Fourier transform C of w² does, and
    ``Σ A B*`` of two unrelated images under w and v varies as ``Σ C_w(δ) C_v*(δ)`` over all pairs of pixels.
    """
    alike = np.fft.fft2(first**2) * np.fft.fft2(second**2).conj()
    alike = alike.real / alike[0, 0].real
    for axis, n in enumerate(alike.shape):
        positive = np.take(alike, np.arange(n // 2 + 1), axis=axis)
        negative = np.take(alike, -np.arange(n // 2 + 1) % n, axis=axis)
        alone = (np.arange(n // 2 + 1) * 2) % n == 0
        alike = positive + negative * np.expand_dims(~alone, 1 - axis)
    return alike


def window_likeness(shape: tuple[int, ...], first: Window, second: Window) -> np.ndarray:
    """`likeness` of two tapers of `window_taper`."""
    one, other = (
        (_taper_1d(shape[0], window)[:, None], _taper_1d(shape[1], window)[None]) for window in (first, second)
    )
    return likeness(one[0], other[0]) * likeness(one[1], other[1])


def independent_values(ring: np.ndarray, window: Window | np.ndarray, rings: Rings | None = None) -> np.ndarray:
    """Independent complex values per ring (1, 2, …): half its pixels, fewer where weights make neighbours alike.

    A sum over the m pixels of a ring varies as ``Σ K(δ)`` over all pairs of them, K from `likeness`: m²/ΣK values are
    independent, half of them in the half of the spectrum that tells all of a real image. The nearest neighbours, which
    is all that a Hann window reaches, are counted; what lies farther is had from the area in which a ring overlaps
    with itself shifted, for which ``rings`` has the geometry.

    Parameters
    ----------
    ring : numpy.ndarray
        Labels over the whole spectrum, zero frequency first.
    window : str, tuple, None or numpy.ndarray
        A taper of `window_taper`, or what `likeness` gives.
    rings : Rings, optional
        Whose labels these are; without it distant neighbours are left out.
    """
    count = np.bincount(ring.ravel()).astype(float)
    pairs = count.copy()
    if window is not None:
        alike = (window if isinstance(window, np.ndarray) else window_likeness(ring.shape, window, window)).copy()
        alike[0, 0] = 0
        nearest = np.argpartition(alike, -_EXACT_SHIFTS, axis=None)[-_EXACT_SHIFTS:]
        steps = np.stack(np.unravel_index(nearest, alike.shape), axis=1)
        steps = steps[alike[steps[:, 0], steps[:, 1]] > _LEAST_LIKENESS]
        pairs += _near_pairs(ring, steps, alike[steps[:, 0], steps[:, 1]], count.size)
        alike[steps[:, 0], steps[:, 1]] = 0
        if rings is not None:
            pairs[1:] += _distant_pairs(alike, rings)
    return (count**2 / np.maximum(pairs, 1e-12))[1:] / 2


def _near_pairs(ring: np.ndarray, steps: np.ndarray, alike: np.ndarray, size: int) -> np.ndarray:
    """Σ K over the pairs of each ring that lie these steps apart, counted; rows by rows, to stay in the cache."""
    pairs = np.zeros(size)
    if not len(steps):
        return pairs
    (n_y, n_x), (most_y, most_x) = ring.shape, steps.max(axis=0)
    wrapped = np.pad(ring, ((0, most_y), (0, most_x)), mode="wrap")
    rows = max(1, _CHUNK // n_x)
    for top in range(0, n_y, rows):
        here = ring[top : top + rows]
        found = np.zeros(here.shape, dtype=np.float32)
        for (step_y, step_x), share in zip(steps, alike.astype(np.float32), strict=True):
            found += share * (here == wrapped[top + step_y : top + step_y + len(here), step_x : step_x + n_x])
        pairs += np.bincount(here.ravel(), weights=found.ravel(), minlength=size)
    return pairs


def _distant_pairs(alike: np.ndarray, rings: Rings) -> np.ndarray:
    """Σ K over pairs too many to count: the chance that a ring's pixel has another of its ring δ away, times K."""
    n_y, n_x = rings.label.shape[0], rings.columns
    step_y, step_x = 1 / (n_y * rings.pixel[0]), 1 / (n_x * rings.pixel[1])
    far = np.hypot(np.arange(alike.shape[0])[:, None] * step_y, np.arange(alike.shape[1])[None, :] * step_x)
    keep = alike > _LEAST_LIKENESS
    if not keep.any():
        return np.zeros(rings.count.size)
    # by distance, in eighths of a frequency pixel: rings know no directions
    bins = np.round(far[keep] / rings.lowest * 8).astype(int)
    total = np.bincount(bins, weights=alike[keep])
    distance = np.flatnonzero(total) / 8 * rings.lowest
    inner, outer = rings.edges[:-1, None], rings.edges[1:, None]
    area = np.pi * (outer**2 - inner**2)
    overlap = _lens(outer, outer, distance) - 2 * _lens(inner, outer, distance) + _lens(inner, inner, distance)
    # as many of a ring's places are taken as its pixels fill its area
    filling = (rings.count * step_y * step_x)[:, None] / area
    return rings.count * ((overlap / area * filling) @ total[total > 0])


def _lens(small: np.ndarray, large: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Area that two disks have in common."""
    small, large = np.maximum(small, _NO_LENGTH), np.maximum(large, _NO_LENGTH)
    d = np.clip(distance, np.maximum(large - small, _NO_LENGTH), small + large)
    at_small = np.arccos(np.clip((d**2 + small**2 - large**2) / (2 * d * small), -1, 1))
    at_large = np.arccos(np.clip((d**2 + large**2 - small**2) / (2 * d * large), -1, 1))
    kite = (-d + small + large) * (d + small - large) * (d - small + large) * (d + small + large)
    return small**2 * at_small + large**2 * at_large - 0.5 * np.sqrt(np.maximum(kite, 0))
