"""MODEL_CARD.md: what a bundle was made from, how its training went, and what it can and cannot do."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from engines.cache import Verdict
from engines.engine import Precision
from engines.manifest import Description
from train.checkpoint import Trained
from train.evaluate import Evaluation, Metrics
from train.methods import load
from train.sheet import png

CURVES_FILE = "losses.png"
EXAMPLES_FILE = "reconstructions.png"
CASES_FILE = "cases.png"
EVALUATION_FILE = "evaluation.html"

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_LOSSES = {
    "image_consistency": "image consistency: L1 of x and G(E(x)), summed over pixels (eq. 11)",
    "latent_consistency": "latent consistency: L1 of z and E(G(z)), summed over entries (eq. 12)",
    "adversarial": "adversarial loss of E and G (eq. 5)",
    "wasserstein": "D's estimate of the Wasserstein distance (eq. 4, 6)",
    "gradient_penalty": "gradient penalty of D",
    "squared_error": "squared error of x and G(E(x)), summed over pixels",
    "dissimilarity": "1 - SSIM of x and G(E(x))",
    "feature_matching": "feature matching: mean squared difference of D's features of x and G(E(x))",
    "context": "mean absolute difference of x and G(E(x))",
    "encoding": "mean squared difference of E(x) and E2(G(E(x)))",
    "real_fake": "cross entropy of D between images and reconstructions",
    "pixel_error": "mean squared difference of x and G(E(x))",
    "feature_error": "mean squared difference of D's features of x and G(E(x))",
}


def write_card(
    description: Description,
    trained: Trained,
    scores: ArrayLike,
    evaluation: Evaluation | None,
    verdicts: Mapping[Precision, Verdict],
    *,
    examples: bool,
) -> str:
    """The model card, Markdown.

    Args:
        description: what the manifest says.
        trained: the run.
        scores: frame scores of training images; may be empty.
        evaluation: on labelled images, if there was one.
        verdicts: what the gate says of the bundle's graphs of lower precisions.
        examples: whether the bundle holds a picture of example reconstructions.
    """
    sections = [
        _summary(description),
        _data(description, np.asarray(scores, np.float64)),
        _training(description, trained),
    ]
    if examples:
        sections.append(
            "## Example reconstructions\n\nTraining images as the model sees them. Bright residual on good material is "
            f"what a threshold has to clear.\n\n![Input, reconstruction, residual]({EXAMPLES_FILE})"
        )
    sections.append(_evaluation(evaluation))
    if verdicts:
        rows = "\n".join(f"| {precision} | {verdict.words} |" for precision, verdict in verdicts.items())
        sections.append(
            "## Lower precisions\n\nHow the graphs for TensorRT score on a CPU. On the line's GPU they are judged "
            f"again before they serve.\n\n| | |\n| --- | --- |\n{rows}"
        )
    sections.append(
        "## Use and limits\n\n"
        "- It finds what differs from the training images, at the scale, light and sharpness that these had. Another "
        "lens, distance or lamp needs new images and a new model, or at least a new calibration.\n"
        "- It has no threshold of its own: `station calibrate` sets one from good frames of the very camera.\n"
        "- Scores of two models cannot be compared.\n"
        "- Defects much smaller than a patch and fainter than the texture's own variation are missed."
    )
    sections.append(
        "## Settings\n\nAll settings of the run, as `station-train fit` stored them:\n\n```json\n"
        f"{trained.config.model_dump_json(by_alias=True, indent=2)}\n```"
    )
    return "\n\n".join(sections) + "\n"


def draw_curves(history: list[dict[str, float]]) -> bytes:
    """Loss curves over the steps as a PNG, one panel a loss.

    Args:
        history: records of losses by name, as :class:`~train.checkpoint.Trained` has them; at least one.
    """
    names = [name for name in _LOSSES if any(name in record for record in history)]
    figure = Figure(figsize=(8, 1.7 * len(names) + 0.4), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names, strict=True):
        points = [(record["step"], record[name]) for record in history if name in record]
        axes.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 3 else None)
        axes.set_title(_LOSSES[name], fontsize=8, loc="left")
        axes.tick_params(which="both", labelsize=7)
        axes.grid(alpha=0.3)
        if min(value for _, value in points) > 0:
            axes.set_yscale("log")
    axes.set_xlabel("step", fontsize=8)
    return png(figure)


def judged_by(description: Description) -> str:
    """What a frame's score is, in words."""
    network = description.network
    method = load(network.method)
    if description.smoothing is None:
        return f"the worst patch's {method.score}; λ = {description.lambda_:g}, f_D at `{network.feature_layer}`"
    if not method.settings.get("locator", True):  # its map is its own
        return method.score
    places = ", in deviations of what good frames show at that place" if description.standards else ""
    return (
        f"the highest value of the anomaly map, smoothed by {description.smoothing:g} pixels{places}; the map is the "
        "locator's log-odds and a share of the residual"
    )


