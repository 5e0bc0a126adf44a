"""Ptychography as it is used: settings found by trial, cancelled runs, other devices, awkward geometries."""

import dataclasses
import json
import sys
import types
import warnings

import numpy as np
import pytest
import xarray as xr
from test_reference import ATOMS, METHODS, STEP, converged, correlation, found_atoms, simulate

import misr
from misr._py4dstem import engine_device, setup_of, silent_py4dstem
from misr._reference_ptychography import Ptychography, Run, Settings
from misr._reference_search import GRID, held_out, make_grid, passes, run_search
from misr.cube import image_from_array
from misr.reference import reconstruct_ptychography

ASTIGMATIC = {"C10": -250.0, "C12": 80.0, "phi12": 0.5}
SMALL = {"step_size": (0.05, 0.3), "batch_size": (64,), "smoothing_A": (0.0,), "iterations": (1, 3)}


@pytest.fixture(scope="module")
def expected():
    return simulate(aberrations={"C10": -250.0}, n_scan=16)


@pytest.fixture(scope="module")
def counted(expected):
    return misr.apply_dose(expected, 2000, rng=1)


@pytest.fixture(scope="module")
def truth():
    """The atoms on a fine grid that reaches past the scanned field."""
    fine = image_from_array(np.zeros((140, 140)), pixel_A=(0.25, 0.25), origin_A=(-1.0, -1.0))
    values = sum(0.2 * np.exp(-((fine.y - y) ** 2 + (fine.x - x) ** 2) / (2 * 0.5**2)) for y, x in ATOMS)
    return fine.copy(data=values.transpose("y", "x").values)


def quiet(cube, **settings):
    return reconstruct_ptychography(cube, **({"rng": 0, "progress": False} | settings))


def transposed(cube):
    """As a camera writes it that swaps the detector's axes."""
    axes = {"det_y": "det_x", "det_x": "det_y"}
    return cube.rename(axes).transpose("scan_y", "scan_x", "det_y", "det_x")


@pytest.mark.slow
@METHODS
@pytest.mark.parametrize("rotation_deg", [0.0, -70.0])
def test_atoms_of_an_oblong_rotated_transposed_scan(reconstruct, rotation_deg):
    cube = simulate(aberrations=ASTIGMATIC, rotation_deg=rotation_deg, off_axis=(1.3, -0.4))
    cube = cube.isel(scan_y=slice(0, 18), scan_x=slice(2, 16))  # neither square nor a period, and off the origin
    fitted = xr.Dataset({**ASTIGMATIC, "rotation_deg": rotation_deg, "transposed": True})
    bare = transposed(cube)
    bare.attrs = {name: value for name, value in cube.attrs.items() if name[:3] not in ("C10", "C12", "phi", "rot")}
    image = reconstruct(bare, aberrations=fitted, progress=False, **converged(reconstruct))
    assert float(image.x[0]) == 2 * STEP
    assert np.abs(found_atoms(image)).max() < 0.2
    ignored = reconstruct(bare, aberrations=fitted.drop_vars("transposed"), progress=False, **converged(reconstruct))
    assert float(ignored.max()) < 0.9 * float(image.max())


def test_minibatches_and_smoothing_are_those_of_py4dstem(expected):
    from py4DSTEM.process.phase import SingleslicePtychography

    odd = simulate(aberrations={"C10": -250.0}, n_det=33, n_scan=12)
    ours = quiet(odd, iterations=2, step_size=0.2, batch_size=50, smoothing_A=0.4, rng=5)
    seeds = np.random.default_rng(5).integers(2**32, size=2)
    probe = setup_of(odd, None, None, required=True).probe()
    axis = (np.full(odd.shape[:2], 16.0),) * 2
    with silent_py4dstem():
        by_hand = SingleslicePtychography(
            300e3, misr.cube_to_py4dstem(odd), initial_probe_guess=probe, object_padding_px=(17, 17),
            object_type="potential", verbose=False,
        ).preprocess(
            force_com_rotation=0, force_com_transpose=False, force_com_shifts=axis, plot_center_of_mass=None,
            plot_rotation=False, plot_probe_overlaps=False, center_positions_in_fov=False,
        )  # fmt: skip
        for number, seed in enumerate(seeds):
            by_hand.reconstruct(
                num_iter=1, step_size=0.2, max_batch_size=50, gaussian_filter_sigma=0.4, seed_random=int(seed),
                fix_probe=True, reset=number == 0, progress_bar=False,
            )  # fmt: skip
    theirs = by_hand.object[17 : 17 + ours.shape[0], 17 : 17 + ours.shape[1]]
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(theirs.max()))


