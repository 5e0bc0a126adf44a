"""Dose: the laws of Poisson counting and of binomial thinning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import misr

OPTIONS = {"scan_step_A": 2.0, "det_step_mrad": 8.0, "energy_eV": 300e3, "semiangle_mrad": 10.0}
SHAPE = (5, 4, 4, 4)
counts_arrays = arrays(np.uint16, SHAPE, elements=st.integers(0, 500))
seeds = st.integers(0, 2**32)


def labelled(counts, **options):
    return misr.cube_from_array(counts, **{**OPTIONS, **options})


def expected_cube(value=0.5, shape=(40, 40, 8, 8)):
    return labelled(np.full(shape, value), det_step_mrad=4.0)


@given(counts_arrays, seeds)
def test_halves_sum_to_the_whole(counts, seed):
    cube = labelled(counts)
    first, second = misr.split_counts(cube, rng=seed)
    np.testing.assert_array_equal(first.values.astype(int) + second.values, counts)
    assert first.dtype == second.dtype == counts.dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("lazy", [False, True])
def test_both_halves_are_of_one_type(dtype, lazy):
    cube = labelled(np.full(SHAPE, 40).astype(dtype))
    first, second = misr.split_counts(cube.chunk(scan_y=2) if lazy else cube, rng=0)
    assert first.dtype == second.dtype == first.compute().dtype == second.compute().dtype
    assert first.dtype == (np.uint8 if dtype == np.uint8 else np.uint32)
    np.testing.assert_array_equal(first + second, 40)


@given(counts_arrays, st.floats(0, 1), seeds)
def test_thinning_only_removes(counts, fraction, seed):
    thinned = misr.thin_counts(labelled(counts), fraction, rng=seed).values
    assert np.all(thinned <= counts)


@given(counts_arrays, seeds)
def test_thinning_by_all_and_nothing(counts, seed):
    np.testing.assert_array_equal(misr.thin_counts(labelled(counts), 1.0, rng=seed), counts)
    assert not misr.thin_counts(labelled(counts), 0.0, rng=seed).any()


@given(counts_arrays, seeds, st.integers(1, 5), st.integers(1, 4), st.sampled_from(["thin", "split", "apply"]))
def test_chunks_do_not_matter(counts, seed, chunk_y, chunk_det, what):
    operation = {
        "thin": lambda cube: misr.thin_counts(cube, 0.4, rng=seed),
        "split": lambda cube: misr.split_counts(cube, rng=seed)[1],
        "apply": lambda cube: misr.apply_dose(cube.astype(float), 5.0, rng=seed),
    }[what]
    cube = labelled(counts, dose_e_per_A2=10.0)
    lazy = operation(cube.chunk(scan_y=chunk_y, scan_x=2, det_x=chunk_det))
    assert lazy.chunks is not None
    np.testing.assert_array_equal(lazy.compute(), operation(cube))
    np.testing.assert_array_equal(lazy.compute(), lazy.compute())  # blocks may be computed more than once


def within(value, expected, standard_error):
    assert abs(value - expected) < 5 * standard_error


@pytest.mark.parametrize("dose", [4.0, 64.0, 1000.0])
def test_counts_are_poisson(dose):
    cube = expected_cube()
    counts = misr.apply_dose(cube, dose, rng=1).values.astype(float)
    mean = dose * 4.0 / 64  # dose × step² over the detector's pixels
    within(counts.mean(), mean, np.sqrt(mean / counts.size))
    # the variance of a sample variance of Poisson counts is (μ + 2 μ²) / n
    within(counts.var(), mean, np.sqrt((mean + 2 * mean**2) / counts.size))
    rows = counts[:-1] - mean, counts[1:] - mean
    within((rows[0] * rows[1]).mean(), 0.0, mean / np.sqrt(rows[0].size))  # streams of rows are independent


def test_expected_counts_set_the_mean_of_each_pixel():
    pattern = np.linspace(0, 3, 16).reshape(4, 4)
    cube = labelled(np.broadcast_to(pattern, (60, 60, 4, 4)).copy())
    counts = misr.apply_dose(cube, 2 * cube.attrs["dose_e_per_A2"], rng=5).mean(("scan_y", "scan_x")).values
    assert counts[0, 0] == 0
    assert np.all(np.abs(counts - 2 * pattern) <= 5 * np.sqrt(2 * pattern / 3600))


def test_thinned_poisson_is_poisson_and_halves_are_independent():
    cube = misr.apply_dose(expected_cube(), 64.0, rng=1)
    mean = 4.0
    thinned = misr.thin_counts(cube, 0.25, rng=2).values.astype(float)
    within(thinned.mean(), mean / 4, np.sqrt(mean / 4 / thinned.size))
    within(thinned.var(), mean / 4, np.sqrt((mean / 4 + 2 * (mean / 4) ** 2) / thinned.size))
    first, second = (half.values - mean / 2 for half in misr.split_counts(cube, rng=3))
    within((first * second).mean(), 0.0, (mean / 2) / np.sqrt(first.size))
    within((first**2).mean(), mean / 2, np.sqrt((mean / 2 + 2 * (mean / 2) ** 2) / first.size))


def test_halves_of_fixed_counts_are_binomial():
    first, _ = misr.split_counts(labelled(np.full((40, 40, 4, 4), 10)), rng=0)
    values = first.values.astype(float)
    within(values.mean(), 5.0, np.sqrt(2.5 / values.size))
    within(values.var(), 2.5, 2.5 * np.sqrt(2 / values.size))


def test_seeds_reproduce_and_generators_advance():
    cube = expected_cube(shape=(6, 6, 8, 8))
    assert misr.apply_dose(cube, 9, rng=3).equals(misr.apply_dose(cube, 9, rng=3))
    assert not misr.apply_dose(cube, 9, rng=3).equals(misr.apply_dose(cube, 9, rng=4))
    generator = np.random.default_rng(3)
    one, two = misr.apply_dose(cube, 9, rng=generator), misr.apply_dose(cube, 9, rng=generator)
    assert not one.equals(two)
    assert one.equals(misr.apply_dose(cube, 9, rng=np.random.default_rng(3)))
    assert not misr.apply_dose(cube, 9).equals(misr.apply_dose(cube, 9))


def test_global_random_state_is_neither_read_nor_moved():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    misr.split_counts(misr.apply_dose(expected_cube(shape=(6, 6, 8, 8)), 9))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_dose_labels_follow():
    cube = labelled(np.full(SHAPE, 8.0), dose_e_per_A2=100.0)
    counted = misr.apply_dose(cube, 30, rng=0)
    assert counted.attrs["dose_e_per_A2"] == 30.0
    assert misr.thin_counts(counted, 0.1, rng=0).attrs["dose_e_per_A2"] == pytest.approx(3.0)
    halves = misr.split_counts(counted, rng=0)
    assert [half.attrs["dose_e_per_A2"] for half in halves] == [15.0, 15.0]
    assert [misr.cube_history(half)[-1]["half"] for half in halves] == [0, 1]
    assert cube.attrs["dose_e_per_A2"] == 100.0
    for name in cube.coords:
        assert counted[name].identical(cube[name])


def test_views_are_split_too(disk_cube):
    views = misr.synthesize_views(disk_cube(9, dtype=np.uint16, aberrations={"C10": -100.0}))
    first, second = misr.split_counts(views, rng=0)
    assert first.dims == views.dims
    assert set(first.coords) == set(views.coords)
    np.testing.assert_array_equal(first + second, views)


def test_whole_floats_are_counts():
    cube = labelled(np.full(SHAPE, 8.0))
    assert misr.thin_counts(cube, 0.5, rng=0).dtype.kind == "u"


@pytest.mark.parametrize("lazy", [False, True])
def test_fractional_counts_say_how_to_convert(lazy):
    cube = labelled(np.full(SHAPE, 2.5))
    with pytest.raises(ValueError, match=r"one is 2\.5.*divide by the detector's gain and round.*misr\.apply_dose"):
        misr.thin_counts(cube.chunk(scan_y=2) if lazy else cube, 0.5, rng=0).compute()


def test_negative_counts_are_refused():
    cube = labelled(np.full(SHAPE, 2), dose_e_per_A2=1.0)
    with pytest.raises(ValueError, match="negative"):
        misr.split_counts(cube - 3, rng=0)


def test_counted_electrons_are_not_drawn_again():
    with pytest.raises(ValueError, match=r"not expected counts.*misr\.thin_counts"):
        misr.apply_dose(labelled(np.full(SHAPE, 2)), 10, rng=0)


@pytest.mark.parametrize("dose", [0, -1.0, float("nan"), float("inf")])
def test_impossible_dose(dose):
    with pytest.raises(ValueError, match="must be a positive number"):
        misr.apply_dose(labelled(np.full(SHAPE, 2.0)), dose, rng=0)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_impossible_fraction(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        misr.thin_counts(labelled(np.full(SHAPE, 2)), fraction, rng=0)


def test_unknown_or_absurd_own_dose():
    cube = labelled(np.full(SHAPE, 2.0))
    absurd = cube.assign_attrs(dose_e_per_A2=1e-9)
    with pytest.raises(ValueError, match="is dose_e_per_A2 of the cube right"):
        misr.apply_dose(absurd, 1e3, rng=0)
    del cube.attrs["dose_e_per_A2"]
    with pytest.raises(ValueError, match="own dose is unknown"):
        misr.apply_dose(cube, 10, rng=0)


@pytest.mark.parametrize(("peak", "dtype"), [(100.0, np.uint16), (1e6, np.uint32)])
def test_counts_fit_their_type(peak, dtype):
    cube = labelled(np.full(SHAPE, peak))
    counts = misr.apply_dose(cube, cube.attrs["dose_e_per_A2"], rng=0)
    assert counts.dtype == dtype
    assert abs(float(counts.mean()) / peak - 1) < 0.05
