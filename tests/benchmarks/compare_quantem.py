"""misr beside quantem's direct ptychography and py4DSTEM's parallax: the same counts, in resolution and in time.

quantem wants NumPy 2, so it has an environment of its own::

    python3 -m venv quantem-env
    quantem-env/bin/pip install torch==2.13.0
    quantem-env/bin/pip install torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 quantem==0.1.10
    python tests/benchmarks/compare_quantem.py --quantem-python quantem-env/bin/python --cache DIR

The README says how to take PyTorch's CPU build, which is the one to compare with. (torchvision is never imported.)

Three seeded specimens (amorphous carbon, a zeolite crystallite in silica, a perovskite with vacancies), 64 × 64 scan
positions of about 2 Å, 300 kV, 10 mrad, C10 -1500 Å, C12 60 Å, the detector turned by 25°, pixels of 0.615 mrad, about
830 of them in the bright field. One pixel lies on the axis: quantem's detector grid wants that, and would else
interpolate the patterns. All are told the true optics, fuse ×4 (2 Å to 0.5 Å), and wrap round, as the scan does:
py4DSTEM, which does not know of it, is given the scan with its opposite edges laid on, and they are cut off again.

How quantem is fed: its axes are (row, column), so its azimuth is 90° - ours and ``phi12`` becomes π/2 - phi12; its
rotation has our sign. The true optic axis is given (`force_fitted_origin`); misr measures it. Each method's shift to
the truth (phase cross-correlation of scikit-image, to 1/50 pixel) and its sign are found once, on amorphous matter
at the highest dose, and mended: a shift if it is over 0.1 pixel, below which it is noise. The largest is printed.

Resolution: the first fall of the FRC with the truth below 0.5, with rings wider than a crystal's reciprocal lattice
spacing; "mean" is the FRC in rings of one pixel averaged over the band below 2α/λ, each frequency counting alike: for a
crystal it is mostly about what lies between the reflections. No taper: there is no edge to hide, and one would lay each
reflection on its neighbours, where an image with less noise then shows the reflection's own error the more.
"best" is quantem at its very best, which no user can
have: the finest resolution, and the highest mean, over a small grid of what may be chosen, another choice for every
cube and dose, picked **with the truth**. For "wiener" these are the ridge and the noise variance (its own estimate,
which gates whole rings off, times a factor), for "obf" the ridge and ``prior="ard"``; parallax has neither. (A narrower
mask and a hard aperture, tried once, gained it 0.3 % at most.) misr's methods are used as they are.

One draw of electrons says little: near a zero of the contrast transfer the FRC grazes 0.5, and the resolution jumps.
``--draws N`` draws them anew, and the table then gives means and standard errors over the draws, and of ours less
theirs on the same electrons. The specimen stays the same: what is particular to it stays in all draws. With
``--defaults-only --repeats 0`` (quantem as it comes, no times) a draw takes three to four minutes on one thread.

Times: from a stack in memory to an image (quantem: `reconstruct`; misr: `fuse_linear`), each library in a fresh process
with the same number of threads, the first call and the best of the later ones, on the first specimen at the first dose.
quantem's time depends on how many detector pixels it takes at once: the best of several batch sizes is used, its
default among them. "prepare" is what makes the stack: `from_dataset4d`, `synthesize_views`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from quantem_worker import ABERRATIONS, ENERGY, ROTATION, SEMIANGLE, UPSAMPLE, misr_cube, start_worker, time_lines

import misr
from misr.cube import detector_step, image_from_array, scan_step
from misr.optics import electron_wavelength

KINDS = ("amorphous", "semicrystalline", "crystalline")
# 1/Å, wider than the crystal's reciprocal lattice spacing: between reflections narrower rings hold nothing
_RING_WIDTHS = {"amorphous": None, "semicrystalline": 0.09, "crystalline": 0.18}
_POSITIONS, _FIELD = 64, 128.0
_DETECTOR_MAX, _NATIVE_PIXELS, _BINNED = 12.0, 156, 4  # mrad; as fine as the simulation has them, so many to a pixel
_SEED = 790
_SHIFT_STEPS, _LEAST_SHIFT = 50, 0.1  # to a pixel; pixels
_OURS = ("wiener", "wiener, local prior", "obf")
_PEERS = ("quantem wiener", "quantem obf", "quantem parallax", "py4DSTEM parallax", "misr shift_and_add")
_LAID_ON = 12  # scan positions at each edge for py4DSTEM: more than the views' shifts
_SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Score:
    """How near one image comes to the truth."""

    resolution: float  # Å
    mean: float  # FRC over the band, each frequency counting alike, in rings of one pixel
    wide: float  # the same in the rings of the resolution
    choice: str = ""  # quantem's, that gave the best resolution


Scores = dict[tuple[str, str, float], list[Score]]  # by (kind, method, dose): one for each draw


def atoms_of(kind: str) -> Any:
    """The specimen."""
    rng = np.random.default_rng([_SEED, KINDS.index(kind) + 1])
    if kind == "amorphous":
        return misr.amorphous_atoms(field_A=_FIELD, thickness_A=30, composition="carbon", rng=rng)
    if kind == "semicrystalline":
        return misr.semicrystalline_atoms(field_A=_FIELD, thickness_A=24, crystal="zeolite", rng=rng)
    return misr.crystalline_atoms("perovskite", field_A=_FIELD, vacancies=0.02, rng=rng)


def simulate(kind: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Expected counts, with a detector pixel on the axis, and phase."""
    atoms = atoms_of(kind)
    sides = atoms.cell.lengths()
    made = misr.simulate_cube(
        atoms,
        energy_eV=ENERGY,
        semiangle_mrad=SEMIANGLE,
        aberrations=ABERRATIONS,
        rotation_deg=ROTATION,
        scan_step_A=(sides[1] / _POSITIONS, sides[0] / _POSITIONS),
        det_max_mrad=_DETECTOR_MAX,
        det_pixels=_NATIVE_PIXELS,
        slice_thickness_A=15,
        progress=False,
    )
    fine = made["counts"]
    weights = [_binning(fine[dim].values) for dim in ("det_y", "det_x")]
    counts = misr.cube_from_array(
        np.einsum("iy,abyx,jx->abij", weights[0], fine.values, weights[1], optimize=True).astype(np.float32),
        scan_step_A=scan_step(fine),
        det_step_mrad=tuple(_BINNED * float(fine[dim][1] - fine[dim][0]) for dim in ("det_y", "det_x")),
        energy_eV=ENERGY,
        semiangle_mrad=SEMIANGLE,
        dose_e_per_A2=1.0,
        rotation_deg=ROTATION,
        aberrations=ABERRATIONS,
    )
    counts.attrs["period_A"] = fine.attrs["period_A"]
    return counts, made["phase"]