def _summary(description: Description) -> str:
    network, preprocessing = description.network, description.preprocessing
    method = load(network.method)
    size = (
        f"resized to {preprocessing.frame_size[1]} × {preprocessing.frame_size[0]}"
        if preprocessing.frame_size
        else f"at scale {preprocessing.scale:g}"
    )
    return (
        f"# {description.name}\n\n"
        f"Method: {method.source}. Trained on images without defects of a {description.category}.\n\n"
        "| | |\n| --- | --- |\n"
        f"| exported | {description.created_at:%Y-%m-%d %H:%M} UTC |\n"
        f"| patches | {preprocessing.patch_size} × {preprocessing.patch_size}, every {preprocessing.stride} pixels, "
        f"of the {preprocessing.colour} frame {size} |\n"
        f"| networks | width {network.width}{', folded' * network.folded}, {network.latent_size} latents |\n"
        f"| score of a frame | {judged_by(description)} |\n"
        f"| α | {description.alpha:g} |"
    )


def _data(description: Description, scores: np.ndarray) -> str:
    training = description.training
    text = (
        f"## Data\n\n{training.n_images} {description.preprocessing.colour} images. Fingerprint (sha256 over names, "
        f"sizes and contents): `{training.data_fingerprint}`"
    )
    if not scores.size:
        return text + "\n\nThe images were not at hand when this was exported, so there are no scores of them."
    head = " | ".join(f"{q:.0%}" if 0 < q < 1 else ("lowest" if q == 0 else "highest") for q in _QUANTILES)
    row = " | ".join(f"{value:.4g}" for value in np.quantile(scores, _QUANTILES))
    return (
        f"{text}\n\nFrame scores of {scores.size} of these images (quantiles). New good images usually score "
        f"somewhat higher:\n\n| {head} |\n|{' --- |' * len(_QUANTILES)}\n| {row} |"
    )


def _training(description: Description, trained: Trained) -> str:
    training = description.training
    text = (
        f"## Training\n\n{training.steps:,} steps in {training.seconds / 60:.1f} minutes, preset "
        f"`{training.preset}`, seed {training.seed}."
    )
    if trained.selected_auroc is not None:
        text += (
            f"\n\n**The weights were chosen by looking at the test images** (`--protocol paper`, image auROC "
            f"{trained.selected_auroc:.4f} there). Figures on those images are optimistic; do not compare them with "
            "honest ones."
        )
    if training.metrics:
        rows = "\n".join(f"| {_LOSSES.get(name, name)} | {value:.4g} |" for name, value in training.metrics.items())
        text += f"\n\n| last loss | |\n| --- | --- |\n{rows}\n\n![Loss curves]({CURVES_FILE})"
    return text


def _evaluation(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "## Evaluation\n\nNot evaluated on images of defects at export; `station-train evaluate` does that."
    rows = "\n".join(
        [
            _row("**all**", evaluation.overall),
            *(_row(defect, metrics) for defect, metrics in evaluation.per_defect.items()),
        ]
    )
    return (
        f"## Evaluation\n\n{evaluation.n_good} good and {evaluation.overall.n_anomalous} defective images, scored by "
        "this bundle's own graph. The threshold of the balanced accuracy is chosen on these very images, as the paper "
        "does.\n\n"
        "| defect | images | image auROC | balanced accuracy | pixel auROC | AU-PRO (to FPR 0.3) |\n"
        f"| --- | --- | --- | --- | --- | --- |\n{rows}\n\n![Worst and best cases]({CASES_FILE})\n\n"
        f"[Curves, scores by type of defect and larger examples]({EVALUATION_FILE})"
    )


def _row(name: str, metrics: Metrics) -> str:
    cells = ["–" if value is None else f"{value:.4f}" for value in metrics.as_json().values()]
    return f"| {name} | {metrics.n_anomalous} | {' | '.join(cells)} |"
