"""Parts of `resolution_table` on simulated scans: half maps against the linear limit, and patterns of a thin object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import xarray as xr
from phase_object import atoms_phase
from resolution_text import aligned, percent

import misr
from misr.cube import image_from_array

__all__ = ["blank_scan", "expectations", "halves_part", "patterns_part"]

FIELD, RING_WIDTH, PIXEL = 64.0, 0.05, 0.4  # Å, 1/Å, Å
DOSES = (100.0, 1000.0, 3000.0)
# scan step (Å), detector pixel (mrad), C10 (Å)
SCANS = {"fine": (2.0, 0.5, -600.0), "coarse pixels": (1.0, 1.4, -600.0), "coarse steps": (4.0, 0.7, -150.0)}
_SPECIMENS = 2
_TELLING = 0.02  # FRC below which an expectation is nothing


def blank_scan(step: float, det_step: float, C10: float, *, field: float = FIELD, reach: float = 11.0) -> xr.DataArray:
    """A periodic scan of a field with a flat disk: the geometry of a simulated one."""
    n, half = round(field / step), math.ceil(reach / det_step)
    k = (np.arange(-half, half) + 0.5) * det_step
    disk = (np.hypot(k[:, None], k[None, :]) < 10.0).astype(np.float32)
    cube = misr.cube_from_array(
        np.broadcast_to(disk, (n, n, 2 * half, 2 * half)),
        scan_step_A=step,
        det_step_mrad=det_step,
        energy_eV=300e3,
        semiangle_mrad=10.0,
        aberrations={"C10": C10},
    )
    cube.attrs["period_A"] = [n * step] * 2
    return cube


def carbon(seed: int, *, field: float = FIELD) -> xr.DataArray:
    """Projected phase of 30 Å of amorphous carbon."""
    atoms = misr.amorphous_atoms(field_A=field, thickness_A=30.0, composition="carbon", rng=seed)
    return misr.projected_phase(atoms, pixel_A=PIXEL)


def expectations(phase: xr.DataArray, like: xr.DataArray, dose: float, scan: str) -> dict[str, np.ndarray]:
    """Half-map FRC, ring by ring, that `misr.expected_frc` and `misr.expected_frc_of_scan` promise."""
    step, det_step, C10 = SCANS[scan]
    power = misr.radial_power_spectrum(misr.phase_on_grid(phase, like=like), ring_width=RING_WIDTH, window=None)
    options: dict[str, Any] = {"semiangle_mrad": 10.0, "aberrations": {"C10": C10}, "det_step_mrad": det_step}
    options |= {"dose_e_per_A2": dose, "against": "half-map"}
    return {
        "limit": misr.expected_frc(power, **options).values,
        "scan": misr.expected_frc_of_scan(power, scan_step_A=step, **options).half_maps.values,
    }


def halves_part(seeds: int) -> Iterator[str]:
    """Half maps of the linear fusion against what its electrons allow."""
    yield (
        f"Half maps of misr.fuse_linear against the expected curve ({_SPECIMENS} specimens of carbon, 30 Å, on "
        f"{FIELD:g} Å; {seeds} draws of\nelectrons each; rings of {RING_WIDTH} 1/Å where the expectation exceeds "
        f"{_TELLING}). 'limit' is misr.expected_frc, 'scan' the half_maps of\nmisr.expected_frc_of_scan, both with the "
        "power of the specimen and the detector's pixels. 'held' is the share of rings, %, whose\n95 % interval holds "
        "it, 'pull' the mean deviation in standard errors of a ring ± its spread, 'difference' the mean of FRC less\n"
        "expectation, and 'worst' the largest |mean over draws| of a ring's difference"
    )
    heads = [
        "scan",
        "step Å",
        "pixel mrad",
        "C10 Å",
        "e/Å²",
        "against",
        "held",
        "pull",
        "spread",
        "difference",
        "worst",
    ]
    rows = []
    specimens = [carbon(seed) for seed in range(_SPECIMENS)]
    for scan, (step, det_step, C10) in SCANS.items():
        blank = blank_scan(step, det_step, C10)
        expected = [misr.cube_from_phase(phase, like=blank) for phase in specimens]
        for dose in DOSES:
            found = [_compared(specimens[i], expected[i], dose, scan, seeds, i) for i in range(_SPECIMENS)]
            for name in ("limit", "scan"):
                held, pull, difference = (np.concatenate([one[name][k] for one in found], axis=1) for k in range(3))
                cells = [scan, f"{step:g}", f"{det_step:g}", f"{C10:g}", f"{dose:g}", name, percent(held.mean())]
                cells += [f"{pull.mean():+.2f}", f"{pull.std():.2f}", f"{difference.mean():+.4f}"]
                rows.append([*cells, f"{np.abs(difference.mean(axis=0)).max():.3f}"])
    yield aligned(heads, rows)


def _compared(
    phase: xr.DataArray, expected: xr.DataArray, dose: float, scan: str, seeds: int, specimen: int
) -> dict[str, tuple[np.ndarray, ...]]:
    """By expectation: whether it is held, pulls and differences, each (draw, ring)."""
    curves = []
    for seed in range(seeds):
        # a seed may not end in 0: NumPy takes [a, b] and [a, b, 0] as one
        cube = misr.apply_dose(expected, dose, rng=[31, specimen, round(dose), seed + 1])
        made = misr.half_maps(cube, rng=[32, specimen, round(dose), seed + 1], ring_width=RING_WIDTH)
        curves.append(made["frc"])
    frc, low, high = (np.array([one[name] if name else one for one in curves]) for name in ("", "frc_low", "frc_high"))
    result = {}
    for name, curve in expectations(phase, made["first"], dose, scan).items():
        used = curve > _TELLING
        difference = (frc - curve)[:, used]
        away = np.arctanh(frc[:, used]) - np.arctanh(curve[used])
        pull = away * np.sqrt(2 * curves[0].n_independent.values[used] - 1.5)
        held = (low[:, used] <= curve[used]) & (curve[used] <= high[:, used])
        result[name] = (held.astype(float), pull, difference)
    return result


def patterns_part(seeds: int) -> Iterator[str]:
    """What `misr.cube_from_phase` loses with the tails of the probe that it cuts off."""
    yield (
        "misr.cube_from_phase, whose probe ends 6 λ/α beyond its geometric edge, against one that ends at 20 (root "
        f"mean square\ndifference in % of the contrast of that part of the disk, specimens of 0.05 rad: {seeds}, "
        "detector pixels of 0.5 mrad)"
    )
    rings = ((0.0, 5.0), (5.0, 9.0), (9.0, 10.5), (10.5, 14.0))
    rows = []
    for C10 in (0.0, -600.0, -3000.0):
        parts = []
        for seed in range(seeds):
            phase = atoms_phase((128, 128), 0.5, rng=seed)
            truth = image_from_array(phase, pixel_A=(0.5, 0.5), attrs={"period_A": [64.0, 64.0]})
            like = blank_scan(16.0, 0.5, C10, reach=14.0)
            made = misr.cube_from_phase(truth, like=like, center_mrad=(0.0, 0.0))
            with mock.patch("misr.phase_object._TAILS", 20.0):
                whole = misr.cube_from_phase(truth, like=like, center_mrad=(0.0, 0.0))
            vacuum = misr.cube_from_phase(0 * truth, like=like, center_mrad=(0.0, 0.0))
            away = np.hypot(like.det_y, like.det_x)
            parts.append([_difference(made, whole, vacuum, (away >= inner) & (away < outer)) for inner, outer in rings])
        rows.append([f"{C10:g}", *(percent(value) for value in np.mean(parts, axis=0))])
    yield aligned(["C10 Å", *(f"{inner:g}-{outer:g} mrad" for inner, outer in rings)], rows)


def _difference(made: xr.DataArray, whole: xr.DataArray, vacuum: xr.DataArray, part: xr.DataArray) -> float:
    difference, contrast = (((one - other).where(part) ** 2).mean() for one, other in ((made, whole), (whole, vacuum)))
    return float(np.sqrt(difference / contrast))
