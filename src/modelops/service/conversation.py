"""From a turn or a conversation to what its engine is told, and from what that says to what callers are told. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from modelops.api.chat import CHOICES, Alternative, ChatChunk, ChatRequest, ChatTurn, TokenLogprob, ToolCallPart
from modelops.api.messages import SEEDS, Request
from modelops.api.types import InferenceRequest
from modelops.engines.base import CallPart, Likely, Piece, Prompt

#: Options that the engine calls as we do; None: as the engine has it.
_SAMPLING = ("top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")

_NO_PARAMETERS = {"type": "object", "properties": {}}


def turn(request: InferenceRequest, system: str = "", stop: tuple[str, ...] = ()) -> Prompt:
    """What the engine is asked for one turn; `system` and `stop` as for `prompt`."""
    return Prompt(
        text=request.input_text,
        system=request.system if "system" in request.model_fields_set else system,
        raw=request.raw,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=tuple(request.stop_sequences) or stop,
        seed=request.seed,
        options=_given(request, *_SAMPLING),
    )


def several(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Each of them `n` times. Where a seed is given, each time with the next one: the same would say the same."""

    def again(prompt: Prompt, time: int) -> Prompt:
        return prompt if prompt.seed is None else replace(prompt, seed=(prompt.seed + time) % SEEDS)

    return [again(prompt, time) for prompt in prompts for time in range(n)]


def prompt(request: ChatRequest, system: str = "", stop: tuple[str, ...] = ()) -> Prompt:
    """What the engine is asked. `system` and `stop` are the model's own: they hold where the request brings none."""
    turns = list(map(_turn, request.messages))
    if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()  # nothing to go on with; templates would begin the answer's turn in it once more
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return Prompt(
        text="",
        system="",
        raw=False,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=tuple(request.stop_sequences) or stop,
        seed=request.seed,
        messages=tuple(turns),
        options=_options(request),
    )


def _turn(message: ChatTurn) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return turn


def _arguments(text: str) -> str:
    """What was called with, as an object: templates take nothing else. What is none, as of a call that was cut short,
    stands in one as the text that it is."""
    try:
        if isinstance(from_json(text, allow_inf_nan=False), dict):
            return text
    except ValueError:
        pass
    return json.dumps({"arguments": text}, ensure_ascii=False) if text.strip() else "{}"


def _given(request: Request, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _options(request: ChatRequest) -> dict[str, Any]:
    options = _given(request, *_SAMPLING, "parallel_tool_calls")
    if request.logprobs:
        options |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.json_schema:
        schema = {"name": "answer", "schema": request.json_schema.read}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.json_object:
        options["response_format"] = {"type": "json_object"}
    word = request.tool_choice in CHOICES  # also where a function is called so
    named = [] if word else [tool for tool in request.tools if tool.name == request.tool_choice]
    tools = named or request.tools  # an engine takes no name: of one function it has to take that
    if tools and request.tool_choice != "none":
        options["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters.read if tool.parameters else _NO_PARAMETERS,
                },
            }
            for tool in tools
        ]
        options["tool_choice"] = "required" if named else request.tool_choice
    return options


def chunk(piece: Piece) -> ChatChunk:
    """A piece of the answer."""
    return ChatChunk(
        text=piece.text,
        reasoning=piece.reasoning,
        tool_calls=[call_part(part) for part in piece.calls],
        logprobs=[logprob(one) for one in piece.likely],
    )


def call_part(part: CallPart) -> ToolCallPart:
    """A function call, or a piece of it."""
    return ToolCallPart(index=part.index, id=part.id, name=part.name, arguments=part.arguments)


def logprob(one: Likely) -> TokenLogprob:
    """How likely a token was."""
    top = [Alternative(token=other.token, logprob=other.logprob, utf8=list(other.utf8)) for other in one.top]
    return TokenLogprob(token=one.token, logprob=one.logprob, utf8=list(one.utf8), top=top)
