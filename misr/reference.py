"""Reference reconstructions by py4DSTEM on the scan's own coordinates: parallax and single-slice ptychography.

Thin layers: py4DSTEM reconstructs, misr hands it the same calibration it uses itself and puts its picture where
the probe was. py4DSTEM calls rows x and columns y, so its aberration angles are π/2 minus misr's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from misr._provenance import describe_rng
from misr._py4dstem import Setup, aberration_orders, engine, engine_device, setup_of, silent_py4dstem, turn_angles
from misr._reference_labels import label, parallax_image, progress_bar, refuse
from misr._reference_ptychography import Iteration, Ptychography, Run
from misr._reference_search import Search, against_truth, check_preset, chosen, held_out, make_grid, passes, run_search
from misr.cube import scan_step
from misr.dose import split_counts
from misr.resample import resample_like

__all__ = ["reconstruct_parallax", "reconstruct_ptychography"]

_FIT_PADDING = 32  # py4DSTEM's own, scan pixels
_OWN_PARALLAX = {
    "dp_mask": "attrs['semiangle_mrad']",
    "force_rotation_angle_deg": "rotation_deg",
    "force_transpose": "rotation_deg",
    "device": "device",
}
_OWN_ALIGNMENT = {"kde_upsample_factor": "upsample", "progress_bar": "progress"}
_OWN_CORRECTION = {"use_CTF_fit": "aberrations", "upsampled": "upsample"}
_OWN_PREPROCESS = {
    "force_com_rotation": "rotation_deg",
    "force_com_transpose": "rotation_deg",
    "device": "device",
} | dict.fromkeys(
    (
        "force_com_shifts", "force_com_measured", "force_scan_sampling", "force_angular_sampling",
        "force_reciprocal_sampling", "crop_patterns", "diffraction_intensities_shape",
        "padded_diffraction_intensities_shape", "region_of_interest_shape",
    ),
    "cube",
)  # fmt: skip
_OWN_RECONSTRUCT = {
    "num_iter": "iterations", "step_size": "step_size", "max_batch_size": "batch_size", "seed_random": "rng",
    "gaussian_filter_sigma": "smoothing_A", "fix_probe": "fix_probe", "progress_bar": "progress",
    "object_type": "object_type", "reset": "iterations", "device": "device",
}  # fmt: skip


def reconstruct_parallax(
    cube: xr.DataArray,
    *,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    rotation_deg: float | None = None,
    upsample: int | Literal["auto"] = "auto",
    fit: bool = False,
    like: xr.DataArray | None = None,
    device: str = "auto",
    progress: bool = True,
    preprocess_options: Mapping[str, Any] | None = None,
    reconstruct_options: Mapping[str, Any] | None = None,
    alignment_options: Mapping[str, Any] | None = None,
    correction_options: Mapping[str, Any] | None = None,
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
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where CuPy finds one.
    progress : bool, default True
        Show a progress bar.
    preprocess_options, reconstruct_options, alignment_options, correction_options : mapping, optional
        Further settings of py4DSTEM's ``Parallax.preprocess`` (such as ``normalize_order``), ``.reconstruct`` (with
        ``fit`` only), ``.subpixel_alignment`` (``kde_sigma_px``, ``kde_lowpass_filter``) and ``.aberration_correct``
        (``q_lowpass``, ``q_highpass`` in 1/Å, ``butterworth_order``).

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, Å on the scan's origin, rad: half of py4DSTEM's corrected image (normalised to a mean
        bright field of 1), which for a weak phase is the phase seen through ``a(q) |sin χ(q)|``; mean 0. The
        aberrations used are in ``attrs``.

    Raises
    ------
    ValueError
        If the cube is not valid, its pixels are not square, aberrations are missing or without defocus, the device is
        not there, or an option is misr's to set.

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
    refuse(preprocess_options, _OWN_PARALLAX, "preprocess_options")
    refuse(alignment_options, _OWN_ALIGNMENT, "alignment_options")
    refuse(correction_options, _OWN_CORRECTION, "correction_options")
    on = engine_device(device)
    setup = setup_of(cube, aberrations, rotation_deg, required=not fit)
    step = sum(scan_step(cube)) / 2
    factor = _upsample(upsample, 4 * step * setup.cutoff)
    if not fit and not any(value for name, value in setup.polar.items() if name[0] == "C"):
        raise ValueError("all aberrations are 0: parallax gets its contrast from defocus; use ptychography in focus")
    reach = float(np.abs(setup.shifts(setup.polar)).max()) / step
    padding = max(2 * math.ceil(reach) + 8, _FIT_PADDING if fit else 0)
    with silent_py4dstem(), progress_bar(3 + fit, "parallax", progress) as bar:
        parallax = engine("Parallax", setup, turn_deg=0.0, object_padding_px=(padding, padding), device=on)
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
        quiet = dict.fromkeys(("plot_upsampled_BF_comparison", "plot_position_correction_convergence"), False)
        parallax.subpixel_alignment(
            kde_upsample_factor=factor, progress_bar=False, **{**quiet, **(alignment_options or {})}
        )
        bar.update()
        parallax.aberration_correct(**{"plot_corrected_phase": False, **(correction_options or {})}, use_CTF_fit=True)
        bar.update()
    used = turn_angles(parallax.aberrations_dict_polar, 0.0) if fit else setup.polar
    image = parallax_image(parallax, setup.shifts(used), cube, factor)
    arguments = {"upsample": factor, "fit": fit}
    options = {
        "preprocess": preprocess_options,
        "reconstruct": reconstruct_options,
        "alignment": alignment_options,
        "correction": correction_options,
    }
    image = label(image, cube, setup, used, "reconstruct_parallax", arguments, options)
    return image if like is None else resample_like(image, like)


def reconstruct_ptychography(
    cube: xr.DataArray,
    *,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    rotation_deg: float | None = None,
    preset: Literal["default", "tuned", "oracle"] = "default",
    iterations: int | Literal["auto"] = "auto",
    step_size: float | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] | None = "auto",
    smoothing_A: float | Literal["auto"] = "auto",
    fix_probe: bool = True,
    object_type: Literal["potential", "complex"] = "potential",
    search: Mapping[str, Sequence[Any]] | None = None,
    truth: xr.DataArray | None = None,
    ring_width: float | None = None,
    return_probe: bool = False,
    like: xr.DataArray | None = None,
    rng: Any = None,
    device: str = "auto",
    progress: bool = True,
    callback: Callable[[Iteration], Any] | None = None,
    cancel: Callable[[], Any] | None = None,
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
        Polar coefficients of the starting probe, Å and rad, or the Dataset of `misr.fit_aberrations` (which brings
        rotation and transposition); those in the cube's attrs by default.
    rotation_deg : float, optional
        Scan-to-detector rotation, degrees; from ``aberrations`` or the cube's attrs by default, else 0.
    preset : {"default", "tuned", "oracle"}
        Where the settings that are "auto" come from. "default": 8 iterations, step size 0.1, batches of 64, no
        smoothing. "tuned": those of a grid that, fitted to one half of the electrons, best agree with the linear fusion
        of the other half; no truth is used. "oracle": those whose image best agrees with ``truth``: for studies that
        want to show ptychography at its very best.
    iterations : int or "auto"
        Passes over the data.
    step_size : float or "auto"
        Gradient step.
    batch_size : int, None or "auto"
        Patterns per update (None: all).
    smoothing_A : float or "auto"
        Standard deviation of a Gaussian filter of the object after each pass, Å; 0 for none.
    fix_probe : bool, default True
        Keep the starting probe. False refines it, which wants dose.
    object_type : {"potential", "complex"}
        A non-negative phase, or a complex object of which the phase is returned.
    search : mapping, optional
        Values to try instead of the grid's: ``{"step_size": (0.03, 0.1, 0.3), "batch_size": (64, 256),
        "smoothing_A": (0.0,), "iterations": (1, 2, 4, 8, 16)}``, 96 passes. A setting that is given is not searched,
        and iterations cost only the longest.
    truth : xarray.DataArray, optional
        For "oracle": the true phase, dims ``("y", "x")``, Å on the scan's origin.
    ring_width : float, optional
        Of the FRC that a search goes by, 1/Å (see `misr.fourier_ring_correlation`): for a crystal wider than the
        spacing of its reflections.
    return_probe : bool, default False
        Return a Dataset with the probe, the error of each pass and the search.
    like : xarray.DataArray, optional
        Resample on this image's grid (see `misr.resample_like`).
    rng : None, int or numpy.random.Generator
        Seed of the batches and halves (SPEC 7).
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where CuPy finds one.
    progress : bool, default True
        Show a progress bar.
    callback : callable, optional
        Called after each pass with its ``stage`` ("search", "reconstruction"), ``done``, ``total``, ``error`` and
        ``phase()``, the image so far.
    cancel : callable, optional
        Asked after each pass; once it returns True the image so far is returned, with ``attrs["cancelled"]`` 1. A
        search that is cancelled is followed by one pass over all electrons with the best settings so far.
    preprocess_options, reconstruct_options : mapping, optional
        Further settings of py4DSTEM's ``SingleslicePtychography.preprocess`` and ``.reconstruct`` (such as
        ``q_lowpass``, ``object_positivity``, ``fix_positions``, ``reconstruction_method``).

    Returns
    -------
    xarray.DataArray or Dataset
        Phase, rad, dims ``("y", "x")``, Å on the scan's origin. ``attrs`` hold the settings used (``batch_size`` 0:
        all patterns), the ``iterations`` done, ``cancelled``, and all trials as JSON in ``search``. With
        ``return_probe`` a Dataset of ``phase``, ``amplitude`` (of a complex object), the complex ``probe`` (dims
        ``("probe_y", "probe_x")``, Å in the detector's frame, unit total intensity), ``error`` over ``iteration``
        (mean squared error of the amplitudes over the mean electrons of a pattern) and the search over ``trial``:
        ``search_score``, the FRC's mean up to the band limit 2α/λ ("tuned": with the linear image of held-out
        electrons; "oracle": with the truth, and ``search_resolution``, Å, at 0.5), and the settings tried.

    Raises
    ------
    ValueError
        If the cube is not valid or empty, its detector pixels are not square, aberrations are missing, a setting is
        out of range, "oracle" lacks its truth, the device is not there, or for "tuned" counts are not whole.

    Notes
    -----
    Method: Varnavides et al. (2023), arXiv:2309.05250.

    *Defaults.* Simulated protein-like (30 Å) and zeolite slabs at 100 and 1000 e/Å², 300 kV, 10 mrad, 1500 Å defocus,
    one seed each: over step sizes 0.03 to 0.3, batches of 64 and 256, up to 16 iterations and smoothing by 0 or 0.3 Å
    the mean FRC against truth ranged over 9 to 14 %, and the defaults came within 4 % of its best (0.02 Å in
    resolution; 0.2 Å for the protein at 100 e/Å²). Smoothing never helped. The phase grows with iterations, and few of
    them leave it well below the true amplitude and single atoms up to 0.2 Å off: compare by FRC or correlation, not in
    rad.

    *Tuned.* At 1000 e/Å² its score ranked 25 settings like the truth only in part (Spearman 0.6 for the protein, 0.2
    for the zeolite) and its choice lost 1.6 and 2.3 % of the best mean FRC. The likelihood of held-out electrons did
    worse (0.5 and 0.0; 1.6 and 4.0 %): it rewards well-scaled, smooth images, which the FRC ignores. So little is at
    stake that "tuned" need not beat the defaults.

    Examples
    --------
    >>> import numpy as np, misr
    >>> cube = misr.cube_from_array(np.ones((8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2, energy_eV=3e5,
    ...                             semiangle_mrad=10)
    >>> reconstruct_ptychography(cube, iterations=0, aberrations={"C10": -500})
    Traceback (most recent call last):
        ...
    ValueError: iterations=0 must be a whole number, at least 1, or 'auto'
    """
    refuse(preprocess_options, _OWN_PREPROCESS, "preprocess_options")
    refuse(reconstruct_options, _OWN_RECONSTRUCT, "reconstruct_options")
    check_preset(preset, search, truth)
    wanted = {"iterations": iterations, "step_size": step_size, "batch_size": batch_size, "smoothing_A": smoothing_A}
    settings = chosen(wanted)
    grid = None if preset == "default" else make_grid(wanted, search)
    options = {"preprocess": preprocess_options, "reconstruct": reconstruct_options}
    engine_settings: dict[str, Any] = {f"{name}_options": value for name, value in options.items()}
    engine_settings |= {"object_type": object_type, "fix_probe": fix_probe, "device": engine_device(device)}
    setup = setup_of(cube, aberrations, rotation_deg, required=True)
    generator = np.random.default_rng(rng)
    longest = settings.iterations if grid is None else max(grid["iterations"])
    seeds = generator.integers(2**32, size=longest).tolist()
    total = longest if grid is None else passes(grid) + longest
    with silent_py4dstem(), progress_bar(total, "ptychography", progress) as bar:
        run = Run(total, bar=bar, callback=callback, cancel=cancel)
        found = None
        if grid is not None:
            found = _search(setup, grid, engine_settings, truth, ring_width, run=run, seeds=seeds, rng=generator)
            settings = found.best
            run.expect(settings.iterations)
        fit = Ptychography(setup, **engine_settings)
        errors = list(fit.passes(settings, seeds, run))
    image = fit.phase()
    arguments = {
        "preset": preset,
        **dataclasses.asdict(settings),
        "fix_probe": fix_probe,
        "object_type": object_type,
        "rng": describe_rng(rng),
    }
    image = label(image, cube, setup, setup.polar, "reconstruct_ptychography", arguments, options)
    image.attrs |= {"preset": preset, **settings.attrs(), "iterations": len(errors), "cancelled": int(run.cancelled)}
    if found is not None:
        image.attrs["search"] = found.json()
    if not return_probe:
        return image if like is None else resample_like(image, like)
    return _with_probe(image, fit, errors, found, like)


