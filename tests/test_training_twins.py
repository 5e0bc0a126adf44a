"""Damaged specimens and their undamaged twins: the same but for the defects, told apart, and learnt from in pairs."""

import json

import numpy as np
import pytest
import torch

from misr.fusion.judging import evaluate_pairs, pairs_untold
from misr.fusion.losses import defects_untold
from misr.fusion.network import FusionNetwork, NetworkSettings
from misr.fusion.training import Shards, TrainingSettings, train_network
from misr.fusion.training_data import make_twins
from misr.fusion.training_files import Batch, as_batch, load_shard, shard_path, write_shard

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A shard of one specimen with defects and its twin, and ordinary ones."""
    folder = tmp_path_factory.mktemp("twins")
    for split in ("train", "validation"):
        write_shard(folder, SHARD, split=split, specimens=2, twins=True)
    write_shard(folder, 3, split="train", specimens=1)
    return folder


SHARD = 2  # whose specimen has defects in both splits


@pytest.fixture(scope="module")
def pairs(folder):
    return as_batch(load_shard(shard_path(folder, "train", SHARD, twins=True)), slice(None))


def test_twins_differ_by_the_defects_alone(pairs):
    number = len(pairs.truth)
    assert number in (6, 8)
    scale = pairs.given.scale[:, None, None]
    truth, defects = pairs.truth * scale, pairs.defects * scale
    assert float(defects[::2].abs().amax((1, 2)).min()) > 0
    assert not defects[1::2].any()
    close = 0.01 * float(truth.abs().max())  # half precision
    torch.testing.assert_close(truth[::2] - truth[1::2], defects[::2], atol=close, rtol=0)
    assert pairs.dose[::2].tolist() == pairs.dose[1::2].tolist()
    assert torch.equal(pairs.given.radius[::2], pairs.given.radius[1::2])


def test_each_twin_has_electrons_of_its_own(pairs):
    lowest = int(pairs.dose[::2].argmin()) * 2
    first, second = (pairs.given.whitened[lowest + index][pairs.inside[lowest]] for index in (0, 1))
    assert not torch.equal(first, second)
    # at a few electrons per Å² nearly all of it is noise
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.9


def test_specimens_without_defects_have_no_twins(monkeypatch):
    monkeypatch.setattr("misr.fusion.training_data.simulate", lambda *a, **o: (None, PLAIN[None], 0.3))
    monkeypatch.setattr("misr.fusion.training_data.undamaged_phase", lambda *a, **o: PLAIN)
    assert list(make_twins(0)) == []


PLAIN = np.ones((8, 8))


def defects_of(pairs):
    scale = pairs.given.scale[:, None, None]
    options = {"atom": pairs.given.atom[::2], "radius": pairs.given.radius[::2], "inside": pairs.inside[::2]}
    truth = pairs.truth * scale
    return truth[::2], truth[1::2], (pairs.defects * scale)[::2], options


def test_truth_tells_all_and_a_healed_image_nothing(pairs):
    damaged, whole, defects, options = defects_of(pairs)
    assert float(defects_untold(damaged, whole, defects, **options).max()) < 0.01
    healed = defects_untold(whole, whole, defects, **options)
    assert healed.tolist() == pytest.approx([1.0] * len(healed))
    inverted = defects_untold(whole, damaged, defects, **options)
    assert float(inverted.min()) > 1.99


def test_strength_does_not_matter_but_noise_does(pairs):
    damaged, whole, defects, options = defects_of(pairs)
    noise = torch.randn(damaged.shape, generator=torch.Generator().manual_seed(0)) * float(damaged.std())
    faint = defects_untold(whole + 0.1 * defects, whole, defects, **options)
    assert float(faint.max()) < 0.01
    told = [float(defects_untold(damaged + share * noise, whole, defects, **options).mean()) for share in (0, 0.5, 8)]
    assert told[0] < told[1] < told[2]
    nothing = defects_untold(damaged, whole, torch.zeros_like(defects), **options)
    assert not nothing.any()


def test_pairs_are_one_specimen_after_the_other(pairs):
    scale = pairs.given.scale[:, None, None]
    assert float(pairs_untold(pairs.truth, pairs).max()) < 0.01
    swapped = (pairs.truth * scale).roll(1, 0) / scale
    assert float(pairs_untold(swapped, pairs).mean()) > 0.5


def test_batches_keep_twins_together(folder):
    shards = Shards(folder, "train-twins")
    batch = next(shards.batches(4, np.random.default_rng(0), together=2))
    assert len(batch.truth) == 4
    assert batch.dose[::2].tolist() == batch.dose[1::2].tolist()
    assert batch.defects[::2].abs().amax((1, 2)).gt(0).all()
    assert not batch.defects[1::2].any()
    # and turned together
    assert float(pairs_untold(batch.truth, batch).max()) < 0.01


def test_batches_of_other_numbers_of_groups_are_joined(pairs):
    given = pairs.given
    less = Batch(
        type(given)(**{**given.__dict__, "groups": given.groups[:, :3], "tilts": given.tilts[:, :3]}),
        pairs.truth, pairs.defects, pairs.inside, pairs.dose, pairs.kind,
    )  # fmt: skip
    both = pairs.joined(less)
    assert len(both.truth) == len(both.given.scale) == 2 * len(pairs.truth)
    assert both.given.groups.shape[1] == both.given.tilts.shape[1] == 3
    assert torch.equal(both.given.whitened[len(pairs.truth) :], given.whitened)


def test_training_takes_pairs_and_judges_them(folder, tmp_path):
    settings = TrainingSettings(steps=2, batch=2, pairs=1, precision="float32")
    train_network(folder, out=tmp_path, network=NetworkSettings(width=16), settings=settings, device="cpu")
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert row["untold_loss"] > 0
    assert 0 < row["untold"] < 2
    examples = sum(len(load_shard(path)["truth"]) for path in folder.glob("train*.safetensors"))
    assert row["examples"] == examples


def test_an_untrained_network_tells_as_the_ring_prior_does(folder):
    arrays = load_shard(shard_path(folder, "validation", SHARD, twins=True))
    torch.manual_seed(0)
    network = FusionNetwork(NetworkSettings(width=16, blend=False))
    found = evaluate_pairs(network, arrays, pairs=2)
    assert found["untold"] == pytest.approx(found["untold_ring"], abs=0.1)
    assert 0 <= found["untold_obf"] < 1.5
