import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from station.watching.drawing import chart, gauge, section, sparkline

numbers = st.floats(allow_nan=True, allow_infinity=True)


def test_only_what_is_over_the_threshold_is_a_full_block() -> None:
    assert sparkline([(0.0, 1), (0.5, 1), (1.0, 1), None, (1.01, 1), (99, 1)]).plain == "▁▄▇ ██"


@pytest.mark.parametrize(
    ("score", "shown"),
    [(0.0, "──────┃  "), (0.5, "━━━───┃  "), (1.0, "━━━━━━┃  "), (1.01, "━━━━━━╋━ "), (9.0, "━━━━━━╋━━")],
)
def test_a_score_over_the_threshold_runs_through_its_mark(score: float, shown: str) -> None:
    assert gauge(score, 1.0, 9).plain == shown


def test_a_chart_has_the_threshold_as_a_line_that_only_higher_scores_cross() -> None:
    lines = [line.plain for line in chart([(0.0, 1), (0.5, 1), (1.0, 1), (1.01, 1), (2, 1), None], 4)]
    assert lines == [
        "┄┄┄▁█┄",
        "  ███ ",
        " ▄███ ",
        "▁████ ",
    ]


@given(st.lists(st.none() | st.tuples(numbers, numbers), max_size=30), st.integers(2, 9))
def test_any_numbers_can_be_drawn(points: list[tuple[float, float] | None], height: int) -> None:
    assert sparkline(points).cell_len == len(points)
    assert {line.cell_len for line in chart(points, height)} == {len(points)}
    for point in filter(None, points):
        assert gauge(*point, 12).cell_len == 12


def test_a_section_is_as_wide_as_the_screen() -> None:
    assert section(Text("health"), 20).plain == "── health ──────────"
