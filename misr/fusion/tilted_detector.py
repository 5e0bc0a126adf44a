"""Detector pixels of a simulation by tilted plane waves: angles, waves per pixel, and what must fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from misr.optics import aberration_gradient, rotate
from misr.phase import check_positive

if TYPE_CHECKING:
    import torch

__all__ = [
    "BAND",
    "ROUNDING",
    "TINY",
    "check_pixel",
    "checked_slices",
    "detector_angles",
    "enough_nodes",
    "mean_slice",
    "pair",
    "quadrature",
    "scan_window",
]

BAND = 1 / 3  # cycles per pixel that a wave may hold: products of two such alias only past it
ROUNDING = 1e-6
TINY = 1e-12  # 1/Å²
_FASTEST = 4.0  # rad: half of what the phase between two scattered rays may turn over a cell (error then below 4 %)
_MOST_NODES = 24
_SUBPIXELS = 24  # along each edge of a quadrature cell, for what part of it lies in the aperture


def checked_slices(slices: Any) -> torch.Tensor:
    """Phases of the slices as a tensor (slice, y, x), float32."""
    import torch

    phase = torch.as_tensor(slices)
    if phase.ndim == 2:
        phase = phase[None]
    if phase.ndim != 3 or len(phase) < 1 or min(phase.shape[1:]) < 4 or phase.is_complex():
        raise ValueError(
            f"phase_slices has shape {tuple(phase.shape)} and type {phase.dtype}: expected real phases in rad with "
            "axes (slice, y, x), one slice or more"
        )
    if not bool(torch.isfinite(phase).all()):
        raise ValueError("phase_slices holds NaN or infinite values: give the projected phase of each slice in rad")
    return phase.to(torch.float32)


def pair(value: float | tuple[float, float], name: str) -> tuple[float, float]:
    """One positive number for both axes, or two."""
    pair = np.broadcast_to(np.asarray(value, dtype=float), (2,))
    check_positive(**{name: float(pair[0])})
    check_positive(**{name: float(pair[1])})
    return float(pair[0]), float(pair[1])


def scan_window(
    shape: tuple[int, int], positions: tuple[int, int, int, int] | None
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Positions of the whole scan, and the window of it (first y, first x, number y, number x)."""
    if len(shape) != 2 or min(shape) < 4:
        raise ValueError(f"scan_shape={shape} must be two numbers (y, x) of probe positions, at least 4 each")
    scan = (int(shape[0]), int(shape[1]))
    if positions is None:
        return scan, (0, 0, *scan)
    first_y, first_x, n_y, n_x = (int(value) for value in positions)
    if not (4 <= n_y <= scan[0] and 4 <= n_x <= scan[1]):
        raise ValueError(
            f"positions={tuple(positions)}: the window (first_y, first_x, n_y, n_x) must hold at least 4 and at most "
            f"{scan[0]} x {scan[1]} positions (scan_shape)"
        )
    return scan, (first_y, first_x, n_y, n_x)


