"""Time of the fusion beside py4DSTEM's parallax on the same counts, and of a 64 × 64 simulation: ``make benchmark``."""

from __future__ import annotations

import pytest

import misr


@pytest.fixture(scope="module")
def cube():
    atoms = misr.amorphous_atoms(field_A=128, rng=0)
    simulated = misr.simulate_cube(atoms, aberrations={"C10": -1500.0}, det_max_mrad=12, det_pixels=38, progress=False)
    return misr.apply_dose(simulated.counts, 100, rng=0)


@pytest.fixture(scope="module")
def views(cube):
    return misr.synthesize_views(cube)


@pytest.mark.benchmark(group="cube to image, 64 × 64 positions, about 800 views, ×4")
@pytest.mark.parametrize("method", ["shift_and_add", "fuse_linear", "fuse_linear with a plan", "py4DSTEM parallax"])
def test_cube_to_image(benchmark, cube, views, method):
    plan = misr.plan_fusion(views, upsample=4)
    run = {
        "shift_and_add": lambda cube: misr.shift_and_add(misr.synthesize_views(cube), upsample=4),
        "fuse_linear": lambda cube: misr.fuse_linear(misr.synthesize_views(cube), upsample=4),
        "fuse_linear with a plan": lambda cube: misr.fuse_linear(misr.synthesize_views(cube), plan=plan),
        "py4DSTEM parallax": lambda cube: misr.reconstruct_parallax(cube, upsample=4, progress=False),
    }[method]
    benchmark.pedantic(run, args=(cube,), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="fuse_linear by number of views, 64 × 64 positions, ×4")
@pytest.mark.filterwarnings("ignore:upsample=:UserWarning")
@pytest.mark.parametrize("n_views", [25, 100, 400, None])
def test_fuse_linear(benchmark, cube, n_views):
    views = misr.synthesize_views(cube, n_views=n_views)
    benchmark.pedantic(misr.fuse_linear, args=(views,), kwargs={"upsample": 4}, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="overlap functions of all views at 4096 frequencies, one thread")
@pytest.mark.parametrize("loop", ["torch", "compiled"])
def test_overlaps(benchmark, views, loop):
    import numpy as np
    import torch

    from misr.fusion.geometry import view_geometry
    from misr.fusion.overlap import Overlaps, Specimen
    from misr.fusion.statistic import _side_by_side
    from misr.fusion.workspace import Workspace

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    geometry, cpu = view_geometry(views), torch.device("cpu")
    overlaps, work = Overlaps(geometry, Specimen(), device=cpu), Workspace(cpu)
    groups = _side_by_side(geometry, slice(0, geometry.n_views))
    patches = [overlaps.patch(group, compiled=loop == "compiled") for group in groups]
    q = torch.as_tensor(np.random.default_rng(0).uniform(-0.6, 0.6, (2, 16, 16, 16)), dtype=torch.float32)

    def fill():
        for some in q.unbind(1):
            table = overlaps.table(*some)
            for patch in patches:
                overlaps.fill(work.complex("rows", 16, 16, len(patch.views)), table, patch, work=work)

    benchmark.pedantic(fill, rounds=10, warmup_rounds=1)
    torch.set_num_threads(before)


@pytest.mark.benchmark(group="simulation, 64 × 64 positions, 128 Å, 30 Å thick")
def test_simulate(benchmark):
    atoms = misr.amorphous_atoms(field_A=128, rng=0)
    options = {"aberrations": {"C10": -1500.0}, "progress": False}
    benchmark.pedantic(misr.simulate_cube, args=(atoms,), kwargs=options, rounds=1)
