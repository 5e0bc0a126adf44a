"""How near to the linear limit the fusion comes: FRC = 0.5 resolution against the truth, by dose.

Seeded amorphous slabs of 30 Å (protein, carbon and silica in turn; seeds [881, i], held out) on a field of 112 Å at
300 kV and 10 mrad, scanned in steps of 2 Å, whose own Nyquist limit is 4 Å. Everything gets the true aberrations and
reconstructs the same electrons: `misr.fuse_linear`, `misr.shift_and_add` and py4DSTEM's parallax. The truth is the
projected phase on the image's grid, and the limits are `misr.limits.expected_frc` of that very image's power, with the
same rings and taper (parallax does not know that the scan wraps round). Curves are averaged over draws of electrons,
and in the rows "all" over specimens, before the crossing is read.

"S/limit" says more than the crossing, which jumps from one dip of the transfer to the next: the sum over rings of
FRC²/(1 - FRC²) over that of the limit, for rings where the limit lies between 0.3 and 0.95.

"pixels" is the limit less what is lost over a detector pixel of this size as the shift changes across it. A periodic
simulation samples that pixel at b native ones, which lose (sin bu/(b sin u))² instead of sinc²(bu): none for
``--det-pixels 136`` (b = 1), a little less than "pixels" says for 76 (b = 2).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import misr
from misr.limits import expected_frc, radial_power_spectrum
from misr.resolution import resolution_words

COMPOSITIONS = ("protein", "carbon", "silica")
_FIELD, _THICKNESS, _STEP, _WIDEST = 112.0, 30.0, 2.0, 12.0  # Å, Å, Å, mrad
_TELLING = (0.3, 0.95)  # FRC of the limit in rings that are compared
_METHODS = {"fuse": "fuse_linear", "add": "shift_and_add", "parallax": "parallax"}
_LIMITS = {"limit": "linear limit", "pixels": "pixels", "tcbf": "tcBF limit", "ideal": "ideal"}


def simulate(index: int, C10: float, det_pixels: int) -> xr.Dataset:
    """Expected counts and phase of one slab."""
    atoms = misr.amorphous_atoms(
        field_A=_FIELD,
        thickness_A=_THICKNESS,
        composition=COMPOSITIONS[index % len(COMPOSITIONS)],
        rng=np.random.default_rng([881, index]),
    )
    return misr.simulate_cube(
        atoms,
        aberrations={"C10": C10},
        scan_step_A=_STEP,
        det_max_mrad=_WIDEST,
        det_pixels=det_pixels,
        slice_thickness_A=10,
        progress=False,
    )


def load(index: int, C10: float, det_pixels: int, cache: Path | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Expected counts and phase, from the cache if they are there, and written to it if not."""
    if cache is None:
        made = simulate(index, C10, det_pixels)
        return made["counts"], made["phase"]
    paths = [cache / f"slab{index:02d}_C10{C10:+.0f}_det{det_pixels}{part}.nc" for part in ("", "_phase")]
    if not all(path.exists() for path in paths):
        cache.mkdir(parents=True, exist_ok=True)
        made = simulate(index, C10, det_pixels)
        for path, name in zip(paths, ("counts", "phase"), strict=True):
            partial_path = path.with_suffix(f".{os.getpid()}.part")
            made[name].to_netcdf(partial_path)
            os.replace(partial_path, path)
    counts, phase = (xr.load_dataarray(path) for path in paths)
    return counts, phase


def curves(
    expected: xr.DataArray, phase: xr.DataArray, dose: float, seed: list[int], options: argparse.Namespace
) -> dict[str, xr.DataArray]:
    """FRC against the truth of each method for one draw of electrons, and the limits."""
    counts = misr.apply_dose(expected, dose, rng=np.random.default_rng(seed))
    views = misr.synthesize_views(counts)
    images = {"fuse": misr.fuse_linear(views)["phase"]}
    if not options.only_fuse:
        images["add"] = misr.shift_and_add(views)
        images["parallax"] = misr.reconstruct_parallax(counts, like=images["fuse"], progress=False)
    truth = misr.phase_on_grid(phase, like=images["fuse"])
    rings: dict[str, Any] = {"ring_width": options.ring_width, "window": "hann"}
    found = {name: misr.fourier_ring_correlation(image, truth, **rings) for name, image in images.items()}
    power = radial_power_spectrum(truth, **rings)
    step = float(expected.det_x[1] - expected.det_x[0])
    ways: dict[str, dict[str, Any]] = {
        "limit": {},
        "pixels": {"det_step_mrad": step},
        "tcbf": {"method": "tcbf"},
        "ideal": {"method": "ideal"},
    }
    return found | {name: expected_frc(power, dose_e_per_A2=dose, **way) for name, way in ways.items()}


