"""The fit of one cube, from spectra to values with errors and doubts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import log_ndtr

from misr.calibration.higher import HIGHER, GeneralFilter, higher_parts, prior_widths
from misr.calibration.modes import Modes, Question, find_modes
from misr.calibration.refine import FIRST_HIGHER, Alignment, MatchedFilter, Refined, refine
from misr.calibration.search import energy_table
from misr.calibration.sign import skewness_of
from misr.calibration.spectra import Spectra, spectra_of
from misr.calibration.spots import with_spots

__all__ = ["Fit", "fit_cube", "landscape"]

_SHARP = 0.8  # of the band limit: atoms are sharp, and the sign is seen by that
_HIGHER_FREQUENCIES = 5000  # the lowest: enough for orders that bend the phase over the whole aperture
_ABSORPTION = 4  # place among an alignment's values
_ABSORPTION_ERROR = 0.15  # rad: strong scattering and thickness turn the scattered wave either way by as much
_WEAK = 0.15  # rad of absorption: exp(iφ) - 1 turns by φ/2, so that of columns of some 0.3 rad
_CLEAR = 12.0  # log-odds from which on the skewness is not asked
_RIVAL = 0.4  # a rival with this share of the likelihood is one that a model error could lift to the top


@dataclass(frozen=True)
class Fit:
    """Values and standard errors by name, and how far they can be relied on."""

    alignment: Alignment
    values: dict[str, float]
    errors: dict[str, float]
    widths: dict[str, float]
    absorption_error: float
    log: float
    probability: float
    sign_probability: float
    strong: bool  # the sign was asked of the data, and the object is not a weak phase object
    rival: str | None

    def spread(self, confidence: float) -> dict[str, float]:
        """Standard errors; where the alignment itself is in doubt, with the spread of all it might be instead."""
        if self.probability >= confidence:
            return self.errors
        other = 1 - self.probability
        return {
            name: math.sqrt(self.probability * error**2 + other * self.widths[name] ** 2)
            for name, error in self.errors.items()
        }

    def doubt(self, confidence: float) -> str | None:
        """Why this is not certain, and what would help; None if it is."""
        if self.probability < confidence:
            return (
                f"the best alignment has a probability of {self.probability:.2g} only (no phase contrast, too few "
                "electrons, or a perfect crystal): use more dose or a larger field, or give what is known "
                "(rotation_deg, max_defocus_A, transposed)"
            )
        if self.rival is not None:
            return self.rival
        if self.strong:
            angle = abs(self.alignment.absorption)
            return (
                "right up to the twin (rotation_deg + 180° with C10 and C12 negated): the specimen scatters too "
                f"strongly (absorption angle {angle:.2f} rad) for positive phase to be taken for granted. Give "
                "rotation_deg or defocus_sign"
            )
        if self.sign_probability < confidence:
            return (
                "right up to the twin (rotation_deg + 180° with C10 and C12 negated), whose phase is negative: at this "
                f"dose bumps and pits cannot be told apart (probability {self.sign_probability:.2g}). Give "
                "rotation_deg or defocus_sign"
            )
        return None


def fit_cube(cube: xr.DataArray, question: Question, *, device: str) -> Fit:
    """Fit a cube whose diffraction stands still.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube.
    question : Question
        What is known; an infinite ``largest_A`` stands for what the field allows.
    device : str
        Of torch.

    Returns
    -------
    Fit
        With values in Å, rad and (rotation) degrees.

    Raises
    ------
    ValueError
        If the cube's disk is not found or its scan is too small.
    """
    wanted = question.largest_A if math.isfinite(question.largest_A) else None
    spectra = spectra_of(cube, max_defocus_A=wanted, device=device)
    reach = min(spectra.tile_A) / (2 * spectra.cutoff * spectra.wavelength)
    question = replace(question, largest_A=min(reach, question.largest_A))
    modes = find_modes(spectra, question)
    best, sign_probability = modes.found[0], 1.0
    if question.rotation is None:
        best, sign_probability = _right_way_up(cube, spectra, best, question.sign, wanted)
    if higher_parts(question.orders):
        best = _with_higher(modes.spectra, best, question)
    values, errors = _polar(best, question)
    return Fit(
        alignment=best.alignment,
        values=values,
        errors=errors,
        widths=_prior_spread(values, question),
        absorption_error=_absorption_error(best),
        log=best.log,
        probability=modes.probability,
        sign_probability=sign_probability,
        strong=question.rotation is None and question.sign is None and _is_strong(best),
        rival=_rival(modes, question),
    )


def _right_way_up(
    cube: xr.DataArray, spectra: Spectra, mode: Refined, sign: int | None, max_defocus_A: float | None
) -> tuple[Refined, float]:
    """The mode or its twin, and the probability that the choice is right."""
    if sign is not None:
        return (_twin(mode) if math.copysign(1, mode.alignment.C10) != sign else mode), 1.0
    odds = _absorption_odds(mode)
    if abs(odds) < _CLEAR:
        most = min(20000 * spectra.tiles, 40000)
        sharp: dict[str, Any] = {"q_max": _SHARP * 2 * spectra.cutoff, "most_frequencies": most}
        device = str(spectra.weighted.device)
        skewness = skewness_of(spectra_of(cube, max_defocus_A=max_defocus_A, device=device, **sharp), mode.alignment)
        odds += math.copysign(math.log((1 - skewness.chance) / skewness.chance), skewness.score)
    return (_twin(mode) if odds < 0 else mode), 1 / (1 + math.exp(-min(abs(odds), 50.0)))


def _absorption_error(mode: Refined) -> float:
    return _root(_inverse(mode.information)[_ABSORPTION, _ABSORPTION])


def _is_strong(mode: Refined) -> bool:
    """Whether the absorption is more than small, beyond counting noise."""
    return abs(mode.alignment.absorption) > max(_WEAK, 4 * _absorption_error(mode))


def _absorption_odds(mode: Refined) -> float:
    """Log-odds that the absorption is positive, as it must be where the phase is."""
    z = mode.alignment.absorption / math.hypot(_absorption_error(mode), _ABSORPTION_ERROR)
    return float(log_ndtr(z) - log_ndtr(-z))


def _twin(mode: Refined) -> Refined:
    a = mode.alignment
    turned = Alignment(-a.C10, -a.C12a, -a.C12b, a.rotation + math.pi, a.transposed, -a.absorption)
    return replace(mode, alignment=turned)


def _rival(modes: Modes, question: Question) -> str | None:
    """What else nearly explains the data, where counting statistics say little of the model's own errors."""
    log = modes.found[0].log
    if modes.in_focus:
        return (
            "at so small a defocus no view is shifted by its own resolution, and places that are thick or absorb pass "
            "for phase contrast: defocus more, or give rotation_deg and the aberrations you know"
        )
    if modes.absorption_log > log:
        return (
            "absorption (amplitude contrast) explains the data better than phase contrast does, so that its defocus "
            "means nothing: defocus more, or check that these are counts of a thin specimen"
        )
    told = question.rotation is not None and question.sign is not None
    if not told and modes.opposite_log > _RIVAL * log:
        return (
            "the opposite defocus at the same rotation explains nearly as much: the scan step is close to a whole "
            "fraction of the crystal's period, so that a reflection and its opposite fold together. Give rotation_deg "
            "and defocus_sign, both, or scan with another step"
        )
    return None


