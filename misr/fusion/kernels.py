"""Torch kernels of the linear fusion: spectra of the views, normal equations, prior, solve.

Everything is written for the half plane of scan frequencies that a real image has (``rfft2``). A scan frequency
``(m_y, m_x)`` holds the object frequencies ``m + N j`` of the fine grid, ``j = 0 … U-1`` on each axis: its aliases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from misr.fusion.geometry import ScanGrid, ViewGeometry
from misr.optics import aperture_fraction, overlap_function, pixel_width

__all__ = [
    "Frequencies",
    "NormalEquations",
    "frequencies",
    "image_from_spectrum",
    "normal_equations",
    "shifted_sum",
    "spectra",
]

_ENTRIES_AT_ONCE = 1 << 18  # overlap values in flight: the dozen intermediate arrays then stay near the cache


@dataclass(frozen=True)
class Frequencies:
    """Object frequencies within the band limit that each scan frequency holds, flattened over the half plane.

    Scan frequencies with fewer such aliases than the fullest are filled up with frequencies beyond the limit.
    """

    y: torch.Tensor  # (scan frequency, alias), 1/Å
    x: torch.Tensor
    magnitude: torch.Tensor
    alias: torch.Tensor  # place of each among the U² of the fine grid
    weight: torch.Tensor  # (scan frequency,): 2 where the conjugate half plane repeats it, else 1


@dataclass(frozen=True)
class NormalEquations:
    """``(Γᴴ N Γ) φ = Γᴴ N G`` per scan frequency, N the expected counts of each view."""

    matrix: torch.Tensor  # (scan frequency, alias, alias)
    vector: torch.Tensor  # (scan frequency, alias)


def resolve_device(device: str) -> torch.device:
    """The device by name; "auto" takes a GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not known to torch: use 'auto', 'cpu' or 'cuda'") from error


def frequencies(grid: ScanGrid, *, cutoff: float, device: torch.device) -> Frequencies:
    """Frequencies of the half plane's aliases below ``2 cutoff``."""
    (n_y, n_x), up = grid.padded, grid.upsample
    half = n_x // 2 + 1
    fine_y = np.fft.fftfreq(n_y * up, grid.step[0] / up).reshape(up, n_y)
    fine_x = np.fft.fftfreq(n_x * up, grid.step[1] / up).reshape(up, n_x)[:, :half]
    q_y, q_x = np.broadcast_arrays(fine_y.T[:, None, :, None], fine_x.T[None, :, None, :])
    q_y, q_x = (np.ascontiguousarray(q).reshape(n_y * half, up * up) for q in (q_y, q_x))
    magnitude = np.hypot(q_y, q_x)
    beyond = magnitude >= 2 * cutoff
    alias = np.argsort(beyond, axis=1, kind="stable")[:, : int((~beyond).sum(axis=1).max())]
    weight = np.full((n_y, half), 2.0)
    weight[:, 0] = 1.0
    if n_x % 2 == 0:
        weight[:, -1] = 1.0
    y, x, radius = (
        torch.as_tensor(np.take_along_axis(q, alias, axis=1), dtype=torch.float32, device=device)
        for q in (q_y, q_x, magnitude)
    )
    index = torch.as_tensor(alias, device=device)
    return Frequencies(y, x, radius, index, torch.as_tensor(weight.ravel(), device=device))


