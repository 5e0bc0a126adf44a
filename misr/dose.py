"""Electron dose: Poisson counts from expected counts, and binomial thinning of recorded ones.

Thinning keeps every electron with one probability, so the parts are independent Poisson counts again and sum to
the whole (the colouring theorem; Kingman, *Poisson Processes*, 1993, ch. 5). That is what makes half maps honest.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr.cube import is_lazy

__all__ = ["apply_dose", "split_counts", "thin_counts"]

_LARGEST_POISSON = 1e9


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

    result = _draw_rows(cube, draw, rng, dtype)
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
    first = _thin(cube, 0.5, rng)
    second = (cube - first).astype(first.dtype)
    for number, half in enumerate((first, second)):
        half.attrs = _scaled_dose(cube, 0.5)
        half.attrs["history"] = append_history(cube.attrs, "split_counts", half=number, rng=describe_rng(rng))
    return first, second


def _thin(cube: xr.DataArray, fraction: float, rng: Any) -> xr.DataArray:
    if cube.dtype.kind not in "uif":
        raise ValueError(f"counts have dtype {cube.dtype}: expected whole numbers of electrons")
    dtype = cube.dtype if cube.dtype.kind == "u" else np.dtype(np.uint32)

    def draw(row: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return generator.binomial(_whole(row), fraction)

    return _draw_rows(cube, draw, rng, dtype)


def _whole(row: np.ndarray) -> np.ndarray:
    if row.dtype.kind == "f" and not np.array_equal(row, np.rint(row)):
        worst = float(row.flat[int(np.argmax(np.abs(row - np.rint(row))))])
        raise ValueError(
            f"counts are not whole electrons (one is {worst:.4g}): divide by the detector's gain and round, e.g. "
            "np.rint(cube / electrons_per_unit), or draw them from expected counts with misr.apply_dose"
        )
    if row.size and row.min() < 0:
        raise ValueError(f"counts are negative (down to {row.min()}): clip at 0 first")
    return row.astype(np.int64)


def _scaled_dose(cube: xr.DataArray, fraction: float) -> dict[str, Any]:
    attrs = dict(cube.attrs)
    if "dose_e_per_A2" in attrs:
        attrs["dose_e_per_A2"] = float(attrs["dose_e_per_A2"]) * fraction
    return attrs


def _draw_rows(cube: xr.DataArray, draw: Any, rng: Any, dtype: np.dtype) -> xr.DataArray:
    """Apply ``draw(row, generator)`` along the first axis, with a stream per row so that chunks do not matter."""
    generators = np.random.default_rng(rng).spawn(cube.shape[0])

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
