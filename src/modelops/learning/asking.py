"""Puts a row to a model: what it answers, and how probable the wanted answer is to it.

Through the pool, as any caller's request; or to an engine that a job has started for itself. What becomes of the
answers is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from modelops.api.errors import DeadlineExceeded, Overloaded
from modelops.api.learning import EvaluateParameters
from modelops.engines.base import EngineBroke, Piece, Prompt
from modelops.engines.llama_cpp import Engine
from modelops.engines.scores import TokenScore
from modelops.learning.datasets import Example, Turn, plain
from modelops.learning.scoring import ANSWERS
from modelops.serving import gguf
from modelops.serving.events import ANYBODY, Share
from modelops.serving.pool import Pool
from modelops.serving.views import Lease

log = logging.getLogger(__name__)

#: Why a model is not asked that has failed again and again.
_FAILING = ("breaker_open", "load_backoff")
_Result = TypeVar("_Result")
_Score = Callable[[Sequence[int], Sequence[int]], Awaitable[list[TokenScore]]]


@dataclass(frozen=True)
class Answered:
    """What a model has said, and in how many tokens."""

    text: str
    tokens: int


class Asker(Protocol):
    """Somebody who can be asked many rows at once."""

    @property
    def slots(self) -> int:
        """How many rows are worked on at once, now; 0: that is not known before the first has been."""

    async def answer(self, row: Example, parameters: EvaluateParameters) -> Answered:
        """What the model answers to the row's turns, at temperature 0. Raises ModelOpsError."""

    async def likelihood(self, row: Example, parameters: EvaluateParameters) -> tuple[float, int]:
        """The sum of the natural log-probabilities of the tokens of the row's answer, or of its text, and how many
        they are. What ends the answer is none of them; of a text whose model begins it with nothing, the first is not
        either: nothing is probable before it. Raises ModelOpsError."""

    async def context(self) -> int:
        """How many tokens a question and its answer may have together; a model is loaded to know. Raises
        ModelOpsError."""

    async def tokens(self, row: Example, parameters: EvaluateParameters) -> int:
        """How many the longest that is asked of the row has, with one of an answer at least. Nothing is asked for it.
        Raises ModelOpsError."""


class EngineAsker:
    """Asks an engine that the caller has started, and stops; with one of the engine's adapters, or with none. `stop` is
    what ends an answer."""

    def __init__(self, engine: Engine, adapter: int | None = None, stop: tuple[str, ...] = ()) -> None:
        self._engine = engine
        self._adapter = adapter
        self._stop = stop

    @property
    def slots(self) -> int:
        """Those of the engine."""
        return self._engine.spec.slots

    async def answer(self, row: Example, parameters: EvaluateParameters) -> Answered:
        """See Asker. An engine that breaks is not asked again: it is not there any more."""
        prompt = _prompt(_turns(row, parameters.system), parameters.max_tokens, template=await self._template())
        return await _answer(self._engine, replace(prompt, adapter=self._adapter, stop=self._stop))

    async def likelihood(self, row: Example, parameters: EvaluateParameters) -> tuple[float, int]:
        """See Asker."""
        score = partial(self._engine.score, adapter=self._adapter)
        turns = _turns(row, parameters.system)
        return await _likelihood(self._engine, score, row, turns, template=await self._template())

    async def context(self) -> int:
        """See Asker."""
        return self._engine.spec.context_length

    async def tokens(self, row: Example, parameters: EvaluateParameters) -> int:
        """See Asker."""
        turns = _turns(row, parameters.system)
        return await _tokens(self._engine, row, turns, parameters, template=await self._template())

    async def _template(self) -> bool:
        return await _has_template(self._engine.spec.file)


