"""The table of a plan: doses over defocus and scan step, what makes them high, and the scan to choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from misr._planning import Modes, ScanOptics, alias_count, ring_points, scan_modes
from misr._provenance import read_history

__all__ = [
    "Question",
    "add_scan",
    "add_status",
    "check_aliases",
    "check_positive",
    "choose",
    "concentration",
    "costs",
    "default_defoci",
    "default_steps",
    "given_dose",
    "label",
    "sequence",
    "specimen_words",
]

_SAMPLES = 16  # frequencies of the ring: they settle the dose to 0.5 %
_STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # times the wanted resolution
_DEFOCI = 12
_WASHED = 0.75  # shift across a detector pixel, in periods of the wanted frequency: there sinc² is 0.09
_FEW_ALIASES, _MOST_ALIASES = 160, 1200
_COSTLY = 10.0  # as misr.fuse_linear warns: under a tenth of what the electrons could tell
_ELECTRONS_PER_S = 1e-12 / 1.602176634e-19  # in 1 pA
_TABLE_ACROSS = (4, 6, 8, 12, 16, 24, 32)
_CELL = ("defocus", "scan_step")
_LABELS = {
    "defocus": ("Å", "defocus"),
    "scan_step": ("Å", "scan step"),
    "det_step": ("mrad", "detector pixel"),
    "C10": ("Å", "C10"),
    "dose": ("e/Å²", "dose needed"),
    "dose_fine": ("e/Å²", "dose needed with fine steps and pixels"),
    "dose_ideal": ("e/Å²", "dose needed by ideal phase contrast"),
    "dose_of_pixel": ("e/Å²", "dose needed with this detector pixel"),
    "dose_given": ("e/Å²", "dose given"),
    "electrons_per_position": ("electrons", "electrons per probe position"),
    "pixel_cost": ("1", "dose multiplied by detector pixels and blurs"),
    "alias_cost": ("1", "dose multiplied by the aliases"),
    "alias_share": ("1", "share of other frequencies"),
    "half_maps": ("1", "FRC that half maps show"),
    "patch": ("Å", "diameter of the illuminated patch"),
    "shift_per_pixel": ("Å", "shift across a detector pixel"),
    "positions": ("1", "probe positions"),
    "electrons": ("electrons", "electrons in the field"),
    "edge_share": ("1", "share of the field along its border"),
    "dwell": ("s", "dwell time"),
    "duration": ("s", "duration of the scan"),
    "best_dose": ("e/Å²", "dose of the scan chosen"),
    "best_defocus": ("Å", "defocus chosen"),
    "best_scan_step": ("Å", "scan step chosen"),
    "widest_det_step": ("mrad", "widest detector pixel"),
}


@dataclass(frozen=True)
class Question:
    """Which correlation is wanted where."""

    power: xr.DataArray
    frequency: float  # 1/Å
    level: float
    against: str

    def modes(self, optics: ScanOptics, step_A: float | None) -> Modes:
        """Of the wanted ring."""
        points = ring_points(np.array([self.frequency]), float(self.power.attrs["ring_width"]), _SAMPLES)
        return scan_modes(*points, step_A=step_A, power=self.power, optics=optics)

    def dose(self, optics: ScanOptics, step_A: float | None) -> float:
        """e/Å²."""
        return self.modes(optics, step_A).least_dose(self.level, self.against)


def check_positive(**values: Any) -> None:
    """Raise unless each one that is given is positive and finite."""
    for name, value in values.items():
        if value is not None and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)):
            raise ValueError(f"{name}={value} must be positive and finite")


def sequence(name: str, values: Sequence[float] | float) -> list[float]:
    """One or more different finite numbers; steps must be positive."""
    found = [float(value) for value in np.atleast_1d(np.asarray(values, dtype=float))]
    if not found or not np.all(np.isfinite(found)) or len(set(found)) < len(found):
        raise ValueError(f"{name}={values} must be one or more different finite lengths in Å")
    if name == "scan_step_A":
        check_positive(scan_step_A=found)
    return found


def check_aliases(steps: Sequence[float], optics: ScanOptics) -> None:
    """Raise for steps whose aliases are too many to solve for."""
    if alias_count(max(steps), optics.cutoff) > _MOST_ALIASES:
        most = math.sqrt(_MOST_ALIASES / math.pi) / (2 * optics.cutoff)
        raise ValueError(
            f"scan_step_A={max(steps):g} folds {alias_count(max(steps), optics.cutoff):.0f} frequencies into one, too "
            f"many to solve for: steps of at most {most:.3g} Å with this aperture"
        )


def default_defoci(resolution_A: float, optics: ScanOptics) -> list[float]:
    """From ½/(λ q²) on, each where sin²χ(q) is 1, to where a detector pixel washes out q."""
    period = resolution_A**2 / optics.wavelength
    last = _WASHED * resolution_A / (optics.wavelength * max(optics.pixel))
    number = np.geomspace(1, max(1.0, last / period + 0.5), _DEFOCI)
    return [float((n - 0.5) * period) for n in np.unique(np.floor(number))]


def default_steps(resolution_A: float, optics: ScanOptics) -> list[float]:
    """A quarter to four times the resolution, as far as the aliases are quick to solve for."""
    steps = [resolution_A * factor for factor in _STEPS]
    return [step for step in steps if alias_count(step, optics.cutoff) <= _FEW_ALIASES] or [
        math.sqrt(_FEW_ALIASES / math.pi) / (2 * optics.cutoff)
    ]


def costs(
    ask: Question, optics: ScanOptics, *, defoci: list[float], steps: list[float], bounds: np.ndarray
) -> xr.Dataset:
    """Doses, and what the image and the half maps hold at them."""
    shape = len(defoci), len(steps)
    single = np.full(len(defoci), math.inf)
    dose, share, shown = np.full(shape, math.inf), np.full(shape, math.nan), np.full(shape, math.nan)
    for i in np.flatnonzero(np.isfinite(bounds)):
        setting = optics.at_defocus(defoci[i])
        single[i] = ask.dose(setting, None)
        for j, step in enumerate(steps):
            modes = ask.modes(setting, step)
            dose[i, j] = modes.least_dose(ask.level, ask.against)
            if math.isfinite(dose[i, j]):
                share[i, j], shown[i, j] = modes.alias_share(dose[i, j])[0], modes.half_maps(dose[i, j])[0]
    over_single = np.where(np.isfinite(single), single, math.nan)
    away, wavelength = np.abs(defoci), optics.wavelength
    return xr.Dataset(
        {
            "dose": (_CELL, dose),
            "electrons_per_position": (_CELL, dose * np.square(steps)),
            "alias_cost": (_CELL, dose / over_single[:, None]),
            "alias_share": (_CELL, share),
            "half_maps": (_CELL, shown),
            "dose_fine": ("defocus", bounds),
            "pixel_cost": ("defocus", np.divide(single, bounds, out=np.full(shape[0], math.nan), where=bounds < 1e300)),
            # shadow of the aperture, and the diameter of the Airy disk of an aperture in focus
            "patch": ("defocus", 2 * wavelength * optics.cutoff * away + 1.22 / optics.cutoff),
            "shift_per_pixel": ("defocus", away * wavelength * max(optics.pixel)),
        },
        coords={"defocus": defoci, "scan_step": steps, "C10": ("defocus", -np.asarray(defoci))},
    )


def add_scan(plan: xr.Dataset, *, field_A: Any, beam_current_pA: float | None, shortest_dwell_s: float | None) -> None:
    """Positions, electrons and times, of the dose that is given: the one needed, or the least the beam gives."""
    if beam_current_pA is not None:
        per_second = beam_current_pA * _ELECTRONS_PER_S / plan["scan_step"] ** 2  # e/Å² for each second of dwell
        plan["dose_given"] = np.maximum(plan["dose"], per_second * (shortest_dwell_s or 0.0))
        plan["electrons_per_position"] = plan["dose_given"] * plan["scan_step"] ** 2
        plan["dwell"] = plan["dose_given"] / per_second
    if field_A is not None:
        field = np.broadcast_to(np.asarray(field_A, dtype=float), (2,))
        plan["positions"] = np.ceil(field[0] / plan["scan_step"]) * np.ceil(field[1] / plan["scan_step"])
        plan["electrons"] = given_dose(plan) * float(field[0] * field[1])
        inside = [(1 - plan["patch"] / side).clip(min=0) for side in field]
        plan["edge_share"] = 1 - inside[0] * inside[1]
        if "dwell" in plan:
            plan["duration"] = plan["dwell"] * plan["positions"]


def given_dose(plan: xr.Dataset) -> xr.DataArray:
    """What the scan gives, e/Å²: the dose needed, or more where the shortest dwell gives more."""
    return (plan["dose_given"] if "dose_given" in plan else plan["dose"]).transpose(*_CELL)


def add_status(plan: xr.Dataset, *, within_band: bool, dose_limit: float | None) -> None:
    """What fails first in each cell."""
    given = given_dose(plan)
    rules: list[tuple[xr.DataArray, str]] = [
        (plan["dose_fine"] == math.inf, "no contrast" if within_band else "beyond the band limit"),
        (~(plan["pixel_cost"] <= _COSTLY), "detector pixel too coarse"),
        (plan["scan_step"] > plan["patch"], "illuminated patches leave gaps"),
        (~(plan["alias_cost"] <= _COSTLY), "aliases cannot be told apart"),
        (given > (math.inf if dose_limit is None else dose_limit), "above the dose limit"),
    ]
    status = np.full(plan["dose"].shape, "found", dtype="<U30")
    for fails, words in reversed(rules):
        status[fails.broadcast_like(plan["dose"]).transpose(*_CELL).values] = words
    plan["status"] = _CELL, status


def choose(plan: xr.Dataset, ask: Question, optics: ScanOptics, *, tolerance: float) -> None:
    """The coarsest step within the tolerance of the least dose, its best defocus, and the widest detector pixel."""
    doses = np.where(plan["status"] == "found", given_dose(plan), math.inf)
    per_mrad = 1e-3 / optics.wavelength
    table = [2 * optics.cutoff / across for across in _TABLE_ACROSS]
    plan.coords["det_step"] = "det_step", [edge / per_mrad for edge in table]
    of_pixel = np.full(len(table), math.nan)
    chosen = dict.fromkeys(("best_dose", "best_defocus", "best_scan_step", "widest_det_step"), math.nan)
    if np.isfinite(doses.min()):
        steps = plan["scan_step"].values
        j = max(np.flatnonzero(doses.min(axis=0) <= (1 + tolerance) * doses.min()), key=lambda index: steps[index])
        i = int(np.argmin(doses[:, j]))
        setting = optics.at_defocus(float(plan["defocus"][i]))
        of_pixel = np.array([ask.dose(_with_pixel(setting, edge), float(steps[j])) for edge in table])
        widest = table[int(np.argmax(of_pixel <= (1 + tolerance) * of_pixel.min()))] / per_mrad
        values = (doses[i, j], plan["defocus"][i], steps[j], widest)
        chosen = dict(zip(chosen, map(float, values), strict=True))
    plan["dose_of_pixel"] = "det_step", of_pixel
    for name, value in chosen.items():
        plan[name] = value


def _with_pixel(optics: ScanOptics, edge: float) -> ScanOptics:
    return replace(optics, pixel=(edge, edge))


def label(plan: xr.Dataset) -> None:
    """Units and names."""
    for name, (units, words) in _LABELS.items():
        if name in plan.variables:
            plan[name].attrs = {"units": units, "long_name": words}


def concentration(image: xr.DataArray, frequency: float, power: xr.DataArray) -> float:
    """``<|F|⁴>/2<|F|²>²`` around a frequency: 1 for speckle, large where few reflections hold the power."""
    from misr.resolution import window_taper

    window = None if power.attrs["window"] == "None" else str(power.attrs["window"])
    values = np.asarray(image.values, dtype=float)
    squared = np.abs(np.fft.fft2((values - values.mean()) * window_taper(image.shape, window))) ** 2
    pixel = [float(image[dim][1] - image[dim][0]) for dim in ("y", "x")]
    q = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(image.shape, pixel, strict=True)), indexing="ij"))
    near = squared[np.abs(q - frequency) <= max(0.05 * frequency, float(power.attrs["ring_width"]))]
    mean = float(near.mean()) if near.size else 0.0
    return float(np.mean(near**2)) / (2 * mean**2) if mean > 0 else math.nan


def specimen_words(power: xr.DataArray) -> str:
    """What the power's history calls it."""
    for line in reversed(read_history(power.attrs)):
        if line["operation"] == "phase_power_of_slab":
            kind = line["composition"]
            return f"{line['thickness_A']:g} Å of {kind if isinstance(kind, str) else ''.join(kind)}"
    return "this specimen"
