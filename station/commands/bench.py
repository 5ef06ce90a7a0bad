"""``station bench``: how fast this machine inspects."""

import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Annotated, Any, get_args

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from engines.bundle import Bundle, read_bundle
from engines.engine import PRECISIONS, EngineInfo, EngineSettings, UInt8Array
from engines.judging import Judging
from engines.opening import open_engine
from engines.tensorrt.plans import in_turns
from engines.tiling import Tiler
from station import __version__, logs
from station.commands.bench_daemon import Heard, LocalBroker, NoBrokerError, Task, local_broker, percentiles, run_daemon
from station.commands.building import show_building
from station.commands.files import make_progress
from station.commands.frames import parse_size
from station.inspection import Inspector
from station.settings import JudgeSettings, LogSettings

STAGES = ("prepare", "infer", "judge")
ENGINES: tuple[str, ...] = get_args(EngineSettings.model_fields["backend"].annotation)
MODES: tuple[str, ...] = get_args(EngineSettings.model_fields["mode"].annotation)
DEFAULT_SIZE = (480, 640)  # height, width, where the bundle does not say
_DIFFERENT_FRAMES = 8  # shown in turn, so that no cache holds the next one
_ROUNDS_TO_AN_ALERT = 4  # of these frames: one alert in about thirty frames
LATEST_SHARE = 0.7
"""Pace of the live camera, as a share of the rate that the daemon reaches: 'latest' is for cameras that are slower."""


