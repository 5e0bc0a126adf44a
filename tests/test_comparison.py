"""Comparison with a reference: shift, sign and scale come off exactly, and nothing is found in noise."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import xarray as xr

import misr
from misr import snr
from misr.comparison import compare_images
from misr.cube import image_from_array

PIXEL = 0.5


def frequency(shape, pixel=(PIXEL, PIXEL)):
    return np.fft.fftfreq(shape[0], pixel[0])[:, None], np.fft.fftfreq(shape[1], pixel[1])[None]


def texture(shape, rng, *, pixel=(PIXEL, PIXEL), width=0.3):
    """Periodic, like amorphous matter: power falls as a Gaussian of frequency."""
    q_y, q_x = frequency(shape, pixel)
    values = np.fft.fft2(rng.standard_normal(shape)) * np.exp(-((q_y**2 + q_x**2) / width**2) / 2)
    values[0, 0] = 0
    values = np.fft.ifft2(values).real
    return values / values.std()


def moved(values, shift, pixel=(PIXEL, PIXEL)):
    q_y, q_x = frequency(values.shape, pixel)
    return np.fft.ifft2(np.fft.fft2(values) * np.exp(-2j * np.pi * (q_y * shift[0] + q_x * shift[1]))).real


def image(values, pixel=(PIXEL, PIXEL), *, periodic=False, **options):
    attrs = {"period_A": [n * p for n, p in zip(values.shape, pixel, strict=True)]} if periodic else {}
    return image_from_array(values, pixel_A=pixel, attrs=attrs, **options)


def crop(picture, n=8):
    return picture.isel(y=slice(n, -n), x=slice(n, -n))


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("pixel", [(0.5, 0.5), (0.4, 0.6)])
def test_everything_linear_comes_off(periodic, pixel):
    truth = texture((96, 112), np.random.default_rng(0), pixel=pixel)
    shift = (1.37, -0.82)
    pair = [image(v, pixel, periodic=periodic) for v in (5 - 0.25 * moved(truth, shift, pixel), truth)]
    if not periodic:
        pair = [crop(p) for p in pair]
    result = compare_images(*pair)
    assert (float(result.shift_y), float(result.shift_x)) == pytest.approx((-1.37, 0.82), abs=0.02)
    assert int(result.sign) == -1
    assert float(result.gain) == pytest.approx(0.25, rel=0.01)
    assert float(result.scale) == pytest.approx(4, rel=0.01)
    assert float(result.offset) == pytest.approx(20, rel=0.05)
    assert float(result.correlation) > 0.999
    assert float(result.nrmse) < 0.03
    np.testing.assert_allclose(result.image[6:-6, 6:-6], result.reference[6:-6, 6:-6], atol=0.1)
    assert float(result.frc.sel(frequency=slice(0.05, 0.6)).min()) > 0.99
    assert result.attrs["window"] == ("None" if periodic else "hann")
    # the aligned image lies where the reference has it
    assert result.image.dims == result.reference.dims == ("y", "x")
    assert result.attrs["registration"] == "found"


@pytest.mark.parametrize("periodic", [True, False])
def test_shift_of_a_noisy_image_is_found_within_a_fifth_of_an_angstrom(periodic):
    errors, pulls = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truth = texture((128, 128), rng, width=0.3)
        shift = rng.uniform(-3, 3, 2)
        noisy = moved(truth, shift) + 1.2 * rng.standard_normal(truth.shape)
        pair = [image(v, periodic=periodic) for v in (noisy, truth)]
        result = compare_images(*(pair if periodic else [crop(p) for p in pair]), max_shift_A=5)
        found = np.array([float(result.shift_y), float(result.shift_x)])
        errors.append(found + shift)
        pulls.append((found + shift) / [float(result.shift_y_stderr), float(result.shift_x_stderr)])
    assert np.abs(errors).max() < 0.2
    assert 0.5 < np.std(pulls) < 1.8


def test_unrelated_images_are_left_where_they_are(caplog):
    """False alarms at 1 %, and no correlation made by moving noise on noise."""
    moved_ones, means = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a, b = (image(texture((64, 64), rng, width=0.6)) for _ in range(2))
        with caplog.at_level(logging.WARNING, logger="misr.comparison"):
            result = compare_images(a, b, max_shift_A=5, false_alarm=0.01)
        moved_ones += result.attrs["registration"] == "found"
        if result.attrs["registration"] == "not significant":
            assert float(result.shift_y) == float(result.shift_x) == 0
            assert int(result.sign) == 1
            assert np.isinf(float(result.shift_y_stderr))
        means.append(float(result.frc.weighted(result.frc.n_independent).mean()))
        assert result.resolution.attrs["status"] == "unresolved"
    assert moved_ones <= 3
    assert "share too little to be aligned" in caplog.text
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(len(means))


def test_frc_against_truth_is_what_the_snr_says():
    rng = np.random.default_rng(3)
    truth = rng.standard_normal((128, 128))
    noisy = -2 * (moved(truth, (0.9, 0.3)) + rng.standard_normal(truth.shape))
    result = compare_images(image(noisy, periodic=True), image(truth, periodic=True))
    frc = result.frc.sel(frequency=slice(None, 0.9))
    assert float(frc.weighted(frc.n_independent).mean()) == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert result.frc.attrs["kind"] == "truth"
    assert float(snr.spectral_snr(frc).median()) == pytest.approx(1, rel=0.15)
    # a regression on a noisy image is weaker than its gain says
    assert float(result.gain) == pytest.approx(2, rel=0.05)
    assert float(result.scale) == pytest.approx(0.25, rel=0.05)
    assert float(result.nrmse) == pytest.approx(np.sqrt(0.5), rel=0.05)
    assert float(result.correlation) == pytest.approx(np.sqrt(0.5), rel=0.05)


def test_different_pixels_and_extents_share_the_coarser_grid_of_the_common_field():
    truth = texture((240, 240), np.random.default_rng(1), pixel=(0.25, 0.25))
    fine = image(truth, (0.25, 0.25))
    coarse = misr.phase_on_grid(
        image(truth, (0.25, 0.25), periodic=True),
        like=image(np.zeros((60, 36)), (0.5, 0.75), origin_A=(20.1, 10.3)),
    )
    coarse.attrs.pop("period_A")
    for pair in ((coarse, fine), (fine, coarse)):
        result = compare_images(*pair)
        np.testing.assert_allclose(np.diff(result.y), 0.5)
        np.testing.assert_allclose(np.diff(result.x), 0.75)
        assert (float(result.shift_y), float(result.shift_x)) == pytest.approx((0, 0), abs=0.02)
        assert float(result.correlation) > 0.99
        assert 20 < float(result.y[0]) < 20.7
        assert float(result.y[-1]) <= 49.7
    # one axis finer in one, the other in the other
    mixed = compare_images(crop(image(texture((96, 96), np.random.default_rng(2), pixel=(0.4, 0.6)), (0.4, 0.6))), fine)
    np.testing.assert_allclose(np.diff(mixed.y), 0.4)


def test_a_periodic_truth_reaches_past_its_own_edge():
    truth = texture((96, 96), np.random.default_rng(4))
    whole = image(truth, periodic=True)
    # a smaller field, moved by a distance that leads over the edge of the truth
    part = image(moved(truth, (2.0, 2.0))[:48, :48])
    result = compare_images(part, whole, max_shift_A=4)
    assert result.image.shape == (48, 48)
    assert (float(result.shift_y), float(result.shift_x)) == pytest.approx((-2, -2), abs=0.02)
    assert float(result.correlation) > 0.999


def test_a_shift_of_whole_pixels_leaves_the_image_as_it_is():
    """The noisy image is not interpolated when its pixels are the coarser: its noise stays white."""
    rng = np.random.default_rng(5)
    truth = texture((96, 96), rng)
    noisy = crop(image(moved(truth, (0.7, 0.2)) + rng.standard_normal(truth.shape)))
    result = compare_images(noisy, crop(image(truth)))
    raw = (result.image - float(result.offset)) / (float(result.sign) * float(result.scale))
    rows, columns = (np.rint((raw[d] - float(result[f"shift_{d}"]) - noisy[d][0]) / PIXEL).astype(int) for d in "yx")
    np.testing.assert_allclose(raw.values, noisy.values[np.ix_(rows, columns)], atol=1e-9)


def lattice(reflections):
    y, x = np.mgrid[:96, :96] * PIXEL
    phases = np.random.default_rng(1).uniform(0, 2 * np.pi, len(reflections))
    return sum(np.cos(2 * np.pi * (h * y + k * x) / 8 + p) for (h, k), p in zip(reflections, phases, strict=True))


@pytest.mark.parametrize("register", [True, "always"])
def test_a_crystal_is_matched_within_half_a_period(register):
    """Of three pairs of reflections chance could match the phases: they are moved on demand only."""
    every = [(h, k) for h in range(5) for k in range(-4, 5) if h > 0 or k > 0]
    reflections = [(2, 0), (0, 2), (2, 2)] if register == "always" else every
    truth = lattice(reflections)
    noisy = moved(truth, (0.6, -0.5)) + truth.std() * np.random.default_rng(0).standard_normal(truth.shape)
    pair = image(noisy, periodic=True), image(truth, periodic=True)
    result = compare_images(*pair, max_shift_A=1.9, sign=1, register=register, ring_width=0.15)
    assert (float(result.shift_y), float(result.shift_x)) == pytest.approx((-0.6, 0.5), abs=0.1)
    if register == "always":
        assert (
            compare_images(*pair, max_shift_A=1.9, sign=1, ring_width=0.15).attrs["registration"] == "not significant"
        )


def test_without_registration_only_sign_and_scale_are_fitted():
    truth = texture((96, 96), np.random.default_rng(6), width=0.1)
    result = compare_images(image(-moved(truth, (1.0, 0.0))), image(truth), register=False)
    assert (float(result.shift_y), int(result.sign)) == (0, -1)
    assert result.attrs["registration"] == "off"
    forced = compare_images(image(-truth), image(truth), register=False, sign=1)
    assert int(forced.sign) == 1
    assert float(forced.frc.max()) < 0
    assert float(forced.scale) < 0


def test_labels_and_history():
    truth = image(texture((64, 64), np.random.default_rng(0)))
    other = (truth * 2).assign_attrs(truth.attrs, units="1", history='{"operation": "before"}')
    result = compare_images(other, truth)
    assert isinstance(result, xr.Dataset)
    assert result.image.attrs["units"] == "rad"
    assert result.shift_y.attrs["units"] == result.y.attrs["units"] == "Å"
    assert [line["operation"] for line in misr.cube_history(result)] == ["before", "compare_images"]
    assert result.resolution.attrs["status"] == "sampling-limited"
    assert other.attrs["units"] == "1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.assign_coords(y=i.y + 500), "share 0 pixels along y"),
        (lambda i: i.assign_coords(x=i.x + 25), r"share 1[0-9] pixels along x"),
        (lambda i: i.where(i < 1), "image holds NaN"),
        (lambda i: i.rename(y="z"), "image: expected a DataArray"),
        (lambda i: i.values, "got ndarray"),
        (lambda i: i[:8], "at least 16 × 16"),
        (lambda i: i.assign_coords(y=i.y**2), "not increasing in uniform steps"),
        (lambda i: 0 * i, "the image is flat"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, words):
    truth = image(texture((64, 64), np.random.default_rng(0)))
    with pytest.raises(ValueError, match=words):
        compare_images(change(truth), truth)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sign": 2}, "sign=2"),
        ({"register": "yes"}, "register='yes'"),
        ({"max_shift_A": -1.0}, "max_shift_A"),
        ({"false_alarm": 0}, "false_alarm"),
        ({"window": "no window"}, "window='no window'"),
        ({"threshold": "2-bit"}, "must be one of"),
    ],
)
def test_unusable_options(options, words):
    truth = image(texture((64, 64), np.random.default_rng(0)))
    with pytest.raises(ValueError, match=words):
        compare_images(truth, truth, **options)


def test_of_a_dataset_its_phase_is_taken():
    rng = np.random.default_rng(0)
    truth, other = (image(texture((64, 64), rng) + 0.1 * rng.standard_normal((64, 64))) for _ in range(2))
    fused = xr.Dataset({"phase": truth, "phase_std": truth * 0 + 1})
    plain = compare_images(truth, other)
    for pair in ((fused, other), (truth, xr.Dataset({"phase": other})), (fused, xr.Dataset({"phase": other}))):
        xr.testing.assert_identical(compare_images(*pair), plain)
    with pytest.raises(ValueError, match=r"reference: a Dataset of \['contrast'\] holds no 'phase'"):
        compare_images(truth, xr.Dataset({"contrast": truth}))
