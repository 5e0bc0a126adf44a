"""Model specimens for simulation: amorphous, semi-crystalline and crystalline matter as ASE atoms.

All cells are orthogonal and periodic, with the beam along z and the origin at a corner; ASE's x is the scan's
``scan_x`` and ASE's y the scan's ``scan_y``. Fields are given as one length or as ``(y, x)``, like everything in
misr. Amorphous matter is a random packing of hard spheres: it has the density and the composition of the real
thing and no bonds, which is what a phase image at 1 Å or worse can tell of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from misr._materials import CRYSTALS, Matter, lookup, matter_of, unit_cell

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["amorphous_atoms", "crystalline_atoms", "semicrystalline_atoms"]

_DALTON_PER_A3 = 0.602214076  # 1 g/cm³ in Da/Å³
_DENSEST = 0.33  # volume fraction of spheres: random sequential addition jams at 0.38
_MOST_ROUNDS = 400
_NEAR = 0.1  # a square field may be this much off the wanted one
_MOST_STRAIN = 0.01


def amorphous_atoms(
    *,
    field_A: float | tuple[float, float] = 64.0,
    thickness_A: float = 30.0,
    composition: str | Mapping[str, float] = "protein",
    density_g_cm3: float | None = None,
    min_distance_A: float = 1.4,
    rng: Any = None,
) -> Atoms:
    """Amorphous slab: atoms at random, none closer than a minimum distance, periodic along all three axes.

    Parameters
    ----------
    field_A : float or (float, float), default 64
        Size of the field, Å; ``(y, x)`` if not square.
    thickness_A : float, default 30
        Along the beam, Å.
    composition : {"protein", "carbon", "silica"} or mapping, default "protein"
        A named matter, or numbers (or fractions) of atoms, such as ``{"Si": 1, "O": 2}``. Protein is the average
        residue, hydrogen included (Senko et al. 1995), at 1.35 g/cm³ (Fischer et al. 2004); carbon 2.0 g/cm³
        (evaporated films, Robertson 1986); silica 2.20 g/cm³ (Mozzi & Warren 1969).
    density_g_cm3 : float, optional
        Needed with a mapping.
    min_distance_A : float, default 1.4
        No two atoms are closer than this, over the periodic boundaries too.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    ase.Atoms
        Cell ``(x, y, z)`` of the wanted size.

    Raises
    ------
    ValueError
        For an unknown composition, sizes that are not positive, or a density too high for the distance.

    Examples
    --------
    >>> atoms = amorphous_atoms(field_A=20, thickness_A=10, composition="carbon", rng=0)
    >>> len(atoms), atoms.cell.lengths().tolist()
    (401, [20.0, 20.0, 10.0])
    """
    from ase import Atoms

    generator = np.random.default_rng(rng)
    lengths = _box(field_A, thickness_A)
    matter = matter_of(composition, density_g_cm3)
    symbols = _draw_symbols(matter, float(np.prod(lengths)), generator)
    positions = _pack(lengths, len(symbols), min_distance_A, generator)
    return Atoms(symbols, positions=positions, cell=lengths, pbc=True)


def semicrystalline_atoms(
    *,
    field_A: float | tuple[float, float] = 64.0,
    thickness_A: float = 24.0,
    crystal: str = "zeolite",
    crystallite_A: float | None = None,
    matrix: str | Mapping[str, float] = "silica",
    density_g_cm3: float | None = None,
    orientation: str = "zone",
    place: str = "random",
    min_distance_A: float = 1.4,
    rng: Any = None,
) -> Atoms:
    """A crystallite in amorphous matter: by default the zeolite LTA in silica glass.

    The crystallite is a cylinder through the whole slab. No matrix atom lies in it, or closer to one of its atoms
    than the minimum distance.

    Parameters
    ----------
    field_A : float or (float, float), default 64
        Size of the field, Å; ``(y, x)`` if not square.
    thickness_A : float, default 24
        Along the beam, Å.
    crystal : {"zeolite", "perovskite", "MoS2"}
        See `crystalline_atoms`.
    crystallite_A : float, optional
        Diameter, Å; 60 % of the shorter side when not given.
    matrix : str or mapping, default "silica"
        Composition of the amorphous matter, as in `amorphous_atoms`.
    density_g_cm3 : float, optional
        Density of the matrix; needed with a mapping.
    orientation : {"zone", "random"}
        ``"zone"``: the crystal's c axis along the beam, turned about it by a random angle; ``"random"``: any
        direction.
    place : {"random", "centre"}
        Where in the field: ``"random"`` may wrap over its borders, as the field is periodic. One seed makes the same
        crystallite in either place.
    min_distance_A : float, default 1.4
        Between atoms of the matrix, and between these and the crystal's.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    ase.Atoms
        Cell of exactly the wanted size. ``atoms.arrays["crystallite"]`` is True for the crystal's atoms;
        ``atoms.info["crystallite_centre_A"]`` is its ``(y, x)``.

    Raises
    ------
    ValueError
        For unknown names, or a crystallite that does not fit into the field.

    Examples
    --------
    >>> atoms = semicrystalline_atoms(field_A=30, thickness_A=12, crystallite_A=20, rng=0)
    >>> atoms.arrays["crystallite"].any(), atoms.arrays["crystallite"].all()
    (True, False)
    """
    if place not in ("random", "centre"):
        raise ValueError(f"unknown place {place!r}: expected 'random' or 'centre'")
    generator = np.random.default_rng(rng)
    lengths = _box(field_A, thickness_A)
    shortest = float(lengths[:2].min())
    diameter = 0.6 * shortest if crystallite_A is None else float(crystallite_A)
    if not 0 < diameter <= shortest:
        raise ValueError(f"crystallite_A={diameter:g} must be positive and fit into the field of {shortest:g} Å")
    glass = amorphous_atoms(
        field_A=(lengths[1], lengths[0]),
        thickness_A=thickness_A,
        composition=matrix,
        density_g_cm3=density_g_cm3,
        min_distance_A=min_distance_A,
        rng=generator,
    )
    fraction = generator.random(2)  # drawn in any case, so that the place changes nothing else
    centre = lengths[:2] * (0.5 if place == "centre" else fraction)
    grain = _grain(unit_cell(crystal), diameter / 2, float(lengths[2]), orientation, generator)
    grain.positions[:, :2] = (grain.positions[:, :2] + centre) % lengths[:2]
    glass = glass[_outside(glass.positions, grain.positions, lengths, centre, diameter / 2, min_distance_A)]
    glass.set_array("crystallite", np.zeros(len(glass), dtype=bool))
    grain.set_array("crystallite", np.ones(len(grain), dtype=bool))
    atoms = glass + grain
    atoms.info["crystallite_centre_A"] = (float(centre[1]), float(centre[0]))
    return atoms


def crystalline_atoms(
    name: str = "MoS2",
    *,
    field_A: float | tuple[float, float] = 64.0,
    thickness_A: float | None = None,
    vacancies: float = 0.0,
    square: bool = False,
    rng: Any = None,
) -> Atoms:
    """A single crystal along its c axis, repeated to about the wanted field.

    The field of a periodic crystal is a whole number of unit cells: each side is the nearest such length to the
    wanted one, so the field differs a little from it and need not be square. Read it from
    ``atoms.cell.lengths()``, which is in ``(x, y, z)``. A field that is not square gives scan steps and detector
    pixels that are not, which the references (py4DSTEM) refuse: for them ask for ``square=True``.

    Parameters
    ----------
    name : {"MoS2", "zeolite", "perovskite"}
        2H-MoS₂ (Schutte et al. 1987), pure-silica LTA (ITQ-29, Corma et al. 2004) or cubic CsPbBr₃ (Møller 1958).
    field_A : float or (float, float), default 64
        About this field, Å; ``(y, x)`` if not square.
    thickness_A : float, optional
        About this thickness, Å, at least one layer; when not given a monolayer of MoS₂, 24 Å of the others.
    vacancies : float, default 0
        Fraction of the anions (S, O, Br) taken away at random; the number is rounded.
    square : bool, default False
        Strain the crystal to an exactly square field of the same area, that of the least strain within 10 % (or half
        a unit cell) of the wanted one. Only MoS₂ needs strain: 0.52 % at 40 Å (a field of 38.1 Å), 0.14 % at 64 Å
        (60.1 Å); stretched along one axis, squeezed along the other.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7), used for the vacancies alone.

    Returns
    -------
    ase.Atoms
        Orthogonal periodic cell. ``atoms.info["strain_y"]`` and ``["strain_x"]`` are the strains, 0 unless ``square``.

    Raises
    ------
    ValueError
        For an unknown name, sizes that are not positive, a fraction outside 0 to 1, or no square field near the
        wanted one with a strain of 1 % or less.

    Examples
    --------
    >>> sheet = crystalline_atoms("MoS2", field_A=20, vacancies=0.05, rng=0)
    >>> sheet.get_chemical_formula(), sheet.cell.lengths().round(2).tolist()
    ('Mo48S91', [18.96, 21.9, 6.15])
    >>> sheet = crystalline_atoms("MoS2", field_A=40, square=True)
    >>> sheet.cell.lengths().round(2).tolist(), round(sheet.info["strain_x"], 4), round(sheet.info["strain_y"], 4)
    ([38.12, 38.12, 6.15], 0.0052, -0.0051)
    """
    if not 0 <= vacancies <= 1:
        raise ValueError(f"vacancies={vacancies} must be a fraction between 0 and 1")
    crystal = lookup(CRYSTALS, name, "crystal")
    lengths = _box(field_A, crystal.thickness if thickness_A is None else thickness_A)
    unit = unit_cell(name)
    cell = unit.cell.lengths()
    layer = cell[2] / crystal.layers
    n_layers = max(1, round(lengths[2] / layer))
    if square:
        n_x, n_y = _square_repeats(name, lengths, cell)
    else:
        n_x, n_y = (max(1, round(length / side)) for length, side in zip(lengths[:2], cell[:2], strict=True))
    atoms = unit.repeat((n_x, n_y, math.ceil(n_layers / crystal.layers)))
    atoms = atoms[atoms.positions[:, 2] < n_layers * layer - 1e-6]
    own = np.array([n_x, n_y]) * cell[:2]
    sides = np.full(2, math.sqrt(own[0] * own[1])) if square else own
    atoms.positions[:, :2] *= sides / own
    atoms.set_cell([*sides, n_layers * layer])
    atoms.info["strain_x"], atoms.info["strain_y"] = (sides / own - 1).tolist()
    candidates = np.flatnonzero(np.asarray(atoms.get_chemical_symbols()) == crystal.vacancy)
    missing = np.random.default_rng(rng).choice(candidates, round(vacancies * len(candidates)), replace=False)
    return atoms[np.setdiff1d(np.arange(len(atoms)), missing)]


def _box(field_A: float | tuple[float, float], thickness_A: float) -> np.ndarray:
    """Cell lengths (x, y, z) from a field (y, x) and a thickness."""
    field_y, field_x = np.broadcast_to(np.asarray(field_A, dtype=float), (2,))
    lengths = np.array([field_x, field_y, thickness_A], dtype=float)
    if not (np.all(np.isfinite(lengths)) and np.all(lengths > 0)):
        raise ValueError(f"field_A={field_A} and thickness_A={thickness_A} must be positive lengths in Å")
    return lengths


def _square_repeats(name: str, lengths: np.ndarray, cell: np.ndarray) -> tuple[int, int]:
    """Repeats (x, y) of the least strain to a square among those near the wanted field, the nearest if equal."""
    wanted = float(lengths[0])
    if lengths[1] != wanted:
        raise ValueError(f"square=True with field_A={(float(lengths[1]), wanted)}: give one length, e.g. {wanted:g}")
    n_x, n_y = np.meshgrid(*(np.arange(1, math.ceil(2 * wanted / side) + 20) for side in cell[:2]))
    side = np.sqrt(n_x * cell[0] * n_y * cell[1])
    strain = np.abs(np.log(n_x * cell[0] / (n_y * cell[1]))) / 2
    reach = max(_NEAR * wanted, float(cell[:2].max()) / 2)
    fit = (np.abs(side - wanted) <= reach) & (strain <= _MOST_STRAIN)
    if not fit.any():
        squares = np.unique(side[strain <= _MOST_STRAIN].round(1))
        nearest = squares[np.argsort(np.abs(squares - wanted))[:2]]
        raise ValueError(
            f"{name} has no square field near {wanted:g} Å with a strain of {_MOST_STRAIN:.0%} or less: give "
            f"field_A={' or '.join(f'{one:g}' for one in sorted(nearest))}, or square=False"
        )
    best = min(zip(*np.nonzero(fit), strict=True), key=lambda at: (round(strain[at], 6), abs(side[at] - wanted)))
    return int(n_x[best]), int(n_y[best])


def _draw_symbols(matter: Matter, volume: float, generator: np.random.Generator) -> list[str]:
    """Symbols of the atoms in a volume (Å³), shuffled; each element's number is rounded."""
    from ase.data import atomic_masses, atomic_numbers

    symbols = list(matter.parts)
    fractions = np.array([matter.parts[symbol] for symbol in symbols], dtype=float)
    fractions /= fractions.sum()
    masses = np.array([atomic_masses[atomic_numbers[symbol]] for symbol in symbols])
    total = matter.density * _DALTON_PER_A3 * volume / float(fractions @ masses)
    counts = np.rint(fractions * total).astype(int)
    if counts.sum() == 0:
        raise ValueError(f"a volume of {volume:.3g} Å³ holds no atom at {matter.density:g} g/cm³: enlarge the field")
    return [str(symbol) for symbol in generator.permutation(np.repeat(symbols, counts))]


