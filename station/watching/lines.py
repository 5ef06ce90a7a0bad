"""Message by message, one line each: for pipes, logs and terminals that cannot draw."""

import time
from collections import deque
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from rich.console import Console
from rich.text import Text

from station.dashboard.intake import Gone, NotOursError, Picture, read
from station.messages import MESSAGES, Health, Score, Status
from station.watching.drawing import sparkline
from station.watching.words import clean, describe

SUMMARY_SECONDS = 5.0  # between two lines of scores
_KINDS = {kind.topic for kind in MESSAGES}


@dataclass(slots=True)
class _Scores:
    """The scores of one station, condensed."""

    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=40))
    times: deque[float] = field(default_factory=lambda: deque(maxlen=40))
    last: Score | None = None
    told: int = 0
    count: int = 0
    anomalous: int = 0

    def take(self, score: Score) -> None:
        self.recent.append((score.score, score.threshold))
        self.times.append(time.monotonic())
        self.last = score
        self.count += 1
        self.anomalous += score.anomalous

    def line(self, station: str) -> Text:
        """Frame, score against threshold, the recent scores as bars, rate."""
        if self.last is None:
            return Text(f"{station}  no score yet", "dim")
        seconds = self.times[-1] - self.times[0]
        rate = f"{(len(self.times) - 1) / seconds:.1f} frames/s" if seconds > 0 else ""
        return Text.assemble(
            (f"{station}  ", "bold"),
            f"frame {self.last.frame}  ",
            (f"score {self.last.score:.4g}", "red" if self.last.anomalous else "green"),
            f" of {self.last.threshold:.4g}  ",
            sparkline(self.recent),
            f"  {rate}  {self.last.latency_ms.get('total', 0):.0f} ms  {self.anomalous} of {self.count} anomalous",
        )


class Lines:
    """Prints what it is given."""

    def __init__(self, prefix: str, console: Console) -> None:
        self._prefix = prefix
        self._console = console
        self._scores: dict[str, _Scores] = {}
        # Codes of reasons, by station: those that `status` told, and those that only `health` tells.
        self._status_codes: dict[str, set[str]] = {}
        self._minor_codes: dict[str, set[str]] = {}

    def take(self, message: mqtt.MQTTMessage) -> None:
        """Print one message; scores are only counted, and `health` told where it has news."""
        levels = message.topic.removeprefix(f"{self._prefix}/").split("/")
        station, kind = "/".join(levels[:3]), levels[3] if len(levels) > 3 else ""
        if kind == "cmd":
            payload = message.payload[:100].decode(errors="replace")
            self._say(message, station, Text(clean(f"command {levels[-1]} {payload}")))
            return
        try:
            heard = read(self._prefix, message.topic, bytes(message.payload)).what
        except NotOursError as error:
            if kind in _KINDS:
                self._say(message, station, Text(clean(f"not a message of ours: {error}"), "red"))
            return
        match heard:
            case Picture():
                name = {"image": "picture", "frame": "frame", "snapshot": "snapshot"}[heard.kind]
                self._say(message, station, Text(f"{name} {heard.id}, {len(heard.data) / 1024:.0f} KiB", "dim"))
            case Gone():
                self._say(message, station, Text("taken out of service", "dim"))
            case Score():
                self._scores.setdefault(station, _Scores()).take(heard)
            case Health():
                self._take_health(message, station, heard)
            case _:
                if isinstance(heard, Status):
                    self._status_codes[station] = {reason.partition(":")[0] for reason in heard.reasons}
                self._say(message, station, describe(heard))

    def _take_health(self, message: mqtt.MQTTMessage, station: str, health: Health) -> None:
        by_code = {reason.partition(":")[0]: reason for reason in health.reasons}
        minor = {code: reason for code, reason in by_code.items() if code not in self._status_codes.get(station, ())}
        if minor.keys() != self._minor_codes.get(station, set()):
            self._minor_codes[station] = set(minor)
            self._say(
                message, station, Text(clean(f"health: {'; '.join(minor.values()) or 'all well again'}"), "yellow")
            )

    def _say(self, message: mqtt.MQTTMessage, station: str, words: Text) -> None:
        retained = " (retained)" if message.retain else ""
        self._console.print(
            Text.assemble(
                (f"{time.strftime('%H:%M:%S')}  ", "dim"), (f"{clean(station)}  ", "bold"), words, (retained, "dim")
            ),
            soft_wrap=True,
        )

    def summarize(self) -> None:
        """Print the scores of every station that has sent some since the last time."""
        for name, scores in self._scores.items():
            if scores.count > scores.told:
                self._console.print(scores.line(name), soft_wrap=True)
                scores.told = scores.count
