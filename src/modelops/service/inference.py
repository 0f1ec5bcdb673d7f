"""Inference: whole answers and streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from modelops.api import types
from modelops.api.errors import DeadlineExceeded, InvalidRequest, ModelOpsError
from modelops.engines.base import Piece, Prompt
from modelops.service.call import Call, Parts
from modelops.serving.views import Lease

_Asking = types.InferenceRequest | types.EmbedRequest | types.RerankRequest


class Inference:
    """The operations that ask a model."""

    _parts: Parts

    async def infer(self, call: Call, request: types.InferenceRequest) -> types.InferenceResponse:
        """The whole answer. An answer that was cut short is an error here: nothing has been sent yet."""
        answer = _Answer(call)
        async with contextlib.aclosing(self._generate(call, request, answer)) as pieces:
            async for _ in pieces:
                pass
        return answer.response()

    async def infer_stream(self, call: Call, request: types.InferenceRequest) -> AsyncGenerator[types.InferenceChunk]:
        """The answer as it is made; the last chunk is `done` and holds the whole.

        Raises only before the first chunk: an answer that is cut short later ends with a last chunk that says so.
        Closing the generator frees the engine's slot.
        """
        answer = _Answer(call)
        async with contextlib.aclosing(self._generate(call, request, answer)) as pieces:
            try:
                async for piece in pieces:
                    yield types.InferenceChunk(text=piece.text)
            except ModelOpsError as error:
                if not answer.parts:
                    raise
                answer.error = error
        yield types.InferenceChunk(done=True, final=answer.response())

    async def embed(self, call: Call, request: types.EmbedRequest) -> types.EmbedResponse:
        """Each input as a vector."""
        deadline = self._parts.deadline(call)
        async with self._lease(request, "embedding", deadline) as lease, _in_time(deadline):
            vectors, tokens = await lease.embed(request.inputs)
        return types.EmbedResponse(
            embeddings=[types.Embedding(values=vector) for vector in vectors],
            tokens=tokens,
            latency_ms=call.latency_ms,
            model_version=lease.version.label,
        )

    async def rerank(self, call: Call, request: types.RerankRequest) -> types.RerankResponse:
        """The documents, best first."""
        deadline = self._parts.deadline(call)
        async with self._lease(request, "reranker", deadline) as lease, _in_time(deadline):
            scores, tokens = await lease.rerank(request.query, request.documents)
        ranked = [types.RankedDocument(index=index, score=score) for index, score in enumerate(scores)]
        ranked.sort(key=lambda document: -document.score)
        return types.RerankResponse(
            results=ranked[: request.top_n or None],
            tokens=tokens,
            latency_ms=call.latency_ms,
            model_version=lease.version.label,
        )

    @contextlib.asynccontextmanager
    async def _lease(self, request: _Asking, model_type: types.ModelType, deadline: float) -> AsyncIterator[Lease]:
        """A slot of the request's model, which has to be of that type."""
        name = self._parts.catalog.resolve(request.model_name)
        if not self._parts.pool.resident(name):  # a model is not loaded for what it cannot do
            async with _in_time(deadline):
                _check_type(name, (await self._parts.catalog.find(name, fetch=True)).model_type, model_type)
        async with self._parts.pool.lease(name, deadline, request.keep_alive) as lease:
            _check_type(name, lease.version.model_type, model_type)
            yield lease

    async def _generate(self, call: Call, request: types.InferenceRequest, answer: _Answer) -> AsyncGenerator[Piece]:
        """The pieces that hold text; what they add up to is collected in `answer`."""
        deadline = self._parts.deadline(call)
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
        async with self._lease(request, "llm", deadline) as lease:
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
