"""Whoever is cancelled while the state file is written leaves no lock on it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from modelops.store.database import open_database
from modelops.store.goals import GoalQueries, GoalRow
from modelops.tasks import Tasks


async def test_a_write_that_is_cancelled_anywhere_is_done_and_holds_nobody_up(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "state.db")
    goals, tasks = GoalQueries(database), Tasks("test")
    try:
        await goals.add(GoalRow("goal", created_at=1.0, title="a goal", goal_type="quality"))
        row = await goals.claim("one", 1.0, 1e9)
        assert row
        for steps in range(60):
            writing = [tasks.start(f"{n}", goals.memorise("goal", row.fence, f"{n}", {"n": n})) for n in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in writing:
                task.cancel()
            await asyncio.wait(writing)
            began = time.monotonic()
            assert await goals.note("goal", row.fence, elapsed=float(steps))
            assert time.monotonic() - began < 3, "it waits for a lock that nobody gives back"
        found = await goals.get("goal")
        assert found
        assert {*found.memo} == {"0", "1", "2"}
    finally:
        await database.dispose()
