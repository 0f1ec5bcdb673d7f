"""What is told of a job while it is worked on: what stays with it, and what only happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelops.durable.work import Lost
from modelops.learning.child import Said
from modelops.learning.telling import Telling, warnings
from modelops.metrics import Metrics
from modelops.store.database import open_database
from modelops.store.jobs import JobQueries, JobRow

STEPS = ("validate", "prepare", "train")
NEW = JobRow("job", "lora", "m", created_at=1.0, request={"warnings": ["no held-out rows"]})


@pytest.fixture
async def queries(tmp_path: Path) -> AsyncIterator[JobQueries]:
    database = await open_database(tmp_path / "state.db", Metrics(enabled=False))
    try:
        yield JobQueries(database)
    finally:
        await database.dispose()


def telling(queries: JobQueries, row: JobRow) -> Telling:
    return Telling(queries, row, STEPS, lambda _: None)


async def claimed(queries: JobQueries, now: float = 10.0) -> JobRow:
    row = await queries.claim("one", now, 5.0)
    assert row
    return row


async def heard(told: Telling, *said: Said) -> None:
    async with told.listening():
        for each in said:
            told.hear(each)


async def test_what_the_trainer_warns_of_stays_with_the_job_once(queries: JobQueries) -> None:
    await queries.add(NEW)
    told = telling(queries, await claimed(queries))
    await told.begin("prepare")
    await heard(told, Said("warning", "5 rows are left out"), Said("log", "on it"), Said("warning", "no template"))
    await told.done({"rows": 3})
    again = telling(queries, await claimed(queries, now=20.0))  # it was killed, and the step is done again
    await again.begin("train")
    await heard(again, Said("warning", "no template"), Said("warning", "the loss has not fallen"))
    row = await queries.get("job")
    assert row
    assert warnings(row) == ["no held-out rows", "5 rows are left out", "no template", "the loss has not fallen"]
    assert row.memo["prepare"] == {"rows": 3}, "what a step has made is kept beside it"
    events = [event.message for event in await queries.events("job") if event.kind == "warning"]
    assert events == ["5 rows are left out", "no template", "no template", "the loss has not fallen"]


async def test_who_lost_the_job_warns_of_nothing(queries: JobQueries) -> None:
    await queries.add(NEW)
    told = telling(queries, await claimed(queries))
    await claimed(queries, now=20.0)
    with pytest.raises(Lost):
        await heard(told, Said("warning", "5 rows are left out"))
    row = await queries.get("job")
    assert row
    assert warnings(row) == ["no held-out rows"]


async def test_progress_does_not_fall_from_one_part_of_a_step_to_the_next(queries: JobQueries) -> None:
    async def progress() -> float:
        row = await queries.get("job")
        assert row
        return row.progress

    await queries.add(NEW)
    told, seen = telling(queries, await claimed(queries)), [0.0]
    for step in STEPS:
        await told.begin(step)
        for part in range(3):
            told.part(part, 3)
            for done in range(3):
                await heard(told, Said("progress", "rows", done, 2))
                seen.append(await progress())
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert seen[-3] == pytest.approx((1 + 2 + 80 * 2 / 3) / 83, abs=1e-4), (
        "two of the three parts of what takes longest"
    )
