"""Learned fusion: the exact linear solve, then the dual-path attention network in natural units."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr.cube import image_from_array, scan_step
from misr.fusion.attrs import image_attrs, origin_of
from misr.fusion.geometry import check_upsample

if TYPE_CHECKING:
    from misr.fusion.plan import FusionPlan
    from misr.fusion.view_groups import GroupedViews

__all__ = ["fuse_cnn"]

_BARELY = 1.2  # times outside is not worth a word


def fuse_cnn(
    views: xr.DataArray,
    *,
    upsample: int | str = "auto",
    model: str | Path = "default",
    n_groups: int = 16,
    plan: FusionPlan | None = None,
    tile: int = 512,
    device: str = "auto",
) -> xr.Dataset:
    """Fuse views by the exact linear solve and a network that adds what it knows of matter, and says how sure it is.

    The network sees the linear images (ring and local prior), their noise, and groups of views, all in units of the
    band limit and of the noise, so that optics, dose and number of views are free. Where the data are sure of a
    frequency they decide; what the network adds elsewhere is a guess, to be judged by `trust_report`. It tells
    vacancies and interstitials as well as the linear image under the ring prior; `fuse_linear` with ``method="obf"``,
    which has no prior, tells them best.

    Parameters
    ----------
    views : xarray.DataArray
        From `misr.synthesize_views`, dims ``("view", "scan_y", "scan_x")``, electrons, aberrations known. NumPy or
        dask.
    upsample : int or "auto"
        Pixels per scan step; "auto" gives the pixels that carry the band limit 2α/λ.
    model : str or path
        "default", or a ``.safetensors`` file that ``misr train`` wrote.
    n_groups : int
        Groups that the views are gathered in for the angular path, at most; without that path (the default model has
        none) they stay together.
    plan : FusionPlan, optional
        From `misr.plan_fusion` for these views.
    tile : int
        Pixels (0.46 λ/2α each) of a tile's side; larger fields are fused tile by tile, with overlap.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.Dataset
        ``phase`` and ``phase_std`` (rad; dims ``("y", "x")``, Å; the latter differs from pixel to pixel, and is that
        of an image with the whole band), ``phase_linear`` (rad), the image of `fuse_linear` on the same pixels.
        ``attrs["prior_share"]`` is the share of the image's power that the network stands for and not the data,
        ``attrs["chi2"]`` as in `fuse_linear`.

    Raises
    ------
    ValueError
        For views without labels or aberrations, counts that are all zero, an unknown model, or a bad argument.

    Warns
    -----
    UserWarning
        If energy, semi-angle, band limit, defocus, dose or scan step lie well outside what the network was trained for,
        and by how much; or as in `fuse_linear`.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 1.0, (16, 16, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             dose_e_per_A2=20, aberrations={"C10": -1000})
    >>> image = fuse_cnn(misr.synthesize_views(cube), upsample=4)
    >>> image.phase.shape, bool((image.phase_std > 0).all())
    ((64, 64), True)
    """
    from misr.fusion.labels import image_on_scan
    from misr.fusion.linear import CHI2_SUSPECT, solved, unexplained
    from misr.fusion.natural import natural_field, natural_groups
    from misr.fusion.tiles import network_images
    from misr.fusion.view_groups import measure_in_groups
    from misr.fusion.weights import load_network

    check_upsample(upsample)
    _check_whole("n_groups", n_groups, least=1)
    _check_whole("tile", tile, least=64)
    network = load_network(model)
    number = n_groups if network.settings.angular else 1  # nothing else looks at the groups
    grouped = measure_in_groups(views, number, plan=plan, device=device)
    plan = grouped.plan
    _warn_outside(views, grouped)
    solution = solved(plan, grouped.statistic, local=True)
    if solution.chi2 > CHI2_SUSPECT:
        warnings.warn(unexplained(solution.chi2), UserWarning, stacklevel=2)
    field = natural_field(plan, solution)
    groups = natural_groups(plan, grouped.vectors, grouped.statistic) * math.sqrt(len(grouped.vectors))
    made = network_images(network.to(plan.overlaps.device), field, groups, grouped.tilts, tile=tile)

    fine = plan.folds if upsample == "auto" else int(upsample)
    told = {"model": Path(model).name, "n_groups": len(grouped.vectors)}
    attrs = image_attrs(views, "fuse_cnn", fine, told) | {"chi2": solution.chi2, "prior_share": made.prior_share}
    images = {
        "phase": image_on_scan(made.phase, plan=plan, upsample=fine),
        "phase_std": image_on_scan(made.phase_std, plan=plan, upsample=fine, smooth=False),
        "phase_linear": image_on_scan(field.in_rad(field.ring), plan=plan, upsample=fine),
    }
    pixel, origin = plan.grid.pixel(fine), origin_of(views)
    variables = {
        name: image_from_array(values, pixel_A=pixel, origin_A=origin, name=name, units="rad", attrs=attrs)
        for name, values in images.items()
    }
    return xr.Dataset(variables, attrs=attrs)


def _check_whole(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number, {least} or more")


def _warn_outside(views: xr.DataArray, grouped: GroupedViews) -> None:
    """Say what lies outside the ranges trained for, and how far."""
    from misr.fusion import random_scans as ranges

    geometry, step = grouped.plan.geometry, scan_step(views)
    semiangle, band = float(views.attrs["semiangle_mrad"]), 2 * geometry.cutoff
    defocus = abs(geometry.aberrations.get("C10", 0.0)) * (semiangle * 1e-3) ** 2 / geometry.wavelength
    # nearly all electrons are in the bright field
    dose = float(views.attrs.get("dose_e_per_A2") or 0.0) or grouped.electrons / (step[0] * step[1])
    given = {
        "energy_eV": (float(views.attrs["energy_eV"]), ranges.ENERGIES, "eV"),
        "semiangle_mrad": (semiangle, ranges.SEMIANGLES, "mrad"),
        "band limit": (band, ranges.BANDS, "1/Å"),
        "defocus": (defocus, ranges.DEFOCI, "λ/α²"),
        "scan step": (max(step) * band, ranges.STEPS, "λ/2α"),
        "dose": (dose, ranges.DOSES, "e/Å²"),
    }
    outside = []
    for name, (value, (low, high), units) in given.items():
        factor = max(low / value if value > 0 else math.inf, value / high)
        if factor > _BARELY:
            outside.append(f"{name} {value:.3g} {units} is a factor {factor:.3g} outside {low:g} to {high:g}")
    if outside:
        warnings.warn(
            f"the network was not trained for this: {'; '.join(outside)}. Compare with phase_linear, and see "
            "misr.trust_report",
            UserWarning,
            stacklevel=3,
        )
