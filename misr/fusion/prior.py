"""The object's power spectrum per frequency ring, learnt from the data, and the regularised solve it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from misr.fusion.kernels import Frequencies, NormalEquations

__all__ = ["Posterior", "excess_residual", "learn_ring_power", "solve"]

_FIXED_POINT_STEPS = 10
_NARROW, _WIDE = 0.8, 5.0  # rings
_PSEUDO_MODES = 3.0
_POWER_FLOOR = 1e-9  # of the strongest ring: keeps the precision finite where there is no signal


@dataclass(frozen=True)
class Posterior:
    """Mean and variance of each object frequency, given the counts and the ring power."""

    mean: torch.Tensor  # (scan frequency, alias), complex
    variance: torch.Tensor  # (scan frequency, alias)


def solve(equations: NormalEquations, *, power: torch.Tensor, n_effective: float) -> Posterior:
    """``(N A + 1/P) φ = N b``: the Wiener solution of the aliases of each scan frequency, jointly.

    ``A/N`` is the noise covariance of ``b``, so ``N A + 1/P`` is the posterior precision.
    """
    precision = equations.matrix.to(torch.complex128) * n_effective
    diagonal = torch.diagonal(precision, dim1=-2, dim2=-1)
    diagonal += 1 / power
    factor = torch.linalg.cholesky(precision)
    covariance = torch.cholesky_inverse(factor)
    right = equations.vector.to(torch.complex128) * n_effective
    mean = (covariance @ right[..., None])[..., 0]
    return Posterior(mean, torch.diagonal(covariance, dim1=-2, dim2=-1).real)


def learn_ring_power(
    equations: NormalEquations, *, freq: Frequencies, ring_width: float, cutoff: float, n_effective: float
) -> torch.Tensor:
    """Signal power of each frequency, constant on rings, by evidence maximisation.

    The start is one power for all rings (the moment estimate ``Σ (|b|² - A/N) / Σ A²``); then each ring's power is
    ``Σ |φ|² / Σ (1 - var φ / P)``, the evidence fixed point of MacKay (1992, Neural Computation 4, 415), whose
    denominator counts the modes that the data determine. A few pseudo-modes from neighbouring rings stand in where
    that count is near zero, so that rings without information do not invent power.
    """
    ring = (freq.magnitude / ring_width).round().long()
    n_rings = int(ring.max()) + 1
    inside = (freq.magnitude > 0) & (freq.magnitude < 2 * cutoff)
    weight = freq.weight[:, None] * inside
    energy = torch.diagonal(equations.matrix, dim1=-2, dim2=-1).real.double()
    excess = equations.vector.abs().double() ** 2 - energy / n_effective
    overall = float((weight * excess).sum() / (weight * energy**2).sum().clamp(min=1e-300))
    # with less signal than its own uncertainty, start from the power that a signal of that uncertainty would have
    least = float((weight * (energy / n_effective) ** 2).sum().sqrt() / (weight * energy**2).sum().clamp(min=1e-300))
    power = torch.full((n_rings,), max(overall, least, 1e-30), dtype=torch.float64, device=energy.device)
    for _ in range(_FIXED_POINT_STEPS):
        spread = _spread(power, ring, inside)
        posterior = solve(equations, power=spread, n_effective=n_effective)
        found = _ring_sum(weight * posterior.mean.abs() ** 2, ring, n_rings)
        modes = _ring_sum(weight * (1 - posterior.variance / spread).clamp(0, 1), ring, n_rings)
        nearby = _blur(found, _WIDE) / _blur(modes, _WIDE).clamp(min=1e-12)
        found, modes = _blur(found, _NARROW), _blur(modes, _NARROW)
        power = _floored((found + _PSEUDO_MODES * nearby) / (modes + _PSEUDO_MODES))
    return _spread(power, ring, inside)


def excess_residual(
    equations: NormalEquations,
    posterior: Posterior,
    *,
    transformed: torch.Tensor,
    mean: torch.Tensor,
    freq: Frequencies,
    n_effective: float,
) -> float:
    """What the solution leaves unexplained over what counting statistics allow: about 1 for a model that holds.

    ``Σ n̄ |C - Γ φ|²`` needs only the normal equations: ``Σ n̄ |C|² - 2 Re φᴴ b + φᴴ A φ``.
    """
    flat = transformed.reshape(len(transformed), -1)
    total = (mean[:, None] * freq.weight * flat.abs().double() ** 2).sum()
    explained = 2 * (posterior.mean.conj() * equations.vector).real
    explained = (
        explained
        - (posterior.mean.conj()[:, None, :] @ equations.matrix.to(torch.complex128) @ posterior.mean[..., None])[
            :, 0
        ].real
    )
    modes = len(transformed) * (float(freq.weight.sum()) - 1)
    return float(total - (freq.weight[:, None] * explained).sum()) * n_effective / modes


def _ring_sum(values: torch.Tensor, ring: torch.Tensor, n_rings: int) -> torch.Tensor:
    result = torch.zeros(n_rings, dtype=torch.float64, device=values.device)
    return result.index_add_(0, ring.reshape(-1), values.reshape(-1).double())


def _blur(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian over rings: a ring alone holds too few modes at low frequency."""
    reach = torch.arange(-int(4 * sigma) - 1, int(4 * sigma) + 2, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (reach / sigma) ** 2)
    kernel = kernel / kernel.sum()
    return torch.nn.functional.conv1d(values[None, None], kernel[None, None], padding=len(reach) // 2)[0, 0]


def _floored(power: torch.Tensor) -> torch.Tensor:
    strongest = float(power.max())
    return power.clamp(min=max(strongest * _POWER_FLOOR, 1e-30))


def _spread(power: torch.Tensor, ring: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    values = power[ring]
    return torch.where(inside, values, torch.full_like(values, 1e-30))
