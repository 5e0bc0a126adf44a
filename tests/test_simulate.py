"""Simulated cubes against the theory of the weak phase object."""

import re
import subprocess
import sys

import abtem
import numpy as np
import pytest
import xarray as xr
from ase import Atoms

from misr.aberrations import aberrations_of
from misr.cube import cube_history, detector_step, is_periodic, scan_step, validate_cube
from misr.dose import apply_dose
from misr.fusion import fuse_linear, shift_and_add
from misr.optics import electron_wavelength, overlap_function, rotate
from misr.phase import projected_phase
from misr.resample import phase_on_grid
from misr.resolution import fourier_ring_correlation, frc_resolution
from misr.simulate import simulate_cube
from misr.specimens import amorphous_atoms, crystalline_atoms
from misr.views import synthesize_views

ENERGY = 300e3
SEMIANGLE = 10.0
LENS = {"C10": -150.0, "C12": 60.0, "phi12": 0.5, "C21": 2000.0, "phi21": -0.4}


def weak_atoms(z=(0.0, 0.0, 0.0, 0.0)):
    """A few light atoms without any symmetry in a cell that is not square (x 17 Å, y 22 Å)."""
    plane = [[3.1, 4.2], [5.0, 4.9], [11.3, 15.8], [6.2, 9.7]]
    positions = [[*xy, height] for xy, height in zip(plane, z, strict=True)]
    return Atoms("HCHH", positions=positions, cell=[17, 22, 60], pbc=True)


def transform(cube, atoms, rotation_deg=0.0, edges=1e-9, at=None):
    """Measured and predicted G(k, q) in the bright field, per electron in a vacuum bright-field pixel."""
    wavelength = electron_wavelength(ENERGY)
    cutoff = SEMIANGLE * 1e-3 / wavelength
    det_y, det_x = (cube[name].values * 1e-3 / wavelength for name in ("det_y", "det_x"))
    k_y, k_x = (k.ravel() for k in rotate(*np.meshgrid(det_y, det_x, indexing="ij"), rotation_deg))
    bright = np.hypot(k_y, k_x) < cutoff - 0.08
    shape = (cube.sizes["scan_y"], cube.sizes["scan_x"])
    counts = cube.values.reshape(*shape, -1)[..., bright]
    measured = np.moveaxis(np.fft.fft2(counts / counts.mean(axis=(0, 1)), axes=(0, 1)), -1, 0) / np.prod(shape)
    steps = scan_step(cube)
    q_y, q_x = np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(shape, steps, strict=True)), indexing="ij")
    groups = [(0.0, atoms)] if at is None else at
    predicted = np.zeros_like(measured)
    widths = (det_y[1] - det_y[0], det_x[1] - det_x[0]) if edges is None else (edges, edges)
    for extra, group in groups:
        phase = projected_phase(group, shape=shape)
        re, im = overlap_function(
            k_y[bright, None, None], k_x[bright, None, None], q_y, q_x,
            aberrations={**LENS, "C10": LENS["C10"] + extra}, wavelength=wavelength, cutoff=cutoff,
            pixel_edges=(rotate(widths[0], 0.0, rotation_deg), rotate(0.0, widths[1], rotation_deg)),
        )  # fmt: skip
        predicted += (re + 1j * im) * np.fft.fft2(phase.values) / np.prod(shape)
    # leave out q = 0 (normalised away) and overlaps whose edge falls on a diffraction pixel
    clear = np.ones(measured.shape, dtype=bool)
    for sign in (-1, 1):
        other = np.hypot(k_y[bright, None, None] + sign * q_y, k_x[bright, None, None] + sign * q_x)
        clear &= np.abs(other - cutoff) > (0.002 if edges is not None else 0.05)
    clear[:, 0, 0] = False
    return measured[clear], predicted[clear]


def simulate(atoms, **options):
    defaults = {"aberrations": LENS, "scan_step_A": 0.47, "det_pixels": 34, "progress": False}
    return simulate_cube(atoms, **{**defaults, **options})


