"""Reference reconstructions by py4DSTEM on the scan's own coordinates: parallax and single-slice ptychography.

Thin layers: py4DSTEM reconstructs, misr hands it the same calibration it uses itself and puts its picture where
the probe was. py4DSTEM calls rows x and columns y, so its aberration angles are π/2 minus misr's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr._py4dstem import (
    Setup,
    aberration_orders,
    centred_patterns,
    engine,
    import_py4dstem,
    setup_of,
    silent_py4dstem,
    turn_angles,
)
from misr.aberrations import with_aberrations
from misr.cube import image_from_array, scan_step
from misr.resample import resample_like, sample_at

__all__ = ["reconstruct_parallax", "reconstruct_ptychography"]

_FIT_PADDING = 32  # py4DSTEM's own, scan pixels
_CARRIED = ("energy_eV", "semiangle_mrad", "dose_e_per_A2", "period_A")
_OWN_PARALLAX = {
    "dp_mask": "attrs['semiangle_mrad']",
    "force_rotation_angle_deg": "rotation_deg",
    "force_transpose": "rotation_deg",
}
_OWN_PREPROCESS = {"force_com_rotation": "rotation_deg", "force_com_transpose": "rotation_deg"} | dict.fromkeys(
    (
        "force_com_shifts", "force_com_measured", "force_scan_sampling", "force_angular_sampling",
        "force_reciprocal_sampling", "crop_patterns", "diffraction_intensities_shape",
        "padded_diffraction_intensities_shape", "region_of_interest_shape",
    ),
    "cube",
)  # fmt: skip
_OWN_RECONSTRUCT = {
    "num_iter": "iterations", "step_size": "step_size", "max_batch_size": "batch_size", "seed_random": "rng",
    "fix_probe": "fix_probe", "progress_bar": "progress", "object_type": "object_type", "reset": "iterations",
}  # fmt: skip


def reconstruct_parallax(
    cube: xr.DataArray,
    *,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    rotation_deg: float | None = None,
    upsample: int | Literal["auto"] = "auto",
    fit: bool = False,
    like: xr.DataArray | None = None,
    progress: bool = True,
    preprocess_options: Mapping[str, Any] | None = None,
    reconstruct_options: Mapping[str, Any] | None = None,
    alignment_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Tilt-corrected bright field (parallax) by py4DSTEM, phase-flipped.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, dims ``("scan_y", "scan_x", "det_y", "det_x")``, electrons. NumPy or dask (then loaded).
    aberrations : mapping or Dataset, optional
        Polar coefficients, Å and rad; those in the cube's attrs by default. With ``fit``, the start of the fit.
    rotation_deg : float, optional
        Scan-to-detector rotation, degrees; from ``aberrations`` or the cube's attrs by default, else 0.
    upsample : int or "auto", default "auto"
        Output pixels per scan step. "auto" samples the band limit 2α/λ.
    fit : bool, default False
        Find shifts and aberrations (to the third order) with py4DSTEM's cross-correlation. It is fragile at low
        dose: with known aberrations the shifts follow from them.
    like : xarray.DataArray, optional
        Resample on this image's grid (see `resample_like`).
    progress : bool, default True
        Show a progress bar.
    preprocess_options, reconstruct_options, alignment_options : mapping, optional
        Further settings of py4DSTEM's ``Parallax.preprocess``, ``.reconstruct`` (with ``fit`` only) and
        ``.subpixel_alignment``.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, Å on the scan's origin, rad: half of py4DSTEM's corrected image (normalised to a mean
        bright field of 1), which for a weak phase is the phase seen through ``a(q) |sin χ(q)|``; mean 0. The
        aberrations used are in ``attrs``.

    Raises
    ------
    ValueError
        If the cube is not valid, its pixels are not square, or aberrations are missing or without defocus.

    Notes
    -----
    Method: Varnavides et al. (2023), arXiv:2309.05250. Single atoms in noise-free data lie within 0.1 Å of their
    place (tested); ``make benchmark`` times it.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.ones((8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2, energy_eV=3e5,
    ...                             semiangle_mrad=10)
    >>> reconstruct_parallax(cube)
    Traceback (most recent call last):
        ...
    ValueError: no aberrations are given and the cube has none in its attrs: pass aberrations={'C10': ...} (Å, \
= -defocus), or set them with misr.with_aberrations(cube, {'C10': ...})
    """
    _refuse(preprocess_options, _OWN_PARALLAX, "preprocess_options")
    setup = setup_of(cube, aberrations, rotation_deg, required=not fit)
    step = sum(scan_step(cube)) / 2
    factor = _upsample(upsample, 4 * step * setup.cutoff)
    if not fit and not any(value for name, value in setup.polar.items() if name[0] == "C"):
        raise ValueError("all aberrations are 0: parallax gets its contrast from defocus; use ptychography in focus")
    reach = float(np.abs(setup.shifts(setup.polar)).max()) / step
    padding = max(2 * math.ceil(reach) + 8, _FIT_PADDING if fit else 0)
    with silent_py4dstem(), _bar(3 + fit, "parallax", progress) as bar:
        parallax = engine("Parallax", setup, turn_deg=0.0, object_padding_px=(padding, padding))
        parallax.preprocess(
            dp_mask=setup.mask,
            force_rotation_angle_deg=setup.rotation_deg,
            # half a pixel blends nothing; cross-correlation wants soft edges
            edge_blend=min(16.0, min(cube.shape[:2]) / 4) if fit else 0.5,
            **{"plot_average_bf": False, **(preprocess_options or {})},
        )
        bar.update()
        if fit:
            quiet = {
                "progress_bar": False,
                "plot_aligned_bf": False,
                "plot_convergence": False,
                "reset": True,
            }
            parallax.reconstruct(**{**quiet, **(reconstruct_options or {})})
            bar.update()
        orders = None if fit else aberration_orders(setup.polar)
        parallax.aberration_fit(force_rotation_angle_deg=setup.rotation_deg, aberrations_mn=orders)
        quiet = {"plot_upsampled_BF_comparison": False, "progress_bar": False}
        parallax.subpixel_alignment(kde_upsample_factor=factor, **{**quiet, **(alignment_options or {})})
        bar.update()
        parallax.aberration_correct(use_CTF_fit=True, plot_corrected_phase=False)
        bar.update()
    used = turn_angles(parallax.aberrations_dict_polar, 0.0) if fit else setup.polar
    image = _parallax_image(parallax, setup.shifts(used), cube, factor)
    arguments = {"upsample": factor, "fit": fit}
    options = {
        "preprocess": preprocess_options,
        "reconstruct": reconstruct_options,
        "alignment": alignment_options,
    }
    image = _label(image, cube, setup, used, "reconstruct_parallax", arguments, options)
    return image if like is None else resample_like(image, like)


