import errno
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import station.thresholds
from station.control import CommandError
from station.thresholds import FILE, LOG, MAX_FILE_BYTES, MAX_LOG_BYTES, Override, ThresholdStore
from tests.support.station_process import REPOSITORY

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
SOURCE = "sha256 of calibration.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def opened(folder: Path, base: float = 40, source: str = SOURCE) -> ThresholdStore:
    """A station's store after its start."""
    times = iter(NOON + timedelta(seconds=n) for n in range(10_000))
    store = ThresholdStore(folder, lambda: next(times))
    store.load(base, source)
    return store


def records(folder: Path) -> list[tuple[str, str, float | None, float | None]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(line["what"], line["by"], line["from"], line["to"]) for line in lines]


def test_nothing_is_written_before_something_was_set(folder: Path) -> None:
    store = opened(folder)
    assert (store.override, store.trouble) == (None, None)
    assert not folder.exists()


def test_what_was_set_holds_after_a_restart(folder: Path) -> None:
    override = opened(folder).set(45.5, "ann")
    assert (override.threshold, override.by, override.at) == (45.5, "ann", NOON)
    store = opened(folder)
    assert store.override == override
    assert store.trouble is None


def test_every_change_is_recorded_with_who_and_when(folder: Path) -> None:
    store = opened(folder)
    store.set(45, "ann")
    store.set(50, "Jörg")
    opened(folder).set(55, "ann")
    assert records(folder) == [("set", "ann", 40, 45), ("set", "Jörg", 45, 50), ("set", "ann", 50, 55)]
    first = json.loads((folder / LOG).read_text().splitlines()[0])
    assert (first["at"], first["source"]) == ("2024-05-01T12:00:00Z", SOURCE)


@pytest.mark.parametrize(("base", "source"), [(41, SOURCE), (40, "another calibration"), (41, "another calibration")])
def test_a_new_calibration_wins(folder: Path, base: float, source: str) -> None:
    opened(folder).set(45, "ann")
    store = opened(folder, base, source)
    assert (store.override, store.trouble) == (None, None)
    assert records(folder)[1:] == [("lapsed", "ann", 45, base)]
    assert opened(folder).override is None, "also when the old calibration comes back"
    assert len(records(folder)) == 2


def test_only_the_owner_may_look(folder: Path) -> None:
    opened(folder).set(45, "ann")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / LOG).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"\0" * 512, "expected value"),
        (b"[]", "object"),
        (b'{"threshold": 1}', "required"),
        (b" " * (MAX_FILE_BYTES + 1), "too large"),
    ],
)
def test_a_damaged_file_is_moved_aside_and_reported(folder: Path, damaged: bytes, why: str) -> None:
    opened(folder).set(45, "ann")
    (folder / FILE).write_bytes(damaged)
    store = opened(folder)
    assert store.override is None
    assert (store.trouble or "").startswith("threshold-corrupt: ")
    assert why in (store.trouble or "")
    assert (folder / f"{FILE}.corrupt-20240501T120000Z").read_bytes() == damaged
    assert records(folder)[-1] == ("lost", "", None, 40)
    store.set(50, "ann")
    assert store.trouble is None
    assert opened(folder).override is not None


@pytest.mark.parametrize(
    "change", [{"threshold": -1}, {"threshold": float("nan")}, {"threshold": 1e10}, {"by": ""}, {"schema_version": 2}]
)
def test_values_from_disk_are_not_believed(folder: Path, change: dict) -> None:
    good = json.loads(opened(folder).set(45, "ann").model_dump_json())
    (folder / FILE).write_text(json.dumps(good | change))
    store = opened(folder)
    assert store.override is None
    assert (store.trouble or "").startswith("threshold-corrupt: ")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_neither_hangs_nor_misleads(folder: Path, kind: str) -> None:
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / FILE)
    elif kind == "folder":
        (folder / FILE).mkdir()
    else:
        (folder / FILE).symlink_to("/etc/passwd")
    store = opened(folder)
    assert store.override is None
    assert (store.trouble or "").startswith("threshold-unreadable: ")


def test_the_log_must_not_be_a_link(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / LOG).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CommandError, match="threshold-not-kept"):
        opened(folder).set(45, "ann")
    assert not (tmp_path / "elsewhere").exists()


@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / FILE).write_bytes(data)
    (folder / LOG).write_bytes(data)
    store = opened(folder)
    assert store.override is None
    assert store.set(45, "ann") == opened(folder).override
    last = json.loads((folder / LOG).read_bytes().splitlines()[-1])
    assert (last["what"], last["to"]) == ("set", 45)


