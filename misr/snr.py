"""What a Fourier ring correlation says of the signal: spectral signal-to-noise ratio, and the FRC at the full dose.

With signal power P and noise power N of the image that *all* electrons make, ``S = P/N``. Images of two independent
halves of the electrons have the noise 2N each and correlate as ``F = S/(S + 2)``; an image of all electrons correlates
with the truth as ``F = √(S/(1 + S))``, and with a second image of as many electrons as ``F = S/(S + 1)``. What stands
here is these three, turned round.

Sources: Unser, Trus & Steven 1987, Ultramicroscopy 23, 39 (SSNR); Penczek 2002, J. Struct. Biol. 138, 34 (SSNR and
FSC); Rosenthal & Henderson 2003, J. Mol. Biol. 333, 721 (full-dose FSC and ``C_ref``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from misr._curves import interval_of
from misr._provenance import append_history

__all__ = ["frc_from_snr", "full_dose_frc", "spectral_snr"]

_KINDS = ("half-map", "truth", "full-dose")
_ROUNDING = 1e-9
_KEPT = ("frequency", "n_independent", "n_additive")
_KEPT_ATTRS = ("ring_width", "window", "nyquist", "band_limit")


def spectral_snr(frc: xr.DataArray, *, kind: str | None = None) -> xr.DataArray:
    """Spectral signal-to-noise ratio of the image that all electrons make, from its FRC.

    ``S = 2F/(1 - F)`` from half maps, ``S = F²/(1 - F²)`` from an FRC against truth, ``S = F/(1 - F)`` from two images
    of the full dose each: a ratio of powers, in proportion to the dose (Unser et al. 1987; Penczek 2002).

    Parameters
    ----------
    frc : xarray.DataArray
        From `misr.fourier_ring_correlation`, dim ``frequency`` (1/Å), values -1 to 1.
    kind : {"half-map", "truth", "full-dose"}, optional
        What was correlated with what; by default ``frc.attrs["kind"]``, or ``attrs["against"]`` as
        `misr.expected_frc` has it.

    Returns
    -------
    xarray.DataArray
        ``snr`` over ``frequency``, without unit, with the coordinates of the curve, and ``snr_low`` and ``snr_high``
        where the curve has ``frc_low`` and ``frc_high``: every formula rises with F, so the interval carries over.

    Raises
    ------
    ValueError
        If the curve is no FRC, its values lie outside -1 to 1, or its kind is not known.

    Notes
    -----
    Nothing is clipped. An F below zero is what noise does to a ring without signal, and gives an S below zero (of half
    maps down to -1; against truth ``-F²/(1 - F²)``, with F's sign): averages over rings or images then stay unbiased
    about zero, where clipped ones would find signal in noise. Clip with ``snr.clip(min=0)`` before a Wiener filter
    ``S/(1 + S)``. F = 1 gives ``inf``.

    S says what is *common* to the two images. What a prior invents alike in both halves counts as signal.

    Examples
    --------
    >>> import xarray as xr
    >>> frc = xr.DataArray([0.5, 1 / 7, 0.0], dims="frequency", coords={"frequency": [0.1, 0.2, 0.3]})
    >>> spectral_snr(frc, kind="half-map").values.round(4).tolist()
    [2.0, 0.3333, 0.0]
    >>> round(float(spectral_snr(frc, kind="truth")[0]), 4)
    0.3333
    """
    kind = _kind(frc, kind)
    convert = {"half-map": _snr_of_halves, "full-dose": _snr_of_wholes, "truth": _snr_against_truth}[kind]
    attrs = {"units": "1", "long_name": "spectral SNR at the full dose", "kind": kind}
    return _converted(frc, convert, "snr", attrs, "spectral_snr", kind=kind)


def frc_from_snr(snr: xr.DataArray, *, kind: str) -> xr.DataArray:
    """The FRC that a spectral signal-to-noise ratio makes: the inverse of `spectral_snr`.

    Parameters
    ----------
    snr : xarray.DataArray
        S at the full dose over ``frequency``; -1 or more, but any number against truth. For another dose multiply it
        by the ratio of doses first.
    kind : {"half-map", "truth", "full-dose"}
        ``S/(S + 2)``, ``√(S/(1 + S))`` or ``S/(S + 1)``.

    Returns
    -------
    xarray.DataArray
        ``frc`` over ``frequency`` with ``attrs["kind"]``, the interval carried over.

    Raises
    ------
    ValueError
        For an unknown kind, no ``frequency``, or an S below -1.

    Examples
    --------
    >>> import xarray as xr
    >>> snr = xr.DataArray([2.0, 1 / 3], dims="frequency", coords={"frequency": [0.1, 0.2]})
    >>> frc_from_snr(snr, kind="truth").values.round(4).tolist()
    [0.8165, 0.5]
    """
    kind = _kind(snr, kind, what="SNR", low=-np.inf if kind == "truth" else -1.0, high=np.inf)
    convert = {"half-map": _halves_of_snr, "full-dose": _wholes_of_snr, "truth": _truth_of_snr}[kind]
    attrs = {"units": "1", "long_name": "FRC", "kind": kind}
    return _converted(snr, convert, "frc", attrs, "frc_from_snr", kind=kind)


def full_dose_frc(frc: xr.DataArray, *, against: str = "full-dose") -> xr.DataArray:
    """From half maps, the FRC that images of all the electrons would have.

    Parameters
    ----------
    frc : xarray.DataArray
        FRC of half maps over ``frequency`` (1/Å).
    against : {"full-dose", "truth"}
        "full-dose": of two images of the full dose each, ``2F/(1 + F)``. "truth": of one such image with the truth,
        its root ``√(2F/(1 + F))``, called C_ref by Rosenthal & Henderson (2003), to be read at 0.5.

    Returns
    -------
    xarray.DataArray
        ``frc`` over ``frequency``, the coordinates and the interval carried over; ``attrs["kind"]`` is ``against``.

    Raises
    ------
    ValueError
        If the curve is no FRC, is known to be none of half maps, or ``against`` is neither.

    Notes
    -----
    Where F is negative the result is too, and it is held at -1 (reached at F = -⅓); such rings hold noise.
    The half-bit and 1-bit thresholds, and 0.143, are made for the half-map curve itself: do not apply them here.

    Examples
    --------
    >>> import xarray as xr
    >>> frc = xr.DataArray([0.5, 1 / 7, -0.1], dims="frequency", coords={"frequency": [0.1, 0.2, 0.3]})
    >>> full_dose_frc(frc).values.round(3).tolist(), full_dose_frc(frc, against="truth").values.round(3).tolist()
    ([0.667, 0.25, -0.222], [0.816, 0.5, -0.471])
    """
    if against not in ("full-dose", "truth"):
        raise ValueError(f"against={against!r} must be 'full-dose' or 'truth'")
    kind = getattr(frc, "attrs", {}).get("kind", "half-map")
    if kind != "half-map":
        raise ValueError(f"this FRC is of the kind {kind!r}: only a half-map FRC is carried over to the full dose")
    _kind(frc, "half-map")
    convert = _doubled if against == "full-dose" else _doubled_root
    attrs = {"units": "1", "long_name": "FRC at the full dose", "kind": against}
    return _converted(frc, convert, "frc", attrs, "full_dose_frc", against=against)


def _kind(curve: Any, kind: str | None, *, what: str = "FRC", low: float = -1.0, high: float = 1.0) -> str:
    """Which two images were correlated, after checking that this is a curve with values in range."""
    if not isinstance(curve, xr.DataArray) or curve.dims != ("frequency",) or "frequency" not in curve.coords:
        found = getattr(curve, "dims", type(curve).__name__)
        raise ValueError(
            f"expected an {what} curve with dim and coordinate 'frequency', got {found}: make it with "
            f"misr.{'fourier_ring_correlation' if what == 'FRC' else 'spectral_snr'}"
        )
    values = np.asarray(curve.values, dtype=float)
    if np.any(np.isnan(values)) or values.size == 0:
        raise ValueError(f"the {what} curve is empty or holds NaN: drop those rings first")
    if values.min() < low - _ROUNDING or values.max() > high + _ROUNDING:
        raise ValueError(
            f"the {what} runs from {values.min():.4g} to {values.max():.4g}, expected {low:g} to {high:g}: is this "
            f"an {what}?"
        )
    if kind is None:
        kind = curve.attrs.get("kind", curve.attrs.get("against"))
    if kind not in _KINDS:
        raise ValueError(
            f"kind={kind!r} must be one of {', '.join(map(repr, _KINDS))}: what was correlated with what? The curve's "
            "attrs['kind'] says so for half maps of misr"
        )
    return str(kind)


def _converted(
    curve: xr.DataArray,
    convert: Callable[[np.ndarray], np.ndarray],
    target: str,
    attrs: dict[str, Any],
    operation: str,
    **arguments: Any,
) -> xr.DataArray:
    """The curve through a rising function, and its interval with it."""
    coords: dict[str, Any] = {key: curve[key] for key in _KEPT if key in curve.coords}
    for end, bound in zip(("low", "high"), interval_of(curve) or (), strict=False):
        labels = dict(bound.attrs) | {"units": "1"}
        coords[f"{target}_{end}"] = ("frequency", convert(np.asarray(bound.values, dtype=float)), labels)
    attrs |= {key: curve.attrs[key] for key in _KEPT_ATTRS if key in curve.attrs}
    attrs["history"] = append_history(curve.attrs, operation, **arguments)
    values = convert(np.asarray(curve.values, dtype=float))
    return xr.DataArray(values, dims="frequency", coords=coords, name=target, attrs=attrs)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Top over bottom, infinite where nothing (or rounding's less than nothing) is left below."""
    return np.divide(top, bottom, out=np.full(top.shape, np.inf), where=bottom > 0)


def _snr_of_halves(frc: np.ndarray) -> np.ndarray:
    return _ratio(2 * frc, 1 - frc)


def _snr_of_wholes(frc: np.ndarray) -> np.ndarray:
    return _ratio(frc, 1 - frc)


def _snr_against_truth(frc: np.ndarray) -> np.ndarray:
    return np.sign(frc) * _ratio(frc**2, 1 - frc**2)


def _halves_of_snr(snr: np.ndarray) -> np.ndarray:
    return _of_snr(snr, 2)


def _wholes_of_snr(snr: np.ndarray) -> np.ndarray:
    return _of_snr(snr, 1)


def _of_snr(snr: np.ndarray, noises: float) -> np.ndarray:
    """S/(S + noises), 1 for an infinite S."""
    finite = np.where(np.isfinite(snr), snr, 0)
    return np.where(np.isfinite(snr), np.maximum(finite / np.maximum(finite + noises, _ROUNDING), -1), 1.0)


def _truth_of_snr(snr: np.ndarray) -> np.ndarray:
    return np.sign(snr) * np.sqrt(_of_snr(np.abs(snr), 1))


def _doubled(frc: np.ndarray) -> np.ndarray:
    return np.maximum(2 * frc / np.maximum(1 + frc, _ROUNDING), -1.0)


def _doubled_root(frc: np.ndarray) -> np.ndarray:
    doubled = _doubled(frc)
    return np.sign(doubled) * np.sqrt(np.abs(doubled))
