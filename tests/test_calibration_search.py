"""The global search looks where the data point, at films and at crystals, and its table of noise is noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from phase_object import at_dose, phase_object_cube, quarter_turned
from scipy import stats

import misr
from misr.calibration.refine import Alignment
from misr.calibration.search import candidates, energy_table, same_peak, scan_spectrum
from misr.calibration.spectra import spectra_of
from misr.calibration.spots import solve_spots, with_spots


def noise_cube(scan=(20, 20), *, scan_step_A=2.5, electrons=1.0, seed=0, periodic=True):
    """Poisson counts of a disk of 10 mrad, 13 pixels across."""
    k = np.arange(16) - 7.5
    disk = np.clip(6.5 - np.hypot(k[:, None], k[None, :]) + 0.5, 0, 1)
    counts = np.random.default_rng(seed).poisson(np.broadcast_to(disk * electrons, (*scan, 16, 16)))
    cube = misr.cube_from_array(
        counts.astype(np.uint16),
        scan_step_A=scan_step_A,
        det_step_mrad=10.0 / 6.5,
        energy_eV=300e3,
        semiangle_mrad=10.0,
    )
    if periodic:
        cube.attrs["period_A"] = [n * scan_step_A for n in scan]
    return cube


# of a lattice with a cell of 3.2 Å in a field of 48 Å, scanned with 2 Å: all of them folded
CRYSTAL = ((14, 6), (-6, 14), (8, 20), (20, -8))


def crystal_phase(orders=CRYSTAL, *, pixels=96, strength=0.03, seed=0):
    """Plane waves with random offsets: the phase of a perfect crystal."""
    offsets = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(orders))
    y, x = (2 * np.pi * grid / pixels for grid in np.mgrid[:pixels, :pixels])
    return strength * sum(np.cos(m_y * y + m_x * x + o) for (m_y, m_x), o in zip(orders, offsets, strict=True))


@pytest.fixture(scope="module")
def crystal():
    """Scan of a crystal in 48 Å, C10 -900 Å with astigmatism."""
    aberrations = {"C10": -900.0, "C12": 45.0, "phi12": 0.6}
    return phase_object_cube(crystal_phase(), 0.5, aberrations=aberrations, det_bin=2)[0]


CRYSTAL_TRUTH = Alignment(C10=900.0, C12a=-45 * math.cos(1.2), C12b=-45 * math.sin(1.2), rotation=math.pi)


def test_table_is_the_sum_of_shifted_views():
    spectra = spectra_of(noise_cube())
    table = energy_table(spectra)
    energy = np.asarray(table.energy).reshape(-1, *table.shape)
    assert table.shape[0] >= 2 * spectra.counts.shape[0]
    disk = np.hypot(spectra.k_y[:, None], spectra.k_x[None, :]) <= spectra.cutoff
    noise = (spectra.counts * disk).sum() / spectra.positions
    coarse = np.asarray(spectra.coarse)
    for row, i_y, i_x in ((3, 0, 0), (10, 5, 2), (40, 30, 17)):
        u_y, u_x = i_y / table.unit[0], i_x / table.unit[1]
        ramp = np.exp(-2j * np.pi * (spectra.k_y[:, None] * u_y + spectra.k_x[None, :] * u_x))
        expected = abs((coarse[row] * disk * ramp).sum()) ** 2 / noise
        assert energy[row, i_y, i_x] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("scan", "periodic"), [((20, 20), True), ((24, 20), False), ((150, 80), False)])
def test_noise_in_the_table_is_exponential(scan, periodic):
    samples, tiles = [], set()
    for seed in range(4):
        spectra = spectra_of(noise_cube(scan, electrons=0.2, seed=seed, periodic=periodic), q_max=0.19)
        energy = np.asarray(energy_table(spectra).energy)
        samples.append(energy[:, ::97])  # u far enough apart to be nearly independent
        tiles.add(spectra.tiles)
    (number,) = tiles
    assert (number > 1) == (scan[0] > 100)
    values = np.concatenate([part.ravel() for part in samples])
    assert values.mean() == pytest.approx(number, rel=0.05)
    # the sum over tiles of exponential variates
    assert values.var() == pytest.approx(number, rel=0.15)
    if periodic:
        independent = np.concatenate([part[:, 0] for part in samples])
        assert stats.kstest(independent, "expon").pvalue > 1e-3


def test_table_trusts_a_reflection_no_more_than_its_model(crystal):
    noise = energy_table(spectra_of(noise_cube()))
    assert (noise.trust > 0.8).all()
    strong = energy_table(spectra_of(at_dose(crystal, 3000, rng=0)))
    largest = np.asarray(strong.energy).max(axis=1)
    assert (strong.trust[largest > 1000] < 0.1).all()
    assert np.median(strong.trust) > 0.8


@pytest.mark.parametrize(("C10", "dose"), [(1500.0, 300), (-1500.0, 300), (700.0, 300), (-3000.0, 1000)])
def test_scan_over_all_frequencies_finds_a_film(make_scan, C10, dose):
    cube, _ = make_scan("atoms", strength=0.1, C10=C10)
    table = energy_table(spectra_of(at_dose(cube, dose, rng=1)))
    scan = scan_spectrum(table, largest_A=6000.0, transpositions=(False, True))
    best = candidates(scan, number=5)[0]
    truth = Alignment(C10=abs(C10), C12a=0.0, C12b=0.0, rotation=0.0 if C10 > 0 else math.pi)
    assert not best.transposed
    assert abs(best.C10 * np.exp(1j * best.rotation) - truth.C10 * np.exp(1j * truth.rotation)) < 0.08 * abs(C10)
    assert scan.score.max() > 5


def test_candidates_are_separate_peaks_best_first(make_scan):
    cube, _ = make_scan("atoms", strength=0.1, C10=1500.0)
    scan = scan_spectrum(
        energy_table(spectra_of(at_dose(cube, 100, rng=1))), largest_A=4000.0, transpositions=(False, True)
    )
    found = candidates(scan, number=12)
    assert len(found) == 12
    assert not any(same_peak(a, b) for i, a in enumerate(found) for b in found[:i])

    def score(alignment):
        same = (scan.C10 == alignment.C10) & (scan.rotation == alignment.rotation)
        return float(scan.score[same & (scan.transposed == alignment.transposed)][0])

    scores = [score(alignment) for alignment in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == scan.score.max()
    # every trial that scores more than the last candidate lies on one of their peaks
    above = np.flatnonzero(scan.score > scores[-1])
    for i in above[:: max(1, len(above) // 50)]:
        trial = Alignment(scan.C10[i], 0.0, 0.0, scan.rotation[i], bool(scan.transposed[i]))
        assert any(same_peak(trial, other) for other in found)
    assert len(candidates(scan, number=3)) == 3


def test_peaks_are_one_where_rotation_is_none():
    assert same_peak(Alignment(1000.0, 0, 0, 0.0), Alignment(1000.0, 0, 0, 0.02))
    assert same_peak(Alignment(1000.0, 0, 0, 0.01), Alignment(1000.0, 0, 0, 2 * math.pi))
    assert same_peak(Alignment(1000.0, 10.0, 0, 1.0), Alignment(-1000.0, 10.0, 0, 1.0 + math.pi))
    assert same_peak(Alignment(30.0, 0, 0, 0.0), Alignment(30.0, 0, 0, 3.0))  # in focus
    assert not same_peak(Alignment(1000.0, 0, 0, 0.0), Alignment(-1000.0, 0, 0, 0.0))
    assert not same_peak(Alignment(1000.0, 0, 0, 0.0), Alignment(1200.0, 0, 0, 0.0))
    assert not same_peak(Alignment(1000.0, 0, 0, 0.0), Alignment(1000.0, 0, 0, 0.0, transposed=True))
    assert not same_peak(Alignment(1000.0, 150.0, 0, 0.0), Alignment(1000.0, -150.0, 0, 0.0))


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_spots_of_a_folded_crystal_tell_its_alignment(crystal, transposed, turned):
    cube = at_dose(crystal, 1000, rng=2)
    truth = CRYSTAL_TRUTH
    if turned:
        cube = quarter_turned(cube)
        truth = Alignment(truth.C10, truth.C12a, truth.C12b, truth.rotation + math.pi / 2)
    if transposed:
        cube = misr.transpose_detector(cube)
    table = energy_table(spectra_of(cube))
    found = solve_spots(table, largest_A=3000.0, astigmatism_A=60.0, transpositions=(False, True))
    scores = [score for score, _ in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < alignment.C10 < 3000.0 for _, alignment in found)

    def right(trial):
        away = trial.C10 * np.exp(1j * trial.rotation) - truth.C10 * np.exp(1j * truth.rotation)
        astigmatism = math.hypot(trial.C12a - truth.C12a, trial.C12b - truth.C12b)
        return trial.transposed == transposed and abs(away) < 0.08 * truth.C10 and astigmatism < 40

    separate = []
    for _, trial in found:
        if not any(same_peak(trial, other) for other in separate):
            separate.append(trial)
    # among those that are followed
    assert any(right(trial) for trial in separate[:24])


def test_noise_has_no_spots():
    found = [
        with_spots(spectra, energy_table(spectra))[1] is not None
        for spectra in (spectra_of(noise_cube(seed=seed)) for seed in range(10))
    ]
    assert not any(found)
    table = energy_table(spectra_of(noise_cube()))
    assert solve_spots(table, largest_A=3000.0, astigmatism_A=60.0, transpositions=(False,)) == []


def test_spectra_with_spots_hold_the_true_reflections(crystal):
    spectra = spectra_of(at_dose(crystal, 1000, rng=2), q_max=0.25)
    everything, spots = with_spots(spectra, energy_table(spectra))
    # a reflection or its opposite, whose alias may be the one in the half plane
    for m_y, m_x in CRYSTAL:
        for held in (everything, spots):
            away = [np.hypot(held.q_y - sign * m_y / 48, held.q_x - sign * m_x / 48).min() for sign in (1, -1)]
            assert min(away) < 1e-9
    assert len(everything.q_y) > len(spectra.q_y)
    np.testing.assert_allclose(everything.q_y[: len(spectra.q_y)], spectra.q_y)
    # each coefficient belongs to the scan frequency that its object frequency folds onto
    rows = np.asarray(spots.weighted)
    folded = np.rint(np.stack([spots.q_y, spots.q_x]) * 48).astype(int) % 24
    for i in range(1, len(rows)):
        same = (folded[:, i] == folded[:, 0]).all()
        assert same == np.array_equal(rows[i], rows[0])
