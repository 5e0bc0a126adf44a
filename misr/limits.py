"""What a dose allows: the resolution of everything linear, and of ideal phase contrast, from the object's power.

A weak phase object of power spectral density ``P_φ(q)`` (rad² Å²), seen by ``dose`` electrons per Å² at a detective
quantum efficiency ``DQE(q)``, has the spectral signal-to-noise ratio (of powers) ``S(q) = 4 dose P_φ(q) DQE(q)``. The
best linear image then correlates with the truth as ``sqrt(S/(1 + S))``, and the images of two halves of the electrons
with each other as ``(S/2)/(1 + S/2) = S/(S + 2)``: the dose, and S with it, is always that of *both* halves together.
The SNR ⅓ is 0.5 against truth and 1/7 between halves.

Where the efficiencies come from: the Fourier transform over the scan of detector pixel k's contrast is ``Γ(k, q) φ(q)``
and its noise ``1/n_k``, so all pixels together tell ``Σ n_k |Γ|²`` of φ(q), 4 at most per electron. For aberrations of
second order ``|Γ|²`` is ``4 sin²χ(q)`` where both scattered disks overlap the aperture (a share T of it), and 1 where
only one does (``2 (a - T)``). Views whose aliases fold on one another cost a little more, which is left out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from misr._efficiency import Optics, read_optics, ring_efficiency
from misr._measured_power import image_and_spectra, object_power
from misr._provenance import append_history
from misr._rings import half_spectrum, independent_values, make_rings, window_taper
from misr.aberrations import aberration_attrs, aberrations_of
from misr.cube import is_periodic
from misr.resolution import frc_threshold

__all__ = ["AGAINST", "as_power", "dose_for_resolution", "expected_frc", "power_array", "radial_power_spectrum"]

AGAINST = ("truth", "half-map")
_KEPT = ("energy_eV", "semiangle_mrad", "period_A")
_DOSES = (1e-6, 1e15)  # e/Å²


def radial_power_spectrum(
    image: xr.DataArray | xr.Dataset, *, ring_width: float | None = None, window: str | None = "auto"
) -> xr.DataArray:
    """Phase power spectral density ``P_φ(q) = <|FT φ|²> / area``, averaged over rings of frequencies.

    Parameters
    ----------
    image : xarray.DataArray or Dataset
        Phase, rad, dims ``("y", "x")``, Å. Its mean does not count. Or what `misr.fuse_linear` returns: then the power
        is the object's, the image's counting noise taken off and its transfer divided out (Notes).
    ring_width : float, optional
        Width of a ring, 1/Å; by default one frequency pixel of the shorter side. The rings are those of
        `misr.fourier_ring_correlation`.
    window : "auto", "hann" or None
        Taper against the borders of a field that does not wrap round; the power is divided by the taper's own.
        "auto" leaves out the taper where ``attrs["period_A"]`` says that the image is periodic.

    Returns
    -------
    xarray.DataArray
        Dim ``frequency`` (1/Å), rad² Å², with the coordinate ``n_independent`` (values per ring); optics kept in
        attrs. Without a taper ``Σ 2 n_independent P_φ / area`` is the variance (Parseval).

    Raises
    ------
    ValueError
        For an image that is not 2-D, not finite or too small, or a ring width below one frequency pixel.

    Notes
    -----
    The noise of a mere image counts as power: give the truth, or an image of much higher dose than the one asked about.
    The Dataset of a linear fusion tells its noise and its transfer t, and the power in a ring is then
    ``(P_image - <noise_std²>) / <t²>``; rings of which it shows less than a tenth (root mean square t) are left out.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> white = image_from_array(0.1 * np.random.default_rng(0).standard_normal((64, 64)), pixel_A=(0.5, 0.5))
    >>> power = radial_power_spectrum(white, window=None)  # 0.01 rad² over 4 Å⁻²
    >>> round(float(power.mean()), 3), power.attrs["units"]
    (0.003, 'rad² Å²')
    """
    phase, spectra = image_and_spectra(image)
    return _radial_power(phase, spectra, ring_width, window)


def _radial_power(
    image: xr.DataArray, spectra: xr.Dataset | None, ring_width: float | None, window: str | None
) -> xr.DataArray:
    pixel = _image_pixel(image)
    if window == "auto":
        window = None if is_periodic(image) else "hann"
    rings = make_rings(image.shape, pixel, ring_width)
    taper = window_taper(image.shape, window)
    values = image.values.astype(float)
    total = rings.sums(np.abs(half_spectrum((values - values.mean()) * taper)) ** 2)
    total *= pixel[0] * pixel[1] / np.sum(taper**2)
    used, power = rings.used, np.divide(total, rings.count, out=np.zeros_like(total), where=rings.used)
    if spectra is not None:
        power, told = object_power(power, rings, spectra)
        used = used & told
        if not used.any():
            raise ValueError("the image shows less than a tenth of the object in every ring: it tells no power of it")
    attrs = {name: image.attrs[name] for name in _KEPT if name in image.attrs}
    attrs |= aberration_attrs(aberrations_of(image)) if aberrations_of(image) is not None else {}
    attrs |= {"ring_width": rings.width, "window": str(window), "area_A2": image.size * math.prod(pixel)}
    attrs["history"] = append_history(image.attrs, "radial_power_spectrum", ring_width=rings.width, window=window)
    return power_array(
        power[used],
        frequency=rings.frequency[used],
        independent=np.maximum(independent_values(rings.whole(), window, rings)[used], 1.0),
        attrs=attrs,
    )


def _image_pixel(image: xr.DataArray) -> tuple[float, float]:
    if not isinstance(image, xr.DataArray) or image.dims != ("y", "x"):
        raise ValueError(
            f"expected an image with dims ('y', 'x') in Å, got {getattr(image, 'dims', type(image).__name__)}"
        )
    if min(image.shape) < 8 or not {"y", "x"} <= set(image.coords):
        raise ValueError(f"image of shape {image.shape}: at least 8 × 8 pixels with coordinates y and x (Å) are needed")
    if not np.all(np.isfinite(image.values)):
        raise ValueError("the image holds NaN or infinite values: crop or fill them first")
    steps = [float(image[dim][-1] - image[dim][0]) / (image.sizes[dim] - 1) for dim in ("y", "x")]
    return steps[0], steps[1]


def power_array(
    values: np.ndarray, *, frequency: np.ndarray, independent: np.ndarray, attrs: Mapping[str, Any]
) -> xr.DataArray:
    """Labels on a power spectral density over rings."""
    coords = {
        "frequency": ("frequency", frequency, {"units": "1/Å"}),
        "n_independent": ("frequency", independent, {"long_name": "independent values"}),
    }
    named = {"units": "rad² Å²", "long_name": "phase power spectral density"}
    return xr.DataArray(values, dims="frequency", coords=coords, name="power", attrs=named | dict(attrs))


def expected_frc(
    power_or_image: xr.DataArray | xr.Dataset,
    *,
    dose_e_per_A2: float,
    method: str = "linear",
    against: str = "truth",
    energy_eV: float | None = None,
    semiangle_mrad: float | None = None,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    det_step_mrad: float | tuple[float, float] | None = None,
    ring_width: float | None = None,
    window: str | None = "auto",
) -> xr.DataArray:
    """The Fourier ring correlation that a dose allows for an object of this power.

    Parameters
    ----------
    power_or_image : xarray.DataArray or Dataset
        The object's power over ``frequency`` (`radial_power_spectrum`, `phase_power_of_slab`), or its phase image
        (rad, dims ``("y", "x")``) or `misr.fuse_linear`'s Dataset, of which the power is then taken.
    dose_e_per_A2 : float
        Electrons per Å², of both halves together for half maps.
    method : {"linear", "tcbf", "ideal"}
        "linear": the bright field's electrons, used as well as linear algebra can (`misr.fuse_linear`):
        ``DQE = T sin²χ + ½ (a - T)``. "tcbf": shifted and added (`misr.shift_and_add`): ``DQE = a² sin²χ``. Here
        ``x = q λ/2α``, ``a(x) = (2/π)[arccos x - x √(1 - x²)]``, ``T = a(2x)``. "ideal": 1 up to the same band limit
        2α/λ, what an ideal Zernike phase plate attains with contrast 2φ and shot noise 1/dose, and no measurement of
        a weak phase surpasses (quantum Fisher information; Dwyer & Paganin 2024, Phys. Rev. B 110, 024110).
    against : {"truth", "half-map"}
        The true image, or two images of half the electrons each.
    energy_eV, semiangle_mrad : float, optional
        Beam energy and convergence semi-angle; from the attrs when not given.
    aberrations : mapping or Dataset, optional
        Polar coefficients, Å and rad; from the attrs when not given. Not needed for "ideal".
    det_step_mrad : float or (float, float), optional
        Detector pixel, mrad (``(y, x)`` if two): takes off what is lost as the shift changes across a pixel,
        ``sinc²`` along each edge. None: fine pixels.
    ring_width, window
        For images, see `radial_power_spectrum`.

    Returns
    -------
    xarray.DataArray
        ``frc`` over ``frequency`` (1/Å), for `misr.frc_resolution`, with the coordinates ``n_independent`` and
        ``snr``, the ring's mean S at the full dose.

    Raises
    ------
    ValueError
        For unknown options, a dose that is not positive, optics that are not known, or a power without its rings.

    Notes
    -----
    Across a ring S varies (with sin²χ, and with the direction under astigmatism), and correlations do not average: with
    each frequency weighted by its own Wiener factor, as the best estimate has it, the ring's sums give
    ``sqrt(<S/(1+S)>)`` against truth and ``<h²>/<h>`` with ``h = S/(S+2)`` for half maps. Other weights within a
    ring give less; a curve above the one "linear" allows is owed to a prior that knows more than the ring's power.

    The limit holds for the bright field of weak, thin objects. Aberrations above second order are summed over the
    aperture numerically.

    Examples
    --------
    >>> import misr
    >>> power = misr.phase_power_of_slab("carbon")
    >>> limit = expected_frc(power, dose_e_per_A2=1000, semiangle_mrad=10, aberrations={"C10": -1500})
    >>> misr.frc_resolution(limit, 0.5).attrs["status"], bool(limit.max() < 1)
    ('crossed', True)
    """
    dose = float(dose_e_per_A2)
    if not (math.isfinite(dose) and dose > 0):
        raise ValueError(f"dose_e_per_A2={dose_e_per_A2} must be a positive number of electrons per Å²")
    power = as_power(power_or_image, ring_width, window)
    optics = read_optics(power, method, energy_eV, semiangle_mrad, aberrations, det_step_mrad)
    q, values = power["frequency"].values, np.maximum(power.values, 0)
    efficiency, weight = ring_efficiency(q, float(power.attrs["ring_width"]), optics)
    snr = 4 * dose * values[:, None] * efficiency
    coords = {
        "frequency": power["frequency"],
        "n_independent": power["n_independent"],
        "snr": ("frequency", (snr * weight).sum(axis=1), {"units": "1", "long_name": "spectral SNR at the full dose"}),
    }
    attrs = {"units": "1", "long_name": "expected FRC", "method": method, "against": against, "dose_e_per_A2": dose}
    attrs |= {name: power.attrs[name] for name in ("ring_width", "window") if name in power.attrs}
    attrs |= {"band_limit": 2 * optics.cutoff}
    arguments = {"energy_eV": energy_eV, "semiangle_mrad": semiangle_mrad, "det_step_mrad": det_step_mrad}
    attrs["history"] = append_history(
        power.attrs, "expected_frc", dose_e_per_A2=dose, method=method, against=against,
        aberrations=dict(optics.aberrations), **arguments,
    )  # fmt: skip
    return xr.DataArray(_correlation(snr, weight, against), dims="frequency", coords=coords, name="frc", attrs=attrs)


def dose_for_resolution(
    power_or_image: xr.DataArray | xr.Dataset,
    *,
    resolution_A: float,
    threshold: str | float = 0.5,
    method: str = "linear",
    against: str = "truth",
    energy_eV: float | None = None,
    semiangle_mrad: float | None = None,
    aberrations: Mapping[str, Any] | xr.Dataset | None = None,
    det_step_mrad: float | tuple[float, float] | None = None,
    ring_width: float | None = None,
    window: str | None = "auto",
) -> xr.DataArray:
    """The least dose at which the expected FRC at a resolution reaches a threshold.

    Parameters
    ----------
    power_or_image : xarray.DataArray or Dataset
        As in `expected_frc`.
    resolution_A : float
        Wanted resolution, Å: the FRC is taken at 1/resolution, the power being interpolated there.
    threshold : str or float, default 0.5
        See `misr.frc_threshold`; 0.143 or "half-bit" go with ``against="half-map"``.
    method, against, energy_eV, semiangle_mrad, aberrations, det_step_mrad, ring_width, window
        As in `expected_frc`.

    Returns
    -------
    xarray.DataArray
        A scalar, e/Å² (of both halves together), with ``attrs["status"]``: "found", "beyond the band limit" or
        "no contrast" (the value being then ``inf``).

    Raises
    ------
    ValueError
        As `expected_frc`; if the resolution is not positive, or lies outside the frequencies of the power.

    Examples
    --------
    >>> import misr
    >>> power = misr.phase_power_of_slab("carbon")
    >>> optics = {"semiangle_mrad": 10, "aberrations": {"C10": -1500}}
    >>> dose = dose_for_resolution(power, resolution_A=2, **optics)
    >>> bool(dose > dose_for_resolution(power, resolution_A=2, method="ideal", **optics)), dose.attrs["units"]
    (True, 'e/Å²')
    >>> dose_for_resolution(power, resolution_A=0.9, **optics).attrs["status"]
    'beyond the band limit'
    """
    if not (math.isfinite(resolution_A) and resolution_A > 0):
        raise ValueError(f"resolution_A={resolution_A} must be a positive length in Å")
    power = as_power(power_or_image, ring_width, window)
    optics = read_optics(power, method, energy_eV, semiangle_mrad, aberrations, det_step_mrad)
    q = 1 / float(resolution_A)
    value, status = math.inf, "beyond the band limit"
    if q < 2 * optics.cutoff:
        value, status = _least_dose(power, q, threshold, against, optics)
    attrs = {"units": "e/Å²", "status": status, "resolution_A": float(resolution_A), "threshold": str(threshold)}
    attrs |= {"method": method, "against": against}
    attrs["history"] = append_history(power.attrs, "dose_for_resolution", **attrs)
    return xr.DataArray(value, name="dose", attrs=attrs)


def _least_dose(
    power: xr.DataArray, q: float, threshold: str | float, against: str, optics: Optics
) -> tuple[float, str]:
    from scipy.optimize import brentq

    known = power["frequency"].values
    if not known[0] <= q <= known[-1]:
        raise ValueError(
            f"resolution_A={1 / q:.4g} lies outside the power's frequencies ({1 / known[-1]:.4g} to {1 / known[0]:.4g} "
            "Å): give an image with finer pixels or of a larger field"
        )
    here = float(np.interp(q, known, power.values))
    level = float(frc_threshold(threshold, np.interp(q, known, power["n_independent"].values)))
    efficiency, weight = ring_efficiency(np.array([q]), float(power.attrs["ring_width"]), optics)

    def above(log_dose: float) -> float:
        snr = 4 * math.exp(log_dose) * here * efficiency
        return float(_correlation(snr, weight, against)[0]) - level

    low, high = (math.log(dose) for dose in _DOSES)
    if above(high) < 0:
        return math.inf, "no contrast"
    return (math.exp(brentq(above, low, high)), "found") if above(low) < 0 else (_DOSES[0], "found")


def _correlation(snr: np.ndarray, weight: np.ndarray, against: str) -> np.ndarray:
    """FRC of each ring, from S and the weights of its samples: ratios of ring sums."""
    if against not in AGAINST:
        raise ValueError(f"against={against!r} must be one of {', '.join(map(repr, AGAINST))}")
    if against == "truth":
        return np.sqrt((weight * snr / (1 + snr)).sum(axis=1))
    half = snr / (2 + snr)
    top, bottom = (weight * half**2).sum(axis=1), (weight * half).sum(axis=1)
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def as_power(given: xr.DataArray | xr.Dataset, ring_width: float | None, window: str | None) -> xr.DataArray:
    """A power over rings as it is, and that of an image or of a linear fusion's Dataset."""
    if isinstance(given, xr.DataArray) and given.dims == ("frequency",):
        if "n_independent" not in given.coords or "ring_width" not in given.attrs:
            raise ValueError(
                "the power lacks the coordinate 'n_independent' or attrs['ring_width']: make it with "
                "misr.limits.radial_power_spectrum or phase_power_of_slab"
            )
        if ring_width is not None:
            raise ValueError("ring_width goes with an image: this power has its rings already")
        return given
    return radial_power_spectrum(given, ring_width=ring_width, window=window)
