"""Where a noisy falling curve crosses a threshold, and how sure that is; and the error bars of a correlation."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Crossing", "correlation_interval", "find_crossing"]

# 95 % of the likelihood ratio for "a falling curve crosses here": Banerjee & Wellner 2001, Ann. Stat. 29, 1699
_LIKELIHOOD_RATIO_95 = 2.27
_SIGMAS_95 = 1.96
_BETWEEN = 0.6  # of the way to the first refused split: measured, for 95 % with and without a window
_LARGEST = 1 - 1e-12


class Crossing(NamedTuple):
    """Where a curve falls through its threshold, after which of its points, and its interval."""

    after: int
    at: float
    low: float
    high: float


def correlation_interval(values: np.ndarray, n: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a correlation of n complex values by Fisher's z, which has variance ``1/(2n - 1.5)`` and bias.

    2n real values whose mean is known to be zero: z = artanh r lies r/4n too high, and 1.5 in place of the usual 3
    keeps the coverage within 1.5 % of the wanted one down to 2n = 2, as ``make resolution`` prints (Fisher 1921, Metron
    1, 3, has the bias).
    """
    from scipy.special import ndtri

    r = np.clip(values, -_LARGEST, _LARGEST)
    real = 2 * np.asarray(n, dtype=float)
    middle = np.arctanh(r) - r / (2 * real)
    half = ndtri(0.5 + confidence / 2) / np.sqrt(np.maximum(real - 1.5, 0.5))
    return np.tanh(middle - half), np.tanh(middle + half)


def find_crossing(q: np.ndarray, values: np.ndarray, level: np.ndarray, n: np.ndarray) -> Crossing:
    """The crossing of the falling curve that fits best, and its 95 % interval.

    Of all curves that only fall, the one nearest to the data (weights n) crosses where the sum of ``n (z - z_level)``
    over rings is largest: that is one of the data's own falls, and the values on its two sides are interpolated. A
    crossing elsewhere must bend that curve, and is refused when this costs too much likelihood; the interval reaches
    as far as allowed, and at least as far as the errors of the two values on its sides say.

    ``after`` = -1 says below from the start, the last index that it never falls; ``low`` is then 0 or ``high``
    infinite if nothing bounds them.
    """
    excess = np.arctanh(np.clip(values, -_LARGEST, _LARGEST)) - np.arctanh(np.clip(level, -_LARGEST, _LARGEST))
    weights = 2 * np.asarray(n, dtype=float)
    best = int(np.argmax(np.concatenate([[0.0], np.cumsum(weights * excess)]))) - 1
    free = _misfit(excess, weights)

    def cost(ring: int) -> float:
        bent = _misfit(excess[: ring + 1], weights[: ring + 1], least=0.0)
        return bent + _misfit(excess[ring + 1 :], weights[ring + 1 :], most=0.0) - free

    ends = []
    middle = np.concatenate([[0.0], (q[1:] + q[:-1]) / 2, [math.inf]])  # of split k = -1, 0, … at k + 1
    for way in (-1, 1):
        ring, here = best, cost(best)
        while -1 <= ring + way < q.size and (there := cost(ring + way)) <= _LIKELIHOOD_RATIO_95:
            ring, here = ring + way, there
        edge = float(middle[ring + 1])
        # where the very next split is refused, rings are wide, and the errors of the two values below say it all
        if ring != best and -1 <= ring + way < q.size and math.isfinite(edge):
            beyond = float(np.clip(middle[ring + 1 + way], q[0], q[-1]))
            edge += _BETWEEN * (beyond - edge) * (_LIKELIHOOD_RATIO_95 - here) / (there - here)
        ends.append(edge)
    low, high = ends
    if not 0 <= best < q.size - 1:
        return Crossing(best, float(q[0] if best < 0 else q[-1]), low, high)
    pair = slice(best, best + 2)
    above = values[pair] - level[pair]
    share = above[0] / (above[0] - above[1])
    at = q[best] + share * (q[best + 1] - q[best])
    error = (1 - values[pair] ** 2) / np.sqrt(weights[pair])
    spread = _SIGMAS_95 * math.hypot((1 - share) * error[0], share * error[1]) / (above[0] - above[1])
    step = spread * (q[best + 1] - q[best])
    low, high = min(low, max(at - step, q[best])), max(high, min(at + step, q[best + 1]))
    return Crossing(best, float(at), float(low), float(high))


def _misfit(excess: np.ndarray, weights: np.ndarray, least: float = -math.inf, most: float = math.inf) -> float:
    """Weighted squares left over by the best falling curve within bounds."""
    if excess.size == 0:
        return 0.0
    from scipy.optimize import isotonic_regression

    fit = isotonic_regression(excess, weights=weights, increasing=False).x
    return float(np.sum(weights * (excess - np.clip(fit, least, most)) ** 2))
