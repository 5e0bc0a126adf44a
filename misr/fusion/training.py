"""Training of the fusion network: resumable, seeded, from shards on disk."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misr.fusion.judging import evaluate, evaluate_pairs, pairs_untold
from misr.fusion.losses import defects_hidden, missed_share, std_loss
from misr.fusion.network import FusionNetwork, NetworkInput, NetworkSettings, even_plane
from misr.fusion.training_files import Batch, as_batch, load_shard

__all__ = ["TrainingSettings", "augmented", "train_network"]

_LOG = logging.getLogger(__name__)
_STD_SHARE = 0.05  # of the loss that the standard deviation gets
_DEFECTS_SHARE = 0.25  # they are few, and what users look for
_TOLD_SHARE = 0.5  # of telling damaged specimens from their twins
_MOST_MISSED = 5.0  # by one example: it may not spoil a step


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    hours : float
        Wall-clock time, over all sessions.
    steps : int, optional
        Instead of a time: comparable runs on a machine that has other work too.
    batch : int
        Examples per step.
    pairs : int
        Pairs of a damaged specimen and its undamaged twin besides, if there are such shards; they have not paid yet
        (``EXPERIMENTS.md``).
    learning_rate : float
        At its highest; it rises over the first 3 % of the time and falls as a cosine.
    decay : float
        Weight decay.
    average : float
        Of the weights over steps (Polyak).
    seed : int
        Of everything drawn.
    precision : {"float32", "bfloat16"}
        Of the convolutions.
    only_std : bool
        Leave the images as they are, and train the standard deviation alone.
    """

    hours: float = 2.0
    steps: int | None = None
    batch: int = 8
    pairs: int = 0
    learning_rate: float = 2e-3
    decay: float = 1e-3
    average: float = 0.998
    seed: int = 0
    precision: str = "bfloat16"
    only_std: bool = False


