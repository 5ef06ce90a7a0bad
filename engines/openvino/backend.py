"""The engine ``openvino``: a compiled model that passed the gate, and the requests that run it."""

from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from engines.bundle import Bundle
from engines.cache import PlanFacts, open_cache
from engines.cpu import check_patches, cpu_name, patches_at_once
from engines.engine import EngineInfo, EngineSettings, OnProgress, PatchScores, UInt8Array
from engines.errors import BackendError
from engines.gate import open_lowest
from engines.manifest import Manifest
from engines.openvino import library
from engines.openvino.models import computable, load_model, obtain_model

NAME = "openvino"


class OpenVinoEngine:
    """Scores patches with OpenVINO on the CPU. :func:`open_openvino` makes one that may serve.

    In mode 'latency' there is one request, which all threads work on. In mode 'throughput' there are as many as
    OpenVINO finds best for this CPU; each has threads of its own and works on another part of the frame.

    Args:
        compiled: OpenVINO's ``CompiledModel``.
        facts: what it is.
        manifest: of the bundle that it was made from.
        mode: of the settings; for :attr:`info`.
    """

    def __init__(self, compiled: Any, facts: PlanFacts, manifest: Manifest, mode: str) -> None:  # noqa: ANN401
        n_requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._requests: list[Any] = [compiled.create_infer_request() for _ in range(n_requests)]
        self._patch_size = manifest.preprocessing.patch_size
        self._outputs = [tensor.name for tensor in manifest.outputs]
        # All requests together get as many as the one of mode 'latency'.
        self._most = max(1, patches_at_once(manifest) // n_requests)
        self._info = EngineInfo(
            backend=NAME,
            backend_version=facts.device.version,
            device=f"{cpu_name()}, threads: {compiled.get_property('INFERENCE_NUM_THREADS')}, {mode}",
            precision=facts.precision,
            build_key=facts.key,
        )

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""
        return self._info

    def score(self, patches: UInt8Array) -> PatchScores:
        """Score uint8 patches (N, P, P, 3), N >= 1; memory beyond the result does not grow with N.

        Raises:
            BackendError: OpenVINO failed, or the engine is closed.
            ValueError: wrong shape or dtype.
        """
        check_patches(patches, self._patch_size)
        if not self._requests:
            raise BackendError("the engine is closed")
        N = len(patches)
        scores = PatchScores.empty(N, self._patch_size, anomaly_map="anomaly_map" in self._outputs)
        # Turns of one size, as OpenVINO makes ready for each new size; the last one overlaps the one before it.
        n_turns = max(-(-N // self._most), min(N, len(self._requests)))
        size = -(-N // n_turns)
        idle = deque(self._requests)
        under_way: deque[tuple[Any, slice]] = deque()
        try:
            for turn in range(n_turns):
                if not idle:
                    idle.append(self._collect(*under_way.popleft(), scores))
                start = min(turn * size, N - size)
                part = slice(start, start + size)
                request = idle.popleft()
                # The request reads them while it runs, so they must stay as they are: they do until score returns.
                request.start_async({"patches": np.ascontiguousarray(patches[part])}, share_inputs=True)
                under_way.append((request, part))
            while under_way:
                self._collect(*under_way.popleft(), scores)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO {library.version()} failed while scoring: {library.reason(error)}") from error
        finally:
            for request, _ in under_way:  # after an error; the next call must find idle requests
                with suppress(RuntimeError):  # the first is told
                    request.wait()
        return scores

    def close(self) -> None:
        """Free the model's memory. Closing twice is allowed."""
        self._requests = []

    def _collect(self, request: Any, part: slice, scores: PatchScores) -> Any:  # noqa: ANN401
        """Wait for a request and copy its results to ``part`` of the scores; returns it, idle."""
        request.wait()
        for name in self._outputs:
            getattr(scores, name)[part] = request.get_tensor(name).data
        return request


def open_openvino(bundle: Bundle, settings: EngineSettings, on_progress: OnProgress) -> OpenVinoEngine:
    """The engine of the lowest precision, from the wanted one upwards, that passes the gate on this CPU.

    Args:
        bundle: a verified bundle.
        settings: ``threads``, ``precision``, ``mode`` and ``cache`` are followed.
        on_progress: told what is done; most openings compile and judge nothing.

    Raises:
        BackendError: no OpenVINO, the graph is refused, or the cache cannot be trusted.
        SelfTestError: not even fp32 passes the gate.
    """

    def load(model: bytes, facts: PlanFacts) -> OpenVinoEngine:
        return OpenVinoEngine(load_model(model, facts.precision, settings), facts, bundle.manifest, settings.mode)

    return open_lowest(
        bundle,
        computable(bundle, settings.precision),
        open_cache(settings),
        lambda precision, rebuild: obtain_model(bundle, settings, precision, on_progress, rebuild=rebuild),
        load,
    )
