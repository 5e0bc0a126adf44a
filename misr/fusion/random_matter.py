"""Random matter without a lattice: compositions, soft packings, folded chains, clusters, and shapes of specimens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from misr.fusion.random_families import core_distance, draw_elements, fits_split, masses, spheres

__all__ = [
    "SURFACE_A",
    "RandomMatter",
    "chain_centres",
    "cluster",
    "convex_shape",
    "near_pairs",
    "pack_softly",
    "random_matter",
    "residue_atoms",
    "smooth_field",
    "within",
]

SURFACE_A = 0.36  # atoms keep this from both surfaces: they stay 0.7 Å apart even where z is taken as periodic
_DALTON_PER_A3 = 0.602214076  # 1 g/cm³ in Da/Å³
_DENSITIES = (0.5, 12.0)  # g/cm³
_MOST_DRAWS = 3000
_SHARE = 50  # compositions are drawn in steps of 1/50
_CLASSES = {"organic": 0.2, "protein": 0.15, "carbon": 0.1, "ice": 0.1, "oxide": 0.2, "alloy": 0.05, "any": 0.2}
_RISE_A, _HELIX_RADIUS_A, _HELIX_TURN = 1.5, 2.3, math.radians(100)  # α helix (Pauling, Corey & Branson 1951)
_FRESH = 3  # rounds of pushing with the same neighbours
_WAYS = 12  # ways to go on that a chain tries
_STEP_A = 3.8  # between Cα atoms


class RandomMatter(NamedTuple):
    numbers: np.ndarray  # (element,)
    shares: np.ndarray  # (element,), sum 1
    density_g_cm3: float
    family: str

    @property
    def per_A3(self) -> float:
        """Atoms per Å³."""
        return self.density_g_cm3 * _DALTON_PER_A3 / float(self.shares @ masses()[self.numbers])

    @property
    def core_A(self) -> float:
        """Hard core that a random packing of this density still has room for."""
        wanted = float(self.shares @ core_distance(self.numbers, self.numbers))
        return min(wanted, 0.85 * self.per_A3 ** (-1 / 3))

    def draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        """Atomic numbers of so many atoms."""
        return generator.choice(self.numbers, number, p=self.shares)


def random_matter(
    generator: np.random.Generator, split: str, *, kind: str | None = None, elements: np.ndarray | None = None
) -> RandomMatter:
    """An amorphous matter of the split: organic, protein-like, carbon, ice with solutes, oxide, alloy or any.

    With ``elements`` it is made of these and, now and then, of another one (a crystal turned amorphous).

    Raises
    ------
    RuntimeError
        If none was found, which has not been seen.
    """
    if kind is None:
        kind = str(generator.choice(list(_CLASSES), p=list(_CLASSES.values())))
    for _ in range(_MOST_DRAWS):
        parts, density = _draft(generator, kind) if elements is None else _alike(generator, elements)
        numbers = np.array(list(parts))
        shares = np.rint(np.array(list(parts.values())) / sum(parts.values()) * _SHARE)
        numbers, shares = numbers[shares > 0], shares[shares > 0]
        if len(numbers) == 0 or (kind == "oxide" and len(numbers) < 2):
            continue
        family = _family(numbers, shares)
        shares = shares / shares.sum()
        if density is None:
            room = math.exp(generator.uniform(math.log(2.6), math.log(5.0)))
            weight = float(shares @ masses()[numbers])
            density = weight / (room * float(shares @ spheres(numbers)) * _DALTON_PER_A3)
        if _DENSITIES[0] <= density <= _DENSITIES[1] and fits_split(family, split):
            return RandomMatter(numbers, shares, density, family)
    raise RuntimeError(f"no matter for split {split!r} in {_MOST_DRAWS} draws: give another seed")


def _draft(generator: np.random.Generator, kind: str) -> tuple[dict[int, float], float | None]:
    """Atomic numbers with shares, and the density if the class has one of its own."""
    u = generator.uniform
    if kind == "protein":
        return {1: u(0.44, 0.56), 6: u(0.27, 0.35), 7: u(0.06, 0.11), 8: u(0.06, 0.12), 16: u(0, 0.02)}, u(1.2, 1.45)
    if kind == "organic":
        return {1: u(0.2, 0.6), 6: u(0.2, 0.6), 7: u(0, 0.15), 8: u(0, 0.25)}, u(0.9, 1.7)
    if kind == "carbon":
        extra = int(draw_elements(generator, 1, light=True)[0])
        return {extra: u(0, 0.15), 6: u(0.8, 1.0)}, u(1.6, 2.3)
    if kind == "ice":
        solutes = generator.choice([6, 7, 11, 12, 15, 16, 17, 19], 2, replace=False)
        return {1: 2.0, 8: u(1.0, 1.2), **{int(z): u(0, 0.15) for z in solutes}}, u(0.9, 1.05)
    if kind == "oxide":
        cations = draw_elements(generator, int(generator.integers(1, 4)))
        return {**{int(z): u(0.1, 1.0) for z in cations if z != 8}, 8: u(0.3, 4.0)}, None
    if kind == "alloy":
        elements = draw_elements(generator, 6)
        return {int(z): u(0.1, 1.0) for z in elements[elements > 10][:3]}, None
    return {int(z): u(0.05, 1.0) for z in draw_elements(generator, int(generator.integers(2, 6)))}, None


def _alike(generator: np.random.Generator, elements: np.ndarray) -> tuple[dict[int, float], None]:
    """Shares of given elements, with a little of another one."""
    parts = {int(draw_elements(generator, 1)[0]): generator.uniform(0, 0.1)}
    return parts | {int(z): generator.uniform(0.2, 1.0) for z in elements}, None


def _family(numbers: np.ndarray, shares: np.ndarray) -> str:
    from ase.data import chemical_symbols

    order = np.argsort(numbers)
    return "matter " + "".join(f"{chemical_symbols[numbers[i]]}{int(shares[i])}" for i in order)


def pack_softly(points: np.ndarray, box: np.ndarray, distance: float, *, rounds: int = 5) -> np.ndarray:
    """Points pushed apart until few are nearer than ``distance``: periodic in x and y, kept between the surfaces.

    Much faster than random sequential addition and good for higher densities; a few pairs stay somewhat too near.
    """
    points = within(points, box)
    for done in range(rounds):
        if done % _FRESH == 0:  # points move little in a round, so the neighbours are looked up only now and then
            first, second, _length = near_pairs(points, box, 1.25 * distance)
        apart = _offsets(points, first, second, box)
        length = np.maximum(np.sqrt((apart**2).sum(1)), 1e-3)
        push = apart * (0.55 * np.maximum(distance - length, 0) / length)[:, None]
        for axis in range(3):
            points[:, axis] += np.bincount(first, push[:, axis], len(points))
            points[:, axis] -= np.bincount(second, push[:, axis], len(points))
        points = within(points, box)
    return points


def near_pairs(points: np.ndarray, box: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (first, second) nearer than ``distance``, periodic in x and y, and how far apart they are.

    Points near the lower borders are repeated at the upper ones: that is faster than a periodic tree.
    """
    from scipy.spatial import cKDTree

    images, owner, shifted = points, np.arange(len(points)), np.zeros((len(points), 2), dtype=bool)
    for axis in range(2):
        low = images[:, axis] < distance
        copies, sides = images[low].copy(), shifted[low].copy()
        copies[:, axis] += box[axis]
        sides[:, axis] = True
        images, owner = np.concatenate([images, copies]), np.concatenate([owner, owner[low]])
        shifted = np.concatenate([shifted, sides])
    tree = cKDTree(images, leafsize=8, balanced_tree=False)
    first, second = tree.query_pairs(distance, output_type="ndarray").T
    fresh = ~np.any(shifted[first] & shifted[second], axis=1)  # both shifted alike: a pair found elsewhere too
    first, second = first[fresh], second[fresh]
    apart = images[first] - images[second]
    return owner[first], owner[second], np.sqrt((apart**2).sum(1))


