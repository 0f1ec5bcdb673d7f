"""Inference: whole answers and streams.

Where an engine breaks before anything of its answer was sent, the request is asked once more, within the same deadline:
asking a model changes nothing, so it may be repeated. A request that kills engines costs two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from modelops.api import types
from modelops.api.errors import DeadlineExceeded, InvalidRequest, ModelOpsError
from modelops.engines.base import EngineBroke, Piece, Prompt
from modelops.service.call import Call, Parts
from modelops.serving.events import Share
from modelops.serving.views import Lease

log = logging.getLogger(__name__)

_Asking = types.InferenceRequest | types.EmbedRequest | types.RerankRequest
_Result = TypeVar("_Result")


class Inference:
    """The operations that ask a model."""

    _parts: Parts

    async def infer(self, call: Call, request: types.InferenceRequest) -> types.InferenceResponse:
        """The whole answer. An answer that was cut short is an error here: nothing has been sent yet."""
        deadline = self._parts.deadline(call)

        async def ask(cost: _Cost) -> types.InferenceResponse:
            answer = _Answer(call)
            async with contextlib.aclosing(self._generate(call, request, deadline, answer, cost)) as pieces:
                async for _ in pieces:
                    pass
            return answer.response()

        return await self._asked(call, ask)

    async def infer_stream(self, call: Call, request: types.InferenceRequest) -> AsyncGenerator[types.InferenceChunk]:
        """The answer as it is made; the last chunk is `done` and holds the whole.

        Raises only before the first chunk: an answer that is cut short later ends with a last chunk that says so.
        Closing the generator frees the engine's slot.
        """
        deadline, cost = self._parts.deadline(call), _Cost()
        try:
            for attempt in (1, 2):
                answer = _Answer(call)
                try:
                    async with contextlib.aclosing(self._generate(call, request, deadline, answer, cost)) as pieces:
                        async for piece in pieces:
                            yield types.InferenceChunk(text=piece.text)
                except ModelOpsError as error:
                    if answer.parts:
                        answer.error = error
                    elif attempt == 1 and isinstance(error, EngineBroke):
                        _once_more(call, error, cost)
                        continue
                    else:
                        raise
                break
            yield types.InferenceChunk(done=True, final=answer.response())
        finally:
            await self._spent(call, cost.tokens)

    async def embed(self, call: Call, request: types.EmbedRequest) -> types.EmbedResponse:
        """Each input as a vector."""
        deadline = self._parts.deadline(call)

        async def ask(cost: _Cost) -> types.EmbedResponse:
            size = _size(*request.inputs)
            async with self._lease(call, request, "embedding", deadline, cost, size) as lease, _in_time(deadline):
                vectors, tokens = await lease.embed(request.inputs)
            return types.EmbedResponse(
                embeddings=[types.Embedding(values=vector) for vector in vectors],
                tokens=tokens,
                latency_ms=call.latency_ms,
                model_version=lease.version.label,
            )

        return await self._asked(call, ask)

    async def rerank(self, call: Call, request: types.RerankRequest) -> types.RerankResponse:
        """The documents, best first."""
        deadline = self._parts.deadline(call)

        async def ask(cost: _Cost) -> types.RerankResponse:
            # Each document is read together with the query.
            size = _size(*request.documents) + len(request.documents) * _size(request.query)
            async with self._lease(call, request, "reranker", deadline, cost, size) as lease, _in_time(deadline):
                scores, tokens = await lease.rerank(request.query, request.documents)
            ranked = [types.RankedDocument(index=index, score=score) for index, score in enumerate(scores)]
            ranked.sort(key=lambda document: -document.score)
            return types.RerankResponse(
                results=ranked[: request.top_n or None],
                tokens=tokens,
                latency_ms=call.latency_ms,
                model_version=lease.version.label,
            )

        return await self._asked(call, ask)

    async def _spent(self, call: Call, tokens: int) -> None:
        """The request has ended, however it did, and took so many tokens of prompt and answer, as far as is known."""
        await self._parts.callers.rates.spend(call.caller, tokens)

    # --- asking ---
    async def _asked(self, call: Call, ask: Callable[[_Cost], Awaitable[_Result]]) -> _Result:
        """What `ask` returns; where its engine broke, what it returns the second time."""
        cost = _Cost()
        try:
            try:
                return await ask(cost)
            except EngineBroke as error:
                _once_more(call, error, cost)
            return await ask(cost)
        finally:
            await self._spent(call, cost.tokens)

    @contextlib.asynccontextmanager
    async def _lease(
        self,
        call: Call,
        request: _Asking,
        model_type: types.ModelType,
        deadline: float,
        cost: _Cost,
        prompt_bytes: int,
        answer_tokens: int = 0,
    ) -> AsyncIterator[Lease]:
        """A slot of the request's model, which has to be of that type; what it takes is noted as its `cost`."""
        name = self._parts.catalog.resolve(request.model_name)
        if not self._parts.pool.resident(name):  # a model is not loaded for what it cannot do
            async with _in_time(deadline):
                _check_type(name, (await self._parts.catalog.find(name, fetch=True)).model_type, model_type)
        async with self._parts.pool.lease(
            name,
            deadline,
            request.keep_alive,
            share=Share(call.caller.name, call.caller.weight),
            prompt_bytes=prompt_bytes,
            answer_tokens=answer_tokens,
        ) as lease:
            _check_type(name, lease.version.model_type, model_type)
            try:
                yield lease
            except DeadlineExceeded:
                limit_s = self._parts.settings.server.request_timeout_s
                if call.timeout_s is None or call.timeout_s >= limit_s:
                    lease.overdue(limit_s)
                raise
            finally:
                cost.tokens = lease.usage.total

    async def _generate(
        self, call: Call, request: types.InferenceRequest, deadline: float, answer: _Answer, cost: _Cost
    ) -> AsyncGenerator[Piece]:
        """The pieces that hold text; what they add up to is collected in `answer`."""
        entry = self._parts.catalog.entry(self._parts.catalog.resolve(request.model_name))
        prompt = Prompt(
            text=request.input_text,
            system=request.system if "system" in request.model_fields_set else entry.system,
            raw=request.raw,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=tuple(request.stop_sequences) or entry.stop,
            seed=request.seed,
        )
        size = _size(prompt.text, prompt.system)
        async with self._lease(call, request, "llm", deadline, cost, size, prompt.max_tokens) as lease:
            answer.version = lease.version.label
            async with contextlib.aclosing(lease.generate(prompt)) as pieces:
                while True:
                    try:
                        # Around each step, not around the loop: between steps the caller's own code runs.
                        async with asyncio.timeout_at(deadline):
                            piece = await anext(pieces)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        raise DeadlineExceeded("the time ran out while the model was answering") from None
                    answer.add(piece)
                    if piece.text:
                        yield piece


