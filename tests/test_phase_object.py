"""Cubes of phase objects, against analytic optics, an independent simulator, abTEM and the fusion."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from phase_object import atoms_phase, phase_object_cube, quarter_turned

import misr
from misr.cube import image_from_array
from misr.optics import electron_wavelength, overlap_function, rotate
from misr.phase_object import cube_from_phase

CENTER = {"center_mrad": (0.0, 0.0)}


def contrast(cube, *, within=8.5):
    """Variation over the scan in the inner part of the disk."""
    values = cube.values[..., np.hypot(cube.det_y.values[:, None], cube.det_x.values[None]) < within].astype(float)
    return values - values.mean(axis=(0, 1))


def disagreement(a, b, **options):
    a, b = contrast(a, **options), contrast(b, **options)
    return np.std(a - b) / np.std(b)


def optics_of(cube, *, rotation_deg=0.0, size=20, step=1.1, **aberrations):
    """Another detector and other optics over the same scan, hardly any electrons."""
    like = misr.cube_from_array(
        np.zeros((*cube.shape[:2], size, size)),
        scan_step_A=2.0,
        det_step_mrad=step,
        energy_eV=300e3,
        semiangle_mrad=10.0,
        dose_e_per_A2=1.0,
        rotation_deg=rotation_deg,
        aberrations=aberrations or None,
    )
    return like.assign_attrs(period_A=cube.attrs["period_A"])


@pytest.fixture(scope="module")
def scan():
    """Twice the field that is compared, so that the simulator's diffraction grid is fine enough."""
    phase = atoms_phase((64, 64), 0.5, rng=1, strength=0.1)
    cube, _ = phase_object_cube(np.tile(phase, (2, 2)), 0.5, aberrations={"C10": -200.0, "C12": 60.0, "phi12": 0.4})
    part = cube.isel(scan_y=slice(0, 16), scan_x=slice(0, 16))
    part.attrs["period_A"] = [32.0, 32.0]
    truth = image_from_array(phase, pixel_A=(0.5, 0.5), attrs={"period_A": [32.0, 32.0]})
    return part, truth


def test_an_independent_simulator_agrees(scan):
    cube, truth = scan
    made = cube_from_phase(truth, like=cube, **CENTER)
    assert disagreement(made, cube) < 0.07  # the simulator samples a pixel 2 × 2 times, and its aperture too
    assert disagreement(-made, cube) > 1.9
    assert made.dims == cube.dims
    assert made.attrs["dose_e_per_A2"] == cube.attrs["dose_e_per_A2"]
    assert misr.cube_history(made)[-1]["operation"] == "cube_from_phase"
    total = made.sum(("det_y", "det_x"))
    np.testing.assert_allclose(total, 4.0, rtol=0.01)  # dose times step², all electrons on the detector


@pytest.mark.parametrize("rotation_deg", [0.0, 90.0, 180.0, -90.0, 25.0])
def test_a_weak_wave_is_transferred_by_the_overlap_function(scan, rotation_deg):
    """Γ(k, q) φ(q) in every detector pixel, in detectors turned against the scan, with and without astigmatism."""
    aberrations = {"C10": -300.0, "C12": 80.0, "phi12": 0.7}
    like = optics_of(scan[0], rotation_deg=rotation_deg, **aberrations)
    orders, field = (3, -5), 32.0
    q_y, q_x = (order / field for order in orders)
    y, x = np.meshgrid(np.arange(64) * 0.5, np.arange(64) * 0.5, indexing="ij")
    wave = image_from_array(
        1e-3 * np.cos(2 * np.pi * (q_y * y + q_x * x)), pixel_A=(0.5, 0.5), attrs={"period_A": [32.0, 32.0]}
    )
    made = cube_from_phase(wave, like=like, **CENTER)
    found = np.fft.fft2(made.values, axes=(0, 1))[orders[0], orders[1]] / (16 * 16)
    wavelength = electron_wavelength(300e3)
    per_mrad = 1e-3 / wavelength
    k_y, k_x = rotate(like.det_y.values[:, None] * per_mrad, like.det_x.values[None] * per_mrad, rotation_deg)
    step = 1.1 * per_mrad
    edges = rotate(step, 0.0, rotation_deg), rotate(0.0, step, rotation_deg)
    re, im = overlap_function(
        k_y, k_x, np.float64(q_y), np.float64(q_x), aberrations=aberrations, wavelength=wavelength,
        cutoff=10 * per_mrad, pixel_edges=edges,
    )  # fmt: skip
    expected = (re + 1j * im) * 0.5e-3 * 4 * step**2 / (np.pi * (10 * per_mrad) ** 2)
    # away from the edges of the apertures, where the overlap function is of first order in the pixel
    radii = [np.hypot(k_y + s * q_y, k_x + s * q_x) for s in (-1, 0, 1)]
    clear = np.all([np.abs(r - 10 * per_mrad) > step for r in radii], axis=0) & (radii[1] < 10 * per_mrad)
    assert clear.sum() > 60
    assert np.abs(found - expected)[clear].max() < 0.05 * np.abs(expected[clear]).max()


