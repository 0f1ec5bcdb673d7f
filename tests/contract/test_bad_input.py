"""Bad input gets the documented refusal on every transport, tells nothing it should not, and harms nobody."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import model_ops_pb2 as pb
from contract.refusals import GOOD
from contract.wires import TRANSPORTS, Refused, Rest, Wire, refusal
from support import Served

JSON_TRANSPORTS = ("rest", "zmq")


# --- InferenceRequest, as far as every transport can say it ---
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "empty model_name": ({"model_name": ""}, "invalid_request", "model_name"),
    "empty input_text": ({"input_text": ""}, "invalid_request", "input_text"),
    "long model_name": ({"model_name": "m" * 129}, "invalid_request", "model_name"),
    "unknown model": ({"model_name": "m" * 128}, "not_found", "m" * 128),
    "10,001 characters": ({"input_text": "é" * 10_001}, "invalid_request", "input_text"),
    "long system": ({"system": "é" * 10_001}, "invalid_request", "system"),
    "max_tokens below": ({"max_tokens": -1}, "invalid_request", "max_tokens"),
    "max_tokens above": ({"max_tokens": 2049}, "invalid_request", "max_tokens"),
    "temperature below": ({"temperature": -0.01}, "invalid_request", "temperature"),
    "temperature above": ({"temperature": 2.01}, "invalid_request", "temperature"),
    "top_p below": ({"top_p": -0.01}, "invalid_request", "top_p"),
    "top_p above": ({"top_p": 1.01}, "invalid_request", "top_p"),
    "11 stop_sequences": ({"stop_sequences": ["x"] * 11}, "invalid_request", "stop_sequences"),
    "an empty stop sequence": ({"stop_sequences": [""]}, "invalid_request", "stop_sequences"),
    "NUL in input_text": ({"input_text": "a\0b"}, "invalid_request", "NUL"),
    "NUL in model_name": ({"model_name": "smollm2\0"}, "invalid_request", "NUL"),
    "NUL in system": ({"system": "\0"}, "invalid_request", "NUL"),
    "NUL in a stop sequence": ({"stop_sequences": ["\0"]}, "invalid_request", "NUL"),
    "a path as model_name": ({"model_name": "../../etc/passwd"}, "not_found", "../../etc/passwd"),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("wrong", "code", "named"), WRONG.values(), ids=WRONG)
def test_a_wrong_inference_request_is_refused_and_the_fault_is_named(
    transport: str, wrong: dict[str, Any], code: str, named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    check(transport, "infer", real[transport].call("infer", GOOD | wrong), code, named)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_what_is_no_number_is_refused(
    transport: str, number: str, name: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    # In JSON these are written NaN and Infinity, which is no JSON.
    check(transport, "infer", real[transport].call("infer", GOOD | {name: float(number)}), "invalid_request")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", ["10,001 characters", "unknown model", "max_tokens above"])
def test_a_stream_is_refused_like_any_other_request(
    transport: str, case: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    wrong, code, named = WRONG[case]
    with pytest.raises(Refused) as refused:
        list(real[transport].stream(GOOD | wrong))
    check(transport, "infer", refused.value.answer, code, named)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "right",
    [
        {"model_name": "quick", "input_text": "🌊" * 10_000},
        {"input_text": "x", "max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "stop_sequences": [], "seed": 0},
        {"max_tokens": 2048, "temperature": 2.0, "top_p": 0.0, "stop_sequences": ["x"] * 10, "seed": 2**32 - 2},
        {"system": "é" * 10_000, "raw": False},
    ],
    ids=["10,000 characters", "least", "most", "long system"],
)
def test_the_bounds_themselves_are_accepted(transport: str, right: dict[str, Any], quick: dict[str, Wire]) -> None:
    answer = quick[transport].call("infer", {"model_name": "quick", "input_text": "Hello"} | right)
    assert answer.code == "", answer.seen
    assert answer.result.tokens_generated == min(2, right.get("max_tokens", 50))


# --- what only JSON can say ---
@pytest.mark.parametrize("transport", JSON_TRANSPORTS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"model_name": ["smollm2"]},
        {"model_name": None},
        {"input_text": 5},
        {"max_tokens": "50"},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": 0},
        {"max_tokens": 10**30},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": {}},
        {"stop_sequences": "x"},
        {"stop_sequences": [1]},
        {"stop_sequences": {"0": "x"}},
        {"raw": 1},
        {"stream": "yes"},
        {"seed": -1},
        {"seed": 2**32 - 1},
    ],
    ids=str,
)
def test_a_wrong_type_is_refused_and_named(
    transport: str, wrong: dict[str, Any], real: dict[str, Wire], check: Callable[..., None]
) -> None:
    check(transport, "infer", real[transport].call("infer", GOOD | wrong), "invalid_request", *wrong)


@pytest.mark.parametrize("transport", JSON_TRANSPORTS)
def test_an_unknown_field_is_refused_and_named_with_the_nearest_known_one(
    transport: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = real[transport].call("infer", GOOD | {"max_token": 5})
    check(transport, "infer", answer, "invalid_request", "'max_token'", "'max_tokens'")


@pytest.mark.parametrize("transport", JSON_TRANSPORTS)
def test_a_missing_field_is_refused_and_named(
    transport: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    check(transport, "infer", real[transport].call("infer", {"model_name": "smollm2"}), "invalid_request", "input_text")


UNREADABLE = {
    "nothing": b"",
    "text": b"Hello, world!",
    "a string": b'"infer"',
    "an array": b"[]",
    "null": b"null",
    "cut short": b'{"model_name": "smollm2", "input_te',
    "bytes that are no text": bytes(range(256)),
    "invalid UTF-8": b'{"model_name": "smollm2", "input_text": "\xed\xa0\x80"}',
    "a lone surrogate": b'{"model_name": "smollm2", "input_text": "\\ud800"}',
    "a lone surrogate as a name": b'{"\\udfff": 1}',
    "NaN": b'{"model_name": "smollm2", "input_text": "Hello", "temperature": NaN}',
    "too large a number": b'{"model_name": "smollm2", "input_text": "Hello", "temperature": 1e999}',
    "deeply nested": b'{"stop_sequences": ' + b"[" * 100_000,
    "deeply nested and closed": b'{"stop_sequences": ' + b"[" * 150 + b"]" * 150 + b"}",
    "deeply nested objects": b'{"a":' * 100_000,
    "two documents": b"{}{}",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_rest_refuses_what_is_no_request(body: bytes, real: dict[str, Wire], check: Callable[..., None]) -> None:
    check("rest", "infer", real["rest"].send("infer", body), "invalid_request")


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_zmq_answers_what_is_no_request_and_echoes_its_id(
    body: bytes, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = real["zmq"].send("infer", body)
    check("zmq", "infer", answer, "invalid_request")
    assert answer.request_id == ""
    within = b'{"action": "infer", "request_id": "find-me", "payload": %b}' % body
    answer = real["zmq"].send("infer", within)
    check("zmq", "infer", answer, "invalid_request")
    assert answer.request_id == "find-me"


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"action": "dance"}, "'dance'"),
        ({"action": "Infer"}, "'Infer'"),
        ({"action": None}, "action"),
        ({"action": ["infer"]}, "action"),
        ({}, "action"),
        ({"action": "health", "extra": 1}, "'extra'"),
        ({"action": "health", "timestamp": 5}, "timestamp"),
        ({"action": "health", "stream": "yes"}, "stream"),
        ({"action": "health", "timeout_s": "1"}, "timeout_s"),
        ({"action": "health", "timeout_s": 0}, "timeout_s"),
        ({"action": "health", "timeout_s": -1}, "timeout_s"),
        ({"action": "health", "payload": {"verbose": True}}, "'verbose'"),
        ({"action": "infer", "payload": None}, "object"),
        ({"action": "infer", "payload": "Hello"}, "object"),
        ({"action": "infer", "payload": []}, "object"),
        ({"action": "infer"}, "model_name"),
        ({"action": "cancel"}, "request_id"),
        ({"action": "cancel", "payload": {"request_id": 5}}, "request_id"),
    ],
    ids=str,
)
def test_zmq_refuses_a_wrong_envelope_and_names_the_fault(
    message: dict[str, Any], named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = real["zmq"].send("infer", json.dumps({"request_id": "mine", **message}).encode())
    check("zmq", "infer", answer, "invalid_request", named)
    assert answer.request_id == "mine"


@pytest.mark.parametrize("request_id", [5, None, "x" * 129, ["x"]], ids=str)
def test_zmq_refuses_a_request_id_that_is_no_short_text(
    request_id: object, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = real["zmq"].send("infer", json.dumps({"action": "health", "request_id": request_id}).encode())
    check("zmq", "health", answer, "invalid_request", "request_id")


@pytest.mark.parametrize("transport", JSON_TRANSPORTS)
def test_of_a_key_given_twice_the_last_one_counts(transport: str, quick: dict[str, Wire]) -> None:
    body = b'{"model_name": "no-such", "model_name": "quick", "input_text": "Hello", "max_tokens": 9, "max_tokens": 1}'
    if transport == "zmq":
        body = b'{"action": "health", "action": "infer", "payload": %b}' % body
    answer = quick[transport].send("infer", body)
    assert answer.code == "", answer.seen
    assert answer.result.tokens_generated == 1


# --- what only protobuf can say ---
@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"\xff\xff\xff", "InferenceRequest"),
        (b"\x0a\x7fshort", "InferenceRequest"),
        (b"\x0a\x07smollm2\x12\x03\xed\xa0\x80", "UTF-8"),
        (pb.InferenceRequest(model_name="smollm2", input_text="Hello").SerializeToString() + b"\x98\x06\x01", "99"),
        (pb.InferenceRequest(model_name="smollm2", input_text="Hello").SerializeToString() + b"\x1a\x0250", "3"),
        (b"", "model_name"),
    ],
    ids=["no protobuf", "cut short", "lone surrogate", "unknown field number", "text for a number", "nothing"],
)
def test_grpc_refuses_what_is_no_request(
    raw: bytes, named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    check("grpc", "infer", real["grpc"].send("infer", raw), "invalid_request", named)


def test_grpc_refuses_unknown_fields_of_an_empty_request(real: dict[str, Wire], check: Callable[..., None]) -> None:
    check("grpc", "health", real["grpc"].send("health", b"\x08\x01"), "invalid_request", "1")


@pytest.mark.parametrize("method", ["/ModelOps/Dance", "/modelops.ModelOps/Infer", "/Other/Infer"])
def test_grpc_knows_no_other_method(method: str, served: Served, real: dict[str, Wire]) -> None:
    with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError) as error:
        rpc: Any = channel.unary_unary(method, None, None)
        rpc(b"", timeout=10)
    assert refusal(error.value).status == "UNIMPLEMENTED"
    assert real["grpc"].call("infer", GOOD).code == ""


@pytest.mark.parametrize("path", ["/", "/inferenc", "/models/a/b", "/docs/assets/../../../etc/passwd"])
def test_rest_knows_no_other_path(path: str, real: dict[str, Wire]) -> None:
    rest = real["rest"]
    assert isinstance(rest, Rest)
    answer = rest.request("health", "GET", path, None, {})
    assert (answer.status, answer.code) == ("404", "not_found")
    assert real["rest"].call("infer", GOOD).code == ""


def test_rest_survives_what_is_no_http(served: Served, real: dict[str, Wire]) -> None:
    host, port = served.rest.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"\x00\xff\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    assert real["rest"].call("infer", GOOD).code == ""


# --- too much ---
HUGE = 50 * 2**20


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_rest_refuses_50_mb(chunked: bool, real: dict[str, Wire], check: Callable[..., None]) -> None:
    rest = real["rest"]
    assert isinstance(rest, Rest)

    def blocks() -> Iterator[bytes]:
        for _ in range(HUGE // 2**20):
            yield b"x" * 2**20

    body = blocks() if chunked else b"x" * HUGE
    answer = rest.request("infer", "POST", "/inference", body, {"Content-Type": "application/json"})
    check("rest", "infer", answer, "too_large")


def test_grpc_refuses_50_mb(real: dict[str, Wire], check: Callable[..., None]) -> None:
    check("grpc", "infer", real["grpc"].call("infer", GOOD | {"input_text": "x" * HUGE}), "too_large")


def test_zmq_refuses_50_mb_and_echoes_its_id(real: dict[str, Wire], check: Callable[..., None]) -> None:
    answer = real["zmq"].call("infer", GOOD | {"input_text": "x" * HUGE})  # the client checks the id
    check("zmq", "infer", answer, "too_large")
