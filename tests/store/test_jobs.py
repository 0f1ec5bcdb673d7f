"""What learning jobs have of their own in the database."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import insert

from modelops.store.jobs import JobQueries, JobRow
from modelops.store.tables import learning_job_events
from store.durables import JOB, Queries, Store, added, claimed

pytestmark = pytest.mark.parametrize("sort", ["jobs"], indirect=True)

FULL = replace(
    JOB,
    output_model_name="smollm2:capitals",
    priority=2,
    caller="ci",
    idempotency_key="'; DROP TABLE learning_jobs; --",
    request={"dataset_path": "/data/наборы/%s?.jsonl", "parameters": {"rank": 16, "seed": None}},
    memo={"validate": {"rows": 200}},
    step="train",
    progress=0.25,
    metrics={"train_loss": 1e-9, "step": 2**40},
    result={"scores": {"exact_match": 1.0}},
    error="none",
    message="ümlaut \N{SNOWMAN}",
    paused=True,
    cancel_reason="",
    started_at=2.5,
    completed_at=3.5,
    lease_owner="one",
    lease_until=4.5,
    fence=7,
    attempts=3,
)


# --- rows ---
@pytest.mark.parametrize("row", [JOB, FULL], ids=["plain", "full"])
async def test_a_job_comes_back_as_it_was_added(queries: Queries, row: JobRow) -> None:
    assert await queries.get(row.id) is None
    assert await queries.add(row) == (replace(row, number=1), True)
    assert await queries.get(row.id) == replace(row, number=1)
    assert await queries.all() == [replace(row, number=1)]


async def test_what_its_worker_notes_of_a_job_is_there_for_the_next(queries: Queries) -> None:
    await queries.add(JOB)
    await claimed(queries)
    assert await queries.note("row", 1, step="train", paused=True)
    with pytest.raises(TypeError, match="elapsed"):
        await queries.note("row", 1, elapsed=2.0)
    paused = await queries.get("row")
    assert paused and (paused.step, paused.paused) == ("train", True)
    row = await claimed(queries, now=15.0)
    assert (row.step, row.paused) == ("train", False), "nobody has paused it yet"


@pytest.mark.parametrize("many", [500, 501, 1700])
async def test_of_progress_a_job_that_has_ended_keeps_its_curve(store: Store, queries: Queries, many: int) -> None:
    await added(queries, JOB, replace(JOB, id="other"))
    said = [("warning" if number % 2 else "progress", number) for number in range(1, 2 * many + 1)]
    written = [
        {"of": of, "number": number, "at": 1.0, "kind": kind} for of in ("row", "other") for kind, number in said
    ]
    async with (await store.engine()).begin() as connection:
        await connection.execute(insert(learning_job_events), written)
    row = await claimed(queries)
    assert len(await queries.events("row", limit=9999)) == 2 * many, "while it is worked on all are there"
    assert await queries.end("row", row.fence, "completed", 4.0, result={})
    events = await queries.events("row", limit=9999)
    assert [event.number for event in events if event.kind != "progress"] == [*range(1, 2 * many, 2), 2 * many + 1]
    kept = [event.number for event in events if event.kind == "progress"]
    assert kept[-1] == 2 * many, "the last is among them"
    assert many / 4 <= len(kept) <= 500
    assert len({after - before for before, after in pairwise(kept)}) == 1, "evenly"
    assert len(await queries.events("other", limit=9999)) == 2 * many


@pytest.mark.parametrize("ended", [True, False])
async def test_nobody_pauses_a_job_that_nobody_works_on(queries: Queries, ended: bool) -> None:
    await queries.add(JOB)
    await claimed(queries)
    await queries.note("row", 1, paused=True)
    if ended:
        assert await queries.end("row", 1, "completed", 11.0, result={})
    else:
        assert await queries.release("row", 1)
    row = await queries.get("row")
    assert row and not row.paused


async def test_all_jobs_are_listed_whether_they_have_ended_or_not(queries: Queries) -> None:
    await queries.add(JOB)
    await queries.add(replace(JOB, id="other"))
    await claimed(queries)
    assert await queries.end("row", 1, "completed", 11.0, result={})
    assert [row.id for row in await queries.all()] == ["other", "row"]


async def test_jobs_are_open_until_they_have_ended(queries: Queries) -> None:
    assert isinstance(queries, JobQueries)
    await added(queries, *(replace(JOB, id=name) for name in ("ended", "cancelled", "running", "pending")))
    for _ in range(3):
        row = await claimed(queries)
    assert await queries.end("ended", row.fence, "failed", 11.0, result={})
    await queries.ask_cancel("pending", "", 12.0)
    await queries.ask_cancel("cancelled", "it ends soon", 12.0)
    assert [(row.id, row.status) for row in await queries.open()] == [("running", "running"), ("cancelled", "running")]


@pytest.mark.parametrize("begun", [True, False])
async def test_a_pending_job_is_cancelled_at_once_begun_or_not(queries: Queries, begun: bool) -> None:
    await queries.add(JOB)
    if begun:
        await claimed(queries)
        await queries.release("row", 1)
    asked = await queries.ask_cancel("row", "typo", 12.0)
    assert asked and asked.status == "cancelled"
