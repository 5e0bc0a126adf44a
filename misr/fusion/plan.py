"""The geometry of a linear fusion as an object to hold: what stays the same when only the electrons change."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from misr.cube import scan_step
from misr.fusion.cluster import client_for, sums_on_cluster
from misr.fusion.geometry import ScanGrid, ViewGeometry, folds, scan_grid, view_geometry
from misr.fusion.kernels import Frequencies, frequencies, resolve_device
from misr.fusion.overlap import Overlaps, Specimen
from misr.fusion.statistic import Sums, accumulate, batches, empty_sums, keep_overlaps
from misr.fusion.stream import held_stack, lost_positions
from misr.optics import axial_overlap

__all__ = [
    "FusionPlan",
    "Statistic",
    "check_match",
    "check_same_specimen",
    "check_simple",
    "check_specimen",
    "measure",
    "warn_if_folded",
]

_KEPT_BYTES = 256 << 20
_SOLVABLE = 0.1  # of the signal-to-noise power of a frequency
_BARELY_SEEN, _SINGULAR = 0.02, 1e-3  # of the power of a frequency with full overlap
_MOST_SOLVABLE = 0.5  # of the frequencies asked for
_MATRIX_BYTES = 2 << 30
_JUDGED = 512  # scan frequencies


@dataclass(frozen=True, repr=False)
class FusionPlan:
    """Geometry of one linear fusion, from `misr.plan_fusion`: give it to `fuse_linear` as ``plan``.

    Attributes
    ----------
    n_views : int
        Views it is made for.
    shape : tuple of int
        Scan positions (scan_y, scan_x) it is made for.
    folds : int
        How often the scan folds the band limit 2α/λ on each axis, and so the upsampling that shows all of it.
    upsample : int or None
        Pixels per scan step of the images made with it.
    nbytes : int
        Memory it holds.
    """

    geometry: ViewGeometry
    grid: ScanGrid
    freq: Frequencies
    overlaps: Overlaps
    kept_noise: float  # share of the image's noise that lies in the field and not in the margins
    matrix: torch.Tensor
    kept: list[torch.Tensor] | None
    upsample: int | None = None

    @property
    def n_views(self) -> int:
        """Views it is made for."""
        return self.geometry.n_views

    @property
    def shape(self) -> tuple[int, int]:
        """Scan positions."""
        return self.grid.shape

    @property
    def folds(self) -> int:
        """Upsampling of the solve."""
        return self.grid.upsample

    @property
    def specimen(self) -> Specimen:
        """Channels and blurs."""
        return self.overlaps.specimen

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return sum(t.numel() * t.element_size() for t in (self.matrix, *(self.kept or ())))

    def __repr__(self) -> str:
        size, aliases = f"{self.nbytes / 2**20:.0f} MiB", f"{self.folds} × {self.folds} aliases"
        return f"<FusionPlan: {self.n_views} views of {self.shape[0]} × {self.shape[1]}, {aliases}, {size}>"


@dataclass(frozen=True)
class Statistic:
    """All that the counts say of a weak object: ``vector = matrix φ + noise`` of covariance ``matrix / electrons``."""

    vector: torch.Tensor  # (scan frequency, unknown)
    energy: torch.Tensor  # (scan frequency,): what the counts hold, in units of their counting noise
    electrons: float  # effective number in the scan
    informed: int  # views with electrons


def check_specimen(amplitude: bool, absorption_rad: float, source_size_A: float, focal_spread_A: float) -> Specimen:
    """Arguments of the imaging model, in range."""
    if not np.isfinite(absorption_rad) or abs(absorption_rad) >= np.pi / 2:
        raise ValueError(f"absorption_rad={absorption_rad!r} must lie between -π/2 and π/2: 0 is a pure phase object")
    if amplitude and absorption_rad:
        raise ValueError(
            f"amplitude=True solves for the amplitude at each frequency, absorption_rad={absorption_rad!r} ties it to "
            "the phase: give one of them"
        )
    for name, value in (("source_size_A", source_size_A), ("focal_spread_A", focal_spread_A)):
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be a standard deviation in Å, 0 or more")
    return Specimen(float(absorption_rad), bool(amplitude), float(source_size_A), float(focal_spread_A))


def check_simple(method: str, specimen: Specimen, plan: FusionPlan | None) -> None:
    """Raise if a method that does not solve is asked for what only the solve does."""
    if specimen.amplitude or (plan is not None and plan.specimen.amplitude):
        raise ValueError(f"amplitude=True needs method='wiener', got method={method!r}")
    if method == "sum" and (specimen != Specimen() or plan is not None):
        raise ValueError(
            "method='sum' takes neither a plan nor absorption_rad, source_size_A, focal_spread_A: leave them out"
        )


def check_same_specimen(plan: FusionPlan, asked: Specimen) -> None:
    """Raise if a call asks for another imaging model than its plan was made with."""
    if asked not in (Specimen(), plan.specimen):
        raise ValueError(f"the plan was made with {plan.specimen}, this call asks for {asked}: give it to plan_fusion")


def measure(
    views: xr.DataArray,
    *,
    specimen: Specimen | None = None,
    plan: FusionPlan | None = None,
    device: str = "auto",
    keep: bool = False,
) -> tuple[FusionPlan, Statistic]:
    """One pass over the counts: the plan, unless there is one, and the statistic."""
    geometry = view_geometry(views)
    if plan is None:
        grid = _affordable(views, geometry, len((specimen or Specimen()).channels))
        on = resolve_device(device)
        freq = frequencies(grid, cutoff=geometry.cutoff, device=on)
        overlaps = Overlaps(geometry, specimen or Specimen(), device=on)
    else:
        check_match(plan, views, geometry)
        grid, freq, overlaps = plan.grid, plan.freq, plan.overlaps
    options: dict[str, Any] = {"grid": grid, "freq": freq, "overlaps": overlaps, "with_matrix": plan is None}
    kept = None if plan is None else plan.kept
    if (client := client_for(views)) is not None:
        sums, lost = sums_on_cluster(client, views, options)
    else:
        if keep and _size(freq, overlaps) <= _KEPT_BYTES:
            kept = keep_overlaps(freq, overlaps)
        with held_stack(views) as (stack, per_position):
            lost = lost_positions(per_position)
            sums = _sum_all(stack, options | {"lost": lost, "kept": kept})
    total = float(sums.mean.sum())
    if plan is None and sums.matrix is not None:
        matrix = sums.matrix.div_(total)
        plan = FusionPlan(
            geometry, grid, freq, overlaps, _kept_noise(views, grid, sums.mean.cpu().numpy()), matrix, kept
        )
    kept_positions = replace(grid, kept=1 - float(lost.mean()))
    informed = int((sums.mean > 0).sum())
    statistic = Statistic(
        sums.vector.div_(total), sums.energy.div_(total), kept_positions.n_effective * total, informed
    )
    return plan, statistic  # type: ignore[return-value]


def _affordable(views: xr.DataArray, geometry: ViewGeometry, channels: int) -> ScanGrid:
    """The grid that unfolds the band limit, or as much of it as the matrices leave memory for."""
    step = scan_step(views)
    wanted = folds(geometry, step)
    in_band = math.pi * (2 * geometry.cutoff) ** 2 * step[0] * step[1]
    for number in range(wanted, 0, -1):
        grid = scan_grid(views, upsample=number)
        if 8 * grid.padded[0] * grid.half * (channels * min(number**2, in_band)) ** 2 <= _MATRIX_BYTES or number == 1:
            break
    if number < wanted:
        warnings.warn(
            f"the scan step of {max(step):.3g} Å folds {wanted} × {wanted} frequencies into one, too many to solve for "
            f"at {views.sizes['scan_y']} × {views.sizes['scan_x']} positions: {number} × {number} are, the others act "
            "as noise. Scan with a smaller step, or crop the scan",
            UserWarning,
            stacklevel=4,
        )
    return grid


def _sum_all(stack: Any, options: dict[str, Any]) -> Sums:
    freq, overlaps, grid = options["freq"], options["overlaps"], options["grid"]
    mean = torch.zeros(stack.shape[0], dtype=torch.float64, device=overlaps.device)
    sums = empty_sums(freq, overlaps, with_matrix=options["with_matrix"], mean=mean)
    whole = options["kept"] is not None  # the kept overlaps are cut for all views at once
    for part in [slice(0, stack.shape[0])] if whole else batches(stack.shape[0], grid):
        accumulate(np.asarray(stack[part]), part, into=sums, **options)
    return sums


def _kept_noise(views: xr.DataArray, grid: ScanGrid, mean: np.ndarray) -> float:
    """Each view's noise is moved by its shift, and partly out of the field."""
    if grid.padded == grid.shape:
        return 1.0
    inside = np.ones(len(mean))
    for axis, name in enumerate(("shift_y", "shift_x")):
        inside *= np.clip(1 - np.abs(views[name].values) / (grid.shape[axis] * grid.step[axis]), 0, 1)
    return float((inside * mean).sum() / mean.sum())


