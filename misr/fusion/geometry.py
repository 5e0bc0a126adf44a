"""What the fusion must know of the views besides their counts: optics, pixels, frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from misr.aberrations import aberrations_of
from misr.cube import is_periodic, scan_step
from misr.optics import electron_wavelength, rotate

__all__ = ["ScanGrid", "ViewGeometry", "choose_upsample", "scan_grid", "view_geometry"]

_BAND_SHARE = 0.95  # of 2α/λ that "auto" must reach: the overlap beyond it is under 1 % of the aperture


@dataclass(frozen=True)
class ViewGeometry:
    """Optics and detector pixels of a stack of views, in the scan's frame; frequencies in 1/Å."""

    wavelength: float
    cutoff: float
    aberrations: dict[str, float]
    pixel_edges: tuple[tuple[float, float], tuple[float, float]]
    pixel_y: np.ndarray
    pixel_x: np.ndarray
    pixel_view: np.ndarray
    n_views: int


@dataclass(frozen=True)
class ScanGrid:
    """The padded scan grid and the fine grid that unfolds it."""

    shape: tuple[int, int]
    pad: tuple[int, int]
    padded: tuple[int, int]
    step: tuple[float, float]
    upsample: int
    kept: float = 1.0  # share of the scan positions that is used

    @property
    def fine(self) -> tuple[int, int]:
        """Shape of the padded fine grid."""
        return self.padded[0] * self.upsample, self.padded[1] * self.upsample

    def taper(self) -> np.ndarray:
        """Weight of each padded position: 1 in the field, falling to 0 at the margin's outer edge."""
        ramps = []
        for axis in range(2):
            position = np.arange(self.padded[axis]) - self.pad[axis]
            outside = np.maximum(np.maximum(-position, position - self.shape[axis] + 1), 0)
            ramps.append(0.5 + 0.5 * np.cos(np.pi * np.clip(outside / max(1, outside.max()), 0, 1)))
        return ramps[0][:, None] * ramps[1][None, :]

    @property
    def n_effective(self) -> float:
        """Scan positions N that make ``1/(N n̄)`` the noise power of a mean-normalised, tapered transform."""
        return (self.padded[0] * self.padded[1]) ** 2 / (self.kept * float((self.taper() ** 2).sum()))


