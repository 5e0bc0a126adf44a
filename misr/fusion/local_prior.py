"""The object's power per frequency of the plane: where a lattice concentrates it, there it passes.

The ring power of `misr.fusion.prior` is an average over directions. A crystal's power sits in a few frequencies of a
ring, and amorphous matter's is the same all round. Which of the two it is, the data say, ring by ring: the power of a
frequency is drawn from a mixture (multiples m of the ring power, mean 1), the mixture is chosen from a family by its
evidence, and the choice "all alike" holds where the evidence says nothing, so that noise peaks are not let through.

Notes
-----
The extrinsic estimate of one frequency, with the other aliases integrated out under the ring power, is
``y = mean / T`` with variance ``variance / T``, ``T = 1 - variance / P``: the posterior is the product of the prior
``CN(0, P)`` and of that likelihood, so precisions and precision-weighted means subtract. Given a multiple m,
``|y|²`` is exponential with mean ``noise + m P``.

Neighbours at one frequency pixel of the field (a grain smaller than the field widens its reflections) share their
multiple with probability ρ, or draw it afresh; ρ is chosen by how well neighbours predict a frequency that they have
not seen. The power returned is the one whose Wiener gain ``P/(P + noise)`` is the posterior mean gain.

Any prior on the plane of frequencies acts as a convolution of the image: it cannot give a grain's reflections to that
grain alone. Where noise leaves only the core of a widened reflection, the grain's waves run on into its surroundings,
and what breaks the lattice, such as vacancies, stands between the reflections and is weakened: in simulations to
about half the depth that the ring prior leaves, or less. A perfect lattice in the image is no proof of a perfect
specimen. Where a ring holds power between its reflections (amorphous matter beside the crystal), nothing is shrunk
below the ring power.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["local_power"]

_LEVELS = 10.0 ** np.arange(-2, 3.01, 0.5)  # multiples of the ring power
_UNIT = 4  # the level that is 1
_TAILS = (0.5, 1.5)  # multiples above the background are rarer by level^-tail
_ALIKE = 0.9  # prior probability that a ring has one power all round, and that neighbours share nothing
_POOLED = 4.0  # rings (standard deviation) whose evidence is added up
_SHARED = (0.2, 0.4, 0.7)  # candidates of ρ, besides 0
_STRONGEST = 2.0  # of a ring's modes: no multiple can be larger, were all power in one reflection
_LARGEST_SNR = 1e9
_CONTINUOUS = 0.2  # of the ring power between the reflections: amorphous matter, somewhere in the field
_TINY = 1e-30
_UNLIKELY = 1e-20  # relative to the likeliest level
_ROWS = 256  # at least as many rows are enough to learn from
_LARGEST_FACTOR = 1e4  # of a neighbour's testimony: keeps the product of eight within single precision
_ABSURD = 5.0  # times what the strongest reflection of the inner half would have there
_ATOM = 0.6  # 1/Å: the power of light atoms falls as exp(-(q/0.6)²) (Peng et al. 1996, Acta Cryst. A 52, 257)


@dataclass(frozen=True)
class _Plane:
    """Half plane with a border of neighbours; interior statistics count Friedel pairs once."""

    energy: torch.Tensor  # |y|² / noise, (rows, columns) with border
    snr: torch.Tensor  # ring power / noise
    ring: torch.Tensor  # (frequency,), interior
    weight: torch.Tensor  # (frequency,): independent values it stands for
    border: tuple[int, int]
    modes: torch.Tensor  # (ring,): independent values
    step: int  # every so many rows teach the mixtures

    @property
    def rows(self) -> int:
        """Without the border."""
        return self.energy.shape[0] - 2 * self.border[0]

    def inner(self, values: torch.Tensor) -> torch.Tensor:
        """Without the border."""
        dy, dx = self.border
        return values[..., dy : values.shape[-2] - dy, dx : values.shape[-1] - dx]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of ``(kind, frequency)`` of every step-th row over rings, neighbouring rings added: ``(ring, kind)``."""
        ring, weight = (one.reshape(self.rows, -1)[:: self.step].flatten() for one in (self.ring, self.weight))
        kinds = [torch.bincount(ring, weights=one * weight, minlength=len(self.modes)) for one in values]
        return _pool(torch.stack(kinds, dim=1).to(values.dtype))


