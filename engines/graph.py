"""A look into a serialized ONNX graph without the onnx package, which line devices do not have.

A bundle comes from somewhere else, and its graph is a program: what the engines run must be a scorer and nothing more.
"""

from collections.abc import Iterator

from engines.errors import BundleError

# Only what can hold a tensor, from onnx.proto: message -> field number -> message in that field.
_NESTED: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of Tensor
_VARINT, _LENGTH_DELIMITED, _FIXED_BYTES = 0, 2, {1: 8, 5: 4}  # wire types of protobuf


# What a scorer may compute: all that station-train exports (train/graph_rules.py). None of them runs graphs or
# code of its own, and none makes much out of nothing but Resize, which has to.
OPERATORS = frozenset({
    "Abs", "Add", "AveragePool", "Cast", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Div", "Gemm",
    "LeakyRelu", "Mul", "QuantizeLinear", "ReduceSum", "Reshape", "Resize", "Slice", "Sqrt", "Sub", "Tanh",
    "Transpose",
})  # fmt: skip
MAX_NODES = 10_000  # a scorer has some hundred
_OP_TYPE, _DOMAIN = 4, 7  # fields of Node
_FUNCTIONS = 25  # field of Model


def refuse_untrusted_graph(scorer: bytes) -> None:
    """Refuse a graph that is more than a scorer; see the two below.

    Raises:
        BundleError: it is, or the bytes are no protobuf message.
    """
    refuse_external_data(scorer)
    refuse_foreign_operators(scorer)


def refuse_external_data(scorer: bytes) -> None:
    """Refuse a graph whose weights lie outside its own bytes.

    ONNX lets a tensor name a file, and ONNX Runtime, given a graph as bytes, reads it from the working directory
    (seen with 1.17 and 1.32; 1.17 even takes a memory address). Such weights are not covered by the manifest.

    Raises:
        BundleError: a tensor has external data, or the bytes are no protobuf message.
    """
    for message, field, value in _walk(scorer):
        if message == "Tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)):
            raise BundleError(
                "the scorer keeps weights in another file (ONNX external data), which no hash covers; export "
                "the bundle again with the weights inside the graph"
            )


def refuse_foreign_operators(scorer: bytes) -> None:
    """Refuse operators that no scorer needs: loops that do not end, tensors of terabytes from a number, functions.

    ONNX Runtime would run them (seen with 1.32: a Loop of 2**62 turns is taken, and 200,000 nodes keep it busy for
    minutes), and a line device would hang or run out of memory.

    Raises:
        BundleError: there is one, or the bytes are no protobuf message.
    """
    nodes = 0
    for message, field, value in _walk(scorer):
        if message == "Model" and field == _FUNCTIONS:
            raise BundleError("the scorer defines functions of its own, which no exported scorer does")
        if message != "Node" or not isinstance(value, memoryview):
            continue
        if field == _OP_TYPE:
            nodes += 1
            operator = bytes(value[:64]).decode("utf-8", "replace")
            if operator not in OPERATORS:
                raise BundleError(f"the scorer uses the operator {operator!r}, which no exported scorer does")
            if nodes > MAX_NODES:
                raise BundleError(f"the scorer has more than {MAX_NODES} nodes, which no exported scorer has")
        if field == _DOMAIN and bytes(value[:8]) not in (b"", b"ai.onnx"):
            domain = bytes(value[:64]).decode("utf-8", "replace")
            raise BundleError(f"the scorer uses operators of {domain!r}, not of ONNX itself")


def _walk(scorer: bytes) -> Iterator[tuple[str, int, int | memoryview]]:
    """(message, field, value) of every field of every message in ``_NESTED``, in no particular order."""
    todo = [("Model", memoryview(scorer))]
    try:
        while todo:
            message, data = todo.pop()
            for field, value in _fields(data):
                yield message, field, value
                if isinstance(value, memoryview) and field in _NESTED[message]:
                    todo.append((_NESTED[message][field], value))
    except ValueError as error:
        raise BundleError(f"the scorer is no ONNX graph: {error}; export the bundle again") from error


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field; numbers of fixed width, which no field we look for has, come as 0."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value: int | memoryview = 0
        wire_type = key & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at)
        elif wire_type == _LENGTH_DELIMITED:
            length, at = _varint(message, at)
            value = message[at : at + length]
            at += length
        elif wire_type in _FIXED_BYTES:
            at += _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"byte {at} starts no protobuf field")
        if at > len(message):
            raise ValueError("a field reaches past the end of its message")
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A protobuf variable-length integer (at most ten bytes) and where the next thing starts."""
    value = 0
    for position, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, at + position + 1
    raise ValueError("a number does not end")
