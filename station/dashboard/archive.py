"""What the dashboard keeps: alerts, their pictures and frames, what was said of them, the scores of a day.

SQLite beside a folder of files. What ``put_…`` was given is on disk when it returns, so the feed may acknowledge it.
Bounded in bytes, age and number.
"""

import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import structlog

from station.dashboard import DashboardError
from station.dashboard.records import AlertRecord, Judgement, ScoreRow
from station.files import OutputError, write_file

log = structlog.get_logger(__name__)

DATABASE = "dashboard.db"
FILES = "pictures"
VERSION = 1
MAX_ALERTS = 100_000  # whatever their age: some 4 KiB each beside the pictures
SCORE_SECONDS = 86_400.0  # of the scores that are kept
_BUSY_SECONDS = 5.0  # `--export` reads while the dashboard writes
_PRUNE_AT_ONCE = 500  # alerts in one transaction
# What goes first when there is too much, and which of its pictures; none: the whole alert.
_DISPENSABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("frame > 0 AND verdict = '' AND NOT open", ("frame",)),
    ("image + frame > 0 AND verdict = '' AND NOT open", ("image", "frame")),
    ("1", ()),
)
_SUFFIX: dict[str, str] = {"image": "jpg", "frame": "png"}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS alerts (
    row INTEGER PRIMARY KEY AUTOINCREMENT, station TEXT NOT NULL, id TEXT NOT NULL, opened REAL NOT NULL,
    received REAL NOT NULL, open INTEGER NOT NULL, verdict TEXT NOT NULL DEFAULT '', image INTEGER NOT NULL DEFAULT 0,
    frame INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL, document TEXT NOT NULL, UNIQUE (station, id));