def local_power(
    estimate: torch.Tensor,
    noise: torch.Tensor,
    ring_power: torch.Tensor,
    *,
    pixel_A: tuple[float, float] | None = None,
    oversampling: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Power of each object frequency, from its own and its neighbours' energies.

    Parameters
    ----------
    estimate : torch.Tensor
        Unshrunk estimate of each object frequency, complex, rad, ``(y, x)`` in fft order, Hermitian symmetric.
    noise : torch.Tensor
        Its variance, rad²; infinite where nothing was measured.
    ring_power : torch.Tensor
        Power of each frequency as its ring has it, rad².
    pixel_A : (float, float), optional
        Pixel of the fine grid along ``(y, x)``, Å: tells how atoms' power falls with frequency. When not given, it is
        taken not to fall, and the pixels to be square.
    oversampling : (float, float), default (1, 1)
        Frequency pixels per independent frequency along ``(y, x)``: the padded field's side over the scanned one's.

    Returns
    -------
    torch.Tensor
        Power, rad², of ``ring_power``'s shape, dtype and device: the ring power where nothing was measured.

    Raises
    ------
    ValueError
        If the planes' shapes differ.

    Examples
    --------
    >>> noise = torch.ones(32, 32)
    >>> image = 0.3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) / 32
    >>> wave = 0.5 * torch.cos(2 * torch.pi * torch.arange(32) * 10 / 32)
    >>> y = torch.fft.fft2(image + wave, norm="forward")
    >>> power = local_power(y, 8e-5 * noise, 1e-3 * noise, pixel_A=(0.5, 0.5))
    >>> bool(power[0, 10] > 20e-3), bool(power[5, 10] < 1e-3)
    (True, True)
    """
    if not estimate.shape == noise.shape == ring_power.shape or estimate.ndim != 2:
        raise ValueError(
            f"estimate, noise and ring_power have shapes {tuple(estimate.shape)}, {tuple(noise.shape)} and "
            f"{tuple(ring_power.shape)}: expected the same plane (y, x) for all"
        )
    pixel = (1.0, 1.0) if pixel_A is None else pixel_A
    radius = _radius(estimate.shape, pixel, ring_power.device)
    plane = _half_plane(estimate, noise, ring_power, radius=radius, pixel_A=pixel, oversampling=oversampling)
    levels = torch.as_tensor(_LEVELS, dtype=torch.float32, device=ring_power.device)
    spread = 1 + levels[:, None, None] * plane.snr
    log = -plane.energy / spread
    log -= spread.log()
    likelihood = log.sub_(log.amax(dim=0)).exp_().clamp_(min=_UNLIKELY)
    mixtures = _mixtures(plane.inner(likelihood), plane)
    prior = mixtures.T[:, plane.ring].reshape(plane.inner(likelihood).shape)
    excess, rho = _neighbours(likelihood, prior, plane)
    # the posterior mean gain is Σ share m snr / (1 + m snr): solved for the power that has it
    part = prior.mul_(plane.inner(likelihood)).div_(plane.inner(spread))
    above, total = torch.zeros_like(part[0]), torch.zeros_like(part[0])
    for k, level in enumerate(_LEVELS):
        told = _testimony(excess[k], rho, plane).mul_(part[k])
        total += told
        above.add_(told, alpha=float(level))
    usual = torch.exp(mixtures @ levels.log())
    least = (usual / _CONTINUOUS).clamp(max=1)[plane.ring].reshape(total.shape)
    power = ring_power * _unfold(torch.maximum(above / total, least), estimate.shape[1])
    power = torch.where(torch.isfinite(noise), power, ring_power)
    falls = torch.exp(-((radius / _ATOM) ** 2)) if pixel_A is not None else torch.ones_like(radius)
    return _plausible(power, estimate, noise, ring_power, radius=radius, falls=falls.to(power.dtype))


def _half_plane(
    estimate: torch.Tensor,
    noise: torch.Tensor,
    power: torch.Tensor,
    *,
    radius: torch.Tensor,
    pixel_A: tuple[float, float],
    oversampling: tuple[float, float],
) -> _Plane:
    (height, width), half = estimate.shape, estimate.shape[1] // 2 + 1
    on = power.device
    border = max(1, round(oversampling[0])), max(1, round(oversampling[1]))
    rows = torch.arange(-border[0], height + border[0], device=on) % height
    columns = torch.arange(-border[1], half + border[1], device=on) % width
    known = torch.isfinite(noise) & (power > 0)
    floor = torch.maximum(noise, power / _LARGEST_SNR).where(known, torch.ones_like(noise))
    energy, snr = (
        (values / floor).where(known, torch.zeros_like(floor)).float()[rows][:, columns]
        for values in (estimate.real**2 + estimate.imag**2, power)
    )
    # rings as wide as one independent frequency
    field = min(height * pixel_A[0] / oversampling[0], width * pixel_A[1] / oversampling[1])
    ring = (radius[:, :half] * field).round().long().flatten()
    pairs = torch.full((half,), 1.0, device=on)
    pairs[0] = 0.5
    if width % 2 == 0:
        pairs[-1] = 0.5
    counts = pairs.expand(height, half).flatten() / (oversampling[0] * oversampling[1])
    modes = torch.zeros(int(ring.max()) + 1, device=on).index_add_(0, ring, 2 * counts)
    return _Plane(energy, snr, ring, counts * known[:, :half].flatten(), border, modes, max(1, height // _ROWS))


def _radius(shape: torch.Size, pixel_A: tuple[float, float], device: torch.device) -> torch.Tensor:
    """Frequencies in 1/Å."""
    q_y, q_x = (torch.fft.fftfreq(n, pixel, device=device) for n, pixel in zip(shape, pixel_A, strict=True))
    return torch.hypot(q_y[:, None], q_x[None, :])


def _unfold(half: torch.Tensor, width: int) -> torch.Tensor:
    """The full plane of a real, even function from its half."""
    rows = -torch.arange(len(half), device=half.device) % len(half)
    rest = half[:, 1 : width - half.shape[1] + 1].flip(1)[rows]
    return torch.cat((half, rest), dim=1)


def _family() -> tuple[np.ndarray, np.ndarray]:
    """Mixtures of the levels with mean 1, ``(level, mixture)``, and each one's largest level; the first: all alike."""
    columns = [np.eye(len(_LEVELS))[_UNIT]]
    for background in range(_UNIT):
        for last in range(_UNIT + 2, len(_LEVELS)):
            for tail in _TAILS:
                peaks = np.zeros(len(_LEVELS))
                peaks[background + 1 : last + 1] = _LEVELS[background + 1 : last + 1] ** -tail
                peaks /= peaks.sum()
                often = (1 - _LEVELS[background]) / (peaks @ _LEVELS - _LEVELS[background])
                if 0 < often < 1:
                    columns.append(often * peaks)
                    columns[-1][background] = 1 - often
    family = np.stack(columns, axis=1)
    return family, np.array([_LEVELS[np.flatnonzero(column)[-1]] for column in columns])


