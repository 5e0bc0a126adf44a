"""Electron dose: Poisson counts from expected counts, and binomial thinning of recorded ones.

Thinning keeps every electron with one probability, so the parts are independent Poisson counts again and sum to
the whole (the colouring theorem; Kingman, *Poisson Processes*, 1993, ch. 5). That is what makes half maps honest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr.cube import is_lazy

__all__ = ["apply_dose", "first_half", "halves_in_turn", "row_streams", "split_counts", "thin_counts"]

_LARGEST_POISSON = 1e9
_MOST_BITS = 16  # counts up to this are halved by counting random bits, twenty times faster than binomial draws


def apply_dose(cube: xr.DataArray, dose_e_per_A2: float, *, rng: Any = None) -> xr.DataArray:
    """Electrons counted at a dose, drawn from expected counts.

    Parameters
    ----------
    cube : xarray.DataArray
        Expected (noise-free) counts with ``attrs["dose_e_per_A2"]``, as `simulate_cube` returns. NumPy or dask.
    dose_e_per_A2 : float
        Wanted dose, electrons per Å².
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7). Each scan row has its own stream, so chunking does not change the result.

    Returns
    -------
    xarray.DataArray
        Whole counts (uint16 if they fit and the data are in memory, else uint32), same dims and coordinates,
        ``attrs["dose_e_per_A2"]`` set to the new dose.

    Raises
    ------
    ValueError
        If the dose is not positive, the cube's own dose is unknown, or the counts are already integers (then
        `thin_counts` lowers the dose).

    Examples
    --------
    >>> import numpy as np, misr
    >>> expected = misr.cube_from_array(np.full((8, 8, 4, 4), 0.5), scan_step_A=2, det_step_mrad=8,
    ...                                 energy_eV=3e5, semiangle_mrad=10)
    >>> counted = apply_dose(expected, 100, rng=0)
    >>> counted.dtype.kind, counted.attrs["dose_e_per_A2"]
    ('u', 100.0)
    """
    if not (np.isfinite(dose_e_per_A2) and dose_e_per_A2 > 0):
        raise ValueError(f"dose_e_per_A2={dose_e_per_A2} must be a positive number of electrons per Å²")
    if cube.dtype.kind != "f":
        raise ValueError(
            f"the cube holds counted electrons (dtype {cube.dtype}), not expected counts: lower its dose with "
            "misr.thin_counts(cube, fraction, rng=...)"
        )
    own_dose = cube.attrs.get("dose_e_per_A2")
    if own_dose is None:
        raise ValueError("the cube's own dose is unknown: set cube.attrs['dose_e_per_A2'] (electrons per Å²)")
    factor = float(dose_e_per_A2) / float(own_dose)
    dtype: np.dtype[Any] = np.dtype(np.uint32)
    if not is_lazy(cube):
        largest = float(cube.max()) * factor
        if not largest < _LARGEST_POISSON:
            raise ValueError(f"expected counts reach {largest:.3g} in one pixel: is dose_e_per_A2 of the cube right?")
        dtype = np.dtype(np.uint16 if largest + 10 * np.sqrt(largest) + 20 < 65535 else np.uint32)

    def draw(row: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return generator.poisson(np.maximum(row, 0) * factor)

    result = _draw_rows(cube, draw, row_streams(cube.shape[0], rng), dtype)
    result.attrs = {**cube.attrs, "dose_e_per_A2": float(dose_e_per_A2), "units": "electrons"}
    result.attrs["history"] = append_history(
        cube.attrs, "apply_dose", dose_e_per_A2=dose_e_per_A2, rng=describe_rng(rng)
    )
    return result


def thin_counts(cube: xr.DataArray, fraction: float, *, rng: Any = None) -> xr.DataArray:
    """Keep each electron with probability ``fraction``: the same scan at a lower dose.

    Parameters
    ----------
    cube : xarray.DataArray
        Integer counts: a cube or a stack of views. NumPy or dask.
    fraction : float
        Between 0 and 1.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    xarray.DataArray
        Integer counts; ``dose_e_per_A2`` multiplied by ``fraction``.

    Raises
    ------
    ValueError
        For a fraction outside 0 to 1, or counts that are not whole numbers.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.full((8, 8, 4, 4), 10), scan_step_A=2, det_step_mrad=8,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> bool((thin_counts(cube, 0.1, rng=0) <= cube).all())
    True
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1")
    result = _thin(cube, fraction, rng)
    result.attrs = _scaled_dose(cube, fraction)
    result.attrs["history"] = append_history(cube.attrs, "thin_counts", fraction=fraction, rng=describe_rng(rng))
    return result


