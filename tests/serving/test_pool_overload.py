"""The pool with real engine processes that are asked too much, or fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelops.api.errors import EngineFailed, InvalidRequest, Overloaded
from modelops.serving.breaker import FAILURES, Reading
from modelops.serving.events import Outcome, Share, Usage
from serving.house import PROMPT, House, Make
from support import tiny_gguf


async def waiting(house: House, caller: str, **asked: Any) -> asyncio.Task[str]:
    """A request of that caller that waits for a slot; it gives its caller's name."""

    async def ask() -> str:
        deadline = asyncio.get_running_loop().time() + 20
        async with house.pool.lease("a", deadline, share=Share(caller), **asked) as lease:
            _ = [piece async for piece in lease.generate(PROMPT)]
            return caller

    queued = house.pool.view("a").queued
    task = asyncio.create_task(ask())
    await house.until(lambda view: view.queued > queued or task.done())
    return task


async def refused(task: asyncio.Task[str]) -> float:
    with pytest.raises(Overloaded, match="already wait") as caught:
        await task
    assert caught.value.retry_after_s
    return caught.value.retry_after_s


# --- too much ---
async def test_a_greedy_caller_gives_way_in_a_full_queue(make: Make) -> None:
    house = await make(models={"max_queue": 2})
    async with house.lease(), house.lease():
        first, second = await waiting(house, "greedy"), await waiting(house, "greedy")
        other = asyncio.create_task(house.ask())
        assert await refused(second) > 0
        assert house.pool.view("a").queued == 2
    assert await first == "greedy"
    assert await other == "w0 w1 w2 "


async def test_the_tokens_that_wait_are_bounded(make: Make) -> None:
    house = await make(models={"max_queued_tokens": 100})
    async with house.lease(), house.lease():
        long = await waiting(house, "one", prompt_bytes=4000)
        short = await waiting(house, "one", prompt_bytes=4)
        assert await refused(short) > 0
    assert await long == "one"


async def test_callers_take_turns(make: Make) -> None:
    house = await make(engine={"slots": 1})
    done: list[str] = []
    async with house.lease():
        tasks = [await waiting(house, caller, answer_tokens=3) for caller in ("a", "a", "a", "b", "b")]
        for task in tasks:
            task.add_done_callback(lambda of: done.append(of.result()))
    await asyncio.wait(tasks)
    assert "".join(done) in ("ababa", "abaab"), "equals take turns"


async def test_who_is_refused_is_told_when_by_how_long_requests_take(make: Make) -> None:
    house = await make({"token_s": 0.1}, models={"max_queue": 0}, engine={"slots": 1})
    await house.ask()
    async with house.lease():
        asked = [asyncio.create_task(house.ask()) for _ in range(2)]
        for task in asked:
            with pytest.raises(Overloaded) as caught:
                await task
            assert 0.2 < (caught.value.retry_after_s or 0) < 0.9, "it took 0.3 s, and there is one slot"


# --- what a lease notes ---
async def test_a_lease_knows_what_became_of_its_request(make: Make) -> None:
    house = await make({"token_s": 0.001, "die_after": 5})
    async with house.lease() as lease:
        assert (lease.outcome, lease.usage) == (Outcome(), Usage())
        _ = [piece async for piece in lease.generate(PROMPT)]
    assert (lease.outcome, lease.usage) == (Outcome("answered"), Usage(1, 3))
    deadline = asyncio.get_running_loop().time() + 20
    async with house.pool.lease("a", deadline, prompt_bytes=70) as lease:
        async for _ in lease.generate(PROMPT):
            break
        assert lease.usage == Usage(18, 1), "as far as is known: of the prompt what is expected"
    assert lease.outcome == Outcome()
    with pytest.raises(EngineFailed):
        async with house.lease() as lease:
            _ = [piece async for piece in lease.generate(replace(PROMPT, max_tokens=9))]
    assert lease.outcome == Outcome("failed", "its engine was killed by SIGKILL")
    assert lease.usage.answer_tokens == 5


async def test_a_callers_mistake_is_no_failure(make: Make) -> None:
    house = await make({"status": 400})
    for _ in range(FAILURES + 1):
        with pytest.raises(InvalidRequest):
            await house.ask()
    assert house.pool.view("a").breaker == Reading()


# --- failing ---
async def broken(house: House) -> None:
    for _ in range(FAILURES):
        with pytest.raises(EngineFailed, match="answered 500: the prompt was"):
            await house.ask()


async def test_an_engine_that_fails_again_and_again_is_not_asked(make: Make, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    house = await make({"sick_file": str(sick), "says": "the prompt was: a secret"})
    await house.ask()
    sick.touch()
    await broken(house)
    with pytest.raises(Overloaded, match="'a' has failed") as caught:
        await house.ask()
    assert 14 < (caught.value.retry_after_s or 0) <= 15
    view = house.pool.view("a")
    assert (view.status, view.breaker.state, view.breaker.failures) == ("loaded", "open", FAILURES)
    assert 14 < view.breaker.left_s <= 15
    assert "its engine answered 500 (not asked for another 15 s)" in view.message
    assert "secret" not in f"{view.message} {caught.value.message}", "others may read it"
    sick.unlink()
    await house.unload(force=True)
    assert await house.ask() == "w0 w1 w2 "
    assert house.pool.view("a").breaker == Reading(failures=FAILURES)
    assert house.pool.view("a").message == ""


async def test_force_forgets_it_where_the_model_has_gone_too(make: Make, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    sick.touch()
    house = await make({"sick_file": str(sick), "says": "the prompt was bad"})
    await broken(house)
    await house.unload()
    with pytest.raises(Overloaded):
        await house.ask()
    assert await house.unload(force=True) == 0
    sick.unlink()
    assert await house.ask() == "w0 w1 w2 "


async def test_another_version_is_tried_at_once(make: Make) -> None:
    house = await make({"load_fails": ["error: out of luck"]})
    with pytest.raises(EngineFailed):
        await house.ask()
    with pytest.raises(Overloaded):
        await house.ask()
    tiny_gguf(house.models / "a.v2.gguf", llama__context_length=512)
    await house.catalog.activate(await house.catalog.register("a", "a.v2.gguf", "llm"))
    assert await house.ask() == "w0 w1 w2 "


async def test_loads_that_fail_again_and_again_wait_for_their_turn(make: Make) -> None:
    house = await make({"load_fails": "error: out of luck"})
    for _ in range(2):
        with pytest.raises(EngineFailed, match="out of luck"):
            await house.load()
    with pytest.raises(Overloaded, match="unload it with force") as caught:
        await house.load()
    assert 29 < (caught.value.retry_after_s or 0) <= 30
    assert house.starts == 2
    await house.unload(force=True)
    with pytest.raises(EngineFailed):
        await house.load()


async def test_an_engine_that_is_stopped_from_outside_is_replaced(make: Make) -> None:
    house = await make(engine={"stall_timeout_s": 0.5})
    await house.load()
    psutil.Process(house.pool.view("a").engine_pid).children()[0].suspend()
    asked = [asyncio.create_task(house.ask()) for _ in range(3)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    told = "the engine of 'a' has not said anything for 0.5 s"
    assert sorted(map(str, ended)) == [told, told, "w0 w1 w2 "], "who waited was served by the next one"
    assert house.pool.view("a").breaker.failures == 1
