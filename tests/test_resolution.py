"""FRC and what is read off it, against plain loops and known statistics."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from phase_object import bandlimited_phase
from scipy.ndimage import gaussian_filter

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


@pytest.mark.parametrize(("k", "n"), [(2, 50), (3, 200), (2.5, 12.5)])
def test_sigma_thresholds(k, n):
    """Saxton & Baumeister's k/√(N/2), N = 2n all pixels of the ring."""
    assert float(misr.frc_threshold(f"{k}-sigma", n)) == pytest.approx(k / np.sqrt(2 * n / 2))


@pytest.mark.parametrize("kind", ["bit", "", "sigma", "-2-sigma", 0, 1, -0.5, 1.5, None, (0.1, 0.2), float("nan")])
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
    for width in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"ring_width={width} must be a finite width"):
            misr.fourier_ring_correlation(a, a, ring_width=width)


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


def test_crossing_lies_beyond_the_last_reliable_ring():
    # one ring's dip does not outweigh what follows; one lucky ring does not outweigh what lies before it
    dip = misr.frc_resolution(curve([1.0, 0.9, 0.4, 0.9, 0.1]), 0.5)
    assert 1 / 0.5 < float(dip) < 1 / 0.4
    assert 1 / 0.3 < dip.attrs["first_fall_A"] < 1 / 0.2
    lucky = misr.frc_resolution(curve([1.0, 0.9, 0.2, 0.1, 0.52, 0.1]), 0.5)
    assert 1 / 0.3 < float(lucky) < 1 / 0.2
    assert float(lucky) == pytest.approx(lucky.attrs["first_fall_A"])


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
    for window in ("hat", "kaiser", ("hat", 3), {}):
        with pytest.raises(ValueError, match="must be 'hann' or None"):
            misr.fourier_ring_correlation(a, a, window=window)
    with pytest.raises(ValueError, match="must be a width in 1/Å, 'auto' or None"):
        misr.fourier_ring_correlation(a, a, ring_width="wide")
    with pytest.raises(ValueError, match="confidence=95 must lie between"):
        misr.fourier_ring_correlation(a, a, confidence=95)


def nan_outside(seed):
    field = noise((32, 32), seed)
    return field.where(field.y > 4), (field.y > 4) * xr.ones_like(field)


def test_masks_must_fit():
    a = noise((32, 32), 0)
    for mask, words in [
        (np.ones((32, 30)), "does not fit"),
        (np.full((32, 32), 2.0), "weights from 0 to 1"),
        (np.zeros((32, 32)), "some of them above 0"),
        ([np.ones((32, 32))], "mask holds 1 masks"),
        (noise((32, 32), 0, (0.6, 0.6)).clip(0, 1), "coordinate 'y' of the images differs"),
    ]:
        with pytest.raises(ValueError, match=words):
            misr.fourier_ring_correlation(a, a, mask=mask)


def test_what_a_mask_leaves_out_does_not_matter():
    holed, mask = nan_outside(0)
    frc = misr.fourier_ring_correlation(holed, holed, mask=mask)
    np.testing.assert_allclose(frc, 1)
    other = holed.fillna(1e6)
    np.testing.assert_array_equal(misr.fourier_ring_correlation(holed, other, mask=mask.values), frc)
    assert frc.attrs["mask"] == "shared"
    listed = misr.fourier_ring_correlation(holed, holed, mask=mask.values.tolist())
    assert listed.attrs["mask"] == "shared"
    np.testing.assert_array_equal(listed, frc)
    pair = misr.fourier_ring_correlation(holed, holed, mask=[mask.values.tolist(), 0.5 * mask])
    assert pair.attrs["mask"] == "pair"
    with pytest.raises(ValueError, match="leave them out by a mask"):
        misr.fourier_ring_correlation(holed, holed)


# --- error bars, windows and masks: statistics -----------------------------------------------------------------------


def soft_disk(shape, radius):
    away = np.hypot(*(np.indices(shape) - (np.array(shape)[:, None, None] - 1) / 2))
    return np.clip((radius - away) / 6 + 0.5, 0, 1)


def pairs(shape, seeds, snr):
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        signal = np.sqrt(snr) * rng.standard_normal(shape)
        yield [image(signal + rng.standard_normal(shape)) for _ in range(2)]


