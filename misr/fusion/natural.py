"""A linear fusion in natural units, so that one network serves every microscope.

Frequencies are counted in 2α/λ, the band limit; the pixel is a fixed share of λ/2α. Amplitudes are counted in those of
light atoms, whose scattering falls with frequency, times one number per image, the strength that the ring prior finds.
In these units the object's spectrum is about white with unit power, and the noise of each frequency is a number that
says by itself whether that frequency can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from misr.fusion.kernels import full_plane, resized
from misr.fusion.plan import FusionPlan, Statistic
from misr.fusion.wiener import Solution

__all__ = [
    "BLOCK",
    "NaturalField",
    "atom_amplitude",
    "inside_field",
    "natural_field",
    "natural_grid",
    "natural_groups",
    "natural_pixels",
    "plane_of_size",
]

BLOCK = 8  # sides are whole multiples of so many pixels, for the network's coarser levels
_PIXEL = 0.46  # of λ/2α at most: the band ends at 0.92 of the Nyquist frequency
# 1/Å: 1/(1 + (q/0.6)²) is oxygen's projected scattering amplitude (Lobato & Van Dyck 2014) within 4 % up to 1.7 1/Å;
# carbon's falls to 0.6 of it at 1 1/Å, lead's to 0.8
_ATOM_WIDTH = 0.6
_ROUNDING = 1e-12  # of a transfer
_QUIETEST, _LOUDEST = 1e-3, 1e3  # noise of one frequency, in units of the signal


@dataclass(frozen=True)
class NaturalField:
    """What a network is shown: planes over the half plane of frequencies (``rfft2``), images over the padded field.

    Attributes
    ----------
    whitened : torch.Tensor
        (y, x): the estimate without prior over its noise. In the orthonormal transform of the field the noise has power
        1 at each frequency whose ``noise`` is below 1000; the others are 0.
    ring, local : torch.Tensor
        (y, x): the linear images under the ring and the local prior, in units of ``scale · atom``.
    noise : torch.Tensor
        (ky, kx): standard deviation of the estimate without prior, in the same units: ``whitened`` times it, frequency
        by frequency, is the estimate.
    radius : torch.Tensor
        (ky, kx): frequency over 2α/λ.
    atom : torch.Tensor
        (ky, kx): amplitude of light atoms, 1 at frequency 0.
    inside : torch.Tensor
        (y, x), bool: pixels of the scanned field.
    scale : float
        rad: unit of the whitened amplitudes.
    pixel : tuple of float
        Å.
    band : float
        2α/λ, 1/Å.
    """

    whitened: torch.Tensor
    ring: torch.Tensor
    local: torch.Tensor
    noise: torch.Tensor
    radius: torch.Tensor
    atom: torch.Tensor
    inside: torch.Tensor
    scale: float
    pixel: tuple[float, float]
    band: float

    def in_rad(self, whitened: torch.Tensor) -> torch.Tensor:
        """An image in natural units as phase, rad; what it holds beyond the band limit is no data's and left out."""
        spectrum = torch.fft.rfft2(whitened) * (self.scale * self.atom * (self.radius < 1))
        return torch.fft.irfft2(spectrum, s=whitened.shape)


def natural_grid(field_A: tuple[float, float], *, cutoff: float) -> tuple[int, int]:
    """Pixels of a padded field, each at most 0.46 λ/2α wide.

    Parameters
    ----------
    field_A : (float, float)
        Sides, Å.
    cutoff : float
        α/λ, 1/Å.

    Returns
    -------
    tuple of int
        Whole multiples of `BLOCK`.

    Examples
    --------
    >>> natural_grid((56.0, 28.0), cutoff=0.508)
    (128, 64)
    """
    finest = _PIXEL / (2 * cutoff)
    return BLOCK * math.ceil(field_A[0] / finest / BLOCK), BLOCK * math.ceil(field_A[1] / finest / BLOCK)


