"""No way in, from the station's side: it talks to its own broker only, and keeps its secrets to itself."""

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from station.messages import Status
from station.settings import load_settings
from tests.faults.conftest import Fault
from tests.support.bundles import GREY, make_bundle
from tests.support.mjpeg_server import MjpegServer
from tests.support.mosquitto import HOST, need
from tests.support.secure_broker import (
    OTHER,
    PASSWORDS,
    STATION,
    Client,
    SecureBroker,
    make_certificates,
    make_expired,
)
from tests.support.station_process import REPOSITORY, StationProcess, station

pytestmark = pytest.mark.e2e
CAMERA_PASSWORD = "Lens-4-cap"


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    def picture(_number: int) -> np.ndarray:
        return np.full((96, 128, 3), GREY, np.uint8)

    with MjpegServer(fps=25, picture=picture, credentials=("viewer", CAMERA_PASSWORD)) as camera:
        yield camera


def write_config(folder: Path, port: int, tls: str, more: str = "") -> Path:
    make_bundle(folder / "bundle")
    site, line, name = STATION.split("/")
    config = folder / "station.toml"
    config.write_text(
        f"""
        bundle = "bundle"
        [station]
        site = "{site}"
        line = "{line}"
        name = "{name}"
        [camera]
        url = "v4l2:///dev/nothing"
        [judge]
        threshold = 40
        [log]
        format = "json"
        level = "debug"
        [mqtt]
        host = "localhost"
        port = {port}
        {more}
        [mqtt.tls]
        {tls}
        """
    )
    return config


def by_certificate(broker: SecureBroker, ca: Path | None = None) -> str:
    crt, key = broker.station()
    return f'ca_file = "{ca or broker.ca}"\ncert_file = "{crt}"\nkey_file = "{key}"'


def credentials(folder: Path, camera: MjpegServer, password: str = "") -> dict[str, str]:
    """As systemd hands them over."""
    folder = folder / "credentials"
    folder.mkdir(exist_ok=True)
    (folder / "camera_url").write_text(camera.url + "\n")
    if password:
        (folder / "mqtt_password").write_text(password + "\n")
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def wait_for_log(process: StationProcess, words: str) -> str:
    """The first line of the log with these words."""
    deadline = time.monotonic() + 60
    while True:
        found = [line for line in process.log.splitlines() if words in line]
        if found:
            return found[0]
        assert time.monotonic() < deadline, f"not in the log: {words}"
        time.sleep(0.05)


def test_a_station_works_with_the_secure_broker(tmp_path: Path, camera: MjpegServer, fault: Fault) -> None:
    fault.injected = "certificate, TLS and access list of deploy/mosquitto as they are; a reply asked for elsewhere"
    fault.expected = (
        "scores heard; a command answered where the requester may read; elsewhere nothing, and work goes on"
    )
    prefix = f"station/v1/{STATION}"
    with SecureBroker(tmp_path) as broker:
        config = write_config(tmp_path, broker.port, by_certificate(broker))
        with (
            Client(broker.password_port, broker.ca, login=("operator", PASSWORDS["operator"])) as operator,
            StationProcess(config, tmp_path / "log", **credentials(tmp_path, camera)) as process,
        ):
            operator.subscribe("#")
            operator.wait_for(f"{STATION}/score")
            assert operator.publish(f"{prefix}/cmd/snapshot", b"{}", "elsewhere/reply") == "Success"
            assert operator.publish(f"{prefix}/cmd/snapshot", b"{}", f"{prefix}/reply/to/anna") == "Success"
            assert b'"ok":true' in operator.wait_for("reply/to/anna")
            operator.wait_for("/image")
            before = len(operator.heard)
            operator.wait_until(lambda heard: any(topic.endswith("/score") for topic, _ in heard[before:]))
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
            operator.wait_until(lambda heard: b'"stopped"' in heard[-1][1])
            states = [Status.model_validate_json(p).state for t, p in operator.heard if t.endswith("/status")]
            elsewhere = [topic for topic, _ in operator.heard if not topic.startswith(prefix)]
            fault.seen = f"{' → '.join(states)}; a reply and a snapshot; elsewhere {elsewhere}"
        assert states == ["online", "stopped"]  # nor does a response topic that is not the station's degrade it
        assert not elsewhere


