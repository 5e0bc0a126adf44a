"""Consistency with the recorded electrons: truth explains them, everything else does so less."""

from __future__ import annotations

import numpy as np
import pytest
from phase_object import atoms_phase, phase_object_cube

import misr
from misr.consistency import count_consistency, held_out_consistency
from misr.cube import image_from_array
from misr.phase_object import cube_from_phase

SCALARS = ("chi2", "chi2_stderr", "deviance", "deviance_expected", "gain", "gain_stderr", "slope", "slope_stderr")


@pytest.fixture(scope="module")
def scan():
    """Expected counts by an independent simulator on twice the field, and the truth."""
    phase = atoms_phase((64, 64), 0.5, rng=1, strength=0.1)
    cube, _ = phase_object_cube(np.tile(phase, (2, 2)), 0.5, aberrations={"C10": -200.0}, det_bin=4)
    part = cube.isel(scan_y=slice(0, 16), scan_x=slice(0, 16))
    part.attrs["period_A"] = [32.0, 32.0]
    return part, image_from_array(phase, pixel_A=(0.5, 0.5), attrs={"period_A": [32.0, 32.0]})


@pytest.fixture(scope="module")
def recorded(scan):
    return misr.apply_dose(scan[0], 1000, rng=0)


def texture(truth, seed=7, strength=0.05):
    return truth.copy(data=atoms_phase(truth.shape, 0.5, rng=seed, strength=strength))


def fused(half):
    return misr.fuse_linear(misr.synthesize_views(half), upsample=4)


@pytest.mark.parametrize("scale", ["pixel", "total"])
@pytest.mark.parametrize("dose", [30, 1000])
def test_truth_explains_the_electrons(scan, scale, dose):
    """Counts drawn from the model itself: χ², deviance and slope within four standard errors, in five draws."""
    cube, truth = scan
    expected = cube_from_phase(truth, like=cube, center_mrad=(0, 0))
    found = [
        count_consistency(truth, misr.apply_dose(expected, dose, rng=seed), scale=scale, center_mrad=(0, 0))
        for seed in range(5)
    ]
    for name, mean in (("chi2", 1.0), ("slope", 1.0)):
        away = np.array([(float(each[name]) - mean) / float(each[f"{name}_stderr"]) for each in found])
        assert np.abs(away).max() < 4
        assert abs(away.mean()) < 4 / np.sqrt(5)
        assert 0.15 < np.std(away) < 2.5
    for each in found:
        assert float(each.deviance) == pytest.approx(float(each.deviance_expected), rel=0.02)


def test_truth_explains_an_independent_simulation(scan, recorded):
    found = count_consistency(scan[1], recorded)
    assert abs(float(found.chi2) - 1) < 4 * float(found.chi2_stderr)
    assert abs(float(found.slope) - 1) < 4 * float(found.slope_stderr)
    assert float(found.gain) > 10 * float(found.gain_stderr)
    for name in SCALARS:
        assert found[name].attrs["units"]
    assert found.chi2_map.dims == ("y", "x")
    assert found.chi2_map.shape == recorded.shape[:2]
    assert float(found.chi2_map.mean()) == pytest.approx(float(found.chi2))
    assert float(found.chi2_detector.mean()) == pytest.approx(float(found.chi2))
    disk = misr.bright_field_disk(recorded)["mask"].sel(found.chi2_detector.coords)
    assert bool((np.isfinite(found.chi2_detector) == disk).all())
    assert misr.cube_history(found)[-1]["operation"] == "count_consistency"
    for item in (found, *found.data_vars.values()):
        assert all(isinstance(value, str | int | float | list) for value in item.attrs.values())


def test_what_is_wrong_is_worse_by_many_standard_errors(scan, recorded):
    truth = scan[1]
    wrong = {
        "negative": -truth,
        "shifted by a pixel": truth.roll(y=1),
        "sharpened": truth.copy(data=2 * truth.values - _smooth(truth.values)),
        "too strong": 1.6 * truth,
        "texture": truth + texture(truth),
        "smoothed": truth.copy(data=_smooth(truth.values)),
        "another specimen": texture(truth, strength=0.1),
    }
    for name, image in wrong.items():
        found = count_consistency(image.assign_attrs(truth.attrs), recorded, linear=truth)
        assert float(found.gain_over_linear) < -8 * float(found.gain_over_linear_stderr), name
    negative, strong, other = (
        count_consistency(wrong[name].assign_attrs(truth.attrs), recorded)
        for name in ("negative", "too strong", "another specimen")
    )
    assert float(negative.slope) == pytest.approx(-1, abs=0.1)
    assert float(negative.chi2) - 1 > 20 * float(negative.chi2_stderr)
    assert float(strong.slope) == pytest.approx(1 / 1.6, abs=0.05)
    assert float(other.gain) < -10 * float(other.gain_stderr)
    assert abs(float(other.slope)) < 0.25


