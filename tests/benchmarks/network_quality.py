"""What the network of `misr.fuse_cnn` is worth, on specimens that it was never trained on.

The random test specimens of `misr.fusion.random_specimens` (split "test": other seeds, other lattices and other
compositions than training's), each under its own random microscope, calibration errors included.

    python tests/benchmarks/network_quality.py --folder DIR [--model FILE] [--parts table views defects …]

"table": bandwidth (1/Å at which the FRC with the truth falls to 0.5, rings of 0.08 of the band 2α/λ, Hann taper) of the
network over that of the better of both linear images, by class and dose; the worst single specimen; and the share of
pixels within one and 1.96 of its own standard deviations. "views": the same for fewer views. "defects": area under
the ROC curve of telling sites whose atoms were taken out, or where some were added, from the same places of the
undamaged twin, on the learned and on the linear images (ring and local prior, and OBF, which leaves nothing out):
values there less what other draws of the twin's electrons show, so that the observer knows the lattice; a mean over the
sites of each specimen's own area, the difference with its error by bootstrap over specimens. "controls": half maps of
vacuum. "trust": `misr.trust_report`. "speed": a field of 256 × 256 pixels with 100 groups of views.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import misr
from misr.cube import image_from_array
from misr.fusion.presets import make_shards
from misr.fusion.random_scans import draw_conditions
from misr.fusion.random_specimens import SPECIMEN_KINDS
from misr.fusion.training_data import simulate, specimen_of
from misr.fusion.training_files import as_batch, load_shard
from misr.fusion.weights import load_network

KINDS = SPECIMEN_KINDS[:-1]  # not the empty ones
DECADES = ((3, 10), (10, 30), (30, 100), (100, 300), (300, 1000), (1000, 10000))
_RING = 0.08  # of the band


def bandwidth(image: np.ndarray, truth: np.ndarray, *, pixel: float, band: float) -> float:
    """Frequency, 1/Å, up to which an image resembles the truth; 0 if it nowhere does."""
    both = [image_from_array(np.asarray(one, dtype=float), pixel_A=(pixel, pixel)) for one in (image, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        frc = misr.fourier_ring_correlation(*both, ring_width=_RING * band)
        found = misr.frc_resolution(frc.sel(frequency=slice(0, band)), threshold=0.5)
    value = float(found)
    if np.isfinite(value):
        return 1 / value
    return band if found.attrs["status"] == "never crosses" else 0.0


def table(folder: Path, network: Any, shards: int, workers: int) -> None:
    """Bandwidths by class and dose."""
    make_shards(folder, "test", shards, workers=workers)
    rows = []
    for path in sorted(folder.glob("test_*.safetensors"))[:shards]:
        arrays = load_shard(path)
        for index in range(len(arrays["truth"])):
            rows.append(_row(network, as_batch(arrays, slice(index, index + 1)), arrays, index))
    print("class            e/Å²        n   network/best linear: mean  worst   ring  local  net (x)  within 1σ  1.96σ")
    for number, kind in enumerate(KINDS):
        for low, high in (*DECADES, (3, 10000)):
            chosen = [row for row in rows if row["kind"] == number and low <= row["dose"] < high]
            if chosen:
                print(_line(kind, low, high, chosen))


@torch.no_grad()
def _row(network: Any, batch: Any, arrays: dict[str, torch.Tensor], index: int) -> dict[str, Any]:
    from misr.fusion.losses import error_in_rad

    output = network(batch.given)
    inside = batch.inside[0]
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    field = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    band, pixel = 2 * float(arrays["cutoff"][index]), float(arrays["pixel"][index])
    spectrum = batch.given.atom[0] * (batch.given.radius[0] < 1)

    def rad(whitened: torch.Tensor) -> np.ndarray:
        return torch.fft.irfft2(torch.fft.rfft2(whitened[0]) * spectrum, s=whitened.shape[1:]).numpy()[field]

    truth = rad(batch.truth)
    values = {
        name: bandwidth(rad(one), truth, pixel=pixel, band=band) / band
        for name, one in (("net", output.image), ("ring", batch.given.ring), ("local", batch.given.local))
    }
    error = error_in_rad(output.image - batch.truth, batch.given, inside=batch.inside).abs() * torch.exp(
        -output.log_std
    )
    covered = [float(((error < limit) & batch.inside).sum() / batch.inside.sum()) for limit in (1.0, 1.96)]
    return {**values, "covered": covered, "dose": float(batch.dose[0]), "kind": int(batch.kind[0])}


def _line(kind: str, low: float, high: float, rows: list[dict[str, Any]]) -> str:
    net, ring, local = (np.array([row[name] for row in rows]) for name in ("net", "ring", "local"))
    best = np.maximum(ring, local)
    seen = best > 0
    ratio = net[seen] / best[seen]
    mean, worst = (f"{ratio.mean():.3f}", f"{ratio.min():.3f}") if seen.any() else ("-", "-")
    covered = np.mean([row["covered"] for row in rows], axis=0)
    return (
        f"{kind:<16} {low:>4}-{high:<6} {len(rows):>3} {mean:>27} {worst:>6} {ring.mean():>6.3f} {local.mean():>6.3f}"
        f" {net.mean():>8.3f} {covered[0]:>9.3f} {covered[1]:>7.3f}"
    )


def views(model: str, numbers: tuple[int | None, ...] = (9, 25, 81, None)) -> None:
    """Bandwidth by number of views, three specimens, 300 e/Å²."""
    for seed in range(3):
        conditions = draw_conditions(np.random.default_rng([77, seed]))
        cube, slices, pixel = simulate("semicrystalline", conditions, seed=seed, split="test")
        counts = misr.apply_dose(cube, 300, rng=seed)
        found = []
        for number in numbers:
            made = _fused(counts, model, n_views=number)
            truth = _truth(made.phase, slices, pixel, conditions)
            band = 2 * conditions.cutoff
            found.append(bandwidth(made.phase.values, truth.values, pixel=_pixel(made.phase), band=band) / band)
        words = (f"{number or 'all'} views {value:.3f}" for number, value in zip(numbers, found, strict=True))
        print(f"specimen {seed}: {', '.join(words)}")


def defects(model: str, *, specimens: int = 40, doses: tuple[float, ...] = (30, 100, 300, 1000)) -> None:
    """Areas under ROC curves of vacancies and interstitials, each specimen's own, averaged over the sites."""
    found: dict[tuple[str, float, str], list[tuple[float, int]]] = {}
    for seed in range(specimens):
        for (site, dose, image), (area, sites) in _areas(model, seed, doses).items():
            found.setdefault((site, dose, image), []).append((area, sites))
    for site in ("vacancies", "interstitials"):
        for dose in doses:
            print(_defect_line(site, dose, {name: np.array(found[site, dose, name]) for name in _IMAGES}))


