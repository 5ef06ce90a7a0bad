"""What must reach the broker whatever happens: alerts and their pictures, on disk until it has them.

One SQLite file. A parcel is in it, safe even from a power cut, before ``put`` returns, and leaves it only when the
broker has acknowledged it. Where the disk fails the outbox goes on in memory, says so, and moves back when the disk
does: inspection never waits for a repair. docs/decisions/0040-outbox.md tells why it is built so.
"""

import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import structlog

from station.settings import OutboxSettings

log = structlog.get_logger(__name__)

FILE = "outbox.db"
VERSION = 1
ROW_BYTES = 1024  # counted for each parcel beside its payload: topic, properties, index, the page's rest
LOOK_SECONDS = 1.0  # between two looks at the disk
RETRY_SECONDS = (1.0, 30.0)  # first and longest pause before a failed disk is tried again, doubled in between
MOVE_BYTES = 4 * 2**20  # moved from memory to disk in one go: put() waits for that long and no longer
ASIDE_KEPT = 2  # damaged files; older ones are deleted, or they would fill the disk in the end
_LOCK_SECONDS = 0.2  # to wait for another program that holds the file
_VACUUM_PAGES = 256
_MAGIC = b"SQLite format 3\0"
_WAL_MAGIC = b"\x37\x7f\x06"  # its fourth byte tells the machine's byte order
_ROWS = 2**40  # more than a file will ever have
_SCHEMA = """
CREATE TABLE IF NOT EXISTS parcels (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, image INTEGER NOT NULL, created REAL NOT NULL,
    topic TEXT NOT NULL, properties TEXT NOT NULL, content_type TEXT NOT NULL, expiry REAL,
    payload BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS images ON parcels (id) WHERE image;
CREATE TABLE IF NOT EXISTS open_alerts (id TEXT PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A message as it goes over the wire.

    Attributes:
        topic: full topic.
        expiry: how long the broker keeps it for a subscriber who is away (MQTT 5).
        properties: user properties (MQTT 5).
        correlation: correlation data (MQTT 5), of a reply.
        key: the dedupe key: two parcels with one key are one message, delivered again. The outbox knows a parcel by it.
        alert: id of the alert that this tells of; "" for a picture, which opens and closes nothing.
        closes: whether it closes that alert.
    """

    topic: str
    payload: bytes
    qos: int
    properties: tuple[tuple[str, str], ...]
    retain: bool = False
    content_type: str = "application/json"
    expiry: timedelta | None = None
    correlation: bytes | None = None
    key: str = ""
    alert: str = ""
    closes: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it is a picture: the first to go when room is short."""
        return self.content_type != "application/json"


class OpenAlert(NamedTuple):
    """An alert that was told and not closed.

    Attributes:
        topic: that it was told on.
        payload: the last message about it.
    """

    id: str
    topic: str
    payload: bytes


class _DamagedError(Exception):
    """The file does not hold what was written to it."""


class _NewerError(Exception):
    """The file was written by a newer station."""


class _VanishedError(Exception):
    """The file is gone, or another one is in its place."""


_FAILURES = (sqlite3.Error, OSError, _DamagedError, _NewerError, _VanishedError)


class Outbox:
    """First in, first out, across restarts; safe to use from several threads. Nothing here raises for want of a disk.

    ``len()`` is how many parcels wait.

    Attributes:
        dropped_alerts: messages on alerts lost since the start: no room, too old, or refused by the broker.
        dropped_images: the same for pictures.
    """

    def __init__(self, folder: Path | None, settings: OutboxSettings) -> None:
        """Open ``folder``/outbox.db, or make it; what an earlier run left in it is first in line.

        Args:
            folder: the station's state folder, made if need be; None keeps everything in memory.
            settings: the bounds.
        """
        self._path = folder / FILE if folder is not None else None
        self._max_bytes = settings.max_mib * 2**20
        self._max_age = settings.max_age_hours * 3600
        self._lock = threading.Lock()
        self._memory = _Store(None)
        self._disk: _Store | None = None  # all in it is older than what is in memory
        self._copied: set[str] = set()  # keys that were copied from the file to memory when the disk failed
        self._recorded: set[str] = set()  # ids of the open alerts in the file when the disk failed
        self._open: dict[str, OpenAlert] = {}  # of this run
        self._left_open: dict[str, OpenAlert] = {}  # by earlier runs
        self._failure: str | None = None  # why there is no disk
        self._aside: tuple[Path, str] | None = None  # the damaged file, and what to say of it
        self._full = self._closed = False
        self._next_look = self._next_try = 0.0
        self._pause = RETRY_SECONDS[0]
        self.dropped_alerts = 0
        self.dropped_images = 0
        with self._lock:
            self._open_disk()

    def __len__(self) -> int:
        return len(self._memory) + len(self._disk or ())

    @property
    def bytes(self) -> int:
        """How much of the bound is used."""
        return self._memory.bytes + (self._disk.bytes if self._disk is not None else 0)

    @property
    def on_disk(self) -> bool:
        """Whether all that waits would outlive this process."""
        return self._disk is not None and not len(self._memory)

    @property
    def trouble(self) -> str | None:
        """What is wrong with the outbox, ``code: words``; None: nothing."""
        if self._path is not None and not self.on_disk:
            return f"outbox-memory: {self._failure or 'moving back to disk'} ({self._path}): alerts are kept in memory"
        aside = self._aside
        if aside is not None and aside[0].exists():
            return f"{aside[1]}; moved to {aside[0]}, remove it when you have seen to it"
        if self._full:
            return f"outbox-full: {self._max_bytes >> 20} MiB (outbox.max_mib) wait for the broker: the oldest is lost"
        return None

    def put(self, *parcels: Parcel) -> None:
        """Take parcels, together or not at all. With a working disk they are safe there when this returns."""
        with self._lock:
            kept = [parcel for parcel in parcels if self._admit(parcel)]
            if self._disk is not None and not len(self._memory):
                try:
                    self._disk.check()
                    with self._disk.writing(durable=True):
                        for parcel in kept:
                            self._disk.put(parcel)
                            self._disk.keep_open_alert(parcel)
                except _FAILURES as error:
                    self._lose_disk(error)
                else:
                    self._note(kept)
                    return
            for parcel in kept:
                self._memory.put(parcel)
            self._note(kept)
            self._move()

    def first(self, but: Collection[str] = ()) -> Parcel | None:
        """The oldest parcel whose key is not in ``but``; it stays until ``done``."""
        with self._lock:
            if self._closed:
                return None
            if self._disk is not None:
                try:
                    if (found := self._disk.first(but)) is not None:
                        return found
                except _FAILURES as error:
                    self._lose_disk(error)
            return self._memory.first(but)

    def done(self, parcel: Parcel) -> None:
        """The broker has it: let it go."""
        with self._lock:
            self._delete(parcel.key)
            self._full = self._full and self.bytes > self._max_bytes / 2

    def drop(self, parcel: Parcel) -> None:
        """It cannot be delivered: let it go, and count it."""
        with self._lock:
            if self._delete(parcel.key):
                self._count(image=parcel.is_image)

    def left_open(self) -> tuple[OpenAlert, ...]:
        """Alerts that an earlier run told of and could not close; each until a parcel that closes it is put."""
        with self._lock:
            return tuple(self._left_open.values())

    def forget(self, alert: OpenAlert) -> None:
        """Leave an alert open: nobody can make a closing message of it any more."""
        with self._lock:
            self._left_open.pop(alert.id, None)
            if self._disk is not None:
                try:
                    with self._disk.writing():
                        self._disk.forget(alert.id)
                except _FAILURES as error:
                    self._lose_disk(error)

    def tend(self) -> None:
        """See to the disk and to what is too old; cheap, to be called every second or so."""
        with self._lock:
            now = time.monotonic()
            if self._closed or now < self._next_look:
                return
            self._next_look = now + LOOK_SECONDS
            try:
                if self._disk is not None:
                    self._disk.check()
                    self._expire(self._disk)
                    self._disk.vacuum()
            except _FAILURES as error:
                self._lose_disk(error)
            self._expire(self._memory)
            if self._disk is None and now >= self._next_try:
                self._open_disk()
            self._move()

    def close(self) -> None:
        """Close the file; ``len()`` then tells how many parcels were in memory only, and are lost."""
        with self._lock:
            while self._disk is not None and len(self._memory):
                self._move()
            if self._disk is not None:
                self._disk.close()
            self._memory.close()
            self._disk, self._closed = None, True

    # --- all below: under the lock ---

    def _note(self, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            if parcel.closes:
                self._open.pop(parcel.alert, None)
                self._left_open.pop(parcel.alert, None)
            elif parcel.alert:
                self._open[parcel.alert] = OpenAlert(parcel.alert, parcel.topic, parcel.payload)

    def _delete(self, key: str) -> bool:
        if self._closed:
            return False
        if self._disk is not None:
            try:
                with self._disk.writing():
                    if self._disk.delete(key):
                        return True
            except _FAILURES as error:
                self._lose_disk(error)
        return self._memory.delete(key)

    def _admit(self, parcel: Parcel) -> bool:
        if not self._closed and self._make_room(parcel):
            return True
        self._count(image=parcel.is_image)
        return False

    def _make_room(self, parcel: Parcel) -> bool:
        """Whether there is room: the oldest pictures go first, then the oldest alerts."""
        size = _size(parcel)
        if size > self._max_bytes:
            return False
        while self.bytes + size > self._max_bytes:
            self._full = True
            oldest = self._oldest(images_only=True) or (None if parcel.is_image else self._oldest(images_only=False))
            if oldest is None:
                return False
            key, image = oldest
            if self._delete(key):
                self._count(image=image)
        return True

    def _oldest(self, *, images_only: bool) -> tuple[str, bool] | None:
        if self._disk is not None:
            try:
                if (found := self._disk.oldest(images_only=images_only)) is not None:
                    return found
            except _FAILURES as error:
                self._lose_disk(error)
        return self._memory.oldest(images_only=images_only)

    def _expire(self, store: "_Store") -> None:
        expired = store.older_than(self._max_age)
        if not expired:
            return
        with store.writing():
            for key, image in expired:
                store.delete(key)
                self._count(image=image)
        log.error("lost: too old (outbox.max_age_hours)", alerts_and_pictures=len(expired))

    def _count(self, *, image: bool) -> None:
        if image:
            self.dropped_images += 1
        else:
            self.dropped_alerts += 1

    def _open_disk(self) -> None:
        if self._path is None:
            return
        try:
            try:
                store = _Store(self._path)
            except (sqlite3.DatabaseError, _DamagedError, _NewerError) as error:
                if not _is_damage(error):
                    raise
                self._move_aside(error, "")
                store = _Store(self._path)
            try:
                self._reconcile(store)
            except BaseException:
                store.close()
                raise
        except _FAILURES as error:
            self._without_disk(error)
            return
        self._disk, self._pause = store, RETRY_SECONDS[0]
        self._copied, self._recorded = set(), set()
        if self._failure is not None:
            log.info("the outbox is on disk again", file=str(self._path), in_memory=len(self._memory))
        self._failure = None

    def _reconcile(self, store: "_Store") -> None:
        """Bring the file that is back to what happened meanwhile; what memory holds beyond it is moved later."""
        with store.writing(durable=True):
            for key in self._copied - self._memory.keys():
                store.delete(key)  # the broker has it by now
            for alert in store.open_alerts():
                if alert.id not in self._open and alert.id not in self._recorded:
                    self._left_open[alert.id] = alert
            self._record_open_alerts(store)
        for key in self._copied:
            if store.holds(key):
                self._memory.delete(key)

    def _record_open_alerts(self, store: "_Store") -> None:
        for alert in store.open_alerts():
            if alert.id not in self._open and alert.id not in self._left_open:
                store.forget(alert.id)
        for alert in self._open.values():
            store.remember(alert)

    def _move(self) -> None:
        """Move a portion of what is in memory to disk."""
        if self._disk is None or not len(self._memory):
            return
        moved: list[str] = []
        size = 0
        try:
            with self._disk.writing(durable=True):
                for _, parcel, age in self._memory.rows():
                    self._disk.put(parcel, age)
                    moved.append(parcel.key)
                    size += _size(parcel)
                    if size >= MOVE_BYTES:
                        break
                self._record_open_alerts(self._disk)
        except _FAILURES as error:
            self._lose_disk(error)
            return
        for key in moved:
            self._memory.delete(key)

    def _lose_disk(self, error: Exception) -> None:
        """Go on in memory with all that can still be read; a damaged or vanished file is replaced at once."""
        disk = self._disk
        if disk is None:
            return
        self._disk = None
        count = len(disk)
        saved = 0
        before = min(self._memory.first_row(), 1) - _ROWS
        for row, parcel, age in disk.rows():
            self._memory.put(parcel, age, before + row)
            self._copied.add(parcel.key)
            saved += 1
        disk.close()
        self._recorded = {*self._open, *self._left_open}
        if isinstance(error, _VanishedError) or _is_damage(error):
            try:
                self._move_aside(error, f"; {saved} of {count} waiting messages could be read")
            except OSError as second:
                self._without_disk(second)
            else:
                self._open_disk()
        else:
            self._without_disk(error)

    def _without_disk(self, error: Exception) -> None:
        failure = _explain(error, self._path)
        if failure != self._failure:
            log.error("the outbox cannot use the disk; alerts are kept in memory", file=str(self._path), why=failure)
        self._failure = failure
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, RETRY_SECONDS[1])

    def _move_aside(self, error: Exception, saved: str) -> None:
        """Make way for a new file.

        Raises:
            OSError: the old one cannot be moved.
        """
        if self._path is None or isinstance(error, _VanishedError):
            log.error("the outbox's file has vanished; a new one is made", file=str(self._path), found=saved)
            return
        kind = "newer" if isinstance(error, _NewerError) else "corrupt"
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = self._path.with_name(f"{FILE}.{kind}-{stamp}")
        self._path.rename(aside)
        with suppress(FileNotFoundError):
            _wal(self._path).rename(_wal(aside))
        words = f"written by a newer station ({error})" if kind == "newer" else f"the file was damaged ({error}){saved}"
        self._aside = aside, f"outbox-{kind}: {words}"
        log.error("the outbox's file cannot be used; a new one is made", why=words, moved_to=str(aside))
        for old in sorted(self._path.parent.glob(f"{FILE}.{kind}-*Z"))[:-ASIDE_KEPT]:
            old.unlink()
            _wal(old).unlink(missing_ok=True)


class _Store:
    """One SQLite database, in a file or in memory. Not locked; raises what SQLite raises.

    Attributes:
        bytes: what its parcels count.
    """

    def __init__(self, path: Path | None) -> None:
        """Open it, and make it where it is missing.

        Raises:
            sqlite3.Error, OSError: it cannot be opened.
            _DamagedError, _NewerError: it holds something else.
        """
        self._path = path
        self._file: int | None = None
        self._inodes: dict[Path, int] = {}
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Our own handle, for check(). It must outlive SQLite's: closing any handle gives up the process's locks.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._database: sqlite3.Connection | None = None
        try:
            if self._file is not None:
                os.fchmod(self._file, 0o600)
            self._database = sqlite3.connect(
                path or ":memory:", timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._prepare(self._database)
        except BaseException:
            self.close()
            raise

    def _prepare(self, database: sqlite3.Connection) -> None:
        # No second daemon may send the same parcels, and no other program may hold us up later.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        [[mode]] = database.execute("PRAGMA journal_mode = WAL")
        if self._path is not None and mode != "wal":
            raise sqlite3.OperationalError(f"no write-ahead log on this file system ({mode})")
        database.execute(f"PRAGMA journal_size_limit = {MOVE_BYTES}")
        [[version]] = database.execute("PRAGMA user_version")
        if version > VERSION:
            raise _NewerError(f"schema {version}, this one knows {VERSION}")
        [[verdict], *_] = database.execute("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise _DamagedError(verdict)
        database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
        [[count, size, last, newest]] = database.execute(
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(payload)), 0), COALESCE(MAX(id), 0), COALESCE(MAX(created), 0) "
            "FROM parcels"
        )
        self._count: int = count
        self.bytes: int = size + count * ROW_BYTES
        self._last: int = last
        # Age is the time that the station was running: clocks of line devices jump by years when they are first set.
        self._clock = newest - time.monotonic()

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Close it; errors are of no interest any more."""
        with suppress(sqlite3.Error):
            if self._database is not None:
                self._database.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def check(self) -> None:
        """See whether the file is still there, and ours: SQLite would go on writing to a deleted one.

        Raises:
            _VanishedError, _DamagedError: as they say.
        """
        if self._path is None or self._file is None:
            return
        for path in (self._path, _wal(self._path)):
            try:
                inode = path.stat().st_ino
            except FileNotFoundError:
                raise _VanishedError(f"{path.name} is gone") from None
            if self._inodes.setdefault(path, inode) != inode:
                raise _VanishedError(f"another file is in the place of {path.name}")
        if os.pread(self._file, len(_MAGIC), 0) != _MAGIC:
            raise _DamagedError("no SQLite file any more")
        with _wal(self._path).open("rb") as log_:
            if log_.read(len(_WAL_MAGIC)) not in (b"", _WAL_MAGIC):
                raise _DamagedError("the write-ahead log is none any more")

    @contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[None]:
        """A transaction; ``durable``: wait until it is on the medium (a process that is killed loses none anyway)."""
        # What needs no waiting is deleting: the worst that a power cut makes of it is that a message is sent again.
        self._execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._execute("ROLLBACK")
            raise

    def put(self, parcel: Parcel, age: float = 0.0, row: int | None = None) -> None:
        """Append a parcel, or put it at ``row``; one whose key is there already is there already."""
        expiry = parcel.expiry.total_seconds() if parcel.expiry is not None else None
        done = self._execute(
            "INSERT OR IGNORE INTO parcels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._last + 1 if row is None else row,
            parcel.key,
            parcel.is_image,
            self._clock + time.monotonic() - age,
            parcel.topic,
            json.dumps(parcel.properties),
            parcel.content_type,
            expiry,
            parcel.payload,
            _crc(parcel.payload),
        )
        if done.rowcount:
            self._last += row is None
            self._count += 1
            self.bytes += _size(parcel)

    def delete(self, key: str) -> bool:
        """Whether it was there."""
        for [length] in self._execute("SELECT LENGTH(payload) FROM parcels WHERE key = ?", key).fetchall():
            self._execute("DELETE FROM parcels WHERE key = ?", key)
            self._count -= 1
            self.bytes -= length + ROW_BYTES
            return True
        return False

    def first(self, but: Collection[str]) -> Parcel | None:
        keys = self._execute("SELECT id, key FROM parcels ORDER BY id LIMIT ?", len(but) + 1)
        row = next((row for row, key in keys.fetchall() if key not in but), None)
        return None if row is None else self._read(row)[0]

    def oldest(self, *, images_only: bool) -> tuple[str, bool] | None:
        """Key of the first one, and whether it is a picture."""
        which = "WHERE image" if images_only else ""
        found = self._execute(f"SELECT key, image FROM parcels {which} ORDER BY id LIMIT 1").fetchone()  # noqa: S608 - of two constants
        return (found[0], bool(found[1])) if found else None

    def older_than(self, age: float) -> list[tuple[str, bool]]:
        """Keys, and whether they are pictures."""
        limit = self._clock + time.monotonic() - age
        if self._count == 0:
            return []
        first = self._execute("SELECT created FROM parcels ORDER BY id LIMIT 1").fetchone()
        if first is None or first[0] >= limit:  # they are in order of age
            return []
        found = self._execute("SELECT key, image FROM parcels WHERE created < ?", limit)
        return [(key, bool(image)) for key, image in found]

    def holds(self, key: str) -> bool:
        return self._execute("SELECT 1 FROM parcels WHERE key = ?", key).fetchone() is not None

    def keys(self) -> set[str]:
        return {key for [key] in self._execute("SELECT key FROM parcels")}

    def first_row(self) -> int:
        return int(self._execute("SELECT COALESCE(MIN(id), 1) FROM parcels").fetchone()[0])

    def rows(self) -> Iterator[tuple[int, Parcel, float]]:
        """Row, parcel and age of all that can still be read."""
        rows: list[int] = []
        with suppress(sqlite3.Error):
            for [row] in self._execute("SELECT id FROM parcels ORDER BY id"):
                rows.append(row)
        for row in rows:
            try:
                parcel, age = self._read(row)
            except (sqlite3.Error, _DamagedError):
                continue
            yield row, parcel, age

    def open_alerts(self) -> list[OpenAlert]:
        return [OpenAlert(*row) for row in self._execute("SELECT id, topic, payload FROM open_alerts ORDER BY id")]

    def keep_open_alert(self, parcel: Parcel) -> None:
        """What this parcel says of its alert: open or closed."""
        if parcel.closes:
            self.forget(parcel.alert)
        elif parcel.alert:
            self.remember(OpenAlert(parcel.alert, parcel.topic, parcel.payload))

    def remember(self, alert: OpenAlert) -> None:
        self._execute("INSERT OR REPLACE INTO open_alerts VALUES (?, ?, ?)", *alert)

    def forget(self, alert: str) -> None:
        self._execute("DELETE FROM open_alerts WHERE id = ?", alert)

    def vacuum(self) -> None:
        """Give the room of a long absence of the broker back, once all has been delivered."""
        if (
            self._count == 0
            and self._database is not None
            and self._execute("PRAGMA freelist_count").fetchone()[0] > _VACUUM_PAGES
        ):
            # Not execute(): it takes one step of it, which frees one page.
            self._database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    def _read(self, row: int) -> tuple[Parcel, float]:
        found = self._execute(
            "SELECT key, created, topic, properties, content_type, expiry, payload, crc FROM parcels WHERE id = ?", row
        ).fetchone()
        if found is None:
            raise _DamagedError("a row that is listed is not there")
        key, created, topic, properties, content_type, expiry, payload, crc = found
        if _crc(payload) != crc:
            raise _DamagedError("a message is not what was written")
        parcel = Parcel(
            topic=topic,
            payload=payload,
            qos=1,
            properties=tuple((name, value) for name, value in json.loads(properties)),
            content_type=content_type,
            expiry=timedelta(seconds=expiry) if expiry is not None else None,
            key=key,
        )
        return parcel, self._clock + time.monotonic() - created

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if self._database is None:
            raise sqlite3.ProgrammingError("closed")
        return self._database.execute(statement, values)


def _size(parcel: Parcel) -> int:
    return len(parcel.payload) + ROW_BYTES


def _crc(payload: bytes) -> int:
    return zlib.crc32(payload)


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _is_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.OperationalError):  # the disk's fault, not the file's, but for a table that is missing
        return "no such" in str(error)
    return isinstance(error, sqlite3.DatabaseError | _DamagedError | _NewerError)


def _explain(error: Exception, path: Path | None) -> str:
    """In words; SQLite says "disk I/O error" to much that the file system knows better."""
    if path is not None:
        try:
            if os.statvfs(path.parent).f_bavail == 0:
                return "disk full"
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            pass
        except OSError as said:
            return f"cannot be written: {said.strerror}"
    if isinstance(error, OSError):
        return f"cannot be written: {error.strerror}"
    if "locked" in str(error):
        return "another program holds the file"
    return str(error)
