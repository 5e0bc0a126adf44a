"""What the network is trained on and judged by: errors per ring of frequencies, the likelihood of its own errors."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from misr.fusion.network import NetworkInput, NetworkOutput, unit_spectrum

__all__ = [
    "RINGS",
    "correlation_with_truth",
    "defects_hidden",
    "defects_untold",
    "error_in_rad",
    "image_loss",
    "missed_share",
    "std_loss",
]

RINGS = 24  # of equal width up to 2α/λ
_INTERVALS = ((0.6827, 1.0), (0.95, 1.96))  # share of a Gaussian's values within so many standard deviations
_LEAST_ERROR = 1e-6
_AROUND = 8  # pixels, some 4 λ/2α
_SPOT = 0.4  # λ/2α: standard deviation of the spot that an observer averages over
_FAINT = 0.02  # of the unit signal: what is fainter than this in a ring need not be told from nothing


def image_loss(image: torch.Tensor, truth: torch.Tensor, *, radius: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Share of the truth that is missed, averaged over rings: (batch,). See `missed_share`."""
    return missed_share(image, truth, radius=radius, inside=inside).mean(dim=1)


def missed_share(
    image: torch.Tensor, truth: torch.Tensor, *, radius: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """Share of the truth that is missed in each ring of frequencies: 1 for an empty image, 0 for the truth.

    Parameters
    ----------
    image, truth : torch.Tensor
        Whitened, (batch, y, x).
    radius : torch.Tensor
        Frequency over 2α/λ, (batch, ky, kx).
    inside : torch.Tensor
        Pixels that count, (batch, y, x).

    Returns
    -------
    torch.Tensor
        (batch, ring).
    """
    missed = _ring_power(unit_spectrum(_centred(image - truth, inside)), radius)
    there = _ring_power(unit_spectrum(truth * inside), radius)
    smooth = functional.avg_pool1d(there[:, None], 5, stride=1, padding=2, count_include_pad=False)[:, 0]
    return missed / (0.5 * there + 0.5 * smooth + _FAINT)


def defects_hidden(
    image: torch.Tensor, truth: torch.Tensor, defects: torch.Tensor, *, inside: torch.Tensor
) -> torch.Tensor:
    """How little an image shows of the defects beside all else that it has wrong around them.

    1 less the correlation of the defects with what sets the image apart from the undamaged twin's truth, within
    ``_AROUND`` pixels: 0 for the truth, 1 for a healed image. How strongly they are shown does not matter, only how
    clearly: nothing is gained by taking away all that is in doubt, as it is with the squared error at their places.

    Parameters
    ----------
    image, truth : torch.Tensor
        Whitened, (batch, y, x).
    defects : torch.Tensor
        What the truth differs by from that of the undamaged twin, (batch, y, x).
    inside : torch.Tensor
        Pixels that count, (batch, y, x).

    Returns
    -------
    torch.Tensor
        (batch,); 0 where there are none.
    """
    strength = defects.abs() * inside
    strongest = strength.amax((1, 2), keepdim=True)
    near = functional.max_pool2d((strength > 0.2 * strongest)[:, None].float(), 2 * _AROUND + 1, 1, _AROUND)[:, 0]
    near = near * inside
    shown, there = (_centred(one, near) for one in (image - truth + defects, defects))
    power = (shown**2).sum((1, 2)) * (there**2).sum((1, 2))
    hidden = 1 - (shown * there).sum((1, 2)) / power.clamp(min=1e-12).sqrt()
    return torch.where(strongest[:, 0, 0] > 0, hidden, 0.0)


def defects_untold(
    image: torch.Tensor,
    twin: torch.Tensor,
    defects: torch.Tensor,
    *,
    atom: torch.Tensor,
    radius: torch.Tensor,
    inside: torch.Tensor,
) -> torch.Tensor:
    """How badly the images of a damaged specimen and of its undamaged twin, a scan each, tell the defects' places.

    An observer who knows the lattice looks at the phase in a spot at each defect's place. Both images less one
    another hold the defect and the noise of two scans there: 1 less their correlation with the true difference is 0
    for images without noise and 1 where nothing tells them apart, a healed defect or one lost in noise. How strongly a
    defect is shown does not matter.

    Parameters
    ----------
    image, twin : torch.Tensor
        Whitened, in one unit, (pair, y, x).
    defects : torch.Tensor
        The true difference, (pair, y, x).
    atom, radius : torch.Tensor
        Amplitude that the whitening took away, and frequency over 2α/λ, (pair, ky, kx).
    inside : torch.Tensor
        Pixels that count, (pair, y, x).

    Returns
    -------
    torch.Tensor
        (pair,); 0 where there are no defects.
    """
    spot = atom * torch.exp(-2 * (math.pi * _SPOT * radius) ** 2) * (radius < 1)

    def seen(one: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(unit_spectrum(one) * spot, s=one.shape[-2:], norm="ortho")

    there = seen(defects) * inside
    strongest = there.abs().amax((1, 2), keepdim=True)
    places = (there.abs() > 0.5 * strongest) & inside
    told, there = (one * places for one in (seen(image - twin), there))
    power = (told**2).sum((1, 2)) * (there**2).sum((1, 2))
    untold = 1 - (told * there).sum((1, 2)) / power.clamp(min=1e-20).sqrt()
    return torch.where(strongest[:, 0, 0] > 0, untold, 0.0)


def std_loss(output: NetworkOutput, truth: torch.Tensor, *, given: NetworkInput, inside: torch.Tensor) -> torch.Tensor:
    """How badly one and 1.96 standard deviations hold 68 % and 95 % of a pixel's errors, in rad: (batch,).

    The pinball loss of the logarithm of the error at both quantiles (Koenker & Bassett 1978, Econometrica 46, 33) is
    least where as many errors are larger as should be. In a Gaussian's likelihood few large errors widen it for all.
    """
    with torch.no_grad():
        error = error_in_rad(output.image - truth, given, inside=inside).abs().clamp(min=_LEAST_ERROR).log()
    each = torch.zeros_like(error)
    for share, times in _INTERVALS:
        beyond = error - output.log_std - math.log(times)
        each = each + torch.maximum(share * beyond, (share - 1) * beyond)
    return (each * inside).sum((1, 2)) / inside.sum((1, 2))


def error_in_rad(whitened: torch.Tensor, given: NetworkInput, *, inside: torch.Tensor) -> torch.Tensor:
    """A whitened error as an error of the phase, over the scale; less its mean, which no image knows."""
    filtered = unit_spectrum(_centred(whitened, inside)) * given.atom * (given.radius < 1)
    error = torch.fft.irfft2(filtered, s=whitened.shape[-2:], norm="ortho")
    return error - _mean(error, inside)


def correlation_with_truth(
    image: torch.Tensor, truth: torch.Tensor, *, radius: torch.Tensor, inside: torch.Tensor, rings: int = RINGS
) -> torch.Tensor:
    """FRC against the truth in rings of equal width up to the band limit: (batch, ring)."""
    first, second = unit_spectrum(_centred(image, inside)), unit_spectrum(_centred(truth, inside))
    cross = _ring_power(first, radius, second, rings=rings)
    return cross / (_ring_power(first, radius, rings=rings) * _ring_power(second, radius, rings=rings)).sqrt().clamp(
        min=1e-12
    )


def _ring_power(
    spectrum: torch.Tensor, radius: torch.Tensor, other: torch.Tensor | None = None, *, rings: int = RINGS
) -> torch.Tensor:
    """Mean over each ring of |spectrum|², or of the real part of the product with another's conjugate."""
    other = spectrum if other is None else other
    product = spectrum.real * other.real + spectrum.imag * other.imag
    index = (radius * rings).long().clamp(max=rings)
    index[:, 0, 0] = rings  # the mean is no frequency
    index = index.flatten(1)
    weight = torch.full_like(product, 2.0)  # the other half plane repeats all but the outer columns
    weight[..., [0, -1]] = 1.0
    total = torch.zeros((len(radius), rings + 1), device=radius.device)
    number = total.scatter_add(1, index, weight.flatten(1)).clamp(min=1)
    return (total.scatter_add(1, index, (weight * product).flatten(1)) / number)[:, :rings]


def _mean(image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return (image * inside).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True).clamp(min=1)


def _centred(image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Less its mean in the field, which no image knows, and 0 outside."""
    return (image - _mean(image, inside)) * inside
