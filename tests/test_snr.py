"""Spectral SNR and full-dose FRC: the three relations between signal, noise and correlation, and real noise."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import misr
from misr.cube import image_from_array
from misr.snr import frc_from_snr, full_dose_frc, spectral_snr


def curve(values, name="frc", **attrs):
    q = 0.1 * np.arange(1, len(values) + 1)
    coords = {"frequency": ("frequency", q, {"units": "1/Å"}), "n_independent": ("frequency", 100.0 * q**0)}
    return xr.DataArray(np.asarray(values, float), dims="frequency", coords=coords, name=name, attrs=attrs)


@pytest.mark.parametrize(("kind", "frc"), [("half-map", 1 / 7), ("truth", 0.5), ("full-dose", 0.25)])
def test_one_third_means_the_same_in_every_kind(kind, frc):
    assert float(spectral_snr(curve([frc]), kind=kind)[0]) == pytest.approx(1 / 3)


@given(st.lists(st.floats(-0.999, 0.999), min_size=1, max_size=9), st.sampled_from(["half-map", "truth", "full-dose"]))
def test_inverse(values, kind):
    snr = spectral_snr(curve(values), kind=kind)
    np.testing.assert_allclose(frc_from_snr(snr, kind=kind), values, atol=1e-9)
    # and it rises with F, so that an interval carries over
    order = np.argsort(values)
    assert np.all(np.diff(snr.values[order]) >= -1e-12)


def test_full_dose_is_what_the_snr_says():
    halves = curve([0.9, 0.5, 1 / 7, 0.0, -0.1])
    snr = spectral_snr(halves, kind="half-map")
    np.testing.assert_allclose(full_dose_frc(halves), frc_from_snr(snr, kind="full-dose"), atol=1e-12)
    np.testing.assert_allclose(
        full_dose_frc(halves, against="truth")[:4], frc_from_snr(snr, kind="truth")[:4], atol=1e-12
    )
    assert full_dose_frc(halves, against="truth").attrs["kind"] == "truth"


def test_ends_of_the_range():
    assert spectral_snr(curve([1.0, -1.0]), kind="half-map").values.tolist() == [np.inf, -1.0]
    assert spectral_snr(curve([1.0]), kind="truth").values.tolist() == [np.inf]
    np.testing.assert_allclose(full_dose_frc(curve([1.0, -1 / 3, -0.9, -1.0])), [1.0, -1.0, -1.0, -1.0])
    assert frc_from_snr(curve([np.inf], name="snr"), kind="half-map").values.tolist() == [1.0]


def test_kind_is_taken_from_the_curve():
    assert float(spectral_snr(curve([0.5], kind="half-map"))[0]) == pytest.approx(2)
    assert float(spectral_snr(curve([0.5], against="truth"))[0]) == pytest.approx(1 / 3)
    assert float(spectral_snr(full_dose_frc(curve([0.5], kind="half-map")))[0]) == pytest.approx(2)


def test_labels_and_interval():
    frc = curve([0.5, 0.1], kind="half-map", ring_width=0.1, history='{"operation": "before"}')
    frc = frc.assign_coords(frc_low=("frequency", [0.4, -0.1]), frc_high=("frequency", [0.6, 0.3]))
    snr = spectral_snr(frc)
    assert (snr.name, snr.attrs["units"], snr.attrs["ring_width"]) == ("snr", "1", 0.1)
    assert snr.frequency.attrs["units"] == "1/Å"
    assert [line["operation"] for line in misr.cube_history(snr)] == ["before", "spectral_snr"]
    np.testing.assert_allclose(snr.snr_low, [0.8 / 0.6, -0.2 / 1.1])
    np.testing.assert_allclose(snr.snr_high, [3.0, 0.6 / 0.7])
    np.testing.assert_allclose(frc_from_snr(snr, kind="half-map").frc_low, [0.4, -0.1])
    full = full_dose_frc(frc)
    np.testing.assert_allclose(full.frc_high, [1.2 / 1.6, 0.6 / 1.3])
    assert "frc_low" in frc.coords
    assert "kind" in full.attrs
    assert full.n_independent.values.tolist() == [100.0, 100.0]


def noise(shape, rng):
    return image_from_array(rng.standard_normal(shape), pixel_A=(0.5, 0.5))


@pytest.mark.parametrize("snr", [0.3, 3.0])
def test_recovers_the_snr_of_real_noise(snr):
    """Halves s + √2 n₁ and s + √2 n₂, the whole s + (n₁ + n₂)/√2: powers snr and 1."""
    rng = np.random.default_rng(0)
    shape = (128, 128)
    signal, first, second = (noise(shape, rng) for _ in range(3))
    signal = signal * np.sqrt(snr)
    halves = misr.fourier_ring_correlation(signal + np.sqrt(2) * first, signal + np.sqrt(2) * second, window=None)
    whole = signal + (first + second) / np.sqrt(2)
    truth = misr.fourier_ring_correlation(whole, signal, window=None)
    for frc, kind in ((halves, "half-map"), (truth, "truth")):
        found = spectral_snr(frc, kind=kind)
        mean = float(found.weighted(found.n_independent).mean())
        assert mean == pytest.approx(snr, rel=0.05 if kind == "half-map" else 0.03)
    # the full-dose curve foretells the one against truth (in wide rings: a root of a scattered value is biased)
    halves, truth = (
        misr.fourier_ring_correlation(a, b, window=None, ring_width=0.2)
        for a, b in ((signal + np.sqrt(2) * first, signal + np.sqrt(2) * second), (whole, signal))
    )
    difference = full_dose_frc(halves, against="truth") - truth
    assert abs(float(difference.weighted(truth.n_independent).mean())) < 0.02


def test_of_noise_averages_to_nothing():
    """Unclipped: the mean of S over rings and seeds of unrelated images is zero within its error."""
    means = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        frc = misr.fourier_ring_correlation(noise((64, 64), rng), noise((64, 64), rng), window=None)
        snr = spectral_snr(frc, kind="half-map")
        means.append(float(snr.weighted(snr.n_independent).mean()))
    means = np.array(means)
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(means.size)
    # the same, clipped, would claim a signal
    assert means.std() < 0.1


@pytest.mark.parametrize(
    ("broken", "kind", "words"),
    [
        (curve([0.5]), None, "kind=None must be one of 'half-map'"),
        (curve([0.5]), "half", "kind='half' must be one of"),
        (curve([1.5]), "truth", "expected -1 to 1"),
        (curve([np.nan]), "truth", "NaN"),
        (curve([0.5]).drop_vars("frequency"), "truth", "fourier_ring_correlation"),
        (np.zeros(3), "truth", "got ndarray"),
    ],
)
def test_what_is_no_frc_is_refused(broken, kind, words):
    with pytest.raises(ValueError, match=words):
        spectral_snr(broken, kind=kind)


def test_only_half_maps_go_to_the_full_dose():
    with pytest.raises(ValueError, match="of the kind 'truth'"):
        full_dose_frc(curve([0.5], kind="truth"))
    with pytest.raises(ValueError, match="against='halves'"):
        full_dose_frc(curve([0.5]), against="halves")
    with pytest.raises(ValueError, match="expected -1 to inf"):
        frc_from_snr(curve([-1.5], name="snr"), kind="half-map")
