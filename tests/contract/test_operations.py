"""Every operation of the table gives the same answer over REST, gRPC and ZMQ."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Wire
from modelops.api.operations import OPERATIONS
from support import Served

GREEDY = {"model_name": "smollm2", "max_tokens": 16, "temperature": 0.0}
#: A job that waits: at the coordinator with the fake engine none is worked on.
JUDGED = {
    "job_type": "evaluate",
    "model_name": "quick",
    "dataset": [{"prompt": "größer", "completion": "🌊"}, {"prompt": "1", "completion": "2"}],
    "parameters": {"metrics": ["contains", "f1"], "max_tokens": 4},
}
#: A goal that waits: nor are they.
WISHED = {
    "title": "it answers",
    "description": "größer 🌊",
    "objective": {"type": "availability", "models": ["quick"], "probe_seconds": 2.5},
    "limits": {"max_seconds": 3600},
    "metadata": {"team": "search", "ids": [1, 2.5, None, {"x": True}]},
}
#: Stands for the id of the job, or the goal, that was created last.
NEWEST = "the newest"
TWO = {"model_name": "elsewhere", "model_path": "two.gguf"}

#: operation → what to ask. A new operation has no entry here, and so fails.
ASK: dict[str, dict[str, Any]] = {
    "infer": GREEDY | {"input_text": "What is the capital of France?"},
    "chat": GREEDY
    | {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "look_up", "arguments": "{}"}]},
            {"role": "tool", "content": "Paris", "tool_call_id": "1"},
            {"role": "user", "content": "So?", "name": "Ada"},
        ],
        "logprobs": True,
        "top_logprobs": 2,
        "top_k": 40,
        "presence_penalty": -0.5,
        "seed": 7,
    },
    "embed": {"model_name": "vectors", "inputs": ["one two", "three"], "keep_alive": "1h"},
    "rerank": {"model_name": "scores", "query": "a b", "documents": ["a", "c", "b a"], "top_n": 2, "keep_alive": "-1"},
    "list_models": {},
    "get_model": {"model_name": "smollm2"},
    "load_model": {
        "model_name": "other",
        "model_path": "other.gguf",
        "gpu_layers": -1,
        "context_length": 512,
        "slots": 2,
        "cache_type": "q8_0",
        "keep_alive": "5m",
        "pin": True,
        "untuned": True,
    },
    "unload_model": {"model_name": "other"},
    "watch_model": {"model_name": "smollm2"},
    "explain_model": {"model_name": "smollm2"},
    "list_versions": {"model_name": "smollm2"},
    "register_version": TWO,
    "activate_version": {"model_name": "elsewhere", "model_version": "v2"},
    "roll_back": {"model_name": "elsewhere"},
    "remove_version": {"model_name": "doomed", "model_version": "all"},
    "prune": {},
    "create_job": JUDGED | {"priority": "high"},
    "list_jobs": {"status": "pending"},
    "get_job": {"job_id": NEWEST},
    "watch_job": {"job_id": NEWEST, "after": 0},
    "cancel_job": {"job_id": NEWEST, "reason": "no longer wanted"},
    "create_goal": WISHED | {"priority": "high"},
    "list_goals": {"status": "pending"},
    "get_goal": {"goal_id": NEWEST},
    "watch_goal": {"goal_id": NEWEST, "after": 0},
    "cancel_goal": {"goal_id": NEWEST, "reason": "no longer wanted"},
    "status": {},
    "health": {},
}
#: What has to be so before: these are asked of the coordinator with the fake engine. Some of it may be so already.
BEFORE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "embed": [],
    "rerank": [],
    "load_model": [("unload_model", ASK["unload_model"])],
    "unload_model": [("load_model", ASK["load_model"])],
    "register_version": [],
    "activate_version": [("register_version", TWO)],
    "roll_back": [
        ("register_version", TWO),
        *(("activate_version", {"model_name": "elsewhere", "model_version": label}) for label in ("v1", "v2")),
    ],
    "remove_version": [("register_version", TWO | {"model_name": "doomed"})],
    "prune": [],
    "create_job": [],
    "list_jobs": [("create_job", JUDGED)],
    "get_job": [("create_job", JUDGED)],
    "watch_job": [("create_job", JUDGED), ("cancel_job", {"job_id": NEWEST})],
    "cancel_job": [("create_job", JUDGED)],
    "create_goal": [],
    "list_goals": [("create_goal", WISHED)],
    "get_goal": [("create_goal", WISHED)],
    "watch_goal": [("create_goal", WISHED), ("cancel_goal", {"goal_id": NEWEST})],
    "cancel_goal": [("create_goal", WISHED)],
}
#: Ids, and how those that there are are listed.
LISTED: dict[str, tuple[str, dict[str, str]]] = {
    "job_id": ("list_jobs", {}),
    "goal_id": ("list_goals", {"status": "all"}),
}
#: What differs between two equal calls.
VOLATILE = {
    "InferenceResponse": ("latency_ms",),
    "ChatResponse": ("latency_ms",),
    "EmbedResponse": ("latency_ms",),
    "RerankResponse": ("latency_ms",),
    "HealthResponse": ("timestamp",),
    "SystemStatus": ("uptime_seconds", "cpu_usage_percent", "memory_used_mb"),
    "DeviceStatus": ("used_mb", "utilization_percent"),
    "LearningJob": ("job_id", "created_at", "completed_at"),
    "JobEvent": ("at",),
    "Goal": ("goal_id", "created_at", "completed_at"),
    "GoalEvent": ("at",),
}
OVER_GRPC = [(operation.name, dict(implied)) for operation in OPERATIONS for implied in operation.rpcs.values() or [{}]]


def settled(message: Any) -> Message:
    """`message` without what differs between two equal calls."""
    name = message.DESCRIPTOR.name
    for field in VOLATILE.get(name, ()):
        message.ClearField(field)
    if name == "SystemStatus":
        for device in message.devices:
            settled(device)
    if name in ("JobList", "GoalList"):
        listed = message.jobs if name == "JobList" else message.goals
        del listed[1:]  # there are those of other tests, too
        settled(listed[0])
    for field in ("job", "goal"):
        if name == f"{field.title()}Event" and message.HasField(field):
            settled(getattr(message, field))
    if name == "Removal":  # a number is never given twice
        message.removed[:] = [re.sub(r"v\d+$", "vN", removed) for removed in message.removed]
    assert isinstance(message, Message)
    return message


def meant(wire: Wire, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, with the id of the job, or the goal, that they mean."""
    for name, (listing, which) in LISTED.items():
        if fields.get(name) == NEWEST:
            ((_, found),) = wire.ok(listing, **which).ListFields()
            fields = fields | {name: getattr(found[0], name)}
    return fields


