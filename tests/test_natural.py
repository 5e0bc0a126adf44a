"""Natural units against counting statistics, the linear fusion's own images, and a known specimen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import misr
from misr.fusion.kernels import full_plane, resized
from misr.fusion.labels import image_on_scan
from misr.fusion.linear import solved
from misr.fusion.losses import unit_spectrum
from misr.fusion.natural import BLOCK, atom_amplitude, natural_field, natural_grid, natural_groups, plane_of_size
from misr.fusion.plan import Statistic, measure
from misr.fusion.random_scans import Conditions
from misr.fusion.random_specimens import random_specimen
from misr.fusion.training_data import fields_of, phase_slices, truth_on
from misr.fusion.view_groups import group_sums, in_groups, measure_in_groups

OPTICS = {"scan_step_A": 2.0, "det_step_mrad": 2.0, "energy_eV": 300e3, "semiangle_mrad": 10.0}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:upsample=:UserWarning"),
]  # what cannot be unfolded is asked for too


def vacuum(shape=(24, 20), *, dose=100.0, C10=-300.0, periodic=True, rng=0):
    """Views of nothing: Poisson counts of an even disk."""
    k = np.arange(14) - 6.5
    disk = (np.hypot(k[:, None], k) < 5.02) * 1.0
    mean = np.broadcast_to(disk / disk.sum() * dose * 4, (*shape, 14, 14))
    counts = np.random.default_rng(rng).poisson(mean)
    cube = misr.cube_from_array(counts, aberrations={"C10": C10}, dose_e_per_A2=dose, **OPTICS)
    if periodic:
        cube.attrs["period_A"] = [2.0 * n for n in shape]
    return misr.synthesize_views(cube)


def fused(views, number=6, plan=None):
    grouped = measure_in_groups(views, number, plan=plan)
    return grouped, natural_field(grouped.plan, solved(grouped.plan, grouped.statistic, local=True))


def specimen_scan(window=24, *, rotation=25.0, strength=0.03, seed=5):
    """Expected views of thin amorphous matter with known optics, in 8 groups, and its whitened phase."""
    from misr.fusion.tilted_waves import simulate_bright_field

    lens = {"C10": -600.0, "C12": 60.0, "phi12": 0.4}
    optics = Conditions(300e3, 10.0, 1.4, rotation, lens, lens, rotation, 24, window, 36.0)
    atoms = random_specimen("amorphous", field_A=optics.field_A, rng=seed, max_thickness_A=4.0)
    phase = phase_slices(atoms, optics)[0].sum(axis=0)
    pixels = len(phase)
    phase *= strength / phase.std()
    first = (optics.positions - window) // 2
    cube = simulate_bright_field(
        phase[None], pixel_A=optics.field_A / pixels, energy_eV=optics.energy_eV, semiangle_mrad=10.0,
        scan_shape=(24, 24), det_step_mrad=1.4, aberrations=lens, rotation_deg=rotation,
        positions=None if window == 24 else (first, first, window, window),
    )  # fmt: skip
    views, parts, _ = in_groups(misr.synthesize_views(cube), 8)
    plan, _ = measure(views, keep=True)
    return views, parts, plan, truth_on(plan, phase, optics.field_A / pixels, optics)


def drawn_field(views, parts, plan, *, dose, rng):
    counts = np.random.default_rng(rng).poisson(views.values.clip(0) * dose)
    vectors, energy, mean = group_sums(counts, parts, plan=plan, lost=np.zeros(counts.shape[1:], dtype=bool))
    total = plan.grid.n_effective * float(mean.sum())
    return fields_of(plan, Statistic(sum(vectors), energy, total, int((mean > 0).sum())), vectors)


@pytest.mark.parametrize("field", [(56.0, 28.0), (31.7, 100.1), (7.0, 9.0)])
@pytest.mark.parametrize("cutoff", [0.2, 0.508])
def test_natural_pixels_are_fine_enough_and_in_whole_blocks(field, cutoff):
    shape = natural_grid(field, cutoff=cutoff)
    for side, number in zip(field, shape, strict=True):
        assert number % BLOCK == 0
        assert side / number <= 0.46 / (2 * cutoff) + 1e-12
        assert side / (number - BLOCK + 1e-9) > 0.46 / (2 * cutoff) or number == BLOCK


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("dose", [5.0, 2000.0])
def test_vacuum_noise_has_power_one_wherever_the_data_tell_something(periodic, dose):
    powers, told = [], []
    for rng in range(4):
        grouped, field = fused(vacuum(dose=dose, periodic=periodic, rng=rng))
        gain = grouped.plan.grid.field_gain
        powers.append(unit_spectrum(field.whitened).abs() ** 2 * gain)
        told.append((field.noise < 999) & (field.radius < 1))
    power, known = torch.stack(powers), torch.stack(told)
    radius = field.radius.expand_as(power)
    assert known.float().mean() > 0.3
    assert float(power[radius > 1].max()) < 1e-9
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.85)):
        ring = known & (radius > low) & (radius < high)
        # exponential deviates, so the mean of n scatters by 1/√n; in a margin neighbours are not independent
        sigma = math.sqrt(gain / int(ring.sum()))
        assert float(power[ring].mean()) == pytest.approx(1, abs=0.04 + 4 * sigma), (low, high)


def test_data_are_told_even_where_the_prior_finds_nothing():
    grouped = measure_in_groups(vacuum(dose=500.0), 4)
    solution = solved(grouped.plan, grouped.statistic, local=True)
    field = natural_field(grouped.plan, solution)
    electrons = solution.electrons[:, None]
    nothing = replace(
        solution,
        power=torch.full_like(solution.power, 1e-30),
        ring=replace(
            solution.ring,
            mean=1e-30 * grouped.statistic.vector.to(torch.complex128) * electrons,
            variance=torch.full_like(solution.power, 1e-30),
            transfer=torch.zeros_like(solution.power),
        ),
    )
    blind = natural_field(grouped.plan, nothing)
    told = (field.noise < 999) & (field.radius < 0.9)
    assert float((blind.noise < 999)[told].float().mean()) > 0.95
    assert blind.scale == pytest.approx(field.scale, rel=1.0)
    torch.testing.assert_close(
        (blind.noise * blind.scale)[told].log(), (field.noise * field.scale)[told].log(), atol=0.3, rtol=0
    )
    power = unit_spectrum(blind.whitened).abs() ** 2
    assert float(power[told].mean()) == pytest.approx(1, abs=0.1)
    assert not blind.ring.abs().max() > 1e-6


def test_groups_add_up_to_a_matched_filter_of_unit_noise_and_do_not_depend_on_the_views_order():
    views = vacuum(dose=1000.0)
    grouped, _ = fused(views)
    groups = natural_groups(grouped.plan, grouped.vectors, grouped.statistic)
    whole = natural_groups(grouped.plan, [sum(grouped.vectors)], grouped.statistic)[0]
    torch.testing.assert_close(groups.sum(0), whole, atol=1e-4, rtol=0)
    shape = whole.shape
    energy = torch.diagonal(grouped.plan.matrix, dim1=-2, dim2=-1).real
    seen = full_plane((energy > 1e-3 * energy.max()).float(), grid=grouped.plan.grid, freq=grouped.plan.freq)
    seen = resized(resized(seen, shape[0], 0), shape[1], 1)[:, : shape[1] // 2 + 1] > 0
    seen[0, 0] = False
    assert float((unit_spectrum(whole).abs() ** 2)[seen].mean()) == pytest.approx(1, abs=0.06)
    assert float(groups.var() * len(groups) / whole.var()) == pytest.approx(1, abs=0.1)

    turned = views.isel(view=np.random.default_rng(3).permutation(views.sizes["view"]))
    again, _ = fused(turned)
    np.testing.assert_allclose(again.tilts, grouped.tilts, atol=1e-12)
    torch.testing.assert_close(natural_groups(again.plan, again.vectors, again.statistic), groups, atol=1e-4, rtol=0)


def test_noise_is_the_scatter_of_the_estimate_over_many_draws():
    views, parts, plan, truth = specimen_scan()
    scores = []
    for rng in range(20):
        field, _ = drawn_field(views, parts, plan, dose=300.0, rng=rng)
        # of each draw, as its scale and noise are learnt anew
        true = unit_spectrum(truth) / (field.scale * field.noise)
        scores.append((unit_spectrum(field.whitened) - true) * (field.noise < 30) * (field.radius > 0.05))
    score = torch.stack(scores)
    known = (score != 0).all(0)
    scatter = (score - score.mean(0)).abs().pow(2).sum(0) / 19
    for low, high in ((0.05, 0.3), (0.3, 0.6), (0.6, 0.9)):
        ring = known & (field.radius > low) & (field.radius < high)
        assert int(ring.sum()) > 100
        assert float(scatter[ring].mean()) == pytest.approx(1, abs=0.1), (low, high)


@pytest.mark.parametrize("window", [24, 20])
def test_at_high_dose_the_estimate_is_the_truth(window):
    views, parts, plan, truth = specimen_scan(window, strength=0.01)
    field, groups = drawn_field(views, parts, plan, dose=1e8, rng=0)
    known = (field.noise < 0.3) & (field.radius > 0.1) & (field.radius < 1)
    assert float(known.sum() / (field.radius < 1).sum()) > 0.3
    shape = field.ring.shape

    def filtered(image):
        return torch.fft.irfft2(torch.fft.rfft2(image) * known, s=shape)

    centre = field.inside
    if window < 24:  # where all views overlap
        reach = math.ceil(600 * 0.012 / field.pixel[0])
        rows, columns = (torch.nonzero(centre.any(axis))[:, 0] for axis in (1, 0))
        centre = torch.zeros_like(centre)
        centre[rows[0] + reach : rows[-1] - reach, columns[0] + reach : columns[-1] - reach] = True
    true = filtered(truth / field.scale)[centre]
    for image, least in ((field.ring, 0.97), (field.local, 0.97)):
        found = filtered(image)[centre]
        slope = float((found * true).sum() / (true**2).sum())
        correlation = float((found * true).sum() / ((true**2).sum() * (found**2).sum()).sqrt())
        assert correlation > least
        assert slope == pytest.approx(1, abs=0.06)
    # the groups' sum is the same specimen through a positive, even filter
    matched = filtered(groups.sum(0))[centre]
    assert float((matched * true).sum() / ((matched**2).sum() * (true**2).sum()).sqrt()) > 0.3


@pytest.mark.parametrize(
    ("shape", "periodic", "upsample"),
    [((24, 20), True, 4), ((17, 23), True, 3), ((15, 21), False, 4), ((16, 12), False, 1), ((16, 12), True, 1)],
)
def test_the_linear_images_in_it_are_those_of_fuse_linear(shape, periodic, upsample):
    rng = np.random.default_rng(1)
    views = vacuum(shape, dose=50.0, C10=-900.0, periodic=periodic, rng=2)
    bump = 1 + 0.2 * rng.normal(size=shape)  # any counts will do, but let there be something in them
    views = views.copy(data=np.rint(views.values * bump.clip(0.1)))
    grouped, field = fused(views)
    for image, prior in ((field.ring, "ring"), (field.local, "local")):
        expected = misr.fuse_linear(views, upsample=upsample, prior=prior).phase.values
        found = image_on_scan(field.in_rad(image), plan=grouped.plan, upsample=upsample)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


def test_a_plan_gives_the_same_and_is_checked():
    views = vacuum(dose=300.0)
    plan = misr.plan_fusion(views)
    _, field = fused(views)
    _, planned = fused(views, plan=plan)
    torch.testing.assert_close(planned.ring, field.ring, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(planned.noise.log(), field.noise.log(), atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="plan was made for other views"):
        measure_in_groups(vacuum((16, 16)), 6, plan=plan)


def test_dask_views_give_the_same_groups():
    views = vacuum(dose=30.0)
    grouped, _ = fused(views)
    lazy, _ = fused(views.chunk(scan_y=5))
    for one, other in zip(grouped.vectors, lazy.vectors, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("number", [1, 5, 80, 1000])
def test_groups_hold_each_view_once_and_lie_side_by_side(number):
    views = vacuum(dose=10.0)
    ordered, parts, tilts = in_groups(views, number)
    assert len(parts) == len(tilts) == min(number, views.sizes["view"])
    assert sorted(ordered["view"].values.tolist()) == sorted(views["view"].values.tolist())
    assert [part.start for part in parts] == [0, *[part.stop for part in parts[:-1]]]
    assert parts[-1].stop == views.sizes["view"]
    assert np.hypot(*tilts.T).max() < 1
    for part, tilt in zip(parts, tilts, strict=True):
        assert ordered["det_y"].values[part].mean() / 10 == pytest.approx(tilt[0], abs=1e-12)
        spread = np.hypot(ordered["det_y"][part] - 10 * tilt[0], ordered["det_x"][part] - 10 * tilt[1]).max()
        assert spread < 2.2 * 10 / math.sqrt(len(parts)) + 2


def test_tilts_are_in_the_scans_frame():
    views = vacuum(dose=10.0)
    views.attrs["rotation_deg"] = 90.0
    _, _, turned = in_groups(views, 6)
    views.attrs["rotation_deg"] = 0.0
    _, _, tilts = in_groups(views, 6)
    np.testing.assert_allclose(turned, np.stack(misr.optics.rotate(*tilts.T, 90.0), axis=1), atol=1e-12)


def test_no_electrons_is_an_error():
    views = vacuum(dose=10.0)
    with pytest.raises(ValueError, match="no electrons"):
        measure_in_groups(views.copy(data=np.zeros_like(views.values)), 4)
    holed = views.astype(float)
    holed[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        measure_in_groups(holed, 4)


def test_a_plane_of_another_size_keeps_its_values_at_each_frequency():
    def plane(size):
        y, x = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])
        return torch.exp(-4 * (y**2 + 0.5 * x**2)) + 0.1 * torch.cos(2 * torch.pi * y)

    for size in ((64, 96), (128, 48), (160, 160)):
        torch.testing.assert_close(plane_of_size(plane((96, 96)), (96, 96), size), plane(size), atol=9e-3, rtol=0)


def test_atoms_are_counted_in_amplitudes_that_oxygen_has():
    from abtem.parametrizations import LobatoParametrization

    q = np.linspace(0, 1.7, 40)
    factor = LobatoParametrization().projected_scattering_factor("O")(q**2)
    np.testing.assert_allclose(atom_amplitude(torch.as_tensor(q)).numpy(), factor / factor[0], rtol=0.05)
