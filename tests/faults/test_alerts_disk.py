"""The disk under a running station fills, breaks or lies: inspection goes on, and the state says why it is degraded."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from station.messages import Alert, Status
from station.outbox import FILE
from tests.e2e.test_station_run import PREFIX, Line, write_config
from tests.faults.conftest import Fault
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import Mosquitto
from tests.support.plant import Ledger
from tests.support.small_disk import SmallDisk
from tests.support.station_process import StationProcess

pytestmark = pytest.mark.e2e


def wait_for(found: Callable[[], object], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


class Scene:
    """A station whose state folder is ``state``; the broker is stopped until ``deliver``."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.state, self.line = folder, state, Line()
        self.broker = Mosquitto(folder)
        self.camera = MjpegServer(fps=25, picture=self.line.picture)
        self.alerts: list[str] = []

    @contextmanager
    def station(self, name: str = "log") -> Iterator[StationProcess]:
        more = '[log]\nformat = "json"\n[health]\ninterval = 0.5\nrecent_mib = 0'
        config = write_config(self.folder, self.camera.url, self.broker.port, more)
        config.write_text(f'state = "{self.state}"\n{config.read_text()}')
        with StationProcess(config, self.folder / name) as process:
            wait_for(lambda: "connected to the broker" in process.log, "a log-in")
            yield process

    def defect_passes(self, process: StationProcess) -> None:
        opened, closed = ('"change": "open"', '"change": "close"')
        before = process.log.count(closed)
        self.line.defective = True
        wait_for(lambda: process.log.count(opened) > before, "the alert")
        self.line.defective = False
        wait_for(lambda: process.log.count(closed) > before, "its end")
        lines = [json.loads(text) for text in process.log.splitlines() if '"change": "close"' in text]
        self.alerts.append(lines[-1]["id"])

    def status(self, ledger: Ledger) -> str:
        heard = [
            Status.model_validate_json(message.payload) for message in ledger.heard if self._is_status(message.topic)
        ]
        return f"{heard[-1].state} {' '.join(heard[-1].reasons)}".strip() if heard else "no status"

    def wait_for_status(self, ledger: Ledger, words: str) -> str:
        wait_for(lambda: self.status(ledger).startswith(words), f"{words}; last: {self.status(ledger)}")
        return self.status(ledger)

    def arrived(self, ledger: Ledger) -> int:
        """How many of the alerts arrived, whole, once they should have; checks that their order is right."""

        def closed() -> list[str]:
            alerts = [Alert.model_validate_json(heard.payload) for heard in ledger.once("/alert").values()]
            return [alert.id for alert in alerts if alert.event == "close"]

        deadline = time.monotonic() + 60
        while set(self.alerts) - set(closed()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [alert for alert in closed() if alert in self.alerts] == [one for one in self.alerts if one in closed()]
        return len(set(self.alerts) & set(closed()))

    def _is_status(self, topic: str) -> bool:
        return topic == f"{PREFIX}/status"


@contextmanager
def scene(folder: Path, state: Path) -> Iterator[tuple[Scene, Ledger]]:
    found = Scene(folder, state)
    with found.broker, found.camera, Ledger(found.broker.port, f"{PREFIX}/#") as ledger:
        yield found, ledger


def test_disk_full(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "the disk of the state folder fills up while the station runs; later there is room again"
    fault.expected = "degraded: outbox-memory: disk full; alerts go on; online again with all of them"
    with SmallDisk(tmp_path) as disk, scene(tmp_path, disk.folder / "state") as (found, ledger):
        with found.station() as process:
            found.defect_passes(process)
            disk.fill()
            found.broker.pause()
            # What the outbox's own file has room for goes there first.
            while "cannot use the disk" not in process.log and len(found.alerts) < 60:
                found.defect_passes(process)
            found.defect_passes(process)
            found.broker.resume()
            degraded = found.wait_for_status(ledger, "degraded outbox-memory: disk full")
            disk.make_room()
            online = found.wait_for_status(ledger, "online")
            fault.seen = f"{degraded}; {found.arrived(ledger)} of {len(found.alerts)} alerts; {online}"
            process.signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert fault.seen.endswith(f"; {len(found.alerts)} of {len(found.alerts)} alerts; online")


def test_disk_turns_read_only(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "the file system of the state folder turns read-only under the station, as after a medium's error"
    fault.expected = "degraded: outbox-memory, with the reason; all alerts arrive"
    with SmallDisk(tmp_path) as disk, scene(tmp_path, disk.folder / "state") as (found, ledger):
        with found.station() as process:
            found.defect_passes(process)
            disk.break_down()
            for _ in range(2):
                found.defect_passes(process)
            degraded = found.wait_for_status(ledger, "degraded outbox-memory: ")
            fault.seen = f"{degraded}; {found.arrived(ledger)} of {len(found.alerts)} alerts"
            process.signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert "Read-only file system" in fault.seen
        assert fault.seen.endswith("3 of 3 alerts")


def test_state_folder_that_cannot_be_written_from_the_start(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "the state folder cannot be made"
    fault.expected = "degraded: outbox-memory, with the reason; all alerts arrive"
    (tmp_path / "state").write_text("a file")
    with scene(tmp_path, tmp_path / "state") as (found, ledger), found.station() as process:
        found.defect_passes(process)
        degraded = found.wait_for_status(ledger, "degraded outbox-memory: ")
        fault.seen = f"{degraded}; {found.arrived(ledger)} of {len(found.alerts)} alerts"
        assert fault.seen.endswith("1 of 1 alerts")


def overwrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(b"\xa5" * file.stat().st_size)


def test_database_overwritten_while_stopped(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "outbox.db overwritten while the station is stopped"
    fault.expected = "moved aside, degraded: outbox-corrupt with the file's name, a new one works; online once removed"
    with scene(tmp_path, tmp_path / "state") as (found, ledger):
        with found.station("first") as process:
            found.defect_passes(process)
            assert found.arrived(ledger) == 1
            process.signal(signal.SIGTERM)
            assert process.wait(20) == 0
        overwrite(tmp_path / "state" / FILE)
        with found.station("second") as process:
            degraded = found.wait_for_status(ledger, "degraded outbox-corrupt: ")
            found.defect_passes(process)
            [aside] = (tmp_path / "state").glob(f"{FILE}.corrupt-*Z")
            arrived = found.arrived(ledger)
            aside.unlink()
            online = found.wait_for_status(ledger, "online")
            fault.seen = f"{degraded}; {arrived} of {len(found.alerts)} alerts; {online}"
        assert str(aside) in fault.seen
        assert fault.seen.endswith("2 of 2 alerts; online")


def test_database_overwritten_while_running(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "outbox.db overwritten under the running station while alerts wait in it, then SIGKILL"
    fault.expected = "moved aside, degraded: outbox-corrupt; what could be read and what came later arrives"
    with scene(tmp_path, tmp_path / "state") as (found, ledger):
        with found.station("first") as process:
            found.broker.pause()
            found.defect_passes(process)
            overwrite(tmp_path / "state" / FILE)
            found.defect_passes(process)
            wait_for(lambda: list((tmp_path / "state").glob(f"{FILE}.corrupt-*Z")), "the file moved aside")
            process.signal(signal.SIGKILL)
            process.wait()
        found.broker.resume()
        with found.station("second"):
            fault.seen = f"moved aside; {found.arrived(ledger)} of {len(found.alerts)} alerts after SIGKILL"
        assert fault.seen.endswith("2 of 2 alerts after SIGKILL")


def test_state_folder_deleted_while_running(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "outbox.db and its log deleted under the running station while alerts wait in them, then SIGKILL"
    fault.expected = "made anew with all that waited; every alert arrives"
    with scene(tmp_path, tmp_path / "state") as (found, ledger):
        with found.station("first") as process:
            found.broker.pause()
            found.defect_passes(process)
            for file in (tmp_path / "state").glob(f"{FILE}*"):
                file.unlink()
            found.defect_passes(process)
            process.signal(signal.SIGKILL)
            process.wait()
        found.broker.resume()
        with found.station("second"):
            fault.seen = f"{found.arrived(ledger)} of {len(found.alerts)} alerts after SIGKILL"
        assert fault.seen == "2 of 2 alerts after SIGKILL"
