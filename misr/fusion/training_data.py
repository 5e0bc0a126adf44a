"""Random scans for training: optics, dose and specimen drawn over the ranges that the network is to serve.

One specimen is simulated once and counted at several doses. All that the network is shown comes from the same linear
fusion that users run, with the calibration's errors in it; the truth is the projected phase up to the band limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from misr.fusion.natural import NaturalField, atom_amplitude, natural_field, natural_groups
from misr.fusion.plan import FusionPlan, Statistic, measure
from misr.fusion.random_scans import DOSES, Conditions, draw_conditions
from misr.fusion.random_specimens import SPECIMEN_KINDS

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["KIND_SHARES", "Example", "make_examples", "make_twins", "simulate", "specimen_of"]

_LAYER_A = 12.0
_SIM_PIXEL = 0.30  # of λ/2α
_STRONGEST = 0.6  # rad, rms: stronger specimens are made thinner, for no linear image is worth mending there
_THERMAL_A = 0.08
KIND_SHARES = (0.42, 0.25, 0.18, 0.12, 0.03)  # of the kinds
_SPLITS = ("train", "validation", "test")
_DAMAGED = ("crystalline", "semicrystalline")  # kinds that may have defects


@dataclass(frozen=True)
class Example:
    """One field as the network sees it, and its truth.

    Attributes
    ----------
    field : NaturalField
        Input.
    groups, tilts : torch.Tensor
        (group, y, x) with unit noise each, and (group, 2).
    truth : torch.Tensor
        (y, x): whitened, in units of the field's scale.
    defects : torch.Tensor
        (y, x): what the truth differs by from that of the undamaged twin; 0 where nothing is missing or added.
    dose_e_per_A2 : float
        What was drawn.
    conditions : Conditions
        Likewise.
    kind : str
        Of the specimen.
    seed : int
        Likewise.
    """

    field: NaturalField
    groups: torch.Tensor
    tilts: torch.Tensor
    truth: torch.Tensor
    defects: torch.Tensor
    dose_e_per_A2: float
    conditions: Conditions
    kind: str
    seed: int


def make_examples(
    seed: int, *, split: str = "train", kind: str | None = None, doses: int = 4, groups: int = 8
) -> Iterator[Example]:
    """One specimen under one microscope, counted at several doses.

    Parameters
    ----------
    seed : int
        Draws everything.
    split : {"train", "validation", "test"}
        Specimens of one are never in another (see `misr.fusion.random_specimens`).
    kind : str, optional
        Of the specimen; drawn if not given.
    doses : int
        How many, log-uniform within as many equal parts of the range.
    groups : int
        Of views.

    Yields
    ------
    Example
        One per dose.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, _SPLITS.index(split), 7]))
    kind = kind or str(rng.choice(SPECIMEN_KINDS, p=KIND_SHARES))
    conditions = draw_conditions(rng)
    counts, slices, pixel = simulate(kind, conditions, seed=seed, split=split)
    phase = slices.sum(axis=0)
    whole = undamaged_phase(kind, conditions, seed=seed, split=split) if kind in _DAMAGED else phase
    scan = _Scan(counts, phase, phase - whole, pixel, conditions, groups=groups, kind=kind, seed=seed)
    for low, high in itertools.pairwise(_dose_edges(doses)):
        made = scan.counted(float(np.exp(rng.uniform(low, high))), rng)
        if made is not None:
            yield made


