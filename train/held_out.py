"""Validation of a run on the images that were held out from its training."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from engines.engine import Engine, EngineInfo, Float32Array, PatchScores, UInt8Array
from engines.images import read_image
from engines.tiling import Tiler
from train.checkpoint import Trained
from train.config import FitConfig
from train.data import TrainingImages, spread
from train.evaluate import FrameScorer
from train.export import describe, make_scorer
from train.standards import fit_standards
from train.torch_engine import TorchEngine
from train.validation import Validation, validate

PLANTED = 84  # frames with planted defects, twelve of each kind
FRAMES = 28  # held-out images in each half, at most
_REMEMBERED = 8192  # patches; their maps take 256 MiB


class Validator:
    """Validates runs on the images that were held out from their training.

    Every other of them is what scales and standards by place are measured on, as ``export`` does; the rest are judged
    as they are and with planted defects, the same ones in every run. So no frame is compared with itself.
    """

    def __init__(self, images: TrainingImages, base: FitConfig) -> None:
        """Read the held-out images."""
        preprocessing = base.preprocessing(images.colour)
        tiler = Tiler(preprocessing)
        self._fitted_paths, judged_paths = (spread(images.held_out[first::2], FRAMES) for first in (0, 1))
        # As the model sees them, so that planted defects have the size of those that it is trained on; BGR, as frames.
        self._fitted, self._judged = (
            [tiler.prepare(read_image(path))[:, :, ::-1].copy() for path in paths]
            for paths in (self._fitted_paths, judged_paths)
        )
        self._preprocessing = preprocessing
        self._prepared = preprocessing.model_copy(update={"frame_size": None, "scale": 1.0})

    def __call__(self, trained: Trained, device: torch.device, on_frame: Callable[[], None]) -> Validation:
        """Validate a run.

        Args:
            trained: the run.
            device: what to compute on.
            on_frame: called before each frame.

        Raises:
            DataError: a score is not finite.
        """
        scorer = make_scorer(trained, self._fitted_paths, self._preprocessing)
        engine = _Remembering(TorchEngine(scorer, device))
        description = describe(trained, self._prepared, "trial")
        frames = FrameScorer(description, engine)

        def score(image: UInt8Array) -> tuple[float, Float32Array]:
            on_frame()
            scored = frames.score_image(image)
            return scored.score, scored.heat

        if trained.locator is not None:
            standards = fit_standards(score(image)[1] for image in self._fitted)
            frames = FrameScorer(description.model_copy(update={"standards": standards}), engine)
        per_image = -(-PLANTED // len(self._judged))
        return validate(score, self._judged, self._judged, per_image=per_image, patch=self._prepared.patch_size)


class _Remembering:
    """An engine that scores no patch twice: a planted frame differs from its original in a few."""

    def __init__(self, engine: Engine) -> None:
        """Wrap ``engine``."""
        self._engine = engine
        self._known: dict[bytes, PatchScores] = {}  # of one patch each

    @property
    def info(self) -> EngineInfo:
        """What the engine runs on."""
        return self._engine.info

    def score(self, patches: UInt8Array) -> PatchScores:
        """Score uint8 patches (N, P, P, 3), N >= 1."""
        keys = [hashlib.blake2b(patch, digest_size=16).digest() for patch in patches]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        found = {key: self._known[key] for key in keys if key not in new}
        if new:
            scores = self._engine.score(patches[list(new.values())])
            found |= {key: _pick(scores, slice(row, row + 1)) for row, key in enumerate(new)}
            for key in list(new)[: _REMEMBERED - len(self._known)]:
                self._known[key] = found[key]
        return _join([found[key] for key in keys])

    def close(self) -> None:
        """Forget, and close the engine."""
        self._known.clear()
        self._engine.close()


def _pick(scores: PatchScores, rows: slice) -> PatchScores:
    return PatchScores(
        scores.reconstruction_error[rows].copy(),
        scores.feature_error[rows].copy(),
        scores.residual[rows].copy(),
        None if scores.anomaly_map is None else scores.anomaly_map[rows].copy(),
    )


def _join(parts: Sequence[PatchScores]) -> PatchScores:
    maps = [part.anomaly_map for part in parts if part.anomaly_map is not None]
    return PatchScores(
        np.concatenate([part.reconstruction_error for part in parts]),
        np.concatenate([part.feature_error for part in parts]),
        np.concatenate([part.residual for part in parts]),
        np.concatenate(maps) if maps else None,
    )
