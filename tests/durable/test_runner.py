"""Durable work that is claimed, done, interrupted and ended; with goals, and a real state file."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from durable.kept import GOAL, PATIENCE_S, Doer, Does, Doing, as_it_is, forever, until
from modelops.api.errors import Conflict
from modelops.durable.work import Ended
from modelops.store.goals import GoalQueries, GoalRow


@contextlib.asynccontextmanager
async def working(queries: GoalQueries, does: Does, **options: Any) -> AsyncIterator[Doer]:
    doer = Doer(queries, does, **options)
    await doer.start()
    try:
        yield doer
    finally:
        await doer.close()


async def at_work(doer: Doer, row_id: str = "goal", attempts: int = 1) -> Doing:
    """The work on it, as soon as it has begun for so many times."""

    async def there() -> Doing | None:
        work = doer.begun.get(row_id)
        return work if work and work.row.attempts == attempts and work.began.is_set() else None

    found: Doing = await until(there, f"work on {row_id}")
    return found


async def settled(doer: Doer) -> None:
    """Nothing is worked on any more, and all that was has been counted."""

    async def idle() -> bool:
        return not doer.running

    await until(idle, "nothing to be worked on")


# --- ends ---
@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_work_says_how_it_has_ended(queries: GoalQueries, status: Any) -> None:
    async def does(_: Doing) -> Ended:
        return Ended(status, {"best": 0.5}, "it is as it is")

    await queries.add(GOAL)
    async with working(queries, does) as doer:
        row = await as_it_is(queries, status)
        await settled(doer)
    assert (row.result, row.error) == ({"best": 0.5}, "" if status == "completed" else "it is as it is")
    assert [event.message for event in await queries.events("goal")] == [f"{status}: it is as it is"]
    assert doer.ends == [("goal", Ended(status, {"best": 0.5}, "it is as it is"))]
    assert "goal" in doer.changed


async def test_what_cannot_be_done_has_failed(queries: GoalQueries) -> None:
    async def does(_: Doing) -> Ended:
        raise Conflict("the rows are gone")

    await queries.add(GOAL)
    async with working(queries, does):
        row = await as_it_is(queries, "failed")
    assert (row.error, row.result) == ("the rows are gone", {})


async def test_a_fault_is_logged_and_not_told(queries: GoalQueries, caplog: pytest.LogCaptureFixture) -> None:
    async def does(_: Doing) -> Ended:
        raise ZeroDivisionError("secret")

    await queries.add(GOAL)
    async with working(queries, does):
        row = await as_it_is(queries, "failed")
    assert row.error == "a fault of the server ended it; the log has the reason"
    assert [each.exc_info[0] for each in caplog.records if each.exc_info] == [ZeroDivisionError]


# --- the queue ---
async def test_so_many_are_worked_on_together_the_most_urgent_first(queries: GoalQueries) -> None:
    goes_on = asyncio.Event()

    async def does(_: Doing) -> Ended:
        await goes_on.wait()
        return Ended("completed")

    for name in ("0a", "2a", "1a", "2b"):
        await queries.add(replace(GOAL, id=name, priority=int(name[0])))
    async with working(queries, does, at_once=2) as doer:
        await at_work(doer, "2b")
        assert (doer.running, doer.order) == (2, ["2a", "2b"])
        assert await queries.count("pending") == 2
        goes_on.set()
        await as_it_is(queries, "completed", "0a")
    assert doer.order == ["2a", "2b", "1a", "0a"]


async def test_nothing_is_begun_where_none_is_let(queries: GoalQueries) -> None:
    await queries.add(GOAL)
    async with working(queries, forever, at_once=0) as doer:
        doer.wake()
        assert doer.running == 0
    row = await queries.get("goal")
    assert row and (row.status, row.attempts) == ("pending", 0)


@pytest.mark.parametrize("at_once", [0, 1])
async def test_what_is_to_end_is_ended_beside_what_is_worked_on(queries: GoalQueries, at_once: int) -> None:
    async def does(work: Doing) -> Ended:
        return Ended("failed", why="too late") if work.row.target_completion else await forever(work)

    for name in ("first", "second"):
        await queries.add(replace(GOAL, id=name))
    async with working(queries, does, at_once=at_once) as doer:
        if at_once:
            await at_work(doer, "first")
        await queries.add(replace(GOAL, id="late", target_completion=time.time() + 0.2))
        doer.wake()
        row = await as_it_is(queries, "failed", "late")
        assert row.error == "too late"
        assert row.completed_at and row.target_completion and row.completed_at > row.target_completion
        assert doer.order == ["first", "late"][1 - at_once :]
        assert await queries.count("pending") == 2 - at_once


async def test_who_was_closed_begins_nothing(queries: GoalQueries) -> None:
    await queries.add(GOAL)
    await queries.add(replace(GOAL, id="claimed"))
    claimed = await queries.claim("here", time.time(), 1000.0)
    assert claimed
    doer = Doer(queries, forever)
    await doer.close()
    await doer.start()
    assert (doer.begun, len(doer._tasks)) == ({}, 0)
    assert await queries.get(claimed.id) == claimed, "it is another start's to take back"


async def test_who_is_told_of_something_new_does_not_wait(queries: GoalQueries) -> None:
    async with working(queries, forever) as doer:

        async def looked() -> bool:
            return await queries.count("active") == 0

        await until(looked, "a first look")
        await queries.add(GOAL)
        doer.wake()
        await at_work(doer)


async def test_of_something_new_only_whom_it_concerns_is_told(
    queries: GoalQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, heartbeat = Counter[str](), GoalQueries.heartbeat

    async def counted(asked: GoalQueries, row_id: str, fence: int, until: float) -> GoalRow | None:
        beats[row_id] += 1
        return await heartbeat(asked, row_id, fence, until)

    monkeypatch.setattr(GoalQueries, "heartbeat", counted)
    monkeypatch.setattr("modelops.durable.runner._HEARTBEAT_S", 3600.0)
    monkeypatch.setattr("modelops.durable.runner._LOOK_S", 3600.0)
    names = ("one", "other", "new")
    async with working(queries, forever, at_once=3) as doer:
        for name in names:  # each is claimed while those before it are worked on
            await queries.add(replace(GOAL, id=name))
            doer.wake()
            await at_work(doer, name)
        doer.look("other")

        async def looked() -> bool:
            return beats["other"] > 1

        await until(looked, "a look at the row that somebody wants something of")
        assert beats == {"one": 1, "other": 2, "new": 1}


async def test_what_waits_to_be_gone_on_with_is_ended_as_soon_as_somebody_wants_that(
    queries: GoalQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.durable.runner._LOOK_S", 3600.0)

    async def does(work: Doing) -> Ended:
        await work.asked.wait()
        return Ended("cancelled", why=work.cancel_reason or "")

    await queries.add(GOAL)
    taken = await queries.claim("there", time.time(), 1000.0)
    assert taken
    await queries.add(replace(GOAL, id="other"))
    async with working(queries, does, at_once=2, cleared=True) as doer:
        await at_work(doer, "other")
        await queries.release("goal", taken.fence)  # after the queue was looked at
        await queries.ask_cancel("goal", "typo", time.time())
        doer.look("goal")
        row = await as_it_is(queries, "cancelled")
    assert (row.error, row.attempts) == ("typo", 2)


# --- interruptions ---
async def test_what_is_interrupted_goes_back_and_is_gone_on_with(queries: GoalQueries) -> None:
    async def first(work: Doing) -> Ended:
        await queries.memorise("goal", work.row.fence, "1", {"done": True}, elapsed=2.5)
        return await forever(work)

    async def second(work: Doing) -> Ended:
        return Ended("completed", {"seen": dict(work.row.memo), "elapsed": work.row.elapsed})

    await queries.add(GOAL)
    async with working(queries, first):

        async def memorised() -> Any:
            row = await queries.get("goal")
            return row and row.memo

        await until(memorised, "a step to be done")
    row = await queries.get("goal")
    assert row and (row.status, row.lease_owner) == ("pending", "")
    async with working(queries, second):
        row = await as_it_is(queries, "completed")
    assert (row.result, row.attempts) == ({"seen": {"1": {"done": True}}, "elapsed": 2.5}, 2)


async def test_what_a_killed_predecessor_was_at_is_gone_on_with_at_once(queries: GoalQueries) -> None:
    async def does(_: Doing) -> Ended:
        return Ended("completed")

    await queries.add(replace(GOAL, id="mine"))
    await queries.add(replace(GOAL, id="theirs"))
    await queries.claim("here", time.time(), 1000.0)
    await queries.claim("there", time.time(), 1000.0)
    async with working(queries, does):
        await as_it_is(queries, "completed", "mine")
    row = await queries.get("theirs")
    assert row and (row.status, row.lease_owner) == ("active", "there")


async def test_who_has_lost_it_stops_and_writes_nothing(queries: GoalQueries) -> None:
    ended = asyncio.Event()

    async def does(work: Doing) -> Ended:
        try:
            return await forever(work)
        finally:
            ended.set()

    await queries.add(GOAL)
    async with working(queries, does) as doer:
        await at_work(doer)
        taken = await queries.claim("there", time.time() + 100.0, 1000.0)
        assert taken
        doer.look("goal")
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
        await settled(doer)
        assert doer.ends == []
    assert await queries.get("goal") == taken


async def test_a_claim_that_lapsed_while_the_machine_stood_still_is_ended_before_the_next(queries: GoalQueries) -> None:
    async def does(work: Doing) -> Ended:
        return await forever(work) if work.row.attempts == 1 else Ended("completed")

    await queries.add(GOAL)
    async with working(queries, does, at_once=2) as doer:
        work = await at_work(doer)

        async def lapsed() -> bool:
            if await queries.heartbeat("goal", work.row.fence, 0.0):  # which may be kept again before anybody looks
                doer._new.set()
                return False
            return True

        await until(lapsed, "the lapsed row to be claimed")
        row = await as_it_is(queries, "completed")
        await settled(doer)
    assert row.attempts >= 3, "the claim beside the old one was given back"
    assert [status for _, status in doer.ends] == [Ended("completed")]


# --- cancelling ---
async def test_work_that_is_not_wanted_is_cancelled(queries: GoalQueries) -> None:
    await queries.add(GOAL)
    async with working(queries, forever) as doer:
        await at_work(doer)
        await queries.ask_cancel("goal", "typo", time.time())
        doer.look("goal")
        row = await as_it_is(queries, "cancelled")
        await settled(doer)
    assert (row.error, row.result) == ("typo", {})
    assert doer.ends == [("goal", Ended("cancelled", why="typo"))]


async def test_what_must_be_done_whole_is_done_before_it_is_cancelled(queries: GoalQueries) -> None:
    goes_on = asyncio.Event()

    async def does(work: Doing) -> Ended:
        work.half_done = True
        await goes_on.wait()
        return Ended("completed", {"published": "v2"})

    await queries.add(GOAL)
    async with working(queries, does) as doer:
        work = await at_work(doer)
        await queries.ask_cancel("goal", "typo", time.time())
        doer.look("goal")
        async with asyncio.timeout(PATIENCE_S):
            await work.asked.wait()
        goes_on.set()
        row = await as_it_is(queries, "completed")
    assert row.result == {"published": "v2"}


async def test_work_that_clears_away_ends_by_itself_and_keeps_its_lease_meanwhile(queries: GoalQueries) -> None:
    goes_on = asyncio.Event()

    async def does(work: Doing) -> Ended:
        await work.asked.wait()
        await goes_on.wait()
        return Ended("cancelled", {"cleared": True}, work.cancel_reason or "")

    await queries.add(GOAL)
    async with working(queries, does, cleared=True) as doer:
        work = await at_work(doer)
        await queries.ask_cancel("goal", "typo", time.time())
        doer.look("goal")
        async with asyncio.timeout(PATIENCE_S):
            await work.asked.wait()
        before = await queries.get("goal")
        assert before

        async def kept() -> bool:
            work.look()
            row = await queries.get("goal")
            return row is not None and row.lease_until > before.lease_until

        await until(kept, "the lease to be kept")
        goes_on.set()
        row = await as_it_is(queries, "cancelled")
    assert (row.result, row.error, work.reasons) == ({"cleared": True}, "typo", ["typo"])


async def test_what_was_asked_for_while_nobody_worked_on_it_is_seen_by_the_next(queries: GoalQueries) -> None:
    async def does(work: Doing) -> Ended:
        await work.asked.wait()
        return Ended("cancelled", {"cleared": len(work.row.memo)}, work.cancel_reason or "")

    await queries.add(GOAL)
    taken = await queries.claim("here", time.time(), 1000.0)
    assert taken
    await queries.memorise("goal", taken.fence, "1", {})
    await queries.release("goal", taken.fence)
    asked = await queries.ask_cancel("goal", "typo", time.time())
    assert asked and asked.status == "pending"
    async with working(queries, does, cleared=True):
        row = await as_it_is(queries, "cancelled")
    assert (row.result, row.error) == ({"cleared": 1}, "typo")