@pytest.mark.parametrize(
    ("impostor", "words"),
    [
        ("has a certificate of another authority", "not trusted"),
        ("has an expired certificate", "certificate has expired"),
        ("has the certificate of another host", "not trusted: Hostname mismatch"),
        ("has a station's certificate", "not trusted"),
        ("speaks TLS 1.1 only", "TLS failed"),
        ("speaks no TLS", "TLS failed"),
    ],
)
def test_a_station_does_not_log_in_to_an_impostor(
    tmp_path: Path, camera: MjpegServer, impostor: str, words: str, fault: Fault
) -> None:
    fault.injected = f"the broker {impostor}"
    fault.expected = "no log-in, the reason in the log, inspection goes on"
    with contextlib.ExitStack() as stack:
        broker, ca, heard = _impostor(impostor, tmp_path, stack)
        config = write_config(
            tmp_path, broker.port, by_certificate(broker, ca), 'username = "me"\npassword = "Never-5-ent"'
        )
        process = stack.enter_context(StationProcess(config, tmp_path / "log", **credentials(tmp_path, camera)))
        line = wait_for_log(process, "no connection to the broker")
        wait_for_log(process, '"state": "online"')
        fault.seen = line[line.index('"problem"') :][:160]
        assert words in line
        assert b"Never-5-ent" not in heard
        assert not broker._log.exists() or STATION not in broker.log
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def _impostor(kind: str, folder: Path, stack: contextlib.ExitStack) -> tuple[SecureBroker, Path, bytearray]:
    """A broker that is not the station's; the authority that the station trusts; what an unencrypted one heard."""
    certificates = folder / "certificates"
    heard = bytearray()
    if kind == "has a certificate of another authority":
        broker = stack.enter_context(SecureBroker(folder))
        make_certificates(folder / "mine", "ca")
        return broker, folder / "mine/ca.crt", heard
    make_certificates(certificates, "ca")
    if kind == "has an expired certificate":
        server = make_expired(
            certificates, "old", "localhost", "extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost\n"
        )
    elif kind == "has the certificate of another host":
        make_certificates(certificates, "server", "broker.elsewhere.example")
        server = folder / "other.crt", folder / "other.key"  # SecureBroker makes its own in that place
        for file in server:
            shutil.copy(certificates / "server" / f"server{file.suffix}", file)
    elif kind == "has a station's certificate":
        make_certificates(certificates, "client", "localhost")
        server = certificates / "clients/localhost/client.crt", certificates / "clients/localhost/client.key"
    else:
        broker = SecureBroker(folder)
        stack.enter_context(_door(broker, folder, heard, tls=kind == "speaks TLS 1.1 only"))
        return broker, broker.ca, heard
    broker = stack.enter_context(SecureBroker(folder, server))
    return broker, broker.ca, heard


@contextlib.contextmanager
def _door(broker: SecureBroker, folder: Path, heard: bytearray, *, tls: bool) -> Iterator[None]:
    """Listens where the broker would; hears what clients say before they are sure whom they talk to."""
    with socket.create_server((HOST, broker.port)) as door:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(broker.certificates / "server/server.crt", broker.certificates / "server/server.key")
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

        def serve() -> None:
            while True:
                try:
                    wire, _ = door.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), wire:
                    if tls:
                        wire = context.wrap_socket(wire, server_side=True)
                    heard.extend(wire.recv(4096))
                    wire.sendall(b"\x20\x02\x00\x00")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        door.shutdown(socket.SHUT_RDWR)
    thread.join(10)


CRASH = """
import sys
import station.publisher
def broken(self): raise RuntimeError("the test breaks the publisher")
station.publisher.Publisher.start = broken
from station.cli import main
main()
"""


