"""The cube that `fusion_large` measures with: a periodic phase object of known phase, in counts of any number.

One period is simulated, 32 × 32 probe positions of 2 Å on 128 × 128 detector pixels (300 kV, 10 mrad: a bright-field
disk of 32.5 pixels' radius; 1500 Å of C10), and repeated over the scan. The Poisson counts differ everywhere.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["DETECTOR", "resolution", "write_cube"]

DETECTOR = 128
_TILE = 32  # probe positions in a period, each way: 64 Å, so that a detector pixel is one frequency of it
_STEP_A, _PER_STEP = 2.0, 5  # object pixels of 0.4 Å: under λ/4α
_C10, _SEED = 1500.0, 41
_ROWS = 8  # scan rows made at once
_RING_WIDTH = 0.05  # 1/Å: single rings of one period hold few frequencies


def specimen() -> tuple[xr.DataArray, xr.DataArray]:
    """Expected counts of one period at 1 e/Å², and the phase that a continuous detector would see."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from phase_object import as_sampled, atoms_phase, phase_object_cube

    pixel = _STEP_A / _PER_STEP
    phase = atoms_phase((_TILE * _PER_STEP,) * 2, pixel, rng=_SEED)
    every = (_PER_STEP, _PER_STEP)
    cube, truth = phase_object_cube(phase, pixel, every=every, aberrations={"C10": _C10}, det_bin=1)
    middle = slice((cube.sizes["det_y"] - DETECTOR) // 2, (cube.sizes["det_y"] + DETECTOR) // 2)
    return cube.isel(det_y=middle, det_x=middle), as_sampled(truth, _C10)


def write_cube(path: Path, *, scan: int, dose: float, period: bool) -> None:
    """Write a cube of counts, block by block: zarr as misr saves it, or HDF5 as py4DSTEM does.

    Parameters
    ----------
    path : Path
        ``.zarr``, or else HDF5.
    scan : int
        Probe positions each way.
    dose : float
        e/Å².
    period : bool
        Whether the file says that the scan wraps round, which it does for multiples of 32 positions.

    Raises
    ------
    ValueError
        If it is to wrap round and does not.
    """
    import misr

    if period and scan % _TILE:
        raise ValueError(f"a scan of {scan} positions does not wrap round: give a multiple of {_TILE}, or no --period")
    tile, _ = specimen()
    attrs = {name: tile.attrs[name] for name in ("energy_eV", "semiangle_mrad", "rotation_deg", "C10_A")}
    attrs |= {"dose_e_per_A2": dose} | ({"period_A": [scan * _STEP_A] * 2} if period else {})
    tile = tile * np.float32(dose)
    if path.suffix == ".zarr":
        misr.save_cube(_lazy_cube(tile, scan).assign_attrs(attrs), path)
    else:
        _write_emd(path, tile.values, scan, attrs)


def _draw_rows(tile: np.ndarray, rows: range, scan: int) -> np.ndarray:
    """Poisson counts of whole scan rows, each with a stream of its own."""
    drawn = np.empty((len(rows), scan, *tile.shape[2:]), dtype=np.uint16)
    for place, row in enumerate(rows):
        rng = np.random.default_rng([_SEED, row + 1])
        for first in range(0, scan, _TILE):
            drawn[place, first : first + _TILE] = rng.poisson(tile[row % _TILE, : scan - first])
    return drawn


def _lazy_cube(tile: xr.DataArray, scan: int) -> xr.DataArray:
    import dask.array as da

    values = tile.values

    def block(block_info: Any) -> np.ndarray:
        first, last = block_info[None]["array-location"][0]
        return _draw_rows(values, range(first, last), scan)

    rows = [min(_ROWS, scan - first) for first in range(0, scan, _ROWS)]
    chunks = (tuple(rows), (scan,), (DETECTOR,), (DETECTOR,))
    empty = np.empty((0,) * 4, dtype=np.uint16)
    # a name of its own: dask need not hash the expected counts
    counts = da.map_blocks(block, chunks=chunks, dtype=np.uint16, meta=empty, name="drawn")
    coords: dict[str, Any] = {d: (d, _STEP_A * np.arange(scan), {"units": "Å"}) for d in ("scan_y", "scan_x")}
    coords |= {d: tile[d] for d in ("det_y", "det_x")}
    return xr.DataArray(counts, dims=tile.dims, coords=coords, attrs={"units": "electrons"}, name="counts")


def _write_emd(path: Path, tile: np.ndarray, scan: int, attrs: dict[str, Any]) -> None:
    """The tree that py4DSTEM writes: contiguous, not compressed."""
    import h5py

    calibration = {
        "R_pixel_size": _STEP_A,
        "R_pixel_units": b"A",
        "Q_pixel_size": 1 / (_TILE * _STEP_A),
        "Q_pixel_units": b"A^-1",
        "energy": attrs["energy_eV"],
        "convergence_semiangle_mrad": attrs["semiangle_mrad"],
        "QR_rotation_degrees": attrs["rotation_deg"],
        "qx0_mean": DETECTOR / 2,
        "qy0_mean": DETECTOR / 2,
    }
    temporary = path.with_suffix(".part")
    with h5py.File(temporary, "w") as file:
        root = file.create_group("datacube_root")
        root.attrs["emd_group_type"] = "root"
        group = root.create_group("datacube")
        group.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
        data = group.create_dataset("data", (scan, scan, DETECTOR, DETECTOR), np.uint16)
        for first in range(0, scan, _ROWS):
            rows = range(first, min(scan, first + _ROWS))
            data[rows.start : rows.stop] = _draw_rows(tile, rows, scan)
        for name, items in (("calibration", calibration), ("misr", attrs)):
            bundle = root.create_group(f"metadatabundle/{name}")
            for key, value in items.items():
                bundle[key] = value
    os.replace(temporary, path)


def resolution(image: xr.DataArray, *, upsample: int) -> float:
    """Where the FRC of the mean of the image's periods with the truth falls to 0.5, Å.

    Parameters
    ----------
    image : xarray.DataArray
        Fused, dims ``("y", "x")``.
    upsample : int
        Its pixels per scan step.

    Returns
    -------
    float
        Å; the outermost periods are left out if there are others; NaN without a whole one.
    """
    import misr
    from misr.cube import image_from_array

    period, values = _TILE * upsample, image.to_numpy()
    n_y, n_x = (size // period for size in values.shape)
    if min(n_y, n_x) == 0:
        return math.nan
    rim = 1 if min(n_y, n_x) > 2 else 0
    periods = values[: n_y * period, : n_x * period].reshape(n_y, period, n_x, period)
    mean = periods[rim : n_y - rim, :, rim : n_x - rim].mean(axis=(0, 2))
    folded = image_from_array(mean, pixel_A=(_STEP_A / upsample,) * 2)
    truth = misr.phase_on_grid(specimen()[1], like=folded)
    frc = misr.fourier_ring_correlation(folded, truth, ring_width=_RING_WIDTH, window=None)
    return float(misr.frc_resolution(frc, 0.5))
