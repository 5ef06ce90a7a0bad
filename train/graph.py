"""The scorer as an ONNX graph: written here, and opened here once more for pictures of the reconstruction."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import onnxruntime
import torch

from engines.engine import Float32Array, UInt8Array
from engines.manifest import scorer_tensors
from train.graph_rules import IR_VERSION, OPSET, GraphError, check_graph
from train.rewrites import rewrite
from train.scorer import Scorer

RECONSTRUCTION = "reconstruction"
"""Inner tensor of the graph, float32 (N, 3, P, P): G(E(x)). Not an output, so engines need not copy it out."""


_CHUNK = 64  # patches reconstructed at once


def export_graph(scorer: Scorer, patch_size: int, dtype: torch.dtype = torch.float32) -> bytes:
    """Write the scorer as ONNX: any number of patches, weights inside.

    Args:
        scorer: the model, in any precision.
        patch_size: side of the patches.
        dtype: float32, or float16 for a graph whose networks compute in it.

    Raises:
        GraphError: the graph breaks a rule of ``train.graph_rules``.
    """
    model = plain_graph(scorer, patch_size, dtype)
    rewrite(model)
    del model.graph.output[-1]  # the reconstruction stays as an inner tensor
    onnx.checker.check_model(model, full_check=True)
    check_graph(model)
    return bytes(model.SerializeToString())


def plain_graph(scorer: Scorer, patch_size: int, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """The graph as torch writes it, before ``train.rewrites``; ``reconstruction`` is its last output."""
    outputs = [t.name for t in scorer_tensors(patch_size, anomaly_map=scorer.has_map)[1]]
    example = torch.zeros(2, patch_size, patch_size, 3, dtype=torch.uint8)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            copy.deepcopy(scorer).to(dtype).cpu().eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["patches"],
            output_names=[*outputs, RECONSTRUCTION],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            external_data=False,
            verbose=False,
        )
    if program is None:  # by its signature; the dynamo exporter always returns one
        raise GraphError("torch exported nothing")
    model: onnx.ModelProto = program.model_proto
    _tidy(model)
    return model


def _tidy(model: onnx.ModelProto) -> None:
    """Leave what engines need: no inferred shapes, no names and paths of the exporting machine."""
    model.ir_version = IR_VERSION
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.input, *graph.output, *graph.initializer, *graph.node):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself: the opset's conversion, torchvision's absence, deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Reconstructor:
    """G(E(x)) from a bundle's graph, for pictures."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Open a graph whose only output is ``reconstruction``; :func:`open_reconstructor` makes one."""
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def __call__(self, patches: UInt8Array) -> Float32Array:
        """uint8 (N, P, P, 3) -> float32 (N, P, P, 3) in 0..255, the model's colour."""
        chunks = (patches[i : i + _CHUNK] for i in range(0, len(patches), _CHUNK))
        images = np.concatenate([self._session.run([RECONSTRUCTION], {"patches": chunk})[0] for chunk in chunks])
        scaled: Float32Array = (images.transpose(0, 2, 3, 1) + 1) * np.float32(127.5)
        return scaled


def open_reconstructor(scorer: bytes) -> Reconstructor | None:
    """Make the graph's inner tensor ``reconstruction`` its output; None if this graph names no such tensor.

    Args:
        scorer: ONNX graph of a bundle. Only :func:`export_graph` promises the name; the bundle format does not.
    """
    model = onnx.load_from_string(scorer)
    if not any(RECONSTRUCTION in node.output for node in model.graph.node):
        return None
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(RECONSTRUCTION, onnx.TensorProto.FLOAT, None))
    return Reconstructor(model)