def _once_more(call: Call, error: EngineBroke, cost: _Cost) -> None:
    cost.tokens = 0  # what an engine lost is not its caller's to pay
    log.warning("request %s is asked once more: %s", call.request_id, error.reason)


def _size(*texts: str) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode(errors="surrogatepass")) for text in texts)


def _check_type(name: str, found: types.ModelType, wanted: types.ModelType) -> None:
    if found != wanted:
        raise InvalidRequest(f"'{name}' is a model of type '{found}'; this takes one of type '{wanted}'")


@contextlib.asynccontextmanager
async def _in_time(deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the time ran out while the model was answering") from None


@dataclass
class _Cost:
    """Tokens that a request took, the last time that it was asked."""

    tokens: int = 0


@dataclass
class _Answer:
    """What an answer adds up to."""

    call: Call
    version: str = ""
    tokens: int | None = None
    parts: list[str] = field(default_factory=list)
    error: ModelOpsError | None = None

    def add(self, piece: Piece) -> None:
        if piece.text:
            self.parts.append(piece.text)
        if piece.tokens is not None:
            self.tokens = piece.tokens

    def response(self) -> types.InferenceResponse:
        return types.InferenceResponse(
            output_text="".join(self.parts),
            # Without the engine's own count, which comes last, each part was one token or more.
            tokens_generated=len(self.parts) if self.tokens is None else self.tokens,
            latency_ms=self.call.latency_ms,
            model_version=self.version,
            success=self.error is None,
            error_message=self.error.message if self.error else "",
        )
