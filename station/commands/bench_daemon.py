"""The whole daemon under measurement: a real ``station run`` between a folder of frames and a broker on this machine.

What is measured is what a subscriber sees: when it has a score, and when it has an alert, which is sent with QoS 1. A
broker acknowledges (PUBACK) a message when it passes it on, so an alert's arrival stands for its acknowledgement.
"""

import getpass
import os
import queue
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from pydantic_core import to_json

from engines.engine import EngineSettings, UInt8Array
from engines.errors import EngineError
from station.commands.child import last_lines, station_process
from station.connection import Connection
from station.demo.broker import HOST, Broker
from station.demo.textures import DemoError
from station.messages import Alert, Score
from station.settings import MqttSettings

TOPICS = "station/v1/bench/line/station"
STAGES = ("wait", "prepare", "infer", "judge", "total")
"""Of score messages."""
_NO_ALERTS = 1e9
_START_TIMEOUT = 10.0  # seconds, of a broker
_STOP_TIMEOUT = 5.0  # of the station
_SILENCE = 60.0  # seconds without a message after which the station counts as hung

_SETTINGS = """\
bundle = {bundle}
state = "state"

[station]
site = "bench"

[camera]
url = "folder:frames"
loop = true
policy = "{policy}"
{pace}

[judge]
threshold = {threshold!r}

[engine]
{engine}

[mqtt]
host = "{host}"
port = {port}
protocol = "{protocol}"

[health]
recent_mib = 0

[log]
level = "warning"
"""


class NoBrokerError(Exception):
    """There is no broker to measure with; says what to install."""


class LocalBroker(NamedTuple):
    """A broker on this machine, for this measurement alone."""

    name: str
    port: int
    protocol: Literal["5", "3.1.1"]


