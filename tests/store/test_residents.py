from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelops.store.database import open_database
from modelops.store.residents import ModelRow, ResidentQueries


@pytest.fixture
async def queries(tmp_path: Path) -> AsyncIterator[ResidentQueries]:
    database = await open_database(tmp_path / "state.db")
    yield ResidentQueries(database)
    await database.dispose()


async def test_what_answers_and_what_is_wanted_are_written_apart(queries: ResidentQueries) -> None:
    await queries.set_active("m", 1, 0)
    assert await queries.all() == [ModelRow("m", active=1)]
    await queries.set_wanted("m", wanted=True, wish='{"slots": 2}', at=2.5)
    assert await queries.all() == [ModelRow("m", 1, 0, True, '{"slots": 2}', 2.5)]
    await queries.set_active("m", 2, 1)
    assert await queries.all() == [ModelRow("m", 2, 1, True, '{"slots": 2}', 2.5)]
    await queries.set_wanted("m", wanted=False, wish="{}", at=3.5)
    assert await queries.all() == [ModelRow("m", 2, 1, False, "{}", 3.5)]


async def test_the_model_that_changed_last_is_the_last(queries: ResidentQueries) -> None:
    for at, name in enumerate(("c", "a", "b", "c")):
        await queries.set_wanted(name, wanted=True, wish="{}", at=at)
    assert [row.model_name for row in await queries.all()] == ["a", "b", "c"]


async def test_a_model_is_forgotten(queries: ResidentQueries) -> None:
    for name in ("a", "b"):
        await queries.set_active(name, 1, 0)
    await queries.remove("a")
    await queries.remove("nobody")
    assert await queries.all() == [ModelRow("b", active=1)]


async def test_writes_are_done_in_the_order_in_which_they_are_asked_for(queries: ResidentQueries) -> None:
    writes = [queries.set_wanted("m", wanted=bool(at % 2), wish="{}", at=at) for at in range(40)]
    await asyncio.gather(*writes)
    assert await queries.all() == [ModelRow("m", wanted=True, changed_at=39.0)]


async def test_how_it_was_tuned_is_kept_beside_the_rest_and_goes_with_it(queries: ResidentQueries) -> None:
    await queries.set_wanted("m", wanted=True, wish='{"slots": 2}', at=2.5)
    await queries.set_tuned("m", '{"slots": 3}')
    assert await queries.all() == [ModelRow("m", 0, 0, True, '{"slots": 2}', 2.5, '{"slots": 3}')]
    await queries.remove("m")
    await queries.set_active("m", 1, 0)
    assert await queries.all() == [ModelRow("m", active=1)]
