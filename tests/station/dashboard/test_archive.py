"""What the dashboard keeps, and what it lets go first."""

import sqlite3
import time

import pytest

from station.dashboard import DashboardError
from station.dashboard.archive import DATABASE, FILES, Archive
from station.dashboard.records import Judgement, ScoreRow, merge
from station.messages import Feedback
from tests.support.dashboard import alert_message, frame, picture

PATH = "mill/3/left"


@pytest.fixture
def archive(tmp_path):
    archive = Archive(tmp_path, keep_mib=16, keep_days=90)
    yield archive
    archive.close()


def put(archive, id_, event="close", path=PATH, **more):
    archive.put_alert(merge(None, path, alert_message(id_, event, **more)))


def judge(archive, id_, verdict="confirmed", by="ann", **more):
    message = Feedback(alert=id_, verdict=verdict, by=by, **more)
    return archive.put_feedback(PATH, id_, Judgement.of(message, published=False))


def test_it_outlives_the_process(tmp_path):
    first = Archive(tmp_path, 16, 90)
    put(first, "a1", "open")
    first.put_picture(PATH, "a1", "image", picture())
    judge(first, "a1", note="seen")
    first.put_scores([ScoreRow(PATH, int(time.time()), 2.0, 4.0)])
    first.put_stations([(PATH, "{}", 1.0)])  # not closed: killed
    second = Archive(tmp_path, 16, 90)
    [record] = second.open_alerts()
    assert (record.id, record.feedback.note) == ("a1", "seen")
    assert second.picture(PATH, "a1", "image").read_bytes() == picture()
    assert [row.score for row in second.scores(PATH, 0)] == [2.0]
    assert second.stations() == [(PATH, "{}", 1.0)]
    first.close()
    second.close()


def test_pages_and_filters(archive):
    for number in range(7):
        put(archive, f"a{number}", "open" if number == 6 else "close", opened_at=f"2024-01-01T00:00:0{number}Z")
    put(archive, "b0", path="mill/3/right", opened_at="2024-01-01T00:00:09Z")
    judge(archive, "a2", "false-alarm")
    first, end = archive.alerts(station=PATH, limit=4)
    second, last = archive.alerts(station=PATH, before=end, limit=4)
    assert [record.id for record in first + second] == ["a6", "a5", "a4", "a3", "a2", "a1", "a0"]
    assert last is None
    assert [record.id for record in archive.alerts(state="open")[0]] == ["a6"]
    assert [record.id for record in archive.alerts(verdict="false-alarm")[0]] == ["a2"]
    assert len(archive.alerts(verdict="none")[0]) == 7
    assert archive.alerts()[0][0].id == "b0"


def test_a_picture_belongs_to_an_alert(archive):
    assert archive.put_picture(PATH, "a1", "image", picture()) is None
    put(archive, "a1")
    first = archive.put_picture(PATH, "a1", "image", picture())
    assert archive.put_picture(PATH, "a1", "image", picture()) is None  # delivered again
    second = archive.put_picture(PATH, "a1", "image", picture(200))
    assert first.image != second.image
    assert archive.picture(PATH, "a1", "image").read_bytes() == picture(200)
    assert archive.picture(PATH, "a1", "frame") is None


def test_the_last_word_counts_and_comes_once(archive):
    put(archive, "a1")
    record, first = judge(archive, "a1", "confirmed")
    assert record.verdict == "confirmed"
    at = record.feedback.at
    _, second = judge(archive, "a1", "false-alarm")
    assert judge(archive, "a1", "confirmed", at=at) is None  # our own, back from the broker
    assert archive.alert(PATH, "a1").verdict == "false-alarm"
    assert [said.row for said in archive.unpublished()] == [first, second]
    assert archive.set_published(first) is None  # not what counts
    assert archive.set_published(second).feedback.published is True
    assert archive.unpublished() == []
    judge(archive, "a1", "withdrawn")
    assert archive.alert(PATH, "a1").view()["feedback"] is None
    assert judge(archive, "nothing") is None


def test_what_is_judged_stays_longest(tmp_path):
    archive = Archive(tmp_path, keep_mib=1, keep_days=90)
    big = frame() + bytes(300_000)
    for number in range(6):
        put(archive, f"a{number}", opened_at=f"2024-01-01T00:00:0{number}Z")
        archive.put_picture(PATH, f"a{number}", "frame", big)
        archive.put_picture(PATH, f"a{number}", "image", picture())
        if number == 0:
            judge(archive, "a0")
    assert archive.prune() == 3
    kept = {record.id: record.frame is not None for record in archive.alerts()[0]}
    assert kept == {"a0": True, "a1": False, "a2": False, "a3": False, "a4": True, "a5": True}
    assert archive.picture(PATH, "a1", "frame") is None
    assert archive.picture(PATH, "a1", "image") is not None
    assert len(list((tmp_path / FILES).iterdir())) == 9
    archive.close()


def test_age_and_number_are_bounded(archive, monkeypatch):
    put(archive, "old")
    put(archive, "open", "open")
    archive.put_picture(PATH, "old", "image", picture())
    assert archive.prune(time.time() + 91 * 86_400) == 1
    assert [record.id for record in archive.alerts()[0]] == ["open"]
    monkeypatch.setattr("station.dashboard.archive.MAX_ALERTS", 3)
    for number in range(10):
        put(archive, f"a{number}", opened_at=f"2024-01-01T00:00:0{number}Z")
    archive.prune()
    assert len(archive.alerts()[0]) == 3


def test_scores_are_kept_for_a_day(archive):
    now = int(time.time())
    archive.put_scores([ScoreRow(PATH, now - 90_000, 1.0, 4.0), ScoreRow(PATH, now, 2.0, 4.0)])
    assert [row.score for row in archive.scores(PATH, 0)] == [2.0]


def test_files_that_belong_to_nothing_are_swept(archive, tmp_path):
    put(archive, "a1")
    archive.put_picture(PATH, "a1", "image", picture())
    (tmp_path / FILES / "99.jpg").write_bytes(b"left by a kill")
    (tmp_path / "export-x.zip").write_bytes(b"too")
    archive.sweep()
    assert [path.name for path in (tmp_path / FILES).iterdir()] == ["1.jpg"]
    assert not (tmp_path / "export-x.zip").exists()


def test_a_damaged_archive_is_moved_aside(tmp_path):
    archive = Archive(tmp_path, 16, 90)
    put(archive, "a1")
    archive.close()
    (tmp_path / DATABASE).write_bytes(b"not a database at all, " * 1000)
    archive = Archive(tmp_path, 16, 90)
    put(archive, "a2")
    assert [record.id for record in archive.alerts()[0]] == ["a2"]
    assert len(list(tmp_path.glob(f"{DATABASE}.corrupt-*"))) == 1
    archive.close()


def test_a_newer_archive_is_left_alone(tmp_path):
    Archive(tmp_path, 16, 90).close()
    database = sqlite3.connect(tmp_path / DATABASE)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(DashboardError, match="newer"):
        Archive(tmp_path, 16, 90)


def test_a_folder_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DashboardError, match=r"dashboard\.state"):
        Archive(tmp_path / "file", 16, 90)


def test_only_its_owner_may_read(archive, tmp_path):
    put(archive, "a1")
    archive.put_picture(PATH, "a1", "image", picture())
    for path in (tmp_path / DATABASE, archive.picture(PATH, "a1", "image")):
        assert path.stat().st_mode & 0o077 == 0
