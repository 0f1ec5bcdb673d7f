"""What an engine is told of a conversation, and what is told of its answer."""

from __future__ import annotations

from typing import Any

import pytest

from modelops.api.chat import ChatRequest
from modelops.api.types import InferenceRequest
from modelops.engines.base import CallPart, Likely, Piece, Prompt
from modelops.service import conversation

USER = {"role": "user", "content": "Hello"}
ADD = {"name": "add", "description": "The sum.", "parameters": '{"type": "object", "required": ["a"]}'}
BARE = {"name": "bare"}


def told(system: str = "", stop: tuple[str, ...] = (), **fields: Any) -> Prompt:
    """What is told of the request."""
    return conversation.prompt(ChatRequest.parse({"model_name": "m", "messages": [USER]} | fields), system, stop)


def function(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def test_a_turn_is_told_as_a_conversation_is() -> None:
    fields: dict[str, Any] = {"top_k": 3, "repeat_penalty": 1.5, "presence_penalty": 0.0}
    asked = InferenceRequest.parse({"model_name": "m", "input_text": "Hello", "seed": 7} | fields)
    found = conversation.turn(asked, "Be brief.", ("x",))
    assert (found.text, found.system, found.seed, found.stop) == ("Hello", "Be brief.", 7, ("x",))
    assert found.options == fields == told(**fields).options
    own = InferenceRequest.parse({"model_name": "m", "input_text": "Hello", "system": "", "stop_sequences": ["y"]})
    assert (conversation.turn(own, "Be brief.", ("x",)).system, conversation.turn(own, stop=("x",)).stop) == (
        "",
        ("y",),
    )


ADDED = function("add", "The sum.", {"type": "object", "required": ["a"]})
BARED = function("bare", "", {"type": "object", "properties": {}})


def test_what_is_left_out_is_not_told() -> None:
    assert told() == Prompt(
        text="",
        system="",
        raw=False,
        max_tokens=0,
        temperature=0.7,
        top_p=0.9,
        stop=(),
        seed=None,
        messages=(USER,),
        options={},
    )


@pytest.mark.parametrize(
    ("turn", "as_told"),
    [
        ({"role": "user"}, {"role": "user", "content": ""}),
        (USER | {"name": "Ada"}, USER | {"name": "Ada"}),
        (
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "name": "add", "arguments": '{"a": 2}'}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
            },
        ),
    ],
    ids=["empty", "name", "tool", "calls"],
)
def test_a_turn_is_told_as_openai_writes_it(turn: dict[str, Any], as_told: dict[str, Any]) -> None:
    assert told(messages=[USER, turn]).messages == (USER, as_told)


@pytest.mark.parametrize(
    ("arguments", "as_told"),
    [
        ('{"a":2}', '{"a":2}'),
        ("", "{}"),
        (" ", "{}"),
        ('{"city', '{"arguments": "{\\"city"}'),
        ("[1]", '{"arguments": "[1]"}'),
        ('{"a": NaN}', '{"arguments": "{\\"a\\": NaN}"}'),
    ],
)
def test_the_arguments_of_an_earlier_call_are_told_as_an_object(arguments: str, as_told: str) -> None:
    turn = {"role": "assistant", "tool_calls": [{"id": "1", "name": "add", "arguments": arguments}]}
    (call,) = told(messages=[USER, turn]).messages[1]["tool_calls"]
    assert call["function"]["arguments"] == as_told


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"top_k": 0, "min_p": 0.0}, {"top_k": 0, "min_p": 0.0}),
        (
            {"repeat_penalty": 1.1, "presence_penalty": -2.0, "frequency_penalty": 0.5},
            {"repeat_penalty": 1.1, "presence_penalty": -2.0, "frequency_penalty": 0.5},
        ),
        ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"json_object": True}, {"response_format": {"type": "json_object"}}),
        (
            {"json_object": True, "json_schema": '{"type": "array"}'},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "array"}},
                }
            },
        ),
        ({"tools": [ADD, BARE]}, {"tools": [ADDED, BARED], "tool_choice": "auto"}),
        ({"tools": [ADD], "tool_choice": "none"}, {}),
        ({"tools": [ADD, BARE], "tool_choice": "required"}, {"tools": [ADDED, BARED], "tool_choice": "required"}),
        ({"tools": [ADD, BARE], "tool_choice": "add"}, {"tools": [ADDED], "tool_choice": "required"}),
        (
            {"tools": [BARE, ADD | {"name": "auto"}]},
            {"tools": [BARED, function("auto", "The sum.", {"type": "object", "required": ["a"]})]}
            | {"tool_choice": "auto"},
        ),
        (
            {"tools": [ADD], "parallel_tool_calls": False},
            {"tools": [ADDED], "tool_choice": "auto", "parallel_tool_calls": False},
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_options_are_told_in_the_engines_words(fields: dict[str, Any], options: dict[str, Any]) -> None:
    assert told(**fields).options == options


def test_how_to_sample_is_told_as_for_any_request() -> None:
    found = told(max_tokens=5, temperature=0.0, top_p=0.5, seed=7, stop_sequences=["x"], stop=("y",))
    assert (found.max_tokens, found.temperature, found.top_p, found.seed, found.stop) == (5, 0.0, 0.5, 7, ("x",))
    assert told(stop=("y",)).stop == ("y",)


def test_the_models_own_system_turn_begins_what_has_none() -> None:
    own, theirs = {"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}
    assert told("Be brief.").messages == (own, USER)
    assert told("Be brief.", messages=[theirs, USER]).messages == (theirs, USER)
    assert told("Be brief.", messages=[{"role": "system"}, USER]).messages[0]["content"] == ""


def test_an_empty_last_turn_of_the_assistant_begins_no_answer() -> None:
    empty = {"role": "assistant", "content": ""}
    assert told(messages=[USER, empty]).messages == (USER,)
    assert told(messages=[USER, empty, USER]).messages == (USER, empty, USER)
    assert told(messages=[empty]).messages == (empty,)
    call = empty | {"tool_calls": [{"id": "1", "name": "add"}]}
    assert len(told(messages=[USER, call]).messages) == 2


def test_a_piece_is_told_whole() -> None:
    likely = Likely("Hi", -0.25, (72, 105), (Likely("Hi", -0.25, (72, 105)), Likely("Ho", -1.5)))
    piece = Piece("Hi", reasoning="Hm.", calls=(CallPart(1, "7", "add", "{"),), likely=(likely,))
    assert conversation.chunk(piece).model_dump() == {
        "text": "Hi",
        "reasoning": "Hm.",
        "tool_calls": [{"index": 1, "id": "7", "name": "add", "arguments": "{"}],
        "logprobs": [
            {
                "token": "Hi",
                "logprob": -0.25,
                "utf8": [72, 105],
                "top": [
                    {"token": "Hi", "logprob": -0.25, "utf8": [72, 105]},
                    {"token": "Ho", "logprob": -1.5, "utf8": []},
                ],
            }
        ],
        "done": False,
        "final": None,
    }