def _mixtures(likelihood: torch.Tensor, plane: _Plane) -> torch.Tensor:
    """Each ring's mixture, ``(ring, level)``: the family's mean, weighted with its evidence."""
    family, largest = (torch.as_tensor(part, dtype=torch.float32, device=likelihood.device) for part in _family())
    evidence = plane.sum((family.T @ likelihood[:, :: plane.step].flatten(1)).clamp_(min=_TINY).log_())
    evidence = evidence - evidence[:, :1]
    evidence[largest > _STRONGEST * plane.modes[:, None].clamp(min=1)] = -torch.inf
    evidence[:, 0] = 0.0
    chance = _chances(family.shape[1], likelihood.device)
    return torch.softmax(evidence + chance.log(), dim=1) @ family.T


def _neighbours(likelihood: torch.Tensor, prior: torch.Tensor, plane: _Plane) -> tuple[torch.Tensor, torch.Tensor]:
    """Each frequency's likelihood ratios less 1, with border, and how far its neighbours share them: ρ."""
    dy, dx = plane.border
    everywhere = torch.nn.functional.pad(prior, (dx, dx, dy, dy), mode="replicate")
    excess = likelihood / everywhere.mul_(likelihood).sum(dim=0).clamp_(min=_TINY)
    excess.clamp_(max=_LARGEST_FACTOR).sub_(1)
    rho = _likeness(excess, plane.inner(likelihood), prior, plane)
    return excess, rho[plane.ring].reshape(prior.shape[1:])


