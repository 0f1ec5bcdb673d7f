"""Claims goals and pursues them, as many at once as the settings let."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from modelops.api.errors import ModelOpsError
from modelops.durable import runner
from modelops.durable.work import Ended
from modelops.goals import memory
from modelops.goals.recording import readable
from modelops.goals.work import Work, Works, claim_of
from modelops.metrics.families import GOAL_DURATION, GOALS_COMPLETED, GOALS_FAILED
from modelops.store.goals import GoalRow

log = logging.getLogger(__name__)


class Runner(runner.Runner[GoalRow, Work]):
    """Works on the goals of the state file."""

    def __init__(self, works: Works, *, owner: str, at_once: int) -> None:
        super().__init__(works.queries, name="goal", owner=owner, at_once=at_once, changed=works.changed)
        self._works = works

    async def start(self) -> None:
        """Go on with what was under way, and begin what waits. What has begun to change a model, or something heavy,
        goes first, also where others are claimed before it."""
        rows = sorted(await self._works.queries.all(None), key=lambda row: (-row.priority, row.number))
        for place, (row, goal) in enumerate(readable(rows)):
            if goal.steps:
                self._works.changing.come(claim_of(row, goal))
            if memory.read(row.memo).heavy and place < self._at_once:  # else it may be long until it is claimed
                self._works.turning.expect(row.id)
        await super().start()

    def hear(self, job_id: str) -> None:
        """There is something new about a learning job: whichever goal has begun it looks at once."""
        for work in self._working.values():
            if job_id in work.job_ids:
                work.wake()

    def begin(self, row: GoalRow) -> Work:
        """The work on a goal that was claimed."""
        return Work(self._works, row)

    async def ended(self, row: GoalRow, end: Ended, seconds: float) -> None:
        """Count it, and give back what was held for it."""
        metrics, goal = self._works.metrics, self._working[row.id].goal
        self._works.changing.gone(row.id)
        try:
            await self._works.doers[goal.objective.type].ended(goal)
        except ModelOpsError as error:
            log.warning("what goal %s held was not given back: %s", row.id, error.message, extra={"goal": row.id})
        await asyncio.to_thread(self._works.folders.remove, row.id)
        if end.status != "cancelled":
            metrics.count(GOALS_COMPLETED if end.status == "completed" else GOALS_FAILED)
        metrics.observe(GOAL_DURATION, seconds)
        for work in self._working.values():  # one of them may have waited for this one
            work.wake()

    def words(self, row: GoalRow) -> str:
        """It is told what it is for."""
        return f"{row.id} ({row.goal_type})"

    def about(self, row: GoalRow) -> Mapping[str, Any]:
        """Its id."""
        return {"goal": row.id}
