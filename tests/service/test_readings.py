from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from metrics.pages import Samples, kinds, samples, value
from modelops.api import types
from modelops.api.errors import EngineFailed, NotFound
from modelops.app import Running
from modelops.service import Coordinator
from modelops.serving.placement import MB
from nvml import A100, T4, Nvml
from service.asking import Start, ask, call, load, until
from support import tiny_gguf

GPUS = ("total_memory_mb", "used_memory_mb", "free_memory_bytes", "utilization_percent", "temperature_celsius")


async def page(door: Coordinator) -> Samples:
    return samples((await door.metrics(call())).decode())


async def test_the_system(door: Coordinator, tmp_path: Path) -> None:
    found = await page(door)
    assert 0 <= found["moc_system_cpu_usage_percent", ()] <= 100
    assert 0 < found["moc_system_memory_usage_bytes", ()] < found["moc_system_memory_total_bytes", ()]
    assert 0 < found["moc_system_disk_usage_bytes", ()] < found["moc_system_disk_total_bytes", ()]
    assert found["moc_state_file_size_bytes", ()] >= (tmp_path / "state.db").stat().st_size > 0
    assert found["moc_event_loop_tasks", ()] > 0
    assert value(found, "moc_build_info") == 1
    assert found["process_resident_memory_bytes", ()] > 0


