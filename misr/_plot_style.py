"""What all figures share: colours, fonts, and HoloViews loaded only when something is drawn."""

from __future__ import annotations

from typing import Any

__all__ = ["BLUE", "FONTS", "ORANGE", "load_holoviews"]

BLUE, ORANGE = "#0f6cbd", "#c2571a"  # told apart in grey and by the colour-blind
FONTS = {"title": "10.5pt", "labels": "9.5pt", "ticks": "8.5pt", "legend": "8.5pt"}


def load_holoviews() -> Any:
    """HoloViews, with the Bokeh options that the figures use registered."""
    import holoviews as hv
    import holoviews.plotting.bokeh  # registers the options used here, whether or not an extension was loaded

    if not hv.Store.current_backend or hv.Store.current_backend not in hv.Store.renderers:
        hv.Store.set_current_backend("bokeh")
    return hv