_IMAGES = ("network", "ring", "local", "obf")
_DRAWS = 4  # of the electrons, of each twin


def _defect_line(site: str, dose: float, areas: dict[str, np.ndarray]) -> str:
    number = areas["ring"][:, 1]
    draws = np.random.default_rng(0).integers(len(number), size=(1000, len(number)))
    words, gains = [], []
    for name in _IMAGES:
        words.append(f"{name} {np.average(areas[name][:, 0], weights=number):.3f}")
        if name in ("ring", "obf"):
            gained = areas["network"][:, 0] - areas[name][:, 0]
            error = np.std([np.average(gained[one], weights=number[one]) for one in draws])
            gains.append(f"network less {name} {np.average(gained, weights=number):+.3f} ± {error:.3f}")
    sites = f"{number.sum():.0f} sites in {len(number)} specimens"
    return f"{dose:>6g} e/Å² {site:<13} ROC area {', '.join(words)}; {', '.join(gains)} ({sites})"


def _areas(model: str, seed: int, doses: tuple[float, ...]) -> dict[tuple[str, float, str], tuple[float, int]]:
    """Of one specimen: telling its own defects from the same places of its undamaged twin, under the same optics."""
    conditions = draw_conditions(np.random.default_rng([78, seed]))
    conditions = replace(conditions, window=conditions.positions, believed=conditions.aberrations,
                         believed_rotation_deg=conditions.rotation_deg)  # fmt: skip
    atoms = specimen_of("crystalline", conditions, seed=seed, split="test")
    sites = {name: atoms.info[name] for name in ("vacancies", "interstitials") if len(atoms.info[name])}
    if not sites:
        return {}
    width = 0.4 / (2 * conditions.cutoff)
    seen: dict[tuple[str, float, str, bool], list[np.ndarray]] = {}
    for damaged in (True, False):
        cube, _, _ = simulate("crystalline", conditions, seed=seed, split="test", defects=damaged)
        views = misr.synthesize_views(cube).compute()
        plan = misr.plan_fusion(views)
        for dose, draw in itertools.product(doses, range(_DRAWS)):
            counts = misr.apply_dose(views, dose, rng=[seed, draw, int(damaged)])
            for (name, image), (site, places) in itertools.product(_images(counts, plan, model).items(), sites.items()):
                seen.setdefault((site, dose, name, damaged), []).append(_at(image, places, width=width))
    return {
        (site, dose, name): (
            _known_lattice_area(np.array(values), np.array(seen[site, dose, name, False]), site), len(sites[site])
        )
        for (site, dose, name, damaged), values in seen.items() if damaged
    }  # fmt: skip


def _images(counts: xr.DataArray, plan: Any, model: str) -> dict[str, xr.DataArray]:
    same: dict[str, Any] = {"plan": plan, "upsample": plan.folds}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        learned = misr.fuse_cnn(counts, model=model, **same)
        local = misr.fuse_linear(counts, prior="local", **same).phase
        whitened = misr.fuse_linear(counts, method="obf", **same).contrast
    return {"network": learned.phase, "ring": learned.phase_linear, "local": local, "obf": whitened}


