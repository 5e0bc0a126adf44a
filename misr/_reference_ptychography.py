"""py4DSTEM's single-slice ptychography, one iteration at a time, on the scan's own coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from misr._py4dstem import Setup, centred_patterns, engine
from misr.cube import image_from_array, scan_step
from misr.resample import sample_at

__all__ = ["Iteration", "Ptychography", "Run", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How to reconstruct; ``batch_size`` None takes all patterns at once, ``smoothing_A`` 0 smooths nothing."""

    iterations: int
    step_size: float
    batch_size: int | None
    smoothing_A: float

    def attrs(self) -> dict[str, Any]:
        """As netCDF takes it: a batch of all patterns is 0."""
        return asdict(self) | {"batch_size": self.batch_size or 0}


@dataclass(frozen=True)
class Iteration:
    """What `misr.reconstruct_ptychography` tells its ``callback`` after each pass over the data.

    ``stage`` is "search" or "reconstruction", ``done`` of ``total`` passes are over (of both stages together), and
    ``error`` is py4DSTEM's normalised mean squared error of the amplitudes. ``phase()`` makes the image so far (rad,
    on the scan's coordinates; in a search, that of the settings on trial).
    """

    stage: str
    done: int
    total: int
    error: float
    phase: Callable[[], xr.DataArray]


class Run:
    """Progress bar, callback and cancellation of one call, over all of its passes."""

    def __init__(
        self, total: int, *, bar: Any, callback: Callable[[Iteration], Any] | None, cancel: Callable[[], Any] | None
    ) -> None:
        self.total, self.done, self.cancelled = total, 0, False
        self._bar, self._callback, self._cancel = bar, callback, cancel

    def expect(self, more: int) -> None:
        """How many passes are still to come, now that it is known."""
        self.total = self.done + more
        self._bar.total = self.total
        self._bar.refresh()

    def after(self, stage: str, fit: Ptychography) -> None:
        """To be called after each pass; once cancelled it stays so."""
        self.done += 1
        self._bar.update()
        if self._callback is not None:
            self._callback(Iteration(stage, self.done, self.total, fit.error, fit.phase))
        self.cancelled = self.cancelled or (self._cancel is not None and bool(self._cancel()))


class Ptychography:
    """One cube's reconstruction: `step` goes on from where it is, `restart` forgets."""

    def __init__(
        self,
        setup: Setup,
        *,
        object_type: str,
        fix_probe: bool,
        device: str,
        preprocess_options: Mapping[str, Any] | None = None,
        reconstruct_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.setup, self.fix_probe = setup, fix_probe
        self._options = dict(reconstruct_options or {})
        self._fresh = True
        axes = (np.asarray(setup.cube[name].values, dtype=float) for name in ("scan_y", "scan_x"))
        self.positions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        self.engine = engine(
            "SingleslicePtychography",
            setup,
            turn_deg=setup.rotation_deg,
            semiangle_cutoff=setup.semiangle_mrad,
            initial_probe_guess=setup.probe(),
            initial_scan_positions=self.positions - self.positions[0],
            # whole: probe positions fall on pixels
            object_padding_px=tuple(math.ceil(size / 2) for size in setup.mask.shape),
            object_type=object_type,
            device=device,
        )
        self.engine.preprocess(**{**centred_patterns(setup), **(preprocess_options or {})})

    def restart(self) -> None:
        """The next step starts from an empty object and the first probe."""
        self._fresh = True

    def step(self, settings: Settings, seed: int) -> None:
        """One pass over the data."""
        number = len(self.positions)
        self.engine.reconstruct(
            num_iter=1,
            reset=self._fresh,
            step_size=settings.step_size,
            max_batch_size=min(settings.batch_size or number, number),
            gaussian_filter_sigma=settings.smoothing_A or None,
            seed_random=seed,
            fix_probe=self.fix_probe,
            progress_bar=False,
            **self._options,
        )
        self._fresh = False

    def passes(self, settings: Settings, seeds: Sequence[int], run: Run) -> Iterator[float]:
        """The error of pass after pass, from the start, until they are done or cancelled."""
        self.restart()
        for number in range(settings.iterations):
            self.step(settings, seeds[number])
            run.after("reconstruction", self)
            yield self.error
            if run.cancelled:
                return

    @property
    def is_complex(self) -> bool:
        """Whether the object is complex."""
        return bool(np.iscomplexobj(self.engine.object))

    @property
    def error(self) -> float:
        """Of the last pass: mean squared error of the amplitudes, over the electrons of a pattern."""
        return float(self.engine.error)

    def phase(self) -> xr.DataArray:
        """The object's phase, cropped to the field and turned to the scan's frame."""
        values = np.asarray(self.engine.object)
        return self._image(np.angle(values) if np.iscomplexobj(values) else values.astype(float))

    def amplitude(self) -> xr.DataArray:
        """The object's modulus on the same grid."""
        image = self._image(np.abs(np.asarray(self.engine.object)))
        return image.rename("amplitude").assign_attrs(units="1")

    def probe(self) -> xr.DataArray:
        """The probe as it is now, labelled."""
        return self.setup.label_probe(self.engine._asnumpy(self.engine._probe))

    def _image(self, values: np.ndarray) -> xr.DataArray:
        """On the scan's grid, by where py4DSTEM put the probe positions."""
        cube, origin = self.setup.cube, self.positions[0]
        known = np.column_stack([self.positions - origin, np.ones(len(self.positions))])
        placed = np.asarray(self.engine._asnumpy(self.engine._positions_px_initial), dtype=float)
        affine = np.linalg.lstsq(known, placed, rcond=None)[0]
        pixel = [1 / float(np.linalg.norm(affine[axis])) for axis in (0, 1)]
        along = [
            np.arange(math.ceil(size * step / edge - 1e-6)) * edge
            for size, step, edge in zip(cube.shape[:2], scan_step(cube), pixel, strict=True)
        ]
        y, x = np.meshgrid(*along, indexing="ij")
        rows, columns = (affine[0, axis] * y + affine[1, axis] * x + affine[2, axis] for axis in (0, 1))
        sampled = sample_at(values, rows, columns)
        return image_from_array(sampled, pixel_A=(pixel[0], pixel[1]), origin_A=(float(origin[0]), float(origin[1])))
