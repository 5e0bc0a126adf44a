"""Fourier coefficients of the bright field at the object frequencies that calibration looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from misr.bright_field import bright_field_disk
from misr.calibration.prior import PowerPrior
from misr.cube import detector_step, is_periodic, scan_step
from misr.optics import electron_wavelength

if TYPE_CHECKING:
    import torch

__all__ = ["MODEL_ERROR", "Spectra", "spectra_of"]

_DISK_PIXELS = 40  # across the disk: finer detectors are binned, which costs nothing below a pixel's own blur
_TILE_A = 160.0  # larger scans are cut into tiles of about this side, whose energies add up
_MOST_TILES = 9
MODEL_ERROR = 0.02  # of a reflection's energy, in any one direction: no reflection counts for more than 50 times noise
_EDGE = 1 / 16  # of a tile's side, faded out where the scan does not wrap round


@dataclass(frozen=True)
class Spectra:
    """Fourier coefficients of every bright-field pixel's contrast, weighted with its counts.

    Object frequencies are those of a half plane, out of all aliases, repeated for each tile of the scan. Detector
    coordinates are the detector's own, from the disk's centre; frequencies in 1/Å.
    """

    weighted: torch.Tensor  # (frequency, det_y, det_x): mean counts × Fourier coefficient of the contrast, complex64
    trust: np.ndarray  # (frequency,): counting noise over counting noise and model error, see `_trust`
    place: np.ndarray  # (frequency,): row of ``coarse`` that each was taken from
    coarse: torch.Tensor  # (scan frequency, det_y, det_x): the same, each scan frequency of each tile once
    q_y: np.ndarray
    q_x: np.ndarray
    counts: np.ndarray  # (det_y, det_x): mean electrons per position
    k_y: np.ndarray
    k_x: np.ndarray
    pixel: tuple[float, float]
    wavelength: float
    cutoff: float
    positions: int  # in a tile
    independent: float  # share of independent values among the Fourier coefficients
    tile_A: tuple[float, float]
    tiles: int
    step: tuple[float, float]

    def part(self, chosen: slice | np.ndarray) -> Spectra:
        """Some of the object frequencies, of whatever tile."""
        return replace(
            self,
            weighted=self.weighted[chosen],
            trust=self.trust[chosen],
            place=self.place[chosen],
            q_y=self.q_y[chosen],
            q_x=self.q_x[chosen],
        )

    def prior(self, envelope: np.ndarray | float = 1.0) -> PowerPrior:
        """Prior of the object's power at these frequencies; ``envelope``: the share of it that a filter passes."""
        return PowerPrior(self.q, area_A2=self.area_A2, independent=self.independent, envelope=envelope)

    @property
    def q(self) -> np.ndarray:
        """Magnitude of the object frequencies, 1/Å."""
        return np.hypot(self.q_y, self.q_x)

    @property
    def area_A2(self) -> float:
        """Area of a tile, Å²."""
        return self.tile_A[0] * self.tile_A[1]


