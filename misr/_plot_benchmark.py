"""Figure of a benchmark: resolution against dose, a panel for each specimen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._plot_style import FONTS, load_holoviews
from misr.benchmark.methods import METHODS
from misr.benchmark.ratio import resolution_curves
from misr.benchmark.settings import LIMITS

if TYPE_CHECKING:
    import holoviews as hv

__all__ = ["plot_benchmark"]

_TICKS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)


def plot_benchmark(
    table: xr.Dataset, *, value: str = "resolution_A", coarsest_A: float = 16.0, width: int = 330, height: int = 340
) -> hv.Layout:
    """Resolution against dose: the mean over seeds as a line, each seed as a dot, a panel for each specimen.

    Parameters
    ----------
    table : xarray.Dataset
        From `misr.benchmark.read_benchmark`.
    value : str, default "resolution_A"
        Or ``"aligned_resolution_A"``, ``"half_map_resolution_A"``.
    coarsest_A : float, default 16
        Å; where nothing is resolved the mark lies on this line.
    width, height : int
        Of a panel's frame, screen pixels.

    Returns
    -------
    holoviews.Layout
        Both axes logarithmic, finer resolution higher; the linear limit dashed. Failures have no mark.

    Raises
    ------
    ValueError
        If the table has no such column, or no image of any specimen.

    Examples
    --------
    >>> from misr.benchmark import table_from_rows
    >>> about = {"specimen": "glass", "method": "tcbf", "seed": 0}
    >>> table = table_from_rows([about | {"dose_e_per_A2": d, "resolution_A": r} for d, r in ((10, 5), (100, 3))])
    >>> len(plot_benchmark(table))
    1
    """
    hv = load_holoviews()
    curves = resolution_curves(table, value=value)
    specimens = curves["specimen"].values.tolist()
    panels = []
    for number, specimen in enumerate(specimens):
        last = number == len(specimens) - 1
        parts: list[Any] = []
        for name in curves["method_name"].values.tolist():
            parts += _method_parts(hv, curves.sel(specimen=specimen, method_name=name), name, coarsest_A)
        if not parts:
            raise ValueError(f"no method has an image of {specimen}: there is nothing to draw")
        panels.append(_panel(hv, parts, specimen, coarsest_A, width, height, legend=last))
    return hv.Layout(panels).opts(backend="bokeh", shared_axes=False).cols(len(panels))


def _method_parts(hv: Any, curve: xr.DataArray, name: str, coarsest: float) -> list[Any]:
    """A line of the means and a dot for each seed."""
    method = METHODS.get(name)
    colour, label = (method.colour, method.label) if method else ("black", name)
    frequency = 1 / curve.values
    known = np.isfinite(frequency)
    rows = known.any(axis=1)
    if not rows.any():
        return []
    doses = curve["dose"].values
    mean = np.nanmean(np.where(known, frequency, np.nan)[rows], axis=1)
    style: dict[str, Any] = {"color": colour, "line_width": 2.6 if name.startswith("fuse") else 1.6}
    limit = name in LIMITS
    if limit:
        style |= {"line_dash": "dashed" if name == LIMITS[0] else "dotted", "line_width": 1.3}
    axes: dict[str, Any] = {"kdims": ["dose"], "vdims": ["resolution"]}
    line = hv.Curve((doses[rows], _shown(mean, coarsest)), label=label, **axes).opts(backend="bokeh", **style)
    if limit:
        return [line]
    at = np.broadcast_to(doses[:, None], known.shape)[known]
    dots = hv.Scatter((at, _shown(frequency[known], coarsest)), **axes)
    return [line, dots.opts(backend="bokeh", color=colour, size=5, alpha=0.7, tools=["hover"])]


def _shown(frequency: np.ndarray, coarsest: float) -> np.ndarray:
    return np.minimum(1 / np.maximum(frequency, 1e-9), coarsest)


def _panel(
    hv: Any, parts: list[Any], title: str, coarsest: float, width: int, height: int, *, legend: bool
) -> hv.Overlay:
    ticks = [(tick, f"{tick:g}") for tick in _TICKS if tick < coarsest] + [(coarsest, "nothing")]
    return hv.Overlay(parts).opts(
        backend="bokeh",
        logx=True,
        logy=True,
        invert_yaxis=True,
        xlabel="dose (e/Å²)",
        ylabel="resolution (Å)",
        ylim=(0.85, coarsest * 1.15),
        yticks=ticks,
        title=title,
        frame_width=width,
        frame_height=height,
        show_legend=legend,
        legend_position="right",
        legend_opts={"background_fill_alpha": 0.5, "border_line_alpha": 0, "padding": 2, "spacing": -4},
        show_grid=True,
        gridstyle={"grid_line_color": "#eeeeee"},
        default_tools=["pan", "wheel_zoom", "save", "reset"],
        active_tools=[],
        toolbar="above",
        autohide_toolbar=True,
        framewise=True,
        fontsize=FONTS,
    )
