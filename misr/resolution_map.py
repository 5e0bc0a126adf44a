"""Resolution from place to place: the Fourier ring correlation of small windows of two images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from misr._pairs import weighted
from misr._provenance import append_history
from misr._reflections import ring_width_of_lattice
from misr._rings import half_spectrum, independent_values, make_rings, window_taper
from misr.cube import is_periodic
from misr.resolution import find_gap, frc_threshold, gap_words

__all__ = ["local_resolution"]

_SAME_GRID = 1e-3  # of a pixel
_TRIAL_WINDOWS = 8  # along each axis, with as many between them
_LARGEST = 1 - 1e-12
_BATCH_BYTES = 48e6
_UNRESOLVED, _CROSSED, _SAMPLING = 0, 1, 2


class _Rings(NamedTuple):
    """The rings of one window's half plane of frequencies."""

    matrix: Any  # sparse, (rings, half-plane pixels), counting each pixel's mirror image too
    frequency: np.ndarray
    independent: np.ndarray
    width: float


def local_resolution(
    a: xr.DataArray,
    b: xr.DataArray,
    *,
    window_A: float,
    step_A: float | None = None,
    threshold: str | float = "half-bit",
    ring_width: float | str | None = None,
    false_alarm: float = 1e-3,
    min_independent: float = 12.0,
    rng: int | np.random.Generator | None = 0,
) -> xr.Dataset:
    """Map of the resolution: FRC in Hann windows that glide over both images.

    Parameters
    ----------
    a, b : xarray.DataArray
        Two images of the same field with dims ``("y", "x")`` on the same coordinates (Å): half maps, or an image and
        the truth.
    window_A : float
        Side of the square window, Å, from zero to zero of its Hann taper: half of it is seen at more than half weight,
        and the resolution found belongs to about that half. Ten times the expected resolution is a good beginning.
    step_A : float, optional
        Distance of window centres, Å; a quarter of the window by default.
    threshold : str or float, default "half-bit"
        See `misr.frc_threshold`; 0.5 against truth.
    ring_width : float or "auto", optional
        1/Å; one frequency pixel of the window, ``1/window_A``, by default. For a crystal wider than its reciprocal
        lattice spacing: "auto" finds it from the reflections in the whole field, as `misr.fourier_ring_correlation`
        does.
    false_alarm : float, default 0.001
        Chance, for two unrelated images, that a window counts as resolved. The search for the crossing starts at the
        first ring whose correlation is beyond chance at this level, shared among the rings (of n independent values,
        ``(1 + FRC)/2`` of unrelated images follows a beta distribution with both parameters n - ½).
    min_independent : float, default 12
        Independent values that the ring of the crossing must hold for ``reliable``.
    rng : int, numpy.random.Generator or None, default 0
        Seed (SPEC 7) of the noise on which the independent values of rings with leakage are tried out (Notes).

    Returns
    -------
    xarray.Dataset
        On a coarse grid ``("y", "x")`` of window centres, Å: ``resolution`` (Å, ``inf`` where nothing is resolved),
        ``reliable``, ``status`` (0 unresolved, 1 crossed, 2 sampling-limited: the value is an upper bound), and
        ``n_at_resolution``, the independent values of the ring where the curve fell. ``frc`` over ``frequency`` (1/Å)
        too is every window's curve: ``misr.frc_resolution(result.frc.isel(y=0, x=0))`` reads one as usual. Windows lie
        wholly in the field, or wrap round where
        ``attrs["period_A"]`` says that the images are periodic.

    Raises
    ------
    ValueError
        If the images do not share a grid or are not finite, or the window, step, ring width or rates are unusable.

    Warns
    -----
    UserWarning
        If the windows that resolve something have, on average, gaps in their curves as between a crystal's reflections:
        says which ``ring_width`` spans them.

    Notes
    -----
    *Small windows know little.* Ring r of a window (r/window_A) holds about 1.6 r independent values, and the half-bit
    threshold is the higher for it: 0.57 at r = 5, 0.47 at r = 10, 0.17 at infinity, so that a smaller window gives a
    coarser number by itself (2.9 Å in 16 Å windows, 2.6 Å in 48 Å windows of the same smoothly falling FRC). About its
    own crossing the median was right within 5 % for half-bit where the window was 9 or more times the resolution, with
    a scatter (10 to 90 %) of about 10 %, and 20 % for a curve that falls slowly; the fixed 0.143 reads 6 to 12 % too
    fine behind a sharp edge of the spectrum, which the window smears. Below 7 times, about a quarter of the windows at
    most are ``reliable``, and those have been lucky: they read 20 to 80 % too fine. Trust regions, not lone pixels.

    *Chance.* Two unrelated images, white, falling as 1/frequency or smooth, gave 15 resolved windows of 31,000 at
    ``false_alarm=0.001`` (windows of 16 to 96 pixels). A steep spectrum leaks under a small window from its strong
    rings into weak ones, which then hold fewer values than pixels: counted by pixels, one in eight windows (of 48
    pixels) of two smooth images passed. Therefore noise with the ring powers of both images goes through the same
    windows first, and rings that correlate beyond their count of pixels are given fewer values. ``make resolution``
    prints the figures of these Notes.

    What a prior invents alike in both images counts as resolved, here as in any FRC of half maps.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> rng = np.random.default_rng(0)
    >>> noise = rng.standard_normal((3, 64, 64))
    >>> noise[2, :, :32] *= 30  # the left half of the second image is drowned
    >>> pair = [image_from_array(noise[0] + 0.2 * n, pixel_A=(0.5, 0.5)) for n in noise[1:]]
    >>> found = local_resolution(*pair, window_A=12, step_A=10)
    >>> found.reliable.values[0].tolist(), found.resolution.dims
    ([False, False, True], ('y', 'x'))
    """
    pixel = _pixel(a, b)
    shape = _window_shape(a, pixel, window_A)
    step = window_A / 4 if step_A is None else float(step_A)
    _check_rates(step, false_alarm, min_independent)
    rings = _rings(shape, pixel, _lattice_width(a, b, shape, pixel) if ring_width == "auto" else ring_width)
    centres = [_starts(a, axis, shape[axis], step / pixel[axis]) for axis in (0, 1)]
    rings = _honest_rings(rings, [a.values, b.values], shape, pixel, np.random.default_rng(rng))
    frc = _curves(a.values, b.values, shape, centres, rings)
    level = np.broadcast_to(frc_threshold(threshold, rings.independent), rings.frequency.shape)
    chance = _beyond_chance(rings.independent, false_alarm)
    value, status, last = _falls(rings, frc, level, np.maximum(level, chance))
    if np.any(status != _UNRESOLVED):
        _warn_of_gaps(rings, frc[status != _UNRESOLVED], level, own=min(1.0, step / window_A) ** 2)
    attrs = {
        "window_A": float(window_A), "step_A": step, "threshold": str(threshold), "ring_width": rings.width,
        "false_alarm": float(false_alarm), "min_independent": float(min_independent),
    }  # fmt: skip
    attrs["history"] = append_history(a.attrs, "local_resolution", **attrs)
    enough = np.where(status == _UNRESOLVED, 0.0, np.maximum.accumulate(rings.independent)[last])
    flags = {"flag_values": [0, 1, 2], "flag_meanings": "unresolved crossed sampling-limited"}
    dims = ("y", "x")
    return xr.Dataset(
        {
            "resolution": (dims, value, {"units": "Å", "long_name": "local resolution"}),
            "reliable": (dims, enough >= min_independent, {"long_name": "resolution can be relied upon"}),
            "status": (dims, status, flags),
            "n_at_resolution": (dims, enough, {"units": "1", "long_name": "independent values at the resolution"}),
            "frc": ((*dims, "frequency"), frc, {"units": "1", "long_name": "FRC", "ring_width": rings.width}),
        },
        coords={
            "y": ("y", _middle(a, "y", centres[0], shape[0], pixel[0]), {"units": "Å"}),
            "x": ("x", _middle(a, "x", centres[1], shape[1], pixel[1]), {"units": "Å"}),
            "frequency": ("frequency", rings.frequency, {"units": "1/Å"}),
            "n_independent": ("frequency", rings.independent, {"long_name": "independent values"}),
        },
        attrs=attrs,
    )


