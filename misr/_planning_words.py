"""A plan in words."""

from __future__ import annotations

import numpy as np
import xarray as xr

from misr._planning_table import given_dose

__all__ = ["plan_words"]

_LEAK = 0.05  # of the power in the image
_CAUTION = 4.0  # times as uneven as speckle: spots


def plan_words(plan: xr.Dataset) -> str:
    """A plan in a paragraph: what to set at the microscope, what it costs, and what else would do.

    Parameters
    ----------
    plan : xarray.Dataset
        From `plan_acquisition`.

    Returns
    -------
    str
        Sentences; where nothing serves, why.

    Raises
    ------
    ValueError
        If it is not a plan.

    Examples
    --------
    >>> import misr
    >>> power = misr.phase_power_of_slab("carbon", thickness_A=30)
    >>> from misr.planning import plan_acquisition
    >>> plan = plan_acquisition(power, resolution_A=0.9, semiangle_mrad=10, defocus_A=1000, scan_step_A=2)
    >>> plan_words(plan)
    'No scan tried shows 0.90 Å in 30 Å of carbon: beyond the band limit of 0.98 Å; open the aperture.'
    """
    missing = [name for name in ("dose", "status", "best_dose") if name not in getattr(plan, "data_vars", {})]
    if missing:
        raise ValueError(f"expected a plan with {missing}: make it with misr.plan_acquisition")
    wanted = f"{plan.attrs['resolution_A']:.2f} Å in {plan.attrs['specimen']}"
    if not np.isfinite(plan["best_dose"]):
        return f"No scan tried shows {wanted}: {_why_not(plan)}."
    return " ".join(part for part in (_setting(plan, wanted), _reach(plan), _effort(plan), _spots(plan)) if part)


def _setting(plan: xr.Dataset, wanted: str) -> str:
    dose, defocus, step = (float(plan[name]) for name in ("best_dose", "best_defocus", "best_scan_step"))
    against = "against truth" if plan.attrs["against"] == "truth" else "between half maps"
    pixel = max(plan.attrs["det_step_mrad"])
    planned = f"planned with {pixel:.2g} mrad"
    return (
        f"To see {wanted} (FRC {plan.attrs['threshold']} {against}): {_number(dose)} e/Å², C10 {-defocus:.0f} Å "
        f"(defocus {defocus:.0f} Å), scan step {step:.3g} Å ({_number(dose * step**2)} electrons per position), "
        f"detector pixel at most {float(plan['widest_det_step']):.2g} mrad ({planned}), semi-angle "
        f"{plan.attrs['semiangle_mrad']:.3g} mrad."
    )


def _reach(plan: xr.Dataset) -> str:
    """What other steps and defoci cost, and the bounds."""
    most = (1 + plan.attrs["tolerance"]) * float(plan["best_dose"])
    good = given_dose(plan).where(plan["status"] == "found") <= most
    at_step = good.sel(scan_step=float(plan["best_scan_step"]))
    defoci = plan["defocus"].values[at_step.values]
    here = plan.sel(defocus=float(plan["best_defocus"]), scan_step=float(plan["best_scan_step"]))
    text = ""
    if float(here["dose"]) < float(plan["best_dose"]) * (1 - 1e-6):
        text = f"{_number(float(here['dose']))} e/Å² would do: the shortest dwell gives more. "
    text += (
        f"Defocus from {defoci.min():.0f} to {defoci.max():.0f} Å serves as well at that step. "
        if len(defoci) > 1
        else ""
    )
    text += (
        f"The bound for fine steps and pixels is {_number(float(here['dose_fine']))} e/Å² there, that of ideal phase "
        f"contrast {_number(float(plan['dose_ideal']))}; one position lights {float(here['patch']):.0f} Å."
    )
    if float(here["alias_share"]) > _LEAK:
        text += (
            f" {100 * float(here['alias_share']):.0f} % of what the image holds there belongs to other frequencies "
            "that the step folds on it; half maps count it as signal."
        )
    bad = sorted({str(words) for words in np.unique(plan["status"].values)} - {"found"})
    return text + (f" Elsewhere in the table: {', '.join(bad)}." if bad else "")


def _effort(plan: xr.Dataset) -> str:
    here = plan.sel(defocus=float(plan["best_defocus"]), scan_step=float(plan["best_scan_step"]))
    parts = []
    if "positions" in plan:
        parts.append(f"{float(here['positions']):.0f} positions, {float(here['electrons']):.2g} electrons in the field")
        parts.append(f"{100 * float(here['edge_share']):.0f} % of it along the border, where fewer electrons see it")
    if "dwell" in plan:
        parts.append(f"dwell {float(here['dwell']) * 1e6:.3g} µs at {plan.attrs['beam_current_pA']:g} pA")
    if "duration" in plan:
        parts.append(f"{float(here['duration']):.3g} s for the scan")
    if not parts:
        return ""
    text = ", ".join(parts)
    return text[0].upper() + text[1:] + "."


def _spots(plan: xr.Dataset) -> str:
    spots = plan.attrs.get("concentration", 1.0)
    if not spots > _CAUTION:
        return ""
    return (
        f"Its power there lies in spots ({spots:.0f} times as uneven as amorphous matter's): the dose is that of "
        "a prior that knows only the ring's mean; one that sees the lattice, prior='local', needs less."
    )


def _why_not(plan: xr.Dataset) -> str:
    words, times = np.unique(plan["status"].values, return_counts=True)
    worst = str(words[np.argmax(times)])
    least, needed = (float(dose.min()) for dose in (given_dose(plan), plan["dose"]))
    must = "would be needed" if least <= needed * (1 + 1e-6) else "is what the shortest dwell gives"
    return {
        "beyond the band limit": f"beyond the band limit of {1 / plan.attrs['band_limit']:.2f} Å; open the aperture",
        "detector pixel too coarse": "detector pixel too coarse for these defoci; take a finer one, or defocus less",
        "aliases cannot be told apart": "the views cannot tell these steps' aliases apart; defocus more, or scan finer",
        "illuminated patches leave gaps": "illuminated patches leave gaps; defocus more, or take smaller steps",
        "above the dose limit": f"at least {_number(least)} e/Å² {must}, above the dose limit",
    }.get(worst, worst)


def _number(value: float) -> str:
    return f"{value:.0f}" if 100 <= value < 1e5 else f"{value:.2g}"
