"""Random crystal lattices and the boxes filled with them: dense ones, layered ones and porous frameworks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from misr.fusion.random_families import core_distance, draw_elements, fits_split, masses, spheres

__all__ = ["Lattice", "Setting", "fill_box", "random_lattice", "random_setting"]

_DALTON_PER_A3 = 0.602214076  # 1 g/cm³ in Da/Å³
_DENSITIES = (0.5, 12.0)  # g/cm³
_MOST_DRAWS = 3000
_TRIES = 12  # places tried for one atom of a dense lattice
_IMAGES = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=float)
# operations in the plane of a and b, on fractional coordinates; their powers make the copies
_TURNS = {
    "1": np.diag([1.0, 1.0, 1.0]),
    "2": np.diag([-1.0, -1.0, 1.0]),
    "m": np.diag([-1.0, 1.0, 1.0]),
    "3": np.array([[0.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]),
    "4": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    "6": np.array([[1.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
}
_ORDERS = {"1": 1, "2": 2, "m": 2, "3": 3, "4": 4, "6": 6}
_CENTRINGS = {
    "P": ((0.0, 0.0, 0.0),),
    "I": ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5)),
    "C": ((0.0, 0.0, 0.0), (0.5, 0.5, 0.0)),
    "F": ((0.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5)),
}
_SWAP = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # mirror that suits a = b
_FLIP = np.diag([1.0, 1.0, -1.0])
_CORNERS = np.array([(0.0, 0.0), (0.5, 0.5), (1 / 3, 2 / 3), (0.5, 0.0), (0.25, 0.25)])
_MOST_ATOMS, _MOST_COPIES = 240, 420  # of a framework's cell, kept and before those too near have gone
_ZONES = np.array([(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])


class Lattice(NamedTuple):
    cell: np.ndarray  # (3, 3), rows a, b, c, Å
    basis: np.ndarray  # (atom, 3), fractional
    numbers: np.ndarray  # (atom,)
    family: str
    nearest_A: float  # shortest distance of two atoms
    porous: bool

    @property
    def density_g_cm3(self) -> float:
        return float(masses()[self.numbers].sum() / abs(np.linalg.det(self.cell)) / _DALTON_PER_A3)


class Setting(NamedTuple):
    """How a lattice stands in the field."""

    vectors: np.ndarray  # (3, 3), rows a, b, c as turned and strained, Å
    column: np.ndarray | None  # unit vector of the atom columns near the beam, None for an arbitrary orientation
    zone: tuple[int, int, int] | None


def random_lattice(
    generator: np.random.Generator, split: str, *, porous: bool | None = None, height_A: float = math.inf
) -> Lattice:
    """A lattice of the split: cells of 3 to 20 Å (porous 10 to 26 Å), 0.5 to 12 g/cm³, hard cores kept.

    Mostly c is at most ``height_A`` (or 5 Å): thin crystals are whole layers.

    Raises
    ------
    RuntimeError
        If no lattice was found, which has not been seen.
    """
    if porous is None:
        porous = generator.random() < 0.35
    highest = max(height_A, 5.0) if generator.random() < 0.85 else math.inf
    for _ in range(_MOST_DRAWS):
        lattice = _framework(generator, split, highest) if porous else _dense(generator, split, highest)
        if lattice is not None and _DENSITIES[0] <= lattice.density_g_cm3 <= _DENSITIES[1]:
            return lattice
    raise RuntimeError(f"no lattice for split {split!r} in {_MOST_DRAWS} draws: give another seed")


def random_setting(
    generator: np.random.Generator, lattice: Lattice, *, zone: bool | None = None, thin: bool = False
) -> Setting:
    """A random orientation: mostly a zone axis along the beam, tilted by up to 3°, turned about it by any angle.

    That axis is mostly c in porous lattices, whose channels run along it, and in ``thin`` layers.
    """
    from scipy.spatial.transform import Rotation

    if zone is None:
        zone = generator.random() < 0.85
    strain = np.clip(generator.normal(0, 0.006, (3, 3)), -0.02, 0.02)
    stretch = np.eye(3) + (strain + strain.T) / 2
    if not zone:
        turn = Rotation.from_quat(generator.normal(size=4)).as_matrix()  # uniform over all orientations
        return Setting(lattice.cell @ turn.T @ stretch, None, None)
    usual = 0.85 if lattice.porous or thin else 0.5
    weights = np.array([usual, *[(1 - usual) / 6] * 6])
    axis = _ZONES[generator.choice(len(_ZONES), p=weights)]
    direction = axis @ lattice.cell
    tilt = math.radians(3.0) * generator.random() ** 2 * (generator.random() < 0.7)
    azimuth, about = generator.uniform(0, 2 * math.pi, 2)
    turn = (
        Rotation.from_rotvec(tilt * np.array([math.cos(azimuth), math.sin(azimuth), 0.0])).as_matrix()
        @ Rotation.from_rotvec([0.0, 0.0, about]).as_matrix()
        @ _upright(direction / np.linalg.norm(direction))
    )
    vectors = lattice.cell @ turn.T @ stretch
    column = axis @ vectors
    return Setting(vectors, column / np.linalg.norm(column), (int(axis[0]), int(axis[1]), int(axis[2])))


def fill_box(
    lattice: Lattice, setting: Setting, low: np.ndarray, high: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of the lattice in the box ``low <= (x, y, z) < high``, a lattice point at ``origin``."""
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(8, 3) - origin
    fractions = corners @ np.linalg.inv(setting.vectors)
    first, last = np.floor(fractions.min(0)).astype(int) - 1, np.ceil(fractions.max(0)).astype(int) + 1
    ranges = [np.arange(a, b, dtype=float) for a, b in zip(first, last, strict=True)]
    offsets = (lattice.basis % 1) @ setting.vectors

    points = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3) @ setting.vectors + origin
    near = np.all((points + offsets.max(0) >= low) & (points + offsets.min(0) < high), axis=1)
    positions = (points[near][:, None] + offsets).reshape(-1, 3)
    numbers = np.tile(lattice.numbers, int(near.sum()))
    inside = np.all((positions >= low) & (positions < high), axis=1)
    return positions[inside], numbers[inside]


