"""The tidy table: one row for each cell, columns with units, in memory, as zarr and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.benchmark.settings import BenchmarkSettings

__all__ = ["collect_table", "read_benchmark", "save_table", "table_from_rows"]

_WORDS = (
    "specimen", "kind", "method", "status", "error", "resolution_status", "half_map_resolution_status",
    "half_map_error", "warnings", "chosen", "versions", "finished", "cell",
)  # fmt: skip
_NUMBERS = {
    "dose_e_per_A2": "e/Å²",
    "ring_width": "1/Å",
    "resolution_A": "Å",
    "resolution_low_A": "Å",
    "resolution_high_A": "Å",
    "aligned_resolution_A": "Å",
    "half_map_resolution_A": "Å",
    "half_map_resolution_low_A": "Å",
    "half_map_resolution_high_A": "Å",
    "correlation": "1",
    "ssim": "1",
    "psnr_dB": "dB",
    "shift_y_A": "Å",
    "shift_x_A": "Å",
    "seconds": "s",
    "search_seconds": "s",
    "peak_memory_MiB": "MiB",
    "extra_memory_MiB": "MiB",
}
_CURVES = {"frequency": "1/Å", "frc_truth": "1", "frc_half": "1"}
_ABOUT = {
    "resolution_A": "FRC against truth 0.5, as the image lies; inf: nothing resolved",
    "aligned_resolution_A": "the same with the image's shift to the truth taken off, where that is beyond chance",
    "half_map_resolution_A": "half-map FRC, half-bit",
    "seconds": "one image of the whole cube",
    "search_seconds": "spent on choosing settings before that",
    "peak_memory_MiB": "resident memory of the whole process at its highest",
    "extra_memory_MiB": "what the method added to it",
}


def table_from_rows(rows: list[dict[str, Any]], *, attrs: Mapping[str, Any] | None = None) -> xr.Dataset:
    """A table from rows, as `run_benchmark` saves them.

    Parameters
    ----------
    rows : list of dict
        Each with ``specimen``, ``method``, ``dose_e_per_A2`` (e/Å²), ``seed`` and whatever was measured; what a row
        lacks is empty or NaN.
    attrs : mapping, optional
        Of the table.

    Returns
    -------
    xarray.Dataset
        One variable for each column over ``row``, numbers with units; curves over ``("row", "ring")``, NaN where a
        row has fewer rings.

    Raises
    ------
    ValueError
        If there is no row, or one lacks what it is about.

    Examples
    --------
    >>> row = {"specimen": "a", "method": "tcbf", "dose_e_per_A2": 100, "seed": 0, "resolution_A": 3.0}
    >>> table = table_from_rows([row])
    >>> float(table.resolution_A[0]), table.resolution_A.attrs["units"], str(table.status[0].values)
    (3.0, 'Å', 'done')
    """
    if not rows:
        raise ValueError("there is no row: nothing of this benchmark is finished yet")
    for row in rows:
        missing = [name for name in ("specimen", "method", "dose_e_per_A2", "seed") if name not in row]
        if missing:
            raise ValueError(f"a row lacks {missing}: each says what it is about")
    columns: dict[str, Any] = {}
    for name in _WORDS:
        words = [str(row.get(name, "done" if name == "status" else "")) for row in rows]
        columns[name] = ("row", np.asarray(words))
    for name, units in _NUMBERS.items():
        values = np.asarray([_number(row.get(name)) for row in rows])
        about = {"long_name": _ABOUT[name]} if name in _ABOUT else {}
        columns[name] = ("row", values, {"units": units} | about)
    columns["seed"] = ("row", np.asarray([int(row["seed"]) for row in rows]))
    columns["shift_found"] = ("row", np.asarray([bool(row.get("shift_found")) for row in rows]))
    rings = max((len(row.get("curves", {}).get("frequency", ())) for row in rows), default=0)
    for name, units in _CURVES.items() if rings else ():
        values = np.full((len(rows), rings), np.nan)
        for number, row in enumerate(rows):
            curve = row.get("curves", {}).get(name, ())
            values[number, : len(curve)] = curve
        columns[name] = (("row", "ring"), values, {"units": units})
    return xr.Dataset(columns, attrs=dict(attrs or {}))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def collect_table(folder: Path, settings: BenchmarkSettings) -> xr.Dataset:
    """The cells of these settings that are finished; ``attrs["missing"]`` says how many are not."""
    rows, missing = [], 0
    for cell in settings.cells():
        file = folder / "cells" / f"{cell.name}.json"
        if file.is_file():
            rows.append(json.loads(file.read_text(encoding="utf-8")) | {"cell": cell.name})
        else:
            missing += 1
    attrs = {"preset": settings.preset, "missing": missing, "settings": json.dumps(settings.as_dict())}
    history = {"preset": settings.preset, "rows": len(rows), "missing": missing}
    return table_from_rows(rows, attrs=attrs | {"history": append_history({}, "run_benchmark", **history)})


def save_table(table: xr.Dataset, folder: Path) -> None:
    """As ``table.zarr`` (everything) and ``table.csv`` (without the curves), each put in place when it is whole."""
    from misr._writers import replacing
    from misr.io import save_result

    save_result(table, folder / "table.zarr")
    with replacing(folder / "table.csv") as temporary:
        temporary.write_text(_csv(table), encoding="utf-8", newline="")


def _csv(table: xr.Dataset) -> str:
    names = ["specimen", "method", "dose_e_per_A2", "seed", "status"]
    names += [str(name) for name in table if table[name].dims == ("row",) and name not in names]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for number in range(table.sizes["row"]):
        values = (table[name].values[number] for name in names)
        writer.writerow([f"{value:.8g}" if isinstance(value, float) else value for value in values])
    return text.getvalue()


def read_benchmark(folder: str | Path) -> xr.Dataset:
    """The table of a folder, finished or not.

    Parameters
    ----------
    folder : path
        Of `run_benchmark` or ``misr benchmark``.

    Returns
    -------
    xarray.Dataset
        Over ``row``: ``specimen``, ``method``, ``dose_e_per_A2``, ``seed``; ``status`` ("done", "failed",
        "not available", or "limit" for the linear limit's rows) with ``error``; ``resolution_A`` (FRC against truth
        0.5; inf: nothing resolved), its 95 % interval and status; ``aligned_resolution_A``; ``half_map_resolution_A``
        (half-bit); ``ring_width``, one for all methods on a specimen; ``correlation``, ``ssim``, ``psnr_dB``;
        ``seconds``, ``search_seconds``, ``peak_memory_MiB``, ``extra_memory_MiB``; ``chosen`` and ``versions``
        (JSON); the curves ``frc_truth`` and ``frc_half`` over ``("row", "ring")`` at ``frequency``.
        ``attrs["missing"]`` cells are not there yet.

    Raises
    ------
    FileNotFoundError
        If the folder holds no benchmark.
    ValueError
        If nothing of it is finished.

    Examples
    --------
    >>> read_benchmark("nowhere")
    Traceback (most recent call last):
        ...
    FileNotFoundError: nowhere holds no benchmark (no settings.json): run misr benchmark first
    """
    from misr.benchmark.running import read_settings

    return collect_table(Path(folder), read_settings(folder))
