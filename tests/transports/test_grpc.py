"""What only gRPC has: field numbers, message limits, metadata, health watchers, one server for each port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

import model_ops_pb2 as pb
from contract.wires import Grpc, refusal
from modelops.api.errors import InvalidRequest
from modelops.api.goals import CreateGoalRequest, Goal, GoalEvent
from modelops.transports.grpc import _encode, _fields
from support import Served, serving

SPECIFICATION = Path(__file__).parents[2] / "docs/spec"
#: What JSON may hold, and a little more.
plain = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["\ud800", 10**400, -(10**309)]))
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@pytest.fixture
def rpc(steady: Served) -> Iterator[Grpc]:
    client = Grpc(steady)
    yield client
    client.close()


def promised_fields() -> list[tuple[str, str, str, int]]:
    """(message, type, field, number) of every message that the specification spells out."""
    found = []
    for file in ("api.md", "contract.md"):
        text = (SPECIFICATION / file).read_text()
        for message, body in re.findall(r"^message (\w+)\s*\{(.*?)\}", text, re.MULTILINE | re.DOTALL):
            for kind, name, number in re.findall(r"((?:repeated )?[\w.]+(?:<\w+, ?\w+>)?) (\w+) = (\d+);", body):
                found.append((message, kind, name, int(number)))
    return found


def written_type(field: FieldDescriptor) -> str:
    """The field's type as a .proto file has it."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return f"map<{', '.join(written_type(part) for part in message.fields)}>"
    plain = {
        FieldDescriptor.TYPE_STRING: "string",
        FieldDescriptor.TYPE_BOOL: "bool",
        FieldDescriptor.TYPE_INT32: "int32",
        FieldDescriptor.TYPE_INT64: "int64",
        FieldDescriptor.TYPE_FLOAT: "float",
        FieldDescriptor.TYPE_DOUBLE: "double",
    }
    name = plain[field.type] if message is None else message.full_name
    return f"repeated {name}" if field.is_repeated else name


def test_field_numbers_and_types_are_as_promised() -> None:
    promised = promised_fields()
    assert len(promised) == 65
    for message, kind, name, number in promised:
        field = pb.DESCRIPTOR.message_types_by_name[message].fields_by_name[name]
        assert (field.number, written_type(field)) == (number, kind), f"{message}.{name}"


def test_every_promised_rpc_is_offered_without_a_package() -> None:
    service = pb.DESCRIPTOR.services_by_name["ModelOps"]
    assert service.full_name == "ModelOps"
    text = (SPECIFICATION / "api.md").read_text() + (SPECIFICATION / "contract.md").read_text()
    promised = re.findall(r"^\s*rpc (\w+) \(([\w.]+)\) returns \((stream )?([\w.]+)\);", text, re.MULTILINE)
    assert len(promised) == 7
    for name, takes, stream, gives in promised:
        method = service.methods_by_name[name]
        assert (method.input_type.full_name, method.output_type.full_name) == (takes, gives)
        assert (method.client_streaming, method.server_streaming) == (False, bool(stream))


def in_doubles(value: Any) -> Any:
    """The value with each number as protobuf's Struct has it."""
    match value:
        case dict():
            return {name: in_doubles(each) for name, each in value.items()}
        case list():
            return [in_doubles(each) for each in value]
        case int() if not isinstance(value, bool):
            return float(value)
    return value


@given(values, st.lists(st.booleans(), max_size=35))
def test_whatever_object_is_taken_can_be_told(value: Any, around: list[bool]) -> None:
    for as_list in around:
        value = [value] if as_list else {"": value}
    asked = {"title": "x", "objective": {"type": "availability"}, "metadata": {"x": value}}
    try:
        taken = CreateGoalRequest.parse(asked).metadata
    except InvalidRequest:
        return
    now = datetime(2030, 1, 31, tzinfo=UTC)
    goal = Goal(goal_id="x", title="x", status="pending", created_at=now, metadata=taken)
    event = GoalEvent(number=1, at=now, kind="state", goal=goal, done=True)
    read = _fields(pb.GoalEvent.FromString(_encode(pb.GoalEvent, event)))
    assert in_doubles(read["goal"]["metadata"]) == in_doubles({"x": value})


def test_a_message_over_our_limit_has_its_reason_and_over_the_librarys_has_none(rpc: Grpc) -> None:
    for size, code in ((2 * 2**20, "too_large"), (65 * 2**20, "")):
        answer = rpc.call("infer", {"model_name": "steady", "input_text": "x" * size})
        assert (answer.status, answer.code) == ("RESOURCE_EXHAUSTED", code)
    assert rpc.call("health").result.status == "healthy"


