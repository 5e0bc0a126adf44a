"""`misr.fusion.statistic`'s sums over a batch of views with the loops of `misr.fusion.compiled_waves`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from misr.fusion.geometry import ScanGrid
from misr.fusion.kernels import Frequencies
from misr.fusion.overlap import Overlaps, Patch
from misr.fusion.plane_waves import COLUMNS, edge_terms
from misr.fusion.spread import for_each
from misr.fusion.workspace import Workspace

if TYPE_CHECKING:
    from misr.fusion.statistic import Sums

__all__ = ["add_compiled"]

_ROWS, _COLUMNS = 4, 192  # scan frequencies of a tile, at most


def add_compiled(
    sums: Sums,
    transformed: torch.Tensor,
    scale: torch.Tensor,
    patches: list[Patch],
    *,
    grid: ScanGrid,
    freq: Frequencies,
    overlaps: Overlaps,
) -> None:
    """Add a batch's ``Γᴴ G``, ``Γᴴ Γ`` and energy.

    Parameters
    ----------
    sums : Sums
        Added to, but for its ``mean``.
    transformed : torch.Tensor
        Spectra, (view, scan frequency), the patches' views one after the other.
    scale : torch.Tensor
        Factor on the spectra, (view,).
    patches : list of Patch
        Of all the batch's views, made to be compiled.
    grid, freq, overlaps
        Geometry.
    """
    from misr.fusion.compiled_waves import add_tile

    bounds, reach, values, member = _side_by_side(patches, overlaps)
    spectra = torch.view_as_real(transformed).numpy()
    by, edge = scale.float().numpy(), edge_terms(overlaps.geometry)
    matrix = torch.zeros((0, 0, 0), dtype=torch.complex64) if sums.matrix is None else sums.matrix
    into = *(torch.view_as_real(part).numpy() for part in (sums.vector, matrix)), sums.energy.numpy()
    numbers = torch.arange(len(freq.weight)).view(grid.padded[0], grid.half)

    def add(at: torch.Tensor, work: Workspace) -> None:
        table = overlaps.table(freq.y[at], freq.x[at]).numpy()
        add_tile(at.numpy(), table, COLUMNS, spectra, by, (bounds, reach), (values, member), edge, into)

    tiles = [tile.flatten() for row in numbers.split(_ROWS) for tile in row.split(_COLUMNS, dim=1)]
    for_each(tiles, add, device=overlaps.device)


def _side_by_side(patches: list[Patch], overlaps: Overlaps) -> tuple[np.ndarray, ...]:
    """The patches' pixels and slots of views in a row, each filled up to whole lanes with what counts nothing."""
    from misr.fusion.compiled_waves import LANES

    bounds, reach, values, members = [], [], [], []
    pixel = slot = 0
    for patch in patches:
        n_pixels, n_views = (-(-number // LANES) * LANES for number in (patch.n_pixels, len(patch.views)))
        bounds.append((pixel, pixel + n_pixels, slot, slot + n_views, len(patch.views)))
        pixel, slot = pixel + n_pixels, slot + n_views
        beyond = n_pixels - patch.n_pixels
        values.append(np.pad(patch.waves.pixels, ((0, 0), (0, beyond))))
        if patch.member is not None:
            members.append(np.pad(patch.member.numpy(), (0, beyond)))
        reach.append((*patch.centre, overlaps.reach(patch)))
    return (
        np.array(bounds, dtype=np.int64),
        np.array(reach, dtype=np.float32),
        np.ascontiguousarray(np.concatenate(values, axis=1), dtype=np.float32),
        np.concatenate(members).astype(np.int64) if members else np.empty(0, np.int64),
    )
