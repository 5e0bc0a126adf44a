"""The demonstration: one small specimen of each class, misr and both references, a table, a file and a figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import xarray as xr

from misr._curves import named_curve
from misr.dose import apply_dose, split_counts
from misr.fusion import fuse_linear, plan_fusion, shift_and_add
from misr.resolution import fourier_ring_correlation, frc_resolution, resolution_words
from misr.views import axial_view, synthesize_views

__all__ = ["METHODS", "format_table", "run_demo"]

METHODS = {
    "raw view": "one raw view",
    "tcBF": "tcBF (shift_and_add)",
    "misr": "misr (fuse_linear)",
    "parallax": "py4DSTEM parallax",
    "ptychography": "py4DSTEM ptychography",
}
SPECIMENS = {
    "amorphous": "amorphous: protein-like packing",
    "semicrystalline": "semi-crystalline: zeolite in glass",
    "crystalline": "crystalline: zeolite with vacancies",
}
# 1/Å: wider than the zeolite's reciprocal lattice spacing (1/11.87 Å), or rings between reflections are empty
_RING_WIDTH = 0.09
_FIELD = 64.0
_STEP = 2.0
_OPTICS: dict[str, Any] = {"energy_eV": 300e3, "semiangle_mrad": 10.0, "aberrations": {"C10": -1500.0}}


def run_demo(
    out: str | Path, *, dose_e_per_A2: float = 100.0, rng: int = 0, progress: bool = True
) -> list[dict[str, Any]]:
    """Simulate, reconstruct and measure; write ``<specimen>.nc`` and ``figure.png`` into a folder.

    Parameters
    ----------
    out : path
        Folder to write to; made if it does not exist.
    dose_e_per_A2 : float, default 100
        Electrons per Å².
    rng : int, default 0
        Seed of specimens, counts and halves.
    progress : bool, default True
        Show progress bars.

    Returns
    -------
    list of dict
        One row per specimen and method: ``specimen, method, truth_A, half_map_A, seconds`` (Å: FRC against truth at
        0.5, half-map FRC at half-bit).

    Raises
    ------
    ValueError
        If the dose is not positive.

    Examples
    --------
    >>> rows = run_demo("misr-demo")  # doctest: +SKIP
    """
    from tqdm.auto import tqdm

    from misr.figures import demo_figure
    from misr.io import save_result

    if not dose_e_per_A2 > 0:
        raise ValueError(f"dose_e_per_A2={dose_e_per_A2} must be a positive number of electrons per Å²")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    results: dict[str, xr.Dataset] = {}
    steps = len(SPECIMENS) * (1 + len(METHODS))
    with tqdm(total=steps, disable=not progress, unit="step") as bar:
        for name in SPECIMENS:
            bar.set_description(f"{name}: simulating")
            simulated = simulate_specimen(name, rng=rng)
            bar.update()
            results[name], table = _compare(simulated, name, dose_e_per_A2=dose_e_per_A2, rng=rng, bar=bar)
            rows += table
            save_result(results[name], folder / f"{name}.nc")
    demo_figure(results, titles=SPECIMENS, methods=METHODS).savefig(folder / "figure.png", dpi=130)
    return rows


def simulate_specimen(name: str, *, rng: int = 0) -> xr.Dataset:
    """Expected counts and truth of one of the demonstration's specimens."""
    from misr.simulate import simulate_cube
    from misr.specimens import amorphous_atoms, crystalline_atoms, semicrystalline_atoms

    if name == "amorphous":
        atoms = amorphous_atoms(field_A=_FIELD, thickness_A=30.0, rng=rng)
    elif name == "semicrystalline":
        atoms = semicrystalline_atoms(field_A=_FIELD, place="centre", rng=rng)
    else:
        atoms = crystalline_atoms("zeolite", field_A=_FIELD, vacancies=0.05, rng=rng)
    return simulate_cube(atoms, scan_step_A=_STEP, progress=False, **_OPTICS)


