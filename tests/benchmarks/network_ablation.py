"""What each part of the fusion network is worth: trained anew without it, on the same examples in as many steps.

    python tests/benchmarks/network_ablation.py --data FOLDER/examples --out FOLDER/ablation [--steps 700] [--width 24]

FOLDER is that of ``misr train``. A variant that has ended is not trained again. Figures are of the validation split:
mean FRC with the truth over rings up to 2α/λ, its gain over the better linear image by class, how far defects are
hidden (`misr.fusion.losses.defects_hidden`), and what one and 1.96 standard deviations hold. Minutes are of training.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from misr.fusion.network import NetworkSettings
from misr.fusion.training import TrainingSettings, train_network

VARIANTS: dict[str, dict[str, bool]] = {
    "spatial path": {"angular": False},
    "and angular path": {},
    "and angular path, no gating": {"gating": False},
    "without spectral filter": {"angular": False, "spectral": False},
    "without linear attention": {"angular": False, "attention": False},
    "without second look": {"angular": False, "second_look": False},
    "without blend": {"angular": False, "blend": False},
}
_KINDS = ("crystalline", "semicrystalline", "amorphous", "isolated")


def trained(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Last line of the variant's log, after training it if that was not done."""
    out = arguments.out / name.replace(" ", "_").replace(",", "")
    log = out / "log.jsonl"
    settings = TrainingSettings(steps=arguments.steps, seed=arguments.seed)
    if not (log.exists() and _last(log)["step"] >= arguments.steps):
        shape = NetworkSettings(width=arguments.width, **VARIANTS[name])
        train_network(arguments.data, out=out, network=shape, settings=settings, device="auto", report_s=1e9)
    return _last(log)


def _last(log: Path) -> dict[str, float]:
    row: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return row


def line(name: str, row: dict[str, float]) -> str:
    """A row of the table."""
    gains = " ".join(f"{row['gain_' + kind]:>+8.3f}" for kind in _KINDS)
    return (
        f"{name:<28} {row['seconds'] / 60:>7.1f} {row['frc']:>7.4f} {gains} {row['defects_hidden']:>8.3f} "
        f"{row['covered_68']:>7.3f} {row['covered_95']:>6.3f}"
    )


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="a folder per variant goes here")
    parser.add_argument("--steps", type=int, default=700, help="of training, each")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kinds = " ".join(f"{kind[:8]:>8}" for kind in _KINDS)
    print(f"{'variant':<28} {'minutes':>7} {'FRC':>7} {kinds}  hidden   68 %   95 %")
    for name in arguments.variants:
        print(line(name, trained(name, arguments)), flush=True)


if __name__ == "__main__":
    main()
