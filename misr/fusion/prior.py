"""The object's power spectrum per frequency ring, learnt from the data, and the regularised solve it gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from misr.fusion.kernels import Frequencies
from misr.fusion.spread import for_each
from misr.fusion.workspace import Workspace

__all__ = [
    "Estimate",
    "NormalEquations",
    "Posterior",
    "Rings",
    "estimate",
    "excess_residual",
    "learn_ring_power",
    "make_rings",
    "solve",
]

_STEPS, _INNER_STEPS = 10, 10  # solves at most; steps between two of them
_SETTLED = 0.02  # mean relative change of the power from solve to solve at which it is left
_NOTHING = 1e-30  # rad²
_WIDE, _NARROW, _PSEUDO = 5.0, 0.8, 3.0  # rings, rings, modes
_LEVELS = torch.arange(-16, 9, dtype=torch.float64) / 4  # powers of ten that a ring's power can be off the smooth one
_LEAST_TOLD = 1e-7  # of the true amplitude: a frequency with less teaches nothing
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
class Estimate:
    """What the counts and the power say of each object frequency: what learning the power needs."""

    mean: torch.Tensor  # (scan frequency, unknown), complex
    transfer: torch.Tensor  # (scan frequency, unknown): share of the true value that is in the mean, 0 to 1


@dataclass(frozen=True)
class Posterior(Estimate):
    """... and how far each can be off; all (scan frequency, unknown)."""

    variance: torch.Tensor  # of the unknown about the mean: noise, and what the prior leaves open
    noise: torch.Tensor  # variance of the mean that is due to counting


def solve(equations: NormalEquations, *, power: torch.Tensor) -> Posterior:
    """``(N A + 1/P) φ = N b``: the Wiener solution of the aliases of each scan frequency, jointly.

    ``A/N`` is the noise covariance of ``b``, so ``N A + 1/P`` is the posterior precision. It is solved in units of the
    prior's standard deviation, where it is ``1 + N √P A √P``.
    """
    noise = torch.empty(equations.vector.shape, dtype=torch.float64, device=equations.vector.device)
    found = estimate(equations, power=power, noise=noise)
    variance = power * (1 - found.transfer)
    return Posterior(found.mean, found.transfer, variance, noise)


def estimate(equations: NormalEquations, *, power: torch.Tensor, noise: torch.Tensor | None = None) -> Estimate:
    """`solve` without the error bars; ``noise`` is filled if given."""
    n_freq, unknowns = equations.vector.shape
    options: dict[str, Any] = {"device": equations.vector.device}
    mean = torch.empty((n_freq, unknowns), dtype=torch.complex128, **options)
    transfer = torch.empty((n_freq, unknowns), dtype=torch.float64, **options)

    def fill(part: slice, work: Workspace) -> None:
        spread = power[part].sqrt()
        weighted = spread * equations.electrons[part, None]
        scaled = equations.matrix[part].to(torch.complex128)
        scaled = scaled * (spread[:, :, None] * weighted[:, None, :])
        diagonal = torch.diagonal(scaled, dim1=-2, dim2=-1)
        # the matrix is summed in single precision: what it says below that is rounding
        diagonal.add_(1.0 + _SINGLE_PRECISION * diagonal.real.sum(dim=-1, keepdim=True))
        factor = torch.linalg.cholesky(scaled)
        inverse = torch.cholesky_inverse(factor)
        right = equations.vector[part].to(torch.complex128) * weighted
        whitened = (inverse @ right[..., None])[..., 0]
        mean[part] = spread * whitened
        left = torch.diagonal(inverse, dim1=-2, dim2=-1).real.clamp(0, 1)
        transfer[part] = 1 - left
        if noise is not None:
            length = torch.linalg.vector_norm(torch.view_as_real(inverse).flatten(2), dim=-1)
            noise[part] = power[part] * (left - length**2).clamp(min=0)

    size = max(1, _SOLVED_BYTES // (16 * unknowns**2))
    for_each([slice(first, first + size) for first in range(0, n_freq, size)], fill, device=equations.vector.device)
    return Estimate(mean, transfer)


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

    The start is one power for all rings (the moment estimate ``Σ (|b|² - A/N) / Σ A²``). A power that goes smoothly
    from ring to ring is learnt first (`_smooth`), as amorphous matter has it; then, if the rings differ from it by more
    than chance (`_uneven`), each ring's multiple of it (`_multiplied`), as a crystal has it.
    """
    learnt = _learn(equations, rings, _flat_start(equations, rings) if start is None else start, _smooth)
    if _uneven(learnt.alone, learnt.power):
        learnt = _learn(equations, rings, learnt.power, partial(_multiplied, base=learnt.power))
    number = rings.sum(torch.ones_like(rings.weight)).clamp(min=1)
    return learnt.power, learnt.modes / number