def spectra(
    counts: np.ndarray, *, lost: np.ndarray, grid: ScanGrid, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fourier coefficients of each view's contrast (counts/mean - 1), and the mean counts.

    Lost scan positions and views without electrons have contrast 0; the latter's mean is 0 too, so they weigh nothing.
    Margins are filled by reflection that fades out, so that no step at the border rings into the field.
    """
    kept = ~lost
    mean = torch.as_tensor(counts[:, kept].mean(axis=1, dtype=np.float64), device=device)
    held = torch.as_tensor(kept, dtype=torch.float32, device=device)
    result = torch.empty((len(counts), grid.padded[0], grid.padded[1] // 2 + 1), dtype=torch.complex64, device=device)
    batch = max(1, _ENTRIES_AT_ONCE // (grid.padded[0] * grid.padded[1]))
    fade = torch.as_tensor(grid.taper(), dtype=torch.float32, device=device)
    for first in range(0, len(counts), batch):
        block = torch.as_tensor(counts[first : first + batch].astype(np.float32), device=device)
        level = mean[first : first + batch, None, None].float()
        contrast = torch.where(level > 0, block / level.clamp(min=1e-30) - 1, torch.zeros_like(block)) * held
        if grid.padded != grid.shape:
            contrast = _reflect(contrast, grid) * fade
        result[first : first + batch] = torch.fft.rfft2(contrast, norm="forward")
    return result, mean


def _reflect(contrast: torch.Tensor, grid: ScanGrid) -> torch.Tensor:
    index = []
    for axis in range(2):
        position = np.arange(grid.padded[axis]) - grid.pad[axis]
        period = 2 * grid.shape[axis]
        folded = np.mod(position, period)
        index.append(torch.as_tensor(np.minimum(folded, period - 1 - folded), device=contrast.device))
    return contrast[:, index[0]][:, :, index[1]]


def group_overlap(
    q_y: torch.Tensor, q_x: torch.Tensor, *, geometry: ViewGeometry, pixels: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Γ per expected electron of each view, averaged over the view's pixels: shape (frequency, view)."""
    re, im = overlap_function(
        pixels["y"][None, :],
        pixels["x"][None, :],
        q_y[:, None],
        q_x[:, None],
        aberrations=geometry.aberrations,
        wavelength=geometry.wavelength,
        cutoff=geometry.cutoff,
        pixel_edges=geometry.pixel_edges,
    )
    gamma = torch.complex(re, im)
    if geometry.n_views != geometry.pixel_view.size:
        summed = torch.zeros((gamma.shape[0], geometry.n_views), dtype=gamma.dtype, device=gamma.device)
        gamma = summed.index_add_(1, pixels["view"], gamma)
    return gamma / pixels["fraction"]


def pixel_tensors(geometry: ViewGeometry, *, device: torch.device) -> dict[str, torch.Tensor]:
    """Pixel positions, their view, and the share of electrons each view receives."""
    width = pixel_width(geometry.pixel_y, geometry.pixel_x, pixel_edges=geometry.pixel_edges)
    inside = aperture_fraction(geometry.pixel_y, geometry.pixel_x, cutoff=geometry.cutoff, width=width)
    fraction = np.bincount(geometry.pixel_view, weights=inside, minlength=geometry.n_views)
    numbers = {"y": geometry.pixel_y, "x": geometry.pixel_x, "fraction": fraction}
    tensors = {name: torch.as_tensor(values, dtype=torch.float32, device=device) for name, values in numbers.items()}
    return tensors | {"view": torch.as_tensor(geometry.pixel_view, device=device)}


def normal_equations(
    transformed: torch.Tensor, mean: torch.Tensor, *, geometry: ViewGeometry, freq: Frequencies
) -> NormalEquations:
    """Accumulate ``Γᴴ N Γ`` and ``Γᴴ N G`` over all views, scan frequencies in chunks."""
    device = transformed.device
    pixels = pixel_tensors(geometry, device=device)
    n_freq, n_alias = freq.magnitude.shape
    flat = transformed.reshape(len(transformed), -1)
    counts = mean.to(torch.float32)
    matrix = torch.zeros((n_freq, n_alias, n_alias), dtype=torch.complex64, device=device)
    vector = torch.zeros((n_freq, n_alias), dtype=torch.complex64, device=device)
    chunk = max(1, _ENTRIES_AT_ONCE // (n_alias * geometry.pixel_view.size))
    for first in range(0, n_freq, chunk):
        part = slice(first, first + chunk)
        inside = freq.magnitude[part] < 2 * geometry.cutoff
        gamma = torch.zeros((*inside.shape, geometry.n_views), dtype=torch.complex64, device=device)
        gamma[inside] = group_overlap(freq.y[part][inside], freq.x[part][inside], geometry=geometry, pixels=pixels)
        weighted = gamma.conj() * counts
        matrix[part] = weighted @ gamma.transpose(1, 2)
        vector[part] = (weighted @ flat[:, part].T[:, :, None])[..., 0]
    return NormalEquations(matrix, vector)


def shifted_sum(
    transformed: torch.Tensor, mean: torch.Tensor, *, shifts: np.ndarray, grid: ScanGrid, freq: Frequencies
) -> torch.Tensor:
    """Count-weighted mean of the views, each repeated over the aliases and shifted back: (scan frequency, alias)."""
    (n_y, n_x), up = grid.padded, grid.upsample
    half = n_x // 2 + 1
    device = transformed.device
    fine_y = torch.as_tensor(np.fft.fftfreq(n_y * up, grid.step[0] / up).reshape(up, n_y).T, device=device)
    fine_x = torch.as_tensor(np.fft.fftfreq(n_x * up, grid.step[1] / up).reshape(up, n_x)[:, :half].T, device=device)
    result = torch.zeros((n_y, half, up, up), dtype=torch.complex64, device=device)
    share = (mean / mean.sum()).to(torch.complex64)
    # view k shows the specimen at r + shift, so its spectrum carries exp(2πi q·shift): take that off
    batch = max(1, _ENTRIES_AT_ONCE // (n_y * half * up))
    for first in range(0, len(transformed), batch):
        part = slice(first, first + batch)
        shift = torch.as_tensor(shifts[part], device=device)
        ramp_y = torch.exp(-2j * np.pi * fine_y * shift[:, 0, None, None]).to(torch.complex64)
        ramp_x = torch.exp(-2j * np.pi * fine_x * shift[:, 1, None, None]).to(torch.complex64)
        block = transformed[part] * share[part, None, None]
        result += torch.einsum("vyx,vyj,vxi->yxji", block, ramp_y, ramp_x)
    return result.reshape(n_y * half, up * up).gather(1, freq.alias)


def image_from_spectrum(solution: torch.Tensor, *, grid: ScanGrid, freq: Frequencies) -> np.ndarray:
    """Real image of the scanned field from the half plane's alias coefficients."""
    (n_y, n_x), up = grid.padded, grid.upsample
    half = n_x // 2 + 1
    placed = torch.zeros((n_y * half, up * up), dtype=solution.dtype, device=solution.device)
    placed.scatter_(1, freq.alias, solution)
    blocks = placed.reshape(n_y, half, up, up).permute(2, 0, 3, 1)  # alias_y, m_y, alias_x, m_x
    full = torch.zeros((up, n_y, up, n_x), dtype=solution.dtype, device=solution.device)
    full[..., :half] = blocks
    full = full.reshape(grid.fine)
    rows = torch.remainder(-torch.arange(grid.fine[0], device=full.device), grid.fine[0])
    columns = torch.remainder(-torch.arange(grid.fine[1], device=full.device), grid.fine[1])
    mirrored = full[rows][:, columns].conj()
    known = torch.zeros(n_x, dtype=torch.bool, device=full.device)
    known[:half] = True
    image = torch.fft.ifft2(torch.where(known.repeat(up)[None, :], full, mirrored), norm="forward").real
    first_y, first_x = grid.pad[0] * up, grid.pad[1] * up
    field = image[first_y : first_y + grid.shape[0] * up, first_x : first_x + grid.shape[1] * up]
    return field.cpu().numpy().astype(np.float32)
