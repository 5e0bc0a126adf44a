"""Figures of the report (matplotlib), as text that goes into the page itself."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr.benchmark.methods import METHODS
from misr.benchmark.ratio import resolution_curves
from misr.benchmark.settings import LIMITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves_figure", "images_figure", "inline_png", "inline_svg"]

_COARSEST = 16.0  # Å: drawn as the place of "nothing resolved"
_TICKS = (1, 1.5, 2, 3, 4, 6, 10)


def curves_figure(table: xr.Dataset, *, value: str = "resolution_A") -> Figure:
    """Resolution against dose, a panel for each specimen: mean over seeds, each seed as a dot.

    Parameters
    ----------
    table : xarray.Dataset
        From `misr.benchmark.read_benchmark`.
    value : str
        Column drawn.

    Returns
    -------
    matplotlib.figure.Figure
        Where nothing is resolved, the marks lie on the lowest line; a cross below it is a failure.

    Examples
    --------
    >>> curves_figure(table).savefig("curves.png")  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    curves = resolution_curves(table, value=value)
    specimens = curves["specimen"].values.tolist()
    figure = Figure(figsize=(5.2 * len(specimens), 4.6), layout="constrained")
    row = figure.subplots(1, len(specimens), squeeze=False, sharey=True)[0]
    for axes, specimen in zip(row, specimens, strict=True):
        for name in curves["method_name"].values.tolist():
            _draw_method(axes, curves.sel(specimen=specimen, method_name=name), name)
        _draw_failures(axes, table, specimen)
        axes.set(xscale="log", yscale="log", xlabel="dose (e/Å²)", ylim=(_COARSEST * 1.35, 0.85))
        axes.set_title(specimen, fontsize=10)
        axes.set_yticks([*_TICKS, _COARSEST], [*map(str, _TICKS), "nothing"])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    row[0].set_ylabel("resolution (Å)")
    handles: dict[str, Any] = {}
    for axes in row:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=2 * len(specimens),
        fontsize=8,
        frameon=False,
    )
    return figure


def _draw_method(axes: Axes, curve: xr.DataArray, name: str) -> None:
    method = METHODS.get(name)
    colour, label = (method.colour, method.label) if method else ("black", name)
    doses = curve["dose"].values
    known = np.isfinite(1 / curve.values)
    if not known.any():
        return
    frequency = np.where(known, 1 / curve.values, np.nan)
    mean = np.nanmean(frequency[known.any(axis=1)], axis=1)
    style: dict[str, Any] = {"color": colour, "linewidth": 1.6}
    if name in LIMITS:
        style |= {"linestyle": "--" if name == LIMITS[0] else ":", "linewidth": 1.2}
    elif name.startswith("fuse"):
        style["linewidth"] = 2.4
    axes.plot(doses[known.any(axis=1)], _shown(mean), label=label, **style)
    if name not in LIMITS:
        at = np.broadcast_to(doses[:, None], frequency.shape)[known]
        axes.plot(at, _shown(frequency[known]), "o", color=colour, markersize=3.5, alpha=0.7)


def _shown(frequency: np.ndarray) -> np.ndarray:
    return np.minimum(1 / np.maximum(frequency, 1e-9), _COARSEST)


def _draw_failures(axes: Axes, table: xr.Dataset, specimen: str) -> None:
    failed = (table["status"].values == "failed") & (table["specimen"].values == specimen)
    for name in dict.fromkeys(table["method"].values[failed].tolist()):
        doses = table["dose_e_per_A2"].values[failed & (table["method"].values == name)]
        colour = METHODS[name].colour if name in METHODS else "black"
        axes.plot(doses, np.full(doses.size, _COARSEST * 1.2), "x", color=colour, markersize=7, clip_on=False)


def images_figure(folder: Path, table: xr.Dataset, specimen: str, dose: float, truth: xr.DataArray) -> Figure:
    """The truth and each method's image at one dose, each with its own grey scale, failures in words.

    Parameters
    ----------
    folder : path
        Of the benchmark.
    table : xarray.Dataset
        Its table.
    specimen : str
        Which.
    dose : float
        e/Å².
    truth : xarray.DataArray
        Of the first seed.

    Returns
    -------
    matplotlib.figure.Figure
        Of the first seed.

    Examples
    --------
    >>> images_figure(folder, table, "amorphous", 100.0, truth).savefig("images.png")  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    rows = _rows_of(table, specimen, dose)
    columns = min(5, len(rows) + 1)
    lines = math.ceil((len(rows) + 1) / columns)
    figure = Figure(figsize=(2.5 * columns, 2.85 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    _draw_image(grid[0], truth.values, "truth")
    for axes, number in zip(grid[1:], rows, strict=False):
        name = str(table["method"].values[number])
        label = METHODS[name].label if name in METHODS else name
        file = folder / "cells" / f"{table['cell'].values[number]}.npy"
        if file.is_file():
            _draw_image(axes, np.load(file), f"{label}\n{_resolution(table, number)}")
            continue
        status = str(table["status"].values[number])
        axes.set_title(label, fontsize=8)
        axes.text(0.5, 0.5, status, ha="center", va="center", color="#b00000", fontsize=9, transform=axes.transAxes)
    return figure


def _rows_of(table: xr.Dataset, specimen: str, dose: float) -> list[int]:
    here = (table["specimen"].values == specimen) & (table["dose_e_per_A2"].values == dose)
    here &= (table["seed"].values == table["seed"].values[0]) & (table["status"].values != "limit")
    return np.flatnonzero(here).tolist()


def _resolution(table: xr.Dataset, number: int) -> str:
    value = float(table["resolution_A"].values[number])
    return f"{value:.2f} Å" if math.isfinite(value) else "nothing resolved"


def _draw_image(axes: Axes, values: np.ndarray, title: str) -> None:
    low, high = np.percentile(values, (1, 99))
    axes.imshow(values, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title, fontsize=8)


def inline_svg(figure: Figure) -> str:
    """An SVG element without anything that points outside the page."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing)
    whole = text.getvalue()
    return whole[whole.index("<svg") :].strip()


def inline_png(figure: Figure) -> str:
    """An img element with the picture in it."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
