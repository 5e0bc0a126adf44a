"""Crystals of random specimens: grains of random lattices with strain, vacancies and interstitials."""

from __future__ import annotations

import math

import numpy as np

from misr.fusion.random_lattices import Lattice, Setting, fill_box, random_lattice, random_setting
from misr.fusion.random_matter import SURFACE_A, smooth_field, within
from misr.fusion.random_patches import LEAST_GAP_A, Patch, join

__all__ = ["crystal_patch"]

_MOST_STRAIN = 0.02
_COLUMN_A = 0.45  # atoms so near a column's line belong to it
_TRIES = 40  # places tried for one interstitial


def crystal_patch(
    generator: np.random.Generator, split: str, box: np.ndarray, *, low: float = 0.0, high: float | None = None,
    lattice: Lattice | None = None, grains: int | None = None,
) -> Patch:  # fmt: skip
    """Grains of one lattice (or of two: phase boundaries) between two heights, with strain and defects."""
    low, high = max(low, SURFACE_A), min(float(box[2]) if high is None else high, float(box[2]) - SURFACE_A)
    if grains is None:
        grains = int(generator.choice([1, 2, 3, 4, 5], p=[0.55, 0.2, 0.1, 0.08, 0.07]))
    lattice = random_lattice(generator, split, height_A=high - low) if lattice is None else lattice
    other = lattice
    if grains > 1 and generator.random() < 0.3:
        other = random_lattice(generator, split, height_A=high - low)
    seeds = generator.random((grains, 2)) * box[:2]
    slopes = generator.normal(0, 0.25, (grains, 2)) * (generator.random() < 0.5)
    thin = high - low < 1.2 * float(np.linalg.norm(lattice.cell[0]))
    first = random_setting(generator, lattice, thin=thin)
    patches = []
    for index in range(grains):
        own = other if index % 2 else lattice
        alike = first.column is not None
        setting = first if index == 0 else random_setting(generator, own, zone=alike, thin=thin)
        patch = _grain(generator, own, setting, box, low, high)
        patches.append(patch.of(_nearest(patch.positions, seeds, slopes, box) == index) if grains > 1 else patch)
    patch = join(patches, box)
    return _distorted(generator, patch, box) if generator.random() < 0.5 else patch


def _nearest(positions: np.ndarray, seeds: np.ndarray, slopes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Index of the nearest seed over the periodic field; sloping boundaries move the seeds with the height."""
    offsets = positions[:, None, :2] - seeds - slopes * (positions[:, None, 2:] - box[2] / 2)
    offsets -= box[:2] * np.rint(offsets / box[:2])
    return (offsets**2).sum(-1).argmin(1)


def _grain(
    generator: np.random.Generator, lattice: Lattice, setting: Setting, box: np.ndarray, low: float, high: float
) -> Patch:
    """A single crystal over the whole field with vacancies and interstitials."""
    bottom, top = np.array([0.0, 0.0, low]), np.array([box[0], box[1], high])
    origin = bottom + generator.random(3) @ setting.vectors
    positions, numbers = fill_box(lattice, setting, bottom, top, origin)
    patch = Patch.of_one_kind(positions, numbers, lattice.family, lattice.nearest_A, True)
    if len(numbers) < 8 or generator.random() > 0.75:
        return patch
    if generator.random() < 0.85:
        patch = _with_vacancies(generator, patch, setting, box)
    if generator.random() < 0.45:
        patch = _with_interstitials(generator, patch, setting, box)
    return patch


def _with_vacancies(generator: np.random.Generator, patch: Patch, setting: Setting, box: np.ndarray) -> Patch:
    """Sites, whole columns along the zone axis, or parts of these marked as missing."""
    column = setting.column if generator.random() < 0.75 else None
    columns = max(1.0, float(box[0] * box[1]) / 20.0)
    number = max(1, round(columns * math.exp(generator.uniform(math.log(0.003), math.log(0.12)))))
    number = min(number, len(patch.numbers) // 4)
    part = generator.uniform(0.3, 1.0) if generator.random() < 0.3 else 1.0
    defect = patch.defect.copy()
    for group, atom in enumerate(generator.choice(len(defect), number, replace=False), start=1):
        if defect[atom] != 0:
            continue
        if column is not None:
            offsets = patch.positions - patch.positions[atom]
            offsets -= np.outer(offsets @ column, column)
            line = ((offsets**2).sum(1) < _COLUMN_A**2) & (defect == 0)
            defect[line & (generator.random(len(defect)) < part)] = -group
        defect[atom] = -group
    return patch._replace(defect=defect)


def _with_interstitials(generator: np.random.Generator, patch: Patch, setting: Setting, box: np.ndarray) -> Patch:
    """Atoms, or columns of them along the zone axis, added where there is room."""
    from scipy.spatial import cKDTree

    low, high = patch.positions[:, 2].min(), patch.positions[:, 2].max()
    column = setting.column if generator.random() < 0.6 else None
    tree = cKDTree(patch.positions)
    room = max(LEAST_GAP_A + 0.1, 0.85 * patch.core_A)
    places: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    groups: list[np.ndarray] = []
    for group in range(1, 2 + int(generator.integers(1 + round(float(box[0] * box[1]) / 500.0)))):
        tries = np.column_stack([generator.random((_TRIES, 2)) * box[:2], generator.uniform(low, high, _TRIES)])
        lines = tries[:, None]
        if column is not None:
            heights = np.arange(low, high + 1e-6, max(generator.uniform(2.0, 4.0), room))
            lines = lines + ((heights - tries[:, 2:]) / column[2])[..., None] * column
        inside = np.all((lines[..., :2] >= 0) & (lines[..., :2] < box[:2]), axis=(1, 2))
        if not inside.any():
            continue
        lines = lines[inside]
        distance = tree.query(lines.reshape(-1, 3))[0].reshape(lines.shape[:2]).min(1)
        # the roomiest place, or any with room enough
        best = int(np.argmax(distance if generator.random() < 0.5 else distance > room))
        apart = min((np.linalg.norm(lines[best][:, None] - old, axis=-1).min() for old in places), default=np.inf)
        if distance[best] > room and apart > room:
            places.append(lines[best])
            numbers.append(np.full(len(places[-1]), generator.choice(patch.numbers)))
            groups.append(np.full(len(places[-1]), group))
    if not places:
        return patch
    kind = np.full(sum(map(len, numbers)), True)
    return patch._replace(
        positions=np.concatenate([patch.positions, *places]), numbers=np.concatenate([patch.numbers, *numbers]),
        crystal=np.concatenate([patch.crystal, kind]), defect=np.concatenate([patch.defect, *groups]),
    )  # fmt: skip


def _distorted(generator: np.random.Generator, patch: Patch, box: np.ndarray) -> Patch:
    """Slowly varying strain of up to 2 %, periodic in the field."""
    # the steepest wave of order 2 over the shorter side has a slope of 4π / side
    height = generator.random() * _MOST_STRAIN * float(box[:2].min()) / (4 * math.pi * 1.3)
    moved = patch.positions.copy()
    for axis in range(2):
        moved[:, axis] += height * smooth_field(generator, box)(patch.positions[:, :2])
    return patch._replace(positions=within(moved, box))