def relative_error(measured, predicted):
    return np.linalg.norm(measured - predicted) / np.linalg.norm(predicted)


@pytest.mark.parametrize("rotation_deg", [0.0, 90.0, -180.0])
def test_weak_phase_object_obeys_the_overlap_function(rotation_deg):
    # axis order, sign of the phase, signs of all aberrations, the scan's origin and the rotation at once
    atoms = weak_atoms()
    scan = simulate(atoms, rotation_deg=rotation_deg)
    measured, predicted = transform(scan.counts, atoms, rotation_deg)
    assert relative_error(measured, predicted) < 0.03
    slope = np.vdot(predicted, measured) / np.vdot(predicted, predicted)
    assert abs(slope - 1) < 0.02


@pytest.mark.parametrize(
    "wrong", [{"C10": 150.0}, {"phi12": -0.5}, {"phi12": 0.5 + np.pi / 2}, {"phi21": 0.4}, {"C21": -2000.0}]
)
def test_the_weak_phase_test_can_fail(wrong):
    atoms = weak_atoms()
    scan = simulate(atoms, aberrations={**LENS, **wrong}, scan_step_A=1.0)
    measured, predicted = transform(scan.counts, atoms)
    assert relative_error(measured, predicted) > 0.2


def test_any_rotation_obeys_the_overlap_function():
    # sharing out native pixels by area smears by one of them, so compare with the mean over a detector pixel
    atoms = weak_atoms()
    scan = simulate(atoms, rotation_deg=25.0)
    measured, predicted = transform(scan.counts, atoms, 25.0, edges=None)
    assert relative_error(measured, predicted) < 0.05


def test_aberrations_hold_at_the_mean_depth():
    # two planes 30 Å apart: each sees the lens defocused by its distance from the potential's mean depth
    # (four slices of 10 Å, each at its entrance face, so the last one is at 30 Å)
    atoms = weak_atoms(z=(0.0, 40.0, 40.0, 0.0))
    near, far = (atoms[atoms.positions[:, 2] == z] for z in (0.0, 40.0))
    weights = [projected_phase(group, shape=(8, 8)).values.mean() for group in (near, far)]
    mean = 30.0 * weights[1] / sum(weights)
    scan = simulate(atoms, slice_thickness_A=10.0)
    measured, predicted = transform(scan.counts, atoms, at=[(-mean, near), (30.0 - mean, far)])
    assert relative_error(measured, predicted) < 0.03
    _measured, swapped = transform(scan.counts, atoms, at=[(mean, near), (mean - 30.0, far)])
    assert relative_error(measured, swapped) > 0.1


@pytest.mark.parametrize("rotation_deg", [0.0, 37.0, 90.0])
def test_the_beam_is_pulled_towards_an_atom(rotation_deg):
    atom = Atoms("C", positions=[[10.0, 8.0, 0.0]], cell=[20, 16, 2], pbc=True)
    counts = simulate_cube(atom, rotation_deg=rotation_deg, scan_step_A=1.0, progress=False).counts
    pattern = counts.sel(scan_x=9.0, scan_y=7.0, method="nearest")
    centre = [float((pattern * pattern[name]).sum() / pattern.sum()) for name in ("det_y", "det_x")]
    empty = counts.sel(scan_x=0.0, scan_y=0.0)
    centre = [
        c - float((empty * empty[name]).sum() / empty.sum()) for c, name in zip(centre, ("det_y", "det_x"), strict=True)
    ]
    y, x = rotate(*centre, rotation_deg)
    assert np.hypot(y, x) > 0.005
    assert np.degrees(np.arctan2(y, x)) == pytest.approx(45, abs=4)


@pytest.fixture(scope="module")
def default_scan():
    atoms = amorphous_atoms(field_A=(24, 32), thickness_A=12, rng=1)
    return atoms, simulate_cube(atoms, aberrations={"defocus": 300, "C12": 20}, progress=False)


