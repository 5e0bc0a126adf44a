"""Time of `fit_aberrations` beside py4DSTEM parallax's own alignment of the same counts: ``make benchmark``.

64 × 64 positions, 2 Å step, about 800 bright-field pixels, 100 e/Å². py4DSTEM is told the rotation, misr is not. Its
"alignment" is what finds shifts and aberrations, up to the fit of the aberrations; "parallax" is all of it, to the
corrected image.
"""

from __future__ import annotations

import warnings

import pytest

import misr
from misr._py4dstem import engine, setup_of, silent_py4dstem

pytestmark = pytest.mark.benchmark(group="calibration, 64 × 64 positions, about 800 bright-field pixels, 100 e/Å²")
ROTATION = 30.0


@pytest.fixture(scope="module")
def cube():
    atoms = misr.amorphous_atoms(field_A=128, rng=0)
    simulated = misr.simulate_cube(atoms, aberrations={"C10": -1500.0}, rotation_deg=ROTATION, progress=False)
    counts = misr.apply_dose(simulated.counts, 100, rng=0)
    # neither is told what it is to find, nor that the simulated scan wraps round
    for name in ("C10_A", "rotation_deg", "period_A"):
        counts.attrs.pop(name)
    assert 700 < int(misr.bright_field_disk(counts)["mask"].sum()) < 900
    return counts


def fit(cube):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the aberrations found are not certain", category=UserWarning)
        return misr.fit_aberrations(cube)


def align(cube):
    """What `misr.reconstruct_parallax` lets py4DSTEM do with ``fit=True``, up to the aberrations."""
    setup = setup_of(cube, {}, ROTATION, required=False)
    with silent_py4dstem():
        parallax = engine("Parallax", setup, turn_deg=0.0, object_padding_px=(32, 32))
        parallax.preprocess(
            dp_mask=setup.mask, force_rotation_angle_deg=ROTATION, edge_blend=16.0, plot_average_bf=False
        )
        parallax.reconstruct(progress_bar=False, plot_aligned_bf=False, plot_convergence=False, reset=True)
        parallax.aberration_fit(force_rotation_angle_deg=ROTATION)
    return parallax


def parallax(cube):
    return misr.reconstruct_parallax(cube, fit=True, aberrations={}, rotation_deg=ROTATION, progress=False)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(fit, id="fit_aberrations"),
        pytest.param(align, id="py4DSTEM alignment"),
        pytest.param(parallax, id="py4DSTEM parallax"),
    ],
)
def test_calibration(benchmark, cube, method):
    # one round of warming up pays for imports
    benchmark.pedantic(method, args=(cube,), rounds=2, warmup_rounds=1)