def test_no_secret_reaches_log_wire_or_repr(tmp_path: Path, camera: MjpegServer, fault: Fault) -> None:
    fault.injected = "log-in right and wrong, `check`, settings errors, a crash, SIGABRT; log level debug"
    fault.expected = "neither broker's nor camera's password in any output, message or repr"
    with SecureBroker(tmp_path) as broker:
        config = write_config(tmp_path, broker.password_port, f'ca_file = "{broker.ca}"', f'username = "{STATION}"')
        right = credentials(tmp_path, camera, PASSWORDS[STATION])
        said: dict[str, str] = {}
        login = ("dashboard", PASSWORDS["dashboard"])
        with Client(broker.password_port, broker.ca, login=login) as dashboard:
            dashboard.subscribe("#")
            with StationProcess(config, tmp_path / "log", PYTHONFAULTHANDLER="1", **right) as process:
                dashboard.wait_for(f"{STATION}/info")
                dashboard.wait_for(f"{STATION}/score")
                process.signal(signal.SIGABRT)
                process.wait()
                said["log, with the stacks of SIGABRT"] = process.log
            said["messages"] = " ".join(f"{topic} {payload!r}" for topic, payload in dashboard.heard)
        said["check"] = _output(station("check", "--config", config, **right))
        assert "broker" in said["check"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CREDENTIALS_DIRECTORY", right["CREDENTIALS_DIRECTORY"])
            settings = load_settings(config)
        assert settings.mqtt.password is not None
        assert settings.mqtt.password.get_secret_value() == PASSWORDS[STATION]
        said["repr"] = (
            f"{settings!r} {settings} {settings.mqtt!r} {settings.mqtt} {settings.camera!r} {settings.camera}"
        )
        crash = subprocess.run(
            [sys.executable, "-c", CRASH, "run", "--config", config],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY), **right},
        )  # fmt: skip
        said["a crash"] = _output(crash)
        assert "the test breaks the publisher" in said["a crash"]
        subprocess.run([need("mosquitto_passwd"), "-b", broker._folder / "passwords", STATION, "other"], check=True)
        broker.kill()
        broker.start()
        with StationProcess(config, tmp_path / "log2", **right) as process:
            wait_for_log(process, "refused the log-in")
            process.signal(signal.SIGTERM)
            process.wait()
            said["log of a refused log-in"] = process.log
        said["check, refused"] = _output(station("check", "--config", config, **right))
        config.write_text(config.read_text().replace("[judge]", "[judges]"))
        said["settings error"] = _output(station("run", "--config", config, **right))
    found = [
        f"{what}: {secret}"
        for what, text in said.items()
        for secret in (PASSWORDS[STATION], CAMERA_PASSWORD)
        if secret in text
    ]
    fault.seen = f"searched {', '.join(said)}: {found or 'nothing found'}"
    assert not found
    assert all(said.values())


def _output(done: "subprocess.CompletedProcess[str]") -> str:
    return done.stdout + done.stderr


def test_certificates_are_made_once_and_renewed_in_time(tmp_path: Path, fault: Fault) -> None:
    folder = tmp_path / "certificates"
    fault.injected = "make-certificates.sh again: nothing due; 20 days left; a second ca; a name too long, one with ../"
    fault.expected = "kept; renewed; the authority kept; refused twice; keys readable by their owner alone"

    def run(*arguments: str, check: bool = True) -> str:
        done = make_certificates(folder, *arguments, check=check)
        return f"{done.returncode} {done.stdout}{done.stderr}"

    run("ca")
    run("-d", "20", "server", "localhost")
    first = (folder / "server/server.crt").read_bytes()
    run("server", "localhost")
    second = (folder / "server/server.crt").read_bytes()
    again = run("server", "localhost")
    authority = (folder / "ca.crt").read_bytes()
    second_ca = run("ca")
    too_long = run("station", "/".join(["x" * 30] * 3), check=False)
    outside = run("station", "../../x", check=False)
    keys = [path for path in folder.rglob("*.key") if path.stat().st_mode & 0o077]
    due = "renewed" if first != second else "kept"
    fault.seen = f"again: {again[2:6]}; soon due: {due}; ca: {second_ca[2:6]}; {too_long[:7]}, {outside[:7]}"
    assert first != second
    assert (folder / "server/server.crt").read_bytes() == second
    assert (folder / "ca.crt").read_bytes() == authority
    assert "kept" in second_ca
    assert too_long.startswith("1 error")
    assert outside.startswith("1 error")
    assert not keys
    assert not (folder / "ca").stat().st_mode & 0o077
    assert OTHER not in again
