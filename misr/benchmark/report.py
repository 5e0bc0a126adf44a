"""The report: one HTML page with everything in it, settings, fairness, figures, ratios, failures, the whole table."""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from misr.benchmark.fairness import fairness_notes
from misr.benchmark.methods import METHODS
from misr.benchmark.ratio import dose_ratio
from misr.benchmark.settings import LIMITS, BenchmarkSettings, Specimen

__all__ = ["ratio_words", "table_words", "write_report"]

_SHOWN_DOSES = (100.0, 1000.0)
_RATIO_RESOLUTIONS = (5.0, 4.0, 3.0, 2.5, 2.0, 1.7, 1.5, 1.3)
_COSTS = ("seconds", "search_seconds", "extra_memory_MiB")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; margin: .6em 0; } caption { text-align: left; color: #555; }
td, th { border: 1px solid #ddd; padding: .2em .55em; text-align: right; vertical-align: top; }
td:first-child, th:first-child, .words td, .words th { text-align: left; }
th { background: #f3f3f3; white-space: nowrap; } .bad { color: #b00000; } .quiet { color: #666; }
.figures td { white-space: nowrap; }
img, svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; } code { font-size: 12px; }
"""


def write_report(table: xr.Dataset, folder: str | Path) -> Path:
    """Write ``report.html`` beside the results.

    Parameters
    ----------
    table : xarray.Dataset
        From `misr.benchmark.read_benchmark`.
    folder : path
        Of the benchmark: the images are read from there.

    Returns
    -------
    pathlib.Path
        The page. It needs no network and no other file.

    Raises
    ------
    ValueError
        If the table does not carry its settings.

    Examples
    --------
    >>> write_report(read_benchmark("misr-benchmark"), "misr-benchmark")  # doctest: +SKIP
    """
    from misr._writers import replacing

    if "settings" not in table.attrs:
        raise ValueError("the table does not carry its settings: take the one of misr.benchmark.read_benchmark")
    settings = BenchmarkSettings.from_dict(json.loads(table.attrs["settings"]))
    path = Path(folder) / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(_page(table, settings, Path(folder)), encoding="utf-8")
    return path


def _page(table: xr.Dataset, settings: BenchmarkSettings, folder: Path) -> str:
    from misr.benchmark.drawing import curves_figure, inline_svg

    parts = [
        f"<h1>Resolution against dose, preset “{_safe(settings.preset)}”</h1>",
        _state(table),
        "<h2>Resolution against dose</h2>",
        f'<div class="wide">{inline_svg(curves_figure(table))}</div>',
        "<p class=quiet>FRC against truth 0.5. Lines: mean over seeds; dots: each seed; crosses at the bottom: "
        "failures.</p>",
        _resolution_tables(table, settings),
        "<h2>Dose ratio at equal resolution</h2>",
        _ratio_tables(table, settings),
        "<h2>Images</h2>",
        *_images(table, settings, folder),
        "<h2>Failures and what is missing</h2>",
        _failures(table),
        "<h2>Time and memory</h2>",
        _costs(table),
        "<h2>Fairness</h2>",
        "<ul>" + "".join(f"<li>{_safe(line)}</li>" for line in fairness_notes(table)) + "</ul>",
        "<h2>Settings</h2>",
        _settings(table, settings),
        "<h2>All numbers</h2>",
        _everything(table),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>misr benchmark</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _safe(text: Any) -> str:
    return html.escape(str(text))


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "", *, kind: str = "") -> str:
    """An HTML table; what is given is escaped. ``kind`` "figures" breaks no cell, "words" aligns left."""
    lines = [f"<caption>{_safe(caption)}</caption>"] if caption else []
    lines.append("<tr>" + "".join(f"<th>{_safe(cell)}</th>" for cell in head) + "</tr>")
    lines += ["<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f'<div class="wide {kind}"><table>{"".join(lines)}</table></div>'


def _state(table: xr.Dataset) -> str:
    status = table["status"].values
    failed, missing = int(np.sum(status == "failed")), int(table.attrs.get("missing", 0))
    words = f"{int(np.sum(status == 'done'))} reconstructions, {failed} failed, {missing} not run yet."
    mixed = len({str(one) for one in table["versions"].values if one})
    note = f" The cells were computed with {mixed} different sets of versions." if mixed > 1 else ""
    return f'<p class="{"bad" if failed or missing or note else "quiet"}">{_safe(words + note)}</p>'


def _label(name: str) -> str:
    return METHODS[name].label if name in METHODS else name


def _mean_words(values: np.ndarray, status: np.ndarray) -> str:
    """Of the seeds: mean resolution and half their range, or in how many nothing was resolved."""
    if values.size == 0:
        return "–"
    bad = ~np.isin(status, ("done", "limit"))
    if bad.any():
        kind = "failed" if "failed" in status else str(status[bad][0])
        return kind if bad.all() else f"{kind} {bad.sum()} of {bad.size}"
    finite = np.isfinite(values)
    if not finite.any():
        return "nothing"
    mean = 1 / np.mean(1 / values[finite])
    words = f"{mean:.2f}" + (f" ± {np.ptp(values[finite]) / 2:.2f}" if finite.sum() > 1 else "")
    return words if finite.all() else f"{words} ({finite.sum()} of {finite.size})"


def table_words(table: xr.Dataset) -> str:
    """Resolution against truth by method and dose as text, one block for each specimen.

    Parameters
    ----------
    table : xarray.Dataset
        From `misr.benchmark.read_benchmark`.

    Returns
    -------
    str
        Ready to print.

    Examples
    --------
    >>> from misr.benchmark import table_from_rows
    >>> row = {"specimen": "glass", "method": "tcbf", "dose_e_per_A2": 100, "seed": 0, "resolution_A": 3.0}
    >>> print(table_words(table_from_rows([row])))
    glass: FRC against truth 0.5, Å
    e/Å²                                            100
    tcBF (shift_and_add)                           3.00
    """
    blocks = []
    doses = np.unique(table["dose_e_per_A2"].values)
    for specimen in dict.fromkeys(table["specimen"].values.tolist()):
        here = table["specimen"].values == specimen
        lines = [f"{specimen}: FRC against truth 0.5, Å", f"{'e/Å²':40}" + "".join(f"{dose:>11g}" for dose in doses)]
        for name in dict.fromkeys(table["method"].values[here].tolist()):
            at = [here & (table["method"].values == name) & (table["dose_e_per_A2"].values == dose) for dose in doses]
            words = [_mean_words(table["resolution_A"].values[one], table["status"].values[one]) for one in at]
            words = [word.partition(" ±")[0].replace("not available", "n/a") for word in words]
            lines.append(f"{_label(name):40}" + "".join(f"{word:>11}" for word in words))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _resolution_tables(table: xr.Dataset, settings: BenchmarkSettings) -> str:
    """Against the truth, and of half maps to unfold."""
    parts = []
    for specimen in settings.specimens:
        parts.append(_resolution_table(table, settings, specimen, "resolution_A", "FRC against truth 0.5"))
        half = _resolution_table(table, settings, specimen, "half_map_resolution_A", "half maps, half-bit")
        parts.append(f"<details><summary>{_safe(specimen.name)}: half maps</summary>{half}</details>")
    return "\n".join(parts)


def _resolution_table(table: xr.Dataset, settings: BenchmarkSettings, specimen: Specimen, value: str, what: str) -> str:
    of_it = table["specimen"].values == specimen.name
    width = table["ring_width"].values[of_it]
    width = width[np.isfinite(width)]
    rows = []
    for name in (*LIMITS, *settings.methods):
        here = of_it & (table["method"].values == name)
        at = [here & (table["dose_e_per_A2"].values == dose) for dose in settings.doses]
        rows.append([_label(name), *(_mean_words(table[value].values[one], table["status"].values[one]) for one in at)])
    ring = f"rings of {width[0]:.3g} 1/Å" if width.size else "not run yet"
    caption = f"{specimen.label}: resolution in Å ({what}, {ring}), mean ± half the range of the seeds"
    return html_table(["e/Å²", *(f"{dose:g}" for dose in settings.doses)], rows, caption, kind="figures")


def ratio_words(ratio: xr.Dataset, specimen: str, resolution: float) -> str:
    """One dose ratio in words: "4.1 (3.2 to 5.0)", "≥ 10 (8 to ∞)", "≤ 0.3", "–" where the doses do not tell.

    Parameters
    ----------
    ratio : xarray.Dataset
        From `misr.benchmark.dose_ratio`.
    specimen : str
        Which.
    resolution : float
        Å.

    Returns
    -------
    str
        With the interval, open ends as 0 and ∞; of one seed there is none.

    Examples
    --------
    >>> ratio_words(ratio, "amorphous", 3.0)  # doctest: +SKIP
    '4.1 (3.2 to 5.0)'
    """
    one = ratio.sel(specimen=specimen, resolution=resolution)
    status, value = str(one["status"].values), float(one["ratio"])
    if status == "unknown":
        return "–"
    low, high = float(one["ratio_low"]), float(one["ratio_high"])
    ends = f" ({low:.2g} to {'∞' if math.isinf(high) else f'{high:.2g}'})" if int(one["seeds"]) > 1 else ""
    if status == "between":
        least, most = float(one["least"]), float(one["most"])
        return f"{least:.2g} to {most:.2g}" + (ends if (low, high) != (least, most) else "")
    return f"{ {'at least': '≥ ', 'at most': '≤ '}.get(status, '') }{value:.2g}{ends}"


def _ratio_tables(table: xr.Dataset, settings: BenchmarkSettings) -> str:
    """Ours against each reference, and everything against the limit."""
    there = set(table["method"].values[np.isin(table["status"].values, ("done", "limit"))].tolist())
    ours = [name for name in ("fuse_linear", "fuse_linear_local", "fuse_cnn") if name in there]
    others = [name for name in settings.methods if not name.startswith(("fuse", "raw"))]
    others = [name for name in (*others, *LIMITS) if name in there]
    parts = [
        "<p>How many times fewer electrons the first needs than the second to reach a resolution; in brackets the "
        "interval over seeds. “≥” and “≤”: one of the two gets there at the lowest dose already, or at none, so the "
        "doses give a bound only. “–”: the doses do not tell.</p>"
    ]
    interval = ""
    for mine in ours:
        for other in others:
            found = dose_ratio(table, mine, other, resolutions_A=_RATIO_RESOLUTIONS)
            interval = str(found.attrs["interval"])
            rows = [
                [name, *(ratio_words(found, name, resolution) for resolution in _RATIO_RESOLUTIONS)]
                for name in found["specimen"].values.tolist()
            ]
            if all(cell == "–" for row in rows for cell in row[1:]):
                continue
            head = ["specimen", *(f"{resolution:g} Å" for resolution in _RATIO_RESOLUTIONS)]
            parts.append(html_table(head, rows, f"{_label(mine)} against {_label(other)}", kind="figures"))
    parts.append(f"<p class=quiet>Interval: {_safe(interval)}.</p>" if interval else "<p>Nothing to compare yet.</p>")
    return "\n".join(parts)


def _images(table: xr.Dataset, settings: BenchmarkSettings, folder: Path) -> Iterable[str]:
    from misr.benchmark.drawing import images_figure, inline_png
    from misr.benchmark.scenes import scene_path

    doses = [dose for dose in _SHOWN_DOSES if dose in settings.doses] or [settings.doses[-1]]
    for specimen in settings.specimens:
        file = scene_path(folder, settings, specimen, settings.seeds[0])
        if not file.is_file():
            continue
        with xr.open_dataset(file, engine="h5netcdf") as scene:
            truth = scene["truth"].load()
        for dose in doses:
            yield f"<p><b>{_safe(specimen.label)}, {dose:g} e/Å²</b>; each image has its own grey scale</p>"
            yield inline_png(images_figure(folder, table, specimen.name, dose, truth))


def _failures(table: xr.Dataset) -> str:
    bad = ~np.isin(table["status"].values, ("done", "limit"))
    halves = table["half_map_error"].values != ""
    rows = []
    for number in np.flatnonzero(bad | halves):
        name = str(table["method"].values[number])
        text = table["error"].values[number] or f"half maps: {table['half_map_error'].values[number]}"
        dose, seed = table["dose_e_per_A2"].values[number], table["seed"].values[number]
        status = table["status"].values[number]
        rows.append([_label(name), table["specimen"].values[number], f"{dose:g}", seed, status, text])
    missing = int(table.attrs.get("missing", 0))
    waiting = f"<p>{missing} cells are not run yet.</p>" if missing else ""
    if not rows:
        return f"<p>No failures.</p>{waiting}"
    return waiting + html_table(["method", "specimen", "e/Å²", "seed", "status", "what was said"], rows, kind="words")


def _costs(table: xr.Dataset) -> str:
    rows = []
    for name in dict.fromkeys(table["method"].values.tolist()):
        here = (table["method"].values == name) & (table["status"].values == "done")
        if not here.any():
            continue
        middle = [np.nanmedian(table[column].values[here]) for column in _COSTS]
        peak = np.nanmax(table["peak_memory_MiB"].values[here])
        note = METHODS[name].note if name in METHODS else ""
        rows.append([_label(name), f"{middle[0]:.2f}", f"{middle[1]:.1f}", f"{middle[2]:.0f}", f"{peak:.0f}", note])
    head = ["method", "s per image (median)", "s searching", "MiB added (median)", "MiB of the process (most)", "note"]
    return html_table(head, rows, kind="words")


def _settings(table: xr.Dataset, settings: BenchmarkSettings) -> str:
    rows: list[Sequence[Any]] = [(name, json.dumps(value)) for name, value in settings.optics.items()]
    rows += [(f"specimen {one.name}", json.dumps({"kind": one.kind, **one.options})) for one in settings.specimens]
    rows += [("doses (e/Å²)", settings.doses), ("seeds", settings.seeds)]
    rows += [
        (
            "ptychography, default",
            json.dumps(dict(settings.ptychography)) if settings.ptychography else "misr's defaults",
        )
    ]
    rows += [
        (
            "ptychography, values tried",
            json.dumps(dict(settings.ptychography_search)) if settings.ptychography_search else "all that misr tries",
        )
    ]
    if any(name.startswith("quantem") for name in settings.methods):
        from misr.benchmark.other_python import QUANTEM_CHOICES

        rows += [("quantem, choices tried (its defaults first)", json.dumps([dict(one) for one in QUANTEM_CHOICES]))]
    rows += _found_settings(table)
    rows += [("versions", one) for one in sorted({str(one) for one in table["versions"].values if one})]
    return html_table(["what", "value"], rows, kind="words")


def _found_settings(table: xr.Dataset) -> list[Sequence[Any]]:
    """What the searches chose, and for how many cubes."""
    rows: list[Sequence[Any]] = []
    for name in dict.fromkeys(table["method"].values.tolist()):
        chosen = Counter(str(one) for one in table["chosen"].values[table["method"].values == name] if one)
        if name.endswith(("_tuned", "_oracle")):
            of = chosen.total()
            rows += [(f"{_label(name)}: {number} of {of} cubes", one) for one, number in chosen.most_common()]
    return rows


def _everything(table: xr.Dataset) -> str:
    names = ["specimen", "method", "dose_e_per_A2", "seed", "status", "resolution_A", "aligned_resolution_A",
             "half_map_resolution_A", "correlation", "ssim", "psnr_dB", "seconds"]  # fmt: skip
    rows = [
        [f"{value:.4g}" if isinstance(value, float) else value for value in (table[name].values[i] for name in names)]
        for i in range(table.sizes["row"])
    ]
    return f"<details><summary>{len(rows)} rows</summary>{html_table(names, rows)}</details>"
