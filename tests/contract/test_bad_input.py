"""Bad input gets the documented refusal on every transport, tells nothing it should not, and harms nobody."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import model_ops_pb2 as pb
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Answer, Refused, Rest, Wire, refusal
from modelops.api.operations import OPERATIONS
from support import Served, put, tiny_gguf

CONTRACT = Path(__file__).parents[2] / "docs/spec/contract.md"
GOOD: dict[str, Any] = {"model_name": "smollm2", "input_text": "Hello", "max_tokens": 1, "temperature": 0.0}
JSON_TRANSPORTS = ("rest", "zmq")


def documented() -> dict[str, tuple[str, set[str]]]:
    """code → (HTTP status, gRPC statuses): the table of the contract."""
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (\d+)[^|]* \| ([A-Z_ /]+)", CONTRACT.read_text(), re.MULTILINE)
    assert len(rows) == 11
    table = {code: (http, {name.strip() for name in names.split("/")}) for code, http, names in rows}
    return table | {"not_implemented": ("501", {"UNIMPLEMENTED"})}


ERRORS = documented()


@pytest.fixture
def check(served: Served, real: dict[str, Wire]) -> Callable[..., None]:
    """Checks a refusal, and that a normal request is answered after it."""

    def check(transport: str, operation: str, answer: Answer, code: str, *named: str) -> None:
        assert answer.code == code, answer.seen
        http, rpc = ERRORS[code]
        if transport == "rest":
            assert answer.status == http
            conforms(BY_NAME[operation].route, answer)
        elif transport == "grpc":
            assert answer.status in rpc
            assert answer.request_id
        assert answer.message
        for name in named:
            assert name in answer.message
        for secret in (str(served.data_dir), str(served.data_dir.parent), "Traceback", "site-packages", "modelops/"):
            assert secret not in answer.seen
        after = real[transport].call("infer", GOOD)
        assert after.code == "", after.seen

    return check


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


# --- models ---
@pytest.fixture
def files(served: Served, smollm2: Path, tmp_path: Path) -> Iterator[None]:
    """Bad files under the model root, and a good one outside of it."""
    root = served.data_dir / "models"
    outside = tiny_gguf(tmp_path / "outside.gguf")
    put(outside, served.data_dir / "outside.gguf")
    bad = [root / name for name in ("cut.gguf", "text.gguf", "empty.gguf", "link.gguf", "loop.gguf", "folder")]
    with smollm2.open("rb") as whole:
        bad[0].write_bytes(whole.read(50_000_000))
    bad[1].write_text("This is a text about language models.\n" * 100)
    bad[2].write_bytes(b"")
    bad[3].symlink_to(outside)
    bad[4].symlink_to(bad[4])
    bad[5].symlink_to(tmp_path)
    yield
    for file in [*bad, served.data_dir / "outside.gguf"]:
        file.unlink()


LOADS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a truncated file": ({"model_path": "cut.gguf"}, "invalid_request", "cut short"),
    "a text": ({"model_path": "text.gguf"}, "invalid_request", "no usable GGUF"),
    "an empty file": ({"model_path": "empty.gguf"}, "invalid_request", "no usable GGUF"),
    "dots": ({"model_path": "../outside.gguf"}, "invalid_request", "outside the model roots"),
    "an absolute path": ({"model_path": "/etc/passwd"}, "invalid_request", "outside the model roots"),
    "an absolute path to nothing": ({"model_path": "/etc/nothing"}, "invalid_request", "outside the model roots"),
    "a link that leads out": ({"model_path": "link.gguf"}, "invalid_request", "outside the model roots"),
    "a folder that leads out": ({"model_path": "folder/outside.gguf"}, "invalid_request", "outside the model roots"),
    "a link to itself": ({"model_path": "loop.gguf"}, "invalid_request", "model_path"),
    "too long a name": ({"model_path": "x" * 4000}, "invalid_request", "model_path"),
    "too long a path": ({"model_path": "x" * 4097}, "invalid_request", "model_path"),
    "NUL": ({"model_path": "smollm2.gguf\0"}, "invalid_request", "model_path"),
    "the root itself": ({"model_path": "."}, "not_found", "no such file"),
    "no file": ({"model_path": "missing.gguf"}, "not_found", "no such file"),
    "nothing to load": ({}, "not_found", "no-such"),
    "another kind of source": ({"model_path": "ftp://host/file.gguf"}, "invalid_request", "source"),
    "a local source": ({"model_path": "file:///etc/passwd"}, "invalid_request", "source"),
    "a bad source": ({"model_path": "pypi://-r/etc/passwd"}, "invalid_request", "source"),
    "a source with too long a name": ({"model_path": f"pypi://p/{'x' * 300}.gguf"}, "invalid_request", "source"),
    "an unknown type": ({"model_type": "image"}, "invalid_request", "model_type"),
    "layers below": ({"gpu_layers": -2}, "invalid_request", "gpu_layers"),
    "a context below": ({"context_length": -1}, "invalid_request", "context_length"),
    "slots above": ({"slots": 257}, "invalid_request", "slots"),
    "an unknown cache type": ({"cache_type": "q5_0"}, "invalid_request", "cache_type"),
    "a private address": ({"model_path": "https://127.0.0.1:1/m.gguf"}, "invalid_request", "127.0.0.1"),
    "a dry run of a source": ({"model_path": "https://127.0.0.1:1/m.gguf", "dry_run": True}, "conflict", "register"),
    "a dry run of no file": ({"model_path": "missing.gguf", "dry_run": True}, "not_found", "no such file"),
    "a dry run of nothing": ({"dry_run": True}, "not_found", "no-such"),
    "a bad name": ({"model_name": "../x"}, "invalid_request", "model_name"),
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("wrong", "code", "named"), LOADS.values(), ids=LOADS)
def test_a_wrong_load_is_refused_and_the_fault_is_named(
    transport: str, wrong: dict[str, Any], code: str, named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    def registered() -> list[str]:
        return [model.model_name for model in real[transport].call("list_models", {"all": True}).result.models]

    before = registered()
    answer = real[transport].call("load_model", {"model_name": "no-such"} | wrong)
    check(transport, "load_model", answer, code, named)
    assert registered() == before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_is_loaded_once_and_unloaded_once(transport: str, quick: dict[str, Wire]) -> None:
    wire = quick[transport]
    again = wire.call("load_model", {"model_name": "quick"})
    assert again.code == "conflict"
    assert again.status in ("409", "ALREADY_EXISTS", "")
    wire.call("unload_model", {"model_name": "other"})
    gone = wire.call("unload_model", {"model_name": "other"})
    assert gone.code == "conflict"
    assert gone.status in ("409", "FAILED_PRECONDITION", "")
    if transport == "rest":
        conforms(BY_NAME["load_model"].route, again)
        conforms(BY_NAME["unload_model"].route, gone)
    assert wire.call("infer", {"model_name": "quick", "input_text": "Hello"}).code == ""


# --- every operation ---
#: What each needs beside the model's name.
LEAST: dict[str, dict[str, Any]] = {
    "infer": {"input_text": "x"},
    "embed": {"inputs": ["x"]},
    "rerank": {"query": "x", "documents": ["y"]},
    "register_version": {"model_path": "missing.gguf"},
    "activate_version": {"model_version": "v1"},
    "remove_version": {"model_version": "v1"},
}
ON_MODELS = [operation.name for operation in OPERATIONS if "model_name" in operation.request.model_fields]
KEPT = [operation.name for operation in OPERATIONS if "keep_alive" in operation.request.model_fields]


def asked(wire: Wire, name: str, fields: dict[str, Any]) -> Answer:
    """The answer to an operation, which may be one that answers in chunks and is refused."""
    stream = BY_NAME[name].stream
    if not (stream and stream.always):
        return wire.call(name, fields)
    with pytest.raises(Refused) as refused:
        list(wire.chunks(name, fields))
    return refused.value.answer


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", ON_MODELS)
def test_an_unknown_model_is_not_found(
    transport: str, operation: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = asked(real[transport], operation, {"model_name": "no-such"} | LEAST.get(operation, {}))
    check(transport, operation, answer, "not_found", "no such file" if operation == "register_version" else "no-such")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", ON_MODELS)
@pytest.mark.parametrize("name", ["a\0b", "m" * 129])
def test_what_can_be_no_models_name_is_refused(
    transport: str, operation: str, name: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = asked(real[transport], operation, {"model_name": name} | LEAST.get(operation, {}))
    check(transport, operation, answer, "invalid_request", "model_name")


@pytest.mark.parametrize("operation", BY_NAME)
def test_zmq_refuses_an_unknown_field_of_every_operation(
    operation: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    fields = {"model_name": "smollm2"} | LEAST.get(operation, {}) if operation in ON_MODELS else {}
    answer = asked(real["zmq"], operation, fields | {"frobnicate": 1})
    check("zmq", operation, answer, "invalid_request", "unknown field 'frobnicate'")


@pytest.mark.parametrize("operation", [name for name, each in BY_NAME.items() if each.route.method == "POST"])
def test_rest_refuses_an_unknown_field_of_every_body(
    operation: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    fields = {"model_name": "smollm2"} | LEAST.get(operation, {}) if operation in ON_MODELS else {}
    answer = asked(real["rest"], operation, fields | {"frobnicate": 1})
    check("rest", operation, answer, "invalid_request", "unknown field 'frobnicate'")


@pytest.mark.parametrize("operation", [name for name, each in BY_NAME.items() if each.rpcs])
def test_grpc_refuses_an_unknown_field_of_every_operation(
    operation: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    check("grpc", operation, real["grpc"].send(operation, b"\x98\x06\x01"), "invalid_request", "99")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", KEPT)
@pytest.mark.parametrize("wrong", ["soon", "5 m", "1d", "--1", "nan"])
def test_what_is_no_time_to_stay_is_refused_and_named(
    transport: str, operation: str, wrong: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = asked(
        real[transport], operation, {"model_name": "smollm2", "keep_alive": wrong} | LEAST.get(operation, {})
    )
    check(transport, operation, answer, "invalid_request", "keep_alive")


@pytest.mark.parametrize("operation", KEPT)
@pytest.mark.parametrize("wrong", [True, [], {}, 10**400], ids=lambda wrong: str(wrong)[:8])
def test_json_may_say_what_is_no_time_to_stay_in_more_ways(
    operation: str, wrong: object, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    fields = {"model_name": "no-such", "keep_alive": wrong} | LEAST.get(operation, {})
    code, named = ("not_found", "no-such") if wrong == 10**400 else ("invalid_request", "keep_alive")  # that is long
    for transport in JSON_TRANSPORTS:
        check(transport, operation, real[transport].call(operation, fields), code, named)


# --- versions ---
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", ["activate_version", "remove_version"])
@pytest.mark.parametrize("label", ["v2", "v01", "latest", "ALL", "v1 ", "1" * 32])
def test_an_unknown_version_is_not_found(
    transport: str, operation: str, label: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = real[transport].call(operation, {"model_name": "smollm2", "model_version": label})
    check(transport, operation, answer, "not_found", "'smollm2'", f"'{label}'")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", ["activate_version", "remove_version"])
@pytest.mark.parametrize("label", ["", "v", "v" * 33])
def test_what_can_be_no_version_is_refused(
    transport: str, operation: str, label: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    if transport == "rest" and operation == "remove_version" and not label:
        return  # that is another path
    answer = real[transport].call(operation, {"model_name": "smollm2", "model_version": label})
    check(transport, operation, answer, "invalid_request", "model_version")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("wrong", "code", "named"),
    [case for name, case in LOADS.items() if case[0].keys() == {"model_path"}],
    ids=[name for name, case in LOADS.items() if case[0].keys() == {"model_path"}],
)
def test_a_wrong_version_is_refused_as_a_wrong_load_is(
    transport: str, wrong: dict[str, Any], code: str, named: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = real[transport].call("register_version", {"model_name": "smollm2"} | wrong)
    check(transport, "register_version", answer, code, named)
    versions = real[transport].call("list_versions", {"model_name": "smollm2"}).result.versions
    assert [version.model_version for version in versions] == ["v1"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_serves_is_not_removed_and_nothing_can_be_rolled_back_to(
    transport: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    wire = real[transport]
    for label in ("v1", "all"):
        answer = wire.call("remove_version", {"model_name": "smollm2", "model_version": label})
        check(transport, "remove_version", answer, "conflict", "unload it first")
    answer = wire.call("roll_back", {"model_name": "smollm2"})
    check(transport, "roll_back", answer, "conflict", "no other version")
    again = wire.call("activate_version", {"model_name": "smollm2", "model_version": "v1"})
    assert (again.code, again.result.status) == ("", "loaded")  # it does already


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", ["embed", "rerank"])
def test_a_model_of_another_type_is_not_asked(
    transport: str, operation: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    answer = real[transport].call(operation, {"model_name": "smollm2"} | LEAST[operation])
    check(transport, operation, answer, "invalid_request", "'smollm2' is a model of type 'llm'")


def test_a_name_in_the_body_that_is_not_the_one_in_the_path_is_refused(
    real: dict[str, Wire], check: Callable[..., None]
) -> None:
    rest = real["rest"]
    assert isinstance(rest, Rest)
    for name, code in (("smollm2", ""), ("other", "invalid_request")):
        body = json.dumps({"model_name": name, "model_version": "v1"})
        answer = rest.request(
            "activate_version", "POST", "/models/smollm2/activate", body, {"Content-Type": "application/json"}
        )
        if code:
            check("rest", "activate_version", answer, code, "model_name")
        else:
            assert answer.code == ""
