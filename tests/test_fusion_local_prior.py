"""The power per frequency of the plane: lattices pass, noise does not, amorphous matter loses nothing."""

import numpy as np
import pytest
import torch

from misr.fusion import local_prior
from misr.fusion.local_prior import local_power

PIXEL = 0.5
SIDE = 96


def radius(shape=(SIDE, SIDE)):
    q_y, q_x = (torch.fft.fftfreq(n, PIXEL, dtype=torch.float64) for n in shape)
    return torch.hypot(q_y[:, None], q_x[None, :])


def plane(power, seed):
    """Hermitian Gaussian plane of the given power, and the image that it is."""
    white = torch.as_tensor(np.random.default_rng(seed).standard_normal(power.shape))
    return torch.fft.fft2(white, norm="ortho") * power.sqrt()


def white_noise(shape=(SIDE, SIDE), *, level=1.0):
    """Noise within the band; nothing is known beyond it."""
    noise = torch.full(shape, level, dtype=torch.float64)
    noise[radius(shape) >= 0.95] = torch.inf
    noise[0, 0] = torch.inf
    return noise


def measured(phase, noise, seed):
    known = torch.isfinite(noise)
    return torch.where(known, phase + plane(torch.where(known, noise, 0.0), seed), 0.0)


def ring_power(phase):
    """The ring means of |phase|² over three rings, as learning them would give."""
    ring = (radius(phase.shape) * min(phase.shape) * PIXEL).round().long()
    number = int(ring.max()) + 1
    total = torch.bincount(ring.flatten(), weights=(phase.abs() ** 2).flatten(), minlength=number)
    counts = torch.bincount(ring.flatten(), minlength=number).double()
    kernel = torch.ones(1, 1, 3, dtype=torch.float64)
    total, counts = (torch.nn.functional.conv1d(one[None, None], kernel, padding=1)[0, 0] for one in (total, counts))
    return (total / counts)[ring].clamp(min=1e-12)


def gain(power, noise):
    return torch.where(torch.isfinite(noise), power / (power + noise), 0.0)


def error(phase, estimate, power, noise):
    """Squared error of the Wiener estimate within the band."""
    known = torch.isfinite(noise)
    return float(((gain(power, noise) * estimate - phase).abs()[known] ** 2).sum())


def amorphous(strength=1.0, shape=(SIDE, SIDE), seed=0):
    power = strength * torch.exp(-((radius(shape) / 0.4) ** 2))
    return plane(power, seed), power


def lattice(side=SIDE, *, cell=6.0, angle=0.3, amplitude=1.0):
    """Real image of a square lattice's waves, whose power falls as atoms' does."""
    y, x = np.meshgrid(*(PIXEL * np.arange(side),) * 2, indexing="ij")
    image, waves = np.zeros((side, side)), []
    for h in range(0, 6):
        for k in range(-5, 6):
            q_y, q_x = (np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ [h, k]) / cell
            q = np.hypot(q_y, q_x)
            if 0 < q < 0.9 and (h > 0 or k > 0):
                image += amplitude * np.exp(-0.5 * (q / 0.6) ** 2) * np.cos(2 * np.pi * (q_y * y + q_x * x))
                waves.append((q_y, q_x))
    return image, waves


def commensurate():
    """A lattice that repeats whole in the field, as in a periodic scan."""
    image, _ = lattice(cell=6.0, angle=0.0)
    return torch.fft.fft2(torch.as_tensor(image), norm="ortho")


