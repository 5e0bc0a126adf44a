"""Shared, cached simulations: making a scan costs a second, so the tests share them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import settings
from phase_object import at_dose, atoms_phase, bandlimited_phase, phase_object_cube

import misr

settings.register_profile("misr", deadline=None, max_examples=25)
settings.load_profile("misr")


@pytest.fixture(scope="session")
def make_scan():
    """Factory ``(kind, pixels=…, strength=…, seed=…, det_bin=…, **aberrations) -> (expected cube, truth)``, cached.

    300 kV, 10 mrad, truth pixel 0.5 Å, scan step 2 Å, whose own Nyquist limit is 4 Å.
    """

    @functools.lru_cache(maxsize=16)
    def make(kind="atoms", *, pixels=96, strength=0.05, seed=1, det_bin=2, cutoff=0.98, C10=-1500.0, **others):
        phase = {"atoms": atoms_phase, "white": bandlimited_phase}[kind](
            (pixels, pixels), 0.5, rng=seed, strength=strength, cutoff=cutoff
        )
        return phase_object_cube(phase, 0.5, aberrations={"C10": C10, **others}, det_bin=det_bin)

    return make


@pytest.fixture(scope="session")
def make_views(make_scan):
    """Factory of views of those scans at a dose (noise-free when ``rng`` is None), with the truth; cached."""

    @functools.lru_cache(maxsize=16)
    def make(kind="atoms", *, dose=1e8, rng=None, n_views=None, **scan):
        cube, truth = make_scan(kind, **scan)
        return misr.synthesize_views(at_dose(cube, dose, rng=rng), n_views=n_views), truth

    return make


@pytest.fixture
def disk_cube():
    """Factory of small cubes with an ideal bright-field disk of the wanted counts, plainly labelled."""

    def make(
        counts=9, *, shape=(6, 5), detector=16, step_mrad=2.0, radius=5.0, center=(0.0, 0.0), dtype=float, **attrs
    ):
        k = np.arange(detector) - (detector - 1) / 2
        away = np.hypot(k[:, None] - center[0], k[None, :] - center[1])
        disk = np.clip(radius - away + 0.5, 0, 1) if np.dtype(dtype).kind == "f" else away < radius
        values = np.broadcast_to(disk * counts, (*shape, detector, detector)).astype(dtype)
        options = {"scan_step_A": 2.0, "det_step_mrad": step_mrad, "energy_eV": 300e3} | attrs
        return misr.cube_from_array(values, **({"semiangle_mrad": radius * step_mrad} | options))

    return make


@pytest.fixture
def one_thread():
    """Torch on one thread: small networks are not slowed down by sharing cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
