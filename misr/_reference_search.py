"""Settings of ptychography found by trial: scored by electrons held out, or by the truth."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from misr._py4dstem import Setup
from misr._reference_ptychography import Ptychography, Run, Settings
from misr.aberrations import with_aberrations
from misr.resample import resample_like
from misr.resolution import fourier_ring_correlation
from misr.views import synthesize_views

__all__ = [
    "DEFAULT",
    "GRID",
    "Search",
    "against_truth",
    "check_preset",
    "chosen",
    "held_out",
    "make_grid",
    "passes",
    "run_search",
]

DEFAULT = Settings(iterations=8, step_size=0.1, batch_size=64, smoothing_A=0.0)
GRID: dict[str, tuple[Any, ...]] = {
    "step_size": (0.03, 0.1, 0.3),
    "batch_size": (64, 256),
    "smoothing_A": (0.0,),
    "iterations": (1, 2, 4, 8, 16),
}
_PRESETS = ("default", "tuned", "oracle")
_NAMES = tuple(GRID)

Score = Callable[[Ptychography], dict[str, float]]


@dataclass(frozen=True)
class Search:
    """What was tried: settings and scores of each trial, and the best of them."""

    trials: list[dict[str, Any]]
    best: Settings

    def dataset(self) -> xr.Dataset:
        """Scores over ``trial`` (NaN where it diverged), the settings as coordinates (``batch_size`` 0: all)."""
        units = {"smoothing_A": "Å", "resolution": "Å"}
        known = dict.fromkeys(name for row in self.trials for name in row)
        columns = {
            f"search_{name}": (
                "trial",
                [0.0 if row.get(name, 0) is None else float(row.get(name, math.nan)) for row in self.trials],
                {"units": units.get(name, "1")},
            )
            for name in known
        }
        return xr.Dataset(columns).set_coords([f"search_{name}" for name in _NAMES])

    def json(self) -> str:
        """All of it as one attribute."""
        finite = ({k: v if v is None or math.isfinite(v) else str(v) for k, v in row.items()} for row in self.trials)
        return json.dumps(list(finite))


def make_grid(given: Mapping[str, Any], wider: Mapping[str, Sequence[Any]] | None) -> dict[str, tuple[Any, ...]]:
    """Values to try: the documented ones, or others, and only the caller's where a setting is given ("auto": not)."""
    unknown = [name for name in wider or {} if name not in GRID]
    if unknown:
        raise ValueError(f"search has {unknown}: it may hold {list(GRID)}, each with a list of values")
    grid = GRID | {name: tuple(values) for name, values in (wider or {}).items()}
    grid |= {name: (value,) for name, value in given.items() if value != "auto"}
    for name, values in grid.items():
        if not values:
            raise ValueError(f"search[{name!r}] is empty: give at least one value")
        for value in values:
            _check(name, value)
    return grid | {"iterations": tuple(sorted(set(grid["iterations"])))}


def chosen(given: Mapping[str, Any]) -> Settings:
    """The default settings with the caller's in their place."""
    for name, value in given.items():
        if value != "auto":
            _check(name, value)
    return dataclasses.replace(DEFAULT, **{name: value for name, value in given.items() if value != "auto"})


def _check(name: str, value: Any) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    whole = number and float(value).is_integer() and value >= 1
    finite = number and math.isfinite(value)
    right, wish = {
        "iterations": (whole, "a whole number, at least 1"),
        "batch_size": (value is None or whole, "a whole number, at least 1, or None for all patterns"),
        "step_size": (finite and value > 0, "a positive number"),
        "smoothing_A": (finite and value >= 0, "a length in Å, 0 for none"),
    }[name]
    if not right:
        raise ValueError(f"{name}={value!r} must be {wish}, or 'auto'")


def passes(grid: Mapping[str, Sequence[Any]]) -> int:
    """Over the data that a search takes: iterations are not tried one by one, but looked at on the way."""
    return math.prod(len(grid[name]) for name in _NAMES if name != "iterations") * max(grid["iterations"])


def run_search(
    fit: Ptychography, grid: Mapping[str, Sequence[Any]], *, score: Score, run: Run, seeds: Sequence[int]
) -> Search:
    """Each combination up to the most iterations; ends early when cancelled, then with what has been scored."""
    trials: list[dict[str, Any]] = []
    for values in itertools.product(*(grid[name] for name in _NAMES if name != "iterations")):
        settings = Settings(max(grid["iterations"]), *values)
        fit.restart()
        for number in range(1, settings.iterations + 1):
            fit.step(settings, seeds[number - 1])
            run.after("search", fit)
            if number in grid["iterations"]:
                tried = dataclasses.asdict(dataclasses.replace(settings, iterations=number))
                trials.append(tried | (score(fit) if math.isfinite(fit.error) else {}))
            if run.cancelled:
                break
        if run.cancelled:
            break
    scored = [row for row in trials if math.isfinite(row.get("score", math.nan))]
    if scored:
        best = max(scored, key=lambda row: row["score"])
        return Search(trials, Settings(**{name: best[name] for name in _NAMES}))
    if not run.cancelled:
        raise ValueError(f"none of {len(trials)} trials gave an image: with step_size={grid['step_size']} all diverge")
    return Search(trials, settings)


def held_out(setup: Setup, counts: xr.DataArray, ring_width: float | None) -> Score:
    """FRC with the linear fusion of electrons that the fit has not seen: its mean up to the band limit.

    The two errors are independent, so each ring's FRC is that against the truth times a factor of the linear image's
    alone: it orders trials as the truth would, whatever their scale and radial filter.
    """
    from misr.fusion import fuse_linear, plan_fusion

    views = synthesize_views(with_aberrations(counts, setup.polar, rotation_deg=setup.rotation_deg))
    linear = fuse_linear(views, upsample=plan_fusion(views, upsample=1).folds)["phase"]

    def score(fit: Ptychography) -> dict[str, float]:
        frc = fourier_ring_correlation(resample_like(fit.phase(), linear), linear, ring_width=ring_width)
        mean = float(frc[frc["frequency"].values <= 2 * setup.cutoff].mean())
        return {"score": mean}

    return score


def against_truth(truth: xr.DataArray, ring_width: float | None, band_limit: float) -> Score:
    """FRC against the truth: its mean up to the band limit, and the resolution where it falls to 0.5."""
    from misr.comparison import compare_images

    def score(fit: Ptychography) -> dict[str, float]:
        found = compare_images(fit.phase(), truth, register=False, sign=1, ring_width=ring_width)
        frc = found["frc"]
        mean = float(frc[frc["frequency"].values <= band_limit].mean())
        return {"score": mean, "resolution": float(found["resolution"])}

    return score


def check_preset(preset: str, search: Any, truth: xr.DataArray | None) -> None:
    """Whether a preset has what it needs, and no more."""
    if preset not in _PRESETS:
        raise ValueError(f"preset={preset!r} must be one of {_PRESETS}")
    if preset == "default" and search is not None:
        raise ValueError("search= is for preset='tuned' or 'oracle'; 'default' tries nothing")
    if preset == "oracle" and truth is None:
        raise ValueError("preset='oracle' chooses by the truth: give it as truth=, or use 'tuned', which needs none")
    if preset != "oracle" and truth is not None:
        raise ValueError(f"preset={preset!r} must not see the truth: leave truth= out, or use preset='oracle'")