def make_twins(
    seed: int, *, split: str = "train", doses: int = 4, groups: int = 8
) -> Iterator[tuple[Example, Example]]:
    """One specimen with defects and its undamaged twin, each scanned and counted by itself at the same doses.

    Parameters
    ----------
    seed, split, doses, groups
        See `make_examples`.

    Yields
    ------
    tuple of Example
        The damaged one and its twin, per dose; nothing for a specimen without defects in the scanned field.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, _SPLITS.index(split), 8]))
    kind = str(rng.choice(_DAMAGED, p=(0.75, 0.25)))
    conditions = draw_conditions(rng)
    whole = undamaged_phase(kind, conditions, seed=seed, split=split)
    scans: list[_Scan] = []
    for defects in (True, False):
        counts, slices, pixel = simulate(kind, conditions, seed=seed, split=split, defects=defects)
        phase = slices.sum(axis=0)
        if defects and np.allclose(phase, whole):
            return
        scans.append(_Scan(counts, phase, phase - whole, pixel, conditions, groups=groups, kind=kind, seed=seed))
    if not scans[0].missing.any():
        return
    for low, high in itertools.pairwise(_dose_edges(doses)):
        dose = float(np.exp(rng.uniform(low, high)))
        damaged, twin = (scan.counted(dose, rng) for scan in scans)
        if damaged is not None and twin is not None:
            yield damaged, twin


def _dose_edges(number: int) -> np.ndarray:
    return np.linspace(math.log(DOSES[0]), math.log(DOSES[1]), number + 1)


def simulate(
    kind: str, conditions: Conditions, *, seed: int, split: str, defects: bool = True
) -> tuple[Any, np.ndarray, float]:
    """Expected counts of a random specimen at 1 e/Å², and the phase of its slices, rad, with their pixel, Å.

    Parameters
    ----------
    kind, seed, split, defects
        See `specimen_of`.
    conditions : Conditions
        Microscope and scan.

    Returns
    -------
    tuple
        Cube, (slice, y, x), Å.
    """
    from misr.fusion.tilted_waves import simulate_bright_field

    field = conditions.field_A
    slices, layer_A = phase_slices(specimen_of(kind, conditions, seed=seed, split=split, defects=defects), conditions)
    pixels = slices.shape[-1]
    first, window = (conditions.positions - conditions.window) // 2, conditions.window
    cube = simulate_bright_field(
        slices,
        pixel_A=field / pixels,
        slice_thickness_A=layer_A,
        energy_eV=conditions.energy_eV,
        semiangle_mrad=conditions.semiangle_mrad,
        aberrations=conditions.aberrations,
        scan_shape=(conditions.positions, conditions.positions),
        positions=None if window == conditions.positions else (first, first, window, window),
        det_step_mrad=conditions.det_step_mrad,
        rotation_deg=conditions.rotation_deg,
    )
    return cube, slices, field / pixels


def specimen_of(kind: str, conditions: Conditions, *, seed: int, split: str, defects: bool = True) -> Atoms:
    """A random specimen over the whole period, thin enough for a linear image to mean something.

    Parameters
    ----------
    kind : str
        See `misr.fusion.random_specimens.random_specimen`.
    conditions : Conditions
        Microscope and scan.
    seed, split
        See `make_examples`.
    defects : bool
        False gives the undamaged twin.

    Returns
    -------
    ase.Atoms
        Of the field's size.
    """
    from misr.fusion.random_specimens import random_specimen

    options: dict[str, Any] = {"field_A": conditions.field_A, "rng": seed, "split": split}
    for thickest in (60.0, 30.0, 15.0, 8.0, 4.0):
        atoms = random_specimen(kind, max_thickness_A=thickest, **options)
        if float(phase_slices(atoms, conditions)[0].sum(axis=0).std()) < _STRONGEST:
            break
    return atoms if defects else random_specimen(kind, max_thickness_A=thickest, defects=False, **options)


def undamaged_phase(kind: str, conditions: Conditions, *, seed: int, split: str) -> np.ndarray:
    """Projected phase, rad, (y, x), of a random specimen's twin without vacancies and interstitials."""
    twin = specimen_of(kind, conditions, seed=seed, split=split, defects=False)
    return phase_slices(twin, conditions)[0].sum(axis=0)


def phase_slices(atoms: Atoms, conditions: Conditions) -> tuple[np.ndarray, float]:
    """Phase of each slice of a specimen, rad, (slice, y, x), and the slices' thickness, Å."""
    from misr.optics import interaction_parameter
    from misr.phase import projected_potential

    field = conditions.field_A
    pixels = 4 * math.ceil(field * 2 * conditions.cutoff / _SIM_PIXEL / 4)
    thickness = max(float(atoms.cell.lengths()[2]), 1.0)
    number = max(1, math.ceil(thickness / _LAYER_A))
    layer = np.clip((atoms.positions[:, 2] / thickness * number).astype(int), 0, number - 1)
    symbols = np.asarray(atoms.get_chemical_symbols())
    slices = np.zeros((number, pixels, pixels))
    for index in np.unique(layer):
        chosen = np.flatnonzero(layer == index)
        potential = projected_potential(
            atoms.positions[chosen], symbols[chosen].tolist(), (field, field), (pixels, pixels), _THERMAL_A
        )
        slices[index] = interaction_parameter(conditions.energy_eV) * potential
    return slices, thickness / number


