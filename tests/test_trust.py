"""Trust tests: chance is chance, inventions are found out, honest images pass."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import xarray as xr
from phase_object import at_dose, atoms_phase, phase_object_cube
from scipy.ndimage import gaussian_filter

import misr
from misr._trust_controls import (
    linear_image,
    linear_specimen,
    run_pair,
    shuffled_halves,
    substituted_phases,
    vacuum_halves,
)
from misr._trust_electrons import foretell
from misr._trust_statistics import chance_of, ring_chance, run_test
from misr.cube import image_from_array
from misr.phase_object import cube_from_phase
from misr.trust import noise_substitution, prior_share, trust_report, trust_words

OPTICS = {"energy_eV": 300e3, "semiangle_mrad": 10.0, "aberrations": {"C10": -600.0}}
PIXEL = 0.5


@functools.lru_cache(maxsize=8)
def scan(dose=1000.0, *, seed=5, pixels=96):
    """A recorded cube of an amorphous film, and the truth; fast to simulate, aliases well told apart."""
    phase = atoms_phase((pixels, pixels), PIXEL, rng=seed)
    cube, truth = phase_object_cube(phase, PIXEL, aberrations=OPTICS["aberrations"], det_bin=3)
    truth.attrs["period_A"] = [pixels * PIXEL] * 2
    return at_dose(cube, dose, rng=seed + 10), truth


def linear(cube):
    return misr.fuse_linear(misr.synthesize_views(cube), upsample=4)["phase"]


def local(cube):
    return misr.fuse_linear(misr.synthesize_views(cube), upsample=4, prior="local")


def texture(like):
    """Always the same band of noise, 0.3 to 0.7 1/Å, rms 1."""
    spectrum = np.fft.fft2(np.random.default_rng(9).standard_normal(like.shape))
    q = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, PIXEL) for n in like.shape), indexing="ij"))
    values = np.fft.ifft2(np.where((q > 0.3) & (q < 0.7), spectrum, 0)).real
    return values / values.std()


def inventing(parts):
    """A method that paints the same texture into every image."""

    def invent(cube):
        image = linear(cube)
        return image + parts * 0.02 * texture(image)

    return invent


def embellishing(cube):
    """A method that paints its texture where there is contrast only."""
    image = linear(cube)
    contrast = np.sqrt(gaussian_filter(gaussian_filter(image.values, 2, mode="wrap") ** 2, 3, mode="wrap"))
    return image + 1.5 * contrast * texture(image)


def sharpening(cube):
    """A method that makes fine detail from coarse detail: harmonics of the low frequencies."""
    image = linear(cube)
    coarse = gaussian_filter(image.values, 2.0, mode="wrap")
    coarse = coarse / max(coarse.std(), 1e-9)
    return image + 0.03 * (coarse**2 + coarse**3)


def white(shape, rng, power=1.0):
    """A real image of Gaussian noise, its Fourier amplitudes multiplied."""
    return np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * power).real


def curve(values, *, n=200.0, **attrs):
    q = 0.05 * np.arange(1, len(values) + 1)
    coords = {"frequency": ("frequency", q, {"units": "1/Å"}), "n_independent": ("frequency", np.full(len(values), n))}
    return xr.DataArray(np.asarray(values, dtype=float), dims="frequency", coords=coords, name="frc", attrs=attrs)


# chance


@pytest.mark.parametrize("window", [None, "hann"])
@pytest.mark.parametrize("kind", ["flat", "lattice"])
def test_unrelated_images_are_chance_whatever_their_spectrum(window, kind):
    shape = (48, 64)
    q = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, PIXEL) for n in shape), indexing="ij"))
    power = np.exp(-q)
    if kind == "lattice":
        power = power * np.where(np.random.default_rng(3).random(shape) < 0.02, 30.0, 1.0)
        power = power + np.roll(power[::-1, ::-1], (1, 1), axis=(0, 1))
    rng = np.random.default_rng(1)
    alarms, scores = 0, []
    for _ in range(250):
        a, b = (image_from_array(white(shape, rng, power), pixel_A=(PIXEL, PIXEL)) for _ in range(2))
        alarms += chance_of(a, b, ring_width=0.05, window=window).p_value < 0.05
        scores.append(ring_chance(a, b, ring_width=0.05, window=window)[2])
    # 250 trials at 5 % at most: 12 ± 3.4
    assert alarms <= 24
    spread = np.std(scores, axis=0)
    assert np.all(spread < 1.12)
    # narrow rings under a taper hold more than the bulk formula says, never less
    assert np.all(spread > (0.9 if window is None else 0.5))


def test_a_weak_broad_correlation_and_a_single_ring_are_both_found():
    rng = np.random.default_rng(2)
    shape = (96, 96)
    q = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, PIXEL) for n in shape), indexing="ij"))
    shared = {"broad": 0.4, "ring": np.where((q > 0.55) & (q < 0.6), 1.0, 0.0)}
    for name, power in shared.items():
        content = white(shape, rng, power)
        a, b = (image_from_array(white(shape, rng) + content, pixel_A=(PIXEL, PIXEL)) for _ in range(2))
        found = chance_of(a, b, ring_width=0.05, window=None, above=0.2)
        assert found.p_value < 1e-4, name
        if name == "ring":
            assert found.highest == pytest.approx(0.6)


def test_runs_cover_all_rings_and_empty_ones_are_no_alarm():
    for number in range(1, 20):
        z = np.zeros(number)
        z[-1] = 9.0
        p_value, run = run_test(z, np.ones(number))
        assert p_value < 1e-6
        assert run.stop == number
    assert run_test(np.array([]), np.array([]))[0] == 1.0
    flat = image_from_array(np.ones((16, 16)), pixel_A=(PIXEL, PIXEL))
    assert chance_of(flat, flat, ring_width=0.1, window=None).p_value == 1.0


# inputs that hold less


def test_substituted_specimens_share_amplitudes_and_what_lies_below():
    _, truth = scan()
    first, second = substituted_phases(truth, 0.4, rng=0)
    spectra = [np.fft.fft2(image.values) for image in (truth, first, second)]
    q = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, PIXEL) for n in truth.shape), indexing="ij"))
    for one in spectra[1:]:
        np.testing.assert_allclose(np.abs(one), np.abs(spectra[0]), atol=1e-9)
        np.testing.assert_allclose(one[q <= 0.4], spectra[0][q <= 0.4], atol=1e-9)
    for a, b in ((first, second), (first, truth)):
        assert chance_of(a, b, ring_width=0.05, window=None, above=0.4).p_value > 1e-3
        assert chance_of(a, b, ring_width=0.05, window=None).p_value < 1e-9
    again, _ = substituted_phases(truth, 0.4, rng=0)
    np.testing.assert_array_equal(again, first)


def test_the_specimen_made_from_the_data_is_as_strong_as_the_real_one():
    cube, truth = scan(300.0)
    made = linear_specimen(cube)
    plain = linear_image(cube)
    power = {
        name: misr.radial_power_spectrum(image.assign_attrs(period_A=[48.0, 48.0]), ring_width=0.1)
        .sel(frequency=slice(0.1, 0.5))
        .values
        for name, image in (("made", made), ("plain", plain), ("truth", truth))
    }
    np.testing.assert_allclose(power["made"] / power["truth"], 1, atol=0.35)
    assert np.all(power["plain"] < power["made"])
    assert power["plain"][-1] < 0.6 * power["truth"][-1]


def test_vacuum_is_the_mean_pattern_and_shuffled_patterns_were_recorded():
    cube, _ = scan()
    empty = vacuum_halves(cube, rng=0)
    mean = cube.mean(("scan_y", "scan_x"))
    for half in empty:
        assert half.attrs["dose_e_per_A2"] == 500
        difference = half.mean(("scan_y", "scan_x")) - mean / 2
        scatter = np.sqrt(mean / 2 / (24 * 24))
        assert float(np.abs(difference).max()) < 5 * float(scatter.max())
    assert not np.array_equal(*empty)
    first, second = shuffled_halves(cube, rng=0)
    assert int((first + second).sum()) == int(cube.sum())
    per_position = [np.sort(half.sum(("det_y", "det_x")).values.ravel()) for half in misr.split_counts(
        cube, rng=np.random.default_rng(0).spawn(3)[0])]  # fmt: skip
    for half, expected in zip((first, second), per_position, strict=True):
        np.testing.assert_array_equal(np.sort(half.sum(("det_y", "det_x")).values.ravel()), expected)
    assert not np.array_equal((first + second).sum(("det_y", "det_x")), cube.sum(("det_y", "det_x")))


def test_lazy_cubes_give_the_same_vacuum():
    cube, _ = scan()
    eager, lazy = (vacuum_halves(one, rng=3)[0] for one in (cube, cube.chunk({"scan_y": 8})))
    np.testing.assert_array_equal(eager, lazy.compute())


def test_a_pair_on_different_pixels_is_put_on_the_coarser():
    cube, _ = scan()
    fine, coarse = (image_from_array(np.eye(n), pixel_A=(48 / n, 48 / n)) for n in (96, 48))
    images = iter([fine, coarse])
    first, second, window = run_pair(lambda _: next(images).assign_attrs(period_A=[48.0, 48.0]), (cube, cube))
    assert first.shape == second.shape == (48, 48)
    assert window is None


# noise substitution


@functools.lru_cache(maxsize=4)
def substitution(pipeline, beyond=0.3):
    cube, truth = scan()
    return noise_substitution(cube, pipeline, beyond=beyond, phase=truth, rng=0)


def test_the_linear_fusion_shows_chance_where_phases_are_random():
    found = substitution(linear)
    assert bool(found.passed)
    assert abs(float(found.correlation)) < 0.06
    # where the specimens agree, so do the images
    assert float(found.frc_substituted.sel(frequency=0.2, method="nearest")) > 0.4
    assert found.beyond.attrs["units"] == "1/Å"
    assert "as chance has it" in found.attrs["words"]


@pytest.mark.parametrize(
    ("method", "beyond"),
    # harmonics of what lies below the cut only are the same in both
    [(inventing(1.0), 0.3), (embellishing, 0.3), (sharpening, 0.4)],
    ids=["texture", "contrast", "harmonics"],
)
def test_what_a_method_puts_in_is_found(method, beyond):
    found = substitution(method, beyond)
    assert not bool(found.passed)
    assert float(found.p_value) < 1e-4
    assert float(found.correlation) > float(found.correlation_limit)
    assert "puts in itself" in found.attrs["words"]


def test_the_correction_is_that_of_the_source_and_brings_the_claim_down():
    found, honest = substitution(inventing(1.0)), substitution(linear)
    above = found.frequency.values > float(found.beyond)
    plain, noise = found.frc.values, found.frc_substituted.values
    np.testing.assert_allclose(found.frc_corrected[above], ((plain - noise) / (1 - noise))[above], atol=1e-9)
    np.testing.assert_array_equal(found.frc_corrected[~above], plain[~above])
    assert float(found.resolution) < 0.75 * float(honest.resolution)
    assert float(found.resolution_corrected) > 0.8 * float(honest.resolution)


def test_what_cannot_be_substituted_is_refused():
    cube, _ = scan()
    bare = cube.assign_attrs(cube.attrs)
    del bare.attrs["C10_A"]
    with pytest.raises(ValueError, match="calibrate it first"):
        noise_substitution(bare, linear)
    with pytest.raises(ValueError, match="leave two rings"):
        noise_substitution(cube, linear, beyond=0.97, rng=0)
    with pytest.raises((ValueError, TypeError), match=r"expected a DataArray|must return an image"):
        noise_substitution(cube, lambda cube: cube.sum(("det_y", "det_x")), rng=0)


# the prior's share


def test_share_is_the_same_read_from_half_maps_and_from_truth():
    snr, limit = np.array([8.0, 2.0, 1.0, 0.5]), np.array([8.0, 1.0, 0.25, 1.0])
    half = prior_share(curve(snr / (2 + snr)), curve(limit / (2 + limit)), warn=False)
    true = prior_share(
        curve(np.sqrt(snr / (1 + snr)), kind="truth"), curve(np.sqrt(limit / (1 + limit)), against="truth"), warn=False
    )
    for found in (half, true):
        np.testing.assert_allclose(found.share, [0, 0.5, 0.75, 0], atol=1e-6)
        assert np.all(found.share_low <= found.share)
        assert np.all(found.share <= found.share_high)


def test_only_a_significant_excess_counts():
    rng = np.random.default_rng(0)
    snr = 6.0 * np.exp(-np.arange(16) / 5)
    limit = curve(snr / (snr + 2), n=150.0, against="half-map")
    alarms = 0
    for _ in range(300):
        noisy = np.tanh(np.arctanh(limit.values) + rng.standard_normal(16) / np.sqrt(300))
        alarms += not bool(prior_share(curve(noisy, n=150.0), limit, tolerance=0.0, alpha=0.05, warn=False).passed)
    assert alarms <= 26  # 15 ± 3.8 at most
    doubled = curve(2 * snr / (2 * snr + 2), n=150.0)
    with pytest.warns(UserWarning, match="the prior supplies it.*may exceed the limit honestly"):
        found = prior_share(doubled, limit)
    assert not bool(found.passed)
    assert float(found.significant_share) == pytest.approx(0.5, abs=0.01)
    # a tolerance of that share lets it pass
    assert bool(prior_share(doubled, limit, tolerance=0.55).passed)


def test_limits_of_another_kind_are_refused_and_none_is_known_past_the_last_ring():
    limit = curve([0.9, 0.5], against="truth")
    with pytest.raises(ValueError, match="against='half-map'"):
        prior_share(curve([0.9, 0.5], kind="half-map"), limit)
    with pytest.raises(ValueError, match="tolerance"):
        prior_share(limit, limit, tolerance=1.0)
    with pytest.raises(ValueError, match="n_independent"):
        prior_share(limit.drop_vars("n_independent"), limit, kind="truth")
    longer = prior_share(curve([0.9, 0.5, 0.6], kind="truth"), limit, warn=False)
    assert float(longer.share[2]) == 1


# unseen electrons


def test_unseen_electrons_prefer_the_truth_and_deny_an_invention():
    cube, truth = scan()
    seen, unseen = misr.split_counts(cube, rng=1)
    image = linear(seen)
    same, true, nothing, invented = (
        foretell(one, image, unseen) for one in (image, truth, 0 * image, inventing(2.0)(seen))
    )
    assert same.lacking == pytest.approx(0, abs=1e-6)
    assert same.linear_gain > 0
    assert true.gain > same.gain
    assert nothing.gain == pytest.approx(0, abs=1e-9)
    assert nothing.lacking == pytest.approx(1)
    for denied in (nothing, invented):
        assert denied.p_value < 1e-4
    # neither the sign nor the scale of an image is held against it
    assert foretell(-7 * image, image, unseen).lacking == pytest.approx(0, abs=1e-4)


# the report


@functools.lru_cache(maxsize=4)
def report(parts):
    cube, truth = scan(pixels=128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return trust_report(cube, inventing(parts), truth=truth, rng=0)


@pytest.mark.slow
def test_invented_texture_improves_half_maps_worsens_truth_and_is_flagged():
    honest, half, whole = (report(parts) for parts in (0.0, 0.5, 1.0))
    assert bool(honest.trusted)
    assert bool(honest.passed.all())
    claims = [float(one.resolution) for one in (honest, half, whole)]
    assert claims[0] > claims[1] >= claims[2]
    band = slice(0.3, 0.7)
    truths = [float(one.frc_truth.sel(frequency=band).mean()) for one in (honest, half, whole)]
    assert truths[0] > truths[1] > truths[2]
    for one in (half, whole):
        assert not bool(one.trusted)
        for test in ("noise substitution", "prior share", "vacuum", "shuffled scan", "truth"):
            assert not bool(one.passed.sel(test=test)), test
    assert not bool(whole.passed.sel(test="recorded electrons"))
    text = trust_words(whole)
    assert "NOT TO BE TRUSTED" in text
    assert text.count("FAILED") == 6


@pytest.mark.slow
def test_the_report_is_labelled_reproducible_and_counts_its_runs(tmp_path):
    cube, _ = scan()
    first, second = (trust_report(cube, linear, rng=4) for _ in range(2))
    first.attrs["time_in_runs"] = second.attrs["time_in_runs"]
    xr.testing.assert_identical(first, second)
    assert first.attrs["pipeline_runs"] == 8
    assert set(first.dims) == {"test", "frequency"}
    for name in ("frc", "frc_substituted", "frc_corrected", "linear_limit", "share", "frc_vacuum", "frc_shuffled"):
        assert first[name].dims == ("frequency",)
    assert [line["operation"] for line in misr.cube_history(first)][-1] == "trust_report"
    first.to_netcdf(tmp_path / "report.nc", engine="h5netcdf")
    kept = xr.load_dataset(tmp_path / "report.nc", engine="h5netcdf")
    assert trust_words(kept) == trust_words(first)


@pytest.mark.slow
def test_a_method_that_refuses_a_scan_of_nothing_is_not_blamed():
    cube, _ = scan()

    def careful(cube):
        image = linear(cube)
        if float(image.std()) < 0.01:
            raise ValueError("nothing to see here\nmore words")
        return image

    found = trust_report(cube, careful, rng=0)
    assert bool(found.passed.sel(test="vacuum"))
    assert str(found.words.sel(test="vacuum").values) == "the method refuses it: nothing to see here"
    assert "frc_vacuum" not in found


@pytest.mark.slow
def test_order_that_repeats_may_exceed_the_limit_and_passes_the_rest():
    atoms = misr.crystalline_atoms(field_A=48.0, square=False, rng=0)
    truth = misr.projected_phase(atoms, pixel_A=PIXEL)
    period = truth.attrs["period_A"]
    pixel = tuple(length / 96 for length in period)
    grid = image_from_array(np.zeros((96, 96)), pixel_A=pixel)
    blank, _ = phase_object_cube(np.zeros((96, 96)), PIXEL, aberrations=OPTICS["aberrations"], det_bin=3)
    steps = {
        f"scan_{dim}": (f"scan_{dim}", 4 * step * np.arange(24), {"units": "Å"})
        for dim, step in zip("yx", pixel, strict=True)
    }
    blank = blank.assign_coords(steps).assign_attrs(blank.attrs, period_A=period)
    specimen = misr.phase_on_grid(truth, like=grid)
    cube = cube_from_phase(specimen, like=blank, dose_e_per_A2=100.0, rng=1)
    with pytest.warns(UserWarning, match="may exceed the limit honestly"):
        found = trust_report(cube, local, truth=specimen, rng=0)
    assert bool(found.trusted)
    assert not bool(found.passed.sel(test="prior share"))
    assert "as good as its prior" in trust_words(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_honest_images_of_amorphous_matter_pass(seed):
    cube, truth = scan(300.0, seed=seed)
    for method in (linear, local):
        found = trust_report(cube, method, truth=truth, rng=seed)
        assert bool(found.passed.all()), trust_words(found)


def test_what_is_no_report_is_refused():
    with pytest.raises(ValueError, match="trust_report"):
        trust_words(xr.Dataset())
