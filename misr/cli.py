"""The command ``misr``: demo, run, fit, info, benchmark, train, dashboard."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misr import __version__
from misr._cli_long import PUBLISHED, add_benchmark, add_train

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["main"]

# torch's LinAlgError is a RuntimeError, numpy's a ValueError
_ANSWERED = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit status: 0, or 2 when it could not be done (the reason goes to standard error).

    Examples
    --------
    >>> main(["info", "no-such-file.h5"])
    2
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="misr: %(message)s")
    try:
        with _warnings_in_one_line():
            return int(arguments.run(arguments) or 0)
    except _ANSWERED as error:
        if arguments.verbose:
            logging.getLogger(__name__).exception("failed")
        print(f"misr: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """What misr warns its user of, said as its errors are; other warnings as they always are."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, UserWarning):
                print(f"misr: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                usual(message, category, *where, **options)

        warnings.showwarning = show
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="misr", description="Super-resolution for ultra-low-dose 4D-STEM.")
    parser.add_argument("--version", action="version", version=f"misr {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="one simulated specimen of each class, misr beside the references")
    demo.add_argument("-o", "--out", type=Path, default=Path("misr-demo"), help="folder (default: %(default)s)")
    demo.add_argument("--dose", type=float, default=100.0, metavar="E_PER_A2", help="e/Å² (default: %(default)g)")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)

    run = commands.add_parser("run", help="a cube to an image with its resolution")
    _add_cube_arguments(run)
    run.add_argument("-o", "--out", type=Path, required=True, help="result: .nc, .zarr or .zarr.zip")
    run.add_argument("--views", type=int, metavar="N", help="number of views (default: every bright-field pixel)")
    run.add_argument(
        "--upsample", type=_upsample, default="auto", metavar="N", help="pixels per scan step (default: %(default)s)"
    )
    run.add_argument(
        "--model", default="linear", help="linear (default), network, or the weights that misr train wrote"
    )
    run.add_argument("--ring-width", type=float, metavar="1/Å", help="FRC ring width")
    run.add_argument("--seed", type=int, default=0, help="seed of the split in halves (default: %(default)s)")
    run.add_argument("--png", type=Path, help="also write the image as a picture")
    run.set_defaults(run=_run)

    _add_fit(commands)

    info = commands.add_parser("info", help="what a file holds and whether it is a valid cube")
    _add_cube_arguments(info)
    info.set_defaults(run=_info)

    add_benchmark(commands, _benchmark)
    add_train(commands, _train)

    dashboard = commands.add_parser("dashboard", help="serve the dose explorer in the browser")
    dashboard.add_argument("cube", nargs="?", help="a cube (default: a simulated one)")
    _add_calibration_arguments(dashboard)
    dashboard.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    dashboard.add_argument("--no-show", action="store_true", help="do not open the browser")
    dashboard.set_defaults(run=_dashboard)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="defocus, astigmatism and rotation from a cube alone",
        description="Defocus, astigmatism and rotation from a cube alone. What the file says of them is not used; a "
        "rotation given as an option is kept.",
    )
    _add_cube_arguments(fit)
    fit.add_argument("--orders", nargs="+", default=[], choices=("C21", "C23", "C30"), help="fit these as well")
    fit.add_argument("--defocus-sign", choices=("under", "over"), help="the side of focus, if known (under: C10 < 0)")
    fit.add_argument("--max-defocus-A", type=float, dest="max_defocus_A", help="largest defocus looked for, Å")
    fit.add_argument("-o", "--out", type=Path, help="save the fit: .nc, .zarr or .zarr.zip")
    fit.set_defaults(run=_fit)


def _add_cube_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cube", help="file or folder: HDF5/EMD, hspy, mib, dm4, npy, nc, zarr …")
    _add_calibration_arguments(parser)


def _add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration, where the file does not say (or says it wrong)")
    group.add_argument("--energy-eV", type=float, dest="energy_eV")
    group.add_argument("--semiangle-mrad", type=float, dest="semiangle_mrad")
    group.add_argument("--scan-step-A", type=float, dest="scan_step_A")
    group.add_argument("--det-step-mrad", type=float, dest="det_step_mrad")
    group.add_argument("--rotation-deg", type=float, dest="rotation_deg")
    group.add_argument("--dose-e-per-A2", type=float, dest="dose_e_per_A2")
    group.add_argument("--defocus-A", type=float, dest="defocus_A", help="defocus = -C10")


