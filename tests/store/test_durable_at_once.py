"""Durable work that many do at once, of each kind: coroutines with connections of their own, and processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from modelops.store.durable import DurableRow
from store.durables import Queries, Store, added, claimed


async def test_of_all_that_add_with_one_key_at_once_one_makes_the_row(store: Store, new: DurableRow) -> None:
    others = [await store.open() for _ in range(4)]
    rows = [replace(new, id=f"{number}", idempotency_key=f"{number % 3}") for number in range(24)]
    answers = await asyncio.gather(*(others[number % 4].add(row) for number, row in enumerate(rows)))
    assert sum(made for _, made in answers) == 3
    assert len({row.id for row, _ in answers}) == 3
    assert [row.number for row in await others[0].all()] == [3, 2, 1]


async def test_numbers_have_no_gaps_and_no_doubles(store: Store, new: DurableRow) -> None:
    others = [await store.open() for _ in range(4)]
    rows = [replace(new, id=f"{number}") for number in range(24)]
    answers = await asyncio.gather(*(others[number % 4].add(row) for number, row in enumerate(rows)))
    assert sorted(row.number for row, _ in answers) == list(range(1, 25))


async def test_steps_that_are_memorised_at_once_are_all_kept(store: Store, new: DurableRow) -> None:
    others = [await store.open() for _ in range(4)]
    await others[0].add(new)
    await claimed(others[0])
    await asyncio.gather(*(others[n % 4].memorise("row", 1, f"{n}", {"n": n}) for n in range(16)))
    row = await others[0].get("row")
    assert row is not None
    assert row.memo == {f"{n}": {"n": n} for n in range(16)}


async def test_claims_at_once_are_of_different_rows(store: Store, new: DurableRow) -> None:
    others = [await store.open() for _ in range(4)]
    await added(others[0], *(replace(new, id=f"{number}") for number in range(12)))
    taken: list[str] = []

    async def take(queries: Queries) -> None:
        while await queries.count("pending"):
            if row := await queries.claim("any", 10.0, 5.0):
                assert row.fence == 1
                taken.append(row.id)

    await asyncio.gather(*(take(others[number % 4]) for number in range(16)))
    assert sorted(taken, key=int) == [f"{number}" for number in range(12)]


async def test_a_cancel_and_a_claim_at_once_agree(store: Store, new: DurableRow) -> None:
    one, two = await store.open(), await store.open()
    for number in range(20):
        row_id = f"{number}"
        await one.add(replace(new, id=row_id))
        asked, row = await asyncio.gather(one.ask_cancel(row_id, "typo", 9.0), two.claim("two", 10.0, 5.0))
        assert asked is not None
        if asked.status == "cancelled":
            assert row is None
        else:
            assert row is None or row.id == row_id
            row = row or await claimed(two)
            seen = await two.heartbeat(row_id, row.fence, 20.0)
            assert seen is not None
            assert seen.cancel_reason == "typo"
            assert await two.end(row_id, row.fence, "cancelled", 12.0, result={})


async def test_events_that_are_told_at_once_have_no_gaps(store: Store, new: DurableRow) -> None:
    others = [await store.open() for _ in range(4)]
    await others[0].add(new)
    told = await asyncio.gather(*(others[n % 4].tell("row", 1.0, "log", message=f"{n}") for n in range(40)))
    assert sorted(told) == list(range(1, 41))
    events = await others[0].events("row")
    assert {event.number: event.message for event in events} == {number: f"{n}" for n, number in enumerate(told)}


# --- processes ---
WORKER = """
import asyncio, sys
from importlib import import_module
from pathlib import Path
from sqlalchemy.ext.asyncio import create_async_engine
from modelops.store.database import open_database

