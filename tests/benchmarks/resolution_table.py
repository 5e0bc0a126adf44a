"""How far the resolutions, error bars and alarms of misr can be relied on: ``make resolution``.

Parts, each with its own number of seeds, which it states (``--seeds`` sets another for all that are run):

frc       bias of `misr.frc_resolution` and coverage of its interval and of the rings' error bars, on half maps of known
          spectral signal-to-noise ratio
chance    unrelated images that count as resolved, by threshold; lattices that ``ring_width="auto"`` finds
halves    half maps of the linear fusion of simulated scans against `misr.expected_frc` and `misr.expected_frc_of_scan`
patterns  what `misr.cube_from_phase` loses with the tails of its probe
local     false alarms, bias and scatter of `misr.local_resolution`
compare   errors and false alarms of the registration of `misr.compare_images`
trust     false alarms and detections of `misr.trust_report`

``make resolution RESOLUTION="frc local --seeds 20"`` runs some of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

# the specimens, and the methods that invent, are those of the tests
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PARTS: dict[str, tuple[str, int]] = {
    "frc": ("resolution_curves", 200),
    "chance": ("resolution_curves", 200),
    "halves": ("resolution_halves", 10),
    "patterns": ("resolution_halves", 1),
    "local": ("resolution_places", 8),
    "compare": ("resolution_places", 100),
    "trust": ("resolution_trust", 10),
}


def run(part: str, seeds: int | None) -> Iterator[str]:
    """The lines of one part, and the time it took."""
    module, usual = PARTS[part]
    work: Callable[[int], Iterator[str]] = getattr(import_module(module), f"{part}_part")
    start = time.perf_counter()
    yield f"=== {part} ==="
    yield from work(usual if seeds is None else seeds)
    yield f"({time.perf_counter() - start:.0f} s)\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--seeds", type=int, help="instead of each part's own number")
    parser.add_argument("--threads", type=int, help="of torch; all if not given")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be 1 or more")
    return options


def main() -> int:
    """Run the parts and print what they find."""
    options = parse()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    for part in options.parts or PARTS:
        for line in run(part, options.seeds):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
