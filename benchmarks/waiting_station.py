"""``station`` with an engine that only waits, as for a GPU: what the rest of the daemon costs is then all there is.

BENCH_WAIT_MS in the environment says how long it takes for a frame. Started by benchmarks.pipeline.
"""

import os
import time

import numpy as np

from engines.bundle import Bundle
from engines.engine import Engine, EngineInfo, EngineSettings, OnProgress, PatchScores, UInt8Array
from station import inspecting
from station.cli import main


class WaitingEngine:
    """Takes its time and scores every patch the same."""

    info = EngineInfo("waiting", "1", "none", "fp32")

    def __init__(self, bundle: Bundle, seconds: float) -> None:
        self._seconds = seconds
        self._anomaly_map = any(tensor.name == "anomaly_map" for tensor in bundle.manifest.outputs)
        self._patch_size = bundle.manifest.preprocessing.patch_size

    def score(self, patches: UInt8Array) -> PatchScores:
        """Wait."""
        due = time.perf_counter() + self._seconds
        scores = PatchScores.empty(len(patches), self._patch_size, anomaly_map=self._anomaly_map)
        for values in (scores.reconstruction_error, scores.feature_error, scores.residual, scores.anomaly_map):
            if values is not None:
                values[...] = np.float32(0.01)
        time.sleep(max(0.0, due - time.perf_counter()))
        return scores

    def close(self) -> None:
        """Nothing to free."""


def open_waiting(bundle: Bundle, _settings: EngineSettings, _on_progress: OnProgress) -> Engine:
    """In place of ``open_engine``."""
    return WaitingEngine(bundle, float(os.environ["BENCH_WAIT_MS"]) / 1e3)


if __name__ == "__main__":
    inspecting.open_engine = open_waiting
    main()
