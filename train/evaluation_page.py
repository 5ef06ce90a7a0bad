"""evaluation.html: how well a bundle tells defects from good, to look at. One file; no script, nothing fetched."""

from collections.abc import Sequence
from html import escape

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from engines.engine import UInt8Array
from engines.manifest import Description
from engines.pages import Html, bullets, cards, document, facts, figure, paragraphs, picture, section, table
from engines.pictures import blend, encode_jpeg, relative
from engines.plots import (
    DEFECT,
    EXTRA,
    FIFTHS,
    GOOD,
    GRID,
    INK,
    QUIET,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    legend,
    staircase,
    svg,
    text,
)
from train.evaluate import Evaluation, Metrics
from train.metrics import PRO_LIMIT
from train.model_card import judged_by
from train.sheet import Shown

_ROW = 30  # pixels of a type of defect in the chart of scores
_LONGEST_NAME = 15
_MAX_DOTS = 250
_SIDE = 400
_HEADINGS = ("image auROC", "balanced accuracy", "pixel auROC", "AU-PRO")


def render(
    description: Description,
    evaluation: Evaluation,
    shown: Sequence[Shown],
    *,
    digest: str = "",
    data: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        description: of the bundle, as its manifest has it.
        evaluation: of the bundle.
        shown: its worst and best cases.
        digest: the bundle's; "" where the page lies inside the bundle.
        data: the folder of the images; "" leaves it out.
        notes: what a reader of the figures must know.
    """
    overall = evaluation.overall
    counts = f"{evaluation.n_good:,} good and {overall.n_anomalous:,} defective images"
    found = sum(score >= evaluation.threshold for image, score in evaluation.scored if image.defect is not None)
    alarmed = sum(score >= evaluation.threshold for score in evaluation.scores_of(None))
    best = f"at a score of {evaluation.threshold:.5g}"
    pairs = f"{100 * overall.image_auroc:.4g} of 100 pairs of a good and a defective image"
    lead = f"In {pairs} the defective one scores higher."
    at_best = (
        f"At the best threshold for these images, {evaluation.threshold:.5g}, {found:,} of {overall.n_anomalous:,} "
        f"defective images are found and {alarmed:,} of {evaluation.n_good:,} good ones are called defective. The "
        "station's own threshold comes from good frames of its camera (station calibrate) and knows none of these."
    )
    figures = [
        ("image auROC", f"{overall.image_auroc:.4f}", "1 is perfect, 0.5 is chance"),
        ("balanced accuracy", f"{overall.balanced_accuracy:.4f}", best),
        ("pixel auROC", _number(overall.pixel_auroc), "are defective pixels hotter than others?"),
        ("AU-PRO", _number(overall.au_pro), f"are whole defects covered? to {100 * PRO_LIMIT:.0f} % false"),
    ]
    sections = []
    if notes:
        sections.append(section("Notes", bullets(f"{note[:1].upper()}{note[1:]}." for note in notes), warning=True))
    sections += [
        section("Scores and curves", f"<div class='charts'>{_charts(evaluation)}</div>"),
        section("By type of defect", _table(evaluation)),
        *_cases(shown, evaluation.threshold),
        section("The model", paragraphs(_MODEL_TELLS) + facts(_facts(description, digest, data))),
    ]
    return document(
        title=f"Evaluation of {description.name}",
        kicker=f"Evaluation of {description.name}, {counts}",
        headline=f"auROC {overall.image_auroc:.4f}",
        lead=lead,
        head=paragraphs(at_best) + cards(figures),
        sections=sections,
    )


_SCORES_TELL = (
    "Every dot is an image. Good ones should lie left of the dashed line, the best threshold for these images, and "
    "defective ones right of it; what lies on the wrong side is shown below."
)
_MODEL_TELLS = "MODEL_CARD.md in the bundle tells how it was trained, and what it can and cannot do."


def _score_chart(evaluation: Evaluation) -> str:
    good = np.array(evaluation.scores_of(None))
    threshold = evaluation.threshold
    every = np.array([score for _, score in evaluation.scored])
    # Gross defects may score a hundred times the threshold; the chart is about its surroundings.
    near = max(threshold + 4 * abs(threshold - float(np.median(good))), float(np.quantile(every, 0.9)))
    left, right = min(float(every.min()), threshold), max(min(float(every.max()), near), threshold)
    pad = 0.04 * (right - left or 1.0)
    room = 8 * pad if every.max() > right else 0.0  # to say how many lie further right
    rows: list[str | None] = [None, *evaluation.per_defect]
    height = TOP + _ROW * len(rows) + 46
    axes = Axes((left - pad, right + pad + room), (len(rows), 0), left=120, height=height)
    parts = [axes.frame("Scores of the images", "score", "", [])]
    for row, defect in enumerate(rows):
        scores = np.array(evaluation.scores_of(defect))
        y = TOP + _ROW * (row + 0.5)
        name = defect or "good"
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        parts.append(text(axes.left - 8, y + 4, shown, INK, "end"))
        parts.append(f"<path d='M{axes.left},{y:.1f}H{WIDTH - RIGHT}' stroke='{GRID}'/>")
        colour, beyond = GOOD if defect is None else DEFECT, int((scores > right).sum())
        inside = np.sort(scores[scores <= right])
        if inside.size > _MAX_DOTS:
            inside = inside[np.linspace(0, inside.size - 1, _MAX_DOTS).round().astype(int)]
        for i, score in enumerate(inside):
            cy = y + 7 * (((i * 0.618) % 1) - 0.5)  # apart from its neighbours, the same in every drawing
            parts.append(
                f"<circle cx='{axes.x(float(score)):.1f}' cy='{cy:.1f}' r='3' fill='{colour}' fill-opacity='.6'/>"
            )
        if beyond:
            parts.append(text(WIDTH - RIGHT, y + 4, f"{beyond} more →", QUIET, "end", halo=True))
    parts.append(axes.vertical(threshold, ""))
    counts = [(GOOD, f"{good.size:,} good"), (DEFECT, f"{every.size - good.size:,} defective")]
    parts.append(legend([*counts, (INK, f"threshold {threshold:.5g}")]))
    return svg(f"Scores by type of defect; the best threshold for these images is {threshold:.5g}", parts, height)


def _charts(evaluation: Evaluation) -> str:
    scores = np.array([score for _, score in evaluation.scored])
    labels = np.array([image.defect is not None for image, _ in evaluation.scored])
    fpr, tpr, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    auroc, average = evaluation.overall.image_auroc, float(average_precision_score(labels, scores))
    charts = [
        figure(_score_chart(evaluation), _SCORES_TELL),
        figure(
            _curve(
                f"ROC: auROC {auroc:.4f}",
                ("good images called defective", "defects found"),
                staircase(fpr.tolist(), tpr.tolist()),
                diagonal=True,
            ),
            "Images. Every point is a threshold; the further up and left, the better.",
        ),
        figure(
            _curve(
                f"Precision and recall: AP {average:.4f}",
                ("defects found", "true among the alarms"),
                [(float(r), float(p)) for r, p in zip(recall[::-1], precision[::-1], strict=True)],
            ),
            f"Images. Of what is called defective, how much is. It hangs on how many defects there are, here "
            f"{100 * labels.mean():.0f} %; on the line they are rarer, and precision is lower.",
        ),
    ]
    if evaluation.pro_curve is not None and evaluation.overall.au_pro is not None:
        charts.append(
            figure(
                _curve(
                    f"PRO: AU-PRO {evaluation.overall.au_pro:.4f}",
                    ("pixels outside defects that are hot", "share of a defect that is hot"),
                    evaluation.pro_curve,
                    limit=PRO_LIMIT,
                ),
                "Pixels. How much of every single defect the heat covers, small ones counting like large ones; AU-PRO "
                f"is the area left of the mark at {100 * PRO_LIMIT:.0f} %, divided by it.",
            )
        )
    return "".join(charts)


def _curve(
    title: str,
    labels: tuple[str, str],
    points: list[tuple[float, float]],
    *,
    diagonal: bool = False,
    limit: float | None = None,
) -> str:
    axes = Axes((0, 1), (0, 1))
    parts = [axes.frame(title, *labels, FIFTHS, FIFTHS)]
    if diagonal:
        parts.append(axes.line([(0, 0), (1, 1)], GRID, "stroke-width='1.5'"))
    parts.append(axes.line(points, EXTRA if limit else GOOD))
    if limit is not None:
        parts.append(axes.vertical(limit, f"{100 * limit:.0f} %"))
    return svg(title, parts)


def _table(evaluation: Evaluation) -> str:
    def row(name: str, metrics: Metrics, scores: Sequence[float]) -> list[str]:
        found = sum(score >= evaluation.threshold for score in scores)
        cells = [f"{metrics.n_anomalous:,}", f"{found:,} of {len(scores):,}"]
        return [name, *cells, *(_bar(value) for value in metrics.as_json().values())]

    defective = [score for image, score in evaluation.scored if image.defect is not None]
    rows = [row("all", evaluation.overall, defective)]
    ranked = sorted(evaluation.per_defect.items(), key=lambda pair: pair[1].image_auroc)
    rows += [row(defect, metrics, evaluation.scores_of(defect)) for defect, metrics in ranked]
    head = ["defect", "images", "found at the best threshold", *_HEADINGS]
    return table(head, rows, "Each type against all good images; the hardest to find first")


def _bar(value: float | None) -> str:
    if value is None:
        return "–"
    return Html(f"{value:.4f}<span class='bar'><i style='width:{100 * value:.0f}%'></i></span>")


def _cases(shown: Sequence[Shown], threshold: float) -> list[tuple[str, str]]:
    """The worst cases and the best, each with what it is judged by."""
    kinds = {
        "Worst cases": "What the model gets wrong, or nearly: good images that score high, defects that score low.",
        "Best cases": "What it gets right: defects that score high, good images that score low.",
    }
    panels = "The image, with the outline of the defect where it is known; where it departs from good material"
    sections = []
    for name, words in kinds.items():
        cases = [case for case in shown if case.case.why.startswith(name.split()[0].lower())]
        if not cases:
            continue
        rebuilt = cases[0].reconstruction is not None
        told = f"{words} {panels}{'; and what the model makes of it' if rebuilt else ''}."
        drawn = "".join(_case(case, threshold) for case in cases)
        sections.append(section(name, f"{paragraphs(told)}<div class='gallery wide'>{drawn}</div>"))
    return sections


def _case(case: Shown, threshold: float) -> str:
    called = "called defective" if case.score >= threshold else "called good"
    right = (case.score >= threshold) == (case.case.image.defect is not None)
    bgr: UInt8Array = np.ascontiguousarray(case.photo[..., ::-1])
    panels: list[tuple[UInt8Array, str]] = [
        (case.outlined, "image" + (", the defect outlined" if case.truth == "mask" else "")),
        (blend(bgr, relative(case.heat, case.score, threshold))[..., ::-1], "where it departs from good material"),
    ]
    if case.reconstruction is not None:
        panels.append((case.reconstruction, "reconstruction"))
    pictures = "".join(
        picture(
            encode_jpeg(np.ascontiguousarray(rgb[..., ::-1]), _SIDE, 82),
            f"{case.case.name}: {what}",
            (rgb.shape[0], rgb.shape[1]),
        )
        for rgb, what in panels
    )
    mark = "✓" if right else "✗"
    why = case.case.why.partition(": ")[2]
    words = f"<b>{mark} {called}, score {case.score:,.5g}</b><br>{escape(case.case.name)}: {escape(why)}"
    return f"<figure><div class='panels'>{pictures}</div><figcaption>{words}</figcaption></figure>"


def _facts(description: Description, digest: str, data: str) -> list[tuple[str, str]]:
    preprocessing, network, training = description.preprocessing, description.network, description.training
    size = (
        f"resized to {preprocessing.frame_size[1]} × {preprocessing.frame_size[0]}"
        if preprocessing.frame_size
        else f"at scale {preprocessing.scale:g}"
    )
    patches = (
        f"{preprocessing.patch_size} × {preprocessing.patch_size}, every {preprocessing.stride} pixels, of the "
        f"{preprocessing.colour} frame {size}"
    )
    trained = (
        f"{training.n_images:,} good images, {training.steps:,} steps, preset {training.preset}, seed {training.seed}"
    )
    rows = [
        ("bundle", f"{description.name}{f', sha256 {digest}' if digest else ''}"),
        ("exported", f"{description.created_at:%Y-%m-%d %H:%M} UTC"),
        ("images", data),
        ("patches", patches),
        ("networks", f"width {network.width}, {network.latent_size} latents"),
        ("score of an image", judged_by(description)),
        ("trained on", trained),
    ]
    return [(name, value) for name, value in rows if value]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
