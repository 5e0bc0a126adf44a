"""The network: what it takes, what it must not depend on, and its exact parts against whole Fourier planes."""

import numpy as np
import pytest
import torch

from misr.fusion.losses import correlation_with_truth, defects_hidden, error_in_rad, image_loss, std_loss, unit_spectrum
from misr.fusion.natural import atom_amplitude
from misr.fusion.network import (
    Blend,
    FusionNetwork,
    NetworkInput,
    NetworkOutput,
    NetworkSettings,
    _image,
    _matched,
    bordered,
    even_plane,
    ring_power,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def some_input(shape=(32, 40), *, batch=2, groups=5, seed=0, noise=None):
    """Random images and a noise that rises with frequency."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])
    radius = torch.hypot(y, x) * 2.17
    level = 0.3 * torch.exp(4 * radius) if noise is None else torch.full_like(radius, noise)
    level = torch.where(radius < 1, level, 1e3).expand(batch, -1, -1)
    images = [torch.randn(batch, *shape, generator=draw) for _ in range(3)]
    return NetworkInput(
        *images, noise=level, radius=radius.expand(batch, -1, -1), atom=atom_amplitude(radius).expand(batch, -1, -1),
        scale=torch.full((batch,), 0.1), pixel=torch.full((batch,), 0.45),
        groups=torch.randn(batch, groups, *shape, generator=draw) if groups else None,
        tilts=torch.rand(batch, groups, 2, generator=draw) - 0.5 if groups else None,
    )  # fmt: skip


def random_network(seed=0, **settings):
    """All weights random, those too that training starts from 0."""
    torch.manual_seed(seed)
    network = FusionNetwork(NetworkSettings(**{"width": 16, **settings})).eval()
    with torch.no_grad():
        for values in network.parameters():
            values.add_(0.05 * torch.randn(values.shape))
    return network


def test_a_lonely_atom_is_found_by_the_matched_filter():
    given = some_input((64, 64), batch=1)
    noise = unit_spectrum(given.whitened)  # unit noise
    flat = _matched(noise * given.noise, given)
    assert float(flat.std()) == pytest.approx(1, abs=0.15)
    atom = torch.zeros(1, 64, 64)
    atom[0, 20, 33] = 1.0
    precision = torch.where(given.radius < 1, given.noise**-2, 0.0)
    strength = 8 / np.sqrt(float(_image(precision + 0j, atom)[0, 0, 0]) / 64)
    found = _matched(unit_spectrum(strength * atom) + noise * given.noise, given)
    assert int(found.argmax()) == 20 * 64 + 33
    assert float(found.max()) == pytest.approx(8, abs=3)  # standard deviations


@torch.no_grad()
def run(network, given):
    output = network(given)
    return output.image, output.log_std


def even_image_plane(shape, seed=0):
    """Power spectrum of a random real image: the whole plane, and its half."""
    whole = torch.fft.fft2(torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))).abs()
    return whole, whole[..., : shape[1] // 2 + 1]


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (32, 10)])
def test_even_plane_is_the_whole_plane(shape):
    whole, half = even_image_plane(shape)
    torch.testing.assert_close(even_plane(half, torch.Size(shape)), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("by", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (32, 10)])
def test_bordered_has_the_whole_planes_neighbours(shape, by):
    whole, half = even_image_plane(shape)
    found = bordered(half[:, None], by)[:, 0]
    columns = half.shape[-1]
    rows = torch.arange(-by, shape[0] + by) % shape[0]
    across = torch.arange(-by, columns + by) % shape[1]
    torch.testing.assert_close(found, whole[:, rows][:, :, across], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (24, 64), (64, 24)])
@pytest.mark.parametrize("groups", [0, 1, 3, 17])
def test_any_field_and_any_number_of_groups(shape, groups):
    image, log_std = run(random_network(), some_input(shape, batch=1, groups=groups))
    assert image.shape == log_std.shape == (1, *shape)
    assert bool(torch.isfinite(image).all() and torch.isfinite(log_std).all())


def test_order_of_groups_does_not_matter_but_their_content_does():
    network, given = random_network(), some_input()
    image, log_std = run(network, given)
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = NetworkInput(**{**given.__dict__, "groups": given.groups[:, order], "tilts": given.tilts[:, order]})
    again, log_again = run(network, turned)
    torch.testing.assert_close(again, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_again, log_std, atol=1e-5, rtol=0)
    mixed = NetworkInput(**{**given.__dict__, "tilts": given.tilts[:, order]})
    assert float((run(network, mixed)[0] - image).abs().max()) > 1e-4


@pytest.mark.parametrize("shift", [(8, 0), (-16, 24)])
def test_a_period_has_no_edge(shift):
    network, given = random_network(), some_input((32, 48), groups=3)
    image, log_std = run(network, given)
    moved = {name: getattr(given, name).roll(shift, (-2, -1)) for name in ("whitened", "ring", "local", "groups")}
    again, log_again = run(network, NetworkInput(**{**given.__dict__, **moved}))
    torch.testing.assert_close(again, image.roll(shift, (1, 2)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_again, log_std.roll(shift, (1, 2)), atol=1e-4, rtol=1e-4)


def test_examples_of_a_batch_do_not_see_each_other():
    network, given = random_network(), some_input(batch=3)
    together = run(network, given)[0]
    for index in range(3):
        alone = NetworkInput(**{name: values[index : index + 1] for name, values in given.__dict__.items()})
        torch.testing.assert_close(run(network, alone)[0], together[index : index + 1], atol=1e-4, rtol=1e-4)


def test_the_same_input_gives_the_same_image_bit_by_bit():
    network, given = random_network(), some_input()
    assert all(torch.equal(one, other) for one, other in zip(run(network, given), run(network, given), strict=True))


def test_without_noise_the_data_decide_and_without_data_the_network():
    network = random_network(returned=0.0)
    given = some_input(noise=1e-5, groups=4)
    image, _ = run(network, given)
    band = given.radius < 1
    difference = unit_spectrum(image) - unit_spectrum(given.whitened) * given.noise
    assert float(difference[band].abs().max()) < 1e-3 * float((unit_spectrum(image)[~band]).abs().max())

    loud = some_input(noise=1e5, groups=4)
    free = random_network(blend=False, returned=0.0)
    free.load_state_dict({name: value for name, value in network.state_dict().items() if "trust" not in name})
    torch.testing.assert_close(run(network, loud)[0], run(free, loud)[0], atol=2e-2, rtol=1e-3)
    high = loud.radius > 0.08
    assert float(network(loud).share.detach()[high].max()) < 1e-5
    assert not free(loud).share[high].any()


def test_what_the_data_hold_against_the_image_goes_back_into_it():
    given = some_input((64, 64), noise=2.0, groups=4)
    plain, network = random_network(returned=0.0), random_network(returned=0.5)
    with torch.no_grad():
        before, after = plain(given), network(given)
    torch.testing.assert_close(before.image, before.draft, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.draft, before.draft, atol=1e-5, rtol=1e-4)
    whitened = unit_spectrum(given.whitened)
    kept, data = unit_spectrum(after.draft), whitened * given.noise
    power = ring_power(whitened, given).clamp(max=0.5)
    expected = kept + (data - kept) * power / (power + given.noise**2)
    band = (given.radius > 0.08) & (given.radius < 1)  # the lowest are the linear image's
    torch.testing.assert_close(unit_spectrum(after.image)[band], expected[band], atol=1e-4, rtol=1e-3)
    assert float((unit_spectrum(after.image) - kept)[band].abs().max()) > 0.01
    assert bool((after.share >= before.share - 1e-6).all())


@pytest.mark.parametrize("noise", [0.05, 1.0, 30.0])
def test_noise_comes_back_with_bounded_strength(noise):
    """No frequency gets back more than the Wiener filter under the power allowed lets pass."""
    given = some_input((64, 64), noise=noise, groups=4)
    with torch.no_grad():
        made = random_network(returned=0.4)(given)
    back = (unit_spectrum(made.image) - unit_spectrum(made.draft)).abs()
    difference = (unit_spectrum(given.whitened) * given.noise - unit_spectrum(made.draft)).abs()
    most = 0.4 / (0.4 + given.noise**2)
    assert bool((back <= most * difference + 1e-4).all())


def test_the_lowest_frequencies_are_the_linear_images():
    network, loud = random_network(), some_input((64, 64), noise=1e3, groups=4)
    image, _ = run(network, loud)
    difference = (unit_spectrum(image) - unit_spectrum(loud.ring)).abs()
    lowest, high = loud.radius < 0.03, loud.radius > 0.1
    assert float(difference[lowest].max()) < 1e-3 < float(difference[high].max())
    assert bool((network(loud).share.detach()[lowest] > 1 - 1e-4).all())


def test_the_blend_trusts_less_the_louder_the_noise_and_nothing_beyond_the_band():
    blend = Blend()
    noise = torch.logspace(-3, 3, 400)[None, None]
    middle, sure = torch.full_like(noise, 0.5), torch.zeros_like(noise)
    share = blend(noise, middle, sure).detach()
    assert bool((share.diff() < 1e-6).all())
    assert float(share.min()) < 1e-5
    assert float(share.max()) > 1 - 1e-4
    assert not blend(noise, torch.full_like(noise, 1.0), sure).any()
    assert bool((blend(noise, middle, sure + 1) > share).all())  # the more the image is doubted
    torch.testing.assert_close(blend(noise, middle, sure + 1e3), blend(noise, middle, sure + 6))  # within bounds
    # twice the error power exp(-1.5): as loud as the noise where the share is a half
    half = torch.full((1, 1, 1), float(np.sqrt(2 * np.exp(-1.5))))
    assert float(blend(half, torch.zeros_like(half), torch.zeros_like(half)).detach()) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("power", [0.2, 5.0])
@pytest.mark.parametrize("spectral", [True, False])
def test_a_fresh_network_starts_from_the_image_under_the_ring_prior(power, spectral):
    given = some_input(noise=0.7)
    spectrum, noise = unit_spectrum(given.whitened), given.noise
    wiener = spectrum * noise * power / (power + noise**2)
    given.ring = torch.fft.irfft2(wiener, s=given.ring.shape[-2:], norm="ortho")
    torch.manual_seed(0)
    network = FusionNetwork(NetworkSettings(width=16, spectral=spectral, returned=0.0)).eval()
    image, log_std = run(network, given)
    assert not log_std.any()
    share = Blend()(noise, given.radius, torch.zeros_like(noise)).detach()
    expected = spectrum * noise * share + wiener * (1 - share)
    band = (given.radius > 0.08) & (given.radius < 0.85)  # at the band's edge neighbours are no longer alike
    torch.testing.assert_close(unit_spectrum(image)[band], expected[band], atol=2e-3, rtol=1e-2)


def test_the_power_of_the_ring_prior_is_read_off_its_image():
    given = some_input((64, 64), noise=2.0)
    spectrum, noise = unit_spectrum(given.whitened), given.noise
    power = torch.exp(-2 * given.radius)
    given.ring = torch.fft.irfft2(spectrum * noise * power / (power + noise**2), s=(64, 64), norm="ortho")
    band = (given.radius > 0.05) & (given.radius < 0.9)
    torch.testing.assert_close(ring_power(spectrum, given)[band], power[band], atol=0, rtol=0.15)


@pytest.mark.parametrize("part", ["angular", "spectral", "attention", "gating", "second_look", "blend"])
def test_each_part_can_be_left_out(part):
    given = some_input()
    image, _ = run(random_network(**{part: False}), given)
    assert bool(torch.isfinite(image).all())
    assert sum(p.numel() for p in random_network(**{part: False}).parameters()) < sum(
        p.numel() for p in random_network().parameters()
    )


def test_at_most_a_million_parameters():
    assert sum(values.numel() for values in FusionNetwork().parameters()) <= 1e6


def test_losses_are_one_for_nothing_and_zero_for_the_truth():
    given = some_input((48, 48), batch=2)
    draw = torch.Generator().manual_seed(5)
    truth = 3 * torch.randn(2, 48, 48, generator=draw)
    inside = torch.zeros(2, 48, 48, dtype=torch.bool)
    inside[:, 4:40, 6:44] = True
    options = {"radius": given.radius, "inside": inside}
    centred = (truth - (truth * inside).sum((1, 2), keepdim=True) / inside[0].sum()) * inside
    assert image_loss(torch.zeros_like(truth), centred, **options).numpy() == pytest.approx(1, abs=0.1)
    assert float(image_loss(truth, truth, **options).abs().max()) < 1e-9
    # outside of the field nothing counts, and neither does the mean
    other = torch.where(inside, truth + 7.0, torch.randn(2, 48, 48, generator=draw))
    assert float(image_loss(other, truth, **options).max()) < 1e-6
    correlation = correlation_with_truth(other, truth, **options)[:, 1:]  # the first ring is empty in so small a field
    assert correlation.numpy() == pytest.approx(1, abs=1e-3)
    assert float(error_in_rad(other - truth, given, inside=inside).abs().max()) < 1e-4


def test_the_std_loss_is_least_where_the_intervals_hold_what_they_should():
    given = some_input((48, 48), batch=1)
    truth = torch.zeros(1, 48, 48)
    inside = torch.ones(1, 48, 48, dtype=torch.bool)
    image = torch.randn(1, 48, 48, generator=torch.Generator().manual_seed(2))
    deviation = float(error_in_rad(image, given, inside=inside).std())  # of errors that are Gaussian
    levels = np.log(deviation) + np.array([-0.1, 0.0, 0.1])

    def loss(image, level):
        output = NetworkOutput(image, torch.full_like(image, level), torch.zeros_like(given.noise), image)
        return float(std_loss(output, truth, given=given, inside=inside))

    losses = [loss(image, level) for level in levels]
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]
    # one pixel gone mad widens it for no other
    mad = image.clone()
    mad[0, 20, 20] = 20.0
    assert loss(mad, levels[1]) < loss(mad, levels[2])


def test_a_healed_defect_is_hidden_and_a_seen_one_is_not():
    inside = torch.ones(2, 48, 48, dtype=torch.bool)
    draw = torch.Generator().manual_seed(3)
    perfect = torch.randn(2, 48, 48, generator=draw)
    defects = torch.zeros(2, 48, 48)
    defects[0, 20:22, 20:22] = -2.0
    truth = perfect + defects

    def hidden(image):
        return defects_hidden(image, truth, defects, inside=inside).tolist()

    assert hidden(truth) == pytest.approx([0.0, 0.0], abs=1e-5)
    assert hidden(perfect + 0.3 * defects) == pytest.approx([0.0, 0.0], abs=1e-5)  # faint but clear
    assert hidden(perfect + 1e-3 * torch.randn(2, 48, 48, generator=draw))[0] == pytest.approx(1.0, abs=0.2)
    assert hidden(perfect - defects)[0] == pytest.approx(2.0, abs=1e-4)  # the wrong way round
    # what is wrong around it hides it, what is wrong far away does not
    near, far = truth.clone(), truth.clone()
    near[0, 14:18, 14:28] += 2.0
    far[0, 40:44, 14:28] += 2.0
    assert hidden(near)[0] > 0.3
    assert hidden(far)[0] < 1e-5
    # taking everything away is no way to show it
    assert hidden(0.0 * truth)[0] > 0.5


def test_losses_do_not_depend_on_how_the_field_is_turned():
    given = some_input((40, 40), batch=1)
    draw = torch.Generator().manual_seed(9)
    truth, image = (torch.randn(1, 40, 40, generator=draw) for _ in range(2))
    inside = torch.ones(1, 40, 40, dtype=torch.bool)
    inside[:, :, 30:] = False
    before = image_loss(image, truth, radius=given.radius, inside=inside)
    turned = [torch.rot90(values, 1, (1, 2)) for values in (image, truth, inside)]
    after = image_loss(turned[0], turned[1], radius=given.radius, inside=turned[2])
    torch.testing.assert_close(after, before, atol=0, rtol=2e-4)