CREATE INDEX IF NOT EXISTS by_time ON alerts (opened, row);
CREATE INDEX IF NOT EXISTS by_station ON alerts (station, opened, row);
CREATE INDEX IF NOT EXISTS still_open ON alerts (station) WHERE open;
CREATE INDEX IF NOT EXISTS sizes ON alerts (image, frame, size);
CREATE INDEX IF NOT EXISTS by_age ON alerts (received, row);
CREATE INDEX IF NOT EXISTS judged ON alerts (verdict, opened, row) WHERE verdict != '';
CREATE TABLE IF NOT EXISTS feedback (
    row INTEGER PRIMARY KEY AUTOINCREMENT, station TEXT NOT NULL, alert TEXT NOT NULL, document TEXT NOT NULL,
    published INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_alert ON feedback (station, alert);
CREATE TABLE IF NOT EXISTS scores (
    station TEXT NOT NULL, time INTEGER NOT NULL, score REAL NOT NULL, threshold REAL NOT NULL,
    PRIMARY KEY (station, time)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stations (path TEXT PRIMARY KEY, document TEXT NOT NULL, seen REAL NOT NULL);
"""

FAILURES = (sqlite3.Error, OSError, OutputError)
"""What its methods raise when the disk does not do as it should."""

Kind = Literal["image", "frame"]


class Unpublished(NamedTuple):
    """Feedback that the broker does not have yet."""

    row: int
    station: str
    alert: str
    judgement: Judgement


class Archive:
    """One folder. Its methods may be called from any thread, and raise ``FAILURES``."""

    def __init__(self, folder: Path, keep_mib: int, keep_days: float) -> None:
        """Open it, and make it where it is missing.

        Raises:
            DashboardError: it cannot be used.
        """
        self._folder = folder
        self._files = folder / FILES
        self._most_bytes = keep_mib * 2**20
        self._keep_seconds = keep_days * 86_400
        self._lock = threading.RLock()
        try:
            self._files.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = self._open(folder / DATABASE)
        except FAILURES as error:
            raise DashboardError(f"{folder}: cannot be used as dashboard.state: {error}") from error

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: the file itself may be good
                raise
            aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
            path.rename(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            log.exception("the archive is damaged: moved aside, starting anew", file=str(aside))
            return _connect(path)

    def close(self) -> None:
        """Close it."""
        with self._lock, suppress(sqlite3.Error):
            self._database.close()

    # --- alerts ---

    def alert(self, station: str, id_: str) -> AlertRecord | None:
        """One alert."""
        with self._lock:
            found = self._database.execute(
                "SELECT document FROM alerts WHERE station = ? AND id = ?", (station, id_)
            ).fetchone()
        return AlertRecord.model_validate_json(found[0]) if found else None

    def put_alert(self, record: AlertRecord) -> None:
        """Keep what is known of an alert; its pictures are kept by ``put_picture``."""
        with self._writing():
            self._put(record)

    def open_alerts(self) -> list[AlertRecord]:
        """Those that are open, oldest first."""
        with self._lock:
            rows = self._database.execute("SELECT document FROM alerts WHERE open ORDER BY opened, row").fetchall()
        return [AlertRecord.model_validate_json(document) for [document] in rows]

    def opened_since(self, since: float) -> list[tuple[str, float]]:
        """Station and UNIX time of opening of all alerts that were opened since."""
        with self._lock:
            return self._database.execute(
                "SELECT station, opened FROM alerts WHERE opened >= ? ORDER BY opened", (since,)
            ).fetchall()

    def alerts(
        self,
        *,
        station: str | None = None,
        state: str | None = None,
        verdict: str | None = None,
        since: float | None = None,
        before: tuple[float, int] | None = None,
        limit: int = 50,
    ) -> tuple[list[AlertRecord], tuple[float, int] | None]:
        """Newest first.

        Args:
            station: of this one alone.
            state: "open" or "closed".
            verdict: "false-alarm", "confirmed", or "none": not judged.
            since: UNIX time; opened then or later.
            before: where the last page ended.
            limit: of a page.

        Returns:
            The page, and where it ends; None: there are no more.
        """
        wanted: list[tuple[str, Sequence[object]]] = [("1", ())]
        if station is not None:
            wanted.append(("station = ?", (station,)))
        if state is not None:
            wanted.append(("open = ?", (int(state == "open"),)))
        if verdict is not None:
            wanted.append(("verdict = ?", ("" if verdict == "none" else verdict,)))
        if since is not None:
            wanted.append(("opened >= ?", (since,)))
        if before is not None:
            wanted.append(("(opened, row) < (?, ?)", before))
        where = " AND ".join(condition for condition, _ in wanted)
        values = [value for _, given in wanted for value in given]
        with self._lock:
            rows = self._database.execute(
                f"SELECT document, opened, row FROM alerts WHERE {where} "  # noqa: S608 - conditions from above
                "ORDER BY opened DESC, row DESC LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
        end = (rows[limit - 1][1], rows[limit - 1][2]) if len(rows) > limit else None
        return [AlertRecord.model_validate_json(document) for document, *_ in rows[:limit]], end

    # --- pictures ---

    def put_picture(self, station: str, id_: str, kind: Kind, data: bytes) -> AlertRecord | None:
        """Keep a picture of an alert.

        Returns:
            The alert, which now has it; None: there is no such alert, or it has this very picture already.
        """
        version = f"{zlib.crc32(data):08x}"
        with self._lock:
            record = self.alert(station, id_)
            if record is None or getattr(record, kind) == version:
                return None
            [row] = self._database.execute(
                "SELECT row FROM alerts WHERE station = ? AND id = ?", (station, id_)
            ).fetchone()
            write_file(self._file(row, kind), data, 0o600)
            record = record.model_copy(update={kind: version})
            with self._writing():
                self._put(record)
                self._database.execute(
                    f"UPDATE alerts SET {kind} = ? WHERE row = ?",  # noqa: S608 - one of two names
                    (len(data), row),
                )
        return record

    def picture(self, station: str, id_: str, kind: Kind) -> Path | None:
        """Its file, if there is one."""
        with self._lock:
            found = self._database.execute(
                f"SELECT row FROM alerts WHERE station = ? AND id = ? AND {kind} > 0",  # noqa: S608 - one of two names
                (station, id_),
            ).fetchone()
        path = self._file(found[0], kind) if found else None
        return path if path is not None and path.is_file() else None

    # --- what was said ---

    def put_feedback(self, station: str, id_: str, judgement: Judgement) -> tuple[AlertRecord, int] | None:
        """Keep what somebody said of an alert; the last one counts.

        Returns:
            The alert and the row of the feedback; None: there is no such alert, or this was said already.
        """
        document = judgement.model_dump_json(exclude={"published"})
        with self._writing():
            record = self.alert(station, id_)
            if record is None:
                return None
            known = self._database.execute(
                "SELECT 1 FROM feedback WHERE station = ? AND alert = ? AND document = ?", (station, id_, document)
            ).fetchone()
            if known:
                return None
            row = self._database.execute(
                "INSERT INTO feedback (station, alert, document, published) VALUES (?, ?, ?, ?)",
                (station, id_, document, int(judgement.published)),
            ).lastrowid
            record = record.model_copy(update={"feedback": judgement})
            self._put(record)
        return record, row or 0

    def unpublished(self) -> list[Unpublished]:
        """What the broker does not have yet, oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT row, station, alert, document FROM feedback WHERE NOT published ORDER BY row LIMIT 1000"
            ).fetchall()
        return [
            Unpublished(row, station, alert, Judgement.model_validate_json(document))
            for row, station, alert, document in rows
        ]

    def set_published(self, row: int) -> AlertRecord | None:
        """The broker has it. Returns the alert, if this is what counts."""
        with self._writing():
            self._database.execute("UPDATE feedback SET published = 1 WHERE row = ?", (row,))
            found = self._database.execute(
                "SELECT station, alert, document FROM feedback WHERE row = ?", (row,)
            ).fetchone()
            record = self.alert(found[0], found[1]) if found else None
            if record is None or record.feedback is None or record.feedback.published:
                return None
            if record.feedback.model_dump_json(exclude={"published"}) != found[2]:
                return None
            record = record.model_copy(update={"feedback": record.feedback.model_copy(update={"published": True})})
            self._put(record)
        return record

    # --- scores, stations ---

    def put_scores(self, rows: Iterable[ScoreRow]) -> None:
        """Keep scores, and forget those of more than a day ago."""
        with self._writing(durable=False):
            self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)
            self._database.execute("DELETE FROM scores WHERE time < ?", (time.time() - SCORE_SECONDS,))

    def scores(self, station: str, since: float) -> list[ScoreRow]:
        """In order of time."""
        with self._lock:
            rows = self._database.execute(
                "SELECT * FROM scores WHERE station = ? AND time >= ? ORDER BY time", (station, since)
            ).fetchall()
        return [ScoreRow(*row) for row in rows]

    def put_stations(self, stations: Iterable[tuple[str, str, float]]) -> None:
        """Remember stations: path, a JSON document, UNIX time when last heard of."""
        with self._writing(durable=False):
            self._database.executemany("INSERT OR REPLACE INTO stations VALUES (?, ?, ?)", stations)

    def stations(self) -> list[tuple[str, str, float]]:
        """All that are remembered."""
        with self._lock:
            return self._database.execute("SELECT path, document, seen FROM stations ORDER BY path").fetchall()

    def forget_station(self, path: str) -> None:
        """It was taken out of service. Its alerts stay."""
        with self._writing():
            self._database.execute("DELETE FROM stations WHERE path = ?", (path,))
            self._database.execute("DELETE FROM scores WHERE station = ?", (path,))

    # --- bounds ---

    def prune(self, now: float | None = None) -> int:
        """Let go what is too old or too much: first frames that nobody has judged, then the oldest alerts.

        Returns:
            How many alerts lost a picture or were let go.
        """
        oldest = (time.time() if now is None else now) - self._keep_seconds
        with self._lock:
            count = self._drop(self._rows("received < ? AND NOT open", oldest))
            [[number]] = self._database.execute("SELECT COUNT(*) FROM alerts")
            count += self._drop(self._rows("1", limit=max(0, number - MAX_ALERTS)))
            for condition, kinds in _DISPENSABLE:
                while rows := self._excess(condition, kinds):
                    count += self._strip(rows, kinds) if kinds else self._drop(rows)
        return count

    def sweep(self) -> None:
        """Remove files that no alert knows: what a killed dashboard was about to write or to let go."""
        with self._lock:
            known = {
                self._file(row, kind)
                for row, image, frame in self._database.execute("SELECT row, image, frame FROM alerts")
                for kind, size in (("image", image), ("frame", frame))
                if size
            }
            for path in self._files.iterdir():
                if path not in known:
                    path.unlink(missing_ok=True)
            for path in self._folder.glob("export-*.zip"):
                path.unlink(missing_ok=True)

    def _excess(self, condition: str, kinds: tuple[str, ...]) -> list[int]:
        """The oldest alerts that must lose pictures of these kinds (or go) for the rest to stay within the bound."""
        [[size]] = self._database.execute("SELECT COALESCE(SUM(image + frame + size), 0) FROM alerts")
        found = self._database.execute(
            f"SELECT row, {' + '.join(kinds or ('image', 'frame', 'size'))} FROM alerts "  # noqa: S608 - ours
            f"WHERE {condition} ORDER BY received, row LIMIT ?",
            (_PRUNE_AT_ONCE,),
        )
        rows = []
        for row, freed in found:
            if size <= self._most_bytes:
                break
            rows.append(row)
            size -= freed
        return rows

    def _rows(self, condition: str, *values: float, limit: int = -1) -> list[int]:
        """The oldest alerts for which it holds."""
        found = self._database.execute(
            f"SELECT row FROM alerts WHERE {condition} ORDER BY received, row LIMIT ?",  # noqa: S608 - ours
            (*values, limit),
        )
        return [row for [row] in found.fetchall()]

    def _drop(self, rows: list[int]) -> int:
        for start in range(0, len(rows), _PRUNE_AT_ONCE):
            with self._writing(durable=False):
                some = [(row,) for row in rows[start : start + _PRUNE_AT_ONCE]]
                self._database.executemany(
                    "DELETE FROM feedback WHERE (station, alert) = (SELECT station, id FROM alerts WHERE row = ?)", some
                )
                self._database.executemany("DELETE FROM alerts WHERE row = ?", some)
        for row in rows:
            for kind in ("image", "frame"):
                self._file(row, kind).unlink(missing_ok=True)
        return len(rows)

    def _strip(self, rows: list[int], kinds: tuple[str, ...]) -> int:
        with self._writing(durable=False):
            for row in rows:
                [document] = self._database.execute("SELECT document FROM alerts WHERE row = ?", (row,)).fetchone()
                record = AlertRecord.model_validate_json(document).model_copy(update=dict.fromkeys(kinds))
                sizes = ", ".join(f"{kind} = 0" for kind in kinds)
                self._database.execute(
                    f"UPDATE alerts SET document = ?, {sizes} WHERE row = ?",  # noqa: S608 - names from _shrink
                    (record.model_dump_json(), row),
                )
        for row in rows:
            for kind in kinds:
                self._file(row, kind).unlink(missing_ok=True)
        return len(rows)

    # --- inside ---

    def _file(self, row: int, kind: str) -> Path:
        """By number: no name that came over the wire becomes a file's."""
        return self._files / f"{row}.{_SUFFIX[kind]}"

    def _put(self, record: AlertRecord) -> None:
        document = record.model_dump_json()
        self._database.execute(
            "INSERT INTO alerts (station, id, opened, received, open, verdict, size, document) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (station, id) DO UPDATE SET open = excluded.open, "
            "verdict = excluded.verdict, size = excluded.size, document = excluded.document",
            (
                record.station,
                record.id,
                record.opened_at.timestamp(),
                time.time(),
                int(record.state == "open"),
                record.verdict,
                len(document.encode()),
                document,
            ),
        )

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[None]:
        """A transaction; ``durable``: wait until it is on the medium (a process that is killed loses none anyway)."""
        with self._lock:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise


def _connect(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL")
        _examine(database)
        database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _examine(database: sqlite3.Connection) -> None:
    [[version]] = database.execute("PRAGMA user_version")
    if version > VERSION:
        raise sqlite3.OperationalError(f"schema {version} of a newer dashboard; this one knows {VERSION}")
    [[verdict], *_] = database.execute("PRAGMA quick_check(1)")
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
