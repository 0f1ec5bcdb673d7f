"""Curves in a terminal: within their room, as high as what they show, and joined."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from rich.cells import cell_len

from modelops.cli.curve import curves


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """The dots that are drawn, by column and by line."""
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    return {
        (2 * column + dx, 4 * row + dy)
        for row, line in enumerate(lines)
        for column, character in enumerate(line[10:])
        for dy, pair in enumerate(bits)
        for dx, bit in enumerate(pair)
        if ord(character) >= 0x2800 and (ord(character) - 0x2800) & bit
    }


def drawn(points: list[tuple[float, float]], width: int = 40, height: int = 5) -> list[str]:
    return [line.plain for line in curves([(points, "cyan")], width, height)]


def test_a_line_that_falls_goes_from_one_corner_to_the_other() -> None:
    lines = drawn([(0, 4.0), (10, 1.0)])
    assert [cell_len(line) for line in lines] == [40] * 6
    assert lines[0].startswith("       4 ┤")
    assert lines[4].startswith("       1 ┤")
    assert lines[5].split() == ["0", "10"]
    found = dots(lines[:5])
    assert {(0, 0), (59, 19)} <= found
    assert len({x for x, _ in found}) == 60, "without a gap"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_measured_is_drawn_within_its_room(seed: int) -> None:
    rng = random.Random(seed)
    width, height = rng.randrange(0, 120), rng.randrange(0, 12)
    points = [(rng.uniform(0, 1e6), rng.choice((rng.gauss(0, 1e-9), rng.uniform(-1e9, 1e9)))) for _ in range(300)]
    points += [(1.0, math.nan), (2.0, math.inf), (math.inf, 1.0)]
    lines = curves([(points, "cyan"), (points[:3], "yellow")], width, height)
    assert len(lines) in (0, height + 1)
    assert {cell_len(line.plain) for line in lines} <= {width}


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, math.nan), (2.0, math.nan), (3.0, 1.0)]])
def test_a_point_is_no_curve(points: list[tuple[float, float]]) -> None:
    assert drawn(points) == []


def test_what_does_not_change_is_a_line_in_the_middle() -> None:
    found = dots(drawn([(1, 2.0), (2, 2.0), (3, 2.0)])[:5])
    assert {y for _, y in found} == {10}


def test_neighbours_are_joined() -> None:
    points = [(float(x), math.sin(x)) for x in range(12)]
    columns: dict[int, list[int]] = {}
    for x, y in sorted(dots(drawn(points, 60, 8)[:8])):
        columns.setdefault(x, []).append(y)
    for left, right in pairwise(sorted(columns)):
        assert right == left + 1
        assert min(abs(a - b) for a in columns[left] for b in columns[right]) <= 1


def test_two_curves_have_a_style_each() -> None:
    lines = curves([([(0, 0), (1, 0)], "cyan"), ([(0, 1), (1, 1)], "yellow")], 40, 4)
    assert {str(span.style) for span in lines[0].spans} >= {"yellow"}
    assert {str(span.style) for span in lines[3].spans} >= {"cyan"}
