"""The held geometry, streaming, and the options of the linear fusion: each against a slower or independent way."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from phase_object import at_dose, atoms_phase, phase_object_cube

import misr
from misr.fusion import compiled_waves
from misr.fusion.geometry import folds, view_geometry
from misr.fusion.kernels import from_plane, full_plane
from misr.fusion.overlap import Overlaps, Specimen
from misr.fusion.plan import measure
from misr.fusion.stream import computed_views, held_stack
from misr.fusion.workspace import Workspace
from misr.optics import aperture_fraction, overlap_function, pixel_width

pytestmark = [
    pytest.mark.filterwarnings("ignore:the counts scatter:UserWarning"),
    pytest.mark.filterwarnings("ignore:upsample=:UserWarning"),  # few and coarse detector pixels
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def views(make_views):
    """96 × 96 Å at 2 Å, 1000 e/Å²."""
    return make_views("atoms", det_bin=4, dose=1e3, rng=0)[0]


@pytest.fixture(scope="module")
def cropped(make_scan):
    """Not periodic, rotated, astigmatic."""
    cube, _ = make_scan("atoms", det_bin=4, C12=60.0, phi12=0.4)
    counted = at_dose(cube, 1e3, rng=1).isel(scan_y=slice(2, 20), scan_x=slice(1, 18))
    counted.attrs.pop("period_A")
    return counted


# --- overlap functions -----------------------------------------------------------------------------------------------


def by_formula(geometry, specimen, q_y, q_x):
    """Γ per expected electron of each view, pixel by pixel, from `misr.optics.overlap_function` in double precision."""
    edges = geometry.pixel_edges
    width = pixel_width(geometry.pixel_y, geometry.pixel_x, pixel_edges=edges)
    inside = aperture_fraction(geometry.pixel_y, geometry.pixel_x, cutoff=geometry.cutoff, width=width)
    share = np.bincount(geometry.pixel_view, weights=inside, minlength=geometry.n_views)
    found = []
    for angle in specimen.channels:
        re, im = overlap_function(
            geometry.pixel_y[None],
            geometry.pixel_x[None],
            q_y[:, None],
            q_x[:, None],
            aberrations=geometry.aberrations,
            wavelength=geometry.wavelength,
            cutoff=geometry.cutoff,
            pixel_edges=edges,
            absorption_rad=angle,
            focal_spread_A=specimen.focal_spread_A,
        )
        grouped = np.zeros((len(q_y), geometry.n_views), complex)
        np.add.at(grouped, (slice(None), geometry.pixel_view), re + 1j * im)
        blur = np.exp(-2 * (math.pi * specimen.source_size_A) ** 2 * (q_y**2 + q_x**2))[:, None]
        found.append(grouped / share * blur)
    return np.stack(found, axis=1)


SPECIMENS = [
    Specimen(),
    Specimen(absorption_rad=0.4, source_size_A=0.6),
    Specimen(amplitude=True, focal_spread_A=60.0),
]


@pytest.mark.parametrize("n_views", [None, 30])
@pytest.mark.parametrize("specimen", SPECIMENS)
@pytest.mark.parametrize(
    "aberrations",
    [{"C10": -1500.0, "C12": 80.0, "phi12": 0.3}, {"C10": 800.0, "C21": 9e3, "phi21": 0.2, "C30": 5e6}],
)
def test_overlaps_are_those_of_the_formula(make_scan, aberrations, specimen, n_views):
    cube = misr.with_aberrations(make_scan("atoms", pixels=64, det_bin=4)[0], aberrations, rotation_deg=33.0)
    geometry = view_geometry(misr.synthesize_views(cube, n_views=n_views))
    q = np.random.default_rng(0).uniform(-0.8, 0.8, (40, 2))
    overlaps = Overlaps(geometry, specimen, device=CPU)
    found = overlaps(*torch.as_tensor(q.T, dtype=torch.float32), slice(0, None)).numpy()
    expected = by_formula(geometry, specimen, *q.T)
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)
    some = overlaps(*torch.as_tensor(q.T, dtype=torch.float32), slice(5, 12)).numpy()
    np.testing.assert_allclose(some, found[..., 5:12], atol=2e-5)


@pytest.mark.parametrize("n_views", [None, 30])
@pytest.mark.parametrize("specimen", [*SPECIMENS[:2], Specimen(amplitude=True)])
def test_the_compiled_loop_is_the_formula_too(make_scan, specimen, n_views):
    cube = misr.with_aberrations(make_scan("atoms", pixels=64, det_bin=4)[0], {"C10": -1500.0, "C12": 80.0})
    geometry = view_geometry(misr.synthesize_views(cube, n_views=n_views))
    q = np.random.default_rng(0).uniform(-0.8, 0.8, (40, 2))
    overlaps = Overlaps(geometry, specimen, device=CPU)
    some = np.arange(3, geometry.n_views - 2)
    patch = overlaps.patch(some, factor=np.linspace(0.5, 2, len(some)), compiled=True)
    assert patch.waves.is_compiled
    # 8 scan frequencies of 5 aliases each, in a larger array as in the sums
    rows = torch.full((8, 5 * len(specimen.channels) + 1, len(some)), np.nan, dtype=torch.complex64)
    table = overlaps.table(*(torch.as_tensor(part, dtype=torch.float32).reshape(8, 5) for part in q.T))
    overlaps.fill(rows[:, :-1], table, patch, work=Workspace(CPU))
    found = rows[:, :-1].reshape(8, -1, 5, len(some)).transpose(1, 2).flatten(0, 1).numpy()
    expected = by_formula(geometry, specimen, *q.T)[..., some] * np.linspace(0.5, 2, len(some))
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)
    assert bool(rows[:, -1].isnan().all())  # the rows between are not touched


@pytest.mark.parametrize("specimen", [Specimen(), Specimen(amplitude=True)])
@pytest.mark.parametrize("options", [{}, {"n_views": 40}])
def test_a_long_sum_is_compiled_and_comes_to_the_same(make_scan, monkeypatch, options, specimen):
    cube = at_dose(make_scan("atoms", det_bin=4)[0], 1e3, rng=0).isel(scan_y=slice(0, 20), scan_x=slice(0, 18))
    views = misr.synthesize_views(cube, **options)
    plan, usual = measure(views, specimen=specimen)
    calls = []
    add_tile = compiled_waves.add_tile
    monkeypatch.setattr(compiled_waves, "add_tile", lambda *given: (calls.append(1), add_tile(*given)))
    monkeypatch.setattr("misr.fusion.statistic._WORTH_COMPILING", 0)
    # a tile ends within a row, and views come in several batches
    monkeypatch.setattr("misr.fusion.tile_sums._COLUMNS", 7)
    monkeypatch.setattr("misr.fusion.statistic._BATCH_BYTES", 1 << 20)
    again, compiled = measure(views, specimen=specimen)
    _, planned = measure(views, plan=again)
    assert calls
    assert_near(again.matrix, plan.matrix)
    for found in (compiled, planned):
        assert_near(found.vector, usual.vector)
        assert_near(found.energy, usual.energy)
    assert found.electrons == pytest.approx(usual.electrons)


def assert_near(found, expected, *, of_largest=1e-5):
    assert float((found - expected).abs().max()) < of_largest * float(expected.abs().max())


def test_a_compiled_loop_that_cannot_be_kept_is_compiled_all_the_same(monkeypatch):
    njit = compiled_waves.numba.njit

    def read_only(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(compiled_waves.numba, "njit", read_only)
    assert compiled_waves._compiled(lambda x: x + 1)(2) == 3


def test_what_cannot_be_compiled_is_not(make_scan):
    cube = misr.with_aberrations(make_scan("atoms", pixels=64, det_bin=4)[0], {"C10": -1500.0})
    views = misr.synthesize_views(cube)
    step = views.attrs["detector_step_mrad"]
    blurred = Overlaps(view_geometry(views), Specimen(focal_spread_A=40.0), device=CPU)
    oblong = Overlaps(
        view_geometry(views.assign_attrs(detector_step_mrad=(step[0], 1.2 * step[1]))), Specimen(), device=CPU
    )
    for overlaps in (blurred, oblong):
        assert not overlaps.patch(np.arange(9), compiled=True).waves.is_compiled


def test_planes_and_their_inverse(views):
    plan = misr.plan_fusion(views)
    values = torch.randn(plan.freq.y.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    plane = full_plane(values, grid=plan.grid, freq=plan.freq)
    torch.testing.assert_close(from_plane(plane, grid=plan.grid, freq=plan.freq), values)


# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"amplitude": True}, {"absorption_rad": 0.3, "source_size_A": 0.5}])
def test_a_plan_changes_nothing(views, options):
    plan = misr.plan_fusion(views, **options)
    fresh = misr.fuse_linear(views, **options)
    assert plan.upsample == fresh.attrs["upsample"]
    xr.testing.assert_allclose(misr.fuse_linear(views, plan=plan), fresh, rtol=1e-4, atol=1e-6)


def test_a_plan_serves_other_electrons(views):
    plan = misr.plan_fusion(views)
    half = misr.thin_counts(views, 0.5, rng=0)
    own, held = misr.fuse_linear(half, upsample=plan.upsample), misr.fuse_linear(half, plan=plan)
    # the shares of the electrons differ by their noise
    assert float(np.corrcoef(own.phase.values.ravel(), held.phase.values.ravel())[0, 1]) > 0.999
    assert held.phase.shape == misr.fuse_linear(views, plan=plan).phase.shape


def test_a_plan_is_for_its_views(views, cropped):
    plan = misr.plan_fusion(views)
    with pytest.raises(ValueError, match="shape"):
        misr.fuse_linear(views.isel(scan_y=slice(4, None)), plan=plan)
    with pytest.raises(ValueError, match="aberrations differ"):
        misr.fuse_linear(views.assign_attrs(C10_A=-1400.0), plan=plan)
    with pytest.raises(ValueError, match="plan_fusion"):
        misr.fuse_linear(misr.synthesize_views(cropped), plan=plan)
    with pytest.raises(ValueError, match="give it to plan_fusion"):
        misr.fuse_linear(views, plan=plan, amplitude=True)


def test_a_plan_can_be_sent_elsewhere(views):
    plan = pickle.loads(pickle.dumps(misr.plan_fusion(views)))
    assert plan.n_views == views.sizes["view"]
    xr.testing.assert_allclose(misr.fuse_linear(views, plan=plan), misr.fuse_linear(views), rtol=1e-4, atol=1e-6)
    assert "aliases" in repr(plan)


def test_views_in_batches(views, monkeypatch):
    whole = misr.fuse_linear(views)
    monkeypatch.setattr("misr.fusion.statistic._BATCH_BYTES", 1 << 18)
    xr.testing.assert_allclose(misr.fuse_linear(views), whole, rtol=1e-4, atol=1e-6)


# --- streaming -------------------------------------------------------------------------------------------------------


def test_lazy_views_are_read_once(cropped):
    rows_read = []

    def record(block, block_info=None):
        rows_read.append(block_info[0]["array-location"][0])
        return block

    eager = misr.fuse_linear(misr.synthesize_views(cropped), upsample=3)
    lazy = misr.synthesize_views(cropped.chunk(scan_y=4))
    found = misr.fuse_linear(lazy, upsample=3)
    xr.testing.assert_allclose(found, eager, rtol=1e-5)
    data = cropped.chunk(scan_y=4).data.map_blocks(record, dtype=cropped.dtype, meta=np.empty((0,) * 4, cropped.dtype))
    synthesised = misr.synthesize_views(cropped.copy(data=data))
    before = len(rows_read)
    misr.fuse_linear(synthesised, upsample=3)
    assert len(rows_read) - before == 5


def test_counts_are_held_in_the_smallest_integers():
    counts = np.zeros((3, 8, 4), np.uint16)
    counts[1, 6, 2] = 300
    lazy = xr.DataArray(counts, dims=("view", "scan_y", "scan_x")).chunk(scan_y=2)
    with held_stack(lazy.clip(max=255)) as (stack, per_position):
        assert stack.dtype == np.uint8
        assert per_position.sum() == 255
    held = computed_views(lazy)
    assert held.dtype == np.uint16
    np.testing.assert_array_equal(held, counts)


def test_large_views_go_to_a_file(cropped, monkeypatch):
    lazy = misr.synthesize_views(cropped.chunk(scan_y=4))
    expected = misr.fuse_linear(lazy, upsample=3)
    monkeypatch.setattr("misr.fusion.stream.HELD_BYTES", 1000)
    with held_stack(lazy) as (stack, _):
        assert type(stack).__module__.startswith("zarr")
    xr.testing.assert_allclose(misr.fuse_linear(lazy, upsample=3), expected, rtol=1e-5)


def test_negative_lazy_counts_are_refused():
    counts = xr.DataArray(np.full((2, 4, 4), -1, np.int16), dims=("view", "scan_y", "scan_x")).chunk(scan_y=2)
    with pytest.raises(ValueError, match="negative counts"), held_stack(counts):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_distributed_workers_give_the_same_image(cropped):
    from distributed import Client, LocalCluster

    views = misr.synthesize_views(cropped)
    expected = misr.fuse_linear(views, upsample=3)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        lazy = misr.synthesize_views(cropped.chunk(scan_y=4))
        found = misr.fuse_linear(lazy, upsample=3)
        plan = misr.plan_fusion(lazy, upsample=3)
        again = misr.fuse_linear(lazy, plan=plan)
    for one in (found, again):
        np.testing.assert_allclose(one.phase, expected.phase, atol=1e-5 * float(abs(expected.phase).max()))


# --- absorption ------------------------------------------------------------------------------------------------------


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.fixture(scope="module")
def absorbing():
    """Counts of an object ``exp(iφ - μ)`` whose φ and μ have nothing to do with each other, and the two."""
    phase, loss = (atoms_phase((96, 96), 0.5, rng=seed, strength=0.04) for seed in (1, 2))
    cube, _ = phase_object_cube(phase + 1j * loss, 0.5, aberrations={"C10": -600.0}, det_bin=2)
    return misr.synthesize_views(at_dose(cube, 1e5, rng=0)), phase, loss


def test_amplitude_is_a_channel_of_its_own(absorbing):
    views, phase, loss = absorbing
    found = misr.fuse_linear(views, amplitude=True, upsample=4)
    assert set(found) >= {"phase", "absorption", "absorption_std", "absorption_noise_std", "absorption_transfer"}
    assert found.absorption.attrs["units"] == "1"
    # the mean absorption is no contrast
    assert correlation(found.phase, phase) > 0.85
    assert correlation(found.absorption, loss) > 0.85
    assert abs(correlation(found.phase, loss)) < 0.1
    assert abs(correlation(found.absorption, phase)) < 0.1
    slope = (found.absorption.values * loss).sum() / (loss**2).sum()
    assert 0.6 < slope < 1.05  # shrunk, of the right sign
    alone = misr.fuse_linear(views, upsample=4)
    assert correlation(alone.phase, phase) < correlation(found.phase, phase)
    assert found.attrs["chi2"] < alone.attrs["chi2"]


@pytest.mark.parametrize("angle", [-0.5, 0.7])
def test_absorption_tied_to_the_phase(angle):
    phase = atoms_phase((96, 96), 0.5, rng=1, strength=0.04)
    cube, _ = phase_object_cube(phase * np.exp(1j * angle), 0.5, aberrations={"C10": -600.0}, det_bin=2)
    views = misr.synthesize_views(at_dose(cube, 3e4, rng=0))
    found = {at: misr.fuse_linear(views, absorption_rad=at, upsample=4) for at in (angle, 0.0, -angle)}
    err = {at: float(np.sqrt(((one.phase - phase) ** 2).mean())) for at, one in found.items()}
    assert err[angle] < err[0.0] < err[-angle]
    assert found[angle].attrs["chi2"] == pytest.approx(1.0, abs=0.02)
    assert found[angle].attrs["absorption_rad"] == angle
    # the free channel finds the same without being told, and pays with noise
    free = misr.fuse_linear(views, amplitude=True, upsample=4)
    assert err[angle] < float(np.sqrt(((free.phase / math.cos(angle) - phase) ** 2).mean()))


def test_blurs_are_undone():
    """A source image of 0.5 Å: not told of it the phase comes out weak, told it comes out as without."""
    phase = atoms_phase((96, 96), 0.5, rng=1, strength=0.04)
    sharp, _ = phase_object_cube(phase, 0.5, every=(1, 1), aberrations={"C10": -600.0}, det_bin=4)
    q = np.hypot(*np.meshgrid(np.fft.fftfreq(96, 0.5), np.fft.fftfreq(96, 0.5)))
    envelope = np.exp(-2 * (np.pi * 0.5 * q) ** 2)[..., None, None]
    blurred = sharp.copy(data=np.fft.ifft2(np.fft.fft2(sharp.values, axes=(0, 1)) * envelope, axes=(0, 1)).real)
    high = (q > 0.3) & (q < 0.5)

    def slope(cube, source_size_A):
        scan = at_dose(cube.isel(scan_y=slice(None, None, 4), scan_x=slice(None, None, 4)), 1e8)
        image = misr.fuse_linear(misr.synthesize_views(scan), source_size_A=source_size_A, upsample=4).phase
        a, b = np.fft.fft2(image.values)[high], np.fft.fft2(phase)[high]
        return float((a * b.conj()).real.sum() / (abs(b) ** 2).sum())

    assert slope(blurred, 0.5) == pytest.approx(slope(sharp, 0.0), rel=0.03)
    assert slope(blurred, 0.0) < 0.6 * slope(sharp, 0.0)


def test_a_model_that_does_not_hold_is_named(make_scan):
    cube, _ = make_scan("atoms", strength=0.6)
    views = misr.synthesize_views(at_dose(cube, 1e4, rng=0))
    with pytest.warns(UserWarning, match=r"times the counting noise unexplained.*amplitude=True"):
        misr.fuse_linear(views)


# --- upsampling ------------------------------------------------------------------------------------------------------


def test_auto_shows_what_the_dose_fills(make_views):
    shown = {dose: misr.fuse_linear(make_views("atoms", dose=dose, rng=0)[0]) for dose in (30.0, 1e4)}
    assert shown[30.0].attrs["upsample"] < shown[1e4].attrs["upsample"] == 4
    # nothing is lost: the same image with more pixels holds no more
    full = misr.fuse_linear(make_views("atoms", dose=30.0, rng=0)[0], upsample=4).phase
    assert float(shown[30.0].phase.var()) == pytest.approx(float(full.var()), rel=0.02)


@pytest.mark.parametrize("upsample", [1, 2, 3, 6])
def test_any_upsampling_is_the_same_image(views, upsample):
    full = misr.fuse_linear(views, upsample=12).phase
    image = misr.fuse_linear(views, upsample=upsample).phase
    every = 12 // upsample
    limit = 0.5 * upsample / 2.0
    spectrum = np.fft.fft2(full.values)
    q_y, q_x = (np.fft.fftfreq(n, 2.0 / 12) for n in full.shape)
    spectrum[(abs(q_y) >= limit * 0.999)[:, None] | (abs(q_x) >= limit * 0.999)[None]] = 0
    cut = np.fft.ifft2(spectrum).real[::every, ::every]
    assert np.corrcoef(cut.ravel(), image.values.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(image.x, full.x[::every])


@pytest.mark.parametrize(
    ("n_views", "C10", "words"),
    [(9, -1500.0, "gather more views"), (None, -20.0, "defocus more"), (None, -60000.0, "finer detector")],
)
def test_aliases_that_cannot_be_unfolded(make_scan, n_views, C10, words):
    cube = misr.with_aberrations(make_scan("atoms", pixels=64, det_bin=4)[0], {"C10": C10})
    views = misr.synthesize_views(at_dose(cube, 1e3, rng=0), n_views=n_views)
    with pytest.warns(UserWarning, match=words):
        misr.fuse_linear(views, upsample=4)


def test_no_warning_where_aliases_can_be_unfolded(views, recwarn):
    misr.fuse_linear(views, upsample=4)
    assert not [warning for warning in recwarn if "cannot be told apart" in str(warning.message)]


def test_folds_reach_the_band_limit(views):
    assert folds(view_geometry(views), (2.0, 2.0)) == 4
    assert folds(view_geometry(views), (4.0, 4.0)) == 8


# --- methods and companions ------------------------------------------------------------------------------------------


def test_noise_std_is_the_scatter_over_draws(make_scan):
    """Counting noise of the image, frequency by frequency, against 24 draws of the electrons with one prior."""
    cube, _ = make_scan("atoms", pixels=128, det_bin=4)
    expected = misr.synthesize_views(cube, n_views=60)
    plan = misr.plan_fusion(misr.apply_dose(expected, 300.0, rng=99), upsample=4)
    draws = [misr.fuse_linear(misr.apply_dose(expected, 300.0, rng=i), plan=plan) for i in range(24)]
    area = 128 * 0.5 * 128 * 0.5
    spectra = np.stack([np.fft.fftshift(np.fft.fft2(one.phase.values, norm="forward")) for one in draws])
    scatter = spectra.var(axis=0, ddof=1) * area
    stated = np.mean([one.noise_std.values**2 for one in draws], axis=0)
    seen = stated > 0.01 * stated.max()
    assert float(scatter[seen].sum() / stated[seen].sum()) == pytest.approx(1.0, abs=0.08)
    # ring by ring too
    q = np.hypot(*np.meshgrid(draws[0].frequency_y, draws[0].frequency_x, indexing="ij"))
    for low in (0.1, 0.2, 0.3, 0.4):
        ring = seen & (q > low) & (q <= low + 0.1)
        assert float(scatter[ring].sum() / stated[ring].sum()) == pytest.approx(1.0, abs=0.2)


def test_transfer_is_the_share_of_the_truth_in_the_image(make_views):
    """One draw's noise is worth 0.05 of slope."""
    excess = {0.05: [], 0.15: [], 0.25: []}
    for seed in range(4):
        views, truth = make_views("atoms", dose=300.0, rng=seed)
        image = misr.fuse_linear(views, upsample=4)
        found, true = (np.fft.fftshift(np.fft.fft2(x.values)) for x in (image.phase, truth))
        q = np.hypot(*np.meshgrid(image.frequency_y, image.frequency_x, indexing="ij"))
        for low, gathered in excess.items():
            ring = (q > low) & (q <= low + 0.1)
            power = abs(true[ring]) ** 2
            slope = (found[ring] * true[ring].conj()).real.sum() / power.sum()
            gathered.append(float(slope - (image.transfer.values[ring] * power).sum() / power.sum()))
    assert {low: np.mean(gathered) for low, gathered in excess.items()} == pytest.approx(
        dict.fromkeys(excess, 0.0), abs=0.05
    )
    assert image.transfer.attrs["units"] == "1"
    assert float(image.transfer.min()) >= 0
    assert float(image.transfer.max()) <= 1


