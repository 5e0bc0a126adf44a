"""Images on the grid of another: exactly, if one period of a periodic image is known, else by splines."""

from __future__ import annotations

import numpy as np
import xarray as xr

from misr._provenance import append_history

__all__ = ["phase_on_grid", "resample_like"]


def phase_on_grid(phase: xr.DataArray, *, like: xr.DataArray) -> xr.DataArray:
    """A periodic image on the grid of another, band-limited to what that grid can hold.

    The image's Fourier series, cut off at the Nyquist frequency of the new grid, is evaluated at the new pixel
    centres: exact for any shift, finer or coarser.

    Parameters
    ----------
    phase : xarray.DataArray
        Dims ``("y", "x")``, one period of a periodic image, such as `simulate_cube` and `projected_phase` return.
    like : xarray.DataArray
        Anything with coordinates ``y`` and ``x`` in Å on the same origin, within the same field.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, the coordinates of ``like``, the attrs of ``phase``.

    Raises
    ------
    ValueError
        If ``like`` has no such coordinates, they are not uniform, or it is larger than the field.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> wave = image_from_array(np.cos(2 * np.pi * np.arange(16) / 16) * np.ones((16, 1)), pixel_A=(0.5, 0.5))
    >>> fine = phase_on_grid(wave, like=image_from_array(np.zeros((4, 32)), pixel_A=(2.0, 0.25)))
    >>> bool(np.allclose(fine, np.cos(2 * np.pi * fine.x / 8)))
    True
    """
    values = phase.transpose("y", "x").values
    spectrum = np.fft.fft2(values) / values.size
    basis = [_evaluate(phase, like, dim) for dim in ("y", "x")]
    result = (basis[0] @ spectrum @ basis[1].T).real
    coords = {dim: like[dim] for dim in ("y", "x")}
    image = xr.DataArray(result, dims=("y", "x"), coords=coords, name=phase.name, attrs=dict(phase.attrs))
    image.attrs["history"] = append_history(phase.attrs, "phase_on_grid", **_grid(image))
    return image


def _grid(image: xr.DataArray) -> dict[str, list[float]]:
    """What the history says of a grid: shape, and the first and last pixel, Å."""
    corners = {f"{dim}_A": [float(image[dim][0]), float(image[dim][-1])] for dim in ("y", "x")}
    return {"shape": list(image.shape), **corners}


def _evaluate(phase: xr.DataArray, like: xr.DataArray, dim: str) -> np.ndarray:
    """Matrix from Fourier coefficients of ``phase`` along one axis to values at the pixels of ``like``."""
    for name, array in (("phase", phase), ("like", like)):
        if dim not in array.coords or array.sizes.get(dim, 0) < 2:
            raise ValueError(f"{name} has no coordinate {dim!r} of two or more pixels: give both images y and x in Å")
    source, target = (np.asarray(array[dim].values, dtype=float) for array in (phase, like))
    pixel, wanted = (float(axis[-1] - axis[0]) / (len(axis) - 1) for axis in (source, target))
    for name, axis, step in (("phase", source, pixel), ("like", target, wanted)):
        if not step > 0 or np.ptp(np.diff(axis)) > 1e-3 * step:
            raise ValueError(f"{dim} of {name} is not increasing in uniform steps: interpolate it first")
    number = len(source)
    field = number * pixel
    if len(target) * wanted > field + 0.5 * max(pixel, wanted):
        raise ValueError(
            f"like spans {len(target) * wanted:.4g} Å along {dim}, more than the field of {field:.4g} Å: crop it"
        )
    order = np.rint(np.fft.fftfreq(number) * number)
    turns = np.outer(target - source[0], order / field)
    matrix = np.exp(2j * np.pi * turns)
    if number % 2 == 0:
        # the lone Nyquist coefficient stands for a cosine
        matrix[:, number // 2] = np.cos(2 * np.pi * turns[:, number // 2])
    matrix[:, np.abs(order) / field > 0.5 / wanted * (1 + 1e-9)] = 0
    return matrix


def resample_like(image: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """The image on another image's grid (quintic spline; low-passed first if that grid is coarser).

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``("y", "x")``, Å.
    like : xarray.DataArray
        Gives ``y`` and ``x``, Å; it may reach past ``image`` by two pixels at most.

    Returns
    -------
    xarray.DataArray
        Values of ``image`` on the coordinates of ``like``, attrs of ``image``.

    Raises
    ------
    ValueError
        If ``like`` lies outside the image.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> ramp = image_from_array(np.arange(64.0).reshape(8, 8), pixel_A=(1, 1))
    >>> fine = resample_like(ramp, image_from_array(np.zeros((15, 15)), pixel_A=(0.5, 0.5)))
    >>> fine.shape, round(float(fine[6, 6]), 2)
    ((15, 15), 27.0)
    """
    values = np.asarray(image.values, dtype=float)
    indices = []
    for axis, dim in enumerate(("y", "x")):
        have, want = np.asarray(image[dim].values, float), np.asarray(like[dim].values, float)
        step = (have[-1] - have[0]) / (have.size - 1)
        index = (want - have[0]) / step
        if index.min() < -2 or index.max() > have.size + 1:
            raise ValueError(
                f"like covers {dim} = {want[0]:.4g} to {want[-1]:.4g} Å, the image {have[0]:.4g} to {have[-1]:.4g} Å: "
                "crop like, or give both the same field"
            )
        if want.size > 1 and want[1] - want[0] > step * (1 + 1e-6):
            values = _low_pass(values, axis, step / (want[1] - want[0]))
        indices.append(index)
    result = sample_at(values, *np.meshgrid(*indices, indexing="ij"))
    coords = {dim: like[dim] for dim in ("y", "x")}
    resampled = xr.DataArray(result, dims=("y", "x"), coords=coords, name=image.name, attrs=dict(image.attrs))
    resampled.attrs["history"] = append_history(image.attrs, "resample_like", **_grid(resampled))
    return resampled


def sample_at(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values at fractional indices: taken as they are where the indices are whole, else by a quintic spline."""
    from scipy import ndimage

    whole = [np.rint(index) for index in (rows, columns)]
    inside = all(w.min() >= 0 and w.max() < size for w, size in zip(whole, values.shape, strict=True))
    if inside and all(
        np.allclose(w, index, rtol=0, atol=2e-3) for w, index in zip(whole, (rows, columns), strict=True)
    ):
        return values[whole[0].astype(int), whole[1].astype(int)]
    return ndimage.map_coordinates(values, [rows, columns], order=5, mode="nearest")


def _low_pass(values: np.ndarray, axis: int, fraction: float) -> np.ndarray:
    """Frequencies up to this fraction of Nyquist along one axis, mirrored at the edges."""
    mirrored = np.concatenate([values, np.flip(values, axis)], axis=axis)
    spectrum = np.fft.rfft(mirrored, axis=axis)
    kept = np.arange(spectrum.shape[axis]) <= fraction * values.shape[axis]
    smooth = np.fft.irfft(spectrum * np.expand_dims(kept, 1 - axis), n=mirrored.shape[axis], axis=axis)
    return np.take(smooth, np.arange(values.shape[axis]), axis=axis)
