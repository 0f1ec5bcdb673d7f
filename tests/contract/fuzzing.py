"""Messages made at random: right ones, nearly right ones, and what no client would send. The same for a seed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor

import model_ops_pb2 as pb
from kept_goals import REACHED
from kept_jobs import ENDED
from modelops.api.operations import OPERATIONS, Operation

Random = random.Random
#: What is asked for half of the time would hide the rest: some operations start a process each time.
SELDOM = {"load_model", "unload_model", "activate_version", "roll_back", "remove_version", "prune"}
SELDOM |= {"create_job", "create_goal"}

_ASKING = {"infer": "llm", "chat": "llm", "embed": "embedding", "rerank": "reranker"}
_NAMES = (
    *("x-request-id", "idempotency-key", "x", "a.b_c-d", "grpc-timeout", "te", "x-bin", "host", "x" * 300, "0"),
    *("authorization", "x-api-key", "grpc-encoding", "content-type", "grpc-tags-bin"),
)
_WORDS = ("Hello", "world", "größer", "水", "🌊", "a\nb", " ", "\t", "quick", "v1")


# --- texts and values ---
def text(rng: Random, longest: int = 40) -> str:
    """A text of any sort."""
    match rng.randrange(8):
        case 0:
            return ""
        case 1:
            return "".join(
                chr(rng.choice((rng.randrange(1, 128), rng.randrange(0x4E00, 0x9FFF)))) for _ in range(longest)
            )
        case 2:
            return rng.choice(
                ("\0", "a\0b", "../../etc/passwd", "%s%n", "' OR 1=1 --", "\u202e", "\ufeff", "𝕏" * longest)
            )
        case 3:
            return "x" * rng.choice((128, 129, 10_000, 10_001, 40_000))
        case _:
            return " ".join(rng.choices(_WORDS, k=rng.randrange(1, 6)))


def odd(rng: Random, depth: int = 2) -> Any:
    """A value that is seldom right, whatever is wanted."""
    few: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice((0, -1, 1, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400)),
        lambda: rng.choice((0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))),
        lambda: text(rng),
        lambda: rng.choice(("\ud800", "\udfff x", "1", "true", "null", "NaN", "1e999", "-5m", "for ever")),
    )
    many: tuple[Callable[[], Any], ...] = (
        lambda: [odd(rng, depth - 1) for _ in range(rng.choice((0, 1, 3, 300)))],
        lambda: {text(rng, 5): odd(rng, depth - 1) for _ in range(rng.randrange(4))},
    )
    return rng.choice(few + many if depth else few)()


@dataclass(frozen=True)
class House:
    """What there is at the coordinator that is fuzzed."""

    models: Mapping[str, str]  # name → type
    paths: tuple[str, ...]
    key: str
    wrong_keys: tuple[str, ...] = field(default=())

    def shown(self, rng: Random) -> str:
        """The key in most messages, none or a wrong one in the others."""
        return self.key if rng.random() < 0.6 else rng.choice(("", *self.wrong_keys))

    def right(self, rng: Random, operation: Operation) -> dict[str, Any]:
        """A request that might be granted, by its fields."""
        fields = operation.request.model_fields
        given = {
            name: self.value(rng, name)
            for name, info in fields.items()
            if info.is_required() or rng.random() < (0.15 if name in ("keep_alive", "wait") else 0.4)
        }
        if operation.name == "create_job" and rng.random() < 0.7:  # of all that may be said, little fits together
            given |= {"job_type": "evaluate", "dataset": _rows(rng), "parameters": {"max_tokens": 4}}
            others = ("dataset_path", "output_model_name", "eval_dataset", "regression_dataset")
            given = {name: value for name, value in given.items() if not name.startswith(others)}
        if (kind := _ASKING.get(operation.name)) and rng.random() < 0.8:
            given["model_name"] = next(name for name, other in self.models.items() if other == kind)
        return given

    def value(self, rng: Random, name: str) -> Any:
        """A good value for the field of that name."""
        makers: Mapping[str, Callable[[], Any]] = {
            "model_name": lambda: rng.choice([*self.models, "nobody"]),
            "model_path": lambda: rng.choice(self.paths),
            "model_version": lambda: rng.choice(("v1", "v2", "v9", "all")),
            "model_type": lambda: rng.choice(("llm", "embedding", "reranker")),
            "input_text": lambda: rng.choice(("Hello", "größer", "x" * 10_000)),
            "messages": lambda: [_turn(rng) for _ in range(rng.randrange(1, 4))],
            "tools": lambda: [{"name": name, "parameters": _schema(rng)} for name in ("look_up", "add")],
            "tool_choice": lambda: rng.choice(("auto", "none", "required", "look_up")),
            "json_schema": lambda: _schema(rng),
            "top_logprobs": lambda: rng.choice((0, 1, 20)),
            "top_k": lambda: rng.choice((0, 40, 2**31 - 1)),
            "min_p": lambda: rng.choice((0.0, 0.05, 1.0)),
            "repeat_penalty": lambda: rng.choice((0.1, 1.1, 10.0)),
            "presence_penalty": lambda: rng.choice((-2.0, 0.0, 2.0)),
            "frequency_penalty": lambda: rng.choice((-2.0, 0.5, 2.0)),
            "system": lambda: rng.choice(("", "Be brief.")),
            "query": lambda: "which one",
            "inputs": lambda: ["one", "two"][: rng.randrange(1, 3)],
            "documents": lambda: ["one", "another one"],
            "stop_sequences": lambda: ["stop"],
            "max_tokens": lambda: rng.choice((1, 2, 50, 2048)),
            "temperature": lambda: rng.choice((0.0, 0.7, 2.0)),
            "top_p": lambda: rng.choice((0.1, 0.9, 1.0)),
            "seed": lambda: rng.randrange(2**32 - 1),
            "top_n": lambda: rng.randrange(3),
            "keep_alive": lambda: rng.choice(("5m", "-1", "300", "1h30m", "0")),
            "gpu_layers": lambda: rng.choice((-1, 0, 1)),
            "context_length": lambda: rng.choice((0, 512, 2**31 - 1)),
            "slots": lambda: rng.choice((0, 1, 4)),
            "cache_type": lambda: rng.choice(("", "f16", "q8_0")),
            "dry_run": lambda: rng.random() < 0.8,
            "job_id": lambda: rng.choice((ENDED, ENDED, "nobody")),
            "job_type": lambda: rng.choice(("lora", "dpo", "evaluate")),
            **dict.fromkeys(("dataset", "eval_dataset", "regression_dataset"), lambda: _rows(rng)),
            **dict.fromkeys(
                ("dataset_path", "eval_dataset_path", "regression_dataset_path"),
                lambda: rng.choice(("rows.jsonl", "none.jsonl", "../../etc/passwd")),
            ),
            "parameters": lambda: rng.choice(({}, {"max_tokens": 4, "metrics": ["f1"]}, {"rank": 8.5, "x": [None]})),
            "output_model_name": lambda: rng.choice(("", "quick:new", "new")),
            "priority": lambda: rng.choice(("low", "critical")),
            "status": lambda: rng.choice(("pending", "cancelled")),
            "goal_id": lambda: rng.choice((REACHED, REACHED, "nobody")),
            "title": lambda: rng.choice(("it answers", "größer", "x" * 128)),
            "description": lambda: text(rng),
            "objective": lambda: _objective(rng, [*self.models, "nobody"]),
            "limits": lambda: rng.choice(({}, {"max_jobs": 2}, {"max_seconds": 1.5}, {"max_jobs": "2"}, {"x": None})),
            "metadata": lambda: {text(rng, 5): rng.choice((None, 1.5, [True], {"a": "b"}))},
            "target_completion": lambda: rng.choice(("2100-01-31T12:00:00Z", "2001-01-31T12:00:00+02:00")),
            "after": lambda: rng.choice((0, 1, 2**53 - 1)),
            "reason": lambda: rng.choice(("", "enough")),
        }
        return makers[name]() if name in makers else rng.random() < 0.5


def _turn(rng: Random) -> dict[str, Any]:
    """A turn of a conversation."""
    turn: dict[str, Any] = {"role": rng.choice(("system", "user", "assistant", "tool")), "content": text(rng)}
    if rng.random() < 0.2:
        turn["tool_calls"] = [{"id": "1", "name": "add", "arguments": rng.choice(("", "{}", '{"a": 1}', "{no JSON"))}]
    if rng.random() < 0.2:
        turn |= {"name": "Ada", "tool_call_id": "1"}
    return turn


def _schema(rng: Random) -> str:
    """A schema as text, mostly."""
    return rng.choice(("", '{"type": "object"}', '{"type": "array", "items": {"enum": [1, "ü"]}}', "{}", "[]", "{no"))


def _rows(rng: Random) -> list[dict[str, Any]]:
    """Rows of a learning job, mostly right."""
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    sets: tuple[list[dict[str, Any]], ...] = (
        [{"prompt": "größer", "completion": "🌊"}],
        [{"text": "one"}, {"messages": turns}],
        [{"prompt": "a", "chosen": "b", "rejected": "c"}],
        [{"prompt": None, "completion": [1.5, {}]}],
        [],
    )
    return rng.choice(sets)


def _objective(rng: Random, names: list[str]) -> dict[str, Any]:
    """An objective, mostly right."""
    name = rng.choice(names)
    objectives: tuple[dict[str, Any], ...] = (
        {"type": "availability", "models": [name], "probe_seconds": rng.choice((0.5, 3600, 0))},
        {"type": "availability", "models": rng.choice(([], names, [name, 1])), "until": "2100-01-31T12:00:00Z"},
        {"type": "serving", "model_name": name, "workload": rng.choice(({}, {"concurrency": 2}, {"requests": []}))},
        {
            "type": "quality",
            "model_name": name,
            "train_dataset": _rows(rng),
            "eval_dataset": _rows(rng),
            "metric": rng.choice(("f1", "perplexity")),
            "target": rng.choice((0.5, 3, -1)),
        },
        {"type": rng.choice(("happiness", "", None, 5)), "x": [{}]},
    )
    return rng.choice(objectives)


def pick(rng: Random) -> Operation:
    """Any operation, those that start or end a process seldom."""
    return rng.choices(OPERATIONS, [4 if operation.name in SELDOM else 10 for operation in OPERATIONS])[0]


# --- bytes ---
def spoilt(rng: Random, raw: bytes) -> bytes:
    """`raw` with something of it changed."""
    data = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                del data[at : at + rng.randrange(1, 9)]
            case 4:
                data[at:at] = data[at : at + rng.randrange(1, 200)]
            case _:
                data[at:at] = rng.choice(
                    (b"\0", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5", b'"', b"{", b"[" * 300)
                )
    return bytes(data)


def noise(rng: Random) -> bytes:
    """Bytes that mean nothing, mostly few."""
    return rng.randbytes(rng.choice((0, 1, 2, 7, 30, 300, 3000)))


# --- protobuf ---
def varint(number: int) -> bytes:
    """As the wire has it; a negative number as 64 bits."""
    number &= 2**64 - 1 if number < 0 else -1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def tagged(number: int, wire_type: int, payload: bytes) -> bytes:
    """A field with its tag."""
    return varint(number << 3 | wire_type) + payload


def _odd_field(rng: Random, numbers: list[int]) -> bytes:
    """A field that is not as the message has it: of another wire type, without an end, too long, or of no number."""
    number = rng.choice((*numbers, 0, 99, 15, 16, 2**29 - 1, 2**32, rng.randrange(1, 40)))
    match rng.randrange(10):
        case 0:
            return tagged(number, 0, varint(rng.choice((0, 1, -1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))))
        case 1:
            return tagged(number, 0, b"\xff" * rng.choice((9, 10, 11, 40)) + b"\x01")
        case 2:
            return tagged(number, 1, rng.randbytes(8)) + tagged(number, 5, rng.randbytes(4))
        case 3:
            return tagged(number, 2, varint(rng.choice((5, 2**31, 2**63))) + b"abc")
        case 4:
            return tagged(number, 3, b"") * rng.choice((1, 10, 5000))
        case 5:
            depth = rng.choice((1, 50, 120))
            return tagged(number, 3, b"") * depth + tagged(number, 4, b"") * depth
        case 6:
            return tagged(number, rng.choice((4, 6, 7)), rng.randbytes(3))
        case 7:
            return tagged(number, 2, varint(3) + rng.choice((b"\xed\xa0\x80", b"\xff\xfe\xfd", b"a\0b")))
        case 8:
            return tagged(number, 1, struct.pack("<d", float("nan"))) + tagged(
                number, 5, struct.pack("<f", float("inf"))
            )
        case _:
            inner = b"x" * rng.choice((0, 10_001, 40_000))
            return tagged(number, 2, varint(len(inner)) + inner)


def protobuf(rng: Random, house: House, rpc: str) -> bytes:
    """A message for the rpc: one that might be granted, one that is nearly so, or none at all."""
    takes = pb.DESCRIPTOR.services_by_name["ModelOps"].methods_by_name[rpc].input_type
    if rng.random() < 0.1:
        return noise(rng)
    operation = next(one for one in OPERATIONS if rpc in one.rpcs or rpc == one.stream_rpc)
    given = {name: value for name, value in house.right(rng, operation).items() if name in takes.fields_by_name}
    parts = [_field(takes.fields_by_name[name], value) for name, value in given.items()]
    if rng.random() < 0.45:
        return b"".join(parts)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(parts) + 1)
        match rng.randrange(5):
            case 0:
                parts.insert(at, _odd_field(rng, [each.number for each in takes.fields]))
            case 1 if parts:
                parts.extend(parts[at - 1 : at] * rng.choice((1, 2, 300)))
            case 2 if parts:
                del parts[at - 1]
            case 3:
                rng.shuffle(parts)
            case _:
                parts = [spoilt(rng, b"".join(parts))]
    return b"".join(parts)


def _field(known: FieldDescriptor, value: Any) -> bytes:
    if isinstance(value, list):
        return b"".join(_field(known, item) for item in value)
    match known.type:
        case FieldDescriptor.TYPE_MESSAGE:
            assert known.message_type
            if known.message_type.full_name == struct_pb2.Struct.DESCRIPTOR.full_name:
                made: Any = struct_pb2.Struct()
                made.update(value)
                inner = made.SerializeToString()
                return tagged(known.number, 2, varint(len(inner)) + inner)
            if known.message_type.full_name == timestamp_pb2.Timestamp.DESCRIPTOR.full_name:
                made = timestamp_pb2.Timestamp()
                made.FromJsonString(value)
                inner = made.SerializeToString()
                return tagged(known.number, 2, varint(len(inner)) + inner)
            inner = b"".join(_field(known.message_type.fields_by_name[name], each) for name, each in value.items())
            return tagged(known.number, 2, varint(len(inner)) + inner)
        case FieldDescriptor.TYPE_STRING:
            encoded = str(value).encode()
            return tagged(known.number, 2, varint(len(encoded)) + encoded)
        case FieldDescriptor.TYPE_FLOAT:
            return tagged(known.number, 5, struct.pack("<f", value))
        case _:
            return tagged(known.number, 0, varint(int(value)))


def metadata(rng: Random, key: str) -> list[tuple[str, str | bytes]]:
    """What goes with a gRPC call: the key in one place or the other, and what nobody asked for.

    What the client's own library does not let through, as a name in capitals, is not tried.
    """
    given: list[tuple[str, str | bytes]] = []
    if key:
        named = ("x-api-key", key), ("authorization", f"Bearer {key}"), ("authorization", f"bearer  {key} ")
        given.append(rng.choice(named))
    for _ in range(rng.choice((0, 0, 0, 1, 2, 30))):
        name = rng.choice(_NAMES)
        value: str | bytes = rng.choice(("", "x", " ", "x" * 129, "x" * 5000, "~!@#$%^&*()", "a, b", "1S", "gzip"))
        given.append((name, rng.randbytes(rng.choice((0, 3, 200))) if name.endswith("-bin") else value))
    rng.shuffle(given)
    return given


# --- JSON ---
@dataclass(frozen=True)
class ZmqMessage:
    """One message: the frames before the body, and the body.

    `action` is what it asks for, and `asks` its request id, where both are sure to be read.
    """

    envelope: tuple[bytes, ...]
    body: bytes
    action: str = "zmq"
    asks: str | None = None

    def __str__(self) -> str:
        return f"{self.body[:500]!r} (of {len(self.body)} bytes, behind {len(self.envelope)} frames)"


def zmq_message(rng: Random, house: House, envelope: tuple[bytes, ...]) -> ZmqMessage:
    """A message for the ROUTER socket, behind the `envelope`."""
    if rng.random() < 0.08:
        return ZmqMessage(envelope, noise(rng))
    operation = pick(rng)
    message: dict[str, Any] = {"action": operation.action, "payload": house.right(rng, operation)}
    if key := house.shown(rng):
        message["api_key"] = key
    if rng.random() < 0.7:
        message["request_id"] = f"r{rng.randrange(10)}"
    if rng.random() < 0.2:
        message["timeout_s"] = rng.choice((0.001, 0.05, 5, 5e-324, 1e300, 10**400))
    if rng.random() < 0.1:
        message["stream"] = rng.random() < 0.8
    if rng.random() < 0.03:
        message |= {"action": "cancel", "payload": {"request_id": f"r{rng.randrange(10)}"}}
    if rng.random() < 0.45:
        body = json.dumps(message, ensure_ascii=rng.random() < 0.5).encode()
        return ZmqMessage(envelope, body, message["action"], message.get("request_id"))
    for _ in range(rng.randrange(1, 4)):
        _twist(rng, message)
    body = json.dumps(message, ensure_ascii=True).encode()
    if rng.random() < 0.1:  # the same names again
        body = b'{"action": "dance", "payload": {"model_name": 5}, "request_id": 7, ' + body[1:]
    if rng.random() < 0.1:
        depth = rng.choice((10, 150, 300, 100_000))
        body = body[:-1] + b', "x": ' + rng.choice((b"[", b'{"a":')) * depth + b"]" * rng.choice((0, depth)) + b"}"
    if rng.random() < 0.35:
        body = spoilt(rng, body)
    return ZmqMessage(envelope, body)


def _twist(rng: Random, message: dict[str, Any]) -> None:
    """Put something wrong somewhere into the message."""
    places = [message]
    if isinstance(message.get("payload"), dict):
        places.append(message["payload"])
    place = rng.choice(places)
    match rng.randrange(4):
        case 0 if place:
            del place[rng.choice(list(place))]
        case 1:
            place[text(rng, 8)] = odd(rng)
        case _ if place:
            place[rng.choice(list(place))] = odd(rng)
        case _:
            place["action"] = text(rng)


# --- what is no message at all ---
def _greeting(mechanism: bytes) -> bytes:
    return b"\xff" + b"\0" * 8 + b"\x7f\x03\0" + mechanism.ljust(20, b"\0") + b"\0" * 32


_GREETING = _greeting(b"NULL")
_READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03REQ"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def connection(rng: Random) -> bytes:
    """What a connection begins with that speaks ZMTP or HTTP/2 badly, or not at all."""
    begins = rng.choice(
        (
            b"",
            _GREETING[: rng.randrange(len(_GREETING))],
            _GREETING,
            _GREETING + _READY,
            _greeting(rng.choice((b"PLAIN", b"CURVE", b"", b"X" * 20))),
            b"\x01\0",  # ZMTP 1.0
            b"\xff" + b"\0" * 8 + b"\x7f\x01\x05",  # ZMTP 2.0
            _HTTP2,
            _HTTP2 + b"\0\0\0\x04\0\0\0\0\0",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        )
    )
    return begins + rng.choice((b"", noise(rng), b"\x02" + b"\xff" * 8 + noise(rng), b"\0\xff" + noise(rng)))
