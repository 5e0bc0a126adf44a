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
_WIDE = 5.0  # rings
_SMOOTH, _SINGLE = (0.8, 3.0), (0.0, 1.0)  # width over rings, pseudo-modes
_POWER_FLOOR = 1e-9  # of the strongest ring: keeps the precision finite where there is no signal
_LEAST_FREE = 0.1  # of the views
_SINGLE_PRECISION = 2e-7
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
    evidence: torch.Tensor  # (scan frequency,): log-likelihood ratio of the counts to no signal at all


def solve(equations: NormalEquations, *, power: torch.Tensor) -> Posterior:
    """``(N A + 1/P) φ = N b``: the Wiener solution of the aliases of each scan frequency, jointly.

    ``A/N`` is the noise covariance of ``b``, so ``N A + 1/P`` is the posterior precision. It is solved in units of the
    prior's standard deviation, where it is ``1 + N √P A √P``.
    """
    n_freq, unknowns = equations.vector.shape
    options: dict[str, Any] = {"device": equations.vector.device}
    mean = torch.empty((n_freq, unknowns), dtype=torch.complex128, **options)
    evidence = torch.empty(n_freq, dtype=torch.float64, **options)
    variance, transfer, noise = (torch.empty((n_freq, unknowns), dtype=torch.float64, **options) for _ in range(3))
    chunk = max(1, _SOLVED_BYTES // (16 * unknowns**2))
    for first in range(0, n_freq, chunk):
        part = slice(first, first + chunk)
        spread = power[part].sqrt()
        scaled = equations.matrix[part].to(torch.complex128)
        weighted = spread * equations.electrons[part, None]
        scaled = scaled * (spread[:, :, None] * weighted[:, None, :])
        diagonal = torch.diagonal(scaled, dim1=-2, dim2=-1)
        # the matrix is summed in single precision: what it says below that is rounding
        diagonal.add_(1.0 + _SINGLE_PRECISION * diagonal.real.sum(dim=-1, keepdim=True))
        factor = torch.linalg.cholesky(scaled)
        inverse = torch.cholesky_inverse(factor)
        right = equations.vector[part].to(torch.complex128) * weighted
        whitened = (inverse @ right[..., None])[..., 0]
        mean[part] = spread * whitened
        logdet = 2 * torch.diagonal(factor, dim1=-2, dim2=-1).real.log().sum(dim=-1)
        evidence[part] = (right.conj() * whitened).real.sum(dim=-1) - logdet
        left = torch.diagonal(inverse, dim1=-2, dim2=-1).real.clamp(0, 1)
        variance[part] = power[part] * left
        transfer[part] = 1 - left
        noise[part] = power[part] * (left - (inverse.real**2 + inverse.imag**2).sum(dim=-1)).clamp(min=0)
    return Posterior(mean, variance, transfer, noise, evidence)


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

    Amorphous matter has a smooth power, a crystal's jumps from ring to ring. Both are tried, and rings of their own
    kept only if the evidence rises by more than so many parameters must raise it (Schwarz 1978, Ann. Stat. 6, 461).
    """
    smooth = _fixed_point(equations, rings, _SMOOTH, start)
    single = _fixed_point(equations, rings, _SINGLE, smooth.power)
    price = 0.5 * float(single.modes.clamp(min=1).log().sum())
    best = single if single.evidence - smooth.evidence > price else smooth
    number = rings.sum(torch.ones_like(rings.weight)).clamp(min=1)
    return best.power, best.modes / number


@dataclass(frozen=True)
class _Learnt:
    power: torch.Tensor  # (ring,)
    modes: torch.Tensor  # (ring,): that the data determine
    evidence: float


def _fixed_point(
    equations: NormalEquations, rings: Rings, smoothing: tuple[float, float], start: torch.Tensor | None
) -> _Learnt:
    """Ring powers under one smoothing: width of the Gaussian over rings, and pseudo-modes."""
    narrow, pseudo = smoothing
    power = _flat_start(equations, rings) if start is None else start
    share = 0.5 * rings.weight.amax(dim=1)  # of one complex mode per unknown that the half plane repeats
    for _ in range(_FIXED_POINT_STEPS):
        posterior = solve(equations, power=rings.spread(power))
        found, modes = rings.sum(posterior.mean.abs() ** 2), rings.sum(posterior.transfer)
        learnt = _Learnt(power, modes, float((share * posterior.evidence).sum()))
        nearby = rings.blur(found, _WIDE) / rings.blur(modes, _WIDE).clamp(min=1e-12)
        found, modes = (rings.blur(one, narrow) if narrow else one for one in (found, modes))
        power = _floored((found + pseudo * nearby) / (modes + pseudo))
        # judged where the data speak: elsewhere the power drifts slowly and shapes nothing
        change = (modes * (power / learnt.power).log().abs()).sum() / modes.sum().clamp(min=1e-12)
        if float(change) < _SETTLED:
            break
    return _Learnt(power, learnt.modes, learnt.evidence)


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
    equations: NormalEquations, posterior: Posterior, *, energy: torch.Tensor, informed: int
) -> torch.Tensor:
    """What the solution leaves unexplained over what counting statistics allow: (scan frequency,).

    About 1 for a model that holds. ``Σ n̄ |C - Γ φ|²`` needs only the normal equations:
    ``Σ n̄ |C|² - 2 Re φᴴ b + φᴴ A φ``; ``energy`` is its first term. It has as many degrees of freedom as
    views with electrons (``informed``), less those
    that were fitted, the sum of the transfers.
    """
    mean = posterior.mean
    explained = torch.empty_like(energy)
    for first in range(0, len(energy), 4096):
        part = slice(first, first + 4096)
        # φᴴ (2 b - A φ), one number per scan frequency
        fitted = (equations.matrix[part].to(torch.complex128) @ mean[part][..., None])[..., 0]
        explained[part] = (mean[part].conj() * (2 * equations.vector[part] - fitted)).real.sum(dim=-1)
    freedom = (informed - posterior.transfer.sum(dim=1)).clamp(min=_LEAST_FREE * informed)
    return (energy - explained) * equations.electrons / freedom


def _floored(power: torch.Tensor) -> torch.Tensor:
    strongest = float(power.max())
    return power.clamp(min=max(strongest * _POWER_FLOOR, _NOTHING))
