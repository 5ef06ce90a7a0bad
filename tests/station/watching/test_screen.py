"""What is known, and how it is drawn: many stations, small and large terminals, any payload."""

import io
import os
import re
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group

from station.dashboard.intake import Gone, Heard, NotOursError, read
from station.messages import MESSAGES
from station.watching.screen import Link, Viewer, draw
from station.watching.sight import Sight
from tests.support.line_of_stations import PREFIX, START, alert, names, opening, scores
from tests.support.station_process import REPOSITORY

LINK = Link("broker.plant:1883", "station/v1/#")
SECONDS = 90
NOW = START.timestamp() + SECONDS - 0.5
SILENT = {6, 9, 14}  # stations that send no scores


def line_of(count: int) -> Sight:
    sight = Sight()
    sight.fleet.set_broker(None)
    for number, name in enumerate(names(count)):
        for message in opening(name, number):
            sight.take(Heard(name, message), START.timestamp(), retained=True)
        for time, score in scores(number, SECONDS) if number not in SILENT else ():
            sight.take(Heard(name, score), START.timestamp() + time)
        if number not in SILENT:
            sight.take(Heard(name, opening(name, number)[2]), NOW)
    if count > 2:
        for event, number, time in (("open", 40, 40), ("close", 40, 43), ("open", 87, 87)):
            sight.take(Heard(names(count)[2], alert(event, number)), START.timestamp() + time)
    return sight


def shown(sight: Sight, viewer: Viewer, size: tuple[int, int] = (120, 40), link: Link = LINK) -> list[str]:
    return [line.plain for line in draw(sight, viewer, link, NOW, size)]


def test_one_look_tells_states_reasons_scores_and_alerts() -> None:
    lines = shown(line_of(20), Viewer())
    text = "\n".join(lines)
    assert "● connected" in lines[0]
    assert "20 stations   ⚑ 1 open alert   ● 16 online  ▲ 2 degraded  ■ 1 stopped  ✗ 1 offline" in lines[1]
    at = next(index for index, line in enumerate(lines) if "mill/1/right" in line)
    assert "▲ degraded" in lines[at]
    assert "└ camera-blurred: sharpness 0.31" in lines[at + 1]
    assert "✗ offline  mill/2/top" in text
    (worst,) = [line for line in lines if "mill/1/top" in line and "⚑ 1 open" in line]
    assert "╋" in worst
    assert "██" in worst
    assert "mill/1/top  alert closed  peak 0.41 of 0.25" in text
    assert "mill/1/left  online" not in text  # nothing has happened there


def test_stations_keep_their_places_unless_one_asks_for_trouble_first() -> None:
    sight, viewer = line_of(20), Viewer()
    table = [line for line in shown(sight, viewer) if "/" in line and line[2:3] in set("●▲■✗?")]
    assert [name in line for name, line in zip(sorted(names(20)), table, strict=True)] == [True] * 20
    viewer.press("s", sorted(names(20)))
    first = [line for line in shown(sight, viewer) if "/" in line and line[2:3] in set("●▲■✗?")][:4]
    assert [name in line for name, line in zip(("mill/1/right", "mill/1/top", "mill/2/top"), first, strict=False)] == [
        True
    ] * 3


def test_keys_walk_open_and_leave() -> None:
    sight, viewer, order = line_of(20), Viewer(), sorted(names(20))
    shown(sight, viewer, (80, 24))
    assert viewer.selected == order[0]
    viewer.press("end", order)
    lines = shown(sight, viewer, (80, 24))
    assert viewer.selected == order[-1]
    assert any(line.startswith("▸") and order[-1] in line for line in lines)
    assert "of 20" in lines[1]
    viewer.press("up", order)
    viewer.press("enter", order)
    lines = shown(sight, viewer, (100, 30))
    assert any(line.startswith(f"── {order[-2]}") for line in lines)
    assert any("camera   rtsp://camera-" in line for line in lines)
    viewer.press("?", order)
    assert any("Page Up, Page Down" in line for line in shown(sight, viewer))
    viewer.press("escape", order)
    assert not viewer.help
    viewer.press("p", order)
    assert "‖ paused" in shown(sight, viewer)[0]
    viewer.press("q", order)
    assert viewer.quit


