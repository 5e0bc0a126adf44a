"""Wall time and peak memory of a piece of work, in its own process."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["measured"]

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_MIB = 2.0**20


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill a dict with ``seconds``, ``peak_memory_MiB`` and ``extra_memory_MiB`` when the block ends.

    The peak is the whole process's resident memory, libraries and data included; extra is what the block added to what
    was held when it began. Linux forgets the earlier peak when asked; elsewhere the peak is the process's so far.
    """
    spent: dict[str, float] = {}
    fresh = _forget_peak()
    before = _status("VmRSS") if fresh else math.nan
    start = time.perf_counter()
    yield spent
    spent["seconds"] = time.perf_counter() - start
    peak = _status("VmHWM") if fresh else _peak_so_far()
    spent["peak_memory_MiB"] = peak
    spent["extra_memory_MiB"] = max(0.0, peak - before) if math.isfinite(before) else math.nan


def _forget_peak() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()


def _status(name: str) -> float:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024  # kB
    return math.nan


def _peak_so_far() -> float:
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if sys.platform == "darwin" else 1024)
