"""How far an image can be trusted: Fourier ring correlation, its thresholds, and the resolution they give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history

__all__ = ["fourier_ring_correlation", "frc_resolution", "frc_threshold", "resolution_words"]

_THRESHOLDS = {
    # (a + b/√n) / (c + d/√n): van Heel & Schatz 2005, J. Struct. Biol. 151, 250
    "half-bit": (0.2071, 1.9102, 1.2071, 0.9102),
    "1-bit": (0.5, 2.4142, 1.5, 1.4142),
}
_CHANCE = 4.0  # a ring counts as correlated only above this many standard deviations of unrelated images, 1/√(2n)
_SAME_GRID = 1e-3  # of a pixel


def fourier_ring_correlation(
    a: xr.DataArray, b: xr.DataArray, *, ring_width: float | None = None, window: str | None = "hann"
) -> xr.DataArray:
    """Fourier ring correlation of two images of the same field, ring by ring and with its sign.

    ``FRC = Re Σ A B* / sqrt(Σ|A|² Σ|B|²)`` over each ring of frequencies (Saxton & Baumeister 1982, J. Microsc.
    127, 127).

    Parameters
    ----------
    a, b : xarray.DataArray
        Images with dims ``("y", "x")`` on the same coordinates (Å).
    ring_width : float, optional
        Width of a ring, 1/Å; by default one frequency pixel of the field's shorter side. For a crystal make it wider
        than its reciprocal lattice spacing (0.07 1/Å serves cells of 17-20 Å): between reflections narrow rings
        hold no signal.
    window : "hann" or None
        Taper applied to both images after their mean is taken off; without one, a field that does not wrap round
        correlates through its own borders.

    Returns
    -------
    xarray.DataArray
        Dim ``frequency`` (1/Å, the mean over the ring's pixels), values -1 to 1, with the coordinate ``n_independent``:
        how many independent complex values a ring holds (half its pixels, fewer under a window). Rings end at the
        smaller Nyquist frequency.

    Raises
    ------
    ValueError
        For images that are not 2-D, not on the same grid, or not finite, or a ring width below one frequency pixel.

    Examples
    --------
    >>> import numpy as np, misr
    >>> from misr.cube import image_from_array
    >>> image = image_from_array(np.random.default_rng(0).standard_normal((32, 32)), pixel_A=(0.5, 0.5))
    >>> frc = fourier_ring_correlation(image, -image)
    >>> bool(np.allclose(frc, -1)), frc.frequency.attrs["units"]
    (True, '1/Å')
    """
    pixel = _check_pair(a, b)
    shape = a.shape
    lowest = 1 / min(shape[0] * pixel[0], shape[1] * pixel[1])
    width = lowest if ring_width is None else float(ring_width)
    if not width >= lowest * (1 - 1e-9):
        raise ValueError(f"ring_width={width:g} is below one frequency pixel of this field ({lowest:.4g} 1/Å)")
    taper = window_taper(shape, window)
    first, second = (np.fft.fft2((image.values - np.mean(image.values)) * taper) for image in (a, b))
    q = np.hypot(np.fft.fftfreq(shape[0], pixel[0])[:, None], np.fft.fftfreq(shape[1], pixel[1])[None, :])
    nyquist = 0.5 / max(pixel)
    ring = np.floor(q / width + 0.5 if ring_width is None else q / width).astype(int) + 1
    # ring 0 takes what belongs to none: the zero frequency (the mean, taken off above), Nyquist and what lies past it
    ring[(q == 0) | (q >= nyquist * (1 - 1e-9))] = 0
    cross, power_a, power_b, count, sum_q = (
        np.bincount(ring.ravel(), weights=values.ravel())[1:]
        for values in (
            (first * second.conj()).real,
            np.abs(first) ** 2,
            np.abs(second) ** 2,
            np.ones(shape),
            q,
        )
    )
    independent = independent_values(ring, window)
    used = count > 0
    scale = np.sqrt(power_a * power_b)[used]
    values = np.divide(cross[used], scale, out=np.zeros(scale.size), where=scale > 0)
    coords = {
        "frequency": ("frequency", sum_q[used] / count[used], {"units": "1/Å"}),
        "n_independent": ("frequency", np.maximum(independent[used], 1.0), {"long_name": "independent values"}),
    }
    attrs = {"units": "1", "ring_width": width, "window": str(window), "nyquist": nyquist, "long_name": "FRC"}
    attrs["history"] = append_history(a.attrs, "fourier_ring_correlation", ring_width=width, window=window)
    return xr.DataArray(values, dims="frequency", coords=coords, name="frc", attrs=attrs)


def _check_pair(a: xr.DataArray, b: xr.DataArray) -> tuple[float, float]:
    for image in (a, b):
        if not isinstance(image, xr.DataArray) or image.dims != ("y", "x"):
            raise ValueError(
                f"expected images with dims ('y', 'x'), got {getattr(image, 'dims', type(image).__name__)}"
            )
        if min(image.shape) < 8:
            raise ValueError(f"image shape {image.shape} is too small for rings: at least 8 × 8 pixels")
        if not np.all(np.isfinite(image.values)):
            raise ValueError("an image holds NaN or infinite values: crop or fill them first")
    if a.shape != b.shape:
        raise ValueError(f"image shapes differ, {a.shape} and {b.shape}: resample one on the other's grid first")
    pixel = []
    for dim in ("y", "x"):
        here, there = a[dim].values.astype(float), b[dim].values.astype(float)
        step = float(here[-1] - here[0]) / (here.size - 1)
        if np.max(np.abs(here - there)) > _SAME_GRID * step:
            raise ValueError(
                f"coordinate {dim!r} of the images differs by up to {np.max(np.abs(here - there)):.3g} Å: resample one "
                "on the other's grid first"
            )
        pixel.append(step)
    return pixel[0], pixel[1]


def window_taper(shape: tuple[int, ...], window: str | None) -> np.ndarray:
    """Taper against a field's borders: all ones, or a Hann window."""
    if window is None:
        return np.ones(shape)
    if window != "hann":
        raise ValueError(f"window={window!r} must be 'hann' or None")
    one_dim = [0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n) for n in shape]
    return np.outer(one_dim[0], one_dim[1])


