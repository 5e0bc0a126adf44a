"""What one library makes of a folder of counts, in a process of its own: the other half of `compare_quantem`.

Run by both Pythons, misr's and quantem's, as ``quantem_worker.py LIBRARY JOB``; the job is a JSON file beside the
counts: ``folder``, ``files``, ``threads``, ``repeats`` (later calls that are timed; 0: nothing is) and ``grids``
(whether quantem's choices are all made, or its defaults only).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# both Pythons read this file: what only one of them has is imported where it is used
import numpy as np

if TYPE_CHECKING:
    import xarray as xr

ABERRATIONS = {"C10": -1500.0, "C12": 60.0, "phi12": 0.4}
ROTATION = 25.0
ENERGY, SEMIANGLE = 300e3, 10.0
UPSAMPLE = 4
_COUNTERPARTS = {"shift_and_add": "parallax"}  # ours to theirs, where the names differ
_BATCHES = (16, 32, 64, None)  # bright-field pixels at once; None, quantem's default, is as many as 270 MB hold

_WIENER = [{"ridge": ridge, "noise": noise} for noise in (1.0, 4.0, 2.0, 0.5, 0.25) for ridge in (1e-5, 1e-2, 1.0)]
_OBF: list[dict[str, Any]] = [{"ridge": ridge} for ridge in (1e-5, 1e-2, 1e-1, 1.0, 10.0)]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "wiener": [{}, *_WIENER[1:]],  # the first of each is the default
    "obf": [{}, *_OBF[1:], {"prior": "ard"}],
    "parallax": [{}],
}


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
        if number == 0 and job["repeats"]:
            report["times"] = (misr_times if library == "misr" else quantem_times)(data, job["repeats"])
        images = misr_images(data) if library == "misr" else quantem_images(data, grids=job["grids"])
        np.savez(path.with_suffix(f".{library}.npz"), **images)
        print(f"{library}: {path.stem}", file=sys.stderr, flush=True)
    (Path(job["folder"]) / f"{library}.json").write_text(json.dumps(report))


def misr_cube(data: dict[str, np.ndarray]) -> xr.DataArray:
    """The labelled cube."""
    import misr

    steps = {name: tuple(map(float, data[name])) for name in ("scan_step_A", "det_step_mrad")}
    cube = misr.cube_from_array(
        data["counts"],
        **steps,
        energy_eV=ENERGY,
        semiangle_mrad=SEMIANGLE,
        rotation_deg=ROTATION,
        aberrations=ABERRATIONS,
    )
    cube.attrs["period_A"] = list(map(float, data["period_A"]))
    return cube


def misr_methods() -> dict[str, Callable[..., Any]]:
    """What this misr can do, each from views to an image."""
    import misr

    def fusing(image: str, **options: Any) -> Callable[..., Any]:
        def fuse(views: xr.DataArray, **more: Any) -> xr.DataArray:
            return misr.fuse_linear(views, upsample=UPSAMPLE, device="cpu", **options, **more)[image]

        return fuse

    def add(views: xr.DataArray) -> xr.DataArray:
        return misr.shift_and_add(views, upsample=UPSAMPLE, device="cpu")

    return {
        "wiener": fusing("phase"),
        "wiener, local prior": fusing("phase", prior="local"),
        "obf": fusing("contrast", method="obf"),
        "shift_and_add": add,
    }


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
    plan = misr.plan_fusion(views, upsample=UPSAMPLE, device="cpu")
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
    turned = {name: math.pi / 2 - value if name[:3] == "phi" else value for name, value in ABERRATIONS.items()}
    return Kept.from_dataset4d(
        dataset,
        energy=ENERGY,
        semiangle_cutoff=SEMIANGLE,
        aberration_coefs=turned,
        rotation_angle=ROTATION,
        force_fitted_origin=(counts.shape[2] // 2, counts.shape[3] // 2),
        verbose=False,
    )


def quantem_image(made: Any, kernel: str, *, batch: int | None = _BATCHES[0], **options: Any) -> np.ndarray:
    """One reconstruction."""
    options |= {"upsampling_factor": UPSAMPLE, "max_batch_size": batch, "verbose": False}
    return made.reconstruct(deconvolution_kernel=kernel, **options).obj


def quantem_images(data: dict[str, np.ndarray], *, grids: bool = True) -> dict[str, np.ndarray]:
    """An image for each kernel and each choice of the grid (or its first alone), named ``kernel|choice``."""
    made = quantem_reconstruction(data)
    made.keep = True
    images, noise = {}, math.nan
    for kernel, grid in GRIDS.items():
        for choice in grid if grids else grid[:1]:
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


def start_worker(library: str, python: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run one worker to its end; its report."""
    folder = Path(job["folder"])
    (folder / "job.json").write_text(json.dumps(job))
    environment = dict(os.environ)
    if library == "quantem":
        environment.pop("PYTHONPATH", None)  # ours has another NumPy
    environment |= {f"{name}_NUM_THREADS": str(job["threads"]) for name in ("OMP", "MKL", "OPENBLAS")}
    command = [str(python), __file__, library, str(folder / "job.json")]
    ended = subprocess.run(command, env=environment, check=False)
    if ended.returncode:
        raise SystemExit(
            f"{library} failed in {python} (see above): is it installed there, as the head of compare_quantem.py says?"
        )
    return json.loads((folder / f"{library}.json").read_text())


def time_lines(reports: dict[str, Any], job: dict[str, Any]) -> list[str]:
    """The times and their ratios."""
    lines = ["", f"threads: {job['threads']}; {job['files'][0]}; first call and best of {job['repeats']} later ones, s"]
    for library, report in reports.items():
        lines += [f"{library + ' ' + name:48s}{a:10.3f}{b:10.3f}" for name, (a, b) in report["times"].items()]
    ours, theirs = (reports[library]["times"] for library in ("misr", "quantem"))
    for mine in ours:
        kernel = _COUNTERPARTS.get(mine, mine.partition(",")[0])
        ratios = [theirs[kernel][i] / ours[mine][i] for i in range(2)]
        lines.append(f"ratio quantem {kernel} / misr {mine}".ljust(48) + "".join(f"{one:10.1f}" for one in ratios))
    return lines


if __name__ == "__main__":
    work(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
