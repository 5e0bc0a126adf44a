"""Bright-field cubes by reciprocity against abTEM's probe by probe multislice, and against theory."""

import numpy as np
import pytest
import torch
from ase import Atoms

from misr.cube import cube_history, is_periodic, scan_step, validate_cube
from misr.dose import apply_dose
from misr.fusion import fuse_linear
from misr.fusion.tilted_waves import simulate_bright_field
from misr.optics import electron_wavelength, interaction_parameter
from misr.phase import projected_phase, projected_potential
from misr.phase_object import cube_from_phase
from misr.simulate import simulate_cube
from misr.views import synthesize_views

ENERGY = 300e3
SEMIANGLE = 10.0
LENS = {"C10": -300.0, "C12": 60.0, "phi12": 0.5, "C21": 2000.0, "phi21": -0.4, "C30": 1e6}
OPTICS = {"energy_eV": ENERGY, "semiangle_mrad": SEMIANGLE}


def random_atoms(number, elements, depth, size=(24.0, 22.0), seed=0):
    """Atoms anywhere in a cell that is not square (y 24 Å, x 22 Å), on the first and the last level of it too."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, 1, (number, 3)) * [size[1], size[0], depth]
    positions[:2, 2] = 0.0, depth
    return Atoms(rng.choice(elements, number).tolist(), positions, cell=[size[1], size[0], depth + 2], pbc=True)


def phase_slices(atoms, number, shape, sigma=0.08):
    """Projected phase of equal slabs between the first and the last atom, and their thickness."""
    z = atoms.positions[:, 2]
    thickness = (z.max() - z.min()) / number
    index = np.minimum((z - z.min()) / thickness, number - 1).astype(int)
    size = (atoms.cell[1, 1], atoms.cell[0, 0])
    symbols = np.array(atoms.get_chemical_symbols())
    slices = [
        projected_potential(atoms.positions[index == i], symbols[index == i].tolist(), size, shape, sigma)
        for i in range(number)
    ]
    return interaction_parameter(ENERGY) * np.stack(slices), thickness


def both(atoms, lens, number, *, det_pixels, rotation_deg=0.0, sampling=None):
    """The same cube by abTEM and by tilted waves, on abTEM's own diffraction grid."""
    size = (atoms.cell[1, 1], atoms.cell[0, 0])
    scan = simulate_cube(
        atoms, aberrations=lens, scan_step_A=2.0, rotation_deg=rotation_deg, det_pixels=det_pixels, progress=False,
        slice_thickness_A=np.ptp(atoms.positions[:, 2]) / number * (1 + 1e-6), potential_sampling_A=sampling, **OPTICS,
    )  # fmt: skip
    expected = scan.counts
    slices, thickness = phase_slices(atoms, number, scan.phase.shape)
    angles = expected.det_y.values, expected.det_x.values
    native = 1e3 * electron_wavelength(ENERGY) / size[0 if rotation_deg % 180 == 0 else 1]
    options = {
        "pixel_A": (size[0] / scan.phase.shape[0], size[1] / scan.phase.shape[1]),
        "scan_shape": expected.shape[:2],
        "det_step_mrad": tuple(np.diff(angle)[0] for angle in angles),
        "det_pixels": expected.shape[2:],
        "det_center_mrad": tuple(angle.mean() for angle in angles),
        "rotation_deg": rotation_deg,
        "nodes": round(np.diff(angles[0])[0] / native),
        "smooth_edges": False,
        **OPTICS,
    }
    made = simulate_bright_field(slices, slice_thickness_A=thickness, aberrations=lens, **options)
    vacuum = simulate_bright_field(np.zeros_like(slices[0]), **options)[0, 0].values
    return made, expected, vacuum


def contrast_error(made, expected, keep):
    """Relative error of what changes over the scan, and how many times too strong it is."""
    first, second = (cube.values[..., keep] - cube.values[..., keep].mean(axis=(0, 1)) for cube in (made, expected))
    gain = (first * second).sum() / (second**2).sum()
    return np.linalg.norm(first / gain - second) / np.linalg.norm(second), gain


