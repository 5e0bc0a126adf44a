"""Does an image foretell electrons that it has not seen, as well as the linear fusion's image does?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import xarray as xr

from misr._trust_controls import on_grid

__all__ = ["Foretold", "foretell"]


@dataclass(frozen=True)
class Foretold:
    """Log-likelihood gained over vacuum on unseen electrons.

    ``gain`` and ``linear_gain`` in nats per electron; ``lacking`` the share of the linear image's gain that the image
    lacks (negative: it foretells better); ``p_value`` the chance of as little if it lacked the tolerated share.
    """

    gain: float
    linear_gain: float
    lacking: float
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
    )


def _scaled(image: xr.DataArray, linear: xr.DataArray) -> xr.DataArray:
    """The image with the sign and scale that bring it closest to the linear one."""
    other = linear if image.shape == linear.shape else on_grid(linear, image)
    a, b = (one.values.astype(float) - float(one.mean()) for one in (image, other))
    power = float((a**2).sum())
    return image.copy(data=a * (float((a * b).sum()) / power) if power > 0 else a)