def _upright(direction: np.ndarray) -> np.ndarray:
    """Rotation matrix that turns a unit vector to z."""
    x_axis = np.cross([0.0, 1.0, 0.0] if abs(direction[1]) < 0.9 else [1.0, 0.0, 0.0], direction)
    x_axis /= np.linalg.norm(x_axis)
    return np.stack([x_axis, np.cross(direction, x_axis), direction])


def _cell(generator: np.random.Generator, turn: str, volume: float | None, sides: np.ndarray) -> np.ndarray | None:
    """Cell that the turn is a symmetry of, its sides scaled to a volume if there is one."""
    alpha = beta = gamma = 90.0
    if turn in "346":
        sides = np.array([sides[0], sides[0], sides[2]])
        gamma = 90.0 if turn == "4" else 120.0
    elif turn == "2":
        gamma = generator.uniform(60, 120)
    elif turn == "1" and generator.random() < 0.5:
        alpha, beta, gamma = generator.uniform(65, 115, 3)
    ca, cb, cg = np.cos(np.radians([alpha, beta, gamma]))
    factor = 1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg
    if factor < 0.2:
        return None
    sg = math.sin(math.radians(gamma))
    unit = np.array([[1.0, 0.0, 0.0], [cg, sg, 0.0], [cb, (ca - cb * cg) / sg, math.sqrt(factor) / sg]])
    if volume is not None:
        sides = sides * (volume / (sides.prod() * math.sqrt(factor))) ** (1 / 3)
    return unit * sides[:, None]


def _family(cell: np.ndarray, elements: np.ndarray, kind: str) -> str:
    """Name of a lattice's family: sides in half Å, angles in steps of 5°, the elements."""
    from ase.data import chemical_symbols

    lengths = np.linalg.norm(cell, axis=1)
    unit = cell / lengths[:, None]
    angles = np.degrees(np.arccos(np.clip([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]], -1, 1)))
    sides = "-".join(f"{0.5 * round(2 * length):.1f}" for length in lengths)
    corners = "-".join(str(5 * round(angle / 5)) for angle in angles)
    return f"{kind} {sides} {corners} {','.join(sorted(chemical_symbols[z] for z in elements))}"


def _orbit(places: np.ndarray, turn: str, centring: str = "P") -> np.ndarray:
    """All copies of places (n, 3): (copy, n, 3)."""
    copies = [np.linalg.matrix_power(_TURNS[turn], power) for power in range(_ORDERS[turn])]
    shifts = np.array(_CENTRINGS[centring])
    turned = np.stack([places @ matrix.T for matrix in copies])
    return ((turned[:, None] + shifts[None, :, None]) % 1).reshape(-1, *places.shape)


