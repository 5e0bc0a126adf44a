"""How well `misr.fit_aberrations` finds defocus, astigmatism and rotation: ``make calibration``.

Seeded simulated cubes of the three classes: fields of about 128 Å, 300 kV, 10 mrad, defocus ±500 to ±5000 Å, steps of
1 to 4 Å, rotations over the full circle, astigmatism up to 100 Å, one detector in five transposed. The seeds, [777, i],
are held out: `fit_aberrations` was developed on cubes of other seeds. Cubes 0 to 23 were looked at before its last
changes, so the table starts at 24. The fit is told the energy, the semi-angle and
the dose, nothing else; it is not told that the simulated scan wraps round (``--period`` tells it).

Right at 100 e/Å² and above: C10 within 1 % or 15 Å, rotation within 1°, C12 exp(2i phi12) within 20 Å, and the
detector's hand. Right below: C10 within 2 % or 30 Å, rotation within 2°, and the hand. "Up to the twin" counts the
rotation + 180° with C10 and C12 negated as right, which only the sign of the phase tells apart.

py4DSTEM's parallax (``--py4dstem``), on the same counts, gets what it cannot find: the true rotation and the detector's
true hand. Only its C10 and C12 are judged.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from calibration_errors import Errors, errors_of, tolerance_at
from calibration_report import format_report

import misr

KINDS = ("amorphous", "semicrystalline", "crystalline")
_CRYSTALS = ("zeolite", "perovskite", "MoS2")
_SECRETS = ("C10_A", "C12_A", "phi12_rad", "rotation_deg", "history")
_DRAWS = {100.0: 1, 30.0: 1}  # of electrons per cube; five at other doses, where only rates say anything
_FAILURES = (ValueError, RuntimeError, IndexError, ZeroDivisionError, np.linalg.LinAlgError)
# 1/Å, wider than the crystal's reciprocal lattice spacing: between reflections narrower rings hold nothing
_RING_WIDTHS = {"zeolite": 0.09, "perovskite": 0.18, "MoS2": 0.38}


@dataclass(frozen=True)
class Plan:
    """What to run on each cube."""

    doses: tuple[float, ...]
    draws: int | None
    cache: Path | None
    keep_period: bool
    misr: bool
    py4dstem: bool
    fused: bool
    threads: int | None


def truth_of(index: int) -> tuple[dict[str, Any], float, np.random.Generator]:
    """Aberrations, rotation and hand of one cube, its step, Å, and the generator that goes on to place its atoms."""
    rng = np.random.default_rng([777, index])
    C10 = rng.choice([-1, 1]) * np.exp(rng.uniform(np.log(500), np.log(5000)))
    truth = {"C10": float(C10), "C12": float(rng.uniform(0, 100)), "phi12": float(rng.uniform(0, np.pi))}
    truth["rotation_deg"] = float(rng.uniform(0, 360))
    step = float(rng.uniform(1, 4))
    # a stream of its own, so that the hand changes nothing else
    truth["transposed"] = int(np.random.default_rng([778, index]).uniform() < 0.2)
    return truth, step, rng


def ring_width(index: int) -> float | None:
    """Of the FRC of one cube's images, 1/Å; None (one frequency pixel) without a crystal."""
    # the first thing drawn after the optics is the crystal
    return None if index % 3 == 0 else _RING_WIDTHS[str(truth_of(index)[2].choice(_CRYSTALS))]


def as_recorded(cube: xr.DataArray, truth: dict[str, Any]) -> xr.DataArray:
    """The cube from a camera that swaps its axes, if this cube's does, and without the mark that would tell."""
    if not truth["transposed"]:
        return cube
    swapped = misr.transpose_detector(cube)
    swapped.attrs = dict(cube.attrs)
    return swapped


def atoms_of(kind: str, rng: np.random.Generator) -> Any:
    """A specimen of one class."""
    if kind == "amorphous":
        composition = str(rng.choice(["protein", "carbon", "silica"]))
        return misr.amorphous_atoms(field_A=128, thickness_A=30, composition=composition, rng=rng)
    crystal = str(rng.choice(_CRYSTALS))
    if kind == "semicrystalline":
        return misr.semicrystalline_atoms(field_A=128, thickness_A=24, crystal=crystal, rng=rng)
    return misr.crystalline_atoms(crystal, field_A=128, vacancies=0.02, rng=rng)


