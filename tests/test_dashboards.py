"""The explore tool: its state without widgets, and the whole of it in a headless Chromium."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from phase_object import bandlimited_phase, phase_object_cube

import misr
from misr.fusion import plan_fusion
from misr.resolution import frc_resolution

pytest.importorskip("panel")

from misr.cube import is_periodic
from misr.dashboards import explore, explore_state
from misr.dashboards.explore_state import METHODS, ExploreState, dose_steps, summary


@pytest.fixture(scope="module")
def scan():
    phase = bandlimited_phase((64, 64), 0.5, rng=1, strength=0.2)
    counts, truth = phase_object_cube(phase, 0.5, aberrations={"C10": -500.0})
    return xr.Dataset({"counts": counts, "phase": truth.assign_attrs(units="rad")})


def shown(state):
    state.update()
    return state.result


def test_more_dose_gives_a_better_image_and_a_finer_resolution(scan):
    low, high = (shown(ExploreState(scan, dose=dose)) for dose in (10.0, 3000.0))
    assert float(frc_resolution(high.frc)) < float(frc_resolution(low.frc))
    assert float(high.frc_truth.mean()) > float(low.frc_truth.mean()) + 0.1


def test_methods_rank_as_they_should(scan):
    raw, tcbf, linear, *_ = (shown(ExploreState(scan, dose=1000.0, method=name)) for name in METHODS)
    # one view cannot show more than its scan's Nyquist frequency, and does not know the phase
    assert raw.image.shape == (16, 16)
    assert raw.frc_truth is None
    assert float(linear.frc_truth.mean()) > float(tcbf.frc_truth.mean())


def test_the_network_is_shown_with_what_it_guesses(scan):
    linear, network = (shown(ExploreState(scan, dose=100.0, method=name)) for name in list(METHODS)[2::2])
    assert network.image.sizes == linear.image.sizes  # the same pixels, so that pictures can be compared
    assert not np.allclose(network.image, linear.image)
    assert network.frc_truth is not None
    _, how = summary(network, ring_width=0.1)
    own = float(re.search(r"(\d+) % of the image's power is the network's own", how).group(1))
    assert own == pytest.approx(100 * network.image.attrs["prior_share"], abs=0.5)
    assert "half maps share" in how
    assert "network" not in summary(linear, ring_width=0.1)[1]


def test_a_warning_of_the_network_is_told_and_is_no_error(scan):
    far = scan.counts.assign_attrs(C10_A=-20_000.0)  # λ/α² is 197 Å
    state = ExploreState(far, n_views=25, method="network (fuse_cnn)")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        image = state.steps()[0]()
    assert "not trained for this" in summary(image, ring_width=0.1)[1]


def test_the_plan_is_made_once_for_all_that_use_it(scan, monkeypatch):
    made = []
    monkeypatch.setattr(explore_state, "plan_fusion", lambda views: made.append(plan_fusion(views)) or made[-1])
    state = ExploreState(scan)
    for state.method in METHODS:
        state.update()
    assert len(made) == 1


def test_the_same_choices_give_the_same_picture(scan):
    first, again = (shown(ExploreState(scan, dose=100.0)) for _ in range(2))
    other = shown(ExploreState(scan, dose=100.0, seed=1))
    xr.testing.assert_identical(first.image, again.image)
    assert not np.allclose(first.image, other.image)


def test_fewer_views_hold_the_same_electrons(scan):
    state = ExploreState(scan)
    every = state.views()
    state.n_views = 25
    few = state.views()
    assert few.sizes["view"] == 25
    assert float(few.sum()) == pytest.approx(float(every.sum()), rel=0.02)


def test_recorded_electrons_can_only_be_taken_away(scan):
    counted = misr.apply_dose(scan.counts, 120.0, rng=0)
    state = ExploreState(counted)
    assert state.param.dose.objects == [3, 5, 10, 20, 30, 50, 100, 120]
    state.dose = 30.0
    share = float(state.views().sum()) / float(misr.synthesize_views(counted).sum())
    assert share == pytest.approx(0.25, rel=0.05)
    with pytest.raises(ValueError):
        state.dose = 300.0
    # electrons stored as floats are electrons all the same
    assert dose_steps(counted.astype(float))[-1] == 120


def test_a_large_scan_is_cropped_and_no_longer_periodic(scan):
    large = xr.DataArray(
        np.tile(scan.counts.values, (5, 1, 1, 1)), dims=scan.counts.dims, attrs=scan.counts.attrs
    ).assign_coords({name: scan.counts[name] for name in ("scan_x", "det_y", "det_x")})
    large = large.assign_coords(scan_y=("scan_y", 2.0 * np.arange(80), {"units": "Å"}))
    state = ExploreState(large)
    assert state.cube.sizes["scan_y"] == 64
    assert float(state.cube.scan_y[0]) == 16.0
    assert not is_periodic(state.cube)


def test_problems_are_shown_and_go_away(scan):
    blind = scan.counts.copy()
    blind.attrs = {name: value for name, value in blind.attrs.items() if name != "C10_A"}
    state = ExploreState(blind)
    asyncio.run(state.follow())
    assert "aberrations" in state.problem
    assert not state.busy
    state.method = "one raw view"
    asyncio.run(state.follow())
    assert state.problem == ""
    assert state.result.frc is not None
    with pytest.raises(ValueError, match="not a valid 4D-STEM cube"):
        explore(blind.isel(scan_y=0))


def test_only_the_newest_choice_is_finished(scan):
    state = ExploreState(scan, dose=10.0)
    finished = []
    state.param.watch(lambda event: finished.append((event.new.frc is not None, state.dose)), "result")

    async def hurry():
        first = asyncio.create_task(state.follow())
        await asyncio.sleep(0)
        state.dose = 1000.0
        await state.follow()
        await first

    asyncio.run(hurry())
    assert finished[-1] == (True, 1000.0)
    assert sum(complete for complete, _ in finished) == 1
    assert state.result.image.attrs["dose_e_per_A2"] == 1000.0


def test_words_follow_the_result(scan):
    assert summary(None, ring_width=0.1)[0] == "Resolution: …"
    heading, how = summary(shown(ExploreState(scan, dose=3000.0)), ring_width=0.1)
    assert re.fullmatch(r"Resolution: ≤? ?\d\.\d+ Å", heading)
    assert "0.1 1/Å" in how
    assert "truth" in how


def chromium():
    """The browser; a missing one fails the test where it must be there."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        words = "no Chromium on the PATH: apt-get install chromium"
        pytest.fail(words) if os.environ.get("CI") == "true" else pytest.skip(words)
    return found


