"""An image against the truth, or against another method's image: aligned, scaled, correlated."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history
from misr._registration import Registration
from misr._registration import register as find_shift
from misr.cube import is_periodic
from misr.resample import phase_on_grid, resample_like
from misr.resolution import fourier_ring_correlation, frc_resolution, window_taper

__all__ = ["compare_images"]

_LOGGER = logging.getLogger(__name__)
_FEWEST_PIXELS = 16
_UNIFORM = 1e-3  # of a pixel


def compare_images(
    image: xr.DataArray | xr.Dataset,
    reference: xr.DataArray | xr.Dataset,
    *,
    register: bool | str = True,
    max_shift_A: float | None = None,
    sign: str | int = "auto",
    ring_width: float | None = None,
    window: str | None = "auto",
    threshold: str | float = 0.5,
    false_alarm: float = 1e-3,
) -> xr.Dataset:
    """Compare an image with the truth or with a better image, after taking off what the eye takes off too.

    Both are brought to one grid (the coarser pixel along each axis, over the field they share), the image is moved
    onto the reference by a sub-pixel translation, its sign and linear scale are fitted, and then they are correlated
    ring by ring.

    Parameters
    ----------
    image : xarray.DataArray or Dataset
        Dims ``("y", "x")``, uniform coordinates in Å; any unit, any pixels, periodic (``attrs["period_A"]``) or not. Of
        a Dataset, such as `misr.fuse_linear` gives, its ``phase``.
    reference : xarray.DataArray or Dataset
        The truth, or an image of much higher dose or of another method, likewise labelled.
    register : bool or "always", default True
        Move the image, if the correlation is beyond what chance makes of unrelated images; "always" even if not (for a
        lattice of a dozen reflections or fewer, whose phases chance can match). False: only sign and scale are fitted.
    max_shift_A : float, optional
        Farthest shift along each axis, Å; a tenth of the shared field's shorter side by default. For a crystal keep it
        below half a lattice period, whose multiples fit as well.
    sign : {"auto", 1, -1}
        Contrast of the image against the reference's; "auto" finds it.
    ring_width : float, optional
        1/Å, see `misr.fourier_ring_correlation`.
    window : {"auto", "hann", None}
        Taper for the correlations. "auto" leaves it out only where both images are periodic over one period.
    threshold : str or float, default 0.5
        At which the resolution is read. An image of spectral SNR S correlates with the truth as ``√(S/(1 + S))``, and
        its half maps, whose SNR is S/2 each, as ``S/(S + 2)``: 0.5 against truth and 1/7 between half maps both are
        S = ⅓. Reading a curve against truth at 0.143 would count S = 0.02 as resolved. Against a *noisy* reference of
        SNR R the curve is lower by ``√(R/(1 + R))``, so that 0.5 is on the safe side.
    false_alarm : float, default 0.001
        Chance that unrelated images are moved or turned in sign. Below that level nothing is moved (and a warning is
        logged): a shift fitted to noise makes a correlation of its own.

    Returns
    -------
    xarray.Dataset
        ``image`` (moved, scaled: ``offset + sign · scale · image``) and ``reference`` on one grid ``("y", "x")``;
        ``frc`` over ``frequency`` (1/Å, ``attrs["kind"]`` "truth") and ``resolution`` (Å, as `misr.frc_resolution`).
        Scalars: ``shift_y`` and ``shift_x`` (Å), which were added to the image's coordinates, with their standard
        errors ``shift_y_stderr`` and ``shift_x_stderr``; ``sign``; ``scale`` and ``offset`` of the least-squares fit in
        the band that is resolved; ``gain``, how much of the reference's amplitude the image has in that band, 1 for a
        faithful phase; ``correlation`` over all frequencies and ``band_correlation`` in the band; and ``nrmse``, the
        root mean square difference of the two over the reference's standard deviation. In attrs ``registration``
        ("found", "not significant" or "off"), its ``significance`` (standard deviations) and what was ``needed``, and
        the ``band_limit_used`` (1/Å).

    Raises
    ------
    ValueError
        For images that are no labelled images, hold NaN, share fewer than 16 pixels along an axis, or unknown options.

    Notes
    -----
    *Where.* Cross-correlation of all frequencies, the lower half, quarter …, each ring with the same power, whichever
    stands out most; then with the weight of maximum likelihood for what each ring shares. On fields of 80 × 80 Å with
    an amorphous-like spectrum the error of the shift was 0.014 Å (0.028 Å under a window) where 2.7 Å are resolved, and
    0.033 Å (0.072 Å) where hardly anything reaches 0.5 any more. The standard errors are the Cramér-Rao bound: right
    for a good image, 1.05 times (1.2 times) too small in the last case. ``make resolution`` prints these figures.

    *Chance.* 600 pairs of unrelated images (white, smooth, 1/frequency) were aligned 6 times at ``false_alarm=0.01``,
    and their FRC was -0.001 ± 0.004 below 0.3 1/Å. Made to move and turn all the same, by up to 5 Å, it was 0.13: this
    is what registration to noise makes of nothing.

    A rotation or a magnification between the images is not sought: correct it first.

    Examples
    --------
    >>> import numpy as np
    >>> from misr.cube import image_from_array
    >>> rng = np.random.default_rng(0)
    >>> truth = image_from_array(rng.standard_normal((64, 64)), pixel_A=(0.5, 0.5), attrs={"period_A": [32, 32]})
    >>> moved = truth.copy(data=3 - 2 * np.roll(truth.values, 2, axis=0) + 0.1 * rng.standard_normal((64, 64)))
    >>> result = compare_images(moved, truth)
    >>> round(float(result.shift_y), 2), int(result.sign), round(float(result.gain), 2)
    (-1.0, -1, 2.0)
    >>> result.frc.attrs["kind"], result.resolution.attrs["status"]
    ('truth', 'sampling-limited')
    """
    image, reference = _image("image", image), _image("reference", reference)
    wanted = _sign(sign)
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm={false_alarm} must lie between 0 and 1, such as 0.001")
    if register not in (True, False, "always"):
        raise ValueError(f"register={register!r} must be True, False or 'always'")
    found, pair, used = _aligned(image, reference, register, max_shift_A, wanted, window, false_alarm)
    frc = fourier_ring_correlation(found.sign * pair[0], pair[1], ring_width=ring_width, window=used)
    frc.attrs["kind"] = "truth"
    resolution = frc_resolution(frc, threshold)
    limit = 1 / float(resolution) if math.isfinite(resolution) else float(frc.attrs["nyquist"])
    numbers = _fit(found.sign * pair[0].values, pair[1].values, _pixel(pair[0]), used, limit)
    aligned = pair[0].copy(data=numbers["offset"] + found.sign * numbers["scale"] * pair[0].values)
    numbers |= _agreement(aligned.values, pair[1].values)
    result = _dataset(aligned, pair[1], frc, resolution, found, numbers)
    status = "found" if found.significance >= found.needed else "not significant"
    status = status if register else "off"
    result.attrs = {
        "registration": status, "significance": found.significance, "needed": found.needed,
        "band_limit_used": limit, "window": str(used),
    }  # fmt: skip
    result.attrs["history"] = append_history(
        image.attrs, "compare_images", register=register, max_shift_A=max_shift_A, sign=sign, ring_width=ring_width,
        window=used, threshold=threshold, false_alarm=false_alarm, shift_A=found.shift,
    )  # fmt: skip
    return result


def _image(name: str, given: Any) -> xr.DataArray:
    """The image that was given, or the phase of a Dataset, checked."""
    if isinstance(given, xr.Dataset) and "phase" not in given:
        raise ValueError(f"{name}: a Dataset of {sorted(map(str, given.data_vars))} holds no 'phase': give the image")
    image = given["phase"] if isinstance(given, xr.Dataset) else given
    if not isinstance(image, xr.DataArray) or image.dims != ("y", "x") or not {"y", "x"} <= set(image.coords):
        found = getattr(image, "dims", type(image).__name__)
        raise ValueError(f"{name}: expected a DataArray with dims and coordinates ('y', 'x') in Å, got {found}")
    if min(image.shape) < _FEWEST_PIXELS:
        raise ValueError(f"{name} of shape {image.shape}: at least {_FEWEST_PIXELS} × {_FEWEST_PIXELS} pixels")
    if not np.all(np.isfinite(image.values)):
        raise ValueError(f"{name} holds NaN or infinite values: crop or fill them first")
    for dim, step in zip(("y", "x"), _pixel(image), strict=True):
        if not step > 0 or np.ptp(np.diff(image[dim].values)) > _UNIFORM * step:
            raise ValueError(f"{dim} of {name} is not increasing in uniform steps: interpolate it first")
    return image


def _sign(sign: str | int) -> int | None:
    if sign == "auto":
        return None
    if sign in (1, -1):
        return int(sign)
    raise ValueError(f"sign={sign!r} must be 'auto', 1 or -1")


def _pixel(image: xr.DataArray) -> tuple[float, float]:
    steps = [float(image[dim][-1] - image[dim][0]) / (image.sizes[dim] - 1) for dim in ("y", "x")]
    return steps[0], steps[1]


def _aligned(
    image: xr.DataArray,
    reference: xr.DataArray,
    move: bool | str,
    max_shift_A: float | None,
    sign: int | None,
    window: str | None,
    false_alarm: float,
) -> tuple[Registration, tuple[xr.DataArray, xr.DataArray], str | None]:
    """The registration, both images on one grid with it applied, and the window that goes with them."""
    pair = _on_one_grid(image, reference, (0.0, 0.0))
    used = ("hann" if not _wraps(*pair) else None) if window == "auto" else window
    pixel = _pixel(pair[0])
    farthest = 0.1 * min(size * step for size, step in zip(pair[0].shape, pixel, strict=True))
    if max_shift_A is not None:
        if not (math.isfinite(max_shift_A) and max_shift_A >= 0):
            raise ValueError(f"max_shift_A={max_shift_A} must be a length in Å, 0 or more")
        farthest = float(max_shift_A)
    farthest = farthest if move else 0.0
    options: dict[str, Any] = {"pixel": pixel, "window": used, "false_alarm": false_alarm, "always": move == "always"}
    found = find_shift(pair[0].values, pair[1].values, max_shift=farthest, sign=sign, **options)
    if not found.found:
        _LOGGER.warning(
            "the images share too little to be aligned (correlation of %.1f standard deviations, %.1f needed): "
            "compared as they lie; register='always' moves them all the same", found.significance, found.needed,
        )  # fmt: skip
        return found, pair, used
    if farthest == 0:
        return found, pair, used
    # once more where they overlap: under a taper a far peak leans towards the middle
    pair = _on_one_grid(image, reference, found.shift)
    rest = find_shift(pair[0].values, pair[1].values, max_shift=2 * max(pixel), sign=found.sign, **options)
    if rest.found:
        shift = (found.shift[0] + rest.shift[0], found.shift[1] + rest.shift[1])
        found = found._replace(shift=shift, stderr=rest.stderr)
        pair = _on_one_grid(image, reference, shift)
    return found, pair, used


def _wraps(image: xr.DataArray, reference: xr.DataArray) -> bool:
    return is_periodic(image) and is_periodic(reference)


def _on_one_grid(
    image: xr.DataArray, reference: xr.DataArray, shift: tuple[float, float]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Both on the coarser pixels of the shared field, the image's shift taken off."""
    moved = image
    for dim, by in zip(("y", "x"), shift, strict=True):
        moved = moved.assign_coords({dim: (dim, image[dim].values - by, image[dim].attrs)})
    same_period = _wraps(image, reference) and np.allclose(
        image.attrs["period_A"], reference.attrs["period_A"], rtol=1e-3
    )
    steps = list(zip(_pixel(image), _pixel(reference), strict=True))
    axes = {}
    for dim, (fine, coarse) in zip(("y", "x"), steps, strict=True):
        own, other = (moved, reference) if fine >= coarse * (1 - 1e-6) else (reference, moved)
        # one period is the whole field wherever it begins
        axes[dim] = own[dim].values if same_period else _shared(own, other, dim)
    coords = {dim: (dim, values, {"units": "Å"}) for dim, values in axes.items()}
    grid = xr.DataArray(np.zeros([len(values) for values in axes.values()]), dims=("y", "x"), coords=coords)
    return _resampled(moved, grid), _resampled(reference, grid)


