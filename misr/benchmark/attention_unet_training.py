"""Training of the published network for the benchmark: resumable, seeded, from the shards of its one geometry."""

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

from misr.benchmark.attention_unet import UNIT_RAD, AttentionUNet, Trained, network_input, save_trained
from misr.benchmark.attention_unet_data import STORED, Examples, Geometry, make_examples
from misr.fusion.presets import PRESETS
from misr.fusion.random_scans import DOSES

__all__ = ["UNetSettings", "train_attention_unet", "train_unet"]

_LOG = logging.getLogger(__name__)
_FAINT_RAD = 0.02  # an image of this need not be told from nothing
_FAINT = 0.02  # of the strongest ring's power: fainter rings need not be told from nothing
_MOST_MISSED = 5.0  # by one example: it may not spoil a step
_JUDGED = 48  # specimens of the validation split: more would take longer than they tell
_VALIDATION_DOSES = (10.0, 100.0, 1000.0, 10000.0)


@dataclass(frozen=True)
class UNetSettings:
    """How to train.

    Attributes
    ----------
    hours : float
        Wall-clock time, over all sessions.
    steps : int, optional
        Instead of a time.
    batch : int
        Examples per step.
    learning_rate : float
        At its highest; it rises over the first 5 % and falls as a cosine.
    decay : float
        Weight decay.
    seed : int
        Of everything drawn.
    precision : {"bfloat16", "float32"}
        Of the convolutions.
    loss : {"squared", "rings"}
        Share of the truth that is missed: of the pixels' squares, or averaged over rings of frequencies, which learned
        more slowly in a short trial.
    width : int
        Channels of the network's first level.
    """

    hours: float = 1.4
    steps: int | None = None
    batch: int = 16
    learning_rate: float = 1e-3
    decay: float = 1e-4
    seed: int = 0
    precision: str = "bfloat16"
    loss: str = "squared"
    width: int = 64


def train_attention_unet(folder: str | Path, *, workers: int = 1, hours: float | None = None) -> Path:
    """Make the examples that are missing, then train; what is there already is taken up again.

    Parameters
    ----------
    folder : path
        Gets ``examples/`` (3 GB), ``checkpoint.pt``, ``log.jsonl`` and ``weights.safetensors``.
    workers : int
        Processes that make examples.
    hours : float, optional
        Of training, instead of 1.4.

    Returns
    -------
    pathlib.Path
        The weights, for ``misr benchmark --attention-unet``.

    Raises
    ------
    ValueError
        For no time to train.
    """
    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise ValueError(f"hours={hours!r} of training must be a positive number")
    settings = UNetSettings() if hours is None else UNetSettings(hours=float(hours))
    # as many as misr's own network learns from
    make_examples(Path(folder) / "examples", PRESETS["cpu"].shards, workers=workers)
    return train_unet(Path(folder) / "examples", out=folder, settings=settings)


