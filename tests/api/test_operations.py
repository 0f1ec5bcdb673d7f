"""Every operation is offered everywhere, and the wire is the specification's: names, numbers and types."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator, Iterator, Set
from pathlib import Path
from typing import Any, get_args

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pydantic import BaseModel

import model_ops_pb2 as pb
from modelops.api.operations import OPERATIONS, Operation
from modelops.service import Coordinator

SPEC = Path(__file__).resolve().parents[2] / "docs" / "spec"
API, CONTRACT = (SPEC / "api.md").read_text(), (SPEC / "contract.md").read_text()
SERVICE = pb.DESCRIPTOR.services_by_name["ModelOps"]
MESSAGES = pb.DESCRIPTOR.message_types_by_name
#: What a field of a request is called where it is no field of the message: said in another way over gRPC.
NOT_IN_PROTO = {"infer": {"stream"}, "chat": {"stream"}, "list_models": {"all"}}

each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


def block(page: str, language: str) -> str:
    """The page's code in that language, without comments."""
    found = "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    return re.sub(r"//.*", "", found)


PROTO = {"api.md": block(API, "protobuf"), "contract.md": block(CONTRACT, "proto")}


def documented(proto: str) -> dict[str, dict[str, tuple[int, str]]]:
    """message → field → (number, type)."""
    fields = re.compile(r"((?:repeated |optional )?[\w.]+|map<[^>]+>)\s+(\w+)\s*=\s*(\d+)\s*;")
    return {
        name: {field: (int(number), re.sub(r"\s", "", kind)) for kind, field, number in fields.findall(body)}
        for name, body in re.findall(r"message (\w+)\s*\{(.*?)\}", proto, re.DOTALL)
    }


def actual(message: Descriptor) -> dict[str, tuple[int, str]]:
    return {field.name: (field.number, kind(field)) for field in message.fields}


