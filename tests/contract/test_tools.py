"""Functions with the real model, whose chat template knows none, and with the same model under one that does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from contract import wires
from contract.wires import Refused, Wire
from gguf_files import templated_gguf
from support import Served, serving

CITY = {"type": "string", "maxLength": 20}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": CITY, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
ADD: dict[str, Any] = {
    "$defs": {"Number": {"type": "integer", "minimum": 0, "maximum": 99}},
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/Number"}, "b": {"$ref": "#/$defs/Number"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "add": ADD}
SAID = {"get_weather": "The weather in a city now.", "add": "Adds two numbers."}
TOOLS = [{"name": name, "description": SAID[name], "parameters": json.dumps(SCHEMAS[name])} for name in SCHEMAS]
ASKED: dict[str, Any] = {"model_name": "smollm2", "max_tokens": 100, "temperature": 0.0, "tools": TOOLS}
QUESTIONS = ["What is the weather in Paris?", "What is 12 plus 30?", "Hello, who are you?"]
#: As many models have it: functions as JSON, and calls between tags.
HERMES = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if loop.first and tools %}{{- 'Functions:\\n<tools>' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}"
    '{%- endfor %}{{- \'\\n</tools>\\nCall one so:\\n<tool_call>\\n{"name": <name>, "arguments": <object>}\\n'
    "</tool_call>\\n' }}{%- endif %}{%- if message.content %}{{- message.content }}{%- endif %}"
    '{%- for tool_call in message.tool_calls %}{{- \'\\n<tool_call>\\n{"name": "\' + tool_call.function.name + '
    "'\", \"arguments\": ' }}{{- tool_call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

pytestmark = pytest.mark.engine


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def both(wire: Wire, fields: dict[str, Any]) -> Any:
    """The answer, whole; the same in pieces adds up to it."""
    whole = wire.call("chat", fields)
    assert whole.code == "", whole.seen
    *chunks, last = wire.chunks("chat", fields)
    for found in (last.final, whole.result):
        message = found.message
        assert message.content == "".join(chunk.text for chunk in chunks) == last.final.message.content
        calls: dict[int, list[str]] = {}
        for part in (part for chunk in chunks for part in chunk.tool_calls):
            assert (part.index in calls) == (not part.name), "a name begins each"
            calls.setdefault(part.index, [part.name, ""])[1] += part.arguments
        assert [[call.name, call.arguments] for call in message.tool_calls] == list(calls.values())
        assert len({call.id for call in message.tool_calls}) == len(calls)
        assert found.finish_reason == last.final.finish_reason
        assert found.tokens_generated == last.final.tokens_generated
    return whole.result


def check(call: Any) -> dict[str, Any]:
    """The arguments of a call, which have the form of its function."""
    arguments: dict[str, Any] = json.loads(call.arguments)
    jsonschema.validate(arguments, SCHEMAS[call.name])
    assert call.id.startswith("call_")
    return arguments


@pytest.mark.parametrize("transport", ["rest", "grpc"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_call_that_is_required_is_there(transport: str, question: str, real: dict[str, Wire]) -> None:
    found = both(real[transport], ASKED | user(question) | {"tool_choice": "required"})
    (call,) = found.message.tool_calls
    check(call)
    assert (found.finish_reason, found.message.content) == ("tool_calls", "")
    assert 100 < found.prompt_tokens < 400, "it was told of them"


@pytest.mark.parametrize("name", SCHEMAS)
def test_so_is_that_of_one_function(name: str, real: dict[str, Wire]) -> None:
    found = both(real["zmq"], ASKED | user(QUESTIONS[0]) | {"tool_choice": name})
    assert [call.name for call in found.message.tool_calls] == [name]
    check(found.message.tool_calls[0])


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_by_itself_it_calls_or_talks(question: str, temperature: float, real: dict[str, Wire]) -> None:
    asked = ASKED | user(question) | {"temperature": temperature, "seed": 3, "max_tokens": 300}
    found = both(real["grpc"], asked)
    if calls := found.message.tool_calls:
        check(calls[0])
        assert (found.finish_reason, found.message.content, len(calls)) == ("tool_calls", "", 1)
    else:
        assert found.message.content
        assert '{"' not in found.message.content
        assert found.finish_reason in ("stop", "length")


def test_a_text_streams_and_ends_at_a_stop_sequence(real: dict[str, Wire]) -> None:
    asked = ASKED | answered("21 degrees and sunny") | {"tools": TOOLS[:1]}
    *chunks, last = real["rest"].chunks("chat", asked)
    content = last.final.message.content
    assert last.final.finish_reason == "stop"
    assert len([chunk for chunk in chunks if chunk.text]) > 2
    word = content.split()[1]
    found = both(real["rest"], asked | {"stop_sequences": [word]})
    assert (found.message.content, found.finish_reason) == (content[: content.index(word)], "stop")
    assert 0 < found.tokens_generated < last.final.tokens_generated
    assert real["rest"].info("smollm2").active_requests == 0


def answered(result: str) -> dict[str, Any]:
    """A conversation in which a function was called and has returned."""
    call = {"id": "c1", "name": "get_weather", "arguments": '{"city": "Paris", "unit": "celsius"}'}
    turns = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "tool_calls": [call]}]
    return {"messages": [*turns, {"role": "tool", "tool_call_id": "c1", "content": result}]}


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_what_a_function_returned_is_known(choice: str, real: dict[str, Wire]) -> None:
    found = both(real["zmq"], ASKED | answered("21 degrees and sunny") | {"tool_choice": choice})
    assert "21" in found.message.content or "sunny" in found.message.content
    assert not found.message.tool_calls


def test_several_calls(real: dict[str, Wire]) -> None:
    asked = ASKED | user("Add 1 and 2, and 3 and 4.") | {"tool_choice": "required", "parallel_tool_calls": True}
    found = both(real["rest"], asked | {"max_tokens": 500})
    assert found.finish_reason == "tool_calls"
    assert 1 <= len(found.message.tool_calls) <= 8
    assert all(map(check, found.message.tool_calls))


@pytest.mark.parametrize("length", range(1, 16, 3))
def test_a_call_that_is_cut_short_says_so(length: int, real: dict[str, Wire]) -> None:
    found = both(real["rest"], ASKED | user(QUESTIONS[0]) | {"tool_choice": "add", "max_tokens": length})
    assert (found.finish_reason, found.message.content, found.tokens_generated) == ("length", "", length)
    for call in found.message.tool_calls:
        assert call.name == "add"
        assert not call.arguments.rstrip().endswith("}")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "banana"}}},
        {"properties": {"a": {"$ref": "#/$defs/None"}}},
        {"properties": {"a": {"type": "string", "pattern": "^(a$"}}},
    ],
    ids=["no type", "nowhere", "no pattern"],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(schema: dict[str, Any], real: dict[str, Wire]) -> None:
    asked = ASKED | user("Hello") | {"tools": [*TOOLS, {"name": "bad", "parameters": json.dumps(schema)}]}
    for wire in real.values():
        assert wire.call("chat", asked).code == "invalid_request"
        with pytest.raises(Refused):
            list(wire.chunks("chat", asked))
    found = real["rest"].call("chat", asked)
    assert '"param":"tools"' in found.seen.replace(" ", "")
    assert real["rest"].info("smollm2").breaker == "closed"


def test_128_functions_are_not_too_many(real: dict[str, Wire]) -> None:
    tools = [{"name": f"f{number}", "parameters": '{"properties": {"a": {"enum": [1]}}}'} for number in range(128)]
    found = real["rest"].call("chat", ASKED | user("Hello") | {"tools": tools, "tool_choice": "f127"})
    assert found.code == "", found.seen


# --- OpenAI's client ---
def test_a_round_trip_of_openais_client(served: Served, real: dict[str, Wire]) -> None:
    offered: Any = [
        {"type": "function", "function": {"name": name, "description": SAID[name], "parameters": SCHEMAS[name]}}
        for name in SCHEMAS
    ]
    messages: Any = [{"role": "user", "content": QUESTIONS[0]}]
    with openai.OpenAI(base_url=f"{served.rest}/v1", api_key="any", max_retries=0) as client:
        asked: Any = {"model": "smollm2", "tools": offered, "max_tokens": 100, "temperature": 0}
        found = client.chat.completions.create(messages=messages, tool_choice="required", **asked).choices[0]
        assert found.finish_reason == "tool_calls"
        (call,) = found.message.tool_calls
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments)["city"] == "Paris"
        chunks = list(client.chat.completions.create(messages=messages, tool_choice="required", stream=True, **asked))
        parts = [part for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or ()]
        assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
        messages += [found.message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"}]
        end = client.chat.completions.create(messages=messages, **asked).choices[0]
        assert end.finish_reason == "stop"
        assert "21" in end.message.content
        offered[0]["function"]["parameters"] = {"properties": {"a": {"type": "banana"}}}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(messages=messages[:1], **asked)
        assert refused.value.param == "tools"


# --- other templates ---
@pytest.fixture(scope="module")
def templated(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, Wire]]]:
    folder = tmp_path_factory.mktemp("templated")
    links = [
        ("knowing", templated_gguf(smollm2, folder / "knowing.gguf", HERMES)),
        ("bare", templated_gguf(smollm2, folder / "bare.gguf", "")),
    ]
    with serving(folder / "data", links=links, load=["knowing", "bare"]) as served, wires.connected(served) as clients:
        yield served, clients


def test_which_way_is_used_is_logged(templated: tuple[Served, dict[str, Wire]]) -> None:
    log = templated[0].log.read_text()
    assert "tools are put to 'knowing' by its chat template" in log
    assert "tools are put to 'bare' by the server" in log


@pytest.mark.parametrize("arguments", ["", '{"city', "5", '{"a": 1e999}'])
@pytest.mark.parametrize("model", ["knowing", "bare"])
def test_an_earlier_call_may_have_been_cut_short(
    model: str, arguments: str, templated: tuple[Served, dict[str, Wire]]
) -> None:
    wire = templated[1]["grpc"]
    turns = [*user(QUESTIONS[0])["messages"], {"role": "assistant", "tool_calls": [{"id": "c1", "name": "f"}]}]
    turns[1]["tool_calls"][0]["arguments"] = arguments
    turns.append({"role": "tool", "tool_call_id": "c1", "content": "Sunny"})
    found = wire.call("chat", {"model_name": model, "messages": turns, "max_tokens": 1})
    assert found.code in ("", "invalid_request" if "1e999" in arguments else ""), found.seen
    assert wire.info(model).breaker == "closed"


def test_without_any_template_calls_are_there_too(templated: tuple[Served, dict[str, Wire]]) -> None:
    asked = ASKED | user(QUESTIONS[0]) | {"model_name": "bare", "tool_choice": "required"}
    (call,) = both(templated[1]["rest"], asked).message.tool_calls
    check(call)


def test_a_template_that_knows_tools_shows_them(templated: tuple[Served, dict[str, Wire]]) -> None:
    asked = ASKED | user(QUESTIONS[0]) | {"model_name": "knowing", "max_tokens": 200}
    wire = templated[1]["rest"]
    without = wire.ok("chat", **(asked | {"tools": [], "max_tokens": 1}))
    found = both(wire, asked | {"tool_choice": "required"})
    assert found.prompt_tokens > without.prompt_tokens + 50
    assert found.finish_reason in ("tool_calls", "length")
    if found.finish_reason == "tool_calls":
        assert all(map(check, found.message.tool_calls))
