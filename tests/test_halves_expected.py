"""Half maps of the linear fusion of simulated scans correlate as the dose says: error bars hold `expected_frc`."""

from __future__ import annotations

import math

import numpy as np
import pytest

import misr

FIELD, WIDTH, DRAWS = 48.0, 0.05, 4
OPTICS = {"energy_eV": 300e3, "semiangle_mrad": 10.0}
# scan step (Å), detector pixel (mrad), C10 (Å); the third lights 5 Å with 4 Å between positions
FINE, WIDE_PIXELS, COARSE = (2.0, 0.5, -600.0), (1.0, 1.4, -600.0), (4.0, 0.7, -150.0)


@pytest.fixture(scope="module")
def carbon():
    atoms = misr.amorphous_atoms(field_A=FIELD, thickness_A=30.0, composition="carbon", rng=3)
    return misr.projected_phase(atoms, pixel_A=0.4)


@pytest.fixture(scope="module")
def simulated(carbon):
    """Factory of expected counts of a scan, kept."""
    made = {}

    def make(scan):
        if scan not in made:
            made[scan] = misr.cube_from_phase(carbon, like=blank(*scan))
        return made[scan]

    return make


def blank(step, det_step, C10):
    n, half = round(FIELD / step), math.ceil(11 / det_step)
    k = (np.arange(-half, half) + 0.5) * det_step
    disk = (np.hypot(k[:, None], k[None]) < 10).astype(np.float32)
    cube = misr.cube_from_array(
        np.broadcast_to(disk, (n, n, 2 * half, 2 * half)),
        scan_step_A=step,
        det_step_mrad=det_step,
        aberrations={"C10": C10},
        **OPTICS,
    )
    return cube.assign_attrs(period_A=[FIELD, FIELD])


def measured(expected, dose):
    """Half-map curves of a few draws of electrons, and the grid of their images."""
    curves = []
    for draw in range(DRAWS):
        cube = misr.apply_dose(expected, dose, rng=[21, draw + 1])
        halves = misr.half_maps(cube, rng=[22, draw + 1], ring_width=WIDTH)
        curves.append(halves.frc)
    return curves, halves.first


def agreement(curves, expected):
    """Share of rings whose 95 % interval holds the expectation, and mean deviation in standard errors of a ring."""
    used = expected > 0.02  # below there is nothing to agree on
    held = [((one.frc_low <= expected) & (expected <= one.frc_high)).values[used] for one in curves]
    pulls = [
        ((np.arctanh(one) - np.arctanh(expected)) * np.sqrt(2 * one.n_independent - 1.5)).values[used] for one in curves
    ]
    assert used.sum() > 10
    return float(np.mean(held)), float(np.mean(pulls))


def agrees(curves, expected):
    held, pull = agreement(curves, expected)
    # of about 60 rings in all 95 % ± 3 %; their mean deviation scatters by 0.13
    return held > 0.86 and abs(pull) < 0.5


def promised(carbon, image, scan, dose):
    step, det_step, C10 = scan
    power = misr.radial_power_spectrum(misr.phase_on_grid(carbon, like=image), ring_width=WIDTH, window=None)
    options = {"dose_e_per_A2": dose, "aberrations": {"C10": C10}, "det_step_mrad": det_step, "against": "half-map"}
    limit = misr.expected_frc(power, **options, **OPTICS).values
    return limit, misr.expected_frc_of_scan(power, scan_step_A=step, **options, **OPTICS).half_maps.values


@pytest.mark.slow
@pytest.mark.parametrize("dose", [300.0, 3000.0])
@pytest.mark.parametrize("scan", [FINE, WIDE_PIXELS], ids=["fine", "wide pixels"])
def test_half_maps_are_as_expected(carbon, simulated, scan, dose):
    curves, image = measured(simulated(scan), dose)
    for expected in promised(carbon, image, scan, dose):
        assert agrees(curves, expected), agreement(curves, expected)
    # other doses promise other curves
    for wrong in (0.5 * dose, 2 * dose):
        for expected in promised(carbon, image, scan, wrong):
            assert not agrees(curves, expected), wrong


@pytest.mark.slow
def test_half_maps_of_coarse_steps_are_as_the_scan_has_it(carbon, simulated):
    """Aliases that nothing tells apart repeat in both halves: the limit of fine steps does not know."""
    curves, image = measured(simulated(COARSE), 1000.0)
    limit, of_scan = promised(carbon, image, COARSE, 1000.0)
    assert agrees(curves, of_scan), agreement(curves, of_scan)
    assert not agrees(curves, limit)
