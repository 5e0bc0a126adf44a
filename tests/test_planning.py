"""Plans of scans: against the fusion's own matrices, actual fusions, and what optics says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from phase_object import as_sampled, atoms_phase, phase_object_cube

import misr
from misr._planning import Modes, read_scan_optics, scan_modes
from misr._plot_planning import plot_plan
from misr.cube import detector_step, image_from_array
from misr.planning import expected_frc_of_scan, plan_acquisition, plan_words

SEMIANGLE = 10.0
WAVELENGTH = 0.0196875


@pytest.fixture(scope="module")
def carbon():
    return misr.phase_power_of_slab("carbon", thickness_A=30)


@pytest.fixture(scope="module")
def small(carbon):
    """A plan whose defoci are too small for its coarse steps, and one that serves all."""
    return plan_acquisition(
        carbon, resolution_A=2.0, semiangle_mrad=SEMIANGLE, defocus_A=[100, 300, 900, 2600],
        scan_step_A=[0.45, 2, 4, 6, 8], field_A=(200, 100),
    )  # fmt: skip


def optics_of(power, *, defocus, method="linear", across=32, semiangle=SEMIANGLE, **blurs):
    blurs = {"source_size_A": 0.0, "focal_spread_A": 0.0} | blurs
    found = read_scan_optics(power, method=method, energy_eV=None, semiangle_mrad=semiangle, aberrations={},
                             det_step_mrad=None, pixels_across=across, **blurs)  # fmt: skip
    return found.at_defocus(defocus)


def test_modes_are_the_posterior_of_the_fusion(make_views):
    """The transfer that the fusion's solve has with this power, at its own scan frequencies."""
    import torch

    from misr.fusion.prior import NormalEquations, solve

    views, truth = make_views("atoms", pixels=48)
    dose, plan = 400.0, misr.plan_fusion(views)
    power = misr.radial_power_spectrum(truth.assign_attrs(views.attrs, units="rad"), ring_width=0.1, window=None)
    area = 24.0**2
    inside = (plan.freq.magnitude > 0) & (plan.freq.magnitude < 2 * plan.geometry.cutoff)
    spread = np.interp(plan.freq.magnitude.numpy(), power.frequency, power) / area * inside.numpy()
    equations = NormalEquations(
        plan.matrix, torch.zeros_like(plan.matrix[..., 0]), torch.full((len(plan.matrix),), dose * area).double()
    )
    transfer = solve(equations, power=torch.as_tensor(spread)).transfer.numpy()
    at = np.array([[5, 2], [17, 4], [30, 7], [41, 0], [60, 9], [77, 1]])
    chosen = tuple(at[inside.numpy()[tuple(at.T)]].T)
    assert len(chosen[0]) >= 4
    optics = read_scan_optics(
        power, method="linear", energy_eV=None, semiangle_mrad=None, aberrations=None,
        det_step_mrad=tuple(views.attrs["detector_step_mrad"]), source_size_A=0, focal_spread_A=0, pixels_across=0,
    ).at_defocus(1500)  # fmt: skip
    q_y, q_x = (plan.freq.y.numpy()[chosen].astype(float), plan.freq.x.numpy()[chosen].astype(float))
    modes = scan_modes(q_y[None], q_x[None], step_A=2.0, power=power, optics=optics)
    # each sample as a ring of its own
    own = Modes(modes.rate[0][:, None], modes.weight[0][:, None]).correlation(dose, "truth") ** 2
    assert transfer[chosen].max() > 0.2
    np.testing.assert_allclose(own, transfer[chosen], rtol=0.03, atol=0.003)


