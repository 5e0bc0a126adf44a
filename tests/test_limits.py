"""The limits against the overlap function they come from, drawn noise, simulated specimens and the fusion itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from phase_object import bandlimited_phase

import misr
from misr.cube import image_from_array
from misr.limits import dose_for_resolution, expected_frc, radial_power_spectrum
from misr.optics import aberration_gradient, electron_wavelength, overlap_function

ENERGY, SEMIANGLE = 300e3, 10.0
WAVELENGTH = electron_wavelength(ENERGY)
CUTOFF = SEMIANGLE * 1e-3 / WAVELENGTH
OPTICS = {"energy_eV": ENERGY, "semiangle_mrad": SEMIANGLE}


def flat_power(values=1.0, *, q=None, ring_width=1e-6, n_independent=100.0):
    """A power over given frequencies with rings so narrow that nothing changes across them."""
    q = np.linspace(0.02, 1.1, 55) if q is None else np.asarray(q, dtype=float)
    coords = {
        "frequency": ("frequency", q, {"units": "1/Å"}),
        "n_independent": ("frequency", np.full(q.size, n_independent)),
    }
    attrs = {"units": "rad² Å²", "ring_width": ring_width}
    return xr.DataArray(np.broadcast_to(values, q.shape).astype(float), dims="frequency", coords=coords, attrs=attrs)


def dqe(power, **options):
    """What `expected_frc` takes as the efficiency: S at 1 e/Å², a quarter of it, per power."""
    return (expected_frc(power, dose_e_per_A2=1.0, **OPTICS, **options)["snr"] / (4 * power)).values


def apertures_worth(q_y, q_x, aberrations, *, method="linear", det_step=None, points=161):
    """Σ n |Γ|² / 4 from the overlap function on a fine grid of the aperture, or the shifted sum's."""
    edge = 1e-9 if det_step is None else det_step * 1e-3 / WAVELENGTH
    line = np.linspace(-CUTOFF, CUTOFF, points + 1)[:-1] + CUTOFF / points
    k_y, k_x = (k.ravel() for k in np.meshgrid(line, line, indexing="ij"))
    inside = np.hypot(k_y, k_x) < CUTOFF
    k_y, k_x = k_y[inside], k_x[inside]
    setting = {"aberrations": aberrations, "wavelength": WAVELENGTH}
    edges = ((edge, 0.0), (0.0, edge))
    re, im = overlap_function(k_y, k_x, q_y[:, None], q_x[:, None], cutoff=CUTOFF, pixel_edges=edges, **setting)
    if method == "linear":
        return (re**2 + im**2).mean(axis=1) / 4
    shift_y, shift_x = aberration_gradient(k_y, k_x, **setting)
    turned = (re + 1j * im) * np.exp(-1j * (q_y[:, None] * shift_y + q_x[:, None] * shift_x))
    return np.abs(turned.mean(axis=1)) ** 2 / 4


@pytest.mark.parametrize("C10", [-300.0, -1500.0, 4000.0])
@pytest.mark.parametrize("method", ["linear", "tcbf"])
def test_efficiency_is_what_the_overlap_function_holds(C10, method):
    power = flat_power(q=np.linspace(0.05, 1.0, 96))
    q = power.frequency.values
    summed = apertures_worth(0.6 * q, 0.8 * q, {"C10": C10}, method=method)
    found = dqe(power, method=method, aberrations={"C10": C10})
    assert np.abs(found - summed).max() < 0.02 * found.max()
    strong = found > 0.02  # near a zero of the transfer the grid's own error is all there is
    np.testing.assert_allclose(found[strong], summed[strong], rtol=0.02)


@pytest.mark.parametrize("method", ["linear", "tcbf"])
def test_astigmatism_is_averaged_over_the_ring(method):
    aberrations = {"C10": -600.0, "C12": 200.0, "phi12": 0.4}
    power = flat_power(q=[0.2, 0.35, 0.5, 0.7])
    angle = 2 * np.pi * np.arange(48) / 48
    summed = [apertures_worth(q * np.sin(angle), q * np.cos(angle), aberrations, method=method).mean() for q in
              power.frequency.values]  # fmt: skip
    np.testing.assert_allclose(dqe(power, method=method, aberrations=aberrations), summed, rtol=0.03, atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "tcbf"])
