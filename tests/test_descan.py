"""Descan is found where it is, within its stated error, at low dose; nothing is found where there is none."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from phase_object import at_dose

import misr
from misr.descan import correct_descan, measure_descan

STEP = 2.0  # mrad
RADIUS = 8.0  # pixels
CENTER = (0.7, -0.4)


def surface(kind, reach, *, scan=(32, 32)):
    """Displacement in pixels, shape (scan_y, scan_x, 2), its mean 0 and its longest ``reach``."""
    v, u = np.meshgrid(np.linspace(-1, 1, scan[0]), np.linspace(-1, 1, scan[1]), indexing="ij")
    if kind == "plane":
        moved = np.stack([0.8 * u - 0.5 * v, 0.6 * v + 0.3 * u], axis=-1)
    else:
        moved = np.stack([0.5 * u + 0.5 * v**2 - 0.3 * u * v, 0.7 * u**2 - 0.5 * v], axis=-1)
    moved = moved - moved.mean(axis=(0, 1))
    return moved * reach / np.hypot(moved[..., 0], moved[..., 1]).max()


def expected(moved, *, detector=32, background=0.03, halo=0.1):
    """A disk with a soft edge, an even background, and a halo of scattered electrons; each pattern sums to 1."""
    k = np.arange(detector) - (detector - 1) / 2
    patterns = np.empty((*moved.shape[:2], detector, detector), dtype=np.float32)
    for row, places in zip(patterns, moved, strict=True):
        y = k - CENTER[0] - places[:, :1]
        x = k - CENTER[1] - places[:, 1:]
        away = np.hypot(y[:, :, None], x[:, None, :]) - RADIUS
        row[:] = np.clip(0.5 - away, 0, 1) + background + halo * np.exp(-np.maximum(away, 0) / 4) * (away > 0)
    return patterns / patterns.sum(axis=(2, 3), keepdims=True)


def counted(patterns, electrons, *, rng, dtype=np.uint16, **options):
    counts = np.random.default_rng(rng).poisson(patterns * electrons).astype(dtype)
    return misr.cube_from_array(counts, scan_step_A=2.0, det_step_mrad=STEP, energy_eV=300e3, **options)


def error_over_stderr(descan, moved):
    """Largest error over the largest standard error, along y and x."""
    return [
        float(abs(descan[name] - moved[..., axis] * STEP).max() / descan[f"{name}_stderr"])
        for axis, name in enumerate(("det_y", "det_x"))
    ]


@pytest.fixture(scope="module")
def patterns():
    """Expected patterns of each descan, made once."""
    still = np.zeros((32, 32, 2))
    moves = {"none": still, "plane": surface("plane", 4.0), "quadratic": surface("quadratic", 4.0)}
    return {kind: (expected(moved), moved) for kind, moved in moves.items()}


@pytest.mark.parametrize("semiangle", [None, RADIUS * STEP])
@pytest.mark.parametrize(
    ("kind", "electrons"), [("plane", 1), ("plane", 10), ("plane", 100), ("quadratic", 10), ("quadratic", 100)]
)
def test_planted_surface_is_found_within_its_error(patterns, kind, electrons, semiangle):
    expected_counts, moved = patterns[kind]
    ratios = []
    for seed in range(4):
        cube = counted(expected_counts, electrons, rng=seed, semiangle_mrad=semiangle)
        descan = measure_descan(cube)
        assert descan.attrs["order"] == {"plane": 1, "quadratic": 2}[kind]
        ratios += error_over_stderr(descan, moved)
        assert descan.attrs["range_mrad"] == pytest.approx(4 * STEP, rel=0.3)
    # the largest of many errors against the largest standard error: within 3, and about 1
    assert max(ratios) < 3.5
    assert 0.3 < np.mean(ratios) < 2


def test_standard_errors_shrink_with_dose(patterns):
    low, high = (measure_descan(counted(patterns["plane"][0], n, rng=0)).det_y_stderr for n in (4, 400))
    assert float(low / high) == pytest.approx(10, rel=0.2)
    assert float(high) < 0.05 * STEP


@pytest.mark.parametrize("electrons", [1, 10])
def test_no_descan_is_order_0(patterns, electrons):
    orders = [measure_descan(counted(patterns["none"][0], electrons, rng=seed)).attrs["order"] for seed in range(20)]
    assert sum(order > 0 for order in orders) <= 1


def test_order_0_says_nothing_moved(patterns):
    descan = measure_descan(counted(patterns["none"][0], 10, rng=0))
    assert descan.attrs["range_mrad"] == 0
    assert not descan.det_y.any()
    assert float(descan.det_y_stderr) > 0  # of the plane that was looked for
    assert float(descan.center_y) == pytest.approx(CENTER[0] * STEP, abs=0.2 * STEP)
    assert float(descan.radius) == pytest.approx(RADIUS * STEP, rel=0.02)
    assert misr.cube_history(descan)[-1]["operation"] == "measure_descan"
    assert {descan[name].attrs["units"] for name in descan.data_vars} == {"mrad"}


@pytest.mark.parametrize("order", [0, 1, 2])
def test_order_may_be_given(patterns, order):
    expected_counts, moved = patterns["quadratic"]
    descan = measure_descan(counted(expected_counts, 100, rng=0), order=order)
    assert descan.attrs["order"] == order
    assert bool(descan.det_y.any()) == (order > 0)
    wrong = float(np.hypot(descan.det_y - moved[..., 0] * STEP, descan.det_x - moved[..., 1] * STEP).max()) / STEP
    assert (wrong < 0.4) == (order == 2)


@pytest.mark.parametrize("order", [3, -1, "linear", True])
def test_orders_that_are_none(patterns, order):
    with pytest.raises(ValueError, match="must be 'auto', 0, 1 or 2"):
        measure_descan(counted(patterns["none"][0], 1, rng=0), order=order)


def test_background_does_not_pull(patterns):
    moved = patterns["plane"][1]
    descan = measure_descan(counted(expected(moved, background=0.3), 300, rng=0))
    assert max(error_over_stderr(descan, moved)) < 3.5


def test_hot_pixels_do_not_pull(patterns):
    expected_counts, moved = patterns["plane"]
    cube = counted(expected_counts, 10, rng=0)
    clean = measure_descan(cube)
    rng = np.random.default_rng(1)
    for y, x in rng.integers(0, 32, (8, 2)):
        cube[:, :, y, x] += rng.poisson(2, (32, 32)).astype(np.uint16)
    hot = measure_descan(cube)
    assert max(error_over_stderr(hot, moved)) < 3.5
    assert float(abs(hot.det_x - clean.det_x).max()) < float(clean.det_x_stderr)


def test_disk_that_moves_by_more_than_its_radius():
    moved = surface("plane", 12.0)
    descan = measure_descan(counted(expected(moved, detector=48), 10, rng=0))
    assert descan.attrs["order"] == 1
    assert max(error_over_stderr(descan, moved)) < 3.5


@pytest.mark.parametrize("dose", [30, 1e4, None])
@pytest.mark.parametrize(("kind", "strength", "C10"), [("atoms", 0.05, -1500.0), ("atoms", 0.3, -500.0)])
def test_specimen_makes_no_descan(make_scan, kind, strength, C10, dose):
    cube, _ = make_scan(kind, strength=strength, C10=C10)
    cube = at_dose(cube, 1e8) if dose is None else at_dose(cube, dose, rng=0)
    descan = measure_descan(cube)
    assert descan.attrs["order"] == 0
    assert correct_descan(cube, descan) is cube


def test_half_of_the_scan_in_the_dark():
    moved = surface("plane", 3.0)
    cube = counted(expected(moved), 100, rng=0)
    cube[:, 16:] = 0
    descan = measure_descan(cube, order=1)
    for axis, name in enumerate(("det_y", "det_x")):
        missed = (descan[name].values - moved[..., axis] * STEP)[:, :16]  # up to the mean place, which was half seen
        assert np.ptp(missed) < 0.3 * STEP
        assert np.isfinite(float(descan[f"{name}_stderr"]))


def test_empty_cube_and_no_disk(patterns):
    cube = counted(patterns["none"][0], 1, rng=0)
    with pytest.raises(ValueError, match="holds no electrons"):
        measure_descan(cube * 0)
    flat = cube.copy(data=np.random.default_rng(0).poisson(0.1, cube.shape))
    with pytest.raises(ValueError, match="no bright-field disk"):
        measure_descan(flat)
    bad = cube.astype(float)
    bad[3, 3, 3, 3] = np.nan
    with pytest.raises(ValueError, match="mask dead pixels"):
        measure_descan(bad)


@pytest.mark.parametrize("chunks", [{"scan_y": 1}, {"scan_y": 9, "scan_x": 10, "det_y": 16}])
def test_lazy_is_the_same(patterns, chunks):
    cube = counted(patterns["quadratic"][0], 30, rng=0)
    descan, lazy = measure_descan(cube), measure_descan(cube.chunk(chunks))
    xr.testing.assert_identical(descan, lazy)
    corrected = correct_descan(cube.chunk(chunks), lazy)
    assert corrected.chunks is not None
    assert corrected.dtype == cube.dtype
    xr.testing.assert_identical(corrected.compute(), correct_descan(cube, descan))


def test_lazy_cube_is_read_in_part_and_once(patterns):
    moved = surface("plane", 4.0, scan=(128, 8))
    cube = counted(expected(moved), 30, rng=0)
    rows = []

    def record(block, block_info=None):
        rows.append(block_info[0]["array-location"][0][0])
        return block

    data = da.from_array(cube.values, chunks=(1, 8, 32, 32)).map_blocks(
        record, dtype=cube.dtype, meta=np.empty((0,) * 4, dtype=cube.dtype)
    )
    descan = measure_descan(cube.copy(data=data))
    assert len(rows) == len(set(rows)) == 32
    assert max(error_over_stderr(descan, moved)) < 3.5
    assert descan.det_y.shape == (128, 8)


def whole_pixel_pair(dtype=np.uint16):
    """The same counts without descan and, moved by whole pixels, with it; the descan."""
    moved = np.rint(surface("plane", 4.0))
    moved -= np.rint(moved.mean(axis=(0, 1)))
    still = counted(expected(np.zeros_like(moved), background=0, halo=0), 20, rng=0, dtype=dtype)
    shifted = still.copy(deep=True)
    for index in np.ndindex(32, 32):
        shifted.values[index] = np.roll(still.values[index], moved[index].astype(int), axis=(0, 1))
    descan = xr.Dataset(
        {name: (("scan_y", "scan_x"), moved[..., i] * STEP) for i, name in enumerate(("det_y", "det_x"))}
    )
    return still, shifted, descan


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_whole_pixels_are_taken_out_exactly(dtype):
    still, shifted, descan = whole_pixel_pair(dtype)
    corrected = correct_descan(shifted, descan)
    np.testing.assert_array_equal(corrected.values, still.values)
    assert corrected.dtype == dtype
    assert corrected.dims == shifted.dims
    xr.testing.assert_equal(corrected.det_y, shifted.det_y)
    assert corrected.attrs["energy_eV"] == 300e3
    assert misr.cube_history(corrected)[-1]["operation"] == "correct_descan"


def test_views_are_those_of_the_undescanned_cube():
    still, shifted, descan = whole_pixel_pair()
    aberrations = {"C10": -1000.0}
    wanted = misr.synthesize_views(still, aberrations, n_views=20)
    views = misr.synthesize_views(correct_descan(shifted, descan), aberrations, n_views=20)
    xr.testing.assert_equal(views, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not misr.synthesize_views(shifted, aberrations, n_views=20).equals(wanted)


@pytest.mark.parametrize("kind", ["plane", "quadratic"])
def test_corrected_disk_is_sharp_and_round(patterns, kind):
    cube = counted(patterns[kind][0], 100, rng=0)
    corrected = correct_descan(cube, measure_descan(cube))
    blurred = misr.bright_field_disk(cube)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharp = misr.bright_field_disk(corrected.assign_attrs(semiangle_mrad=RADIUS * STEP))
    still = misr.bright_field_disk(counted(patterns["none"][0], 100, rng=0))
    assert float(blurred.edge_width) > 2 * float(still.edge_width)
    assert float(sharp.edge_width) < 1.4 * float(still.edge_width)  # what whole pixels leave
    assert float(sharp.radius) == pytest.approx(RADIUS * STEP, rel=0.02)
    assert float(sharp["ratio"]) < 1.02
    assert float(sharp.center_y) == pytest.approx(CENTER[0] * STEP, abs=0.2 * STEP)
    remaining = measure_descan(corrected)
    assert remaining.attrs["range_mrad"] < 0.5 * STEP


def test_descan_along_one_line_makes_the_disk_long_until_it_is_corrected():
    moved = surface("plane", 6.0)
    moved[..., 0] = 0
    cube = counted(expected(moved, detector=40), 100, rng=0)
    with pytest.warns(UserWarning, match=r"is an ellipse.*misr\.measure_descan"):
        blurred = misr.bright_field_disk(cube)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharp = misr.bright_field_disk(correct_descan(cube, measure_descan(cube)))
    assert float(blurred["ratio"]) > 1.05 > 1.02 > float(sharp["ratio"])
    assert float(sharp.radius) == pytest.approx(RADIUS * STEP, rel=0.01)


def test_counts_are_conserved_while_they_stay_on_the_detector(patterns):
    moved = patterns["plane"][1]
    cube = counted(expected(moved, detector=48, background=0, halo=0), 20, rng=0)
    corrected = correct_descan(cube, measure_descan(cube))
    np.testing.assert_array_equal(corrected.sum(("det_y", "det_x")), cube.sum(("det_y", "det_x")))


def test_less_than_half_a_pixel_is_left_alone(patterns):
    cube = counted(patterns["none"][0], 1, rng=0)
    zeros = xr.full_like(cube.isel(det_y=0, det_x=0, drop=True), 0.49 * STEP, dtype=float)
    assert correct_descan(cube, xr.Dataset({"det_y": zeros, "det_x": -zeros})) is cube


def test_disk_that_leaves_the_detector():
    moved = surface("plane", 11.0)
    cube = counted(expected(moved), 30, rng=0)
    descan = measure_descan(cube)
    with pytest.raises(ValueError, match=r"over the detector's edge at \d+ of 1024 scan positions.*Crop the scan"):
        correct_descan(cube, descan)


def test_descan_that_does_not_fit(patterns):
    cube = counted(patterns["plane"][0], 10, rng=0)
    descan = measure_descan(cube)
    with pytest.raises(ValueError, match=r"scan of \(32, 32\) positions, the cube has \(16, 32\)"):
        correct_descan(cube[:16], descan)
    assert correct_descan(cube[:16], descan.isel(scan_y=slice(16))).shape == (16, 32, 32, 32)
    with pytest.raises(ValueError, match=r"as misr\.measure_descan\(cube\) gives"):
        correct_descan(cube, descan[["det_y"]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        correct_descan(cube, descan.assign(det_x=descan.det_x * np.nan))
