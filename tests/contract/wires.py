"""One way to ask over each transport, so that tests can compare them: the same call, the same words for the answer."""

from __future__ import annotations

import abc
import contextlib
import json
import math
import re
import uuid
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast
from urllib.parse import quote, urlencode

import grpc
import httpx
import zmq
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

import model_ops_pb2 as pb
from modelops.api.operations import OPERATIONS, Operation
from support import Served

TRANSPORTS = ("rest", "grpc", "zmq")
BY_NAME: dict[str, Operation] = {operation.name: operation for operation in OPERATIONS}
Fields = Mapping[str, Any]

#: Longer than anything here takes; a call that hangs fails by it.
PATIENCE_S = 60.0


@dataclass
class Answer:
    """What came back. `seen` is everything that reached the caller; `status` is HTTP's number or gRPC's name."""

    seen: str
    code: str = ""
    status: str = ""
    message: str = ""
    request_id: str = ""
    retry_after_s: float | None = None
    details: dict[str, str] = field(default_factory=dict)
    result: Any = None  # the protobuf message of the answer, whatever the transport; None where it was refused
    json: Any = None  # REST and ZMQ: the answer as it was sent
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A stream that was refused before its first chunk."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.seen)
        self.answer = answer


class Wire(abc.ABC):
    """A client of one transport. Safe to share between threads."""

    name: ClassVar[str]
    #: The key that is shown with each call; none where it is empty.
    key: str = ""
    #: What a create is called, so that it can be repeated; ZMQ has its request id for that.
    create_key: str | None = None
    #: The trace context that is sent with each call: `traceparent`, `tracestate`.
    trace: Mapping[str, str] = {}

    @abc.abstractmethod
    def call(self, name: str, fields: Fields | None = None, *, timeout_s: float | None = None) -> Answer:
        """Perform the operation `name`."""

    def ok(self, name: str, /, **fields: Any) -> Any:
        """The result of an operation that is not refused."""
        answer = self.call(name, fields)
        assert answer.code == "", answer.seen
        return answer.result

    def info(self, model: str) -> pb.ModelInfo:
        """How the model stands."""
        found: pb.ModelInfo = self.ok("get_model", model_name=model)
        return found

    @abc.abstractmethod
    def chunks(self, name: str, fields: Fields, *, timeout_s: float | None = None) -> Generator[Any]:
        """The operation `name` in chunks; closing the iterator hangs up. Raises Refused."""

    def stream(self, fields: Fields, *, timeout_s: float | None = None) -> Generator[pb.InferenceChunk]:
        """`infer` in chunks."""
        yield from self.chunks("infer", fields, timeout_s=timeout_s)

    def events(self, model: str, *, timeout_s: float | None = None) -> Generator[pb.ModelEvent]:
        """`watch_model`."""
        yield from self.chunks("watch_model", {"model_name": model}, timeout_s=timeout_s)

    @abc.abstractmethod
    def send(self, operation: str, raw: bytes) -> Answer:
        """Send `raw` as the body of `operation` (REST: POST; ZMQ: the whole message), whatever it is."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connections."""


def reply_of(name: str) -> type[Message]:
    """The protobuf message that answers the operation."""
    kind: type[Message] = getattr(pb, BY_NAME[name].response.__name__)
    return kind


def chunk_of(name: str) -> type[Message]:
    """The protobuf message of each chunk that answers the operation."""
    stream = BY_NAME[name].stream
    assert stream
    kind: type[Message] = getattr(pb, stream.chunk.__name__)
    return kind


def fields_of(name: str) -> Collection[str]:
    """The fields of each chunk that answers the operation."""
    return chunk_of(name).DESCRIPTOR.fields_by_name.keys()


def as_message(name: str, value: Any) -> Message:
    """The JSON answer as the protobuf message; fails on a field that the message does not have. REST answers some as
    arrays."""
    array = BY_NAME[name].route.array
    return json_format.ParseDict({array: value} if array and isinstance(value, list) else value, reply_of(name)())


