"""Overlap functions of all views at many frequencies: what turns object frequencies into what a scan records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from misr.fusion.geometry import ViewGeometry
from misr.fusion.plane_waves import PlaneWaves, plane_wave_table
from misr.fusion.workspace import Workspace
from misr.optics import aperture_fraction, overlap_function, pixel_width

__all__ = ["Overlaps", "Patch", "Specimen"]


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


@dataclass(frozen=True)
class Patch:
    """Views side by side on the detector: an object frequency reaches only some of the disk's patches."""

    views: np.ndarray
    waves: PlaneWaves
    member: torch.Tensor | None  # place of each pixel's view among ``views``; None if each view is a pixel
    factor: torch.Tensor  # of each pixel
    centre: tuple[float, float]
    radius: float

    @property
    def n_pixels(self) -> int:
        """Detector pixels in it."""
        return len(self.factor)


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
        width = pixel_width(geometry.pixel_y, geometry.pixel_x, pixel_edges=geometry.pixel_edges)
        inside = aperture_fraction(geometry.pixel_y, geometry.pixel_x, cutoff=geometry.cutoff, width=width)
        share = np.bincount(geometry.pixel_view, weights=inside, minlength=geometry.n_views).clip(1e-6)
        self._single = geometry.n_views == geometry.pixel_view.size
        self._plane = geometry.is_second_order
        # a pixel's own share of the aperture is in the electrons it is divided by
        own = inside if self._plane and not self._single else np.ones(inside.size)
        self._factor = own if self._plane and self._single else own / share[geometry.pixel_view]
        self._order = np.lexsort((geometry.pixel_column, geometry.pixel_row))
        edges = np.abs(np.array(geometry.pixel_edges)).sum(axis=0)
        self._pixel_radius = 0.5 * float(np.hypot(*edges))

    def __call__(self, q_y: torch.Tensor, q_x: torch.Tensor, views: slice) -> torch.Tensor:
        """Γ at each frequency, 1/Å: (…, channel, view)."""
        patch = self.patch(np.arange(*views.indices(self.geometry.n_views)))
        channels = len(self.specimen.channels)
        out = torch.empty((q_y.numel(), channels, len(patch.views)), dtype=torch.complex64, device=self.device)
        self.fill(out, self.table(q_y.reshape(-1, 1), q_x.reshape(-1, 1)), patch, work=Workspace(self.device))
        return out.reshape(*q_y.shape, *out.shape[1:])

    def table(self, q_y: torch.Tensor, q_x: torch.Tensor) -> torch.Tensor:
        """What `fill` needs of the frequencies, 1/Å: one axis more than they have."""
        damping = torch.exp(-2 * (math.pi * self.specimen.source_size_A) ** 2 * (q_y**2 + q_x**2))
        if not self._plane:
            return torch.stack((q_y, q_x, damping), dim=-1)
        angles = self.specimen.channels
        return plane_wave_table(q_y, q_x, geometry=self.geometry, angles=angles, damping=damping)

    def patch(self, views: np.ndarray, *, factor: np.ndarray | None = None, compiled: bool = False) -> Patch:
        """Some of the views, in that order, each one's Γ to be multiplied by a factor; for a long sum, compiled."""
        geometry = self.geometry
        place = np.full(geometry.n_views, -1)
        place[views] = np.arange(len(views))
        if self._single:
            pixels = np.argsort(geometry.pixel_view)[views]
        else:
            pixels = self._order[place[geometry.pixel_view[self._order]] >= 0]
        per_pixel = self._factor[pixels]
        member = place[geometry.pixel_view[pixels]]
        if factor is not None:
            per_pixel = per_pixel * factor[member]
        y, x = geometry.pixel_y[pixels], geometry.pixel_x[pixels]
        centre = (0.5 * (y.min() + y.max()), 0.5 * (x.min() + x.max()))
        return Patch(
            views=views,
            waves=PlaneWaves(
                geometry,
                pixels,
                focal_spread_A=self.specimen.focal_spread_A,
                factor=None if np.all(per_pixel == 1) else per_pixel,
                device=self.device,
                compiled=compiled and self._plane,
            ),
            member=None if self._single else torch.as_tensor(member, device=self.device),
            factor=torch.as_tensor(per_pixel, dtype=torch.float32, device=self.device),
            centre=(float(centre[0]), float(centre[1])),
            radius=float(np.hypot(y - centre[0], x - centre[1]).max()) + self._pixel_radius,
        )

    def reached(self, q_y: torch.Tensor, q_x: torch.Tensor, patch: Patch) -> torch.Tensor:
        """Whether each frequency scatters the aperture onto some of the patch; elsewhere Γ is zero."""
        y, x = patch.centre
        return q_y**2 + q_x**2 - 2 * (q_y * y + q_x * x).abs() < self.reach(patch)

    def reach(self, patch: Patch) -> float:
        """Least ``q² - 2 |q·k|`` of frequencies q that do not reach a patch with its centre at k."""
        limit = self.geometry.cutoff + patch.radius + self._pixel_radius
        return limit**2 - patch.centre[0] ** 2 - patch.centre[1] ** 2

    def fill(self, out: torch.Tensor, table: torch.Tensor, patch: Patch, *, work: Workspace) -> None:
        """Γ of a patch's views at (n, alias) frequencies, into (n, channel · alias, view), channel by channel."""
        shape, aliases = (*table.shape[:2], patch.n_pixels), table.shape[1]
        table = table.flatten(0, 1)
        blocks = [out[:, aliases * i : aliases * (i + 1)] for i in range(len(self.specimen.channels))]
        member = patch.member
        into = blocks if member is None else [work.complex(f"pixels{i}", *shape) for i in range(len(blocks))]
        if self._plane:
            patch.waves(table, into=into, work=work)
        else:
            self._general(table, patch, into)
        if member is not None:
            for block, pixels in zip(blocks, into, strict=True):
                block.zero_().index_add_(2, member, pixels)

    def _general(self, table: torch.Tensor, patch: Patch, into: list[torch.Tensor]) -> None:
        options: dict[str, Any] = {
            "aberrations": self.geometry.aberrations,
            "wavelength": self.geometry.wavelength,
            "cutoff": self.geometry.cutoff,
            "pixel_edges": self.geometry.pixel_edges,
            "focal_spread_A": self.specimen.focal_spread_A,
        }
        q_y, q_x, damping = (table[:, i : i + 1] for i in range(3))
        pixels = (patch.waves.y[None, :], patch.waves.x[None, :])
        scale = patch.factor * damping
        for angle, out in zip(self.specimen.channels, into, strict=True):
            parts = overlap_function(*pixels, q_y, q_x, absorption_rad=angle, **options)
            out.copy_(torch.complex(*(part * scale for part in parts)).view(out.shape))
