"""Random specimens: reproducible, disjoint between splits, physically possible, and of the class they claim."""

import numpy as np
import pytest
from ase.data import atomic_numbers
from scipy.spatial import cKDTree

import misr
from misr.fusion.random_families import child_generator, core_distance, fits_split
from misr.fusion.random_lattices import random_lattice, random_setting
from misr.fusion.random_matter import near_pairs, random_matter
from misr.fusion.random_specimens import SPECIMEN_KINDS, random_specimen

SPLITS = ("train", "validation", "test")
FIELD = (40.0, 55.0)
FULL = [kind for kind in SPECIMEN_KINDS if kind != "empty"]


def nearest(atoms):
    """Shortest distance of two atoms over all borders, those across the beam too."""
    lengths = atoms.cell.lengths()
    wrapped = np.minimum(atoms.positions % lengths, np.nextafter(lengths, 0))
    return cKDTree(wrapped, boxsize=lengths).query(wrapped, k=2)[0][:, 1].min()


@pytest.mark.parametrize("kind", SPECIMEN_KINDS)
def test_every_kind_builds_with_the_cell_asked_for_and_no_atoms_on_another(kind):
    for seed in range(30):
        field = (28.0, 36.5) if seed % 2 else 33.3
        atoms = random_specimen(kind, field_A=field, rng=seed, split=SPLITS[seed % 3], max_thickness_A=25)
        wanted = np.broadcast_to(field, (2,))
        x, y, z = atoms.cell.lengths()
        assert (y, x) == tuple(wanted)
        assert 3 <= z <= 25
        assert np.count_nonzero(atoms.cell.array) == 3
        assert atoms.pbc.all()
        assert atoms.info["kind"] == kind
        assert atoms.info["split"] == SPLITS[seed % 3]
        assert (len(atoms) == 0) == (kind == "empty")
        assert np.all(atoms.positions >= 0)
        assert np.all(atoms.positions <= atoms.cell.lengths())
        if len(atoms) > 1:
            assert nearest(atoms) >= 0.7
            density = atoms.get_masses().sum() / atoms.get_volume() / 0.602214
            assert density < 12.5


@pytest.mark.parametrize("kind", FULL)
def test_a_seed_gives_one_specimen_and_another_in_each_split(kind):
    def make(seed, split="train"):
        return random_specimen(kind, field_A=30, rng=seed, split=split, max_thickness_A=20)

    first, again = make(5), make(5)
    assert first == again
    assert first.info["family"] == again.info["family"]
    np.testing.assert_array_equal(first.info["vacancies"], again.info["vacancies"])
    others = [make(6), make(5, "validation"), make(5, "test"), make(np.random.default_rng(5))]
    assert len({round(float(atoms.cell[2, 2]), 9) for atoms in [first, *others]}) == 5
    assert make(np.random.default_rng(5)) == others[-1]
    assert make(np.random.SeedSequence(5)) == first


def test_families_never_overlap_between_splits():
    seen = {split: set() for split in SPLITS}
    for seed in range(500):
        split = SPLITS[seed % 3]
        generator = child_generator(seed, split)
        part = random_lattice(generator, split) if seed % 2 else random_matter(generator, split)
        seen[split].add(part.family)
    for seed in range(40):
        split = SPLITS[seed % 3]
        atoms = random_specimen(FULL[seed % 4], field_A=25, rng=seed, split=split, max_thickness_A=12)
        seen[split] |= set(atoms.info["family"].split(" + "))
    assert all(len(families) > 60 for families in seen.values())
    for split in SPLITS:
        assert all(fits_split(family, other) == (other == split) for other in SPLITS for family in seen[split])
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_splits_take_eight_one_and_one_tenth_of_the_families():
    names = [f"lattice {number}" for number in range(4000)]
    shares = [np.mean([fits_split(name, split) for name in names]) for split in SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)


def test_lattices_keep_their_cores_densities_and_sides():
    for seed in range(40):
        lattice = random_lattice(child_generator(seed, "train"), "train", porous=seed % 2 == 0)
        sides = np.linalg.norm(lattice.cell, axis=1)
        assert 0.5 <= lattice.density_g_cm3 <= 12
        assert sides.min() >= 3
        assert sides.max() <= (26 if lattice.porous else 20)
        steps = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
        for image in steps:
            apart = np.linalg.norm((lattice.basis[:, None] - lattice.basis - image) @ lattice.cell, axis=-1)
            if not image.any():
                np.fill_diagonal(apart, np.inf)
            assert np.all(apart >= core_distance(lattice.numbers[:, None], lattice.numbers) - 1e-6)


def test_a_zone_axis_stands_within_three_degrees_of_the_beam_give_or_take_the_strain():
    generator = np.random.default_rng(0)
    lattice = random_lattice(generator, "train")
    angles = []
    for _ in range(60):
        setting = random_setting(generator, lattice, zone=True)
        angles.append(np.degrees(np.arccos(setting.column[2])))
        volume = np.linalg.det(setting.vectors) / np.linalg.det(lattice.cell)
        assert abs(volume - 1) < 0.07
    assert max(angles) < 4.2
    assert np.median(angles) < 1.5