class Rest(Wire):
    name = "rest"

    def __init__(self, served: Served) -> None:
        self._http = httpx.Client(base_url=served.rest, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None))

    def call(self, name: str, fields: Fields | None = None, *, timeout_s: float | None = None) -> Answer:
        method, path, body = _http(BY_NAME[name], dict(fields or {}))
        return self.request(name, method, path, body, self._headers(timeout_s))

    def send(self, operation: str, raw: bytes) -> Answer:
        method, path, _ = _http(BY_NAME[operation], {})
        return self.request(operation, method, path, raw, self._headers(None))

    def request(self, operation: str, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        response = self._http.request(method, path, content=body, headers=headers)
        return _from_http(operation, response, response.content)

    def chunks(self, name: str, fields: Fields, *, timeout_s: float | None = None) -> Generator[Any]:
        wanted = {"stream": True} if "stream" in BY_NAME[name].request.model_fields else {}
        method, path, body = _http(BY_NAME[name], {**fields, **wanted})
        with self._http.stream(method, path, content=body, headers=self._headers(timeout_s)) as response:
            if response.is_error:
                raise Refused(_from_http(name, response, response.read()))
            assert response.headers["content-type"].startswith("text/event-stream")
            number = ""
            for line in response.iter_lines():
                if line.startswith("id: "):
                    number = line[4:]
                elif line and line != ":":  # a sign of life
                    assert line.startswith("data: ")
                    told = json.loads(line[6:])
                    assert number == str(told.get("number", ""))
                    yield json_format.ParseDict(told, chunk_of(name)())

    def _headers(self, timeout_s: float | None) -> dict[str, str]:
        timeout = {} if timeout_s is None else {"X-Request-Timeout": str(timeout_s)}
        shown = {"X-API-Key": self.key} if self.key else {}
        named = {} if self.create_key is None else {"Idempotency-Key": self.create_key}
        return {"Content-Type": "application/json"} | timeout | shown | named | dict(self.trace)

    def close(self) -> None:
        self._http.close()


class Grpc(Wire):
    name = "grpc"

    def __init__(self, served: Served) -> None:
        self._channel = grpc.insecure_channel(served.grpc, options=[("grpc.max_send_message_length", -1)])

    def call(self, name: str, fields: Fields | None = None, *, timeout_s: float | None = None) -> Answer:
        operation = BY_NAME[name]
        given = dict(fields or {})
        # The rpc whose name implies what the fields say: `all` is an rpc of its own.
        rpc, implied = max(
            (item for item in operation.rpcs.items() if item[1].items() <= given.items()), key=lambda item: len(item[1])
        )
        left = {key: value for key, value in given.items() if key not in implied}
        return self.unary(name, rpc, _takes(rpc)(**left).SerializeToString() if left else b"", timeout_s)

    def send(self, operation: str, raw: bytes) -> Answer:
        return self.unary(operation, next(iter(BY_NAME[operation].rpcs)), raw, None)

    def unary(self, name: str, rpc: str, raw: bytes, timeout_s: float | None) -> Answer:
        method: Any = self._channel.unary_unary(f"/ModelOps/{rpc}", None, None)
        try:
            reply, call = method.with_call(raw, timeout=timeout_s or PATIENCE_S, metadata=self._metadata())
        except grpc.RpcError as error:
            return refusal(error)
        result = reply_of(name).FromString(reply)
        return Answer(seen=f"{result} {call.trailing_metadata()}", status="OK", result=result)

    def chunks(self, name: str, fields: Fields, *, timeout_s: float | None = None) -> Generator[Any]:
        rpc = BY_NAME[name].stream_rpc
        assert rpc
        method: Any = self._channel.unary_stream(f"/ModelOps/{rpc}", None, None)
        raw = _takes(rpc)(**fields).SerializeToString()
        call = method(raw, timeout=timeout_s or PATIENCE_S, metadata=self._metadata())
        try:
            for chunk in call:
                yield chunk_of(name).FromString(chunk)
        except grpc.RpcError as error:
            raise Refused(refusal(error)) from None
        finally:
            call.cancel()

    def _metadata(self) -> list[tuple[str, str]]:
        named = [] if self.create_key is None else [("idempotency-key", self.create_key)]
        return [("x-api-key", self.key)] * bool(self.key) + named + list(self.trace.items())

    def close(self) -> None:
        self._channel.close()


class Zmq(Wire):
    """Each call has a connection of its own, closed after it."""

    name = "zmq"

    def __init__(self, served: Served) -> None:
        self._address = served.zmq
        self._context = zmq.Context()

    @contextlib.contextmanager
    def dealer(self) -> Iterator[zmq.Socket[bytes]]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._address)
        try:
            yield socket
        finally:
            socket.close()

    def call(self, name: str, fields: Fields | None = None, *, timeout_s: float | None = None) -> Answer:
        request_id = uuid.uuid4().hex if self.create_key is None else self.create_key
        message: dict[str, Any] = {"action": BY_NAME[name].action, "request_id": request_id}
        message |= (
            {"payload": fields or {}}
            | ({"timeout_s": timeout_s} if timeout_s else {})
            | self._shown()
            | dict(self.trace)
        )
        answer = self.send(name, json.dumps(message).encode())
        assert answer.request_id == message["request_id"]
        return answer

    def send(self, operation: str, raw: bytes) -> Answer:
        with self.dealer() as socket:
            socket.send_multipart([b"", raw])
            return _from_zmq(operation, receive(socket))

    def chunks(self, name: str, fields: Fields, *, timeout_s: float | None = None) -> Generator[Any]:
        message: dict[str, Any] = {"action": BY_NAME[name].action, "payload": dict(fields), "request_id": "s"}
        message |= {"stream": True} if "stream" in BY_NAME[name].request.model_fields else {}
        message |= ({"timeout_s": timeout_s} if timeout_s else {}) | self._shown() | dict(self.trace)
        with self.dealer() as socket:
            socket.send_multipart([b"", json.dumps(message).encode()])
            while True:
                told = receive(socket)
                assert told["request_id"] == "s"
                if told["result"] is None:
                    raise Refused(_from_zmq(name, told))
                chunk: Any = json_format.ParseDict(told["result"], chunk_of(name)())
                assert told["done"] is chunk.done
                cut_short = "final" in fields_of(name) and chunk.done and not chunk.final.success
                assert told["success"] is not cut_short
                yield chunk
                if chunk.done:
                    # "done" is the last message of the stream: what follows is the answer to the next request.
                    following = {"action": "health", "request_id": "next"} | self._shown()
                    socket.send_multipart([b"", json.dumps(following).encode()])
                    assert receive(socket)["request_id"] == "next"
                    return

    def _shown(self) -> dict[str, str]:
        return {"api_key": self.key} if self.key else {}

    def close(self) -> None:
        self._context.destroy(linger=0)


