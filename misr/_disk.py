"""The edge of a disk in a picture of counts: array kernels of `bright_field_disk` and `measure_descan`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_ENOUGH = 50.0  # electrons under the smoothing filter: 14 % noise, so half of the plateau lies 3.5 sigma below it
_ANNULUS = (0.5, 1.6)  # of the radius: what the edge fit sees, neither the disk's middle nor the far dark field
_FLOOR = 0.05  # of the plateau: least variance given to a pixel, as an empty one has some
_EDGE = (0.5, 0.7)  # width of the edge in pixels and spread of its logarithm, where the counts do not tell
_ROUNDS = 3  # of reweighting: the variance is the model's, as in Poisson likelihood


@dataclass(frozen=True)
class Disk:
    """A slightly elliptic disk; lengths in the unit of the pixel steps, counted from the first pixel's centre."""

    center_y: float
    center_x: float
    radius: float  # geometric mean of the semi-axes
    ratio: float  # major over minor axis
    angle: float  # of the major axis, atan2(y, x), in (-pi/2, pi/2]
    radius_stderr: float
    ratio_stderr: float
    edge_width: float  # standard deviation of the edge's error function


def hot_pixels(counts: np.ndarray) -> np.ndarray:
    """Single pixels far above their neighbours; no disk's edge, where each pixel has neighbours of its kind."""
    from scipy import ndimage

    third_neighbour = ndimage.rank_filter(counts, rank=-4, size=3, mode="mirror")
    return counts > 3 * third_neighbour + 15


