"""Translation between two images, one or both very noisy: cross-correlation weighted by what they share in each ring.

Plain arrays, pixel units nowhere: shifts in Å, frequencies in 1/Å.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from misr.resolution import window_taper

__all__ = ["Registration", "register"]

_FEWEST = 24  # frequencies of the narrowest band tried
_MOST_ALIKE = 0.98  # of a ring's coherence: a few perfect rings must not have all the weight
_ROUNDS = 3


class Registration(NamedTuple):
    """How far the first image lies from the second, with what certainty, and which sign they have to each other."""

    shift: tuple[float, float]  # (y, x), Å: what is at r in the second image is at r + shift in the first
    stderr: tuple[float, float]  # of the shift, Å; inf where nothing was found
    sign: int
    significance: float  # height of the correlation's peak, standard deviations of unrelated images
    needed: float  # what the peak of unrelated images exceeds with the false alarm rate
    found: bool


class _Pair(NamedTuple):
    """The cross-spectrum, every ring with mean power 1, and where it is in frequency."""

    cross: np.ndarray
    q_y: np.ndarray
    q_x: np.ndarray
    ring: np.ndarray  # 0 for frequencies not used
    width: float  # of a ring, 1/Å
    alike: float


def register(
    first: np.ndarray,
    second: np.ndarray,
    *,
    pixel: tuple[float, float],
    window: str | None,
    max_shift: float,
    sign: int | None,
    false_alarm: float,
    always: bool = False,
) -> Registration:
    """Shift of ``first`` against ``second``, both on one grid (Å), up to ``max_shift`` along each axis.

    The highest correlation over a few bands of frequencies (all, the lower half, quarter …) says where; its height
    says whether at all. The band gives way to the weight ``γ/(1 - γ²)`` of each ring, γ its correlation at the shift
    found, which is the weight of maximum likelihood; the standard error is the Cramér-Rao bound of that.
    """
    pair = _cross_spectrum(first, second, pixel, window)
    shift, found_sign, height, needed = _highest(pair, pixel, max_shift, sign, false_alarm)
    if height < needed and not always:
        # nothing that chance does not do: no shift, so that none is fitted to noise
        return Registration((0.0, 0.0), (math.inf, math.inf), 1 if sign is None else sign, height, needed, False)
    if max_shift == 0:
        return Registration((0.0, 0.0), (0.0, 0.0), found_sign, height, needed, True)
    stderr = (math.inf, math.inf)
    for _ in range(_ROUNDS):
        coherence = _coherence(pair, shift, found_sign)
        shift = _climb(pair, coherence / (1 - coherence**2) * found_sign, shift, pixel, max_shift)
        stderr = _bound(pair, coherence)
    return Registration(shift, stderr, found_sign, height, needed, True)


def _cross_spectrum(first: np.ndarray, second: np.ndarray, pixel: tuple[float, float], window: str | None) -> _Pair:
    import scipy.fft

    shape = first.shape
    taper = window_taper(shape, window)
    spectra = [scipy.fft.fft2((image - np.average(image, weights=taper)) * taper) for image in (first, second)]
    q_y, q_x = (np.fft.fftfreq(size, step) for size, step in zip(shape, pixel, strict=True))
    q = np.hypot(q_y[:, None], q_x[None, :])
    width = 1 / min(shape[0] * pixel[0], shape[1] * pixel[1])
    ring = np.rint(q / width).astype(int)
    ring[q >= 0.5 / max(pixel) * (1 - 1e-9)] = 0
    count = np.maximum(np.bincount(ring.ravel()), 1)
    cross = spectra[0] * spectra[1].conj()
    # a window makes neighbouring frequencies alike: sums over many of them vary by so much more
    alike = float(taper.size * np.sum(taper**4) / np.sum(taper**2) ** 2)
    for spectrum in spectra:
        power = np.bincount(ring.ravel(), weights=(spectrum.real**2 + spectrum.imag**2).ravel()) / count
        floor = max(float(power[1:].max(initial=0.0)), 1e-300) * 1e-12
        cross *= (1 / np.sqrt(np.maximum(power, floor)))[ring]
    return _Pair(cross, q_y, q_x, ring, width, alike)


def _highest(
    pair: _Pair, pixel: tuple[float, float], max_shift: float, sign: int | None, false_alarm: float
) -> tuple[tuple[float, float], int, float, float]:
    """Shift, sign, height in standard deviations, and the height that chance needs, of the best band."""
    from scipy import stats

    rings = int(pair.ring.max())
    spread = [np.fft.fftfreq(size, 1 / size) * step for size, step in zip(pair.ring.shape, pixel, strict=True)]
    near = [np.flatnonzero(np.abs(axis) <= max_shift * (1 + 1e-9)) for axis in spread]
    best = ((0.0, 0.0), 1, -math.inf)
    places = 0.0
    for band in _bands(pair, rings):
        kept = np.where((pair.ring > 0) & (pair.ring <= band), pair.cross, 0)
        deviation = math.sqrt(float(np.sum(kept.real**2 + kept.imag**2)) * pair.alike)
        surface = np.fft.ifft2(kept).real[np.ix_(*near)] * (kept.size / max(deviation, 1e-300))
        signed = np.abs(surface) if sign is None else sign * surface
        at = np.unravel_index(int(np.argmax(signed)), signed.shape)
        places += max(1.0, math.pi * (band * pair.width) ** 2 * (2 * max_shift) ** 2) * (2 if sign is None else 1)
        if signed[at] > best[2]:
            shift = (float(spread[0][near[0][at[0]]]), float(spread[1][near[1][at[1]]]))
            best = (shift, 1 if surface[at] > 0 else -1, float(signed[at]))
    needed = float(stats.norm.isf(false_alarm / places))
    return best[0], best[1] if sign is None else sign, best[2], needed


def _bands(pair: _Pair, rings: int) -> list[int]:
    """Last ring of each band: all of them, half, a quarter …, while there is something to add up."""
    count = np.cumsum(np.bincount(pair.ring.ravel())[1:])
    bands: list[int] = []
    last = rings
    while last >= 1 and (not bands or count[last - 1] >= _FEWEST * pair.alike):
        bands.append(last)
        last //= 2
    return bands


def _coherence(pair: _Pair, shift: tuple[float, float], sign: int) -> np.ndarray:
    """Correlation of each frequency's ring at a shift, smoothed over neighbours, 0 where it is within chance."""
    turned = sign * (pair.cross * _wave(pair.q_y, shift[0])[:, None] * _wave(pair.q_x, shift[1])).real
    count = np.bincount(pair.ring.ravel()).astype(float)
    total = np.bincount(pair.ring.ravel(), weights=turned.ravel())
    count[0] = total[0] = 0
    kernel = np.ones(5)
    total, count = (np.convolve(values, kernel)[2:-2] for values in (total, count))
    gamma = total / np.maximum(count, 1)
    gamma[gamma < np.sqrt(pair.alike / np.maximum(count, 1))] = 0
    gamma[0] = 0
    return np.minimum(gamma, _MOST_ALIKE)[pair.ring]


