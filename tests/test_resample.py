"""Images put on other grids, against waves that are known everywhere."""

import numpy as np
import pytest
import xarray as xr

from misr.cube import cube_history, image_from_array
from misr.resample import phase_on_grid, resample_like


@pytest.mark.parametrize("size", [(24, 30), (25, 31), (60, 80), (9, 8)])
def test_resampling_a_sum_of_waves_is_exact_and_band_limited(size):
    field = (12.0, 10.0)
    rng = np.random.default_rng(0)
    waves = [(0, 0, 0.3)] + [(m, n, rng.uniform(0, 6)) for m, n in ((1, 2), (-2, 3), (0, 3), (5, -6), (7, 1))]

    def image(shape, below=np.inf):
        grid = image_from_array(np.zeros(shape), pixel_A=(field[0] / shape[0], field[1] / shape[1]))
        kept = [w for w in waves if abs(w[0]) < below * shape[0] / 2 and abs(w[1]) < below * shape[1] / 2]
        for m, n, angle in kept:
            grid = grid + np.cos(2 * np.pi * (m * grid.y / field[0] + n * grid.x / field[1]) + angle)
        return grid

    resampled = phase_on_grid(image((24, 20)), like=image(size))
    np.testing.assert_allclose(resampled, image(size, below=1.0), atol=1e-10)
    last = cube_history(resampled)[-1]
    assert (last["operation"], last["shape"]) == ("phase_on_grid", list(size))
    assert last["x_A"] == [0.0, pytest.approx(field[1] * (1 - 1 / size[1]))]


def test_resampling_refuses_another_field():
    image = image_from_array(np.zeros((8, 8)), pixel_A=(1.0, 1.0))
    with pytest.raises(ValueError, match="more than the field"):
        phase_on_grid(image, like=image_from_array(np.zeros((8, 12)), pixel_A=(1.0, 1.0)))
    with pytest.raises(ValueError, match="no coordinate"):
        phase_on_grid(image, like=xr.DataArray(np.zeros((8, 8)), dims=("y", "x")))


def test_resample_like_keeps_waves_it_can_carry_and_drops_others():
    fine = image_from_array(np.zeros((96, 96)), pixel_A=(0.5, 0.5))
    slow, fast = 2 * np.pi / 8, 2 * np.pi / 1.5
    coarse = image_from_array(np.zeros((46, 46)), pixel_A=(1.0, 1.0), origin_A=(0.25, 0.75))
    wave = fine.copy(data=np.sin(slow * (fine.x + 2 * fine.y)).transpose("y", "x").values)
    inner = {"y": slice(10, 36), "x": slice(10, 36)}
    truth = np.sin(slow * (coarse.x + 2 * coarse.y)).transpose("y", "x")
    np.testing.assert_allclose(resample_like(wave, coarse).sel(inner), truth.sel(inner), atol=0.02)
    before, after = cube_history(wave), cube_history(resample_like(wave, coarse))
    assert after[:-1] == before
    line = {"operation": "resample_like", "shape": [46, 46], "y_A": [0.25, 45.25], "x_A": [0.75, 45.75]}
    assert after[-1] == line
    aliasing = fine.copy(data=np.broadcast_to(np.cos(fast * fine.x), fine.shape))
    assert np.abs(resample_like(aliasing, coarse).sel(inner)).max() < 0.1


def test_resample_like_refuses_another_field():
    image = image_from_array(np.zeros((8, 8)), pixel_A=(1.0, 1.0))
    with pytest.raises(ValueError, match="like covers"):
        resample_like(image, image_from_array(np.zeros((20, 20)), pixel_A=(2.0, 2.0)))
