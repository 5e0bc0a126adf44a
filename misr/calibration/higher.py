"""The matched filter with aberrations of any order: coma, threefold astigmatism, spherical aberration on request.

Beyond the second order ``χ(k) - χ(k - q)`` is no plane wave over the detector, so every pixel's phase and derivatives
are evaluated. The derivatives are those of the phase; the overlaps' edges are held, as in `misr.calibration.refine`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from misr.calibration.refine import HELD, Alignment, Filtered, blurred
from misr.calibration.spectra import Spectra
from misr.optics import aperture_fraction

__all__ = ["HIGHER", "GeneralFilter", "higher_parts", "prior_widths"]

HIGHER = ("C21", "C23", "C30")
_WIDTHS_A = {"C21": 3e4, "C23": 3e4, "C30": 1.5e7}  # C30 of an uncorrected objective lens is about a millimetre
_ENTRIES = 1 << 18


@dataclass(frozen=True)
class _Part:
    """One linear term of χ: ``2π/λ λ^(n+1)/(n+1) |k|^(n+1-m) Re or Im (k_x + i k_y)^m``."""

    n: int
    m: int
    imaginary: bool


_SECOND = (_Part(1, 0, False), _Part(1, 2, False), _Part(1, 2, True))


def higher_parts(orders: Sequence[str]) -> list[tuple[str, _Part]]:
    """Cosine and sine parts of the aberrations asked for, beyond the second order."""
    parts = []
    for name in HIGHER:
        if name in orders:
            n, m = int(name[1]), int(name[2])
            parts += [(name, _Part(n, m, imaginary)) for imaginary in ((False, True) if m else (False,))]
    return parts


def prior_widths(orders: Sequence[str]) -> tuple[float, ...]:
    """Standard deviations of the weak priors on those parts, Å."""
    return tuple(_WIDTHS_A[name] for name, _ in higher_parts(orders))


class GeneralFilter:
    """Evaluates the matched filter of `Spectra` for alignments with higher orders.

    Parameters
    ----------
    spectra : Spectra
        Of the bright field.
    orders : sequence of str
        Which of "C21", "C23" and "C30" the alignments hold, as ``higher``: cosine and sine part of each.
    """

    def __init__(self, spectra: Spectra, orders: Sequence[str]) -> None:
        self.spectra = spectra
        self.parts = [*_SECOND, *(part for _, part in higher_parts(orders))]
        k_y, k_x = np.meshgrid(spectra.k_y, spectra.k_x, indexing="ij")
        width = math.sqrt(spectra.pixel[0] * spectra.pixel[1])
        inside = aperture_fraction(k_y, k_x, cutoff=spectra.cutoff, width=width) > HELD
        inside &= spectra.counts > 0
        self.k_y, self.k_x, self.width = k_y[inside], k_x[inside], width
        device = spectra.weighted.device
        self.data = spectra.weighted[:, torch.as_tensor(inside, device=device)]
        self.counts = torch.as_tensor(spectra.counts[inside].astype(np.float32), device=device)

    def __call__(self, alignment: Alignment) -> Filtered:
        """Evaluate at an alignment."""
        chunk = max(1, _ENTRIES // len(self.k_y))
        pieces = [self._chunk(alignment, slice(i, i + chunk)) for i in range(0, len(self.spectra.q_y), chunk)]
        filtered = Filtered(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))
        return self._with_blur(filtered, alignment)

    def _with_blur(self, filtered: Filtered, alignment: Alignment) -> Filtered:
        spectra, scale = self.spectra, 2 * math.pi * self.spectra.wavelength
        g_y, g_x = alignment.shifts(spectra.q_y, spectra.q_x)
        u_y, u_x = alignment.to_detector(g_y, g_x)
        waves = [(spectra.q_y, spectra.q_x), (-spectra.q_y, spectra.q_x), (spectra.q_x, spectra.q_y), (g_x, -g_y)]
        turned = [alignment.to_detector(*wave) for wave in waves]
        t_y, t_x = (scale * np.stack([wave[i] for wave in turned], -1) for i in range(2))
        return blurred(filtered, (scale * u_y, scale * u_x), (t_y, t_x), spectra.pixel)

    def _chunk(self, alignment: Alignment, part: slice) -> tuple[np.ndarray, ...]:
        spectra, device = self.spectra, self.data.device

        def tensor(values: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.float32), device=device)

        # the frame of the detector, in which q turns: the pixels stay where they are
        turned = alignment.to_detector(spectra.q_y[part], spectra.q_x[part])
        detector = [tensor(self.k_y), tensor(self.k_x)]
        k = _to_scan(alignment, *detector)
        q = [tensor(spectra.q_y[part])[:, None], tensor(spectra.q_x[part])[:, None]]
        values = np.delete(alignment.values, (3, 4))
        overlaps, phases, slopes = [], [], []
        for sign in (-1, 1):
            moved = [k[0] + sign * q[0], k[1] + sign * q[1]]
            edge = [detector[i] + sign * tensor(turned[i])[:, None] for i in range(2)]
            overlaps.append(aperture_fraction(edge[0], edge[1], cutoff=spectra.cutoff, width=self.width))
            terms = torch.stack([self._term(p, *k) - self._term(p, *moved) for p in self.parts])
            phases.append(torch.tensordot(tensor(values), terms, 1))
            gradient = [self._gradient(values, *k)[i] - self._gradient(values, *moved)[i] for i in range(2)]
            # rotating the detector moves k by (-k_x, k_y) in (y, x) order: `misr.optics.rotate`
            rotation = -gradient[0] * k[1] + gradient[1] * k[0]
            slopes.append(torch.cat([terms[:3], rotation[None], torch.ones_like(rotation)[None], terms[3:]]))
        minus = torch.polar(overlaps[0], phases[0] + alignment.absorption)
        plus = torch.polar(overlaps[1], -phases[1] - alignment.absorption)
        gamma = 1j * (minus - plus)
        derivative = -(slopes[0] * minus + slopes[1] * plus)
        blur, scale = self._blur(alignment, part), spectra.positions * spectra.trust[part]
        return self._sums(gamma, derivative, self.data[part], blur, scale)

    def _sums(
        self, gamma: torch.Tensor, derivative: torch.Tensor, data: torch.Tensor, blur: np.ndarray, scale: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        counts = self.counts

        def numbers(value: torch.Tensor) -> np.ndarray:
            return value.cpu().numpy().astype(complex)

        first, second = blur * scale, blur**2 * scale
        v = numbers((gamma.conj() * data).sum(1)) * first
        variance = numbers((gamma.abs() ** 2 * counts).sum(1)).real * second
        slope = numbers((derivative.conj() * data).sum(2)).T * first[:, None]
        mixed = numbers((gamma.conj() * counts * derivative).sum(2)).T * second[:, None]
        by_frequency = derivative.permute(1, 0, 2)
        gram = numbers((by_frequency * counts).conj() @ by_frequency.transpose(1, 2)).real * second[:, None, None]
        return v, variance, slope, 2 * mixed.real, gram, mixed

    def _term(self, part: _Part, k_y: torch.Tensor, k_x: torch.Tensor) -> torch.Tensor:
        power = _complex_power(k_y, k_x, part.m)[int(part.imaginary)]
        return self._scale(part) * (k_y**2 + k_x**2) ** ((part.n + 1 - part.m) // 2) * power

    def _scale(self, part: _Part) -> float:
        wavelength = self.spectra.wavelength
        return 2 * math.pi / wavelength * wavelength ** (part.n + 1) / (part.n + 1)

    def _gradient(self, values: np.ndarray, k_y: torch.Tensor, k_x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        squared = k_y**2 + k_x**2
        grad_y, grad_x = torch.zeros_like(squared), torch.zeros_like(squared)
        for value, part in zip(values, self.parts, strict=True):
            scale, p, m = float(value) * self._scale(part), (part.n + 1 - part.m) // 2, part.m
            if m > 0:
                re, im = _complex_power(k_y, k_x, m - 1)
                along_x, along_y = (im, re) if part.imaginary else (re, -im)
                grad_x, grad_y = grad_x + scale * m * squared**p * along_x, grad_y + scale * m * squared**p * along_y
            if p > 0:
                common = 2 * p * scale * squared ** (p - 1) * _complex_power(k_y, k_x, m)[int(part.imaginary)]
                grad_x, grad_y = grad_x + common * k_x, grad_y + common * k_y
        return grad_y, grad_x

    def _blur(self, alignment: Alignment, part: slice) -> np.ndarray:
        """Loss over a pixel's area, from defocus and astigmatism."""
        spectra = self.spectra
        shifts = alignment.shifts(spectra.q_y[part], spectra.q_x[part])
        u_y, u_x = (spectra.wavelength * u for u in alignment.to_detector(*shifts))
        return np.sinc(u_y * spectra.pixel[0]) * np.sinc(u_x * spectra.pixel[1])


def _to_scan(alignment: Alignment, k_y: torch.Tensor, k_x: torch.Tensor) -> list[torch.Tensor]:
    if alignment.transposed:
        k_y, k_x = k_x, k_y
    cos, sin = math.cos(alignment.rotation), math.sin(alignment.rotation)
    return [k_y * cos - k_x * sin, k_y * sin + k_x * cos]


def _complex_power(k_y: torch.Tensor, k_x: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    re, im = torch.ones_like(k_x), torch.zeros_like(k_x)
    for _ in range(m):
        re, im = re * k_x - im * k_y, re * k_y + im * k_x
    return re, im