def test_the_cube_is_valid_and_says_what_it_is(default_scan):
    _atoms, scan = default_scan
    validate_cube(scan.counts)
    assert scan.counts.dtype == np.float32
    for array in (scan.counts, scan.phase):
        assert aberrations_of(array) == {"C10": -300.0, "C12": 20.0}
        assert array.attrs["energy_eV"] == 300e3
        assert array.attrs["semiangle_mrad"] == 10.0
        assert array.attrs["dose_e_per_A2"] == 1.0
        assert array.attrs["rotation_deg"] == 0.0
        assert is_periodic(array)
        assert cube_history(array)[0]["operation"] == "simulate_cube"
        assert cube_history(array)[0]["semiangle_mrad"] == 10.0
    assert scan.counts.attrs["units"] == "electrons"
    assert scan.phase.attrs["units"] == "rad"
    assert apply_dose(scan.counts, 100, rng=0).attrs["dose_e_per_A2"] == 100


def test_the_scan_covers_the_cell_once(default_scan):
    atoms, scan = default_scan
    for name, side in (("x", 32.0), ("y", 24.0)):
        assert atoms.cell.lengths()["xy".index(name)] == side
        scan_axis, axis = scan[f"scan_{name}"], scan[name]
        assert float(scan_axis[0]) == float(axis[0]) == 0.0
        assert len(scan_axis) * float(scan_axis[1]) == pytest.approx(side)
        assert len(axis) * float(axis[1]) == pytest.approx(side)
    uneven = simulate_cube(atoms, scan_step_A=(3.3, 5.0), det_pixels=16, progress=False)
    assert scan_step(uneven.counts) == pytest.approx((24 / 7, 32 / 6))


@pytest.mark.parametrize("rotation_deg", [0.0, 30.0, 270.0])
def test_patterns_hold_the_dose(rotation_deg):
    atoms = weak_atoms()
    counts = simulate_cube(atoms, scan_step_A=3.0, rotation_deg=rotation_deg, progress=False).counts
    step_y, step_x = scan_step(counts)
    total = counts.sum(("det_y", "det_x")) / (step_y * step_x)
    assert float(total.max()) <= 1 + 1e-5
    assert float(total.min()) > 0.99


def test_detector_angles_are_the_mean_of_the_binned_ones():
    atom = Atoms("H", positions=[[32, 32, 0]], cell=[64, 48, 2], pbc=True)
    counts = simulate_cube(atom, scan_step_A=12.0, progress=False).counts
    mean = counts.mean(("scan_y", "scan_x"))
    for name, side in (("det_x", 64.0), ("det_y", 48.0)):
        native = 1e3 * electron_wavelength(ENERGY) / side
        step = float(counts[name][1] - counts[name][0])
        assert step / native == pytest.approx(round(step / native))
        assert 22 <= 2 * SEMIANGLE / step <= 44  # about 32, in whole native pixels
        # the disk of an (almost) empty cell is centred on the optic axis
        assert float((mean * mean[name]).sum() / mean.sum()) == pytest.approx(0, abs=1e-3)
    assert counts.sizes["det_x"] == 64


def test_simulated_phase_is_the_projected_phase(default_scan):
    atoms, scan = default_scan
    truth = projected_phase(atoms, shape=scan.phase.shape)
    np.testing.assert_allclose(scan.phase, truth, atol=1e-5)
    xr.testing.assert_allclose(scan.phase.y, truth.y)


@pytest.fixture(scope="module")
def carbon():
    return amorphous_atoms(field_A=48, thickness_A=20, composition="carbon", rng=0)


