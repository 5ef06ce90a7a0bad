"""Frame in, inspection out: the one path that inspect, calibrate, run, bench and demo share."""

from time import perf_counter

import numpy as np

from engines.engine import Engine, UInt8Array
from engines.errors import BackendError
from engines.judging import Judging
from engines.tiling import Tiler
from station.frames import Inspection
from station.judge import frame_score
from station.settings import JudgeSettings

__all__ = ["Inspection", "Inspector"]


class Inspector:
    """Cuts a frame into patches, scores them and judges the frame. One thread uses it at a time."""

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
        """Inspect one frame.

        Args:
            image: uint8 (H, W, 3), BGR.

        Raises:
            ValueError: the frame or the region of interest does not suit the model; says what to do.
            BackendError: the engine failed, or returned a score that is no number.
        """
        start = perf_counter()
        grid = self._tiler.grid(image.shape[:2])
        patches = self._tiler.patches(self._tiler.prepare(image))
        prepared = perf_counter()
        scores = self._engine.score(patches)
        inferred = perf_counter()
        judged = self._judging(scores, grid)
        patch_scores = judged.patch_scores
        # NaN is above no threshold: every defect would pass as good from here on.
        if not np.isfinite(patch_scores).all():
            bad = int(np.count_nonzero(~np.isfinite(patch_scores)))
            raise BackendError(
                f"the engine returned NaN or infinity for {bad} of {grid.n} patches; "
                "try a higher precision, or check the device with `station engine verify`"
            )
        score = frame_score(patch_scores, self._judge)
        done = perf_counter()
        return Inspection(
            score=score,
            patch_scores=patch_scores,
            heat=judged.heat,
            grid=grid,
            ms={
                "prepare": 1e3 * (prepared - start),
                "infer": 1e3 * (inferred - prepared),
                "judge": 1e3 * (done - inferred),
            },
        )
