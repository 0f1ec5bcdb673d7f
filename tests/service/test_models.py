"""The life of models, apart from any transport."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kept_goals import request, write_goals
from kept_jobs import written as write_jobs
from modelops.api import types
from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelOpsError,
    NotFound,
)
from modelops.learning.folders import Folders
from modelops.service import Coordinator
from modelops.store.goals import GoalRow
from modelops.store.jobs import JobRow
from service.asking import EMPTY, Start, ask, call, load, model, until, versions
from store.durables import added
from support import put, tiny_gguf

SOURCE = "https://127.0.0.1:1/there-is-none.gguf"  # an address of this machine: refused, without a connection


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The models folder."""
    return tmp_path / "models"


async def removal(door: Coordinator, version: str, name: str = "m") -> types.Removal:
    request = types.RemoveVersionRequest(model_name=name, model_version=version)
    return await door.remove_version(call(), request)


async def register(door: Coordinator, path: str, **fields: Any) -> types.ModelVersion:
    request = types.RegisterVersionRequest.parse({"model_name": "m", "model_path": path} | fields)
    return await door.register_version(call(), request)


# --- loading ---
async def test_a_model_goes_through_its_states(door: Coordinator) -> None:
    async def state() -> tuple[str, str]:
        found = await model(door)
        listed = (await door.list_models(call(), types.ListModelsRequest())).models
        assert [other.status for other in listed] == ([] if found.status == "available" else [found.status])
        return found.status, found.model_path

    assert await state() == ("available", "m.gguf")
    loaded = await door.load_model(call(), load())
    assert (loaded.success, loaded.model_version, loaded.plan) == (True, "v1", None)
    assert loaded.memory_usage_mb > 30
    assert await state() == ("loaded", "m.gguf")
    unloaded = await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))
    assert unloaded.memory_freed_mb == loaded.memory_usage_mb
    assert await state() == ("available", "m.gguf")
    with pytest.raises(Conflict):
        await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model_name": "nobody"}, NotFound),
        ({"model_name": "n", "model_path": "missing.gguf"}, NotFound),
        ({"model_name": "n", "model_path": "ftp://host/m.gguf"}, InvalidRequest),
        ({"model_name": "n", "model_path": "ftp://host/m.gguf", "wait": False}, InvalidRequest),
        ({"model_name": "n", "model_path": SOURCE}, InvalidRequest),
    ],
    ids=["unknown", "no file", "no source", "no source in the background", "an address that may not be reached"],
)
async def test_a_load_that_cannot_be_is_refused(
    door: Coordinator, fields: dict[str, Any], kind: type[ModelOpsError]
) -> None:
    with pytest.raises(kind):
        await door.load_model(call(), load(**fields))
    listed = (await door.list_models(call(), types.ListModelsRequest())).models
    assert [found.model_name for found in listed if found.status != "failed"] == []


async def test_a_load_that_is_not_waited_for_tells_its_end_by_the_state(door: Coordinator, behaviour: Any) -> None:
    behaviour(load_s=0.2)
    reply = await door.load_model(call(), load(wait=False))
    assert reply.message.startswith("loading 'm'")
    assert (await model(door)).status == "loading"
    assert (await door.infer(call(), ask())).success  # joins the load


@pytest.mark.parametrize("wait", [True, False])
async def test_what_does_not_fit_is_refused_even_when_it_is_not_waited_for(start: Start, wait: bool) -> None:
    async with start(memory={"budget_mb": 10}) as started:
        with pytest.raises(InsufficientMemory) as caught:
            await started.coordinator.load_model(call(), load(wait=wait))
        assert caught.value.details["free_mb"] == "10"


async def test_what_is_wished_for_is_seen(door: Coordinator) -> None:
    wish = {"context_length": 512, "slots": 3, "cache_type": "q8_0", "keep_alive": "1h", "pin": True}
    await door.load_model(call(), load(**wish))
    found = await model(door)
    assert (found.context_length, found.slots, found.cache_type) == (512, 3, "q8_0")
    assert (found.pinned, found.expires_at) == (True, None)
    assert found.devices == {"cpu": found.memory_usage_mb}


async def test_a_source_that_cannot_be_had_in_the_background_is_told_by_the_state(door: Coordinator) -> None:
    reply = await door.load_model(call(), load(model_name="n", model_path=SOURCE, wait=False))
    assert "events" in reply.message
    found = await until(door, lambda found: found.status == "failed", "n")
    assert "127.0.0.1" in found.message
    assert [other.model_name for other in (await door.list_models(call(), types.ListModelsRequest())).models] == ["n"]
    events = [event async for event in door.watch_model(call(), types.WatchModelRequest(model_name="n"))]
    assert [(event.model.status, event.done) for event in events] == [("failed", True)]


async def test_a_version_that_cannot_be_fetched_in_the_background_is_told_and_the_model_is_as_it_was(
    door: Coordinator,
) -> None:
    await door.load_model(call(), load())
    found = await register(door, SOURCE, wait=False)
    assert (found.model_name, found.model_version) == ("m", "")
    told = await until(door, lambda told: told.message)
    assert "127.0.0.1" in told.message
    assert told.status == "loaded"
    assert [version.model_version for version in await versions(door)] == ["v1"]