def _offsets(points: np.ndarray, first: np.ndarray, second: np.ndarray, box: np.ndarray) -> np.ndarray:
    apart = points[first] - points[second]
    apart[:, :2] -= box[:2] * np.rint(apart[:, :2] / box[:2])
    return apart


def within(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Points wrapped into the field, z kept between the surfaces."""
    wrapped = points.copy()
    wrapped[:, :2] = np.minimum(wrapped[:, :2] % box[:2], np.nextafter(box[:2], 0))
    wrapped[:, 2] = np.clip(wrapped[:, 2], SURFACE_A, box[2] - SURFACE_A)
    return wrapped


def smooth_field(generator: np.random.Generator, box: np.ndarray, *, orders: int = 2) -> Callable[..., np.ndarray]:
    """A slowly varying random function of (x, y), periodic in the field, mean 0 and about within ±1."""
    waves = generator.integers(-orders, orders + 1, (4, 2)) * (2 * math.pi / box[:2])
    phases = generator.uniform(0, 2 * math.pi, 4)
    heights = generator.dirichlet(np.ones(4)) * 1.3

    def value(xy: np.ndarray) -> np.ndarray:
        return np.cos(xy @ waves.T + phases) @ heights

    return value


def convex_shape(
    generator: np.random.Generator, box: np.ndarray, radius: float, centre: np.ndarray | None = None
) -> Callable[..., np.ndarray]:
    """Whether (x, y) lies in a disk or a convex polygon of about this radius, wrapped over the borders."""
    centre = generator.random(2) * box[:2] if centre is None else centre
    sides = int(generator.integers(3, 9))
    corners = np.arange(sides) + generator.uniform(-0.25, 0.25, sides)
    angles = generator.uniform(0, 2 * math.pi) + 2 * math.pi * corners / sides
    normals = np.stack([np.cos(angles), np.sin(angles)])
    limits = radius * generator.uniform(0.7, 1.0, sides)
    is_round = generator.random() < 0.4

    def inside(xy: np.ndarray) -> np.ndarray:
        offset = xy - centre
        offset = offset - box[:2] * np.rint(offset / box[:2])
        if is_round:
            return np.hypot(offset[:, 0], offset[:, 1]) < radius
        return np.all(offset @ normals < limits, axis=1)

    return inside


def chain_centres(generator: np.random.Generator, residues: int, centre: np.ndarray) -> np.ndarray:
    """Cα-like places of a folded chain about ``centre``: helices and loops, self-avoiding as far as it can."""
    from scipy.spatial.distance import cdist

    wanted = 3.0 * (residues * 135.0 / (4 * math.pi) / 9.0) ** (1 / 3)  # radius of 135 Å³ per residue
    places = np.empty((0, 3))
    end = centre + generator.normal(size=3) * wanted * 0.4
    while len(places) < residues:
        length = int(generator.integers(5, 20))
        directions = generator.normal(size=(_WAYS, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        options = end + (_helices if generator.random() < 0.5 else _loops)(generator, directions, length)
        outside = np.maximum(np.linalg.norm(options - centre, axis=-1) - wanted, 0)
        costs = 3.0 * outside.mean(1)
        if len(places):
            separation = cdist(options.reshape(-1, 3), places[-400:]).min(1).reshape(_WAYS, length)
            costs += 6.0 * np.maximum(4.5 - separation, 0).mean(1)
        best = options[int(np.argmin(costs))]
        places = np.concatenate([places, best])
        end = best[-1]
    return places[:residues]


def _loops(generator: np.random.Generator, directions: np.ndarray, length: int) -> np.ndarray:
    """Wandering stretches from the origin, one for each direction: (direction, residue, 3)."""
    steps = directions[:, None] * 0.7 + generator.normal(size=(len(directions), length, 3)) * 0.6
    steps *= _STEP_A / np.linalg.norm(steps, axis=-1)[..., None]
    return np.cumsum(steps, axis=1)


def _helices(generator: np.random.Generator, directions: np.ndarray, length: int) -> np.ndarray:
    """Stretches of helix from the origin, one for each direction: (direction, residue, 3)."""
    across = np.cross(directions, generator.normal(size=3))
    across /= np.linalg.norm(across, axis=1)[:, None]
    upwards = np.cross(directions, across)
    turn = (_HELIX_TURN * np.arange(length))[:, None]
    ring = np.cos(turn) * across[:, None] + np.sin(turn) * upwards[:, None]
    return directions[:, None] * (_RISE_A * (np.arange(length)[:, None] + 2)) + _HELIX_RADIUS_A * ring


def residue_atoms(
    generator: np.random.Generator, centres: np.ndarray, matter: RandomMatter
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of residues about their centres: 5 to 20 of each, to be pushed apart by `pack_softly`."""
    counts = np.maximum(generator.poisson(15.0, len(centres)), 5)
    owner = np.repeat(np.arange(len(centres)), counts)
    offsets = generator.normal(size=(len(owner), 3))
    offsets *= (2.9 * generator.random(len(owner)) ** (1 / 3) / np.linalg.norm(offsets, axis=1))[:, None]
    return centres[owner] + offsets, matter.draw(generator, len(owner))


def cluster(generator: np.random.Generator, elements: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A compact cluster of so many atoms about the origin, no two nearer than their cores."""
    from scipy.spatial.transform import Rotation

    numbers = generator.choice(elements, size)
    core = 1.1 * float(core_distance(elements[:, None], elements).max())
    # the points of a stretched and turned close packing nearest to a point are a compact cluster
    reach = math.ceil(size ** (1 / 3)) + 1
    steps = np.arange(-reach, reach + 1, dtype=float)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    basis = np.array([(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)]) * (core * 1.1 / math.sqrt(2))
    points = Rotation.from_quat(generator.normal(size=4)).apply(grid @ basis)
    shape = generator.uniform(0.7, 1.4, 3)
    order = np.argsort((((points - generator.uniform(-1, 1, 3)) * shape) ** 2).sum(1))[:size]
    chosen = points[order] + generator.normal(0, 0.08, (size, 3)) * core * generator.random()
    return chosen - chosen.mean(0), numbers
