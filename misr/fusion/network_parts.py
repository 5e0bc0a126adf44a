"""Parts of the fusion network that take tensors alone: blocks, attention, angular path, second look, blend."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "LOUDEST",
    "QUIETEST",
    "AngularPath",
    "Blend",
    "Block",
    "Doubt",
    "LinearAttention",
    "RoundConv",
    "SecondLook",
    "doubled",
    "levelled",
    "without_mean",
    "zeroed",
]

QUIETEST, LOUDEST = math.log(1e-3), math.log(1e3)  # logarithms of a frequency's noise that are told apart
_KNOTS = 12  # of the blend's curve over the logarithm of the noise
_MOST_DOUBT = 6.0


class RoundConv(nn.Conv2d):
    """3 × 3 pixels, reaching round the field: it is a period of the specimen, or has empty margins.

    Zeros beyond the edges would be an edge to see, the same in every scan: half maps of vacuum would agree on it.
    """

    def __init__(self, given: int, made: int) -> None:
        super().__init__(given, made, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As many pixels as ``x``."""
        return functional.conv2d(_rounded(x), self.weight, self.bias)


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Twice the pixels along each axis, reaching round the field."""
    fine = functional.interpolate(_rounded(x), scale_factor=2, mode="bilinear", align_corners=False)
    return fine[..., 2:-2, 2:-2]


def _rounded(x: torch.Tensor) -> torch.Tensor:
    # torch's own circular padding gives up channels last, and takes ten times as long
    x = torch.cat([x[..., -1:, :], x, x[..., :1, :]], dim=-2)
    return torch.cat([x[..., -1:], x, x[..., :1]], dim=-1)


class Block(nn.Module):
    """Two convolutions round a residual, told the noise."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = RoundConv(width, width)
        self.tell = nn.Linear(told, 2 * width)
        self.second = RoundConv(width, width)
        zeroed(self.second)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Add to ``x``."""
        gain, offset = self.tell(told)[:, :, None, None].chunk(2, dim=1)
        y = functional.silu(self.norm(x))
        y = functional.silu(self.first(y) * (1 + gain) + offset)
        return x + self.second(y)


class LinearAttention(nn.Module):
    """Every place of the field attends to every other at linear cost (Shen et al. 2021, WACV, 3531)."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.project = nn.Conv2d(width, 3 * width, 1)
        self.leave = nn.Conv2d(width, width, 1)
        zeroed(self.leave)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add to ``x``."""
        batch, width, n_y, n_x = x.shape
        query, key, value = self.project(self.norm(x)).reshape(batch, 3, self.heads, -1, n_y * n_x).unbind(1)
        context = key.softmax(dim=-1) @ value.transpose(-1, -2)  # (batch, head, feature, feature)
        found = context.transpose(-1, -2) @ query.softmax(dim=-2)
        return x + self.leave(found.reshape(batch, width, n_y, n_x))


class AngularPath(nn.Module):
    """Groups of views, each through one shared encoder told its tilt, pooled by attention whatever their number."""

    def __init__(self, width: int, *, gating: bool, hidden: int = 16) -> None:
        super().__init__()
        self.tell = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 2 * hidden))
        self.enter = RoundConv(4, hidden)
        self.encode = RoundConv(hidden, hidden + 1)
        self.gate = nn.Conv2d(hidden, width, 1) if gating else None
        self.ask = nn.Conv2d(width, hidden, 1)
        self.leave = nn.Conv2d(2 * hidden, width, 1)
        zeroed(self.leave)

    def forward(self, x: torch.Tensor, groups: torch.Tensor, tilts: torch.Tensor) -> torch.Tensor:
        """Spatial features ``x`` with what the groups add: (batch, width, y/2, x/2)."""
        number = groups.shape[1]
        total = torch.zeros((), device=x.device)
        asked = self.ask(x)
        weights = weighted = squared = total
        for index in range(number):  # one by one: memory does not grow with their number
            tilt = tilts[:, index]
            told = torch.cat([tilt, tilt**2, tilt[:, :1] * tilt[:, 1:]], 1)
            gain, offset = self.tell(told)[:, :, None, None].chunk(2, dim=1)
            y = self.enter(functional.pixel_unshuffle(groups[:, index, None], 2))
            features = self.encode(functional.silu(y * (1 + gain) + offset)).float()
            value = features[:, :-1]
            score = features[:, -1:] + (asked * value).mean(1, keepdim=True)
            weight = torch.exp(score.clamp(-8, 8))
            weights = weights + weight
            weighted = weighted + weight * value
            squared = squared + weight * value**2
        mean = weighted / weights
        spread = (squared / weights - mean**2).clamp(min=1e-6).sqrt()
        added = self.leave(torch.cat([mean, spread], 1))
        if self.gate is not None:
            x = x * (1 + torch.tanh(self.gate(mean)))
            added = added * torch.sigmoid(self.ask(x).mean(1, keepdim=True))
        return x + added


class SecondLook(nn.Module):
    """What an image lacks, from what the data hold against it: a large and lonely difference is no noise.

    It sees the image, the difference that the blend would let through, and the matched filter's: where an atom more or
    less would explain the data better, in standard deviations.
    """

    def __init__(self, width: int, hidden: int = 24) -> None:
        super().__init__()
        self.enter = RoundConv(16, hidden)
        self.known = nn.Conv2d(width, hidden, 1)
        self.middle = RoundConv(hidden, hidden)
        self.leave = RoundConv(hidden, 4)
        zeroed(self.leave)

    def forward(
        self, fine: torch.Tensor, image: torch.Tensor, left: torch.Tensor, matched: torch.Tensor
    ) -> torch.Tensor:
        """What to add to the image: (batch, y, x)."""
        left = without_mean(left)
        seen = torch.stack([without_mean(image), left, levelled(left), torch.asinh(matched)], 1)
        shuffled = functional.pixel_unshuffle(seen, 2)
        x = functional.silu(self.enter(shuffled.contiguous(memory_format=torch.channels_last)) + self.known(fine))
        x = functional.silu(self.middle(x))
        return functional.pixel_shuffle(self.leave(x).float(), 2)[:, 0]


class Doubt(nn.Module):
    """Logarithm of each pixel's standard deviation, from what the image was made of; it does not change the image."""

    def __init__(self, width: int, hidden: int = 24) -> None:
        super().__init__()
        self.enter = RoundConv(12, hidden)
        self.known = nn.Conv2d(width, hidden, 1)
        self.leave = RoundConv(hidden, 4)
        zeroed(self.leave)

    def forward(
        self, fine: torch.Tensor, image: torch.Tensor, left: torch.Tensor, matched: torch.Tensor
    ) -> torch.Tensor:
        """(batch, y, x)."""
        seen = torch.stack([without_mean(image), without_mean(left), torch.asinh(matched)], 1)
        shuffled = functional.pixel_unshuffle(seen, 2)
        x = self.enter(shuffled.contiguous(memory_format=torch.channels_last)) + self.known(fine)
        return functional.pixel_shuffle(self.leave(functional.silu(x)).float(), 2)[:, 0]


