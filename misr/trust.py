"""Can an image be trusted? Tests of any reconstruction method on the electrons it was made from, and one report.

Half maps say how well an image repeats. A method that puts the same invention into both halves repeats it very well,
so for anything learned (or otherwise clever) more is asked here: what does it resolve where the specimen's phases are
random (`noise_substitution`), or where there is no specimen at all; how much of what it claims lies above what its
electrons allow a linear image (`prior_share`); does it foretell electrons that it has not seen?
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from misr._curves import named_curve
from misr._provenance import append_history, describe_rng
from misr._trust_controls import Pipeline, central_crop, linear_image, shuffled_halves, vacuum_halves
from misr._trust_prior import prior_share
from misr._trust_rows import (
    Row,
    control_row,
    electrons_rows,
    prior_row,
    statuses,
    substitution_row,
    verdict_words,
)
from misr._trust_substitution import default_cut, noise_substitution, rings_of, trust_rings
from misr._trust_truth import checked_truth, covers, truth_row
from misr.aberrations import aberrations_of
from misr.dose import split_counts
from misr.resolution import frc_resolution, resolution_words

__all__ = ["noise_substitution", "prior_share", "trust_report", "trust_words"]


@dataclass
class _Counted:
    """A pipeline, how often it ran and for how long; the bar moves with every run."""

    pipeline: Pipeline
    bar: Any
    runs: int = 0
    seconds: float = 0.0

    def __call__(self, cube: xr.DataArray) -> Any:
        start = time.perf_counter()
        result = self.pipeline(cube)
        self.seconds += time.perf_counter() - start
        self.runs += 1
        self.bar.update()
        return result


def trust_report(
    cube: xr.DataArray,
    pipeline: Pipeline,
    *,
    truth: xr.DataArray | None = None,
    limit: xr.DataArray | None = None,
    beyond: float | None = None,
    ring_width: float | str | None = None,
    max_positions: int | None = 4096,
    threshold: str | float = "half-bit",
    tolerance: float = 0.1,
    alpha: float = 0.01,
    progress: bool = False,
    rng: Any = None,
) -> xr.Dataset:
    """Run every trust test on a method and a cube: one labelled report, a row per test.

    The tests: *noise substitution* (`noise_substitution`), *prior share* (`prior_share` of the half maps), *vacuum*
    (the cube's mean pattern at every position, with counting noise) and *shuffled scan* (the recorded patterns in
    random places), in both of which nothing must be resolved, *recorded electrons* (what one half's image adds to the
    linear fusion's, and the other half's image too, must not be denied by the other half's electrons), *efficiency*
    (whether it foretells them as well as the linear fusion's image does) and, with the truth, *truth* (the half maps
    must not claim more than correlates with it, shift and sign of the image being found first).

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube of whole counts, aberrations known (`misr.calibrate_cube`). A crop will do: the pipeline runs 8
        times on scans like it, at half its dose.
    pipeline : callable
        From a cube to an image with dims ``("y", "x")``, or a Dataset that holds one as ``phase``.
    truth : xarray.DataArray, optional
        The specimen's phase, rad, over the scanned field or at least half of it along each axis, where it is known.
    limit : xarray.DataArray, optional
        Half-map curve that the electrons allow a linear image (`misr.expected_frc`); by default measured, with the
        linear fusion of the same halves. For a coarse scan: `misr.expected_frc_of_scan`.
    beyond : float, optional
        1/Å, see `noise_substitution`; by default a little before what the half maps of the method or of the linear
        fusion claim, whichever comes first.
    ring_width : float or "auto", optional
        1/Å, see `noise_substitution`.
    max_positions : int or None, default 4096
        Made-up scans (random phases, vacuum, shuffled) and the comparison with the recorded electrons take no more
        scan positions than this, from the middle; the half maps take all.
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
        Over ``test``: ``value`` and the ``limit`` it should stay below, ``p_value``, ``status``, ``passed`` (status is
        "passed") and ``words``. The status is "passed"; "FAILED"; "noted", for what may be honest (an excess over the
        linear limit, an efficiency below the linear fusion's); "refused", where the method gave no image of a scan
        without a specimen; or "not judged" (see `noise_substitution`). Over ``frequency`` (1/Å), each with its
        interval where it has one: ``frc`` (half maps), ``frc_substituted``, ``frc_corrected``, ``linear_limit``,
        ``share`` with ``share_low`` and ``share_high``, ``frc_vacuum``, ``frc_shuffled``, and with the truth
        ``frc_truth``. Scalars ``beyond``, ``resolution``, ``resolution_corrected``, ``resolution_vacuum`` and
        ``resolution_shuffled`` (Å; "unresolved" as should be), ``chi2`` with ``chi2_stderr`` and ``deviance`` with
        ``deviance_expected`` (`misr.count_consistency` on unseen electrons: whether a thin phase object explains them
        at all), and ``trusted``: no test failed. Neither a refusal nor what was not judged counts for or against;
        `trust_words` names them in its headline.
        ``attrs["pipeline_runs"]`` counts the runs, ``attrs["time_in_runs"]`` is the time taken in units of one run.
        `trust_words` prints it, `misr.plot.plot_trust` draws it.

    Raises
    ------
    ValueError
        As `misr.half_maps` and `noise_substitution`, or if the truth does not fit the scan. On the scans without a
        specimen a ValueError of the pipeline is its refusal; any other error is passed on.

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
    part = central_crop(cube, max_positions)
    given = None if truth is None else checked_truth(truth, cube, ring_width=trust_rings(part, ring_width))
    level = alpha / (5 if truth is None else 6)
    steps = _progress(8, progress)
    counted = _Counted(pipeline, steps)
    width = "auto" if ring_width is None else ring_width
    halves = rings_of(part, half_maps(cube, counted, rng=split, ring_width=width), ring_width)
    plain = halves["frc"]
    linear = half_maps(cube, linear_image, rng=split, ring_width=float(plain.attrs["ring_width"]))
    if beyond is None:
        # what a method claims beyond the linear fusion is what has to be tested
        beyond = min(default_cut(one["frc"], frc_resolution(one["frc"], threshold)) for one in (halves, linear))
    specimen = given if given is not None and covers(given, cube) else None
    substituted = noise_substitution(
        cube, counted, beyond=beyond, phase=specimen, halves=halves, max_positions=max_positions, threshold=threshold,
        alpha=level, rng=substituting,
    )  # fmt: skip
    bound = linear["frc"] if limit is None else limit
    share = prior_share(plain, bound, tolerance=tolerance, alpha=level, warn=False)
    rows = [substitution_row(substituted), prior_row(share)]
    for name, curve, made, seed in (
        ("vacuum", "frc_vacuum", vacuum_halves, empty),
        ("shuffled scan", "frc_shuffled", shuffled_halves, shuffling),
    ):
        rows.append(control_row(name, curve, made(part, rng=seed), counted, plain, alpha=level, threshold=threshold))
    unseen = central_crop(split_counts(cube, rng=split)[1], max_positions)
    rows += electrons_rows(halves, linear, unseen, alpha=level)
    if given is not None:
        rows.append(truth_row(halves, given, tolerance=tolerance, alpha=level))
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
            truth="given" if truth is not None else None, max_positions=max_positions, rng=describe_rng(rng),
        ),
    }  # fmt: skip
    if not bool(share["passed"]):
        warnings.warn(share.attrs["words"], UserWarning, stacklevel=2)
    return result


