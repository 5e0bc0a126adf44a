"""Detective quantum efficiencies of bright-field 4D-STEM for a weak phase object, over rings of frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from misr.aberrations import aberrations_of, polar_aberrations
from misr.optics import (
    aberration_gradient,
    aberration_phase,
    aperture_fraction,
    axial_overlap,
    electron_wavelength,
    overlap_function,
    pixel_width,
)

__all__ = ["Optics", "read_optics", "ring_efficiency"]

_METHODS = ("linear", "tcbf", "ideal")
_RADII, _ANGLES = 12, 72  # samples over a ring, which sin²χ may change across
_FEW_RADII, _FEW_ANGLES = 3, 24  # where the overlap is summed numerically
_APERTURE_POINTS = 41  # across the aperture, likewise


@dataclass(frozen=True)
class Optics:
    """Frequencies in 1/Å."""

    wavelength: float
    cutoff: float
    aberrations: Mapping[str, float]
    pixel: tuple[float, float] | None
    method: str

    @property
    def quadratic(self) -> bool:
        return all(int(name[1]) == 1 for name, value in self.aberrations.items() if name[0] == "C" and value)

    @property
    def round(self) -> bool:
        bent = any(int(name[2]) > 0 for name, value in self.aberrations.items() if name[0] == "C" and value)
        return self.method == "ideal" or not (bent or self.pixel)


def read_optics(
    power: xr.DataArray, method: str, energy_eV: float | None, semiangle_mrad: float | None, aberrations: Any, step: Any
) -> Optics:
    if method not in _METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(map(repr, _METHODS))}")
    found = {"energy_eV": energy_eV, "semiangle_mrad": semiangle_mrad}
    found = {name: power.attrs.get(name) if value is None else value for name, value in found.items()}
    missing = [name for name, value in found.items() if value is None]
    polar = aberrations_of(power) if aberrations is None else polar_aberrations(aberrations)
    if polar is None and method != "ideal":
        missing.append("aberrations")
    if missing:
        raise ValueError(f"{', '.join(missing)} not known from the attrs: give them as arguments")
    energy, semiangle = float(found["energy_eV"]), float(found["semiangle_mrad"])  # type: ignore[arg-type]
    if not (math.isfinite(semiangle) and semiangle > 0):
        raise ValueError(f"semiangle_mrad={semiangle} must be a positive angle in mrad")
    wavelength = electron_wavelength(energy)
    pixel = None
    if step is not None:
        if method == "ideal":
            raise ValueError("det_step_mrad does not go with method='ideal', which has no such detector: leave it out")
        sides = np.broadcast_to(np.asarray(step, dtype=float), (2,))
        if not (np.all(np.isfinite(sides)) and np.all(sides > 0)):
            raise ValueError(f"det_step_mrad={step} must be one positive number, or two as (y, x)")
        pixel = (float(sides[0]) * 1e-3 / wavelength, float(sides[1]) * 1e-3 / wavelength)
    return Optics(wavelength, semiangle * 1e-3 / wavelength, polar or {}, pixel, method)


def ring_efficiency(q: np.ndarray, width: float, optics: Optics) -> tuple[np.ndarray, np.ndarray]:
    """DQE at samples over each ring, and their weights (shares of its area): shape (ring, sample)."""
    numeric = not optics.quadratic and optics.method != "ideal"
    n_radii, n_angles = (_FEW_RADII, _FEW_ANGLES) if numeric else (_RADII, _ANGLES)
    offsets = ((np.arange(n_radii) + 0.5) / n_radii - 0.5) * width
    # the innermost rings may reach to 0
    radius = np.maximum(q[:, None] + offsets, q[:, None] / 100)
    angle = np.zeros(1) if optics.round else 2 * math.pi * (np.arange(n_angles) + 0.5) / n_angles
    weight = np.repeat(radius / radius.sum(axis=1, keepdims=True), angle.size, axis=1) / angle.size
    q_y = (radius[:, :, None] * np.sin(angle)).reshape(len(q), -1)
    q_x = (radius[:, :, None] * np.cos(angle)).reshape(len(q), -1)
    return (_summed_dqe if numeric else _closed_dqe)(q_y, q_x, optics), weight


def _closed_dqe(q_y: np.ndarray, q_x: np.ndarray, optics: Optics) -> np.ndarray:
    """Aberrations of second order."""
    magnitude = np.hypot(q_y, q_x)
    inside = (magnitude < 2 * optics.cutoff) & (magnitude > 0)
    if optics.method == "ideal":
        return inside.astype(float)
    setting: dict[str, Any] = {"aberrations": optics.aberrations, "wavelength": optics.wavelength}
    sin2 = np.sin(aberration_phase(q_y, q_x, **setting)) ** 2
    one = axial_overlap(magnitude, cutoff=optics.cutoff)
    if optics.method == "tcbf":
        dqe = one**2 * sin2
    else:
        both = axial_overlap(2 * magnitude, cutoff=optics.cutoff)
        dqe = both * sin2 + (one - both) / 2
    if optics.pixel is not None:
        # χ(k) - χ(k - q) changes across a pixel by its edge times ∇χ(q)
        for slope, edge in zip(aberration_gradient(q_y, q_x, **setting), optics.pixel, strict=True):
            dqe = dqe * np.sinc(slope * edge / (2 * math.pi)) ** 2
    return dqe * inside


def _summed_dqe(q_y: np.ndarray, q_x: np.ndarray, optics: Optics) -> np.ndarray:
    """Any aberrations: ``Σ n |Γ|² / 4`` (or the shifted sum's) over points of the aperture."""
    tiny = 1e-6 * optics.cutoff
    edges = ((optics.pixel or (tiny, tiny))[0], 0.0), (0.0, (optics.pixel or (tiny, tiny))[1])
    line = ((np.arange(_APERTURE_POINTS) + 0.5) / _APERTURE_POINTS * 2 - 1) * (optics.cutoff + max(edges[0][0], tiny))
    k_y, k_x = (k.ravel() for k in np.meshgrid(line, line, indexing="ij"))
    share = aperture_fraction(k_y, k_x, cutoff=optics.cutoff, width=pixel_width(k_y, k_x, pixel_edges=edges))
    k_y, k_x, share = k_y[share > 0], k_x[share > 0], share[share > 0]
    setting: dict[str, Any] = {"aberrations": optics.aberrations, "wavelength": optics.wavelength}
    shift_y, shift_x = aberration_gradient(k_y, k_x, **setting)
    dqe = np.empty(q_y.shape)
    for row, (y, x) in enumerate(zip(q_y[..., None], q_x[..., None], strict=True)):
        re, im = overlap_function(k_y, k_x, y, x, cutoff=optics.cutoff, pixel_edges=edges, **setting)
        if optics.method == "linear":
            dqe[row] = ((re**2 + im**2) / share).sum(axis=1) / (4 * share.sum())
        else:
            turned = (re + 1j * im) * np.exp(-1j * (y * shift_y + x * shift_x))
            dqe[row] = np.abs(turned.sum(axis=1)) ** 2 / (4 * share.sum() ** 2)
    return dqe * (np.hypot(q_y, q_x) < 2 * optics.cutoff)