def average(parts: list[dict[str, xr.DataArray]]) -> dict[str, xr.DataArray]:
    """Mean curve of each method; the rings of one field are the same for all."""
    result = {}
    for name in parts[0]:
        mean = parts[0][name].copy(data=np.mean([part[name].values for part in parts], axis=0))
        together = sum(part[name]["n_independent"].values for part in parts)
        result[name] = mean.assign_coords(n_independent=("frequency", together))
    return result


def share_of_limit(frc: xr.DataArray, limit: xr.DataArray) -> float:
    """Spectral signal-to-noise ratio over that of the limit, summed over the rings that tell."""
    used = (limit.values > _TELLING[0]) & (limit.values < _TELLING[1])
    # a curve that has lost its sign holds nothing; one too near 1 would outweigh the others
    got, allowed = (np.clip(curve.values[used], 0, 0.99) ** 2 for curve in (frc, limit))
    return float((got / (1 - got)).sum() / (allowed / (1 - allowed)).sum()) if used.any() else float("nan")


def row_of(what: str, C10: float, dose: float, curve: dict[str, xr.DataArray]) -> list[str]:
    """One line of the table."""
    cells = [what, f"{C10:.0f}", f"{dose:g}"]
    for name in (*_METHODS, *_LIMITS):
        cells.append(resolution_words(misr.frc_resolution(curve[name], 0.5)) if name in curve else "")
    fuse = float(misr.frc_resolution(curve["fuse"], 0.5))
    cells += [f"{fuse / float(misr.frc_resolution(curve[name], 0.5)):.3f}" for name in ("limit", "pixels")]
    return [*cells, *(f"{share_of_limit(curve['fuse'], curve[name]):.3f}" for name in ("limit", "pixels"))]


def table(rows: list[list[str]]) -> str:
    """Markdown."""
    heads = ["specimen", "C10 (Å)", "e/Å²", *_METHODS.values(), *_LIMITS.values()]
    heads += ["fuse/limit", "fuse/pixels", "S/limit", "S/pixels"]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(options: argparse.Namespace) -> list[list[str]]:
    """All rows: each specimen, then all of them together."""
    from tqdm import tqdm

    rows, every = [], {}
    pairs = [(C10, index) for C10 in options.C10 for index in range(options.specimens)]
    for C10, index in tqdm(pairs, unit="cube", file=sys.stderr):
        expected, phase = load(index, C10, options.det_pixels, options.cache)
        for dose in options.doses:
            # a seed may not end in 0: NumPy takes [a, b] and [a, b, 0] as one
            seeds = ([882, index, round(-C10), round(10 * dose), draw + 1] for draw in range(options.draws))
            drawn = [curves(expected, phase, dose, seed, options) for seed in seeds]
            rows.append(row_of(COMPOSITIONS[index % len(COMPOSITIONS)], C10, dose, average(drawn)))
            tqdm.write(table(rows[-1:]).splitlines()[-1], file=sys.stderr)  # a run takes long enough to be stopped
            every.setdefault((C10, dose), []).extend(drawn)
    return rows + [row_of("all", C10, dose, average(drawn)) for (C10, dose), drawn in every.items()]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--specimens", type=int, default=3, help="how many slabs, compositions in turn")
    parser.add_argument("--doses", type=float, nargs="+", default=[30.0, 100.0, 300.0, 1000.0], help="e/Å²")
    parser.add_argument("--C10", type=float, nargs="+", default=[-1500.0, -800.0], help="Å")
    parser.add_argument("--draws", type=int, default=3, help="draws of electrons, the curves of which are averaged")
    parser.add_argument("--det-pixels", type=int, default=76, help="across 24 mrad; 136 are as fine as they come")
    parser.add_argument("--ring-width", type=float, default=0.03, help="of every curve, 1/Å")
    parser.add_argument("--cache", type=Path, help="folder of simulated cubes, read if there, else written")
    parser.add_argument("--only-fuse", action="store_true", help="no shift_and_add and no parallax")
    parser.add_argument("--threads", type=int, help="of torch; all if not given")
    return parser.parse_args(arguments)


def main() -> int:
    """Run and print the table."""
    options = parse()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    print(table(run(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