@pytest.mark.parametrize("method", ["Infer", "InferStream"])
def test_the_callers_request_id_comes_back_with_a_refusal(method: str, steady: Served) -> None:
    with grpc.insecure_channel(steady.grpc) as channel, pytest.raises(grpc.RpcError) as error:
        ask: Any = channel.unary_stream(f"/ModelOps/{method}", None, None)  # one answer is a short stream
        list(ask(b"", metadata=[("x-request-id", "mine")], timeout=10))
    answer = refusal(error.value)
    assert (answer.code, answer.request_id) == ("invalid_request", "mine")


def test_deadlines_that_pass_while_the_refusal_is_sent_are_no_errors_of_ours(steady: Served) -> None:
    request = pb.InferenceRequest(model_name="steady", input_text="Hello", max_tokens=500).SerializeToString()
    with grpc.insecure_channel(steady.grpc) as channel:
        ask: Any = channel.unary_unary("/ModelOps/Infer", None, None)
        for _ in range(8):
            calls = [ask.future(request, timeout=0.02 + number * 0.0005) for number in range(50)]
            assert {call.code() for call in calls} <= {
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,  # more wait than may
            }
    assert "Traceback" not in steady.log.read_text()


def test_callers_who_go_while_a_chunk_is_sent_are_no_errors_of_ours(steady: Served) -> None:
    request = pb.WatchModelRequest(model_name="steady").SerializeToString()  # of a model at rest: one chunk
    with grpc.insecure_channel(steady.grpc) as channel:
        watch: Any = channel.unary_stream("/ModelOps/WatchModel", None, None)
        for _ in range(60):  # some of six thousand go just then
            calls = [watch(request, timeout=0.001 + number * 0.0005) for number in range(100)]
            assert {call.code() for call in calls} <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert "Traceback" not in steady.log.read_text()


def test_callers_who_are_gone_when_told_that_there_is_no_such_method_are_no_errors(steady: Served) -> None:
    with grpc.insecure_channel(steady.grpc) as channel:
        ask: Any = channel.unary_unary("/ModelOps/Dance", None, None)
        for _ in range(4):  # some of a hundred are gone just then
            calls = [ask.future(b"", timeout=0.001) for _ in range(500)]
            assert {call.code() for call in calls} <= {
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNIMPLEMENTED,
                grpc.StatusCode.UNAVAILABLE,  # more streams than one connection may have
            }
    assert "Traceback" not in steady.log.read_text()


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_the_librarys_own_services_refuse_what_is_no_request(method: str, steady: Served) -> None:
    with grpc.insecure_channel(steady.grpc) as channel:
        ask: Any = channel.stream_stream(f"/{method}", None, None)  # a single message is a short stream
        for raw, code in (
            (b"\xff\xff", "invalid_request"),
            (b"\x0a\x01\xff", "invalid_request"),
            (b"x" * 2**21, "too_large"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                list(ask(iter([raw]), timeout=10))
            answer = refusal(error.value)
            assert (answer.code, answer.request_id != "") == (code, True)
    assert "Traceback" not in steady.log.read_text()


def test_reflection_names_the_services(steady: Served) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    with grpc.insecure_channel(steady.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    services = {service.name for service in answer.list_services_response.service}
    assert services == {"ModelOps", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def test_a_second_coordinator_on_the_port_is_refused(steady: Served, tmp_path: Path) -> None:
    port = steady.grpc.rpartition(":")[2]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MODELOPS_")}
    argv = [sys.executable, "-m", "modelops.cli", "serve", "--json", "--grpc-port", port]
    argv += ["--rest-port", "0", "--zmq-port", "0"]
    ended = subprocess.run(
        argv, env=env | {"MODELOPS_DATA_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode != 0
    assert f"{port} is already in use" in ended.stderr
    assert "--grpc-port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_watchers_of_health_are_told_of_the_end(tmp_path: Path) -> None:
    states = health_pb2.HealthCheckResponse
    with serving(tmp_path, fake={}) as running, grpc.insecure_channel(running.grpc) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="ModelOps"), timeout=30)
        assert next(watch).status == states.SERVING
        running.process.send_signal(signal.SIGTERM)
        assert next(watch).status == states.NOT_SERVING
        assert running.stop() == 0
