"""Other people's servers as child processes."""

import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mosquitto import HOST


@contextmanager
def running(
    command: list[str | Path], folder: Path, ready: Callable[[], bool], cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program, from when it is ready until it is ended; its words are shown beside a failure.

    Args:
        command: program and arguments.
        folder: for its words, ``program.log``.
        ready: asked again and again.
        cwd: where it runs; None: in ``folder``.
    """
    log = folder / "program.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd or folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: ready() or process.poll() is not None)
        assert process.poll() is None
        yield process
    except BaseException:
        print(log.read_text(errors="replace"))
        raise
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(found: Callable[[], object], timeout: float = 90) -> None:
    """Look again and again; fails where ``found`` stays false."""
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def answers(port: int, path: str = "/") -> bool:
    """Whether a web server serves ``path`` there."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10):
            return True
    except OSError:  # HTTP errors are such too
        return False
