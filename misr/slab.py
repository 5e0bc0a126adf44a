"""The phase power that a slab of a known composition has before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.limits import power_array
from misr.optics import interaction_parameter

__all__ = ["phase_power_of_slab"]

_DALTON_PER_A3 = 0.602214076  # 1 g/cm³ in Da/Å³


def phase_power_of_slab(
    composition: str | Mapping[str, float],
    *,
    thickness_A: float = 30.0,
    density_g_cm3: float | None = None,
    energy_eV: float = 300e3,
    field_A: float = 128.0,
    highest: float = 1.25,
    min_distance_A: float = 1.4,
    thermal_sigma_A: float | None = 0.08,
) -> xr.DataArray:
    """Phase power spectral density of an amorphous slab, without making one.

    ``P_φ = σ² n t [<f²> - <f>² + <f>² H(q)]``: n atoms per Å³ whose kinds are drawn at random, f their projected
    scattering factors (Lobato & Van Dyck 2014, from abTEM, with the Debye-Waller factor), H the structure factor of
    hard spheres (Percus & Yevick; Wertheim 1963, Phys. Rev. Lett. 10, 321). Independent atoms, H = 1, give the first
    Wilson statistics ``σ² n t <f²>``.

    Parameters
    ----------
    composition : {"protein", "carbon", "silica"} or mapping
        As in `misr.amorphous_atoms`.
    thickness_A : float, default 30
        Along the beam, Å.
    density_g_cm3 : float, optional
        Needed with a mapping.
    energy_eV : float, default 300e3
        Beam energy, eV.
    field_A : float, default 128
        Side of the square field that the rings (one frequency pixel wide) belong to, Å.
    highest : float, default 1.25
        Highest frequency, 1/Å.
    min_distance_A : float, default 1.4
        Diameter of the hard spheres, Å; 0 for independent atoms.
    thermal_sigma_A : float or None, default 0.08
        Root mean square thermal displacement along one axis, Å.

    Returns
    -------
    xarray.DataArray
        As `radial_power_spectrum`, for `expected_frc` and `dose_for_resolution`.

    Raises
    ------
    ValueError
        For unknown matter, lengths that are not positive, or spheres that fill more than half of the space.

    Examples
    --------
    >>> power = phase_power_of_slab("carbon", thickness_A=30)
    >>> thicker = phase_power_of_slab("carbon", thickness_A=60)
    >>> bool(np.allclose(thicker, 2 * power)), bool(power.sel(frequency=1, method="nearest") < power.max())
    (True, True)
    """
    from abtem.parametrizations import LobatoParametrization
    from ase.data import atomic_masses, atomic_numbers

    from misr._materials import matter_of
    from misr.phase import check_positive, thermal_width

    check_positive(thickness_A=thickness_A, energy_eV=energy_eV, field_A=field_A, highest=highest)
    sigma = thermal_width(thermal_sigma_A)
    matter = matter_of(composition, density_g_cm3)
    share = np.array(list(matter.parts.values()), dtype=float)
    share /= share.sum()
    mass = float(share @ [atomic_masses[atomic_numbers[symbol]] for symbol in matter.parts])
    density = matter.density * _DALTON_PER_A3 / mass
    q = np.arange(1, math.floor(highest * field_A + 1e-9) + 1) / field_A
    lobato = LobatoParametrization()
    factors = np.stack([lobato.projected_scattering_factor(symbol)(q**2) for symbol in matter.parts])
    factors = factors * np.exp(-2 * (math.pi * sigma * q) ** 2)
    mean, square = share @ factors, share @ factors**2
    together = square + mean**2 * (_hard_spheres(q, density, min_distance_A) - 1)
    history = append_history(
        {}, "phase_power_of_slab", composition=composition, thickness_A=thickness_A, density_g_cm3=matter.density,
        energy_eV=energy_eV, field_A=field_A, highest=highest, min_distance_A=min_distance_A, thermal_sigma_A=sigma,
    )  # fmt: skip
    return power_array(
        interaction_parameter(energy_eV) ** 2 * density * thickness_A * together,
        frequency=q,
        independent=math.pi * q * field_A,  # half of the 2π q field pixels of a ring
        attrs={"energy_eV": float(energy_eV), "ring_width": 1 / field_A, "area_A2": field_A**2, "history": history},
    )


def _hard_spheres(q: np.ndarray, density: float, diameter: float) -> np.ndarray:
    """Percus-Yevick structure factor of hard spheres, at frequencies q (1/Å)."""
    if not (math.isfinite(diameter) and diameter >= 0):
        raise ValueError(f"min_distance_A={diameter} must be a length in Å, or 0 for independent atoms")
    filled = math.pi / 6 * density * diameter**3
    if filled == 0:
        return np.ones_like(q)
    if filled > 0.5:
        raise ValueError(f"spheres of min_distance_A={diameter:g} would fill {filled:.0%} of the space: at most 50 %")
    a = (1 + 2 * filled) ** 2 / (1 - filled) ** 4
    b = -6 * filled * (1 + filled / 2) ** 2 / (1 - filled) ** 4
    c = filled * a / 2
    k = 2 * math.pi * q * diameter
    sin, cos = np.sin(k), np.cos(k)
    direct = a * (sin - k * cos) / k**3
    direct += b * (2 * k * sin + (2 - k**2) * cos - 2) / k**4
    direct += c * (-(k**4) * cos + 4 * ((3 * k**2 - 6) * cos + (k**3 - 6 * k) * sin + 6)) / k**6
    return 1 / (1 + 24 * filled * direct)
