"""One attempt at an answer: what it adds up to, when its words came, and what its span says of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from modelops.api import types
from modelops.api.errors import ModelOpsError
from modelops.engines.base import Piece, Prompt
from modelops.service.call import Call
from modelops.serving.events import Usage
from modelops.tracing import Attributes, Span, Value

_LONGEST_TEXT = 10_000  # characters of each text, where texts are put into spans


@dataclass
class Answer:
    """What an answer adds up to. Its times are noted in its call's record."""

    call: Call
    version: str = ""
    tokens: int | None = None
    parts: list[str] = field(default_factory=list)
    error: ModelOpsError | None = None
    _first: float = 0.0
    _last: float = 0.0

    def add(self, piece: Piece, span: Span) -> None:
        """One more piece; the first word of it is an event of `span`."""
        if piece.text:
            self._last = time.perf_counter()
            if not self.parts:
                self._first = self._last
                self.call.record.first_token_s = self._first - self.call.received
                span.event("first token")
            self.parts.append(piece.text)
        if piece.tokens is not None:
            self.tokens = piece.tokens

    def response(self) -> types.InferenceResponse:
        """The whole, or as far as it came."""
        # Without the engine's own count, which comes last, each part was one token or more.
        tokens, record = len(self.parts) if self.tokens is None else self.tokens, self.call.record
        latency_ms = self.call.latency_ms
        if self.parts and tokens > 1:
            record.token_s = (self._last - self._first) / (tokens - 1)
        if self.error:
            record.error = self.error
        else:
            record.latency_s = latency_ms / 1000
        return types.InferenceResponse(
            output_text="".join(self.parts),
            tokens_generated=tokens,
            latency_ms=latency_ms,
            model_version=self.version,
            success=self.error is None,
            error_message=self.error.message if self.error else "",
        )


# --- what spans are told, in the words of OpenTelemetry's conventions for generative AI ---
def asked(operation: str, model: str) -> Attributes:
    """What any request to a model says."""
    return {"gen_ai.operation.name": operation, "gen_ai.provider.name": "modelops", "gen_ai.request.model": model}


def generating(prompt: Prompt) -> tuple[str, Attributes]:
    """What kind of operation a request for text is, and what it says besides: how, and not what."""
    said: dict[str, Value] = {
        "gen_ai.request.stream": True,  # engines are always asked for one
        "gen_ai.request.max_tokens": prompt.max_tokens,
        "gen_ai.request.temperature": prompt.temperature,
        "gen_ai.request.top_p": prompt.top_p,
    }
    if prompt.stop:
        said["gen_ai.request.stop_sequences"] = prompt.stop
    if prompt.seed is not None:
        said["gen_ai.request.seed"] = prompt.seed
    return "text_completion" if prompt.raw else "chat", said


def answered(version: str, usage: Usage) -> Attributes:
    """What an answer says of itself."""
    return {
        "gen_ai.response.model": version,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.answer_tokens,
    }


def content(prompt: Prompt, answer: Answer) -> Attributes:
    """What was asked and answered, word by word: only where the settings say so."""

    def said(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "content": text[:_LONGEST_TEXT]}]

    whole = "length" if answer.tokens == prompt.max_tokens else "stop"
    ended = "error" if answer.tokens is None else whole
    told: dict[str, object] = {
        "gen_ai.input.messages": [{"role": "user", "parts": said(prompt.text)}],
        "gen_ai.output.messages": [{"role": "assistant", "parts": said("".join(answer.parts)), "finish_reason": ended}],
    }
    if prompt.system and not prompt.raw:
        told["gen_ai.system_instructions"] = said(prompt.system)
    return {name: json.dumps(value, ensure_ascii=False) for name, value in told.items()}
