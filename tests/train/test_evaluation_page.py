"""evaluation.html of made-up scores: what it says, and that names of folders and files cannot harm it."""

import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.manifest import Preprocessing
from tests.support.bundles import make_description
from train.evaluate import Evaluation, Metrics
from train.evaluation_page import render
from train.labelled import LabelledImage
from train.metrics import image_metrics
from train.sheet import Case, Shown, draw_sheet

EVIL = "<script>alert(1)</script>"
DESCRIPTION = make_description(Preprocessing(colour="rgb", frame_size=None, scale=1.0, patch_size=32, stride=32))


def evaluation(good, defects, *, pixels=True):
    """Of images with these scores; ``defects``: scores by type."""
    scored = [(LabelledImage(Path(f"good/{i}.png"), None, None), score) for i, score in enumerate(good)]
    for defect, scores in defects.items():
        scored += [(LabelledImage(Path(f"{i}.png"), defect, None), score) for i, score in enumerate(scores)]

    def metrics(scores):
        image = image_metrics(good, scores)
        return Metrics(len(scores), image.auroc, image.balanced_accuracy, *((0.9, 0.8) if pixels else (None, None)))

    everything = [score for scores in defects.values() for score in scores]
    return Evaluation(
        scored=scored,
        overall=metrics(everything),
        per_defect={defect: metrics(scores) for defect, scores in defects.items()},
        n_good=len(good),
        without_mask=[],
        empty_mask=[],
        threshold=image_metrics(good, everything).threshold,
        pro_curve=[(0.0, 0.0), (0.1, 0.8), (1.0, 1.0)] if pixels else None,
    )


def shown(why, defect, score):
    photo = np.full((40, 60, 3), 128, np.uint8)
    heat = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    case = Case(why, LabelledImage(Path("7.png"), defect, None))
    return Shown(case, photo, None, heat, heat, photo, "no mask" if defect else "good", score)


RESULT = evaluation([1.0, 2.0, 9.0], {"hole": [8.0, 50.0], "stain": [1.5, 3.0]})
CASES = [
    shown("worst: good, scored high", None, 9.0),
    shown("worst: defect, scored low", "stain", 1.5),
    shown("best: defect, scored high", "hole", 50.0),
]


def test_the_sheet_shows_the_map_that_frames_are_judged_by():
    by_map = [dataclasses.replace(case, heat=case.heat**2) for case in CASES]
    by_residual, with_map = (
        cv2.imdecode(np.frombuffer(draw_sheet(cases), np.uint8), cv2.IMREAD_COLOR) for cases in (CASES, by_map)
    )
    assert 1.2 < with_map.shape[1] / by_residual.shape[1] < 1.5  # four columns instead of three
    assert with_map.shape[0] == pytest.approx(by_residual.shape[0], rel=0.02)


def test_the_result_in_words():
    page = render(DESCRIPTION, RESULT, CASES)
    assert "auROC 0.6667" in page
    assert "At the best threshold for these images, 3, 3 of 4 defective images are found and 1 of 3 good ones" in page


def test_the_hardest_type_comes_first_below_all():
    page = render(DESCRIPTION, RESULT, CASES)
    assert re.findall(r"<th scope='row'>(all|hole|stain)</th>", page) == ["all", "stain", "hole"]


def test_every_case_says_whether_it_was_right_in_words_and_by_a_mark():
    page = render(DESCRIPTION, RESULT, CASES)
    assert "✗ called defective, score 9</b><br>good/7.png: good, scored high" in page
    assert "✗ called good, score 1.5</b><br>stain/7.png: defect, scored low" in page
    assert "✓ called defective, score 50</b><br>hole/7.png: defect, scored high" in page


def test_without_masks_there_is_no_pro_curve():
    page = render(DESCRIPTION, evaluation([1.0, 2.0], {"hole": [3.0]}, pixels=False), CASES)
    assert "PRO:" not in page
    assert "–" in page


def test_names_of_folders_files_and_notes_are_only_words():
    result = evaluation([1.0, 2.0], {EVIL: [3.0, 4.0]})
    page = render(DESCRIPTION, result, [shown("worst: defect, scored low", EVIL, 3.0)], data=EVIL, notes=[EVIL])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_the_page_fetches_nothing():
    page = render(DESCRIPTION, RESULT, CASES)
    outside = [link for link in re.findall(r"(?:src|href)='([^']*)'", page) if not link.startswith(("data:", "#"))]
    assert outside == []
    assert "<script" not in page


@pytest.mark.parametrize("scores", [[5.0, 5.0], [-3.0, 1e9], [0.0, 1e-9]])
def test_scores_of_any_size_are_drawn(scores):
    page = render(DESCRIPTION, evaluation(scores, {"hole": [*scores, 7.0]}), CASES)
    assert "nan" not in page.split("<section id='the-model'>")[0].split("data:image")[0]
    assert "='inf" not in page
