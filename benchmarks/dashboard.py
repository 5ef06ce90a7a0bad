"""What the operator's page costs, and how long an alert takes to be seen. Figures of docs/decisions/0050.

``python -m benchmarks.dashboard [--stations 20] [--rate 10] [--alerts 30] [--out benchmarks/results/dashboard.json]``

A real Mosquitto, the real ``station dashboard``, a real Chromium with the overview open, and as many stations as said,
each with so many scores a second. Every two seconds one of them publishes an alert with a picture of 1280 x 960; the
clock runs from before it is published until the browser has decoded the picture and shows it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import sync_playwright

from station.messages import Alert, Status
from tests.support.browser import CHROMIUM, DESKTOP
from tests.support.dashboard import PREFIX, DashboardProcess, Visitor, alert_message, health_message, info_message
from tests.support.line_of_stations import names, scores
from tests.support.mosquitto import HOST, Mosquitto

SETTLE_SECONDS = 10.0
_SHOWN = """([path, before]) => {
  for (const image of document.images) {
    const shown = image.checkVisibility() && image.complete && image.naturalWidth > 0;
    if (shown && image.src.includes(path) && !before.includes(image.src)) return true;
  }
  return false;
}"""
_SOURCES = "path => [...document.images].map(image => image.src).filter(source => source.includes(path))"


def client(port: int) -> mqtt.Client:
    """Connected, and keeping itself so."""
    connected = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    connected.connect(HOST, port)
    connected.loop_start()
    return connected


def publish_scores(port: int, stations: int, rate: float) -> None:
    """All stations at once, until killed."""
    voice = client(port)
    paths = names(stations)
    series = [[score.payload() for _, score in scores(number, 60, 10)] for number in range(stations)]
    for path in paths:
        for message in (Status(state="online", session="s", seq=1), info_message(), health_message()):
            voice.publish(f"{PREFIX}/{path}/{message.topic}", message.payload(), 1, retain=message.retain)
    start = time.monotonic()
    for turn in range(10**9):
        for number, path in enumerate(paths):
            due = start + (turn + number / stations) / rate
            time.sleep(max(0.0, due - time.monotonic()))
            voice.publish(f"{PREFIX}/{path}/score", series[number][turn % len(series[number])])
            if number == 0 and turn % round(10 * rate) == 0:
                for other in paths:
                    voice.publish(f"{PREFIX}/{other}/health", health_message().payload())


def picture(seed: int) -> bytes:
    """JPEG of a rough surface, as large as a station's."""
    noise = np.random.default_rng(seed).integers(60, 200, (240, 320, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (1280, 960)), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def cpu_seconds(pid: int) -> float:
    """That a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, name: str) -> float:
    """``VmRSS`` now, or ``VmHWM`` at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def measure(stations: int, rate: float, alerts: int) -> dict[str, object]:
    """Run it all; seconds, shares of one core, MiB."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder, browser = Path(name), playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        with Mosquitto(folder) as broker, DashboardProcess(folder, broker.port) as dashboard:
            command = [sys.executable, "-m", "benchmarks.dashboard", "--publish", str(broker.port)]
            publisher = subprocess.Popen([*command, "--stations", str(stations), "--rate", str(rate)])
            try:
                Visitor(dashboard).wait_for(
                    "/api/stations", lambda found: sum(s["score"] is not None for s in found["stations"]) == stations
                )
                page = browser.new_page(viewport=DESKTOP)
                page.goto(dashboard.url)
                page.wait_for_timeout(SETTLE_SECONDS * 1000)
                pid, voice = dashboard.process.pid, client(broker.port)
                loads = [os.getloadavg()[0]]
                start, used = time.monotonic(), cpu_seconds(pid)
                latencies = []
                for number in range(alerts):
                    path = names(stations)[number % stations]
                    topic, id_, jpeg = f"{PREFIX}/{path}/alert", f"bench-{number}", picture(number)
                    before = page.evaluate(_SOURCES, path)
                    opened: Alert = alert_message(id_)
                    asked = time.monotonic()
                    voice.publish(topic, opened.payload(), 1)
                    voice.publish(f"{topic}/{id_}/image", jpeg, 1)
                    page.wait_for_function(_SHOWN, arg=[path, before], polling="raf")
                    latencies.append(time.monotonic() - asked)
                    voice.publish(topic, alert_message(id_, "close").payload(), 1)
                    page.wait_for_timeout(2000)
                seconds = time.monotonic() - start
                share = (cpu_seconds(pid) - used) / seconds
                loads.append(os.getloadavg()[0])
                return {
                    "stations": stations,
                    "scores_per_second": stations * rate,
                    "alerts": alerts,
                    "picture_kib": round(len(picture(0)) / 1024),
                    "alert_to_picture_s": {
                        "p50": round(float(np.percentile(latencies, 50)), 3),
                        "p99": round(float(np.percentile(latencies, 99)), 3),
                        "max": round(max(latencies), 3),
                    },
                    "cpu_share_of_one_core": round(share, 3),
                    "resident_mib": round(memory_mib(pid, "VmRSS"), 1),
                    "peak_resident_mib": round(memory_mib(pid, "VmHWM"), 1),
                    "seconds": round(seconds, 1),
                    "machine": {"cores": os.cpu_count(), "load_before_and_after": [round(load, 1) for load in loads]},
                }
            finally:
                publisher.kill()
                publisher.wait()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stations", type=int, default=20)
    parser.add_argument("--rate", type=float, default=10.0, help="scores a second, of each station")
    parser.add_argument("--alerts", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dashboard.json"))
    parser.add_argument("--publish", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.publish:
        publish_scores(given.publish, given.stations, given.rate)
        return
    found = measure(given.stations, given.rate, given.alerts)
    print(json.dumps(found, indent=2))
    given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
