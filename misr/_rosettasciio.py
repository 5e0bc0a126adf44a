"""4-D signals as RosettaSciIO's readers give them, whichever reader fits."""

from __future__ import annotations

import importlib
import logging
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from misr._recording import Recording, axis_of, four_axes, positive

_logger = logging.getLogger(__name__)

# what RosettaSciIO's readers and the libraries under them raise on files that are not what they seem
_READ_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    ImportError,
    SyntaxError,
    struct.error,
    zlib.error,
)


def plugins_for(extension: str) -> list[dict[str, Any]]:
    """RosettaSciIO's plugins for an extension (without the dot)."""
    from rsciio import IO_PLUGINS

    return [plugin for plugin in IO_PLUGINS if extension in {name.lower() for name in plugin["file_extensions"]}]


def plugin_extensions() -> set[str]:
    """Every extension that RosettaSciIO reads."""
    from rsciio import IO_PLUGINS

    return {name.lower() for plugin in IO_PLUGINS for name in plugin["file_extensions"]}


def read_rosettasciio(path: Path, *, lazy: bool) -> Recording:
    """The first 4-D signal that one of RosettaSciIO's readers for this extension finds."""
    complaints: list[str] = []
    shapes: list[tuple[int, ...]] = []
    errors: tuple[type[Exception], ...] = (*_READ_ERRORS, *_rosettasciio_errors())
    for plugin in plugins_for(path.suffix[1:].lower()):
        try:
            signals = _signals(plugin["api"], path, lazy)
        except errors as error:
            complaints.append(f"{plugin['name']}: {type(error).__name__}: {error}")
            continue
        for signal in signals:
            recording = _rosettasciio_recording(signal, path)
            if recording is not None:
                return recording
            shapes.append(tuple(np.shape(signal["data"])))
    if shapes:
        four_axes(max(shapes, key=len), path.name)
    raise ValueError(
        f"{path} cannot be read; is it complete, and what its extension says? What the readers of RosettaSciIO "
        f"answered: {'; '.join(complaints) or 'nothing'}"
    )


def _rosettasciio_errors() -> tuple[type[Exception], ...]:
    import rsciio.exceptions

    found = vars(rsciio.exceptions).values()
    return tuple(kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))


def _signals(api: str, path: Path, lazy: bool) -> list[dict[str, Any]]:
    reader = importlib.import_module(api).file_reader
    if lazy:
        try:
            return reader(str(path), lazy=True)
        except NotImplementedError:
            _logger.info("%s: this format cannot be read lazily", path)
    return reader(str(path), lazy=False)


def _rosettasciio_recording(signal: Mapping[str, Any], path: Path) -> Recording | None:
    """One of RosettaSciIO's signals as a recording; None if it is not 4-D."""
    data, axes = signal.get("data"), list(signal.get("axes", ()))
    if data is None or len(axes) != np.ndim(data):
        return None
    axes.sort(key=lambda axis: axis.get("index_in_array") or 0)
    if len(axes) > 4:
        kept = [index for index, size in enumerate(data.shape) if size > 1]
        data, axes = data.squeeze(), [axes[index] for index in kept]
    if len(axes) != 4:
        return None
    order = _scan_first([axis.get("navigate") for axis in axes], path)
    first, second, third, fourth = (
        axis_of(axes[index].get("scale"), axes[index].get("units"), axes[index].get("offset")) for index in order
    )
    if order != [0, 1, 2, 3]:
        data = data.transpose(order)
    energy_keV = _microscope(signal, "beam_energy")
    return Recording(
        data,
        (first, second, third, fourth),
        energy_eV=None if energy_keV is None else energy_keV * 1e3,
        semiangle_mrad=_microscope(signal, "convergence_angle"),
    )


def _scan_first(navigate: list[Any], path: Path) -> list[int]:
    """Order of axes with the two navigation axes first; as they are if the file does not tell them apart."""
    scan = [index for index, flag in enumerate(navigate) if flag]
    if len(scan) in (0, 4):
        return [0, 1, 2, 3]
    if len(scan) != 2:
        raise ValueError(
            f"{path.name} has {len(scan)} navigation axes, a 4D-STEM scan has two (scan_y, scan_x): load it with "
            "RosettaSciIO or HyperSpy, transpose it, and label it with misr.cube_from_array"
        )
    return scan + [index for index in range(4) if index not in scan]


def _microscope(signal: Mapping[str, Any], name: str) -> float | None:
    """A number about the microscope, from HyperSpy's metadata tree or what the reader maps into it."""
    for kind in ("TEM", "SEM"):
        target = f"Acquisition_instrument.{kind}.{name}"
        value = positive(_branch(signal.get("metadata"), target))
        if value is not None:
            return value
        for source, entry in (signal.get("mapping") or {}).items():
            if isinstance(entry, tuple) and entry[0] == target:
                raw = _branch(signal.get("original_metadata"), source)
                value = positive(raw)
                if value is not None:
                    return positive(entry[1](raw)) if len(entry) > 1 and entry[1] is not None else value
    return None


def _branch(tree: Any, path: str) -> Any:
    """The value at a dotted path; underscores and spaces count as the same."""
    for step in path.split("."):
        if not isinstance(tree, Mapping):
            return None
        wanted = step.replace(" ", "_")
        tree = next((value for key, value in tree.items() if str(key).replace(" ", "_") == wanted), None)
    return tree