def _progress(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="trust_report", unit="run", disable=not shown)


def _assembled(rows: list[Row], substituted: xr.Dataset, share: xr.Dataset) -> xr.Dataset:
    one = {"units": "1"}
    curves = {name: named_curve(substituted[name], name) for name in ("frc", "frc_substituted", "frc_corrected")}
    curves["linear_limit"] = named_curve(share["limit"], "linear_limit")
    curves |= {name: named_curve(share[name], name) for name in ("share", "share_low", "share_high")}
    scalars = {name: substituted[name] for name in ("beyond", "resolution", "resolution_corrected")}
    for row in rows:
        curves |= row.curves
        scalars |= row.scalars
    table = {
        "value": ("test", [row.value for row in rows], one),
        "limit": ("test", [row.limit for row in rows], one),
        "p_value": ("test", [row.p_value for row in rows], one),
        "passed": ("test", [row.status == "passed" for row in rows]),
        "status": ("test", [row.status for row in rows]),
        "words": ("test", [row.words for row in rows]),
    }
    trusted = xr.DataArray(all(row.status != "FAILED" for row in rows))
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
    status = statuses(report)
    if bool(report["trusted"]):
        head = f"{verdict_words(report)}, half maps: {claim}"
    else:
        head = f"NOT TO BE TRUSTED as it stands, half maps: {claim}"
        if "resolution_corrected" in report:
            head += f", less what the method puts in: {resolution_words(report['resolution_corrected'])}"
    lines = [f"{report.attrs.get('pipeline', 'method')}: {head}"]
    lines += [
        f"  {status[str(name)]}  {name}: {words}"
        for name, words in zip(report["test"].values, report["words"].values, strict=True)
    ]
    runs, took = report.attrs.get("pipeline_runs"), report.attrs.get("time_in_runs")
    lines.append(f"{runs} runs of the method; all took as long as {took}")
    return "\n".join(lines)
