import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from engines.opening import installed_backends
from station import __version__
from station.cli import app
from tests.support.bundles import make_bundle
from tests.support.mosquitto import HOST, Mosquitto
from tests.support.station_process import station

COMMANDS = ("demo", "inspect", "calibrate", "check", "engine", "run", "watch", "dashboard", "bench")


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, prog_name="station", env={"COLUMNS": "120"})
    assert done.exit_code == 0
    return done.output


def test_help_names_every_command_in_the_order_of_a_users_path() -> None:
    text = shown("--help")
    assert tuple(re.findall(r"^│ (\w+) ", text, flags=re.MULTILINE)) == COMMANDS
    assert "station calibrate --config" in text  # an example


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert f"Usage: station {command}" in shown(command, "--help")


def test_version() -> None:
    assert shown("--version").strip() == f"station {__version__}"


def config_at(folder: Path, port: int, more: str = "") -> Path:
    make_bundle(folder / "bundle")
    config = folder / "station.toml"
    config.write_text(
        f'bundle = "bundle"\n[judge]\nthreshold = 40\n[camera]\nurl = "folder:frames"\n'
        f'[mqtt]\nhost = "{HOST}"\nport = {port}\n{more}'
    )
    return config


def marks(output: str) -> dict[str, str]:
    lines = (line.split() for line in output.splitlines() if line.startswith(("✓", "✗")))
    return {words[1]: words[0] for words in lines}


def test_check_says_yes_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    assert cv2.imwrite(str(tmp_path / "frames" / "a.png"), np.full((64, 80, 3), 128, np.uint8))
    with Mosquitto(tmp_path) as broker:
        done = station("check", "--config", config_at(tmp_path, broker.port))
    names = ("settings", "bundle", "camera", "calibration", "engine", "inspection", "broker")
    assert marks(done.stdout) == dict.fromkeys(names, "✓"), done.stdout + done.stderr
    assert done.returncode == 0
    assert "80 x 64 pixels" in done.stdout
    assert re.search(rf"engine +{next(installed_backends()).name} ", done.stdout)
    assert "MQTT 5" in done.stdout


def test_check_goes_on_after_a_failure_and_says_the_way_out(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, users={"station": "right"}) as broker:
        config = config_at(tmp_path, broker.port, 'username = "station"\n')
        (tmp_path / "bundle" / "scorer.onnx").write_bytes(b"altered")
        done = station("check", "--config", config, STATION_MQTT__PASSWORD="wr0ng-p4ss")
    assert done.returncode == 1
    assert marks(done.stdout) == {"settings": "✓", "bundle": "✗", "camera": "✗", "broker": "✗"}
    assert "scorer.onnx" in done.stdout
    assert str(tmp_path / "frames") in done.stdout
    assert "check mqtt.username" in done.stdout
    assert "see docs/errors.md#broker" in done.stdout
    assert "wr0ng-p4ss" not in done.stdout + done.stderr


def test_check_with_settings_that_cannot_be_used_exits_78(tmp_path: Path) -> None:
    done = station("check", "--config", tmp_path / "none.toml")
    assert done.returncode == 78
    assert "none.toml: cannot be read" in done.stderr


def test_watch_refuses_an_impossible_port() -> None:
    done = station("watch", "--port", "99999")
    assert done.returncode == 78
    assert "--port 99999" in done.stderr
    assert "Traceback" not in done.stderr
