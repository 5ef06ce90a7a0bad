"""Scores as a terminal can draw them: a gauge, and a chart of several lines. Shape tells as much as colour."""

from collections.abc import Sequence

from rich.text import Text

BELOW, OVER, MARK = "cyan", "bold red", "yellow"
Points = Sequence[tuple[float, float] | None]  # (score, threshold); None: no frame
_BARS = " ▁▂▃▄▅▆▇"
_FULL = "█"
_THRESHOLD_AT = 0.75  # of a gauge's or chart's length


def sparkline(points: Points) -> Text:
    """One line. Only what is over its threshold is as high as the line; None leaves a gap."""
    line = Text()
    for point in points:
        if point is None:
            line.append(" ")
        elif point[0] > point[1]:
            line.append(_FULL, OVER)
        else:
            line.append(_BARS[1 + min(6, max(0, int(7 * _share(point))))], BELOW)
    return line


def gauge(score: float, threshold: float, width: int) -> Text:
    """A bar with a mark for the threshold, which a score over it runs through."""
    mark = int(width * _THRESHOLD_AT)
    share = _share((score, threshold))
    filled = mark + 1 + min(width - mark - 1, int((share - 1) * mark) + 1) if score > threshold else int(share * mark)
    style = OVER if score > threshold else BELOW
    line = Text()
    for cell in range(width):
        if cell == mark:
            line.append("╋" if filled > cell else "┃", MARK if filled <= cell else OVER)
        elif cell < filled:
            line.append("━", style)
        else:
            line.append("─" if cell < mark else " ", "dim")
    return line


def chart(points: Points, height: int) -> list[Text]:
    """``height`` lines, the highest first; a dotted line is the threshold, of whose 4/3 the chart shows as much."""
    lines = [Text() for _ in range(height)]
    at = int(height * _THRESHOLD_AT)  # row of the threshold, from below
    for point in points:
        eighths = 0 if point is None else int(8 * height * _THRESHOLD_AT * _share(point))
        over = point is not None and point[0] > point[1]
        if point is not None:  # a frame is seen, and so is on which side of the line
            eighths = max(eighths, 8 * at + 1) if over else min(max(eighths, 1), 8 * at)
        for row in range(height):
            part = min(8, max(0, eighths - 8 * row))
            line = lines[height - 1 - row]
            if part:
                line.append(_FULL if part == 8 else _BARS[part], OVER if over else BELOW)
            else:
                line.append("┄" if row == at else " ", MARK)
    return lines


def section(words: Text, width: int) -> Text:
    """A line that begins a part of the screen."""
    line = Text.assemble(("── ", "dim"), words, " ")
    line.append("─" * max(0, width - line.cell_len), "dim")
    return line


def _share(point: tuple[float, float]) -> float:
    score, threshold = point
    share = score / threshold if threshold > 0 else 0.0
    return share if 0 <= share < 1e6 else 0.0 if share < 1e6 else 1e6
