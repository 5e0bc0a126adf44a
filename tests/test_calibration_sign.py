"""Atoms are bumps: the skewness that decides between twins says so when there are atoms, and nothing otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from phase_object import ATOM_SIGMA_A, at_dose, atoms_phase, bandlimited_phase, phase_object_cube

from misr.calibration.refine import Alignment
from misr.calibration.sign import skewness_of
from misr.calibration.spectra import spectra_of

C10 = -800.0
TRUTH = Alignment(C10=C10, C12a=0.0, C12b=0.0, rotation=0.0)
TWIN = Alignment(C10=-C10, C12a=0.0, C12b=0.0, rotation=math.pi)


def sharp_spectra(phase, dose, *, rng, C10=C10):
    """As `fit_aberrations` takes them: up to 0.8 of the band limit; 16 pixels across the disk in 48 Å."""
    cube, _ = phase_object_cube(phase, 0.5, aberrations={"C10": C10}, det_bin=3)
    return spectra_of(at_dose(cube, dose, rng=rng), q_max=0.81, most_frequencies=20000)


@pytest.fixture(scope="module")
def film():
    """Spectra of a thin film of atoms."""
    return sharp_spectra(atoms_phase((96, 96), 0.5, rng=1, density=0.3), 1e4, rng=0)


def test_atoms_are_bumps(film):
    found = skewness_of(film, TRUTH)
    assert found.score > 5
    assert found.chance < 0.01


def test_the_twin_sees_the_negative(film):
    bumps, pits = skewness_of(film, TRUTH), skewness_of(film, TWIN)
    assert pits.score == pytest.approx(-bumps.score, rel=0.02)
    assert pits.chance == pytest.approx(bumps.chance, abs=0.01)


def test_pits_are_pits():
    found = skewness_of(sharp_spectra(-atoms_phase((96, 96), 0.5, rng=1, density=0.3), 1e4, rng=0), TRUTH)
    assert found.score < -5
    assert found.chance < 0.01


def test_the_seed_of_the_scrambling_is_the_callers(film):
    first, again, other, generator = (
        skewness_of(film, TRUTH, surrogates=10, rng=rng) for rng in (1, 1, 2, np.random.default_rng(1))
    )
    assert first == again == generator
    assert first != other


def test_chance_is_no_smaller_than_the_surrogates_tell(film):
    assert skewness_of(film, TRUTH, surrogates=20).chance == pytest.approx(0.5 / 21)


def gaussian_scores(seeds):
    found = []
    for seed in seeds:
        phase = bandlimited_phase((96, 96), 0.5, rng=seed, cutoff=0.98)
        phase = smoothed(phase)
        found.append(skewness_of(sharp_spectra(phase, 1e4, rng=seed), TRUTH, rng=seed))
    return np.array([f.score for f in found]), np.array([f.chance for f in found])


def smoothed(phase):
    """Gaussian random phase with the power spectrum of atoms."""
    q = np.hypot(np.fft.fftfreq(96, 0.5)[:, None], np.fft.fftfreq(96, 0.5)[None])
    phase = np.fft.ifft2(np.fft.fft2(phase) * np.exp(-2 * (np.pi * ATOM_SIGMA_A * q) ** 2)).real
    return 0.05 * phase / phase.std()


def test_a_gaussian_phase_has_no_sign():
    scores, chances = gaussian_scores(range(8))
    assert abs(scores.mean()) < 1
    assert scores.std() < 1.8
    # of both tails together: 8 × 0.1 expected, and 5 or more once in two thousand
    assert (chances < 0.05).sum() < 5
    assert (chances < 0.0051).sum() < 2


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated():
    scores, chances = gaussian_scores(range(100, 180))
    assert scores.mean() == pytest.approx(0, abs=0.35)
    assert scores.std() == pytest.approx(1, abs=0.3)
    assert (chances < 0.05).mean() < 0.22  # 0.1 expected
    assert (chances < 0.0051).mean() < 0.06  # 0.01 expected


def test_noise_has_no_sign():
    chances = []
    vacuum = phase_object_cube(np.zeros((96, 96)), 0.5, aberrations={"C10": C10}, det_bin=3)[0]
    for seed in range(8):
        spectra = spectra_of(at_dose(vacuum, 1e3, rng=seed), q_max=0.81, most_frequencies=20000)
        chances.append(skewness_of(spectra, TRUTH).chance)
    assert (np.array(chances) < 0.0051).sum() < 2


@pytest.mark.parametrize("sign", [1, -1])
def test_one_lattice_tells_no_more_than_its_few_reflections(sign):
    # three waves that close a triangle: bumps or pits by their offsets' sum alone, by the throw of one coin
    y, x = (2 * np.pi * grid / 96 for grid in np.mgrid[:96, :96])
    waves = [(10, 4), (-9, 7), (-1, -11)]
    phase = sign * 0.03 * sum(np.cos(m_y * y + m_x * x) for m_y, m_x in waves)
    found = skewness_of(sharp_spectra(phase, 1e4, rng=0), TRUTH)
    assert abs(found.score) < 3
    assert found.chance > 0.01
