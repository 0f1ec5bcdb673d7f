"""Inference: whole answers and streams.

Where an engine breaks before anything of its answer was sent, the request is asked once more, within the same deadline:
asking a model changes nothing, so it may be repeated. A request that kills engines costs two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from modelops.api import chat as chats
from modelops.api import types
from modelops.api.errors import DeadlineExceeded, InvalidRequest, ModelOpsError
from modelops.engines.base import EngineBroke, Piece, Prompt
from modelops.metrics.families import RETRIES
from modelops.service import answer as words
from modelops.service import conversation
from modelops.service.answer import Answer
from modelops.service.call import Call, Parts
from modelops.serving.events import Share
from modelops.serving.views import Lease
from modelops.tracing import NOTHING, Attributes, Span, part

log = logging.getLogger(__name__)

_Question = types.InferenceRequest | chats.ChatRequest
_Asking = _Question | types.EmbedRequest | types.RerankRequest
#: What an answer is taken to have at most, in the queue's reckoning, where its caller sets no bound.
_USUAL_TOKENS = 2048
_Result = TypeVar("_Result")


class Inference:
    """The operations that ask a model."""

    _parts: Parts

    async def infer(self, call: Call, request: types.InferenceRequest) -> types.InferenceResponse:
        """The whole answer. An answer that was cut short is an error here: nothing has been sent yet."""
        return (await self._whole(call, request, self._turn(request))).response()

    async def infer_stream(self, call: Call, request: types.InferenceRequest) -> AsyncGenerator[types.InferenceChunk]:
        """The answer as it is made; the last chunk is `done` and holds the whole.

        Raises only before the first chunk: an answer that is cut short later ends with a last chunk that says so.
        Closing the generator frees the engine's slot.
        """
        async with contextlib.aclosing(self.infer_several(call, [request])) as chunks:
            async for _, chunk in chunks:
                yield chunk

    async def infer_several(
        self, call: Call, requests: Sequence[types.InferenceRequest], n: int = 1, *, whole: bool = False
    ) -> AsyncGenerator[tuple[int, types.InferenceChunk]]:
        """`n` answers to each of the requests, all on one slot, one after another; their numbers are from 0 on.

        Each comes as from `infer_stream`; where all are wanted `whole`, the last chunk of each, and what cuts one
        short is raised. After one that is cut short there are no more.
        """
        prompts = conversation.several([self._turn(request) for request in requests], n)
        async with contextlib.aclosing(self._told(call, requests[0], prompts, whole=whole)) as told:
            async for answer, piece in told:
                if piece is None:
                    yield answer.number, types.InferenceChunk(done=True, final=answer.response())
                elif piece.text:
                    yield answer.number, types.InferenceChunk(text=piece.text)

    async def chat(self, call: Call, request: chats.ChatRequest) -> chats.ChatResponse:
        """The whole answer to a conversation; else as `infer`."""
        return (await self._whole(call, request, self._turns(request))).chat_response()

    async def chat_stream(self, call: Call, request: chats.ChatRequest) -> AsyncGenerator[chats.ChatChunk]:
        """The answer to a conversation as it is made; else as `infer_stream`."""
        async with contextlib.aclosing(self.chat_several(call, [request])) as chunks:
            async for _, chunk in chunks:
                yield chunk

    async def chat_several(
        self, call: Call, requests: Sequence[chats.ChatRequest], n: int = 1, *, whole: bool = False
    ) -> AsyncGenerator[tuple[int, chats.ChatChunk]]:
        """Several answers to conversations; else as `infer_several`."""
        prompts = conversation.several([self._turns(request) for request in requests], n)
        async with contextlib.aclosing(self._told(call, requests[0], prompts, whole=whole)) as told:
            async for answer, piece in told:
                if piece is None:
                    yield answer.number, chats.ChatChunk(done=True, final=answer.chat_response())
                else:
                    yield answer.number, conversation.chunk(piece)

    async def embed(self, call: Call, request: types.EmbedRequest) -> types.EmbedResponse:
        """Each input as a vector."""
        deadline = self._parts.deadline(call)

        async def ask(cost: _Cost) -> types.EmbedResponse:
            size = _size(*request.inputs)
            async with self._lease(call, request, "embedding", deadline, cost, size) as lease:
                with self._asking(call, lease, "embeddings"):
                    async with _in_time(deadline):
                        vectors, tokens = await lease.embed(request.inputs)
            return types.EmbedResponse(
                embeddings=[types.Embedding(values=vector) for vector in vectors],
                tokens=tokens,
                latency_ms=_answered(call),
                model_version=lease.version.label,
            )

        return await self._asked(call, ask)

    async def rerank(self, call: Call, request: types.RerankRequest) -> types.RerankResponse:
        """The documents, best first."""
        deadline = self._parts.deadline(call)

        async def ask(cost: _Cost) -> types.RerankResponse:
            # Each document is read together with the query.
            size = _size(*request.documents) + len(request.documents) * _size(request.query)
            async with self._lease(call, request, "reranker", deadline, cost, size) as lease:
                with self._asking(call, lease, "rerank"):
                    async with _in_time(deadline):
                        scores, tokens = await lease.rerank(request.query, request.documents)
            ranked = [types.RankedDocument(index=index, score=score) for index, score in enumerate(scores)]
            ranked.sort(key=lambda document: -document.score)
            return types.RerankResponse(
                results=ranked[: request.top_n or None],
                tokens=tokens,
                latency_ms=_answered(call),
                model_version=lease.version.label,
            )

        return await self._asked(call, ask)

    async def _spent(self, call: Call, tokens: int) -> None:
        """The request has ended, however it did, and took so many tokens of prompt and answer, as far as is known."""
        await self._parts.callers.rates.spend(call.caller, tokens)

    def _once_more(self, call: Call, error: EngineBroke, cost: _Cost) -> None:
        cost.tokens = 0  # what an engine lost is not its caller's to pay
        model = call.record.model
        log.warning(
            "request %s is asked once more: %s",
            *(call.request_id, error.reason),
            extra={"request_id": call.request_id, "model": model},
        )
        call.record.attempts += 1
        self._parts.metrics.count(RETRIES, model)

    # --- asking ---
    async def _whole(self, call: Call, request: _Question, prompt: Prompt) -> Answer:
        async with contextlib.aclosing(self._told(call, request, [prompt], whole=True)) as told:
            async for answer, _ in told:
                return answer
        raise AssertionError("what was asked was neither answered nor refused")

    async def _told(
        self, call: Call, request: _Question, prompts: Sequence[Prompt], *, whole: bool
    ) -> AsyncGenerator[tuple[Answer, Piece | None]]:
        """Each answer piece by piece, or at once where it is wanted whole; after its last piece comes None."""
        deadline, cost, made, attempt = self._parts.deadline(call), _Cost(), 0, 1
        try:
            while True:
                answer = Answer(call)
                size = sum(words.size(prompt) for prompt in prompts[made:])
                longest = sum(prompt.max_tokens or _USUAL_TOKENS for prompt in prompts[made:])
                try:
                    async with self._lease(call, request, "llm", deadline, cost, size, longest) as lease:
                        for number in range(made, len(prompts)):
                            if number > made:
                                made = number
                                yield answer, None
                            answer = Answer(call, number, prompts[number].max_tokens)
                            asked = self._generate(call, lease, prompts[number], deadline, answer)
                            async with contextlib.aclosing(asked) as pieces:
                                async for piece in pieces:
                                    if not whole:
                                        yield answer, piece
                except ModelOpsError as error:
                    if answer.begun and not whole:
                        answer.error = error
                    elif attempt == 1 and isinstance(error, EngineBroke):
                        attempt += 1
                        self._once_more(call, error, cost)
                        continue
                    else:
                        raise
                # The last one: its slot is free before its caller has taken it.
                yield answer, None
                return
        finally:
            await self._spent(call, cost.tokens)

    async def _asked(self, call: Call, ask: Callable[[_Cost], Awaitable[_Result]]) -> _Result:
        """What `ask` returns; where its engine broke, what it returns the second time."""
        cost = _Cost()
        try:
            try:
                return await ask(cost)
            except EngineBroke as error:
                self._once_more(call, error, cost)
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
        name = call.record.model = self._parts.catalog.resolve(request.model_name)
        if not self._parts.pool.resident(name):  # a model is not loaded for what it cannot do
            async with _in_time(deadline):
                _check_type(name, (await self._parts.catalog.find(name, fetch=True)).model_type, model_type)
        asked = time.perf_counter()
        async with self._parts.pool.lease(
            name,
            deadline,
            request.keep_alive,
            share=Share(call.caller.name, call.caller.weight),
            prompt_bytes=prompt_bytes,
            answer_tokens=answer_tokens,
            span=call.record.span,
        ) as lease:
            call.record.version, call.record.queued_s = lease.version.label, time.perf_counter() - asked
            _check_type(name, lease.version.model_type, model_type)
            try:
                yield lease
            except DeadlineExceeded:
                limit_s = self._parts.settings.server.request_timeout_s
                if call.timeout_s is None or call.timeout_s >= limit_s:
                    lease.overdue(limit_s)
                raise
            finally:
                usage = lease.usage
                cost.tokens = usage.total
                call.record.prompt_tokens, call.record.tokens = usage.prompt_tokens, usage.answer_tokens

    @contextlib.contextmanager
    def _asking(self, call: Call, lease: Lease, operation: str, said: Attributes = NOTHING) -> Iterator[Span]:
        """The span of asking an engine, of which `said` is what its kind of request says besides."""
        model = lease.version.model_name
        with part(
            call.record.span, f"{operation} {model}", {**words.asked(operation, model), **said}, "client"
        ) as span:
            try:
                yield span
            finally:
                span.note(words.answered(f"{model}:{lease.version.label}", lease.usage))

    def _turn(self, request: types.InferenceRequest) -> Prompt:
        entry = self._parts.catalog.entry(self._parts.catalog.resolve(request.model_name))
        return conversation.turn(request, entry.system, entry.stop)

    def _turns(self, request: chats.ChatRequest) -> Prompt:
        entry = self._parts.catalog.entry(self._parts.catalog.resolve(request.model_name))
        return conversation.prompt(request, entry.system, entry.stop)

    async def _generate(
        self, call: Call, lease: Lease, prompt: Prompt, deadline: float, answer: Answer
    ) -> AsyncGenerator[Piece]:
        """The pieces that say something; what they add up to is collected in `answer`."""
        answer.version = lease.version.label
        operation, said = words.generating(prompt)
        with self._asking(call, lease, operation, said) as span, self._kept(call, prompt, answer, span):
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
                    answer.add(piece, span)
                    if piece.says:
                        yield piece

    @contextlib.contextmanager
    def _kept(self, call: Call, prompt: Prompt, answer: Answer, span: Span) -> Iterator[None]:
        """What was asked and answered goes into the log and the trace, where the settings say so."""
        settings = self._parts.settings
        try:
            yield
        finally:
            if settings.log.prompts:
                answer.keep(prompt)
            if settings.tracing.content:
                span.note(words.content(prompt, answer))


def _answered(call: Call) -> float:
    """The latency of what is answered now, in ms."""
    latency_ms = call.latency_ms
    call.record.latency_s = latency_ms / 1000
    return latency_ms


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
