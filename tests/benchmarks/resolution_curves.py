"""Parts of `resolution_table` that need two images only: what FRC, error bars, thresholds and rings say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from phase_object import atoms_phase, bandlimited_phase
from resolution_text import aligned, percent, signed
from test_resolution import crystal

import misr
from misr._crossing import correlation_interval
from misr.cube import image_from_array

__all__ = ["chance_part", "frc_part", "image", "white_through"]

Spectrum = Callable[[np.ndarray], np.ndarray]
Threshold = str | float

_SNR, _CUTOFF = 20.0, 0.15  # of the half maps, 1/Å; pixels of 1 Å
POWERS: dict[str, Spectrum] = {
    "Gaussian": lambda q: _SNR * np.exp(-((q / _CUTOFF) ** 2)),
    "steep": lambda q: _SNR * np.exp(-((q / (1.6 * _CUTOFF)) ** 8)),
}
WAYS: tuple[tuple[float | None, tuple[Threshold, ...]], ...] = ((None, ("half-bit", 0.143, 0.5)), (0.03, ("half-bit",)))
UNRELATED: dict[str, Spectrum] = {
    "white": lambda q: 1 + 0 * q,
    "1/frequency": lambda q: 1 / (q + 0.01),
    "smooth": lambda q: np.exp(-((q / 0.25) ** 2)),
}


def image(values: np.ndarray, pixel_A: float = 0.5, *, periodic: bool = False) -> xr.DataArray:
    """Labels on an array."""
    attrs = {"period_A": [n * pixel_A for n in values.shape]} if periodic else {}
    return image_from_array(values, pixel_A=(pixel_A, pixel_A), attrs=attrs)


def white_through(
    shape: tuple[int, int], amplitude: Spectrum, rng: np.random.Generator, pixel_A: float = 0.5
) -> np.ndarray:
    """White noise whose Fourier amplitudes are multiplied by a function of frequency (1/Å)."""
    q = np.hypot(np.fft.fftfreq(shape[0], pixel_A)[:, None], np.fft.rfftfreq(shape[1], pixel_A)[None])
    return np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * amplitude(q), s=shape)


def frc_part(seeds: int) -> Iterator[str]:
    """Bias of the resolution, and what its interval and the rings' error bars hold."""
    yield (
        f"Resolution of half maps of known power ({seeds} seeds each; bias of the mean and scatter in % of the true "
        "crossing,\n'first fall' where no fit is made, 'interval' the share of seeds, %, whose 95 % interval holds the "
        "truth; pixels of 1 Å)"
    )
    heads = ["power", "pixels", "window", "rings 1/Å", "threshold", "bias", "scatter", "first fall", "interval"]
    rows = []
    for name, n in (("Gaussian", 64), ("Gaussian", 128), ("Gaussian", 256), ("steep", 128)):
        for window in (None, "hann"):
            for width, thresholds in WAYS:
                for threshold, found in _crossings(name, n, window, width, thresholds, seeds).items():
                    cells = [name, n, window, width or "1 pixel", threshold]
                    rows.append([*cells, signed(found[0]), percent(found[1]), signed(found[2]), percent(found[3])])
    yield aligned(heads, rows)
    yield from _error_bars(seeds)
    yield from _fisher()


def _crossings(
    power: str, n: int, window: str | None, width: float | None, thresholds: tuple[Threshold, ...], seeds: int
) -> dict[Threshold, tuple[float, ...]]:
    """By threshold: bias and scatter, bias of the first fall, and share of intervals that hold the truth."""
    found: dict[Threshold, list[tuple[float, ...]]] = {threshold: [] for threshold in thresholds}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        signal = white_through((n, n), lambda q: np.sqrt(POWERS[power](q)), rng, 1.0)
        pair = [image(signal + rng.standard_normal((n, n)), 1.0) for _ in range(2)]
        frc = misr.fourier_ring_correlation(*pair, window=window, ring_width=width)
        for threshold, rows in found.items():
            resolution = misr.frc_resolution(frc, threshold)
            truth = _true_resolution(frc, threshold, POWERS[power])
            held = resolution.attrs["low_A"] <= truth <= resolution.attrs["high_A"]
            rows.append((float(resolution) / truth, resolution.attrs["first_fall_A"] / truth, held))
    return {threshold: _summary(np.array(rows)) for threshold, rows in found.items()}


def _summary(rows: np.ndarray) -> tuple[float, ...]:
    return rows[:, 0].mean() - 1, rows[:, 0].std(), rows[:, 1].mean() - 1, rows[:, 2].mean()


def _true_resolution(frc: xr.DataArray, threshold: Threshold, power: Spectrum) -> float:
    q = np.linspace(float(frc.frequency[0]), float(frc.frequency[-1]), 20000)
    level = np.interp(q, frc.frequency, misr.frc_threshold(threshold, frc.n_independent.values))
    return float(1 / q[np.flatnonzero(power(q) / (1 + power(q)) >= level)[-1]])


