"""Lines of text for `resolution_table`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["aligned", "percent", "signed"]


def aligned(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table: the first column to the left, the others to the right."""
    lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def percent(share: float, digits: int = 1) -> str:
    """A share, 0.953, as 95.3."""
    return "-" if np.isnan(share) else f"{100 * share:.{digits}f}"


def signed(share: float) -> str:
    """A deviation, -0.012, as -1.2."""
    return "-" if np.isnan(share) else f"{100 * share:+.1f}"
