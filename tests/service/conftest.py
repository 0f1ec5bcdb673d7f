"""Fixtures: a coordinator in this process, with fake engines that behave as told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modelops.app import Running, running
from modelops.service import Coordinator
from modelops.settings import Settings
from service.asking import Start
from support import FAKE_ENGINE, tiny_gguf


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tells the fake engines how to behave from now on."""

    def behave(**values: Any) -> None:
        monkeypatch.setenv("FAKE_ENGINE", json.dumps(values))

    behave()
    return behave


@pytest.fixture
def start(tmp_path: Path, behaviour: Any) -> Start:
    """Starts a coordinator with the model `m`."""

    @contextlib.asynccontextmanager
    async def start(**sections: Any) -> AsyncIterator[Running]:
        if not (file := tmp_path / "models" / "m.gguf").exists():
            tiny_gguf(file)
        fixed: dict[str, Any] = {
            "data_dir": tmp_path,
            "server": {"rest_port": 0, "grpc_port": 0, "zmq_port": 0, "drain_s": 0},
            "engine": {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1, "probe": False},
        }
        async with running(Settings.model_validate(fixed | sections)) as started:
            yield started

    return start


@pytest.fixture
async def parts(start: Start) -> AsyncIterator[Running]:
    """A coordinator with settings as they are by default."""
    async with start() as started:
        yield started


@pytest.fixture
def door(parts: Running) -> Coordinator:
    return parts.coordinator
