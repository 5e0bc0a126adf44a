"""The cube that a thin phase object gives: what an image predicts that the detector counts.

A thin object multiplies the probe by ``exp(iφ)``. The wave that it scatters is formed in a window round each probe
position and transformed by matrix products onto nodes within the detector pixels, which integrate it by Gauss'
quadrature; the wave that passes is known in closed form. So the pixels need not fit the object's grid, no frequency
wraps round, and vacuum gives the ideal disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr.aberrations import aberrations_of
from misr.bright_field import bright_field_disk
from misr.cube import detector_step, is_lazy, is_periodic, scan_step, validate_cube
from misr.dose import apply_dose
from misr.optics import aberration_gradient, aberration_phase, aperture_fraction, electron_wavelength, rotate

if TYPE_CHECKING:
    import torch

__all__ = ["PhaseObject", "cube_from_phase", "predicted_patterns"]

_TAILS = 6.0  # of the probe beyond its geometric edge, in λ/α
_QUADRATURE_ERROR = 3e-3  # of the contrast at the band limit
_MOST_NODES = 24
_SUBPIXELS = 32  # along each edge of a detector pixel, for the disk's edge
_BATCH_BYTES = 96 << 20
_ALIKE = 1e-6  # of a pixel: probes on the same place between pixels are the same


def cube_from_phase(
    phase: xr.DataArray,
    *,
    like: xr.DataArray,
    dose_e_per_A2: float | None = None,
    rng: Any = None,
    center_mrad: tuple[float, float] | None = None,
    device: str = "auto",
) -> xr.DataArray:
    """The cube that a thin phase object ``exp(iφ)`` gives with the optics, scan and detector of another cube.

    Not limited to weak phases; without thickness, absorption, source size and incoherent scattering.

    Parameters
    ----------
    phase : xarray.DataArray
        rad, dims ``("y", "x")``, Å on the scan's own origin. If it is one period (``attrs["period_A"]``, or it covers
        that of a periodic ``like``) it is repeated; else what lies outside it is vacuum with the mean phase of its
        border, since the beam reaches further than the scan. A constant added to the phase changes nothing.
    like : xarray.DataArray
        4D-STEM cube, NumPy or dask, whose scan positions, detector pixels, energy, semi-angle, aberrations and rotation
        are taken (a transposed detector as it is labelled: see `misr.transpose_detector`), and if it is dask-backed its
        chunks of scan positions: the result is then computed chunk by chunk. Its counts only serve to find the optic
        axis.
    dose_e_per_A2 : float, optional
        Dose at which to draw Poisson counts, electrons per Å².
    rng : None, int or numpy.random.Generator
        Seed of the counts (SPEC 7). With a dose or a seed counts are drawn (at ``like``'s dose if none is given); with
        neither they are the expected ones at ``like``'s dose (1 e/Å² if that is not known).
    center_mrad : (float, float), optional
        The optic axis in ``like``'s detector coordinates ``(y, x)``; that of its bright-field disk by default.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.DataArray
        Dims and coordinates of ``like``; float32 expected electrons, or whole counts.

    Raises
    ------
    ValueError
        If ``like`` is no valid cube or its aberrations are not known, or for an image without uniform coordinates or
        with NaN.

    Notes
    -----
    The probe is cut off 6 λ/α beyond its geometric edge, which leaves an error (root mean square) of 1 to 4 % of the
    contrast where defocus is 600 Å or more, and of 8 to 17 % of the little there is in focus (``make resolution``).

    Examples
    --------
    >>> import numpy as np, misr
    >>> from misr.cube import image_from_array
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> like = misr.cube_from_array(np.broadcast_to(disk * 1.0, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -100})
    >>> atom = np.exp(-np.hypot(*np.meshgrid(np.arange(32) - 16, np.arange(32) - 16)) ** 2 / 8)
    >>> cube = cube_from_phase(image_from_array(0.5 * atom, pixel_A=(0.5, 0.5)), like=like, rng=0)
    >>> cube.shape, cube.dtype.kind
    ((8, 8, 16, 16), 'u')
    """
    made = predicted_patterns(phase, like=like, center_mrad=center_mrad, device=device)
    own_dose = like.attrs.get("dose_e_per_A2")
    dose = float(own_dose) if own_dose else float(dose_e_per_A2 or 1.0)
    step = scan_step(like)
    electrons = dose * step[0] * step[1]
    data = _lazy(made, like, electrons) if is_lazy(like) else made.rows(slice(0, like.sizes["scan_y"]), electrons)
    cube = like.copy(data=data).rename("counts")
    cube.attrs = {**like.attrs, "units": "electrons", "dose_e_per_A2": dose}
    note = {"dose_e_per_A2": dose_e_per_A2, "rng": describe_rng(rng), "center_mrad": made.center_mrad}
    cube.attrs["history"] = append_history(phase.attrs, "cube_from_phase", **note)
    expected = dose_e_per_A2 is None and rng is None
    return cube if expected else apply_dose(cube, dose if dose_e_per_A2 is None else dose_e_per_A2, rng=rng)


def _lazy(made: PhaseObject, like: xr.DataArray, electrons: float) -> Any:
    import dask.array

    def block(block_info: Any = None) -> np.ndarray:
        (first, last), (left, right) = block_info[None]["array-location"][:2]
        return made.rows(slice(first, last), electrons, columns=slice(left, right))

    chunks = (*like.data.chunks[:2], (like.shape[2],), (like.shape[3],))
    return dask.array.map_blocks(block, chunks=chunks, dtype=np.float32, meta=np.empty((0,) * 4, np.float32))


@dataclass(frozen=True)
class PhaseObject:
    """A phase object on a grid along the detector's axes, and all that a prediction of its patterns needs."""

    scattering: torch.Tensor  # (y, x): exp(iφ) - 1
    corner: np.ndarray  # (scan_y, scan_x, 2): first grid pixel of each window
    offset: np.ndarray  # (scan_y, scan_x, 2): of the probe from the window's middle pixel, in pixels
    pitch: tuple[float, float]  # Å
    window: tuple[int, int]  # pixels
    spectrum: torch.Tensor  # aperture: A exp(-iχ) dk², (k_y, k_x)
    probe_k: tuple[torch.Tensor, torch.Tensor]  # its frequencies, 1/Å
    nodes: tuple[torch.Tensor, torch.Tensor]  # frequencies within the detector's pixels, 1/Å
    weights: torch.Tensor  # of a pixel's nodes along an axis, sum 1
    passed: torch.Tensor  # (node_y, node_x): A exp(iχ), of the wave that passes
    disk: torch.Tensor  # (det_y, det_x): share of each pixel that lies in the aperture
    per_pixel: float  # share of the electrons that a pixel wholly within the disk gets
    center_mrad: tuple[float, float]

    @property
    def vacuum(self) -> np.ndarray:
        """Share of the electrons in each detector pixel without a specimen: (det_y, det_x)."""
        return np.asarray(self.disk.cpu().numpy() * self.per_pixel)

    def rows(self, rows: slice, electrons: float = 1.0, *, columns: slice = slice(None)) -> np.ndarray:
        """Expected counts of some scan rows, float32: (scan_y, scan_x, det_y, det_x).

        Parameters
        ----------
        rows, columns : slice
            Of the scan.
        electrons : float
            Per position.

        Returns
        -------
        numpy.ndarray
            Not below 0.
        """
        corner, offset = self.corner[rows, columns], self.offset[rows, columns]
        shape = corner.shape[:2]
        corner, offset = corner.reshape(-1, 2), offset.reshape(-1, 2)
        result = np.empty((len(corner), *self.disk.shape), dtype=np.float32)
        per_position = 8 * (4 * self.window[0] * self.window[1] + 2 * self.window[0] * len(self.nodes[1]))
        batch = max(1, _BATCH_BYTES // (per_position + 16 * self.passed.numel()))
        shared = self._probes(offset[:1]) if offset.size and np.ptp(offset, axis=0).max() < _ALIKE else None
        for first in range(0, len(corner), batch):
            part = slice(first, first + batch)
            probes = self._probes(offset[part]) if shared is None else shared
            result[part] = (self._patterns(corner[part], offset[part], probes) * electrons).cpu().numpy()
        return result.reshape(*shape, *self.disk.shape)

    def _probes(self, offset: np.ndarray) -> torch.Tensor:
        """The probe at the pixels of its window: (position, y, x)."""
        left, right = (self._turns(self.probe_k[i], offset, i, sign=1) for i in range(2))
        return left.transpose(1, 2) @ self.spectrum @ right

    def _turns(self, k: torch.Tensor, offset: np.ndarray, axis: int, *, sign: int) -> torch.Tensor:
        """exp(±2πi k w) for the pixels w of windows with these offsets: (position, k, pixel)."""
        import torch

        at = np.arange(self.window[axis]) - self.window[axis] // 2 - offset[:, axis, None]
        w = torch.as_tensor(at * self.pitch[axis], device=k.device)
        return torch.exp(sign * 2j * math.pi * k[:, None] * w[:, None, :]).to(torch.complex64)

    def _patterns(self, corner: np.ndarray, offset: np.ndarray, probes: torch.Tensor) -> torch.Tensor:
        import torch

        cut = [self.scattering[y : y + self.window[0], x : x + self.window[1]] for y, x in corner]
        exit_wave = torch.stack(cut) * probes
        one = len(probes) == 1
        turns = [self._turns(self.nodes[i], offset[:1] if one else offset, i, sign=-1) for i in range(2)]
        wave = turns[0] @ (exit_wave @ turns[1].transpose(1, 2)) * (self.pitch[0] * self.pitch[1])
        gained = 2 * (self.passed.real * wave.real - self.passed.imag * wave.imag) + wave.real**2 + wave.imag**2
        n = len(self.weights)
        (n_y, n_x), weights = self.disk.shape, self.weights
        integrated = torch.einsum("pyaxb,a,b->pyx", gained.reshape(-1, n_y, n, n_x, n), weights, weights)
        return (self.disk + integrated).clamp(min=0) * self.per_pixel


def predicted_patterns(
    phase: xr.DataArray, *, like: xr.DataArray, center_mrad: tuple[float, float] | None = None, device: str = "auto"
) -> PhaseObject:
    """Prepare the prediction of a phase object's patterns on a cube's scan and detector.

    Parameters
    ----------
    phase, like, center_mrad, device
        See `cube_from_phase`.

    Returns
    -------
    PhaseObject
        Its ``rows`` are the patterns.

    Raises
    ------
    ValueError
        See `cube_from_phase`.
    """
    import torch

    from misr.fusion.kernels import resolve_device

    validate_cube(like, counts=False)
    _check_phase(phase)
    aberrations = aberrations_of(like)
    if aberrations is None:
        raise ValueError(
            "the aberrations of like are not known: set them with misr.with_aberrations(cube, {'C10': …}) (C10 = "
            "-defocus, Å), or find them with misr.fit_aberrations"
        )
    center, semiangle = _disk_of(like, center_mrad)
    wavelength = electron_wavelength(like.attrs["energy_eV"])
    turn, per_mrad = float(like.attrs.get("rotation_deg", 0.0)), 1e-3 / wavelength
    cutoff = semiangle * per_mrad
    optics: dict[str, Any] = {"aberrations": aberrations, "wavelength": wavelength}
    on = resolve_device(device)

    reach = _geometric_reach(cutoff, optics)
    steps = [s * per_mrad for s in detector_step(like)]
    centres = [(like[d].values - center[i]) * per_mrad for i, d in enumerate(("det_y", "det_x"))]
    # interference of rays from opposite edges of the probe turns fastest over a pixel
    points, weights = _quadrature(2 * math.pi * max(steps) * reach)
    nodes = [(c[:, None] + s * points / 2).ravel() for c, s in zip(centres, steps, strict=True)]
    edge = max(float(np.abs(k).max()) for k in nodes)
    pitch = _pitch(like, turn, 0.5 / (min(edge, 0.5 / min(_pixel(phase)) + cutoff) + cutoff))
    half = reach + _TAILS / cutoff
    window = tuple(2 * math.ceil(half / p) for p in pitch)

    scan_y, scan_x = np.meshgrid(like.scan_y.values, like.scan_x.values, indexing="ij")
    at = np.stack(rotate(scan_y, scan_x, -turn), axis=-1)
    first = at.min(axis=(0, 1)) - [p * (w // 2) for p, w in zip(pitch, window, strict=True)]
    index = (at - first) / pitch
    whole = np.rint(index + 1e-9)
    size = [int(whole[..., i].max()) + window[i] - window[i] // 2 + 1 for i in range(2)]
    phi = _on_grid(phase, like, first=first, pitch=pitch, size=size, turn=turn)

    dk = [0.5 / (w * p) for w, p in zip(window, pitch, strict=True)]
    probe_k = [d * np.arange(-math.ceil(cutoff / d) - 1, math.ceil(cutoff / d) + 2) for d in dk]
    k_y, k_x = rotate(probe_k[0][:, None], probe_k[1][None, :], turn)
    spectrum = _covered(probe_k, dk, cutoff) * np.exp(-1j * aberration_phase(k_y, k_x, **optics)) * dk[0] * dk[1]
    n_y, n_x = rotate(nodes[0][:, None], nodes[1][None, :], turn)
    width = math.sqrt(steps[0] * steps[1]) / len(points)
    passed = aperture_fraction(n_y, n_x, cutoff=cutoff, width=width) * np.exp(1j * aberration_phase(n_y, n_x, **optics))

    def tensor(values: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), device=on).to(dtype)

    return PhaseObject(
        scattering=tensor(np.expm1(1j * phi), torch.complex64),
        corner=(whole - [w // 2 for w in window]).astype(int),
        offset=index - whole,
        pitch=(pitch[0], pitch[1]),
        window=(window[0], window[1]),
        spectrum=tensor(spectrum, torch.complex64),
        probe_k=(tensor(probe_k[0], torch.float64), tensor(probe_k[1], torch.float64)),
        nodes=(tensor(nodes[0], torch.float64), tensor(nodes[1], torch.float64)),
        weights=tensor(weights, torch.float32),
        passed=tensor(passed, torch.complex64),
        disk=tensor(_covered(centres, steps, cutoff), torch.float32),
        per_pixel=steps[0] * steps[1] / (math.pi * cutoff**2),
        center_mrad=center,
    )


def _check_phase(phase: Any) -> None:
    if not isinstance(phase, xr.DataArray) or phase.dims != ("y", "x"):
        raise ValueError(
            f"phase is {getattr(phase, 'dims', None) or type(phase).__name__}: expected a DataArray with dims "
            "('y', 'x') in rad, such as misr.fuse_linear(views)['phase']"
        )
    for dim in ("y", "x"):
        if dim not in phase.coords or phase.sizes[dim] < 2:
            raise ValueError(f"phase has no coordinate {dim!r} of two or more pixels: give it positions in Å")
        steps = np.diff(phase[dim].values.astype(float))
        if not steps.min() > 0 or np.ptp(steps) > 1e-3 * steps.mean():
            raise ValueError(f"coordinate {dim!r} of phase is not increasing in uniform steps: interpolate it first")
    if not np.all(np.isfinite(phase.values)):
        raise ValueError("phase holds NaN or infinite values: crop or fill them first")


def _disk_of(like: xr.DataArray, center_mrad: tuple[float, float] | None) -> tuple[tuple[float, float], float]:
    semiangle = like.attrs.get("semiangle_mrad")
    if center_mrad is not None and semiangle is not None:
        return (float(center_mrad[0]), float(center_mrad[1])), float(semiangle)
    disk = bright_field_disk(like)
    center = (float(disk.center_y), float(disk.center_x)) if center_mrad is None else center_mrad
    return (float(center[0]), float(center[1])), float(disk.attrs["semiangle_mrad"])


def _geometric_reach(cutoff: float, optics: dict[str, Any]) -> float:
    """Furthest that aberrations take a ray of the probe from its middle, Å."""
    angle, k = np.linspace(0, 2 * np.pi, 73)[:, None], cutoff * np.linspace(0, 1, 21)
    slope = aberration_gradient(k * np.sin(angle), k * np.cos(angle), **optics)
    return float(np.hypot(*slope).max()) / (2 * math.pi)


def _quadrature(z: float) -> tuple[np.ndarray, np.ndarray]:
    """Fewest Gauss-Legendre points on -1 to 1 that integrate ``exp(i z x)``, well enough."""
    for n in range(1, _MOST_NODES + 1):
        log_error = 2 * n * math.log(2 * max(z, 1e-9)) + 4 * math.lgamma(n + 1)
        log_error -= math.log(2 * n + 1) + 3 * math.lgamma(2 * n + 1)
        if log_error < math.log(_QUADRATURE_ERROR):
            points, weights = np.polynomial.legendre.leggauss(n)
            return points, weights / 2
    raise ValueError(
        f"the pattern changes by {z:.0f} rad across one detector pixel, too fast for it to be predicted: less defocus "
        "or finer detector pixels are needed"
    )


def _pixel(image: xr.DataArray) -> tuple[float, float]:
    steps = [float(image[d][-1] - image[d][0]) / (image.sizes[d] - 1) for d in ("y", "x")]
    return steps[0], steps[1]


def _pitch(like: xr.DataArray, turn: float, coarsest: float) -> list[float]:
    """Grid pixel along the detector's axes: a whole part of the scan step if the axes are parallel."""
    if turn % 90 != 0:
        return [coarsest, coarsest]
    steps = scan_step(like) if turn % 180 == 0 else scan_step(like)[::-1]
    return [s / math.ceil(s / coarsest - 1e-9) for s in steps]


def _covered(centres: Any, steps: Any, cutoff: float) -> np.ndarray:
    """Share of each pixel that lies within the aperture."""
    offsets = (np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5
    fine = [(c[:, None] + s * offsets).ravel() for c, s in zip(centres, steps, strict=True)]
    inside = fine[0][:, None] ** 2 + fine[1][None, :] ** 2 < cutoff**2
    return np.asarray(inside.reshape(len(centres[0]), _SUBPIXELS, len(centres[1]), _SUBPIXELS).mean(axis=(1, 3)))


def _on_grid(
    phase: xr.DataArray, like: xr.DataArray, *, first: np.ndarray, pitch: list[float], size: list[int], turn: float
) -> np.ndarray:
    """The phase less its surroundings on the grid, which is turned against the image's axes; surroundings 0."""
    from scipy import ndimage

    axes = [first[i] + pitch[i] * np.arange(size[i]) for i in range(2)]
    y, x = rotate(axes[0][:, None], axes[1][None, :], turn)
    pixel = _pixel(phase)
    values = np.asarray(phase.values, dtype=float)
    ways = zip((y, x), ("y", "x"), pixel, strict=True)
    index = [np.broadcast_to((at - float(phase[dim][0])) / step, (size[0], size[1])) for at, dim, step in ways]
    # what the grid cannot hold would come back at other frequencies
    cut = [0.5 / max(pitch) * step for step in pixel]
    wraps = _wraps(phase, like)
    border = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]]).mean()
    period = values - values.mean() if wraps else np.pad(values - border, [(0, n) for n in values.shape], "symmetric")
    fine = _doubled(_low_passed(period, cut))
    found = ndimage.map_coordinates(fine, [2 * i for i in index], order=5, mode="grid-wrap")
    inside = [(i > -0.5) & (i < n - 0.5) for i, n in zip(index, values.shape, strict=True)]
    return np.asarray(np.where(wraps | (inside[0] & inside[1]), found, 0.0))


def _wraps(phase: xr.DataArray, like: xr.DataArray) -> bool:
    """Whether the image is one period: by its own attrs, or those of the scan that it covers."""
    period = phase.attrs.get("period_A", like.attrs.get("period_A") if is_periodic(like) else None)
    return period is not None and is_periodic(phase.assign_attrs(period_A=period))


def _low_passed(values: np.ndarray, cut: list[float]) -> np.ndarray:
    """Frequencies of a periodic image within the ellipse with these half axes, cycles per pixel."""
    y, x = np.fft.fftfreq(values.shape[0]) / cut[0], np.fft.rfftfreq(values.shape[1]) / cut[1]
    return np.fft.irfft2(np.fft.rfft2(values) * (np.hypot(y[:, None], x) <= 1), s=values.shape)


def _doubled(values: np.ndarray) -> np.ndarray:
    """Twice the pixels along each axis, from the Fourier series of a periodic image."""
    from scipy.signal import resample

    for axis in range(2):
        values = resample(values, 2 * values.shape[axis], axis=axis)
    return values