def test_extrinsic_estimate_is_what_the_data_say_without_the_frequencys_own_prior():
    """What the module's notes say of ``mean / T`` and ``variance / T``, by generalised least squares."""
    rng = np.random.default_rng(0)
    gamma, data = (rng.standard_normal((9, n)) + 1j * rng.standard_normal((9, n)) for n in (3, 1))
    n, power = 0.7, np.array([0.5, 2.0, 0.1])
    covariance = np.linalg.inv(n * gamma.conj().T @ gamma + np.diag(1 / power))
    mean, variance = (covariance @ gamma.conj().T @ data * n)[:, 0], np.diagonal(covariance).real
    transfer = 1 - variance / power
    for alias in range(3):
        others = [i for i in range(3) if i != alias]
        # data = Γ_alias φ + (the others, of their prior power) + noise
        spread = (gamma[:, others] * power[others]) @ gamma[:, others].conj().T + np.eye(9) / n
        whitened = np.linalg.solve(spread, gamma[:, alias])
        precision = (gamma[:, alias].conj() @ whitened).real
        assert np.isclose((variance / transfer)[alias], 1 / precision)
        assert np.isclose((mean / transfer)[alias], whitened.conj() @ data[:, 0] / precision)


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_pure_noise_is_not_let_through(level):
    noise = white_noise()
    ring = torch.full_like(noise, level)
    nothing = torch.zeros(noise.shape, dtype=torch.complex128)
    for seed in range(3):
        y = measured(nothing, noise, seed)
        power = local_power(y, noise, ring, pixel_A=(PIXEL, PIXEL))
        assert float(power.mean()) < 1.1 * level
        assert error(nothing, y, power, noise) < 1.05 * error(nothing, y, ring, noise)


@pytest.mark.parametrize("strength", [0.03, 0.3, 3.0, 100.0])
def test_amorphous_matter_loses_nothing(strength):
    phase, ring = amorphous(strength)
    noise = white_noise()
    for seed in range(1, 4):
        y = measured(phase, noise, seed)
        power = local_power(y, noise, ring, pixel_A=(PIXEL, PIXEL))
        assert error(phase, y, power, noise) < 1.005 * error(phase, y, ring, noise)


def test_amorphous_matter_in_a_padded_field_loses_nothing():
    field, side = 60, SIDE
    taper = torch.zeros(side, dtype=torch.float64)
    taper[18 : 18 + field] = 1
    window = taper[:, None] * taper[None, :]
    share = float(window.mean())

    def through(values):
        return torch.fft.fft2(torch.fft.ifft2(values, norm="ortho").real * window, norm="ortho") / share**0.5

    phase, ring = amorphous(2.0)
    phase, noise = through(phase), white_noise()
    y = torch.where(torch.isfinite(noise), phase + through(plane(torch.ones_like(ring), 5)), 0.0)
    power = local_power(y, noise, ring, pixel_A=(PIXEL, PIXEL), oversampling=(side / field,) * 2)
    assert error(phase, y, power, noise) < 1.01 * error(phase, y, ring, noise)


@pytest.mark.parametrize(("level", "share"), [(2.0, 0.4), (20.0, 0.25), (200.0, 0.8)])
def test_a_crystal_gains(level, share):
    phase, noise = commensurate(), white_noise(level=level)
    y, ring = measured(phase, noise, 1), ring_power(phase)
    power = local_power(y, noise, ring, pixel_A=(PIXEL, PIXEL))
    assert error(phase, y, power, noise) < share * error(phase, y, ring, noise)
    strong = torch.isfinite(noise) & (phase.abs() ** 2 > 50 * level)
    assert bool((gain(power, noise)[strong] > 0.9).all())


@pytest.mark.parametrize("level", [1.0, 3.0, 10.0])
def test_neighbours_help_where_grains_widen_reflections(level, monkeypatch):
    image, _ = lattice()
    y, x = np.meshgrid(*(PIXEL * (np.arange(SIDE) - SIDE / 2),) * 2, indexing="ij")
    phase = torch.fft.fft2(torch.as_tensor(image * np.exp(-0.5 * (y**2 + x**2) / 10.0**2)), norm="ortho")
    noise = white_noise(level=level)
    estimate, ring = measured(phase, noise, 2), ring_power(phase)
    together = error(phase, estimate, local_power(estimate, noise, ring, pixel_A=(PIXEL, PIXEL)), noise)
    assert together < 0.9 * error(phase, estimate, ring, noise)
    monkeypatch.setattr(local_prior, "_SHARED", (1e-6,))
    alone = error(phase, estimate, local_power(estimate, noise, ring, pixel_A=(PIXEL, PIXEL)), noise)
    assert together < 0.98 * alone