async def test_without_a_gpu_there_is_nothing_of_gpus(door: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (await door.metrics(call())).decode()
    for name in GPUS:
        assert kinds(text)[f"moc_gpu_{name}"] == "gauge"
    assert not any(name.startswith("moc_gpu_") for name, _ in samples(text))


async def test_every_gpu_as_its_driver_tells(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(A100 | {"reserved": 4 * MB}, T4, refused={("heat", 1)}))
    async with start() as started:
        found = await page(started.coordinator)
    shown = {name: [found.get((f"moc_gpu_{name}", (("device", gpu),))) for gpu in ("gpu0", "gpu1")] for name in GPUS}
    assert shown == {
        "total_memory_mb": [40, 16],
        "used_memory_mb": [6, 0],
        "free_memory_bytes": [30 * MB, 16 * MB],
        "utilization_percent": [60, 0],
        "temperature_celsius": [55, None],  # what it does not tell is not 0
    }


async def test_a_model_that_nobody_wanted_has_no_series(door: Coordinator) -> None:
    assert not [labels for _, labels in await page(door) if ("model", "m") in labels or ("breaker", "m") in labels]


async def test_a_loaded_model(door: Coordinator) -> None:
    await door.load_model(call(), load())
    await door.infer(call(), ask(max_tokens=3))
    found, m = await page(door), (("model", "m"),)
    assert found["moc_models_loaded_total", ()] == 1
    held = found["moc_model_memory_usage_mb", (("device", "cpu"), *m)]
    assert held * MB == pytest.approx(found["moc_device_reserved_bytes", (("device", "cpu"),)])
    assert found["moc_model_memory_predicted_bytes", m] > 0
    assert found["moc_model_memory_measured_bytes", m] > 0
    assert found["moc_model_load_duration_seconds_count", m] == 1
    assert (found["moc_inference_tokens_generated_total", m], found["moc_inference_prompt_tokens_total", m]) == (3, 1)
    assert found["moc_circuit_breaker_state", (("breaker", "m"),)] == 0
    assert found["moc_bulkhead_slots", m] == 2


async def test_answers_under_way_are_seen_while_they_are(door: Coordinator, behaviour: Any) -> None:
    behaviour(token_s=0.02)
    chunks = door.infer_stream(call(), ask(max_tokens=500))
    for _ in range(3):
        await anext(chunks)
    found, m = await page(door), (("model", "m"),)
    assert (found["moc_bulkhead_active_requests", m], found["moc_bulkhead_queued_requests", m]) == (1, 0)
    assert 3 <= found["moc_inference_tokens_generated_total", m] < 500
    others = [asyncio.create_task(door.infer(call(), ask(max_tokens=400))) for _ in range(3)]
    while value(found := await page(door), "moc_bulkhead_queued_requests") < 2:
        await asyncio.sleep(0.005)
    assert found["moc_bulkhead_active_requests", m] == 2
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    await chunks.aclose()
    after = await page(door)
    assert after["moc_bulkhead_active_requests", m] == after["moc_bulkhead_queued_requests", m] == 0
    assert after["moc_inference_tokens_generated_total", m] >= found["moc_inference_tokens_generated_total", m]


async def test_why_engines_end(start: Start) -> None:
    async with start(models={"keep_alive": 0}) as started:
        door = started.coordinator
        await door.infer(call(), ask())
        while "keep_alive" not in str(await page(door)):
            await asyncio.sleep(0.005)
        found = await page(door)
    reasons = {dict(labels)["reason"]: number for (name, labels), number in found.items() if "evictions" in name}
    assert reasons == {"keep_alive": 1}


async def test_it_is_off_where_the_settings_say_so(start: Start) -> None:
    async with start(metrics={"enabled": False}) as started:
        await started.coordinator.infer(call(), ask())
        with pytest.raises(NotFound, match=r"metrics\.enabled is off"):
            await started.coordinator.metrics(call())


async def reasons(door: Coordinator) -> dict[tuple[str, str], float]:
    found = await page(door)
    return {
        (dict(labels)["model"], dict(labels)["reason"]): number
        for (name, labels), number in found.items()
        if name == "moc_model_evictions_total"
    }


async def test_who_asked_for_the_end_is_not_forgotten_when_the_model_is_wanted_again(
    door: Coordinator, behaviour: Any
) -> None:
    behaviour(token_s=0.02)
    answering = asyncio.create_task(door.infer(call(), ask(max_tokens=20)))
    await until(door, lambda model: model.active_requests == 1)
    unloading = asyncio.create_task(door.unload_model(call(), types.ModelUnloadRequest(model_name="m")))
    await until(door, lambda model: model.status == "unloading")
    loading = asyncio.create_task(door.load_model(call(), load()))
    await asyncio.gather(answering, unloading, loading)
    assert await reasons(door) == {("m", "requested"): 1}


async def test_another_version_takes_its_place(door: Coordinator, tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "models" / "two.gguf", general__name="two")
    await door.load_model(call(), load())
    await door.register_version(call(), types.RegisterVersionRequest(model_name="m", model_path="two.gguf"))
    activate = types.ActivateVersionRequest(model_name="m", model_version="v2")
    await door.activate_version(call(), activate)
    while ("m", "replaced") not in await reasons(door):
        await asyncio.sleep(0.005)
    assert await reasons(door) == {("m", "replaced"): 1}
    assert value(await page(door), "moc_model_swap_duration_seconds_count", {"model": "m"}) == 1


async def test_what_is_lent_memory_is_no_model(parts: Running) -> None:
    async with parts.pool.borrow("quantising m", MB):
        found = await page(parts.coordinator)
        assert found["moc_device_reserved_bytes", (("device", "cpu"),)] == MB
    assert not [labels for _, labels in await page(parts.coordinator) if "quantising" in str(labels)]


async def test_a_load_that_fails(door: Coordinator, behaviour: Any) -> None:
    behaviour(load_fails="out of luck")
    with pytest.raises(EngineFailed):
        await door.load_model(call(), load())
    found = await page(door)
    assert value(found, "moc_model_load_failures_total", {"model": "m", "code": "engine_failed"}) == 1
    assert value(found, "moc_model_load_duration_seconds_count") == 0


async def test_a_request_that_is_asked_once_more_is_one(door: Coordinator, behaviour: Any, tmp_path: Path) -> None:
    behaviour(die_after=0, dies_once=str(tmp_path / "died"))
    await door.infer(call(), ask())
    found = await page(door)
    assert value(found, "moc_inference_retries_total", {"model": "m"}) == 1
    assert value(found, "moc_circuit_breaker_failures_total", {"breaker": "m"}) == 1
    assert value(found, "moc_model_evictions_total", {"model": "m", "reason": "crashed"}) == 1
