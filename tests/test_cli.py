"""The command line, as a user types it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from phase_object import bandlimited_phase, phase_object_cube

import misr
from misr.cli import main
from misr.cube import image_from_array
from misr.figures import image_figure, resolution_sentence


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
    assert resolution_sentence(direct.resolution) in out
    assert f"{float(direct.resolution):.2f} Å" in out
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


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (["-o", "{tmp}/image.tif"], ".nc, .zarr or .zarr.zip"),
        (["-o", "{tmp}/nowhere/image.nc"], "there is no folder"),
        (["-o", "{tmp}/folder.nc"], "is a folder"),
        (["-o", "{tmp}/image.nc", "--png", "{tmp}/image.foo"], "'png'"),
        (["-o", "{tmp}/image.nc", "--png", "{tmp}/image"], ".png"),
        (["-o", "{tmp}/image.nc", "--png", "{tmp}/nowhere/image.png"], "there is no folder"),
    ],
)
def test_outputs_are_checked_before_the_work(scan, outputs, said, capsys, tmp_path, monkeypatch):
    def worked(*_, **__):
        raise AssertionError("the work was begun")

    monkeypatch.setattr("misr.pipeline.super_resolve", worked)
    monkeypatch.setattr("misr.io.read_cube", worked)
    (tmp_path / "folder.nc").mkdir()
    assert main(["run", str(scan), *(text.format(tmp=tmp_path) for text in outputs)]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.nc"]


@pytest.mark.parametrize("text", ["two", "1.5", "0", "-2"])
def test_upsample_says_what_it_takes(text, scan, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", str(scan), "-o", "x.nc", f"--upsample={text}"])
    assert stop.value.code == 2
    assert f"must be 'auto' or a whole number, at least 1, not '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [np.linalg.LinAlgError("singular"), torch.linalg.LinAlgError("singular"), MemoryError(), ZeroDivisionError("0")],
)
def test_failures_of_the_work_are_answered(error, scan, capsys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("misr.pipeline.super_resolve", fail)
    assert main(["run", str(scan), "-o", str(tmp_path / "image.nc")]) == 2
    err = capsys.readouterr().err
    assert err.strip() == f"misr: {str(error) or type(error).__name__}"


def made_result(value, status, **attrs):
    frequency = [0.1, 0.2, 0.3]
    frc = xr.DataArray([0.9, 0.5, 0.1], dims="frequency", coords={"frequency": frequency})
    frc = frc.assign_coords(n_independent=("frequency", [20.0, 40.0, 60.0]))
    image = image_from_array(np.arange(64.0).reshape(8, 8), pixel_A=(1, 1))
    resolution = xr.DataArray(value, attrs={"units": "Å", "status": status})
    return xr.Dataset({"phase": image, "frc": frc, "resolution": resolution}, attrs=attrs)


@pytest.mark.parametrize(
    ("value", "status", "words"),
    [
        (1.853, "crossed", "resolution 1.85 Å"),
        (1.0, "sampling-limited", "resolution ≤ 1.00 Å: at least as fine as the sampling"),
        (np.inf, "unresolved", "nothing resolved"),
    ],
)
def test_resolution_is_worded_alike_everywhere(value, status, words, scan, capsys, tmp_path, monkeypatch):
    result = made_result(value, status)
    monkeypatch.setattr("misr.pipeline.super_resolve", lambda *_, **__: result)
    assert main(["run", str(scan), "-o", str(tmp_path / "image.nc")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{words} (half-map FRC, half-bit)"
    assert "inf" not in out
    assert image_figure(result).axes[1].get_title() == words


def test_picture_warns_of_a_model_that_does_not_hold():
    titles = [image_figure(made_result(2.0, "crossed", chi2=chi2)).axes[0].get_title() for chi2 in (1.02, 3.21)]
    assert titles == ["", "weak-phase model leaves 3.2× the noise unexplained"]


def test_failed_picture_leaves_the_old_one(scan, tmp_path, monkeypatch):
    picture = tmp_path / "image.png"
    picture.write_bytes(b"old")
    monkeypatch.setattr("misr.pipeline.super_resolve", lambda *_, **__: made_result(2.0, "crossed"))

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    assert main(["run", str(scan), "-o", str(tmp_path / "image.nc"), "--png", str(picture)]) == 2
    assert picture.read_bytes() == b"old"


def test_missing_calibration_is_asked_for_by_name(tmp_path, capsys):
    np.save(tmp_path / "bare.npy", np.ones((8, 8, 16, 16), dtype=np.uint8))
    assert main(["info", str(tmp_path / "bare.npy")]) == 2
    message = capsys.readouterr().err
    for name in ("energy_eV", "scan_step_A", "det_step_mrad"):
        assert name in message
    assert "semiangle_mrad" not in message
    given = ["--energy-eV", "3e5", "--scan-step-A", "2", "--det-step-mrad", "2"]
    assert main(["info", str(tmp_path / "bare.npy"), *given]) == 0
    assert "semiangle_mrad: not known, will be estimated" in capsys.readouterr().out


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
