"""The object's power spectrum per frequency ring, learnt from the data, and the regularised solve it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from misr.fusion.kernels import Frequencies, NormalEquations

__all__ = ["Posterior", "excess_residual", "learn_ring_power", "make_rings", "solve"]

_FIXED_POINT_STEPS = 10
_SETTLED = 0.02  # mean relative change of the power at which the fixed point is left
_NOTHING = 1e-30  # rad²
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


@dataclass(frozen=True)
class Rings:
    """Which ring each object frequency belongs to, and how often it counts."""

    index: torch.Tensor  # (scan frequency, alias)
    inside: torch.Tensor  # inside the band limit and not the zero frequency
    weight: torch.Tensor
    number: int

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Weighted sum over each ring."""
        result = torch.zeros(self.number, dtype=torch.float64, device=values.device)
        return result.index_add_(0, self.index.reshape(-1), (self.weight * values).reshape(-1).double())

    def spread(self, power: torch.Tensor) -> torch.Tensor:
        """Ring powers at each frequency; next to nothing outside the band."""
        values = power[self.index]
        return torch.where(self.inside, values, torch.full_like(values, _NOTHING))


def make_rings(freq: Frequencies, *, width: float, cutoff: float) -> Rings:
    """Rings of the given width (1/Å) up to the band limit 2α/λ."""
    index = (freq.magnitude / width).round().long()
    inside = (freq.magnitude > 0) & (freq.magnitude < 2 * cutoff)
    return Rings(index, inside, freq.weight[:, None] * inside, int(index.max()) + 1)


def learn_ring_power(
    equations: NormalEquations, *, rings: Rings, n_effective: float, start: torch.Tensor | None = None
) -> torch.Tensor:
    """Signal power per ring, by evidence maximisation.

    The start is one power for all rings (the moment estimate ``Σ (|b|² - A/N) / Σ A²``); then each ring's power is
    ``Σ |φ|² / Σ (1 - var φ / P)``, the evidence fixed point of MacKay (1992, Neural Computation 4, 415), whose
    denominator counts the modes that the data determine. A few pseudo-modes from neighbouring rings stand in where
    that count is near zero, so that rings without information do not invent power.
    """
    power = _flat_start(equations, rings, n_effective) if start is None else start
    for _ in range(_FIXED_POINT_STEPS):
        spread = rings.spread(power)
        posterior = solve(equations, power=spread, n_effective=n_effective)
        found = rings.sum(posterior.mean.abs() ** 2)
        modes = rings.sum((1 - posterior.variance / spread).clamp(0, 1))
        nearby = _blur(found, _WIDE) / _blur(modes, _WIDE).clamp(min=1e-12)
        found, modes = _blur(found, _NARROW), _blur(modes, _NARROW)
        before, power = power, _floored((found + _PSEUDO_MODES * nearby) / (modes + _PSEUDO_MODES))
        # judged where the data speak: elsewhere the power drifts slowly and shapes nothing
        change = (modes * (power / before).log().abs()).sum() / modes.sum().clamp(min=1e-12)
        if float(change) < _SETTLED:
            break
    return power


def _flat_start(equations: NormalEquations, rings: Rings, n_effective: float) -> torch.Tensor:
    energy = torch.diagonal(equations.matrix, dim1=-2, dim2=-1).real.double()
    excess = equations.vector.abs().double() ** 2 - energy / n_effective
    scale = (rings.weight * energy**2).sum().clamp(min=1e-300)
    overall = float((rings.weight * excess).sum() / scale)
    # with less signal than its own uncertainty, start from the power that a signal of that uncertainty would have
    least = float((rings.weight * (energy / n_effective) ** 2).sum().sqrt() / scale)
    return torch.full((rings.number,), max(overall, least, _NOTHING), dtype=torch.float64, device=energy.device)


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
    # φᴴ (2 b - A φ), one number per scan frequency
    fitted = (equations.matrix.to(torch.complex128) @ posterior.mean[..., None])[..., 0]
    explained = (posterior.mean.conj() * (2 * equations.vector - fitted)).real.sum(dim=-1)
    modes = int((mean > 0).sum()) * (float(freq.weight.sum()) - 1)
    return float(total - (freq.weight * explained).sum()) * n_effective / modes


def _blur(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian over rings: a ring alone holds too few modes at low frequency."""
    reach = torch.arange(-int(4 * sigma) - 1, int(4 * sigma) + 2, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (reach / sigma) ** 2)
    kernel = kernel / kernel.sum()
    return torch.nn.functional.conv1d(values[None, None], kernel[None, None], padding=len(reach) // 2)[0, 0]


def _floored(power: torch.Tensor) -> torch.Tensor:
    strongest = float(power.max())
    return power.clamp(min=max(strongest * _POWER_FLOOR, _NOTHING))
