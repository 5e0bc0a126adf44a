"""Inputs that hold less than they seem to: random phases, vacuum, scans with their positions shuffled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr.cube import is_lazy, is_periodic, scan_step
from misr.dose import apply_dose, split_counts

__all__ = [
    "Pipeline",
    "central_crop",
    "dose_of",
    "linear_image",
    "linear_specimen",
    "on_grid",
    "run_pair",
    "run_quietly",
    "scan_pixel",
    "shuffled_halves",
    "substituted_phases",
    "vacuum_halves",
]

Pipeline = Callable[[xr.DataArray], Any]
_FEWEST_POSITIONS = 256
_LEAST_TRANSFER = 0.02  # below, the linear image holds too little to be scaled up


def dose_of(cube: xr.DataArray) -> float:
    """Dose of a cube, e/Å²: the one it states, else its mean counts over the area of a scan step."""
    stated = cube.attrs.get("dose_e_per_A2")
    if stated is not None:
        return float(stated)
    step = scan_step(cube)
    return float(cube.sum(("det_y", "det_x")).mean()) / (step[0] * step[1])


def central_crop(cube: xr.DataArray, max_positions: int | None) -> xr.DataArray:
    """The middle of a scan: a rectangle of its own proportions that holds at most so many positions, or all of it."""
    if max_positions is not None and max_positions < _FEWEST_POSITIONS:
        raise ValueError(
            f"max_positions={max_positions} must be {_FEWEST_POSITIONS} or more, or None for the whole scan"
        )
    n_y, n_x = cube.sizes["scan_y"], cube.sizes["scan_x"]
    if max_positions is None or n_y * n_x <= max_positions:
        return cube
    share = math.sqrt(max_positions / (n_y * n_x))
    parts = {}
    for dim, size in (("scan_y", n_y), ("scan_x", n_x)):
        kept = min(size, max(1, int(size * share)))
        parts[dim] = slice((size - kept) // 2, (size - kept) // 2 + kept)
    return cube.isel(parts)


def run_quietly(pipeline: Pipeline, cube: xr.DataArray) -> xr.DataArray:
    """The pipeline's image of a cube, without the warnings that a made-up specimen calls forth.

    Parameters
    ----------
    pipeline : callable
        From a cube to an image with dims ``("y", "x")``, or a Dataset that holds one as ``phase``.
    cube : xarray.DataArray
        4D-STEM cube.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``.

    Raises
    ------
    TypeError
        If the pipeline returns something else.
    ValueError
        If its values are not finite.

    Examples
    --------
    >>> from misr.cube import image_from_array
    >>> flat = image_from_array(np.zeros((8, 8)), pixel_A=(1.0, 1.0))
    >>> run_quietly(lambda cube: xr.Dataset({"phase": flat}), None).shape
    (8, 8)
    """
    from misr.halves import image_of

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = pipeline(cube)
    image = image_of(result)
    if not np.all(np.isfinite(image.values)):
        raise ValueError("the pipeline's image holds NaN or infinite values: fill them inside the pipeline")
    return image


def run_pair(
    pipeline: Pipeline, halves: tuple[xr.DataArray, xr.DataArray]
) -> tuple[xr.DataArray, xr.DataArray, str | None]:
    """The images of two cubes, on the coarser one's grid, and the taper that their field asks for."""
    first, second = (run_quietly(pipeline, half) for half in halves)
    window = None if is_periodic(halves[0]) else "hann"
    if first.shape == second.shape:
        return first, second, window
    fine, coarse = (first, second) if first.size > second.size else (second, first)
    return on_grid(fine, coarse), coarse, window