@contextmanager
def local_broker(folder: Path) -> Iterator[LocalBroker]:
    """Mosquitto where it is installed, else the demo's.

    Args:
        folder: for its configuration and log.

    Raises:
        NoBrokerError: there is neither.
    """
    # A user's PATH may lack sbin, where Debian puts it.
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        try:
            with Broker() as broker:
                yield LocalBroker("amqtt", broker.port, "3.1.1")
        except DemoError as error:
            raise NoBrokerError(f"no broker: install mosquitto, or the demo's ({error})") from error
        return
    told = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\S+)", told)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    config = folder / "mosquitto.conf"
    # Started by root, mosquitto becomes another user, who may not read our files.
    config.write_text(f"listener {port} {HOST}\nuser {getpass.getuser()}\nallow_anonymous true\n", encoding="utf-8")
    with (folder / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-c", str(config)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_it_listens(port, process)
        yield LocalBroker(f"mosquitto {version[1]}" if version else "mosquitto", port, "5")
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_listens(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoBrokerError("mosquitto is installed and does not start")
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Task:
    """What the daemon is to do.

    Attributes:
        bundle: that it runs.
        engine: how.
        frames: shown over and over, uint8 (H, W, 3), BGR.
        policy: of the camera.
        fps: pace of the camera; None: as fast as frames are taken.
        threshold: frames that score above it make alerts; None: there are none.
    """

    bundle: Path
    engine: EngineSettings
    frames: Sequence[UInt8Array]
    policy: Literal["latest", "every"]
    fps: float | None = None
    threshold: float | None = None


@dataclass(slots=True)
class Heard:
    """What a subscriber heard of a station, after the warm-up.

    Attributes:
        scores: each with the UNIX time of its arrival.
        alerts: that opened; likewise.
        resident: bytes of the station's process in memory, at the end.
        cpu_seconds: of the station's process, between the first score and the last.
    """

    scores: list[tuple[Score, float]] = field(default_factory=list)
    alerts: list[tuple[Alert, float]] = field(default_factory=list)
    resident: int = 0
    cpu_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Between the first score and the last, by the station's clock: they may arrive in bursts."""
        return (self.scores[-1][0].at - self.scores[0][0].at).total_seconds()

    @property
    def fps(self) -> float:
        """Frames inspected a second."""
        return (len(self.scores) - 1) / self.seconds

    def summary(self) -> dict[str, Any]:
        """As ``station bench --json`` tells it.

        ``received`` and ``alert`` are from capture to the subscriber, ``engine_busy`` is the share of the time in which
        the engine had a frame.
        """
        scores = [score for score, _ in self.scores]
        ms = {stage: [score.latency_ms[stage] for score in scores] for stage in STAGES}
        ms["received"] = [1e3 * (at - score.captured_at.timestamp()) for score, at in self.scores]
        if self.alerts:
            ms["alert"] = [1e3 * (at - alert.opened_at.timestamp()) for alert, at in self.alerts]
        return {
            "frames": len(scores),
            "dropped": scores[-1].frame - scores[0].frame + 1 - len(scores),
            "alerts": len(self.alerts),
            "fps": round(self.fps, 2),
            "engine_busy": round(self.fps * float(np.mean(ms["infer"])) / 1e3, 3),
            "cpus_used": round(self.cpu_seconds / self.seconds, 3),
            "resident_mib": round(self.resident / 2**20, 1),
            "ms": {stage: percentiles(values) for stage, values in ms.items()},
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50": round(float(np.median(values)), 3), "p99": round(float(np.quantile(values, 0.99)), 3)}


def write_settings(task: Task, broker: LocalBroker, folder: Path) -> Path:
    """Write the frames and the settings of a task into a new folder; returns the settings file."""
    config = folder / "station.toml"
    _write_frames(folder / "frames", task.frames)
    engine = task.engine.model_dump(mode="json", exclude_none=True)
    config.write_text(
        _SETTINGS.format(
            bundle=to_json(str(task.bundle.resolve())).decode(),  # a JSON value is a TOML value
            policy=task.policy,
            pace="" if task.fps is None else f"fps = {task.fps!r}",
            threshold=_NO_ALERTS if task.threshold is None else task.threshold,
            engine="\n".join(f"{key} = {to_json(value).decode()}" for key, value in engine.items()),
            host=HOST,
            port=broker.port,
            protocol=broker.protocol,
        ),
        encoding="utf-8",
    )
    return config


def run_daemon(
    task: Task,
    broker: LocalBroker,
    folder: Path,
    warm_up: int,
    n: int,
    on_score: Callable[[], None],
    module: str = "station",
) -> Heard:
    """Run the daemon for ``n`` frames after ``warm_up``; fewer after Ctrl-C.

    Args:
        task: what it is to do.
        broker: that it publishes to.
        folder: not there yet; for settings, frames, state and log.
        warm_up: frames that are not counted.
        n: frames that are, at least two.
        on_score: called after each score.
        module: that has the command ``run``.

    Raises:
        EngineError: the station has failed, or says nothing; tells the end of its log.
    """
    config, log = write_settings(task, broker, folder), folder / "station.log"
    messages: queue.SimpleQueue[tuple[mqtt.MQTTMessage, float]] = queue.SimpleQueue()
    ears = Connection(MqttSettings(host=HOST, port=broker.port, protocol=broker.protocol), "station-bench")
    ears.on_message = lambda message: messages.put((message, time.time()))
    ears.on_connected = lambda _: _subscribe(ears.client)
    ears.start()
    try:
        if not ears.wait(_START_TIMEOUT):
            raise EngineError(f"no connection to the broker: {ears.problem or 'no answer'}")
        with station_process("run", "--config", str(config), log=log, module=module) as process:
            return _listen(messages, process, log, warm_up, n, on_score)
    finally:
        ears.stop(timeout=2.0)


def _subscribe(client: mqtt.Client) -> None:
    client.subscribe([(f"{TOPICS}/score", 0), (f"{TOPICS}/alert", 1)])


def _write_frames(folder: Path, frames: Sequence[UInt8Array]) -> None:
    folder.mkdir(parents=True)
    written: dict[int, Path] = {}
    for number, frame in enumerate(frames):
        path = folder / f"{number:03}.bmp"  # BMP: reading it must not be what takes the time
        if (same := written.get(id(frame))) is not None:
            path.hardlink_to(same)
        else:
            path.write_bytes(cv2.imencode(".bmp", frame)[1].tobytes())
            written[id(frame)] = path


def _listen(
    messages: "queue.SimpleQueue[tuple[mqtt.MQTTMessage, float]]",
    process: "subprocess.Popen[bytes]",
    log: Path,
    warm_up: int,
    n: int,
    on_score: Callable[[], None],
) -> Heard:
    heard, before, cpu = Heard(), 0, 0.0
    last = time.monotonic()
    try:
        while len(heard.scores) < n:
            over = process.poll() is not None or time.monotonic() - last > _SILENCE  # asked before the last look
            try:
                message, at = messages.get(timeout=1.0)
            except queue.Empty:
                if not over:
                    continue
                raise EngineError("\n".join(["the daemon fell silent. Its log ends with:", *last_lines(log)])) from None
            last = time.monotonic()
            if message.topic.endswith("/alert"):
                _take_alert(heard, message, at)
                continue
            before += 1
            if before > warm_up:
                cpu = cpu or cpu_seconds(process.pid)
                heard.scores.append((Score.model_validate_json(message.payload), at))
            on_score()
    except KeyboardInterrupt:
        if len(heard.scores) < 2:
            raise
    heard.cpu_seconds = cpu_seconds(process.pid) - cpu
    heard.resident = _resident(process.pid)
    process.terminate()
    over, deadline = False, time.monotonic() + _STOP_TIMEOUT
    while not over:  # alerts may still be on their way: their pictures take a while
        over = process.poll() is not None or time.monotonic() > deadline
        with suppress(queue.Empty):
            while True:
                message, at = messages.get(timeout=0.2)
                if message.topic.endswith("/alert"):
                    _take_alert(heard, message, at)
    return heard


def _take_alert(heard: Heard, message: mqtt.MQTTMessage, at: float) -> None:
    alert = Alert.model_validate_json(message.payload)
    if alert.event == "open" and heard.scores and alert.first_frame >= heard.scores[0][0].frame:
        heard.alerts.append((alert, at))


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used; 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+([0-9]+) kB", status)
    return int(found[1]) * 1024 if found else 0