def view_geometry(views: xr.DataArray) -> ViewGeometry:
    """Read the geometry off a stack of views made by `misr.synthesize_views`.

    Parameters
    ----------
    views : xarray.DataArray
        Dims ``("view", "scan_y", "scan_x")``.

    Returns
    -------
    ViewGeometry
        With one entry for each detector pixel of each view.

    Raises
    ------
    ValueError
        If the stack lacks labels or aberrations.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (4, 4, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> view_geometry(misr.synthesize_views(cube, n_views=7)).n_views
    7
    """
    _check_views(views)
    aberrations = aberrations_of(views)
    if aberrations is None:
        raise ValueError(
            "the aberrations of these views are not known: give them to misr.synthesize_views(cube, {'C10': …}) or "
            "set them with misr.with_aberrations(cube, {'C10': …}) (C10 = -defocus, Å)"
        )
    wavelength = electron_wavelength(views.attrs["energy_eV"])
    rotation = float(views.attrs.get("rotation_deg", 0.0))
    members = [np.array(text.split(), dtype=int) for text in views["pixels"].values.astype(str)]
    index = np.concatenate(members)
    step_y, step_x = views.attrs["detector_step_mrad"]
    origin_y, origin_x = views.attrs["detector_origin_mrad"]
    columns = int(views.attrs["detector_columns"])
    per_mrad = 1e-3 / wavelength
    pixel_y, pixel_x = rotate(
        (origin_y + step_y * (index // columns)) * per_mrad,
        (origin_x + step_x * (index % columns)) * per_mrad,
        rotation,
    )
    edges = (rotate(step_y * per_mrad, 0.0, rotation), rotate(0.0, step_x * per_mrad, rotation))
    return ViewGeometry(
        wavelength=wavelength,
        cutoff=float(views.attrs["semiangle_mrad"]) * per_mrad,
        aberrations=aberrations,
        pixel_edges=edges,
        pixel_y=pixel_y,
        pixel_x=pixel_x,
        pixel_view=np.repeat(np.arange(len(members)), [group.size for group in members]),
        n_views=len(members),
    )


def _check_views(views: Any) -> None:
    if not isinstance(views, xr.DataArray) or views.dims != ("view", "scan_y", "scan_x"):
        found = getattr(views, "dims", type(views).__name__)
        raise ValueError(
            f"expected views with dims ('view', 'scan_y', 'scan_x'), got {found}: make them with "
            "misr.synthesize_views(cube)"
        )
    needed = ("detector_step_mrad", "detector_origin_mrad", "detector_columns", "energy_eV", "semiangle_mrad")
    missing = [name for name in needed if name not in views.attrs]
    missing += [name for name in ("pixels", "shift_y", "shift_x") if name not in views.coords]
    if missing:
        raise ValueError(f"the views lack {', '.join(missing)}: make them with misr.synthesize_views(cube)")


def choose_upsample(upsample: int | str, *, geometry: ViewGeometry, step: tuple[float, float]) -> int:
    """Whole upsampling factor: given, or enough for the band limit 2α/λ with no more aliases than views.

    Parameters
    ----------
    upsample : int or "auto"
        Wanted factor.
    geometry : ViewGeometry
        Optics.
    step : (float, float)
        Scan step, Å.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        For anything but "auto" or a whole number from 1 to 64.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> choose_upsample("auto", geometry=SimpleNamespace(cutoff=0.508, n_views=800), step=(2.0, 2.0))
    4
    """
    if upsample == "auto":
        needed = math.ceil(_BAND_SHARE * 2 * max(step) * 2 * geometry.cutoff)
        return max(1, min(needed, math.isqrt(geometry.n_views)))
    if isinstance(upsample, bool) or not isinstance(upsample, int | np.integer) or not 1 <= upsample <= 64:
        raise ValueError(f"upsample={upsample!r} must be 'auto' or a whole number from 1 to 64")
    return int(upsample)


def scan_grid(views: xr.DataArray, *, upsample: int) -> ScanGrid:
    """The grid to transform on: the scan itself if it is periodic, else the scan with a margin.

    Parameters
    ----------
    views : xarray.DataArray
        Stack of views.
    upsample : int
        Whole factor.

    Returns
    -------
    ScanGrid
        Shapes, padding and step.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> coords = {d: 2.0 * np.arange(8) for d in ("scan_y", "scan_x")} | {s: ("view", [6.0]) for s in
    ...           ("shift_y", "shift_x")}
    >>> scan_grid(xr.DataArray(np.zeros((1, 8, 8)), dims=("view", "scan_y", "scan_x"), coords=coords), upsample=2).pad
    (4, 4)
    """
    from scipy.fft import next_fast_len

    shape = views.sizes["scan_y"], views.sizes["scan_x"]
    step = scan_step(views)
    if is_periodic(views):
        return ScanGrid(shape=shape, pad=(0, 0), padded=shape, step=step, upsample=upsample)
    # the margin lets shifted views reach past the field's edge instead of wrapping round
    reach = (float(np.abs(views["shift_y"]).max()), float(np.abs(views["shift_x"]).max()))
    wanted = [math.ceil(reach[i] / step[i]) + 1 for i in range(2)]
    margin = [min(wanted[i], shape[i] - 1) for i in range(2)]
    padded = [next_fast_len(shape[i] + 2 * margin[i], real=True) for i in range(2)]
    pad = ((padded[0] - shape[0]) // 2, (padded[1] - shape[1]) // 2)
    return ScanGrid(shape=shape, pad=pad, padded=(padded[0], padded[1]), step=step, upsample=upsample)
