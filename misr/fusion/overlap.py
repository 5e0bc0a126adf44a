"""Overlap functions of all views at many frequencies: what turns object frequencies into what a scan records.

For second-order aberrations (C10, C12) the phase of Γ is a plane wave over the detector: a product of one factor for
the pixel's row, one for its column and one for the frequency. That is several times faster than the general formula of
`misr.optics.overlap_function`, which serves all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from misr.fusion.geometry import ViewGeometry
from misr.optics import aberration_gradient, aberration_phase, aperture_fraction, overlap_function, pixel_width

__all__ = ["Overlaps", "Specimen"]


@dataclass(frozen=True)
class Specimen:
    """What is fused besides a weak phase, and what blurs it."""

    absorption_rad: float = 0.0
    amplitude: bool = False
    source_size_A: float = 0.0
    focal_spread_A: float = 0.0

    @property
    def channels(self) -> tuple[float, ...]:
        """Absorption angle of each unknown: the phase, and the amplitude if it is one."""
        return (self.absorption_rad, math.pi / 2) if self.amplitude else (self.absorption_rad,)


class Overlaps:
    """Γ per expected electron of each view, averaged over the view's pixels.

    Parameters
    ----------
    geometry : ViewGeometry
        Optics and pixels.
    specimen : Specimen
        Channels and blurs.
    device : torch.device
        Where to compute.
    """

    def __init__(self, geometry: ViewGeometry, specimen: Specimen, *, device: torch.device) -> None:
        self.geometry, self.specimen, self.device = geometry, specimen, device
        self._optics: dict[str, Any] = {"aberrations": geometry.aberrations, "wavelength": geometry.wavelength}
        width = pixel_width(geometry.pixel_y, geometry.pixel_x, pixel_edges=geometry.pixel_edges)
        inside = aperture_fraction(geometry.pixel_y, geometry.pixel_x, cutoff=geometry.cutoff, width=width)
        self._y, self._x, self._inside = (self._real(values) for values in (geometry.pixel_y, geometry.pixel_x, inside))
        self._view = torch.as_tensor(geometry.pixel_view, device=device)
        self._fraction = torch.zeros(geometry.n_views, device=device).index_add_(0, self._view, self._inside)
        self._single = geometry.n_views == geometry.pixel_view.size
        self._plane = geometry.is_second_order

    def __call__(self, q_y: torch.Tensor, q_x: torch.Tensor, views: slice) -> torch.Tensor:
        """Γ at each frequency, 1/Å: (…, channel, view)."""
        chosen = views if self._single else self._members(views)
        shape = q_y.shape
        q_y, q_x = q_y.reshape(-1, 1), q_x.reshape(-1, 1)
        per_channel = self._plane_waves if self._plane else self._general
        found = per_channel(q_y, q_x, chosen)
        gamma = found[0][:, None] if len(found) == 1 else torch.stack(found, dim=1)
        if self._single:
            # a pixel's own share of the aperture is in the electrons it is divided by
            scale = 1.0 if self._plane else 1 / self._fraction[views].clamp(min=1e-6)
        else:
            first, last, _ = views.indices(self.geometry.n_views)
            part = gamma * self._inside[chosen] if self._plane else gamma
            gamma = torch.zeros((*gamma.shape[:2], last - first), dtype=gamma.dtype, device=self.device)
            gamma.index_add_(2, self._view[chosen] - first, part)
            scale = 1 / self._fraction[views].clamp(min=1e-6)
        if self.specimen.source_size_A:
            q2 = (q_y**2 + q_x**2)[..., None]
            scale = scale * torch.exp(-2 * (math.pi * self.specimen.source_size_A) ** 2 * q2)
        if not isinstance(scale, float):
            gamma = gamma * scale
        return gamma.reshape(*shape, *gamma.shape[1:])

    def n_pixels(self, views: slice) -> int:
        """Detector pixels of these views."""
        first, last, _ = views.indices(self.geometry.n_views)
        view = self.geometry.pixel_view
        return int(((view >= first) & (view < last)).sum())

    def _members(self, views: slice) -> np.ndarray:
        """Pixels of these views, in the detector's order."""
        first, last, _ = views.indices(self.geometry.n_views)
        view = self.geometry.pixel_view
        members = np.flatnonzero((view >= first) & (view < last))
        order = np.lexsort((self.geometry.pixel_column[members], self.geometry.pixel_row[members]))
        return np.asarray(members[order])

    def _general(self, q_y: torch.Tensor, q_x: torch.Tensor, chosen: Any) -> list[torch.Tensor]:
        pixels = (self._y[chosen][None, :], self._x[chosen][None, :])
        options: dict[str, Any] = {
            **self._optics,
            "cutoff": self.geometry.cutoff,
            "pixel_edges": self.geometry.pixel_edges,
            "focal_spread_A": self.specimen.focal_spread_A,
        }
        return [
            torch.complex(*overlap_function(*pixels, q_y, q_x, absorption_rad=angle, **options))
            for angle in self.specimen.channels
        ]

    def _plane_waves(self, q_y: torch.Tensor, q_x: torch.Tensor, chosen: Any) -> list[torch.Tensor]:
        """``Γ = exp(ik·∇χ(q)) blur [(w₋ + w₊) sin χ(q) + i (w₋ - w₊) cos χ(q)]``, w∓ the aperture at k ∓ q."""
        slopes = aberration_gradient(q_y, q_x, **self._optics)
        chi = aberration_phase(q_y, q_x, **self._optics)
        blur: Any = 1.0
        for edge_y, edge_x in self.geometry.pixel_edges:
            blur = blur * torch.sinc((slopes[0] * edge_y + slopes[1] * edge_x) / (2 * math.pi))
        wave = self._wave(slopes, chosen)
        minus, plus = self._apertures(q_y, q_x, chosen)
        both, odd = minus + plus, minus - plus
        return [
            wave * torch.complex(both * (torch.sin(chi - angle) * blur), odd * (torch.cos(chi - angle) * blur))
            for angle in self.specimen.channels
        ]

    def _wave(self, slopes: tuple[torch.Tensor, torch.Tensor], chosen: Any) -> torch.Tensor:
        """``exp(ik·s)`` from the rows and columns of the detector, run by run of neighbouring pixels (no gather)."""
        rows, columns = self.geometry.pixel_row[chosen], self.geometry.pixel_column[chosen]
        (y1, x1), (y2, x2) = self.geometry.pixel_edges
        start = slopes[0] * self.geometry.origin[0] + slopes[1] * self.geometry.origin[1]
        first_row, first_column = int(rows.min()), int(columns.min())
        along_row = _unit(start + (slopes[0] * y1 + slopes[1] * x1) * self._range(first_row, int(rows.max())))
        along_column = _unit((slopes[0] * y2 + slopes[1] * x2) * self._range(first_column, int(columns.max())))
        wave = torch.empty((len(start), len(rows)), dtype=along_row.dtype, device=self.device)
        breaks = np.flatnonzero((np.diff(rows) != 0) | (np.diff(columns) != 1)) + 1
        for begin, end in zip([0, *breaks], [*breaks, len(rows)], strict=True):
            row, column = int(rows[begin]) - first_row, int(columns[begin]) - first_column
            block = along_column[:, column : column + end - begin], along_row[:, row : row + 1]
            torch.mul(*block, out=wave[:, begin:end])
        return wave

    def _apertures(self, q_y: torch.Tensor, q_x: torch.Tensor, chosen: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Fraction of the aperture at k - q and k + q, damped by focal spread."""
        cutoff, wavelength = self.geometry.cutoff, self.geometry.wavelength
        k_y, k_x = self._y[chosen][None, :], self._x[chosen][None, :]
        if self.geometry.is_square:
            width = pixel_width(q_y, q_x, pixel_edges=self.geometry.pixel_edges)
            per = 1 / (2 * cutoff * width)
            even = per * (cutoff**2 - q_y**2 - q_x**2) - per * (k_y**2 + k_x**2)
            cross = torch.cat((q_y, q_x), 1) @ torch.cat((k_y, k_x), 0).mul_(2 * per)
            # near the edge, c - r = x + x²/2c with x = (c² - r²)/2c, here in pixels: no square root
            bend = width / (2 * cutoff)
            minus, plus = (
                torch.addcmul(x, x, x, value=bend).add_(0.5).clamp_(0, 1)
                for x in ((even + cross).clamp_(min=-1), (even - cross).clamp_(min=-1))
            )
        else:
            edges = self.geometry.pixel_edges
            minus, plus = (
                aperture_fraction(y, x, cutoff=cutoff, width=pixel_width(y, x, pixel_edges=edges))
                for y, x in ((k_y - q_y, k_x - q_x), (k_y + q_y, k_x + q_x))
            )
        if self.specimen.focal_spread_A:
            for sign, weight in ((-1, minus), (1, plus)):
                gained = q_y**2 + q_x**2 + 2 * sign * (k_y * q_y + k_x * q_x)
                weight *= torch.exp(-0.5 * (math.pi * wavelength * self.specimen.focal_spread_A * gained) ** 2)
        return minus, plus

    def _range(self, first: int, last: int) -> torch.Tensor:
        return torch.arange(first, last + 1, dtype=torch.float32, device=self.device)

    def _real(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def _unit(angle: torch.Tensor) -> torch.Tensor:
    return torch.complex(torch.cos(angle), torch.sin(angle))  # ten times faster than torch.polar
