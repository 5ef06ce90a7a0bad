"""Commands that must change nothing, sent to a real station, and the threshold that must hold."""

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.control import MAX_PAYLOAD
from station.messages import Reply, Status
from tests.e2e.test_station_run import PREFIX, Line, wait_for_log, write_config
from tests.faults.conftest import Fault
from tests.station.test_control import PAYLOADS, truly_good
from tests.support.desk import Desk
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, Mosquitto, need
from tests.support.station_process import StationProcess

pytestmark = pytest.mark.e2e

BASE = 40  # threshold in the settings
FORTY_FIVE = b'{"threshold": 45, "by": "ann"}'


@dataclass
class Scene:
    """A station at work, and who commands it."""

    folder: Path
    broker: Mosquitto
    desk: Desk
    process: StationProcess

    @property
    def history(self) -> list[dict[str, object]]:
        """Lines of threshold.log."""
        file = self.folder / "state/threshold.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def states(self) -> list[str]:
        return [Status.model_validate_json(payload).state for payload in self.desk.on("/status")]

    def seen(self) -> str:
        """What a fault has changed, in words."""
        score, changes = self.desk.next_score(), len(self.history)
        alerts = len(self.desk.on("/alert"))
        return f"threshold {score.threshold:g}, {self.states()[-1]}, {changes} changes, {alerts} alerts, scores go on"


UNMOVED = f"threshold {BASE}, online, 0 changes, 0 alerts, scores go on"


@contextmanager
def camera_and_broker(folder: Path, **options: object) -> Iterator[tuple[MjpegServer, Mosquitto]]:
    with MjpegServer(fps=25, picture=Line().picture) as camera, Mosquitto(folder, **options) as broker:
        yield camera, broker


@contextmanager
def station(folder: Path, log: str = "log") -> Iterator[StationProcess]:
    with StationProcess(folder / "station.toml", folder / log, STATION_STATE=str(folder / "state")) as process:
        yield process