def _smooth(values):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(values, 0.8, mode="wrap")


def test_where_an_image_is_wrong_the_map_shows(scan):
    cube, truth = scan
    recorded = misr.apply_dose(cube, 1e4, rng=0)
    holed = truth.where((truth.y < 12) | (truth.y > 20) | (truth.x < 12) | (truth.x > 20), -0.4)
    found = count_consistency(holed, recorded).chi2_map
    assert float(found.sel(y=16, x=16)) > 1.5
    assert float(found.sel(y=slice(0, 4)).mean()) == pytest.approx(1, abs=0.1)


def test_vacuum_gains_nothing(scan, recorded):
    found = count_consistency(0 * scan[1], recorded)
    assert abs(float(found.gain)) < 1e-6
    assert np.isnan(found.slope)
    assert float(found.chi2) > 1 + 4 * float(found.chi2_stderr)  # there is a specimen


def test_noise_is_no_gain_on_held_out_electrons(scan):
    """The linear image of noise predicts its own electrons, and not the others."""
    cube, truth = scan
    flat = cube_from_phase(0 * truth, like=cube, center_mrad=(0, 0))
    for seed in range(3):
        noise = misr.apply_dose(flat, 300, rng=seed)
        image = fused(noise).phase
        assert float(count_consistency(image, noise).gain) >= 0
        found = held_out_consistency(noise, fused, rng=seed)
        assert abs(float(found.gain)) < 4 * float(found.gain_stderr) + 2e-5


def test_held_out_electrons_of_a_specimen_are_predicted(scan, recorded):
    found = held_out_consistency(recorded, fused, rng=0)
    assert float(found.gain) > 10 * float(found.gain_stderr)
    own = count_consistency(fused(recorded).phase, recorded)
    assert float(found.gain) < float(own.gain)  # which has seen the electrons it predicts
    invented = held_out_consistency(recorded, lambda half: fused(half).phase + texture(scan[1]).values, rng=0)
    assert float(invented.gain) < float(found.gain) - 10 * float(found.gain_stderr)
    assert misr.cube_history(found)[-1]["rng"] == 0


@pytest.mark.parametrize("pixels", ["bright_field", "all"])
def test_chunks_and_memory_do_not_matter(scan, recorded, pixels, monkeypatch):
    whole = count_consistency(scan[1], recorded, pixels=pixels)
    lazy = count_consistency(scan[1], recorded.chunk(scan_y=5, scan_x=6), pixels=pixels)
    monkeypatch.setattr("misr.consistency._HELD_BYTES", 0)
    monkeypatch.setattr("misr.consistency._BLOCK_BYTES", 1)
    again = count_consistency(scan[1], recorded, pixels=pixels)
    for other in (lazy, again):
        for name in whole.data_vars:
            np.testing.assert_allclose(other[name], whole[name], rtol=1e-4, err_msg=str(name))


def test_bad_arguments(scan, recorded):
    truth = scan[1]
    with pytest.raises(ValueError, match="pixels='dark' must be one of"):
        count_consistency(truth, recorded, pixels="dark")
    with pytest.raises(ValueError, match="scale='none' must be one of"):
        count_consistency(truth, recorded, scale="none")
    bare = recorded.copy(deep=False)
    bare.attrs = {name: value for name, value in recorded.attrs.items() if name != "C10_A"}
    with pytest.raises(ValueError, match="aberrations of like are not known"):
        count_consistency(truth, bare)


def test_lost_scan_rows_are_left_out(scan, recorded):
    """A blanked beam says nothing about the image."""
    blanked = recorded.copy(deep=True)
    blanked.values[2:4] = 0
    with pytest.warns(UserWarning, match="left out"):
        found = count_consistency(scan[1], blanked)
    whole = count_consistency(scan[1], recorded)
    assert abs(float(found.chi2 - whole.chi2)) < 5 * float(found.chi2_stderr)
    assert np.isnan(found.chi2_map[2:4]).all()
    np.testing.assert_allclose(found.chi2_map[4:], whole.chi2_map[4:], rtol=0.2)
