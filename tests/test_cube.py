"""The labelled cube: what it must satisfy, and that every fault is named."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import misr
from misr.aberrations import aberrations_of, with_aberrations
from misr.cube import CUBE_DIMS, image_from_array, is_lazy, is_periodic, scan_step

OPTIONS = {"scan_step_A": 2.0, "det_step_mrad": 2.0, "energy_eV": 300e3, "semiangle_mrad": 10.0}


@pytest.fixture
def cube():
    return misr.cube_from_array(np.ones((6, 5, 16, 16), dtype=np.uint16), **OPTIONS)


def problems_of(cube):
    with pytest.raises(ValueError, match="not a valid 4D-STEM cube") as caught:
        misr.validate_cube(cube)
    return str(caught.value).splitlines()[1:]


def test_labels(cube):
    assert cube.dims == CUBE_DIMS
    assert cube.dtype == np.uint16
    assert cube.scan_y.values.tolist() == [0, 2, 4, 6, 8, 10]
    assert cube.det_y.values[0] == -15
    assert float(cube.det_x.mean()) == 0
    assert [cube[d].attrs["units"] for d in cube.dims] == ["Å", "Å", "mrad", "mrad"]
    assert cube.attrs["units"] == "electrons"
    assert cube.attrs["rotation_deg"] == 0.0


def test_attributes_are_plain_numbers_and_text():
    cube = misr.cube_from_array(
        np.ones((4, 4, 16, 16)),
        **{**OPTIONS, "energy_eV": np.float32(300e3)},
        dose_e_per_A2=np.int64(7),
        aberrations={"defocus": 1500, "C12": 20, "phi12": 0.5},
    )
    assert all(type(value) in (float, int, str) for value in cube.attrs.values())
    assert (cube.attrs["C10_A"], cube.attrs["C12_A"], cube.attrs["phi12_rad"]) == (-1500.0, 20.0, 0.5)


def test_dose_is_counted_when_not_given():
    cube = misr.cube_from_array(np.full((6, 5, 16, 16), 3), **{**OPTIONS, "scan_step_A": (2.0, 3.0)})
    assert cube.attrs["dose_e_per_A2"] == pytest.approx(3 * 256 / 6)
    assert scan_step(cube) == (2.0, 3.0)
    given = misr.cube_from_array(np.ones((4, 4, 16, 16)), **OPTIONS, dose_e_per_A2=50)
    assert given.attrs["dose_e_per_A2"] == 50.0


def test_plain_lists_are_taken():
    cube = misr.cube_from_array(np.ones((4, 4, 16, 16), dtype=int).tolist(), **OPTIONS)
    assert cube.shape == (4, 4, 16, 16)


def test_dask_is_not_read():
    def never(block):
        raise RuntimeError("the data were read")

    lazy = da.ones((6, 5, 16, 16), chunks=(2, 5, 16, 16)).map_blocks(never, dtype=float, meta=np.empty((0,) * 4))
    cube = misr.cube_from_array(lazy, **OPTIONS)
    assert is_lazy(cube)
    assert "dose_e_per_A2" not in cube.attrs
    misr.validate_cube(cube, counts=False)
    assert is_lazy(with_aberrations(cube, {"C10": 5.0}))
    with pytest.raises(RuntimeError, match="were read"):
        misr.validate_cube(cube)


@pytest.mark.parametrize("shape", [(6, 16, 16), (6,), (2, 6, 5, 16, 16)])
def test_wrong_number_of_axes(shape):
    with pytest.raises(ValueError, match=r"expected four axes \(scan_y, scan_x, det_y, det_x\)"):
        misr.cube_from_array(np.ones(shape), **OPTIONS)


@pytest.mark.parametrize("name", ["scan_step_A", "det_step_mrad"])
@pytest.mark.parametrize("value", [0.0, -1.0, (1.0, float("nan"))])
def test_wrong_steps(name, value):
    with pytest.raises(ValueError, match=name):
        misr.cube_from_array(np.ones((4, 4, 16, 16)), **{**OPTIONS, name: value})


def test_one_line_scan():
    with pytest.raises(ValueError, match=r"scan_y has 1 positions.*not a 2-D scan"):
        misr.cube_from_array(np.ones((1, 30, 16, 16)), **OPTIONS)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-2.0, r"negative \(down to -2\)")],
)
def test_bad_counts(value, message, lazy):
    counts = np.ones((4, 4, 16, 16))
    counts[3, 1, 2, 3] = value
    if lazy:  # found when asked for, and not before
        cube = misr.cube_from_array(da.from_array(counts, chunks=(2, 4, 16, 16)), **OPTIONS)
        with pytest.raises(ValueError, match=message):
            misr.validate_cube(cube)
    else:
        with pytest.raises(ValueError, match=message):
            misr.cube_from_array(counts, **OPTIONS)


@pytest.mark.parametrize("dtype", [complex, "U1"])
def test_counts_that_are_no_numbers(dtype):
    with pytest.raises(ValueError, match="expected integers or real floats"):
        misr.cube_from_array(np.zeros((4, 4, 16, 16), dtype=dtype), **OPTIONS, dose_e_per_A2=1)


def test_disk_larger_than_the_detector():
    with pytest.raises(ValueError, match="semiangle_mrad=20 reaches past the detector"):
        misr.cube_from_array(np.ones((4, 4, 16, 16)), **{**OPTIONS, "semiangle_mrad": 20})


@pytest.mark.parametrize("name", ["energy_eV", "semiangle_mrad"])
def test_missing_or_senseless_attributes(cube, name):
    def with_attrs(**attrs):
        changed = cube.copy()
        changed.attrs = {key: value for key, value in (cube.attrs | attrs).items() if value is not None}
        return changed

    if name == "semiangle_mrad":
        misr.validate_cube(with_attrs(semiangle_mrad=None))  # the bright-field disk tells it
    else:
        assert f"attrs['{name}'] is missing" in problems_of(with_attrs(**{name: None}))[0]
    for value in (-1.0, 0.0, float("nan"), "300e3", [1.0]):
        assert f"attrs['{name}'] is {value!r}" in problems_of(with_attrs(**{name: value}))[0]


def test_semiangle_may_be_left_out():
    options = {name: value for name, value in OPTIONS.items() if name != "semiangle_mrad"}
    cube = misr.cube_from_array(np.ones((4, 4, 16, 16)), **options)
    assert "semiangle_mrad" not in cube.attrs
    assert misr.cube_history(cube)[0]["semiangle_mrad"] is None


def test_wrong_dims(cube):
    assert "rename or transpose" in problems_of(cube.transpose("det_y", "det_x", "scan_y", "scan_x"))[0]
    assert "dims are ('scan_y'," in problems_of(cube.rename(det_x="kx"))[0]


def test_wrong_type():
    with pytest.raises(TypeError, match=r"got ndarray: label it with misr.cube_from_array"):
        misr.validate_cube(np.ones((4, 4, 16, 16)))


def test_coordinate_faults(cube):
    assert "no coordinate 'scan_x'" in problems_of(cube.drop_vars("scan_x"))[0]
    assert "has units None" in problems_of(cube.assign_coords(det_y=cube.det_y.values))[0]
    nanometres = cube.assign_coords(scan_y=("scan_y", cube.scan_y.values / 10, {"units": "nm"}))
    assert "has units 'nm', expected 'Å'" in problems_of(nanometres)[0]
    assert "does not increase" in problems_of(cube.isel(scan_y=slice(None, None, -1)))[0]
    uneven = cube.scan_x.values**1.5
    assert "not uniform" in problems_of(cube.assign_coords(scan_x=("scan_x", uneven, {"units": "Å"})))[0]
    holes = np.where(cube.scan_x.values == 2, np.nan, cube.scan_x.values)
    assert "does not increase" in problems_of(cube.assign_coords(scan_x=("scan_x", holes, {"units": "Å"})))[0]


def test_single_precision_coordinates_are_uniform_enough():
    cube = misr.cube_from_array(np.ones((64, 64, 16, 16), dtype=np.uint8), **{**OPTIONS, "scan_step_A": 0.3})
    single = cube.assign_coords(scan_y=("scan_y", (cube.scan_y.values + 100).astype(np.float32), {"units": "Å"}))
    misr.validate_cube(single)


def test_all_problems_come_in_one_message(cube):
    broken = cube.astype(float)
    broken.values[0, 0, 0, 0] = -1
    broken = broken.isel(scan_x=slice(2)).assign_coords(scan_y=cube.scan_y.values)
    broken.attrs = {"semiangle_mrad": "wide", "C11_A": 3.0}
    problems = problems_of(broken)
    for text in ("scan_y has units None", "scan_x has 2", "'energy_eV'", "'semiangle_mrad'", "'C11'", "negative"):
        assert any(text in line for line in problems), text
    assert len(problems) == 6
    assert all(line.startswith("- ") for line in problems)


def test_aberrations_are_read_from_attrs_only_by_their_names():
    array = xr.DataArray(0, attrs={"C10_A": -5.0, "phi12_rad": 0.1, "C12_A": 2.0, "Color_A": 1, "C10": 7, "phi_rad": 2})
    assert aberrations_of(array) == {"C10": -5.0, "C12": 2.0, "phi12": 0.1}
    assert aberrations_of(xr.DataArray(0)) is None


def test_with_aberrations_replaces_stale_ones(cube):
    first = with_aberrations(cube, {"C10": -5.0, "C12": 2.0, "phi12": 0.1}, rotation_deg=30)
    second = with_aberrations(first, {"C10": 7.0})
    assert aberrations_of(second) == {"C10": 7.0}
    assert second.attrs["rotation_deg"] == 30.0
    assert aberrations_of(first) == {"C10": -5.0, "C12": 2.0, "phi12": 0.1}  # the input is left alone
    assert aberrations_of(cube) is None
    third = with_aberrations(second, xr.Dataset({"C10": 1.0, "C10_stderr": 0.1, "rotation_deg": -12.0}))
    assert aberrations_of(third) == {"C10": 1.0}
    assert third.attrs["rotation_deg"] == -12.0
    assert third.attrs["energy_eV"] == 300e3


def test_history_tells_the_operations_in_order(cube):
    counted = misr.thin_counts(with_aberrations(cube, {"C10": -5.0}), 0.5, rng=3)
    history = misr.cube_history(counted)
    assert [line["operation"] for line in history] == ["cube_from_array", "with_aberrations", "thin_counts"]
    assert history[0]["scan_step_A"] == [2.0, 2.0]
    assert history[1]["C10"] == -5.0
    assert (history[2]["fraction"], history[2]["rng"]) == (0.5, 3)
    assert len(misr.cube_history(cube)) == 1


def test_image_labels():
    image = image_from_array(np.zeros((3, 2)), pixel_A=(0.5, 0.25), origin_A=(1.0, 2.0), attrs={"method": "x"})
    assert image.dims == ("y", "x")
    assert image.y.values.tolist() == [1.0, 1.5, 2.0]
    assert image.x.values.tolist() == [2.0, 2.25]
    assert image.attrs == {"units": "rad", "method": "x"}
    assert image.x.attrs["units"] == "Å"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rotation_deg", np.nan, "finite number"),
        ("dose_e_per_A2", -5.0, "not below 0"),
        ("energy_eV", 300.0, "in eV, so 300 keV is 300e3"),
    ],
)
def test_metadata_that_cannot_be(cube, name, value, said):
    with pytest.raises(ValueError, match=said):
        misr.validate_cube(cube.assign_attrs({name: value}))


def test_periodic_only_while_it_covers_the_period(cube):
    length = [2.0 * cube.sizes[dim] for dim in ("scan_y", "scan_x")]
    wrapping = cube.assign_attrs(period_A=length)
    assert is_periodic(wrapping)
    assert is_periodic(wrapping.isel(scan_y=slice(None, None, 2)))
    assert not is_periodic(wrapping.isel(scan_y=slice(1, None)))
    assert not is_periodic(cube)
