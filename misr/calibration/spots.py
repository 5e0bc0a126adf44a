"""Alignments from a crystal's reflections, and the aliases at which its power lies."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from misr.calibration.refine import Alignment
from misr.calibration.search import OVERSAMPLING, SMALLEST_A, EnergyTable, disk_of, table_index, tensors
from misr.calibration.spectra import Spectra
from misr.optics import axial_overlap

__all__ = ["solve_spots", "with_spots"]

_MOST_SPOTS = 40
_PAIRED = 8  # of them are taken in pairs
_KEPT = 500
_FALSE_SPOTS = 0.01  # expected among pure noise


def solve_spots(
    table: EnergyTable, *, largest_A: float, astigmatism_A: float, transpositions: tuple[bool, ...]
) -> list[tuple[float, Alignment]]:
    """Alignments that explain two strong reflections exactly, scored by how many others they explain: for crystals.

    A reflection's energy peaks at ``u = λ C q``. Two of them, once it is known which aliases they are, determine the
    linear map from q to u; all aliases are tried.

    Parameters
    ----------
    table : EnergyTable
        From `energy_table`.
    largest_A : float
        |C10| to search up to, Å.
    astigmatism_A : float
        Expected size of the astigmatism; three times as much is accepted.
    transpositions : tuple of bool
        To look at.

    Returns
    -------
    list of (float, Alignment)
        Score (Å⁰, the sum of explained amplitudes over noise) and alignment; empty if no three frequencies stand out.
    """
    rows = _strongest(table)
    if len(rows) < 3:
        return []
    q, spot = _aliases(table, rows)
    envelope = _envelope(table, rows)
    peaks = _peaks(table, envelope[:_PAIRED])
    result: list[tuple[float, Alignment]] = []
    for transposed in transpositions:
        alpha, beta = _pair_maps(peaks, q, spot, transposed, table.spectra.wavelength)
        C10 = np.maximum(np.abs(alpha), 1e-9)
        turn = alpha / C10
        astigmatism = beta * turn.conj()
        allowed = (largest_A > C10) & (C10 > SMALLEST_A) & (np.abs(astigmatism) < np.minimum(3 * astigmatism_A, C10))
        alpha, beta, C10, turn, astigmatism = (x[allowed] for x in (alpha, beta, C10, turn, astigmatism))
        score = _explained(table, envelope, (q, spot), (alpha, beta), transposed)
        for i in np.argsort(-score)[:_KEPT]:
            result.append(
                (
                    float(score[i]),
                    Alignment(
                        float(C10[i]),
                        float(astigmatism[i].real),
                        float(astigmatism[i].imag),
                        float(np.angle(turn[i])),
                        transposed,
                    ),
                )
            )
    return sorted(result, key=lambda pair: -pair[0])


def _envelope(table: EnergyTable, rows: np.ndarray) -> torch.Tensor:
    """Energy of these rows by shift, added up over parts of the disk: (row, u), flattened over u.

    The two halves of an overlap carry phases ``± χ(q)``: over the whole disk they may cancel at the true shift.
    """
    spectra = table.spectra
    n_rows, device = len(table.energy), spectra.coarse.device
    total = torch.zeros((len(rows), table.energy.shape[1]), device=device)
    centres = [0j, *(0.6 * np.exp(1j * np.pi / 3 * np.arange(6)))]
    for centre in centres:
        away = np.hypot(
            spectra.k_y[:, None] - centre.imag * spectra.cutoff, spectra.k_x[None, :] - centre.real * spectra.cutoff
        )
        part = (away <= 0.4 * spectra.cutoff) * disk_of(spectra)
        noise = max(float((spectra.counts * part).sum()) / spectra.positions, 1e-30)
        for tile in range(spectra.tiles):
            data = spectra.coarse[torch.as_tensor(rows + tile * n_rows, device=device)]
            transformed = torch.fft.fft2(data * tensors(device, part)[0], s=table.shape)
            total += (transformed.real**2 + transformed.imag**2).flatten(1) / noise
    return total


def _peaks(table: EnergyTable, envelope: torch.Tensor) -> list[np.ndarray]:
    """Shifts u (Å, x + i y) at which each row's energy is largest, with the periods it may have wrapped round."""
    n_y, n_x = table.shape
    found = []
    for row in envelope:
        i_y, i_x = divmod(int(torch.argmax(row)), n_x)
        period = n_y / table.unit[0], n_x / table.unit[1]
        y, x = i_y / table.unit[0] + period[0] * np.arange(-2, 2), i_x / table.unit[1] + period[1] * np.arange(-2, 2)
        grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
        within = (np.abs(grid_y) < 0.9 * period[0]) & (np.abs(grid_x) < 0.9 * period[1])  # beyond, a pixel averages out
        found.append(grid_x[within] + 1j * grid_y[within])
    return found


def _pair_maps(
    peaks: list[np.ndarray], q: np.ndarray, spot: np.ndarray, transposed: bool, wavelength: float
) -> tuple[np.ndarray, np.ndarray]:
    """All maps ``u = λ (α q + β q*)`` (Å) that take aliases of two spots to their peaks."""
    alphas, betas = [np.empty(0, complex)], [np.empty(0, complex)]
    for a in range(len(peaks)):
        for b in range(a + 1, len(peaks)):
            u_a, u_b = (1j * p.conj() if transposed else p for p in (peaks[a], peaks[b]))  # swaps x and y
            grid = np.meshgrid(u_a / wavelength, q[spot == a], u_b / wavelength, q[spot == b], indexing="ij")
            v, s, w, t = (part.ravel() for part in grid)
            determinant = s * t.conj() - s.conj() * t
            solvable = np.abs(determinant) > 0.1 * np.abs(s) * np.abs(t)
            v, s, w, t, determinant = (x[solvable] for x in (v, s, w, t, determinant))
            alphas.append((v * t.conj() - w * s.conj()) / determinant)
            betas.append((s * w - t * v) / determinant)
    return np.concatenate(alphas), np.concatenate(betas)


