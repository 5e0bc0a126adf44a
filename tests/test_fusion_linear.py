"""Linear fusion: how far it resolves, how right its numbers are, and that each piece of geometry matters.

All scans here have a 2 Å step, so their own Nyquist limit is 4 Å; 300 kV and 10 mrad give a band limit 2α/λ of 0.98 Å.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from phase_object import as_sampled, at_dose, atoms_phase, phase_object_cube, quarter_turned

import misr

# noise-free counts are meant here
pytestmark = [
    pytest.mark.filterwarnings("ignore:the counts scatter:UserWarning"),
    pytest.mark.filterwarnings("ignore:upsample=:UserWarning"),  # few and coarse detector pixels
]

SCAN_NYQUIST_A = 4.0
NOISE_FREE = 1e8  # e/Å²: expected counts, not drawn ones; the dose only tells the prior how far to trust them


def against_truth(image, truth, **options):
    return misr.fourier_ring_correlation(image, truth, **{"window": None, **options})


def resolution(image, truth, **options):
    return float(misr.frc_resolution(against_truth(image, truth, **options), 0.5))


def mean_frc(image, truth):
    frc = against_truth(image, truth)
    return float((frc * frc.n_independent).sum() / frc.n_independent.sum())


@pytest.fixture(scope="module")
def fused(make_views):
    """Both fusions of cached views: ``fused("atoms", dose=…, …) -> (Dataset, DataArray, truth)``."""
    done = {}

    def fuse(*kind, **options):
        key = (kind, tuple(sorted(options.items())))
        if key not in done:
            views, truth = make_views(*kind, **options)
            done[key] = misr.fuse_linear(views, upsample=4), misr.shift_and_add(views), truth
        return done[key]

    return fuse


# --- how far it resolves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["atoms", "white"])
@pytest.mark.parametrize("C10", [-1500.0, 1500.0])
def test_noise_free_beyond_the_scan(fused, kind, C10):
    linear, summed, truth = fused(kind, C10=C10, pixels=128, dose=NOISE_FREE)
    assert resolution(linear.phase, truth) < 1.1
    assert resolution(summed, truth) < 1.3
    assert mean_frc(linear.phase, truth) > mean_frc(summed, truth)


@pytest.mark.parametrize(("dose", "linear_A", "summed_A"), [(1e4, 1.6, 1.8), (1e3, 2.1, 2.4), (1e2, 3.3, 5.5)])
def test_with_counting_noise(fused, dose, linear_A, summed_A):
    # wide rings: at low dose single narrow rings at the transfer's zeros end the search by chance
    linear, summed, truth = fused("atoms", dose=dose, rng=1, strength=0.1)
    assert resolution(linear.phase, truth, ring_width=0.07) < linear_A
    assert resolution(summed, truth, ring_width=0.07) < summed_A


def test_a_hundred_views_are_nearly_as_good(fused):
    linear, summed, truth = fused("atoms", dose=NOISE_FREE, n_views=100)
    assert linear.attrs["n_views"] == 100
    assert resolution(linear.phase, truth) < 2.0
    assert resolution(summed, truth) < SCAN_NYQUIST_A


@pytest.mark.parametrize("dose", [30.0, 100.0, 300.0, 1000.0])
def test_never_worse_than_the_classical_sum(fused, dose):
    linear, summed, truth = fused("atoms", dose=dose, rng=2, strength=0.1)
    assert mean_frc(linear.phase, truth) > mean_frc(summed, truth) - 0.005


def test_upsampling_by_hand(make_views):
    views, truth = make_views("atoms", dose=NOISE_FREE)
    image = misr.fuse_linear(views, upsample=2).phase
    assert image.shape == (48, 48)
    coarse = truth.isel(y=slice(None, None, 2), x=slice(None, None, 2))
    np.testing.assert_allclose(image.x, coarse.x)
    plain = misr.fuse_linear(views, upsample=1).phase
    assert plain.shape == (24, 24)


# --- how right its numbers are ---------------------------------------------------------------------------------------


def slope_on_truth(image, truth, low, high):
    """Regression slope of the image's Fourier coefficients on the truth's, between two frequencies."""
    q_y, q_x = np.fft.fftfreq(truth.shape[0], 0.5), np.fft.fftfreq(truth.shape[1], 0.5)
    q = np.hypot(q_y[:, None], q_x[None])
    band = (q > low) & (q < high)
    a, b = np.fft.fft2(image.values)[band], np.fft.fft2(truth.values)[band]
    return float((a * b.conj()).real.sum() / (abs(b) ** 2).sum())


@pytest.mark.parametrize("C10", [-1500.0, 1500.0])
def test_phase_is_in_rad(fused, C10):
    linear, summed, truth = fused("atoms", C10=C10, pixels=128, dose=NOISE_FREE)
    seen = as_sampled(truth, C10)
    for low in (0.1, 0.3, 0.5, 0.7):
        assert slope_on_truth(linear.phase, seen, low, low + 0.1) == pytest.approx(1.0, abs=0.03)
    assert slope_on_truth(summed, seen, 0.1, 0.3) == pytest.approx(1.0, abs=0.1)


def test_noise_shrinks_and_never_inflates(fused):
    linear, _, truth = fused("atoms", dose=1e3, rng=1, strength=0.1)
    assert 0.6 < slope_on_truth(linear.phase, truth, 0.1, 0.3) < 1.1
    assert 0.0 < slope_on_truth(linear.phase, truth, 0.6, 0.98) < 0.5


@pytest.mark.parametrize("dose", [100.0, 300.0, 1000.0])
def test_residual_is_counting_noise(make_views, dose):
    views, _ = make_views("atoms", dose=dose, rng=3)
    n_counts = views.sizes["view"] * (views.sizes["scan_y"] * views.sizes["scan_x"] - 1)
    per_pixel = float(views.mean())
    # counts' variance of variance: 2 + 1/μ; the fit takes up some thousand of the n_counts degrees of freedom
    deviation = np.sqrt((2 + 1 / per_pixel) / n_counts)
    n_fitted = 96 * 96
    chi2 = misr.fuse_linear(views).attrs["chi2"]
    assert 1 - 3 * deviation - n_fitted / n_counts < chi2 < 1 + 3 * deviation


def test_residual_tells_wrong_optics(make_scan):
    cube, _ = make_scan("atoms", strength=0.1)
    counted = at_dose(cube, 3e3, rng=0)
    right = misr.fuse_linear(misr.synthesize_views(counted)).attrs["chi2"]
    wrong = misr.fuse_linear(misr.synthesize_views(counted, {"C10": -1000.0})).attrs["chi2"]
    assert wrong > right + 0.01


def rms_error(linear, truth):
    return float(np.sqrt(((linear.phase - as_sampled(truth, -1500.0)) ** 2).mean()))


@pytest.mark.parametrize(("seed", "dose"), [(0, 1000.0), (1, 1000.0), (0, 1e4)])
def test_phase_std_is_the_rms_error(fused, seed, dose):
    """Of a random object with one power over the whole band, as the prior takes the rings it cannot see to have."""
    linear, _, truth = fused("white", dose=dose, rng=seed, strength=0.1, seed=seed, pixels=128)
    error = rms_error(linear, truth)
    assert float(linear.phase_std.mean()) == pytest.approx(error, rel=0.15)
    assert error < float(as_sampled(truth, -1500.0).std())


@pytest.mark.parametrize("dose", [300.0, 1000.0])
def test_phase_std_of_fading_power_is_no_understatement(fused, dose):
    linear, _, truth = fused("atoms", dose=dose, rng=2, strength=0.1)
    assert 1.0 < float(linear.phase_std.mean()) / rms_error(linear, truth) < 2.0


def test_phase_std_of_nothing_seen(make_views):
    """A vacuum scan: the estimate, its error and its standard deviation all stay near nothing."""
    views, _ = make_views("atoms", dose=100.0, rng=0, strength=1e-6)
    linear = misr.fuse_linear(views, upsample=4)
    assert float(np.abs(linear.phase).max()) < 0.05
    assert float(linear.phase_std.mean()) < 0.05


def test_half_maps_agree_with_truth(make_views):
    """Half-map FRC S/(S + 2) and FRC against truth √(S/(1 + S)) tell one S."""
    views, truth = make_views("white", dose=3000.0, rng=5, cutoff=0.8, strength=0.1, pixels=128)
    halves = [misr.fuse_linear(half, upsample=4).phase for half in misr.split_counts(views, rng=0)]
    measured = misr.fourier_ring_correlation(*halves, window=None, ring_width=0.1)
    squared = against_truth(misr.fuse_linear(views, upsample=4).phase, truth, ring_width=0.1) ** 2
    predicted = squared / (2 - squared)
    band = measured.frequency < 0.8
    # a ring's scatter, and the truth's own from the half maps' different shrinkage
    assert float(np.abs(measured - predicted)[band][1:].max()) < 0.07
    assert float(measured[band].max()) > 0.8  # there is signal to compare,
    assert float(measured[band].min()) < 0.6  # and noise


# --- each piece of geometry matters ----------------------------------------------------------------------------------


def test_sign_of_defocus_matters(make_scan):
    cube, truth = make_scan("atoms")
    clean = at_dose(cube, 1e4)
    frc = {
        C10: mean_frc(misr.fuse_linear(misr.synthesize_views(clean, {"C10": C10}), upsample=4).phase, truth)
        for C10 in (-1500.0, 1500.0)
    }
    assert frc[-1500.0] > 0.5
    assert frc[1500.0] < 0.2


def test_astigmatism_is_used_right(make_scan):
    lens = {"C10": -1500.0, "C12": 250.0, "phi12": 0.5}
    cube, truth = make_scan("atoms", **lens)
    clean = at_dose(cube, 1e5)
    guesses = {
        "right": lens,
        "none": {"C10": -1500.0},
        "opposite": {**lens, "C12": -250.0},
        "mirrored": {**lens, "phi12": -0.5},
    }
    frc = {
        name: mean_frc(misr.fuse_linear(misr.synthesize_views(clean, guess), upsample=4).phase, truth)
        for name, guess in guesses.items()
    }
    assert frc["right"] > 0.6
    assert all(frc["right"] > frc[name] + 0.2 for name in ("none", "opposite", "mirrored")), frc
    summed = misr.shift_and_add(misr.synthesize_views(clean, lens))
    assert mean_frc(summed, truth) > 0.4


def test_higher_orders_are_used_right(make_scan):
    lens = {"C10": -1500.0, "C21": 3e4, "phi21": 0.4, "C30": 3e6}
    cube, truth = make_scan("atoms", det_bin=3, **lens)
    clean = at_dose(cube, 1e5)
    right = mean_frc(misr.fuse_linear(misr.synthesize_views(clean), upsample=4).phase, truth)
    without = mean_frc(misr.fuse_linear(misr.synthesize_views(clean, {"C10": -1500.0}), upsample=4).phase, truth)
    assert right > 0.6
    assert right > without + 0.2


def test_rotation_is_used_right(make_scan):
    lens = {"C10": -1500.0, "C12": 200.0, "phi12": 0.3}  # without astigmatism a half turn would be a sign of C10
    cube, truth = make_scan("atoms", det_bin=3, **lens)
    turned = quarter_turned(at_dose(cube, 1e5))
    frc = {}
    for angle in (90.0, 0.0, -90.0, 180.0):
        views = misr.synthesize_views(turned.assign_attrs(rotation_deg=angle))
        frc[angle] = mean_frc(misr.fuse_linear(views, upsample=4).phase, truth)
    straight = mean_frc(misr.fuse_linear(misr.synthesize_views(at_dose(cube, 1e5)), upsample=4).phase, truth)
    assert frc[90.0] == pytest.approx(straight, abs=0.01)
    assert all(frc[90.0] > frc[angle] + 0.3 for angle in (0.0, -90.0, 180.0)), frc


def test_rectangular_scan_and_steps():
    phase = atoms_phase((64, 96), 0.5, rng=1)
    cube, truth = phase_object_cube(phase, 0.5, every=(2, 4), aberrations={"C10": -1500.0}, det_bin=1)
    views = misr.synthesize_views(at_dose(cube, 1e5))  # steps of 1 Å by 2 Å on 32 Å by 48 Å
    image = misr.fuse_linear(views, upsample=4).phase
    assert image.shape == (128, 96)
    assert (float(image.y[1]), float(image.x[1])) == (0.25, 0.5)
    on_truth = image.isel(y=slice(None, None, 2))
    np.testing.assert_allclose(on_truth.y, truth.y)
    assert mean_frc(on_truth, truth) > 0.6


# --- fields that do not wrap round -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "sum"])
def test_cropped_field_agrees_inside(make_scan, method):
    cube, truth = make_scan("atoms", pixels=128, det_bin=4)
    clean = at_dose(cube, 1e4)
    field = clean.isel(scan_y=slice(3, 29), scan_x=slice(4, 28))

    def fuse(scan):
        views = misr.synthesize_views(scan)
        return misr.fuse_linear(views, upsample=4).phase if method == "linear" else misr.shift_and_add(views)

    whole, cropped = fuse(clean), fuse(field)
    assert cropped.shape == (26 * 4, 24 * 4)
    assert float(cropped.y[0]) == 6.0
    assert float(cropped.x[0]) == 8.0
    inside = {"y": slice(24, -24), "x": slice(24, -24)}  # the shifts reach 15 Å; 12 Å are cut here
    here = cropped.isel(inside)
    there = whole.sel(y=here.y, x=here.x, method="nearest").assign_coords(here.coords)
    reference = truth.sel(y=here.y, x=here.x, method="nearest").assign_coords(here.coords)
    assert xr.corr(here, there) > 0.95
    assert xr.corr(here, reference) > xr.corr(there, reference) - 0.1


def test_border_does_not_ring(make_scan):
    """A flat scan whose brightness drifts across the field: no stripes at the borders larger than the drift."""
    cube, _ = make_scan("atoms", pixels=64, strength=1e-6)
    drift = 1 + 0.01 * (cube.scan_x / float(cube.scan_x[-1]) - 0.5)
    drifting = (cube * 1e4 * drift).transpose(*cube.dims).assign_attrs(cube.attrs, dose_e_per_A2=1e4)
    del drifting.attrs["period_A"]
    phase = misr.fuse_linear(misr.synthesize_views(drifting), upsample=4).phase
    assert float(np.abs(phase).max()) < 0.1


# --- labels, devices, errors -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_views(make_views):
    return make_views("atoms", pixels=64, det_bin=4, dose=1e3, rng=0)[0]


def test_labels(small_views):
    result = misr.fuse_linear(small_views, upsample=4)
    assert set(result) == {"phase", "phase_std", "noise_std", "transfer"}
    for image in (result.phase, misr.shift_and_add(small_views)):
        assert image.dims == ("y", "x")
        assert image.attrs["units"] == "rad"
        assert image.y.attrs["units"] == "Å"
        assert float(image.y[-1]) == pytest.approx(32 - 0.5)
        assert image.attrs["energy_eV"] == 300e3
        assert image.attrs["C10_A"] == -1500.0
        assert image.attrs["dose_e_per_A2"] == 1e3
        assert "detector_step_mrad" not in image.attrs
    assert misr.cube_history(result)[-1] == {"operation": "fuse_linear", "upsample": 4}
    assert result.phase_std.attrs["units"] == "rad"
    for ctf in ("flip", None):
        assert misr.shift_and_add(small_views, ctf=ctf).attrs["units"] == "1"


def test_flipping_only_mends_signs(small_views):
    # the power spectra of the plain and the flipped sum are the same
    plain, flipped = (np.abs(np.fft.fft2(misr.shift_and_add(small_views, ctf=ctf))) for ctf in (None, "flip"))
    band = flipped > flipped.max() * 1e-3
    np.testing.assert_allclose(flipped[band], plain[band], rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint32, np.int64])
def test_any_counting_dtype(small_views, dtype):
    expected = misr.fuse_linear(small_views).phase
    np.testing.assert_allclose(misr.fuse_linear(small_views.astype(dtype)).phase, expected, atol=1e-6)


def test_lazy_views(small_views):
    xr.testing.assert_allclose(misr.fuse_linear(small_views.chunk(view=20)), misr.fuse_linear(small_views))


def test_order_of_views_does_not_matter(small_views):
    order = np.random.default_rng(0).permutation(small_views.sizes["view"])
    mixed = misr.fuse_linear(small_views.isel(view=order))
    np.testing.assert_allclose(mixed.phase, misr.fuse_linear(small_views).phase, atol=1e-5)


@pytest.mark.parametrize("fuse", [misr.fuse_linear, misr.shift_and_add])
class TestErrors:
    def test_device(self, fuse, small_views):
        assert fuse(small_views, device="cpu") is not None
        with pytest.raises(ValueError, match="device='abacus' is not known to torch"):
            fuse(small_views, device="abacus")

    def test_no_aberrations(self, fuse, small_views):
        views = small_views.assign_attrs()
        views.attrs = {name: value for name, value in small_views.attrs.items() if name != "C10_A"}
        with pytest.raises(ValueError, match="aberrations of these views are not known"):
            fuse(views)

    def test_not_views(self, fuse, small_views):
        with pytest.raises(ValueError, match="expected views with dims"):
            fuse(small_views.transpose("scan_y", "scan_x", "view"))
        with pytest.raises(ValueError, match=r"got (numpy.)?ndarray"):
            fuse(small_views.values)
        with pytest.raises(ValueError, match="the views lack pixels"):
            fuse(small_views.drop_vars("pixels"))

    def test_empty_views(self, fuse, small_views):
        views = small_views.copy(data=small_views.values.copy())
        views.values[:] = 0
        with pytest.raises(ValueError, match="hold no electrons"):
            fuse(views)

    def test_counts_not_finite(self, fuse, small_views):
        views = small_views.astype(float)
        views.values[3, 2, 1] = np.nan
        with pytest.raises(ValueError, match="NaN or infinite"):
            fuse(views)

    @pytest.mark.parametrize("upsample", [0, -1, 2.5, True, "big", 65])
    def test_upsample(self, fuse, small_views, upsample):
        with pytest.raises(ValueError, match="must be 'auto' or a whole number"):
            fuse(small_views, upsample=upsample)


def test_unknown_ctf(small_views):
    with pytest.raises(ValueError, match="must be 'wiener', 'flip' or None"):
        misr.shift_and_add(small_views, ctf="bend")
