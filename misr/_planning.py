"""What one scan geometry tells of each frequency of a weak object: the linear fusion's own algebra, without counts.

A scan of step s holds in each scan frequency all object frequencies ``q + j/s``. With ``A = Γᴴ f Γ`` over them (f each
detector pixel's share of the electrons) and P their power, the posterior precision of the best linear image at a dose D
is ``1 + D √P A √P`` in units of the prior: the field's size cancels. The share of the true φ(q) that is in the image is
``t(D) = Σ_l w_l D λ_l/(1 + D λ_l)``, λ_l the eigenvalues of ``√P A √P`` and w_l the weights of q in its eigenvectors:
one decomposition serves all doses. Without other aliases there is one term, λ = 4 P DQE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["Modes", "ScanOptics", "alias_count", "read_scan_optics", "ring_points", "scan_modes"]

_GOLDEN = 0.6180339887498949
_DOSES = (1e-6, 1e15)  # e/Å²
_ENTRIES = 1 << 18  # overlap values at once: they stay near the cache


@dataclass(frozen=True)
class ScanOptics:
    """Frequencies in 1/Å."""

    wavelength: float
    cutoff: float
    aberrations: Mapping[str, float]
    pixel: tuple[float, float]
    method: str = "linear"
    source_size_A: float = 0.0
    focal_spread_A: float = 0.0

    def at_defocus(self, defocus_A: float) -> ScanOptics:
        """The same with another C10."""
        return replace(self, aberrations={**self.aberrations, "C10": -float(defocus_A)})


@dataclass(frozen=True)
class Modes:
    """Rates λ and weights w of each sample: ``t(D) = Σ w D λ/(1 + D λ)``; both (ring, sample, mode)."""

    rate: np.ndarray
    weight: np.ndarray

    def _told(self, dose: float) -> tuple[np.ndarray, np.ndarray]:
        share = dose * self.rate / (1 + dose * self.rate)
        own = (self.weight * share).sum(axis=-1)
        return own, (self.weight * share**2).sum(axis=-1)

    def correlation(self, dose: float, against: str) -> np.ndarray:
        """FRC of each ring with Wiener weights: against truth, or what half maps owe to the frequency itself."""
        if against == "truth":
            return np.sqrt(self._told(dose)[0].mean(axis=-1))
        own, _ = self._told(dose / 2)
        return _ratio((own**2).mean(axis=-1), own.mean(axis=-1))

    def half_maps(self, dose: float) -> np.ndarray:
        """FRC that half maps of this scan show: other frequencies folded onto this one repeat in both and count."""
        own, squared = self._told(dose / 2)
        return _ratio(squared.mean(axis=-1), own.mean(axis=-1))

    def alias_share(self, dose: float) -> np.ndarray:
        """Share of each ring's power in the image that belongs to other frequencies."""
        own, squared = self._told(dose)
        return _ratio((squared - own**2).mean(axis=-1), own.mean(axis=-1))

    def least_dose(self, level: float, against: str) -> float:
        """Dose, e/Å², at which the first ring's correlation reaches the level; inf where none does."""
        from scipy.optimize import brentq

        def above(log_dose: float) -> float:
            return float(self.correlation(math.exp(log_dose), against)[0]) - level

        low, high = (math.log(dose) for dose in _DOSES)
        if above(high) < 0:
            return math.inf
        return math.exp(brentq(above, low, high, xtol=1e-6)) if above(low) < 0 else _DOSES[0]


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def read_scan_optics(
    power: xr.DataArray,
    *,
    method: str,
    energy_eV: float | None,
    semiangle_mrad: float | None,
    aberrations: Any,
    det_step_mrad: float | tuple[float, float] | None,
    source_size_A: float,
    focal_spread_A: float,
    pixels_across: int,
) -> ScanOptics:
    """Optics checked as for `misr.expected_frc`; without a detector pixel, so many across the bright-field disk.

    Without ``aberrations`` those in the power's attrs count.
    """
    from misr._efficiency import read_optics
    from misr.fusion.plan import check_specimen

    if method not in ("linear", "tcbf"):
        hint = " (no scan enters 'ideal': see misr.dose_for_resolution)" if method == "ideal" else ""
        raise ValueError(f"method={method!r} must be 'linear' or 'tcbf'{hint}")
    check_specimen(False, 0.0, source_size_A, focal_spread_A)
    found = read_optics(power, method, energy_eV, semiangle_mrad, aberrations, det_step_mrad)
    pixel = (2 * found.cutoff / pixels_across,) * 2 if found.pixel is None else found.pixel
    if max(pixel) > 2 * found.cutoff:
        raise ValueError(
            f"det_step_mrad={det_step_mrad} is wider than the whole bright-field disk of "
            f"{2e3 * found.cutoff * found.wavelength:.3g} mrad: give the angle one detector pixel spans, in mrad"
        )
    return ScanOptics(
        found.wavelength, found.cutoff, dict(found.aberrations), pixel, method, float(source_size_A),
        float(focal_spread_A),
    )  # fmt: skip


