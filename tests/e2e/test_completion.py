"""Tab in real shells: options, values and files are completed, after the installation that docs/terminal.md shows."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import commands
from tests.support.terminal import Terminal

PROGRAMS = Path(sys.executable).parent
PROMPT = "ready> "
SHELLS = {
    "bash": ["--noprofile", "-i"],
    "zsh": ["-i"],
    "fish": ["-i"],
}
START = {
    "bash": (".bashrc", f"PS1='{PROMPT}'\n"),
    "zsh": (".zshrc", f"PROMPT='{PROMPT}'\n"),
    "fish": (".config/fish/config.fish", f"function fish_prompt; echo -n '{PROMPT}'; end\nset -g fish_greeting\n"),
}

INSTALLATION = [command for command in commands("docs/terminal.md") if "completion" in command]

pytestmark = pytest.mark.e2e


@pytest.fixture(params=["bash", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zsh", "fish"))])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """A shell of a user who has installed the completion of both programs as the documentation says."""
    name = request.param
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    path, lines = START[name]
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(lines)
    (tmp_path / "station.toml").touch()
    environment = {
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / ".config"),
        "PATH": f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin",
        "SHELL": program,
    }
    with Terminal([program, *SHELLS[name]], size=(100, 30), environment=environment, folder=tmp_path) as terminal:
        terminal.wait_for(lambda text: PROMPT.strip() in text)
        for number, command in enumerate(INSTALLATION, start=1):
            terminal.type(f"{command}\r")
            terminal.wait_for(lambda text, n=number: text.count("Completion will take effect") == n)
        terminal.type("exit\r")
        terminal.wait()
    with Terminal([program, *SHELLS[name]], size=(100, 30), environment=environment, folder=tmp_path) as terminal:
        terminal.wait_for(lambda text: PROMPT.strip() in text)
        yield terminal


def test_tab_completes_options_values_and_files(shell: Terminal) -> None:
    loaded: set[str] = set()
    for typed, wanted in (
        ("station calib", "station calibrate"),
        ("station watch --ho", "station watch --host"),
        ("station bench --engine onnx", "--engine onnxruntime"),
        ("station run --config stat", "--config station.toml"),
        ("station-train fit --preset ref", "--preset reference"),
    ):
        program = typed.split(maxsplit=1)[0]
        # zsh: the first Tab of a session only loads the completion (docs/terminal.md says so).
        tabs = "\t\t" if shell.program == "zsh" and program not in loaded else "\t"
        loaded.add(program)
        shell.type(typed + tabs)
        shell.wait_for(lambda text, w=wanted: w in text)
        shell.type("\x15")  # Ctrl-U: an empty line
        shell.wait_for(lambda text, w=wanted: w not in text.splitlines()[-1])
        shell.type("\x0c")  # Ctrl-L: an empty screen
        shell.wait_for(lambda text, w=wanted: w not in text)
