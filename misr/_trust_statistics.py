"""When a correlation is more than chance: rings of Fourier values whose phases should have nothing in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from misr._curves import interval_of

__all__ = ["Chance", "chance_of", "curve_spread", "ring_chance", "run_test"]

_FLAT = 1e-12  # of the largest value: what varies less is rounding
_EMPTY = 1e-9  # of the strongest ring's power per value: rounding, no image


@dataclass(frozen=True)
class Chance:
    """What a set of rings says against chance.

    ``value`` is the mean correlation, each ring weighted with its independent values; ``limit`` what chance leaves
    it below; ``p_value`` the probability under chance of a run of rings as correlated as the best one here;
    ``lowest`` and ``highest`` the frequencies (1/Å) at which that run begins and ends, 0 if there is no ring at all;
    ``strongest`` the mean correlation in that run.
    """

    value: float
    limit: float
    p_value: float
    highest: float
    lowest: float = 0.0
    strongest: float = 0.0


def ring_chance(
    a: xr.DataArray, b: xr.DataArray, *, ring_width: float, window: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How far each ring's correlation lies above chance, if the phases of the two images are unrelated.

    With given amplitudes and independent, uniform relative phases θ, ``Σ |A||B| cos θ`` has the variance
    ``½ Σ |A|²|B|²``, which a few strong reflections make far larger than rings of equal power have it, and tails below
    those of a Gaussian of that variance (``E exp(t cos θ) = I₀(t) ≤ exp(t²/4)``). A taper w makes neighbouring values
    alike, the variance being larger by ``N Σ w⁴ / (Σ w²)²`` (in a ring much wider than a pixel; less in a narrow one).

    Parameters
    ----------
    a, b : xarray.DataArray
        Images of one grid, dims ``("y", "x")``, Å.
    ring_width : float
        1/Å.
    window : "hann" or None
        Taper.

    Returns
    -------
    tuple of ndarray
        Over the rings (0 to ``ring_width`` and so on) that hold power in both images: frequency of the inner edge
        (1/Å), correlation, standard deviations above chance, and effective number of independent values
        ``(Σ|A|² Σ|B|²) / (2 Σ|A|²|B|²)`` over that inflation.

    Examples
    --------
    >>> from misr.cube import image_from_array
    >>> noise = np.random.default_rng(0).standard_normal((2, 64, 64))
    >>> a, b = (image_from_array(values, pixel_A=(0.5, 0.5)) for values in noise)
    >>> q, frc, z, n = ring_chance(a, b, ring_width=0.1, window=None)
    >>> bool(np.abs(z).max() < 4), bool(np.allclose(z, frc * np.sqrt(2 * n)))
    (True, True)
    """
    pixel = [float(a[dim][-1] - a[dim][0]) / (a.sizes[dim] - 1) for dim in ("y", "x")]
    taper = _taper(a.shape, window)
    inflation = taper.size * float((taper**4).sum()) / float((taper**2).sum()) ** 2
    first, second = (
        np.fft.fft2((image.values.astype(float) - float(image.values.mean(dtype=float))) * taper) for image in (a, b)
    )
    q = np.hypot(np.fft.fftfreq(a.shape[0], pixel[0])[:, None], np.fft.fftfreq(a.shape[1], pixel[1])[None, :])
    ring = np.floor(q / ring_width).astype(int) + 1
    ring[(q == 0) | (q >= 0.5 / max(pixel) * (1 - 1e-9))] = 0
    power = np.abs(first) ** 2, np.abs(second) ** 2
    sums = [
        np.bincount(ring.ravel(), weights=values.ravel())[1:]
        for values in ((first * second.conj()).real, *power, power[0] * power[1], np.ones(q.shape))
    ]
    held = _held(sums[1], sums[-1]) & _held(sums[2], sums[-1])
    if _flat(a.values) or _flat(b.values):
        held[:] = False
    cross, power_a, power_b, both, _ = (values[held] for values in sums)
    # over the whole plane every independent value counts twice
    independent = power_a * power_b / (2 * both * inflation)
    frc = cross / np.sqrt(power_a * power_b)
    return ring_width * np.flatnonzero(held), frc, frc * np.sqrt(2 * independent), independent


def _taper(shape: tuple[int, ...], window: str | None) -> np.ndarray:
    from misr.resolution import window_taper

    return window_taper(shape, window)


def _held(power: np.ndarray, count: np.ndarray) -> np.ndarray:
    mean = np.divide(power, count, out=np.zeros_like(power), where=count > 0)
    return mean > _EMPTY * (mean.max(initial=0.0) or math.inf)


def _flat(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= _FLAT * np.abs(values).max(initial=0.0))


