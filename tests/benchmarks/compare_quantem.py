"""misr beside quantem's direct ptychography: the same counts, in resolution and in time.

quantem wants NumPy 2, so it has an environment of its own::

    python3 -m venv quantem-env
    quantem-env/bin/pip install torch==2.13.0
    quantem-env/bin/pip install torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 quantem==0.1.10
    python tests/benchmarks/compare_quantem.py --quantem-python quantem-env/bin/python --cache DIR

The README says how to take PyTorch's CPU build, which is the one to compare with. (torchvision is never imported.)

Three seeded specimens (amorphous carbon, a zeolite crystallite in silica, a perovskite with vacancies), 64 × 64 scan
positions of about 2 Å, 300 kV, 10 mrad, C10 -1500 Å, C12 60 Å, the detector turned by 25°, pixels of 0.615 mrad, about
830 of them in the bright field. One pixel lies on the axis: quantem's detector grid wants that, and would else
interpolate the patterns. Both are told the true optics, fuse ×4 (2 Å to 0.5 Å), and wrap round, as the scan does.

How quantem is fed: its axes are (row, column), so its azimuth is 90° - ours and ``phi12`` becomes π/2 - phi12; its
rotation has our sign. The true optic axis is given (`force_fitted_origin`); misr measures it. Each method's shift to
the truth (phase cross-correlation of scikit-image, to 1/50 pixel) and its sign are found once, on amorphous matter
at the highest dose, and mended: a shift if it is over 0.1 pixel, below which it is noise. The largest is printed.

Resolution: the first fall of the FRC with the truth below 0.5, with rings wider than a crystal's reciprocal lattice
spacing; "mean" is the FRC in rings of one pixel averaged over the band below 2α/λ, each frequency counting alike: for a
crystal it is mostly about what lies between the reflections. "best" is quantem at its very best, which no user can
have: the finest resolution, and the highest mean, over a small grid of what may be chosen, another choice for every
cube and dose, picked **with the truth**. For "wiener" these are the ridge and the noise variance (its own estimate,
which gates whole rings off, times a factor), for "obf" the ridge and ``prior="ard"``; parallax has neither. (A narrower
mask and a hard aperture, tried once, gained it 0.3 % at most.) misr's methods are used as they are.

Times: from a stack in memory to an image (quantem: `reconstruct`; misr: `fuse_linear`), each library in a fresh process
with the same number of threads, the first call and the best of the later ones, on the first specimen at the first dose.
quantem's time depends on how many detector pixels it takes at once: the best of several batch sizes is used, its
default among them. "prepare" is what makes the stack: `from_dataset4d`, `synthesize_views`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# both Pythons read this file: what only one of them has is imported where it is used
import numpy as np

if TYPE_CHECKING:
    import xarray as xr

KINDS = ("amorphous", "semicrystalline", "crystalline")
# 1/Å, wider than the crystal's reciprocal lattice spacing: between reflections narrower rings hold nothing
_RING_WIDTHS = {"amorphous": None, "semicrystalline": 0.09, "crystalline": 0.18}
_ABERRATIONS = {"C10": -1500.0, "C12": 60.0, "phi12": 0.4}
_ROTATION = 25.0
_ENERGY, _SEMIANGLE = 300e3, 10.0
_POSITIONS, _FIELD, _UPSAMPLE = 64, 128.0, 4
_DETECTOR_MAX, _NATIVE_PIXELS, _BINNED = 12.0, 156, 4  # mrad; as fine as the simulation has them, so many to a pixel
_SEED = 790
_BATCHES = (16, 32, 64, None)  # bright-field pixels at once; None, quantem's default, is as many as 270 MB hold
_SHIFT_STEPS, _LEAST_SHIFT = 50, 0.1  # to a pixel; pixels
_COUNTERPARTS = {"shift_and_add": "parallax"}  # ours to theirs, where the names differ

_WIENER = [{"ridge": ridge, "noise": noise} for noise in (1.0, 4.0, 2.0, 0.5, 0.25) for ridge in (1e-5, 1e-2, 1.0)]
_OBF: list[dict[str, Any]] = [{"ridge": ridge} for ridge in (1e-5, 1e-2, 1e-1, 1.0, 10.0)]
_GRIDS: dict[str, list[dict[str, Any]]] = {
    "wiener": [{}, *_WIENER[1:]],  # the first of each is the default
    "obf": [{}, *_OBF[1:], {"prior": "ard"}],
    "parallax": [{}],
}


def atoms_of(kind: str) -> Any:
    """The specimen."""
    import misr

    rng = np.random.default_rng([_SEED, KINDS.index(kind) + 1])
    if kind == "amorphous":
        return misr.amorphous_atoms(field_A=_FIELD, thickness_A=30, composition="carbon", rng=rng)
    if kind == "semicrystalline":
        return misr.semicrystalline_atoms(field_A=_FIELD, thickness_A=24, crystal="zeolite", rng=rng)
    return misr.crystalline_atoms("perovskite", field_A=_FIELD, vacancies=0.02, rng=rng)


def simulate(kind: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Expected counts, with a detector pixel on the axis, and phase."""
    import misr
    from misr.cube import scan_step

    atoms = atoms_of(kind)
    sides = atoms.cell.lengths()
    made = misr.simulate_cube(
        atoms,
        energy_eV=_ENERGY,
        semiangle_mrad=_SEMIANGLE,
        aberrations=_ABERRATIONS,
        rotation_deg=_ROTATION,
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
        energy_eV=_ENERGY,
        semiangle_mrad=_SEMIANGLE,
        dose_e_per_A2=1.0,
        rotation_deg=_ROTATION,
        aberrations=_ABERRATIONS,
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
    import xarray as xr

    paths = [cache / f"quantem_{kind}{part}.nc" for part in ("", "_phase")]
    if not all(path.exists() for path in paths):
        cache.mkdir(parents=True, exist_ok=True)
        for path, array in zip(paths, simulate(kind), strict=True):
            partial = path.with_suffix(f".{os.getpid()}.part")
            array.to_netcdf(partial)
            os.replace(partial, path)
    counts, phase = (xr.load_dataarray(path) for path in paths)
    return counts, phase


def write_counts(expected: xr.DataArray, dose: float, *, path: Path) -> None:
    """The electrons that both are given, with what labels them."""
    import misr
    from misr.cube import detector_step, scan_step

    kind = path.name.partition("_")[0]
    counts = misr.apply_dose(expected, dose, rng=np.random.default_rng([_SEED, KINDS.index(kind) + 1, round(dose), 1]))
    labels = {"scan_step_A": scan_step(counts), "det_step_mrad": detector_step(counts)}
    np.savez(path, counts=counts.values, period_A=counts.attrs["period_A"], **labels)


# ---- the workers: one process for each library --------------------------------------------------------------------


def work(library: str, job: dict[str, Any]) -> None:
    """Reconstruct every file of a job with one library: images, and times of the first file, beside the files."""
    import torch

    torch.set_num_threads(job["threads"])
    report: dict[str, Any] = {"versions": {"Python": platform.python_version()}}
    for name in ("misr", "quantem", "torch", "numpy", "scikit-image"):
        if name == library or name not in ("misr", "quantem"):
            report["versions"][name] = importlib.metadata.version(name)
    for number, name in enumerate(job["files"]):
        path = Path(job["folder"]) / name
        held = np.load(path)
        data = {key: held[key] for key in held.files}
        if number == 0:
            report["times"] = (misr_times if library == "misr" else quantem_times)(data, job["repeats"])
            report_path = Path(job["folder"]) / f"{library}.json"
            report_path.write_text(json.dumps(report))
        images = misr_images(data) if library == "misr" else quantem_images(data)
        np.savez(path.with_suffix(f".{library}.npz"), **images)
        print(f"{library}: {path.stem}", file=sys.stderr, flush=True)


def misr_cube(data: dict[str, np.ndarray]) -> xr.DataArray:
    """The labelled cube."""
    import misr

    steps = {name: tuple(map(float, data[name])) for name in ("scan_step_A", "det_step_mrad")}
    cube = misr.cube_from_array(
        data["counts"],
        **steps,
        energy_eV=_ENERGY,
        semiangle_mrad=_SEMIANGLE,
        rotation_deg=_ROTATION,
        aberrations=_ABERRATIONS,
    )
    cube.attrs["period_A"] = list(map(float, data["period_A"]))
    return cube


def misr_methods() -> dict[str, Callable[..., Any]]:
    """What this misr can do, each from views to an image."""
    import misr

    def fusing(image: str, **options: Any) -> Callable[..., Any]:
        def fuse(views: xr.DataArray, **more: Any) -> xr.DataArray:
            return misr.fuse_linear(views, upsample=_UPSAMPLE, device="cpu", **options, **more)[image]

        return fuse

    def add(views: xr.DataArray) -> xr.DataArray:
        return misr.shift_and_add(views, upsample=_UPSAMPLE, device="cpu")

    methods: dict[str, Callable[..., Any]] = {"wiener": fusing("phase")}
    known = inspect.signature(misr.fuse_linear).parameters
    if "prior" in known:
        methods["wiener, local prior"] = fusing("phase", prior="local")
    if "method" in known:
        methods["obf"] = fusing("contrast", method="obf")
    return methods | {"shift_and_add": add}


def misr_images(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An image by each method."""
    import misr

    views = misr.synthesize_views(misr_cube(data))
    return {name: method(views).values for name, method in misr_methods().items()}


def misr_times(data: dict[str, np.ndarray], repeats: int) -> dict[str, list[float]]:
    """Seconds of the first call and of the best later one."""
    import misr

    cube = misr_cube(data)
    times = {"prepare": timed(lambda: misr.synthesize_views(cube), repeats)}
    views = misr.synthesize_views(cube)
    for name, method in misr_methods().items():
        times[name] = timed(lambda method=method: method(views), repeats)
    if "plan" in inspect.signature(misr.fuse_linear).parameters:
        plan = misr.plan_fusion(views, upsample=_UPSAMPLE, device="cpu")
        times["wiener, plan kept"] = timed(lambda: misr_methods()["wiener"](views, plan=plan), repeats)
    return times


def quantem_reconstruction(data: dict[str, np.ndarray]) -> Any:
    """quantem's DirectPtychography of the counts, given the truth about the optics."""
    from quantem.core.datastructures import Dataset4d
    from quantem.diffractive_imaging.direct_ptychography import DirectPtychography

    class Kept(DirectPtychography):
        """Takes the sums that "wiener" and "obf" share once if told to: only for the grid of what may be chosen."""

        keep = False
        _kept_sums: Any = None

        def _accumulate_kernel_sums(self, ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if not self.keep or ctx["kernel"] not in ("wiener", "obf"):
                return super()._accumulate_kernel_sums(ctx, *args, **kwargs)
            if self._kept_sums is None:
                self._kept_sums = super()._accumulate_kernel_sums(ctx, *args, **kwargs)
            return self._kept_sums

    counts = data["counts"].astype(np.float32)
    dataset = Dataset4d.from_array(
        counts,
        sampling=(*map(float, data["scan_step_A"]), *map(float, data["det_step_mrad"])),
        units=("A", "A", "mrad", "mrad"),
    )
    # its azimuth runs from the rows (y) to the columns (x), ours from x to y
    turned = {name: math.pi / 2 - value if name[:3] == "phi" else value for name, value in _ABERRATIONS.items()}
    return Kept.from_dataset4d(
        dataset,
        energy=_ENERGY,
        semiangle_cutoff=_SEMIANGLE,
        aberration_coefs=turned,
        rotation_angle=_ROTATION,
        force_fitted_origin=(counts.shape[2] // 2, counts.shape[3] // 2),
        verbose=False,
    )


def quantem_image(made: Any, kernel: str, *, batch: int | None = _BATCHES[0], **options: Any) -> np.ndarray:
    """One reconstruction."""
    options |= {"upsampling_factor": _UPSAMPLE, "max_batch_size": batch, "verbose": False}
    return made.reconstruct(deconvolution_kernel=kernel, **options).obj


def quantem_images(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An image for each kernel and each choice of the grid, named ``kernel|choice``."""
    made = quantem_reconstruction(data)
    made.keep = True
    images, noise = {}, math.nan
    for kernel, grid in _GRIDS.items():
        for choice in grid:
            options = dict(choice)
            if "noise" in options:
                options["noise_variance"] = noise * options.pop("noise")
            images[f"{kernel}|{json.dumps(choice)}"] = quantem_image(made, kernel, **options)
            if kernel == "wiener" and not choice:
                noise = made.noise_variance
    return images


def quantem_times(data: dict[str, np.ndarray], repeats: int) -> dict[str, list[float]]:
    """Seconds of the first call and of the best later one."""
    times = {"prepare": timed(lambda: quantem_reconstruction(data), repeats)}
    made = quantem_reconstruction(data)
    tried = {batch: timed(lambda batch=batch: quantem_image(made, "wiener", batch=batch), 1) for batch in _BATCHES}
    fastest = min(tried, key=lambda batch: tried[batch][1])
    for kernel in ("wiener", "obf", "parallax"):
        times[kernel] = timed(lambda kernel=kernel: quantem_image(made, kernel, batch=fastest), repeats)
    times["wiener"][0] = tried[_BATCHES[0]][0]
    return times | {f"wiener, batch {batch or 'default'}": seconds for batch, seconds in tried.items()}


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of the first call and of the best of the later ones."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return [seconds[0], min(seconds[1:])]


# ---- the judgement -------------------------------------------------------------------------------------------------


def start_worker(library: str, python: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run one worker to its end; its report."""
    folder = Path(job["folder"])
    (folder / "job.json").write_text(json.dumps(job))
    environment = dict(os.environ)
    if library == "quantem":
        environment.pop("PYTHONPATH", None)  # ours has another NumPy
    environment |= {f"{name}_NUM_THREADS": str(job["threads"]) for name in ("OMP", "MKL", "OPENBLAS")}
    command = [str(python), __file__, "--worker", library, "--job", str(folder / "job.json")]
    ended = subprocess.run(command, env=environment, check=False)
    if ended.returncode:
        raise SystemExit(
            f"{library} failed in {python} (see above): is it installed there, as the head of this file says?"
        )
    return json.loads((folder / f"{library}.json").read_text())


def read_images(path: Path) -> dict[str, xr.DataArray]:
    """All images of one file's counts, labelled, by ``library method``."""
    from misr.cube import image_from_array

    step = np.load(path)["scan_step_A"]
    pixel = (float(step[0]) / _UPSAMPLE, float(step[1]) / _UPSAMPLE)
    images = {}
    for library in ("misr", "quantem"):
        held = np.load(path.with_suffix(f".{library}.npz"))
        for name in held.files:
            images[f"{library} {name}"] = image_from_array(held[name].astype(float), pixel_A=pixel)
    return images


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


def judged(image: xr.DataArray, truth: xr.DataArray, kind: str) -> tuple[float, float]:
    """Resolution, Å, and mean FRC over the band."""
    import misr
    from misr.optics import electron_wavelength

    wide = misr.fourier_ring_correlation(image, truth, ring_width=_RING_WIDTHS[kind])
    fine = misr.fourier_ring_correlation(image, truth)
    band = fine.frequency.values < 2e-3 * _SEMIANGLE / electron_wavelength(_ENERGY)
    mean = np.average(fine.values[band], weights=fine.frequency.values[band])
    return float(misr.frc_resolution(wide, threshold=0.5)), float(mean)


def judge(folder: Path, phases: dict[str, xr.DataArray], doses: list[float]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """(resolution, mean) by (kind, method, dose), the best of quantem's grids too, and the registration by method.

    The best has its choice as a third entry, that of the resolution; its mean is the highest that any choice gives.
    """
    import misr

    scores: dict[Any, Any] = {}
    found: dict[str, Any] = {}
    for kind in phases:  # amorphous first: a crystal fits on itself in many places
        for dose in sorted(doses, reverse=True):
            path = folder / f"{kind}_{dose:g}.npz"
            images = read_images(path)
            truth = misr.phase_on_grid(phases[kind], like=next(iter(images.values())))
            for name, image in images.items():
                if name not in found:
                    found[name] = registration(image, truth) if kind == "amorphous" else (np.zeros(2), 1)
                resolution, mean = judged(registered(image, found[name]), truth, kind)
                method, _, choice = name.partition("|")
                if choice in ("", "{}"):
                    scores[kind, method, dose] = resolution, mean
                if len(_GRIDS.get(method.removeprefix("quantem "), "")) > 1 and choice:
                    key = kind, f"{method}, best", dose
                    best = scores.get(key, (math.inf, -1.0, choice))
                    finer = min(best, (resolution, 0.0, choice), key=lambda one: one[0])
                    scores[key] = finer[0], max(best[1], mean), finer[2]
    return scores, found


def draw(folder: Path, phases: dict[str, xr.DataArray], dose: float, to: Path) -> None:
    """Each specimen's truth and images side by side as they came, unregistered, band-limited alike, to a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from scipy.ndimage import gaussian_filter

    import misr

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


def table(scores: dict[Any, Any], found: dict[str, Any], reports: dict[str, Any], job: dict[str, Any]) -> str:
    """What is printed."""
    lines = []
    for library, report in reports.items():
        lines.append(f"{library}: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    shift = max(float(np.abs(one[0]).max()) for one in found.values())
    turned = ", ".join(name for name, one in found.items() if one[1] < 0) or "none"
    lines += [f"largest shift to the truth: {shift:.2f} pixel; sign turned: {turned}", ""]
    doses = sorted({dose for _, _, dose in scores}, reverse=True)
    for kind in dict.fromkeys(kind for kind, _, _ in scores):
        width = _RING_WIDTHS[kind]
        rings = "one frequency pixel" if width is None else f"{width} 1/Å"
        lines.append(f"{kind}: resolution in Å (mean FRC), rings of {rings}")
        lines.append("e/Å²".ljust(28) + "".join(f"{dose:>15g}" for dose in doses))
        methods = sorted({method for one, method, _ in scores if one == kind})
        for method in methods:
            cells = [scores[kind, method, dose] for dose in doses]
            lines.append(method.ljust(28) + "".join(f"{cell[0]:8.2f} ({cell[1]:.2f})" for cell in cells))
        for method in methods:
            choices = [scores[kind, method, dose][2] for dose in doses if len(scores[kind, method, dose]) > 2]
            lines += [f"  {method}: {'; '.join(choices)}"] if choices else []
        lines.append("")
    return "\n".join(lines + time_lines(reports, job))


def time_lines(reports: dict[str, Any], job: dict[str, Any]) -> list[str]:
    """The times and their ratios."""
    lines = [f"threads: {job['threads']}; {job['files'][0]}; first call and best of {job['repeats']} later ones, s"]
    for library, report in reports.items():
        lines += [f"{library + ' ' + name:48s}{a:10.3f}{b:10.3f}" for name, (a, b) in report["times"].items()]
    ours, theirs = (reports[library]["times"] for library in ("misr", "quantem"))
    for mine in ours:
        kernel = _COUNTERPARTS.get(mine, mine.partition(",")[0])
        ratios = [theirs[kernel][i] / ours[mine][i] for i in range(2)]
        lines.append(f"ratio quantem {kernel} / misr {mine}".ljust(48) + "".join(f"{one:10.1f}" for one in ratios))
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quantem-python", type=Path, help="the Python of quantem's environment")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="specimens")
    parser.add_argument("--doses", type=float, nargs="+", default=[30.0, 100.0, 300.0, 1000.0], help="e/Å²")
    parser.add_argument("--cache", type=Path, help="folder of simulated cubes, read if there, else written")
    parser.add_argument("--threads", type=int, default=2, help="of each library")
    parser.add_argument("--repeats", type=int, default=3, help="later calls that are timed")
    parser.add_argument("--images", type=Path, help="folder for PNGs of the images at the highest dose")
    parser.add_argument("--worker", choices=("misr", "quantem"), help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None and options.quantem_python is None:
        parser.error("give --quantem-python: the head of this file says how to make its environment")
    return options


def main() -> int:
    """Simulate, run both libraries one after the other, and print the table."""
    options = parse()
    if options.worker:
        work(options.worker, json.loads(options.job.read_text()))
        return 0
    kinds = [kind for kind in KINDS if kind in options.kinds]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phases, files = {}, []
        for kind in kinds:
            expected, phases[kind] = load(kind, options.cache)
            for dose in options.doses:
                files.append(f"{kind}_{dose:g}.npz")
                write_counts(expected, dose, path=folder / files[-1])
        job = {"folder": name, "files": files, "threads": options.threads, "repeats": options.repeats}
        pythons = {"misr": Path(sys.executable), "quantem": options.quantem_python}
        reports = {library: start_worker(library, python, job) for library, python in pythons.items()}
        scores, found = judge(folder, phases, options.doses)
        if options.images:
            draw(folder, phases, max(options.doses), options.images)
    print(table(scores, found, reports, job))
    return 0


if __name__ == "__main__":
    sys.exit(main())
