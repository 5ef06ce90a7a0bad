"""Stations as OPC UA variables: every station that the broker knows appears below Objects/Stations/<site>/<line>.

    pip install asyncua paho-mqtt
    python opcua_bridge.py --broker localhost --listen opc.tcp://127.0.0.1:4840/stations

The variables can be read and subscribed to, and not written. The server has no log-in and no encryption: keep it on the
machine of its client, or give it certificates (asyncua's Server.set_security_policy) before it listens elsewhere.
"""

import argparse
import asyncio
import json
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from asyncua import Server, ua
from asyncua.common.node import Node

NAMESPACE = "urn:cbigan-station"
MAX_STATIONS = 500  # whoever may publish could name any number of them
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VARIABLES: dict[str, tuple[Any, ua.VariantType]] = {
    "State": ("unknown", ua.VariantType.String),  # online, degraded, stopped, offline
    "Reasons": ("", ua.VariantType.String),
    "Score": (0.0, ua.VariantType.Double),
    "Threshold": (0.0, ua.VariantType.Double),
    "Anomalous": (False, ua.VariantType.Boolean),
    "OpenAlerts": (0, ua.VariantType.UInt32),
    "LastAlert": ("", ua.VariantType.String),
    "LastAlertPeakScore": (0.0, ua.VariantType.Double),
}
Message = dict[str, Any]


def status(message: Message) -> dict[str, Any]:
    """Values of variables; None where nothing is known, as of the score of a station that is gone."""
    gone = message["state"] in ("stopped", "offline")
    unknown = dict.fromkeys(("Score", "Threshold", "Anomalous")) if gone else {}
    return {"State": str(message["state"]), "Reasons": "; ".join(message["reasons"]), **unknown}


def score(message: Message) -> dict[str, Any]:
    """Values of variables."""
    return {
        "Score": float(message["score"]),
        "Threshold": float(message["threshold"]),
        "Anomalous": bool(message["anomalous"]),
    }


def alert(message: Message) -> dict[str, Any]:
    """Values of variables."""
    return {"LastAlert": str(message["id"]), "LastAlertPeakScore": float(message["peak_score"])}


VALUES = {"status": status, "score": score, "alert": alert}


class Stations:
    """The address space, filled from MQTT messages."""

    def __init__(self, server: Server, namespace: int) -> None:
        self._server, self._namespace = server, namespace
        self._folders: dict[tuple[str, ...], Node] = {}
        self._variables: dict[tuple[str, ...], dict[str, Node]] = {}
        self._open: dict[tuple[str, ...], set[str]] = {}

    async def take(self, topic: str, payload: bytes) -> None:
        """Write what a message says; one that cannot be read is passed over."""
        *path, kind = topic.split("/")[-4:]
        station = tuple(path)
        if len(station) != 3 or not all(NAME.fullmatch(name) for name in station):
            return
        if station not in self._variables and len(self._variables) >= MAX_STATIONS:
            return
        try:
            message = json.loads(payload)
            at = datetime.fromisoformat(message["at"].replace("Z", "+00:00"))
            values = VALUES[kind](message)
            if kind == "alert":
                values["OpenAlerts"] = self._count(station, message["event"], str(message["id"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        variables = await self._variables_of(station)
        for name, value in values.items():
            known = value is not None
            variant = ua.Variant(value, VARIABLES[name][1]) if known else ua.Variant()
            code = ua.StatusCodes.Good if known else ua.StatusCodes.BadNoCommunication
            await variables[name].write_value(ua.DataValue(variant, ua.StatusCode(code), SourceTimestamp=at))

    def _count(self, station: tuple[str, ...], event: str, alert: str) -> int:
        """Open alerts of a station. Delivered twice or not: a set of ids holds each once."""
        opened = self._open.setdefault(station, set())
        (opened.discard if event == "close" else opened.add)(alert)
        return len(opened)

    async def _variables_of(self, station: tuple[str, ...]) -> dict[str, Node]:
        if station not in self._variables:
            folder = await self._folder(("Stations", *station))
            self._variables[station] = {
                name: await folder.add_variable(self._id((*station, name)), f"{self._namespace}:{name}", value, kind)
                for name, (value, kind) in VARIABLES.items()
            }
        return self._variables[station]

    async def _folder(self, path: tuple[str, ...]) -> Node:
        if not path:
            return self._server.nodes.objects
        if path not in self._folders:
            parent = await self._folder(path[:-1])
            self._folders[path] = await parent.add_folder(self._id(path), f"{self._namespace}:{path[-1]}")
        return self._folders[path]

    def _id(self, path: tuple[str, ...]) -> ua.NodeId:
        """Readable and always the same: ns=2;s=mill/3/left/Score."""
        return ua.NodeId("/".join(path), self._namespace)


async def serve(options: argparse.Namespace) -> None:
    """Until Ctrl-C."""
    server = Server()
    await server.init()
    server.set_endpoint(options.listen)
    server.set_server_name("CBiGAN inspection stations")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    stations = Stations(server, await server.register_namespace(NAMESPACE))

    loop, messages = asyncio.get_running_loop(), asyncio.Queue[mqtt.MQTTMessage](maxsize=10_000)

    def put(message: mqtt.MQTTMessage) -> None:
        if not messages.full():  # scores come faster than anybody reads them
            messages.put_nowait(message)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    topics = [(f"{options.prefix}/+/+/+/{kind}", 1) for kind in ("status", "score", "alert")]
    client.on_connect = lambda *_: client.subscribe(topics)
    client.on_message = lambda _client, _data, message: loop.call_soon_threadsafe(put, message)
    if options.ca_file:
        client.tls_set(options.ca_file)
    if options.username:
        client.username_pw_set(options.username, options.password_file.read_text().strip())
    client.connect_async(options.broker, options.port)
    async with server:
        client.loop_start()
        print(f"{options.listen} serves the stations of {options.broker}:{options.port}; Ctrl-C ends", flush=True)
        try:
            while True:
                message = await messages.get()
                await stations.take(message.topic, message.payload)
        finally:
            client.disconnect()
            client.loop_stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Inspection stations as OPC UA variables.")
    parser.add_argument("--broker", default="localhost", metavar="HOST")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--ca-file", help="TLS: the certificate of the plant's authority")
    parser.add_argument("--username")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--prefix", default="station/v1", help="mqtt.prefix of the stations' settings")
    parser.add_argument("--listen", default="opc.tcp://127.0.0.1:4840/stations", metavar="URL")
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
