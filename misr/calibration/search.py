"""Global search over defocus, rotation and transposition: nothing need be known beforehand.

The disk's sum with the views shifted back, ``H(q, u) = Σ_k exp(-2πi k·u) n G``, depends on defocus and rotation only
through ``u = λ C q``, so one two-dimensional Fourier transform over the detector for each scan frequency tabulates it
for all of them (a shift-and-add for every shift at once). Two scores are looked up in that table, since matter may
have its power everywhere or in few places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from misr.calibration.prior import ATOM
from misr.calibration.refine import Alignment
from misr.calibration.spectra import MODEL_ERROR, Spectra
from misr.optics import axial_overlap

__all__ = [
    "APART_A",
    "OVERSAMPLING",
    "SMALLEST_A",
    "EnergyTable",
    "Scan",
    "candidates",
    "energy_table",
    "ring_step",
    "same_peak",
    "scan_spectrum",
]

OVERSAMPLING = 2  # of the table: half of the peak's width
SMALLEST_A = 60.0  # |C10| below which nothing is left of the contrast that this search sees
_DIFFUSE = (0.04, 12.0)  # relative step of |C10|, and in rad; shifts (Å) within which that is fine enough
_FEWEST_ROTATIONS = 24
APART_A = 50.0  # two C10 exp(i rotation) closer than this, or a twenty-fifth of them, lie on one peak


@dataclass(frozen=True)
class EnergyTable:
    """``|H(q, u)|²`` over its noise, for each scan frequency (tiles added up), u modulo one over the pixel."""

    energy: torch.Tensor  # (scan frequency, u_y, u_x), flattened over u
    shape: tuple[int, int]
    q_y: np.ndarray  # object frequencies of one tile, and the row that holds each
    q_x: np.ndarray
    row: np.ndarray
    trust: np.ndarray  # (scan frequency,): see `Spectra`
    unit: tuple[float, float]  # entries of the table per Å of u
    spectra: Spectra


@dataclass(frozen=True)
class Scan:
    """Scores of trial alignments without astigmatism, C10 positive: one entry each, in standard deviations."""

    score: np.ndarray
    C10: np.ndarray
    rotation: np.ndarray  # rad
    transposed: np.ndarray


def energy_table(spectra: Spectra) -> EnergyTable:
    """Tabulate the shifted sums of `Spectra` for all shifts.

    Parameters
    ----------
    spectra : Spectra
        Of the bright field.

    Returns
    -------
    EnergyTable
        Exponentially distributed with mean 1 (per tile) where there is only noise.
    """
    sizes = [1 << math.ceil(math.log2(OVERSAMPLING * n)) for n in spectra.counts.shape]
    coarse = spectra.coarse.reshape(spectra.tiles, -1, *spectra.coarse.shape[1:])
    held = torch.as_tensor(disk_of(spectra), device=coarse.device)
    noise = float((spectra.counts * disk_of(spectra)).sum()) / spectra.positions
    energy = torch.zeros((coarse.shape[1], sizes[0] * sizes[1]), dtype=torch.float32, device=coarse.device)
    for tile in coarse:
        for first in range(0, len(tile), 256):  # the transforms stay in the cache
            block = torch.fft.fft2(tile[first : first + 256] * held, s=tuple(sizes))
            energy[first : first + 256] += (block.real**2 + block.imag**2).flatten(1) / noise
    number = len(spectra.q_y) // spectra.tiles
    place = spectra.place[:number]
    trust = np.ones(coarse.shape[1])
    for tile in range(spectra.tiles):  # the least of the tiles
        trust[place] = np.minimum(trust[place], spectra.trust[tile * number : (tile + 1) * number])
    # the energy in one direction stands out of less noise than the energy in all
    coherent = energy.amax(1).cpu().numpy() - spectra.tiles * math.log(energy.numel())
    trust = np.minimum(trust, 1 / (1 + MODEL_ERROR * np.maximum(coherent, 0)))
    return EnergyTable(
        energy=energy,
        shape=(sizes[0], sizes[1]),
        q_y=spectra.q_y[:number],
        q_x=spectra.q_x[:number],
        row=place,
        trust=trust,
        unit=(sizes[0] * spectra.pixel[0], sizes[1] * spectra.pixel[1]),
        spectra=spectra,
    )


def disk_of(spectra: Spectra) -> np.ndarray:
    return (np.hypot(spectra.k_y[:, None], spectra.k_x[None, :]) <= spectra.cutoff).astype(np.float32)


def _rings(
    grid: tuple[float, float], *, largest_A: float, wavelength: float, q_max: float
) -> list[tuple[float, np.ndarray]]:
    """Trial values of C10, and of the rotation at each.

    Relative steps are the same from the C10 on whose shifts at ``q_max`` reach the wanted ones; below it, where all
    shifts are smaller, absolute steps are.
    """
    relative, reach_A = grid
    largest_A = max(largest_A, SMALLEST_A * (1 + relative))
    knee = reach_A / (wavelength * q_max)
    below = np.arange(SMALLEST_A, min(knee, largest_A), relative * knee)
    above = np.exp(np.arange(math.log(max(knee, SMALLEST_A)), math.log(max(largest_A, SMALLEST_A)) + 1e-9, relative))
    rings = []
    for C10 in np.concatenate([below, above]):
        number = max(_FEWEST_ROTATIONS, round(2 * math.pi / relative * min(1.0, C10 / knee)))
        rings.append((float(C10), np.arange(number) * 2 * math.pi / number))
    return rings


def ring_step(spectra: Spectra) -> float:
    """Distance (Å) of neighbouring trials in the plane of C10 and rotation, and no less than a peak's width."""
    relative, reach_A = _DIFFUSE
    return max(APART_A, 0.75 * relative * reach_A / (spectra.wavelength * float(spectra.q.max())))


