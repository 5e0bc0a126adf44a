"""State of the explore tool, without widgets: the choices, and the image and curves that follow from them."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import param
import xarray as xr

from misr.cube import is_periodic, scan_step, validate_cube
from misr.dose import apply_dose, thin_counts
from misr.fusion import fuse_cnn, fuse_linear, plan_fusion, shift_and_add
from misr.pipeline import half_map_frc
from misr.plot import resolution_text
from misr.resolution import fourier_ring_correlation
from misr.views import axial_view, synthesize_views

if TYPE_CHECKING:
    from misr.fusion.plan import FusionPlan

__all__ = ["METHODS", "ExploreState", "Method", "Result", "dose_steps", "picture", "sample", "summary", "views_at"]

_LOG = logging.getLogger(__name__)
_DOSES = (3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000)
_VIEWS = (9, 25, 50, 100, 200, 400)
_POSITIONS = 64  # along each scan axis: more is cropped to the centre, to stay live
_EXPECTED = (ValueError, RuntimeError, MemoryError, ArithmeticError, np.linalg.LinAlgError)
_RING_WIDTH = 0.07  # 1/Å: wider than the reciprocal lattice of the sample
_SCAN_DIMS = ("scan_y", "scan_x")
_CATCHING = threading.Lock()  # pages have threads of their own, and warnings are caught for the whole process


def sample() -> xr.Dataset:
    """The specimen shown when there is no cube: a zeolite crystallite in silica glass, 64 Å wide, 2 Å steps.

    A perfect crystal would make a poor lesson: its FRC jumps from reflection to reflection.

    Returns
    -------
    xarray.Dataset
        ``counts`` (expected, at 1 e/Å²) and ``phase``, as `misr.simulate_cube`. Takes a few seconds.

    Examples
    --------
    >>> scan = sample()
    >>> scan.counts.sizes["scan_y"], scan.phase.attrs["units"]
    (32, 'rad')
    """
    from misr.simulate import simulate_cube
    from misr.specimens import semicrystalline_atoms

    return simulate_cube(
        semicrystalline_atoms(field_A=64.0, place="centre", rng=1),
        aberrations={"C10": -1000.0},
        scan_step_A=2.0,
        det_max_mrad=12.0,
        det_pixels=40,
        progress=False,
    )


def dose_steps(cube: xr.DataArray) -> list[float]:
    """Doses that can be shown: any for expected counts, up to the recorded dose for counted electrons.

    Parameters
    ----------
    cube : xarray.DataArray
        Expected counts (float) or electrons (integer) with ``attrs["dose_e_per_A2"]``.

    Returns
    -------
    list of float
        e/Å², ascending.

    Raises
    ------
    ValueError
        If the cube's own dose is not known.

    Examples
    --------
    >>> import xarray as xr
    >>> dose_steps(xr.DataArray([1], attrs={"dose_e_per_A2": 25.0}))
    [3.0, 5.0, 10.0, 20.0, 25.0]
    """
    own = cube.attrs.get("dose_e_per_A2")
    if own is None or not np.isfinite(own) or own <= 0:
        raise ValueError(f"the cube's own dose is {own}: set cube.attrs['dose_e_per_A2'] (electrons per Å²)")
    if _is_expected(cube):
        return [float(dose) for dose in _DOSES]
    return [float(dose) for dose in _DOSES if dose < 0.999 * own] + [float(own)]


def views_at(views: xr.DataArray, *, dose_e_per_A2: float, rng: Any = None) -> xr.DataArray:
    """Views at a dose: drawn from expected counts, or thinned from counted electrons.

    A view is a sum of pixels, so drawing or thinning the sum has the law of doing so for each pixel.

    Parameters
    ----------
    views : xarray.DataArray
        From `misr.synthesize_views`.
    dose_e_per_A2 : float
        Electrons per Å².
    rng : None, int or numpy.random.Generator
        Seed (SPEC 7).

    Returns
    -------
    xarray.DataArray
        Integer counts.

    Raises
    ------
    ValueError
        If the dose is above that of counted electrons.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> counts = xr.DataArray(np.full((2, 4, 4), 50), dims=("view", "scan_y", "scan_x"),
    ...                       attrs={"dose_e_per_A2": 100.0})
    >>> views_at(counts, dose_e_per_A2=10, rng=0).attrs["dose_e_per_A2"]
    10.0
    """
    if _is_expected(views):
        return apply_dose(views, dose_e_per_A2, rng=rng)
    own = float(views.attrs["dose_e_per_A2"])
    if dose_e_per_A2 > own * 1.001:
        raise ValueError(f"dose {dose_e_per_A2:g} e/Å² is above the recorded {own:g} e/Å²: electrons only go away")
    return thin_counts(views, min(1.0, dose_e_per_A2 / own), rng=rng)


def _linear(views: xr.DataArray, plan: FusionPlan | None = None, *, prior: str = "ring") -> xr.DataArray:
    plan = plan_fusion(views) if plan is None else plan
    # the same pixels at every dose, so that pictures can be compared
    return fuse_linear(views, plan=plan, upsample=plan.folds, prior=prior)["phase"]


def _network(views: xr.DataArray, plan: FusionPlan | None = None) -> xr.DataArray:
    plan = plan_fusion(views) if plan is None else plan
    # it warns outside of what it was trained for: words for the page, not an error, whatever the filters say
    with _CATCHING, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        image = fuse_cnn(views, plan=plan, upsample=plan.folds)["phase"]
    return image.assign_attrs(caution=" ".join(str(one.message) for one in told))


class Method(NamedTuple):
    """How to fuse views; one that is planned takes the ``plan`` that is held, too."""

    fuse: Callable[..., xr.DataArray]
    planned: bool = False


METHODS: dict[str, Method] = {
    "one raw view": Method(axial_view),
    "tcBF (shift and add)": Method(shift_and_add),
    "linear fusion": Method(_linear, planned=True),
    "linear fusion, local prior": Method(partial(_linear, prior="local"), planned=True),
    "network (fuse_cnn)": Method(_network, planned=True),
}


def picture(views: xr.DataArray, *, method: str, plan: FusionPlan | None = None) -> xr.DataArray:
    """The image a method makes of counted views.

    Parameters
    ----------
    views : xarray.DataArray
        Integer counts.
    method : str
        A key of ``METHODS``.
    plan : FusionPlan, optional
        For the methods that are ``planned``, if it is held already.

    Returns
    -------
    xarray.DataArray
        Dims ``("y", "x")``.

    Raises
    ------
    ValueError
        For an unknown method, or if the method cannot use the views.

    Examples
    --------
    >>> import numpy as np, misr
    >>> k = np.arange(16) - 7.5
    >>> disk = np.hypot(*np.meshgrid(k, k)) < 5
    >>> cube = misr.cube_from_array(np.broadcast_to(disk * 0.5, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2,
    ...                             energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000})
    >>> views = misr.synthesize_views(misr.apply_dose(cube, 100, rng=0), n_views=7)
    >>> picture(views, method="one raw view").sizes["x"], picture(views, method="linear fusion").attrs["units"]
    (8, 'rad')
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {list(METHODS)}")
    chosen = METHODS[method]
    return chosen.fuse(views, plan=plan) if chosen.planned else chosen.fuse(views)


