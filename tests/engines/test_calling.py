"""What the engine of a model whose chat template knows no tools is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from modelops.api.errors import InvalidRequest
from modelops.engines import calling
from modelops.engines.base import Prompt


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


def call(name: str, arguments: str, identity: str = "") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


ADD = tool("add", type="object", properties={"a": {"type": "integer"}}, required=["a"], additionalProperties=False)
SAY = tool("say", **{"$defs": {"T": {"type": "string"}}, "properties": {"t": {"$ref": "#/$defs/T"}}, "required": ["t"]})
HELLO = {"role": "user", "content": "Hello"}
PROMPT = Prompt("", "", False, 10, 0.0, 0.9, ("x",), None, messages=(HELLO,), options={"top_k": 3})
A, S, R = {"name": "add", "arguments": {"a": 1}}, {"name": "say", "arguments": {"t": "x"}}, {"response": "Hi"}
BAD = [{"name": "none", "arguments": {}}, {"name": "add", "arguments": {}}, {"name": "say", "arguments": {"t": 1}}, {}]


@pytest.mark.parametrize(
    ("tools", "may_talk", "several", "right", "wrong"),
    [
        ([ADD], False, False, [A], [S, R, [A], *BAD]),
        ([ADD, SAY], False, False, [A, S], [R, [A], *BAD]),
        ([ADD, SAY], False, True, [[A], [A, S], [S] * calling.MOST_CALLS], [A, [], [R], [S] * 9, *([b] for b in BAD)]),
        ([ADD, SAY], True, False, [A, S, R], [{"response": 1}, {"response": ""}, A | R, [A], *BAD]),
        ([ADD, SAY], True, True, [[A, S], R], [A, [A, R], []]),
        ([tool("any")], False, False, [{"name": "any", "arguments": {"x": [1]}}], [{"name": "any", "arguments": []}]),
    ],
    ids=["one", "two", "several", "or a text", "several or a text", "any arguments"],
)
def test_the_form(
    tools: list[dict[str, Any]], may_talk: bool, several: bool, right: list[Any], wrong: list[Any]
) -> None:
    validator = jsonschema.Draft202012Validator(calling.form(tools, may_talk, several))
    validator.check_schema(validator.schema)
    assert [value for value in right if not validator.is_valid(value)] == []
    assert [value for value in wrong if validator.is_valid(value)] == []


def test_a_reference_that_leads_nowhere_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="the parameters of 'f' refer to '#/x', which is not there") as error:
        calling.form([tool("f", **{"$ref": "#/x"})], True, False)
    assert error.value.details == {"param": "tools"}


def test_tools_become_a_form_and_are_told_in_the_system_turn() -> None:
    options = {"top_k": 3, "tools": [ADD], "tool_choice": "auto", "parallel_tool_calls": False}
    found = calling.spelled(replace(PROMPT, options=options))
    assert found.options.keys() == {"top_k", "response_format"}
    assert found.options["response_format"]["json_schema"]["schema"] == calling.form([ADD], True, False)
    assert found.stop == (), "the reader looks for them"
    system, user = found.messages
    assert (system["role"], user) == ("system", HELLO)
    assert json.dumps(ADD["function"]) in system["content"]
    assert '{"response": ' in system["content"]
    ours = {"role": "system", "content": "Be brief."}
    found = calling.spelled(replace(PROMPT, messages=(ours, HELLO), options=options | {"tool_choice": "required"}))
    assert [turn["role"] for turn in found.messages] == ["system", "user"]
    assert found.messages[0]["content"].startswith("Be brief.\n\nYou are")
    assert "response" not in found.messages[0]["content"]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_with_tools_an_answer_that_was_begun_does_not_go_on(choice: str) -> None:
    begun = (HELLO, {"role": "assistant", "content": "It is"})
    with pytest.raises(InvalidRequest, match="end with a turn of the user") as refused:
        calling.spelled(replace(PROMPT, messages=begun, options={"tools": [ADD], "tool_choice": choice}))
    assert refused.value.details == {"param": "messages"}
    assert calling.spelled(replace(PROMPT, messages=begun)).messages == begun


@pytest.mark.parametrize(
    "messages", [(HELLO,), ({"role": "system", "content": ""}, HELLO, {"role": "assistant", "content": "Hi"}, HELLO)]
)
def test_without_tools_nothing_is_changed(messages: tuple[dict[str, Any], ...]) -> None:
    prompt = replace(PROMPT, messages=messages)
    assert calling.spelled(prompt) == prompt
    assert not calling.formed(prompt)
    turn = replace(PROMPT, messages=(), text="Hello")
    assert calling.spelled(turn) == turn


ANSWERED: list[dict[str, Any]] = [
    HELLO,
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [call("add", '{"a":\n1}', "1"), call("say", "{}", "2")],
    },
    {"role": "tool", "content": "one", "tool_call_id": "2"},
    {"role": "tool", "content": "two", "tool_call_id": "1"},
    {"role": "tool", "content": "three", "tool_call_id": "9"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "It is."},
    HELLO,
    HELLO,
]


def contents(messages: list[dict[str, Any]], **how: bool) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in calling.plain(messages, **how)]


def test_earlier_calls_become_turns() -> None:
    asked, called, given, *rest = contents(ANSWERED, offered=True, in_form=True)
    assert asked == ("user", "Hello")
    first = '<call>\n{"name": "add", "arguments": {"a": 1}}\n</call>'
    second = '<call>\n{"name": "say", "arguments": {}}\n</call>'
    assert called == ("assistant", f"Let me see.\n\n{first}\n\n{second}")
    results = ['<result of="say">\none\n</result>', '<result of="add">\ntwo\n</result>', "<result>\nthree\n</result>"]
    assert given == ("user", "\n\n".join([*results, "And?"]))
    assert rest == [("assistant", '{"response": "It is."}'), ("user", "Hello"), ("user", "Hello")]
    assert all("tool_calls" not in turn and "tool_call_id" not in turn for turn in calling.plain(ANSWERED, True, True))


def test_without_tools_they_are_told_in_words() -> None:
    _, called, given, *rest = contents(ANSWERED, offered=False, in_form=False)
    words = 'Let me see.\n\nI call the function add with {"a": 1}\n\nI call the function say with {}'
    assert called == ("assistant", words)
    assert given[1].startswith("The function say returned:\none\n\nThe function add returned:\ntwo\n\nThe function ret")
    assert rest[0] == ("assistant", "It is.")


def test_a_template_knows_tools_that_shows_all_of_them() -> None:
    assert calling.known(json.dumps(calling.TRIAL))
    for part in ("messages", "tools"):
        assert not calling.known(json.dumps(calling.TRIAL[part]))
    turns = [turn["content"] for turn in calling.TRIAL["messages"]]
    assert not calling.known(json.dumps([turns, calling.TRIAL["tools"]]))
