"""From our answers to OpenAI's: whole ones, chunks of streams, errors. Pure."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from modelops.api import chat, types
from modelops.api.errors import InvalidRequest, ModelOpsError
from modelops.transports.problems import STATUS

Body = dict[str, Any]
#: Our code → their type, and their code where that is one of their own.
ERRORS: dict[str, tuple[str, str]] = {
    "invalid_request": ("invalid_request_error", ""),
    "unauthenticated": ("authentication_error", "invalid_api_key"),
    "permission_denied": ("permission_error", ""),
    "not_found": ("not_found_error", "model_not_found"),
    "conflict": ("invalid_request_error", ""),
    "too_large": ("invalid_request_error", ""),
    "rate_limited": ("rate_limit_error", ""),
    "internal": ("server_error", ""),
    "not_implemented": ("server_error", ""),
    "engine_failed": ("server_error", ""),
    "overloaded": ("server_error", ""),
    "deadline_exceeded": ("server_error", ""),
    "insufficient_memory": ("server_error", ""),
}
#: Their clients ask again, twice, after the statuses of these. Only another request, or another state, would help; an
#: engine that broke has been asked twice already; and a deadline's whole time would be waited for again.
_IN_VAIN = frozenset(("conflict", "not_implemented", "insufficient_memory", "engine_failed", "deadline_exceeded"))


@dataclass(frozen=True)
class About:
    """What all parts of an answer say of it."""

    id: str
    created: int
    model: str
    version: str = ""

    def told(self, kind: str, *choices: Body) -> Body:
        """An answer, or a chunk of one."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.version or None,
            "choices": list(choices),
        }


def usage(found: Sequence[types.InferenceResponse | chat.ChatResponse], n: int) -> Body:
    """What the answers took, of which each `n` are to the same question, which counts once."""
    prompt_tokens = sum(one.prompt_tokens for one in found[::n])
    completion_tokens = sum(one.tokens_generated for one in found)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


# --- chat ---
def chat_choice(index: int, answer: chat.ChatResponse) -> Body:
    """A whole answer to a conversation."""
    said = answer.message
    message: Body = {"role": "assistant", "content": said.content, "refusal": None}
    if said.tool_calls:
        message["content"] = said.content or None
        message["tool_calls"] = [_call(part) for part in said.tool_calls]
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(answer.logprobs),
        "finish_reason": answer.finish_reason,
    }


def chat_piece(index: int, chunk: chat.ChatChunk) -> Body:
    """A piece of it; the last one says why it ended."""
    delta: Body = {}
    if chunk.text:
        delta["content"] = chunk.text
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if chunk.tool_calls:
        delta["tool_calls"] = [_call_part(part) for part in chunk.tool_calls]
    why = chunk.final.finish_reason if chunk.final else None
    return _chat_piece(index, delta, _logprobs(chunk.logprobs), why)


def chat_beginning(index: int) -> Body:
    """The piece that comes before all others: who speaks."""
    return _chat_piece(index, {"role": "assistant", "content": ""}, None, None)


def _chat_piece(index: int, delta: Body, logprobs: Body | None, why: str | None) -> Body:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": why}


def _call(part: chat.ToolCallPart) -> Body:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}


def _call_part(part: chat.ToolCallPart) -> Body:
    if part.id or part.name:
        return {"index": part.index} | _call(part)
    return {"index": part.index, "function": {"arguments": part.arguments}}


def _logprobs(tokens: Iterable[chat.TokenLogprob]) -> Body | None:
    content = [_logprob(one) | {"top_logprobs": [_logprob(other) for other in one.top]} for one in tokens]
    return {"content": content, "refusal": None} if content else None


def _logprob(one: chat.TokenLogprob | chat.Alternative) -> Body:
    return {"token": one.token, "logprob": one.logprob, "bytes": one.utf8}


# --- completions, vectors, scores, models ---
def completion_choice(index: int, text: str, why: str | None) -> Body:
    """A completion, or a piece of one."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": why}


def embeddings(model: str, answer: types.EmbedResponse, form: str, dimensions: int | None) -> Body:
    """The vectors, as numbers or packed. Raises InvalidRequest where they do not have the dimensions wanted."""
    data = []
    for index, vector in enumerate(one.values for one in answer.embeddings):
        if dimensions is not None and dimensions != len(vector):
            raise InvalidRequest(
                f"dimensions: vectors of '{model}' have {len(vector)}, and cannot be made shorter or longer",
                details={"param": "dimensions"},
            )
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if form == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": packed})
    used = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return {"object": "list", "data": data, "model": model, "usage": used}


def scores(model: str, answer: types.RerankResponse) -> Body:
    """The documents by their scores."""
    results = [{"index": one.index, "relevance_score": one.score} for one in answer.results]
    used = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return {"model": model, "results": results, "usage": used}


def model(info: types.ModelInfo, name: str) -> Body:
    """A model, called `name`. `created` is when it was loaded; 0 while it is not."""
    created = int(info.loaded_at.timestamp()) if info.loaded_at else 0
    return {"id": name, "object": "model", "created": created, "owned_by": "modelops"}


def models(found: types.ModelList) -> Body:
    """All of them, by each of their names."""
    named = {info.model_name: info for info in found.models}
    named |= {alias: info for info in found.models for alias in info.aliases}
    return {"object": "list", "data": [model(info, name) for name, info in sorted(named.items())]}


# --- errors ---
def error(told: ModelOpsError) -> Body:
    """What an error is to their clients."""
    kind, code = ERRORS[told.code]
    param = told.details.get("param")
    if told.code == "not_found" and param is None:  # only models are looked for; of a path it is empty
        param = "model"
    elif told.code == "not_found":
        code = ""
    if told.details.get("limit") == "context_length":
        code = "context_length_exceeded"
    return {"error": {"message": told.message, "type": kind, "param": param or None, "code": code or told.code}}


def refusal(told: ModelOpsError, request_id: str, status: int = 0) -> Response:
    """The same as an answer."""
    headers = {"x-request-id": request_id} | dict(_asks_again(told))
    body = json.dumps(error(told), ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status or STATUS[told.code], headers, media_type="application/json")


def _asks_again(told: ModelOpsError) -> Iterator[tuple[str, str]]:
    if told.code == "unauthenticated":
        yield "WWW-Authenticate", "Bearer"  # RFC 9110 wants one with every 401
    if told.retry_after_s is not None:
        yield "Retry-After", str(max(1, math.ceil(told.retry_after_s)))
    elif told.code in _IN_VAIN:
        yield "x-should-retry", "false"
