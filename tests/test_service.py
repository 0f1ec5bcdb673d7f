"""The door: what its operations say, apart from any transport."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import modelops
from modelops.api import types
from modelops.api.errors import (
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    InsufficientMemory,
    ModelOpsError,
    NotAvailable,
    NotFound,
)
from modelops.app import Running, running
from modelops.service import Call, Coordinator
from modelops.settings import Settings
from support import FAKE_ENGINE, tiny_gguf

EMPTY = types.Empty()


def call(timeout_s: float | None = None) -> Call:
    return Call("1", "test", timeout_s=timeout_s)


def ask(**fields: Any) -> types.InferenceRequest:
    return types.InferenceRequest.parse({"model_name": "m", "input_text": "Hello", "max_tokens": 3} | fields)


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tells the fake engine how to behave."""

    def behave(**values: Any) -> None:
        monkeypatch.setenv("FAKE_ENGINE", json.dumps(values))

    behave()
    return behave


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Running]:
    """A coordinator in this process, with the model `m` in a fake engine."""
    tiny_gguf(tmp_path / "models" / "m.gguf")
    settings = Settings.model_validate(
        {
            "data_dir": tmp_path,
            "server": {"rest_port": 0, "grpc_port": 0, "zmq_port": 0, "drain_s": 0},
            "engine": {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1},
        }
    )
    async with running(settings) as started:
        yield started


@pytest.fixture
def door(parts: Running, behaviour: Any) -> Coordinator:
    return parts.coordinator


# --- health and status ---
async def test_health_is_healthy_part_by_part(door: Coordinator) -> None:
    found = await door.health(call(), EMPTY)
    assert found.status == "healthy"
    assert found.components == dict.fromkeys(("rest", "grpc", "zmq", "models"), "healthy")
    assert found.version == modelops.__version__
    assert abs((datetime.now(UTC) - found.timestamp).total_seconds()) < 60


async def test_health_is_degraded_when_a_model_failed(door: Coordinator, behaviour: Any) -> None:
    behaviour(load_fails="error: out of luck")
    with pytest.raises(EngineFailed):
        await door.infer(call(), ask())
    found = await door.health(call(), EMPTY)
    assert (found.status, found.components["models"]) == ("degraded", "degraded: failed: m")
    (model,) = (await door.list_models(call(), types.ListModelsRequest())).models
    assert model.status == "failed"
    assert "out of luck" in model.message


@pytest.mark.parametrize(
    ("down", "status"), [({"zmq"}, "degraded"), ({"rest", "grpc"}, "degraded"), ({"rest", "grpc", "zmq"}, "unhealthy")]
)
async def test_health_tells_how_many_parts_are_down(door: Coordinator, down: set[str], status: str) -> None:
    for name in down:
        door.components[name] = lambda: "unhealthy: not listening"
    found = await door.health(call(), EMPTY)
    assert found.status == status
    assert {name for name, state in found.components.items() if state != "healthy"} == down


async def test_status_counts_what_runs(door: Coordinator, behaviour: Any) -> None:
    before = await door.status(call(), EMPTY)
    assert (before.models_loaded, before.active_requests, before.queued_requests) == (0, 0, 0)
    assert before.version == modelops.__version__
    behaviour(hang_after=1)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            chunks = await stack.enter_async_context(contextlib.aclosing(door.infer_stream(call(), ask())))
            assert (await anext(chunks)).text == "w0 "
        during = await door.status(call(), EMPTY)
    after = await door.status(call(), EMPTY)
    assert (during.models_loaded, during.active_requests) == (1, 2)
    assert (after.models_loaded, after.active_requests) == (1, 0)
    (device,) = during.devices
    assert device.device == "cpu"
    assert device.total_mb == during.memory_total_mb > during.memory_used_mb > 0
    assert device.reserved_mb > 80
    assert 0 <= device.utilization_percent <= 100
    assert after.uptime_seconds > before.uptime_seconds > 0


# --- inference ---
async def test_an_answer_is_whole_and_counted(door: Coordinator) -> None:
    answer = await door.infer(call(), ask())
    assert (answer.output_text, answer.tokens_generated, answer.model_version) == ("w0 w1 w2 ", 3, "v1")
    assert (answer.success, answer.error_message) == (True, "")
    assert answer.latency_ms > 0


