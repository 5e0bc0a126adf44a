"""Maximum likelihood over defocus, astigmatism and rotation, from a start that is about right.

With aberrations up to the second order the overlap function divided by the aperture at k is
``γ(k, q) = i exp(2πiλ k·Cq) [A(k - q) exp(-iχ(q)) - A(k + q) exp(iχ(q))]``, with C the symmetric matrix of defocus and
astigmatism: a plane wave over the detector, so that the matched filter is a Fourier sum over each half of the overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from misr.calibration.prior import Evidence, PowerPrior
from misr.calibration.spectra import Spectra
from misr.optics import aperture_fraction, rotate

__all__ = [
    "ABSORPTION",
    "FIRST_HIGHER",
    "HELD",
    "Alignment",
    "Filtered",
    "MatchedFilter",
    "Refined",
    "Waves",
    "blurred",
    "detector_waves",
    "refine",
]

_MASK_STEP = 0.04  # rad: overlaps are recomputed when the rotation has moved by this
_BATCH = 128  # frequencies at a time
ABSORPTION = 0.5  # rad: standard deviation of the prior on it
HELD = 0.1  # pixels with less of the aperture in them are left out
_NAMES = ("C10", "C12a", "C12b", "rotation", "absorption")
FIRST_HIGHER = len(_NAMES)


@dataclass(frozen=True)
class Alignment:
    """Defocus and astigmatism (Å; C12a, C12b its cosine and sine part), rotation (rad), transposed detector or not.

    ``absorption`` is the angle η (rad) of an object that scatters ``i φ exp(iη)``: where atoms also absorb, or scatter
    so strongly that the second order counts, ``exp(iφ) - 1 ≈ iφ - φ²/2``, it is positive. It acts as if χ(q) were
    smaller by η, and would pass for defocus if it were not fitted.
    """

    C10: float
    C12a: float
    C12b: float
    rotation: float
    transposed: bool = False
    absorption: float = 0.0
    higher: tuple[float, ...] = ()  # Å, in the order of `misr.calibration.higher`

    @property
    def values(self) -> np.ndarray:
        """All the numbers."""
        return np.array([*(getattr(self, name) for name in _NAMES), *self.higher])

    def moved(self, step: np.ndarray) -> Alignment:
        """Another alignment, that far away."""
        new = [float(value) for value in self.values + step]
        C10, C12a, C12b, rotation, absorption, *higher = new
        return Alignment(C10, C12a, C12b, rotation, self.transposed, absorption, tuple(higher))

    def shifts(self, q_y: np.ndarray, q_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``C q`` (Å, over λ): in the scan's frame."""
        return (
            (self.C10 - self.C12a) * q_y + self.C12b * q_x,
            self.C12b * q_y + (self.C10 + self.C12a) * q_x,
        )

    def to_detector(self, y: Any, x: Any) -> tuple[Any, Any]:
        """A vector of the scan's frame in the detector's."""
        turned = rotate(y, x, -math.degrees(self.rotation))
        return (turned[1], turned[0]) if self.transposed else turned

    def to_scan(self, y: Any, x: Any) -> tuple[Any, Any]:
        """A vector of the detector's frame in the scan's."""
        return rotate(*((x, y) if self.transposed else (y, x)), math.degrees(self.rotation))


@dataclass(frozen=True)
class Filtered:
    """Matched filter at each frequency: value, noise variance, and derivatives to the parameters."""

    v: np.ndarray
    variance: np.ndarray
    slope: np.ndarray  # (frequency, parameter): ∂v
    variance_slope: np.ndarray
    gram: np.ndarray  # (frequency, parameter, parameter): Re Σ n ∂γ* ∂γ
    mixed: np.ndarray  # (frequency, parameter): Σ n γ* ∂γ


@dataclass(frozen=True)
class _Overlaps:
    """What depends on the rotation alone: both overlaps times the data, and moments of their weights."""

    minus: torch.Tensor
    plus: torch.Tensor
    moments: tuple[np.ndarray, np.ndarray, np.ndarray]  # of minus², plus², minus·plus: over 1, y, x, yy, yx, xx


