from hypothesis import given
from hypothesis import strategies as st

from station.messages import Feedback, Reply, Status
from station.watching.words import clean, describe


@given(st.text())
def test_nothing_that_a_terminal_obeys_passes(text: str) -> None:
    assert clean(text).isprintable()


def test_escape_sequences_and_mirrored_writing_are_defused() -> None:
    assert clean("\x1b]0;owned\x07\x1b[2J\u202egnp.exe") == "�]0;owned��[2J�gnp.exe"
    assert clean("x" * 9, limit=4) == "xxxx…"


def test_messages_in_words() -> None:
    said = (
        Status(state="degraded", reasons=("paused: by anna", "outbox-full: 3 dropped"), session="s"),
        Reply(verb="pause", ok=True, result={"state": "paused"}),
        Reply(verb="reload", ok=False, error="reload-refused: no bundle"),
        Feedback(alert="a1", verdict="false-alarm", by="anna", note="a thread, not a scratch"),
    )
    assert [describe(message).plain for message in said] == [
        "degraded: paused: by anna; outbox-full: 3 dropped",
        "reply to pause: done state paused",
        "reply to reload: reload-refused: no bundle",
        "anna says false-alarm of alert a1: a thread, not a scratch",
    ]
