"""What the benchmark of GPUs makes before it needs one."""

import pytest
import torch

from benchmarks.gpu_engines import PRECISIONS, untrained_bundle


@pytest.mark.slow
def test_the_bundle_has_a_graph_for_every_precision_that_is_measured(tmp_path):
    torch.set_num_threads(1)
    bundle = untrained_bundle(tmp_path, width=3)
    assert [precision for precision in PRECISIONS if bundle.variant(precision) is None] == []
