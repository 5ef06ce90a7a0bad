"""What a reproduction reached beside the paper: as Markdown, as JSON and as a page to look at."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from engines.pages import Html, bullets, cards, document, facts, figure, paragraphs, section, table
from engines.plots import DEFECT, GOOD, GRID, INK, RIGHT, TOP, WIDTH, Axes, legend, svg, text
from train.paper_tables import CATEGORIES, CITATION, COLUMNS, DATA_CITATION, MEANS, TABLES, PublishedTable
from train.reproduce import EVALUATION, Ours, Result, summarise

_ROW = 24  # pixels of a category in a chart
_EVALUATION_PAGE = "evaluation.html"


@dataclass(frozen=True)
class Failure:
    """A run that did not get to its end.

    Attributes:
        category: MVTec AD's name of it.
        seed: of the training.
        reason: in words.
    """

    category: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Reproduction:
    """Everything that there is to tell.

    Attributes:
        results: finished runs, at least one.
        failures: runs that failed in this sitting.
        data: folder of the data set.
        fit_options: given to every training.
        preset: of the trainings.
        protocol: honest, or paper: test images chose the weights.
    """

    results: Sequence[Result]
    failures: Sequence[Failure]
    data: str
    fit_options: Sequence[str]
    preset: str
    protocol: str


def comparison(results: Sequence[Result], published: PublishedTable) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: what the paper has a figure for, ours (mean and worst over seeds), the published ones."""
    ours = summarise(results, published)
    head = ["", "ours", "ours, worst seed", *(method.name for method in published.methods)]
    return head, [
        [
            column,
            *_cells(ours.get(column)),
            *(f"{method.figures[column]:.2f}" for method in published.methods),
        ]
        for column in COLUMNS
    ]


def _cells(ours: Ours | None) -> list[str]:
    return ["–", "–"] if ours is None else [f"{ours.mean:.3f}", f"{ours.worst:.3f}"]


def caption(published: PublishedTable) -> str:
    """What a table shows."""
    return f"{published.title}, beside Table {published.number} of the paper"


def notes(told: Reproduction) -> list[str]:
    """What a reader of the figures must know, a sentence or two each."""
    lines = []
    if told.protocol == "paper":
        lines.append(
            "Our weights were chosen by the best auROC on the TEST images (--protocol paper), as in the authors' code: "
            "on new material expect less"
        )
    else:
        lines.append(
            "No test image chose our weights. The authors' code keeps those with the best auROC on the test images, "
            "which favours the published figures of CBiGAN and EGBAD; --protocol paper does the same"
        )
    lines.append(
        "The threshold of the balanced accuracy is the best one for the test images, ours as the paper's; a station's "
        "comes from good frames alone"
    )
    if told.preset == "default":
        lines.append(
            "The preset is 'default': it judges images by a locator's map and place by place, which the paper does "
            "not; presets 'paper' and 'reference' judge by A(x), eq. 7"
        )
    lines.append(
        "Images: textures resized to 512x512 and cut into 64x64 patches, objects resized to 128x128; bottle, hazelnut, "
        "metal_nut and screw turned by -45 to 45 degrees in training (paper, section V.B)"
    )
    missing = [name for name in CATEGORIES if name not in {result.category for result in told.results}]
    if missing:
        lines.append(
            f"Without {', '.join(missing)}: a mean is shown only where all its categories are finished with a seed"
        )
    seeds = Counter(result.category for result in told.results)
    if len(set(seeds.values())) > 1:
        lines.append(f"Seeds by category: {', '.join(f'{name} {count}' for name, count in seeds.items())}")
    lines += _sources()
    return [*lines, f"Paper: {CITATION}", f"Images: {DATA_CITATION}"]


def _sources() -> list[str]:
    """Where the paper's figures of other methods are from."""
    lines = []
    for published in TABLES:
        by_note: dict[str, list[str]] = {}
        for method in published.methods:
            if method.note:
                by_note.setdefault(method.note, []).append(method.name)
        told = "; ".join(f"{', '.join(names)}: {note}" for note, names in by_note.items())
        lines.append(f"Table {published.number}: {told}")
    return lines


def as_json(told: Reproduction) -> str:
    """results.json: our figures and the published ones by metric, then every run."""
    content: dict[str, Any] = {
        "data": told.data,
        "fit_options": list(told.fit_options),
        "preset": told.preset,
        "protocol": told.protocol,
        "notes": notes(told),
    }
    for published in TABLES:
        content[published.metric] = {
            "ours": {
                name: {"mean": ours.mean, "worst": ours.worst, "seeds": ours.seeds}
                for name, ours in summarise(told.results, published).items()
            },
            "table": published.number,
            "published": {method.name: method.figures for method in published.methods},
        }
    content["runs"] = [result.model_dump() for result in told.results]
    content["failed"] = [vars(failure) for failure in told.failures]
    return json.dumps(content, indent=2) + "\n"


def as_markdown(told: Reproduction) -> str:
    """table.md: both tables and what must be known of them."""
    parts = ["# MVTec AD beside the paper\n"]
    for published in TABLES:
        head, rows = comparison(told.results, published)
        title = caption(published)
        parts.append(f"## {title[0].upper()}{title[1:]}\n")
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *(_emphasised(row) for row in rows)]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n")
    if told.failures:
        parts.append("## Failed\n")
        parts.append("\n".join(f"- {f.category}, seed {f.seed}: {_one_line(f.reason)}" for f in told.failures) + "\n")
    parts.append("## Notes\n")
    parts.append("\n".join(f"- {note}." for note in notes(told)) + "\n")
    return "\n".join(parts)


