"""The HTML report of a calibration: one file, no scripts, nothing fetched from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

from engines.engine import UInt8Array
from engines.pages import (
    Html,
    bullets,
    cards,
    document,
    facts,
    figure,
    gallery,
    link,
    paragraphs,
    picture,
    section,
    steps,
    table,
)
from engines.pictures import encode_jpeg, shrunk
from station.budget import SHIFT, SHIFT_HOURS, Pace, amount
from station.calibration import Calibration, Chance, FalseAlarmThreshold, odds, wilson, written
from station.survey import Finding

BOLD = 50
"""A budget this many times rarer than the frames can show is told to be so."""
WIDE = 4.0
"""An interval whose upper end is this many times the estimate asks for more frames."""


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A picture worth a look.

    Attributes:
        name: of its file and what else its caption says, or "" for a camera's frame.
        score: the frame's or the patch's.
        jpeg: its picture.
        size: (height, width) of the picture.
        verdict: how it compares with the threshold, in words; "" says nothing.
    """

    name: str
    score: float
    jpeg: bytes = field(repr=False)
    size: tuple[int, int]
    verdict: str = ""

    @classmethod
    def of(cls, name: str, score: float, image: UInt8Array, side: int, verdict: str = "") -> "Exhibit":
        """Of a picture, uint8 (H, W, 3), BGR, shrunk to ``side`` pixels."""
        small = shrunk(image, side)
        return cls(name, score, encode_jpeg(small, side, 80), (small.shape[0], small.shape[1]), verdict)


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of some frames would alarm.

    Attributes:
        what: these frames are.
        frames: how many there are.
        before: that score above the threshold of before; None without one.
        after: that score above the new one.
    """

    what: str
    frames: int
    before: int | None
    after: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a calibration from recent frames changes.

    Attributes:
        before: threshold in force; None without one.
        after: the new one.
        span: when the first and the last of the frames were captured, UTC.
        tallies: alarms under both.
        notes: what to think of before it is confirmed.
    """

    before: float | None
    after: float
    span: tuple[datetime, datetime]
    tallies: tuple[Tally, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """In plain words."""
        first, last = self.span
        old = "none before" if self.before is None else f"{written(self.before)} before"
        found = [
            f"Recent frames of {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC.",
            f"Threshold: {written(self.after)}, {old}.",
        ]
        for tally in self.tallies:
            share = 100 / max(1, tally.frames)
            now = f"{tally.after} ({share * tally.after:.1f} %)"
            was = "" if tally.before is None else f", before {tally.before} ({share * tally.before:.1f} %)"
            found.append(f"Of {tally.frames} frames ({tally.what}) would alarm: {now}{was}.")
        return found


@dataclass(frozen=True, slots=True)
class Option:
    """What another budget would mean.

    Attributes:
        budget: in words.
        threshold: that it asks for.
        found: how many of the defective frames score above that; None without any.
    """

    budget: str
    threshold: FalseAlarmThreshold
    found: int | None


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the threshold lets through, and what others would.

    Attributes:
        chance: that a good frame scores above the threshold.
        pace: of the station; None: unknown.
        found: how many of the defective frames score above the threshold; None without any.
        options: other budgets.
    """

    chance: Chance
    pace: Pace | None
    found: int | None
    options: tuple[Option, ...]

    def per_shift(self) -> tuple[str, str]:
        """Expected good frames above the threshold in a shift, and the interval; at one a second if unknown."""
        frames = self.pace.frames if self.pace else SHIFT
        expected, low, high = (amount(p * frames) for p in self.chance)
        return expected, f"{low} to {high}"

    def lines(self) -> list[str]:
        """In plain words."""
        number, interval = self.per_shift()
        fps, rest = (
            (f"{self.pace.words} ({self.pace.origin})", "")
            if self.pace
            else ("one frame a second", "; add --fps FRAMES_PER_SECOND for yours")
        )
        frames = "good frame scores" if number == "1" else "good frames score"
        expected = (
            f"At {fps} about {number} {frames} above it in a shift of {SHIFT_HOURS} hours (95 % interval {interval}), "
            f"if the line goes on showing what these frames show{rest}."
        )
        return [expected, self.pace.alerts_in_words(self.chance.p)] if self.pace else [expected]


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    Attributes:
        calibration: what it is about.
        outlook: what the threshold lets through.
        charts: (SVG, what it says) each.
        patches: highest-scoring patches of the good frames, highest first.
        good: highest-scoring good frames, highest first.
        defect: lowest-scoring defective frames, lowest first.
        places: (map of the scores, mean of the frames), SVG; None where the frame is a single patch.
        findings: parts of the frame that score higher than others.
        out: path of calibration.json, for the settings to name; None: they do.
        change: for a calibration from recent frames.
    """

    calibration: Calibration
    outlook: Outlook
    charts: Sequence[tuple[str, str]]
    patches: Sequence[Exhibit]
    good: Sequence[Exhibit]
    defect: Sequence[Exhibit]
    places: tuple[str, str] | None
    findings: Sequence[Finding]
    out: str | None
    change: Change | None = None


def explain(calibration: Calibration, outlook: Outlook) -> list[str]:
    """The result in plain words, a sentence an entry."""
    alarms, separation = calibration.false_alarms, calibration.separation
    sentences = [f"A frame that scores above {written(calibration.threshold)} is called defective."]
    if calibration.method == "false_alarm_rate":
        sentences.append(
            f"At this threshold about {odds(alarms.rate)} good frames is expected to raise a false alarm "
            f"({100 * alarms.confidence:.0f} % interval of the threshold: {written(alarms.low)} to "
            f"{written(alarms.high)})."
        )
    elif calibration.method == "balanced_accuracy":
        sentences.append("It is where the balanced accuracy on the frames given is highest.")
    else:
        sentences.append(
            "Of the thresholds that tell planted defects from good frames as well as any, as far as so few frames can "
            "tell, it is the highest."
        )
    sentences += outlook.lines()
    if calibration.method != "false_alarm_rate":
        sentences.append(
            f"For a false-alarm budget of {odds(alarms.rate)} the threshold would be {written(alarms.threshold)} "
            f"(add --false-alarms {alarms.rate:g} to take it)."
        )
    if separation is not None and calibration.planted is None:
        sentences.append(
            f"On {calibration.n_defect} defective and {calibration.n_good} good frames: auROC {separation.auroc:.4f}, "
            f"balanced accuracy up to {separation.balanced_accuracy:.4f} (at {written(separation.threshold)}, where "
            f"{100 * separation.defects_found:.1f} % of the defects are found and "
            f"{100 * separation.good_passed:.1f} % of the good frames pass)."
        )
    elif separation is not None and calibration.planted is not None:
        kinds = ", ".join(f"{kind} {of.found} of {of.n}" for kind, of in calibration.planted.items())
        sentences.append(
            f"Of {calibration.n_defect} defects that were planted into good frames it finds: {kinds} (auROC "
            f"{separation.auroc:.4f}). They are about as strong as the material's own contrast; real ones may be "
            "fainter."
        )
    return sentences


def render(report: Report) -> str:
    """The report as HTML."""
    calibration, change = report.calibration, report.change
    first, *rest = explain(calibration, report.outlook)
    frames_and_alerts = report.outlook.lines()[1:]  # told where the alarms are
    rest = [sentence for sentence in rest if sentence not in frames_and_alerts]
    sections = []
    if change is not None:
        what = paragraphs(*change.lines()) + bullets(change.notes)
        sections.append(section("What changes", what, warning=True))
    if calibration.warnings:
        sections.append(section("Before you rely on it", bullets(calibration.warnings), warning=True))
    good = "The good frames that score highest" if change is None else "The recent frames that score highest"
    whole = "Whole frames, drawn as the station draws its alerts: the hotter, the more they depart from good material."
    frames = section("Highest frames", paragraphs(whole) + _gallery(report.good, "frame"), good)
    if change is not None:  # they are what somebody has to look at before it is confirmed
        sections.append(frames)
    sections.append(section("What to do next", steps(_next_steps(report))))
    sections.append(section("Scores", _charts(report)))
    sections.append(section("False alarms", _options(report)))
    if report.patches:
        sections.append(
            section(
                "Highest patches",
                paragraphs(
                    "The patches of good frames that score highest, with their surroundings; at the right where "
                    "they depart from good material. Is one of them really a defect? Then take its frame away and "
                    "calibrate again: it pushes the threshold up, and faint defects pass. Glare, a shadow, a hand, "
                    "the edge of the product? Then better light or a tighter region of interest helps more than "
                    "any threshold."
                )
                + _gallery(report.patches, "patch"),
            )
        )
    if report.places is not None:
        sections.append(section("By place", _places(report)))
    if change is None:
        sections.append(frames)
    if report.defect:
        sections.append(
            section(
                "Lowest defects",
                paragraphs(
                    "Those marked good are missed at this threshold. If they matter, train longer, show more of "
                    "the product to the model, or move the camera closer, so that the defect covers more pixels."
                )
                + _gallery(report.defect, "frame"),
                f"The {'planted ' if calibration.planted else ''}defects that score lowest",
            )
        )
    sections.append(section("Details", facts(_details(calibration))))
    return document(
        title=f"Calibration of {calibration.bundle_name}",
        kicker=f"Calibration of {calibration.bundle_name}, {calibration.created_at:%Y-%m-%d %H:%M} UTC",
        headline=f"Threshold {written(calibration.threshold)}",
        lead=first,
        head=paragraphs(*rest) + cards(_cards(report)),
        sections=sections,
    )


def _cards(report: Report) -> list[tuple[str, str, str]]:
    calibration, outlook = report.calibration, report.outlook
    separation, good = calibration.separation, calibration.good
    number, interval = outlook.per_shift()
    pace = f"at {outlook.pace.words}" if outlook.pace else "at one frame a second"
    found = [
        (
            "good frames",
            f"{calibration.n_good:,}",
            f"median score {written(good.median)}, highest {written(good.highest)}",
        ),
        ("good frames above it in a shift", f"≈ {number}", f"95 % interval {interval}; {pace}"),
    ]
    if separation is not None and outlook.found is not None:
        low, high = wilson(outlook.found, calibration.n_defect)
        share = percent(outlook.found / calibration.n_defect)
        note = f"{outlook.found:,} of {calibration.n_defect:,}; 95 % interval {percent(low)} to {percent(high)}"
        found += [
            ("planted defects found" if calibration.planted else "defects found", share, note),
            ("auROC", f"{separation.auroc:.4f}", "1 is perfect, 0.5 is chance"),
        ]
    else:
        alarms = calibration.false_alarms
        note = f"interval of the threshold {written(alarms.low)} to {written(alarms.high)}"
        found.append(("false-alarm budget", odds(alarms.rate), note))
    return found


def _charts(report: Report) -> str:
    drawn = "".join(figure(chart, words) for chart, words in report.charts)
    return f"<div class='charts'>{drawn}</div>"


def _options(report: Report) -> str:
    """What other budgets would mean, and this one."""
    calibration, outlook = report.calibration, report.outlook
    pace, n = outlook.pace, calibration.n_good
    alarms = calibration.false_alarms
    head = ["budget", "threshold", "95 % interval"]
    if pace:
        head.append("good frames above it, a shift")
    if outlook.found is not None:
        head.append("planted defects found" if calibration.planted else "defects found")

    def row(name: str, low: float, at: float, high: float, rate: float, found: int | None) -> list[str]:
        beyond = f"{1 / (rate * n):,.0f} × rarer than {n:,} frames can show" if rate * n < 1 else ""
        cells = [Html(f"{escape(name)}<br><small>{escape(beyond)}</small>") if beyond else name]
        cells += [f"{written(at)}", f"{written(low)} to {written(high)}" if low < high else "–"]
        if pace:
            cells.append(amount(rate * pace.frames))
        if found is not None:
            cells.append(f"{found:,} of {calibration.n_defect:,} ({percent(found / calibration.n_defect)})")
        return cells

    chance = outlook.chance
    if calibration.method == "false_alarm_rate":
        name = f"this calibration: {odds(alarms.rate)} good frames"
        rows = [row(name, alarms.low, alarms.threshold, alarms.high, alarms.rate, outlook.found)]
    else:
        at = calibration.threshold
        how = "planted defects" if calibration.method == "planted_defects" else "balanced accuracy"
        rows = [row(f"this calibration: {how}", at, at, at, chance.p or 1.0, outlook.found)]
        if not chance.p and pace:
            rows[0][3] = "0"
    for option in outlook.options:
        found = option.threshold
        rows.append(row(option.budget, found.low, found.threshold, found.high, found.rate, option.found))
    note = (
        "A budget counts good frames above the threshold; alerts join neighbouring frames and so are fewer. What is "
        "much rarer than the frames can show hangs on the fitted tail alone: take it as a hint, and count the alerts "
        "of the first days."
    )
    return (
        paragraphs(*outlook.lines()) + table(head, rows, "What this budget means, and others would") + paragraphs(note)
    )


def _places(report: Report) -> str:
    if report.places is None:
        return ""
    scores, average = report.places
    told = "".join(
        f"<p class='finding{' bad' if finding.mends else ''}'>{escape(finding.words())}</p>"
        for finding in report.findings
    )
    if not report.findings:
        told = "<p class='finding'>No side of the frame and no place in it scores clearly higher than the others.</p>"
    even = "Every field is a place where a patch is cut. Even colour means even light, focus and material."
    mean = "What stays while the product moves: dark corners, dirt on the lens, edges."
    return f"{told}<div class='charts'>{figure(scores, even)}{figure(average, mean)}</div>"


def _gallery(exhibits: Sequence[Exhibit], what: str) -> str:
    figures = []
    for number, exhibit in enumerate(exhibits, 1):
        name, score = exhibit.name or "from the camera", written(exhibit.score)
        alt = f"{what} {number}, {name}, score {score} {exhibit.verdict}".strip()
        caption = [f"<b>{escape(exhibit.verdict)}</b>"] if exhibit.verdict else []
        caption.append(escape(exhibit.name))
        shown = picture(exhibit.jpeg, alt, exhibit.size)
        figures.append(f"<figure>{shown}<figcaption>{'<br>'.join(caption)}</figcaption></figure>")
    return gallery(figures, "small" if what == "patch" else "")


def _next_steps(report: Report) -> list[str]:
    calibration, outlook = report.calibration, report.outlook
    found = []
    if report.patches:
        found.append(
            f"{link('Highest patches', 'Look at the patches that score highest')}: they decide the threshold. A defect "
            "among them, and its frame must go before you calibrate again."
        )
    if any(finding.mends for finding in report.findings):
        found.append(
            f"{link('By place', 'See where in the frame scores are high')}: one part scores higher than the rest, and "
            "there the same threshold is stricter. Mend light, lens or region of interest first, then calibrate again."
        )
    if outlook.chance.high > WIDE * outlook.chance.p and calibration.method == "false_alarm_rate":
        more = max(1000, 4 * calibration.n_good)
        found.append(
            f"Collect more good frames, some {more:,} of different products, times of day and shifts: the false alarms "
            "of the first days may be several times what is expected here."
        )
    rate, n = calibration.false_alarms.rate, calibration.n_good
    if calibration.method == "false_alarm_rate" and rate * n * BOLD < 1:
        found.append(
            f"Until then a budget nearer to what {n:,} frames can show is safer: <code>--false-alarms 1/{5 * n}</code>."
            " What is missed for a threshold that is too high, nobody sees."
        )
    if calibration.separation is None or calibration.planted is not None:
        planted = "" if calibration.planted else " Until you have some, <code>--plant</code> plants defects."
        found.append(
            "Put a few known defects into a folder and add <code>--defect FOLDER</code>: then this page says how many "
            f"of them are found, too.{planted}"
        )
    if outlook.found is not None and outlook.found < calibration.n_defect:
        passed = f"See which {calibration.n_defect - outlook.found:,} of {calibration.n_defect:,} defects pass"
        found.append(
            f"{link('Lowest defects', passed)}. If they must not, allow more false alarms "
            f"({link('False alarms', 'what that costs')}), or train for longer."
        )
    if report.out is not None:
        found.append(f'Name the file in the station\'s settings: <code>calibration = "{escape(report.out)}"</code>.')
    found += [
        "Prove the set-up: <code>station check --config station.toml</code>.",
        "Start it: <code>station run --config station.toml</code>.",
        "Put a known defect in front of the camera. No alert? The threshold is too high, or the defect too small.",
        "Calibrate again after any change of bundle, lens, light or region of interest.",
    ]
    return found


def _details(calibration: Calibration) -> list[tuple[str, str]]:
    camera, tail = calibration.camera, calibration.tail
    roi = camera.roi
    rows = [
        ("made", f"{calibration.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("bundle", f"{calibration.bundle_name}, sha256 {calibration.bundle_sha256}"),
        ("frames from", camera.source),
        ("frame size", f"{camera.frame_width} x {camera.frame_height} pixels"),
        ("region of interest", f"{roi.width} x {roi.height} at ({roi.x}, {roi.y})" if roi else "whole frame"),
        ("λ", f"{calibration.lambda_:g}"),
        (
            "frame score",
            "highest patch score"
            if calibration.frame_score == "max"
            else f"mean of the {calibration.top_k} highest patch scores",
        ),
        ("fitted tail", f"generalized Pareto above {written(tail.level)}, from {tail.n_exceedances} frames"),
        ("its shape and scale", f"{tail.shape:.3f} and {written(tail.scale)} (Zhang & Stephens 2009)"),
        ("quantiles, good", ", ".join(f"{q}: {written(v)}" for q, v in calibration.good.quantiles.items())),
    ]
    if calibration.defect is not None:
        rows.append(
            (
                "quantiles, planted" if calibration.planted else "quantiles, defective",
                ", ".join(f"{q}: {written(v)}" for q, v in calibration.defect.quantiles.items()),
            )
        )
    return rows


def percent(share: float) -> str:
    """Whole per cent."""
    return f"{100 * share:.0f} %"
