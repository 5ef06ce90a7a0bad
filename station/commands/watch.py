"""``station watch``: what the stations say, as it comes."""

import logging
import queue
import secrets
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO, cast

import paho.mqtt.client as mqtt
import typer
from rich.console import Console
from rich.text import Text

from station import logs
from station.connection import Connection
from station.dashboard.intake import NotOursError, read
from station.settings import BrokerSettings, LogSettings, MqttSettings, load_broker_settings, with_options
from station.watching.lines import SUMMARY_SECONDS, Lines
from station.watching.screen import Link, Viewer, draw
from station.watching.sight import Sight
from station.watching.terminal import Terminal
from station.watching.words import clean

KEY_SECONDS = 0.05  # how long a message may wait to be looked at
REFRESH_SECONDS = 0.25  # between two pictures, unless a key is pressed
MAX_KEPT = 20_000  # messages that came during a pause, scores and others each
# What a screen shows: no pictures, which are most of the bytes.
SHOWN = ("status", "info", "score", "alert", "health", "feedback", "reply/+")


@dataclass(frozen=True, slots=True)
class Change:
    """Of the connection; in its place among the messages, as what was heard before it holds no longer."""

    trouble: str | None


Heard = queue.SimpleQueue[mqtt.MQTTMessage | Change]


def watch(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The station's settings file: its broker, its topics. Without it: every station on the broker.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Broker, instead of mqtt.host.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port, instead of mqtt.port.", show_default=False)
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="A line a message, as on a pipe, instead of the live screen.")
    ] = False,
) -> None:
    """Look on: every station's state, scores against the threshold and alerts, live, until q or Ctrl-C.

    Needs the broker only: bundle and camera may be on another machine. User name, password and TLS come from the
    settings file or from STATION_MQTT__… variables. On a pipe, one line a message.

    Example: [cyan]station watch --host broker.plant[/]

    Example: [cyan]station watch --config station.toml | grep alert[/]
    """
    logs.set_up(LogSettings(level="warning"))
    settings = load_broker_settings(config)
    broker = with_options(settings.mqtt, host=host, port=port)
    console = Console()
    if lines or not console.is_terminal or console.is_dumb_terminal:
        _print_lines(settings, broker, console, of_one=config is not None)
    else:
        _show_screen(settings, broker, console, of_one=config is not None)


def _listen(broker: MqttSettings, topics: list[str]) -> tuple[Connection, Heard]:
    heard: Heard = queue.SimpleQueue()
    connection = Connection(broker, f"station-watch-{secrets.token_hex(6)}")

    def subscribe(_announced: object) -> None:
        heard.put(Change(None))
        connection.client.subscribe([(topic, 1) for topic in topics])

    connection.on_connected = subscribe
    connection.on_disconnected = lambda: heard.put(Change("not connected"))
    connection.on_message = heard.put
    connection.start()
    return connection, heard


def _print_lines(settings: BrokerSettings, broker: MqttSettings, console: Console, *, of_one: bool) -> None:
    topics = f"{settings.topic_prefix if of_one else settings.mqtt.prefix}/#"
    connection, heard = _listen(broker, [topics])
    console.print(f"listening to {topics} on {connection.where}; Ctrl-C ends", style="dim", highlight=False)
    printer = Lines(settings.mqtt.prefix, console)
    next_summary = time.monotonic() + SUMMARY_SECONDS
    try:
        while True:
            with suppress(queue.Empty):
                item = heard.get(timeout=KEY_SECONDS)
                if not isinstance(item, Change):  # which the log tells
                    printer.take(item)
            if time.monotonic() >= next_summary:
                printer.summarize()
                next_summary = time.monotonic() + SUMMARY_SECONDS
    except KeyboardInterrupt:
        connection.stop(1.0)
    printer.summarize()


def _show_screen(settings: BrokerSettings, broker: MqttSettings, console: Console, *, of_one: bool) -> None:
    stations = settings.topic_prefix if of_one else f"{settings.mqtt.prefix}/+/+/+"
    terminal = Terminal(console)
    screen = _Screen(settings.mqtt.prefix, terminal, console)
    logging.getLogger().handlers[0].setStream(cast("TextIO", screen))  # type: ignore[attr-defined]  # logs.set_up made it
    with terminal.opened():
        connection, heard = _listen(broker, [f"{stations}/{kind}" for kind in SHOWN])
        screen.follow(connection, heard, f"{stations}/#" if of_one else f"{settings.mqtt.prefix}/#")
    connection.stop(1.0)


class _Screen:
    """Ties messages, keys and terminal together; and takes the log, which must not run over the picture."""

    def __init__(self, prefix: str, terminal: Terminal, console: Console) -> None:
        self._prefix = prefix
        self._terminal = terminal
        self._console = console
        self._sight = Sight()
        self._viewer = Viewer(keys=terminal.has_keys)
        self._written: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._kept: deque[tuple[mqtt.MQTTMessage | Change, float]] = deque(maxlen=MAX_KEPT)
        self._kept_scores: deque[tuple[mqtt.MQTTMessage | Change, float]] = deque(maxlen=MAX_KEPT)

    def write(self, text: str) -> None:
        """Take a piece of the log, from any thread."""
        self._written.put(text)

    def flush(self) -> None:
        """A stream has one."""

    def follow(self, connection: Connection, heard: Heard, topics: str) -> None:
        """Draw until the viewer or a signal ends it."""
        drawn = 0.0
        shown_at = time.time()
        while not self._terminal.ended and not self._viewer.quit:
            keys = self._terminal.keys(KEY_SECONDS)
            for key in keys:
                views = self._sight.views(shown_at, worrying_first=self._viewer.worrying_first)
                self._viewer.press(key, [view["path"] for view in views])
            self._note(heard)
            if keys or time.monotonic() - drawn >= REFRESH_SECONDS:
                if not self._viewer.paused:
                    shown_at = time.time()
                link = Link(connection.where, topics, self._trouble(connection))
                self._terminal.show(
                    draw(self._sight, self._viewer, link, shown_at, (self._console.width, self._console.height))
                )
                drawn = time.monotonic()

    def _trouble(self, connection: Connection) -> str | None:
        return None if connection.connected else connection.problem or "connecting …"

    def _note(self, heard: Heard) -> None:
        with suppress(queue.Empty):
            while True:
                item = heard.get_nowait()
                is_score = not isinstance(item, Change) and item.topic.endswith("/score")
                (self._kept_scores if is_score else self._kept).append((item, time.time()))
        if self._viewer.paused:
            return
        for kept in (self._kept, self._kept_scores):
            while kept:
                self._take(*kept.popleft())
        with suppress(queue.Empty):
            while text := self._written.get_nowait():
                if words := clean(Text.from_ansi(text).plain.strip()):
                    self._sight.tell("", Text(words, "yellow"), time.time())

    def _take(self, item: mqtt.MQTTMessage | Change, at: float) -> None:
        if isinstance(item, Change):
            self._sight.fleet.set_broker(item.trouble)
            return
        with suppress(NotOursError):  # whatever else speaks on the broker
            self._sight.take(read(self._prefix, item.topic, bytes(item.payload)), at, retained=item.retain)
