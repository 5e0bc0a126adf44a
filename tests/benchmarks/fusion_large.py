"""Time and memory of the linear fusion on cubes larger than memory should hold.

Without a command (``table``) it makes cubes in a folder and measures each step in a process of its own: the imports
alone, making the file, reading it once, and `read_cube` → `synthesize_views` → `fuse_linear`, also over dask worker
processes. ``make``, ``read`` and ``fuse`` are those steps by themselves, each ending with a line of JSON. What is
imported or made at a first call is so beforehand, on a corner of the same file.

Peak memory is the process's own, imports included, workers apart (VmHWM); "passes" is what the process and its workers
read (rchar) over the file's size; CPU seconds, the workers' too, are less disturbed by other work than seconds. "FRC Å"
tells a right image from a wrong one and nothing of low doses: it is where the correlation with the truth falls to 0.5
after the image's periods are averaged (`fusion_large_cube`), and the band limit is 0.98 Å.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

_FRAME_BYTES = 128 * 128 * 2
_TICK = 0.02  # s
_OVER = 77  # exit status of a process that went past its memory limit
_SMALL = 0.04  # of the time: stages below it are not listed
_PACKAGES = ("misr", "torch", "numpy", "dask", "xarray", "zarr", "h5py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Meter:
    """Seconds, CPU seconds, bytes read and peak memory of a block; and where misr's functions spent them.

    Every 20 ms it notes the resident memory and which of misr's functions are on the stack of any thread: inclusive
    times, without slowing what is measured.
    """

    def __init__(self, limit_GiB: float) -> None:
        self.limit = limit_GiB * 2**30
        self.stages: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        self.curve: list[tuple[float, float]] = []
        self.row: Row = {}
        self._done = threading.Event()

    def __enter__(self) -> Meter:
        import misr

        self._home = str(Path(misr.__file__).parent) + os.sep
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start, self._spent = time.perf_counter(), spent()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.row = {"seconds": time.perf_counter() - self._start, "peak_MiB": peak_MiB()}
        self.row |= {name: value - self._spent[name] for name, value in spent().items()}
        self._done.set()
        self._thread.join()
        self.row["stages"] = dict(self.stages)
        self.row["curve"] = [[round(t, 2), round(m)] for t, m in self.curve[:: 1 + len(self.curve) // 50]]  # s, MiB

    def _watch(self) -> None:
        own, before = threading.get_ident(), time.perf_counter()
        while not self._done.wait(_TICK):
            now, memory = time.perf_counter(), resident_MiB()
            if memory * 2**20 > self.limit:
                os._exit(_OVER)
            self.curve.append((now - self._start, memory))
            running, innermost = self._running(own)
            for name in running:
                total, itself, most = self.stages[name]
                itself += (now - before) * (name in innermost)
                self.stages[name] = [total + now - before, itself, max(most, memory)]
            before = now

    def _running(self, own: int) -> tuple[set[str], set[str]]:
        """misr's functions on the stacks of all threads but this one, and the innermost of each thread."""
        running, innermost = set(), set()
        for thread, frame in sys._current_frames().items():
            names = list(self._names(frame)) if thread != own else []
            running.update(names)
            innermost.update(names[:1])
        return running, innermost

    def _names(self, frame: Any) -> Iterator[str]:
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(self._home):
                module = code.co_filename.removeprefix(self._home).removesuffix(".py").replace(os.sep, ".")
                yield f"{module}.{code.co_qualname.replace('<locals>.', '')}"
            frame = frame.f_back


def resident_MiB() -> float:
    """Memory of this process now; of the files that say so the shortest, as reading it counts in `spent`."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def peak_MiB() -> float:
    """Most memory since the process began; ``ru_maxrss`` would start from the parent's at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def spent() -> dict[str, float]:
    """CPU seconds of this process, and the bytes it asked of files, on the disk or in its cache."""
    return {"cpu_s": time.process_time(), "bytes_read": int(Path("/proc/self/io").read_text().split()[1])}


def imports(options: argparse.Namespace) -> Row:
    """The memory of the imports alone."""
    with Meter(options.limit) as meter:
        pass
    return meter.row


def make(options: argparse.Namespace) -> Row:
    """Write a cube of counts."""
    from fusion_large_cube import write_cube

    with Meter(options.limit) as meter:
        write_cube(options.path, scan=options.scan[0], dose=options.dose, period=options.period)
    return meter.row


