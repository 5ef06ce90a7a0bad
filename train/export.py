"""From a run to a bundle: the fused graph, also in lower precisions, its self-test and the model card."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import structlog
import torch

from engines.bundle import (
    MAX_CALIBRATION_PATCHES,
    SCORER_FILES,
    SELFTEST_PATCHES,
    Bundle,
    ExpectedScores,
    SelfTest,
    pack_calibration,
    write_bundle,
)
from engines.cache import Verdict
from engines.engine import EngineSettings, Precision, UInt8Array
from engines.gate import judge_plan
from engines.images import read_image
from engines.manifest import CALIBRATION_FILE, Description, Network, Preprocessing, Training, scorer_tensors
from engines.opening import open_engine
from engines.ort import OnnxRuntimeEngine
from engines.tiling import Tiler
from train import evaluation_page, methods, model_card
from train.checkpoint import Trained, load_trained
from train.data import FEWEST_HELD_OUT, spread
from train.errors import DataError
from train.evaluate import Evaluation, FrameScorer, evaluate
from train.graph import export_graph, open_reconstructor
from train.labelled import LabelledImage
from train.networks import Locator
from train.quantization import quantize_graph
from train.scorer import MapScales, Scorer
from train.sheet import Case, draw_sheet, pick_cases, show
from train.standards import fit_standards

log = structlog.get_logger(__name__)

LOWER_PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
EXAMPLE_IMAGES = 3
SCALE_PATCHES = 1024  # of the training images, for the scales of the anomaly map
STANDARD_IMAGES = 200  # that the standards by place are measured on
SCORED_IMAGES = 100  # good images whose scores the model card sums up

_RECORD_KEYS = {"step", "seconds"}  # of a history record; the rest are losses


def export_run(
    run: Path,
    out: Path,
    name: str,
    labelled: list[LabelledImage] | None = None,
    precision: Precision = "fp16",
    on_stage: Callable[[str], None] = lambda _: None,
    smoothing: float | None = None,
) -> Bundle:
    """Export a run as a bundle. Nothing is written unless ONNX Runtime reproduces torch's float64 outputs.

    Args:
        run: folder of ``station-train fit``.
        out: the bundle's directory; a bundle that is there is replaced.
        name: the bundle's name.
        labelled: test images to evaluate the bundle on, for the model card.
        precision: the lowest that the bundle gets a graph for. One that does not score like fp32 is left out.
        on_stage: told what is being done.
        smoothing: deviation of the Gaussian over the anomaly map, pixels; None: as the run was told.

    Raises:
        CheckpointError: the run has no usable checkpoint.
        EngineError: the graph cannot be exported or does not reproduce torch's outputs, or ``out`` is no bundle.
        DataError, ImageError: an image cannot be used, or ``smoothing`` is given for a run without a map.
        pydantic.ValidationError: ``name`` is not allowed.
    """
    trained = _load(run, smoothing)
    preprocessing = trained.config.preprocessing(trained.colour)
    description = describe(trained, preprocessing, name)
    images = [path for path in trained.images if path.is_file()]
    good = [path for path in trained.held_out if path.is_file()] or images  # of a handful none is held out
    if trained.locator is not None:
        on_stage("measuring good material")
    scorer = make_scorer(trained, good, preprocessing)

    on_stage("writing the graph")
    graph = export_graph(scorer, preprocessing.patch_size)
    selftest = make_selftest(scorer, images, preprocessing)
    lower = {} if precision == "fp32" else _lower_precisions(scorer, graph, images, preprocessing, selftest, precision)

    with tempfile.TemporaryDirectory(prefix="station-train-") as folder:
        on_stage("comparing ONNX Runtime with torch")
        draft = write_bundle(Path(folder, "bundle"), description, graph, selftest, "draft", lower)
        engine = open_engine(draft, EngineSettings(backend="onnxruntime"))
        try:
            frames = FrameScorer(draft.manifest, engine)
            if trained.locator is not None and len(good) >= FEWEST_HELD_OUT:
                on_stage("measuring good material by place")
                maps = (frames.score(path).heat for path in spread(good, STANDARD_IMAGES))
                description = description.model_copy(update={"standards": fit_standards(maps)})
                draft = write_bundle(draft.path, description, graph, selftest, "draft", lower)
                frames = FrameScorer(draft.manifest, engine)
            on_stage("scoring good images")
            scores = [frames.score(path).score for path in spread(good, SCORED_IMAGES)]
            pictures = _pictures(trained, images, frames, graph)
            evaluation: Evaluation | None = None
            if labelled:
                on_stage("evaluating")
                evaluation = evaluate(labelled, frames)
                shown = show(pick_cases(evaluation), frames, open_reconstructor(graph))
                pictures[model_card.CASES_FILE] = draw_sheet(shown)
                page = evaluation_page.render(description, evaluation, shown)
                pictures[model_card.EVALUATION_FILE] = page.encode()
        finally:
            engine.close()
        verdicts: dict[Precision, Verdict] = {}
        for each in LOWER_PRECISIONS:
            if draft.variant(each) is not None:
                on_stage(f"comparing {each} with fp32")
                verdicts[each] = _judge(draft, each)

    for each in [each for each, verdict in verdicts.items() if not verdict.accepted]:
        log.warning("this precision is left out of the bundle", precision=each, reason=verdicts.pop(each).words)
        del lower[SCORER_FILES[each]]
    on_stage("writing the bundle")
    card = model_card.write_card(description, trained, scores, evaluation, verdicts, examples=bool(images))
    return write_bundle(out, description, graph, selftest, card, lower | pictures)


def _load(run: Path, smoothing: float | None) -> Trained:
    trained = load_trained(run)
    if smoothing is None:
        return trained
    if not trained.config.judged_by_map:
        raise DataError(f"{run}: its frames are judged by A(x), which is not smoothed; drop --smoothing")
    return replace(trained, config=trained.config.model_copy(update={"smoothing": smoothing}))


def _lower_precisions(
    scorer: Scorer,
    graph: bytes,
    images: list[Path],
    preprocessing: Preprocessing,
    selftest: SelfTest,
    lowest: Precision,
) -> dict[str, bytes]:
    """The graphs of lower precisions and the calibration patches that they are judged by, by file name."""
    files = {SCORER_FILES["fp16"]: export_graph(scorer, preprocessing.patch_size, torch.float16)}
    if images:
        patches = draw_patches(images, preprocessing, MAX_CALIBRATION_PATCHES, np.random.default_rng(0))
        files[CALIBRATION_FILE] = pack_calibration(patches)
        if lowest == "int8":
            # Ranges from good material alone would cut off what the self-test, or a defect, is made of.
            files[SCORER_FILES["int8"]] = quantize_graph(graph, np.concatenate([patches, selftest.patches]))
    elif lowest == "int8":
        log.warning("no int8 graph: it takes the training images, which are not where they were")
    return files


def _judge(bundle: Bundle, precision: Precision) -> Verdict:
    engine = OnnxRuntimeEngine(bundle, EngineSettings(), precision)
    try:
        return judge_plan(engine, bundle, precision)
    finally:
        engine.close()


def describe(trained: Trained, preprocessing: Preprocessing, name: str) -> Description:
    """What the manifest says about a run."""
    config = trained.config
    inputs, outputs = scorer_tensors(preprocessing.patch_size, anomaly_map=config.judged_by_map)
    last = trained.history[-1] if trained.history else {}
    return Description(
        name=name,
        created_at=datetime.now(timezone.utc).replace(microsecond=0),
        category=config.category,
        preprocessing=preprocessing,
        network=Network(
            method=config.method,
            width=config.width,
            folded=config.folded,
            latent_size=config.latent_size,
            feature_layer=config.feature_layer,
        ),
        alpha=config.alpha,
        lambda_=config.lambda_,
        smoothing=config.smoothing if config.judged_by_map else None,
        inputs=inputs,
        outputs=outputs,
        training=Training(
            data_fingerprint=trained.fingerprint,
            n_images=len(trained.images),
            steps=trained.step,
            seconds=trained.seconds,
            seed=config.seed,
            preset=config.preset,
            metrics={loss: value for loss, value in last.items() if loss not in _RECORD_KEYS},
        ),
    )


def make_selftest(scorer: Scorer, images: list[Path], preprocessing: Preprocessing) -> SelfTest:
    """Sixteen patches and what torch computes for them in float64.

    Args:
        scorer: the model; left in float64.
        images: training images to cut patches from; where there are none, coloured noise takes their place.
        preprocessing: how frames become patches.
    """
    patches = selftest_patches(images, preprocessing)
    with torch.no_grad():
        *expected, _ = scorer.double()(torch.from_numpy(patches))
    return SelfTest(patches, ExpectedScores(*(output.numpy() for output in expected)))


def make_scorer(trained: Trained, images: list[Path], preprocessing: Preprocessing) -> Scorer:
    """The scorer of a run; with a locator its map has the scales of good ``images``.

    Raises:
        DataError: the map needs images, and there are none any more.
    """
    scorer = methods.load(trained.config.method).scorer(
        trained.encoder, trained.generator, trained.critic, trained.config.feature_layer, trained.locator
    )
    if trained.locator is not None:
        scorer.scales = fit_scales(trained, trained.locator, images, preprocessing)
    return scorer


@torch.no_grad()
def fit_scales(trained: Trained, locator: Locator, images: list[Path], preprocessing: Preprocessing) -> MapScales:
    """Medians and 99.9th percentiles of residual and of the locator's log-odds over patches of good images.

    Raises:
        DataError: there are none any more.
    """
    if not images:
        raise DataError("the good images are not where they were; exporting a run with a locator needs them")
    scaled: list[list[torch.Tensor]] = [[], []]
    for chunk in torch.split(
        torch.from_numpy(draw_patches(images, preprocessing, SCALE_PATCHES, np.random.default_rng(0))), 64
    ):
        x = chunk.permute(0, 3, 1, 2) * (1 / 127.5) - 1
        reconstruction = trained.generator(trained.encoder(x))
        scaled[0].append((x - reconstruction).abs().mean(dim=1))
        scaled[1].append(locator(x, reconstruction))
    (low_r, high_r), (low_l, high_l) = (np.quantile(torch.cat(values).numpy(), (0.5, 0.999)) for values in scaled)
    return MapScales((float(low_r), float(high_r)), (float(low_l), float(high_l)))


def selftest_patches(images: list[Path], preprocessing: Preprocessing) -> UInt8Array:
    """Patches of many kinds, uint8 (16, P, P, 3): good material, planted defects, and what no line ever shows.

    The latter (noise, black, white, ramps that differ by colour and direction) give away swapped colours or axes and
    values out of range, which good material may hide.
    """
    P = preprocessing.patch_size
    rng = np.random.default_rng(0)
    n_real = SELFTEST_PATCHES - 8
    if images:
        real = np.resize(draw_patches(images, preprocessing, n_real, rng), (n_real, P, P, 3))
    else:
        noise = rng.integers(0, 256, (n_real, P, P, 3), dtype=np.uint8)
        real = np.stack([cv2.GaussianBlur(patch, (0, 0), 2 + i) for i, patch in enumerate(noise)])
    defective = real[:2].copy()
    quarter = slice(P // 4, P // 2)
    defective[0, quarter, quarter] = 255
    defective[1, quarter, :, 0] = 0
    ramp = np.linspace(0, 255, P).astype(np.uint8)
    ramps = np.zeros((2, P, P, 3), np.uint8)
    ramps[0, ..., 0], ramps[0, ..., 1] = ramp, ramp[:, None]
    ramps[1, ..., 2] = ramp[::-1]
    extremes = np.stack([np.zeros((P, P, 3), np.uint8), np.full((P, P, 3), 255, np.uint8)])
    return np.concatenate([real, defective, ramps, extremes, rng.integers(0, 256, (2, P, P, 3), dtype=np.uint8)])


def draw_patches(images: list[Path], preprocessing: Preprocessing, n: int, rng: np.random.Generator) -> UInt8Array:
    """Patches of evenly spread images, uint8 (M, P, P, 3): M is ``n``, or less where the images have no more."""
    tiler = Tiler(preprocessing)
    chosen = spread(images, n)
    drawn = []
    for i, path in enumerate(chosen):
        patches = tiler.patches(tiler.prepare(read_image(path)))
        share = n // len(chosen) + (i < n % len(chosen))
        drawn.append(patches[rng.permutation(len(patches))[:share]])
    return np.concatenate(drawn)


def _pictures(trained: Trained, images: list[Path], frames: FrameScorer, graph: bytes) -> dict[str, bytes]:
    """The model card's pictures, by file name."""
    pictures: dict[str, bytes] = {}
    if trained.history:
        pictures[model_card.CURVES_FILE] = model_card.draw_curves(trained.history)
    if images:
        cases = [Case("training image", LabelledImage(path, None, None)) for path in spread(images, EXAMPLE_IMAGES)]
        pictures[model_card.EXAMPLES_FILE] = draw_sheet(show(cases, frames, open_reconstructor(graph)))
    return pictures
