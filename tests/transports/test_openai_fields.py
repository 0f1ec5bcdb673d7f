"""Every field that OpenAI documents is in the tables; what is not supported is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from openai.types import completion_create_params as of_completions
from openai.types import embedding_create_params as of_embeddings
from openai.types.chat import completion_create_params as of_chat

from modelops.api.chat import ChatRequest
from modelops.api.errors import BY_CODE, InvalidRequest
from modelops.transports import openai_answers, openai_requests
from modelops.transports.openai_fields import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, Field, Fields

CHATTING: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
RANKING: dict[str, Any] = {"model": "m", "query": "Hello", "documents": ["Hello"]}
TURN: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
COMPLETING: dict[str, Any] = {"model": "m", "prompt": "Hello"}
EMBEDDING: dict[str, Any] = {"model": "m", "input": "Hello"}
FUNCTION: dict[str, Any] = {"name": "add", "parameters": {"type": "object"}}
#: What an engine keeps to in part only; and what it does not survive.
LOOSE: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "number", "maximum": 1}}}
DEADLY: dict[str, Any] = {"type": "string", "minLength": 5, "maxLength": 2}
TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": FUNCTION}]}


def form(schema: Any = LOOSE, **given: Any) -> dict[str, Any]:
    """A response format of that schema."""
    told = {"name": "answer", "schema": schema} | given
    return {"response_format": {"type": "json_schema", "json_schema": told}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def turn(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"} | message]}


@pytest.mark.parametrize(
    ("documented", "table", "ours"),
    [
        (of_chat.CompletionCreateParamsBase, CHAT, {"top_k", "min_p", "repeat_penalty"}),
        (of_completions.CompletionCreateParamsBase, COMPLETIONS, {"top_k", "min_p", "repeat_penalty"}),
        (of_embeddings.EmbeddingCreateParams, EMBEDDINGS, set()),
    ],
    ids=["chat", "completions", "embeddings"],
)
def test_all_that_is_documented_is_in_the_tables(documented: Any, table: Fields, ours: set[str]) -> None:
    stream = {"stream"} if "stream" in table else set()
    assert set(documented.__annotations__) | stream | ours == set(table)


@pytest.mark.parametrize(
    ("build", "asked", "table"),
    [
        (openai_requests.chat, CHATTING, CHAT),
        (openai_requests.completion, COMPLETING, COMPLETIONS),
        (openai_requests.embedding, EMBEDDING, EMBEDDINGS),
    ],
    ids=["chat", "completions", "embeddings"],
)
def test_what_is_refused_is_refused_by_name_and_what_asks_for_nothing_is_taken(
    build: Any, asked: dict[str, Any], table: Fields
) -> None:
    plain = build(asked)
    for name, field in table.items():
        assert build({name: None, **asked}) == plain
        for value in field.neutral:
            assert build(asked | {name: value}) == plain
        if field.kind == "refused" and name != "dimensions":  # which depends on the model
            with pytest.raises(InvalidRequest, match=f"^{name}: ") as refused:
                build(asked | {name: "something else"})
            assert refused.value.details == {"param": name}
        if field.kind == "accepted":
            assert build(asked | {name: "x"}) == plain
    with pytest.raises(InvalidRequest, match="did you mean 'model'") as refused:
        build(asked | {"modle": "m"})
    assert refused.value.details == {"param": "modle"}


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key", "metadata"])
def test_what_changes_no_answer_is_taken(name: str) -> None:
    assert openai_requests.chat(CHATTING | {name: "x"}) == openai_requests.chat(CHATTING)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("n_predict", "did you mean 'max_tokens'?"),
        ("num_predict", "did you mean 'max_tokens'?"),
        ("max_new_tokens", "did you mean 'max_tokens'?"),
        ("stop_sequences", "did you mean 'stop'?"),
        ("repetition_penalty", "did you mean 'repeat_penalty'?"),
        ("temprature", "did you mean 'temperature'?"),
        ("system", "it is a message of the role 'system', of a chat completion"),
        ("options", "what stands in it are fields of the request itself"),
    ],
)
@pytest.mark.parametrize(
    ("build", "asked"),
    [(openai_requests.chat, CHATTING), (openai_requests.completion, COMPLETING)],
    ids=["chat", "completions"],
)
def test_what_has_another_name_elsewhere_is_told_by_its_name_here(
    build: Any, asked: dict[str, Any], name: str, told: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        build(asked | {name: "x"})
    assert refused.value.message == f"{name}: no field of this request; {told}"


@pytest.mark.parametrize("name", ["verbosityy", "function_calls", "xyzzy"])
def test_nothing_is_suggested_that_is_refused_itself(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: no field of this request$"):
        openai_requests.chat(CHATTING | {name: "x"})


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"top_p": "1"}, "top_p", "number"),
        ({"stop": 3}, "stop", "list"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"stop": ""}, "stop", "stop: "),
        ({"seed": -1}, "seed", "greater"),
        ({"n": 0}, "n", "from 1 on"),
        ({"n": 129}, "n", "at most 128"),
        ({"n": True}, "n", "whole number"),
        ({"n": "2"}, "n", "whole number"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": -1}, "max_tokens", "at least 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "at least 1"),
        ({"max_tokens": "1"}, "max_tokens", "integer"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"messages": "Hello"}, "messages", "list"),
        ({"messages": []}, "messages", "at least 1"),
        (turn(role="function"), "messages.0.role", "one of"),
        (turn(content=None), "messages.0.content", "required"),
        (turn(content=3), "messages.0.content", "text"),
        (turn(colour="red"), "messages.0.colour", "not supported"),
        (turn(tool_calls=[]), "messages.0.tool_calls", "assistant"),
        (
            turn(content=[{"type": "text", "text": "a"}, {"type": "image_url"}]),
            "messages.0.content.1",
            "messages.0.content.1: image parts are not supported",
        ),
        (turn(content=[{"type": "file"}]), "messages.0.content.0", "file parts"),
        (turn(content=[{"text": "a"}]), "messages.0.content.0", "'type'"),
        ({"tools": [FUNCTION]}, "tools.0", '{"type": "function", "function": {"name": …}}'),
        ({"response_format": {"type": "json_schema", "schema": {}}}, "response_format.schema", "json_schema.schema"),
        ({"tools": [{"type": "custom"}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        (TOOLS | {"tool_choice": "add"}, "tool_choice", "auto, none, required"),
        (TOOLS | {"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "function"),
        (TOOLS | {"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice", "one of the tools"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "JSON Schema"),
        (
            TOOLS | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
            "response_format",
            "exclude each other",
        ),
        (form(strict=True), "response_format.json_schema.schema.properties.n.maximum", "is not kept to by the engine"),
        (form({"not": {}}, strict=True), "response_format.json_schema.schema.not", "is not kept to by the engine"),
        (form({"not": {}}, strict=True), "response_format.json_schema.schema.not", "; or leave out 'strict'"),
        (form(strict="yes"), "response_format.json_schema.strict", "true or false"),
        (form(DEADLY), "response_format", "minLength: is more than maxLength"),
        (
            {"tools": [{"type": "function", "function": FUNCTION | {"parameters": LOOSE, "strict": True}}]},
            "tools.0.function.parameters.properties.n.maximum",
            "is not kept to by the engine, of type 'number'",
        ),
        (
            {"tools": [{"type": "function", "function": FUNCTION | {"parameters": DEADLY}}]},
            "tools.0.function.parameters",
            "minLength: is more than maxLength",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_chat_is_told_by_its_place(change: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        openai_requests.chat(CHATTING | change)
    assert told in refused.value.message
    assert openai_answers.error(refused.value)["error"]["param"] == param


@pytest.mark.parametrize(
    ("build", "field", "told", "asking", "most"),
    [
        (openai_requests.chat, CHAT["messages"], "1,000", lambda n: CHATTING | {"messages": TURN * n}, 1000),
        (openai_requests.chat, CHAT["messages"], "128", lambda n: CHATTING | turn(name="x" * n), 128),
        (openai_requests.chat, CHAT["messages"], "128", lambda n: CHATTING | turn(tool_call_id="x" * n), 128),
        (
            openai_requests.chat,
            CHAT["tools"],
            "128",
            lambda n: CHATTING | {"tools": [tool(f"f{i}") for i in range(n)]},
            128,
        ),
        (openai_requests.embedding, EMBEDDINGS["input"], "32,768", lambda n: EMBEDDING | {"input": "x" * n}, 32_768),
        (openai_requests.embedding, EMBEDDINGS["input"], "256", lambda n: EMBEDDING | {"input": ["x"] * n}, 256),
        (openai_requests.rerank, RERANK["query"], "32,768", lambda n: RANKING | {"query": "x" * n}, 32_768),
        (openai_requests.rerank, RERANK["documents"], "32,768", lambda n: RANKING | {"documents": ["x" * n]}, 32_768),
        (openai_requests.rerank, RERANK["documents"], "256", lambda n: RANKING | {"documents": ["x"] * n}, 256),
    ],
)
def test_the_bounds_are_those_that_the_page_tells(
    build: Any, field: Field, told: str, asking: Callable[[int], dict[str, Any]], most: int
) -> None:
    assert re.search(rf"up to {told}\b", field.note)
    build(asking(most))
    with pytest.raises(InvalidRequest):
        build(asking(most + 1))


@pytest.mark.parametrize("given", [{}, {"strict": False}, {"strict": None}], ids=str)
def test_what_is_not_strict_may_say_more_than_is_kept_to(given: dict[str, Any]) -> None:
    (asked,) = openai_requests.chat(CHATTING | form(**given)).questions
    assert isinstance(asked, ChatRequest)
    assert asked.json_schema.read == LOOSE
    function = FUNCTION | {"parameters": LOOSE} | given
    (asked,) = openai_requests.chat(CHATTING | {"tools": [{"type": "function", "function": function}]}).questions
    assert isinstance(asked, ChatRequest)
    assert asked.tools[0].parameters.read == LOOSE


def test_a_conversation_becomes_ours() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    (asked,) = openai_requests.chat(
        {
            "model": "m",
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
                {"role": "tool", "tool_call_id": "c", "content": "3"},
            ],
            "stop": "x",
            "max_completion_tokens": 7,
            "tool_choice": {"type": "function", "function": {"name": "add"}},
            "top_k": 3,
        }
        | TOOLS
    ).questions
    assert isinstance(asked, ChatRequest)
    assert [(one.role, one.content) for one in asked.messages] == [
        ("system", "Be brief."),
        ("user", "a\nb"),
        ("assistant", ""),
        ("tool", "3"),
    ]
    assert asked.messages[2].tool_calls[0].name == "add"
    assert (asked.temperature, asked.top_p, asked.stop_sequences, asked.max_tokens) == (1.0, 1.0, ["x"], 7)
    assert (asked.tool_choice, asked.tools[0].parameters, asked.top_k) == ("add", '{"type": "object"}', 3)


@pytest.mark.parametrize("prompt", [[1, 2], [[1]], ["a", 1], ["a"] * 129, [], 3, ""])
def test_a_prompt_is_text(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        openai_requests.completion(COMPLETING | {"prompt": prompt})
    assert refused.value.details == {"param": "prompt"}


@pytest.mark.parametrize(
    ("build", "asked", "param"),
    [
        (openai_requests.embedding, EMBEDDING | {"input": ""}, "input"),
        (openai_requests.embedding, EMBEDDING | {"input": ["a", ""]}, "input.1"),
        (openai_requests.completion, COMPLETING | {"stop": ""}, "stop"),
    ],
)
def test_a_text_alone_is_told_as_itself(build: Any, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{param}: ") as refused:
        build(asked)
    assert refused.value.details == {"param": param}


def test_several_answers_to_several_prompts() -> None:
    asked = openai_requests.completion(COMPLETING | {"prompt": ["a", "b"], "n": 2})
    assert [getattr(one, "input_text", "") for one in asked.questions] == ["a", "b"]
    assert (asked.n, asked.model, asked.stream) == (2, "m", False)
    with pytest.raises(InvalidRequest, match="at most 128 answers in all"):
        openai_requests.completion(COMPLETING | {"prompt": ["a"] * 43, "n": 3})
    with pytest.raises(InvalidRequest, match=r"^prompt\.1: ") as refused:
        openai_requests.completion(COMPLETING | {"prompt": ["a", ""]})
    assert refused.value.details == {"param": "prompt.1"}


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 2], [3]]])
def test_tokens_are_no_input(tokens: Any) -> None:
    with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False") as refused:
        openai_requests.embedding(EMBEDDING | {"input": tokens})
    assert refused.value.details == {"param": "input"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"more": True}}, "stream_options.more"),
    ],
)
def test_options_of_streams(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        openai_requests.wants_usage(fields)
    assert refused.value.details == {"param": param}


def test_every_code_has_a_type() -> None:
    assert openai_answers.ERRORS.keys() == BY_CODE.keys()
