"""A whole terminal: single keys without Enter, and a screen of its own that is gone afterwards."""

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

_NAMES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"\x1b[4~": "end",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b" ": "space",
}
# The sequence of an arrow and its like, or one character.
_KEY = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|[\xc0-\xf7][\x80-\xbf]+|.", re.DOTALL)


def split_keys(data: bytes) -> list[str]:
    """Names of the keys whose bytes a terminal has sent: up, enter, q …"""  # noqa: D415 - an ellipsis ends it
    return [_NAMES.get(key) or key.decode(errors="replace") for key in _KEY.findall(data)]


class Terminal:
    """The terminal that we have to ourselves inside ``opened``.

    Signals that would end or stop us are taken in there: Ctrl-C, SIGTERM and SIGHUP are told by ``ended``; Ctrl-Z gives
    the terminal back for as long as we are stopped.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._before: list[Any] | None = None
        self._ended = False
        self._stop = False

    @property
    def has_keys(self) -> bool:
        """Whether there is a keyboard."""
        return self._keyboard is not None

    @property
    def ended(self) -> bool:
        """Whether we are told to end."""
        return self._ended

    def show(self, lines: list[Text]) -> None:
        """Draw all lines of the screen."""
        self._live.update(Group(*lines), refresh=True)

    def keys(self, timeout: float) -> list[str]:
        """Keys pressed; waits for the first at most ``timeout`` seconds."""
        if self._stop:
            self._suspend()
        watched = [] if self._keyboard is None else [self._keyboard]
        readable, _, _ = select.select(watched, [], [], timeout)
        if not readable or self._keyboard is None:
            return []
        data = os.read(self._keyboard, 1024)
        if not data:  # the terminal is gone
            self._ended = True
        return split_keys(data)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take the terminal; it is as before afterwards, whatever happens."""
        handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
            signal.SIGINT: self._end,
            signal.SIGTERM: self._end,
            signal.SIGHUP: self._end,
            signal.SIGTSTP: self._note_stop,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            self._take()
            yield
        finally:
            self._give_back()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ended = True

    def _note_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True

    def _take(self) -> None:
        if self._keyboard is not None:
            self._before = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard)  # no echo, no waiting for Enter; Ctrl-C and Ctrl-Z stay signals
        self._live.start()

    def _give_back(self) -> None:
        self._live.stop()
        if self._keyboard is not None and self._before is not None:
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)

    def _suspend(self) -> None:
        """Stop, as Ctrl-Z asks; returns once we are in the foreground again."""
        self._stop = False
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