def on_grid(image: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """An image on another's pixels, by its Fourier series if it is periodic, else by splines."""
    from misr.resample import phase_on_grid, resample_like

    return phase_on_grid(image, like=like) if is_periodic(image) else resample_like(image, like)


def linear_image(cube: xr.DataArray) -> xr.DataArray:
    """The linear fusion's phase image, what everything is measured against; on the same pixels at any dose."""
    from misr.halves import whole_band

    return whole_band(cube)


def linear_specimen(cube: xr.DataArray) -> xr.DataArray:
    """A specimen as strong as the recorded one: the linear fusion's image, its Fourier amplitudes scaled up.

    The image holds a share T of the true amplitude (its ``transfer``) and has the power T P, P being the specimen's;
    divided by √T it has the power P, part of it noise, which is as good a specimen as any.
    """
    from misr.fusion import fuse_linear
    from misr.views import synthesize_views

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fused = fuse_linear(synthesize_views(cube))
    image, transfer = fused["phase"], fused["transfer"]
    pixel = scan_pixel(image)
    q_y, q_x = (np.fft.fftfreq(n, step) for n, step in zip(image.shape, pixel, strict=True))
    share = transfer.sel(frequency_y=q_y, frequency_x=q_x, method="nearest").values
    scaled = np.where(share > _LEAST_TRANSFER, 1 / np.sqrt(np.maximum(share, _LEAST_TRANSFER)), 1.0)
    # the transfer is even but for the lone Nyquist frequency: keep the image real
    values = np.fft.ifft2(np.fft.fft2(image.values.astype(float)) * scaled).real
    return image.copy(data=values)


def scan_pixel(image: xr.DataArray) -> tuple[float, float]:
    """Pixel ``(y, x)`` of an image, Å."""
    steps = [float(image[dim][-1] - image[dim][0]) / (image.sizes[dim] - 1) for dim in ("y", "x")]
    return steps[0], steps[1]


def substituted_phases(phase: xr.DataArray, beyond: float, *, rng: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """Two specimens that are the given one below a frequency and have nothing in common above but the amplitudes.

    Parameters
    ----------
    phase : xarray.DataArray
        Dims ``("y", "x")``, rad.
    beyond : float
        Frequency, 1/Å, above which the Fourier phases are drawn anew, |F| and Friedel's symmetry being kept.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    tuple of xarray.DataArray
        On the grid of ``phase``.

    Examples
    --------
    >>> from misr.cube import image_from_array
    >>> image = image_from_array(np.random.default_rng(0).standard_normal((16, 16)), pixel_A=(0.5, 0.5))
    >>> first, second = substituted_phases(image, 0.4, rng=1)
    >>> bool(np.allclose(np.abs(np.fft.fft2(first)), np.abs(np.fft.fft2(image))))
    True
    """
    pixel = scan_pixel(phase)
    q = np.hypot(np.fft.fftfreq(phase.shape[0], pixel[0])[:, None], np.fft.fftfreq(phase.shape[1], pixel[1])[None, :])
    spectrum = np.fft.fft2(phase.values.astype(float))
    generator = np.random.default_rng(rng)
    made = []
    for _ in range(2):
        # the phases of white noise: uniform, and of a real image
        noise = np.fft.fft2(generator.standard_normal(phase.shape))
        turned = np.where(q > beyond, np.abs(spectrum) * noise / np.abs(noise), spectrum)
        image = phase.copy(data=np.fft.ifft2(turned).real)
        image.attrs["history"] = append_history(phase.attrs, "substituted_phases", beyond=beyond, rng=describe_rng(rng))
        made.append(image)
    return made[0], made[1]


def vacuum_halves(cube: xr.DataArray, *, rng: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """Two scans of nothing at half the dose: the cube's own mean pattern at every position, with counting noise.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube: gives optics, scan, detector, dose and the shape of the disk.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    tuple of xarray.DataArray
        Whole counts.

    Examples
    --------
    >>> import misr
    >>> cube = misr.cube_from_array(np.full((8, 8, 4, 4), 4), scan_step_A=2, det_step_mrad=8, energy_eV=3e5,
    ...                             semiangle_mrad=10)
    >>> first, second = vacuum_halves(cube, rng=0)
    >>> first.attrs["dose_e_per_A2"], first.dtype.kind
    (8.0, 'u')
    """
    mean = cube.mean(("scan_y", "scan_x"), dtype=np.float64).values.astype(np.float32)
    if is_lazy(cube):
        import dask.array

        # the pattern in the cube's own detector chunks, which broadcasting cannot cut
        pattern = dask.array.from_array(mean, chunks=cube.data.chunks[2:])
        flat: Any = dask.array.broadcast_to(pattern, cube.shape, chunks=cube.chunks)
    else:
        flat = np.broadcast_to(mean, cube.shape)
    expected = cube.copy(data=flat)
    dose = dose_of(cube)
    expected.attrs = {**cube.attrs, "dose_e_per_A2": dose}
    first, second = np.random.default_rng(rng).spawn(2)
    return apply_dose(expected, dose / 2, rng=first), apply_dose(expected, dose / 2, rng=second)


def shuffled_halves(cube: xr.DataArray, *, rng: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """The recorded electrons without their specimen: two halves of them, each with its scan positions shuffled anew.

    Shuffling both halves alike would leave them the same, if meaningless, specimen.

    Parameters
    ----------
    cube : xarray.DataArray
        Whole counts. A lazy cube is read into memory.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    tuple of xarray.DataArray
        Whole counts, every pattern being one that was recorded.

    Raises
    ------
    ValueError
        If the counts are not whole numbers.

    Examples
    --------
    >>> import misr
    >>> cube = misr.cube_from_array(np.random.default_rng(0).poisson(3, (8, 8, 4, 4)), scan_step_A=2,
    ...                             det_step_mrad=8, energy_eV=3e5, semiangle_mrad=10)
    >>> first, second = shuffled_halves(cube, rng=0)
    >>> bool((first + second).sum() == cube.sum())
    True
    """
    split, *orders = np.random.default_rng(rng).spawn(3)
    made = []
    for half, order in zip(split_counts(cube, rng=split), orders, strict=True):
        counts = np.asarray(half.values)
        patterns = counts.reshape(-1, *counts.shape[2:])
        shuffled = half.copy(data=patterns[order.permutation(len(patterns))].reshape(counts.shape))
        shuffled.attrs["history"] = append_history(half.attrs, "shuffled_halves", rng=describe_rng(rng))
        made.append(shuffled)
    return made[0], made[1]