def _with_higher(spectra: Spectra, mode: Refined, question: Question) -> Refined:
    """Climb on with the higher orders, from none of them."""
    part = spectra.part(np.argsort(spectra.q, kind="stable")[:_HIGHER_FREQUENCIES])
    widths = prior_widths(question.orders)
    start = replace(mode.alignment, higher=(0.0,) * len(widths))
    options: dict[str, Any] = {"astigmatism_A": question.astigmatism_A, "fixed": question.fixed, "widths": widths}
    return refine(GeneralFilter(part, question.orders), part.prior(), start, steps=12, **options)


def _prior_spread(values: dict[str, float], question: Question) -> dict[str, float]:
    """Standard deviations of what was thought possible before looking."""
    spread = {"C10": question.largest_A / math.sqrt(3), "C12": question.astigmatism_A}
    spread["rotation_deg"] = 0.0 if question.rotation is not None else 360 / math.sqrt(12)
    for name in values:
        if name.startswith("phi"):
            spread[name] = 2 * math.pi / int(name[4]) / math.sqrt(12)
    return {**dict(zip(HIGHER, prior_widths(HIGHER)[::2], strict=True)), **spread}


def _root(variance: float) -> float:
    return math.sqrt(max(float(variance), 0.0))  # rounding may leave a variance of nothing below it


