"""Compact groups of views, each laid back onto the object: what the network's angular path sees."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from misr.fusion.geometry import view_geometry
from misr.fusion.overlap import Overlaps
from misr.fusion.plan import FusionPlan, Statistic, check_match, measure
from misr.fusion.statistic import accumulate, batches, empty_sums
from misr.fusion.stream import held_stack, lost_positions

__all__ = ["GroupedViews", "group_sums", "in_groups", "measure_in_groups"]


@dataclass(frozen=True)
class GroupedViews:
    """What the counts say, altogether and group by group."""

    plan: FusionPlan
    statistic: Statistic
    vectors: list[torch.Tensor]  # (scan frequency, unknown) of each group; they sum to the statistic's
    tilts: np.ndarray  # (group, 2), over the semi-angle
    electrons: float  # per scan position


def measure_in_groups(
    views: xr.DataArray, number: int, *, plan: FusionPlan | None = None, device: str = "auto"
) -> GroupedViews:
    """Gather views in compact groups and sum each.

    Parameters
    ----------
    views : xarray.DataArray
        Dims ``("view", "scan_y", "scan_x")``, NumPy or dask; dask views are computed once, those beyond 0.75 GiB twice.
    number : int
        Of groups, at most.
    plan : FusionPlan, optional
        For these views, in their own order.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    GroupedViews
        In the groups' order.

    Raises
    ------
    ValueError
        For views without labels or aberrations, counts that are not finite or all zero, or a plan for other views.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> grouped = measure_in_groups(misr.synthesize_views(cube), 6)
    >>> len(grouped.vectors), grouped.tilts.shape
    (6, (6, 2))
    """
    view_geometry(views)  # raises for what are no views
    if plan is not None:
        check_match(plan, views, view_geometry(views))
    order, parts, tilts = _sorted(views, number)
    sorts = not np.array_equal(order, np.arange(len(order)))
    ordered = views.isel(view=order) if sorts else views
    with held_stack(ordered) as (stack, per_position), warnings.catch_warnings():
        if plan is None:
            held = ordered.copy(data=stack) if isinstance(stack, np.ndarray) else ordered
            own, known = measure(held, device=device, keep=len(parts) > 1)
            warnings.simplefilter("ignore", UserWarning)  # of lost positions: said already
            if len(parts) == 1:
                positions = replace(own.grid, kept=1 - float(lost_positions(per_position).mean())).n_effective
                return GroupedViews(own, known, [known.vector], tilts, known.electrons / positions)
        else:
            own = _reordered(plan, ordered, order) if sorts else plan
        lost = lost_positions(per_position)
        vectors, energy, mean = group_sums(stack, parts, plan=own, lost=lost)
    positions = replace(own.grid, kept=1 - float(lost.mean())).n_effective
    total = float(mean.sum())
    statistic = Statistic(torch.stack(vectors).sum(0), energy, positions * total, int((mean > 0).sum()))
    return GroupedViews(own, statistic, vectors, tilts, total)


def in_groups(views: xr.DataArray, number: int) -> tuple[xr.DataArray, list[slice], np.ndarray]:
    """Views sorted into compact groups of the aperture.

    Parameters
    ----------
    views : xarray.DataArray
        Dims ``("view", "scan_y", "scan_x")``.
    number : int
        Of groups, at most; each holds at least one view.

    Returns
    -------
    tuple
        The views in the groups' order, each group's slice of them, and the groups' mean tilts over the semi-angle,
        (group, 2), in the scan's frame.
    """
    order, parts, tilts = _sorted(views, number)
    return views.isel(view=order), parts, tilts


def _sorted(views: xr.DataArray, number: int) -> tuple[np.ndarray, list[slice], np.ndarray]:
    """Order that puts groups side by side, their slices of it, and their tilts."""
    from misr.optics import rotate
    from misr.views import group_pixels

    y, x = views["det_y"].values, views["det_x"].values
    number = min(number, len(y))
    # whatever order the views come in, the groups are the same
    canonical = np.lexsort((x, y))
    labels = np.empty(len(y), dtype=int)
    labels[canonical] = group_pixels(y[canonical], x[canonical], number)
    # a single group stays in its own order: nothing of a plan has to be copied
    order = canonical[np.argsort(labels[canonical], kind="stable")] if number > 1 else np.arange(len(y))
    edges = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    parts = [slice(int(first), int(last)) for first, last in itertools.pairwise(edges) if last > first]
    scan = rotate(y[order], x[order], float(views.attrs.get("rotation_deg", 0.0)))
    semiangle = float(views.attrs["semiangle_mrad"])
    tilts = np.array([[float(np.mean(axis[part])) / semiangle for axis in scan] for part in parts])
    return order, parts, tilts


def _reordered(plan: FusionPlan, ordered: xr.DataArray, order: np.ndarray) -> FusionPlan:
    """The plan for the same views in another order; the products of their overlap functions stay."""
    geometry = view_geometry(ordered)
    overlaps = Overlaps(geometry, plan.specimen, device=plan.overlaps.device)
    at = torch.as_tensor(order, device=plan.overlaps.device)
    kept = None if plan.kept is None else [every[..., at] for every in plan.kept]
    return replace(plan, geometry=geometry, overlaps=overlaps, kept=kept)


def group_sums(
    counts: Any, parts: list[slice], *, plan: FusionPlan, lost: np.ndarray
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """``Γᴴ counts / n`` of each group, the energy of all, and the views' means.

    Parameters
    ----------
    counts : array
        Of the views in the groups' order: (view, scan_y, scan_x).
    parts : list of slice
        The groups.
    plan : FusionPlan
        Of the views in this order.
    lost : numpy.ndarray
        Scan positions to leave out.

    Returns
    -------
    tuple
        Vectors (scan frequency, unknown), energy (scan frequency,), electrons per position (view,).
    """
    options: dict[str, Any] = {"freq": plan.freq, "overlaps": plan.overlaps, "with_matrix": False}
    mean = torch.zeros(plan.n_views, dtype=torch.float64, device=plan.overlaps.device)
    vectors, energy = [], torch.zeros((), dtype=torch.float64, device=plan.overlaps.device)
    for part in parts:
        sums = empty_sums(**options, mean=mean)
        for some in batches(part.stop - part.start, plan.grid):
            taken = slice(part.start + some.start, part.start + some.stop)
            accumulate(
                np.asarray(counts[taken]), taken, lost=lost, grid=plan.grid, kept=plan.kept, into=sums, **options
            )
        vectors.append(sums.vector)
        energy = energy + sums.energy
    total = float(mean.sum())
    return [vector.div_(total) for vector in vectors], energy / total, mean