def _emphasised(row: list[str]) -> list[str]:
    return [f"**{cell}**" for cell in row] if row[0] in MEANS else row


def _one_line(reason: str) -> str:
    return " ".join(reason.split())


def as_page(told: Reproduction) -> str:
    """The page."""
    done = [name for name in CATEGORIES if name in {result.category for result in told.results}]
    seeds = {result.seed for result in told.results}
    auroc, accuracy = TABLES
    sections = []
    if told.failures:
        lines = [f"{f.category}, seed {f.seed}: {_one_line(f.reason)}" for f in told.failures]
        sections.append(section("Failed", bullets(lines), warning=True))
    sections.append(section("Charts", f"<div class='charts'>{''.join(_chart(told.results, t) for t in TABLES)}</div>"))
    for published in TABLES:
        head, rows = comparison(told.results, published)
        shown = [[Html(f"<b>{cell}</b>") for cell in row] if row[0] in MEANS else row for row in rows]
        sections.append(section(f"Table {published.number}", table(head, shown, caption(published))))
    sections += [
        section("Notes", bullets(f"{note}." for note in notes(told))),
        section("Every run", _runs(told.results)),
        section("How it was made", facts(_facts(told))),
    ]
    return document(
        title="MVTec AD beside the paper",
        kicker=f"MVTec AD, {len(done)} of {len(CATEGORIES)} categories, {len(seeds)} seed{'s' * (len(seeds) != 1)}",
        headline=_headline(told.results, auroc),
        lead=_lead(told.results, accuracy),
        head=cards(_cards(told.results)),
        sections=sections,
    )


def _headline(results: Sequence[Result], published: PublishedTable) -> str:
    whole = summarise(results, published).get("mean of all")
    if whole is not None:
        return f"Mean auROC {whole.mean:.3f}"
    done = len({result.category for result in results})
    return f"{done} of {len(CATEGORIES)} categories"


def _lead(results: Sequence[Result], published: PublishedTable) -> str:
    ours, theirs = summarise(results, published), published.methods[0]
    done = [name for name in CATEGORIES if name in ours]
    better = sum(round(ours[name].mean, 2) >= theirs.figures[name] for name in done)
    return f"The balanced accuracy is at least that of the paper's {theirs.name} in {better} of {len(done)} categories."


def _cards(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    found = []
    for published in TABLES:
        ours, theirs = summarise(results, published), published.methods[0]
        for name in MEANS:
            if name in ours:
                label = f"{published.title}, {name}"
                found.append((label, f"{ours[name].mean:.3f}", f"{theirs.name} as published: {theirs.figures[name]}"))
    return found


def _chart(results: Sequence[Result], published: PublishedTable) -> str:
    """Every category a row: ours with its worst seed, the paper's CBiGAN."""
    ours, theirs = summarise(results, published), published.methods[0]
    names = [name for name in CATEGORIES if name in ours]
    height = TOP + _ROW * len(names) + 46
    axes = Axes((0, 1), (len(names), 0), left=96, height=height)
    title = f"{published.title[0].upper()}{published.title[1:]}"
    parts = [axes.frame(title, "", "", [])]
    for row, name in enumerate(names):
        y = TOP + _ROW * (row + 0.5)
        mean, worst, paper = ours[name].mean, ours[name].worst, theirs.figures[name]
        parts += [
            text(axes.left - 8, y + 4, name, INK, "end"),
            f"<path d='M{axes.left},{y:.1f}H{WIDTH - RIGHT}' stroke='{GRID}'/>",
            f"<path d='M{axes.x(worst):.1f},{y:.1f}H{axes.x(mean):.1f}' stroke='{GOOD}' stroke-width='3'/>",
            f"<rect x='{axes.x(paper) - 4:.1f}' y='{y - 4:.1f}' width='8' height='8' fill='{DEFECT}'/>",
            f"<circle cx='{axes.x(mean):.1f}' cy='{y:.1f}' r='4' fill='{GOOD}'/>",
        ]
    parts.append(
        legend([(GOOD, "ours, a line to the worst seed"), (DEFECT, f"{theirs.name}, Table {published.number}")])
    )
    label = f"{title} by category: ours, and the paper's {theirs.name}"
    return figure(svg(label, parts, height), "Further right is better; half is chance.")


def _runs(results: Sequence[Result]) -> str:
    head = [
        "category",
        "seed",
        "image auROC",
        "balanced accuracy",
        "pixel auROC",
        "AU-PRO",
        "colour",
        "steps",
        "minutes",
    ]
    rows = []
    for result in results:
        target = quote(f"{result.category}/seed{result.seed}/{EVALUATION}/{_EVALUATION_PAGE}")
        metrics = (result.image_auroc, result.balanced_accuracy, result.pixel_auroc, result.au_pro)
        rows.append(
            [
                Html(f"<a href='{target}'>{result.category}</a>"),
                str(result.seed),
                *("–" if value is None else f"{value:.4f}" for value in metrics),
                result.colour,
                f"{result.steps:,}",
                f"{result.seconds / 60:.1f}",
            ]
        )
    told = "A name leads to the page of its evaluation: curves, types of defect, best and worst cases."
    return paragraphs(told) + table(head, rows)


def _facts(told: Reproduction) -> list[tuple[str, str]]:
    return [
        ("images", told.data),
        ("options of fit", " ".join(told.fit_options) or "none: the defaults"),
        ("preset", told.preset),
        ("protocol", told.protocol),
    ]
