"""The methods that are compared: each from a cube of counts to an image on the pixels that all of them get.

None of them is given the truth, but for the reference at its very best, whose name says so. All are told the true
aberrations and rotation; none that the simulated scan wraps round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["METHODS", "Case", "Method", "NotAvailableError", "Prepared", "method_of"]

Reconstruct = Callable[[xr.DataArray], xr.DataArray]


class NotAvailableError(RuntimeError):
    """The method is no part of this installation."""


@dataclass(frozen=True)
class Case:
    """What a method is given."""

    cube: xr.DataArray
    like: xr.DataArray  # pixels of the image; zeros
    upsample: int  # the same, pixels per scan step
    seed: int
    truth: xr.DataArray  # for the oracles alone
    ring_width: float | None = None  # 1/Å, of every FRC on this specimen, those that a search goes by among them
    ptychography: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    quantem_python: Path | None = None
    attention_unet: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A method ready for a cube and its halves; what it chose by itself, and how long the choice took."""

    reconstruct: Reconstruct
    chosen: Mapping[str, Any] = field(default_factory=dict)
    search_s: float = 0.0


@dataclass(frozen=True)
class Method:
    """A line of the table."""

    name: str
    label: str
    colour: str
    prepare: Callable[[Case], Prepared]
    note: str = ""


def _raw_view(case: Case) -> Prepared:
    from misr.demo import raw_view
    from misr.resample import resample_like

    return Prepared(lambda cube: resample_like(raw_view(cube), case.like))


def _tcbf(case: Case) -> Prepared:
    from misr.fusion import shift_and_add
    from misr.views import synthesize_views

    return Prepared(lambda cube: shift_and_add(synthesize_views(cube), upsample=case.upsample))


def _fused(prior: str) -> Callable[[Case], Prepared]:
    def prepare(case: Case) -> Prepared:
        from misr.fusion import fuse_linear
        from misr.views import synthesize_views

        def fuse(cube: xr.DataArray) -> xr.DataArray:
            return fuse_linear(synthesize_views(cube), upsample=case.upsample, prior=prior)["phase"]

        return Prepared(fuse, {"prior": prior})

    return prepare


def _cnn(case: Case) -> Prepared:
    import misr

    fuse_cnn = getattr(misr, "fuse_cnn", None)
    if fuse_cnn is None:
        raise NotAvailableError("this version of misr has no fuse_cnn yet")
    from misr.halves import image_of
    from misr.views import synthesize_views

    return Prepared(lambda cube: image_of(fuse_cnn(synthesize_views(cube), upsample=case.upsample)))


def _parallax(case: Case) -> Prepared:
    from misr.reference import reconstruct_parallax

    return Prepared(lambda cube: reconstruct_parallax(cube, like=case.like, progress=False))


def _ptychography(preset: str) -> Callable[[Case], Prepared]:
    def prepare(case: Case) -> Prepared:
        from misr.benchmark.tuning import ptychography_options

        start = time.perf_counter()
        options = ptychography_options(case, preset)
        spent = time.perf_counter() - start if preset != "default" else 0.0

        def reconstruct(cube: xr.DataArray) -> xr.DataArray:
            from misr.halves import image_of
            from misr.reference import reconstruct_ptychography

            return image_of(reconstruct_ptychography(cube, like=case.like, rng=case.seed, progress=False, **options))

        return Prepared(reconstruct, {"preset": preset, **options}, spent)

    return prepare


def _quantem(preset: str) -> Callable[[Case], Prepared]:
    def prepare(case: Case) -> Prepared:
        from misr.benchmark.other_python import quantem_image
        from misr.benchmark.tuning import quantem_choice

        if case.quantem_python is None:
            raise NotAvailableError("quantem has an environment of its own: give its Python (quantem_python)")
        options: dict[str, Any] = {"python": case.quantem_python, "upsample": case.upsample, "like": case.like}
        start = time.perf_counter()
        choice = quantem_choice(case, **options) if preset == "oracle" else {"kernel": "wiener"}
        spent = time.perf_counter() - start if preset == "oracle" else 0.0
        return Prepared(lambda cube: quantem_image(cube, choice=choice, **options), {"preset": preset, **choice}, spent)

    return prepare


def _attention_unet(case: Case) -> Prepared:
    if case.attention_unet is None:
        raise NotAvailableError(
            "its weights do not come with misr: misr train --preset attention_unet makes them (attention_unet)"
        )
    from misr.benchmark.attention_unet import attention_unet_image, check_geometry, load_trained

    trained = load_trained(case.attention_unet)
    try:
        check_geometry(case.cube, trained.geometry)
    except ValueError as error:
        raise NotAvailableError(str(error)) from error
    chosen = {name: value for name, value in trained.training.items() if name in _TOLD}
    return Prepared(lambda cube: attention_unet_image(cube, weights=trained, like=case.like), chosen)


def _limit(case: Case) -> Prepared:
    raise NotAvailableError("the limit is computed and not reconstructed")


_TOLD = ("specimens", "core_hours", "steps", "batch")  # of the published network's training

_ALL = (
    Method("limit_linear", "linear limit", "#444444", _limit, "what any linear image of the bright field can reach"),
    Method("limit_pixels", "linear limit of these detector pixels", "#888888", _limit,
           "the same less what is lost as the shift changes across a detector pixel"),
    Method("raw_view", "one raw view", "#999999", _raw_view, "the axial one of seven groups of bright-field pixels"),
    Method("tcbf", "tcBF (shift_and_add)", "#0072b2", _tcbf, "no deconvolution"),
    Method("fuse_linear", "misr (fuse_linear)", "#d55e00", _fused("ring"), "as a user calls it"),
    Method("fuse_linear_local", "misr (fuse_linear, local prior)", "#e69f00", _fused("local"), "as a user calls it"),
    Method("fuse_cnn", "misr (fuse_cnn)", "#8c1c13", _cnn, "the network that misr comes with"),
    Method("attention_unet", "published Attention U-Net", "#b8a400", _attention_unet,
           "written from its description and trained on misr's random specimens for this one geometry"),
    Method("parallax", "py4DSTEM parallax", "#56b4e9", _parallax, "shifts from the true aberrations, phases flipped"),
    Method("ptychography", "py4DSTEM ptychography", "#009e73", _ptychography("default"), "misr's low-dose defaults"),
    Method("ptychography_tuned", "py4DSTEM ptychography, tuned", "#005c43", _ptychography("tuned"),
           "settings searched on each cube by a criterion that needs no truth"),
    Method("ptychography_oracle", "py4DSTEM ptychography, at its very best", "#7ccfb2", _ptychography("oracle"),
           "settings searched on each cube with the truth: no user can have it"),
    Method("quantem", "quantem direct ptychography", "#cc79a7", _quantem("default"),
           "Wiener kernel, its defaults; interpolates the patterns where no pixel lies on the axis"),
    Method("quantem_oracle", "quantem, at its very best", "#8f4a73", _quantem("oracle"),
           "the best of its kernels, ridges and noise levels, picked on each cube with the truth: no user can have it"),
)  # fmt: skip
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


def method_of(name: str) -> Method:
    """A method by its name, or a ValueError that says which there are."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]


def flat_like(truth: xr.DataArray) -> xr.DataArray:
    """The truth's pixels and nothing else of it."""
    return xr.DataArray(np.zeros(truth.shape), dims=("y", "x"), coords={dim: truth[dim] for dim in ("y", "x")})
