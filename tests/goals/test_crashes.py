"""Whenever a coordinator ends, each action of a goal is done once, and the goal goes on where it was.

A crash is played by stopping everything at one point, before or after a write or an action: what is in the state file
and in the world then is all that the next coordinator has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from goals.pursued import OWNER, CountingDoer, World, registered, request
from modelops.api.goals import Goal
from modelops.durable.bell import Bell
from modelops.durable.work import Ended
from modelops.goals.folders import Folders
from modelops.goals.goals import Goals
from modelops.goals.telling import told
from modelops.goals.turning import Changing, Turning
from modelops.goals.work import Work, Works
from modelops.metrics import Metrics
from modelops.settings import Settings
from modelops.store.database import open_database
from modelops.store.goals import GoalQueries

SCRIPT = ("look", "heavy train", "heavy train", "promote")


class Crash:
    """Stops whoever comes to the point `at`, and all that `main` does."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0
        self.main: asyncio.Task[Any] | None = None

    async def point(self) -> None:
        self.passed += 1
        if self.passed >= self.at and self.main:
            self.main.cancel()
            await asyncio.Event().wait()


class CutQueries(GoalQueries):
    """Queries between which a crash may come, and after which."""

    def __init__(self, database: AsyncEngine, crash: Crash) -> None:
        super().__init__(database)
        self._crash = crash

    async def note(self, *given: Any, **noted: Any) -> bool:
        await self._crash.point()
        written = await super().note(*given, **noted)
        await self._crash.point()
        return written

    async def memorise(self, *given: Any, **noted: Any) -> bool:
        await self._crash.point()
        written = await super().memorise(*given, **noted)
        await self._crash.point()
        return written

    async def tell(self, *given: Any, **said: Any) -> int:
        await self._crash.point()
        written = await super().tell(*given, **said)
        await self._crash.point()
        return written


class Crashing:
    """One state file, and one world, that coordinators come to one after the other."""

    def __init__(self, folder: Path, database: AsyncEngine) -> None:
        self.world = World()
        self.database = database
        self.folders = Folders(folder / "goals")
        self._settings = Settings(data_dir=folder)
        self._queries = GoalQueries(database)
        self._crash = Crash(1_000_000)

    def _goals(self, doer: CountingDoer) -> Goals:
        class Idle:
            running = 0

            def wake(self) -> None:
                pass

            def look(self, goal_id: str) -> None:
                pass

        doers = {"quality": doer}
        return Goals(self._settings, self._queries, doers, self.folders, Metrics(), Bell(), Idle())  # type: ignore[arg-type] # by the types that are tried

    async def create(self) -> str:
        """A new goal."""
        made = await self._goals(CountingDoer(self.world, SCRIPT)).create(request(rows=True), caller="", key=None)
        return made.goal_id

    async def cancel(self, goal_id: str) -> None:
        """Somebody wants it to end."""
        await self._queries.ask_cancel(goal_id, "no more", 1.0)

    async def run(self, at: int = 1_000_000) -> int:
        """A coordinator that goes on with the goal until the point `at`, or its end; how many points it has passed."""
        crash = Crash(at)
        doer = CountingDoer(self.world, SCRIPT, point=crash.point)
        queries = CutQueries(self.database, crash)
        await self._queries.requeue(OWNER)
        row = await self._queries.claim(OWNER, 1.0, 60.0)
        assert row
        works = Works(
            queries, {"quality": doer}, self.folders, registered, Turning(), Changing(), Metrics(), lambda _: None,
            way=lambda _: doer,
        )  # fmt: skip
        work = Work(works, row)
        crash.main = asyncio.current_task()
        ended = await _stopped(work, crash)
        if ended:
            await self._queries.end(row.id, row.fence, ended.status, 2.0, result=ended.result, error=ended.error)
        return crash.passed

    async def goal(self, goal_id: str) -> Goal:
        """The goal as it stands."""
        row = await self._queries.get(goal_id)
        assert row
        return told(row)


async def _stopped(work: Work, crash: Crash) -> Ended | None:
    """How the work ended; None: it was stopped before."""
    async with asyncio.TaskGroup() as group:
        crash.main = group.create_task(work.run())
    return None if crash.main.cancelled() else crash.main.result()


def check(goal: Goal, world: World, crashes: int) -> None:
    """All was done, each thing once, under one number, and nothing else."""
    assert (goal.status, goal.attempts) == ("completed", crashes + 1)
    assert world.of(goal.goal_id) == list(SCRIPT)
    assert world.doubled == []
    assert [(step.number, step.action) for step in goal.steps] == list(enumerate(SCRIPT, 1))
    assert all(step.completed_at and not step.error_message for step in goal.steps)
    asked = [number for _, number, _ in world.asked]
    assert asked == sorted(asked), "no step is gone back to"
    assert len(asked) <= len(SCRIPT) + crashes, "each crash repeats one at most"


async def test_a_crash_at_any_point_repeats_nothing_and_leaves_nothing_out(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "state.db")
    try:
        crashing = Crashing(tmp_path, database)
        await crashing.create()
        points = await crashing.run()
        assert points > 5 * len(SCRIPT)
        for at in range(1, points + 1):
            crashing.world = World()
            goal_id = await crashing.create()
            await crashing.run(at)
            if (await crashing.goal(goal_id)).status != "completed":
                await crashing.run()
            goal = await crashing.goal(goal_id)
            check(goal, crashing.world, goal.attempts - 1)
            assert goal.attempts == 2, f"nothing was stopped at {at}"
    finally:
        await database.dispose()


@pytest.mark.parametrize("between", [True, False])
async def test_a_goal_that_is_cancelled_after_a_crash_clears_away_once(tmp_path: Path, *, between: bool) -> None:
    database = await open_database(tmp_path / "state.db")
    try:
        crashing = Crashing(tmp_path, database)
        await crashing.create()
        points = await crashing.run()
        for at in range(2 if between else 3, points + 1, 4):
            crashing.world = world = World()
            goal_id = await crashing.create()
            await crashing.run(at)
            await crashing.cancel(goal_id)
            if not between:
                await crashing.run(at)
            if not (await crashing.goal(goal_id)).completed_at:
                await crashing.run()
            goal = await crashing.goal(goal_id)
            assert (goal.status, goal.error_message) == ("cancelled", "no more")
            assert [step.action for step in goal.steps].count("clear") == 1
            assert goal.steps[-1].action == "clear"
            assert goal.steps[-1].completed_at
            assert world.doubled == []
            assert world.of(goal_id)[-1] == "clear"
            assert list(world.effects.values()).count("clear") == 1
    finally:
        await database.dispose()


@settings(max_examples=12)
@given(crashes=st.lists(st.integers(1, 30), min_size=2, max_size=6))
def test_however_often_it_crashes(tmp_path_factory: pytest.TempPathFactory, crashes: Sequence[int]) -> None:
    async def crashed() -> None:
        folder = tmp_path_factory.mktemp("crashes")
        database = await open_database(folder / "state.db")
        try:
            crashing = Crashing(folder, database)
            goal_id = await crashing.create()
            for at in crashes:
                if not (await crashing.goal(goal_id)).completed_at:
                    await crashing.run(at)
            if not (await crashing.goal(goal_id)).completed_at:
                await crashing.run()
            goal = await crashing.goal(goal_id)
            check(goal, crashing.world, goal.attempts - 1)
        finally:
            await database.dispose()

    asyncio.run(crashed())
