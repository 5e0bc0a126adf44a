"""The arguments of the commands that run for hours: benchmark and train."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["PUBLISHED", "add_benchmark", "add_train"]

PUBLISHED = "attention_unet"  # the preset of training that is not misr's own
Run = Callable[[argparse.Namespace], int]


def add_benchmark(commands: Any, run: Run) -> None:
    """The arguments of ``misr benchmark``, and what it does."""
    benchmark = commands.add_parser(
        "benchmark",
        help="resolution against dose, several methods on the same electrons",
        description="Resolution against dose of several methods on the same simulated electrons: a table (zarr and "
        "CSV) and a report. Each cell is saved as it finishes; the same command goes on where a run was stopped.",
    )
    benchmark.add_argument("--preset", choices=("tiny", "small", "full"), default="small", help="default: %(default)s")
    benchmark.add_argument(
        "-o", "--folder", type=Path, default=Path("misr-benchmark"), help="of the results (default: %(default)s)"
    )
    benchmark.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes (default: %(default)s)")
    benchmark.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with what is in the folder (default); --no-resume refuses a folder that holds results",
    )  # fmt: skip
    benchmark.add_argument("--structure", type=Path, action="append", metavar="FILE",
                           help="your own specimen instead: cif, xyz … (may be given more than once)")  # fmt: skip
    benchmark.add_argument("--doses", type=float, nargs="+", metavar="E_PER_A2", help="instead of the preset's, e/Å²")
    benchmark.add_argument("--seeds", type=int, nargs="+", metavar="N", help="instead of the preset's")
    benchmark.add_argument("--methods", nargs="+", metavar="NAME", help="instead of the preset's")
    benchmark.add_argument("--quantem-python", type=Path, metavar="PYTHON", help="of an environment that has quantem")
    benchmark.add_argument(
        "--attention-unet", type=Path, metavar="FILE",
        help="weights of the published network, from misr train --preset attention_unet",
    )  # fmt: skip
    benchmark.set_defaults(run=run)


def add_train(commands: Any, run: Run) -> None:
    """The arguments of ``misr train``, and what it does."""
    train = commands.add_parser(
        "train",
        help="train the fusion network from random specimens",
        description="Make random specimens, scan them at many doses, and train the network of misr.fuse_cnn on them. "
        "The same command goes on where a run was stopped.",
    )
    train.add_argument(
        "--preset", choices=("tiny", "cpu", "gpu", PUBLISHED), default="cpu",
        help=f"{PUBLISHED} is the published network that misr benchmark compares with (default: %(default)s)",
    )  # fmt: skip
    train.add_argument(
        "-o", "--folder", type=Path, default=Path("misr-training"),
        help="of examples, checkpoint and weights.safetensors (default: %(default)s)",
    )  # fmt: skip
    train.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that make examples")
    train.add_argument("--hours", type=float, help="of training, instead of the preset's")
    train.add_argument("--device", default="auto", help=f"auto, cpu or cuda (default: %(default)s); {PUBLISHED}: cpu")
    train.set_defaults(run=run)


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return int(text)
