"""What a network is worth on stored examples, while it is trained and after."""

from __future__ import annotations

from typing import Any

import torch

from misr.fusion.losses import correlation_with_truth, defects_hidden, defects_untold, error_in_rad, image_loss
from misr.fusion.network import FusionNetwork, NetworkInput
from misr.fusion.random_specimens import SPECIMEN_KINDS
from misr.fusion.training_files import Batch, as_batch

__all__ = ["evaluate", "evaluate_pairs", "pairs_untold"]


def pairs_untold(image: torch.Tensor, pairs: Batch) -> torch.Tensor:
    """`misr.fusion.losses.defects_untold` of images of a batch in which each damaged specimen's twin comes after it.

    Parameters
    ----------
    image : torch.Tensor
        Whitened, (2 · pair, y, x).
    pairs : Batch
        What they are of.

    Returns
    -------
    torch.Tensor
        (pair,).
    """
    on = image.device
    scale = pairs.given.scale.to(on)[:, None, None]
    seen, there = image * scale, (pairs.defects.to(on) * scale)[::2]
    return defects_untold(
        seen[::2], seen[1::2], there,
        atom=pairs.given.atom[::2].to(on), radius=pairs.given.radius[::2].to(on), inside=pairs.inside[::2].to(on),
    )  # fmt: skip


@torch.no_grad()
def evaluate(
    model: FusionNetwork, arrays: dict[str, torch.Tensor], *, device: torch.device | str = "cpu", batch: int = 16
) -> dict[str, Any]:
    """How much better the network's images are than the linear ones, on stored examples.

    Parameters
    ----------
    model : FusionNetwork
        What to judge.
    arrays : dict
        From `misr.fusion.training_files.load_shard`.
    device : torch.device or str
        Where.
    batch : int
        Examples at once.

    Returns
    -------
    dict
        "frc": mean FRC with the truth over rings, of network, ring and local prior, (example, 3); "loss" and "defects"
        (how far they are hidden; 0 where there are none) likewise,
        "covered": share of the pixels within one and two standard deviations, (example, 2); "dose", "kind";
        and a "summary" of plain numbers.
    """
    model.eval()
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("frc", "loss", "covered", "defects", "dose", "kind")}
    for first in range(0, len(arrays["truth"]), batch):
        part = as_batch(arrays, slice(first, first + batch))
        given, truth, inside = part.given.to(torch.device(device)), part.truth.to(device), part.inside.to(device)
        output = model(given)
        common: dict[str, Any] = {"radius": given.radius, "inside": inside}
        images = (output.image, given.ring, given.local)
        rows["frc"].append(torch.stack([correlation_with_truth(one, truth, **common).mean(1) for one in images], 1))
        rows["loss"].append(torch.stack([image_loss(one, truth, **common) for one in images], 1))
        broken = part.defects.to(device)
        rows["defects"].append(torch.stack([defects_hidden(one, truth, broken, inside=inside) for one in images], 1))
        rows["covered"].append(_covered(output, truth, given, inside))
        rows["dose"].append(part.dose)
        rows["kind"].append(part.kind)
    model.train()
    found: dict[str, Any] = {name: torch.cat(values).cpu() for name, values in rows.items()}
    found["summary"] = _summarised(found)
    return found


@torch.no_grad()
def evaluate_pairs(
    model: FusionNetwork, arrays: dict[str, torch.Tensor], *, device: torch.device | str = "cpu", pairs: int = 8
) -> dict[str, float]:
    """How badly the network's and the linear images tell damaged specimens from their twins, on stored pairs.

    Parameters
    ----------
    model : FusionNetwork
        What to judge.
    arrays : dict
        From `misr.fusion.training_files.load_shard` of twins.
    device : torch.device or str
        Where.
    pairs : int
        At once.

    Returns
    -------
    dict
        Means of `pairs_untold`: "untold" of the network, "untold_ring", and "untold_obf" of the whitened data.
    """
    model.eval()
    rows = []
    for first in range(0, len(arrays["truth"]), 2 * pairs):
        part = as_batch(arrays, slice(first, first + 2 * pairs))
        given = part.given.to(torch.device(device))
        images = (model(given).image, given.ring, given.whitened)
        rows.append(torch.stack([pairs_untold(one, part) for one in images], 1).cpu())
    model.train()
    means = torch.cat(rows).mean(0).tolist()
    return {name: round(value, 4) for name, value in zip(("untold", "untold_ring", "untold_obf"), means, strict=True)}


def _covered(output: Any, truth: torch.Tensor, given: NetworkInput, inside: torch.Tensor) -> torch.Tensor:
    error = error_in_rad(output.image - truth, given, inside=inside).abs() * torch.exp(-output.log_std)
    number = inside.sum((1, 2))
    return torch.stack([((error < limit) & inside).sum((1, 2)) / number for limit in (1.0, 1.96)], 1)


def _summarised(found: dict[str, Any]) -> dict[str, float]:
    real = found["kind"] < 4  # not the empty ones
    frc, loss = found["frc"][real], found["loss"][real]
    summary = {
        "frc": float(frc[:, 0].mean()), "frc_ring": float(frc[:, 1].mean()), "frc_local": float(frc[:, 2].mean()),
        "loss": float(loss[:, 0].mean()), "loss_local": float(loss[:, 2].mean()),
        "covered_68": float(found["covered"][:, 0].mean()), "covered_95": float(found["covered"][:, 1].mean()),
    }  # fmt: skip
    damaged = found["defects"][(found["defects"][:, 0] > 0)]
    if len(damaged):
        summary["defects_hidden"], summary["defects_hidden_ring"] = (
            float(damaged[:, 0].mean()),
            float(damaged[:, 1].mean()),
        )
    for number, name in enumerate(SPECIMEN_KINDS[:-1]):
        chosen = found["kind"] == number
        if bool(chosen.any()):
            gained = found["frc"][chosen]
            summary[f"gain_{name}"] = float((gained[:, 0] - gained[:, 1:].max(1).values).mean())
    return {name: round(value, 4) for name, value in summary.items()}
