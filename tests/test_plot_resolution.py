"""Figures of resolution: what is drawn is what is in the curves and maps."""

import numpy as np
import pytest
import xarray as xr

import misr
from misr._plot_frc import frc_error_band, plot_frc
from misr._plot_resolution import plot_comparison, plot_local_resolution
from misr.comparison import compare_images
from misr.cube import image_from_array

hv = pytest.importorskip("holoviews")


def render(element):
    return hv.renderer("bokeh").get_plot(element).state


def curve(values, *, band=0.0, **attrs):
    q = 0.1 * np.arange(1, len(values) + 1)
    coords = {"frequency": ("frequency", q, {"units": "1/Å"}), "n_independent": ("frequency", 100.0 * q**0)}
    values = np.asarray(values, dtype=float)
    if band:
        coords |= {"frc_low": ("frequency", values - band), "frc_high": ("frequency", values + band)}
    return xr.DataArray(values, dims="frequency", coords=coords, name="frc", attrs=attrs)


def image(seed=0, shape=(40, 60), pixel_A=(0.5, 0.5)):
    return image_from_array(np.random.default_rng(seed).standard_normal(shape), pixel_A=pixel_A)


def resolution_map(values, reliable=None):
    values = np.asarray(values, dtype=float)
    coords = {"y": 8.0 + 4 * np.arange(values.shape[0]), "x": 10.0 + 4 * np.arange(values.shape[1])}
    reliable = np.isfinite(values) if reliable is None else np.asarray(reliable)
    variables = {"resolution": (("y", "x"), values), "reliable": (("y", "x"), reliable)}
    return xr.Dataset(variables, coords=coords, attrs={"window_A": 16.0})


# --- FRC -------------------------------------------------------------------------------------------------------------


def curves(overlay):
    """Curves alone: an hv.Area is one too."""
    return [element for element in overlay.traverse(lambda e: e, [hv.Curve]) if type(element) is hv.Curve]


def labels(overlay):
    return [element.label for element in curves(overlay)]


def test_interval_is_drawn_where_there_is_one():
    frc = curve([1.0, 0.8, 0.4, 0.1], band=0.1)
    overlay = plot_frc(frc, threshold=0.5)
    (band,) = overlay.traverse(lambda e: e, [hv.Area])
    np.testing.assert_allclose(band.dimension_values("frc_low"), frc.frc_low)
    np.testing.assert_allclose(band.dimension_values("frc_high"), frc.frc_high)
    assert render(overlay).y_range.start <= 0.0
    assert not plot_frc(frc, threshold=0.5, error_band=False).traverse(lambda e: e, [hv.Area])
    assert not plot_frc(curve([1.0, 0.1]), threshold=0.5).traverse(lambda e: e, [hv.Area])
    both = plot_frc(frc, threshold=0.5, truth=curve([1.0, 0.9, 0.7, 0.2], band=0.05))
    assert len(both.traverse(lambda e: e, [hv.Area])) == 2


def test_a_band_needs_an_interval():
    with pytest.raises(ValueError, match="has no interval"):
        frc_error_band(curve([1.0, 0.5]))


def test_limits_and_thresholds_are_in_the_legend():
    limit = curve([1.0, 0.9, 0.8, 0.5, 0.2])  # reaches further than the measured curve
    overlay = plot_frc(curve([1.0, 0.8, 0.4, 0.1]), thresholds=["1-bit", 0.143], limits={"linear limit": limit})
    assert labels(overlay) == ["linear limit", "half maps", "half-bit threshold", "1-bit threshold", "0.143 threshold"]
    first, *_, last = curves(overlay)
    np.testing.assert_allclose(first.dimension_values("FRC"), limit[:4])
    np.testing.assert_allclose(last.dimension_values("FRC"), 0.143)
    figure = render(overlay)
    assert figure.x_range.end == pytest.approx(0.4)
    glyphs = [renderer.glyph for renderer in figure.renderers if hasattr(renderer, "glyph")]
    dashes = {tuple(glyph.line_dash) for glyph in glyphs if getattr(glyph, "line_dash", None)}
    assert len(dashes) >= 4
    # beside the frame, where a long legend hides no curve
    assert any(type(model).__name__ == "Legend" for model in figure.right)


def test_only_the_chosen_threshold_is_marked():
    frc = curve([1.0, 0.8, 0.4, 0.1])
    overlay = plot_frc(frc, thresholds=[0.143, 0.5])
    (mark,) = overlay.traverse(lambda e: e, [hv.VLine])
    assert mark.data == pytest.approx(1 / float(misr.frc_resolution(frc)))


def test_a_curve_against_truth_is_read_as_one():
    frc = curve([1.0, 0.8, 0.4, 0.1], kind="truth")
    overlay = plot_frc(frc)
    assert labels(overlay) == ["against truth", "0.5 threshold"]
    assert render(overlay).title.text == f"truth: {float(misr.frc_resolution(frc, 0.5)):.2f} Å"