def test_a_cancelled_run_returns_the_image_so_far(counted):
    seen = []
    image = quiet(counted, iterations=5, callback=seen.append, cancel=lambda: len(seen) == 2)
    assert [(step.stage, step.done, step.total) for step in seen] == [
        ("reconstruction", 1, 5),
        ("reconstruction", 2, 5),
    ]
    assert (image.attrs["iterations"], image.attrs["cancelled"]) == (2, 1)
    whole = quiet(counted, iterations=2)
    np.testing.assert_array_equal(image, whole)
    assert whole.attrs["cancelled"] == 0


def test_a_callback_sees_the_image_and_its_errors_pass_through(counted):
    images = []
    quiet(counted, iterations=2, callback=lambda step: images.append((step.error, step.phase())))
    assert images[0][1].dims == ("y", "x")
    assert not np.array_equal(images[0][1], images[1][1])
    assert images[1][0] < images[0][0]

    def broken(step):
        raise KeyError("mine")

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(KeyError, match="mine"):
        quiet(counted, iterations=2, callback=broken)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_a_search_cancelled_still_gives_an_image_of_all_electrons(counted):
    asked = []
    image = quiet(counted, preset="tuned", search=SMALL, cancel=lambda: asked.append(0) or len(asked) == 2)
    assert (image.attrs["iterations"], image.attrs["cancelled"]) == (1, 1)
    assert len(json.loads(image.attrs["search"])) == 1
    np.testing.assert_array_equal(image, quiet(counted, iterations=1, step_size=0.05, batch_size=64))


def test_tuned_keeps_the_best_trial_and_records_all(counted):
    seen = []
    result = quiet(counted, preset="tuned", search=SMALL, return_probe=True, callback=seen.append)
    assert result.sizes["trial"] == 4
    best = result.isel(trial=int(result.search_score.argmax("trial")))
    for name in ("step_size", "iterations", "batch_size", "smoothing_A"):
        assert result.attrs[name] == float(best[f"search_{name}"])
    assert [step.stage for step in seen].count("search") == passes(make_grid({}, SMALL)) == 6
    assert seen[-1].done == seen[-1].total
    assert len(json.loads(result.phase.attrs["search"])) == 4
    chosen = {name: result.attrs[name] for name in ("iterations", "step_size", "batch_size", "smoothing_A")}
    np.testing.assert_array_equal(result.phase, quiet(counted, **chosen))


