"""Bad conversations get the documented refusal on every transport; what lies on a bound does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import model_ops_pb2 as pb
from contract.wires import TRANSPORTS, Refused, Wire

HELLO = {"role": "user", "content": "Hello"}
GOOD: dict[str, Any] = {"model_name": "smollm2", "messages": [HELLO], "max_tokens": 1, "temperature": 0.0}
TOOL = {"name": "add", "parameters": "{}"}
JSON_TRANSPORTS = ("rest", "zmq")

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": []}, "invalid_request", "messages"),
    "1,001 messages": ({"messages": [HELLO] * 1001}, "invalid_request", "messages"),
    "no role": ({"messages": [{"content": "Hello"}]}, "invalid_request", "messages.0.role"),
    "another role": ({"messages": [HELLO, {"role": "owner"}]}, "invalid_request", "messages.1.role"),
    "NUL in a turn": ({"messages": [{"role": "user", "content": "a\0b"}]}, "invalid_request", "messages.0.content"),
    "NUL in a call": (
        {"messages": [{"role": "assistant", "tool_calls": [{"arguments": "\0"}]}]},
        "invalid_request",
        "messages.0.tool_calls.0.arguments",
    ),
    "max_tokens above": ({"max_tokens": 2**20 + 1}, "invalid_request", "max_tokens"),
    "min_p above": ({"min_p": 1.01}, "invalid_request", "min_p"),
    "a tool without a name": ({"tools": [{"parameters": "{}"}]}, "invalid_request", "tools.0.name"),
    "two tools of one name": ({"tools": [TOOL, TOOL]}, "invalid_request", "tools"),
    "a choice that is none": ({"tools": [TOOL], "tool_choice": "subtract"}, "invalid_request", "tool_choice"),
    "a schema that is no JSON": ({"json_schema": "{no"}, "invalid_request", "json_schema"),
    "tools and a schema": ({"tools": [TOOL], "json_schema": "{}"}, "invalid_request", "exclude each other"),
    "a path as model_name": ({"model_name": "../../etc/passwd"}, "not_found", "../../etc/passwd"),
    "more than the context": (
        {"messages": [HELLO | {"content": "word " * 100_000}]},
        "invalid_request",
        "tokens",
    ),
}


@pytest.mark.engine
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("wrong", "code", "named"), WRONG.values(), ids=WRONG)
def test_a_wrong_conversation_is_refused_and_the_fault_is_named(
    transport: str, wrong: dict[str, Any], code: str, named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    check(transport, "chat", real[transport].call("chat", GOOD | wrong), code, named)
    with pytest.raises(Refused) as refused:
        list(real[transport].chunks("chat", GOOD | wrong))
    check(transport, "chat", refused.value.answer, code, named)


@pytest.mark.engine
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_form_whose_answers_are_no_json_is_its_callers_trouble_and_nobody_elses(
    transport: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    letters = {"type": "string", "pattern": '^a"c$'}
    schema = json.dumps({"type": "object", "properties": {"a": letters}, "required": ["a"]})
    asked = GOOD | {"tools": [{"name": "look", "parameters": schema}], "tool_choice": "look", "max_tokens": 60}
    for _ in range(6):  # failures of the engine's own would have closed the model to everybody after five
        check(transport, "chat", real[transport].call("chat", asked), "engine_failed", "form")
    assert real[transport].ok("chat", **GOOD).tokens_generated == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "right",
    [
        {"messages": [HELLO] * 1000},
        {"messages": [{"role": "system"}, HELLO | {"name": "n" * 128}, {"role": "tool", "tool_call_id": "c" * 128}]},
        {"messages": [HELLO | {"content": "🌊" * 50_000}]},
        {"max_tokens": 0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 0.1, "presence_penalty": -2.0, "seed": 0},
        {"max_tokens": 2**20, "top_k": 2**31 - 1, "min_p": 1.0, "repeat_penalty": 10.0, "frequency_penalty": 2.0},
        {"tools": [TOOL | {"name": f"f{number}"} for number in range(128)], "tool_choice": "f127"},
    ],
    ids=["1,000 turns", "every role", "long", "least", "most", "tools"],
)
def test_the_bounds_themselves_are_accepted(transport: str, right: dict[str, Any], quick: dict[str, Wire]) -> None:
    answer = quick[transport].call("chat", {"model_name": "quick", "messages": [HELLO]} | right)
    assert answer.code == "", answer.seen
    assert answer.result.message.content == "w0 w1 "


# --- what only JSON can say ---
@pytest.mark.engine
@pytest.mark.parametrize("transport", JSON_TRANSPORTS)
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages.0"),
        ({"messages": {"0": HELLO}}, "messages"),
        ({"messages": [HELLO | {"content": None}]}, "messages.0.content"),
        ({"messages": [HELLO | {"content": [{"type": "text", "text": "Hello"}]}]}, "messages.0.content"),
        ({"messages": [HELLO | {"image": "x"}]}, "messages.0.image"),
        ({"tools": [TOOL | {"parameters": {}}]}, "tools.0.parameters"),
        ({"json_schema": {}}, "json_schema"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_k": 1.5}, "top_k"),
        ({"mesages": []}, "'messages'"),
    ],
    ids=str,
)
def test_a_wrong_type_is_refused_and_named(
    transport: str, wrong: dict[str, Any], named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    check(transport, "chat", real[transport].call("chat", GOOD | wrong), "invalid_request", named)


@pytest.mark.engine
@pytest.mark.parametrize("transport", JSON_TRANSPORTS)
def test_a_lone_surrogate_within_a_turn_is_refused(
    transport: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    wrong = GOOD | {"messages": [HELLO | {"content": "\ud800"}]}
    check(transport, "chat", real[transport].call("chat", wrong), "invalid_request")


# --- what only protobuf can say ---
@pytest.mark.engine
@pytest.mark.parametrize(
    ("turn", "named"),
    [
        (b"\x0a\x04user\x98\x06\x01", "99 in ChatTurn"),
        (b"\x0a\x04user\x12\x03\xed\xa0\x80", "UTF-8"),
        (b"\x0a\x04user\x22\x03\x98\x06\x01", "99 in ToolCall"),
        (b"\x0a\x7fuser", "ChatRequest"),
    ],
    ids=["unknown field of a turn", "lone surrogate", "unknown field of a call", "cut short"],
)
def test_what_is_wrong_within_a_turn_is_refused(
    turn: bytes, named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    raw = pb.ChatRequest(model_name="smollm2").SerializeToString() + b"\x12" + bytes([len(turn)]) + turn
    check("grpc", "chat", real["grpc"].send("chat", raw), "invalid_request", named)
