"""What is known about a recorded scan, and the cube made of it; what is not known is asked for by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr._units import is_per_length, to_angstrom, to_mrad
from misr.aberrations import aberrations_of, polar_aberrations, with_aberrations
from misr.cube import CUBE_DIMS, cube_from_array, validate_cube

Pair = float | tuple[float, float]
_UNITS = dict(zip(CUBE_DIMS, ("Å", "Å", "mrad", "mrad"), strict=True))
_EXAMPLES = {"energy_eV": "300e3", "scan_step_A": "1.0", "det_step_mrad": "0.5"}
_SET_ANYWAY = re.compile(r"history|C\d\d_A|phi\d\d_rad")


@dataclass(frozen=True)
class Axis:
    """Step with its unit, as the file has them, and the coordinate of the first pixel in pixels (if known)."""

    step: float | None = None
    units: str = ""
    first_px: float | None = None


@dataclass(frozen=True)
class Recording:
    """A 4-D array with scan axes first, and what is known about it; None is unknown."""

    data: Any
    axes: tuple[Axis, Axis, Axis, Axis] = (Axis(), Axis(), Axis(), Axis())
    energy_eV: float | None = None
    semiangle_mrad: float | None = None
    semiangle_px: float | None = None
    rotation_deg: float | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


def positive(value: Any) -> float | None:
    """A positive finite number, or None: 0 is how many programs write "unknown"."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def axis_of(step: Any, units: Any, offset: Any = None) -> Axis:
    number = positive(step)
    text = units.decode("utf-8", "replace") if isinstance(units, bytes) else str(units or "")
    first = None if number is None or not offset else float(offset) / number
    return Axis(number, text, first)


def four_axes(shape: tuple[int, ...], where: str) -> None:
    """Complain about anything but four axes, and say how to go on."""
    if len(shape) != 4:
        raise ValueError(
            f"{where} holds a {len(shape)}-D array of shape {shape}: a 4D-STEM scan has four axes (scan_y, scan_x, "
            "det_y, det_x). If these are frames of a scan, load them and give "
            "misr.cube_from_array(frames.reshape(scan_y, scan_x, *frames.shape[1:]), ...)"
        )


