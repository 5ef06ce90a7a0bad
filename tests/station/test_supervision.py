"""What makes a station tell of itself, and what counts as a sign of life."""

from dataclasses import dataclass, field

import pytest

from station.messages import Status
from station.supervision import REASON_REFRESH, Supervision


@dataclass
class Outside:
    """Double of systemd's line and the broker: remembers what it was told."""

    watchdog_seconds: float | None = 4.0
    told: list[str] = field(default_factory=list)
    published: list[Status] = field(default_factory=list)

    def notify(self, **fields: str | int) -> None:
        self.told += fields


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
def supervision(outside: Outside) -> Supervision:
    return Supervision(outside, "session", outside.published.append)  # type: ignore[arg-type]  # a double


def test_a_state_is_published_once(supervision: Supervision, outside: Outside) -> None:
    assert supervision.report("online", (), 0)
    assert not supervision.report("online", (), 1)
    assert supervision.report("degraded", ("camera-stalled: no frame for 5 s",), 2)
    assert [status.state for status in outside.published] == ["online", "degraded"]


def test_the_same_reason_in_new_words_waits_and_another_reason_does_not(
    supervision: Supervision, outside: Outside
) -> None:
    supervision.report("degraded", ("camera-stalled: no frame for 5 s",), 0)
    supervision.report("degraded", ("camera-stalled: no frame for 6 s",), 1)
    assert len(outside.published) == 1
    supervision.report("degraded", ("camera-stalled: no frame for 40 s",), REASON_REFRESH + 1)
    assert outside.published[-1].reasons == ("camera-stalled: no frame for 40 s",)
    supervision.report("degraded", ("camera-black: 3 of 255",), REASON_REFRESH + 2)
    assert outside.published[-1].reasons == ("camera-black: 3 of 255",)


def test_the_watchdog_is_fed_only_on_progress_or_where_a_published_camera_fault_explains_its_lack(
    supervision: Supervision, outside: Outside
) -> None:
    supervision.report("online", (), 0)
    supervision.feed(1, 10, starved=False)
    assert outside.told == ["READY", "WATCHDOG"]
    supervision.feed(1, 20, starved=False)
    supervision.feed(1, 30, starved=True)  # but nobody was told yet
    assert outside.told == ["READY", "WATCHDOG"]
    supervision.report("degraded", ("outbox-memory: disk full",), 40)
    supervision.feed(1, 40, starved=False)  # a full disk explains no missing frame
    assert outside.told == ["READY", "WATCHDOG"]
    supervision.report("degraded", ("camera-stalled: no frame",), 50)
    supervision.feed(1, 50, starved=True)
    assert outside.told == ["READY", "WATCHDOG", "WATCHDOG"]
    supervision.feed(2, 50.1, starved=False)  # not yet due
    assert len(outside.told) == 3
    supervision.feed(2, 60, starved=False)
    assert len(outside.told) == 4


def test_before_ready_systemd_is_asked_for_time(supervision: Supervision, outside: Outside) -> None:
    supervision.feed(0, 10, starved=False)
    assert outside.told == []
    supervision.feed(1, 20, starved=False)  # a step of the engine's build
    assert outside.told == ["EXTEND_TIMEOUT_USEC"]
