"""The pool with real engine processes: leases, joins, crashes, unloads, and that nothing is left."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    InsufficientMemory,
    NotFound,
    Overloaded,
)
from modelops.serving.placement import HOST, MB, Plan
from modelops.serving.wishes import Wish
from serving.house import PROMPT, Make
from support import tiny_gguf

Section = dict[str, Any]


# --- loading ---
async def test_the_first_lease_loads_the_model(make: Make) -> None:
    house = await make()
    assert house.pool.view("a").status == "available"
    assert await house.ask() == "w0 w1 w2 "
    view = house.pool.view("a")
    assert (view.status, view.slots, view.active, view.queued) == ("loaded", 2, 0, 0)
    assert view.memory[HOST] > 0
    assert view.last_used_at and view.loaded_at and view.last_used_at >= view.loaded_at


async def test_whoever_comes_while_it_loads_joins_that_load(make: Make) -> None:
    house = await make({"load_s": 0.3})
    asked = [house.ask() for _ in range(5)]
    answers, *views = await asyncio.gather(asyncio.gather(*asked), house.load(), house.load())
    assert answers == ["w0 w1 w2 "] * 5
    assert [view.status for view in views] == ["loaded", "loaded"]
    assert house.starts == 1
    with pytest.raises(AlreadyLoaded):
        await house.load()


async def test_two_models_are_served_side_by_side(make: Make) -> None:
    house = await make()
    async with house.lease("a") as one, house.lease("b") as other:
        assert (one.version.model_name, other.version.model_name) == ("a", "b")
        assert one.engine.pid != other.engine.pid
    assert [view.status for view in house.pool.views()] == ["loaded", "loaded"]
    assert house.reserved == sum(view.memory[HOST] for view in house.pool.views()) > 2 * 30 * MB


async def test_what_does_not_fit_beside_a_busy_model_is_refused_with_the_bill(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    async with house.lease("a"):
        with pytest.raises(InsufficientMemory) as caught:
            await house.ask("b")
        held = house.pool.view("a").memory[HOST] // MB
    bill = caught.value.details
    assert int(bill["held_mb.a"]) == int(bill["reserved_mb"]) == held
    assert int(bill["evictable_mb"]) == 0
    assert int(bill["needed_mb"]) > int(bill["free_mb"])
    assert 70 - held - 1 <= int(bill["free_mb"]) <= 70 - held
    assert f"'a' {held} MB" in caught.value.message
    assert house.pool.view("b").status == "available"


async def test_an_unknown_model_is_told_so(make: Make) -> None:
    house = await make()
    with pytest.raises(NotFound):
        await house.ask("nobody")


async def test_without_autoload_a_model_must_be_loaded_first(make: Make) -> None:
    house = await make(models={"autoload": False})
    with pytest.raises(Conflict, match="autoload"):
        await house.ask()
    await house.load()
    assert await house.ask() == "w0 w1 w2 "


async def test_a_load_that_fails_is_kept_with_its_reason(make: Make) -> None:
    house = await make({"load_fails": "error: out of luck"})
    for kind in (EngineFailed, Overloaded):  # the second is told at once, without a start
        with pytest.raises(kind, match="out of luck"):
            await house.ask()
    assert house.pool.view("a").status == "failed"
    assert "out of luck" in house.pool.view("a").message
    assert house.reserved == 0
    assert house.starts == 1


async def test_a_model_that_is_loaded_again_is_the_version_that_is_active_then(make: Make) -> None:
    house = await make()
    async with house.lease() as lease:
        assert lease.version.label == "v1"
    tiny_gguf(house.models / "a.v2.gguf", llama__context_length=512)
    await house.catalog.activate(await house.catalog.register("a", "a.v2.gguf", "llm"))
    async with house.lease() as lease:
        assert lease.version.label == "v1"  # what is loaded stays
    await house.unload()
    async with house.lease() as lease:
        assert (lease.version.label, lease.engine.spec.context_length) == ("v2", 512)


async def test_a_model_is_run_as_it_was_wished_and_stays_so(make: Make) -> None:
    house = await make()
    await house.load(context_length=512, slots=3, cache_type="q8_0", pinned=True)
    for _ in range(2):
        view = house.pool.view("a")
        assert (view.context_length, view.slots, view.cache_type, view.pinned) == (512, 3, "q8_0", True)
        await house.unload()
        await house.ask()  # which loads it again, as it was wished last


async def test_a_preview_tells_what_a_load_would_do_and_does_nothing(make: Make) -> None:
    house = await make()
    build, plan = await house.pool.preview(house.catalog.active("a"), Wish(context_length=512, slots=1))
    assert isinstance(plan, Plan)
    assert (build.tuned.spec.context_length, build.tuned.spec.slots) == (512, 1)
    assert (house.reserved, house.starts, house.pool.view("a").status) == (0, 0, "available")
    view = await house.load(context_length=512, slots=1)
    assert view.memory[HOST] >= plan.layout.reserve[HOST]


# --- slots ---
async def test_no_more_are_served_at_once_than_there_are_slots(make: Make) -> None:
    house = await make({"token_s": 0.01})
    held, most = 0, 0

    async def ask() -> None:
        nonlocal held, most
        async with house.lease() as lease:
            held += 1
            most = max(most, held)
            assert house.pool.view("a").active <= 2
            async for _ in lease.generate(PROMPT):
                pass
            held -= 1

    await asyncio.gather(*(ask() for _ in range(12)))
    assert most == 2
    assert house.pool.view("a").active == 0


async def test_a_full_queue_refuses(make: Make) -> None:
    house = await make(models={"max_queue": 1})
    async with house.lease(), house.lease():
        waiting = asyncio.create_task(house.ask())
        await house.until(lambda view: view.queued == 1)
        with pytest.raises(Overloaded) as caught:
            await house.ask()
        assert caught.value.retry_after_s
    assert await waiting == "w0 w1 w2 "


async def test_who_stops_waiting_gives_up_its_place(make: Make) -> None:
    house = await make()
    async with house.lease(), house.lease():
        gone, stays = asyncio.create_task(house.ask()), asyncio.create_task(house.ask())
        await house.until(lambda view: view.queued == 2)
        gone.cancel()
        await house.until(lambda view: view.queued == 1)
        with pytest.raises(DeadlineExceeded, match="waiting for a slot of 'a'"):
            await house.ask(seconds=0.05)
        assert house.pool.view("a").queued == 1
    assert await stays == "w0 w1 w2 "
    assert house.pool.view("a").active == 0


async def test_a_deadline_while_it_loads_ends_the_wait_and_not_the_load(make: Make) -> None:
    house = await make({"load_s": 0.5})
    with pytest.raises(DeadlineExceeded):
        await house.ask(seconds=0.1)
    await house.until(lambda view: view.status == "loaded")
    assert house.pool.view("a").active == 0
    assert house.starts == 1


# --- crashes ---
async def test_a_crash_costs_its_own_requests_and_the_next_is_answered(make: Make) -> None:
    house = await make({"die_after": 4, "token_s": 0.01})
    for number in range(1, 3):
        with pytest.raises(EngineFailed, match="was killed by SIGKILL"):
            await house.ask(max_tokens=8)
        assert await house.ask() == "w0 w1 w2 "
        assert house.starts == 1 + number


async def test_who_waits_when_the_engine_crashes_is_served_by_the_next(make: Make) -> None:
    house = await make({"die_after": 4, "token_s": 0.01})
    crashes = [asyncio.create_task(house.ask(max_tokens=8)) for _ in range(2)]
    await house.until(lambda view: view.active == 2)
    waiting = asyncio.gather(*(house.ask() for _ in range(3)))
    for crash in crashes:
        with pytest.raises(EngineFailed):
            await crash
    assert await waiting == ["w0 w1 w2 "] * 3
    assert house.starts == 2


async def test_restarts_that_fail_are_tried_again_later_and_later(make: Make) -> None:
    house = await make({"load_fails": ["", "error: not yet", "error: not yet"]})
    await house.load()
    began = asyncio.get_running_loop().time()
    psutil.Process(house.pool.view("a").engine_pid).children()[0].kill()
    await house.until(lambda view: view.status == "loading")
    assert await house.ask() == "w0 w1 w2 "
    assert house.starts == 4
    assert asyncio.get_running_loop().time() - began >= 0.0 + 0.5 + 1.0  # the pauses before the three restarts


# --- unloading ---
async def test_unload_waits_for_requests_in_flight(make: Make) -> None:
    house = await make({"token_s": 0.05})
    answer = asyncio.create_task(house.ask())
    await house.until(lambda view: view.active == 1)
    held = house.reserved
    unloading = asyncio.create_task(house.unload())
    await house.until(lambda view: view.status == "unloading")
    assert await answer == "w0 w1 w2 "
    assert await unloading == held
    assert house.pool.view("a").status == "available"
    assert house.reserved == 0
    with pytest.raises(Conflict):
        await house.unload()


async def test_who_asks_while_it_unloads_is_served_by_the_next_engine(make: Make) -> None:
    house = await make({"token_s": 0.05})
    answer = asyncio.create_task(house.ask())
    await house.until(lambda view: view.active == 1)
    unloading = asyncio.create_task(house.unload())
    await house.until(lambda view: view.status == "unloading")
    assert await house.ask() == "w0 w1 w2 "
    assert await answer == "w0 w1 w2 "
    assert await unloading > 0
    assert house.starts == 2


async def test_unload_by_force_takes_the_slots_away(make: Make) -> None:
    house = await make({"hang_after": 1})
    asked = [asyncio.create_task(house.ask()) for _ in range(3)]
    await house.until(lambda view: (view.active, view.queued) == (2, 1))
    assert await house.unload(force=True) > 0
    for answer in asked:
        with pytest.raises(Overloaded, match="'a' was unloaded"):
            await answer
    assert house.pool.view("a").status == "available"


async def test_unload_by_force_ends_a_load(make: Make) -> None:
    house = await make({"load_s": 3600, "ignore_term": True})
    asked, loading = asyncio.create_task(house.ask()), asyncio.create_task(house.load())
    await house.until(lambda view: view.status == "loading" and house.starts == 1)
    with pytest.raises(Conflict, match="being loaded"):
        await house.unload()
    await house.unload(force=True)
    for waiting in (asked, loading):
        with pytest.raises(Overloaded):
            await waiting
    assert house.pool.view("a").status == "available"
    assert house.reserved == 0
    assert not house.processes()


async def test_an_engine_that_ignores_the_request_to_end_is_killed(make: Make) -> None:
    house = await make({"ignore_term": True, "child": True}, engine={"stop_timeout_s": 0.2})
    await house.load()
    await house.unload()
    assert not house.processes()


# --- the end ---
@pytest.mark.parametrize("when", ["loading", "answering", "unloading", "restarting"])
async def test_close_leaves_no_process(make: Make, when: str) -> None:
    behaviours: dict[str, Section] = {
        "loading": {"load_s": 3600},
        "answering": {"hang_after": 1},
        "unloading": {"ignore_term": True},
        "restarting": {"load_fails": ["", "error: not yet", "error: not yet"]},
    }
    house = await make(behaviours[when] | {"child": True}, engine={"stop_timeout_s": 0.3})
    asked: asyncio.Task[Any] = asyncio.create_task(house.ask())
    if when in ("unloading", "restarting"):
        await asked
    if when == "unloading":
        asked = asyncio.create_task(house.unload())
    if when == "restarting":
        psutil.Process(house.pool.view("a").engine_pid).children()[0].kill()
    status = {"restarting": "loading", "answering": "loaded"}.get(when, when)
    await house.until(lambda view: view.status == status and (when != "answering" or view.active))
    await house.pool.close()
    assert not house.processes()
    asked.cancel()


async def test_drain_refuses_what_is_new_and_finishes_what_was_accepted(make: Make) -> None:
    house = await make({"token_s": 0.05})
    accepted = asyncio.gather(*(house.ask() for _ in range(3)))
    await house.until(lambda view: (view.active, view.queued) == (2, 1))
    draining = asyncio.create_task(house.pool.drain(20.0))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="shutting down"):
        await house.ask()
    await draining
    assert accepted.done()
    assert await accepted == ["w0 w1 w2 "] * 3
