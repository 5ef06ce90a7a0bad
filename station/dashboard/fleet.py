"""All stations as they are now: messages in, views out. Pure: no clock of its own, no input or output.

Times are UNIX seconds of the dashboard's own clock, so that a station whose clock is wrong still shows a chart.
"""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from station.dashboard.records import AlertRecord, ScoreRow, stamp
from station.messages import Health, Info, Message, Score, Status

MAX_STATIONS = 500  # topics are made up by whoever may publish
MAX_SHOWN = 50  # open alerts of one station
MAX_REASONS = 20
RECENT_SCORES = 1000
SPARK_SECONDS = 60
HISTORY_SECONDS = 3600  # second by second; what is older is kept minute by minute
ROW_SECONDS = 30  # of what is kept longer
DAY = 86_400.0
_RATE_SECONDS = 5.0  # over which frames are counted
_WORDS = 500  # characters of a reason
_SNAPSHOT_BYTES = 64 * 2**20  # of all stations together
_SILENT_SECONDS = 300.0  # without any message, where it is not known how often health messages come
_SILENT_PERIODS = 3  # health messages that failed to come
_SETTLED = 600.0  # seconds after its start, by which a station has told what its last run left open


class History:
    """The scores of the last hour: the highest of every second."""

    def __init__(self) -> None:
        self._stamps = np.zeros(HISTORY_SECONDS, np.int64)
        self._scores = np.zeros((HISTORY_SECONDS, 2), np.float64)  # highest, threshold

    def add(self, now: float, score: float, threshold: float) -> None:
        """Take a score."""
        second = int(now)
        at = second % HISTORY_SECONDS
        if self._stamps[at] == second:
            score = max(score, self._scores[at, 0])
        self._stamps[at] = second
        self._scores[at] = score, threshold

    def rows(self, since: int, until: int) -> tuple[np.ndarray, np.ndarray]:
        """Seconds int64 (n,) and highest score and threshold float64 (n, 2), of those that had any, in order."""
        found = np.flatnonzero((self._stamps >= since) & (self._stamps <= until))
        order = found[np.argsort(self._stamps[found])]
        return self._stamps[order], self._scores[order]


@dataclass(slots=True, eq=False)
class _Station:
    path: str
    status: Status | None = None
    since: datetime | None = None
    seen: float | None = None  # when it last spoke; a retained message does not count
    heard: float = 0.0  # the same, but what the broker had kept counts, too
    clock: float | None = None  # seconds by which the station's is ahead of ours
    confirmed: bool = False  # that it is as `status` says, since we are connected
    info: dict[str, Any] | None = None
    health: dict[str, Any] | None = None
    health_seen: float | None = None
    health_period: float | None = None
    minor: tuple[str, ...] = ()  # reasons that only `health` tells, such as drift
    score: Score | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_SCORES))
    times: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_SCORES))
    history: History | None = None
    row: ScoreRow | None = None  # under way
    open: dict[str, AlertRecord] = field(default_factory=dict)
    opened: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))
    pictured: AlertRecord | None = None  # the last alert that has a picture
    pictured_at: float = 0.0
    snapshot: bytes | None = None
    snapshot_at: float = 0.0
    told: tuple[str, float | None] | None = None  # state and rate, of which time alone makes others