def performed(wire: Wire, name: str, fields: dict[str, Any]) -> list[Message]:
    """The operation's answer, or all chunks of one that only streams."""
    fields, stream = meant(wire, fields), BY_NAME[name].stream
    if stream and stream.always:
        return [settled(chunk) for chunk in wire.chunks(name, fields)]
    answer = wire.call(name, fields)
    assert answer.code == "", answer.seen
    if wire.name == "rest":
        assert answer.status == str(BY_NAME[name].route.status)
        conforms(BY_NAME[name].route, answer)
    return [settled(answer.result)]


def test_every_operation_is_asked() -> None:
    assert set(ASK) == set(BY_NAME)


@pytest.mark.engine
@pytest.mark.parametrize(("name", "implied"), OVER_GRPC, ids=lambda value: str(value or ""))
def test_an_operation_answers_the_same_on_all_transports(
    name: str, implied: dict[str, Any], real: dict[str, Wire], quick: dict[str, Wire], quick_served: Served
) -> None:
    answers = []
    for transport in TRANSPORTS:
        wire = quick[transport] if name in BEFORE else real[transport]
        for other, fields in BEFORE.get(name, []):
            wire.call(other, meant(wire, fields))
        if name == "prune":
            left = quick_served.data_dir / "quantised" / f"{'0' * 64}-Q8_0.gguf"
            left.parent.mkdir(exist_ok=True)
            left.write_bytes(b"x" * 2**20)
        answers.append(performed(wire, name, ASK[name] | implied))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]
    assert all(answer != type(answer)() for answer in answers[0])


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
    offered = [rpc for operation in OPERATIONS for rpc in [*operation.rpcs, operation.stream_rpc] if rpc]
    assert all(rpc.encode() in described for rpc in offered)
