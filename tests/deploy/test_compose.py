"""deploy/compose.yaml: read by docker-compose, and its line run without containers, with the very same files."""

import getpass
import json
import re
import shlex
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from station.settings import load_dashboard_settings, load_settings
from tests.support.mosquitto import HOST, free_port, listens, need
from tests.support.pages import commands
from tests.support.programs import answers, running, wait_until
from tests.support.station_process import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
SERVICES = {"mosquitto", "station", "dashboard", "prometheus", "grafana"}


def set_up(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """As the page says, but into another folder."""
    need("openssl")
    command = [DEPLOY / "compose/set-up.sh", "-d", folder, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def compose(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [need("docker-compose"), *arguments, "-f", DEPLOY / "compose.yaml", "config"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("line")
    [command] = commands("docs/compose.md")
    script, *names = shlex.split(command)
    assert script == "deploy/compose/set-up.sh"
    done = set_up(folder, *names)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def config(line: Path) -> dict:
    """As docker-compose understands it."""
    done = compose("--env-file", line / ".env")
    assert done.returncode == 0, done.stderr
    assert (line / "grafana_password").read_text().strip() not in done.stdout
    return yaml.safe_load(done.stdout)


def mounts(config: dict, service: str) -> dict[str, tuple[str, str]]:
    """What a service sees: path in the container → path here, and mode."""
    found = {}
    for volume in config["services"][service]["volumes"]:
        if isinstance(volume, str):  # docker-compose 1
            source, target, mode = volume.rsplit(":", 2)
        else:
            source, target, mode = volume["source"], volume["target"], "ro" if volume.get("read_only") else "rw"
        found[target] = (source, mode)
    return found


def test_every_service_is_there_and_confined(config: dict):
    assert set(config["services"]) == SERVICES
    for name, service in config["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] not in ("", "0:0")
        assert "healthcheck" in service
        assert not {"privileged", "network_mode", "pid", "cap_add"} & service.keys()
        assert name in ("station", "dashboard") or re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), (
            "a release"
        )


def test_nothing_is_reachable_from_elsewhere(config: dict):
    for service in config["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:") if isinstance(port, str) else port["host_ip"] == "127.0.0.1"


def test_all_that_is_mounted_is_there_and_only_data_can_be_written(config: dict, line: Path):
    for service in SERVICES:
        for target, (source, mode) in mounts(config, service).items():
            assert Path(source).exists(), f"{service}: Docker would make an empty folder at {source}"
            assert mode == ("rw" if source.endswith("/data") else "ro"), f"{service}: {target}"


def test_without_its_folder_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LINE_USER", raising=False)
    done = compose()
    assert done.returncode != 0
    assert "deploy/compose/set-up.sh" in done.stderr


def test_setting_up_again_keeps_what_was_edited(tmp_path: Path):
    assert set_up(tmp_path, "mill", "3", "left").returncode == 0
    settings = tmp_path / "station/station.toml"
    settings.write_text(settings.read_text().replace("threshold = 1200", "threshold = 7"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = set_up(tmp_path, "mill", "3", "left")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    secret = [path for path in before if path.suffix == ".key" or path.name in ("grafana_password", "passwords")]
    assert len(secret) > 4
    assert [path for path in secret if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("names", [("a/b", "3", "left"), ("mill", "3", "le ft"), ("mill", "3"), ("mill", "#", "left")])
def test_names_that_cannot_be_are_refused(tmp_path: Path, names: tuple[str, ...]):
    assert set_up(tmp_path, *names).returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_settings_are_good(line: Path, config: dict):
    station = load_settings(line / "station/station.toml")
    assert station.topic_prefix == "station/v1/mill/3/left"
    dashboard = load_dashboard_settings(line / "dashboard/dashboard.toml").dashboard
    assert dashboard.stations == ("mill/3/+",)
    assert dashboard.port == 8080
    done = subprocess.run(
        [need("promtool"), "check", "config", line / "prometheus/prometheus.yml"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    targets = yaml.safe_load((line / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    labels = {"site": "mill", "line": "3", "station": "left"}
    assert targets == [{"targets": [f"station:{station.metrics.port}"], "labels": labels}]


def test_the_image_is_made_of_what_is_there():
    text = (DEPLOY / "Containerfile").read_text()
    copied = [
        source for words in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for source in words.split()
    ]
    assert {"station", "engines", "train", "pyproject.toml"} <= set(copied)
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []


@pytest.mark.e2e
def test_the_line_runs(line: Path, config: dict, tmp_path: Path):
    """From camera to dashboard and Prometheus; paths and addresses in containers become those here."""
    ports = {name: free_port() for name in ("8883", "8884", "9847", "8080", "9090")}

    def here(service: str, text: str) -> str:
        for target, (source, _) in sorted(mounts(config, service).items(), key=lambda item: -len(item[0])):
            text = text.replace(target, source)
        for port, free in ports.items():
            text = re.sub(rf"(?<=[ :]){port}\b", str(free), text)
        text = re.sub(r"\bstation:(?=\d)", f"{HOST}:", text).replace('"mosquitto"', '"localhost"')
        return re.sub(r'host = "[0.]+"', f'host = "{HOST}"', text).replace("15s", "1s")

    def folder(service: str) -> Path:
        (tmp_path / service).mkdir()
        return tmp_path / service

    def rewritten(service: str, original: Path, more: str = "") -> Path:
        path = tmp_path / service / original.name
        path.write_text(here(service, original.read_text()) + more)
        return path

    with ExitStack() as stack:
        broker = folder("mosquitto")
        conf = rewritten("mosquitto", DEPLOY / "mosquitto/mosquitto.conf", f"user {getpass.getuser()}\n")
        stack.enter_context(running([need("mosquitto"), "-c", conf], broker, lambda: listens(ports["8883"])))
        for service, settings in (("station", "station.toml"), ("dashboard", "dashboard.toml")):
            words = config["services"][service]["command"]
            assert words[-1] == f"/etc/cbigan-station/{settings}"
            path = folder(service)
            command = [sys.executable, "-m", "station", *words[:-1], rewritten(service, line / service / settings)]
            stack.enter_context(running(command, path, lambda: True, cwd=REPOSITORY))
        prometheus = folder("prometheus")
        (prometheus / "station.rules.yml").write_bytes((line / "prometheus/station.rules.yml").read_bytes())
        rewritten("prometheus", line / "prometheus/prometheus.yml")
        words = [here("prometheus", word) for word in config["services"]["prometheus"]["command"]]
        words[0] = f"--config.file={prometheus / 'prometheus.yml'}"
        command = [need("prometheus"), *words, f"--web.listen-address={HOST}:{ports['9090']}"]
        stack.enter_context(running(command, prometheus, lambda: answers(ports["9090"], "/-/ready")))

        wait_until(lambda: answers(ports["8080"], "/healthz"))

        def stations() -> list[dict]:
            return fetch(ports["8080"], "/api/stations")["stations"]

        wait_until(lambda: [s["path"] for s in stations() if s["state"] == "online" and s["score"]] == ["mill/3/left"])
        query = urllib.parse.urlencode({"query": "station_broker_connected == 1"})
        wait_until(lambda: fetch(ports["9090"], f"/api/v1/query?{query}")["data"]["result"])
        [found] = fetch(ports["9090"], f"/api/v1/query?{query}")["data"]["result"]
        assert found["metric"]["instance"] == "mill/3/left"


def fetch(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=60) as answer:
        return json.load(answer)