@pytest.mark.parametrize("method", ["linear", "tcbf"])
@pytest.mark.parametrize("against", ["truth", "half-map"])
def test_fine_steps_are_the_limit(carbon, method, against):
    options = {"dose_e_per_A2": 500, "semiangle_mrad": SEMIANGLE, "det_step_mrad": 0.6, "method": method,
               "aberrations": {"C10": -800.0, "C12": 60.0, "phi12": 0.4}, "against": against}  # fmt: skip
    power = misr.phase_power_of_slab("carbon", field_A=12)
    fine = expected_frc_of_scan(power, scan_step_A=0.45, **options)
    # the innermost ring lives on crescents narrower than a detector pixel, which the closed form knows nothing of
    np.testing.assert_allclose(fine[1:], misr.expected_frc(power, **options)[1:], atol=0.025)
    np.testing.assert_allclose(fine.alias_share, 0, atol=2e-3)
    coarse = expected_frc_of_scan(power, scan_step_A=5, **options)
    assert np.all(coarse <= fine + 1e-6)
    assert float((fine - coarse).max()) > 0.002


def test_aberrations_in_the_attrs_count_as_in_the_limit():
    power = misr.phase_power_of_slab("carbon", field_A=12)
    known = power.assign_attrs(misr.aberrations.aberration_attrs({"C10": -150.0, "C30": 1e6}))
    options = {"dose_e_per_A2": 300, "semiangle_mrad": SEMIANGLE, "scan_step_A": 0.45}
    given = expected_frc_of_scan(power, aberrations={"C10": -150.0, "C30": 1e6}, **options)
    np.testing.assert_allclose(expected_frc_of_scan(known, **options), given)
    focused = expected_frc_of_scan(known, aberrations={}, **options)
    assert float(abs(focused - given).max()) > 0.05
    with pytest.raises(ValueError, match="aberrations not known"):
        expected_frc_of_scan(power, **options)
    # a plan has its own defoci, whatever the image was taken at
    ask = {"resolution_A": 2.5, "semiangle_mrad": SEMIANGLE, "defocus_A": 300, "scan_step_A": 1}
    assert float(plan_acquisition(known, **ask).best_dose) == float(plan_acquisition(power, **ask).best_dose)


@pytest.mark.filterwarnings("ignore:upsample=4. at:UserWarning")
def test_a_plan_from_a_fusion_is_not_made_of_its_noise(make_views):
    """Noise adds power, Wiener weights take some off: a plan from the mere image believes either."""
    views, truth = make_views("atoms", dose=3000, rng=0)
    fused = misr.fuse_linear(views, upsample=4)
    truth = as_sampled(truth, -1500.0).assign_attrs(fused.phase.attrs, units="rad")
    rings = {"ring_width": 0.15, "window": None}
    wanted, found, mere = (misr.radial_power_spectrum(given, **rings) for given in (truth, fused, fused.phase))
    assert found.frequency[-1] < mere.frequency[-1]  # what it does not show is not made up
    band = slice(0.1, 0.6)
    np.testing.assert_allclose((found / wanted).sel(frequency=band), 1, atol=0.25)
    assert float((mere / wanted).sel(frequency=band)[-1]) < 0.6
    ask = {"resolution_A": 2.0, "defocus_A": 500, "scan_step_A": 2} | rings
    plans = [plan_acquisition(given, **ask) for given in (truth, fused, fused.phase)]
    known, fair, naive = (float(plan.best_dose) for plan in plans)
    assert 0.7 * known < fair < 1.3 * known
    assert naive > 1.5 * known
    assert plans[1].attrs["concentration"] == pytest.approx(plans[2].attrs["concentration"], rel=0.3)
    with pytest.raises(ValueError, match="holds no 'phase'"):
        plan_acquisition(fused[["transfer"]], **ask)


