"""Fourier coefficients of the bright field: those of an explicit sum, with noise as stated, whatever the container."""

from __future__ import annotations

import math

import dask.array as da
import numpy as np
import pytest

import misr
from misr.calibration.spectra import spectra_of


def random_cube(
    scan=(12, 10),
    *,
    electrons=3.0,
    pixels=16,
    det_step=1.5,
    scan_step_A=(2.0, 2.5),
    seed=0,
    periodic=True,
    dtype=np.uint16,
):
    """Poisson counts of a disk of 10 mrad."""
    k = (np.arange(pixels) - (pixels - 1) / 2) * det_step
    disk = np.clip((10.0 - np.hypot(k[:, None], k[None, :])) / det_step + 0.5, 0, 1)
    counts = np.random.default_rng(seed).poisson(np.broadcast_to(disk * electrons, (*scan, pixels, pixels)))
    cube = misr.cube_from_array(
        counts.astype(dtype), scan_step_A=scan_step_A, det_step_mrad=det_step, energy_eV=300e3, semiangle_mrad=10.0
    )
    if periodic:
        cube.attrs["period_A"] = [n * s for n, s in zip(scan, scan_step_A, strict=True)]
    return cube


def same(a, b, *, tolerance=1e-5):
    for name in ("q_y", "q_x", "k_y", "k_x", "counts", "trust"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)
    for name in ("weighted", "coarse"):
        np.testing.assert_allclose(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)), atol=tolerance)


def test_coefficients_are_those_of_an_explicit_sum():
    cube = random_cube()
    spectra = spectra_of(cube)
    places = np.flatnonzero(np.abs(cube.det_y.values) <= 11.5)
    counts = cube.values[:, :, places][:, :, :, places].astype(float)
    np.testing.assert_allclose(spectra.counts, counts.mean(axis=(0, 1)))
    y, x = (cube[dim].values for dim in ("scan_y", "scan_x"))
    y, x = y - y[0], x - x[0]
    for i in range(0, len(spectra.q_y), 7):
        wave = np.exp(-2j * np.pi * (spectra.q_y[i] * y[:, None] + spectra.q_x[i] * x[None, :]))
        expected = np.einsum("yx,yxab->ab", wave, counts - counts.mean(axis=(0, 1))) / cube[..., 0, 0].size
        np.testing.assert_allclose(np.asarray(spectra.weighted[i]), expected, atol=2e-5)


def test_frequencies_are_a_half_plane_with_all_aliases():
    cube = random_cube()
    spectra = spectra_of(cube, q_max=0.4)
    field = 24.0, 25.0
    orders = np.stack([spectra.q_y * field[0], spectra.q_x * field[1]])
    np.testing.assert_allclose(orders, np.rint(orders), atol=1e-9)
    found = {tuple(order) for order in np.rint(orders).T.astype(int)}
    wanted = {
        (y, x) for y in range(-10, 11) for x in range(-10, 11) if 0 < math.hypot(y / field[0], x / field[1]) < 0.4
    }
    assert len(found) == orders.shape[1]
    assert not any((-y, -x) in found for y, x in found)
    assert found | {(-y, -x) for y, x in found} == wanted
    # the scan's own limit is 0.25 and 0.2 1/Å: beyond, coefficients repeat
    assert len(spectra.coarse) < len(spectra.q_y)
    assert spectra.tile_A == pytest.approx(field)
    assert spectra.area_A2 == pytest.approx(600)
    # half of the band limit 2α/λ when nothing is said, and only the lowest of them when there are too many
    assert 0.9 * spectra.cutoff < spectra_of(cube).q.max() < spectra.cutoff
    few = spectra_of(cube, q_max=0.4, most_frequencies=40)
    assert few.q.shape == (40,)
    assert few.q.max() <= np.sort(spectra.q)[40]


@pytest.mark.parametrize(
    ("periodic", "scan"), [(True, (16, 14)), (False, (16, 14)), (False, (24, 20)), (False, (100, 60))]
)
def test_noise_is_one_over_the_counts(periodic, scan):
    cubes = [random_cube(scan, electrons=0.2, pixels=10, det_step=2.5, seed=s, periodic=periodic) for s in range(3)]
    power, fourth, number = 0.0, 0.0, 0.0
    for cube in cubes:
        spectra = spectra_of(cube, q_max=0.19)
        lit = spectra.counts > 0.05
        energy = abs(np.asarray(spectra.weighted)[:, lit]) ** 2 * spectra.positions / spectra.counts[lit]
        power, fourth, number = power + energy.mean() / 3, fourth + (energy**2).mean() / 3, number + energy.size
        assert spectra.independent == 1.0 if periodic else 0.5 < spectra.independent < 1
    independent = number * spectra.independent
    assert power == pytest.approx(1, abs=5 / math.sqrt(independent))
    assert fourth == pytest.approx(2, abs=5 * math.sqrt(20 / independent) + 0.02)  # of an exponential


def test_share_of_independent_coefficients_is_that_of_the_noise():
    # the sum of all energies scatters by 1/sqrt(number × share)
    sums = []
    for seed in range(60):
        spectra = spectra_of(
            random_cube((16, 16), scan_step_A=(2.0, 2.0), pixels=10, det_step=2.5, seed=seed, periodic=False)
        )
        below = spectra.q < 0.24  # without aliases
        lit = spectra.counts > 1
        energy = abs(np.asarray(spectra.weighted)[below][:, lit]) ** 2 * spectra.positions / spectra.counts[lit]
        sums.append(energy.mean(axis=0))
    number = below.sum() * spectra.independent
    assert np.var(sums, axis=0).mean() * number == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("scan", [(12, 10), (90, 80)])
