"""What is seen of models, of a real pool with engines that do nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from goals.pursued import until
from modelops.api.errors import EngineFailed
from modelops.goals.observing import Observer
from modelops.goals.values import ModelSeen
from modelops.settings import Settings
from serving.house import house
from support import FAKE_ENGINE, tiny_gguf


async def test_models_are_seen_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({"models": {"b": {"load_fails": "error: out of luck"}}}))
    engine = {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1, "stop_timeout_s": 2.0, "probe": False}
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": engine})
    for name in ("a", "b"):
        tiny_gguf(settings.models_dir / f"{name}.gguf")
    async with house(tmp_path, settings, tmp_path / "starts") as made:
        look = Observer(made.catalog, made.pool)
        assert look(["a", "c"]) == {
            "a": ModelSeen("a", version="v1"),
            "c": ModelSeen("c", registered=False),
        }
        await made.load("a")
        seen = look(["a"])["a"]
        assert (seen.status, seen.version, seen.serving, seen.failures) == ("loaded", "v1", "v1", 0)
        assert seen.memory_mb > 0

        # Another version is chosen, and the engine of the first one answers still.
        newer = tiny_gguf(settings.models_dir / "newer.gguf", general__name="newer")
        version = await made.catalog.register("a", newer.name, "llm")
        await made.catalog.activate(version)
        seen = look(["a"])["a"]
        assert (seen.version, seen.serving) == ("v2", "v1")
        await made.pool.swap(version, drain_first=False, deadline=asyncio.get_running_loop().time() + 20)
        await until(lambda: look(["a"])["a"].serving == "v2", "that the other version answers")

        with pytest.raises(EngineFailed, match="out of luck"):
            await made.load("b")
        seen = look(["b"])["b"]
        assert (seen.status, seen.serving) == ("failed", "")
        assert "out of luck" in seen.message
        assert seen.failures == 1
