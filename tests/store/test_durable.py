"""Durable work in the database: every test of each kind, and on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError

from modelops.store.durable import DurableRow, EventRow
from store.durables import Queries, Sort, Store, added, claimed


# --- rows ---
async def test_rows_are_listed_from_the_newest_on(queries: Queries, new: DurableRow, sort: Sort) -> None:
    rows = await added(queries, *(replace(new, id=f"{number}", priority=number % 3) for number in range(5)))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert await queries.all() == rows[::-1]
    assert await queries.all(limit=2) == [rows[4], rows[3]]
    taken = await claimed(queries)
    assert await queries.all(sort.working) == [taken]
    assert [row.id for row in await queries.all("pending")] == ["4", "3", "1", "0"]
    assert [await queries.count(status) for status in ("pending", sort.working, "failed")] == [4, 1, 0]


async def test_an_id_is_not_taken_twice(queries: Queries, new: DurableRow) -> None:
    await queries.add(new)
    with pytest.raises(IntegrityError):
        await queries.add(replace(new, caller="other"))
    assert [row.number for row in await added(queries, replace(new, id="next"))] == [2]


async def test_what_no_database_takes_is_replaced(queries: Queries, new: DurableRow) -> None:
    await queries.add(replace(new, message="a\0b\ud800c", metrics={"a\0b": "\0"}))
    row = await claimed(queries)
    assert (row.message, row.metrics) == ("a\N{REPLACEMENT CHARACTER}b?c", {"a\0b": "\0"})
    assert await queries.tell("row", 1.0, "log", message="\0")
    assert await queries.end("row", row.fence, "failed", 2.0, result={}, error="\0")


# --- idempotency ---
async def test_a_key_is_its_callers_own(queries: Queries, new: DurableRow) -> None:
    first = replace(new, caller="ci", idempotency_key="k")
    (made,) = await added(queries, first)
    again = replace(first, id="again", message="other")
    assert await queries.add(again) == (made, False)
    assert (await queries.add(replace(again, caller="other")))[1]
    assert (await queries.add(replace(first, id="third", idempotency_key="l")))[1]
    for name in ("no key", "none either"):
        assert (await queries.add(replace(first, id=name, idempotency_key=None)))[1]
    assert [row.number for row in await queries.all()] == [5, 4, 3, 2, 1]


async def test_a_key_gives_the_row_as_it_is_by_then(queries: Queries, new: DurableRow) -> None:
    await queries.add(replace(new, idempotency_key="k"))
    row = await claimed(queries)
    await queries.end("row", row.fence, "completed", 11.0, result={"a": 1})
    known, made = await queries.add(replace(new, id="again", idempotency_key="k"))
    assert (known.id, known.status, known.result, made) == ("row", "completed", {"a": 1}, False)


# --- claims ---
async def test_the_highest_priority_goes_first_and_then_the_oldest(queries: Queries, new: DurableRow) -> None:
    await added(queries, *(replace(new, id=name, priority=int(name[0])) for name in ("1a", "2a", "1b", "3a", "2b")))
    assert [(await claimed(queries)).id for _ in range(5)] == ["3a", "2a", "2b", "1a", "1b"]
    assert await queries.claim("one", 10.0, 5.0) is None


async def test_a_claim_is_a_lease(queries: Queries, new: DurableRow, sort: Sort) -> None:
    await queries.add(new)
    first = await claimed(queries, now=10.0, lease_s=5.0)
    running = replace(new, number=1, status=sort.working, started_at=10.0)
    assert first == replace(running, fence=1, attempts=1, lease_owner="one", lease_until=15.0)
    assert await queries.claim("two", 14.9, 5.0) is None
    assert await queries.heartbeat("row", 1, 20.0) == replace(first, lease_until=20.0)
    assert await queries.claim("two", 19.9, 5.0) is None
    await queries.note("row", 1, progress=0.5)
    second = await claimed(queries, now=20.0, owner="two")
    assert second == replace(first, fence=2, attempts=2, progress=0.5, lease_owner="two", lease_until=25.0)


async def test_who_lost_the_row_changes_nothing(queries: Queries, new: DurableRow) -> None:
    await queries.add(new)
    await claimed(queries)
    held = await claimed(queries, now=15.0, owner="two")
    assert await queries.heartbeat("row", 1, 99.0) is None
    assert not await queries.note("row", 1, progress=0.9)
    assert not await queries.memorise("row", 1, "train", {})
    assert not await queries.release("row", 1)
    assert not await queries.end("row", 1, "failed", 16.0, result={}, error="late")
    assert await queries.tell("row", 16.0, "log", fence=1) == 0
    assert await queries.get("row") == held
    assert await queries.events("row") == []


async def test_a_lease_that_has_lapsed_is_kept_until_somebody_else_claims(queries: Queries, new: DurableRow) -> None:
    await queries.add(new)
    await claimed(queries, now=10.0, lease_s=5.0)
    assert await queries.heartbeat("row", 1, 105.0)
    assert await queries.claim("two", 100.0, 5.0) is None


async def test_what_was_noted_and_memorised_is_there_for_the_next(queries: Queries, new: DurableRow) -> None:
    await queries.add(new)
    await claimed(queries)
    assert await queries.note("row", 1, progress=0.1, message="reads", metrics={"rows": 3})
    assert await queries.note("row", 1, progress=0.2)
    assert await queries.note("row", 1)
    assert await queries.memorise("row", 1, "validate", {"rows": 3})
    assert await queries.memorise("row", 1, "prepare", {"tokens": [1, 2]})
    row = await claimed(queries, now=15.0)
    assert (row.progress, row.message, row.metrics) == (0.2, "reads", {"rows": 3})
    assert row.memo == {"validate": {"rows": 3}, "prepare": {"tokens": [1, 2]}}
    with pytest.raises(TypeError, match="status"):
        await queries.note("row", 2, status="completed")
    with pytest.raises(TypeError, match="status"):
        await queries.memorise("row", 2, "train", {}, status="completed")


async def test_what_is_memorised_is_written_with_what_is_noted_and_the_old_is_dropped(
    queries: Queries, new: DurableRow
) -> None:
    await queries.add(new)
    await claimed(queries)
    for number in range(4):
        assert await queries.memorise("row", 1, f"{number}", {"n": number})
    assert await queries.memorise("row", 1, "4", {"n": 4}, forget={"0", "1", "7"}, progress=0.5, message="reads")
    assert await queries.memorise("row", 1, "2", {"again": True})
    row = await queries.get("row")
    assert row is not None
    assert row.memo == {"2": {"again": True}, "3": {"n": 3}, "4": {"n": 4}}
    assert (row.progress, row.message) == (0.5, "reads")
    assert not await queries.memorise("row", 2, "5", {}, forget={"2"}, progress=0.9)
    assert await queries.get("row") == row


async def test_a_row_ends_once(store: Store, new: DurableRow) -> None:
    others = [await store.open() for _ in range(4)]
    await others[0].add(new)
    await claimed(others[0])
    ends = [others[n % 4].end("row", 1, "completed", 20.0 + n, result={"n": n}) for n in range(12)]
    assert sorted(await asyncio.gather(*ends)) == [False] * 11 + [True]
    row = await others[0].get("row")
    assert row is not None
    assert row.completed_at == 20.0 + row.result["n"]
    assert (row.status, row.lease_owner, row.lease_until) == ("completed", "", 0.0)
    # From then on nothing changes it.
    assert not await others[0].note("row", 1, progress=0.5)
    assert not await others[0].release("row", 1)
    assert not await others[0].memorise("row", 1, "train", {})
    assert await others[0].heartbeat("row", 1, 99.0) is None
    assert await others[0].claim("two", 1e6, 5.0) is None
    assert await others[0].ask_cancel("row", "late", 30.0) == row


async def test_a_row_ends_only_as_one_can(queries: Queries, new: DurableRow, sort: Sort) -> None:
    await queries.add(new)
    row = await claimed(queries)
    with pytest.raises(ValueError, match=f"'{sort.working}'"):
        await queries.end("row", row.fence, sort.working, 11.0, result={})
    assert await queries.end("row", row.fence, "failed", 11.0, result={}, error="disk_full")
    ended = await queries.get("row")
    assert ended is not None
    assert (ended.status, ended.error, ended.completed_at) == ("failed", "disk_full", 11.0)


async def test_what_is_given_back_is_next_in_its_turn(queries: Queries, new: DurableRow) -> None:
    await added(queries, new, replace(new, id="other"))
    row = await claimed(queries)
    assert await queries.release("row", row.fence)
    assert not await queries.release("row", row.fence)
    assert await queries.heartbeat("row", row.fence, 99.0) is None
    back = await queries.get("row")
    assert back == replace(row, status="pending", lease_owner="", lease_until=0.0)
    again = await claimed(queries, now=11.0)
    assert (again.id, again.fence, again.attempts, again.started_at) == ("row", 2, 2, 10.0)


async def test_what_a_killed_owner_was_at_goes_back_at_once(queries: Queries, new: DurableRow, sort: Sort) -> None:
    for name in ("one", "two", "three"):
        await queries.add(replace(new, id=name))
    first = await queries.claim("here", 0.0, 60.0)
    second = await queries.claim("there", 0.0, 60.0)
    assert first and second
    assert await queries.requeue("here") == 1
    assert await queries.requeue("here") == 0
    again = await queries.claim("here", 1.0, 60.0)
    assert again and (again.id, again.fence, again.attempts) == (first.id, 2, 2)
    assert not await queries.note(first.id, first.fence, progress=0.5), "who was killed and is not quite dead is out"
    kept = await queries.get(second.id)
    assert kept and (kept.status, kept.fence) == (sort.working, 1)


async def test_a_row_is_found_by_its_callers_key(queries: Queries, new: DurableRow) -> None:
    made, _ = await queries.add(replace(new, caller="ci", idempotency_key="k"))
    assert await queries.of_key("ci", "k") == made
    assert await queries.of_key("", "k") is None
    assert await queries.of_key("ci", "other") is None


# --- cancelling ---
async def test_what_is_pending_is_cancelled_at_once(queries: Queries, new: DurableRow) -> None:
    assert await queries.ask_cancel("row", "typo", 9.0) is None
    (row,) = await added(queries, new)
    asked = await queries.ask_cancel("row", "typo", 9.0)
    assert asked == replace(row, status="cancelled", cancel_reason="typo", error="typo", completed_at=9.0)
    assert await queries.claim("one", 10.0, 5.0) is None
    assert await queries.ask_cancel("row", "again", 11.0) == asked


async def test_what_is_worked_on_is_cancelled_by_its_worker(queries: Queries, new: DurableRow) -> None:
    await queries.add(new)
    row = await claimed(queries)
    asked = await queries.ask_cancel("row", "typo", 11.0)
    assert asked == replace(row, cancel_reason="typo")
    assert await queries.ask_cancel("row", "again", 12.0) == asked
    assert await queries.heartbeat("row", 1, 20.0) == replace(asked, lease_until=20.0)
    assert await queries.end("row", 1, "cancelled", 13.0, result={})


@pytest.mark.parametrize("released", [True, False])
async def test_what_was_left_before_it_could_be_cancelled_is_claimed_first(
    queries: Queries, released: bool, new: DurableRow
) -> None:
    await added(queries, new, replace(new, id="other", priority=2))
    await claimed(queries, lease_s=99.0)
    await claimed(queries)
    await queries.ask_cancel("row", "typo", 11.0)
    if released:
        await queries.release("row", 1)
    await queries.add(replace(new, id="third", priority=2))
    row = await claimed(queries, now=15.0)
    assert (row.id, row.cancel_reason, row.fence) == ("row", "typo", 2)


# --- events ---
async def test_events_are_numbered_for_each_row(queries: Queries, new: DurableRow) -> None:
    await added(queries, new, replace(new, id="other"))
    assert await queries.latest("row") == 0
    assert await queries.tell("row", 1.5, "step", step="train", message="ümlaut", metrics={"step": 1}) == 1
    assert await queries.tell("other", 2.0, "log") == 1
    assert [await queries.tell("row", 2.0, "log") for _ in range(3)] == [2, 3, 4]
    events = await queries.events("row")
    assert events[0] == EventRow("row", 1, 1.5, "step", "train", "ümlaut", {"step": 1})
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert await queries.events("row", after=2) == events[2:]
    assert await queries.events("row", after=1, limit=2) == events[1:3]
    assert await queries.events("row", after=4) == []
    assert (await queries.latest("row"), await queries.latest("other"), await queries.latest("nowhere")) == (4, 1, 0)


async def test_nothing_is_told_of_a_row_that_is_not_there(queries: Queries) -> None:
    assert await queries.tell("nowhere", 1.0, "log") == 0
    assert await queries.events("nowhere") == []


async def test_who_ended_the_row_may_still_tell_so(queries: Queries, new: DurableRow) -> None:
    await queries.add(new)
    await claimed(queries)
    await queries.end("row", 1, "completed", 11.0, result={})
    assert await queries.tell("row", 11.0, "log", fence=1) == 2


async def test_the_end_of_a_row_is_told_with_it(queries: Queries, new: DurableRow) -> None:
    await added(queries, new, replace(new, id="other"))
    await claimed(queries)
    assert await queries.end("row", 1, "failed", 11.0, result={}, error="no memory")
    assert not await queries.end("row", 1, "completed", 12.0, result={})
    assert await queries.events("row") == [EventRow("row", 1, 11.0, "state", message="failed: no memory")]
    await queries.ask_cancel("other", "", 12.0)
    await queries.ask_cancel("other", "again", 13.0)
    assert await queries.events("other") == [EventRow("other", 1, 12.0, "state", message="cancelled")]


async def test_what_is_told_of_an_end_that_is_no_error(queries: Queries, new: DurableRow) -> None:
    await queries.add(new)
    await claimed(queries)
    assert await queries.end("row", 1, "completed", 11.0, result={"a": 1}, why="it is as good as was wished")
    row = await queries.get("row")
    assert row is not None
    assert (row.error, row.result) == ("", {"a": 1})
    (told,) = await queries.events("row")
    assert told.message == "completed: it is as good as was wished"
