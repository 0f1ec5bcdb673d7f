"""How tests of the service ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from modelops.access import ANYBODY
from modelops.api import types
from modelops.app import Running
from modelops.service import Call, Coordinator

EMPTY = types.Empty()
#: Starts a coordinator; the sections of its settings are given by name.
Start = Callable[..., AbstractAsyncContextManager[Running]]


def call(timeout_s: float | None = None) -> Call:
    return Call("1", "test", timeout_s=timeout_s, caller=ANYBODY)


def ask(**fields: Any) -> types.InferenceRequest:
    return types.InferenceRequest.parse({"model_name": "m", "input_text": "Hello", "max_tokens": 3} | fields)


def load(**fields: Any) -> types.ModelLoadRequest:
    return types.ModelLoadRequest.parse({"model_name": "m"} | fields)


async def model(door: Coordinator, name: str = "m") -> types.ModelInfo:
    return await door.get_model(call(), types.GetModelRequest(model_name=name))


async def versions(door: Coordinator, name: str = "m") -> list[types.ModelVersion]:
    return (await door.list_versions(call(), types.ListVersionsRequest(model_name=name))).versions


async def until(door: Coordinator, condition: Callable[[types.ModelInfo], object], name: str = "m") -> types.ModelInfo:
    """Wait until the model is as wanted."""
    while not condition(found := await model(door, name)):
        await asyncio.sleep(0.005)
    return found
