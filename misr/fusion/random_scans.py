"""Random microscopes and scans: the ranges that the network is to serve, and draws from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from misr.fusion.natural import BLOCK
from misr.optics import electron_wavelength

__all__ = ["BANDS", "DEFOCI", "DOSES", "ENERGIES", "SEMIANGLES", "SIDE", "STEPS", "Conditions", "draw_conditions"]

SIDE = 128  # pixels of a training field
DOSES = (3.0, 1e4)  # e/Å²
ENERGIES = (60e3, 300e3)
SEMIANGLES = (4.0, 30.0)
BANDS = (0.35, 1.7)  # 1/Å: 2α/λ of the microscopes trained for
STEPS = (0.8, 4.5)  # scan step over λ/2α, the finest detail
_DISK_PIXELS = (13, 24)  # of the detector, across the bright field
_FIELD = 0.4575 * SIDE  # in λ/2α: `natural_grid` makes SIDE pixels of it
_PERIODIC = 0.6
DEFOCI = (1.0, _DISK_PIXELS[1] / 3)  # of either sign, in λ/α²; fewer pixels allow less


@dataclass(frozen=True)
class Conditions:
    """A microscope and a scan.

    Attributes
    ----------
    energy_eV, semiangle_mrad, det_step_mrad, rotation_deg : float
        As everywhere.
    aberrations : dict
        True ones, Å and rad.
    believed : dict
        What the calibration says they are.
    believed_rotation_deg : float
        The rotation that the calibration says.
    positions : int
        Along each axis of the whole period.
    window : int
        Scanned of them; all, for a periodic scan.
    field_A : float
        The period.
    """

    energy_eV: float
    semiangle_mrad: float
    det_step_mrad: float
    rotation_deg: float
    aberrations: dict[str, float]
    believed: dict[str, float]
    believed_rotation_deg: float
    positions: int
    window: int
    field_A: float

    @property
    def wavelength(self) -> float:
        """Å."""
        return float(electron_wavelength(self.energy_eV))

    @property
    def cutoff(self) -> float:
        """α/λ, 1/Å."""
        return self.semiangle_mrad * 1e-3 / self.wavelength

    @property
    def step_A(self) -> float:
        """Scan step."""
        return self.field_A / self.positions


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """A microscope and a scan, over the ranges trained for.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where from.

    Returns
    -------
    Conditions
        Such that views and defocus can unfold the scan.
    """
    while True:
        energy = _log_uniform(rng, ENERGIES)
        semiangle = _log_uniform(rng, SEMIANGLES)
        band = 2e-3 * semiangle / electron_wavelength(energy)
        if BANDS[0] < band < BANDS[1]:
            break
    wavelength = float(electron_wavelength(energy))
    across = int(rng.integers(*_DISK_PIXELS, endpoint=True))
    field = _FIELD / band
    positions = round(field * band / _log_uniform(rng, STEPS))
    fresnel = _log_uniform(rng, (DEFOCI[0], across / 3))
    # the views' shifts have to span more than a step, or nothing is unfolded
    fresnel = max(fresnel, 0.4 * field * band / positions)
    C10 = float(rng.choice([-1, 1])) * fresnel * wavelength / (semiangle * 1e-3) ** 2
    aberrations = {"C10": C10}
    if rng.random() < 0.5:
        aberrations |= {"C12": abs(C10) * rng.uniform(0, 0.15), "phi12": rng.uniform(-np.pi / 2, np.pi / 2)}
    if rng.random() < 0.25:
        aberrations |= {"C21": _edge(rng, 3, wavelength, semiangle), "phi21": rng.uniform(-np.pi, np.pi)}
    if rng.random() < 0.25:
        aberrations |= {"C30": float(rng.choice([-1, 1])) * _edge(rng, 4, wavelength, semiangle)}
    rotation = float(rng.choice([0.0, rng.uniform(-180, 180)]))
    error = rng.normal(size=3) * (rng.random() < 0.7)
    believed = dict(aberrations)
    believed["C10"] = C10 + 0.03 * error[0] * wavelength / (semiangle * 1e-3) ** 2  # 0.1 rad at the aperture's edge
    if "C12" in believed:
        believed["C12"] = max(0.0, believed["C12"] + 0.015 * error[1] * wavelength / (semiangle * 1e-3) ** 2)
    conditions = Conditions(
        energy, semiangle, 2 * semiangle / across, rotation, aberrations, believed, rotation + 0.15 * float(error[2]),
        positions, positions, field,
    )  # fmt: skip
    return conditions if rng.random() < _PERIODIC else _windowed(conditions)


def _windowed(conditions: Conditions) -> Conditions:
    """A part of the period, so large that with the margins of the fusion it fills the training field."""
    from scipy.fft import next_fast_len

    reach = abs(conditions.believed["C10"]) * conditions.semiangle_mrad * 1e-3 * 1.2
    per_block = _FIELD / (2 * conditions.cutoff) / SIDE * BLOCK
    for window in range(conditions.positions - 1, 7, -1):
        margin = min(math.ceil(reach / conditions.step_A) + 1, window - 1)
        padded = next_fast_len(window + 2 * margin, real=True) * conditions.step_A
        if padded <= per_block * (SIDE // BLOCK):
            enough = window >= 0.5 * conditions.positions
            return replace(conditions, window=window) if enough else conditions
    return conditions


def _edge(rng: np.random.Generator, order: int, wavelength: float, semiangle: float) -> float:
    """A coefficient of up to 1.5 rad of χ at the aperture's edge."""
    return float(rng.uniform(0, 1.5)) * order * wavelength / (2 * np.pi * (semiangle * 1e-3) ** order)


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))
