"""search.html: what a search found, to look at. One file; no script, nothing fetched."""

import math
from collections.abc import Sequence
from typing import Any

from engines.pages import bullets, cards, document, facts, figure, paragraphs, section, table
from engines.plots import DEFECT, GOOD, INK, QUIET, Axes, Tick, integer_ticks, legend, nice_ticks, svg
from train.search import Tried, best_of

_BEST_ROWS = 20


def render(trials: Sequence[Tried], *, data: str, budget: str, command: str) -> str:
    """The page.

    Args:
        trials: of the study.
        data: the folder of the images.
        budget: of a trial, in words.
        command: trains with the best settings; "" while there are none.
    """
    best, default = best_of(trials), next((trial for trial in trials if trial.number == 0), None)
    counts = {state: sum(t.state == state for t in trials) for state in ("finished", "cut short", "failed", "running")}
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    figures = [
        (
            "best image auROC",
            _number(best.auroc if best else None),
            f"trial {best.number}" if best else "none has finished",
        ),
        ("default settings", _number(default.auroc if default else None), "trial 0"),
        ("trials", str(len(trials)), told),
    ]
    if best and best.validation:
        figures[2:2] = [
            ("pixel auROC", _number(best.validation["pixel_auroc"]), "of the best trial"),
            ("caught", f"{best.validation['caught']:.0%}", "score above every good image"),
        ]
    sections = [section("What this is", paragraphs(_WHAT))]
    if best:
        sections.append(section("Train with the best settings", f"{paragraphs(command)}{_settings(best)}"))
    scored = [trial for trial in trials if trial.auroc is not None]
    if scored:
        names = list(scored[0].settings)
        charts = [_course(scored), *(_setting(name, scored) for name in names)]
        sections += [
            section("Charts", f"<div class='charts'>{''.join(figure(chart, says) for chart, says in charts)}</div>"),
            section("Trials", _table(scored, names)),
        ]
    if best and best.validation:
        sections.append(section("By kind of defect", _kinds(best.validation["kinds"])))
    failures = [f"Trial {trial.number}: {trial.failure}" for trial in trials if trial.failure]
    if failures:
        sections.append(section("Failed", bullets(failures), warning=True))
    return document(
        title="Search for settings",
        kicker=f"Search for settings on {data}, {budget} each",
        headline=f"auROC {_number(best.auroc)} on planted defects" if best else "No trial has finished",
        lead=f"{len(trials)} trials: {told}.",
        head=cards(figures),
        sections=sections,
    )


_WHAT = (
    "Every trial is a short training with settings of its own, judged by good images that it was not trained on: as "
    "they are, and with defects planted into them. No test image took part. Planted defects are not your defects: take "
    "the order of the trials as a hint, train longer with the best settings, and evaluate that. The best of many "
    "figures flatters; differences of a few hundredths are noise."
)


def _settings(trial: Tried) -> str:
    return facts((name.replace("_", " "), str(value)) for name, value in trial.settings.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _range(trials: Sequence[Tried]) -> tuple[float, float]:
    low = min(trial.auroc for trial in trials if trial.auroc is not None)
    return max(0.0, math.floor(low * 20 - 0.5) / 20), 1.0


def _dots(axes: Axes, points: Sequence[tuple[float, Tried]], best: Tried | None) -> list[str]:
    parts = []
    for x, trial in points:
        if trial.auroc is not None:
            colour = GOOD if trial.state == "finished" else QUIET
            where = f"cx='{axes.x(x):.1f}' cy='{axes.y(trial.auroc):.1f}'"
            parts.append(f"<circle {where} r='3.5' fill='{colour}' fill-opacity='.7'/>")
            if best and trial.number == best.number:
                parts.append(f"<circle {where} r='6.5' fill='none' stroke='{DEFECT}' stroke-width='2'/>")
    return parts


_LEGEND = [(GOOD, "finished"), (QUIET, "cut short or failed"), (DEFECT, "best")]


def _course(trials: Sequence[Tried]) -> tuple[str, str]:
    low, high = _range(trials)
    last = max(trial.number for trial in trials)
    axes = Axes((-0.5, last + 0.5), (low, high))
    so_far: list[tuple[float, float]] = []
    for trial in trials:
        if trial.state == "finished" and trial.auroc is not None:
            top = max(trial.auroc, so_far[-1][1] if so_far else 0.0)
            if so_far:
                so_far.append((float(trial.number), so_far[-1][1]))
            so_far.append((float(trial.number), top))
    parts = [
        axes.frame("As the search went", "trial", "image auROC", nice_ticks(low, high), integer_ticks(last)),
        legend(_LEGEND),
        axes.line(so_far, INK, "stroke-width='1.4'") if so_far else "",
        *_dots(axes, [(trial.number, trial) for trial in trials], best_of(trials)),
    ]
    return svg("Image auROC of every trial in order", parts), "Every dot is a trial; the line is the best so far."


def _setting(name: str, trials: Sequence[Tried]) -> tuple[str, str]:
    values = [trial.settings[name] for trial in trials]
    low, high = _range(trials)
    x, ticks = _scale(values)
    places = [x[value] for value in values]
    pad = 0.06 * (max(places) - min(places)) or 0.5
    axes = Axes((min(places) - pad, max(places) + pad), (low, high))
    words = name.replace("_", " ")
    parts = [
        axes.frame(words, words, "image auROC", nice_ticks(low, high), ticks),
        legend(_LEGEND),
        *_dots(axes, list(zip(places, trials, strict=True)), best_of(trials)),
    ]
    return svg(
        f"Image auROC by {words}", parts
    ), f"Is there a trend with {words}? The search looked closer where it was good."


def _scale(values: Sequence[Any]) -> tuple[dict[Any, float], list[Tick]]:
    """Where values lie on the abscissa: in order where there are few, else by their logarithm."""
    different = sorted(set(values))
    if len(different) <= 5:
        return {v: float(i) for i, v in enumerate(different)}, [(float(i), str(v)) for i, v in enumerate(different)]
    chosen = [different[round(i * (len(different) - 1) / 3)] for i in range(4)]
    return {v: math.log10(v) for v in different}, [(math.log10(v), f"{v:g}") for v in chosen]


def _table(trials: Sequence[Tried], names: Sequence[str]) -> str:
    order = sorted(trials, key=lambda trial: (trial.state == "finished", trial.auroc or 0.0), reverse=True)
    rows = [
        [str(t.number), _number(t.auroc), t.state, f"{t.seconds:,.0f} s", *(f"{t.settings[name]}" for name in names)]
        for t in order[:_BEST_ROWS]
    ]
    head = ["trial", "image auROC", "state", "training", *(name.replace("_", " ") for name in names)]
    more = "; search.json has all" if len(order) > _BEST_ROWS else ""
    return table(head, rows, f"The best {len(rows)} of {len(order)} trials{more}")


def _kinds(kinds: dict[str, dict[str, float]]) -> str:
    rows = [[kind, f"{r['n']:.0f}", _number(r["image_auroc"]), f"{r['caught']:.0%}"] for kind, r in kinds.items()]
    return table(["planted", "images", "image auROC", "caught"], rows, "The best trial, by kind of planted defect")
