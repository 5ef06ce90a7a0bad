"""``station calibrate``: the threshold, from what the camera or a folder shows."""

import os
import time
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from engines.bundle import Bundle, read_bundle
from engines.engine import EngineSettings
from engines.images import find_images
from engines.opening import open_engine
from engines.tiling import Tiler
from station import charts, logs
from station.calibration import (
    Calibration,
    CalibrationError,
    CameraView,
    Scores,
    calibrate_good,
    calibrate_labelled,
    caveats,
    roc,
    summarize,
    thinned,
)
from station.camera import CameraError, Capture, EndOfStream, redact_url
from station.commands.building import show_building
from station.commands.files import Inspected, inspect_files, make_progress
from station.files import write_file
from station.heatmap import draw, encode_jpeg
from station.inspection import Inspector
from station.report import Exhibit, explain, render
from station.settings import CameraSettings, JudgeSettings, LogSettings, Roi, load_settings

DEFAULT_FALSE_ALARMS = 1e-3
"""What a few hundred good frames can still say something about; see docs/decisions/0002."""
DEFAULT_FRAMES = 1000
EXHIBITS = 6
EXHIBIT_SIDE = 560
USEFUL_AUROC = 0.8
PATIENCE = 30.0
"""Seconds without a frame after which the camera is given up, beyond its own read_timeout."""


