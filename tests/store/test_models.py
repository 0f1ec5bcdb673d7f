from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelops.store.database import open_database
from modelops.store.models import ModelQueries, VersionRow

ROW = VersionRow("m", 0, "llm", "/models/m.gguf", size=2**40, mtime_ns=2**62, digest="", registered_at=2.5)


@pytest.fixture
async def queries(tmp_path: Path) -> AsyncIterator[ModelQueries]:
    database = await open_database(tmp_path / "state.db")
    yield ModelQueries(database)
    await database.dispose()


async def test_each_model_counts_its_own_versions(queries: ModelQueries) -> None:
    added = [await queries.add(replace(ROW, model_name=name)) for name in ("m", "n", "m", "m", "n")]
    assert [(row.model_name, row.number) for row in added] == [("m", 1), ("n", 1), ("m", 2), ("m", 3), ("n", 2)]
    assert await queries.versions() == added


async def test_a_row_comes_back_as_it_was_written(queries: ModelQueries) -> None:
    odd = replace(ROW, model_name="'; DROP TABLE model_versions; --", file="/модели/%s?.gguf")
    await queries.add(odd)
    assert await queries.versions() == [replace(odd, number=1)]


async def test_a_digest_is_set_for_its_version_only(queries: ModelQueries) -> None:
    first, second = await queries.add(ROW), await queries.add(ROW)
    await queries.set_digest("m", 1, "sha256:abc")
    assert await queries.versions() == [replace(first, digest="sha256:abc"), second]


async def test_a_removed_version_is_gone_and_its_number_is_not_given_again(queries: ModelQueries) -> None:
    first, second = await queries.add(ROW), await queries.add(ROW)
    await queries.remove("m", second.number)
    await queries.remove("m", 99)
    assert await queries.versions() == [first]
    assert (await queries.add(ROW)).number == 3
    for number in (1, 3):
        await queries.remove("m", number)
    assert await queries.versions() == []
    assert (await queries.add(ROW)).number == 4