def test_a_crystallite_in_amorphous_matter_does_not_drown_its_surroundings():
    waves_image, waves = lattice(amplitude=1.0)
    y, x = np.meshgrid(*(PIXEL * (np.arange(SIDE) - SIDE / 2),) * 2, indexing="ij")
    apart = np.hypot(y, x)
    inside, outside = apart < 13, np.clip((apart - 15) / 3, 0, 1)
    glass = torch.fft.ifft2(amorphous(9.0)[0], norm="ortho").real.numpy()
    truth = np.where(inside, waves_image, glass)
    phase = torch.fft.fft2(torch.as_tensor(truth), norm="ortho")
    ring = ring_power(phase)
    for level in (0.5, 5.0):
        noise = white_noise(level=level)
        estimate = measured(phase, noise, 3)
        known = torch.isfinite(noise)
        local = local_power(estimate, noise, ring, pixel_A=(PIXEL, PIXEL))
        # the amorphous matter needs its power between the reflections too
        assert float((local > 0.99 * ring)[known & (radius() < 0.4)].double().mean()) > 0.95
        images = [torch.fft.ifft2(gain(power, noise) * estimate, norm="ortho").real.numpy() for power in (ring, local)]
        band = torch.fft.ifft2(torch.where(known, phase, 0.0), norm="ortho").real.numpy()
        wrong = [float(((image - band) ** 2 * outside).sum()) for image in images]
        assert wrong[1] < 1.25 * wrong[0]
        # the crystallite's waves outside it, over inside
        phases = [np.exp(-2j * np.pi * (q_y * y + q_x * x)) for q_y, q_x in waves]
        leaks = []
        for image in (band, *images):
            there, here = (
                sum(abs((image * wave * where).sum() / where.sum()) ** 2 for wave in phases)
                for where in (outside, inside)
            )
            leaks.append((there / here) ** 0.5)
        assert leaks[2] < max(0.25, 2 * leaks[1])


