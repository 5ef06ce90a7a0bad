"""Frame in, inspection out: the one path that inspect, calibrate, run, bench and demo share."""

from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from engines.engine import Engine, PatchScores, UInt8Array
from engines.errors import BackendError
from engines.judging import Judging
from engines.tiling import PatchGrid, Tiler
from station.frames import Inspection
from station.judge import frame_score
from station.settings import JudgeSettings

__all__ = ["Inspection", "Inspector", "Prepared", "Scored"]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A frame, ready for the engine.

    Attributes:
        grid: where the N patches lie.
        patches: uint8 (N, P, P, 3), RGB.
        ms: milliseconds by stage: prepare.
    """

    grid: PatchGrid = field(repr=False)
    patches: UInt8Array = field(repr=False)
    ms: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What the engine makes of a frame.

    Attributes:
        grid: where the N patches lie.
        scores: of the N patches.
        ms: milliseconds by stage: prepare, infer.
    """

    grid: PatchGrid = field(repr=False)
    scores: PatchScores = field(repr=False)
    ms: dict[str, float]


class Inspector:
    """Cuts a frame into patches, scores them and judges the frame.

    Each of the three steps may have a thread of its own; a step is done for one frame at a time.
    """

    def __init__(self, engine: Engine, tiler: Tiler, judging: Judging, judge: JudgeSettings) -> None:
        """Wire the parts.

        Args:
            engine: scores patches.
            tiler: cuts frames as the model was trained.
            judging: how the bundle's scores judge a patch.
            judge: how patch scores become the frame's score.
        """
        self._engine = engine
        self._tiler = tiler
        self._judging = judging
        self._judge = judge

    def inspect(self, image: UInt8Array) -> Inspection:
        """Inspect one frame: all three steps.

        Args:
            image: uint8 (H, W, 3), BGR.

        Raises:
            ValueError, BackendError: as the steps do.
        """
        return self.judge(self.infer(self.prepare(image)))

    def prepare(self, image: UInt8Array) -> Prepared:
        """Make the patches of a frame.

        Args:
            image: uint8 (H, W, 3), BGR.

        Raises:
            ValueError: the frame or the region of interest does not suit the model; says what to do.
        """
        start = perf_counter()
        grid = self._tiler.grid(image.shape[:2])
        patches = self._tiler.patches(self._tiler.prepare(image))
        return Prepared(grid, patches, {"prepare": _ms_since(start)})

    def infer(self, prepared: Prepared) -> Scored:
        """Score the patches of a frame.

        Raises:
            BackendError: the engine failed.
        """
        start = perf_counter()
        scores = self._engine.score(prepared.patches)
        return Scored(prepared.grid, scores, prepared.ms | {"infer": _ms_since(start)})

    def judge(self, scored: Scored) -> Inspection:
        """Judge a frame by its patches.

        Raises:
            BackendError: the engine returned a score that is no number.
        """
        start = perf_counter()
        judged = self._judging(scored.scores, scored.grid)
        patch_scores = judged.patch_scores
        # NaN is above no threshold: every defect would pass as good from here on.
        if not np.isfinite(patch_scores).all():
            bad = int(np.count_nonzero(~np.isfinite(patch_scores)))
            raise BackendError(
                f"the engine returned NaN or infinity for {bad} of {scored.grid.n} patches; "
                "try a higher precision, or check the device with `station engine verify`"
            )
        return Inspection(
            score=frame_score(patch_scores, self._judge),
            patch_scores=patch_scores,
            heat=judged.heat,
            grid=scored.grid,
            ms=scored.ms | {"judge": _ms_since(start)},
        )


def _ms_since(start: float) -> float:
    return 1e3 * (perf_counter() - start)
