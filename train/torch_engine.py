"""The scorer without a bundle, for measuring many models where they were trained; what ships is checked by export."""

import copy

import numpy as np
import torch

from engines.engine import EngineInfo, PatchScores, UInt8Array
from train.scorer import Scorer

_CHUNK = 256  # patches at once


class TorchEngine:
    """An :class:`engines.engine.Engine` that computes with torch, in float32."""

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        """Copy the scorer to ``device``."""
        self._scorer = copy.deepcopy(scorer).float().to(device).eval()
        self._device = device

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""
        return EngineInfo("torch", torch.__version__, str(self._device), "fp32")

    @torch.no_grad()
    def score(self, patches: UInt8Array) -> PatchScores:
        """Score uint8 patches (N, P, P, 3), N >= 1."""
        chunks = [self._scorer(chunk.to(self._device)) for chunk in torch.split(torch.from_numpy(patches), _CHUNK)]
        *outputs, _ = (np.concatenate([part.cpu().numpy() for part in parts]) for parts in zip(*chunks, strict=True))
        return PatchScores(*outputs)

    def close(self) -> None:
        """Nothing to free that Python does not."""
