"""Tilt-corrected bright field (tcBF, parallax): the classical sum of shifted views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from misr.cube import image_from_array, scan_step
from misr.fusion.attrs import image_attrs, origin_of
from misr.fusion.geometry import ViewGeometry, choose_upsample, scan_grid, view_geometry
from misr.optics import aberration_gradient, aberration_phase, axial_overlap

__all__ = ["shift_and_add"]

_NO_TRANSFER = 0.01  # of the strongest power transfer


def shift_and_add(
    views: xr.DataArray, *, upsample: int | str = "auto", ctf: str | None = "wiener", device: str = "auto"
) -> xr.DataArray:
    """Tilt-corrected bright field (tcBF, parallax): undo each view's geometric shift, sum, correct the CTF.

    Each view is laid on the fine grid (its spectrum repeated), shifted back by a sub-pixel phase ramp and added;
    aliases cancel in the sum because they do not line up. The sum has the contrast transfer
    ``2 a(q λ/2α) sin χ(q)``, a the aperture's self-overlap (parallax in Varnavides et al. 2023, arXiv:2309.05250). Both
    hold for aberrations of second order; with strong higher ones the sum blurs, and `fuse_linear` does not.

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
    from misr.fusion.statistic import batches
    from misr.fusion.stream import held_stack, lost_positions

    if ctf not in ("wiener", "flip", None):
        raise ValueError(f"ctf={ctf!r} must be 'wiener', 'flip' or None")
    geometry = view_geometry(views)
    grid = scan_grid(views, upsample=choose_upsample(upsample, geometry=geometry, step=scan_step(views)))
    on = kernels.resolve_device(device)
    freq = kernels.frequencies(grid, cutoff=geometry.cutoff, device=on)
    with held_stack(views) as (stack, per_position):
        lost = lost_positions(per_position)
        grid = replace(grid, kept=1 - float(lost.mean()))
        total = float(per_position[~lost].mean())
        summed: Any = 0.0
        for part in batches(len(stack), grid):
            transformed, _ = kernels.spectra(np.asarray(stack[part]), lost=lost, grid=grid, device=on)
            shifts = np.column_stack((views["shift_y"].values[part], views["shift_x"].values[part]))
            summed = summed + kernels.shifted_sum(transformed, total, shifts=shifts, grid=grid, freq=freq)
    transfer = _tcbf_transfer(freq, geometry)
    if ctf == "flip":
        summed = summed * transfer.sign()
    elif ctf == "wiener":
        noise = max(1 / (grid.n_effective * total), _alias_floor(summed, transfer, freq))
        summed = _wiener(summed, transfer, noise=noise, freq=freq, ring_width=grid.ring_width, cutoff=geometry.cutoff)
    attrs = image_attrs(views, "shift_and_add", grid.upsample, {}) | {"ctf": str(ctf)}
    if ctf != "wiener":
        attrs["units"] = "1"
    image = kernels.image_from_spectrum(summed, grid=grid, freq=freq, upsample=grid.upsample)
    return image_from_array(
        image, pixel_A=grid.pixel(grid.upsample), origin_A=origin_of(views), attrs=attrs, units=attrs["units"]
    )


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

    alone = {name: getattr(freq, name).reshape(-1, 1) for name in ("y", "x", "magnitude", "alias")}
    weight = freq.weight[:, None].expand(freq.magnitude.shape).reshape(-1)
    each = replace(freq, weight=weight, **alone)
    normal = (transfer**2).reshape(-1, 1, 1), (transfer * summed).reshape(-1, 1)
    equations = prior.NormalEquations(*normal, electrons=normal[0].new_full((len(weight),), 1 / noise).double())
    rings = prior.make_rings(each, width=ring_width, cutoff=cutoff)
    power, _ = prior.learn_ring_power(equations, rings=rings)
    return prior.solve(equations, power=rings.spread(power)).mean.reshape(summed.shape)
