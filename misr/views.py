"""Views: one virtual bright-field image for each compact group of detector pixels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.aberrations import aberration_attrs, aberrations_of, with_aberrations
from misr.bright_field import bright_field_disk
from misr.cube import detector_step, image_from_array, is_lazy, scan_step, validate_cube
from misr.optics import aberration_gradient, electron_wavelength, rotate

__all__ = ["axial_view", "group_pixels", "synthesize_views"]


def synthesize_views(
    cube: xr.DataArray,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    *,
    n_views: int | None = None,
) -> xr.DataArray:
    """Sub-pixel-shifted views of the specimen: sums of counts over compact groups of bright-field pixels.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, dims ``("scan_y", "scan_x", "det_y", "det_x")``, electrons. NumPy or dask; a dask cube gives
        lazy views, one pass over the data when computed. Without ``attrs["semiangle_mrad"]`` the views get the one
        that `bright_field_disk` estimates.
    aberrations : mapping or Dataset, optional
        Polar coefficients, Å and rad; those in the cube's attrs by default.
    n_views : int, optional
        How many groups the bright-field pixels are gathered in; by default each pixel is a view.

    Returns
    -------
    xarray.DataArray
        Dims ``("view", "scan_y", "scan_x")``, electrons, with coordinates on ``view``: ``det_y, det_x`` (mrad from
        the optic axis, the group's centroid), ``shift_y, shift_x`` (Å, in the scan's frame; NaN when the
        aberrations are not known), ``n_pixels``, and ``pixels`` (the group's flat detector indices).
        The geometric shift is ``∇χ/2π``: view k shows the specimen at ``r + shift``.

    Raises
    ------
    ValueError
        If the cube is not valid, no disk is found, counts are negative or NaN, or ``n_views`` is out of range.
    TypeError
        If ``n_views`` is not a whole number.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (4, 4, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> views = synthesize_views(cube, n_views=7)
    >>> views.sizes["view"], views.det_y.attrs["units"], bool((views.sum("view") == disk.sum() * 9).all())
    (7, 'mrad', True)
    """
    validate_cube(cube, counts=False)
    if aberrations is not None:
        cube = with_aberrations(cube, aberrations)
    disk = bright_field_disk(cube)
    pixels = np.flatnonzero(disk["mask"].values)
    relative_y = (cube.det_y.values - float(disk.center_y))[pixels // cube.sizes["det_x"]]
    relative_x = (cube.det_x.values - float(disk.center_x))[pixels % cube.sizes["det_x"]]
    labels = group_pixels(relative_y, relative_x, n_views)
    views = _sum_groups(cube, pixels, labels)
    views = views.assign_coords(_view_coords(cube, pixels, labels, relative_y, relative_x))
    views.attrs = {
        **cube.attrs,
        "units": "electrons",
        "semiangle_mrad": float(disk.attrs["semiangle_mrad"]),
        "detector_origin_mrad": [
            float(cube[d][0] - disk[c]) for d, c in (("det_y", "center_y"), ("det_x", "center_x"))
        ],
        "detector_step_mrad": list(detector_step(cube)),
        "detector_columns": int(cube.sizes["det_x"]),
        "history": append_history(cube.attrs, "synthesize_views", n_views=views.sizes["view"], **_estimated(disk)),
    }
    return views.rename("views")


def _estimated(disk: xr.Dataset) -> dict[str, float]:
    """The semi-angle, for the history, if it was not the cube's own."""
    estimated = disk.attrs["semiangle_source"] == "estimated"
    return {"semiangle_mrad": round(float(disk.attrs["semiangle_mrad"]), 4)} if estimated else {}


def group_pixels(y: np.ndarray, x: np.ndarray, n_views: int | None) -> np.ndarray:
    """Label of each pixel: itself, or its cell of a centroidal Voronoi tessellation of the disk."""
    if n_views is None or n_views == y.size:
        return np.arange(y.size)
    if isinstance(n_views, bool) or not isinstance(n_views, int | np.integer):
        raise TypeError(f"n_views={n_views!r} must be a whole number, or None for every bright-field pixel")
    if not 1 <= n_views <= y.size:
        raise ValueError(f"n_views={n_views} must lie between 1 and the {y.size} bright-field pixels")
    from scipy.cluster.vq import kmeans2

    # sunflower points: an even, deterministic start (Vogel 1979, Math. Biosci. 44, 179)
    index = np.arange(n_views)
    radius = np.hypot(y, x).max() * np.sqrt((index + 0.5) / n_views)
    angle = index * math.pi * (3 - math.sqrt(5))
    start = np.column_stack((radius * np.sin(angle), radius * np.cos(angle)))
    points = np.column_stack((y, x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # empty clusters: filled below
        _, labels = kmeans2(points, start, iter=30, minit="matrix")
    return _fill_empty(points, labels, n_views)


def _fill_empty(points: np.ndarray, labels: np.ndarray, n_views: int) -> np.ndarray:
    """Give an empty group the pixel furthest from its centroid in the largest group."""
    labels = labels.copy()
    counts = np.bincount(labels, minlength=n_views)
    for empty in np.flatnonzero(counts == 0):
        members = np.flatnonzero(labels == int(np.argmax(np.bincount(labels, minlength=n_views))))
        away = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
        labels[members[int(np.argmax(away))]] = empty
    return labels


def _sum_groups(cube: xr.DataArray, pixels: np.ndarray, labels: np.ndarray) -> xr.DataArray:
    from scipy import sparse

    n_views = int(labels.max()) + 1
    single = n_views == pixels.size
    dtype = cube.dtype if single else np.dtype(np.float32 if cube.dtype.kind == "f" else np.uint32)
    gather = sparse.csr_matrix((np.ones(pixels.size, dtype=dtype), (labels, np.arange(pixels.size))))

    def sum_block(block: np.ndarray) -> np.ndarray:
        result = np.empty((*block.shape[:2], n_views), dtype=dtype)
        # row by row: the copy of the bright-field pixels stays small beside the block
        for row, patterns in zip(result, block, strict=True):
            chosen = patterns.reshape(len(patterns), -1)[:, pixels]
            if chosen.dtype.kind in "if" and chosen.size and not chosen.min() >= 0:
                raise ValueError(
                    "counts are negative or NaN in the bright-field disk: mask dead pixels, subtract less background, "
                    "or clip at 0 (misr.validate_cube says more)"
                )
            row[:] = chosen if single else (gather @ chosen.T.astype(dtype, copy=False)).T
        return result

    if is_lazy(cube):
        cube = cube.chunk(det_y=-1, det_x=-1)
    views = xr.apply_ufunc(
        sum_block,
        cube.drop_vars(["det_y", "det_x"]),
        input_core_dims=[["det_y", "det_x"]],
        output_core_dims=[["view"]],
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": {"view": n_views}},
    )
    return views.transpose("view", "scan_y", "scan_x")


def _view_coords(
    cube: xr.DataArray, pixels: np.ndarray, labels: np.ndarray, y: np.ndarray, x: np.ndarray
) -> dict[str, Any]:
    size = np.bincount(labels)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(labels, weights=values) / size

    shift_y, shift_x = _geometric_shift(cube, y, x)
    order = np.argsort(labels, kind="stable")
    members = np.split(pixels[order], np.cumsum(size)[:-1])
    mrad, angstrom = {"units": "mrad"}, {"units": "Å"}
    return {
        "view": ("view", np.arange(size.size)),
        "det_y": ("view", mean(y), mrad),
        "det_x": ("view", mean(x), mrad),
        "shift_y": ("view", mean(shift_y), angstrom),
        "shift_x": ("view", mean(shift_x), angstrom),
        "n_pixels": ("view", size),
        "pixels": ("view", [" ".join(map(str, group)) for group in members]),
    }


def _geometric_shift(cube: xr.DataArray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    aberrations = aberrations_of(cube)
    if aberrations is None:
        return np.full(y.size, np.nan), np.full(y.size, np.nan)
    wavelength = electron_wavelength(cube.attrs["energy_eV"])
    scan_y, scan_x = rotate(y, x, float(cube.attrs.get("rotation_deg", 0.0)))
    grad_y, grad_x = aberration_gradient(
        scan_y * 1e-3 / wavelength, scan_x * 1e-3 / wavelength, aberrations=aberrations, wavelength=wavelength
    )
    return grad_y / (2 * np.pi), grad_x / (2 * np.pi)


def axial_view(views: xr.DataArray) -> xr.DataArray:
    """The view nearest to the optic axis, as contrast, with the sign of the defocus that makes matter positive.

    Parameters
    ----------
    views : xarray.DataArray
        From `synthesize_views`, electrons.

    Returns
    -------
    xarray.DataArray
        ``counts / mean - 1``, dims ``("y", "x")`` in Å on the scan's own grid, dimensionless.

    Raises
    ------
    ValueError
        If that view holds no electrons.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (4, 4, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> image = axial_view(synthesize_views(cube, n_views=7))
    >>> image.dims, float(abs(image).max())
    (('y', 'x'), 0.0)
    """
    axial = int(np.argmin(np.hypot(views.det_y.values, views.det_x.values)))
    counts = np.asarray(views.isel(view=axial).values, dtype=float)
    mean = float(counts.mean())
    if mean == 0:
        raise ValueError("the axial view holds no electrons: raise the dose, or gather fewer views (n_views)")
    C10 = (aberrations_of(views) or {}).get("C10", 0.0)
    kept = ("energy_eV", "semiangle_mrad", "dose_e_per_A2", "rotation_deg", "period_A")
    attrs = {name: views.attrs[name] for name in kept if name in views.attrs} | aberration_attrs(aberrations_of(views))
    return image_from_array(
        (-1 if C10 < 0 else 1) * (counts / mean - 1),
        pixel_A=scan_step(views),
        origin_A=(float(views.scan_y[0]), float(views.scan_x[0])),
        name="contrast",
        units="1",
        attrs=attrs | {"method": "axial_view", "history": append_history(views.attrs, "axial_view", view=axial)},
    )