def _size(freq: Frequencies, overlaps: Overlaps) -> int:
    return 8 * freq.y.numel() * len(overlaps.specimen.channels) * overlaps.geometry.n_views


def check_match(plan: FusionPlan, views: xr.DataArray, geometry: ViewGeometry) -> None:
    """Raise if a plan was made for other views."""
    differing = [
        field.name
        for field in fields(ViewGeometry)
        if not _same(getattr(plan.geometry, field.name), getattr(geometry, field.name))
    ]
    grid = scan_grid(views, upsample=plan.folds)
    differing += [
        name for name in ("shape", "step", "padded") if not _same(getattr(grid, name), getattr(plan.grid, name))
    ]
    if differing:
        raise ValueError(
            f"the plan was made for other views: {', '.join(differing)} differ. Make one for these with "
            "misr.plan_fusion(views)"
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return bool(a == b)
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-6, atol=1e-9))


def warn_if_folded(plan: FusionPlan, upsample: int | str) -> None:
    """Say so, and which of views, step and defocus to change, when the wanted aliases cannot be told apart."""
    if upsample in ("auto", 1) or (share := _solvable_share(plan, int(upsample))) >= _MOST_SOLVABLE:
        return
    warnings.warn(
        f"upsample={upsample}: at {100 * (1 - share):.0f} % of the frequencies asked for, views and scan step keep "
        f"less than a tenth of what the electrons could tell: {_remedy(plan)}",
        UserWarning,
        stacklevel=3,
    )


