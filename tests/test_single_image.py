"""FRC of one image of counts: right for raw counts, refused for whatever else."""

from __future__ import annotations

import numpy as np
import pytest
from phase_object import bandlimited_phase

import misr
from misr.cube import image_from_array
from misr.single_image import single_image_frc


def counted(seed=0, n=128, dose=20.0, strength=0.2, cutoff=0.5):
    object_ = 1 + bandlimited_phase((n, n), 0.5, rng=seed, strength=strength, cutoff=cutoff)
    return image_from_array(np.random.default_rng(seed).poisson(dose * np.clip(object_, 0, None)), pixel_A=(0.5, 0.5))


def test_agrees_with_two_exposures():
    """Two halves of one exposure correlate as two exposures of half the dose."""
    whole = [single_image_frc(counted(seed), rng=seed, window=None) for seed in range(10)]
    pairs = []
    for seed in range(10):
        object_ = 1 + bandlimited_phase((128, 128), 0.5, rng=seed, strength=0.2, cutoff=0.5)
        rng = np.random.default_rng(100 + seed)
        shots = [image_from_array(rng.poisson(10 * np.clip(object_, 0, None)), pixel_A=(0.5, 0.5)) for _ in range(2)]
        pairs.append(misr.fourier_ring_correlation(*shots, window=None))
    difference = np.mean([w.values for w in whole], axis=0) - np.mean([p.values for p in pairs], axis=0)
    error = np.sqrt(2 / (2 * whole[0].n_independent.values * 10))
    assert np.abs(difference / error)[1:].max() < 4.5
    assert whole[0].attrs["kind"] == "half-map"
    assert float(misr.frc_resolution(whole[0])) == pytest.approx(2.0, rel=0.1)


def test_noise_resolves_nothing_and_seeds_repeat():
    flat = image_from_array(np.random.default_rng(3).poisson(4.0, (96, 96)), pixel_A=(0.5, 0.5))
    for seed in range(20):
        assert misr.frc_resolution(single_image_frc(flat, rng=seed)).attrs["status"] == "unresolved"
    np.testing.assert_array_equal(single_image_frc(flat, rng=1), single_image_frc(flat, rng=1))
    assert '"rng": 1' in single_image_frc(flat, rng=1).attrs["history"]


def test_scan_images_are_images():
    counts = counted(n=32)
    scan = counts.rename(y="scan_y", x="scan_x")
    np.testing.assert_array_equal(single_image_frc(scan, rng=0), single_image_frc(counts, rng=0))


def upsampled(counts):
    return image_from_array(np.repeat(np.repeat(counts.values, 2, 0), 2, 1), pixel_A=(0.25, 0.25))


def interpolated(counts):
    import scipy.ndimage as ndi

    return image_from_array(
        np.rint(np.clip(ndi.zoom(counts.values.astype(float), 2, order=1), 0, None)), pixel_A=(1, 1)
    )


def smoothed(counts):
    import scipy.ndimage as ndi

    return counts.copy(data=np.rint(ndi.gaussian_filter(counts.values.astype(float), 1.0)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda counts: (counts * 0.5).assign_attrs(units="1"), "no whole number of electrons"),
        (lambda counts: counts - 30, "below zero"),
        (lambda counts: counts * 3, "multiples of 3"),
        (lambda counts: 0 * counts, "no electron"),
        (lambda counts: (counts * 0.01).assign_attrs(units="rad"), "phase in rad"),
        (lambda counts: counts.where(counts > 5), "no finite real"),
        (lambda counts: counts.rename(y="z"), "expected an image of counts"),
        (upsampled, "upsampled, interpolated, smoothed"),
        (interpolated, "upsampled, interpolated, smoothed"),
        (smoothed, "upsampled, interpolated, smoothed"),
    ],
)
def test_what_is_no_raw_count_is_refused(spoil, words):
    with pytest.raises(ValueError, match=words):
        single_image_frc(spoil(counted()), rng=0)


@pytest.mark.parametrize("dose", [0.02, 1.0, 50.0])
def test_raw_counts_are_never_refused(dose):
    for seed in range(40):
        single_image_frc(counted(seed, n=32, dose=dose), rng=seed)
