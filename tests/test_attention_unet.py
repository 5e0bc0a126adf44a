"""The published network of the benchmark: what it is, what it is trained on, what it refuses, its line of the table."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from misr.benchmark import BenchmarkSettings, Specimen, run_benchmark, write_report
from misr.benchmark import attention_unet_data as data
from misr.benchmark.attention_unet import (
    AttentionUNet,
    Trained,
    attention_unet_image,
    check_geometry,
    load_trained,
    network_input,
    save_trained,
)
from misr.benchmark.attention_unet_data import FIELD_A, STORED, Examples, Geometry, expected_counts
from misr.benchmark.attention_unet_training import (
    UNetSettings,
    drawn,
    exchanged,
    missed,
    ring_powers,
    train_attention_unet,
    train_unet,
)
from misr.benchmark.scenes import make_scene
from misr.benchmark.settings import Cell, attention_unet_file
from misr.cli import main
from misr.cube import cube_from_array, image_from_array
from misr.optics import electron_wavelength

GEOMETRY = Geometry.of_benchmark()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the network ---------------------------------------------------------------------------------------------------


def test_as_many_parameters_as_published():
    with torch.device("meta"):
        network = AttentionUNet()
    count = sum(values.numel() for values in network.parameters())
    assert count - network.slope.weight.numel() == 35_467_189  # the published figure leaves the PReLU's slope out


def test_three_pixels_per_step():
    network = AttentionUNet(9, width=2).eval()
    assert network(torch.zeros(2, 9, 32, 16)).shape == (2, 96, 48)


@pytest.mark.parametrize("dose", [3.0, 100.0, 1e4])
def test_input_is_moderate_at_any_dose(dose):
    vacuum = torch.as_tensor(GEOMETRY.coverage, dtype=torch.float32).flatten()[:, None, None] * GEOMETRY.electrons
    counts = drawn((vacuum * STORED).expand(1, -1, 16, 16), torch.tensor([dose]))
    given = network_input(counts, GEOMETRY)
    covered = torch.as_tensor(GEOMETRY.coverage.flatten() > 0.99)
    expected = (dose / (dose + 100)) / np.sqrt(GEOMETRY.electrons * dose)  # Poisson noise of the contrast, weighted
    np.testing.assert_allclose(float(given[0, covered].std()), expected, rtol=0.05)
    assert abs(float(given[0, covered].mean())) < 0.02
    assert not given[0, torch.as_tensor(GEOMETRY.coverage.flatten() == 0)].any()


def test_weights_come_back_as_they_were(tmp_path):
    network = AttentionUNet(9, width=2).eval()
    file = save_trained(Trained(network, replace(GEOMETRY, det_pixels=3), {"steps": 7}), tmp_path / "w.safetensors")
    back = load_trained(file)
    assert back.geometry == replace(GEOMETRY, det_pixels=3)
    assert dict(back.training) == {"steps": 7}
    views = torch.randn(1, 9, 16, 16)
    assert torch.equal(back.network(views), network(views))
    assert list(tmp_path.iterdir()) == [file]


def test_wrong_files_are_told_apart(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="--preset attention_unet"):
        load_trained(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="misr train --preset attention_unet"):
        load_trained(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no such thing")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_trained(tmp_path / "text.safetensors")


# ---- what it is trained on -----------------------------------------------------------------------------------------


def random_slices(seed=0, pixels=216, *, band=0.9):
    """Noise up to a frequency, 1/Å."""
    phase = np.random.default_rng(seed).normal(size=(pixels, pixels))
    order = np.fft.fftfreq(pixels) * pixels / FIELD_A
    kept = np.hypot(order[:, None], order) < band
    phase = np.fft.ifft2(np.fft.fft2(phase) * kept).real
    return 0.2 * phase[None] / phase.std()


def test_kinds_are_drawn_as_for_the_own_network(monkeypatch):
    monkeypatch.setattr("misr.fusion.training_data.KIND_SHARES", (0, 0, 0, 0, 1))
    _, truth, kind = data.example(0, split="train", geometry=data.Geometry.of_benchmark())
    assert kind == "empty"
    assert not truth.any()


def test_counts_are_those_of_simulate_cube():
    """Every view of a specimen as the benchmark simulates it: mean, contrast and, by the contrast, its shift."""
    from ase import Atoms

    from misr.benchmark.settings import preset_settings
    from misr.fusion.training_data import phase_slices
    from misr.simulate import simulate_cube

    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 1, size=(300, 3)) * (FIELD_A, FIELD_A, 2.0)
    atoms = Atoms("Si300", positions=positions, cell=(FIELD_A, FIELD_A, 2.0), pbc=True)
    optics = {**preset_settings("small").optics, "scan_step_A": 16.0}  # every eighth position is quickly simulated
    made = simulate_cube(atoms, progress=False, **optics)
    cube = made["counts"] / 64
    slices, layer_A = phase_slices(atoms, GEOMETRY.conditions)
    mine = expected_counts(slices, layer_A, GEOMETRY)[:, ::8, ::8]
    chosen = [int(np.argmin(np.abs(cube.det_y.values - angle))) for angle in GEOMETRY.angles]
    np.testing.assert_allclose(cube.det_y.values[chosen], GEOMETRY.angles, atol=1e-6)
    theirs = cube.values[:, :, chosen][..., chosen].transpose(2, 3, 0, 1).reshape(mine.shape)
    inside = GEOMETRY.coverage.ravel() > 0.99
    assert inside.sum() > 700
    np.testing.assert_allclose(mine[inside].mean((1, 2)), theirs[inside].mean((1, 2)), rtol=0.01)
    first, second = (one[inside] - one[inside].mean((1, 2), keepdims=True) for one in (mine, theirs))
    correlation = (first * second).sum((1, 2)) / np.sqrt((first**2).sum((1, 2)) * (second**2).sum((1, 2)))
    assert correlation.min() > 0.99
    np.testing.assert_allclose(first.std((1, 2)), second.std((1, 2)), rtol=0.08)


def test_truth_is_the_phase_at_the_probe_positions():
    x = np.arange(216) / 216
    wave = np.cos(2 * np.pi * 20 * x)[:, None] * np.ones(216) + 3.0
    truth = data.band_limited(wave, GEOMETRY)
    assert truth.shape == (96, 96)
    np.testing.assert_allclose(truth, np.cos(2 * np.pi * 20 * np.arange(96) / 96)[:, None] * np.ones(96), atol=1e-10)
    fine = np.cos(2 * np.pi * 60 * x)[:, None] * np.ones(216)  # 0.94 1/Å: within the band, past the pixels
    np.testing.assert_allclose(data.band_limited(fine, GEOMETRY), 0, atol=1e-10)


def test_exchanging_y_and_x_is_the_same_physics_and_a_turn_is_not():
    slices = random_slices()
    counts = expected_counts(slices, 5.0, GEOMETRY)
    truth = data.band_limited(slices.sum(0), GEOMETRY)
    swapped = slices.transpose(0, 2, 1)
    mine = exchanged(torch.as_tensor(counts), torch.as_tensor(truth), GEOMETRY)
    theirs = expected_counts(swapped, 5.0, GEOMETRY)
    np.testing.assert_allclose(mine[0], theirs, atol=2e-4 * theirs.max())
    np.testing.assert_allclose(mine[1], data.band_limited(swapped.sum(0), GEOMETRY), atol=1e-10)
    # the detector is not symmetric about the axis, so a mirrored block is another one
    mirrored = GEOMETRY.coverage[::-1]
    assert np.abs(mirrored - GEOMETRY.coverage).max() > 0.2


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two specimens of noise on detector pixels four times as large, quickly made."""
    folder = tmp_path_factory.mktemp("examples")
    geometry = small_geometry()
    from safetensors.torch import save_file

    counts, truth = [], []
    for seed in range(2):
        slices = random_slices(seed, band=0.2)
        whole = expected_counts(slices, 5.0, GEOMETRY).reshape(8, 4, 8, 4, 32, 32).sum((1, 3)).reshape(64, 32, 32)
        counts.append(torch.as_tensor(whole * STORED).half())
        truth.append(torch.as_tensor(data.band_limited(slices.sum(0), GEOMETRY)).half())
    arrays = {"counts": torch.stack(counts), "truth": torch.stack(truth), "kind": torch.zeros(2, dtype=torch.long)}
    for split in ("train", "validation"):
        path = data.shard_path(folder, split, 0)
        save_file(arrays, path, metadata={"geometry": json.dumps(geometry.as_dict())})
    return folder


