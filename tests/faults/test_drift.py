"""Scores that drift, on a real station: told, not mistaken, and mended by recalibration. And the parts beside them."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.images import read_image
from station.calibration import Calibration
from station.messages import Alert, Health, Status
from station.recent import read_ring
from tests.faults.conftest import Fault
from tests.support.bundles import GREY, make_bundle
from tests.support.desk import Desk
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, Mosquitto, free_port
from tests.support.small_disk import SmallDisk
from tests.support.station_process import REPOSITORY, StationProcess, station

pytestmark = pytest.mark.e2e

PREFIX = "station/v1/plant/line-1/cam-1"
WINDOW = 100
PATIENCE = 120.0  # seconds; a window takes two on a quiet machine


class Material:
    """A grey web, some of it rougher than other; the toy bundle scores the roughness."""

    def __init__(self) -> None:
        self.roughness = (3.0, 6.0)  # grey levels
        self.defects = range(0)  # numbers of pictures
        self.given = 0

    def picture(self, number: int) -> np.ndarray:
        rng = np.random.default_rng(number)
        image = GREY + rng.normal(0, rng.uniform(*self.roughness), (96, 128, 1)).repeat(3, axis=2)
        self.given = number
        if number in self.defects:
            image[24:32, 40:60] = 20
        return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def material() -> Material:
    return Material()


@pytest.fixture
def camera(material: Material) -> Iterator[MjpegServer]:
    with MjpegServer(fps=25, picture=material.picture) as camera:
        yield camera


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Mosquitto(tmp_path) as broker, Desk(broker.port, PREFIX) as desk:
        yield desk


@pytest.fixture
def config(tmp_path: Path, camera: MjpegServer, desk: Desk) -> Path:
    """Settings of a calibrated station."""
    make_bundle(tmp_path / "bundle")
    config = tmp_path / "station.toml"
    config.write_text(
        f"""
        bundle = "bundle"
        calibration = "calibration.json"
        state = "state"
        [station]
        site = "plant"
        line = "line-1"
        name = "cam-1"
        [camera]
        url = "{camera.url}"
        [mqtt]
        host = "{HOST}"
        port = {desk._port}
        [health]
        interval = 0.5
        drift_window = {WINDOW}
        drift_every = 0
        recent_every = 0.05
        recent_mib = 1
        """
    )
    camera.fps = 100  # no need to wait for good frames
    done = station("calibrate", "--config", str(config), "--frames", "150", timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    camera.fps = 50
    return config


def health(desk: Desk) -> Health:
    return Health.model_validate_json(desk.on("/health")[-1])


def states(desk: Desk) -> list[str]:
    return [Status.model_validate_json(payload).state for payload in desk.on("/status")]


def wait_for_health(desk: Desk, state: str, direction: str | None = None) -> None:
    def found(_: object) -> bool:
        if not desk.on("/health"):
            return False
        drift = health(desk).drift
        return (drift.state, drift.direction) == (state, direction)

    desk.wait_for(found, timeout=PATIENCE)


def drift_reasons(desk: Desk) -> list[str]:
    return [reason for reason in health(desk).reasons if reason.startswith("scores-drift")]


@pytest.mark.slow
def test_drift_is_told_and_recalibration_mends_it(
    fault: Fault, tmp_path: Path, material: Material, desk: Desk, config: Path
) -> None:
    fault.injected = "scores rise within their range, for good; then calibrate --from-recent and reload"
    fault.expected = "health: drift, higher; status online but while it reloads; then stable"
    calibration = tmp_path / "calibration.json"
    before = Calibration.model_validate_json(calibration.read_bytes())
    with StationProcess(config, tmp_path / "log"):
        wait_for_health(desk, "stable")
        material.roughness = (5.0, 6.0)
        wait_for_health(desk, "drift", "higher")
        told, [reason] = health(desk).drift, drift_reasons(desk)
        ring = tmp_path / "state/recent"
        last = read_ring(ring)[-1].number  # what is kept from here on is of the new material
        desk.wait_for(lambda _: read_ring(ring)[0].number > last, timeout=PATIENCE)
        done = station(
            "calibrate", "--config", str(config), "--from-recent", "--include-anomalous", "--yes", timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        after = Calibration.model_validate_json(calibration.read_bytes())
        assert desk.ask("reload").ok
        desk.wait_for(lambda _: health(desk).drift.state == "unknown", timeout=PATIENCE)
        wait_for_health(desk, "stable")
        mended = health(desk).drift
        desk.wait_for(lambda _: not drift_reasons(desk), timeout=PATIENCE)
        status = [Status.model_validate_json(payload) for payload in desk.on("/status")]
    fault.seen = (
        f"drift {told.direction}, effect {told.effect:.2f}; median of good scores {before.good.median:.1f} -> "
        f"{after.good.median:.1f}; after the reload {mended.state}, effect {mended.effect:.2f}; status "
        + ", ".join(dict.fromkeys(" ".join((text.state, *text.reasons)) for text in status))
    )
    assert told.effect >= 0.71
    assert told.p_value <= 0.01
    assert reason.startswith("scores-drift: higher than at calibration: ")
    assert after.good.median > before.good.median
    assert len(list(tmp_path.glob("calibration.json.*.bak"))) == 1
    # Between two sessions the station says that it reloads; drift itself is no reason to be degraded.
    assert all(reason.startswith("reloading") for text in status for reason in text.reasons)


@pytest.mark.slow
def test_lower_scores_are_drift_too(fault: Fault, tmp_path: Path, material: Material, desk: Desk, config: Path) -> None:
    fault.injected = "scores fall below those of the calibration, for good"
    fault.expected = "health: drift, lower; status online; no alert; over when the scores are back"
    with StationProcess(config, tmp_path / "log"):
        wait_for_health(desk, "stable")
        alerts = len(desk.on("/alert"))
        material.roughness = (3.0, 3.6)
        wait_for_health(desk, "drift", "lower")
        told, more_alerts = health(desk).drift, len(desk.on("/alert")) - alerts
        material.roughness = (3.0, 6.0)
        wait_for_health(desk, "stable")
        desk.wait_for(lambda _: not drift_reasons(desk), timeout=PATIENCE)
        status = states(desk)
    fault.seen = f"drift {told.direction}, effect {told.effect:.2f}; {more_alerts} alerts; status {', '.join(status)}"
    assert told.effect <= 0.29
    assert more_alerts == 0
    assert status == ["online"]


@pytest.mark.slow
def test_a_burst_of_defects_is_no_drift(
    fault: Fault, tmp_path: Path, material: Material, desk: Desk, config: Path
) -> None:
    fault.injected = "every frame defective for a quarter of the drift window"
    fault.expected = "an alert; no drift"
    with StationProcess(config, tmp_path / "log"):
        wait_for_health(desk, "stable")
        heard, inspected = len(desk.on("/health")), health(desk).inspected
        material.defects = range(material.given + 5, material.given + 5 + WINDOW // 4)
        desk.wait_for(lambda _: desk.on("/alert"), timeout=PATIENCE)
        desk.wait_for(lambda _: health(desk).inspected > inspected + 3 * WINDOW, timeout=PATIENCE)
    found = [Health.model_validate_json(payload).drift.state for payload in desk.on("/health")[heard:]]
    peak = max(Alert.model_validate_json(payload).peak_score for payload in desk.on("/alert"))
    fault.seen = f"{len(desk.on('/alert'))} alert messages, peak score {peak:.0f}; drift always {', '.join(set(found))}"
    assert set(found) == {"stable"}


def test_recent_frames_survive_kills(fault: Fault, tmp_path: Path) -> None:
    fault.injected = "5 SIGKILLs at random moments of writing recent frames"
    fault.expected = "every frame that was written is whole, in its place and numbered once"
    rng, ring, written = np.random.default_rng(), tmp_path / "recent", []
    script = (
        "import sys, numpy as np\n"
        "from datetime import datetime, timezone\n"
        "from pathlib import Path\n"
        "from station.frames import Frame\n"
        "from station.recent import RecentFrames\n"
        "from station.settings import HealthSettings\n"
        "ring = RecentFrames(Path(sys.argv[1]), HealthSettings(recent_every=0, recent_mib=4))\n"
        "rng = np.random.default_rng()\n"
        "while True:\n"
        "    image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)\n"
        "    ring.keep(Frame(1, image, datetime.now(timezone.utc), 0.0), float(image[0, 0, 0]), anomalous=False)\n"
        "    assert ring.trouble is None\n"
        "    print(ring._last_number, flush=True)\n"
    )
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", script, ring], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        numbers = [int(child.stdout.readline())]
        time.sleep(rng.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        numbers += [int(line) for line in child.communicate()[0].split()]
        written += numbers
    found = read_ring(ring)
    for frame in found:
        assert read_image(frame.path)[0, 0, 0] == frame.score
    kept = [frame.number for frame in found]
    halves = [path.name for path in ring.iterdir() if path.name.startswith(".")]
    fault.seen = f"{len(written)} frames written, {len(kept)} in the ring, all whole; {len(halves)} half file left over"
    assert written == sorted(set(written))
    assert kept == sorted(set(kept))
    assert set(written[-50:]) <= set(kept)
    assert len(halves) <= 1, "what an earlier kill left is cleared away"
    assert sum(frame.size for frame in found) <= 4 * 2**20


def test_recent_frames_on_a_full_disk(fault: Fault, tmp_path: Path, desk: Desk, config: Path) -> None:
    fault.injected = "the disk of the recent frames full, then room again"
    fault.expected = "health says recent-frames; status online, inspection goes on; kept again with room"
    with SmallDisk(tmp_path) as disk:
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state/recent").symlink_to(disk.folder)
        with StationProcess(config, tmp_path / "log"):
            desk.wait_for(lambda _: read_ring(disk.folder), timeout=PATIENCE)
            desk.wait_for(lambda _: desk.on("/health"), timeout=PATIENCE)
            disk.fill()
            desk.wait_for(lambda _: any("recent-frames" in text for text in health(desk).reasons), timeout=PATIENCE)
            told, inspected = health(desk).reasons, health(desk).inspected
            desk.wait_for(lambda _: health(desk).inspected > inspected + 25, timeout=PATIENCE)
            disk.make_room()
            desk.wait_for(lambda _: not health(desk).reasons, timeout=PATIENCE)
            ring, status = read_ring(disk.folder), states(desk)
    fault.seen = f"{told[0]}; status {', '.join(status)}; {len(ring)} frames in the ring, no reason left"
    assert len(told) == 1
    assert told[0].startswith("recent-frames: no space left on device")
    assert status == ["online"]


def test_a_metrics_port_that_is_taken(fault: Fault, tmp_path: Path, desk: Desk, config: Path) -> None:
    fault.injected = "the port for Prometheus taken by another program; on the next start free"
    fault.expected = "health says metrics-port; status online; then metrics that agree with health"
    port = free_port()
    with socket.create_server((HOST, port)), StationProcess(config, tmp_path / "log", STATION_METRICS__PORT=str(port)):
        desk.wait_for(lambda _: desk.on("/health") and health(desk).inspected, timeout=PATIENCE)
        reasons, status = health(desk).reasons, states(desk)
    with StationProcess(config, tmp_path / "log2", STATION_METRICS__PORT=str(port)):
        heard = len(desk.on("/health"))
        desk.wait_for(lambda _: len(desk.on("/health")) > heard and health(desk).inspected, timeout=PATIENCE)
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        first = int(float(text.split("\nstation_frames_inspected_total ")[1].split("\n")[0]))
    fault.seen = f"{reasons[0]}; status {status[0]}; then {first} frames inspected by the metrics"
    assert reasons == (f"metrics-port: address already in use ({HOST} port {port}): no metrics are served",)
    assert status == ["online"]
    assert first >= 1
    assert 'station_state{state="online"} 1.0' in text