@pytest.fixture
def served(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "server.log"
    # one thread: two that wait for each other on busy cores are many times slower
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = f"from misr.dashboards import serve; serve(port={port})"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=output, env=environment)
        try:
            wait_for_port(port, process, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_for_port(port, process, log: Path):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.mark.browser
@pytest.mark.slow
def test_moving_the_dose_slider_changes_the_picture_and_the_resolution(served):
    executable = chromium()
    playwright = pytest.importorskip("playwright.sync_api")
    outside, errors = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=executable, headless=True, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1440, "height": 800})
        page.on("request", lambda request: outside.append(request.url) if is_outside(request.url, served) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served)
        before = settled(page, dose="300")
        handle = page.locator(".noUi-handle").first
        handle.focus()
        for _ in range(3):
            handle.press("ArrowRight")
        after = settled(page, dose="2000")
        browser.close()
    assert before["resolution"] > after["resolution"]  # more electrons, finer detail
    assert before["picture"] != after["picture"]
    assert outside == []  # works without a network
    assert errors == []


def settled(page, *, dose):
    """Resolution (Å) and picture once the tool has come to rest at a dose."""
    page.get_by_text(dose, exact=True).first.wait_for(timeout=90_000)
    heading = page.get_by_text(re.compile(r"^Resolution: \d"))
    picture = page.locator(".bk-Canvas, .bk-CanvasPanel, canvas").first
    deadline = time.monotonic() + 60
    last = None
    while time.monotonic() < deadline:
        heading.wait_for(timeout=90_000)
        now = (heading.inner_text(), picture.screenshot())
        if now == last:
            return {"resolution": float(re.search(r"[\d.]+", now[0]).group()), "picture": now[1]}
        last = now
        page.wait_for_timeout(1500)
    pytest.fail("the picture never came to rest")


def is_outside(url, served):
    return not url.startswith((served, served.replace("http", "ws"), "data:", "blob:"))
