"""The matched filter is the overlap function's, its slopes are its own, and refinement climbs to an honest error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from phase_object import at_dose, atoms_phase, phase_object_cube
from scipy import stats

import misr
from misr.calibration.prior import PowerPrior
from misr.calibration.refine import Alignment, MatchedFilter, refine
from misr.calibration.spectra import spectra_of
from misr.optics import overlap_function, pixel_width, rotate

ALIGNMENTS = [
    Alignment(C10=-1200.0, C12a=0.0, C12b=0.0, rotation=0.0),
    Alignment(C10=800.0, C12a=40.0, C12b=-70.0, rotation=2.0),
    Alignment(C10=2500.0, C12a=-30.0, C12b=20.0, rotation=-1.12, transposed=True),
]


def disk_counts(detector, *, step, radius_mrad):
    """A disk with the soft edge of pixels of this size, 1 on its plateau."""
    k = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(detector, step, strict=True)]
    away = np.hypot(k[0][:, None], k[1][None, :])
    return np.clip((radius_mrad - away) / math.sqrt(step[0] * step[1]) + 0.5, 0, 1)


def noise_cube(electrons, *, scan=(24, 24), detector=(16, 16), step=(1.5, 1.5), scan_step_A=2.5, seed=0, periodic=True):
    """Poisson counts of a disk of 10 mrad and nothing else, ``electrons`` per pixel of the plateau."""
    disk = disk_counts(detector, step=step, radius_mrad=10.0)
    counts = np.random.default_rng(seed).poisson(np.broadcast_to(disk * electrons, (*scan, *detector)))
    cube = misr.cube_from_array(
        counts.astype(np.uint16),
        scan_step_A=scan_step_A,
        det_step_mrad=step,
        energy_eV=300e3,
        semiangle_mrad=10.0,
    )
    if periodic:
        cube.attrs["period_A"] = [n * scan_step_A for n in scan]
    return cube


def general_overlap(spectra, alignment):
    """Γ/A of `misr.optics.overlap_function`, for the pixels at least a tenth full: (frequency, det_y, det_x)."""
    k_y, k_x = np.meshgrid(spectra.k_y, spectra.k_x, indexing="ij")
    edges = [(spectra.pixel[0], 0.0), (0.0, spectra.pixel[1])]

    def to_scan(y, x):
        y, x = (x, y) if alignment.transposed else (y, x)
        return rotate(y, x, math.degrees(alignment.rotation))

    k_y, k_x = to_scan(k_y, k_x)
    edges = tuple(to_scan(*edge) for edge in edges)
    aberrations = {
        "C10": alignment.C10,
        "C12": math.hypot(alignment.C12a, alignment.C12b),
        "phi12": 0.5 * math.atan2(alignment.C12b, alignment.C12a),
    }
    re, im = overlap_function(
        k_y,
        k_x,
        spectra.q_y[:, None, None],
        spectra.q_x[:, None, None],
        aberrations=aberrations,
        wavelength=spectra.wavelength,
        cutoff=spectra.cutoff,
        pixel_edges=edges,
    )
    width = pixel_width(k_y, k_x, pixel_edges=edges)
    filled = np.clip((spectra.cutoff - np.hypot(k_y, k_x)) / width + 0.5, 0, 1)
    return np.where(filled > 0.1, re + 1j * im, 0) / np.maximum(filled, 0.1)


def explicit_filter(spectra, alignment):
    """Value and noise variance of the filter, as sums over pixels."""
    gamma = general_overlap(spectra, alignment)
    data = np.asarray(spectra.weighted)
    number = spectra.positions * spectra.trust
    value = number * (gamma.conj() * data).sum((1, 2))
    return value, number * (spectra.counts * abs(gamma) ** 2).sum((1, 2))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_filter_is_the_general_overlap_function(alignment):
    spectra = spectra_of(noise_cube(2.0))
    filtered = MatchedFilter(spectra)(alignment)
    value, variance = explicit_filter(spectra, alignment)
    scale = np.sqrt(variance.max())
    assert abs(filtered.v - value).max() < 1e-3 * scale  # float32
    np.testing.assert_allclose(filtered.variance, variance, rtol=1e-3, atol=1e-4 * variance.max())
    assert np.linalg.norm(value) > 5 * scale


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_rectangular_pixels_differ_by_their_soft_edge_alone(alignment):
    # the aperture's edge is smeared over one width for all directions: a few per cent of the pixels, partly
    spectra = spectra_of(noise_cube(2.0, detector=(24, 16), step=(1.0, 1.5)))
    filtered = MatchedFilter(spectra)(alignment)
    value, variance = explicit_filter(spectra, alignment)
    assert np.linalg.norm(filtered.v - value) < 0.06 * np.linalg.norm(value)
    assert abs(filtered.variance - variance).mean() < 0.03 * variance.mean()
    swapped = MatchedFilter(spectra)(Alignment(**{**vars(alignment), "transposed": not alignment.transposed}))
    assert np.linalg.norm(swapped.v - value) > 0.5 * np.linalg.norm(value)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_simple_filter_is_the_disk_without_overlaps(alignment):
    spectra = spectra_of(noise_cube(2.0))
    filtered = MatchedFilter(spectra, simple=True)(alignment)
    k_y, k_x = np.meshgrid(spectra.k_y, spectra.k_x, indexing="ij")
    g_y, g_x = alignment.shifts(spectra.q_y, spectra.q_x)
    chi = math.pi * spectra.wavelength * (g_y * spectra.q_y + g_x * spectra.q_x)
    u_y, u_x = alignment.to_detector(g_y, g_x)
    ramp = np.exp(-2j * np.pi * spectra.wavelength * (u_y[:, None, None] * k_y + u_x[:, None, None] * k_x))
    blur = np.sinc(spectra.wavelength * u_y * spectra.pixel[0]) * np.sinc(spectra.wavelength * u_x * spectra.pixel[1])
    filled = np.hypot(k_y, k_x) < spectra.cutoff + 0.4 * spectra.pixel[0]  # more than a tenth inside
    gamma = 2 * np.sin(chi) * blur  # i [exp(-iχ) - exp(iχ)] times the ramp
    value = spectra.positions * spectra.trust * gamma * (ramp * filled * np.asarray(spectra.weighted)).sum((1, 2))
    assert abs(filtered.v - value).max() < 1e-3 * abs(value).max()


def slope_errors(matched, alignment):
    """Relative difference of the derivatives of value and variance from finite differences, per parameter."""
    filtered, errors = matched(alignment), []
    # small enough that the overlaps are held over the rotation; and what is no slope at all, per Å and rad
    for i, (step, nothing) in enumerate([(1.0, 1e-4)] * 3 + [(1e-3, 1e-2)] * 2):
        move = np.zeros(len(alignment.values))
        move[i] = step
        ahead, behind = matched(alignment.moved(move)), matched(alignment.moved(-move))
        for name, derivative in (("v", "slope"), ("variance", "variance_slope")):
            measured = (getattr(ahead, name) - getattr(behind, name)) / (2 * step)
            given = getattr(filtered, derivative)[:, i]
            size = max(
                np.linalg.norm(given), np.linalg.norm(measured), nothing * np.linalg.norm(getattr(filtered, name))
            )
            errors.append(float(np.linalg.norm(measured - given) / size))
    return errors


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_slopes_are_finite_differences(transposed, simple):
    # shifts far below what a pixel of 0.5 mrad blurs
    spectra = spectra_of(noise_cube(2.0, detector=(44, 44), step=(0.5, 0.5)))
    matched = MatchedFilter(spectra, simple=simple)
    errors = slope_errors(matched, Alignment(-250.0, 15.0, -20.0, rotation=2.0, transposed=transposed))
    assert max(errors) < 0.02, errors


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_slopes_know_that_pixels_blur(alignment):
    errors = slope_errors(MatchedFilter(spectra_of(noise_cube(2.0))), alignment)
    assert max(errors) < 0.05, errors


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_gram_and_mixed_are_sums_over_pixels(alignment):
    spectra = spectra_of(noise_cube(2.0), q_max=0.3)
    held = MatchedFilter(spectra)
    filtered = held(alignment)
    # γ at every pixel, from the filter itself fed with one lit pixel at a time, would be slow: analytically instead
    number = (spectra.positions * spectra.trust * spectra.counts[:, :, None]).T.reshape(-1, *spectra.counts.shape[::-1])
    weight = np.swapaxes(number, 1, 2)
    steps = np.array([0.5, 0.5, 0.5, 2e-4, 1e-3])
    gamma = frozen_overlap(spectra, alignment, alignment)
    slopes = []
    for i, step in enumerate(steps):
        move = np.zeros(len(steps))
        move[i] = step
        ahead, behind = (frozen_overlap(spectra, alignment.moved(sign * move), alignment) for sign in (1, -1))
        slopes.append((ahead - behind) / (2 * step))
    for i in range(len(steps)):
        mixed = (weight * gamma.conj() * slopes[i]).sum((1, 2))
        assert np.linalg.norm(filtered.mixed[:, i] - mixed) < 0.02 * np.linalg.norm(mixed)
        for j in range(len(steps)):
            gram = (weight * slopes[i].conj() * slopes[j]).sum((1, 2)).real
            size = np.sqrt((weight * abs(slopes[i]) ** 2).sum() * (weight * abs(slopes[j]) ** 2).sum())
            assert abs(filtered.gram[:, i, j] - gram).sum() < 0.02 * size


def frozen_overlap(spectra, alignment, masks_at):
    """γ without the pixel's blur's own derivative: masks and blur of one alignment, phases of another."""
    k_y, k_x = np.meshgrid(spectra.k_y, spectra.k_x, indexing="ij")
    held = np.hypot(k_y, k_x) < spectra.cutoff + 0.4 * spectra.pixel[0]
    wavelength = spectra.wavelength
    u = [alignment.to_detector(*alignment.shifts(spectra.q_y, spectra.q_x))]
    at = masks_at.to_detector(*masks_at.shifts(spectra.q_y, spectra.q_x))
    blur = np.sinc(wavelength * at[0] * spectra.pixel[0]) * np.sinc(wavelength * at[1] * spectra.pixel[1])
    g_y, g_x = alignment.shifts(spectra.q_y, spectra.q_x)
    chi = (math.pi * wavelength * (g_y * spectra.q_y + g_x * spectra.q_x) - alignment.absorption)[:, None, None]
    q_y, q_x = (component[:, None, None] for component in masks_at.to_detector(spectra.q_y, spectra.q_x))
    width = math.sqrt(spectra.pixel[0] * spectra.pixel[1])

    def filled(sign):
        away = np.hypot(k_y + sign * q_y, k_x + sign * q_x)
        return np.clip((spectra.cutoff - away) / width + 0.5, 0, 1)

    ramp = np.exp(2j * np.pi * wavelength * (u[0][0][:, None, None] * k_y + u[0][1][:, None, None] * k_x))
    both = filled(-1) * np.exp(-1j * chi) - filled(1) * np.exp(1j * chi)
    return 1j * held * ramp * both * blur[:, None, None]


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_twin_gives_the_negative(alignment, simple):
    alignment = replace(alignment, absorption=0.2)
    spectra = spectra_of(noise_cube(2.0))
    twin = Alignment(
        C10=-alignment.C10,
        C12a=-alignment.C12a,
        C12b=-alignment.C12b,
        rotation=alignment.rotation + math.pi,
        transposed=alignment.transposed,
        absorption=-alignment.absorption,
    )
    own, other = (MatchedFilter(spectra, simple=simple)(a) for a in (alignment, twin))
    assert abs(own.v + other.v).max() < 1e-3 * abs(own.v).max()
    np.testing.assert_allclose(own.variance, other.variance, rtol=1e-3, atol=1e-5 * own.variance.max())


@pytest.mark.parametrize(
    ("periodic", "scan", "electrons"), [(True, (24, 24), 0.05), (False, (30, 24), 0.05), (False, (90, 44), 1.0)]
)
def test_noise_has_the_stated_variance(periodic, scan, electrons):
    # the last is cut into tiles, 4 Å steps having no aliases below q_max
    step = 4.0 if scan[0] > 80 else 2.0
    ratios = []
    for seed in range(3):
        cube = noise_cube(electrons, scan=scan, detector=(12, 12), step=(2.0, 2.0), scan_step_A=step, seed=seed)
        if not periodic:
            del cube.attrs["period_A"]
        spectra = spectra_of(cube, q_max=0.45 / step)
        assert (spectra.tiles > 1) == (scan[0] > 80)
        filtered = MatchedFilter(spectra)(ALIGNMENTS[1])
        ratios.append(abs(filtered.v) ** 2 / filtered.variance)
    ratios = np.concatenate(ratios)
    number = len(ratios) * spectra.independent
    assert ratios.mean() == pytest.approx(1, abs=4 / math.sqrt(number))
    # exponential: squares have mean 2 (their standard deviation is sqrt(20)), and one in twenty is above 3
    assert (ratios**2).mean() == pytest.approx(2, abs=4 * math.sqrt(20 / number))
    assert (ratios > -math.log(0.05)).mean() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 / number))
    if periodic:
        assert stats.kstest(ratios, "expon").pvalue > 1e-3


@pytest.fixture(scope="module")
def counted(make_scan):
    """``(dose, seed) -> spectra`` of atoms in 48 Å, 24 pixels across the disk; the truth is C10 1200 Å, C12 40 Å."""
    cube, _ = make_scan("atoms", strength=0.1, C10=1200.0, C12=40.0, phi12=0.5)
    return lambda dose, seed: spectra_of(at_dose(cube, dose, rng=seed))


TRUTH = Alignment(C10=1200.0, C12a=40 * math.cos(1.0), C12b=40 * math.sin(1.0), rotation=0.0)


def away_from_truth(*steps):
    """In C10, C12a, C12b (Å), rotation and absorption (rad)."""
    return TRUTH.moved(np.array([*steps, *[0.0] * (len(TRUTH.values) - len(steps))]))


def geometry(found):
    """C10, C12a, C12b and rotation, and their standard errors."""
    return found.alignment.values[:4], np.sqrt(np.diag(np.linalg.inv(found.information)))[:4]


def climb(spectra, start, **options):
    prior = PowerPrior(spectra.q, area_A2=spectra.area_A2, independent=spectra.independent)
    return refine(MatchedFilter(spectra), prior, start, **({"astigmatism_A": 60.0, "steps": 20} | options))


def test_refine_never_loses_likelihood(counted):
    spectra = counted(300, 0)
    generator = np.random.default_rng(0)
    for _ in range(6):
        start = away_from_truth(*generator.normal(size=4) * [150, 40, 40, 0.1])
        logs = [climb(spectra, start, steps=steps).log for steps in (0, 1, 4)]
        assert logs[0] <= logs[1] <= logs[2]


@pytest.mark.parametrize("away", [(36.0, 15.0, -15.0, 0.02), (-36.0, -15.0, 15.0, -0.02)])
def test_refine_finds_the_optimum_from_three_per_cent_off(counted, away):
    spectra = counted(1000, 1)
    matched, prior = MatchedFilter(spectra), PowerPrior(spectra.q, area_A2=spectra.area_A2)
    found = refine(matched, prior, away_from_truth(*away), astigmatism_A=60.0, steps=20)
    values, stderr = geometry(found)
    assert (abs(values - TRUTH.values[:4]) < 3 * stderr + np.array([6.0, 0, 0, 0])).all()  # as below
    assert stderr[0] < 15
    assert stderr[3] < math.radians(1)
    # nothing near is clearly more likely (each standard error costs about a half)
    for i in range(4):
        for sign in (-1, 1):
            move = np.zeros(len(TRUTH.values))
            move[i] = sign * stderr[i]
            near = refine(matched, prior, found.alignment.moved(move), astigmatism_A=60.0, steps=0)
            assert near.log < found.log + 0.1
            move[i] *= 4
            far = refine(matched, prior, found.alignment.moved(move), astigmatism_A=60.0, steps=0)
            assert far.log < found.log - 3


def test_fixed_parameters_stay(counted):
    spectra = counted(1000, 1)
    start = away_from_truth(30.0, 0, 0, 0.03)
    found = climb(spectra, start, fixed=(False, False, False, True, False))
    assert found.alignment.rotation == start.rotation
    assert found.alignment.C10 != start.C10


def test_standard_errors_are_the_scatter_of_repeated_fits(counted):
    found = [climb(counted(1000, seed), TRUTH, steps=6) for seed in range(20)]
    values, stderr = (np.array(part) for part in zip(*map(geometry, found), strict=True))
    stderr = stderr.mean(axis=0)
    # twenty fits tell their scatter to 16 %
    ratio = values.std(axis=0, ddof=1) / stderr
    assert (ratio > 0.6).all(), ratio
    assert (ratio < 1.4).all(), ratio
    # the simulator's pixels sample where the model's integrate, which costs half a per cent of the defocus in 48 Å
    assert (abs(values.mean(axis=0) - TRUTH.values[:4]) < stderr + np.array([6.0, 0, 0, 0])).all()


@pytest.mark.parametrize("angle", [0.0, 0.25])
def test_absorption_is_told_from_defocus(angle):
    # an object that scatters i φ exp(iη)
    phase = atoms_phase((96, 96), 0.5, rng=1, strength=0.02) * np.exp(1j * angle)
    cube, _ = phase_object_cube(phase, 0.5, aberrations={"C10": 1200.0, "C12": 40.0, "phi12": 0.5})
    found = climb(spectra_of(at_dose(cube, 1e4, rng=0)), TRUTH)
    stderr = np.sqrt(np.diag(np.linalg.inv(found.information)))
    assert abs(found.alignment.absorption - angle) < 4 * stderr[4] + 0.02
    assert abs(found.alignment.C10 - 1200) < 4 * stderr[0] + 6