def test_noise_of_the_field_does_not_depend_on_margins(make_scan):
    """`noise_std` of a scan with faded margins is that of the same scan taken as periodic."""
    cube, _ = make_scan("atoms", C10=-300.0)  # shifts far smaller than the field
    counted = at_dose(cube, 300.0, rng=0)
    alone = counted.copy()
    alone.attrs.pop("period_A")
    found = [
        float(
            (misr.fuse_linear(misr.synthesize_views(one), upsample=4).noise_std ** 2).integrate(
                ["frequency_y", "frequency_x"]
            )
        )
        for one in (counted, alone)
    ]
    assert found[1] == pytest.approx(found[0], rel=0.15)


def test_optimum_bright_field(make_views):
    views, truth = make_views("atoms", dose=1e3, rng=0)
    found = misr.fuse_linear(views, method="obf")
    assert set(found) == {"contrast"}
    assert found.contrast.attrs["units"] == "1"
    frc = misr.fourier_ring_correlation(found.contrast, truth, window=None, ring_width=0.05)
    joint = misr.fourier_ring_correlation(
        misr.fuse_linear(views, upsample=4).phase, truth, window=None, ring_width=0.05
    )
    assert float(frc.sel(frequency=slice(0.05, 0.2)).mean()) > 0.7
    # the aliases that it leaves folded are noise to it
    assert float(joint.sel(frequency=slice(0.3, 0.6)).mean()) > float(frc.sel(frequency=slice(0.3, 0.6)).mean())


