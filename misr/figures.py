"""Static figures (matplotlib) for reports and the demonstration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr.resolution import resolution_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["demo_figure", "image_figure", "resolution_sentence"]


_COLOURS = {
    "raw view": "#999999",
    "tcBF": "#0072b2",
    "misr": "#d55e00",
    "parallax": "#56b4e9",
    "ptychography": "#009e73",
}
_SHOWN = ("truth", "raw view", "tcBF", "misr", "ptychography")


def demo_figure(results: Mapping[str, xr.Dataset], *, titles: Mapping[str, str], methods: Mapping[str, str]) -> Figure:
    """One row per specimen: truth, one raw view, tcBF, misr, ptychography, and the FRC curves against truth.

    Parameters
    ----------
    results : mapping of str to Dataset
        From the demonstration, by specimen.
    titles, methods : mapping
        What to write for each specimen and method.

    Returns
    -------
    matplotlib.figure.Figure
        Phase images of a row share their colour limits.

    Examples
    --------
    >>> demo_figure(results, titles=SPECIMENS, methods=METHODS)  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 3.15 * len(results) + 0.5), layout="constrained")
    grid = figure.subplots(len(results), len(_SHOWN) + 1, squeeze=False, width_ratios=[1] * len(_SHOWN) + [1.45])
    for row, (specimen, result) in zip(grid, results.items(), strict=True):
        limits = _phase_limits(result)
        for axes, key in zip(row, _SHOWN, strict=False):
            title = "truth" if key == "truth" else methods[key]
            _draw_image(axes, result, key, limits)
            axes.set_title(title, fontsize=9)
        figure.colorbar(row[len(_SHOWN) - 1].images[0], ax=row[len(_SHOWN) - 1], label="phase (rad)", shrink=0.85)
        row[0].set_ylabel(titles[specimen].replace(": ", ":\n"), fontsize=9)
        _draw_frc(row[-1], result, methods)
    dose = next(iter(results.values())).attrs["dose_e_per_A2"]
    figure.suptitle(f"The same counts, {dose:g} e/Å², by each method", fontsize=11)
    return figure


