"""What dose, number of views and method do to an image and to its resolution, live."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import xarray as xr

from misr.dashboards.explore_state import ExploreState, Result, sample, summary
from misr.plot import plot_frc, plot_image

if TYPE_CHECKING:
    import panel as pn

__all__ = ["explore", "serve"]

_LOG = logging.getLogger(__name__)
_CHOICES = ["dose", "n_views", "method", "ring_width"]
_IMAGE_SIZE = 230  # screen pixels: two images and a curve fit beside the controls


def explore(cube: xr.DataArray | xr.Dataset | None = None) -> pn.viewable.Viewable:
    """A small tool: choose the dose, the number of views and the method, see the image and its FRC.

    In a notebook run ``panel.extension(inline=True)`` first. Of a scan larger than 64 × 64 positions the centre is
    shown, so that the picture follows the sliders.

    Parameters
    ----------
    cube : xarray.DataArray or Dataset, optional
        Expected counts (any dose is drawn from them) or counted electrons (lower doses are thinned from them),
        aberrations in the attrs; a Dataset with ``counts`` and ``phase`` also shows the truth. By default a simulated
        zeolite in glass (`sample`), which takes a few seconds.

    Returns
    -------
    panel.viewable.Viewable
        For the last line of a notebook cell.

    Raises
    ------
    ValueError
        If the cube is not valid, or its dose is unknown.

    Examples
    --------
    >>> import panel as pn  # doctest: +SKIP
    >>> pn.extension(inline=True)  # doctest: +SKIP
    >>> explore()  # doctest: +SKIP
    """
    import panel as pn

    state = ExploreState(sample() if cube is None else cube)
    # the first picture before the page: a notebook loses what arrives while it is still drawing
    state.update_or_explain()
    controls, figures = _controls_and_figures(state)
    return pn.Row(pn.Column(*controls, width=255), pn.Column(*figures, sizing_mode="stretch_width"))


def serve(
    cube: xr.DataArray | xr.Dataset | None = None,
    *,
    port: int = 0,
    show: bool = False,
    address: str = "127.0.0.1",
    title: str = "misr: explore",
) -> None:
    """Serve `explore` as a page of its own, until interrupted.

    Parameters
    ----------
    cube : xarray.DataArray or Dataset, optional
        See `explore`.
    port : int, default 0
        0 takes a free one, and the server says which.
    show : bool, default False
        Open a browser.
    address : str, default "127.0.0.1"
        Interface to listen on: this machine only by default.
    title : str
        Of the page.

    Examples
    --------
    >>> serve(show=True)  # doctest: +SKIP
    """
    import panel as pn

    pn.extension(inline=True, notifications=False)
    load = functools.cache(sample if cube is None else lambda: cube)

    def page() -> Any:
        template = pn.template.BootstrapTemplate(title=title, header_background="#1b3a57", sidebar_width=270)
        body = pn.Column(sizing_mode="stretch_width")
        side = pn.Column()
        template.main.append(body)
        template.sidebar.append(side)

        def prepare() -> ExploreState:
            state = ExploreState(load())
            state.update_or_explain()
            return state

        def fill(state: ExploreState) -> None:
            side[:], body[:] = _controls_and_figures(state)

        _when_ready(body, prepare, fill)
        return template

    port = port or _free_port(address)
    origins = [f"{host}:{port}" for host in ("localhost", "127.0.0.1", address)]
    pn.serve(
        {"/": page},
        port=port,
        address=address,
        show=show,
        title=title,
        websocket_origin=sorted(set(origins)),
        threaded=False,
    )


def _free_port(address: str) -> int:
    """A port for the allowed origins of the page, which Bokeh wants to know before it opens one."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _when_ready(body: Any, prepare: Callable[[], ExploreState], fill: Callable[[ExploreState], None]) -> None:
    """Show that the data are on their way, prepare them in another thread, then fill the page."""
    import panel as pn

    body[:] = [
        pn.Row(pn.indicators.LoadingSpinner(value=True, size=32), pn.pane.Markdown("Preparing the data …")),
    ]

    async def wait() -> None:
        try:
            fill(await asyncio.to_thread(prepare))
        except (ValueError, TypeError, RuntimeError, MemoryError, OSError) as error:
            _LOG.warning("%s", error, exc_info=True)
            body[:] = [pn.pane.Alert(f"**No data.** {error}", alert_type="danger")]

    pn.state.onload(wait)


def _controls_and_figures(state: ExploreState) -> tuple[list[Any], list[Any]]:
    import panel as pn

    slider = {"type": pn.widgets.DiscreteSlider, "throttled": True, "width": 225}
    widgets = dict.fromkeys(_CHOICES, slider) | {"method": pn.widgets.RadioBoxGroup}
    controls = pn.Param(state, parameters=_CHOICES, widgets=widgets, show_name=False, width=245)
    words = pn.pane.HTML(min_width=420, margin=(5, 10))
    spinner = pn.indicators.LoadingSpinner(value=True, visible=state.param.busy, size=24, margin=(14, 10))
    alert = pn.pane.Alert(
        state.param.problem, alert_type="danger", visible=state.param.problem.rx.bool(), sizing_mode="stretch_width"
    )
    image, truth, frc = (pn.pane.HoloViews(None, linked_axes=False, margin=(0, 4, 10, 0)) for _ in range(3))
    if state.truth is not None:
        truth.object = plot_image(state.truth, title="the truth", size=_IMAGE_SIZE)

    def draw(*_: Any) -> None:
        result = state.result
        words.object = _words(state, result)
        if result is not None:
            image.object = plot_image(result.image, title=state.method, size=_IMAGE_SIZE)
        if result is not None and result.frc is not None:
            title = "Fourier ring correlation"
            width, height = _IMAGE_SIZE + 5, _IMAGE_SIZE
            frc.object = plot_frc(result.frc, truth=result.frc_truth, title=title, width=width, height=height)

    draw()
    state.param.watch(draw, "result")
    state.param.watch(state.follow, _CHOICES)
    figures = [pn.Row(words, spinner), alert, pn.FlexBox(image, truth, frc, sizing_mode="stretch_width")]
    return [controls], figures


def _words(state: ExploreState, result: Result | None) -> str:
    heading, how = summary(result, ring_width=state.ring_width)
    # plain HTML: a Markdown heading would get an anchor sign in JupyterLab
    return f'<div style="font-size: 22px; line-height: 1.5">{heading}</div><div>{how}</div>'
