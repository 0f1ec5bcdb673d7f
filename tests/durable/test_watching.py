"""What is told to whoever watches durable work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from durable.kept import GOAL, PATIENCE_S
from modelops.api.errors import NotFound, Overloaded
from modelops.api.goals import GoalEvent
from modelops.api.learning import JobEvent
from modelops.durable.bell import Bell
from modelops.durable.watching import told, watch
from modelops.store.goals import EventRow, GoalQueries, GoalRow

Told = tuple[EventRow, GoalRow | None]


@contextlib.asynccontextmanager
async def watched(
    queries: GoalQueries, bell: Bell, after: int = 0, seconds: float = PATIENCE_S
) -> AsyncIterator[AsyncIterator[Told]]:
    async def look(row_id: str) -> GoalRow:
        row = await queries.get(row_id)
        if row is None:
            raise NotFound("there is none")
        return row

    deadline = asyncio.get_running_loop().time() + seconds
    async with contextlib.aclosing(watch(queries, bell, "goal", after, deadline, look)) as events:
        yield events


async def all_of(queries: GoalQueries, bell: Bell, after: int = 0, seconds: float = PATIENCE_S) -> list[Told]:
    async with watched(queries, bell, after, seconds) as events:
        return [told async for told in events]


async def ended(queries: GoalQueries, logs: int = 2) -> None:
    """A goal that has ended, of which so much was told before."""
    await queries.add(GOAL)
    row = await queries.claim("here", 10.0, 5.0)
    assert row
    for number in range(logs):
        await queries.tell("goal", 11.0, "log", message=f"{number}")
    await queries.end("goal", row.fence, "completed", 12.0, result={"a": 1})


async def test_what_has_happened_is_told_with_the_row_at_the_end(queries: GoalQueries) -> None:
    await ended(queries)
    told = await all_of(queries, Bell())
    assert [event.number for event, _ in told] == [1, 2, 3]
    assert [row and (row.status, row.result) for _, row in told] == [None, None, ("completed", {"a": 1})]


@pytest.mark.parametrize(("after", "numbers"), [(1, [2, 3]), (2, [3]), (3, [3])])
async def test_what_was_seen_is_not_told_again_but_the_end_is(
    queries: GoalQueries, after: int, numbers: list[int]
) -> None:
    await ended(queries)
    told = await all_of(queries, Bell(), after)
    assert [event.number for event, _ in told] == numbers
    assert [row is not None for _, row in told] == [False] * (len(numbers) - 1) + [True]


@pytest.mark.parametrize("logs", [8, 9, 10, 21])
async def test_more_than_is_read_at_once_is_told_in_order(
    queries: GoalQueries, monkeypatch: pytest.MonkeyPatch, logs: int
) -> None:
    monkeypatch.setattr("modelops.durable.watching._AT_ONCE", 10)
    await ended(queries, logs)
    told = await all_of(queries, Bell())
    assert {event.number for event, _ in told} == set(range(1, logs + 2))
    assert [event.number for event, _ in told] == sorted(event.number for event, _ in told)
    assert [row is not None for _, row in told] == [False] * (len(told) - 1) + [True]


async def test_who_watches_is_told_as_soon_as_it_rings(queries: GoalQueries) -> None:
    bell = Bell()
    await queries.add(GOAL)
    async with watched(queries, bell) as events:
        for number in (1, 2, 3):
            telling = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            await queries.tell("goal", 1.0, "log", message=f"{number}")
            bell.ring("goal")
            event, row = await asyncio.wait_for(telling, PATIENCE_S)
            assert (event.number, row) == (number, None)
        await queries.ask_cancel("goal", "typo", 2.0)
        bell.ring("goal")
        event, row = await anext(events)
        assert event.message == "cancelled: typo"
        assert row and row.status == "cancelled"
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_at_the_deadline_it_is_told_how_it_stands(queries: GoalQueries) -> None:
    await queries.add(GOAL)
    await queries.tell("goal", 1.0, "log")
    (first, none), (last, row) = await all_of(queries, Bell(), seconds=0.0)
    assert (first.number, none) == (1, None)
    assert (last.number, last.kind) == (1, "state")
    assert row and row.status == "pending"


async def test_who_watches_is_let_go_when_nobody_is_told_any_more(queries: GoalQueries) -> None:
    bell = Bell()
    await queries.add(GOAL)
    await queries.tell("goal", 1.0, "log")
    async with watched(queries, bell) as events:
        await anext(events)
        telling = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        bell.close()
        event, row = await asyncio.wait_for(telling, PATIENCE_S)
        assert (event.number, event.kind) == (1, "state")
        assert row and row.status == "pending"
    with pytest.raises(Overloaded):
        await all_of(queries, bell)


async def test_what_is_not_there_cannot_be_watched(queries: GoalQueries) -> None:
    with pytest.raises(NotFound):
        await all_of(queries, Bell())


def test_an_event_is_told_as_one_of_its_kind_and_the_last_has_more() -> None:
    row = EventRow("goal", 7, 1.7e9 + 0.125, "step", step="train", message="it is next", metrics={"loss": 0.5})
    for kind in (GoalEvent, JobEvent):
        event = told(row, kind)
        assert event == kind(
            number=7,
            at=datetime(2023, 11, 14, 22, 13, 20, 125_000, UTC),
            kind="step",
            step="train",
            message="it is next",
            metrics={"loss": 0.5},
        )
        assert told(row, kind, done=True) == event.model_copy(update={"done": True})
