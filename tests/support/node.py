"""Programs and libraries from npm, which deploy/test-packages.sh puts into .venv/node."""

import pytest

from tests.support.mosquitto import need
from tests.support.station_process import REPOSITORY

MODULES = REPOSITORY / ".venv/node/node_modules"


def need_module(name: str) -> str:
    """Path of Node.js; skips the test where it or the module is missing."""
    node = need("node")
    if not (MODULES / name).is_dir():
        pytest.skip(f"{name} is not installed (sh deploy/test-packages.sh)")
    return node
