"""Calibration from the data themselves: where the bright-field disk lies."""

from __future__ import annotations

import math
import warnings

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.cube import detector_step, validate_cube

__all__ = ["bright_field_disk", "mean_pattern"]

_ROWS_READ = 32  # scan rows: enough electrons to find a disk, and a small part of a large file
_RADIUS_TOLERANCE = 0.1


def mean_pattern(cube: xr.DataArray) -> xr.DataArray:
    """Mean diffraction pattern, over at most 63 evenly spread scan rows (the same for NumPy and dask).

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube.

    Returns
    -------
    xarray.DataArray
        Dims ``("det_y", "det_x")``, electrons per probe position.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.ones((4, 4, 8, 8)), scan_step_A=2, det_step_mrad=4, energy_eV=3e5,
    ...                             semiangle_mrad=10)
    >>> float(mean_pattern(cube).sum())
    64.0
    """
    every = max(1, cube.sizes["scan_y"] // _ROWS_READ)
    cube = cube.isel(scan_y=slice(every // 2, None, every))
    return cube.mean(("scan_y", "scan_x"), dtype=float, keep_attrs=True).compute()


def bright_field_disk(cube: xr.DataArray) -> xr.Dataset:
    """Find the bright-field disk in the mean diffraction pattern.

    The disk is the largest connected region above half of the plateau, where the plateau is the median of as many
    brightest pixels as the semi-angle says the disk has.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, NumPy or dask; of a large scan, evenly spread rows are read (see `mean_pattern`).

    Returns
    -------
    xarray.Dataset
        ``center_y``, ``center_x``, ``radius`` (mrad, in the cube's detector coordinates) and ``mask`` with dims
        ``("det_y", "det_x")``: the pixels within ``semiangle_mrad`` of the centre.

    Raises
    ------
    ValueError
        If the cube is not valid, no disk is found, or the detector's edge cuts it.

    Warns
    -----
    UserWarning
        If the measured radius differs by more than 10 % from ``semiangle_mrad``.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (4, 4, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> found = bright_field_disk(cube)
    >>> round(float(found.radius), 1), int(found["mask"].sum()) == disk.sum()
    (10.1, True)
    """
    validate_cube(cube, counts=False)
    pattern = mean_pattern(cube)
    step_y, step_x = detector_step(cube)
    semiangle = float(cube.attrs["semiangle_mrad"])
    region = _disk_region(pattern.values, math.pi * semiangle**2 / (step_y * step_x))
    where_y, where_x = np.nonzero(region)
    center_y = float(cube.det_y[0]) + step_y * float(where_y.mean())
    center_x = float(cube.det_x[0]) + step_x * float(where_x.mean())
    radius = math.sqrt(region.sum() * step_y * step_x / math.pi)
    if abs(radius / semiangle - 1) > _RADIUS_TOLERANCE:
        warnings.warn(
            f"the bright-field disk measures {radius:.3g} mrad but semiangle_mrad={semiangle:.3g}: check "
            "semiangle_mrad and det_step_mrad",
            UserWarning,
            stacklevel=2,
        )
    away_y, away_x = cube.det_y - center_y, cube.det_x - center_x
    mask = np.hypot(away_y, away_x) <= semiangle
    _check_inside(cube, center_y, center_x, semiangle, (step_y, step_x))
    mrad = {"units": "mrad"}
    return xr.Dataset(
        {
            "center_y": ((), center_y, mrad),
            "center_x": ((), center_x, mrad),
            "radius": ((), radius, mrad),
            "mask": (("det_y", "det_x"), mask.values),
        },
        coords={"det_y": cube.det_y, "det_x": cube.det_x},
        attrs={"semiangle_mrad": semiangle, "history": append_history(cube.attrs, "bright_field_disk")},
    )


def _disk_region(pattern: np.ndarray, n_expected: float) -> np.ndarray:
    from scipy import ndimage

    if not np.all(np.isfinite(pattern)) or pattern.min() < 0:
        raise ValueError("the mean pattern holds NaN, infinite or negative counts: mask dead pixels first")
    smooth = ndimage.gaussian_filter(pattern, 1.0)  # low counts: single pixels cross the threshold by chance
    brightest = np.sort(smooth, axis=None)[::-1][: max(1, round(n_expected))]
    plateau = float(np.median(brightest))
    labels, n_regions = ndimage.label(smooth > plateau / 2)
    if plateau <= 0 or n_regions == 0:
        raise ValueError("no bright-field disk: the mean pattern is empty. Are these counts, and is the beam on?")
    sizes = np.bincount(labels.ravel())[1:]
    region = labels == 1 + int(np.argmax(sizes))
    if not 0.5 * n_expected < region.sum() < 2 * n_expected:
        raise ValueError(
            f"no bright-field disk of semiangle_mrad found: the bright region has {int(region.sum())} pixels, "
            f"expected about {n_expected:.0f}. Check semiangle_mrad and det_step_mrad"
        )
    return region


def _check_inside(
    cube: xr.DataArray, center_y: float, center_x: float, semiangle: float, steps: tuple[float, float]
) -> None:
    for name, center, step in (("det_y", center_y, steps[0]), ("det_x", center_x, steps[1])):
        low, high = float(cube[name][0]) - step / 2, float(cube[name][-1]) + step / 2
        room = min(center - low, high - center)
        if room < semiangle - step:
            raise ValueError(
                f"the bright-field disk (centre {center:.3g} mrad, semiangle_mrad={semiangle:g}) is cut by the "
                f"detector's edge in {name} ({room:.3g} mrad of room): crop less or recentre the diffraction"
            )
