"""What a reference image says of itself, and what its options may not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr._py4dstem import Setup, import_py4dstem
from misr.aberrations import with_aberrations
from misr.cube import image_from_array, scan_step

_CARRIED = ("energy_eV", "semiangle_mrad", "dose_e_per_A2", "period_A")


def label(
    image: xr.DataArray,
    cube: xr.DataArray,
    setup: Setup,
    polar: Mapping[str, float],
    operation: str,
    arguments: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any] | None],
) -> xr.DataArray:
    """The attrs of a reference image: optics, method, version, and one more line of history."""
    carried = {name: setup.cube.attrs[name] for name in _CARRIED if name in setup.cube.attrs}
    image.attrs = with_aberrations(image, polar, rotation_deg=setup.rotation_deg).attrs | carried
    image.attrs["method"] = f"py4DSTEM {operation.removeprefix('reconstruct_')}"
    image.attrs["py4DSTEM_version"] = str(import_py4dstem().__version__)
    given = {f"{name}_options": dict(value) for name, value in options.items() if value}
    image.attrs["history"] = append_history(
        cube.attrs, operation, aberrations=dict(polar), rotation_deg=setup.rotation_deg, **arguments, **given
    )
    return image


def refuse(options: Mapping[str, Any] | None, own: Mapping[str, str], name: str) -> None:
    """Options that misr sets itself, ``own`` with the argument to use instead."""
    taken = [f"{key} ({own[key]})" for key in options or {} if key in own]
    if taken:
        raise ValueError(f"{name} cannot set {', '.join(taken)}: misr sets it, so use the argument in brackets")


def progress_bar(total: int, what: str, progress: bool) -> Any:
    """A tqdm bar to enter."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, disable=not progress, leave=False)


def parallax_image(parallax: Any, shifts_A: np.ndarray, cube: xr.DataArray, factor: int) -> xr.DataArray:
    """Cropped to the field and put where the shifts of the true optic axis have it.

    py4DSTEM takes the axis for a whole pixel, and cross-correlation leaves the mean shift free: either moves the
    whole picture by the mean difference of the shifts. The padded picture is periodic, so a phase ramp moves it
    back exactly.
    """
    steps = scan_step(cube)
    moved = np.asarray(parallax._asnumpy(parallax._xy_shifts), dtype=float) - shifts_A / np.asarray(steps)
    values = parallax.recon_phase_corrected / 2
    ramps = (
        np.exp(2j * np.pi * np.fft.fftfreq(size) * move * factor)
        for size, move in zip(values.shape, moved.mean(axis=0), strict=True)
    )
    values = np.fft.ifft2(np.fft.fft2(values) * np.multiply.outer(*ramps)).real
    window = tuple(
        slice(pad // 2 * factor, (pad // 2 + size) * factor)
        for pad, size in zip(parallax._object_padding_px, cube.shape, strict=False)
    )
    values = values[window]
    origin = (float(cube.scan_y[0]), float(cube.scan_x[0]))
    return image_from_array(values - values.mean(), pixel_A=(steps[0] / factor, steps[1] / factor), origin_A=origin)