class PoolAsker:
    """Asks the model `name`, no alias, as one of its callers: it is loaded where that is needed, and rows wait for a
    slot as the `share` is served.

    A row whose engine breaks is asked once more. It may wait for its slot and its answer for `patience_s` in all, else
    DeadlineExceeded is raised. `system` and `stop` are the model's own: what is said before rows that have no system
    turn where the parameters have none either, and what ends an answer. `versions` are the labels of those that have
    answered: more than one where another was activated meanwhile.
    """

    def __init__(
        self,
        pool: Pool,
        name: str,
        share: Share = ANYBODY,
        *,
        patience_s: float = 600.0,
        system: str = "",
        stop: tuple[str, ...] = (),
    ) -> None:
        self._pool = pool
        self._name = name
        self._share = share
        self._patience_s = patience_s
        self._system = system
        self._stop = stop
        self.versions: set[str] = set()

    @property
    def slots(self) -> int:
        """Those of the engine that serves the model; 0 while none does."""
        return self._pool.view(self._name).slots

    async def answer(self, row: Example, parameters: EvaluateParameters) -> Answered:
        """See Asker."""
        turns = _turns(row, parameters.system or self._system)

        async def ask(lease: Lease) -> Answered:
            prompt = _prompt(turns, parameters.max_tokens, template=await _has_template(lease.engine.spec.file))
            return await _answer(lease, replace(prompt, stop=self._stop))

        return await self._asked(ask, _size(turns), parameters.max_tokens)

    async def likelihood(self, row: Example, parameters: EvaluateParameters) -> tuple[float, int]:
        """See Asker."""
        turns = _turns(row, parameters.system or self._system)

        async def ask(lease: Lease) -> tuple[float, int]:
            template = await _has_template(lease.engine.spec.file)
            return await _likelihood(lease, lease.score, row, turns, template=template)

        return await self._asked(ask, _size(turns) + len(row.answer.encode()) + len(row.text.encode()))

    async def context(self) -> int:
        """See Asker."""

        async def ask(lease: Lease) -> int:
            return lease.engine.spec.context_length

        return await self._asked(ask, 0)

    async def tokens(self, row: Example, parameters: EvaluateParameters) -> int:
        """See Asker."""
        turns = _turns(row, parameters.system or self._system)

        async def ask(lease: Lease) -> int:
            template = await _has_template(lease.engine.spec.file)
            return await _tokens(lease, row, turns, parameters, template=template)

        return await self._asked(ask, 0)

    async def _asked(
        self, ask: Callable[[Lease], Awaitable[_Result]], prompt_bytes: int, answer_tokens: int = 0
    ) -> _Result:
        deadline = asyncio.get_running_loop().time() + self._patience_s
        try:
            return await self._once(ask, deadline, prompt_bytes, answer_tokens)
        except EngineBroke as error:
            log.warning("a row is asked once more: %s", error.reason, extra={"model": self._name})
            broke = error
        try:
            return await self._once(ask, deadline, prompt_bytes, answer_tokens)
        except Overloaded as refused:
            if refused.reason in _FAILING:  # to come back later would not help: it is how the engine takes these rows
                raise broke from None
            raise

    async def _once(
        self, ask: Callable[[Lease], Awaitable[_Result]], deadline: float, prompt_bytes: int, answer_tokens: int
    ) -> _Result:
        async with self._pool.lease(
            self._name, deadline, share=self._share, prompt_bytes=prompt_bytes, answer_tokens=answer_tokens
        ) as lease:
            try:
                async with asyncio.timeout_at(deadline):
                    result = await ask(lease)
            except TimeoutError:
                lease.overdue(self._patience_s)
                raise DeadlineExceeded(
                    f"'{self._name}' did not answer a row within {self._patience_s:.0f} s; try again when it has less "
                    "to do"
                ) from None
            self.versions.add(lease.version.label)
            return result


class _Texts(Protocol):
    """An engine, or a slot of one."""

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece]: ...

    async def tokenize(self, text: str, *, special: bool) -> list[int]: ...

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str: ...


async def _has_template(file: Path) -> bool:
    """Without one, an engine would put turns in a form that the model has never seen."""
    return bool((await asyncio.to_thread(gguf.read_header, file)).chat_template)


def _turns(row: Example, system: str) -> tuple[Turn, ...]:
    if not system or not row.turns or row.turns[0]["role"] == "system":
        return row.turns
    return ({"role": "system", "content": system}, *row.turns)


def _size(turns: Sequence[Turn]) -> int:
    return sum(len(turn["content"].encode()) for turn in turns)


def _prompt(turns: Sequence[Turn], max_tokens: int, *, template: bool) -> Prompt:
    return Prompt(
        text="" if template else plain(turns),
        system="",
        raw=not template,
        max_tokens=max_tokens,
        temperature=0.0,
        top_p=1.0,
        stop=(),
        seed=None,
        messages=tuple(turns) if template else (),
    )


async def _answer(asked: _Texts, prompt: Prompt) -> Answered:
    parts, tokens = [], 0
    async with contextlib.aclosing(asked.generate(prompt)) as pieces:
        async for piece in pieces:
            parts.append(piece.text)
            tokens = tokens if piece.tokens is None else piece.tokens
    return Answered("".join(parts), tokens)


async def _before(asked: _Texts, turns: Sequence[Turn], *, template: bool) -> str:
    """What stands before an answer."""
    if not turns:
        return ""
    return await asked.render(turns) if template else plain(turns)


async def _tokens(
    asked: _Texts, row: Example, turns: Sequence[Turn], parameters: EvaluateParameters, *, template: bool
) -> int:
    before = await _before(asked, turns, template=template)
    longest = 0
    if row.answer and any(metric in ANSWERS for metric in parameters.metrics):
        longest = len(await asked.tokenize(before, special=True)) + 1
    if "perplexity" in parameters.metrics:
        longest = max(longest, len(await asked.tokenize(before + (row.answer or row.text), special=True)))
    return longest


async def _likelihood(
    asked: _Texts, score: _Score, row: Example, turns: Sequence[Turn], *, template: bool
) -> tuple[float, int]:
    before = await _before(asked, turns, template=template)
    whole = await asked.tokenize(before + (row.answer or row.text), special=True)
    if turns:
        # What an answer is generated behind, and trained behind: the prompt read by itself.
        prompt = await asked.tokenize(before, special=True)
        answer = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt:  # the prompt's end and the answer's beginning would be one token
            answer = await asked.tokenize(row.answer, special=False)
    else:
        prompt, answer = whole[:1], whole[1:]
    if not answer:
        return 0.0, 0
    scores = await score(prompt, answer)
    return math.fsum(token.logprob for token in scores), len(scores)
