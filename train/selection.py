"""Choosing weights by the test set, as the published figures did: for ``--protocol paper`` and nothing else."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from engines.images import find_images, read_image
from engines.tiling import Tiler
from train.config import FitConfig
from train.data import DataError
from train.fit import Trainer
from train.scorer import Scorer

CHUNK = 256  # patches scored at once


class TestSelection:
    """Image auROC of a trainer's averaged weights on ``data/test``."""

    __test__ = False  # not a pytest class

    def __init__(self, data: Path, config: FitConfig, colour: Literal["rgb", "gray"]) -> None:
        """Read the test images.

        Raises:
            DataError: ``data`` has no test images of both kinds.
        """
        tiler = Tiler(config.preprocessing(colour))
        paths = find_images(data / "test") if (data / "test").is_dir() else []
        self._labels = [path.parent.name != "good" for path in paths]
        if not 0 < sum(self._labels) < len(paths):
            raise DataError(f"{data}: --protocol paper needs test/good/ and test/<defect>/ to choose the weights by")
        self._patches = [tiler.patches(tiler.prepare(read_image(path))) for path in paths]
        self._lambda = config.lambda_
        self._feature_layer = config.feature_layer

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> float:
        """Image auROC with frame score = max over patches (paper, V.B)."""
        scorer = Scorer(*trainer.averaged, trainer.critic, self._feature_layer)
        scores = []
        for patches in self._patches:
            best = -np.inf
            for chunk in torch.split(torch.from_numpy(patches), CHUNK):
                l_r, l_fd, *_ = scorer(chunk.to(trainer.fabric.device))
                best = max(best, float(((1 - self._lambda) * l_r + self._lambda * l_fd).max()))
            scores.append(best)
        return float(roc_auc_score(self._labels, scores))