@pytest.mark.parametrize("detector", [{"det_max_mrad": 12.0, "det_pixels": 24}, {}], ids=["bright field", "default"])
def test_enough_electrons_show_more_than_the_scan_and_a_view(carbon, detector):
    # the scan's Nyquist limit is 4 Å, an axial view's α/λ is 1.97 Å, that of all views 2α/λ is 0.98 Å
    scan = simulate_cube(carbon, aberrations={"C10": -1500.0}, scan_step_A=2.0, progress=False, **detector)
    views = apply_dose(synthesize_views(scan.counts), 1e8, rng=0)
    for image in (fuse_linear(views).phase, shift_and_add(views)):
        frc = fourier_ring_correlation(image, phase_on_grid(scan.phase, like=image), window=None)
        resolution = frc_resolution(frc, 0.5)
        assert resolution.attrs["status"] == "crossed"
        assert float(resolution) < 1.3


def test_a_narrow_detector_sees_the_same_bright_field(carbon):
    # what falls beside the detector must not change what falls on it
    wide, narrow = (
        simulate_cube(
            carbon, aberrations={"C10": -1500.0}, scan_step_A=6.0, det_max_mrad=half, det_pixels=pixels, progress=False
        ).counts
        for half, pixels in ((24.0, 48), (12.0, 24))
    )
    wide = wide.sel(det_y=narrow.det_y, det_x=narrow.det_x, method="nearest")
    np.testing.assert_allclose(wide.det_y, narrow.det_y, atol=1e-9)
    contrast = float((narrow - narrow.mean(("scan_y", "scan_x"))).std())
    assert float(np.abs(wide.values - narrow.values).std()) < 0.005 * contrast


def test_a_square_crystal_gives_square_pixels():
    sheet = crystalline_atoms("MoS2", field_A=40, square=True)
    counts = simulate_cube(sheet, det_max_mrad=12.0, det_pixels=40, progress=False).counts
    for step in (scan_step(counts), detector_step(counts)):
        assert step[0] == pytest.approx(step[1], rel=1e-9)


def test_the_coarsest_sampling_it_advises_is_taken():
    atoms = weak_atoms()
    for half_width in (12.0, 20.0):
        options = {"scan_step_A": 4.0, "det_pixels": 16, "det_max_mrad": half_width, "progress": False}
        with pytest.raises(ValueError, match="too coarse") as caught:
            simulate_cube(atoms, potential_sampling_A=0.4, **options)
        advised = float(re.search(r"at most ([\d.]+)", str(caught.value))[1])
        assert 0.3 < advised < 0.32
        simulate_cube(atoms, potential_sampling_A=advised, **options)


def test_bad_input_is_named():
    atoms = weak_atoms()
    skew = atoms.copy()
    skew.cell[0, 1] = 3.0
    cases = [
        (TypeError, "ase.Atoms", "C60", {}),
        (ValueError, "empty", atoms[:0], {}),
        (ValueError, "orthogonal", skew, {}),
        (ValueError, "does not fit", atoms, {"det_max_mrad": 5.0}),
        (ValueError, "too coarse", atoms, {"potential_sampling_A": 0.8}),
        (ValueError, "larger cell", atoms, {"semiangle_mrad": 1.5}),
        (ValueError, "unknown aberration", atoms, {"aberrations": {"Cs": 1e7}}),
        (ValueError, "scan_step_A", atoms, {"scan_step_A": 0.0}),
        (ValueError, "thermal_sigma_A", atoms, {"thermal_sigma_A": -1}),
        (ValueError, "positions", atoms, {"scan_step_A": 8.0}),
    ]
    for error, match, specimen, options in cases:
        with pytest.raises(error, match=match):
            simulate_cube(specimen, progress=False, **options)


def test_abtem_settings_are_left_as_they_were():
    before = {name: abtem.config.get(name) for name in ("fft", "diagnostics.progress_bar", "fftw.threads")}
    simulate_cube(weak_atoms(), scan_step_A=4.0, det_pixels=16, progress=False)
    assert before == {name: abtem.config.get(name) for name in before}


def test_import_stays_light():
    code = "import sys, misr.simulate; print([m for m in ('abtem', 'torch', 'py4DSTEM', 'ase') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
