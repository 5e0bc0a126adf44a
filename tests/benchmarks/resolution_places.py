"""Parts of `resolution_table` about places: resolution from window to window, and shifts between images."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import xarray as xr
from resolution_curves import UNRELATED, Spectrum, image, white_through
from resolution_text import aligned, percent, signed

import misr

__all__ = ["compare_part", "local_part"]

# spectral SNR of all electrons; half maps have half of it each, and pixels of 0.5 Å
FALLING: dict[str, Spectrum] = {
    "Gaussian": lambda q: 30 * np.exp(-((q / 0.22) ** 2)),
    "slow": lambda q: 30 / (1 + (q / 0.1) ** 3),
    "sharp edge": lambda q: 8.0 * (q < 0.4),
}


# --- from place to place ---------------------------------------------------------------------------------------------


def local_part(seeds: int) -> Iterator[str]:
    """False alarms and bias of `misr.local_resolution`."""
    yield from _local_levels()
    yield from _local_chance(seeds)
    yield from _local_bias(seeds)


def _local_levels() -> Iterator[str]:
    yield "Independent values of ring r of a window, and the half-bit threshold there"
    blank = image(np.random.default_rng(0).standard_normal((128, 128)))
    n = misr.local_resolution(blank, blank, window_A=64.0).n_independent.values
    levels = misr.frc_threshold("half-bit", n)
    yield aligned(["r", "n", "threshold"], [[r, f"{n[r - 1]:.1f}", f"{levels[r - 1]:.3f}"] for r in (3, 5, 10, 20, 40)])


def _local_chance(seeds: int) -> Iterator[str]:
    yield (
        f"\nmisr.local_resolution of unrelated images: windows resolved at false_alarm=0.001 ({seeds} pairs of 256² "
        "pixels for each number;\nwindows of 16 to 96 pixels, half overlapping). 'by pixels': were rings to hold as "
        "many values as their pixels say"
    )
    rows, sums = [], np.zeros(2, dtype=int)
    for number, (spectrum, amplitude) in enumerate(UNRELATED.items()):
        for window_A in (8.0, 16.0, 24.0, 48.0):
            found, plain = np.zeros(2, dtype=int), np.zeros(2, dtype=int)
            for seed in range(seeds):
                rng = np.random.default_rng([41, number, round(window_A), seed + 1])
                pair = [image(white_through((256, 256), amplitude, rng)) for _ in range(2)]
                options = {"window_A": window_A, "step_A": window_A / 2}
                found += _resolved(misr.local_resolution(*pair, **options))
                with mock.patch("misr.resolution_map._honest_rings", lambda rings, *_: rings):
                    plain += _resolved(misr.local_resolution(*pair, **options))
            sums += found
            rows.append(
                [
                    spectrum,
                    f"{2 * window_A:g}",
                    *found,
                    percent(found[0] / found[1], 2),
                    percent(plain[0] / plain[1], 2),
                ]
            )
    rows.append(["all", "", *sums, percent(sums[0] / sums[1], 2), ""])
    yield aligned(["spectrum", "window (pixels)", "resolved", "of", "%", "by pixels %"], rows)


def _resolved(found: xr.Dataset) -> np.ndarray:
    return np.array([int((found.status > 0).sum()), found.status.size])


def _local_bias(seeds: int) -> Iterator[str]:
    yield (
        f"\nResolution in windows against the crossing of the true curve with their own threshold ({seeds} pairs of "
        "256² pixels of 0.5 Å;\nmedian, 10 % and 90 % in % of it; 'reliable': share of windows; 'theirs': their median)"
    )
    heads = [
        "half maps",
        "threshold",
        "window Å",
        "true Å",
        "window/true",
        "median",
        "10 %",
        "90 %",
        "reliable",
        "theirs",
    ]
    rows = []
    for (name, snr), threshold in itertools.product(FALLING.items(), ("half-bit", 0.143)):
        for window_A in (12.0, 16.0, 24.0, 32.0, 48.0):
            values, reliable, expected = [], [], math.nan
            for seed in range(seeds):
                rng = np.random.default_rng([42, seed + 1])
                signal = white_through((256, 256), lambda q, snr=snr: np.sqrt(snr(q)), rng)
                pair = [image(signal + math.sqrt(2) * rng.standard_normal(signal.shape)) for _ in range(2)]
                found = misr.local_resolution(*pair, window_A=window_A, step_A=window_A / 2, threshold=threshold)
                expected = _expected(found, snr, threshold)
                values.append(found.resolution.values.ravel() / expected)
                reliable.append(found.reliable.values.ravel())
            ratio, sure = np.concatenate(values), np.concatenate(reliable)
            low, middle, high = (float(np.percentile(ratio, p, method="nearest")) - 1 for p in (10, 50, 90))
            theirs = signed(float(np.median(ratio[sure])) - 1) if sure.any() else "-"
            cells = [name, threshold, f"{window_A:g}", f"{expected:.2f}", f"{window_A / expected:.1f}", signed(middle)]
            rows.append([*cells, signed(low), signed(high), percent(sure.mean(), 0), theirs])
    yield aligned(heads, rows)


def _expected(found: xr.Dataset, snr: Spectrum, threshold: str | float) -> float:
    q = np.linspace(0.03, 0.98, 20000)
    level = np.interp(q, found.frequency, misr.frc_threshold(threshold, found.n_independent.values))
    return float(1 / q[np.flatnonzero(snr(q) / (snr(q) + 2) >= level)[-1]])


# --- between images --------------------------------------------------------------------------------------------------


def compare_part(seeds: int) -> Iterator[str]:
    """Errors and false alarms of the registration of `misr.compare_images`."""
    logging.getLogger("misr.comparison").setLevel(logging.ERROR)
    yield from _shifts(seeds)
    yield from _false_alignments(seeds)


def _shifts(seeds: int) -> Iterator[str]:
    yield (
        f"misr.compare_images with the truth, {seeds} seeds: a field of 80 × 80 Å with a Gaussian spectrum (1/e of the "
        "power at 0.3 1/Å),\nshifted by up to 3 Å, white noise added; error of the shift along one axis, and the "
        "standard error stated"
    )
    rows = []
    for periodic in (True, False):
        for level in (0.3, 1.2, 3.0, 5.0, 7.0):
            errors, stated, resolutions, aligned_ones = [], [], [], 0
            for seed in range(seeds):
                rng = np.random.default_rng([51, seed + 1])
                truth, shift = _texture((176, 176) if not periodic else (160, 160), rng), rng.uniform(-3, 3, 2)
                noisy = _moved(truth, shift) + level * rng.standard_normal(truth.shape)
                pair = [image(values, periodic=periodic) for values in (noisy, truth)]
                if not periodic:
                    pair = [one.isel(y=slice(8, -8), x=slice(8, -8)) for one in pair]
                result = misr.compare_images(*pair, max_shift_A=5)
                resolutions.append(float(result.resolution))
                if result.attrs["registration"] != "found":
                    continue
                aligned_ones += 1
                errors.append([float(result.shift_y) + shift[0], float(result.shift_x) + shift[1]])
                stated.append([float(result.shift_y_stderr), float(result.shift_x_stderr)])
            error, right = np.array(errors).reshape(-1), np.array(stated).reshape(-1)
            close = np.abs(error) < 1.0
            cells = ["none" if periodic else "hann", f"{level:g}", _length(float(np.median(resolutions)))]
            cells += [percent(aligned_ones / seeds, 0), f"{int((~close).sum())}"]
            rms = math.sqrt(np.mean(error[close] ** 2)) if close.any() else math.nan
            ratio = math.sqrt(np.mean((error / right)[close] ** 2)) if close.any() else math.nan
            rows.append([*cells, f"{rms:.3f}", f"{ratio:.2f}"])
    yield aligned(
        ["window", "noise/signal", "FRC 0.5 at", "aligned %", "off by > 1 Å", "rms error Å", "error/stated"], rows
    )


def _length(value: float) -> str:
    return f"{value:.2f} Å" if math.isfinite(value) else "nowhere"


def _texture(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    values = white_through(shape, lambda q: np.exp(-((q / 0.3) ** 2) / 2) * (q > 0), rng)
    return values / values.std()


def _moved(values: np.ndarray, shift: np.ndarray) -> np.ndarray:
    q_y, q_x = (np.fft.fftfreq(n, 0.5) for n in values.shape)
    wave = np.exp(-2j * np.pi * (q_y[:, None] * shift[0] + q_x[None, :] * shift[1]))
    return np.fft.ifft2(np.fft.fft2(values) * wave).real


def _false_alignments(seeds: int) -> Iterator[str]:
    yield (
        f"\nUnrelated images (64² pixels of 0.5 Å, {seeds} pairs each) moved or turned at false_alarm=0.01, and the "
        "mean FRC below 0.3 1/Å ±\nits standard error over pairs: as they are compared, and made to move by up to 5 Å"
    )
    rows = []
    total, means = 0, {True: [], "always": []}
    for number, (spectrum, amplitude) in enumerate(UNRELATED.items()):
        for periodic in (True, False):
            moved_ones: int = 0
            here: dict[Any, list[float]] = {True: [], "always": []}
            for seed in range(seeds):
                rng = np.random.default_rng([52, number, periodic, seed + 1])
                pair = [image(white_through((64, 64), amplitude, rng), periodic=periodic) for _ in range(2)]
                for way, curves in here.items():
                    result = misr.compare_images(*pair, max_shift_A=5, false_alarm=0.01, register=way)
                    low = result.frc.sel(frequency=slice(None, 0.3))
                    curves.append(float(low.weighted(low.n_independent).mean()))
                    moved_ones += way is True and result.attrs["registration"] == "found"
            total += moved_ones
            for way, curves in here.items():
                means[way] += curves
            rows.append([spectrum, "none" if periodic else "hann", moved_ones, *map(_mean, here.values())])
    pairs = seeds * 2 * len(UNRELATED)
    rows.append([f"all {pairs} pairs", "", total, *map(_mean, means.values())])
    yield aligned(["spectrum", "window", "moved", "FRC", "FRC, made to move"], rows)


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):+.3f} ± {np.std(values) / math.sqrt(len(values)):.3f}"
