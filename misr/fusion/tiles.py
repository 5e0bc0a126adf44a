"""The network on a field of any size: whole, or tile by tile with overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from misr.fusion.natural import BLOCK, NaturalField, atom_amplitude, plane_of_size
from misr.fusion.network import FusionNetwork, NetworkInput, unit_spectrum

__all__ = ["NetworkImages", "network_images"]

_OVERLAP = 64  # pixels of a tile that its neighbour sees too


@dataclass(frozen=True)
class NetworkImages:
    """What a network makes of a field: images over the padded field, rad, and how much of it is the network's own."""

    phase: torch.Tensor
    phase_std: torch.Tensor
    prior_share: float


@torch.no_grad()
def network_images(
    network: FusionNetwork, field: NaturalField, groups: torch.Tensor, tilts: np.ndarray, *, tile: int
) -> NetworkImages:
    """Run the network on a field.

    Parameters
    ----------
    network : FusionNetwork
        On the field's device.
    field : NaturalField
        In natural units.
    groups : torch.Tensor
        (group, y, x), unit noise each.
    tilts : numpy.ndarray
        (group, 2), over the semi-angle.
    tile : int
        Longest side of what the network sees at once, pixels.

    Returns
    -------
    NetworkImages
        Seamless.
    """
    shape = field.ring.shape
    network.eval()
    at = torch.as_tensor(tilts, dtype=torch.float32, device=field.ring.device)
    total = field.ring.new_zeros((4, *shape))
    # a field without margins is a whole period: its tiles may reach round it
    wraps = bool(field.inside.all())
    for rows in _spans(shape[0], tile, wraps=wraps):
        for columns in _spans(shape[1], tile, wraps=wraps):
            whitened, std, guessed = _one(network, field, groups, at, (rows, columns))
            weight = (_fade(len(rows))[:, None] * _fade(len(columns))).to(whitened.device)
            for index, part in enumerate((whitened, std, guessed, torch.ones_like(std))):
                total[index, rows[:, None], columns] += weight * part
    whitened, std, guessed = total[:3] / total[3]
    power = float(((whitened * field.inside) ** 2).sum())
    own = float((whitened * guessed * field.inside).sum())
    share = min(max(own / power, 0.0), 1.0) if power > 0 else 1.0
    return NetworkImages(field.in_rad(whitened), std * field.scale, share)


def _one(
    network: FusionNetwork,
    field: NaturalField,
    groups: torch.Tensor,
    tilts: torch.Tensor,
    at: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whitened image, its standard deviation, and the part of it that is not the data's, of one tile."""
    size = (len(at[0]), len(at[1]))

    def cut(images: torch.Tensor) -> torch.Tensor:
        return images[..., at[0][:, None], at[1]]

    q_y, q_x = torch.fft.fftfreq(size[0], field.pixel[0]), torch.fft.rfftfreq(size[1], field.pixel[1])
    frequency = torch.hypot(q_y[:, None], q_x).to(field.ring.device)
    given = NetworkInput(
        whitened=cut(field.whitened)[None],
        ring=cut(field.ring)[None],
        local=cut(field.local)[None],
        noise=plane_of_size(field.noise.log(), field.ring.shape, size).exp()[None],
        radius=(frequency / field.band)[None],
        atom=atom_amplitude(frequency)[None],
        scale=torch.tensor([field.scale], device=field.ring.device),
        pixel=torch.tensor([math.sqrt(field.pixel[0] * field.pixel[1])], device=field.ring.device),
        groups=cut(groups)[None],
        tilts=tilts[None],
    )
    output = network(given)
    image = output.image[0]
    # the network is free to choose a mean, which would show as steps between tiles: take that of the linear image
    image = image + (cut(field.ring).mean() - image.mean())
    spectrum = unit_spectrum(image) * (1 - output.share[0])
    guessed = torch.fft.irfft2(spectrum, s=size, norm="ortho")
    return image, output.log_std[0].exp(), guessed


def _spans(length: int, tile: int, *, wraps: bool) -> list[torch.Tensor]:
    """Overlapping parts of an axis, all equally long, as indices; they may reach round it."""
    tile = BLOCK * max(1, tile // BLOCK)
    if length <= tile:
        return [torch.arange(length)]
    overlap = min(_OVERLAP, tile // 4)
    number = math.ceil((length if wraps else length - overlap) / (tile - overlap))
    first = np.arange(number) * length / number if wraps else np.linspace(0, length - tile, number)
    return [(int(start) + torch.arange(tile)) % length for start in np.rint(first / BLOCK) * BLOCK]


def _fade(size: int) -> torch.Tensor:
    """Weights of a part, falling towards its ends; to be divided by their sum over all parts."""
    to_end = torch.arange(size).minimum(torch.arange(size).flip(0)) + 1.0
    return to_end.clamp(max=min(_OVERLAP, size // 4))