def reconstruct_ptychography(
    cube: xr.DataArray,
    *,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    rotation_deg: float | None = None,
    iterations: int = 8,
    step_size: float = 0.1,
    batch_size: int | None = 64,
    fix_probe: bool = True,
    object_type: Literal["potential", "complex"] = "potential",
    return_probe: bool = False,
    like: xr.DataArray | None = None,
    rng: Any = None,
    progress: bool = True,
    preprocess_options: Mapping[str, Any] | None = None,
    reconstruct_options: Mapping[str, Any] | None = None,
) -> xr.DataArray | xr.Dataset:
    """Single-slice ptychography by py4DSTEM (batched gradient descent by default).

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, dims ``("scan_y", "scan_x", "det_y", "det_x")``, electrons. NumPy or dask (then loaded).
        The pixel is λ over the detector's width: record out to 1.5 to 2 times the semi-angle.
    aberrations : mapping or Dataset, optional
        Polar coefficients of the starting probe, Å and rad; those in the cube's attrs by default.
    rotation_deg : float, optional
        Scan-to-detector rotation, degrees; from ``aberrations`` or the cube's attrs by default, else 0.
    iterations, step_size, batch_size : int, float, int or None
        Passes over the data, gradient step, and patterns per update (None: all).
    fix_probe : bool, default True
        Keep the starting probe. False refines it, which wants dose.
    object_type : {"potential", "complex"}
        A non-negative phase, or a complex object of which the phase is returned.
    return_probe : bool, default False
        Return the probe too.
    like : xarray.DataArray, optional
        Resample on this image's grid (see `resample_like`).
    rng : None, int or numpy.random.Generator
        Seed of the batches (SPEC 7).
    progress : bool, default True
        Show a progress bar.
    preprocess_options, reconstruct_options : mapping, optional
        Further settings of py4DSTEM's ``SingleslicePtychography.preprocess`` and ``.reconstruct``.

    Returns
    -------
    xarray.DataArray or Dataset
        Phase, rad, dims ``("y", "x")``, Å on the scan's origin. With ``return_probe`` a Dataset of ``phase`` and
        the complex ``probe`` (dims ``("probe_y", "probe_x")``, Å in the detector's frame, unit total intensity).

    Raises
    ------
    ValueError
        If the cube is not valid or empty, its detector pixels are not square, or aberrations are missing.

    Notes
    -----
    Method: Varnavides et al. (2023), arXiv:2309.05250. The defaults are a modest choice for low dose, made on two small
    simulated objects, and no search. The phase grows with iterations, and few of them leave it well below the true
    amplitude and single atoms not quite in place: compare by FRC or correlation, not in rad, and iterate more at high
    dose.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.ones((8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2, energy_eV=3e5,
    ...                             semiangle_mrad=10)
    >>> reconstruct_ptychography(cube, iterations=0, aberrations={"C10": -500})
    Traceback (most recent call last):
        ...
    ValueError: iterations=0 must be a whole number, at least 1
    """
    if not (isinstance(iterations, int | np.integer) and iterations >= 1):
        raise ValueError(f"iterations={iterations} must be a whole number, at least 1")
    _refuse(preprocess_options, _OWN_PREPROCESS, "preprocess_options")
    _refuse(reconstruct_options, _OWN_RECONSTRUCT, "reconstruct_options")
    setup = setup_of(cube, aberrations, rotation_deg, required=True)
    axes = (np.asarray(cube[name].values, dtype=float) for name in ("scan_y", "scan_x"))
    positions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    padding = tuple(math.ceil(size / 2) for size in setup.mask.shape)  # whole: probe positions fall on pixels
    seeds = np.random.default_rng(rng).integers(2**32, size=iterations)
    with silent_py4dstem(), _bar(int(iterations), "ptychography", progress) as bar:
        ptycho = engine(
            "SingleslicePtychography",
            setup,
            turn_deg=setup.rotation_deg,
            semiangle_cutoff=setup.semiangle_mrad,
            initial_probe_guess=setup.probe(),
            initial_scan_positions=positions - positions[0],
            object_padding_px=padding,
            object_type=object_type,
        )
        ptycho.preprocess(**{**centred_patterns(setup), **(preprocess_options or {})})
        for number, seed in enumerate(seeds):
            ptycho.reconstruct(
                num_iter=1,
                reset=number == 0,
                step_size=step_size,
                max_batch_size=min(batch_size or len(positions), len(positions)),
                seed_random=int(seed),
                fix_probe=fix_probe,
                progress_bar=False,
                **(reconstruct_options or {}),
            )
            bar.update()
    image = _ptychography_image(ptycho, positions, cube)
    arguments = {
        "iterations": int(iterations),
        "step_size": float(step_size),
        "batch_size": batch_size,
        "fix_probe": fix_probe,
        "object_type": object_type,
        "rng": describe_rng(rng),
    }
    options = {"preprocess": preprocess_options, "reconstruct": reconstruct_options}
    image = _label(image, cube, setup, setup.polar, "reconstruct_ptychography", arguments, options)
    image = image if like is None else resample_like(image, like)
    if not return_probe:
        return image
    shared = {name: value for name, value in image.attrs.items() if name != "units"}
    probe = setup.label_probe(ptycho._probe)
    probe.attrs = shared | probe.attrs
    return xr.Dataset({"phase": image, "probe": probe}, attrs=shared)


