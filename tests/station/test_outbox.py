"""The outbox on a real disk: order, bounds, restarts, and what becomes of it when the disk fails."""

import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import station.outbox
import station.outbox_store
from station.outbox import FILE, Outbox
from station.outbox_store import ROW_BYTES, VERSION, OpenAlert, Parcel, Store
from station.settings import OutboxSettings
from tests.support.small_disk import SmallDisk

MIB = 2**20


def parcel(key: str, size: int = 100, *, image: bool = False, frame: bool = False) -> Parcel:
    payload = key.encode().ljust(size, b".")
    content_type = "image/png" if frame else "image/jpeg" if image else "application/json"
    return Parcel("t", payload, 1, (), content_type=content_type, key=key)


def about(alert: str, event: str) -> Parcel:
    return Parcel("t", event.encode(), 1, (), key=f"{alert}/{event}", alert=alert, closes=event == "close")


def drain(outbox: Outbox) -> list[str]:
    keys = []
    while (found := outbox.first()) is not None:
        keys.append(found.key)
        outbox.done(found)
    return keys


def try_disk(outbox: Outbox) -> None:
    """What happens within half a minute by itself."""
    outbox._next_try = outbox._next_look = 0.0
    outbox.tend()


class Clock:
    """In the place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (station.outbox, station.outbox_store):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "state", OutboxSettings())
    yield outbox
    outbox.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE


def reopen(outbox: Outbox, file: Path) -> Outbox:
    outbox.close()
    return Outbox(file.parent, OutboxSettings())


def test_first_in_first_out_across_a_restart(outbox: Outbox, file: Path) -> None:
    for number in range(5):
        outbox.put(parcel(f"k{number}"))
    first = outbox.first()
    assert first is not None
    outbox.done(first)
    outbox = reopen(outbox, file)
    outbox.put(parcel("k5"))
    assert len(outbox) == 5
    assert outbox.trouble is None
    assert outbox.on_disk
    assert drain(outbox) == ["k1", "k2", "k3", "k4", "k5"]
    assert (len(outbox), outbox.bytes) == (0, 0)
    outbox.close()


def test_a_parcel_comes_back_as_it_was(outbox: Outbox, file: Path) -> None:
    sent = Parcel(
        "a/b", b"\x00\xff", 1, (("schema", "ü"),), content_type="image/jpeg", expiry=timedelta(hours=3), key="k"
    )
    outbox.put(sent)
    outbox = reopen(outbox, file)
    found = outbox.first()
    assert found is not None
    for name in ("topic", "payload", "qos", "properties", "retain", "content_type", "expiry", "key"):
        assert getattr(found, name) == getattr(sent, name)
    outbox.close()


def test_nobody_else_may_read_it(outbox: Outbox, file: Path) -> None:
    outbox.put(parcel("k"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.with_name(f"{FILE}-wal").stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_message_put_twice_is_one_message(outbox: Outbox) -> None:
    outbox.put(parcel("k"))
    outbox.put(parcel("k"))
    assert len(outbox) == 1
    assert drain(outbox) == ["k"]


def test_first_but_those_on_their_way(outbox: Outbox) -> None:
    for key in "abc":
        outbox.put(parcel(key))
    assert [getattr(outbox.first(but), "key", None) for but in ("", "a", "ab", "abc", "b")] == [
        "a",
        "b",
        "c",
        None,
        "a",
    ]


def test_without_a_folder_it_works_in_memory_and_is_content() -> None:
    outbox = Outbox(None, OutboxSettings())
    outbox.put(parcel("a"))
    outbox.tend()
    assert (outbox.trouble, outbox.on_disk, drain(outbox)) == (None, False, ["a"])
    outbox.close()


# --- bounds ---


@pytest.mark.parametrize("on_disk", [True, False])
def test_frames_make_room_before_pictures_and_take_no_place_of_theirs(tmp_path: Path, *, on_disk: bool) -> None:
    outbox = Outbox(tmp_path if on_disk else None, OutboxSettings(max_mib=1))
    for number in range(3):
        outbox.put(
            parcel(f"a{number}", 10_000),
            parcel(f"p{number}", 90_000, image=True),
            parcel(f"f{number}", 200_000, frame=True),
        )
    assert (len(outbox), outbox.dropped_images) == (9, 0)
    outbox.put(parcel("a3", 10_000), parcel("p3", 190_000, image=True))
    assert (len(outbox), outbox.dropped_images) == (10, 1)
    outbox.put(parcel("a4", 500_000))
    assert (outbox.dropped_alerts, outbox.dropped_images) == (0, 3)
    outbox.put(parcel("f4", 300_000, frame=True))  # no older frame goes any more, and for a frame no picture does
    assert (outbox.dropped_alerts, outbox.dropped_images) == (0, 4)
    assert drain(outbox) == ["a0", "p0", "a1", "p1", "a2", "p2", "a3", "p3", "a4"]
    outbox.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_pictures_make_room_first_then_the_oldest_alerts(tmp_path: Path, *, on_disk: bool) -> None:
    outbox = Outbox(tmp_path if on_disk else None, OutboxSettings(max_mib=1))
    for number in range(7):
        outbox.put(parcel(f"p{number}", 100_000, image=True))
        outbox.put(parcel(f"a{number}", 100_000))
    assert outbox.bytes <= MIB
    assert (outbox.dropped_alerts, outbox.dropped_images) == (0, 4)
    for number in range(7, 12):
        outbox.put(parcel(f"a{number}", 100_000))
    assert (outbox.dropped_alerts, outbox.dropped_images) == (2, 7)
    assert outbox.trouble is not None
    assert outbox.trouble.startswith("outbox-full: ")
    outbox.put(parcel("p9", 100_000, image=True))  # there is no older picture that it could take the place of
    outbox.put(parcel("huge", 2 * MIB))  # and nothing goes for what has no room anyway
    assert (outbox.dropped_alerts, outbox.dropped_images) == (3, 8)
    assert drain(outbox) == [f"a{number}" for number in range(2, 12)]
    assert (outbox.bytes, outbox.trouble) == (0, None)
    outbox.close()


def test_the_file_keeps_to_the_bound_and_shrinks_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, OutboxSettings(max_mib=8))
    for number in range(150):
        outbox.put(parcel(f"p{number}", 150_000, image=True))
        outbox.put(parcel(f"a{number}", 700))
        if number % 3 == 0 and (first := outbox.first()) is not None:
            outbox.done(first)
    used = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 7 * MIB < used < 1.1 * 8 * MIB + 6 * MIB  # the write-ahead log: 4 MiB and one picture
    drain(outbox)
    try_disk(outbox)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < MIB
    outbox.close()


def test_what_is_too_old_goes_and_is_counted(tmp_path: Path, clock: Clock) -> None:
    outbox = Outbox(tmp_path, OutboxSettings(max_age_hours=1))
    outbox.put(parcel("old"))
    outbox.put(parcel("old picture", image=True))
    clock.now += 3000
    outbox.put(parcel("young"))
    outbox.tend()
    assert len(outbox) == 3
    clock.now += 700
    outbox.tend()
    assert (outbox.dropped_alerts, outbox.dropped_images) == (1, 1)
    assert drain(outbox) == ["young"]
    outbox.close()


def test_nothing_ages_while_the_station_is_off_whatever_the_clock_says(tmp_path: Path, clock: Clock) -> None:
    outbox = Outbox(tmp_path, OutboxSettings(max_age_hours=1))
    outbox.put(parcel("a"))
    outbox.close()
    clock.now += 1e9
    outbox = Outbox(tmp_path, OutboxSettings(max_age_hours=1))
    outbox.tend()
    assert len(outbox) == 1
    clock.now += 3601
    outbox.tend()
    assert len(outbox) == 0
    outbox.close()


def test_ten_thousand_waiting_are_no_burden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the rows that SQLite reads instead of taking the time."""
    outbox = Outbox(tmp_path, OutboxSettings())
    assert outbox._disk is not None
    with outbox._disk.writing():
        for number in range(10_000):
            outbox._disk.put(parcel(f"k{number}"))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    assert outbox._disk._database is not None
    outbox._disk._database.set_progress_handler(step, 1)
    found = outbox.first([f"k{number}" for number in range(15)])
    assert found is not None
    assert found.key == "k15"
    outbox.done(found)
    assert 10 < steps < 1000
    outbox.close()