def small_geometry():
    step = GEOMETRY.det_step_mrad
    first = GEOMETRY.det_first_mrad + 1.5 * step
    return replace(GEOMETRY, det_pixels=8, det_step_mrad=4 * step, det_first_mrad=first)


def test_examples_of_another_geometry_are_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="give another folder"):
        Examples(shards, "train", GEOMETRY)
    with pytest.raises(ValueError, match="holds no train examples"):
        Examples(tmp_path, "train", GEOMETRY)


def test_shards_are_written_whole_and_once(tmp_path, monkeypatch):
    made = []

    def example(seed, *, split, geometry):
        made.append((seed, split))
        return np.full((1024, 32, 32), 0.004, np.float32), np.zeros((96, 96)), "crystalline"

    monkeypatch.setattr(data, "example", example)
    path = data.write_shard(tmp_path, 3, split="validation", specimens=2)
    assert data.write_shard(tmp_path, 3, split="validation", specimens=2) == path
    assert made == [(1_000_006, "validation"), (1_000_007, "validation")]
    assert list(tmp_path.iterdir()) == [path]
    examples = Examples(tmp_path, "validation", GEOMETRY)
    assert len(examples) == 2
    np.testing.assert_allclose(examples.counts[0].float() / STORED, 0.004, rtol=1e-3)