def test_noise_of_an_image_is_no_power_of_the_object():
    """White noise as strong as a white object, both and the transfer known."""
    rng = np.random.default_rng(3)
    shape, pixel = (128, 96), 0.5
    q = [np.fft.fftshift(np.fft.fftfreq(n, pixel)) for n in shape]
    transfer = 0.7 + 0.2 * np.cos(2 * np.pi * np.hypot(q[0][:, None], q[1]))
    seen = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * np.fft.ifftshift(transfer)).real
    attrs = {"period_A": [64.0, 48.0]}
    image = image_from_array(seen + rng.standard_normal(shape), pixel_A=(pixel, pixel), attrs=attrs)
    spectra = {"noise_std": 0 * transfer + pixel, "transfer": transfer}
    coords = {"frequency_y": q[0], "frequency_x": q[1]}
    given = xr.Dataset({name: (tuple(coords), values) for name, values in spectra.items()}, coords)
    power = misr.radial_power_spectrum(given.assign(phase=image), ring_width=0.1)
    weight = power.n_independent
    assert float((power * weight).sum() / weight.sum()) == pytest.approx(pixel**2, rel=0.2)
    assert float(misr.radial_power_spectrum(image, ring_width=0.1).mean()) > 1.2 * pixel**2


def test_every_cell_lies_above_the_bounds(small, carbon):
    assert np.all(small.dose >= 0.99 * small.dose_fine)
    assert np.all(small.alias_cost > 1 - 1e-6)
    assert np.all(small.pixel_cost > 0.99)
    assert np.all(small.dose_ideal < small.dose_fine)
    for defocus, bound in zip(small.defocus.values, small.dose_fine.values, strict=True):
        own = misr.dose_for_resolution(
            carbon, resolution_A=2.0, semiangle_mrad=SEMIANGLE, aberrations={"C10": -defocus}
        )
        assert bound == pytest.approx(float(own))


def test_the_dose_is_where_the_curve_crosses():
    power = misr.phase_power_of_slab("carbon", field_A=40)
    options = {"semiangle_mrad": SEMIANGLE, "det_step_mrad": 0.8}
    for against, threshold in (("truth", 0.5), ("half-map", "half-bit")):
        plan = plan_acquisition(power, resolution_A=2.5, defocus_A=600, scan_step_A=4, threshold=threshold,
                                against=against, **options).squeeze()  # fmt: skip
        curve = expected_frc_of_scan(power, dose_e_per_A2=float(plan.dose), scan_step_A=4, against=against,
                                     aberrations={"C10": -600}, **options)  # fmt: skip
        here = curve.sel(frequency=0.4, method="nearest")
        assert float(here) == pytest.approx(float(misr.frc_threshold(threshold, float(here.n_independent))), rel=1e-4)
        assert float(here.alias_share) == pytest.approx(float(plan.alias_share), rel=1e-3)
        assert float(here.half_maps) == pytest.approx(float(plan.half_maps), rel=1e-3)


def test_steps_cost_where_the_shifts_do_not_reach_across_them(small):
    """From one edge of the aperture to the other the views shift by 2 α |C10|: 2 Å at 100 Å, 18 Å at 900 Å."""
    assert np.all(np.diff(small.dose.sel(defocus=100)) > 0)
    assert float(small.alias_cost.sel(defocus=100, scan_step=6)) > 3
    assert float(small.alias_cost.sel(defocus=900, scan_step=8)) < 1.1
    assert float(small.alias_share.sel(defocus=100, scan_step=6)) > 0.2
    status = small.status.sel(defocus=100).values
    assert status[0] == "found"
    assert status[-1] == "illuminated patches leave gaps"


def test_pixels_cost_where_the_shift_changes_across_them(small):
    """2600 Å over 0.625 mrad is 1.6 Å: most of a period of 2 Å."""
    assert float(small.shift_per_pixel.sel(defocus=2600)) == pytest.approx(1.625, rel=1e-6)
    assert set(small.status.sel(defocus=2600).values) == {"detector pixel too coarse"}
    assert float(small.pixel_cost.sel(defocus=100)) < 1.1
    assert np.all(np.diff(small.dose_of_pixel) < 0)  # from wide pixels to narrow ones
    best = float(small.dose_of_pixel.min())
    for edge, dose in zip(small.det_step.values, small.dose_of_pixel.values, strict=True):
        assert (edge > float(small.widest_det_step)) == (dose > 1.1 * best)


