"""Where the bright-field disk lies, how large and how round it is, from the mean diffraction pattern."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import xarray as xr

from misr._disk import Disk, find_disk
from misr._provenance import append_history
from misr.cube import detector_step, validate_cube

__all__ = ["bright_field_disk", "mean_pattern"]

_LOG = logging.getLogger(__name__)
_ROWS_READ = 32  # scan rows: enough electrons to find a disk, and a small part of a large file
_BLOCK = 8  # scan rows
_RADIUS_TOLERANCE = 0.05
_RATIO_TOLERANCE = 1.05
_SIGMAS = 3.0  # a warning wants the deviation to be this sure


def rows_read(cube: xr.DataArray) -> slice:
    """At most 63 evenly spread scan rows: what stands for the whole scan, lazy or not."""
    every = max(1, cube.sizes["scan_y"] // _ROWS_READ)
    return slice(every // 2, None, every)


def blocks_read(cube: xr.DataArray) -> np.ndarray:
    """Scan rows of a few evenly spread blocks of 8: files are chunked by rows, and a chunk is read whole."""
    rows = np.arange(cube.sizes["scan_y"])
    if rows.size <= _ROWS_READ:
        return rows
    blocks = np.linspace(0, -(-rows.size // _BLOCK) - 1, _ROWS_READ // _BLOCK).round().astype(int)
    return np.asarray(rows[np.isin(rows // _BLOCK, blocks)])


def mean_pattern(cube: xr.DataArray) -> xr.DataArray:
    """Mean diffraction pattern, over evenly spread blocks of scan rows, or all of a small scan (NumPy and dask alike).

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
    cube = cube.isel(scan_y=blocks_read(cube))
    return cube.mean(("scan_y", "scan_x"), dtype=float, keep_attrs=True).compute()


def bright_field_disk(cube: xr.DataArray) -> xr.Dataset:
    """Find the bright-field disk in the mean diffraction pattern.

    A threshold finds it, a fit to its edge measures it: a plateau and a background joined by an error function along
    a slightly elliptic edge, close to the maximum of the Poisson likelihood, so that about one electron per pattern in
    256 patterns is enough. Single hot pixels are left out.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, NumPy or dask; of a large scan, evenly spread blocks of rows are read (see `mean_pattern`).
        ``attrs["semiangle_mrad"]`` is checked against the disk when there, and estimated when not.

    Returns
    -------
    xarray.Dataset
        ``center_y``, ``center_x``, ``radius`` (mrad, in the cube's detector coordinates; of an ellipse the geometric
        mean of its semi-axes), ``ratio`` (major over minor axis, at least 1), ``angle`` (of the major axis, rad,
        ``atan2(y, x)`` in the detector's frame; means nothing for a ratio that is 1 within its error),
        ``radius_stderr``, ``ratio_stderr``, ``edge_width`` (mrad, standard deviation of the error function; more than
        a pixel: a disk that moves over the scan, see `measure_descan`), and ``mask`` with dims ``("det_y", "det_x")``:
        the pixels within ``semiangle_mrad`` of the centre. ``attrs["semiangle_mrad"]`` is the cube's own or, if it has
        none, the radius; ``attrs["semiangle_source"]`` says which: "given" or "estimated".

    Raises
    ------
    ValueError
        If the cube is not valid, no disk is found, or the detector's edge cuts it.

    Warns
    -----
    UserWarning
        If the measured radius differs by more than 5 % from ``semiangle_mrad``, or the axes by more than 5 %, by
        three standard errors beyond that.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 6
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (4, 4, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5)
    >>> found = bright_field_disk(cube)
    >>> round(float(found.radius)), int(found["mask"].sum()) == disk.sum(), found.attrs["semiangle_source"]
    (12, True, 'estimated')
    """
    validate_cube(cube, counts=False)
    step = detector_step(cube)
    given = cube.attrs.get("semiangle_mrad")
    pattern = mean_pattern(cube)
    n_patterns = len(blocks_read(cube)) * cube.sizes["scan_x"]
    disk = find_disk(pattern.values * n_patterns, step, None if given is None else float(given))
    if given is None:
        _LOG.info("semiangle_mrad not given, estimated: %.4g ± %.1g mrad", disk.radius, disk.radius_stderr)
    semiangle = disk.radius if given is None else float(given)
    _warn_of_shape(disk, semiangle)
    center_y, center_x = float(cube.det_y[0]) + disk.center_y, float(cube.det_x[0]) + disk.center_x
    check_inside(cube, (center_y, center_x), semiangle)
    mask = np.hypot(cube.det_y - center_y, cube.det_x - center_x) <= semiangle
    mrad, one, rad = {"units": "mrad"}, {"units": "1"}, {"units": "rad"}
    return xr.Dataset(
        {
            "center_y": ((), center_y, mrad),
            "center_x": ((), center_x, mrad),
            "radius": ((), disk.radius, mrad),
            "ratio": ((), disk.ratio, one),
            "angle": ((), disk.angle, rad),
            "radius_stderr": ((), disk.radius_stderr, mrad),
            "ratio_stderr": ((), disk.ratio_stderr, one),
            "edge_width": ((), disk.edge_width, mrad),
            "mask": (("det_y", "det_x"), mask.values),
        },
        coords={"det_y": cube.det_y, "det_x": cube.det_x},
        attrs={
            "semiangle_mrad": semiangle,
            "semiangle_source": "estimated" if given is None else "given",
            "history": append_history(cube.attrs, "bright_field_disk"),
        },
    )


def _warn_of_shape(disk: Disk, semiangle: float) -> None:
    if abs(disk.radius - semiangle) - _SIGMAS * disk.radius_stderr > _RADIUS_TOLERANCE * semiangle:
        warnings.warn(
            f"the bright-field disk measures {disk.radius:.3g} mrad but semiangle_mrad={semiangle:.3g}: check "
            "semiangle_mrad and det_step_mrad",
            UserWarning,
            stacklevel=3,
        )
    if disk.ratio - _SIGMAS * disk.ratio_stderr > _RATIO_TOLERANCE:
        warnings.warn(
            f"the bright-field disk is an ellipse: its axes differ by a factor {disk.ratio:.3f} ± "
            f"{disk.ratio_stderr:.2g}, the long one at {np.degrees(disk.angle):.0f}° from det_x. Check det_step_mrad "
            "along y and x, misr.measure_descan (a disk that moves looks long), and the projector's elliptical "
            "distortion; it is taken as round",
            UserWarning,
            stacklevel=3,
        )


def check_inside(cube: xr.DataArray, center: tuple[float, float], semiangle: float) -> None:
    """Complain if the detector's edge cuts a disk by more than a pixel."""
    for name, middle, step in zip(("det_y", "det_x"), center, detector_step(cube), strict=True):
        low, high = float(cube[name][0]) - step / 2, float(cube[name][-1]) + step / 2
        room = min(middle - low, high - middle)
        if room < semiangle - step:
            raise ValueError(
                f"the bright-field disk (centre {middle:.3g} mrad, semiangle_mrad={semiangle:g}) is cut by the "
                f"detector's edge in {name} ({room:.3g} mrad of room): crop less or recentre the diffraction"
            )
