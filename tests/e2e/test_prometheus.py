"""A real Prometheus, set up by deploy/prometheus, scrapes a real station and is asked all that Grafana would ask."""

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.test_prometheus import DASHBOARD, PROMETHEUS, RULES
from tests.support.mill import Mill, run_mill
from tests.support.mosquitto import HOST, free_port, need
from tests.support.programs import answers, running, wait_until
from tests.support.station_process import REPOSITORY

pytestmark = pytest.mark.e2e

# Grafana's own variables, and the station's name as prometheus.yml makes it.
VARIABLES = {"$station": "mill/3/left", "$__rate_interval": "1m", "$datasource": "prometheus"}
# Asked about what this station does not have just now: a fault, a calibration, thermal zones.
MAY_BE_EMPTY = {"Camera faults", "Sharpness of the picture", "Drift", "Temperature"}


class Server:
    """Prometheus' own API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **query: str) -> dict:
        url = f"http://{HOST}:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def ask(self, expression: str) -> list[dict]:
        return self.get("query", query=expression)["result"]


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    with run_mill(tmp_path_factory.mktemp("mill")) as mill:
        yield mill


@pytest.fixture(scope="module")
def server(mill: Mill, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    [static] = config["scrape_configs"][0]["static_configs"]
    static["targets"] = [f"{HOST}:{mill.metrics}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "station.rules.yml").write_bytes((PROMETHEUS / "station.rules.yml").read_bytes())
    command = [
        need("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    with running(command, folder, lambda: answers(port, "/-/ready")):
        server = Server(port)
        wait_until(lambda: server.ask("rate(station_frames_inspected_total[1m]) > 0"))
        yield server


def queries() -> list[tuple[str, str]]:
    """Title and expression of all that the dashboard asks."""
    panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*panels, *((note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"])]


def endpoint(mill: Mill) -> str:
    with urllib.request.urlopen(f"http://{HOST}:{mill.metrics}/metrics", timeout=60) as answer:
        return answer.read().decode()


def names_in(text: str) -> set[str]:
    """Names of metrics that an endpoint serves, also of those that have no value just now."""
    families = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    parts = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + part for name, kind in families for part in parts.get(kind, ("",))}


def test_promtool_finds_nothing_against_the_metrics(mill: Mill) -> None:
    done = subprocess.run(
        [need("promtool"), "check", "metrics"],
        input=endpoint(mill),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_page_tells_every_metric(mill: Mill) -> None:
    page = (REPOSITORY / "docs/integration.md").read_text()
    table = page.partition("| metric | what |")[2].partition("\n\n")[0]
    told = set(re.findall(r"`(station_[a-z_]+)", table))
    served = set(re.findall(r"^# TYPE (station_\S+) ", endpoint(mill), re.MULTILINE))
    assert told == {name for name in served if not name.endswith("_created")}


def test_rules_and_dashboard_ask_for_metrics_that_there_are(mill: Mill) -> None:
    asked = " ".join([rule["expr"] for rule in RULES] + [expression for _, expression in queries()])
    names = set(re.findall(r"\b(?:station|process)_[a-z_]+", asked))
    assert len(names) > 15
    assert names <= names_in(endpoint(mill))


def test_the_station_is_called_by_its_name(server: Server) -> None:
    [found] = server.ask("station_threshold")
    assert found["metric"]["instance"] == "mill/3/left"
    assert (found["metric"]["site"], found["metric"]["line"], found["metric"]["station"]) == ("mill", "3", "left")
    assert found["value"][1] == "40"


def test_prometheus_has_the_rules_and_nothing_is_wrong(server: Server) -> None:
    wait_until(lambda: all(rule["health"] == "ok" for rule in rules_of(server)))
    assert [rule["name"] for rule in rules_of(server)] == [rule["alert"] for rule in RULES]
    busy_machine = {"StationSlow", "StationDropsFrames"}  # true of this machine, it may be
    assert {rule["name"] for rule in rules_of(server) if rule["state"] != "inactive"} <= busy_machine


def rules_of(server: Server) -> list[dict]:
    [group] = server.get("rules")["groups"]
    return group["rules"]


@pytest.mark.parametrize(("title", "expression"), queries(), ids=[title for title, _ in queries()])
def test_every_query_of_the_dashboard_has_an_answer(server: Server, title: str, expression: str) -> None:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    found = server.ask(expression)
    if title in MAY_BE_EMPTY or title == "Alert rules":
        return
    assert found, "empty: Grafana would show 'No data'"
    assert all("NaN" not in str(series) for series in found)


def test_an_alert_is_counted(mill: Mill, server: Server) -> None:
    [before] = server.ask("station_alerts_opened_total")
    mill.line.defective = True
    wait_until(lambda: float(server.ask("station_alerts_opened_total")[0]["value"][1]) > float(before["value"][1]))
    mill.line.defective = False


def test_a_station_that_is_killed_is_reported(mill: Mill, server: Server, tmp_path: Path) -> None:
    """Last in this module: the station does not come back."""
    mill.station.process.kill()
    wait_until(lambda: server.ask('up{instance="mill/3/left"} == 0'))
    wait_until(lambda: "StationDown" in [rule["name"] for rule in rules_of(server) if rule["state"] == "pending"])
