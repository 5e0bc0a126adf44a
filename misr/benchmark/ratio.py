"""Resolution against dose, and how many times fewer electrons one method needs than another for the same resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history

__all__ = ["dose_ratio", "resolution_curves"]

_FEWEST_SEEDS = 5  # below, a bootstrap over seeds is no 95 % interval, whatever it is called
_RESOLUTIONS = (6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.7, 1.5, 1.3, 1.1)
Bounds = tuple[float, float]


def resolution_curves(table: xr.Dataset, *, value: str = "resolution_A") -> xr.DataArray:
    """Resolution by specimen, method, dose and seed.

    Parameters
    ----------
    table : xarray.Dataset
        From `misr.benchmark.read_benchmark`.
    value : str, default "resolution_A"
        Or ``"aligned_resolution_A"``, ``"half_map_resolution_A"``.

    Returns
    -------
    xarray.DataArray
        Å, dims ``("specimen", "method_name", "dose", "seed")`` (xarray's ``sel`` has a ``method``
        of its own); ``inf`` where nothing is resolved, NaN where there is no image (failed, not available, not
        finished).

    Raises
    ------
    ValueError
        If the table has no such column.

    Examples
    --------
    >>> from misr.benchmark import table_from_rows
    >>> about = {"specimen": "a", "method": "tcbf", "seed": 0}
    >>> table = table_from_rows([about | {"dose_e_per_A2": d, "resolution_A": r} for d, r in ((10, 5), (100, 3))])
    >>> resolution_curves(table).squeeze().values.tolist()
    [5.0, 3.0]
    """
    if value not in table:
        raise ValueError(f"the table has no column {value!r}: it has {sorted(map(str, table.data_vars))}")
    columns = [table[name].values for name in ("specimen", "method", "dose_e_per_A2", "seed")]
    axes = [np.asarray(list(dict.fromkeys(column.tolist()))) for column in columns[:2]]
    axes += [np.unique(column) for column in columns[2:]]
    values = np.full([len(axis) for axis in axes], np.nan)
    for number, key in enumerate(zip(*columns, strict=True)):
        at = tuple(int(np.flatnonzero(axis == one)[0]) for axis, one in zip(axes, key, strict=True))
        if table["status"].values[number] in ("done", "limit"):
            values[at] = table[value].values[number]
    coords = dict(zip(("specimen", "method_name", "dose", "seed"), axes, strict=True))
    curves = xr.DataArray(values, dims=tuple(coords), coords=coords, name=value, attrs={"units": "Å"})
    curves["dose"].attrs["units"] = "e/Å²"
    return curves


def dose_ratio(
    table: xr.Dataset,
    method: str,
    reference: str,
    *,
    resolutions_A: Sequence[float] | None = None,
    value: str = "resolution_A",
    confidence: float = 0.95,
    draws: int = 2000,
    rng: Any = 0,
) -> xr.Dataset:
    """How many times fewer electrons a method needs than a reference to reach a resolution.

    Parameters
    ----------
    table : xarray.Dataset
        From `misr.benchmark.read_benchmark`.
    method, reference : str
        Names in the table. A ratio above 1 means that ``method`` needs fewer electrons.
    resolutions_A : sequence of float, optional
        Å; by default ten from 6 to 1.1 Å.
    value : str, default "resolution_A"
        Column that is compared.
    confidence : float, default 0.95
        Of the interval.
    draws : int, default 2000
        Bootstrap draws of the seeds.
    rng : None, int or numpy.random.Generator, default 0
        Seed of the draws (SPEC 7).

    Returns
    -------
    xarray.Dataset
        Over ``("specimen", "resolution")``: ``ratio``, and its bootstrap interval ``ratio_low`` to ``ratio_high``.
        ``status``: "measured"; "at least" or "at most", when one of the two reaches the resolution at the lowest dose
        already, or at none, so that ``ratio`` is only a bound; "between", when the resolution appears from nothing
        between two doses, ``ratio`` being the geometric mean of its bounds; "unknown" (NaN), when the doses do
        not tell. ``least`` and ``most`` are the bounds of the estimate itself (0 and inf: none), ``dose_method`` and
        ``dose_reference`` the needed doses (e/Å², geometric mean of their bounds), ``seeds`` how many both have.

    Raises
    ------
    ValueError
        If the table lacks a method or column, or an option is out of range.

    Notes
    -----
    For each method the mean of 1/resolution over seeds (0 where nothing is resolved), made to rise with dose
    (isotonic regression), is interpolated between doses as a power law: that gives the dose at which it reaches the
    wanted resolution. Doses beyond those measured are never extrapolated: a curve that starts finer gives "less than
    the lowest dose", one that never arrives "more than the highest". Between a dose where nothing is resolved and one
    where something is, the crossing is bounded by the two.

    The interval is the percentile bootstrap over seeds, the same seeds for both methods, since they see the same
    electrons, widened for few seeds as Hesterberg (2015, Am. Stat. 69, 371) has it; bounds that are open in enough
    of the draws stay open in the interval. With fewer than five seeds it is the range of what the seeds allow, and no
    95 % interval: ``attrs["interval"]`` says which.

    Examples
    --------
    >>> from misr.benchmark import table_from_rows
    >>> rows = [{"specimen": "a", "method": name, "seed": seed, "dose_e_per_A2": dose,
    ...          "resolution_A": 20 / (dose * factor) ** 0.5}
    ...         for name, factor in (("quick", 4), ("slow", 1)) for seed in range(3) for dose in (10, 30, 100, 300)]
    >>> ratio = dose_ratio(table_from_rows(rows), "quick", "slow", resolutions_A=[2.0, 0.1])
    >>> [round(v, 1) for v in ratio.ratio.values[0].tolist()], ratio.status.values[0].tolist()
    ([4.0, nan], ['measured', 'unknown'])
    """
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, and draws={draws} be at least 1")
    curves = resolution_curves(table, value=value)
    for name in (method, reference):
        if name not in curves["method_name"].values:
            raise ValueError(f"the table has no method {name!r}: it has {curves['method_name'].values.tolist()}")
    wanted = np.asarray(_RESOLUTIONS if resolutions_A is None else resolutions_A, dtype=float)
    if wanted.size == 0 or not np.all(np.isfinite(wanted) & (wanted > 0)):
        raise ValueError(f"resolutions_A={resolutions_A} must be positive lengths in Å")
    generator = np.random.default_rng(rng)
    doses = curves["dose"].values
    rows = []
    for specimen in curves["specimen"].values:
        pair = [1 / curves.sel(specimen=specimen, method_name=name).values for name in (method, reference)]
        rows.append([_ratio_at(pair, doses, 1 / r, confidence, draws, generator) for r in wanted])
    return _labelled(rows, curves["specimen"].values, wanted, method, reference, table, value, confidence, draws)


def _ratio_at(
    pair: list[np.ndarray], doses: np.ndarray, frequency: float, confidence: float, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Everything about one specimen and resolution, from 1/resolution over (dose, seed) of both methods."""
    # a seed counts where both methods have it at some dose
    seeds = np.flatnonzero(np.all([np.isfinite(one).any(axis=0) for one in pair], axis=0))
    unknown = {"ratio": math.nan, "least": 0.0, "most": math.inf, "status": "unknown", "seeds": int(seeds.size)}
    if seeds.size == 0:
        return unknown | {"low": 0.0, "high": math.inf, "doses": (math.nan, math.nan)}
    needed = [needed_dose(one[:, seeds], doses, frequency) for one in pair]
    least, most = _quotient(*needed)
    picks = rng.integers(seeds.size, size=(draws, seeds.size)) if seeds.size > 1 else np.zeros((1, 1), int)
    # (dose, draw): the same seeds for both methods
    means = [_mean(one[:, seeds][:, picks]) for one in pair]
    drawn = [
        _quotient(*(_crossing(mean[:, number], doses, frequency) for mean in means)) for number in range(len(picks))
    ]
    tail = _tail(confidence, int(seeds.size))
    low = float(np.quantile([one[0] for one in drawn], tail, method="lower"))
    high = float(np.quantile([one[1] for one in drawn], 1 - tail, method="higher"))
    ratio, status = _told(least, most)
    found = {"least": least, "most": most, "low": min(low, least), "high": max(high, most)}
    return unknown | found | {"ratio": ratio, "status": status, "doses": tuple(_middle(*one) for one in needed)}


