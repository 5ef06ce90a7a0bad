"""The bridges of docs/integration.md, from a real station to a real OPC UA client and a real InfluxDB."""

import asyncio
import json
import runpy
import shlex
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncua
import pytest
from asyncua import ua

from station.messages import Status
from tests.support.mill import Mill, run_mill
from tests.support.mosquitto import HOST, free_port, need
from tests.support.pages import blocks, commands
from tests.support.programs import answers, running, wait_until
from tests.support.station_process import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pydantic-settings[toml]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    with run_mill(tmp_path_factory.mktemp("mill")) as mill:
        yield mill


def on_page(program: str, script: str) -> list[str]:
    """Options of the command as the page gives it."""
    words = [shlex.split(command) for command in commands("docs/integration.md")]
    [options] = [rest for first, second, *rest in words if (first, second) == (program, script)]
    return options


def bridge(script: str, options: list[str], changes: dict[str, str]) -> list[str | Path]:
    """The page's command, with this test's addresses in place of the usual ones."""
    assert changes.keys() <= set(options)
    changed = [changes.get(before, option) for before, option in zip(["", *options], options, strict=False)]
    return [sys.executable, "-u", REPOSITORY / script, *changed]


def test_opc_ua(mill: Mill, tmp_path: Path) -> None:
    port = free_port()
    url = f"opc.tcp://{HOST}:{port}/stations"
    options = on_page("python", "docs/examples/opcua_bridge.py")
    changes = {"--broker": HOST, "--port": str(mill.broker.port), "--listen": url}
    command = bridge("docs/examples/opcua_bridge.py", options, changes)
    with running(command, tmp_path, lambda: "Ctrl-C ends" in (tmp_path / "program.log").read_text()):
        asyncio.run(look_by_opc_ua(mill, url))


async def look_by_opc_ua(mill: Mill, url: str) -> None:
    async with asyncua.Client(url) as client:
        space = await client.get_namespace_index("urn:cbigan-station")

        async def read(name: str) -> object:
            return await client.get_node(f"ns={space};s=mill/3/left/{name}").read_value()

        async def wait(name: str, wanted: Callable[[Any], object]) -> None:
            for _ in range(1200):
                with suppress(ua.UaStatusCodeError):  # not there yet, or known to be unknown
                    if wanted(await read(name)):
                        return
                await asyncio.sleep(0.05)
            raise AssertionError(f"{name} stays {await read(name)!r}")

        await wait("State", lambda state: state == "online")
        await wait("Score", lambda score: score > 0)
        assert await read("Threshold") == 40.0
        found = await client.nodes.objects.get_child(
            [f"{space}:{level}" for level in ("Stations", "mill", "3", "left")]
        )
        assert len(await found.get_children()) == 8

        heard = Heard()
        subscription = await client.create_subscription(50, heard)
        await subscription.subscribe_data_change(client.get_node(f"ns={space};s=mill/3/left/OpenAlerts"))
        alert = await asyncio.to_thread(mill.pass_defect)
        await wait("LastAlert", lambda last: last == alert.id)
        await wait("OpenAlerts", lambda number: number == 0)
        await wait("LastAlertPeakScore", lambda score: score == alert.peak_score)
        while 1 not in heard.values:  # pushed, not asked for
            await asyncio.sleep(0.05)
        with pytest.raises(ua.UaStatusCodeError):  # read-only
            await client.get_node(f"ns={space};s=mill/3/left/Score").write_value(1.0)

        # Hostile and broken messages change nothing; a station that is gone has no score any more.
        for topic, payload in (
            ("station/v1/mill/3/le ft/score", b"{}"),
            ("station/v1/mill/3/left/score", b"\xff"),
            ("station/v1/mill/3/left/status", b'{"at": 7}'),
            ("station/v1/a/b/gone/score", mill.desk.on("/score")[-1]),
            ("station/v1/a/b/gone/status", offline_status()),
        ):
            mill.desk._client.publish(topic, payload, qos=1)

        gone = client.get_node(f"ns={space};s=a/b/gone/Score")

        async def code() -> str:
            with suppress(ua.UaStatusCodeError):
                return str((await gone.read_data_value(raise_on_bad_status=False)).StatusCode.name)
            return "not there"

        while await code() != "BadNoCommunication":
            await asyncio.sleep(0.05)


