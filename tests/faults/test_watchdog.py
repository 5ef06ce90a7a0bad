"""The watchdog under a real systemd: an engine that hangs is started anew, what the station knows and says is not."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from station.messages import Info, Status
from tests.faults.conftest import Fault
from tests.support.bundles import GREY, make_bundle
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, Mosquitto, Subscriber, need
from tests.support.systemd_root import SHARED, SystemdRoot

UNIT = "station@cam-1"
PREFIX = "station/v1/site/line/station"
WATCHDOG = 4  # seconds; 30 in the unit
PATIENCE = 2 * WATCHDOG  # a watchdog that is not fed has bitten by then
HANG = "/var/lib/cbigan-station/cam-1/hang"


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    with MjpegServer(fps=10, picture=lambda _: np.full((96, 128, 3), GREY, np.uint8)) as camera:
        yield camera


@pytest.fixture
def root(tmp_path: Path, camera: MjpegServer, broker: Mosquitto) -> Iterator[SystemdRoot]:
    with SystemdRoot(tmp_path) as root:
        root.add_user()
        make_bundle(root.shared / "bundle")
        root.put(
            "/etc/cbigan-station/cam-1.toml",
            f"""
            bundle = "{SHARED}/bundle"
            [camera]
            url = "{camera.url}"
            read_timeout = 1.0
            reconnect_max = 0.5
            [judge]
            threshold = 40
            [mqtt]
            host = "{HOST}"
            port = {broker.port}
            """,
        )
        for name, secret in (("mqtt_password", "unused"), ("camera_url", camera.url)):
            root.put(f"/etc/cbigan-station/credentials/cam-1/{name}", secret, 0o600)
        root.put_unit(
            "tests.support.hanging_station",
            f"WatchdogSec={WATCHDOG}\nTimeoutStartSec=30\nRestartSec=100ms",
            f"HANG_WHEN_THERE={HANG}",
        )
        yield root


def states(subscriber: Subscriber) -> list[str]:
    return [Status.model_validate_json(payload).state for payload in subscriber.on("/status")]


def look(root: SystemdRoot) -> str:
    return f"{root.show(UNIT, 'ActiveState')}, {root.show(UNIT, 'NRestarts')} restarts"


def start(root: SystemdRoot, subscriber: Subscriber) -> None:
    root.run("systemctl", "start", UNIT)  # returns once the station has said READY=1
    subscriber.wait_for(lambda _: states(subscriber)[-1:] == ["online"])


@pytest.mark.e2e
def test_an_engine_that_hangs_is_killed_and_started_again(
    root: SystemdRoot, subscriber: Subscriber, fault: Fault
) -> None:
    fault.injected = f"the engine's score() never returns (a double), WatchdogSec={WATCHDOG}, real systemd"
    fault.expected = "SIGABRT with every thread's stack in the journal, then a new station that inspects"
    start(root, subscriber)
    scores = len(subscriber.on("/score"))
    root.put(HANG, "")
    root.wait_for(lambda: root.show(UNIT, "NRestarts") == "1", "the restart")
    root.wait_for(lambda: root.show(UNIT, "ActiveState") == "active", "the station that comes back")
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "online" and len(subscriber.on("/score")) > scores + 3)
    log = (root.shared / "station.log").read_text()
    stacks = "Fatal Python error: Aborted" in log and "hanging_station.py" in log
    fault.seen = f"{look(root)}; {' → '.join(states(subscriber))}; {'stacks' if stacks else 'no stacks'} in the journal"
    assert stacks
    assert states(subscriber) == ["online", "offline", "online"]


@pytest.mark.e2e
@pytest.mark.slow
def test_an_absent_camera_is_no_reason_for_a_restart(
    root: SystemdRoot, subscriber: Subscriber, camera: MjpegServer, fault: Fault
) -> None:
    fault.injected = f"no camera for {PATIENCE:.0f} s: before the start, and while at work; WatchdogSec={WATCHDOG}"
    fault.expected = "degraded, no restart; online when the camera comes"
    camera.stall()
    root.run("systemctl", "start", "--no-block", UNIT)
    subscriber.wait_for(lambda _: states(subscriber) == ["degraded"])
    time.sleep(PATIENCE)
    before = look(root)
    camera.resume()
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "online")
    root.wait_for(lambda: root.show(UNIT, "ActiveState") == "active", "READY=1")
    camera.stall()
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "degraded")
    time.sleep(PATIENCE)
    camera.resume()
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "online")
    fault.seen = f"at the start {before}; at work {look(root)}; {' → '.join(states(subscriber))}"
    assert before == "activating, 0 restarts"
    assert look(root) == "active, 0 restarts"


@pytest.mark.e2e
@pytest.mark.slow
def test_an_absent_broker_is_no_reason_for_a_restart(
    root: SystemdRoot, subscriber: Subscriber, broker: Mosquitto, camera: MjpegServer, fault: Fault
) -> None:
    fault.injected = (
        f"broker killed for {PATIENCE:.0f} s, then the camera stalled too for as long; WatchdogSec={WATCHDOG}"
    )
    fault.expected = "no restart; online again when both are back"
    start(root, subscriber)
    broker.kill()
    time.sleep(PATIENCE)
    without_broker = look(root)
    camera.stall()
    time.sleep(PATIENCE)
    without_both = look(root)
    camera.resume()
    broker.start()
    with Subscriber(broker.port) as late:
        late.wait_for(lambda _: states(late)[-1:] == ["online"], timeout=60)
    fault.seen = f"without broker {without_broker}; without both {without_both}; then {look(root)}"
    assert {without_broker, without_both, look(root)} == {"active, 0 restarts"}


@pytest.mark.e2e
def test_wrong_settings_are_not_tried_again(root: SystemdRoot, fault: Fault) -> None:
    fault.injected = "a misspelt key in the settings"
    fault.expected = "exit code 78, failed, no restart"
    settings = root.path("/etc/cbigan-station/cam-1.toml")
    settings.write_text(settings.read_text().replace("threshold =", "treshold ="))
    done = root.run("systemctl", "start", UNIT, check=False)
    time.sleep(1)  # ten times RestartSec
    fault.seen = f"exit code {root.show(UNIT, 'ExecMainStatus')}, {look(root)}"
    assert done.returncode != 0
    assert "did you mean judge.threshold?" in (root.shared / "station.log").read_text()
    assert fault.seen == "exit code 78, failed, 0 restarts"


@pytest.mark.e2e
def test_a_station_that_always_falls_uses_its_budget_up(root: SystemdRoot, fault: Fault) -> None:
    fault.injected = "a bundle that is not there; StartLimitBurst=3 instead of 10"
    fault.expected = "started three times, then left alone"
    for file in (root.shared / "bundle").iterdir():
        file.unlink()
    root.put("/etc/systemd/system/station@.service.d/budget.conf", "[Unit]\nStartLimitBurst=3\n")
    root.run("systemctl", "daemon-reload")
    root.run("systemctl", "start", UNIT, check=False)
    root.wait_for(lambda: root.show(UNIT, "ActiveState") == "failed", "the end")
    starts = (root.shared / "station.log").read_text().count("manifest.json: missing")
    fault.seen = f"{starts} starts, {root.show(UNIT, 'ActiveState')}"
    assert fault.seen == "3 starts, failed"


@pytest.mark.e2e
def test_a_pause_is_no_reason_for_a_restart(
    root: SystemdRoot, subscriber: Subscriber, broker: Mosquitto, fault: Fault
) -> None:
    fault.injected = f"paused for {PATIENCE:.0f} s by command; WatchdogSec={WATCHDOG}"
    fault.expected = "degraded, no restart; online after resume"
    start(root, subscriber)
    command = [need("mosquitto_pub"), "-h", HOST, "-p", str(broker.port), "-q", "1", "-m", "{}", "-t"]
    subprocess.run([*command, f"{PREFIX}/cmd/pause"], check=True)
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "degraded")
    time.sleep(PATIENCE)
    paused = look(root)
    subprocess.run([*command, f"{PREFIX}/cmd/resume"], check=True)
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "online")
    fault.seen = f"{paused}; {' → '.join(states(subscriber))}"
    assert paused == look(root) == "active, 0 restarts"


@pytest.mark.e2e
def test_systemctl_reload_kill_and_stop(root: SystemdRoot, subscriber: Subscriber, fault: Fault) -> None:
    fault.injected = "systemctl reload with another threshold, kill --signal=SIGKILL, stop"
    fault.expected = "the threshold without a restart; started again; stopped, and said so"
    start(root, subscriber)
    pid = root.show(UNIT, "MainPID")
    settings = root.path("/etc/cbigan-station/cam-1.toml")
    settings.write_text(settings.read_text().replace("threshold = 40", "threshold = 41"))
    root.run("systemctl", "reload", UNIT)
    subscriber.wait_for(lambda _: Info.model_validate_json(subscriber.on("/info")[-1]).threshold == 41)
    reloaded = "same process" if root.show(UNIT, "MainPID") == pid else "another process"
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "online")
    root.run("systemctl", "kill", "--signal", "SIGKILL", UNIT)
    root.wait_for(lambda: look(root) == "active, 1 restarts", "the restart")
    subscriber.wait_for(lambda _: states(subscriber)[-2:] == ["offline", "online"])
    root.run("systemctl", "stop", UNIT)
    subscriber.wait_for(lambda _: states(subscriber)[-1] == "stopped")
    fault.seen = (
        f"threshold 41 in the {reloaded}; {look(root)}, {root.show(UNIT, 'Result')}; last {states(subscriber)[-1]}"
    )
    assert reloaded == "same process"
    assert root.show(UNIT, "Result") == "success"