def simulate(index: int) -> xr.Dataset:
    """Expected counts (not transposed) and phase of one cube."""
    truth, step, rng = truth_of(index)
    return misr.simulate_cube(
        atoms_of(KINDS[index % 3], rng),
        aberrations={name: truth[name] for name in ("C10", "C12", "phi12")},
        rotation_deg=truth["rotation_deg"],
        scan_step_A=step,
        det_max_mrad=12,
        det_pixels=38,
        slice_thickness_A=15,
        progress=False,
    )


def load(index: int, cache: Path | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Expected counts and phase, from the cache if they are there, and written to it if not."""
    if cache is None:
        made = simulate(index)
        return made["counts"], made["phase"]
    paths = [cache / f"eval{index:02d}{part}.nc" for part in ("", "_phase")]
    if not all(path.exists() for path in paths):
        cache.mkdir(parents=True, exist_ok=True)
        made = simulate(index)
        for path, name in zip(paths, ("counts", "phase"), strict=True):
            partial_path = path.with_suffix(f".{os.getpid()}.part")
            made[name].to_netcdf(partial_path)
            os.replace(partial_path, path)
    counts, phase = (xr.load_dataarray(path) for path in paths)
    if not math.isclose(counts.attrs["C10_A"], truth_of(index)[0]["C10"], rel_tol=1e-9):
        raise SystemExit(f"{paths[0]} holds another cube than seed [777, {index}] makes: give another --cache")
    return counts, phase


def run_cube(index: int, plan: Plan) -> list[dict[str, Any]]:
    """Every dose and draw of one cube: a row for each and each method."""
    if plan.threads:
        import torch

        torch.set_num_threads(plan.threads)
    truth = truth_of(index)[0]
    expected, phase = load(index, plan.cache)
    if not plan.keep_period:
        expected.attrs.pop("period_A", None)
    rows = []
    for dose in plan.doses:
        for draw in range(plan.draws or _DRAWS.get(dose, 5)):
            # a seed may not end in 0: NumPy takes [a, b] and [a, b, 0] as one
            seed = np.random.default_rng([779, index, round(1000 * dose), draw + 1])
            counts = misr.apply_dose(expected, dose, rng=seed)
            blind = counts.copy()
            blind.attrs = {name: value for name, value in counts.attrs.items() if name not in _SECRETS}
            about = {"index": index, "class": KINDS[index % 3], "dose": dose, "draw": draw}
            about |= {f"true_{name}": value for name, value in truth.items()}
            if plan.misr:
                row, fit = run_misr(blind, truth, dose)
                if plan.fused and draw == 0 and dose >= 100 and fit is not None:
                    row |= fused(blind, phase, fit, truth, index)
                rows.append(about | row)
            if plan.py4dstem:
                rows.append(about | run_py4dstem(blind, truth, dose))
    return rows


def run_misr(cube: xr.DataArray, truth: dict[str, Any], dose: float) -> tuple[dict[str, Any], xr.Dataset | None]:
    """`fit_aberrations` of one cube, transposed if its truth is."""
    given = as_recorded(cube, truth)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the aberrations found are not certain", category=UserWarning)
            fit = misr.fit_aberrations(given)
    except _FAILURES as error:
        return failed("misr", error), None
    seconds = time.perf_counter() - start
    found = {str(name): float(value) for name, value in fit.data_vars.items()}
    row = {"method": "misr", "confident": bool(fit.attrs["confident"]), "seconds": seconds}
    row |= {f"found_{name}": value for name, value in found.items()}
    row |= {name: fit.attrs.get(name, "") for name in ("probability", "sign_probability", "reason")}
    return row | judged(errors_of(found, truth), errors_of(found, truth, twin=True), dose), fit


def run_py4dstem(cube: xr.DataArray, truth: dict[str, Any], dose: float) -> dict[str, Any]:
    """py4DSTEM's parallax with the true rotation and hand; the time is that of the whole reconstruction."""
    start = time.perf_counter()
    try:
        image = misr.reconstruct_parallax(
            cube, fit=True, aberrations={}, rotation_deg=truth["rotation_deg"], upsample=1, progress=False
        )
    except _FAILURES as error:
        return failed("parallax", error)
    seconds = time.perf_counter() - start
    names = {"C10": "C10_A", "C12": "C12_A", "phi12": "phi12_rad"}
    found = truth | {name: float(image.attrs[stored]) for name, stored in names.items()}
    row = {"method": "parallax", "seconds": seconds} | {f"found_{name}": found[name] for name in names}
    # with the rotation given there is no twin
    return row | judged(errors_of(found, truth), errors_of(found, truth), dose)


def failed(method: str, error: Exception) -> dict[str, Any]:
    """A row for what raised; a scan that py4DSTEM does not take (steps not square) is left out of its shares."""
    wrong = {"right": False, "right_C12_size": False, "right_twin": False, "confident": False}
    reason = f"{type(error).__name__}: {error}"
    return {"method": method, "reason": reason, "skipped": "takes pixels as square" in reason, **wrong}


def judged(errors: Errors, turned: Errors, dose: float) -> dict[str, Any]:
    """Right or not, and the errors, those up to the twin taken from the nearer of the two."""
    tolerance = tolerance_at(dose)
    near = min(errors, turned, key=lambda one: abs(one.C10))
    return {
        "right": errors.right(tolerance),
        "right_C12_size": errors.right(tolerance, C12="C12_size"),
        "right_twin": errors.right(tolerance) or turned.right(tolerance),
        "error_C10": near.C10,
        "error_C12_vector": near.C12_vector,
        "error_C12": near.C12_size,
        "error_phi12": near.phi12,
        "error_rotation_deg": near.rotation_deg,
    }


def fused(
    cube: xr.DataArray, phase: xr.DataArray, fit: xr.Dataset, truth: dict[str, Any], index: int
) -> dict[str, Any]:
    """Resolution (FRC with the truth, 0.5) of `fuse_linear` with the fitted and with the true values, Å."""
    given = as_recorded(cube, truth)
    true = {name: value for name, value in truth.items() if name != "transposed"}
    row: dict[str, Any] = {}
    for name, calibrated in (
        ("fitted", misr.calibrate_cube(given, fit)),
        ("true", misr.with_aberrations(cube, true)),
    ):
        image = misr.fuse_linear(misr.synthesize_views(calibrated))["phase"]
        frc = misr.fourier_ring_correlation(image, misr.phase_on_grid(phase, like=image), ring_width=ring_width(index))
        resolution = misr.frc_resolution(frc, 0.5)
        row |= {f"resolution_{name}": float(resolution), f"resolution_{name}_status": resolution.attrs["status"]}
    return row


def run_all(indices: list[int], plan: Plan, workers: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of each cube as they are done."""
    if workers == 1:
        yield from map(partial(run_cube, plan=plan), indices)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done in as_completed([pool.submit(run_cube, index, plan) for index in indices]):
            yield done.result()


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """One line per fit."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    partial_path = path.with_name(f"{path.name}.part")
    with partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial_path, path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cubes", type=int, default=24, help="how many cubes, a third of each class")
    parser.add_argument("--first", type=int, default=24, help="number of the first of them")
    parser.add_argument("--only", type=int, nargs="+", metavar="I", help="these cubes instead")
    parser.add_argument("--doses", type=float, nargs="+", default=[100.0, 30.0, 10.0], help="e/Å²")
    parser.add_argument("--draws", type=int, help="draws of electrons per cube; if not given 1 at 100 and 30, else 5")
    parser.add_argument("--cache", type=Path, help="folder of simulated cubes, read if there, else written")
    parser.add_argument("--workers", type=int, default=1, help="processes; with several the times say less")
    parser.add_argument("--py4dstem", action="store_true", help="py4DSTEM's parallax beside it")
    parser.add_argument("--no-misr", action="store_true", help="with --py4dstem, that alone")
    parser.add_argument("--fused", action="store_true", help="resolution of the fused image at 100 e/Å² and above")
    parser.add_argument(
        "--period", action=argparse.BooleanOptionalAction, default=False, help="tell the fit that the scan wraps round"
    )
    parser.add_argument("--csv", type=Path, help="write a line per fit to this file")
    return parser.parse_args(arguments)


def main() -> int:
    """Run, print the table, and say by the exit status nothing but that it ran."""
    from tqdm import tqdm

    options = parse()
    indices = options.only or list(range(options.first, options.first + options.cubes))
    threads = max(1, (os.cpu_count() or 1) // options.workers) if options.workers > 1 else None
    plan = Plan(
        doses=tuple(options.doses),
        draws=options.draws,
        cache=options.cache,
        keep_period=options.period,
        misr=not options.no_misr,
        py4dstem=options.py4dstem,
        fused=options.fused,
        threads=threads,
    )
    rows: list[dict[str, Any]] = []
    for made in tqdm(run_all(indices, plan, options.workers), total=len(indices), unit="cube", file=sys.stderr):
        rows += made
        rows.sort(key=lambda row: (-row["dose"], row["method"], row["index"], row["draw"]))
        if options.csv is not None:
            write_csv(rows, options.csv)
    print(format_report(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
