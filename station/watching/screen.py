"""The watcher's screen: what is seen, drawn as lines that fill a terminal; and where in it the viewer is."""

import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from engines.help import BROKER_PAGE
from station.watching.details import details
from station.watching.drawing import gauge, section, sparkline
from station.watching.sight import Sight
from station.watching.table import columns_for, heads, station_rows
from station.watching.words import STATE_MARKS, STATE_STYLES, clean

MIN_WIDTH, MIN_HEIGHT = 40, 8
FOOTER = (("q", "quit"), ("?", "help"), ("↑↓", "station"), ("Enter", "details"), ("s", "order"), ("p", "pause"))
KEYS = (
    ("↑ ↓", "another station; Page Up, Page Down, Home and End too"),
    ("Enter", "details of the station, or without"),
    ("s", "stations by name, or those first that somebody should look at"),
    ("p, Space", "pause the picture; what comes meanwhile is kept"),
    ("?", "this page, or back"),
    ("q, Ctrl-C", "quit; the stations do not notice"),
)


@dataclass(frozen=True, slots=True)
class Link:
    """The connection, in words.

    Attributes:
        where: the broker.
        topics: what is listened to.
        trouble: why there is no connection; None: there is one.
    """

    where: str
    topics: str
    trouble: str | None = None


@dataclass(slots=True)
class Viewer:
    """Where the viewer is, moved by keys."""

    selected: str | None = None
    top: int = 0
    details: bool = False
    help: bool = False
    worrying_first: bool = False
    paused: bool = False
    quit: bool = False
    keys: bool = True  # whether there is a keyboard

    def press(self, key: str, stations: Sequence[str]) -> None:
        """Do what a key means; ``stations`` as they are listed."""
        match key:
            case "q" | "Q":
                self.quit = True
            case "p" | "P" | "space":
                self.paused = not self.paused
            case "?" | "h":
                self.help = not self.help
            case "escape":
                self.help = self.details = False
            case "enter" | "d":
                self.details = not self.details
            case "s" | "S":
                self.worrying_first = not self.worrying_first
            case _:
                self._move(key, stations)

    def _move(self, key: str, stations: Sequence[str]) -> None:
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10, "home": -10_000, "end": 10_000}
        if key in steps and stations:
            at = stations.index(self.selected) if self.selected in stations else -1 if steps[key] > 0 else len(stations)
            self.selected = stations[min(len(stations) - 1, max(0, at + steps[key]))]


def draw(sight: Sight, viewer: Viewer, link: Link, now: float, size: tuple[int, int]) -> list[Text]:
    """Exactly as many lines as the terminal has.

    Args:
        sight: what is known.
        viewer: where in it; its scrolling is kept up to date.
        link: the connection.
        now: UNIX seconds; those of the pause, while there is one.
        size: columns and lines of the terminal.
    """
    width, height = size
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return _fit([Text(f"at least {MIN_WIDTH} x {MIN_HEIGHT} characters, please")], width, height)
    views = sight.views(now, worrying_first=viewer.worrying_first)
    lines = [_header(link, now, width, paused=viewer.paused), _summary(views, width)]
    if link.trouble:
        trouble = f"{clean(link.trouble)}; see {BROKER_PAGE}"
        lines += [Text(f" {line}", "bold red") for line in textwrap.wrap(trouble, width - 2)[:3]]
    room = height - len(lines) - 1
    if viewer.help:
        lines += _help()[:room]
    elif not views:
        lines += _nobody(link)[:room]
    else:
        place, body = _body(sight, viewer, views, now, (width, room))
        lines[1] = _ends(lines[1], Text(place, "dim"), width)
        lines += body
    return [*_fit(lines, width, height - 1), *_fit([_footer(viewer, width)], width, 1)]


def _fit(lines: list[Text], width: int, height: int) -> list[Text]:
    fitted = [*lines[:height], *(Text() for _ in range(height - len(lines)))]
    for line in fitted:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return fitted


def _ends(left: Text, right: Text, width: int) -> Text:
    """Left- and right-aligned in one line; the left gives way."""
    left = left.copy()
    left.truncate(max(0, width - right.cell_len), overflow="ellipsis", pad=True)
    return Text.assemble(left, right)


def _header(link: Link, now: float, width: int, *, paused: bool) -> Text:
    left = Text.assemble((" station watch ", "bold reverse"), f"  {link.where}  ", (link.topics, "dim"))
    mark = Text("✗ not connected", "bold red") if link.trouble else Text("● connected", "green")
    if paused:
        mark = Text(" ‖ paused ", "black on yellow")
    return _ends(left, Text.assemble("  ", mark, f"  {time.strftime('%H:%M:%S', time.localtime(now))} "), width)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _summary(views: list[dict[str, Any]], width: int) -> Text:
    counts = Counter(view["state"] for view in views)
    alerts = sum(len(view["open_alerts"]) for view in views)
    line = Text(f" {_count(len(views), 'station')}  ", "bold")
    if alerts:
        line.append(f" ⚑ {_count(alerts, 'open alert')} ", "bold white on red")
    for state, mark in STATE_MARKS.items():
        if counts[state]:
            line.append(f"  {mark} {counts[state]}{f' {state}' if width >= 96 else ''}", STATE_STYLES[state])
    return line


