"""``station watch``: what the stations say, as it comes."""

import queue
import secrets
import time
from collections import deque
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import paho.mqtt.client as mqtt
import typer
from pydantic import ValidationError
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from station import logs
from station.connection import Connection
from station.messages import MESSAGES, Alert, Health, Info, Message, Reply, Score, Status
from station.settings import LogSettings, MqttSettings, SettingsError, load_broker_settings

REFRESH_SECONDS = 0.2
SUMMARY_SECONDS = 5.0  # between two score lines where the output is no terminal
_BARS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {"online": "green", "degraded": "yellow", "stopped": "dim", "offline": "bold red"}
_KINDS = {kind.topic: kind for kind in MESSAGES}


@dataclass(slots=True)
class _Scores:
    """The scores of one station, condensed."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=40))
    times: deque[float] = field(default_factory=lambda: deque(maxlen=40))
    last: Score | None = None
    told: int = 0
    count: int = 0
    anomalous: int = 0

    def take(self, score: Score) -> None:
        self.recent.append(score.score)
        self.times.append(time.monotonic())
        self.last = score
        self.count += 1
        self.anomalous += score.anomalous

    def line(self, station: str) -> Text:
        """Frame, score against threshold, the recent scores as bars (a full one is the threshold), rate."""
        if self.last is None:
            return Text(f"{station}  no score yet", "dim")
        bars = "".join(_BARS[min(7, max(0, int(7 * score / self.last.threshold)))] for score in self.recent)
        seconds = self.times[-1] - self.times[0]
        rate = f"{(len(self.times) - 1) / seconds:.1f} frames/s" if seconds > 0 else ""
        return Text.assemble(
            (f"{station}  ", "bold"),
            f"frame {self.last.frame}  ",
            (f"score {self.last.score:.4g}", "red" if self.last.anomalous else "green"),
            f" of {self.last.threshold:.4g}  {bars}  ",
            f"{rate}  {self.last.latency_ms.get('total', 0):.0f} ms  {self.anomalous} of {self.count} anomalous",
        )


def watch(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The station's settings file: its broker, its topics. Without it: every station on the broker.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Broker, instead of mqtt.host.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port, instead of mqtt.port.", show_default=False)] = None,
) -> None:
    """Subscribe and print status, scores and alerts as they come, until Ctrl-C.

    Needs the broker only: bundle and camera may be on another machine. User name, password and TLS come from the
    settings file or from STATION_MQTT__… variables.

    Example: [cyan]station watch --host broker.plant[/]
    """
    logs.set_up(LogSettings(level="warning"))
    settings = load_broker_settings(config)
    broker = _with_options(settings.mqtt, host, port)
    topics = f"{settings.topic_prefix if config else settings.mqtt.prefix}/#"
    heard: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
    connection = Connection(broker, f"station-watch-{secrets.token_hex(6)}")

    def subscribe(_announced: object) -> None:
        connection.client.subscribe(topics, qos=1)

    connection.on_connected = subscribe
    connection.on_message = heard.put
    connection.start()
    console = Console()
    console.print(f"listening to {topics} on {connection.where}; Ctrl-C ends", style="dim", highlight=False)
    watcher = _Watcher(settings.mqtt.prefix, console)
    try:
        watcher.follow(heard)
    except KeyboardInterrupt:
        connection.stop(1.0)
    watcher.summarize()


def _with_options(settings: MqttSettings, host: str | None, port: int | None) -> MqttSettings:
    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    try:
        return MqttSettings.model_validate(settings.model_dump() | given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from error


class _Watcher:
    def __init__(self, prefix: str, console: Console) -> None:
        self._prefix = prefix
        self._console = console
        self._scores: dict[str, _Scores] = {}
        # Codes of reasons, by station: those that `status` told, and those that only `health` tells.
        self._status_codes: dict[str, set[str]] = {}
        self._minor_codes: dict[str, set[str]] = {}
        self._next_summary = time.monotonic() + SUMMARY_SECONDS

    def follow(self, heard: "queue.SimpleQueue[mqtt.MQTTMessage]") -> None:
        """Print until interrupted."""
        terminal = self._console.is_terminal
        live = Live(console=self._console, auto_refresh=False, transient=True) if terminal else None
        with live or nullcontext():
            shown = 0.0
            while True:
                with suppress(queue.Empty):
                    self.take(heard.get(timeout=REFRESH_SECONDS))
                now = time.monotonic()
                if live is not None and now - shown >= REFRESH_SECONDS:
                    live.update(Group(*(scores.line(name) for name, scores in self._scores.items())), refresh=True)
                    shown = now
                elif live is None and now >= self._next_summary:
                    self.summarize()
                    self._next_summary = now + SUMMARY_SECONDS

    def take(self, message: mqtt.MQTTMessage) -> None:
        """Print one message; scores are only counted, and `health` told where it has news."""
        levels = message.topic.removeprefix(f"{self._prefix}/").split("/")
        station, kind = "/".join(levels[:3]), levels[3] if len(levels) > 3 else ""
        if levels[-1] == "image":
            words = f"{'picture' if kind == 'alert' else kind} {levels[-2]}, {len(message.payload) / 1024:.0f} KiB"
            self._say(message, station, Text(words, "dim"))
            return
        if kind == "cmd":
            self._say(message, station, Text(f"command {levels[-1]} {message.payload[:100].decode(errors='replace')}"))
            return
        model = _KINDS.get(kind)
        if model is None:
            return
        try:
            parsed = model.model_validate_json(message.payload)
        except ValidationError as error:
            told = error.errors(include_url=False)[0]["msg"]
            self._say(message, station, Text(f"{kind}: not a message of ours: {told}", "red"))
            return
        if isinstance(parsed, Score):
            self._scores.setdefault(station, _Scores()).take(parsed)
        elif isinstance(parsed, Health):
            self._take_health(message, station, parsed)
        else:
            if isinstance(parsed, Status):
                self._status_codes[station] = {reason.partition(":")[0] for reason in parsed.reasons}
            self._say(message, station, _words(parsed))

    def _take_health(self, message: mqtt.MQTTMessage, station: str, health: Health) -> None:
        by_code = {reason.partition(":")[0]: reason for reason in health.reasons}
        minor = {code: reason for code, reason in by_code.items() if code not in self._status_codes.get(station, ())}
        if minor.keys() != self._minor_codes.get(station, set()):
            self._minor_codes[station] = set(minor)
            self._say(message, station, Text(f"health: {'; '.join(minor.values()) or 'all well again'}", "yellow"))

    def _say(self, message: mqtt.MQTTMessage, station: str, words: Text) -> None:
        retained = " (retained)" if message.retain else ""
        self._console.print(
            Text.assemble(
                (f"{time.strftime('%H:%M:%S')}  ", "dim"), (f"{station}  ", "bold"), words, (retained, "dim")
            ),
            soft_wrap=True,
        )

    def summarize(self) -> None:
        """Print the scores of every station that has sent some since the last time."""
        for name, scores in self._scores.items():
            if scores.count > scores.told:
                self._console.print(scores.line(name), soft_wrap=True)
                scores.told = scores.count


def _words(message: Message) -> Text:
    if isinstance(message, Status):
        reasons = f": {'; '.join(message.reasons)}" if message.reasons else ""
        return Text.assemble((message.state, _STATE_STYLES[message.state]), reasons)
    if isinstance(message, Info):
        return Text(
            f"bundle {message.bundle_name}, {message.engine_backend} on {message.engine_device}, "
            f"threshold {message.threshold:.4g}, camera {message.camera_url}, version {message.version}"
        )
    if isinstance(message, Alert):
        style = {"open": "bold red", "update": "yellow", "close": "green"}[message.event]
        boxes = ", ".join(f"{box.w}x{box.h} at ({box.x}, {box.y})" for box in message.boxes)
        return Text.assemble(
            (f"alert {message.event}", style),
            f" {message.id}  peak {message.peak_score:.4g} of {message.threshold:.4g}  "
            f"frames {message.first_frame}-{message.last_frame}  {boxes}  {message.name}".rstrip(),
        )
    if isinstance(message, Reply):
        result = ", ".join(f"{key} {value}" for key, value in message.result.items())
        return Text(f"reply to {message.verb}: {f'done {result}'.rstrip() if message.ok else message.error}")
    return Text(message.schema_)
