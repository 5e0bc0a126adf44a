"""Linear fusion of views: the exact joint solve of the aliases, and the tilt-corrected sum."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.aberrations import aberration_attrs, aberrations_of
from misr.cube import image_from_array, scan_step
from misr.fusion.geometry import ScanGrid, ViewGeometry, choose_upsample, scan_grid, view_geometry
from misr.optics import aberration_gradient, aberration_phase, axial_overlap

__all__ = ["fuse_linear", "shift_and_add"]

_NO_TRANSFER = 0.01  # of the strongest power transfer
_CHI2_WITHIN_NOISE = 1.05  # below, the excess is not worth a second solve
_CHI2_TOO_QUIET = 0.8  # electrons cannot scatter so little
_LOST, _LOST_SIGMA = 0.2, 6.0  # of the median position's electrons, or the inverse; and as many standard deviations off


def fuse_linear(views: xr.DataArray, *, upsample: int | str = "auto", device: str = "auto") -> xr.Dataset:
    """Fuse views into one phase image by the exact linear solve of a weak phase object.

    A scan of step s folds the object's frequencies modulo 1/s. The views see the folded frequencies with different
    overlap functions Γ, so all aliases of a scan frequency are solved together:
    ``(Γᴴ N Γ + Λ) φ = Γᴴ N G``, with N the expected counts of each view (the inverse variance of its contrast)
    and Λ = noise power / object power, the object's power learnt per frequency ring from the same data.

    Parameters
    ----------
    views : xarray.DataArray
        From `misr.synthesize_views`, dims ``("view", "scan_y", "scan_x")``, electrons, aberrations known.
    upsample : int or "auto"
        Pixels per scan step; "auto" reaches the band limit 2α/λ with no more aliases than views.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.Dataset
        ``phase`` and ``phase_std`` (rad), dims ``("y", "x")``, Å on the scan's own origin. ``phase_std`` is the
        standard deviation that the linear model gives a pixel (noise and what the prior leaves open), the same over
        the whole field; too large rather than too small, since rings that the data say nothing about are given the
        power of their neighbours. ``attrs["chi2"]`` is the unexplained over the expected counting noise: about 1 where
        the weak-phase model holds; an excess is treated as further noise.

    Raises
    ------
    ValueError
        For views without labels or aberrations, a bad ``upsample``, or counts that are not finite or all zero.

    Warns
    -----
    UserWarning
        If scan positions hold far too few or too many electrons (they are left out), or the counts scatter less than
        electrons can.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (8, 8, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -1000})
    >>> image = fuse_linear(misr.synthesize_views(cube), upsample=2)
    >>> image.phase.shape, round(image.chi2, 1)
    ((16, 16), 1.0)
    """
    from misr.fusion import kernels

    geometry = view_geometry(views)
    grid = scan_grid(views, upsample=choose_upsample(upsample, geometry=geometry, step=scan_step(views)))
    on = kernels.resolve_device(device)
    counts = _counts(views)
    lost = _lost_positions(counts)
    grid = replace(grid, kept=1 - float(lost.mean()))
    transformed, mean = kernels.spectra(counts, lost=lost, grid=grid, device=on)
    freq = kernels.frequencies(grid, cutoff=geometry.cutoff, device=on)
    equations = kernels.normal_equations(transformed, mean, geometry=geometry, freq=freq)
    posterior, chi2 = _regularised_solve(equations, transformed, mean, freq=freq, grid=grid, cutoff=geometry.cutoff)
    if chi2 < _CHI2_TOO_QUIET:
        warnings.warn(
            f"the counts scatter {1 / max(chi2, 1e-9):.3g} times less than electrons do, and are smoothed as if they "
            "were electrons: draw them with misr.apply_dose if they are expected, or divide by the detector's gain",
            UserWarning,
            stacklevel=2,
        )
    phase = kernels.image_from_spectrum(posterior.mean, grid=grid, freq=freq)
    variance = float((freq.weight[:, None] * posterior.variance).sum())
    attrs = _image_attrs(views, "fuse_linear", grid) | {"chi2": chi2}
    image = image_from_array(phase, pixel_A=_pixel(grid), origin_A=_origin(views), attrs=attrs)
    spread = xr.full_like(image, np.sqrt(variance)).rename("phase_std")
    return xr.Dataset({"phase": image, "phase_std": spread}, attrs=attrs)


def _regularised_solve(equations: Any, transformed: Any, mean: Any, *, freq: Any, grid: ScanGrid, cutoff: float) -> Any:
    """Solve with the prior learnt; what the model cannot explain beyond counting noise counts as noise too.

    At high dose the weak-phase model itself, not the counting, limits the fit; without this its error would be
    divided by the nearly empty overlap at the band's edge.
    """
    from misr.fusion import prior

    rings = prior.make_rings(freq, width=_ring_width(grid), cutoff=cutoff)
    scale, power = 1.0, None
    for _ in range(2):
        n_effective = grid.n_effective / scale
        power = prior.learn_ring_power(equations, rings=rings, n_effective=n_effective, start=power)
        posterior = prior.solve(equations, power=rings.spread(power), n_effective=n_effective)
        chi2 = prior.excess_residual(
            equations, posterior, transformed=transformed, mean=mean, freq=freq, n_effective=grid.n_effective
        )
        if chi2 < _CHI2_WITHIN_NOISE:
            break
        scale = chi2
    return posterior, chi2


def shift_and_add(
    views: xr.DataArray, *, upsample: int | str = "auto", ctf: str | None = "wiener", device: str = "auto"
) -> xr.DataArray:
    """Tilt-corrected bright field (tcBF, parallax): undo each view's geometric shift, sum, correct the CTF.

    Each view is laid on the fine grid (its spectrum repeated), shifted back by a sub-pixel phase ramp and added;
    aliases cancel in the sum because they do not line up. The sum has the contrast transfer
    ``2 a(q λ/2α) sin χ(q)``, a the aperture's self-overlap (parallax in Varnavides et al. 2023, arXiv:2309.05250).

    Parameters
    ----------
    views : xarray.DataArray
        From `misr.synthesize_views`, dims ``("view", "scan_y", "scan_x")``, electrons, aberrations known.
    upsample : int or "auto"
        Pixels per scan step.
    ctf : "wiener", "flip" or None
        Divide by the transfer with a noise floor (phase in rad), only mend its sign, or leave the contrast as it is.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, Å on the scan's own origin; rad for "wiener", dimensionless contrast otherwise.

    Raises
    ------
    ValueError
        For views without labels or aberrations, or a bad ``upsample`` or ``ctf``.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = misr.cube_from_array(np.broadcast_to(disk * 9.0, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> shift_and_add(misr.synthesize_views(flat), upsample=2).shape
    (16, 16)
    """
    from misr.fusion import kernels

    if ctf not in ("wiener", "flip", None):
        raise ValueError(f"ctf={ctf!r} must be 'wiener', 'flip' or None")
    geometry = view_geometry(views)
    grid = scan_grid(views, upsample=choose_upsample(upsample, geometry=geometry, step=scan_step(views)))
    on = kernels.resolve_device(device)
    counts = _counts(views)
    lost = _lost_positions(counts)
    grid = replace(grid, kept=1 - float(lost.mean()))
    transformed, mean = kernels.spectra(counts, lost=lost, grid=grid, device=on)
    shifts = np.column_stack((views["shift_y"].values, views["shift_x"].values))
    freq = kernels.frequencies(grid, cutoff=geometry.cutoff, device=on)
    summed = kernels.shifted_sum(transformed, mean, shifts=shifts, grid=grid, freq=freq)
    transfer = _tcbf_transfer(freq, geometry)
    if ctf == "flip":
        summed = summed * transfer.sign()
    elif ctf == "wiener":
        noise = max(1 / (grid.n_effective * float(mean.sum())), _alias_floor(summed, transfer, freq))
        summed = _wiener(summed, transfer, noise=noise, freq=freq, ring_width=_ring_width(grid), cutoff=geometry.cutoff)
    attrs = _image_attrs(views, "shift_and_add", grid) | {"ctf": str(ctf)}
    if ctf != "wiener":
        attrs["units"] = "1"
    image = kernels.image_from_spectrum(summed, grid=grid, freq=freq)
    return image_from_array(image, pixel_A=_pixel(grid), origin_A=_origin(views), attrs=attrs, units=attrs["units"])


def _tcbf_transfer(freq: Any, geometry: ViewGeometry) -> Any:
    import torch

    optics: dict[str, Any] = {"aberrations": geometry.aberrations, "wavelength": geometry.wavelength}
    chi = aberration_phase(freq.y, freq.x, **optics)
    transfer = 2 * axial_overlap(freq.magnitude, cutoff=geometry.cutoff) * torch.sin(chi)
    # the shift differs over a detector pixel by its edge times the gradient's slope: q·(∂∇χ/∂k) = ∇χ(q) to second order
    slope_y, slope_x = aberration_gradient(freq.y, freq.x, **optics)
    for edge_y, edge_x in geometry.pixel_edges:
        transfer = transfer * torch.sinc((slope_y * edge_y + slope_x * edge_x) / (2 * np.pi))
    inside = (freq.magnitude > 0) & (freq.magnitude < 2 * geometry.cutoff)
    return transfer * inside


def _alias_floor(summed: Any, transfer: Any, freq: Any) -> float:
    """Power that the sum holds where it transfers nothing: aliases that did not cancel, which more dose cannot help."""
    strength = transfer**2
    dark = (strength > 0) & (strength < _NO_TRANSFER * strength.max())
    weight = freq.weight[:, None] * dark
    return float((weight * summed.abs().double() ** 2).sum() / weight.sum().clamp(min=1))


def _wiener(summed: Any, transfer: Any, *, noise: float, freq: Any, ring_width: float, cutoff: float) -> Any:
    """Wiener division with the object's power learnt per ring: the same solve with every alias on its own."""
    from misr.fusion import prior
    from misr.fusion.kernels import NormalEquations

    alone = {name: getattr(freq, name).reshape(-1, 1) for name in ("y", "x", "magnitude", "alias")}
    weight = freq.weight[:, None].expand(freq.magnitude.shape).reshape(-1)
    each = replace(freq, weight=weight, **alone)
    equations = NormalEquations((transfer**2).reshape(-1, 1, 1), (transfer * summed).reshape(-1, 1))
    rings = prior.make_rings(each, width=ring_width, cutoff=cutoff)
    power = prior.learn_ring_power(equations, rings=rings, n_effective=1 / noise)
    return prior.solve(equations, power=rings.spread(power), n_effective=1 / noise).mean.reshape(summed.shape)


def _counts(views: xr.DataArray) -> np.ndarray:
    counts = np.asarray(views.values)
    total = counts.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise ValueError("the views hold NaN or infinite counts: mask dead pixels of the cube first")
    if total <= 0:
        raise ValueError("the views hold no electrons: check the bright-field disk, or whether the beam was on")
    return counts


def whole_counts(views: xr.DataArray) -> bool:
    """Whether the counts are whole electrons, so that counting statistics hold and halves can be drawn."""
    return views.dtype.kind in "ui" or bool(np.array_equal(views.values, np.rint(views.values)))


def _lost_positions(counts: np.ndarray) -> np.ndarray:
    """Scan positions whose electrons are far too few or too many (blanked beam, lost frames, a spark): left out."""
    total = counts.sum(axis=0, dtype=np.float64)
    usual = float(np.median(total))
    far = (total < _LOST * usual) | (total > usual / _LOST)
    lost = far & (np.abs(total - usual) > _LOST_SIGMA * np.sqrt(np.maximum(usual, total)))
    if lost.any():
        rows = ", ".join(map(str, np.flatnonzero(lost.any(axis=1))[:8]))
        warnings.warn(
            f"{int(lost.sum())} of {lost.size} scan positions hold under a fifth or over five times the usual "
            f"electrons (scan rows {rows}): they are left out. Was the beam blanked, or were frames lost?",
            UserWarning,
            stacklevel=3,
        )
    return lost


def _ring_width(grid: ScanGrid) -> float:
    """One frequency pixel of the padded field, 1/Å (the coarser axis)."""
    return 1 / min(grid.padded[0] * grid.step[0], grid.padded[1] * grid.step[1])


def _pixel(grid: ScanGrid) -> tuple[float, float]:
    return grid.step[0] / grid.upsample, grid.step[1] / grid.upsample


def _origin(views: xr.DataArray) -> tuple[float, float]:
    return float(views.scan_y[0]), float(views.scan_x[0])


def _image_attrs(views: xr.DataArray, method: str, grid: ScanGrid) -> dict[str, Any]:
    kept: Sequence[str] = ("energy_eV", "semiangle_mrad", "dose_e_per_A2", "rotation_deg", "period_A")
    attrs: dict[str, Any] = {"units": "rad", "method": method, "upsample": grid.upsample}
    attrs |= {name: views.attrs[name] for name in kept if name in views.attrs}
    attrs["n_views"] = int(views.sizes["view"])
    attrs |= aberration_attrs(aberrations_of(views))
    attrs["history"] = append_history(views.attrs, method, upsample=grid.upsample)
    return attrs
