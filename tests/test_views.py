"""Views: no electron is lost, groups are compact, shifts are geometry."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from phase_object import quarter_turned
from scipy import ndimage

import misr
from misr.optics import electron_wavelength, rotate

DEFOCUS = {"C10": -1000.0}


def counted_cube(detector=24, seed=0, **options):
    k = np.arange(detector) - (detector - 1) / 2
    disk = np.hypot(k[:, None] - 0.7, k[None, :] + 1.2) < 9
    counts = np.random.default_rng(seed).poisson(np.broadcast_to(disk * 5.0, (6, 5, detector, detector)))
    options = {"aberrations": DEFOCUS, "semiangle_mrad": 9.0} | options
    return misr.cube_from_array(
        counts.astype(np.uint16), scan_step_A=2.0, det_step_mrad=1.0, energy_eV=300e3, **options
    )


CUBE = counted_cube()
DISK = misr.bright_field_disk(CUBE)
IN_DISK = CUBE.where(DISK["mask"], 0).sum(("det_y", "det_x"))
N_PIXELS = int(DISK["mask"].sum())


@settings(max_examples=30)
@given(st.one_of(st.none(), st.integers(1, N_PIXELS)))
def test_counts_are_conserved(n_views):
    views = misr.synthesize_views(CUBE, n_views=n_views)
    np.testing.assert_array_equal(views.sum("view"), IN_DISK)
    assert views.sizes["view"] == (n_views or N_PIXELS)
    assert int(views.n_pixels.sum()) == N_PIXELS
    assert int(views.n_pixels.min()) >= 1
    members = np.concatenate([np.array(text.split(), dtype=int) for text in views.pixels.values])
    np.testing.assert_array_equal(np.sort(members), np.flatnonzero(DISK["mask"]))


def test_each_pixel_is_a_view_by_default():
    views = misr.synthesize_views(CUBE)
    view = views.isel(view=17)
    pixel = CUBE.sel(det_y=float(view.det_y + DISK.center_y), det_x=float(view.det_x + DISK.center_x), method="nearest")
    np.testing.assert_array_equal(view, pixel)
    assert views.dtype == CUBE.dtype
    assert views.dims == ("view", "scan_y", "scan_x")
    assert [views[name].attrs["units"] for name in ("det_y", "shift_x", "scan_y")] == ["mrad", "Å", "Å"]


@pytest.mark.parametrize("n_views", [7, 30, 100])
def test_groups_are_compact(n_views):
    views = misr.synthesize_views(CUBE, n_views=n_views)
    reach = 9.0 * np.sqrt(1 / n_views)  # radius of a round group of this area, in pixels
    for view in views.coords["view"].values:
        index = np.array(str(views.pixels.values[view]).split(), dtype=int)
        y, x = np.divmod(index, CUBE.sizes["det_x"])
        away = np.hypot(y - y.mean(), x - x.mean())
        assert away.max() < 2.0 * reach + 0.71
        mask = np.zeros(CUBE.shape[2:], dtype=bool)
        mask[y, x] = True
        assert ndimage.label(mask, structure=np.ones((3, 3)))[1] == 1
    even = views.n_pixels / (N_PIXELS / n_views)
    assert float(even.min()) > 0.3
    assert float(even.max()) < 2.0


def test_groups_are_sums_of_their_pixels():
    single = misr.synthesize_views(CUBE)
    grouped = misr.synthesize_views(CUBE, n_views=10)
    where = {text: i for i, text in enumerate(single.pixels.values)}
    for view in range(10):
        members = [where[text] for text in str(grouped.pixels.values[view]).split()]
        np.testing.assert_array_equal(grouped[view], single[members].sum("view"))
        assert float(grouped.det_y[view]) == pytest.approx(float(single.det_y[members].mean()))
        assert float(grouped.shift_x[view]) == pytest.approx(float(single.shift_x[members].mean()))


@pytest.mark.parametrize("n_views", [None, 12])
def test_dask_and_numpy_agree(n_views):
    lazy = misr.synthesize_views(CUBE.chunk(scan_y=2, scan_x=3, det_y=8), n_views=n_views)
    assert lazy.chunks is not None
    eager = misr.synthesize_views(CUBE, n_views=n_views)
    xr.testing.assert_identical(lazy.compute().drop_attrs(), eager.drop_attrs())
    assert lazy.dtype == eager.dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_expected_counts_keep_their_fractions(dtype):
    views = misr.synthesize_views(CUBE.astype(dtype) * dtype(0.25), n_views=12)
    np.testing.assert_allclose(views.sum("view"), 0.25 * IN_DISK, rtol=1e-6)
    assert views.dtype.kind == "f"


def test_groups_of_narrow_integers_do_not_overflow():
    views = misr.synthesize_views(CUBE.astype(np.uint8) * np.uint8(10), n_views=1)
    np.testing.assert_array_equal(views[0], 10 * IN_DISK)


def test_many_views_counts_of_large_groups_stay_exact():
    large = CUBE.astype(np.uint32) * np.uint32(1000)
    np.testing.assert_array_equal(misr.synthesize_views(large, n_views=3).sum("view"), 1000 * IN_DISK.astype(int))


@pytest.mark.parametrize("C10", [-1500.0, 800.0])
def test_shifts_of_defocus(C10):
    views = misr.synthesize_views(CUBE, {"C10": C10})
    # ∇χ/2π = λ C10 k, and λ k is the angle
    np.testing.assert_allclose(views.shift_y, C10 * 1e-3 * views.det_y, rtol=1e-9)
    np.testing.assert_allclose(views.shift_x, C10 * 1e-3 * views.det_x, rtol=1e-9)


def test_shifts_of_astigmatism_stretch_along_its_axis():
    views = misr.synthesize_views(CUBE, {"C10": 1000.0, "C12": 200.0, "phi12": 0.0})
    np.testing.assert_allclose(views.shift_x, 1.2 * views.det_x, rtol=1e-9)
    np.testing.assert_allclose(views.shift_y, 0.8 * views.det_y, rtol=1e-9)


@pytest.mark.parametrize("angle", [90.0, -37.0])
def test_rotation_turns_shifts(angle):
    views = misr.synthesize_views(counted_cube(rotation_deg=angle), {"C10": 1000.0})
    turned = rotate(views.det_y, views.det_x, angle)
    np.testing.assert_allclose(views.shift_y, turned[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(views.shift_x, turned[1], rtol=1e-9, atol=1e-12)
    elsewhere = misr.synthesize_views(CUBE, xr.Dataset({"C10": 1000.0, "rotation_deg": angle}))
    np.testing.assert_allclose(elsewhere.shift_y, views.shift_y)


def test_shifts_are_where_the_specimen_is_seen(make_scan):
    """View k shows the specimen at r + shift: cross-correlation of simulated views says so too."""
    cube, truth = make_scan("atoms", pixels=64, strength=0.02)
    for scan, rotation in ((cube, 0.0), (quarter_turned(cube), 90.0)):
        views = misr.synthesize_views(scan.assign_attrs(rotation_deg=rotation))
        on_scan = truth.values[::4, ::4]
        agreement = 0.0
        for view in np.argsort(np.abs(np.hypot(views.det_y.values, views.det_x.values) - 5.0))[:12]:
            # at 5 mrad the two sidebands' common shift is the geometric one
            spectrum = np.fft.fft2(views.values[view].astype(float))
            back = spectrum * shift_ramp(on_scan.shape, -views.shift_y.values[view], -views.shift_x.values[view])
            wrong = spectrum * shift_ramp(on_scan.shape, views.shift_y.values[view], views.shift_x.values[view])
            axial = np.fft.fft2(axial_view(views))
            agreement += overlap(back, axial) - overlap(wrong, axial)
        assert agreement / 12 > 0.3


def axial_view(views):
    return views.values[int(np.argmin(np.hypot(views.det_y.values, views.det_x.values)))].astype(float)


def shift_ramp(shape, shift_y, shift_x):
    q_y, q_x = np.fft.fftfreq(shape[0], 2.0)[:, None], np.fft.fftfreq(shape[1], 2.0)[None]
    return np.exp(2j * np.pi * (q_y * shift_y + q_x * shift_x))


def overlap(a, b):
    q = np.hypot(np.fft.fftfreq(a.shape[0], 2.0)[:, None], np.fft.fftfreq(a.shape[1], 2.0)[None])
    low = (q > 0) & (q < 0.12)  # before the first zero of the transfer
    return float((a[low] * b[low].conj()).real.sum() / np.sqrt((abs(a[low]) ** 2).sum() * (abs(b[low]) ** 2).sum()))


def test_unknown_aberrations_leave_shifts_open():
    cube = CUBE.copy()
    del cube.attrs["C10_A"]
    views = misr.synthesize_views(cube)
    assert bool(views.shift_y.isnull().all())
    np.testing.assert_array_equal(views.sum("view"), IN_DISK)


def test_given_aberrations_replace_those_of_the_cube():
    views = misr.synthesize_views(CUBE, {"C12": 30.0})
    assert "C10_A" not in views.attrs
    assert views.attrs["C12_A"] == 30.0
    assert CUBE.attrs["C10_A"] == -1000.0


@pytest.mark.parametrize("n_views", [0, -3, N_PIXELS + 1])
def test_impossible_number_of_views(n_views):
    with pytest.raises(ValueError, match=f"n_views={n_views} must lie between 1 and the {N_PIXELS}"):
        misr.synthesize_views(CUBE, n_views=n_views)


@pytest.mark.parametrize("n_views", [9.5, "9", True])
def test_number_of_views_that_is_no_whole_number(n_views):
    with pytest.raises(TypeError, match="whole number"):
        misr.synthesize_views(CUBE, n_views=n_views)


def test_a_subset_of_views_still_fuses(make_views):
    views, _ = make_views("atoms", pixels=64, dose=1e8)
    half = views.isel(view=slice(None, None, 2))
    whole, part = misr.fuse_linear(views, upsample=2), misr.fuse_linear(half, upsample=2)
    assert part.attrs["n_views"] == half.sizes["view"]
    assert xr.corr(whole.phase, part.phase) > 0.98
    assert misr.shift_and_add(half, upsample=2).shape == part.phase.shape


def test_wavelength_does_not_enter_the_shift():
    views = misr.synthesize_views(CUBE.assign_attrs(energy_eV=80e3))
    np.testing.assert_allclose(views.shift_y, -views.det_y, rtol=1e-9)
    assert electron_wavelength(80e3) > electron_wavelength(300e3)


def test_semiangle_comes_from_the_disk_when_the_cube_has_none():
    cube = counted_cube(semiangle_mrad=None)
    views = misr.synthesize_views(cube)
    assert views.attrs["semiangle_mrad"] == misr.bright_field_disk(cube).attrs["semiangle_mrad"]
    assert views.attrs["semiangle_mrad"] == pytest.approx(9.0, rel=0.02)
    assert misr.cube_history(views)[-1]["semiangle_mrad"] == pytest.approx(9.0, rel=0.02)
    assert "semiangle_mrad" not in misr.cube_history(misr.synthesize_views(CUBE))[-1]
    fused = misr.fuse_linear(views, upsample=1)
    assert fused.attrs["semiangle_mrad"] == views.attrs["semiangle_mrad"]