def _inverse(information: np.ndarray) -> np.ndarray:
    """Pseudo-inverse, scaled first: Å of spherical aberration and radians differ by many orders of magnitude."""
    scale = 1 / np.sqrt(np.maximum(np.diag(information), 1e-300))
    return np.linalg.pinv(information * scale[:, None] * scale[None, :]) * scale[:, None] * scale[None, :]


def _polar(mode: Refined, question: Question) -> tuple[dict[str, float], dict[str, float]]:
    """Names and units of the user, and errors by propagation."""
    a = mode.alignment
    free = ~np.asarray((*question.fixed, *(False for _ in a.higher)))
    covariance = np.zeros((free.size, free.size))
    covariance[np.ix_(free, free)] = _inverse(mode.information[np.ix_(free, free)])
    values, errors = {"C10": a.C10}, {"C10": _root(covariance[0, 0])}
    places = {"C12": (1, 2)}
    for i, (name, _) in enumerate(higher_parts(question.orders), start=FIRST_HIGHER):
        places[name] = (*places.get(name, ()), i)
    for name, place in places.items():
        parts = a.values[list(place)]
        _add_polar(values, errors, name, parts, covariance[np.ix_(place, place)])
    values["rotation_deg"] = math.degrees(a.rotation) % 360
    # nothing known at all is an angle spread evenly over the circle
    errors["rotation_deg"] = min(math.degrees(_root(covariance[3, 3])), 360 / math.sqrt(12))
    return values, errors


def _add_polar(
    values: dict[str, float], errors: dict[str, float], name: str, parts: np.ndarray, covariance: np.ndarray
) -> None:
    """Magnitude and angle of one aberration from its cosine and sine parts."""
    if len(parts) == 1:
        values[name], errors[name] = float(parts[0]), _root(covariance[0, 0])
        return
    m = int(name[2])
    magnitude = float(np.hypot(*parts))
    along = parts / magnitude if magnitude > 0 else np.array([1.0, 0.0])
    across = np.array([-along[1], along[0]])
    values[name], errors[name] = magnitude, _root(along @ covariance @ along)
    turn = 2 * math.pi / m
    values[f"phi{name[1:]}"] = math.atan2(parts[1], parts[0]) / m % turn
    spread = _root(across @ covariance @ across) / max(m * magnitude, 1e-9)
    errors[f"phi{name[1:]}"] = min(spread, turn / math.sqrt(12))


def landscape(
    cube: xr.DataArray, C10: np.ndarray, rotation: np.ndarray, parts: dict[str, Any], *, device: str
) -> np.ndarray:
    """Log-likelihood at each rotation (rad) and C10 (Å): (rotation, C10)."""
    spectra = spectra_of(cube, max_defocus_A=float(np.abs(C10).max()), device=device)
    spectra, _ = with_spots(spectra, energy_table(spectra))
    prior = spectra.prior()
    matched = MatchedFilter(spectra)
    result = np.empty((len(rotation), len(C10)))
    for i, angle in enumerate(rotation):
        for j, value in enumerate(C10):
            filtered = matched(Alignment(C10=float(value), rotation=float(angle), **parts))
            result[i, j] = prior.evidence(filtered.v, filtered.variance).log
    return result
