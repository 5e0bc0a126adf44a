"""What the fusion must know of the views besides their counts: optics, pixels, frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from misr.aberrations import aberrations_of
from misr.cube import is_periodic, scan_step
from misr.optics import electron_wavelength, pixel_width, rotate

__all__ = [
    "ScanGrid",
    "ViewGeometry",
    "check_upsample",
    "choose_upsample",
    "folds",
    "pixels_for_band",
    "scan_grid",
    "view_geometry",
]

_FEW_FOLDS = 8  # on an axis: cheap enough for any number of views
_BAND_SHARE = 0.95  # of 2α/λ that "auto" must reach: the overlap beyond it is under 1 % of the aperture


@dataclass(frozen=True)
class ViewGeometry:
    """Optics and detector pixels of a stack of views, in the scan's frame; frequencies in 1/Å."""

    wavelength: float
    cutoff: float
    aberrations: dict[str, float]
    pixel_edges: tuple[tuple[float, float], tuple[float, float]]
    origin: tuple[float, float]  # of pixel (0, 0) of the detector's rows and columns
    pixel_row: np.ndarray
    pixel_column: np.ndarray
    pixel_view: np.ndarray
    n_views: int

    @property
    def pixel_y(self) -> np.ndarray:
        """Pixel centres along y."""
        return self._centre(0)

    @property
    def pixel_x(self) -> np.ndarray:
        """Pixel centres along x."""
        return self._centre(1)

    def _centre(self, axis: int) -> np.ndarray:
        first, second = self.pixel_edges
        return np.asarray(self.origin[axis] + self.pixel_row * first[axis] + self.pixel_column * second[axis])

    @property
    def is_second_order(self) -> bool:
        """Whether defocus and twofold astigmatism are all there is: the shifts are then linear over the detector."""
        return all(name in ("C10", "C12") for name, value in self.aberrations.items() if name[0] == "C" and value)

    @property
    def is_square(self) -> bool:
        """Whether a pixel is as wide in every direction."""
        return isinstance(pixel_width(np.zeros(1), np.ones(1), pixel_edges=self.pixel_edges), float)


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

    @property
    def half(self) -> int:
        """Columns of the half plane of scan frequencies."""
        return self.padded[1] // 2 + 1

    @property
    def ring_width(self) -> float:
        """One frequency pixel of the padded field, 1/Å (the coarser axis)."""
        return 1 / min(self.padded[0] * self.step[0], self.padded[1] * self.step[1])

    @property
    def oversampling(self) -> tuple[float, float]:
        """Frequency pixels of the padded field for each of the scanned one."""
        return self.padded[0] / self.shape[0], self.padded[1] / self.shape[1]

    def pixel(self, upsample: int) -> tuple[float, float]:
        """Pixel of an image, Å."""
        return self.step[0] / upsample, self.step[1] / upsample

    @property
    def field_gain(self) -> float:
        """Power in the field over the mean power of the padded grid, whose margins are empty."""
        return self.padded[0] * self.padded[1] / (self.shape[0] * self.shape[1])

    @property
    def n_effective(self) -> float:
        """Scan positions N that make ``1/(N n̄)`` the noise power of a mean-normalised transform of the padded grid."""
        return self.padded[0] * self.padded[1] * self.field_gain / self.kept


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
    edges = (rotate(step_y * per_mrad, 0.0, rotation), rotate(0.0, step_x * per_mrad, rotation))
    return ViewGeometry(
        wavelength=wavelength,
        cutoff=float(views.attrs["semiangle_mrad"]) * per_mrad,
        aberrations=aberrations,
        pixel_edges=edges,
        origin=rotate(origin_y * per_mrad, origin_x * per_mrad, rotation),
        pixel_row=index // columns,
        pixel_column=index % columns,
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
        return min(_needed(geometry, step), max(1, math.isqrt(geometry.n_views)))
    check_upsample(upsample)
    return int(upsample)


def check_upsample(upsample: Any) -> None:
    """Raise unless it is "auto" or a whole number within reason."""
    if upsample == "auto":
        return
    if isinstance(upsample, bool) or not isinstance(upsample, int | np.integer) or not 1 <= upsample <= 64:
        raise ValueError(f"upsample={upsample!r} must be 'auto' or a whole number from 1 to 64")


def folds(geometry: ViewGeometry, step: tuple[float, float]) -> int:
    """How often the scan folds the band limit on each axis, as far as it is worth unfolding.

    Few views cannot tell many aliases apart, but leaving them out of the model does not take them out of the data.

    Parameters
    ----------
    geometry : ViewGeometry
        Optics.
    step : (float, float)
        Scan step, Å.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> folds(SimpleNamespace(cutoff=0.508, n_views=9), (2.0, 2.0))
    4
    """
    return min(_needed(geometry, step), max(_FEW_FOLDS, math.isqrt(geometry.n_views)))


def _needed(geometry: ViewGeometry, step: tuple[float, float]) -> int:
    return pixels_for_band(geometry.cutoff, step)


def pixels_for_band(cutoff: float, step: tuple[float, float]) -> int:
    """Pixels per scan step that show the band ``2 cutoff`` (1/Å), as far as it is worth unfolding."""
    return max(1, math.ceil(_BAND_SHARE * 2 * max(step) * 2 * cutoff))


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
