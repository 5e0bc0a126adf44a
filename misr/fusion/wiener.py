"""The regularised joint solve: prior learnt, what the model cannot explain counted as noise, local prior on request."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from misr.fusion.geometry import ScanGrid
from misr.fusion.kernels import Frequencies, from_plane, full_plane
from misr.fusion.prior import (
    NormalEquations,
    Posterior,
    Rings,
    estimate,
    excess_residual,
    learn_ring_power,
    make_rings,
    solve,
)

__all__ = ["Solution", "regularised_solve"]

_CHI2_WITHIN_NOISE = 1.05  # below, the excess is not worth a second solve
_BEYOND_CHANCE = 4.0  # standard deviations
_FREE = 100.0  # times the power: next to no prior
_LEARNT_FROM = 4096  # scan frequencies: more make the rings' powers no surer
_LOW_RINGS = 8.0  # all scan frequencies within so many rings are learnt from: there, rings hold few
_FILLED = 0.01  # of the true amplitude: rings that carry less need no pixels


@dataclass(frozen=True)
class Solution:
    """The posterior, how well the model holds, and the highest frequency with anything in it."""

    posterior: Posterior
    chi2: float
    filled: float  # 1/Å
    ring: Posterior  # under the ring prior: the same as ``posterior`` unless the local prior was asked for
    power: torch.Tensor  # of the object by the ring prior, (scan frequency, unknown)
    electrons: torch.Tensor  # (scan frequency,): as many as the noise found stands for


def regularised_solve(
    equations: NormalEquations,
    *,
    energy: torch.Tensor,
    informed: int,
    freq: Frequencies,
    grid: ScanGrid,
    cutoff: float,
    channels: int,
    local: bool,
) -> Solution:
    """Solve with the prior learnt; what the model cannot explain beyond counting noise counts as noise too.

    At high dose the weak-object model itself, not the counting, limits the fit; without this its error would be
    divided by the nearly empty overlap at the band's edge. A crystal's multiple scattering fails it at few scan
    frequencies, so each is judged by itself where its residual is beyond chance.
    """
    rings = make_rings(freq, width=grid.ring_width, cutoff=cutoff, channels=channels)
    weight = freq.weight.clone()
    weight[0] = 0.0  # the mean is no mode
    chosen = _learning_set(freq, rings, grid.ring_width)
    sample, sample_rings = equations.at(chosen), rings.at(chosen)
    power, share = learn_ring_power(sample, rings=sample_rings)
    known: dict[str, Any] = {"energy": energy[chosen], "weight": weight[chosen], "informed": informed}
    if (worse := _noisier(sample, sample_rings.spread(power), **known)) is not None:
        power, share = learn_ring_power(sample.noisier(worse), rings=sample_rings, start=power)
    spread, given = rings.spread(power), equations
    if worse is not None or len(chosen) < len(weight):  # else it is the question that was just answered
        worse = _noisier(given, spread, energy=energy, weight=weight, informed=informed)
    if worse is not None:
        equations = given.noisier(worse)
    posterior = solve(equations, power=spread)
    excess = excess_residual(given, posterior, energy=energy, informed=informed)
    ring = posterior
    if local:
        nearby = _local_power(ring, spread, freq=freq, grid=grid, channels=channels)
        posterior = solve(equations, power=nearby)
    if worse is not None:
        posterior = replace(posterior, noise=posterior.noise / worse[:, None])  # that of the counts alone
    return Solution(
        posterior, _mean(excess, weight), _filled(share, rings, grid.ring_width), ring, spread, equations.electrons
    )


def _noisier(
    equations: NormalEquations, spread: torch.Tensor, *, energy: torch.Tensor, weight: torch.Tensor, informed: int
) -> torch.Tensor | None:
    """Factor on the noise power of each scan frequency, if any needs one.

    Judged with hardly any prior: what a prior shrinks away is not the model's failure.
    """
    free = estimate(equations, power=spread * _FREE)
    excess = excess_residual(equations, free, energy=energy, informed=informed)
    overall = _mean(excess, weight)
    least = overall if overall > _CHI2_WITHIN_NOISE else 1.0
    sure = excess > 1 + _BEYOND_CHANCE / math.sqrt(informed)
    factor = torch.where(sure, excess, torch.ones_like(excess)).clamp(min=least)
    return factor if bool((factor > 1).any()) else None


def _mean(excess: torch.Tensor, weight: torch.Tensor) -> float:
    return float((weight * excess).sum() / weight.sum())


def _learning_set(freq: Frequencies, rings: Rings, ring_width: float) -> torch.Tensor:
    """Scan frequencies to learn from: all of the lowest, and an even choice of the others."""
    number = len(freq.weight)
    if number <= _LEARNT_FROM:
        return torch.arange(number, device=freq.weight.device)
    low = (freq.magnitude < _LOW_RINGS * ring_width).any(dim=1)
    # golden-ratio steps: evenly spread, and in step with no row length
    order = torch.arange(number, device=low.device, dtype=torch.float64) * 0.6180339887498949 % 1.0
    order[low] = -1.0
    order[~rings.inside.any(dim=1)] = 2.0  # beyond the band limit: nothing to learn
    return torch.argsort(order)[:_LEARNT_FROM].sort().values


def _filled(share: torch.Tensor, rings: Rings, ring_width: float) -> float:
    """Upper edge, 1/Å, of the last ring (of any channel) whose modes the data determine at all."""
    per_ring = share.reshape(rings.channels, rings.number).max(dim=0).values
    last = torch.nonzero(per_ring > _FILLED)
    return (float(last.max()) + 0.5) * ring_width if len(last) else 0.0


def _local_power(
    posterior: Posterior, spread: torch.Tensor, *, freq: Frequencies, grid: ScanGrid, channels: int
) -> torch.Tensor:
    """Power per frequency from that frequency's neighbourhood, channel by channel."""
    from misr.fusion.local_prior import local_power

    found = []
    aliases = freq.y.shape[1]
    for channel in range(channels):
        part = slice(channel * aliases, (channel + 1) * aliases)
        transfer = posterior.transfer[:, part]
        told = transfer > 1e-6
        estimate = torch.where(told, posterior.mean[:, part] / transfer.clamp(min=1e-6), 0.0)
        noise = torch.where(told, posterior.variance[:, part] / transfer.clamp(min=1e-6), torch.inf)
        planes = [
            full_plane(values, grid=grid, freq=freq, conjugate=conjugate)
            for values, conjugate in ((estimate, True), (noise, False), (spread[:, part], False))
        ]
        power = local_power(*planes, pixel_A=grid.pixel(grid.upsample), oversampling=grid.oversampling)
        found.append(from_plane(power, grid=grid, freq=freq))
    power = torch.cat(found, dim=1)
    return torch.where(spread > 1e-29, power.to(spread.dtype), spread)