def _pixel(a: xr.DataArray, b: xr.DataArray) -> tuple[float, float]:
    """Pixel ``(y, x)``, Å, of two images that share a grid."""
    for image in (a, b):
        if not isinstance(image, xr.DataArray) or image.dims != ("y", "x") or not {"y", "x"} <= set(image.coords):
            found = getattr(image, "dims", type(image).__name__)
            raise ValueError(f"expected images with dims and coordinates ('y', 'x') in Å, got {found}")
        if min(image.shape) < 8:
            raise ValueError(f"image shape {image.shape} is too small for windows: at least 8 × 8 pixels")
        if not np.all(np.isfinite(image.values)):
            raise ValueError("an image holds NaN or infinite values: crop or fill them first")
    if a.shape != b.shape:
        raise ValueError(f"image shapes differ, {a.shape} and {b.shape}: use misr.resample_like or misr.compare_images")
    steps = []
    for dim in ("y", "x"):
        here, there = (np.asarray(image[dim].values, dtype=float) for image in (a, b))
        step = (here[-1] - here[0]) / (here.size - 1)
        if not step > 0 or np.max(np.abs(here - there)) > _SAME_GRID * step:
            raise ValueError(
                f"coordinate {dim!r} does not rise, or differs between the images by up to "
                f"{np.max(np.abs(here - there)):.3g} Å: use misr.resample_like or misr.compare_images"
            )
        steps.append(float(step))
    return steps[0], steps[1]


