"""What the network is trained on and judged by: errors per ring of frequencies, the likelihood of its own errors."""

from __future__ import annotations

import torch

from misr.fusion.network import NetworkInput, NetworkOutput, unit_spectrum

__all__ = ["RINGS", "correlation_with_truth", "error_in_rad", "image_loss", "missed_share", "std_loss"]

RINGS = 24  # of equal width up to 2α/λ
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
    smooth = torch.nn.functional.avg_pool1d(there[:, None], 5, stride=1, padding=2, count_include_pad=False)[:, 0]
    return missed / (0.5 * there + 0.5 * smooth + _FAINT)


def std_loss(output: NetworkOutput, truth: torch.Tensor, *, given: NetworkInput, inside: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of a pixel's error in rad under the network's own standard deviation: (batch,)."""
    with torch.no_grad():
        error = error_in_rad(output.image - truth, given, inside=inside)
    log_std = output.log_std
    each = 0.5 * (error * torch.exp(-log_std)) ** 2 + log_std
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
    return (image * inside).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True)


def _centred(image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Less its mean in the field, which no image knows, and 0 outside."""
    return (image - _mean(image, inside)) * inside