def test_the_choice_is_the_coarsest_step_within_the_tolerance(small):
    doses = small.dose.where(small.status == "found")
    least, best = float(doses.min()), float(small.best_dose)
    step, defocus = float(small.best_scan_step), float(small.best_defocus)
    assert best == pytest.approx(float(small.dose.sel(defocus=defocus, scan_step=step)))
    assert best <= 1.1 * least
    assert not np.any(doses.where(small.scan_step > step) <= 1.1 * least)
    assert best == pytest.approx(float(doses.sel(scan_step=step).min()))


@pytest.mark.parametrize("method", ["linear", "tcbf"])
def test_best_defocus_is_where_sin_chi_is_one(method):
    """At 5 Å most of the signal is of both side bands: it comes and goes with sin²χ, χ = π λ C10 q²."""
    power = misr.phase_power_of_slab("carbon", field_A=400)
    period = 25 / WAVELENGTH
    defocus = period * np.arange(0.25, 2.3, 0.25)
    plan = plan_acquisition(power, resolution_A=5.0, semiangle_mrad=SEMIANGLE, defocus_A=defocus, scan_step_A=2,
                            det_step_mrad=0.3, method=method)  # fmt: skip
    dose = plan.dose.values[:, 0]
    peaks, zeros = dose[1::4], dose[3::4]
    assert zeros.min() > 2 * peaks.max()
    assert float(plan.best_defocus) / period % 1 == pytest.approx(0.5)
    tried = plan_acquisition(power, resolution_A=5.0, semiangle_mrad=SEMIANGLE, scan_step_A=2).defocus / period
    np.testing.assert_allclose(tried % 1, 0.5, atol=1e-4)


def test_both_sides_of_focus_need_the_same(carbon):
    options = {"resolution_A": 2.0, "semiangle_mrad": SEMIANGLE, "scan_step_A": [2, 5]}
    under, over = (plan_acquisition(carbon, defocus_A=sign * 400, **options) for sign in (1, -1))
    np.testing.assert_allclose(under.dose, over.dose.values, rtol=1e-3)
    assert over.C10.values.tolist() == [400]


def test_blurs_cost(carbon):
    options = {"resolution_A": 2.0, "semiangle_mrad": SEMIANGLE, "scan_step_A": 2, "defocus_A": 400}
    sharp, source, spread = (
        plan_acquisition(carbon, **options, **blur).dose.item()
        for blur in ({}, {"source_size_A": 0.3}, {"focal_spread_A": 60.0})
    )
    # all of Γ times exp(-2 π² σ² q²)
    assert source / sharp == pytest.approx(math.exp(4 * math.pi**2 * 0.09 * 0.25), rel=0.02)
    assert spread > 1.02 * sharp


def test_solving_beats_shifting_and_adding_most_at_coarse_steps(carbon):
    options = {"resolution_A": 1.6, "semiangle_mrad": SEMIANGLE, "defocus_A": 400, "scan_step_A": [0.45, 4]}
    linear, tcbf = (plan_acquisition(carbon, method=method, **options).dose.values[0] for method in ("linear", "tcbf"))
    assert np.all(tcbf > linear)
    assert tcbf[1] / linear[1] > 1.2 * tcbf[0] / linear[0]


def test_half_maps_take_an_inseparable_alias_for_signal():
    """Two frequencies with one overlap: the image shows half of each, in both halves alike."""
    snr = 2.0
    one = Modes(np.full((1, 1, 1), snr), np.ones((1, 1, 1)))
    two = Modes(np.full((1, 1, 1), 2 * snr), np.full((1, 1, 1), 0.5))
    assert float(one.correlation(1, "truth")[0]) == pytest.approx(math.sqrt(snr / (1 + snr)))
    assert float(one.half_maps(1)[0]) == pytest.approx(snr / (snr + 2))
    assert float(one.correlation(1, "half-map")[0]) == pytest.approx(snr / (snr + 2))
    assert float(two.correlation(1, "truth")[0]) < float(one.correlation(1, "truth")[0])
    assert float(two.half_maps(1)[0]) > float(one.half_maps(1)[0])
    assert float(two.correlation(1, "half-map")[0]) < float(one.correlation(1, "half-map")[0])
    assert float(two.alias_share(1)[0]) == pytest.approx(0.5 * 4 / 5)
    assert float(one.alias_share(1)[0]) == pytest.approx(0)
    assert one.least_dose(0.5, "truth") == pytest.approx(1 / 6)
    assert math.isinf(two.least_dose(0.9, "truth"))


