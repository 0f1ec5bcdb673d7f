"""What others see of a model: a lease to ask it, and a frozen view to show it.

A decision made from a view would be late.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from modelops.api.errors import EngineFailed, ModelOpsError
from modelops.api.types import ModelStatus
from modelops.engines.base import Piece, Prompt
from modelops.engines.llama_cpp import Engine
from modelops.serving.catalog import Version
from modelops.serving.placement import Layout
from modelops.serving.state import Model, Phase

if TYPE_CHECKING:
    from modelops.serving.running import Running

#: What callers are told of each phase.
STATUS: dict[Phase, ModelStatus] = {
    "available": "available",
    "loading": "loading",
    "loaded": "loaded",
    "unloading": "unloading",
    "restarting": "loading",
    "failed": "failed",
}


@dataclass(frozen=True)
class View:
    """One model as it stands, for display only. `memory` is in bytes for each device."""

    version: Version
    status: ModelStatus
    memory: Mapping[str, int] = field(default_factory=dict)
    gpu_layers: int = 0
    context_length: int = 0
    slots: int = 0
    cache_type: str = ""
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    pinned: bool = False
    active: int = 0
    queued: int = 0
    message: str = ""
    engine_pid: int = 0
    layout: Layout | None = None  # of its engine


def view_of(version: Version, model: Model, running: Running | None, held: Mapping[str, int], now: float) -> View:
    """The view of `model`, where `version` answers, or would, at `now` on the clock of the model's times."""
    status = STATUS[model.phase]
    expires = None
    if model.idle and model.keep_alive_s is not None and not (model.keep_alive_s == 0 and model.unanswered):
        expires = datetime.now(UTC) + timedelta(seconds=model.idle_since + model.keep_alive_s - now)
    message = model.error.message if model.error else ""
    if model.phase == "loading" and running is None:
        message = "waiting until the memory that it needs is free"
    spec = running.build.tuned.spec if running else None
    return View(
        version=version,
        status=status,
        memory=held,
        gpu_layers=(running.layout.gpu_layers if running.layout.split else running.build.wish.gpu_layers)
        if running
        else 0,
        context_length=spec.context_length if spec else 0,
        slots=spec.slots if spec else 0,
        cache_type=spec.cache_type if spec else "",
        loaded_at=running.loaded_at if running else None,
        last_used_at=running.last_used_at if running else None,
        expires_at=expires,
        pinned=model.residency.pinned and status != "available",
        active=model.active,
        queued=model.queued,
        message=message,
        engine_pid=running.engine.pid if running else 0,
        layout=running.layout if running else None,
    )


@dataclass
class Lease:
    """A slot of a loaded model, held from admission to the last byte. `version` is the one that answers."""

    version: Version
    engine: Engine
    revoked: Callable[[], ModelOpsError | None]

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Piece]:
        """The engine's answer, piece by piece; raises the reason instead of the engine's where the slot was taken."""
        try:
            async with contextlib.aclosing(self.engine.generate(prompt)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineFailed:
            self._raise_revoked()
            raise

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Each text as a vector, and the tokens of all."""
        try:
            return await self.engine.embed(texts)
        except EngineFailed:
            self._raise_revoked()
            raise

    async def rerank(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        """The score of each document, and the tokens of all."""
        try:
            return await self.engine.rerank(query, documents)
        except EngineFailed:
            self._raise_revoked()
            raise

    def _raise_revoked(self) -> None:
        if why := self.revoked():
            raise why from None
