"""Rings, tapers and independent values, against plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from misr._rings import half_spectrum, independent_values, likeness, make_rings, window_likeness, window_taper

FIELDS = [((40, 40), (0.5, 0.5), None), ((33, 48), (0.5, 0.4), None), ((48, 31), (0.5, 0.5), 0.11)]


def whole_frequencies(shape, pixel):
    return np.hypot(np.fft.fftfreq(shape[0], pixel[0])[:, None], np.fft.fftfreq(shape[1], pixel[1])[None])


@pytest.mark.parametrize(("shape", "pixel", "width"), FIELDS)
def test_half_a_spectrum_sums_as_the_whole(shape, pixel, width):
    rings = make_rings(shape, pixel, width)
    values = np.random.default_rng(0).standard_normal(shape)
    power, label = np.abs(np.fft.fft2(values)) ** 2, rings.whole()
    expected = np.bincount(label.ravel(), weights=power.ravel())[1:]
    np.testing.assert_allclose(rings.sums(np.abs(half_spectrum(values)) ** 2), expected)
    np.testing.assert_array_equal(rings.count, np.bincount(label.ravel())[1:])
    q = whole_frequencies(shape, pixel)
    mean = [q[label == one].mean() for one in np.flatnonzero(rings.used) + 1]
    np.testing.assert_allclose(rings.frequency[rings.used], mean)
    assert q[label > 0].max() < rings.nyquist <= 0.5 / max(pixel)
    inside = rings.used
    assert np.all((rings.edges[:-1] <= rings.frequency + 1e-12)[inside])
    assert np.all((rings.frequency <= rings.edges[1:] + 1e-12)[inside])


def independent_by_all_pairs(label, first, second):
    alike = np.fft.fft2(first**2) * np.fft.fft2(second**2).conj()
    alike = alike.real / alike[0, 0].real
    n = []
    for ring in range(1, label.max() + 1):
        at = np.argwhere(label == ring)
        apart = at[:, None] - at[None]
        pairs = alike[apart[..., 0] % label.shape[0], apart[..., 1] % label.shape[1]].sum()
        n.append(len(at) ** 2 / pairs / 2 if len(at) else 0)
    return np.array(n)


@pytest.mark.parametrize(("shape", "pixel", "width"), FIELDS)
@pytest.mark.parametrize(
    ("weights", "tolerance"),
    [("hann", 1e-5), (("tukey", 0.4), 0.01), ("disk", 0.05), ("disk and hann", 0.03)],
    ids=["hann", "tukey", "disk", "disk and hann"],
)
def test_independent_values_equal_the_sum_over_all_pairs(shape, pixel, width, weights, tolerance):
    rings = make_rings(shape, pixel, width)
    y, x = np.indices(shape)
    disk = 1.0 * (np.hypot(y - 0.4 * shape[0], x - 0.5 * shape[1]) < 0.25 * min(shape))
    if "disk" in weights:
        pair = (disk, window_taper(shape, "hann") if "hann" in weights else disk)
    else:
        pair = (window_taper(shape, weights),) * 2
        np.testing.assert_allclose(window_likeness(shape, weights, weights), likeness(*pair), atol=1e-12)
    found = independent_values(rings.whole(), likeness(*pair), rings)
    expected = independent_by_all_pairs(rings.whole(), *pair)
    np.testing.assert_allclose(found[rings.used], expected[rings.used], rtol=tolerance)


def test_likeness_adds_up_to_the_share_of_the_field():
    hann = window_taper((24, 31), "hann")
    assert likeness(hann, hann).sum() == pytest.approx(hann.size * (hann**4).sum() / (hann**2).sum() ** 2)


def test_without_weights_half_of_the_pixels_are_independent():
    rings = make_rings((40, 40), (1.0, 1.0))
    np.testing.assert_allclose(independent_values(rings.whole(), None), rings.count / 2)


def test_rings_below_one_frequency_pixel():
    with pytest.raises(ValueError, match="below one frequency pixel"):
        make_rings((32, 32), (0.5, 0.5), 0.05)
