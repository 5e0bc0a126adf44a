"""Files that other programs wrote, misr's own files, and what happens when things go wrong."""

from __future__ import annotations

import math
import os
import tracemalloc

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import rsciio.blockfile
import rsciio.hspy
import rsciio.zspy
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misr._units import split_units, to_angstrom, to_mrad
from misr._writers import storage_chunks
from misr.cube import cube_from_array, cube_history, detector_step, scan_step
from misr.io import cube_from_py4dstem, cube_to_py4dstem, read_cube, read_result, save_cube, save_result

OWN = ("cube.nc", "cube.zarr", "cube.zarr.zip")
SHAPE = (6, 7, 8, 10)
LAMBDA_300 = 0.0196874832  # Å at 300 kV, Kirkland's table
GIVEN = {"energy_eV": 300e3, "semiangle_mrad": 2, "scan_step_A": 2.0, "det_step_mrad": 1.0}


def counts(shape=SHAPE, dtype="uint16", seed=0):
    return np.random.default_rng(seed).poisson(3, shape).astype(dtype)


def a_cube(data=None, **changes):
    arguments = {**GIVEN, "scan_step_A": (2.0, 3.0), "rotation_deg": -7.5, "aberrations": {"C10": -500.0}}
    return cube_from_array(counts() if data is None else data, **{**arguments, **changes})


def signal(data, *, units=("nm", "nm", "1/nm", "1/nm"), scales=(0.2, 0.3, 0.5, 0.5), navigate=(1, 1, 0, 0), tem=None):
    """RosettaSciIO's exchange dictionary."""
    names = ("y", "x", "ky", "kx")
    axes = [
        {
            "_type": "UniformDataAxis",
            "name": names[i % 4],
            "size": size,
            "navigate": bool(navigate[i]),
            "units": units[i],
            "scale": scales[i],
            "offset": 0.0,
            "index_in_array": i,
            "is_binned": False,
        }
        for i, size in enumerate(data.shape)
    ]
    tem = {"beam_energy": 300.0, "convergence_angle": 2.5} if tem is None else tem
    return {
        "data": data,
        "axes": axes,
        "metadata": {"General": {"title": "scan"}, "Acquisition_instrument": {"TEM": tem}, "Signal": {}},
        "original_metadata": {},
        "attributes": {"_lazy": False},
        **{name: {} for name in ("learning_results", "package_info", "tmp_parameters", "models")},
    }


def litter(folder, *expected):
    return sorted(set(os.listdir(folder)) - set(expected))


# ------------------------------------------------------------------------------------------------------ units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/Å", ("Å", True)),
        ("1/\u212b", ("Å", True)),  # the Ångström sign is not the letter
        ("A^-1", ("A", True)),
        ("Å^-1", ("Å", True)),
        ("Å⁻¹", ("Å", True)),
        ("nm-1", ("nm", True)),
        ("1 / nm", ("nm", True)),
        ("1/(nm)", ("nm", True)),
        (b"nm", ("nm", False)),
        ("µm", ("um", False)),
        ("μm", ("um", False)),
        ("[n_m]", ("nm", False)),
        (None, ("", False)),
    ],
)
def test_spellings_of_units(text, expected):
    assert split_units(text) == expected


def test_known_conversions():
    assert [to_angstrom(2, u) for u in ("Å", "A", "nm", "pm", "µm", "um", "meters")] == pytest.approx(
        [2, 2, 20, 0.02, 2e4, 2e4, 2e10]
    )
    assert [to_mrad(2, u) for u in ("mrad", "mrads", "rad", "deg")] == pytest.approx(
        [2, 2, 2000, 2000 * math.pi / 90 / 2]
    )
    assert to_mrad(0.5, "1/Å", energy_eV=300e3) == pytest.approx(0.5 * LAMBDA_300 * 1e3, rel=1e-5)


@pytest.mark.parametrize("units", ["pixels", "px", "", None, "s", "ms", "ns", "1", "eV", "1/nm", "rad", "mrad"])
def test_what_is_no_length(units):
    assert to_angstrom(1.0, units) is None


@pytest.mark.parametrize("units", ["pixels", "", None, "cm", "Å", "ms", "1/s", "1"])
def test_what_is_no_angle(units):
    assert to_mrad(1.0, units, energy_eV=300e3) is None


