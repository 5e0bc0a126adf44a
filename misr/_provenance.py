"""What was done to the data, kept with the data: one JSON line per operation in ``attrs["history"]``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def append_history(attrs: Mapping[str, Any], operation: str, /, **arguments: Any) -> str:
    """History of ``attrs`` with one more line for ``operation`` and its arguments."""
    line = json.dumps({"operation": operation, **arguments}, default=_plain, sort_keys=False)
    before = str(attrs.get("history", ""))
    return f"{before}\n{line}" if before else line


def read_history(attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The history as a list of dicts, oldest first."""
    return [json.loads(line) for line in str(attrs.get("history", "")).splitlines() if line]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.random.Generator | np.random.BitGenerator | np.random.SeedSequence):
        return describe_rng(value)
    return str(value)


def describe_rng(rng: Any) -> Any:
    """A seed as itself; a generator by its kind and seed entropy, which is all that can be said of it."""
    if rng is None or isinstance(rng, int | np.integer):
        return rng if rng is None else int(rng)
    if isinstance(rng, np.random.Generator):
        entropy = getattr(rng.bit_generator.seed_seq, "entropy", None)
        return f"Generator(entropy={entropy})"
    return type(rng).__name__
