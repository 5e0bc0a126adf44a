"""Aberrations and rotation from the cube alone: right, or said to be doubtful; never wrong in a calm voice."""

from __future__ import annotations

import math
import warnings

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from phase_object import at_dose, atoms_phase, phase_object_cube, quarter_turned

import misr

ASTIGMATISM = {"C12": 40.0, "phi12": 0.6}


def film_cube(C10, *, pixels=144, seed=1, empty=None, strength=0.1):
    """Scan of a thin film of atoms, 24 pixels across the disk at 72 Å; ``empty``: a part of it that is vacuum."""
    phase = atoms_phase((pixels, pixels), 0.5, rng=seed, density=0.3, strength=strength)
    if empty is not None:
        phase[empty] = 0
    return phase_object_cube(phase, 0.5, aberrations={"C10": C10, **ASTIGMATISM}, det_bin=3)[0]


@pytest.fixture(scope="module")
def films():
    """Expected counts by C10 (Å); their labels tell nothing of the aberrations."""
    return {C10: unlabelled(film_cube(C10)) for C10 in (-1500.0, 1500.0)}


def unlabelled(cube):
    """Without what a fit is to find."""
    cube = cube.copy(deep=False)
    for name in ("C10_A", "C12_A", "phi12_rad", "rotation_deg"):
        cube.attrs.pop(name, None)
    return cube


@pytest.fixture(scope="module")
def small():
    """Counts of a film in 48 Å at 2000 e/Å², for what needs any fit at all."""
    phase = atoms_phase((96, 96), 0.5, rng=1, density=0.3, strength=0.08)
    cube = phase_object_cube(phase, 0.5, aberrations={"C10": -800.0, **ASTIGMATISM}, det_bin=2)[0]
    return at_dose(unlabelled(cube), 2000, rng=0)


@pytest.fixture(scope="module")
def small_fit(small):
    return misr.fit_aberrations(small)


def column_by_column(cube):
    """The same scan from a camera that is read out the other way round, and does not say so."""
    swapped = cube.rename(det_y="det_x", det_x="det_y").transpose(*cube.dims)
    return swapped.assign_attrs(cube.attrs)


