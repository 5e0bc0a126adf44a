"""Figures: what is drawn is what is in the arrays, on the right axes."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import misr
from misr.cube import image_from_array
from misr.plot import plot_frc, plot_image, plot_landscape, plot_views, resolution_text, robust_limits

hv = pytest.importorskip("holoviews")


def render(element):
    return hv.renderer("bokeh").get_plot(element).state


@pytest.fixture
def image():
    values = np.zeros((6, 10))
    values[1, 7] = 1.0  # row 1, column 7: neither square nor symmetric
    return image_from_array(values, pixel_A=(2.0, 4.0))


def curve(values):
    q = 0.1 * np.arange(1, len(values) + 1)
    coords = {"frequency": ("frequency", q, {"units": "1/Å"}), "n_independent": ("frequency", 100.0 * q**0)}
    return xr.DataArray(values, dims="frequency", coords=coords, name="frc")


def test_the_bright_pixel_is_where_the_array_has_it(image):
    element = plot_image(image)
    table = element.dframe()
    brightest = table.loc[table["value"].idxmax()]
    assert brightest["x"] == pytest.approx(2.8)  # 7 · 4 Å, in nm
    assert brightest["y"] == pytest.approx(0.2)


def test_first_row_is_at_the_top_and_pixels_are_square_on_screen(image):
    figure = render(plot_image(image, size=400))
    assert figure.y_range.start > figure.y_range.end
    across = (figure.x_range.end - figure.x_range.start) / figure.frame_width
    down = (figure.y_range.start - figure.y_range.end) / figure.frame_height
    assert across == pytest.approx(down, rel=0.01)
    assert (figure.xaxis[0].axis_label, figure.yaxis[0].axis_label) == ("x (nm)", "y (nm)")
    assert figure.title.text == "phase (rad)"


def test_image_has_a_scale_bar_in_nm_and_a_colour_bar(image):
    kinds = {type(model).__name__ for model in render(plot_image(image)).references()}
    assert {"ScaleBar", "ColorBar"} <= kinds


def test_limits_are_shared_when_asked_and_robust_when_not(image):
    mapper = render(plot_image(image, limits=(-2, 3))).select_one({"type": hv_mapper()})
    assert (mapper.low, mapper.high) == (-2, 3)
    noisy = image_from_array(np.random.default_rng(0).standard_normal((64, 64)), pixel_A=(1.0, 1.0))
    noisy[3, 3] = 1e9
    low, high = robust_limits(noisy)
    assert -3 < low < -2
    assert 2 < high < 3
    low, high = robust_limits(0 * noisy + 5)
    assert low < 5 < high


def hv_mapper():
    from bokeh.models import LinearColorMapper

    return LinearColorMapper


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (xr.DataArray(np.zeros((2, 3, 3)), dims=("view", "y", "x")), "expected one image with dims"),
        (xr.DataArray(np.zeros((3, 3)), dims=("y", "x")), "no coordinate 'y'"),
        (image_from_array(np.full((3, 3), np.nan), pixel_A=(1.0, 1.0)), "no finite value"),
    ],
)
def test_what_is_not_an_image_is_refused(broken, words):
    with pytest.raises(ValueError, match=words):
        plot_image(broken)


def test_frc_marks_the_resolution_and_names_lengths_above():
    frc = curve([1.0, 0.9, 0.8, 0.2, 0.0, 0.0])
    overlay = plot_frc(frc, threshold=0.5, truth=curve([1.0, 1.0, 1.0, 0.9, 0.6, 0.0]))
    figure = render(overlay)
    expected = 1 / float(misr.frc_resolution(frc, 0.5))
    marks = [element.data for element in overlay.traverse(lambda e: e, [hv.VLine])]
    assert marks[0] == pytest.approx(expected)
    assert len(marks) == 2
    lengths = next(axis for axis in figure.above if getattr(axis, "name", None) == "length")
    assert lengths.axis_label == "length (Å)"
    for place, label in lengths.major_label_overrides.items():
        assert place * float(label) == pytest.approx(1, rel=0.01)
    assert figure.xaxis[-1].axis_label == "spatial frequency (1/Å)"


def test_an_unresolved_frc_has_no_mark_and_says_so():
    overlay = plot_frc(curve([0.0, 0.05, -0.05]))
    assert not overlay.traverse(lambda e: e, [hv.VLine])
    assert "nothing resolved" in render(overlay).title.text


def test_resolution_in_words():
    assert resolution_text(curve([1.0, 0.9, 0.8])) == "≤ 3.33 Å"
    assert resolution_text(curve([0.0, 0.0])) == "nothing resolved"
    assert resolution_text(curve([1.0] * 7 + [0.0]), threshold=0.5) == "1.33 Å"


def test_views_are_drawn_where_they_were_recorded():
    k = np.arange(16) - 7.5
    disk = np.hypot(*np.meshgrid(k, k)) < 5
    counts = np.random.default_rng(0).poisson(np.broadcast_to(disk * 9, (8, 8, 16, 16)))
    cube = misr.cube_from_array(
        counts, scan_step_A=2, det_step_mrad=2, energy_eV=3e5, semiangle_mrad=10, aberrations={"C10": -1000}
    )
    views = misr.synthesize_views(cube, n_views=7)
    layout = plot_views(views, view=3)
    all_points, chosen = layout.traverse(lambda e: e, [hv.Points])
    assert np.allclose(all_points.dimension_values("det_x"), views.det_x)
    assert chosen.dimension_values("det_y")[0] == pytest.approx(float(views.det_y[3]))
    render(layout)
    with pytest.raises(ValueError, match="between 0 and 6"):
        plot_views(views, view=7)
    with pytest.raises(ValueError, match="synthesize_views"):
        plot_views(cube)


def made_landscape(rotations, C10=(-2000.0, -1000.0, 0.0, 1000.0, 2000.0)):
    """Each place has its own value, and the highest is at the last rotation and the second C10."""
    values = np.arange(len(rotations) * len(C10), dtype=float).reshape(len(rotations), len(C10))
    values[-1, 1] = 100.0
    coords = {"rotation_deg": list(rotations), "C10": list(C10)}
    return xr.DataArray(values, dims=("rotation_deg", "C10"), coords=coords, name="log_likelihood")


def fit_at(C10, rotation_deg):
    return xr.Dataset({"C10": C10, "rotation_deg": rotation_deg})


def test_landscape_of_one_rotation_is_a_curve_over_defocus():
    landscape = made_landscape([90.0])
    overlay = plot_landscape(landscape, fit=fit_at(-990.0, 91.0))
    (curve,), (line,) = (overlay.traverse(lambda e: e, [kind]) for kind in (hv.Curve, hv.VLine))
    np.testing.assert_array_equal(curve.dimension_values("C10"), landscape.C10)
    np.testing.assert_array_equal(curve.dimension_values("log_likelihood"), landscape.values[0])
    assert line.data == -990
    figure = render(overlay)
    assert (figure.xaxis[0].axis_label, figure.yaxis[0].axis_label) == ("C10 (Å)", "log-likelihood")
    assert (figure.x_range.start, figure.x_range.end) == (-2000, 2000)
    assert figure.title.text == "rotation 90°"
    assert not plot_landscape(landscape).traverse(lambda e: e, [hv.VLine])


def test_curve_at_the_twins_rotation_marks_the_twin():
    overlay = plot_landscape(made_landscape([90.0]), fit=fit_at(-990.0, 271.0))
    assert overlay.traverse(lambda e: e, [hv.VLine])[0].data == 990


@pytest.mark.parametrize(("rotations", "kind"), [((0, 100, 200, 300), "Image"), ((0, 90, 150, 300), "QuadMesh")])
def test_landscape_of_rotations_is_an_image_with_the_fit_and_its_twin(rotations, kind):
    landscape = made_landscape([float(angle) for angle in rotations])
    overlay = plot_landscape(landscape, fit=fit_at(-1000.0, 300.0))
    table = overlay.traverse(lambda e: e, [getattr(hv, kind)])[0].dframe()
    best = table.loc[table["log_likelihood"].idxmax()]
    assert (best["C10"], best["rotation_deg"]) == pytest.approx((-1000, 300))
    points = [tuple(e.array()[0]) for e in overlay.traverse(lambda e: e, [hv.Points])]
    assert points == [(-1000, 300), (1000, 120)]
    figure = render(overlay)
    assert (figure.xaxis[0].axis_label, figure.yaxis[0].axis_label) == ("C10 (Å)", "rotation (degrees)")
    assert figure.y_range.end > figure.y_range.start  # unlike an image of the specimen
    assert (figure.x_range.start, figure.x_range.end) == (-2500, 2500)
    mapper = figure.select_one({"type": hv_mapper()})
    assert (mapper.low, mapper.high) == (0, 100)
    kinds = {type(model).__name__ for model in figure.references()}
    assert "ColorBar" in kinds


def test_marks_outside_the_rotations_shown_are_left_out():
    overlay = plot_landscape(made_landscape([-20.0, 0.0, 20.0]), fit=fit_at(-1000.0, 355.0))
    points = [tuple(e.array()[0]) for e in overlay.traverse(lambda e: e, [hv.Points])]
    assert points == [(-1000, -5)]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (made_landscape([0.0]).isel(rotation_deg=0), "misr.aberration_landscape"),
        (np.zeros((2, 2)), "misr.aberration_landscape"),
        (made_landscape([0.0], C10=[-1000.0, 0.0]).isel(C10=[0]), "fewer than two values of C10"),
        (made_landscape([0.0]).isel(C10=slice(None, None, -1)), "C10 of the landscape must rise"),
    ],
)
def test_what_is_not_a_landscape_is_refused(broken, words):
    with pytest.raises(ValueError, match=words):
        plot_landscape(broken)


def test_importing_the_module_loads_no_plotting_library():
    heavy = "{'holoviews', 'bokeh', 'panel', 'matplotlib', 'torch'}"
    code = f"import sys, misr.plot; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
