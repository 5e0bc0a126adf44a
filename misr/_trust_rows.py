"""The lines of a trust report: what each test found, whether it was passed, and what that means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import xarray as xr

from misr._curves import named_curve
from misr._trust_controls import Pipeline, run_pair, scan_pixel
from misr._trust_electrons import denied, foretell
from misr._trust_statistics import chance_of
from misr._trust_substitution import on_rings
from misr.resolution import fourier_ring_correlation, frc_resolution, resolution_words

__all__ = [
    "Row",
    "control_row",
    "electrons_rows",
    "judged",
    "prior_row",
    "statuses",
    "substitution_row",
    "verdict_words",
]

PASSED, FAILED, NOTED, REFUSED, UNJUDGED = "passed", "FAILED", "noted", "refused", "not judged"
_MODEL_FAILS = 1.05  # chi2 per datum


@dataclass
class Row:
    """One line of the report. Only "FAILED" keeps a method from being trusted: what is "noted" may be honest."""

    name: str
    status: str
    words: str
    value: float = math.nan
    limit: float = math.nan
    p_value: float = math.nan
    curves: dict[str, xr.DataArray] = field(default_factory=dict)
    scalars: dict[str, xr.DataArray] = field(default_factory=dict)


def judged(passed: bool) -> str:
    """The status of a test that could be made."""
    return PASSED if passed else FAILED


def substitution_row(found: xr.Dataset) -> Row:
    """From `misr.noise_substitution`."""
    return Row(
        "noise substitution",
        str(found.attrs["status"]),
        found.attrs["words"],
        value=float(found["correlation"]),
        limit=float(found["correlation_limit"]),
        p_value=float(found["p_value"]),
    )


def prior_row(found: xr.Dataset) -> Row:
    """From `misr.prior_share`; an excess may be honest, so it is told, and the other tests decide."""
    return Row(
        "prior share",
        PASSED if bool(found["passed"]) else NOTED,
        found.attrs["words"],
        value=float(found["significant_share"]),
        limit=float(found.attrs["tolerance"]),
        p_value=float(found["p_value"]),
    )


def control_row(
    name: str,
    curve: str,
    halves: tuple[xr.DataArray, xr.DataArray],
    pipeline: Pipeline,
    plain: xr.DataArray,
    *,
    alpha: float,
    threshold: str | float,
) -> Row:
    """Half maps of a scan without a specimen."""
    width = float(plain.attrs["ring_width"])
    try:
        first, second, window = run_pair(pipeline, halves)
    except ValueError as error:
        # a method may refuse a scan in which there is nothing; anything else that goes wrong is the caller's to see
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Row(name, REFUSED, f"the method gives no image, which says nothing for or against it: {reason}")
    # rings of the whole field may be narrower than a frequency pixel of its middle
    width = max(width, 1 / min(first.shape[i] * step for i, step in enumerate(scan_pixel(first))))
    chance = chance_of(first, second, ring_width=width, window=window, alpha=alpha)
    measured = fourier_ring_correlation(first, second, ring_width=width, window=window)
    passed = chance.p_value >= alpha
    held = measured.fillna(0.0).assign_attrs(measured.attrs)
    resolution = frc_resolution(held, threshold)
    words = "nothing is resolved, as should be"
    if not passed:
        words = (
            f"with no specimen there, both halves show the same up to {chance.highest:.3g} 1/Å (half maps: "
            f"{resolution_words(resolution)}): the method invents it"
        )
    return Row(
        name,
        judged(passed),
        words,
        chance.value,
        chance.limit,
        chance.p_value,
        {curve: named_curve(on_rings(measured, plain), curve)},
        {curve.replace("frc_", "resolution_"): resolution},
    )


def electrons_rows(
    halves: xr.Dataset, linear: xr.Dataset, unseen: xr.DataArray, *, alpha: float, lacking: float = 0.1
) -> list[Row]:
    """The first half's image on the second half's electrons: what they deny, and how well it uses its own."""
    found = foretell(halves["first"], linear["first"], unseen, tolerance=lacking)
    words = (
        f"the image of one half gains {found.gain:.3g} nats per electron over vacuum on the other half's electrons, "
        f"the linear fusion's {found.linear_gain:.3g}"
    )
    scalars = {
        name: xr.DataArray(getattr(found, name), attrs={"units": "1" if name.startswith("chi2") else "1/electron"})
        for name in ("chi2", "chi2_stderr", "deviance", "deviance_expected")
    }
    explained = f"; chi2 per datum {found.chi2:.3f} ± {found.chi2_stderr:.3f}"
    if found.chi2 > _MODEL_FAILS + 3 * found.chi2_stderr:
        explained += ": more than counting noise, so that image or thin phase object fails here"
    less = found.p_value < alpha
    told = f"{words}: it uses its electrons less well" if less else words
    efficiency = Row("efficiency", NOTED if less else PASSED, told, found.lacking, lacking, found.p_value)
    against = None
    if less:
        pairs = [(one["first"], one["second"]) for one in (halves, linear)]
        against = denied(pairs[0], pairs[1], unseen, tolerance=lacking)
    failed = against is not None and against.p_value < alpha
    verdict = "nothing that it shows twice is denied by the electrons"
    if failed and against is not None:
        verdict = (
            f"what it adds to the linear image repeats (correlation {against.repeats:.2f}) and costs "
            f"{against.lost:.0%} of the gain: it holds what the electrons deny"
        )
    lost, p_value = (against.lost, against.p_value) if against is not None else (0.0, 1.0)
    name = "recorded electrons"
    return [Row(name, judged(not failed), verdict + explained, lost, lacking, p_value, scalars=scalars), efficiency]


def statuses(report: xr.Dataset) -> dict[str, str]:
    """Status of each test of a report."""
    names = [str(name) for name in report["test"].values]
    if "status" in report:
        return dict(zip(names, map(str, report["status"].values), strict=True))
    return {name: judged(bool(passed)) for name, passed in zip(names, report["passed"].values, strict=True)}


def verdict_words(report: xr.Dataset) -> str:
    """What a report comes to, in one phrase: what was not tested is named along with what was."""
    found = statuses(report)
    if not bool(report["trusted"]):
        return "not to be trusted as it stands"
    passed = sum(status == PASSED for status in found.values())
    head = "passed every test" if passed == len(found) else f"passed {passed} of {len(found)} tests"
    if found.get("prior share") in (NOTED, FAILED):
        head = f"{head}, but beyond the linear limit it is as good as its prior"
    if found.get("efficiency") == NOTED:
        head += ", uses its electrons less well than the linear fusion"
    for status, says in ((REFUSED, "NOT TESTED, the method refused"), (UNJUDGED, "NOT JUDGED")):
        names = [name for name, one in found.items() if one == status]
        head += f"; {says}: {', '.join(names)}" if names else ""
    return head
