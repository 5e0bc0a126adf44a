"""The sufficient statistic of the linear fusion: ``Γᴴ G`` and ``Γᴴ f Γ``, summed over batches of views.

Both are sums over views, so they stream: a batch is transformed, laid on the object frequencies and forgotten. With n
the electrons per position of all views together and f each view's share of them, the counts' spectrum is
``n f Γ φ`` plus noise of power ``n f / N`` (Γ per expected electron), so that ``Γᴴ counts / n = (Γᴴ f Γ) φ + noise`` of
covariance ``(Γᴴ f Γ) / (N n)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from misr.fusion.geometry import ScanGrid, ViewGeometry
from misr.fusion.kernels import ENTRIES_AT_ONCE, Frequencies, lattice, spectra
from misr.fusion.overlap import Overlaps, Patch
from misr.fusion.spread import for_each
from misr.fusion.tile_sums import add_compiled
from misr.fusion.workspace import Workspace

__all__ = ["Sums", "ViewStack", "accumulate", "batches", "keep_overlaps"]

_BATCH_BYTES = 192 << 20  # of spectra in flight
_PATCH_PIXELS, _BLOCK_ENTRIES = 160, 320 * 160  # of a block: its intermediate results then stay in the cache
_LATTICE_BYTES = 32 << 20  # of a tile's matrices, over all aliases
_WORTH_COMPILING = 300_000_000  # overlap values: three seconds of torch on one thread; compiling once takes five
_TINY = 1e-15


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
    size = max(1, _BATCH_BYTES // (8 * grid.padded[0] * grid.half))
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
        Sums so far, added to in place; its ``mean`` has room for all views.

    Returns
    -------
    Sums
        Of this batch, or ``into``.
    """
    groups = [np.arange(len(counts))] if kept is not None else _side_by_side(overlaps.geometry, views)
    together = np.concatenate(groups)
    transformed, ordered = spectra(counts[together], lost=lost, grid=grid, device=overlaps.device)
    mean = torch.empty_like(ordered)
    mean[torch.as_tensor(together, device=overlaps.device)] = ordered
    sums = empty_sums(freq, overlaps, with_matrix=with_matrix, mean=mean) if into is None else into
    if into is not None:
        into.mean[views] = mean
    if kept is not None:
        _add_kept(sums, transformed, mean, views, freq=freq, overlaps=overlaps, kept=kept)
        return sums
    root = mean.sqrt().clamp(min=_TINY).cpu().numpy()
    first = views.indices(overlaps.geometry.n_views)[0]
    compiled = _is_long(freq, overlaps)
    patches = [overlaps.patch(first + group, factor=root[group], compiled=compiled) for group in groups]
    scale = 1 / ordered.sqrt().clamp(min=_TINY)
    if patches[0].waves.is_compiled:
        add_compiled(sums, transformed, scale, patches, grid=grid, freq=freq, overlaps=overlaps)
        return sums
    transformed.mul_(scale[:, None].float())
    transformed = transformed.view(-1, grid.padded[0], grid.half)
    numbers = torch.arange(len(freq.weight), device=overlaps.device).view(grid.padded[0], grid.half)

    def add(tile: tuple[slice, slice], work: Workspace) -> None:
        at, here = numbers[tile].flatten(), transformed[:, tile[0], tile[1]]
        flat = work.complex("spectra", *here.shape).copy_(here).flatten(1)
        sums.energy.index_add_(0, at, (flat.real**2 + flat.imag**2).sum(dim=0, dtype=torch.float64))
        products = _of_tile(flat, lattice(grid, at), patches, overlaps, sums.matrix is not None, work)
        _add_products(sums, at, products, freq.alias[at], grid.upsample**2)

    channels = len(overlaps.specimen.channels)
    size = _BLOCK_ENTRIES // (_PATCH_PIXELS * channels)
    size = max(1, min(size, _LATTICE_BYTES // (8 * (channels * grid.upsample**2) ** 2)))
    for_each(_tiles(grid, size), add, device=overlaps.device)
    return sums


def _tiles(grid: ScanGrid, size: int) -> list[tuple[slice, slice]]:
    """The half plane of scan frequencies in compact tiles of about that many.

    The object frequencies of a tile reach nearly the same part of the detector, so the rest of it can be left out.
    """
    shape = grid.padded[0], grid.half
    fine = 1 / (grid.padded[0] * grid.step[0]), 1 / (grid.padded[1] * grid.step[1])
    edge = math.sqrt(size * fine[0] * fine[1])
    sides = [max(1, round(edge / step)) for step in fine]
    rows, columns = (
        [slice(first, min(first + side, number)) for first in range(0, number, side)]
        for number, side in zip(shape, sides, strict=True)
    )
    return [(row, column) for row in rows for column in columns]


def _side_by_side(geometry: ViewGeometry, views: slice) -> list[np.ndarray]:
    """Views of a batch, numbered within it, in compact groups: the longer side is halved until they are small."""
    first, last, _ = views.indices(geometry.n_views)
    number = last - first
    chosen = (geometry.pixel_view >= first) & (geometry.pixel_view < first + number)
    member = geometry.pixel_view[chosen] - first
    size = np.bincount(member, minlength=number).clip(1)
    centres = np.stack([
        np.bincount(member, weights=along[chosen], minlength=number) / size
        for along in (geometry.pixel_y, geometry.pixel_x)
    ])  # fmt: skip
    groups, small = [np.arange(number)], []
    while groups:
        group = groups.pop()
        if size[group].sum() <= _PATCH_PIXELS or len(group) == 1:
            small.append(np.sort(group))
            continue
        along = centres[int(np.argmax(np.ptp(centres[:, group], axis=1)))][group]
        order = group[np.argsort(along, kind="stable")]
        groups += [order[: len(order) // 2], order[len(order) // 2 :]]
    return small


def _of_tile(
    flat: torch.Tensor,
    q: tuple[torch.Tensor, torch.Tensor],
    patches: list[Patch],
    overlaps: Overlaps,
    with_matrix: bool,
    work: Workspace,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``Γᴴ G`` and ``Γᴴ Γ`` over a batch's patches at some scan frequencies, over all unknowns of the lattice.

    Γ comes with the root of each view's electrons, the spectra ``flat`` (view, scan frequency) are divided by it. They
    stand beside Γ as one more row, so that one product of matrices gives both.
    """
    (length, aliases), channels = q[0].shape, len(overlaps.specimen.channels)
    unknowns = aliases * channels
    vector = work.complex("vector", length, unknowns).zero_()
    matrix = work.complex("matrix", length, unknowns**2).zero_() if with_matrix else None
    table, end = overlaps.table(*q), 0
    for patch in patches:
        begin, end = end, end + len(patch.views)
        some = torch.nonzero(overlaps.reached(*q, patch).any(dim=0))[:, 0]
        if len(some) == 0:
            continue
        every = torch.cat([some + aliases * channel for channel in range(channels)])
        n = len(every)
        rows = work.complex("rows", length, n + 1, len(patch.views))
        overlaps.fill(rows[:, :n], table[:, some], patch, work=work)
        rows[:, n] = flat[begin:end].T
        if matrix is None:
            vector.index_add_(1, every, torch.linalg.vecdot(rows[:, :n], rows[:, n:]))
            continue
        products = work.complex("products", length, n + 1, n + 1)
        torch.bmm(rows.conj(), rows.transpose(1, 2), out=products)
        vector.index_add_(1, every, products[:, :n, n])
        places = (unknowns * every[:, None] + every[None, :]).flatten()
        matrix.index_add_(1, places, products[:, :n, :n].flatten(1))
    return vector, matrix


def _add_products(
    sums: Sums,
    at: torch.Tensor,
    products: tuple[torch.Tensor, torch.Tensor | None],
    alias: torch.Tensor,
    aliases: int,
) -> None:
    """Add a tile's sums, from all of the lattice to the object frequencies within the band limit."""
    vector, matrix = products
    unknowns = vector.shape[1]
    chosen = torch.cat([alias + first for first in range(0, unknowns, aliases)], dim=1)
    sums.vector.index_add_(0, at, vector.gather(1, chosen))
    if matrix is not None and sums.matrix is not None:
        pairs = (unknowns * chosen[:, :, None] + chosen[:, None, :]).flatten(1)
        sums.matrix.view(len(sums.matrix), -1).index_add_(0, at, matrix.gather(1, pairs))


def _add_kept(
    sums: Sums,
    transformed: torch.Tensor,
    mean: torch.Tensor,
    views: slice,
    *,
    freq: Frequencies,
    overlaps: Overlaps,
    kept: list[torch.Tensor],
) -> None:
    """Add the sums over views whose overlap functions are there already."""
    flat = transformed.T.contiguous()
    held = (mean > 0).double() / mean.clamp(min=_TINY**2)
    weight = mean.to(torch.complex64)
    for part, every in zip(_parts(freq, _entries(overlaps)), kept, strict=True):
        gamma, block = every[..., views], flat[part]
        sums.vector[part] += torch.linalg.vecdot(gamma, block[:, None])
        sums.energy[part] += (block.real**2 + block.imag**2).double() @ held
        if sums.matrix is not None:
            sums.matrix[part] += torch.bmm(gamma.conj(), (gamma * weight).transpose(1, 2))


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
    """The overlap functions of all views, (scan frequency, unknown, view) in the parts that `accumulate` takes."""
    patch = overlaps.patch(np.arange(overlaps.geometry.n_views), compiled=_is_long(freq, overlaps))
    unknowns = freq.y.shape[1] * len(overlaps.specimen.channels)
    work, kept = Workspace(overlaps.device), []
    for part in _parts(freq, _entries(overlaps)):
        table = overlaps.table(freq.y[part], freq.x[part])
        shape = (part.stop - part.start, unknowns, len(patch.views))
        kept.append(torch.empty(shape, dtype=torch.complex64, device=overlaps.device))
        overlaps.fill(kept[-1], table, patch, work=work)
    return kept


def _is_long(freq: Frequencies, overlaps: Overlaps) -> bool:
    """Whether so many overlap values are asked for that compiling the loop pays."""
    return freq.alias.numel() * _entries(overlaps) > _WORTH_COMPILING


def _entries(overlaps: Overlaps) -> int:
    return len(overlaps.specimen.channels) * overlaps.geometry.pixel_view.size


def _parts(freq: Frequencies, per_frequency: int) -> Iterator[slice]:
    """Scan frequencies whose overlap values, ``per_frequency`` for each alias, stay near the cache."""
    total, aliases = freq.y.shape
    size = max(1, ENTRIES_AT_ONCE // (aliases * per_frequency))
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))
