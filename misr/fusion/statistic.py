"""The sufficient statistic of the linear fusion: ``Γᴴ G`` and ``Γᴴ f Γ``, summed over batches of views.

Both are sums over views, so they stream: a batch is transformed, laid on the object frequencies and forgotten. With n
the electrons per position of all views together and f each view's share of them, the counts' spectrum is
``n f Γ φ`` plus noise of power ``n f / N`` (Γ per expected electron), so that ``Γᴴ counts / n = (Γᴴ f Γ) φ + noise`` of
covariance ``(Γᴴ f Γ) / (N n)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from misr.fusion.geometry import ScanGrid
from misr.fusion.kernels import ENTRIES_AT_ONCE, Frequencies, spectra
from misr.fusion.overlap import Overlaps

__all__ = ["Sums", "ViewStack", "accumulate", "batches", "keep_overlaps"]

_BATCH_BYTES = 192 << 20  # of spectra in flight


class ViewStack(Protocol):
    """Counts of views, sliced along the first axis: NumPy or zarr arrays."""

    shape: tuple[int, ...]

    def __getitem__(self, views: slice) -> Any:
        """Counts of some views: (view, scan_y, scan_x)."""


@dataclass(frozen=True)
class Sums:
    """Sums over some of the views, not yet divided by the electrons."""

    vector: torch.Tensor  # (scan frequency, unknown): Γᴴ counts
    energy: torch.Tensor  # (scan frequency,): |counts|² over their expectation
    mean: torch.Tensor  # (view,): electrons per position; of the views that were summed
    matrix: torch.Tensor | None = None  # (scan frequency, unknown, unknown): Γᴴ n f Γ

    def __add__(self, other: Sums) -> Sums:
        """Of both; the views of ``other`` follow those of this one."""
        both = self.matrix is not None and other.matrix is not None
        return Sums(
            self.vector + other.vector,
            self.energy + other.energy,
            torch.cat((self.mean, other.mean)),
            self.matrix + other.matrix if both else None,  # type: ignore[operator]
        )


def batches(n_views: int, grid: ScanGrid) -> Iterator[slice]:
    """Slices of the views whose spectra fit in the memory set aside for them."""
    size = max(1, _BATCH_BYTES // (16 * grid.padded[0] * grid.half))
    size = -(-n_views // -(-n_views // size))  # of about equal size
    for first in range(0, n_views, size):
        yield slice(first, min(first + size, n_views))


def accumulate(
    counts: np.ndarray,
    views: slice,
    *,
    lost: np.ndarray,
    grid: ScanGrid,
    freq: Frequencies,
    overlaps: Overlaps,
    kept: list[torch.Tensor] | None = None,
    with_matrix: bool = True,
    into: Sums | None = None,
) -> Sums:
    """Sums over one batch of views.

    Parameters
    ----------
    counts : numpy.ndarray
        Of those views: (view, scan_y, scan_x).
    views : slice
        Which they are.
    lost : numpy.ndarray
        Scan positions to leave out: (scan_y, scan_x).
    grid, freq, overlaps
        Geometry.
    kept : list of torch.Tensor, optional
        Overlap functions from `keep_overlaps`, taken instead of computed ones.
    with_matrix : bool
        Whether the matrix is wanted.
    into : Sums, optional
        Sums so far, added to in place (its ``mean`` stays).

    Returns
    -------
    Sums
        Of this batch, or ``into``.
    """
    transformed, mean = spectra(counts, lost=lost, grid=grid, device=overlaps.device)
    flat = transformed.T.contiguous()
    sums = empty_sums(freq, overlaps, with_matrix=with_matrix, mean=mean) if into is None else into
    weight = mean.float()
    expected = mean.clamp(min=1e-30)
    held = (mean > 0).double() / expected
    for i, part in enumerate(_parts(freq, overlaps, views)):
        block = flat[part]
        gamma = _overlaps_at(freq, overlaps, part, views) if kept is None else kept[i][..., views]
        sums.vector[part] += torch.bmm(gamma, block.conj()[:, :, None])[..., 0].conj()
        sums.energy[part] += ((block.real**2 + block.imag**2).double() @ held).to(sums.energy.dtype)
        if sums.matrix is not None and with_matrix:
            sums.matrix[part] += torch.bmm((gamma * weight).conj(), gamma.transpose(1, 2))
    return sums


def empty_sums(freq: Frequencies, overlaps: Overlaps, *, with_matrix: bool, mean: torch.Tensor) -> Sums:
    """Nothing summed yet."""
    size, unknowns = len(freq.weight), freq.y.shape[1] * len(overlaps.specimen.channels)
    options: dict[str, Any] = {"device": overlaps.device}
    return Sums(
        torch.zeros((size, unknowns), dtype=torch.complex64, **options),
        torch.zeros(size, dtype=torch.float64, **options),
        mean,
        torch.zeros((size, unknowns, unknowns), dtype=torch.complex64, **options) if with_matrix else None,
    )


def keep_overlaps(freq: Frequencies, overlaps: Overlaps) -> list[torch.Tensor]:
    """The overlap functions of all views, in the parts that `accumulate` takes them in."""
    every = slice(0, overlaps.geometry.n_views)
    return [_overlaps_at(freq, overlaps, part, every) for part in _parts(freq, overlaps, every)]


def _parts(freq: Frequencies, overlaps: Overlaps, views: slice) -> Iterator[slice]:
    unknowns = freq.y.shape[1] * len(overlaps.specimen.channels)
    size = max(1, ENTRIES_AT_ONCE // (unknowns * overlaps.n_pixels(views)))
    for first in range(0, len(freq.weight), size):
        yield slice(first, first + size)


def _overlaps_at(freq: Frequencies, overlaps: Overlaps, part: slice, views: slice) -> torch.Tensor:
    """(scan frequency, unknown, view): the aliases of the first channel, then those of the second."""
    gamma = overlaps(freq.y[part], freq.x[part], views)
    return gamma.transpose(1, 2).flatten(1, 2)