def ring_points(q: np.ndarray, width: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (y, x) spread evenly over each ring's area: (ring, sample)."""
    order = np.arange(number) + 0.5
    inner, outer = np.maximum(q - width / 2, q / 100), q + width / 2
    radius = np.sqrt(inner[:, None] ** 2 + (outer**2 - inner**2)[:, None] * (order / number))
    # half a turn (a real object repeats the other half); no direction of the lattice of aliases is preferred
    angle = math.pi * (order * _GOLDEN % 1.0)
    return radius * np.sin(angle), radius * np.cos(angle)


def alias_count(step_A: float, cutoff: float) -> float:
    """Mean number of object frequencies within the band that a scan frequency holds."""
    return max(1.0, math.pi * (2 * cutoff * step_A) ** 2)


def scan_modes(
    q_y: np.ndarray, q_x: np.ndarray, *, step_A: float | None, power: xr.DataArray, optics: ScanOptics
) -> Modes:
    """Modes of object frequencies (ring, sample) under a scan step, or with no other aliases (None)."""
    shape = q_y.shape
    aliases_y, aliases_x = _aliases(q_y.ravel(), q_x.ravel(), step_A, 2 * optics.cutoff)
    magnitude = np.hypot(aliases_y, aliases_x)
    values = np.interp(magnitude, power["frequency"].values, np.maximum(power.values, 0))
    values[magnitude >= 2 * optics.cutoff] = 0
    rate, weight = (_linear if optics.method == "linear" else _tilt_corrected)(aliases_y, aliases_x, values, optics)
    return Modes(rate.reshape(*shape, -1), weight.reshape(*shape, -1))


def _aliases(q_y: np.ndarray, q_x: np.ndarray, step: float | None, band: float) -> tuple[np.ndarray, np.ndarray]:
    """Each frequency and those within the band that the scan folds on it, itself first: (sample, alias)."""
    if step is None:
        return q_y[:, None], q_x[:, None]
    reach = math.ceil(2 * band * step)
    line = np.arange(-reach, reach + 1)
    j_y, j_x = (j.ravel() for j in np.meshgrid(line, line, indexing="ij"))
    first = np.argsort(j_y**2 + j_x**2, kind="stable")
    all_y, all_x = q_y[:, None] + j_y[first] / step, q_x[:, None] + j_x[first] / step
    beyond = np.hypot(all_y, all_x) >= band
    beyond[:, 0] = False
    order = np.argsort(beyond, axis=1, kind="stable")[:, : int((~beyond).sum(axis=1).max())]
    return np.take_along_axis(all_y, order, 1), np.take_along_axis(all_x, order, 1)


def _linear(y: np.ndarray, x: np.ndarray, power: np.ndarray, optics: ScanOptics) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.empty((*y.shape, y.shape[1]), dtype=complex)
    for part, gamma, share, _ in _overlaps(y, x, optics):
        matrix[part] = ((gamma * share).conj() @ gamma.transpose(1, 2)).numpy()
    root = np.sqrt(power)
    matrix *= root[:, :, None] * root[:, None, :]
    rate, vectors = np.linalg.eigh(matrix)
    return np.maximum(rate, 0), np.abs(vectors[:, 0, :]) ** 2


def _tilt_corrected(
    y: np.ndarray, x: np.ndarray, power: np.ndarray, optics: ScanOptics
) -> tuple[np.ndarray, np.ndarray]:
    """Shifted and added, nothing is solved: what the aliases leave after their shifts disagree acts as noise."""
    from misr.optics import aberration_gradient

    contrast = np.empty(y.shape)
    for part, gamma, share, (k_y, k_x) in _overlaps(y, x, optics):
        shift = aberration_gradient(k_y, k_x, aberrations=optics.aberrations, wavelength=optics.wavelength)
        turn = np.exp(-1j * (y[part, :1] * shift[0] + x[part, :1] * shift[1])) * share.numpy()
        contrast[part] = np.abs((gamma.numpy() * turn[:, None, :]).sum(axis=-1)) ** 2
    seen = contrast * power
    rate = seen.sum(axis=1)
    return rate[:, None], _ratio(seen[:, 0], rate)[:, None]


def _overlaps(y: np.ndarray, x: np.ndarray, optics: ScanOptics) -> Any:
    """In parts: the samples, Γ (sample, alias, pixel), each pixel's share of the electrons, the pixels (1/Å)."""
    import torch

    from misr.fusion.overlap import Overlaps, Specimen

    geometry, share = _detector(optics)
    specimen = Specimen(source_size_A=optics.source_size_A, focal_spread_A=optics.focal_spread_A)
    overlaps = Overlaps(geometry, specimen, device=torch.device("cpu"))
    size = max(1, _ENTRIES // (y.shape[1] * geometry.n_views))
    for first in range(0, len(y), size):
        part = slice(first, first + size)
        q_y, q_x = (torch.as_tensor(values[part], dtype=torch.float32) for values in (y, x))
        gamma = overlaps(q_y, q_x, slice(0, geometry.n_views))[..., 0, :]
        yield part, gamma, torch.as_tensor(share, dtype=torch.float32), (geometry.pixel_y, geometry.pixel_x)


def _detector(optics: ScanOptics) -> tuple[Any, np.ndarray]:
    """The detector's pixels that see the bright-field disk, each its own view, and their shares of the electrons."""
    from misr.fusion.geometry import ViewGeometry
    from misr.optics import aperture_fraction, pixel_width

    edges = ((optics.pixel[0], 0.0), (0.0, optics.pixel[1]))
    sides = [2 * math.ceil(optics.cutoff / edge + 0.5) for edge in optics.pixel]
    origin = (-(sides[0] - 1) / 2 * optics.pixel[0], -(sides[1] - 1) / 2 * optics.pixel[1])
    row, column = (index.ravel() for index in np.indices(sides))
    k_y, k_x = origin[0] + row * optics.pixel[0], origin[1] + column * optics.pixel[1]
    share = aperture_fraction(k_y, k_x, cutoff=optics.cutoff, width=pixel_width(k_y, k_x, pixel_edges=edges))
    lit = share > 0
    geometry = ViewGeometry(
        wavelength=optics.wavelength,
        cutoff=optics.cutoff,
        aberrations=dict(optics.aberrations),
        pixel_edges=edges,
        origin=origin,
        pixel_row=row[lit],
        pixel_column=column[lit],
        pixel_view=np.arange(int(lit.sum())),
        n_views=int(lit.sum()),
    )
    return geometry, share[lit] / share.sum()