def needed_dose(values: np.ndarray, doses: np.ndarray, frequency: float) -> Bounds:
    """Bounds of the dose at which the mean over seeds of 1/resolution (dose, seed) reaches a frequency.

    Equal bounds where the curve is known to cross; 0 below where it starts beyond, inf above where it never arrives.
    """
    return _crossing(_mean(values), doses, frequency)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    number = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _crossing(mean: np.ndarray, doses: np.ndarray, frequency: float) -> Bounds:
    from scipy.optimize import isotonic_regression

    known = np.isfinite(mean)
    there, rising = doses[known], mean[known]
    if there.size == 0:
        return 0.0, math.inf
    if np.any(rising[1:] < rising[:-1]):
        rising = np.asarray(isotonic_regression(rising).x)
    first = int(np.searchsorted(rising, frequency))
    if first == rising.size:
        return float(there[-1]), math.inf
    if first == 0:
        return 0.0, float(there[0])
    if rising[first - 1] <= 0:
        return float(there[first - 1]), float(there[first])
    share = math.log(frequency / rising[first - 1]) / math.log(rising[first] / rising[first - 1])
    at = float(there[first - 1] * (there[first] / there[first - 1]) ** share)
    return at, at


def _quotient(method: Bounds, reference: Bounds) -> Bounds:
    """Bounds of the reference's dose over the method's."""
    least = 0.0 if math.isinf(method[1]) or reference[0] == 0 else reference[0] / method[1]
    most = math.inf if method[0] == 0 or math.isinf(reference[1]) else reference[1] / method[0]
    return least, most


