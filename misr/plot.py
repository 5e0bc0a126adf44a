"""Figures from labelled arrays: HoloViews elements drawn by Bokeh, lengths in nm, every axis with its unit.

In a notebook load HoloViews once before, with its JavaScript inside the page so that no network is needed:
``hv.extension("bokeh", inline=True)``, or ``panel.extension(inline=True)`` where Panel is used too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from misr._plot_benchmark import plot_benchmark
from misr._plot_calibration import plot_landscape
from misr._plot_frc import frc_error_band, plot_frc, resolution_text
from misr._plot_planning import plot_plan
from misr._plot_resolution import plot_comparison, plot_local_resolution
from misr._plot_style import BLUE, FONTS, ORANGE, load_holoviews
from misr._plot_trust import plot_prior_share, plot_trust

if TYPE_CHECKING:
    import holoviews as hv

__all__ = [
    "frc_error_band",
    "plot_benchmark",
    "plot_comparison",
    "plot_frc",
    "plot_image",
    "plot_landscape",
    "plot_local_resolution",
    "plot_plan",
    "plot_prior_share",
    "plot_trust",
    "plot_views",
    "resolution_text",
    "robust_limits",
]

_IMAGE_DIMS = (("y", "x"), ("scan_y", "scan_x"))
_HALF_MAPS, _AGAINST_TRUTH = BLUE, ORANGE


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