def _with_probe(
    image: xr.DataArray, fit: Ptychography, errors: list[float], found: Search | None, like: xr.DataArray | None
) -> xr.Dataset:
    images = {"phase": image}
    shared = {name: value for name, value in image.attrs.items() if name != "units"}
    if fit.is_complex:
        amplitude = fit.amplitude()
        images["amplitude"] = amplitude.assign_attrs(shared | amplitude.attrs)
    if like is not None:
        images = {name: resample_like(array, like) for name, array in images.items()}
    shared["history"] = images["phase"].attrs["history"]
    probe = fit.probe()
    probe.attrs = shared | probe.attrs
    error = xr.DataArray(
        errors, dims="iteration", coords={"iteration": np.arange(1, len(errors) + 1)}, attrs={"units": "1"}
    )
    result = xr.Dataset({**images, "probe": probe, "error": error}, attrs=shared)
    return result if found is None or not found.trials else result.merge(found.dataset())


def _search(
    setup: Setup,
    grid: Mapping[str, Sequence[Any]],
    engine_settings: Mapping[str, Any],
    truth: xr.DataArray | None,
    ring_width: float | None,
    *,
    run: Run,
    seeds: Sequence[int],
    rng: np.random.Generator,
) -> Search:
    """On all electrons against the truth if it is given, else on one half against the other."""
    if truth is not None:
        score = against_truth(truth, ring_width, 2 * setup.cutoff)
    else:
        first, second = split_counts(setup.cube, rng=rng)
        setup = dataclasses.replace(setup, cube=first)
        score = held_out(setup, second, ring_width)
    return run_search(Ptychography(setup, **engine_settings), grid, score=score, run=run, seeds=seeds)


def _upsample(upsample: int | str, needed: float) -> int:
    if upsample == "auto":
        return max(1, math.ceil(needed - 1e-6))
    if isinstance(upsample, str) or not float(upsample).is_integer() or upsample < 1:
        raise ValueError(f"upsample={upsample!r} must be 'auto' or a whole number, at least 1")
    return int(upsample)
