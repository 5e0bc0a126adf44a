"""Running a benchmark: simulate, fill the cells that are missing, one file each, and put the table together."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr.benchmark.measure import measure_cell
from misr.benchmark.methods import method_of
from misr.benchmark.scenes import make_scene
from misr.benchmark.settings import BenchmarkSettings, Cell, preset_settings
from misr.benchmark.table import collect_table, save_table

__all__ = ["read_settings", "run_benchmark"]

_SETTINGS = "settings.json"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_benchmark(
    folder: str | Path,
    *,
    settings: BenchmarkSettings | str = "small",
    workers: int = 1,
    client: Any = None,
    quantem_python: str | Path | None = None,
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
        Processes on this machine. Each gets its share of the threads; 1 works in this process.
    client : dask.distributed.Client, optional
        Instead: its workers must see the folder, and one thread each makes time and memory mean something.
    quantem_python : path, optional
        Python of an environment that has quantem; adds the method "quantem".
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
    RuntimeError
        If a worker process dies (out of memory, most likely): what was finished is kept.

    Examples
    --------
    >>> table = run_benchmark("misr-benchmark", settings="tiny")  # doctest: +SKIP
    """
    chosen = preset_settings(settings) if isinstance(settings, str) else settings
    if not (isinstance(workers, int) and workers >= 1):
        raise ValueError(f"workers={workers} must be a whole number of processes, at least 1")
    python = None if quantem_python is None else Path(quantem_python)
    if python is not None and "quantem" not in chosen.methods:
        chosen = chosen.narrowed(methods=[*chosen.methods, "quantem"])
    for name in chosen.methods:
        method_of(name)
    path = Path(folder)
    (path / "cells").mkdir(parents=True, exist_ok=True)
    write_text(path / _SETTINGS, json.dumps(chosen.as_dict(), indent=1))
    with _runner(workers, client) as run:
        _simulate(path, chosen, run, progress)
        _fill(path, chosen, run, python, progress)
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


Submit = Callable[..., Iterator[tuple[Any, Any]]]


def _simulate(path: Path, settings: BenchmarkSettings, run: Submit, progress: bool) -> None:
    from misr.benchmark.scenes import scene_path

    missing = {scene_path(path, settings, *scene): scene for scene in settings.scenes()}
    tasks = [(path, settings, *scene) for file, scene in missing.items() if not file.exists()]
    with _bar(len(tasks), "simulating", progress) as bar:
        for _ in run(_make_scene, tasks):
            bar.update()


def _make_scene(path: Path, settings: BenchmarkSettings, *scene: Any) -> None:
    make_scene(path, settings, *scene)


def _fill(path: Path, settings: BenchmarkSettings, run: Submit, python: Path | None, progress: bool) -> None:
    cells = settings.cells()
    missing = [cell for cell in cells if not _settled(path, cell, python)]
    with _bar(len(cells), "cells", progress, done=len(cells) - len(missing)) as bar:
        for cell, failed in run(_run_cell, [(cell, path, python) for cell in missing]):
            bar.set_postfix_str(f"{cell[0].specimen.name}, {cell[0].dose:g} e/Å², {cell[0].method}{failed}")
            bar.update()


def _settled(path: Path, cell: Cell, python: Path | None) -> bool:
    """Done before; what was not available then is tried again."""
    file = path / "cells" / f"{cell.name}.json"
    if not file.is_file():
        return False
    return json.loads(file.read_text(encoding="utf-8"))["status"] != "not available"


def _run_cell(cell: Cell, path: Path, python: Path | None) -> str:
    """Measure and save: the image first, so that a row never lacks it."""
    row, image = measure_cell(cell, path, quantem_python=python)
    if image is not None and cell.seed == cell.settings.seeds[0]:
        with _replacing(path / "cells" / f"{cell.name}.npy") as file, file.open("wb") as opened:
            np.save(opened, image)
    write_text(path / "cells" / f"{cell.name}.json", json.dumps(row))
    return "" if row["status"] in ("done", "limit") else f": {row['status']}"


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


@contextlib.contextmanager
def _runner(workers: int, client: Any) -> Iterator[Submit]:
    """A function that runs tasks and yields each with its result as it ends: here, in processes, or on a cluster."""
    if client is not None:
        yield lambda function, tasks: _on_cluster(client, function, tasks)
    elif workers == 1:
        yield lambda function, tasks: ((task, function(*task)) for task in tasks)
    else:
        import multiprocessing

        with _threads_of(workers):
            # spawned: torch and its threads do not survive a fork
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            try:
                yield lambda function, tasks: _in_processes(pool, function, tasks)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _in_processes(pool: ProcessPoolExecutor, function: Callable[..., Any], tasks: Sequence[Any]) -> Iterator[Any]:
    try:
        futures: dict[Future[Any], Any] = {pool.submit(function, *task): task for task in tasks}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died, most likely for lack of memory: what was finished is kept, so run the same again "
            "with fewer workers"
        ) from error


def _on_cluster(client: Any, function: Callable[..., Any], tasks: Sequence[Any]) -> Iterator[Any]:
    from distributed import as_completed

    futures = {client.submit(function, *task, pure=False): task for task in tasks}
    try:
        for future, result in as_completed(list(futures), with_results=True):
            yield futures[future], result
    finally:
        client.cancel(list(futures))


@contextlib.contextmanager
def _threads_of(workers: int) -> Iterator[None]:
    """Child processes read their number of threads when their libraries load."""
    share = str(max(1, len(os.sched_getaffinity(0)) // workers if hasattr(os, "sched_getaffinity") else 1))
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update({name: before[name] or share for name in _THREADS})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _bar(total: int, what: str, progress: bool, done: int = 0) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc=what, disable=not progress, unit="cell")