class Blend(nn.Module):
    """Share of each frequency that is taken from the data: the network's error power over that and the noise's.

    The error power is a learnt curve over the noise of the frequency, times what the spectral filter says of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_error = nn.Parameter(torch.full((_KNOTS,), -1.5))

    def forward(self, noise: torch.Tensor, radius: torch.Tensor, doubt: torch.Tensor) -> torch.Tensor:
        """Between 0 and 1; nothing beyond the band limit. ``doubt``: logarithm of a factor of the error power."""
        at = (noise.log() - QUIETEST) / (LOUDEST - QUIETEST) * (_KNOTS - 1)
        at = at.clamp(0, _KNOTS - 1 - 1e-4)
        low = at.floor()
        part = at - low
        curve = self.log_error
        log_error = curve[low.long()] * (1 - part) + curve[low.long() + 1] * part
        error = 2 * (log_error + doubt.clamp(-_MOST_DOUBT, _MOST_DOUBT)).exp()
        return torch.where(radius < 1, error / (error + noise**2), 0.0)


def without_mean(image: torch.Tensor) -> torch.Tensor:
    """Images less their means, which no scan knows."""
    return image - image.mean((1, 2), keepdim=True)


def levelled(image: torch.Tensor) -> torch.Tensor:
    return image / (image**2).mean((1, 2), keepdim=True).add(1e-6).sqrt()


def zeroed(layer: nn.Conv2d) -> None:
    """Start as nothing."""
    for values in layer.parameters():
        nn.init.zeros_(values)
