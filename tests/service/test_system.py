"""Health and status: what the coordinator says of itself, apart from any transport."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest

import modelops
from modelops.api import types
from modelops.api.errors import EngineFailed
from modelops.service import Coordinator
from service.asking import EMPTY, ask, call, model


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
    (listed,) = (await door.list_models(call(), types.ListModelsRequest())).models
    assert listed.status == "failed"
    assert "out of luck" in listed.message


@pytest.mark.parametrize(
    ("down", "status"), [({"zmq"}, "degraded"), ({"rest", "grpc"}, "degraded"), ({"rest", "grpc", "zmq"}, "unhealthy")]
)
async def test_health_tells_how_many_parts_are_down(door: Coordinator, down: set[str], status: str) -> None:
    for name in down:
        door.components[name] = lambda: "unhealthy: not listening"
    found = await door.health(call(), EMPTY)
    assert found.status == status
    assert {name for name, state in found.components.items() if state != "healthy"} == down


async def test_tokens_are_counted_while_answers_are_written(door: Coordinator) -> None:
    async def counted() -> tuple[int, int]:
        status, found = await door.status(call(), EMPTY), await model(door)
        assert (status.tokens_generated, status.prompt_tokens) == (found.tokens_generated, found.prompt_tokens)
        return found.tokens_generated, found.prompt_tokens

    assert await counted() == (0, 0)
    chunks = door.infer_stream(call(), ask(max_tokens=3))
    async with contextlib.aclosing(chunks):
        await anext(chunks)
        written, read = await counted()
        assert written >= 1
        assert read >= 1
        async for _ in chunks:
            pass
    assert (await counted())[0] == 3
    assert (await door.infer(call(), ask(max_tokens=4))).tokens_generated == 4
    await door.unload_model(call(), types.ModelUnloadRequest(model_name="m"))
    assert (await counted())[0] == 7  # also of what is not loaded any more


async def test_a_models_breaker_is_told(door: Coordinator, behaviour: Any) -> None:
    assert (await model(door)).breaker == "closed"
    behaviour(load_fails="error: out of luck")
    with pytest.raises(EngineFailed):
        await door.infer(call(), ask())
    assert (await model(door)).breaker == "open"


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
    assert device.reserved_mb > 30
    assert 0 <= device.utilization_percent <= 100
    assert after.uptime_seconds > before.uptime_seconds > 0