class Heard:
    """Hears of changes, as asyncua wants it."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def datachange_notification(self, node: object, value: object, data: object) -> None:
        self.values.append(value)


def offline_status() -> bytes:
    return Status(state="offline", session="x").payload()


def test_influxdb(mill: Mill, tmp_path: Path) -> None:
    port, rpc = free_port(), free_port()
    (tmp_path / "influxdb.conf").write_text(
        f"""
        reporting-disabled = true
        bind-address = "{HOST}:{rpc}"
        [meta]
          dir = "{tmp_path}/meta"
        [data]
          dir = "{tmp_path}/data"
          wal-dir = "{tmp_path}/wal"
        [http]
          bind-address = "{HOST}:{port}"
        """
    )

    def ask(query: str) -> list[dict[str, Any]]:
        url = f"http://{HOST}:{port}/query?{urllib.parse.urlencode({'db': 'stations', 'q': query})}"
        method = "POST" if query.startswith("CREATE") else "GET"
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
            [result] = json.load(answer)["results"]
        assert "error" not in result, result
        return list(result.get("series", []))

    (tmp_path / "bridge").mkdir()
    options = on_page("python", "docs/examples/influx_bridge.py")
    changes = {"--broker": HOST, "--port": str(mill.broker.port), "--influx": f"http://{HOST}:{port}"}
    command = bridge("docs/examples/influx_bridge.py", options, changes)
    with running([need("influxd"), "-config", tmp_path / "influxdb.conf"], tmp_path, lambda: answers(port, "/ping")):
        ask("CREATE DATABASE stations")
        with running(command, tmp_path / "bridge", lambda: True):
            mill.broker.wait_for_subscription("station/v1/+/+/+/alert")
            wait_until(lambda: ask("SELECT score FROM station_score"))
            alert = mill.pass_defect()
            closed = "SELECT * FROM station_alert WHERE event = 'close' ORDER BY time DESC LIMIT 1"
            wait_until(lambda: alert.id in str(ask(closed)))
        [series] = ask(closed)
        [row] = series["values"]
        point = dict(zip(series["columns"], row, strict=True))
        assert (point["site"], point["line"], point["station"], point["event"]) == ("mill", "3", "left", "close")
        assert (point["peak_score"], point["first_frame"]) == (alert.peak_score, alert.first_frame)
        for query in (block.text for block in blocks("docs/integration.md", "sql")):
            assert ask(query.strip()), query


def test_telegraf_asks_for_what_messages_have() -> None:
    """Telegraf itself is in no registry that the tests reach: its file is read, and compared with the schemas."""
    config = tomllib.loads((REPOSITORY / "deploy/telegraf/telegraf.conf").read_text())
    inputs = config["inputs"]["mqtt_consumer"]
    assert [entry["topics"][0].rpartition("/")[2] for entry in inputs] == ["score", "alert", "health"]
    for entry in inputs:
        kind = entry["topics"][0].rpartition("/")[2]
        schema = json.loads((REPOSITORY / f"deploy/schemas/{kind}.json").read_text())
        [parsing], [parser] = entry["topic_parsing"], entry["json_v2"]
        assert parsing["topic"] == entry["topics"][0]
        assert parsing["tags"].split("/") == ["_", "_", "site", "line", "station", "_"]
        assert parser["measurement_name"] == f"station_{kind}"
        assert definition(schema, parser["timestamp_path"])["format"] == "date-time"
        for field in parser["field"]:
            types = {"float": ("number", "integer"), "bool": ("boolean",), "string": ("string",)}[field["type"]]
            assert definition(schema, field["path"]).get("type") in types
        for tag in parser.get("tag", ()):
            assert definition(schema, tag["path"])["type"] == "string"


def definition(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """Schema of a value; of a table's entry where keys are free, as in ``queued``."""
    node = schema
    for key in path.split("."):
        node = node["properties"][key] if "properties" in node else node["additionalProperties"]
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def test_the_bridge_writes_what_telegraf_would() -> None:
    config = tomllib.loads((REPOSITORY / "deploy/telegraf/telegraf.conf").read_text())
    example = runpy.run_path(str(REPOSITORY / "docs/examples/influx_bridge.py"))
    for entry in config["inputs"]["mqtt_consumer"]:
        kind = entry["topics"][0].rpartition("/")[2]
        if kind in example["FIELDS"]:
            [parser] = entry["json_v2"]
            assert tuple(field["path"] for field in parser["field"]) == example["FIELDS"][kind]
            assert tuple(tag["path"] for tag in parser.get("tag", ())) == example["TAGS"][kind]
            assert parser["timestamp_path"] == example["TIMES"][kind]


SCORE = b'{"captured_at": "2024-05-01T12:00:00Z", "score": 1, "threshold": 2, "anomalous": false}'


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("station/v1/a/b/c/score", b"no JSON"),
        ("station/v1/a/b/c/score", b"[1]"),
        ("station/v1/a/b/c/score", b"{}"),
        ("station/v1/a/b/c/other", b"{}"),
        ("score", b"{}"),
        ("station/v1/a/b,x=1/c/score", SCORE),
    ],
    ids=["text", "list", "empty", "kind", "short", "tags"],
)
def test_what_is_no_message_is_not_written(topic: str, payload: bytes) -> None:
    line = runpy.run_path(str(REPOSITORY / "docs/examples/influx_bridge.py"))["line"]
    assert line(topic, payload) is None
    written = "station_score,site=a,line=b,station=c score=1.0,threshold=2.0,anomalous=false 1714564800000000000"
    assert line("station/v1/a/b/c/score", SCORE) == written