def fill_pixels(pictures: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Copy of the pictures (last two axes), bad pixels replaced by the mean of their good neighbours."""
    filled = pictures.copy()
    for y, x in np.argwhere(bad):
        near = (slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2))
        good = ~bad[near]
        filled[..., y, x] = pictures[..., near[0], near[1]][..., good].mean(axis=-1) if good.any() else 0
    return filled


def find_disk(counts: np.ndarray, step: tuple[float, float], radius: float | None = None) -> Disk:
    """The disk in a picture of summed counts, found by threshold and refined by a fit to its edge.

    With noise as it is in counts the fit is close to the maximum of the Poisson likelihood (iteratively reweighted
    least squares; Green 1984, J. R. Stat. Soc. B 46, 149) of a plateau and a background joined by an error function.

    Parameters
    ----------
    counts : numpy.ndarray, shape (y, x)
        Electrons per pixel, summed over patterns.
    step : (float, float)
        Pixel ``(y, x)``.
    radius : float, optional
        What it should be, in the unit of ``step``; without it nothing is assumed.

    Raises
    ------
    ValueError
        If nothing in the picture looks like one disk, or one of that radius.
    """
    if not np.all(np.isfinite(counts)) or counts.min() < 0:
        raise ValueError("the mean pattern holds NaN, infinite or negative counts: mask dead pixels first")
    hot = hot_pixels(counts)
    region = _region(fill_pixels(counts, hot), None if radius is None else math.pi * radius**2 / (step[0] * step[1]))
    where = np.nonzero(region)
    start = (
        step[0] * float(where[0].mean()),
        step[1] * float(where[1].mean()),
        math.sqrt(region.sum() * step[0] * step[1] / math.pi),
    )
    return _fit_edge(counts, ~hot, step, start)


def _region(counts: np.ndarray, n_expected: float | None) -> np.ndarray:
    """The largest connected region above half of the plateau, smoothed as much as the counts need."""
    from scipy import ndimage

    sigma = 1.0  # low counts: single pixels cross the threshold by chance
    smooth = ndimage.gaussian_filter(counts, sigma)
    plateau, threshold = _levels(smooth, n_expected)
    wanted = math.sqrt(_ENOUGH / (4 * math.pi * max(plateau, 1e-12)))
    widest = math.sqrt((n_expected or float((smooth > threshold).sum())) / math.pi) / 3
    if sigma < min(wanted, widest):
        smooth = ndimage.gaussian_filter(counts, min(wanted, widest))
        plateau, threshold = _levels(smooth, n_expected)
    bright = smooth > threshold
    labels, n_regions = ndimage.label(bright)
    if plateau <= 0 or n_regions == 0:
        raise ValueError("no bright-field disk: the mean pattern is empty. Are these counts, and is the beam on?")
    region = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    if n_expected is None:
        if bright.all() or region.sum() < 0.5 * bright.sum() or smooth[~bright].mean() > 0.6 * plateau:
            raise ValueError(
                "no bright-field disk found: nothing in the mean pattern stands out as one disk. Give semiangle_mrad "
                "if there should be one, and check det_step_mrad"
            )
    elif not 0.5 * n_expected < region.sum() < 2 * n_expected:
        raise ValueError(
            f"no bright-field disk of semiangle_mrad found: the bright region has {int(region.sum())} pixels, "
            f"expected about {n_expected:.0f}. Check semiangle_mrad and det_step_mrad"
        )
    return ndimage.binary_fill_holes(region)


def _levels(smooth: np.ndarray, n_expected: float | None) -> tuple[float, float]:
    """Plateau of the disk, and the threshold that parts it from what is round it."""
    if n_expected is not None:
        brightest = np.sort(smooth, axis=None)[::-1][: max(1, round(n_expected))]
        plateau = float(np.median(brightest))
        return plateau, plateau / 2
    threshold = float(smooth.max()) / 2
    for _ in range(30):
        bright = smooth > threshold
        plateau = float(np.median(smooth[bright])) if bright.any() else 0.0
        around = 0.0 if bright.all() else float(np.median(smooth[~bright]))
        before, threshold = threshold, (plateau + around) / 2
        if abs(threshold - before) <= 1e-3 * before:
            break
    return plateau, threshold


def _fit_edge(
    counts: np.ndarray, good: np.ndarray, step: tuple[float, float], start: tuple[float, float, float]
) -> Disk:
    from scipy import optimize, special

    radius, pixel = start[2], math.sqrt(step[0] * step[1])
    y, x = np.meshgrid(*(d * np.arange(n) for d, n in zip(step, counts.shape, strict=True)), indexing="ij")
    away = np.hypot(y - start[0], x - start[1])
    seen = good & (away > _ANNULUS[0] * radius) & (away < _ANNULUS[1] * radius + 2 * pixel)
    inner = good & (away < 0.8 * radius)
    level = float(counts[inner].mean()) if inner.any() else 0.0
    if level <= 0:
        raise ValueError("no bright-field disk: the bright region of the mean pattern is empty in its middle")
    y, x, values = (y[seen] - start[0]) / radius, (x[seen] - start[1]) / radius, counts[seen] / level
    usual_width = math.log(_EDGE[0] * pixel / radius)

    def model(p: np.ndarray) -> np.ndarray:
        distance = _elliptic_distance(y - p[0], x - p[1], p[3], p[4])
        disk = special.erfc((distance - math.exp(p[2])) / (math.sqrt(2) * math.exp(p[5]))) / 2
        return p[7] + (p[6] - p[7]) * disk

    narrow, wide = math.log(0.3 * pixel / radius), math.log(0.5)  # a pixel alone blurs by 0.3 pixels
    p = np.array([0, 0, 0, 0, 0, np.clip(usual_width, narrow + 0.1, wide - 0.1), 1, 0.05])
    limits = np.array([0.4, 0.4, 0.4, 0.5, 0.5, 0, 9, 2])
    low, high = -limits, limits.copy()
    low[5:], high[5] = (narrow, 0.1, -0.1), wide
    for _ in range(_ROUNDS):
        deviation = np.sqrt(np.maximum(model(p), _FLOOR))

        def misfit(p: np.ndarray, deviation: np.ndarray = deviation) -> np.ndarray:
            return np.append((values - model(p)) * math.sqrt(level) / deviation, (p[5] - usual_width) / _EDGE[1])

        found = optimize.least_squares(misfit, p, bounds=(low, high), x_scale="jac", max_nfev=50)
        p = np.clip(found.x, low + 1e-6, high - 1e-6)
    # a misfit beyond counting noise widens the errors
    freedom = max(values.size - p.size, 1)
    covariance = np.linalg.pinv(found.jac.T @ found.jac) * max(1.0, 2 * found.cost / freedom)
    stretch = math.hypot(p[3], p[4])
    ratio = math.exp(2 * stretch)
    return Disk(
        center_y=start[0] + radius * float(p[0]),
        center_x=start[1] + radius * float(p[1]),
        radius=radius * math.exp(p[2]),
        ratio=ratio,
        angle=math.atan2(p[4], p[3]) / 2,
        radius_stderr=radius * math.exp(p[2]) * math.sqrt(covariance[2, 2]),
        ratio_stderr=2 * ratio * math.sqrt((covariance[3, 3] + covariance[4, 4]) / 2),
        edge_width=radius * math.exp(p[5]),
    )


def _elliptic_distance(y: np.ndarray, x: np.ndarray, along: float, across: float) -> np.ndarray:
    """Distance with a stretch of unit determinant undone: exp of the traceless matrix with these two elements."""
    stretch = math.hypot(along, across)
    same = math.cosh(stretch)
    mixed = math.sinh(stretch) / stretch if stretch > 0 else 1.0
    return np.hypot(
        same * x - mixed * (along * x + across * y),
        same * y - mixed * (across * x - along * y),
    )
