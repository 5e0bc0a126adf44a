"""Figures of a resolution map and of a comparison with a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._plot_frc import plot_frc
from misr._plot_style import FONTS, load_holoviews
from misr.resolution import resolution_words

if TYPE_CHECKING:
    import holoviews as hv

__all__ = ["plot_comparison", "plot_local_resolution"]

_MAP = "viridis_r"  # bright where the resolution is fine
_NOTHING = "#d9d9d9"  # unlike any colour of the map


def plot_local_resolution(
    resolution_map: xr.Dataset,
    image: xr.DataArray | None = None,
    *,
    limits: tuple[float, float] | None = None,
    only_reliable: bool = True,
    title: str | None = None,
    size: int = 340,
) -> hv.Element | hv.Layout:
    """The local resolution in Å, on its own or beside the image that it belongs to.

    Parameters
    ----------
    resolution_map : xarray.Dataset
        From `misr.local_resolution`.
    image : xarray.DataArray, optional
        The image, dims ``("y", "x")``, Å, shown beside it over the same field; the map leaves the border free where no
        window fits.
    limits : (float, float), optional
        Å; by default the 2nd to the 98th percentile of what is shown.
    only_reliable : bool, default True
        Leave places that are not reliable grey, as those are where nothing is resolved.
    title : str, optional
        By default the median resolution and the window.
    size : int, default 340
        Longer side of the frame, screen pixels.

    Returns
    -------
    holoviews.Overlay or holoviews.Layout
        The map, bright where the resolution is fine; in a row with the image if there is one, its axes linked.

    Raises
    ------
    ValueError
        If this is no resolution map, or it has fewer than two windows along an axis.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> values = np.array([[2.0, 2.1, np.inf], [1.9, 2.0, np.inf]])
    >>> found = xr.Dataset({"resolution": (("y", "x"), values), "reliable": (("y", "x"), np.isfinite(values))},
    ...     coords={"y": [8.0, 12.0], "x": [8.0, 12.0, 16.0]}, attrs={"window_A": 16.0})
    >>> plot_local_resolution(found).opts.get("plot").kwargs["title"]
    'resolution (Å): median 2.00, window 16 Å'
    """
    _check_map(resolution_map)
    hv = load_holoviews()
    values = np.asarray(resolution_map["resolution"].values, dtype=float)
    shown = np.isfinite(values) & (resolution_map["reliable"].values if only_reliable else True)
    values = np.where(shown, values, np.nan)
    y, x = (np.asarray(resolution_map[dim].values, dtype=float) / 10 for dim in ("y", "x"))
    field = (_edges(x), _edges(y)) if image is None else tuple(_edges(image[dim].values / 10) for dim in ("x", "y"))
    limits = _colour_limits(values[shown]) if limits is None else limits
    label = hv.Dimension("resolution", label="local resolution", unit="Å", range=limits)
    element = hv.Image((x, y, values), kdims=_axes(hv), vdims=[label], rtol=1e-3)
    width, height = _frame(field, size)
    drawn = element.opts(
        backend="bokeh",
        cmap=_MAP,
        clim=limits,
        clipping_colors={"NaN": _NOTHING},
        colorbar=bool(shown.any()),
        clabel="",  # Bokeh draws it over the bar's own numbers: the title has the unit
        colorbar_opts={"width": 12, "padding": 6},
        tools=["hover"],
    )
    overlay = hv.Overlay([drawn]).opts(
        backend="bokeh",
        title=_map_title(resolution_map, values[shown]) if title is None else title,
        xlim=field[0],
        ylim=field[1],
        invert_yaxis=True,
        frame_width=width,
        frame_height=height,
        bgcolor="#ffffff",
        default_tools=["pan", "wheel_zoom", "save", "reset"],
        active_tools=[],
        toolbar="above",
        autohide_toolbar=True,
        framewise=True,
        fontsize=FONTS,
    )
    if image is None:
        return overlay
    from misr.plot import plot_image  # which itself may take its figures from here

    return (plot_image(image, size=size) + overlay).opts(backend="bokeh", shared_axes=True)


def plot_comparison(comparison: xr.Dataset, *, threshold: str | float | None = None, size: int = 260) -> hv.Layout:
    """Image, reference and their difference with one colour scale, and the FRC between them.

    Parameters
    ----------
    comparison : xarray.Dataset
        From `misr.compare_images`.
    threshold : str or float, optional
        For the FRC; the one of the comparison by default.
    size : int, default 260
        Longer side of each frame, screen pixels.

    Returns
    -------
    holoviews.Layout
        Image, reference and difference in a row, and below them the FRC.

    Raises
    ------
    ValueError
        If this is no comparison.

    Examples
    --------
    >>> import numpy as np, misr
    >>> from misr.comparison import compare_images
    >>> from misr.cube import image_from_array
    >>> truth = image_from_array(np.random.default_rng(0).standard_normal((32, 32)), pixel_A=(0.5, 0.5))
    >>> len(plot_comparison(compare_images(truth, truth)))
    4
    """
    missing = [name for name in ("image", "reference", "frc", "resolution") if name not in comparison]
    if missing:
        raise ValueError(f"the comparison lacks {missing}: make it with misr.compare_images")
    from misr.plot import plot_image, robust_limits  # which itself may take its figures from here

    image, reference = comparison["image"], comparison["reference"]
    low, high = robust_limits(reference)
    half = (high - low) / 2
    difference = (image - reference).assign_attrs(units=reference.attrs.get("units", "1"), long_name="difference")
    at = comparison["resolution"].attrs.get("threshold", "0.5") if threshold is None else threshold
    at = _number(at)
    frc = comparison["frc"].assign_attrs(kind="truth", against="the reference")
    title = f"against the reference: {resolution_words(comparison['resolution'])}" if threshold is None else None
    curve = plot_frc(frc, truth_threshold=at, title=title, width=round(1.4 * size), height=size)
    parts = [
        plot_image(image, limits=(low, high), title=f"image{_moved(comparison)}", size=size),
        plot_image(reference, limits=(low, high), title="reference", size=size),
        plot_image(difference, limits=(-half, half), title=_difference_title(comparison), size=size),
        curve,
    ]
    # the FRC in a row of its own: its upper axis would cut the lower axis of an image beside it
    return load_holoviews().Layout(parts).cols(3).opts(backend="bokeh", shared_axes=False)


def _number(threshold: Any) -> Any:
    """A threshold as attrs keep it, in words, as a number where it is one."""
    try:
        return float(threshold)
    except ValueError:
        return threshold


def _moved(comparison: xr.Dataset) -> str:
    """What was done to the image, in few words: a title has little room."""
    # adding 0 turns -0.0 into 0.0
    shift = [round(float(comparison[f"shift_{dim}"]), 2) + 0.0 if f"shift_{dim}" in comparison else 0.0 for dim in "yx"]
    words = f", moved ({shift[0]:.2f}, {shift[1]:.2f}) Å" if any(shift) else ""
    return words + (", sign −" if float(comparison.get("sign", 1)) < 0 else "")


def _difference_title(comparison: xr.Dataset) -> str:
    return f"difference, NRMSE {float(comparison['nrmse']):.2f}" if "nrmse" in comparison else "difference"


def _check_map(resolution_map: Any) -> None:
    wanted = {"resolution", "reliable"}
    if not isinstance(resolution_map, xr.Dataset) or not wanted <= set(resolution_map):
        raise ValueError(
            "expected a resolution map with 'resolution' and 'reliable': make it with misr.local_resolution"
        )
    if min(resolution_map["resolution"].shape) < 2:
        raise ValueError(
            f"the map has {' × '.join(map(str, resolution_map['resolution'].shape))} windows, two along each axis are "
            "needed: choose a smaller window_A or step_A"
        )


def _axes(hv: Any) -> list[Any]:
    return [hv.Dimension("x", unit="nm"), hv.Dimension("y", unit="nm")]


def _edges(values: np.ndarray) -> tuple[float, float]:
    """Outer borders of evenly spaced pixels."""
    step = float(values[-1] - values[0]) / (len(values) - 1)
    return float(values[0]) - step / 2, float(values[-1]) + step / 2


def _frame(field: Any, size: int) -> tuple[int, int]:
    extent = [high - low for low, high in field]
    longest = max(extent)
    return max(60, round(size * extent[0] / longest)), max(60, round(size * extent[1] / longest))


def _colour_limits(values: np.ndarray) -> tuple[float, float]:
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (2, 98)))
    return (low, high) if high > low * (1 + 1e-6) else (0.9 * low, 1.1 * high)


def _map_title(resolution_map: xr.Dataset, values: np.ndarray) -> str:
    words = f"resolution (Å): median {np.median(values):.2f}" if values.size else "nothing resolved"
    window = resolution_map.attrs.get("window_A")
    return words if window is None else f"{words}, window {float(window):.3g} Å"
