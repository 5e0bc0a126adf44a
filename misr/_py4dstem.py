"""py4DSTEM as misr uses it: an import without side effects, its DataCube, its conventions and its engines."""

from __future__ import annotations

import contextlib
import importlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr._readers import FIRST_PX_KEY, SHAPE_KEY
from misr.aberrations import aberrations_of, polar_aberrations, with_aberrations
from misr.bright_field import bright_field_disk
from misr.cube import CUBE_DIMS, detector_step, scan_step, validate_cube
from misr.optics import (
    aberration_gradient,
    aberration_phase,
    aperture_fraction,
    electron_wavelength,
    rotate,
)

_IN_CALIBRATION = ("energy_eV", "semiangle_mrad", "rotation_deg", "history")
_SQUARE = 1e-3
# interpolation is no way out: it makes counts that are not electrons
_SQUARE_CELL = "a simulation needs a square cell, e.g. misr.crystalline_atoms(..., square=True)"
_SQUARE_SCAN = f"scan in equal steps; {_SQUARE_CELL}"
_SQUARE_DETECTOR = f"bin with cube.coarsen(det_y=m, det_x=n).sum() so that the steps become equal; {_SQUARE_CELL}"


def import_py4dstem() -> Any:
    """The module py4DSTEM, with ``warnings.showwarning`` and the filters as they were: its import replaces both."""
    with warnings.catch_warnings():
        import py4DSTEM
    return py4DSTEM


