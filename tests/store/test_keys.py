"""Keys in the state file, and how a change by another process is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from modelops.access import Key
from modelops.store.database import open_database
from modelops.store.keys import KeyQueries

FULL = Key("0123abcd", "ci", "d" * 64, frozenset({"infer", "models"}), "high", "3/second", "9/minute", 1.0, 2.0, None)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = await open_database(tmp_path / "state.db")
    yield engine
    await engine.dispose()


async def test_a_key_comes_back_as_it_was_kept(database: AsyncEngine) -> None:
    queries = KeyQueries(database)
    plain = Key("0123abce", "other", "", frozenset(), created_at=0.5)
    await queries.add(FULL)
    await queries.add(plain)
    assert await queries.all() == [plain, FULL]


async def test_revoking_keeps_the_row_and_is_done_once(database: AsyncEngine) -> None:
    queries = KeyQueries(database)
    await queries.add(FULL)
    assert await queries.revoke("nobody", 5.0) == 0
    assert await queries.revoke("ci", 5.0) == 1
    assert await queries.revoke("ci", 6.0) == 0
    (kept,) = await queries.all()
    assert kept.revoked_at == 5.0


async def test_of_all_that_make_a_key_of_one_name_at_once_one_makes_it(database: AsyncEngine, tmp_path: Path) -> None:
    others = [await open_database(tmp_path / "state.db") for _ in range(8)]
    made = await asyncio.gather(
        *(KeyQueries(other).add(replace(FULL, id=f"{number:08x}")) for number, other in enumerate(others))
    )
    for other in others:
        await other.dispose()
    queries = KeyQueries(database)
    assert sorted(made) == [False] * 7 + [True]
    assert len(await queries.all()) == 1
    # A revoked one is in nobody's way.
    await queries.revoke("ci", 5.0)
    assert await queries.add(replace(FULL, id="00000009"))
    assert len(await queries.all()) == 2


async def test_what_others_write_is_noticed(database: AsyncEngine, tmp_path: Path) -> None:
    queries = KeyQueries(database)
    assert await queries.changed()
    assert not await queries.changed()
    other = await open_database(tmp_path / "state.db")
    await KeyQueries(other).add(FULL)
    await other.dispose()
    assert await queries.changed()
    assert not await queries.changed()
    await queries.close()


async def test_after_a_failure_another_connection_is_opened_and_anything_may_have_changed(
    database: AsyncEngine,
) -> None:
    opened: list[Any] = []
    event.listen(database.sync_engine, "connect", lambda connection, _: opened.append(connection.driver_connection))
    await database.dispose()  # the connection that looks is opened under our eyes
    queries = KeyQueries(database)
    assert await queries.changed()
    await opened[-1].close()
    with pytest.raises(Exception, match=r"no active connection|closed"):
        await queries.changed()
    assert await queries.changed()
    assert not await queries.changed()
    assert len(opened) == 2
    await queries.close()
