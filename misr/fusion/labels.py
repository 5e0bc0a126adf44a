"""Labels on the solution of a linear fusion: images in Å, spectra over frequency."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr

from misr.cube import image_from_array
from misr.fusion.attrs import origin_of
from misr.fusion.kernels import full_plane, image_from_spectrum, resized
from misr.fusion.plan import FusionPlan
from misr.fusion.prior import Posterior

__all__ = ["image_on_scan", "labelled_channel", "shown"]


def labelled_channel(
    posterior: Posterior,
    part: slice,
    name: str,
    *,
    plan: FusionPlan,
    views: xr.DataArray,
    upsample: int,
    attrs: dict[str, Any],
) -> dict[str, xr.DataArray]:
    """Image, standard deviation, noise and transfer of one unknown of the solve.

    Parameters
    ----------
    posterior : Posterior
        Of all unknowns.
    part : slice
        Those of this one.
    name : str
        "phase" (rad) or "absorption" (dimensionless).
    plan : FusionPlan
        Geometry.
    views : xarray.DataArray
        What was fused, for the origin.
    upsample : int
        Pixels per scan step.
    attrs : dict
        Of the image.

    Returns
    -------
    dict of DataArray
        By the names that `misr.fuse_linear` gives them.
    """
    grid, freq = plan.grid, plan.freq
    units = "rad" if name == "phase" else "1"
    prefix = "" if name == "phase" else f"{name}_"
    values = image_from_spectrum(posterior.mean[:, part], grid=grid, freq=freq, upsample=upsample)
    image = image_from_array(
        values,
        pixel_A=grid.pixel(upsample),
        origin_A=origin_of(views),
        name=name,
        units=units,
        attrs={**attrs, "units": units},
    )
    seen = shown(plan, upsample)
    variance = float((freq.weight[:, None] * posterior.variance[:, part] * seen).sum()) * grid.field_gain
    spread = xr.full_like(image, math.sqrt(variance)).rename(f"{name}_std")
    noise = _spectrum(posterior.noise[:, part] * seen, plan, upsample)
    area = np.prod(grid.padded) * grid.step[0] * grid.step[1] * grid.field_gain * plan.kept_noise
    noise = (noise * area) ** 0.5
    transfer = _spectrum(posterior.transfer[:, part] * seen, plan, upsample)
    return {
        name: image,
        f"{name}_std": spread,
        f"{prefix}noise_std": noise.assign_attrs(units=f"{units} Å" if units != "1" else "Å"),
        f"{prefix}transfer": transfer.assign_attrs(units="1"),
    }


def image_on_scan(image: torch.Tensor, *, plan: FusionPlan, upsample: int, smooth: bool = True) -> np.ndarray:
    """An image over the padded field, on whatever pixels, as the image of the scanned field.

    Parameters
    ----------
    image : torch.Tensor
        (y, x), periodic, first pixel on the padded field's first position.
    plan : FusionPlan
        Geometry.
    upsample : int
        Pixels per scan step.
    smooth : bool
        Through the Fourier series; else linearly between pixels, which keeps what is positive so.

    Returns
    -------
    numpy.ndarray
        float32, (y, x).
    """
    grid = plan.grid
    first = [pad * upsample for pad in grid.pad]
    size = [n * upsample for n in grid.shape]
    if smooth:
        plane = torch.fft.fft2(image, norm="forward")
        plane = resized(resized(plane, grid.padded[0] * upsample, 0), grid.padded[1] * upsample, 1)
        whole = torch.fft.ifft2(plane, norm="forward").real.cpu().numpy()
        return whole[first[0] : first[0] + size[0], first[1] : first[1] + size[1]].astype(np.float32)
    from scipy import ndimage

    at = [
        (first[i] + np.arange(size[i])) * (image.shape[i] / (grid.padded[i] * upsample)) for i in range(2)
    ]  # fmt: skip
    index = np.meshgrid(*at, indexing="ij")
    return ndimage.map_coordinates(image.cpu().numpy(), index, order=1, mode="grid-wrap").astype(np.float32)


def shown(plan: FusionPlan, upsample: int) -> torch.Tensor:
    """Which object frequencies an image of so many pixels per scan step shows: (scan frequency, alias)."""
    if upsample >= plan.folds:
        return torch.ones_like(plan.freq.y, dtype=torch.bool)
    limit_y, limit_x = (0.5 * upsample / step * (1 - 1e-6) for step in plan.grid.step)
    return (plan.freq.y.abs() < limit_y) & (plan.freq.x.abs() < limit_x)


def _spectrum(values: torch.Tensor, plan: FusionPlan, upsample: int) -> xr.DataArray:
    """An even function of frequency, (scan frequency, alias), with the frequencies of the image in rising order."""
    grid = plan.grid
    plane = full_plane(values, grid=grid, freq=plan.freq, conjugate=False).cpu().numpy()
    plane = np.fft.fftshift(plane)
    coords, chosen = {}, []
    for axis, dim in enumerate(("frequency_y", "frequency_x")):
        frequency = np.fft.fftshift(np.fft.fftfreq(grid.fine[axis], grid.step[axis] / grid.upsample))
        limit = 0.5 * upsample / grid.step[axis]
        inside = (frequency >= -limit * (1 + 1e-9)) & (frequency < limit * (1 - 1e-9))
        chosen.append(inside)
        coords[dim] = (dim, frequency[inside], {"units": "1/Å"})
    return xr.DataArray(plane[np.ix_(*chosen)].astype(np.float32), dims=("frequency_y", "frequency_x"), coords=coords)