def test_dask_equals_numpy(periodic, scan):
    cube = random_cube(scan, pixels=10, det_step=2.5, periodic=periodic)
    lazy = cube.copy(data=da.from_array(cube.values, chunks=(7, 5, 4, 10)))
    same(spectra_of(cube), spectra_of(lazy))


def test_dtype_does_not_matter():
    same(spectra_of(random_cube(dtype=np.uint8)), spectra_of(random_cube(dtype=np.float64)))
    fine = {"pixels": 120, "det_step": 0.2, "electrons": 0.1}
    same(spectra_of(random_cube(**fine, dtype=np.uint8)), spectra_of(random_cube(**fine, dtype=np.float32)))


def test_large_scans_are_cut_into_tiles():
    cube = random_cube((170, 100), scan_step_A=(2.0, 2.0), pixels=8, det_step=3.0, periodic=False)  # 340 Å × 200 Å
    spectra = spectra_of(cube)
    assert spectra.tiles == 2
    assert spectra.tile_A == (170.0, 200.0)
    half = len(spectra.q_y) // 2
    first, second = (spectra_of(cube.isel(scan_y=rows)) for rows in (slice(0, 85), slice(85, 170)))
    assert first.tiles == second.tiles == 1
    for part, alone in ((slice(0, half), first), (slice(half, 2 * half), second)):
        np.testing.assert_allclose(spectra.q_y[part], alone.q_y[:half])
        np.testing.assert_allclose(np.asarray(spectra.weighted[part]), np.asarray(alone.weighted)[:half], atol=1e-5)
    assert not np.allclose(np.asarray(spectra.weighted[:half]), np.asarray(spectra.weighted[half:]), atol=1e-3)
    np.testing.assert_allclose(spectra.counts, (first.counts + second.counts) / 2)
    # a defocus whose shifts leave a tile makes the tiles larger
    assert spectra_of(cube, max_defocus_A=15000.0).tiles == 1
    # never more than a few
    assert spectra_of(random_cube((400, 400), scan_step_A=(2.0, 2.0), pixels=4, det_step=6.0, electrons=1.0)).tiles == 9


def test_fine_detectors_are_binned():
    cube = random_cube(pixels=124, det_step=0.2, electrons=0.5)  # 100 pixels across the disk
    spectra = spectra_of(cube)
    assert spectra.pixel[0] == pytest.approx(3 * 0.2e-3 / spectra.wavelength)
    assert spectra.counts.sum() <= cube.mean(("scan_y", "scan_x")).sum()
    assert spectra.counts.sum() > 0.97 * float(cube.mean(("scan_y", "scan_x")).sum())
    # the centre of what is lit stays at the centre of the disk
    for k, axis in ((spectra.k_y, 1), (spectra.k_x, 0)):
        assert abs((spectra.counts.sum(axis=axis) * k).sum() / spectra.counts.sum()) < 0.02 * spectra.cutoff
    # as if the detector had been binned by hand
    first = int(np.argmin(abs(cube.det_y.values * 1e-3 / spectra.wavelength - spectra.k_y[0]))) - 1
    hand = cube.values[:, :, first : first + 3 * len(spectra.k_y)]
    hand = hand.reshape(*hand.shape[:2], len(spectra.k_y), 3, -1).sum(axis=3).mean(axis=(0, 1)).sum(axis=1)
    assert spectra.counts.sum(axis=1) == pytest.approx(hand, abs=0.05 * hand.max())


def test_disk_off_centre_and_flipped_axes():
    cube = random_cube(pixels=20)
    moved = cube.assign_coords(det_y=cube.det_y + 40.0, det_x=cube.det_x - 7.0)
    same(spectra_of(cube), spectra_of(moved), tolerance=2e-3)


def test_dead_pixels_are_dark_and_harmless():
    cube = random_cube()
    values = cube.values.copy()
    values[:, :, 6, 9] = 0
    spectra = spectra_of(cube.copy(data=values))
    inside = np.hypot(spectra.k_y[:, None], spectra.k_x[None, :]) < 0.8 * spectra.cutoff
    ((y, x),) = np.argwhere(inside & (spectra.counts == 0))
    assert not np.asarray(spectra.weighted)[:, y, x].any()
    assert np.isfinite(np.asarray(spectra.weighted)).all()
    assert (spectra.trust == 1).all()


def test_strong_reflections_are_not_trusted_beyond_the_models_error():
    cube = random_cube((24, 24), scan_step_A=(2.0, 2.0))
    wave = 1 + 0.5 * np.cos(2 * np.pi * 6 * np.arange(24) / 24)
    strong = misr.apply_dose(
        cube.copy(data=np.broadcast_to(cube.mean(("scan_y", "scan_x")).values * wave[:, None, None, None], cube.shape))
        .astype(np.float32)
        .assign_attrs(dose_e_per_A2=1.0),
        100.0,
        rng=0,
    )
    spectra = spectra_of(strong.assign_attrs(period_A=[48.0, 48.0]))
    at = np.argmin(np.hypot(spectra.q_y - 6 / 48, spectra.q_x))
    assert spectra.trust[at] < 0.1
    assert np.median(spectra.trust) == 1


def test_a_cut_disk_is_refused():
    with pytest.raises(ValueError, match="edge"):
        spectra_of(random_cube().isel(det_x=slice(0, 11)))