def test_higher_orders_are_summed_over_the_aperture(method):
    aberrations = {"C10": -600.0, "C30": 2e7, "C21": 2000.0}
    power = flat_power(q=[0.15, 0.3, 0.55])
    angle = 2 * np.pi * (np.arange(24) + 0.5) / 24
    summed = [apertures_worth(q * np.sin(angle), q * np.cos(angle), aberrations, method=method).mean() for q in
              power.frequency.values]  # fmt: skip
    assert abs(dqe(power, method=method, aberrations={"C10": -600.0}) / summed - 1).max() > 0.1
    np.testing.assert_allclose(dqe(power, method=method, aberrations=aberrations), summed, rtol=0.04, atol=2e-4)


def test_higher_orders_that_do_not_matter_change_nothing():
    power = flat_power(q=[0.15, 0.3, 0.55, 0.8])
    plain = dqe(power, aberrations={"C10": -900.0})
    np.testing.assert_allclose(dqe(power, aberrations={"C10": -900.0, "C30": 1.0}), plain, rtol=0.03)


def test_a_detector_pixel_costs_what_its_mean_overlap_loses():
    power = flat_power(q=np.linspace(0.1, 0.9, 9))
    q = power.frequency.values
    angle = 2 * np.pi * np.arange(24) / 24
    ratio = [
        apertures_worth(y, x, {"C10": -1500.0}, det_step=0.6).sum() / apertures_worth(y, x, {"C10": -1500.0}).sum()
        for y, x in ((one * np.sin(angle), one * np.cos(angle)) for one in q)
    ]
    lossless = dqe(power, aberrations={"C10": -1500.0})
    found = dqe(power, aberrations={"C10": -1500.0}, det_step_mrad=0.6) / lossless
    assert found[-1] < 0.3
    # the oracle's pixels also blur the aperture's edge
    np.testing.assert_allclose(found, ratio, rtol=0.03, atol=0.01)