def test_optimum_bright_field_has_white_noise_of_unit_deviation(disk_cube):
    flat = disk_cube(0.5, shape=(24, 24), aberrations={"C10": -1000.0})
    found = misr.fuse_linear(misr.synthesize_views(misr.apply_dose(flat, 100.0, rng=0)), method="obf")
    assert float(found.contrast.std()) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("upsample", [1, 2, 4])
def test_its_noise_is_of_unit_deviation_in_a_cropped_field_and_at_any_pixel(disk_cube, upsample):
    flat = disk_cube(0.5, shape=(24, 24), aberrations={"C10": -600.0})
    flat.attrs.pop("period_A", None)
    views = misr.synthesize_views(misr.apply_dose(flat, 100.0, rng=0))
    found = misr.fuse_linear(views, method="obf", upsample=upsample)
    assert float(found.contrast.std()) == pytest.approx(1.0, rel=0.1)


def test_enormous_counts_of_few_views(make_scan):
    cube, _ = make_scan("atoms", pixels=64, det_bin=4)
    views = misr.synthesize_views(at_dose(cube, 1e9), n_views=9)
    assert np.isfinite(misr.fuse_linear(views, upsample=4).phase).all()


def test_chi2_counts_what_was_fitted(make_scan):
    cube, _ = make_scan("atoms", pixels=96, det_bin=4)
    views = misr.synthesize_views(at_dose(cube, 1e3, rng=0), n_views=20)
    assert misr.fuse_linear(views, upsample=4).attrs["chi2"] == pytest.approx(1.0, abs=0.04)


