"""Adapters as callers see them, apart from any transport: models as any other, but for the engine."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from adapters import make_adapter
from modelops.api import types
from modelops.api.errors import AlreadyLoaded, Conflict, NotFound
from modelops.app import Running
from modelops.service import Coordinator
from modelops.serving.catalog import Version
from service.asking import EMPTY, ask, call, load, model, until, versions
from support import tiny_gguf


async def publish(parts: Running, name: str, seed: int) -> Version:
    catalog = parts.coordinator._parts.catalog
    base = catalog.active("m")
    file = make_adapter(base.file.parent.parent / f"made-{seed}.gguf", base.file, seed=seed)
    return await catalog.publish_adapter(name, base, file, {"seed": seed})


async def listed(door: Coordinator, *, everything: bool = False) -> dict[str, str]:
    models = (await door.list_models(call(), types.ListModelsRequest(all=everything))).models
    return {model.model_name: model.status for model in models}


async def remove(door: Coordinator, name: str, version: str = "all") -> types.Removal:
    return await door.remove_version(call(), types.RemoveVersionRequest(model_name=name, model_version=version))


async def test_an_adapter_is_listed_loaded_asked_and_removed_as_a_model(parts: Running) -> None:
    door = parts.coordinator
    version = await publish(parts, "m:x", 1)
    assert await listed(door) == {}
    assert await listed(door, everything=True) == {"m": "available", "m:x": "available"}
    told = await door.load_model(call(), load(model_name="m:x"))
    assert (told.model_version, told.message) == ("v1", "'m:x' is loaded")
    assert await listed(door) == {"m": "loaded", "m:x": "loaded"}
    with pytest.raises(AlreadyLoaded):
        await door.load_model(call(), load(model_name="m:x"))
    answer = await door.infer(call(), ask(model_name="m:x"))
    assert (answer.model_version, answer.output_text) == ("v1", "w0 w1 w2 ")
    found = await model(door, "m:x")
    assert (found.model_path, found.digest, found.tokens_generated) == (version.shown_path, version.digest, 3)
    assert (found.memory_usage_mb, found.devices) == (0, {})  # its model's, whose engine it is
    assert (await model(door)).tokens_generated == 0
    status = await door.status(call(), EMPTY)
    assert (status.models_loaded, status.tokens_generated) == (2, 3)
    with pytest.raises(Conflict, match="'m:x' is served by the engine of 'm'; unload 'm', or remove 'm:x'"):
        await door.unload_model(call(), types.ModelUnloadRequest(model_name="m:x"))
    assert (await door.explain_model(call(), types.ExplainModelRequest(model_name="m:x"))).refusal == ""
    assert (await remove(door, "m:x")).removed == ["m:x v1"]
    for asked in (door.infer(call(), ask(model_name="m:x")), model(door, "m:x"), remove(door, "m:x")):
        with pytest.raises(NotFound, match="there is no model 'm:x'"):
            await asked
    await until(door, lambda found: found.status == "loaded" and "m:x" not in str(found))
    assert await listed(door) == {"m": "loaded"}


async def test_versions_of_an_adapter_say_what_they_were_made_from(parts: Running) -> None:
    door = parts.coordinator
    first, second = [await publish(parts, "m:x", seed) for seed in (1, 2)]
    found = await versions(door, "m:x")
    base = (await versions(door))[0]
    assert [(one.model_version, one.base, one.lineage, one.digest, one.active) for one in found] == [
        ("v1", base.digest, {"seed": 1}, first.digest, True),
        ("v2", base.digest, {"seed": 2}, second.digest, False),
    ]
    assert (base.base, base.lineage) == ("", {})
    activate = types.ActivateVersionRequest(model_name="m:x", model_version="v2")
    assert (await door.activate_version(call(), activate)).model_version == "v2"
    assert (await door.infer(call(), ask(model_name="m:x"))).model_version == "v2"
    rolled = await door.roll_back(call(), types.RollBackRequest(model_name="m:x"))
    assert (rolled.model_version, rolled.status) == ("v1", "loaded")
    assert (await door.infer(call(), ask(model_name="m:x"))).model_version == "v1"
    assert (await door.infer(call(), ask(model_name="m"))).model_version == "v1"
    with pytest.raises(Conflict, match="v1 answers for 'm:x'; activate another version first"):
        await remove(door, "m:x", "v1")
    assert (await remove(door, "m:x", "v2")).removed == ["m:x v2"]


async def test_what_adapters_were_made_for_is_not_removed(parts: Running, tmp_path: Path) -> None:
    door = parts.coordinator
    await publish(parts, "m:x", 1)
    tiny_gguf(tmp_path / "models" / "sub" / "two.gguf", general__name="two")
    register = types.RegisterVersionRequest(model_name="m", model_path="sub/two.gguf")
    await door.register_version(call(), register)
    await door.activate_version(call(), types.ActivateVersionRequest(model_name="m", model_version="v2"))
    for version in ("v1", "all"):
        with pytest.raises(Conflict, match="made for what would be removed: 'm:x' v1; remove them first"):
            await remove(door, "m", version)
    with pytest.raises(Conflict, match=r"'m:x' v1 was made for 'm' v1, and v2 answers for 'm' now"):
        await door.infer(call(), ask(model_name="m:x"))
    await remove(door, "m:x")
    assert (await remove(door, "m")).removed == ["m v1", "m v2"]


async def test_the_log_and_the_counters_name_the_adapter(parts: Running, caplog: pytest.LogCaptureFixture) -> None:
    door = parts.coordinator
    await publish(parts, "m:x", 1)
    asked = call()
    with caplog.at_level(logging.INFO), door.following(asked):
        await door.infer(asked, ask(model_name="m:x"))
    assert (asked.record.model, asked.record.version) == ("m:x", "v1")
    page = (await door.metrics(call())).decode().splitlines()
    shown = {line.partition("{")[0] for line in page if '"m:x"' in line}
    assert {"moc_inference_tokens_generated_total", "moc_inference_queue_wait_seconds_count"} <= shown
    of_engines = ("moc_circuit_breaker", "moc_bulkhead", "moc_model_memory")
    assert not [name for name in shown if name.startswith(of_engines)]
    assert [line for line in page if line.startswith(of_engines) and '"m"' in line]
