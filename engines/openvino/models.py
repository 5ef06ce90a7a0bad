"""Compiled models of a bundle on this CPU: taken from the cache, or else compiled and kept there."""

import hashlib
import io
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any, Literal

import structlog

from engines.bundle import SCORER_FILES, Bundle
from engines.cache import (
    DeviceFacts,
    Entry,
    Inspection,
    PlanFacts,
    PlanLayer,
    PlanManifest,
    PlanTensor,
    open_cache,
)
from engines.cpu import Found, check_graph, count_threads, cpu_name
from engines.engine import EngineSettings, OnProgress, Precision, from_lowest
from engines.errors import BackendError, PlanError
from engines.openvino import library

log = structlog.get_logger(__name__)

# What OpenVINO is told to compute in, and what it calls a CPU that is made for it. fp16 is left out: processors that
# have it were not at hand, and on all others OpenVINO quietly takes another type.
HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}

_DTYPES = {
    "boolean": "bool",
    "u8": "uint8",
    "i8": "int8",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
}
_INT8 = {"uint8", "int8"}
_NOT_COMPUTED = {"Const", "Input", "Output"}


def describe_device() -> DeviceFacts:
    """The library and the CPU that models are compiled for here.

    Raises:
        BackendError: no OpenVINO.
    """
    return DeviceFacts(
        library=library.NAME,
        version=library.version(),
        name=cpu_name(),
        capability=" ".join(sorted(library.capabilities() & set(CAPABILITIES.values()))),
    )


def computable(bundle: Bundle, lowest: Precision) -> list[Precision]:
    """Precisions from ``lowest`` upwards that this CPU and the bundle have; fp32 is one."""
    found = []
    for precision in from_lowest(lowest, CAPABILITIES):
        if CAPABILITIES[precision] not in library.capabilities():
            log.warning(
                "this CPU is not made for this precision; the next higher one is taken",
                precision=precision,
                cpu=cpu_name(),
            )
        elif _graph(bundle, precision) is None:
            log.warning(
                "the bundle has no graph for this precision; the next higher one is taken",
                precision=precision,
                way_out=f"station-train export --precision {precision}",
            )
        else:
            found.append(precision)
    return found


def obtain_model(
    bundle: Bundle, settings: EngineSettings, precision: Precision, on_progress: OnProgress, *, rebuild: bool = False
) -> tuple[bytes, Entry]:
    """A compiled model from the cache, or else a new one, which then is in the cache. It is not judged here.

    Args:
        bundle: a verified bundle.
        settings: ``cache`` is followed.
        precision: one of :func:`computable`.
        on_progress: told when compiling begins.
        rebuild: compile even if there is one.

    Raises:
        BackendError: OpenVINO refuses the graph or does not compute in this precision, the graph is not what the
            manifest says, or the cache cannot be trusted.
    """
    graph = _graph(bundle, precision)
    if graph is None:
        raise BackendError(f"{bundle.path}: has no graph for {precision}")
    facts = PlanFacts(scorer_sha256=hashlib.sha256(graph).hexdigest(), device=describe_device(), precision=precision)

    def build() -> tuple[bytes, PlanManifest]:
        on_progress(f"compiling for this CPU in {precision}", 0.0)
        started = time.monotonic()
        compiled = _compile(bundle, graph, precision, settings)
        model = io.BytesIO()
        compiled.export_model(model)
        seconds = time.monotonic() - started
        on_progress(f"judging {precision}", 0.5)
        return model.getvalue(), PlanManifest(
            facts=facts,
            bundle_name=bundle.manifest.name,
            bundle_sha256=bundle.digest,
            built_at=datetime.now(timezone.utc),
            build_seconds=round(seconds, 3),
            inspection=_inspect(bundle, compiled),
        )

    return open_cache(settings).obtain([facts], build, on_progress, rebuild=rebuild)


def load_model(model: bytes, precision: Precision, settings: EngineSettings) -> Any:  # noqa: ANN401
    """OpenVINO's ``CompiledModel`` of what :func:`obtain_model` returned.

    Raises:
        PlanError: OpenVINO does not take it.
    """
    try:
        return library.core().import_model(io.BytesIO(model), library.DEVICE, properties(precision, settings))
    except RuntimeError as error:
        raise PlanError(f"OpenVINO {library.version()} refuses the compiled model ({library.reason(error)})") from error


def _graph(bundle: Bundle, precision: Precision) -> bytes | None:
    """bf16 is made of fp32's graph."""
    return bundle.variant("fp32" if precision == "bf16" else precision)


def properties(precision: Precision, settings: EngineSettings) -> dict[str, Any]:
    """What OpenVINO is told when it compiles or loads a model."""
    # What an int8 graph leaves in float is computed as low as the CPU can: who allows int8 allows bf16.
    floats: Precision = "fp32" if precision == "fp32" or "BF16" not in library.capabilities() else "bf16"
    return {
        "INFERENCE_PRECISION_HINT": HINTS[floats],
        "PERFORMANCE_HINT": settings.mode.upper(),
        "INFERENCE_NUM_THREADS": count_threads(settings),
        # Or two stations on one machine would be tied to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _compile(bundle: Bundle, graph: bytes, precision: Precision, settings: EngineSettings) -> Any:  # noqa: ANN401
    name = SCORER_FILES["int8" if precision == "int8" else "fp32"]
    file = bundle.path / name
    try:
        # Not Core.read_model, which also takes OpenVINO's own format and others, past the checks made on ONNX graphs.
        frontend = library.openvino().frontend.FrontEndManager().load_by_framework("onnx")
        model = frontend.convert(frontend.load(io.BytesIO(graph)))
        check_graph(bundle.manifest, file, _tensors(model.inputs), _tensors(model.outputs))
        compiled = library.core().compile_model(model, library.DEVICE, properties(precision, settings))
    except library.errors() as error:
        raise BackendError(
            f"{file}: OpenVINO {library.version()} refuses the graph ({library.reason(error)}); export the bundle "
            "again with this version's station-train, or set engine.backend to onnxruntime"
        ) from error
    return compiled


def _tensors(nodes: Iterable[Any]) -> list[Found]:
    return [
        Found(
            node.any_name,
            _DTYPES.get(node.element_type.to_string(), node.element_type.to_string()),
            tuple(-1 if size.is_dynamic else size.get_length() for size in node.partial_shape),
        )
        for node in nodes
    ]


def _inspect(bundle: Bundle, compiled: Any) -> Inspection:  # noqa: ANN401
    directions: tuple[tuple[Literal["in", "out"], Any], ...] = (
        ("in", bundle.manifest.inputs),
        ("out", bundle.manifest.outputs),
    )
    layers = [_layer(node) for node in compiled.get_runtime_model().get_ordered_ops()]
    return Inspection(
        tensors=tuple(
            PlanTensor(name=tensor.name, direction=direction, dtype=tensor.dtype, shape=tensor.shape)
            for direction, tensors in directions
            for tensor in tensors
        ),
        layers=tuple(layer for layer in layers if layer.kind not in _NOT_COMPUTED),
    )


def _layer(node: Any) -> PlanLayer:  # noqa: ANN401
    facts = node.get_rt_info()
    dtype = facts["runtimePrecision"].astype(str)
    return PlanLayer(
        name=node.get_friendly_name(), kind=facts["layerType"].astype(str), dtypes=(_DTYPES.get(dtype, dtype),)
    )
