"""FRC of one image with itself: two halves of its electrons, for raw counts and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr._rings import half_spectrum
from misr.resolution import fourier_ring_correlation

__all__ = ["single_image_frc"]

_BANDS = 8
_LEAST_NOISE = 0.8  # of Poisson's; real detectors lose a few percent to coincidences
_SIGMAS = 5.0


def single_image_frc(counts: xr.DataArray, *, rng: Any = None, **options: Any) -> xr.DataArray:
    """Half-map FRC of one image of electron counts, whose electrons are dealt into two halves at random.

    Of N electrons in a pixel a binomial draw takes half; if N is Poisson's, so are the halves, and independent of one
    another.

    Parameters
    ----------
    counts : xarray.DataArray
        Whole numbers of electrons with dims ``("y", "x")`` or ``("scan_y", "scan_x")``, Å: a virtual image of a
        counting detector.
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).
    **options
        ``ring_width``, ``window``, ``mask``, ``confidence`` of `misr.fourier_ring_correlation`.

    Returns
    -------
    xarray.DataArray
        As `misr.fourier_ring_correlation`, with ``attrs["kind"]`` "half-map" and ``attrs["split"]`` "binomial". Read
        half-map thresholds. For the whole image's signal-to-noise ratio it stands for ``2F/(1 + F)``.

    Raises
    ------
    ValueError
        For anything but raw counts: phases, fractions, negative numbers, multiples of a gain, an image without
        electrons, and one less noisy than independent electrons can be in some band of frequencies, as are images
        that were upsampled, interpolated, smoothed or put out by a network, though rounded to whole numbers.

    Notes
    -----
    *Where it is valid*: every electron counted once, in one pixel, independently of all others. Electrons that light
    up two neighbouring pixels come out as signal, up to the highest frequencies; so do fixed patterns of gain, and
    what an analogue detector's conversion into "counts" gets wrong. A gain that is not whole cannot be seen here.
    For reconstructions, split the electrons before: `misr.half_maps`.

    *What is not offered*: dealing pixels, not electrons, into two images (checkerboards, odd and even rows). The two
    sample different places, so high frequencies alias and half of them are lost; and where neighbours share their
    noise, as after any interpolation or a network, both images hold the same noise and it counts as signal.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> counts = image_from_array(np.random.default_rng(0).poisson(5, (32, 32)), pixel_A=(2.0, 2.0))
    >>> frc = single_image_frc(counts, rng=0)
    >>> frc.attrs["kind"], bool(abs(frc.mean()) < 0.2)
    ('half-map', True)
    """
    image = _as_image(counts)
    whole = _whole_counts(image)
    _check_noise(whole)
    first = np.random.default_rng(rng).binomial(whole, 0.5)
    halves = (image.copy(data=half) for half in (first, whole - first))
    frc = fourier_ring_correlation(*halves, **options)
    frc.attrs |= {"kind": "half-map", "split": "binomial"}
    frc.attrs["history"] = append_history(frc.attrs, "single_image_frc", rng=describe_rng(rng))
    return frc


def _as_image(counts: xr.DataArray) -> xr.DataArray:
    dims = getattr(counts, "dims", None)
    if dims == ("scan_y", "scan_x"):
        counts, dims = counts.rename(scan_y="y", scan_x="x"), ("y", "x")
    if dims != ("y", "x") or min(counts.shape) < 8:
        raise ValueError(
            f"expected an image of counts with dims ('y', 'x') or ('scan_y', 'scan_x') of at least 8 × 8 pixels, got "
            f"{dims if dims is not None else type(counts).__name__}{getattr(counts, 'shape', '')}"
        )
    return counts


def _whole_counts(image: xr.DataArray) -> np.ndarray:
    values = image.values
    advice = "only raw electron counts, as they were recorded, can be split; for other images give two of them"
    if values.dtype.kind not in "uif" or not np.all(np.isfinite(values)):
        raise ValueError(f"the image holds values that are no finite real numbers: {advice}")
    if values.min() < 0:
        raise ValueError(f"the image holds {values.min():g}, below zero: {advice}")
    whole = np.rint(values).astype(np.int64)
    if not np.array_equal(whole, values) and image.attrs.get("units") == "rad":
        raise ValueError(
            "the image is a phase in rad, made from all electrons at once: its pixels are no counts. Split the "
            "electrons first and reconstruct both halves (misr.half_maps)"
        )
    if not np.array_equal(whole, values):
        raise ValueError(f"the image holds {values[whole != values].flat[0]:g}, no whole number of electrons: {advice}")
    gain = int(np.gcd.reduce(whole, axis=None))
    if gain == 0:
        raise ValueError("the image holds no electron")
    if gain > 1:
        raise ValueError(f"all counts are multiples of {gain}: divide by {gain} if that is one electron's signal")
    return whole


def _check_noise(whole: np.ndarray) -> None:
    """Independent electrons have the power of their number at all frequencies at least; specimens only add to it."""
    power = np.abs(half_spectrum(whole - whole.mean())) ** 2 / whole.sum()
    # up to the corners, in pixels: interpolation knows no Å
    q = np.hypot(np.fft.fftfreq(whole.shape[0])[:, None], np.fft.rfftfreq(whole.shape[1])[None, :])
    band = np.minimum((q / np.hypot(0.5, 0.5) * _BANDS).astype(int), _BANDS - 1)
    n = np.bincount(band.ravel(), minlength=_BANDS)
    ratio = np.bincount(band.ravel(), weights=power.ravel(), minlength=_BANDS) / np.maximum(n, 1)
    short = (n > 0) & (ratio < np.minimum(_LEAST_NOISE, 1 - _SIGMAS / np.sqrt(np.maximum(n, 1))))
    if short.any():
        worst = int(np.flatnonzero(short)[np.argmin(ratio[short])])
        raise ValueError(
            f"at {worst / _BANDS:.0%} to {(worst + 1) / _BANDS:.0%} of the highest frequency the image has "
            f"{ratio[worst]:.2g} of the noise that independent electrons have: it was upsampled, interpolated, "
            "smoothed or denoised. Give the counts as they were recorded"
        )