def test_vacancies_are_weakened_but_not_healed():
    """What breaks the lattice stands between its reflections."""
    y, x = np.meshgrid(*(PIXEL * np.arange(SIDE),) * 2, indexing="ij")
    apart = np.hypot(np.minimum(y, SIDE * PIXEL - y), np.minimum(x, SIDE * PIXEL - x))
    atom = torch.fft.fft2(torch.as_tensor(30 * np.exp(-0.5 * (apart / 0.6) ** 2)), norm="ortho")
    held = np.zeros((SIDE, SIDE))
    held[::12, ::12] = 1.0
    missing = [(12 * int(i), 12 * int(j)) for i, j in np.random.default_rng(0).permutation(64)[:6, None] // (8, 1) % 8]
    for site in missing:
        held[site] = 0.0
    phase = torch.fft.fft2(torch.as_tensor(held)) * atom
    noise = white_noise(level=20.0)
    estimate, ring = measured(phase, noise, 7), ring_power(phase)
    depths = []
    for power in (ring, local_power(estimate, noise, ring, pixel_A=(PIXEL, PIXEL))):
        image = torch.fft.ifft2(gain(power, noise) * estimate, norm="ortho").real.numpy()
        columns = image[::12, ::12]
        full = held[::12, ::12] > 0
        depths.append(columns[full].mean() - columns[~full].mean())
    assert 0.25 * depths[0] < depths[1] < 1.1 * depths[0]


def test_no_reflection_at_the_bands_edge_outshines_all_others():
    """What the weak-phase model cannot explain comes back divided by the nearly empty overlap."""
    phase = commensurate()
    noise = white_noise(level=20.0)
    noise = torch.where(radius() > 0.8, 50 * noise, noise)
    y = measured(phase, noise, 4)
    false = (2, 44)  # 0.92 1/Å, no reflection of the lattice
    for sign in (1, -1):
        y[sign * false[0], sign * false[1]] = 2 * phase.abs().max()
    ring = ring_power(phase)
    power = local_power(y, noise, ring, pixel_A=(PIXEL, PIXEL))
    assert power[false] <= ring[false]
    assert power[0, 8] > 10 * ring[0, 8]


@pytest.mark.parametrize("shape", [(40, 40), (41, 36), (36, 41), (33, 45)])
def test_symmetric_and_positive_on_any_shape(shape):
    phase, ring = amorphous(3.0, shape)
    noise = white_noise(shape)
    power = local_power(measured(phase, noise, 1), noise, ring, pixel_A=(PIXEL, 1.1 * PIXEL), oversampling=(1.0, 1.7))
    mirrored = torch.roll(power.flip(0, 1), (1, 1), (0, 1))
    torch.testing.assert_close(power, mirrored, rtol=1e-3, atol=0)
    assert bool((power > 0).all())
    assert torch.isfinite(power).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_dtype_and_device_and_its_inputs(dtype):
    phase, ring = amorphous()
    noise = white_noise()
    inputs = measured(phase, noise, 1).to(torch.complex64), noise.to(dtype), ring.to(dtype)
    before = [one.clone() for one in inputs]
    power = local_power(*inputs, pixel_A=(PIXEL, PIXEL))
    assert power.dtype == dtype
    assert power.device == ring.device
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    phase, ring = amorphous()
    noise = white_noise()
    inputs = measured(phase, noise, 1), noise, ring
    there = local_power(*(one.cuda() for one in inputs), pixel_A=(PIXEL, PIXEL))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), local_power(*inputs, pixel_A=(PIXEL, PIXEL)), rtol=1e-3, atol=0)


def test_without_measurement_the_ring_power_stays():
    ring = amorphous()[1]
    nothing = torch.zeros(ring.shape, dtype=torch.complex128)
    power = local_power(nothing, torch.full_like(ring, torch.inf), ring, pixel_A=(PIXEL, PIXEL))
    torch.testing.assert_close(power, ring)


def test_without_noise_everything_passes():
    phase, ring = amorphous()
    noise = torch.zeros_like(ring)
    power = local_power(phase, noise, ring, pixel_A=(PIXEL, PIXEL))
    assert torch.isfinite(power).all()
    assert bool((power > 0).all())


def test_without_signal_no_power():
    noise = white_noise()
    y = measured(torch.zeros(noise.shape, dtype=torch.complex128), noise, 0)
    power = local_power(y, noise, torch.zeros_like(noise), pixel_A=(PIXEL, PIXEL))
    assert bool((power == 0).all())


def test_frequencies_of_no_power_count_for_nothing():
    """The fusion leaves zeros where its fine grid holds frequencies beyond the band."""
    phase, ring = amorphous(3.0)
    noise = white_noise()
    y = measured(phase, noise, 1)
    beyond = torch.isinf(noise)
    usual = local_power(y, noise, ring, pixel_A=(PIXEL, PIXEL))
    power = local_power(y, noise.where(~beyond, 0.0), ring.where(~beyond, 0.0), pixel_A=(PIXEL, PIXEL))
    assert bool((power[beyond] == 0).all())
    torch.testing.assert_close(power[~beyond], usual[~beyond], rtol=1e-3, atol=0)


def test_refuses_planes_that_do_not_match():
    ring = amorphous()[1]
    with pytest.raises(ValueError, match="same plane"):
        local_power(ring[:, :8].to(torch.complex128), ring, ring, pixel_A=(PIXEL, PIXEL))