def _distances(first: np.ndarray, second: np.ndarray, cell: np.ndarray, *, same: bool = False) -> np.ndarray:
    """Shortest distances (n, m) of fractional places over the images of the cell; ``same``: to others than itself."""
    apart = first[:, None] - second
    apart = ((apart - np.rint(apart))[:, :, None] + _IMAGES) @ cell
    squared = (apart**2).sum(-1)
    if same:
        diagonal = np.arange(len(first))
        squared[diagonal, diagonal, np.argmin((_IMAGES**2).sum(1))] = np.inf
    return np.sqrt(squared.min(-1))


def _finish(cell: np.ndarray, places: np.ndarray, numbers: np.ndarray, family: str, porous: bool) -> Lattice:
    nearest = float(_distances(places, places, cell, same=True).min())
    return Lattice(cell, places, numbers, family, nearest, porous)


def _dense(generator: np.random.Generator, split: str, highest: float) -> Lattice | None:
    """1 to 10 atoms and their symmetry copies at random, special or general places, none too near another."""
    turn = str(generator.choice(list(_TURNS), p=[0.35, 0.1, 0.1, 0.1, 0.2, 0.15]))
    centring = str(generator.choice(list(_CENTRINGS), p=[0.6, 0.15, 0.1, 0.15]))
    if turn in "36":
        centring = "P"
    number = int(generator.integers(1, 11))
    elements = draw_elements(generator, int(generator.integers(1, min(4, number) + 1)))
    numbers = np.concatenate([elements, generator.choice(elements, number - len(elements))])
    special = generator.random() < 0.6
    copies = len(_CENTRINGS[centring]) * (1 + (_ORDERS[turn] - 1) * (0.5 if special else 1.0))
    room = math.exp(generator.uniform(math.log(2.0), math.log(7.0)))
    volume = room * copies * float(spheres(numbers).sum())
    cell = _cell(generator, turn, volume, np.exp(generator.normal(0, 0.35, 3)))
    if cell is None:
        return None
    lengths = np.linalg.norm(cell, axis=1)
    family = _family(cell, elements, "lattice")
    if lengths.min() < 3 or lengths.max() > 20 or lengths[2] > highest or not fits_split(family, split):
        return None
    places, kept = np.empty((0, 3)), np.empty(0, dtype=int)
    for z in numbers:
        found = _place(generator, int(z), places, kept, cell, turn, centring, special)
        places = np.concatenate([places, found])
        kept = np.concatenate([kept, np.full(len(found), z)])
    crowded = len(kept) == 0 or abs(np.linalg.det(cell)) < 1.7 * spheres(kept).sum()
    return None if crowded else _finish(cell, places, kept, family, False)


def _place(
    generator: np.random.Generator, z: int, places: np.ndarray, kept: np.ndarray, cell: np.ndarray, turn: str,
    centring: str, special: bool,
) -> np.ndarray:  # fmt: skip
    """Orbit of one more atom that keeps its distance from the others and from its own copies, or nothing."""
    own = float(core_distance(np.array(z), np.array(z)))
    tries = generator.random((_TRIES, 3))
    if special:
        steps = generator.choice([2, 4] if turn not in "36" else [2, 3], _TRIES)[:, None]
        snapped = generator.random((_TRIES, 3)) < 0.6
        tries = np.where(snapped, np.rint(tries * steps) / steps, tries)
    for place in tries:
        orbit = _orbit(place[None], turn, centring)[:, 0]
        alike = _distances(orbit, orbit, cell) < 0.05
        orbit = orbit[~np.any(np.tril(alike, -1), axis=1)]
        if _distances(orbit, orbit, cell, same=True).min() < own:
            continue
        if len(kept) and np.any(_distances(orbit, places, cell) < core_distance(np.array(z), kept)):
            continue
        return orbit
    return np.empty((0, 3))