class MatchedFilter:
    """Evaluates the matched filter of `Spectra` for alignments; ``simple`` ignores the overlaps' edges (tcBF).

    Parameters
    ----------
    spectra : Spectra
        Of the bright field.
    simple : bool
        Use the whole disk instead of its overlaps: half of the signal, in a tenth of the time.
    """

    def __init__(self, spectra: Spectra, *, simple: bool = False) -> None:
        self.spectra, self.simple = spectra, simple
        self.device = spectra.weighted.device
        k_y, k_x = np.meshgrid(spectra.k_y, spectra.k_x, indexing="ij")
        self._k_y, self._k_x = self._tensor(k_y), self._tensor(k_x)
        inside = self._aperture(self._k_y, self._k_x)
        self._counts = self._tensor(spectra.counts) * (inside > HELD)
        powers = [k_y * 0 + 1, k_y, k_x, k_y**2, k_y * k_x, k_x**2]
        self._basis = self._counts.reshape(-1, 1) * self._tensor(np.stack(powers, -1)).reshape(-1, 6)
        self._held: tuple[tuple[int, bool], _Overlaps] | None = None

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float32), device=self.device)

    def _aperture(self, k_y: torch.Tensor, k_x: torch.Tensor) -> Any:
        pixel = self.spectra.pixel
        return aperture_fraction(k_y, k_x, cutoff=self.spectra.cutoff, width=math.sqrt(pixel[0] * pixel[1]))

    def _overlaps(self, alignment: Alignment) -> _Overlaps:
        key = (0 if self.simple else round(alignment.rotation / _MASK_STEP), alignment.transposed)
        if self._held is not None and self._held[0] == key:
            return self._held[1]
        self._held = None  # free it first
        data = self.spectra.weighted * (self._counts > 0)
        if self.simple:
            moment = (self._basis.sum(0).cpu().numpy().astype(float))[None, :]
            overlaps = _Overlaps(data, data, (moment, moment, moment))
        else:
            overlaps = self._edges(alignment, data)
        self._held = (key, overlaps)
        return overlaps

    def _edges(self, alignment: Alignment, data: torch.Tensor) -> _Overlaps:
        q = alignment.to_detector(self.spectra.q_y, self.spectra.q_x)
        q_y, q_x = (self._tensor(component)[:, None, None] for component in q)
        products = [torch.empty_like(data), torch.empty_like(data)]
        moments: tuple[list[np.ndarray], ...] = ([], [], [])
        for first in range(0, len(data), _BATCH):  # the masks then stay in the cache
            part = slice(first, first + _BATCH)
            masks = [self._aperture(self._k_y + sign * q_y[part], self._k_x + sign * q_x[part]) for sign in (-1, 1)]
            for product, mask in zip(products, masks, strict=True):
                torch.mul(mask, data[part], out=product[part])
            weights = (masks[0] * masks[0], masks[1] * masks[1], masks[0] * masks[1])
            for moment, weight in zip(moments, weights, strict=True):
                moment.append((weight.flatten(1) @ self._basis).cpu().numpy().astype(float))
        gathered = [np.concatenate(moment) for moment in moments]
        return _Overlaps(products[0], products[1], (gathered[0], gathered[1], gathered[2]))

    def __call__(self, alignment: Alignment, *, absorbing: bool = False) -> Filtered:
        """Evaluate at an alignment, for an object of phase or one that absorbs: as if χ(q) were larger by π/2."""
        spectra, overlaps = self.spectra, self._overlaps(alignment)
        q_y, q_x, wavelength = spectra.q_y, spectra.q_x, spectra.wavelength
        g_y, g_x = alignment.shifts(q_y, q_x)
        chi = math.pi * wavelength * (g_y * q_y + g_x * q_x) - alignment.absorption
        chi = chi + (math.pi / 2 if absorbing else 0.0)
        waves = detector_waves(spectra, alignment)
        minus = self._fourier(overlaps.minus, *waves.u)
        plus = minus if self.simple else self._fourier(overlaps.plus, *waves.u)
        # χ(q) over the parameters
        chi_slopes = np.stack([q_x**2 + q_y**2, q_x**2 - q_y**2, 2 * q_x * q_y, 0 * q_y], -1)
        c = np.column_stack([math.pi * wavelength * chi_slopes, np.full(len(q_y), -1.0)])
        scale = spectra.positions * spectra.trust
        filtered = _filtered(minus, plus, overlaps.moments, chi, waves.blur, (*waves.slopes, c), scale)
        return blurred(filtered, waves, spectra.pixel)

    def _fourier(self, data: torch.Tensor, u_y: np.ndarray, u_x: np.ndarray) -> np.ndarray:
        """``Σ_k exp(-i k·u) (1, k_y, k_x) data``: (frequency, 3)."""
        spectra = self.spectra
        k_y, k_x = self._tensor(spectra.k_y), self._tensor(spectra.k_x)
        wave_y, wave_x = (
            torch.polar(torch.ones((), device=self.device), -self._tensor(u)[:, None] * k)
            for u, k in ((u_y, k_y), (u_x, k_x))
        )
        along_x = torch.bmm(data, torch.stack([wave_x, wave_x * k_x], -1))  # (frequency, det_y, 2)
        along_y = torch.stack([wave_y, wave_y * k_y], 1)  # (frequency, 2, det_y)
        both = torch.bmm(along_y, along_x).cpu().numpy().astype(complex)
        return np.stack([both[:, 0, 0], both[:, 1, 0], both[:, 0, 1]], -1)