def _compare(
    simulated: xr.Dataset, specimen: str, *, dose_e_per_A2: float, rng: int, bar: Any
) -> tuple[xr.Dataset, list[dict[str, Any]]]:
    from misr.resample import phase_on_grid

    cube = apply_dose(simulated["counts"], dose_e_per_A2, rng=rng)
    # the references do not know that the simulated scan wraps round, so misr is not told either
    cube.attrs.pop("period_A", None)
    halves = split_counts(cube, rng=rng)
    # all images on the pixels that show the whole band, whatever the dose fills
    views = synthesize_views(cube)
    like = fuse_linear(views, upsample=plan_fusion(views, upsample=1).folds)["phase"]
    found: dict[str, xr.DataArray] = {"truth": phase_on_grid(simulated["phase"], like=like)}
    rows = []
    for key, reconstruct in _reconstructions(like, rng):
        bar.set_description(f"{specimen}: {METHODS[key]}")
        # the halves first: they pay for imports and compilation, so that the time is the method's own
        half_map = fourier_ring_correlation(*(reconstruct(half) for half in halves), ring_width=_RING_WIDTH)
        start = time.perf_counter()
        image = reconstruct(cube)
        seconds = time.perf_counter() - start
        against = fourier_ring_correlation(image, phase_on_grid(simulated["phase"], like=image), ring_width=_RING_WIDTH)
        rows.append(
            {
                "specimen": specimen,
                "method": METHODS[key],
                "truth_A": frc_resolution(against, 0.5),
                "half_map_A": frc_resolution(half_map),
                "seconds": seconds,
            }
        )
        found |= {key: image, f"{key} truth": against, f"{key} half": half_map}
        bar.update()
    return _collect(found, cube), rows


def _reconstructions(like: xr.DataArray, rng: int) -> Iterator[tuple[str, Callable[[xr.DataArray], xr.DataArray]]]:
    from misr.reference import reconstruct_parallax, reconstruct_ptychography

    yield "raw view", raw_view
    yield "tcBF", lambda cube: shift_and_add(synthesize_views(cube))
    yield "misr", lambda cube: fuse_linear(synthesize_views(cube), upsample=like.attrs["upsample"])["phase"]
    yield "parallax", lambda cube: reconstruct_parallax(cube, like=like, progress=False)
    yield (
        "ptychography",
        lambda cube: cast(xr.DataArray, reconstruct_ptychography(cube, like=like, rng=rng, progress=False)),
    )


def raw_view(cube: xr.DataArray) -> xr.DataArray:
    """The axial one of seven views."""
    return axial_view(synthesize_views(cube, n_views=7))


def _collect(found: dict[str, xr.DataArray], cube: xr.DataArray) -> xr.Dataset:
    """One Dataset: images as ``phase_<method>`` (the raw view on its own, coarser grid), curves as ``frc_…``."""
    variables: dict[str, Any] = {}
    for key, array in found.items():
        name = key.replace(" ", "_")
        if "frequency" in array.dims:
            rings = "frequency_raw" if key.startswith("raw view") else "frequency"
            variables[f"frc_{name}"] = named_curve(array, f"frc_{name}", frequency=rings)
        elif key == "raw view":
            variables[name] = array.rename(y="scan_y", x="scan_x")
        else:
            variables[f"phase_{name}"] = array
    kept = ("energy_eV", "semiangle_mrad", "dose_e_per_A2", "rotation_deg", "C10_A", "history")
    return xr.Dataset(variables, attrs={name: cube.attrs[name] for name in kept if name in cube.attrs})


def format_table(rows: list[dict[str, Any]]) -> str:
    """The table as text, aligned, with what an unusual value means.

    Parameters
    ----------
    rows : list of dict
        From `run_demo`.

    Returns
    -------
    str
        Ready to print.

    Examples
    --------
    >>> from misr.resolution import xr
    >>> value = xr.DataArray(2.5, attrs={"status": "crossed"})
    >>> print(format_table([{"specimen": "a", "method": "b", "truth_A": value, "half_map_A": value, "seconds": 1.0}]))
    specimen  method  FRC vs truth 0.5 (Å)  half-map FRC (Å)  seconds
    a         b                       2.50              2.50     1.00
    """
    header = ("specimen", "method", "FRC vs truth 0.5 (Å)", "half-map FRC (Å)", "seconds")
    lines = [header]
    for row in rows:
        resolutions = (_cell(row["truth_A"]), _cell(row["half_map_A"]))
        lines.append((row["specimen"], row["method"], *resolutions, f"{row['seconds']:.2f}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells))
    return "\n".join(text)


def _cell(resolution: xr.DataArray) -> str:
    return resolution_words(resolution).removesuffix(" Å").removesuffix(" resolved")
