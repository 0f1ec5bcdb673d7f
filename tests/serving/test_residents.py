"""What a restart brings back. Leaving a house and entering it again is a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import psutil
import pytest

from modelops.api.errors import AlreadyLoaded, EngineFailed
from modelops.serving.placement import HOST
from modelops.serving.wishes import Tuning, Wish
from modelops.settings import ModelEntry, Settings
from modelops.store.residents import ModelRow
from serving.house import House, house
from support import FAKE_ENGINE, tiny_gguf

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Enter(Protocol):
    def __call__(
        self, behaviour: Mapping[str, Any] = ..., entries: Mapping[str, ModelEntry] = ..., budget_mb: int = ...
    ) -> AbstractAsyncContextManager[House]: ...


@pytest.fixture
def enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enter:
    """A run with the models `a`, `b` and `c`, which loads what was loaded when the one before it ended."""

    @contextlib.asynccontextmanager
    async def enter(
        behaviour: Mapping[str, Any] = NOTHING, entries: Mapping[str, ModelEntry] = NOTHING, budget_mb: int = 0
    ) -> AsyncIterator[House]:
        starts = tmp_path / "starts"
        monkeypatch.setenv("FAKE_ENGINE", json.dumps({"count_file": str(starts), **behaviour}))
        engine = {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1, "stop_timeout_s": 2.0, "probe": False}
        settings = Settings.model_validate({"data_dir": tmp_path, "engine": engine, "memory": {"budget_mb": budget_mb}})
        for name in ("a", "b", "c"):
            if not starts.exists():  # else this is a restart
                tiny_gguf(settings.models_dir / f"{name}.gguf")
        async with house(tmp_path, settings, starts, entries) as entered:
            entered.residents.restore(entered.catalog, entered.pool, await entered.residents.queries.all())
            yield entered

    return enter


async def wanted(entered: House) -> dict[str, Wish]:
    """What a restart would load, as the state file has it once all is written."""
    await asyncio.sleep(0)
    await entered.residents.queries.remove("nobody")  # behind what is being written
    rows: list[ModelRow] = await entered.residents.queries.all()
    return {row.model_name: Wish.from_json(row.wish) for row in rows if row.wanted}


async def test_what_is_loaded_is_loaded_again_as_it_was_wished(enter: Enter) -> None:
    wish = Wish(context_length=512, slots=1, cache_type="q8_0", keep_alive_s=3600.0, pinned=True)
    async with enter() as first:
        await first.load("a", context_length=512, slots=1, cache_type="q8_0", keep_alive_s=3600.0, pinned=True)
        await first.ask("b")
        assert await wanted(first) == {"a": wish, "b": Wish()}
    async with enter() as second:
        for name in ("a", "b"):
            await second.until(lambda view: view.status == "loaded", name)
        view = second.pool.view("a")
        assert (view.context_length, view.slots, view.cache_type, view.pinned) == (512, 1, "q8_0", True)
        assert second.pool.wish("a") == wish
        assert second.pool.view("c").status == "available"
        assert second.reserved == sum(second.pool.view(name).memory[HOST] for name in ("a", "b"))
        assert await wanted(second) == {"a": wish, "b": Wish()}


async def test_a_load_that_is_not_done_yet_is_wanted_already(enter: Enter) -> None:
    async with enter({"load_s": 3600}) as first:
        await first.pool.start_load(first.catalog.active("a"), Wish(slots=1))
        assert await wanted(first) == {"a": Wish(slots=1)}
    async with enter() as second:
        await second.until(lambda view: view.status == "loaded")
        assert second.pool.view("a").slots == 1


async def test_a_load_that_joins_the_one_of_a_restart_pins_it(enter: Enter) -> None:
    async with enter() as first:
        await first.load("a", slots=1)
    wish = Wish(slots=1, keep_alive_s=3600.0, pinned=True)
    async with enter({"load_s": 0.3}) as second:
        await second.until(lambda view: view.status == "loading")
        view = await second.load("a", slots=3, keep_alive_s=3600.0, pinned=True)
        assert (view.slots, view.pinned, view.expires_at) == (1, True, None)
        assert second.starts == 2, "one for each run"
        assert second.pool.wish("a") == wish
        assert await wanted(second) == {"a": wish}
        with pytest.raises(AlreadyLoaded):
            await second.load("a", keep_alive_s=1.0)
        assert second.pool.wish("a") == wish, "whoever is refused changes nothing"
    async with enter() as third:
        await third.until(lambda view: view.status == "loaded")
        assert third.pool.view("a").pinned


async def test_a_load_that_waits_for_the_end_of_an_unload_has_its_own_keep_alive(enter: Enter) -> None:
    async with enter() as home, asyncio.TaskGroup() as group:
        await home.load("a")
        async with home.lease():
            group.create_task(home.unload("a"))
            await home.until(lambda view: view.status == "unloading")
            loading = group.create_task(home.load("a", keep_alive_s=3600.0))
        assert (await loading).expires_at
        assert await wanted(home) == {"a": Wish(keep_alive_s=3600.0)}


@pytest.mark.parametrize("how", ["unload", "evict", "keep-alive", "fail"])
async def test_what_has_gone_is_not_loaded_again(enter: Enter, how: str) -> None:
    async with enter({"models": {"c": {"load_fails": "error: out of luck"}}}, budget_mb=70) as first:
        name = "c" if how == "fail" else "a"
        if how == "unload":
            await first.load()
            await first.unload()
        elif how == "evict":
            await first.load()
            await first.load("b")
        elif how == "keep-alive":
            await first.ask(keep_alive_s=0)
            await first.until(lambda view: view.status == "available")
        else:
            with pytest.raises(EngineFailed):
                await first.ask("c")
        assert name not in await wanted(first)
    async with enter() as second:
        if how == "evict":
            await second.until(lambda view: view.status == "loaded", "b")
        assert second.pool.view(name).status == "available"


async def test_pinned_models_come_first_and_then_the_one_that_was_loaded_last(
    enter: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    async with enter() as first:
        await first.load("a", pinned=True)
        await first.load("b")
        await first.load("c")
    with caplog.at_level("INFO"):
        async with enter() as second:
            await second.until(lambda view: view.status == "loaded", "b")
    assert "loading a, c, b" in caplog.text


async def test_the_catalogue_says_what_is_loaded_at_the_start_and_the_last_wish_wins(enter: Enter) -> None:
    entries = {
        "a": ModelEntry(preload=True, slots=1),
        "b": ModelEntry(preload=True, slots=1),
        "c": ModelEntry(slots=3),
    }
    async with enter(entries=entries) as first:
        for name in ("a", "b"):
            view = await first.until(lambda view: view.status == "loaded", name)
            assert view.slots == 1
        assert first.pool.view("c").status == "available"
        await first.unload("a")
        await first.load("a", slots=4)
    async with enter(entries=entries) as second:
        assert (await second.until(lambda view: view.status == "loaded", "a")).slots == 4
        assert (await second.until(lambda view: view.status == "loaded", "b")).slots == 1


async def test_what_cannot_be_loaded_any_more_hinders_nothing_else(
    enter: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    async with enter() as first:
        await first.load("a")
        await first.load("b")
        await first.load("c")
        (first.models / "b.gguf").rename(first.models / "b.old")
        (first.models / "c.gguf").write_text("no model any more")
    async with enter() as second:
        await second.until(lambda view: view.status == "loaded", "a")
    assert "b is wanted and was not loaded: the file of 'b' is gone" in caplog.text
    assert "c is wanted and was not loaded: 'c.gguf' is no usable GGUF file" in caplog.text


async def test_a_caller_may_be_faster(enter: Enter) -> None:
    async with enter() as first:
        await first.load("a")
    async with enter() as second:
        assert await second.ask("a") == "w0 w1 w2 "
        assert second.starts == 1 + 1


async def test_the_active_version_is_the_one_that_is_loaded_again(enter: Enter) -> None:
    async with enter() as first:
        for name in ("two", "three"):
            tiny_gguf(first.models / "sub" / f"{name}.gguf", general__name=name)
            version = await first.catalog.register("a", f"sub/{name}.gguf", "llm")
        await first.load("a")
        assert first.pool.view("a").version.label == "v1"
    async with enter() as second:
        assert (await second.until(lambda view: view.status == "loaded")).version.label == "v1"
        await second.catalog.activate(second.catalog.version("a", "v2"))
        await second.unload()
        await second.load()
    async with enter() as third:
        assert (await third.until(lambda view: view.status == "loaded")).version.label == "v2"
        assert third.catalog.previous("a").label == "v1"
        assert version.label == "v3"


async def test_an_engine_that_dies_while_the_coordinator_ends_is_still_wanted(enter: Enter) -> None:
    """As where whoever ends a service signals all of its processes at once."""
    async with enter() as first:
        await first.load("a")
        await first.pool.drain(0.0)
        for process in first.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends with the one before
                process.kill()
        await first.until(lambda view: view.status != "loaded")
        assert await wanted(first) == {"a": Wish()}
    async with enter() as second:
        await second.until(lambda view: view.status == "loaded")


@pytest.mark.parametrize("drain_first", [False, True])
async def test_what_is_run_otherwise_is_loaded_again_so(enter: Enter, drain_first: bool) -> None:
    wish = Wish(slots=1, pinned=True, tuning=Tuning(batch_size=64))
    async with enter() as first:
        await first.load("a", slots=2)
        deadline = asyncio.get_running_loop().time() + 20.0
        await first.pool.swap(first.catalog.active("a"), wish, drain_first=drain_first, deadline=deadline)
        assert await wanted(first) == {"a": wish}
    async with enter() as second:
        assert (await second.until(lambda view: view.status == "loaded", "a")).slots == 1
        assert second.pool.wish("a") == wish


async def test_a_model_that_was_tuned_is_run_so_where_nobody_says_otherwise(enter: Enter) -> None:
    async with enter() as first:
        await first.catalog.set_tuned("a", Wish(slots=1, tuning=Tuning(threads=1)))
        await first.ask("a")
        assert (first.pool.view("a").slots, first.pool.wish("a")) == (1, first.catalog.wish("a"))
