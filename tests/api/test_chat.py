"""What a conversation may be, rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from modelops.api.chat import ChatRequest
from modelops.api.errors import InvalidRequest

ASKED: dict[str, Any] = {"model_name": "m", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"name": "look_up", "description": "What is known of it.", "parameters": '{"type": "object"}'}


def turns(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


def test_what_is_left_out_is_as_documented() -> None:
    found = ChatRequest.parse(ASKED)
    assert (found.max_tokens, found.temperature, found.top_p, found.stop_sequences) == (0, 0.7, 0.9, [])
    assert (found.seed, found.stream, found.keep_alive) == (None, False, None)
    assert (found.tools, found.tool_choice, found.parallel_tool_calls) == ([], "auto", None)
    assert (found.json_object, found.json_schema, found.logprobs, found.top_logprobs) == (False, "", False, 0)
    assert {found.top_k, found.min_p, found.repeat_penalty, found.presence_penalty, found.frequency_penalty} == {None}


@pytest.mark.parametrize(
    "fields",
    [
        turns(*[{"role": "user"}] * 1000),
        turns({"role": "system", "content": "é" * 100_000}, {"role": "user", "content": ""}),
        turns({"role": "assistant", "tool_calls": [{"id": "1", "name": "f", "arguments": "{no JSON"}] * 128}),
        turns({"role": "tool", "content": "4", "tool_call_id": "x" * 128, "name": "n" * 128}),
        {"max_tokens": 2**20, "temperature": 2.0, "top_p": 1.0, "seed": 2**32 - 2, "stop_sequences": ["x"] * 10},
        {"tools": [TOOL | {"name": f"f{number}"} for number in range(128)], "tool_choice": "f127"},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": True},
        {"tools": [TOOL, {"name": "auto"}], "tool_choice": "auto"},
        {"tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": "none", "json_schema": "{}"},
        {"tools": [TOOL], "tool_choice": "none", "json_object": True, "logprobs": True},
        {"json_schema": "{}"},
        {"json_schema": '{"type": "object", "properties": {"ü": {"enum": [1e300, "🌊"]}}}', "logprobs": True},
        {"logprobs": True, "top_logprobs": 20},
        {"top_k": 0, "min_p": 0.0, "repeat_penalty": 0.1, "presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"top_k": 2**31 - 1, "min_p": 1, "repeat_penalty": 10, "presence_penalty": 2, "frequency_penalty": 2},
        {"top_k": None, "seed": None, "parallel_tool_calls": None},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_what_lies_within_the_bounds_is_accepted(fields: dict[str, Any]) -> None:
    ChatRequest.parse(ASKED | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_name": ""}, "model_name: string should have at least 1 character"),
        (turns(), "messages: list should have at least 1 item"),
        (turns(*[{"role": "user"}] * 1001), "messages: list should have at most 1000 items"),
        ({"messages": "Hello"}, "messages: input should be a valid list"),
        ({"messages": ["Hello"]}, "messages.0: input should be a valid dictionary"),
        (turns({}), "messages.0.role: field required"),
        (turns({"role": "developer"}), "messages.0.role: input should be 'system', 'user', 'assistant' or 'tool'"),
        (turns({"role": "user", "content": None}), "messages.0.content: input should be a valid string"),
        (turns({"role": "user", "content": "a\0b"}), "messages.0.content: must not contain NUL"),
        (turns({"role": "user", "content": "\ud800"}), "messages.0.content: "),
        (turns({"role": "user", "contents": "x"}), "messages.0.contents: extra inputs are not permitted"),
        (turns({"role": "user", "name": "n" * 129}), "messages.0.name: string should have at most 128 characters"),
        (turns({"role": "tool", "tool_call_id": "n" * 129}), "messages.0.tool_call_id: string should have at most"),
        (turns({"role": "assistant", "tool_calls": [{}] * 129}), "messages.0.tool_calls: list should have at most 128"),
        (turns({"role": "assistant", "tool_calls": [{"name": "\0"}]}), "messages.0.tool_calls.0.name: must not"),
        ({"max_tokens": -1}, "max_tokens: input should be greater than or equal to 0"),
        ({"max_tokens": 2**20 + 1}, "max_tokens: input should be less than or equal to 1048576"),
        ({"temperature": float("nan")}, "temperature: input should be "),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools.0.name: string should match pattern"),
        ({"tools": [TOOL | {"name": "f\n"}]}, "tools.0.name: string should match pattern"),
        ({"tools": [TOOL | {"name": "f" * 65}]}, "tools.0.name: string should match pattern"),
        ({"tools": [TOOL | {"parameters": "[]"}]}, "tools.0.parameters: must be a JSON object"),
        ({"tools": [TOOL | {"parameters": "{no"}]}, "tools.0.parameters: must be JSON"),
        ({"tools": [TOOL, TOOL]}, "tools: two of them have the same name"),
        ({"tools": [TOOL], "tool_choice": "guess"}, "tool_choice is auto, none, required or the name"),
        ({"tool_choice": "required"}, "tool_choice wants a function called, and there are no tools"),
        ({"tools": [TOOL], "json_schema": "{}"}, "json_schema and tools exclude each other"),
        ({"tools": [TOOL], "json_object": True}, "json_object and tools exclude each other"),
        ({"tools": [TOOL], "logprobs": True}, "logprobs and tools exclude each other"),
        ({"json_schema": "5"}, "json_schema: must be a JSON object"),
        ({"json_schema": '{"maximum": NaN}'}, "json_schema: must be JSON"),
        ({"json_schema": '{"enum": ["\\ud800"]}'}, "json_schema: must be JSON"),
        ({"json_schema": '{"a":' * 100_000}, "json_schema: must be JSON"),
        ({"json_schema": '{"a":' * 1000 + "1" + "}" * 1000}, "json_schema: must be JSON"),
        ({"top_logprobs": 1}, "top_logprobs are told with logprobs only"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: input should be less than or equal to 20"),
        ({"top_k": -1}, "top_k: input should be greater than or equal to 0"),
        ({"min_p": 1.1}, "min_p: input should be less than or equal to 1"),
        ({"repeat_penalty": 0.0}, "repeat_penalty: input should be greater than or equal to 0.1"),
        ({"presence_penalty": 2.1}, "presence_penalty: input should be less than or equal to 2"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty: input should be "),
        ({"mesages": []}, "unknown field 'mesages': did you mean 'messages'?"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ChatRequest.parse(ASKED | fields)
    assert refused.value.message.startswith(message)
    assert len(refused.value.message) < 500