def _remedy(plan: FusionPlan) -> str:
    geometry, step = plan.geometry, max(plan.grid.step)
    aliases = int((plan.freq.magnitude < 2 * geometry.cutoff).sum(dim=1).max())
    grouped = geometry.pixel_view.size > plan.n_views
    if grouped and plan.n_views < 4 * aliases:
        return f"{plan.n_views} views for {aliases} aliases: gather more views (n_views)"
    C10 = abs(geometry.aberrations.get("C10", 0.0))
    span = 2 * C10 * geometry.cutoff * geometry.wavelength
    if span < step:
        return (
            f"the views shift by {span:.2g} Å from one edge of the aperture to the other, less than the scan step of "
            f"{step:.3g} Å: defocus more, or scan with a smaller step"
        )
    between = C10 * max(float(np.hypot(*edge)) for edge in geometry.pixel_edges) * geometry.wavelength
    return (
        f"neighbouring detector pixels shift by {between:.2g} Å at a scan step of {step:.3g} Å: use finer detector "
        "pixels" + (", more views" if grouped else "") + ", less defocus, or a smaller step"
    )


def _solvable_share(plan: FusionPlan, upsample: int) -> float:
    """Share of the frequencies asked for that keep enough of what a perfect detector would see at any scan step.

    That is ``2 a(q)`` for each electron, a the aperture's self-overlap: the overlap's power without blur, with sin²χ
    at its mean. What is left after the other aliases are solved for is ``1 / (A⁻¹)_qq``.
    """
    chosen = torch.linspace(0, len(plan.freq.weight) - 1, min(_JUDGED, len(plan.freq.weight))).long()
    aliases = plan.freq.y.shape[1]
    freq, matrix = plan.freq.at(chosen), plan.matrix[chosen][:, :aliases, :aliases].to(torch.complex128)
    ideal = 2 * axial_overlap(freq.magnitude.double(), cutoff=plan.geometry.cutoff)
    limit = 0.5 * upsample / max(plan.grid.step)
    asked = (ideal > _BARELY_SEEN) & (freq.magnitude > 0) & (freq.y.abs() <= limit) & (freq.x.abs() <= limit)
    scale = ideal.clamp(min=_BARELY_SEEN).rsqrt()
    unit = matrix * scale[:, :, None] * scale[:, None, :]
    torch.diagonal(unit, dim1=-2, dim2=-1).add_(_SINGULAR)
    kept = 1 / torch.diagonal(torch.linalg.inv(unit), dim1=-2, dim2=-1).real
    return float((asked & (kept > _SOLVABLE)).sum() / asked.sum().clamp(min=1))