def test_ideal_contrast_is_a_zernike_image_and_bounds_the_others():
    power = flat_power()
    found = {method: dqe(power, method=method, aberrations={"C10": -1200.0}) for method in ("linear", "tcbf", "ideal")}
    inside = power.frequency.values < 2 * CUTOFF
    np.testing.assert_allclose(found["ideal"][inside], 1)
    for method, values in found.items():
        assert np.all(values[~inside] == 0), method
    assert np.all(found["tcbf"] <= found["linear"] + 1e-12)
    assert found["linear"].max() < 1
    # Zernike: I = dose (1 + 2 φ), Poisson noise, so φ is known to 1/(4 dose) per mode
    phase = bandlimited_phase((256, 256), 0.5, rng=3, strength=0.05, cutoff=0.9)
    dose = 200.0
    counts = np.random.default_rng(0).poisson(dose * 0.25 * (1 + 2 * phase))
    image, truth = (image_from_array(values, pixel_A=(0.5, 0.5)) for values in (counts, phase))
    truth.attrs |= OPTICS
    expected = expected_frc(truth, dose_e_per_A2=dose, method="ideal", ring_width=0.05, window=None)
    measured = misr.fourier_ring_correlation(image, truth, ring_width=0.05, window=None)
    used = expected.frequency < 0.85
    # a correlation f of n values scatters by (1 - f²)/√(2n)
    scatter = (1 - expected**2) / np.sqrt(2 * expected.n_independent)
    assert np.all(np.abs(measured - expected)[used] < 4 * scatter[used])
    assert float((measured - expected)[used].mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("snr", [0.1, 1 / 3, 3.0])
def test_drawn_noise_gives_the_expected_frc(snr):
    rng = np.random.default_rng(7)
    shape, pixel = (256, 256), (0.6, 0.6)
    truth = rng.standard_normal(shape)
    halves = [truth + rng.standard_normal(shape) * math.sqrt(2 / snr) for _ in range(2)]
    one, two, whole, true = (image_from_array(a, pixel_A=pixel) for a in (*halves, sum(halves) / 2, truth))
    power = radial_power_spectrum(true, window=None)
    # white noise of variance 1/snr against a power P: S = snr, as at a dose of snr / 4 P for the ideal
    dose = snr / (4 * float((power * power.n_independent).sum() / power.n_independent.sum()))
    for against, first, second in (("truth", whole, true), ("half-map", one, two)):
        expected = expected_frc(power, dose_e_per_A2=dose, method="ideal", against=against, **OPTICS)
        measured = misr.fourier_ring_correlation(first, second, window=None)
        weight = measured.n_independent.values
        difference = np.average(measured.values - expected.values, weights=weight)
        assert abs(difference) < 4 / math.sqrt(2 * weight.sum())


def test_one_third_is_a_seventh_between_halves_and_a_half_against_truth():
    power = flat_power(0.5, q=[0.5])
    dose = 1 / (3 * 4 * 0.5)
    options = {"dose_e_per_A2": dose, "method": "ideal"} | OPTICS
    assert float(expected_frc(power, **options)["snr"][0]) == pytest.approx(1 / 3)
    assert float(expected_frc(power, **options)[0]) == pytest.approx(0.5)
    assert float(expected_frc(power, against="half-map", **options)[0]) == pytest.approx(1 / 7)


def test_unequal_snr_within_a_ring_is_what_wiener_weights_give():
    """Half a ring at S = 9, half at nothing: averaging S itself would promise more."""
    rng = np.random.default_rng(1)
    n, snr = 200_000, np.repeat([9.0, 0.01], 100_000)
    truth = rng.standard_normal(n)
    halves = [truth + rng.standard_normal(n) * np.sqrt(2 / snr) for _ in range(2)]

    def correlation(a, b):
        return (a @ b) / math.sqrt((a @ a) * (b @ b))

    whole = (halves[0] + halves[1]) / 2 * snr / (1 + snr)
    filtered = [half * snr / (2 + snr) for half in halves]
    from misr.limits import _correlation

    weight = np.array([[0.5, 0.5]])
    pair = np.array([[9.0, 0.01]])
    assert float(_correlation(pair, weight, "truth")[0]) == pytest.approx(correlation(whole, truth), abs=0.005)
    assert float(_correlation(pair, weight, "half-map")[0]) == pytest.approx(correlation(*filtered), abs=0.005)
    assert float(_correlation(pair, weight, "truth")[0]) < math.sqrt(pair.mean() / (1 + pair.mean())) - 0.1


def test_more_dose_is_never_worse():
    power = misr.phase_power_of_slab("carbon")
    options = {"aberrations": {"C10": -1500.0, "C12": 80.0}, "semiangle_mrad": SEMIANGLE}
    for against in ("truth", "half-map"):
        for method in ("linear", "tcbf", "ideal"):
            rising = [
                expected_frc(power, dose_e_per_A2=dose, against=against, method=method, **options).values
                for dose in (1, 10, 100, 1e4)
            ]
            assert np.all(np.diff(rising, axis=0) >= -1e-12)
            assert np.all(rising[-1] <= 1)


@pytest.mark.parametrize("pixel_A", [(0.5, 0.5), (0.4, 0.7)])
def test_power_adds_up_to_the_variance(pixel_A):
    # nothing above the coarser Nyquist frequency, where the rings end
    phase = bandlimited_phase((128, 96), 0.5, rng=2, strength=0.07, cutoff=0.5)
    image = image_from_array(phase + 3.0, pixel_A=pixel_A)
    power = radial_power_spectrum(image, window=None)
    total = float((2 * power.n_independent * power).sum()) / power.attrs["area_A2"]
    assert total == pytest.approx(phase.var(), rel=1e-6)
    # and as an integral over the plane: ∫ P 2πq dq
    wide = radial_power_spectrum(image, ring_width=0.05, window=None)
    area = np.pi * np.diff(np.concatenate([[0], wide.frequency.values + 0.025]) ** 2)
    assert float((wide * area).sum()) == pytest.approx(phase.var(), rel=0.1)


def test_power_under_a_taper_is_the_same_power():
    phase = bandlimited_phase((256, 256), 0.5, rng=4, strength=0.05, cutoff=0.7)
    image = image_from_array(phase, pixel_A=(0.5, 0.5), attrs={"period_A": [128.0, 128.0]})
    plain, tapered = (radial_power_spectrum(image, ring_width=0.05, window=window) for window in (None, "hann"))
    flat = slice(0.1, 0.6)
    scatter = 4 / np.sqrt(tapered.n_independent.sel(frequency=flat))
    assert np.all(np.abs(tapered / plain - 1).sel(frequency=flat) < scatter)
    assert float((tapered / plain).sel(frequency=flat).mean()) == pytest.approx(1, abs=0.05)
    assert radial_power_spectrum(image).attrs["window"] == "None"
    assert radial_power_spectrum(image.isel(x=slice(0, 200))).attrs["window"] == "hann"


def test_rings_are_those_of_the_frc():
    image = image_from_array(np.random.default_rng(0).standard_normal((60, 48)), pixel_A=(0.5, 0.6))
    for options in ({"ring_width": 0.07, "window": "hann"}, {"window": None}):
        frc, power = misr.fourier_ring_correlation(image, image, **options), radial_power_spectrum(image, **options)
        for name in ("frequency", "n_independent"):
            np.testing.assert_allclose(power[name], frc[name])


@pytest.mark.parametrize("composition", ["protein", "carbon", "silica"])
def test_slab_without_atoms_has_the_power_of_one_with(composition):
    field = 64.0
    made = [
        radial_power_spectrum(
            misr.projected_phase(
                misr.amorphous_atoms(field_A=field, thickness_A=30, composition=composition, rng=seed), pixel_A=0.4
            ),
            ring_width=0.1,
        )
        for seed in range(2)
    ]
    power = misr.phase_power_of_slab(composition, thickness_A=30, field_A=field)
    found = (made[0] + made[1]).values / 2
    q = made[0].frequency.values
    expected = np.interp(q, power.frequency, power)
    upper = (q > 0.35) & (q < 1.2)
    np.testing.assert_allclose(found[upper], expected[upper], rtol=0.15)
    assert np.mean(found[upper] / expected[upper]) == pytest.approx(1, abs=0.05)
    # below, hard spheres at rest and atoms placed one after the other differ
    np.testing.assert_allclose(found[q < 0.35], expected[q < 0.35], rtol=0.3)
    alone = misr.phase_power_of_slab(composition, thickness_A=30, field_A=field, min_distance_A=0)
    assert float(alone[0]) > 1.3 * float(power[0])


def test_least_dose_is_where_the_frc_reaches_the_threshold():
    power = misr.phase_power_of_slab("protein")
    options = {"semiangle_mrad": SEMIANGLE, "aberrations": {"C10": -1200.0, "C12": 60.0}}
    resolution = 128 / 51  # a ring of this power
    for against, threshold in (("truth", 0.5), ("half-map", "half-bit")):
        dose = dose_for_resolution(power, resolution_A=resolution, against=against, threshold=threshold, **options)
        frc = expected_frc(power, dose_e_per_A2=float(dose), against=against, **options)[50]
        assert float(frc) == pytest.approx(float(misr.frc_threshold(threshold, float(frc.n_independent))), rel=1e-6)
        assert dose.attrs["status"] == "found"
    seventh = dose_for_resolution(power, resolution_A=resolution, method="ideal", against="half-map", threshold=1 / 7,
                                  semiangle_mrad=SEMIANGLE)  # fmt: skip
    half = dose_for_resolution(power, resolution_A=resolution, method="ideal", semiangle_mrad=SEMIANGLE)
    assert float(seventh) == pytest.approx(float(half))


def test_least_dose_beyond_the_band_limit_and_without_contrast_is_infinite():
    power = misr.phase_power_of_slab("carbon")
    options = {"semiangle_mrad": SEMIANGLE, "aberrations": {"C10": -1200.0}}
    beyond = dose_for_resolution(power, resolution_A=0.9, **options)
    assert math.isinf(beyond)
    assert beyond.attrs["status"] == "beyond the band limit"
    nothing = dose_for_resolution(0 * power.assign_attrs(power.attrs), resolution_A=2, **options)
    assert math.isinf(nothing)
    assert nothing.attrs["status"] == "no contrast"
    in_focus = dose_for_resolution(power, resolution_A=2.5, method="tcbf", semiangle_mrad=SEMIANGLE, aberrations={})
    assert in_focus.attrs["status"] == "no contrast"


def test_optics_come_from_the_attrs_and_are_recorded():
    phase = image_from_array(
        bandlimited_phase((64, 64), 0.5, rng=2),
        pixel_A=(0.5, 0.5),
        attrs={**OPTICS, "C10_A": -900.0, "C12_A": 50.0, "phi12_rad": 0.2, "dose_e_per_A2": 1.0},
    )
    given = {**OPTICS, "aberrations": {"C10": -900.0, "C12": 50.0, "phi12": 0.2}}
    bare = phase.assign_attrs(dict.fromkeys(phase.attrs))
    bare.attrs = {"units": "rad"}
    first = expected_frc(phase, dose_e_per_A2=300)
    np.testing.assert_allclose(first, expected_frc(bare, dose_e_per_A2=300, **given))
    np.testing.assert_allclose(first, expected_frc(radial_power_spectrum(phase), dose_e_per_A2=300))
    assert first.attrs["dose_e_per_A2"] == 300
    assert first.frequency.attrs["units"] == "1/Å"
    assert [line["operation"] for line in misr.cube_history(first)] == ["radial_power_spectrum", "expected_frc"]


def test_what_cannot_be_is_refused():
    power = flat_power()
    ok = {"dose_e_per_A2": 100, "aberrations": {"C10": -900.0}} | OPTICS
    for change, words in (
        ({"dose_e_per_A2": 0}, "positive number of electrons"),
        ({"method": "magic"}, "'linear', 'tcbf', 'ideal'"),
        ({"against": "hope"}, "'truth', 'half-map'"),
        ({"semiangle_mrad": None}, "semiangle_mrad"),
        ({"aberrations": None}, "aberrations not known"),
        ({"semiangle_mrad": -1}, "positive angle"),
        ({"det_step_mrad": 0}, "det_step_mrad=0"),
        ({"det_step_mrad": 0.1, "method": "ideal"}, "leave it out"),
        ({"ring_width": 0.1}, "has its rings already"),
    ):
        with pytest.raises(ValueError, match=words):
            expected_frc(power, **(ok | change))
    with pytest.raises(ValueError, match="n_independent"):
        expected_frc(power.drop_vars("n_independent"), **ok)
    with pytest.raises(ValueError, match="dims"):
        expected_frc(power.values, **ok)
    with pytest.raises(ValueError, match="outside the power's frequencies"):
        dose_for_resolution(flat_power(q=[0.1, 0.3]), resolution_A=2, aberrations={"C10": -900.0}, **OPTICS)
    with pytest.raises(ValueError, match="ring_width"):
        radial_power_spectrum(image_from_array(np.ones((8, 8)), pixel_A=(1, 1)), ring_width=0.01)
    with pytest.raises(ValueError, match="NaN"):
        radial_power_spectrum(image_from_array(np.full((8, 8), np.nan), pixel_A=(1, 1)))
    with pytest.raises(ValueError, match="fill"):
        misr.phase_power_of_slab("carbon", min_distance_A=3)


@pytest.mark.slow
def test_the_fusion_reaches_the_limit_and_does_not_pass_it(make_scan):
    """Native detector pixels, which a periodic simulation samples without loss."""
    dose, draws, width = 1000.0, 3, 0.05
    expected, phase = make_scan("atoms", strength=0.05, det_bin=1)
    truth = phase.assign_attrs(expected.attrs, units="rad")
    measured = []
    for draw in range(draws):
        views = misr.synthesize_views(misr.apply_dose(expected, dose, rng=[11, draw + 1]))
        image = misr.fuse_linear(views)["phase"]
        like = misr.phase_on_grid(truth, like=image)
        measured.append(misr.fourier_ring_correlation(image, like, ring_width=width, window=None))
    frc = sum(measured) / draws
    limit = expected_frc(like, dose_e_per_A2=dose, ring_width=width, window=None)
    snr = {name: curve.values**2 / (1 - curve.values**2) for name, curve in (("found", frc), ("limit", limit))}
    used = (limit.values > 0.3) & (limit.values < 0.95)
    assert used.sum() > 5
    assert snr["found"][used].sum() / snr["limit"][used].sum() == pytest.approx(1, abs=0.06)
