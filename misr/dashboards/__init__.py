"""Interactive tools for the notebook and the browser."""

try:
    from misr.dashboards.explore import explore, serve
    from misr.dashboards.explore_state import sample
except ModuleNotFoundError as error:
    if error.name not in ("param", "panel", "holoviews", "bokeh"):
        raise
    raise ModuleNotFoundError(
        f"the interactive tools need {error.name}: pip install 'misr[lab]'", name=error.name
    ) from error

__all__ = ["explore", "sample", "serve"]