@pytest.mark.parametrize("rotation_deg", [0.0, 90.0])
@pytest.mark.parametrize("defocus", [300.0, -300.0])
def test_one_slice_agrees_with_abtem(defocus, rotation_deg):
    lens = {**LENS, "C10": -defocus}
    atoms = random_atoms(60, ["C", "O"], 3.0)
    made, expected, vacuum = both(atoms, lens, 1, det_pixels=16, rotation_deg=rotation_deg)
    for name in expected.dims:
        np.testing.assert_allclose(made[name], expected[name], atol=1e-9)
    error, gain = contrast_error(made, expected, vacuum > 0.01 * vacuum.max())
    assert error < 1e-3
    # abTEM shares the electrons among the diffraction pixels within the disk, whose number only is about its area
    assert gain == pytest.approx(1, abs=0.015)
    bright = vacuum > 0.01 * vacuum.max()
    np.testing.assert_allclose(made.values[..., bright] / gain, expected.values[..., bright], rtol=2e-3)
    assert made.values[..., bright].sum() / expected.values[..., bright].sum() == pytest.approx(gain, rel=1e-4)


@pytest.mark.parametrize(("number", "defocus"), [(4, 300.0), (3, -500.0)])
def test_thick_specimen_agrees_with_abtem(number, defocus):
    atoms = random_atoms(400, ["C", "Si", "Au"], 60.0)
    made, expected, vacuum = both(atoms, {**LENS, "C10": -defocus}, number, det_pixels=40, sampling=0.25)
    error, gain = contrast_error(made, expected, vacuum > 0.01 * vacuum.max())
    assert error < 0.01  # the waves' bands differ: a square here, a disk there
    reversed_beam = both(mirrored(atoms), {**LENS, "C10": -defocus}, number, det_pixels=40, sampling=0.25)[1]
    # the order of the slices does matter
    assert contrast_error(reversed_beam, expected, vacuum > 0.01 * vacuum.max())[0] > 0.05
    keep = vacuum > 0.01 * vacuum.max()
    # abTEM shares the electrons among the diffraction pixels within the disk, whose number only is about its area
    share = vacuum.sum() / np.prod(scan_step(expected))
    assert gain == pytest.approx(share, rel=0.01)
    everything = vacuum[keep].sum() * expected[..., 0, 0].size / share
    scattered = [everything - made.values[..., keep].sum() / share, everything - expected.values[..., keep].sum()]
    assert scattered[1] > 0.01 * everything
    assert scattered[0] == pytest.approx(scattered[1], rel=0.02)


def mirrored(atoms):
    other = atoms.copy()
    other.positions[:, 2] = other.positions[:, 2].max() - other.positions[:, 2]
    return other


def test_any_detector_agrees_with_the_probe_on_a_phase_object():
    atoms = random_atoms(200, ["C", "O"], 3.0, size=(40.0, 44.0))
    phase = projected_phase(atoms, energy_eV=ENERGY, pixel_A=0.25)
    # `cube_from_phase` samples the phase on a coarser grid, so finer detail must not be there
    k_y, k_x = (np.fft.fftfreq(n, side / n) for n, side in zip(phase.shape, (40, 44), strict=True))
    phase = phase.copy(data=np.fft.ifft2(np.fft.fft2(phase.values) * (np.hypot(k_y[:, None], k_x) < 1.05)).real)
    lens = {"C10": -600.0, "C12": 60.0, "phi12": 0.5}
    made = simulate_bright_field(
        phase.values, pixel_A=(40 / phase.shape[0], 44 / phase.shape[1]), scan_shape=(16, 16), det_step_mrad=(1.3, 1.5),
        det_center_mrad=(0.4, -0.3), rotation_deg=23.0, aberrations=lens, **OPTICS,
    )  # fmt: skip
    expected = cube_from_phase(phase, like=made, center_mrad=(0.0, 0.0))
    vacuum = simulate_bright_field(
        np.zeros((64, 64)), pixel_A=0.3, scan_shape=(4, 4), det_step_mrad=(1.3, 1.5), det_pixels=made.shape[2:],
        det_center_mrad=(0.4, -0.3), rotation_deg=23.0, **OPTICS,
    )[0, 0].values  # fmt: skip
    error, gain = contrast_error(made, expected, vacuum > 0.99 * vacuum.max())
    assert error < 0.02
    assert gain == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize(("lens", "nodes", "most"), [({"C10": -600.0}, 1, 0.025), ({"C10": 1500.0}, 2, 0.015)])
