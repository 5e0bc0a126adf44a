"""Part of `resolution_table` about trust: how often honest images raise an alarm, and inventions are found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from resolution_text import aligned, percent
from test_trust import embellishing, inventing, linear, local, scan, sharpening
from tqdm import tqdm

import misr

__all__ = ["trust_part"]

Pipeline = Callable[[xr.DataArray], Any]
HONEST: dict[str, Pipeline] = {"linear, ring prior": linear, "linear, local prior": local}
INVENTING: dict[str, Pipeline] = {
    "texture, half strength": inventing(0.5),
    "texture": inventing(1.0),
    "texture on contrast": embellishing,
    "harmonics": sharpening,
}
DOSES = (300.0, 1000.0)


def trust_part(seeds: int) -> Iterator[str]:
    """False alarms of the linear fusion and detections of inventions, row by row of the report."""
    few = max(1, seeds // 4)
    doses = " and ".join(f"{dose:g}" for dose in DOSES)
    yield (
        f"misr.trust_report of amorphous films (48 × 48 Å; {seeds} films at each of {doses} e/Å², the truth given):\n"
        "how many reports do not pass each test at alpha=0.01 for the whole, and below, the share, %, in which its "
        "p-value is\nbelow 0.05"
    )
    rows, tests = [], []
    for name, pipeline in HONEST.items():
        reports = list(_reports(pipeline, DOSES, seeds))
        tests = list(reports[0].test.values)
        rows.append([name, len(reports), *_alarms(reports, tests), sum(not bool(one.trusted) for one in reports)])
        low = [percent(np.mean([float(one.p_value.sel(test=test)) < 0.05 for one in reports])) for test in tests]
        rows.append(["  p < 0.05, %", "", *low, ""])
    yield aligned(["honest", "reports", *tests, "not trusted"], rows)
    yield f"\nThe same of methods that invent (1000 e/Å², {few} films)"
    rows = []
    for name, pipeline in INVENTING.items():
        reports = list(_reports(pipeline, DOSES[1:], few))
        rows.append([name, len(reports), *_alarms(reports, tests), sum(not bool(one.trusted) for one in reports)])
    yield aligned(["inventing", "reports", *tests, "not trusted"], rows)


def _reports(pipeline: Pipeline, doses: tuple[float, ...], films: int) -> Iterator[xr.Dataset]:
    for film in tqdm(range(films), file=sys.stderr, unit="film"):
        for dose in doses:
            cube, truth = scan(dose, seed=100 + film)
            with warnings.catch_warnings():
                # what prior_share warns of is counted
                warnings.simplefilter("ignore", UserWarning)
                yield misr.trust_report(cube, pipeline, truth=truth, rng=film)


def _alarms(reports: list[xr.Dataset], tests: list[str]) -> list[int]:
    return [sum(not bool(one.passed.sel(test=test)) for one in reports) for test in tests]
