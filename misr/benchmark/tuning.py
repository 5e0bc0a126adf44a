"""The settings of the ptychographic reference: one small function, so that whatever searches them is easy to swap."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import xarray as xr

from misr._provenance import read_history
from misr.benchmark.methods import NotAvailableError
from misr.halves import image_of

if TYPE_CHECKING:
    from misr.benchmark.methods import Case

__all__ = ["ptychography_options"]

_NOT_SETTINGS = {
    "cube", "aberrations", "rotation_deg", "preset", "search", "truth", "like", "rng", "progress", "device", "cancel",
}  # fmt: skip
_OPERATION = "reconstruct_ptychography"


def ptychography_options(case: Case, preset: str) -> dict[str, Any]:
    """Arguments of `misr.reconstruct_ptychography` for a cube and its halves: given, or searched on the whole cube.

    Parameters
    ----------
    case : Case
        The cube, and the truth for "oracle".
    preset : {"default", "tuned", "oracle"}
        As `misr.reconstruct_ptychography` has it.

    Returns
    -------
    dict
        For "default" those of the settings; else what the search chose, told in the image's history.

    Raises
    ------
    NotAvailableError
        If this version cannot search.

    Examples
    --------
    >>> ptychography_options(case, "default")  # doctest: +SKIP
    {'iterations': 8}
    """
    from misr.reference import reconstruct_ptychography

    if preset == "default":
        return dict(case.ptychography)
    known = set(inspect.signature(reconstruct_ptychography).parameters)
    if "preset" not in known:
        raise NotAvailableError(f"this version's reconstruct_ptychography has no preset={preset!r} yet")
    truth: dict[str, Any] = {"truth": case.truth} if preset == "oracle" else {}
    tried: dict[str, Any] = {"search": dict(case.search)} if case.search and "search" in known else {}
    options: dict[str, Any] = {"preset": preset, "like": case.like, "rng": case.seed, "progress": False} | truth | tried
    return _chosen(image_of(reconstruct_ptychography(case.cube, **options)), known - _NOT_SETTINGS)


def _chosen(image: xr.DataArray, known: set[str]) -> dict[str, Any]:
    """What the image's history, or its attrs, say of its own making."""
    made = [line for line in read_history(image.attrs) if line["operation"] == _OPERATION]
    told = (made[-1] if made else {}) | dict(image.attrs)
    settings = {name: value for name, value in told.items() if name in known and value != "auto"}
    if "iterations" not in settings:
        raise ValueError("the tuned image does not say with which settings it was made")
    return settings
