"""The station that docs/integration.md talks of, ``station/v1/mill/3/left``: real camera stream, daemon and broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from station.messages import Alert, Status
from tests.e2e.test_station_run import Line, write_config
from tests.support.desk import Desk
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.station_process import StationProcess

PREFIX = "station/v1/mill/3/left"


@dataclass
class Mill:
    """Everything there.

    Attributes:
        line: what passes under the camera; ``line.defective = True`` raises an alert.
        desk: hears all that is published.
        metrics: port of the Prometheus endpoint.
        station: the daemon.
    """

    folder: Path
    line: Line
    broker: Mosquitto
    desk: Desk
    metrics: int
    station: StationProcess

    def state(self) -> str:
        return Status.model_validate_json(self.desk.on("/status")[-1]).state

    def alerts(self) -> list[Alert]:
        return [Alert.model_validate_json(payload) for payload in self.desk.on("/alert")]

    def pass_defect(self) -> Alert:
        """A defect passes under the camera, from first to last. Returns the alert as it was closed."""
        before = {alert.id for alert in self.alerts()}

        def told(event: str) -> list[Alert]:  # an alert of before may come a second time
            return [alert for alert in self.alerts() if alert.event == event and alert.id not in before]

        self.line.defective = True
        self.desk.wait_for(lambda _: told("open"))
        self.line.defective = False
        self.desk.wait_for(lambda _: told("close"))
        return told("close")[-1]


@contextmanager
def run_mill(folder: Path) -> Iterator[Mill]:
    """Start all of it; ready when the first frames have been judged."""
    line, metrics = Line(), free_port()
    more = f"[metrics]\nport = {metrics}\n[health]\ninterval = 1\n"
    with (
        MjpegServer(fps=25, picture=line.picture) as camera,
        Mosquitto(folder) as broker,
        Desk(broker.port, PREFIX) as desk,
    ):
        config = write_config(folder, camera.url, broker.port, more)
        text = config.read_text().replace('"plant"', '"mill"').replace('"line-1"', '"3"').replace('"cam-1"', '"left"')
        config.write_text(f'state = "state"\n{text}')
        with StationProcess(config, folder / "log") as station:
            desk.next_score()
            yield Mill(folder, line, broker, desk, metrics, station)
