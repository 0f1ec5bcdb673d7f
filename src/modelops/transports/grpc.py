"""gRPC: service ModelOps as in proto/model_ops.proto, grpc.health.v1.Health, and server reflection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import unquote

# Engines are started by fork and exec, to which the library's own fork handlers only object.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


import grpc
from google.protobuf import any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

import model_ops_pb2 as pb
from modelops.api.errors import AlreadyLoaded, InvalidRequest, ModelOpsError, too_large
from modelops.api.messages import Response
from modelops.api.operations import OPERATIONS, Operation
from modelops.service import Call, Coordinator, Credentials, internal
from modelops.transports.listening import Certificate, Listening

log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the library logs more than that a caller had gone before it was told that there is no such method."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, grpc.aio.InternalError)


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)

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
#: What a connection may do: so many streams at once. A peer that is gone is noticed, and one that asks nothing ends.
_BOUNDS = {
    "grpc.max_concurrent_streams": 1000,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.max_connection_idle_ms": 600_000,
}

#: Up to here each whole number is a double of its own.
_WHOLE = 2**53

#: Metadata of W3C Trace Context.
_TRACE = ("traceparent", "tracestate")

_Context = grpc.aio.ServicerContext[bytes, bytes]


class GrpcServer:
    """Listens on one address; `start` returns when it accepts calls, `stop` when the last has ended."""

    def __init__(self, coordinator: Coordinator, listening: Listening, port: int) -> None:
        self._host = f"[{listening.host}]" if ":" in listening.host else listening.host
        self._port = port
        self._listening = listening
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
                ("grpc.max_allowed_incoming_connections", self._listening.max_connections),
                ("grpc.server_handshake_timeout_ms", int(self._listening.client_timeout_s * 1000)),
                *_BOUNDS.items(),
            ]
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        for service, handlers in self._theirs().items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        try:
            address, certificate = f"{self._host}:{self._port}", self._listening.certificate
            if certificate:
                self._port = server.add_secure_port(address, _credentials(certificate))
            else:
                self._port = server.add_insecure_port(address)
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
                    self._stream(operation, operation.stream_rpc)
                )
        return handlers

    def _theirs(self) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
        """The services that the library brings. They do not decode either: to it, what it cannot is a fault of ours."""
        asks, says = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse.SerializeToString
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflect = reflection.aio.ReflectionServicer((SERVICE, health_name, reflection.SERVICE_NAME))

        def checking(perform: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[[bytes, _Context], Awaitable[Any]]:
            async def handle(raw: bytes, context: _Context) -> Any:
                return await perform(await self._read(asks, raw, context), context)

            return handle

        async def reflecting(raws: AsyncIterator[bytes], context: _Context) -> AsyncIterator[Any]:
            wanted = (await self._read(reflection_pb2.ServerReflectionRequest, raw, context) async for raw in raws)
            async for answer in reflect.ServerReflectionInfo(wanted, context):
                yield answer

        told = reflection_pb2.ServerReflectionResponse.SerializeToString
        return {
            health_name: {
                "Check": grpc.unary_unary_rpc_method_handler(checking(self._health.Check), None, says),
                "Watch": grpc.unary_stream_rpc_method_handler(checking(self._health.Watch), None, says),
            },
            reflection.SERVICE_NAME: {
                "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(reflecting, None, told)
            },
        }

    # The handlers take and return bytes: decoding is ours, so that what cannot be decoded is refused as documented.
    def _unary(
        self, operation: Operation, rpc: str, implied: Mapping[str, Any]
    ) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        takes, gives = _messages(rpc)

        async def handle(raw: bytes, context: _Context) -> bytes:
            call = _call(context)
            with self._coordinator.following(call):
                try:
                    call = await self._coordinator.admit(call, operation, _shown(context))
                    request = operation.request.parse({**self._decode(operation, takes, raw), **implied})
                    return _encode(gives, await self._coordinator.perform(call, operation, request))
                except ModelOpsError as error:
                    failure = error
                except Exception as error:  # noqa: BLE001 - the last line of defence: it answers, and logs all
                    failure = internal(call, error)
                await _abort(context, call, failure)

        return handle

    def _stream(self, operation: Operation, rpc: str) -> Callable[[bytes, _Context], Awaitable[None]]:
        takes, gives = _messages(rpc)

        async def handle(raw: bytes, context: _Context) -> None:
            call = _call(context)
            with self._coordinator.following(call):
                try:
                    call = await self._coordinator.admit(call, operation, _shown(context))
                    request = operation.request.parse(self._decode(operation, takes, raw))
                    async with contextlib.aclosing(self._coordinator.chunks(call, operation, request)) as chunks:
                        async for chunk in chunks:
                            await self._write(context, _encode(gives, chunk))
                    return
                except ModelOpsError as error:
                    failure = error
                except Exception as error:  # noqa: BLE001 - as above
                    failure = internal(call, error)
                await _abort(context, call, failure)

        return handle

    async def _write(self, context: _Context, message: bytes) -> None:
        """Send, for clients that read: the call of one that takes nothing for too long is ended."""
        try:
            async with asyncio.timeout(self._listening.client_timeout_s):
                await context.write(message)
        except TimeoutError:
            log.info("a gRPC client has read nothing for %.0f s: its call is ended", self._listening.client_timeout_s)
            raise asyncio.CancelledError from None
        except grpc.aio.InternalError:  # its caller has gone just now
            raise asyncio.CancelledError from None

    def _decode(self, operation: Operation, kind: type[Message], raw: bytes) -> dict[str, Any]:
        return _fields(self._parsed(kind, raw, operation.too_large))

    async def _read(self, kind: type[Message], raw: bytes, context: _Context) -> Message:
        """The message, for a service that is not ours; ends the call where it is none."""
        try:
            return self._parsed(kind, raw)
        except ModelOpsError as error:
            await _abort(context, _call(context), error)

    def _parsed(self, kind: type[Message], raw: bytes, to_do: str = "") -> Message:
        if len(raw) > self._listening.max_body_bytes:
            raise too_large(self._listening.max_body_bytes, to_do)
        try:
            return kind.FromString(raw)
        except DecodeError:
            raise InvalidRequest(
                f"the request is no valid {kind.DESCRIPTOR.name}, or a text in it is not UTF-8"
            ) from None


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """With an authority for clients a certificate is required of them: the library cannot ask and do without."""

    def present(key: bytes, chain: bytes) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=certificate.client_ca)

    presented = certificate.pair

    def exchanged() -> grpc.ServerCertificateConfiguration | None:
        """Asked at each handshake, in a thread of the library: the certificate, where it is another one by now."""
        nonlocal presented
        if certificate.pair is presented:
            return None
        presented = certificate.pair
        return present(*presented)

    return grpc.dynamic_ssl_server_credentials(
        present(*presented),
        exchanged,  # type: ignore[arg-type] # None is documented: no change
        require_client_authentication=certificate.client_ca is not None,
    )


def _messages(rpc: str) -> tuple[type[Message], type[Message]]:
    method = pb.DESCRIPTOR.services_by_name[SERVICE].methods_by_name[rpc]

    def of(name: str) -> type[Message]:
        return empty_pb2.Empty if name == "Empty" else getattr(pb, name)

    return of(method.input_type.name), of(method.output_type.name)


def _fields(message: Message) -> dict[str, Any]:
    """The message's given fields, by name. Raises InvalidRequest for a field that this release does not know.

    A list without anything in it is not given: on the wire the two are one.
    """
    _known(message)
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        one = _READ.get(field.message_type.full_name, _fields) if field.message_type else _fields
        if field.is_repeated:
            if value:
                fields[field.name] = [one(item) for item in value] if field.message_type else list(value)
        elif field.has_presence:
            if message.HasField(field.name):
                fields[field.name] = one(value) if field.message_type else value
        elif value or field.name in _ZERO_COUNTS:
            fields[field.name] = value
    return fields


def _time(message: Message) -> datetime:
    """A Timestamp. Raises InvalidRequest for what no day has."""
    _known(message)
    assert isinstance(message, timestamp_pb2.Timestamp)
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest("a Timestamp in the request is no time") from None


def _object(message: Message) -> dict[str, Any]:
    """A Struct as REST reads the same JSON. Raises InvalidRequest for what is none."""
    _known(message)
    assert isinstance(message, struct_pb2.Struct)
    return {name: _value(value) for name, value in message.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    _known(value)
    match value.WhichOneof("kind"):
        case "struct_value":
            return _object(value.struct_value)
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise InvalidRequest(f"{number} is no number that JSON has")
            # Each number is a double here: whole ones are what was written as such.
            return int(number) if number.is_integer() and abs(number) <= _WHOLE else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


#: Messages that are read as the same JSON is.
_READ: dict[str, Callable[[Message], Any]] = {
    struct_pb2.Struct.DESCRIPTOR.full_name: _object,
    timestamp_pb2.Timestamp.DESCRIPTOR.full_name: _time,
}


def _known(message: Message) -> None:
    unknown = UnknownFieldSet(message)
    numbers = sorted({unknown[index].field_number for index in range(len(unknown))})[:5]
    if numbers:
        raise InvalidRequest(f"unknown field number {', '.join(map(str, numbers))} in {message.DESCRIPTOR.name}")


def _encode(kind: type[Message], answer: Response) -> bytes:
    return kind(**answer.model_dump(exclude_none=True)).SerializeToString()


def _call(context: _Context) -> Call:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    given, remaining = metadata.get("x-request-id", ""), context.time_remaining()
    trace = {key: metadata[key] for key in _TRACE if key in metadata}
    request_id = given if 0 < len(given) <= 128 else uuid.uuid4().hex
    call = Call(
        request_id,
        "grpc",
        timeout_s=remaining,
        trace=trace,
        peer=_address(context.peer()),
        idempotency_key=metadata.get("idempotency-key"),
    )
    context.set_trailing_metadata((("x-request-id", call.request_id),))
    return call


def _address(peer: str) -> str:
    """The address in what the library calls its peer: `ipv4:127.0.0.1:1234`, `ipv6:%5B::1%5D:1234`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")


def _shown(context: _Context) -> Credentials:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    names = list(context.auth_context().get("x509_common_name", ()))
    certificate = names[0].decode("utf-8", "replace") if names else ""
    return Credentials.of_headers(metadata.get("x-api-key", ""), metadata.get("authorization", ""), certificate)


async def _abort(context: _Context, call: Call, error: ModelOpsError) -> NoReturn:
    call.failed(error)
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
