"""These tests need a GPU, its driver, pycuda and TensorRT or TensorRT-RTX; elsewhere they are skipped with the reason.

They take their bundle from the folder that STATION_TEST_BUNDLE names (on a Jetson, where there is no torch, name one
that was exported elsewhere), or else export one of untrained weights.
"""

import os
from pathlib import Path

import pytest

from engines.bundle import Bundle, read_bundle
from engines.errors import BackendError
from engines.tensorrt import library
from engines.tensorrt.gpu import describe_gpu


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    try:
        library.trt()
        describe_gpu()
    except BackendError as error:
        pytest.skip(f"nothing to test on: {error}")


@pytest.fixture(scope="session")
def bundle(_gpu, tmp_path_factory) -> Bundle:
    if given := os.environ.get("STATION_TEST_BUNDLE"):
        return read_bundle(Path(given))
    pytest.importorskip("torch", reason="no torch to export a bundle with; name one in STATION_TEST_BUNDLE")
    from benchmarks.gpu_engines import untrained_bundle

    return untrained_bundle(tmp_path_factory.mktemp("untrained"), width=16)