async def test_who_watches_is_not_told_of_every_token(door: Coordinator, behaviour: Any) -> None:
    behaviour(token_s=0.01)
    await door.load_model(call(), load())

    async def watch() -> list[types.ModelEvent]:
        return [event async for event in door.watch_model(call(), types.WatchModelRequest(model_name="m"))]

    async with (
        asyncio.TaskGroup() as group,
        contextlib.aclosing(door.infer_stream(call(), ask(max_tokens=2000))) as chunks,
    ):
        await anext(chunks)
        group.create_task(door.unload_model(call(), types.ModelUnloadRequest(model_name="m")))
        await until(door, lambda found: found.status == "unloading")
        watching = group.create_task(watch())
        while (await model(door)).tokens_generated < 100:  # for a second: the model is looked at several times
            await anext(chunks)
    first, *others, last = watching.result()
    assert (first.model.status, last.model.status, last.done) == ("unloading", "available", True)
    assert len(others) <= 1


# --- dry runs ---
async def test_a_dry_run_does_nothing(door: Coordinator, models: Path) -> None:
    tiny_gguf(models / "sub" / "other.gguf")
    for fields in ({}, {"model_path": "sub/other.gguf"}, {"model_type": "embedding"}, {"wait": False}):
        reply = await door.load_model(call(), load(**fields, dry_run=True, slots=1))
        assert reply.plan
        assert reply.plan.slots == 1
        assert reply.memory_usage_mb == sum(device.memory_mb for device in reply.plan.devices) > 30
        assert "nothing was done" in reply.message
        assert reply.model_version == ("v1" if not {"model_path", "model_type"} & fields.keys() else "")
    assert [version.model_version for version in await versions(door)] == ["v1"]
    assert (await model(door)).status == "available"
    with pytest.raises(NotFound):
        await door.load_model(call(), load(model_name="n", dry_run=True))


async def test_a_dry_run_of_what_a_load_would_refuse_is_refused_alike(door: Coordinator) -> None:
    with pytest.raises(Conflict, match="register it first"):
        await door.load_model(call(), load(model_name="n", model_path=SOURCE, dry_run=True))
    await door.load_model(call(), load())
    with pytest.raises(AlreadyLoaded):
        await door.load_model(call(), load(dry_run=True))


# --- explaining ---
async def test_a_loaded_model_is_explained_as_it_is(start: Start) -> None:
    async with start(memory={"budget_mb": 70}) as started:
        door = started.coordinator
        before = await door.explain_model(call(), types.ExplainModelRequest(model_name="m"))
        assert before.refusal == ""
        assert before.plan
        await door.load_model(call(), load())
        async for _ in door.infer_stream(call(), ask(max_tokens=1)):  # a second one would not fit beside it
            explained = await door.explain_model(call(), types.ExplainModelRequest(model_name="m"))
            assert (explained.refusal, explained.plan and explained.plan.evict) == ("", [])
            assert explained.plan
            assert explained.plan.devices == before.plan.devices


async def test_what_would_not_fit_is_explained_with_the_reason(start: Start) -> None:
    async with start(memory={"budget_mb": 10}) as started:
        found = await started.coordinator.explain_model(call(), types.ExplainModelRequest(model_name="m"))
    assert found.plan is None
    assert "10 MB" in found.refusal
    assert found.computed_mb == pytest.approx(sum(line.mb for line in found.computed), abs=0.1)
    assert found.chosen_mb == found.computed_mb
    assert "computed" in found.chosen_from


# --- versions ---
async def test_a_version_is_registered_and_does_not_answer_yet(door: Coordinator, models: Path) -> None:
    tiny_gguf(models / "sub" / "two.gguf", general__name="two")
    found = await register(door, "sub/two.gguf")
    assert (found.model_version, found.model_path, found.active, found.previous) == ("v2", "sub/two.gguf", False, False)
    assert (await door.infer(call(), ask())).model_version == "v1"
    first, second = await versions(door)
    assert (first.active, second.active) == (True, False)
    assert second == found
    assert await register(door, "sub/two.gguf") == found  # it is registered


async def test_a_version_is_activated_and_rolled_back_whether_or_not_the_model_is_loaded(
    door: Coordinator, models: Path
) -> None:
    tiny_gguf(models / "sub" / "two.gguf", general__name="two")
    await register(door, "sub/two.gguf")
    with pytest.raises(Conflict, match="no other version active before"):
        await door.roll_back(call(), types.RollBackRequest(model_name="m"))
    activate = types.ActivateVersionRequest(model_name="m", model_version="v2")
    found = await door.activate_version(call(), activate)
    assert (found.status, found.model_version) == ("available", "v2")
    assert (await door.infer(call(), ask())).model_version == "v2"
    for label in ("v1", "v2"):
        found = await door.roll_back(call(), types.RollBackRequest(model_name="m"))
        assert (found.status, found.model_version) == ("loaded", label)
        assert (await door.infer(call(), ask())).model_version == label
    assert [(version.active, version.previous) for version in await versions(door)] == [(False, True), (True, False)]
    found = await door.activate_version(call(), activate)  # it is already
    assert (found.status, found.model_version) == ("loaded", "v2")
    with pytest.raises(NotFound, match="no version 'v3'"):
        await door.activate_version(call(), types.ActivateVersionRequest(model_name="m", model_version="v3"))