def bench(
    bundle: Annotated[Path, typer.Option(metavar="DIR", help="The trained bundle.", show_default=False)],
    engine: Annotated[
        str,
        typer.Option(metavar="NAME", autocompletion=lambda: list(ENGINES), help=f"Back end: {', '.join(ENGINES)}."),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=lambda: list(PRECISIONS),
            help=f"Lowest precision, for TensorRT and OpenVINO: {', '.join(PRECISIONS)}.",
        ),
    ] = "fp16",
    mode: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=lambda: list(MODES),
            help=f"How OpenVINO's threads share a frame: {', '.join(MODES)}.",
        ),
    ] = "latency",
    threads: Annotated[
        int, typer.Option(metavar="N", min=0, max=256, help="CPU threads of the engine; 0: one per core available.")
    ] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Size of the camera's frames, pixels.",
            show_default=f"the bundle's frame size, else {DEFAULT_SIZE[1]}x{DEFAULT_SIZE[0]}",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(metavar="N", min=10, max=1_000_000, help="Frames to measure.")] = 200,
    warm_up: Annotated[
        int, typer.Option(metavar="N", min=0, max=10_000, help="Frames before that are not counted.")
    ] = 20,
    daemon: Annotated[
        bool | None,
        typer.Option(
            "--daemon/--engine-only",
            help="With or without the whole daemon.",
            show_default="with, where there is a broker",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measure how fast this machine inspects: frames per second, and milliseconds by stage.

    First the engine: synthetic frames are shown to the same code as [bold]station
    run[/], without camera and broker: prepare (region, resize, colour, patches),
    infer (the engine), judge (patch scores to frame score). p50 is the median;
    p99 is what one frame in a hundred exceeds.

    Then the whole daemon, between a folder of the same frames and a broker on
    this machine: Mosquitto, or else the demo's. Twice: policy 'every' as fast as
    it goes, and policy 'latest' with a camera of 0.7 of that rate and an alert
    now and then. 'wait' is when nothing is done to a frame, 'received' is from its
    capture until a subscriber has its score, 'alert' the same for alerts, which
    the broker acknowledges when it passes them on.

    Ctrl-C ends early with what was measured.

    Example: [cyan]station bench --bundle bundle --size 1280x1024[/]

    Example: [cyan]station bench --bundle bundle --engine-only --json[/]
    """
    for option, value, allowed in (
        ("--engine", engine, ENGINES),
        ("--precision", precision, PRECISIONS),
        ("--mode", mode, MODES),
    ):
        if value not in allowed:
            raise typer.BadParameter(f"is none of {', '.join(allowed)}", param_hint=option)
    logs.set_up(LogSettings(level="warning"))
    read = read_bundle(bundle)
    preprocessing = read.manifest.preprocessing
    height, width = parse_size(size, "--size") if size else preprocessing.frame_size or DEFAULT_SIZE
    tiler = Tiler(preprocessing)
    try:
        n_patches = tiler.grid((height, width)).n
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from error
    settings = EngineSettings.model_validate(
        {
            "backend": engine,
            "threads": threads,
            "precision": precision,
            "mode": mode,
            "max_patches": in_turns(read.manifest, n_patches),
        }
    )
    with show_building(Console(stderr=True)) as on_progress:
        opened = open_engine(read, settings, on_progress)
    try:
        inspector = Inspector(opened, tiler, Judging.of(read.manifest), JudgeSettings())
        textures = make_textures(height, width)
        ms = _measure(inspector, textures, warm_up, frames)
        scores = [inspector.inspect(texture).score for texture in textures] if daemon is not False else []
    finally:
        opened.close()
    result = _result(read, opened.info, (height, width), n_patches, ms)
    if not as_json:
        _show(result)
    if daemon is not False:
        try:
            result |= _measure_daemon(bundle, settings, textures, scores, warm_up, frames, result["infer_fps"])
        except NoBrokerError as error:
            if daemon:
                raise typer.BadParameter(str(error), param_hint="--daemon") from error
            result |= {"daemon": None, "daemon_missing": str(error)}
        if not as_json:
            _show_daemon(result)
    if as_json:
        typer.echo(json.dumps(result))


def _measure_daemon(
    bundle: Path,
    settings: EngineSettings,
    textures: list[UInt8Array],
    scores: list[float],
    warm_up: int,
    n: int,
    infer_fps: float,
) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="station-bench-") as folder,
        local_broker(Path(folder)) as broker,
        make_progress(Console(stderr=True)) as progress,
    ):
        line = progress.add_task("daemon, every", total=2 * (warm_up + n))

        def run(task: Task) -> Heard:
            return run_daemon(task, broker, Path(folder, task.policy), warm_up, n, lambda: progress.advance(line))

        every = run(Task(bundle, settings, textures, "every"))
        progress.update(line, description="daemon, latest")
        shown, threshold = with_alerts(textures, scores)
        fps = LATEST_SHARE * every.fps
        latest = run(Task(bundle, settings, shown, "latest", fps, threshold))
    return {"daemon": describe(broker, every, latest, fps, infer_fps)}


def with_alerts(textures: list[UInt8Array], scores: list[float]) -> tuple[list[UInt8Array], float | None]:
    """These frames some times over, the one that scores highest only once; and a threshold that it alone exceeds.

    None: there is no such threshold above zero.
    """
    order = np.argsort(scores)
    others = [texture for i, texture in enumerate(textures) if i != order[-1]]
    threshold = float(scores[order[-1]] + scores[order[-2]]) / 2
    return [*_ROUNDS_TO_AN_ALERT * others, textures[order[-1]]], threshold if threshold > 0 else None


def describe(broker: LocalBroker, every: Heard, latest: Heard, fps: float, infer_fps: float) -> dict[str, Any]:
    """The daemon's part of the result; ``of_engine``: its rate, as a share of that of the engine alone."""
    return {
        "broker": broker.name,
        "every": every.summary() | {"of_engine": round(every.fps / infer_fps, 3)},
        "latest": latest.summary() | {"camera_fps": round(fps, 2)},
    }


def make_textures(height: int, width: int) -> list[UInt8Array]:
    """Grainy frames, uint8 (height, width, 3), BGR; some different ones."""
    rng = np.random.default_rng(0)
    return [
        cv2.blur(rng.integers(0, 256, (height, width, 3), np.uint8), (3, 3)).astype(np.uint8, copy=False)
        for _ in range(_DIFFERENT_FRAMES)
    ]


def _measure(inspector: Inspector, textures: list[UInt8Array], warm_up: int, n: int) -> dict[str, list[float]]:
    """Milliseconds of each measured frame, by stage; fewer than ``n`` after Ctrl-C."""
    ms: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with make_progress(Console(stderr=True)) as progress:
        task = progress.add_task("warm-up", total=warm_up + n)
        try:
            for i in range(warm_up + n):
                if i == warm_up:
                    progress.update(task, description="measuring")
                spent = inspector.inspect(textures[i % len(textures)]).ms
                if i >= warm_up:
                    for stage in STAGES:
                        ms[stage].append(spent[stage])
                progress.advance(task)
        except KeyboardInterrupt:
            if not ms["judge"]:
                raise
    return ms


def _result(
    bundle: Bundle, info: EngineInfo, size: tuple[int, int], n_patches: int, ms: dict[str, list[float]]
) -> dict[str, Any]:
    n = min(len(values) for values in ms.values())  # Ctrl-C may fall between two stages
    by_stage = {stage: np.array(ms[stage][:n]) for stage in STAGES}
    by_stage["total"] = np.sum(list(by_stage.values()), axis=0)
    return {
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.digest,
        "engine": {
            "backend": info.backend,
            "version": info.backend_version,
            "device": info.device,
            "precision": info.precision,
        },
        "frame": {"width": size[1], "height": size[0], "patches": n_patches},
        "frames": n,
        "fps": round(1e3 / float(by_stage["total"].mean()), 2),
        "infer_fps": round(1e3 / float(by_stage["infer"].mean()), 2),
        "ms": {stage: percentiles(values.tolist()) for stage, values in by_stage.items()},
        "cpus": len(os.sched_getaffinity(0)),
        "versions": {
            "station": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "platform": platform.platform(),
    }


def _show(result: dict[str, Any]) -> None:
    frame, engine, versions = result["frame"], result["engine"], result["versions"]
    table = Table()
    table.add_column("stage")
    table.add_column("p50", justify="right")
    table.add_column("p99", justify="right")
    for stage, ms in result["ms"].items():
        if stage == "total":
            table.add_section()
        table.add_row(stage, f"{ms['p50']:.2f}", f"{ms['p99']:.2f}", style="bold" if stage == "total" else None)
    console = Console(highlight=False)
    console.print(f"Milliseconds for a frame of {frame['width']} x {frame['height']} pixels", soft_wrap=True)
    console.print(table)
    console.print(
        f"[bold]{result['fps']:.1f} frames a second[/], {result['fps'] * frame['patches']:.0f} patches a second; "
        f"{result['frames']} frames of {frame['patches']} patches, one stage after the other. "
        f"The engine alone: {result['infer_fps']:.1f} frames a second",
        soft_wrap=True,
    )
    console.print(
        f"{engine['backend']} {engine['version']}, {engine['precision']}, on {engine['device']}", soft_wrap=True
    )
    console.print(
        f"{result['cpus']} CPUs for this process; station {versions['station']}, Python {versions['python']}, "
        f"OpenCV {versions['opencv']}, {result['platform']}",
        soft_wrap=True,
    )


def _show_daemon(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print()
    if (daemon := result["daemon"]) is None:
        console.print(f"The whole daemon was not measured: {result['daemon_missing']}", soft_wrap=True)
        return
    every, latest = daemon["every"], daemon["latest"]
    table = Table()
    table.add_column("stage")
    for policy in ("every", "latest"):
        for column in ("p50", "p99"):
            table.add_column(f"{policy} {column}", justify="right")
    for stage in latest["ms"]:
        figures = [part["ms"].get(stage, {}).get(column) for part in (every, latest) for column in ("p50", "p99")]
        table.add_row(stage, *("-" if value is None else f"{value:.2f}" for value in figures))
    console.print(f"The whole daemon, with {daemon['broker']}: milliseconds for a frame", soft_wrap=True)
    console.print(table)
    console.print(
        f"every: [bold]{every['fps']:.1f} frames a second[/], {every['of_engine']:.0%} of what the engine alone does",
        soft_wrap=True,
    )
    console.print(
        f"latest: a camera of {latest['camera_fps']:.1f} frames a second; {latest['dropped']} of "
        f"{latest['frames'] + latest['dropped']} frames dropped, {latest['alerts']} alerts",
        soft_wrap=True,
    )
    console.print(
        f"The daemon's process: {latest['resident_mib']:.0f} MiB of memory, {every['cpus_used']:.2f} CPUs (every), "
        f"{latest['cpus_used']:.2f} (latest)",
        soft_wrap=True,
    )
