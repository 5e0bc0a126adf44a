"""FRC and what is read off it, against plain loops and known statistics."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from phase_object import bandlimited_phase

import misr
from misr.cube import image_from_array


def image(values, pixel_A=(0.5, 0.5), **options):
    return image_from_array(values, pixel_A=pixel_A, **options)


def noise(shape, seed, pixel_A=(0.5, 0.5)):
    return image(np.random.default_rng(seed).standard_normal(shape), pixel_A)


def curve(values, n=100.0, step=0.1):
    q = step * np.arange(1, len(values) + 1)
    n = np.broadcast_to(np.asarray(n, dtype=float), len(values))
    return xr.DataArray(
        np.asarray(values, dtype=float),
        dims="frequency",
        coords={"frequency": q, "n_independent": ("frequency", n)},
    )


# --- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "half_bit", "one_bit"), [(28, 0.4119, 0.5411), (112, 0.2997, 0.4457), (380, 0.2433, 0.3967)]
)
def test_thresholds_have_their_published_values(n, half_bit, one_bit):
    assert round(float(misr.frc_threshold("half-bit", n)), 4) == half_bit
    assert round(float(misr.frc_threshold("1-bit", n)), 4) == one_bit


@pytest.mark.parametrize(("kind", "bits"), [("half-bit", 0.5), ("1-bit", 1.0)])
def test_thresholds_hold_their_information_in_large_rings(kind, bits):
    # FRC of half maps F is a spectral SNR of 2F/(1 - F) of their sum, and log2(1 + SNR) bits
    level = float(misr.frc_threshold(kind, 1e12))
    assert np.log2(1 + 2 * level / (1 - level)) == pytest.approx(bits, abs=1e-3)


def test_threshold_by_number_and_in_arrays():
    assert misr.frc_threshold(0.143, np.arange(1.0, 4.0)).tolist() == [0.143] * 3
    levels = misr.frc_threshold("half-bit", np.array([28.0, 112.0, 380.0]))
    np.testing.assert_allclose(levels, [0.4119, 0.2997, 0.2433], atol=5e-5)


@pytest.mark.parametrize("kind", ["bit", "", 0, 1, -0.5, 1.5])
def test_unknown_threshold(kind):
    with pytest.raises(ValueError, match=r"must (be one of|lie between)"):
        misr.frc_threshold(kind, 10.0)


def test_threshold_takes_lists_and_refuses_empty_rings():
    assert misr.frc_threshold("half-bit", [28, 112]).shape == (2,)
    with pytest.raises(ValueError, match="expected positive"):
        misr.frc_threshold("half-bit", [28, 0])


# --- the curve -------------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(8, 40), st.integers(8, 40))
pixels = st.tuples(st.floats(0.2, 2.0), st.floats(0.2, 2.0))


@settings(max_examples=20)
@given(shapes, pixels, st.integers(0, 1000), st.sampled_from(["hann", None]))
def test_of_an_image_with_itself_and_its_negative(shape, pixel_A, seed, window):
    a = noise(shape, seed, pixel_A)
    np.testing.assert_allclose(misr.fourier_ring_correlation(a, a, window=window), 1, atol=1e-9)
    np.testing.assert_allclose(misr.fourier_ring_correlation(a, -2 * a, window=window), -1, atol=1e-9)
    np.testing.assert_allclose(misr.fourier_ring_correlation(a, 3 * a + 7, window=window), 1, atol=1e-9)


@settings(max_examples=15)
@given(shapes, pixels, st.integers(0, 1000))
def test_is_symmetric_and_bounded(shape, pixel_A, seed):
    a, b = noise(shape, seed, pixel_A), noise(shape, seed + 1, pixel_A)
    frc = misr.fourier_ring_correlation(a, b)
    np.testing.assert_allclose(frc, misr.fourier_ring_correlation(b, a), atol=1e-12)
    assert float(np.abs(frc).max()) <= 1 + 1e-12
    assert bool((frc.frequency.diff("frequency") > 0).all())
    # rings end below the smaller Nyquist frequency
    assert float(frc.frequency[-1]) <= 0.5 / max(pixel_A) + 1e-9


@pytest.mark.parametrize(("shape", "pixel_A"), [((24, 24), (0.5, 0.5)), ((20, 33), (0.5, 0.5)), ((21, 32), (0.7, 0.4))])
@pytest.mark.parametrize("ring_width", [None, 0.15])
def test_equals_a_plain_loop(shape, pixel_A, ring_width):
    a, other = noise(shape, 0, pixel_A), noise(shape, 1, pixel_A)
    b = a + other
    frc = misr.fourier_ring_correlation(a, b, window=None, ring_width=ring_width)
    width = ring_width or 1 / min(shape[0] * pixel_A[0], shape[1] * pixel_A[1])
    fa, fb = np.fft.fft2(a.values - a.values.mean()), np.fft.fft2(b.values - b.values.mean())
    rings = {}
    for i, q_y in enumerate(np.fft.fftfreq(shape[0], pixel_A[0])):
        for j, q_x in enumerate(np.fft.fftfreq(shape[1], pixel_A[1])):
            q = float(np.hypot(q_y, q_x))
            if 0 < q < 0.5 / max(pixel_A) * (1 - 1e-9):
                # one-pixel rings are centred on whole pixels; wide ones are counted from zero
                ring = int(q / width + 0.5) if ring_width is None else int(q / width)
                rings.setdefault(ring, []).append((fa[i, j], fb[i, j], q))
    assert frc.sizes["frequency"] == len(rings)
    for found, ring in zip(frc, sorted(rings), strict=True):
        first, second, q = (np.array(values) for values in zip(*rings[ring], strict=True))
        cross = (first * second.conj()).sum().real
        assert float(found) == pytest.approx(cross / np.sqrt((abs(first) ** 2).sum() * (abs(second) ** 2).sum()))
        assert float(found.frequency) == pytest.approx(q.mean())
        assert float(found.n_independent) == pytest.approx(max(len(q) / 2, 1))


def test_labels():
    a = noise((32, 32), 0)
    frc = misr.fourier_ring_correlation(a, a, ring_width=0.2)
    assert frc.dims == ("frequency",)
    assert frc.frequency.attrs["units"] == "1/Å"
    assert frc.attrs["ring_width"] == 0.2
    assert frc.attrs["nyquist"] == 1.0
    assert frc.sizes["frequency"] == pytest.approx(5, abs=1)
    assert misr.frc_resolution(frc).attrs["ring_width"] == 0.2


def test_ring_below_one_frequency_pixel():
    a = noise((32, 32), 0)
    with pytest.raises(ValueError, match=r"ring_width=0\.05 is below one frequency pixel"):
        misr.fourier_ring_correlation(a, a, ring_width=0.05)


@pytest.mark.parametrize("window", ["hann", None])
@pytest.mark.parametrize("snr", [0.25, 1.0, 4.0])
def test_known_signal_to_noise(window, snr):
    """Two images s + n₁, s + n₂ with white power: FRC = SNR / (SNR + 1); one against s: √ of it."""
    signal = noise((192, 192), 0) * np.sqrt(snr)
    a, b = signal + noise((192, 192), 1), signal + noise((192, 192), 2)
    for other, expected in ((b, snr / (snr + 1)), (signal, np.sqrt(snr / (snr + 1)))):
        frc = misr.fourier_ring_correlation(a, other, window=window)
        # a correlation ρ of n complex values scatters by (1 - ρ²)/√(2n)
        pull = (frc - expected) / ((1 - expected**2) / np.sqrt(2 * frc.n_independent))
        pull = pull[frc.n_independent > 20]
        assert float(np.abs(pull).max()) < 5
        # under the window narrow rings hold more independent values than stated, which errs on the safe side
        assert (0.7 if window is None else 0.45) < float(pull.std()) < 1.4
        assert abs(float(pull.mean())) < 5 / np.sqrt(pull.size)


@pytest.mark.parametrize(("window", "ring_width"), [(None, None), ("hann", None), ("hann", 0.1)])
def test_independent_values_are_counted_right(window, ring_width):
    """FRC of unrelated images scatters by 1/√(2n)."""
    curves = [
        misr.fourier_ring_correlation(
            noise((48, 48), seed), noise((48, 48), seed + 1), window=window, ring_width=ring_width
        )
        for seed in range(0, 400, 2)
    ]
    n = curves[0].n_independent.values
    scatter = np.sqrt(np.mean([c.values**2 for c in curves], axis=0) * 2 * n)
    assert scatter[n > 5].mean() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(scatter[n > 5], 1, atol=0.2)


def test_window_hides_the_borders():
    """Two unrelated images with the same ramp, which does not wrap round, correlate through it without a window."""
    ramp = 20 * np.linspace(-1, 1, 64)[:, None] * np.ones((1, 64))
    a, b = noise((64, 64), 0) + ramp, noise((64, 64), 1) + ramp
    beyond = slice(0.25, None)
    plain, tapered = (
        float(misr.fourier_ring_correlation(a, b, window=window).sel(frequency=beyond).mean())
        for window in (None, "hann")
    )
    assert plain > 0.2
    assert abs(tapered) < 0.05


# --- the number read off it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["hann", None])
@pytest.mark.parametrize(("threshold", "false_alarms"), [("half-bit", 0), ("1-bit", 0), (0.5, 0), (0.143, 0.05)])
def test_unrelated_images_are_not_resolved(window, threshold, false_alarms):
    # a low fixed threshold leaves it to the rings' chance, three standard deviations in some twenty rings
    resolved = 0
    for seed in range(100):
        frc = misr.fourier_ring_correlation(noise((64, 48), 2 * seed), noise((64, 48), 2 * seed + 1), window=window)
        resolution = misr.frc_resolution(frc, threshold)
        assert np.isinf(float(resolution)) == (resolution.attrs["status"] == "unresolved")
        resolved += np.isfinite(float(resolution))
    assert resolved <= false_alarms * 100


def test_resolution_of_a_band_limited_image():
    signal = image(bandlimited_phase((128, 128), 0.5, rng=0, strength=1.0, cutoff=0.6))
    a, b = (signal + 0.05 * noise((128, 128), seed) for seed in (1, 2))
    for threshold in ("half-bit", 0.143, 0.5):
        resolution = misr.frc_resolution(misr.fourier_ring_correlation(a, b, window=None), threshold)
        assert float(resolution) == pytest.approx(1 / 0.6, rel=0.05)
        assert resolution.attrs["status"] == "crossed"
        assert resolution.attrs["units"] == "Å"
        assert resolution.attrs["threshold"] == str(threshold)


def test_sampling_limited():
    a = noise((64, 64), 0)
    resolution = misr.frc_resolution(misr.fourier_ring_correlation(a, a + 0.1 * noise((64, 64), 1)))
    assert resolution.attrs["status"] == "sampling-limited"
    assert float(resolution) == pytest.approx(1.0, rel=0.05)  # two pixels


def test_crossing_is_interpolated():
    resolution = misr.frc_resolution(curve([1.0, 0.9, 0.7, 0.3, 0.1]), 0.5)
    assert float(resolution) == pytest.approx(1 / 0.35)


def test_first_crossing_counts():
    resolution = misr.frc_resolution(curve([1.0, 0.9, 0.4, 0.9, 0.1]), 0.5)
    assert 1 / 0.3 < float(resolution) < 1 / 0.2


def test_weak_leading_rings_are_skipped():
    resolution = misr.frc_resolution(curve([0.1, 0.2, 0.9, 0.8, 0.2]), 0.5)
    assert 1 / 0.5 < float(resolution) < 1 / 0.4


def test_chance_does_not_start_the_search():
    # 0.2 beats the fixed threshold 0.143, but with 50 values a ring of unrelated images reaches it by chance
    assert misr.frc_resolution(curve([0.2, 0.16, 0.2, 0.1], n=50), 0.143).attrs["status"] == "unresolved"
    assert misr.frc_resolution(curve([0.2, 0.16, 0.2, 0.1], n=5000), 0.143).attrs["status"] == "crossed"


def test_resolution_wants_a_curve():
    with pytest.raises(ValueError, match=r"lacks \['n_independent'\]: make it with"):
        misr.frc_resolution(curve([1.0, 0.5]).drop_vars("n_independent"))


# --- images that do not fit ------------------------------------------------------------------------------------------


def test_images_must_share_a_grid():
    a = noise((32, 32), 0)
    with pytest.raises(ValueError, match="shapes differ"):
        misr.fourier_ring_correlation(a, noise((32, 30), 0))
    with pytest.raises(ValueError, match="coordinate 'y' of the images differs"):
        misr.fourier_ring_correlation(a, noise((32, 32), 0, (0.6, 0.5)))
    with pytest.raises(ValueError, match=r"coordinate 'x' of the images differs by up to 0\.25"):
        misr.fourier_ring_correlation(a, image(a.values, origin_A=(0.0, 0.25)))


def test_images_must_be_images():
    a = noise((32, 32), 0)
    with pytest.raises(ValueError, match="expected images with dims"):
        misr.fourier_ring_correlation(a.rename(y="z"), a)
    with pytest.raises(ValueError, match="expected images with dims"):
        misr.fourier_ring_correlation(a.values, a.values)
    with pytest.raises(ValueError):
        misr.fourier_ring_correlation(noise((4, 32), 0), noise((4, 32), 1))
    holed = a.where(a < 2)
    with pytest.raises(ValueError, match="crop or fill"):
        misr.fourier_ring_correlation(a, holed)
    with pytest.raises(ValueError, match="window='box' must be 'hann' or None"):
        misr.fourier_ring_correlation(a, a, window="box")
