"""Loads in the background, on a real pool: one at a time, and after failures later and later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from goals.gates import Gate
from modelops.api.errors import DiskFull, NotAvailable
from modelops.goals.availability import PAUSE_S
from modelops.goals.loading import Loads
from modelops.serving.placement import MB
from modelops.settings import Settings
from serving.house import House, house
from support import FAKE_ENGINE, tiny_gguf


@pytest.fixture
async def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({"count_file": str(tmp_path / "starts")}))
    fake = {"executable": str(FAKE_ENGINE), "threads": 1, "stop_timeout_s": 2.0, "probe": False}
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": fake})
    tiny_gguf(settings.models_dir / "a.gguf")
    async with house(tmp_path, settings, tmp_path / "starts") as made:
        yield made


async def done(loads: Loads) -> None:
    """The load that is under way has been begun by the pool, or has failed."""
    task = loads.of("a").task
    assert task
    await asyncio.wait([task])


async def test_one_that_is_under_way_is_not_begun_again(made: House, gate: Gate) -> None:
    loads = Loads(made.catalog, made.pool)
    assert not loads.of("a").under_way
    for _ in range(3):
        loads.begin("a")
        await asyncio.sleep(0)
    assert loads.of("a").under_way
    gate.open.set()
    await done(loads)
    await made.until(lambda view: view.status == "loaded")
    assert (gate.asked, made.starts, loads.of("a").failures) == (1, 1, 0)
    await loads.close()


async def test_each_that_fails_before_the_pool_has_begun_it_doubles_the_pause(made: House, gate: Gate) -> None:
    loads, loop = Loads(made.catalog, made.pool), asyncio.get_running_loop()
    gate.open.set()
    gate.error = NotAvailable("no route")
    for failures in (1, 2, 3):
        loads.begin("a")
        await done(loads)
        assert (loads.of("a").failures, loads.of("a").why) == (failures, "no route")
        assert 0 <= loop.time() + PAUSE_S * 2**failures - loads.of("a").again_at < 0.5
    gate.error = None
    loads.begin("a")
    await done(loads)
    await made.until(lambda view: view.status == "loaded")
    assert (loads.of("a").failures, loads.of("a").why) == (0, "")


async def test_want_of_room_on_the_disk_is_a_failure_and_want_of_memory_is_not(made: House, gate: Gate) -> None:
    loads = Loads(made.catalog, made.pool)
    gate.open.set()
    gate.error = DiskFull("no room on the disk")
    loads.begin("a")
    await done(loads)
    assert loads.of("a").failures == 1
    gate.error = None
    made.pool.keep({"a": 1})
    async with made.pool.borrow("much", made.free - MB):
        loads.begin("a")
        await done(loads)
        assert loads.of("a").failures == 0
        assert made.pool.waits("a")
    await made.until(lambda view: view.status == "loaded")
    await loads.close()


async def test_what_is_kept_no_more_is_not_loaded(made: House, gate: Gate) -> None:
    loads = Loads(made.catalog, made.pool)
    loads.begin("a")
    loads.keep({"a"})
    task = loads.of("a").task
    assert task
    loads.keep(())
    await asyncio.wait([task])
    assert task.cancelled()
    assert not loads.of("a").under_way
    assert made.starts == 0