def corner(path: Path, *, load: bool = False) -> Any:
    """A few positions of the file, to warm up with."""
    import misr

    few = misr.read_cube(path).isel(scan_y=slice(16), scan_x=slice(16))
    return few.load(scheduler="synchronous") if load else few


def read(options: argparse.Namespace) -> Row:
    """Sum the whole file, block by block."""
    import misr

    int(corner(options.path).sum())
    with Meter(options.limit) as meter:
        electrons = int(misr.read_cube(options.path).sum())
    return meter.row | {"electrons": electrons}


def fuse(options: argparse.Namespace) -> Row:
    """The file to an image, and how well that agrees with the truth."""
    from fusion_large_cube import resolution

    import misr

    upsample, n_views = options.upsample[0], options.views[0] or None
    with workers(options) as on_each:
        on_each(corner, options.path, load=True)
        warm_up(options)
        before = on_each(spent)
        with Meter(options.limit) as meter:
            views = misr.synthesize_views(misr.read_cube(options.path), n_views=n_views)
            fused = misr.fuse_linear(views, upsample=upsample, device=options.device)
        row = meter.row | {"worker_MiB": on_each(peak_MiB), "n_views": views.sizes["view"]}
        for now, then in zip(on_each(spent), before, strict=True):
            row |= {name: row[name] + now[name] - then[name] for name in now}
    if options.image is not None:
        np.save(options.image, fused["phase"].values)
    return row | {"chi2": fused.attrs.get("chi2"), "resolution_A": resolution(fused["phase"], upsample=upsample)}


def warm_up(options: argparse.Namespace) -> None:
    """Import, and compile or load, what fusing takes."""
    from unittest.mock import patch

    import misr
    from misr.fusion import statistic

    few = misr.synthesize_views(corner(options.path), n_views=16)
    with patch.object(statistic, "_WORTH_COMPILING", 0):
        misr.fuse_linear(few, upsample=2, device=options.device)


@contextlib.contextmanager
def workers(options: argparse.Namespace) -> Iterator[Any]:
    """Worker processes of one thread each, if wanted, and a function that asks each of them something."""
    if not options.workers[0]:
        yield lambda ask, *given, **named: []
        return
    from distributed import Client, LocalCluster

    settings = {"n_workers": options.workers[0], "threads_per_worker": 1, "memory_limit": f"{options.limit}GiB"}
    with LocalCluster(processes=True, dashboard_address=None, **settings) as cluster, Client(cluster) as client:
        yield lambda ask, *given, **named: list(client.run(ask, *given, **named).values())


def table(options: argparse.Namespace) -> None:
    """Measure everything, print Markdown."""
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fusion-large-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [measured("imports", options)]
    try:
        for kind in options.format:
            for scan in options.scan:
                rows += cube_rows(kind, scan, options, folder)
    finally:
        if options.folder is None and not options.keep:
            shutil.rmtree(folder)
    for row in rows:
        row["own_MiB"] = row.get("peak_MiB", math.nan) - rows[0]["peak_MiB"]
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1, default=str))
    print(report(rows, options))