def _upsample(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 'auto' or a whole number, at least 1, not {text!r}")
    return int(text)


def _check_targets(out: Path, picture: Path | None) -> None:
    """Refuse what could not be written, before the work and not after it."""
    from matplotlib.backend_bases import FigureCanvasBase

    from misr._stored import is_zarr_folder
    from misr._writers import file_kind

    file_kind(out)
    known = FigureCanvasBase.get_supported_filetypes()
    if picture is not None and picture.suffix[1:].lower() not in known:
        raise ValueError(f"cannot tell the format of {picture.name!r}: end its name in .png or one of {sorted(known)}")
    for path in (out, picture):
        if path is None:
            continue
        folder = path.resolve().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} for {path.name}: make it first")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{path.name} cannot be written in {folder}: choose another folder")
        if path.is_dir() and not is_zarr_folder(path):
            raise IsADirectoryError(f"{path} is a folder: give the name of a file")


def _read(arguments: argparse.Namespace) -> Any:
    from misr.io import read_cube

    names = ("energy_eV", "semiangle_mrad", "scan_step_A", "det_step_mrad", "rotation_deg", "dose_e_per_A2")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.defocus_A is not None:
        given["aberrations"] = {"defocus": arguments.defocus_A}
    return read_cube(arguments.cube, **given)


def _demo(arguments: argparse.Namespace) -> None:
    from misr.demo import format_table, run_demo

    rows = run_demo(arguments.out, dose_e_per_A2=arguments.dose, rng=arguments.seed)
    print(format_table(rows))
    print(f"\nfigure and results in {arguments.out}/")


def _run(arguments: argparse.Namespace) -> None:
    from misr._writers import replacing
    from misr.figures import image_figure, resolution_sentence
    from misr.io import save_result
    from misr.pipeline import super_resolve

    _check_targets(arguments.out, arguments.png)
    result = super_resolve(
        _read(arguments),
        rotation_deg=arguments.rotation_deg,
        n_views=arguments.views,
        upsample=arguments.upsample,
        model=arguments.model,
        ring_width=arguments.ring_width,
        rng=arguments.seed,
    )
    save_result(result, arguments.out)
    if "aberrations_confident" in result.attrs:
        print(_found_sentence(result))
    if arguments.png is not None:
        with replacing(arguments.png) as temporary:
            image_figure(result).savefig(temporary, dpi=150)
    if "resolution" in result:
        print(f"{resolution_sentence(result['resolution'])} (half-map FRC, half-bit)")
    if "resolution_linear" in result:
        print(f"the linear fusion of the same electrons: {resolution_sentence(result['resolution_linear'])}")
    print(f"phase image {result['phase'].shape[0]} × {result['phase'].shape[1]} pixels in {arguments.out}")


def _found_sentence(result: xr.Dataset) -> str:
    """What `misr.super_resolve` found by itself."""
    attrs = result.attrs
    certain = "certain" if attrs["aberrations_confident"] else "not certain, see misr fit"
    return (
        f"found C10 = {attrs['C10_A']:.0f} Å, C12 = {attrs.get('C12_A', 0.0):.0f} Å, "
        f"rotation {attrs.get('rotation_deg', 0.0):.1f}° ({certain})"
    )


def _fit(arguments: argparse.Namespace) -> None:
    from misr.calibrate import fit_aberrations
    from misr.io import save_result

    if arguments.defocus_A is not None:
        raise ValueError("misr fit finds the defocus: leave --defocus-A out, or give --defocus-sign or --max-defocus-A")
    if arguments.out is not None:
        _check_targets(arguments.out, None)
    cube = _read(arguments)
    fit = fit_aberrations(
        cube,
        orders=("C10", "C12", *arguments.orders),
        rotation_deg=arguments.rotation_deg,
        defocus_sign={"under": 1, "over": -1, None: None}[arguments.defocus_sign],
        max_defocus_A=arguments.max_defocus_A,
    )
    if arguments.out is not None:
        save_result(fit, arguments.out)
    for line in _fit_lines(fit):
        print(line)
    descan = fit.attrs["descan_range_mrad"]
    print(f"descan: up to {descan:.2f} mrad over the scan" if descan else "descan: none seen")
    print("confident" if fit.attrs["confident"] else f"not certain: {fit.attrs['reason']}")