def detector_angles(
    step: tuple[float, float], pixels: int | tuple[int, int] | None, center: tuple[float, float], semiangle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Angles of the pixels, mrad, along y and x."""
    if pixels is None:
        numbers = [math.ceil(2 * (semiangle + abs(c)) / s - 1e-9) + 2 for c, s in zip(center, step, strict=True)]
    else:
        numbers = np.broadcast_to(np.asarray(pixels, dtype=int), (2,)).tolist()
    axes = [c + s * (np.arange(n) - (n - 1) / 2) for c, s, n in zip(center, step, numbers, strict=True)]
    edge = min(n * s / 2 - abs(c) for c, s, n in zip(center, step, numbers, strict=True))
    if min(numbers) < 2 or edge < semiangle:
        raise ValueError(
            f"det_pixels={pixels} of {step} mrad reach {edge:.3g} mrad from the optic axis: the bright-field disk "
            f"needs semiangle_mrad={semiangle:g}"
        )
    return axes[0], axes[1]


def enough_nodes(
    step: float, cutoff: float, aberrations: Mapping[str, float], wavelength: float, thickness: float
) -> int:
    """Fewest waves per pixel and axis that resolve how the pattern turns between rays from the probe's edges."""
    angle = np.linspace(0, 2 * np.pi, 73)[:, None]
    k = cutoff * np.linspace(0, 1, 21)
    slope = aberration_gradient(k * np.sin(angle), k * np.cos(angle), aberrations=aberrations, wavelength=wavelength)
    reach = float(np.hypot(*slope).max()) / (2 * math.pi) + thickness / 2 * wavelength * cutoff
    needed = math.ceil(2 * math.pi * reach * step / _FASTEST)
    if needed > _MOST_NODES:
        raise ValueError(
            f"the pattern changes by {2 * math.pi * reach * step:.0f} rad across one detector pixel: less defocus or "
            "finer detector pixels are needed"
        )
    return max(1, needed)


def quadrature(
    angles: tuple[np.ndarray, np.ndarray],
    step_mrad: tuple[float, float],
    nodes: int,
    wavelength: float,
    rotation_deg: float,
    cutoff: float,
) -> tuple[np.ndarray, np.ndarray, tuple[tuple[float, float], tuple[float, float]]]:
    """Tilts of all pixels (pixel, node, 2), the part of each cell in the aperture, and a cell's edges; 1/Å.

    The parts (pixel, node, 3): its share of the cell, and where its centroid lies from the cell's middle.
    """
    per_mrad = 1e-3 / wavelength
    offsets = (np.arange(nodes) + 0.5) / nodes - 0.5
    fine = (np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5
    axes = [
        (angle[:, None] + step * offsets) * per_mrad for angle, step in zip(angles, step_mrad, strict=True)
    ]  # (pixel, node)
    cell = [step / nodes * per_mrad for step in step_mrad]
    shape = (len(angles[0]), len(angles[1]), nodes, nodes)
    k_y = np.broadcast_to(axes[0][:, None, :, None], shape).reshape(-1, nodes**2)
    k_x = np.broadcast_to(axes[1][None, :, None, :], shape).reshape(-1, nodes**2)
    places = [axis.ravel()[:, None] + c * fine for axis, c in zip(axes, cell, strict=True)]
    covered = places[0][:, None, :, None] ** 2 + places[1][None, :, None, :] ** 2 < cutoff**2
    share = covered.mean(axis=(2, 3))
    off_y, off_x = rotate(
        covered.mean(axis=3) @ fine * cell[0] / (_SUBPIXELS * np.maximum(share, TINY)),
        covered.mean(axis=2) @ fine * cell[1] / (_SUBPIXELS * np.maximum(share, TINY)),
        rotation_deg,
    )
    parts = np.stack([share, off_y, off_x], axis=-1)
    parts = parts.reshape(shape[0], nodes, shape[1], nodes, 3).swapaxes(1, 2).reshape(-1, nodes**2, 3)
    edges = (rotate(cell[0], 0.0, rotation_deg), rotate(0.0, cell[1], rotation_deg))
    return np.stack(rotate(k_y, k_x, rotation_deg), axis=-1), parts.astype(np.float32), edges


def check_pixel(pixel: tuple[float, float], cutoff: float, tilt: float) -> None:
    """Raise if a pixel (Å) cannot hold the waves tilted by so much (1/Å)."""
    coarsest = BAND / (cutoff + max(tilt, cutoff))
    if max(pixel) > coarsest * (1 + ROUNDING):
        raise ValueError(
            f"pixel_A={max(pixel):g} is too coarse: waves tilted to the outermost detector pixel that meets an "
            f"aperture of this semi-angle need at most {math.floor(1e4 * coarsest) / 1e4:g} Å"
        )


def mean_slice(phase: torch.Tensor) -> float:
    """Index of the slice at the specimen's mean depth, where a projected image is in focus."""
    import torch

    weight = phase.sum(dim=(1, 2), dtype=torch.float64).clamp(min=0).cpu().numpy()
    index = np.arange(len(weight))
    return float(weight @ index / weight.sum()) if weight.sum() > 0 else float(index.mean())
