"""What each rewrite of the exported graph saves, and what those would that were tried and left out.

The graph as torch writes it beside the same one after each rewrite of ``train.rewrites``, after all of them, and after
all of them and one that did not pay; in ONNX Runtime, and in OpenVINO in float32 and bf16 where it is installed. "no
fusing" is without ONNX Runtime's second optimization (``engines.ort.fuse``), which all others have.

All take turns, one frame of patches each. "times plain" is the median of the rounds' ratios to the plain graph.
"difference" is the largest between any output of the two, as a share of its largest value. "of the peak" compares the
plain graph's multiplications and additions a second with those of a large matrix product in the same type and with as
many threads, which torch computes in this process. Weights are untrained, for speed does not depend on them.

    python -m benchmarks.graph_rewrites --json benchmarks/results/graph_rewrites.json
    python -m benchmarks.graph_rewrites --widths 16 --threads 1 --patches 16
"""

import argparse
import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: TID251 - engines is imported below, and before any session is opened
import torch
from onnx import NodeProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from engines import ort
from engines.engine import EngineSettings, Float32Array, Precision, UInt8Array
from engines.openvino import library
from train.architecture import IMAGE_SIZE, Architecture
from train.graph import plain_graph
from train.networks import Critic, Encoder, Generator, Locator
from train.rewrites import REWRITES
from train.scorer import Scorer

P = IMAGE_SIZE["texture"]
STRUCTURES = {"default": (True, True), "paper": (False, False)}
"""Name -> (folded, with a locator)."""
PRECISIONS: dict[str, tuple[Precision, str]] = {"fp32": ("fp32", "float32"), "bf16": ("bf16", "bfloat16")}

Rewrite = Callable[[onnx.ModelProto], None]
Run = Callable[[UInt8Array], list[Float32Array]]


def make_scorer(width: int, *, folded: bool, locator: bool) -> Scorer:
    """Untrained, with its locator's scales as they come."""
    torch.manual_seed(0)
    arch = Architecture("texture", width=width, folded=folded)
    networks = Encoder(arch), Generator(arch), Critic(arch)
    scorer = Scorer(*networks, "block0.conv1", Locator(arch) if locator else None).eval()
    for name, parameter in scorer.named_parameters():
        if name.endswith("bias"):  # those of 0 are not exported, and engines fuse other nodes
            torch.nn.init.normal_(parameter, std=0.1)
    return scorer


def merge_skips(model: onnx.ModelProto) -> None:
    """conv3(y) + skip(x) as one 1 x 1 convolution of y and x, one behind the other. Not in ``train.rewrites``."""
    graph, weights = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    instead: dict[str, list[NodeProto]] = {}
    for add in (node for node in graph.node if node.op_type == "Add"):
        both = [makers.get(name, NodeProto()) for name in add.input]
        if any(node.op_type != "Conv" or weights[node.input[1]].dims[2] != 1 for node in both):
            continue
        kernel = np.concatenate([numpy_helper.to_array(weights[node.input[1]]) for node in both], axis=1)
        bias = sum(numpy_helper.to_array(weights[node.input[2]]) for node in both)
        (y,) = add.output
        graph.initializer.extend(numpy_helper.from_array(value, f"{y}.{i}") for i, value in enumerate((kernel, bias)))
        joined = helper.make_node("Concat", [node.input[0] for node in both], [f"{y}.joined"], axis=1)
        merged = helper.make_node("Conv", [f"{y}.joined", f"{y}.0", f"{y}.1"], [y])
        instead |= {y: [joined, merged], **{node.output[0]: [] for node in both}}
    _replace(graph, instead)


