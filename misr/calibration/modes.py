"""From the global search to separate maxima of the likelihood and their probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from misr.calibration.refine import ABSORPTION, Alignment, MatchedFilter, Refined, refine
from misr.calibration.search import (
    APART_A,
    EnergyTable,
    Scan,
    candidates,
    energy_table,
    ring_step,
    same_peak,
    scan_spectrum,
)
from misr.calibration.spectra import Spectra
from misr.calibration.spots import solve_spots, with_spots
from misr.optics import axial_overlap

__all__ = ["Modes", "Question", "find_modes"]

_STARTS = 12  # from each scan
_SPOT_STARTS = 64  # solutions for pairs of reflections: cheap, and often wrong about the aliases
_CLIMBED = 8  # of which so many are followed with the simple filter, and
_FINISHED = 4  # so many with the exact one
_RESOLVED = 1.75  # in diffraction widths of the disk: shifts closer than this are not told apart well
_FEWEST = 200  # frequencies to fit with
_ENOUGH = 20.0  # log-likelihood: below it those frequencies alone would not have found the alignment
_ROTATION_NEAR = 2 * math.pi / 24  # the coarsest rings of the scan have 24 rotations


@dataclass(frozen=True)
class Question:
    """What is asked: search limits, and what is known already."""

    largest_A: float
    astigmatism_A: float
    rotation: float | None = None  # rad
    transposed: bool | None = None
    sign: int | None = None  # of C10
    orders: tuple[str, ...] = ()  # beyond the second, to fit in the end

    @property
    def transpositions(self) -> tuple[bool, ...]:
        """Those to look at."""
        return (False, True) if self.transposed is None else (self.transposed,)

    @property
    def fixed(self) -> tuple[bool, ...]:
        """Which of C10, C12a, C12b, rotation and absorption are known."""
        return (False, False, False, self.rotation is not None, False)


@dataclass(frozen=True)
class Modes:
    """Maxima of the likelihood with C10 positive (or, at a known rotation, of either sign), the most probable first."""

    found: list[Refined]
    probability: float  # of the first, against the others and against there being nothing but noise
    in_focus: bool  # the first moves no view by its own resolution
    absorption_log: float  # log-likelihood near the first, were the object one that absorbs
    opposite_log: float  # and, for crystals, at the same rotation with the opposite defocus
    spectra: Spectra  # what the first was last refined on


def find_modes(spectra: Spectra, question: Question) -> Modes:
    """Search everywhere, climb from the best places, and weigh the maxima.

    Parameters
    ----------
    spectra : Spectra
        Of the bright field.
    question : Question
        Limits and knowledge.

    Returns
    -------
    Modes
        At least one.
    """
    table = energy_table(spectra)
    spectra, spots = with_spots(spectra, table)
    known: dict[str, Any] = {"astigmatism_A": question.astigmatism_A, "fixed": question.fixed}
    climbed = _climb_spectrum(table, spectra, question, known)[:_FINISHED]
    if spots is not None:
        climbed += _climb_spots(table, spots, question, known)[:_FINISHED]
    exact, prior = MatchedFilter(spectra), spectra.prior()
    if question.rotation is not None and question.sign is not None:
        climbed = [start if start.C10 * question.sign > 0 else _turned(start) for start in climbed]
    looked = [refine(exact, prior, start, steps=0, **known) for start in climbed]
    looked = _separate(sorted(looked, key=lambda mode: -mode.log))[:_FINISHED]
    modes = [refine(exact, prior, mode.alignment, steps=5, **known) for mode in looked]
    modes = _separate(_defocused_first(modes, in_focus(spectra)))
    modes, probability = _weighed(modes, question, in_focus_A=in_focus(spectra))
    best = refine(exact, prior, modes[0].alignment, steps=20, **known)
    absorption = refine(partial(exact, absorbing=True), prior, best.alignment, steps=2, **known).log
    opposite = -math.inf
    if spots is not None and abs(best.alignment.C10) > 2 * APART_A:  # nearer to focus it is the same peak
        turned = replace(best.alignment, rotation=best.alignment.rotation + math.pi)
        opposite = refine(exact, prior, turned, steps=4, **known).log
    best, used = _unaliased(spectra, best, known)
    near = abs(best.alignment.C10) < in_focus(spectra)
    return Modes([best, *modes[1:]], probability, near, absorption, opposite, used)


def _turned(alignment: Alignment) -> Alignment:
    """The opposite side of focus at the same rotation."""
    return replace(alignment, C10=-alignment.C10, C12a=-alignment.C12a, C12b=-alignment.C12b)


def _unaliased(spectra: Spectra, mode: Refined, known: dict[str, Any]) -> tuple[Refined, Spectra]:
    """The mode, refined on frequencies the scan samples itself where its aliases look alike on the detector.

    Two aliases differ in shift by λ C10 over the scan step. If that is nearly the period of the detector (views of
    neighbouring pixels move by a whole scan step), both pass for the same, count twice, and draw the defocus there.
    """
    kept = spectra.q < 0.5 / max(spectra.step)
    if kept.all() or kept.sum() < _FEWEST or not _confused(spectra, mode.alignment):
        return mode, spectra
    low = spectra.part(np.flatnonzero(kept))
    refined = refine(MatchedFilter(low), low.prior(), mode.alignment, steps=20, **known)
    return (replace(refined, log=mode.log), low) if refined.log > _ENOUGH else (mode, spectra)


def _confused(spectra: Spectra, alignment: Alignment) -> bool:
    limit = _RESOLVED / (2 * spectra.cutoff)
    for q_y, q_x in ((1 / spectra.step[0], 0.0), (0.0, 1 / spectra.step[1])):
        turned = alignment.to_detector(*alignment.shifts(np.array(q_y), np.array(q_x)))
        shift = [spectra.wavelength * float(component) for component in turned]
        periods = [round(u * pixel) for u, pixel in zip(shift, spectra.pixel, strict=True)]
        away = [abs(u - n / pixel) for u, n, pixel in zip(shift, periods, spectra.pixel, strict=True)]
        if any(periods) and max(away) < limit:
            return True
    return False


def _climb_spectrum(table: EnergyTable, spectra: Spectra, question: Question, known: dict[str, Any]) -> list[Alignment]:
    """Best peaks of the scan over all frequencies, followed with the simple filter."""
    options: dict[str, Any] = {"largest_A": question.largest_A, "transpositions": question.transpositions}
    starts = candidates(_at_rotation(scan_spectrum(table, **options), question, ring_step(spectra)), number=_STARTS)
    simple = MatchedFilter(spectra, simple=True)
    known = {**known, "fixed": (*question.fixed[:4], True)}
    prior = spectra.prior(axial_overlap(spectra.q, cutoff=spectra.cutoff) ** 2)
    first = [refine(simple, prior, _with_rotation(start, question), steps=1, **known) for start in starts]
    first = _separate(sorted(first, key=lambda mode: -mode.log))[:_CLIMBED]
    climbed = [refine(simple, prior, mode.alignment, steps=4, **known) for mode in first]
    return [mode.alignment for mode in _separate(sorted(climbed, key=lambda mode: -mode.log))]


def _climb_spots(table: EnergyTable, spots: Spectra, question: Question, known: dict[str, Any]) -> list[Alignment]:
    """Best solutions for pairs of reflections, followed with the exact filter on the strong frequencies alone."""
    exact, prior = MatchedFilter(spots), spots.prior()
    options: dict[str, Any] = {"largest_A": question.largest_A, "transpositions": question.transpositions}
    starts: list[Alignment] = []
    for _, trial in solve_spots(table, astigmatism_A=question.astigmatism_A, **options):
        if question.rotation is not None and _off_axis(trial.rotation, question.rotation) > _ROTATION_NEAR:
            continue
        if not any(same_peak(trial, other) for other in starts):
            starts.append(trial)
        if len(starts) == _SPOT_STARTS:
            break
    first = [refine(exact, prior, _with_rotation(start, question), steps=1, **known) for start in starts]
    first = _separate(sorted(first, key=lambda mode: -mode.log))[:_STARTS]
    climbed = [refine(exact, prior, mode.alignment, steps=6, **known) for mode in first]
    return [mode.alignment for mode in _separate(sorted(climbed, key=lambda mode: -mode.log))]


def _off_axis(rotation: Any, known: float) -> Any:
    """Angle to the known rotation or to its opposite, whichever is nearer."""
    return np.abs(np.mod(rotation - known + np.pi / 2, np.pi) - np.pi / 2)


def _at_rotation(scan: Scan, question: Question, reach_A: float) -> Scan:
    """Only trials next to the known rotation or, for negative C10, to its opposite."""
    if question.rotation is None:
        return scan
    away = _off_axis(scan.rotation, question.rotation)
    near = (away <= _ROTATION_NEAR) & ((away * scan.C10 < reach_A) | (away <= 0.03))
    return Scan(*(column[near] for column in (scan.score, scan.C10, scan.rotation, scan.transposed)))


def _with_rotation(start: Alignment, question: Question) -> Alignment:
    rotation = question.rotation
    if rotation is None:
        return start
    sign = 1.0 if math.cos(start.rotation - rotation) > 0 else -1.0
    parts = (sign * start.C10, sign * start.C12a, sign * start.C12b, rotation)
    return Alignment(*parts, start.transposed, sign * start.absorption)


def _separate(modes: list[Refined]) -> list[Refined]:
    """The modes without those that lie on the same peak as one before."""
    kept: list[Refined] = []
    for mode in modes:
        if not any(same_peak(mode.alignment, other.alignment) for other in kept):
            kept.append(mode)
    return kept


def in_focus(spectra: Spectra) -> float:
    """|C10| (Å) below which no view is shifted by its own resolution, at the aperture's edge of frequencies."""
    return 1 / (2 * spectra.wavelength * spectra.cutoff**2)


