"""quantem in an environment of its own: counts go to its Python in a file, and images come back in one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr.aberrations import aberrations_of, polar_aberrations
from misr.bright_field import bright_field_disk
from misr.cube import detector_step, scan_step

__all__ = ["QUANTEM_CHOICES", "quantem_image", "quantem_images"]

# its defaults first; "noise" and "ridge" as `quantem_images` has them
QUANTEM_CHOICES: tuple[Mapping[str, Any], ...] = (
    {"kernel": "wiener"},
    {"kernel": "wiener", "noise": 0.25},
    {"kernel": "wiener", "noise": 4.0},
    {"kernel": "wiener", "ridge": 1.0},
    {"kernel": "obf"},
    {"kernel": "obf", "ridge": 1.0},
    {"kernel": "parallax"},
)
_PATIENCE_S = 1800.0
_SAID = 600  # last letters of what a failed process said


def quantem_image(
    cube: xr.DataArray, *, choice: Mapping[str, Any], python: Path, upsample: int, like: xr.DataArray
) -> xr.DataArray:
    """One image of quantem's DirectPtychography: see `quantem_images`.

    Examples
    --------
    >>> options = {"python": "quantem-env/bin/python", "upsample": 4, "like": truth}  # doctest: +SKIP
    >>> quantem_image(cube, choice={"kernel": "wiener"}, **options)  # doctest: +SKIP
    """
    return quantem_images(cube, choices=[choice], python=python, upsample=upsample, like=like)[0]


def quantem_images(
    cube: xr.DataArray, *, choices: Sequence[Mapping[str, Any]], python: Path, upsample: int, like: xr.DataArray
) -> list[xr.DataArray]:
    """Images of quantem's DirectPtychography of one cube, given the true optics.

    Parameters
    ----------
    cube : xarray.DataArray
        Counts, aberrations and rotation in its attrs.
    choices : sequence of mapping
        Each with ``kernel`` ("wiener", "obf", "parallax") and, if they are not quantem's own, ``ridge`` and ``noise``
        (a factor on the noise variance that it estimates by itself).
    python : path
        Python of an environment with quantem; it needs no misr.
    upsample : int
        Pixels per scan step.
    like : xarray.DataArray
        The pixels that the images have.

    Returns
    -------
    list of xarray.DataArray
        On ``like``; ``attrs["seconds"]`` is that reconstruction alone, without the start of the process.

    Raises
    ------
    RuntimeError
        If the process fails: with the end of what it said.

    Examples
    --------
    >>> options = {"python": "quantem-env/bin/python", "upsample": 4, "like": truth}  # doctest: +SKIP
    >>> quantem_images(cube, choices=QUANTEM_CHOICES, **options)  # doctest: +SKIP
    """
    polar = polar_aberrations(aberrations_of(cube))
    # its azimuth runs from the rows (y) to the columns (x), ours from x to y
    turned = {name: math.pi / 2 - value if name.startswith("phi") else value for name, value in polar.items()}
    disk = bright_field_disk(cube)
    steps = detector_step(cube)
    origin = [
        (float(disk[name]) - float(cube[dim][0])) / step
        for name, dim, step in zip(("center_y", "center_x"), ("det_y", "det_x"), steps, strict=True)
    ]
    job = {
        "energy_eV": float(cube.attrs["energy_eV"]),
        "semiangle_mrad": float(cube.attrs["semiangle_mrad"]),
        "rotation_deg": float(cube.attrs.get("rotation_deg", 0.0)),
        "aberrations": turned,
        "origin": origin,
        "scan_step_A": list(scan_step(cube)),
        "det_step_mrad": list(steps),
        "upsample": upsample,
        "choices": [dict(choice) for choice in choices],
    }
    with tempfile.TemporaryDirectory(prefix="misr-quantem-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        np.save(folder / "counts.npy", cube.values)
        _run(python, folder)
        values = np.load(folder / "images.npy")
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    if values.shape[1:] != like.shape:
        raise RuntimeError(f"quantem returned {values.shape[1:]} pixels, {like.shape} were asked for")
    coords = {dim: like[dim] for dim in ("y", "x")}
    about = {"units": "rad", "quantem_version": done["quantem_version"]}
    return [
        xr.DataArray(one.astype(float), dims=("y", "x"), coords=coords, attrs=about | {"seconds": seconds})
        for one, seconds in zip(values, done["seconds"], strict=True)
    ]


def _run(python: Path, folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    worker = Path(__file__).with_name("quantem_worker.py")
    try:
        ended = subprocess.run(
            [str(python), str(worker), str(folder)],
            env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"quantem took more than {_PATIENCE_S:g} s") from error
    if ended.returncode:
        raise RuntimeError(f"quantem failed in its own environment: {ended.stderr.strip()[-_SAID:]}")
