"""`fuse_cnn` with a network of random weights: labels, invariance, tiles, and answers to wrong use."""

import itertools
import pickle

import numpy as np
import pytest
import torch

import misr
from misr.cube import cube_history
from misr.fusion import random_scans
from misr.fusion.cnn import fuse_cnn
from misr.fusion.linear import solved
from misr.fusion.natural import natural_field, natural_groups
from misr.fusion.network import FusionNetwork, NetworkSettings
from misr.fusion.tiles import _fade, _spans, network_images
from misr.fusion.view_groups import measure_in_groups
from misr.fusion.weights import load_network, save_network

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:upsample=:UserWarning"),
]  # of fuse_linear, compared with
LENS = {"C10": -800.0, "C12": 50.0, "phi12": 0.3}


def scan(shape=(18, 14), *, dose=50.0, periodic=False, rng=0, **labels):
    """Views of a lattice in Poisson counts; the contrast is no lens's, but an image comes of it."""
    k = np.arange(14) - 6.5
    disk = (np.hypot(k[:, None], k) < 5.02) * 1.0
    y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    contrast = 1 + 0.3 * np.cos(2 * np.pi * y / 6)[..., None, None] * np.cos(2 * np.pi * x / 7)[..., None, None]
    counts = np.random.default_rng(rng).poisson(disk / disk.sum() * dose * 4 * contrast)
    options = {
        "scan_step_A": 2.0, "det_step_mrad": 2.0, "energy_eV": 300e3, "semiangle_mrad": 10.0,
        "dose_e_per_A2": dose, "aberrations": LENS,
    }  # fmt: skip
    cube = misr.cube_from_array(counts, **(options | labels))
    if periodic:
        cube.attrs["period_A"] = [float(n * s) for n, s in zip(shape, misr.cube.scan_step(cube), strict=True)]
    return misr.synthesize_views(cube)


def random_network(seed=0, width=16):
    torch.manual_seed(seed)
    network = FusionNetwork(NetworkSettings(width=width)).eval()
    with torch.no_grad():
        for values in network.parameters():
            values.add_(0.03 * torch.randn(values.shape))
    return network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_network(random_network(), tmp_path_factory.mktemp("network") / "random.safetensors")


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("upsample", [1, 3, "auto"])
def test_images_are_labelled_on_the_scanned_field(model, periodic, upsample):
    views = scan(periodic=periodic)
    fused = fuse_cnn(views, model=model, upsample=upsample, n_groups=6)
    fine = 4 if upsample == "auto" else upsample
    assert set(fused.data_vars) == {"phase", "phase_std", "phase_linear"}
    for image in fused.data_vars.values():
        assert image.dims == ("y", "x")
        assert image.shape == (18 * fine, 14 * fine)
        assert image.dtype == np.float32
        assert image.attrs["units"] == "rad"
        np.testing.assert_allclose(image.y[:2], [0, 2 / fine])
        assert image.x.attrs["units"] == "Å"
        assert bool(np.isfinite(image).all())
    assert bool((fused.phase_std > 0).all())
    assert float(fused.phase_std.std()) > 0
    assert 0 <= fused.attrs["prior_share"] <= 1
    assert fused.attrs["chi2"] == pytest.approx(1, abs=0.3)
    last = cube_history(fused)[-1]
    assert last["operation"] == "fuse_cnn"
    assert last["model"] == "random.safetensors"
    assert last["n_groups"] == 6
    expected = misr.fuse_linear(views, upsample=fine).phase
    np.testing.assert_allclose(fused.phase_linear, expected, atol=5e-3 * float(abs(expected).max()))


def test_order_of_views_and_being_lazy_do_not_matter(model):
    views = scan()
    fused = fuse_cnn(views, model=model)
    order = np.random.default_rng(4).permutation(views.sizes["view"])
    scale = float(abs(fused.phase).max())
    for other in (views.isel(view=order), views.chunk(scan_y=4, view=-1)):
        again = fuse_cnn(other, model=model)
        for name in fused:
            assert float(abs(again[name] - fused[name]).max()) < 1e-5 * max(scale, 1)


def test_the_same_twice(model):
    views = scan()
    assert fuse_cnn(views, model=model).identical(fuse_cnn(views, model=model))


