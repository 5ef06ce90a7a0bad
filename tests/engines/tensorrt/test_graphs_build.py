"""Every kind of graph that is exported, parsed and built by NVIDIA's real parser and builder. No GPU is needed."""

import pytest

from engines.manifest import scorer_tensors
from engines.tensorrt import library
from engines.tensorrt.builder import BuildOptions, build_plan

pytest.importorskip("torch", reason="the extra 'train' is not installed")
from tests.support.scorers import image_size, make_graph

pytestmark = pytest.mark.skipif(library.problem() is not None, reason="the extra 'tensorrt' is not installed")

# The smallest, the usual and the largest width; both categories; both ways in which the feature error is computed; a
# locator.
SCORERS = [
    ("block0.conv1", "texture", 3, False),
    ("block2", "object", 16, False),
    ("block0.conv1", "texture", 64, False),
    ("block0.conv1", "texture", 8, True),
]
PRECISIONS = ["fp32", "fp16", "int8"]  # in this order: int8 is made from the fp32 graph, which is kept


@pytest.fixture(scope="module", params=SCORERS, ids=lambda scorer: "-".join(map(str, scorer)))
def scorer(request):
    yield request.param
    make_graph.cache_clear()  # hundreds of megabytes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_is_parsed_and_built(scorer, precision):
    layer, category, width, locator = scorer
    size = image_size(category)
    options = BuildOptions(precision, max_patches=60, workspace=2**30)

    graph = make_graph(layer, category, width, precision, locator=locator)
    built = build_plan(graph, scorer_tensors(size, anomaly_map=locator), options)

    tensors = {t.name: (t.direction, t.dtype, t.shape) for t in built.inspection.tensors}
    assert tensors == {
        "patches": ("in", "uint8", (-1, size, size, 3)),
        "reconstruction_error": ("out", "float32", (-1,)),
        "feature_error": ("out", "float32", (-1,)),
        "residual": ("out", "float32", (-1, size, size)),
        **({"anomaly_map": ("out", "float32", (-1, size, size))} if locator else {}),
    }
    assert built.inspection.patches == (1, 60, 60)
    kinds = {dtype: sum(dtype in layer.dtypes for layer in built.inspection.layers) for dtype in ("float16", "int8")}
    # One layer at least for each convolution of the networks (fp16), or for each quantized one (int8).
    assert kinds["float16"] >= (48 if precision == "fp16" else 0)
    assert kinds["int8"] >= (20 if precision == "int8" else 0)
    if precision != "int8":
        assert kinds["int8"] == 0
    if precision != "fp16":
        assert kinds["float16"] == 0
