from __future__ import annotations

import asyncio

import pytest

from modelops.tasks import Tasks


async def test_a_task_runs_under_its_owners_name_and_is_forgotten_when_it_ends() -> None:
    tasks = Tasks("pool")
    go = asyncio.Event()

    async def work() -> int:
        await go.wait()
        return 42

    task = tasks.start("load", work())
    assert task.get_name() == "pool: load"
    assert len(tasks) == 1
    go.set()
    assert await task == 42
    assert len(tasks) == 0


async def test_a_failure_is_logged_with_the_tasks_name(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks("pool")

    async def work() -> None:
        raise RuntimeError("as told")

    await asyncio.wait([tasks.start("load", work())])
    assert [record.message for record in caplog.records] == ["task failed: pool: load"]
    assert "RuntimeError: as told" in caplog.text
    assert len(tasks) == 0


async def test_what_is_done_whole_goes_on_without_who_waits_for_it() -> None:
    tasks = Tasks("catalogue")
    go, done = asyncio.Event(), []

    async def work() -> int:
        await go.wait()
        done.append("all of it")
        return 42

    waiter = Tasks("caller").start("wait", tasks.whole("note", work()))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert waiter.cancelled()
    assert done == []
    go.set()
    await tasks.finish()
    assert done == ["all of it"]
    assert await tasks.whole("note", work()) == 42


async def test_closing_ends_every_task_after_its_cleanup_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks("pool")
    cleaned = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    started = [tasks.start(f"load {number}", work(number)) for number in range(3)]
    await asyncio.sleep(0)
    await tasks.close()
    assert sorted(cleaned) == [0, 1, 2]
    assert all(task.cancelled() for task in started)
    assert len(tasks) == 0
    assert caplog.records == []


async def test_closing_ends_what_is_started_while_it_closes() -> None:
    tasks = Tasks("pool")
    late: list[asyncio.Task[bool]] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            late.append(tasks.start("late", asyncio.Event().wait()))

    tasks.start("work", work())
    await asyncio.sleep(0)
    await tasks.close()
    assert late[0].cancelled()


async def test_a_failure_that_was_expected_is_its_callers_business(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks("pool")

    async def work(error: Exception) -> None:
        raise error

    for error, logged in ((KeyError("as told"), 0), (RuntimeError("as told"), 1)):
        caplog.clear()
        task = tasks.start("load", work(error), expected=(KeyError, ValueError))
        with pytest.raises(type(error)):
            await task
        assert len(caplog.records) == logged


async def test_finishing_waits_for_every_task_and_for_what_they_start() -> None:
    tasks = Tasks("pool")
    done = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number:
            tasks.start(f"more {number}", work(number - 1))
        done.append(number)

    tasks.start("first", work(2))
    await tasks.finish()
    assert sorted(done) == [0, 1, 2]
    assert len(tasks) == 0
    await tasks.finish()
