"""``station calibrate``: the threshold, from what the camera or a folder shows."""

import time
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from engines.bundle import Bundle, read_bundle
from engines.defects import KINDS
from engines.engine import EngineSettings
from engines.images import find_images
from engines.judging import Judging
from engines.opening import open_engine
from engines.planted import plant_each_kind, planted_spacing
from engines.tiling import Tiler
from station import logs
from station.budget import Budget, Pace, parse_budget
from station.calibration import (
    Calibration,
    CalibrationError,
    CameraView,
    GoodScores,
    PlantedKind,
    Scores,
    calibrate_labelled,
    calibrate_planted,
    caveats,
    summarize,
    thinned,
)
from station.camera import CameraError, Capture, EndOfStream, redact_url
from station.commands.building import show_building
from station.commands.calibration_page import look_ahead, make_files, show_frames
from station.commands.files import Inspected, inspect_files, make_progress
from station.commands.recent import Recent, compare, confirmed, contact_sheet, find_recent, how_to_activate, keep_old
from station.files import write_file
from station.health.camera import CameraWatch, ProfileMaker
from station.inspection import Inspector
from station.report import Change, Exhibit, Outlook, explain
from station.settings import (
    AlertSettings,
    CameraSettings,
    HealthSettings,
    JudgeSettings,
    LogSettings,
    Roi,
    Settings,
    load_settings,
)
from station.survey import Survey

