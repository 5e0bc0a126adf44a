"""Model specimens: density, distances, bonds and seeds."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from misr.specimens import amorphous_atoms, crystalline_atoms, semicrystalline_atoms

DALTON_PER_A3 = 0.602214076


def density(atoms):
    return atoms.get_masses().sum() / atoms.cell.volume / DALTON_PER_A3


def closest(atoms):
    lengths = atoms.cell.lengths()
    tree = cKDTree(np.mod(atoms.positions, lengths), boxsize=lengths)
    return tree.query(tree.data, k=2)[0][:, 1].min()


def neighbours(atoms, symbol, radius):
    """Distances to, and symbols of, the atoms within a radius of each atom of one element."""
    distances = atoms.get_all_distances(mic=True)
    symbols = np.asarray(atoms.get_chemical_symbols())
    rows = distances[symbols == symbol]
    return [(row[(row > 0) & (row < radius)], symbols[(row > 0) & (row < radius)]) for row in rows]


@pytest.mark.parametrize(("composition", "expected"), [("protein", 1.35), ("carbon", 2.0), ("silica", 2.2)])
def test_amorphous_density_and_distance(composition, expected):
    atoms = amorphous_atoms(field_A=(24, 36), thickness_A=20, composition=composition, rng=3)
    assert atoms.cell.lengths().tolist() == [36, 24, 20]
    assert atoms.cell.orthorhombic
    assert atoms.pbc.all()
    assert density(atoms) == pytest.approx(expected, rel=0.005)
    assert closest(atoms) >= 1.4
    assert (atoms.positions >= 0).all()
    assert (atoms.positions < atoms.cell.lengths()).all()


def test_amorphous_matter_fills_the_field_evenly():
    atoms = amorphous_atoms(field_A=60, thickness_A=20, composition="carbon", rng=0)
    counts, *_ = np.histogram2d(*atoms.positions[:, :2].T, bins=3, range=[[0, 60]] * 2)
    # hard spheres are more even than independent ones, whose spread is sqrt(n)
    assert np.abs(counts - counts.mean()).max() < 4 * np.sqrt(counts.mean())


def test_protein_has_the_mean_residue():
    numbers = amorphous_atoms(field_A=40, rng=0).symbols.formula.count()
    assert numbers["H"] / numbers["C"] == pytest.approx(7.7583 / 4.9384, rel=0.01)
    assert numbers["N"] / numbers["O"] == pytest.approx(1.3577 / 1.4773, rel=0.02)
    assert numbers["S"] > 0


def test_elements_are_mixed():
    atoms = amorphous_atoms(field_A=40, composition="silica", rng=0)
    left = atoms[atoms.positions[:, 0] < 20]
    assert np.mean(left.numbers == 14) == pytest.approx(1 / 3, abs=0.04)


def test_own_composition():
    atoms = amorphous_atoms(
        field_A=20,
        thickness_A=20,
        composition={"B": 0.4, "N": 0.6},
        density_g_cm3=1.0,
        min_distance_A=2.0,
        rng=0,
    )
    assert density(atoms) == pytest.approx(1.0, rel=0.01)
    assert closest(atoms) >= 2.0
    assert np.mean(atoms.numbers == 5) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("make", [amorphous_atoms, semicrystalline_atoms, crystalline_atoms])
def test_seeds(make):
    options = {"vacancies": 0.1} if make is crystalline_atoms else {}
    one, same, other = (make(field_A=30, thickness_A=12, rng=seed, **options) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    generator = np.random.default_rng(0)
    assert make(field_A=30, thickness_A=12, rng=generator, **options) == one
    assert make(field_A=30, thickness_A=12, rng=generator, **options) != one


@pytest.mark.parametrize(
    ("name", "centre", "radius", "number", "bond", "mass"),
    [
        ("MoS2", "Mo", 2.7, 6, (2.35, 2.45), 5.0),
        ("zeolite", "Si", 1.8, 4, (1.55, 1.65), 1.43),
        ("perovskite", "Pb", 3.2, 6, (2.9, 3.0), 4.75),
    ],
)
def test_crystals_have_the_right_bonds(name, centre, radius, number, bond, mass):
    atoms = crystalline_atoms(name, field_A=24, thickness_A=24)
    assert atoms.cell.orthorhombic
    assert density(atoms) == pytest.approx(mass, rel=0.02)
    for distances, symbols in neighbours(atoms, centre, radius):
        assert len(distances) == number
        assert bond[0] < distances.min() <= distances.max() < bond[1]
        assert len(set(symbols)) == 1


def test_field_is_the_nearest_whole_number_of_cells():
    atoms = crystalline_atoms("perovskite", field_A=(40, 62), thickness_A=20)
    np.testing.assert_allclose(atoms.cell.lengths(), [11 * 5.874, 7 * 5.874, 3 * 5.874])
    np.testing.assert_allclose(atoms.cell.lengths()[:2], [62, 40], atol=5.874 / 2)


@pytest.mark.parametrize("name", ["MoS2", "zeolite", "perovskite"])
@pytest.mark.parametrize("field", [40.0, 64.0])
def test_square_fields_take_little_strain(name, field):
    atoms, free = (crystalline_atoms(name, field_A=field, thickness_A=12, square=square) for square in (True, False))
    x, y, z = atoms.cell.lengths()
    assert x == y == pytest.approx(field, rel=0.12)
    assert z == free.cell.lengths()[2]
    strains = [atoms.info["strain_y"], atoms.info["strain_x"]]
    assert np.abs(strains).max() < 0.01
    assert (free.info["strain_y"], free.info["strain_x"]) == (0.0, 0.0)
    if name == "MoS2":
        assert strains[0] * strains[1] < 0
        side = 3.1604 * (1 + strains[1])
        assert x / side == pytest.approx(round(x / side), abs=1e-9)
        assert y / (3.1604 * np.sqrt(3) * (1 + strains[0])) == pytest.approx(round(y / side / np.sqrt(3)), abs=1e-9)
    else:
        assert strains == [0.0, 0.0]
    # the atoms go with the cell: the same density and bonds over its borders
    assert density(atoms) == pytest.approx(density(free), rel=1e-6)
    assert closest(atoms) == pytest.approx(closest(free), rel=0.01)


def test_square_field_of_least_strain():
    fields = {40.0: (12, 7), 64.0: (19, 11)}
    for field, repeats in fields.items():
        sides = np.array(repeats) * 3.1604 * [1, np.sqrt(3)]
        sheet = crystalline_atoms("MoS2", field_A=field, square=True)
        assert sheet.cell.lengths()[0] == pytest.approx(np.sqrt(np.prod(sides)))
        assert len(sheet) == 6 * np.prod(repeats)
    with pytest.raises(ValueError, match=r"field_A=22 or 38\.1,"):
        crystalline_atoms("MoS2", field_A=30, square=True)
    assert crystalline_atoms("MoS2", field_A=38.1, square=True).cell.lengths()[0] == pytest.approx(38.1, abs=0.05)


@pytest.mark.parametrize(("thickness", "layers"), [(None, 1), (12.3, 2), (18.0, 3)])
def test_layers_of_mos2(thickness, layers):
    atoms = crystalline_atoms("MoS2", field_A=20, thickness_A=thickness)
    heights = np.unique(atoms.positions[atoms.numbers == 42, 2].round(3))
    assert len(heights) == layers
    np.testing.assert_allclose(np.diff(heights), 12.295 / 2, atol=1e-3)
    assert atoms.symbols.formula.count() == {"Mo": len(atoms) // 3, "S": 2 * len(atoms) // 3}


@pytest.mark.parametrize(("name", "symbol"), [("MoS2", "S"), ("zeolite", "O"), ("perovskite", "Br")])
def test_vacancies_are_counted(name, symbol):
    whole, lacking = (crystalline_atoms(name, field_A=24, vacancies=v, rng=0) for v in (0.0, 0.1))
    full, rest = whole.symbols.formula.count(), lacking.symbols.formula.count()
    assert rest.pop(symbol) == full[symbol] - round(0.1 * full.pop(symbol))
    assert rest == full


@pytest.mark.parametrize("orientation", ["zone", "random"])
@pytest.mark.parametrize("seed", [0, 5])
def test_crystallite_in_glass(orientation, seed):
    atoms = semicrystalline_atoms(field_A=(40, 50), thickness_A=12, crystallite_A=30, orientation=orientation, rng=seed)
    assert atoms.cell.lengths().tolist() == [50, 40, 12]
    inside = atoms.arrays["crystallite"]
    y, x = atoms.info["crystallite_centre_A"]
    apart = atoms.positions[:, :2] - [x, y]
    apart -= [50, 40] * np.rint(apart / [50, 40])
    radius = np.hypot(*apart.T)
    assert radius[inside].max() <= 15 + 1e-9
    assert radius[~inside].min() > 15
    # the crystallite is LTA at its own density, the rest silica
    volume = np.pi * 15**2 * 12
    assert atoms[inside].get_masses().sum() / volume / DALTON_PER_A3 == pytest.approx(1.43, rel=0.08)
    assert atoms[~inside].get_masses().sum() / (50 * 40 * 12 - volume) / DALTON_PER_A3 == pytest.approx(2.1, rel=0.1)
    lengths = np.array([50, 40, 12])
    tree = cKDTree(np.mod(atoms.positions[~inside], lengths), boxsize=lengths)
    assert tree.query(np.mod(atoms.positions[inside], lengths))[0].min() >= 1.4
    silicon = atoms[inside][atoms[inside].numbers == 14]
    distances = silicon.get_all_distances(mic=False)
    nearest = np.where(distances > 0, distances, np.inf).min(axis=0)
    assert np.median(nearest) == pytest.approx(3.07, abs=0.1)


def test_place_of_the_crystallite():
    options = {"field_A": (40, 50), "thickness_A": 12, "crystallite_A": 30, "rng": 2}
    central, elsewhere = (semicrystalline_atoms(place=place, **options) for place in ("centre", "random"))
    assert central.info["crystallite_centre_A"] == (20.0, 25.0)
    assert elsewhere.info["crystallite_centre_A"] != (20.0, 25.0)
    grain = central[central.arrays["crystallite"]]
    assert np.hypot(*(grain.positions[:, :2] - [25, 20]).T).max() <= 15
    assert semicrystalline_atoms(**options) == elsewhere
    y, x = elsewhere.info["crystallite_centre_A"]
    other = elsewhere[elsewhere.arrays["crystallite"]]
    assert other.symbols.formula == grain.symbols.formula
    apart = (other.positions[:, :2] - grain.positions[:, :2] - [x - 25, y - 20]) / [50, 40]
    np.testing.assert_allclose(apart, np.rint(apart), atol=1e-9)


def test_bad_input_is_named():
    cases = [
        (amorphous_atoms, "unknown composition", {"composition": "jelly"}),
        (amorphous_atoms, "unknown elements", {"composition": {"Xx": 1}, "density_g_cm3": 1.0}),
        (amorphous_atoms, "density_g_cm3 is needed", {"composition": {"C": 1}}),
        (amorphous_atoms, "positive", {"field_A": -3}),
        (amorphous_atoms, "lower density_g_cm3", {"density_g_cm3": 20.0}),
        (amorphous_atoms, "min_distance_A", {"min_distance_A": 40.0}),
        (semicrystalline_atoms, "unknown crystal", {"crystal": "sugar"}),
        (semicrystalline_atoms, "fit into the field", {"crystallite_A": 100.0}),
        (semicrystalline_atoms, "unknown orientation", {"orientation": "up", "field_A": 20}),
        (semicrystalline_atoms, "unknown place", {"place": "left"}),
        (crystalline_atoms, "one length", {"field_A": (40, 60), "square": True}),
        (crystalline_atoms, "unknown crystal", {"name": "sugar"}),
        (crystalline_atoms, "vacancies", {"vacancies": 1.5}),
    ]
    for make, match, options in cases:
        with pytest.raises(ValueError, match=match):
            make(**options)
