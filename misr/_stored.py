"""Arrays that stay in their file: opened anew for each block, so that nothing is locked and nothing goes stale."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

_BLOCK_BYTES = 64 * 2**20
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray")

Stamp = tuple[int, int]


def file_stamp(path: Path) -> Stamp:
    """What changes when a file, or a zarr folder's root, is replaced: modification time and size."""
    marks = [path / name for name in _ZARR_MARKS if (path / name).exists()] if path.is_dir() else []
    status = (marks[0] if marks else path).stat()
    return status.st_mtime_ns, status.st_size


def is_zarr_folder(path: Path) -> bool:
    """Whether a folder is the root of a zarr store."""
    return path.is_dir() and any((path / name).exists() for name in _ZARR_MARKS)


@contextmanager
def zarr_store(path: Path) -> Iterator[Any]:
    """A zarr store over a folder or a zip file, read-only, closed afterwards."""
    import zarr

    if path.is_dir():
        yield zarr.storage.LocalStore(path, read_only=True)
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a whole zip file: copy or download it again")
    store = zarr.storage.ZipStore(path, mode="r")
    try:
        yield store
    finally:
        store.close()


@contextmanager
def hdf5_file(path: Path) -> Iterator[Any]:
    """An HDF5 file, read-only, with the detector makers' compression filters registered."""
    import h5py
    import hdf5plugin  # noqa: F401  (importing it registers the filters)

    with h5py.File(path, "r") as file:
        yield file


@contextmanager
def _opened(path: Path, kind: str, inside: str) -> Iterator[Any]:
    if kind == "npy":
        yield np.load(path, mmap_mode="r", allow_pickle=False)
    elif kind == "hdf5":
        with hdf5_file(path) as file:
            yield file[inside]
    else:
        import zarr

        with zarr_store(path) as store:
            yield zarr.open_array(store, path=inside, mode="r")


@dataclass(frozen=True)
class StoredArray:
    """An array inside a file; indexing reads that part and refuses if the file was replaced meanwhile."""

    path: Path
    kind: Literal["npy", "hdf5", "zarr"]
    inside: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    stamp: Stamp

    @classmethod
    def open(cls, path: Path, kind: Literal["npy", "hdf5", "zarr"], inside: str = "") -> StoredArray:
        """Note shape, type and chunks of the array called ``inside``; read nothing."""
        stamp = file_stamp(path)
        with _opened(path, kind, inside) as array:
            chunks = getattr(array, "chunks", None)
            return cls(path, kind, inside, tuple(array.shape), np.dtype(array.dtype), chunks, stamp)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        if file_stamp(self.path) != self.stamp:
            raise OSError(
                f"{self.path} has changed since it was opened: what was still to be read from it is gone; open it "
                "again with misr.read_cube"
            )
        with _opened(self.path, self.kind, self.inside) as array:
            return np.array(array[key])

    def as_array(self, *, lazy: bool) -> Any:
        """The values: dask (in blocks of whole patterns, about 64 MB) or in memory."""
        if not lazy:
            return self[...]
        import dask.array as da
        from dask.base import tokenize

        return da.from_array(
            self,
            chunks=self._blocks(),
            name=f"{self.path.stem}-{tokenize(str(self.path), self.inside, self.stamp)}",
            meta=np.empty((0,) * self.ndim, dtype=self.dtype),
            inline_array=True,
        )

    def _blocks(self) -> Any:
        """Dask blocks: whole scan rows and patterns where the file's own chunks do not speak against it."""
        from dask.array.core import normalize_chunks

        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        rows = self.chunks[0] if self.chunks else 1
        if rows * row <= 4 * _BLOCK_BYTES:
            whole = max(1, int(_BLOCK_BYTES // max(row * rows, 1))) * rows
            return normalize_chunks((whole, *self.shape[1:]), self.shape)
        wanted: Any = ("auto",) * self.ndim
        if self.chunks is None or all(part == size for part, size in zip(self.chunks[2:], self.shape[2:], strict=True)):
            wanted = ("auto", "auto", *self.shape[2:])
        return normalize_chunks(
            wanted, self.shape, limit=_BLOCK_BYTES, dtype=self.dtype, previous_chunks=self.chunks or None
        )
