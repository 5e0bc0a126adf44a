"""The dual-path attention network: modules that hold parameters, all in natural units (see `misr.fusion.natural`).

The spatial path sees the linear images and what a learnt spectral filter makes of them; the angular path sees groups of
views laid back onto the object; attention pools the groups, and each path gates the other. A second look at what the
data still hold against the image finds what breaks the rule, such as a vacancy in a lattice. A last, exact step blends
the result with the data frequency by frequency: where the data are sure, they decide. The lowest frequencies are those
of the linear image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from misr.fusion.network_parts import (
    LOUDEST,
    QUIETEST,
    AngularPath,
    Blend,
    Block,
    Doubt,
    LinearAttention,
    RoundConv,
    SecondLook,
    doubled,
    levelled,
    zeroed,
)  # fmt: skip

__all__ = [
    "FusionNetwork",
    "NetworkInput",
    "NetworkOutput",
    "NetworkSettings",
    "bordered",
    "even_plane",
    "ring_power",
    "unit_spectrum",
]

_BANDS = 8  # of frequency, in which the noise is told to all layers
_LOWEST_POWER, _HIGHEST_POWER = -12.0, 9.0  # natural logarithm of a learnt power, in units of the mean signal's
_LOWEST = (0.03, 0.08)  # of 2α/λ: below, no frequency is the network's; above, all are


@dataclass(frozen=True)
class NetworkSettings:
    """Shape of a network, and which of its parts are there.

    Attributes
    ----------
    width : int
        Channels of the finest level (half of the pixels of the image along an axis).
    filters : int
        Images that the spectral filter makes.
    angular, spectral, attention, gating, second_look, blend : bool
        Parts, for ablation.
    returned : float
        Power, in units of the mean signal's, under which what the data hold against the image goes back into it at the
        end: see `_returned`.
    """

    width: int = 48
    filters: int = 3
    angular: bool = True
    spectral: bool = True
    attention: bool = True
    gating: bool = True
    second_look: bool = True
    blend: bool = True
    returned: float = 0.4

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass
class NetworkInput:
    """A batch of fields in natural units: see `misr.fusion.natural.NaturalField`."""

    whitened: torch.Tensor  # (batch, y, x)
    ring: torch.Tensor
    local: torch.Tensor
    noise: torch.Tensor  # (batch, ky, kx)
    radius: torch.Tensor  # (batch, ky, kx)
    atom: torch.Tensor  # (batch, ky, kx)
    scale: torch.Tensor  # (batch,)
    pixel: torch.Tensor  # (batch,), Å
    groups: torch.Tensor | None = None  # (batch, group, y, x), unit noise each
    tilts: torch.Tensor | None = None  # (batch, group, 2), of the aperture's radius

    def to(self, device: torch.device) -> NetworkInput:
        """On another device."""
        moved: dict[str, Any] = {name: value for name, value in self.__dict__.items() if value is not None}
        return NetworkInput(**{name: value.to(device) for name, value in moved.items()})


@dataclass
class NetworkOutput:
    """Whitened image, standard deviation of a phase pixel in units of the scale, and what is not the network's own."""

    image: torch.Tensor  # (batch, y, x), whitened
    log_std: torch.Tensor  # (batch, y, x)
    share: torch.Tensor  # (batch, ky, kx): of each frequency, that is the data's or the linear image's
    draft: torch.Tensor  # (batch, y, x): the image before the last of the data's difference went back into it


def unit_spectrum(image: torch.Tensor) -> torch.Tensor:
    """Half plane of frequencies, unit noise staying unit noise."""
    return torch.fft.rfft2(image, norm="ortho")