def calibrate(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings file; gives bundle, camera, region of interest, and where the result goes.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The trained bundle, instead of --config.", show_default=False),
    ] = None,
    good: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of good frames; without it they come from the camera of --config.",
            show_default=False,
        ),
    ] = None,
    defect: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Folder of defective frames, may be repeated; a subfolder called good is left out. "
            "The threshold then is that of the highest balanced accuracy.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=20, help="How many frames to take from the camera.")] = DEFAULT_FRAMES,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Allowed share of good frames that raise an alarm, such as 1e-4. Decides the threshold, with "
            "--defect too.",
            show_default=f"{DEFAULT_FALSE_ALARMS:g}",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the result goes.",
            show_default="calibration of --config, else calibration.json",
        ),
    ] = None,
) -> None:
    """Set the threshold, from good frames or from good and defective ones.

    From good frames alone: the score that a good frame exceeds with the
    probability --false-alarms. With --defect: the threshold of the highest
    balanced accuracy, unless --false-alarms is given too; both are reported.

    Take frames that the model was not trained on, for those score too low.
    A few hundred, better thousands, of different products at different times
    of day. Neighbouring frames of a video repeat each other and count less.

    Writes calibration.json, and beside it a picture (.svg) and a report
    (.html). Ctrl-C while frames come from the camera goes on with those there
    are.

    Example: [cyan]station calibrate --bundle bundle --good images/good --false-alarms 1e-4[/]
    """
    logs.set_up(LogSettings(level="warning"))
    console = Console(stderr=True)
    if out is not None and out.suffix != ".json":
        raise typer.BadParameter("must end in .json", param_hint="--out")
    rate = DEFAULT_FALSE_ALARMS if false_alarms is None else false_alarms
    if not 0 < rate < 1:
        raise typer.BadParameter("must lie between 0 and 1, such as 1e-3", param_hint="--false-alarms")
    plan = _plan(config, bundle, good, defect or [], frames, out)
    with show_building(console) as on_progress:
        engine = open_engine(plan.bundle, plan.engine, on_progress)
    try:
        manifest = plan.bundle.manifest
        tiler = Tiler(manifest.preprocessing, plan.roi.box if plan.roi else None)
        inspector = Inspector(engine, tiler, manifest.lambda_, plan.judge)
        with make_progress(console) as progress:
            good_set = _collect_good(plan, inspector, progress)
            defect_set = _collect_files(plan.defect_files, "defective frames", inspector, progress, _Set(-1))
    finally:
        engine.close()
    calibration = _make(plan, good_set, defect_set, rate, prefer_rate=false_alarms is not None)
    for path in _write(plan.out, calibration, good_set, defect_set):
        console.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)
    _print_result(Console(), calibration)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The command line and the settings, resolved."""

    bundle: Bundle
    engine: EngineSettings
    judge: JudgeSettings
    roi: Roi | None
    camera: CameraSettings | None
    frames: int
    good_files: list[Path]
    defect_files: list[Path]
    source: str
    out: Path


@dataclass(slots=True)
class _Set:
    """Scores of good or of defective frames, and the frames worth a look.

    Attributes:
        sign: 1 keeps the highest-scoring frames, -1 the lowest.
    """

    sign: int
    scores: list[float] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kept: list[Inspected] = field(default_factory=list)
    asked: int = 0

    def add(self, found: Inspected) -> None:
        self.scores.append(found.inspection.score)
        self.sizes[found.inspection.grid.frame_size] += 1
        insort(self.kept, found, key=lambda kept: -self.sign * kept.inspection.score)
        del self.kept[EXHIBITS:]

    @property
    def array(self) -> Scores:
        return np.array(self.scores, np.float64)


def _plan(
    config: Path | None, bundle: Path | None, good: Path | None, defect: Sequence[Path], frames: int, out: Path | None
) -> _Plan:
    if (config is None) == (bundle is None):
        raise typer.BadParameter("give either --config FILE or --bundle DIR")
    defect_files = [
        path for folder in defect for path in _images(folder) if "good" not in path.relative_to(folder).parts[:-1]
    ]
    good_files = _images(good) if good else []
    if config is not None:
        settings = load_settings(config)
        return _Plan(
            bundle=read_bundle(settings.bundle),
            engine=settings.engine,
            judge=settings.judge,
            roi=settings.camera.roi,
            camera=None if good else settings.camera,
            frames=frames,
            good_files=good_files,
            defect_files=defect_files,
            source=str(good) if good else redact_url(settings.camera.url),
            out=out or settings.calibration or Path("calibration.json"),
        )
    if bundle is None or good is None:
        raise typer.BadParameter("--bundle needs --good DIR; only --config knows a camera")
    return _Plan(
        bundle=read_bundle(bundle),
        engine=EngineSettings(),
        judge=JudgeSettings(),
        roi=None,
        camera=None,
        frames=frames,
        good_files=good_files,
        defect_files=defect_files,
        source=str(good),
        out=out or Path("calibration.json"),
    )


def _images(folder: Path) -> list[Path]:
    files = find_images(folder)
    if not files:
        raise CalibrationError(f"{folder}: holds no PNG, JPEG, BMP or TIFF image")
    return files


def _collect_good(plan: _Plan, inspector: Inspector, progress: Progress) -> _Set:
    if plan.camera is None:
        return _collect_files(plan.good_files, "good frames", inspector, progress, _Set(1))
    collected = _Set(1, asked=plan.frames)
    task = progress.add_task("good frames", total=plan.frames)
    # A looping source would hand out the same frames again and again.
    with Capture(plan.camera.model_copy(update={"loop": False})) as capture:
        try:
            for found in _from_camera(capture, plan.camera, inspector, progress, task):
                collected.add(found)
                progress.advance(task)
                if len(collected.scores) == plan.frames:
                    break
        except KeyboardInterrupt:
            progress.console.print(f"Stopped; going on with {len(collected.scores)} frames.", highlight=False)
    return collected


def _from_camera(
    capture: Capture, settings: CameraSettings, inspector: Inspector, progress: Progress, task: TaskID
) -> Iterator[Inspected]:
    last = time.monotonic()
    while True:
        try:
            frame = capture.get(0.5)
        except EndOfStream:
            return
        if frame is None:
            fault = capture.stats.fault
            progress.update(task, description=f"good frames ({fault})" if fault else "good frames")
            if time.monotonic() - last > settings.read_timeout + PATIENCE:
                raise CameraError(f"{redact_url(settings.url)}: {fault or 'no frame'}; given up")
            continue
        last = time.monotonic()
        progress.update(task, description="good frames")
        try:
            yield Inspected(frame.name, frame.image, inspector.inspect(frame.image))
        except ValueError as error:
            raise CameraError(f"{redact_url(settings.url)}: {error}") from error


def _collect_files(files: Sequence[Path], what: str, inspector: Inspector, progress: Progress, collected: _Set) -> _Set:
    collected.asked = len(files)
    if files:
        task = progress.add_task(what, total=len(files))
        for found in inspect_files(files, inspector, progress, task):
            collected.add(found)
    return collected


def _make(plan: _Plan, good_set: _Set, defect_set: _Set, rate: float, *, prefer_rate: bool) -> Calibration:
    good, defect = good_set.array, defect_set.array
    tail, false_alarms = calibrate_good(good, rate)
    separation = calibrate_labelled(good, defect) if defect.size else None
    by_separation = separation is not None and not prefer_rate
    warnings = caveats(good, tail, None if by_separation else false_alarms)
    if separation is not None and separation.auroc < USEFUL_AUROC:
        warnings.append(
            f"The scores hardly tell defective from good frames (auROC {separation.auroc:.2f}); no threshold mends "
            "that. Train longer, or on frames that look like these."
        )
    for collected, what in ((good_set, "good"), (defect_set, "defective")):
        if len(collected.scores) < collected.asked:
            warnings.append(f"Only {len(collected.scores)} of {collected.asked} {what} frames could be used.")
    sizes = good_set.sizes + defect_set.sizes
    if len(sizes) > 1:
        shown = ", ".join(f"{w} x {h}" for h, w in sorted(sizes)[:4])
        warnings.append(
            f"The frames have {len(sizes)} sizes ({shown}{', …' if len(sizes) > 4 else ''}): more patches a frame mean "
            "more chances of a false alarm. Calibrate with frames as the camera gives them."
        )
    (height, width), _ = good_set.sizes.most_common(1)[0]
    manifest = plan.bundle.manifest
    return Calibration(
        created_at=datetime.now(timezone.utc),
        bundle_name=manifest.name,
        bundle_sha256=plan.bundle.digest,
        lambda_=manifest.lambda_,
        frame_score=plan.judge.frame_score,
        top_k=plan.judge.top_k,
        camera=CameraView(source=plan.source, frame_height=height, frame_width=width, roi=plan.roi),
        threshold=separation.threshold if separation and by_separation else false_alarms.threshold,
        method="balanced_accuracy" if by_separation else "false_alarm_rate",
        n_good=good.size,
        n_defect=defect.size,
        good=summarize(good),
        defect=summarize(defect) if defect.size else None,
        tail=tail,
        false_alarms=false_alarms,
        separation=separation,
        warnings=tuple(warnings),
        good_scores=thinned(good),
    )


def _write(out: Path, calibration: Calibration, good_set: _Set, defect_set: _Set) -> list[Path]:
    drawn = _draw_charts(calibration, good_set.array, defect_set.array)
    report = render(
        calibration,
        drawn,
        good=_exhibits(good_set, calibration.threshold),
        defect=_exhibits(defect_set, calibration.threshold),
        out=os.fspath(out),
    )
    picture, page = out.with_suffix(".svg"), out.with_suffix(".html")
    write_file(picture, charts.stacked(drawn).encode())
    write_file(page, report.encode())
    write_file(out, calibration.model_dump_json(by_alias=True, indent=2).encode() + b"\n")
    return [out, picture, page]


def _draw_charts(calibration: Calibration, good: Scores, defect: Scores) -> list[str]:
    alarms = calibration.false_alarms
    drawn = [
        charts.histogram(good, defect if defect.size else None, calibration.threshold),
        charts.tail_chart(
            good,
            calibration.tail.exceedance,
            calibration.tail.level,
            alarms.rate,
            alarms.threshold,
            (alarms.low, alarms.high),
        ),
    ]
    if calibration.separation is not None:
        _, found, false = roc(good, defect)
        chosen = (float((good > calibration.threshold).mean()), float((defect > calibration.threshold).mean()))
        drawn.append(charts.roc_chart(found, false, calibration.separation.auroc, chosen))
    return drawn


def _exhibits(collected: _Set, threshold: float) -> list[Exhibit]:
    return [
        Exhibit(
            "/".join(Path(found.name).parts[-2:]),
            found.inspection.score,
            encode_jpeg(draw(found.image, found.inspection, threshold), EXHIBIT_SIDE, 80),
        )
        for found in collected.kept
    ]


def _print_result(console: Console, calibration: Calibration) -> None:
    first, *rest = explain(calibration)
    lines = [f"[bold]{escape(first)}[/]", *map(escape, rest)]
    lines += [f"[yellow]Note:[/] {escape(warning)}" for warning in calibration.warnings]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=not console.is_terminal)
