"""A pool, or an engine, for those who put rows to it; and the rows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelops.engines.base import EngineSpec
from modelops.engines.llama_cpp import Engine
from modelops.learning.datasets import Example
from modelops.settings import Settings
from serving.house import House, house
from support import FAKE_ENGINE, put, tiny_gguf

TEMPLATE = "{{ messages }}"


def row(number: int, answer: str = "w0", prompt: str = "Hello") -> Example:
    """A row of one turn."""
    return Example(number, ({"role": "user", "content": prompt},), answer)


@contextlib.asynccontextmanager
async def pooled(
    folder: Path,
    patch: pytest.MonkeyPatch,
    behaviour: dict[str, Any] | None = None,
    *,
    template: bool = True,
    model: Path | None = None,
    slots: int = 2,
    **sections: Any,
) -> AsyncIterator[House]:
    """A house with the model `a` of so many slots, whose engine behaves as told, or is the real one with the file
    `model`. At the end nothing may be left."""
    before = psutil.Process().children(recursive=True)
    engine: dict[str, Any] = {"slots": slots, "threads": 1, "stop_timeout_s": 2.0}
    if model is None:
        patch.setenv("FAKE_ENGINE", json.dumps({"count_file": str(folder / "starts")} | (behaviour or {})))
        engine |= {"executable": str(FAKE_ENGINE), "probe": False}
    settings = Settings.model_validate({"data_dir": folder, "engine": engine, **sections})
    if model is None:
        tiny_gguf(settings.models_dir / "a.gguf", tokenizer__chat_template=TEMPLATE if template else "")
    else:
        put(model, settings.models_dir / "a.gguf")
    async with house(folder, settings, folder / "starts") as made:
        yield made
    assert psutil.Process().children(recursive=True) == before


@contextlib.asynccontextmanager
async def alone(file: Path, folder: Path, executable: str = "", adapters: Sequence[Path] = ()) -> AsyncIterator[Engine]:
    """An engine of one's own, with two slots."""
    spec = EngineSpec(
        model_name="m",
        file=file,
        executable=executable,
        slots=2,
        context_length=256,
        threads=1,
        batch_size=64,
        cache_ram_mb=0,
        gpu_layers=-1,
        load_timeout_s=30.0,
        stop_timeout_s=2.0,
        adapters=tuple(adapters),
    )
    engine = Engine(spec, folder / "own.sock")
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
