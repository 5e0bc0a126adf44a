"""How the network that comes with misr is trained: from specimens to weights in one resumable call."""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from misr.fusion.network import FusionNetwork, NetworkSettings
from misr.fusion.training import TrainingSettings, train_network
from misr.fusion.training_files import shard_path, write_shard

__all__ = ["PRESETS", "Preset", "make_shards", "run_preset"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """Numbers of shards (8 specimens each, at 4 doses) per split, of shards of twins, the network and its training."""

    shards: Mapping[str, int]
    twins: Mapping[str, int]
    network: NetworkSettings
    training: TrainingSettings


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        {"train": 1, "validation": 1},
        {"train": 1, "validation": 1},
        NetworkSettings(width=16),
        TrainingSettings(hours=0.01, pairs=2, precision="float32"),
    ),
    "cpu": Preset(
        {"train": 172, "validation": 12},
        {"validation": 5},
        NetworkSettings(width=40, angular=False),
        TrainingSettings(hours=1.2),
    ),
    "gpu": Preset(
        {"train": 3000, "validation": 40},
        {"validation": 20},
        NetworkSettings(),
        TrainingSettings(hours=8.0, batch=32),
    ),
}


def run_preset(
    name: str, *, folder: str | Path, workers: int = 1, hours: float | None = None, device: str = "auto"
) -> FusionNetwork:
    """Make the examples that are missing, then train; what is there already is taken up again.

    Parameters
    ----------
    name : {"tiny", "cpu", "gpu"}
        "cpu" takes at most 3 hours on two cores; "tiny" only shows that it runs.
    folder : path
        Gets ``examples/``, ``checkpoint.pt``, ``log.jsonl`` and ``weights.safetensors``.
    workers : int
        Processes that make examples.
    hours : float, optional
        Of training, instead of the preset's.
    device : str
        For the training: "auto", "cpu" or "cuda".

    Returns
    -------
    FusionNetwork
        Trained.

    Raises
    ------
    ValueError
        For an unknown preset, or no time to train.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} must be one of {', '.join(map(repr, PRESETS))}")
    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise ValueError(f"hours={hours!r} of training must be a positive number")
    preset, folder = PRESETS[name], Path(folder)
    for twins, shards in ((False, preset.shards), (True, preset.twins)):
        for split, number in shards.items():
            make_shards(folder / "examples", split, number, workers=workers, twins=twins)
    training = preset.training if hours is None else replace(preset.training, hours=float(hours))
    return train_network(
        folder / "examples", out=folder, network=preset.network, settings=training, device=device,
        report_s=min(300.0, 900 * training.hours),
    )  # fmt: skip


def make_shards(folder: Path, split: str, number: int, *, workers: int = 1, twins: bool = False) -> None:
    """Write the shards ``0 … number - 1`` of a split that are not there yet.

    Parameters
    ----------
    folder : path
        Where to.
    split : {"train", "validation", "test"}
        Of the specimens.
    number : int
        How many.
    workers : int
        Processes.
    twins : bool
        Of damaged specimens and their undamaged twins.
    """
    missing = [index for index in range(number) if not shard_path(folder, split, index, twins=twins).exists()]
    if not missing:
        return
    _LOG.info("%d of %d %s shards to make", len(missing), number, split)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, workers), mp_context=context, initializer=_one_thread) as pool:
        jobs = [pool.submit(write_shard, folder, index, split=split, twins=twins) for index in missing]
        for job in tqdm(
            as_completed(jobs), total=len(jobs), desc=f"{split} {'twins' if twins else 'examples'}", unit="shard"
        ):
            job.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
