"""Random specimens of every class, to train and test a network on: nothing in them is a known structure.

A specimen is put together from patches of atoms: grains of random lattices, amorphous matter, chains, clusters.
Training, validation and test specimens are disjoint by construction (see `misr.fusion.random_families`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from misr.fusion.random_crystals import crystal_patch
from misr.fusion.random_families import child_generator, draw_elements, fits_split
from misr.fusion.random_lattices import random_lattice
from misr.fusion.random_matter import (
    SURFACE_A,
    chain_centres,
    cluster,
    convex_shape,
    random_matter,
    residue_atoms,
    smooth_field,
    within,
)
from misr.fusion.random_patches import Patch, join, matter_patch, points_patch

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["SPECIMEN_KINDS", "random_specimen"]

SPECIMEN_KINDS = ("crystalline", "semicrystalline", "amorphous", "isolated", "empty")
_THINNEST_A, _NARROWEST_A = 3.0, 10.0


def random_specimen(
    kind: str,
    *,
    field_A: float | tuple[float, float],
    rng: Any,
    split: str = "train",
    max_thickness_A: float = 60.0,
    defects: bool = True,
) -> Atoms:
    """A random specimen of a class.

    Parameters
    ----------
    kind : {"crystalline", "semicrystalline", "amorphous", "isolated", "empty"}
        Crystalline: 1 to 5 grains of random lattices, dense or porous, with strain, vacancies, interstitials, other
        phases, layers on one another, edges. Semi-crystalline: 1 to 4 crystallites in amorphous matter. Amorphous:
        several compositions, gradients, holes, steps, folded chains. Isolated: 1 to 200 atoms, alone or clustered, on
        amorphous supports or in vacuum. Empty: no atoms.
    field_A : float or (float, float)
        Field, Å; ``(y, x)`` if not square.
    rng : None, int, numpy.random.SeedSequence or numpy.random.Generator
        Seed (SPEC 7). The same seed gives unrelated specimens in different splits.
    split : {"train", "validation", "test"}, default "train"
        Lattices and compositions of one split never occur in another.
    max_thickness_A : float, default 60
        Thicknesses are log-uniform from 3 Å to this.
    defects : bool, default True
        Without them, the same seed gives the same specimen with every vacancy filled and no interstitials.

    Returns
    -------
    ase.Atoms
        Orthogonal cell of exactly the field, its thickness along z (the beam). ``atoms.info`` holds ``kind``,
        ``split``, ``family`` (joined by ``" + "`` if there are several), ``crystal_fraction`` (of the atoms),
        ``vacancies`` and ``interstitials``: (n, 2) projected ``(y, x)`` of sites or columns that are missing or were
        added, Å, with ``vacancy_charges`` and ``interstitial_charges`` (n,): the atomic numbers taken away or added
        there, summed. Vacancies are single sites, or whole or thinned columns along a zone axis.

    Raises
    ------
    ValueError
        For an unknown kind or split, a field smaller than 10 Å, or a thickness below 3 Å.

    Examples
    --------
    >>> atoms = random_specimen("crystalline", field_A=(20, 24), rng=1)
    >>> atoms.cell.lengths()[:2].tolist(), atoms.info["kind"]
    ([24.0, 20.0], 'crystalline')
    """
    from ase import Atoms

    makers = {
        "crystalline": _crystalline, "semicrystalline": _semicrystalline, "amorphous": _amorphous,
        "isolated": _isolated,
    }  # fmt: skip
    if kind not in SPECIMEN_KINDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(map(repr, SPECIMEN_KINDS))}")
    generator = child_generator(rng, split, kind)
    box = _box(generator, field_A, max_thickness_A)
    patch = Patch.nothing() if kind == "empty" else makers[kind](generator, split, box)
    sites = {}
    for name, charges, sign in (
        ("vacancies", "vacancy_charges", -1), ("interstitials", "interstitial_charges", 1)
    ):  # fmt: skip
        sites[name], sites[charges] = (patch if defects else Patch.nothing()).sites(box, sign)
    patch = patch.of(patch.defect >= 0 if defects else patch.defect <= 0)
    atoms = Atoms(numbers=patch.numbers, positions=patch.positions, cell=box, pbc=True)
    atoms.info["kind"], atoms.info["split"] = kind, split
    atoms.info["family"] = " + ".join(sorted(set(patch.families))) or "empty"
    atoms.info["crystal_fraction"] = float(patch.crystal.mean()) if len(patch.numbers) else 0.0
    atoms.info.update(sites)
    return atoms


def _box(generator: np.random.Generator, field_A: float | tuple[float, float], most: float) -> np.ndarray:
    """Cell lengths (x, y, z), the thickness drawn."""
    field_y, field_x = np.broadcast_to(np.asarray(field_A, dtype=float), (2,))
    if not (math.isfinite(field_y) and math.isfinite(field_x) and min(field_y, field_x) >= _NARROWEST_A):
        raise ValueError(f"field_A={field_A} must be lengths of at least {_NARROWEST_A:g} Å")
    if not (math.isfinite(most) and most >= _THINNEST_A):
        raise ValueError(f"max_thickness_A={most} must be at least {_THINNEST_A:g} Å")
    return np.array([field_x, field_y, math.exp(generator.uniform(math.log(_THINNEST_A), math.log(most)))])


def _crystalline(generator: np.random.Generator, split: str, box: np.ndarray) -> Patch:
    """Grains, or two layers on one another, perhaps with an edge to the vacuum."""
    if generator.random() < 0.15 and box[2] > 6:
        cut = box[2] * generator.uniform(0.3, 0.7)
        lattice = random_lattice(generator, split, height_A=cut)
        lower = crystal_patch(generator, split, box, high=cut - 0.8, lattice=lattice)
        same = lattice if generator.random() < 0.5 else None
        patch = join([lower, crystal_patch(generator, split, box, low=cut + 0.8, lattice=same)], box)
    else:
        patch = crystal_patch(generator, split, box)
    return _edged(generator, patch, box) if generator.random() < 0.4 else patch


def _edged(generator: np.random.Generator, patch: Patch, box: np.ndarray) -> Patch:
    """The patch with an edge, a hole, a step of thickness, or as a particle in vacuum."""
    shape = str(generator.choice(["edge", "hole", "step", "particle"], p=[0.3, 0.2, 0.15, 0.35]))
    xy, z = patch.positions[:, :2], patch.positions[:, 2]
    side = float(box[:2].min())
    if shape == "hole":
        keep = ~convex_shape(generator, box, side * generator.uniform(0.08, 0.3))(xy)
    elif shape == "particle":
        keep = convex_shape(generator, box, side * generator.uniform(0.3, 0.5))(xy)
    else:
        angle = generator.uniform(0, 2 * math.pi)
        along = (xy - box[:2] / 2) @ np.array([math.cos(angle), math.sin(angle)])
        along = along + 2.0 * smooth_field(generator, box)(xy) - generator.uniform(-0.3, 0.3) * side
        keep = (along < 0) if shape == "edge" else (along < 0) | (z < box[2] * generator.uniform(0.2, 0.8))
    return patch.of(keep) if keep.any() else patch


def _semicrystalline(generator: np.random.Generator, split: str, box: np.ndarray) -> Patch:
    """1 to 4 crystallites, through the slab or part of it, in amorphous matter."""
    side = float(box[:2].min())
    patches: list[Patch] = []
    taken: list[tuple[Callable[[np.ndarray], np.ndarray], float, float]] = []

    def free(points: np.ndarray) -> np.ndarray:
        outside = np.ones(len(points), dtype=bool)
        for inside, low, high in taken:
            outside &= ~(inside(points[:, :2]) & (points[:, 2] >= low) & (points[:, 2] < high))
        return outside

    lattice = random_lattice(generator, split, height_A=float(box[2]))
    own = np.unique(lattice.numbers)
    for _ in range(int(generator.choice([1, 2, 3, 4], p=[0.45, 0.3, 0.15, 0.1]))):
        low, high = 0.0, float(box[2])
        if generator.random() < 0.3 and high > 8:
            part = high * generator.uniform(0.4, 1.0)
            low = generator.uniform(0, high - part)
            high = low + part
        if patches and generator.random() < 0.25:
            lattice = random_lattice(generator, split, height_A=high - low)
        # a crystallite of less than two or three cells is none
        cells = 1.2 * float(np.linalg.norm(lattice.cell[:2], axis=1).max())
        inside = convex_shape(generator, box, generator.uniform(min(0.4 * side, max(0.15 * side, cells)), 0.45 * side))
        grain = crystal_patch(generator, split, box, low=low, high=high, lattice=lattice, grains=1)
        patches.append(grain.of(inside(grain.positions[:, :2]) & free(grain.positions)))
        taken.append((inside, low, high))
    matter = random_matter(generator, split, elements=own if generator.random() < 0.5 else None)
    return join([*patches, matter_patch(generator, matter, box, keep=free)], box)


def _amorphous(generator: np.random.Generator, split: str, box: np.ndarray) -> Patch:
    """One or two matters with gradients, holes and steps, or folded chains."""
    if generator.random() < 0.3 and box[2] > 12:
        return _chains(generator, split, box)
    profile = smooth_field(generator, box)
    contrast = generator.uniform(0, 0.6) if generator.random() < 0.5 else 0.0

    def gradient(points: np.ndarray) -> np.ndarray:
        return generator.random(len(points)) < 1 - contrast * (0.5 + 0.5 * profile(points[:, :2]))

    patches = [matter_patch(generator, random_matter(generator, split), box, keep=gradient)]
    if generator.random() < 0.3:
        border = smooth_field(generator, box)
        other = matter_patch(generator, random_matter(generator, split), box)
        level = generator.uniform(-0.4, 0.4)
        patches = [
            patches[0].of(border(patches[0].positions[:, :2]) < level),
            other.of(border(other.positions[:, :2]) >= level),
        ]
    patch = join(patches, box)
    return _edged(generator, patch, box) if generator.random() < 0.35 else patch


def _chains(generator: np.random.Generator, split: str, box: np.ndarray) -> Patch:
    """Folded chains in vitreous ice or in vacuum."""
    matter = random_matter(generator, split, kind="protein")
    share = generator.uniform(0.15, 0.7)
    left = int(share * float(np.prod(box)) / 135.0)
    centres = []
    while left > 20:
        residues = int(min(left, math.exp(generator.uniform(math.log(30), math.log(400)))))
        middle = generator.random(3) * box
        middle[2] = box[2] * generator.uniform(0.35, 0.65)
        centres.append(chain_centres(generator, residues, middle))
        left -= residues
    if not centres:
        centres = [chain_centres(generator, 20, box * 0.5)]
    places = np.concatenate(centres)
    places = places[(places[:, 2] > 0) & (places[:, 2] < box[2])]
    positions, numbers = residue_atoms(generator, places, matter)
    chains = points_patch(within(positions, box), numbers, box, matter.core_A, matter.family)
    if generator.random() < 0.35:
        return chains
    ice = matter_patch(generator, random_matter(generator, split, kind="ice"), box)
    return join([chains, ice], box, gap=2.2)


def _isolated(generator: np.random.Generator, split: str, box: np.ndarray) -> Patch:
    """Single atoms and clusters over a support of its own thickness, or in vacuum."""
    from ase.data import chemical_symbols

    while True:
        elements = draw_elements(generator, int(generator.integers(1, 3)))
        if generator.random() < 0.7:
            elements = elements[elements > 20] if np.any(elements > 20) else elements
        family = "atoms " + ",".join(sorted(chemical_symbols[z] for z in elements))
        if fits_split(family, split):
            break
    patches = []
    floor, ceiling = SURFACE_A, float(box[2]) - SURFACE_A
    if generator.random() < 0.75:
        support = box.copy()
        thickest = min(0.75 * box[2], 30.0)
        support[2] = math.exp(generator.uniform(math.log(min(2.0, 0.75 * thickest)), math.log(thickest)))
        kind = "carbon" if generator.random() < 0.5 else None
        patches.append(matter_patch(generator, random_matter(generator, split, kind=kind), support))
        floor = float(support[2])
    number = round(math.exp(generator.uniform(0, math.log(200.0))))
    clustered = generator.random() < 0.5
    positions, numbers = [], []
    while number > 0:
        size = min(number, int(generator.integers(2, 60))) if clustered else 1
        points, kinds = cluster(generator, elements, size)
        height = floor + generator.exponential(1.5) if patches else generator.uniform(floor, ceiling)
        points = points + np.append(generator.random(2) * box[:2], height)
        lowest = float(points[:, 2].min())
        points[:, 2] += min(max(lowest, floor + 0.5), ceiling) - lowest
        keep = points[:, 2] <= ceiling + 1e-9
        positions.append(points[keep])
        numbers.append(kinds[keep])
        number -= size
    found = points_patch(within(np.concatenate(positions), box), np.concatenate(numbers), box, 1.6, family, rounds=0)
    return join([found, *patches], box)
