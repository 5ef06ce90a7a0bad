"""Choosing weights by the test set, as the published figures did: for ``--protocol paper`` and nothing else."""

from pathlib import Path
from typing import Literal

from engines.images import read_image
from engines.tiling import Tiler
from train import methods
from train.config import FitConfig
from train.fit import Trainer
from train.labelled import find_labelled_images
from train.metrics import image_metrics
from train.torch_engine import TorchEngine


class TestSelection:
    """Image auROC of a trainer's averaged weights on ``data/test``."""

    __test__ = False  # not a pytest class

    def __init__(self, data: Path, config: FitConfig, colour: Literal["rgb", "gray"]) -> None:
        """Read the test images.

        Raises:
            DataError: ``data`` has no test images of both kinds.
            ImageError: one of them cannot be read.
        """
        tiler = Tiler(config.preprocessing(colour))
        images = find_labelled_images(data)
        self._anomalous = [image.defect is not None for image in images]
        self._patches = [tiler.patches(tiler.prepare(read_image(image.path))) for image in images]
        self._config = config

    def __call__(self, trainer: Trainer) -> float:
        """Image auROC with frame score = max over patches (paper, V.B)."""
        scorer = methods.load(self._config.method).scorer(*trainer.averaged, trainer.critic, self._config.feature_layer)
        engine = TorchEngine(scorer, trainer.fabric.device)
        scores: dict[bool, list[float]] = {False: [], True: []}
        for patches, anomalous in zip(self._patches, self._anomalous, strict=True):
            scores[anomalous].append(float(engine.score(patches).anomaly_score(self._config.lambda_).max()))
        return image_metrics(scores[False], scores[True]).auroc
