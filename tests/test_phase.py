"""The projected phase against analysis and abTEM's own potential."""

import abtem
import numpy as np
import pytest
from ase import Atoms

from misr.cube import image_from_array
from misr.optics import interaction_parameter
from misr.phase import projected_phase
from misr.resample import phase_on_grid
from misr.specimens import amorphous_atoms


def test_thermal_motion_weakens_high_frequencies():
    atoms = amorphous_atoms(field_A=(24, 32), thickness_A=12, rng=1)
    still, moving = (projected_phase(atoms, thermal_sigma_A=sigma) for sigma in (None, 0.2))
    spectra = [np.fft.fft2(image.values) for image in (still, moving)]
    k2 = np.add.outer(np.fft.fftfreq(still.sizes["y"], 0.25) ** 2, np.fft.fftfreq(still.sizes["x"], 0.25) ** 2)
    keep = np.abs(spectra[0]) > 1e-9
    ratio = spectra[1][keep] / spectra[0][keep]
    np.testing.assert_allclose(ratio, np.exp(-2 * (np.pi * 0.2) ** 2 * k2[keep]), rtol=1e-6)


def test_phase_agrees_with_abtem():
    atoms = Atoms("CSi", positions=[[2.0, 3.0, 1.0], [5.0, 1.5, 1.0]], cell=[8, 6, 2], pbc=True)
    with abtem.config.set({"diagnostics.progress_bar": False}):
        theirs = abtem.Potential(atoms, gpts=(160, 120), slice_thickness=2).build(lazy=False).array.sum(axis=0).T
    ours = projected_phase(atoms, shape=(120, 160), thermal_sigma_A=None)
    low = np.ix_([0, 1, 2, 3, -1, -2, -3], [0, 1, 2, 3, -1, -2, -3])
    expected = interaction_parameter(300e3) * np.fft.fft2(theirs)[low]
    np.testing.assert_allclose(np.fft.fft2(ours.values)[low], expected, rtol=0.01, atol=1e-2)


def test_atom_is_where_it_was_put():
    y, x = 4.37, 6.81
    atom = Atoms("O", positions=[[x, y, 0]], cell=[12, 9, 2], pbc=True)
    phase = projected_phase(atom, pixel_A=0.3)
    fine = image_from_array(np.zeros((60, 60)), pixel_A=(0.01, 0.01), origin_A=(y - 0.3, x - 0.3))
    image = phase_on_grid(phase, like=fine)
    peak = image.argmax(...)
    assert float(image.y[peak["y"]]) == pytest.approx(y, abs=0.011)
    assert float(image.x[peak["x"]]) == pytest.approx(x, abs=0.011)


def test_phase_is_exact_for_shifts_by_part_of_a_pixel():
    plane = [[3.1, 4.2, 0], [5.0, 4.9, 0], [11.3, 15.8, 0], [6.2, 9.7, 0]]
    atoms = Atoms("HCHH", positions=plane, cell=[17, 22, 60], pbc=True)
    shifted = atoms.copy()
    shifted.positions += [0.13, -0.07, 5.0]
    phase, moved = (projected_phase(a, pixel_A=0.4) for a in (atoms, shifted))
    grid = image_from_array(
        np.zeros(phase.shape), pixel_A=(float(phase.y[1]), float(phase.x[1])), origin_A=(0.07, -0.13)
    )
    np.testing.assert_allclose(phase_on_grid(phase, like=grid), moved, atol=1e-6)


def test_bad_input_is_named():
    atom = Atoms("H", positions=[[1, 1, 1]], cell=[4, 5, 2], pbc=True)
    with pytest.raises(ValueError, match="too small"):
        projected_phase(atom, shape=(1, 1))
    with pytest.raises(ValueError, match="pixel_A"):
        projected_phase(atom, pixel_A=-0.1)
    with pytest.raises(ValueError, match="thermal_sigma_A"):
        projected_phase(atom, thermal_sigma_A=float("nan"))
    with pytest.raises(TypeError, match=r"ase\.Atoms"):
        projected_phase("H2O")
