"""Blocks of a long sum spread over threads, each of which computes by itself.

Torch shares out single operations. On blocks that fit in the cache its threads then mostly wait for one another: two of
them are no faster than one. Sharing out whole blocks keeps both busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from misr.fusion.workspace import Workspace

__all__ = ["for_each"]

Item = TypeVar("Item")


def for_each(items: Iterable[Item], work_on: Callable[[Item, Workspace], None], *, device: torch.device) -> None:
    """Call ``work_on(item, workspace)`` for all items, on as many threads as torch uses, each with its workspace.

    Parameters
    ----------
    items : iterable
        What to work on, in any order: no two calls may write to the same place.
    work_on : callable
        Gets the item and scratch arrays.
    device : torch.device
        Off the CPU one thread is enough.

    Raises
    ------
    Exception
        The first that a call raised.
    """
    waiting = list(items)
    number = min(torch.get_num_threads() if device.type == "cpu" else 1, len(waiting))
    if number <= 1:
        work = Workspace(device)
        for item in waiting:
            work_on(item, work)
        return
    shares = [waiting[start::number] for start in range(number)]

    def run(share: list[Item]) -> None:
        work = Workspace(device)
        for item in share:
            work_on(item, work)

    # threads that begin now take torch's setting of now: one each. Its own is put back when they are done
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number) as pool:
            for done in [pool.submit(run, share) for share in shares]:
                done.result()
    finally:
        torch.set_num_threads(before)
