"""``station dashboard`` as a command: users, export, and errors that say what to do."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from station.cli import app
from station.dashboard import DashboardError
from station.dashboard.archive import Archive
from station.dashboard.records import Judgement, merge
from station.messages import Feedback
from station.settings import SettingsError
from tests.support.bundles import make_bundle
from tests.support.dashboard import alert_message
from tests.support.mosquitto import free_port
from tests.support.pages import commands
from tests.support.station_process import REPOSITORY

pytestmark = pytest.mark.e2e


def write(folder: Path, section: str) -> Path:
    config = folder / "dashboard.toml"
    config.write_text(f"[dashboard]\nstate = 'state'\nport = 0\n{section}\n")
    return config


def dashboard(config: Path, *arguments: str, words: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "station", "dashboard", "--config", config, *arguments],
        cwd=REPOSITORY,
        input=words,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_password_that_is_too_short_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("station.logs.set_up", lambda _: None)
    config = write(tmp_path, "users_file = 'users'")
    arguments = ["dashboard", "--config", str(config), "--set-password", "bob"]
    assert isinstance(CliRunner().invoke(app, arguments, input="short\n").exception, DashboardError)
    assert not (tmp_path / "users").exists()


def test_settings_that_leave_nobody_to_act_end_it(tmp_path: Path) -> None:
    done = dashboard(write(tmp_path, "operators = ['ann']\nhost = '0.0.0.0'"))
    assert done.returncode == 78  # the unit does not start it again
    assert "nobody can log in" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Exception]:
    """What the command raises, in this process."""
    monkeypatch.setattr("station.logs.set_up", lambda _: None)

    def refuse(section: str, *arguments: str) -> Exception:
        config = str(write(tmp_path, section))
        done = CliRunner().invoke(app, ["dashboard", "--config", config, *arguments])
        assert isinstance(done.exception, SettingsError | DashboardError), done.output
        return done.exception

    return refuse


@pytest.mark.parametrize(
    ("section", "arguments", "words"),
    [
        ("", ("--set-password", "ann"), "dashboard.users_file"),
        ("", ("--export", "out"), "no dashboard has worked"),
        ("", ("--port", "70000"), "--port 70000"),
        ("host = 'no.such.host.invalid'", (), "dashboard.host"),
        ("stations = ['mill']", (), "dashboard.stations"),
        ("hosts = 3", (), "dashboard.hosts"),
    ],
    ids=["set-password", "export", "port", "host", "stations", "hosts"],
)
def test_errors_name_the_key(
    refusal: Callable[..., Exception], section: str, arguments: tuple[str, ...], words: str
) -> None:
    assert words in str(refusal(section, *arguments))


def test_a_port_that_is_taken(refusal: Callable[..., Exception]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = str(refusal("", "--port", str(port)))
    assert f"dashboard.port = {port}: cannot listen there: Address already in use" in error


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['uvicorn'] = None; sys.modules['starlette'] = None; "
        f"sys.argv = ['station', 'dashboard', '--config', {str(write(tmp_path, ''))!r}]; "
        "from station.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'cbigan-station[dashboard]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_base_install_does_without_the_extra() -> None:
    script = (
        "import sys\n"
        "for name in ('starlette', 'uvicorn', 'sse_starlette', 'argon2', 'itsdangerous'): sys.modules[name] = None\n"
        "import station.cli, station.dashboard.feed, station.dashboard.export"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


def test_the_page_s_own_commands(tmp_path: Path) -> None:
    """docs/dashboard.md from top to bottom: looking, passwords, and what people said sets the next threshold."""
    make_bundle(tmp_path / "bundle")
    config = tmp_path / "station.toml"
    config.write_text(
        'bundle = "bundle"\nstate = "station-state"\n[judge]\nthreshold = 40\n[camera]\nurl = "folder:none"\n'
        f"[mqtt]\nport = {free_port()}\n"
        "[dashboard]\nport = 0\nstate = 'state'\nusers_file = 'users'\noperators = ['ann']\n"
    )
    archive = Archive(tmp_path / "state", 16, 90)
    for number in range(40):
        verdict = "confirmed" if number >= 30 else "false-alarm"
        id_ = f"a{number}"
        archive.put_alert(merge(None, "mill/3/left", alert_message(id_, "close")))
        noise = np.random.default_rng(number).integers(0, 4, (64, 64, 3), np.uint8)
        png = cv2.imencode(".png", noise + (188 if number >= 30 else 128))[1].tobytes()
        archive.put_picture("mill/3/left", id_, "frame", png)
        archive.put_feedback("mill/3/left", id_, Judgement.of(Feedback(alert=id_, verdict=verdict, by="ann")))
    said = []
    for command in commands("docs/dashboard.md"):
        program, *arguments = shlex.split(command)
        if program == "pip":
            assert arguments == ["install", "cbigan-station[dashboard]"]  # is installed here, from the checkout
            continue
        process = subprocess.Popen(
            [sys.executable, "-m", program, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if arguments == ["dashboard", "--config", "station.toml"]:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("open http://127.0.0.1:")
            process.terminate()
        out, errors = process.communicate("correct horse\n", timeout=120)
        assert process.returncode == 0, errors
        said.append(out)
    archive.close()  # it was open all the time, as a running dashboard has it
    assert [line for line in "".join(said).splitlines() if line.startswith("said: ")] == [
        "said: 30 false alarms in good/, 10 confirmed in defect/"
    ]
    assert "may act (dashboard.operators names it)" in "".join(said)
    assert [line.partition(":$argon2id$")[0] for line in (tmp_path / "users").read_text().splitlines()] == [
        "ann",
        "bob",
    ]
    assert (tmp_path / "said/calibration.json").exists()
