"""Learning jobs in the database: every test on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError

from modelops.store.jobs import EventRow, JobQueries, JobRow
from store.jobs import JOB, Store, added, claimed

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
async def test_a_job_comes_back_as_it_was_added(jobs: JobQueries, row: JobRow) -> None:
    assert await jobs.get(row.id) is None
    assert await jobs.add(row) == (replace(row, number=1), True)
    assert await jobs.get(row.id) == replace(row, number=1)
    assert await jobs.all() == [replace(row, number=1)]


async def test_jobs_are_listed_from_the_newest_on(jobs: JobQueries) -> None:
    rows = await added(jobs, *(replace(JOB, id=f"{number}", priority=number % 3) for number in range(5)))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert await jobs.all() == rows[::-1]
    assert await jobs.all(limit=2) == [rows[4], rows[3]]
    taken = await claimed(jobs)
    assert await jobs.all("running") == [taken]
    assert [row.id for row in await jobs.all("pending")] == ["4", "3", "1", "0"]
    assert [await jobs.count(status) for status in ("pending", "running", "failed")] == [4, 1, 0]


async def test_an_id_is_not_taken_twice(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    with pytest.raises(IntegrityError):
        await jobs.add(replace(JOB, caller="other"))
    assert [row.number for row in await added(jobs, replace(JOB, id="next"))] == [2]


async def test_what_no_database_takes_is_replaced(jobs: JobQueries) -> None:
    await jobs.add(replace(JOB, message="a\0b\ud800c", metrics={"a\0b": "\0"}))
    row = await claimed(jobs)
    assert (row.message, row.metrics) == ("a\N{REPLACEMENT CHARACTER}b?c", {"a\0b": "\0"})
    assert await jobs.tell("job", 1.0, "log", message="\0")
    assert await jobs.end("job", row.fence, "failed", 2.0, result={}, error="\0")


# --- idempotency ---
async def test_a_key_is_its_callers_own(jobs: JobQueries) -> None:
    first = replace(JOB, caller="ci", idempotency_key="k")
    (made,) = await added(jobs, first)
    again = replace(first, id="again", model_name="other")
    assert await jobs.add(again) == (made, False)
    assert (await jobs.add(replace(again, caller="other")))[1]
    assert (await jobs.add(replace(first, id="third", idempotency_key="l")))[1]
    for name in ("no key", "none either"):
        assert (await jobs.add(replace(first, id=name, idempotency_key=None)))[1]
    assert [row.number for row in await jobs.all()] == [5, 4, 3, 2, 1]


async def test_a_key_gives_the_job_as_it_is_by_then(jobs: JobQueries) -> None:
    await jobs.add(replace(JOB, idempotency_key="k"))
    row = await claimed(jobs)
    await jobs.end("job", row.fence, "completed", 11.0, result={"a": 1})
    known, made = await jobs.add(replace(JOB, id="again", idempotency_key="k"))
    assert (known.id, known.status, known.result, made) == ("job", "completed", {"a": 1}, False)


# --- claims ---
async def test_the_highest_priority_goes_first_and_then_the_oldest(jobs: JobQueries) -> None:
    await added(jobs, *(replace(JOB, id=name, priority=int(name[0])) for name in ("1a", "2a", "1b", "3a", "2b")))
    assert [(await claimed(jobs)).id for _ in range(5)] == ["3a", "2a", "2b", "1a", "1b"]
    assert await jobs.claim("one", 10.0, 5.0) is None


async def test_a_claim_is_a_lease(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    first = await claimed(jobs, now=10.0, lease_s=5.0)
    running = replace(JOB, number=1, status="running", started_at=10.0)
    assert first == replace(running, fence=1, attempts=1, lease_owner="one", lease_until=15.0)
    assert await jobs.claim("two", 14.9, 5.0) is None
    assert await jobs.heartbeat("job", 1, 20.0) == replace(first, lease_until=20.0)
    assert await jobs.claim("two", 19.9, 5.0) is None
    await jobs.note("job", 1, paused=True, step="train")
    second = await claimed(jobs, now=20.0, owner="two")
    assert second == replace(first, fence=2, attempts=2, step="train", lease_owner="two", lease_until=25.0)


async def test_who_lost_the_job_changes_nothing(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    await claimed(jobs)
    held = await claimed(jobs, now=15.0, owner="two")
    assert await jobs.heartbeat("job", 1, 99.0) is None
    assert not await jobs.note("job", 1, progress=0.9)
    assert not await jobs.memorise("job", 1, "train", {})
    assert not await jobs.release("job", 1)
    assert not await jobs.end("job", 1, "failed", 16.0, result={}, error="late")
    assert await jobs.tell("job", 16.0, "log", fence=1) == 0
    assert await jobs.get("job") == held
    assert await jobs.events("job") == []


async def test_a_lease_that_has_lapsed_is_kept_until_somebody_else_claims(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    await claimed(jobs, now=10.0, lease_s=5.0)
    assert await jobs.heartbeat("job", 1, 105.0)
    assert await jobs.claim("two", 100.0, 5.0) is None


async def test_what_was_noted_and_memorised_is_there_for_the_next(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    await claimed(jobs)
    assert await jobs.note("job", 1, step="prepare", progress=0.1, message="reads", metrics={"rows": 3}, paused=True)
    assert await jobs.note("job", 1, progress=0.2)
    assert await jobs.note("job", 1)
    assert await jobs.memorise("job", 1, "validate", {"rows": 3})
    assert await jobs.memorise("job", 1, "prepare", {"tokens": [1, 2]})
    row = await claimed(jobs, now=15.0)
    assert (row.step, row.progress, row.message, row.metrics) == ("prepare", 0.2, "reads", {"rows": 3})
    assert row.memo == {"validate": {"rows": 3}, "prepare": {"tokens": [1, 2]}}
    with pytest.raises(TypeError, match="status"):
        await jobs.note("job", 2, status="completed")


async def test_a_job_ends_once(store: Store) -> None:
    others = [await store.open() for _ in range(4)]
    await others[0].add(JOB)
    await claimed(others[0])
    ends = [others[n % 4].end("job", 1, "completed", 20.0 + n, result={"n": n}) for n in range(12)]
    assert sorted(await asyncio.gather(*ends)) == [False] * 11 + [True]
    row = await others[0].get("job")
    assert row is not None
    assert row.completed_at == 20.0 + row.result["n"]
    assert (row.status, row.lease_owner, row.lease_until, row.paused) == ("completed", "", 0.0, False)
    # From then on nothing changes it.
    assert not await others[0].note("job", 1, progress=0.5)
    assert not await others[0].release("job", 1)
    assert not await others[0].memorise("job", 1, "train", {})
    assert await others[0].heartbeat("job", 1, 99.0) is None
    assert await others[0].claim("two", 1e6, 5.0) is None
    assert await others[0].ask_cancel("job", "late", 30.0) == row


async def test_a_job_ends_only_as_one_can(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    row = await claimed(jobs)
    with pytest.raises(ValueError, match="'running'"):
        await jobs.end("job", row.fence, "running", 11.0, result={})
    assert await jobs.end("job", row.fence, "failed", 11.0, result={}, error="disk_full")
    ended = await jobs.get("job")
    assert ended is not None
    assert (ended.status, ended.error, ended.completed_at) == ("failed", "disk_full", 11.0)


async def test_what_is_given_back_is_next_in_its_turn(jobs: JobQueries) -> None:
    await added(jobs, JOB, replace(JOB, id="other"))
    row = await claimed(jobs)
    await jobs.note("job", row.fence, paused=True)
    assert await jobs.release("job", row.fence)
    assert not await jobs.release("job", row.fence)
    assert await jobs.heartbeat("job", row.fence, 99.0) is None
    back = await jobs.get("job")
    assert back == replace(row, status="pending", lease_owner="", lease_until=0.0)
    again = await claimed(jobs, now=11.0)
    assert (again.id, again.fence, again.attempts, again.started_at) == ("job", 2, 2, 10.0)


async def test_what_a_killed_owner_was_at_goes_back_at_once(jobs: JobQueries) -> None:
    for name in ("one", "two", "three"):
        await jobs.add(replace(JOB, id=name))
    first = await jobs.claim("here", 0.0, 60.0)
    second = await jobs.claim("there", 0.0, 60.0)
    assert first and second
    assert await jobs.requeue("here") == 1
    assert await jobs.requeue("here") == 0
    again = await jobs.claim("here", 1.0, 60.0)
    assert again and (again.id, again.fence, again.attempts) == (first.id, 2, 2)
    assert not await jobs.note(first.id, first.fence, progress=0.5), "who was killed and is not quite dead is out"
    kept = await jobs.get(second.id)
    assert kept and (kept.status, kept.fence) == ("running", 1)


async def test_a_job_is_found_by_its_callers_key(jobs: JobQueries) -> None:
    made, _ = await jobs.add(replace(JOB, caller="ci", idempotency_key="k"))
    assert await jobs.of_key("ci", "k") == made
    assert await jobs.of_key("", "k") is None
    assert await jobs.of_key("ci", "other") is None


# --- cancelling ---
async def test_a_pending_job_is_cancelled_at_once(jobs: JobQueries) -> None:
    assert await jobs.ask_cancel("job", "typo", 9.0) is None
    (row,) = await added(jobs, JOB)
    asked = await jobs.ask_cancel("job", "typo", 9.0)
    assert asked == replace(row, status="cancelled", cancel_reason="typo", error="typo", completed_at=9.0)
    assert await jobs.claim("one", 10.0, 5.0) is None
    assert await jobs.ask_cancel("job", "again", 11.0) == asked


async def test_a_running_job_is_cancelled_by_its_worker(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    row = await claimed(jobs)
    asked = await jobs.ask_cancel("job", "typo", 11.0)
    assert asked == replace(row, cancel_reason="typo")
    assert await jobs.ask_cancel("job", "again", 12.0) == asked
    assert await jobs.heartbeat("job", 1, 20.0) == replace(asked, lease_until=20.0)
    assert await jobs.end("job", 1, "cancelled", 13.0, result={})


@pytest.mark.parametrize("released", [True, False])
async def test_a_job_left_before_it_could_be_cancelled_is_claimed_first(jobs: JobQueries, released: bool) -> None:
    await added(jobs, JOB, replace(JOB, id="other", priority=2))
    await claimed(jobs, lease_s=99.0)
    await claimed(jobs)
    await jobs.ask_cancel("job", "typo", 11.0)
    if released:
        await jobs.release("job", 1)
    await jobs.add(replace(JOB, id="third", priority=2))
    row = await claimed(jobs, now=15.0)
    assert (row.id, row.cancel_reason, row.fence) == ("job", "typo", 2)


# --- events ---
async def test_events_are_numbered_for_each_job(jobs: JobQueries) -> None:
    await added(jobs, JOB, replace(JOB, id="other"))
    assert await jobs.latest("job") == 0
    assert await jobs.tell("job", 1.5, "step", step="train", message="ümlaut", metrics={"step": 1}) == 1
    assert await jobs.tell("other", 2.0, "log") == 1
    assert [await jobs.tell("job", 2.0, "log") for _ in range(3)] == [2, 3, 4]
    events = await jobs.events("job")
    assert events[0] == EventRow("job", 1, 1.5, "step", "train", "ümlaut", {"step": 1})
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert await jobs.events("job", after=2) == events[2:]
    assert await jobs.events("job", after=1, limit=2) == events[1:3]
    assert await jobs.events("job", after=4) == []
    assert (await jobs.latest("job"), await jobs.latest("other"), await jobs.latest("nowhere")) == (4, 1, 0)


async def test_nothing_is_told_of_a_job_that_is_not_there(jobs: JobQueries) -> None:
    assert await jobs.tell("nowhere", 1.0, "log") == 0
    assert await jobs.events("nowhere") == []


async def test_who_ended_the_job_may_still_tell_so(jobs: JobQueries) -> None:
    await jobs.add(JOB)
    await claimed(jobs)
    await jobs.end("job", 1, "completed", 11.0, result={})
    assert await jobs.tell("job", 11.0, "log", fence=1) == 2


async def test_the_end_of_a_job_is_told_with_it(jobs: JobQueries) -> None:
    await added(jobs, JOB, replace(JOB, id="other"))
    await claimed(jobs)
    assert await jobs.end("job", 1, "failed", 11.0, result={}, error="no memory")
    assert not await jobs.end("job", 1, "completed", 12.0, result={})
    assert await jobs.events("job") == [EventRow("job", 1, 11.0, "state", message="failed: no memory")]
    await jobs.ask_cancel("other", "", 12.0)
    await jobs.ask_cancel("other", "again", 13.0)
    assert await jobs.events("other") == [EventRow("other", 1, 12.0, "state", message="cancelled")]
