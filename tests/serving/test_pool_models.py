"""The pool with real engine processes: who goes for another, how long a model stays, and versions that change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ggufs import make as make_gguf
from modelops.api.errors import Conflict, EngineFailed, InsufficientMemory
from modelops.serving.catalog import Version
from modelops.serving.placement import HOST, MB, Bill, Plan
from modelops.serving.wishes import Wish
from serving.house import PROMPT, House, Make
from support import tiny_gguf


# --- memory ---
async def test_an_idle_model_makes_room_for_another(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
        assert await house.ask(name) == "w0 w1 w2 "
        assert (house.pool.view(name).status, house.pool.view(other).status) == ("loaded", "available")
        assert house.reserved == house.pool.view(name).memory[HOST]
    assert len(house.processes()) == 2  # one engine and its guard


async def test_a_pinned_model_is_not_evicted(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    await house.load("a", pinned=True)
    with pytest.raises(InsufficientMemory):
        await house.ask("b")
    await house.unload("a")
    assert await house.ask("b") == "w0 w1 w2 "


async def test_memory_can_be_borrowed_for_what_is_no_model(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    await house.ask("a")
    async with house.pool.borrow("a copy", 60 * MB):  # the idle model goes for it
        assert house.pool.view("a").status == "available"
        assert house.reserved == 60 * MB
        with pytest.raises(InsufficientMemory, match=r"'a copy #\d+' 60 MB"):
            await house.ask("b")
    assert await house.ask("b") == "w0 w1 w2 "


# --- how long a model stays ---
async def test_quantised_weights_are_known_before_they_are_made_and_are_what_is_served(make: Make) -> None:
    house = await make()
    make_gguf(house.models / "f16.gguf", layers=8, width=512, heads=8, words=4096, kind="f16")
    await house.catalog.refresh()
    version, wish = house.catalog.active("f16"), Wish(quantization=True)
    plain, _ = await house.pool.preview(version, Wish())
    before, _ = await house.pool.preview(version, wish)
    assert before.tuned.need.parts["weights"] < 0.6 * plain.tuned.need.parts["weights"]
    await house.load("f16", quantization=True)
    after, _ = await house.pool.preview(version, wish)
    assert before.tuned.need == after.tuned.need
    assert before.tuned.header.digest == after.tuned.header.digest, "what was learnt of the one is known of the other"
    served = [" ".join(process.cmdline()) for process in house.processes()]
    assert any("Q8_0.gguf" in line for line in served)
    assert house.pool.view("f16").version.file == version.file, "the version is the file's own"


async def test_a_model_goes_when_its_keep_alive_is_over(make: Make) -> None:
    house = await make(models={"keep_alive": 0.2})
    await house.load()
    assert house.pool.view("a").expires_at  # counted from the load, where nobody asks
    await house.until(lambda view: view.status == "available")
    assert (house.reserved, house.processes()) == (0, set())


async def test_keep_alive_counts_from_the_end_of_the_last_request(make: Make) -> None:
    house = await make({"token_s": 0.1}, models={"keep_alive": 0.2})
    assert await house.ask(max_tokens=5) == "w0 w1 w2 w3 w4 "  # which takes longer than it stays
    ended = asyncio.get_running_loop().time()
    assert house.pool.view("a").status == "loaded"
    await house.until(lambda view: view.status != "loaded")
    assert asyncio.get_running_loop().time() - ended >= 0.15
    assert house.starts == 1


async def test_a_requests_own_keep_alive_holds_until_the_next_request(make: Make) -> None:
    house = await make(models={"keep_alive": 0})
    await house.ask(keep_alive_s=-1)
    assert (house.pool.view("a").status, house.pool.view("a").expires_at) == ("loaded", None)
    await house.ask(keep_alive_s=300)
    assert house.pool.view("a").expires_at
    await house.ask()
    await house.until(lambda view: view.status == "available")
    assert house.starts == 1


async def test_no_keep_alive_ends_a_pinned_model(make: Make) -> None:
    house = await make(models={"keep_alive": 0})
    await house.load(pinned=True)
    await house.ask(keep_alive_s=0)
    view = house.pool.view("a")
    assert (view.status, view.pinned, view.expires_at) == ("loaded", True, None)


# --- another version ---
async def second(house: House, **entries: Any) -> Version:
    """The version v2 of `a`."""
    tiny_gguf(house.models / "sub" / "two.gguf", general__name="two", **entries)
    return await house.catalog.register("a", "sub/two.gguf", "llm")


def soon() -> float:
    return asyncio.get_running_loop().time() + 20.0


async def test_a_swap_costs_no_request_and_the_old_engine_ends_with_its_last(make: Make) -> None:
    house = await make({"token_s": 0.05})
    await house.load(context_length=512, keep_alive_s=60.0, pinned=True)
    version = await second(house)
    async with house.lease() as lease:
        old = lease.engine
        view = await house.pool.swap(version, drain_first=False, deadline=soon())
        assert (view.version.label, view.context_length, view.pinned) == ("v2", 512, True)
        assert (house.starts, len(house.processes())) == (2, 4)
        async with house.lease() as other:
            assert other.version.label == "v2"
            assert other.engine.pid == house.pool.view("a").engine_pid != old.pid
        assert "".join([piece.text async for piece in lease.generate(PROMPT)]) == "w0 w1 w2 "
        assert lease.version.label == "v1"
    while len(house.processes()) > 2:
        await asyncio.sleep(0.005)
    assert house.reserved == house.pool.view("a").memory[HOST]


async def test_a_swap_that_drains_first_makes_newcomers_wait(make: Make) -> None:
    house = await make({"token_s": 0.05})
    await house.load()
    version = await second(house)
    asked = asyncio.create_task(house.ask())
    await house.until(lambda view: view.active == 1)
    swapping = asyncio.create_task(house.pool.swap(version, drain_first=True, deadline=soon()))
    await house.until(lambda view: view.status == "unloading")
    async with house.lease() as lease:
        assert lease.version.label == "v2"
    assert await asked == "w0 w1 w2 "
    assert (await swapping).version.label == "v2"
    assert (house.starts, len(house.processes())) == (2, 2)


async def test_a_swap_that_fails_leaves_the_present_version_serving(make: Make) -> None:
    house = await make({"load_fails": ["", "error: out of luck"]})
    await house.load()
    with pytest.raises(EngineFailed, match="out of luck"):
        await house.pool.swap(await second(house), drain_first=False, deadline=soon())
    view = house.pool.view("a")
    assert (view.status, view.version.label) == ("loaded", "v1")
    assert await house.ask() == "w0 w1 w2 "
    assert house.reserved == view.memory[HOST]


async def test_two_versions_that_do_not_fit_side_by_side_are_told_what_helps(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    await house.load()
    version = await second(house)
    with pytest.raises(InsufficientMemory, match="drain_first") as caught:
        await house.pool.swap(version, drain_first=False, deadline=soon())
    assert int(caught.value.details["needed_mb"]) > int(caught.value.details["free_mb"])
    assert house.pool.view("a").version.label == "v1"
    assert (await house.pool.swap(version, drain_first=True, deadline=soon())).version.label == "v2"


async def test_what_is_not_loaded_is_not_swapped(make: Make) -> None:
    house = await make()
    with pytest.raises(Conflict, match="not loaded"):
        await house.pool.swap(await second(house), drain_first=False, deadline=soon())


async def test_what_a_borrower_has_taken_is_not_counted_twice(make: Make) -> None:
    house = await make()
    before = house.free
    async with house.pool.borrow("training", 100 * MB) as loan:
        assert before - house.free == pytest.approx(100 * MB, abs=20 * MB)
        loan.taken = lambda: 60 * MB  # which the machine would show as used
        assert before - house.free == pytest.approx(40 * MB, abs=20 * MB)
    assert isinstance(house.pool.preview_loan("training", 100 * MB), Plan)
    assert isinstance(house.pool.preview_loan("training", 2**50), Bill)


async def test_somebody_is_told_when_requests_begin_and_when_the_last_has_ended(make: Make) -> None:
    house = await make()
    told: list[bool] = []
    house.pool.on_busy = told.append
    assert set(await asyncio.gather(house.ask("a"), house.ask("a"))) == {"w0 w1 w2 "}
    assert told == [True, False]