def spectra_of(
    cube: xr.DataArray,
    *,
    max_defocus_A: float | None = None,
    q_max: float | None = None,
    most_frequencies: int = 12000,
    device: str = "auto",
) -> Spectra:
    """Fourier coefficients of a cube's bright field, tile by tile of the scan.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, NumPy or dask; only one tile's disk is held at a time.
    max_defocus_A : float, optional
        Tiles are made so large that the geometric shift at this defocus stays within half of them.
    q_max : float, optional
        Object frequencies to look at, 1/Å; half of the band limit 2α/λ by default.
    most_frequencies : int, default 12000
        The lowest so many are kept, all tiles together.
    device : str
        Of torch.

    Returns
    -------
    Spectra
        The coefficients, with what is needed to understand them.

    Raises
    ------
    ValueError
        If the cube is not valid, its disk is not found, or the scan is smaller than the aperture resolves.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> spectra_of(cube).counts.shape
    (12, 12)
    """
    import torch

    from misr.fusion.kernels import resolve_device

    disk = bright_field_disk(cube)
    semiangle = float(disk.attrs["semiangle_mrad"])
    per_mrad = 1e-3 / electron_wavelength(float(cube.attrs["energy_eV"]))
    cutoff = semiangle * per_mrad
    box, bins, axes = _box(cube, disk, semiangle)
    step = scan_step(cube)
    tiles = _tiles(cube, step, max(_TILE_A, 2e-3 * semiangle * (max_defocus_A or 0.0)))
    frequencies = _frequencies(tiles[0], step, cutoff if q_max is None else q_max, most_frequencies // len(tiles))
    windows, independent = _windows(tiles[0], periodic=is_periodic(cube) and len(tiles) == 1)
    means, rows = [], []
    for rows_y, rows_x in tiles:
        block = cube.isel(scan_y=rows_y, scan_x=rows_x, det_y=box[0], det_x=box[1]).data
        block = np.asarray(block.compute() if hasattr(block, "compute") else block)
        mean, transformed = _transform(_binned(block, bins), windows, frequencies.scan)
        means.append(mean)
        rows.append(transformed)
    coarse = torch.as_tensor(np.concatenate(rows), device=resolve_device(device))
    n_scan = len(frequencies.scan[0])
    place = np.concatenate([frequencies.place + tile * n_scan for tile in range(len(tiles))])
    shape = tiles[0][0].stop - tiles[0][0].start, tiles[0][1].stop - tiles[0][1].start
    counts = np.mean(means, axis=0)
    inside = np.hypot(axes[0][:, None], axes[1][None, :]) <= semiangle
    return Spectra(
        weighted=coarse[torch.as_tensor(place, device=coarse.device)],
        trust=_trust(rows, counts * inside, shape[0] * shape[1])[place],
        place=place,
        coarse=coarse,
        q_y=np.tile(frequencies.q_y, len(tiles)),
        q_x=np.tile(frequencies.q_x, len(tiles)),
        counts=counts,
        k_y=axes[0] * per_mrad,
        k_x=axes[1] * per_mrad,
        pixel=(float(np.diff(axes[0][:2])[0]) * per_mrad, float(np.diff(axes[1][:2])[0]) * per_mrad),
        wavelength=1e-3 / per_mrad,
        cutoff=cutoff,
        positions=shape[0] * shape[1],
        independent=independent,
        tile_A=(shape[0] * step[0], shape[1] * step[1]),
        tiles=len(tiles),
        step=step,
    )


def _box(
    cube: xr.DataArray, disk: xr.Dataset, semiangle: float
) -> tuple[list[slice], tuple[int, int], list[np.ndarray]]:
    """Detector pixels around the disk, how many make one bin, and the bins' centres (mrad from the disk's)."""
    box, bins, axes = [], [], []
    for dim, centre, step in zip(("det_y", "det_x"), (disk.center_y, disk.center_x), detector_step(cube), strict=True):
        away = cube[dim].values - float(centre)
        number = max(1, math.ceil(2 * semiangle / step / _DISK_PIXELS))
        inside = np.flatnonzero(np.abs(away) <= semiangle + step)
        first, last = int(inside[0]), int(inside[-1]) + 1
        last -= (last - first) % number
        box.append(slice(first, last))
        bins.append(number)
        axes.append(away[first:last].reshape(-1, number).mean(axis=1))
    return box, (bins[0], bins[1]), axes


def _binned(block: np.ndarray, bins: tuple[int, int]) -> np.ndarray:
    if bins == (1, 1):
        return block
    n_y, n_x, k_y, k_x = block.shape
    dtype = np.float32 if block.dtype.kind == "f" else np.uint32
    return block.reshape(n_y, n_x, k_y // bins[0], bins[0], k_x // bins[1], bins[1]).sum(axis=(3, 5), dtype=dtype)


def _tiles(cube: xr.DataArray, step: tuple[float, float], side_A: float) -> list[tuple[slice, slice]]:
    """Tiles of one size, at most a few, spread evenly over the scan; one if the scan is not much larger."""
    cuts = []
    for axis, dim in enumerate(("scan_y", "scan_x")):
        size = cube.sizes[dim]
        number = max(1, int(size * step[axis] / side_A))
        cuts.append([slice(i * (size // number), (i + 1) * (size // number)) for i in range(number)])
    every = [(y, x) for y in cuts[0] for x in cuts[1]]
    if len(every) <= _MOST_TILES:
        return every
    return [every[i] for i in np.linspace(0, len(every) - 1, _MOST_TILES).round().astype(int)]


@dataclass(frozen=True)
class _Frequencies:
    q_y: np.ndarray
    q_x: np.ndarray
    scan: tuple[np.ndarray, np.ndarray]  # indices of the scan frequencies that are needed
    place: np.ndarray  # which of them each object frequency falls on


def _frequencies(tile: tuple[slice, slice], step: tuple[float, float], q_max: float, most: int) -> _Frequencies:
    shape = tile[0].stop - tile[0].start, tile[1].stop - tile[1].start
    length = shape[0] * step[0], shape[1] * step[1]
    m_y, m_x = np.meshgrid(
        np.arange(-int(q_max * length[0]), int(q_max * length[0]) + 1),
        np.arange(int(q_max * length[1]) + 1),
        indexing="ij",
    )
    q = np.hypot(m_y / length[0], m_x / length[1])
    chosen = (q < q_max) & ((m_x > 0) | (m_y > 0))  # half a plane without zero: the rest is its complex conjugate
    if not chosen.any():
        raise ValueError(
            f"the scan of {length[0]:.3g} × {length[1]:.3g} Å is smaller than what the aperture resolves "
            f"({1 / q_max:.3g} Å): scan a larger field, or check scan_step_A and semiangle_mrad"
        )
    order = np.argsort(q[chosen], kind="stable")[: max(1, most)]
    m_y, m_x = m_y[chosen][order], m_x[chosen][order]
    flat = (m_y % shape[0]) * shape[1] + m_x % shape[1]
    scan, place = np.unique(flat, return_inverse=True)
    return _Frequencies(m_y / length[0], m_x / length[1], (scan // shape[1], scan % shape[1]), place.ravel())


def _windows(tile: tuple[slice, slice], *, periodic: bool) -> tuple[list[np.ndarray], float]:
    """Fades along y and x, and the share of Fourier coefficients that stays independent under them."""
    shape = tile[0].stop - tile[0].start, tile[1].stop - tile[1].start
    if periodic:
        return [np.ones(n) for n in shape], 1.0
    windows = []
    for n in shape:
        away = np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5
        windows.append(np.sin(np.pi / 2 * np.clip(away / max(1.0, n * _EDGE), 0, 1)) ** 2)
    shares = [float((w**2).sum() ** 2 / (len(w) * (w**4).sum())) for w in windows]
    return windows, math.prod(shares)


def _transform(
    counts: np.ndarray, windows: list[np.ndarray], scan: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean counts of each pixel, and mean × contrast's Fourier coefficients: (scan frequency, det_y, det_x).

    Normalised so that the contrast's noise power is 1/(mean counts × positions), under the windows too.
    """
    from scipy.fft import fft2

    n_y, n_x, k_y, k_x = counts.shape
    mean = counts.reshape(n_y * n_x, k_y, k_x).mean(axis=0, dtype=np.float64)
    window = (windows[0][:, None] * windows[1][None, :]).astype(np.float32)
    window /= np.sqrt(n_y * n_x * float((window.astype(float) ** 2).sum()))
    result = np.empty((len(scan[0]), k_y, k_x), dtype=np.complex64)
    for row in range(k_y):
        block = (counts[:, :, row].astype(np.float32) - mean[row].astype(np.float32)) * window[:, :, None]
        result[:, row] = fft2(np.moveaxis(block, 2, 0))[:, scan[0], scan[1]].T
    return mean, result


def _trust(rows: list[np.ndarray], counts: np.ndarray, positions: int) -> np.ndarray:
    """Weight of each scan frequency: one over (noise + model error), the noise being 1.

    A strong reflection, many times over the noise, is not explained to within the noise by a weak phase object: part of
    its energy (multiple scattering, an aperture that is not quite round) goes where the model has none. With a relative
    error in every strong reflection, many weaker ones tell more than one strong one.
    """
    lit = counts > 0
    pixels = int(lit.sum())
    energy = np.concatenate([(np.abs(row[:, lit]) ** 2 / counts[lit]).sum(1) * positions for row in rows])
    # above chance: the energy of noise alone is a sum of as many exponential variates as pixels
    excess = np.maximum(energy - pixels - 3 * np.sqrt(pixels), 0)
    return 1 / (1 + MODEL_ERROR * excess)
