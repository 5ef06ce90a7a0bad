"""A real pseudo-terminal with a program in it, and an emulator (pyte) that says what a person would see there."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte
import pytest
from typing_extensions import Self

from tests.support.station_process import REPOSITORY


class Terminal:
    """``with Terminal(["bash"], size=(80, 24)) as terminal: …``.

    Attributes:
        program: its name.
        raw: all bytes that it has written.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        size: tuple[int, int] = (80, 24),
        environment: Mapping[str, str] | None = None,
        folder: Path = REPOSITORY,
    ) -> None:
        self.program = Path(command[0]).name
        self.raw = b""
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._folder = folder
        self._command = command
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STATION_")}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            inherited.pop(name, None)
        self._environment = inherited | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | dict(environment or {})

    def __enter__(self) -> Self:
        self._master, slave = pty.openpty()
        self._slave = slave  # kept, so that its modes can be looked at when the program has ended
        self._set_size(self._screen.columns, self._screen.lines)
        self.modes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            self._command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=self._folder,
            env=self._environment,
            start_new_session=True,
            # Only so do Ctrl-C and Ctrl-Z reach it; nothing else runs in between.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        self._screen.resize(lines, columns)
        self._set_size(columns, lines)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def wait_for(self, seen: Callable[[str], object], timeout: float = 60) -> str:
        """Until the screen is as wanted; the screen."""
        deadline = time.monotonic() + timeout
        while not seen(self.text):
            if time.monotonic() > deadline:
                pytest.fail(f"not seen on the terminal; but:\n{self.text}")
            self._read(0.1)
        return self.text

    def wait(self, timeout: float = 30) -> int:
        """Exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        while self._read(0.1):
            pass
        return self.process.wait(1)

    def modes_now(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self, timeout: float) -> bool:
        readable, _, _ = select.select([self._master], [], [], timeout)
        if not readable:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)