def _wave(q: np.ndarray, shift: float) -> np.ndarray:
    return np.exp(2j * np.pi * q * shift)


def _climb(
    pair: _Pair, weight: np.ndarray, shift: tuple[float, float], pixel: tuple[float, float], max_shift: float
) -> tuple[float, float]:
    """The weighted correlation's summit near a shift."""
    from scipy.optimize import minimize

    weighted = pair.cross * weight
    scale = float(np.abs(weighted).sum())
    if scale == 0:
        return shift

    def fall(at: np.ndarray) -> tuple[float, np.ndarray]:
        wave_y, wave_x = _wave(pair.q_y, at[0] * pixel[0]), _wave(pair.q_x, at[1] * pixel[1])
        along_y = weighted @ wave_x
        value = (along_y @ wave_y).real
        slope_y = (along_y @ (2j * np.pi * pixel[0] * pair.q_y * wave_y)).real
        slope_x = ((weighted @ (2j * np.pi * pixel[1] * pair.q_x * wave_x)) @ wave_y).real
        return -value / scale, -np.array([slope_y, slope_x]) / scale

    start = np.array(shift) / pixel
    bounds = [(max(s - 1.5, -max_shift / p), min(s + 1.5, max_shift / p)) for s, p in zip(start, pixel, strict=True)]
    summit = minimize(fall, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10})
    return float(summit.x[0] * pixel[0]), float(summit.x[1] * pixel[1])


def _bound(pair: _Pair, coherence: np.ndarray) -> tuple[float, float]:
    """Standard errors from the Fisher information ``Σ (2πq)² γ²/(1 - γ²)`` over all independent frequencies."""
    known = coherence**2 / (1 - coherence**2) / pair.alike * (2 * np.pi) ** 2
    q_y, q_x = pair.q_y[:, None], pair.q_x[None, :]
    yy, xx, yx = (float(np.sum(known * q)) for q in (q_y**2, q_x**2, q_y * q_x))
    determinant = yy * xx - yx**2
    if not determinant > 0:
        return math.inf, math.inf
    return math.sqrt(xx / determinant), math.sqrt(yy / determinant)
