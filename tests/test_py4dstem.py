"""What misr does to live with py4DSTEM: its import's side effects, its aberration angles and lists."""

import subprocess
import sys

import numpy as np
import pytest

import misr
from misr._py4dstem import aberration_orders, setup_of, turn_angles

FRESH = """
import sys, warnings
import numpy as np
import misr
k = np.arange(16) - 7.5
disk = np.broadcast_to(9.0 * (np.hypot(k[:, None], k) < 5), (4, 4, 16, 16))
cube = misr.cube_from_array(disk, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10)
warnings.filterwarnings("error", message="a filter of the user's own")
before = warnings.showwarning, list(warnings.filters)
{call}
print("py4DSTEM" in sys.modules, (warnings.showwarning, list(warnings.filters)) == before)
"""


@pytest.mark.slow  # py4DSTEM's import takes seconds, and only the first one in a process tells
@pytest.mark.parametrize(
    ("call", "unchanged"),
    [
        ("misr.cube_to_py4dstem(cube)", True),
        ("misr.reconstruct_ptychography(cube, aberrations={'C10': -100}, iterations=1, progress=False)", True),
        ("import py4DSTEM", False),  # when this fails, py4DSTEM has mended it
    ],
)
def test_warnings_are_left_as_they_were(call, unchanged):
    code = FRESH.format(call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["True", str(unchanged)]


def oblong_cube(**steps):
    options = {"scan_step_A": 2, "det_step_mrad": (1, 0.5), "energy_eV": 3e5, "semiangle_mrad": 7} | steps
    y, x = np.multiply.outer(np.broadcast_to(options["det_step_mrad"], 2), np.arange(32) - 15.5)
    disk = np.broadcast_to(9 * (np.hypot(y[:, None], x) < 7), (4, 4, 32, 32))
    return misr.cube_from_array(disk, **options)


def test_oblong_detector_pixels_are_mended_as_the_error_says():
    cube = oblong_cube()
    with pytest.raises(ValueError, match=r"1 mrad along y and 0\.5 mrad along x: bin with cube\.coarsen") as raised:
        misr.cube_to_py4dstem(cube)
    assert "interp" not in str(raised.value)
    binned = misr.cube_to_py4dstem(cube.coarsen(det_x=2).sum())
    assert binned.data.shape == (4, 4, 32, 16)
    assert binned.data.sum() == int(cube.sum())


def test_oblong_scan_steps_are_named():
    with pytest.raises(ValueError, match="3 Å along y and 2 Å along x: scan in equal steps"):
        misr.cube_to_py4dstem(oblong_cube(scan_step_A=(3, 2), det_step_mrad=1))


def test_missing_aberrations_are_asked_for_and_none_is_not_in_focus():
    cube = oblong_cube(det_step_mrad=1.0)
    with pytest.raises(ValueError, match=r"misr\.with_aberrations\(cube") as raised:
        setup_of(cube, None, None, required=True)
    assert all(hasattr(misr, name.split("(")[0]) for name in str(raised.value).split("misr.")[1:])
    assert setup_of(cube, {}, None, required=True).polar == {"C10": 0.0}


def test_angles_go_to_py4dstem_and_back():
    polar = {"C10": -500.0, "C12": 40.0, "phi12": 0.3, "C21": 2000.0, "phi21": -0.4}
    theirs = turn_angles(polar, 0.0)
    assert theirs["phi12"] == pytest.approx(np.pi / 2 - 0.3)
    assert turn_angles(theirs, 0.0) == pytest.approx(polar)


def test_aberration_orders_hold_defocus_and_both_parts():
    assert aberration_orders({"C12": 40.0, "phi12": 0.3, "C21": 0.0, "C30": 1e4}) == [
        [1, 0, 0],
        [1, 2, 0],
        [1, 2, 1],
        [3, 0, 0],
    ]


def test_semiangle_comes_from_the_disk_when_the_cube_has_none():
    disk = np.hypot(np.arange(32)[:, None] - 15.2, np.arange(32) - 16.1) < 8
    options = {"scan_step_A": 2, "det_step_mrad": 1, "energy_eV": 3e5}
    cube = misr.cube_from_array(np.broadcast_to(disk * 9, (4, 4, 32, 32)), **options)
    setup = setup_of(cube, {"C10": -500}, None, required=True)
    assert setup.semiangle_mrad == setup.cube.attrs["semiangle_mrad"] == pytest.approx(8, rel=0.03)
    assert "semiangle_mrad" not in cube.attrs
    known = misr.cube_to_py4dstem(setup.cube).calibration
    unknown = misr.cube_to_py4dstem(cube).calibration
    assert known.get_convergence_semiangle_mrad() == setup.semiangle_mrad
    assert "convergence_semiangle_mrad" not in unknown.keys