def _image(spectrum: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.fft.irfft2(spectrum, s=like.shape[-2:], norm="ortho")


class FusionNetwork(nn.Module):
    """Dual-path network on natural units, any field whose sides are multiples of 8 pixels, any number of groups.

    Parameters
    ----------
    settings : NetworkSettings
        Its shape.
    """

    def __init__(self, settings: NetworkSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or NetworkSettings()
        width, told = settings.width, 48
        images = 3 + (settings.filters if settings.spectral else 0)
        self.condition = nn.Sequential(nn.Linear(_BANDS + 2, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU())
        self.spectral = SpectralFilter(settings.filters) if settings.spectral else None
        self.enter = RoundConv(4 * images, width)
        self.angular = AngularPath(width, gating=settings.gating) if settings.angular else None
        self.down0 = Block(width, told)
        self.to1 = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.down1 = Block(2 * width, told)
        self.to2 = nn.Conv2d(2 * width, 2 * width, 2, stride=2)
        self.middle = nn.ModuleList([Block(2 * width, told), Block(2 * width, told)])
        self.attend = LinearAttention(2 * width) if settings.attention else None
        self.from2 = nn.Conv2d(2 * width, 2 * width, 1)
        self.up1 = Block(2 * width, told)
        self.from1 = nn.Conv2d(2 * width, width, 1)
        self.up0 = Block(width, told)
        self.leave = RoundConv(width, 4)
        zeroed(self.leave)
        self.second_look = SecondLook(width) if settings.second_look else None
        self.doubt = Doubt(width)
        self.trust = Blend() if settings.blend else None

    def forward(self, given: NetworkInput) -> NetworkOutput:
        """Fuse a batch."""
        told = self.condition(_summary(given))
        spectrum = unit_spectrum(given.whitened)
        images = [levelled(given.whitened), given.ring, given.local]
        base, log_error = given.ring, torch.zeros(())
        if self.spectral is not None:
            filtered, log_error = self.spectral(spectrum, given)
            images += list(filtered.unbind(1))
            base = filtered[:, 0]
        shuffled = functional.pixel_unshuffle(torch.stack(images, 1), 2)
        # channels last: convolutions of few channels are then twice as fast on CPUs
        x = self.enter(shuffled.contiguous(memory_format=torch.channels_last))
        if self.angular is not None and given.groups is not None and given.tilts is not None:
            x = self.angular(x, given.groups, given.tilts)
        fine = self.down0(x, told)
        middle = self.down1(self.to1(fine), told)
        coarse = self.middle[0](self.to2(middle), told)
        if self.attend is not None:
            coarse = self.attend(coarse)
        coarse = self.middle[1](coarse, told)
        middle = self.up1(middle + doubled(self.from2(coarse)), told)
        fine = self.up0(fine + doubled(self.from1(middle)), told)
        image = base + functional.pixel_shuffle(self.leave(fine).float(), 2)[:, 0]
        share = self._blended(given, log_error)
        difference = spectrum * given.noise - unit_spectrum(image)
        against = _image(difference * share, image), _matched(difference, given)
        if self.second_look is not None:
            image = image + self.second_look(fine, image, *against)
        wanted = spectrum * given.noise * share + unit_spectrum(image) * (1 - share)
        linear = unit_spectrum(given.ring)
        free = _free(given.radius, share)
        draft = linear + (wanted - linear) * free
        back = _returned(given, spectrum, self.settings.returned)
        final = _image(draft + (spectrum * given.noise - draft) * back, image)
        log_std = self.doubt(fine, final.detach(), *(one.detach() for one in against))
        return NetworkOutput(final, log_std, 1 - (1 - share) * free * (1 - back), _image(draft, image))

    def _blended(self, given: NetworkInput, log_error: torch.Tensor) -> torch.Tensor:
        if self.trust is None:
            return torch.zeros_like(given.noise)
        return self.trust(given.noise, given.radius, log_error)


class SpectralFilter(nn.Module):
    """Power of each frequency, from its neighbours in the plane and from the lattice that all of them form.

    Multiplying a frequency is averaging over the whole field: this is the attention by which a lattice gathers its
    repeats. Neighbours in the plane are compared by convolutions; reflections of one lattice by convolutions between
    two Fourier transforms, in the space of displacements (Patterson's), where they all add up.
    """

    def __init__(self, filters: int, width: int = 16, displaced: int = 6) -> None:
        super().__init__()
        self.enter = nn.Conv2d(5, width, 3)
        self.nearby = nn.Conv2d(width, width, 3)
        self.to_lattice = nn.Conv2d(width, displaced, 1)
        # pointwise: a displacement either repeats or it does not
        self.lattice = nn.Sequential(nn.Conv2d(2 * displaced, 16, 1), nn.SiLU(), nn.Conv2d(16, displaced, 1))
        self.join = nn.Conv2d(width + displaced, width, 3)
        self.leave = nn.Conv2d(width, filters + 1, 1)
        zeroed(self.leave)

    def forward(self, spectrum: torch.Tensor, given: NetworkInput) -> tuple[torch.Tensor, torch.Tensor]:
        """Images filtered with the powers found (batch, filter, y, x), and how far each frequency is to be doubted.

        The doubt (batch, ky, kx) is a natural logarithm, for `Blend`.
        """
        size = given.whitened.shape[-2:]
        seen = spectrum.real**2 + spectrum.imag**2
        around = functional.avg_pool2d(bordered(seen[:, None], 2), 5, stride=1)[:, 0]
        known = ring_power(spectrum, given).log().clamp(_LOWEST_POWER, _HIGHEST_POWER)
        noise = given.noise.log()
        features = torch.stack([torch.log1p(seen), torch.log1p(around), noise / 3, given.radius, known / 3], 1)
        x = functional.silu(self.enter(bordered(features)))
        x = functional.silu(self.nearby(bordered(x)))
        displaced = torch.fft.irfft2(self.to_lattice(x).float(), s=size, norm="ortho")
        displaced = torch.cat([displaced, displaced.abs().add(1e-3).log()], 1)
        back = torch.fft.rfft2(self.lattice(displaced).float(), norm="ortho").real
        x = functional.silu(self.join(bordered(torch.cat([x, back.to(x.dtype)], 1))))
        # an untrained filter is the linear image under the ring prior
        found = self.leave(x).float()
        power = (known[:, None] + found[:, :-1]).clamp(_LOWEST_POWER, _HIGHEST_POWER).exp()
        gain = given.noise[:, None] * power / (power + given.noise[:, None] ** 2)
        return torch.fft.irfft2(spectrum[:, None] * gain, s=size, norm="ortho"), found[:, -1]


def ring_power(spectrum: torch.Tensor, given: NetworkInput) -> torch.Tensor:
    """The object's power under the ring prior, from the share of each frequency that the ring image kept of the data.

    Parameters
    ----------
    spectrum : torch.Tensor
        Of the whitened image, (batch, ky, kx).
    given : NetworkInput
        Its ring image and noise.

    Returns
    -------
    torch.Tensor
        (batch, ky, kx), in units of the mean signal.
    """
    ring = unit_spectrum(given.ring)
    both = torch.stack([ring.real * spectrum.real + ring.imag * spectrum.imag, spectrum.real**2 + spectrum.imag**2], 1)
    both = functional.avg_pool2d(bordered(both), 3, stride=1)  # a tile's own frequencies mix
    transfer = (both[:, 0] / (both[:, 1].clamp(min=1e-9) * given.noise)).clamp(1e-9, 1 - 1e-6)
    return given.noise**2 * transfer / (1 - transfer)


def bordered(half: torch.Tensor, by: int = 1) -> torch.Tensor:
    """A half plane of an even function with its neighbours beyond all four edges: (batch, channel, ky, kx).

    ``rfft2`` order, an even number of columns in the whole plane.
    """
    opposite = half.flip(-2).roll(1, -2)  # at -ky
    left = opposite[..., 1 : by + 1].flip(-1)
    right = opposite[..., -by - 1 : -1].flip(-1)
    wide = torch.cat([left, half, right], dim=-1)
    high = torch.cat([wide[..., -by:, :], wide, wide[..., :by, :]], dim=-2)
    return high.contiguous(memory_format=torch.channels_last)


def _matched(difference: torch.Tensor, given: NetworkInput) -> torch.Tensor:
    """The matched filter of an atom for a spectrum with the data's noise, over its standard deviation in noise alone.

    An atom's whitened spectrum is flat, so the filter is the inverse of the noise's power.
    """
    precision = torch.where(given.radius < 1, given.noise**-2, 0.0)
    twice = torch.full_like(precision[0, 0], 2.0)  # the other half plane repeats all but the outer columns
    twice[[0, -1]] = 1.0
    y, x = given.whitened.shape[-2:]
    variance = (precision * twice).sum((1, 2)) / (y * x)
    return _image(difference * precision, given.whitened) / variance.clamp(min=1e-12).sqrt()[:, None, None]


def _returned(given: NetworkInput, spectrum: torch.Tensor, most: float) -> torch.Tensor:
    """Share of what the data hold against the image that goes back into it, whatever the network thinks of it.

    The squared error does not pay for a rare defect that the data only hint at, so a network takes it away; an observer
    who looks for one wants the hint. A defect's power spreads evenly over the frequencies while a lattice's gathers in
    few, so this is the Wiener filter under the ring prior's power, but never under more than ``most``.
    """
    power = ring_power(spectrum, given).clamp(max=most)
    share = power / (power + given.noise**2) * _above_lowest(given.radius)
    return torch.where(given.radius < 1, share, 0.0)


def _free(radius: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """How far a frequency may differ from the ring prior's image: not at the lowest, unless the data say so.

    Bright-field views hardly see them, and a specimen larger than what the network looks at (a particle in vacuum)
    shows in nothing else: a guess there can turn its contrast round.
    """
    return 1 - (1 - _above_lowest(radius)) * (1 - share)


def _above_lowest(radius: torch.Tensor) -> torch.Tensor:
    low, high = _LOWEST
    at = ((radius - low) / (high - low)).clamp(0, 1)
    return at * at * (3 - 2 * at)


def _summary(given: NetworkInput) -> torch.Tensor:
    """What every layer is told: noise by band of frequency, strength, pixel."""
    log_noise = given.noise.log().clamp(QUIETEST, LOUDEST)
    rows = []
    for band in range(_BANDS):
        chosen = (given.radius > band / _BANDS) & (given.radius <= (band + 1) / _BANDS)
        rows.append((log_noise * chosen).sum((1, 2)) / chosen.sum((1, 2)).clamp(min=1))
    strength = given.scale.clamp(min=1e-6).log10()
    return torch.stack([*(row / 3 for row in rows), strength, given.pixel.log()], 1)


def even_plane(half: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The whole plane of an even function, from its half plane (``rfft2`` order): (batch, ky, kx)."""
    rest = half[..., 1 : size[1] - half.shape[-1] + 1].flip(-1)
    rest = torch.cat([rest[..., :1, :], rest[..., 1:, :].flip(-2)], dim=-2)
    return torch.cat([half, rest], dim=-1)
