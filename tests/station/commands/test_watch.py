"""What `station watch` makes of single messages; with a real broker and station it is in tests/e2e."""

import io
from dataclasses import dataclass

from rich.console import Console

from station.commands.watch import _Watcher
from station.messages import CameraHealth, DriftHealth, Health, Reply, Status

PREFIX = "station/v1"
STATION = "mill/3/left"


@dataclass
class Heard:
    """A received message, as far as the watcher looks at it."""

    topic: str
    payload: bytes
    retain: bool = False


def said(*messages: Heard) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    watcher = _Watcher(PREFIX, console)
    for message in messages:
        watcher.take(message)  # type: ignore[arg-type]  # a stand-in
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is the StringIO of above


def heard(suffix: str, payload: bytes) -> Heard:
    return Heard(f"{PREFIX}/{STATION}/{suffix}", payload)


def health(*reasons: str) -> Heard:
    message = Health(
        session="abc",
        state="online",
        reasons=reasons,
        uptime_s=1,
        inspected=1,
        camera=CameraHealth(
            connected=True, fault=None, frames=1, reconnects=0, fps=1, brightness=None, sharpness=None, noise=None
        ),
        drift=DriftHealth(state="unknown", direction=None, effect=None, p_value=None, frames=0),
        stages_ms={},
        queued={},
        dropped={},
        temperatures_c={},
        resident_bytes=1,
    )
    return heard("health", message.payload())


def test_health_is_told_where_it_has_news_that_status_has_not() -> None:
    lines = said(
        health(),
        heard("status", Status(state="degraded", reasons=("camera-stalled: 5 s",), session="abc").payload()),
        health("camera-stalled: no frame for 6 s"),
        health("scores-drift: higher than at calibration"),
        health("scores-drift: higher still"),
        health(),
    )
    assert [line.partition(f"{STATION}  ")[2] for line in lines] == [
        "degraded: camera-stalled: 5 s",
        "health: scores-drift: higher than at calibration",
        "health: all well again",
    ]


def test_commands_replies_and_pictures() -> None:
    lines = said(
        heard("cmd/pause", b'{"by": "anna"}'),
        heard("reply/pause", Reply(verb="pause", ok=True, result={"state": "paused"}).payload()),
        heard("reply/reload", Reply(verb="reload", ok=False, error="reload-refused: no bundle").payload()),
        heard("snapshot/7/image", bytes(2048)),
        heard("alert/a1/image", bytes(1024)),
        heard("status", Status(state="degraded", reasons=("paused: by anna",), session="abc").payload()),
        heard("status", b"{}"),
        heard("elsewhere", b"nothing of ours"),
    )
    assert [line.partition(f"{STATION}  ")[2] for line in lines] == [
        'command pause {"by": "anna"}',
        "reply to pause: done state paused",
        "reply to reload: reload-refused: no bundle",
        "snapshot 7, 2 KiB",
        "picture a1, 1 KiB",
        "degraded: paused: by anna",
        "status: not a message of ours: Field required",
    ]