def test_cells_at_the_edges_of_apertures_are_integrated(lens, nodes, most):
    slices, _ = phase_slices(random_atoms(100, ["C", "Au"], 3.0, size=(30.0, 30.0)), 1, (100, 100))
    options = {"pixel_A": 0.3, "scan_shape": (12, 12), "det_step_mrad": 1.25, "aberrations": lens, **OPTICS}
    fine = simulate_bright_field(slices, nodes=10, **options)
    bright = fine.values.mean(axis=(0, 1)) > 0.01 * fine.values.max()
    coarse = simulate_bright_field(slices, nodes=nodes, **options)
    points = simulate_bright_field(slices, nodes=nodes, smooth_edges=False, **options)
    error, gain = contrast_error(coarse, fine, bright)
    assert error < most
    assert gain == pytest.approx(1, abs=0.005)
    assert contrast_error(points, fine, bright)[0] > 4 * error
    assert float(coarse.sum() / fine.sum()) == pytest.approx(1, abs=3e-4)


@pytest.mark.parametrize(
    ("energy", "semiangle", "step", "pixel"), [(60e3, 30.0, 3.0, 0.25), (80e3, 20.0, 2.0, 0.3), (300e3, 4.0, 0.5, 0.5)]
)
def test_vacuum_is_the_ideal_disk(energy, semiangle, step, pixel):
    cube = simulate_bright_field(
        np.full((3, 128, 96), 0.2), pixel_A=pixel, energy_eV=energy, semiangle_mrad=semiangle, scan_shape=(6, 8),
        det_step_mrad=step, aberrations={"C10": -300.0, "C30": 1e5},
    )  # fmt: skip
    validate_cube(cube)
    step_y, step_x = scan_step(cube)
    pattern = cube.values.mean(axis=(0, 1))
    np.testing.assert_allclose(cube.values - pattern, 0, atol=1e-5 * pattern.max())
    far = np.hypot(*np.meshgrid(np.abs(cube.det_y) + step / 2, np.abs(cube.det_x) + step / 2, indexing="ij"))
    np.testing.assert_allclose(pattern[far < semiangle], step_y * step_x * step**2 / (np.pi * semiangle**2), rtol=1e-5)
    assert pattern.sum() == pytest.approx(step_y * step_x, rel=2e-3)


def test_no_electron_is_lost_on_a_wide_detector():
    slices, thickness = phase_slices(random_atoms(300, ["C", "Si"], 20.0), 2, (180, 170))
    options = {
        "slice_thickness_A": thickness, "pixel_A": (24 / 180, 22 / 170), "scan_shape": (8, 8), "det_step_mrad": 1.5,
        "aberrations": LENS, **OPTICS,
    }  # fmt: skip
    narrow = simulate_bright_field(slices, **options)
    wide = simulate_bright_field(slices, det_pixels=32, dark_field=True, **options)
    middle = wide.isel(det_y=slice(8, 24), det_x=slice(8, 24))
    assert narrow.shape == middle.shape
    bright = narrow.values[0, 0] > 0
    np.testing.assert_allclose(narrow.values[..., bright], middle.values[..., bright], rtol=1e-4)
    empty = simulate_bright_field(np.zeros_like(slices), **options)
    full, all_of_it, part = (float(cube.sum()) for cube in (empty, wide, narrow))
    assert 1 - part / full > 1e-4
    assert 1 - all_of_it / full < 0.2 * (1 - part / full)