class Fleet:
    """What is known of all stations. May be used from any thread.

    Attributes:
        trouble: why something that was heard is not shown; None: nothing.
    """

    def __init__(self, most: int = MAX_STATIONS) -> None:
        self._lock = threading.RLock()
        self._most = most
        self._stations: dict[str, _Station] = {}
        self._changed: dict[str, set[str]] = {}  # path → parts of its view
        self._rows: list[ScoreRow] = []
        self._broker_away: str | None = "not connected yet"
        self.trouble: str | None = None

    def __contains__(self, path: str) -> bool:
        return path in self._stations

    def __len__(self) -> int:
        return len(self._stations)

    def has_room_for(self, path: str) -> bool:
        """Whether it is known or may become so."""
        return path in self._stations or len(self._stations) < self._most

    def clock_of(self, path: str, now: float) -> datetime | None:
        """What a station's clock shows now, as far as its messages tell; None: it has sent none."""
        with self._lock:
            station = self._stations.get(path)
            if station is None or station.clock is None:
                return None
            try:
                return datetime.fromtimestamp(now + station.clock, timezone.utc)
            except (ValueError, OverflowError, OSError):
                return None

    # --- what happens ---

    def remember(self, path: str, status: Status | None, seen: float | None, since: datetime | None) -> None:
        """A station of an earlier run of the dashboard; nothing says that it still is as it was."""
        with self._lock:
            station = self._station(path)
            if station is not None:
                station.status, station.seen, station.since = status, seen, since

    def recall(self, open_alerts: Iterable[AlertRecord], opened: Iterable[tuple[str, float]]) -> None:
        """Alerts that the archive has: those that are open, and who opened some when in the last day."""
        with self._lock:
            for path, time in opened:
                if path in self._stations:
                    self._stations[path].opened.append(time)
            for record in open_alerts:
                if (station := self._station(record.station)) is not None:
                    station.open[record.id] = record

    def show_picture_of(self, record: AlertRecord, now: float) -> None:
        """An alert's picture is the station's last picture."""
        with self._lock:
            if (station := self._station(record.station)) is not None and now >= station.pictured_at:
                station.pictured, station.pictured_at = record, now
                self._touch(station)

    def take(self, path: str, message: Message, now: float, *, retained: bool = False) -> bool:
        """A status, info, score or health message. Returns whether there was room for its station."""
        with self._lock:
            station = self._station(path)
            if station is None:
                return False
            station.heard = now
            if not retained:
                station.seen, station.confirmed = now, True
                if message.seq:
                    station.clock = message.at.timestamp() - now
            if isinstance(message, Status):
                station.confirmed = True
                if station.status is None or station.status.state != message.state:
                    # A last will was written when the station logged in, which is not when it vanished.
                    made = None if message.seq == 0 else message.at
                    station.since = made if retained else made or datetime.fromtimestamp(now, timezone.utc)
                station.status = message
            elif isinstance(message, Info):
                station.info = message.model_dump(mode="json", exclude={"schema_"})
                self._touch(station, "info")
            elif isinstance(message, Health):
                self._take_health(station, message, now)
            elif isinstance(message, Score):
                self._take_score(station, message, now)
            self._touch(station)
            return True

    def _take_health(self, station: _Station, health: Health, now: float) -> None:
        if station.health_seen is not None:
            station.health_period = now - station.health_seen
        station.health, station.health_seen = health.model_dump(mode="json", exclude={"schema_"}), now
        codes = {_code(reason) for reason in station.status.reasons} if station.status else set()
        station.minor = tuple(reason for reason in health.reasons if _code(reason) not in codes)
        self._touch(station, "health")

    def _take_score(self, station: _Station, score: Score, now: float) -> None:
        if station.history is None:
            station.history = History()
        if station.score is None or int(now) != int(station.times[-1]):
            self._touch(station, "spark")
        station.score = score
        station.recent.append(score.score)
        station.times.append(now)
        station.history.add(now, score.score, score.threshold)
        start = int(now) // ROW_SECONDS * ROW_SECONDS
        row = station.row
        if row is not None and row.time == start:
            station.row = row._replace(score=max(row.score, score.score), threshold=score.threshold)
        else:
            if row is not None:
                self._rows.append(row)
            station.row = ScoreRow(station.path, start, score.score, score.threshold)

    def take_alert(self, record: AlertRecord, now: float, *, new: bool, live: bool = True) -> bool:
        """An alert was opened, updated or closed, or its picture came. Returns whether there was room for its station.

        Args:
            record: as it is now.
            now: UNIX seconds.
            new: whether it is the first that is heard of it.
            live: whether the station said so just now.
        """
        with self._lock:
            station = self._station(record.station)
            if station is None:
                return False
            if live:
                station.seen, station.confirmed, station.heard = now, True, now
            if new:
                station.opened.append(record.opened_at.timestamp())
            if record.state == "open":
                station.open[record.id] = record
                while len(station.open) > 2 * MAX_SHOWN:
                    station.open.pop(next(iter(station.open)))
            else:
                station.open.pop(record.id, None)
            if station.pictured is not None and station.pictured.id == record.id:
                station.pictured = record
            self._touch(station)
            return True

    def left_open(self, path: str) -> list[AlertRecord]:
        """Alerts of a run of the station that is over, and that it has had time enough to close."""
        with self._lock:
            station = self._stations.get(path)
            if station is None or station.health is None or station.health["uptime_s"] < _SETTLED:
                return []
            try:
                at = datetime.fromisoformat(str(station.health["at"]).replace("Z", "+00:00")).timestamp()
            except (ValueError, OverflowError):
                return []
            started = at - station.health["uptime_s"]
            return [record for record in station.open.values() if record.opened_at.timestamp() < started - 1.0]

    def take_snapshot(self, path: str, jpeg: bytes, now: float) -> bool:
        """A picture that was asked for. Returns whether the station is known."""
        with self._lock:
            station = self._stations.get(path)
            if station is None:
                return False
            station.snapshot, station.snapshot_at = jpeg, now
            station.seen = station.heard = now
            held = sorted((s for s in self._stations.values() if s.snapshot), key=lambda s: s.snapshot_at)
            size = sum(len(s.snapshot or b"") for s in held)
            while size > _SNAPSHOT_BYTES and len(held) > 1:
                oldest = held.pop(0)
                size -= len(oldest.snapshot or b"")
                oldest.snapshot = None
                self._touch(oldest)
            self._touch(station)
            return True

    def forget(self, path: str) -> list[AlertRecord] | None:
        """The station was taken out of service. Returns its open alerts; None: it is not known."""
        with self._lock:
            self._changed.pop(path, None)
            station = self._stations.pop(path, None)
            return None if station is None else list(station.open.values())

    def set_broker(self, away: str | None) -> None:
        """Whether we are connected to the broker; if not, why. Without it nothing is known of any station."""
        with self._lock:
            if away == self._broker_away:
                return
            self._broker_away = away
            for station in self._stations.values():
                station.confirmed = False
                self._touch(station)

    def look_again(self, now: float) -> None:
        """Find stations that have fallen silent or slow: that is news without a message."""
        with self._lock:
            for station in self._stations.values():
                told = (self._state(station, now)[0], self._fps(station, now))
                if told != station.told:
                    station.told = told
                    self._touch(station)

    # --- what to do with it ---

    def changes(self) -> dict[str, set[str]]:
        """Stations that have changed since the last call, and which parts of their views besides the base."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return changed

    def take_rows(self, *, all_: bool = False) -> list[ScoreRow]:
        """Scores to be kept, since the last call; ``all_``: also of the time that is not over."""
        with self._lock:
            rows, self._rows = self._rows, []
            if all_:
                rows += [station.row for station in self._stations.values() if station.row is not None]
            return rows

    def paths(self) -> list[str]:
        """Of all stations."""
        with self._lock:
            return sorted(self._stations)

    def notes(self) -> list[tuple[str, Status | None, float | None, datetime | None]]:
        """What ``remember`` takes, of every station."""
        with self._lock:
            return [(s.path, s.status, s.seen, s.since) for s in self._stations.values()]

    def state(self, path: str, now: float) -> str:
        """As in the view."""
        with self._lock:
            station = self._stations.get(path)
            return "unknown" if station is None else self._state(station, now)[0]

    def view(self, path: str, now: float, parts: Iterable[str] = ("info", "health", "spark")) -> dict[str, Any] | None:
        """A station as the page gets it; only those of info, health and spark that are asked for."""
        with self._lock:
            station = self._stations.get(path)
            if station is None:
                return None
            state, reasons = self._state(station, now)
            site, line, name = path.split("/")
            view: dict[str, Any] = {
                "path": path,
                "site": site,
                "line": line,
                "name": name,
                "state": state,
                "reasons": reasons,
                "since": stamp(station.since),
                "seen_at": _stamp(station.seen),
                "score": _score(station.score),
                "fps": self._fps(station, now),
                "open_alerts": [record.view(patches=False) for record in list(station.open.values())[-MAX_SHOWN:]],
                "alerts_24h": self._alerts_of_day(station, now),
                "picture": self._picture(station),
            }
            if "info" in parts:
                view["info"] = station.info
            if "health" in parts:
                view["health"] = station.health
            if "spark" in parts:
                view["spark"] = self._spark(station, now)
            return view

    def views(self, now: float) -> list[dict[str, Any]]:
        """All stations, by path."""
        with self._lock:
            return [view for path in self.paths() if (view := self.view(path, now)) is not None]

    def recent_scores(self, path: str) -> tuple[list[float], float | None] | None:
        """The last scores, oldest first, and the threshold."""
        with self._lock:
            station = self._stations.get(path)
            if station is None:
                return None
            return list(station.recent), station.score.threshold if station.score else None

    def second_rows(self, path: str, since: int, until: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the last hour, see History.rows."""
        with self._lock:
            station = self._stations.get(path)
            history = station.history if station is not None else None
            return (history or History()).rows(since, until)

    def snapshot(self, path: str) -> tuple[bytes, float] | None:
        """The last picture that was asked for, and when it came."""
        with self._lock:
            station = self._stations.get(path)
            if station is None or station.snapshot is None:
                return None
            return station.snapshot, station.snapshot_at

    def pictured(self, path: str) -> tuple[AlertRecord, float] | None:
        """The last alert whose picture came, and when it did."""
        with self._lock:
            station = self._stations.get(path)
            return None if station is None or station.pictured is None else (station.pictured, station.pictured_at)

    # --- inside ---

    def _station(self, path: str) -> _Station | None:
        station = self._stations.get(path)
        if station is None:
            if len(self._stations) >= self._most:
                self.trouble = f"too-many-stations: {self._most} are shown; what else speaks on the broker is left out"
                return None
            station = self._stations[path] = _Station(path)
            self._touch(station, "info", "health", "spark")
        return station

    def _touch(self, station: _Station, *parts: str) -> None:
        self._changed.setdefault(station.path, set()).update(parts)

    def _state(self, station: _Station, now: float) -> tuple[str, list[str]]:
        status = station.status
        if self._broker_away is not None:
            return "unknown", ["broker-away: no connection to the broker, so nothing is known of the station"]
        if status is None:
            return "unknown", ["no-status: the station has not said how it is"]
        if not station.confirmed:
            return "unknown", [f"not-confirmed: was {status.state} when last heard of; nothing was heard since"]
        if status.state in ("online", "degraded"):
            period, silent = station.health_period, now - station.heard
            if silent > (_SILENT_SECONDS if period is None else _SILENT_PERIODS * period + 10):
                return "unknown", [f"silent: nothing was heard for {silent:.0f} s"]
        reasons = status.reasons
        if status.state in ("online", "degraded"):
            codes = {_code(reason) for reason in reasons}
            reasons += tuple(reason for reason in station.minor if _code(reason) not in codes)
        return status.state, [reason[:_WORDS] for reason in reasons[:MAX_REASONS]]

    def _fps(self, station: _Station, now: float) -> float | None:
        if not station.times:
            return None
        counted = 0
        for time in reversed(station.times):
            if time < now - _RATE_SECONDS:
                break
            counted += 1
        return round(counted / _RATE_SECONDS, 1)

    def _alerts_of_day(self, station: _Station, now: float) -> int:
        return sum(opened >= now - DAY for opened in station.opened)

    def _picture(self, station: _Station) -> dict[str, str | None] | None:
        alert = station.pictured
        if station.snapshot is not None and station.snapshot_at >= (station.pictured_at if alert else 0.0):
            kind, at = "snapshot", station.snapshot_at
        elif alert is not None:
            kind, at = "alert", station.pictured_at
        else:
            return None
        return {
            "url": f"/api/stations/{station.path}/picture?v={at:.3f}",
            "captured_at": _stamp(at),
            "kind": kind,
        }

    def _spark(self, station: _Station, now: float) -> list[list[float | None]]:
        last = int(now)
        first = last - SPARK_SECONDS + 1
        points: dict[int, float] = {}
        if station.history is not None:
            seconds, scores = station.history.rows(first, last)
            points = dict(zip(seconds.tolist(), scores[:, 0].tolist(), strict=True))
        return [[second * 1000, points.get(second)] for second in range(first, last + 1)]


def _code(reason: str) -> str:
    return reason.partition(":")[0]


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {
        "score": score.score,
        "threshold": score.threshold,
        "anomalous": score.anomalous,
        "captured_at": stamp(score.captured_at),
        "frame": score.frame,
        "latency_ms": score.latency_ms.get("total"),
    }


def _stamp(time: float | None) -> str | None:
    return None if time is None else stamp(datetime.fromtimestamp(time, timezone.utc))
