"""Trained networks that come with the package, and how they are stored: safetensors, never pickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from misr.fusion.network import FusionNetwork

__all__ = ["load_network", "save_network"]

_HERE = Path(__file__).parent
_FORMAT = "misr fusion network 1"


def save_network(network: FusionNetwork, path: str | Path) -> Path:
    """Write a network, whole or not at all.

    Parameters
    ----------
    network : FusionNetwork
        With its settings, which are stored too.
    path : path
        ``….safetensors``.

    Returns
    -------
    pathlib.Path
        The file.
    """
    from safetensors.torch import save_file

    path = Path(path)
    partial = path.with_suffix(f".{os.getpid()}.part")
    metadata = {"format": _FORMAT, "settings": json.dumps(network.settings.as_dict())}
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, partial, metadata=metadata)
    partial.chmod(0o644)  # a package's data are for all to read
    os.replace(partial, path)
    return path


def load_network(model: str | Path = "default") -> FusionNetwork:
    """A network by name or from a file that `save_network` or ``misr train`` wrote.

    Parameters
    ----------
    model : str or path
        "default", or a ``.safetensors`` file.

    Returns
    -------
    FusionNetwork
        Ready to be used, on the CPU.

    Raises
    ------
    ValueError
        If there is no such network, or the file holds something else.

    Examples
    --------
    >>> network = load_network()
    >>> sum(values.numel() for values in network.parameters()) < 1e6
    True
    """
    from safetensors import SafetensorError, safe_open

    from misr.fusion.network import FusionNetwork, NetworkSettings

    path = Path(model)
    if path.suffix != ".safetensors":
        path = _HERE / f"{model}.safetensors"
    if not path.is_file():
        known = sorted(file.stem for file in _HERE.glob("*.safetensors"))
        raise ValueError(f"model={str(model)!r} is neither a .safetensors file nor one of {known}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is no safetensors file ({error}): train one with `misr train`") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path.name} is not a {_FORMAT!r} but {metadata.get('format')!r}: train one with `misr train`"
        )
    try:
        network = FusionNetwork(NetworkSettings(**json.loads(metadata["settings"])))
        network.load_state_dict(values)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path.name} holds a network of another shape than it says or this version knows ({error}): train one "
            "with `misr train`"
        ) from error
    return network.eval()