@given(value=st.floats(1e-6, 1e6), energy=st.floats(1e3, 1e6))
def test_units_agree_with_each_other(value, energy):
    assert to_angstrom(value, "nm") == pytest.approx(to_angstrom(value * 1e3, "pm"))
    per_nm, per_A = to_mrad(value, "1/nm", energy_eV=energy), to_mrad(value / 10, "Å^-1", energy_eV=energy)
    assert per_nm == pytest.approx(per_A)
    # a period d and its first-order angle: λ / d
    assert per_A * 1e-3 / (value / 10) == pytest.approx(to_mrad(1, "1/A", energy_eV=energy) * 1e-3)


# --------------------------------------------------------------------------------------------------- RosettaSciIO


@pytest.mark.parametrize("lazy", [True, False])
def test_hspy(tmp_path, lazy):
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", signal(counts()))
    cube = read_cube(tmp_path / "scan.hspy", lazy=lazy)
    np.testing.assert_array_equal(cube.values, counts())
    assert (cube.chunks is not None) is lazy
    assert scan_step(cube) == pytest.approx((2, 3))
    assert detector_step(cube) == pytest.approx([0.05 * LAMBDA_300 * 1e3] * 2, rel=1e-5)
    assert (cube.attrs["energy_eV"], cube.attrs["semiangle_mrad"]) == (300e3, 2.5)
    assert ("dose_e_per_A2" in cube.attrs) is not lazy
    assert [line["operation"] for line in cube_history(cube)] == ["cube_from_array", "read_cube"]


def test_arguments_go_before_the_file(tmp_path):
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", signal(counts()))
    cube = read_cube(tmp_path / "scan.hspy", energy_eV=80e3, semiangle_mrad=3, scan_step_A=1.5, dose_e_per_A2=100)
    assert (cube.attrs["energy_eV"], cube.attrs["semiangle_mrad"], cube.attrs["dose_e_per_A2"]) == (
        80e3,
        3,
        100,
    )
    assert scan_step(cube) == (1.5, 1.5)
    assert detector_step(cube)[0] == pytest.approx(0.05 * 41.76, rel=1e-3)  # 80 kV: λ = 0.04176 Å


def test_scan_axes_come_first_whatever_the_order(tmp_path):
    swapped = signal(
        counts().transpose(2, 3, 0, 1),
        units=("mrad", "mrad", "Å", "Å"),
        scales=(1.0, 1.0, 2.0, 3.0),
        navigate=(0, 0, 1, 1),
    )
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", swapped)
    cube = read_cube(tmp_path / "scan.hspy")
    np.testing.assert_array_equal(cube.values, counts())
    assert scan_step(cube) == (2, 3)


def test_three_navigation_axes_are_refused(tmp_path):
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", signal(counts(), navigate=(1, 1, 1, 0)))
    with pytest.raises(ValueError, match=r"scan\.hspy has 3 navigation axes.*transpose"):
        read_cube(tmp_path / "scan.hspy")


def test_optic_axis_of_the_file_is_kept_and_a_corner_is_not_one(tmp_path):
    centred = signal(counts(), units=("Å", "Å", "mrad", "mrad"), scales=(2.0, 2.0, 1.0, 1.0))
    centred["axes"][0]["offset"] = 30.0
    centred["axes"][2]["offset"] = -2.5
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", centred)
    cube = read_cube(tmp_path / "scan.hspy", semiangle_mrad=2)
    assert cube.det_y[0] == -2.5
    assert cube.scan_y[0] == 30.0
    assert float(cube.det_x.mean()) == pytest.approx(0)  # offset 0 there: pixels counted from the corner
    assert cube.det_y.attrs["units"] == "mrad"


def test_three_dimensional_data_are_explained(tmp_path):
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", signal(counts((5, 8, 10)), navigate=(1, 0, 0)))
    with pytest.raises(ValueError, match=r"scan\.hspy holds a 3-D array of shape \(5, 8, 10\).*reshape"):
        read_cube(tmp_path / "scan.hspy", **GIVEN)


def test_everything_missing_is_named_at_once(tmp_path):
    blank = signal(counts(), units=("", "", "px", "px"), tem={"beam_energy": 0.0})
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", blank)
    with pytest.raises(ValueError) as caught:
        read_cube(tmp_path / "scan.hspy")
    message = str(caught.value)
    assert message.startswith("scan.hspy gives no energy_eV, scan_step_A, det_step_mrad")
    assert "energy_eV=300e3" in message
    assert "'px'" in message
    read_cube(tmp_path / "scan.hspy", **GIVEN)  # and that mends it


def test_only_the_energy_is_missing_for_reciprocal_units(tmp_path):
    rsciio.hspy.file_writer(tmp_path / "scan.hspy", signal(counts(), tem={"convergence_angle": 2.5}))
    with pytest.raises(ValueError, match=r"gives no energy_eV: pass read_cube\(\.\.\., energy_eV=300e3\)"):
        read_cube(tmp_path / "scan.hspy")


