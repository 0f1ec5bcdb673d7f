"""The pool with real engine processes: who goes for another, how long a model stays, and versions that change."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import psutil
import pytest

from damages import Damage, deleted, spoiled
from ggufs import make as make_gguf
from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    NotFound,
    Overloaded,
)
from modelops.serving.catalog import Version
from modelops.serving.placement import HOST, MB, Bill, Plan
from modelops.serving.wishes import Tuning, Wish
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


@pytest.mark.parametrize("damage", [spoiled, deleted])
async def test_no_engine_is_started_with_a_published_file_that_is_not_what_it_was(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    monkeypatch.setattr("modelops.serving.scheduler.BACKOFF_S", (0.0, 0.1))
    house = await make()
    await house.load()
    version = await house.catalog.publish("a", tiny_gguf(tmp_path / "made.gguf", general__name="made"), "llm")
    soon = asyncio.get_running_loop().time() + 20
    await house.pool.activate(version, drain_first=False, deadline=soon)
    damage(version.file)
    assert await house.ask() == "w0 w1 w2 ", "what runs goes on"
    psutil.Process(house.pool.view("a").engine_pid).children()[0].kill()
    view = await house.until(lambda view: view.status == "failed")
    assert re.match("the file of 'a' v2 (was damaged|is gone)", view.message)
    assert (house.starts, view.breaker.failures) == (2, 3)
    with pytest.raises(Overloaded, match="the file of 'a' v2"):
        await house.ask()
    await house.pool.activate(house.catalog.version("a", "v1"), drain_first=False, deadline=soon)
    assert await house.ask() == "w0 w1 w2 "
    assert house.pool.view("a").version.label == "v1"


async def test_two_versions_that_do_not_fit_side_by_side_are_told_what_helps(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    await house.load()
    version = await second(house)
    with pytest.raises(InsufficientMemory, match="drain_first") as caught:
        await house.pool.swap(version, drain_first=False, deadline=soon())
    assert int(caught.value.details["needed_mb"]) > int(caught.value.details["free_mb"])
    assert house.pool.view("a").version.label == "v1"
    assert (await house.pool.swap(version, drain_first=True, deadline=soon())).version.label == "v2"


@pytest.mark.parametrize("loaded", [True, False])
async def test_what_is_not_wanted_any_more_when_it_is_prepared_changes_nothing(make: Make, loaded: bool) -> None:
    house = await make()
    if loaded:
        await house.load()
    version, running = await second(house), house.starts

    def confirm() -> None:
        assert house.pool.at_rest("a")
        raise Conflict("another was chosen")

    with pytest.raises(Conflict, match="another was chosen"):
        await house.pool.activate(version, wish=Wish(slots=1), drain_first=False, deadline=soon(), confirm=confirm)
    assert (house.catalog.active("a").label, house.starts) == ("v1", running)
    assert await house.ask() == "w0 w1 w2 "
    assert (house.pool.view("a").version.label, house.pool.view("a").slots) == ("v1", 2)


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


# --- the same version, run otherwise ---
def flags(house: House) -> list[str]:
    """How the engine that serves `a` was started."""
    return psutil.Process(house.pool.view("a").engine_pid).cmdline()


async def test_a_model_is_run_otherwise_without_a_failed_request(make: Make) -> None:
    house = await make({"token_s": 0.01})
    await house.load(context_length=512, keep_alive_s=60.0)
    before, wish = house.pool.wish("a"), Wish(context_length=512, slots=1, tuning=Tuning(batch_size=64))
    version, going = house.catalog.active("a"), True

    async def ask() -> int:
        answered = 0
        while going:
            assert await house.ask() == "w0 w1 w2 "
            answered += 1
        return answered

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    view = await house.pool.swap(version, wish, drain_first=False, deadline=soon())
    assert (view.version.label, view.slots, house.pool.wish("a")) == ("v1", 1, wish)
    assert flags(house)[flags(house).index("--batch-size") + 1] == "64"
    assert before is not None
    await house.pool.activate(version, wish=before, drain_first=False, deadline=soon())  # and back
    assert (house.pool.view("a").slots, house.pool.wish("a")) == (2, before)
    going = False
    assert all(await asyncio.gather(*asking))
    assert house.starts == 3
    await house.pool.activate(version, wish=before, drain_first=False, deadline=soon())  # it is run so already
    assert house.starts == 3


async def test_a_way_that_does_not_load_leaves_the_model_as_it_was(make: Make) -> None:
    house = await make({"load_fails": ["", "error: out of luck"]})
    await house.load(slots=1)
    with pytest.raises(EngineFailed, match="out of luck"):
        await house.pool.swap(house.catalog.active("a"), Wish(slots=3), drain_first=False, deadline=soon())
    assert (house.pool.view("a").slots, house.pool.wish("a")) == (1, Wish(slots=1))
    assert await house.ask() == "w0 w1 w2 "


async def test_what_failed_as_it_was_run_is_not_held_against_another_way(make: Make) -> None:
    house = await make({"load_fails": ["error: out of luck"]})
    with pytest.raises(EngineFailed):
        await house.load(tuning=Tuning(speculation="ngram"))
    with pytest.raises(Overloaded):
        await house.ask()
    await house.pool.activate(house.catalog.active("a"), wish=Wish(slots=1), drain_first=False, deadline=soon())
    assert await house.ask() == "w0 w1 w2 "
    assert house.pool.view("a").slots == 1


async def test_a_model_that_is_on_its_way_is_run_otherwise_when_it_is_there(make: Make) -> None:
    house = await make({"load_s": 0.3})
    loading = asyncio.create_task(house.load())
    await house.until(lambda view: view.status == "loading")
    version = house.catalog.active("a")
    await house.pool.activate(version, wish=Wish(slots=1), drain_first=False, deadline=soon())
    await loading
    assert (house.pool.view("a").slots, house.starts) == (1, 2)
    await house.unload()
    loading = asyncio.create_task(house.load())
    await house.until(lambda view: view.status == "loading")
    with pytest.raises(DeadlineExceeded, match="on its way to another state"):
        await house.pool.activate(version, wish=Wish(slots=1), drain_first=False, deadline=soon() - 19.95)
    await loading


async def test_a_model_that_is_not_loaded_is_run_so_from_its_next_load_on(make: Make) -> None:
    house = await make()
    await house.pool.activate(house.catalog.active("a"), wish=Wish(slots=1), drain_first=False, deadline=soon())
    assert (house.pool.view("a").status, house.starts) == ("available", 0)
    await house.ask()
    assert house.pool.view("a").slots == 1


async def test_another_model_guesses_ahead(make: Make) -> None:
    house = await make()
    tuning = Tuning(speculation="draft", draft="b")
    await house.load("a", tuning=tuning)
    assert flags(house)[flags(house).index("--model-draft") + 1] == str(house.models / "b.gguf")
    alone, _ = await house.pool.preview(house.catalog.active("a"), Wish())
    both, _ = await house.pool.preview(house.catalog.active("a"), Wish(tuning=tuning))
    assert both.candidate.recipe != alone.candidate.recipe
    assert both.estimate.total > alone.estimate.total
    tiny_gguf(house.models / "sub" / "vectors.gguf")
    await house.catalog.register("vectors", "sub/vectors.gguf", "embedding")
    with pytest.raises(InvalidRequest, match="is no model that generates"):
        await house.load("b", tuning=Tuning(speculation="draft", draft="vectors"))
    wish = Wish(tuning=Tuning(speculation="draft", draft="c"))
    with pytest.raises(NotFound, match="there is no model 'c'"):
        await house.pool.swap(house.catalog.active("a"), wish, drain_first=False, deadline=soon())


async def test_how_a_model_was_tuned_is_forgotten_once_it_is_not_loaded(make: Make) -> None:
    house = await make()
    await house.pool.untune("a")  # which nobody has tuned
    await house.catalog.set_tuned("a", Wish(slots=1))
    await house.ask()
    with pytest.raises(AlreadyLoaded, match="'a' is loaded as it was tuned; unload it"):
        await house.pool.untune("a")
    assert house.catalog.tuned("a") == Wish(slots=1)
    await house.unload()
    await house.pool.untune("a")
    assert house.catalog.tuned("a") is None
    await house.ask()
    assert house.pool.view("a").slots > 1, "not as it was last run"
    with pytest.raises(NotFound):
        await house.pool.untune("nobody")


async def test_a_model_whose_draft_model_is_gone_is_served_without_it(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    house = await make()
    await house.catalog.set_tuned("a", Wish(slots=1, tuning=Tuning(speculation="draft", draft="b")))
    await house.ask()
    assert "--model-draft" in flags(house)
    await house.unload()
    await house.catalog.remove([house.catalog.active("b")])
    assert await house.ask() == "w0 w1 w2 "
    assert ("--model-draft" in flags(house), house.pool.view("a").slots) == (False, 1)
    assert "nothing guesses ahead of 'a': there is no model 'b'" in caplog.text