@contextmanager
def scene(folder: Path, per_minute: int = 600, more: str = "") -> Iterator[Scene]:
    with camera_and_broker(folder) as (camera, broker), Desk(broker.port, PREFIX) as desk:
        write_config(folder, camera.url, broker.port, f"{more}\n[commands]\nper_minute = {per_minute}")
        with station(folder) as process:
            found = Scene(folder, broker, desk, process)
            desk.wait_for(lambda _: found.states() == ["online"], timeout=60)
            yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One station for all the faults that it must not even notice."""
    with scene(tmp_path_factory.mktemp("commanded")) as found:
        yield found


def told(replies: list[Reply]) -> str:
    """How many replies of which kind: "3 expired, 1 ok"."""
    kinds = ["ok" if reply.ok else (reply.error or "").partition(":")[0] for reply in replies]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def test_fuzzed(shared: Scene, fault: Fault) -> None:
    fault.injected = "300 fuzzed payloads (hypothesis) on cmd/set-threshold, over the wire"
    fault.expected = f"each refused with a reason; {UNMOVED}"
    replies: list[Reply] = []
    numbers = itertools.count()

    @settings(max_examples=30, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(PAYLOADS.filter(lambda payload: not truly_good(payload)), min_size=10, max_size=10))
    def send(payloads: list[bytes]) -> None:
        ids = [next(numbers).to_bytes(2, "big") for _ in payloads]
        for id_, payload in zip(ids, payloads, strict=True):
            shared.desk.send("set-threshold", payload, to=f"{PREFIX}/reply/desk", correlation=id_)
        shared.desk.wait_for(lambda _: shared.desk.answers(ids[-1]))
        replies.extend(reply for id_ in ids for reply in shared.desk.answers(id_))

    send()
    seen = shared.seen()
    refused = [reply for reply in replies if not reply.ok and reply.error]
    fault.seen = f"{len(refused)} of {len(replies)} refused; {seen}"
    assert len(refused) == len(replies) == next(numbers) >= 300
    assert seen == UNMOVED


@pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, 2**20, 2**25])
def test_oversized(shared: Scene, fault: Fault, size: int) -> None:
    fault.injected = f"a command of {size:,} bytes"
    fault.expected = f"1 too-large; {UNMOVED}"
    reply = shared.desk.ask("set-threshold", FORTY_FIVE.ljust(size))
    fault.seen = f"{told([reply])}; {shared.seen()}"
    assert fault.seen == fault.expected


def test_unknown(shared: Scene, fault: Fault) -> None:
    fault.injected = "commands that there are not: cmd/reboot, cmd/SHUTDOWN;rm, cmd/ and one with a long name"
    fault.expected = f"4 unknown-command; {UNMOVED}"
    replies = [shared.desk.ask(verb) for verb in ("reboot", "SHUTDOWN;rm", "", "x" * 1000)]
    fault.seen = f"{told(replies)}; {shared.seen()}"
    assert fault.seen == fault.expected


def test_late(shared: Scene, fault: Fault) -> None:
    fault.injected = "station stopped (SIGSTOP) until a command that was sent to it had expired (expires_at)"
    fault.expected = f"1 expired; {UNMOVED}"
    expires_at = datetime.now(timezone.utc) + timedelta(seconds=1)
    correlation = b"late"
    shared.process.signal(signal.SIGSTOP)
    try:
        command = {"threshold": 45, "by": "ann", "expires_at": expires_at.isoformat()}
        shared.desk.send(
            "set-threshold", json.dumps(command).encode(), to=f"{PREFIX}/reply/desk", correlation=correlation
        )
        while datetime.now(timezone.utc) < expires_at:
            time.sleep(0.1)
    finally:
        shared.process.signal(signal.SIGCONT)
    shared.desk.wait_for(lambda _: shared.desk.answers(correlation))
    fault.seen = f"{told(shared.desk.answers(correlation))}; {shared.seen()}"
    assert fault.seen == fault.expected


def test_borrowed_rights(shared: Scene, fault: Fault) -> None:
    fault.injected = "commands whose response topic is another station's command, or the station's own alert"
    fault.expected = f"2 response-topic; {UNMOVED}"
    other = "station/v1/plant/line-1/cam-2/cmd/pause"
    for topic in (other, f"{PREFIX}/alert"):
        shared.desk.send("resume", to=topic)
    shared.desk.wait_for(lambda _: len(shared.desk.replies("resume")) == 2)
    fault.seen = f"{told(shared.desk.replies('resume'))}; {shared.seen()}"
    assert fault.seen == fault.expected
    assert not shared.desk.on("/cam-2/cmd/pause")


def test_cannot_be_kept(shared: Scene, fault: Fault) -> None:
    fault.injected = "set-threshold while threshold.log cannot be written (a folder lies in its place)"
    fault.expected = f"1 threshold-not-kept; {UNMOVED}"
    log = shared.folder / "state/threshold.log"
    log.mkdir()
    reply = shared.desk.ask("set-threshold", FORTY_FIVE)
    fault.seen = f"{told([reply])}; {shared.seen()}"
    log.rmdir()
    assert fault.seen == fault.expected


def test_retained(shared: Scene, fault: Fault) -> None:
    fault.injected = (
        "a retained set-threshold, sent while the station is there and again by the broker at its next log-in"
    )
    fault.expected = f"2 retained; {UNMOVED}"
    desk = shared.desk
    try:
        desk.send("set-threshold", FORTY_FIVE, retain=True)
        desk.wait_for(lambda _: len(desk.replies("set-threshold")) == 1)
        assert desk.ask("reload").ok  # which makes the station log in anew
        desk.wait_for(lambda _: len(desk.replies("set-threshold")) == 2)
        desk.wait_for(lambda _: shared.states()[-1] == "online")
    finally:
        desk.send("set-threshold", b"", retain=True)
    fault.seen = f"{told(desk.replies('set-threshold')[:2])}; {shared.seen()}"
    assert fault.seen == fault.expected


def test_duplicate(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "the same set-threshold (same correlation data) three times, then another with it"
    fault.expected = "3 times the same answer, 1 conflict; threshold 45, online, 1 changes, 0 alerts, scores go on"
    with scene(tmp_path) as found:
        same = [found.desk.ask("set-threshold", FORTY_FIVE, correlation=b"7") for _ in range(3)]
        other = found.desk.ask("set-threshold", b'{"threshold": 50, "by": "ann"}', correlation=b"7")
        equal = sum(reply.ok and (reply.result, reply.at) == (same[0].result, same[0].at) for reply in same)
        fault.seen = f"{equal} times the same answer, {told([other])}; {found.seen()}"
        assert fault.seen == fault.expected


def test_flood(tmp_path: Path, fault: Fault) -> None:
    limit = 30
    fault.injected = f"3,000 commands at once, {limit} a minute allowed"
    fault.expected = f"at most {limit} obeyed, then one refusal a second; {UNMOVED}"
    with scene(tmp_path, per_minute=limit) as found:
        started = time.monotonic()
        for _ in range(3000):
            found.desk.send("resume", qos=0)
        found.desk.wait_for(lambda _: any("rate-limited" in (r.error or "") for r in found.desk.replies("resume")))
        seen = found.seen()
        answers = found.desk.replies("resume")
        obeyed = sum(reply.ok for reply in answers)
        seconds = time.monotonic() - started
        fault.seen = f"{obeyed} obeyed, {len(answers) - obeyed} refusals in {seconds:.0f} s; {seen}"
        assert seen == UNMOVED
        assert 1 <= obeyed <= limit
        assert len(answers) - obeyed <= seconds + 1


def test_property_that_the_client_library_refuses(tmp_path: Path, fault: Fault) -> None:
    """MQTT 5 allows U+FEFF and Mosquitto forwards it; paho-mqtt takes it for a malformed packet and hangs up."""
    fault.injected = "a command with U+FEFF in its response topic, at which paho-mqtt breaks the connection off"
    fault.expected = f"a new connection, commands are answered again; {UNMOVED}"
    with scene(tmp_path) as found:
        publish = [need("mosquitto_pub"), "-V", "5", "-h", HOST, "-p", str(found.broker.port), "-q", "1"]
        topic = ["-t", f"{PREFIX}/cmd/resume", "-D", "publish", "response-topic", "desk\ufeff"]
        subprocess.run([*publish, *topic, "-m", "{}"], check=True, timeout=20)
        wait_for_log(found.process, "connection lost")
        deadline = time.monotonic() + 60
        while not found.desk.replies("resume") and time.monotonic() < deadline:  # it may be asked before it is back
            found.desk.send("resume")
            time.sleep(0.5)
        ok = any(reply.ok for reply in found.desk.replies("resume"))
        back = found.process.log.count("connected to the broker") > 1
        fault.seen = (
            f"{'a new' if back else 'no new'} connection, commands are {'answered again' if ok else 'not answered'}; "
            f"{found.seen()}"
        )
        assert fault.seen == fault.expected


def test_unauthorised(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "set-threshold by a user whom the broker's access list lets read only"
    fault.expected = f"refused by the broker, no answer; {UNMOVED}"
    users = {"station": "s", "operator": "o", "guest": "g"}
    rights = tmp_path / "acl"
    rights.write_text(
        f"user station\ntopic readwrite {PREFIX}/#\n"
        f"user operator\ntopic read #\ntopic write {PREFIX}/cmd/#\n"
        "user guest\ntopic read #\n"
    )
    with (
        camera_and_broker(tmp_path, options=[f"acl_file {rights}"], users=users) as (camera, broker),
        Desk(broker.port, PREFIX, login=("operator", "o")) as desk,
        Desk(broker.port, PREFIX, login=("guest", "g")) as guest,
    ):
        write_config(tmp_path, camera.url, broker.port, 'username = "station"\npassword = "s"')
        with station(tmp_path) as process:
            found = Scene(tmp_path, broker, desk, process)
            desk.wait_for(lambda _: found.states() == ["online"], timeout=60)
            reasons: list[str] = []
            guest._client.on_publish = lambda *arguments: reasons.append(str(arguments[3]))
            guest.send("set-threshold", FORTY_FIVE)
            guest.wait_for(lambda _: reasons)
            assert desk.ask("resume").ok  # sent later, and answered: what was to come from the guest's has come
            refused = "refused by the broker" if reasons == ["Not authorized"] else reasons[0]
            answered = "answered" if desk.replies("set-threshold") else "no answer"
            fault.seen = f"{refused}, {answered}; {found.seen()}"
            assert fault.seen == fault.expected


def test_killed_after_the_answer(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "SIGKILL as soon as set-threshold was answered; later another base threshold in the settings"
    fault.expected = "threshold 45 after the restart, recorded with who and when; 41 with the new base"
    with camera_and_broker(tmp_path) as (camera, broker), Desk(broker.port, PREFIX) as desk:
        config = write_config(tmp_path, camera.url, broker.port)
        with station(tmp_path) as process:
            desk.wait_for(lambda _: desk.on("/score"), timeout=60)
            reply = desk.ask("set-threshold", FORTY_FIVE)
            process.signal(signal.SIGKILL)
            process.wait()
        assert reply.ok
        with station(tmp_path, "log-2") as process:
            kept = desk.next_score().threshold
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        [change] = Scene(tmp_path, broker, desk, process).history
        config.write_text(config.read_text().replace(f"threshold = {BASE}", "threshold = 41"))
        with station(tmp_path, "log-3"):
            fresh = desk.next_score().threshold
    who = "recorded with who and when" if change["by"] == "ann" and change["at"] else f"recorded as {change}"
    fault.seen = f"threshold {kept:g} after the restart, {who}; {fresh:g} with the new base"
    assert fault.seen == fault.expected
    assert (change["what"], change["from"], change["to"]) == ("set", BASE, 45)


def test_damaged_file(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "threshold.json overwritten with zeros before the start"
    fault.expected = f"degraded (threshold-corrupt), threshold {BASE}, moved aside; a new one set: online, 45"
    (tmp_path / "state").mkdir()
    (tmp_path / "state/threshold.json").write_bytes(bytes(512))
    with camera_and_broker(tmp_path) as (camera, broker), Desk(broker.port, PREFIX) as desk:
        write_config(tmp_path, camera.url, broker.port)
        with station(tmp_path) as process:
            found = Scene(tmp_path, broker, desk, process)
            before = desk.next_score().threshold
            status = Status.model_validate_json(desk.on("/status")[-1])
            desk.wait_for(lambda _: found.states()[-1] == "degraded")
            status = Status.model_validate_json(desk.on("/status")[-1])
            code = status.reasons[0].partition(":")[0]
            aside = "moved aside" if list((tmp_path / "state").glob("threshold.json.corrupt-*")) else "still there"
            assert desk.ask("set-threshold", FORTY_FIVE).ok
            desk.wait_for(lambda _: found.states()[-1] == "online")
            after = desk.next_score().threshold
            fault.seen = (
                f"{status.state} ({code}), threshold {before:g}, {aside}; "
                f"a new one set: {found.states()[-1]}, {after:g}"
            )
    assert fault.seen == fault.expected


def test_without_mqtt_5(tmp_path: Path, fault: Fault) -> None:
    fault.injected = "MQTT 3.1.1 only: the same set-threshold (same id) twice, one with an id used before, one expired"
    fault.expected = "2 ok with one id, 1 conflict, 1 expired; threshold 45, online, 1 changes, 0 alerts, scores go on"
    more = 'protocol = "3.1.1"'
    with scene(tmp_path, more=more) as found, Desk(found.broker.port, PREFIX, protocol=mqtt.MQTTv311) as desk:
        for payload in (
            b'{"threshold": 45, "by": "ann", "id": "7"}',
            b'{"threshold": 45, "by": "ann", "id": "7"}',
            b'{"threshold": 50, "by": "ann", "id": "7"}',
            b'{"threshold": 50, "by": "ann", "id": "8", "expires_at": "2020-01-01T00:00:00Z"}',
        ):
            heard = len(found.desk.replies("set-threshold"))
            desk.send("set-threshold", payload)
            found.desk.wait_for(lambda _, heard=heard: len(found.desk.replies("set-threshold")) > heard)
        replies = found.desk.replies("set-threshold")
        good = [reply for reply in replies if reply.ok]
        ids = "one id" if {reply.id for reply in good} == {"7"} else "other ids"
        rest = [told([reply]) for reply in replies if not reply.ok]
        fault.seen = f"{len(good)} ok with {ids}, {', '.join(rest)}; {found.seen()}"
        assert fault.seen == fault.expected
