"""4D-STEM cubes by reciprocity: one tilted plane wave through the specimen for each point of the detector.

What a detector pixel at k counts over all probe positions is the bright-field image that a plane wave tilted to k
gives through the specimen, its slices in reverse order, with the probe-forming lens as the objective (Cowley 1969,
Appl. Phys. Lett. 15, 58). With ``u(r)`` the periodic part of that wave at the entrance surface and ``û(g)`` its
Fourier series, ``I_k(r) = |Σ_g P(k - g) û(g) exp(2πi g·r)|²``, ``P = A exp(-iχ)``: exact for a periodic specimen, at
any k. Only a few hundred waves are propagated instead of one for each of thousands of probe positions, and a thin
specimen (one slice) needs a single Fourier transform for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.aberrations import polar_aberrations
from misr.cube import cube_from_array
from misr.fusion.tilted_detector import (
    BAND,
    ROUNDING,
    TINY,
    check_pixel,
    checked_slices,
    detector_angles,
    enough_nodes,
    mean_slice,
    pair,
    quadrature,
    scan_window,
)
from misr.optics import (
    aberration_gradient,
    aberration_phase,
    aperture_fraction,
    electron_wavelength,
    pixel_width,
)
from misr.phase import check_positive

if TYPE_CHECKING:
    import torch

__all__ = ["simulate_bright_field"]

_BATCH_BYTES = {"cpu": 4 << 20, "cuda": 96 << 20}  # of waves: those of a CPU should stay near its cache


def simulate_bright_field(
    phase_slices: Any,
    *,
    pixel_A: float | tuple[float, float],
    energy_eV: float,
    semiangle_mrad: float,
    scan_shape: tuple[int, int],
    det_step_mrad: float | tuple[float, float],
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    slice_thickness_A: float = 5.0,
    det_pixels: int | tuple[int, int] | None = None,
    det_center_mrad: tuple[float, float] = (0.0, 0.0),
    rotation_deg: float = 0.0,
    positions: tuple[int, int, int, int] | None = None,
    nodes: int | None = None,
    smooth_edges: bool = True,
    dark_field: bool = False,
    device: str = "auto",
) -> xr.DataArray:
    """Expected bright-field counts of a periodic specimen, by multislice of a tilted plane wave per detector pixel.

    The same physics and conventions as `misr.simulate_cube`, far faster where there are fewer detector pixels in the
    bright field than probe positions, and with every detector geometry exact.

    Parameters
    ----------
    phase_slices : array, shape (slice, y, x) or (y, x)
        Projected phase of each slice, rad (σ ∫V dz), on one period; the beam meets the first slice first. NumPy or
        torch.
    pixel_A : float or (float, float)
        Pixel of the slices, Å, ``(y, x)`` if two.
    energy_eV : float
        Beam energy, eV.
    semiangle_mrad : float
        Convergence semi-angle, mrad.
    scan_shape : (int, int)
        Probe positions ``(y, x)`` over the whole period, which need not fit the pixels; the first is on the first
        pixel.
    det_step_mrad : float or (float, float)
        Detector pixel, mrad.
    aberrations : mapping or Dataset, optional
        Polar coefficients, Å and rad, at the specimen's mean depth (weighted with the slices' mean phase).
    slice_thickness_A : float, default 5
        Distance between slices, Å.
    det_pixels : int or (int, int), optional
        Detector pixels ``(y, x)``; by default the disk and one more on each side.
    det_center_mrad : (float, float), default (0, 0)
        Where the middle of the detector lies relative to the optic axis, mrad, along the detector's axes.
    rotation_deg : float, default 0
        Scan-to-detector rotation: detector position k is ``misr.optics.rotate(*k, rotation_deg)`` in the scan's frame.
    positions : (int, int, int, int), optional
        ``(first_y, first_x, n_y, n_x)``: only this window of the scan (it may reach round the period); the cube is
        then not periodic.
    nodes : int, optional
        Plane waves per detector pixel along each axis; by default enough to resolve the pattern within a pixel.
    smooth_edges : bool, default True
        Each wave stands for a cell of the detector: the part of the cell that lies within an aperture's edge and the
        phase that turns linearly across it are integrated. False samples points, as multislice programs do.
    dark_field : bool, default False
        Also compute the pixels that the bright-field disk does not touch; they are 0 otherwise.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.DataArray
        ``counts`` ``("scan_y", "scan_x", "det_y", "det_x")``: float32 expected electrons at 1 e/Å², labelled as those
        of `misr.simulate_cube` (detector in mrad from the optic axis; ``attrs["period_A"]`` for a whole scan).

    Raises
    ------
    ValueError
        For arrays, angles and lengths that do not fit together; for a pixel too coarse for the angles it says which
        one is needed.

    Examples
    --------
    >>> import numpy as np
    >>> slices = np.zeros((2, 60, 60))
    >>> slices[0, 30, 15] = 1.0
    >>> cube = simulate_bright_field(slices, pixel_A=0.3, energy_eV=300e3, semiangle_mrad=10, scan_shape=(8, 8),
    ...                              det_step_mrad=2, aberrations={"C10": -200})
    >>> cube.shape, cube.attrs["period_A"]
    ((8, 8, 12, 12), [18.0, 18.0])
    >>> bool(abs(cube.sum(("det_y", "det_x")).mean() / 2.25**2 - 1) < 0.05)  # a few scatter past the disk
    True
    """
    import torch

    from misr.fusion.kernels import resolve_device

    check_positive(energy_eV=energy_eV, semiangle_mrad=semiangle_mrad, slice_thickness_A=slice_thickness_A)
    on = resolve_device(device)
    phase = checked_slices(phase_slices).to(on)
    pixel, det_step = pair(pixel_A, "pixel_A"), pair(det_step_mrad, "det_step_mrad")
    polar = polar_aberrations(aberrations)
    scan, window = scan_window(scan_shape, positions)
    wavelength = electron_wavelength(energy_eV)
    size = (pixel[0] * phase.shape[1], pixel[1] * phase.shape[2])
    cutoff = semiangle_mrad * 1e-3 / wavelength

    angles = detector_angles(det_step, det_pixels, det_center_mrad, semiangle_mrad)
    thickness = slice_thickness_A * (len(phase) - 1)
    if nodes is None:
        nodes = enough_nodes(max(det_step) * 1e-3 / wavelength, cutoff, polar, wavelength, thickness)
    elif nodes < 1:
        raise ValueError(f"nodes={nodes} must be a whole number of plane waves per pixel and axis, at least 1")
    k, share, edges = quadrature(angles, det_step, nodes, wavelength, rotation_deg, cutoff)
    chosen = np.ones(len(k), dtype=bool) if dark_field else share[..., 0].any(axis=1)
    check_pixel(pixel, cutoff, float(np.hypot(*np.moveaxis(k[chosen], -1, 0)).max()) if dark_field else cutoff)

    lens = _Lens(
        aberrations={**polar, "C10": polar.get("C10", 0.0) - slice_thickness_A * mean_slice(phase)},
        wavelength=wavelength,
        cutoff=cutoff,
        size=size,
        band=(BAND / pixel[0], BAND / pixel[1]),
        edges=edges if smooth_edges else None,
    )
    waves = _Waves.through(phase, size, pixel, wavelength, slice_thickness_A)
    step = (size[0] / scan[0], size[1] / scan[1])
    electrons = step[0] * step[1] * det_step[0] * det_step[1] / (math.pi * semiangle_mrad**2)
    counts = torch.zeros((len(k), window[2], window[3]), dtype=torch.float32, device=on)
    places = np.flatnonzero(chosen)
    per_wave = 8 * (max(phase[0].numel() if len(phase) > 1 else 0, scan[0] * scan[1]) + 4 * lens.window_pixels)
    batch = max(1, _BATCH_BYTES.get(on.type, _BATCH_BYTES["cuda"]) // (per_wave * nodes**2))
    for part in _blocks(places, batch):
        tilts = torch.as_tensor(k[part].reshape(-1, 2), device=on)
        cells = torch.as_tensor(share[part].reshape(-1, 3), device=on) if smooth_edges else None
        views = lens.images(waves.at(tilts), tilts, cells, scan, window)
        counts[part] = views.reshape(len(part), nodes**2, *views.shape[1:]).mean(dim=1)
    counts *= electrons
    data = counts.reshape(len(angles[0]), len(angles[1]), *counts.shape[1:]).permute(2, 3, 0, 1).contiguous()

    cube = cube_from_array(
        data.cpu().numpy(),
        scan_step_A=step,
        det_step_mrad=det_step,
        energy_eV=energy_eV,
        semiangle_mrad=semiangle_mrad,
        dose_e_per_A2=1.0,
        rotation_deg=rotation_deg,
        aberrations=polar,
    )
    for name, values in zip(("det_y", "det_x"), angles, strict=True):
        cube = cube.assign_coords({name: (name, values, {"units": "mrad"})})
    if positions is None:
        cube.attrs["period_A"] = [float(length) for length in size]
    else:
        for i, name in enumerate(("scan_y", "scan_x")):
            at = step[i] * (window[i] + np.arange(window[2 + i]))
            cube = cube.assign_coords({name: (name, at, {"units": "Å"})})
    cube.attrs["history"] = append_history(
        {}, "simulate_bright_field", slices=list(phase.shape), pixel_A=pixel, energy_eV=energy_eV,
        semiangle_mrad=semiangle_mrad, scan_shape=scan, det_step_mrad=det_step, aberrations=polar,
        slice_thickness_A=slice_thickness_A, det_center_mrad=det_center_mrad, rotation_deg=rotation_deg,
        positions=positions, nodes=nodes, smooth_edges=smooth_edges, dark_field=dark_field,
    )  # fmt: skip
    return cube


@dataclass(frozen=True)
class _Waves:
    """Plane waves through the specimen, last slice first, band-limited as multislice needs it."""

    transmission: torch.Tensor  # (slice, y, x)
    last: torch.Tensor  # (y, x): Fourier series of the last slice's transmission, which every wave meets first
    frequency: tuple[torch.Tensor, torch.Tensor]  # 1/Å
    fresnel: tuple[torch.Tensor, torch.Tensor]  # between two slices without tilt, 0 past the band, along y and x
    shift_per_tilt: float  # λ dz, Å²

    @classmethod
    def through(
        cls,
        phase: torch.Tensor,
        size: tuple[float, float],
        pixel: tuple[float, float],
        wavelength: float,
        dz: float,
    ) -> _Waves:
        import torch

        # the band is a square, so that propagating is a product of two vectors for each wave
        order = [torch.round(torch.fft.fftfreq(n, dtype=torch.float64) * n) for n in phase.shape[1:]]
        frequency = [o / length for o, length in zip(order, size, strict=True)]
        inside = [f.abs() <= BAND / p * (1 + ROUNDING) for f, p in zip(frequency, pixel, strict=True)]
        fresnel = [
            torch.where(keep, torch.exp(-1j * math.pi * wavelength * dz * f**2), 0.0)
            for keep, f in zip(inside, frequency, strict=True)
        ]
        on = phase.device
        kept = (inside[0][:, None] & inside[1]).to(on)
        series = torch.fft.fft2(torch.polar(torch.ones_like(phase), phase), norm="forward") * kept
        return cls(
            transmission=torch.fft.ifft2(series, norm="forward")[:-1],
            last=series[-1],
            frequency=(frequency[0].to(on), frequency[1].to(on)),
            fresnel=(fresnel[0].to(on, torch.complex64), fresnel[1].to(on, torch.complex64)),
            shift_per_tilt=wavelength * dz,
        )

    def at(self, tilts: torch.Tensor) -> torch.Tensor:
        """Fourier series of the waves at the entrance surface less their tilts: (wave or 1, y, x)."""
        import torch

        if len(self.transmission) == 0:
            return self.last[None]
        step = [
            fresnel * torch.exp(2j * math.pi * self.shift_per_tilt * tilts[:, i, None] * frequency).to(torch.complex64)
            for i, (fresnel, frequency) in enumerate(zip(self.fresnel, self.frequency, strict=True))
        ]
        down, across = step[0][:, :, None], step[1][:, None, :]
        series = self.last * down
        for level in reversed(range(len(self.transmission))):
            wave = torch.fft.ifft2(series.mul_(across), norm="forward")
            series = torch.fft.fft2(wave.mul_(self.transmission[level]), norm="forward")
            if level > 0:
                series.mul_(down)
        return series


@dataclass(frozen=True)
class _Lens:
    """The probe-forming lens as the objective of the reversed microscope."""

    aberrations: Mapping[str, float]  # at the entrance surface
    wavelength: float
    cutoff: float
    size: tuple[float, float]
    band: tuple[float, float]
    edges: tuple[tuple[float, float], tuple[float, float]] | None  # of a wave's cell of the detector, 1/Å

    @property
    def reach(self) -> tuple[int, int]:
        """How far the aperture extends, in frequencies of the period."""
        margin = 0.0 if self.edges is None else max(math.hypot(*edge) for edge in self.edges) / 2
        return tuple(math.ceil((self.cutoff + margin) * length + 0.5) for length in self.size)  # type: ignore[return-value]

    @property
    def window_pixels(self) -> int:
        """Frequencies that a wave's image is made of."""
        return (2 * self.reach[0] + 1) * (2 * self.reach[1] + 1)

    def images(
        self,
        series: torch.Tensor,
        tilts: torch.Tensor,
        cells: torch.Tensor | None,
        scan: tuple[int, int],
        window: tuple[int, int, int, int],
    ) -> torch.Tensor:
        """Intensity at the scan positions: (wave, y, x), 1 where there is no specimen."""
        import torch

        order, g = [], []
        for i in range(2):
            middle = torch.round(tilts[:, i] * self.size[i]).to(torch.int64)
            span = torch.arange(-self.reach[i], self.reach[i] + 1, device=tilts.device)
            order.append(middle[:, None] + span)
            g.append(order[i].to(torch.float64) / self.size[i])
        which = torch.arange(len(series), device=tilts.device)[:, None, None]
        at = [o % n for o, n in zip(order, series.shape[1:], strict=True)]
        amplitude = series[which, at[0][:, :, None], at[1][:, None, :]]
        pupil, lost = self._pupil(tilts, g, cells)
        constant = None if lost is None else (lost * (amplitude.real**2 + amplitude.imag**2)).sum(dim=(1, 2))
        image = torch.fft.ifft2(_folded(amplitude * pupil, scan), norm="forward")
        rows = (window[0] + torch.arange(window[2], device=tilts.device)) % scan[0]
        columns = (window[1] + torch.arange(window[3], device=tilts.device)) % scan[1]
        if window != (0, 0, *scan):
            image = image[:, rows][:, :, columns]
        intensity = image.real**2 + image.imag**2
        return intensity if constant is None else intensity + constant[:, None, None]

    def _pupil(
        self, tilts: torch.Tensor, g: list[torch.Tensor], cells: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``P(k - g)`` of each wave, and for cells what its square lacks of the intensity that passes."""
        import torch

        optics: dict[str, Any] = {"aberrations": self.aberrations, "wavelength": self.wavelength}
        k = [tilts[:, i, None, None] for i in range(2)]
        steps = [g[0][:, :, None], g[1][:, None, :]]
        q_y, q_x = torch.broadcast_tensors(*((a - b).to(torch.float32) for a, b in zip(k, steps, strict=True)))
        known = [f.abs() <= b * (1 + ROUNDING) for f, b in zip(steps, self.band, strict=True)]
        chi = aberration_phase(q_y, q_x, **optics)
        if self.edges is None:
            passes = ((q_y**2 + q_x**2 < self.cutoff**2) & known[0] & known[1]).to(torch.float32)
            return torch.polar(passes, -chi), None
        share = aperture_fraction(q_y, q_x, cutoff=self.cutoff, width=pixel_width(q_y, q_x, pixel_edges=self.edges))
        share = share * (known[0] & known[1])
        if cells is not None:
            direct = (steps[0] == 0) & (steps[1] == 0)
            share = torch.where(direct, cells[:, 0, None, None], share)
        blur, turn = self._interference([a.to(torch.float32) for a in k], (q_y, q_x), share, cells, self.edges)
        mean = share * blur
        return torch.polar(mean, turn - chi), share - mean**2

    def _interference(
        self,
        k: list[torch.Tensor],
        q: tuple[torch.Tensor, ...],
        share: torch.Tensor,
        cells: torch.Tensor | None,
        edges: tuple[tuple[float, float], tuple[float, float]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over a cell of ``exp(i[χ(k) - χ(q)])``, linear in the cell: its size, and its phase less the middle's.

        An aperture's edge leaves a part of the cell: narrower along the edge's normal, and off the cell's middle.
        """
        import torch

        optics: dict[str, Any] = {"aberrations": self.aberrations, "wavelength": self.wavelength}
        here, there = aberration_gradient(k[0], k[1], **optics), aberration_gradient(q[0], q[1], **optics)
        slope = [a - b for a, b in zip(here, there, strict=True)]
        turn = torch.zeros_like(share)
        cuts = [(q, 1 - share)]
        if cells is not None:
            turn = turn + slope[0] * cells[:, 1, None, None] + slope[1] * cells[:, 2, None, None]
            cuts.append(((k[0], k[1]), 1 - cells[:, 0, None, None]))
        for i, (at, lack) in enumerate(cuts):
            squared = at[0] ** 2 + at[1] ** 2 + TINY
            normal = (slope[0] * at[0] + slope[1] * at[1]) * (lack / squared)
            if i == 0:
                turn = turn - normal * torch.sqrt(squared) * (pixel_width(*at, pixel_edges=edges) / 2)
            slope = [a - normal * b for a, b in zip(slope, at, strict=True)]
        blur = torch.ones_like(share)
        for edge in edges:
            # torch.sinc(x) is sin(πx)/(πx)
            blur = blur * torch.sinc((slope[0] * edge[0] + slope[1] * edge[1]) / (2 * math.pi))
        return blur, turn


def _folded(series: torch.Tensor, scan: tuple[int, int]) -> torch.Tensor:
    """Fourier series as the scan sees it: frequencies that differ by a multiple of the scan's are one."""
    import torch

    for axis, n in ((1, scan[0]), (2, scan[1])):
        short = -series.shape[axis] % n
        pad = (0, 0, 0, short) if axis == 1 else (0, short)
        series = torch.nn.functional.pad(series, pad).unflatten(axis, (-1, n)).sum(dim=axis)
    return series


def _blocks(places: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(places), size):
        yield places[first : first + size]