class _Scan:
    """Expected counts of one scan, ready to be counted at any dose."""

    def __init__(
        self, cube: Any, phase: np.ndarray, damage: np.ndarray, pixel: float, conditions: Conditions, *,
        groups: int, kind: str, seed: int,
    ) -> None:  # fmt: skip
        from misr.aberrations import with_aberrations
        from misr.fusion.view_groups import in_groups
        from misr.views import synthesize_views

        believed = with_aberrations(cube, conditions.believed, rotation_deg=conditions.believed_rotation_deg)
        self.views, self.parts, self.tilts = in_groups(synthesize_views(believed), groups)
        self.plan, _ = measure(self.views, keep=True)
        self.truth, self.missing = (truth_on(self.plan, one, pixel, conditions) for one in (phase, damage))
        self.conditions, self.kind, self.seed = conditions, kind, seed

    def counted(self, dose: float, rng: np.random.Generator) -> Example | None:
        """At a dose; nothing where hardly an electron arrives."""
        from misr.fusion.view_groups import group_sums

        plan = self.plan
        drawn = rng.poisson(np.clip(self.views.values, 0, None) * dose)
        lost = np.zeros(drawn.shape[1:], dtype=bool)
        vectors, energy, mean = group_sums(drawn, self.parts, plan=plan, lost=lost)
        total = float(mean.sum())
        if total * lost.size < 100:
            return None
        statistic = Statistic(sum(vectors), energy, plan.grid.n_effective * total, int((mean > 0).sum()))  # type: ignore[arg-type]
        field, seen = fields_of(plan, statistic, vectors)
        return Example(
            field,
            seen * math.sqrt(len(self.parts)),
            torch.as_tensor(self.tilts, dtype=torch.float32),
            self.truth / field.scale,
            self.missing / field.scale,
            dose,
            self.conditions,
            self.kind,
            self.seed,
        )


def fields_of(plan: FusionPlan, statistic: Statistic, vectors: list[torch.Tensor]) -> tuple[NaturalField, torch.Tensor]:
    """The network's input from what the counts say."""
    from misr.fusion.linear import solved

    solution = solved(plan, statistic, local=True)
    return natural_field(plan, solution), natural_groups(plan, vectors, statistic)


def truth_on(plan: FusionPlan, phase: np.ndarray, pixel: float, conditions: Conditions) -> torch.Tensor:
    """The whitened truth up to the band limit on the natural pixels, rad; 0 outside the field, mean 0 within.

    Parameters
    ----------
    plan : FusionPlan
        Of the scan.
    phase : numpy.ndarray
        (y, x), rad, one period.
    pixel : float
        Its pixel, Å.
    conditions : Conditions
        Where the scan lies in the period.

    Returns
    -------
    torch.Tensor
        float32, (y, x).
    """
    from misr.fusion.natural import inside_field, natural_pixels

    size = len(phase)
    order = np.fft.fftfreq(size) * size
    q = order / (size * pixel)
    radius = np.hypot(q[:, None], q)
    spectrum = np.fft.fft2(phase) / phase.size
    spectrum /= atom_amplitude(torch.as_tensor(radius)).numpy()
    spectrum[(radius >= 2 * conditions.cutoff) | (radius == 0)] = 0
    shape, pixels = natural_pixels(plan)
    first = (conditions.positions - conditions.window) // 2
    basis = []
    for axis in range(2):
        at = np.arange(shape[axis]) * pixels[axis] + (first - plan.grid.pad[axis]) * plan.grid.step[axis]
        basis.append(np.exp(2j * np.pi * np.outer(at, q)))
    image = torch.as_tensor((basis[0] @ spectrum @ basis[1].T).real)
    inside = inside_field(plan)
    image = torch.where(inside, image - image[inside].mean(), 0.0)
    return image.float()