def image_figure(result: xr.Dataset) -> Figure:
    """The phase image of a result, and its half-map FRC where there is one.

    Parameters
    ----------
    result : Dataset
        From `misr.super_resolve`.

    Returns
    -------
    matplotlib.figure.Figure
        With scale bar, colour bar (rad) and, beside it, the curve with its threshold and resolution; above the
        image a warning, if the weak-phase model leaves much more than the counting noise unexplained.

    Examples
    --------
    >>> image_figure(misr.super_resolve(cube)).savefig("image.png")  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    from misr.fusion.linear import CHI2_SUSPECT
    from misr.resolution import frc_threshold

    panels = 2 if "frc" in result else 1
    figure = Figure(figsize=(5.6 * panels, 5), layout="constrained")
    row = figure.subplots(1, panels, squeeze=False)[0]
    image = result["phase"]
    low, high = (float(value) for value in np.percentile(image, (0.5, 99.5)))
    extent = _extent(image)
    shown = row[0].imshow(image.values, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    row[0].set_axis_off()
    _scale_bar(row[0], extent)
    figure.colorbar(shown, ax=row[0], label="phase (rad)", shrink=0.85)
    chi2 = float(result.attrs.get("chi2", 1.0))
    if chi2 > CHI2_SUSPECT:
        row[0].set_title(f"weak-phase model leaves {chi2:.1f}× the noise unexplained", color="#b00000", fontsize=10)
    if panels == 2:
        frc, resolution = result["frc"], result["resolution"]
        row[1].plot(frc.frequency, frc, color=_COLOURS["misr"], label="half-map FRC")
        threshold = frc_threshold("half-bit", frc.n_independent.values)
        row[1].plot(frc.frequency, threshold, color="black", linewidth=0.8, linestyle="--", label="half-bit")
        row[1].set(xlabel="frequency (1/Å)", ylabel="FRC", ylim=(-0.2, 1.02), xlim=(0, None))
        row[1].set_title(resolution_sentence(resolution))
        row[1].legend(frameon=False)
    return figure


def resolution_sentence(resolution: xr.DataArray) -> str:
    """A resolution in words, with what it does and does not say.

    Parameters
    ----------
    resolution : xarray.DataArray
        Scalar in Å with ``attrs["status"]``, from `misr.frc_resolution`.

    Returns
    -------
    str
        For a title or a report.

    Examples
    --------
    >>> import xarray as xr
    >>> resolution_sentence(xr.DataArray(1.0, attrs={"status": "sampling-limited"}))
    'resolution ≤ 1.00 Å: at least as fine as the sampling'
    >>> resolution_sentence(xr.DataArray(np.inf, attrs={"status": "unresolved"}))
    'nothing resolved'
    """
    words = resolution_words(resolution)
    if resolution.attrs["status"] == "unresolved":
        return words
    ending = ": at least as fine as the sampling" if resolution.attrs["status"] == "sampling-limited" else ""
    return f"resolution {words}{ending}"


def _phase_limits(result: xr.Dataset) -> tuple[float, float]:
    images = [result[f"phase_{key}"].values for key in ("truth", "misr", "ptychography")]
    centred = [image - np.median(image) for image in images]
    low = min(float(np.percentile(image, 1)) for image in centred)
    high = max(float(np.percentile(image, 99)) for image in centred)
    return low, high


def _draw_image(axes: Axes, result: xr.Dataset, key: str, limits: tuple[float, float]) -> None:
    from matplotlib.offsetbox import AnchoredText

    if key == "raw view":
        image = result["raw_view"].rename(scan_y="y", scan_x="x")
        spread = float(np.percentile(np.abs(image), 99)) or 1.0
        limits = (-spread, spread)
    else:
        image = result[f"phase_{key}"]
        image = image - float(np.median(image))  # phase has no zero of its own
    extent = _extent(image)
    axes.imshow(image.values, cmap="gray", vmin=limits[0], vmax=limits[1], extent=extent, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    _scale_bar(axes, extent)
    if key == "raw view":
        note = AnchoredText(f"contrast ±{limits[1]:.0%}", loc="upper left", prop={"size": 7}, frameon=True, pad=0.2)
        axes.add_artist(note)


def _extent(image: xr.DataArray) -> tuple[float, float, float, float]:
    """Outer pixel edges in nm, first row at the top."""
    edges = []
    for dim in ("x", "y"):
        values = image[dim].values / 10
        half = (values[1] - values[0]) / 2
        edges.append((float(values[0] - half), float(values[-1] + half)))
    return edges[0][0], edges[0][1], edges[1][1], edges[1][0]


def _scale_bar(axes: Axes, extent: tuple[float, float, float, float]) -> None:
    left, right, bottom, top = extent
    width, height = right - left, bottom - top
    x, y = left + 0.06 * width, bottom - 0.06 * height
    style: dict[str, Any] = {"color": "white", "path_effects": _outline()}
    length = max(
        step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if step < 0.35 * width or step == 0.1
    )
    axes.plot([x, x + length], [y, y], linewidth=3, solid_capstyle="butt", **style)
    axes.text(x + length / 2, y - 0.03 * height, f"{length:g} nm", ha="center", va="bottom", fontsize=8, **style)


def _outline() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="black")]


def _draw_frc(axes: Axes, result: xr.Dataset, methods: Mapping[str, str]) -> None:
    for key, label in methods.items():
        curve = result[f"frc_{key.replace(' ', '_')}_truth"]
        frequency = curve[curve.dims[0]]
        axes.plot(frequency, curve, color=_COLOURS[key], label=label, linewidth=2.2 if key == "misr" else 1.3)
    axes.axhline(0.5, color="black", linewidth=0.7, linestyle="--")
    axes.set_xlim(0, 1.0)
    axes.set_ylim(-0.15, 1.02)
    axes.set_xlabel("frequency (1/Å)")
    axes.set_ylabel("FRC against truth")
    top = axes.secondary_xaxis("top")
    marks = [4, 2, 1.5, 1.2, 1]
    top.set_xticks([1 / mark for mark in marks], [f"{mark:g}" for mark in marks])
    top.set_xlabel("resolution (Å)", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="upper right")