def _likeness(excess: torch.Tensor, own: torch.Tensor, prior: torch.Tensor, plane: _Plane) -> torch.Tensor:
    """Each ring's ρ: the candidates' mean, weighted with how well the neighbours predict."""
    step = plane.step
    own, prior = own[:, ::step], prior[:, ::step]
    alone = (own * prior).sum(dim=0).clamp(min=_TINY)
    gains = [torch.zeros_like(alone)]
    for rho in _SHARED:
        predicted, total = torch.zeros_like(alone), torch.zeros_like(alone)
        for k, level in enumerate(excess):
            told = _testimony(level, rho, plane, step=step).mul_(prior[k])
            total += told
            predicted += told.mul_(own[k])
        gains.append((predicted / total.clamp(min=_TINY) / alone).clamp(min=_TINY).log())
    options = torch.tensor((0.0, *_SHARED), device=prior.device)
    chance = _chances(len(options), prior.device)
    return torch.softmax(plane.sum(torch.stack(gains).flatten(1)) + chance.log(), dim=1) @ options


def _testimony(excess: torch.Tensor, rho: torch.Tensor | float, plane: _Plane, *, step: int = 1) -> torch.Tensor:
    """Product over the eight neighbours of ``1 + ρ × (likelihood ratio - 1)``, ρ² for those on the diagonal."""
    dy, dx = plane.border
    height, width = excess.shape[0] - 2 * dy, excess.shape[1] - 2 * dx
    near, far = (torch.as_tensor(share, device=excess.device) for share in (rho, rho**2))
    one = excess.new_ones(())
    result: torch.Tensor | None = None
    for y in (0, dy, 2 * dy):
        for x in (0, dx, 2 * dx):
            if (y, x) != (dy, dx):
                share = near if dy == y or dx == x else far
                factor = torch.addcmul(one, excess[y : y + height : step, x : x + width], share)
                result = factor if result is None else result.mul_(factor)
    return excess if result is None else result


def _chances(number: int, device: torch.device) -> torch.Tensor:
    """Prior probabilities: the first, and the others alike."""
    chance = torch.full((number,), (1 - _ALIKE) / (number - 1), device=device)
    chance[0] = _ALIKE
    return chance


def _pool(rings: torch.Tensor) -> torch.Tensor:
    """Add the neighbouring rings', less with distance."""
    reach = torch.arange(-int(3 * _POOLED), int(3 * _POOLED) + 1, device=rings.device)
    kernel = torch.exp(-0.5 * (reach / _POOLED) ** 2).to(rings.dtype)
    return torch.nn.functional.conv1d(rings.T[:, None], kernel[None, None], padding=len(reach) // 2)[:, 0].T


def _plausible(
    power: torch.Tensor,
    estimate: torch.Tensor,
    noise: torch.Tensor,
    ring_power: torch.Tensor,
    *,
    radius: torch.Tensor,
    falls: torch.Tensor,
) -> torch.Tensor:
    """No reflection in the outer half of the band outshines, as atoms scatter, the strongest of the inner half.

    What the weak-phase model leaves unexplained is divided by the nearly empty overlap at the band's edge. It is no
    noise: it comes back at every dose, at a crystal's own reflections.
    """
    known = torch.isfinite(noise) & (ring_power > 0)
    nothing = torch.zeros_like(power)
    outer = known & (radius > 0.5 * radius.where(known, torch.zeros_like(radius)).max())
    energy = estimate.real**2 + estimate.imag**2
    passed = (power / (power + noise).clamp(min=torch.finfo(power.dtype).tiny)) ** 2 * energy
    inner = passed.where(known & ~outer, nothing)
    cap = torch.minimum((inner / falls).max() * falls, inner.max())
    limited = torch.minimum(power, torch.maximum(ring_power, cap))
    limited = torch.where(energy > _ABSURD * (cap + noise), torch.minimum(limited, ring_power), limited)
    return torch.where(outer, limited, power)