def test_more_aliases_than_memory_are_cut(make_scan, monkeypatch):
    views = misr.synthesize_views(at_dose(make_scan("atoms", pixels=64, det_bin=4)[0], 1e3, rng=0))
    monkeypatch.setattr("misr.fusion.plan._MATRIX_BYTES", 100_000)
    with pytest.warns(UserWarning, match="smaller step, or crop"):
        plan = misr.plan_fusion(views)
    assert plan.folds < 4


def test_the_sum_is_shift_and_add(views):
    found = misr.fuse_linear(views, method="sum", upsample=4)
    assert found.phase.equals(misr.shift_and_add(views, upsample=4).rename("phase"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "best"}, "method='best'"),
        ({"prior": "global"}, "prior='global'"),
        ({"method": "obf", "prior": "local"}, "belongs to"),
        ({"method": "obf", "amplitude": True}, "needs method='wiener'"),
        ({"method": "sum", "source_size_A": 0.5}, "leave them out"),
        ({"absorption_rad": 2.0}, "between"),
        ({"absorption_rad": 0.2, "amplitude": True}, "give one"),
        ({"source_size_A": -1.0}, "source_size_A=-1.0"),
        ({"focal_spread_A": math.nan}, "focal_spread_A=nan"),
    ],
)
def test_bad_options(views, options, words):
    with pytest.raises(ValueError, match=words):
        misr.fuse_linear(views, **options)
