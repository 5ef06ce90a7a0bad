import os
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.images import read_image
from station import recent
from station.frames import Frame
from station.recent import RecentFrames, read_ring
from station.settings import HealthSettings
from tests.support.small_disk import SmallDisk

START = datetime(2024, 5, 1, 8, 30, 15, 123456, tzinfo=timezone.utc)


def frame(i=0, size=(48, 64), at=None):
    image = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Frame(i + 1, image, at or START + timedelta(seconds=i), float(i))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "recent"


def make(folder, mib=512, every=0.0, **more):
    return RecentFrames(folder, HealthSettings(recent_every=every, recent_mib=mib), **more)


def test_frames_come_back_as_the_camera_gave_them(folder):
    ring = make(folder)
    for i in range(3):
        ring.keep(frame(i), 12.3456789 * 10**i, anomalous=i == 1)
    found = read_ring(folder)
    assert [kept.number for kept in found] == [1, 2, 3]
    assert [kept.captured_at for kept in found] == [START + timedelta(seconds=i) for i in range(3)]
    assert [kept.score for kept in found] == [12.3457, 123.457, 1234.57]
    assert [kept.anomalous for kept in found] == [False, True, False]
    for i, kept in enumerate(found):
        assert np.array_equal(read_image(kept.path), frame(i).image)
        assert kept.size == kept.path.stat().st_size
        assert kept.path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_oldest_leave_when_the_bound_is_reached(folder):
    ring, size = make(folder, mib=1), (150, 200)  # some 90 kB of noise each
    most = 0
    for i in range(30):
        ring.keep(frame(i, size), 1.0, anomalous=False)
        most = max(most, sum(path.stat().st_size for path in folder.iterdir()))
    assert 0.8 * 2**20 < most <= 2**20
    numbers = [kept.number for kept in read_ring(folder)]
    assert numbers == list(range(30 - len(numbers) + 1, 31))
    assert ring.trouble is None


def test_a_restart_goes_on_with_the_ring_whatever_the_clock_says(folder):
    make(folder).keep(frame(0, at=datetime(2036, 1, 1, tzinfo=timezone.utc)), 1.0, anomalous=False)
    half = folder / ".0000000002_20240501T083015.123456Z_1.png.deadbeef.part"
    half.write_bytes(b"half a frame")
    (folder / "notes.txt").write_text("somebody else's")
    make(folder).keep(frame(1), 2.0, anomalous=False)
    assert [(kept.number, kept.score) for kept in read_ring(folder)] == [(1, 1.0), (2, 2.0)]
    assert not half.exists()
    assert (folder / "notes.txt").exists()


def test_a_smaller_bound_shrinks_what_is_there(folder):
    ring = make(folder)
    for i in range(30):
        ring.keep(frame(i, (150, 200)), 1.0, anomalous=False)
    make(folder, mib=1).keep(frame(30, (150, 200)), 1.0, anomalous=False)
    assert sum(kept.size for kept in read_ring(folder)) <= 2**20
    assert read_ring(folder)[-1].number == 31


def test_offers_are_written_in_the_background(folder):
    ring = make(folder)
    ring.start()
    ring.offer(frame(), 7.0, anomalous=True)
    ring.stop(30)
    [kept] = read_ring(folder)
    assert (kept.score, kept.anomalous) == (7.0, True)


def test_a_slow_disk_costs_frames_and_never_time(folder, monkeypatch):
    write, writing, go_on = recent.write_whole, threading.Event(), threading.Event()

    def slow(*args, **more):
        writing.set()
        assert go_on.wait(60)
        write(*args, **more)

    monkeypatch.setattr(recent, "write_whole", slow)
    ring = make(folder)
    ring.start()
    ring.offer(frame(0), 0.0, anomalous=False)
    assert writing.wait(30)
    for i in range(1, 50):  # would wait for ever if it waited
        ring.offer(frame(i), float(i), anomalous=False)
    ring.stop(0.01)  # neither does this
    go_on.set()
    ring.stop(30)
    assert [kept.score for kept in read_ring(folder)] == [0.0, 1.0]


def test_frames_are_spread_in_time(folder):
    now, taken, picture = [0.0], [], frame()
    ring = make(folder, every=10.0, clock=lambda: now[0])
    for tick in range(50_000):
        now[0] = tick / 10
        ring.offer(picture, 0.0, anomalous=False)
        if not ring._offers.empty():
            ring._offers.get()
            taken.append(now[0])
    gaps = np.diff(taken)
    assert gaps.mean() == pytest.approx(10, rel=0.1)
    assert gaps.min() >= 5
    assert gaps.max() <= 15.1
    assert gaps.std() > 2, "a line that repeats itself must not be met at the same place always"