async def test_a_version_that_does_not_start_does_not_answer(door: Coordinator, models: Path, behaviour: Any) -> None:
    tiny_gguf(models / "sub" / "two.gguf", general__name="two")
    await register(door, "sub/two.gguf")
    await door.load_model(call(), load())
    behaviour(load_fails="error: out of luck")
    with pytest.raises(EngineFailed, match="out of luck"):
        await door.activate_version(call(), types.ActivateVersionRequest(model_name="m", model_version="v2"))
    assert (await door.infer(call(), ask())).model_version == "v1"
    assert [version.active for version in await versions(door)] == [True, False]


async def test_another_type_of_a_file_is_a_version_and_takes_its_own_questions(door: Coordinator) -> None:
    await door.load_model(call(), load(model_type="embedding"))
    assert [(found.model_version, found.model_type, found.active) for found in await versions(door)] == [
        ("v1", "llm", False),
        ("v2", "embedding", True),
    ]
    embed = types.EmbedRequest(model_name="m", inputs=["one two", "three"])
    assert (await door.embed(call(), embed)).model_version == "v2"
    with pytest.raises(InvalidRequest, match="of type 'embedding'; this takes one of type 'llm'"):
        await door.infer(call(), ask())
    with pytest.raises(Conflict, match="v2 is loaded; activate v1"):
        await door.load_model(call(), load(model_type="llm"))


async def test_what_answers_is_not_removed_before_the_others(door: Coordinator, models: Path) -> None:
    tiny_gguf(models / "sub" / "two.gguf", general__name="two")
    await register(door, "sub/two.gguf")
    with pytest.raises(NotFound, match="no version 'v3'"):
        await removal(door, "v3")
    with pytest.raises(Conflict, match="v1 answers for 'm'; activate another version first"):
        await removal(door, "v1")
    await door.load_model(call(), load())
    for which in ("v1", "all"):
        with pytest.raises(Conflict, match="'m' v1 is loaded; unload it first"):
            await removal(door, which)
    assert (await removal(door, "v2")).removed == ["m v2"]
    await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))
    assert (await removal(door, "all")).removed == ["m v1"]
    assert list(models.rglob("*.gguf")) == []
    with pytest.raises(NotFound):
        await model(door)


async def test_pruning_removes_what_nothing_needs(door: Coordinator, models: Path, tmp_path: Path) -> None:
    assert (await door.prune(call(), EMPTY)) == types.Removal()
    tiny_gguf(models / "sub" / "two.gguf", general__name="two")
    await register(door, "sub/two.gguf")
    (models / "sub" / "two.gguf").unlink()
    copy = tmp_path / "quantised" / f"{'0' * 64}-Q8_0.gguf"
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(b"x" * 3 * 2**20)
    written = tmp_path / "formats" / copy.name
    written.parent.mkdir()
    written.write_bytes(b"x" * 2 * 2**20)
    found = await door.prune(call(), EMPTY)
    assert found.removed[0] == "m v2"
    assert "quantised copy" in found.removed[1]
    assert "rewritten weights" in found.removed[2]
    assert found.freed_mb == 5
    assert not copy.exists()
    assert not written.exists()
    assert [version.model_version for version in await versions(door)] == ["v1"]


async def test_pruning_leaves_the_rewrites_of_models_that_are_trained(
    start: Start, models: Path, tmp_path: Path
) -> None:
    async with start(learning={"max_parallel_jobs": 0}, goals={"max_active": 0}) as parts:
        door, catalog, rewrites = parts.coordinator, parts.coordinator._parts.catalog, {}
        for name in ("m", "of-a-job", "ended", "of-a-goal", "served"):
            tiny_gguf(models / f"{name}.gguf", general__name=name)
            version = await catalog.digest(await catalog.find(name))
            rewrites[name] = put(version.file, Folders(tmp_path / "learning").base(version.digest))
        job = JobRow("job", "lora", "of-a-job", created_at=1.0, request={"model_version": "v1"})
        jobs = [job, replace(job, id="ended", model_name="ended", status="completed")]
        await write_jobs(tmp_path, lambda queries: added(queries, *jobs))
        wished = [("quality", "of-a-goal"), ("serving", "served")]
        goals = [
            GoalRow(of, created_at=1.0, title=of, goal_type=of, request=request({"model_name": name}))
            for of, name in wished
        ]
        await write_goals(tmp_path, lambda queries: added(queries, *goals))
        removed = (await door.prune(call(), EMPTY)).removed
        assert (len(removed), "rewritten base" in removed[0]) == (3, True)
        assert [name for name, file in rewrites.items() if file.exists()] == ["of-a-job", "of-a-goal"]