def test_sums_over_the_field_and_the_beam(carbon, small):
    assert float(small.positions.sel(scan_step=8)) == 25 * 13
    np.testing.assert_allclose(small.electrons, small.dose * 2e4)
    np.testing.assert_allclose(small.electrons_per_position, small.dose * small.scan_step**2)
    assert float(small.patch.sel(defocus=900)) == pytest.approx(18 + 1.22 * WAVELENGTH / 0.01, rel=1e-3)
    options = {"resolution_A": 2.5, "semiangle_mrad": SEMIANGLE, "defocus_A": 500, "scan_step_A": [1, 4]}
    beam = {"beam_current_pA": 2.0, "shortest_dwell_s": 5e-5, "field_A": 100.0}
    plan = plan_acquisition(carbon, **options, **beam, dose_limit_e_per_A2=500)
    one = plan.squeeze()
    electrons = 2e-12 * 5e-5 / 1.602176634e-19
    assert float(one.dose_given.sel(scan_step=1)) == pytest.approx(electrons)  # more than is needed
    assert float(one.dwell.sel(scan_step=1)) == pytest.approx(5e-5)
    assert float(one.dose_given.sel(scan_step=4)) == pytest.approx(float(one.dose.sel(scan_step=4)))
    assert float(one.duration.sel(scan_step=1)) == pytest.approx(0.5)
    assert plan.status.values.tolist() == [["above the dose limit", "found"]]
    assert "625 positions" in plan_words(plan)
    assert "at 2 pA" in plan_words(plan)


def test_a_scan_that_must_give_more_counts_what_it_gives(carbon):
    """2 pA for 50 µs on each Å² are 624 electrons, whatever less would do."""
    options = {"resolution_A": 2.5, "semiangle_mrad": SEMIANGLE, "defocus_A": [400, 500], "scan_step_A": 1}
    beam = {"beam_current_pA": 2.0, "shortest_dwell_s": 5e-5, "field_A": 100.0}
    plan = plan_acquisition(carbon, **options, **beam)
    given = 2e-12 * 5e-5 / 1.602176634e-19
    assert float(plan.dose.max()) < 0.5 * given
    for name, wanted in (("best_dose", given), ("electrons_per_position", given), ("electrons", given * 1e4)):
        np.testing.assert_allclose(plan[name], wanted, err_msg=name)
    words, needed = plan_words(plan), plan.dose.sel(defocus=float(plan.best_defocus)).item()
    assert "(624 electrons per position)" in words
    assert "6.2e+06 electrons in the field" in words
    assert f"{needed:.2g} e/Å² would do: the shortest dwell gives more." in words or f"{needed:.0f} e/Å² would" in words
    assert "would do" not in plan_words(plan_acquisition(carbon, **options, beam_current_pA=2.0))
    overlay = list(plot_plan(plan))
    ring, curve = overlay[-1], overlay[1]
    assert ring.dimension_values("dose")[0] == pytest.approx(given)
    np.testing.assert_allclose(curve.dimension_values("dose"), given)
    # two defoci that need different doses get the same one: both serve
    assert "Defocus from 400 to 500 Å serves as well" in words
    refused = plan_acquisition(carbon, **options, **beam, dose_limit_e_per_A2=300)
    assert "at least 624 e/Å² is what the shortest dwell gives, above the dose limit" in plan_words(refused)


