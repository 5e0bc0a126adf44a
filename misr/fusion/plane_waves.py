"""Overlap functions under second-order aberrations (C10, C12): plane waves over the detector, cut by two apertures.

The phase of Γ is then a product of one factor for the pixel's row, one for its column and one for the frequency: many
times faster than the general formula of `misr.optics.overlap_function`, which serves all other aberrations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from misr.fusion.geometry import ViewGeometry
from misr.fusion.workspace import Workspace
from misr.optics import aberration_gradient, aberration_phase, aperture_fraction, pixel_width

__all__ = ["COLUMNS", "PlaneWaves", "edge_terms", "plane_wave_table"]

# columns of the table
_SQUARE, _SLOPE, _START, _ANGLES = 2, 6, 8, 11
COLUMNS = (_SQUARE, _SLOPE, _ANGLES)  # those that the compiled loops take


class PlaneWaves:
    """Γ per expected electron of some detector pixels, but for their own share of the aperture.

    Parameters
    ----------
    geometry : ViewGeometry
        Optics and pixels.
    pixels : numpy.ndarray
        Which of its pixels; fastest when sorted by the detector's rows and columns.
    focal_spread_A : float
        Standard deviation of the focus, Å.
    factor : numpy.ndarray, optional
        Each pixel's Γ is multiplied by it.
    device : torch.device
        Where to compute.
    compiled : bool
        Whether the loop may be compiled: on CPUs, for square pixels and a sharp focus.
    """

    def __init__(
        self,
        geometry: ViewGeometry,
        pixels: np.ndarray,
        *,
        focal_spread_A: float,
        factor: np.ndarray | None,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.geometry, self.focal_spread, self.device = geometry, focal_spread_A, device
        self.y, self.x = (self._real(along[pixels]) for along in (geometry.pixel_y, geometry.pixel_x))
        self._factor = None if factor is None else self._real(factor)
        one, k2 = torch.ones_like(self.y), self.y**2 + self.x**2
        self._columns = [torch.stack((one, -k2, sign * self.y, sign * self.x)) for sign in (1, -1)]
        rows, columns = geometry.pixel_row[pixels], geometry.pixel_column[pixels]
        self._first = int(rows.min()), int(columns.min())
        self._rows, self._cols = self._range(rows), self._range(columns)
        breaks = [0, *(np.flatnonzero((np.diff(rows) != 0) | (np.diff(columns) != 1)) + 1), len(rows)]
        self._runs = [
            (int(begin), int(end), int(rows[begin]) - self._first[0], int(columns[begin]) - self._first[1])
            for begin, end in itertools.pairwise(breaks)
        ]
        self.is_compiled = compiled and device.type == "cpu" and geometry.is_square and not focal_spread_A
        if self.is_compiled:
            of_pixel = one if self._factor is None else self._factor
            self.pixels = torch.stack((self.y, self.x, of_pixel)).numpy()

    def __call__(self, table: torch.Tensor, *, into: Sequence[torch.Tensor], work: Workspace) -> None:
        """``Γ = exp(ik·∇χ(q)) blur [(w₋ + w₊) sin χ(q) + i (w₋ - w₊) cos χ(q)]``, w∓ the aperture at k ∓ q.

        Frequencies as rows of `plane_wave_table`; Γ for each absorption angle goes into an array of n · pixels values.
        """
        if self.is_compiled:
            self._in_one_loop(table, into)
            return
        wave = self._wave(table[:, _START : _START + 3], work)
        minus, plus = self._apertures(table, work)
        if self._factor is not None:
            minus.mul_(self._factor)
            plus.mul_(self._factor)
        size = wave.shape
        even = torch.add(minus, plus, out=work.real("even", *size))
        odd = minus.sub_(plus)
        for i, out in enumerate(into):
            at = _ANGLES + 2 * i
            real = torch.mul(even, table[:, at : at + 1], out=plus)
            imaginary = torch.mul(odd, table[:, at + 1 : at + 2], out=work.real("imaginary", *size))
            gamma = torch.complex(real, imaginary, out=work.complex("gamma", *size))
            torch.mul(gamma.view(out.shape), wave.view(out.shape), out=out)

    def _in_one_loop(self, table: torch.Tensor, into: Sequence[torch.Tensor]) -> None:
        from misr.fusion.compiled_waves import overlap_block

        edge, every = edge_terms(self.geometry), table.contiguous().numpy()
        for i, out in enumerate(into):
            strides = (out.shape[1], 2 * out.stride(0), 2 * out.stride(1))
            length = (out.shape[0] - 1) * out.stride(0) + (out.shape[1] - 1) * out.stride(1) + out.shape[2]
            flat = torch.view_as_real(out.as_strided((length,), (1,))).flatten().numpy()
            columns = (_SQUARE, _SLOPE, _ANGLES + 2 * i)
            overlap_block(flat, strides, every, columns, self.pixels, edge)

    def _wave(self, slopes: torch.Tensor, work: Workspace) -> torch.Tensor:
        """``exp(ik·s)`` from the rows and columns of the detector, run by run of neighbouring pixels (no gather)."""
        start, per_row, per_column = slopes[:, 0:1], slopes[:, 1:2], slopes[:, 2:3]
        size = len(slopes)
        angle = torch.mul(per_row, self._rows, out=work.real("angle", size, len(self._rows)))
        along_row = _unit(angle.add_(start), "row", work)
        angle = torch.mul(per_column, self._cols, out=work.real("angle", size, len(self._cols)))
        along_column = _unit(angle, "column", work)
        wave = work.complex("wave", size, len(self.y))
        for begin, end, row, column in self._runs:
            block = along_column[:, column : column + end - begin], along_row[:, row : row + 1]
            torch.mul(*block, out=wave[:, begin:end])
        return wave

    def _apertures(self, table: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
        """Fraction of the aperture at k - q and k + q, damped by focal spread."""
        q_y, q_x = table[:, 0:1], table[:, 1:2]
        if self.geometry.is_square:
            minus, plus = self._square(table[:, _SQUARE : _SQUARE + 4], work)
        else:
            cutoff, edges = self.geometry.cutoff, self.geometry.pixel_edges
            minus, plus = (
                aperture_fraction(y, x, cutoff=cutoff, width=pixel_width(y, x, pixel_edges=edges))
                for y, x in ((self.y - q_y, self.x - q_x), (self.y + q_y, self.x + q_x))
            )
        if self.focal_spread:
            spread = math.pi * self.geometry.wavelength * self.focal_spread
            for sign, weight in ((-1, minus), (1, plus)):
                gained = q_y**2 + q_x**2 + 2 * sign * (self.y * q_y + self.x * q_x)
                weight *= torch.exp(-0.5 * (spread * gained) ** 2)
        return minus, plus

    def _square(self, rows: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
        """Near the edge c - r = x + x²/2c with x = (c² - r²)/2c, here in pixels: no square root."""
        bend, vertex = _bend_and_vertex(self.geometry)
        rest = torch.tensor(0.5 - vertex / 2, device=self.device)
        weights = []
        for name, columns in zip(("minus", "plus"), self._columns, strict=True):
            x = torch.mm(rows, columns, out=work.real(name, len(rows), columns.shape[1]))
            x.clamp_(min=vertex - 1)
            weights.append(torch.addcmul(rest, x, x, value=bend, out=x).clamp_(0, 1))
        return weights[0], weights[1]

    def _range(self, index: np.ndarray) -> torch.Tensor:
        return torch.arange(int(index.min()), int(index.max()) + 1, dtype=torch.float32, device=self.device)

    def _real(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def _unit(angle: torch.Tensor, name: str, work: Workspace) -> torch.Tensor:
    """``exp(i angle)``, ten times faster than `torch.polar`."""
    cos = torch.cos(angle, out=work.real("cos", *angle.shape))
    sin = torch.sin(angle, out=angle)
    return torch.complex(cos, sin, out=work.complex(name, *angle.shape))


def plane_wave_table(
    q_y: torch.Tensor, q_x: torch.Tensor, *, geometry: ViewGeometry, angles: Sequence[float], damping: Any
) -> torch.Tensor:
    """What Γ takes from each frequency, for `PlaneWaves`.

    Parameters
    ----------
    q_y, q_x : torch.Tensor
        Frequencies, 1/Å, any shape.
    geometry : ViewGeometry
        Optics.
    angles : sequence of float
        Absorption angle of each channel, rad.
    damping : torch.Tensor or float
        Γ is multiplied by it.

    Returns
    -------
    torch.Tensor
        The frequencies' shape and one more axis: the frequency; four terms of the aperture; the phase's slopes, turns
        per 1/Å; the phase at the detector's origin, per row and per column; the factors of the real and the imaginary
        part for each angle.
    """
    options: dict[str, Any] = {"aberrations": geometry.aberrations, "wavelength": geometry.wavelength}
    (s_y, s_x), chi = aberration_gradient(q_y, q_x, **options), aberration_phase(q_y, q_x, **options)
    blur, phases = damping, [s_y * geometry.origin[0] + s_x * geometry.origin[1]]
    for edge_y, edge_x in geometry.pixel_edges:
        phases.append(s_y * edge_y + s_x * edge_x)
        blur = blur * torch.sinc(phases[-1] / (2 * math.pi))
    square = [torch.zeros_like(q_y)] * 4
    if geometry.is_square:
        # x + bend x² + ½ = bend (x + vertex)² + ½ - vertex/2: x + vertex is the product of these with
        # (1, -k², ±k_y, ±k_x)
        _, vertex = _bend_and_vertex(geometry)
        per = vertex / (2 * geometry.cutoff**2)
        square = [vertex + per * (geometry.cutoff**2 - q_y**2 - q_x**2), torch.full_like(q_y, per)]
        square += [2 * per * q_y, 2 * per * q_x]
    factors = [f(chi - angle) * blur for angle in angles for f in (torch.sin, torch.cos)]
    turns = [slope / (2 * math.pi) for slope in (s_y, s_x)]
    return torch.stack((q_y, q_x, *square, *turns, *phases, *factors), dim=-1)


def edge_terms(geometry: ViewGeometry) -> np.ndarray:
    """Least argument, curvature and rest of the aperture's edge, for the compiled loops: float32 (3,)."""
    bend, vertex = _bend_and_vertex(geometry)
    return np.array([vertex - 1, bend, 0.5 - vertex / 2], dtype=np.float32)


def _bend_and_vertex(geometry: ViewGeometry) -> tuple[float, float]:
    width = float(pixel_width(np.zeros(1), np.ones(1), pixel_edges=geometry.pixel_edges))
    return width / (2 * geometry.cutoff), geometry.cutoff / width
