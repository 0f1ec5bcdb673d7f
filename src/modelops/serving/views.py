"""What others see of a model: a lease to ask it, and a frozen view to show it.

A decision made from a view would be late.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from modelops.api.errors import ModelOpsError
from modelops.api.types import ModelStatus
from modelops.engines.base import EngineBroke, Piece, Prompt
from modelops.engines.llama_cpp import Engine
from modelops.engines.scores import TokenScore
from modelops.serving.breaker import Breaker, Reading
from modelops.serving.catalog import Version
from modelops.serving.events import Outcome, Usage
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
    """One model as it stands, for display only. `memory` is in bytes for each device, reserved; `predicted` what its
    engine was expected to take, `measured` what it was last seen to. `used`: anybody has wanted it since the start."""

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
    breaker: Reading = field(default_factory=Reading)
    message: str = ""
    engine_pid: int = 0
    layout: Layout | None = None  # of its engine
    predicted: int = 0
    measured: int = 0
    base: str = ""  # of an adapter: the model whose engine serves it, and to whom slots, queue and breaker belong
    usage: Usage = field(default_factory=Usage)
    used: bool = False


def view_of(
    version: Version, model: Model, running: Running | None, held: Mapping[str, int], usage: Usage, now: float
) -> View:
    """The view of `model`, where `version` answers, or would, at `now` on the clock of the model's times."""
    status = STATUS[model.phase]
    expires = None
    if model.idle and model.keep_alive_s is not None and not (model.keep_alive_s == 0 and model.unanswered):
        expires = datetime.now(UTC) + timedelta(seconds=model.idle_since + model.keep_alive_s - now)
    message = model.error.message if model.error else ""
    if model.phase == "loading" and running is None:
        message = "waiting until the memory that it needs is free"
    if status not in ("loading", "unloading"):  # what is watched meanwhile does not change each second
        message = _rests(model.breaker, now) or message
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
        breaker=model.breaker.read(now),
        message=message,
        engine_pid=running.engine.pid if running else 0,
        layout=running.layout if running else None,
        predicted=sum(running.layout.reserve.values()) if running else 0,
        measured=running.seen if running else 0,
        usage=usage,
        used=True,
    )


def adapter_view(
    version: Version, base: View, running: Running | None, used: tuple[Usage, int], *, coming: bool
) -> View:
    """The view of an adapter, of which `version` is active, beside its model, which `running` serves. `used` is what
    its requests took, and how many there are; `coming`: the engine is about to get other adapters."""
    usage, active = used
    holds = running is not None and running.adapter(version.model_name, [version.number]) is not None
    status: ModelStatus = base.status
    if not holds and status in ("loaded", "unloading"):
        status = "loading" if coming and version.base == base.version.digest else "available"
    elif not holds and version.base != base.version.digest:
        status = "available"
    seen = holds and status == "loaded"
    return View(
        version=version,
        status=status,
        gpu_layers=base.gpu_layers if seen else 0,
        context_length=base.context_length if seen else 0,
        slots=base.slots if seen else 0,
        cache_type=base.cache_type if seen else "",
        loaded_at=base.loaded_at if seen else None,
        expires_at=base.expires_at if seen else None,
        pinned=base.pinned and seen,
        active=active,
        message=base.message if status != "available" else "",
        engine_pid=base.engine_pid if seen else 0,
        layout=base.layout if seen else None,
        base=base.version.model_name,
        usage=usage,
        used=usage.total > 0 or active > 0,
    )


def _rests(breaker: Breaker, now: float) -> str:
    match breaker.state(now):
        case "open":
            return f"{breaker.reason} (not asked for another {math.ceil(breaker.left_s(now))} s)"
        case "half_open":
            return f"{breaker.reason} (the next request tries it again)"
        case _:
            return ""


@dataclass
class Lease:
    """A slot of a loaded model, held from admission to the last byte. `version` is the one that answers.

    It notes what becomes of its request, and what that takes. `prompt_tokens`: how many the prompt is expected to have;
    `adapter`: the number that the engine has for the adapter which answers, None where none does.
    """

    version: Version
    engine: Engine
    revoked: Callable[[], ModelOpsError | None]
    prompt_tokens: int = 0
    adapter: int | None = None
    outcome: Outcome = field(default_factory=Outcome)
    _read: int = 0  # of the prompt, as the engine told
    _answered: int = 0
    _began: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    @property
    def usage(self) -> Usage:
        """Tokens so far. Whoever has a word of the answer has read the whole prompt."""
        return Usage(self._read or (self.prompt_tokens if self._answered else 0), self._answered)

    def overdue(self, limit_s: float) -> None:
        """The server's own limit of `limit_s` ran out, not the caller's: the engine failed it, where it had most of
        that time. Elsewhere the request had waited for a slot."""
        if asyncio.get_running_loop().time() - self._began >= limit_s / 2:
            self.outcome = Outcome("failed", f"a request was not answered within {limit_s:g} s")

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Piece]:
        """The engine's answer, piece by piece; raises the reason instead of the engine's where the slot was taken.

        Several answers may be made, one after another: what they take adds up.
        """
        read, answered = self._read, self._answered
        with self._noted():
            asked = replace(prompt, adapter=self.adapter)
            async with contextlib.aclosing(self.engine.generate(asked)) as pieces:
                async for piece in pieces:
                    self._read = max(self._read, read + piece.prompt_tokens)
                    # Without the engine's own count, which comes last, each part is one token or more.
                    self._answered = self._answered + piece.says if piece.tokens is None else answered + piece.tokens
                    yield piece
            self.outcome = Outcome("answered")

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Each text as a vector, and the tokens of all."""
        with self._noted():
            vectors, self._read = await self.engine.embed(texts)
            self.outcome = Outcome("answered")
            return vectors, self._read

    async def rerank(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        """The score of each document, and the tokens of all."""
        with self._noted():
            scores, self._read = await self.engine.rerank(query, documents)
            self.outcome = Outcome("answered")
            return scores, self._read

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The tokens of `text`: see `Engine.tokenize`."""
        with self._noted():
            return await self.engine.tokenize(text, special=special)

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template of `messages`, and of the beginning of the answer."""
        with self._noted():
            return await self.engine.render(messages)

    async def score(self, prompt: Sequence[int], answer: Sequence[int]) -> list[TokenScore]:
        """How probable each token of `answer` is behind all before it: see `Engine.score`."""
        with self._noted():
            scores = await self.engine.score(prompt, answer, self.adapter)
            self._read = len(prompt) + len(answer)  # an answer is what the model says, and it says nothing
            self.outcome = Outcome("answered")
            return scores

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except EngineBroke as error:
            if why := self.revoked():
                raise why from None
            self.outcome = Outcome("failed", error.reason)
            raise
