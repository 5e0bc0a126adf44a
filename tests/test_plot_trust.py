"""The trust figure draws what the report holds, and says what it comes to."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from misr._plot_trust import plot_prior_share, plot_trust

hv = pytest.importorskip("holoviews")

CURVES = ("frc", "frc_substituted", "frc_corrected", "linear_limit", "frc_vacuum", "frc_shuffled", "frc_truth")


def report(*, passed=(True, True, True), trusted=True):
    q = 0.1 * np.arange(1, 6)
    coords = {"frequency": ("frequency", q, {"units": "1/Å"}), "n_independent": ("frequency", 100 * q)}
    curves = {name: ("frequency", np.linspace(0.9, 0.1 * i, 5)) for i, name in enumerate(CURVES)}
    shares = {
        name: ("frequency", np.full(5, value))
        for name, value in (("share", 0.3), ("share_low", 0.1), ("share_high", 0.5))
    }
    tests = {"test": ["noise substitution", "prior share", "vacuum"]}
    table = {
        "value": ("test", [0.01, 0.3, np.nan]),
        "limit": ("test", [0.03, 0.1, np.nan]),
        "p_value": ("test", [0.4, 1e-9, np.nan]),
        "passed": ("test", list(passed)),
        "words": ("test", ["chance", "excess", "the method refuses it"]),
    }
    scalars = {"resolution": ((), 2.5, {"status": "crossed"}), "beyond": 0.25, "trusted": trusted}
    return xr.Dataset({**curves, **shares, **table, **scalars}, coords={**coords, **tests}, attrs={"pipeline": "net"})


def render(element):
    return hv.renderer("bokeh").get_plot(element).state


def elements(overlay, kind):
    return [one for one in overlay if isinstance(one, kind)]


def test_every_curve_is_drawn_and_the_truth_squared():
    given = report()
    drawn = {one.label: one for one in elements(plot_trust(given)[0], hv.Curve)}
    assert len(drawn) == len(CURVES)
    np.testing.assert_allclose(drawn["half maps"].dimension_values("FRC"), given.frc)
    np.testing.assert_allclose(drawn["against the truth, squared"].dimension_values("FRC"), given.frc_truth**2)
    figure = plot_trust(given)[0]
    assert "half maps claim 2.50 Å" in figure.opts.get("plot").kwargs["title"]
    assert [line.data for line in elements(figure, hv.VLine)] == [0.25]
    less = plot_trust(given.drop_vars(["frc_truth", "frc_vacuum"]))[0]
    assert len(elements(less, hv.Curve)) == len(CURVES) - 2


def test_share_has_its_interval():
    overlay = plot_prior_share(report())
    band = elements(overlay, hv.Area)[0]
    np.testing.assert_allclose(band.dimension_values("upper"), 0.5)
    np.testing.assert_allclose(band.dimension_values("share"), 0.1)
    state = render(overlay)
    assert state.yaxis[0].axis_label == "share of the spectral SNR"


@pytest.mark.parametrize(
    ("passed", "trusted", "verdict"),
    [
        ((True, True, True), True, "passed every test"),
        ((True, False, True), True, "as good as its prior"),
        ((False, False, True), False, "not to be trusted"),
    ],
)
def test_tests_are_lines_of_words_under_a_verdict(passed, trusted, verdict):
    table = plot_trust(report(passed=passed, trusted=trusted))[2]
    lines = [one.data[2] for one in elements(table, hv.Text)]
    assert [line.startswith("passed") for line in lines] == list(passed)
    assert "correlation beyond the line 0.010" in lines[0]
    assert lines[2].endswith("the method refuses it")
    assert verdict in table.opts.get("plot").kwargs["title"].replace("\n", " ")


def test_refusals_are_no_passes_and_intervals_are_drawn():
    given = report(passed=(True, True, False)).assign(status=("test", ["passed", "passed", "refused"]))
    layout = plot_trust(given)
    assert elements(layout[2], hv.Text)[2].data[2].startswith("refused")
    title = layout[2].opts.get("plot").kwargs["title"]
    assert "the method refused: vacuum" in title.replace("\n", " ")
    assert max(map(len, title.splitlines())) < 50  # over a frame of 420 pixels
    assert not elements(layout[0], hv.Area)
    ends = {f"frc_vacuum_{end}": ("frequency", np.full(5, value)) for end, value in (("low", -0.1), ("high", 0.2))}
    bands = elements(plot_trust(given.assign_coords(ends))[0], hv.Area)
    assert len(bands) == 1
    np.testing.assert_allclose(bands[0].dimension_values("upper"), 0.2)


def test_figure_renders_with_its_units():
    figure = render(plot_trust(report()))
    labels = {axis.axis_label for axis in figure.select({"type": _axis()})}
    assert "spatial frequency (1/Å)" in labels


def _axis():
    from bokeh.models import LinearAxis

    return LinearAxis


def test_what_is_no_report_is_refused():
    for draw in (plot_trust, plot_prior_share):
        with pytest.raises(ValueError, match="make it with misr"):
            draw(xr.Dataset())
