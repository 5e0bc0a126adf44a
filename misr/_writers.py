"""Files written beside their target and then put in its place, block by block for dask data."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr._readers import missing_chunks
from misr._recording import plain
from misr._stored import is_zarr_folder, zarr_store

_CHUNK_BYTES = 2**21
_BLOCK_BYTES = 2**24
_MARK = "misr_file"  # a file with it has all its chunks, or is broken
_ABOUT_STORAGE = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_ARRAY_DIMENSIONS")


def file_kind(path: Path) -> str:
    """``"nc"``, ``"zarr"``, ``"zarr.zip"``, or a ValueError for another extension."""
    name = path.name.lower()
    for kind in ("zarr.zip", "nc", "zarr"):
        if name.endswith("." + kind) and len(name) > len(kind) + 1:
            return kind
    raise ValueError(f"cannot tell the format of {path.name!r}: end its name in .nc, .zarr or .zarr.zip")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path of the same name, in a folder beside the target; what lies there replaces the target.

    If the block raises, the target stays as it was. The temporary folder goes away in any case.
    """
    path = path.resolve()  # a link's target is replaced, not the link
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: make it first")
    if path.is_dir() and not is_zarr_folder(path):
        raise FileExistsError(f"{path} is a folder, and not one of zarr's: it will not be replaced; give another name")
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield folder / path.name
        _put(folder / path.name, path, aside=folder / "old")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(new: Path, path: Path, *, aside: Path) -> None:
    if not (new.is_dir() or path.is_dir()):
        os.replace(new, path)
        return
    had_one = path.exists()
    if had_one:  # a folder cannot be replaced in one step: the old one goes aside, and back if the new one fails
        os.replace(path, aside)
    try:
        os.replace(new, path)
    except OSError:
        if had_one:
            os.replace(aside, path)
        raise


def write_dataset(dataset: xr.Dataset, path: Path) -> None:
    """Write, then put in place: netCDF (.nc), a zarr folder (.zarr) or a zipped one (.zarr.zip)."""
    kind = file_kind(path)
    tidy = _with_plain_attrs(dataset).drop_encoding()
    tidy.attrs[_MARK] = 1
    chunks = {name: storage_chunks(variable.shape, variable.dtype) for name, variable in tidy.variables.items()}
    for name, variable in list(tidy.variables.items()):
        if variable.chunks is not None:
            tidy[name] = tidy[name].chunk(_blocks(variable, chunks[name]))
    with replacing(path) as temporary:
        if kind == "nc":
            _write_netcdf(tidy, temporary, chunks)
        elif kind == "zarr":
            _write_zarr(tidy, temporary, chunks)
        else:
            folder = temporary.with_name("store.zarr")
            _write_zarr(tidy, folder, chunks)
            _zip(folder, temporary)


def _write_netcdf(dataset: xr.Dataset, path: Path, chunks: dict[Any, tuple[int, ...]]) -> None:
    encoding: dict[Any, dict[str, Any]] = {}
    for name, variable in dataset.variables.items():
        encoding[name] = {"_FillValue": None} if variable.dtype.kind in "iufc" else {}
        if variable.ndim and variable.size and variable.dtype.kind in "iufcb":
            # shuffle and deflate: what every HDF5 library can read; counts at low dose shrink tenfold
            encoding[name] |= {"zlib": True, "complevel": 1, "shuffle": True, "chunksizes": chunks[name]}
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)


def _write_zarr(dataset: xr.Dataset, path: Path, chunks: dict[Any, tuple[int, ...]]) -> None:
    from numcodecs import Blosc

    encoding: dict[Any, dict[str, Any]] = {}
    for name, variable in dataset.variables.items():
        if variable.ndim and variable.size and variable.dtype.kind in "iufcb":
            codec = Blosc(cname="zstd", clevel=3, shuffle=Blosc.BITSHUFFLE)
            encoding[name] = {"chunks": chunks[name], "compressors": (codec,)}
    # format 2: format 3 has no settled string type yet. Empty chunks are written, so that an absent one is a fault.
    dataset.to_zarr(path, mode="w", encoding=encoding, zarr_format=2, consolidated=False, write_empty_chunks=True)


def _zip(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_STORED, allowZip64=True) as archive:
        for member in sorted(folder.rglob("*")):
            if member.is_file():
                archive.write(member, member.relative_to(folder).as_posix())


