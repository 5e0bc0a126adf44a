"""The projected phase of a periodic specimen, from its atoms' scattering factors.

The potential is the Fourier series of the atoms' scattering factors (Lobato & Van Dyck 2014, Acta Cryst. A 70, 636,
from abTEM) with exact phases: abTEM's own potential spreads an atom linearly over four pixels, which weakens it
near the Nyquist limit by up to half, depending on where in the pixel it lies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.cube import image_from_array
from misr.optics import interaction_parameter

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["projected_phase"]

_ATOM_BLOCK = 4096


def projected_phase(
    atoms: Atoms,
    *,
    energy_eV: float = 300e3,
    pixel_A: float | tuple[float, float] = 0.25,
    shape: tuple[int, int] | None = None,
    thermal_sigma_A: float | None = 0.08,
) -> xr.DataArray:
    """Projected phase ``σ ∫V dz`` of a periodic specimen: the truth of a phase image.

    Parameters
    ----------
    atoms : ase.Atoms
        Orthogonal cell, periodic in x and y.
    energy_eV : float, default 300e3
        Beam energy, eV.
    pixel_A : float or (float, float), default 0.25
        About this pixel, Å, ``(y, x)`` if two; the grid covers the cell exactly.
    shape : (int, int), optional
        Pixels ``(y, x)``, instead of ``pixel_A``.
    thermal_sigma_A : float or None, default 0.08
        Root mean square thermal displacement along one axis, Å.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``, rad; the Fourier series of the phase, cut off at the grid's Nyquist frequency (exact
        to any shift by a part of a pixel, and ringing around atoms that the grid cannot resolve).

    Raises
    ------
    TypeError
        If ``atoms`` is not an ase.Atoms.
    ValueError
        For no atoms, a cell that is not orthogonal, or a bad grid.

    Examples
    --------
    >>> from ase import Atoms
    >>> atom = Atoms("C", positions=[[2, 5, 1]], cell=[8, 10, 2], pbc=True)
    >>> phase = projected_phase(atom, pixel_A=0.5)
    >>> peak = phase.argmax(...)
    >>> float(phase.y[peak["y"]]), float(phase.x[peak["x"]])
    (5.0, 2.0)
    """
    size = cell_sides(atoms)
    if shape is None:
        pixels = np.broadcast_to(np.asarray(pixel_A, dtype=float), (2,))
        check_positive(pixel_A=float(pixels.min()))
        shape = (round(size[0] / pixels[0]), round(size[1] / pixels[1]))
    if len(shape) != 2 or min(shape) < 2:
        raise ValueError(f"a grid of {tuple(shape)} pixels is too small: give a finer pixel_A or a larger shape")
    sigma = thermal_width(thermal_sigma_A)
    values = interaction_parameter(energy_eV) * projected_potential(
        atoms.positions, atoms.get_chemical_symbols(), size, shape, sigma
    )
    history = append_history(
        {}, "projected_phase", atoms=atoms.get_chemical_formula(), energy_eV=energy_eV, shape=shape,
        thermal_sigma_A=sigma,
    )  # fmt: skip
    pixel = (size[0] / shape[0], size[1] / shape[1])
    attrs = {"energy_eV": float(energy_eV), "period_A": list(map(float, size)), "history": history}
    return image_from_array(values, pixel_A=pixel, attrs=attrs)


def projected_potential(
    positions: np.ndarray, symbols: list[str], size: tuple[float, float], shape: tuple[int, int], sigma: float
) -> np.ndarray:
    """∫V dz on a grid (y, x), V Å: structure factors summed atom by atom, below the Nyquist frequency."""
    from abtem.parametrizations import LobatoParametrization

    parametrization = LobatoParametrization()
    order_y = np.rint(np.fft.fftfreq(shape[0]) * shape[0])
    order_x = np.arange(shape[1] // 2 + 1)
    squared = (order_y[:, None] / size[0]) ** 2 + (order_x / size[1]) ** 2
    spectrum = np.zeros(squared.shape, dtype=np.complex128)
    names = np.asarray(symbols)
    for symbol in np.unique(names):
        chosen = positions[names == symbol]
        structure = np.zeros(squared.shape, dtype=np.complex128)
        for first in range(0, len(chosen), _ATOM_BLOCK):
            block = chosen[first : first + _ATOM_BLOCK]
            structure += _waves(order_y, block[:, 1] / size[0]) @ _waves(order_x, block[:, 0] / size[1]).T
        spectrum += structure * parametrization.projected_scattering_factor(symbol)(squared)
    spectrum *= np.exp(-2 * (math.pi * sigma) ** 2 * squared)
    if shape[0] % 2 == 0:
        spectrum[shape[0] // 2] = 0
    if shape[1] % 2 == 0:
        spectrum[:, -1] = 0
    return np.fft.irfft2(spectrum, s=shape) * (shape[0] * shape[1] / (size[0] * size[1]))


def _waves(order: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    # whole turns are dropped in double precision; what is left is safe in single
    turns = np.outer(order, fraction)
    angle = (-2 * math.pi * (turns - np.rint(turns))).astype(np.float32)
    return np.cos(angle) + np.complex64(1j) * np.sin(angle)


def cell_sides(atoms: Atoms) -> tuple[float, float]:
    """Sides (y, x) of the cell, after checking that it can be simulated."""
    from ase import Atoms as AseAtoms

    if not isinstance(atoms, AseAtoms):
        raise TypeError(f"expected ase.Atoms, got {type(atoms).__name__}: make them with misr.amorphous_atoms or ase")
    if len(atoms) == 0:
        raise ValueError("atoms is empty: there is nothing to simulate")
    cell = np.asarray(atoms.cell.array, dtype=float)
    sides = np.diag(cell)
    if not np.allclose(cell, np.diag(sides), atol=1e-6) or np.any(sides[:2] <= 0):
        raise ValueError(
            f"the cell {cell.round(3).tolist()} is not orthogonal with sides along x, y and z: try "
            "abtem.orthogonalize_cell(atoms)"
        )
    if not np.all(np.isfinite(atoms.positions)):
        raise ValueError("atoms holds positions that are not finite: remove those atoms")
    return float(sides[1]), float(sides[0])


def thermal_width(sigma: float | None) -> float:
    """``thermal_sigma_A`` as a number, Å, 0 for None; refuses what is no length."""
    value = 0.0 if sigma is None else float(sigma)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"thermal_sigma_A={sigma} must be a length in Å, 0 or None for atoms at rest")
    return value


def check_positive(**values: float) -> None:
    """Complain about the first value that is not a positive number, by its name."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a positive number")