def _shared(own: xr.DataArray, other: xr.DataArray, dim: str) -> np.ndarray:
    """The pixels of one image that lie within the other, which a periodic one does not limit."""
    values, limits = np.asarray(own[dim].values, dtype=float), np.asarray(other[dim].values, dtype=float)
    step = (limits[-1] - limits[0]) / (limits.size - 1)
    field = np.ptp(values) * values.size / (values.size - 1)
    if is_periodic(other) and field <= limits.size * step * (1 + 1e-6):
        return values
    inside = values[(values >= limits[0] - 1e-6 * step) & (values <= limits[-1] + 1e-6 * step)]
    if inside.size < _FEWEST_PIXELS:
        raise ValueError(
            f"the images share {inside.size} pixels along {dim}, at least {_FEWEST_PIXELS} are needed: one covers "
            f"{values[0]:.4g} to {values[-1]:.4g} Å, the other {limits[0]:.4g} to {limits[-1]:.4g} Å. Give both the "
            "same origin"
        )
    return inside


def _resampled(image: xr.DataArray, grid: xr.DataArray) -> xr.DataArray:
    same = image.shape == grid.shape and all(
        np.allclose(image[dim].values, grid[dim].values, rtol=0, atol=1e-9) for dim in ("y", "x")
    )
    if same:
        return image
    return phase_on_grid(image, like=grid) if is_periodic(image) else resample_like(image, grid)


