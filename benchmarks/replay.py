"""Alerts of the real daemon on labelled images: which defective images raised one, which good ones did by mistake.

Calibrates on good images, then replays every test image through ``station run`` (``folder:``) with a real mosquitto in
between, and counts what a subscriber hears. An image is alerted when its score message says ``anomalous`` and an alert
covers its frame.

    python -m benchmarks.replay --bundle BUNDLE --data DATA --false-alarms 1e-3 --json results/NAME.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.support.mosquitto import HOST, Mosquitto, Subscriber

SETTINGS = """\
bundle = {bundle}
calibration = "calibration.json"
state = "state"

[camera]
url = "folder:{images}"

[alerts]
close_after = 1

[mqtt]
host = "{host}"
port = {port}

[log]
level = "warning"
"""


def replay(bundle: Path, data: Path, good: Path, calibrate_options: list[str]) -> dict[str, Any]:
    """Calibrate on ``good``, replay ``data/test``; counts by kind of image."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = folder / "station.toml"
        with Mosquitto(folder) as broker, Subscriber(broker.port) as subscriber:
            text = SETTINGS.format(
                bundle=json.dumps(str(bundle.resolve())), images=(data / "test").resolve(), host=HOST, port=broker.port
            )
            config.write_text(text)
            station = [sys.executable, "-m", "station"]
            calibrate = [*station, "calibrate", "--config", config, "--good", good, *calibrate_options]
            subprocess.run(calibrate, check=True, stdout=subprocess.DEVNULL)
            subprocess.run([*station, "run", "--config", config], check=True)
            subscriber.wait_for(lambda heard: heard[-1].topic.endswith("/status") and b"stopped" in heard[-1].payload)
            scores = [json.loads(payload) for payload in subscriber.on("/score")]
            alerts = [json.loads(payload) for payload in subscriber.on("/alert")]
    covered = {
        frame
        for alert in alerts
        if alert["event"] == "close"
        for frame in range(alert["first_frame"], alert["last_frame"] + 1)
    }
    images, alerted = Counter[str](), Counter[str]()
    for score in scores:
        kind = score["name"].split("/")[0]
        images[kind] += 1
        alerted[kind] += score["anomalous"] and score["frame"] in covered
    n_good, n_defective = images["good"], images.total() - images["good"]
    return {
        "data": data.name,
        "threshold": scores[0]["threshold"],
        "calibration": [option.replace(str(data), "DATA") for option in calibrate_options],
        "images": dict(images),
        "alerted": {kind: alerted[kind] for kind in images},
        "alerts_opened": sum(alert["event"] == "open" for alert in alerts),
        "good_without_alert": 1 - alerted["good"] / n_good,
        "defective_with_alert": (alerted.total() - alerted["good"]) / n_defective,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="data set in MVTec AD layout")
    parser.add_argument("--good", type=Path, help="good images to calibrate on (default: DATA/train/good)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument(
        "calibrate_options", nargs="*", metavar="-- CALIBRATE OPTION", default=["--false-alarms", "1e-3"]
    )
    options = parser.parse_args()
    good = options.good or options.data / "train" / "good"
    result = replay(options.bundle, options.data, good, options.calibrate_options)
    table = Table(title=f"{options.data.name}, threshold {result['threshold']:.4g}")
    for heading in ("images", "alerted", "of"):
        table.add_column(heading, justify="left" if heading == "images" else "right")
    for kind, n in result["images"].items():
        table.add_row(kind, str(result["alerted"][kind]), str(n))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"defective images with an alert {result['defective_with_alert']:.1%}, good images without "
        f"{result['good_without_alert']:.1%}"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
