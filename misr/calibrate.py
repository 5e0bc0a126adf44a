"""Aberrations and scan rotation found in the data themselves, at the dose the specimen bears."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr.aberrations import with_aberrations
from misr.cube import validate_cube
from misr.descan import correct_descan, measure_descan

if TYPE_CHECKING:
    from misr.calibration.fit import Fit

__all__ = ["aberration_landscape", "calibrate_cube", "fit_aberrations"]

_ORDERS = ("C10", "C12", "C21", "C23", "C30")
_SMALLEST_SEARCH_A = 100.0  # below, no view moves enough for the search to see
_LOG = logging.getLogger(__name__)
_UNITS = {"C": "Å", "p": "rad", "r": "degrees"}


def fit_aberrations(
    cube: xr.DataArray,
    *,
    orders: Sequence[str] = ("C10", "C12"),
    rotation_deg: float | None = None,
    defocus_sign: int | None = None,
    transposed: bool | None = None,
    max_defocus_A: float | None = None,
    astigmatism_A: float = 60.0,
    confidence: float = 0.99,
    device: str = "auto",
) -> xr.Dataset:
    """Defocus, astigmatism and scan rotation from a cube alone, without a starting guess.

    All views are used together: every alignment predicts, at each object frequency, how the views must add up, and the
    energy of that sum (the matched filter) is compared with what counting noise would give. The whole plane of defocus
    and rotation is searched, the best places are climbed to the likelihood's maximum, and the maxima are weighed
    against each other and against there being no specimen at all.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, dims ``("scan_y", "scan_x", "det_y", "det_x")``, electrons. NumPy or dask; tiles of about 160 Å
        (more for large defoci), at most nine, are read one after the other. A descan is corrected first.
    orders : sequence of str
        Aberrations to fit: "C10" and "C12" always, and "C21", "C23", "C30" on request.
    rotation_deg : float, optional
        The scan-to-detector rotation if it is known, degrees: it is kept, and decides between the twins.
    defocus_sign : {1, -1}, optional
        The sign of the defocus if it is known (1: underfocus, C10 < 0): it decides between the twins.
    transposed : bool, optional
        Whether the detector's axes are swapped (as recorded: before `transpose_detector`, if that was used already);
        found when not given.
    max_defocus_A : float, optional
        Largest |C10| looked for, Å; by default that at which the views of the aperture's edge are shifted by half a
        tile.
    astigmatism_A : float, default 60
        Expected size of the astigmatism's two parts, Å (standard deviation of a Gaussian prior).
    confidence : float, default 0.99
        Probability from which on the result is called confident.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.Dataset
        Scalars ``C10``, ``C12`` (Å), ``phi12`` (rad), ``rotation_deg`` and further orders asked for, a ``…_stderr``
        for each (Cramér-Rao bound of the counting noise; the spread of all that is possible where the alignment itself
        is in doubt), and ``transposed`` (0 or 1). It can be given wherever misr
        takes aberrations. ``attrs``: ``confident`` (1 or 0); ``probability``, of the alignment against all others;
        ``sign_probability``, against its twin; ``log_likelihood`` against noise alone; ``absorption_rad`` and its
        ``…_stderr`` (see Notes); ``descan_range_mrad``; ``reason`` when not confident.

    Raises
    ------
    ValueError
        For an invalid cube, a disk cut by the detector's edge, a scan smaller than the aperture resolves, or arguments
        out of range.

    Warns
    -----
    UserWarning
        If the result is not to be relied on, with the reason and what would help.

    Notes
    -----
    *The twin.* With the detector turned by 180° and all aberrations and the phase negated, the data are the same: the
    complex conjugate of everything. Nothing in the data tells the two apart but the knowledge that matter has positive
    phase: atoms are bumps, so the image's skewness is positive (`misr.calibration.sign`), and where they scatter more
    than weakly they also take away (``exp(iφ) - 1 ≈ iφ - φ²/2``), so the absorption angle of the scattered wave
    ``i φ exp(iη)``, which is fitted with the rest, is positive. Both need more dose or stronger scattering than the
    geometry: when they are undecided, or the absorption says that the object is no weak one (columns of heavy atoms
    turn the phase past π), ``confident`` is 0 and the geometry is right up to the twin. Knowing the rotation of the
    microscope, or which side of focus it is on, mends that for good.

    *Confidence.* The power spectrum of the specimen is averaged over a family that holds amorphous matter and crystals;
    strong reflections are trusted only to a relative error. The probability is Laplace's approximation over the maxima
    found. ``make calibration`` prints how often it was right on simulated cubes.

    A source of 0.5 Å, which is not fitted, changes the values by less than 1 % (tested). Standard errors are those of
    counting: the weak-phase model itself may add some Å.

    Rotation and astigmatism need shifts to show: their errors grow as one over the defocus.

    References
    ----------
    The overlap function: Rodenburg, McCallum & Nellist (1993), Ultramicroscopy 48, 304. Fisher scoring and the
    information of Gaussian data: Kay (1993), *Estimation Theory*.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> vacuum = misr.cube_from_array(np.broadcast_to(disk * 1.0, (16, 16, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                               energy_eV=3e5, semiangle_mrad=10)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     fit_aberrations(misr.apply_dose(vacuum, 100, rng=0)).attrs["confident"]
    0
    """
    validate_cube(cube, counts=False)
    _check_arguments(rotation_deg, defocus_sign, max_defocus_A, astigmatism_A, confidence)
    _check_orders(orders)
    from misr.calibration.fit import fit_cube
    from misr.calibration.modes import Question

    descan = measure_descan(cube)
    straight = correct_descan(cube, descan)
    swapped = bool(cube.attrs.get("detector_transposed", 0))  # the answer is about the detector, not about this array
    question = Question(
        rotation=None if rotation_deg is None else math.radians(rotation_deg),
        sign=None if defocus_sign is None else -int(defocus_sign),
        transposed=None if transposed is None else bool(transposed) != swapped,
        largest_A=math.inf if max_defocus_A is None else float(max_defocus_A),
        astigmatism_A=float(astigmatism_A),
        orders=tuple(orders),
    )
    fit = fit_cube(straight, question, device=device)
    arguments = {
        "orders": list(orders),
        "rotation_deg": rotation_deg,
        "defocus_sign": defocus_sign,
        "transposed": transposed,
        "max_defocus_A": max_defocus_A,
        "astigmatism_A": astigmatism_A,
        "confidence": confidence,
    }
    result = _labelled(fit, cube, confidence, arguments)
    return result.assign_attrs(descan_range_mrad=float(descan.attrs["range_mrad"]))


def _check_arguments(
    rotation_deg: float | None, sign: int | None, largest: float | None, astigmatism: float, confidence: float
) -> None:
    if rotation_deg is not None and not math.isfinite(rotation_deg):
        raise ValueError(f"rotation_deg={rotation_deg} must be a finite angle in degrees, or None to find it")
    if sign not in (None, 1, -1):
        raise ValueError(f"defocus_sign={sign!r} must be 1 (underfocus, C10 < 0), -1 (overfocus) or None to find it")
    if largest is not None and not (math.isfinite(largest) and largest >= _SMALLEST_SEARCH_A):
        raise ValueError(
            f"max_defocus_A={largest} must be a length of at least {_SMALLEST_SEARCH_A:g} Å: nearer to focus views "
            "do not move and nothing can be found"
        )
    if not (math.isfinite(astigmatism) and astigmatism > 0):
        raise ValueError(f"astigmatism_A={astigmatism} must be a positive length in Å")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be a probability between 0.5 and 1")


def _check_orders(orders: Sequence[str]) -> None:
    unknown = [orders] if isinstance(orders, str) else [name for name in orders if name not in _ORDERS]
    if unknown:
        raise ValueError(f"orders={orders!r} names {unknown}: expected a sequence of some of {_ORDERS}")


def _labelled(fit: Fit, cube: xr.DataArray, confidence: float, arguments: dict[str, Any]) -> xr.Dataset:
    reason, errors = fit.doubt(confidence), fit.spread(confidence)
    variables: dict[str, Any] = {}
    for name, value in fit.values.items():
        unit = _UNITS[name[0]]
        variables[name] = ((), value, {"units": unit})
        variables[f"{name}_stderr"] = ((), errors[name], {"units": unit})
    transposed = fit.alignment.transposed != bool(cube.attrs.get("detector_transposed", 0))
    variables["transposed"] = ((), int(transposed), {"units": "1"})
    attrs = {
        "energy_eV": float(cube.attrs["energy_eV"]),
        "confident": int(reason is None),  # netCDF has no booleans
        "probability": fit.probability,
        "sign_probability": fit.sign_probability,
        "log_likelihood": fit.log,
        "absorption_rad": fit.alignment.absorption,
        "absorption_rad_stderr": fit.absorption_error,
        "history": append_history(cube.attrs, "fit_aberrations", **arguments),
    }
    if reason is not None:
        attrs["reason"] = reason
        warnings.warn(f"the aberrations found are not certain: {reason}", UserWarning, stacklevel=3)
    _LOG.info("fit_aberrations: %s", ", ".join(f"{n} = {v:.4g} ± {errors[n]:.2g}" for n, v in fit.values.items()))
    return xr.Dataset(variables, attrs=attrs)


def calibrate_cube(cube: xr.DataArray, fit: xr.Dataset) -> xr.DataArray:
    """The cube as a fit describes it: descan taken out, detector untransposed, aberrations and rotation in the attrs.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube.
    fit : xarray.Dataset
        From `fit_aberrations`.

    Returns
    -------
    xarray.DataArray
        Whole counts stay whole.

    Raises
    ------
    ValueError
        If the cube is not valid, has no disk or one that the detector cuts, or the fit names no aberration.

    Examples
    --------
    >>> import numpy as np, xarray as xr, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> calibrated = calibrate_cube(cube, xr.Dataset({"C10": -500.0, "rotation_deg": 30.0, "transposed": 0}))
    >>> calibrated.attrs["C10_A"], calibrated.attrs["rotation_deg"]
    (-500.0, 30.0)
    """
    return with_aberrations(correct_descan(cube, measure_descan(cube)), fit)


def aberration_landscape(
    cube: xr.DataArray,
    *,
    C10: Sequence[float] | np.ndarray,
    rotation_deg: Sequence[float] | np.ndarray | float = 0.0,
    C12: float = 0.0,
    phi12: float = 0.0,
    transposed: bool = False,
    device: str = "auto",
) -> xr.DataArray:
    """Log-likelihood over defocus and rotation: what `fit_aberrations` climbs (without absorption), to plot.

    Parameters
    ----------
    cube : xarray.DataArray
        4D-STEM cube, electrons.
    C10 : sequence of float
        Trial values, Å.
    rotation_deg : float or sequence of float
        Trial rotations, degrees.
    C12, phi12 : float
        Astigmatism, Å and rad.
    transposed : bool
        Whether the detector's axes are swapped, as in `fit_aberrations`.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.DataArray
        Dims ``("rotation_deg", "C10")``, natural logarithm of the likelihood ratio against noise alone; about 0 or
        below where the alignment explains nothing. A rotation by 180° with C10 and C12 negated gives the same value.

    Raises
    ------
    ValueError
        If the cube is not valid, or there is nothing to look at.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 9, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10)
    >>> aberration_landscape(cube, C10=[-1000, 1000]).sizes
    Frozen({'rotation_deg': 1, 'C10': 2})
    """
    validate_cube(cube, counts=False)
    trials, rotations = (np.atleast_1d(np.asarray(values, dtype=float)) for values in (C10, rotation_deg))
    for name, values in (("C10", trials), ("rotation_deg", rotations)):
        if values.size == 0 or values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError(f"{name} must be one finite trial value or a list of them, got shape {values.shape}")
    swapped = bool(cube.attrs.get("detector_transposed", 0))
    from misr.calibration.fit import landscape

    parts: dict[str, Any] = {"C12a": C12 * math.cos(2 * phi12), "C12b": C12 * math.sin(2 * phi12)}
    parts["transposed"] = bool(transposed) != swapped
    straight = correct_descan(cube, measure_descan(cube))
    values = landscape(straight, trials, np.radians(rotations), parts, device=device)
    return xr.DataArray(
        values,
        dims=("rotation_deg", "C10"),
        coords={
            "rotation_deg": ("rotation_deg", rotations, {"units": "degrees"}),
            "C10": ("C10", trials, {"units": "Å"}),
        },
        attrs={
            "units": "1",
            "history": append_history(cube.attrs, "aberration_landscape", C12=C12, phi12=phi12, transposed=transposed),
        },
        name="log_likelihood",
    )