def fail_once(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """A double of a disk that refuses: the next call of an os function fails."""
    real = getattr(os, name)
    due = [OSError(number, os.strerror(number))]

    def call(*arguments: object, **more: object) -> object:
        if due:
            raise due.pop()
        return real(*arguments, **more)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_without_a_record_there_is_no_change(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = opened(folder)
    before = store.set(45, "ann")
    kept = (folder / FILE).read_bytes()
    fail_once(monkeypatch, "fsync", number)
    with pytest.raises(CommandError, match=f"threshold-not-kept: .*{LOG}: {os.strerror(number)}"):
        store.set(50, "ann")
    assert store.override == before
    assert (folder / FILE).read_bytes() == kept
    assert records(folder)[-1] == ("not set", "ann", 50, 45)
    assert store.set(50, "ann").threshold == 50, "the disk is back"


def test_a_change_that_cannot_be_kept_is_not_made_and_the_log_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(folder)
    before = store.set(45, "ann")
    monkeypatch.setattr(station.files, "write_whole", refuse)
    with pytest.raises(CommandError, match=r"threshold-not-kept: .*threshold\.json: cannot be written"):
        store.set(50, "ben")
    assert store.override == before == opened(folder).override
    assert records(folder)[-2:] == [("set", "ben", 45, 50), ("not set", "ben", 50, 45)]


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_for_real(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    mounted = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "true"], capture_output=True, check=False, timeout=10
    )
    if mounted.returncode != 0:
        pytest.skip("no mount namespaces here")
    folder.mkdir()
    script = f"""
import sys
from pathlib import Path
from station.control import CommandError
from station.thresholds import ThresholdStore
folder = Path({str(folder)!r})
store = ThresholdStore(folder)
store.load(40, "x")
store.set(45, "ann")
try:
    (folder / "ballast").write_bytes(bytes(2**20))
except OSError:
    pass
number = 0
try:
    while number < 1000:  # what is left of the last page still takes a few lines
        store.set(50 + number, "ben" * 20)
        number += 1
except CommandError as error:
    print(error)
again = ThresholdStore(folder)
assert again.load(40, "x") == store.override, (again.override, store.override)
(folder / "ballast").unlink()
store.set(60, "ann")
assert again.load(40, "x").threshold == 60
"""
    done = subprocess.run(
        [
            *("unshare", "--mount", "--map-root-user", "sh", "-c"),
            f'mount -t tmpfs -o size=64k tmpfs "{folder}" && exec "{sys.executable}" -c "$1"',
            *("sh", script),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "threshold-not-kept: " in done.stdout
    assert os.strerror(errno.ENOSPC) in done.stdout


def test_killed_between_record_and_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    store = opened(folder)
    store.set(45, "ann")
    with monkeypatch.context() as patch:
        patch.setattr(station.thresholds, "write_file", die)
        with pytest.raises(KilledError):
            store.set(50, "ben")
    again = opened(folder)
    assert again.override is not None
    assert again.override.threshold == 45
    assert records(folder) == [("set", "ann", 40, 45), ("set", "ben", 45, 50), ("not set", "", 50, 45)]
    opened(folder)
    assert len(records(folder)) == 3


def test_killed_at_any_moment_what_was_answered_holds(folder: Path) -> None:
    """A child sets one threshold after the other and tells each that was kept; SIGKILL at a moment of chance."""
    script = f"""
from pathlib import Path
from station.thresholds import ThresholdStore
store = ThresholdStore(Path({str(folder)!r}))
store.load(40, "x")
number = int(store.override.threshold) if store.override else 40
while True:
    number += 1
    store.set(number, "ann")
    print(number, flush=True)
"""
    highest = 40.0
    for pause in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(1 + 7 * pause):
            assert child.stdout.readline()
        child.kill()
        told = [float(line) for line in child.communicate()[0].split() if line.isdigit()]
        store = ThresholdStore(folder)
        found = store.load(40, "x")
        assert found is not None
        assert store.trouble is None
        assert found.threshold >= max(told, default=highest)
        assert found.threshold > highest
        highest = found.threshold
    done = {line["to"] for line in map(json.loads, (folder / LOG).read_text().splitlines()) if line["what"] == "set"}
    assert done >= set(range(41, int(highest) + 1)), "a change without its record"


def test_a_line_torn_by_a_power_cut_costs_no_other(folder: Path) -> None:
    store = opened(folder)
    store.set(45, "ann")
    with (folder / LOG).open("ab") as file:
        file.write(b'{"at": "2024-05-01T12')
    store = opened(folder)
    store.set(50, "ann")
    lines = (folder / LOG).read_text().splitlines()
    assert [json.loads(lines[n])["to"] for n in (0, 2)] == [45, 50]


def test_the_log_is_bounded(folder: Path) -> None:
    store = opened(folder)
    store.set(45, "ann")
    (folder / LOG).write_bytes(b"\n" * MAX_LOG_BYTES)
    store.set(50, "ann")
    assert records(folder) == [("set", "ann", 45, 50)]
    assert (folder / f"{LOG}.1").stat().st_size == MAX_LOG_BYTES


def test_folder_and_files_are_on_disk_before_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    opened(folder).set(45, "ann")
    assert synced[:2] == [LOG, folder.name]
    assert synced[2].startswith(f".{FILE}.")
    assert synced[3] == folder.name


def test_set_needs_load(folder: Path) -> None:
    with pytest.raises(ValueError, match="load"):
        ThresholdStore(folder).set(45, "ann")


def test_the_file_reads_back_as_it_was(folder: Path) -> None:
    override = opened(folder).set(45, "ann")
    assert Override.model_validate_json((folder / FILE).read_bytes()) == override
