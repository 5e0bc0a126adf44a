"""The bright-field disk is found where it is, as large and as round as it is, at any dose, from a part of a cube."""

from __future__ import annotations

import logging
import warnings

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import misr
from misr.bright_field import bright_field_disk, mean_pattern

STEP = 2.0  # mrad
RADIUS = 6.0  # pixels


def expected(center=(0.0, 0.0), *, detector=20, radius=RADIUS, semiangle_mrad=None, shape=(6, 6)):
    k = np.arange(detector) - (detector - 1) / 2
    away = np.hypot(k[:, None] - center[0], k[None, :] - center[1])
    disk = np.clip(radius - away + 0.5, 0, 1) + 0.002  # a little dark field
    return misr.cube_from_array(
        np.broadcast_to(disk, (*shape, detector, detector)),
        scan_step_A=2.0,
        det_step_mrad=STEP,
        energy_eV=300e3,
        semiangle_mrad=semiangle_mrad or RADIUS * STEP,
    )


def miss(found, center):
    return np.hypot(float(found.center_y) / STEP - center[0], float(found.center_x) / STEP - center[1])


@settings(max_examples=30)
@given(st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_shifted_disk(center):
    found = bright_field_disk(expected(center))
    assert miss(found, center) < 0.3
    assert float(found.radius) == pytest.approx(RADIUS * STEP, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("electrons_per_pattern", [1.0, 10.0, 100.0])
def test_low_dose(electrons_per_pattern, seed):
    center = tuple(np.random.default_rng(seed).uniform(-2, 2, 2))
    cube = expected(center, shape=(32, 32))  # 1024 patterns: at one electron each, nine in a pixel of the sum
    counted = misr.apply_dose(cube, electrons_per_pattern / 4.0, rng=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bright_field_disk(counted)
    assert miss(found, center) < 0.3
    assert float(found.radius) == pytest.approx(RADIUS * STEP, rel=0.03)


def test_mask_is_the_semiangle_round_the_centre():
    found = bright_field_disk(expected((1.0, -2.0)))
    away = np.hypot(found.det_y - found.center_y, found.det_x - found.center_x)
    np.testing.assert_array_equal(found["mask"], away <= RADIUS * STEP)
    assert found.center_y.attrs["units"] == found.radius.attrs["units"] == "mrad"
    assert misr.cube_history(found)[-1]["operation"] == "bright_field_disk"


def test_rectangular_pixels():
    cube = expected()
    stretched = cube.assign_coords(det_y=("det_y", cube.det_y.values * 1.5, {"units": "mrad"}))
    stretched.attrs["semiangle_mrad"] = RADIUS * STEP * np.sqrt(1.5)  # the same area
    with pytest.warns(UserWarning, match=r"axes differ by a factor 1\.[45].*det_step_mrad along y and x"):
        found = bright_field_disk(stretched)
    assert float(found.radius) == pytest.approx(RADIUS * STEP * np.sqrt(1.5), rel=0.03)
    assert float(found["ratio"]) == pytest.approx(1.5, abs=0.03)
    assert abs(np.sin(float(found.angle))) == pytest.approx(1, abs=0.01)


def ellipse(ratio, angle, *, radius=8.0, detector=32, background=0.05, center=(0.6, -0.9), finer=6):
    """Area of an ellipse in each pixel, by samples; ``angle`` of the long axis is atan2(y, x)."""
    k = (np.arange(detector * finer) + 0.5) / finer - detector / 2
    y, x = np.meshgrid(k - center[0], k - center[1], indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    inside = np.hypot(along / np.sqrt(ratio), across * np.sqrt(ratio)) < radius
    return inside.reshape(detector, finer, detector, finer).mean(axis=(1, 3)) + background


def counted_disk(pattern, electrons, *, rng, shape=(16, 16), **options):
    """Counts of so many electrons per pattern."""
    counts = np.random.default_rng(rng).poisson(pattern * (electrons / pattern.sum()), (*shape, *pattern.shape))
    return misr.cube_from_array(
        counts.astype(np.uint16), scan_step_A=2.0, det_step_mrad=STEP, energy_eV=300e3, **options
    )


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.4, -0.8])
@pytest.mark.parametrize("ratio", [1.03, 1.15])
def test_ellipse(ratio, angle):
    cube = counted_disk(ellipse(ratio, angle), 1000, rng=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = bright_field_disk(cube)
    assert float(found["ratio"]) == pytest.approx(ratio, abs=0.01)  # pixels are what limits it here, not counts
    assert abs(np.sin(float(found.angle) - angle)) < (0.05 if ratio > 1.1 else 0.15)
    assert float(found.radius) == pytest.approx(8 * STEP, rel=0.003)
    assert [str(one.message).startswith("the bright-field disk is an ellipse") for one in caught] == [True] * (
        ratio > 1.05
    )


def test_round_disks_seldom_warn_of_an_ellipse_at_the_lowest_dose():
    warned = 0
    for seed in range(40):
        cube = counted_disk(ellipse(1.0, 0.0, background=0.02), 1, rng=seed)  # 256 electrons in all
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bright_field_disk(cube)
        warned += bool(caught)
    assert warned <= 4


@pytest.mark.parametrize(("radius", "detector"), [(8.0, 32), (14.0, 48)])
@pytest.mark.parametrize("electrons", [10, 100])
@pytest.mark.parametrize("seed", range(4))
def test_semiangle_is_estimated(radius, detector, electrons, seed):
    pattern = ellipse(1.0, 0.0, radius=radius, detector=detector, background=0.1)
    k = np.arange(detector) - (detector - 1) / 2
    pattern = pattern + 0.2 * np.exp(-np.hypot(k[:, None], k[None]) / radius)  # scattered electrons
    found = bright_field_disk(counted_disk(pattern, electrons, rng=seed))
    assert found.attrs["semiangle_source"] == "estimated"
    assert found.attrs["semiangle_mrad"] == float(found.radius) == pytest.approx(radius * STEP, rel=0.02)
    assert abs(float(found.radius) - radius * STEP) < 4 * float(found.radius_stderr)


def test_estimate_is_logged_with_its_number(caplog):
    cube = counted_disk(ellipse(1.0, 0.0), 100, rng=0)
    with caplog.at_level(logging.INFO, logger="misr.bright_field"):
        found = bright_field_disk(cube)
        bright_field_disk(cube.assign_attrs(semiangle_mrad=8 * STEP))
    assert len(caplog.records) == 1
    assert f"{found.attrs['semiangle_mrad']:.4g}" in caplog.text


def test_estimated_and_given_semiangle_find_the_same_disk():
    cube = counted_disk(ellipse(1.0, 0.0), 30, rng=1)
    estimated = bright_field_disk(cube)
    given_ = bright_field_disk(cube.assign_attrs(semiangle_mrad=8 * STEP))
    assert given_.attrs["semiangle_source"] == "given"
    for name in ("center_y", "center_x", "radius"):
        assert float(estimated[name]) == pytest.approx(float(given_[name]), abs=0.02)


def test_nothing_like_a_disk():
    k = np.arange(32) - 15.5
    spots = np.exp(-(((k[:, None] % 8 - 4) ** 2 + (k[None] % 8 - 4) ** 2) / 2))
    for pattern in (np.ones((32, 32)), spots):
        with pytest.raises(ValueError, match=r"no bright-field disk found.*Give semiangle_mrad"):
            bright_field_disk(counted_disk(pattern, 100, rng=0))


@pytest.mark.parametrize("semiangle", [None, 8 * STEP])
def test_hot_pixels(semiangle):
    cube = counted_disk(ellipse(1.0, 0.0), 10, rng=3, semiangle_mrad=semiangle)
    hot = cube.copy(deep=True)
    for y, x in ((2, 3), (28, 9), (15, 22), (16, 12)):
        hot[:, :, y, x] = 7
    clean, found = bright_field_disk(cube), bright_field_disk(hot)
    assert abs(float(found.radius) - float(clean.radius)) < float(clean.radius_stderr)
    assert abs(float(found.center_x) - float(clean.center_x)) < 0.05 * STEP


@pytest.mark.parametrize("center", [(6.5, 0.0), (0.0, -6.5)])
def test_disk_cut_by_the_edge(center):
    with pytest.raises(ValueError, match="cut by the detector's edge in det_" + ("y" if center[0] else "x")):
        bright_field_disk(expected(center, radius=RADIUS))


def test_no_beam_and_no_disk():
    cube = expected()
    with pytest.raises(ValueError, match="the mean pattern is empty"):
        bright_field_disk(cube * 0.0)
    flat = cube.copy(data=np.ones(cube.shape))
    flat.attrs["semiangle_mrad"] = 4.0
    with pytest.raises(ValueError, match="no bright-field disk of semiangle_mrad found"):
        bright_field_disk(flat)


@pytest.mark.parametrize("bad", [np.nan, -5.0])
def test_dead_pixels_are_named(bad):
    cube = expected()
    values = cube.values.copy()
    values[..., 3, 4] = bad
    with pytest.raises(ValueError, match="mask dead pixels"):
        bright_field_disk(cube.copy(data=values))


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.07, 1.3])
def test_wrong_semiangle_warns(factor):
    with pytest.warns(UserWarning, match="measures .* mrad but semiangle_mrad"):
        bright_field_disk(expected(semiangle_mrad=RADIUS * STEP * factor))


def test_vacuum_is_enough():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bright_field_disk(expected() * 1e-6)
    assert miss(found, (0, 0)) < 1e-6


def test_lazy_cube_is_read_in_part():
    cube = expected((1.0, 0.5), shape=(64, 8))
    rows_read = []

    def record(block, block_info=None):
        rows_read.append(block_info[0]["array-location"][0][0])
        return block

    data = da.from_array(cube.values, chunks=(1, 8, 20, 20)).map_blocks(
        record, dtype=cube.dtype, meta=np.empty((0,) * 4, dtype=cube.dtype)
    )
    found = bright_field_disk(cube.copy(data=data))
    assert miss(found, (1.0, 0.5)) < 0.3
    assert len(set(rows_read)) == len(rows_read) == 32  # of 64, each once
    assert min(rows_read) < 8
    assert max(rows_read) >= 56


def test_lazy_and_eager_mean_pattern_agree_on_few_rows():
    cube = misr.apply_dose(expected(), 10.0, rng=0)
    xr_mean = cube.mean(("scan_y", "scan_x"))
    np.testing.assert_allclose(mean_pattern(cube.chunk(scan_y=2)), xr_mean)
    np.testing.assert_allclose(mean_pattern(cube), xr_mean)