def skip_before_enlarging(model: onnx.ModelProto) -> None:
    """skip(enlarged(x)) as enlarged(skip(x)), a quarter of the arithmetic. Not in ``train.rewrites``."""
    graph, weights = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    instead: dict[str, list[NodeProto]] = {}
    for skip in (node for node in graph.node if node.op_type == "Conv"):
        enlarge = makers.get(skip.input[0], NodeProto())
        if enlarge.op_type != "Resize" or weights[skip.input[1]].dims[2] != 1:
            continue
        (y,) = skip.output
        small, large = NodeProto(), NodeProto()
        small.CopyFrom(skip)
        large.CopyFrom(enlarge)
        small.input[0], small.output[0] = enlarge.input[0], f"{y}.small"
        large.input[0], large.output[0], large.name = f"{y}.small", y, f"{y}.enlarge"
        instead[y] = [small, large]
    _replace(graph, instead)


def _replace(graph: onnx.GraphProto, instead: dict[str, list[NodeProto]]) -> None:
    """Other nodes for those with these outputs."""
    nodes = [new for old in graph.node for new in instead.get(old.output[0], [old])]
    del graph.node[:]
    graph.node.extend(nodes)


def variants(plain: onnx.ModelProto) -> dict[str, bytes]:
    """The graphs, by what was done to them; those that a rewrite does not change are left out."""
    ways: dict[str, tuple[Rewrite, ...]] = {
        **{apply.__name__: (apply,) for apply in REWRITES},
        "all": REWRITES,
        "all, skips merged": (merge_skips, *REWRITES),
        "all, skip before enlarging": (skip_before_enlarging, *REWRITES),
    }
    graphs = {"plain": _finished(plain)}
    for name, rewrites in ways.items():
        model = copy.deepcopy(plain)
        for apply in rewrites:
            apply(model)
        graph = _finished(model)
        if graph not in graphs.values():
            graphs[name] = graph
    return graphs


def _finished(model: onnx.ModelProto) -> bytes:
    """As a bundle has it: without the reconstruction as an output."""
    finished = copy.deepcopy(model)
    del finished.graph.output[-1]
    onnx.checker.check_model(finished, full_check=True)
    return finished.SerializeToString()


def on_onnxruntime(graph: bytes, threads: int) -> Run:
    """As ``engines.ort`` opens and runs it, but for ``fuse``."""
    session = onnxruntime.InferenceSession(graph, ort.session_options(threads), providers=["CPUExecutionProvider"])
    chunk = ort.CHUNK_PIXELS // P**2

    def run(patches: UInt8Array) -> list[Float32Array]:
        parts = [session.run(None, {"patches": patches[i : i + chunk]}) for i in range(0, len(patches), chunk)]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return run


def on_openvino(graph: bytes, threads: int, precision: Precision) -> Run:
    """As ``engines.openvino`` compiles it in mode 'latency'."""
    from engines.openvino.models import properties  # noqa: PLC0415 - OpenVINO may be missing

    frontend = library.openvino().frontend.FrontEndManager().load_by_framework("onnx")
    model = frontend.convert(frontend.load(io.BytesIO(graph)))
    settings = EngineSettings(threads=threads, precision=precision)
    compiled = library.core().compile_model(model, library.DEVICE, properties(precision, settings))
    request, names = compiled.create_infer_request(), [output.any_name for output in model.outputs]

    def run(patches: UInt8Array) -> list[Float32Array]:
        request.infer({"patches": patches}, share_inputs=True)
        return [request.get_tensor(name).data.copy() for name in names]

    return run


def engines(graphs: dict[str, bytes], threads: int) -> Iterator[tuple[str, str, dict[str, Run]]]:
    """Engine, the type that it computes in, and the graphs opened with it."""
    fused = {name: on_onnxruntime(ort.fuse(graph) if ort.fuses() else graph, threads) for name, graph in graphs.items()}
    yield "ONNX Runtime fp32", "float32", {**fused, "all, no fusing": on_onnxruntime(graphs["all"], threads)}
    if library.problem() is None:
        for name, (precision, dtype) in PRECISIONS.items():
            if name.upper() in library.capabilities():
                opened = {way: on_openvino(graph, threads, precision) for way, graph in graphs.items()}
                yield f"OpenVINO {name}", dtype, opened


