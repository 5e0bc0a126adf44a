"""The composition: a cube in, a super-resolved image with its resolution out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr._curves import named_curve
from misr._provenance import append_history, describe_rng
from misr.aberrations import aberrations_of, with_aberrations
from misr.calibrate import fit_aberrations
from misr.cube import validate_cube
from misr.descan import correct_descan, measure_descan
from misr.fusion import fuse_cnn, fuse_linear, plan_fusion
from misr.fusion.linear import CHI2_SUSPECT, unexplained, whole_counts
from misr.fusion.stream import computed_views
from misr.halves import NoElectronsError, half_map_frc
from misr.resolution import frc_resolution
from misr.views import synthesize_views

__all__ = ["half_map_frc", "super_resolve"]

_LOG = logging.getLogger(__name__)
_MODELS = ("linear", "network")
_SURE = 4.0  # standard errors
_LARGEST_ABSORPTION = 1.5  # rad


def super_resolve(
    cube: xr.DataArray,
    *,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    rotation_deg: float | None = None,
    n_views: int | None = None,
    upsample: int | str = "auto",
    model: str | Path = "linear",
    ring_width: float | None = None,
    rng: Any = None,
    device: str = "auto",
) -> xr.Dataset:
    """One super-resolved phase image, its standard deviation and its half-map resolution from one low-dose scan.

    Descan is measured and taken out, views are synthesised from the bright-field disk, fused, and fused again from two
    independent halves of the electrons, whose Fourier ring correlation says how far the image can be trusted.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube of electron counts, NumPy or dask.
    aberrations : mapping or Dataset, optional
        Polar coefficients, Å and rad; those in the cube's attrs by default. If there are none either, they are found
        with `fit_aberrations`, rotation included (a ``rotation_deg`` in the attrs is not relied on: files have 0 for
        "not known"), and written into the result's attrs (``C10_A``, ``rotation_deg`` and so on, and
        ``aberrations_confident``).
    rotation_deg : float, optional
        Scan-to-detector rotation, degrees, if it is known: kept when the aberrations are fitted, and instead of that in
        the attrs when they are not.
    n_views : int, optional
        Number of views; every bright-field pixel by default.
    upsample : int or "auto"
        Pixels per scan step.
    model : "linear", "network" or path
        The fusion: the exact linear solve (`fuse_linear`), or the network on top of it (`fuse_cnn`), which resolves
        more and guesses; a ``.safetensors`` file is a network of one's own.
    ring_width : float, optional
        FRC ring width, 1/Å (see `fourier_ring_correlation`).
    rng : None, int or numpy.random.Generator
        Seed of the split in halves (SPEC 7).
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.Dataset
        ``phase`` and ``phase_std`` (rad; dims ``("y", "x")``, Å), ``frc`` (dim ``frequency``, 1/Å; half maps) and the
        scalar ``resolution`` (Å, half-bit; its ``attrs["status"]`` says whether the curve crossed). Without whole
        counts, or with so few that a half has none, the last two are left out, with a warning. A network adds
        ``phase_linear``, ``frc_linear`` and ``resolution_linear``: those of the linear fusion of the same electrons.
        What the network puts into both halves alike raises ``frc``, not ``frc_linear``; `trust_report` tells how much.

    Raises
    ------
    ValueError
        For an invalid cube, a disk that the detector cuts or that descan moves over its edge, or a bad argument.

    Warns
    -----
    UserWarning
        If aberrations had to be fitted and are not certain, if counts are not whole electrons, or the weak-phase model
        leaves much more than the counting noise unexplained (``attrs["chi2"]``, 1 when it holds).

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 1.0, (16, 16, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> result = super_resolve(misr.apply_dose(cube, 100, rng=0), upsample=2, rng=0)
    >>> result.resolution.attrs["status"]  # a flat specimen: nothing is resolved
    'unresolved'
    """
    network = _network(model)
    validate_cube(cube, counts=False)
    cube = correct_descan(cube, measure_descan(cube))
    fit = None
    absorption_rad = _absorption(aberrations)
    if aberrations is None and aberrations_of(cube) is None:
        aberrations = fit = fit_aberrations(cube, rotation_deg=rotation_deg, device=device)
        absorption_rad = _absorption(fit)
    elif rotation_deg is not None:
        known = aberrations_of(cube) or {} if aberrations is None else aberrations
        cube = with_aberrations(cube, known, rotation_deg=rotation_deg)
        aberrations = None
    views = computed_views(synthesize_views(cube, aberrations, n_views=n_views))
    _LOG.info("fusing %d views of %d × %d positions", *views.shape)
    plan = plan_fusion(views, upsample=upsample, absorption_rad=absorption_rad, device=device)
    fuse = None if network is None else partial(fuse_cnn, plan=plan, model=network, upsample=upsample, device=device)
    result = fuse_linear(views, plan=plan) if fuse is None else fuse(views)
    note: dict[str, Any] = {
        "model": "linear" if network is None else Path(network).name, "n_views": views.sizes["view"],
        "rng": describe_rng(rng),
    }  # fmt: skip
    if fit is not None:
        note["aberrations"] = "fit_aberrations"
        result.attrs["aberrations_confident"] = int(fit.attrs["confident"])
    result.attrs["history"] = append_history(result.attrs, "super_resolve", **note)
    if result.attrs["chi2"] > CHI2_SUSPECT:
        warnings.warn(
            f"{unexplained(result.attrs['chi2'])}. Both half maps share that error, so their FRC says how "
            "well the image repeats, not how true it is",
            UserWarning,
            stacklevel=2,
        )
    if not whole_counts(views):
        warnings.warn(
            "the counts are not whole electrons, so they cannot be split in independent halves: no FRC, no resolution",
            UserWarning,
            stacklevel=2,
        )
        return result
    try:
        curves = {"": half_map_frc(views, fuse=_phase_of(fuse), plan=plan, ring_width=ring_width, rng=rng)}
        if fuse is not None:
            same = plan.folds if upsample == "auto" else upsample  # pixels, so that the rings are the same
            linear = half_map_frc(views, plan=plan, upsample=same, ring_width=ring_width, rng=rng)
            curves["_linear"] = named_curve(linear, "frc_linear")
    except NoElectronsError as error:
        warnings.warn(f"{error}: no FRC, no resolution", UserWarning, stacklevel=2)
        return result
    for which, frc in curves.items():
        resolution = frc_resolution(frc)
        resolution.attrs["history"] = append_history(frc.attrs, "frc_resolution", threshold="half-bit")
        result.attrs[f"resolution{which}_A"] = float(resolution)
        result.attrs[f"resolution{which}_status"] = resolution.attrs["status"]
        result = result.assign({f"frc{which}": frc, f"resolution{which}": resolution})
    return result


def _network(model: str | Path) -> str | Path | None:
    """The network to fuse with, as `fuse_cnn` takes it; None for the linear fusion."""
    if isinstance(model, Path) or str(model).endswith(".safetensors"):
        return model
    if model not in _MODELS:
        raise ValueError(f"model={model!r} must be one of {_MODELS}, or a .safetensors file of `misr train`")
    return "default" if model == "network" else None


def _phase_of(fuse: Any) -> Any:
    """What `half_map_frc` takes, without repeating what was warned of."""
    if fuse is None:
        return None

    def fused(views: xr.DataArray) -> xr.DataArray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            phase: xr.DataArray = fuse(views).phase
        return phase

    return fused


def _absorption(fit: Any) -> float:
    """The absorption angle of a fit, where it is more than noise; strong scatterers reach π/2."""
    if not isinstance(fit, xr.Dataset) or "absorption_rad" not in fit.attrs:
        return 0.0
    angle, stderr = (float(fit.attrs[name]) for name in ("absorption_rad", "absorption_rad_stderr"))
    # not true of NaN either
    return float(np.clip(angle, -_LARGEST_ABSORPTION, _LARGEST_ABSORPTION)) if abs(angle) >= _SURE * stderr else 0.0
