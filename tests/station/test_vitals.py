import mmap
import threading
from pathlib import Path

import numpy as np
import pytest

from station.health.vitals import STAGE_FRAMES, StageWindow, resident_bytes, temperatures


def zone(root, number, kind, temp):
    folder = root / f"thermal_zone{number}"
    folder.mkdir()
    (folder / "type").write_text(f"{kind}\n")
    if temp is not None:
        (folder / "temp").write_text(f"{temp}\n")


def test_temperatures_by_type(tmp_path):
    zone(tmp_path, 0, "CPU-therm", 48500)
    zone(tmp_path, 1, "GPU-therm", -256000)  # a Jetson's GPU that is switched off
    zone(tmp_path, 2, "acpitz", 27800)
    zone(tmp_path, 3, "broken", None)
    zone(tmp_path, 4, "nonsense", "warm")
    zone(tmp_path, 10, "acpitz", 29000)
    (tmp_path / "cooling_device0").mkdir()
    assert temperatures(tmp_path) == {"CPU-therm": 48.5, "acpitz": 27.8, "acpitz-2": 29.0}


def test_no_sensors_no_temperatures(tmp_path):
    assert temperatures(tmp_path / "nowhere") == {}


def test_this_machine_can_be_asked():
    assert all(-60 <= celsius <= 200 for celsius in temperatures().values())


def test_resident_memory_is_what_the_kernel_says():
    size = 64 * 2**20
    before = resident_bytes()
    with mmap.mmap(-1, size) as block:  # not from malloc, which may have pages left over
        block.write(b"\1" * size)
        grown = resident_bytes() - before
    assert size * 0.9 <= grown <= size * 2.5  # the bytes that were written may still count, too
    status = Path("/proc/self/status").read_text()
    kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_bytes() == pytest.approx(kib * 1024, rel=0.1)


def test_stage_window_gives_percentiles_and_begins_anew():
    window = StageWindow()
    assert window.summary() == {}
    values = np.random.default_rng(0).exponential(10, 500)
    for value in values:
        window.add({"infer": float(value), "wait": 1.0})
    summary = window.summary()
    assert summary.keys() == {"infer", "wait"}
    assert summary["infer"].p50 == pytest.approx(np.percentile(values, 50), abs=1e-3)
    assert summary["infer"].p99 == pytest.approx(np.percentile(values, 99), abs=1e-3)
    assert (summary["wait"].p50, summary["wait"].p99) == (1.0, 1.0)
    assert window.summary() == {}


def test_stage_window_is_bounded():
    window = StageWindow()
    for i in range(3 * STAGE_FRAMES):
        window.add({"infer": float(i)})
    assert window.summary()["infer"].p50 == pytest.approx(2.5 * STAGE_FRAMES, rel=0.01)


def test_no_frame_is_lost_between_two_summaries():
    """What one thread adds the other sees, however their turns fall."""
    window, n, seen = StageWindow(), 20_000, []

    def add():
        for i in range(n):
            window.add({"infer": float(i)})

    thread = threading.Thread(target=add)
    thread.start()
    while thread.is_alive():
        seen.append(window.summary())
    seen.append(window.summary())
    thread.join()
    highest = [summary["infer"].p99 for summary in seen if summary]
    assert highest == sorted(highest)
