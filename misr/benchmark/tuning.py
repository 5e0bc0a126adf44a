"""The settings of the references where they are searched: apart, so that whatever searches them is easy to swap."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._provenance import read_history
from misr.benchmark.methods import NotAvailableError
from misr.halves import image_of

if TYPE_CHECKING:
    from misr.benchmark.methods import Case

__all__ = ["ptychography_options", "quantem_choice"]

_NOT_SETTINGS = {
    "cube", "aberrations", "rotation_deg", "preset", "search", "truth", "ring_width", "like", "rng", "progress",
    "device", "return_probe", "callback", "cancel",
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
    if "ring_width" in known:
        options["ring_width"] = case.ring_width
    return _chosen(image_of(reconstruct_ptychography(case.cube, **options)), known - _NOT_SETTINGS)


def _chosen(image: xr.DataArray, known: set[str]) -> dict[str, Any]:
    """What the image's history says of its own making; its attrs cannot hold that a batch is all patterns."""
    made = [line for line in read_history(image.attrs) if line["operation"] == _OPERATION]
    settings = {name: value for name, value in (made[-1] if made else {}).items() if name in known and value != "auto"}
    if "iterations" not in settings:
        raise ValueError("the tuned image's history does not say with which settings it was made")
    return settings


def quantem_choice(case: Case, *, python: Path, upsample: int, like: xr.DataArray) -> dict[str, Any]:
    """Of quantem's choices the one that comes nearest to the truth: by the FRC's mean up to the band limit 2α/λ.

    Parameters
    ----------
    case : Case
        The cube and the truth.
    python, upsample, like
        As `misr.benchmark.other_python.quantem_images` takes them.

    Returns
    -------
    dict
        One of `misr.benchmark.other_python.QUANTEM_CHOICES`.

    Examples
    --------
    >>> quantem_choice(case, python="quantem-env/bin/python", upsample=4, like=case.like)  # doctest: +SKIP
    {'kernel': 'obf', 'ridge': 0.01}
    """
    from misr.benchmark.other_python import QUANTEM_CHOICES, quantem_images
    from misr.optics import electron_wavelength
    from misr.resolution import fourier_ring_correlation

    images = quantem_images(case.cube, choices=QUANTEM_CHOICES, python=python, upsample=upsample, like=like)
    cutoff = 2e-3 * float(case.cube.attrs["semiangle_mrad"]) / electron_wavelength(float(case.cube.attrs["energy_eV"]))
    scores = []
    for image in images:
        frc = fourier_ring_correlation(image, case.truth, ring_width=case.ring_width)
        # an image of nothing has no correlation
        scores.append(float(frc[frc["frequency"].values <= cutoff].fillna(0.0).mean()))
    return dict(QUANTEM_CHOICES[int(np.argmax(scores))])
