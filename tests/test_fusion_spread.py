"""Blocks over threads, scratch arrays, tiles and patches: the same sums however they are cut."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import misr
from misr.fusion.plan import measure
from misr.fusion.spread import for_each
from misr.fusion.statistic import _side_by_side, _tiles
from misr.fusion.workspace import Workspace

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def views(make_scan):
    return misr.synthesize_views(misr.apply_dose(make_scan("atoms", pixels=64, det_bin=3)[0], 300, rng=0))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_every_item_once_each_thread_with_its_own_scratch():
    done, threads, spaces = [], set(), set()
    lock = threading.Lock()
    meet = threading.Barrier(2, timeout=30)  # both threads are there at once

    def work_on(item, work):
        if item < 2:
            meet.wait()
        with lock:
            done.append(item)
            threads.add(threading.get_ident())
            spaces.add(id(work))

    for_each(range(20), work_on, device=CPU)
    assert sorted(done) == list(range(20))
    assert len(threads) == len(spaces) == 2
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_failure_is_raised_and_torch_gets_its_threads_back():
    def work_on(item, work):
        raise KeyError(item)

    with pytest.raises(KeyError):
        for_each(range(4), work_on, device=CPU)
    assert torch.get_num_threads() == 2


def test_scratch_is_used_again_and_grows():
    work = Workspace(CPU)
    first = work.real("a", 3, 4)
    assert work.real("a", 12).data_ptr() == first.data_ptr()
    assert work.real("b", 3, 4).data_ptr() != first.data_ptr()
    assert work.complex("a", 5, 5).shape == (5, 5)


def test_tiles_cover_every_scan_frequency_once(views):
    plan = misr.plan_fusion(views)
    seen = np.zeros((plan.grid.padded[0], plan.grid.half), int)
    for tile in _tiles(plan.grid, 50):
        seen[tile] += 1
    assert np.all(seen == 1)


@pytest.mark.parametrize("part", [slice(0, None), slice(7, 30)])
def test_patches_hold_every_view_once(views, part):
    geometry = misr.plan_fusion(views).geometry
    first, last, _ = part.indices(geometry.n_views)
    groups = _side_by_side(geometry, part)
    assert sorted(np.concatenate(groups)) == list(range(last - first))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("pixels", "entries"), [(1, 10), (20, 400), (10**6, 10**9)])
def test_sums_do_not_depend_on_how_they_are_cut(views, monkeypatch, pixels, entries, number):
    plan, whole = measure(views, keep=True)
    monkeypatch.setattr("misr.fusion.statistic._PATCH_PIXELS", pixels)
    monkeypatch.setattr("misr.fusion.statistic._BLOCK_ENTRIES", entries)
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        cut_plan, cut = measure(views)
    finally:
        torch.set_num_threads(before)
    scale = float(whole.vector.abs().max())
    torch.testing.assert_close(cut.vector, whole.vector, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(cut.energy, whole.energy, rtol=1e-5, atol=0)
    torch.testing.assert_close(cut_plan.matrix, plan.matrix, rtol=0, atol=1e-5 * float(plan.matrix.abs().max()))