# --- alerts that were left open ---


def test_alerts_left_open_are_known_to_the_next_run_until_closed(outbox: Outbox, file: Path) -> None:
    for alert, event in (("a", "open"), ("b", "open"), ("b", "update"), ("a", "close"), ("c", "open")):
        outbox.put(about(alert, event))
    drain(outbox)  # delivered or not does not matter
    assert not outbox.left_open(), "those of this run are its own to close"
    outbox = reopen(outbox, file)
    assert outbox.left_open() == (OpenAlert("b", "t", b"update"), OpenAlert("c", "t", b"open"))
    outbox.put(about("b", "close"))
    assert [alert.id for alert in outbox.left_open()] == ["c"]
    outbox = reopen(outbox, file)
    [left] = outbox.left_open()
    assert left.id == "c"
    outbox.forget(left)
    outbox = reopen(outbox, file)
    assert not outbox.left_open()
    outbox.close()


# --- the disk fails ---


def test_disk_full_goes_on_in_memory_and_back(tmp_path: Path) -> None:
    with SmallDisk(tmp_path) as disk, capture_logs() as logs:
        file = disk.folder / FILE
        outbox = Outbox(disk.folder, OutboxSettings())
        for alert in "ab":
            outbox.put(about(alert, "open"))
        disk.fill()
        outbox.put(parcel("picture", 50_000, image=True))
        assert outbox.trouble == f"outbox-memory: disk full ({file}): alerts are kept in memory"
        outbox.put(about("a", "close"))
        outbox.put(about("c", "open"))
        first = outbox.first()
        assert first is not None
        assert first.key == "a/open"
        outbox.done(first)
        try_disk(outbox)
        assert not outbox.on_disk
        disk.make_room()
        try_disk(outbox)
        assert outbox.trouble is None
        assert len([entry for entry in logs if entry["log_level"] == "error"]) == 1
        outbox.close()
        outbox = Outbox(disk.folder, OutboxSettings())
        assert [alert.id for alert in outbox.left_open()] == ["b", "c"]
        assert drain(outbox) == ["b/open", "picture", "a/close", "c/open"]
        outbox.close()