def test_a_plan_gives_the_same_and_must_fit(model):
    views = scan()
    plan = misr.plan_fusion(views)
    free, planned = fuse_cnn(views, model=model), fuse_cnn(views, model=model, plan=plan)
    np.testing.assert_allclose(planned.phase, free.phase, atol=2e-3 * float(abs(free.phase).max()))
    with pytest.raises(ValueError, match="plan was made for other views"):
        fuse_cnn(scan((16, 16)), model=model, plan=plan)


@pytest.mark.parametrize("number", [1, 3, 1000])
def test_any_number_of_views_and_groups(model, number):
    views = scan()
    fused = fuse_cnn(views, model=model, n_groups=number)
    assert cube_history(fused)[-1]["n_groups"] == min(number, views.sizes["view"])
    k = np.hypot(views.det_y, views.det_x)
    few = fuse_cnn(views.isel(view=np.argsort(k.values)[: 9 * number]), model=model)
    assert bool(np.isfinite(few.phase).all())


@pytest.mark.parametrize("periodic", [False, True])
def test_tiles_make_the_image_of_the_whole_field(periodic):
    views = scan((34, 36), periodic=periodic)
    grouped = measure_in_groups(views, 4)
    field = natural_field(grouped.plan, solved(grouped.plan, grouped.statistic, local=True))
    assert min(field.ring.shape) >= 152
    groups = 2 * natural_groups(grouped.plan, grouped.vectors, grouped.statistic)
    # a network as training begins: global attention and statistics of the field are no matter of tiles
    torch.manual_seed(0)
    network = FusionNetwork(NetworkSettings(width=16))
    whole, tiled = (network_images(network, field, groups, grouped.tilts, tile=tile) for tile in (512, 128))
    inside = field.inside
    error = (tiled.phase - whole.phase)[inside]
    assert float(error.std()) < 0.06 * float(whole.phase[inside].std())
    assert tiled.prior_share == pytest.approx(whole.prior_share, abs=0.03)
    # no seam: the error is nowhere far larger than elsewhere
    assert float(error.abs().max()) < 0.08 * float(whole.phase[inside].abs().max())
    torch.testing.assert_close(tiled.phase_std, whole.phase_std)


def test_tiles_have_no_level_of_their_own():
    views = scan((34, 36), periodic=True)
    grouped = measure_in_groups(views, 4)
    field = natural_field(grouped.plan, solved(grouped.plan, grouped.statistic, local=True))
    groups = natural_groups(grouped.plan, grouped.vectors, grouped.statistic)
    images = []
    for offset in (0.0, 5.0):
        network = random_network()
        with torch.no_grad():
            network.leave.bias[:4] += offset  # a constant on the image
        images.append(network_images(network, field, groups, grouped.tilts, tile=128).phase)
    assert float((images[1] - images[0]).abs().max()) < 0.02 * float(images[0].abs().max())


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize(("length", "tile"), [(64, 512), (160, 128), (520, 512), (1000, 256), (72, 64), (200, 100)])
def test_tiles_cover_an_axis_and_overlap(length, tile, wraps):
    spans = _spans(length, tile, wraps=wraps)
    seen, weight = np.zeros(length), np.zeros(length)
    for span in spans:
        assert len(span) % 8 == 0
        assert len(span) <= max(tile, 8)
        assert len(set(span.tolist())) == len(span)
        seen[span] += 1
        weight[span] += _fade(len(span)).numpy()
    assert seen.min() > 0
    if len(spans) == 1:
        assert spans[0].tolist() == list(range(length))
        return
    # where a tile ends, another is well inside
    assert weight[8:-8].min() > 5
    assert (weight.min() > 5) == wraps
    assert all(len(set(first.tolist()) & set(second.tolist())) >= 8 for first, second in itertools.pairwise(spans))


def test_nothing_is_shown_beyond_the_band_limit(model):
    views = scan(periodic=True)
    fused = fuse_cnn(views, model=model, upsample=6)
    power = np.abs(np.fft.fft2(fused.phase.values)) ** 2
    q = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, 2 / 6) for n in fused.phase.shape), indexing="ij"))
    cutoff = 10e-3 / misr.optics.electron_wavelength(300e3)
    assert power[q > 2 * cutoff].max() < 1e-9 * power.max()