def cube_rows(kind: str, scan: int, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Every measurement of one file, which is then deleted."""
    path = folder / f"scan{scan}-{options.dose:g}{'-periodic' * options.period}.{kind.replace('hdf5', 'h5')}"
    about: Row = {"scan": scan, "format": kind, "cube_bytes": scan**2 * _FRAME_BYTES}
    if shutil.disk_usage(folder).free < 1.2 * about["cube_bytes"]:
        raise SystemExit(f"{folder} has no room for {about['cube_bytes'] / 2**30:.1f} GiB: give another --folder")
    if path.exists() and not options.keep:
        raise SystemExit(f"{path} is there already: give --keep to use it, and keep it, or another --folder")
    rows = [] if path.exists() else [about | measured("make", options, path, scan=scan)]
    if not path.exists():
        return rows
    files = path.rglob("*") if path.is_dir() else [path]
    about["file_bytes"] = sum(file.stat().st_size for file in files)
    base = about | measured("read", options, path)
    rows.append(base)
    for views in options.views:
        for upsample in options.upsample:
            images = []
            for n_workers in (0, *options.workers):
                image = folder / f"image{n_workers}.npy"
                given = {"views": views, "upsample": upsample, "workers": n_workers, "image": image}
                row = about | given | measured("fuse", options, path, **given)
                row["of_read"] = row.get("seconds", math.nan) / base.get("seconds", math.nan)
                images.append(np.load(image) if image.exists() else None)
                image.unlink(missing_ok=True)
                if n_workers and images[0] is not None and images[-1] is not None:
                    row["difference"] = float(np.abs(images[-1] - images[0]).max() / np.abs(images[0]).max())
                rows.append(row)
    if not options.keep:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return rows


def measured(run: str, options: argparse.Namespace, path: Path | None = None, **given: Any) -> Row:
    """A step in a process of its own: the line of JSON that it ends with, or why there is none."""
    values = {name: getattr(options, name) for name in ("dose", "limit", "device", "threads")} | given
    if values.get("workers"):
        values["threads"] = 1
    command = [sys.executable, __file__, run, *([] if path is None else [str(path)])]
    command += [part for name, value in values.items() for part in (f"--{name}", str(value))]
    command += ["--period"] if options.period else []
    environment = os.environ | dict.fromkeys(_THREADS, str(values["threads"]))
    print(" ".join(command[2:]), file=sys.stderr, flush=True)
    row: Row = {"run": run, "threads": values["threads"]}
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return row | {"failed": f"over {options.timeout:g} s"}
    if done.returncode:
        over = f"over {options.limit:g} GiB"
        return row | {"failed": over if done.returncode == _OVER else f"exit status {done.returncode}"}
    row |= json.loads(done.stdout.splitlines()[-1])
    print(f"  {row['seconds']:.1f} s, {row['peak_MiB']:.0f} MiB", file=sys.stderr, flush=True)
    return row


_HEADER = (
    "run", "format", "scan", "cube GiB", "file GiB", "views", "×", "workers", "threads", "s", "CPU s", "÷ read",
    "passes", "peak MiB", "− imports", "workers' MiB", "chi2", "FRC Å", "difference",
)  # fmt: skip


def report(rows: list[Row], options: argparse.Namespace) -> str:
    """The table, how time and memory grow with the scan, the workers' speed-up, and where the time went."""
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    parts = [
        f"{versions}, Python {platform.python_version()}, {os.cpu_count()} cores, {options.dose:g} e/Å², "
        f"{'periodic' if options.period else 'not periodic'}\n",
        markdown(_HEADER, [cells(row) for row in rows]),
    ]
    fused = [row for row in rows if row["run"] == "fuse" and "seconds" in row]
    for name, group in grouped(fused, "format", "views", "upsample", "workers"):
        parts += list(exponents(name, group))
    for name, group in grouped(fused, "format", "scan", "views", "upsample"):
        parts += list(speed_up(name, group))
    largest = max((row["scan"] for row in fused), default=0)
    parts += [stages(row) for row in fused if row["scan"] == largest and not row["workers"]]
    return "\n".join(parts)


def cells(row: Row) -> list[str]:
    """One line of the table."""

    def number(name: str, digits: int = 1, unit: float = 1) -> str:
        return f"{row[name] / unit:.{digits}f}" if row.get(name) is not None else ""

    about = [str(row.get(name, "")) for name in ("format", "scan")]
    about += [number("cube_bytes", 2, 2**30), number("file_bytes", 2, 2**30)]
    about += [str(row.get(name, "")) for name in ("n_views", "upsample", "workers", "threads")]
    if "failed" in row:
        return [row["run"], *about, row["failed"]]
    passes = f"{row['bytes_read'] / row['file_bytes']:.2f}" if row["run"] in ("read", "fuse") else ""
    per_worker = " + ".join(f"{peak:.0f}" for peak in row.get("worker_MiB", ()))
    difference = f"{row['difference']:.1e}" if "difference" in row else ""
    return [
        row["run"], *about, number("seconds"), number("cpu_s"), number("of_read"), passes, number("peak_MiB", 0),
        number("own_MiB", 0), per_worker, number("chi2", 3), number("resolution_A", 2),
        difference,
    ]  # fmt: skip


def markdown(header: Sequence[str], lines: list[list[str]]) -> str:
    """A Markdown table; short lines are filled up."""
    filled = [[*line, *[""] * (len(header) - len(line))] for line in lines]
    width = [max(map(len, column)) for column in zip(header, *filled, strict=True)]
    shown = [" | ".join(cell.rjust(w) for cell, w in zip(line, width, strict=True)) for line in (header, *filled)]
    shown.insert(1, "-|-".join("-" * (w - 1) + ":" for w in width))
    return "\n".join(f"| {line} |" for line in shown)


def grouped(rows: list[Row], *names: str) -> Iterator[tuple[str, list[Row]]]:
    """Rows with the same values under these names, and the names and values as words."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[", ".join(f"{name} {row[name]}" for name in names)].append(row)
    yield from groups.items()


def exponents(group: str, rows: list[Row]) -> Iterator[str]:
    """Powers of the number of probes that time and memory grow with."""
    if len({row["scan"] for row in rows}) < 2:
        return
    probes = np.log([row["scan"] ** 2 for row in rows])
    names = {"seconds": "seconds", "CPU seconds": "cpu_s", "peak memory less the imports": "own_MiB"}
    powers = [np.polyfit(probes, np.log([row[key] for row in rows]), 1)[0] for key in names.values()]
    grown = (f"{name} as probes^{power:.2f}" for name, power in zip(names, powers, strict=True))
    yield f"\n{group}: {', '.join(grown)}"


def speed_up(name: str, rows: list[Row]) -> Iterator[str]:
    """Each number of workers against one."""
    one = [row["seconds"] for row in rows if row["workers"] == 1]
    for row in rows:
        if one and row["workers"] > 1:
            yield f"\n{name}: {row['workers']} workers are {one[0] / row['seconds']:.2f} times as fast as 1"


def stages(row: Row) -> str:
    """Where the time went: misr's functions by the time that some thread was inside them."""
    lines = [
        [name, f"{seconds:.1f}", f"{100 * seconds / row['seconds']:.0f}", f"{itself:.1f}", f"{memory:.0f}"]
        for name, (seconds, itself, memory) in sorted(row["stages"].items(), key=lambda item: -item[1][0])
        if seconds > _SMALL * row["seconds"]
    ]
    heading = f"Stages of {row['format']}, scan {row['scan']}, {row['n_views']} views, ×{row['upsample']}"
    return f"\n{heading}:\n\n" + markdown(("in, callees included", "s", "%", "s itself", "MiB at most"), lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("run", nargs="?", choices=("table", "imports", "make", "read", "fuse"), default="table")
    parser.add_argument("path", nargs="?", type=Path, help="a .zarr or .h5: for make, read and fuse")
    parser.add_argument("--scan", type=int, nargs="+", default=[64, 128], help="probe positions each way")
    parser.add_argument("--format", nargs="+", choices=("zarr", "hdf5"), default=["zarr"])
    parser.add_argument("--views", type=int, nargs="+", default=[400], help="0: every bright-field pixel")
    parser.add_argument("--upsample", type=int, nargs="+", default=[2, 4], help="pixels per scan step")
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="dask worker processes; also without any")
    parser.add_argument("--threads", type=int, default=2, help="of torch and dask; 1 each with workers")
    parser.add_argument("--dose", type=float, default=1000.0, help="e/Å²")
    parser.add_argument("--period", action="store_true", help="tell the fusion that the scan wraps round")
    parser.add_argument("--device", default="cpu", help="for torch")
    parser.add_argument("--folder", type=Path, help="for the files; a temporary one, if not given, that is deleted")
    parser.add_argument("--keep", action="store_true", help="keep the files, and use those that are there")
    parser.add_argument("--limit", type=float, default=12.0, help="GiB of memory at which a run is stopped")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds after which a run is stopped")
    parser.add_argument("--json", type=Path, help="write all figures, memory over time too, to this file")
    parser.add_argument("--image", type=Path, help="fuse: save the image to this .npy")
    options = parser.parse_args(arguments)
    if options.run in ("make", "read", "fuse") and options.path is None:
        parser.error(f"{options.run} needs a path")
    options.workers = options.workers or ([] if options.run == "table" else [0])
    return options


def main() -> None:
    """Run one step, or all of them."""
    options = parse()
    if options.run == "table":
        table(options)
        return
    import dask
    import torch

    torch.set_num_threads(options.threads)
    dask.config.set(scheduler="threads", num_workers=options.threads)
    run = {"imports": imports, "make": make, "read": read, "fuse": fuse}[options.run]
    print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
