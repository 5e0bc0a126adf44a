"""Training data and the training loop: reproducible, whole or not at all, resumable, and lowering the loss."""

import itertools
import json
import logging
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from misr import cli
from misr.fusion import training, training_data, training_files
from misr.fusion.judging import evaluate
from misr.fusion.losses import image_loss
from misr.fusion.natural import atom_amplitude
from misr.fusion.network import FusionNetwork, NetworkInput, NetworkSettings
from misr.fusion.presets import run_preset
from misr.fusion.random_scans import DOSES, SIDE, draw_conditions
from misr.fusion.random_specimens import SPECIMEN_KINDS
from misr.fusion.training import TrainingSettings, augmented, train_network
from misr.fusion.training_data import make_examples, phase_slices
from misr.fusion.training_files import Batch, as_batch, load_shard, shard_path, write_shard
from misr.fusion.weights import load_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def examples():
    """Four doses of one small specimen."""
    return list(make_examples(11, kind="isolated", split="train"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A train and a validation shard of one specimen each."""
    folder = tmp_path_factory.mktemp("examples")
    for split, number in (("train", 3), ("validation", 0)):
        write_shard(folder, number, split=split, specimens=1)
    return folder


def stand_in(shape=(SIDE, SIDE), number=8, seed=0):
    """A batch of smooth truths in white noise, without a simulation."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])
    radius = torch.hypot(y, x) * 2.17
    truth = torch.randn(number, *shape, generator=draw)
    truth = torch.fft.irfft2(torch.fft.rfft2(truth) * (radius < 1), s=shape)
    noise = (0.2 * torch.exp(3 * radius)).where(radius < 1, torch.tensor(1e3)).expand(number, -1, -1)
    noisy = torch.fft.rfft2(truth) / noise + torch.fft.rfft2(torch.randn(number, *shape, generator=draw))
    whitened = torch.fft.irfft2(noisy * (radius < 1), s=shape)
    ring = torch.fft.irfft2(torch.fft.rfft2(whitened) * noise / (1 + noise**2), s=shape)
    given = NetworkInput(
        whitened, ring, ring.clone(), noise=noise, radius=radius.expand(number, -1, -1),
        atom=atom_amplitude(radius).expand(number, -1, -1), scale=torch.full((number,), 0.1),
        pixel=torch.full((number,), 0.45), groups=torch.randn(number, 5, *shape, generator=draw),
        tilts=torch.rand(number, 5, 2, generator=draw) - 0.5,
    )  # fmt: skip
    inside = torch.ones(number, *shape, dtype=torch.bool)
    inside[:, :, 100:] = False
    defects = torch.where(truth > 2.5, truth, 0.0)
    return Batch(given, truth, defects, inside, torch.full((number,), 30.0), torch.arange(number) % 4)


def test_optics_span_the_ranges_and_can_unfold_the_scan():
    rng = np.random.default_rng(0)
    drawn = [draw_conditions(rng) for _ in range(400)]
    steps = np.array([one.step_A * 2 * one.cutoff for one in drawn])
    bands = np.array([2 * one.cutoff for one in drawn])
    assert steps.min() < 1
    assert steps.max() > 4
    assert steps.min() > 0.75
    assert steps.max() < 4.6
    assert bands.min() > 0.35
    assert bands.max() < 1.7
    for name, low, high in (("energy_eV", 60e3, 300e3), ("semiangle_mrad", 4, 30)):
        values = np.array([getattr(one, name) for one in drawn])
        assert values.min() < 1.2 * low
        assert values.max() > high / 1.2
    signs = {np.sign(one.aberrations["C10"]) for one in drawn}
    assert signs == {-1, 1}
    assert 0.3 < np.mean([one.believed != one.aberrations for one in drawn]) < 1
    windows = np.array([one.window / one.positions for one in drawn])
    assert 0.4 < np.mean(windows == 1) < 0.95
    assert windows.min() >= 0.5
    for one in drawn:
        span = 2 * abs(one.aberrations["C10"]) * one.semiangle_mrad * 1e-3
        assert span > one.step_A


def test_examples_are_the_same_for_a_seed_and_other_in_another_split(examples):
    again = next(iter(make_examples(11, kind="isolated", split="train")))
    close = {"rtol": 1e-4, "atol": 1e-4}  # threads may add up in another order
    for name in ("whitened", "ring", "local", "noise"):
        torch.testing.assert_close(getattr(again.field, name), getattr(examples[0].field, name), **close)
    torch.testing.assert_close(again.truth, examples[0].truth, **close)
    torch.testing.assert_close(again.groups, examples[0].groups, **close)
    drawn = {split: draw_conditions_of(split) for split in ("train", "validation", "test")}
    assert len(set(map(str, drawn.values()))) == 3


def draw_conditions_of(split):
    index = ("train", "validation", "test").index(split)
    return draw_conditions(np.random.default_rng(np.random.SeedSequence([11, index, 7])))


def test_doses_are_spread_over_the_range(examples):
    doses = [one.dose_e_per_A2 for one in examples]
    edges = np.geomspace(*DOSES, 5)
    assert len(doses) >= 3
    assert all(any(low <= dose <= high for dose in doses) for low, high in itertools.pairwise(edges))
    assert min(doses) < edges[2]


def test_an_example_is_in_natural_units(examples):
    for one in examples:
        shape = one.field.ring.shape
        assert max(shape) <= SIDE
        assert one.truth.shape == one.groups.shape[1:] == shape
        assert len(one.groups) == len(one.tilts) == 8
        assert bool(torch.isfinite(one.groups).all() and torch.isfinite(one.field.whitened).all())
        assert not one.truth[~one.field.inside].any()
        assert abs(float(one.truth[one.field.inside].mean())) < 1e-3 * float(one.truth.abs().max())
        assert float(one.groups[:, one.field.inside].std()) < 1.5
    # the same specimen at all doses
    scales = [one.truth * one.field.scale for one in examples]
    torch.testing.assert_close(scales[0], scales[-1], atol=1e-5, rtol=1e-3)
    assert not any(one.defects.any() for one in examples)  # isolated atoms have no undamaged twin
    # and better seen at the highest
    losses = [
        float(image_loss(one.field.ring[None], one.truth[None], radius=one.field.radius[None],
                         inside=one.field.inside[None]))
        for one in (examples[0], examples[-1])
    ]  # fmt: skip
    assert losses[1] < losses[0]


def test_a_crystals_defects_are_what_sets_it_apart_from_its_twin():
    seed = next(seed for seed in range(20) if len(crystal(seed).info["vacancies"]) > 2)
    one = list(make_examples(seed, kind="crystalline", split="train"))[-1]
    conditions = one.conditions
    phase = {
        whole: phase_slices(crystal(seed, defects=not whole), conditions)[0].sum(0) for whole in (False, True)
    }  # fmt: skip
    assert float(one.defects.abs().max()) > 0.1 * float(one.truth.abs().max())
    # as loud as the difference of the two, atoms being made as sharp as all others
    rms = float(one.truth[one.field.inside].std()), float(one.defects[one.field.inside].std())
    expected = (phase[False] - phase[True]).std() / phase[False].std()
    assert rms[1] / rms[0] == pytest.approx(expected, rel=0.5)


def crystal(seed, *, defects=True):
    conditions = draw_conditions(np.random.default_rng(np.random.SeedSequence([seed, 0, 7])))
    return training_data.specimen_of("crystalline", conditions, seed=seed, split="train", defects=defects)


def test_a_window_one_position_short_is_scanned_as_a_window(monkeypatch):
    asked = {}

    def simulated(slices, **options):
        asked.update(options)

    monkeypatch.setattr("misr.fusion.tilted_waves.simulate_bright_field", simulated)
    rng = np.random.default_rng(0)
    one = replace(draw_conditions(rng), positions=20, window=19)
    training_data.simulate("empty", one, seed=0, split="train")
    assert asked["positions"] == (0, 0, 19, 19)
    training_data.simulate("empty", replace(one, window=20), seed=0, split="train")
    assert asked["positions"] is None


def test_a_shard_holds_its_examples_and_is_not_made_twice(folder):
    path = shard_path(folder, "train", 3)
    arrays = load_shard(path)
    number = len(arrays["truth"])
    assert number in (3, 4)
    assert {len(values) for values in arrays.values()} == {number}
    batch = as_batch(arrays, slice(None))
    assert batch.truth.shape == (number, SIDE, SIDE)
    assert batch.given.groups.shape == (number, 8, SIDE, SIDE)
    assert batch.given.radius.shape == (number, SIDE, SIDE // 2 + 1)
    direct = list(make_examples(3, split="train"))
    shape = direct[0].truth.shape
    torch.testing.assert_close(batch.truth[0, : shape[0], : shape[1]], direct[0].truth, atol=1e-2, rtol=1e-2)
    assert SPECIMEN_KINDS[int(batch.kind[0])] == direct[0].kind
    torch.testing.assert_close(batch.given.radius[0, 0, 1], direct[0].field.radius[0, 1] * shape[1] / SIDE)
    told = json.loads(safe_metadata(path)["examples"])
    assert [one["dose_e_per_A2"] for one in told] == pytest.approx(batch.dose.tolist(), rel=1e-5)

    before = path.stat().st_mtime_ns
    assert write_shard(folder, 3, split="train", specimens=1) == path
    assert path.stat().st_mtime_ns == before


def safe_metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_shard_is_written_whole_or_not_at_all(tmp_path, monkeypatch, caplog):
    def broken(arrays, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(training_files, "make_examples", lambda seed, **options: iter(()))
    with pytest.raises(ValueError, match="no specimen gave an example"):
        write_shard(tmp_path, 0, split="train", specimens=2)
    monkeypatch.setattr(training_files, "_stacked", lambda examples: {})
    monkeypatch.setattr(training_files, "_told", lambda example: {})
    monkeypatch.setattr(training_files, "make_examples", lambda seed, **options: iter([None]))
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", broken)
        with pytest.raises(OSError, match="no space"):
            write_shard(tmp_path, 0, split="train", specimens=2)
    assert not list(tmp_path.glob("*.safetensors"))
    assert write_shard(tmp_path, 0, split="train", specimens=2).exists()

    def refused(seed, **options):
        if seed % 2:
            raise ValueError("too coarse")
        return iter([None])

    monkeypatch.setattr(training_files, "make_examples", refused)
    with caplog.at_level(logging.WARNING):
        assert write_shard(tmp_path, 1, split="train", specimens=2).exists()
    assert "specimen 3 of train was left out: too coarse" in caplog.text


@pytest.mark.parametrize("seed", range(8))
def test_a_turned_batch_is_the_same_physics(seed):
    batch = stand_in(number=2)
    given = batch.given
    # a noise that is not round, but even
    y, x = torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)
    given.noise = given.noise * torch.exp(3 * y * x + 2 * y**2)
    # a group's image is the specimen shifted along its tilt
    shifts = torch.tensor([[3, 0], [0, 5], [-4, 2], [1, -6], [-2, -2]])
    given.groups = torch.stack([batch.truth.roll(tuple(s.tolist()), (1, 2)) for s in shifts], 1)
    given.tilts = shifts.float().expand(2, -1, -1) / 10
    turned = augmented(batch, np.random.default_rng(seed))
    assert torch.equal(turned.defects, torch.where(turned.truth > 2.5, turned.truth, 0.0))
    for name in ("ring", "whitened"):
        before, after = (
            image_loss(getattr(one.given, name), one.truth, radius=one.given.radius, inside=one.inside)
            for one in (batch, turned)
        )
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-3)

    # the plain filter of the turned data is the turned image
    def filtered(one):
        noise = one.given.noise
        return torch.fft.irfft2(torch.fft.rfft2(one.given.whitened) * noise / (1 + noise**2), s=(SIDE, SIDE))

    before, after = (
        image_loss(filtered(one), one.truth, radius=one.given.radius, inside=one.inside) for one in (batch, turned)
    )
    torch.testing.assert_close(after, before, atol=1e-5, rtol=2e-3)
    assert 3 <= turned.given.groups.shape[1] <= 5
    for index, tilt in enumerate(turned.given.tilts[0]):
        shift = tuple(round(float(value) * 10) for value in tilt)
        back = turned.given.groups[0, index].roll((-shift[0], -shift[1]), (0, 1))
        torch.testing.assert_close(back, turned.truth[0])


def test_all_eight_symmetries_are_drawn():
    batch = stand_in(number=1)
    seen = {float(augmented(batch, np.random.default_rng(seed)).truth[0, 3, 7]) for seed in range(60)}
    assert len(seen) == 8


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    settings = TrainingSettings(hours=0.003, precision="float32", average=0.5)
    state = training._State(FusionNetwork(NetworkSettings(width=16)), settings)
    batch = stand_in((64, 64), number=4)
    losses = []
    for step in range(25):
        state.seconds = 3600 * settings.hours * 0.1  # at the highest rate
        state.update(batch, torch.device("cpu"))
        output = state.model(batch.given) if step in (0, 24) else None
        if output is not None:
            common = {"radius": batch.given.radius, "inside": batch.inside}
            losses.append(float(image_loss(output.image, batch.truth, **common).mean().detach()))
    assert state.step == 25
    assert losses[1] < 0.97 * losses[0]


def test_the_standard_deviation_can_be_trained_alone():
    torch.manual_seed(0)
    settings = TrainingSettings(steps=10, precision="float32", average=0.5, only_std=True)
    network = FusionNetwork(NetworkSettings(width=16))
    before = {name: values.clone() for name, values in network.state_dict().items()}
    state = training._State(network, settings)
    for _ in range(3):
        state.update(stand_in((64, 64), number=2), torch.device("cpu"))
    for values in (network.state_dict(), state.averaged.state_dict()):
        changed = {name.partition(".")[0] for name in values if not torch.equal(values[name], before[name])}
        assert changed == {"doubt"}


def test_training_ends_after_so_many_steps(folder, tmp_path):
    settings = TrainingSettings(steps=3, batch=2, precision="float32")
    train_network(folder, out=tmp_path, network=NetworkSettings(width=16), settings=settings, device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3]


def test_judging_tells_network_and_linear_images_apart(folder):
    arrays = load_shard(shard_path(folder, "validation", 0))
    torch.manual_seed(0)
    found = evaluate(FusionNetwork(NetworkSettings(width=16)), arrays, batch=2)
    number = len(arrays["truth"])
    assert found["frc"].shape == found["loss"].shape == (number, 3)
    assert found["covered"].shape == (number, 2)
    assert found["defects"].shape == (number, 3)
    assert bool((found["frc"] <= 1.001).all())
    assert bool((found["covered"][:, 0] <= found["covered"][:, 1] + 1e-6).all())
    assert {"frc", "frc_ring", "frc_local", "loss", "loss_local", "covered_68", "covered_95"} <= set(found["summary"])


def test_training_stops_saves_and_goes_on_from_where_it_was(folder, tmp_path):
    network = NetworkSettings(width=16)
    settings = TrainingSettings(hours=1e-6, batch=2, precision="float32")
    train_network(folder, out=tmp_path, network=network, settings=settings, device="cpu")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["step"] == 1
    assert content["seconds"] > 0

    state = training._State(FusionNetwork(network), settings)
    state.resume(tmp_path / "checkpoint.pt")
    assert (state.step, state.seconds) == (content["step"], content["seconds"])
    for name, values in state.model.state_dict().items():
        assert torch.equal(values, content["model"][name])
    assert len(state.optimiser.state_dict()["state"]) == len(content["optimiser"]["state"]) > 0

    averaged = train_network(folder, out=tmp_path, network=network, settings=settings, device="cpu")
    again = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert again["step"] == 2
    assert again["seconds"] > content["seconds"]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["examples"] == len(load_shard(shard_path(folder, "train", 3))["truth"])
    assert "frc" in rows[-1]
    stored = load_network(tmp_path / "weights.safetensors")
    for name, values in averaged.state_dict().items():
        assert torch.equal(values, stored.state_dict()[name])
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_without_examples_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds 0 training examples"):
        train_network(tmp_path, out=tmp_path / "out", device="cpu")


def test_unknown_presets_and_no_time(tmp_path):
    with pytest.raises(ValueError, match="must be one of 'tiny', 'cpu', 'gpu'"):
        run_preset("huge", folder=tmp_path)
    with pytest.raises(ValueError, match="hours=0 of training"):
        run_preset("tiny", folder=tmp_path, hours=0)


@pytest.mark.slow
def test_the_command_trains_from_nothing_to_weights(tmp_path, capsys):
    arguments = ["train", "--preset", "tiny", "--hours", "0.0005", "-o", str(tmp_path), "--device", "cpu"]
    assert cli.main(arguments) == 0
    path = tmp_path / "weights.safetensors"
    assert str(path) in capsys.readouterr().out
    assert load_network(path).settings.width == 16
    assert len(list((tmp_path / "examples").glob("*.safetensors"))) == 4
    # again: the examples are there, and training is over after a step
    begun = time.monotonic()
    assert cli.main(arguments) == 0
    assert time.monotonic() - begun < 60
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= 2