def _window_shape(image: xr.DataArray, pixel: tuple[float, float], window_A: float) -> tuple[int, int]:
    if not (math.isfinite(window_A) and window_A > 0):
        raise ValueError(f"window_A={window_A} must be a positive length in Å")
    shape = (round(window_A / pixel[0]), round(window_A / pixel[1]))
    if min(shape) < 8 or any(inside > size for inside, size in zip(shape, image.shape, strict=True)):
        field = " × ".join(f"{size * step:.4g}" for size, step in zip(image.shape, pixel, strict=True))
        raise ValueError(
            f"window_A={window_A:g} is {shape[0]} × {shape[1]} pixels: expected at least {8 * max(pixel):.4g} Å "
            f"(8 pixels) and at most the field of {field} Å"
        )
    return shape


def _check_rates(step: float, false_alarm: float, min_independent: float) -> None:
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step_A={step} must be a positive length in Å")
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm={false_alarm} must lie between 0 and 1, such as 0.001")
    if not (math.isfinite(min_independent) and min_independent >= 1):
        raise ValueError(f"min_independent={min_independent} must be 1 or more independent values")


def _rings(shape: tuple[int, int], pixel: tuple[float, float], ring_width: float | str | None) -> _Rings:
    """The rings of `misr.fourier_ring_correlation`, for one window."""
    from scipy import sparse

    lowest = _lowest(shape, pixel)
    if isinstance(ring_width, str) or not math.isfinite(ring_width or 0):
        raise ValueError(f"ring_width={ring_width!r} must be a finite width in 1/Å, 'auto' or None")
    width = lowest if ring_width is None else float(ring_width)
    if not width >= lowest * (1 - 1e-9):
        raise ValueError(f"ring_width={width:g} is below one frequency pixel of a window ({lowest:.4g} 1/Å)")
    q = np.hypot(np.fft.fftfreq(shape[0], pixel[0])[:, None], np.fft.fftfreq(shape[1], pixel[1])[None, :])
    ring = np.floor(q / width + 0.5 if ring_width is None else q / width).astype(int) + 1
    ring[(q == 0) | (q >= 0.5 / max(pixel) * (1 - 1e-9))] = 0
    count = np.bincount(ring.ravel())
    used = np.flatnonzero(count[1:]) + 1
    independent = np.maximum(independent_values(ring, "hann")[used - 1], 1.0)
    frequency = np.bincount(ring.ravel(), weights=q.ravel())[used] / count[used]
    half = ring[:, : shape[1] // 2 + 1]
    mirrored = np.full(half.shape, 2.0)
    mirrored[:, 0] = 1
    if shape[1] % 2 == 0:
        mirrored[:, -1] = 1
    place = np.flatnonzero(half)
    row = np.searchsorted(used, half.ravel()[place])
    matrix = sparse.csr_matrix((mirrored.ravel()[place], (row, place)), shape=(used.size, half.size))
    return _Rings(matrix, frequency, independent, width)


def _lowest(shape: tuple[int, ...], pixel: tuple[float, float]) -> float:
    return 1 / min(shape[0] * pixel[0], shape[1] * pixel[1])


def _lattice_width(
    a: xr.DataArray, b: xr.DataArray, shape: tuple[int, int], pixel: tuple[float, float]
) -> float | None:
    """Ring width that spans the reflections of the whole field; None without any, or if a window's pixel does."""
    taper = window_taper(a.shape, None if is_periodic(a) and is_periodic(b) else "hann")
    first, second = (half_spectrum(weighted(image.values, taper)) for image in (a, b))
    width = ring_width_of_lattice(first, second, make_rings(a.shape, pixel))
    return None if width is None or width <= _lowest(shape, pixel) else width


def _warn_of_gaps(rings: _Rings, frc: np.ndarray, level: np.ndarray, *, own: float) -> None:
    """As `misr.frc_resolution` of one curve, for the mean of those that resolve anything: (window, ring).

    Each window has the share ``own`` of its area to itself.
    """
    mean, n = frc.mean(axis=0), rings.independent * max(1.0, own * len(frc))
    start = int(np.argmax(mean > level))  # leading rings that hold no contrast are no gaps
    gap = find_gap(rings.frequency[start:], mean[start:], level[start:], n[start:], rings.width)
    if gap is not None:
        remedy = "local_resolution(…, ring_width='auto')"
        warnings.warn(gap_words("the windows' mean FRC", remedy, *gap), stacklevel=3)


def _starts(image: xr.DataArray, axis: int, inside: int, step: float) -> np.ndarray:
    """First pixel of each window along an axis: evenly spread over the field, or round and round it."""
    size = image.shape[axis]
    if is_periodic(image):
        number = max(1, round(size / max(step, 1.0)))
        return np.floor(np.arange(number) * (size / number)).astype(int)
    room = size - inside
    number = math.floor(room / max(step, 1.0)) + 1
    margin = room - (number - 1) * max(step, 1.0)
    return np.floor(margin / 2 + np.arange(number) * max(step, 1.0)).astype(int)


def _middle(image: xr.DataArray, dim: str, starts: np.ndarray, inside: int, pixel: float) -> np.ndarray:
    return float(image[dim][0]) + (starts + (inside - 1) / 2) * pixel


def _honest_rings(
    rings: _Rings,
    images: list[np.ndarray],
    shape: tuple[int, int],
    pixel: tuple[float, float],
    rng: np.random.Generator,
) -> _Rings:
    """The rings with fewer independent values where a steep spectrum leaks into them.

    Under a small window strong rings leak into weak ones, whose values are then all alike: counted by their pixels, one
    in eight windows of two unrelated smooth images came out as resolved (``make resolution``). How far unrelated images
    of these two spectra correlate is tried out on noise.
    """
    field = (_TRIAL_WINDOWS * shape[0], _TRIAL_WINDOWS * shape[1])
    trial = [_noise_like(image, field, pixel, rng) for image in images]
    starts = [np.arange(2 * _TRIAL_WINDOWS) * side // 2 for side in shape]
    frc = _curves(trial[0], trial[1], shape, starts, rings)
    found = 0.5 / np.mean(frc**2, axis=(0, 1))
    # within the trial's own scatter the count of pixels is the better number
    fewer = found < 0.7 * rings.independent
    return rings._replace(independent=np.where(fewer, np.maximum(found, 1.0), rings.independent))


def _noise_like(
    image: np.ndarray, field: tuple[int, int], pixel: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Noise over another, periodic field, with the image's mean power in each ring and none of its lattice."""
    import scipy.fft

    taper = window_taper(image.shape, "hann")
    spectrum = scipy.fft.rfft2((image - np.average(image, weights=taper)) * taper)
    sides = (image.shape[0] * pixel[0], image.shape[1] * pixel[1])
    ring = np.rint(_half_plane(image.shape, pixel) * min(sides)).astype(int)
    count = np.maximum(np.bincount(ring.ravel()), 1)
    power = np.bincount(ring.ravel(), weights=(spectrum.real**2 + spectrum.imag**2).ravel()) / count
    # the power of a ramp or of the field's own borders stands in the first rings only
    amplitude = np.sqrt(np.interp(_half_plane(field, pixel) * min(sides), np.arange(power.size), power))
    return scipy.fft.irfft2(amplitude * scipy.fft.rfft2(rng.standard_normal(field)), s=field)


def _half_plane(shape: tuple[int, ...], pixel: tuple[float, float]) -> np.ndarray:
    return np.hypot(np.fft.fftfreq(shape[0], pixel[0])[:, None], np.fft.rfftfreq(shape[1], pixel[1])[None, :])


def _curves(
    first: np.ndarray, second: np.ndarray, shape: tuple[int, int], starts: list[np.ndarray], rings: _Rings
) -> np.ndarray:
    """FRC of every window, (rows, columns, rings), a bounded number of windows at a time."""
    import scipy.fft

    taper = window_taper(shape, "hann").astype(np.float64)
    share = taper / taper.sum()
    result = np.empty((starts[0].size * starts[1].size, rings.frequency.size))
    for chosen, rows, columns in _batches(shape, starts):
        spectra = []
        for image in (first, second):
            windows = image[rows[:, :, None] % image.shape[0], columns[:, None, :] % image.shape[1]]
            windows = windows - np.einsum("nij,ij->n", windows, share)[:, None, None]
            spectra.append(scipy.fft.rfft2(windows * taper).reshape(len(rows), -1))
        one, other = spectra
        cross, power_a, power_b = (
            rings.matrix @ np.ascontiguousarray(values.T)
            for values in (
                one.real * other.real + one.imag * other.imag,
                one.real**2 + one.imag**2,
                other.real**2 + other.imag**2,
            )
        )
        scale = np.sqrt(power_a * power_b)
        result[chosen] = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0).T
    return result.reshape(starts[0].size, starts[1].size, -1)


def _batches(shape: tuple[int, int], starts: list[np.ndarray]) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Which windows of the result, and their rows and columns in the images."""
    corner_y, corner_x = (grid.ravel() for grid in np.meshgrid(*starts, indexing="ij"))
    number = max(1, int(_BATCH_BYTES / (shape[0] * shape[1] * 8 * 8)))
    for begin in range(0, corner_y.size, number):
        chosen = slice(begin, begin + number)
        yield chosen, corner_y[chosen, None] + np.arange(shape[0]), corner_x[chosen, None] + np.arange(shape[1])


def _beyond_chance(independent: np.ndarray, false_alarm: float) -> np.ndarray:
    """FRC that a ring of unrelated images exceeds with the chance ``false_alarm`` / number of rings."""
    from scipy import stats

    shape = independent - 0.5
    return 2 * stats.beta.isf(false_alarm / independent.size, shape, shape) - 1


def _falls(
    rings: _Rings, frc: np.ndarray, level: np.ndarray, start_level: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resolution, status and last ring above the threshold, of all curves at once.

    From the first ring beyond chance, the falling curve that fits best (in Fisher's z, weighted by the values of a
    ring) crosses where the sum of its distances from the threshold is largest (Banerjee & Wellner 2001, Ann. Stat. 29,
    1699): rings of few values dip below it by chance long before.
    """
    q = rings.frequency
    resolved = frc > start_level
    start = np.argmax(resolved, axis=-1)
    distance = np.arctanh(np.clip(frc, -_LARGEST, _LARGEST)) - np.arctanh(np.minimum(level, _LARGEST))
    distance = np.where(np.arange(q.size) < start[..., None], 0, distance * rings.independent)
    # the last of equal sums: rings of identical images lie on the threshold where it is 1
    before = q.size - 1 - np.argmax(np.cumsum(distance, axis=-1)[..., ::-1], axis=-1)
    before = np.maximum(before, start)
    status = np.where(before < q.size - 1, _CROSSED, _SAMPLING)
    status = np.where(resolved.any(axis=-1), status, _UNRESOLVED).astype(np.int8)
    after = np.minimum(before + 1, q.size - 1)
    left, right = (np.take_along_axis(frc, at[..., None], axis=-1)[..., 0] - level[at] for at in (before, after))
    share = np.divide(left, left - right, out=np.zeros_like(left), where=(status == _CROSSED) & (left > right))
    crossing = q[before] + np.clip(share, 0, 1) * (q[after] - q[before])
    return np.where(status == _UNRESOLVED, np.inf, 1 / crossing), status, before
