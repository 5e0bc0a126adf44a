"""One reconstruction by quantem, run by quantem's Python as ``quantem_worker.py FOLDER``; it never imports misr."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import numpy as np

__all__ = ["reconstruct"]


def reconstruct(folder: Path) -> None:
    """``counts.npy`` and ``job.json`` of a folder to ``image.npy`` and ``done.json``."""
    from quantem.core.datastructures import Dataset4d  # type: ignore[import-not-found]
    from quantem.diffractive_imaging.direct_ptychography import DirectPtychography  # type: ignore[import-not-found]

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    counts = np.load(folder / "counts.npy").astype(np.float32)
    start = time.perf_counter()
    dataset = Dataset4d.from_array(
        counts, sampling=(*job["scan_step_A"], *job["det_step_mrad"]), units=("A", "A", "mrad", "mrad")
    )
    made = DirectPtychography.from_dataset4d(
        dataset,
        energy=job["energy_eV"],
        semiangle_cutoff=job["semiangle_mrad"],
        aberration_coefs=job["aberrations"],
        rotation_angle=job["rotation_deg"],
        force_fitted_origin=tuple(job["origin"]),
        verbose=False,
    )
    image = made.reconstruct(deconvolution_kernel="wiener", upsampling_factor=job["upsample"], verbose=False).obj
    done = {"seconds": time.perf_counter() - start, "quantem_version": importlib.metadata.version("quantem")}
    np.save(folder / "image.npy", np.asarray(image))
    (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    reconstruct(Path(sys.argv[1]))