def test_a_limit_of_another_kind_is_refused_or_read_as_what_the_curve_shows():
    halves, truth = curve([1.0, 0.8, 0.4, 0.1], kind="half-map"), curve([1.0, 0.9, 0.6, 0.3], kind="truth")
    against_truth = curve([1.0, 0.95, 0.7, 0.4], against="truth")
    against_halves = curve([0.9, 0.85, 0.5, 0.2], against="half-map")
    for frc, limit, wish in ((halves, against_truth, "half-map"), (truth, against_halves, "truth")):
        with pytest.raises(ValueError, match=rf"the limit 'dose' is one against.*against='{wish}'"):
            plot_frc(frc, limits={"dose": limit})
    for frc, more in ((halves, {}), (halves, {"truth": truth})):
        plot_frc(frc, limits={"dose": against_halves}, **more)
    plot_frc(halves, truth=truth, limits={"dose": against_truth})
    with pytest.raises(ValueError, match="half maps' own FRC"):
        plot_frc(curve([1.0, 0.1], kind="full-dose"), limits={"dose": against_halves})
    # half maps show their aliases too, whichever way the limit was asked for
    shown = ("frequency", [0.9, 0.8, 0.75, 0.7])
    for limit in (against_truth, against_halves):
        drawn = curves(plot_frc(halves, limits={"dose": limit.assign_coords(half_maps=shown)}))[0]
        np.testing.assert_allclose(drawn.dimension_values("FRC"), shown[1])
    both = plot_frc(halves, truth=truth, limits={"dose": against_truth.assign_coords(half_maps=shown)})
    np.testing.assert_allclose(curves(both)[0].dimension_values("FRC"), against_truth)


def test_what_is_no_limit_is_refused():
    with pytest.raises(ValueError, match=r"misr\.expected_frc"):
        plot_frc(curve([1.0, 0.5]), limits={"limit": xr.DataArray([1.0, 0.5])})


# --- map -------------------------------------------------------------------------------------------------------------


def test_map_is_where_the_windows_are_and_leaves_out_what_is_not_reliable():
    found = resolution_map([[2.0, 3.0, 4.0], [2.5, np.inf, 1.0]], [[True, True, True], [True, False, False]])
    overlay = plot_local_resolution(found)
    (drawn,) = overlay.traverse(lambda e: e, [hv.Image])
    table = drawn.dframe().set_index(["y", "x"])["resolution"]
    table.index = [(round(y, 3), round(x, 3)) for y, x in table.index]
    assert table[(0.8, 1.4)] == 3.0
    assert table[(1.2, 1.0)] == 2.5
    assert np.isnan(table[(1.2, 1.4)])
    assert np.isnan(table[(1.2, 1.8)])
    assert render(overlay).title.text == "resolution (Å): median 2.75, window 16 Å"
    shown = plot_local_resolution(found, only_reliable=False).traverse(lambda e: e, [hv.Image])[0].dframe()
    assert shown["resolution"].isna().sum() == 1


def test_first_row_is_at_the_top_and_the_map_lies_in_the_image():
    figure = render(plot_local_resolution(resolution_map([[2.0, 3.0], [2.5, 4.0]])))
    assert figure.y_range.start > figure.y_range.end
    layout = plot_local_resolution(resolution_map([[2.0, 3.0], [2.5, 4.0]]), image())
    assert len(layout) == 2
    own = layout.traverse(lambda e: e, [hv.Overlay])[0].opts.get("plot").kwargs
    assert own["xlim"] == pytest.approx((-0.025, 2.975))
    assert own["ylim"] == pytest.approx((-0.025, 1.975))
    render(layout)


@pytest.mark.filterwarnings("error")
def test_a_map_of_nothing_says_so():
    overlay = plot_local_resolution(resolution_map(np.full((3, 4), np.inf)))
    figure = render(overlay)
    assert figure.title.text == "nothing resolved, window 16 Å"
    assert not any(type(model).__name__ == "ColorBar" for model in figure.references())


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (xr.Dataset({"resolution": 1.0}), r"misr\.local_resolution"),
        (np.zeros((3, 3)), r"misr\.local_resolution"),
        (resolution_map([[2.0, 3.0]]), "1 × 2 windows"),
    ],
)
def test_what_is_no_map_is_refused(broken, words):
    with pytest.raises(ValueError, match=words):
        plot_local_resolution(broken)


# --- comparison ------------------------------------------------------------------------------------------------------


def test_comparison_shows_images_on_one_scale_and_the_curve():
    reference = image(0)
    other = reference.copy(data=-2 * np.roll(reference.values, 2, axis=1) + 0.1 * image(1).values)
    comparison = compare_images(other, reference)
    layout = plot_comparison(comparison)
    moved, still, difference = layout.traverse(lambda e: e, [hv.Image])
    np.testing.assert_allclose(
        difference.dimension_values("value", flat=False),
        moved.dimension_values("value", flat=False) - still.dimension_values("value", flat=False),
    )
    limits = [e.opts.get("plot", backend="bokeh").kwargs.get("clim") for e in (moved, still)]
    assert limits[0] == limits[1]
    assert "against the reference" in labels(layout)[0]
    titles = [model.text for model in render(layout).references() if type(model).__name__ == "Title"]
    assert any("moved (0.00, -1.00) Å, sign −" in text for text in titles)
    assert any("NRMSE" in text for text in titles)


def test_what_is_no_comparison_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['image', 'reference', 'frc', 'resolution'\]"):
        plot_comparison(xr.Dataset())