@pytest.mark.slow
def test_one_example_from_beginning_to_end():
    counts, truth, kind = data.example(8, split="train", geometry=GEOMETRY)
    assert counts.shape == (1024, 32, 32)
    assert truth.shape == (96, 96)
    assert kind == "crystalline"
    assert abs(truth.mean()) < 1e-9
    assert 3.5 < counts.sum(0).mean() < 4


# ---- training ------------------------------------------------------------------------------------------------------


def test_missed_share_runs_from_truth_to_nothing():
    truth = torch.as_tensor(0.3 * random_slices(pixels=96)).float()
    for rings in (True, False):
        assert float(missed(truth + 1.0, truth, rings=rings)) < 1e-5  # the mean is not judged
        assert 0.8 < float(missed(0 * truth, truth, rings=rings)) <= 1.0
        assert float(missed(-truth, truth, rings=rings)) > 3.2


def test_rings_hold_all_power_but_the_mean():
    image = torch.as_tensor(random_slices(pixels=96)).float()
    spectrum = np.fft.fft2(image[0].numpy(), norm="ortho")
    order = np.rint(np.fft.fftfreq(96) * 96)
    within = (np.hypot(order[:, None], order) < 48.5) & (np.hypot(order[:, None], order) > 0)
    expected = (np.abs(spectrum) ** 2 * within).sum()
    np.testing.assert_allclose(float(ring_powers(image).sum()), expected, rtol=1e-3)


def test_training_learns_and_goes_on_where_it_was(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("misr.benchmark.attention_unet_training.DOSES", (1e3, 1e4))  # or it takes minutes
    options = {"width": 4, "batch": 2, "learning_rate": 1e-2, "precision": "float32"}
    run = {"out": tmp_path, "geometry": small_geometry()}
    train_unet(shards, settings=UNetSettings(steps=10, **options), **run)
    file = train_unet(shards, settings=UNetSettings(steps=60, **options), **run)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 60]
    assert rows[1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[1]["frc_10000"] > rows[0]["frc_10000"] + 0.05  # of the very specimens that it was shown
    trained = load_trained(file)
    assert trained.training["steps"] == 60
    assert trained.training["specimens"] == 2
    assert trained.network.width == 4
    with pytest.raises(ValueError, match="a step takes 16"):
        train_unet(shards, settings=UNetSettings(steps=1), **run)


def test_no_time_to_train_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="hours=0"):
        train_attention_unet(tmp_path, hours=0)


# ---- its use -------------------------------------------------------------------------------------------------------


def flat_cube(geometry=GEOMETRY, scan=(20, 33), *, electrons=50.0, **changes):
    """Vacuum on a detector four pixels wider on each side."""
    wide = replace(geometry, det_pixels=40, det_first_mrad=geometry.det_first_mrad - 4 * geometry.det_step_mrad)
    given = {
        "scan_step_A": geometry.scan_step_A, "det_step_mrad": geometry.det_step_mrad, "energy_eV": geometry.energy_eV,
        "semiangle_mrad": geometry.semiangle_mrad, "aberrations": {"C10": geometry.C10_A}, **changes,
    }  # fmt: skip
    counts = np.random.default_rng(1).poisson(electrons * wide.coverage, size=(*scan, 40, 40)).astype(np.float32)
    cube = cube_from_array(counts, **given)
    angles = wide.det_first_mrad + given["det_step_mrad"] * np.arange(40)
    return cube.assign_coords({name: (name, angles, {"units": "mrad"}) for name in ("det_y", "det_x")})


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    network = AttentionUNet(1024, width=2).eval()
    return Trained(network, GEOMETRY, {"specimens": 8, "core_hours": 1.25, "steps": 3})


