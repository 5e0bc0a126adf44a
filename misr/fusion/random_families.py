"""Splits, elements and families: what keeps random specimens for training, validation and test apart.

Each split has spawn keys of its own, so a seed gives another specimen in each of them. Beyond that every lattice and
every amorphous matter belongs to a *family*: its quantised cell and elements, or its quantised composition. The
family's hash puts it into one of ten bins; eight are for training, one for validation, one for test.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np

__all__ = ["SPLIT_BINS", "child_generator", "core_distance", "draw_elements", "fits_split", "masses", "spheres"]

SPLIT_BINS: dict[str, tuple[int, ...]] = {"train": tuple(range(8)), "validation": (8,), "test": (9,)}
_SPAWN_KEYS = {"train": 7001, "validation": 7002, "test": 7003}
_METALS = (11, 12, 13, 19, 20, *range(22, 32), 40, 42, *range(47, 51), *range(55, 59), 72, 74, 78, 79, 82, 83)
_OTHERS = (
    1,
    3,
    5,
    9,
    15,
    17,
    *range(32, 36),
    *range(37, 40),
    41,
    44,
    45,
    46,
    51,
    52,
    53,
    59,
    60,
    64,
    73,
    75,
    76,
    77,
    80,
    81,
)
_USUAL = {6: 6.0, 7: 3.0, 8: 8.0, 14: 5.0, 16: 4.0}  # weights of C N O Si S
_NARROWEST, _WIDEST = 1.2, 2.2  # Å, hard core of any two atoms


def child_generator(rng: Any, split: str, kind: str = "") -> np.random.Generator:
    """Generator of a split: the same seed gives unrelated streams in the three splits, and for each kind.

    Raises
    ------
    ValueError
        For an unknown split.
    """
    if split not in _SPAWN_KEYS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(map(repr, _SPAWN_KEYS))}")
    key = (_SPAWN_KEYS[split], *kind.encode())
    if isinstance(rng, np.random.SeedSequence):
        return np.random.default_rng(np.random.SeedSequence(rng.entropy, spawn_key=(*rng.spawn_key, *key)))
    if isinstance(rng, np.random.Generator):
        rng = rng.integers(0, 2**32, size=4, dtype=np.uint64).tolist()
    return np.random.default_rng(np.random.SeedSequence(rng, spawn_key=key))


def fits_split(family: str, split: str) -> bool:
    """Whether a family's bin belongs to the split."""
    digest = hashlib.blake2b(family.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 10 in SPLIT_BINS[split]


def draw_elements(generator: np.random.Generator, number: int, *, light: bool = False) -> np.ndarray:
    """Different atomic numbers, H to Bi, mostly C N O Si S and metals; ``light``: Z ≤ 17 alone."""
    numbers, weights = _weights()
    if light:
        weights = np.where(numbers <= 17, weights, 0.0)
    return generator.choice(numbers, number, replace=False, p=weights / weights.sum())


def core_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Least distance of two atoms, Å: 0.9 of the sum of covalent radii, kept within 1.2 to 2.2 Å."""
    radii = _radii()
    return np.clip(0.9 * (radii[first] + radii[second]), _NARROWEST, _WIDEST)


def spheres(numbers: np.ndarray) -> np.ndarray:
    """Volumes of the atoms' covalent spheres, Å³; that of H is taken as if its radius were 0.66 Å."""
    return 4 / 3 * np.pi * np.maximum(_radii()[numbers], 0.66) ** 3


@cache
def masses() -> np.ndarray:
    """Atomic masses by atomic number, Da."""
    from ase.data import atomic_masses

    return np.array(atomic_masses)


@cache
def _radii() -> np.ndarray:
    from ase.data import covalent_radii  # Cordero et al. 2008, Dalton Trans. 2832

    return np.array(covalent_radii)


@cache
def _weights() -> tuple[np.ndarray, np.ndarray]:
    shares = _USUAL | dict.fromkeys(_METALS, 0.5) | dict.fromkeys(_OTHERS, 0.2)
    return np.array(list(shares)), np.array(list(shares.values()))
