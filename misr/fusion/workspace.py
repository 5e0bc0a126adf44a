"""Arrays that are used again for every block of a long sum."""

from __future__ import annotations

import math

import torch

__all__ = ["Workspace"]


class Workspace:
    """Named scratch arrays, grown when needed.

    A fresh array for each of a block's intermediate results costs more than the arithmetic wherever freed memory goes
    straight back to the system: always for large blocks, and for all of them on dask's workers, which set
    ``MALLOC_TRIM_THRESHOLD_``.

    Parameters
    ----------
    device : torch.device
        Where the arrays lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[str, torch.Tensor] = {}

    def real(self, name: str, *shape: int) -> torch.Tensor:
        """Single precision, contents undefined; the same memory for the same name."""
        return self._take(name, shape, torch.float32)

    def complex(self, name: str, *shape: int) -> torch.Tensor:
        """Complex single precision, contents undefined; the same memory for the same name."""
        return self._take(name, shape, torch.complex64)

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size or held.dtype != dtype:
            held = self._held[name] = torch.empty(size, dtype=dtype, device=self.device)
        return held[:size].view(shape)