DEFAULT_FALSE_ALARMS = 1e-3
"""What a few hundred good frames can still say something about; see docs/decisions/0002."""
DEFAULT_FRAMES = 1000
EXHIBITS = 6
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
    frames: Annotated[
        int, typer.Option(metavar="N", min=20, help="How many frames to take from the camera.")
    ] = DEFAULT_FRAMES,
    plant: Annotated[
        bool,
        typer.Option(
            "--plant",
            help="No defective frames at hand: plant defects into good ones, five kinds of them. The threshold then is "
            "the highest that finds them as well as any.",
        ),
    ] = False,
    false_alarms: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="False alarms that you can bear: a share of the good frames, such as 1e-4 or 1/10000, or so many in a "
            "period, such as 1/shift, 2/day, 1/hour, 1/week (a shift is 8 hours). Decides the threshold, with "
            "--defect and --plant too.",
            show_default=f"{DEFAULT_FALSE_ALARMS:g}",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=1e-4,
            max=10_000,
            metavar="RATE",
            help="Frames that the station judges a second, for budgets and figures per shift.",
            show_default="camera.fps of --config, else as measured on its live camera",
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
    from_recent: Annotated[
        bool,
        typer.Option(
            "--from-recent",
            help="Take the good frames that the station of --config has kept; the budget of false alarms stays.",
        ),
    ] = False,
    include_anomalous: Annotated[
        bool,
        typer.Option(
            "--include-anomalous", help="With --from-recent: frames too that were above the threshold of then."
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --from-recent: do not ask; the frames have been looked at.")
    ] = False,
) -> None:
    """Set the threshold, from good frames or from good and defective ones.

    From good frames alone: the score that a good frame exceeds with the
    probability --false-alarms. With --defect: the threshold of the highest
    balanced accuracy, unless --false-alarms is given too; both are reported.
    With --plant the same with planted defects, and how many were found.

    Take frames that the model was not trained on, for those score too low.
    A few hundred, better thousands, of different products at different times
    of day. Neighbouring frames of a video repeat each other and count less.

    Writes calibration.json, and beside it a picture (.svg) and a report
    (.html): look at it. Is one of the highest-scoring patches really a
    defect? Ctrl-C while frames come from the camera goes on with those there
    are.

    After drift, --from-recent calibrates on what the station has seen of
    late: it shows the frames, asks, and keeps the old calibration.

    Example: [cyan]station calibrate --bundle bundle --good images/good --false-alarms 1e-4[/]
    """
    logs.set_up(LogSettings(level="warning"))
    console = Console(stderr=True)
    if out is not None and out.suffix != ".json":
        raise typer.BadParameter("must end in .json", param_hint="--out")
    if from_recent and (config is None or good is not None):
        raise typer.BadParameter("needs --config FILE and takes the place of --good", param_hint="--from-recent")
    if (include_anomalous or yes) and not from_recent:
        raise typer.BadParameter("goes with --from-recent", param_hint="--include-anomalous" if not yes else "--yes")
    if plant and defect:
        raise typer.BadParameter("takes the place of --defect; give one of them", param_hint="--plant")
    budget = _budget(false_alarms)
    plan = _plan(config, bundle, good, defect or [], frames, out)
    if from_recent:
        plan = _with_recent(plan, include_anomalous=include_anomalous)
    pace = _pace(plan, fps)
    if budget is not None and not (pace is None and plan.is_live):  # fail before the work, not after it
        _rate(plan, budget, pace)
    with show_building(console) as on_progress:
        engine = open_engine(plan.bundle, plan.engine, on_progress)
    try:
        manifest = plan.bundle.manifest
        tiler = Tiler(manifest.preprocessing, plan.roi.box if plan.roi else None)
        inspector = Inspector(engine, tiler, Judging.of(manifest), plan.judge)
        with make_progress(console) as progress:
            asked = plan.frames if plan.camera is not None else len(plan.good_files)
            planter = _Planter(inspector, asked) if plant else None
            good_set = _collect_good(plan, inspector, progress, planter)
            defect_set = (
                planter.planted
                if planter is not None
                else _collect_files(plan.defect_files, "defective frames", inspector, progress, _Set(-1))
            )
            pace = pace or _measured(good_set.times, plan.alerts)
            good_scores = GoodScores(good_set.array)
            rate = _rate(plan, budget, pace)
            calibration = _make(plan, good_scores, good_set, defect_set, rate, planter, prefer_rate=budget is not None)
            change, exhibits = None, show_frames(good_set.kept, calibration.threshold)
            if plan.recent is not None:
                change, exhibits = _recent_change(plan.recent, good_set, calibration, inspector, progress)
    finally:
        engine.close()
    outlook = look_ahead(calibration, good_scores, defect_set.array, pace)
    files = make_files(
        plan.out,
        calibration,
        outlook,
        good_set.array,
        defect_set.array,
        good_set.survey,
        exhibits,
        show_frames(defect_set.kept, calibration.threshold),
        change,
        named=plan.settings is not None and plan.settings.calibration == plan.out,
    )
    if plan.recent is not None and change is not None:
        _confirm(console, plan.out, files, change, yes=yes)
    for path, data in files.items():
        write_file(path, data)
        console.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)
    _print_result(Console(), calibration, outlook)
    if plan.recent is not None:
        console.print(escape(how_to_activate(plan.recent.settings)), highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The command line and the settings, resolved."""

    settings: Settings | None
    bundle: Bundle
    engine: EngineSettings
    judge: JudgeSettings
    alerts: AlertSettings
    roi: Roi | None
    camera: CameraSettings | None
    frames: int
    good_files: list[Path]
    defect_files: list[Path]
    source: str
    out: Path
    recent: Recent | None = None

    @property
    def is_live(self) -> bool:
        """Whether the frames come at a pace of their own, which can be measured."""
        return self.camera is not None and self.camera.url.partition(":")[0] not in ("file", "folder", "demo")


@dataclass(slots=True)
class _Set:
    """Scores of good or of defective frames, and the frames worth a look.

    Attributes:
        sign: 1 keeps the highest-scoring frames, -1 the lowest.
        profile: measures the frames for the camera rules; None: they are not good ones.
        survey: of their patches; used for the good ones.
        planter: plants defects into the good ones; None: into none.
        times: when the camera's frames were captured, seconds of ``time.monotonic()``.
    """

    sign: int
    scores: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kept: list[Inspected] = field(default_factory=list)
    asked: int = 0
    profile: ProfileMaker | None = None
    survey: Survey = field(default_factory=Survey)
    planter: "_Planter | None" = None
    times: list[float] = field(default_factory=list)

    def add(self, found: Inspected) -> None:
        self.scores.append(found.inspection.score)
        self.names.append(found.name)
        self.sizes[found.inspection.grid.frame_size] += 1
        if self.profile is not None:
            self.profile.add(found.image)
            self.survey.add(found.name, found.image, found.inspection)
        if self.planter is not None:
            self.planter.see(found)
        insort(self.kept, found, key=lambda kept: -self.sign * kept.inspection.score)
        del self.kept[EXHIBITS:]

    @property
    def array(self) -> Scores:
        return np.array(self.scores, np.float64)


class _Planter:
    """Plants defects into some of the good frames, evenly spread, and has them inspected.

    Attributes:
        planted: their scores, and those that are found worst.
        kinds: of the defects, in the order of the scores.
    """

    def __init__(self, inspector: Inspector, n_good: int) -> None:
        """Prepare for ``n_good`` frames."""
        self.planted, self.kinds = _Set(-1), list[str]()
        self._inspector, self._every = inspector, planted_spacing(n_good)
        self._seen, self._rng = 0, np.random.default_rng(0)

    def see(self, found: Inspected) -> None:
        """Take a good frame."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        grid, name = found.inspection.grid, Path(found.name).name
        x, y, w, h = grid.roi
        for planted in plant_each_kind(found.image[y : y + h, x : x + w], self._rng, grid.scale):
            image = found.image.copy()
            image[y : y + h, x : x + w] = planted.image
            shown = f"{planted.kind} in {name}" if name else planted.kind
            self.planted.add(Inspected(shown, image, self._inspector.inspect(image)))
            self.kinds.append(planted.kind)

    def by_kind(self, threshold: float) -> dict[str, PlantedKind]:
        """How many of each kind score above ``threshold``."""
        scores = list(zip(self.kinds, self.planted.scores, strict=True))
        found = {kind: [score > threshold for of, score in scores if of == kind] for kind in KINDS}
        return {kind: PlantedKind(n=len(above), found=sum(above)) for kind, above in found.items() if above}


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
            settings=settings,
            bundle=read_bundle(settings.bundle),
            engine=settings.engine,
            judge=settings.judge,
            alerts=settings.alerts,
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
        settings=None,
        bundle=read_bundle(bundle),
        engine=EngineSettings(),
        judge=JudgeSettings(),
        alerts=AlertSettings(),
        roi=None,
        camera=None,
        frames=frames,
        good_files=good_files,
        defect_files=defect_files,
        source=str(good),
        out=out or Path("calibration.json"),
    )