@pytest.mark.parametrize(
    "options",
    [
        {"window": ("tukey", 0.3)},
        {"window": ("hann", None)},
        {"mask": soft_disk((48, 40), 14)},
        {"mask": soft_disk((48, 40), 14), "window": None, "ring_width": 0.15},
        {"mask": (soft_disk((48, 40), 14), None)},
    ],
    ids=["tukey", "two windows", "mask", "mask alone, wide rings", "one mask"],
)
def test_independent_values_under_any_weights(options):
    """FRC of unrelated images scatters by 1/√(2n)."""
    curves = [misr.fourier_ring_correlation(*pair, **options) for pair in pairs((48, 40), 150, 0.0)]
    n = curves[0].n_independent.values
    scatter = np.sqrt(np.mean([c.values**2 for c in curves], axis=0) * 2 * n)[n > 5]
    assert scatter.mean() == pytest.approx(1, abs=0.06)
    np.testing.assert_allclose(scatter, 1, atol=0.25)


@pytest.mark.parametrize("snr", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("window", [None, "hann"])
def test_error_bars_cover(window, snr):
    """95 ± 3 % of the rings' intervals hold the true correlation, in the first rings of few values as in the last."""
    hits = []
    for pair in pairs((32, 32), 300, snr):
        frc = misr.fourier_ring_correlation(*pair, window=window)
        hits.append((frc.frc_low <= snr / (1 + snr)) & (snr / (1 + snr) <= frc.frc_high))
    coverage = np.mean(hits, axis=0)
    assert 0.92 < coverage.mean() < 0.98
    # one ring of 300 seeds scatters by 1.3 %
    assert coverage[1:].min() > 0.89
    assert coverage[0] > 0.85


def test_confidence_of_the_error_bars():
    a, b = next(pairs((64, 64), 1, 1.0))
    narrow, wide = (misr.fourier_ring_correlation(a, b, confidence=c) for c in (0.68, 0.99))
    assert bool(((wide.frc_low < narrow.frc_low) & (narrow.frc_high < wide.frc_high)).all())
    assert bool(((narrow.frc_low < narrow) & (narrow < narrow.frc_high)).all())


def test_different_windows_lose_what_they_do_not_share():
    a = noise((64, 64), 0)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(64) + 0.5) / 64)
    hann = np.outer(taper, taper)
    frc = misr.fourier_ring_correlation(a, a, window=("hann", None))
    assert float(frc[3:].mean()) == pytest.approx(hann.sum() / np.sqrt(64**2 * (hann**2).sum()), abs=0.03)


def test_identical_sharp_masks_correlate_where_soft_ones_do_not():
    """The pitfall of the Notes: a common gradient under a sharp mask."""
    ramp = 10 * np.linspace(-1, 1, 64)[:, None]
    a, b = (image(noise((64, 64), seed).values + ramp) for seed in (0, 1))
    sharp = np.zeros((64, 64))
    sharp[16:48, 16:48] = 1
    found = {}
    for name, mask in (("sharp", sharp), ("soft", soft_disk((64, 64), 16) * 1.0)):
        frc = misr.fourier_ring_correlation(a, b, window=None if name == "sharp" else "hann", mask=mask)
        found[name] = float(frc.sel(frequency=slice(0.25, None)).mean())
    assert found["sharp"] > 0.2
    assert abs(found["soft"]) < 0.1


# --- resolution of images of known power -----------------------------------------------------------------------------


def half_maps(n, seed, *, snr=20.0, cutoff=0.15, pixel_A=1.0):
    """Two noisy images of one specimen drawn from a Gaussian power ``snr exp(-(q/cutoff)²)``, noise power 1."""
    rng = np.random.default_rng(seed)
    q = np.hypot(np.fft.fftfreq(n, pixel_A)[:, None], np.fft.rfftfreq(n, pixel_A)[None])
    amplitude = np.sqrt(snr) * np.exp(-0.5 * (q / cutoff) ** 2)
    signal = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * amplitude, s=(n, n))
    return [image(signal + rng.standard_normal((n, n)), (pixel_A, pixel_A)) for _ in range(2)]


