import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

import engines  # noqa: F401 - turns ONNX Runtime's telemetry off before any test imports it
from tests.support.browser import browser, console_errors, page, phone, screenshot  # noqa: F401 - fixtures for all
from tests.support.mosquitto import Mosquitto, Subscriber

# No deadline: tests never judge by the clock, which on a shared machine says nothing.
settings.register_profile("cbigan-station", deadline=None)
settings.load_profile("cbigan-station")

# A shell that starts the tests in the background lets them ignore SIGINT, and the programs that they start inherit it:
# tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test's command line makes of the log ends with the test; loggers that remember it would keep it."""
    configure = structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **given: configure(**given | {"cache_logger_on_first_use": False})
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test's stations keep their outbox, plans and the like apart from each other's and the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path.with_name(f"{tmp_path.name}-cache")))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


@pytest.fixture
def subscriber(broker: Mosquitto) -> Iterator[Subscriber]:
    with Subscriber(broker.port) as subscriber:
        yield subscriber
