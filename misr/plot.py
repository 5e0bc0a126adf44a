"""Figures from labelled arrays: HoloViews elements drawn by Bokeh, lengths in nm, every axis with its unit.

In a notebook load HoloViews once before, with its JavaScript inside the page so that no network is needed:
``hv.extension("bokeh", inline=True)``, or ``panel.extension(inline=True)`` where Panel is used too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._plot_calibration import plot_landscape
from misr._plot_style import BLUE, FONTS, ORANGE, load_holoviews
from misr.resolution import frc_resolution, frc_threshold, resolution_words

if TYPE_CHECKING:
    import holoviews as hv

__all__ = ["plot_frc", "plot_image", "plot_landscape", "plot_views", "robust_limits"]

_IMAGE_DIMS = (("y", "x"), ("scan_y", "scan_x"))
_HALF_MAPS, _AGAINST_TRUTH = BLUE, ORANGE
_TOP_TICKS = (10.0, 5.0, 3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.6, 0.5)


def plot_image(
    image: xr.DataArray,
    *,
    limits: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = (0.5, 99.5),
    cmap: str | list[str] = "gray",
    title: str | None = None,
    size: int = 340,
) -> hv.Image:
    """An image with its scale bar and colour bar, pixels square, first row at the top.

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``("y", "x")`` or ``("scan_y", "scan_x")``, uniform coordinates in Å.
    limits : (float, float), optional
        Values shown as the darkest and the brightest; give several images the same limits to compare them.
        By default from ``percentiles``.
    percentiles : (float, float), default (0.5, 99.5)
        Percentiles of the finite values that become the limits: a few outliers do not take the contrast.
    cmap : str or list of str
        Colour map, by name or as colours; see ``colorcet``.
    title : str, optional
        By default the name of the array; its unit is added.
    size : int, default 340
        Length of the longer side, screen pixels, without axes.

    Returns
    -------
    holoviews.Image
        Lengths in nm.

    Raises
    ------
    ValueError
        If the array is not one image with uniform coordinates.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> picture = plot_image(image_from_array(np.eye(8), pixel_A=(2.0, 2.0)))
    >>> [str(d.pprint_label) for d in picture.kdims], picture.bounds.lbrt()
    (['x (nm)', 'y (nm)'], (-0.1, -0.1, 1.5, 1.5))
    """
    hv = load_holoviews()
    y, x = (_nanometres(image, axis) for axis in (0, 1))
    low, high = robust_limits(image, percentiles=percentiles) if limits is None else limits
    label = str(image.attrs.get("long_name") or image.name or "value")
    unit = str(image.attrs.get("units", ""))
    value = hv.Dimension("value", label=label, unit=None if unit in ("", "1") else unit)
    element = hv.Image(
        (x, y, np.asarray(image.values, dtype=float)),
        kdims=[hv.Dimension("x", unit="nm"), hv.Dimension("y", unit="nm")],
        vdims=[value],
        rtol=1e-3,
    )
    width, height = _frame(x, y, size)
    return element.opts(
        backend="bokeh",
        cmap=cmap,
        clim=(float(low), float(high)),
        colorbar=True,
        clabel="",  # Bokeh draws it over the bar's own numbers: the unit stands in the title
        colorbar_opts={"width": 12, "padding": 6},
        invert_yaxis=True,
        frame_width=width,
        frame_height=height,
        scalebar=True,
        scalebar_unit=("nm", "m"),
        scalebar_location="bottom_left",
        scalebar_opts={"background_fill_alpha": 0.7, "border_line_alpha": 0, "padding": 3, "margin": 6},
        title=value.pprint_label if title is None else f"{title} ({unit})" if value.unit else title,
        tools=["hover"],
        default_tools=["pan", "wheel_zoom", "save", "reset"],
        active_tools=[],
        toolbar="above",
        autohide_toolbar=True,
        framewise=True,
        fontsize=FONTS,
    )


def robust_limits(image: xr.DataArray, *, percentiles: tuple[float, float] = (0.5, 99.5)) -> tuple[float, float]:
    """Colour limits that a few outliers do not move.

    Parameters
    ----------
    image : xarray.DataArray
        Any shape.
    percentiles : (float, float), default (0.5, 99.5)
        Of the finite values.

    Returns
    -------
    tuple of float
        ``(low, high)``, never equal.

    Raises
    ------
    ValueError
        If no value is finite.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> robust_limits(xr.DataArray(np.append(np.linspace(0, 1, 999), 1e6)))[1] < 1
    True
    """
    values = np.asarray(image.values, dtype=float)
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError(f"{image.name or 'the image'} holds no finite value: there is nothing to show")
    low, high = (float(v) for v in np.percentile(values, percentiles))
    if high > low:
        return low, high
    # a flat image: any span around its value will do
    span = abs(low) or 1.0
    return low - span / 2, high + span / 2


def plot_frc(
    frc: xr.DataArray,
    *,
    threshold: str | float = "half-bit",
    truth: xr.DataArray | None = None,
    truth_threshold: float = 0.5,
    title: str | None = None,
    width: int = 380,
    height: int = 340,
) -> hv.Overlay:
    """FRC with its threshold and a mark at the resolution.

    Parameters
    ----------
    frc : xarray.DataArray
        Half-map FRC over ``frequency`` (1/Å), from `misr.fourier_ring_correlation`.
    threshold : str or float, default "half-bit"
        For the half maps, see `misr.frc_threshold`.
    truth : xarray.DataArray, optional
        FRC against truth, where it is known.
    truth_threshold : float, default 0.5
        For the FRC against truth.
    title : str, optional
        By default the resolution in words.
    width, height : int
        Size of the frame, screen pixels.

    Returns
    -------
    holoviews.Overlay
        Frequency in 1/Å below, the same as a length in Å above. Show it on its own or in a Panel row: in a HoloViews
        layout (``image + frc``) Bokeh cuts the lower axis of its neighbour by the height of the axis above.

    Raises
    ------
    ValueError
        If a curve is not an FRC.

    Examples
    --------
    >>> import xarray as xr
    >>> frc = xr.DataArray([1.0, 0.9, 0.4, 0.1], dims="frequency", coords={"frequency": [0.1, 0.2, 0.3, 0.4],
    ...     "n_independent": ("frequency", [50.0, 100.0, 150.0, 200.0])})
    >>> plot_frc(frc, threshold=0.5).opts.get("plot").kwargs["title"]
    'half maps: 3.57 Å'
    """
    hv = load_holoviews()
    parts = _frc_parts(hv, frc, threshold, "half maps", _HALF_MAPS)
    titles = [f"half maps: {resolution_text(frc, threshold=threshold)}"]
    if truth is not None:
        parts += _frc_parts(hv, truth, truth_threshold, "against truth", _AGAINST_TRUTH)
        titles.append(f"truth: {resolution_text(truth, threshold=truth_threshold)}")
    parts.append(hv.HLine(0).opts(backend="bokeh", color="#bbbbbb", line_width=1))
    last = max(float(curve["frequency"][-1]) for curve in (frc, truth) if curve is not None)
    lowest = min(float(curve.min()) for curve in (frc, truth) if curve is not None)
    return hv.Overlay(parts).opts(
        backend="bokeh",
        xlim=(0, last),
        ylim=(min(-0.15, max(lowest, -1.0) - 0.05), 1.05),
        xlabel="spatial frequency (1/Å)",
        ylabel="FRC",
        title=", ".join(titles) if title is None else title,
        frame_width=width,
        frame_height=height,
        legend_position="top_right",
        legend_opts={"background_fill_alpha": 0.5, "border_line_alpha": 0, "padding": 2, "spacing": -4},
        show_grid=True,
        gridstyle={"grid_line_color": "#eeeeee"},
        hooks=[_add_length_axis],
        default_tools=["pan", "wheel_zoom", "save", "reset"],
        active_tools=[],
        toolbar="above",
        autohide_toolbar=True,
        framewise=True,
        fontsize=FONTS,
    )


def resolution_text(frc: xr.DataArray, *, threshold: str | float = "half-bit") -> str:
    """The resolution of an FRC in words: as `misr.resolution.resolution_words` puts it.

    Parameters
    ----------
    frc : xarray.DataArray
        From `misr.fourier_ring_correlation`.
    threshold : str or float, default "half-bit"
        See `misr.frc_threshold`.

    Returns
    -------
    str
        Words for a title or a report.

    Examples
    --------
    >>> import xarray as xr
    >>> frc = xr.DataArray([1.0, 0.9], dims="frequency", coords={"frequency": [0.1, 0.2],
    ...     "n_independent": ("frequency", [50.0, 100.0])})
    >>> resolution_text(frc), resolution_text(0 * frc)
    ('≤ 5.00 Å', 'nothing resolved')
    """
    return resolution_words(frc_resolution(frc, threshold))


def plot_views(views: xr.DataArray, *, view: int | None = None, size: int = 300) -> hv.Layout:
    """One raw view, and where on the bright-field disk it and the others were recorded.

    Parameters
    ----------
    views : xarray.DataArray
        From `misr.synthesize_views`.
    view : int, optional
        Which one; the one nearest to the optic axis by default.
    size : int, default 300
        Side of each frame, screen pixels.

    Returns
    -------
    holoviews.Layout
        The view, and the disk in mrad with the shown view ringed.

    Raises
    ------
    ValueError
        If the array is not a stack of views, or has no such view.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (4, 4, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> len(plot_views(misr.synthesize_views(cube, n_views=7)))
    2
    """
    hv = load_holoviews()
    missing = [name for name in ("view", "det_y", "det_x", "shift_y", "shift_x") if name not in views.coords]
    if missing:
        raise ValueError(f"expected a stack of views with {missing}: make it with misr.synthesize_views(cube)")
    if view is None:
        view = int(np.argmin(np.hypot(views.det_y.values, views.det_x.values)))
    if not 0 <= view < views.sizes["view"]:
        raise ValueError(f"view={view} must lie between 0 and {views.sizes['view'] - 1}")
    one = views.isel(view=view)
    image = plot_image(one, title=f"view {view} of {views.sizes['view']}", size=size)
    axes = [hv.Dimension(f"det_{a}", label=f"detector {a}", unit="mrad") for a in "xy"]
    points = hv.Points((views.det_x.values, views.det_y.values), kdims=axes).opts(
        backend="bokeh", size=4, color=_HALF_MAPS, title="where each view was recorded", data_aspect=1,
        frame_width=size, frame_height=size, invert_yaxis=True, padding=0.08, default_tools=["save"], tools=[],
        autohide_toolbar=True, fontsize=FONTS,
    )  # fmt: skip
    chosen = hv.Points([(float(one.det_x), float(one.det_y))], kdims=axes).opts(
        backend="bokeh", size=13, fill_alpha=0, line_width=2.5, color=_AGAINST_TRUTH
    )
    return (image + points * chosen).opts(backend="bokeh", shared_axes=False)


def _nanometres(image: xr.DataArray, axis: int) -> np.ndarray:
    dims = getattr(image, "dims", None)
    if dims not in _IMAGE_DIMS:
        raise ValueError(f"expected one image with dims {_IMAGE_DIMS[0]} or {_IMAGE_DIMS[1]}, got {dims}")
    name = image.dims[axis]
    if name not in image.coords or image.sizes[name] < 2:
        raise ValueError(f"the image has no coordinate {name!r} of two or more pixels: give positions in Å")
    return np.asarray(image[name].values, dtype=float) / 10


def _frame(x: np.ndarray, y: np.ndarray, size: int) -> tuple[int, int]:
    """Frame with the field's own aspect ratio; pixels are square on screen whatever their number."""
    extent = [float(np.ptp(axis)) * axis.size / (axis.size - 1) for axis in (x, y)]
    longest = max(extent)
    return max(60, round(size * extent[0] / longest)), max(60, round(size * extent[1] / longest))


def _frc_parts(hv: Any, frc: xr.DataArray, threshold: str | float, name: str, colour: str) -> list[Any]:
    resolution = frc_resolution(frc, threshold)  # also says what is wrong with a curve that is not an FRC
    q = np.asarray(frc["frequency"].values, dtype=float)
    level = np.broadcast_to(frc_threshold(threshold, frc["n_independent"].values), q.shape)
    axes = {"kdims": ["frequency"], "vdims": ["FRC"]}
    words = threshold if isinstance(threshold, str) else f"{threshold:g}"
    parts = [
        hv.Curve((q, frc.values), label=name, **axes).opts(backend="bokeh", color=colour, line_width=2.5),
        hv.Scatter((q, frc.values), **axes).opts(backend="bokeh", color=colour, size=4),
        hv.Curve((q, level), label=f"{words} threshold", **axes).opts(
            backend="bokeh", color=colour, line_dash="dashed", line_width=1.5, alpha=0.8
        ),
    ]
    if resolution.attrs["status"] == "crossed":
        at = 1 / float(resolution)
        height = float(np.interp(at, q, level))
        parts += [
            hv.VLine(at).opts(backend="bokeh", color=colour, line_width=1.5, line_dash="dotted"),
            hv.Scatter([(at, height)], **axes).opts(
                backend="bokeh", color="white", line_color=colour, line_width=2.5, size=10
            ),
        ]
    return parts


def _add_length_axis(plot: Any, element: Any) -> None:
    """The same axis as a length in Å, above: 1/frequency, where microscopists look for the resolution."""
    from bokeh.models import FixedTicker, LinearAxis

    figure = plot.state
    if any(axis.name == "length" for axis in figure.above):
        return
    last = float(figure.x_range.end)
    lengths, free_from = [], 0.0
    for length in _TOP_TICKS:
        # a label needs room: skip those that would touch the one before
        if free_from <= 1 / length <= last:
            lengths.append(length)
            free_from = 1 / length + 0.07 * last
    figure.add_layout(
        LinearAxis(
            name="length",
            axis_label="length (Å)",
            ticker=FixedTicker(ticks=[1 / length for length in lengths]),
            major_label_overrides={1 / length: f"{length:g}" for length in lengths},
        ),
        "above",
    )
