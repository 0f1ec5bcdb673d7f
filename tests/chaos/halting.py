"""Stops the work on a goal at one point of a step: from there on nothing is written of it, as if it were killed there.

The state file itself refuses what would be written then, so that the point is the same each time, however short the
step. Whoever is killed while it stands there leaves what a kill at that very moment leaves.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """Before the first `change` of `table` for which `when` holds; in SQL, where OLD and NEW are the row."""

    table: str
    change: str
    when: str


def begun(action: str) -> Point:
    """It was written that the step begins, and nothing of it is done."""
    return Point("goal_events", "INSERT", f"NEW.kind = 'step' AND NEW.step = '{action}'")


def done(action: str) -> Point:
    """All of the step is done, and that is not written."""
    ended = f"""EXISTS (
        SELECT 1 FROM json_each(NEW.memo) WHERE value ->> 'action' = '{action}' AND value ->> 'ended_s' IS NOT NULL
        AND json_extract(OLD.memo, '$."' || key || '".ended_s') IS NULL
    )"""
    return Point("goals", "UPDATE OF memo", ended)


#: A version is to be removed, and what was written beside it has been.
REMOVING = Point("model_versions", "UPDATE OF removed", "NEW.removed")


def ended(status: str) -> Point:
    """The goal has ended so, and that is not written."""
    return Point("goals", "UPDATE OF status", f"NEW.status = '{status}'")


@contextlib.contextmanager
def halting(data_dir: Path, point: Point) -> Iterator[None]:
    """Whoever works on a goal stops there, while the context is open."""
    _change(
        data_dir,
        f"CREATE TRIGGER halt BEFORE {point.change} ON {point.table} WHEN {point.when} "
        "BEGIN SELECT RAISE(ABORT, 'killed here'); END",
    )
    try:
        yield
    finally:
        _change(data_dir, "DROP TRIGGER halt")


def halted(log: Path) -> bool:
    """Whether somebody stands there."""
    return "could not be written" in log.read_text()


def _change(data_dir: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(data_dir / "state.db")) as state:
        state.execute(statement)
