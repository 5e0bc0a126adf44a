"""py4DSTEM's parallax and ptychography on misr's coordinates, against single atoms at known places."""

import functools
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xarray as xr

import misr
from misr._py4dstem import setup_of
from misr.cube import cube_from_array, image_from_array
from misr.optics import aberration_phase, aperture_fraction, electron_wavelength, rotate
from misr.reference import reconstruct_parallax, reconstruct_ptychography
from misr.resample import resample_like

ENERGY, SEMIANGLE, STEP, N_SCAN = 300e3, 10.0, 2.0, 20
# no mirror, transposition or rotation by 90° maps these onto themselves; none sits on a scan position or pixel
ATOMS = ((9.3, 10.7), (9.9, 24.1), (30.3, 15.2))
ptychography = functools.partial(reconstruct_ptychography, rng=0)
METHODS = pytest.mark.parametrize("reconstruct", [reconstruct_parallax, ptychography], ids=["parallax", "ptychography"])


def simulate(
    *,
    aberrations,
    rotation_deg=0.0,
    n_det=32,
    det_step=1.25,
    height=0.2,
    width=0.5,
    off_axis=(0.0, 0.0),
    n_scan=N_SCAN,
):
    """Phase object of Gaussian atoms, evaluated on the rotated detector's own real-space grid: no interpolation."""
    wavelength = electron_wavelength(ENERGY)
    dk = det_step * 1e-3 / wavelength
    index = np.arange(n_det)
    u = (index - n_det // 2) / (n_det * dk)
    k = [(index - (n_det - 1) / 2) * dk - off * 1e-3 / wavelength for off in off_axis]
    k_y, k_x = rotate(*np.meshgrid(*k, indexing="ij"), rotation_deg)
    u_y, u_x = rotate(*np.meshgrid(u, u, indexing="ij"), rotation_deg)
    aperture = np.sqrt(aperture_fraction(k_y, k_x, cutoff=SEMIANGLE * 1e-3 / wavelength, width=dk))
    wave = aperture * np.exp(-1j * aberration_phase(k_y, k_x, aberrations=aberrations, wavelength=wavelength))
    wave /= np.linalg.norm(wave)
    fourier = [np.exp(-2j * np.pi * np.outer(along, u)) / np.sqrt(n_det) for along in k]
    probe = fourier[0].conj().T @ wave @ fourier[1].conj()
    scan = np.arange(n_scan) * STEP
    phase = np.zeros((n_scan, n_scan, n_det, n_det))
    for y, x in ATOMS:
        away_y, away_x = scan[:, None, None] + u_y - y, scan[:, None, None] + u_x - x
        # away_y differs by scan row only, away_x by column only
        phase += height * np.exp(-(away_y[:, None] ** 2 + away_x[None] ** 2) / (2 * width**2))
    counts = np.abs(fourier[0] @ (probe * np.exp(1j * phase)) @ fourier[1].T) ** 2
    return cube_from_array(
        counts * 1e4 * STEP**2,
        scan_step_A=STEP,
        det_step_mrad=det_step,
        energy_eV=ENERGY,
        semiangle_mrad=SEMIANGLE,
        rotation_deg=rotation_deg,
        aberrations=aberrations,
    )


def found_atoms(image):
    """Centroid of each atom's upper half, Å: relative to its true place."""
    errors = []
    for y, x in ATOMS:
        fine = image_from_array(np.zeros((31, 31)), pixel_A=(0.1, 0.1), origin_A=(y - 1.5, x - 1.5))
        patch = resample_like(image, fine)
        weight = (patch - 0.5 * (patch.max() + patch.min())).clip(min=0)
        errors.append([float((weight * patch[dim]).sum() / weight.sum()) for dim in ("y", "x")])
    return np.array(errors) - ATOMS


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def converged(reconstruct):
    """Registration is exact in the limit only: after the default 8 iterations single atoms were up to 0.22 Å off."""
    return {"iterations": 25, "step_size": 0.2} if reconstruct is ptychography else {}


@pytest.fixture(scope="module")
def cube():
    return simulate(aberrations={"C10": -250.0})


@pytest.fixture(scope="module")
def astigmatic():
    return {"C10": -250.0, "C12": 80.0, "phi12": 0.5}


@METHODS
def test_atoms_are_where_they_are(cube, reconstruct):
    image = reconstruct(cube, progress=False, **converged(reconstruct))
    assert np.abs(found_atoms(image)).max() < 0.06
    assert image.dims == ("y", "x")
    assert float(image.x[0]) == float(image.y[0]) == 0.0
    for dim in ("y", "x"):  # the scanned field and no more
        pixel = float(image[dim][1])
        assert STEP * (N_SCAN - 1) <= float(image[dim][-1]) < STEP * N_SCAN
        assert float(image[dim][-1]) + pixel == pytest.approx(STEP * N_SCAN, abs=pixel)


@METHODS
@pytest.mark.parametrize("sign", [-1, 1])
def test_positive_potential_gives_positive_phase(reconstruct, sign):
    image = reconstruct(simulate(aberrations={"C10": sign * 250.0}), progress=False)
    away = float(image.max()) - float(image.median())
    assert away > 3 * (float(image.median()) - float(image.min()))
    row, column = np.unravel_index(np.argmax(image.values), image.shape)
    y, x = float(image.y[row]), float(image.x[column])
    assert min(np.hypot(y - ay, x - ax) for ay, ax in ATOMS) < 0.6


@pytest.mark.slow
@METHODS
@pytest.mark.parametrize("rotation_deg", [20.0, 90.0, -130.0])
def test_rotation_gives_the_same_picture(reconstruct, rotation_deg, astigmatic):
    settings = {"progress": False} | converged(reconstruct)
    straight = reconstruct(simulate(aberrations=astigmatic), **settings)
    turned = reconstruct(simulate(aberrations=astigmatic, rotation_deg=rotation_deg), **settings)
    assert turned.attrs["rotation_deg"] == rotation_deg
    assert np.abs(found_atoms(turned)).max() < 0.1
    assert correlation(resample_like(turned, straight), straight) > 0.97


@METHODS
def test_wrong_rotation_and_transposed_astigmatism_are_worse(reconstruct, astigmatic):
    cube = simulate(aberrations=astigmatic, rotation_deg=20.0)
    right = reconstruct(cube, progress=False)
    for wrong in ({"rotation_deg": -20.0}, {"aberrations": astigmatic | {"phi12": np.pi / 2 - 0.5}}):
        assert float(reconstruct(cube, progress=False, **wrong).max()) < 0.97 * float(right.max())


@METHODS
def test_axis_off_the_middle_and_cropped_scan_keep_the_coordinates(reconstruct, astigmatic):
    cube = simulate(aberrations=astigmatic, off_axis=(1.9, -2.9), rotation_deg=20.0)
    image = reconstruct(cube.isel(scan_y=slice(1, None), scan_x=slice(2, None)), progress=False)
    assert (float(image.y[0]), float(image.x[0])) == (2.0, 4.0)
    assert np.abs(found_atoms(image)).max() < 0.2


@METHODS
def test_dask_cube_gives_the_same(cube, reconstruct):
    lazy = reconstruct(cube.chunk({"scan_y": 5, "det_x": 16}), progress=False)
    xr.testing.assert_identical(lazy, reconstruct(cube, progress=False))


@METHODS
def test_quiet_and_without_traces(cube, reconstruct, capfd, recwarn):
    import matplotlib.pyplot as plt

    before, show = np.random.get_state()[1].copy(), warnings.showwarning  # noqa: NPY002
    reconstruct(cube, progress=False)
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if "py4DSTEM" in str(w.filename)]
    assert plt.get_fignums() == []
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert warnings.showwarning is show


