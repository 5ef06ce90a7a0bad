"""The HTML report of a calibration: one file, no scripts, nothing fetched from elsewhere."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

from station.calibration import Calibration, odds


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A frame worth a look.

    Attributes:
        name: of its file, or "" for a camera's frame.
        score: its frame score.
        jpeg: its picture.
    """

    name: str
    score: float
    jpeg: bytes = field(repr=False)


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
        old = "none before" if self.before is None else f"{self.before:.5g} before"
        found = [
            f"Recent frames of {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC.",
            f"Threshold: {self.after:.5g}, {old}.",
        ]
        for tally in self.tallies:
            share = 100 / max(1, tally.frames)
            now = f"{tally.after} ({share * tally.after:.1f} %)"
            was = "" if tally.before is None else f", before {tally.before} ({share * tally.before:.1f} %)"
            found.append(f"Of {tally.frames} frames ({tally.what}) would alarm: {now}{was}.")
        return found


def explain(calibration: Calibration) -> list[str]:
    """The result in plain words, a sentence an entry."""
    alarms, separation = calibration.false_alarms, calibration.separation
    sentences = [f"A frame that scores above {calibration.threshold:.5g} is called defective."]
    if calibration.method == "false_alarm_rate":
        sentences.append(
            f"At this threshold about {odds(alarms.rate)} good frames is expected to raise a false alarm "
            f"({100 * alarms.confidence:.0f} % interval of the threshold: {alarms.low:.5g} to {alarms.high:.5g})."
        )
        per_hour = 3600 * alarms.rate
        sentences.append(
            f"At one frame a second that is {per_hour:.2g} false alarms an hour; `alerts.open_hits` of two or more "
            "frames makes them rarer."
        )
    else:
        sentences.append("It is where the balanced accuracy on the frames given is highest.")
        if calibration.threshold >= calibration.tail.level:
            rate = calibration.tail.exceedance(calibration.threshold)
            often = f"about {odds(rate)} good frames" if rate > 1e-9 else "hardly any good frame"
            sentences.append(f"By the tail fitted to the good frames, {often} would raise a false alarm.")
        sentences.append(
            f"For a false-alarm budget of {odds(alarms.rate)} the threshold would be {alarms.threshold:.5g} "
            f"(add --false-alarms {alarms.rate:g} to take it)."
        )
    if separation is not None:
        sentences.append(
            f"On {calibration.n_defect} defective and {calibration.n_good} good frames: auROC {separation.auroc:.4f}, "
            f"balanced accuracy up to {separation.balanced_accuracy:.4f} (at {separation.threshold:.5g}, where "
            f"{100 * separation.defects_found:.1f} % of the defects are found and "
            f"{100 * separation.good_passed:.1f} % of the good frames pass)."
        )
    return sentences


def render(
    calibration: Calibration,
    charts: Sequence[str],
    good: Sequence[Exhibit],
    defect: Sequence[Exhibit],
    out: str,
    change: Change | None = None,
) -> str:
    """The report as HTML.

    Args:
        calibration: what it is about.
        charts: SVG elements.
        good: highest-scoring good frames, highest first.
        defect: lowest-scoring defective frames, lowest first.
        out: path of calibration.json, as the settings would name it.
        change: for a calibration from recent frames.
    """
    first, *rest = explain(calibration)
    name = escape(calibration.bundle_name)
    warnings = "".join(f"<li>{escape(text)}</li>" for text in calibration.warnings)
    head = (
        f"<header><p class='kicker'>Calibration of {name}</p><h1>{calibration.threshold:,.5g}</h1>"
        f"<p class='lead'>{escape(first)}</p>{''.join(f'<p>{escape(text)}</p>' for text in rest)}"
        f"<div class='cards'>{''.join(_card(*card) for card in _cards(calibration))}</div></header>"
    )
    sections = [head]
    if change is not None:
        lines = "".join(f"<p>{escape(text)}</p>" for text in change.lines())
        notes = "".join(f"<li>{escape(text)}</li>" for text in change.notes)
        sections.append(f"<section class='warn'><h2>What changes</h2>{lines}<ul>{notes}</ul></section>")
    if warnings:
        sections.append(f"<section class='warn'><h2>Before you rely on it</h2><ul>{warnings}</ul></section>")
    sections.append(
        "<section><h2>The scores</h2><div class='charts'>"
        + "".join(f"<figure>{chart}</figure>" for chart in charts)
        + "</div></section>"
    )
    sections.append(
        _gallery(
            "The good frames that score highest" if change is None else "The recent frames that score highest",
            "Is one of them really a defect? Then take it away and calibrate again: it pushes the threshold up, and "
            "faint defects pass. Is it a glare, a shadow, a hand? Then better light or a tighter region of interest "
            "helps more than any threshold.",
            good,
        )
    )
    if defect:
        sections.append(
            _gallery(
                "The defects that score lowest",
                "Those marked good are missed at this threshold. If they matter, train longer, show more of the "
                "product to the model, or move the camera closer, so that the defect covers more pixels.",
                defect,
            )
        )
    sections.append(f"<section><h2>What to do next</h2><ol>{_next_steps(out)}</ol></section>")
    sections.append(f"<section><h2>Details</h2><table>{_details(calibration)}</table></section>")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Calibration of {name}</title><style>{_CSS}</style></head><body><main>{''.join(sections)}</main>"
        "</body></html>\n"
    )