def test_optics_outside_of_the_training_warn_and_say_by_how_much(model):
    with pytest.warns(UserWarning, match=r"scan step .* is a factor 3\.\d+ outside 0\.8 to 4\.5"):
        fuse_cnn(scan(scan_step_A=14.0, dose=5.0), model=model)
    with pytest.warns(UserWarning, match=r"defocus 0\.5\d* λ/α² is a factor 1\.9\d* outside"):
        fuse_cnn(scan(aberrations={"C10": 100.0}), model=model)
    with pytest.warns(UserWarning, match=r"dose 1 e/Å² is a factor 3 outside"):
        fuse_cnn(scan(dose=1.0), model=model)
    unlabelled = scan(dose=1.0)
    del unlabelled.attrs["dose_e_per_A2"]
    with pytest.warns(UserWarning, match=r"dose 1\.?\d* e/Å² is a factor 2\.\d+|dose .* is a factor 3"):
        fuse_cnn(unlabelled, model=model)


def test_optics_within_the_training_do_not_warn(model, recwarn):
    fuse_cnn(scan(), model=model)
    assert [str(warning.message) for warning in recwarn] == []


def test_microscopes_are_drawn_within_the_ranges_told():
    rng = np.random.default_rng(0)
    for _ in range(100):
        optics = random_scans.draw_conditions(rng)
        defocus = abs(optics.aberrations["C10"]) * (optics.semiangle_mrad * 1e-3) ** 2 / optics.wavelength
        values = {
            "ENERGIES": optics.energy_eV,
            "SEMIANGLES": optics.semiangle_mrad,
            "BANDS": 2 * optics.cutoff,
            "DEFOCI": defocus,
        }
        for name, value in values.items():
            low, high = getattr(random_scans, name)
            assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9), name


def test_groups_are_not_summed_for_a_network_that_does_not_look_at_them(tmp_path, monkeypatch):
    torch.manual_seed(0)
    blind = save_network(FusionNetwork(NetworkSettings(width=16, angular=False)), tmp_path / "blind.safetensors")
    views = scan()
    grouped = fuse_cnn(views, model=blind, plan=misr.plan_fusion(views))
    monkeypatch.setattr("misr.fusion.view_groups.group_sums", None)  # called, it would fail
    alone = fuse_cnn(views, model=blind)
    np.testing.assert_allclose(alone.phase, grouped.phase, atol=1e-4 * float(grouped.phase.std()))
    assert alone.attrs["n_groups"] == 1


@pytest.mark.parametrize("options", [{"n_groups": 0}, {"n_groups": True}, {"tile": 32}, {"upsample": 0}])
def test_bad_arguments(model, options):
    with pytest.raises(ValueError, match=str(next(iter(options)))):
        fuse_cnn(scan(), model=model, **options)


def test_views_without_electrons_or_labels(model):
    views = scan()
    with pytest.raises(ValueError, match="no electrons"):
        fuse_cnn(views.copy(data=np.zeros_like(views.values)), model=model)
    with pytest.raises(ValueError, match="lack"):
        fuse_cnn(views.drop_vars("pixels"), model=model)
    with pytest.raises(ValueError, match="aberrations"):
        fuse_cnn(scan(aberrations=None), model=model)
    with pytest.raises(ValueError, match="dims"):
        fuse_cnn(views.rename(view="group"), model=model)


def test_a_network_comes_back_from_its_file_as_it_was(model):
    network, again = random_network(), load_network(model)
    assert again.settings == network.settings
    for name, values in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], values)
    assert list(model.parent.iterdir()) == [model]


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("torch_file", [True, False])
def test_a_pickle_is_refused_and_not_run(tmp_path, torch_file):
    path = tmp_path / "trap.safetensors"
    if torch_file:
        torch.save({"trap": Trap()}, path)
    else:
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="no safetensors file"):
        load_network(path)


def test_unknown_and_foreign_models(tmp_path, model):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match=r"neither a \.safetensors file nor one of"):
        fuse_cnn(scan(), model="atomic")
    with pytest.raises(ValueError, match=r"neither a \.safetensors file"):
        load_network(tmp_path / "missing.safetensors")
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    with pytest.raises(ValueError, match="no safetensors file"):
        load_network(empty)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(ValueError, match="is not a 'misr fusion network 1'"):
        load_network(foreign)
    for settings in ('{"width": 16}', '{"width": 24, "colour": 3}', "{"):
        save_file({"weight": torch.zeros(3)}, foreign, {"format": "misr fusion network 1", "settings": settings})
        with pytest.raises(ValueError, match="another shape"):
            load_network(foreign)
