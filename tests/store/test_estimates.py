from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelops.store.database import open_database
from modelops.store.estimates import EstimateQueries, EstimateRow

ROW = EstimateRow("sha", "one", "cpu", computed=2**40, projected=2**41, projection="{}", measured=0, at=1.0)


@pytest.fixture
async def queries(tmp_path: Path) -> AsyncIterator[EstimateQueries]:
    database = await open_database(tmp_path / "state.db")
    yield EstimateQueries(database)
    await database.dispose()


async def test_a_row_comes_back_as_it_was_written_and_is_replaced_by_the_next(queries: EstimateQueries) -> None:
    await queries.put(ROW)
    assert await queries.of("sha", "cpu") == [ROW]
    measured = replace(ROW, measured=2**39, at=2.0)
    await queries.put(measured)
    assert await queries.of("sha", "cpu") == [measured]


async def test_each_file_and_kind_of_device_has_its_own_the_latest_first(queries: EstimateQueries) -> None:
    later = replace(ROW, settings="two", at=3.0)
    others = [replace(ROW, header="other"), replace(ROW, device="gpu")]
    for row in (ROW, later, *others):
        await queries.put(row)
    assert await queries.of("sha", "cpu") == [later, ROW]
    assert await queries.of("other", "cpu") == [others[0]]
    assert await queries.of("sha", "gpu") == [others[1]]
    assert await queries.of("nothing", "cpu") == []


async def test_the_least_that_a_driver_keeps_is_of_models_of_no_special_kind(queries: EstimateQueries) -> None:
    assert await queries.least_driver("gpu") == 0
    row = replace(ROW, device="gpu", driver=600)
    for other in (
        replace(row, settings="a"),
        replace(row, settings="b", driver=700),
        replace(row, settings="c", driver=500, more_driver=90),
        replace(row, settings="d", driver=400, projected=0),
        replace(row, settings="e", driver=0),
        replace(ROW, settings="f", driver=300),
    ):
        await queries.put(other)
    assert await queries.least_driver("gpu") == 600