def receive(socket: zmq.Socket[bytes], seconds: float = PATIENCE_S) -> dict[str, Any]:
    """The next message of a DEALER socket, its empty delimiter taken off."""
    assert socket.poll(int(seconds * 1000)), "no answer"
    *envelope, body = socket.recv_multipart()
    assert envelope == [b""]
    answer = json.loads(body)
    assert isinstance(answer, dict)
    return answer


@contextlib.contextmanager
def connected(served: Served, key: str = "") -> Iterator[dict[str, Wire]]:
    """A client of each transport, showing `key`."""
    wires: dict[str, Wire] = {"rest": Rest(served), "grpc": Grpc(served), "zmq": Zmq(served)}
    for wire in wires.values():
        wire.key = key
    try:
        yield wires
    finally:
        for wire in wires.values():
            wire.close()


def refusal(error: grpc.RpcError) -> Answer:
    """What a failed gRPC call says, from its status and its trailers."""
    call = cast("grpc.Call", error)  # what is raised is both, which their types cannot say
    status = call.code()
    answer = Answer(seen="", status=status.name, message=call.details() or "")
    trailers: dict[str, Any] = dict(tuple(call.trailing_metadata() or ()))
    rich = status_pb2.Status.FromString(trailers.pop("grpc-status-details-bin", b""))
    info, retry, request = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    for detail in rich.details:
        if detail.Unpack(info):
            assert info.domain == "modelops"
            assert (rich.code, rich.message) == (status.value[0], answer.message)
            answer.code, answer.details = info.reason.lower(), dict(info.metadata)
        elif detail.Unpack(retry):
            answer.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(request):
            answer.request_id = request.request_id
            assert trailers["x-request-id"] == request.request_id
    answer.seen = f"{answer.message} {rich} {trailers}"
    return answer


def _takes(rpc: str) -> type[Message]:
    kind: type[Message] = getattr(pb, pb.DESCRIPTOR.services_by_name["ModelOps"].methods_by_name[rpc].input_type.name)
    return kind


def _http(operation: Operation, fields: dict[str, Any]) -> tuple[str, str, bytes | None]:
    route = operation.route
    path = route.path
    for name in re.findall(r"{(\w+)}", path):
        path = path.replace(f"{{{name}}}", quote(str(fields.pop(name, "")), safe=""))
    given = {name: fields.pop(name) for name in route.query if name in fields}
    query = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    body = json.dumps(fields).encode() if route.method == "POST" else None
    return route.method, f"{path}?{urlencode(query)}" if query else path, body


def _from_http(operation: str, response: httpx.Response, body: bytes) -> Answer:
    headers = dict(response.headers)
    answer = Answer(seen=f"{headers} {body.decode()}", status=str(response.status_code), headers=headers)
    answer.request_id = headers["x-request-id"]
    answer.json = told = json.loads(body)
    if not response.is_error:
        assert headers["content-type"] == "application/json"
        answer.result = as_message(operation, told)
        return answer
    assert headers["content-type"] == "application/problem+json"
    assert told["request_id"] == answer.request_id
    assert told["status"] == response.status_code
    assert told["success"] is False
    assert told["error_message"] == told["detail"]
    answer.code, answer.message = told["code"], told["detail"]
    answer.retry_after_s, answer.details = told.get("retry_after_s"), told.get("details", {})
    if answer.retry_after_s is not None:
        assert int(headers["retry-after"]) == max(1, math.ceil(answer.retry_after_s))
    return answer


def _from_zmq(operation: str, told: dict[str, Any]) -> Answer:
    answer = Answer(seen=json.dumps(told), json=told, request_id=told["request_id"])
    assert told["latency_ms"] >= 0
    if told["success"]:
        assert told["error"] is None
        answer.result = as_message(operation, told["result"])
        return answer
    assert told["result"] is None
    answer.code, answer.message = told["code"], told["error"]
    answer.retry_after_s, answer.details = told.get("retry_after_s"), told.get("details", {})
    return answer
