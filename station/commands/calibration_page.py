"""What ``station calibrate`` writes beside the calibration: the report, and its charts as a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engines.engine import UInt8Array
from engines.pictures import blend, encode_jpeg
from engines.plots import standalone
from station import charts
from station.budget import Pace, parse_budget
from station.calibration import Calibration, GoodScores, Scores, odds, roc, written
from station.commands.files import Inspected
from station.heatmap import draw
from station.report import Change, Exhibit, Option, Outlook, Report, render
from station.survey import Patch, Places, Survey, findings

EXHIBIT_SIDE = 560
PATCH_SIDE = 176
HIGH = 0.99
"""The highest-scoring good frames are those from this quantile on."""
_GAP = 6
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_BUDGETS = ("1/hour", "1/shift", "1/day", "1/week")
_RATES = ("1e-2", "1e-3", "1e-4", "1e-5")


def look_ahead(calibration: Calibration, good: GoodScores, defect: Scores, pace: Pace | None) -> Outlook:
    """What the threshold lets through, and what other budgets would mean.

    Args:
        calibration: with the threshold.
        good: its good frames.
        defect: (m,), scores of its defective frames; may be empty.
        pace: of the station, if it is known.
    """

    def found(threshold: float) -> int | None:
        return int((defect > threshold).sum()) if defect.size else None

    options = []
    for text in _BUDGETS if pace else _RATES:
        try:
            rate = parse_budget(text).rate(pace.fps if pace else None)
        except ValueError:
            continue  # fewer frames than that come along
        threshold = good.threshold(rate)
        name = f"{text} ({odds(rate)} good frames)" if pace else f"{odds(rate)} good frames"
        options.append(Option(name, threshold, found(threshold.threshold)))
    return Outlook(good.exceedance(calibration.threshold), pace, found(calibration.threshold), tuple(options))


def make_files(
    out: Path,
    calibration: Calibration,
    outlook: Outlook,
    good: Scores,
    defect: Scores,
    survey: Survey,
    good_exhibits: Sequence[Exhibit],
    defect_exhibits: Sequence[Exhibit],
    change: Change | None,
    *,
    named: bool,
) -> dict[Path, bytes]:
    """The files of the result by path, the calibration last: without its report it must not be there.

    Args:
        out: path of calibration.json.
        calibration: the result.
        outlook: what it lets through.
        good: (n,), scores in order of capture.
        defect: (m,); may be empty.
        survey: of the good frames.
        good_exhibits: highest-scoring good frames.
        defect_exhibits: lowest-scoring defective frames.
        change: for a calibration from recent frames.
        named: whether the settings name this calibration already.
    """
    drawn = _draw_charts(calibration, good, defect)
    places, reach = survey.places(), float(np.quantile(good, HIGH))
    report = Report(
        calibration=calibration,
        outlook=outlook,
        charts=drawn,
        patches=_patches(survey.patches, calibration.threshold),
        good=good_exhibits,
        defect=defect_exhibits,
        places=None if places is None else _draw_places(places, reach),
        findings=findings(places, reach) if places else (),
        out=None if named else os.fspath(out),
        change=change,
    )
    return {
        out.with_suffix(".svg"): standalone([chart for chart, _ in drawn]).encode(),
        out.with_suffix(".html"): render(report).encode(),
        out: calibration.model_dump_json(by_alias=True, indent=2).encode() + b"\n",
    }


def _draw_places(places: Places, reach: float) -> tuple[str, str]:
    mean = encode_jpeg(places.average, EXHIBIT_SIDE, 85)
    return charts.place_chart(places, reach), charts.average_chart(places, mean)


def show_frames(kept: Sequence[Inspected], threshold: float) -> list[Exhibit]:
    """Frames with their heat, drawn as the station draws its alerts."""
    return [
        Exhibit.of(
            short_name(found.name),
            found.inspection.score,
            draw(found.image, found.inspection, threshold),
            EXHIBIT_SIDE,
            compare(found.inspection.score, threshold),
        )
        for found in kept
    ]


def compare(score: float, threshold: float) -> str:
    """A score beside the threshold, in words."""
    mark = "▲ above the threshold" if score > threshold else f"{100 * score / threshold:.0f} % of the threshold"
    return f"{written(score)}, {mark}"


def short_name(name: str) -> str:
    """The file and its folder."""
    return "/".join(Path(name).parts[-2:])


def _patches(patches: Sequence[Patch], threshold: float) -> list[Exhibit]:
    """Pictures of patches, each beside the same with its heat; full colour is the hottest of them all."""
    smooth = [np.asarray(cv2.GaussianBlur(p.heat.clip(0), (0, 0), p.inside.w / 32), np.float32) for p in patches]
    hottest = max((float(heat.max()) for heat in smooth), default=0.0) or 1.0
    return [
        Exhibit.of(
            f"{short_name(patch.name)}, at x {patch.box.x}, y {patch.box.y}",
            patch.score,
            _pair(patch, heat / np.float32(hottest)),
            2 * PATCH_SIDE + _GAP,
            compare(patch.score, threshold),
        )
        for patch, heat in zip(patches, smooth, strict=True)
    ]


def _pair(patch: Patch, heat: np.ndarray) -> UInt8Array:
    """The patch with its surroundings, and the same with its heat."""
    height, width = patch.picture.shape[:2]
    scale = PATCH_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    plain = np.asarray(cv2.resize(patch.picture, size, interpolation=interpolation), np.uint8)
    hot = blend(plain, np.asarray(cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR), np.float32))
    box = patch.inside
    start = (round(box.x * scale), round(box.y * scale))
    end = (round(box.right * scale) - 1, round(box.bottom * scale) - 1)
    pair = np.full((PATCH_SIDE, 2 * PATCH_SIDE + _GAP, 3), 128, np.uint8)
    for x, half in ((0, plain), (PATCH_SIDE + _GAP, hot)):
        cv2.rectangle(half, start, end, _BLACK, 3)
        cv2.rectangle(half, start, end, _WHITE, 1)
        pair[: size[1], x : x + size[0]] = half
    return pair


def _draw_charts(calibration: Calibration, good: Scores, defect: Scores) -> list[tuple[str, str]]:
    """(chart, what it says) each."""
    alarms, tail = calibration.false_alarms, calibration.tail
    threshold, interval = calibration.threshold, (alarms.low, alarms.high)
    by_budget = calibration.method == "false_alarm_rate"
    apart = (
        "Good and defective frames should lie apart, with the line in the gap."
        if defect.size
        else "Good frames should lie left of it, in one heap: a second heap is another product, light or view."
    )
    measured = (
        "Every dot is a good frame. Where the dots follow the line, the fitted tail can be trusted to go on beyond "
        "them; the threshold lies where it meets the budget."
    )
    drawn = [
        (
            charts.histogram(good, defect if defect.size else None, threshold, tail, interval if by_budget else None),
            f"What scores right of the dashed line is called defective. {apart}",
        ),
        (
            charts.tail_chart(good, tail.exceedance, tail.level, alarms.rate, alarms.threshold, interval),
            measured,
        ),
    ]
    if calibration.separation is not None:
        _, found, false = roc(good, defect)
        chosen = (float((good > threshold).mean()), float((defect > threshold).mean()))
        words = (
            "Every point of the line is a threshold: the further up and left it bends, the better the scores tell "
            "defects from good frames. On the diagonal they would only guess."
        )
        drawn.append((charts.roc_chart(found, false, calibration.separation.auroc, chosen), words))
    in_order = (
        "In the order in which they were taken. They should scatter around one level: a slope, a step or a wave is a "
        "lamp that warms up, another product or light, and the threshold fits only what it has seen."
    )
    drawn.append((charts.run_chart(good, threshold), in_order))
    return drawn