def _with_recent(plan: _Plan, *, include_anomalous: bool) -> _Plan:
    """The plan with the ring's frames in the place of the camera's."""
    if plan.settings is None:
        raise ValueError("recent frames belong to a station")
    recent = find_recent(plan.settings, plan.bundle, include_anomalous=include_anomalous)
    return replace(plan, camera=None, good_files=[frame.path for frame in recent.used], recent=recent)


def _budget(text: str | None) -> Budget | None:
    try:
        return parse_budget(text) if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--false-alarms") from error


def _pace(plan: _Plan, fps: float | None) -> Pace | None:
    """Frames a second as given, or of the settings; None: unknown, or to be measured."""
    if fps is not None:
        return Pace(fps, "--fps", plan.alerts)
    if plan.settings is not None and plan.settings.camera.fps is not None:
        return Pace(plan.settings.camera.fps, "camera.fps", plan.alerts)
    return None


def _measured(times: Sequence[float], alerts: AlertSettings) -> Pace | None:
    """From when frames came; the median outlives a pause."""
    apart = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return Pace(1 / apart, "as measured while calibrating", alerts) if apart > 0 else None


def _rate(plan: _Plan, budget: Budget | None, pace: Pace | None) -> float:
    """The false-alarm budget: as given, else that of the calibration that recent frames are to replace."""
    if budget is not None:
        try:
            return budget.rate(pace.fps if pace else None)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--false-alarms") from error
    if plan.recent is not None and plan.recent.before is not None:
        return plan.recent.before.false_alarms.rate
    return DEFAULT_FALSE_ALARMS


def _images(folder: Path) -> list[Path]:
    files = find_images(folder)
    if not files:
        raise CalibrationError(f"{folder}: holds no PNG, JPEG, BMP or TIFF image")
    return files


def _collect_good(plan: _Plan, inspector: Inspector, progress: Progress, planter: _Planter | None) -> _Set:
    collected = _Set(1, asked=plan.frames, profile=ProfileMaker(), planter=planter)
    if plan.camera is None:
        return _collect_files(plan.good_files, "good frames", inspector, progress, collected)
    task = progress.add_task("good frames", total=plan.frames)
    # A looping source would hand out the same frames again and again.
    with Capture(plan.camera.model_copy(update={"loop": False})) as capture:
        try:
            watch = CameraWatch(None, plan.settings.health if plan.settings else HealthSettings())
            for found, captured in _from_camera(capture, plan.camera, watch, inspector, progress, task):
                collected.add(found)
                if plan.is_live:
                    collected.times.append(captured)
                progress.advance(task)
                if len(collected.scores) == plan.frames:
                    break
        except KeyboardInterrupt:
            progress.console.print(f"Stopped; going on with {len(collected.scores)} frames.", highlight=False)
    return collected


