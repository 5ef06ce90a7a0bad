import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.budget import Pace, amount, parse_budget
from station.settings import AlertSettings


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1e-4", 1e-4),
        ("0.05", 0.05),
        (" 1/10000 ", 1e-4),
        ("2 / 1e5", 2e-5),
        ("1/shift", 1 / (10 * 8 * 3600)),
        ("2/day", 2 / (10 * 86_400)),
        ("1/hour", 1 / (10 * 3600)),
        ("0.5/week", 0.5 / (10 * 7 * 86_400)),
    ],
)
def test_every_form_becomes_a_probability_per_frame(text, rate):
    assert parse_budget(text).rate(10.0) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["1e-4", "1/10000"])
def test_a_share_needs_no_frame_rate(text):
    assert parse_budget(text).rate(None) == 1e-4


@pytest.mark.parametrize(
    "text",
    ["", "0", "1", "2", "-1e-3", "nan", "inf", "1/0", "0/shift", "1/1", "1/fortnight", "shift", "1//day", "1/day/2"],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match=r"is not|must lie between 0 and 1"):
        parse_budget(text)


@given(st.text(max_size=20))
def test_any_text_is_a_budget_or_a_value_error(text):
    try:
        budget = parse_budget(text)
    except ValueError:
        return
    if budget.seconds is None:
        assert 0 < budget.rate(None) < 1


def test_a_budget_per_period_without_a_frame_rate_says_what_to_give():
    with pytest.raises(ValueError, match="add --fps"):
        parse_budget("1/shift").rate(None)


def test_more_alarms_than_frames_are_no_budget():
    with pytest.raises(ValueError, match="allows every frame to alarm"):
        parse_budget("10/hour").rate(0.001)


def test_alerts_of_several_hits_lie_between_the_same_spot_and_ever_new_ones():
    words = Pace(10.0, "--fps", AlertSettings(open_hits=2, open_window=3)).alerts_in_words(1e-3)
    # 288,000 frames a shift: 288 above the threshold, 144 pairs; or 2 of them in three by accident 0.576 times.
    assert "an alert needs 2 of 3 in a row" in words
    assert "at most 140 a shift" in words
    assert "about 0.58 where every frame shows something new" in words


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.004, "less than 0.01"), (0.0481, "0.048"), (3.14, "3.1"), (9.96, "10"), (1234, "1,200")],
)
def test_amounts_have_as_many_digits_as_anybody_can_mean(number, text):
    assert amount(number) == text