def test_words_say_what_to_set_or_why_not(carbon, small, tmp_path):
    words = plan_words(small)
    assert words.startswith("To see 2.00 Å in 30 Å of carbon (FRC 0.5 against truth): ")
    assert f"C10 {-float(small.best_defocus):.0f} Å (defocus {float(small.best_defocus):.0f} Å)" in words
    assert f"scan step {float(small.best_scan_step):g} Å" in words
    small.to_netcdf(tmp_path / "plan.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "plan.nc", engine="h5netcdf") as back:
        assert plan_words(back) == words
    options = {"resolution_A": 2.0, "semiangle_mrad": SEMIANGLE}
    for change, reason in (
        ({"resolution_A": 0.95, "defocus_A": 500, "scan_step_A": 2}, "beyond the band limit"),
        ({"defocus_A": 5000, "scan_step_A": 2}, "detector pixel"),
        ({"defocus_A": 20, "scan_step_A": 6}, "patches leave gaps"),
        ({"defocus_A": 500, "scan_step_A": 2, "dose_limit_e_per_A2": 10}, "above the dose limit"),
    ):
        plan = plan_acquisition(carbon, **(options | change))
        assert reason in plan_words(plan)
        assert plan_words(plan).startswith("No scan tried shows")
        assert math.isnan(plan.best_dose)
    nothing = (0 * carbon).assign_attrs(carbon.attrs)
    plan = plan_acquisition(nothing, defocus_A=500, scan_step_A=2, **options)
    assert "no contrast" in plan_words(plan)
    with pytest.raises(ValueError, match="finite dose"):
        plot_plan(plan)


def test_history_and_units(small):
    assert [line["operation"] for line in misr.cube_history(small)] == ["phase_power_of_slab", "plan_acquisition"]
    assert all("units" in variable.attrs for name, variable in small.variables.items() if name != "status")
    assert small.attrs["semiangle_mrad"] == pytest.approx(SEMIANGLE)
    assert small.attrs["det_step_mrad"] == pytest.approx([0.625, 0.625])


def test_crystals_are_told_from_speckle():
    y, x = np.indices((128, 128)) * 0.5
    rng = np.random.default_rng(0)
    lattice = np.cos(2 * np.pi * (y / 4 + x / 8)) + np.cos(2 * np.pi * (x / 2 - y / 16))
    attrs = {"energy_eV": 300e3, "semiangle_mrad": SEMIANGLE, "C10_A": -700.0, "units": "rad"}
    found = {}
    for kind, phase in (("speckle", rng.standard_normal((128, 128))), ("lattice", lattice)):
        image = image_from_array(0.03 * phase, pixel_A=(0.5, 0.5), attrs=attrs)
        found[kind] = plan_acquisition(image, resolution_A=2.0, defocus_A=500, scan_step_A=2, ring_width=0.07)
    assert found["speckle"].attrs["concentration"] == pytest.approx(1, abs=0.35)
    assert found["lattice"].attrs["concentration"] > 10
    assert "sees the lattice" in plan_words(found["lattice"])
    assert "lattice" not in plan_words(found["speckle"])
    assert "this specimen" in plan_words(found["speckle"])


def test_what_cannot_be_is_refused(carbon):
    ok = {"resolution_A": 2.0, "semiangle_mrad": SEMIANGLE, "defocus_A": 500, "scan_step_A": 2}
    for change, words in (
        ({"resolution_A": 0}, "resolution_A=0 must be positive"),
        ({"scan_step_A": [2, -1]}, "scan_step_A"),
        ({"scan_step_A": [2, 2]}, "different"),
        ({"scan_step_A": 60}, "at most 19.2 Å"),
        ({"defocus_A": [1, math.nan]}, "defocus_A"),
        ({"defocus_A": []}, "defocus_A"),
        ({"method": "ideal"}, "no scan enters"),
        ({"method": "obf"}, "'linear' or 'tcbf'"),
        ({"against": "hope"}, "'truth', 'half-map'"),
        ({"threshold": 2}, "between 0 and 1"),
        ({"semiangle_mrad": None}, "semiangle_mrad"),
        ({"det_step_mrad": 30}, "wider than the whole"),
        ({"source_size_A": -1}, "source_size_A"),
        ({"field_A": -5}, "field_A"),
        ({"shortest_dwell_s": 1e-5}, "beam_current_pA"),
        ({"tolerance": 0}, "tolerance"),
        ({"ring_width": 0.1}, "has its rings already"),
    ):
        with pytest.raises(ValueError, match=words):
            plan_acquisition(carbon, **(ok | change))
    with pytest.raises(ValueError, match="outside the power's frequencies"):
        plan_acquisition(carbon, **(ok | {"resolution_A": 200}))
    with pytest.raises(ValueError, match="plan_acquisition"):
        plan_words(xr.Dataset())
    with pytest.raises(ValueError, match="plan_acquisition"):
        plot_plan(xr.Dataset())
    with pytest.raises(ValueError, match="scan_step_A"):
        expected_frc_of_scan(carbon, dose_e_per_A2=10, scan_step_A=0, semiangle_mrad=10)


def test_figure_has_a_curve_for_each_step_and_rings_the_choice(small):
    overlay = plot_plan(small)
    kinds = [type(element).__name__ for element in overlay]
    assert kinds.count("Curve") == 1 + small.sizes["scan_step"]
    ring = list(overlay)[-1]
    assert ring.dimension_values("defocus")[0] == float(small.best_defocus)
    assert ring.dimension_values("dose")[0] == pytest.approx(float(small.best_dose))
    assert overlay.opts.get("plot").kwargs["logy"]


@pytest.mark.slow
def test_fusion_of_a_coarse_scan_is_as_expected():
    """4 Å between positions that light 5 Å each: against truth, and between half maps, aliases and all."""
    C10, dose, draws = -150.0, 1000.0, 3
    phase = atoms_phase((96, 96), 0.5, rng=1, strength=0.05)
    expected, truth = phase_object_cube(phase, 0.5, every=(8, 8), aberrations={"C10": C10}, det_bin=2)
    truth = as_sampled(truth, C10).assign_attrs(expected.attrs, units="rad")
    rings = {"ring_width": 0.1, "window": None}
    found: dict[str, list] = {"truth": [], "half_maps": []}
    for draw in range(draws):
        counts = misr.apply_dose(expected, dose, rng=[5, draw])
        whole, *halves = (
            misr.fuse_linear(misr.synthesize_views(part), upsample=8)["phase"]
            for part in (counts, *misr.split_counts(counts, rng=[6, draw]))
        )
        like = misr.phase_on_grid(truth, like=whole)
        found["truth"].append(misr.fourier_ring_correlation(whole, like, **rings).values)
        found["half_maps"].append(misr.fourier_ring_correlation(*halves, **rings).values)
    options = {"dose_e_per_A2": dose, "aberrations": {"C10": C10}, "det_step_mrad": detector_step(expected)} | rings
    curve = expected_frc_of_scan(truth, scan_step_A=4.0, **options)
    honest = expected_frc_of_scan(truth, scan_step_A=4.0, against="half-map", **options)
    used = np.flatnonzero((curve.frequency > 0.2) & (curve.frequency < 0.8))
    measured = {name: np.mean(curves, axis=0)[used] for name, curves in found.items()}
    for name, wanted in (("truth", curve.values[used]), ("half_maps", curve.half_maps.values[used])):
        # rings hold 60 to 360 values; the truth is the same in all draws
        assert np.abs(measured[name] - wanted).max() < 0.1
        assert abs(np.mean(measured[name] - wanted)) < 0.03
    # the step costs much here, and half maps hide it
    assert np.mean(misr.expected_frc(truth, **options).values[used] - measured["truth"]) > 0.1
    assert np.mean(measured["half_maps"] - honest.values[used]) > 0.05
