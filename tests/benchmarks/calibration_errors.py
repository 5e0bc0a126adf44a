"""How far a calibration lies from the truth, and what counts as right: the arithmetic of `calibration_table`."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Errors", "Tolerance", "errors_of", "tolerance_at", "wrap"]


@dataclass(frozen=True)
class Tolerance:
    """What counts as right: a share of the true C10 or a length (the larger), Å; degrees; Å."""

    C10_share: float
    C10_A: float
    rotation_deg: float
    C12_A: float


STRICT = Tolerance(C10_share=0.01, C10_A=15.0, rotation_deg=1.0, C12_A=20.0)
LOOSE = Tolerance(C10_share=0.02, C10_A=30.0, rotation_deg=2.0, C12_A=math.inf)


def tolerance_at(dose_e_per_A2: float) -> Tolerance:
    """The strict one from 100 e/Å² on, the loose one, which asks nothing of C12, below.

    Examples
    --------
    >>> tolerance_at(100).C12_A, tolerance_at(30).rotation_deg
    (20.0, 2.0)
    """
    return STRICT if dose_e_per_A2 >= 100 else LOOSE


@dataclass(frozen=True)
class Errors:
    """Found minus true: Å, degrees, rad; the astigmatism as a vector and by its size alone."""

    C10: float
    C12_vector: float
    C12_size: float
    phi12: float
    rotation_deg: float
    same_hand: bool
    true_C10: float

    def right(self, tolerance: Tolerance, *, C12: str = "C12_vector") -> bool:
        """Whether everything lies within the tolerance; NaN never does."""
        return (
            self.same_hand
            and abs(self.C10) <= max(tolerance.C10_share * abs(self.true_C10), tolerance.C10_A)
            and abs(self.rotation_deg) <= tolerance.rotation_deg
            and abs(float(getattr(self, C12))) <= tolerance.C12_A
        )


def wrap(angle: float, period: float) -> float:
    """An angle in [-period/2, period/2).

    Examples
    --------
    >>> wrap(359.0, 360), wrap(180.0, 360)
    (-1.0, -180.0)
    """
    return (angle + period / 2) % period - period / 2


def errors_of(found: Mapping[str, Any], truth: Mapping[str, Any], *, twin: bool = False) -> Errors:
    """Errors of what was found, or, with ``twin``, of its twin: rotation + 180°, C10 and C12 negated.

    Parameters
    ----------
    found, truth : mapping
        ``C10, C12`` (Å), ``phi12`` (rad), ``rotation_deg`` and ``transposed``.
    twin : bool
        Take what was found for its twin.

    Returns
    -------
    Errors
        Found minus true.

    Examples
    --------
    >>> truth = {"C10": -500.0, "C12": 0.0, "phi12": 0.0, "rotation_deg": 200.0, "transposed": 0}
    >>> errors_of(truth | {"C10": 510.0, "rotation_deg": 20.0}, truth, twin=True).C10
    -10.0
    """
    sign, turn = (-1, 180.0) if twin else (1, 0.0)
    vector = _vector(found) * sign
    true = _vector(truth)
    return Errors(
        C10=sign * float(found["C10"]) - float(truth["C10"]),
        C12_vector=abs(vector - true),
        C12_size=abs(vector) - abs(true),
        phi12=wrap((cmath.phase(vector) - cmath.phase(true)) / 2, math.pi),
        rotation_deg=wrap(float(found["rotation_deg"]) + turn - float(truth["rotation_deg"]), 360.0),
        same_hand=bool(found["transposed"]) == bool(truth["transposed"]),
        true_C10=float(truth["C10"]),
    )


def _vector(aberrations: Mapping[str, Any]) -> complex:
    """C12 exp(2i phi12): astigmatism as what can be added."""
    return cmath.rect(1.0, 2 * float(aberrations["phi12"])) * float(aberrations["C12"])
