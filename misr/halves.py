"""Half maps: one reconstruction from each of two independent halves of the electrons, and how well they agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._curves import named_curve
from misr._provenance import append_history, describe_rng
from misr.aberrations import aberration_attrs, aberrations_of
from misr.calibrate import calibrate_cube, fit_aberrations
from misr.cube import CUBE_DIMS, is_periodic, validate_cube
from misr.dose import halves_in_turn
from misr.fusion import fuse_linear, plan_fusion
from misr.resolution import fourier_ring_correlation, frc_resolution
from misr.snr import full_dose_frc
from misr.views import synthesize_views

if TYPE_CHECKING:
    from misr.fusion.plan import FusionPlan

__all__ = ["NoElectronsError", "half_map_frc", "half_maps", "image_of", "whole_band"]

Pipeline = Callable[[xr.DataArray], "xr.DataArray | xr.Dataset"]
Pair = tuple[xr.DataArray, xr.DataArray]

_VIEW_DIMS = ("view", "scan_y", "scan_x")
_CALIBRATIONS = ("shared", "separate", "none")
_HALVES = ("first", "second")
_SAME_GRID = 1e-3  # of a pixel


class NoElectronsError(ValueError):
    """A half that holds no electrons, so that no image can be made of it."""


def half_maps(
    cube: xr.DataArray,
    pipeline: Pipeline | None = None,
    *,
    rng: Any = None,
    calibration: str = "shared",
    ring_width: float | str | None = None,
    window: str | None = "auto",
) -> xr.Dataset:
    """Two images from independent halves of the electrons, their Fourier ring correlation and its resolution.

    Each electron goes to one half or the other by a fair coin, so the halves are independent Poisson counts again.
    Their images share the specimen, whatever the reconstruction adds by itself (a learned prior, smoothing), and,
    unless told otherwise, the calibration: the curve says how well an image repeats, not how true it is.

    Parameters
    ----------
    cube : xarray.DataArray
        Whole electron counts: a 4D-STEM cube, or a stack of views. NumPy or dask.
    pipeline : callable, optional
        From a cube (or views, if those are given) of half the dose to an image: a DataArray ``("y", "x")`` or a Dataset
        that holds one as ``phase``, on the same pixels both times. Called twice; NumPy halves are made one after the
        other. By default the linear fusion, with one plan for both, of whose halves only a few views are in memory.
    rng : None, int or numpy.random.Generator
        Seed of the split (SPEC 7), the same halves as `misr.split_counts` of what is split: the cube, or the views for
        the default pipeline.
    calibration : "shared", "separate" or "none"
        "shared": both halves have the aberrations in the cube's attrs or, without any, those found in the whole
        (`misr.calibrate_cube`), whose errors they then share and the curve does not see. "separate": each half's
        aberrations are found in that half alone, whatever the attrs say, so that errors of calibration count (at half
        the dose: it is the harder test). Needs a cube. "none": the pipeline gets the halves as they are, for one that
        needs no aberrations or finds them itself.
    ring_width : float or "auto", optional
        1/Å, see `misr.fourier_ring_correlation`.
    window : "auto", "hann" or None
        Taper of the images; "auto": none for images that wrap round (``attrs["period_A"]``), else "hann".

    Returns
    -------
    xarray.Dataset
        ``first``, ``second`` (``("y", "x")``, as the pipeline gives them); ``frc`` over ``frequency`` (1/Å),
        ``attrs["kind"]`` "half-map"; ``frc_full``, the same corrected to the full dose, ``2F/(1 + F)``; ``resolution``
        (Å, scalar, half-bit threshold on ``frc``; ``attrs["status"]`` says whether the curve crossed it).
        ``attrs["calibration"]`` and ``attrs["pipeline"]`` say what was done.

    Raises
    ------
    TypeError
        If the pipeline returns no image.
    ValueError
        If counts are not whole, a half holds no electrons, the images have different grids, or an argument is out of
        range.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (16, 16, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -1000})
    >>> halves = half_maps(cube, rng=0)
    >>> list(halves.data_vars), halves.resolution.attrs["status"]
    (['first', 'second', 'frc', 'frc_full', 'resolution'], 'unresolved')
    """
    _check_arguments(cube, calibration)
    separate = calibration == "separate"
    shared = _calibrated(cube) if calibration == "shared" else cube
    if pipeline is None and not separate:
        # a view is a sum of pixels: thinning the sum has the same law, and both halves then share disk and geometry
        views = shared if shared.dims == _VIEW_DIMS else synthesize_views(shared)
        first, second = _fused_halves(views, None, rng)
    else:
        run = whole_band if pipeline is None else pipeline
        first, second = _images(shared, run, rng, separate=separate)
    note = {"pipeline": _name(pipeline), "calibration": calibration, "rng": describe_rng(rng)}
    history = append_history(cube.attrs, "half_maps", **note, ring_width=ring_width, window=window)
    frc = _correlated(first, second, ring_width=ring_width, window=window)
    frc.attrs |= {"calibration": calibration, "history": history}
    resolution = frc_resolution(frc)
    resolution.attrs["history"] = append_history(frc.attrs, "frc_resolution", threshold="half-bit")
    maps = {name: image.rename(name) for name, image in zip(_HALVES, (first, second), strict=True)}
    curves = {"frc": frc, "frc_full": named_curve(full_dose_frc(frc), "frc_full"), "resolution": resolution}
    return xr.Dataset(
        maps | curves, attrs={"calibration": calibration, "pipeline": note["pipeline"], "history": history}
    )


def half_map_frc(
    views: xr.DataArray,
    *,
    fuse: Any = None,
    plan: FusionPlan | None = None,
    upsample: int | str = "auto",
    ring_width: float | str | None = None,
    rng: Any = None,
    device: str = "auto",
) -> xr.DataArray:
    """FRC between images fused from two independent halves of the electrons in a stack of views.

    A view is a sum of pixels, and thinning the sum has the same law as thinning each pixel, so the views are split and
    not the cube; by default a few views at a time, so that no half is ever held as a whole.

    Parameters
    ----------
    views : xarray.DataArray
        Whole counts, dims ``("view", "scan_y", "scan_x")``.
    fuse : callable, optional
        From views to a DataArray ``("y", "x")``; the linear fusion by default.
    plan : FusionPlan, optional
        From `misr.plan_fusion`, for the default ``fuse``; made from ``views`` when not given, so that both halves share
        the geometry and the pixels, and nothing else.
    upsample, device
        As in `fuse_linear`, used by the default ``fuse`` without a plan.
    ring_width : float or "auto", optional
        1/Å.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    xarray.DataArray
        See `fourier_ring_correlation`; ``attrs["kind"]`` is "half-map".

    Raises
    ------
    ValueError
        If the counts are not whole numbers, or a half holds no electrons.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (16, 16, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> half_map_frc(misr.synthesize_views(cube), upsample=2, rng=0).attrs["kind"]
    'half-map'
    """
    if fuse is None:
        first, second = _fused_halves(views, plan, rng, upsample=upsample, device=device)
    else:
        first, second = _images(views, fuse, rng)
    return _correlated(first, second, ring_width=ring_width, window="auto")


def _name(pipeline: Pipeline | None) -> str:
    return "fuse_linear" if pipeline is None else getattr(pipeline, "__name__", type(pipeline).__name__)


def _check_arguments(cube: Any, calibration: str) -> None:
    if calibration not in _CALIBRATIONS:
        raise ValueError(f"calibration={calibration!r} must be one of {_CALIBRATIONS}")
    dims = getattr(cube, "dims", None)
    if dims == CUBE_DIMS:
        validate_cube(cube, counts=False)
    elif dims != _VIEW_DIMS:
        raise ValueError(
            f"expected a cube {CUBE_DIMS} or views {_VIEW_DIMS}, got {dims or type(cube).__name__}: make them with "
            "misr.cube_from_array and misr.synthesize_views"
        )
    elif calibration == "separate":
        raise ValueError(
            "calibration='separate' needs the cube, since views are made with one calibration: give the cube, or "
            "calibration='shared'"
        )


def _calibrated(cube: xr.DataArray) -> xr.DataArray:
    if cube.dims != CUBE_DIMS or aberrations_of(cube) is not None:
        return cube
    return calibrate_cube(cube, fit_aberrations(cube))


def _without_aberrations(cube: xr.DataArray) -> xr.DataArray:
    known = aberration_attrs(aberrations_of(cube)) if aberrations_of(cube) is not None else {}
    bare = cube.copy(deep=False)
    bare.attrs = {name: value for name, value in cube.attrs.items() if name not in known}
    return bare


def whole_band(half: xr.DataArray) -> xr.DataArray:
    """Linear fusion on the pixels that carry the whole band, whatever the half fills of it: the same for both."""
    views = synthesize_views(half)
    plan = plan_fusion(views)
    return fuse_linear(views, plan=plan, upsample=plan.folds)["phase"]


def _images(counts: xr.DataArray, pipeline: Pipeline, rng: Any, *, separate: bool = False) -> Pair:
    images = []
    for number, half in enumerate(halves_in_turn(counts, rng=rng)):
        if not float(half.sum()) > 0:
            raise _no_electrons(number)
        ready = _calibrated(_without_aberrations(half)) if separate else half
        images.append(image_of(pipeline(ready)))
    _check_grids(*images)
    return images[0], images[1]


def _no_electrons(number: int) -> NoElectronsError:
    return NoElectronsError(
        f"the {_HALVES[number]} half of the electrons is empty: there are too few to split (was the beam on?)"
    )


def _fused_halves(
    views: xr.DataArray, plan: FusionPlan | None, rng: Any, *, upsample: int | str = "auto", device: str = "auto"
) -> Pair:
    from misr.fusion.half_images import EmptyHalfError, fuse_halves

    held = plan_fusion(views, upsample=upsample, device=device) if plan is None else plan
    try:
        return fuse_halves(views, plan=held, upsample=upsample, rng=rng)
    except EmptyHalfError as error:
        raise _no_electrons(error.number) from None


def image_of(result: Any) -> xr.DataArray:
    """The image that a pipeline returned, by itself or as ``phase`` of a Dataset."""
    image = result["phase"] if isinstance(result, xr.Dataset) and "phase" in result else result
    if not isinstance(image, xr.DataArray) or image.dims != ("y", "x"):
        found = getattr(image, "dims", None) or type(image).__name__
        raise TypeError(
            f"the pipeline returned {found}: expected a DataArray ('y', 'x') or a Dataset that holds it as 'phase'"
        )
    return image


def _check_grids(first: xr.DataArray, second: xr.DataArray) -> None:
    what = "the pipeline gave images of different grids for the two halves"
    wish = "fix the pixels, e.g. upsample=4 instead of 'auto', or one plan (misr.plan_fusion) for both"
    if first.shape != second.shape:
        raise ValueError(f"{what}, {first.shape} and {second.shape} pixels: {wish}")
    for dim in ("y", "x"):
        here, there = (np.asarray(image[dim].values, float) for image in (first, second))
        away = float(np.max(np.abs(here - there)))
        if away > _SAME_GRID * abs(here[-1] - here[0]) / max(1, here.size - 1):
            raise ValueError(f"{what}, {dim} up to {away:.3g} Å apart: {wish}")


def _correlated(first: xr.DataArray, second: xr.DataArray, *, ring_width: Any, window: str | None) -> xr.DataArray:
    # a pipeline may crop what wraps round
    periodic = is_periodic(first) and is_periodic(second)
    taper = (None if periodic else "hann") if window == "auto" else window
    frc = fourier_ring_correlation(first, second, ring_width=ring_width, window=taper)
    frc.attrs["kind"] = "half-map"
    return frc
