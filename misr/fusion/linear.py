"""Linear fusion of views: the exact joint solve of the aliases, optimum bright field, and the tilt-corrected sum."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr.cube import image_from_array
from misr.fusion.attrs import image_attrs, origin_of
from misr.fusion.geometry import ScanGrid, check_upsample
from misr.fusion.summed import shift_and_add

if TYPE_CHECKING:
    from misr.fusion.plan import FusionPlan

__all__ = ["fuse_linear", "joint_solve", "plan_fusion", "solved", "whole_counts"]

_UNSEEN = 1e-4  # of the strongest power
CHI2_SUSPECT = 1.2  # counting statistics give 1 within a few thousandths for the numbers of views and positions in use
_CHI2_TOO_QUIET = 0.8  # electrons cannot scatter so little


def fuse_linear(
    views: xr.DataArray,
    *,
    upsample: int | str = "auto",
    method: str = "wiener",
    prior: str = "ring",
    amplitude: bool = False,
    absorption_rad: float = 0.0,
    source_size_A: float = 0.0,
    focal_spread_A: float = 0.0,
    plan: FusionPlan | None = None,
    device: str = "auto",
) -> xr.Dataset:
    """Fuse views into one phase image by the exact linear solve of a weak object.

    A scan of step s folds the object's frequencies modulo 1/s. The views see the folded frequencies with different
    overlap functions Γ, so all aliases of a scan frequency are solved together:
    ``(Γᴴ N Γ + Λ) φ = Γᴴ N G``, with N the expected counts of each view (the inverse variance of its contrast)
    and Λ = noise power / object power, the object's power learnt from the same data.

    Parameters
    ----------
    views : xarray.DataArray
        From `misr.synthesize_views`, dims ``("view", "scan_y", "scan_x")``, electrons, aberrations known. NumPy, or
        dask, computed block by block of scan rows in one pass, so let its chunks be few scan rows (views beyond
        0.75 GiB go to a temporary file); with a ``dask.distributed`` client the sums over views are formed on its
        workers.
    upsample : int or "auto"
        Pixels per scan step. "auto" shows all that the data hold: the solve always reaches (95 % of) the band limit
        2α/λ, and the image gets the fewest pixels that carry every frequency of which more than a hundredth is
        recovered.
    method : "wiener", "obf" or "sum"
        The joint solve; optimum bright field, the matched filter with white noise, in which aliases stay folded (Ooe et
        al. 2021, Ultramicroscopy 220, 113133); or the tilt-corrected sum, `shift_and_add`.
    prior : "ring" or "local"
        Whether the object's power is learnt per ring of frequencies, or further for each frequency from its
        neighbours in the plane. The latter sees lattices: it passes their reflections and quietens what lies
        between, which helps crystals at low dose. What does not repeat suffers for it: vacancies lose much of
        their contrast, and one grain's order is carried a little into the next. "ring" shrinks what lies between a
        crystal's reflections: ``method="obf"``, without a prior, tells defects best.
    amplitude : bool
        Solve for the absorption too: an object ``exp(iφ - μ)``. Its noise is the price; for specimens that scatter
        strongly or outside the aperture (see Notes).
    absorption_rad : float
        Absorption angle η of an object ``1 + i φ exp(iη)`` whose amplitude contrast goes with its phase, rad
        (`misr.fit_aberrations` measures it, ``attrs["absorption_rad"]``).
    source_size_A, focal_spread_A : float
        Standard deviations of the source's Gaussian image in the specimen and of the defocus, Å.
    plan : FusionPlan, optional
        From `misr.plan_fusion`, made once for views of the same geometry: then only the counts are read again. Its
        ``amplitude``, ``absorption_rad``, sizes and device hold.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.Dataset
        ``phase`` and ``phase_std`` (rad), dims ``("y", "x")``, Å on the scan's own origin. ``phase_std`` is the
        standard deviation that the linear model gives a pixel (noise and what the prior leaves open, at the
        frequencies that the pixels can carry), the same over the whole field; too large rather than too small, since
        rings that the data say nothing about are given the power of their neighbours. Over
        ``("frequency_y", "frequency_x")``, 1/Å: ``noise_std``, the square root of the power spectral density of the
        image's counting noise (rad Å; its square integrates to the noise variance of a pixel), and ``transfer``, the
        share of the true amplitude that is in the image (0 to 1).
        With ``amplitude`` the same of the ``absorption`` μ (dimensionless), its spectra named
        ``absorption_noise_std`` and ``absorption_transfer``. For "obf" ``contrast`` alone, in standard deviations of
        its noise; for "sum" ``phase`` alone.
        ``attrs["chi2"]`` is the unexplained over the expected counting noise: about 1 where the
        weak-object model holds; an excess is treated as further noise.

    Raises
    ------
    ValueError
        For views without labels or aberrations, a bad argument, a plan for other views, or counts that are not finite
        or all zero.

    Warns
    -----
    UserWarning
        If views, scan step and defocus cannot unfold the aliases of the ``upsample`` asked for, scan positions hold far
        too few or too many electrons (they are left out), the counts scatter less than electrons can, or the model
        leaves well more than the counting noise unexplained (this one not with a ``plan``).

    Notes
    -----
    The model is linear in the specimen: phases well below 1 rad, little propagation within the thickness. It does not
    ask for a thin sample as such, only for ``chi2`` near 1. What it leaves out (multiple scattering, strong
    phases) shows in ``chi2`` at doses where it exceeds the counting noise.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (8, 8, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -1000})
    >>> image = fuse_linear(misr.synthesize_views(cube), upsample=2)
    >>> image.phase.shape, round(image.chi2, 1)
    ((16, 16), 1.0)
    """
    from misr.fusion.plan import check_same_specimen, check_simple, check_specimen, measure, warn_if_folded

    _check_choices(method, prior, upsample)
    specimen = check_specimen(amplitude, absorption_rad, source_size_A, focal_spread_A)
    if method != "wiener":
        check_simple(method, specimen, plan)
    if method == "sum":
        return _labelled_sum(views, upsample=upsample, device=device)
    fresh = plan is None
    if plan is None:
        plan, statistic = measure(views, specimen=specimen, device=device)
        warn_if_folded(plan, upsample)
    else:
        check_same_specimen(plan, specimen)
        upsample = (plan.upsample or upsample) if upsample == "auto" else upsample
        _, statistic = measure(views, plan=plan)
    if method == "obf":
        return _optimum_bright_field(views, plan, statistic, upsample=upsample)
    fused = joint_solve(views, plan, statistic, upsample=upsample, prior=prior)
    if fresh and fused.attrs["chi2"] > CHI2_SUSPECT:
        warnings.warn(unexplained(fused.attrs["chi2"]), UserWarning, stacklevel=2)
    return fused


def unexplained(chi2: float) -> str:
    """A sentence for a residual well beyond counting noise."""
    return (
        f"the weak-phase model leaves {chi2:.1f} times the counting noise unexplained (strong or thick specimen, wrong "
        "aberrations, or counts that are not electrons): check the aberrations, or let the specimen absorb "
        "(amplitude=True, or absorption_rad from misr.fit_aberrations)"
    )


def plan_fusion(
    views: xr.DataArray,
    *,
    upsample: int | str = "auto",
    amplitude: bool = False,
    absorption_rad: float = 0.0,
    source_size_A: float = 0.0,
    focal_spread_A: float = 0.0,
    device: str = "auto",
) -> FusionPlan:
    """Compute once what `fuse_linear` needs besides the counts: overlap functions and their products.

    Hold it while the dose, the split in halves or the prior change: a call with it is several times faster, and all
    images made with it have the same pixels. The views' shares of the electrons, and the pixels that "auto" needs, are
    taken from ``views``, so give those of the highest dose.

    Parameters
    ----------
    views : xarray.DataArray
        From `misr.synthesize_views`, dims ``("view", "scan_y", "scan_x")``, electrons, aberrations known.
    upsample, amplitude, absorption_rad, source_size_A, focal_spread_A
        See `fuse_linear`.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    FusionPlan
        Good for any views of the same pixels, scan and optics.

    Raises
    ------
    ValueError
        For views without labels or aberrations, or counts that are not finite or all zero.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> flat = np.random.default_rng(0).poisson(disk * 9.0, (8, 8, 16, 16))
    >>> cube = misr.cube_from_array(flat, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10,
    ...                             aberrations={"C10": -1000})
    >>> views = misr.synthesize_views(cube)
    >>> plan = plan_fusion(views)
    >>> plan
    <FusionPlan: 80 views of 8 × 8, 4 × 4 aliases, 2 MiB>
    >>> bool(np.allclose(misr.fuse_linear(views, plan=plan).phase, misr.fuse_linear(views).phase, atol=1e-6))
    True
    """
    from misr.fusion.plan import check_specimen, measure, warn_if_folded

    check_upsample(upsample)
    specimen = check_specimen(amplitude, absorption_rad, source_size_A, focal_spread_A)
    plan, statistic = measure(views, specimen=specimen, device=device, keep=True)
    warn_if_folded(plan, upsample)
    shown = _enough(solved(plan, statistic).filled, plan.grid) if upsample == "auto" else int(upsample)
    return replace(plan, upsample=shown)


def _check_choices(method: str, prior: str, upsample: int | str) -> None:
    for name, value, known in (("method", method, ("wiener", "obf", "sum")), ("prior", prior, ("ring", "local"))):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}")
    if method != "wiener" and prior != "ring":
        raise ValueError(f"prior={prior!r} belongs to method='wiener', got method={method!r}")
    check_upsample(upsample)


def joint_solve(
    views: xr.DataArray, plan: FusionPlan, statistic: Any, *, upsample: int | str, prior: str
) -> xr.Dataset:
    from misr.fusion.labels import labelled_channel

    solution = solved(plan, statistic, local=prior == "local")
    if solution.chi2 < _CHI2_TOO_QUIET:
        warnings.warn(
            f"the counts scatter {1 / max(solution.chi2, 1e-9):.3g} times less than electrons do, and are smoothed as "
            "if they were electrons: draw them with misr.apply_dose if they are expected, or divide by the detector's "
            "gain",
            UserWarning,
            stacklevel=3,
        )
    fine = _enough(solution.filled, plan.grid) if upsample == "auto" else int(upsample)
    attrs = image_attrs(views, "fuse_linear", fine, _told(plan, prior)) | {"chi2": solution.chi2}
    aliases = plan.freq.y.shape[1]
    variables: dict[str, Any] = {}
    for channel, name in enumerate(("phase", "absorption")[: len(plan.specimen.channels)]):
        part = slice(channel * aliases, (channel + 1) * aliases)
        variables |= labelled_channel(
            solution.posterior, part, name, plan=plan, views=views, upsample=fine, attrs=attrs
        )
    return xr.Dataset(variables, attrs=attrs)


def solved(plan: FusionPlan, statistic: Any, *, local: bool = False) -> Any:
    from misr.fusion.prior import NormalEquations
    from misr.fusion.wiener import regularised_solve

    electrons = statistic.energy.new_full((len(plan.matrix),), statistic.electrons)
    return regularised_solve(
        NormalEquations(plan.matrix, statistic.vector, electrons),
        energy=statistic.energy,
        informed=statistic.informed,
        freq=plan.freq,
        grid=plan.grid,
        cutoff=plan.geometry.cutoff,
        channels=len(plan.specimen.channels),
        local=local,
    )


def _optimum_bright_field(views: xr.DataArray, plan: FusionPlan, statistic: Any, *, upsample: int | str) -> xr.Dataset:
    """``Γᴴ G`` over its own noise, frequency by frequency."""
    import torch

    from misr.fusion.kernels import image_from_spectrum
    from misr.fusion.labels import shown

    aliases = plan.freq.y.shape[1]
    power = torch.diagonal(plan.matrix, dim1=-2, dim2=-1).real[:, :aliases]
    seen = power > _UNSEEN * power.max()
    spectrum = torch.where(seen, statistic.vector[:, :aliases] / power.clamp(min=1e-30).sqrt(), 0.0)
    fine = plan.folds if upsample == "auto" else int(upsample)
    noise = float((plan.freq.weight[:, None] * (seen & shown(plan, fine))).sum()) / statistic.electrons
    noise *= plan.grid.field_gain * plan.kept_noise
    attrs = image_attrs(views, "fuse_linear", fine, _told(plan, method="obf")) | {"units": "1"}
    image = image_from_spectrum(spectrum / math.sqrt(noise), grid=plan.grid, freq=plan.freq, upsample=fine)
    pixel, origin = plan.grid.pixel(fine), origin_of(views)
    contrast = image_from_array(image, pixel_A=pixel, origin_A=origin, name="contrast", units="1", attrs=attrs)
    return contrast.to_dataset().assign_attrs(attrs)


def _labelled_sum(views: xr.DataArray, *, upsample: int | str, device: str) -> xr.Dataset:
    phase = shift_and_add(views, upsample=upsample, device=device)
    return phase.rename("phase").to_dataset().assign_attrs(phase.attrs)


def _told(plan: FusionPlan, prior: str = "ring", method: str = "wiener") -> dict[str, Any]:
    """What was asked for besides the usual."""
    told = {name: value for name, value in asdict(plan.specimen).items() if value}
    return told | ({"prior": prior} if prior != "ring" else {}) | ({"fusion": method} if method != "wiener" else {})


def _enough(filled: float, grid: ScanGrid) -> int:
    """Fewest pixels per scan step that carry all frequencies up to ``filled``."""
    return max(1, min(grid.upsample, math.ceil(2 * filled * max(grid.step))))


def whole_counts(views: xr.DataArray) -> bool:
    """Whether the counts are whole electrons, so that counting statistics hold and halves can be drawn."""
    return views.dtype.kind in "ui" or bool(np.array_equal(views.values, np.rint(views.values)))
