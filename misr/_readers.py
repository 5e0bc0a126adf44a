"""Readers for bare arrays, for py4DSTEM's and for other HDF5 files: what each says about the scan in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from misr._recording import Axis, Recording, axis_of, four_axes, plain, positive
from misr._rosettasciio import read_rosettasciio
from misr._stored import StoredArray, hdf5_file, zarr_store

_logger = logging.getLogger(__name__)

_BUNDLES = ("metadatabundle", "_metadata")
SHAPE_KEY, FIRST_PX_KEY = "shape", "first_px"


# ---------------------------------------------------------------------------------------------------- bare arrays


def read_npy(path: Path, *, lazy: bool) -> Recording:
    """A NumPy file: an array, and nothing about it."""
    stored = StoredArray.open(path, "npy")
    four_axes(stored.shape, path.name)
    return Recording(stored.as_array(lazy=lazy))


def read_zarr(path: Path, *, lazy: bool) -> Recording:
    """The only 4-D array of a zarr store (format 2 or 3, folder or zip)."""
    shapes = _zarr_shapes(path)
    name = _the_only(shapes, path)
    warn_of_missing_chunks(path, name)
    return Recording(StoredArray.open(path, "zarr", name).as_array(lazy=lazy))


def _zarr_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    import zarr

    with zarr_store(path) as store:
        node = zarr.open(store, mode="r")
        if isinstance(node, zarr.Array):
            return {"": node.shape}
        return {name: member.shape for name, member in node.members(max_depth=None) if isinstance(member, zarr.Array)}


def has_labelled_zarr(path: Path, dims: tuple[str, ...]) -> bool:
    """Whether a zarr group has an array with these dims, named the way xarray does it."""
    import zarr

    with zarr_store(path) as store:
        node = zarr.open(store, mode="r")
        if isinstance(node, zarr.Array):
            return False
        for _, member in node.members():
            names = member.attrs.get("_ARRAY_DIMENSIONS") or getattr(member.metadata, "dimension_names", None)
            if tuple(names or ()) == dims:
                return True
    return False


def _the_only(shapes: Mapping[str, tuple[int, ...]], path: Path) -> str:
    """The name of the one 4-D array among them."""
    names = [name for name, shape in shapes.items() if len(shape) == 4]
    if len(names) == 1:
        return names[0]
    listing = ", ".join(f"{name or '/'} {shape}" for name, shape in shapes.items()) or "no array at all"
    how_many = "several 4-D arrays" if names else "no 4-D array"
    raise ValueError(
        f"{path.name} holds {how_many} ({listing}): a 4D-STEM scan has four axes (scan_y, scan_x, det_y, det_x). "
        "Load the one you want and label it with misr.cube_from_array"
    )


def missing_chunks(path: Path, name: str) -> tuple[int, int]:
    """How many chunks of a zarr array are not there, and how many there should be; a zip vouches for itself."""
    import zarr

    if not path.is_dir():
        return 0, 0  # and zarr 3.1 trips over zipped arrays whose name begins with another's

    with zarr_store(path) as store:
        array = zarr.open_array(store, path=name, mode="r")
        return array.nchunks - array.nchunks_initialized, array.nchunks


def warn_of_missing_chunks(path: Path, name: str) -> None:
    """Absent zarr chunks read as zeros; legitimate for empty ones, but also what a broken copy looks like."""
    missing, total = missing_chunks(path, name)
    if missing:
        _logger.warning("%s: %d of %d chunks are not there and read as zeros", path, missing, total)


# ------------------------------------------------------------------------------------------------ py4DSTEM and HDF5


def read_hdf5(path: Path, *, lazy: bool) -> Recording:
    """py4DSTEM's and other EMD files, HyperSpy's, or a plain HDF5 file with one 4-D dataset."""
    with hdf5_file(path) as file:
        hyperspy = str(file.attrs.get("file_format", "")) == "HyperSpy"
        shapes, emd = ({}, {}) if hyperspy else _hdf5_arrays(file)
        found = emd if any(len(shape) == 4 for shape in emd.values()) else shapes
        holds_4d = any(len(shape) == 4 for shape in found.values())
        name = _the_only(found, path) if holds_4d else ""
        about = _emd_metadata(file, name) if holds_4d else {}
    if not holds_4d:
        return read_rosettasciio(path, lazy=lazy)
    data = StoredArray.open(path, "hdf5", name).as_array(lazy=lazy)
    return py4dstem_recording(data, about.get("calibration", {}), about.get("misr", {}), about["dims"])


def _hdf5_arrays(file: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of all datasets, and of those that are the data of an EMD group."""
    import h5py

    every: dict[str, tuple[int, ...]] = {}
    emd: dict[str, tuple[int, ...]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None and node.ndim > 1:
            every[name] = node.shape
            if name.rpartition("/")[2] in ("data", "datacube") and "emd_group_type" in node.parent.attrs:
                emd[name] = node.shape

    file.visititems(visit)
    return every, emd


def _emd_metadata(file: Any, name: str) -> dict[str, Any]:
    """Metadata of an EMD array: nearest first, up to the root of its tree; and its dim vectors."""
    group = file[name].parent
    found: dict[str, Any] = {"dims": _emd_dims(group)}
    while True:
        for bundle in _BUNDLES:
            if bundle in group:
                for key in ("calibration", "misr"):
                    if key in group[bundle]:
                        found.setdefault(key, _emd_items(group[bundle][key]))
        if group.name == "/":
            return found
        group = group.parent


def _emd_items(group: Any) -> dict[str, Any]:
    items = {}
    for key, node in group.items():
        if hasattr(node, "shape"):
            value = node[()]
            items[key] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return items


def _emd_dims(group: Any) -> list[Axis]:
    names = sorted(name for name in group if re.fullmatch(r"dim\d", name) and hasattr(group[name], "shape"))
    axes = []
    for name in names:
        values = np.ravel(group[name][()])
        numeric = values.dtype.kind in "iuf" and len(values) > 1
        step = float(values[-1] - values[0]) / (len(values) - 1) if numeric else None
        axes.append(axis_of(step, group[name].attrs.get("units"), values[0] if numeric else None))
    return axes


def py4dstem_recording(
    data: Any, calibration: Mapping[str, Any], misr: Mapping[str, Any], dims: list[Axis] | None = None
) -> Recording:
    """A recording from py4DSTEM's calibration, misr's own metadata beside it, and dim vectors to fall back on."""
    four_axes(data.shape, "the datacube")
    axes = list(dims) if dims is not None and len(dims) == 4 else [Axis()] * 4
    # py4DSTEM's own dim vectors mix pixels with units as soon as the origin is measured: take no offset from them
    axes[2:] = [Axis(axis.step, axis.units) for axis in axes[2:]]
    for space, places in (("R", (0, 1)), ("Q", (2, 3))):
        axis = axis_of(calibration.get(f"{space}_pixel_size"), calibration.get(f"{space}_pixel_units"))
        if axis.units not in ("", "pixels"):
            for place in places:
                axes[place] = axis
    firsts = _first_pixels(data.shape, calibration, misr)
    axes = [axis if first is None else replace(axis, first_px=first) for axis, first in zip(axes, firsts, strict=True)]
    if bool(calibration.get("QR_flip", False)):  # its detector is transposed against the scan
        data, axes = data.transpose(0, 1, 3, 2), [axes[0], axes[1], axes[3], axes[2]]

    def first_known(*names: str) -> float | None:
        return next((value for value in (positive(calibration.get(name)) for name in names) if value), None)

    rotation = calibration.get("QR_rotation_degrees")
    return Recording(
        data,
        (axes[0], axes[1], axes[2], axes[3]),
        energy_eV=first_known("energy", "energy_eV", "beam_energy"),
        semiangle_mrad=first_known("convergence_semiangle_mrad"),
        semiangle_px=first_known("convergence_semiangle_pixels", "probe_semiangle"),
        rotation_deg=None if rotation is None else float(rotation),
        attrs={key: plain(value) for key, value in misr.items() if key not in (SHAPE_KEY, FIRST_PX_KEY)},
    )


def _first_pixels(
    shape: tuple[int, ...], calibration: Mapping[str, Any], misr: Mapping[str, Any]
) -> list[float | None]:
    """Coordinate of the first pixel of each axis, in pixels: a measured origin before what misr noted."""
    firsts: list[float | None] = [None] * 4
    noted = np.ravel(misr.get(FIRST_PX_KEY, ())).tolist()
    untouched = np.array_equal(np.ravel(misr.get(SHAPE_KEY, ())), shape)  # neither binned nor cropped since
    if untouched and len(noted) == 4:
        firsts = noted
    origin = [calibration.get(name) for name in ("qx0_mean", "qy0_mean")]
    if all(isinstance(value, int | float | np.number) and np.isfinite(value) for value in origin):
        firsts[2:] = [-float(value) for value in origin if value is not None]
    return firsts
