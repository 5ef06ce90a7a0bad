"""A double of an engine that hangs, as a GPU's driver may: the real station, but when a file appears, scoring blocks.

``python -m tests.support.hanging_station run --config FILE``; the file is ``$HANG_WHEN_THERE``. It is removed
as the engine blocks, so that the station that is started next does not.
"""

import os
import threading
from pathlib import Path

import engines.opening
from engines.engine import Engine, EngineInfo, PatchScores, UInt8Array

HANG = Path(os.environ["HANG_WHEN_THERE"])


class HangingEngine:
    """The engine, until the file appears."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def score(self, patches: UInt8Array) -> PatchScores:
        if HANG.exists():
            HANG.unlink()
            threading.Event().wait()
        return self._engine.score(patches)

    def close(self) -> None:
        self._engine.close()


_open_engine = engines.opening.open_engine
engines.opening.open_engine = lambda *arguments: HangingEngine(_open_engine(*arguments))

from station.cli import main  # noqa: E402 - its modules take open_engine as they are imported

main()