class Shards:
    """Examples of a split, as far as they are on disk; more are picked up as they come."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.known: set[Path] = set()
        self.arrays: dict[str, torch.Tensor] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self.arrays["truth"]) if self.arrays else 0

    def refresh(self) -> None:
        """Read the shards that are new."""
        fresh = [path for path in sorted(self.folder.glob(f"{self.split}_*.safetensors")) if path not in self.known]
        if not fresh:
            return
        self.known.update(fresh)
        loaded = [load_shard(path) for path in fresh]
        if self.arrays:
            loaded.insert(0, self.arrays)
        self.arrays = {name: torch.cat([part[name] for part in loaded]) for name in loaded[0]}

    def batches(self, size: int, rng: np.random.Generator, *, together: int = 1) -> Iterator[Batch]:
        """Endless shuffled batches, each turned and mirrored at random; so many neighbours stay together."""
        while True:
            order = rng.permutation(len(self) // together)
            for first in range(0, len(order) - size // together + 1, size // together):
                chosen = np.sort(order[first : first + size // together])[:, None] * together + np.arange(together)
                yield augmented(as_batch(self.arrays, torch.as_tensor(chosen.ravel())), rng)
            self.refresh()


def augmented(batch: Batch, rng: np.random.Generator) -> Batch:
    """The batch turned by quarters and mirrored, and with some groups of views left out.

    Parameters
    ----------
    batch : Batch
        Square fields.
    rng : numpy.random.Generator
        Draws one symmetry for all of the batch.

    Returns
    -------
    Batch
        The same physics seen from elsewhere.
    """
    turn, mirror = int(rng.integers(4)), bool(rng.integers(2))
    given = batch.given
    size = given.whitened.shape[-2:]

    def image(values: torch.Tensor) -> torch.Tensor:
        values = values.flip(-1) if mirror else values
        return torch.rot90(values, turn, (-2, -1))

    def plane(values: torch.Tensor) -> torch.Tensor:
        whole = torch.fft.fftshift(even_plane(values, size), dim=(-2, -1))[..., 1:, 1:]  # symmetric about its middle
        whole = torch.nn.functional.pad(image(whole), (1, 0, 1, 0), mode="replicate")
        return torch.fft.ifftshift(whole, dim=(-2, -1))[..., : size[1] // 2 + 1]

    tilts, groups = given.tilts, given.groups
    if groups is not None and tilts is not None:
        number = int(rng.integers(min(3, groups.shape[1]), groups.shape[1] + 1))
        kept = torch.as_tensor(np.sort(rng.permutation(groups.shape[1])[:number]))
        groups, tilts = image(groups[:, kept]), _turned(tilts[:, kept], turn, mirror)
    seen = NetworkInput(
        whitened=image(given.whitened), ring=image(given.ring), local=image(given.local), noise=plane(given.noise),
        radius=given.radius, atom=given.atom, scale=given.scale, pixel=given.pixel, groups=groups, tilts=tilts,
    )  # fmt: skip
    return Batch(seen, image(batch.truth), image(batch.defects), image(batch.inside), batch.dose, batch.kind)


def _turned(tilts: torch.Tensor, turn: int, mirror: bool) -> torch.Tensor:
    y, x = tilts.unbind(-1)
    x = -x if mirror else x
    for _ in range(turn):  # rot90 takes the image's +x to -y
        y, x = -x, y
    return torch.stack([y, x], -1)


def train_network(
    data: str | Path,
    *,
    out: str | Path,
    network: NetworkSettings | None = None,
    settings: TrainingSettings | None = None,
    start: str | Path | None = None,
    device: str = "auto",
    report_s: float = 120.0,
) -> FusionNetwork:
    """Train on the shards of a folder, resuming from ``out`` if it holds a checkpoint.

    Parameters
    ----------
    data : path
        Folder of shards, see `misr.fusion.training_files.write_shard`.
    out : path
        Folder for ``checkpoint.pt``, ``weights.safetensors`` and ``log.jsonl``.
    network : NetworkSettings, optional
        Its shape.
    settings : TrainingSettings, optional
        How to train.
    start : str or path, optional
        Weights to begin with, as `misr.fuse_cnn` takes them: their network's shape is kept.
    device : str
        "auto", "cpu" or "cuda".
    report_s : float
        Seconds between checkpoints, at which the validation split is judged too.

    Returns
    -------
    FusionNetwork
        With the averaged weights.

    Raises
    ------
    ValueError
        If there are no shards.
    """
    from misr.fusion.kernels import resolve_device
    from misr.fusion.weights import load_network, save_network

    settings, out = settings or TrainingSettings(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    train, twins, validation, judged = (
        Shards(Path(data), split) for split in ("train", "train-twins", "validation", "validation-twins")
    )
    if len(train) < settings.batch:
        raise ValueError(f"{data} holds {len(train)} training examples: make some with misr.fusion.presets.make_shards")
    on = resolve_device(device)
    torch.manual_seed(settings.seed)
    model = (FusionNetwork(network) if start is None else load_network(start).train()).to(on)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = _State(model, settings)
    state.resume(out / "checkpoint.pt")
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, state.step]))
    pairs = None
    if settings.pairs and len(twins) >= 2 * settings.pairs:
        pairs = twins.batches(2 * settings.pairs, rng, together=2)
    last_time = last_report = time.monotonic()
    for batch in train.batches(settings.batch, rng):
        state.update(batch, on, pairs=None if pairs is None else next(pairs))
        now = time.monotonic()
        state.seconds += now - last_time
        last_time = now
        done = state.part >= 1
        if done or now - last_report > report_s:
            last_report = now
            state.save(out / "checkpoint.pt")
            save_network(state.averaged, out / "weights.safetensors")
            _report(state, validation, judged, out / "log.jsonl", on, len(train) + len(twins))
            last_time = time.monotonic()  # judging is not training
        if done:
            break
    return state.averaged


class _State:
    """Model, its running average, optimiser and the time spent."""

    def __init__(self, model: FusionNetwork, settings: TrainingSettings) -> None:
        self.model, self.settings = model, settings
        self.averaged = FusionNetwork(model.settings).to(next(model.parameters()).device)
        self.averaged.load_state_dict(model.state_dict())
        if settings.only_std:
            model.requires_grad_(False)
            model.doubt.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.decay)
        self.step, self.seconds, self.losses = 0, 0.0, [0.0] * 4

    def update(self, batch: Batch, on: torch.device, *, pairs: Batch | None = None) -> None:
        """One step."""
        regular = len(batch.truth)
        batch = batch if pairs is None else batch.joined(pairs)
        settings = self.settings
        part = min(1.0, self.part)
        rate = settings.learning_rate * min(1.0, part / 0.03 + 0.01) * (0.51 + 0.49 * math.cos(math.pi * part))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        given, truth, inside = batch.given.to(on), batch.truth.to(on), batch.inside.to(on)
        with torch.autocast(on.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            output = self.model(given)
        # of the draft: the network would learn to undo what the data return
        image = _never_worse(output.draft, truth, given, inside)
        spread = std_loss(output, truth, given=given, inside=inside).mean()
        defects = defects_hidden(output.draft, truth, batch.defects.to(on), inside=inside).mean()
        loss = image + _STD_SHARE * spread + _DEFECTS_SHARE * defects
        untold = torch.zeros(())
        if pairs is not None:
            untold = pairs_untold(output.image[regular:], pairs).mean()
            loss = loss + _TOLD_SHARE * untold
        if settings.only_std:
            loss = spread
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        kept = min(settings.average, 1 - 1 / (1 + self.step / 10))
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - kept)
        for index, value in enumerate((image, spread, defects, untold)):
            self.losses[index] += 0.02 * (float(value.detach()) - self.losses[index])

    @property
    def part(self) -> float:
        """Of the training that is done; 1 or more at its end."""
        steps = self.settings.steps
        return self.seconds / (3600 * self.settings.hours) if steps is None else self.step / steps

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        partial = path.with_suffix(f".{os.getpid()}.part")
        content = {
            "model": self.model.state_dict(), "averaged": self.averaged.state_dict(), "step": self.step,
            "optimiser": self.optimiser.state_dict(), "seconds": self.seconds, "losses": self.losses,
        }  # fmt: skip
        torch.save(content, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not path.exists():
            return
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location=next(self.model.parameters()).device)
        self.model.load_state_dict(content["model"])
        self.averaged.load_state_dict(content["averaged"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.step, self.seconds, self.losses = content["step"], content["seconds"], content["losses"]
        _LOG.info("resumed after %d steps, %.0f s", self.step, self.seconds)


def _never_worse(image: torch.Tensor, truth: torch.Tensor, given: NetworkInput, inside: torch.Tensor) -> torch.Tensor:
    """Share of the truth that is missed, counted twice where the better linear image misses less."""
    options = {"radius": given.radius, "inside": inside}
    missed = missed_share(image, truth, **options)
    with torch.no_grad():
        linear = torch.minimum(*(missed_share(one, truth, **options) for one in (given.ring, given.local)))
    return (missed + torch.relu(missed - linear)).mean(dim=1).clamp(max=_MOST_MISSED).mean()


def _report(state: _State, validation: Shards, twins: Shards, path: Path, on: torch.device, examples: int) -> None:
    row = {
        "step": state.step, "seconds": round(state.seconds), "examples": examples,
        "image_loss": round(state.losses[0], 4), "std_loss": round(state.losses[1], 4),
        "defects_loss": round(state.losses[2], 4), "untold_loss": round(state.losses[3], 4),
    }  # fmt: skip
    if len(validation):
        row |= evaluate(state.averaged, validation.arrays, device=on)["summary"]
    if len(twins):
        row |= evaluate_pairs(state.averaged, twins.arrays, device=on)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    _LOG.info("%s", row)
