"""Does an image explain the recorded electrons? Predicted against measured counts, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from misr._provenance import append_history, describe_rng
from misr.bright_field import bright_field_disk
from misr.cube import image_from_array, is_lazy, scan_step, validate_cube
from misr.dose import split_counts
from misr.fusion.stream import lost_positions
from misr.phase_object import PhaseObject, predicted_patterns

__all__ = ["count_consistency", "held_out_consistency"]

_PIXELS, _SCALES = ("bright_field", "all"), ("pixel", "total")
_HELD_BYTES = 512 << 20  # of predictions; beyond it they are made twice
_BLOCK_BYTES = 32 << 20
_DARKEST = 0.01  # of a pixel's mean counts: no pattern is known better than that
_NO_CONTRAST = 1e-11  # squared: an image so flat predicts nothing but rounding errors
_NOTHING = 1e-9  # of the electrons: a pixel that should see none


def count_consistency(
    phase: xr.DataArray,
    cube: xr.DataArray,
    *,
    linear: xr.DataArray | None = None,
    pixels: str = "bright_field",
    scale: str = "pixel",
    center_mrad: tuple[float, float] | None = None,
    device: str = "auto",
) -> xr.Dataset:
    """Compare the counts that a phase image predicts with those that were recorded.

    The prediction is that of a thin phase object (`misr.cube_from_phase`). What an image invents beyond the electrons
    cannot help to predict them: texture that is not in the specimen lowers ``gain``, and so do a wrong sign, a shift or
    too much contrast. An image fitted to the very same electrons predicts them too well; `held_out_consistency` is free
    of that.

    Parameters
    ----------
    phase : xarray.DataArray
        Image in rad, dims ``("y", "x")``, Å on the scan's own origin.
    cube : xarray.DataArray
        Recorded counts, NumPy or dask, with aberrations and rotation in the attrs (descan taken out). Read by
        blocks of scan rows, three times.
    linear : xarray.DataArray, optional
        Another image, such as the linear fusion of the same cube, to compare with.
    pixels : "bright_field" or "all"
        Which detector pixels. The dark field holds little of a weak object, and mostly what a thin one does not tell
        (inelastic and thermal scattering); single electrons in its darkest pixels then govern ``chi2``, so rely on
        ``gain`` and ``deviance`` there.
    scale : "pixel" or "total"
        Predictions are brought to the electrons recorded: those of each detector pixel over the whole scan, so that
        the disk's edge, gains and the detector's spread of signals play no part and only the variation over the scan
        is judged; or those of all pixels together.
    center_mrad : (float, float), optional
        The optic axis in the cube's detector coordinates ``(y, x)``; that of the bright-field disk by default.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    xarray.Dataset
        Scalars: ``chi2`` with ``chi2_stderr``, Pearson's ``(n - m)²/m`` per datum, 1 when the counts scatter about
        the prediction as electrons do; ``deviance``, ``2 Σ [n ln(n/m) - n + m]`` per electron, and
        ``deviance_expected``, its mean for Poisson counts about this prediction; ``gain`` with ``gain_stderr``,
        log-likelihood per electron (nats) over that of vacuum (with ``scale="pixel"``, of the mean pattern);
        ``slope`` with ``slope_stderr``: of the recorded on the predicted contrast, 1 when explained, less when the
        image shows more than the electrons bear out (noise, sharpening, invention), more when less (smoothing), about 0
        for an unrelated image, NaN for one without contrast. With ``linear`` also ``gain_over_linear`` and
        ``gain_over_linear_stderr``. Where the model fails: ``chi2_map`` (``("y", "x")``, Å, scan
        positions; NaN where their electrons were lost) and ``chi2_detector`` (``("det_y", "det_x")``, mrad; NaN where
        nothing was compared). Standard errors are those of counting, the image taken as given.

    Raises
    ------
    ValueError
        For an invalid cube or image, unknown aberrations, an unknown choice, or a cube without electrons.

    Examples
    --------
    >>> import numpy as np, misr
    >>> from misr.cube import image_from_array
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.random.default_rng(0).poisson(disk * 9.0, (8, 8, 16, 16)), scan_step_A=2,
    ...     det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -100})
    >>> nothing = count_consistency(image_from_array(np.zeros((16, 16)), pixel_A=(1, 1)), cube)
    >>> round(float(nothing.chi2), 1), bool(abs(nothing.gain) < 1e-6)
    (1.0, True)
    """
    for name, value, known in (("pixels", pixels, _PIXELS), ("scale", scale, _SCALES)):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {known}")
    validate_cube(cube, counts=False)
    region, mask, center = _region(cube, pixels, center_mrad)
    images = [phase] if linear is None else [phase, linear]
    models = [predicted_patterns(image, like=region, center_mrad=center, device=device) for image in images]
    recorded = _Predicted(region, mask, models)
    totals = recorded.totals()
    if not totals.counts.sum() > 0:
        raise ValueError("the cube holds no electrons in these pixels: was the beam on? pixels='all' takes every pixel")
    found = _compare(recorded, totals, per_pixel=scale == "pixel")
    result = _labelled(found, cube, region, mask, models[0])
    note = {"pixels": pixels, "scale": scale, "center_mrad": center, "linear": linear is not None}
    result.attrs = {
        "pixels": pixels,
        "scale": scale,
        "electrons": float(totals.counts.sum()),
        "history": append_history(phase.attrs, "count_consistency", **note),
    }
    return result


def held_out_consistency(
    cube: xr.DataArray,
    pipeline: Callable[[xr.DataArray], Any],
    *,
    rng: Any = None,
    pixels: str = "bright_field",
    scale: str = "pixel",
    center_mrad: tuple[float, float] | None = None,
    device: str = "auto",
) -> xr.Dataset:
    """Does an image made of one half of the electrons predict the other half? Both ways round, and their mean.

    Nothing that a reconstruction fits to the noise of its own electrons helps it here, nor does what it invents: a
    ``gain`` above 0 by several standard errors is information about the specimen, in nats per electron.

    Parameters
    ----------
    cube : xarray.DataArray
        Whole electron counts with aberrations in the attrs, NumPy or dask.
    pipeline : callable
        From a cube of half the dose to an image in rad: a DataArray ``("y", "x")``, or a Dataset that holds ``phase``.
    rng : None, int or numpy.random.Generator
        Seed of the split (SPEC 7).
    pixels, scale, center_mrad, device
        See `count_consistency`.

    Returns
    -------
    xarray.Dataset
        As `count_consistency`, each variable the mean of both directions, the standard errors those of the mean.

    Raises
    ------
    ValueError
        As `count_consistency`, or if counts are not whole.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.random.default_rng(0).poisson(disk * 9.0, (8, 8, 16, 16)), scan_step_A=2,
    ...     det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -100})
    >>> vacuum = held_out_consistency(cube, lambda half: misr.fuse_linear(misr.synthesize_views(half)), rng=0)
    >>> bool(vacuum.gain < 3 * vacuum.gain_stderr)
    True
    """
    from misr.halves import image_of

    halves = split_counts(cube, rng=rng)
    options: dict[str, Any] = {"pixels": pixels, "scale": scale, "center_mrad": center_mrad, "device": device}
    ways = [count_consistency(image_of(pipeline(halves[i])), halves[1 - i], **options) for i in range(2)]
    mean = xr.concat(ways, dim="half").mean("half", keep_attrs=True)
    for name in mean.data_vars:
        if str(name).endswith("_stderr"):
            mean[name] = (0.5 * (ways[0][name] ** 2 + ways[1][name] ** 2) ** 0.5).assign_attrs(ways[0][name].attrs)
    note = {"rng": describe_rng(rng), "pixels": pixels, "scale": scale}
    mean.attrs = {
        "pixels": pixels,
        "scale": scale,
        "history": append_history(cube.attrs, "held_out_consistency", **note),
    }
    return mean


def _region(
    cube: xr.DataArray, pixels: str, center_mrad: tuple[float, float] | None
) -> tuple[xr.DataArray, np.ndarray, tuple[float, float]]:
    """The part of the detector to predict, which of its pixels count, and the optic axis."""
    disk = bright_field_disk(cube)
    center = (float(disk.center_y), float(disk.center_x)) if center_mrad is None else center_mrad
    if cube.attrs.get("semiangle_mrad") is None:
        cube = cube.assign_attrs(semiangle_mrad=float(disk.attrs["semiangle_mrad"]))
    if pixels == "all":
        return cube, np.ones(cube.shape[2:], dtype=bool), center
    mask = disk["mask"].values
    spans = []
    for axis in range(2):
        used = np.flatnonzero(mask.any(axis=1 - axis))
        spans.append(slice(max(0, int(used[0]) - 1), int(used[-1]) + 2))  # a pixel more, to hold the whole disk
    return cube.isel(det_y=spans[0], det_x=spans[1]), mask[spans[0], spans[1]], center


class _Totals:
    """Sums over the scan: of the counts and of each prediction, per pixel compared."""

    def __init__(self, n_pixels: int, n_models: int) -> None:
        self.counts = np.zeros(n_pixels)
        self.predicted = np.zeros((n_models, n_pixels))


class _Predicted:
    """Recorded counts beside predicted shares of the electrons, by blocks of scan rows, as often as asked for.

    Scan positions whose electrons are lost (blanked beam, missing frames) are left out, as the fusion leaves them out.
    """

    def __init__(self, region: xr.DataArray, mask: np.ndarray, models: list[PhaseObject]) -> None:
        self.region, self.mask, self.models = region, mask, models
        vacuum = models[0].vacuum[mask]
        self.vacuum = np.maximum(vacuum, _NOTHING)
        self.lost = lost_positions(np.asarray(region.sum(("det_y", "det_x")).values, dtype=float))
        self.positions = int((~self.lost).sum())
        self._held: dict[int, np.ndarray] = {}
        self._keep = 4 * region.size // mask.size * mask.sum() * len(models) <= _HELD_BYTES

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Rows, counts (position, pixel), and predictions (model, position, pixel)."""
        for rows in self._rows():
            block = self.region.isel(scan_y=rows).data
            counts = np.asarray(block.compute() if is_lazy(self.region) else block)
            kept = ~self.lost[rows].ravel()
            flat = counts[..., self.mask].reshape(-1, self.mask.sum()).astype(float)
            yield rows, flat[kept], self._predict(rows)[:, kept]

    def totals(self) -> _Totals:
        """Over the whole scan."""
        sums = _Totals(int(self.mask.sum()), len(self.models))
        for _, counts, predicted in self.blocks():
            sums.counts += counts.sum(axis=0)
            sums.predicted += predicted.sum(axis=1, dtype=float)
        return sums

    def _predict(self, rows: slice) -> np.ndarray:
        if rows.start in self._held:
            return self._held[rows.start]
        shares = [model.rows(rows)[..., self.mask].reshape(-1, self.mask.sum()) for model in self.models]
        predicted = np.maximum(np.stack(shares), _NOTHING).astype(np.float32, copy=False)
        if self._keep:
            self._held[rows.start] = predicted
        return predicted

    def _rows(self) -> Iterator[slice]:
        number = self.region.sizes["scan_y"]
        size = max(1, _BLOCK_BYTES // (8 * self.region[0].size))
        if is_lazy(self.region):
            size = max(size, max(self.region.chunksizes["scan_y"]))
        for first in range(0, number, size):
            yield slice(first, min(first + size, number))


class _Found:
    """What the comparison adds up, of the first model; and the first against the second."""

    def __init__(self, n_y: int, n_x: int, n_pixels: int) -> None:
        self.chi2_map = np.full((n_y, n_x), np.nan)
        self.positions = 0
        self.chi2_pixel = np.zeros(n_pixels)
        self.variance = self.deviance = self.deviance_expected = 0.0
        self.gain = self.gain_variance = self.gain_linear = self.gain_linear_variance = 0.0
        self.slope_top = self.slope_bottom = 0.0
        self.data = self.fitted = 0
        self.electrons = 0.0
        self.has_linear = False


def _compare(recorded: _Predicted, totals: _Totals, *, per_pixel: bool) -> _Found:
    n_y, n_x = recorded.region.shape[:2]
    lit = totals.counts > 0  # a pixel that never counted says nothing once it is scaled to that
    factors, flat = _scaled(recorded, totals, recorded.positions, per_pixel=per_pixel)
    used = lit if per_pixel else np.ones_like(lit)
    found = _Found(n_y, n_x, used.size)
    found.positions = recorded.positions
    found.data, found.fitted = int(used.sum()) * recorded.positions, int(used.sum()) if per_pixel else 1
    found.electrons, found.has_linear = float(totals.counts.sum()), len(recorded.models) > 1
    expected_deviance = _deviance_table()
    for rows, counts, shares in recorded.blocks():
        n, vacuum = counts[:, used], flat[used]
        models = np.maximum(shares[:, :, used] * factors[:, None, used], _DARKEST * vacuum)
        m = models[0]
        chi2 = (n - m) ** 2 / m
        found.chi2_map[rows][~recorded.lost[rows]] = chi2.sum(axis=1)
        found.chi2_pixel[used] += chi2.sum(axis=0)
        found.variance += float((2 + 1 / m).sum())
        ratio = np.log(m / vacuum)
        found.gain += float((n * ratio).sum())
        found.gain_variance += float((n * ratio**2).sum())
        electrons = n[n > 0]
        found.deviance += 2 * float((electrons * np.log(electrons / m[n > 0])).sum() - n.sum() + m.sum())
        found.deviance_expected += float(expected_deviance(m).sum())
        found.slope_top += float(((n - vacuum) * (m / vacuum - 1)).sum())
        found.slope_bottom += float(((m - vacuum) ** 2 / vacuum).sum())
        if found.has_linear:
            ratio = np.log(m / models[1])
            found.gain_linear += float((n * ratio).sum())
            found.gain_linear_variance += float((n * ratio**2).sum())
    return found


def _scaled(recorded: _Predicted, totals: _Totals, positions: int, *, per_pixel: bool) -> tuple[np.ndarray, np.ndarray]:
    """Electrons for each predicted share, (model, pixel), and the counts without a specimen, (pixel,)."""
    if per_pixel:
        return totals.counts / totals.predicted, totals.counts / positions
    each = totals.counts.sum() / totals.predicted.sum(axis=1)
    vacuum = recorded.vacuum * totals.counts.sum() / (positions * recorded.vacuum.sum())
    return np.repeat(each[:, None], totals.counts.size, axis=1), vacuum


def _deviance_table() -> Callable[[np.ndarray], np.ndarray]:
    """The mean of ``2 [n ln(n/m) - n + m]`` over Poisson counts n of mean m, as a function of m."""
    from scipy.stats import poisson

    log_means = np.linspace(np.log(1e-9), np.log(200.0), 400)
    means = np.exp(log_means)
    n = np.arange(1, 400)
    values = 2 * (poisson.pmf(n, means[:, None]) * (n * np.log(n / means[:, None]))).sum(axis=1)
    # beyond the table the χ² limit, with its first correction
    return lambda m: np.where(m < 200, np.interp(np.log(m), log_means, values), 1 + 1 / (6 * m))


def _labelled(
    found: _Found, cube: xr.DataArray, region: xr.DataArray, mask: np.ndarray, model: PhaseObject
) -> xr.Dataset:
    n, e = found.data - found.fitted, found.electrons
    shows = found.slope_bottom > _NO_CONTRAST * e
    slope = found.slope_top / found.slope_bottom if shows else np.nan
    slope_stderr = found.slope_bottom**-0.5 if shows else np.nan
    scalars = {
        "chi2": (found.chi2_pixel.sum() / n, "1"),
        "chi2_stderr": (np.sqrt(found.variance) / n, "1"),
        "deviance": (found.deviance / e, "1/electron"),
        "deviance_expected": (found.deviance_expected * n / found.data / e, "1/electron"),
        "gain": (found.gain / e, "nats/electron"),
        "gain_stderr": (np.sqrt(found.gain_variance) / e, "nats/electron"),
        "slope": (slope, "1"),
        "slope_stderr": (slope_stderr, "1"),
    }
    if found.has_linear:
        scalars["gain_over_linear"] = (found.gain_linear / e, "nats/electron")
        scalars["gain_over_linear_stderr"] = (np.sqrt(found.gain_linear_variance) / e, "nats/electron")
    positions = found.positions
    pattern = np.full(mask.shape, np.nan)
    pattern[mask] = np.where(found.chi2_pixel > 0, found.chi2_pixel / (n / (found.data / positions)), np.nan)
    detector = xr.DataArray(pattern, dims=("det_y", "det_x"), coords={d: region[d] for d in ("det_y", "det_x")})
    scan = image_from_array(
        found.chi2_map / (n / positions),
        pixel_A=scan_step(cube),
        origin_A=(float(cube.scan_y[0]), float(cube.scan_x[0])),
        name="chi2_map",
        units="1",
    )
    variables: dict[str, Any] = {name: ((), float(value), {"units": unit}) for name, (value, unit) in scalars.items()}
    return xr.Dataset(variables | {"chi2_map": scan, "chi2_detector": detector.assign_attrs(units="1")})
