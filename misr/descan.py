"""Descan: the diffraction disk that moves over the scan, measured as a smooth surface and taken out in whole pixels."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import xarray as xr

from misr._disk import Disk, fill_pixels, find_disk, hot_pixels
from misr._moving_disk import (
    TERMS,
    Fits,
    Tiles,
    aligned,
    choose_order,
    fit_centres,
    fit_orders,
    follow,
    moments_of,
    moved,
    surface_terms,
    unit_axis,
)
from misr._provenance import append_history
from misr.bright_field import check_inside, rows_read
from misr.cube import CUBE_DIMS, detector_step, is_lazy, validate_cube

__all__ = ["correct_descan", "measure_descan"]

_TILES = 12  # along each axis of the scan: plenty for a surface of order 2
_TILE_MEMORY = 128e6  # bytes
_WINDOWS = ((1.3, 2.0), (1.15, 1.0))  # of the radius, and pixels on top: coarse, then tight


def measure_descan(cube: xr.DataArray, *, order: Literal["auto", 0, 1, 2] = "auto") -> xr.Dataset:
    """Measure how the bright-field disk moves over the scan.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, NumPy or dask. At most 63 evenly spread scan rows are read, once, and kept as at most 12 × 12
        summed patterns (128 MB).
    order : {"auto", 0, 1, 2}
        Order of the surface; "auto" takes the highest that the counts support (see Notes).

    Returns
    -------
    xarray.Dataset
        ``det_y``, ``det_x``: the disk's displacement from its mean place, mrad, dims ``("scan_y", "scan_x")``;
        ``det_y_stderr``, ``det_x_stderr``: the largest standard error of that displacement in the scan (for order 0 of
        the plane that was not found); ``center_y``, ``center_x``, ``radius``: the disk at its mean place, mrad.
        ``attrs["order"]``, and ``attrs["range_mrad"]``: the longest displacement.

    Raises
    ------
    ValueError
        If the cube is not valid, there is no disk, or ``order`` is none of these.

    Notes
    -----
    The surface is where the centre of mass within a round window, a bit larger than the disk and moving with the
    surface, is the window's own centre, on average over the electrons against each term of the surface. Patterns are
    summed over tiles of the scan, and the terms averaged over the same positions, so that no pattern needs to hold
    enough electrons for a centre of its own. A window that moves with the disk sees all of it and as much background on
    either side, so neither pulls; single hot pixels are replaced by their neighbours.

    "auto" is by likelihood ratio (Wilks 1938, Ann. Math. Stat. 9, 60): a higher order stays if noise alone would lower
    ``χ²`` as much once in a thousand scans, and if it moves the disk by a tenth of a pixel somewhere. ``χ²`` counts the
    Poisson noise of the centre of mass (the electrons' variance within the window over their number) or, if that is
    more, the scatter of the tiles about the surface of order 2, as a specimen's structure scatters them too. A
    specimen's own large-scale deflection (a wedge, charging) is no different from descan to this measurement, and
    needs the same correction. What a standard error does not tell: an uneven background that stays while the disk
    moves (it is pulled towards no displacement), and the terms of orders that the counts did not support.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(24) - 11.5
    >>> places = np.linspace(-3, 3, 16)  # pixels of 2 mrad
    >>> disks = np.hypot(k[:, None], k - places[:, None, None]) < 6
    >>> cube = misr.cube_from_array(np.broadcast_to(disks * 9, (16, 16, 24, 24)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5)
    >>> descan = measure_descan(cube)
    >>> descan.attrs["order"], bool(abs(descan.det_x - 2 * places).max() < 0.5), float(abs(descan.det_y).max()) < 0.1
    (1, True, True)
    """
    if isinstance(order, bool) or order not in ("auto", 0, 1, 2):
        raise ValueError(f"order={order!r} must be 'auto', 0, 1 or 2")
    validate_cube(cube, counts=False)
    tiles = _read_tiles(cube)
    semiangle = cube.attrs.get("semiangle_mrad")
    everywhere = _everywhere(cube)
    surface, radius, started = _start(tiles, everywhere, None if semiangle is None else float(semiangle))
    if order == "auto":
        surface, chosen = _grow(tiles, surface, started, everywhere, radius)
    else:
        chosen = int(order)
        surface[TERMS[chosen] :] = 0
    surface = follow(tiles, surface, chosen, _window(tiles, radius, 0))
    surface = follow(tiles, surface, chosen, _window(tiles, radius, 1))
    fits = fit_orders(tiles, surface, _window(tiles, radius, 1))
    return _label(cube, tiles, surface, chosen, fits, everywhere)


def _everywhere(cube: xr.DataArray) -> np.ndarray:
    """The terms at each scan position, less their mean, shape (scan_y, scan_x, 6)."""
    terms = surface_terms(*(unit_axis(cube.sizes[name]) for name in ("scan_y", "scan_x")))
    return terms - terms.mean(axis=(0, 1))


def _read_tiles(cube: xr.DataArray) -> Tiles:
    every = np.arange(cube.sizes["scan_y"])[rows_read(cube)]
    finest = max(3, int(math.sqrt(_TILE_MEMORY / 4 / (cube.sizes["det_y"] * cube.sizes["det_x"]))))
    most = min(_TILES, finest)
    parts = [np.array_split(index, min(most, index.size)) for index in (every, np.arange(cube.sizes["scan_x"]))]
    terms = surface_terms(*(unit_axis(cube.sizes[name]) for name in ("scan_y", "scan_x")))
    means = [terms[np.ix_(rows, columns)].mean(axis=(0, 1)) for rows in parts[0] for columns in parts[1]]
    sizes = [tuple(index.size for index in part) for part in parts]
    counts = _sum_tiles(cube.data[rows_read(cube)], sizes, lazy=is_lazy(cube))
    counts = counts.reshape(-1, *cube.shape[2:])
    total = counts.sum(axis=0, dtype=float)
    if not np.all(np.isfinite(total)) or counts.min() < 0:
        raise ValueError("the summed patterns hold NaN, infinite or negative counts: mask dead pixels first")
    if not total.any():
        raise ValueError("the cube holds no electrons: is the beam on, and are these counts?")
    counts = fill_pixels(counts, hot_pixels(total))
    return Tiles(counts, np.stack(means), np.outer(sizes[0], sizes[1]).ravel().astype(float), detector_step(cube))


def _sum_tiles(data: Any, sizes: list[tuple[int, ...]], *, lazy: bool) -> np.ndarray:
    """Sums over tiles of these sizes along the first two axes, in one pass."""

    def total(tile: np.ndarray) -> np.ndarray:
        return tile.sum(axis=(0, 1), dtype=float, keepdims=True).astype(np.float32)

    if lazy:
        ones = tuple((1,) * len(part) for part in sizes)
        tiles = data.rechunk((*sizes, -1, -1))
        meta = np.empty((0,) * 4, dtype=np.float32)
        return tiles.map_blocks(total, chunks=(*ones, *tiles.chunks[2:]), dtype=np.float32, meta=meta).compute()
    starts = [np.cumsum((0, *part)) for part in sizes]
    result = np.empty((len(sizes[0]), len(sizes[1]), *data.shape[2:]), dtype=np.float32)
    for i, j in np.ndindex(result.shape[:2]):
        result[i, j] = total(data[starts[0][i] : starts[0][i + 1], starts[1][j] : starts[1][j + 1]])[0, 0]
    return result


def _window(tiles: Tiles, radius: float, number: int) -> float:
    factor, pixels = _WINDOWS[number]
    return factor * radius + pixels * max(tiles.step)


def _start(tiles: Tiles, everywhere: np.ndarray, semiangle: float | None) -> tuple[np.ndarray, float, int]:
    """Surface, shape (6, 2), from centres of mass of the whole detector; the disk's radius; the surface's order.

    Nothing follows anything yet, so noise cannot lead it astray; but it sees all the background there is.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(tiles.counts.sum(axis=0, dtype=float), 2.0)
    share = tiles.positions / tiles.positions.sum()
    even = np.quantile(smooth, 0.1) * share[:, None, None]
    counted, _, variance = moments_of(tiles.counts, tiles)
    fits = fit_centres(tiles, *moments_of(tiles.counts - even, tiles)[:2], variance, counted)
    order = min(choose_order(fits, everywhere, tiles.step), 1)
    surface = fits.coefficients[order]
    if semiangle is not None:
        return surface, semiangle, order
    radius = find_disk(aligned(tiles, surface), tiles.step).radius
    surface = follow(tiles, surface, order, _window(tiles, radius, 0))
    return surface, find_disk(aligned(tiles, surface), tiles.step).radius, order


def _grow(
    tiles: Tiles, surface: np.ndarray, order: int, everywhere: np.ndarray, radius: float
) -> tuple[np.ndarray, int]:
    """Raise the order while what windows on the lower one see asks for it.

    Windows that follow a surface of high order can follow noise, and then confirm themselves.
    """
    window = _window(tiles, radius, 0)
    while True:
        surface = follow(tiles, surface, order, window)
        fits = fit_orders(tiles, surface, window)
        chosen = choose_order(fits, everywhere, tiles.step)
        surface = fits.coefficients[chosen]
        if chosen <= order:
            return surface, chosen
        order = chosen


def _label(
    cube: xr.DataArray, tiles: Tiles, surface: np.ndarray, order: int, fits: Fits, everywhere: np.ndarray
) -> xr.Dataset:
    displaced = everywhere @ surface if order else np.zeros((*everywhere.shape[:2], 2))
    shown = everywhere[..., : TERMS[max(order, 1)]]
    variance = np.einsum("yxi,aij,yxj->ayx", shown, fits.covariance[max(order, 1)], shown, optimize=True)
    stderr = np.sqrt(variance.max(axis=(1, 2)))
    disk = _mean_disk(cube, tiles, surface)
    mrad = {"units": "mrad"}
    first = float(cube.det_y[0]), float(cube.det_x[0])
    longest = float(np.hypot(displaced[..., 0], displaced[..., 1]).max())
    return xr.Dataset(
        {
            "det_y": (("scan_y", "scan_x"), displaced[..., 0], mrad),
            "det_x": (("scan_y", "scan_x"), displaced[..., 1], mrad),
            "det_y_stderr": ((), float(stderr[0]), mrad),
            "det_x_stderr": ((), float(stderr[1]), mrad),
            "center_y": ((), first[0] + disk.center_y, mrad),
            "center_x": ((), first[1] + disk.center_x, mrad),
            "radius": ((), disk.radius, mrad),
        },
        coords={"scan_y": cube.scan_y, "scan_x": cube.scan_x},
        attrs={
            "order": order,
            "range_mrad": longest,
            "history": append_history(cube.attrs, "measure_descan", order=order, range_mrad=round(longest, 6)),
        },
    )


def _mean_disk(cube: xr.DataArray, tiles: Tiles, surface: np.ndarray) -> Disk:
    semiangle = cube.attrs.get("semiangle_mrad")
    return find_disk(aligned(tiles, surface), tiles.step, None if semiangle is None else float(semiangle))


def correct_descan(cube: xr.DataArray, descan: xr.Dataset) -> xr.DataArray:
    """Put the bright-field disk of every pattern where it is on average, by shifts of whole pixels.

    Counts stay whole electrons and independent of each other. What remains is at most half a pixel along y and x: a
    slope of the surface becomes a blur of the disk's edge by one pixel, which is what interpolation would cost too.
    Pixels that come in from outside the detector are 0, what leaves it is lost.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, NumPy or dask; a dask cube stays lazy.
    descan : xarray.Dataset
        From `measure_descan`, of this cube or of one over the same scan (say, before the specimen came in).

    Returns
    -------
    xarray.DataArray
        Same dims, coordinates and dtype. The cube itself, untouched, if no shift reaches half a pixel.

    Raises
    ------
    ValueError
        If the cube is not valid, ``descan`` does not belong to its scan, or the detector's edge cuts the disk.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(24) - 11.5
    >>> places = np.linspace(-3, 3, 16)  # pixels of 2 mrad
    >>> disks = np.hypot(k[:, None], k - places[:, None, None]) < 6
    >>> cube = misr.cube_from_array(np.broadcast_to(disks * 9, (16, 16, 24, 24)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5)
    >>> corrected = correct_descan(cube, measure_descan(cube))
    >>> int(corrected.sum()) == int(cube.sum()), correct_descan(corrected, measure_descan(corrected)) is corrected
    (True, True)
    """
    validate_cube(cube, counts=False)
    moves = _whole_pixels(cube, descan)
    if not moves.any():
        return cube
    _check_room(cube, descan)

    def move_block(block: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
        result = np.empty_like(block)
        for index in np.ndindex(block.shape[0]):
            pairs = np.stack((down[index], right[index]), axis=-1)
            for pair in np.unique(pairs, axis=0):
                chosen = (pairs == pair).all(axis=-1)
                result[index][chosen] = moved(block[index][chosen], int(pair[0]), int(pair[1]))
        return result

    if is_lazy(cube):
        cube = cube.chunk(det_y=-1, det_x=-1)
    corrected = xr.apply_ufunc(
        move_block,
        cube,
        *(xr.DataArray(move, dims=CUBE_DIMS[:2]) for move in moves),
        input_core_dims=[["det_y", "det_x"], [], []],
        output_core_dims=[["det_y", "det_x"]],
        dask="parallelized",
        output_dtypes=[cube.dtype],
    )
    note = {name: descan.attrs[name] for name in ("order", "range_mrad") if name in descan.attrs}
    corrected.attrs = {**cube.attrs, "history": append_history(cube.attrs, "correct_descan", **note)}
    return corrected.rename(cube.name)


def _whole_pixels(cube: xr.DataArray, descan: Any) -> np.ndarray:
    wanted = CUBE_DIMS[:2]
    known = isinstance(descan, xr.Dataset) and all(name in descan for name in ("det_y", "det_x"))
    if not known or any(descan[name].dims != wanted for name in ("det_y", "det_x")):
        raise ValueError(
            f"descan must be a Dataset with det_y and det_x (mrad) of dims {wanted}, as misr.measure_descan(cube) gives"
        )
    if descan["det_y"].shape != cube.shape[:2]:
        raise ValueError(
            f"the descan is of a scan of {descan['det_y'].shape} positions, the cube has {cube.shape[:2]}: measure it "
            "with misr.measure_descan(cube), or crop both alike with isel"
        )
    pixels = [descan[name].values / step for name, step in zip(("det_y", "det_x"), detector_step(cube), strict=True)]
    if not np.all(np.isfinite(pixels)):
        raise ValueError("the descan holds NaN or infinite displacements: measure it again with misr.measure_descan")
    return np.rint(pixels).astype(int)


def _check_room(cube: xr.DataArray, descan: xr.Dataset) -> None:
    """The disk must have been on the detector all over the scan, and be so at its mean place."""
    if any(name not in descan for name in ("center_y", "center_x", "radius")):
        return
    radius = float(descan.radius)
    check_inside(cube, (float(descan.center_y), float(descan.center_x)), radius)
    cut = np.zeros(cube.shape[:2], dtype=bool)
    for name, step in zip(("det_y", "det_x"), detector_step(cube), strict=True):
        place = descan[name].values + float(descan[f"center_{name[-1]}"])
        axis = cube[name].values
        cut |= np.minimum(place - axis[0], axis[-1] - place) + step / 2 < radius - step
    if cut.any():
        raise ValueError(
            f"the bright-field disk moves over the detector's edge at {int(cut.sum())} of {cut.size} scan positions: "
            "their electrons are lost, and a shift cannot bring them back. Crop the scan to the positions where the "
            "disk lies on the detector (cube.isel(scan_y=..., scan_x=...)), or record with a smaller camera length"
        )