def _told(least: float, most: float) -> tuple[float, str]:
    if least == 0 and math.isinf(most):
        return math.nan, "unknown"
    if math.isinf(most):
        return least, "at least"
    if least == 0:
        return most, "at most"
    return math.sqrt(least * most), "measured" if most <= least * (1 + 1e-9) else "between"


def _middle(low: float, high: float) -> float:
    if low == 0 or math.isinf(high):
        return math.nan
    return math.sqrt(low * high)


def _tail(confidence: float, seeds: int) -> float:
    """Share of draws beyond each end: fewer for few seeds, whose bootstrap is too narrow."""
    from scipy import stats

    if seeds < 2:
        return 0.0
    student = float(stats.t.isf((1 - confidence) / 2, seeds - 1))
    return float(stats.norm.sf(math.sqrt(seeds / (seeds - 1)) * student))


def _labelled(
    rows: list[list[dict[str, Any]]],
    specimens: np.ndarray,
    wanted: np.ndarray,
    method: str,
    reference: str,
    table: xr.Dataset,
    value: str,
    confidence: float,
    draws: int,
) -> xr.Dataset:
    dims = ("specimen", "resolution")
    names = {"ratio": "ratio", "ratio_low": "low", "ratio_high": "high", "least": "least", "most": "most"}
    columns: dict[str, Any] = {
        name: (dims, np.asarray([[one[key] for one in row] for row in rows]), {"units": "1"})
        for name, key in names.items()
    }
    columns["status"] = (dims, np.asarray([[one["status"] for one in row] for row in rows]))
    columns["seeds"] = (dims, np.asarray([[one["seeds"] for one in row] for row in rows]))
    for number, name in enumerate(("dose_method", "dose_reference")):
        values = np.asarray([[one["doses"][number] for one in row] for row in rows])
        columns[name] = (dims, values, {"units": "e/Å²"})
    fewest = min(one["seeds"] for row in rows for one in row)
    kind = f"range of {fewest} seeds, no {confidence:.0%}" if fewest > 1 else "one seed: none"
    kind = f"{confidence:.0%} bootstrap" if fewest >= _FEWEST_SEEDS else kind
    attrs: dict[str, Any] = {"method": method, "reference": reference, "value": value, "interval": kind}
    attrs["history"] = append_history(
        table.attrs, "dose_ratio", method=method, reference=reference, value=value, confidence=confidence, draws=draws
    )
    coords = {"specimen": specimens, "resolution": ("resolution", wanted, {"units": "Å"})}
    return xr.Dataset(columns, coords=coords, attrs=attrs)
