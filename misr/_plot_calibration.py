"""Figures of the calibration: the curve or the plane that `misr.fit_aberrations` climbs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._plot_style import BLUE, FONTS, ORANGE, load_holoviews

if TYPE_CHECKING:
    import holoviews as hv

__all__ = ["plot_landscape"]

_DIMS = ("rotation_deg", "C10")


def plot_landscape(
    landscape: xr.DataArray,
    *,
    fit: xr.Dataset | None = None,
    title: str | None = None,
    width: int = 380,
    height: int = 280,
) -> hv.Overlay:
    """Log-likelihood over defocus at one rotation as a curve, or over defocus and rotation as an image.

    Parameters
    ----------
    landscape : xarray.DataArray
        From `misr.aberration_landscape`: dims ``("rotation_deg", "C10")``, degrees and Å, both rising. With one
        rotation it becomes a curve over ``C10``, and with several an image.
    fit : xarray.Dataset, optional
        From `misr.fit_aberrations`: marked by a dashed line in a curve, and by a ring in an image. Its twin
        (rotation + 180°, C10 negated), as high if the landscape's ``C12`` is 0, is marked by a square. A curve
        whose rotation is nearer to the twin's shows the twin's C10.
    title : str, optional
        By default the rotation of a curve, or what an image shows.
    width, height : int
        Size of the frame, screen pixels.

    Returns
    -------
    holoviews.Overlay
        C10 in Å to the right; upwards the log-likelihood of a curve, or the rotation in degrees of an image, whose
        colours start at 0: places that explain less than noise does are all dark.

    Raises
    ------
    ValueError
        If the array is not a landscape, has fewer than two values of C10, or its axes do not rise.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> C10 = np.linspace(-2000, 2000, 41)
    >>> curve = xr.DataArray([np.exp(-(((C10 + 1500) / 100) ** 2))], dims=("rotation_deg", "C10"),
    ...                      coords={"rotation_deg": [90.0], "C10": C10})
    >>> overlay = plot_landscape(curve, fit=xr.Dataset({"C10": -1490.0, "rotation_deg": 90.2}))
    >>> [type(element).__name__ for element in overlay]
    ['Curve', 'VLine']
    """
    _check(landscape)
    hv = load_holoviews()
    one = landscape.sizes["rotation_deg"] == 1
    overlay = _curve(hv, landscape, fit) if one else _plane(hv, landscape, fit)
    if title is None:
        title = f"rotation {float(landscape['rotation_deg'][0]):.4g}°" if one else "log-likelihood"
    return overlay.opts(
        backend="bokeh",
        xlabel="C10 (Å)",
        ylabel="log-likelihood" if one else "rotation (degrees)",
        title=title,
        frame_width=width,
        frame_height=height,
        default_tools=["pan", "wheel_zoom", "save", "reset"],
        active_tools=[],
        toolbar="above",
        autohide_toolbar=True,
        framewise=True,
        fontsize=FONTS,
    )


def _check(landscape: Any) -> None:
    dims = getattr(landscape, "dims", None)
    if dims != _DIMS or any(name not in landscape.coords for name in _DIMS):
        raise ValueError(
            f"expected a landscape with dims and coordinates {_DIMS}, got dims {dims}: make it with "
            "misr.aberration_landscape"
        )
    if landscape.sizes["C10"] < 2:
        raise ValueError("the landscape has fewer than two values of C10: there is nothing to draw")
    for name in _DIMS:
        if np.any(np.diff(landscape[name].values) <= 0):
            raise ValueError(f"the {name} of the landscape must rise from value to value: sort it, landscape.sortby")


def _curve(hv: Any, landscape: xr.DataArray, fit: xr.Dataset | None) -> Any:
    values = np.asarray(landscape.values[0], dtype=float)
    curve = hv.Curve((landscape["C10"].values, values), kdims=["C10"], vdims=["log_likelihood"])
    parts = [curve.opts(backend="bokeh", color=BLUE, line_width=2, tools=["hover"])]
    if fit is not None:
        turned = math.radians(float(fit["rotation_deg"]) - float(landscape["rotation_deg"][0]))
        place = float(fit["C10"]) * (1 if math.cos(turned) >= 0 else -1)
        parts.append(hv.VLine(place).opts(backend="bokeh", color=ORANGE, line_width=1.5, line_dash="dashed"))
    limits = (float(landscape["C10"][0]), float(landscape["C10"][-1]))
    return hv.Overlay(parts).opts(
        backend="bokeh", xlim=limits, show_grid=True, gridstyle={"grid_line_color": "#eeeeee"}
    )


def _plane(hv: Any, landscape: xr.DataArray, fit: xr.Dataset | None) -> Any:
    C10, rotation = (np.asarray(landscape[name].values, dtype=float) for name in ("C10", "rotation_deg"))
    values = np.asarray(landscape.values, dtype=float)
    highest = float(values.max())
    # an image has no seams between its pixels, but wants them all alike
    kind = hv.Image if _even(C10) and _even(rotation) else hv.QuadMesh
    options = {"rtol": 1e-3} if kind is hv.Image else {}
    plane = kind((C10, rotation, values), kdims=["C10", "rotation_deg"], vdims=["log_likelihood"], **options)
    parts = [
        plane.opts(
            backend="bokeh",
            cmap="viridis",
            clim=(0.0, highest if highest > 0 else 1.0),
            colorbar=True,
            clabel="",  # Bokeh draws it over the bar's own numbers: the title says what is shown
            colorbar_opts={"width": 12, "padding": 6},
            tools=["hover"],
        )
    ]
    if fit is not None:
        parts += _marks(hv, fit, rotation)
    return hv.Overlay(parts).opts(backend="bokeh", xlim=_edges(C10), ylim=_edges(rotation))


def _marks(hv: Any, fit: xr.Dataset, rotation: np.ndarray) -> list[Any]:
    """The fit and its twin, as far as the rotations shown reach."""
    lower, upper = _edges(rotation)
    marks = []
    for sign, turn, marker in ((1, 0.0, "circle"), (-1, 180.0, "square")):
        angle = (float(fit["rotation_deg"]) + turn - lower) % 360 + lower
        if angle <= upper:
            place = [(sign * float(fit["C10"]), angle)]
            mark = hv.Points(place, kdims=["C10", "rotation_deg"])
            marks.append(
                mark.opts(backend="bokeh", size=24, fill_alpha=0, line_color="white", line_width=2, marker=marker)
            )
    return marks


def _even(values: np.ndarray) -> bool:
    steps = np.diff(values)
    return bool(np.ptp(steps) <= 1e-3 * steps.mean())


def _edges(values: np.ndarray) -> tuple[float, float]:
    """Outer borders of the pixels around these values."""
    return float(1.5 * values[0] - 0.5 * values[1]), float(1.5 * values[-1] - 0.5 * values[-2])