def test_blo_detector_in_cm_is_asked_for(tmp_path):
    frames = counts((5, 6, 8, 8), "uint8")
    scan = signal(frames, units=("nm", "nm", "cm", "cm"), scales=(0.2, 0.2, 0.5, 0.5))
    rsciio.blockfile.file_writer(tmp_path / "scan.blo", scan, show_progressbar=False)
    with pytest.raises(ValueError, match=r"det_step_mrad \(its detector axes are in 'cm'\)"):
        read_cube(tmp_path / "scan.blo", energy_eV=300e3, semiangle_mrad=2)
    cube = read_cube(tmp_path / "scan.blo", energy_eV=300e3, semiangle_mrad=2, det_step_mrad=1)
    np.testing.assert_array_equal(cube.values, frames)
    assert scan_step(cube) == pytest.approx((2, 2))


def test_metadata_that_a_reader_only_maps(tmp_path, monkeypatch):
    """dm4, blo and others leave the energy in the original metadata and say where it belongs."""
    scan = signal(counts(), tem={})
    scan["original_metadata"] = {"Tags": {"Microscope Info": {"Voltage": 2e5}}}
    target = "Acquisition_instrument.TEM.beam_energy"
    scan["mapping"] = {"Tags.Microscope_Info.Voltage": (target, lambda volts: volts / 1e3)}
    monkeypatch.setattr("rsciio.blockfile.file_reader", lambda *_, **__: [scan])
    (tmp_path / "scan.blo").touch()
    assert read_cube(tmp_path / "scan.blo", semiangle_mrad=2).attrs["energy_eV"] == 2e5


def test_reader_that_cannot_be_lazy(tmp_path, monkeypatch):
    def reader(filename, lazy=False):
        if lazy:
            raise NotImplementedError("Lazy loading is not supported")
        return [signal(counts())]

    monkeypatch.setattr("rsciio.blockfile.file_reader", reader)
    (tmp_path / "scan.blo").touch()
    assert read_cube(tmp_path / "scan.blo").chunks is None


def test_zspy(tmp_path):
    """RosettaSciIO's zspy writer needs zarr 2; its reader works on the same tree laid out here."""
    root = zarr.open_group(tmp_path / "scan.zspy", mode="w", zarr_format=2)
    root.attrs.update({"file_format": "ZSpy", "file_format_version": "3.1"})
    scan, what = root.require_group("Experiments").require_group("scan"), signal(counts())
    scan.attrs.update({"package": "", "package_version": ""})
    scan.create_array("data", data=counts(), chunks=(2, 2, 8, 10))
    for number, axis in enumerate(what["axes"]):
        scan.require_group(f"axis-{number}").attrs.update(axis)
    tem = scan.require_group("metadata").require_group("Acquisition_instrument").require_group("TEM")
    tem.attrs.update({"beam_energy": 300.0, "convergence_angle": 2.5})
    for name in ("original_metadata", "learning_results", "attributes"):
        scan.require_group(name)
    cube = read_cube(tmp_path / "scan.zspy")
    assert cube.chunks is not None
    np.testing.assert_array_equal(cube.values, counts())
    assert scan_step(cube) == pytest.approx((2, 3))


# ---------------------------------------------------------------------------------------------------- bare arrays


def test_npy_stays_in_its_file(tmp_path):
    np.save(tmp_path / "scan.npy", counts())
    cube = read_cube(tmp_path / "scan.npy", **GIVEN, aberrations={"defocus": 500})
    assert cube.chunks is not None
    assert cube.attrs["C10_A"] == -500
    np.testing.assert_array_equal(cube[2:4, 3].values, counts()[2:4, 3])
    np.testing.assert_array_equal(cube.values, counts())
    np.testing.assert_array_equal(read_cube(tmp_path / "scan.npy", **GIVEN, lazy=False), counts())


def test_npy_of_three_axes(tmp_path):
    np.save(tmp_path / "frames.npy", counts((42, 8, 10)))
    with pytest.raises(ValueError, match=r"frames\.npy holds a 3-D array of shape \(42, 8, 10\).*reshape"):
        read_cube(tmp_path / "frames.npy", **GIVEN)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["scan.zarr", "scan.zip"])
