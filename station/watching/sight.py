"""What a watcher knows: the stations as they are now, their alerts, and what happened of late.

No clock of its own, no network, no terminal. What a station's state is, is decided where the page for operators has it
decided.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from station.dashboard.fleet import Fleet
from station.dashboard.intake import Gone, Heard
from station.dashboard.records import AlertRecord, merge
from station.messages import Alert, Feedback, Health, Info, Message, Reply, Score, Status
from station.watching.words import alert_words, clean, describe

EVENTS = 300  # lines of the log
_ALERTS = 1000  # remembered, of all stations


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the log. ``at``: UNIX seconds."""

    at: float
    station: str
    words: Text


class Sight:
    """All of it, fed by messages. Times are UNIX seconds of the watcher's own clock."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self._alerts: dict[str, AlertRecord] = {}  # by path, those told of last at the end
        self._told: dict[str, tuple[str, ...]] = {}  # reasons of each station when they were last told

    def take(self, heard: Heard, now: float, *, retained: bool = False) -> None:
        """Note what a station said."""
        match heard.what:
            case Gone():
                if self.fleet.forget(heard.station):
                    self.tell(heard.station, Text("taken out of service", "dim"), now)
            case Alert() as alert:
                self._take_alert(heard.station, alert, now)
            case Status() | Health() as message:
                self._take_state(heard.station, message, now, retained=retained)
            case Info() | Score() as message:
                self.fleet.take(heard.station, message, now, retained=retained)
            case Reply() | Feedback() as message:
                self.tell(heard.station, describe(message), now)
            case _:
                pass  # pictures, which a terminal does not show

    def _take_state(self, station: str, message: Message, now: float, *, retained: bool) -> None:
        """The log tells a state when it changes, and of reasons each new one; their words may count seconds."""
        before = self.fleet.state(station, now) if station in self.fleet else ""
        if not self.fleet.take(station, message, now, retained=retained):
            return
        view = self.fleet.view(station, now, parts=())
        if view is None:
            return
        state, reasons = view["state"], tuple(view["reasons"])
        known = {_code(reason) for reason in self._told.get(station, ())}
        news = [reason for reason in reasons if _code(reason) not in known]
        self._told[station] = reasons
        if state != before and isinstance(message, Status):
            if retained and state == "online":
                return  # how things stand, as told to whoever subscribes; nothing has happened
            self.tell(station, describe(message), now)
        elif news:
            self.tell(station, Text(clean("; ".join(news)), "yellow"), now)
        elif known and not reasons:
            self.tell(station, Text("all well again", "green"), now)

    def _take_alert(self, station: str, message: Alert, now: float) -> None:
        path = f"{station}/{message.id}"
        known = self._alerts.pop(path, None)
        record = merge(known, station, message)
        if record is None:
            if known is not None:
                self._alerts[path] = known
            return
        self._alerts[path] = record
        if len(self._alerts) > _ALERTS:
            del self._alerts[next(iter(self._alerts))]
        if self.fleet.take_alert(record, now, new=known is None) and (known is None or record.state == "closed"):
            style, word = ("bold red", "open") if record.state == "open" else ("green", "closed")
            self.tell(station, Text.assemble((f"alert {word}", style), clean(f"  {alert_words(message)}")), now)

    def alerts_of(self, station: str) -> list[AlertRecord]:
        """Open ones first, each the latest first."""
        found = [record for record in reversed(self._alerts.values()) if record.station == station]
        return sorted(found, key=lambda record: record.state != "open")

    def views(self, now: float, *, worrying_first: bool = False) -> list[dict[str, Any]]:
        """The stations as the operator's page has them: by name, or those first that somebody should look at."""
        views = [
            view for path in self.fleet.paths() if (view := self.fleet.view(path, now, parts=("health",))) is not None
        ]
        return sorted(views, key=lambda view: not worrying(view)) if worrying_first else views

    def peaks(self, station: str, now: float, seconds: int) -> list[tuple[float, float] | None]:
        """(score, threshold) of the highest score of each of the last seconds, oldest first; None: no frame."""
        first = int(now) - seconds + 1
        stamps, scores = self.fleet.second_rows(station, first, int(now))
        found = dict(zip(stamps.tolist(), scores.tolist(), strict=True))
        return [tuple(found[second]) if second in found else None for second in range(first, int(now) + 1)]

    def tell(self, station: str, words: Text, now: float) -> None:
        """Put a line into the log."""
        self.events.append(Event(now, station, words))


def worrying(view: dict[str, Any]) -> bool:
    """Whether somebody should look at this station."""
    return bool(view["open_alerts"]) or view["state"] not in {"online", "stopped"}


def _code(reason: str) -> str:
    return reason.partition(":")[0]
