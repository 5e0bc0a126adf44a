"""The composition: a cube in, image and resolution out, the same for the same seed."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import xarray as xr
from phase_object import at_dose

import misr
import misr.halves
from misr.pipeline import half_map_frc


@pytest.fixture(scope="module")
def expected(make_scan):
    return make_scan("atoms", pixels=64, det_bin=3, strength=0.1)


@pytest.fixture(scope="module")
def cube(expected):
    return at_dose(expected[0], 3e3, rng=0)


@pytest.fixture(scope="module")
def result(cube):
    return misr.super_resolve(cube, rng=0)


def test_result_and_its_labels(result, expected):
    assert set(result.data_vars) == {"phase", "phase_std", "noise_std", "transfer", "frc", "resolution"}
    assert result.phase.dims == result.phase_std.dims == ("y", "x")
    assert result.phase.attrs["units"] == result.phase_std.attrs["units"] == "rad"
    assert result.y.attrs["units"] == result.x.attrs["units"] == "Å"
    assert result.frc.dims == ("frequency",)
    assert result.frc.attrs["kind"] == "half-map"
    assert result.resolution.attrs["units"] == "Å"
    assert result.resolution.attrs["status"] == "crossed"
    assert result.attrs["resolution_A"] == float(result.resolution)
    truth = expected[1]
    np.testing.assert_allclose(result.x, truth.x)
    assert xr.corr(result.phase, truth) > 0.4  # of the whole band, most of which 3000 e/Å² do not reach


def test_resolution_beats_the_scan(result):
    assert float(result.resolution) < 4.0


def test_dose_and_optics_stay_with_the_result(result):
    assert result.attrs["dose_e_per_A2"] == 3e3
    assert result.attrs["energy_eV"] == 300e3
    assert result.attrs["C10_A"] == -1500.0
    operations = [line["operation"] for line in misr.cube_history(result)]
    assert operations[0] == "cube_from_array"
    assert operations[-4:] == ["apply_dose", "synthesize_views", "fuse_linear", "super_resolve"]
    assert misr.cube_history(result)[-1]["rng"] == 0


def test_result_survives_a_file(result, tmp_path):
    for item in (result, *result.data_vars.values(), *result.coords.values()):
        for value in item.attrs.values():
            numbers = isinstance(value, list) and all(isinstance(number, int | float) for number in value)
            assert numbers or isinstance(value, str | int | float), item.attrs
    result.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "result.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), result)


def test_the_seed_decides(cube, result):
    xr.testing.assert_identical(misr.super_resolve(cube, rng=0), result)
    other = misr.super_resolve(cube, rng=1)
    xr.testing.assert_equal(other.phase, result.phase)  # chance enters only in the halves
    assert not other.frc.equals(result.frc)


def test_dask_gives_the_same(cube, result):
    lazy = misr.super_resolve(cube.chunk(scan_y=4), rng=0)
    xr.testing.assert_allclose(lazy, result, rtol=1e-4, atol=1e-6)


def test_fewer_views(cube):
    result = misr.super_resolve(cube, n_views=20, rng=0)
    assert result.attrs["n_views"] == 20
    assert misr.cube_history(result)[-1]["n_views"] == 20
    assert float(result.resolution) < 8


def test_ring_width_is_passed_on(cube):
    assert misr.super_resolve(cube, n_views=20, ring_width=0.1, rng=0).frc.attrs["ring_width"] == 0.1


def test_upsample_is_passed_on(cube):
    assert misr.super_resolve(cube, upsample=2, rng=0).phase.shape == (32, 32)


def test_aberrations_by_argument(cube, result):
    bare = cube.copy()
    bare.attrs = {name: value for name, value in cube.attrs.items() if name != "C10_A"}
    np.testing.assert_allclose(misr.super_resolve(bare, aberrations={"defocus": 1500}, rng=0).phase, result.phase)


@pytest.mark.filterwarnings("ignore:the aberrations found are not certain:UserWarning")
def test_unknown_aberrations_are_found(cube, result):
    bare = cube.copy()
    bare.attrs = {name: value for name, value in cube.attrs.items() if name != "C10_A"}
    found = misr.super_resolve(bare, rotation_deg=0.0, upsample=result.attrs["upsample"], rng=0)
    assert abs(found.attrs["C10_A"] + 1500) < 75
    assert found.attrs["rotation_deg"] == 0
    assert found.attrs["aberrations_confident"] in (0, 1)
    assert misr.cube_history(found)[-1]["aberrations"] == "fit_aberrations"
    turned = misr.super_resolve(bare, aberrations={"defocus": 1500}, rotation_deg=30.0, rng=0)
    assert turned.attrs["rotation_deg"] == 30
    agreement = np.corrcoef(found.phase.values.ravel(), result.phase.values.ravel())[0, 1]
    assert agreement > 0.7


@pytest.mark.filterwarnings("ignore:the counts scatter:UserWarning")
def test_expected_counts_cannot_be_split(expected):
    with pytest.warns(UserWarning, match="not whole electrons.*no FRC, no resolution"):
        result = misr.super_resolve(at_dose(expected[0], 1e3), rng=0)
    assert set(result.data_vars) == {"phase", "phase_std", "noise_std", "transfer"}
    assert "resolution_A" not in result.attrs


def test_whole_floats_can_be_split(cube, result):
    np.testing.assert_allclose(misr.super_resolve(cube.astype(float), rng=0).frc, result.frc, atol=1e-6)


def test_the_network_comes_with_the_linear_image_and_its_resolution(cube, result):
    learned = misr.super_resolve(cube, model="network", upsample=result.attrs["upsample"], rng=0)
    assert {"phase", "phase_std", "phase_linear", "frc", "frc_linear", "resolution", "resolution_linear"} <= set(
        learned
    )
    np.testing.assert_allclose(learned.phase_linear, result.phase, atol=0.02 * float(result.phase.std()))
    np.testing.assert_allclose(learned.frc_linear, result.frc, atol=1e-5)
    assert float(learned.resolution_linear) == pytest.approx(float(result.resolution), rel=1e-4)
    assert 0 < learned.attrs["prior_share"] < 1
    assert learned.attrs["resolution_A"] == pytest.approx(float(learned.resolution))
    assert misr.cube_history(learned)[-1]["model"] == "default"
    # the halves are the network's own images
    assert float(np.abs(learned.frc - learned.frc_linear).max()) > 1e-3


def test_a_network_of_ones_own(cube, tmp_path):
    from misr.fusion.weights import load_network, save_network

    file = save_network(load_network(), tmp_path / "own.safetensors")
    options = {"n_views": 40, "upsample": 2, "rng": 0}
    own = misr.super_resolve(cube, model=file, **options)
    xr.testing.assert_identical(
        own.phase.drop_attrs(), misr.super_resolve(cube, model="network", **options).phase.drop_attrs()
    )
    assert misr.cube_history(own)[-1]["model"] == "own.safetensors"


def test_unknown_model(cube):
    with pytest.raises(ValueError, match="model='magic' must be one of"):
        misr.super_resolve(cube, model="magic")
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        misr.super_resolve(cube, model="nowhere.safetensors")


def test_invalid_cube(cube):
    with pytest.raises(ValueError, match="not a valid 4D-STEM cube"):
        misr.super_resolve(cube.rename(det_x="kx"))
    with pytest.raises(ValueError, match="n_views=100000"):
        misr.super_resolve(cube, n_views=100000)


def test_input_is_left_alone(cube):
    before = cube.copy(deep=True)
    misr.super_resolve(cube, n_views=20, aberrations={"C10": -1400.0}, rng=0)
    xr.testing.assert_identical(cube, before)


def test_vacuum_resolves_nothing(make_scan):
    flat, _ = make_scan("atoms", pixels=64, det_bin=3, strength=1e-7)
    for seed in range(5):
        result = misr.super_resolve(at_dose(flat, 300, rng=seed), rng=seed, upsample=2)
        assert result.resolution.attrs["status"] == "unresolved"
        assert float(result.resolution) == np.inf


def test_half_maps_of_any_fusion(cube):
    views = misr.synthesize_views(cube)
    frc = half_map_frc(views, fuse=misr.shift_and_add, rng=0)
    assert frc.attrs["kind"] == "half-map"
    assert float(frc.max()) > 0.5
    with pytest.raises(ValueError, match="not whole electrons"):
        half_map_frc(views * 0.3, rng=0)


# --- data with faults ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(make_scan):
    expected, truth = make_scan("atoms", pixels=96, strength=0.1)
    return misr.apply_dose(expected, 1000, rng=0), truth


def test_lost_scan_rows_are_left_out_with_a_warning(counted):
    cube, truth = counted
    whole = misr.super_resolve(cube, rng=0)
    dark = cube.copy(deep=True)
    dark.values[5] = 0
    dark.values[11, 3] *= 50
    with pytest.warns(UserWarning, match=r"25 of 576 scan positions .*rows 5, 11.*left out"):
        mended = misr.super_resolve(dark, rng=0)
    assert float(mended.phase.std()) == pytest.approx(float(whole.phase.std()), rel=0.1)
    assert mended.attrs["chi2"] == pytest.approx(1, abs=0.02)
    assert xr.corr(mended.phase, truth.assign_coords(mended.phase.coords)) > 0.9 * float(
        xr.corr(whole.phase, truth.assign_coords(whole.phase.coords))
    )


@pytest.mark.parametrize("dose", [0.1, 1.0, 3.0])
def test_hardly_any_electrons_resolve_nothing_but_do_not_fail(make_scan, dose):
    """Many views are empty then: they weigh nothing."""
    expected, _ = make_scan("atoms", pixels=96)
    result = misr.super_resolve(misr.apply_dose(expected, dose, rng=0), rng=0)
    assert result.resolution.attrs["status"] == "unresolved"
    assert bool(np.isfinite(result.phase).all())
    assert result.attrs["chi2"] == pytest.approx(1, abs=0.05)


def test_an_empty_half_leaves_the_image(make_scan):
    expected, _ = make_scan("atoms", pixels=64, det_bin=3)
    cube = xr.zeros_like(expected).astype(np.uint16).assign_attrs(expected.attrs)
    cube[...] = misr.apply_dose(expected, 100, rng=0)
    bright = misr.synthesize_views(cube)
    lonely = xr.zeros_like(bright)
    lonely[3, 2, 2] = 1
    with (
        mock.patch("misr.pipeline.computed_views", return_value=lonely),
        pytest.warns(UserWarning, match="half of the electrons is empty.*no FRC, no resolution"),
    ):
        result = misr.super_resolve(cube, rng=0, upsample=2)
    assert bool(np.isfinite(result.phase).all())
    assert not {"frc", "resolution"} & set(result.data_vars)


def test_half_map_frc_is_where_it_was():
    assert half_map_frc is misr.halves.half_map_frc


def test_expected_counts_are_answered(make_scan):
    expected, _ = make_scan("atoms", pixels=96)
    with (
        pytest.warns(UserWarning, match=r"scatter .* times less than electrons do.*apply_dose"),
        pytest.warns(UserWarning, match="cannot be split"),
    ):
        misr.super_resolve(expected)


@pytest.mark.parametrize("n_views", [None, 20])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("lazy", [False, True])
def test_negative_counts_never_wrap_round(counted, n_views, dtype, lazy):
    cube = counted[0].astype(dtype).assign_attrs(counted[0].attrs)
    cube.values[4, 4] -= cube.values[4, 4].max() + 1
    if lazy:
        cube = cube.chunk(scan_y=6)
    with pytest.raises(ValueError, match="negative"):
        misr.super_resolve(cube, n_views=n_views)


def test_nan_in_a_lazy_cube_is_answered(counted):
    cube = counted[0].astype(float).assign_attrs(counted[0].attrs)
    cube.values[7, 7, 30, 30] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        misr.super_resolve(cube.chunk(scan_y=6))


def test_a_crop_of_a_periodic_scan_no_longer_wraps(counted):
    crop = counted[0].isel(scan_y=slice(0, 15), scan_x=slice(0, 15))
    bare = crop.assign_attrs({name: value for name, value in crop.attrs.items() if name != "period_A"})
    xr.testing.assert_equal(misr.super_resolve(crop, rng=0), misr.super_resolve(bare, rng=0))


def test_dask_finds_the_same_disk_at_low_dose(disk_cube):
    """Off the middle, at 0.02 electrons per pixel, on more rows than are read for the disk."""
    expected = disk_cube(0.02, shape=(64, 32), center=(0.4, -0.3), aberrations={"C10": -1500.0})
    cube = misr.apply_dose(expected, float(expected.attrs["dose_e_per_A2"]), rng=0)
    eager, lazy = misr.synthesize_views(cube), misr.synthesize_views(cube.chunk(scan_y=7))
    xr.testing.assert_identical(lazy.compute(), eager)