def test_tuned_leaves_a_step_that_diverges(counted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what diverges, overflows
        image = quiet(counted, preset="tuned", search={"step_size": (0.1, 1e4), "iterations": (4,)}, smoothing_A=0)
    assert image.attrs["step_size"] == 0.1


def test_trials_that_all_diverge_are_an_error():
    lost = types.SimpleNamespace(error=np.nan, restart=lambda: None, step=lambda settings, seed: None)
    run = Run(4, bar=types.SimpleNamespace(update=lambda: None), callback=None, cancel=None)
    grid = make_grid({"iterations": 2, "batch_size": 64}, {"step_size": (1.0, 9.0)})
    with pytest.raises(ValueError, match="none of 2 trials"):
        run_search(lost, grid, score=lambda fit: {"score": 1.0}, run=run, seeds=[0, 1])


def test_tuned_tells_a_right_smoothing_from_a_ruinous_one(counted):
    image = quiet(counted, preset="tuned", iterations=3, step_size=0.1, search={"smoothing_A": (0.0, 4.0)})
    assert image.attrs["smoothing_A"] == 0.0


def test_oracle_is_best_against_the_truth(counted, truth):
    best = quiet(counted, preset="oracle", search=SMALL, truth=truth, return_probe=True)
    assert set(best.data_vars) >= {"search_score", "search_resolution"}
    table = best.search_score
    assert float(table.max()) > float(table.min())
    every = {}
    for step, number in ((0.05, 1), (0.05, 3), (0.3, 1), (0.3, 3)):
        image = quiet(counted, step_size=step, iterations=number)
        every[step, number] = float(
            misr.compare_images(image, truth, register=False, sign=1).frc.sel(frequency=slice(None, 1.0157)).mean()
        )
    assert max(every, key=every.get) == (best.attrs["step_size"], best.attrs["iterations"])


def test_held_out_score_sees_the_specimen_and_not_the_fit_to_noise(counted):
    setup = setup_of(counted, None, None, required=True)
    first, second = misr.split_counts(setup.cube, rng=0)
    score = held_out(setup, second, None)
    found = {}
    with silent_py4dstem():
        for name, cube in (("other half", first), ("same electrons", second), ("wrong defocus", first)):
            used = dataclasses.replace(setup, cube=cube, polar={"C10": 250.0 if name == "wrong defocus" else -250.0})
            fit = Ptychography(used, object_type="potential", fix_probe=True, device="cpu")
            for seed in range(4):
                fit.step(Settings(4, 0.1, 64, 0.0), seed)
            found[name] = score(fit)["score"]
    assert found["same electrons"] > found["other half"] + 0.1  # so halves must not share electrons
    assert found["other half"] > 0.05
    assert found["other half"] > found["wrong defocus"] + 0.05


def test_complex_object_comes_with_its_modulus(counted):
    result = quiet(counted, iterations=2, object_type="complex", return_probe=True)
    assert result.amplitude.attrs["units"] == "1"
    assert float(result.amplitude.mean()) == pytest.approx(1, abs=0.05)
    assert result.error.dims == ("iteration",)
    assert result.iteration.values.tolist() == [1, 2]
    assert "amplitude" not in quiet(counted, iterations=1, return_probe=True)
    like = image_from_array(np.zeros((20, 30)), pixel_A=(1.0, 1.0))
    moved = quiet(counted, iterations=1, object_type="complex", return_probe=True, like=like)
    assert moved.phase.shape == moved.amplitude.shape == (20, 30)


def test_results_survive_a_file(counted, tmp_path):
    result = quiet(counted, preset="tuned", search=SMALL, iterations=1, return_probe=True)
    misr.save_result(result, tmp_path / "image.nc")
    back = misr.read_result(tmp_path / "image.nc")
    np.testing.assert_allclose(back.probe, result.probe)
    assert back.attrs["search"] == result.attrs["search"]


def test_settings_that_cannot_be(counted, truth):
    for settings, words in (
        ({"step_size": 0}, "step_size=0 must be a positive number"),
        ({"batch_size": 0}, "None for all patterns"),
        ({"smoothing_A": -1.0}, "0 for none"),
        ({"iterations": 2.5}, "iterations=2.5 must be a whole number"),
        ({"preset": "best"}, "must be one of"),
        ({"preset": "oracle"}, "give it as truth="),
        ({"truth": truth}, "must not see the truth"),
        ({"search": SMALL}, "tries nothing"),
        ({"preset": "tuned", "search": {"step": (1,)}}, "it may hold"),
        ({"preset": "tuned", "search": {"step_size": ()}}, "is empty"),
        ({"reconstruct_options": {"gaussian_filter_sigma": 1}}, r"gaussian_filter_sigma \(smoothing_A\)"),
        ({"device": "tpu"}, "'auto', 'cpu' or 'cuda'"),
    ):
        with pytest.raises(ValueError, match=words):
            quiet(counted, **settings)


def test_a_given_setting_is_not_searched():
    grid = make_grid({"iterations": "auto", "step_size": 0.2, "batch_size": None, "smoothing_A": "auto"}, None)
    assert grid["step_size"] == (0.2,)
    assert grid["batch_size"] == (None,)
    assert passes(grid) == len(GRID["smoothing_A"]) * max(GRID["iterations"])


def fake_cupy(count):
    class CUDARuntimeError(Exception):
        pass

    def devices():
        if count is None:
            raise CUDARuntimeError("no driver")
        return count

    runtime = types.SimpleNamespace(getDeviceCount=devices, CUDARuntimeError=CUDARuntimeError)
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))


@pytest.mark.parametrize(
    ("cupy", "auto"), [(fake_cupy(1), "gpu"), (fake_cupy(0), "cpu"), (fake_cupy(None), "cpu"), (None, "cpu")]
)
def test_device_is_where_cupy_finds_one(monkeypatch, cupy, auto):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert engine_device("auto") == auto
    assert engine_device("cpu") == "cpu"
    if auto == "cpu":
        with pytest.raises(ValueError, match="device='cuda': CuPy"):
            engine_device("cuda")
    else:
        assert engine_device("cuda") == "gpu"


def test_parallax_options_reach_py4dstem(expected):
    plain = misr.reconstruct_parallax(expected, progress=False)
    low = misr.reconstruct_parallax(expected, progress=False, correction_options={"q_lowpass": 0.15})
    assert float(low.std()) < 0.9 * float(plain.std())
    assert correlation(low, plain) > 0.5
    with pytest.raises(ValueError, match=r"kde_upsample_factor \(upsample\)"):
        misr.reconstruct_parallax(expected, alignment_options={"kde_upsample_factor": 2})
