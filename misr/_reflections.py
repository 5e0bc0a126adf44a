"""Reflections of a crystal in a pair of images, and rings wide enough that none falls between them."""

from __future__ import annotations

import numpy as np

from misr._rings import Rings

__all__ = ["ring_width_of_lattice"]

_FALSE_PEAKS = 0.1  # expected in a pair of images without any, and several are asked for
_SAFETY = 1.5  # for power that is not even along a ring
_BLOCK = 16  # frequency pixels, over which it may vary
_SPOT = 0.25  # of the detection level: what still belongs to a reflection
_LEAST_REFLECTIONS = 6  # q and -q counted
_SAME = 2.5  # frequency pixels
_RESOLVED = 4.0  # frequency pixels between reflections, below which one-pixel rings never miss them
_DYNAMIC_RANGE = 1e-8  # of power
_MARGIN = 1.3
_LEAST_RINGS = 4


def ring_width_of_lattice(first: np.ndarray, second: np.ndarray, rings: Rings) -> float | None:
    """Ring width (1/Å) that spans a crystal's reciprocal lattice, or None without one; from half spectra of a pair.

    Whatever is not periodic, speckle or noise, has ``|A B|`` spread exponentially about its mean at any dose: above t
    times the mean with a probability of e^-t. Where ``Re A B*`` lies above what all frequencies together reach by
    chance, is a reflection. The typical distance from a reflection to its nearest neighbour is the lattice's shortest
    vector; rings 1.3 times as wide hold some of the lattice whatever its directions.
    """
    ratio = _above_background(first, second, rings)
    level = _SAFETY * np.log(max(int(rings.count.sum()) / 2, 2) / _FALSE_PEAKS)
    if np.count_nonzero(ratio > level) < _LEAST_REFLECTIONS / 2:
        return None
    q = _reflections(ratio, level, rings)
    if len(q) < _LEAST_REFLECTIONS:
        return None
    from scipy.spatial import KDTree

    spacing = float(np.median(KDTree(q).query(q, k=2)[0][:, 1]))
    if spacing < _RESOLVED * rings.lowest:
        return None
    return float(np.clip(_MARGIN * spacing, rings.lowest, rings.nyquist / _LEAST_RINGS))


def _above_background(first: np.ndarray, second: np.ndarray, rings: Rings) -> np.ndarray:
    """``Re A B*`` over the mean of ``|A B|`` around it without reflections; 0 in no ring."""
    label = rings.label
    product = np.abs(first) * np.abs(second)
    tiny = np.finfo(float).tiny
    # the geometric mean hardly sees a few bright pixels; exp(γ) times it is the mean of an exponential distribution
    log_mean = np.bincount(label.ravel(), weights=np.log(np.maximum(product, tiny)).ravel())
    log_mean = log_mean / np.maximum(np.bincount(label.ravel()), 1) + np.euler_gamma
    beside = np.pad(log_mean[1:], 1, mode="edge")  # a band limit may run through a ring: its neighbours have a say
    log_mean[1:] = np.maximum(np.maximum(beside[:-2], beside[2:]), log_mean[1:])
    # nothing is told by what lies at the limit of rounding, or leaks there from beyond a sharp band limit
    log_mean = np.maximum(log_mean, log_mean[1:].max(initial=-np.inf) + np.log(_DYNAMIC_RANGE))
    log_mean[0] = np.inf
    mean = np.exp(log_mean)[label]
    ratio = np.clip(product / mean, 0, 1e6)
    pad = [(0, -n % _BLOCK) for n in ratio.shape]
    padded = np.pad(ratio, pad, mode="reflect" if min(ratio.shape) > _BLOCK else "edge")
    rows, columns = (n // _BLOCK for n in padded.shape)
    block = np.median(padded.reshape(rows, _BLOCK, columns, _BLOCK), axis=(1, 3)) / np.log(2)
    uneven = np.maximum(block, 1).repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)[: ratio.shape[0], : ratio.shape[1]]
    signal = first.real * second.real + first.imag * second.imag
    return signal / (mean * uneven)


def _reflections(ratio: np.ndarray, level: float, rings: Rings) -> np.ndarray:
    """Frequencies (1/Å) of all reflections, q and -q."""
    import scipy.ndimage as ndi
    from scipy.spatial import KDTree

    shifted = np.fft.fftshift(ratio, axes=0)
    spots, n_spots = ndi.label(shifted > _SPOT * level, structure=np.ones((3, 3)))
    names = np.arange(1, n_spots + 1)
    names = names[ndi.maximum(shifted, spots, names) > level]
    at = np.array(ndi.center_of_mass(shifted, spots, names)).reshape(-1, 2) - [ratio.shape[0] // 2, 0]
    at = np.concatenate([at, -at])
    # reflections on the border between the two halves come twice
    twice = {max(pair) for pair in KDTree(at).query_pairs(_SAME)}
    at = at[[i for i in range(len(at)) if i not in twice]]
    return at / [ratio.shape[0] * rings.pixel[0], rings.columns * rings.pixel[1]]