def test_any_scan_gives_the_pixels_asked_for(untrained):
    cube = flat_cube()
    like = image_from_array(np.zeros((60, 99)), pixel_A=(2 / 3, 2 / 3))
    image = attention_unet_image(cube, weights=untrained, like=like)
    assert image.shape == (60, 99)
    assert image.attrs["units"] == "rad"
    assert image.attrs["semiangle_mrad"] == 10.0
    assert "attention_unet_image" in image.attrs["history"]
    assert float(image.std()) > 0
    fine = attention_unet_image(cube, weights=untrained, like=image_from_array(np.zeros((80, 132)), pixel_A=(0.5, 0.5)))
    assert fine.shape == (80, 132)


def test_what_was_padded_does_not_move_the_image(untrained):
    """A scan of 32 lines and its first 20: the same image away from the cut, in the same place."""
    cube = flat_cube(scan=(32, 16))
    like = image_from_array(np.zeros((24, 48)), pixel_A=(2 / 3, 2 / 3))
    whole, part = (attention_unet_image(one, weights=untrained, like=like) for one in (cube, cube[:20]))
    assert np.corrcoef(whole.values.ravel(), part.values.ravel())[0, 1] > 0.3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"energy_eV": 200e3}, "energy_eV 200000"),
        ({"semiangle_mrad": 12.0}, "semiangle_mrad 12"),
        ({"scan_step_A": 2.2}, "scan step 2.2"),
        ({"aberrations": {"C10": -900.0}}, "C10"),
        ({"aberrations": {"C10": -800.0, "C12": 60.0, "phi12": 0.0}}, "C12"),
        ({"aberrations": None}, "aberrations"),
        ({"det_step_mrad": 0.8}, "pixels of 0.8 mrad"),
        ({"rotation_deg": 30.0}, "rotation 30"),
    ],
)
def test_another_geometry_is_refused(changes, said):
    cube = flat_cube(scan=(4, 4), **changes)
    with pytest.raises(ValueError, match="trained for another one") as error:
        check_geometry(cube, GEOMETRY)
    assert said in str(error.value)


def test_a_detector_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="short of"):
        check_geometry(flat_cube(scan=(4, 4))[..., 8:-8, :], GEOMETRY)


def test_slightly_other_pixels_are_shared_out():
    """Every electron of the disk is kept, and the mean pattern is the one of the pixels trained for."""
    from misr.benchmark.attention_unet import _rebinned

    step = 1.08 * GEOMETRY.det_step_mrad
    other = replace(GEOMETRY, det_step_mrad=step, det_first_mrad=-15.5 * step)
    cube = flat_cube(other, scan=(8, 8), electrons=200.0)
    check_geometry(cube, GEOMETRY)
    pattern = _rebinned(cube, GEOMETRY).mean((1, 2)).reshape(32, 32)
    inside = GEOMETRY.coverage > 0.99
    inner = np.hypot(GEOMETRY.angles[:, None], GEOMETRY.angles) < 8.5
    np.testing.assert_allclose(pattern[inside & inner], 200 / 1.08**2, rtol=0.05)
    same = flat_cube(scan=(4, 4))
    kept = same.values[..., 4:-4, 4:-4].transpose(2, 3, 0, 1).reshape(1024, 4, 4)
    np.testing.assert_array_equal(_rebinned(same, GEOMETRY), kept)


def test_a_lack_of_electrons_is_no_error(untrained):
    cube = flat_cube(scan=(16, 16)) * 0
    cube.attrs = flat_cube(scan=(16, 16)).attrs
    image = attention_unet_image(
        cube, weights=untrained, like=image_from_array(np.zeros((48, 48)), pixel_A=(2 / 3, 2 / 3))
    )
    assert np.isfinite(image).all()


# ---- in the table --------------------------------------------------------------------------------------------------


def settings_of_a_small_field(**changes):
    specimen = Specimen("glass", "amorphous", "glass", {"field_A": 20.0, "thickness_A": 5.0, "composition": "silica"})
    optics = {"energy_eV": 300e3, "semiangle_mrad": 10.0, "aberrations": {"C10": -600.0}, "scan_step_A": 2.0}
    given = {"specimens": (specimen,), "doses": (1e4,), "seeds": (0,), "methods": ("tcbf", "attention_unet")}
    return BenchmarkSettings(**{"preset": "test", "optics": optics | {"det_pixels": 24}, **given, **changes})


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    settings = settings_of_a_small_field()
    return folder, make_scene(folder, settings, settings.specimens[0], 0)