def test_nobody_there_and_no_connection_say_what_to_look_at() -> None:
    lines = shown(Sight(), Viewer(), link=Link("broker:1883", "station/v1/#", "broker:1883: nothing listens there"))
    assert "✗ not connected" in lines[0]
    assert "nothing listens there" in lines[2]
    assert any("No station has spoken yet on station/v1/#" in line for line in lines)


def test_without_a_connection_nothing_is_claimed_of_any_station() -> None:
    sight = line_of(3)
    sight.fleet.set_broker("gone")
    lines = shown(sight, Viewer(), link=Link("b", "t", "gone"))
    assert "? 3 unknown" in lines[1]
    assert not any("broker-away" in line for line in lines)


def test_a_station_taken_out_of_service_is_gone() -> None:
    sight = line_of(3)
    sight.take(Heard("mill/1/top", Gone()), NOW)
    lines = shown(sight, Viewer())
    assert "2 stations" in lines[1]
    assert "mill/1/top  taken out of service" in lines[-2]


@given(st.integers(1, 200), st.integers(1, 70), st.booleans(), st.booleans(), st.integers(0, 20))
def test_every_terminal_is_filled_exactly(width: int, height: int, details: bool, help_: bool, down: int) -> None:
    viewer = Viewer(details=details, help=help_)
    order = sorted(names(20))
    for _ in range(down):
        viewer.press("down", order)
    lines = draw(LINE, viewer, LINK, NOW, (width, height))
    assert len(lines) == height
    assert max(line.cell_len for line in lines) <= width


LINE = line_of(20)
_SEEDS = [message.payload() for message in [*opening("mill/1/top", 3), alert("open", 1)]]
_topics = st.sampled_from([f"{PREFIX}/mill/1/{name}/{kind.topic}" for name in ("top", "left") for kind in MESSAGES])
_payloads = (
    st.binary(max_size=60)
    | st.sampled_from(_SEEDS)
    | st.sampled_from(_SEEDS).map(
        lambda seed: (
            seed.replace(b"online", b"on\\u001b[2Jline")
            .replace(b"leather", b"\\u001b]0;x\\u0007")
            .replace(b"0.25", b"0")
        )
    )
)


@given(st.lists(st.tuples(_topics, _payloads), max_size=12))
def test_no_payload_breaks_the_screen_or_commands_the_terminal(messages: list[tuple[str, bytes]]) -> None:
    sight = Sight()
    sight.fleet.set_broker(None)
    for topic, payload in messages:
        with suppress(NotOursError):
            sight.take(read(PREFIX, topic, payload), NOW)
    for line in draw(sight, Viewer(details=True), LINK, NOW, (100, 30)):
        assert line.plain.isprintable()


def test_the_picture_of_the_documentation(tmp_path: Path) -> None:
    """What twelve stations look like, as docs/images/watch.svg has it; written there when pictures are made."""
    console = Console(
        width=112, height=36, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    viewer = Viewer()
    for _ in range(4):
        viewer.press("down", sorted(names(12)))
    viewer.details = True
    console.print(Group(*draw(line_of(12), viewer, LINK, NOW, (112, 36))))
    folder = REPOSITORY / "docs" / "images" if os.environ.get("SCREENSHOTS") == "1" else tmp_path
    # Rich's own names a font on the network.
    template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(folder / "watch.svg"), title="station watch", unique_id="watch", code_format=template)
    assert "url(http" not in (folder / "watch.svg").read_text().replace('"', "")
    assert "mill/1/top" in (folder / "watch.svg").read_text()
    assert "mill" in (REPOSITORY / "docs" / "images" / "watch.svg").read_text()
