"""Torch kernels of the linear fusion: spectra of the views, normal equations, prior, solve.

Everything is written for the half plane of scan frequencies that a real image has (``rfft2``). A scan frequency
``(m_y, m_x)`` holds the object frequencies ``m + N j`` of the fine grid, ``j = 0 … U-1`` on each axis: its aliases.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from misr.fusion.geometry import ScanGrid

__all__ = [
    "ENTRIES_AT_ONCE",
    "Frequencies",
    "frequencies",
    "from_plane",
    "full_plane",
    "image_from_spectrum",
    "lattice",
    "resized",
    "resolve_device",
    "shifted_sum",
    "spectra",
]

ENTRIES_AT_ONCE = 1 << 18  # overlap values in flight: the dozen intermediate arrays then stay near the cache


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

    def at(self, chosen: torch.Tensor | slice) -> Frequencies:
        """Some of the scan frequencies."""
        return Frequencies(*(getattr(self, field.name)[chosen] for field in fields(self)))


def resolve_device(device: str) -> torch.device:
    """The device by name; "auto" takes a GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not known to torch: use 'auto', 'cpu' or 'cuda'") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch finds no CUDA device here: use 'auto' or 'cpu'")
    return found


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


def lattice(grid: ScanGrid, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All U² object frequencies that some scan frequencies hold, 1/Å, y and x: (scan frequency, alias)."""
    (n_y, n_x), up = grid.padded, grid.upsample
    fine_y = np.fft.fftfreq(n_y * up, grid.step[0] / up).reshape(up, n_y).T.astype(np.float32)
    fine_x = np.fft.fftfreq(n_x * up, grid.step[1] / up).reshape(up, n_x).T.astype(np.float32)
    q_y = torch.as_tensor(fine_y, device=at.device)[at // grid.half]
    q_x = torch.as_tensor(fine_x, device=at.device)[at % grid.half]
    return q_y.repeat_interleave(up, dim=1), q_x.repeat(1, up)


def spectra(
    counts: np.ndarray, *, lost: np.ndarray, grid: ScanGrid, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fourier coefficients of each view's counts less their mean: (view, scan frequency); and the mean counts.

    Lost scan positions hold the mean, and so do the margins: they keep the views' shifts from wrapping round. (Mirrored
    margins would be seen with mirrored shifts, which no object explains.)
    """
    held = torch.as_tensor(~lost, dtype=torch.float32, device=device)
    mean = torch.empty(len(counts), dtype=torch.float64, device=device)
    result = torch.empty((len(counts), grid.padded[0] * grid.half), dtype=torch.complex64, device=device)
    whole = not lost.any()
    size = max(1, ENTRIES_AT_ONCE // (grid.padded[0] * grid.padded[1]))
    room = torch.zeros((size, *grid.padded), device=device)
    inner = room[:, grid.pad[0] : grid.pad[0] + grid.shape[0], grid.pad[1] : grid.pad[1] + grid.shape[1]]
    for first in range(0, len(counts), size):
        part = slice(first, min(first + size, len(counts)))
        number = part.stop - first
        block = inner[:number]
        block.copy_(torch.as_tensor(np.ascontiguousarray(counts[part]).astype(np.float32, copy=False)))
        if not whole:
            block.mul_(held)
        mean[part] = block.sum(dim=(1, 2), dtype=torch.float64) / float(held.sum())
        usual = mean[part, None, None].float()
        block.sub_(usual if whole else usual * held)
        torch.fft.rfft2(room[:number], norm="forward", out=result[part].view(number, grid.padded[0], grid.half))
    return result, mean


def shifted_sum(
    transformed: torch.Tensor, total: float, *, shifts: np.ndarray, grid: ScanGrid, freq: Frequencies
) -> torch.Tensor:
    """Sum of the views' contrast, each repeated over the aliases and shifted back: (scan frequency, alias).

    Parameters
    ----------
    transformed : torch.Tensor
        From `spectra`.
    total : float
        Electrons per position of all views together.
    shifts : numpy.ndarray
        Å, (view, 2).
    grid : ScanGrid
        Padded scan.
    freq : Frequencies
        Its object frequencies.

    Returns
    -------
    torch.Tensor
        Complex, dimensionless.
    """
    (n_y, n_x), up = grid.padded, grid.upsample
    half = grid.half
    device = transformed.device
    fine_y = torch.as_tensor(np.fft.fftfreq(n_y * up, grid.step[0] / up).reshape(up, n_y).T, device=device)
    fine_x = torch.as_tensor(np.fft.fftfreq(n_x * up, grid.step[1] / up).reshape(up, n_x)[:, :half].T, device=device)
    result = torch.zeros((n_y, half, up, up), dtype=torch.complex64, device=device)
    # view k shows the specimen at r + shift, so its spectrum carries exp(2πi q·shift): take that off
    batch = max(1, ENTRIES_AT_ONCE // (n_y * half * up))
    for first in range(0, len(transformed), batch):
        part = slice(first, first + batch)
        shift = torch.as_tensor(shifts[part], device=device)
        ramp_y = torch.exp(-2j * np.pi * fine_y * shift[:, 0, None, None]).to(torch.complex64)
        ramp_x = torch.exp(-2j * np.pi * fine_x * shift[:, 1, None, None]).to(torch.complex64)
        block = transformed[part].reshape(-1, n_y, half) / total
        result += torch.einsum("vyx,vyj,vxi->yxji", block, ramp_y, ramp_x)
    return result.reshape(n_y * half, up * up).gather(1, freq.alias)


def full_plane(values: torch.Tensor, *, grid: ScanGrid, freq: Frequencies, conjugate: bool = True) -> torch.Tensor:
    """Values of the half plane's aliases on the whole plane of the fine grid, in the order of ``fftfreq``.

    With ``conjugate`` those of a real image's spectrum, without it those of an even function such as a variance.
    """
    (n_y, n_x), up = grid.padded, grid.upsample
    half = grid.half
    placed = torch.zeros((n_y * half, up * up), dtype=values.dtype, device=values.device)
    placed.scatter_(1, freq.alias, values)
    blocks = placed.reshape(n_y, half, up, up).permute(2, 0, 3, 1)  # alias_y, m_y, alias_x, m_x
    full = torch.zeros((up, n_y, up, n_x), dtype=values.dtype, device=values.device)
    full[..., :half] = blocks
    full = full.reshape(grid.fine)
    rows = torch.remainder(-torch.arange(grid.fine[0], device=full.device), grid.fine[0])
    columns = torch.remainder(-torch.arange(grid.fine[1], device=full.device), grid.fine[1])
    mirrored = full[rows][:, columns]
    known = torch.zeros(n_x, dtype=torch.bool, device=full.device)
    known[:half] = True
    return torch.where(known.repeat(up)[None, :], full, mirrored.conj() if conjugate else mirrored)


def from_plane(plane: torch.Tensor, *, grid: ScanGrid, freq: Frequencies) -> torch.Tensor:
    """The inverse of `full_plane`: (scan frequency, alias)."""
    (n_y, n_x), up = grid.padded, grid.upsample
    blocks = plane.reshape(up, n_y, up, n_x)[..., : grid.half].permute(1, 3, 0, 2)
    return blocks.reshape(n_y * grid.half, up * up).gather(1, freq.alias)


def image_from_spectrum(solution: torch.Tensor, *, grid: ScanGrid, freq: Frequencies, upsample: int) -> np.ndarray:
    """Real image of the scanned field, at any whole upsampling, from the half plane's alias coefficients."""
    plane = full_plane(solution, grid=grid, freq=freq)
    n_y, n_x = (n * upsample for n in grid.padded)
    image = torch.fft.ifft2(resized(resized(plane, n_y, 0), n_x, 1), norm="forward").real
    first_y, first_x = (pad * upsample for pad in grid.pad)
    field = image[first_y : first_y + grid.shape[0] * upsample, first_x : first_x + grid.shape[1] * upsample]
    return field.cpu().numpy().astype(np.float32)


def resized(plane: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """A spectrum cut off, or filled up with zeros, to another number of frequencies along an axis."""
    have = plane.shape[axis]
    if size == have:
        return plane
    low = (min(size, have) - 1) // 2  # highest frequency with both signs
    first, last = plane.narrow(axis, 0, low + 1), plane.narrow(axis, have - low, low)
    shape = list(plane.shape)
    shape[axis] = size - 2 * low - 1
    gap = torch.zeros(shape, dtype=plane.dtype, device=plane.device)
    return torch.cat((first, gap, last), dim=axis)