class Result(NamedTuple):
    """What the tool shows; the curves come after the image."""

    image: xr.DataArray
    frc: xr.DataArray | None = None
    frc_truth: xr.DataArray | None = None


class ExploreState(param.Parameterized):
    """Choices and what follows from them; no widgets.

    Parameters
    ----------
    cube : xarray.DataArray or Dataset
        Expected or counted electrons; in a Dataset, as ``counts``, beside the true ``phase`` if it is known.
    seed : int, default 0
        Seed of the electrons and of the split in halves: the same choices give the same picture.
    """

    dose = param.Selector(objects=[100.0], label="Dose (e/Å²)", doc="Electrons per Å².")
    n_views = param.Selector(objects=[9], label="Number of views", doc="Groups of bright-field pixels.")
    method = param.Selector(objects=list(METHODS), default="linear fusion", label="Method")
    ring_width = param.Selector(objects=[_RING_WIDTH], label="FRC ring width (1/Å)", doc="Averaged frequencies.")
    result = param.ClassSelector(class_=Result, allow_None=True, precedence=-1)
    busy = param.Boolean(default=False, precedence=-1)
    problem = param.String(default="", precedence=-1)

    def __init__(self, cube: xr.DataArray | xr.Dataset, *, seed: int = 0, **params: Any) -> None:
        super().__init__()
        self.truth = cube.get("phase") if isinstance(cube, xr.Dataset) else None
        counts = cube["counts"] if isinstance(cube, xr.Dataset) else cube
        validate_cube(counts, counts=False)
        self.cube = _centre(counts)
        self.seed = seed
        if self.cube.shape != counts.shape:
            self.truth = None
        every = synthesize_views(self.cube).compute()
        self._grouped = {every.sizes["view"]: every}
        self._plans: dict[int, FusionPlan] = {}
        doses, widths = dose_steps(counts), _ring_widths(self.cube)
        numbers = [n for n in _VIEWS if n < every.sizes["view"]] + [every.sizes["view"]]
        for name, values in (("dose", doses), ("n_views", numbers), ("ring_width", widths)):
            self.param[name].objects = {f"{value:g}": value for value in values}
        chosen = {
            "dose": min(doses, key=lambda dose: abs(np.log(dose / 300))),
            "n_views": numbers[-1],
            "ring_width": min(widths, key=lambda width: abs(width - _RING_WIDTH)),
        }
        self.param.update(**(chosen | params))

    def views(self) -> xr.DataArray:
        """Views for the present choices; those before the dose are kept for the next."""
        n_views = self.n_views
        if n_views not in self._grouped:
            self._grouped[n_views] = synthesize_views(self.cube, n_views=n_views).compute()
        return views_at(self._grouped[n_views], dose_e_per_A2=self.dose, rng=self.seed)

    def plan(self) -> FusionPlan:
        """Geometry of the fusion for the present number of views: only the electrons change with the dose."""
        if self.n_views not in self._plans:
            self._plans = {self.n_views: plan_fusion(self._grouped[self.n_views])}  # only one: they can be large
        return self._plans[self.n_views]

    def steps(self) -> list[Callable[[], Result]]:
        """The work for the present choices, in parts: the image first, since it is there soonest."""
        method, width = self.method, self.ring_width
        found: dict[str, Any] = {}

        def show_image() -> Result:
            found["views"] = self.views()
            found["plan"] = self.plan() if METHODS[method].planned else None
            found["image"] = picture(found["views"], method=method, plan=found["plan"])
            return Result(found["image"])

        def show_curves() -> Result:
            fuse = partial(picture, method=method, plan=found["plan"])
            frc = half_map_frc(found["views"], fuse=fuse, ring_width=width, rng=self.seed)
            return Result(found["image"], frc, self._against_truth(found["image"], width))

        return [show_image, show_curves]

    def _against_truth(self, image: xr.DataArray, ring_width: float) -> xr.DataArray | None:
        if self.truth is None or image.attrs.get("units") != "rad":
            return None
        from misr.resample import phase_on_grid

        truth = phase_on_grid(self.truth, like=image)
        window = None if is_periodic(self.cube) else "hann"
        return fourier_ring_correlation(image, truth, ring_width=ring_width, window=window)

    def update(self) -> None:
        """Compute now, in this thread; problems are raised."""
        for step in self.steps():
            self.result = step()

    def update_or_explain(self) -> None:
        """Compute now, in this thread; problems go to ``problem``."""
        try:
            self.update()
        except _EXPECTED as error:
            self._explain(error)

    async def follow(self, *_: Any) -> None:
        """Compute in another thread, newest choices only; problems go to ``problem``."""
        self._stale = True
        if self.busy:
            return
        self.busy = True
        try:
            while self._stale:
                self._stale = False
                await self._follow_once()
        finally:
            self.busy = False

    _stale = False

    async def _follow_once(self) -> None:
        try:
            for step in self.steps():
                result = await asyncio.to_thread(step)
                if self._stale:
                    return
                self.param.update(result=result, problem="")
        except _EXPECTED as error:
            self._explain(error)

    def _explain(self, error: Exception) -> None:
        _LOG.warning("%s", error, exc_info=True)
        self.problem = str(error) or type(error).__name__