def independent_values(ring: np.ndarray, window: str | None) -> np.ndarray:
    """Independent complex values per ring (1, 2, …): half its pixels, fewer where a window makes neighbours alike.

    Under a window w, white noise at frequency pixels δ apart correlates as the Fourier transform C of w² does, and a
    sum over m of them varies as over ``m² / Σ |C(δ)|²``, the sum running over all pairs in the ring.
    """
    count = np.bincount(ring.ravel())
    pairs = count.astype(float)
    if window is not None:
        # Hann: w² = 3/8 - cos/2 + cos(2·)/8, so |C|² is 1, 4/9, 1/36 at 0, 1, 2 pixels along each axis
        likeness = {-2: 1 / 36, -1: 4 / 9, 0: 1.0, 1: 4 / 9, 2: 1 / 36}
        pairs = np.zeros(count.size)
        for step_y, alike_y in likeness.items():
            for step_x, alike_x in likeness.items():
                same = ring == np.roll(ring, (step_y, step_x), axis=(0, 1))
                pairs += alike_y * alike_x * np.bincount(ring.ravel(), weights=same.ravel(), minlength=count.size)
    return (count.astype(float) ** 2 / np.maximum(pairs, 1e-12))[1:] / 2


def frc_threshold(kind: str | float, n: Any) -> Any:
    """FRC threshold for rings of n independent values.

    Parameters
    ----------
    kind : "half-bit", "1-bit" or float
        Half-bit ``(0.2071 + 1.9102/√n) / (1.2071 + 0.9102/√n)`` and 1-bit
        ``(0.5 + 2.4142/√n) / (1.5 + 1.4142/√n)`` are the FRC of half maps that hold ½ and 1 bit per value (van Heel &
        Schatz 2005); a number is that number everywhere. Against truth use 0.5, for half maps 0.143 says the same
        (both mean a spectral SNR of ⅓ at the full dose).
    n : array or float
        Independent values per ring.

    Returns
    -------
    array
        Threshold, the shape of ``n``.

    Raises
    ------
    ValueError
        For an unknown kind, a number outside 0 to 1, or rings without values.

    Examples
    --------
    >>> round(float(frc_threshold("half-bit", 112)), 4), round(float(frc_threshold("1-bit", 112)), 4)
    (0.2997, 0.4457)
    """
    n = np.asarray(n, dtype=float)
    if np.any(n <= 0):
        raise ValueError(f"n={n.min():g} independent values: expected positive numbers")
    if isinstance(kind, str):
        if kind not in _THRESHOLDS:
            raise ValueError(f"threshold {kind!r} must be one of {sorted(_THRESHOLDS)} or a number such as 0.5")
        top, top_noise, bottom, bottom_noise = _THRESHOLDS[kind]
        root = n**-0.5
        return (top + top_noise * root) / (bottom + bottom_noise * root)
    if not 0 < kind < 1:
        raise ValueError(f"threshold={kind} must lie between 0 and 1")
    return 0 * n + float(kind)