def _known_lattice_area(damaged: np.ndarray, whole: np.ndarray, site: str) -> float:
    """For an observer who knows how each site looks undamaged: (draw, site) less the mean of the twin's other draws."""
    known = (whole.sum(0) - whole) / (len(whole) - 1)
    pair = (damaged - known).ravel(), (whole - known).ravel()
    return _area(*(pair if site == "interstitials" else pair[::-1]))


def _at(image: xr.DataArray, sites: np.ndarray, *, width: float) -> np.ndarray:
    """Image at some places, averaged over a Gaussian spot, against its surroundings."""
    from scipy import ndimage

    pixel = _pixel(image)
    values = image.values - ndimage.gaussian_filter(image.values, 6 * width / pixel, mode="wrap")
    smooth = ndimage.gaussian_filter(values, width / pixel, mode="wrap")
    index = [(sites[:, i] - float(image[dim][0])) / pixel for i, dim in enumerate(("y", "x"))]
    return ndimage.map_coordinates(smooth, index, order=1, mode="grid-wrap")


def _area(brighter: np.ndarray, darker: np.ndarray) -> float:
    """Chance that one of the first is brighter than one of the second."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(brighter, darker).statistic / (len(brighter) * len(darker)))


def trust(model: str) -> None:
    """`misr.trust_report` of the network on a specimen of each class that has atoms, half of 300 e/Å² each."""
    for kind in KINDS:
        conditions = draw_conditions(np.random.default_rng([80, KINDS.index(kind)]))
        cube, _, _ = simulate(kind, conditions, seed=0, split="test")
        counts = misr.apply_dose(cube, 300, rng=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            report = misr.trust_report(counts, lambda one: _fused(one, model), rng=0)
        print(f"{kind}:\n{misr.trust_words(report)}")


def controls(model: str) -> None:
    """Half maps of a specimen that is not there."""
    conditions = draw_conditions(np.random.default_rng([79, 0]))
    cube, _, _ = simulate("empty", conditions, seed=0, split="test")
    for dose in (30, 1000):
        counts = misr.apply_dose(cube, dose, rng=0)
        made = misr.half_maps(counts, lambda half: _fused(half, model).phase, rng=0)
        words = made["resolution"].attrs["status"]
        print(f"vacuum at {dose} e/Å²: {words}, mean half-map FRC {float(made['frc'].mean()):+.3f}")


def speed(network: Any, repeats: int = 5) -> None:
    """Seconds of the network alone on 256 × 256 pixels and 100 groups."""
    from misr.fusion.network import NetworkInput

    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=rng)  # noqa: E731
    radius = torch.hypot(torch.fft.fftfreq(256)[:, None], torch.fft.rfftfreq(256)[None])[None] / 0.45
    one = torch.ones(1)
    images, falling = [draw(1, 256, 256) for _ in range(3)], 1 / (1 + radius)
    groups, tilts = draw(1, 100, 256, 256), draw(1, 100, 2)
    given = NetworkInput(*images, radius + 0.5, radius, falling, one, one, groups, tilts)
    seconds = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            network(given)
            seconds.append(time.perf_counter() - start)
    print(f"network, 256 × 256 pixels, 100 groups: {min(seconds[1:]):.2f} s ({torch.get_num_threads()} threads)")


def _views(counts: xr.DataArray, **options: Any) -> xr.DataArray:
    return misr.synthesize_views(counts, **options)


def _fused(counts: xr.DataArray, model: str, **options: Any) -> xr.Dataset:
    from misr.fusion.cnn import fuse_cnn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fuse_cnn(_views(counts, **options), model=model)


def _pixel(image: xr.DataArray) -> float:
    return float(image.y[-1] - image.y[0]) / (image.sizes["y"] - 1)


def _truth(image: xr.DataArray, slices: np.ndarray, pixel: float, conditions: Any) -> xr.DataArray:
    first = (conditions.positions - conditions.window) // 2 * conditions.step_A
    phase = image_from_array(slices.sum(axis=0), pixel_A=(pixel, pixel))
    origin = {dim: float(image[dim][0]) - first for dim in ("y", "x")}
    like = image.assign_coords({dim: image[dim].values - origin[dim] for dim in ("y", "x")})
    return misr.phase_on_grid(phase, like=like)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("misr-network"), help="keeps the test examples")
    parser.add_argument("--model", default="default")
    parser.add_argument("--shards", type=int, default=6, help="of 8 specimens at 4 doses each")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=["table", "views", "defects", "controls", "trust", "speed"])
    arguments = parser.parse_args()
    network = load_network(arguments.model)
    for part in arguments.parts:
        print(f"\n{part}")
        if part == "table":
            table(arguments.folder, network, arguments.shards, arguments.workers)
        elif part == "speed":
            speed(network)
        else:
            {"views": views, "defects": defects, "controls": controls, "trust": trust}[part](arguments.model)


if __name__ == "__main__":
    main()
