"""The matched filter with aberrations of any order: coma, threefold astigmatism, spherical aberration on request.

Beyond the second order ``χ(k) - χ(k - q)`` is no plane wave over the detector, so every pixel's phase and derivatives
are evaluated. The derivatives are those of the phase; the overlaps' edges are held, as in `misr.calibration.refine`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from misr.calibration.refine import HELD, Alignment, Filtered, blurred, detector_waves
from misr.calibration.spectra import Spectra
from misr.optics import aberration_gradient, aberration_phase, aperture_fraction

__all__ = ["HIGHER", "GeneralFilter", "higher_parts", "prior_widths"]

HIGHER = ("C21", "C23", "C30")
_WIDTHS_A = {"C21": 3e4, "C23": 3e4, "C30": 1.5e7}  # C30 of an uncorrected objective lens is about a millimetre
_ENTRIES = 1 << 18


_SECOND = ({"C10": 1.0}, {"C12": 1.0, "phi12": 0.0}, {"C12": 1.0, "phi12": math.pi / 4})


def higher_parts(orders: Sequence[str]) -> list[tuple[str, dict[str, float]]]:
    """Cosine and sine parts (of 1 Å) of the aberrations asked for, beyond the second order."""
    parts = []
    for name in HIGHER:
        if name in orders:
            m = int(name[2])
            angles = (0.0, math.pi / (2 * m)) if m else (0.0,)
            parts += [(name, {name: 1.0, f"phi{name[1:]}": angle}) for angle in angles]
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
        return blurred(filtered, detector_waves(self.spectra, alignment), self.spectra.pixel)

    def _chunk(self, alignment: Alignment, part: slice) -> tuple[np.ndarray, ...]:
        spectra, device = self.spectra, self.data.device

        def tensor(values: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.float32), device=device)

        # the frame of the detector, in which q turns: the pixels stay where they are
        turned = alignment.to_detector(spectra.q_y[part], spectra.q_x[part])
        detector = [tensor(self.k_y), tensor(self.k_x)]
        k = [tensor(component) for component in alignment.to_scan(self.k_y, self.k_x)]
        q = [tensor(spectra.q_y[part])[:, None], tensor(spectra.q_x[part])[:, None]]
        values = np.delete(alignment.values, (3, 4))
        overlaps, phases, slopes = [], [], []
        for sign in (-1, 1):
            moved = [k[0] + sign * q[0], k[1] + sign * q[1]]
            edge = [detector[i] + sign * tensor(turned[i])[:, None] for i in range(2)]
            overlaps.append(aperture_fraction(edge[0], edge[1], cutoff=spectra.cutoff, width=self.width))
            terms, gradient = [], [torch.zeros_like(moved[0]), torch.zeros_like(moved[0])]
            for value, unit in zip(values, self.parts, strict=True):
                one: dict[str, Any] = {"aberrations": unit, "wavelength": spectra.wavelength}
                terms.append(aberration_phase(*k, **one) - aberration_phase(*moved, **one))
                here, there = aberration_gradient(*k, **one), aberration_gradient(*moved, **one)
                gradient = [g + float(value) * (a - b) for g, a, b in zip(gradient, here, there, strict=True)]
            stacked = torch.stack(terms)
            phases.append(torch.tensordot(tensor(values), stacked, 1))
            # rotating the detector moves k by (-k_x, k_y) in (y, x) order: `misr.optics.rotate`
            rotation = -gradient[0] * k[1] + gradient[1] * k[0]
            slopes.append(torch.cat([stacked[:3], rotation[None], torch.ones_like(rotation)[None], stacked[3:]]))
        minus = torch.polar(overlaps[0], phases[0] + alignment.absorption)
        plus = torch.polar(overlaps[1], -phases[1] - alignment.absorption)
        gamma = 1j * (minus - plus)
        derivative = -(slopes[0] * minus + slopes[1] * plus)
        blur = detector_waves(spectra.part(part), alignment).blur
        scale = spectra.positions * spectra.trust[part]
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