def kind(field: FieldDescriptor) -> str:
    """The field's type as a proto file writes it, without blanks."""
    if field.message_type is not None:
        entry = field.message_type
        if entry.GetOptions().map_entry:
            return f"map<{kind(entry.fields_by_name['key'])},{kind(entry.fields_by_name['value'])}>"
        name = entry.full_name
    else:
        names = {value: name for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
        name = names[field.type].removeprefix("TYPE_").lower()
    return f"repeated{name}" if field.is_repeated else name


WRITTEN = [
    pytest.param(name, fields, id=f"{page} {name}")
    for page, proto in PROTO.items()
    for name, fields in documented(proto).items()
]


def test_the_documents_spell_out_all_these_messages() -> None:
    assert set(documented(PROTO["api.md"])) == {
        "InferenceRequest",
        "InferenceResponse",
        "ModelLoadRequest",
        "ModelLoadReply",
    }
    assert set(documented(PROTO["contract.md"])) == {
        "ModelUnloadRequest",
        "ModelUnloadReply",
        "ModelInfo",
        "ModelList",
        "HealthResponse",
        "SystemStatus",
        "DeviceStatus",
        "InferenceChunk",
    }


@pytest.mark.parametrize(("message", "fields"), WRITTEN)
def test_fields_keep_their_documented_names_numbers_and_types(message: str, fields: dict[str, tuple[int, str]]) -> None:
    assert fields
    found = actual(MESSAGES[message])
    assert {name: found.get(name) for name in fields} == fields


@pytest.mark.parametrize(("message", "fields"), WRITTEN)
def test_added_fields_take_new_numbers(message: str, fields: dict[str, tuple[int, str]]) -> None:
    last = max(number for number, _ in fields.values())
    added = {name: number for name, (number, _) in actual(MESSAGES[message]).items() if name not in fields}
    assert all(number > last for number in added.values()), added


RPC = re.compile(r"rpc (\w+)\s*\((stream )?([\w.]+)\)\s*returns\s*\((stream )?([\w.]+)\)")


@pytest.mark.parametrize("rpc", [rpc for proto in PROTO.values() for rpc in RPC.findall(proto)], ids=lambda rpc: rpc[0])
def test_rpcs_take_and_give_what_is_documented(rpc: tuple[str, str, str, str, str]) -> None:
    name, client_streams, takes, server_streams, gives = rpc
    method = SERVICE.methods_by_name[name]
    assert (method.input_type.full_name, method.output_type.full_name) == (takes, gives)
    assert (method.client_streaming, method.server_streaming) == (bool(client_streams), bool(server_streams))


def test_the_documents_name_seven_rpcs_and_there_is_no_package() -> None:
    assert sum(len(RPC.findall(proto)) for proto in PROTO.values()) == 7
    assert pb.DESCRIPTOR.package == ""


# --- the table ---
def test_names_routes_rpcs_and_actions_are_each_used_once() -> None:
    for used in (
        [operation.name for operation in OPERATIONS],
        [operation.action for operation in OPERATIONS],
        [(operation.route.method, operation.route.path) for operation in OPERATIONS],
        [rpc for operation in OPERATIONS for rpc in [*operation.rpcs, operation.stream_rpc] if rpc],
    ):
        assert len(used) == len(set(used))


def test_every_rpc_performs_an_operation() -> None:
    offered = {rpc for operation in OPERATIONS for rpc in [*operation.rpcs, operation.stream_rpc] if rpc}
    assert offered == set(SERVICE.methods_by_name)


def test_every_documented_action_performs_an_operation() -> None:
    (documented_actions,) = re.findall(r'"action": "([\w|]+)"', API)[:1]
    assert set(documented_actions.split("|")) <= {operation.action for operation in OPERATIONS}


def performs(method: Any, takes: type[BaseModel], gives: Any) -> None:
    """Whether a method of the coordinator is one that transports can call."""
    signature = inspect.signature(method, eval_str=True)
    assert signature.return_annotation == gives
    assert list(signature.parameters.values())[-1].annotation is takes
    assert method.__doc__


@each_operation
def test_the_coordinator_performs_it(operation: Operation) -> None:
    stream = operation.stream
    if not (stream and stream.always):
        method = getattr(Coordinator, operation.name)
        assert inspect.iscoroutinefunction(method)
        performs(method, operation.request, operation.response)
    if stream:
        generator = getattr(Coordinator, stream.method)
        assert inspect.isasyncgenfunction(generator)
        performs(generator, operation.request, AsyncGenerator[stream.chunk])  # type: ignore[name-defined] # a value


@each_operation
def test_it_answers_at_once_or_in_chunks_by_the_rpcs_that_do_so(operation: Operation) -> None:
    stream = operation.stream
    assert bool(operation.stream_rpc) is bool(stream)
    assert bool(operation.rpcs) is not bool(stream and stream.always)
    assert all(not SERVICE.methods_by_name[rpc].server_streaming for rpc in operation.rpcs)
    if operation.stream_rpc:
        assert SERVICE.methods_by_name[operation.stream_rpc].server_streaming
    if stream and not stream.always:
        assert "stream" in operation.request.model_fields
    if stream:
        assert "done" in stream.chunk.model_fields


@each_operation
def test_it_is_documented_with_errors_that_exist(operation: Operation) -> None:
    from modelops.transports.problems import STATUS

    assert operation.summary
    assert set(operation.errors) <= set(STATUS)
    assert len(set(operation.errors)) == len(operation.errors)


def within(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field's type names: itself, or those of a list, a mapping, an alternative."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from within(part)


def same_fields(message: Descriptor, model: type[BaseModel], elsewhere: Set[str] = frozenset()) -> None:
    """The fields of both, and of all that they hold."""
    assert {field.name for field in message.fields} == set(model.model_fields) - elsewhere, model
    for name, field in model.model_fields.items():
        for inner in within(field.annotation):
            nested = message.fields_by_name[name].message_type
            assert nested is not None
            same_fields(nested, inner)


@each_operation
def test_its_messages_have_the_same_fields_in_every_encoding(operation: Operation) -> None:
    elsewhere = NOT_IN_PROTO.get(operation.name, set())
    for rpc in operation.rpcs:
        method = SERVICE.methods_by_name[rpc]
        same_fields(method.input_type, operation.request, elsewhere)
        same_fields(method.output_type, operation.response)
    if operation.stream_rpc and operation.stream:
        method = SERVICE.methods_by_name[operation.stream_rpc]
        same_fields(method.input_type, operation.request, elsewhere)
        same_fields(method.output_type, operation.stream.chunk)


@each_operation
def test_what_its_route_and_its_rpcs_imply_are_fields_of_its_request(operation: Operation) -> None:
    fields = set(operation.request.model_fields)
    assert set(operation.route.query) <= fields
    assert set(re.findall(r"{(\w+)}", operation.route.path)) <= fields
    for implied in operation.rpcs.values():
        assert set(implied) <= fields
