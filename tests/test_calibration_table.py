"""What the calibration table calls an error, and what it calls right."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parent / "benchmarks"
TRUTH = {"C10": -3000.0, "C12": 60.0, "phi12": 0.1, "rotation_deg": 1.0, "transposed": 0}
alignments = st.fixed_dictionaries(
    {
        "C10": st.floats(-5000, 5000),
        "C12": st.floats(0, 100),
        "phi12": st.floats(0, math.pi),
        "rotation_deg": st.floats(0, 360),
        "transposed": st.integers(0, 1),
    }
)


@pytest.fixture(scope="module", autouse=True)
def _path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def errors():
    return importlib.import_module("calibration_errors")


@pytest.fixture(scope="module")
def table():
    return importlib.import_module("calibration_table")


@pytest.fixture(scope="module")
def report():
    return importlib.import_module("calibration_report")


def twin_of(alignment):
    return alignment | {
        "C10": -alignment["C10"],
        "phi12": (alignment["phi12"] + math.pi / 2) % math.pi,
        "rotation_deg": (alignment["rotation_deg"] + 180) % 360,
    }


@given(found=alignments, truth=alignments)
def test_errors_of_the_twin_are_those_of_the_other_way_up(errors, found, truth):
    plain = errors.errors_of(found, truth)
    turned = errors.errors_of(twin_of(found), truth, twin=True)
    for name in ("C10", "C12_vector", "C12_size"):
        assert getattr(turned, name) == pytest.approx(getattr(plain, name), abs=1e-6)
    # an angle on the cut may come out on either side of it
    assert errors.wrap(turned.rotation_deg - plain.rotation_deg, 360) == pytest.approx(0, abs=1e-6)
    assert turned.same_hand == plain.same_hand


@given(truth=alignments)
def test_the_truth_is_right_and_its_twin_only_up_to_the_twin(errors, truth):
    strict = errors.tolerance_at(100)
    assert errors.errors_of(truth, truth).right(strict)
    twin = twin_of(truth)
    assert errors.errors_of(twin, truth, twin=True).right(strict)
    # half a turn is never within a degree
    assert not errors.errors_of(twin, truth).right(strict)


@pytest.mark.parametrize(("C12", "phi12", "vector"), [(60, 0.1, 0), (60, 0.1 + math.pi / 2, 120), (0, 2.0, 60)])
def test_astigmatism_is_compared_as_a_vector(errors, C12, phi12, vector):
    found = errors.errors_of(TRUTH | {"C12": C12, "phi12": phi12}, TRUTH)
    assert found.C12_vector == pytest.approx(vector, abs=1e-9)
    assert found.C12_size == pytest.approx(C12 - 60, abs=1e-9)


def test_astigmatism_angles_half_a_turn_apart_are_the_same(errors):
    found = errors.errors_of(TRUTH | {"phi12": 0.1 + math.pi - 0.02}, TRUTH)
    assert found.phi12 == pytest.approx(-0.02)
    assert found.C12_vector == pytest.approx(2 * 60 * math.sin(0.02))


@pytest.mark.parametrize(("rotation", "error"), [(359.5, -1.5), (1.5, 0.5), (181.5, -179.5), (-359.0, 0.0)])
def test_rotations_wrap(errors, rotation, error):
    assert errors.errors_of(TRUTH | {"rotation_deg": rotation}, TRUTH).rotation_deg == pytest.approx(error)


@pytest.mark.parametrize(
    ("dose", "change", "right"),
    [
        (100, {"C10": -3029.0}, True),
        (100, {"C10": -3031.0}, False),
        (30, {"C10": -3059.0}, True),
        (30, {"C10": -3061.0}, False),
        (100, {"rotation_deg": 359.9}, False),
        (30, {"rotation_deg": 359.1}, True),
        (100, {"C12": 81.0}, False),
        (30, {"C12": 300.0}, True),
        (30, {"transposed": 1}, False),
        (30, {"C10": math.nan}, False),
    ],
)
def test_right_is_what_the_table_says(errors, dose, change, right):
    assert errors.errors_of(TRUTH | change, TRUTH).right(errors.tolerance_at(dose)) is right


def test_small_defoci_have_a_length_for_tolerance(errors):
    near = {**TRUTH, "C10": 500.0}
    assert errors.errors_of(near | {"C10": 514.0}, near).right(errors.tolerance_at(100))
    assert not errors.errors_of(near | {"C10": 516.0}, near).right(errors.tolerance_at(100))


def test_the_cubes_are_those_of_the_seeds(table):
    truths = [table.truth_of(i)[0] for i in range(24)]
    assert all(500 <= abs(t["C10"]) <= 5000 and 0 <= t["C12"] <= 100 for t in truths)
    assert 0 < sum(t["transposed"] for t in truths) < 12
    # the generator goes on where the atoms start: twice the same
    assert table.truth_of(3)[2].uniform() == table.truth_of(3)[2].uniform()


def test_a_swapped_camera_leaves_no_mark(table, make_scan):
    cube = make_scan(pixels=32, det_bin=4)[0]
    swapped = table.as_recorded(cube, TRUTH | {"transposed": 1})
    assert swapped.attrs == cube.attrs
    np.testing.assert_array_equal(swapped[..., 3, 7], cube[..., 7, 3])
    assert table.as_recorded(cube, TRUTH) is cube


@pytest.mark.parametrize(("index", "width"), [(0, None), (2, 0.18), (11, 0.09), (17, 0.38)])
def test_rings_are_as_wide_as_the_crystal_wants(table, index, width):
    assert table.ring_width(index) == width


def row(table, errors, found, *, confident, dose=100.0):
    made = {"index": 0, "class": "amorphous", "dose": dose, "draw": 0, "method": "misr", "seconds": 1.0}
    made |= {"confident": confident, "reason": "doubt", "probability": 1.0, "sign_probability": 0.6}
    made |= {f"true_{name}": value for name, value in TRUTH.items()}
    made |= {f"found_{name}": value for name, value in found.items()}
    made |= {f"found_{name}_stderr": 2.0 for name in ("C10", "C12", "phi12", "rotation_deg")}
    return made | table.judged(errors.errors_of(found, TRUTH), errors.errors_of(found, TRUTH, twin=True), dose)


def test_report_counts_twins_and_calm_errors(table, errors, report):
    rows = [
        row(table, errors, TRUTH, confident=True),
        row(table, errors, twin_of(TRUTH), confident=False),
        row(table, errors, TRUTH | {"C10": 900.0}, confident=True),
        row(table, errors, TRUTH | {"C12": 200.0}, confident=False),
    ]
    text = report.format_report(rows)
    header, first, *_ = text.splitlines()
    assert " ".join(first.split()).startswith("100 misr amorphous 1 4 25 % 25 % 50 % 50 % 25 % ")
    assert header.split()[:4] == ["dose", "method", "class", "cubes"]
    assert "3 failed:" in text
    assert text.count("right up to the twin; C10") == 1


def test_report_below_30_asks_only_not_to_be_calmly_wrong(table, errors, report):
    wrong = TRUTH | {"C10": 900.0}
    rows = [row(table, errors, wrong, confident=calm, dose=10.0) for calm in (True, False)]
    assert "\n1 failed:" in report.format_report(rows)


def test_report_survives_what_raised(table, errors, report):
    raised = {"index": 1, "class": "semicrystalline", "dose": 100.0, "draw": 0, "true_C10": 1.0}
    raised |= table.failed("misr", np.linalg.LinAlgError("Singular matrix"))
    text = report.format_report([row(table, errors, TRUTH, confident=True), raised])
    assert "LinAlgError: Singular matrix" in text
    assert "1 failed:" in text