def test_plain_zarr(tmp_path, zarr_format, name):
    path = tmp_path / name
    store = zarr.storage.ZipStore(path, mode="w") if name.endswith("zip") else zarr.storage.LocalStore(path)
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    group.create_array("_array", data=counts(), chunks=(4, 4, 8, 5), fill_value=0)
    store.close()
    cube = read_cube(path, **GIVEN)
    assert cube.chunks is not None
    assert cube.dtype == np.uint16
    np.testing.assert_array_equal(cube.values, counts())
    with pytest.raises(ValueError, match=rf"{name} gives no energy_eV, scan_step_A, det_step_mrad"):
        read_cube(path)


def test_zarr_array_at_the_root_and_too_many(tmp_path):
    zarr.save_array(str(tmp_path / "one.zarr"), counts())
    np.testing.assert_array_equal(read_cube(tmp_path / "one.zarr", **GIVEN).values, counts())
    group = zarr.open_group(tmp_path / "two.zarr", mode="w")
    for name in ("first", "second"):
        group.create_array(name, data=counts())
    with pytest.raises(ValueError, match=r"two\.zarr holds several 4-D arrays \(.*first.*second|second.*first"):
        read_cube(tmp_path / "two.zarr", **GIVEN)


def test_plain_hdf5(tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/frames"] = counts()
        file["entry/image"] = np.ones((3, 3))
    np.testing.assert_array_equal(read_cube(tmp_path / "scan.h5", **GIVEN).values, counts())
    with h5py.File(tmp_path / "scan.h5", "a") as file:
        file["entry/other"] = counts()
    with pytest.raises(ValueError, match=r"several 4-D arrays \(.*entry/frames \(6, 7, 8, 10\)"):
        read_cube(tmp_path / "scan.h5", **GIVEN)


# ----------------------------------------------------------------------------------------------------- py4DSTEM


def emd_tree(path, calibration, *, shape=SHAPE):
    """The tree that py4DSTEM 0.14 writes, without py4DSTEM."""
    with h5py.File(path, "w") as file:
        root = file.create_group("datacube_root")
        root.attrs["emd_group_type"] = "root"
        cube = root.create_group("datacube")
        cube.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
        cube["data"] = counts(shape)
        image = cube.create_group("bright_field")
        image.attrs["emd_group_type"] = "array"
        image["data"] = np.ones((6, 7))
        bundle = root.create_group("metadatabundle/calibration")
        for name, value in calibration.items():
            bundle[name] = value


def test_emd_tree_with_calibration(tmp_path):
    pixels = {"R_pixel_size": 0.2, "R_pixel_units": b"nm", "Q_pixel_size": 0.05, "Q_pixel_units": b"A^-1"}
    emd_tree(
        tmp_path / "scan.h5",
        {**pixels, "convergence_semiangle_pixels": 3.0, "qx0_mean": 3.0, "qy0_mean": 4.5},
    )
    with pytest.raises(ValueError, match=r"gives no energy_eV: pass"):
        read_cube(tmp_path / "scan.h5")
    cube = read_cube(tmp_path / "scan.h5", energy_eV=300e3)
    step = 0.05 * LAMBDA_300 * 1e3
    assert scan_step(cube) == pytest.approx((2, 2))
    assert detector_step(cube) == pytest.approx((step, step), rel=1e-5)
    assert cube.attrs["semiangle_mrad"] == pytest.approx(3 * step, rel=1e-5)
    assert [float(cube.det_y[3]), float(cube.det_x[4])] == pytest.approx([0, -0.5 * step], abs=1e-5)


def test_emd_tree_of_a_transposed_detector(tmp_path):
    emd_tree(
        tmp_path / "scan.h5",
        {"QR_flip": True, "Q_pixel_size": 0.5, "Q_pixel_units": b"mrad", "qx0_mean": 3.0, "qy0_mean": 5.0},
    )
    cube = read_cube(tmp_path / "scan.h5", energy_eV=300e3, semiangle_mrad=1, scan_step_A=2)
    np.testing.assert_array_equal(cube.values, counts().transpose(0, 1, 3, 2))
    assert (float(cube.det_y[5]), float(cube.det_x[3])) == pytest.approx((0, 0))


def test_emd_tree_without_a_4d_array(tmp_path):
    emd_tree(tmp_path / "scan.emd", {}, shape=(6, 8, 10))
    with pytest.raises(ValueError, match=r"scan\.emd"):
        read_cube(tmp_path / "scan.emd", **GIVEN)


@pytest.fixture(scope="module")
def py4dstem():
    import py4DSTEM  # 7 s

    return py4DSTEM


@pytest.mark.slow
def test_file_that_py4dstem_wrote(py4dstem, tmp_path):
    datacube = py4dstem.DataCube(data=counts())
    datacube.calibration.set_R_pixel_size(2.0)
    datacube.calibration.set_R_pixel_units("A")
    datacube.calibration.set_Q_pixel_size(0.8)
    datacube.calibration.set_Q_pixel_units("mrad")
    datacube.calibration.set_convergence_semiangle_mrad(2.5)
    datacube.calibration.set_QR_rotation_degrees(12.0)
    datacube.get_virtual_image(mode="circle", geometry=((4, 5), 3), name="bright_field")
    py4dstem.save(tmp_path / "scan.h5", datacube, mode="o")
    cube = read_cube(tmp_path / "scan.h5", energy_eV=200e3)
    assert cube.chunks is not None
    np.testing.assert_array_equal(cube.values, counts())
    assert (scan_step(cube), detector_step(cube)) == (pytest.approx((2, 2)), pytest.approx((0.8, 0.8)))
    assert (cube.attrs["semiangle_mrad"], cube.attrs["rotation_deg"]) == (2.5, pytest.approx(12))
    same = cube_from_py4dstem(datacube, energy_eV=200e3)
    xr.testing.assert_equal(same, cube)
    blank = py4dstem.DataCube(data=counts())
    py4dstem.save(tmp_path / "blank.h5", blank, mode="o")
    for attempt in (lambda: cube_from_py4dstem(blank), lambda: read_cube(tmp_path / "blank.h5")):
        with pytest.raises(ValueError, match="gives no energy_eV, scan_step_A, det_step_mrad"):
            attempt()


@pytest.mark.slow
def test_rotation_has_py4dstems_sense(py4dstem):
    from py4DSTEM.process.calibration.rotation import get_Rvector_from_Qvector

    from misr.optics import rotate

    rows, columns = get_Rvector_from_Qvector(0.6, 0.8, 25.0)[:2]
    assert rotate(0.6, 0.8, 25.0) == pytest.approx((rows, columns))


@pytest.mark.slow
def test_to_py4dstem_and_back(py4dstem, tmp_path):
    cube = a_cube(da.from_array(counts(), chunks=2), scan_step_A=2.0, dose_e_per_A2=50.0)
    cube = cube.assign_coords(det_y=("det_y", cube.det_y.values + 0.25, cube.det_y.attrs))
    datacube = cube_to_py4dstem(cube)
    assert isinstance(datacube, py4dstem.DataCube)
    assert datacube.calibration.get_Q_pixel_size() == pytest.approx(1e-3 / LAMBDA_300, rel=1e-5)
    assert (datacube.calibration.get_Q_pixel_units(), datacube.calibration.get_R_pixel_size()) == (
        "A^-1",
        2.0,
    )
    py4dstem.save(tmp_path / "scan.h5", datacube, mode="o")
    for back in (cube_from_py4dstem(datacube), read_cube(tmp_path / "scan.h5")):
        xr.testing.assert_allclose(back, cube, rtol=1e-12)
        kept = {name: value for name, value in cube.attrs.items() if name != "history"}
        assert {name: back.attrs[name] for name in kept} == pytest.approx(kept)
        assert cube_history(back)[: len(cube_history(cube))] == cube_history(cube)
        assert "cube_to_py4dstem" in [line["operation"] for line in cube_history(back)]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"scan_step_A": (2, 3)}, "scan step is 2 Å along y and 3 Å along x"),
        (
            {"scan_step_A": 2, "det_step_mrad": (1, 1.5)},
            "detector step is 1 mrad along y and 1.5 mrad along x",
        ),
    ],
)
def test_to_py4dstem_wants_square_pixels(steps, message):
    with pytest.raises(ValueError, match=message):
        cube_to_py4dstem(a_cube(**steps))