def test_a_quarter_turned_detector(scan):
    cube, truth = scan
    turned = quarter_turned(cube).assign_attrs(rotation_deg=90.0)
    assert disagreement(cube_from_phase(truth, like=turned, **CENTER), turned) < 0.07


def test_a_transposed_detector_is_taken_as_labelled(scan):
    cube, truth = scan
    back = misr.transpose_detector(misr.transpose_detector(cube))
    straight = cube_from_phase(truth, like=cube, **CENTER)
    np.testing.assert_array_equal(cube_from_phase(truth, like=back, **CENTER), straight)
    assert misr.cube_history(straight)[-1]["operation"] == "cube_from_phase"


@pytest.mark.filterwarnings("ignore:the weak-phase model leaves:UserWarning")
def test_fusing_it_returns_the_phase(scan):
    cube, truth = scan
    like = optics_of(cube, size=28, step=0.82, C10=-700.0)
    made = cube_from_phase(0.1 * truth, like=like, **CENTER)
    counted = misr.apply_dose(made, 1e8, rng=0)
    image = misr.fuse_linear(misr.synthesize_views(counted), upsample=4).phase
    agreement = misr.fourier_ring_correlation(image, 0.1 * truth, window=None, ring_width=0.1)
    assert np.all(agreement.sel(frequency=slice(0.1, 0.8)) > 0.97)
    assert float((image * truth).sum() / (0.1 * truth**2).sum()) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("rotation_deg", [0.0, 30.0])
def test_abtem_agrees_for_a_thin_specimen(rotation_deg):
    from ase import Atoms

    at = np.random.default_rng(0).uniform(0, 32, (60, 2))
    atoms = Atoms("C60", positions=np.column_stack((at, np.zeros(60))), cell=[32, 32, 1], pbc=True)
    made = misr.simulate_cube(
        atoms, scan_step_A=2, det_pixels=32, rotation_deg=rotation_deg, aberrations={"C10": -150}, progress=False
    )
    phase = made.phase.assign_attrs(period_A=[32.0, 32.0])
    predicted = cube_from_phase(phase, like=made.counts, **CENTER)
    assert disagreement(predicted, made.counts, within=8) < 0.12  # simulate_cube smears by a native pixel
    dark = {"det_y": slice(-18, -12), "det_x": slice(-8, 8)}  # clear of the corners, which simulate_cube leaves dark
    assert float(predicted.sel(dark).sum() / made.counts.sel(dark).sum()) == pytest.approx(1, abs=0.05)


def test_a_constant_is_invisible_and_vacuum_is_the_disk(scan):
    cube, truth = scan
    made = cube_from_phase(truth, like=cube, **CENTER)
    np.testing.assert_allclose(cube_from_phase(truth + 2.0, like=cube, **CENTER), made, atol=1e-7)
    vacuum = cube_from_phase(0 * truth, like=cube, **CENTER)
    assert float(np.ptp(vacuum.values, axis=(0, 1)).max()) == 0
    assert float(vacuum[0, 0].sum()) == pytest.approx(4.0, rel=1e-3)


def test_outside_an_image_that_does_not_wrap_is_vacuum(scan):
    cube, truth = scan
    bare = {name: value for name, value in cube.attrs.items() if name != "period_A"}
    like = cube.copy(deep=False)
    like.attrs = bare
    atom = np.exp(-((truth.y - 16) ** 2 + (truth.x - 16) ** 2) / 2).rename("phase")
    alone = cube_from_phase(atom, like=like, **CENTER)
    wrapped = cube_from_phase(atom, like=cube, **CENTER)  # the scan covers its period, and so does the image
    near = {"scan_y": slice(7, 10), "scan_x": slice(7, 10)}
    np.testing.assert_allclose(alone.isel(near), wrapped.isel(near), atol=2e-3 * float(wrapped.max()))
    small = atom.isel(y=slice(16, 48), x=slice(16, 48))  # smaller than the scan
    np.testing.assert_allclose(cube_from_phase(small, like=like, **CENTER), alone, atol=2e-3 * float(alone.max()))
    corner = cube_from_phase(atom.isel(y=slice(0, 4)), like=like, **CENTER)
    assert float(np.ptp(corner.values[-3:], axis=(0, 1)).max()) < 1e-3 * float(corner.max())


