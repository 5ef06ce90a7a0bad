"""What was judged, as a folder for the next calibration."""

import json

import pytest

from engines.images import find_images, read_image
from station.dashboard.archive import Archive
from station.dashboard.export import export_folder
from station.dashboard.records import Judgement, merge
from station.messages import Feedback
from tests.support.dashboard import alert_message, frame

LEFT, RIGHT = "mill/3/left", "mill/3/right"


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path / "state", 16, 90)
    yield archive
    archive.close()


def judged(archive, path, id_, verdict, grey=128, *, with_frame=True):
    archive.put_alert(merge(None, path, alert_message(id_, "close")))
    if with_frame:
        archive.put_picture(path, id_, "frame", frame(grey))
    archive.put_feedback(path, id_, Judgement.of(Feedback(alert=id_, verdict=verdict, by="ann")))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_frames_go_where_calibrate_looks_for_them(archive, tmp_path):
    judged(archive, LEFT, "a1", "false-alarm", grey=100)
    judged(archive, LEFT, "a2", "confirmed")
    judged(archive, LEFT, "a3", "confirmed", with_frame=False)
    judged(archive, LEFT, "a4", "withdrawn")
    out = tmp_path / "out"
    assert export_folder(archive, out) == (1, 1, 1)
    assert names(out) == ["defect/a2.png", "feedback.jsonl", "good/a1.png"]
    [good] = find_images(out / "good")
    assert read_image(good)[0, 0].tolist() == [100, 100, 100]
    lines = [json.loads(line) for line in (out / "feedback.jsonl").read_text().splitlines()]
    assert {(line["id"], line["file"]) for line in lines} == {
        ("a1", "good/a1.png"),
        ("a2", "defect/a2.png"),
        ("a3", None),
    }
    assert all(line["feedback"]["by"] == "ann" for line in lines)


def test_a_second_export_takes_back_what_does_not_hold_any_more(archive, tmp_path):
    judged(archive, LEFT, "a1", "false-alarm")
    out = tmp_path / "out"
    export_folder(archive, out)
    (out / "good" / "mine.png").write_bytes(frame())
    archive.put_feedback(LEFT, "a1", Judgement.of(Feedback(alert="a1", verdict="confirmed", by="bob")))
    export_folder(archive, out)
    assert names(out) == ["defect/a1.png", "feedback.jsonl", "good/mine.png"]


def test_ids_of_two_stations_may_be_the_same(archive, tmp_path):
    judged(archive, LEFT, "a1", "confirmed")
    judged(archive, RIGHT, "a1", "confirmed")
    assert export_folder(archive, tmp_path / "out") == (0, 2, 0)
    assert names(tmp_path / "out") == ["defect/a1-2.png", "defect/a1.png", "feedback.jsonl"]
    assert export_folder(archive, tmp_path / "left", LEFT) == (0, 1, 0)
