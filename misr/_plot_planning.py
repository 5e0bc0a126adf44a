"""Figure of a plan: the dose that a resolution takes, over defocus, for each scan step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._planning_table import given_dose
from misr._plot_style import FONTS, ORANGE, load_holoviews

if TYPE_CHECKING:
    import holoviews as hv

__all__ = ["plot_plan"]

_DIMS = ("defocus", "scan_step")
_GREY = "#777777"
_SHOWN = 30.0  # times the dose of the scan chosen: above, nobody chooses
_FINE, _COARSE = (0.62, 0.79, 0.93), (0.03, 0.15, 0.35)  # light to dark blue: told apart in grey


def plot_plan(plan: xr.Dataset, *, title: str | None = None, width: int = 420, height: int = 320) -> hv.Overlay:
    """Dose against defocus, a curve for each scan step, the scan chosen ringed.

    Parameters
    ----------
    plan : xarray.Dataset
        From `misr.plan_acquisition`.
    title : str, optional
        By default what is wanted and what it takes.
    width, height : int
        Size of the frame, screen pixels.

    Returns
    -------
    holoviews.Overlay
        Doses in e/Å², needed or, of a plan with a beam current, given; logarithmic; darker for coarser steps; hollow
        where ``status`` says that the cell does not serve; dashed the bound for fine steps and pixels.

    Raises
    ------
    ValueError
        If it is not a plan, or no cell has a finite dose.

    Examples
    --------
    >>> import misr
    >>> power = misr.phase_power_of_slab("carbon")
    >>> from misr.planning import plan_acquisition
    >>> plan = plan_acquisition(power, resolution_A=2.5, semiangle_mrad=10, defocus_A=[400, 800], scan_step_A=2)
    >>> [type(element).__name__ for element in plot_plan(plan)]
    ['Curve', 'Curve', 'Scatter', 'Scatter']
    """
    _check(plan)
    hv = load_holoviews()
    plan = plan.sortby("defocus").sortby("scan_step")
    best = float(plan["best_dose"])
    doses = given_dose(plan).values
    finite = doses[np.isfinite(doses)]
    bound = plan["dose_fine"].values
    top = _SHOWN * (best if np.isfinite(best) else finite.min())
    xlim = _margins(plan["defocus"].values)
    ylim = 0.8 * float(bound[np.isfinite(bound)].min()), min(top, 1.3 * float(finite.max()))
    positive = bool((plan["defocus"] > 0).all())
    return hv.Overlay(_parts(hv, plan, doses)).opts(
        backend="bokeh",
        xlabel="defocus, -C10 (Å)",
        ylabel=f"dose {'given' if 'dose_given' in plan else 'needed'} (e/Å²)",
        logy=True,
        logx=positive,
        xlim=xlim,
        ylim=ylim,
        xticks=_ticks(*xlim) if positive else None,
        yticks=_ticks(*ylim),
        title=_title(plan, best) if title is None else title,
        frame_width=width,
        frame_height=height,
        legend_position="right",
        legend_limit=1000,
        legend_opts={"border_line_alpha": 0, "padding": 2, "spacing": 0},
        show_grid=True,
        gridstyle={"grid_line_color": "#eeeeee"},
        default_tools=["pan", "wheel_zoom", "save", "reset"],
        active_tools=[],
        toolbar="above",
        autohide_toolbar=True,
        framewise=True,
        fontsize=FONTS,
    )


def _parts(hv: Any, plan: xr.Dataset, doses: np.ndarray) -> list[Any]:
    axes = {"kdims": ["defocus"], "vdims": ["dose"]}
    defocus, bound = plan["defocus"].values, _drawable(plan["dose_fine"].values)
    parts = [
        hv.Curve((defocus, bound), label="bound", **axes).opts(
            backend="bokeh", color=_GREY, line_width=1.5, line_dash="dashed"
        )
    ]
    serves = (plan["status"] == "found").transpose(*_DIMS).values
    for j, (step, colour) in enumerate(zip(plan["scan_step"].values, _blues(doses.shape[1]), strict=True)):
        dose = _drawable(doses[:, j])
        parts.append(
            hv.Curve((defocus, dose), label=f"step {step:.3g} Å", **axes).opts(
                backend="bokeh", color=colour, line_width=2
            )
        )
        for which, fill in ((serves[:, j], colour), (~serves[:, j], "white")):
            if np.any(which & np.isfinite(dose)):
                dots = hv.Scatter((defocus[which], dose[which]), **axes)
                parts.append(dots.opts(backend="bokeh", color=fill, line_color=colour, size=6, tools=["hover"]))
    if np.isfinite(plan["best_dose"]):
        i = int(np.argmin(np.abs(defocus - float(plan["best_defocus"]))))
        j = int(np.argmin(np.abs(plan["scan_step"].values - float(plan["best_scan_step"]))))
        ring = hv.Scatter([(defocus[i], doses[i, j])], **axes)
        parts.append(ring.opts(backend="bokeh", fill_alpha=0, line_color=ORANGE, line_width=2.5, size=16))
    return parts


def _margins(defocus: np.ndarray) -> tuple[float, float]:
    """Room for the outer marks, also where the axis is logarithmic."""
    if defocus[0] > 0:
        return float(defocus[0]) / 1.15, float(defocus[-1]) * 1.15
    room = 0.05 * float(np.ptp(defocus)) or 100.0
    return float(defocus[0]) - room, float(defocus[-1]) + room


def _ticks(low: float, high: float) -> list[float]:
    """Even on a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**decade for decade in decades for digit in (1, 2, 3, 5, 7)]
    return [tick for tick in found if low <= tick <= high]


def _drawable(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _blues(number: int) -> list[str]:
    shares = np.linspace(0, 1, number) if number > 1 else [1.0]
    mixed = [np.array(_FINE) + share * (np.array(_COARSE) - np.array(_FINE)) for share in shares]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in mixed]


def _title(plan: xr.Dataset, best: float) -> str:
    wanted = f"{plan.attrs['resolution_A']:.2f} Å in {plan.attrs['specimen']}"
    if not np.isfinite(best):
        return f"{wanted}: no scan here serves"
    return (
        f"{wanted}: {best:.3g} e/Å² at {float(plan['best_defocus']):.0f} Å, step {float(plan['best_scan_step']):.3g} Å"
    )


def _check(plan: Any) -> None:
    missing = [
        name for name in ("dose", "dose_fine", "status", "best_dose") if name not in getattr(plan, "data_vars", {})
    ]
    if missing:
        raise ValueError(f"expected a plan with {missing}: make it with misr.plan_acquisition")
    if not np.isfinite(plan["dose"].values).any():
        raise ValueError("no cell of the plan has a finite dose: misr.planning.plan_words(plan) says why")