def _pack(lengths: np.ndarray, number: int, distance: float, generator: np.random.Generator) -> np.ndarray:
    """Random sequential addition in a periodic box, many candidates at a time."""
    from scipy.spatial import cKDTree

    if not (math.isfinite(distance) and 0 <= distance < lengths.min() / 2):
        raise ValueError(f"min_distance_A={distance:g} must lie between 0 and half the box {lengths.min() / 2:g} Å")
    filled = number * math.pi / 6 * distance**3 / float(np.prod(lengths))
    if filled > _DENSEST:
        raise ValueError(
            f"{number} atoms {distance:g} Å apart would fill {filled:.0%} of the box, random packing reaches "
            f"{_DENSEST:.0%}: lower density_g_cm3 or min_distance_A"
        )
    placed = np.empty((0, 3))
    for _ in range(_MOST_ROUNDS):
        missing = number - len(placed)
        if missing == 0:
            return placed
        fresh = np.minimum(generator.random((missing + missing // 2 + 8, 3)) * lengths, np.nextafter(lengths, 0))
        if len(placed):
            near, _index = cKDTree(placed, boxsize=lengths).query(fresh, distance_upper_bound=distance)
            fresh = fresh[np.isinf(near)]
        pairs = cKDTree(fresh, boxsize=lengths).query_pairs(distance, output_type="ndarray")
        # of two candidates too near each other the later one goes, even where its rival goes too
        keep = np.ones(len(fresh), dtype=bool)
        keep[pairs.max(axis=1)] = False
        placed = np.concatenate([placed, fresh[keep][:missing]])
    raise ValueError(
        f"only {len(placed)} of {number} atoms found room {distance:g} Å apart: lower density_g_cm3 or min_distance_A"
    )


def _grain(unit: Atoms, radius: float, thickness: float, orientation: str, generator: np.random.Generator) -> Atoms:
    """A cylinder of crystal about x = y = 0 from z = 0 to the thickness, turned at random."""
    from scipy.spatial.transform import Rotation

    if orientation not in ("zone", "random"):
        raise ValueError(f"unknown orientation {orientation!r}: expected 'zone' or 'random'")
    if orientation == "zone":
        turn = Rotation.from_euler("z", generator.uniform(0, 2 * math.pi))
    else:
        turn = Rotation.from_quat(generator.normal(size=4))  # uniform over all orientations
    cell = unit.cell.lengths()
    reach = math.hypot(radius, thickness / 2)
    big = unit.repeat([2 * math.ceil(reach / side) + 1 for side in cell])
    # the lattice's own origin is random too, so that seeds differ in more than the angle
    offset = big.cell.lengths() / 2 + (generator.random(3) - 0.5) * cell
    big.positions = turn.apply(big.positions - offset)
    big.positions[:, 2] += thickness / 2
    x, y, z = big.positions.T
    return big[(np.hypot(x, y) <= radius) & (z >= 0) & (z < thickness)]


def _outside(
    glass: np.ndarray,
    grain: np.ndarray,
    lengths: np.ndarray,
    centre: np.ndarray,
    radius: float,
    distance: float,
) -> np.ndarray:
    """Which matrix atoms lie outside the cylinder and not too near the crystal's atoms."""
    from scipy.spatial import cKDTree

    apart = glass[:, :2] - centre
    apart -= lengths[:2] * np.rint(apart / lengths[:2])
    outside = np.hypot(*apart.T) > radius
    if len(grain):
        inside = np.minimum(grain % lengths, np.nextafter(lengths, 0))
        near, _index = cKDTree(inside, boxsize=lengths).query(glass, distance_upper_bound=distance)
        outside &= np.isinf(near)
    return outside