def weights_for(scene, file, *, seed=0):
    step = float(np.diff(scene["counts"].det_y.values[:2])[0])
    native = 1e3 * float(electron_wavelength(300e3)) / 20.0
    geometry = Geometry(300e3, 10.0, -600.0, 2.0, step, -5 * step + native / 2, det_pixels=10)
    np.testing.assert_allclose(np.abs(scene["counts"].det_y.values - geometry.angles[0]).min(), 0, atol=1e-6)
    torch.manual_seed(seed)
    return save_trained(
        Trained(AttentionUNet(100, width=2).eval(), geometry, {"specimens": 8, "core_hours": 1.25}), file
    )


def test_a_line_of_the_table_that_other_weights_compute_anew(scene_folder, tmp_path):
    (tmp_path / "specimens").symlink_to(scene_folder[0] / "specimens")
    file = weights_for(scene_folder[1], tmp_path / "a.safetensors")
    settings = settings_of_a_small_field(methods=("tcbf",))
    table = run_benchmark(tmp_path, settings=settings, attention_unet=file, progress=False)
    rows = dict(zip(table.method.values.tolist(), table.status.values.tolist(), strict=True))
    assert rows == {"limit_linear": "limit", "limit_pixels": "limit", "tcbf": "done", "attention_unet": "done"}
    line = table.isel(row=-1)
    assert np.isfinite(line.correlation)
    assert str(line.half_map_error.values) == ""  # halves are cubes of half the dose
    assert json.loads(str(line.chosen.values)) == {"specimens": 8, "core_hours": 1.25}
    page = write_report(table, tmp_path).read_text(encoding="utf-8")
    assert "published Attention U-Net" in page
    assert "8 specimens, 1.2 core-hours" in page
    weights_for(scene_folder[1], file, seed=1)
    again = run_benchmark(tmp_path, settings=settings, attention_unet=file, progress=False)
    assert float(again.correlation[-1]) != float(line.correlation)
    assert len(list((tmp_path / "cells").glob("*attention_unet*.json"))) == 2


def test_cells_go_by_the_content_of_the_weights(tmp_path):
    names = []
    for text in ("a", "b"):
        (tmp_path / "w").write_text(text)
        settings = settings_of_a_small_field(attention_unet=attention_unet_file(tmp_path / "w"))
        names.append([cell.name for cell in settings.cells()])
        assert BenchmarkSettings.from_dict(settings.as_dict()) == settings
    assert names[0][:3] == names[1][:3]  # the others' do not
    assert names[0][3] != names[1][3]
    assert isinstance(settings.cells()[3], Cell)


def test_without_weights_or_with_those_of_another_geometry_it_is_not_available(scene_folder, tmp_path, untrained):
    (tmp_path / "specimens").symlink_to(scene_folder[0] / "specimens")
    settings = settings_of_a_small_field(methods=("attention_unet",))
    table = run_benchmark(tmp_path, settings=settings, progress=False)
    assert str(table.status.values[-1]) == "not available"
    assert "misr train --preset attention_unet" in str(table.error.values[-1])
    file = save_trained(untrained, tmp_path / "w.safetensors")
    table = run_benchmark(tmp_path, settings=settings, attention_unet=file, progress=False)
    assert str(table.status.values[-1]) == "not available"
    assert "C10" in str(table.error.values[-1])


def test_commands_pass_it_on(tmp_path, monkeypatch, capsys):
    asked = {}

    def train(folder, **options):
        asked.update(options, folder=folder)

    monkeypatch.setattr("misr.benchmark.attention_unet_training.train_attention_unet", train)
    typed = ["train", "--preset", "attention_unet", "-o", str(tmp_path), "--workers", "2", "--hours", "0.5"]
    assert main(typed) == 0
    assert asked == {"folder": tmp_path, "workers": 2, "hours": 0.5}
    assert "--attention-unet" in capsys.readouterr().out
    assert main([*typed, "--device", "cuda"]) == 2
    assert "CPU" in capsys.readouterr().err

    def run(folder, **options):
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("misr.benchmark.run_benchmark", run)
    assert main(["benchmark", "-o", str(tmp_path / "b"), "--attention-unet", "w.safetensors"]) == 130
    assert str(asked["attention_unet"]) == "w.safetensors"
    monkeypatch.undo()
    assert main(["benchmark", "-o", str(tmp_path / "b"), "--attention-unet", str(tmp_path / "none")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
