"""`store` is a database with the tables of learning jobs, of both kinds, and `jobs` are the queries on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL, delete

from modelops.store.jobs import JobQueries
from modelops.store.tables import learning_job_events, learning_jobs, metadata
from postgres import postgres
from store.jobs import Store


@pytest.fixture(scope="session")
def server() -> Iterator[URL]:
    with postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.program("postgres"))])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            store = Store(stack, tmp_path / "state.db")
            await store.engine()
        else:
            store = Store(stack, request.getfixturevalue("server"))
            async with (await store.engine()).begin() as connection:
                await connection.run_sync(metadata.create_all)
                for table in (learning_jobs, learning_job_events):
                    await connection.execute(delete(table))
        yield store


@pytest.fixture
async def jobs(store: Store) -> JobQueries:
    return await store.open()