def test_a_disk_that_turns_read_only_and_another_one_in_its_place(tmp_path: Path) -> None:
    with SmallDisk(tmp_path) as disk:
        outbox = Outbox(disk.folder / "state", OutboxSettings())
        outbox.put(parcel("a"))
        disk.break_down()
        outbox.put(parcel("b"))
        assert outbox.trouble is not None
        assert "Read-only file system" in outbox.trouble
        assert len(outbox) == 2
        disk.replace()
        try_disk(outbox)
        assert outbox.trouble is None
        assert outbox.on_disk
        outbox.close()
        outbox = Outbox(disk.folder / "state", OutboxSettings())
        assert drain(outbox) == ["a", "b"]
        outbox.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    outbox = Outbox(tmp_path / "state", OutboxSettings())
    outbox.put(parcel("a"))
    assert outbox.trouble is not None
    assert outbox.trouble.startswith("outbox-memory: cannot be written: ")
    (tmp_path / "state").unlink()
    try_disk(outbox)
    assert (outbox.trouble, drain(outbox)) == (None, ["a"])
    outbox.close()


def test_a_file_that_another_program_holds_is_read_once_it_lets_go(outbox: Outbox, file: Path) -> None:
    for number in range(3):
        outbox.put(about(f"k{number}", "open"))
    outbox.close()
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        outbox = Outbox(file.parent, OutboxSettings())
        assert outbox.trouble is not None
        assert "another program holds the file" in outbox.trouble
        outbox.put(about("k3", "open"))
        assert len(outbox) == 1
        other.execute("ROLLBACK")
    other.close()
    try_disk(outbox)
    assert outbox.trouble is None
    assert [alert.id for alert in outbox.left_open()] == ["k0", "k1", "k2"]
    assert drain(outbox) == [f"k{number}/open" for number in range(4)]
    outbox.close()