def _filtered(
    minus: np.ndarray,
    plus: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray, np.ndarray],
    chi: np.ndarray,
    blur: np.ndarray,
    slopes: tuple[np.ndarray, np.ndarray, np.ndarray],
    positions: np.ndarray,
) -> Filtered:
    (t_y, t_x, c), (aa, bb, ab) = slopes, moments
    forward, back = np.exp(1j * chi)[:, None], np.exp(-1j * chi)[:, None]
    scale = (blur * positions)[:, None]

    def along(wave: np.ndarray) -> np.ndarray:
        return -1j * (t_y * wave[:, 1:2] + t_x * wave[:, 2:3])

    v = -1j * scale * (forward * minus[:, :1] - back * plus[:, :1])
    slope = (
        -1j * scale * (forward * (along(minus) + 1j * c * minus[:, :1]) - back * (along(plus) - 1j * c * plus[:, :1]))
    )
    weight = (blur**2 * positions)[:, None]
    cos, sin = np.cos(2 * chi)[:, None], np.sin(2 * chi)[:, None]
    power = (aa + bb - 2 * ab * cos) * weight  # |γ|²
    quadrature = (aa + bb + 2 * ab * cos) * weight  # |∂γ/∂χ|²
    cross = -(aa - bb) * weight  # Re (iγ)* ∂γ/∂χ
    variance_slope = 4 * ab[:, :1] * sin * weight * c
    squares = _outer(t_y, t_y) * power[:, 3, None, None] + _outer(t_x, t_x) * power[:, 5, None, None]
    squares = squares + (_outer(t_y, t_x) + _outer(t_x, t_y)) * power[:, 4, None, None]
    linear = t_y * cross[:, 1:2] + t_x * cross[:, 2:3]
    gram = squares + _outer(c, c) * quadrature[:, :1, None] + _outer(linear, c) + _outer(c, linear)
    mixed = 1j * (t_y * power[:, 1:2] + t_x * power[:, 2:3] + c * cross[:, :1]) + variance_slope / 2
    return Filtered(v[:, 0], power[:, 0], slope, variance_slope, gram, mixed)


@dataclass(frozen=True)
class Waves:
    """Plane waves over the detector that an alignment gives each frequency, along y and x."""

    u: tuple[np.ndarray, np.ndarray]  # (frequency,): rad Å
    slopes: tuple[np.ndarray, np.ndarray]  # (frequency, parameter): of u
    blur: np.ndarray  # (frequency,): loss over a pixel's area


def detector_waves(spectra: Spectra, alignment: Alignment) -> Waves:
    """The waves of defocus and astigmatism, in the detector's frame."""
    q_y, q_x = spectra.q_y, spectra.q_x
    g_y, g_x = alignment.shifts(q_y, q_x)
    scale = 2 * math.pi * spectra.wavelength
    u_y, u_x = (scale * u for u in alignment.to_detector(g_y, g_x))
    waves = [(q_y, q_x), (-q_y, q_x), (q_x, q_y), (g_x, -g_y), (0 * q_y, 0 * q_x)]
    turned = [alignment.to_detector(*wave) for wave in waves]
    t_y, t_x = (scale * np.stack([wave[i] for wave in turned], -1) for i in range(2))
    pixel = spectra.pixel
    blur = np.sinc(u_y * pixel[0] / (2 * math.pi)) * np.sinc(u_x * pixel[1] / (2 * math.pi))
    return Waves((u_y, u_x), (t_y, t_x), blur)


def blurred(filtered: Filtered, waves: Waves, pixel: tuple[float, float]) -> Filtered:
    """With the slope of the loss over a pixel's area, ``sinc``, whose logarithm has the derivative ``cot x - 1/x``."""
    relative = np.zeros_like(filtered.variance_slope)
    for phase, slope, width in zip(waves.u, waves.slopes, pixel, strict=True):
        x = phase * width / 2
        sine = np.sin(x)
        usual = (np.abs(x) > 1e-2) & (np.abs(sine) > 1e-3)  # at the zeros of sinc nothing is left to have a slope
        safe = np.where(usual, x, 1.0)
        bend = np.where(usual, 1 / np.tan(safe) - 1 / safe, np.where(np.abs(x) <= 1e-2, -x / 3, 0.0))
        relative[:, : slope.shape[1]] += bend[:, None] * slope * width / 2
    return replace(
        filtered,
        slope=filtered.slope + filtered.v[:, None] * relative,
        variance_slope=filtered.variance_slope + 2 * filtered.variance[:, None] * relative,
    )


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :, None] * b[:, None, :]