@contextlib.contextmanager
def silent_py4dstem() -> Iterator[None]:
    """Without py4DSTEM's advice, and with NumPy's global random state, which its reconstructions seed, put back."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        import_py4dstem()
        with warnings.catch_warnings():
            for category in (UserWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", category=category, module=r"py4DSTEM(\..*)?$")
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def to_datacube(cube: xr.DataArray) -> Any:
    """A py4DSTEM DataCube with its calibration: see `misr.cube_to_py4dstem`."""
    validate_cube(cube, counts=False)
    step_A = _square(scan_step(cube), "scan step", "Å", _SQUARE_SCAN)
    step_mrad = _square(detector_step(cube), "detector step", "mrad", _SQUARE_DETECTOR)
    py4DSTEM = import_py4dstem()
    from emdfile import Metadata

    datacube = py4DSTEM.DataCube(data=np.asarray(cube.data))
    calibration = datacube.calibration
    calibration.set_R_pixel_size(step_A)
    calibration.set_R_pixel_units("A")
    calibration.set_Q_pixel_size(step_mrad * 1e-3 / electron_wavelength(float(cube.attrs["energy_eV"])))
    calibration.set_Q_pixel_units("A^-1")
    calibration["energy"] = float(cube.attrs["energy_eV"])
    if "semiangle_mrad" in cube.attrs:
        calibration.set_convergence_semiangle_mrad(float(cube.attrs["semiangle_mrad"]))
    calibration.set_QR_rotation_degrees(float(cube.attrs.get("rotation_deg", 0.0)))
    notes = {name: value for name, value in cube.attrs.items() if name not in _IN_CALIBRATION}
    notes["history"] = append_history(cube.attrs, "cube_to_py4dstem")
    steps = (step_A, step_A, step_mrad, step_mrad)
    firsts = [float(cube[dim][0]) / step for dim, step in zip(CUBE_DIMS, steps, strict=True)]
    datacube.metadata = Metadata("misr", {**notes, SHAPE_KEY: np.array(cube.shape), FIRST_PX_KEY: np.array(firsts)})
    return datacube


def _square(steps: tuple[float, float], what: str, unit: str, advice: str) -> float:
    if abs(steps[0] - steps[1]) > _SQUARE * max(steps):
        raise ValueError(
            f"py4DSTEM takes pixels as square, but the {what} is {steps[0]:g} {unit} along y and {steps[1]:g} {unit} "
            f"along x: {advice}"
        )
    return (steps[0] + steps[1]) / 2


@dataclass(frozen=True)
class Setup:
    """What misr knows about the measurement; patterns rolled so that the optic axis is nearest pixel N // 2."""

    cube: xr.DataArray
    mask: np.ndarray
    polar: dict[str, float]
    rotation_deg: float
    wavelength: float
    semiangle_mrad: float
    det_step: tuple[float, float]
    off_pixel: tuple[float, float]  # centre of pixel N // 2 from the optic axis, mrad

    @property
    def cutoff(self) -> float:
        return self.semiangle_mrad * 1e-3 / self.wavelength

    def frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """Detector pixels in the scan's frame, 1/Å from the optic axis."""
        away = (
            ((np.arange(size) - size // 2) * step + off) * 1e-3 / self.wavelength
            for size, step, off in zip(self.mask.shape, self.det_step, self.off_pixel, strict=True)
        )
        k_y, k_x = np.meshgrid(*away, indexing="ij")
        return rotate(k_y, k_x, self.rotation_deg)

    def shifts(self, polar: Mapping[str, float]) -> np.ndarray:
        """Geometric shift of each bright-field pixel, Å, shape (pixel, 2)."""
        k_y, k_x = (k[self.mask] for k in self.frequencies())
        gradient = aberration_gradient(k_y, k_x, aberrations=polar, wavelength=self.wavelength)
        return np.stack(gradient, axis=-1) / (2 * np.pi)

    def probe(self) -> np.ndarray:
        """Starting probe as py4DSTEM keeps it: corner-centred, its power the mean counts of a pattern.

        The optic axis may lie between pixels: the probe then carries the phase ramp that belongs to it, so that
        no count has to be interpolated and the object stays where it is.
        """
        k_y, k_x = self.frequencies()
        width = sum(self.det_step) / 2 * 1e-3 / self.wavelength
        chi = aberration_phase(k_y, k_x, aberrations=self.polar, wavelength=self.wavelength)
        wave = np.sqrt(aperture_fraction(k_y, k_x, cutoff=self.cutoff, width=width)) * np.exp(-1j * chi)
        counts_per_pattern = float(self.cube.values.sum(dtype=float)) / self.cube[..., 0, 0].size
        wave *= math.sqrt(counts_per_pattern) / np.linalg.norm(wave)
        return np.fft.ifft2(np.fft.ifftshift(wave)).astype(np.complex64)

    def label_probe(self, probe: np.ndarray) -> xr.DataArray:
        """py4DSTEM's probe, centred, without the ramp of an axis between pixels, with unit power."""
        values = np.fft.fftshift(np.asarray(probe, dtype=complex))
        coords: dict[str, Any] = {}
        for axis, name in enumerate(("probe_y", "probe_x")):
            size = values.shape[axis]
            away = (np.arange(size) - size // 2) * self.wavelength / (size * self.det_step[axis] * 1e-3)
            ramp = np.exp(2j * np.pi * away * self.off_pixel[axis] * 1e-3 / self.wavelength)
            values = values * np.expand_dims(ramp, 1 - axis)
            coords[name] = (name, away, {"units": "Å"})
        values = values / np.linalg.norm(values)
        return xr.DataArray(values, dims=("probe_y", "probe_x"), coords=coords, attrs={"units": "1"})


def setup_of(cube: xr.DataArray, aberrations: Any, rotation_deg: float | None, *, required: bool) -> Setup:
    validate_cube(cube, counts=False)
    cube = cube.compute()
    validate_cube(cube)
    if not cube.values.any():
        raise ValueError("the cube holds no electrons: nothing can be reconstructed")
    if rotation_deg is None:
        known = {} if aberrations is None else aberrations
        rotation_deg = float(known.get("rotation_deg", cube.attrs.get("rotation_deg", 0.0)))
    if aberrations is not None and "transposed" in aberrations:
        cube = with_aberrations(cube, aberrations)  # swaps the detector's axes if need be
    polar = aberrations_of(cube) if aberrations is None else polar_aberrations(aberrations)
    if polar is None and required:
        raise ValueError(
            "no aberrations are given and the cube has none in its attrs: pass aberrations={'C10': ...} (Å, "
            "= -defocus), or set them with misr.with_aberrations(cube, {'C10': ...})"
        )
    disk = bright_field_disk(cube)
    semiangle = float(disk.attrs["semiangle_mrad"])
    cube = cube.assign_attrs(semiangle_mrad=semiangle)
    det_step = detector_step(cube)
    mask = np.asarray(disk["mask"].values, dtype=bool) & (cube.values.mean(axis=(0, 1)) > 0)
    rolls, off_pixel = [], []
    for dim, centre, step in zip(("det_y", "det_x"), (disk.center_y, disk.center_x), det_step, strict=True):
        axis = (float(centre) - float(cube[dim][0])) / step
        rolls.append(cube.sizes[dim] // 2 - round(axis))
        off_pixel.append((round(axis) - axis) * step)
    return Setup(
        cube=cube.copy(data=np.roll(cube.values, rolls, axis=(2, 3))),
        mask=np.roll(mask, rolls, axis=(0, 1)),
        polar=polar or {},
        rotation_deg=float(rotation_deg),
        wavelength=electron_wavelength(cube.attrs["energy_eV"]),
        semiangle_mrad=semiangle,
        det_step=det_step,
        off_pixel=(off_pixel[0], off_pixel[1]),
    )


def engine_device(device: str) -> str:
    """py4DSTEM's word for a device, "cpu" or "gpu"; "auto" takes a GPU if CuPy finds one."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r} must be 'auto', 'cpu' or 'cuda'")
    if device == "cpu":
        return "cpu"
    lacking = _lacking_cupy()
    if lacking and device == "cuda":
        raise ValueError(f"device='cuda': {lacking}; py4DSTEM computes with CuPy there. Use 'auto' or 'cpu'")
    return "cpu" if lacking else "gpu"


def _lacking_cupy() -> str:
    """Why CuPy cannot be used, in words; empty if it can."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        return "CuPy is not installed (pip install cupy-cuda12x, for CUDA 12)"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device here ({error})"
    return "" if count else "CuPy finds no CUDA device here"


def engine(name: str, setup: Setup, *, turn_deg: float, **settings: Any) -> Any:
    """A py4DSTEM reconstruction with aberrations in the scan's frame turned by ``turn_deg``."""
    return getattr(import_py4dstem().process.phase, name)(
        energy=float(setup.cube.attrs["energy_eV"]),
        datacube=to_datacube(setup.cube),
        polar_parameters=turn_angles(setup.polar, turn_deg),
        verbose=False,
        **settings,
    )


def turn_angles(polar: Mapping[str, Any], turn_deg: float) -> dict[str, float]:
    """Aberration angles of the scan's frame in py4DSTEM's, turned by ``turn_deg``, or (at 0) back."""
    return {
        str(name): float(value) if name[0] == "C" else math.pi / 2 - float(value) - math.radians(turn_deg)
        for name, value in polar.items()
    }


def aberration_orders(polar: Mapping[str, float]) -> list[list[int]]:
    """py4DSTEM's list of aberrations (order, symmetry, 0 for cosine and 1 for sine); it needs defocus among them."""
    pairs = {(1, 0)} | {(int(name[1]), int(name[2])) for name, value in polar.items() if name[0] == "C" and value}
    return [[n, m, part] for n, m in sorted(pairs) for part in range(2 if m else 1)]


def centred_patterns(setup: Setup) -> dict[str, Any]:
    """Patterns are centred already: whole-pixel shifts to the corner, by order 0, change no count."""
    scan, detector = setup.cube.shape[:2], setup.mask.shape
    centre = tuple(np.full(scan, size // 2, dtype=np.float32) for size in detector)
    return {
        "force_com_rotation": setup.rotation_deg,
        "force_com_transpose": False,
        "force_com_shifts": centre,
        "force_com_measured": centre,
        "shifting_interpolation_order": 0,
        "center_positions_in_fov": False,
        "plot_center_of_mass": None,
        "plot_rotation": False,
        "plot_probe_overlaps": False,
    }
