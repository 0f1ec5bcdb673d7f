"""gRPC: service ModelOps as in proto/model_ops.proto, grpc.health.v1.Health, and server reflection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

# Engines are started by fork and exec, to which the library's own fork handlers only object.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


import grpc
from google.protobuf import any_pb2, duration_pb2, empty_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import model_ops_pb2 as pb
from modelops.api.errors import AlreadyLoaded, InvalidRequest, ModelOpsError, TooLarge
from modelops.api.operations import OPERATIONS, Operation
from modelops.api.types import Response
from modelops.service import Call, Coordinator, internal

#: The table from codes to gRPC statuses. AlreadyLoaded, a conflict too, is ALREADY_EXISTS.
STATUS: dict[str, grpc.StatusCode] = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "conflict": grpc.StatusCode.FAILED_PRECONDITION,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "rate_limited": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal": grpc.StatusCode.INTERNAL,
    "not_implemented": grpc.StatusCode.UNIMPLEMENTED,
    "engine_failed": grpc.StatusCode.INTERNAL,
    "overloaded": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "insufficient_memory": grpc.StatusCode.RESOURCE_EXHAUSTED,
}

SERVICE = "ModelOps"
DOMAIN = "modelops"
#: Fields whose zero is a value of its own; any other zero of a plain field means "not given" in proto3.
_ZERO_COUNTS = {"temperature"}
#: What the library itself refuses. Between our own limit and this one a request is read, and refused with its reason.
_HARD_LIMIT = 64 * 2**20

_Context = grpc.aio.ServicerContext[bytes, bytes]


class GrpcServer:
    """Listens on one address; `start` returns when it accepts calls, `stop` when the last has ended."""

    def __init__(self, coordinator: Coordinator, host: str, port: int, max_body_bytes: int) -> None:
        self._host = f"[{host}]" if ":" in host else host
        self._port = port
        self._max_body_bytes = max_body_bytes
        self._coordinator = coordinator
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where to reach it."""
        return f"{self._host}:{self._port}"

    @property
    def state(self) -> str:
        """For health."""
        return "healthy" if self._server else "unhealthy: not listening"

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a helper
                ("grpc.max_receive_message_length", _HARD_LIMIT),
            ]
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        try:
            self._port = server.add_insecure_port(f"{self._host}:{self._port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await server.start()
        self._server = server
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tell health watchers that this server takes no new work."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self) -> None:
        """End the calls in flight, and listening."""
        server, self._server = self._server, None
        if server:
            await server.stop(grace=1.0)

    async def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for operation in OPERATIONS:
            for rpc, implied in operation.rpcs.items():
                handlers[rpc] = grpc.unary_unary_rpc_method_handler(self._unary(operation, rpc, implied))
            if operation.stream_rpc and operation.stream:
                handlers[operation.stream_rpc] = grpc.unary_stream_rpc_method_handler(
                    self._stream(operation, operation.stream_rpc, operation.stream.method)
                )
        return handlers

    # The handlers take and return bytes: decoding is ours, so that what cannot be decoded is refused as documented.
    def _unary(
        self, operation: Operation, rpc: str, implied: Mapping[str, Any]
    ) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        method = getattr(self._coordinator, operation.name)
        takes, gives = _messages(rpc)

        async def handle(raw: bytes, context: _Context) -> bytes:
            call = _call(context)
            try:
                request = operation.request.parse({**self._decode(takes, raw), **implied})
                return _encode(gives, await method(call, request))
            except ModelOpsError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - the last line of defence: it answers, and logs all
                failure = internal(call, error)
            await _abort(context, call, failure)

        return handle

    def _stream(
        self, operation: Operation, rpc: str, method: str
    ) -> Callable[[bytes, _Context], AsyncGenerator[bytes]]:
        takes, gives = _messages(rpc)

        async def handle(raw: bytes, context: _Context) -> AsyncGenerator[bytes]:
            call = _call(context)
            try:
                request: Any = operation.request.parse(self._decode(takes, raw))
                async with contextlib.aclosing(getattr(self._coordinator, method)(call, request)) as chunks:
                    async for chunk in chunks:
                        yield _encode(gives, chunk)
                return
            except ModelOpsError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - as above
                failure = internal(call, error)
            await _abort(context, call, failure)

        return handle

    def _decode(self, kind: type[Message], raw: bytes) -> dict[str, Any]:
        if len(raw) > self._max_body_bytes:
            raise TooLarge(f"the request is over {self._max_body_bytes} bytes")
        try:
            message = kind.FromString(raw)
        except DecodeError:
            raise InvalidRequest(
                f"the request is no valid {kind.DESCRIPTOR.name}, or a text in it is not UTF-8"
            ) from None
        return _fields(message)


def _messages(rpc: str) -> tuple[type[Message], type[Message]]:
    method = pb.DESCRIPTOR.services_by_name[SERVICE].methods_by_name[rpc]

    def of(name: str) -> type[Message]:
        return empty_pb2.Empty if name == "Empty" else getattr(pb, name)

    return of(method.input_type.name), of(method.output_type.name)


def _fields(message: Message) -> dict[str, Any]:
    """The message's given fields, by name. Raises InvalidRequest for a field that this release does not know."""
    unknown = UnknownFieldSet(message)
    numbers = sorted({unknown[index].field_number for index in range(len(unknown))})[:5]
    if numbers:
        raise InvalidRequest(f"unknown field number {', '.join(map(str, numbers))} in {message.DESCRIPTOR.name}")
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            fields[field.name] = list(value)
        elif field.has_presence and field.type != FieldDescriptor.TYPE_MESSAGE:
            if message.HasField(field.name):
                fields[field.name] = value
        elif value or field.name in _ZERO_COUNTS:
            fields[field.name] = value
    return fields


def _encode(kind: type[Message], answer: Response) -> bytes:
    return kind(**answer.model_dump(exclude_none=True)).SerializeToString()


def _call(context: _Context) -> Call:
    given = next((value for key, value in context.invocation_metadata() or () if key == "x-request-id"), "")
    remaining = context.time_remaining()
    usable = isinstance(given, str) and 0 < len(given) <= 128
    call = Call(str(given) if usable else uuid.uuid4().hex, "grpc", timeout_s=remaining)
    context.set_trailing_metadata((("x-request-id", call.request_id),))
    return call


async def _abort(context: _Context, call: Call, error: ModelOpsError) -> NoReturn:
    status = grpc.StatusCode.ALREADY_EXISTS if isinstance(error, AlreadyLoaded) else STATUS[error.code]
    details = [
        error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=DOMAIN, metadata=error.details),
        error_details_pb2.RequestInfo(request_id=call.request_id),
    ]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    rich = status_pb2.Status(code=status.value[0], message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    trailers = (
        ("grpc-status-details-bin", rich.SerializeToString()),
        ("x-request-id", call.request_id),
    )
    try:
        await context.abort(status, error.message, trailers)
    except grpc.aio.InternalError:  # its caller has gone just now, as one does whose deadline is over
        raise asyncio.CancelledError from None
    raise AssertionError("abort returned")
