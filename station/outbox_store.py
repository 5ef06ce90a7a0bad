"""The outbox's table: one SQLite database, in a file that is checked against damage, or in memory."""

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

VERSION = 1
JPEG, PNG = "image/jpeg", "image/png"
MOST_DISPENSABLE = 2
ROW_BYTES = 1024  # counted for each parcel beside its payload: topic, properties, index, the page's rest
_LOCK_SECONDS = 0.2  # to wait for another program that holds the file
_LOG_BYTES = 4 * 2**20  # that the write-ahead log keeps on disk once it is empty
_VACUUM_PAGES = 256
_MAGIC = b"SQLite format 3\0"
_WAL_MAGIC = b"\x37\x7f\x06"  # its fourth byte tells the machine's byte order
_SCHEMA = """
CREATE TABLE IF NOT EXISTS parcels (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, image INTEGER NOT NULL, created REAL NOT NULL,
    topic TEXT NOT NULL, properties TEXT NOT NULL, content_type TEXT NOT NULL, expiry REAL,
    payload BLOB NOT NULL, crc INTEGER NOT NULL);
DROP INDEX IF EXISTS images;
CREATE INDEX IF NOT EXISTS dispensable ON parcels (image, id);
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
    def dispensable(self) -> int:
        """What goes first when room is short: frames as the camera gave them (2), pictures (1), messages (0)."""
        return {JPEG: 1, PNG: MOST_DISPENSABLE}.get(self.content_type, 0)

    @property
    def is_image(self) -> bool:
        """Whether it is a picture or a frame."""
        return self.dispensable > 0


class OpenAlert(NamedTuple):
    """An alert that was told and not closed.

    Attributes:
        topic: that it was told on.
        payload: the last message about it.
    """

    id: str
    topic: str
    payload: bytes


class DamagedError(Exception):
    """The file does not hold what was written to it."""


class NewerError(Exception):
    """The file was written by a newer station."""


class VanishedError(Exception):
    """The file is gone, or another one is in its place."""


FAILURES = (sqlite3.Error, OSError, DamagedError, NewerError, VanishedError)


class Store:
    """One SQLite database, in a file or in memory. Not locked; raises what SQLite raises.

    Attributes:
        bytes: what its parcels count.
    """

    def __init__(self, path: Path | None) -> None:
        """Open it, and make it where it is missing.

        Raises:
            sqlite3.Error, OSError: it cannot be opened.
            DamagedError, NewerError: it holds something else.
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
        database.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        [[version]] = database.execute("PRAGMA user_version")
        if version > VERSION:
            raise NewerError(f"schema {version}, this one knows {VERSION}")
        [[verdict], *_] = database.execute("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise DamagedError(verdict)
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
            VanishedError, DamagedError: as they say.
        """
        if self._path is None or self._file is None:
            return
        for path in (self._path, wal_of(self._path)):
            try:
                inode = path.stat().st_ino
            except FileNotFoundError:
                raise VanishedError(f"{path.name} is gone") from None
            if self._inodes.setdefault(path, inode) != inode:
                raise VanishedError(f"another file is in the place of {path.name}")
        if os.pread(self._file, len(_MAGIC), 0) != _MAGIC:
            raise DamagedError("no SQLite file any more")
        with wal_of(self._path).open("rb") as log_:
            if log_.read(len(_WAL_MAGIC)) not in (b"", _WAL_MAGIC):
                raise DamagedError("the write-ahead log is none any more")

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
            parcel.dispensable,
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
            self.bytes += size_of(parcel)

    def delete(self, key: str) -> bool:
        """Whether it was there."""
        for [length] in self._execute("SELECT LENGTH(payload) FROM parcels WHERE key = ?", key).fetchall():
            self._execute("DELETE FROM parcels WHERE key = ?", key)
            self._count -= 1
            self.bytes -= length + ROW_BYTES
            return True
        return False

    def first(self, but: Collection[str]) -> Parcel | None:
        """The oldest parcel whose key is not in ``but``."""
        keys = self._execute("SELECT id, key FROM parcels ORDER BY id LIMIT ?", len(but) + 1)
        row = next((row for row, key in keys.fetchall() if key not in but), None)
        return None if row is None else self._read(row)[0]

    def oldest(self, dispensable: int) -> str | None:
        """Key of the first parcel that is so dispensable."""
        found = self._execute("SELECT key FROM parcels WHERE image = ? ORDER BY id LIMIT 1", dispensable).fetchone()
        return found[0] if found else None

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
        """Whether a parcel with this key is there."""
        return self._execute("SELECT 1 FROM parcels WHERE key = ?", key).fetchone() is not None

    def keys(self) -> set[str]:
        """Of all parcels."""
        return {key for [key] in self._execute("SELECT key FROM parcels")}

    def first_row(self) -> int:
        """Of the oldest parcel; 1 where there is none."""
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
            except (sqlite3.Error, DamagedError):
                continue
            yield row, parcel, age

    def open_alerts(self) -> list[OpenAlert]:
        """Alerts that were told and not closed."""
        return [OpenAlert(*row) for row in self._execute("SELECT id, topic, payload FROM open_alerts ORDER BY id")]

    def keep_open_alert(self, parcel: Parcel) -> None:
        """What this parcel says of its alert: open or closed."""
        if parcel.closes:
            self.forget(parcel.alert)
        elif parcel.alert:
            self.remember(OpenAlert(parcel.alert, parcel.topic, parcel.payload))

    def remember(self, alert: OpenAlert) -> None:
        """Note an open alert, or what was last said of it."""
        self._execute("INSERT OR REPLACE INTO open_alerts VALUES (?, ?, ?)", *alert)

    def forget(self, alert: str) -> None:
        """Note that an alert is closed."""
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
            raise DamagedError("a row that is listed is not there")
        key, created, topic, properties, content_type, expiry, payload, crc = found
        if _crc(payload) != crc:
            raise DamagedError("a message is not what was written")
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


def size_of(parcel: Parcel) -> int:
    """Bytes that a parcel counts against the bound."""
    return len(parcel.payload) + ROW_BYTES


def _crc(payload: bytes) -> int:
    return zlib.crc32(payload)


def wal_of(path: Path) -> Path:
    """The write-ahead log of a database."""
    return path.with_name(f"{path.name}-wal")
