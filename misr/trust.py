"""Can an image be trusted? Tests of any reconstruction method on the electrons it was made from, and one report.

Half maps say how well an image repeats. A method that puts the same invention into both halves repeats it very well,
so for anything learned (or otherwise clever) more is asked here: what does it resolve where the specimen's phases are
random (`noise_substitution`), or where there is no specimen at all; how much of what it claims lies above what its
electrons allow a linear image (`prior_share`); does it foretell electrons that it has not seen?
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr._trust_controls import (
    Pipeline,
    linear_image,
    run_pair,
    shuffled_halves,
    vacuum_halves,
)
from misr._trust_electrons import foretell
from misr._trust_prior import prior_share
from misr._trust_statistics import artanh, chance_of, curve_spread
from misr._trust_substitution import default_cut, noise_substitution, on_rings, trust_rings
from misr.aberrations import aberrations_of
from misr.dose import split_counts
from misr.resolution import fourier_ring_correlation, frc_resolution, resolution_words

__all__ = ["noise_substitution", "prior_share", "trust_report", "trust_words"]


@dataclass
class _Counted:
    """A pipeline, how often it ran and for how long."""

    pipeline: Pipeline
    runs: int = 0
    seconds: float = 0.0

    def __call__(self, cube: xr.DataArray) -> Any:
        start = time.perf_counter()
        result = self.pipeline(cube)
        self.seconds += time.perf_counter() - start
        self.runs += 1
        return result


@dataclass
class _Row:
    """One line of the report."""

    name: str
    passed: bool
    words: str
    value: float = math.nan
    limit: float = math.nan
    p_value: float = math.nan
    curves: dict[str, xr.DataArray] = field(default_factory=dict)


def trust_report(
    cube: xr.DataArray,
    pipeline: Pipeline,
    *,
    truth: xr.DataArray | None = None,
    limit: xr.DataArray | None = None,
    beyond: float | None = None,
    ring_width: float | None = None,
    threshold: str | float = "half-bit",
    tolerance: float = 0.1,
    alpha: float = 0.01,
    progress: bool = False,
    rng: Any = None,
) -> xr.Dataset:
    """Run every trust test on a method and a cube: one labelled report, a row per test.

    The tests: *noise substitution* (`noise_substitution`), *prior share* (`prior_share` of the half maps), *vacuum*
    (the cube's mean pattern at every position, with counting noise) and *shuffled scan* (the recorded patterns in
    random places), in both of which nothing must be resolved, *recorded electrons* (one half's image must foretell the
    other half's electrons no worse than the linear fusion's does) and, with the truth, *truth* (the half maps must not
    claim more than correlates with it).

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube of whole counts, aberrations known (`misr.calibrate_cube`). A crop will do: the pipeline runs 8
        times on scans like it, at half its dose.
    pipeline : callable
        From a cube to an image with dims ``("y", "x")``, or a Dataset that holds one as ``phase``.
    truth : xarray.DataArray, optional
        The specimen's phase, rad, over the scanned field, where it is known.
    limit : xarray.DataArray, optional
        Half-map curve that the electrons allow a linear image (`misr.expected_frc`); by default measured, with the
        linear fusion of the same halves.
    beyond : float, optional
        1/Å, see `noise_substitution`; by default a little before what the half maps of the method or of the linear
        fusion claim, whichever comes first.
    ring_width : float, optional
        1/Å, see `noise_substitution`.
    threshold : str or float, default "half-bit"
        Of the claimed resolution.
    tolerance : float, default 0.1
        See `prior_share`.
    alpha : float, default 0.01
        Rate of false alarms, at most, of the whole report: each test takes an equal part.
    progress : bool, default False
        Show a progress bar.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    xarray.Dataset
        Over ``test``: ``value`` and the ``limit`` it should stay below, ``p_value``, ``passed`` and ``words``. Over
        ``frequency`` (1/Å): ``frc`` (half maps), ``frc_substituted``, ``frc_corrected``, ``linear_limit``, ``share``
        with ``share_low`` and ``share_high``, ``frc_vacuum``, ``frc_shuffled``, and with the truth ``frc_truth``.
        Scalars ``beyond``, ``resolution``, ``resolution_corrected`` and ``trusted``: all passed but perhaps the prior
        share, since a specimen that repeats may exceed the linear limit honestly.
        ``attrs["pipeline_runs"]`` counts the runs, ``attrs["time_in_runs"]`` is the time taken in units of one run.
        `trust_words` prints it, `misr.plot.plot_trust` draws it.

    Raises
    ------
    ValueError
        As `misr.half_maps` and `noise_substitution`.

    Examples
    --------
    >>> import misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (12, 12, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -200})
    >>> def linear(cube):
    ...     return misr.fuse_linear(misr.synthesize_views(cube), upsample=2)
    >>> report = trust_report(cube, linear, rng=0)
    >>> bool(report.trusted), report.attrs["pipeline_runs"]
    (True, 8)
    """
    from misr.halves import half_maps

    start = time.perf_counter()
    if aberrations_of(cube) is None:
        raise ValueError("the cube's aberrations are not known: calibrate it first, misr.calibrate_cube(cube)")
    split, substituting, empty, shuffling = np.random.default_rng(rng).integers(2**63, size=4).tolist()
    counted = _Counted(pipeline)
    level = alpha / (5 if truth is None else 6)
    steps = _progress(6, progress)
    ring_width = trust_rings(cube, ring_width)
    halves = half_maps(cube, counted, rng=split, ring_width=ring_width)
    plain = halves["frc"]
    linear = half_maps(cube, linear_image, rng=split, ring_width=ring_width)
    if beyond is None:
        # what a method claims beyond the linear fusion is what has to be tested
        beyond = min(default_cut(one["frc"], frc_resolution(one["frc"], threshold)) for one in (halves, linear))
    steps.update()
    substituted = noise_substitution(
        cube, counted, beyond=beyond, phase=truth, halves=halves, threshold=threshold, alpha=level,
        rng=substituting,
    )  # fmt: skip
    steps.update()
    bound = linear["frc"] if limit is None else limit
    share = prior_share(plain, bound, tolerance=tolerance, alpha=level, warn=False)
    steps.update()
    rows = [_substitution_row(substituted), _prior_row(share)]
    for name, curve, made, seed in (
        ("vacuum", "frc_vacuum", vacuum_halves, empty),
        ("shuffled scan", "frc_shuffled", shuffled_halves, shuffling),
    ):
        rows.append(_control(name, curve, made(cube, rng=seed), counted, plain, alpha=level, threshold=threshold))
        steps.update()
    rows.append(_electrons(halves, linear, split_counts(cube, rng=split)[1], alpha=level))
    if truth is not None:
        rows.append(_against_truth(halves, truth, tolerance=tolerance, alpha=level))
    steps.update()
    steps.close()
    result = _assembled(rows, substituted, share)
    result.attrs |= {
        "pipeline": getattr(pipeline, "__name__", type(pipeline).__name__),
        "alpha": alpha,
        "threshold": str(threshold),
        "pipeline_runs": counted.runs,
        "time_in_runs": round((time.perf_counter() - start) / max(counted.seconds / counted.runs, 1e-9), 1),
        "history": append_history(
            cube.attrs, "trust_report", alpha=alpha, tolerance=tolerance, threshold=threshold,
            truth="given" if truth is not None else None, rng=describe_rng(rng),
        ),
    }  # fmt: skip
    if not bool(share["passed"]):
        warnings.warn(share.attrs["words"], UserWarning, stacklevel=2)
    return result


def _progress(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="trust_report", unit="test", disable=not shown)


def _substitution_row(found: xr.Dataset) -> _Row:
    return _Row(
        "noise substitution",
        bool(found["passed"]),
        found.attrs["words"],
        value=float(found["correlation"]),
        limit=float(found["correlation_limit"]),
        p_value=float(found["p_value"]),
    )


def _prior_row(found: xr.Dataset) -> _Row:
    return _Row(
        "prior share",
        bool(found["passed"]),
        found.attrs["words"],
        value=float(found["significant_share"]),
        limit=float(found.attrs["tolerance"]),
        p_value=float(found["p_value"]),
    )


def _control(
    name: str,
    curve: str,
    halves: tuple[xr.DataArray, xr.DataArray],
    pipeline: Pipeline,
    plain: xr.DataArray,
    *,
    alpha: float,
    threshold: str | float,
) -> _Row:
    """Half maps of a scan without a specimen."""
    width = float(plain.attrs["ring_width"])
    try:
        first, second, window = run_pair(pipeline, halves)
    except (ValueError, RuntimeError) as error:
        # a method may well refuse a scan in which there is nothing
        return _Row(name, True, f"the method refuses it: {str(error).splitlines()[0]}")
    chance = chance_of(first, second, ring_width=width, window=window, alpha=alpha)
    frc = on_rings(fourier_ring_correlation(first, second, ring_width=width, window=window), plain)
    passed = chance.p_value >= alpha
    words = "nothing is resolved, as should be"
    if not passed:
        found = frc_resolution(frc.fillna(0.0).assign_attrs(frc.attrs), threshold)
        words = (
            f"with no specimen there, both halves show the same up to {chance.highest:.3g} 1/Å (half maps: "
            f"{resolution_words(found)}): the method invents it"
        )
    return _Row(name, passed, words, chance.value, chance.limit, chance.p_value, {curve: frc})


def _electrons(
    halves: xr.Dataset, linear: xr.Dataset, unseen: xr.DataArray, *, alpha: float, lacking: float = 0.1
) -> _Row:
    """The first half's image on the second half's electrons."""
    found = foretell(halves["first"], linear["first"], unseen, tolerance=lacking)
    passed = found.p_value >= alpha
    words = (
        f"the image of one half gains {found.gain:.3g} nats per electron over vacuum on the other half's electrons, "
        f"the linear fusion's {found.linear_gain:.3g}"
    )
    if not passed:
        words += ": it holds what the electrons deny"
    return _Row("recorded electrons", passed, words, found.lacking, lacking, found.p_value)


def _against_truth(halves: xr.Dataset, truth: xr.DataArray, *, tolerance: float, alpha: float) -> _Row:
    """Half maps that claim F correlate with the truth as √F, if they claim no more than is there."""
    from misr.resample import phase_on_grid

    plain = halves["frc"]
    like = phase_on_grid(truth, like=halves["first"])
    curves = [
        fourier_ring_correlation(halves[name], like, ring_width=float(plain.attrs["ring_width"]), window=_window(plain))
        for name in ("first", "second")
    ]
    measured = on_rings((curves[0] + curves[1]) / 2, plain).fillna(0.0)
    # the sign of contrast is a convention
    sign = 1.0 if float((measured * plain["n_independent"]).sum()) >= 0 else -1.0
    coords = {name: plain[name] for name in ("frequency", "n_independent")}
    held = xr.DataArray(
        sign * measured.values, dims="frequency", coords=coords, name="frc_truth", attrs=dict(plain.attrs)
    )
    held.attrs |= {"kind": "truth", "long_name": "FRC of a half map against the truth"}
    found = prior_share(plain, _squared(held), kind="half-map", tolerance=tolerance, alpha=alpha, warn=False)
    words = "the half maps claim no more than correlates with the truth"
    if not bool(found["passed"]):
        words = (
            f"the half maps claim more than correlates with the truth: {float(found['significant_share']):.0%} of the "
            "spectral SNR they claim, where it is worst, is not the specimen's"
        )
    value, p_value = float(found["significant_share"]), float(found["p_value"])
    return _Row("truth", bool(found["passed"]), words, value, tolerance, p_value, {"frc_truth": held})


def _squared(frc: xr.DataArray) -> xr.DataArray:
    """The half-map curve that a curve against truth allows, with its error bars: its square."""
    spread = 1.96 * curve_spread(frc)
    middle, low, high = (np.maximum(np.tanh(artanh(frc.values) + shift), 0.0) ** 2 for shift in (0.0, -spread, spread))
    squared = frc.copy(data=middle).assign_coords(frc_low=("frequency", low), frc_high=("frequency", high))
    return squared.assign_attrs(kind="half-map")


def _window(frc: xr.DataArray) -> str | None:
    told = str(frc.attrs.get("window", "None"))
    return None if told == "None" else told


def _assembled(rows: list[_Row], substituted: xr.Dataset, share: xr.Dataset) -> xr.Dataset:
    one = {"units": "1"}
    bare = {"frequency", "n_independent"}
    curves = {name: substituted[name] for name in ("frc", "frc_substituted", "frc_corrected")}
    curves |= {"linear_limit": share["limit"]} | {name: share[name] for name in ("share", "share_low", "share_high")}
    for row in rows:
        curves |= row.curves
    curves = {
        name: curve if name == "frc" else curve.drop_vars([c for c in curve.coords if c not in bare])
        for name, curve in curves.items()
    }
    table = {
        "value": ("test", [row.value for row in rows], one),
        "limit": ("test", [row.limit for row in rows], one),
        "p_value": ("test", [row.p_value for row in rows], one),
        "passed": ("test", [row.passed for row in rows]),
        "words": ("test", [row.words for row in rows]),
    }
    scalars = {name: substituted[name] for name in ("beyond", "resolution", "resolution_corrected")}
    # an excess over the linear limit may be honest: it is told, and the other tests decide
    trusted = xr.DataArray(all(row.passed for row in rows if row.name != "prior share"))
    coords = {"test": [row.name for row in rows]}
    return xr.Dataset({**table, **curves, **scalars, "trusted": trusted}, coords=coords)


def trust_words(report: xr.Dataset) -> str:
    """A trust report as text: the claim, a line per test, and what it comes to.

    Parameters
    ----------
    report : xarray.Dataset
        From `trust_report`.

    Returns
    -------
    str
        Several lines, to print.

    Raises
    ------
    ValueError
        If it is not such a report.

    Examples
    --------
    >>> report = xr.Dataset({"passed": ("test", [True, False]), "words": ("test", ["as chance has it", "invents"]),
    ...     "resolution": ((), 2.0, {"status": "crossed"}), "resolution_corrected": ((), 3.0, {"status": "crossed"}),
    ...     "trusted": False}, coords={"test": ["noise substitution", "vacuum"]}, attrs={"pipeline": "net",
    ...     "pipeline_runs": 8, "time_in_runs": 9.0})
    >>> print(trust_words(report))
    net: NOT TO BE TRUSTED as it stands, half maps: 2.00 Å, less what the method puts in: 3.00 Å
      passed  noise substitution: as chance has it
      FAILED  vacuum: invents
    8 runs of the method; all took as long as 9.0
    """
    missing = [name for name in ("passed", "words", "resolution", "trusted") if name not in report]
    if missing:
        raise ValueError(f"the report lacks {missing}: make it with misr.trust_report")
    claim = resolution_words(report["resolution"])
    if bool(report["passed"].all()):
        head = f"passed every test, half maps: {claim}"
    elif bool(report["trusted"]):
        head = f"passed, but beyond the linear limit it is as good as its prior, half maps: {claim}"
    else:
        head = f"NOT TO BE TRUSTED as it stands, half maps: {claim}"
        if "resolution_corrected" in report:
            head += f", less what the method puts in: {resolution_words(report['resolution_corrected'])}"
    lines = [f"{report.attrs.get('pipeline', 'method')}: {head}"]
    for name, passed, words in zip(report["test"].values, report["passed"].values, report["words"].values, strict=True):
        lines.append(f"  {'passed' if passed else 'FAILED'}  {name}: {words}")
    runs, took = report.attrs.get("pipeline_runs"), report.attrs.get("time_in_runs")
    lines.append(f"{runs} runs of the method; all took as long as {took}")
    return "\n".join(lines)
