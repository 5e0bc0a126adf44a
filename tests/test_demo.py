"""The demonstration: all of it once, as ``make demo`` runs it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import misr
from misr.cli import main
from misr.demo import METHODS, SPECIMENS, format_table, raw_view, run_demo


def answer(value, status="crossed"):
    return xr.DataArray(value, attrs={"status": status})


def test_table_says_what_unusual_values_mean():
    row = {"specimen": "a", "method": "b", "seconds": 1.0}
    rows = [
        row | {"truth_A": answer(np.inf, "unresolved"), "half_map_A": answer(1.0, "sampling-limited")},
        row | {"truth_A": answer(2.345), "half_map_A": answer(2.0)},
    ]
    lines = format_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "nothing" in lines[1]
    assert "≤ 1.00" in lines[1]
    assert "2.35" in lines[2] or "2.34" in lines[2]


def test_raw_view_shows_matter_bright_for_either_defocus():
    from phase_object import phase_object_cube

    y, x = np.mgrid[:96, :96] * 0.5
    blob = 0.3 * np.exp(-((y - 24) ** 2 + (x - 24) ** 2) / (2 * 2.0**2))
    for C10 in (-800.0, 800.0):
        cube, _ = phase_object_cube(blob, 0.5, aberrations={"C10": C10})
        image = raw_view(cube)
        assert float(image.sel(y=24, x=24, method="nearest")) == pytest.approx(float(image.max()), rel=0.3)


@pytest.mark.slow
def test_demo_end_to_end(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    table = capsys.readouterr().out
    for specimen in SPECIMENS:
        result = misr.read_result(tmp_path / "demo" / f"{specimen}.nc")
        assert result.attrs["dose_e_per_A2"] == 100
        for method in METHODS:
            assert METHODS[method] in table
            assert f"frc_{method.replace(' ', '_')}_truth" in result
        truth = result["phase_truth"]
        for method in ("tcBF", "misr", "parallax", "ptychography"):
            image = result[f"phase_{method}"]
            np.testing.assert_allclose(image.y, truth.y)
            correlation = np.corrcoef(image.values.ravel(), truth.values.ravel())[0, 1]
            assert correlation > 0.1, (specimen, method)
        # the fused image resolves what one view cannot: beyond the scan's own 4 Å
        assert float(misr.frc_resolution(result["frc_misr_truth"], 0.5)) < 4.0
        assert float(misr.frc_resolution(coarse(result["frc_raw_view_truth"]), 0.5)) > 4.0
    picture = (tmp_path / "demo" / "figure.png").read_bytes()
    assert picture[:4] == b"\x89PNG"
    assert len(picture) > 100_000


def coarse(curve):
    return curve.rename(frequency_raw="frequency", n_independent_raw="n_independent")


def test_demo_refuses_a_bad_dose_before_simulating(tmp_path):
    with pytest.raises(ValueError, match="dose_e_per_A2"):
        run_demo(tmp_path, dose_e_per_A2=-1, progress=False)
