"""What misr adds to py4DSTEM's own time, on the same counts with the same settings: ``make benchmark``."""

from __future__ import annotations

import statistics
import time
import warnings

import numpy as np
import pytest

import misr
from misr._py4dstem import setup_of

ITERATIONS, STEP_SIZE, BATCH = 4, 0.1, 64
_MOST_OVERHEAD = 1.05


@pytest.fixture(scope="module")
def cube():
    """24 × 24 positions, patterns of 65 × 65 whose axis is a pixel, as py4DSTEM takes it."""
    side = np.arange(65) - 32
    disk = np.hypot(*np.meshgrid(side, side)) < 16.6
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5 * disk, (24, 24, 65, 65)).astype(np.uint16)
    options = {"scan_step_A": 2.0, "det_step_mrad": 0.6, "energy_eV": 300e3, "semiangle_mrad": 10.0}
    return misr.cube_from_array(counts, **options, aberrations={"C10": -500.0})


def ptychography_by_misr(cube):
    return misr.reconstruct_ptychography(
        cube, iterations=ITERATIONS, step_size=STEP_SIZE, batch_size=BATCH, rng=0, progress=False, device="cpu"
    )


def ptychography_by_hand(cube):
    from py4DSTEM.process.phase import SingleslicePtychography

    axis = (np.full(cube.shape[:2], 32.0),) * 2
    probe = setup_of(cube, None, None, required=True).probe()
    fit = SingleslicePtychography(
        300e3, misr.cube_to_py4dstem(cube), initial_probe_guess=probe, object_padding_px=(33, 33),
        object_type="potential", verbose=False,
    ).preprocess(
        force_com_rotation=0, force_com_transpose=False, force_com_shifts=axis, force_com_measured=axis,
        shifting_interpolation_order=0, plot_center_of_mass=None, plot_rotation=False, plot_probe_overlaps=False,
        center_positions_in_fov=False,
    )  # fmt: skip
    return fit.reconstruct(
        num_iter=ITERATIONS, step_size=STEP_SIZE, max_batch_size=BATCH, seed_random=0, fix_probe=True, reset=True,
        progress_bar=False,
    ).object  # fmt: skip


def parallax_by_misr(cube):
    return misr.reconstruct_parallax(cube, upsample=4, progress=False, device="cpu")


def parallax_by_hand(cube):
    from py4DSTEM.process.phase import Parallax

    fit = Parallax(300e3, misr.cube_to_py4dstem(cube), verbose=False, object_padding_px=(24, 24), defocus=500)
    fit.preprocess(dp_mask=misr.bright_field_disk(cube)["mask"].values, edge_blend=0.5, plot_average_bf=False)
    fit.aberration_fit(force_rotation_angle_deg=0)
    fit.subpixel_alignment(kde_upsample_factor=4, plot_upsampled_BF_comparison=False, progress_bar=False)
    fit.aberration_correct(use_CTF_fit=True, plot_corrected_phase=False)
    return fit.recon_phase_corrected


METHODS = {
    "ptychography": (ptychography_by_misr, ptychography_by_hand),
    "parallax": (parallax_by_misr, parallax_by_hand),
}


@pytest.mark.benchmark(group="reference, 24 × 24 positions, 65 × 65 pixels")
@pytest.mark.parametrize("who", ["misr", "py4DSTEM by hand"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reference(benchmark, cube, method, who):
    run = METHODS[method][who != "misr"]
    benchmark.pedantic(run, args=(cube,), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("method", METHODS)
def test_overhead(benchmark, cube, method):
    """In turn, so that both see the same machine; the median of the pairs' ratios."""
    ours, by_hand = METHODS[method]

    def ratio():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            times = []
            for run in (ours, by_hand):
                start = time.process_time()
                run(cube)
                times.append(time.process_time() - start)
        return times[0] / times[1]

    ratio()
    ratios = [ratio() for _ in range(3)]
    benchmark.extra_info["ratios"] = ratios
    benchmark.pedantic(lambda: None, rounds=1)
    assert statistics.median(ratios) <= _MOST_OVERHEAD, ratios