def _fit(
    image: np.ndarray, reference: np.ndarray, pixel: tuple[float, float], window: str | None, limit: float
) -> dict[str, float]:
    """Linear relation of two images up to a frequency, of which their means are no part."""
    taper = window_taper(image.shape, window)
    q = np.hypot(np.fft.fftfreq(image.shape[0], pixel[0])[:, None], np.fft.fftfreq(image.shape[1], pixel[1])[None, :])
    band = (q > 0) & (q <= limit * (1 + 1e-9))
    here, there = (np.fft.fft2((values - values.mean()) * taper)[band] for values in (image, reference))
    cross = float(np.sum(here * there.conj()).real)
    power, reference_power = (float(np.sum(np.abs(values) ** 2)) for values in (here, there))
    if power == 0 or reference_power == 0:
        raise ValueError(f"{'the image' if power == 0 else 'the reference'} is flat: there is nothing to compare")
    scale = cross / power
    return {
        "scale": scale,
        "offset": float(reference.mean() - scale * image.mean()),
        "gain": cross / reference_power,
        "band_correlation": cross / math.sqrt(power * reference_power),
    }


def _agreement(aligned: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    spread = float(reference.std())
    moved, still = aligned - aligned.mean(), reference - reference.mean()
    product = float(np.sqrt(np.sum(moved**2) * np.sum(still**2)))
    return {
        "correlation": float(np.sum(moved * still)) / product if product > 0 else 0.0,
        "nrmse": float(np.sqrt(np.mean((aligned - reference) ** 2))) / spread,
    }


def _dataset(
    aligned: xr.DataArray,
    reference: xr.DataArray,
    frc: xr.DataArray,
    resolution: xr.DataArray,
    found: Registration,
    numbers: dict[str, float],
) -> xr.Dataset:
    units = str(reference.attrs.get("units", "1"))
    named = {"long_name": "image, aligned and scaled", "units": units}
    image = xr.DataArray(aligned.values, dims=("y", "x"), coords=_plain(reference), attrs=aligned.attrs | named)
    truth = xr.DataArray(reference.values, dims=("y", "x"), coords=_plain(reference), attrs=dict(reference.attrs))
    truth.attrs |= {"long_name": "reference", "units": units}
    result = xr.Dataset({"image": image, "reference": truth, "frc": frc, "resolution": resolution})
    scalars: dict[str, tuple[float, str]] = {
        # the coordinates were moved against the displacement found
        "shift_y": (0.0 - found.shift[0], "Å"),
        "shift_x": (0.0 - found.shift[1], "Å"),
        "shift_y_stderr": (found.stderr[0], "Å"),
        "shift_x_stderr": (found.stderr[1], "Å"),
        "sign": (found.sign, "1"),
        "offset": (numbers["offset"], units),
    }
    scalars |= {name: (numbers[name], "1") for name in ("scale", "gain", "correlation", "band_correlation", "nrmse")}
    return result.assign({name: ((), value, {"units": unit}) for name, (value, unit) in scalars.items()})


def _plain(image: xr.DataArray) -> dict[str, Any]:
    return {dim: (dim, image[dim].values, {"units": "Å"}) for dim in ("y", "x")}