def true_resolution(frc, threshold, *, snr=20.0, cutoff=0.15):
    q = np.linspace(frc.frequency[0], frc.frequency[-1], 20000)
    power = snr * np.exp(-((q / cutoff) ** 2))
    level = np.interp(q, frc.frequency, misr.frc_threshold(threshold, frc.n_independent.values))
    return 1 / q[np.argmax(power / (1 + power) < level)]


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, "hann"])
@pytest.mark.parametrize(("threshold", "ring_width"), [(0.143, None), ("half-bit", None), ("half-bit", 0.03)])
def test_resolution_is_unbiased_and_its_interval_covers(window, threshold, ring_width):
    """Within 2 % over 200 seeds; 95 ± 3 % of the intervals hold the truth, some more with wide rings and a window."""
    found, covered, first = [], 0, []
    for seed in range(200):
        frc = misr.fourier_ring_correlation(*half_maps(128, seed), window=window, ring_width=ring_width)
        resolution = misr.frc_resolution(frc, threshold)
        truth = true_resolution(frc, threshold)
        found.append(float(resolution) / truth)
        first.append(resolution.attrs["first_fall_A"] / truth)
        covered += resolution.attrs["low_A"] <= truth <= resolution.attrs["high_A"]
    assert np.mean(found) == pytest.approx(1, abs=0.02)
    assert abs(np.mean(found) - 1) < abs(np.mean(first) - 1) + 0.003
    # 200 seeds scatter by 1.5 %
    most = 0.98 if ring_width is None or window is None else 1.0
    assert 0.92 - 0.015 < covered / 200 < most + 0.015


def test_interval_narrows_with_the_field():
    width = []
    for n in (64, 256):
        resolution = misr.frc_resolution(misr.fourier_ring_correlation(*half_maps(n, 0)), 0.143)
        assert resolution.attrs["low_A"] < float(resolution) < resolution.attrs["high_A"]
        width.append(resolution.attrs["high_A"] - resolution.attrs["low_A"])
    assert width[1] < 0.7 * width[0]


def test_interval_of_what_is_not_bounded():
    a, b = next(pairs((64, 64), 1, 30.0))
    fine = misr.frc_resolution(misr.fourier_ring_correlation(a, b))
    assert (fine.attrs["status"], fine.attrs["low_A"]) == ("sampling-limited", 0.0)
    assert fine.attrs["first_fall_A"] == 0.0
    nothing = misr.frc_resolution(misr.fourier_ring_correlation(noise((64, 64), 0), noise((64, 64), 1)))
    assert (nothing.attrs["status"], nothing.attrs["high_A"]) == ("unresolved", np.inf)
    assert nothing.attrs["low_A"] >= 1.0


# --- crystals --------------------------------------------------------------------------------------------------------


def crystal(n=256, cell_A=16.0, pixel_A=0.5, turn_deg=10.0):
    """Phase of a lattice of six random atoms a cell, Gaussian of 0.3 Å, that does not fit the field."""
    rng = np.random.default_rng(0)
    turn = np.deg2rad(turn_deg)
    vectors = cell_A * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    field = n * pixel_A
    reach = np.arange(-2 * int(field / cell_A) - 2, 2 * int(field / cell_A) + 2)
    cells = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 1, 2)
    at = ((cells + rng.uniform(size=(6, 2))) @ vectors).reshape(-1, 2)
    at = at[np.all((at > 0) & (at < field), axis=1)]
    q_y, q_x = np.fft.fftfreq(n, pixel_A), np.fft.rfftfreq(n, pixel_A)
    spectrum = np.exp(-2j * np.pi * np.outer(q_y, at[:, 0])) @ np.exp(-2j * np.pi * np.outer(at[:, 1], q_x))
    spectrum *= np.exp(-2 * (np.pi * 0.3 * np.hypot(q_y[:, None], q_x[None])) ** 2)
    made = np.fft.irfft2(spectrum, s=(n, n))
    return image(made / made.std(), (pixel_A, pixel_A))


def noisy(signal, level, seed):
    return signal + level * noise(signal.shape, seed, (0.5, 0.5))


def test_automatic_rings_span_a_lattice():
    signal = crystal()
    a, b = noisy(signal, 2.0, 1), noisy(signal, 2.0, 2)
    frc = misr.fourier_ring_correlation(a, b, ring_width="auto")
    assert 1 / 16 < frc.attrs["ring_width"] < 1.6 / 16
    wide = misr.frc_resolution(frc)
    narrow_frc = misr.fourier_ring_correlation(a, b)
    with pytest.warns(UserWarning, match=r"gaps between a crystal's reflections.*ring_width='auto'\) or 0"):
        narrow = misr.frc_resolution(narrow_frc)
    assert float(wide) < 0.8 * narrow.attrs["first_fall_A"]


