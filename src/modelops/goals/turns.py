"""Whose turn it is to do heavy work: one goal at a time, the most urgent first, and none starves. Pure.

The highest priority goes first, and of one priority whoever has waited longest. A goal that was passed over
`PATIENCE` times counts as one priority higher: so, with `n` that wait, each is passed over at most
`LEVELS * PATIENCE + n` times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

LEVELS = 3  # from low to critical
PATIENCE = 4


@dataclass(frozen=True)
class Waiting:
    """A goal that waits; `since` orders those that came: a smaller number came earlier."""

    goal_id: str
    priority: int
    since: int
    passed: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """The smaller goes first."""
        return -min(LEVELS, self.priority + self.passed // PATIENCE), self.since


def first(waiting: Iterable[Waiting]) -> Waiting | None:
    """Who goes next."""
    return min(waiting, key=lambda each: each.rank, default=None)


def given(waiting: Iterable[Waiting], chosen: Waiting) -> tuple[Waiting, ...]:
    """Those that wait on, now that `chosen` has gone."""
    return tuple(replace(each, passed=each.passed + 1) for each in waiting if each.goal_id != chosen.goal_id)
