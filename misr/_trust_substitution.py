"""High-resolution noise substitution: what a method still resolves where the specimen's phases are random."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr._trust_controls import (
    Pipeline,
    central_crop,
    dose_of,
    linear_image,
    linear_specimen,
    run_pair,
    scan_pixel,
    substituted_phases,
)
from misr._trust_statistics import Chance, chance_of, ring_chance
from misr.aberrations import aberrations_of
from misr.cube import scan_step
from misr.resolution import fourier_ring_correlation, frc_resolution

__all__ = ["noise_substitution"]

_BEFORE = 0.75  # of the claimed resolution's frequency
_UNCLAIMED = 0.25  # of the highest frequency, where nothing is claimed
_FEWEST_RINGS = 3
_MATERIAL = 0.05  # correlation: no threshold is as low
_STRONGER = 0.25  # of the linear fusion's correlation: methods weigh frequencies differently
_SAME_RESOLUTION = 0.05
_RING_WIDTH = 0.05  # 1/Å


def noise_substitution(
    cube: xr.DataArray,
    pipeline: Pipeline,
    *,
    beyond: float | None = None,
    phase: xr.DataArray | None = None,
    halves: xr.Dataset | None = None,
    ring_width: float | str | None = None,
    max_positions: int | None = 4096,
    threshold: str | float = "half-bit",
    alpha: float = 0.01,
    rng: Any = None,
) -> xr.Dataset:
    """Randomise the phases of the specimen beyond a frequency, and see what a method still "resolves" there.

    Two specimens, the same up to a frequency and with the same amplitudes but unrelated phases above it, are each
    scanned with half the dose and reconstructed. Above that frequency their images have nothing in common that the
    specimens gave them; what correlates there, the method has put in, be it a texture, order continued from lower
    frequencies, or aliases left folded. With that curve F_n and the half-map FRC F_t, what is left of the latter is
    ``(F_t - F_n) / (1 - F_n)`` (Chen et al. 2013, Ultramicroscopy 135, 24).

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube of whole counts, aberrations known (`misr.calibrate_cube`).
    pipeline : callable
        From a cube to an image with dims ``("y", "x")``, or a Dataset that holds one as ``phase``. It runs twice, and
        twice more for the half maps if ``halves`` is not given.
    beyond : float, optional
        Frequency, 1/Å. By default the edge of rings nearest to ¾ of the frequency that the half maps claim to
        resolve, so that what they claim last is tested; to ¼ of their highest frequency if they claim none.
    phase : xarray.DataArray, optional
        The specimen, rad, over the scanned field: the truth where it is known. By default the linear fusion's image
        with its amplitudes scaled up to the specimen's power.
    halves : xarray.Dataset, optional
        From `misr.half_maps` of the same cube and pipeline.
    ring_width : float or "auto", optional
        1/Å, see `misr.fourier_ring_correlation`; by default that of ``halves`` if given, else "auto": wide enough for a
        crystal's lattice, at least 0.05, or two frequency pixels of the field if that is more.
    max_positions : int or None, default 4096
        The made-up specimens are scanned at no more positions than this, in the middle of the scan: making their
        patterns is what takes long.
    threshold : str or float, default "half-bit"
        Of the claimed resolution.
    alpha : float, default 0.01
        Rate of false alarms, at most, of ``passed``.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    xarray.Dataset
        Over ``frequency`` (1/Å): ``frc`` (half maps), ``frc_substituted`` and ``frc_corrected``. Scalars: ``beyond``
        (1/Å), ``correlation`` (mean above it, weighted with the independent values), ``correlation_limit`` (what chance
        leaves it below, at level ``alpha``), ``p_value`` (chance of any run of rings correlated as well),
        ``passed``, and ``resolution`` and ``resolution_corrected`` (Å); ``correlation_strongest`` in the most
        significant run of rings, and ``correlation_linear``, that of the linear fusion of the same scans there (0 where
        there was no need to look). ``attrs["status"]`` is "passed" (chance, or too little to matter: below 0.05 and
        without effect on the resolution), "FAILED", or "not judged" where the linear fusion shows as much: then the
        specimen is too strong for this test.

    Raises
    ------
    ValueError
        For a cube without aberrations or whole counts, a ``beyond`` past the last rings, or a pipeline that returns no
        image.

    Notes
    -----
    The significance is that of given amplitudes with uniform phases, ring by ring, so that a few strong reflections
    do not raise alarms. A specimen with strong phases (a few tenths of a radian) scatters products of low frequencies
    into high ones; to any method that takes the object as weak these look like content, and both halves share them.
    The linear fusion's images of the same scans show how much of it there is, and only what exceeds them by more than
    0.05 is the method's own.

    Examples
    --------
    >>> import misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (12, 12, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -200})
    >>> def linear(cube):
    ...     return misr.fuse_linear(misr.synthesize_views(cube), upsample=2)
    >>> bool(noise_substitution(cube, linear, rng=0).passed)
    True
    """
    from misr.halves import half_maps
    from misr.phase_object import cube_from_phase

    if aberrations_of(cube) is None:
        raise ValueError("the cube's aberrations are not known: calibrate it first, misr.calibrate_cube(cube)")
    split, random_phases, *counting = np.random.default_rng(rng).integers(2**63, size=4).tolist()
    if halves is None:
        width = "auto" if ring_width is None else ring_width
        halves = half_maps(cube, pipeline, rng=split, ring_width=width)
        halves = rings_of(central_crop(cube, max_positions), halves, ring_width)
    plain = halves["frc"]
    width = float(plain.attrs["ring_width"])
    resolution = frc_resolution(plain, threshold)
    cut = default_cut(plain, resolution) if beyond is None else _checked(plain, float(beyond))
    specimen = linear_specimen(cube) if phase is None else phase
    pair = substituted_phases(specimen, cut, rng=random_phases)
    dose, part = dose_of(cube), central_crop(cube, max_positions)
    scans = [
        cube_from_phase(one, like=part, dose_e_per_A2=dose / 2, rng=seed)
        for one, seed in zip(pair, counting, strict=True)
    ]
    first, second, window = run_pair(pipeline, (scans[0], scans[1]))
    # rings of the whole field may be narrower than a frequency pixel of its middle
    width = max(width, 1 / min(first.shape[i] * step for i, step in enumerate(scan_pixel(first))))
    # a taper carries what lies below the cut a pixel and a half above it
    leak = 0.0 if window is None else 1.5 / min(first.shape[i] * step for i, step in enumerate(scan_pixel(first)))
    above = cut + leak
    chance = chance_of(first, second, ring_width=width, window=window, above=above, alpha=alpha)
    substituted = on_rings(fourier_ring_correlation(first, second, ring_width=width, window=window), plain)
    corrected = _corrected(plain, substituted, above)
    mended = frc_resolution(corrected, threshold)
    status, by_linear = "passed", 0.0
    if chance.p_value < alpha:
        pair_linear = run_pair(linear_image, (scans[0], scans[1]))
        by_linear = _in_band(pair_linear, chance, width)
        status = _status(chance.strongest - max(by_linear, 0.0), by_linear, resolution, mended)
    result = xr.Dataset(
        {
            "frc": plain,
            "frc_substituted": substituted,
            "frc_corrected": corrected,
            "beyond": ((), cut, {"units": "1/Å"}),
            "correlation": ((), chance.value, {"units": "1"}),
            "correlation_limit": ((), chance.limit, {"units": "1", "alpha": alpha}),
            "p_value": ((), chance.p_value, {"units": "1"}),
            "passed": ((), status == "passed"),
            "resolution": resolution,
            "resolution_corrected": mended,
            "correlation_strongest": ((), chance.strongest, {"units": "1"}),
            "correlation_linear": ((), by_linear, {"units": "1"}),
        }
    )
    result.attrs |= {"highest": chance.highest, "status": status, "alpha": alpha}
    result.attrs["words"] = _words(result)
    result.attrs["history"] = append_history(
        cube.attrs, "noise_substitution", beyond=cut, ring_width=width, threshold=threshold, alpha=alpha,
        phase="linear fusion" if phase is None else "given", rng=describe_rng(rng),
    )  # fmt: skip
    return result


def trust_rings(cube: xr.DataArray, ring_width: float | str | None) -> float:
    """Rings wide enough that no single one decides what is claimed."""
    if ring_width is not None and ring_width != "auto":
        return float(ring_width)
    field = min(cube.sizes[dim] * step for dim, step in zip(("scan_y", "scan_x"), scan_step(cube), strict=True))
    return max(_RING_WIDTH, 2 / field)


def default_cut(frc: xr.DataArray, resolution: xr.DataArray) -> float:
    """The edge of rings nearest to a little before the claimed resolution, with a few rings left beyond."""
    width, rings = float(frc.attrs["ring_width"]), frc.sizes["frequency"]
    claimed = float(resolution)
    wanted = _BEFORE / claimed if np.isfinite(claimed) else _UNCLAIMED * float(frc["frequency"][-1])
    return width * max(1, min(round(wanted / width), rings - _FEWEST_RINGS))


def _checked(frc: xr.DataArray, beyond: float) -> float:
    last = float(frc["frequency"][-1])
    if not 0 < beyond < last - 1.5 * float(frc.attrs["ring_width"]):
        raise ValueError(
            f"beyond={beyond:g} 1/Å must lie above 0 and leave two rings before the last one at {last:.3g} 1/Å (a "
            "resolution of d Å is the frequency 1/d)"
        )
    return beyond


def rings_of(cube: xr.DataArray, halves: xr.Dataset, ring_width: float | str | None) -> xr.Dataset:
    """The half maps with their curve on rings that are wide enough, those of a crystal's lattice included."""
    from misr._curves import named_curve
    from misr.snr import full_dose_frc

    plain = halves["frc"]
    width = float(plain.attrs["ring_width"])
    wanted = max(width, trust_rings(cube, None)) if ring_width in (None, "auto") else width
    if wanted == width:
        return halves
    window = str(plain.attrs.get("window", "None"))
    frc = fourier_ring_correlation(
        halves["first"], halves["second"], ring_width=wanted, window=None if window == "None" else window
    )
    frc.attrs = plain.attrs | frc.attrs | {"kind": "half-map", "history": plain.attrs["history"]}
    curves = {"frc": frc, "frc_full": named_curve(full_dose_frc(frc), "frc_full"), "resolution": frc_resolution(frc)}
    maps = {name: halves[name].drop_vars("frequency", errors="ignore") for name in ("first", "second")}
    return xr.Dataset(maps | curves, attrs=dict(halves.attrs))