async def test_a_stream_is_the_same_answer_in_pieces(door: Coordinator) -> None:
    chunks = [chunk async for chunk in door.infer_stream(call(), ask())]
    assert [chunk.text for chunk in chunks] == ["w0 ", "w1 ", "w2 ", ""]
    assert [chunk.done for chunk in chunks] == [False, False, False, True]
    final = chunks[-1].final
    assert final
    assert (final.output_text, final.tokens_generated, final.success) == ("w0 w1 w2 ", 3, True)


async def test_an_answer_that_breaks_is_an_error_whole_and_cut_short_as_a_stream(
    door: Coordinator, behaviour: Any
) -> None:
    behaviour(die_after=2)
    with pytest.raises(EngineFailed):
        await door.infer(call(), ask())
    chunks = [chunk async for chunk in door.infer_stream(call(), ask())]
    final = chunks[-1].final
    assert final
    assert (final.output_text, final.tokens_generated, final.success) == ("w0 w1 ", 2, False)
    assert "SIGKILL" in final.error_message


@pytest.mark.parametrize("behaves", [{"load_s": 3600}, {"prompt_s": 3600}, {"hang_after": 1}], ids=str)
async def test_the_deadline_holds_while_loading_reading_and_answering(
    door: Coordinator, behaviour: Any, behaves: dict[str, Any]
) -> None:
    behaviour(**behaves)
    if "load_s" not in behaves:
        await door.load_model(call(), types.ModelLoadRequest(model_name="m"))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await door.infer(call(timeout_s=0.3), ask())
    assert 0.3 <= time.monotonic() - began < 3.0
    assert (await door.status(call(), EMPTY)).active_requests == 0


# --- models ---
async def test_a_model_goes_through_its_states(door: Coordinator) -> None:
    async def state() -> tuple[str, str]:
        model = await door.get_model(call(), types.GetModelRequest(model_name="m"))
        listed = (await door.list_models(call(), types.ListModelsRequest())).models
        assert [other.status for other in listed] == ([] if model.status == "available" else [model.status])
        return model.status, model.model_path

    assert await state() == ("available", "m.gguf")
    loaded = await door.load_model(call(), types.ModelLoadRequest(model_name="m"))
    assert (loaded.success, loaded.model_version) == (True, "v1")
    assert loaded.memory_usage_mb > 80
    assert await state() == ("loaded", "m.gguf")
    unloaded = await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))
    assert unloaded.memory_freed_mb == loaded.memory_usage_mb
    assert await state() == ("available", "m.gguf")
    with pytest.raises(Conflict):
        await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        ({"model_name": "nobody"}, NotFound),
        ({"model_name": "m", "model_type": "embedding"}, NotAvailable),
        ({"model_name": "n", "model_path": "missing.gguf"}, NotFound),
    ],
    ids=["unknown", "type", "no file"],
)
async def test_a_load_that_cannot_be_is_refused(
    door: Coordinator, request_: dict[str, Any], kind: type[ModelOpsError]
) -> None:
    with pytest.raises(kind):
        await door.load_model(call(), types.ModelLoadRequest.parse(request_))
    assert (await door.list_models(call(), types.ListModelsRequest())).models == []


async def test_a_load_that_is_not_waited_for_tells_its_end_by_the_state(door: Coordinator, behaviour: Any) -> None:
    behaviour(load_s=0.2)
    reply = await door.load_model(call(), types.ModelLoadRequest(model_name="m", wait=False))
    assert reply.message.startswith("loading 'm'")
    model = await door.get_model(call(), types.GetModelRequest(model_name="m"))
    assert model.status == "loading"
    assert (await door.infer(call(), ask())).success  # joins the load


async def test_what_does_not_fit_is_refused_even_when_it_is_not_waited_for(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "models" / "m.gguf")
    ports = {"rest_port": 0, "grpc_port": 0, "zmq_port": 0}
    settings = Settings.model_validate({"data_dir": tmp_path, "server": ports, "memory": {"budget_mb": 10}})
    async with running(settings) as started:
        for wait in (True, False):
            with pytest.raises(InsufficientMemory) as caught:
                await started.coordinator.load_model(call(), types.ModelLoadRequest(model_name="m", wait=wait))
            assert caught.value.details["free_mb"] == "10"
