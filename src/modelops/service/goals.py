"""Goals: created, listed, watched, cancelled. How they are pursued is `goals`'."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from modelops.api import goals
from modelops.service.call import Call, Parts


class Goals:
    """The operations on goals."""

    _parts: Parts

    async def create_goal(self, call: Call, request: goals.CreateGoalRequest) -> goals.Goal:
        """The goal, checked as far as can be, and waiting to be pursued; or how it would be."""
        found = self._parts.goals
        if request.dry_run:
            return await found.preview(request)
        return await found.create(request, caller=call.caller.name, key=call.idempotency_key)

    async def list_goals(self, _: Call, request: goals.ListGoalsRequest) -> goals.GoalList:
        """The goals, the newest first; without a status those that have not ended."""
        return goals.GoalList(goals=await self._parts.goals.list(request.status))

    async def get_goal(self, _: Call, request: goals.GetGoalRequest) -> goals.Goal:
        """One goal as it stands."""
        return await self._parts.goals.get(request.goal_id)

    async def watch_goal(self, call: Call, request: goals.WatchGoalRequest) -> AsyncGenerator[goals.GoalEvent]:
        """What has happened to the goal, and what happens until it has ended, or the time is up."""
        deadline = self._parts.deadline(call) if request.follow else 0.0
        async with contextlib.aclosing(self._parts.goals.watch(request.goal_id, request.after, deadline)) as events:
            async for event in events:
                yield event

    async def cancel_goal(self, _: Call, request: goals.CancelGoalRequest) -> goals.Goal:
        """The goal, which ends soon if it has not yet."""
        return await self._parts.goals.cancel(request.goal_id, request.reason)