def plain(value: Any) -> Any:
    """An attribute as Python's own number, string or list."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def own_cube(cube: xr.DataArray, given: dict[str, Any], where: str) -> xr.DataArray:
    """A saved cube, with what was given put over what was saved."""
    for quantity, dims in (("scan_step_A", CUBE_DIMS[:2]), ("det_step_mrad", CUBE_DIMS[2:])):
        for dim, step in zip(dims, _pair(given.get(quantity)) or (), strict=False):
            cube = _placed(cube, dim, step, None)
    for name in ("energy_eV", "semiangle_mrad", "dose_e_per_A2", "rotation_deg"):
        if name in given:
            cube.attrs[name] = float(given[name])
    if "energy_eV" not in cube.attrs:
        _ask_for(["energy_eV"], where, "read_cube")
    if "aberrations" in given:
        cube = with_aberrations(cube, given["aberrations"])
    if given:
        cube.attrs["history"] = append_history(cube.attrs, "read_cube", file=where, **_for_history(given))
    validate_cube(cube, counts=False)
    return cube


def cube_from_recording(found: Recording, given: dict[str, Any], where: str, function: str) -> xr.DataArray:
    """A cube from what the file says and what was given, which goes first; asks for what neither does."""
    energy = given.get("energy_eV", found.energy_eV)
    scan = _pair(given.get("scan_step_A")) or _both(_scan_step(axis) for axis in found.axes[:2])
    det = _pair(given.get("det_step_mrad")) or _both(_det_step(axis, energy) for axis in found.axes[2:])
    semiangle = given.get("semiangle_mrad", found.semiangle_mrad)
    if semiangle is None and found.semiangle_px is not None and det is not None:
        semiangle = found.semiangle_px * det[0]
    if energy is None or scan is None or det is None:
        _ask_for(_missing(found, energy, scan, det), where, function, found.axes)
    cube = cube_from_array(
        found.data,
        scan_step_A=scan,
        det_step_mrad=det,
        energy_eV=energy,
        semiangle_mrad=semiangle,
        dose_e_per_A2=given.get("dose_e_per_A2", found.attrs.get("dose_e_per_A2")),
        rotation_deg=given.get("rotation_deg", found.rotation_deg or 0.0),
        aberrations=given.get("aberrations", aberrations_of(xr.DataArray(0, attrs=dict(found.attrs)))),
    )
    cube = _on_own_origin(cube, found.axes)
    extra = {name: value for name, value in found.attrs.items() if not _SET_ANYWAY.fullmatch(name)}
    cube.attrs = {**extra, **cube.attrs}
    lines = [str(found.attrs.get("history", "")), cube.attrs["history"]]
    before = {"history": "\n".join(line for line in lines if line)}
    cube.attrs["history"] = append_history(before, function, file=where, **_for_history(given))
    return cube


def _missing(found: Recording, energy: Any, scan: Any, det: Any) -> list[str]:
    """Names of what must be given; not of what follows from the energy once that is given, nor the semi-angle."""
    waits = energy is None and all(axis.step and is_per_length(axis.units) for axis in found.axes[2:])
    known = {
        "energy_eV": energy is not None,
        "scan_step_A": scan is not None,
        "det_step_mrad": det is not None or waits,
    }
    return [name for name, is_known in known.items() if not is_known]


def _on_own_origin(cube: xr.DataArray, axes: tuple[Axis, ...]) -> xr.DataArray:
    for dim, axis, size in zip(CUBE_DIMS, axes, cube.shape, strict=True):
        first = axis.first_px
        # an optic axis outside the detector, or in its very corner, is none: that is where pixels are counted from
        if first is not None and (dim in CUBE_DIMS[:2] or 1 - size < first < 0):
            cube = _placed(cube, dim, float(cube[dim][1] - cube[dim][0]), first)
    return cube


def _both(steps: Iterable[float | None]) -> tuple[float, float] | None:
    first, second = steps
    return None if first is None or second is None else (first, second)


def _pair(value: Pair | None) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = np.broadcast_to(np.asarray(value, dtype=float), (2,))
    if not (np.all(np.isfinite(pair)) and np.all(pair > 0)):
        raise ValueError(f"a step of {value} must be one positive number, or two as (y, x)")
    return float(pair[0]), float(pair[1])


def _scan_step(axis: Axis) -> float | None:
    return None if axis.step is None else to_angstrom(axis.step, axis.units)


def _det_step(axis: Axis, energy_eV: float | None) -> float | None:
    return None if axis.step is None else to_mrad(axis.step, axis.units, energy_eV=energy_eV)


def _ask_for(missing: list[str], where: str, function: str, axes: tuple[Axis, ...] = ()) -> NoReturn:
    wish = ", ".join(f"{name}={_EXAMPLES[name]}" for name in missing)
    notes = []
    for name, pair, what in (("scan_step_A", axes[:2], "scan"), ("det_step_mrad", axes[2:], "detector")):
        units = sorted({axis.units for axis in pair if axis.units and axis.step is not None})
        if name in missing and units:
            notes.append(f"its {what} axes are in {', '.join(map(repr, units))}")
    aside = f" ({'; '.join(notes)})" if notes else ""
    raise ValueError(f"{where} gives no {', '.join(missing)}{aside}: pass {function}(..., {wish})")


def _placed(cube: xr.DataArray, dim: str, step: float, first_px: float | None) -> xr.DataArray:
    """The cube with a new coordinate; scan from 0 and detector about its middle if the first pixel is not given."""
    size = cube.sizes[dim]
    if first_px is None:
        first_px = 0.0 if dim in CUBE_DIMS[:2] else -(size - 1) / 2
    return cube.assign_coords({dim: (dim, step * (first_px + np.arange(size)), {"units": _UNITS[dim]})})


def _for_history(given: dict[str, Any]) -> dict[str, Any]:
    polar = {"aberrations": polar_aberrations(given["aberrations"])} if "aberrations" in given else {}
    return {**given, **polar}