def _defocused_first(modes: list[Refined], limit_A: float) -> list[Refined]:
    """Best first, but those in focus last if another is beyond chance.

    Thick or heavy places lose electrons out of the disk in every view alike, which passes for an image near focus. That
    is there besides the phase contrast and no rival to it.
    """
    ordered = sorted(modes, key=lambda mode: -mode.log)
    clear = [mode for mode in ordered if abs(mode.alignment.C10) >= limit_A and mode.log > _ENOUGH]
    return [*clear, *(mode for mode in ordered if not any(mode is other for other in clear))]


def _weighed(modes: list[Refined], question: Question, *, in_focus_A: float) -> tuple[list[Refined], float]:
    """Probability of the best mode by Laplace's method: the evidence is the peak's height times its volume."""
    free = ~np.asarray(question.fixed)
    volume = question.largest_A * 2 * math.pi * question.astigmatism_A**2 * len(question.transpositions)
    volume *= math.sqrt(2 * math.pi) * ABSORPTION
    volume *= 2 if question.rotation is not None else 2 * math.pi
    logs = []
    for mode in modes:
        sign, log_det = np.linalg.slogdet(mode.information[np.ix_(free, free)])
        width = 0.5 * (free.sum() * math.log(2 * math.pi) - log_det) if sign > 0 else 0.0
        logs.append(mode.log + min(width - math.log(volume), 0.0))  # no peak is wider than all there is
    if abs(modes[0].alignment.C10) >= in_focus_A:
        # an image near focus is there besides (`_defocused_first`)
        logs = [-np.inf if abs(m.alignment.C10) < in_focus_A else log for m, log in zip(modes, logs, strict=True)]
    evidence = np.array([*logs, 0.0])  # the last: noise alone
    order = np.argsort(-evidence[:-1])
    chance = np.exp(evidence - evidence.max())
    return [modes[i] for i in order], float(chance[order[0]] / chance.sum())
