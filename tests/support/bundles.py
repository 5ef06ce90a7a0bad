"""Small bundles for tests: a toy detector whose outputs numpy can compute, no torch needed.

The toy takes every patch to be a flat grey surface: its "reconstruction" is one grey level everywhere. L_R is the
distance from that, and the "features" are differences between horizontal neighbours. A patch of exactly that grey
scores 0; scratches, stains and noise score more the stronger and larger they are.
"""

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import SELFTEST_PATCHES, Bundle, ExpectedScores, SelfTest, write_bundle
from engines.manifest import Description, Network, Preprocessing, Training, scorer_tensors

GREY = 128
LAMBDA = 0.1


def make_bundle(
    path: Path,
    patch_size: int = 32,
    *,
    stride: int | None = None,
    scale: float = 1.0,
    frame_size: tuple[int, int] | None = None,
    colour: Literal["rgb", "gray"] = "rgb",
    grey: int = GREY,
    name: str = "toy",
    seed: int = 0,
    smoothing: float | None = None,
) -> Bundle:
    """Write the toy detector as a bundle at ``path``; ``grey`` is the level that scores 0.

    With ``smoothing`` it also returns an anomaly map, which is its residual.
    """
    preprocessing = Preprocessing(
        colour=colour, frame_size=frame_size, scale=scale, patch_size=patch_size, stride=stride or patch_size
    )
    return write_bundle(
        path,
        make_description(preprocessing, name=name, smoothing=smoothing),
        toy_scorer(patch_size, grey, anomaly_map=smoothing is not None).SerializeToString(),
        make_selftest(patch_size, grey, seed, anomaly_map=smoothing is not None),
        "# Toy\n\nA test's detector of anything that is not flat grey.\n",
    )


def make_description(preprocessing: Preprocessing, name: str = "toy", smoothing: float | None = None) -> Description:
    inputs, outputs = scorer_tensors(preprocessing.patch_size, anomaly_map=smoothing is not None)
    return Description(
        name=name,
        created_at=datetime(2024, 1, 1, tzinfo=timezone.utc),
        category="texture",
        preprocessing=preprocessing,
        network=Network(width=1, latent_size=1, feature_layer="block0.conv1"),
        alpha=0.0,
        lambda_=LAMBDA,
        smoothing=smoothing,
        inputs=inputs,
        outputs=outputs,
        training=Training(data_fingerprint="0" * 64, n_images=1, steps=0, seconds=0.0, seed=0, preset="toy"),
    )


def make_selftest(patch_size: int, grey: int = GREY, seed: int = 0, *, anomaly_map: bool = False) -> SelfTest:
    patches = np.random.default_rng(seed).integers(
        0, 256, (SELFTEST_PATCHES, patch_size, patch_size, 3), dtype=np.uint8
    )
    scores = toy_scores(patches, grey)
    return SelfTest(patches, replace(scores, anomaly_map=scores.residual) if anomaly_map else scores)


def toy_scores(patches: np.ndarray, grey: int = GREY) -> ExpectedScores:
    """What the toy's graph computes, by numpy in float64."""
    difference = (patches.astype(np.float64) - grey) / 127.5
    neighbours = np.abs(difference[:, :, 1:] - difference[:, :, :-1])
    return ExpectedScores(
        reconstruction_error=np.abs(difference).sum(axis=(1, 2, 3)),
        feature_error=neighbours.sum(axis=(1, 2, 3)),
        residual=np.abs(difference).mean(axis=3),
    )


def toy_scorer(patch_size: int, grey: int = GREY, *, anomaly_map: bool = False) -> onnx.ModelProto:
    """The toy's graph; tests of refusals alter it."""
    constants = {
        "grey": np.float32(grey),
        "scale": np.float32(127.5),
        "colours": np.float32(3),
        "all_axes": np.array([1, 2, 3], np.int64),
        "colour_axis": np.array([3], np.int64),
        "width_axis": np.array([2], np.int64),
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "before_last": np.array([patch_size - 1], np.int64),
        "end": np.array([patch_size], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["patches"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x", "grey"], ["shifted"]),
        helper.make_node("Div", ["shifted", "scale"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("ReduceSum", ["distance", "all_axes"], ["reconstruction_error"], keepdims=0),
        helper.make_node("ReduceSum", ["distance", "colour_axis"], ["colour_sum"], keepdims=0),
        helper.make_node("Div", ["colour_sum", "colours"], ["residual"]),
        helper.make_node("Slice", ["difference", "second", "end", "width_axis"], ["right"]),
        helper.make_node("Slice", ["difference", "first", "before_last", "width_axis"], ["left"]),
        helper.make_node("Sub", ["right", "left"], ["step"]),
        helper.make_node("Abs", ["step"], ["step_size"]),
        helper.make_node("ReduceSum", ["step_size", "all_axes"], ["feature_error"], keepdims=0),
    ]
    if anomaly_map:
        nodes.append(helper.make_node("Abs", ["residual"], ["anomaly_map"]))
    inputs, outputs = scorer_tensors(patch_size, anomaly_map=anomaly_map)
    types = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}

    def infos(tensors):
        return [
            helper.make_tensor_value_info(t.name, types[t.dtype], ["N" if d < 0 else d for d in t.shape])
            for t in tensors
        ]

    graph = helper.make_graph(
        nodes,
        "toy",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    # Opset and IR version of the real scorers (train/graph.py).
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
