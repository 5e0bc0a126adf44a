"""Linear fusions of two independent halves of the electrons, in one pass and without ever holding a half."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from misr.dose import first_half, half_attrs, row_streams
from misr.fusion.geometry import view_geometry
from misr.fusion.linear import joint_solve
from misr.fusion.plan import FusionPlan, Statistic, check_match
from misr.fusion.statistic import Sums, accumulate, batches, empty_sums
from misr.fusion.stream import held_stack, lost_positions

__all__ = ["EmptyHalfError", "fuse_halves"]


class EmptyHalfError(ValueError):
    """One of the halves, 0 or 1, holds no electrons."""

    def __init__(self, number: int) -> None:
        super().__init__(f"half {number} of the electrons is empty")
        self.number = number


def fuse_halves(
    views: xr.DataArray, *, plan: FusionPlan, upsample: int | str = "auto", rng: Any = None
) -> tuple[xr.DataArray, xr.DataArray]:
    """Phase images of both halves of the electrons; a few views are split at a time.

    Parameters
    ----------
    views : xarray.DataArray
        Whole counts, dims ``("view", "scan_y", "scan_x")``.
    plan : FusionPlan
        Of these views.
    upsample : int or "auto"
        As in `misr.fuse_linear`; "auto" is the plan's.
    rng : None, int or numpy.random.Generator
        Seed of the split (SPEC 7).

    Returns
    -------
    tuple of xarray.DataArray
        Two images ``("y", "x")``, rad.

    Raises
    ------
    EmptyHalfError
        If a half holds no electrons.
    ValueError
        If the plan was made for other views.
    """
    check_match(plan, views, view_geometry(views))
    shown = (plan.upsample or upsample) if upsample == "auto" else upsample
    images = []
    for number, statistic in enumerate(_statistics(views, plan, rng)):
        labels = views.copy(deep=False)
        labels.attrs = half_attrs(views, number, rng)
        images.append(joint_solve(labels, plan, statistic, upsample=shown, prior="ring")["phase"])
    return images[0], images[1]


def _statistics(views: xr.DataArray, plan: FusionPlan, rng: Any) -> list[Statistic]:
    options: dict[str, Any] = {"freq": plan.freq, "overlaps": plan.overlaps, "with_matrix": False}
    room = torch.zeros((2, plan.n_views), dtype=torch.float64, device=plan.overlaps.device)
    sums = [empty_sums(**options, mean=mean) for mean in room]
    with held_stack(views) as (stack, per_position):
        lost = lost_positions(per_position)
        streams = row_streams(plan.n_views, rng)
        # kept overlaps are cut for all views at once
        for part in batches(plan.n_views, plan.grid) if plan.kept is None else [slice(0, plan.n_views)]:
            whole = np.asarray(stack[part])
            first = first_half(whole, streams[part])
            for half, counts in zip(sums, (first, (whole - first).astype(first.dtype)), strict=True):
                accumulate(counts, part, lost=lost, grid=plan.grid, kept=plan.kept, into=half, **options)
    positions = replace(plan.grid, kept=1 - float(lost.mean())).n_effective
    return [_statistic(half, number, positions) for number, half in enumerate(sums)]


def _statistic(half: Sums, number: int, positions: float) -> Statistic:
    total = float(half.mean.sum())
    if not total > 0:
        raise EmptyHalfError(number)
    informed = int((half.mean > 0).sum())
    return Statistic(half.vector.div_(total), half.energy.div_(total), positions * total, informed)