def atom_amplitude(frequency: torch.Tensor) -> torch.Tensor:
    """Fall of a light atom's amplitude with frequency (1/Å), 1 at 0.

    Parameters
    ----------
    frequency : torch.Tensor
        1/Å.

    Returns
    -------
    torch.Tensor
        Likewise.

    Examples
    --------
    >>> atom_amplitude(torch.tensor([0.0, 0.6])).tolist()
    [1.0, 0.5]
    """
    return 1 / (1 + (frequency / _ATOM_WIDTH) ** 2)


def natural_field(plan: FusionPlan, solution: Solution) -> NaturalField:
    """The solution of a linear fusion in natural units.

    Parameters
    ----------
    plan : FusionPlan
        Its geometry.
    solution : Solution
        With the local prior.

    Returns
    -------
    NaturalField
        On the padded field.
    """
    grid = plan.grid
    shape, pixel = natural_pixels(plan)
    count, gain = shape[0] * shape[1], grid.field_gain
    aliases = plan.freq.y.shape[1]

    def plane(values: torch.Tensor, *, conjugate: bool) -> torch.Tensor:
        whole = full_plane(values[:, :aliases], grid=grid, freq=plan.freq, conjugate=conjugate)
        return resized(resized(whole, shape[0], 0), shape[1], 1)[:, : shape[1] // 2 + 1]

    ring = solution.ring
    mean, local = (plane(one.mean, conjugate=True) * math.sqrt(count) for one in (ring, solution.posterior))
    transfer = plane(ring.transfer, conjugate=False)
    variance = plane(ring.variance, conjugate=False) * (count * gain)
    energy = torch.diagonal(plan.matrix, dim1=-2, dim2=-1).real.double() * solution.electrons[:, None]
    # no estimate is better than with all other aliases known; where the prior finds next to nothing, the transfer that
    # the solve tells is its rounding
    most = variance * plane(energy, conjugate=False) / (count * gain)
    transfer = torch.where(transfer > _ROUNDING, transfer.minimum(most), most)
    power = plane(torch.where(solution.power > 1e-29, solution.power, 0.0), conjugate=False) * (count * gain)

    q_y = np.fft.fftfreq(shape[0], pixel[0])[:, None]
    frequency = torch.as_tensor(np.hypot(q_y, np.fft.rfftfreq(shape[1], pixel[1])), device=mean.device)
    atom = atom_amplitude(frequency)
    radius = frequency / (2 * plan.geometry.cutoff)
    known = (transfer > 0) & (radius < 1)
    transfer = torch.where(known, transfer, 1.0)
    # one frequency's likelihood, the other aliases integrated out under the ring prior (see misr.fusion.local_prior);
    # it outlives the prior: where that finds nothing, variance and transfer vanish together
    spread = torch.where(known, (variance / transfer).sqrt() / atom, torch.inf)
    scale = _strength(power / atom**2, torch.where(known, transfer, 0.0), spread)
    unit = scale * atom
    noise = (spread / scale).clamp(min=_QUIETEST)
    whitened = torch.where(noise < _LOUDEST, mean / (transfer * unit * noise.clamp(max=_LOUDEST)), 0.0)
    noise = noise.clamp(max=_LOUDEST)
    images = [torch.fft.irfft2(one, s=shape, norm="ortho").float() for one in (whitened, mean / unit, local / unit)]
    return NaturalField(
        whitened=images[0],
        ring=images[1],
        local=images[2],
        noise=noise.float(),
        radius=radius.float(),
        atom=atom.float(),
        inside=inside_field(plan).to(mean.device),
        scale=scale,
        pixel=pixel,
        band=2 * plan.geometry.cutoff,
    )


def natural_groups(plan: FusionPlan, parts: list[torch.Tensor], statistic: Statistic) -> torch.Tensor:
    """Groups of views, each laid back onto the object by its matched filter: (group, y, x).

    Parameters
    ----------
    plan : FusionPlan
        Of all views.
    parts : list of torch.Tensor
        ``Γᴴ counts / n`` of each group: (scan frequency, unknown); they sum to the statistic's vector.
    statistic : Statistic
        Of all views.

    Returns
    -------
    torch.Tensor
        float32. Their sum is the optimum bright field, whose noise has power 1 at each frequency of the field that the
        views show; each group has its share of that.
    """
    shape, _ = natural_pixels(plan)
    aliases = plan.freq.y.shape[1]
    energy = torch.diagonal(plan.matrix, dim1=-2, dim2=-1).real[:, :aliases]
    seen = energy > 1e-4 * energy.max()
    weight = torch.where(seen, (statistic.electrons / energy.clamp(min=1e-30)).sqrt(), 0.0)
    images = []
    for part in parts:
        whole = full_plane(part[:, :aliases] * weight, grid=plan.grid, freq=plan.freq)
        half = resized(resized(whole, shape[0], 0), shape[1], 1)[:, : shape[1] // 2 + 1]
        images.append(torch.fft.irfft2(half / math.sqrt(plan.grid.field_gain), s=shape, norm="ortho").float())
    return torch.stack(images)


def plane_of_size(plane: torch.Tensor, shape: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """A smooth even function of frequency (half plane) of a field, on the frequencies of a part or of a larger one.

    Parameters
    ----------
    plane : torch.Tensor
        (ky, kx), ``rfft2`` order.
    shape : (int, int)
        Pixels of its field, even numbers.
    size : (int, int)
        Pixels of the other field, as wide; even numbers.

    Returns
    -------
    torch.Tensor
        (ky, kx) of that field; linear interpolation.

    Examples
    --------
    >>> slope = torch.fft.rfftfreq(16)[None, :].expand(16, -1)
    >>> torch.allclose(plane_of_size(slope, (16, 16), (8, 8)), torch.fft.rfftfreq(8).expand(8, -1), atol=1e-6)
    True
    """
    if tuple(shape) == tuple(size):
        return plane
    y, x = torch.fft.fftfreq(size[0], device=plane.device), torch.fft.rfftfreq(size[1], device=plane.device)
    shifted = torch.fft.fftshift(plane, dim=0)
    at_y = (y * shape[0] + shape[0] // 2).clamp(0, shape[0] - 1) / (shape[0] - 1) * 2 - 1
    at_x = (x * shape[1]).clamp(0, plane.shape[1] - 1) / (plane.shape[1] - 1) * 2 - 1
    at = torch.stack([at_x[None, :].expand(size[0], -1), at_y[:, None].expand(-1, len(x))], -1)
    found = torch.nn.functional.grid_sample(shifted[None, None], at[None].to(plane.dtype), align_corners=True)
    return found[0, 0]


def natural_pixels(plan: FusionPlan) -> tuple[tuple[int, int], tuple[float, float]]:
    """Shape of the padded field in natural pixels, and the pixel, Å."""
    sides = (plan.grid.padded[0] * plan.grid.step[0], plan.grid.padded[1] * plan.grid.step[1])
    shape = natural_grid(sides, cutoff=plan.geometry.cutoff)
    return shape, (sides[0] / shape[0], sides[1] / shape[1])


def _strength(power: torch.Tensor, transfer: torch.Tensor, noise: torch.Tensor) -> float:
    """Root of the whitened power where the data know it; at least that of a signal just beyond chance in all of them.

    A prior that finds nothing must not set the unit: ``Σ noise⁻⁴`` is the information on a power common to all.
    """
    weight = transfer.clamp(min=0) + 1e-12 * (power > 0)
    found = float((weight * power).sum() / weight.sum().clamp(min=1e-30))
    least = float((noise**-4).sum().clamp(min=1e-60)) ** -0.5
    return math.sqrt(max(found, min(least, 1.0), 1e-18))


def inside_field(plan: FusionPlan) -> torch.Tensor:
    """Which natural pixels lie within the scanned field: (y, x)."""
    grid = plan.grid
    shape, pixel = natural_pixels(plan)
    kept = []
    for axis in range(2):
        position = np.arange(shape[axis]) * pixel[axis] - grid.pad[axis] * grid.step[axis]
        # a pixel of the scan reaches half a step to both sides of its position
        first, last = -0.5 * grid.step[axis], (grid.shape[axis] - 0.5) * grid.step[axis]
        periodic = grid.padded[axis] == grid.shape[axis]
        kept.append(np.ones(shape[axis], bool) if periodic else (position >= first) & (position < last))
    return torch.as_tensor(kept[0][:, None] & kept[1][None, :])