@pytest.mark.parametrize("level", [0.0, 0.3, 3.0, 1e4])
@pytest.mark.parametrize("window", ["hann", None])
def test_automatic_rings_of_what_is_not_a_crystal(window, level):
    for seed in range(8):
        for cutoff in (0.6, 1.2):
            signal = image(bandlimited_phase((96, 96), 0.5, rng=seed, strength=1.0, cutoff=cutoff))
            a, b = noisy(signal, level, 2 * seed), noisy(signal, level, 2 * seed + 1)
            frc = misr.fourier_ring_correlation(a, b, ring_width="auto", window=window)
            assert frc.attrs["ring_width"] == pytest.approx(1 / 48)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("window", ["hann", None])
def test_amorphous_curves_raise_no_warning(window):
    for seed in range(60):
        frc = misr.fourier_ring_correlation(*half_maps(96, seed), window=window)
        for threshold in ("half-bit", 0.143, 0.5):
            misr.frc_resolution(frc, threshold)


# --- independent implementations -------------------------------------------------------------------------------------


def on_whole_rings(n, seed):
    """Random image with power only at whole radii (3-4-5, …), where hard rings and interpolated ones agree."""
    k = np.fft.fftfreq(n, 1 / n)
    radius = np.hypot(k[:, None], k[None])
    whole = (np.abs(radius - np.rint(radius)) < 1e-9) & (radius > 0) & (radius < n / 2)
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((n, n)))
    return np.fft.ifft2(spectrum * whole).real


def test_equals_py4dstem():
    utils = pytest.importorskip("py4DSTEM.process.phase.utils")
    a, b = on_whole_rings(128, 0), on_whole_rings(128, 0) + 0.7 * on_whole_rings(128, 1)
    q, theirs, _ = utils.fourier_ring_correlation(a, b, pixel_size=(0.5, 0.5), plot_frc=False)
    ours = misr.fourier_ring_correlation(image(a), image(b), window=None)
    count = min(len(theirs), ours.size)
    assert count > 55
    # theirs starts at the first ring as well, but means its frequencies otherwise
    np.testing.assert_allclose(ours[:count], theirs[:count], atol=1e-6)
    np.testing.assert_allclose(ours.frequency[:count], q[:count], atol=0.5 / 64)


def test_equals_torch_fourier_shell_correlation():
    torch = pytest.importorskip("torch")
    fsc = pytest.importorskip("torch_fourier_shell_correlation")
    a, b = on_whole_rings(128, 0), on_whole_rings(128, 0) + 0.7 * on_whole_rings(128, 1)
    # their half spectrum counts q and -q of its first column twice: give them the whole of it
    whole = [torch.fft.fft2(torch.as_tensor(one)) for one in (a, b)]
    theirs = fsc.fourier_correlation(*whole, image_shape=(128, 128), rfft=False).numpy()
    ours = misr.fourier_ring_correlation(image(a), image(b), window=None)
    np.testing.assert_allclose(ours[:63], theirs[1:64], atol=1e-6)


@pytest.mark.parametrize("kind", ["half-bit", 0.143, "3-sigma"])
@pytest.mark.parametrize("noise", [0.0, 0.05, 3.0, 1e3])
def test_interval_holds_the_value(kind, noise):
    """Whatever comes out: crossed, limited by the sampling, or nothing."""
    rng = np.random.default_rng(0)
    both = gaussian_filter(rng.standard_normal((48, 48)), 1)
    a, b = (image_from_array(both + noise * rng.standard_normal((48, 48)), pixel_A=(1, 1)) for _ in "ab")
    resolution = misr.frc_resolution(misr.fourier_ring_correlation(a, b), kind)
    assert resolution.attrs["low_A"] <= float(resolution) <= resolution.attrs["high_A"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.drop_vars("y"), "no coordinate"),
        (lambda a: a.assign_coords(y=a.y**2), "not uniform"),
        (lambda a: a.assign_coords(x=a.x.assign_attrs(units="nm")), "nm"),
        (lambda a: a * 1j, "complex"),
    ],
)
def test_images_made_elsewhere_need_positions_in_angstrom(spoil, message):
    image = image_from_array(np.random.default_rng(0).standard_normal((16, 16)), pixel_A=(1, 1))
    with pytest.raises(ValueError, match=message):
        misr.fourier_ring_correlation(spoil(image), spoil(image))


def test_rows_may_run_upwards():
    image = image_from_array(np.random.default_rng(0).standard_normal((16, 16)), pixel_A=(1, 1))
    turned = image.isel(y=slice(None, None, -1))
    np.testing.assert_allclose(misr.fourier_ring_correlation(turned, turned), 1)
