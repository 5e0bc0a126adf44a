"""The command line, as a user types it."""

from __future__ import annotations

import subprocess
import sys
import warnings

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


@pytest.fixture(scope="module")
def bare_scan(scan, tmp_path_factory):
    """The same scan by a microscope that tells neither aberrations nor rotation."""
    cube = misr.read_cube(scan)
    cube.attrs = {name: value for name, value in cube.attrs.items() if name not in ("C10_A", "rotation_deg")}
    path = tmp_path_factory.mktemp("cli") / "bare.nc"
    misr.save_cube(cube, path)
    return path


def one_line(text, *words):
    """The one line of the text that says all of these."""
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, text
    return lines[0]


def test_fit_prints_and_saves_what_it_finds(bare_scan, tmp_path, capsys):
    target = tmp_path / "fit.nc"
    given = ["--rotation-deg", "0", "--max-defocus-A", "3000", "-o", str(target)]
    assert main(["fit", str(bare_scan), *given]) == 0
    captured = capsys.readouterr()
    row = one_line(captured.out, "C10", "±", "Å").split()
    assert float(row[1]) == pytest.approx(-1500, abs=15)
    assert one_line(captured.out, "rotation_deg").split() == ["rotation_deg", "0.00", "given", "degrees"]
    assert "detector: not transposed" in captured.out
    assert "descan: none seen" in captured.out
    assert captured.out.splitlines()[-1] == "confident"
    assert captured.err == ""
    saved = misr.read_result(target)
    assert float(saved.C10) == pytest.approx(float(row[1]), abs=float(row[3]))
    assert bool(saved.attrs["confident"]) is True


def test_run_says_what_it_found(bare_scan, tmp_path, capsys):
    target = tmp_path / "image.nc"
    arguments = ["run", str(bare_scan), "-o", str(target), "--rotation-deg", "0", "--views", "50"]
    assert main(arguments) == 0
    line = one_line(capsys.readouterr().out, "found C10")
    attrs = misr.read_result(target).attrs
    assert line == (
        f"found C10 = {attrs['C10_A']:.0f} Å, C12 = {attrs['C12_A']:.0f} Å, rotation {attrs['rotation_deg']:.1f}° "
        "(certain)"
    )
    assert attrs["C10_A"] == pytest.approx(-1500, abs=15)


def fitted(*, confident=True, transposed=0, **values):
    """A fit's Dataset, as `misr.fit_aberrations` labels it."""
    units = {"C": "Å", "p": "rad", "r": "degrees"}
    variables = {"transposed": ((), transposed, {"units": "1"})}
    for name, (value, stderr) in values.items():
        variables[name] = ((), value, {"units": units[name[0]]})
        variables[f"{name}_stderr"] = ((), stderr, {"units": units[name[0]]})
    attrs = {"confident": confident, "descan_range_mrad": 0.0} | ({} if confident else {"reason": "too few electrons"})
    return xr.Dataset(variables, attrs=attrs)


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ([], {"orders": ("C10", "C12"), "defocus_sign": None, "rotation_deg": None, "max_defocus_A": None}),
        (["--orders", "C30", "C21"], {"orders": ("C10", "C12", "C30", "C21")}),
        (["--defocus-sign", "under"], {"defocus_sign": 1}),
        (["--defocus-sign", "over", "--max-defocus-A", "900"], {"defocus_sign": -1, "max_defocus_A": 900.0}),
        (["--rotation-deg", "-12.5"], {"rotation_deg": -12.5}),
    ],
)
def test_fit_passes_on_what_is_known(arguments, passed, scan, monkeypatch):
    seen = {}

    def fit(cube, **options):
        seen.update(options)
        return fitted(C10=(-100.0, 1.0))

    monkeypatch.setattr("misr.calibrate.fit_aberrations", fit)
    assert main(["fit", str(scan), *arguments]) == 0
    assert {name: seen[name] for name in passed} == passed


@pytest.mark.parametrize(
    ("stderr", "shown"), [(4.04, ("-1493.3", "4.0")), (0.0312, ("-1493.312", "0.031")), (104.2, ("-1493", "104"))]
)
def test_values_have_the_figures_of_their_errors(stderr, shown, scan, capsys, monkeypatch):
    monkeypatch.setattr("misr.calibrate.fit_aberrations", lambda *_, **__: fitted(C10=(-1493.3121, stderr)))
    assert main(["fit", str(scan)]) == 0
    assert one_line(capsys.readouterr().out, "C10").split() == ["C10", shown[0], "±", shown[1], "Å"]


