"""`store` is a database, of both kinds, with the tables of `sort`, which is one kind of durable work after the other;
`queries` are those on them, and `new` is a row."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL, delete

from modelops.store.durable import DurableRow
from modelops.store.tables import metadata
from postgres import postgres
from store.durables import SORTS, Queries, Sort, Store


@pytest.fixture(scope="session")
def server() -> Iterator[URL]:
    with postgres() as address:
        yield address


@pytest.fixture(params=list(SORTS))
def sort(request: pytest.FixtureRequest) -> Sort:
    return SORTS[request.param]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.program("postgres"))])
async def store(request: pytest.FixtureRequest, tmp_path: Path, sort: Sort) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            store = Store(stack, tmp_path / "state.db", sort)
            await store.engine()
        else:
            store = Store(stack, request.getfixturevalue("server"), sort)
            async with (await store.engine()).begin() as connection:
                await connection.run_sync(metadata.create_all)
                for table in sort.tables:
                    await connection.execute(delete(table))
        yield store


@pytest.fixture
async def queries(store: Store) -> Queries:
    return await store.open()


@pytest.fixture
def new(sort: Sort) -> DurableRow:
    return sort.new
