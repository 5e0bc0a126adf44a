"""Half maps: independent halves, the same pixels, and calibration errors that count where they should."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from phase_object import at_dose

import misr
from misr.aberrations import aberrations_of
from misr.cube import image_from_array
from misr.dose import first_half, halves_in_turn, row_streams
from misr.halves import NoElectronsError, half_map_frc, half_maps
from misr.snr import full_dose_frc


@pytest.fixture(scope="module")
def cube(make_scan):
    return at_dose(make_scan("atoms", pixels=64, det_bin=3, strength=0.1)[0], 3e3, rng=0)


@pytest.fixture(scope="module")
def shared(cube):
    return half_maps(cube, rng=0)


def sum_of_views(half):
    return misr.shift_and_add(misr.synthesize_views(half), upsample=2)


@given(
    arrays(st.sampled_from([np.uint8, np.uint16, np.uint64, np.int32]), (5, 6, 7), elements=st.integers(0, 100)),
    st.integers(0, 2**32),
)
def test_halves_are_complementary_however_they_are_drawn(counts, seed):
    streams = row_streams(5, seed)
    first = first_half(counts, streams)
    assert np.all(first <= counts)
    np.testing.assert_array_equal(first[2:4], first_half(counts[2:4], streams[2:4]))  # a few rows at a time
    stack = xr.DataArray(counts, dims=("view", "scan_y", "scan_x"))
    halves, again = misr.split_counts(stack, rng=seed), tuple(halves_in_turn(stack, rng=seed))
    for half, other in zip(halves, again, strict=True):
        assert half.dtype == other.dtype == first.dtype
        xr.testing.assert_identical(half, other)
    np.testing.assert_array_equal(halves[0].values, first)
    np.testing.assert_array_equal(halves[0].values.astype(int) + halves[1].values, counts)


@pytest.mark.parametrize("mean", [0.2, 4.0, 15.0, 60.0])
def test_each_electron_tosses_a_fair_coin(mean):
    counts = np.random.default_rng(1).poisson(mean, (2, 200, 200)).astype(np.uint16)
    away = first_half(counts, row_streams(2, 0)) - counts / 2
    error = np.sqrt(mean / 4 / counts.size)
    assert abs(away.mean()) < 5 * error
    # given n, binomial variance n/4 and fourth moment 3 n²/16 - n/8
    variance_error = np.sqrt(np.mean(3 * counts.astype(float) ** 2 / 16 - counts / 8 - counts**2.0 / 16) / counts.size)
    assert abs(np.mean(away**2) - counts.mean() / 4) < 5 * variance_error + 1e-12


def test_what_comes_back(shared, cube):
    assert set(shared.data_vars) == {"first", "second", "frc", "frc_full", "resolution"}
    assert shared.first.dims == shared.second.dims == ("y", "x")
    assert shared.frc.attrs["kind"] == "half-map"
    assert shared.frc_full.attrs["kind"] == "full-dose"
    assert shared.attrs["calibration"] == shared.frc.attrs["calibration"] == "shared"
    assert shared.resolution.attrs["status"] == "crossed"
    note = misr.cube_history(shared)[-1]
    assert (note["operation"], note["calibration"], note["pipeline"], note["rng"]) == (
        "half_maps",
        "shared",
        "fuse_linear",
        0,
    )
    assert misr.cube_history(shared.frc)[-1] == note
    for item in (shared, *shared.data_vars.values(), *shared.coords.values()):
        assert all(isinstance(value, str | int | float | list) for value in item.attrs.values())
    assert float(shared.resolution) == float(misr.super_resolve(cube, rng=0).resolution)


def test_full_dose_correction(shared):
    f = shared.frc.values[shared.frc.values > 0]
    np.testing.assert_allclose(shared.frc_full.values[shared.frc.values > 0], 2 * f / (1 + f))
    assert np.all(shared.frc_full >= -1)
    again = full_dose_frc(shared.frc)
    np.testing.assert_allclose(shared.frc_full_low, again.frc_low)
    assert np.all(shared.frc_full_low <= shared.frc_full)
    assert np.all(shared.frc_full <= shared.frc_full_high)


def test_batches_of_views_give_what_whole_halves_give(cube, shared):
    """The streamed split against `split_counts` and `fuse_linear`, for NumPy, dask and views alike."""
    views = misr.synthesize_views(cube)
    plan = misr.plan_fusion(views)
    halves = [misr.fuse_linear(half, plan=plan).phase for half in misr.split_counts(views, rng=0)]
    for name, image in zip(("first", "second"), halves, strict=True):
        np.testing.assert_allclose(shared[name], image, atol=1e-5 * float(abs(image).max()))
    lazy = half_maps(cube.chunk(scan_y=5), rng=0)
    np.testing.assert_allclose(lazy.frc, shared.frc, atol=1e-4)
    np.testing.assert_allclose(half_maps(views, rng=0).frc, shared.frc, atol=1e-5)
    np.testing.assert_allclose(half_map_frc(views, plan=plan, rng=0), shared.frc, atol=1e-5)
    by_hand = half_map_frc(views, fuse=lambda half: misr.fuse_linear(half, plan=plan).phase, rng=0)
    np.testing.assert_allclose(by_hand, shared.frc, atol=1e-4)


def test_views_too_many_to_keep_overlaps_for(cube, shared, monkeypatch):
    monkeypatch.setattr("misr.fusion.plan._KEPT_BYTES", 0)
    monkeypatch.setattr("misr.fusion.statistic._BATCH_BYTES", 1 << 14)
    np.testing.assert_allclose(half_maps(cube, rng=0).frc, shared.frc, atol=1e-4)


def test_any_pipeline_is_called_with_each_half(cube):
    given_halves = []

    def pipeline(half):
        given_halves.append(half)
        return sum_of_views(half).to_dataset(name="phase")

    maps = half_maps(cube, pipeline, rng=3, ring_width=0.1)
    for mine, other in zip(given_halves, misr.split_counts(cube, rng=3), strict=True):
        xr.testing.assert_identical(mine, other)
    assert maps.attrs["pipeline"] == "pipeline"
    assert maps.frc.attrs["ring_width"] == 0.1
    xr.testing.assert_equal(maps.first, sum_of_views(given_halves[0]).rename("first"))
    lazy = half_maps(cube.chunk(scan_y=4), sum_of_views, rng=3, ring_width=0.1)
    np.testing.assert_allclose(lazy.frc, maps.frc, atol=1e-5)


def test_window_follows_the_scan(cube, shared):
    crop = cube.isel(scan_y=slice(0, 15))
    assert shared.frc.attrs["window"] == "None"
    assert half_maps(crop, sum_of_views, rng=0).frc.attrs["window"] == "hann"
    assert half_maps(crop, sum_of_views, rng=0, window=None).frc.attrs["window"] == "None"


@pytest.mark.filterwarnings("ignore:upsample=:UserWarning")
def test_calibration_errors_count_only_when_halves_are_calibrated_apart(cube, monkeypatch):
    """A calibration that errs differently in each half: shared hides it, separate shows it."""
    calls = []

    def erring(half, **options):
        calls.append(misr.aberrations_of(half))
        return xr.Dataset({"C10": (-1500.0, -900.0)[len(calls) % 2], "rotation_deg": 0.0, "transposed": 0})

    monkeypatch.setattr("misr.halves.fit_aberrations", erring)
    together = half_maps(cube, rng=0)
    assert not calls  # the attrs are enough
    apart = half_maps(cube, rng=0, calibration="separate")
    assert calls == [None, None]  # whatever the attrs say
    assert apart.attrs["calibration"] == "separate"
    assert float(apart.resolution) > 1.2 * float(together.resolution)
    bare = cube.copy(deep=False)
    bare.attrs = {name: value for name, value in cube.attrs.items() if name != "C10_A"}
    half_maps(bare, rng=0)
    assert len(calls) == 3  # once for both


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the aberrations found are not certain:UserWarning")
def test_separate_calibration_of_a_good_scan_resolves_as_much(make_scan):
    cube = at_dose(make_scan("atoms", strength=0.1)[0], 3e4, rng=0)
    apart = half_maps(cube, sum_of_views, rng=0, calibration="separate", ring_width=0.05)
    together = half_maps(cube, sum_of_views, rng=0, ring_width=0.05)
    assert float(apart.resolution) < 1.15 * float(together.resolution)


@pytest.mark.parametrize("pipeline", [None, sum_of_views])
def test_counts_that_cannot_be_split(cube, pipeline):
    with pytest.raises(ValueError, match="not whole electrons"):
        half_maps(cube * 0.3, pipeline, rng=0)
    single = xr.zeros_like(cube)
    single[8, 8, 10, 10] = 1
    views = xr.zeros_like(misr.synthesize_views(cube))
    views[0, 3, 3] = 1
    with pytest.raises(NoElectronsError, match="half of the electrons is empty"):
        half_maps(single if pipeline else views, lambda half: half if pipeline else pipeline, rng=0)
    with pytest.raises(NoElectronsError, match="half of the electrons is empty"):
        half_map_frc(views, plan=misr.plan_fusion(misr.synthesize_views(cube)), rng=0)


def test_bad_pipelines_are_told(cube):
    views = misr.synthesize_views(cube)
    sizes = iter((2, 4))
    with pytest.raises(ValueError, match=r"different grids.*upsample=4 instead of 'auto'"):
        half_maps(cube, lambda _: misr.shift_and_add(views, upsample=next(sizes)), rng=0)
    image = misr.shift_and_add(views, upsample=2)
    moved = iter((0.0, 0.5))
    with pytest.raises(ValueError, match="different grids"):
        half_maps(cube, lambda _: image.assign_coords(y=image.y + next(moved)), rng=0)
    with pytest.raises(TypeError, match="expected a DataArray"):
        half_maps(cube, lambda half: half.values, rng=0)


def test_bad_arguments(cube):
    with pytest.raises(ValueError, match="calibration='guessed' must be one of"):
        half_maps(cube, calibration="guessed")
    with pytest.raises(ValueError, match="needs the cube"):
        half_maps(misr.synthesize_views(cube), calibration="separate")
    with pytest.raises(ValueError, match="expected a cube"):
        half_maps(cube[0])
    with pytest.raises(ValueError, match="not a valid 4D-STEM cube"):
        half_maps(cube.assign_attrs(energy_eV=-1))


def test_a_pipeline_that_needs_no_aberrations_is_spared_the_fit(cube, monkeypatch):
    bare = cube.assign_attrs()
    for name in [name for name in bare.attrs if name[:1] == "C" or name.startswith("phi")]:
        del bare.attrs[name]
    assert aberrations_of(bare) is None
    monkeypatch.setattr("misr.halves.fit_aberrations", lambda _: pytest.fail("fitted"))
    counts = bare.sum(["det_y", "det_x"])

    def bright_field(half):
        image = image_from_array(half.sum(["det_y", "det_x"]).values.astype(float), pixel_A=(2.0, 2.0))
        return image.assign_attrs(aberrations=str(aberrations_of(half)))

    found = half_maps(bare, bright_field, rng=0, calibration="none")
    np.testing.assert_array_equal(found.first.values + found.second.values, counts.values)
    assert found.first.attrs["aberrations"] == "None"
    assert found.attrs["calibration"] == "none"
    with pytest.raises(pytest.fail.Exception, match="fitted"):
        half_maps(bare, bright_field, rng=0)


def test_no_half_is_held_as_a_whole(cube, monkeypatch):
    """Of a stack whose overlaps are too many to keep, a few views are split at a time."""
    monkeypatch.setattr("misr.fusion.plan._KEPT_BYTES", 0)
    monkeypatch.setattr("misr.fusion.statistic._BATCH_BYTES", 1 << 15)
    views = misr.synthesize_views(cube)
    plan = misr.plan_fusion(views)
    sizes = []

    def spied(block, streams):
        sizes.append(block.size)
        return first_half(block, streams)

    monkeypatch.setattr("misr.fusion.half_images.first_half", spied)
    half_map_frc(views, plan=plan, rng=0)
    assert sum(sizes) == views.size
    assert max(sizes) < 0.3 * views.size


def test_halves_are_labelled_as_halves(cube, shared):
    assert shared.first.attrs["dose_e_per_A2"] == cube.attrs["dose_e_per_A2"] / 2
    assert "split_counts" in shared.second.attrs["history"]


def test_a_plan_of_other_views_is_refused(cube):
    plan = misr.plan_fusion(misr.synthesize_views(cube, {"C10": 900.0}))
    with pytest.raises(ValueError, match="aberrations"):
        half_map_frc(misr.synthesize_views(cube), plan=plan, rng=0)
