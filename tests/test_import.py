"""`import misr` is light, its names resolve, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import misr

PACKAGE = Path(misr.__file__).parent
HEAVY = ("torch", "panel", "holoviews", "bokeh", "py4DSTEM", "abtem", "ase", "rsciio", "matplotlib", "skimage", "numba")
# torch is at the top only of modules that nothing imports before it is needed
_TORCH_FUSION = (
    "half_images",
    "judging",
    "kernels",
    "labels",
    "local_prior",
    "losses",
    "natural",
    "network",
    "network_parts",
    "overlap",
    "plan",
    "plane_waves",
    "prior",
    "spread",
    "statistic",
    "tile_sums",
    "tiles",
    "training",
    "training_data",
    "training_files",
    "view_groups",
    "wiener",
    "workspace",
)
TORCH_MODULES = {f"fusion/{name}.py" for name in _TORCH_FUSION} | {
    f"calibration/{name}.py" for name in ("higher", "refine", "search", "spots")
}
TORCH_MODULES |= {f"benchmark/attention_unet{part}.py" for part in ("", "_training")}
NUMBA_MODULES = {"fusion/compiled_waves.py"}
PY4DSTEM_MODULES = re.compile(r"^_py4dstem\.py$")


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=120)


def test_import_is_quick():
    seconds = []
    for _ in range(3):
        report = run_python("-X", "importtime", "-c", "import misr").stderr
        (cumulative,) = re.findall(r"^import time:\s+\d+ \|\s+(\d+) \| misr$", report, re.MULTILINE)
        seconds.append(int(cumulative) * 1e-6)
    assert min(seconds) < 0.3


def test_import_leaves_heavy_packages_out():
    code = "import sys, misr; print(*sys.modules)"
    loaded = set(run_python("-c", code).stdout.split())
    assert loaded.isdisjoint(HEAVY)
    assert "xarray" not in loaded  # everything but the lazy names waits


def test_core_modules_leave_heavy_packages_out():
    modules = ["optics", "cube", "dose", "bright_field", "views", "fusion", "resolution", "pipeline"]
    code = f"import sys, {', '.join('misr.' + name for name in modules)}; print(*sys.modules)"
    assert set(run_python("-c", code).stdout.split()).isdisjoint(HEAVY)


@pytest.mark.parametrize("name", misr.__all__)
def test_public_name_resolves(name):
    value = getattr(misr, name)
    assert value is not None
    assert not callable(value) or value.__doc__, f"{name} has no docstring"


def test_stub_and_all_agree():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imported = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for alias in imported)  # the explicit re-export that type checkers want
    assert {alias.name for alias in imported} == set(misr.__all__)
    assert set(misr.__all__) <= set(dir(misr))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError):
        misr.no_such_name  # noqa: B018


def sources():
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_packages(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("source", sources())
def test_imports_of_each_source(source):
    tree = ast.parse((PACKAGE / source).read_text(encoding="utf-8"))
    if not PY4DSTEM_MODULES.match(source):
        assert "py4DSTEM" not in set(imported_packages(ast.walk(tree)))
    if not source.startswith("dashboards/"):
        allowed = ({"torch"} if source in TORCH_MODULES else set()) | ({"numba"} if source in NUMBA_MODULES else set())
        assert set(imported_packages(tree.body)).isdisjoint(set(HEAVY) - allowed)