def test_two_outboxes_never_share_a_file(outbox: Outbox, file: Path) -> None:
    outbox.put(parcel("a"))
    second = Outbox(file.parent, OutboxSettings())
    assert len(second) == 0
    assert second.trouble is not None
    assert "another program" in second.trouble
    second.close()


def test_moving_back_goes_in_portions_and_keeps_the_order(
    outbox: Outbox, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station.outbox, "MOVE_BYTES", 3 * (100 + ROW_BYTES))
    outbox.put(parcel("k0"))
    break_disk(outbox)
    for number in range(1, 10):
        outbox.put(parcel(f"k{number}"))
    mend_disk(outbox)
    try_disk(outbox)
    assert outbox.trouble == f"outbox-memory: moving back to disk ({file}): alerts are kept in memory"
    outbox.put(parcel("k10"))
    assert not outbox.on_disk
    break_disk(outbox)  # again, half-way
    outbox.put(parcel("k11"))
    assert [getattr(outbox.first(), "key", None), len(outbox)] == ["k0", 12]
    mend_disk(outbox)
    for _ in range(5):
        try_disk(outbox)
    assert outbox.on_disk
    outbox = reopen(outbox, file)
    assert drain(outbox) == [f"k{number}" for number in range(12)]
    outbox.close()


# --- the file is not what it was ---


def overwrite(file: Path, start: int = 0, length: int | None = None) -> None:
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\xa5" * (file.stat().st_size - start if length is None else length))


@pytest.mark.parametrize("start", [0, 4096, 8192 + 100])
def test_damaged_while_stopped_is_moved_aside_and_told(outbox: Outbox, file: Path, start: int) -> None:
    for number in range(50):
        outbox.put(parcel(f"k{number}"))
    outbox.close()
    overwrite(file, start)
    outbox = Outbox(file.parent, OutboxSettings())
    [aside] = [found for found in file.parent.iterdir() if found.name.startswith(f"{FILE}.corrupt-")]
    assert outbox.trouble is not None
    assert outbox.trouble.startswith("outbox-corrupt: ")
    assert str(aside) in outbox.trouble
    assert outbox.on_disk
    aside.unlink()
    assert outbox.trouble is None, "seen to"
    outbox.put(parcel("new"))
    outbox = reopen(outbox, file)
    assert drain(outbox)[-1] == "new"
    outbox.close()


def test_an_empty_file_is_a_new_one(outbox: Outbox, file: Path) -> None:
    outbox.close()
    file.write_bytes(b"")
    outbox = Outbox(file.parent, OutboxSettings())
    outbox.put(parcel("a"))
    assert (outbox.trouble, drain(outbox)) == (None, ["a"])
    outbox.close()


def test_damaged_while_running_saves_what_can_be_read(outbox: Outbox, file: Path) -> None:
    for number in range(50):
        outbox.put(parcel(f"k{number}"))
    overwrite(file)
    outbox.put(parcel("next"))
    assert outbox.trouble is not None
    assert outbox.trouble.startswith("outbox-corrupt: ")
    assert outbox.on_disk
    outbox = reopen(outbox, file)
    assert drain(outbox) == [*(f"k{number}" for number in range(50)), "next"]  # they were in the write-ahead log
    outbox.close()


def test_a_log_damaged_while_running_is_noticed_and_the_next_alert_safe(outbox: Outbox, file: Path) -> None:
    outbox.put(parcel("a"))
    overwrite(file.with_name(f"{FILE}-wal"))
    outbox.put(parcel("b"))
    assert outbox.trouble is not None
    assert outbox.trouble.startswith("outbox-corrupt: ")
    outbox = reopen(outbox, file)
    assert drain(outbox)[-1] == "b"
    outbox.close()


def test_a_message_that_is_not_what_was_written_is_never_sent(outbox: Outbox, file: Path) -> None:
    """SQLite itself does not notice a flipped bit in a picture."""
    for number in range(3):
        outbox.put(Parcel("t", bytes([number]) * 100_000, 1, (), content_type="image/jpeg", key=f"k{number}"))
    outbox.close()
    overwrite(file, file.read_bytes().index(b"\1" * 4000), 1)
    outbox = Outbox(file.parent, OutboxSettings())
    assert drain(outbox) == ["k0", "k2"]
    assert outbox.trouble is not None
    assert "1 of 2 waiting messages could be read" in outbox.trouble
    outbox.close()