def _gradient(filtered: Filtered, evidence: Evidence) -> np.ndarray:
    p, share = evidence.power, evidence.share
    snr = p * filtered.variance[:, None]
    energy = (np.abs(filtered.v) ** 2)[:, None]
    on_energy = (share * p / (1 + snr)).sum(1)
    on_variance = -(share * (p**2 * energy / (1 + snr) ** 2 + p / (1 + snr))).sum(1)
    energy_slope = 2 * (np.conj(filtered.v)[:, None] * filtered.slope).real
    return (energy_slope * on_energy[:, None] + filtered.variance_slope * on_variance[:, None]).sum(0)


def _information(filtered: Filtered, evidence: Evidence) -> np.ndarray:
    """Fisher information of data with covariance ``1 + p g g*``, g = γ over its noise, at given powers p.

    ``tr(C⁻¹ ∂ᵢC C⁻¹ ∂ⱼC)`` (Kay 1993, *Estimation Theory*, 15.7), with C inverted by Sherman and Morrison.
    """
    p, share = evidence.power, evidence.share
    variance = filtered.variance[:, None]
    inverse = 1 / (1 + p * variance)
    first = 2 * (share * p**2 * inverse**2).sum(1)
    second = 2 * (share * p**2 * variance * inverse).sum(1)
    third = 2 * (share * p**3 * variance * inverse**2).sum(1)
    mixed = filtered.mixed
    total = np.einsum("q,qi,qj->ij", first, mixed, mixed).real
    total += np.einsum("q,qij->ij", second, filtered.gram)
    return total - np.einsum("q,qi,qj->ij", third, mixed.conj(), mixed).real


@dataclass(frozen=True)
class Refined:
    """A local maximum of the likelihood."""

    alignment: Alignment
    log: float  # log-likelihood against noise alone, with the prior on the astigmatism
    information: np.ndarray  # Fisher information at C10, C12a, C12b, rotation, absorption and higher orders
    filtered: Filtered
    evidence: Evidence


def refine(
    matched: Callable[[Alignment], Filtered],
    prior: PowerPrior,
    start: Alignment,
    *,
    astigmatism_A: float,
    steps: int,
    fixed: tuple[bool, ...] = (False,) * FIRST_HIGHER,
    widths: tuple[float, ...] = (),
    tolerance: float = 0.03,
) -> Refined:
    """Climb to the next maximum of the likelihood by damped Fisher scoring (Levenberg 1944, Marquardt 1963).

    Parameters
    ----------
    matched : callable
        From an alignment to `Filtered`, such as a `MatchedFilter`.
    prior : PowerPrior
        Of the object's power.
    start : Alignment
        Where to begin.
    astigmatism_A : float
        Standard deviation of the prior on each part of the astigmatism, Å.
    steps : int
        At most so many.
    fixed : tuple of bool
        Parameters to leave alone.
    widths : tuple of float
        Standard deviations of the priors on the higher orders, Å.
    tolerance : float
        Stop when a step is shorter than this many standard errors.

    Returns
    -------
    Refined
        Never less likely than the start.
    """
    free = ~np.asarray((*fixed, *(False for _ in widths)))
    known = [0.0, astigmatism_A**-2, astigmatism_A**-2, 0.0, ABSORPTION**-2]
    penalty = np.array([*known, *(width**-2 for width in widths)])

    def look(alignment: Alignment) -> Refined:
        filtered = matched(alignment)
        evidence = prior.evidence(filtered.v, filtered.variance)
        log = evidence.log - 0.5 * float(penalty @ alignment.values**2)
        return Refined(alignment, log, np.empty(0), filtered, evidence)

    here, damping = look(start), 1e-3
    for _ in range(steps):
        slope = prior.independent * _gradient(here.filtered, here.evidence) - penalty * here.alignment.values
        curve = prior.independent * _information(here.filtered, here.evidence) + np.diag(penalty)
        there = None
        while damping < 1e5:
            step = np.zeros(free.size)
            damped = curve + damping * np.diag(np.diag(curve)) + 1e-12 * np.eye(free.size)
            step[free] = np.linalg.solve(damped[np.ix_(free, free)], slope[free])
            trial = look(here.alignment.moved(step))
            if trial.log > here.log:
                there = trial
                break
            damping = max(8 * damping, 0.1)
            if step @ curve @ step < tolerance**2:
                break
        if there is None:
            break
        here, damping = there, max(damping / 4, 1e-3)
        if step @ curve @ step < tolerance**2:
            break
    information = prior.independent * _information(here.filtered, here.evidence) + np.diag(penalty)
    return replace(here, information=information)