def test_doubt_is_said_and_not_an_error(scan, capsys, monkeypatch):
    doubtful = fitted(confident=False, transposed=1, C10=(-1500.0, 90.0))

    def fit(*_, **__):
        warnings.warn("the aberrations found are not certain:\n  too few electrons", UserWarning, stacklevel=2)
        return doubtful

    monkeypatch.setattr("misr.calibrate.fit_aberrations", fit)
    assert main(["fit", str(scan)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "not certain: too few electrons"
    assert "detector: transposed" in captured.out
    assert captured.err == "misr: the aberrations found are not certain: too few electrons\n"


@pytest.mark.parametrize(("confident", "words"), [(1, "(certain)"), (0, "(not certain, see misr fit)")])
def test_run_says_whether_it_is_certain(confident, words, scan, capsys, tmp_path, monkeypatch):
    attrs = {"C10_A": -1493.4, "C12_A": 41.3, "rotation_deg": 89.98, "aberrations_confident": confident}
    monkeypatch.setattr("misr.pipeline.super_resolve", lambda *_, **__: made_result(2.0, "crossed", **attrs))
    assert main(["run", str(scan), "-o", str(tmp_path / "image.nc")]) == 0
    expected = f"found C10 = -1493 Å, C12 = 41 Å, rotation 90.0° {words}"
    assert capsys.readouterr().out.splitlines()[0] == expected


def test_fit_refuses_a_bad_target_before_the_work(scan, capsys, monkeypatch):
    def worked(*_, **__):
        raise AssertionError("the work was begun")

    monkeypatch.setattr("misr.calibrate.fit_aberrations", worked)
    assert main(["fit", str(scan), "-o", "fit.csv"]) == 2
    assert ".nc, .zarr or .zarr.zip" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fit.nc", "fit.zarr", "fit.zarr.zip"])
@pytest.mark.parametrize("confident", [True, False])
def test_confidence_survives_a_file(name, confident, tmp_path):
    misr.save_result(fitted(confident=confident, C10=(-1500.0, 3.0)), tmp_path / name)
    assert bool(misr.read_result(tmp_path / name).attrs["confident"]) is confident


def test_benchmark_is_asked_for_what_was_typed(tmp_path, capsys, monkeypatch):
    asked = {}

    def run(folder, **options):
        asked.update(options, folder=folder)
        return misr.benchmark.table_from_rows(
            [{"specimen": "glass", "method": "tcbf", "dose_e_per_A2": 50, "seed": 3, "resolution_A": 3.21}]
        )

    import misr.benchmark

    monkeypatch.setattr("misr.benchmark.run_benchmark", run)
    monkeypatch.setattr("misr.benchmark.write_report", lambda table, folder: folder / "report.html")
    folder = tmp_path / "results"
    typed = ["--preset", "tiny", "--workers", "2", "--doses", "50", "--seeds", "3", "--methods", "tcbf"]
    assert main(["benchmark", "--folder", str(folder), *typed]) == 0
    settings = asked["settings"]
    assert (settings.preset, settings.doses, settings.seeds, settings.methods) == ("tiny", (50.0,), (3,), ("tcbf",))
    assert (asked["folder"], asked["workers"]) == (folder, 2)
    out = capsys.readouterr().out
    assert "3.21" in out
    assert "report.html" in out


def test_benchmark_of_a_structure_file(tmp_path, monkeypatch):
    from ase.build import bulk

    file = tmp_path / "gold.cif"
    bulk("Au", cubic=True).write(file)
    asked = []

    def run(folder, *, settings, **_):
        asked.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("misr.benchmark.run_benchmark", run)
    assert main(["benchmark", "--folder", str(tmp_path / "new"), "--structure", str(file)]) == 130
    assert [one.name for one in asked[0].specimens] == ["gold"]
    assert main(["benchmark", "--structure", str(tmp_path / "none.cif")]) == 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--doses", "-3"], "positive"),
        (["--seeds", "1", "1"], "twice"),
    ],
)
def test_benchmark_refuses_before_the_work(typed, said, tmp_path, capsys):
    folder = tmp_path / "results"
    assert main(["benchmark", "--preset", "tiny", "--folder", str(folder), *typed]) == 2
    assert said in capsys.readouterr().err
    assert not folder.exists()


def test_benchmark_does_not_resume_when_told_so(tmp_path, capsys):
    (tmp_path / "results" / "cells").mkdir(parents=True)
    assert main(["benchmark", "--folder", str(tmp_path / "results"), "--no-resume"]) == 2
    assert "holds results already" in capsys.readouterr().err
