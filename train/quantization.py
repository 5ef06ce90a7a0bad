"""The scorer's graph for int8: pairs of QuantizeLinear and DequantizeLinear where TensorRT shall compute in integers.

What is quantized, and why not more, is in docs/decisions/0031-what-int8-quantizes.md.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from engines.engine import UInt8Array
from train.graph_rules import check_graph

# The three blocks of E and of G that work on the largest maps: three quarters of the arithmetic, nine tenths of the
# bytes. The others cost more accuracy than they save time.
QUANTIZED_BLOCKS = tuple(f"encoder.trunk.blocks.{i}." for i in (0, 1, 2)) + tuple(
    f"generator.blocks.{i}." for i in (3, 4, 5)
)
# What reads the image, or what the first block makes of it. On smooth material the rounding of these maps is the same
# everywhere and does not average out: on a fine grid it alone made twice the error of all the others together.
FLOAT_LAYERS = tuple(f"encoder.trunk.blocks.{i}.{layer}." for i in (0, 1) for layer in ("conv1", "skip"))

# TensorRT wants zero points of 0, weights as float32 behind a QuantizeLinear of their own, float biases, and nothing
# between a convolution and the addition and LeakyReLU behind it, which it computes in the same kernel.
_FOR_TENSORRT = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv"],
}
_CHUNK = 16  # patches at once


def quantize_graph(scorer: bytes, patches: UInt8Array) -> bytes:
    """Quantize a graph of ``train.graph.export_graph`` in float32.

    Weights get a scale for each output channel, activations one each, from the largest value that ``patches`` cause.

    Args:
        scorer: the graph, serialized.
        patches: uint8 (N, P, P, 3) of every kind that the graph has to score well.

    Raises:
        GraphError: the graph breaks a rule of ``train.graph_rules``.
    """
    model = onnx.load_from_string(scorer)
    # onnxruntime warns of models that did not go through its preparation, which does what torch's exporter has done.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    convolutions = [n.name for n in model.graph.node if n.op_type == "Conv" and _is_quantized(n.input[1])]
    with tempfile.TemporaryDirectory(prefix="station-train-") as folder:
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save_model(model, source)
        quantize_static(
            source,
            target,
            _Patches(patches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=convolutions,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=_FOR_TENSORRT,
        )
        quantized = onnx.load_model(target)
    del quantized.metadata_props[:]
    del quantized.graph.value_info[:]
    onnx.checker.check_model(quantized, full_check=True)
    check_graph(quantized)
    return bytes(quantized.SerializeToString())


def _is_quantized(weight: str) -> bool:
    return weight.startswith(QUANTIZED_BLOCKS) and not weight.startswith(FLOAT_LAYERS)


class _Patches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The graph's input, in chunks."""

    def __init__(self, patches: UInt8Array) -> None:
        starts = range(0, len(patches), _CHUNK)
        self._chunks: Iterator[UInt8Array] = iter([patches[start : start + _CHUNK] for start in starts])

    def get_next(self) -> dict[str, UInt8Array] | None:
        chunk = next(self._chunks, None)
        return None if chunk is None else {"patches": chunk}
