"""What a fused image keeps of its views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from misr._provenance import append_history
from misr.aberrations import aberration_attrs, aberrations_of

__all__ = ["image_attrs", "origin_of"]


def origin_of(views: xr.DataArray) -> tuple[float, float]:
    """Å, of the scan."""
    return float(views.scan_y[0]), float(views.scan_x[0])


def image_attrs(views: xr.DataArray, method: str, upsample: int, told: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a fused image: where it comes from; ``told``: what was asked for besides the usual."""
    kept: Sequence[str] = ("energy_eV", "semiangle_mrad", "dose_e_per_A2", "rotation_deg", "period_A")
    attrs: dict[str, Any] = {"units": "rad", "method": method, "upsample": upsample}
    attrs |= {name: int(value) if isinstance(value, bool) else value for name, value in told.items()}
    attrs |= {name: views.attrs[name] for name in kept if name in views.attrs}
    attrs["n_views"] = int(views.sizes["view"])
    attrs |= aberration_attrs(aberrations_of(views))
    attrs["history"] = append_history(views.attrs, method, upsample=upsample, **told)
    return attrs