def storage_chunks(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Chunks of about 2 MB: last axes whole as far as that goes, so whole patterns for a cube, halving the first.

    Parameters
    ----------
    shape : tuple of int
        Of the array.
    dtype : numpy.dtype
        Its type.

    Returns
    -------
    tuple of int
        Chunk shape, at least 1 along each axis.

    Examples
    --------
    >>> storage_chunks((256, 256, 128, 128), np.dtype("u2"))
    (8, 8, 128, 128)
    """
    chunk = [max(1, size) for size in shape]
    scan = max(1, len(shape) - 2)
    while math.prod(chunk) * dtype.itemsize > _CHUNK_BYTES:
        # scan axes first and evenly; a pattern is cut only when it is larger than a chunk by itself
        places = range(scan) if max(chunk[:scan]) > 1 else range(len(chunk))
        longest = max(places, key=lambda place: chunk[place])
        chunk[longest] = -(-chunk[longest] // 2)
    return tuple(chunk)


def _blocks(variable: xr.Variable, chunks: tuple[int, ...]) -> dict[Any, int]:
    """Dask blocks made of whole storage chunks, so that no chunk is written twice, of at most about 16 MB."""
    block = list(chunks)
    for place in reversed(range(len(block))):
        room = _BLOCK_BYTES // max(1, math.prod(block) * variable.dtype.itemsize)
        block[place] *= max(1, min(room, -(-variable.shape[place] // block[place])))
    return dict(zip(variable.dims, block, strict=True))


def _with_plain_attrs(dataset: xr.Dataset) -> xr.Dataset:
    tidy = dataset.copy(deep=False)
    tidy.attrs = _plain_attrs(dataset.attrs, "the dataset")
    for name, variable in tidy.variables.items():
        variable.attrs = _plain_attrs(variable.attrs, repr(name))
    return tidy


def _plain_attrs(attrs: Any, where: str) -> dict[str, Any]:
    result = {}
    for name, value in attrs.items():
        if name in _ABOUT_STORAGE:
            raise ValueError(f"attrs[{name!r}] of {where} is a word of the file format: rename or remove it")
        value = plain(value)
        if isinstance(value, bool):
            value = int(value)  # netCDF has no booleans
        listed = value if isinstance(value, list) else [value]
        if not listed or not (
            all(isinstance(item, int | float) for item in listed) or all(isinstance(item, str) for item in listed)
        ):
            raise TypeError(
                f"attrs[{name!r}] of {where} is {value!r}: files hold numbers, strings and lists of either; "
                "leave it out or store it as text, e.g. with json.dumps"
            )
        result[str(name)] = value
    return result


def read_dataset(path: Path) -> xr.Dataset:
    """What `write_dataset` wrote, in memory, with attributes in Python's types."""
    with open_dataset(path) as dataset:
        return dataset.load()


@contextlib.contextmanager
def open_dataset(path: Path, **options: Any) -> Iterator[xr.Dataset]:
    """The dataset in the file, its data still there; closed afterwards."""
    if path.name.lower().endswith(".nc"):
        with xr.open_dataset(path, engine="h5netcdf", **options) as dataset:
            yield _python_attrs(dataset)
        return
    zarr_options: dict[str, Any] = {"engine": "zarr", "consolidated": False, "chunks": None, **options}
    with zarr_store(path) as store, xr.open_dataset(store, **zarr_options) as dataset:
        if _MARK in dataset.attrs:
            _refuse_missing_chunks(dataset, path)
        yield _python_attrs(dataset)


def _refuse_missing_chunks(dataset: xr.Dataset, path: Path) -> None:
    for name in dataset.variables:
        missing, total = missing_chunks(path, str(name))
        if missing:
            raise ValueError(
                f"{path} is incomplete: {missing} of {total} chunks of {name!r} are not there (an interrupted copy?); "
                "copy it again"
            )


def _python_attrs(dataset: xr.Dataset) -> xr.Dataset:
    dataset.attrs = {name: plain(value) for name, value in dataset.attrs.items() if name != _MARK}
    for variable in dataset.variables.values():
        # what stands for a missing value is zarr's default, not the user's
        variable.attrs = {name: plain(value) for name, value in variable.attrs.items() if name != "_FillValue"}
    return dataset
