"""The command line, as a user types it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from phase_object import bandlimited_phase, phase_object_cube

import misr
from misr.cli import main


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    phase = bandlimited_phase((96, 96), 0.5, rng=0, strength=0.05)
    expected, _ = phase_object_cube(phase, 0.5, aberrations={"C10": -1500.0})
    cube = misr.apply_dose(expected, 1e5, rng=0)
    path = tmp_path_factory.mktemp("cli") / "scan.nc"
    misr.save_cube(cube, path)
    return path


def test_version_and_help(capsys):
    for flag, expected in (("--version", misr.__version__), ("--help", "dashboard")):
        with pytest.raises(SystemExit) as stop:
            main([flag])
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "misr", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["misr", misr.__version__]


def test_info(scan, capsys):
    assert main(["info", str(scan)]) == 0
    out = capsys.readouterr().out
    assert "24 scan_y" in out
    assert "C10_A: -1500.0" in out
    assert "apply_dose" in out
    assert "a valid cube" in out


def test_run_writes_what_super_resolve_returns(scan, tmp_path, capsys):
    target, picture = tmp_path / "image.nc", tmp_path / "image.png"
    assert main(["run", str(scan), "-o", str(target), "--png", str(picture), "--seed", "3"]) == 0
    out = capsys.readouterr().out
    result = misr.read_result(target)
    direct = misr.super_resolve(misr.read_cube(scan), rng=3)
    np.testing.assert_allclose(result.phase, direct.phase)
    assert f"{float(direct.resolution):.3g} Å" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_defocus_is_minus_C10(scan, tmp_path):
    target = tmp_path / "image.nc"
    assert main(["run", str(scan), "-o", str(target), "--defocus-A", "1500", "--views", "100"]) == 0
    result = misr.read_result(target)
    assert result.phase.attrs["C10_A"] == -1500
    assert result.phase.attrs["n_views"] == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "nowhere.h5"], "nowhere.h5"),
        (["run", "nowhere.h5", "-o", "x.nc"], "nowhere.h5"),
        (["demo", "--dose", "-3", "-o", "{tmp}/demo"], "dose"),
    ],
)
def test_bad_input_is_answered_not_raised(arguments, said, capsys, tmp_path):
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_missing_calibration_is_asked_for_by_name(tmp_path, capsys):
    np.save(tmp_path / "bare.npy", np.ones((8, 8, 16, 16), dtype=np.uint8))
    assert main(["info", str(tmp_path / "bare.npy")]) == 2
    message = capsys.readouterr().err
    for name in ("energy_eV", "semiangle_mrad", "scan_step_A", "det_step_mrad"):
        assert name in message


def test_unknown_aberrations_are_asked_for(tmp_path, capsys):
    k = np.arange(16) - 7.5
    disk = (np.hypot(*np.meshgrid(k, k)) < 5).astype(np.uint8)
    cube = misr.cube_from_array(
        np.broadcast_to(disk, (8, 8, 16, 16)), scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10
    )
    misr.save_cube(cube, tmp_path / "scan.nc")
    assert main(["run", str(tmp_path / "scan.nc"), "-o", str(tmp_path / "image.nc")]) == 2
    assert "aberrations" in capsys.readouterr().err
    assert not (tmp_path / "image.nc").exists()
