"""Patches of atoms that random specimens are put together from, and how they are joined and kept apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from misr.fusion.random_matter import SURFACE_A, RandomMatter, near_pairs, pack_softly

__all__ = ["LEAST_GAP_A", "Patch", "join", "matter_patch", "points_patch"]

LEAST_GAP_A = 1.0  # no two atoms of a specimen are nearer, Å, surfaces apart


class Patch(NamedTuple):
    """Atoms with what is known of them; those that vacancies lack are still among them, to hold their places."""

    positions: np.ndarray  # (atom, 3), x y z, Å
    numbers: np.ndarray  # (atom,)
    crystal: np.ndarray  # (atom,), bool
    defect: np.ndarray  # (atom,), 0: none, n > 0: added, one of the interstitial n, -n: to go missing in vacancy n
    families: tuple[str, ...]
    core_A: float  # shortest distance of two of its atoms, about

    @classmethod
    def nothing(cls) -> Patch:
        """A patch without atoms."""
        none = np.empty(0, dtype=int)
        return cls(np.empty((0, 3)), none, none.astype(bool), none, (), 2.0)

    @classmethod
    def of_one_kind(cls, positions: np.ndarray, numbers: np.ndarray, family: str, core: float, crystal: bool) -> Patch:
        """A patch without defects."""
        count = len(numbers)
        kind, none = np.full(count, crystal), np.zeros(count, dtype=int)
        return cls(positions, np.asarray(numbers), kind, none, (family,), core)

    def of(self, keep: np.ndarray) -> Patch:
        """The atoms chosen."""
        return self._replace(
            positions=self.positions[keep], numbers=self.numbers[keep], crystal=self.crystal[keep],
            defect=self.defect[keep],
        )  # fmt: skip

    def sites(self, box: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
        """Middles (y, x) of the vacancies (sign -1) or interstitials (1), and their atomic numbers summed."""
        groups, first, owner = np.unique(self.defect[sign * self.defect > 0], return_index=True, return_inverse=True)
        chosen = sign * self.defect > 0
        places, charges = self.positions[chosen, :2], self.numbers[chosen].astype(float)
        if len(groups) == 0:
            return np.empty((0, 2)), np.empty(0)
        # a column may lie across the border: its middle is found about its first atom
        apart = places - places[first][owner]
        apart -= box[:2] * np.rint(apart / box[:2])
        counts = np.bincount(owner)
        mean = np.stack([np.bincount(owner, apart[:, axis]) / counts for axis in range(2)], axis=1)
        return ((places[first] + mean) % box[:2])[:, ::-1], np.bincount(owner, charges)


def join(patches: Sequence[Patch], box: np.ndarray, gap: float | None = None) -> Patch:
    """Patches as one; of two atoms too near each other the one of the later patch goes.

    The gap between patches is given, or 0.8 of the shortest distance in any of them; that within a patch (over the
    seam of a lattice that does not fit into the field) is at most this.
    """
    shifts = np.cumsum([0, *(int(np.abs(patch.defect).max(initial=0)) for patch in patches)])
    moved = [patch.defect + np.sign(patch.defect) * shift for patch, shift in zip(patches, shifts[:-1], strict=True)]
    families = tuple(family for patch in patches for family in patch.families)
    core = min(patch.core_A for patch in patches)
    whole = Patch(
        np.concatenate([patch.positions for patch in patches]),
        np.concatenate([patch.numbers for patch in patches]),
        np.concatenate([patch.crystal for patch in patches]),
        np.concatenate(moved), families, core,
    )  # fmt: skip
    if len(whole.numbers) == 0:
        return whole
    inner = max(LEAST_GAP_A, 0.8 * core)
    outer = inner if gap is None else max(gap, LEAST_GAP_A)
    owner = np.repeat(np.arange(len(patches)), [len(patch.numbers) for patch in patches])
    first, second, distance = near_pairs(whole.positions, box, max(inner, outer))
    near = distance < np.where(owner[first] == owner[second], inner, outer)
    keep = np.ones(len(owner), dtype=bool)
    keep[np.maximum(first, second)[near]] = False
    return whole.of(keep)


def points_patch(
    positions: np.ndarray, numbers: np.ndarray, box: np.ndarray, core: float, family: str, *, rounds: int = 5
) -> Patch:
    """Atoms at given places, pushed apart softly."""
    positions = pack_softly(positions, box, core, rounds=rounds)
    first, second, _distance = near_pairs(positions, box, LEAST_GAP_A)
    keep = np.ones(len(positions), dtype=bool)
    keep[np.maximum(first, second)] = False
    return Patch.of_one_kind(positions[keep], np.asarray(numbers)[keep], family, core, False)


def matter_patch(
    generator: np.random.Generator, matter: RandomMatter, box: np.ndarray,
    keep: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Patch:  # fmt: skip
    """Amorphous matter all over the box, or where ``keep`` of the points is True."""
    low, high = np.array([0, 0, SURFACE_A]), box - np.array([0, 0, SURFACE_A])
    number = max(1, round(matter.per_A3 * float(np.prod(high - low))))
    points = generator.uniform(low, high, (number, 3))
    numbers = matter.draw(generator, number)
    if keep is not None:
        chosen = keep(points)
        points, numbers = points[chosen], numbers[chosen]
    return points_patch(points, numbers, box, matter.core_A, matter.family)
