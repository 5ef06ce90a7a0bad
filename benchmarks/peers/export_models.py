"""Runs in the peers' environment: writes anomalib's models as OpenVINO's, and runs them in PyTorch when told to.

Weights are random, for nothing is fetched and speed does not depend on them.

    python export_models.py write DIR --size 512          one .xml for each peer, and facts.json
    python export_models.py serve --size 512 --threads 2  says "ready", then for each name on a line of standard input
                                                          runs that peer on one frame and answers its milliseconds
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch

BANK = 2000  # patch features that PatchCore remembers


def provide_torchvision_operators() -> None:
    """Declare the operators that torchvision cannot be imported without.

    Built for CUDA, its compiled half does not load beside a torch for the CPU. These models need none of it.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision")
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


provide_torchvision_operators()

import timm  # noqa: E402 - needs torchvision
from anomalib.models import EfficientAd, Patchcore, Stfpm  # noqa: E402


def without_weights() -> None:
    """Have timm make networks with random weights where the models ask for trained ones from the internet."""
    create = timm.create_model

    @functools.wraps(create)
    def random(*args: object, **kwargs: object) -> torch.nn.Module:
        return create(*args, **{**kwargs, "pretrained": False})

    timm.create_model = random


def stfpm(size: int) -> Stfpm:
    """ResNet-18, as published."""
    return Stfpm(pre_processor=Stfpm.configure_pre_processor((size, size)))


def patchcore(size: int) -> Patchcore:
    """ResNet-18 instead of the wide ResNet-50, which is several times slower."""
    model = Patchcore(
        backbone="resnet18", pre_trained=False, pre_processor=Patchcore.configure_pre_processor((size, size))
    )
    features = model.model.feature_extractor.out_dims
    model.model.memory_bank = torch.randn(BANK, sum(features))
    return model


def efficientad(size: int) -> EfficientAd:
    """The small one."""
    return EfficientAd(pre_processor=EfficientAd.configure_pre_processor((size, size)))


PEERS = {"STFPM ResNet-18": stfpm, "PatchCore ResNet-18": patchcore, "EfficientAD-S": efficientad}


def write(folder: Path, size: int) -> None:
    """One .xml for each peer; facts.json last, so that it stands for the whole."""
    folder.mkdir(parents=True, exist_ok=True)
    models, failed = {}, {}
    for name, make in PEERS.items():
        torch.manual_seed(0)
        stem = name.split()[0].lower()
        try:
            # One frame at a time and nothing dynamic: kind to the compiler. Left to itself, it fixes PatchCore to two.
            written = make(size).to_openvino(
                folder / stem, input_size=(size, size), onnx_kwargs={"opset_version": 18, "dynamic_axes": {}}
            )
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            failed[name] = " ".join(str(error).split())[:300]
            shutil.rmtree(folder / stem, ignore_errors=True)
            continue
        models[name] = str(written.relative_to(folder))
    versions = {package: importlib.metadata.version(package) for package in ("anomalib", "torch", "openvino", "timm")}
    facts = {"size": size, "bank": BANK, "versions": versions, "models": models, "failed": failed}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def serve(size: int, threads: int) -> None:
    """Run peers by name until the input ends."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    models = {name: make(size).eval() for name, make in PEERS.items()}
    frame = torch.rand(1, 3, size, size)
    print("ready", flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            start = time.perf_counter()
            models[line.rstrip("\n")](frame)
            print(1e3 * (time.perf_counter() - start), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, metavar="N", default=512, help="side of the frames, pixels (512)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="export all").add_argument("folder", type=Path)
    commands.add_parser("serve", help="run by name").add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    without_weights()
    if options.command == "write":
        write(options.folder, options.size)
    else:
        serve(options.size, options.threads)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
