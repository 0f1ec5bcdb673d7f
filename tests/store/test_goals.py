"""What goals have of their own in the database."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import insert

from modelops.store.goals import GoalRow
from modelops.store.tables import goal_events
from store.durables import GOAL, Queries, Store, added, claimed

pytestmark = pytest.mark.parametrize("sort", ["goals"], indirect=True)

FULL = replace(
    GOAL,
    title="'; DROP TABLE goals; --",
    status="active",
    priority=3,
    caller="ci",
    idempotency_key="k",
    request={"objective": {"type": "quality", "target": 0.9}, "digests": {"eval.jsonl": "sha256:a"}, "warnings": []},
    memo={"1": {"action": "baseline", "result": {"scores": {"exact_match": 0.0}}}},
    progress=0.25,
    metrics={"probes": 2**40},
    result={"reached": None},
    error="none",
    message="ümlaut \N{SNOWMAN}",
    cancel_reason="",
    target_completion=1e10,
    elapsed=12.25,
    started_at=2.5,
    completed_at=3.5,
    lease_owner="one",
    lease_until=4.5,
    fence=7,
    attempts=3,
)


@pytest.mark.parametrize("row", [GOAL, FULL], ids=["plain", "full"])
async def test_a_goal_comes_back_as_it_was_added(queries: Queries, row: GoalRow) -> None:
    assert await queries.get(row.id) is None
    assert await queries.add(row) == (replace(row, number=1), True)
    assert await queries.get(row.id) == replace(row, number=1)
    assert await queries.all() == [replace(row, number=1)]


async def test_goals_that_have_ended_are_listed_when_they_are_asked_for(queries: Queries) -> None:
    await added(queries, *(replace(GOAL, id=name) for name in ("one", "two", "three", "four")))
    for status in ("completed", "failed"):
        row = await claimed(queries)
        await queries.end(row.id, row.fence, status, 11.0, result={})
    await claimed(queries)
    assert [(row.id, row.status) for row in await queries.all()] == [("four", "pending"), ("three", "active")]
    assert [row.id for row in await queries.all("all")] == ["four", "three", "two", "one"]
    assert [row.id for row in await queries.all("all", limit=3)] == ["four", "three", "two"]
    assert [row.id for row in await queries.all("completed")] == ["one"]
    assert await queries.unfinished() == {"three", "four"}


async def test_how_long_a_goal_was_active_is_noted_with_its_steps(queries: Queries) -> None:
    await queries.add(GOAL)
    await claimed(queries)
    assert await queries.note("row", 1, elapsed=2.5)
    assert await queries.memorise("row", 1, "1", {"action": "baseline"}, elapsed=3.5)
    with pytest.raises(TypeError, match="paused"):
        await queries.note("row", 1, paused=True)
    assert await queries.release("row", 1)
    row = await claimed(queries, now=100.0)
    assert (row.elapsed, row.memo) == (3.5, {"1": {"action": "baseline"}})


async def test_a_goal_that_was_begun_is_cancelled_by_its_worker_alone(queries: Queries) -> None:
    await queries.add(GOAL)
    await claimed(queries)
    await queries.release("row", 1)
    asked = await queries.ask_cancel("row", "typo", 12.0)
    assert asked and (asked.status, asked.cancel_reason, asked.completed_at) == ("pending", "typo", None)
    assert await queries.events("row") == []
    await queries.add(replace(GOAL, id="urgent", priority=3))
    row = await claimed(queries, now=13.0)
    assert (row.id, row.cancel_reason) == ("row", "typo")
    assert await queries.end("row", row.fence, "cancelled", 14.0, result={"cleared": 1}, error="typo")
    (told,) = await queries.events("row")
    assert told.message == "cancelled: typo"


async def test_a_goal_that_was_begun_goes_on_before_more_urgent_ones_which_may_wait_for_it(queries: Queries) -> None:
    await queries.add(replace(GOAL, id="begun"))
    row = await claimed(queries)
    await queries.release(row.id, row.fence)
    await queries.add(replace(GOAL, id="urgent", priority=3))
    assert [(await claimed(queries)).id for _ in range(2)] == ["begun", "urgent"]


async def test_a_goal_whose_time_is_past_is_claimed_to_be_ended_where_no_other_is(queries: Queries) -> None:
    late, wanted = {"target_completion": 20.0}, {"priority": 3}
    await added(queries, GOAL, replace(GOAL, id="late", **late), replace(GOAL, id="wanted", **wanted))  # type: ignore[arg-type]
    assert await queries.claim("here", 20.0, 30.0, to_end=True) is None
    claimed = await queries.claim("here", 20.1, 30.0, to_end=True)
    assert claimed and (claimed.id, claimed.status) == ("late", "active")
    assert await queries.claim("here", 20.2, 30.0, to_end=True) is None, "it has a lease"
    await queries.release("late", claimed.fence)
    await queries.ask_cancel("late", "typo", 20.3)
    order = [await queries.claim("here", 20.4, 30.0) for _ in range(3)]
    assert [row.id for row in order if row] == ["late", "wanted", "row"]


async def test_of_its_events_the_newest_are_kept_and_their_numbers_go_on(store: Store, queries: Queries) -> None:
    await added(queries, GOAL, replace(GOAL, id="other"))
    await queries.tell("other", 1.0, "log")
    written = [{"of": "row", "number": number, "at": 1.0, "kind": "log"} for number in range(1, 1000)]
    async with (await store.engine()).begin() as connection:
        await connection.execute(insert(goal_events), written)
    assert await queries.tell("row", 2.0, "log", message="the thousandth") == 1000
    assert [event.number for event in await queries.events("row", limit=2)] == [1, 2]
    assert [await queries.tell("row", 3.0, "log") for _ in range(3)] == [1001, 1002, 1003]
    events = await queries.events("row", limit=2000)
    assert [event.number for event in events] == list(range(4, 1004))
    assert await queries.events("row", after=2, limit=2000) == events
    assert [event.number for event in await queries.events("row", after=1001)] == [1002, 1003]
    await claimed(queries)
    assert await queries.end("row", 1, "completed", 4.0, result={})
    (last,) = await queries.events("row", after=1003)
    assert (last.number, last.message) == (1004, "completed")
    assert len(await queries.events("row", limit=2000)) == 1000
    assert len(await queries.events("other")) == 1