def count_flops(scorer: Scorer) -> int:
    """Multiplications and additions that a patch takes, before any rewrite."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        scorer(torch.zeros(1, P, P, 3, dtype=torch.uint8))
    return int(counter.get_total_flops())


def difference(found: list[Float32Array], expected: list[Float32Array]) -> float:
    """The largest of any output, as a share of its largest value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True))


def measure(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Fills ``result`` as it goes, so that Ctrl-C keeps what is there."""
    patches = np.random.default_rng(0).integers(0, 256, (options.patches, P, P, 3), dtype=np.uint8)
    peaks: dict[tuple[str, int], float] = {}
    cases = [(structure, width) for structure in options.structures for width in options.widths]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(cases) * len(options.threads))
        for structure, width in cases:
            progress.update(task, description=f"{structure}, width {width}: writing the graphs")
            folded, locator = STRUCTURES[structure]
            scorer = make_scorer(width, folded=folded, locator=locator)
            flops = count_flops(scorer) * options.patches
            graphs = variants(plain_graph(scorer, P))
            for threads in options.threads:
                for engine, dtype, runs in engines(graphs, threads):
                    progress.update(task, description=f"{structure}, width {width}, threads {threads}: {engine}")
                    if (dtype, threads) not in peaks:
                        peaks[dtype, threads] = machine.gemm_peak(dtype, threads)
                    expected = runs["plain"](patches)
                    ms = machine.in_turns(
                        {name: lambda run=run: run(patches) for name, run in runs.items()}, options.rounds, 1
                    )
                    for name, run in runs.items():
                        result["rows"].append(
                            {
                                "structure": structure,
                                "width": width,
                                "threads": threads,
                                "engine": engine,
                                "graph": name,
                                "ms": machine.median(ms[name]),
                                "times_plain": machine.ratio(ms[name], ms["plain"]),
                                "difference": float(f"{difference(run(patches), expected):.1e}"),
                                "of_the_peak": round(1e3 * flops / machine.median(ms[name]) / peaks[dtype, threads], 3),
                            }
                        )
                progress.advance(task)
    result["gemm_flops"] = {f"{dtype}, threads: {threads}": round(rate) for (dtype, threads), rate in peaks.items()}


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"{result['patches']} patches of {P} x {P}", box=None)
    for column in ("structure", "width", "threads", "engine", "graph"):
        table.add_column(column)
    for column in ("ms", "times plain", "difference", "of the peak"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        head = (row["structure"], str(row["width"]), str(row["threads"]), row["engine"], row["graph"])
        figures = (f"{row['ms']:.1f}", f"{row['times_plain']:.3f}", f"{row['difference']:.0e}")
        table.add_row(*head, *figures, f"{row['of_the_peak']:.0%}")
    console = machine.console()
    console.print(table)
    for name, rate in result.get("gemm_flops", {}).items():
        console.print(f"matrix product, {name}: {rate / 1e9:.0f} GFLOP/s")
    console.print(machine.caption(result["machine"]), soft_wrap=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", metavar="N", help="of the networks (3 8 16; quick: 8)")
    parser.add_argument(
        "--structures",
        nargs="+",
        metavar="NAME",
        choices=STRUCTURES,
        default=list(STRUCTURES),
        help="default: folded, with a locator; paper: neither (both)",
    )
    every = machine.all_threads()
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", help="1, and one per CPU (quick: one per CPU)")
    parser.add_argument("--patches", type=int, metavar="N", default=64, help="a frame (64)")
    parser.add_argument("--rounds", type=int, metavar="N", help="frames that each is measured on (9; quick: 5)")
    parser.add_argument("--quick", action="store_true", help="one width, all threads, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    options = parser.parse_args()
    options.widths = options.widths or ([8] if options.quick else [3, 8, 16])
    options.threads = options.threads or ([every] if options.quick else sorted({1, every}))
    options.rounds = options.rounds or (5 if options.quick else 9)
    result: dict[str, Any] = {"machine": machine.describe(options.threads), "patches": options.patches, "rows": []}
    with machine.reporting(parser, options.json, result, show):
        measure(options, result)


if __name__ == "__main__":
    main()