def test_zero_mib_keep_nothing(folder):
    ring = make(folder, mib=0)
    ring.start()
    ring.offer(frame(), 1.0, anomalous=False)
    ring.stop(1)
    assert not folder.exists()
    assert ring.trouble is None


def test_a_folder_that_cannot_be_made_is_told_and_tried_again(folder):
    folder.parent.mkdir()
    folder.write_text("a file in its place")
    ring = make(folder)
    ring.keep(frame(0), 1.0, anomalous=False)
    assert ring.trouble == f"recent-frames: file exists ({folder}): recent frames are not kept"
    folder.unlink()
    ring.keep(frame(1), 2.0, anomalous=False)
    assert ring.trouble is None
    assert [kept.score for kept in read_ring(folder)] == [2.0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    ring = make(folder)
    ring.keep(frame(), 1.0, anomalous=False)
    assert "permission denied" in ring.trouble


def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path):
    with SmallDisk(tmp_path) as disk:
        folder = disk.folder / "recent"
        ring = make(folder)
        ring.keep(frame(0), 1.0, anomalous=False)
        disk.fill()
        ring.keep(frame(1), 2.0, anomalous=False)
        assert ring.trouble == f"recent-frames: no space left on device ({folder}): recent frames are not kept"
        assert len(list(folder.iterdir())) == 1
        disk.make_room()
        ring.keep(frame(2), 3.0, anomalous=False)
        assert ring.trouble is None
        assert [kept.score for kept in read_ring(folder)] == [1.0, 3.0]


def test_a_disk_that_turns_read_only_is_told(tmp_path):
    with SmallDisk(tmp_path) as disk:
        ring = make(disk.folder / "recent")
        ring.keep(frame(0), 1.0, anomalous=False)
        disk.break_down()
        ring.keep(frame(1), 2.0, anomalous=False)
        assert ring.trouble.startswith("recent-frames: read-only file system")
        assert len(read_ring(disk.folder / "recent")) == 1


def test_a_folder_that_vanishes_is_made_again(folder):
    ring = make(folder)
    ring.keep(frame(0), 1.0, anomalous=False)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    ring.keep(frame(1), 2.0, anomalous=False)
    ring.keep(frame(2), 3.0, anomalous=False)
    assert ring.trouble is None
    assert [kept.score for kept in read_ring(folder)][-1] == 3.0


def test_a_frame_beyond_the_bound_is_told_and_takes_no_other_with_it(folder):
    ring = make(folder, mib=1)
    ring.keep(frame(0), 1.0, anomalous=False)
    ring.keep(frame(1, (800, 800)), 2.0, anomalous=False)
    assert "raise health.recent_mib" in ring.trouble
    assert [kept.score for kept in read_ring(folder)] == [1.0]


def test_no_folder_is_an_empty_ring(folder):
    assert read_ring(folder) == []


def test_links_and_folders_are_no_frames(folder, tmp_path):
    make(folder).keep(frame(), 1.0, anomalous=False)
    [kept] = read_ring(folder)
    (folder / "0000000009_20240501T083015.123456Z_1.png").symlink_to(kept.path)
    (folder / "0000000010_20240501T083015.123456Z_1.png").mkdir()
    assert read_ring(folder) == [kept]


@given(
    st.floats(0, 1e9) | st.integers(0, 10**9).map(float),
    st.datetimes(timezones=st.just(timezone.utc)).filter(lambda at: at.year >= 1970),
    st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_score_and_time_survive_the_file_name(folder, score, at, anomalous):
    make(folder).keep(frame(at=at), score, anomalous=anomalous)
    kept = read_ring(folder)[-1]
    assert kept.score == pytest.approx(score, rel=1e-5)
    assert (kept.captured_at, kept.anomalous) == (at, anomalous)


NAME = st.from_regex(r"[0-9]{10}_[0-9]{8}T[0-9]{6}\.[0-9]{6}Z_[0-9.e+-]{1,8}!?\.png", fullmatch=True)


@given(NAME | st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_in_the_folder_is_a_frame_or_none(tmp_path, name):
    if name in {".", ".."} or len(name.encode()) > 255:
        return
    path = tmp_path / name
    path.write_bytes(b"")
    assert len(read_ring(tmp_path)) in {0, 1}
    Path(path).unlink()
