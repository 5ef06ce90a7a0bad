"""What must reach the broker whatever happens: alerts and their pictures, on disk until it has them.

One SQLite file. A parcel is in it, safe even from a power cut, before ``put`` returns, and leaves it only when the
broker has acknowledged it. Where the disk fails the outbox goes on in memory, says so, and moves back when the disk
does: inspection never waits for a repair. docs/decisions/0040-outbox.md tells why it is built so.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import structlog

from station.outbox_store import (
    FAILURES,
    MOST_DISPENSABLE,
    DamagedError,
    NewerError,
    OpenAlert,
    Parcel,
    Store,
    VanishedError,
    size_of,
    wal_of,
)
from station.settings import OutboxSettings

log = structlog.get_logger(__name__)

FILE = "outbox.db"
LOOK_SECONDS = 1.0  # between two looks at the disk
RETRY_SECONDS = (1.0, 30.0)  # first and longest pause before a failed disk is tried again, doubled in between
MOVE_BYTES = 4 * 2**20  # moved from memory to disk in one go: put() waits for that long and no longer
ASIDE_KEPT = 2  # damaged files; older ones are deleted, or they would fill the disk in the end
_ROWS = 2**40  # more than a file will ever have


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
        self._memory = Store(None)
        self._disk: Store | None = None  # all in it is older than what is in memory
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
                except FAILURES as error:
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
                except FAILURES as error:
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
                except FAILURES as error:
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
            except FAILURES as error:
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
            except FAILURES as error:
                self._lose_disk(error)
        return self._memory.delete(key)

    def _admit(self, parcel: Parcel) -> bool:
        if not self._closed and self._make_room(parcel):
            return True
        self._count(image=parcel.is_image)
        return False

    def _make_room(self, parcel: Parcel) -> bool:
        """Whether there is room: the oldest frames go first, then the oldest pictures, then the oldest alerts."""
        size = size_of(parcel)
        if size > self._max_bytes:
            return False
        while self.bytes + size > self._max_bytes:
            self._full = True
            ranks = range(MOST_DISPENSABLE, parcel.dispensable - 1, -1)
            found = ((rank, key) for rank in ranks if (key := self._oldest(rank)) is not None)
            rank, key = next(found, (0, None))
            if key is None:
                return False
            if self._delete(key):
                self._count(image=rank > 0)
        return True

    def _oldest(self, dispensable: int) -> str | None:
        if self._disk is not None:
            try:
                if (found := self._disk.oldest(dispensable)) is not None:
                    return found
            except FAILURES as error:
                self._lose_disk(error)
        return self._memory.oldest(dispensable)

    def _expire(self, store: Store) -> None:
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
                store = Store(self._path)
            except (sqlite3.DatabaseError, DamagedError, NewerError) as error:
                if not _is_damage(error):
                    raise
                self._move_aside(error, "")
                store = Store(self._path)
            try:
                self._reconcile(store)
            except BaseException:
                store.close()
                raise
        except FAILURES as error:
            self._without_disk(error)
            return
        self._disk, self._pause = store, RETRY_SECONDS[0]
        self._copied, self._recorded = set(), set()
        if self._failure is not None:
            log.info("the outbox is on disk again", file=str(self._path), in_memory=len(self._memory))
        self._failure = None

    def _reconcile(self, store: Store) -> None:
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

    def _record_open_alerts(self, store: Store) -> None:
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
                    size += size_of(parcel)
                    if size >= MOVE_BYTES:
                        break
                self._record_open_alerts(self._disk)
        except FAILURES as error:
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
        if isinstance(error, VanishedError) or _is_damage(error):
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
        if self._path is None or isinstance(error, VanishedError):
            log.error("the outbox's file has vanished; a new one is made", file=str(self._path), found=saved)
            return
        kind = "newer" if isinstance(error, NewerError) else "corrupt"
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = self._path.with_name(f"{FILE}.{kind}-{stamp}")
        self._path.rename(aside)
        with suppress(FileNotFoundError):
            wal_of(self._path).rename(wal_of(aside))
        words = f"written by a newer station ({error})" if kind == "newer" else f"the file was damaged ({error}){saved}"
        self._aside = aside, f"outbox-{kind}: {words}"
        log.error("the outbox's file cannot be used; a new one is made", why=words, moved_to=str(aside))
        for old in sorted(self._path.parent.glob(f"{FILE}.{kind}-*Z"))[:-ASIDE_KEPT]:
            old.unlink()
            wal_of(old).unlink(missing_ok=True)


def _is_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.OperationalError):  # the disk's fault, not the file's, but for a table that is missing
        return "no such" in str(error)
    return isinstance(error, sqlite3.DatabaseError | DamagedError | NewerError)


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
