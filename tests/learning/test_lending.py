"""Memory that is lent to what is no model, by a real ledger."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from modelops.api.errors import InsufficientMemory
from modelops.learning.lending import lent
from modelops.serving.placement import MB
from modelops.settings import Settings
from serving.house import Shown, house
from support import FAKE_ENGINE, tiny_gguf


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    tiny_gguf(tmp_path / "models" / "a.gguf")
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({}))
    engine = {"executable": str(FAKE_ENGINE), "probe": False}
    return Settings.model_validate({"data_dir": tmp_path, "engine": engine, "memory": {"budget_mb": 100}})


async def test_memory_that_is_held_is_waited_for_and_given_back(settings: Settings, tmp_path: Path) -> None:
    said: list[str] = []

    async def waits(why: str) -> None:
        said.append(why)
        waiting.set()

    waiting = asyncio.Event()
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        await home.load("a", pinned=True)
        held = home.reserved

        async def borrow() -> int:
            async with lent(home.pool, "a job", 90 * MB, waits=waits):
                return home.reserved

        async with asyncio.TaskGroup() as group:
            borrowing = group.create_task(borrow())
            await waiting.wait()
            assert home.reserved == held, "nothing is taken while it waits"
            await home.unload("a")
        assert borrowing.result() == 90 * MB
        assert home.reserved == 0
    assert [bool(why) for why in said] == [True, False], "told once that it waits, and once that it is over"
    assert "it waits for memory: 'a job' needs 90 MB" in said[0]


async def test_what_other_programs_hold_for_a_moment_is_waited_for(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, said = Shown(), list[str]()

    async def waits(why: str) -> None:
        said.append(why)
        shown.less = 0

    monkeypatch.setattr("serving.house.ThisMachine", lambda: shown)
    monkeypatch.setattr("modelops.learning.lending._LOOK_FOR_MEMORY_S", 0.01)
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        shown.less = 2**60
        with pytest.raises(InsufficientMemory, match="'a job' needs 101 MB"):
            async with lent(home.pool, "a job", 101 * MB, waits=waits):
                pass
        async with lent(home.pool, "a job", 90 * MB, waits=waits):
            assert home.reserved == 90 * MB
    assert [bool(why) for why in said] == [True, False]
    assert "'a job' needs 90 MB and 0 MB are free (held: no model; other programs: 100 MB)" in said[0]


async def test_what_is_free_is_lent_without_a_word(settings: Settings, tmp_path: Path) -> None:
    async def waits(why: str) -> None:
        pytest.fail(why)

    async with house(tmp_path, settings, tmp_path / "starts") as home:
        await home.load("a")  # idle: it goes for it
        async with lent(home.pool, "a job", 90 * MB, waits=waits):
            assert home.reserved == 90 * MB
        with pytest.raises(InsufficientMemory, match="'a job' needs 101 MB"):
            async with lent(home.pool, "a job", 101 * MB, waits=waits):
                pass