def _cards(calibration: Calibration) -> list[tuple[str, str, str]]:
    alarms, separation = calibration.false_alarms, calibration.separation
    good = calibration.good
    cards = [
        ("good frames", f"{calibration.n_good:,}", f"median score {good.median:.5g}, highest {good.highest:.5g}"),
        ("false-alarm budget", odds(alarms.rate), f"threshold {alarms.low:.5g} … {alarms.high:.5g}"),
    ]
    if separation is not None and calibration.defect is not None:
        cards += [
            ("defective frames", f"{calibration.n_defect:,}", f"median score {calibration.defect.median:.5g}"),
            ("auROC", f"{separation.auroc:.4f}", f"balanced accuracy {separation.balanced_accuracy:.4f}"),
        ]
    return cards


def _card(label: str, value: str, note: str) -> str:
    return (
        f"<div class='card'><span>{escape(label)}</span><strong>{escape(value)}</strong><em>{escape(note)}</em></div>"
    )


def _gallery(title: str, text: str, exhibits: Sequence[Exhibit]) -> str:
    figures = "".join(
        f"<figure><img alt='{escape(exhibit.name or 'frame', quote=True)}' "
        f"src='data:image/jpeg;base64,{base64.b64encode(exhibit.jpeg).decode()}'>"
        f"<figcaption>{escape(exhibit.name)}</figcaption></figure>"
        for exhibit in exhibits
    )
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p><div class='gallery'>{figures}</div></section>"


def _next_steps(out: str) -> str:
    steps = (
        "Look at the frames above: they decide the threshold.",
        f'Name the file in the station\'s settings: <code>calibration = "{escape(out)}"</code>.',
        "Prove the set-up with <code>station check</code>, then start it with <code>station run</code>.",
        "Put a known defect in front of the camera. No alert? The threshold is too high, or the defect too small.",
        "Calibrate again after any change of bundle, lens, light or region of interest.",
    )
    return "".join(f"<li>{step}</li>" for step in steps)


def _details(calibration: Calibration) -> str:
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
        ("fitted tail", f"generalized Pareto above {tail.level:.5g}, from {tail.n_exceedances} frames"),
        ("its shape and scale", f"{tail.shape:.3f} and {tail.scale:.5g} (Zhang & Stephens 2009)"),
        ("quantiles, good", ", ".join(f"{q}: {v:.5g}" for q, v in calibration.good.quantiles.items())),
    ]
    if calibration.defect is not None:
        rows.append(
            ("quantiles, defective", ", ".join(f"{q}: {v:.5g}" for q, v in calibration.defect.quantiles.items()))
        )
    return "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in rows)


_CSS = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#f4f5f7;color:#1f2937;
  font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
header,section{background:#fff;border:1px solid #e5e7eb;border-radius:14px;padding:26px 30px;margin-bottom:20px}
h1{font-size:52px;line-height:1.1;margin:0 0 12px;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
h2{font-size:20px;margin:0 0 10px}
p{margin:0 0 8px;max-width:75ch}
.kicker{color:#6b7280;font-weight:600;margin-bottom:4px}
.lead{font-size:19px;font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin-top:20px}
.card{background:#f8fafc;border:1px solid #e5e7eb;border-radius:10px;padding:12px 16px;display:flex;
  flex-direction:column}
.card span,.card em{color:#6b7280;font-size:13px;font-style:normal}
.card strong{font-size:24px;font-variant-numeric:tabular-nums}
.warn{background:#fffbeb;border-color:#fcd34d}
ul,ol{margin:0;padding-left:22px;max-width:80ch}
li{margin:4px 0}
figure{margin:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:18px}
.charts svg{width:100%;height:auto;display:block}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:16px;margin-top:14px}
.gallery img{width:100%;display:block;border-radius:8px}
figcaption{font-size:13px;color:#6b7280;margin-top:4px;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;vertical-align:top;padding:7px 12px 7px 0;border-top:1px solid #eef0f3;
  overflow-wrap:anywhere}
th{white-space:nowrap;color:#6b7280;font-weight:500;width:170px}
code{background:#f3f4f6;border-radius:5px;padding:1px 6px;font-size:14px}
@media(max-width:560px){.charts{grid-template-columns:1fr}h1{font-size:38px}header,section{padding:18px}}
"""
