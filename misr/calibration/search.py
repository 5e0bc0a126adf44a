"""Global search over defocus, rotation and transposition: nothing need be known beforehand.

The disk's sum with the views shifted back, ``H(q, u) = Σ_k exp(-2πi k·u) n G``, depends on defocus and rotation only
through ``u = λ C q``, so one two-dimensional Fourier transform over the detector for each scan frequency tabulates it
for all of them (a shift-and-add for every shift at once). Two scores are looked up in that table, since matter may
have its power everywhere or in few places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from misr.calibration.refine import Alignment
from misr.calibration.spectra import MODEL_ERROR, Spectra
from misr.optics import axial_overlap

__all__ = [
    "EnergyTable",
    "Scan",
    "candidates",
    "energy_table",
    "same_peak",
    "scan_spectrum",
    "solve_spots",
    "with_spots",
]

_OVERSAMPLING = 2  # of the table: half of the peak's width
_SMALLEST_A = 60.0  # |C10| below which nothing is left of the contrast that this search sees
_DIFFUSE = (0.04, 12.0)  # relative step of |C10|, and in rad; shifts (Å) within which that is fine enough
_FEWEST_ROTATIONS = 24
_APART_A = 50.0  # two C10 exp(i rotation) closer than this, or a twenty-fifth of them, lie on one peak
_MOST_SPOTS = 40
_PAIRED = 8  # of them are taken in pairs
_KEPT = 500
_FALSE_SPOTS = 0.01  # expected among pure noise
_ATOM = 0.6  # 1/Å, as in the prior


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
    sizes = [1 << math.ceil(math.log2(_OVERSAMPLING * n)) for n in spectra.counts.shape]
    coarse = spectra.coarse.reshape(spectra.tiles, -1, *spectra.coarse.shape[1:])
    held = torch.as_tensor(_disk(spectra), device=coarse.device)
    noise = float((spectra.counts * _disk(spectra)).sum()) / spectra.positions
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


def _disk(spectra: Spectra) -> np.ndarray:
    return (np.hypot(spectra.k_y[:, None], spectra.k_x[None, :]) <= spectra.cutoff).astype(np.float32)


def _rings(
    grid: tuple[float, float], *, largest_A: float, wavelength: float, q_max: float
) -> list[tuple[float, np.ndarray]]:
    """Trial values of C10, and of the rotation at each.

    Relative steps are the same from the C10 on whose shifts at ``q_max`` reach the wanted ones; below it, where all
    shifts are smaller, absolute steps are.
    """
    relative, reach_A = grid
    knee = reach_A / (wavelength * q_max)
    below = np.arange(_SMALLEST_A, min(knee, largest_A), relative * knee)
    above = np.exp(np.arange(math.log(max(knee, _SMALLEST_A)), math.log(max(largest_A, _SMALLEST_A)) + 1e-9, relative))
    rings = []
    for C10 in np.concatenate([below, above]):
        number = max(_FEWEST_ROTATIONS, round(2 * math.pi / relative * min(1.0, C10 / knee)))
        rings.append((float(C10), np.arange(number) * 2 * math.pi / number))
    return rings


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
    q_y, q_x = _on(device, table.q_y, table.q_x)
    base = torch.as_tensor(table.row, device=device)
    flat, parts = (table.energy * _on(device, table.trust)[0][:, None]).reshape(-1), []
    optics = {"wavelength": spectra.wavelength, "q_max": float(q.max())}
    for C10, rotation in _rings(_DIFFUSE, largest_A=largest_A, **optics):
        number = max(int(np.searchsorted(q, _DIFFUSE[1] / (spectra.wavelength * C10))), min(50, len(q)))
        weight = _weight(spectra, q[:number], C10).to(device)
        cos, sin = (component[:, None] for component in _on(device, np.cos(rotation), np.sin(rotation)))
        a, b = q_y[:number] * (spectra.wavelength * C10), q_x[:number] * (spectra.wavelength * C10)
        u_y, u_x = cos * a + sin * b, cos * b - sin * a
        indices = [_index(table, base[:number], *((u_x, u_y) if t else (u_y, u_x))) for t in transpositions]
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
    return torch.as_tensor((contrast**2 * np.exp(-((q / _ATOM) ** 2))).astype(np.float32))


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
        allowed = (largest_A > C10) & (C10 > _SMALLEST_A) & (np.abs(astigmatism) < np.minimum(3 * astigmatism_A, C10))
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
        part = (away <= 0.4 * spectra.cutoff) * _disk(spectra)
        noise = max(float((spectra.counts * part).sum()) / spectra.positions, 1e-30)
        for tile in range(spectra.tiles):
            data = spectra.coarse[torch.as_tensor(rows + tile * n_rows, device=device)]
            transformed = torch.fft.fft2(data * _on(device, part)[0], s=table.shape)
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
    gather = torch.zeros((len(spot), len(envelope)), device=device)
    gather[torch.arange(len(spot)), base] = 1.0
    flat, score = envelope.reshape(-1), [np.empty(0)]
    for first in range(0, len(maps[0]), 1024):
        alpha, beta = (m[first : first + 1024, None] for m in maps)
        u = table.spectra.wavelength * (alpha * q + beta * q.conj())
        u_y, u_x = _on(device, *((u.real, u.imag) if transposed else (u.imag, u.real)))
        score.append(torch.sqrt(flat[_index(table, base, u_y, u_x)] @ gather).sum(1).cpu().numpy().astype(float))
    return np.concatenate(score)


def _strongest(table: EnergyTable) -> np.ndarray:
    """Rows whose largest energy over all shifts is more than noise gives by chance; one of each conjugate pair."""
    from scipy.special import gammainccinv

    rows, first = np.unique(table.row, return_index=True)
    largest = table.energy[torch.as_tensor(rows, device=table.energy.device)].amax(1).cpu().numpy()
    trials = len(rows) * table.energy.shape[1] / _OVERSAMPLING**2
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
    """Object frequencies (x + i y), up to three quarters of the band limit, that fold onto these rows, and the row of each."""
    spectra = table.spectra
    first = np.array([int(np.flatnonzero(table.row == row)[0]) for row in spots])
    limit = 1.5 * spectra.cutoff
    orders = [np.arange(-n, n + 1) for n in (math.ceil(2 * limit * step) for step in spectra.step)]
    j_y, j_x = np.meshgrid(*orders, indexing="ij")
    q_y = table.q_y[first][:, None] + j_y.ravel() / spectra.step[0]
    q_x = table.q_x[first][:, None] + j_x.ravel() / spectra.step[1]
    spot, alias = np.nonzero(np.hypot(q_y, q_x) < limit)
    return q_x[spot, alias] + 1j * q_y[spot, alias], spot


def _on(device: torch.device, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(np.asarray(array, dtype=np.float32), device=device) for array in arrays)


def _index(table: EnergyTable, row: torch.Tensor, u_y: torch.Tensor, u_x: torch.Tensor) -> torch.Tensor:
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
        trial = Alignment(
            float(scan.C10[best]), 0.0, 0.0, float(scan.rotation[best]), bool(scan.transposed[best])
        )  # fmt: skip
        if not any(same_peak(trial, other) for other in found):
            found.append(trial)
        if len(found) == number:
            break
    return found


def same_peak(a: Alignment, b: Alignment) -> bool:
    """Whether two alignments are so near that climbing from one may lead to the other."""
    if a.transposed != b.transposed:
        return False
    if max(abs(a.C10), abs(b.C10)) < 2 * _APART_A:  # in focus the rotation hardly matters
        return True
    place = [alignment.C10 * np.exp(1j * alignment.rotation) for alignment in (a, b)]
    reach = max(_APART_A, abs(a.C10) / 25)
    return abs(place[0] - place[1]) < reach and math.hypot(a.C12a - b.C12a, a.C12b - b.C12b) < 2 * reach