def train_unet(
    data: str | Path,
    *,
    out: str | Path,
    settings: UNetSettings | None = None,
    geometry: Geometry | None = None,
    report_s: float = 600.0,
) -> Path:
    """Train on the shards of a folder, resuming from ``out`` if it holds a checkpoint.

    Parameters
    ----------
    data : path
        Folder of shards.
    out : path
        Folder for ``checkpoint.pt``, ``weights.safetensors`` and ``log.jsonl``.
    settings : UNetSettings, optional
        How to train.
    geometry : Geometry, optional
        What the shards were made with; the benchmark's by default.
    report_s : float
        Seconds between checkpoints, at which the validation split is judged too.

    Returns
    -------
    pathlib.Path
        The weights.

    Raises
    ------
    ValueError
        If there are fewer examples than a step takes.
    """
    settings, geometry, out = settings or UNetSettings(), geometry or Geometry.of_benchmark(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    train, validation = (Examples(Path(data), split, geometry) for split in ("train", "validation"))
    if len(train) < settings.batch:
        raise ValueError(f"{data} holds {len(train)} training examples: a step takes {settings.batch}")
    torch.manual_seed(settings.seed)
    state = _State(geometry, settings)
    state.resume(out / "checkpoint.pt")
    torch.manual_seed(settings.seed + state.step)  # not the electrons of the beginning once more
    last = reported = time.monotonic()
    busy = time.process_time()
    for counts, truth, dose in _batches(train, settings, state.step):
        state.update(counts, truth, dose)
        now = time.monotonic()
        state.seconds, last = state.seconds + now - last, now
        state.core_seconds, busy = state.core_seconds + time.process_time() - busy, time.process_time()
        done = state.part >= 1
        if done or now - reported > report_s:
            state.save(out / "checkpoint.pt")
            save_trained(state.trained(len(train)), out / "weights.safetensors")
            _report(state, validation, out / "log.jsonl")
            last = reported = time.monotonic()  # judging is not training
            busy = time.process_time()
        if done:
            break
    return out / "weights.safetensors"


def _batches(
    examples: Examples, settings: UNetSettings, step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless shuffled batches of electrons, drawn anew, with their truths."""
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, step, 5]))
    while True:
        order = rng.permutation(len(examples))
        for first in range(0, len(order) - settings.batch + 1, settings.batch):
            chosen = order[first : first + settings.batch]
            moved = [_moved(examples.counts[i], examples.truth[i], examples.geometry, rng) for i in chosen]
            low, high = np.log(DOSES)
            dose = torch.as_tensor(np.exp(rng.uniform(low, high, size=len(chosen))), dtype=torch.float32)
            expected = torch.stack([counts for counts, _ in moved])
            yield drawn(expected, dose), torch.stack([truth for _, truth in moved]).float(), dose
        examples.refresh()


def _moved(
    counts: torch.Tensor, truth: torch.Tensor, geometry: Geometry, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The periodic field from another first position, and with y and x exchanged: the same physics.

    Turns and mirrors are not: the detector's pixels lie a quarter of one off the axis.
    """
    shift = rng.integers(geometry.positions, size=2).tolist()
    counts, truth = counts.roll(shift, (1, 2)), truth.roll([geometry.upsample * one for one in shift], (0, 1))
    return exchanged(counts, truth, geometry) if rng.integers(2) else (counts, truth)


def exchanged(counts: torch.Tensor, truth: torch.Tensor, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan, detector and image with y and x exchanged."""
    side = geometry.det_pixels
    return counts.reshape(side, side, *counts.shape[1:]).permute(1, 0, 3, 2).reshape(counts.shape), truth.T


def drawn(expected: torch.Tensor, dose: torch.Tensor) -> torch.Tensor:
    """Poisson counts at doses in e/Å² of stored expected counts."""
    return torch.poisson((expected.float() * (dose[:, None, None, None] / STORED)).clamp_(min=0))


class _State:
    """Model, optimiser and the time spent."""

    def __init__(self, geometry: Geometry, settings: UNetSettings) -> None:
        self.geometry, self.settings = geometry, settings
        self.model = AttentionUNet(geometry.det_pixels**2, width=settings.width, upsample=geometry.upsample)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            self.model.last.weight *= 0.1  # nothing is a better first guess than noise
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.decay
        )
        self.step, self.seconds, self.core_seconds, self.loss = 0, 0.0, 0.0, 1.0

    def update(self, counts: torch.Tensor, truth: torch.Tensor, dose: torch.Tensor) -> None:
        """One step."""
        settings, part = self.settings, min(1.0, self.part)
        rate = settings.learning_rate * min(1.0, part / 0.05 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * part) + 0.002)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        image = self.images(counts)
        loss = missed(image, truth, rings=settings.loss == "rings").clamp(max=_MOST_MISSED).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self.loss += max(0.02, 1 / self.step) * (float(loss.detach()) - self.loss)

    def images(self, counts: torch.Tensor) -> torch.Tensor:
        """What the network makes of counts, rad."""
        given = network_input(counts, self.geometry).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            image = self.model(given)
        return image.float() * UNIT_RAD

    @property
    def part(self) -> float:
        """Of the training that is done; 1 or more at its end."""
        steps = self.settings.steps
        return self.seconds / (3600 * self.settings.hours) if steps is None else self.step / steps

    def trained(self, specimens: int) -> Trained:
        """The network as it is kept."""
        told = {
            "hours": self.seconds / 3600, "core_hours": self.core_seconds / 3600, "steps": self.step,
            "batch": self.settings.batch, "specimens": specimens, "loss": self.settings.loss,
        }  # fmt: skip
        return Trained(self.model, self.geometry, told)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        partial = path.with_suffix(f".{os.getpid()}.part")
        content = {
            "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step,
            "seconds": self.seconds, "core_seconds": self.core_seconds, "loss": self.loss,
        }  # fmt: skip
        torch.save(content, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not path.exists():
            return
        content: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.step, self.seconds, self.loss = content["step"], content["seconds"], content["loss"]
        self.core_seconds = content["core_seconds"]
        _LOG.info("resumed after %d steps, %.0f s", self.step, self.seconds)


def missed(image: torch.Tensor, truth: torch.Tensor, *, rings: bool) -> torch.Tensor:
    """Share of the truth that is missed, (batch,): 1 for an empty image, 0 for the truth.

    Parameters
    ----------
    image, truth : torch.Tensor
        (batch, y, x), rad; the mean is not judged.
    rings : bool
        Averaged over rings of frequencies, as misr's own network is trained, instead of the pixels' squares.
    """
    if not rings:
        return (image - truth).flatten(1).var(1) / (truth.flatten(1).var(1) + _FAINT_RAD**2)
    error, there = ring_powers(image - truth), ring_powers(truth)
    scale = (_FAINT_RAD**2 * truth[0].numel()) / error.shape[1]
    smooth = torch.nn.functional.avg_pool1d(there[:, None], 5, stride=1, padding=2, count_include_pad=False)[:, 0]
    return (error / (0.5 * there + 0.5 * smooth + _FAINT * there.amax(1, keepdim=True) + _FAINT * scale)).mean(1)


def ring_powers(image: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """Power in rings of three frequencies each up to the shorter axis' end, or the product of two: (batch, ring)."""
    spectra = [torch.fft.rfft2(one, norm="ortho") for one in (image, image if other is None else other)]
    rows, columns = image.shape[-2:]
    product = spectra[0].real * spectra[1].real + spectra[0].imag * spectra[1].imag
    product[..., 1 : (columns + 1) // 2] *= 2  # the other half plane repeats them
    order = torch.hypot(torch.fft.fftfreq(rows, 1 / rows)[:, None], torch.fft.rfftfreq(columns, 1 / columns)[None])
    last = min(rows, columns) // 6
    index = ((order - 0.5) / 3).floor().clamp(0, last).long()
    index[0, 0] = last  # the mean is no frequency
    total = torch.zeros((len(image), last + 1))
    return total.scatter_add(1, index.flatten().expand(len(image), -1), product.flatten(1))[:, :last]


@torch.no_grad()
def judged(
    state: _State, examples: Examples, *, doses: tuple[float, ...] = _VALIDATION_DOSES, batch: int = 16
) -> dict[str, float]:
    """Mean FRC with the truth over rings, of specimens that are not empty, at each of some doses."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(1)
    state.model.eval()
    found: dict[str, float] = {}
    real = [i for i, truth in enumerate(examples.truth[:_JUDGED]) if float(truth.float().std()) > 0]
    for dose in doses:
        curves = []
        for first in range(0, len(real), batch):
            chosen = real[first : first + batch]
            truth = torch.stack([examples.truth[i] for i in chosen]).float()
            counts = drawn(torch.stack([examples.counts[i] for i in chosen]), torch.full((len(chosen),), dose))
            image = state.images(counts)
            cross, own, true = ring_powers(image, truth), ring_powers(image), ring_powers(truth)
            curves.append(cross / (own * true).sqrt().clamp(min=1e-12))
        found[f"frc_{dose:g}"] = round(float(torch.cat(curves).mean()), 4)
    state.model.train()
    torch.random.set_rng_state(generator)
    return found


def _report(state: _State, validation: Examples, path: Path) -> None:
    row = {
        "step": state.step, "seconds": round(state.seconds), "core_seconds": round(state.core_seconds),
        "loss": round(state.loss, 4), **judged(state, validation),
    }  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    _LOG.info("%s", row)