def _framework(generator: np.random.Generator, split: str, highest: float) -> Lattice | None:
    """Clusters at a few places of a large cell, joined by thin chains, with empty channels between."""
    turn = str(generator.choice(list(_TURNS), p=[0.05, 0.15, 0.15, 0.15, 0.25, 0.25]))
    flat = generator.random() < 0.3  # one sheet per cell, as in layered frameworks
    tall = (3.3, 5.0) if flat else (4.5, max(4.6, min(20.0, highest)))
    sides = np.exp(generator.uniform(np.log([10.0, 10.0, tall[0]]), np.log([26.0, 26.0, tall[1]])))
    cell = _cell(generator, turn, None, sides)
    if cell is None:
        return None
    light = draw_elements(generator, int(generator.integers(1, 3)), light=True)
    elements = np.unique(np.concatenate([draw_elements(generator, int(generator.integers(1, 3))), light]))
    family = _family(cell, elements, "framework")
    if not fits_split(family, split):
        return None
    group = _plane_group(generator, turn, flat)
    places, numbers = _skeleton(generator, cell, elements, light, _MOST_COPIES // len(group))
    if flat:
        places[:, 2] = generator.normal(0, 0.3 * generator.random(), len(places)) / sides[2]
    places = _settled(places, numbers, group, cell)
    copies = np.concatenate([places @ matrix.T for matrix in group]) % 1
    kinds = np.tile(numbers, len(group))
    keep = _apart(copies, kinds, cell)
    if not 6 <= len(keep) <= _MOST_ATOMS:
        return None
    return _finish(cell, copies[keep], kinds[keep], family, True)


def _plane_group(generator: np.random.Generator, turn: str, flat: bool) -> list[np.ndarray]:
    """All operations that a turn makes, perhaps with a mirror in the plane and one across the beam."""
    group = [np.linalg.matrix_power(_TURNS[turn], power) for power in range(_ORDERS[turn])]
    if turn in "346" and generator.random() < 0.6:
        group += [_SWAP @ matrix for matrix in group]
    if not flat and generator.random() < 0.4:
        group += [_FLIP @ matrix for matrix in group]
    return group


def _settled(places: np.ndarray, numbers: np.ndarray, group: list[np.ndarray], cell: np.ndarray) -> np.ndarray:
    """Places with every atom that is too near a copy of its own moved onto the element of symmetry between them."""
    limit = core_distance(numbers, numbers)
    for _ in range(4):
        for matrix in group[1:]:
            apart = places @ matrix.T - places
            apart -= np.rint(apart)
            near = np.linalg.norm(apart @ cell, axis=1) < limit
            places = places + 0.5 * near[:, None] * apart
    return places


def _skeleton(
    generator: np.random.Generator, cell: np.ndarray, elements: np.ndarray, light: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of the asymmetric unit and a chain from each to a neighbour, at most so many atoms, fractional."""
    inverse = np.linalg.inv(cell)
    places, numbers = [], []
    centre = generator.random(3)
    for _ in range(int(generator.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
        if generator.random() < 0.6:
            centre[:2] = _CORNERS[generator.integers(len(_CORNERS))]
        size = int(generator.integers(3, 11))
        core = float(core_distance(elements[:, None], elements).max())
        offsets = generator.normal(size=(size, 3))
        offsets *= (0.62 * core * (size * generator.random(size)) ** (1 / 3) / np.linalg.norm(offsets, axis=1))[:, None]
        places.append(centre + offsets @ inverse)
        numbers.append(generator.choice(elements, size))
        # the next cluster, or the same one in a neighbouring cell, lies at the chain's far end
        step = np.array([(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)])[generator.choice(4, p=[0.4, 0.25, 0.15, 0.2])]
        goal = generator.random(3) if generator.random() < 0.4 else centre + step
        if generator.random() < 0.9:
            span = float(np.linalg.norm((goal - centre) @ cell))
            links = max(2, round(span / generator.uniform(1.4, 1.9)))
            along = (np.arange(1, links) / links)[:, None]
            zigzag = generator.normal(0, 0.3, (links - 1, 3)) @ inverse
            places.append(centre + along * (goal - centre) + zigzag)
            numbers.append(generator.choice(light, links - 1))
        centre = goal.astype(float)
    return np.concatenate(places)[:most], np.concatenate(numbers)[:most]


def _apart(places: np.ndarray, numbers: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Indices of atoms left when of every two too near each other the later one goes."""
    from scipy.spatial import cKDTree

    images = (places[:, None] + _IMAGES).reshape(-1, 3)
    owner = np.repeat(np.arange(len(places)), len(_IMAGES))
    shown = np.all(np.abs(images - 0.5) < 0.5 + 3.5 / np.linalg.norm(cell, axis=1).min(), axis=1)
    images, owner = images[shown] @ cell, owner[shown]
    first, second = cKDTree(images).query_pairs(2.2, output_type="ndarray").T
    distance = np.linalg.norm(images[first] - images[second], axis=1)
    first, second = owner[first], owner[second]
    near = distance < core_distance(numbers[first], numbers[second])
    low, high = np.minimum(first, second)[near], np.maximum(first, second)[near]
    keep = np.ones(len(places), dtype=bool)
    for index in np.unique(high):
        keep[index] = not np.any(keep[low[high == index]])  # one too near its own image goes as well
    return np.flatnonzero(keep)