def summary(result: Result | None, *, ring_width: float) -> tuple[str, str]:
    """The resolution, and how it was found; an ellipsis while it is being computed.

    Parameters
    ----------
    result : Result or None
        From `ExploreState`.
    ring_width : float
        Of the FRC, 1/Å.

    Returns
    -------
    tuple of str
        A heading and a line.

    Examples
    --------
    >>> summary(None, ring_width=0.05)
    ('Resolution: …', 'Half maps, half-bit threshold, rings of 0.05 1/Å.')
    """
    how = f"Half maps, half-bit threshold, rings of {ring_width:g} 1/Å."
    if result is None:
        return "Resolution: …", how
    if result.frc_truth is not None:
        how += f" Against the truth, threshold 0.5: {resolution_text(result.frc_truth, threshold=0.5)}."
    attrs = result.image.attrs
    if "prior_share" in attrs:
        own = f"{100 * attrs['prior_share']:.0f} %"
        how += f" {own} of the image's power is the network's own guess, and its half maps share such guesses."
    if attrs.get("caution"):
        how += f" Caution: {attrs['caution']}."
    return "Resolution: …" if result.frc is None else f"Resolution: {resolution_text(result.frc)}", how


def _is_expected(array: xr.DataArray) -> bool:
    """Floats are expected counts unless all are whole: a detector may store electrons as floats."""
    if array.dtype.kind != "f":
        return False
    some = array.isel({name: slice(0, 4) for name in _SCAN_DIMS}).values
    return not np.array_equal(some, np.rint(some))


def _centre(cube: xr.DataArray) -> xr.DataArray:
    crop = {}
    for name in _SCAN_DIMS:
        first = max(0, (cube.sizes[name] - _POSITIONS) // 2)
        crop[name] = slice(first, first + _POSITIONS)
    return cube.isel(crop)


def _ring_widths(cube: xr.DataArray) -> list[float]:
    lowest = 1 / min(step * cube.sizes[name] for step, name in zip(scan_step(cube), _SCAN_DIMS, strict=True))
    widths = [width for width in (0.02, 0.03, 0.05, 0.07, 0.1, 0.15) if width >= lowest]
    return widths or [lowest]
