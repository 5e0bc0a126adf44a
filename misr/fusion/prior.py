"""The object's power spectrum per frequency ring, learnt from the data, and the regularised solve it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from misr.fusion.kernels import Frequencies

__all__ = ["NormalEquations", "Posterior", "Rings", "excess_residual", "learn_ring_power", "make_rings", "solve"]

_FIXED_POINT_STEPS = 10
_SETTLED = 0.02  # mean relative change of the power at which the fixed point is left
_NOTHING = 1e-30  # rad²
_NARROW, _WIDE = 0.8, 5.0  # rings
_PSEUDO_MODES = 3.0
_POWER_FLOOR = 1e-9  # of the strongest ring: keeps the precision finite where there is no signal
_SOLVED_BYTES = 1 << 20  # of matrices at once: they stay in the cache


@dataclass(frozen=True)
class NormalEquations:
    """``vector = matrix φ + noise`` of covariance ``matrix / electrons``, for each scan frequency."""

    matrix: torch.Tensor  # (scan frequency, unknown, unknown)
    vector: torch.Tensor  # (scan frequency, unknown)
    electrons: torch.Tensor  # (scan frequency,): effective number in the scan

    def at(self, chosen: torch.Tensor | slice) -> NormalEquations:
        """Some of the scan frequencies."""
        return NormalEquations(self.matrix[chosen], self.vector[chosen], self.electrons[chosen])

    def noisier(self, factor: torch.Tensor) -> NormalEquations:
        """With that many times the noise power at each scan frequency."""
        return NormalEquations(self.matrix, self.vector, self.electrons / factor)


@dataclass(frozen=True)
class Posterior:
    """What is known of each object frequency, given the counts and its power; all (scan frequency, unknown)."""

    mean: torch.Tensor  # complex
    variance: torch.Tensor  # of the unknown about the mean: noise, and what the prior leaves open
    transfer: torch.Tensor  # share of the true value that is in the mean: 0 to 1
    noise: torch.Tensor  # variance of the mean that is due to counting


def solve(equations: NormalEquations, *, power: torch.Tensor) -> Posterior:
    """``(N A + 1/P) φ = N b``: the Wiener solution of the aliases of each scan frequency, jointly.

    ``A/N`` is the noise covariance of ``b``, so ``N A + 1/P`` is the posterior precision. It is solved in units of the
    prior's standard deviation, where it is ``1 + N √P A √P``.
    """
    n_freq, unknowns = equations.vector.shape
    options: dict[str, Any] = {"device": equations.vector.device}
    mean = torch.empty((n_freq, unknowns), dtype=torch.complex128, **options)
    variance, transfer, noise = (torch.empty((n_freq, unknowns), dtype=torch.float64, **options) for _ in range(3))
    chunk = max(1, _SOLVED_BYTES // (16 * unknowns**2))
    for first in range(0, n_freq, chunk):
        part = slice(first, first + chunk)
        spread = power[part].sqrt()
        scaled = equations.matrix[part].to(torch.complex128)
        weighted = spread * equations.electrons[part, None]
        scaled = scaled * (spread[:, :, None] * weighted[:, None, :])
        torch.diagonal(scaled, dim1=-2, dim2=-1).add_(1.0)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(scaled))
        right = equations.vector[part].to(torch.complex128) * weighted
        mean[part] = spread * (inverse @ right[..., None])[..., 0]
        diagonal = torch.diagonal(inverse, dim1=-2, dim2=-1).real.clamp(0, 1)
        variance[part] = power[part] * diagonal
        transfer[part] = 1 - diagonal
        noise[part] = power[part] * (diagonal - (inverse.real**2 + inverse.imag**2).sum(dim=-1)).clamp(min=0)
    return Posterior(mean, variance, transfer, noise)


@dataclass(frozen=True)
class Rings:
    """Which ring each unknown belongs to, and how often it counts."""

    index: torch.Tensor  # (scan frequency, unknown)
    inside: torch.Tensor  # inside the band limit and not the zero frequency
    weight: torch.Tensor
    number: int
    channels: int

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Weighted sum over each ring."""
        result = torch.zeros(self.number * self.channels, dtype=torch.float64, device=values.device)
        return result.index_add_(0, self.index.reshape(-1), (self.weight * values).reshape(-1).double())

    def spread(self, power: torch.Tensor) -> torch.Tensor:
        """Ring powers at each frequency; next to nothing outside the band."""
        values = power[self.index]
        return torch.where(self.inside, values, torch.full_like(values, _NOTHING))

    def blur(self, values: torch.Tensor, sigma: float) -> torch.Tensor:
        """Gaussian over the rings of each channel: a ring alone holds too few modes at low frequency."""
        reach = torch.arange(-int(4 * sigma) - 1, int(4 * sigma) + 2, dtype=values.dtype, device=values.device)
        kernel = torch.exp(-0.5 * (reach / sigma) ** 2)
        rows = values.reshape(self.channels, 1, self.number)
        blurred = torch.nn.functional.conv1d(rows, (kernel / kernel.sum())[None, None], padding=len(reach) // 2)
        return blurred.reshape(-1)

    def at(self, chosen: torch.Tensor) -> Rings:
        """Those of some scan frequencies."""
        return Rings(self.index[chosen], self.inside[chosen], self.weight[chosen], self.number, self.channels)


def make_rings(freq: Frequencies, *, width: float, cutoff: float, channels: int = 1) -> Rings:
    """Rings of the given width (1/Å) up to the band limit 2α/λ."""
    index = (freq.magnitude / width).round().long()
    number = int(index.max()) + 1
    inside = (freq.magnitude > 0) & (freq.magnitude < 2 * cutoff)
    weight = freq.weight[:, None] * inside
    return Rings(
        torch.cat([index + channel * number for channel in range(channels)], dim=1),
        torch.cat([inside] * channels, dim=1),
        torch.cat([weight] * channels, dim=1),
        number,
        channels,
    )


def learn_ring_power(
    equations: NormalEquations, *, rings: Rings, start: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal power per ring, by evidence maximisation, and the share of each ring's modes that the data determine.

    The start is one power for all rings (the moment estimate ``Σ (|b|² - A/N) / Σ A²``); then each ring's power is
    ``Σ |φ|² / Σ (1 - var φ / P)``, the evidence fixed point of MacKay (1992, Neural Computation 4, 415), whose
    denominator counts the modes that the data determine. A few pseudo-modes from neighbouring rings stand in where
    that count is near zero, so that rings without information do not invent power.
    """
    power = _flat_start(equations, rings) if start is None else start
    number = rings.sum(torch.ones_like(rings.weight)).clamp(min=1)
    share = torch.zeros_like(power)
    for _ in range(_FIXED_POINT_STEPS):
        posterior = solve(equations, power=rings.spread(power))
        found, modes = rings.sum(posterior.mean.abs() ** 2), rings.sum(posterior.transfer)
        share = modes / number
        nearby = rings.blur(found, _WIDE) / rings.blur(modes, _WIDE).clamp(min=1e-12)
        found, modes = rings.blur(found, _NARROW), rings.blur(modes, _NARROW)
        before, power = power, _floored((found + _PSEUDO_MODES * nearby) / (modes + _PSEUDO_MODES))
        # judged where the data speak: elsewhere the power drifts slowly and shapes nothing
        change = (modes * (power / before).log().abs()).sum() / modes.sum().clamp(min=1e-12)
        if float(change) < _SETTLED:
            break
    return power, share


def _flat_start(equations: NormalEquations, rings: Rings) -> torch.Tensor:
    energy = torch.diagonal(equations.matrix, dim1=-2, dim2=-1).real.double()
    noise = energy / equations.electrons[:, None]
    excess = equations.vector.abs().double() ** 2 - noise
    scale = (rings.weight * energy**2).sum().clamp(min=1e-300)
    overall = float((rings.weight * excess).sum() / scale)
    # with less signal than its own uncertainty, start from the power that a signal of that uncertainty would have
    least = float((rings.weight * noise**2).sum().sqrt() / scale)
    options: dict[str, Any] = {"dtype": torch.float64, "device": energy.device}
    return torch.full((rings.number * rings.channels,), max(overall, least, _NOTHING), **options)


def excess_residual(
    equations: NormalEquations, mean: torch.Tensor, *, energy: torch.Tensor, informed: int
) -> torch.Tensor:
    """What the solution leaves unexplained over what counting statistics allow: (scan frequency,).

    About 1 for a model that holds, within the square root of 1 / ``informed``. ``Σ n̄ |C - Γ φ|²`` needs only the normal
    equations: ``Σ n̄ |C|² - 2 Re φᴴ b + φᴴ A φ``; ``energy`` is its first term, ``informed`` the number of views with
    electrons.
    """
    explained = torch.empty_like(energy)
    for first in range(0, len(energy), 4096):
        part = slice(first, first + 4096)
        # φᴴ (2 b - A φ), one number per scan frequency
        fitted = (equations.matrix[part].to(torch.complex128) @ mean[part][..., None])[..., 0]
        explained[part] = (mean[part].conj() * (2 * equations.vector[part] - fitted)).real.sum(dim=-1)
    return (energy - explained) * equations.electrons / informed


def _floored(power: torch.Tensor) -> torch.Tensor:
    strongest = float(power.max())
    return power.clamp(min=max(strongest * _POWER_FLOOR, _NOTHING))