def _nobody(link: Link) -> list[Text]:
    return [
        Text(),
        Text(f"  No station has spoken yet on {link.topics}.", "bold"),
        Text("  Every station tells its state at once to whoever subscribes: is this its broker (--host, --port),"),
        Text("  are these its topics (mqtt.prefix and [station] of --config), may this user read them?"),
    ]


def _help() -> list[Text]:
    lines = [Text(), Text("  Keys", "bold"), *(Text(f"  {keys:<12}{does}") for keys, does in KEYS)]
    lines += [Text(), Text("  Signs", "bold")]
    for state, mark in STATE_MARKS.items():
        said = {
            "online": "inspects",
            "degraded": "works, or would, but something is wrong: the reasons stand below it",
            "stopped": "was stopped, as asked",
            "offline": "vanished without a word",
            "unknown": "nothing is known of it, or nothing was heard for too long",
        }[state]
        lines.append(Text.assemble("  ", (f"{mark} {state:<10}", STATE_STYLES[state]), said))
    lines.append(Text.assemble("  ", gauge(0.6, 1, 10), "  the score, and a mark for the threshold"))
    lines.append(
        Text.assemble(
            "  ",
            sparkline([(0.2, 1), (0.5, 1), (0.3, 1), (1.2, 1), (0.2, 1), None, None, (0.4, 1), (0.3, 1), (0.2, 1)]),
            "  each second's highest score; a full block is over the threshold, a gap had no frames",
        )
    )
    return lines


def _footer(viewer: Viewer, width: int) -> Text:
    line = Text(" ")
    for key, does in FOOTER if viewer.keys else (("Ctrl-C", "quit"),):
        item = Text.assemble((f" {key} ", "reverse"), (f" {does}  ", "dim"))
        if line.cell_len + item.cell_len <= width + 2:
            line.append_text(item)
    return line


# --- stations, details, log ---


def _body(
    sight: Sight, viewer: Viewer, views: list[dict[str, Any]], now: float, size: tuple[int, int]
) -> tuple[str, list[Text]]:
    """Which of the stations are shown, in words, unless all are; and the lines."""
    width, room = size
    if viewer.selected not in {view["path"] for view in views}:
        viewer.selected = views[0]["path"]
    columns = columns_for(views, width)
    rows = [
        station_rows(sight, view, now, columns, selected=viewer.keys and view["path"] == viewer.selected)
        for view in views
    ]
    at = next(index for index, view in enumerate(views) if view["path"] == viewer.selected)
    detail = details(sight, views[at], now, width) if viewer.details else []
    wanted = sum(map(len, rows)) + 1
    detail_room = min(len(detail), max(0, room - min(wanted, 6)))
    log_room = min(len(sight.events) + 1, max(room - detail_room - wanted, 0 if detail else min(7, room // 3)))
    list_room = room - detail_room - log_room
    shown, first, last = _window(rows, at, viewer, list_room - 1)
    place = f" {first + 1}-{last} of {len(rows)} " if len(shown) < wanted - 1 else ""
    blank = [Text() for _ in range(list_room - 1 - len(shown))]
    return place, [heads(columns), *shown, *blank, *detail[:detail_room], *_log(sight, width, log_room)]


def _window(rows: list[list[Text]], at: int, viewer: Viewer, room: int) -> tuple[list[Text], int, int]:
    """The lines of as many stations as there is room for, the selected one among them; which, from 0."""
    viewer.top = min(viewer.top, at)
    while viewer.top < at and sum(map(len, rows[viewer.top : at + 1])) > room:
        viewer.top += 1
    while viewer.top > 0 and sum(map(len, rows[viewer.top - 1 :])) <= room:
        viewer.top -= 1  # no empty space below while some are hidden above
    lines: list[Text] = []
    last = viewer.top
    for row in rows[viewer.top :]:
        if lines and len(lines) + len(row) > room:
            break
        lines += row
        last += 1
    return lines[: max(0, room)], viewer.top, last


def _log(sight: Sight, width: int, room: int) -> Iterator[Text]:
    if room < 2:
        return
    yield section(Text("what happened"), width)
    for event in list(sight.events)[-(room - 1) :]:
        at = time.strftime("%H:%M:%S", time.localtime(event.at))
        yield Text.assemble((f"  {at}  ", "dim"), (f"{event.station}  " if event.station else "", "bold"), event.words)