def _parallax_image(parallax: Any, shifts_A: np.ndarray, cube: xr.DataArray, factor: int) -> xr.DataArray:
    """Cropped to the field and put where the shifts of the true optic axis have it.

    py4DSTEM takes the axis for a whole pixel, and cross-correlation leaves the mean shift free: either moves the
    whole picture by the mean difference of the shifts. The padded picture is periodic, so a phase ramp moves it
    back exactly.
    """
    steps = scan_step(cube)
    moved = np.asarray(parallax._xy_shifts, dtype=float) - shifts_A / np.asarray(steps)
    values = parallax.recon_phase_corrected / 2
    ramps = (
        np.exp(2j * np.pi * np.fft.fftfreq(size) * move * factor)
        for size, move in zip(values.shape, moved.mean(axis=0), strict=True)
    )
    values = np.fft.ifft2(np.fft.fft2(values) * np.multiply.outer(*ramps)).real
    window = tuple(
        slice(pad // 2 * factor, (pad // 2 + size) * factor)
        for pad, size in zip(parallax._object_padding_px, cube.shape, strict=False)
    )
    values = values[window]
    return image_from_array(
        values - values.mean(), pixel_A=(steps[0] / factor, steps[1] / factor), origin_A=_origin(cube)
    )


def _ptychography_image(ptycho: Any, positions: np.ndarray, cube: xr.DataArray) -> xr.DataArray:
    """Cropped to the field and turned to the scan's frame, by where py4DSTEM put the probe positions."""
    values = np.asarray(ptycho.object)
    values = np.angle(values) if np.iscomplexobj(values) else values.astype(float)
    origin, steps = _origin(cube), scan_step(cube)
    known = np.column_stack([positions - origin, np.ones(len(positions))])
    affine = np.linalg.lstsq(known, np.asarray(ptycho._positions_px_initial, dtype=float), rcond=None)[0]
    pixel = [1 / float(np.linalg.norm(affine[axis])) for axis in (0, 1)]
    along = [
        np.arange(math.ceil(size * step / edge - 1e-6)) * edge
        for size, step, edge in zip(cube.shape[:2], steps, pixel, strict=True)
    ]
    y, x = np.meshgrid(*along, indexing="ij")
    rows, columns = (affine[0, axis] * y + affine[1, axis] * x + affine[2, axis] for axis in (0, 1))
    return image_from_array(sample_at(values, rows, columns), pixel_A=(pixel[0], pixel[1]), origin_A=origin)


def _origin(cube: xr.DataArray) -> tuple[float, float]:
    return float(cube.scan_y[0]), float(cube.scan_x[0])


def _label(
    image: xr.DataArray,
    cube: xr.DataArray,
    setup: Setup,
    polar: Mapping[str, float],
    operation: str,
    arguments: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any] | None],
) -> xr.DataArray:
    carried = {name: setup.cube.attrs[name] for name in _CARRIED if name in setup.cube.attrs}
    image.attrs = with_aberrations(image, polar, rotation_deg=setup.rotation_deg).attrs | carried
    image.attrs["method"] = f"py4DSTEM {operation.removeprefix('reconstruct_')}"
    image.attrs["py4DSTEM_version"] = str(import_py4dstem().__version__)
    given = {f"{name}_options": dict(value) for name, value in options.items() if value}
    image.attrs["history"] = append_history(
        cube.attrs, operation, aberrations=dict(polar), rotation_deg=setup.rotation_deg, **arguments, **given
    )
    return image


def _upsample(upsample: int | str, needed: float) -> int:
    if upsample == "auto":
        return max(1, math.ceil(needed - 1e-6))
    if isinstance(upsample, str) or not float(upsample).is_integer() or upsample < 1:
        raise ValueError(f"upsample={upsample!r} must be 'auto' or a whole number, at least 1")
    return int(upsample)


def _refuse(options: Mapping[str, Any] | None, own: Mapping[str, str], name: str) -> None:
    taken = [f"{key} ({own[key]})" for key in options or {} if key in own]
    if taken:
        raise ValueError(f"{name} cannot set {', '.join(taken)}: misr sets it, so use the argument in brackets")


def _bar(total: int, what: str, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, disable=not progress, leave=False)
