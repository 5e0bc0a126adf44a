"""Does an image foretell electrons that it has not seen, as well as the linear fusion's image does?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from misr._trust_controls import on_grid, scan_pixel

__all__ = ["Denied", "Foretold", "denied", "foretell"]

_LEAST_ADDED = 1e-6  # of the image's power: what it adds to the linear image is rounding
_FINEST = 0.5  # tolerated part over the repeating one, at most: what repeats less is noise


@dataclass(frozen=True)
class Foretold:
    """Log-likelihood gained over vacuum on unseen electrons.

    ``gain`` and ``linear_gain`` in nats per electron; ``lacking`` the share of the linear image's gain that the image
    lacks (negative: it foretells better); ``p_value`` the chance of as little if it lacked the tolerated share;
    ``chi2`` with ``chi2_stderr`` and ``deviance`` with ``deviance_expected`` of the image as `misr.count_consistency`
    has them: whether the model explains the counts at all.
    """

    gain: float
    linear_gain: float
    lacking: float
    p_value: float
    chi2: float = math.nan
    chi2_stderr: float = math.nan
    deviance: float = math.nan
    deviance_expected: float = math.nan


@dataclass(frozen=True)
class Denied:
    """What an image adds to the linear one and the electrons deny.

    ``repeats`` is how far the addition is the same in both halves (correlation); ``lost`` the share of the linear
    image's gain that the repeating part of it costs; ``p_value`` the chance of as much if it were the tolerated share.
    """

    repeats: float
    lost: float
    p_value: float


def foretell(image: xr.DataArray, linear: xr.DataArray, unseen: xr.DataArray, *, tolerance: float = 0.1) -> Foretold:
    """Compare what two images of one half of the electrons say of the other half (`misr.count_consistency`).

    Parameters
    ----------
    image, linear : xarray.DataArray
        Phase images, dims ``("y", "x")``; the first one's sign and scale are taken from the second.
    unseen : xarray.DataArray
        Cube of the electrons that neither has seen, aberrations known.
    tolerance : float
        Share of the linear image's gain that may be lacking.

    Returns
    -------
    Foretold
        See there.

    Raises
    ------
    ValueError
        As `misr.count_consistency`.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (8, 8, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -200})
    >>> phase = misr.fuse_linear(misr.synthesize_views(cube), upsample=2)["phase"]
    >>> abs(foretell(phase, phase, cube).lacking) < 1e-6
    True
    """
    from scipy.special import ndtr

    from misr.consistency import count_consistency

    found = count_consistency(_scaled(image, linear), unseen, linear=linear)
    gain, lead, error = (float(found[name]) for name in ("gain", "gain_over_linear", "gain_over_linear_stderr"))
    bound = gain - lead
    # the tolerated part of the linear image's gain is known no better than that gain
    error = math.hypot(error, tolerance * float(found["gain_stderr"]))
    return Foretold(
        gain=gain,
        linear_gain=bound,
        lacking=-lead / bound if bound > 0 else math.nan,
        p_value=float(ndtr((lead + tolerance * max(bound, 0.0)) / error)) if error > 0 else 1.0,
        **{name: float(found[name]) for name in ("chi2", "chi2_stderr", "deviance", "deviance_expected")},
    )


def denied(
    images: tuple[xr.DataArray, xr.DataArray],
    linear: tuple[xr.DataArray, xr.DataArray],
    unseen: xr.DataArray,
    *,
    tolerance: float = 0.1,
) -> Denied:
    """Tell an invention from a loss: does what a method adds to the linear image repeat, and do the electrons deny it?

    Smoothing and sharpening are taken off first (the linear image is filtered ring by ring to be as like the image as
    it can), and what is left counts only as far as it is the same in both halves: the noise of an inefficient method
    costs gain too, but does not repeat.

    Parameters
    ----------
    images, linear : tuple of xarray.DataArray
        Both halves' images by the method and by the linear fusion, ``("y", "x")``.
    unseen : xarray.DataArray
        Cube of the second half's electrons, aberrations known.
    tolerance : float
        Share of the linear image's gain that may be lost.

    Returns
    -------
    Denied
        See there.

    Examples
    --------
    >>> import misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (8, 8, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -200})
    >>> phase = misr.fuse_linear(misr.synthesize_views(cube), upsample=2)["phase"]
    >>> denied((phase, phase), (phase, phase), cube).lost
    0.0
    """
    filtered = [_filtered_like(image, other) for image, other in zip(images, linear, strict=True)]
    added = [image.values - image.values.mean() - other.values for image, other in zip(images, filtered, strict=True)]
    power = [float((one**2).sum()) for one in added]
    whole = [float(((image.values - image.values.mean()) ** 2).sum()) for image in images]
    if added[0].shape != added[1].shape or any(p <= _LEAST_ADDED * w for p, w in zip(power, whole, strict=True)):
        return Denied(0.0, 0.0, 1.0)
    repeats = float((added[0] * added[1]).sum()) / math.sqrt(power[0] * power[1])
    if repeats <= tolerance / _FINEST:
        return Denied(repeats, 0.0, 1.0)
    found = foretell(images[0], filtered[0], unseen, tolerance=tolerance / repeats)
    return Denied(repeats, max(0.0, found.lacking * repeats), found.p_value)


def _filtered_like(image: xr.DataArray, linear: xr.DataArray) -> xr.DataArray:
    """The linear image on the other's pixels, each ring of frequencies scaled to be as like it as it can."""
    other = linear if image.shape == linear.shape else on_grid(linear, image)
    here, there = (np.fft.rfft2(one.values.astype(float) - float(one.mean())) for one in (image, other))
    q_y, q_x = (np.fft.fftfreq(n, step) for n, step in zip(image.shape, scan_pixel(image), strict=True))
    q = np.hypot(q_y[:, None], np.abs(q_x[: here.shape[1]])[None])
    ring = np.floor(q * max(size * step for size, step in zip(image.shape, scan_pixel(image), strict=True)) / 2)
    label = ring.astype(int).ravel()
    top, bottom = (
        np.bincount(label, weights=values.ravel()) for values in ((here * there.conj()).real, np.abs(there) ** 2)
    )
    factor = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return image.copy(data=np.fft.irfft2(there * factor[label].reshape(there.shape), s=image.shape))


def _scaled(image: xr.DataArray, linear: xr.DataArray) -> xr.DataArray:
    """The image with the sign and scale that bring it closest to the linear one."""
    other = linear if image.shape == linear.shape else on_grid(linear, image)
    a, b = (one.values.astype(float) - float(one.mean()) for one in (image, other))
    power = float((a**2).sum())
    return image.copy(data=a * (float((a * b).sum()) / power) if power > 0 else a)