async def main(module, name, kind, address, what):
    database = await open_database(Path(address)) if kind == "file" else create_async_engine(address)
    queries = getattr(import_module(module), name)(database)
    await queries.count("pending")
    print("ready", flush=True)
    sys.stdin.readline()
    if what == "work":
        while await queries.count("pending"):
            if row := await queries.claim("any", 10.0, 5.0):
                print(row.id, row.fence, flush=True)
                assert await queries.tell(row.id, 11.0, "log", fence=row.fence)
                assert await queries.end(row.id, row.fence, "completed", 12.0, result={})
    elif what == "write":
        for number in range(10**6):
            await queries.memorise("row", 1, str(number), {})
            print(await queries.tell("row", 11.0, "log"), flush=True)
    await database.dispose()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def worker(store: Store, what: str) -> Iterator[subprocess.Popen[str]]:
    at = store.address
    kind, address = ("file", str(at)) if isinstance(at, Path) else ("url", at.render_as_string(hide_password=False))
    made = store.sort.queries
    argv = [sys.executable, "-c", WORKER, made.__module__, made.__name__, kind, address, what]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


async def test_processes_share_the_work(store: Store, queries: Queries, new: DurableRow) -> None:
    await added(queries, *(replace(new, id=f"{number}") for number in range(60)))
    with worker(store, "work") as one, worker(store, "work") as two:
        workers = [one, two]
        assert [line(each) for each in workers] == ["ready"] * 2
        for each in workers:
            go(each)
        taken = [each.communicate(timeout=60)[0].splitlines() for each in workers]
        assert [each.returncode for each in workers] == [0, 0]
    assert sorted(itertools.chain(*taken), key=lambda said: int(said.split()[0])) == [
        f"{number} 1" for number in range(60)
    ]
    assert await queries.count("completed") == 60


async def test_a_process_killed_while_it_writes_leaves_nothing_half_and_holds_nobody_up(
    store: Store, queries: Queries, new: DurableRow
) -> None:
    await queries.add(new)
    await claimed(queries)
    last = 0
    for killed in (1, 2):
        with worker(store, "write") as process:
            assert line(process) == "ready"
            go(process)
            for _ in range(10 * killed):
                last = int(line(process))
        numbers = [event.number for event in await queries.events("row")]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= last
        assert await queries.tell("row", 1.0, "log") == len(numbers) + 1
        assert await queries.memorise("row", 1, f"after {killed}", {})
    row = await queries.get("row")
    assert row is not None
    assert {f"after {killed}" for killed in (1, 2)} < row.memo.keys()


# --- what differs ---
@pytest.mark.program("postgres")
@pytest.mark.parametrize("store", ["postgres"], indirect=True)
async def test_who_has_stopped_within_a_write_holds_no_other_job_up(
    store: Store, queries: Queries, new: DurableRow
) -> None:
    await added(queries, new, replace(new, id="other"))
    rows = store.sort.tables[0]
    async with (await store.engine()).begin() as connection:
        await connection.execute(select(rows.c.id).where(rows.c.id == "row").with_for_update())
        assert (await claimed(queries)).id == "other"
        assert await queries.claim("one", 10.0, 5.0) is None
    assert (await claimed(queries)).id == "row"


@pytest.mark.program("postgres")
@pytest.mark.parametrize("store", ["postgres"], indirect=True)
async def test_a_stricter_isolation_refuses_nobody(store: Store, new: DurableRow) -> None:
    others = [await store.open(isolation_level="SERIALIZABLE") for _ in range(3)]
    await asyncio.gather(*(others[n % 3].add(replace(new, id=f"{n}", idempotency_key=f"{n % 6}")) for n in range(12)))
    rows = await asyncio.gather(*(others[n % 3].claim("any", 10.0, 5.0) for n in range(12)))
    taken = [row for row in rows if row]
    assert len({row.id for row in taken}) == len(taken)
    await asyncio.gather(*(others[n % 3].tell(taken[0].id, 1.0, "log") for n in range(12)))
    assert await others[0].latest(taken[0].id) == 12