def test_window_of_the_scan_is_a_part_of_the_whole():
    slices, thickness = phase_slices(random_atoms(30, ["C"], 20.0), 2, (90, 80))
    options = {
        "slice_thickness_A": thickness, "pixel_A": (24 / 90, 22 / 80), "det_step_mrad": 2.0, "aberrations": LENS,
        **OPTICS,
    }  # fmt: skip
    whole = simulate_bright_field(slices, scan_shape=(16, 60), **options)  # coarser and finer than the aperture needs
    assert is_periodic(whole)
    assert whole.attrs["period_A"] == pytest.approx([24, 22])
    window = simulate_bright_field(slices, scan_shape=(16, 60), positions=(3, 50, 8, 20), **options)
    assert not is_periodic(window)
    assert float(window.scan_y[0]) == pytest.approx(4.5)
    expected = np.roll(whole.values, -50, axis=1)[3:11, :20]
    np.testing.assert_allclose(window.values, expected, rtol=1e-5)
    every_other = simulate_bright_field(slices, scan_shape=(8, 12), **options)
    np.testing.assert_allclose(every_other.values / 10, whole.values[::2, ::5], rtol=1e-4)  # of the electrons


def test_fused_image_shows_the_atom_where_it_is():
    atom = Atoms("Si", [[14.0, 9.0, 0.0]], cell=[30, 32, 2], pbc=True)
    phase = projected_phase(atom, energy_eV=ENERGY, pixel_A=0.3)
    cube = simulate_bright_field(
        torch.as_tensor(phase.values), pixel_A=(32 / phase.shape[0], 30 / phase.shape[1]), scan_shape=(32, 30),
        det_step_mrad=1.5, rotation_deg=-37.0, aberrations={"C10": -400.0, "C12": 40.0}, **OPTICS,
    )  # fmt: skip
    assert cube.attrs["dose_e_per_A2"] == 1.0
    assert cube_history(cube)[-1]["operation"] == "simulate_bright_field"
    image = fuse_linear(synthesize_views(apply_dose(cube, 1e5, rng=0))).phase
    peak = image.argmax(...)
    assert float(image.y[peak["y"]]) == pytest.approx(9.0, abs=0.3)
    assert float(image.x[peak["x"]]) == pytest.approx(14.0, abs=0.3)
    assert float(image.max()) > 5 * abs(float(image.min()))


def test_result_is_deterministic_and_independent_of_batches(monkeypatch):
    slices = np.random.default_rng(0).normal(0, 0.05, (3, 64, 64))
    options = {"pixel_A": 0.3, "scan_shape": (16, 16), "det_step_mrad": 2.0, "aberrations": LENS, **OPTICS}
    first = simulate_bright_field(slices, **options)
    np.testing.assert_array_equal(first, simulate_bright_field(slices, **options))
    monkeypatch.setattr("misr.fusion.tilted_waves._BATCH_BYTES", {"cpu": 1, "cuda": 1})
    np.testing.assert_allclose(first, simulate_bright_field(slices, **options), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_A": 0.5}, r"pixel_A=0\.5 is too coarse.*at most 0\.3281"),
        ({"dark_field": True, "det_pixels": 40}, "too coarse"),
        ({"pixel_A": -1.0}, "positive"),
        ({"phase_slices": np.zeros((2, 2, 64, 64))}, "shape"),
        ({"phase_slices": np.full((64, 64), np.nan)}, "NaN"),
        ({"scan_shape": (2, 16)}, "scan_shape"),
        ({"positions": (0, 0, 2, 8)}, "window"),
        ({"det_pixels": 6}, "semiangle_mrad=10"),
        ({"nodes": 0}, "nodes=0"),
        ({"aberrations": {"C10": 1e6}}, "finer detector pixels"),
        ({"device": "warp"}, "device"),
    ],
)
def test_wrong_use_is_answered(change, message):
    options = {"phase_slices": np.zeros((64, 64)), "pixel_A": 0.3, "scan_shape": (8, 8), "det_step_mrad": 2.0, **OPTICS}
    options.update(change)
    with pytest.raises(ValueError, match=message):
        simulate_bright_field(options.pop("phase_slices"), **options)
