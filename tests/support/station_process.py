"""The real daemon as a child process."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

REPOSITORY = Path(__file__).resolve().parents[2]


def station(*arguments: str | Path, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m station`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "station", *arguments],
        cwd=REPOSITORY,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class StationProcess:
    """``python -m station run`` in the background, inside a ``with`` block."""

    def __init__(self, config: Path, log: Path, **environment: str) -> None:
        self._config, self._log_path = config, log
        self._environment = _environment(environment)

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Exit code."""
        return self.process.wait(timeout)

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "station", "run", "--config", self._config],
                cwd=REPOSITORY,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if error is not None:
            print(self.log)  # pytest shows it beside the failure


def _environment(extra: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STATION_")}
    return inherited | {"PYTHONWARNINGS": "error::ResourceWarning"} | extra