def test_from_something_else():
    with pytest.raises(TypeError, match=r"expected a py4DSTEM.DataCube, got ndarray"):
        cube_from_py4dstem(counts())


# ------------------------------------------------------------------------------------------------ misr's own files


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("lazily_made", [True, False])
def test_cube_round_trip(tmp_path, name, lazily_made):
    cube = a_cube(da.from_array(counts(), chunks=(4, 3, 8, 5)) if lazily_made else counts(), dose_e_per_A2=12.5)
    cube.attrs["note"] = "Ångström"
    cube = cube.assign_coords(frame=(("scan_y", "scan_x"), np.arange(42).reshape(6, 7)))
    before = dict(cube.attrs)
    save_cube(cube, tmp_path / name)
    assert cube.attrs == before
    back = read_cube(tmp_path / name)
    assert back.chunks is not None
    assert back.identical(cube)
    assert {key: type(value) for key, value in back.attrs.items()} == {k: type(v) for k, v in cube.attrs.items()}
    assert read_cube(tmp_path / name, lazy=False).chunks is None
    assert not litter(tmp_path, name)


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "u2", "u4", "i4", "i8", "f4", "f8", "bool", ">u2"]),
    shape=st.tuples(*[st.integers(4, 9)] * 4),
    note=st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text("aÅ\n\"' ", max_size=5)),
)
def test_any_cube_round_trip(tmp_path, name, dtype, shape, note):
    cube = a_cube(counts(shape, dtype), semiangle_mrad=1)
    cube.attrs["note"] = note
    save_cube(cube, tmp_path / name)
    back = read_cube(tmp_path / name)
    assert back.identical(cube)
    assert back.dtype.kind == cube.dtype.kind
    assert back.dtype.itemsize == cube.dtype.itemsize
    assert type(back.attrs["note"]) is type(note)