def _from_camera(
    capture: Capture,
    settings: CameraSettings,
    watch: CameraWatch,
    inspector: Inspector,
    progress: Progress,
    task: TaskID,
) -> Iterator[tuple[Inspected, float]]:
    """Frames and when they were captured."""
    last = time.monotonic()
    while True:
        try:
            frame = capture.get(0.5)
        except EndOfStream:
            return
        found = watch.check(frame) if frame else None
        if frame is None or found:
            fault = str(found) if found else capture.stats.fault
            progress.update(task, description=f"good frames ({fault})" if fault else "good frames")
            if time.monotonic() - last > settings.read_timeout + PATIENCE:
                raise CameraError(f"{redact_url(settings.url)}: {fault or 'no frame'}; given up")
            continue
        last = time.monotonic()
        progress.update(task, description="good frames")
        try:
            yield Inspected(frame.name, frame.image, inspector.inspect(frame.image)), frame.monotonic
        except ValueError as error:
            raise CameraError(f"{redact_url(settings.url)}: {error}") from error


def _collect_files(files: Sequence[Path], what: str, inspector: Inspector, progress: Progress, collected: _Set) -> _Set:
    collected.asked = len(files)
    if files:
        task = progress.add_task(what, total=len(files))
        for found in inspect_files(files, inspector, progress, task):
            collected.add(found)
    return collected


def _make(
    plan: _Plan,
    scores: GoodScores,
    good_set: _Set,
    defect_set: _Set,
    rate: float,
    planter: _Planter | None,
    *,
    prefer_rate: bool,
) -> Calibration:
    good, defect, tail = scores.scores, defect_set.array, scores.tail
    false_alarms = scores.threshold(rate)
    separate = calibrate_labelled if planter is None else calibrate_planted
    separation = separate(good, defect) if defect.size else None
    by_separation = separation is not None and not prefer_rate
    threshold = separation.threshold if separation and by_separation else false_alarms.threshold
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
        threshold=threshold,
        method=("balanced_accuracy" if planter is None else "planted_defects") if by_separation else "false_alarm_rate",
        n_good=good.size,
        n_defect=defect.size,
        good=summarize(good),
        defect=summarize(defect) if defect.size else None,
        tail=tail,
        false_alarms=false_alarms,
        separation=separation,
        planted=planter.by_kind(threshold) if planter is not None else None,
        warnings=tuple(warnings),
        healthy=good_set.profile.make() if good_set.profile else None,
        good_scores=thinned(good),
    )


def _recent_change(
    recent: Recent, good_set: _Set, calibration: Calibration, inspector: Inspector, progress: Progress
) -> tuple[Change, list[Exhibit]]:
    """What the new threshold changes on recent frames, and the contact sheet of these."""
    left_out = _Set(1)
    _collect_files([frame.path for frame in recent.left_out], "frames left out", inspector, progress, left_out)
    change = compare(recent, good_set.scores, left_out.scores, calibration.threshold)
    scores = dict(zip(good_set.names + left_out.names, good_set.scores + left_out.scores, strict=True))
    return change, contact_sheet(recent, scores, change, inspector, progress)


def _confirm(console: Console, out: Path, files: dict[Path, bytes], change: Change, *, yes: bool) -> None:
    """Let somebody see what is about to be written, and keep what it replaces.

    Raises:
        typer.Exit: it was declined; the calibration is as it was.
    """
    proposed = out.with_suffix(".proposed.html")
    write_file(proposed, files[out.with_suffix(".html")])
    if not yes and not confirmed(console, change, proposed):
        console.print(f"Nothing has changed; what was proposed is in {escape(str(proposed))}.", highlight=False)
        raise typer.Exit(1)
    if (kept := keep_old(out)) is not None:
        console.print(f"kept {escape(str(kept))}", highlight=False, soft_wrap=True)
    proposed.unlink(missing_ok=True)


def _print_result(console: Console, calibration: Calibration, outlook: Outlook) -> None:
    first, *rest = explain(calibration, outlook)
    lines = [f"[bold]{escape(first)}[/]", *map(escape, rest)]
    lines += [f"[yellow]Note:[/] {escape(warning)}" for warning in calibration.warnings]
    for rule, why in (calibration.healthy.blind if calibration.healthy else {}).items():
        lines.append(f"Not watched for: {rule}, because {escape(why)}.")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=not console.is_terminal)