def on_rings(frc: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """A curve on the rings of another: NaN where it has none."""
    near = float(like.attrs["ring_width"]) / 2
    ends = [f"{frc.name or 'frc'}_{end}" for end in ("low", "high")]
    plain = frc.drop_vars([name for name in frc.coords if name not in ("frequency", *ends)])
    moved = plain.reindex(frequency=like["frequency"].values, method="nearest", tolerance=near)
    return moved.assign_coords({name: like[name] for name in ("frequency", "n_independent")}).assign_attrs(frc.attrs)


def _corrected(plain: xr.DataArray, substituted: xr.DataArray, above: float) -> xr.DataArray:
    total, noise = plain.values, np.nan_to_num(substituted.values)
    left = 1 - noise
    mended = np.divide(total - noise, left, out=np.zeros_like(total), where=left > 1e-6)
    values = np.where(plain["frequency"].values > above, np.clip(mended, -1, 1), total)
    coords = {name: plain[name] for name in ("frequency", "n_independent")}
    attrs = {**plain.attrs, "long_name": "FRC without what the method puts in"}
    return xr.DataArray(values, dims="frequency", coords=coords, name="frc_corrected", attrs=attrs)


def _in_band(images: tuple[xr.DataArray, xr.DataArray, str | None], chance: Chance, width: float) -> float:
    """Mean correlation of two images in the rings of a run."""
    first, second, window = images
    q, frc, _, n = ring_chance(first, second, ring_width=width, window=window)
    run = (q >= chance.lowest - 1e-9) & (q < chance.highest - 1e-9)
    return float(n[run] @ frc[run] / n[run].sum()) if run.any() else 0.0


def _status(excess: float, by_linear: float, claimed: xr.DataArray, corrected: xr.DataArray) -> str:
    before, after = float(claimed), float(corrected)
    moved = np.isfinite(before) and not after <= before * (1 + _SAME_RESOLUTION)
    if excess > _MATERIAL + _STRONGER * max(by_linear, 0.0):
        return "FAILED"
    if by_linear > _MATERIAL:
        return "not judged"
    return "FAILED" if moved and excess > 0 else "passed"


def _words(result: xr.Dataset) -> str:
    cut, value, limit = (float(result[name]) for name in ("beyond", "correlation", "correlation_limit"))
    where = f"beyond {cut:.3g} 1/Å ({1 / cut:.3g} Å), where the specimens' phases were random,"
    strongest, by_linear = float(result["correlation_strongest"]), float(result["correlation_linear"])
    if result.attrs["status"] == "not judged":
        return (
            f"{where} the images correlate by {strongest:.3f}, those of the linear fusion by {by_linear:.3f}: "
            "the specimen is too strong for this test, which takes it as weak"
        )
    if bool(result["passed"]) and float(result["p_value"]) < result.attrs["alpha"]:
        return f"{where} the images correlate by {value:.3f} (chance: below {limit:.3f}), too little to matter"
    if bool(result["passed"]):
        return f"{where} the images correlate by {value:.3f}, as chance has it (below {limit:.3f})"
    return (
        f"{where} the images still correlate by {value:.3f} (chance: below {limit:.3f}), up to "
        f"{result.attrs['highest']:.3g} 1/Å: that much the method puts in itself"
    )