@pytest.mark.parametrize("name", OWN)
def test_given_values_replace_saved_ones(tmp_path, name):
    save_cube(a_cube(), tmp_path / name)
    given = {
        "energy_eV": 80e3,
        "scan_step_A": (1, 2),
        "det_step_mrad": 0.8,
        "aberrations": {"C10": 9, "C12": 3},
    }
    cube = read_cube(tmp_path / name, **given)
    assert (scan_step(cube), detector_step(cube)) == (pytest.approx((1, 2)), pytest.approx((0.8, 0.8)))
    assert [cube.attrs[key] for key in ("energy_eV", "C10_A", "C12_A", "semiangle_mrad")] == [80e3, 9, 3, 2]
    assert cube_history(cube)[-1]["operation"] == "read_cube"


@pytest.mark.parametrize("name", OWN)
def test_result_round_trip(tmp_path, name):
    rng = np.random.default_rng(1)
    pixels = {dim: (dim, np.arange(size) * 0.5, {"units": "Å"}) for dim, size in (("y", 6), ("x", 5))}
    result = xr.Dataset(
        {
            "phase": (("y", "x"), rng.normal(size=(6, 5)).astype("f4"), {"units": "rad"}),
            "phase_std": (("y", "x"), np.where(np.eye(6, 5), np.nan, 0.0)),
            "transform": (("y", "x"), rng.normal(size=(6, 5)) + 1j),
            "frc": ("frequency", [1.0, 0.5, np.nan], {"threshold": "half-bit"}),
            "confident": ("frequency", [True, False, True]),
            "seconds": ((), 3.5, {"units": "s"}),
            "n_views": ((), np.int32(21)),
            "model": ((), "défaut"),
            "empty": ("nothing", np.zeros(0)),
        },
        coords={**pixels, "frequency": ("frequency", [0.0, 0.1, 0.2], {"units": "1/Å"})},
        attrs={
            "history": '{"operation": "x"}\n' * 5000,
            "size": [6, 5],
            "names": ["a", "b"],
            "limit": math.nan,
        },
    )
    save_result(result, tmp_path / name)
    back = read_result(tmp_path / name)
    assert back.identical(result)
    assert {key: back[key].dtype for key in back} == {key: result[key].dtype for key in result}
    assert not litter(tmp_path, name)
    save_result(result.phase, tmp_path / name)
    assert read_result(tmp_path / name).phase.identical(result.phase)


@pytest.mark.parametrize("name", OWN)
def test_attrs_that_files_cannot_hold(tmp_path, name):
    result = xr.Dataset({"phase": ("y", np.ones(3), {"flag": True, "pair": (0.5, 0.25), "number": np.float32(0.5)})})
    save_result(result, tmp_path / name)
    assert read_result(tmp_path / name).phase.attrs == {"flag": 1, "pair": [0.5, 0.25], "number": 0.5}
    for value in (None, {"a": 1}, object(), []):
        result.phase.attrs["odd"] = value
        with pytest.raises(TypeError, match=r"attrs\['odd'\] of 'phase'.*json\.dumps"):
            save_result(result, tmp_path / name)
    assert read_result(tmp_path / name).phase.attrs["flag"] == 1  # the file from before
    assert not litter(tmp_path, name)