def quiet_fit(cube, **options):
    """A fit, and the reasons it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = misr.fit_aberrations(cube, **options)
    return fit, [str(w.message) for w in caught if "not certain" in str(w.message)]


def is_doubtful(cube, **options):
    """A fit that must not be confident, and must say why."""
    fit, said = quiet_fit(cube, **options)
    assert not fit.attrs["confident"]
    assert len(said) == 1
    assert fit.attrs["reason"] in said[0]
    return fit


def angle_between(a, b):
    return abs((float(a) - b + 180) % 360 - 180)


def check_close(fit, C10, rotation_deg, *, C12=40.0, phi12=0.6):
    """Twice the defocus error that the issue allows a field of 128 Å, and the same rotation and astigmatism."""
    assert float(fit.C10) == pytest.approx(C10, rel=0.02)
    assert angle_between(fit.rotation_deg, rotation_deg) < 1
    found = float(fit.C12) * np.exp(2j * float(fit.phi12))
    assert abs(found - C12 * np.exp(2j * phi12)) < 20
    # and its own errors are not far from that: five would be one in a million
    assert abs(float(fit.C10) - C10) < 5 * float(fit.C10_stderr)
    assert angle_between(fit.rotation_deg, rotation_deg) < 5 * float(fit.rotation_deg_stderr)


@pytest.mark.parametrize("C10", [-1500.0, 1500.0])
def test_film_at_a_hundred_electrons(films, C10):
    fit, said = quiet_fit(at_dose(films[C10], 100, rng=2))
    assert fit.attrs["confident"], said
    assert not said
    assert int(fit.transposed) == 0
    check_close(fit, C10, 0.0)
    assert 1 < float(fit.C10_stderr) < 30
    assert 0.03 < float(fit.rotation_deg_stderr) < 1


def test_turned_and_transposed_detectors_are_found(films):
    straight = quarter_turned(at_dose(films[1500.0], 100, rng=2))
    cube = column_by_column(straight)
    fit, said = quiet_fit(cube)
    assert fit.attrs["confident"], said
    assert int(fit.transposed) == 1
    check_close(fit, 1500.0, 90.0)
    calibrated = misr.calibrate_cube(cube, fit)
    assert calibrated.attrs["rotation_deg"] == float(fit.rotation_deg)
    assert calibrated.attrs["C10_A"] == float(fit.C10)
    np.testing.assert_array_equal(calibrated.values, straight.values)
    np.testing.assert_allclose(calibrated.det_y, straight.det_y)


def test_turned_detector_alone(small, small_fit):
    fit, _ = quiet_fit(quarter_turned(small))
    assert float(fit.C10) == pytest.approx(float(small_fit.C10), abs=3)
    assert angle_between(fit.rotation_deg, float(small_fit.rotation_deg) + 90) < 0.3
    assert float(fit.C12) == pytest.approx(float(small_fit.C12), abs=3)


def test_transposed_detector_alone(small, small_fit):
    fit, _ = quiet_fit(column_by_column(small))
    assert int(fit.transposed) == 1
    assert float(fit.C10) == pytest.approx(float(small_fit.C10), abs=3)
    assert angle_between(fit.rotation_deg, float(small_fit.rotation_deg)) < 0.3


def test_a_calibrated_cube_stays_calibrated(small):
    # a fit is of the cube that it was given: the second finds nothing left to swap, and nothing is swapped back
    once = misr.calibrate_cube(column_by_column(small), quiet_fit(column_by_column(small))[0])
    np.testing.assert_array_equal(once.values, small.values)
    again, _ = quiet_fit(once)
    twice = misr.calibrate_cube(once, again)
    assert float(again.C10) == pytest.approx(once.attrs["C10_A"], abs=3)
    np.testing.assert_array_equal(twice.values, small.values)


def test_a_fit_is_a_dataset_of_scalars(small_fit):
    units = {"C10": "Å", "C12": "Å", "phi12": "rad", "rotation_deg": "degrees"}
    for name, unit in units.items():
        for variable in (small_fit[name], small_fit[f"{name}_stderr"]):
            assert variable.shape == ()
            assert variable.attrs["units"] == unit
            assert np.isfinite(variable)
        assert float(small_fit[f"{name}_stderr"]) > 0
    assert set(small_fit.data_vars) == {*units, *(f"{name}_stderr" for name in units), "transposed"}
    assert float(small_fit.C12) >= 0
    assert 0 <= float(small_fit.phi12) < math.pi
    assert 0 <= float(small_fit.rotation_deg) < 360
    assert 0 <= small_fit.attrs["probability"] <= 1
    assert 0.5 <= small_fit.attrs["sign_probability"] <= 1
    assert small_fit.attrs["log_likelihood"] > 100
    assert small_fit.attrs["energy_eV"] == 300e3
    assert misr.cube_history(small_fit)[-1]["operation"] == "fit_aberrations"


def test_labels_of_the_cube_are_not_peeked_at(small, small_fit):
    fit, _ = quiet_fit(misr.with_aberrations(small, {"C10": 2000.0}, rotation_deg=77.0))
    assert float(fit.C10) == float(small_fit.C10)
    assert float(fit.rotation_deg) == float(small_fit.rotation_deg)


def test_known_rotation_decides_the_twin(small):
    # against what the atoms say
    fit, said = quiet_fit(small, rotation_deg=180.0)
    assert fit.attrs["confident"], said
    assert float(fit.C10) == pytest.approx(800, abs=25)
    assert angle_between(fit.rotation_deg, 180.0) < 1e-9
    assert abs(float(fit.C12) * np.exp(2j * float(fit.phi12)) + 40 * np.exp(2j * 0.6)) < 15


def test_known_sign_of_the_defocus_decides_the_twin(small):
    fit, said = quiet_fit(small, defocus_sign=-1)
    assert fit.attrs["confident"], said
    assert float(fit.C10) == pytest.approx(800, abs=25)
    assert angle_between(fit.rotation_deg, 180.0) < 2


def test_known_rotation_and_sign_are_both_kept(small):
    fit, _ = quiet_fit(small, rotation_deg=0.0, defocus_sign=-1)  # wrong: the scan is underfocused
    assert float(fit.C10) > 0 or not fit.attrs["confident"]


def test_a_rotation_in_the_labels_is_not_believed(small):
    turned = quarter_turned(small)  # and still says 0 degrees, as files do that do not know
    result = misr.super_resolve(turned.assign_attrs(rotation_deg=0.0), n_views=40, rng=0)
    assert abs((result.attrs["rotation_deg"] - 90 + 90) % 180 - 90) < 3  # up to the twin


@pytest.mark.parametrize("field", [4, 6])
def test_a_scan_smaller_than_the_aperture_resolves(disk_cube, field):
    tiny = misr.apply_dose(disk_cube(shape=(field, field), scan_step_A=0.3), 1000, rng=0)
    with pytest.raises(ValueError, match="smaller than what the aperture resolves"):
        quiet_fit(tiny)


def test_largest_defocus_bounds_the_search(small):
    outside, _ = quiet_fit(small, max_defocus_A=300.0)
    assert abs(float(outside.C10)) < 400 or not outside.attrs["confident"]


def test_dask_equals_numpy(small, small_fit):
    lazy = small.copy(data=da.from_array(small.values, chunks=(7, 24, 16, -1)))
    fit, _ = quiet_fit(lazy)
    for name in small_fit.data_vars:
        assert float(fit[name]) == pytest.approx(float(small_fit[name]), rel=1e-3, abs=1e-3)
    assert fit.attrs["confident"] == small_fit.attrs["confident"]


def test_a_fit_goes_wherever_aberrations_go(small, small_fit):
    labelled = misr.with_aberrations(small, small_fit)
    assert misr.aberrations_of(labelled)["C10"] == float(small_fit.C10)
    assert labelled.attrs["rotation_deg"] == float(small_fit.rotation_deg)
    views = misr.synthesize_views(small, small_fit)
    own = misr.synthesize_views(labelled)
    np.testing.assert_allclose(views.shift_y, own.shift_y)
    np.testing.assert_allclose(views.shift_x, own.shift_x)
    result = misr.super_resolve(small, aberrations=small_fit)
    assert misr.aberrations_of(result)["C10"] == float(small_fit.C10)


def test_a_fit_survives_files(small_fit, tmp_path):
    misr.save_result(small_fit, tmp_path / "fit.nc")
    back = misr.read_result(tmp_path / "fit.nc")
    for name in small_fit.data_vars:
        assert float(back[name]) == float(small_fit[name])
        assert back[name].attrs == small_fit[name].attrs
    assert back.attrs == small_fit.attrs  # a bool comes back as a number
    # and through xarray's own files
    small_fit.to_netcdf(tmp_path / "plain.nc")
    plain = xr.load_dataset(tmp_path / "plain.nc")
    assert bool(plain.attrs["confident"]) == bool(small_fit.attrs["confident"])
    doubtful = small_fit.assign_attrs(confident=False, reason="because")
    misr.save_result(doubtful, tmp_path / "doubt.nc")
    assert not misr.read_result(tmp_path / "doubt.nc").attrs["confident"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation_deg": math.nan}, "rotation_deg"),
        ({"defocus_sign": 0}, "defocus_sign"),
        ({"defocus_sign": -500}, "defocus_sign"),
        ({"max_defocus_A": 0.0}, "max_defocus_A"),
        ({"max_defocus_A": math.inf}, "max_defocus_A"),
        ({"astigmatism_A": -1.0}, "astigmatism_A"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 0.3}, "confidence"),
        ({"orders": ("C10", "C99")}, "C99"),
    ],
)
def test_arguments_out_of_range_are_refused(disk_cube, options, message):
    with pytest.raises(ValueError, match=message):
        misr.fit_aberrations(disk_cube(), **options)


def test_transposing_twice_is_nothing(disk_cube):
    cube = disk_cube(center=(1.0, -0.5)).isel(det_y=slice(1, None))
    once = misr.transpose_detector(cube)
    assert once.sizes["det_x"] == 15
    np.testing.assert_array_equal(once.values, np.swapaxes(cube.values, 2, 3))
    twice = misr.transpose_detector(once)
    np.testing.assert_array_equal(twice.values, cube.values)
    np.testing.assert_array_equal(twice.det_y, cube.det_y)
    assert [e["operation"] for e in misr.cube_history(twice)[-2:]] == ["transpose_detector"] * 2
    assert "transpose_detector" not in cube.attrs["history"]


# bad input: answered, not guessed


def test_vacuum_is_doubtful(disk_cube):
    vacuum = disk_cube(counts=1.0, shape=(36, 36), detector=16, radius=5.0, dose_e_per_A2=1.0)
    is_doubtful(at_dose(vacuum, 100, rng=0))


def test_noise_without_a_disk_is_refused_or_doubtful():
    counts = np.random.default_rng(0).poisson(0.5, size=(24, 24, 24, 24)).astype(np.uint16)
    cube = misr.cube_from_array(counts, scan_step_A=2.0, det_step_mrad=2.0, energy_eV=300e3)
    try:
        is_doubtful(cube)
    except ValueError as error:
        assert "disk" in str(error)  # noqa: PT017
    known = misr.cube_from_array(counts, scan_step_A=2.0, det_step_mrad=2.0, energy_eV=300e3, semiangle_mrad=10.0)
    try:
        is_doubtful(known)
    except ValueError as error:
        assert "disk" in str(error)  # noqa: PT017


@pytest.mark.parametrize("dose", [pytest.param(100, marks=pytest.mark.slow), 3000])
def test_in_focus_absorption_is_doubtful(dose):
    # transmission exp(-a): amplitude contrast in focus, where a phase would show none
    absorption = atoms_phase((96, 96), 0.5, rng=1, density=0.3, strength=0.05)
    absorption = 1j * (absorption - absorption.min())
    cube = phase_object_cube(absorption, 0.5, aberrations={"C10": 0.0}, det_bin=3)[0]
    is_doubtful(at_dose(unlabelled(cube), dose, rng=0))


def test_a_disk_cut_by_the_detector_is_refused(small):
    with pytest.raises(ValueError, match="edge"):
        misr.fit_aberrations(small.isel(det_x=slice(0, 18)))


def never_calmly_wrong(cube, C10, rotation_deg=0.0):
    fit, _ = quiet_fit(cube)
    if fit.attrs["confident"]:
        check_close(fit, C10, rotation_deg)
    return fit


@pytest.mark.parametrize("empty", [np.s_[:72], pytest.param(np.s_[:, 72:], marks=pytest.mark.slow)])
def test_half_empty_scan(empty):
    cube = unlabelled(film_cube(-1500.0, empty=empty))
    never_calmly_wrong(at_dose(cube, 100, rng=0), -1500.0)


def test_beam_current_that_drifts(films):
    cube = at_dose(films[-1500.0], 100, rng=2)
    current = np.linspace(1.0, 0.9, cube.sizes["scan_y"])[:, None, None, None]
    kept = np.random.default_rng(0).binomial(cube.values.astype(int), np.broadcast_to(current, cube.shape))
    fit = never_calmly_wrong(cube.copy(data=kept.astype(cube.dtype)), -1500.0)
    assert abs(float(fit.C10)) == pytest.approx(1500, rel=0.02)


def test_lost_lines(films):
    cube = at_dose(films[-1500.0], 100, rng=2).copy()
    cube[{"scan_y": [7, 8, 30]}] = 0
    never_calmly_wrong(cube, -1500.0)


def test_a_source_of_half_an_angstrom_does_no_harm(small, small_fit):
    # a Gaussian source of 0.5 Å (standard deviation) averages over probe positions: Gauss-Hermite, 3 × 3 of them
    places, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    phase = atoms_phase((96, 96), 0.5, rng=1, density=0.3, strength=0.08)
    q = np.fft.fftfreq(96, 0.5)
    total = 0.0
    for y, weight_y in zip(0.5 * places, weights, strict=True):
        for x, weight_x in zip(0.5 * places, weights, strict=True):
            ramp = np.exp(2j * np.pi * (q[:, None] * y + q[None, :] * x))
            moved = np.fft.ifft2(np.fft.fft2(phase) * ramp).real
            made = phase_object_cube(moved, 0.5, aberrations={"C10": -800.0, **ASTIGMATISM}, det_bin=2)[0]
            total = total + weight_y * weight_x * made.values
    blurred = at_dose(unlabelled(made.copy(data=total)), 2000, rng=0)
    fit, _ = quiet_fit(blurred)
    assert abs(float(fit.C10) - float(small_fit.C10)) < 8  # 1 %
    assert abs(float(fit.C12) - float(small_fit.C12)) < 8
    assert abs(float(fit.rotation_deg - small_fit.rotation_deg + 180) % 360 - 180) < 0.5


@pytest.mark.parametrize("dose", [3, 10])
def test_too_few_electrons_are_doubtful_or_right(films, dose):
    fit, said = quiet_fit(at_dose(films[-1500.0], dose, rng=0))
    if fit.attrs["confident"]:
        assert abs(float(fit.C10) + 1500) < max(30, 5 * float(fit.C10_stderr))
    else:
        assert len(said) == 1
    assert float(fit.C10_stderr) > 5


def honeycomb_phase(strength=0.05):
    """Graphene stretched by 3 % into a field of 48 Å, up to 0.98 1/Å."""
    cell = [(0, 0), (1 / 2, 1 / 2), (1 / 3, 0), (5 / 6, 1 / 2)]
    at = 48.0 * np.array([((i + y) / 11, (j + x) / 19) for i in range(11) for j in range(19) for y, x in cell])
    q = np.fft.fftfreq(96, 0.5)
    spectrum = np.exp(-2j * np.pi * np.outer(q, at[:, 0])) @ np.exp(-2j * np.pi * np.outer(at[:, 1], q))
    away = np.hypot(q[:, None], q[None, :])
    spectrum *= np.exp(-2 * (np.pi * 0.25 * away) ** 2) * (away < 0.98) * (away > 0)
    phase = np.fft.ifft2(spectrum).real
    return strength * phase / phase.std()


@pytest.mark.slow
@pytest.mark.parametrize("C10", [-1000.0, 1000.0])
def test_honeycomb_is_not_turned_inside_out(C10):
    # of graphene's first reflections alone the holes are the strongest feature: negative skewness, though of atoms
    cube = phase_object_cube(honeycomb_phase(), 0.5, aberrations={"C10": C10}, det_bin=3)[0]
    for seed in range(6):
        fit, _ = quiet_fit(at_dose(unlabelled(cube), 1000, rng=seed), max_defocus_A=3000.0)
        assert float(fit.C10) * C10 > 0 or not fit.attrs["confident"]


@pytest.mark.slow
def test_views_that_move_by_a_whole_step():
    # 1.25 mrad × 1600 Å is the scan's step of 2 Å: near that, folded frequencies look alike in neighbouring pixels
    phase = atoms_phase((192, 192), 0.5, rng=1, density=0.3, strength=0.1)
    cube = phase_object_cube(phase, 0.5, aberrations={"C10": -1500.0, **ASTIGMATISM}, det_bin=6)[0]
    never_calmly_wrong(at_dose(unlabelled(cube), 1000, rng=0), -1500.0)


# the landscape


def test_landscape_peaks_at_the_truth(small):
    trials = np.arange(-1400.0, 1401.0, 50.0)
    landscape = misr.aberration_landscape(small, C10=trials, rotation_deg=[0.0, 5.0, 90.0, 180.0], C12=40.0, phi12=0.6)
    assert landscape.dims == ("rotation_deg", "C10")
    assert landscape.C10.attrs["units"] == "Å"
    assert landscape.rotation_deg.attrs["units"] == "degrees"
    assert landscape.attrs["units"] == "1"
    assert np.isfinite(landscape).all()
    best = landscape.sel(rotation_deg=0.0).idxmax("C10")
    assert float(best) == -800.0
    assert float(landscape.sel(rotation_deg=0.0).max()) == float(landscape.sel(rotation_deg=[0.0, 5.0, 90.0]).max())
    assert float(landscape.max()) > 100
    assert misr.cube_history(landscape)[-1]["operation"] == "aberration_landscape"


def test_landscape_has_the_twin(small):
    own = misr.aberration_landscape(small, C10=[-900.0, -800.0, 500.0], rotation_deg=[10.0], C12=40.0, phi12=0.6)
    twin = misr.aberration_landscape(
        small, C10=[900.0, 800.0, -500.0], rotation_deg=[190.0], C12=40.0, phi12=0.6 + math.pi / 2
    )
    np.testing.assert_allclose(own.values, twin.values, rtol=1e-3)


def test_landscape_knows_transposition(small):
    options = {"C10": [-800.0], "C12": 40.0, "phi12": 0.6}
    own = misr.aberration_landscape(small, **options)
    other = misr.aberration_landscape(column_by_column(small), **options, transposed=True)
    np.testing.assert_allclose(own.values, other.values, rtol=1e-3)
    assert misr.aberration_landscape(small, **options, transposed=True).item() < 0.5 * own.item()


def test_landscape_needs_trials(disk_cube):
    with pytest.raises(ValueError, match="one finite trial value or a list"):
        misr.aberration_landscape(disk_cube(), C10=[])
