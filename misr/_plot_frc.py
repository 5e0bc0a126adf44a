"""Figures of Fourier ring correlations: curves with their intervals, thresholds, limits and resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._curves import interval_of
from misr._plot_style import BLUE, FONTS, ORANGE, load_holoviews
from misr.resolution import frc_resolution, frc_threshold, resolution_words

if TYPE_CHECKING:
    import holoviews as hv

__all__ = ["frc_error_band", "plot_frc", "resolution_text"]

_HALF_MAPS, _AGAINST_TRUTH = BLUE, ORANGE
_LIMITS = ("#3d3d3d", "#1b7f5c", "#8c4a97", "#9a7b00")  # dark enough for a thin line, and told apart from the curves
_LIMIT_DASHES = ([9, 3], [3, 3], [12, 3, 3, 3], [6, 2, 2, 2])
_THRESHOLD_DASHES = ("dashed", "dotted", "dashdot", [1, 4])
_AXES: dict[str, Any] = {"kdims": ["frequency"], "vdims": ["FRC"]}
_TOP_TICKS = (10.0, 5.0, 3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.6, 0.5)


def plot_frc(
    frc: xr.DataArray,
    *,
    threshold: str | float = "half-bit",
    thresholds: Sequence[str | float] | None = None,
    truth: xr.DataArray | None = None,
    truth_threshold: float = 0.5,
    limits: Mapping[str, xr.DataArray] | None = None,
    error_band: bool = True,
    title: str | None = None,
    width: int = 380,
    height: int = 340,
) -> hv.Overlay:
    """FRC with its interval, its threshold, a mark at the resolution, and what the dose allows.

    Parameters
    ----------
    frc : xarray.DataArray
        Half-map FRC over ``frequency`` (1/Å), from `misr.fourier_ring_correlation`; with ``attrs["kind"]`` "truth" it
        is named and coloured as one against truth, and read at ``truth_threshold``.
    threshold : str or float, default "half-bit"
        For the half maps, see `misr.frc_threshold`. The resolution is read at this one.
    thresholds : sequence of str or float, optional
        More thresholds for ``frc``, drawn as thinner lines without a mark.
    truth : xarray.DataArray, optional
        FRC against truth, where it is known.
    truth_threshold : float, default 0.5
        For the FRC against truth.
    limits : mapping of str to xarray.DataArray, optional
        What the dose allows, by name, from `misr.expected_frc`: dashed lines up to the last frequency shown. Each of
        the kind of a curve that is drawn: ``against="half-map"`` for half maps. Of `misr.expected_frc_of_scan` half
        maps get its coordinate ``half_maps``, what they show, aliases and all.
    error_band : bool, default True
        Shade the interval where a curve has the coordinates ``frc_low`` and ``frc_high``.
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
        If a curve is not an FRC, a threshold is unknown, or a limit is of another kind than all curves.

    Examples
    --------
    >>> import xarray as xr
    >>> frc = xr.DataArray([1.0, 0.9, 0.4, 0.1], dims="frequency", coords={"frequency": [0.1, 0.2, 0.3, 0.4],
    ...     "n_independent": ("frequency", [50.0, 100.0, 150.0, 200.0])})
    >>> plot_frc(frc, threshold=0.5).opts.get("plot").kwargs["title"]
    'half maps: 3.57 Å'
    """
    hv = load_holoviews()
    curves = [(frc, threshold, "half maps", _HALF_MAPS, "half maps")]
    if getattr(frc, "attrs", {}).get("kind") == "truth":
        against = str(frc.attrs.get("against", "truth"))
        curves = [(frc, truth_threshold, f"against {against}", _AGAINST_TRUTH, against)]
    if truth is not None:
        curves.append((truth, truth_threshold, "against truth", _AGAINST_TRUTH, "truth"))
    titles = [f"{word}: {resolution_text(curve, threshold=at)}" for curve, at, _, _, word in curves]
    last = max(float(curve["frequency"][-1]) for curve, *_ in curves)
    lowest = min(_lowest(curve, error_band) for curve, *_ in curves)
    kinds = [
        str(curve.attrs.get("kind", kind)) for (curve, *_), kind in zip(curves, ("half-map", "truth"), strict=False)
    ]
    shown = [(name, _up_to(_comparable(name, limit, kinds), last)) for name, limit in (limits or {}).items()]
    parts: list[Any] = []
    if error_band:
        # below everything else
        parts += [frc_error_band(curve, color=colour) for curve, _, _, colour, _ in curves if interval_of(curve)]
    parts += [part for number, (name, curve) in enumerate(shown) for part in _limit_parts(hv, curve, name, number)]
    for curve, at, name, colour, _ in curves:
        parts += _frc_parts(hv, curve, at, name, colour)
    parts += [
        _threshold_line(hv, frc, more, curves[0][3], _THRESHOLD_DASHES[number % len(_THRESHOLD_DASHES)], 1.0)
        for number, more in enumerate(thresholds or (), start=1)
    ]
    parts.append(hv.HLine(0).opts(backend="bokeh", color="#bbbbbb", line_width=1))
    return hv.Overlay(parts).opts(
        backend="bokeh",
        xlim=(0, last),
        ylim=(min(-0.15, max(lowest, -1.0) - 0.05), 1.05),
        xlabel="spatial frequency (1/Å)",
        ylabel="FRC",
        title=", ".join(titles) if title is None else title,
        frame_width=width,
        frame_height=height,
        # many lines: beside the frame, where they hide no curve
        legend_position="top_right" if len(curves) + len(shown) + len(thresholds or ()) <= 2 else "right",
        legend_offset=(10, 0),
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


def frc_error_band(frc: xr.DataArray, *, color: str = BLUE, alpha: float = 0.18) -> hv.Area:
    """The interval of an FRC as a shaded band.

    Parameters
    ----------
    frc : xarray.DataArray
        With the coordinates ``frequency`` (1/Å), ``frc_low`` and ``frc_high``.
    color : str
        Of the band.
    alpha : float, default 0.18
        Its opacity.

    Returns
    -------
    holoviews.Area
        From ``frc_low`` to ``frc_high``, to be laid under the curve.

    Raises
    ------
    ValueError
        If the curve has no interval.

    Examples
    --------
    >>> import xarray as xr
    >>> frc = xr.DataArray([0.9, 0.1], dims="frequency", coords={"frequency": [0.1, 0.2],
    ...     "frc_low": ("frequency", [0.8, -0.1]), "frc_high": ("frequency", [0.95, 0.3])})
    >>> [dim.name for dim in frc_error_band(frc).vdims]
    ['frc_low', 'frc_high']
    """
    interval = interval_of(frc) if "frequency" in getattr(frc, "coords", {}) else None
    if interval is None:
        raise ValueError(
            "the curve has no interval ('frc_low' and 'frc_high' over 'frequency'): make it with "
            "misr.fourier_ring_correlation"
        )
    hv = load_holoviews()
    q, low, high = (np.asarray(each.values, dtype=float) for each in (frc["frequency"], *interval))
    area = hv.Area((q, low, high), kdims=["frequency"], vdims=["frc_low", "frc_high"])
    return area.opts(backend="bokeh", color=color, alpha=alpha, line_alpha=0)


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


def _lowest(frc: xr.DataArray, error_band: bool) -> float:
    """How far down the axis must reach: the interval of the few values in the first rings may leave it."""
    lowest = float(frc.min())
    if error_band and (interval := interval_of(frc)):
        lowest = min(lowest, float(interval[0].where(frc["frequency"] > 0.1 * frc["frequency"][-1]).min()))
    return lowest


def _comparable(name: str, limit: Any, kinds: list[str]) -> xr.DataArray:
    """The limit of what one of the curves shows: half maps correlate otherwise than an image and the truth."""
    if "frequency" not in getattr(limit, "coords", {}) or limit.dims != ("frequency",):
        raise ValueError("a limit is no curve over 'frequency': make it with misr.expected_frc")
    against = limit.attrs.get("against")
    if "half-map" in kinds and "half_maps" in limit.coords and not (against == "truth" and "truth" in kinds):
        return limit["half_maps"]
    if against is not None and against not in kinds:
        wanted = next((kind for kind in kinds if kind in ("half-map", "truth")), None)
        wish = f"misr.expected_frc(…, against={wanted!r})" if wanted else "the half maps' own FRC"
        raise ValueError(
            f"the limit {name!r} is one against {against!r}, but the curves drawn are of the kind {', '.join(kinds)}: "
            f"the two do not compare; draw {wish}"
        )
    return limit


def _up_to(limit: xr.DataArray, last: float) -> xr.DataArray:
    return limit.isel(frequency=limit["frequency"].values <= last * (1 + 1e-9))


def _limit_parts(hv: Any, limit: xr.DataArray, name: str, number: int) -> list[Any]:
    q = np.asarray(limit["frequency"].values, dtype=float)
    colour = _LIMITS[number % len(_LIMITS)]
    dash = _LIMIT_DASHES[number % len(_LIMIT_DASHES)]
    curve = hv.Curve((q, np.asarray(limit.values, dtype=float)), label=name, **_AXES)
    return [curve.opts(backend="bokeh", color=colour, line_width=1.8, line_dash=dash)]


def _threshold_line(
    hv: Any, frc: xr.DataArray, threshold: str | float, colour: str, dash: Any, line_width: float
) -> Any:
    q = np.asarray(frc["frequency"].values, dtype=float)
    level = np.broadcast_to(frc_threshold(threshold, frc["n_independent"].values), q.shape)
    words = threshold if isinstance(threshold, str) else f"{threshold:g}"
    curve = hv.Curve((q, level), label=f"{words} threshold", **_AXES)
    return curve.opts(backend="bokeh", color=colour, line_dash=dash, line_width=line_width, alpha=0.8)


def _frc_parts(hv: Any, frc: xr.DataArray, threshold: str | float, name: str, colour: str) -> list[Any]:
    resolution = frc_resolution(frc, threshold)  # also says what is wrong with a curve that is not an FRC
    q = np.asarray(frc["frequency"].values, dtype=float)
    line = _threshold_line(hv, frc, threshold, colour, "dashed", 1.5)
    parts = [
        hv.Curve((q, frc.values), label=name, **_AXES).opts(backend="bokeh", color=colour, line_width=2.5),
        hv.Scatter((q, frc.values), **_AXES).opts(backend="bokeh", color=colour, size=4),
        line,
    ]
    if resolution.attrs["status"] == "crossed":
        at = 1 / float(resolution)
        height = float(np.interp(at, q, line.dimension_values("FRC")))
        parts += [
            hv.VLine(at).opts(backend="bokeh", color=colour, line_width=1.5, line_dash="dotted"),
            hv.Scatter([(at, height)], **_AXES).opts(
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
