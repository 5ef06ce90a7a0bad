"""The page behind nginx with TLS, configured as docs/dashboard.md says."""

import http.client
import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.dashboard import PASSWORD, DashboardProcess, SpokenStation, _events
from tests.support.mosquitto import HOST, Mosquitto, free_port, need
from tests.support.pages import blocks

pytestmark = pytest.mark.e2e

NAME = "line.plant.example"
PATH = "mill/3/left"


class Browser:
    """Speaks TLS to the proxy, by its name."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        self._port = port
        self._context = ssl.create_default_context()
        authority.configure_trust(self._context)
        self.headers = {"Host": f"{NAME}:{port}", "Origin": f"https://{NAME}:{port}"}

    def ask(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(NAME, self._port, timeout=60, context=self._context)
        connection._create_connection = self._dial  # type: ignore[attr-defined]  # there is no name server for it
        connection.request(method, path, json.dumps(body).encode() if body is not None else None, self.headers)
        return connection.getresponse()

    def json(self, method: str, path: str, body: object = None) -> Any:
        return json.loads(self.ask(method, path, body).read())

    def _dial(self, address: tuple[str, int], *rest: Any) -> Any:
        import socket

        return socket.create_connection((HOST, address[1]), *rest)


@pytest.fixture
def behind(tmp_path: Path, broker: Mosquitto) -> Iterator[Browser]:
    nginx = need("nginx")
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    certificate.private_key_pem.write_to_path(tmp_path / "line.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "line.crt")
    port = free_port()
    section = f"hosts = ['{NAME}']\noperators = ['ann']"
    with DashboardProcess(tmp_path, broker.port, section, users=("ann",)) as dashboard:
        [block] = blocks("docs/dashboard.md", "nginx")
        text = block.text
        for said, here in (
            ("listen 443 ssl", f"listen {HOST}:{port} ssl"),
            ("/etc/ssl", str(tmp_path)),
            ("127.0.0.1:8080", f"{HOST}:{dashboard.port}"),
        ):
            assert said in text
            text = text.replace(said, here)
        config = tmp_path / "nginx.conf"
        folders = "".join(
            f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off;\nmaster_process off;\npid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/nginx.log;\n"
            "events {}\n"
            f"http {{\naccess_log off;\n{folders}{text}}}\n"
        )
        process = subprocess.Popen([nginx, "-c", config, "-e", tmp_path / "nginx.log"])
        try:
            browser = Browser(port, authority)
            while True:
                assert process.poll() is None, (tmp_path / "nginx.log").read_text()
                try:
                    browser.ask("GET", "/healthz").read()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            yield browser
        finally:
            process.terminate()
            process.wait(20)


def test_log_in_events_and_commands_through_the_proxy(behind: Browser, broker: Mosquitto) -> None:
    with SpokenStation(broker.port, PATH) as spoken:
        behind.headers["X-CSRF-Token"] = behind.json("GET", "/api/me")["csrf"]
        answer = behind.ask("POST", "/api/login", {"user": "ann", "password": PASSWORD})
        assert answer.status == 200
        cookie = answer.headers["set-cookie"]
        assert "Secure" in cookie  # the browser speaks TLS, though the page itself does not
        behind.headers |= {"Cookie": cookie.partition(";")[0], "X-CSRF-Token": json.loads(answer.read())["csrf"]}
        stream = _events(behind.ask("GET", "/api/events"))
        assert next(stream)[0] == "me"
        spoken.alert("a1")
        assert next(data["id"] for name, data in stream if name == "alert" and data["image_url"]) == "a1"
        assert behind.json("POST", f"/api/stations/{PATH}/commands/pause")["ok"] is True
        assert [verb for verb, _ in spoken.commands] == ["pause"]
        behind.headers["Origin"] = "https://evil.example"
        assert behind.ask("POST", f"/api/stations/{PATH}/commands/resume").status == 403