def test_compositions_are_possible_matter():
    kinds = set()
    for seed in range(60):
        matter = random_matter(child_generator(seed, "test"), "test")
        assert matter.shares.sum() == pytest.approx(1)
        assert 0.5 <= matter.density_g_cm3 <= 12
        assert 1.0 < matter.core_A <= 2.2
        kinds |= set(matter.numbers.tolist())
    assert {atomic_numbers[symbol] for symbol in ["H", "C", "N", "O", "Si", "S"]} <= kinds
    assert max(kinds) > 40


def test_vacancies_are_missing_and_interstitials_added():
    """The twin without defects differs by exactly the atoms at the places that are told."""
    vacancies = interstitials = 0
    for seed in range(30):
        kind = "crystalline" if seed % 2 else "semicrystalline"
        options = {"field_A": FIELD, "rng": seed, "max_thickness_A": 20}
        atoms = random_specimen(kind, **options)
        perfect = random_specimen(kind, defects=False, **options)
        assert len(perfect.info["vacancies"]) == len(perfect.info["interstitials"]) == 0
        lost = charges_elsewhere(perfect, atoms)
        gained = charges_elsewhere(atoms, perfect)
        for (places, charges), name, number in (
            (lost, "vacancies", "vacancy_charges"),
            (gained, "interstitials", "interstitial_charges"),
        ):
            assert atoms.info[number].sum() == charges.sum()
            assert len(atoms.info[name]) == len(atoms.info[number])
            if len(charges):
                # every changed atom lies at a place that is told: tilted columns lean by up to 1 Å over 20 Å
                told = cKDTree(atoms.info[name], boxsize=FIELD)
                assert told.query(places % FIELD)[0].max() < 2.0
        vacancies += len(atoms.info["vacancies"])
        interstitials += len(atoms.info["interstitials"])
    assert vacancies > 15
    assert interstitials > 10


def charges_elsewhere(atoms, other):
    """(y, x) and atomic numbers of the atoms that the other specimen does not have."""
    theirs = {(*np.round(p, 6), z) for p, z in zip(other.positions, other.numbers, strict=True)}
    own = [
        (p[1], p[0], z)
        for p, z in zip(atoms.positions, atoms.numbers, strict=True)
        if (*np.round(p, 6), z) not in theirs
    ]
    rows = np.array(own).reshape(-1, 3)
    return rows[:, :2], rows[:, 2]


def test_crystals_have_bragg_peaks_and_amorphous_matter_has_none():
    crystalline = [peak_over_ring("crystalline", seed) for seed in range(12)]
    amorphous = [peak_over_ring("amorphous", seed) for seed in range(12)]
    assert np.median(crystalline) > 5 * np.median(amorphous)
    assert np.percentile(crystalline, 25) > np.percentile(amorphous, 75)


def peak_over_ring(kind, seed):
    """Strongest frequency of the phase over the median of its ring, 0.1 to 0.8 1/Å."""
    atoms = random_specimen(kind, field_A=40, rng=seed, max_thickness_A=12)
    phase = misr.projected_phase(atoms, pixel_A=0.5).values
    window = np.hanning(len(phase))
    power = np.abs(np.fft.fft2((phase - phase.mean()) * np.outer(window, window))) ** 2
    frequency = np.fft.fftfreq(len(phase), 0.5)
    radius = np.hypot(*np.meshgrid(frequency, frequency, indexing="ij"))
    ring = np.floor(radius * 20).astype(int)
    return max(power[ring == k].max() / np.median(power[ring == k]) for k in range(2, 16))


def test_crystal_fraction_tells_the_classes_apart():
    for seed in range(6):
        fraction = {
            kind: random_specimen(kind, field_A=30, rng=seed, max_thickness_A=15).info["crystal_fraction"]
            for kind in SPECIMEN_KINDS
        }
        assert fraction["crystalline"] == 1
        assert 0 < fraction["semicrystalline"] < 1
        assert fraction["amorphous"] == fraction["isolated"] == fraction["empty"] == 0


def test_near_pairs_are_those_of_a_periodic_tree():
    rng = np.random.default_rng(3)
    box = np.array([9.0, 13.0, 6.0])
    points = rng.random((300, 3)) * box
    first, second, distance = near_pairs(points, box, 2.5)
    expected = cKDTree(points, boxsize=[9, 13, 0]).query_pairs(2.5)
    assert {(min(i, j), max(i, j)) for i, j in zip(first.tolist(), second.tolist(), strict=True)} == expected
    apart = points[first] - points[second]
    apart[:, :2] -= box[:2] * np.rint(apart[:, :2] / box[:2])
    np.testing.assert_allclose(distance, np.linalg.norm(apart, axis=1))


def test_thicknesses_are_log_uniform():
    thickness = [random_specimen("empty", field_A=20, rng=seed).cell[2, 2] for seed in range(400)]
    assert min(thickness) >= 3
    assert max(thickness) <= 60
    assert np.median(thickness) == pytest.approx(np.sqrt(3 * 60), rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "liquid"}, "unknown kind 'liquid'"),
        ({"split": "training"}, "unknown split 'training'"),
        ({"field_A": 9}, "at least 10"),
        ({"field_A": (20, np.inf)}, "at least 10"),
        ({"max_thickness_A": 2}, "at least 3"),
    ],
)
def test_wrong_arguments_are_answered(change, message):
    options = {"kind": "crystalline", "field_A": 20, "rng": 0} | change
    with pytest.raises(ValueError, match=message):
        random_specimen(options.pop("kind"), **options)
