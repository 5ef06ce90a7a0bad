"""`station watch` in a real terminal with a real broker; on a pipe it is in tests/e2e/test_station_run.py."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

from station.messages import CameraHealth, DriftHealth, Health, Message, Reply, Status
from station.watching.lines import Lines
from station.watching.terminal import split_keys
from tests.support.line_of_stations import PREFIX, alert, names, opening, scores
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.pages import commands
from tests.support.terminal import Terminal

STATION = "mill/3/left"


# --- a line a message ---


@dataclass
class Heard:
    """A received message, as far as the printer looks at it."""

    topic: str
    payload: bytes
    retain: bool = False


def said(*messages: Heard) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    printer = Lines(PREFIX, console)
    for message in messages:
        printer.take(message)  # type: ignore[arg-type]  # a stand-in
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is the StringIO of above


def heard(suffix: str, payload: bytes) -> Heard:
    return Heard(f"{PREFIX}/{STATION}/{suffix}", payload)


def health(*reasons: str) -> Heard:
    message = Health(
        session="abc",
        state="online",
        reasons=reasons,
        uptime_s=1,
        inspected=1,
        camera=CameraHealth(
            connected=True, fault=None, frames=1, reconnects=0, fps=1, brightness=None, sharpness=None, noise=None
        ),
        drift=DriftHealth(state="unknown", direction=None, effect=None, p_value=None, frames=0),
        stages_ms={},
        queued={},
        dropped={},
        temperatures_c={},
        resident_bytes=1,
    )
    return heard("health", message.payload())


def test_health_is_told_where_it_has_news_that_status_has_not() -> None:
    lines = said(
        health(),
        heard("status", Status(state="degraded", reasons=("camera-stalled: 5 s",), session="abc").payload()),
        health("camera-stalled: no frame for 6 s"),
        health("scores-drift: higher than at calibration"),
        health("scores-drift: higher still"),
        health(),
    )
    assert [line.partition(f"{STATION}  ")[2] for line in lines] == [
        "degraded: camera-stalled: 5 s",
        "health: scores-drift: higher than at calibration",
        "health: all well again",
    ]


def test_commands_replies_and_pictures() -> None:
    lines = said(
        heard("cmd/pause", b'{"by": "anna\x1b[2J"}'),
        heard("reply/pause", Reply(verb="pause", ok=True, result={"state": "paused"}).payload()),
        heard("snapshot/7/image", b"\xff\xd8\xff" + bytes(2048)),
        heard("alert/a1/image", b"\xff\xd8\xff" + bytes(1024)),
        heard("alert/a1/frame", b"\x89PNG\r\n\x1a\n" + bytes(3072)),
        heard("status", Status(state="degraded", reasons=("paused: by anna",), session="abc").payload()),
        heard("status", b"{}"),
        heard("status", b""),
        heard("elsewhere", b"nothing of ours"),
    )
    assert [line.partition(f"{STATION}  ")[2] for line in lines] == [
        'command pause {"by": "anna�[2J"}',
        "reply to pause: done state paused",
        "snapshot 7, 2 KiB",
        "picture a1, 1 KiB",
        "frame a1, 3 KiB",
        "degraded: paused: by anna",
        "not a message of ours: status: Field required",
        "taken out of service",
    ]


# --- the screen ---


def test_keys_as_terminals_send_them() -> None:
    assert split_keys(b"q\x1b[A\x1bOB\x1b[5~\x1b \r\xc3\xa4\x1b[1;5C") == [
        *("q", "up", "down", "page up", "escape", "space", "enter", "ä", "\x1b[1;5C")
    ]


class Plant:
    """Publishes what stations would say."""

    def __init__(self, port: int) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.connect(HOST, port)
        self._client.loop_start()

    def say(self, station: str, message: Message) -> None:
        kind = type(message)
        self._client.publish(
            f"{PREFIX}/{station}/{message.topic}", message.payload(), qos=kind.qos, retain=kind.retain
        ).wait_for_publish(20)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def plant(broker: Mosquitto) -> Iterator[Plant]:
    plant = Plant(broker.port)
    yield plant
    plant.stop()


def watch(port: int, *options: str, size: tuple[int, int] = (120, 40)) -> Terminal:
    return Terminal(
        [sys.executable, "-m", "station", "watch", "--host", HOST, "--port", str(port), *options], size=size
    )


def is_left_sane(terminal: Terminal) -> bool:
    """The modes are those of before, the cursor is back, and so is the screen of before."""
    return (
        terminal.modes_now() == terminal.modes
        and terminal.raw.rfind(b"\x1b[?1049l") > terminal.raw.rfind(b"\x1b[?1049h")
        and terminal.raw.rfind(b"\x1b[?25h") > terminal.raw.rfind(b"\x1b[?25l")
    )


def test_twenty_stations_live_with_keys_and_another_size(broker: Mosquitto, plant: Plant) -> None:
    for number, name in enumerate(names(20)):
        for message in opening(name, number):
            plant.say(name, message)
    with watch(broker.port) as terminal:
        terminal.wait_for(lambda text: "20 stations" in text and "● connected" in text)
        for time_, score in scores(2, 4, per_second=10):
            plant.say("mill/1/top", score)
            if time_ % 1 == 0:
                plant.say("mill/1/top", alert("open", 1) if time_ == 0 else alert("update", 1, peak=0.4 + time_ / 100))
        terminal.wait_for(lambda text: "⚑ 1 open alert" in text and "alert open" in text)
        (line,) = [line for line in terminal.lines if "mill/1/top" in line and "⚑ 1 open" in line]
        assert "█" in line  # defects at the end of what is sent
        assert "└ paused: by anna" in terminal.text, terminal.text

        terminal.type("\x1b[B\x1b[B\x1b[B\r")  # down to mill/1/top; details
        terminal.wait_for(lambda text: "── mill/1/top" in text and "⚑ open" in text)
        terminal.type("?")
        terminal.wait_for(lambda text: "Page Up, Page Down" in text)
        terminal.type("?\x1b")
        terminal.wait_for(lambda text: "── mill/1/top" not in text and "Page Up" not in text)

        terminal.type("p")
        terminal.wait_for(lambda text: "paused" in text.splitlines()[0])
        plant.say("mill/1/top", alert("close", 1))
        assert "⚑ 1 open alert" in terminal.text
        terminal.type("p")
        terminal.wait_for(lambda text: "⚑" not in text and "alert closed" in text)

        terminal.resize(60, 16)
        terminal.wait_for(lambda text: "of 20" in text.splitlines()[1] and "help" in text.splitlines()[-1])
        assert "● online" not in terminal.text  # only the sign; no room for the word
        terminal.type("q")
        assert terminal.wait() == 0
        assert is_left_sane(terminal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_leave_the_terminal_sane(broker: Mosquitto, number: signal.Signals) -> None:
    with watch(broker.port) as terminal:
        terminal.wait_for(lambda text: "No station has spoken yet" in text and "● connected" in text)
        if number == signal.SIGINT:
            terminal.type("\x03")  # Ctrl-C, as a terminal sends it
        else:
            terminal.process.send_signal(number)
        assert terminal.wait() == 0
        assert is_left_sane(terminal)


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it(broker: Mosquitto) -> None:
    with watch(broker.port) as terminal:
        terminal.wait_for(lambda text: "● connected" in text)
        terminal.type("\x1a")
        deadline = time.monotonic() + 30
        while process_state(terminal.process.pid) != "T":
            assert time.monotonic() < deadline, "it does not stop"
            terminal.wait_for(lambda _: True)
            time.sleep(0.02)
        terminal.wait_for(lambda _: is_left_sane(terminal))
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.wait_for(lambda _: not is_left_sane(terminal))
        terminal.wait_for(lambda text: "● connected" in text)
        terminal.type("q")
        assert terminal.wait() == 0
        assert is_left_sane(terminal)


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_broker_that_goes_and_comes_back(broker: Mosquitto, plant: Plant) -> None:
    with watch(broker.port) as terminal:
        for message in opening(STATION, 0):
            plant.say(STATION, message)
        terminal.wait_for(lambda text: f"● online   {STATION}" in text)
        broker.kill()
        terminal.wait_for(lambda text: "✗ not connected" in text and "connection lost" in text)
        terminal.wait_for(lambda text: "? 1 unknown" in text)  # nothing is claimed of what cannot be known
        broker.start()
        terminal.wait_for(lambda text: "● connected" in text)
        for message in opening(STATION, 0):
            plant.say(STATION, message)
        terminal.wait_for(lambda text: f"● online   {STATION}" in text)
        terminal.type("q")
        assert terminal.wait() == 0


def test_lines_may_be_had_on_a_terminal_too(broker: Mosquitto, plant: Plant) -> None:
    plant.say(STATION, opening(STATION, 0)[0])
    with watch(broker.port, "--lines") as terminal:
        terminal.wait_for(lambda text: f"{STATION}  online (retained)" in text)
        terminal.type("\x03")
        assert terminal.wait() == 0
        assert b"\x1b[?1049h" not in terminal.raw


def test_the_commands_of_the_documentation(tmp_path: Path, broker: Mosquitto, plant: Plant) -> None:
    live, piped = (command for command in commands("docs/terminal.md") if command.startswith("station watch"))
    site, line, name = STATION.split("/")
    (tmp_path / "station.toml").write_text(
        f'[station]\nsite = "{site}"\nline = "{line}"\nname = "{name}"\n[mqtt]\nhost = "{HOST}"\nport = {broker.port}\n'
    )
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STATION_MQTT__PORT": str(broker.port),
    }
    plant.say(STATION, opening(STATION, 0)[0])
    for command, wanted in ((live.replace("broker.plant", HOST), f"● online   {STATION}"), (piped, "alert open")):
        with Terminal(["bash", "-c", command], environment=environment, folder=tmp_path) as terminal:
            if "|" in command:
                broker.wait_for_subscription(f"{PREFIX}/{STATION}/#")
                plant.say(STATION, alert("open", 1))
            terminal.wait_for(lambda text, w=wanted: w in text)
            terminal.type("\x03")
            terminal.wait()
