"""Conversations with the real model, on all transports: what is asked for holds, whole and in pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import model_ops_pb2 as pb
from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Refused, Wire
from support import serving, wait_until

ASKED: dict[str, Any] = {"model_name": "smollm2", "max_tokens": 16, "temperature": 0.0}
CAPITAL = "What is the capital of France?"

pytestmark = pytest.mark.engine


def user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def both(wire: Wire, fields: dict[str, Any]) -> list[pb.ChatResponse]:
    """The whole answer, and the end of the same in pieces, which add up to it."""
    answer = wire.call("chat", fields)
    assert answer.code == "", answer.seen
    if wire.name == "rest":
        conforms(BY_NAME["chat"].route, answer)
    *chunks, last = wire.chunks("chat", fields)
    assert not any(chunk.done or chunk.HasField("final") for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == last.final.message.content
    assert [one for chunk in chunks for one in chunk.logprobs] == list(last.final.logprobs)
    return [answer.result, last.final]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_turn_is_answered_as_infer_answers_it(transport: str, real: dict[str, Wire]) -> None:
    wire = real[transport]
    inferred = wire.ok("infer", **ASKED, input_text=CAPITAL)
    for found in both(wire, ASKED | user(CAPITAL)):
        assert (found.message.role, found.message.content) == ("assistant", inferred.output_text)
        assert (found.success, found.error_message, found.model_version) == (True, "", "v1")
        assert found.tokens_generated == inferred.tokens_generated
        assert 5 < found.prompt_tokens < 100
        assert found.latency_ms > 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_earlier_turns_are_known(transport: str, real: dict[str, Wire]) -> None:
    messages = [
        {"role": "user", "content": "My name is Zebedee."},
        {"role": "assistant", "content": "Nice to meet you, Zebedee!"},
        {"role": "user", "content": "What is my name?"},
    ]
    for found in both(real[transport], ASKED | {"messages": messages, "max_tokens": 24}):
        assert "Zebedee" in found.message.content


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_why_it_ended_is_told(transport: str, real: dict[str, Wire]) -> None:
    for fields, reason, content in (
        ({"max_tokens": 3}, "length", None),
        ({"json_schema": '{"enum": ["Paris"]}'}, "stop", '"Paris"'),
        ({"json_schema": '{"enum": ["Paris"]}', "stop_sequences": ["is"]}, "stop", '"Par'),
    ):
        for found in both(real[transport], ASKED | user(CAPITAL) | fields):
            assert found.finish_reason == reason
            assert content is None or found.message.content == content


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_answer_is_json_of_the_schema(transport: str, real: dict[str, Wire]) -> None:
    asked = ASKED | user("Describe Paris.") | {"max_tokens": 100}
    for found in both(real[transport], asked | {"json_schema": json.dumps(SCHEMA)}):
        answer = json.loads(found.message.content)
        assert (answer.keys(), type(answer["city"]), type(answer["people"])) == ({"city", "people"}, str, int)
        assert len(answer["city"]) <= 20


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_answer_is_a_json_object(transport: str, real: dict[str, Wire]) -> None:
    """Where the model would rather tell a story, and where it has come to an end soon."""
    for found in both(real[transport], ASKED | user("Describe Paris.") | {"json_object": True}):
        assert found.message.content.lstrip().startswith("{")
    short = user('Give the JSON object {"city": "Paris"}.') | {"max_tokens": 100}
    for found in both(real[transport], ASKED | short | {"json_object": True}):
        assert found.finish_reason == "stop"
        assert isinstance(json.loads(found.message.content), dict)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("most", [0, 3])
def test_how_likely_each_token_was(transport: str, most: int, real: dict[str, Wire]) -> None:
    for found in both(real[transport], ASKED | user(CAPITAL) | {"logprobs": True, "top_logprobs": most}):
        assert "".join(one.token for one in found.logprobs) == found.message.content
        assert len(found.logprobs) in (found.tokens_generated, found.tokens_generated - 1)  # the end is no text
        assert all(one.logprob <= 0 for one in found.logprobs)
        assert sum(one.logprob for one in found.logprobs) > -2 * len(found.logprobs), "it says what is likely"
        assert {len(one.top) for one in found.logprobs} == {most}
        for one in found.logprobs:
            assert not most or one.top[0].token == one.token, "greedy"
            assert [other.logprob for other in one.top] == sorted((other.logprob for other in one.top), reverse=True)


def test_without_a_bound_it_answers_to_the_end_of_the_context(smollm2: Path, tmp_path: Path) -> None:
    env = {"MODELOPS_ENGINE__CONTEXT_LENGTH": "256", "MODELOPS_ENGINE__SLOTS": "1"}
    with serving(tmp_path, links=[("small", smollm2)], env=env) as served, wires.connected(served) as clients:
        asked = user("Count from 1 to 1000.") | {"model_name": "small", "temperature": 0.0, "json_schema": GROWING}
        found = clients["rest"].ok("chat", **asked)
        assert (found.finish_reason, found.success) == ("length", True)
        assert 200 < found.prompt_tokens + found.tokens_generated <= 256


GROWING = json.dumps({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1000})


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_that_is_left_frees_its_slot(transport: str, real: dict[str, Wire]) -> None:
    wire = real[transport]
    chunks = wire.chunks("chat", ASKED | user("Tell a long story.") | {"max_tokens": 2000})
    assert next(chunks).text
    chunks.close()
    wait_until(lambda: wire.info("smollm2").active_requests == 0, what="the slot")


# --- what the engine cannot do is the caller's mistake, and harms nobody ---
REFUSED: dict[str, dict[str, Any]] = {
    "a type that there is not": {"json_schema": '{"type": "banana"}'},
    "a reference that leads nowhere": {"json_schema": '{"$ref": "#/definitions/none"}'},
    "a pattern that is none": {"json_schema": '{"type": "string", "pattern": "^(a$"}'},
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_what_the_engine_refuses_is_refused(transport: str, fields: dict[str, Any], real: dict[str, Wire]) -> None:
    wire = real[transport]
    answer = wire.call("chat", ASKED | user("Hello") | fields)
    assert answer.code == "invalid_request", answer.seen
    with pytest.raises(Refused) as refused:
        list(wire.chunks("chat", ASKED | user("Hello") | fields))
    assert refused.value.answer.code == "invalid_request"
    assert wire.info("smollm2").breaker == "closed"
    assert wire.ok("chat", **ASKED, **user("Hello")).message.content