@pytest.mark.parametrize("what", ["folder", FILE, f"{FILE}-wal"])
def test_what_vanishes_while_running_is_made_anew_with_all_in_it(outbox: Outbox, file: Path, what: str) -> None:
    outbox.put(about("a", "open"))
    outbox.put(parcel("b"))
    if what == "folder":
        shutil.rmtree(file.parent)
    else:
        (file.parent / what).unlink()
    outbox.put(parcel("c"))
    assert outbox.on_disk
    outbox = reopen(outbox, file)
    assert [alert.id for alert in outbox.left_open()] == ["a"]
    assert drain(outbox) == ["a/open", "b", "c"]
    outbox.close()


def test_a_file_of_a_newer_station_is_kept_aside(outbox: Outbox, file: Path) -> None:
    outbox.put(parcel("a"))
    outbox.close()
    with sqlite3.connect(file) as other:
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
    other.close()
    outbox = Outbox(file.parent, OutboxSettings())
    assert outbox.trouble is not None
    assert outbox.trouble.startswith("outbox-newer: written by a newer station")
    assert (outbox.on_disk, len(outbox)) == (True, 0)
    [aside] = file.parent.glob(f"{FILE}.newer-*Z")
    with sqlite3.connect(aside) as other:
        assert other.execute("SELECT COUNT(*) FROM parcels").fetchall() == [(1,)]
    other.close()
    outbox.close()


def test_damaged_files_do_not_pile_up(outbox: Outbox, file: Path) -> None:
    outbox.close()
    for _ in range(5):
        overwrite(file)
        outbox = Outbox(file.parent, OutboxSettings())
        outbox.close()
    assert len(list(file.parent.glob(f"{FILE}.corrupt-*Z"))) == station.outbox.ASIDE_KEPT


# --- any order of events ---


def break_disk(outbox: Outbox) -> None:
    """A double of a disk that is full: nothing can be written, what is there can be read."""

    def fail(self: Store, *_: object, **__: object) -> None:
        if self._path is not None:
            raise sqlite3.OperationalError("database or disk is full")
        return _writing(self)

    Store.writing = fail


def mend_disk(outbox: Outbox) -> None:
    Store.writing = _writing


_writing = Store.writing


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    yield
    Store.writing = _writing


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["put", "put", "put", "done", "skip", "break", "mend", "tend", "restart"]), max_size=40)
)
def test_nothing_is_lost_and_the_order_kept_in_any_order_of_events(events: list[str]) -> None:
    """Against the simplest model: a list. Only a restart while the disk fails may lose what the disk never had."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(station.outbox, "MOVE_BYTES", 2 * (100 + ROW_BYTES))
        outbox = Outbox(Path(folder), OutboxSettings())
        waiting: list[str] = []
        count = 0
        for event in events:
            if event == "put":
                count += 1
                outbox.put(parcel(f"k{count}"))
                waiting.append(f"k{count}")
            elif event in ("done", "skip"):
                taken = outbox.first(waiting[:1] if event == "skip" else ())
                expected = waiting[1:2] if event == "skip" else waiting[:1]
                assert [taken.key] == expected if taken else not expected
                if taken:
                    outbox.done(taken)
                    waiting.remove(taken.key)
            elif event == "break":
                break_disk(outbox)
            elif event == "mend":
                mend_disk(outbox)
            elif event == "tend":
                try_disk(outbox)
            else:
                mend_disk(outbox)
                while not outbox.on_disk:
                    try_disk(outbox)
                outbox.close()
                outbox = Outbox(Path(folder), OutboxSettings())
            assert len(outbox) == len(waiting)
            assert outbox.bytes == len(waiting) * (100 + ROW_BYTES)
        mend_disk(outbox)
        while not outbox.on_disk:
            try_disk(outbox)
        assert drain(outbox) == waiting
        outbox.close()