@pytest.mark.parametrize("name", OWN)
def test_failed_write_leaves_the_old_file(tmp_path, name):
    save_cube(a_cube(), tmp_path / name)

    def fail(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 2:
            raise RuntimeError("the detector is on fire")
        return block

    broken = da.from_array(counts(), chunks=(2, 7, 8, 10)).map_blocks(fail, dtype="u2", meta=np.empty((0,) * 4, "u2"))
    with pytest.raises(RuntimeError, match="on fire"):
        save_cube(a_cube(broken), tmp_path / name)
    assert read_cube(tmp_path / name).identical(a_cube())
    assert not litter(tmp_path, name)
    with pytest.raises(RuntimeError, match="on fire"):
        save_cube(a_cube(broken), tmp_path / ("new_" + name))
    assert not litter(tmp_path, name)


def test_failed_replacement_of_a_folder_puts_the_old_one_back(tmp_path, monkeypatch):
    save_cube(a_cube(), tmp_path / "cube.zarr")
    replace = os.replace

    def refuse(source, target):
        if os.path.basename(source) == "cube.zarr" and os.path.dirname(source) != str(tmp_path):
            raise PermissionError("no")
        replace(source, target)

    monkeypatch.setattr("misr._writers.os.replace", refuse)
    with pytest.raises(PermissionError):
        save_cube(a_cube(counts(seed=5)), tmp_path / "cube.zarr")
    assert read_cube(tmp_path / "cube.zarr").identical(a_cube())
    assert not litter(tmp_path, "cube.zarr")


@pytest.mark.parametrize("name", OWN)
def test_saving_onto_the_file_being_read(tmp_path, name):
    save_cube(a_cube(), tmp_path / name)
    lazy = read_cube(tmp_path / name)
    doubled = lazy.copy(data=lazy.data * 2)
    save_cube(doubled, tmp_path / name)
    np.testing.assert_array_equal(read_cube(tmp_path / name).values, counts() * 2)
    with pytest.raises(OSError, match=r"has changed since it was opened.*read_cube"):
        lazy.compute()  # neither old nor new numbers under a stale label
    assert not litter(tmp_path, name)


def test_dask_cubes_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("misr._writers._BLOCK_BYTES", 2**21)
    shape = (32, 32, 128, 128)  # 64 MB of uint32
    blocks = da.ones(shape, chunks=(2, 32, 128, 128), dtype="u4")
    cube = a_cube(blocks)
    for name in OWN:
        with dask.config.set(scheduler="threads", num_workers=2):
            tracemalloc.start()
            save_cube(cube, tmp_path / name)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 0.5 * blocks.nbytes, name
    assert int(read_cube(tmp_path / name).sum()) == math.prod(shape)


@given(
    shape=st.lists(st.integers(0, 3000), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from(["u1", "f8", "c16"]),
)
def test_storage_chunks_fit(shape, dtype):
    chunks = storage_chunks(shape, np.dtype(dtype))
    assert math.prod(chunks) * np.dtype(dtype).itemsize <= 2**21
    assert all(1 <= chunk <= max(1, size) for chunk, size in zip(chunks, shape, strict=True))


def test_storage_chunks_hold_whole_patterns():
    assert storage_chunks((512, 512, 256, 256), np.dtype("u2"))[2:] == (256, 256)


def test_saving_checks_the_cube(tmp_path):
    with pytest.raises(ValueError, match="not a valid 4D-STEM cube"):
        save_cube(a_cube().isel(scan_y=0), tmp_path / "cube.nc")
    with pytest.raises(ValueError, match=r"end its name in \.nc, \.zarr or \.zarr\.zip"):
        save_cube(a_cube(), tmp_path / "cube.h5")
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_cube(a_cube(), tmp_path / "nowhere" / "cube.nc")
    with pytest.raises(TypeError, match=r"expected an xarray.Dataset or DataArray, got ndarray"):
        save_result(counts(), tmp_path / "result.nc")
    assert not litter(tmp_path)


def test_folders_of_other_things_are_not_replaced(tmp_path):
    (tmp_path / "thesis.zarr").mkdir()
    (tmp_path / "thesis.zarr" / "chapter1.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not one of zarr's"):
        save_cube(a_cube(), tmp_path / "thesis.zarr")
    assert (tmp_path / "thesis.zarr" / "chapter1.tex").read_text() == "years of work"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cube.nc").symlink_to(tmp_path / "disk" / "cube.nc")
    save_cube(a_cube(), tmp_path / "cube.nc")
    assert (tmp_path / "cube.nc").is_symlink()
    assert read_cube(tmp_path / "disk" / "cube.nc").identical(a_cube())


# --------------------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr.zip", "scan.h5", "scan.npy", "scan.hspy", "scan.blo"])
@pytest.mark.parametrize("part", [0, 0.6])
def test_truncated_files_are_named(tmp_path, name, part):
    path = tmp_path / name
    if name.startswith("cube"):
        save_cube(a_cube(), path)
    elif name == "scan.npy":
        np.save(path, counts())
    elif name == "scan.h5":
        emd_tree(path, {})
    elif name == "scan.blo":
        scan = signal(counts((5, 6, 8, 8), "u1"), units=("nm", "nm", "cm", "cm"))
        rsciio.blockfile.file_writer(path, scan, show_progressbar=False)
    else:
        rsciio.hspy.file_writer(path, signal(counts()))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises((ValueError, OSError), match=name.replace(".", r"\.")):
        read_cube(path, **GIVEN, lazy=False)


def test_zarr_with_lost_chunks_is_refused(tmp_path):
    """Absent chunks read as zeros, which at low dose nobody would notice."""
    save_cube(a_cube(np.zeros(SHAPE, "u1")), tmp_path / "cube.zarr")
    assert int(read_cube(tmp_path / "cube.zarr").sum()) == 0  # empty chunks are there
    next(path for path in (tmp_path / "cube.zarr" / "counts").rglob("*") if path.name[0].isdigit()).unlink()
    with pytest.raises(ValueError, match=r"cube\.zarr is incomplete: 1 of 1 chunks of 'counts'"):
        read_cube(tmp_path / "cube.zarr")


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*scan\.mib"):
        read_cube(tmp_path / "scan.mib")
    with pytest.raises(FileNotFoundError, match=r"no file .*result\.nc"):
        read_result(tmp_path / "result.nc")
    (tmp_path / "scan.docx").touch()
    with pytest.raises(ValueError, match=r"'\.docx' are not known.*blo,.*dm4,.*hspy,.*mib,.*npy,.*zarr"):
        read_cube(tmp_path / "scan.docx")
    (tmp_path / "scan.mib").write_bytes(b"not a mib file")
    with pytest.raises(ValueError, match=r"scan\.mib cannot be read.*QuantumDetector"):
        read_cube(tmp_path / "scan.mib")


def test_netcdf_without_a_cube(tmp_path):
    save_result(xr.Dataset({"phase": ("y", np.ones(3))}), tmp_path / "result.nc")
    with pytest.raises(ValueError, match=r"result\.nc holds 0 variables with dims"):
        read_cube(tmp_path / "result.nc")


def test_packed_numbers_are_refused(tmp_path):
    cube = a_cube(counts().astype("f4")).to_dataset(name="counts")
    cube.to_netcdf(
        tmp_path / "cube.nc",
        engine="h5netcdf",
        encoding={"counts": {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -1}},
    )
    with pytest.raises(ValueError, match=r"cube\.nc holds packed numbers"):
        read_cube(tmp_path / "cube.nc")


def test_cube_that_xarray_saved_without_labels(tmp_path):
    cube = a_cube()
    del cube.attrs["energy_eV"], cube.attrs["semiangle_mrad"]
    cube.to_dataset(name="counts").to_zarr(tmp_path / "cube.zarr", consolidated=False, zarr_format=3)
    with pytest.raises(ValueError, match="gives no energy_eV: pass"):
        read_cube(tmp_path / "cube.zarr")
    back = read_cube(tmp_path / "cube.zarr", energy_eV=300e3)
    np.testing.assert_array_equal(back.values, counts())
    assert "semiangle_mrad" not in back.attrs
    assert read_cube(tmp_path / "cube.zarr", energy_eV=300e3, semiangle_mrad=2).attrs["semiangle_mrad"] == 2


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr"])
def test_cube_without_semiangle_comes_back_without(tmp_path, name):
    cube = a_cube()
    del cube.attrs["semiangle_mrad"]
    save_cube(cube, tmp_path / name)
    assert "semiangle_mrad" not in read_cube(tmp_path / name).attrs


def test_empad(tmp_path):
    """Two of RosettaSciIO's readers claim .xml; the raw file has two footer rows per pattern."""
    frames = np.zeros((5, 6, 130, 128), "<f4")
    frames[:, :, :128] = counts((5, 6, 128, 128))
    frames.tofile(tmp_path / "scan_x6_y5.raw")
    (tmp_path / "scan.xml").write_text(
        '<root><raw_file filename="scan_x6_y5.raw"/><pix_x>6</pix_x><pix_y>5</pix_y><iom_measurements>'
        "<optics><get_full_scan_field_of_view>(1e-9, 1.2e-9)</get_full_scan_field_of_view></optics>"
        "</iom_measurements></root>"
    )
    with pytest.raises(ValueError, match=r"scan\.xml gives no energy_eV, det_step_mrad"):
        read_cube(tmp_path / "scan.xml")
    cube = read_cube(tmp_path / "scan.xml", energy_eV=300e3, semiangle_mrad=10, det_step_mrad=0.5)
    assert cube.chunks is not None
    np.testing.assert_array_equal(cube.values, frames[:, :, :128])
    assert scan_step(cube) == pytest.approx((2, 2))
