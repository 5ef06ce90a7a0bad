"""The broker dies, hangs, refuses, crawls, and the network to it breaks: alerts wait and arrive."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from station.messages import Alert, Status
from station.outbox import Outbox
from station.outbox_store import Parcel
from station.settings import OutboxSettings
from tests.e2e.test_station_run import PREFIX, Line, write_config
from tests.faults.conftest import Fault
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import Mosquitto
from tests.support.plant import Ledger
from tests.support.proxy import Proxy
from tests.support.station_process import StationProcess

pytestmark = pytest.mark.e2e

ARRIVES = "inspection goes on; the alert of meanwhile arrives once the broker answers again; no restart"


def wait_for(found: Callable[[], object], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


class Scene:
    """A station at work behind a network that can be broken."""

    def __init__(self, line: Line, process: StationProcess, broker: Mosquitto, proxy: Proxy, ledger: Ledger) -> None:
        self.line, self.process, self.broker, self.proxy, self.ledger = line, process, broker, proxy, ledger

    def log(self, **wanted: object) -> list[dict[str, object]]:
        lines = [json.loads(text) for text in self.process.log.splitlines() if text.startswith("{") and text[-1] == "}"]
        return [line for line in lines if wanted.items() <= line.items()]

    def alerts(self) -> list[Alert]:
        return [Alert.model_validate_json(heard.payload) for heard in self.ledger.once("/alert").values()]

    def states(self) -> list[Status]:
        heard = [message for message in self.ledger.heard if message.topic == f"{PREFIX}/status"]
        return [Status.model_validate_json(message.payload) for message in heard]

    def defect_passes(self) -> str:
        """Lets one pass under the camera; returns its id once the station has decided on it."""
        before = len(self.log(event="alert", change="close"))
        self.line.defective = True
        wait_for(lambda: len(self.log(event="alert", change="open")) > before, "the alert")
        self.line.defective = False
        wait_for(lambda: len(self.log(event="alert", change="close")) > before, "its end")
        return str(self.log(event="alert", change="close")[-1]["id"])

    def arrived(self, alert: str) -> str:
        """Waits for the whole alert; tells in words."""
        try:
            self.ledger.wait_for(lambda _: [one.event for one in self.alerts() if one.id == alert][-1:] == ["close"])
        except AssertionError:
            return "the alert did not arrive"
        events = [one.event for one in self.alerts() if one.id == alert]
        pictures = [heard for heard in self.ledger.once("/image").values() if alert in heard.topic]
        assert (events[0], events[-1]) == ("open", "close")
        assert pictures
        return "the alert arrived with its picture"


@contextmanager
def scene(folder: Path, more: str = "", users: dict[str, str] | None = None) -> Iterator[Scene]:
    line = Line()
    login = next(iter(users.items())) if users else None
    with (
        Mosquitto(folder, users=users) as broker,
        Proxy(broker.port) as proxy,
        MjpegServer(fps=25, picture=line.picture) as camera,
        Ledger(broker.port, f"{PREFIX}/#", login) as ledger,
    ):
        config = write_config(folder, camera.url, proxy.port, f'keepalive = 2\n{more}\n[log]\nformat = "json"')
        with StationProcess(config, folder / "log") as process:
            found = Scene(line, process, broker, proxy, ledger)
            wait_for(lambda: found.log(event="status", state="online"), "online")
            yield found
            assert process.process.poll() is None, process.log
            assert len(found.log(event="starting")) == 1


def connected(found: Scene) -> int:
    return len(found.log(event="connected to the broker"))


def test_broker_killed_and_started_again(tmp_path: Path, fault: Fault) -> None:
    fault.injected, fault.expected = "broker killed with SIGKILL, started again", ARRIVES
    with scene(tmp_path) as found:
        wait_for(lambda: connected(found) == 1, "a log-in")
        found.broker.kill()
        alert = found.defect_passes()
        found.broker.start()
        fault.seen = found.arrived(alert)
        assert fault.seen == "the alert arrived with its picture"


def test_password_rotated(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "password changed at the broker, then in mqtt.password_file"
    fault.expected = "the log says that the log-in is refused, without the password; with the new one the alert arrives"
    secret = tmp_path / "password"
    secret.write_text("first-secret\n")
    more = f'username = "station"\npassword_file = "{secret}"'
    with scene(tmp_path, more, {"ledger": "l", "station": "first-secret"}) as found:
        wait_for(lambda: connected(found) == 1, "a log-in")
        found.broker.stop()
        found.broker.set_passwords({"station": "second-secret"})
        found.broker.start()
        alert = found.defect_passes()
        wait_for(lambda: "refused the log-in" in found.process.log, "a refusal")
        secret.write_text("second-secret\n")
        fault.seen = found.arrived(alert)
        for word in ("first-secret", "second-secret"):
            assert word not in found.process.log
        assert fault.seen == "the alert arrived with its picture"


def test_broker_that_accepts_and_never_answers(tmp_path: Path, fault: Fault) -> None:
    fault.injected, fault.expected = "connections are accepted, nothing is ever answered, then it is", ARRIVES
    line = Line()
    with (
        Mosquitto(tmp_path) as broker,
        Proxy(broker.port) as proxy,
        MjpegServer(fps=25, picture=line.picture) as camera,
        Ledger(broker.port, f"{PREFIX}/#") as ledger,
    ):
        proxy.swallow()
        config = write_config(tmp_path, camera.url, proxy.port, '[log]\nformat = "json"')
        with StationProcess(config, tmp_path / "log") as process:
            found = Scene(line, process, broker, proxy, ledger)
            alert = found.defect_passes()
            wait_for(lambda: "does not answer the log-in" in process.log, "the reason in the log")
            proxy.pass_on()
            fault.seen = found.arrived(alert)
    assert fault.seen == "the alert arrived with its picture"


def test_network_paused_and_resumed(tmp_path: Path, fault: Fault) -> None:
    fault.injected, fault.expected = "network stands still for longer than the keepalive, then goes on", ARRIVES
    with scene(tmp_path) as found:
        wait_for(lambda: connected(found) == 1, "a log-in")
        found.proxy.pause()
        alert = found.defect_passes()
        wait_for(lambda: "connection lost" in found.process.log, "the loss in the log")
        found.proxy.resume()
        fault.seen = found.arrived(alert)
        assert fault.seen == "the alert arrived with its picture"


def test_packet_filter_that_drops(tmp_path: Path, fault: Fault) -> None:
    fault.injected, fault.expected = "all that is sent is dropped in silence, both ways, then no more", ARRIVES
    with scene(tmp_path) as found:
        wait_for(lambda: connected(found) == 1, "a log-in")
        found.proxy.swallow()
        alert = found.defect_passes()
        wait_for(lambda: "connection lost" in found.process.log, "the loss in the log")
        found.proxy.pass_on()
        fault.seen = found.arrived(alert)
        assert fault.seen == "the alert arrived with its picture"


def test_connection_cut_again_and_again(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "connection reset five times while alerts are on their way"
    fault.expected = "every alert arrives, each once by its key, in order"
    with scene(tmp_path) as found:
        found.proxy.delay = 0.05
        alerts = []
        for _ in range(5):
            wait_for(lambda: connected(found) > len(alerts), "a log-in")
            alerts.append(found.defect_passes())
            found.proxy.cut()
        told = [found.arrived(alert) for alert in alerts]
        order = list(dict.fromkeys(alert.id for alert in found.alerts()))
        fault.seen = (
            f"{told.count('the alert arrived with its picture')} of {len(alerts)} arrived, in order: {order == alerts}"
        )
        assert order == alerts
        assert set(told) == {"the alert arrived with its picture"}


QUEUED = 10_000


@pytest.mark.slow
def test_slow_broker_with_ten_thousand_waiting(tmp_path: Path, fault: Fault) -> None:
    fault.injected = f"{QUEUED} messages wait at the start; the line takes 4 MiB/s and 10 ms there and back"
    fault.expected = "all arrive in order; meanwhile inspection, status and health go on and a new alert waits its turn"
    outbox = Outbox(tmp_path / "state", OutboxSettings())
    assert outbox._disk is not None
    with outbox._disk.writing():  # as an earlier run would, but all in one transaction
        for number in range(QUEUED):
            key = f"old/{number}"
            properties = (("schema", "station/v1/alert"), ("dedupe_key", key))
            outbox._disk.put(Parcel(f"{PREFIX}/alert", b"{}".ljust(500), 1, properties, key=key))
    outbox.close()
    line = Line()
    with (
        Mosquitto(tmp_path, ["max_queued_messages 0"]) as broker,
        Proxy(broker.port) as proxy,
        MjpegServer(fps=10, picture=line.picture) as camera,
        Ledger(broker.port, f"{PREFIX}/#") as ledger,
    ):
        proxy.delay, proxy.bytes_per_second = 0.005, 2**22
        more = '[log]\nformat = "json"\n[health]\ninterval = 0.5'
        config = write_config(tmp_path, camera.url, proxy.port, more)
        config.write_text(f'state = "state"\n{config.read_text()}')
        with StationProcess(config, tmp_path / "log") as process:
            found = Scene(line, process, broker, proxy, ledger)
            began = time.monotonic()
            alert = found.defect_passes()
            ledger.wait_for(lambda _: ledger.once("/alert").get(f"old/{QUEUED - 1}"), timeout=240)
            took = time.monotonic() - began
            keys = list(ledger.once("/alert"))
            at_end = next(n for n, heard in enumerate(ledger.heard) if heard.key == f"old/{QUEUED - 1}")
            between = {heard.topic.removeprefix(f"{PREFIX}/") for heard in ledger.heard[:at_end]}
            ledger.wait_for(lambda _: any(f"{alert}/open" in key for key in ledger.once("/alert")))
            fault.seen = f"{QUEUED} in order, {QUEUED / took:.0f} a second; between them {', '.join(sorted(between))}"
    assert keys[:QUEUED] == [f"old/{number}" for number in range(QUEUED)]
    assert {"status", "info", "health"} <= between
