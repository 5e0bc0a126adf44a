"""A disk that moves over the scan, followed by windows: array kernels behind `misr.measure_descan`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TERMS = (1, 3, 6)  # of a surface of order 0, 1, 2
_STEPS = 30
_CONVERGED = 1e-3  # pixels
_FALSE_ALARM = 1e-3
_SMALLEST = 0.1  # pixels: less changes nothing, and a specimen's own deflection can do as much


@dataclass(frozen=True)
class Tiles:
    """Patterns summed over tiles of the scan, with the surface's terms averaged over the positions of each."""

    counts: np.ndarray  # (tile, y, x)
    terms: np.ndarray  # (tile, 6)
    positions: np.ndarray  # (tile,): how many patterns
    step: tuple[float, float]  # mrad

    def axis(self, number: int) -> np.ndarray:
        """Pixel centres from the first pixel's, mrad."""
        return self.step[number] * np.arange(self.counts.shape[1 + number])


def unit_axis(size: int) -> np.ndarray:
    """Scan positions along one axis, from -1 to 1."""
    return np.linspace(-1, 1, size)


def surface_terms(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Legendre polynomials up to order 2, by order, shape (v, u, 6)."""
    v, u = np.meshgrid(v, u, indexing="ij")
    return np.stack([np.ones_like(u), v, u, (3 * v**2 - 1) / 2, u * v, (3 * u**2 - 1) / 2], axis=-1)


def moments_of(counts: np.ndarray, tiles: Tiles) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Electrons of each tile, centres of mass, and one electron's variance along y and x, on the whole detector."""
    along = counts.sum(axis=2, dtype=float), counts.sum(axis=1, dtype=float)
    electrons = along[0].sum(axis=1)
    axes = (tiles.axis(0), tiles.axis(1))
    first = np.stack([line @ axis for line, axis in zip(along, axes, strict=True)], axis=-1)
    total = max(float(electrons.sum()), 1e-300)
    mean = first.sum(axis=0) / total
    square = [
        max(float((line @ (axis - middle) ** 2).sum()) / total, 0.0)
        for line, axis, middle in zip(along, axes, mean, strict=True)
    ]
    return electrons, first, np.array(square)


def _solve(terms: np.ndarray, electrons: np.ndarray, moments: np.ndarray, order: int) -> np.ndarray:
    """Coefficients, shape (6, 2), of the surface nearest to the centres of mass, weighted by electrons."""
    kept = terms[:, : TERMS[order]]
    found = np.zeros((TERMS[-1], 2))
    found[: TERMS[order]] = np.linalg.pinv(kept.T * electrons @ kept) @ (kept.T @ moments)
    return found


def follow(tiles: Tiles, surface: np.ndarray, order: int, window: float) -> np.ndarray:
    """Move the surface until the centres of mass in the windows on it lie on it."""
    for _ in range(_STEPS):
        electrons, moments, _ = _in_windows(tiles, tiles.terms @ surface, window)
        move = _solve(tiles.terms, electrons, moments, order)
        surface = surface + move
        if np.all(np.abs(tiles.terms @ move) < _CONVERGED * np.array(tiles.step)):
            break
    return surface


def _in_windows(tiles: Tiles, centers: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Electrons, first moments about the centres, and one electron's mean square distance along y and x."""
    electrons, moments, squares = np.zeros(len(centers)), np.zeros((len(centers), 2)), np.zeros(2)
    pixel = max(tiles.step)
    axes = (tiles.axis(0), tiles.axis(1))
    for number, center in enumerate(centers):
        near = tuple(
            slice(*np.searchsorted(axis, (middle - window - pixel, middle + window + pixel)))
            for axis, middle in zip(axes, center, strict=True)
        )
        y, x = (axis[part] - middle for axis, part, middle in zip(axes, near, center, strict=True))
        # a soft rim: pixels enter gradually, so an even background stays balanced about any centre
        weight = np.clip((window - np.hypot(y[:, None], x)) / pixel + 0.5, 0, 1)
        seen = tiles.counts[number][near] * weight
        along_y, along_x = seen.sum(axis=1), seen.sum(axis=0)
        electrons[number] = along_y.sum()
        moments[number] = along_y @ y, along_x @ x
        squares += along_y @ y**2, along_x @ x**2
    total = max(float(electrons.sum()), 1e-300)
    return electrons, moments, squares / total


def aligned(tiles: Tiles, surface: np.ndarray) -> np.ndarray:
    """All tiles summed with the disk moved, in whole pixels, to its mean place."""
    places = tiles.terms @ surface
    mean = tiles.positions @ places / tiles.positions.sum()
    total = np.zeros(tiles.counts.shape[1:])
    for counts, move in zip(tiles.counts, np.rint((places - mean) / tiles.step).astype(int), strict=True):
        total += moved(counts, int(move[0]), int(move[1]))
    return total


def moved(patterns: np.ndarray, down: int, right: int) -> np.ndarray:
    """What lies ``(down, right)`` pixels further, on the last two axes; zeros come in from outside."""
    result = np.zeros_like(patterns)
    targets, sources = [], []
    for size, move in zip(patterns.shape[-2:], (down, right), strict=True):
        reach = min(abs(move), size)
        first, last = slice(0, size - reach), slice(reach, size)
        targets.append(first if move >= 0 else last)
        sources.append(last if move >= 0 else first)
    result[..., targets[0], targets[1]] = patterns[..., sources[0], sources[1]]
    return result


@dataclass(frozen=True)
class Fits:
    """Surfaces of each order through the tiles' centres: coefficients, misfit, and what errors follow from."""

    coefficients: list[np.ndarray]
    chi2: list[float]
    covariance: list[np.ndarray]  # (axis, term, term), mrad²


def fit_orders(tiles: Tiles, surface: np.ndarray, window: float) -> Fits:
    """Surfaces through the centres that windows on a first surface see."""
    centers = tiles.terms @ surface
    electrons, moments, square = _in_windows(tiles, centers, window)
    slope = _response(tiles, centers, window)
    return fit_centres(tiles, electrons, moments / slope + electrons[:, None] * centers, square / slope**2)


def fit_centres(
    tiles: Tiles,
    electrons: np.ndarray,
    moments: np.ndarray,
    variance: np.ndarray,
    counted: np.ndarray | None = None,
) -> Fits:
    """Surfaces through the centres ``moments / electrons`` of the tiles.

    One electron's place has ``variance`` along y and x. ``counted`` are the electrons that make the noise, if a
    background was taken off.
    """
    counted = electrons if counted is None else counted
    lit = counted > 0
    terms, electrons, moments = tiles.terms[lit], electrons[lit, None], moments[lit]
    noise = counted[lit, None] * np.maximum(variance, 1e-300)  # mrad² for y and x
    coefficients = [_solve(terms, electrons[:, 0], moments, order) for order in range(len(TERMS))]
    chi2 = [float(((moments - electrons * (terms @ found)) ** 2 / noise).sum()) for found in coefficients]
    scatter = max(1.0, chi2[-1] / max(2 * len(terms) - 2 * TERMS[-1], 1))
    weights = electrons**2 / noise
    covariance = [
        np.stack([np.linalg.pinv(kept.T * weights[:, axis] @ kept) * scatter for axis in (0, 1)])
        for kept in (terms[:, :n] for n in TERMS)
    ]
    return Fits(coefficients, [value / scatter for value in chi2], covariance)


def _response(tiles: Tiles, centers: np.ndarray, window: float) -> np.ndarray:
    """How far the mean centre of mass, seen from the window, moves when the disk moves: less than 1 by background."""
    half = np.array(tiles.step) / 2
    seen = []
    for sign in (1, -1):
        electrons, moments, _ = _in_windows(tiles, centers - sign * half, window)
        seen.append(moments.sum(axis=0) / max(float(electrons.sum()), 1e-300))
    return np.clip((seen[0] - seen[1]) / (2 * half), 0.1, 1.0)


def choose_order(fits: Fits, everywhere: np.ndarray, step: tuple[float, float]) -> int:
    """The highest order whose gain is no chance (likelihood ratio) and moves the disk enough to matter."""
    from scipy.special import chdtri

    best = 0
    for order in (1, 2):
        freedom = 2 * (TERMS[order] - TERMS[best])  # each term has a coefficient for y and one for x
        gain = fits.chi2[best] - fits.chi2[order]
        change = everywhere @ (fits.coefficients[order] - fits.coefficients[best]) / np.array(step)
        if gain > chdtri(freedom, _FALSE_ALARM) and np.abs(change).max() > _SMALLEST:
            best = order
    return best