def _fit_lines(fit: xr.Dataset) -> list[str]:
    """A row for each value with its standard error, and the detector's handedness."""
    names = [str(name) for name in fit.data_vars if f"{name}_stderr" in fit]
    rows = []
    for name in names:
        value, stderr = float(fit[name]), float(fit[f"{name}_stderr"])
        # to two figures of the error; an error of 0 is that of a value that was given
        known = not (stderr > 0 and math.isfinite(stderr))
        decimals = 2 if known else max(0, 1 - math.floor(math.log10(stderr)))
        error = f"{'given':<10}" if known else f"± {stderr:<8.{decimals}f}"
        rows.append(f"{name:<12} {value:>12.{decimals}f} {error} {fit[name].attrs['units']}")
    return [*rows, f"detector: {'transposed' if int(fit['transposed']) else 'not transposed'}"]


def _info(arguments: argparse.Namespace) -> None:
    from misr.cube import cube_history, validate_cube

    cube = _read(arguments)
    sizes = " × ".join(f"{size} {name}" for name, size in cube.sizes.items())
    print(f"{arguments.cube}: {sizes}, {cube.dtype}, {cube.nbytes / 2**20:.1f} MiB")
    for name in cube.dims:
        values, units = cube[name].values, cube[name].attrs["units"]
        print(f"  {name}: {values[0]:.4g} to {values[-1]:.4g} {units}, step {values[1] - values[0]:.4g}")
    for name, value in cube.attrs.items():
        if name != "history":
            print(f"  {name}: {value}")
    if "semiangle_mrad" not in cube.attrs:
        print("  semiangle_mrad: not known, will be estimated from the bright-field disk")
    for line in cube_history(cube):
        print(f"  done: {line['operation']}")
    validate_cube(cube)
    print("a valid cube")


def _benchmark(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from misr.benchmark import preset_settings, run_benchmark, structure_specimen, write_report
    from misr.benchmark.report import table_words

    settings = preset_settings(arguments.preset)
    if arguments.structure:
        settings = replace(settings, specimens=tuple(structure_specimen(path) for path in arguments.structure))
    settings = settings.narrowed(doses=arguments.doses, seeds=arguments.seeds, methods=arguments.methods)
    if not arguments.resume and (arguments.folder / "cells").is_dir():
        raise FileExistsError(f"{arguments.folder} holds results already: give another --folder, or leave --no-resume")
    try:
        table = run_benchmark(
            arguments.folder, settings=settings, workers=arguments.workers, quantem_python=arguments.quantem_python,
            attention_unet=arguments.attention_unet,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("misr: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(table_words(table))
    print(f"\nreport in {write_report(table, arguments.folder)}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    weights = arguments.folder / "weights.safetensors"
    published = arguments.preset == PUBLISHED
    try:
        if published:
            _train_published(arguments)
        else:
            _train_fusion(arguments)
    except KeyboardInterrupt:
        print("misr: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if published:
        print(f"network in {weights}: use it as misr benchmark --attention-unet {weights}")
    else:
        print(f"network in {weights}: use it as misr.fuse_cnn(views, model={str(weights)!r})")
    return 0


def _train_published(arguments: argparse.Namespace) -> None:
    from misr.benchmark.attention_unet_training import train_attention_unet

    if arguments.device not in ("auto", "cpu"):
        raise ValueError(f"--device {arguments.device}: the preset {PUBLISHED} is trained on the CPU, leave it out")
    train_attention_unet(arguments.folder, workers=arguments.workers, hours=arguments.hours)


def _train_fusion(arguments: argparse.Namespace) -> None:
    from misr.fusion.presets import run_preset

    run_preset(
        arguments.preset, folder=arguments.folder, workers=arguments.workers, hours=arguments.hours,
        device=arguments.device,
    )  # fmt: skip


def _dashboard(arguments: argparse.Namespace) -> None:
    from misr.dashboards import serve

    cube = None if arguments.cube is None else _read(arguments)
    serve(cube, port=arguments.port, show=not arguments.no_show)


if __name__ == "__main__":
    sys.exit(main())
