"""Running a benchmark: simulate, fill the cells that are missing, one file each, and put the table together."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr.benchmark.measure import lost_cell, measure_cell
from misr.benchmark.methods import method_of
from misr.benchmark.scenes import make_scene, scene_path
from misr.benchmark.settings import BenchmarkSettings, Cell, attention_unet_file, preset_settings
from misr.benchmark.table import collect_table, save_table
from misr.benchmark.workers import Died, Submit, runner

__all__ = ["read_settings", "run_benchmark"]

_SETTINGS = "settings.json"


def run_benchmark(
    folder: str | Path,
    *,
    settings: BenchmarkSettings | str = "small",
    workers: int = 1,
    client: Any = None,
    quantem_python: str | Path | None = None,
    attention_unet: str | Path | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Fill a folder with the cells of a benchmark and return its table; a killed run goes on where it was.

    Parameters
    ----------
    folder : path
        Of the results; made if it does not exist. Cells that are there already, computed with the same settings, are
        kept: other doses, seeds or methods are added to them.
    settings : BenchmarkSettings or str, default "small"
        Or the name of a preset, see `preset_settings`.
    workers : int, default 1
        Processes on this machine. Each gets its share of the threads. One that dies (out of memory, most likely) costs
        its cell alone: it is recorded as failed with the reason, and tried again by the next run in the folder.
        1 works in this process.
    client : dask.distributed.Client, optional
        Instead: its workers must see the folder, and one thread each makes time and memory mean something.
    quantem_python : path, optional
        Python of an environment that has quantem; adds the method "quantem".
    attention_unet : path, optional
        Weights of the published network, written by ``misr train --preset attention_unet``; adds the method
        "attention_unet".
    progress : bool, default True
        Show a progress bar.

    Returns
    -------
    xarray.Dataset
        See `misr.benchmark.read_benchmark`. Also written to ``table.zarr`` and ``table.csv``.

    Raises
    ------
    ValueError
        For an unknown preset or method, or fewer than one worker.
    FileNotFoundError
        If there are no such weights.

    Examples
    --------
    >>> table = run_benchmark("misr-benchmark", settings="tiny")  # doctest: +SKIP
    """
    chosen = preset_settings(settings) if isinstance(settings, str) else settings
    if not (isinstance(workers, int) and workers >= 1):
        raise ValueError(f"workers={workers} must be a whole number of processes, at least 1")
    python = None if quantem_python is None else Path(quantem_python)
    if python is not None and not any(name.startswith("quantem") for name in chosen.methods):
        chosen = chosen.narrowed(methods=[*chosen.methods, "quantem", "quantem_oracle"])
    if attention_unet is not None:
        chosen = replace(chosen, attention_unet=attention_unet_file(attention_unet))
        if "attention_unet" not in chosen.methods:
            chosen = chosen.narrowed(methods=[*chosen.methods, "attention_unet"])
    for name in chosen.methods:
        method_of(name)
    path = Path(folder)
    (path / "cells").mkdir(parents=True, exist_ok=True)
    write_text(path / _SETTINGS, json.dumps(chosen.as_dict(), indent=1))
    with runner(workers, client) as run:
        lost = _simulate(path, chosen, run, progress)
        _fill(path, chosen, run, python, progress, lost)
    table = collect_table(path, chosen)
    save_table(table, path)
    return table


def read_settings(folder: str | Path) -> BenchmarkSettings:
    """The settings of the last run in a folder.

    Parameters
    ----------
    folder : path
        Of a benchmark.

    Returns
    -------
    BenchmarkSettings
        What `run_benchmark` was given.

    Raises
    ------
    FileNotFoundError
        If the folder holds no benchmark.

    Examples
    --------
    >>> read_settings("nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: nowhere holds no benchmark (no settings.json): run misr benchmark first
    """
    path = Path(folder) / _SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no benchmark (no {_SETTINGS}): run misr benchmark first")
    return BenchmarkSettings.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _simulate(path: Path, settings: BenchmarkSettings, run: Submit, progress: bool) -> dict[Path, str]:
    """Make what is missing; which of it killed its worker, and how."""
    missing = {scene_path(path, settings, *scene): scene for scene in settings.scenes()}
    tasks = {file: (path, settings, *scene) for file, scene in missing.items() if not file.exists()}
    lost = {}
    with _bar(len(tasks), "simulating", progress) as bar:
        for task, result in run(_make_scene, list(tasks.values())):
            if isinstance(result, Died):
                lost[scene_path(path, settings, *task[2:])] = f"while the specimen was simulated {result.reason}"
            bar.update()
    return lost


def _make_scene(path: Path, settings: BenchmarkSettings, *scene: Any) -> None:
    make_scene(path, settings, *scene)


def _fill(
    path: Path,
    settings: BenchmarkSettings,
    run: Submit,
    python: Path | None,
    progress: bool,
    lost: Mapping[Path, str],
) -> None:
    cells = settings.cells()
    missing = [cell for cell in cells if not _settled(path, cell)]
    scenes = {cell.name: scene_path(path, settings, cell.specimen, cell.seed) for cell in missing}
    for cell in missing:
        if scenes[cell.name] in lost:
            _save(path, cell, lost_cell(cell, path, lost[scenes[cell.name]]))
    tasks = [(cell, path, python) for cell in missing if scenes[cell.name] not in lost]
    with _bar(len(cells), "cells", progress, done=len(cells) - len(tasks)) as bar:
        for (cell, *_), result in run(_run_cell, tasks):
            said = result
            if isinstance(result, Died):
                _save(path, cell, lost_cell(cell, path, result.reason))
                said = f": failed, {result.reason}"
            bar.set_postfix_str(f"{cell.specimen.name}, {cell.dose:g} e/Å², {cell.method}{said}")
            bar.update()


def _settled(path: Path, cell: Cell) -> bool:
    """Done before; what was not available then, or lost with its worker, is tried again."""
    file = path / "cells" / f"{cell.name}.json"
    if not file.is_file():
        return False
    row = json.loads(file.read_text(encoding="utf-8"))
    return row["status"] != "not available" and not row.get("worker_died", False)


def _run_cell(cell: Cell, path: Path, python: Path | None) -> str:
    """Measure and save: the image first, so that a row never lacks it."""
    row, image = measure_cell(cell, path, quantem_python=python)
    if image is not None and cell.seed == cell.settings.seeds[0]:
        with _replacing(path / "cells" / f"{cell.name}.npy") as file, file.open("wb") as opened:
            np.save(opened, image)
    _save(path, cell, row)
    return "" if row["status"] in ("done", "limit") else f": {row['status']}"


def _save(path: Path, cell: Cell, row: Mapping[str, Any]) -> None:
    write_text(path / "cells" / f"{cell.name}.json", json.dumps(row))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    with _replacing(path) as file:
        file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _bar(total: int, what: str, progress: bool, done: int = 0) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc=what, disable=not progress, unit="cell")