def _explained(
    table: EnergyTable,
    envelope: torch.Tensor,
    aliases: tuple[np.ndarray, np.ndarray],
    maps: tuple[np.ndarray, np.ndarray],
    transposed: bool,
) -> np.ndarray:
    """Sum over spots of the amplitude at the shift each map predicts: amplitudes, lest the strongest spot decide."""
    (q, spot), device = aliases, envelope.device
    base = torch.as_tensor(spot, device=device)
    passed = tensors(device, axial_overlap(np.abs(q), cutoff=table.spectra.cutoff))[0]
    flat, score = envelope.reshape(-1), [np.empty(0)]
    for first in range(0, len(maps[0]), 1024):
        alpha, beta = (m[first : first + 1024, None] for m in maps)
        u = table.spectra.wavelength * (alpha * q + beta * q.conj())
        u_y, u_x = tensors(device, *((u.real, u.imag) if transposed else (u.imag, u.real)))
        amplitude = torch.sqrt(flat[table_index(table, base, u_y, u_x)]) * passed
        best = torch.zeros((len(alpha), len(envelope)), device=device)  # each spot is one of its aliases, not all
        best.scatter_reduce_(1, base.expand(len(alpha), -1), amplitude, "amax")
        score.append(best.sum(1).cpu().numpy().astype(float))
    return np.concatenate(score)


def _strongest(table: EnergyTable) -> np.ndarray:
    """Rows whose largest energy over all shifts is more than noise gives by chance; one of each conjugate pair."""
    from scipy.special import gammainccinv

    rows, first = np.unique(table.row, return_index=True)
    largest = table.energy[torch.as_tensor(rows, device=table.energy.device)].amax(1).cpu().numpy()
    trials = len(rows) * table.energy.shape[1] / OVERSAMPLING**2
    chance = float(gammainccinv(table.spectra.tiles, min(0.5, _FALSE_SPOTS / trials)))
    spectra, seen = table.spectra, set()
    kept: list[int] = []
    for i in np.argsort(-largest):
        if largest[i] <= chance or len(kept) == _MOST_SPOTS:
            break
        q = (table.q_y[first[i]], table.q_x[first[i]])
        order = [round(q[axis] * spectra.tile_A[axis]) for axis in range(2)]
        size = [round(spectra.tile_A[axis] / spectra.step[axis]) for axis in range(2)]
        if (-order[0] % size[0], -order[1] % size[1]) not in seen:
            seen.add((order[0] % size[0], order[1] % size[1]))
            kept.append(rows[i])
    return np.array(kept, dtype=int)


def with_spots(spectra: Spectra, table: EnergyTable) -> tuple[Spectra, Spectra | None]:
    """The spectra with the higher aliases of the strongest scan frequencies, where crystals scatter; and those alone.

    Parameters
    ----------
    spectra : Spectra
        What the table was made from.
    table : EnergyTable
        From `energy_table`.

    Returns
    -------
    tuple
        Everything, and all aliases of the strong frequencies (None if fewer than three stand out of the noise).
    """
    n_rows = len(table.energy)

    def chosen(q: np.ndarray, row: np.ndarray) -> Spectra:
        place = np.concatenate([row + tile * n_rows for tile in range(spectra.tiles)])
        return replace(
            spectra,
            weighted=spectra.coarse[torch.as_tensor(place, device=spectra.coarse.device)],
            trust=np.tile(table.trust[row], spectra.tiles),
            place=place,
            q_y=np.tile(q.imag, spectra.tiles),
            q_x=np.tile(q.real, spectra.tiles),
        )

    own = table.q_x + 1j * table.q_y
    rows = _strongest(table)
    if len(rows) == 0:
        return chosen(own, table.row), None
    q, spot = _aliases(table, rows)
    beyond = np.abs(q) > spectra.q.max()
    everything = chosen(np.concatenate([own, q[beyond]]), np.concatenate([table.row, rows[spot[beyond]]]))
    return everything, chosen(q, rows[spot]) if len(rows) >= 3 else None


def _aliases(table: EnergyTable, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Object frequencies (x + i y), to three quarters of the band limit, that fold onto these rows; the row of each."""
    spectra = table.spectra
    first = np.array([int(np.flatnonzero(table.row == row)[0]) for row in spots])
    limit = 1.5 * spectra.cutoff
    orders = [np.arange(-n, n + 1) for n in (math.ceil(2 * limit * step) for step in spectra.step)]
    j_y, j_x = np.meshgrid(*orders, indexing="ij")
    q_y = table.q_y[first][:, None] + j_y.ravel() / spectra.step[0]
    q_x = table.q_x[first][:, None] + j_x.ravel() / spectra.step[1]
    spot, alias = np.nonzero(np.hypot(q_y, q_x) < limit)
    return q_x[spot, alias] + 1j * q_y[spot, alias], spot
