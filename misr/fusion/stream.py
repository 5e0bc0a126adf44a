"""Views from NumPy or dask, in one pass and within bounds of memory."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from misr.cube import is_lazy

__all__ = ["checked", "computed_views", "held_stack", "lost_positions"]

_LOST, _LOST_SIGMA = 0.2, 6.0  # of the median position's electrons, or the inverse; and as many standard deviations off
HELD_BYTES = 768 << 20  # views beyond this go to a compressed temporary store
_VIEWS_PER_CHUNK = 64
_AHEAD = 2  # blocks computed while one is stored: a block is often a single chunk of the file, which one thread unpacks
_AHEAD_BYTES = 64 << 20  # larger blocks come one at a time


@contextmanager
def held_stack(views: xr.DataArray, *, largest: float | None = None) -> Iterator[tuple[Any, np.ndarray]]:
    """The views as something to slice along the first axis, and the electrons of each scan position.

    A NumPy stack is taken as it is. A lazy one is computed block by block of scan rows, once, into the smallest
    unsigned integers that hold the counts: most low-dose counts fit in a byte.
    """
    if not is_lazy(views):
        counts = views.values
        yield counts, checked(counts.sum(axis=0, dtype=np.float64))
        return
    with tempfile.TemporaryDirectory(prefix="misr-") as folder:
        rows = next(_row_blocks(views)).stop
        store = _Compact(views.shape, views.dtype, folder, HELD_BYTES if largest is None else largest, rows=rows)
        per_position = np.zeros(views.shape[1:])
        for rows, block in _computed_blocks(views):
            per_position[rows] = block.sum(axis=0, dtype=np.float64)
            store.put(rows, block)
            del block  # before the next two are there: at 512 positions each has 100 MiB
        yield store.array, checked(per_position)


def computed_views(views: xr.DataArray) -> xr.DataArray:
    """The same views in memory, in the smallest unsigned integers if they were lazy ones."""
    if not is_lazy(views):
        return views
    with held_stack(views, largest=math.inf) as (stack, _):
        return views.copy(data=stack)


class _Compact:
    """A growing-in-width store of counts: NumPy, or a compressed zarr array in a folder if it would be large."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, folder: str, largest: float, *, rows: int = 64) -> None:
        self.folder, self.largest, self.generation, self.rows = folder, largest, 0, rows
        whole = dtype.kind == "u" or dtype.kind == "i"
        self.array = self._make(shape, np.dtype(np.uint8) if whole else dtype)

    def put(self, rows: slice, block: np.ndarray) -> None:
        """Store the views' counts at some scan rows, in wider integers if they need it."""
        if block.dtype.kind == "i" and block.size and block.min() < 0:
            raise ValueError(f"the views hold negative counts (down to {block.min()}): clip at 0 first")
        if self.array.dtype.kind == "u" and block.size and block.max() > np.iinfo(self.array.dtype).max:
            self._widen(np.min_scalar_type(int(block.max())))
        self.array[:, rows] = block.astype(self.array.dtype)

    def _widen(self, dtype: np.dtype) -> None:
        old = self.array
        self.array = self._make(old.shape, dtype)
        for first in range(0, old.shape[0], _VIEWS_PER_CHUNK):
            part = slice(first, first + _VIEWS_PER_CHUNK)
            self.array[part] = old[part]

    def _make(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        if np.prod(shape) * dtype.itemsize <= self.largest:
            return np.zeros(shape, dtype)
        import zarr

        self.generation += 1
        # the rows that come together: a chunk that is filled in parts is unpacked and packed again each time
        chunks = (min(_VIEWS_PER_CHUNK, shape[0]), min(self.rows, shape[1]), shape[2])
        path = f"{self.folder}/{self.generation}.zarr"
        quick = zarr.codecs.BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")
        return zarr.create_array(path, shape=shape, dtype=dtype, chunks=chunks, compressors=quick)


def _computed_blocks(views: xr.DataArray) -> Iterator[tuple[slice, np.ndarray]]:
    """The views' counts by spans of scan rows, in order; the next spans are read and unpacked meanwhile."""

    def computed(rows: slice) -> tuple[slice, np.ndarray]:
        return rows, np.asarray(views.isel(scan_y=rows).data.compute())

    spans = list(_row_blocks(views))
    largest = max((rows.stop - rows.start for rows in spans), default=0) * views[:, 0].nbytes
    ahead = _AHEAD if largest <= _AHEAD_BYTES else 1
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[tuple[slice, np.ndarray]]] = deque()
        for rows in spans:
            if len(waiting) == ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(computed, rows))
        while waiting:
            yield waiting.popleft().result()


def _row_blocks(views: xr.DataArray) -> Iterator[slice]:
    """Spans of scan rows as they are chunked."""
    first = 0
    for size in views.chunksizes["scan_y"]:
        yield slice(first, first + size)
        first += size


def checked(per_position: np.ndarray) -> np.ndarray:
    """Electrons of each scan position, if they are that."""
    total = per_position.sum()
    if not np.isfinite(total):
        raise ValueError("the views hold NaN or infinite counts: mask dead pixels of the cube first")
    if total <= 0:
        raise ValueError("the views hold no electrons: check the bright-field disk, or whether the beam was on")
    return per_position


def lost_positions(per_position: np.ndarray) -> np.ndarray:
    """Scan positions whose electrons are far too few or too many (blanked beam, lost frames, a spark): left out."""
    usual = float(np.median(per_position))
    far = (per_position < _LOST * usual) | (per_position > usual / _LOST)
    lost = far & (np.abs(per_position - usual) > _LOST_SIGMA * np.sqrt(np.maximum(usual, per_position)))
    if lost.any():
        rows = ", ".join(map(str, np.flatnonzero(lost.any(axis=1))[:8]))
        warnings.warn(
            f"{int(lost.sum())} of {lost.size} scan positions hold under a fifth or over five times the usual "
            f"electrons (scan rows {rows}): they are left out. Was the beam blanked, or were frames lost?",
            UserWarning,
            stacklevel=4,
        )
    return np.asarray(lost)