@dataclass(frozen=True)
class _Alone:
    """What the counts say of each frequency by itself, the other aliases integrated out under their power.

    The posterior is the product of the prior and of that likelihood: precisions, and means weighted with them,
    subtract. With T the transfer it is ``mean / T`` with noise ``variance / T``.
    """

    rings: Rings
    index: torch.Tensor  # (frequency,): ring of each that is told of at all
    weight: torch.Tensor
    energy: torch.Tensor
    noise: torch.Tensor

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Weighted sum over each ring of ``(frequency, …)``."""
        result = values.new_zeros((self.rings.number * self.rings.channels, *values.shape[1:]))
        weight = self.weight.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
        return result.index_add_(0, self.index, weight * values)


@dataclass(frozen=True)
class _Learnt:
    power: torch.Tensor  # (ring,)
    modes: torch.Tensor  # (ring,): that the data determine
    alone: _Alone


def _alone(found: Estimate, rings: Rings, power: torch.Tensor) -> _Alone:
    told = rings.inside & (found.transfer > _LEAST_TOLD)
    transfer, index = found.transfer[told], rings.index[told]
    energy = found.mean[told].abs() ** 2 / transfer**2
    return _Alone(rings, index, rings.weight[told], energy, power[index] * (1 - transfer) / transfer)


def _learn(
    equations: NormalEquations,
    rings: Rings,
    power: torch.Tensor,
    update: Callable[[_Alone, torch.Tensor], torch.Tensor],
) -> _Learnt:
    """Ring powers: the solve and what follows from it, in turn.

    The fixed points are those of one step after each solve. But what the counts say of a frequency by itself depends
    on the others' power only as far as they are told apart poorly, so that many steps between two (dear) solves lead
    there in fewer of them.
    """
    for _ in range(_STEPS):
        found = estimate(equations, power=rings.spread(power))
        learnt = _Learnt(power, rings.sum(found.transfer), _alone(found, rings, power))
        power = _floored(update(learnt.alone, power))
        # judged where the data speak: elsewhere the power drifts slowly and shapes nothing
        change = (learnt.modes * (power / learnt.power).log().abs()).sum() / learnt.modes.sum().clamp(min=1e-12)
        if float(change) < _SETTLED:
            break
    return _Learnt(power, learnt.modes, learnt.alone)


def _smooth(alone: _Alone, power: torch.Tensor) -> torch.Tensor:
    """Each ring's power is ``Σ |φ|² / Σ T``, the evidence fixed point of MacKay (1992, Neural Computation 4, 415).

    Its denominator counts the modes that the data determine. Sums go smoothly over rings, and a few pseudo-modes from
    farther ones stand in where that count is near zero, so that rings without information do not invent power.
    """
    rings = alone.rings
    for _ in range(_INNER_STEPS):
        at = power[alone.index]
        transfer = at / (at + alone.noise)
        found, modes = alone.sum(transfer**2 * alone.energy), alone.sum(transfer)
        nearby = rings.blur(found, _WIDE) / rings.blur(modes, _WIDE).clamp(min=1e-12)
        found, modes = rings.blur(found, _NARROW), rings.blur(modes, _NARROW)
        power = _floored((found + _PSEUDO * nearby) / (modes + _PSEUDO))
    return power


def _multiplied(alone: _Alone, power: torch.Tensor, *, base: torch.Tensor) -> torch.Tensor:
    """Each ring's power is a multiple of ``base``, drawn from a distribution that all rings together teach.

    The power returned is the one whose transfer is the mean over what the ring's multiple can be: a ring that may well
    hold nothing passes little. (A maximum of the evidence would pass the noise of every second empty ring, and the
    fixed point of `_smooth`, ring by ring, takes hundreds of steps to close one.)
    """
    levels, fit, passed = _levels_fit(alone, base)
    taught = passed[:, -1] > 0
    share = (fit + _population(fit[taught]).log()).softmax(dim=1)
    wanted = (share * passed).sum(dim=1, keepdim=True)
    upper = (passed < wanted).sum(dim=1, keepdim=True).clamp(1, len(levels) - 1)
    below, above = passed.gather(1, upper - 1), passed.gather(1, upper)
    between = ((wanted - below) / (above - below).clamp(min=1e-30)).clamp(0, 1)
    level = torch.lerp(levels[upper - 1], levels[upper], between)[:, 0]
    return torch.where(taught, base * 10.0**level, base)


def _uneven(alone: _Alone, base: torch.Tensor) -> bool:
    """Whether the counts speak for multiples of ``base`` drawn from a distribution, ring by ring, against it itself.

    Each ring's likelihood is integrated over the distribution, so that its multiple costs nothing more than what it may
    be; what was fitted, the distribution, must be worth its parameters (Schwarz 1978, Ann. Stat. 6, 461).
    """
    levels, fit, passed = _levels_fit(alone, base)
    fit = fit[passed[:, -1] > 0]
    if len(fit) == 0:
        return False
    gain = (fit + _population(fit).log()).logsumexp(dim=1) - fit[:, levels == 0][:, 0]
    return float(gain.sum()) > 0.5 * (len(levels) - 1) * math.log(len(fit))


def _levels_fit(alone: _Alone, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Powers of ten that multiply ``base``; for each ring the log-likelihood of each, and the modes it lets pass."""
    levels = _LEVELS.to(alone.noise.device)
    multiple = (base[alone.index, None] * 10.0**levels).float()
    total = multiple + alone.noise[:, None].float()
    fit = -0.5 * alone.sum(total.log() + alone.energy[:, None].float() / total).double()
    return levels, fit, alone.sum(multiple / total).double()


def _population(fit: torch.Tensor) -> torch.Tensor:
    """Chance of each level, from the rings' log-likelihoods (ring, level)."""
    number = fit.shape[1]
    chance = torch.full_like(fit[:1], 1 / number)
    for _ in range(_INNER_STEPS):
        share = (fit + chance.log()).softmax(dim=1)
        chance = share.sum(dim=0, keepdim=True) + 1 / number
        chance = chance / chance.sum()
    return chance


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
    equations: NormalEquations, posterior: Estimate, *, energy: torch.Tensor, informed: int
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
