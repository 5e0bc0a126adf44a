"""Time of the Fourier ring correlation of a 2048 × 2048 pair beside py4DSTEM's function: ``make benchmark``."""

from __future__ import annotations

import numpy as np
import pytest

import misr
from misr.cube import image_from_array

pytestmark = pytest.mark.benchmark(group="FRC, 2048 × 2048")


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2048, 2048))
    return [image_from_array(signal + rng.standard_normal(signal.shape), pixel_A=(0.5, 0.5)) for _ in range(2)]


def py4dstem(a, b):
    from py4DSTEM.process.phase.utils import fourier_ring_correlation

    return fourier_ring_correlation(a.values, b.values, pixel_size=(0.5, 0.5), plot_frc=False)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(misr.fourier_ring_correlation, id="misr, Hann"),
        pytest.param(lambda a, b: misr.fourier_ring_correlation(a, b, window=None), id="misr, no window"),
        pytest.param(lambda a, b: misr.fourier_ring_correlation(a, b, ring_width="auto"), id="misr, automatic rings"),
        pytest.param(py4dstem, id="py4DSTEM"),
    ],
)
def test_frc(benchmark, pair, method):
    benchmark.pedantic(method, args=tuple(pair), rounds=5, warmup_rounds=1)
