"""What the tests of learning jobs share: a job, and a database that several open."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from modelops.store.database import open_database
from modelops.store.jobs import JobQueries, JobRow

JOB = JobRow("job", "lora", "smollm2", created_at=1.7e9 + 0.123456)


class Store:
    """A database that is there already; each call opens it as another process would."""

    def __init__(self, stack: AsyncExitStack, address: Path | URL) -> None:
        self._stack = stack
        self.address = address

    async def open(self, **options: Any) -> JobQueries:
        return JobQueries(await self.engine(**options))

    async def engine(self, **options: Any) -> AsyncEngine:
        at = self.address
        engine = await open_database(at) if isinstance(at, Path) else create_async_engine(at, **options)
        self._stack.push_async_callback(engine.dispose)
        return engine


async def added(jobs: JobQueries, *rows: JobRow) -> list[JobRow]:
    return [(await jobs.add(row))[0] for row in rows]


async def claimed(jobs: JobQueries, now: float = 10.0, lease_s: float = 5.0, owner: str = "one") -> JobRow:
    row = await jobs.claim(owner, now, lease_s)
    assert row is not None
    return row