def split_counts(cube: xr.DataArray, *, rng: Any = None) -> tuple[xr.DataArray, xr.DataArray]:
    """Two statistically independent halves of the electrons, which sum to the whole.

    Parameters
    ----------
    cube : xarray.DataArray
        Integer counts: a cube or a stack of views. NumPy or dask.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    tuple of xarray.DataArray
        Two cubes of half the dose.

    Raises
    ------
    ValueError
        If counts are not whole numbers.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.full((8, 8, 4, 4), 3), scan_step_A=2, det_step_mrad=8,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> first, second = split_counts(cube, rng=0)
    >>> bool((first + second == cube).all())
    True
    """
    _check_counts(cube)
    streams = row_streams(cube.shape[0], rng)
    first = _draw_rows(cube, _draw_half, streams, _dtype_of(cube))
    return _labelled_half(first, cube, 0, rng), _labelled_half(_rest(cube, first), cube, 1, rng)


def halves_in_turn(cube: xr.DataArray, *, rng: Any = None) -> Iterator[xr.DataArray]:
    """The halves of `split_counts` one after the other, drawn once for each: never both in memory.

    Parameters
    ----------
    cube, rng
        See `split_counts`.

    Yields
    ------
    xarray.DataArray
        The first half, then the second.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.full((8, 8, 4, 4), 3), scan_step_A=2, det_step_mrad=8,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> [bool((half == other).all()) for half, other in zip(halves_in_turn(cube, rng=0), split_counts(cube, rng=0))]
    [True, True]
    """
    _check_counts(cube)
    streams = row_streams(cube.shape[0], rng)

    def draw_rest(row: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return _whole(row) - _draw_half(row, generator)

    for number, draw in enumerate((_draw_half, draw_rest)):
        yield _labelled_half(_draw_rows(cube, draw, streams, _dtype_of(cube)), cube, number, rng)


def _rest(cube: xr.DataArray, first: xr.DataArray) -> xr.DataArray:
    if is_lazy(cube):
        return cube.copy(data=(cube.data - first.data).astype(first.dtype))
    # in the first half's type from the start: integers of 8 bytes would be several times the cube
    second = np.empty(cube.shape, dtype=first.dtype)
    return cube.copy(data=np.subtract(cube.values, first.values, out=second, casting="unsafe"))


def _labelled_half(half: xr.DataArray, cube: xr.DataArray, number: int, rng: Any) -> xr.DataArray:
    half.attrs = half_attrs(cube, number, rng)
    return half


def half_attrs(cube: xr.DataArray, number: int, rng: Any) -> dict[str, Any]:
    """Attrs of one half of the electrons of a cube or of views: half the dose, and the split in the history."""
    history = append_history(cube.attrs, "split_counts", half=number, rng=describe_rng(rng))
    return _scaled_dose(cube, 0.5) | {"history": history}


def row_streams(number: int, rng: Any) -> Sequence[np.random.Generator]:
    """One random stream for each row (or view): what is drawn then does not depend on how the data are chunked.

    Parameters
    ----------
    number : int
        Length of the first axis.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    sequence of numpy.random.Generator
        One for each.
    """
    return np.random.default_rng(rng).spawn(number)


def first_half(block: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:
    """The first half of some rows (or views): each electron with probability ½, the same however often it is drawn.

    Parameters
    ----------
    block : array
        Whole counts.
    streams : sequence of numpy.random.Generator
        Those of these rows, from `row_streams`; they are left as they are.

    Returns
    -------
    numpy.ndarray
        Counts of the block's dtype if that is unsigned, else uint32; the second half is what is left.

    Raises
    ------
    ValueError
        If counts are not whole numbers.

    Examples
    --------
    >>> block = np.full((3, 8), 4)
    >>> half = first_half(block, row_streams(3, 0))
    >>> bool((half == first_half(block, row_streams(3, 0))).all()), bool((half <= block).all())
    (True, True)
    """
    dtype = block.dtype if block.dtype.kind == "u" else np.dtype(np.uint32)
    result = np.empty(block.shape, dtype=dtype)
    for index, row in enumerate(block):
        result[index] = _draw_half(row, copy.deepcopy(streams[index]))
    return result


def _draw_half(row: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Binomial draws with probability ½: how many of n random bits are set."""
    counts = _whole(row)
    bits = generator.integers(0, 1 << _MOST_BITS, size=counts.shape, dtype=np.uint16)
    small = np.minimum(counts, _MOST_BITS)
    result = _bits_set()[bits & _lowest_bits()[small]]
    many = counts > _MOST_BITS
    if many.any():
        result = result.astype(np.int64)
        result[many] = generator.binomial(counts[many].astype(np.int64), 0.5)
    return result


@cache
def _bits_set() -> np.ndarray:
    numbers = np.arange(1 << _MOST_BITS, dtype=np.uint16)
    return np.unpackbits(numbers.view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1, dtype=np.uint8)


@cache
def _lowest_bits() -> np.ndarray:
    return ((1 << np.arange(_MOST_BITS + 1)) - 1).astype(np.uint16)


def _thin(cube: xr.DataArray, fraction: float, rng: Any) -> xr.DataArray:
    _check_counts(cube)

    def draw(row: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return generator.binomial(_whole(row).astype(np.int64), fraction)

    return _draw_rows(cube, draw, row_streams(cube.shape[0], rng), _dtype_of(cube))


def _check_counts(cube: xr.DataArray) -> None:
    if cube.dtype.kind not in "uif":
        raise ValueError(f"counts have dtype {cube.dtype}: expected whole numbers of electrons")


def _dtype_of(cube: xr.DataArray) -> np.dtype[Any]:
    return cube.dtype if cube.dtype.kind == "u" else np.dtype(np.uint32)


def _whole(row: np.ndarray) -> np.ndarray:
    if row.dtype.kind == "f" and not np.array_equal(row, np.rint(row)):
        worst = float(row.flat[int(np.argmax(np.abs(row - np.rint(row))))])
        raise ValueError(
            f"counts are not whole electrons (one is {worst:.4g}): divide by the detector's gain and round, e.g. "
            "np.rint(cube / electrons_per_unit), or draw them from expected counts with misr.apply_dose"
        )
    if row.size and row.min() < 0:
        raise ValueError(f"counts are negative (down to {row.min()}): clip at 0 first")
    return row if row.dtype.kind in "ui" else row.astype(np.int64)


def _scaled_dose(cube: xr.DataArray, fraction: float) -> dict[str, Any]:
    attrs = dict(cube.attrs)
    if "dose_e_per_A2" in attrs:
        attrs["dose_e_per_A2"] = float(attrs["dose_e_per_A2"]) * fraction
    return attrs


def _draw_rows(cube: xr.DataArray, draw: Any, generators: Sequence[Any], dtype: np.dtype) -> xr.DataArray:
    """Apply ``draw(row, generator)`` along the first axis, with a stream per row so that chunks do not matter."""

    def draw_block(block: np.ndarray, first: int = 0) -> np.ndarray:
        result = np.empty(block.shape, dtype=dtype)
        for index, row in enumerate(block):
            # a fresh copy of the stream: a dask block may be computed more than once and must not change
            stream = copy.deepcopy(generators[first + index])
            result[index] = draw(row, stream)
        return result

    if not is_lazy(cube):
        return cube.copy(data=draw_block(np.asarray(cube.values)))
    rows_whole = cube.chunk(dict.fromkeys(cube.dims[1:], -1)).data

    def draw_chunk(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        return draw_block(block, block_info[0]["array-location"][0][0])

    drawn = rows_whole.map_blocks(draw_chunk, dtype=dtype, meta=np.empty((0,) * cube.ndim, dtype=dtype))
    return cube.copy(data=drawn)
