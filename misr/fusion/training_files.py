"""Training examples on disk: shards of half-precision arrays, written whole or not at all, never unpickled."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from misr.fusion.natural import atom_amplitude, plane_of_size
from misr.fusion.network import NetworkInput
from misr.fusion.random_scans import SIDE
from misr.fusion.random_specimens import SPECIMEN_KINDS
from misr.fusion.training_data import Example, make_examples, make_twins

__all__ = ["Batch", "as_batch", "load_shard", "shard_path", "write_shard"]

_LOG = logging.getLogger(__name__)
_TWINS = 1_000_000  # their seeds are other than those of the other shards

_REST = ("truth", "defects", "inside", "dose", "kind")


class Batch:
    """Input, whitened truth, its defects and the pixels that count, of some examples.

    Attributes
    ----------
    given : NetworkInput
        What the network is shown.
    truth, defects : torch.Tensor
        (batch, y, x).
    inside : torch.Tensor
        (batch, y, x), bool.
    dose, kind : torch.Tensor
        (batch,).
    """

    def __init__(
        self,
        given: NetworkInput,
        truth: torch.Tensor,
        defects: torch.Tensor,
        inside: torch.Tensor,
        dose: Any,
        kind: Any,
    ) -> None:
        self.given, self.truth, self.defects, self.inside, self.dose, self.kind = (
            given,
            truth,
            defects,
            inside,
            dose,
            kind,
        )

    def joined(self, other: Batch) -> Batch:
        """One batch of both."""
        both: dict[str, Any] = {}
        for name, value in self.given.__dict__.items():
            also = getattr(other.given, name)
            if value is not None and name in ("groups", "tilts"):  # as many of both
                number = min(value.shape[1], also.shape[1])
                value, also = value[:, :number], also[:, :number]
            both[name] = None if value is None else torch.cat([value, also])
        rest = (torch.cat([getattr(self, name), getattr(other, name)]) for name in _REST)
        return Batch(NetworkInput(**both), *rest)


def shard_path(folder: Path, split: str, number: int, *, twins: bool = False) -> Path:
    """File of one shard."""
    return folder / f"{split}{'-twins' if twins else ''}_{number:05d}.safetensors"


def write_shard(
    folder: Path, number: int, *, split: str, specimens: int = 8, groups: int = 8, twins: bool = False
) -> Path:
    """Make and write the examples of some specimens, unless they are there.

    Parameters
    ----------
    folder : path
        Where to.
    number : int
        Of the shard: it draws the specimens' seeds ``number · specimens`` and following.
    split : str
        See `misr.fusion.training_data.make_examples`.
    specimens : int
        How many.
    groups : int
        Of views.
    twins : bool
        Pairs of a damaged specimen and its undamaged twin, one after the other; half as many specimens.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If no specimen of the shard gives an example.
    """
    from safetensors.torch import save_file

    path = shard_path(folder, split, number, twins=twins)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    examples: list[Example] = []
    first = number * specimens
    seeds = range(_TWINS + first, _TWINS + first + specimens // 2) if twins else range(first, first + specimens)
    for seed in seeds:
        try:
            if twins:
                examples += [one for pair in make_twins(seed, split=split, groups=groups) for one in pair]
            else:
                examples += list(make_examples(seed, split=split, groups=groups))
        except ValueError as error:  # a geometry that the fusion refuses: no example
            _LOG.warning("specimen %d of %s was left out: %s", seed, split, error)
    if not examples:
        raise ValueError(f"shard {number} of {split}: no specimen gave an example; the log says why")
    partial = path.with_suffix(f".{os.getpid()}.part")
    save_file(_stacked(examples), partial, metadata={"examples": json.dumps([_told(one) for one in examples])})
    os.replace(partial, path)
    return path


def load_shard(path: Path) -> dict[str, torch.Tensor]:
    """Arrays of a shard."""
    from safetensors.torch import load_file

    return load_file(path)


def as_batch(arrays: dict[str, torch.Tensor], chosen: Any) -> Batch:
    """Some examples of a shard, as the network takes them.

    Parameters
    ----------
    arrays : dict
        From `load_shard`.
    chosen : index
        Which.

    Returns
    -------
    Batch
        In single precision.
    """
    part = {name: values[chosen].float() for name, values in arrays.items()}
    side = part["truth"].shape[-1]
    band = 2 * part["cutoff"][:, None, None]
    q = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    frequency = q[None] / part["pixel"][:, None, None]
    given = NetworkInput(
        whitened=part["whitened"], ring=part["ring"], local=part["local"], noise=part["log_noise"].exp(),
        radius=frequency / band, atom=atom_amplitude(frequency), scale=part["scale"], pixel=part["pixel"],
        groups=part["groups"], tilts=part["tilts"],
    )  # fmt: skip
    return Batch(given, part["truth"], part["defects"], part["inside"] > 0, part["dose"], part["kind"].long())


def _stacked(examples: Iterable[Example]) -> dict[str, torch.Tensor]:
    rows: dict[str, list[torch.Tensor]] = {}
    for one in examples:
        field = one.field
        images = {
            "whitened": field.whitened,
            "ring": field.ring,
            "local": field.local,
            "truth": one.truth,
            "defects": one.defects,
        }
        arrays = {name: _filled_up(image).clamp(-6e4, 6e4).half() for name, image in images.items()}
        arrays["groups"] = _filled_up(one.groups).half()
        arrays["tilts"] = one.tilts
        arrays["log_noise"] = plane_of_size(field.noise.log(), field.ring.shape, (SIDE, SIDE)).half()
        arrays["inside"] = _filled_up(field.inside.to(torch.uint8))
        cutoff, kind = one.conditions.cutoff, SPECIMEN_KINDS.index(one.kind)
        for name, value in (
            ("scale", field.scale), ("pixel", (field.pixel[0] * field.pixel[1]) ** 0.5), ("cutoff", cutoff),
            ("dose", one.dose_e_per_A2), ("kind", float(kind)),
        ):  # fmt: skip
            arrays[name] = torch.tensor(value, dtype=torch.float32)
        for name, array in arrays.items():
            rows.setdefault(name, []).append(array)
    return {name: torch.stack(arrays).contiguous() for name, arrays in rows.items()}


def _filled_up(image: torch.Tensor) -> torch.Tensor:
    """With an empty margin, up to the side of all examples."""
    return functional.pad(image, (0, SIDE - image.shape[-1], 0, SIDE - image.shape[-2]))


def _told(one: Example) -> dict[str, Any]:
    return {"kind": one.kind, "seed": one.seed, "dose_e_per_A2": one.dose_e_per_A2, **asdict(one.conditions)}
