"""The real ``station dashboard`` as a child process, a client of it without a browser, and stations that talk to it."""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from typing_extensions import Self

from station.messages import Alert, CameraHealth, DriftHealth, Health, Info, Message, Rectangle, Reply, Score, Status
from tests.support.mosquitto import HOST, Client
from tests.support.station_process import REPOSITORY, _environment

if TYPE_CHECKING:
    from argon2 import PasswordHasher

PREFIX = "station/v1"
PASSWORD = "correct horse"


def quick_hashes() -> "PasswordHasher":
    """Argon2 that is not slow on purpose: the tests log in often."""
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


class DashboardProcess:
    """``with DashboardProcess(folder, broker.port, "operators = ['ann']") as dashboard: …``; may be killed and started.

    Args:
        folder: for its settings, state and log.
        broker_port: of the broker on this machine.
        section: lines of ``[dashboard]``.
        users: who may log in, all with the password ``PASSWORD``.
        mqtt: more lines of ``[mqtt]``.
    """

    def __init__(
        self, folder: Path, broker_port: int, section: str = "", users: tuple[str, ...] = (), mqtt: str = ""
    ) -> None:
        self.folder = folder
        self.config = folder / "dashboard.toml"
        self.port = 0
        self._log = folder / "dashboard.log"
        login = 'users_file = "users"\n' if users else ""
        self.config.write_text(
            f'[mqtt]\nhost = "{HOST}"\nport = {broker_port}\n{mqtt}\n'
            f'[dashboard]\nport = 0\nstate = "dashboard-state"\n{login}{section}\n'
        )
        if users:
            (folder / "users").write_text("".join(f"{user}:{quick_hashes().hash(PASSWORD)}\n" for user in users))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        """On the same port as before, as a service would be."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "station", "dashboard", "--config", self.config, "--port", str(self.port)],
                cwd=REPOSITORY,
                env=_environment({}),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        told = re.match(r"open http://[^ ]*:(\d+)/", line)
        assert told is not None, f"{line!r}\n{self.log}"
        self.port = int(told[1])

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        if error is not None:
            print(self.log)  # pytest shows it beside the failure


class Answer:
    """Of a request."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Visitor:
    """A browser without a screen: keeps the session's cookie and the token."""

    def __init__(self, dashboard: DashboardProcess) -> None:
        self._dashboard = dashboard
        self.cookie = ""
        self.csrf = ""

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask("GET", path, None, headers)

    def post(self, path: str, body: object = None, **headers: str) -> Answer:
        return self._ask("POST", path, json.dumps(body).encode() if body is not None else b"", headers)

    def log_in(self, user: str, password: str = PASSWORD) -> Answer:
        self.csrf = self.get("/api/me").json["csrf"]
        answer = self.post("/api/login", {"user": user, "password": password})
        if answer.status == 200:
            self.csrf = answer.json["csrf"]
        return answer

    def station(self, path: str) -> Any:
        return self.get(f"/api/stations/{path}").json

    def wait_for(self, path: str, found: Callable[[Any], object], timeout: float = 60.0) -> Any:
        """Ask again and again, also while nobody answers, until ``found`` of the JSON is true."""
        deadline, last = time.monotonic() + timeout, None
        while time.monotonic() < deadline:
            with suppress(OSError, http.client.HTTPException, ValueError):
                answer = self.get(path)
                last = answer.json
                if answer.status == 200 and found(last):
                    return last
            time.sleep(0.05)
        raise AssertionError(f"{path} does not come to that; it is {last}\n{self._dashboard.log}")

    @contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Server-sent events as (name, data), after the first one."""
        connection = http.client.HTTPConnection(HOST, self._dashboard.port, timeout=60)
        try:
            connection.request("GET", "/api/events", headers=self._headers({}))
            response = connection.getresponse()
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            stream = _events(response)
            assert next(stream)[0] == "me"
            yield stream
        finally:
            connection.close()

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        own = {"Cookie": self.cookie} if self.cookie else {}
        return (
            own | ({"X-CSRF-Token": self.csrf} if self.csrf else {}) | {n.replace("_", "-"): v for n, v in more.items()}
        )

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(HOST, self._dashboard.port, timeout=60)
        try:
            connection.request(method, path, body, self._headers(headers))
            answer = Answer(connection.getresponse())
        finally:
            connection.close()
        for cookie in answer.headers.get_all("set-cookie") or []:
            self.cookie = cookie.partition(";")[0]
        return answer


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = ""
    while line := response.readline():
        key, _, value = line.decode().rstrip("\r\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def picture(grey: int = 128, side: int = 32) -> bytes:
    """JPEG."""
    return cv2.imencode(".jpg", np.full((side, side, 3), grey, np.uint8))[1].tobytes()


def frame(grey: int = 128, side: int = 32) -> bytes:
    """PNG."""
    return cv2.imencode(".png", np.full((side, side, 3), grey, np.uint8))[1].tobytes()


def alert_message(id_: str, event: str = "open", **more: Any) -> Alert:
    """An alert of a small frame."""
    last = more.pop("last_frame", {"open": 4, "update": 5, "close": 9}[event])
    return Alert.model_validate(
        {
            "event": event,
            "id": id_,
            "dedupe_key": f"{id_}/{event}/{last}",
            "opened_at": datetime.now(timezone.utc),
            "first_frame": 4,
            "last_frame": last,
            "score": 60.0,
            "peak_score": 60.0,
            "threshold": 40.0,
            "boxes": [Rectangle(x=0, y=0, w=16, h=16)],
            "frame_width": 32,
            "frame_height": 32,
            "seq": 1,
            **more,
        }
    )


def health_message(**more: Any) -> Health:
    """All well."""
    camera = CameraHealth(
        connected=True, fault=None, frames=9, reconnects=0, fps=10, brightness=128, sharpness=1, noise=1
    )
    return Health.model_validate(
        {
            "session": "s",
            "state": "online",
            "uptime_s": 60,
            "inspected": 9,
            "camera": camera,
            "drift": DriftHealth(state="stable", direction=None, effect=0.5, p_value=0.5, frames=100),
            "stages_ms": {},
            "queued": {},
            "dropped": {},
            "temperatures_c": {},
            "resident_bytes": 1,
            "seq": 1,
            **more,
        }
    )


def info_message(**more: Any) -> Info:
    """Of the toy bundle."""
    return Info.model_validate(
        {
            "session": "s",
            "version": "1",
            "bundle_name": "toy",
            "bundle_sha256": "0" * 64,
            "engine_backend": "onnxruntime",
            "engine_device": "CPU",
            "engine_precision": "fp32",
            "threshold": 40.0,
            "calibrated_at": None,
            "camera_url": "http://camera/",
            "frame_width": 32,
            "frame_height": 32,
            "seq": 1,
            **more,
        }
    )


class SpokenStation(Client):
    """A client of the broker that says what it is told to, as a station would: a last will, and answers to commands.

    A stand-in for many stations, or for one that must say something odd; ``tests/support/mill.py`` runs a real one.
    """

    def __init__(
        self, port: int, path: str, *, protocol: int = mqtt.MQTTv5, login: tuple[str, str] | None = None
    ) -> None:
        self.path = path
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.answers = True
        self._protocol = protocol
        self._frame = 0
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=path.replace("/", "-"), protocol=protocol)
        if login:
            self._client.username_pw_set(*login)
        will = Status(state="offline", session="s").payload()
        self._client.will_set(f"{PREFIX}/{path}/status", will, qos=1, retain=True)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._obey
        self._port = port

    def say(self, message: Message, *, suffix: str | None = None) -> None:
        numbered = message if message.seq else message.model_copy(update={"seq": 1})
        self.put(suffix or message.topic, numbered.payload(), qos=message.qos, retain=message.retain)

    def put(self, suffix: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        sent = self._client.publish(f"{PREFIX}/{self.path}/{suffix}", payload, qos, retain)
        if qos:
            sent.wait_for_publish(30)

    def score(self, score: float = 20.0, threshold: float = 40.0) -> None:
        self._frame += 1
        self.say(
            Score(
                frame=self._frame,
                captured_at=datetime.now(timezone.utc),
                score=score,
                threshold=threshold,
                anomalous=score > threshold,
                latency_ms={"total": 12.5},
            )
        )

    def alert(self, id_: str, event: str = "open", *, with_picture: bool = True, **more: Any) -> None:
        """With its picture, as a station sends it; a ``close`` with its frame."""
        self.say(alert_message(id_, event, **more))
        if with_picture:
            self.put(f"alert/{id_}/image", picture(len(id_) + 5))
        if with_picture and event == "close":
            self.put(f"alert/{id_}/frame", frame(len(id_) + 5))

    def vanish(self) -> None:
        """Without a goodbye, as a killed station: the broker publishes the will."""
        self._client.loop_stop()
        wire = self._client.socket()
        assert wire is not None
        wire.close()

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe(f"{PREFIX}/{self.path}/cmd/+", qos=1)
        status = Status(state="online", session="s", seq=1)
        client.publish(f"{PREFIX}/{self.path}/status", status.payload(), qos=1, retain=True)

    def _obey(self, client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        verb, command = message.topic.rpartition("/")[2], json.loads(message.payload)
        self.commands.append((verb, command))
        if not self.answers:
            return
        reply = Reply(verb=verb, ok=True, id=command.get("id"), result={"threshold": command.get("threshold")}, seq=1)
        topic, properties = getattr(message.properties, "ResponseTopic", None), None
        if topic is not None:
            properties = Properties(PacketTypes.PUBLISH)
            properties.CorrelationData = message.properties.CorrelationData
        client.publish(topic or f"{PREFIX}/{self.path}/reply/{verb}", reply.payload(), 1, properties=properties)
        if verb == "snapshot":
            client.publish(f"{PREFIX}/{self.path}/snapshot/20240101-000000-1/image", picture(200), 1)
