"""Cubes and results in and out of files, and to and from py4DSTEM.

Other programs' files are read by the libraries made for them (RosettaSciIO, h5py, zarr); what a file does not say
about the experiment is asked for by name. misr's own files are netCDF-4 (``.nc``), zarr folders (``.zarr``) and
zipped zarr (``.zarr.zip``).
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from misr._py4dstem import to_datacube
from misr._readers import (
    has_labelled_zarr,
    py4dstem_recording,
    read_hdf5,
    read_npy,
    read_zarr,
)
from misr._recording import Pair, Recording, cube_from_recording, own_cube
from misr._rosettasciio import plugin_extensions, plugins_for, read_rosettasciio
from misr._stored import StoredArray
from misr._writers import file_kind, open_dataset, read_dataset, write_dataset
from misr.cube import CUBE_DIMS, validate_cube

__all__ = ["cube_from_py4dstem", "cube_to_py4dstem", "read_cube", "read_result", "save_cube", "save_result"]

_BROKEN = (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile)


def read_cube(
    path: str | PathLike[str],
    *,
    energy_eV: float | None = None,
    semiangle_mrad: float | None = None,
    scan_step_A: Pair | None = None,
    det_step_mrad: Pair | None = None,
    dose_e_per_A2: float | None = None,
    rotation_deg: float | None = None,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    lazy: bool = True,
) -> xr.DataArray:
    """Read a 4D-STEM scan as a cube.

    Reads misr's own ``.nc``, ``.zarr`` and ``.zarr.zip``; py4DSTEM and other EMD or plain HDF5 files with one 4-D
    dataset; NumPy ``.npy``; zarr stores with one 4-D array; and every format with 4-D data that RosettaSciIO reads
    (hspy, zspy, mib with its hdr, dm3/dm4, blo, EMPAD xml, prz, …).

    Parameters
    ----------
    path : str or path
        File, or folder of a zarr store.
    energy_eV, semiangle_mrad : float, optional
        Beam energy (eV) and convergence semi-angle (mrad). The energy is needed when the file does not give it, the
        semi-angle is then estimated by whoever needs it (`bright_field_disk`). They, like all that follow, go before
        what the file says.
    scan_step_A, det_step_mrad : float or (float, float), optional
        Distance between probe positions (Å) and detector pixel (mrad), ``(y, x)`` if they differ.
    dose_e_per_A2, rotation_deg, aberrations : optional
        As `cube_from_array` takes them.
    lazy : bool, default True
        Leave the data in the file and load blocks of it when needed (dask), where the format allows it. The dose is
        then not counted; ``False`` loads everything.

    Returns
    -------
    xarray.DataArray
        Dims ``("scan_y", "scan_x", "det_y", "det_x")``; scan in Å, detector in mrad (small angles: θ = λ k). The
        detector counts from the file's own optic axis if that lies inside it, else from its middle. Files of misr's
        own give back the cube that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the extension is unknown, the file is broken, the data are not 4-D, or something must be given: all of
        that is named in one message.
    OSError
        If the file cannot be read, or was cut short.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "scan.npy"
    >>> np.save(path, np.ones((8, 8, 16, 16), dtype="uint8"))
    >>> read_cube(path, energy_eV=300e3, semiangle_mrad=10, scan_step_A=2)
    Traceback (most recent call last):
        ...
    ValueError: scan.npy gives no det_step_mrad: pass read_cube(..., det_step_mrad=0.5)
    >>> cube = read_cube(path, energy_eV=300e3, semiangle_mrad=10, scan_step_A=2, det_step_mrad=2)
    >>> cube.shape, cube.chunks is None
    ((8, 8, 16, 16), False)
    """
    path = Path(path)
    given = _given(
        energy_eV=energy_eV,
        semiangle_mrad=semiangle_mrad,
        scan_step_A=scan_step_A,
        det_step_mrad=det_step_mrad,
        dose_e_per_A2=dose_e_per_A2,
        rotation_deg=rotation_deg,
        aberrations=aberrations,
    )
    with _naming(path):
        found = _read(path, lazy)
    if isinstance(found, xr.DataArray):
        return own_cube(found, given, path.name)
    return cube_from_recording(found, given, path.name, "read_cube")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the libraries below, with the file's name and what may be wrong with it."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} (looked in {path.resolve().parent})")
    try:
        yield
    except _BROKEN as error:
        if path.name in str(error) or isinstance(error, PermissionError):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{path} cannot be read; is it complete? {type(error).__name__}: {error}") from error


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _read(path: Path, lazy: bool) -> Recording | xr.DataArray:
    name = path.name.lower()
    extension = name.rpartition(".")[2]
    if name.endswith((".zarr", ".zip")):
        labelled = has_labelled_zarr(path, CUBE_DIMS)
        return _stored_cube(path, "zarr", lazy) if labelled else read_zarr(path, lazy=lazy)
    if extension == "nc":
        return _stored_cube(path, "hdf5", lazy)
    if extension == "npy":
        return read_npy(path, lazy=lazy)
    if extension in ("h5", "hdf5", "emd"):
        return read_hdf5(path, lazy=lazy)
    if plugins_for(extension):
        return read_rosettasciio(path, lazy=lazy)
    known = sorted(plugin_extensions() | {"nc", "zarr", "zarr.zip", "zip", "npy", "h5", "hdf5", "emd"})
    raise ValueError(
        f"{path.name}: files ending in {'.' + extension if '.' in name else 'nothing'!r} are not known here; misr and "
        f"RosettaSciIO read {', '.join(known)}. Anything else: misr.cube_from_array(counts, ...)"
    )


def _stored_cube(path: Path, kind: Literal["hdf5", "zarr"], lazy: bool) -> xr.DataArray:
    """The cube in a file that misr (or xarray) wrote, with its coordinates and attrs as they are there."""
    with open_dataset(path, mask_and_scale=False) as dataset:
        names = [name for name, variable in dataset.data_vars.items() if variable.dims == CUBE_DIMS]
        if len(names) != 1:
            raise ValueError(f"{path.name} holds {len(names)} variables with dims {CUBE_DIMS}: expected one cube")
        cube = dataset[names[0]]
        if {"scale_factor", "add_offset"} & set(cube.attrs):
            raise ValueError(f"{path.name} holds packed numbers: load it with xarray.load_dataset and save it unpacked")
        coords = {name: coord.load() for name, coord in cube.coords.items()}
        stored = StoredArray.open(path, kind, str(names[0]))
        decoded = stored.dtype != cube.dtype  # booleans in netCDF
        data = cube.to_numpy() if decoded else stored.as_array(lazy=lazy)
        return xr.DataArray(data, dims=CUBE_DIMS, coords=coords, name=names[0], attrs=dict(cube.attrs))


def save_cube(cube: xr.DataArray, path: str | PathLike[str]) -> None:
    """Save a cube to ``.nc`` (netCDF-4), ``.zarr`` (a folder) or ``.zarr.zip``.

    A dask cube is written block by block. The file is written beside its target and put in its place when it is
    complete, so a failure leaves what was there, and a cube may be saved onto the file it is lazily read from (read
    it again afterwards: what is left of the old one raises an error when it is computed).

    Parameters
    ----------
    cube : xarray.DataArray
        A 4D-STEM cube, NumPy or dask. Values, type, coordinates and attrs come back as they are, except that
        booleans in attrs become 0 and 1, tuples become lists (a list of one its element in netCDF), and a cube
        without a name is called "counts".
    path : str or path
        Target; replaced if it exists.

    Raises
    ------
    ValueError
        If the cube is not valid (only labels are checked) or the extension is another.
    TypeError
        If an attr is not a number, a string or a list of either.
    OSError
        If it cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile, misr
    >>> import numpy as np
    >>> cube = misr.cube_from_array(np.ones((8, 8, 16, 16), dtype="uint8"), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=300e3, semiangle_mrad=10)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "cube.nc"
    >>> save_cube(cube, path)
    >>> read_cube(path).identical(cube)
    True
    """
    validate_cube(cube, counts=False)
    write_dataset(cube.to_dataset(name=cube.name or "counts"), Path(path))


def save_result(result: xr.Dataset | xr.DataArray, path: str | PathLike[str]) -> None:
    """Save a result (of `super_resolve`, or an image) to ``.nc``, ``.zarr`` or ``.zarr.zip``.

    Parameters
    ----------
    result : xarray.Dataset or DataArray
        Any labelled data, complex too; see `save_cube` for what comes back and how it is written.
    path : str or path
        Target; replaced if it exists.

    Raises
    ------
    TypeError
        If it is neither, or an attr is not a number, a string or a list of either.
    ValueError
        If the extension is another.
    OSError
        If it cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> result = xr.Dataset({"phase": (("y", "x"), np.ones((2, 3)), {"units": "rad"})})
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "result.zarr"
    >>> save_result(result, path)
    >>> read_result(path).identical(result)
    True
    """
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=result.name or "image")
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"expected an xarray.Dataset or DataArray, got {type(result).__name__}")
    write_dataset(result, Path(path))


def read_result(path: str | PathLike[str]) -> xr.Dataset:
    """Read what `save_result` saved, into memory.

    Parameters
    ----------
    path : str or path
        A ``.nc``, ``.zarr`` or ``.zarr.zip``.

    Returns
    -------
    xarray.Dataset
        The result, as it was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, OSError
        If the extension is another, or the file is broken.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "result.nc"
    >>> save_result(xr.DataArray([1.0, 2.0], dims="x", name="phase"), path)
    >>> float(read_result(path).phase.sum())
    3.0
    """
    path = Path(path)
    file_kind(path)
    with _naming(path):
        return read_dataset(path)


def cube_from_py4dstem(
    datacube: Any,
    *,
    energy_eV: float | None = None,
    semiangle_mrad: float | None = None,
    scan_step_A: Pair | None = None,
    det_step_mrad: Pair | None = None,
    dose_e_per_A2: float | None = None,
    rotation_deg: float | None = None,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
) -> xr.DataArray:
    """A cube from a py4DSTEM DataCube.

    Parameters
    ----------
    datacube : py4DSTEM.DataCube
        Axes ``Rx, Ry, Qx, Qy`` (rows first) become ``scan_y, scan_x, det_y, det_x``. Its data are shared, not copied
        (a transposed view if its calibration says ``QR_flip``).
    energy_eV, semiangle_mrad, scan_step_A, det_step_mrad, dose_e_per_A2, rotation_deg, aberrations : optional
        As in `read_cube`: before what the calibration says (pixel sizes and units, ``energy``,
        ``convergence_semiangle_mrad`` or ``_pixels``, ``probe_semiangle``, ``QR_rotation_degrees``, origin).

    Returns
    -------
    xarray.DataArray
        The cube, with the ``history`` that `cube_to_py4dstem` left, if it did.

    Raises
    ------
    TypeError
        If it is no DataCube.
    ValueError
        If something must be given, all of it named in one message; or the cube is not valid.

    Examples
    --------
    >>> import py4DSTEM, misr  # doctest: +SKIP
    >>> datacube = py4DSTEM.read("scan.h5")  # doctest: +SKIP
    >>> cube = misr.cube_from_py4dstem(datacube, energy_eV=300e3, semiangle_mrad=20)  # doctest: +SKIP
    """
    calibration, metadata = getattr(datacube, "calibration", None), getattr(datacube, "metadata", None)
    if calibration is None or metadata is None:
        raise TypeError(f"expected a py4DSTEM.DataCube, got {type(datacube).__name__}: see misr.cube_from_array")
    given = _given(
        energy_eV=energy_eV,
        semiangle_mrad=semiangle_mrad,
        scan_step_A=scan_step_A,
        det_step_mrad=det_step_mrad,
        dose_e_per_A2=dose_e_per_A2,
        rotation_deg=rotation_deg,
        aberrations=aberrations,
    )
    found = py4dstem_recording(datacube.data, _items(calibration), _items(metadata.get("misr")))
    return cube_from_recording(found, given, "the DataCube", "cube_from_py4dstem")


def _items(metadata: Any) -> dict[str, Any]:
    return {} if metadata is None else {name: metadata[name] for name in metadata.keys}


def cube_to_py4dstem(cube: xr.DataArray) -> Any:
    """A py4DSTEM DataCube from a cube, with its calibration.

    Parameters
    ----------
    cube : xarray.DataArray
        A 4D-STEM cube with square pixels; a dask cube is loaded. NumPy data are shared, not copied.

    Returns
    -------
    py4DSTEM.DataCube
        ``R_pixel_size`` in Å, ``Q_pixel_size`` in A^-1 (k = θ/λ), ``energy``, ``convergence_semiangle_mrad`` (if the
        cube has it; `bright_field_disk` estimates it) and ``QR_rotation_degrees`` in its calibration; attrs and
        history in ``metadata["misr"]``.

    Raises
    ------
    ValueError
        If the cube is not valid or its pixels are not square, which py4DSTEM assumes.

    Examples
    --------
    >>> import misr  # doctest: +SKIP
    >>> datacube = misr.cube_to_py4dstem(misr.read_cube("cube.zarr"))  # doctest: +SKIP
    """
    return to_datacube(cube)
