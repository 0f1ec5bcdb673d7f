"""Function calls of models whose chat template knows no tools: what their engine is asked instead. Pure.

The functions are described in the system turn, earlier calls and what they gave become turns that any template shows,
and the answer is forced into a form (`form`) of which `replies` makes calls and text again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from modelops.api.errors import InvalidRequest
from modelops.engines.base import Prompt
from modelops.engines.schemas import Nowhere, embedded

Turn = Mapping[str, Any]
#: Most calls in one answer, where several are wanted: else a model that repeats itself would not come to an end.
MOST_CALLS = 8
_TYPED = frozenset(("type", "$ref", "anyOf", "oneOf", "allOf", "const", "enum"))

_CALLED = {"name": "look_up", "arguments": '{"word": "shown-argument"}'}
#: A conversation in which tools are offered, called and answer: a template that knows them shows all of `_SHOWN`.
TRIAL: Mapping[str, Any] = {
    "messages": [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "",
            # Some templates take no id but one of nine letters and digits.
            "tool_calls": [{"id": "trial0000", "type": "function", "function": _CALLED}],
        },
        {"role": "tool", "tool_call_id": "trial0000", "name": "look_up", "content": "shown-result"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "look_up",
                "description": "Looks a word up.",
                "parameters": {
                    "type": "object",
                    "properties": {"word": {"type": "string"}, "shown_parameter": {"type": "string"}},
                    "required": ["word"],
                },
            },
        }
    ],
}
_SHOWN = ("shown_parameter", "shown-argument", "shown-result")


def known(rendered: str) -> bool:
    """Whether the chat template that made `rendered` of TRIAL knows tools."""
    return all(word in rendered for word in _SHOWN)


def formed(prompt: Prompt) -> bool:
    """Whether the answer to `spelled(prompt)` has a form that `replies` reads."""
    return bool(prompt.options.get("tools"))


def spelled(prompt: Prompt) -> Prompt:
    """`prompt` without anything that only a template with tools shows; the same one where there is nothing of that.

    Stop sequences are left to the reader: the engine would look for them in the form too. Raises InvalidRequest where
    a function's parameters refer to what is not there, or an answer is to go on that has no such form.
    """
    if not prompt.messages:
        return prompt
    options = dict(prompt.options)
    tools, choice = options.pop("tools", ()), options.pop("tool_choice", "auto")
    several = options.pop("parallel_tool_calls", None) is True
    turns = list(plain(prompt.messages, bool(tools), in_form=bool(tools) and choice == "auto"))
    if not tools:
        return replace(prompt, messages=tuple(turns), options=options)
    if prompt.messages[-1]["role"] == "assistant":
        raise InvalidRequest(
            "the last turn is the assistant's, and with tools this model cannot go on with it; end with a turn of the "
            "user, or leave out the tools",
            details={"param": "messages"},
        )
    schema = form(tools, choice == "auto", several)
    options["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    told = description(tools, choice == "auto", several)
    if turns[0]["role"] == "system":
        turns[0] = {**turns[0], "content": _joined(turns[0]["content"], told)}
    else:
        turns.insert(0, {"role": "system", "content": told})
    return replace(prompt, messages=tuple(turns), options=options, stop=())


def description(tools: Sequence[Turn], may_talk: bool, several: bool) -> str:
    """What the model is told of the functions. Tried with models of 0.1 and 0.3 billion parameters: that is why it is
    short, and says when not to call before anything else is said of talking.
    """
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    call = '{"name": "<function>", "arguments": {...}}'
    how = f"[{call}, ...]" if several else call
    told = f"You are a helpful assistant. You have these functions:\n{functions}\n\n"
    some = "functions" if several else "a function"
    if not may_talk:
        return f"{told}Call {some}, with {how}."
    return (
        f"{told}Call {some} only if the user asks for what {'they do' if several else 'it does'}, with {how}. "
        'To everything else answer with {"response": "<your answer>"}.'
    )


def form(tools: Sequence[Turn], may_talk: bool, several: bool) -> dict[str, Any]:
    """The JSON Schema of the answer: a call, or an array of several; where it `may_talk`, or else a text."""
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for number, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters") or {}
        try:
            arguments, more = embedded(parameters, f"f{number}")
        except Nowhere as error:
            raise InvalidRequest(
                f"tools: the parameters of '{function['name']}' refer to '{error}', which is not there",
                details={"param": "tools"},
            ) from None
        if not _TYPED & arguments.keys():
            arguments = {"type": "object", **arguments}
        calls.append(_object(name={"const": function["name"]}, arguments=arguments))
        definitions |= more
    if several:
        calls = [{"type": "array", "items": _any(calls), "minItems": 1, "maxItems": MOST_CALLS}]
    if may_talk:
        calls.append(_object(response={"type": "string", "minLength": 1}))
    whole = _any(calls)
    return whole | {"$defs": definitions} if definitions else whole


def _any(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """Of exactly these, in this order."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


# --- what was said before ---
def plain(messages: Iterable[Turn], offered: bool, in_form: bool) -> Iterable[Turn]:
    """The turns, as any chat template shows them; with `in_form` the assistant's texts as the form has them.

    While functions are `offered`, calls and what they gave are between marks: small models that find their bare calls
    only go on calling. Else they are told in words, as the next answer would have such marks too. What they gave is
    told by the user; and turns of the user that follow each other so become one, as some templates refuse two.
    """
    names: dict[str, str] = {}
    last: dict[str, Any] = {}
    was_tool = False
    for message in messages:
        turn, is_tool = dict(message), message["role"] == "tool"
        if turn["role"] == "assistant":
            calls = turn.pop("tool_calls", ())
            names |= {call["id"]: call["function"]["name"] for call in calls if call.get("id")}
            text = turn["content"]
            if in_form and text and not calls:
                text = json.dumps({"response": text}, ensure_ascii=False)
            turn["content"] = _joined(text, *(_call(call, offered) for call in calls))
        if is_tool:
            name = names.get(turn.get("tool_call_id", "")) or turn.get("name", "")
            turn = {"role": "user", "content": _result(name, message["content"], offered)}
        if last and turn["role"] == last["role"] == "user" and (is_tool or was_tool):
            last["content"] = _joined(last["content"], turn["content"])
        else:
            if last:
                yield last
            last = turn
        was_tool = is_tool
    if last:
        yield last


def _call(call: Turn, marked: bool) -> str:
    name, arguments = call["function"]["name"], _arguments(call["function"]["arguments"])
    if not marked:
        return f"I call the function {name} with {arguments}"
    return f'<call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n</call>'


def _result(name: str, content: str, marked: bool) -> str:
    if not marked:
        return f"{f'The function {name}' if name else 'The function'} returned:\n{content}"
    of = f' of="{name}"' if name else ""
    return f"<result{of}>\n{content}\n</result>"


def _arguments(text: str) -> str:
    """JSON of one look, however the model wrote them."""
    return json.dumps(from_json(text), ensure_ascii=False)


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)