def _binning(angles: np.ndarray) -> np.ndarray:
    """Weights (pixels, native pixels) of pixels about the axis; the native ones at their edges are halved."""
    axis = int(np.argmin(np.abs(angles)))
    reach = (min(axis, len(angles) - 1 - axis) - _BINNED // 2) // _BINNED
    weights = np.zeros((2 * reach + 1, len(angles)), dtype=np.float32)
    for row, weight in enumerate(weights):
        first = axis + _BINNED * (row - reach) - _BINNED // 2
        weight[first : first + _BINNED + 1] = [0.5, *(_BINNED - 1) * [1], 0.5]
    return weights


def load(kind: str, cache: Path | None) -> tuple[xr.DataArray, xr.DataArray]:
    """Expected counts and phase, from the cache if they are there, and written to it if not."""
    if cache is None:
        return simulate(kind)
    paths = [cache / f"quantem_{kind}{part}.nc" for part in ("", "_phase")]
    if not all(path.exists() for path in paths):
        cache.mkdir(parents=True, exist_ok=True)
        for path, array in zip(paths, simulate(kind), strict=True):
            partial = path.with_suffix(f".{os.getpid()}.part")
            array.to_netcdf(partial)
            os.replace(partial, path)
    counts, phase = (xr.load_dataarray(path) for path in paths)
    return counts, phase


def write_counts(expected: xr.DataArray, dose: float, *, number: int, path: Path) -> None:
    """The electrons that both are given, one draw of them, with what labels them."""
    kind = path.name.partition("_")[0]
    rng = np.random.default_rng([_SEED, KINDS.index(kind) + 1, round(dose), number])
    counts = misr.apply_dose(expected, dose, rng=rng)
    labels = {"scan_step_A": scan_step(counts), "det_step_mrad": detector_step(counts)}
    np.savez(path, counts=counts.values, period_A=counts.attrs["period_A"], **labels)


def read_images(path: Path) -> dict[str, xr.DataArray]:
    """All images of one file's counts, labelled, by ``library method``."""
    step = np.load(path)["scan_step_A"]
    pixel = (float(step[0]) / UPSAMPLE, float(step[1]) / UPSAMPLE)
    images = {}
    for library in ("misr", "quantem"):
        held = np.load(path.with_suffix(f".{library}.npz"))
        for name in held.files:
            images[f"{library} {name}"] = image_from_array(held[name].astype(float), pixel_A=pixel)
    images["py4DSTEM parallax"] = py4dstem_parallax(path, pixel)
    return images


def py4dstem_parallax(path: Path, pixel: tuple[float, float]) -> xr.DataArray:
    """By py4DSTEM, told the true aberrations; computed once for each file."""
    kept = path.with_suffix(".py4dstem.npy")
    if not kept.exists():
        held = np.load(path)
        data = {name: held[name] for name in held.files}
        data["counts"] = np.pad(data["counts"], [(_LAID_ON, _LAID_ON)] * 2 + [(0, 0)] * 2, mode="wrap")
        wide = misr.reconstruct_parallax(misr_cube(data), upsample=UPSAMPLE, device="cpu", progress=False)
        field = slice(_LAID_ON * UPSAMPLE, -_LAID_ON * UPSAMPLE)
        np.save(kept, wide.values[field, field])
    return image_from_array(np.load(kept).astype(float), pixel_A=pixel)


def registration(image: xr.DataArray, truth: xr.DataArray) -> tuple[np.ndarray, int]:
    """Shift in pixels that lays an image on the truth, and its sign."""
    from skimage.registration import phase_cross_correlation

    if not image.values.any():  # quantem's gate let nothing through
        return np.zeros(2), 1
    centred = [array.values - array.values.mean() for array in (truth, image)]
    shift = phase_cross_correlation(*centred, upsample_factor=_SHIFT_STEPS, normalization=None)[0]
    moved = registered(image, (shift, 1)).values
    return shift, 1 if float(np.vdot(centred[0], moved)) > 0 else -1


def registered(image: xr.DataArray, found: tuple[np.ndarray, int]) -> xr.DataArray:
    """The image, shifted and with its sign."""
    from scipy.ndimage import fourier_shift

    shift, sign = found
    if np.hypot(*shift) < _LEAST_SHIFT:
        return sign * image
    return image.copy(data=sign * np.fft.ifft2(fourier_shift(np.fft.fft2(image.values), shift)).real)


def judged(image: xr.DataArray, truth: xr.DataArray, kind: str) -> Score:
    """How near an image comes to the truth."""
    wide, fine = (
        misr.fourier_ring_correlation(image, truth, ring_width=width, window=None)
        for width in (_RING_WIDTHS[kind], None)
    )
    means = []
    for frc in (fine, wide):
        band = frc.frequency.values < 2e-3 * SEMIANGLE / electron_wavelength(ENERGY)
        means.append(float(np.average(frc.values[band], weights=frc.frequency.values[band])))
    return Score(float(misr.frc_resolution(wide, threshold=0.5)), *means)


def judge(folder: Path, phases: dict[str, xr.DataArray], doses: list[float], found: dict[str, Any]) -> Scores:
    """Scores of one draw, those of the best of quantem's grids too; the registration by method is added to ``found``.

    The best's choice is that of the resolution; its means are the highest that any choice gives.
    """
    scores: Scores = {}
    for kind in phases:  # amorphous first: a crystal fits on itself in many places
        for dose in sorted(doses, reverse=True):
            images = read_images(folder / f"{kind}_{dose:g}.npz")
            truth = misr.phase_on_grid(phases[kind], like=next(iter(images.values())))
            tried: dict[str, list[Score]] = {}
            for name, image in images.items():
                if name not in found:
                    found[name] = registration(image, truth) if kind == "amorphous" else (np.zeros(2), 1)
                score = judged(registered(image, found[name]), truth, kind)
                method, _, choice = name.partition("|")
                if choice in ("", "{}"):
                    scores[kind, method, dose] = [score]
                tried.setdefault(method, []).append(replace(score, choice=choice))
            for method, several in tried.items():
                if len(several) > 1:
                    finest = min(several, key=lambda one: one.resolution)
                    means = {name: max(getattr(one, name) for one in several) for name in ("mean", "wide")}
                    scores[kind, f"{method}, best", dose] = [replace(finest, **means)]
    return scores


def draw(folder: Path, phases: dict[str, xr.DataArray], dose: float, to: Path) -> None:
    """Each specimen's truth and images side by side as they came, unregistered, band-limited alike, to a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from scipy.ndimage import gaussian_filter

    to.mkdir(parents=True, exist_ok=True)
    for kind, phase in phases.items():
        path = folder / f"{kind}_{dose:g}.npz"
        images = read_images(path)
        shown = {name.partition("|")[0]: image for name, image in images.items() if "|" not in name or "|{}" in name}
        shown = {"truth": misr.phase_on_grid(phase, like=next(iter(images.values())))} | shown
        figure, axes = plt.subplots(2, math.ceil(len(shown) / 2), figsize=(20, 10), layout="constrained")
        for axis in axes.flat:
            axis.axis("off")
        for axis, (name, image) in zip(axes.flat, shown.items(), strict=False):
            axis.imshow(gaussian_filter(image.values, 1.5, mode="wrap"), cmap="gray")
            axis.set_title(f"{name}, {kind}, {dose:g} e/Å²", fontsize=9)
        figure.savefig(to / f"{kind}_{dose:g}.png", dpi=70)
        plt.close(figure)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean over the draws that have a finite value, and its standard error (NaN for a single one)."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return math.nan, math.nan
    return float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else math.nan


def written(values: list[float], digits: int, sign: str = "") -> str:
    """Mean ± standard error of the draws; "!" if some of them have no finite value."""
    mean, error = mean_and_error(values)
    if math.isnan(mean):
        return "none!"
    told = f"{mean:{sign}.{digits}f}" + ("" if math.isnan(error) else f"±{error:.{digits}f}")
    return told + ("" if all(map(math.isfinite, values)) else "!")


def verdict(gains: list[float]) -> str:
    """Of paired gains: "+" for better and "*" for worse, both beyond scatter."""
    mean, error = mean_and_error(gains)
    return " " if math.isnan(error) or abs(mean) <= _SURE * error or not mean else "+" if mean > 0 else "*"


def paired_lines(scores: Scores, kind: str, doses: list[float]) -> list[str]:
    """Ours less theirs on the same electrons."""
    blocks: list[tuple[str, int, Callable[[Score], float], Callable[[Score], float]]] = [
        # judged in 1/Å, in which an image that resolves nothing counts as 0
        ("resolution, Å", 2, lambda one: one.resolution, lambda one: 1 / one.resolution),
        ("mean FRC, rings of one frequency pixel", 4, lambda one: one.mean, lambda one: one.mean),
    ]
    if _RING_WIDTHS[kind] is not None:
        blocks.append((f"mean FRC, rings of {_RING_WIDTHS[kind]} 1/Å", 4, lambda one: one.wide, lambda one: one.wide))
    lines = []
    for title, digits, shown, gain in blocks:
        lines += ["", f"{kind}: ours - theirs, {title}", "e/Å²".ljust(44) + "".join(f"{dose:>18g}" for dose in doses)]
        for ours in _OURS:
            for theirs in _PEERS:
                cells = []
                for dose in doses:
                    pairs = list(zip(scores[kind, f"misr {ours}", dose], scores[kind, theirs, dose], strict=True))
                    told = written([shown(a) - shown(b) for a, b in pairs], digits, "+")
                    cells.append(told + verdict([gain(a) - gain(b) for a, b in pairs]))
                lines.append(f"{ours} - {theirs}".ljust(44) + "".join(f"{cell:>18s}" for cell in cells))
    return lines


def table(scores: Scores, found: dict[str, Any], reports: dict[str, Any], job: dict[str, Any]) -> str:
    """What is printed."""
    lines = []
    for library, report in reports.items():
        lines.append(f"{library}: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    shift = max(float(np.abs(one[0]).max()) for one in found.values())
    turned = ", ".join(name for name, one in found.items() if one[1] < 0) or "none"
    lines += [f"largest shift to the truth: {shift:.2f} pixel; sign turned: {turned}"]
    draws = len(next(iter(scores.values())))
    lines += [
        f"draws of electrons for each specimen and dose: {draws}; mean ± standard error over them",
        "differences are of the same electrons: + ours better, * ours worse, by more than 2 standard errors; "
        "! draws without a resolution left out of the mean",
    ]
    doses = sorted({dose for _, _, dose in scores}, reverse=True)
    for kind in dict.fromkeys(kind for kind, _, _ in scores):
        width = _RING_WIDTHS[kind]
        rings = "one frequency pixel" if width is None else f"{width} 1/Å"
        lines += ["", f"{kind}: resolution in Å (mean FRC), rings of {rings}"]
        lines.append("e/Å²".ljust(28) + "".join(f"{dose:>22g}" for dose in doses))
        methods = sorted({method for one, method, _ in scores if one == kind})
        for method in methods:
            cells = [scores[kind, method, dose] for dose in doses]
            found_at = [written([one.resolution for one in cell], 2) for cell in cells]
            means = [written([one.mean for one in cell], 3).partition("±")[0] for cell in cells]
            told = [f"{a} ({b})" for a, b in zip(found_at, means, strict=True)]
            lines.append(method.ljust(28) + "".join(f"{one:>22s}" for one in told))
        for method in methods:
            choices = [scores[kind, method, dose][0].choice for dose in doses]
            lines += [f"  {method}: {'; '.join(choices)}"] if any(choices) else []
        lines += paired_lines(scores, kind, doses)
    return "\n".join(lines + (time_lines(reports, job) if job["repeats"] else []))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quantem-python", type=Path, required=True, help="the Python of quantem's environment")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="specimens")
    parser.add_argument("--doses", type=float, nargs="+", default=[30.0, 100.0, 300.0, 1000.0], help="e/Å²")
    parser.add_argument("--draws", type=int, default=1, help="of the electrons, for each specimen and dose")
    parser.add_argument("--defaults-only", action="store_true", help="leave out the best of quantem's choices")
    parser.add_argument("--table", type=Path, help="file for the table, written anew after each draw")
    parser.add_argument("--cache", type=Path, help="folder of simulated cubes, read if there, else written")
    parser.add_argument("--threads", type=int, default=2, help="of each library")
    parser.add_argument("--repeats", type=int, default=3, help="later calls that are timed; 0: no times")
    parser.add_argument("--images", type=Path, help="folder for PNGs of the images at the highest dose")
    options = parser.parse_args()
    for name, least in (("draws", 1), ("threads", 1), ("repeats", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} {getattr(options, name)}: must be at least {least}")
    return options


def run(options: argparse.Namespace, kinds: list[str]) -> str:
    """All draws, one after the other; the table."""
    loaded = {kind: load(kind, options.cache) for kind in kinds}
    phases = {kind: phase for kind, (_, phase) in loaded.items()}
    pythons = {"misr": Path(sys.executable), "quantem": options.quantem_python}
    scores: Scores = {}
    found: dict[str, Any] = {}
    reports: dict[str, Any] = {}
    job = {"threads": options.threads, "repeats": options.repeats, "grids": not options.defaults_only}
    job["files"] = [f"{kind}_{dose:g}.npz" for kind in kinds for dose in options.doses]
    for number in range(1, options.draws + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for kind, (expected, _) in loaded.items():
                for dose in options.doses:
                    write_counts(expected, dose, number=number, path=folder / f"{kind}_{dose:g}.npz")
            this = job | {"folder": name, "repeats": options.repeats if number == 1 else 0}
            told = {library: start_worker(library, python, this) for library, python in pythons.items()}
            reports = reports or told
            for key, new in judge(folder, phases, options.doses, found).items():
                scores.setdefault(key, []).extend(new)
            if options.images and number == 1:
                draw(folder, phases, max(options.doses), options.images)
        text = table(scores, found, reports, job)
        if options.table:
            partial = options.table.with_name(options.table.name + ".part")
            partial.write_text(text + "\n")
            os.replace(partial, options.table)
    return text


def main() -> int:
    """Simulate, run both libraries one after the other, and print the table."""
    options = parse()
    print(run(options, [kind for kind in KINDS if kind in options.kinds]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
