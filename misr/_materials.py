"""What specimens are made of: compositions and densities of amorphous matter, and crystal structures, with sources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


class Matter(NamedTuple):
    parts: Mapping[str, float]
    density: float  # g/cm³


_AMORPHOUS = {
    # mean residue: Senko, Beu & McLafferty 1995, J. Am. Soc. Mass Spectrom. 6, 229;
    # density: Fischer, Polikarpov & Craievich 2004, Protein Sci. 13, 2825
    "protein": Matter({"C": 4.9384, "H": 7.7583, "N": 1.3577, "O": 1.4773, "S": 0.0417}, 1.35),
    # evaporated films, 1.8 to 2.1 g/cm³: Robertson 1986, Adv. Phys. 35, 317
    "carbon": Matter({"C": 1.0}, 2.0),
    # vitreous silica: Mozzi & Warren 1969, J. Appl. Cryst. 2, 164
    "silica": Matter({"Si": 1.0, "O": 2.0}, 2.20),
}


class Crystal(NamedTuple):
    symbols: tuple[str, ...]
    basis: tuple[tuple[float, float, float], ...]
    spacegroup: int
    cell: tuple[float, float, float, float, float, float]
    layers: int  # identical-in-thickness layers in one cell, which may be cut between
    thickness: float  # Å, when none is asked for
    vacancy: str  # the element that goes missing first under the beam


CRYSTALS = {
    # 2H: Schutte, De Boer & Jellinek 1987, J. Solid State Chem. 70, 207
    "MoS2": Crystal(
        ("Mo", "S"), ((1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.621)), 194, (3.1604, 3.1604, 12.295, 90, 90, 120), 2,
        6.15, "S",
    ),
    # pure-silica LTA (ITQ-29): Corma, Rey, Rius, Sabater & Valencia 2004, Nature 431, 287
    "zeolite": Crystal(
        ("Si", "O", "O", "O"),
        ((0.3683, 0.1847, 0), (0.5, 0.2179, 0), (0.2939, 0.2939, 0), (0.3429, 0.1098, 0.1098)),
        221, (11.8671, 11.8671, 11.8671, 90, 90, 90), 1, 24.0, "O",
    ),
    # cubic CsPbBr3: Møller 1958, Nature 182, 1436
    "perovskite": Crystal(
        ("Cs", "Pb", "Br"), ((0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)), 221, (5.874, 5.874, 5.874, 90, 90, 90), 1,
        24.0, "Br",
    ),
}  # fmt: skip


def matter_of(composition: str | Mapping[str, float], density: float | None) -> Matter:
    """Named matter, or a composition of the user's own with its density (g/cm³), checked."""
    from ase.data import atomic_numbers

    if isinstance(composition, str):
        named = lookup(_AMORPHOUS, composition, "composition")
        parts, density = named.parts, named.density if density is None else density
    else:
        parts = dict(composition)
    unknown = [symbol for symbol in parts if symbol not in atomic_numbers]
    if unknown:
        raise ValueError(f"unknown elements {unknown} in composition: expected symbols such as 'C' or 'Si'")
    values = np.array(list(parts.values()), dtype=float)
    if values.size == 0 or not (np.all(np.isfinite(values)) and np.all(values >= 0) and values.sum() > 0):
        raise ValueError(f"composition={composition} must map symbols to positive numbers of atoms")
    if density is None:
        raise ValueError("density_g_cm3 is needed with a composition of your own, e.g. density_g_cm3=2.2")
    if not (math.isfinite(density) and density > 0):
        raise ValueError(f"density_g_cm3={density} must be positive")
    return Matter(parts, float(density))


def unit_cell(name: str) -> Atoms:
    """Orthogonal unit cell of a named crystal."""
    from ase.spacegroup import crystal as ase_crystal

    entry = lookup(CRYSTALS, name, "crystal")
    unit = ase_crystal(entry.symbols, entry.basis, spacegroup=entry.spacegroup, cellpar=entry.cell)
    unit.info.clear()
    for key in set(unit.arrays) - {"numbers", "positions"}:
        del unit.arrays[key]
    if entry.cell[5] == 120:
        # a hexagonal lattice is a centred rectangular one: a by √3 a
        side, height = entry.cell[0], entry.cell[2]
        unit = unit.repeat((1, 2, 1))
        unit.set_cell([side, math.sqrt(3) * side, height])
        unit.wrap()
    return unit


def lookup(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """The entry, or an error that lists the names there are."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(map(repr, table))}")
    return table[name]
