"""Named queries on goals."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from modelops.store.durable import ENDED, DurableQueries, DurableRow, EventRow, Kind
from modelops.store.tables import goal_events, goals
from modelops.store.whole import whole

__all__ = ["EventRow", "GoalQueries", "GoalRow"]


@dataclass(frozen=True)
class GoalRow(DurableRow):
    """A goal. It is `active` while it is worked on; `elapsed` is for how many seconds it has been so, all in all.
    `memo` has what was done for it, by the number of the step."""

    title: str
    goal_type: str
    target_completion: float | None = None
    elapsed: float = 0.0


_GOALS = Kind(
    "goal",
    GoalRow,
    goals,
    goal_events,
    working="active",
    noted=frozenset({"progress", "metrics", "message", "elapsed"}),
    cleared=True,
    due=goals.c.target_completion,
    newest=1000,  # a goal may be pursued for months
)


class GoalQueries(DurableQueries[GoalRow]):
    """Reads and writes the tables `goals` and `goal_events`."""

    def __init__(self, database: AsyncEngine) -> None:
        super().__init__(database, _GOALS)

    @whole
    async def all(self, status: str | None = None, limit: int = 1000) -> list[GoalRow]:
        """Goals of that status, the newest first; None: those that have not ended; "all": all of them."""
        if status is None:
            return await self._listed(goals.c.status.not_in(ENDED), limit)
        return await super().all(None if status == "all" else status, limit)
