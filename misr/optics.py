"""Electron optics in plain arrays: wavelength, aberrations, the overlap function and linear transfer.

Everything here takes NumPy arrays, torch tensors or anything else that speaks the array API, and returns the
same kind. Spatial frequencies are in 1/Å, angles in rad unless a name says ``mrad``, aberration magnitudes in Å.

Conventions (one sign, everywhere in misr): the probe-forming aperture function is
``P(k) = A(k) exp(-i χ(k))`` with ``χ = (2π/λ) Σ C_nm α^(n+1) cos(m (φ - φ_nm)) / (n+1)``, ``α = λ|k|`` and
``φ = atan2(k_y, k_x)``; ``defocus = -C10``, as abTEM, py4DSTEM and quantem have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from array_api_compat import array_namespace

_PLANCK_C_EV_A = 12398.419843320026  # h c, eV Å (CODATA 2018)
_ELECTRON_REST_EV = 510998.95  # m c², eV
_SQUARE = 1e-3  # of the squared edges: calibrations written as float32 differ by 1e-4


def electron_wavelength(energy_eV: float) -> float:
    """Relativistic electron wavelength in Å.

    Parameters
    ----------
    energy_eV : float
        Kinetic energy, eV.

    Returns
    -------
    float
        ``h c / sqrt(E (E + 2 m c²))`` (Kirkland, *Advanced Computing in Electron Microscopy*).

    Raises
    ------
    ValueError
        If the energy is not positive.

    Examples
    --------
    >>> round(electron_wavelength(300e3), 5)
    0.01969
    """
    if not energy_eV > 0:
        raise ValueError(f"energy_eV={energy_eV} must be positive: give the beam energy in eV, e.g. 300e3")
    return _PLANCK_C_EV_A / math.sqrt(energy_eV * (energy_eV + 2 * _ELECTRON_REST_EV))


def interaction_parameter(energy_eV: float) -> float:
    """Phase in rad that one V Å of projected potential gives (Kirkland).

    Parameters
    ----------
    energy_eV : float
        Kinetic energy, eV.

    Returns
    -------
    float
        σ in rad / (V Å).

    Examples
    --------
    >>> round(interaction_parameter(300e3) * 1e4, 3)
    6.526
    """
    # sigma = alpha / beta * (1 / (hbar c)) : the same as 2 pi m e lambda / h²
    gamma = 1 + energy_eV / _ELECTRON_REST_EV
    beta = math.sqrt(1 - 1 / gamma**2)
    return 2 * math.pi / (beta * _PLANCK_C_EV_A)


def _terms(aberrations: Mapping[str, float]) -> list[tuple[int, int, float, float]]:
    terms = []
    for name, value in aberrations.items():
        if name.startswith("C") and value != 0.0:
            n, m = int(name[1]), int(name[2])
            terms.append((n, m, value, aberrations.get(f"phi{n}{m}", 0.0)))
    return terms


def _complex_power(k_y: Any, k_x: Any, m: int) -> tuple[Any, Any]:
    """Real and imaginary part of (k_x + i k_y)^m: polynomials are much cheaper than atan2 and cos."""
    re, im = k_x * 0 + 1, k_x * 0
    for _ in range(m):
        re, im = re * k_x - im * k_y, re * k_y + im * k_x
    return re, im


def aberration_phase(k_y: Any, k_x: Any, *, aberrations: Mapping[str, float], wavelength: float) -> Any:
    """Aberration function χ(k) in rad.

    Parameters
    ----------
    k_y, k_x : array
        Spatial frequencies of one shape, 1/Å, in the scan's frame.
    aberrations : mapping
        Polar coefficients, Å and rad (see `misr.aberrations.polar_aberrations`).
    wavelength : float
        Å.

    Returns
    -------
    array
        χ, rad, the shape of ``k_y`` broadcast with ``k_x``.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(aberration_phase(np.array(0.0), np.array(0.5), aberrations={"C10": 100.0}, wavelength=0.02)), 6)
    1.570796
    """
    squared = k_y**2 + k_x**2
    chi = squared * 0
    for n, m, magnitude, angle in _terms(aberrations):
        re, im = _complex_power(k_y, k_x, m)
        harmonic = re * math.cos(m * angle) + im * math.sin(m * angle)
        scale = 2 * math.pi / wavelength * magnitude / (n + 1) * wavelength ** (n + 1)
        chi = chi + scale * squared ** ((n + 1 - m) // 2) * harmonic
    return chi


def aberration_gradient(k_y: Any, k_x: Any, *, aberrations: Mapping[str, float], wavelength: float) -> tuple[Any, Any]:
    """Gradient of χ over k, in rad Å; over 2π it is the geometric shift in Å.

    Parameters
    ----------
    k_y, k_x : array
        Spatial frequencies, 1/Å.
    aberrations : mapping
        Polar coefficients, Å and rad.
    wavelength : float
        Å.

    Returns
    -------
    tuple of array
        ``(∂χ/∂k_y, ∂χ/∂k_x)``, rad Å.

    Examples
    --------
    >>> import numpy as np
    >>> gy, gx = aberration_gradient(np.array(0.0), np.array(0.5), aberrations={"C10": 100.0}, wavelength=0.02)
    >>> round(float(gx) / (2 * np.pi), 12)  # C10 · λ · k = 100 Å · 10 mrad
    1.0
    """
    squared = k_y**2 + k_x**2
    grad_y, grad_x = squared * 0, squared * 0
    for n, m, magnitude, angle in _terms(aberrations):
        cos, sin = math.cos(m * angle), math.sin(m * angle)
        p = (n + 1 - m) // 2
        scale = 2 * math.pi / wavelength * magnitude / (n + 1) * wavelength ** (n + 1)
        if m > 0:
            re, im = _complex_power(k_y, k_x, m - 1)
            radial = scale * m * squared**p
            grad_x = grad_x + radial * (re * cos + im * sin)
            grad_y = grad_y + radial * (re * sin - im * cos)
        if p > 0:
            re, im = _complex_power(k_y, k_x, m)
            common = scale * 2 * p * squared ** (p - 1) * (re * cos + im * sin)
            grad_x = grad_x + common * k_x
            grad_y = grad_y + common * k_y
    return grad_y, grad_x


def aperture_fraction(k_y: Any, k_x: Any, *, cutoff: float, width: float) -> Any:
    """Fraction of a pixel of the given width that lies inside a round aperture (to first order in width).

    Parameters
    ----------
    k_y, k_x : array
        Pixel centres, 1/Å.
    cutoff : float
        Aperture radius α/λ, 1/Å.
    width : float or array
        Pixel width, 1/Å (see `pixel_width`).

    Returns
    -------
    array
        0 outside to 1 inside.

    Examples
    --------
    >>> import numpy as np
    >>> aperture_fraction(np.zeros(3), np.array([0.4, 0.5, 0.6]), cutoff=0.5, width=0.1).tolist()
    [1.0, 0.5, 0.0]
    """
    xp = array_namespace(k_y, k_x)
    edge = (cutoff - xp.sqrt(k_y**2 + k_x**2)) / width + 0.5
    return xp.clip(edge, 0.0, 1.0)


def pixel_width(k_y: Any, k_x: Any, *, pixel_edges: tuple[tuple[float, float], tuple[float, float]]) -> Any:
    """Width of a detector pixel along k, as the round aperture's edge crosses it: for `aperture_fraction`.

    ``sqrt((e1·n)² + (e2·n)²)`` with ``n = k/|k|``: the box with the variance of the pixel's extent along n. The
    fraction it gives agrees with sub-pixel averages over pixels at the edge to 0.025 rms (tested); the full extent
    ``|e1·n| + |e2·n|`` would spread the edge too far, a pixel's extent having rounded ends.

    Parameters
    ----------
    k_y, k_x : array
        Pixel centres, 1/Å.
    pixel_edges : ((y, x), (y, x))
        The two edge vectors of a detector pixel in the scan's frame, 1/Å.

    Returns
    -------
    float or array
        1/Å; one number for a square pixel, which is as wide in every direction.

    Examples
    --------
    >>> import numpy as np
    >>> pixel_width(np.array([0.5, 0.0]), np.array([0.0, 0.5]), pixel_edges=((0.03, 0.0), (0.0, 0.02))).round(6)
    array([0.03, 0.02])
    """
    (y1, x1), (y2, x2) = pixel_edges
    first, second = y1 * y1 + x1 * x1, y2 * y2 + x2 * x2
    mean = (first + second) / 2
    if abs(first - second) + abs(y1 * y2 + x1 * x2) <= _SQUARE * mean:
        return math.sqrt(mean)
    xp = array_namespace(k_y, k_x)
    tiny = 1e-9 * mean  # at k = 0, where there is no direction, the mean
    squared = (k_y * y1 + k_x * x1) ** 2 + (k_y * y2 + k_x * x2) ** 2
    return xp.sqrt((squared + tiny * mean) / (k_y**2 + k_x**2 + tiny))


def _sinc(x: Any) -> Any:
    """sin(x)/x, written out because the array API has none; the series keeps x = 0 exact."""
    xp = array_namespace(x)
    safe = xp.where(xp.abs(x) < 1e-3, xp.ones_like(x), x)
    return xp.where(xp.abs(x) < 1e-3, 1 - x**2 / 6, xp.sin(safe) / safe)


def overlap_function(
    k_y: Any,
    k_x: Any,
    q_y: Any,
    q_x: Any,
    *,
    aberrations: Mapping[str, float],
    wavelength: float,
    cutoff: float,
    pixel_edges: tuple[tuple[float, float], tuple[float, float]],
    absorption_rad: float = 0.0,
    focal_spread_A: float = 0.0,
) -> tuple[Any, Any]:
    """Overlap function Γ(k, q) of a weak phase object, averaged over a detector pixel.

    ``Γ(k, q) = i [P*(k) P(k - q) - P(k) P*(k + q)]``: the Fourier transform over the scan of the counts in
    pixel k is ``Γ(k, q) φ(q)`` (Rodenburg, McCallum & Nellist 1993, Ultramicroscopy 48, 304). Inside the
    aperture ``χ(k) - χ(k ∓ q)`` varies (for second-order aberrations exactly) linearly over a pixel, so the mean
    over its area is the value at the centre times a sinc along each edge.

    An object ``1 + i φ exp(iη)``, η the absorption angle, has
    ``Γ = i [exp(iη) P*(k) P(k - q) - exp(-iη) P(k) P*(k + q)]``; η = π/2 is pure absorption, ``1 - φ``. A Gaussian
    spread of defocus with standard deviation σ damps each term by ``exp(-½ (πλσ)² (k² - |k ∓ q|²)²)``.

    Parameters
    ----------
    k_y, k_x : array
        Detector pixel centres in the scan's frame, 1/Å; broadcast against ``q``.
    q_y, q_x : array
        Object frequencies, 1/Å.
    aberrations : mapping
        Polar coefficients, Å and rad.
    wavelength : float
        Å.
    cutoff : float
        α/λ, 1/Å.
    pixel_edges : ((y, x), (y, x))
        The two edge vectors of a detector pixel in the scan's frame, 1/Å.
    absorption_rad : float
        η, rad.
    focal_spread_A : float
        Standard deviation of the defocus, Å.

    Returns
    -------
    tuple of array
        Real and imaginary part of Γ, dimensionless, in the broadcast shape.

    Examples
    --------
    >>> import numpy as np
    >>> re, im = overlap_function(np.array(0.1), np.array(0.0), np.array(0.0), np.array(0.0), wavelength=0.02,
    ...     aberrations={"C10": 100.0}, cutoff=0.5, pixel_edges=((0.03, 0.0), (0.0, 0.03)))
    >>> abs(float(re)) + abs(float(im))  # a constant phase is invisible
    0.0
    """
    xp = array_namespace(k_y, k_x, q_y, q_x)
    centre = _pixel_fraction(k_y, k_x, cutoff, pixel_edges)
    optics: dict[str, Any] = {"aberrations": aberrations, "wavelength": wavelength}
    re: Any = 0.0
    im: Any = 0.0
    for sign in (-1, 1):
        step_y, step_x = sign * q_y, sign * q_x
        difference, (slope_y, slope_x) = _phase_difference(k_y, k_x, step_y, step_x, **optics)
        blur: Any = 1.0
        for edge_y, edge_x in pixel_edges:
            blur = blur * _sinc((slope_y * edge_y + slope_x * edge_x) / 2)
        weight = centre * _pixel_fraction(k_y + step_y, k_x + step_x, cutoff, pixel_edges) * blur
        if focal_spread_A:
            gained = 2 * (k_y * step_y + k_x * step_x) + step_y**2 + step_x**2
            weight = weight * xp.exp(-0.5 * (math.pi * wavelength * focal_spread_A * gained) ** 2)
        # P*(k) P(k-q) = w exp(i d);  P(k) P*(k+q) = w exp(-i d);  Γ = i [exp(iη) first - exp(-iη) second]
        angle = difference + absorption_rad
        re = re - weight * xp.sin(angle)
        im = im - sign * weight * xp.cos(angle)
    return re, im


def _pixel_fraction(k_y: Any, k_x: Any, cutoff: float, pixel_edges: Any) -> Any:
    return aperture_fraction(k_y, k_x, cutoff=cutoff, width=pixel_width(k_y, k_x, pixel_edges=pixel_edges))


def _phase_difference(
    k_y: Any, k_x: Any, q_y: Any, q_x: Any, *, aberrations: Mapping[str, float], wavelength: float
) -> tuple[Any, tuple[Any, Any]]:
    """χ(k) - χ(k + q) and its gradient over k."""
    optics: dict[str, Any] = {"aberrations": aberrations, "wavelength": wavelength}
    grad_y, grad_x = aberration_gradient(k_y, k_x, **optics)
    if all(n == 1 for n, *_ in _terms(aberrations)):
        # a quadratic form: the difference separates into k and q, which saves nearly all of the work on the product
        slope_y, slope_x = aberration_gradient(q_y, q_x, **optics)
        return -(grad_y * q_y + grad_x * q_x) - aberration_phase(q_y, q_x, **optics), (-slope_y, -slope_x)
    other_grad_y, other_grad_x = aberration_gradient(k_y + q_y, k_x + q_x, **optics)
    difference = aberration_phase(k_y, k_x, **optics) - aberration_phase(k_y + q_y, k_x + q_x, **optics)
    return difference, (grad_y - other_grad_y, grad_x - other_grad_x)


def axial_overlap(q: Any, *, cutoff: float) -> Any:
    """Normalised self-overlap a(x) of the aperture, ``x = q / (2 cutoff)``: the envelope of tcBF contrast.

    Parameters
    ----------
    q : array
        Frequency magnitude, 1/Å.
    cutoff : float
        α/λ, 1/Å.

    Returns
    -------
    array
        ``(2/π)(arccos x - x sqrt(1 - x²))``, 1 at 0 and 0 from 2 α/λ on.

    Examples
    --------
    >>> import numpy as np
    >>> axial_overlap(np.array([0.0, 2.0]), cutoff=0.5).tolist()
    [1.0, 0.0]
    """
    xp = array_namespace(q)
    x = xp.clip(q / (2 * cutoff), 0.0, 1.0)
    return 2 / math.pi * (xp.acos(x) - x * xp.sqrt(1 - x**2))


def rotate(y: Any, x: Any, angle_deg: float) -> tuple[Any, Any]:
    """Detector vector to scan frame: rotation by ``rotation_deg``, the sign of py4DSTEM's ``force_com_rotation``.

    ``y' = y cos θ - x sin θ``, ``x' = y sin θ + x cos θ``.

    Parameters
    ----------
    y, x : array or float
        Vector components.
    angle_deg : float
        Degrees.

    Returns
    -------
    tuple
        Rotated ``(y, x)``.

    Examples
    --------
    >>> y, x = rotate(1.0, 0.0, 90)
    >>> round(y, 12), round(x, 12)
    (0.0, 1.0)
    """
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return y * cos - x * sin, y * sin + x * cos
