"""What the tests of durable work share: a row of each kind, and a database that several open."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Table
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from modelops.store.database import open_database
from modelops.store.durable import DurableQueries, DurableRow
from modelops.store.goals import GoalQueries, GoalRow
from modelops.store.jobs import JobQueries, JobRow
from modelops.store.tables import goal_events, goals, learning_job_events, learning_jobs

JOB = JobRow("row", "lora", "smollm2", created_at=1.7e9 + 0.123456)
GOAL = GoalRow("row", "better answers", "quality", created_at=1.7e9 + 0.123456)

Queries = DurableQueries[Any]


@dataclass(frozen=True)
class Sort:
    """One kind of durable work: a row that is new, its tables, and what its status is called while it is worked on."""

    queries: type[JobQueries] | type[GoalQueries]
    new: DurableRow
    working: str
    tables: tuple[Table, Table]
    every: str | None  # what lists those that have ended as well


SORTS = {
    "jobs": Sort(JobQueries, JOB, "running", (learning_jobs, learning_job_events), None),
    "goals": Sort(GoalQueries, GOAL, "active", (goals, goal_events), "all"),
}


class Store:
    """A database that is there already; each call opens it as another process would."""

    def __init__(self, stack: AsyncExitStack, address: Path | URL, sort: Sort) -> None:
        self._stack = stack
        self.address = address
        self.sort = sort

    async def open(self, **options: Any) -> Queries:
        return self.sort.queries(await self.engine(**options))

    async def engine(self, **options: Any) -> AsyncEngine:
        at = self.address
        engine = await open_database(at) if isinstance(at, Path) else create_async_engine(at, **options)
        self._stack.push_async_callback(engine.dispose)
        return engine


async def added(queries: Queries, *rows: DurableRow) -> list[Any]:
    return [(await queries.add(row))[0] for row in rows]


async def claimed(queries: Queries, now: float = 10.0, lease_s: float = 5.0, owner: str = "one") -> Any:
    row = await queries.claim(owner, now, lease_s)
    assert row is not None
    return row
