"""Fixtures: pools in this process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelops.settings import Settings
from serving.house import House, Make, house
from support import FAKE_ENGINE, tiny_gguf

Section = dict[str, Any]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes a house with the models `a` and `b`, two slots each, whose engines behave as told. At the end, nothing of
    it may be left."""
    before = psutil.Process().children(recursive=True)
    async with contextlib.AsyncExitStack() as stack:

        async def make(behaviour: Section | None = None, *, engine: Section | None = None, **sections: Any) -> House:
            starts = tmp_path / "starts"
            monkeypatch.setenv("FAKE_ENGINE", json.dumps({"count_file": str(starts)} | (behaviour or {})))
            fake = {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1, "stop_timeout_s": 2.0, "probe": False}
            settings = Settings.model_validate({"data_dir": tmp_path, "engine": fake | (engine or {}), **sections})
            for name in ("a", "b"):
                tiny_gguf(settings.models_dir / f"{name}.gguf")
            return await stack.enter_async_context(house(tmp_path, settings, starts))

        yield make
    assert psutil.Process().children(recursive=True) == before
    assert not list(tmp_path.glob("*.sock"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A models folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder
