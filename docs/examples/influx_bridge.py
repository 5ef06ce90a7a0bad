"""Scores and alerts of all stations into InfluxDB, as deploy/telegraf/telegraf.conf does it, without Telegraf.

python influx_bridge.py --broker localhost --influx http://127.0.0.1:8086 --database stations
"""

import argparse
import json
import re
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FIELDS = {
    "score": ("score", "threshold", "anomalous"),
    "alert": ("score", "peak_score", "threshold", "first_frame", "last_frame", "id"),
}
TIMES = {"score": "captured_at", "alert": "at"}
TAGS = {"score": (), "alert": ("event",)}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # needs no escaping


def line(topic: str, payload: bytes) -> str | None:
    """InfluxDB's line protocol; None for what is no message of a station."""
    *path, kind = topic.split("/")[-4:]
    try:
        message = json.loads(payload)
        since = datetime.fromisoformat(message[TIMES[kind]].replace("Z", "+00:00")) - EPOCH
        tags = dict(zip(("site", "line", "station"), path, strict=True)) | {tag: message[tag] for tag in TAGS[kind]}
        fields = ",".join(f"{name}={written(message[name])}" for name in FIELDS[kind])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if len(path) != 3 or not all(isinstance(tag, str) and NAME.fullmatch(tag) for tag in tags.values()):
        return None
    nanoseconds = ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000
    return f"station_{kind},{','.join(f'{key}={value}' for key, value in tags.items())} {fields} {nanoseconds}"


def written(value: Any) -> str:  # noqa: ANN401 - JSON
    """A field's value in line protocol. All numbers are floats: a field must never change its type."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(float(value))
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Scores and alerts into InfluxDB.")
    parser.add_argument("--broker", default="localhost", metavar="HOST")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--prefix", default="station/v1", help="mqtt.prefix of the stations' settings")
    parser.add_argument("--influx", default="http://127.0.0.1:8086", metavar="URL")
    parser.add_argument("--database", default="stations")
    options = parser.parse_args()
    write = f"{options.influx}/write?db={options.database}&precision=ns"

    def take(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        text = line(message.topic, message.payload)
        while text:
            try:
                urllib.request.urlopen(write, text.encode(), timeout=10).close()  # noqa: S310 - an address of ours
                break
            except urllib.error.HTTPError as error:
                print(f"InfluxDB refuses {text!r}: {error.read().decode(errors='replace').strip()}", flush=True)
                break
            except OSError as error:
                print(f"InfluxDB: {error}; trying again", flush=True)
                time.sleep(2)
        client.ack(message.mid, message.qos)  # from here on the broker may forget it

    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, client_id="influx-bridge", protocol=mqtt.MQTTv5, manual_ack=True
    )
    topics = [(f"{options.prefix}/+/+/+/score", 0), (f"{options.prefix}/+/+/+/alert", 1)]
    client.on_connect = lambda *_: client.subscribe(topics)
    client.on_message = take
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 86_400  # alerts wait at the broker for a day while we or InfluxDB are away
    client.connect_async(options.broker, options.port, clean_start=False, properties=session)
    client.loop_forever(retry_first_connection=True)


if __name__ == "__main__":
    main()