def run_test(z: np.ndarray, weight: np.ndarray) -> tuple[float, slice]:
    """Chance of a run of neighbouring rings as far above as the best one, and which run it is.

    Rings are added up (``Σ √w z / √Σ w``: the best test for one correlation in rings of w independent values) over
    runs of 1, 2, 4, … and over all of them, so that neither a broad weak correlation nor a single reflection is
    missed; the probability is that of the best, times the number of runs (Bonferroni).

    Parameters
    ----------
    z : ndarray
        Standard deviations above chance, ring by ring.
    weight : ndarray
        Independent values of each ring.

    Returns
    -------
    float, slice
        One-sided probability (1 without rings), and the rings of the best run.

    Examples
    --------
    >>> run_test(np.zeros(8), np.ones(8))[0]
    1.0
    >>> p_value, run = run_test(np.array([0.0, 0, 0, 0, 2, 2, 2, 2]), np.ones(8))
    >>> p_value < 1e-3, run
    (True, slice(4, 8, None))
    """
    from scipy.special import ndtr

    runs = list(_runs(len(z)))
    if not runs:
        return 1.0, slice(0, 0)
    scores = [float(np.sqrt(weight[run]) @ z[run] / math.sqrt(weight[run].sum())) for run in runs]
    best = int(np.argmax(scores))
    return min(1.0, len(runs) * float(ndtr(-scores[best]))), runs[best]


def _runs(number: int) -> Iterator[slice]:
    length = 1
    while length < number:
        for first in range(0, number, length):
            # what is left at the end joins the run before
            if first + length <= number:
                last = first + length
                yield slice(first, number if number - last < length else last)
        length *= 2
    if number:
        yield slice(0, number)


def chance_of(
    a: xr.DataArray,
    b: xr.DataArray,
    *,
    ring_width: float,
    window: str | None,
    above: float = 0.0,
    alpha: float = 0.01,
) -> Chance:
    """Whether two images have anything in common above a frequency.

    Parameters
    ----------
    a, b : xarray.DataArray
        Images of one grid.
    ring_width : float
        1/Å.
    window : "hann" or None
        Taper.
    above : float
        Only rings wholly above this frequency, 1/Å.
    alpha : float
        Level of the ``limit``.

    Returns
    -------
    Chance
        See there.

    Examples
    --------
    >>> from misr.cube import image_from_array
    >>> one = image_from_array(np.random.default_rng(0).standard_normal((32, 32)), pixel_A=(0.5, 0.5))
    >>> chance_of(one, one, ring_width=0.1, window=None).p_value < 1e-9
    True
    """
    from scipy.special import ndtri

    q, frc, z, n = (values for values in ring_chance(a, b, ring_width=ring_width, window=window))
    chosen = q >= above - 1e-9
    q, frc, z, n = q[chosen], frc[chosen], z[chosen], n[chosen]
    p_value, run = run_test(z, n)
    if not q.size:
        return Chance(0.0, math.nan, 1.0, 0.0)
    limit = -float(ndtri(alpha)) / math.sqrt(2 * n.sum())
    value, strongest = float(n @ frc / n.sum()), float(n[run] @ frc[run] / n[run].sum())
    return Chance(value, limit, p_value, float(q[run][-1]) + ring_width, float(q[run][0]), strongest)


def curve_spread(frc: xr.DataArray) -> np.ndarray:
    """Standard deviation of ``artanh`` of an FRC curve: from its interval, else from its independent values.

    ``artanh`` of a correlation of n complex values scatters by about ``1/√(2n)`` whatever the correlation (Fisher).

    Parameters
    ----------
    frc : xarray.DataArray
        With coordinates ``frc_low`` and ``frc_high``, or ``n_independent``.

    Returns
    -------
    ndarray
        One per ring.

    Raises
    ------
    ValueError
        If the curve has neither.

    Examples
    --------
    >>> coords = {"frequency": [0.1, 0.2], "n_independent": ("frequency", [50.0, 200.0])}
    >>> curve_spread(xr.DataArray([0.5, 0.5], dims="frequency", coords=coords)).tolist()
    [0.1, 0.05]
    """
    from scipy.special import ndtri

    if (interval := interval_of(frc)) is not None:
        low, high = (artanh(end.values) for end in interval)
        sure = -float(ndtri((1 - float(frc.attrs.get("confidence", 0.95))) / 2))
        return np.maximum((high - low) / (2 * sure), 1e-6)
    if "n_independent" not in frc.coords:
        raise ValueError(
            "the FRC curve has neither error bars nor the coordinate 'n_independent': make it with "
            "misr.fourier_ring_correlation"
        )
    return 1 / np.sqrt(2 * np.maximum(frc["n_independent"].values.astype(float), 1.0))


def artanh(values: np.ndarray) -> np.ndarray:
    """``artanh``, finite at ±1."""
    return np.arctanh(np.clip(np.asarray(values, dtype=float), -1 + 1e-9, 1 - 1e-9))