def scan_spectrum(table: EnergyTable, *, largest_A: float, transpositions: tuple[bool, ...]) -> Scan:
    """Score by the energy of all frequencies, weighted as amorphous matter of light atoms would have it.

    Parameters
    ----------
    table : EnergyTable
        From `energy_table`.
    largest_A : float
        |C10| to search up to, Å.
    transpositions : tuple of bool
        To look at.

    Returns
    -------
    Scan
        In robust standard deviations over the rotations at each C10.
    """
    spectra, device = table.spectra, table.energy.device
    q = np.hypot(table.q_y, table.q_x)
    q_y, q_x = tensors(device, table.q_y, table.q_x)
    base = torch.as_tensor(table.row, device=device)
    flat, parts = (table.energy * tensors(device, table.trust)[0][:, None]).reshape(-1), []
    optics = {"wavelength": spectra.wavelength, "q_max": float(q.max())}
    for C10, rotation in _rings(_DIFFUSE, largest_A=largest_A, **optics):
        number = max(int(np.searchsorted(q, _DIFFUSE[1] / (spectra.wavelength * C10))), min(50, len(q)))
        weight = _weight(spectra, q[:number], C10).to(device)
        cos, sin = (component[:, None] for component in tensors(device, np.cos(rotation), np.sin(rotation)))
        a, b = q_y[:number] * (spectra.wavelength * C10), q_x[:number] * (spectra.wavelength * C10)
        u_y, u_x = cos * a + sin * b, cos * b - sin * a
        indices = [table_index(table, base[:number], *((u_x, u_y) if t else (u_y, u_x))) for t in transpositions]
        score = np.stack([(flat[index] @ weight).cpu().numpy() for index in indices]).astype(float)
        middle = np.median(score)
        spread = 1.4826 * np.median(np.abs(score - middle))
        parts.append((C10, rotation, (score - middle) / max(float(spread), 1e-30)))
    return _gathered(parts, transpositions)


def _gathered(parts: list[tuple[float, np.ndarray, np.ndarray]], transpositions: tuple[bool, ...]) -> Scan:
    columns = [
        (score[j], np.full(len(rotation), C10), rotation, np.full(len(rotation), transposed))
        for C10, rotation, score in parts
        for j, transposed in enumerate(transpositions)
    ]
    return Scan(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _weight(spectra: Spectra, q: np.ndarray, C10: float) -> torch.Tensor:
    """Expected signal over noise at each frequency, up to a factor."""
    contrast = np.sin(math.pi * spectra.wavelength * C10 * q**2) * axial_overlap(q, cutoff=spectra.cutoff)
    contrast = contrast * np.sinc(spectra.wavelength * C10 * q * max(spectra.pixel))
    return torch.as_tensor((contrast**2 * np.exp(-((q / ATOM) ** 2))).astype(np.float32))


def tensors(device: torch.device, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(np.asarray(array, dtype=np.float32), device=device) for array in arrays)


def table_index(table: EnergyTable, row: torch.Tensor, u_y: torch.Tensor, u_x: torch.Tensor) -> torch.Tensor:
    n_y, n_x = table.shape
    i_y = torch.round(u_y * table.unit[0]).to(torch.int32) & (n_y - 1)
    i_x = torch.round(u_x * table.unit[1]).to(torch.int32) & (n_x - 1)
    return row * (n_y * n_x) + (i_y * n_x + i_x)


def candidates(scan: Scan, *, number: int) -> list[Alignment]:
    """The best separate peaks of a scan.

    Parameters
    ----------
    scan : Scan
        From `scan_spectrum`.
    number : int
        At most how many.

    Returns
    -------
    list of Alignment
        Best first.
    """
    found: list[Alignment] = []
    for best in np.argsort(-scan.score):
        trial = Alignment(float(scan.C10[best]), 0.0, 0.0, float(scan.rotation[best]), bool(scan.transposed[best]))
        if not any(same_peak(trial, other) for other in found):
            found.append(trial)
        if len(found) == number:
            break
    return found


def same_peak(a: Alignment, b: Alignment) -> bool:
    """Whether two alignments are so near that climbing from one may lead to the other."""
    if a.transposed != b.transposed:
        return False
    if max(abs(a.C10), abs(b.C10)) < 2 * APART_A:  # in focus the rotation hardly matters
        return True
    place = [alignment.C10 * np.exp(1j * alignment.rotation) for alignment in (a, b)]
    reach = max(APART_A, abs(a.C10) / 25)
    return abs(place[0] - place[1]) < reach and math.hypot(a.C12a - b.C12a, a.C12b - b.C12b) < 2 * reach
