"""docs/performance.md: its tables are those of the results, and the computed one computes what it says."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.station_process import REPOSITORY

DOCS = REPOSITORY / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_performance", DOCS / "make_performance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


performance = load()
PAGE = (DOCS / "performance.md").read_text()
MACHINE = {
    "cpu": "Some CPU",
    "cpus": 2,
    "load": 0.1,
    "threads": [1],
    "measured_at": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.11.7"},
}


def test_the_tables_are_what_make_docs_writes():
    assert performance.filled(PAGE) == PAGE, "run `make docs`"


def test_what_was_not_measured_is_told(tmp_path: Path):
    filled = performance.filled(PAGE, tmp_path)
    assert filled.count("Not measured yet") == len(performance.TABLES)


def station_row(stations: int, cpu_ms: float) -> dict[str, object]:
    return {
        "stations": stations,
        "threads": 1,
        "pace": None,
        "frames_per_second": 12.5,
        "patches_per_second": 800.0,
        "slowest_to_fastest": 0.9,
        "latency_p50_ms": 80.0,
        "latency_p99_ms": 120.0,
        "cpu_ms_per_frame": cpu_ms,
        "cost_times_one": 1.0,
        "dropped_share": 0.0,
    }


def test_results_come_into_the_page_with_their_machine(tmp_path: Path):
    rows = [station_row(1, 60.0), station_row(2, 64.0)]
    result = {"machine": MACHINE, "gemm_flops_one_thread": 64e9, "size": 512, "patches": 64, "rows": rows}
    (tmp_path / "perf_many_stations.json").write_text(json.dumps(result))
    filled = performance.filled(PAGE, tmp_path)
    section = filled.partition("<!-- table: many_stations -->")[2].partition("<!-- end -->")[0]
    assert "| 2 | 1 | full speed | 12.5 | 800 | 0.90 | 80, 120 | 64.0 | 1.00 | 0% |" in section
    assert "Some CPU" in section
    # The dearer of both frames: 1 ms a patch. 0.7 of 4 cores are 2,800 ms a second, 10 frames of 80 patches take 800.
    lines = filled.partition("<!-- table: lines -->")[2].partition("<!-- end -->")[0]
    cells = next(line for line in lines.splitlines() if line.startswith("| 640 × 480 |")).split(" | ")
    assert cells[2] == "80"
    assert cells[3] == "3"
    assert performance.filled(filled, tmp_path) == filled, "made twice, it is the same"


def test_the_daemons_figures_come_with_what_is_wanted(tmp_path: Path):
    every = {"fps": 19.0, "engine_busy": 0.9, "resident_mib": 201.6}
    result = {
        "machine": MACHINE,
        "engine": "auto fp16",
        "broker": "Mosquitto",
        "frames": 50,
        "turns": [{"engine_fps": 20.0, "every": every}],
        "of_engine": 0.95,
        "latest": {"ms": {"received": {"p50": 60.0, "p99": 90.0}}, "limit_ms": 105.0},
        "fixed": {"cpus_used": 0.5, "fps": 9.98},
        "base": {"resident_mib": 187.5},
        "start": {"seconds": [1.5, 1.7, 1.6], "cpu_seconds": [1.0, 1.0, 1.0]},
        "waiting": [{"wait_ms": 2.0, "engine_busy": 0.97}],
    }
    (tmp_path / "perf_pipeline.json").write_text(json.dumps(result))
    filled = performance.filled(PAGE, tmp_path)
    assert "| of the engine alone, median of the turns | 0.950 | ≥ 0.95 |" in filled
    assert "to the score's arrival, p50 and p99 | 60.0 and 90.0 | ≤ 105 |" in filled
    assert "at ten frames a second (9.98 done) | 0.500 |" in filled
    assert "| from the command to READY, s | 1.60 | ≤ 2 |" in filled
    assert "| memory after 50 frames, MiB | 202 | ≤ 250 |" in filled
    assert "| the same with the base package's ONNX Runtime, MiB | 188 | ≤ 250 |" in filled


@given(st.integers(1, 4096), st.floats(0.1, 100), st.floats(0.05, 20))
def test_no_computer_is_given_more_than_it_has(patches: int, fps: float, ms: float):
    for box in performance.BOXES:
        n = performance.lines_carried(box, ms, 80.0, patches, fps)
        own = ms * (80.0 / box.gflops if box.gflops else 1)
        assert n * fps * patches * own <= performance.BUSY * box.cores * 1000 * (1 + 1e-9)
        assert (n + 1) * fps * patches * own >= performance.BUSY * box.cores * 1000 * (1 - 1e-9)


@pytest.mark.parametrize("text", ["a | b", "more than < 3"])
def test_no_cell_breaks_its_table_or_its_mark(text: str):
    table = performance.markdown(["x"], [[text]])
    assert "<" not in table
    assert len(re.findall(r"(?<!\\)\|", table.splitlines()[-1])) == 2
