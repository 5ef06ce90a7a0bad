"""A camera that lies, on a real station: known as what it is, no defect, and over when it is over."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from station.messages import Alert, Health, Status
from tests.faults.conftest import Fault
from tests.support.bundles import make_bundle
from tests.support.camera_faults import (
    defocused,
    dimmed,
    flickering,
    overexposed,
    railed,
    recoloured,
    shifted,
    tinted,
)
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, Mosquitto, Subscriber
from tests.support.station_process import StationProcess, station
from tests.support.webs import web

pytestmark = pytest.mark.e2e

PATIENCE = 90.0  # seconds; one is enough on a quiet machine
PICTURES = 100  # then the web comes round again
SIZE = (192, 256)

Spoil = Callable[[np.ndarray, int], np.ndarray]


def brown(number: int) -> np.ndarray:
    """A reddish web between rails that stand still: every rule can work on it."""
    number %= PICTURES
    return railed(tinted(web(number, SIZE), 0.8, 1.2), number)


class Plant:
    """One calibrated station, its camera and its broker."""

    def __init__(self, folder: Path, camera: MjpegServer, subscriber: Subscriber) -> None:
        self.folder, self.camera, self.subscriber = folder, camera, subscriber
        self.config = folder / "station.toml"

    def calibrate(self, broker: Mosquitto) -> None:
        """As a plant would: with the station's own command, from the camera."""
        make_bundle(self.folder / "bundle")
        self.configure(broker.port, threshold=None)
        done = station("calibrate", "--config", self.config, "--frames", "60", timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        # So few frames fix no threshold; well above the highest is far below what the faults would score.
        highest = json.loads((self.folder / "calibration.json").read_text())["good"]["quantiles"]["1"]
        self.configure(broker.port, threshold=1.3 * highest)

    def configure(self, port: int, *, threshold: float | None, ignore: tuple[str, ...] = ()) -> None:
        judge = f"[judge]\nthreshold = {threshold}" if threshold else ""
        self.config.write_text(
            f"""
            bundle = "bundle"
            calibration = "calibration.json"
            state = "state"
            [station]
            site = "plant"
            line = "line-1"
            name = "cam-1"
            [camera]
            url = "{self.camera.url}"
            read_timeout = 1.0
            reconnect_max = 0.5
            [mqtt]
            host = "{HOST}"
            port = {port}
            [health]
            interval = 0.5
            frozen_after = 1.0
            recover_after = 0.5
            ignore = {list(ignore)}
            {judge}
            """
        )
        self.threshold = threshold

    def statuses(self) -> list[Status]:
        return [Status.model_validate_json(payload) for payload in self.subscriber.on("/status")]

    def healths(self) -> list[Health]:
        return [Health.model_validate_json(payload) for payload in self.subscriber.on("/health")]

    def alerts(self) -> list[Alert]:
        return [Alert.model_validate_json(payload) for payload in self.subscriber.on("/alert")]

    def state(self) -> tuple[str, str]:
        """Latest state and the code of its first reason, "" for none."""
        statuses = self.statuses()
        if not statuses:
            return "", ""
        return statuses[-1].state, "".join(statuses[-1].reasons[:1]).partition(":")[0]

    def wait(self, found: Callable[[], object]) -> None:
        self.subscriber.wait_for(lambda _: found(), timeout=PATIENCE)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    with (
        MjpegServer(fps=25, picture=brown) as camera,
        Mosquitto(folder) as broker,
        Subscriber(broker.port) as subscriber,
    ):
        plant = Plant(folder, camera, subscriber)
        plant.calibrate(broker)
        with StationProcess(plant.config, folder / "log") as process:
            plant.wait(lambda: plant.state() == ("online", "") and plant.healths())
            yield plant
            process.signal(signal.SIGTERM)
            assert process.wait() == 0


def lies(plant: Plant, fault: Fault, what: str, code: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Make the camera lie for a while, and see what the station says and does meanwhile."""
    fault.injected = f"camera: {what}"
    fault.expected = f"degraded with {code} in status and health, no alert, online again afterwards"
    plant.wait(lambda: plant.state() == ("online", ""))
    statuses, healths, alerts = len(plant.statuses()), len(plant.healths()), len(plant.alerts())
    begin()
    try:
        plant.wait(lambda: plant.state()[0] == "degraded")
        plant.wait(lambda: plant.state()[1] == code)
        plant.wait(lambda: any((h.camera.fault or "").startswith(f"{code}: ") for h in plant.healths()[healths:]))
        if code not in {"camera-stalled", "camera-unplugged"}:  # and on: not the first frames only
            frames = plant.healths()[-1].camera.frames
            plant.wait(lambda: plant.healths()[-1].camera.frames > frames + 20)
    finally:
        end()
        said = sorted({r.partition(":")[0] for s in plant.statuses()[statuses:] for r in s.reasons})
        fault.seen = f"said {', '.join(said) or 'nothing'}; {len(plant.alerts()) - alerts} alerts; never online again"
    plant.wait(lambda: plant.state() == ("online", ""))
    inspected = plant.healths()[-1].inspected
    plant.wait(lambda: plant.healths()[-1].inspected > inspected)
    raised = len(plant.alerts()) - alerts
    fault.seen = f"degraded with {', '.join(said)}, {raised or 'no'} alerts, online again"
    assert not raised
    assert code in said


SPOILT: dict[str, tuple[str, Spoil]] = {
    "black, the cap is on the lens": ("camera-black", lambda image, i: dimmed(image, 0, i)),
    "dark, half of the light is gone": ("camera-dark", lambda image, i: dimmed(image, 0.5, i)),
    "saturated": ("camera-saturated", lambda image, _: overexposed(image, 20)),
    "too bright by 60 %": ("camera-bright", lambda image, _: overexposed(image, 1.6)),
    "out of focus": ("camera-blurred", lambda image, i: defocused(image, 3, 2, i)),
    "moved by 16 pixels": ("camera-moved", lambda image, _: shifted(image, 16, 4)),
    "red and blue exchanged": ("camera-colours", lambda image, _: recoloured(image)),
    "flickers by 15 %": ("camera-flicker", lambda image, i: flickering(image, 0.15, i)),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_picture(plant: Plant, fault: Fault, what: str) -> None:
    code, spoil = SPOILT[what]
    lies(plant, fault, what, code, lambda: setattr(plant.camera, "spoil", spoil), lambda: heal(plant))


def heal(plant: Plant) -> None:
    plant.camera.spoil, plant.camera.lost = None, 0.0
    plant.camera.thaw()
    plant.camera.resume()


def test_frozen(plant: Plant, fault: Fault) -> None:
    lies(plant, fault, "frozen", "camera-frozen", plant.camera.freeze, lambda: heal(plant))


def test_truncated_jpeg_in_the_stream(plant: Plant, fault: Fault) -> None:
    """The stream goes on; FFmpeg fills what is missing from the picture before."""
    what = "the last 40 % of every JPEG is missing, the stream goes on"
    lies(plant, fault, what, "camera-truncated", lambda: setattr(plant.camera, "lost", 0.4), lambda: heal(plant))


def test_wrong_resolution_after_a_reconnect(plant: Plant, fault: Fault) -> None:
    def smaller() -> None:
        plant.camera.spoil = lambda image, _: cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA)
        plant.camera.drop()

    def as_before() -> None:
        heal(plant)
        plant.camera.drop()

    lies(plant, fault, "hangs up and comes back with another resolution", "camera-size", smaller, as_before)


def test_stalled(plant: Plant, fault: Fault) -> None:
    """The connection stays open, and nothing comes."""
    lies(
        plant, fault, "falls silent with the connection open", "camera-stalled", plant.camera.stall, lambda: heal(plant)
    )


def test_a_stream_that_breaks_off_in_mid_picture(plant: Plant, fault: Fault) -> None:
    fault.injected = "camera: hangs up in the middle of a JPEG, five times"
    fault.expected = "connected again each time, no alert"
    plant.wait(lambda: plant.state() == ("online", ""))
    alerts, first = len(plant.alerts()), plant.healths()[-1].camera.reconnects
    for _ in range(5):
        reconnects = plant.healths()[-1].camera.reconnects
        plant.camera.drop(in_mid_picture=True)
        plant.wait(lambda before=reconnects: plant.healths()[-1].camera.reconnects > before)
    plant.wait(lambda: plant.state() == ("online", ""))
    raised = len(plant.alerts()) - alerts
    fault.seen = f"connected again {plant.healths()[-1].camera.reconnects - first} times, {raised or 'no'} alerts"
    assert not raised


def test_unplugged(plant: Plant, fault: Fault) -> None:
    lies(plant, fault, "unplugged: nobody listens", "camera-unplugged", plant.camera.unplug, plant.camera.plug_in)


def test_a_defect_that_fills_most_of_the_web_is_no_camera_fault(plant: Plant, fault: Fault) -> None:
    """The other way round."""
    fault.injected = "no fault: a hole takes the web away over 80 % of the frame"
    fault.expected = "an alert, and no camera fault"
    plant.wait(lambda: plant.state() == ("online", ""))
    statuses, alerts = len(plant.statuses()), len(plant.alerts())

    def hole(number: int) -> np.ndarray:
        image = web(number % PICTURES, SIZE).copy()
        noise = np.random.default_rng(number).normal(0, 2, (SIZE[0], SIZE[1], 1))
        image[: SIZE[0] * 4 // 5] = np.clip(25 + noise, 0, 255)[: SIZE[0] * 4 // 5]
        return railed(tinted(image, 0.8, 1.2), number)

    plant.camera.picture = hole
    try:
        plant.wait(lambda: len(plant.alerts()) > alerts)
        time.sleep(1)  # of the hole
    finally:
        plant.camera.picture = brown
    plant.wait(lambda: plant.alerts()[-1].event == "close")
    faults = [reason for status in plant.statuses()[statuses:] for reason in status.reasons]
    fault.seen = (
        f"alert {', '.join(alert.event for alert in plant.alerts()[alerts:][:2])} …; {faults or 'no camera fault'}"
    )
    assert plant.alerts()[alerts].event == "open"
    assert not faults


def test_without_its_rule_a_black_picture_is_an_alert(tmp_path: Path, plant: Plant, fault: Fault) -> None:
    """What the rules are for, and that this test would see it."""
    fault.injected = "camera: black, with the rules for light, focus and landmarks switched off (health.ignore)"
    fault.expected = "an alert: nothing else holds it back"
    with (
        MjpegServer(fps=25, picture=brown) as camera,
        Mosquitto(tmp_path) as broker,
        Subscriber(broker.port) as subscriber,
    ):
        other = Plant(tmp_path, camera, subscriber)
        shutil.copytree(plant.folder / "bundle", tmp_path / "bundle")
        shutil.copy(plant.folder / "calibration.json", tmp_path)
        off = ("camera-black", "camera-dark", "camera-blurred", "camera-moved")
        other.configure(broker.port, threshold=plant.threshold, ignore=off)
        with StationProcess(other.config, tmp_path / "log"):
            other.wait(lambda: other.state() == ("online", ""))
            assert not other.alerts()
            camera.spoil = lambda image, i: dimmed(image, 0, i)
            other.wait(other.alerts)
            fault.seen = f"an alert, {other.alerts()[0].event}"
