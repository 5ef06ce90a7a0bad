"""The demo's client of the broker: what any subscriber sees of a station, told to a person."""

import queue
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engines.engine import UInt8Array
from engines.geometry import Box
from station.connection import Connection
from station.demo.contact_sheet import draw_contact_sheet
from station.demo.tally import Tally
from station.demo.textures import DemoError
from station.files import write_file
from station.messages import Alert, Score, Status
from station.settings import MqttSettings

PICTURES = "alert-*.jpg"
CONTACT_SHEET = "contact-sheet.jpg"
_CONNECT_TIMEOUT = 10.0  # seconds
_SILENCE = 60.0  # seconds without a message after which the station counts as hung


class Subscriber:
    """Subscribes to one station inside a ``with`` block; prints its alerts and keeps their pictures.

    Attributes:
        scores: every score message, in order.
        pictures: alert id -> the newest picture of it, uint8 (H, W, 3), BGR.
    """

    def __init__(self, host: str, port: int, topics: str, tally: Tally, console: Console, out: Path) -> None:
        """Prepare.

        Args:
            host: the broker's.
            port: the broker's.
            topics: the station's topic prefix, without the final slash.
            tally: takes the alerts.
            console: where alerts are printed.
            out: folder for the pictures.
        """
        self.scores: list[Score] = []
        self.pictures: dict[str, UInt8Array] = {}
        self._tally, self._console, self._out = tally, console, out
        self._topics = topics
        self._stopped = False
        self._arrivals: list[float] = []  # time.monotonic() of each score
        self._messages: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
        self._connection = Connection(MqttSettings(host=host, port=port, protocol="3.1.1"), "station-demo")
        self._connection.on_message = self._messages.put

    def __enter__(self) -> "Subscriber":  # noqa: PYI034 - typing.Self is of Python 3.11
        """Connect and subscribe.

        Raises:
            DemoError: the broker does not answer.
        """
        self._connection.on_connected = lambda _: self._subscribe()
        self._connection.start()
        if not self._connection.wait(_CONNECT_TIMEOUT):
            raise DemoError(f"no connection to the demo's broker: {self._connection.problem or 'no answer'}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._connection.stop(timeout=2.0)

    def follow(self, exit_code: Callable[[], int | None]) -> bool:
        """Take messages until the station has stopped.

        Args:
            exit_code: of the station's process; None while it lives.

        Returns:
            False if its process failed, or has said nothing for a minute.
        """
        columns = (TextColumn("frame"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        heard = time.monotonic()
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("frame", total=self._tally.line.n_frames)
            while not self._stopped:
                code = exit_code()  # asked first: what it said last is then in the queue, or within the second
                try:
                    message = self._messages.get(timeout=1.0)
                except queue.Empty:
                    # amqtt acknowledges a message before it passes it on, and drops those not yet passed on when the
                    # sender leaves. So "stopped" may never come; the exit code then says that all was well.
                    if code is not None:
                        return code == 0
                    if time.monotonic() - heard > _SILENCE:
                        return False
                    continue
                heard = time.monotonic()
                self._take(message.topic.removeprefix(f"{self._topics}/"), bytes(message.payload))
                progress.update(task, completed=self.scores[-1].frame if self.scores else 0)
        return True

    def summarize(self) -> None:
        """Print the table of what was found and write the contact sheet."""
        table = Table()
        table.add_column("kind")
        for heading in ("planted", "found", "missed"):
            table.add_column(heading, justify="right")
        counts = self._tally.by_kind()
        for kind, (n, n_found) in counts.items():
            table.add_row(kind, *map(str, (n, n_found, n - n_found)))
        table.add_section()
        n, n_found = (sum(column) for column in zip((0, 0), *counts.values(), strict=True))
        table.add_row("all", *map(str, (n, n_found, n - n_found)), style="bold")
        self._console.print()
        self._console.print(table)
        false_alarms = len(self._tally.false_alarms)
        colour = "red" if false_alarms else "green"
        self._console.print(f"[{colour}]False alarms: {false_alarms}[/] of {len(self._tally.alerts)} alerts")
        self._console.print(self._rate())
        sheet = draw_contact_sheet(self._tally, self.pictures)
        if sheet is not None:
            write_file(self._out / CONTACT_SHEET, cv2.imencode(".jpg", sheet)[1].tobytes())
            self._console.print(
                f"Pictures: [bold]{escape(str(self._out / CONTACT_SHEET))}[/] shows all, "
                f"{escape(str(self._out / PICTURES))} one alert each",
                soft_wrap=True,
            )

    def _subscribe(self) -> None:
        self._connection.client.subscribe(f"{self._topics}/#", qos=1)

    def _take(self, topic: str, payload: bytes) -> None:
        match topic.split("/"):
            case ["score"]:
                self.scores.append(Score.model_validate_json(payload))
                self._arrivals.append(time.monotonic())
            case ["alert"]:
                self._tell(Alert.model_validate_json(payload))
            case ["alert", id_, "image"]:
                write_file(self._out / PICTURES.replace("*", id_), payload)
                picture = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
                self.pictures[id_] = np.asarray(picture, np.uint8)
            case ["status"]:
                self._stopped = Status.model_validate_json(payload).state == "stopped"

    def _tell(self, alert: Alert) -> None:
        found = self._tally.take(alert.id, alert.last_frame, [Box(r.x, r.y, r.w, r.h) for r in alert.boxes])
        if alert.event == "open":
            said = f"[bold red]alert opens[/]   score {alert.score:.0f} over {alert.threshold:.0f}"
        elif alert.event == "close":
            kinds = " and ".join(self._tally.line.planted[i].kind for i in sorted(found))
            said = (
                f"[bold green]alert closes[/]  last seen in {alert.last_frame}, peak {alert.peak_score:.0f}: "
                f"{f'[bold]{kinds}[/]' if kinds else '[bold red]false alarm[/]'}"
            )
        else:
            return
        # A close comes some quiet frames after the last one that showed the defect.
        frame = max(alert.last_frame, self.scores[-1].frame if self.scores else 0)
        self._console.print(f"frame {frame:4}  {said}", highlight=False)

    def _rate(self) -> str:
        frames = self.scores[-1].frame if self.scores else 0
        said = f"Frames: {frames}"
        if len(self.scores) > 1:
            seconds = self._arrivals[-1] - self._arrivals[0]
            stages = [score.latency_ms for score in self.scores]
            work = statistics.median(sum(ms[stage] for stage in ("prepare", "infer", "judge")) for ms in stages)
            said += f" in {seconds:.1f} s, {(len(self.scores) - 1) / seconds:.1f} a second; "
            said += f"inspecting one takes {work:.1f} ms (median)"
        return said