def _error_bars(seeds: int) -> Iterator[str]:
    yield (
        f"\nError bars of rings (share, %, whose 95 % interval holds the true FRC; white power, {seeds} seeds;\n"
        "'same specimen': one for all seeds, its own power being known)"
    )
    rows = []
    for n in (32, 128):
        for window in (None, "hann"):
            for snr in (0.0, 1.0, 20.0):
                held = {anew: _held_by_ring(n, window, snr, seeds, anew=anew) for anew in (True, False)}
                cells = [n, window, f"{snr / (1 + snr):.2f}", percent(held[True].mean()), percent(held[True][0])]
                rows.append([*cells, percent(held[True][1:].min()), percent(held[False].mean())])
    heads = ["pixels", "window", "FRC", "all rings", "first ring", "worst other", "same specimen"]
    yield aligned(heads, rows)


def _held_by_ring(n: int, window: str | None, snr: float, seeds: int, *, anew: bool) -> np.ndarray:
    held = []
    signal = np.sqrt(snr) * np.random.default_rng(12345).standard_normal((n, n))
    expected: Any = snr / (1 + snr)
    if not anew:
        own = misr.radial_power_spectrum(image(signal), window=window).values
        expected = own / (own + 0.5**2)  # white noise of variance 1 has the power of one pixel's area
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        if anew:
            signal = np.sqrt(snr) * rng.standard_normal((n, n))
        frc = misr.fourier_ring_correlation(
            *(image(signal + rng.standard_normal((n, n))) for _ in range(2)), window=window
        )
        held.append(((frc.frc_low <= expected) & (expected <= frc.frc_high)).values)
    return np.mean(held, axis=0)


def _fisher(draws: int = 40000) -> Iterator[str]:
    yield f"\nInterval of one correlation of n complex values (share of {draws} draws, %, that it holds at 95 %)"
    rng = np.random.default_rng(0)
    rows = []
    for n in (1, 2, 4, 16, 64):
        cells: list[object] = [n]
        for rho in (0.0, 0.5, 0.9):
            parts = rng.standard_normal((3, draws, 2 * n))
            a, b = (np.sqrt(rho) * parts[0] + np.sqrt(1 - rho) * part for part in parts[1:])
            values = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
            low, high = correlation_interval(values, np.full(draws, n), 0.95)
            cells.append(percent(float(np.mean((low <= rho) & (rho <= high)))))
        rows.append(cells)
    yield aligned(["n", "FRC 0", "FRC 0.5", "FRC 0.9"], rows)


def chance_part(seeds: int) -> Iterator[str]:
    """Unrelated images that count as resolved, and lattices seen where there is none."""
    yield f"Unrelated images that come out as resolved, % of {seeds} pairs (64 × 48 pixels)"
    rows = []
    thresholds: tuple[Threshold, ...] = ("half-bit", "1-bit", "3-sigma", 0.143, 0.5)
    for spectrum in ("white", "1/frequency"):
        for window in (None, "hann"):
            resolved = np.zeros(len(thresholds))
            for seed in range(seeds):
                frc = misr.fourier_ring_correlation(*_unrelated(spectrum, (64, 48), seed), window=window)
                resolved += [np.isfinite(float(misr.frc_resolution(frc, threshold))) for threshold in thresholds]
            rows.append([spectrum, window, *(percent(each / seeds) for each in resolved)])
    yield aligned(["spectrum", "window", *map(str, thresholds)], rows)
    yield from _automatic_rings(seeds)


def _unrelated(spectrum: str, shape: tuple[int, int], seed: int) -> list[xr.DataArray]:
    rng = np.random.default_rng(seed)
    return [image(white_through(shape, UNRELATED[spectrum], rng)) for _ in range(2)]


def _automatic_rings(seeds: int) -> Iterator[str]:
    yield (
        f'\nring_width="auto" (share of {seeds} pairs, %, for which reflections are found; of a crystal of 16 Å cells, '
        "those\nwhose rings are 1 to 1.6 times its reciprocal spacing)"
    )
    lattice = crystal()
    made: dict[str, Callable[[int], xr.DataArray]] = {
        "noise alone": lambda seed: image(np.zeros((96, 96))),
        "amorphous, sharp limit": lambda seed: image(bandlimited_phase((96, 96), 0.5, rng=seed, strength=1.0)),
        "amorphous, atoms": lambda seed: image(atoms_phase((96, 96), 0.5, rng=seed, strength=1.0)),
        "crystal": lambda seed: lattice,
    }
    rows = []
    for name, make in made.items():
        for level in (1.0,) if name == "noise alone" else (0.0, 0.3, 3.0, 10.0):
            if name == "crystal" and level == 0:
                continue
            cells = [
                _found_lattices(make, level, window, seeds, crystal=name == "crystal") for window in (None, "hann")
            ]
            rows.append([name, level, *(percent(cell) for cell in cells)])
    yield aligned(["specimen", "noise / signal", "no window", "hann"], rows)


def _found_lattices(
    make: Callable[[int], xr.DataArray], level: float, window: str | None, seeds: int, *, crystal: bool
) -> float:
    found = 0
    for seed in range(seeds):
        specimen, rng = make(seed), np.random.default_rng([seed, 1])
        pair = [specimen + level * rng.standard_normal(specimen.shape) for _ in range(2)]
        options: dict[str, Any] = {"ring_width": "auto", "window": window}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            width = misr.fourier_ring_correlation(*pair, **options).attrs["ring_width"]
        narrow = 1 / (specimen.shape[0] * 0.5)
        found += (1 / 16 < width < 1.6 / 16) if crystal else width > 1.01 * narrow
    return found / seeds
