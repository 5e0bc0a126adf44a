"""Units as files spell them, to Å and mrad."""

from __future__ import annotations

import math
import re
import unicodedata

from misr.optics import electron_wavelength

_LENGTHS_A = {
    "Å": 1.0,
    "A": 1.0,
    "angstrom": 1.0,
    "ångström": 1.0,
    "pm": 1e-2,
    "nm": 10.0,
    "um": 1e4,
    "micron": 1e4,
    "mm": 1e7,
    "cm": 1e8,
    "m": 1e10,
    "meter": 1e10,
}
_ANGLES_MRAD = {"urad": 1e-3, "mrad": 1.0, "rad": 1e3, "deg": 1e3 * math.pi / 180, "°": 1e3 * math.pi / 180}
_RECIPROCAL = (
    re.compile(r"^1/\(?(?P<unit>[^()]+)\)?$"),
    re.compile(r"^\(?(?P<unit>[^()]+?)\)?(\^|\*\*)?\(?-1\)?$"),
)


def split_units(units: object) -> tuple[str, bool]:
    """A unit in one spelling and whether it is a reciprocal one: ``" 1 / nm "`` is ``("nm", True)``.

    Parameters
    ----------
    units : str or anything
        As the file has it; None and bytes are fine.

    Returns
    -------
    tuple
        The unit's name, and True for "per unit".

    Examples
    --------
    >>> split_units("Å⁻¹"), split_units("[n_m]"), split_units(None)
    (('Å', True), ('nm', False), ('', False))
    """
    text = units.decode("utf-8", "replace") if isinstance(units, bytes) else str(units or "")
    # NFKC folds the Ångström sign into the letter, superscripts into digits and the micro sign into mu
    text = unicodedata.normalize("NFKC", text).replace("μ", "u").replace("−", "-")
    text = re.sub(r"[\s_\[\]]", "", text)
    for pattern in _RECIPROCAL:
        match = pattern.match(text)
        if match:
            return match["unit"], True
    return text, False


def _factor(name: str, table: dict[str, float]) -> float | None:
    plain = name.lower()
    singular = plain.removesuffix("s") if len(plain) > 4 else plain  # mrads, meters; not ms
    return next((table[spelling] for spelling in (name, plain, singular) if spelling in table), None)


def to_angstrom(value: float, units: object) -> float | None:
    """A length in Å, or None if the unit is not a length (pixels, seconds, none at all).

    Parameters
    ----------
    value : float
        The number in the file.
    units : str
        Its unit.

    Returns
    -------
    float or None
        Å.

    Examples
    --------
    >>> to_angstrom(0.5, "nm"), to_angstrom(1, "pixels")
    (5.0, None)
    """
    name, reciprocal = split_units(units)
    factor = _factor(name, _LENGTHS_A)
    return None if reciprocal or factor is None else float(value) * factor


def is_per_length(units: object) -> bool:
    """Whether the unit is one over a length, which needs the wavelength to become an angle."""
    name, reciprocal = split_units(units)
    return reciprocal and _factor(name, _LENGTHS_A) is not None


def to_mrad(value: float, units: object, *, energy_eV: float | None = None) -> float | None:
    """A scattering angle in mrad (small angles: θ = λ k), or None if the unit does not give one.

    Parameters
    ----------
    value : float
        The number in the file.
    units : str
        An angle, or one over a length.
    energy_eV : float, optional
        Beam energy, eV; needed for one over a length.

    Returns
    -------
    float or None
        mrad.

    Examples
    --------
    >>> round(to_mrad(0.05, "1/Å", energy_eV=300e3), 4), to_mrad(0.05, "1/Å"), to_mrad(2, "cm")
    (0.9844, None, None)
    """
    name, reciprocal = split_units(units)
    if not reciprocal:
        factor = _factor(name, _ANGLES_MRAD)
        return None if factor is None else float(value) * factor
    factor = _factor(name, _LENGTHS_A)
    if factor is None or energy_eV is None:
        return None
    return float(value) / factor * electron_wavelength(energy_eV) * 1e3
