"""Every operation of the table gives the same answer over REST, gRPC and ZMQ."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.wires import BY_NAME, TRANSPORTS, Wire
from modelops.api.operations import OPERATIONS
from support import Served

GREEDY = {"model_name": "smollm2", "max_tokens": 16, "temperature": 0.0}

#: operation → what to ask. A new operation has no entry here, and so fails.
ASK: dict[str, dict[str, Any]] = {
    "infer": GREEDY | {"input_text": "What is the capital of France?"},
    "list_models": {},
    "get_model": {"model_name": "smollm2"},
    "load_model": {"model_name": "other", "model_path": "other.gguf", "gpu_layers": -1},
    "unload_model": {"model_name": "other"},
    "status": {},
    "health": {},
}
#: What changes the state, and what changes it back: these are asked of the coordinator with the fake engine.
UNDO = {"load_model": "unload_model", "unload_model": "load_model"}
#: What differs between two equal calls.
VOLATILE = {
    "InferenceResponse": ("latency_ms",),
    "HealthResponse": ("timestamp",),
    "SystemStatus": ("uptime_seconds", "cpu_usage_percent", "memory_used_mb"),
    "DeviceStatus": ("used_mb", "utilization_percent"),
}
OVER_GRPC = [(operation.name, dict(implied)) for operation in OPERATIONS for implied in operation.rpcs.values()]


def settled(message: Any) -> Message:
    """`message` without what differs between two equal calls."""
    for name in VOLATILE.get(message.DESCRIPTOR.name, ()):
        message.ClearField(name)
    for device in getattr(message, "devices", ()):
        settled(device)
    assert isinstance(message, Message)
    return message


@pytest.mark.engine
@pytest.mark.parametrize(("name", "implied"), OVER_GRPC, ids=lambda value: str(value or ""))
def test_an_operation_answers_the_same_on_all_transports(
    name: str, implied: dict[str, Any], real: dict[str, Wire], quick: dict[str, Wire]
) -> None:
    answers = []
    for transport in TRANSPORTS:
        wire = quick[transport] if name in UNDO else real[transport]
        if name in UNDO:
            wire.call(UNDO[name], ASK[UNDO[name]])  # it may be so already
        answer = wire.call(name, ASK[name] | implied)
        assert answer.code == "", answer.seen
        if transport == "rest":
            assert answer.status == str(BY_NAME[name].route.status)
        answers.append(settled(answer.result))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] != type(answers[0])()


@pytest.mark.engine
@pytest.mark.parametrize(
    "fields",
    [
        {"input_text": "What is the capital of France?"},
        {"input_text": "Write one sentence about the sea. Ünïcödé, 日本語 and 🌊 are welcome.", "max_tokens": 24},
        {"input_text": "The three primary colours are red,", "raw": True},
        {"input_text": "Who are you?", "system": "You are a pirate.", "top_p": 0.5},
        {"input_text": "Count from one to ten in words.", "stop_sequences": ["three", "four"], "max_tokens": 40},
    ],
    ids=["short", "unicode", "raw", "system", "stop"],
)
def test_equal_greedy_requests_give_equal_text_everywhere(fields: dict[str, Any], real: dict[str, Wire]) -> None:
    request = GREEDY | fields
    answers = {}
    for transport in TRANSPORTS:
        answer = real[transport].call("infer", request)
        assert answer.code == "", answer.seen
        answers[transport] = answer.result
        answers[f"{transport} stream"] = list(real[transport].stream(request))[-1].final
    assert {answer.output_text for answer in answers.values()} == {answers["rest"].output_text}
    assert {answer.tokens_generated for answer in answers.values()} == {answers["rest"].tokens_generated}
    assert {answer.model_version for answer in answers.values()} == {"v1"}
    assert all(answer.success and not answer.error_message and answer.latency_ms > 0 for answer in answers.values())
    assert answers["rest"].output_text.strip()
    assert 0 < answers["rest"].tokens_generated <= request["max_tokens"]
    assert not any(stop in answers["rest"].output_text for stop in fields.get("stop_sequences", ()))


@pytest.mark.parametrize("service", ["", "ModelOps"])
def test_grpc_health_says_serving(service: str, served: Served) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_grpc_reflection_describes_the_service(served: Served) -> None:
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="ModelOps"),
    ]
    with grpc.insecure_channel(served.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        services, files = stub.ServerReflectionInfo(iter(questions), timeout=10)
    named = {service.name for service in services.list_services_response.service}
    assert {"ModelOps", "grpc.health.v1.Health"} <= named
    described = b"".join(files.file_descriptor_response.file_descriptor_proto)
    assert all(rpc.encode() in described for operation in OPERATIONS for rpc in operation.rpcs)
