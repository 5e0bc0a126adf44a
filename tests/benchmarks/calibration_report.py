"""The table of `calibration_table` as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = ["format_report"]

Row = dict[str, Any]

_WANTED = {
    100.0: "right on at least 95 % of cubes",
    30.0: "right on at least 90 %",
    10.0: "right or not confident: confidently wrong under 1 %",
}
_SIGMA = {"C10": "C10", "C12": "C12", "phi12": "phi12", "rotation_deg": "rotation"}
_NEAR = (0.2, 20.0)  # share of C10 and degrees: further off it is another place, and error bars say nothing of it
_NOTES = """\
right |C12|: with the size of C12 in place of C12 as a vector; ±twin: rotation + 180° with C10 and C12 negated counts.
wrong!: confident and wrong. Errors are medians of absolute values, up to the twin. σ: the fit's own standard error.
s: median seconds of the fit (parallax: alignment, fit and correction)."""


def format_report(rows: list[Row]) -> str:
    """The table, the error bars' calibration, the resolution lost, and a line for each failure.

    Parameters
    ----------
    rows : list of dict
        As `calibration_table.run_cube` makes them.

    Returns
    -------
    str
        Ready to print.
    """
    parts = [_table(_HEADER, _shares(rows)), _NOTES, *_wanted(rows)]
    if any(row["method"] == "parallax" for row in rows):
        parts.append("parallax is py4DSTEM's, told the true rotation and the detector's true hand; C10 and C12 judged.")
    bars = list(_bars(rows))
    if bars:
        heading = "\nError over its own standard error, fits near the truth (20 %, 20°) up to the twin:"
        parts += [heading, _table(("dose", "value", "n", "median", "max", "over 2", "over 3"), bars)]
    lost = list(_lost(rows))
    if lost:
        heading = "\nResolution of the fused image with fitted values against true ones (FRC with the truth, 0.5):"
        parts += [heading, _table(("dose", "class", "n", "true Å", "median loss", "largest", "under 3 %"), lost)]
    failures = [_failure(row) for row in rows if _is_failure(row)]
    return "\n".join([*parts, f"\n{len(failures)} failed:", *failures])


_HEADER = (
    "dose", "method", "class", "cubes", "fits", "right", "right |C12|", "±twin", "confident", "wrong!", "C10 Å",
    "C10 σ", "C12 Å", "rot °", "s",
)  # fmt: skip


def _shares(rows: list[Row]) -> Iterable[tuple[str, ...]]:
    for dose, method in dict.fromkeys((row["dose"], row["method"]) for row in rows):
        group = [row for row in rows if (row["dose"], row["method"]) == (dose, method) and not row.get("skipped")]
        classes = list(dict.fromkeys(row["class"] for row in sorted(group, key=lambda row: row["index"] % 3)))
        for kind in [*classes, "all"]:
            some = [row for row in group if kind in ("all", row["class"])]
            own = method == "misr"
            yield (
                f"{dose:g}",
                method,
                kind,
                str(len({row["index"] for row in some})),
                str(len(some)),
                _share(some, lambda row: row["right"]),
                _share(some, lambda row: row["right_C12_size"]),
                _share(some, lambda row: row["right_twin"]) if own else "",
                _share(some, lambda row: row["confident"]) if own else "",
                _share(some, _confidently_wrong) if own else "",
                _median(some, lambda row: row["error_C10"], "{:.1f}"),
                _median(some, lambda row: row["error_C10"] / row["found_C10_stderr"], "{:.2f}") if own else "",
                _median(some, lambda row: row["error_C12_vector"], "{:.1f}"),
                _median(some, lambda row: row["error_rotation_deg"], "{:.2f}") if own else "",
                _median(some, lambda row: row["seconds"], "{:.1f}"),
            )


def _confidently_wrong(row: Row) -> bool:
    return bool(row["confident"]) and not row["right"]


def _share(rows: list[Row], test: Callable[[Row], Any]) -> str:
    return f"{100 * float(np.mean([bool(test(row)) for row in rows])):.0f} %" if rows else ""


def _median(rows: list[Row], value: Callable[[Row], float], text: str) -> str:
    found = [abs(value(row)) for row in rows if "error_C10" in row]
    return text.format(float(np.median(found))) if found else ""


def _wanted(rows: list[Row]) -> list[str]:
    doses = dict.fromkeys(row["dose"] for row in rows)
    return [f"Wanted at {dose:g} e/Å²: {_WANTED[dose]}." for dose in doses if dose in _WANTED]


def _bars(rows: list[Row]) -> Iterable[tuple[str, ...]]:
    own = [row for row in rows if row["method"] == "misr" and "error_C10" in row and _is_near(row)]
    for dose in dict.fromkeys(row["dose"] for row in own):
        some = [row for row in own if row["dose"] == dose]
        for name, word in _SIGMA.items():
            units = np.array([abs(row[f"error_{name}"]) / max(row[f"found_{name}_stderr"], 1e-9) for row in some])
            tails = [f"{100 * float(np.mean(units > limit)):.0f} %" for limit in (2, 3)]
            yield (f"{dose:g}", word, str(len(some)), f"{np.median(units):.2f}", f"{units.max():.1f}", *tails)
    if own:
        yield ("", "Gauss", "", "0.67", "", "5 %", "0 %")


def _is_near(row: Row) -> bool:
    share, degrees = _NEAR
    return abs(row["error_C10"]) <= share * abs(row["true_C10"]) and abs(row["error_rotation_deg"]) <= degrees


def _lost(rows: list[Row]) -> Iterable[tuple[str, ...]]:
    fused = [row for row in rows if "resolution_true" in row]
    for dose in dict.fromkeys(row["dose"] for row in fused):
        classes = sorted({row["class"] for row in fused})
        for kind in [*classes, "all"]:
            some = [row for row in fused if row["dose"] == dose and kind in ("all", row["class"])]
            resolved = [row for row in some if math.isfinite(row["resolution_true"])]
            losses = [row["resolution_fitted"] / row["resolution_true"] - 1 for row in resolved]
            if not losses:
                continue
            true = float(np.median([row["resolution_true"] for row in resolved]))
            percent = [f"{100 * value:.1f} %" for value in (float(np.median(losses)), max(losses))]
            under = _share(resolved, lambda row: row["resolution_fitted"] / row["resolution_true"] < 1.03)
            yield (f"{dose:g}", kind, str(len(losses)), f"{true:.2f}", *percent, under)


def _is_failure(row: Row) -> bool:
    """Wrong; where only calm errors count (below 30 e/Å²), confidently wrong; of py4DSTEM only what raised."""
    if row["method"] != "misr" or "error_C10" not in row:
        return "error_C10" not in row
    return _confidently_wrong(row) if row["dose"] < 30 else not row["right"]


def _failure(row: Row) -> str:
    where = f"{row['dose']:g} e/Å² [777, {row['index']}] draw {row['draw']} {row['class']} {row['method']}"
    if "error_C10" not in row:
        return f"{where}: {row['reason']}"
    names = (("C10", "{:.0f}"), ("C12", "{:.0f}"), ("phi12", "{:.2f}"), ("rotation_deg", "{:.1f}"))
    true = " ".join(text.format(row[f"true_{name}"]) for name, text in names)
    found = " ".join(
        text.format(row[f"found_{name}"]) + "±" + f"{row[f'found_{name}_stderr']:.2g}" for name, text in names
    )
    hand = f"hand {row['true_transposed']}→{row['found_transposed']:.0f}"
    twin = "right up to the twin" if row["right_twin"] else "wrong"
    calm = "confident" if row["confident"] else f"not confident: {row['reason']}"
    chances = f"P {row['probability']:.4g}, sign {row['sign_probability']:.4g}"
    return f"{where}: {twin}; C10 C12 phi12 rotation: true {true}, found {found}; {hand}; {chances}; {calm}"


def _table(header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    cells = [header, *lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    words = {column for column, name in enumerate(header) if name in ("method", "class", "value")}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
