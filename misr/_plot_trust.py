"""The trust report as a figure: what is claimed, what the electrons allow, and what the method shows of nothing."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._curves import interval_of
from misr._plot_style import BLUE, FONTS, ORANGE, load_holoviews
from misr._trust_rows import statuses, verdict_words
from misr.resolution import resolution_words

if TYPE_CHECKING:
    import holoviews as hv

__all__ = ["plot_prior_share", "plot_trust"]

_LETTER = 9  # screen pixels of a title's letter, about
_GREY, _PALE, _GREEN = "#6b6b6b", "#b9b9b9", "#3a7d44"
_CURVES = (
    # name, label, colour, dash, width
    ("frc", "half maps", BLUE, "solid", 2.5),
    ("linear_limit", "linear limit", _GREEN, "dashed", 1.8),
    ("frc_corrected", "half maps, corrected", BLUE, "dotted", 2.0),
    ("frc_substituted", "random phases beyond the line", ORANGE, "solid", 2.5),
    ("frc_vacuum", "vacuum", _GREY, "solid", 1.5),
    ("frc_shuffled", "shuffled scan", _PALE, "solid", 1.5),
)
_BANDS = ("frc", "frc_substituted", "frc_vacuum", "frc_shuffled")  # all of them would hide one another
_SQUARED = ("frc_truth", "against the truth, squared", "#000000", "dotdash", 1.5)


def plot_trust(report: xr.Dataset, *, width: int = 420, height: int = 320) -> hv.Layout:
    """A trust report: the curves, the prior's share, and the tests passed or failed.

    Parameters
    ----------
    report : xarray.Dataset
        From `misr.trust_report`.
    width, height : int
        Size of a frame, screen pixels.

    Returns
    -------
    holoviews.Layout
        Curves over the spatial frequency, the share of the spectral SNR above the linear limit with its 95 %
        interval, and a line per test. Half maps whose claim F is true correlate with the truth as √F, so that curve is
        drawn squared.

    Raises
    ------
    ValueError
        If it is not such a report.

    Examples
    --------
    >>> q = {"frequency": [0.1, 0.2], "n_independent": ("frequency", [50.0, 90.0])}
    >>> names = ("frc", "linear_limit", "share", "share_low", "share_high")
    >>> rings = {name: ("frequency", [0.9, 0.2]) for name in names}
    >>> report = xr.Dataset({**rings, "passed": ("test", [True]), "words": ("test", ["nothing is resolved"]),
    ...     "resolution": ((), 7.0, {"status": "crossed"}), "trusted": True, "beyond": 0.15},
    ...     coords={"test": ["vacuum"], **q})
    >>> len(plot_trust(report))
    3
    """
    hv = load_holoviews()
    missing = [name for name in ("frc", "linear_limit", "share", "passed", "words", "beyond") if name not in report]
    if missing:
        raise ValueError(f"the report lacks {missing}: make it with misr.trust_report")
    parts = [_curves(hv, report, width), plot_prior_share(report), _table(hv, report, width)]
    parts[0] = parts[0].opts(backend="bokeh", frame_width=width, frame_height=height)
    parts[1] = parts[1].opts(backend="bokeh", frame_width=width, frame_height=height)
    parts[2] = parts[2].opts(backend="bokeh", frame_width=width, frame_height=44 * report.sizes["test"])
    return hv.Layout(parts).opts(backend="bokeh", shared_axes=False, merge_tools=False).cols(2)


def plot_prior_share(found: xr.Dataset) -> hv.Overlay:
    """The share of the spectral SNR that lies above the linear limit, ring by ring, with its 95 % interval.

    Parameters
    ----------
    found : xarray.Dataset
        From `misr.prior_share`, or a trust report.

    Returns
    -------
    holoviews.Overlay
        0: the electrons can have supplied all of it; 1: nothing of it.

    Raises
    ------
    ValueError
        If it holds no share.

    Examples
    --------
    >>> coords = {"frequency": [0.1, 0.2], "n_independent": ("frequency", [50.0, 90.0])}
    >>> rings = {name: ("frequency", [0.0, 0.2]) for name in ("share", "share_low", "share_high")}
    >>> type(plot_prior_share(xr.Dataset(rings, coords=coords))).__name__
    'Overlay'
    """
    hv = load_holoviews()
    missing = [name for name in ("share", "share_low", "share_high") if name not in found]
    if missing:
        raise ValueError(f"there is no {missing} here: make it with misr.prior_share or misr.trust_report")
    q = found["frequency"].values.astype(float)
    share, low, high = (found[name].values.astype(float) for name in ("share", "share_low", "share_high"))
    axes: dict[str, Any] = {"kdims": ["frequency"], "vdims": ["share"]}
    band = hv.Area((q, low, high), vdims=["share", "upper"], kdims=["frequency"]).opts(
        backend="bokeh", color=ORANGE, alpha=0.18, line_alpha=0
    )
    line = hv.Curve((q, share), **axes).opts(backend="bokeh", color=ORANGE, line_width=2.5)
    dots = hv.Scatter((q, share), **axes).opts(backend="bokeh", color=ORANGE, size=4)
    return hv.Overlay([band, line, dots]).opts(
        backend="bokeh",
        xlabel="spatial frequency (1/Å)",
        ylabel="share of the spectral SNR",
        title="above the linear limit: the prior's share",
        xlim=(0, float(q[-1])),
        ylim=(-0.03, 1.03),
        **_frame(),
    )


def _frame() -> dict[str, Any]:
    return {
        "show_grid": True,
        "gridstyle": {"grid_line_color": "#eeeeee"},
        "default_tools": ["pan", "wheel_zoom", "save", "reset"],
        "active_tools": [],
        "toolbar": "above",
        "autohide_toolbar": True,
        "framewise": True,
        "fontsize": FONTS,
    }


def _curves(hv: Any, report: xr.Dataset, width: int) -> Any:
    q = report["frequency"].values.astype(float)
    axes: dict[str, Any] = {"kdims": ["frequency"], "vdims": ["FRC"]}
    parts = [hv.HLine(0).opts(backend="bokeh", color="#bbbbbb", line_width=1)]
    drawn = [one for one in reversed(_CURVES) if one[0] in report]
    if "frc_truth" in report:
        drawn.append(_SQUARED)
    lowest = 0.0
    for name, label, colour, dash, thick in drawn:
        values = report[name].values.astype(float)
        if name == "frc_truth":
            values = np.sign(values) * values**2
        lowest = min(lowest, float(np.nanmin(values)))
        if (interval := interval_of(report[name])) is not None and name in _BANDS:
            low, high = (end.values.astype(float) for end in interval)
            band = hv.Area((q, low, high), kdims=["frequency"], vdims=["FRC", "upper"])
            parts.append(band.opts(backend="bokeh", color=colour, alpha=0.15, line_alpha=0))
        options = {"color": colour, "line_dash": dash, "line_width": thick}
        parts.append(hv.Curve((q, values), label=label, **axes).opts(backend="bokeh", **options))
    parts.append(
        hv.VLine(float(report["beyond"])).opts(backend="bokeh", color=ORANGE, line_width=1.2, line_dash="dotted")
    )
    title = f"half maps claim {resolution_words(report['resolution'])}"
    return hv.Overlay(parts).opts(
        backend="bokeh",
        xlabel="spatial frequency (1/Å)",
        ylabel="FRC",
        title=_wrapped(f"{report.attrs.get('pipeline', 'method')}: {title}", width),
        xlim=(0, float(q[-1])),
        ylim=(min(-0.15, lowest - 0.05), 1.05),
        legend_position="top_right",
        legend_opts={"background_fill_alpha": 0.6, "border_line_alpha": 0, "padding": 2, "spacing": -4},
        **_frame(),
    )


def _table(hv: Any, report: xr.Dataset, width: int) -> Any:
    """A line per test: bokeh's own tables wrap no words, so the text is drawn."""
    names = [str(name) for name in report["test"].values]
    rows = np.arange(len(names))[::-1]
    status = statuses(report)
    parts = []
    for row, name in zip(rows, names, strict=True):
        mark = status[name]
        colour = {"passed": _GREEN, "FAILED": ORANGE}.get(mark, _GREY)
        text = f"{mark}   {name}\n{_short(report, name)}"
        parts.append(
            hv.Text(0.0, float(row), text, halign="left", valign="center").opts(
                backend="bokeh", color=colour, text_font_size="8.5pt"
            )
        )
    verdict = _wrapped(verdict_words(report), width)
    return hv.Overlay(parts).opts(
        backend="bokeh", xaxis=None, yaxis=None, xlim=(-0.01, 1), ylim=(-0.7, len(names) - 0.3), title=verdict,
        show_frame=False, toolbar=None, default_tools=[], fontsize=FONTS, framewise=True,
    )  # fmt: skip


def _wrapped(title: str, width: int) -> str:
    """A title in lines that fit over a frame: bokeh cuts off what does not."""
    return textwrap.fill(title, max(20, width // _LETTER))


_SHORT = {
    "noise substitution": "correlation beyond the line {value:.3f}, by chance below {limit:.3f}",
    "prior share": "{value:.0%} of the spectral SNR significantly above the linear limit",
    "vacuum": "correlation {value:.3f}, by chance below {limit:.3f}",
    "shuffled scan": "correlation {value:.3f}, by chance below {limit:.3f}",
    "recorded electrons": "{value:.0%} of the linear image's gain lost by what unseen electrons deny",
    "efficiency": "{value:.0%} less foretold of unseen electrons than by the linear image",
    "truth": "{value:.0%} of the claimed spectral SNR is not the specimen's",
}


def _short(report: xr.Dataset, name: str) -> str:
    row = report.sel(test=name)
    if name not in _SHORT or "value" not in report or not np.isfinite(float(row["value"])):
        return str(row["words"].values)
    words = _SHORT[name].format(value=float(row["value"]), limit=float(row["limit"]))
    return f"{words} (p = {float(row['p_value']):.2g})"
