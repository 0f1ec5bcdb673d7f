"""Bad requests about models, and what no operation takes: refused as documented, and the rest goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Answer, Refused, Rest, Wire
from modelops.api.operations import OPERATIONS
from support import Served, put, tiny_gguf

JSON_TRANSPORTS = ("rest", "zmq")


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
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "embed": {"inputs": ["x"]},
    "rerank": {"query": "x", "documents": ["y"]},
    "register_version": {"model_path": "missing.gguf"},
    "activate_version": {"model_version": "v1"},
    "remove_version": {"model_version": "v1"},
    "create_job": {"job_type": "evaluate", "dataset": [{"prompt": "x", "completion": "y"}]},
    "cancel_job": {"job_id": "x"},
    "create_goal": {"title": "x", "objective": {"type": "availability", "models": ["x"]}},
    "cancel_goal": {"goal_id": "x"},
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
    fields = ({"model_name": "smollm2"} if operation in ON_MODELS else {}) | LEAST.get(operation, {})
    answer = asked(real["zmq"], operation, fields | {"frobnicate": 1})
    check("zmq", operation, answer, "invalid_request", "unknown field 'frobnicate'")


@pytest.mark.parametrize("operation", [name for name, each in BY_NAME.items() if each.route.method == "POST"])
def test_rest_refuses_an_unknown_field_of_every_body(
    operation: str, real: dict[str, Wire], check: Callable[..., None]
) -> None:
    fields = ({"model_name": "smollm2"} if operation in ON_MODELS else {}) | LEAST.get(operation, {})
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
