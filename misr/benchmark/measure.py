"""One cell of the table: counts drawn, an image made, and everything measured about it."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr import __version__
from misr.benchmark.memory import measured
from misr.benchmark.methods import Case, Method, NotAvailableError, Prepared, flat_like, method_of
from misr.benchmark.scenes import make_scene, scene_path
from misr.benchmark.settings import LIMITS, Cell
from misr.cube import detector_step
from misr.dose import apply_dose
from misr.halves import half_maps
from misr.resample import phase_on_grid
from misr.resolution import fourier_ring_correlation, frc_resolution

__all__ = ["FAILURES", "lost_cell", "measure_cell"]

# what a reconstruction can come to grief with: recorded, and the rest goes on
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_TRUTH, _HALF = 0.5, "half-bit"
_LIBRARIES = ("numpy", "scipy", "xarray", "torch", "abtem", "py4DSTEM", "scikit-image")
_MOST_TEXT = 600


def measure_cell(cell: Cell, folder: Path, *, quantem_python: Path | None = None) -> tuple[dict[str, Any], Any]:
    """Run one cell; whatever happens to the method, a row comes back.

    Parameters
    ----------
    cell : Cell
        Which.
    folder : path
        Of the benchmark, where the simulated specimens are.
    quantem_python : path, optional
        Python of quantem's environment.

    Returns
    -------
    row : dict
        Plain numbers and words, ``status`` "done", "failed", "not available" or "limit" among them.
    image : numpy.ndarray or None
        The image, float32.

    Examples
    --------
    >>> row, image = measure_cell(settings.cells()[0], folder)  # doctest: +SKIP
    """
    scene = make_scene(folder, cell.settings, cell.specimen, cell.seed)
    row = _identity(cell, float(scene.attrs["ring_width"]))
    if cell.method in LIMITS:
        return row | _limit(cell, scene), None
    method = method_of(cell.method)
    cube = apply_dose(scene["counts"], cell.dose, rng=_stream(cell, 1))
    # the references do not know that the simulated scan wraps round, so nobody is told
    cube.attrs.pop("period_A", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        image, results = _measured(method, cube, scene, cell, quantem_python)
    said = dict.fromkeys(" ".join(str(one.message).split()) for one in caught if one.category is UserWarning)
    return row | results | {"warnings": _shortened(" | ".join(said))}, image


def lost_cell(cell: Cell, folder: Path, reason: str) -> dict[str, Any]:
    """The row of a cell whose process died, so that nothing could be measured.

    Parameters
    ----------
    cell : Cell
        Which.
    folder : path
        Of the benchmark.
    reason : str
        How it died.

    Returns
    -------
    dict
        ``status`` "failed" and ``worker_died``, by which the next run knows to try it again.

    Examples
    --------
    >>> row = lost_cell(settings.cells()[0], folder, "killed by SIGKILL")  # doctest: +SKIP
    """
    file = scene_path(folder, cell.settings, cell.specimen, cell.seed)
    width = math.nan
    if file.is_file():
        with xr.open_dataset(file, engine="h5netcdf") as scene:
            width = float(scene.attrs["ring_width"])
    return _identity(cell, width) | {"status": "failed", "error": _shortened(reason), "worker_died": True}


def _identity(cell: Cell, ring_width: float) -> dict[str, Any]:
    versions = {"misr": __version__, "python": platform.python_version()}
    return {
        "specimen": cell.specimen.name,
        "kind": cell.specimen.kind,
        "dose_e_per_A2": cell.dose,
        "seed": cell.seed,
        "method": cell.method,
        "status": "done",
        "error": "",
        "ring_width": ring_width,
        "versions": json.dumps(versions | {name: _version(name) for name in _LIBRARIES}),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _stream(cell: Cell, purpose: int) -> np.random.Generator:
    """Counts (1) and halves (2): the same for every method."""
    return np.random.default_rng([cell.seed, round(1000 * cell.dose), purpose])


def _limit(cell: Cell, scene: xr.Dataset) -> dict[str, Any]:
    from misr.limits import expected_frc

    counts, truth = scene["counts"], scene["truth"]
    optics = {name: float(counts.attrs[name]) for name in ("energy_eV", "semiangle_mrad")}
    options: dict[str, Any] = {"dose_e_per_A2": cell.dose, "ring_width": float(scene.attrs["ring_width"]), **optics}
    options |= {"aberrations": dict(cell.settings.optics["aberrations"]), "method": "linear"}
    if cell.method == "limit_pixels":
        options["det_step_mrad"] = detector_step(counts)
    frc = expected_frc(truth, **options)
    half = expected_frc(truth, against="half-map", **options)
    return (
        {"status": "limit"}
        | _resolution("resolution", frc, _TRUTH)
        | _resolution("half_map_resolution", half, _HALF)
        | {"curves": _curves(frc, half)}
    )


def _measured(
    method: Method, cube: xr.DataArray, scene: xr.Dataset, cell: Cell, quantem_python: Path | None
) -> tuple[np.ndarray | None, dict[str, Any]]:
    truth = scene["truth"]
    like = flat_like(truth)
    width = float(scene.attrs["ring_width"])
    weights = cell.settings.attention_unet.get("path")
    case = Case(
        cube, like, int(scene.attrs["upsample"]), cell.seed, truth, ring_width=width,
        ptychography=cell.settings.ptychography, search=cell.settings.ptychography_search,
        quantem_python=quantem_python, attention_unet=Path(weights) if weights else None,
    )  # fmt: skip
    try:
        prepared = method.prepare(case)
        # the halves first: they pay for imports and compilation, so that the time is the method's own
        halves, half = _half_maps(prepared, cube, cell, width)
        with measured() as spent:
            image = prepared.reconstruct(cube)
        _check(image, like)
    except NotAvailableError as error:
        return None, {"status": "not available", "error": str(error)}
    except FAILURES as error:
        return None, {"status": "failed", "error": _shortened(f"{type(error).__name__}: {error}")}
    frc, numbers = _against_truth(image, truth, scene, cell.settings.aligned)
    spent |= {"seconds": float(image.attrs["seconds"])} if "seconds" in image.attrs else {}
    found = numbers | halves | spent | {"search_seconds": prepared.search_s}
    found |= {"chosen": json.dumps(dict(prepared.chosen), default=str), "curves": _curves(frc, half)}
    return image.values.astype(np.float32), found


def _half_maps(
    prepared: Prepared, cube: xr.DataArray, cell: Cell, ring_width: float
) -> tuple[dict[str, Any], xr.DataArray | None]:
    """Half-map FRC; a failure of the halves alone is told and does not spoil the cell."""
    try:
        # one calibration, one taper, as against the truth; the method says itself what it needs
        options: dict[str, Any] = {"calibration": "none", "ring_width": ring_width, "window": "hann"}
        frc = half_maps(cube, prepared.reconstruct, rng=_stream(cell, 2), **options)["frc"]
        return _resolution("half_map_resolution", frc, _HALF) | {"half_map_error": ""}, frc
    except FAILURES as error:
        failed = {"half_map_resolution_status": "failed", "half_map_error": f"{type(error).__name__}: {error}"}
        return failed, None


def _check(image: xr.DataArray, like: xr.DataArray) -> None:
    if image.shape != like.shape:
        raise ValueError(f"the image has {image.shape} pixels, {like.shape} were asked for")
    for dim in ("y", "x"):
        if not np.allclose(image[dim].values, like[dim].values, atol=1e-3):
            raise ValueError(f"the image's {dim} differs from the one asked for")
    if not np.all(np.isfinite(image.values)):
        raise ValueError("the image holds values that are not finite")


def _against_truth(
    image: xr.DataArray, truth: xr.DataArray, scene: xr.Dataset, aligned: float
) -> tuple[xr.DataArray, dict[str, Any]]:
    width = float(scene.attrs["ring_width"])
    frc = fourier_ring_correlation(image, truth, ring_width=width)
    numbers = _resolution("resolution", frc, _TRUTH) | _agreement(image.values, truth.values)
    return frc, numbers | _aligned(image, truth, width, aligned)


def _resolution(name: str, frc: xr.DataArray, threshold: str | float) -> dict[str, Any]:
    found = frc_resolution(frc, threshold)
    return {
        f"{name}_A": float(found),
        f"{name}_status": str(found.attrs["status"]),
        f"{name}_low_A": float(found.attrs["low_A"]),
        f"{name}_high_A": float(found.attrs["high_A"]),
    }


def _agreement(image: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Correlation, and SSIM and PSNR after the least-squares gain (not below 0) and offset, for all methods alike."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    moved, still = image - image.mean(), truth - truth.mean()
    power = float(np.sum(moved**2))
    cross = float(np.sum(moved * still))
    correlation = cross / math.sqrt(power * float(np.sum(still**2))) if power > 0 else 0.0
    fitted = (max(0.0, cross / power) if power > 0 else 0.0) * moved
    span = float(np.ptp(still))
    ssim = structural_similarity(
        still, fitted, data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    psnr = peak_signal_noise_ratio(still, fitted, data_range=span)
    return {"correlation": correlation, "ssim": float(ssim), "psnr_dB": float(psnr)}


def _aligned(image: xr.DataArray, truth: xr.DataArray, width: float, farthest: float) -> dict[str, Any]:
    """Resolution once more with the image's shift taken off, where it is beyond chance."""
    from misr._registration import register

    pixel = tuple(float(truth[dim][1] - truth[dim][0]) for dim in ("y", "x"))
    found = register(
        image.values, truth.values, pixel=(pixel[0], pixel[1]), window="hann", max_shift=farthest, sign=1,
        false_alarm=1e-3,
    )  # fmt: skip
    shift = {"shift_y_A": found.shift[0], "shift_x_A": found.shift[1], "shift_found": bool(found.found)}
    # the truth is periodic and can be evaluated anywhere: it moves, the image stays as it was made
    there = image.assign_coords({dim: image[dim].values - by for dim, by in zip(("y", "x"), found.shift, strict=True)})
    moved = phase_on_grid(truth, like=there).values
    frc = fourier_ring_correlation(image, image.copy(data=moved), ring_width=width)
    return shift | {"aligned_resolution_A": float(frc_resolution(frc, _TRUTH))}


def _curves(frc: xr.DataArray, half: xr.DataArray | None) -> dict[str, list[float]]:
    curves = {"frequency": frc["frequency"].values.tolist(), "frc_truth": frc.values.tolist()}
    return curves if half is None else curves | {"frc_half": half.values.tolist()}


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"