def frc_resolution(frc: xr.DataArray, threshold: str | float = "half-bit") -> xr.DataArray:
    """Resolution at the FRC's first fall below a threshold.

    Phase contrast carries almost nothing at the lowest frequencies, so leading rings below the threshold are skipped:
    the search starts at the first ring that lies above it and above chance (4/√(2n)), and ends at the first later ring
    below it; in between, the crossing is interpolated linearly.

    Parameters
    ----------
    frc : xarray.DataArray
        From `fourier_ring_correlation`.
    threshold : str or float, default "half-bit"
        See `frc_threshold`. Use 0.5 against truth, "half-bit" or 0.143 for half maps.

    Returns
    -------
    xarray.DataArray
        A scalar in Å with ``attrs["status"]``: "crossed"; "sampling-limited" when the curve never falls below, the
        value being then that of the last ring; "unresolved" (value ``inf``) when no ring lies above.

    Raises
    ------
    ValueError
        If the curve has no ``frequency`` and ``n_independent``, or for an unknown threshold.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> frc = xr.DataArray([1.0, 0.9, 0.4, 0.1], dims="frequency", coords={"frequency": [0.1, 0.2, 0.3, 0.4],
    ...     "n_independent": ("frequency", [50.0, 100.0, 150.0, 200.0])})
    >>> resolution = frc_resolution(frc, 0.5)
    >>> round(float(resolution), 3), resolution.attrs["status"]
    (3.571, 'crossed')
    """
    missing = [name for name in ("frequency", "n_independent") if name not in getattr(frc, "coords", {})]
    if missing:
        raise ValueError(f"the FRC curve lacks {missing}: make it with misr.fourier_ring_correlation")
    q, n = frc["frequency"].values, frc["n_independent"].values
    level = np.asarray(frc_threshold(threshold, n), dtype=float)
    value, status = _first_fall(q, frc.values - level, frc.values > np.maximum(level, _CHANCE / np.sqrt(2 * n)))
    attrs = {"units": "Å", "status": status, "threshold": str(threshold)}
    if "ring_width" in frc.attrs:
        attrs["ring_width"] = frc.attrs["ring_width"]
    return xr.DataArray(value, name="resolution", attrs=attrs)


def _first_fall(q: np.ndarray, above: np.ndarray, resolved: np.ndarray) -> tuple[float, str]:
    if not resolved.any():
        return math.inf, "unresolved"
    start = int(np.argmax(resolved))
    fallen = np.flatnonzero(above[start:] < 0)
    if fallen.size == 0:
        return 1 / float(q[-1]), "sampling-limited"
    after = start + int(fallen[0])
    before = after - 1
    share = above[before] / (above[before] - above[after])
    return 1 / float(q[before] + share * (q[after] - q[before])), "crossed"


def resolution_words(resolution: xr.DataArray) -> str:
    """A resolution in words: "2.31 Å", "≤ 1.00 Å" if only the sampling limits it, or "nothing resolved".

    Parameters
    ----------
    resolution : xarray.DataArray
        Scalar in Å with ``attrs["status"]``, from `frc_resolution`.

    Returns
    -------
    str
        For a title, a table or a report.

    Examples
    --------
    >>> import xarray as xr
    >>> resolution_words(xr.DataArray(1.0, attrs={"status": "sampling-limited"}))
    '≤ 1.00 Å'
    >>> resolution_words(xr.DataArray(np.inf, attrs={"status": "unresolved"}))
    'nothing resolved'
    """
    status = resolution.attrs["status"]
    if status == "unresolved":
        return "nothing resolved"
    return f"{'≤ ' if status == 'sampling-limited' else ''}{float(resolution):.2f} Å"