def test_pixels_of_the_image_do_not_matter(scan):
    cube, truth = scan
    grid = image_from_array(np.zeros((80, 96)), pixel_A=(0.4, 32 / 96), origin_A=(0.1, -0.05))
    fine = misr.phase_on_grid(truth, like=grid)
    a, b = (cube_from_phase(image, like=cube, **CENTER) for image in (truth, fine))
    assert disagreement(a, b) < 0.02


def test_what_is_finer_than_the_detector_can_tell_does_not_come_back_folded(scan):
    cube, _ = scan
    noise = 0.05 * np.random.default_rng(2).normal(size=(256, 256))
    fine = image_from_array(noise, pixel_A=(0.125, 0.125), attrs={"period_A": [32.0, 32.0]})
    smooth = misr.phase_on_grid(fine, like=image_from_array(np.zeros((80, 80)), pixel_A=(0.4, 0.4)))
    a, b = (cube_from_phase(image, like=cube, **CENTER) for image in (fine, smooth))
    assert disagreement(a, b) < 0.05


def test_chunks_do_not_matter(scan):
    cube, truth = scan
    lazy = cube.chunk(scan_y=5, scan_x=7)
    made = cube_from_phase(truth, like=lazy, **CENTER)
    assert made.chunks is not None
    np.testing.assert_allclose(made.compute(), cube_from_phase(truth, like=cube, **CENTER), atol=1e-7)
    counted = cube_from_phase(truth, like=lazy, dose_e_per_A2=50, rng=3, **CENTER)
    assert counted.chunks is not None
    np.testing.assert_array_equal(counted, cube_from_phase(truth, like=cube, dose_e_per_A2=50, rng=3, **CENTER))


def test_doses(scan):
    cube, truth = scan
    like = cube.assign_attrs(dose_e_per_A2=30.0)
    expected = cube_from_phase(truth, like=like, **CENTER)
    assert expected.attrs["dose_e_per_A2"] == 30.0
    assert float(expected.sum() / expected[..., 0, 0].size) == pytest.approx(30 * 4, rel=0.01)
    for counted, dose in (
        (cube_from_phase(truth, like=like, dose_e_per_A2=7, rng=0, **CENTER), 7),
        (cube_from_phase(truth, like=like, rng=0, **CENTER), 30),
    ):
        assert counted.dtype.kind == "u"
        assert counted.attrs["dose_e_per_A2"] == dose
        assert abs(float(counted.sum()) - dose * 32**2) < 5 * np.sqrt(dose * 32**2) + 0.01 * dose * 32**2
    assert cube_from_phase(truth, like=like, rng=0, **CENTER).equals(cube_from_phase(truth, like=like, rng=0, **CENTER))


def test_the_axis_is_found_in_the_data(scan):
    cube, truth = scan
    off = cube.assign_coords(det_y=("det_y", cube.det_y.values + 1.7, {"units": "mrad"}))
    made, straight = cube_from_phase(truth, like=off), cube_from_phase(truth, like=cube, **CENTER)
    assert disagreement(made.assign_coords(cube.coords), straight) < 0.05


def test_what_cannot_be_done_is_told(scan):
    cube, truth = scan
    bare = cube.copy(deep=False)
    bare.attrs = {name: value for name, value in cube.attrs.items() if name[0] != "C" and name[:3] != "phi"}
    with pytest.raises(ValueError, match="aberrations of like are not known"):
        cube_from_phase(truth, like=bare)
    with pytest.raises(ValueError, match="expected a DataArray with dims"):
        cube_from_phase(truth.rename(y="z"), like=cube)
    with pytest.raises(ValueError, match="no coordinate 'y'"):
        cube_from_phase(truth.drop_vars("y"), like=cube)
    with pytest.raises(ValueError, match="uniform steps"):
        cube_from_phase(truth.assign_coords(y=truth.y**2), like=cube)
    with pytest.raises(ValueError, match="NaN"):
        cube_from_phase(truth.where(truth < truth.max()), like=cube)
    with pytest.raises(ValueError, match="not a valid 4D-STEM cube"):
        cube_from_phase(truth, like=xr.zeros_like(truth))
