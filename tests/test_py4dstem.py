"""What misr does to live with py4DSTEM: its import's side effects, its aberration angles and lists."""

import subprocess
import sys

import numpy as np
import pytest

from misr._py4dstem import aberration_orders, turn_angles

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