def test_progress_goes_to_stderr_only(cube, capfd):
    reconstruct_ptychography(cube, iterations=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "ptychography" in err


def test_attrs_say_what_was_done(cube):
    image = reconstruct_ptychography(cube, iterations=2, rng=5, progress=False)
    assert image.attrs["units"] == "rad"
    assert (image.attrs["energy_eV"], image.attrs["C10_A"]) == (ENERGY, -250.0)
    assert image.attrs["dose_e_per_A2"] == pytest.approx(1e4)
    assert image.attrs["py4DSTEM_version"].startswith("0.14")
    last = json.loads(image.attrs["history"].splitlines()[-1])
    assert last["operation"] == "reconstruct_ptychography"
    assert (last["iterations"], last["rng"], last["aberrations"]) == (2, 5, {"C10": -250.0})


def test_in_focus_is_said_by_an_empty_mapping(cube):
    image = reconstruct_ptychography(cube, aberrations={}, iterations=1, progress=False)
    assert misr.aberrations_of(image) == {"C10": 0.0}
    assert misr.cube_history(image)[-1]["aberrations"] == {"C10": 0.0}


def test_rng_decides_the_batches(cube):
    first, again, other = (
        reconstruct_ptychography(cube, iterations=1, batch_size=50, rng=seed, progress=False) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_parallax_is_that_of_py4dstem(cube):
    ours = reconstruct_parallax(simulate(aberrations={"C10": -250.0}, n_det=33), upsample=5, progress=False)
    import py4DSTEM
    from py4DSTEM.process.phase import Parallax

    odd = simulate(aberrations={"C10": -250.0}, n_det=33)  # its optic axis is a pixel, as py4DSTEM takes it
    datacube = misr.cube_to_py4dstem(odd)
    assert isinstance(datacube, py4DSTEM.DataCube)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice on the upsampling
        by_hand = Parallax(ENERGY, datacube, verbose=False, object_padding_px=(16, 16), defocus=250)
        by_hand.preprocess(dp_mask=misr.bright_field_disk(odd)["mask"].values, edge_blend=0.5, plot_average_bf=False)
        by_hand.aberration_fit(force_rotation_angle_deg=0)
        by_hand.subpixel_alignment(kde_upsample_factor=5, plot_upsampled_BF_comparison=False)
        by_hand.aberration_correct(use_CTF_fit=True, plot_corrected_phase=False)
    cropped = by_hand.recon_phase_corrected[40:-40, 40:-40]
    assert correlation(cropped, ours) > 0.999
    assert float(ours.std()) == pytest.approx(cropped.std() / 2, rel=0.01)


def test_ptychography_is_that_of_py4dstem():
    odd = simulate(aberrations={"C10": -250.0}, n_det=33)
    ours = reconstruct_ptychography(odd, iterations=3, batch_size=None, progress=False)
    from py4DSTEM.process.phase import SingleslicePtychography

    axis = (np.full(odd.shape[:2], 16.0),) * 2
    # the same probe to the last digit: beyond the aperture an empty object leaves only rounding, whose phase goes into
    # the first update, so that probes alike to 4e-5 end 2 % apart, and further with other threads
    probe = setup_of(odd, None, None, required=True).probe()
    with warnings.catch_warnings():
        by_hand = SingleslicePtychography(
            ENERGY, misr.cube_to_py4dstem(odd), initial_probe_guess=probe,
            object_padding_px=(17, 17), object_type="potential", verbose=False,
        ).preprocess(
            force_com_rotation=0, force_com_transpose=False, force_com_shifts=axis, plot_center_of_mass=None,
            plot_rotation=False, plot_probe_overlaps=False, center_positions_in_fov=False,
        )  # fmt: skip
        by_hand.reconstruct(num_iter=3, step_size=0.1, fix_probe=True, reset=True, progress_bar=False)
    theirs = by_hand.object[17 : 17 + ours.shape[0], 17 : 17 + ours.shape[1]]
    assert float(ours.x[1]) == pytest.approx(by_hand.sampling[0], rel=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(theirs.max()))


def test_options_reach_py4dstem(cube):
    plain = reconstruct_ptychography(cube, iterations=1, rng=0, progress=False)
    smooth = reconstruct_ptychography(cube, iterations=1, rng=0, progress=False, smoothing_A=1.0)
    assert float(smooth.std()) < 0.8 * float(plain.std())
    blurred = reconstruct_parallax(cube, progress=False, alignment_options={"kde_sigma_px": 0.5})
    assert float(blurred.std()) < float(reconstruct_parallax(cube, progress=False).std())


def test_complex_object_and_probe(cube):
    result = reconstruct_ptychography(
        cube, iterations=3, object_type="complex", fix_probe=False, return_probe=True, progress=False
    )
    assert np.abs(found_atoms(result.phase)).max() < 0.2
    probe = result.probe
    assert (probe.attrs["units"], result.phase.attrs["units"]) == ("1", "rad")
    assert "units" not in result.attrs
    for array in (probe, result.phase, result):
        assert (array.attrs["energy_eV"], array.attrs["C10_A"]) == (ENERGY, -250.0)
        assert misr.cube_history(array)[-1]["operation"] == "reconstruct_ptychography"
    assert float((np.abs(probe) ** 2).sum()) == pytest.approx(1)
    intensity = np.abs(probe) ** 2
    for dim in probe.dims:  # centred on its own origin
        assert abs(float((intensity * probe[dim]).sum())) < 0.3
    # the phase of the starting probe's transform is -χ: no ramp is left of the axis between pixels
    wave = np.fft.fft2(np.fft.ifftshift(probe.values))
    centre = np.abs(np.angle(wave[:2, :2] / wave[0, 0]))
    assert centre.max() < 0.1


def test_ptychography_of_few_electrons_stays_finite(cube):
    counted = misr.apply_dose(cube, 20, rng=0)
    image = reconstruct_ptychography(counted, iterations=2, progress=False)
    assert np.isfinite(image).all()
    assert np.isfinite(reconstruct_parallax(counted, progress=False)).all()


def test_parallax_fit_finds_the_defocus(cube):
    cube = simulate(aberrations={"C10": -400.0}, n_det=40, det_step=1.0)
    image = reconstruct_parallax(cube, aberrations={"C10": -300.0}, fit=True, progress=False)
    assert image.attrs["C10_A"] == pytest.approx(-400, rel=0.15)
    assert np.abs(found_atoms(image)).max() < 0.3


def test_aberrations_of_a_fit_are_taken_whole(cube, astigmatic):
    turned = simulate(aberrations=astigmatic, rotation_deg=20.0)
    bare = turned.copy()
    bare.attrs = {name: value for name, value in turned.attrs.items() if name[:3] not in ("C10", "C12", "phi", "rot")}
    fitted = xr.Dataset({**astigmatic, "rotation_deg": 20.0, "C10_stderr": 1.0})
    expected = reconstruct_parallax(turned, progress=False)
    np.testing.assert_array_equal(reconstruct_parallax(bare, aberrations=fitted, progress=False), expected)


def test_like_puts_it_on_another_grid(cube):
    like = image_from_array(np.zeros((50, 40)), pixel_A=(0.8, 1.0))
    image = reconstruct_parallax(cube, like=like, progress=False)
    assert image.shape == (50, 40)
    np.testing.assert_array_equal(image.x, like.x)
    assert image.attrs["method"] == "py4DSTEM parallax"
    done = [line["operation"] for line in misr.cube_history(image)]
    assert done == ["cube_from_array", "reconstruct_parallax", "resample_like"]


def test_errors_say_what_to_do(cube):
    bare = cube.copy()
    bare.attrs = {name: value for name, value in cube.attrs.items() if name != "C10_A"}
    for reconstruct in (reconstruct_parallax, reconstruct_ptychography):
        with pytest.raises(ValueError, match=r"no aberrations.*with_aberrations"):
            reconstruct(bare)
        with pytest.raises(ValueError, match="at least 4"):
            reconstruct(cube.isel(scan_y=slice(0, 3)))
        with pytest.raises(ValueError, match="no electrons"):
            reconstruct(cube.copy(data=np.zeros(cube.shape)))
    with pytest.raises(ValueError, match="defocus"):
        reconstruct_parallax(cube, aberrations={"C10": 0.0})
    with pytest.raises(ValueError, match=r"upsample=1\.5"):
        reconstruct_parallax(cube, upsample=1.5)
    with pytest.raises(ValueError, match=r"num_iter \(iterations\)"):
        reconstruct_ptychography(cube, reconstruct_options={"num_iter": 3})


@METHODS
@pytest.mark.parametrize("dim", ["scan_x", "det_x"])
def test_unequal_steps_are_named(cube, reconstruct, dim):
    stretched = cube.assign_coords({dim: (dim, cube[dim].values * 1.05, cube[dim].attrs)})
    with pytest.raises(ValueError, match="square") as raised:
        reconstruct(stretched, progress=False)
    steps = (2.0, 2.1) if dim == "scan_x" else (1.25, 1.3125)
    assert all(f"{step:g}" in str(raised.value) for step in steps)


def test_import_is_light():
    code = "import sys, misr.reference; sys.exit(any(m in sys.modules for m in ('py4DSTEM', 'torch', 'abtem')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
