"""Aberrations beyond the second order: the general filter against the quick one, its slopes, and a coma found."""

from __future__ import annotations

import numpy as np
import pytest
from phase_object import at_dose, atoms_phase, phase_object_cube

import misr
from misr.calibration.higher import GeneralFilter, higher_parts, prior_widths
from misr.calibration.refine import Alignment, MatchedFilter
from misr.calibration.spectra import spectra_of

COMA = {"C10": -800.0, "C12": 40.0, "phi12": 0.6, "C21": 2.5e4, "phi21": 1.0}


@pytest.fixture(scope="module")
def cube():
    phase = atoms_phase((96, 96), 0.5, rng=1, density=0.3, strength=0.08)
    made = phase_object_cube(phase, 0.5, aberrations=COMA, det_bin=2)[0]
    made.attrs = {name: value for name, value in made.attrs.items() if name[:2] not in ("C1", "C2", "ph")}
    return at_dose(made, 2000, rng=0)


@pytest.fixture(scope="module")
def spectra(cube):
    return spectra_of(cube).part(slice(0, 400))


@pytest.mark.parametrize("transposed", [False, True])
def test_without_higher_orders_it_is_the_quick_filter(spectra, transposed):
    alignment = Alignment(-700.0, 20.0, -30.0, 1.0, transposed, 0.2)
    quick, general = MatchedFilter(spectra)(alignment), GeneralFilter(spectra, ())(alignment)
    for name in ("v", "variance", "slope", "variance_slope", "gram", "mixed"):
        expected = getattr(quick, name)
        np.testing.assert_allclose(getattr(general, name), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("place", "size"), [(5, 50.0), (6, 50.0), (7, 50.0), (8, 50.0), (9, 5e4)])
def test_slopes_are_those_of_finite_differences(spectra, place, size):
    general = GeneralFilter(spectra, ("C21", "C23", "C30"))
    alignment = Alignment(-700.0, 20.0, -30.0, 1.0, higher=(3e3, -2e3, 1e3, 5e3, 1e6))
    step = np.zeros(10)
    step[place] = size
    ahead, behind = general(alignment.moved(step)), general(alignment.moved(-step))
    here = general(alignment)
    for value, slope in ((lambda f: f.v, here.slope), (lambda f: f.variance, here.variance_slope)):
        measured = (value(ahead) - value(behind)) / (2 * size)
        np.testing.assert_allclose(slope[:, place], measured, atol=0.01 * np.abs(measured).max())


def test_parts():
    assert [name for name, _ in higher_parts(("C30", "C21"))] == ["C21", "C21", "C30"]
    assert len(prior_widths(("C10", "C12"))) == 0


def test_coma_is_found(cube):
    fit = misr.fit_aberrations(cube, orders=("C21", "C23"), rotation_deg=0.0)
    coma = float(fit.C21) * np.exp(1j * float(fit.phi21))
    assert abs(coma - COMA["C21"] * np.exp(1j * COMA["phi21"])) < 5e3
    assert float(fit.C23) < 5e3
    assert abs(float(fit.C10) - COMA["C10"]) < 25
    assert 0 < float(fit.C21_stderr) < 5e3
    assert fit.C21.attrs["units"] == "Å"
    assert fit.phi21.attrs["units"] == "rad"
    assert set(misr.with_aberrations(cube, fit).attrs) >= {"C21_A", "phi21_rad", "C23_A", "phi23_rad"}


def test_errors_are_told_in_spite_of_unlike_units(cube):
    fit = misr.fit_aberrations(cube, orders=("C30",), defocus_sign=1)
    assert float(fit.C30_stderr) > 1e4  # at 10 mrad a tenth of a rad takes 1e5 Å
    with pytest.raises(ValueError, match="expected a sequence of some of"):
        misr.fit_aberrations(cube, orders=("C45",))