# --- all at once ---
class Watch:
    """What must hold whatever happens at once, checked with what the workers were told. Its clock goes by their steps.

    An answer may be late: it is held against what was known when it was asked for.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.newest: dict[str, int] = {}  # fence of the newest claim that was answered
        self.until: dict[tuple[str, int], float] = {}  # what each holder was promised, until it gives the row up
        self.ends: dict[str, list[str]] = {}
        self.told: dict[str, list[int]] = {}
        self.steps: dict[str, list[str]] = {}

    async def claim(self, queries: Queries, name: str) -> DurableRow | None:
        at, until, ended = self.now, dict(self.until), set(self.ends)
        steps = {row_id: set(steps) for row_id, steps in self.steps.items()}
        row = await queries.claim(name, at, 10.0)
        if row:
            assert row.id not in ended, "a row that had ended was claimed"
            assert (row.id, row.fence) not in self.until, "two were given one fence"
            last = (row.id, row.fence - 1)
            if last in self.until:  # it has not been given up meanwhile
                assert until.get(last, 0.0) <= at, "a row was claimed while its lease ran"
            assert steps.get(row.id, set()) <= row.memo.keys(), "a step was forgotten"
            self.until[row.id, row.fence] = row.lease_until
            self.newest[row.id] = max(self.newest.get(row.id, 0), row.fence)
        return row

    async def write(self, row: DurableRow, writing: Awaitable[Any]) -> Any:
        newest = self.newest[row.id]
        done = await writing
        assert not done or row.fence >= newest, "who had lost the row wrote to it"
        return done


async def work(queries: Queries, watch: Watch, name: str) -> None:
    """Claims rows and works on them as somebody would who may be slow or killed, until all have ended."""
    chance = watch.random.random
    while await queries.unfinished():
        row = await watch.claim(queries, name)
        watch.now += chance() if row else 2.0
        if row is None:
            continue
        key, held, wanted = (row.id, row.fence), True, row.cancel_reason is not None
        for number in range(watch.random.randrange(8)):
            what = watch.random.choice(["beat", "beat", "note", "memorise", "tell", "sleep"])
            if what == "beat":
                until = watch.now + 10.0
                seen = await watch.write(row, queries.heartbeat(*key, until))
                if not seen:
                    held = False
                    break
                watch.until[key], wanted = until, seen.cancel_reason is not None
            elif what == "note":
                await watch.write(row, queries.note(*key, progress=chance()))
            elif what == "memorise":
                step = f"{row.fence} {number}"
                if await watch.write(row, queries.memorise(*key, step, {"by": name})):
                    watch.steps.setdefault(row.id, []).append(step)
            elif what == "tell":
                told = await watch.write(row, queries.tell(row.id, watch.now, "log", fence=row.fence))
                watch.told.setdefault(row.id, []).extend([told] if told else [])
            else:
                watch.now += 4 * chance()
        way = chance()
        if way < 0.15:  # killed
            continue
        del watch.until[key]  # it may be somebody else's as soon as the next is asked for
        if way < 0.3:
            assert not await watch.write(row, queries.release(*key)) or held
            continue
        status = "cancelled" if wanted else watch.random.choice(["completed", "failed"])
        if await watch.write(row, queries.end(*key, status, watch.now, result={"by": name})):
            assert held, "who was told that the row is somebody else's ended it"
            watch.ends.setdefault(row.id, []).append(status)


async def cancel(queries: Queries, watch: Watch) -> None:
    for number in watch.random.sample(range(16), 6):
        for _ in range(watch.random.randrange(8)):
            await queries.count("pending")
        row = await queries.ask_cancel(f"{number}", "typo", watch.now)
        assert row is not None
        if row.status == "cancelled":  # by this, at once: nobody has asked for it before
            watch.ends.setdefault(row.id, []).append("cancelled")


@pytest.mark.parametrize("seed", range(int(os.environ.get("JOBS_SEEDS", "3"))))
async def test_many_workers_who_get_lost_end_each_row_once(store: Store, seed: int, new: DurableRow) -> None:
    watch = Watch(seed)
    others = [await store.open() for _ in range(3)]
    await added(others[0], *(replace(new, id=f"{n}", priority=watch.random.randrange(3)) for n in range(16)))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cancel(others[0], watch))
        for number in range(8):
            tasks.create_task(work(others[number % 3], watch, f"{number}"))
    rows = await others[0].all(store.sort.every)
    assert {row.id: [row.status] for row in rows} == watch.ends
    for row in rows:
        assert row.fence == row.attempts >= watch.newest.get(row.id, 0)
        assert row.memo.keys() == set(watch.steps.get(row.id, []))
        events = await others[0].events(row.id)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        ends = [event.number for event in events if event.kind == "state"]
        assert len(ends) == 1, "its end is told once"
        assert sorted([*watch.told.get(row.id, []), *ends]) == [event.number for event in events]
