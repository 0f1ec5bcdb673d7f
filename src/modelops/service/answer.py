"""One attempt at an answer: what it adds up to, when its words came, and what its span says of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from modelops.api import chat as chats
from modelops.api import types
from modelops.api.errors import ModelOpsError
from modelops.engines.base import CallPart, Likely, Piece, Prompt
from modelops.service import conversation
from modelops.service.call import Call
from modelops.serving.events import Usage
from modelops.tracing import Attributes, Span, Value

_LONGEST_TEXT = 10_000  # characters of each text, where texts are put into spans
#: What engines say of an answer's end, of which others may come to say more.
_ENDS: dict[str, types.FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}


@dataclass
class Answer:
    """What an answer adds up to. Its times are noted in its call's record."""

    call: Call
    number: int = 0  # of several answers to the same call
    longest: int = 0  # in tokens; 0: as far as the context goes
    version: str = ""
    tokens: int | None = None
    parts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, CallPart] = field(default_factory=dict)
    likely: list[Likely] = field(default_factory=list)
    finish: str = ""
    pieces: int = 0  # that said something
    prompt_tokens: int = 0
    error: ModelOpsError | None = None
    _first: float = 0.0
    _last: float = 0.0

    @property
    def begun(self) -> bool:
        """Whether anything has been said."""
        return self.pieces > 0

    def add(self, piece: Piece, span: Span) -> None:
        """One more piece; the first that says something is an event of `span`."""
        if piece.says:
            self._last = time.perf_counter()
            if not self.pieces:
                self._first = self._last
                if not self.number:
                    self.call.record.first_token_s = self._first - self.call.received
                span.event("first token")
            self.pieces += 1
            if piece.text:
                self.parts.append(piece.text)
            if piece.reasoning:
                self.reasoning.append(piece.reasoning)
            for part in piece.calls:
                known = self.calls.get(part.index, CallPart(part.index))
                self.calls[part.index] = CallPart(
                    part.index, known.id or part.id, known.name + part.name, known.arguments + part.arguments
                )
        self.likely += piece.likely
        self.finish = piece.finish or self.finish
        self.prompt_tokens = max(self.prompt_tokens, piece.prompt_tokens)
        if piece.tokens is not None:
            self.tokens = piece.tokens

    def response(self) -> types.InferenceResponse:
        """The whole, or as far as it came, of one turn."""
        tokens, latency_ms = self._close()
        return types.InferenceResponse(
            output_text="".join(self.parts),
            tokens_generated=tokens,
            latency_ms=latency_ms,
            model_version=self.version,
            finish_reason=self._ended(tokens),
            prompt_tokens=self.prompt_tokens,
            success=self.error is None,
            error_message=self.error.message if self.error else "",
        )

    def chat_response(self) -> chats.ChatResponse:
        """The whole, or as far as it came, of a conversation."""
        tokens, latency_ms = self._close()
        return chats.ChatResponse(
            message=chats.ChatMessage(
                content="".join(self.parts),
                reasoning="".join(self.reasoning),
                tool_calls=[conversation.call_part(part) for _, part in sorted(self.calls.items())],
            ),
            finish_reason=self._ended(tokens),
            prompt_tokens=self.prompt_tokens,
            tokens_generated=tokens,
            latency_ms=latency_ms,
            model_version=self.version,
            logprobs=[conversation.logprob(one) for one in self.likely],
            success=self.error is None,
            error_message=self.error.message if self.error else "",
        )

    def keep(self, prompt: Prompt) -> None:
        """Note what was asked and answered, word by word, for the log."""
        record, asked = self.call.record, asked_text(prompt)
        if not self.number:
            record.prompt = record.answer = ""
        if not record.prompt.endswith(asked):
            record.prompt += f"\n{asked}" if record.prompt else asked
        record.answer += f"\n{''.join(self.parts)}" if self.number else "".join(self.parts)

    def _ended(self, tokens: int) -> types.FinishReason:
        if self.error:
            return ""
        if told := _ENDS.get(self.finish):
            return told
        if self.calls:
            return "tool_calls"
        return "length" if self.longest and tokens >= self.longest else "stop"

    def _close(self) -> tuple[int, float]:
        """Its tokens and its latency in ms, which are noted."""
        # Without the engine's own count, which comes last, each piece was one token or more.
        tokens, record = self.pieces if self.tokens is None else self.tokens, self.call.record
        latency_ms = self.call.latency_ms
        if self.pieces and tokens > 1:
            record.token_s = (self._last - self._first) / (tokens - 1)
        if self.error:
            record.error = self.error
        else:
            record.latency_s = latency_ms / 1000
        return tokens, latency_ms


def size(prompt: Prompt) -> int:
    """Bytes of all that the engine is given to read."""
    parts = (*prompt.messages, prompt.options.get("tools", ()))
    texts = (prompt.text, prompt.system, *(json.dumps(part, ensure_ascii=False) for part in parts))
    return sum(len(text.encode(errors="surrogatepass")) for text in texts)


def asked_text(prompt: Prompt) -> str:
    """What was asked, as one text."""
    return json.dumps(prompt.messages, ensure_ascii=False) if prompt.messages else prompt.text


# --- what spans are told, in the words of OpenTelemetry's conventions for generative AI ---
def asked(operation: str, model: str) -> Attributes:
    """What any request to a model says."""
    return {"gen_ai.operation.name": operation, "gen_ai.provider.name": "modelops", "gen_ai.request.model": model}


def generating(prompt: Prompt) -> tuple[str, Attributes]:
    """What kind of operation a request for text is, and what it says besides: how, and not what."""
    said: dict[str, Value] = {
        "gen_ai.request.stream": True,  # engines are always asked for one
        "gen_ai.request.temperature": prompt.temperature,
        "gen_ai.request.top_p": prompt.top_p,
    }
    if prompt.max_tokens:
        said["gen_ai.request.max_tokens"] = prompt.max_tokens
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
    ended = "error" if answer.tokens is None else answer.finish or whole
    told: dict[str, object] = {
        "gen_ai.input.messages": [
            {"role": turn["role"], "parts": said(str(turn.get("content") or ""))} for turn in prompt.messages
        ]
        or [{"role": "user", "parts": said(prompt.text)}],
        "gen_ai.output.messages": [{"role": "assistant", "parts": said("".join(answer.parts)), "finish_reason": ended}],
    }
    if prompt.system and not prompt.raw:
        told["gen_ai.system_instructions"] = said(prompt.system)
    return {name: json.dumps(value, ensure_ascii=False) for name, value in told.items()}
