"""Sums over views on the workers of a ``dask.distributed`` cluster."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from misr.cube import is_lazy
from misr.fusion.statistic import Sums, accumulate, batches
from misr.fusion.stream import checked, lost_positions

__all__ = ["client_for", "sums_on_cluster"]

_TASKS_PER_THREAD = 2


def client_for(views: xr.DataArray) -> Any:
    """The ``dask.distributed`` client in use, if there is one and the views are lazy; else None."""
    distributed = sys.modules.get("distributed")  # without its import there is no client
    if distributed is None or not is_lazy(views):
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def sums_on_cluster(client: Any, views: xr.DataArray, options: dict[str, Any]) -> tuple[Sums, np.ndarray]:
    """Sums over all views and the lost scan positions; each worker holds some views, whole in the scan.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    views : xarray.DataArray
        Lazy, dims ``("view", "scan_y", "scan_x")``.
    options : dict
        Geometry, for `accumulate`.

    Returns
    -------
    tuple of (Sums, numpy.ndarray)
        Of all views, and a mask (scan_y, scan_x).
    """
    import dask

    n_views = views.sizes["view"]
    threads = sum(client.nthreads().values()) or 1
    most = max(part.stop - part.start for part in batches(n_views, options["grid"]))
    size = max(1, min(most, -(-n_views // (_TASKS_PER_THREAD * threads))))
    held = views.data.rechunk({0: size, 1: -1, 2: -1}).persist()
    lost = lost_positions(checked(np.asarray(held.sum(axis=0, dtype=np.float64).compute())))
    geometry = {name: dask.delayed(value, traverse=False) for name, value in (options | {"lost": lost}).items()}
    parts = [
        dask.delayed(accumulate)(block, slice(first, min(first + size, n_views)), **geometry)
        for first, block in zip(range(0, n_views, size), held.to_delayed()[:, 0, 0], strict=True)
    ]
    return _tree_sum(parts).compute(), lost


def _tree_sum(parts: Sequence[Any]) -> Any:
    import dask

    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [dask.delayed(operator.add)(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]
