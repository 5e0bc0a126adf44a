"""Resolution against dose for several methods on the same electrons: run, read, compare, report."""

from misr.benchmark.ratio import dose_ratio, resolution_curves
from misr.benchmark.report import write_report
from misr.benchmark.running import read_settings, run_benchmark
from misr.benchmark.settings import BenchmarkSettings, Specimen, preset_settings, structure_specimen
from misr.benchmark.table import read_benchmark, table_from_rows

__all__ = [
    "BenchmarkSettings",
    "Specimen",
    "dose_ratio",
    "preset_settings",
    "read_benchmark",
    "read_settings",
    "resolution_curves",
    "run_benchmark",
    "structure_specimen",
    "table_from_rows",
    "write_report",
]
