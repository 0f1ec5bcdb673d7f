"""The pool with real engine processes: leases, joins, crashes, unloads, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
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
from modelops.engines.base import Prompt
from modelops.serving.catalog import Catalog
from modelops.serving.pool import Lease, Pool, View
from modelops.serving.tuning import Wish
from modelops.settings import Settings
from modelops.store.database import open_database
from modelops.store.models import ModelQueries
from support import FAKE_ENGINE, tiny_gguf

PROMPT = Prompt(text="Hello", system="", raw=False, max_tokens=3, temperature=0.0, top_p=0.9, stop=(), seed=None)
Section = dict[str, Any]


class House:
    """A pool with the models `a` and `b`, two slots each, and what tests do with it."""

    def __init__(self, pool: Pool, catalog: Catalog, models: Path, starts: Path) -> None:
        self.pool = pool
        self.catalog = catalog
        self.models = models
        self._starts = starts
        self._others = set(psutil.Process().children(recursive=True))  # of other tests

    def processes(self) -> set[psutil.Process]:
        """Every process that the pool has started and that is still there."""
        return set(psutil.Process().children(recursive=True)) - self._others

    @property
    def starts(self) -> int:
        """How often an engine has been started."""
        return len(self._starts.read_text().splitlines()) if self._starts.exists() else 0

    def lease(self, name: str = "a", seconds: float = 20.0) -> AbstractAsyncContextManager[Lease]:
        return self.pool.lease(name, asyncio.get_running_loop().time() + seconds)

    async def ask(self, name: str = "a", seconds: float = 20.0, **changes: Any) -> str:
        """One request; the whole answer."""
        async with self.lease(name, seconds) as lease:
            pieces = [piece.text async for piece in lease.generate(replace(PROMPT, **changes))]
        return "".join(pieces)

    async def load(self, name: str = "a", seconds: float = 20.0) -> View:
        return await self.pool.load(self.catalog.active(name), Wish(), asyncio.get_running_loop().time() + seconds)

    async def unload(self, name: str = "a", *, force: bool = False, seconds: float = 20.0) -> int:
        return await self.pool.unload(name, force=force, deadline=asyncio.get_running_loop().time() + seconds)

    async def until(self, condition: Callable[[View], object], name: str = "a") -> View:
        """Wait until the model's view is as wanted."""
        while not condition(view := self.pool.view(name)):
            await asyncio.sleep(0.005)
        return view


Make = Callable[..., Awaitable[House]]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes a house whose engines behave as told. At the end, nothing of it may be left."""
    before = psutil.Process().children(recursive=True)
    async with contextlib.AsyncExitStack() as stack:

        async def make(behaviour: Section | None = None, *, engine: Section | None = None, **sections: Any) -> House:
            starts = tmp_path / "starts"
            monkeypatch.setenv("FAKE_ENGINE", json.dumps({"count_file": str(starts)} | (behaviour or {})))
            engine = {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1, "stop_timeout_s": 2.0} | (engine or {})
            settings = Settings.model_validate({"data_dir": tmp_path, "engine": engine, **sections})
            for name in ("a", "b"):
                tiny_gguf(settings.models_dir / f"{name}.gguf")
            database = await open_database(tmp_path / "state.db")
            stack.push_async_callback(database.dispose)
            catalog = Catalog(ModelQueries(database), [settings.models_dir])
            await catalog.open()
            pool = Pool(settings, catalog, tmp_path)
            stack.push_async_callback(pool.close)
            return House(pool, catalog, settings.models_dir, starts)

        yield make
    assert psutil.Process().children(recursive=True) == before
    assert not list(tmp_path.glob("*.sock"))


# --- loading ---
async def test_the_first_lease_loads_the_model(make: Make) -> None:
    house = await make()
    assert house.pool.view("a").status == "available"
    assert await house.ask() == "w0 w1 w2 "
    view = house.pool.view("a")
    assert (view.status, view.slots, view.active, view.queued) == ("loaded", 2, 0, 0)
    assert view.memory_mb > 0
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
    assert house.pool.reserved_bytes() > 2 * 80 * 2**20


async def test_what_does_not_fit_is_refused_with_the_bill(make: Make) -> None:
    house = await make(memory={"budget_mb": 120})
    await house.ask("a")
    with pytest.raises(InsufficientMemory) as caught:
        await house.ask("b")
    bill = caught.value.details
    held = int(bill["held_mb.a"])
    assert 80 < held < 120
    assert int(bill["needed_mb"]) > int(bill["free_mb"])
    assert 120 - held - 1 <= int(bill["free_mb"]) <= 120 - held
    assert int(bill["reserved_mb"]) == int(bill["evictable_mb"]) == held
    assert f"'a' {held} MB" in caught.value.message
    await house.unload("a")
    assert await house.ask("b") == "w0 w1 w2 "


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
    for _ in range(2):  # the second is told at once, without a start
        with pytest.raises(EngineFailed, match="out of luck"):
            await house.ask()
    assert house.pool.view("a").status == "failed"
    assert "out of luck" in house.pool.view("a").message
    assert house.pool.reserved_bytes() == 0
    assert house.starts == 1


async def test_a_model_that_is_loaded_again_is_the_version_that_is_active_then(make: Make) -> None:
    house = await make()
    async with house.lease() as lease:
        assert lease.version.label == "v1"
    tiny_gguf(house.models / "a.v2.gguf", llama__context_length=512)
    await house.catalog.register("a", "a.v2.gguf", "llm")
    async with house.lease() as lease:
        assert lease.version.label == "v1"  # what is loaded stays
    await house.unload()
    async with house.lease() as lease:
        assert (lease.version.label, lease.engine.spec.context_length) == ("v2", 512)


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
    held = house.pool.reserved_bytes()
    unloading = asyncio.create_task(house.unload())
    await house.until(lambda view: view.status == "unloading")
    assert await answer == "w0 w1 w2 "
    assert await unloading == held
    assert house.pool.view("a").status == "available"
    assert house.pool.reserved_bytes() == 0
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
    assert house.pool.reserved_bytes() == 0
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
