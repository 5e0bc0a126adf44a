"""Local resolution: two regions told apart, nothing found in noise, and every window as the plain FRC has it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

import misr
from misr.cube import image_from_array
from misr.resolution_map import local_resolution


def image(values, pixel_A=(0.5, 0.5), **options):
    return image_from_array(values, pixel_A=pixel_A, **options)


def filtered(shape, transfer, rng, pixel_A=(0.5, 0.5)):
    q = np.hypot(np.fft.fftfreq(shape[0], pixel_A[0])[:, None], np.fft.fftfreq(shape[1], pixel_A[1])[None])
    return np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * transfer(q)).real


def two_halves(seed, shape=(128, 256), coarse_A=4.0, fine_A=2.0, snr=8.0, pixel_A=(0.5, 0.5)):
    """Half maps whose signal ends at ``coarse_A`` on the left and at ``fine_A`` on the right."""
    rng = np.random.default_rng(seed)
    left = np.arange(shape[1]) < shape[1] // 2
    signal = np.where(
        left,
        filtered(shape, lambda q: np.sqrt(snr) * (q < 1 / coarse_A), rng, pixel_A),
        filtered(shape, lambda q: np.sqrt(snr) * (q < 1 / fine_A), rng, pixel_A),
    )
    return [image(signal + np.sqrt(2) * rng.standard_normal(shape), pixel_A) for _ in range(2)]


@pytest.mark.parametrize("pixel_A", [(0.5, 0.5), (0.4, 0.6)])
def test_two_regions_are_told_apart(pixel_A):
    window = 40.0
    found = local_resolution(*two_halves(0, pixel_A=pixel_A), window_A=window)
    border = 128 * pixel_A[1]
    left = found.where(found.x < border - window / 2, drop=True)
    right = found.where(found.x > border + window / 2, drop=True)
    assert float(left.reliable.mean()) == 1
    assert float(right.reliable.mean()) == 1
    assert float(left.resolution.median()) == pytest.approx(4.0, rel=0.1)
    assert float(right.resolution.median()) == pytest.approx(2.0, rel=0.06)
    # no window on either side is taken for one of the other
    assert float(left.resolution.min()) > float(right.resolution.max())


def test_the_border_is_where_it_is():
    found = local_resolution(*two_halves(1), window_A=24.0, step_A=4.0)
    across = found.resolution.median("y")
    fine = across < np.sqrt(2 * 4)
    crossing = float(across.x[int(np.argmax(fine.values))])
    # the finer side shows as soon as it is within the window's better half
    assert 64 - 12 < crossing < 64 + 6
    assert bool(fine[fine.x > 70].all())


@pytest.mark.parametrize("spectrum", ["white", "1/f", "smooth"])
def test_unrelated_images_are_not_resolved(spectrum):
    """Smooth images, whose strong rings leak into the weak ones, would pass in one window of eight if not for `rng`."""
    transfer = {
        "white": lambda q: 1 + 0 * q, "1/f": lambda q: 1 / (q + 0.01), "smooth": lambda q: np.exp(-((q / 0.25) ** 2)),
    }[spectrum]  # fmt: skip
    resolved = windows = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        a, b = (image(filtered((160, 160), transfer, rng)) for _ in range(2))
        found = local_resolution(a, b, window_A=12, step_A=6)
        assert bool((np.isinf(found.resolution) == (found.status == 0)).all())
        assert not bool((found.reliable & (found.status == 0)).any())
        resolved += int((found.status > 0).sum())
        windows += found.status.size
    # 0.001 of 600 windows, half of them overlapping: 4 or more by chance once in a few hundred runs
    assert windows > 500
    assert resolved < 4


def test_false_alarms_rise_with_the_rate_asked_for():
    rng = np.random.default_rng(5)
    a, b = (image(rng.standard_normal((256, 256))) for _ in range(2))
    rate = {
        p: float((local_resolution(a, b, window_A=12, step_A=6, threshold=0.143, false_alarm=p).status > 0).mean())
        for p in (0.001, 0.2)
    }
    assert rate[0.001] < 0.01
    assert 0.08 < rate[0.2] < 0.3


def test_one_window_is_the_plain_frc():
    """The window that is the whole field: same rings, same curve, same resolution."""
    rng = np.random.default_rng(3)
    signal = filtered((48, 48), lambda q: 3 * (q < 0.5), rng)
    a, b = (image(signal + rng.standard_normal((48, 48))) for _ in range(2))
    found = local_resolution(a, b, window_A=24)
    plain = misr.fourier_ring_correlation(a, b, ring_width=None, window="hann")
    assert found.frc.shape == (1, 1, plain.size)
    np.testing.assert_allclose(found.frequency, plain.frequency, rtol=1e-9)
    # the mean taken off differs (under the taper here), which matters to the two lowest rings alone
    np.testing.assert_allclose(found.frc[0, 0, 2:], plain[2:], atol=0.01)
    assert float(found.resolution[0, 0]) == pytest.approx(float(misr.frc_resolution(plain)), rel=0.05)
    assert (float(found.y[0]), float(found.x[0])) == (11.75, 11.75)


def test_bias_at_a_known_crossing():
    """FRC = S/(S + 2) with S falling as a Gaussian: the median of the map lies where the curve meets the threshold."""
    rng = np.random.default_rng(7)
    snr = lambda q: 30 * np.exp(-((q / 0.22) ** 2))  # noqa: E731
    signal = filtered((256, 256), lambda q: np.sqrt(snr(q)), rng)
    a, b = (image(signal + np.sqrt(2) * rng.standard_normal(signal.shape)) for _ in range(2))
    found = local_resolution(a, b, window_A=32, step_A=16)
    q = np.linspace(0.05, 0.9, 2000)
    level = misr.frc_threshold("half-bit", np.interp(q, found.frequency, found.n_independent))
    expected = 1 / q[np.argmax(snr(q) / (snr(q) + 2) < level)]
    assert bool(found.reliable.all())
    assert float(found.resolution.median()) == pytest.approx(expected, rel=0.06)
    spread = np.percentile(found.resolution, [10, 90]) / expected
    assert 0.75 < spread[0] < spread[1] < 1.3


def test_too_small_windows_are_not_reliable():
    a, b = two_halves(2)
    small, large = (local_resolution(a, b, window_A=w, step_A=16.0) for w in (10.0, 40.0))
    assert float(small.reliable.mean()) < 0.1
    assert float(large.reliable.mean()) > 0.9


def test_identical_images_are_limited_by_the_sampling():
    a = image(np.random.default_rng(0).standard_normal((64, 64)))
    found = local_resolution(a, a, window_A=16)
    assert bool((found.status == 2).all())
    assert bool(found.reliable.all())
    np.testing.assert_allclose(found.resolution, 1.0, rtol=0.05)  # two pixels


def test_periodic_fields_wrap_round():
    a, b = two_halves(0, shape=(64, 64))
    rolled = [i.copy(data=np.roll(i.values, (13, 7), (0, 1))) for i in (a, b)]
    inside = local_resolution(a, b, window_A=16, step_A=8)
    assert inside.sizes["y"] == 3
    for picture in (a, b, *rolled):
        picture.attrs["period_A"] = [32.0, 32.0]
    round_it = local_resolution(a, b, window_A=16, step_A=8)
    assert (round_it.sizes["y"], round_it.sizes["x"]) == (4, 4)
    every = [local_resolution(*pair, window_A=16, step_A=0.5).resolution for pair in ((a, b), rolled)]
    np.testing.assert_array_equal(np.roll(every[0].values, (13, 7), (0, 1)), every[1].values)


def crystal(shape, cell_A=8.0, pixel_A=0.5):
    """Of three random atoms a cell, Gaussian of 0.3 Å."""
    y, x = np.indices(shape) * pixel_A
    made = np.zeros(shape)
    for at_y, at_x in np.random.default_rng(0).uniform(0, cell_A, (3, 2)):
        away = [(each - at + cell_A / 2) % cell_A - cell_A / 2 for each, at in ((y, at_y), (x, at_x))]
        made += np.exp(-(away[0] ** 2 + away[1] ** 2) / (2 * 0.3**2))
    return made / made.std()


def test_rings_of_a_crystal_span_its_lattice():
    """Windows of 40 Å see the gaps between reflections 0.125 1/Å apart, which say nothing about resolution."""
    rng = np.random.default_rng(1)
    signal = crystal((192, 192))
    a, b = (image(signal + rng.standard_normal(signal.shape)) for _ in range(2))
    with pytest.warns(UserWarning, match=r"the windows' mean FRC falls.*local_resolution\(…, ring_width='auto'\) or 0"):
        local_resolution(a, b, window_A=40.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = local_resolution(a, b, window_A=40.0, ring_width="auto")
    assert 0.125 < found.frc.attrs["ring_width"] < 0.2
    assert found.attrs["ring_width"] == misr.fourier_ring_correlation(a, b, ring_width="auto").attrs["ring_width"]


def test_automatic_rings_without_a_lattice_are_those_of_the_window():
    pair = two_halves(0, shape=(64, 96))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        auto, plain = (local_resolution(*pair, window_A=16.0, ring_width=width) for width in ("auto", None))
    xr.testing.assert_identical(auto.drop_attrs(), plain.drop_attrs())


def test_labels_and_history():
    found = local_resolution(*two_halves(0, shape=(64, 96)), window_A=16.0, threshold=0.143)
    assert isinstance(found, xr.Dataset)
    assert found.resolution.dims == ("y", "x")
    assert found.resolution.attrs["units"] == found.y.attrs["units"] == "Å"
    np.testing.assert_allclose(found.y.diff("y"), 4.0)
    # the windows lie evenly in the field
    assert float(found.x[0]) == pytest.approx(47.5 - float(found.x[-1]), abs=0.51)
    assert (found.attrs["threshold"], found.attrs["window_A"], found.attrs["step_A"]) == ("0.143", 16.0, 4.0)
    assert misr.cube_history(found)[-1]["operation"] == "local_resolution"
    again = local_resolution(*two_halves(0, shape=(64, 96)), window_A=16.0, threshold=0.143)
    xr.testing.assert_identical(found, again)


def test_batches_change_nothing(monkeypatch):
    pair = two_halves(4, shape=(64, 96))
    whole = local_resolution(*pair, window_A=16.0)
    monkeypatch.setattr("misr.resolution_map._BATCH_BYTES", 1.0)
    np.testing.assert_allclose(local_resolution(*pair, window_A=16.0).frc, whole.frc, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_A": 3.0}, "at least 4 Å"),
        ({"window_A": 100.0}, "at most the field of 32 × 32 Å"),
        ({"window_A": float("nan")}, "positive length"),
        ({"window_A": 16.0, "step_A": 0.0}, "step_A=0"),
        ({"window_A": 16.0, "ring_width": 0.01}, "below one frequency pixel of a window"),
        ({"window_A": 16.0, "ring_width": float("inf")}, "ring_width=inf must be a finite width"),
        ({"window_A": 16.0, "ring_width": "wide"}, "ring_width='wide' must be"),
        ({"window_A": 16.0, "false_alarm": 0.0}, "false_alarm=0"),
        ({"window_A": 16.0, "min_independent": 0.0}, "min_independent"),
        ({"window_A": 16.0, "threshold": "2-bit"}, "must be one of"),
    ],
)
def test_unusable_options(options, words):
    a, b = two_halves(0, shape=(64, 64))
    with pytest.raises(ValueError, match=words):
        local_resolution(a, b, **options)


def test_images_must_share_a_grid():
    a, b = two_halves(0, shape=(64, 64))
    for other, words in (
        (b.isel(x=slice(1, None)), "shapes differ"),
        (b.assign_coords(y=b.y + 0.2), r"differs between the images by up to 0\.2 Å"),
        (b.where(b < 2), "NaN"),
        (b.rename(y="z"), "expected images"),
        (b.values, "got ndarray"),
    ):
        with pytest.raises(ValueError, match=words):
            local_resolution(a, other, window_A=16.0)
