"""A curve in a terminal: two columns and four lines of dots in each character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from rich.text import Text

Point = tuple[float, float]

#: The bits of a character's dots, by line and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_EMPTY = 0x2800
_LABEL = 10  # columns beside the curve


def curves(series: Sequence[tuple[Sequence[Point], str]], width: int, height: int) -> list[Text]:
    """The points, each series in its style over those before it, joined by lines; beside them stands how high they are,
    and below how far they go. Nothing where there is nothing to join, or no room."""
    known = [([point for point in points if all(map(math.isfinite, point))], style) for points, style in series]
    every = [point for points, _ in known for point in points]
    columns = width - _LABEL
    if len(every) < 2 or columns < 8 or height < 2:
        return []
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    drawn = [(_drawn(points, (left, right), (low, high), columns, height), style) for points, style in known]
    lines = []
    for row in range(height):
        label = _figure(high) if row == 0 else _figure(low) if row == height - 1 else ""
        line = Text(f"{label:>{_LABEL - 2}} ", "dim", no_wrap=True).append("┤" if label else "│", "dim")
        for column in range(columns):
            here = [(cells[row][column], style) for cells, style in drawn if cells[row][column]]
            bits = 0
            for each, _ in here:
                bits |= each
            line.append(chr(_EMPTY + bits) if bits else " ", here[-1][1] if here else "")
        lines.append(line)
    ends = f"{left:g}", f"{right:g}"
    below = ends[0] + ends[1].rjust(columns - len(ends[0]))
    lines.append(Text((" " * _LABEL + below)[:width], "dim", no_wrap=True))
    return lines


def _drawn(points: Sequence[Point], across: Point, up: Point, columns: int, rows: int) -> list[list[int]]:
    """Each character's dots."""
    cells = [[0] * columns for _ in range(rows)]

    def dot(point: Point) -> tuple[int, int]:
        return (
            _place(point[0], across, 2 * columns - 1),
            4 * rows - 1 - _place(point[1], up, 4 * rows - 1),
        )

    def mark(x: int, y: int) -> None:
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    places = [dot(point) for point in sorted(points)]
    for x, y in places[:1]:
        mark(x, y)
    for (x1, y1), (x2, y2) in pairwise(places):
        steps = max(abs(x2 - x1), abs(y2 - y1), 1)
        for step in range(steps + 1):
            mark(x1 + round((x2 - x1) * step / steps), y1 + round((y2 - y1) * step / steps))
    return cells


def _place(value: float, between: Point, most: int) -> int:
    low, high = between
    return round((value - low) / (high - low) * most) if high > low else most // 2


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"
