"""Adapters of one model, served by its engine: which it holds, who waits for it, and that nobody is answered by
another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from adapters import make_adapter
from modelops.api.errors import AlreadyLoaded, Conflict, EngineFailed, InsufficientMemory, NotFound
from modelops.engines.base import EngineBroke
from modelops.serving.catalog import Version
from modelops.serving.placement import HOST, MB
from modelops.serving.views import Lease, View
from modelops.serving.wishes import Wish
from modelops.settings import Settings
from serving.house import PROMPT, House, Make, house
from support import FAKE_ENGINE, tiny_gguf

ECHO = {"echo": True}


async def publish(home: House, name: str, seed: int, base: str = "a") -> Version:
    """A version of the adapter `name`, whose file says which seed it is of."""
    version = home.catalog.active(base)
    file = make_adapter(home.models.parent / f"made-{seed}.gguf", version.file, seed=seed)
    return await home.catalog.publish_adapter(name, version, file, {"seed": seed})


async def answer(lease: Lease) -> str:
    """The name of the file that the engine was told to answer with; nothing where with none."""
    text = "".join([piece.text async for piece in lease.generate(PROMPT)])
    told = json.loads(text)
    flags: list[str] = told["flags"]
    files = [flags[index + 1].rpartition(":")[0] for index, flag in enumerate(flags) if flag == "--lora-scaled"]
    scales = {one["id"]: one["scale"] for one in told.get("lora", [])}
    assert sorted(scales) == list(range(len(files)))  # all are named, always
    used = [file for index, file in enumerate(files) if scales[index]]
    assert len(used) <= 1
    return Path(used[0]).name if used else ""


async def ask(home: House, name: str) -> tuple[str, str]:
    """The version that its caller is told of, and the file that it was answered with."""
    async with home.lease(name) as lease:
        return f"{lease.version.model_name} {lease.version.label}", await answer(lease)


def told(version: Version) -> tuple[str, str]:
    """What `ask` says where that version has answered."""
    return f"{version.model_name} {version.label}", version.file.name if version.base else ""


async def settled(home: House, name: str = "a") -> View:
    """The model, once nothing is about to become of it, and what was replaced is gone."""
    while home.pool.adapting.following(name) or not home.pool.at_rest(name) or len(home.processes()) > 2:
        await asyncio.sleep(0.005)
    return home.pool.view(name)


def statuses(home: House, *names: str) -> list[str]:
    return [home.pool.view(name).status for name in names]


# --- who answers ---
async def test_each_name_is_answered_by_its_own_adapter_and_the_base_by_none(make: Make) -> None:
    home = await make(ECHO)
    versions = [await publish(home, f"a:{name}", seed) for seed, name in enumerate(("x", "y"))]
    assert statuses(home, "a", "a:x", "a:y") == ["available"] * 3
    for version in [*versions, home.catalog.active("a"), *reversed(versions)]:
        assert await ask(home, version.model_name) == told(version)
    assert home.starts == 1
    assert statuses(home, "a", "a:x", "a:y", "b") == ["loaded"] * 3 + ["available"]
    assert (await ask(home, "b"))[1] == ""


async def test_an_adapter_of_a_loaded_model_is_loaded_without_anybody_asking(make: Make) -> None:
    home = await make(ECHO)
    await home.load()
    assert await ask(home, "a") == ("a v1", "")
    first = await publish(home, "a:x", 1)
    assert statuses(home, "a", "a:x") == ["loaded", "loading"]
    await settled(home)
    assert statuses(home, "a", "a:x") == ["loaded", "loaded"]
    assert await ask(home, "a:x") == told(first)
    assert await ask(home, "a") == ("a v1", "")
    assert home.starts == 2
    assert home.catalog.chosen("a") == (1, 0)


async def test_who_asks_for_an_adapter_that_is_on_its_way_waits_for_it(make: Make) -> None:
    home = await make(ECHO | {"load_s": 0.2})
    await home.load()
    versions = [await publish(home, f"a:{seed}", seed) for seed in range(3)]
    asked = [version.model_name for version in versions for _ in range(5)]
    found = await asyncio.gather(*(ask(home, name) for name in [*asked, "a"]))
    assert found == [*(told(version) for version in versions for _ in range(5)), ("a v1", "")]
    await settled(home)
    assert home.starts <= 1 + 2  # joined, not one for each


async def test_what_was_begun_on_the_engine_that_is_replaced_ends_there(make: Make) -> None:
    home = await make(ECHO)
    first = await publish(home, "a:x", 1)
    async with home.lease("a:x") as lease, home.lease("a") as plain:
        second = await publish(home, "a:w", 2)  # its number will be that of a:x
        assert await ask(home, "a:w") == told(second)
        assert await answer(lease) == first.file.name
        assert await answer(plain) == ""
        assert home.pool.view("a").active == 2
        assert (home.pool.view("a:x").active, home.pool.view("a:w").active) == (1, 0)
    await settled(home)


async def test_another_version_of_an_adapter_answers_once_it_is_activated(make: Make) -> None:
    home = await make(ECHO)
    first, second = [await publish(home, "a:x", seed) for seed in (1, 2)]
    other = await publish(home, "a:y", 3)
    assert (second.label, home.catalog.active("a:x").label) == ("v2", "v1")
    assert await ask(home, "a:x") == told(first)
    deadline = asyncio.get_running_loop().time() + 20
    for version in (second, home.catalog.version("a:x", "v1"), second):
        await home.pool.activate(version, drain_first=version is first, deadline=deadline)
        assert await ask(home, "a:x") == told(version)
        assert await ask(home, "a:y") == told(other)
    assert home.catalog.chosen("a:x") == (2, 1)
    assert home.catalog.chosen("a") == (1, 0)
    assert home.starts == 4


async def test_a_version_that_is_activated_while_its_model_rests_answers_when_it_is_loaded(make: Make) -> None:
    home = await make(ECHO)
    _, second = [await publish(home, "a:x", seed) for seed in (1, 2)]
    deadline = asyncio.get_running_loop().time() + 20
    await home.pool.activate(second, drain_first=False, deadline=deadline)
    assert await ask(home, "a:x") == told(second)
    assert home.starts == 1


async def test_adapters_are_activated_at_once_one_after_another(make: Make) -> None:
    home = await make(ECHO | {"load_s": 0.1})
    names = ("a:x", "a:y", "a:z")
    for seed, name in enumerate(names):
        await publish(home, name, seed)
    seconds = [await publish(home, name, 10 + seed) for seed, name in enumerate(names)]
    await home.load()
    deadline = asyncio.get_running_loop().time() + 20
    activations = [home.pool.activate(version, drain_first=False, deadline=deadline) for version in seconds]
    await asyncio.gather(*activations)
    assert [await ask(home, name) for name in names] == [told(version) for version in seconds]


async def test_another_version_of_the_model_is_activated_while_adapters_come(make: Make) -> None:
    home = await make(ECHO | {"load_s": 0.1})
    tiny_gguf(home.models / "sub" / "two.gguf", general__name="two")
    second = await home.catalog.register("a", "sub/two.gguf", "llm")
    await home.load()
    first = await publish(home, "a:x", 1)
    deadline = asyncio.get_running_loop().time() + 20
    await home.pool.activate(second, drain_first=False, deadline=deadline)
    assert await ask(home, "a") == ("a v2", "")
    with pytest.raises(Conflict, match=r"'a:x' v1 was made for 'a' v1, and v2 answers for 'a' now; activate v1 again"):
        await ask(home, "a:x")
    assert statuses(home, "a", "a:x") == ["loaded", "available"]
    with pytest.raises(Conflict, match="was made for 'a' v1"):
        await home.pool.activate(first, drain_first=False, deadline=deadline)
    await home.pool.activate(home.catalog.version("a", "v1"), drain_first=False, deadline=deadline)
    assert await ask(home, "a:x") == told(first)
    assert home.catalog.chosen("a") == (1, 2)


# --- removal ---
async def test_a_removed_adapter_is_gone_at_once_and_its_file_too(make: Make) -> None:
    home = await make(ECHO)
    first, second = [await publish(home, f"a:{name}", seed) for seed, name in enumerate("xy")]
    async with home.lease("a:x") as lease:
        assert await home.catalog.remove([first], home.pool.unused) == first.size
        with pytest.raises(NotFound):
            await ask(home, "a:x")
        assert await answer(lease) == first.file.name  # what was begun ends as it would have
        assert await ask(home, "a:y") == told(second)
    await settled(home)
    assert (first.file.exists(), second.file.exists()) == (False, True)
    assert await ask(home, "a:y") == told(second)
    assert home.starts == 2


async def test_what_waits_for_a_removed_adapter_is_told_so(make: Make) -> None:
    home = await make(ECHO | {"load_s": 0.2})
    await home.load()
    version = await publish(home, "a:x", 1)
    asked = asyncio.gather(*(ask(home, "a:x") for _ in range(4)), return_exceptions=True)
    await asyncio.sleep(0.05)
    await home.catalog.remove([version], home.pool.unused)
    found = await asked
    assert all(isinstance(one, NotFound) or one == told(version) for one in found)
    assert await ask(home, "a") == ("a v1", "")
    await settled(home)
    assert home.pool.view("a").status == "loaded"


async def test_a_file_is_deleted_only_when_no_engine_is_being_started_with_it(make: Make) -> None:
    home = await make(ECHO | {"load_s": 0.3})
    version = await publish(home, "a:x", 1)
    loading = asyncio.gather(home.load())
    await home.until(lambda view: view.engine_pid)
    removing = asyncio.gather(home.catalog.remove([version], home.pool.unused))
    await asyncio.sleep(0.05)
    assert version.file.exists()
    assert "a:x" not in home.catalog.names()
    await loading
    await removing
    assert not version.file.exists()
    assert await ask(home, "a") == ("a v1", "")


async def test_an_engine_that_crashes_comes_back_without_the_adapters_that_are_gone(make: Make) -> None:
    home = await make(ECHO)
    first, second = [await publish(home, f"a:{name}", seed) for seed, name in enumerate("xy")]
    assert await ask(home, "a:x") == told(first)
    first.file.unlink()  # by somebody else
    for name, found in (("a:y", told(second)), ("a", ("a v1", ""))):
        for process in home.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await home.until(lambda view: view.status != "loaded")
        assert await ask(home, name) == found
    with pytest.raises(NotFound, match=r"the file of 'a:x' v1 is gone: 'published/a-x-"):
        await ask(home, "a:x")


@pytest.mark.parametrize("which", ["the present one", "its successor"])
async def test_an_engine_that_dies_while_its_successor_comes_up_fails_nobody(make: Make, which: str) -> None:
    home = await make(ECHO | {"load_s": 0.4})
    await home.load()
    present = home.pool.view("a").engine_pid
    version = await publish(home, "a:x", 1)
    while len(home.processes()) < 4:  # each engine and its guard
        await asyncio.sleep(0.005)

    async def twice(name: str) -> tuple[str, str]:  # as the service does
        try:
            return await ask(home, name)
        except EngineBroke:
            return await ask(home, name)

    asked = asyncio.gather(*(twice(name) for name in ["a:x", "a"] * 3), return_exceptions=True)
    mine = {process.pid for process in psutil.Process(present).children(recursive=True)} | {present}
    for process in home.processes():
        if (process.pid in mine) is (which == "the present one"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    found = await asked
    if which == "the present one":
        assert found == [told(version), ("a v1", "")] * 3
    else:  # who waited for it is told so, and nobody else
        assert found[1::2] == [("a v1", "")] * 3
        assert all(isinstance(one, EngineFailed) or one == told(version) for one in found[::2])
    await publish(home, "a:y", 2)
    assert await ask(home, "a:x") == told(version)


# --- what else becomes of engines ---
async def test_an_adapter_is_loaded_and_unloaded_with_its_model(make: Make) -> None:
    home = await make(ECHO)
    version = await publish(home, "a:x", 1)
    view = await home.load("a:x", slots=3)
    assert (view.version, view.status, view.slots) == (version, "loaded", 3)
    assert view.memory == {}  # its model has it
    with pytest.raises(AlreadyLoaded):
        await home.load("a:x")
    with pytest.raises(Conflict, match="'a:x' is served by the engine of 'a'; unload 'a', or remove 'a:x'"):
        await home.unload("a:x")
    await home.unload("a")
    assert statuses(home, "a", "a:x") == ["available"] * 2
    await home.pool.start_load(version, Wish())
    await home.until(lambda view: view.status == "loaded", "a:x")
    assert home.starts == 2


async def test_a_restart_brings_the_model_back_with_its_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", json.dumps(ECHO))
    engine = {"executable": str(FAKE_ENGINE), "threads": 1, "stop_timeout_s": 2.0, "probe": False}
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": engine})
    tiny_gguf(settings.models_dir / "a.gguf")
    async with house(tmp_path, settings, tmp_path / "starts") as one:
        first, second = [await publish(one, "a:x", seed) for seed in (1, 2)]
        await one.load("a:x", slots=1)
        deadline = asyncio.get_running_loop().time() + 20
        await one.pool.activate(second, drain_first=False, deadline=deadline)
        assert await ask(one, "a:x") == told(second)
    async with house(tmp_path, settings, tmp_path / "starts") as again:
        rows = await again.residents.queries.all()
        assert {(row.model_name, row.wanted, row.active) for row in rows} == {("a", True, 1), ("a:x", False, 2)}
        again.residents.restore(again.catalog, again.pool, rows)
        await again.until(lambda view: view.status == "loaded", "a:x")
        assert await ask(again, "a:x") == told(second)
        assert again.pool.view("a").slots == 1
        assert [version.lineage for version in again.catalog.versions("a:x")] == [{"seed": 1}, {"seed": 2}]
        assert again.catalog.version("a:x", "v1") == first


async def test_memory_for_adapters_is_reserved(make: Make) -> None:
    home = await make(ECHO, engine={"cache_ram_mb": 64})
    await home.load()
    before = home.reserved
    version = await publish(home, "a:x", 1)
    await settled(home)
    view = await home.until(lambda view: view.memory[HOST] == home.reserved < before)
    build, _ = await home.pool.preview(version, Wish())
    assert build.tuned.need.parts["lora"] == (128 + 64) * 2 * 4
    assert build.estimate.total == build.tuned.need.total
    assert "prompt cache" not in build.tuned.need.parts  # an engine with adapters has none
    assert home.reserved == view.memory[HOST] == build.estimate.total


async def test_where_both_engines_do_not_fit_the_present_one_stays_and_can_be_ended_first(make: Make) -> None:
    home = await make(ECHO, memory={"budget_mb": 70})
    await home.load()
    version = await publish(home, "a:x", 1)
    with pytest.raises(InsufficientMemory, match="with drain_first the present one ends before"):
        await ask(home, "a:x")
    assert await ask(home, "a") == ("a v1", "")
    assert home.reserved < 70 * MB
    deadline = asyncio.get_running_loop().time() + 20
    await home.pool.activate(version, drain_first=True, deadline=deadline)
    assert await ask(home, "a:x") == told(version)


async def test_adapters_with_which_no_engine_comes_up_leave_the_present_one(make: Make, tmp_path: Path) -> None:
    home = await make(ECHO | {"load_fails": ["", "error: no such luck"]})
    await home.load()
    version = await publish(home, "a:x", 1)
    found = await asyncio.gather(*(ask(home, "a:x") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, EngineFailed) and "no such luck" in error.message for error in found)
    assert await ask(home, "a") == ("a v1", "")
    assert home.starts == 2
    other = await publish(home, "a:y", 2)  # it changes: tried anew
    assert await ask(home, "a:x") == told(version)
    assert await ask(home, "a:y") == told(other)


# --- all at once ---
async def test_nobody_is_answered_by_another_adapter_while_they_come_and_go(make: Make) -> None:
    home = await make(ECHO)
    await home.load()
    known = {told(home.catalog.active("a"))}
    counts = {"answered": 0, "gone": 0}
    ended = False

    async def asking(name: str) -> None:
        while not ended:
            try:
                found = await ask(home, name)
            except NotFound:
                counts["gone"] += 1
                await asyncio.sleep(0.01)
            else:
                assert found in known, found
                assert found[0].startswith(f"{name} ")
                counts["answered"] += 1

    async def add(name: str, seed: int) -> Version:
        made = make_adapter(home.models.parent / f"made-{seed}.gguf", home.catalog.active("a").file, seed=seed)
        version = await home.catalog.publish_adapter(name, home.catalog.active("a"), made)
        known.add(told(version))
        return version

    names = ("a", "a:1", "a:2", "a:3", "a:4")
    for seed, name in enumerate(names[1:3]):
        await add(name, seed)
    askers = asyncio.gather(*(asking(name) for name in names for _ in range(3)))
    for turn in range(4):
        name, other = f"a:{turn % 4 + 1}", f"a:{(turn + 2) % 4 + 1}"
        if name in home.catalog.names():
            await home.catalog.remove(home.catalog.versions(name), home.pool.unused)
        await asyncio.sleep(0.05)
        if other in home.catalog.names():
            version = await add(other, 100 + turn)
            deadline = asyncio.get_running_loop().time() + 20
            with contextlib.suppress(NotFound):
                await home.pool.activate(version, drain_first=turn == 2, deadline=deadline)
        else:
            await add(other, 200 + turn)
        await asyncio.sleep(0.2)
    ended = True
    await askers
    assert counts["answered"] > 100
    await settled(home)
