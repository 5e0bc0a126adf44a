"""Who does the tasks: this process, processes of its own that may die, or the workers of a dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

__all__ = ["Died", "Submit", "runner"]

Submit = Callable[[Callable[..., Any], Sequence[Any]], Iterable[tuple[Any, Any]]]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")
_PATIENCE_S = 5.0  # for an exit status


@dataclass(frozen=True)
class Died:
    """What a task came to whose process died: the reason, as far as it is known."""

    reason: str


@contextlib.contextmanager
def runner(workers: int, client: Any = None) -> Iterator[Submit]:
    """A function that runs tasks and yields each with its result as it ends.

    Parameters
    ----------
    workers : int
        1: the tasks run in this process, one after the other. More: so many processes, each with its share of the
        threads. One that dies takes its task with it, whose result is `Died`, and a new one takes its place.
    client : dask.distributed.Client, optional
        Instead. A task is `Died` once its workers have died as often as the cluster allows.

    Examples
    --------
    >>> with runner(1) as run:
    ...     list(run(divmod, [(7, 2)]))
    [((7, 2), (3, 1))]
    """
    if client is not None:
        yield lambda function, tasks: _on_cluster(client, function, tasks)
    elif workers == 1:
        yield lambda function, tasks: ((task, function(*task)) for task in tasks)
    else:
        with _threads_of(workers), contextlib.ExitStack() as stack:
            seats = [stack.enter_context(contextlib.closing(_Seat())) for _ in range(workers)]
            yield lambda function, tasks: _on_seats(seats, function, tasks)


class _Seat:
    """A process of one's own, so that it is known whose task killed it."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._process: Any = None

    def submit(self, function: Callable[..., Any], *task: Any) -> Future[Any]:
        if self._pool is None:
            # spawned: torch and its threads do not survive a fork
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_leave_with_parent)
            others = set(multiprocessing.active_children())
            future = self._pool.submit(function, *task)
            self._process = next(iter(set(multiprocessing.active_children()) - others), None)
            return future
        return self._pool.submit(function, *task)

    def result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            reason = self._reason()
            self.close()
            return Died(reason)

    def _reason(self) -> str:
        code = None if self._process is None else _exit_status(self._process)
        if code is None:
            return "the worker process died"
        if code >= 0:
            return f"the worker process ended itself with exit status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = ", most likely for lack of memory" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{memory}"

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._process = None


def _exit_status(process: Any) -> int | None:
    """Exit status of a process that has died; None if it stays unknown."""
    until = time.monotonic() + _PATIENCE_S
    process.join(_PATIENCE_S)
    # the pool's own thread may have fetched the status an instant ago and not yet have written it down
    while process.exitcode is None and time.monotonic() < until:
        time.sleep(0.01)
    code: int | None = process.exitcode
    return code


def _leave_with_parent() -> None:
    """In a worker: end when the run is killed, instead of finishing for nobody and then waiting for ever."""
    threading.Thread(target=_leave, daemon=True).start()


def _leave() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_seats(seats: Sequence[_Seat], function: Callable[..., Any], tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    waiting, free = deque(tasks), list(seats)
    running: dict[Future[Any], tuple[_Seat, Any]] = {}
    while waiting or running:
        while waiting and free:
            seat, task = free.pop(), waiting.popleft()
            running[seat.submit(function, *task)] = seat, task
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            seat, task = running.pop(future)
            free.append(seat)
            yield task, seat.result(future)


def _on_cluster(client: Any, function: Callable[..., Any], tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    from distributed import KilledWorker, as_completed

    futures = {client.submit(function, *task, pure=False): task for task in tasks}
    try:
        for future in as_completed(list(futures)):
            try:
                result = future.result()
            except KilledWorker as error:
                result = Died(" ".join(str(error).split()))
            yield futures[future], result
    finally:
        client.cancel(list(futures))


@contextlib.contextmanager
def _threads_of(workers: int) -> Iterator[None]:
    """Child processes read their number of threads when their libraries load."""
    share = str(max(1, len(os.sched_getaffinity(0)) // workers if hasattr(os, "sched_getaffinity") else 1))
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update({name: before[name] or share for name in _THREADS})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
