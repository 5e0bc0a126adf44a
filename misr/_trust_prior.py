"""The prior's share: what a Fourier ring correlation claims beyond what its electrons allow a linear image."""

from __future__ import annotations

import math
import warnings

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr._trust_statistics import artanh, curve_spread, run_test

__all__ = ["prior_share"]

_KINDS = ("half-map", "truth")
_SURE_95 = 1.959963984540054


def prior_share(
    frc: xr.DataArray,
    limit: xr.DataArray,
    *,
    tolerance: float = 0.1,
    alpha: float = 0.01,
    kind: str | None = None,
    warn: bool = True,
) -> xr.Dataset:
    """How much of a curve's spectral SNR lies above the linear limit, ring by ring.

    Independent evidence adds its spectral SNR: an image that uses its electrons as well as linear algebra can, and a
    prior worth as much as further electrons would be, has ``S = S_limit + S_prior``. The prior's share of what the
    curve claims is ``1 - S_limit/S``, where ``S = 2F/(1 - F)`` for half maps and ``F²/(1 - F²)`` against truth; it is 0
    where the curve stays below the limit.

    Parameters
    ----------
    frc : xarray.DataArray
        Curve of any method over ``frequency`` (1/Å): `misr.fourier_ring_correlation`, the ``frc`` of
        `misr.half_maps`. Error bars from ``frc_low`` and ``frc_high`` (95 %), else from ``n_independent``.
    limit : xarray.DataArray
        Curve of the same kind at the same dose: `misr.expected_frc`; `misr.expected_frc_of_scan` for scan steps so
        coarse that frequencies fold on one another (half maps are compared with its ``half_maps``); or one measured
        with the linear fusion of the same electrons (then its error bars count too). Interpolated; 0 beyond its last
        ring.
    tolerance : float, default 0.1
        A share that is let pass: no limit is known better.
    alpha : float, default 0.01
        Rate of false alarms, at most.
    kind : {"half-map", "truth"}, optional
        What both curves compare; by default what their attrs say ("half-map" if they say nothing).
    warn : bool, default True
        Warn if the excess is significant.

    Returns
    -------
    xarray.Dataset
        Over ``frequency``: ``share`` (0 to 1) with ``share_low`` and ``share_high`` (95 %), ``excess`` (standard
        deviations above the limit with its tolerance), ``frc`` and ``limit``. Scalars: ``p_value`` (chance of a run of
        rings so far above), ``passed`` (p ≥ alpha), ``significant_share`` (of the spectral SNR over the most
        significant run of rings; 0 if there is none). ``attrs["words"]`` says it in a sentence.

    Raises
    ------
    ValueError
        For curves of different kinds, or without frequencies, or a tolerance outside 0 to 1.

    Warns
    -----
    UserWarning
        If the excess is significant.

    Notes
    -----
    An excess is no proof of invention. A specimen that repeats may exceed the limit honestly: a method that knows of
    the lattice averages over its cells. Amorphous matter may not. What lies above the limit is as good as the prior is
    true of this specimen, and half maps cannot tell, since both share the prior: `noise_substitution` and another
    measurement can.

    Examples
    --------
    >>> coords = {"frequency": [0.1, 0.2, 0.3], "n_independent": ("frequency", [200.0, 400.0, 600.0])}
    >>> claimed = xr.DataArray([0.8, 0.5, 0.5], dims="frequency", coords=coords)
    >>> limit = xr.DataArray([0.8, 0.5, 0.1], dims="frequency", coords=coords)
    >>> found = prior_share(claimed, limit, warn=False)
    >>> found.share.values.round(2).tolist(), bool(found.passed)
    ([0.0, 0.0, 0.89], False)
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance} must be a share, from 0 to below 1")
    if isinstance(limit, xr.DataArray) and "half_maps" in limit.coords and _told(frc, kind) == "half-map":
        # of a coarse scan: what half maps show, folded frequencies included
        limit = limit["half_maps"].assign_attrs(against="half-map")
    kind = _kind(frc, limit, kind)
    q, independent = _rings(frc)
    bound = _interpolated(limit, q)
    snr_limit, snr = spectral(bound, kind), spectral(frc.values, kind)
    level = correlation(snr_limit / (1 - tolerance), kind)
    spread = np.hypot(curve_spread(frc), _limit_spread(limit, q))
    excess = (artanh(frc.values) - artanh(level)) / spread
    p_value, run = run_test(excess, independent)
    shift = _SURE_95 * spread
    low, high = (spectral(np.tanh(artanh(frc.values) + sign * shift), kind) for sign in (-1, 1))
    shares = [_share(snr_limit, one) for one in (snr, low, high)]
    over = _share(
        np.array([(independent * snr_limit)[run].sum()]), np.array([(independent * np.maximum(snr, 0))[run].sum()])
    )
    one, coords = {"units": "1"}, {"frequency": frc["frequency"], "n_independent": frc["n_independent"]}
    result = xr.Dataset(
        {
            "share": ("frequency", shares[0], {**one, "long_name": "share of the spectral SNR above the limit"}),
            "share_low": ("frequency", shares[1], one),
            "share_high": ("frequency", shares[2], one),
            "excess": ("frequency", excess, {**one, "long_name": "standard deviations above the limit"}),
            "frc": ("frequency", frc.values, dict(frc.attrs)),
            "limit": ("frequency", bound, {**one, "long_name": "linear limit"}),
            "p_value": ((), p_value, one),
            "passed": ((), p_value >= alpha),
            "significant_share": ((), float(over[0]) if p_value < alpha else 0.0, one),
        },
        coords=coords,
        attrs={"kind": kind, "tolerance": tolerance, "alpha": alpha},
    )
    ends = (float(q[run][0]), float(q[run][-1])) if q[run].size else (0.0, 0.0)
    result.attrs["words"] = _words(result, ends)
    result.attrs["history"] = append_history(frc.attrs, "prior_share", tolerance=tolerance, alpha=alpha, kind=kind)
    if warn and not bool(result["passed"]):
        warnings.warn(result.attrs["words"], UserWarning, stacklevel=2)
    return result


def spectral(frc: np.ndarray, kind: str) -> np.ndarray:
    """Spectral SNR at the full dose that a correlation stands for; 0 for none or a negative one."""
    held = np.clip(frc, 0.0, 1 - 1e-9)
    return 2 * held / (1 - held) if kind == "half-map" else held**2 / (1 - held**2)


def correlation(snr: np.ndarray, kind: str) -> np.ndarray:
    """What `spectral` undoes."""
    return snr / (snr + 2) if kind == "half-map" else np.sqrt(snr / (1 + snr))


def _share(limit: np.ndarray, snr: np.ndarray) -> np.ndarray:
    ratio = np.divide(limit, snr, out=np.ones_like(snr), where=snr > 0)
    return np.clip(1 - ratio, 0.0, 1.0)


def _told(curve: xr.DataArray, kind: str | None) -> str:
    return str(curve.attrs.get("against", curve.attrs.get("kind", kind or "half-map")))


def _kind(frc: xr.DataArray, limit: xr.DataArray, kind: str | None) -> str:
    told = [_told(curve, kind) for curve in (frc, limit)]
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(map(repr, _KINDS))}")
    for name, one in zip(("frc", "limit"), told, strict=True):
        if one == "full-dose":
            raise ValueError(
                f"the {name} is a curve corrected to the full dose: give that of the half maps themselves, "
                "misr.half_maps(…)['frc'] and not ['frc_full']"
            )
        if one not in _KINDS or one != (kind or told[0]):
            raise ValueError(
                f"the {name} is a curve of kind {one!r}, expected {kind or told[0]!r} of {_KINDS}: compare half maps "
                "with expected_frc(…, against='half-map'), and the truth with against='truth'"
            )
    return kind or told[0]


def _rings(frc: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    missing = [name for name in ("frequency", "n_independent") if name not in getattr(frc, "coords", {})]
    if missing:
        raise ValueError(f"the FRC curve lacks {missing}: make it with misr.fourier_ring_correlation")
    return frc["frequency"].values.astype(float), frc["n_independent"].values.astype(float)


def _interpolated(limit: xr.DataArray, q: np.ndarray) -> np.ndarray:
    known = limit["frequency"].values.astype(float)
    return np.interp(q, known, limit.values, right=0.0)


def _limit_spread(limit: xr.DataArray, q: np.ndarray) -> np.ndarray:
    if "frc_low" not in limit.coords and limit.attrs.get("kind") is None:
        return np.zeros_like(q)  # a calculated limit
    return np.interp(q, limit["frequency"].values.astype(float), curve_spread(limit))


def _words(result: xr.Dataset, ends: tuple[float, float]) -> str:
    if bool(result["passed"]):
        return "nowhere significantly more than the linear limit of these electrons"
    rings = f"at {ends[0]:.3g} 1/Å" if math.isclose(*ends) else f"from {ends[0]:.3g} to {ends[1]:.3g} 1/Å"
    return (
        f"{rings} {float(result['significant_share']):.0%} of the spectral SNR lies above what the electrons allow a "
        f"linear image (p = {float(result['p_value']):.1g}): the prior supplies it. A specimen that repeats may exceed "
        "the limit honestly, since knowing the lattice averages over its cells; amorphous matter may not"
    )
