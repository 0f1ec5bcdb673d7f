"""One operation over HTTP, whatever form its requests and answers have: who asks, what was sent, who has hung up."""

from __future__ import annotations

import abc
import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelops.api.errors import InvalidRequest, ModelOpsError, PermissionDenied, too_large
from modelops.api.messages import from_json
from modelops.api.operations import Door, Operation
from modelops.service import Call, Coordinator, Credentials, internal
from modelops.tasks import Tasks
from modelops.transports.http import CONNECTION
from modelops.transports.listening import Listening, is_loopback

log = logging.getLogger(__name__)

#: Where a request's call is found in its scope.
CALL = "modelops.call"

#: After so long without an event a stream that watches begins: what is refused has been refused by then.
_BEGINS_S = 1.0
#: After each so long without an event it shows that it lives: many proxies cut connections that are silent.
_SILENCE_S = 15.0

T = TypeVar("T")


class Gone(Exception):
    """The client has closed the connection: nobody is left to answer."""


class Endpoint(abc.ABC):
    """One operation. A subclass says what is sent for it, and how answers and refusals look."""

    def __init__(self, coordinator: Coordinator, operation: Operation, listening: Listening, tasks: Tasks) -> None:
        self.coordinator = coordinator
        self.operation = operation
        self._listening = listening
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, read, answer, in this order."""
        call: Call = scope[CALL]
        try:
            try:
                admitted = await admit(self.coordinator, scope, self.operation, self._listening)
                fields = await self.fields(scope, receive)
                call = replace(admitted, timeout_s=timeout(scope), received=time.perf_counter())
                response = await self._until_gone(receive, self.answer(call, fields, send))
            except ModelOpsError as error:
                response = self.refusal(scope, error)
            except Gone:
                raise
            except Exception as error:  # noqa: BLE001 - the last line of defence: it answers, and logs all
                response = self.refusal(scope, internal(call, error))
            if response is not None:
                await response(scope, receive, send)
        except Gone:
            call.gone()
            log.debug("request %s: the client is gone", call.request_id)

    @abc.abstractmethod
    async def fields(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """What was sent. Raises InvalidRequest, TooLarge, Gone."""

    @abc.abstractmethod
    async def answer(self, call: Call, fields: dict[str, Any], send: Send) -> Response | None:
        """The answer; None: it was sent piece by piece. Cancelled when the client hangs up."""

    @abc.abstractmethod
    def refusal(self, scope: Scope, error: ModelOpsError) -> Response:
        """What the caller is told of the error, which is noted."""

    async def body(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The JSON object that was sent."""
        fields = from_json(await self._read(scope, receive))
        if not isinstance(fields, dict):
            raise InvalidRequest("the body must be a JSON object")
        return fields

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        kind = header(scope, b"content-type").split(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps a web page in the user's browser from calling a server on loopback.
            fields = self.operation.request.model_fields
            in_path = scope.get("path_params", {})
            needed = any(field.is_required() for name, field in fields.items() if name not in in_path)
            what = "the body as JSON" if needed else "{} as JSON, or what there is to say"
            raise InvalidRequest(f"send {what}, with the header 'Content-Type: application/json'")
        if encoding := header(scope, b"content-encoding"):
            raise InvalidRequest(f"send the body as it is: it comes with 'Content-Encoding: {encoding[:32]}'")
        declared = header(scope, b"content-length")
        limit = self._listening.max_body_bytes
        if declared.isdecimal() and int(declared) > limit:
            raise too_large(limit, self.operation.too_large)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large(limit, self.operation.too_large)
            if not message.get("more_body", False):
                return bytes(body)

    async def _until_gone(self, receive: Receive, work: Coroutine[Any, Any, Response | None]) -> Response | None:
        """The result of `work`; cancels it and raises Gone when the client closes the connection first."""
        working = self._tasks.start(self.operation.name, _quietly(work))
        watching = self._tasks.start("watch", _disconnected(receive))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait([working])
        if working.cancelled():
            raise Gone
        result: Response | None
        result, error = working.result()
        if error:
            raise error
        return result


class EventStream:
    """Server-sent events; the status line waits for the first, so that early errors have their own."""

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send
        self.begun = False

    async def event(self, data: bytes, number: int | None = None) -> None:
        """Send one; its `number` is what a client that comes back names as the last it has seen."""
        named = b"" if number is None else b"id: %d\n" % number
        await self._say(b"%bdata: %b\n\n" % (named, data))

    async def watched(self, events: AsyncGenerator[T], tasks: Tasks) -> AsyncGenerator[T]:
        """The events, which may be long in coming: a comment is sent a while after the beginning and in each longer
        silence, so that the client knows that it is heard, and nobody between cuts the connection."""
        patience = _BEGINS_S
        while True:
            coming = tasks.start("next event", _quietly(anext(events)))
            try:
                while not (await asyncio.wait([coming], timeout=patience))[0]:
                    await self._say(b":\n\n")
                    patience = _SILENCE_S
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait([coming])
            event, error = coming.result()
            if isinstance(error, StopAsyncIteration):
                return
            if error:
                raise error
            yield event
            patience = _SILENCE_S

    async def end(self) -> None:
        """No more come."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _say(self, body: bytes) -> None:
        if not self.begun:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-request-id", self._call.request_id.encode()),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self.begun = True
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def admit(coordinator: Coordinator, scope: Scope, door: Door, listening: Listening) -> Call:
    """The request's call, admitted to `door`. Raises PermissionDenied too where a stranger's page may be the caller."""
    if listening.loopback and not coordinator.needs_keys:
        _check_name(scope)
    return await coordinator.admit(scope[CALL], door, credentials(scope))


def header(scope: Scope, name: bytes) -> str:
    """The header of that name, in small letters; empty where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def has_header(scope: Scope, name: bytes) -> bool:
    """Whether there is a header of that name, in small letters."""
    return any(key == name for key, _ in scope["headers"])


def credentials(scope: Scope) -> Credentials:
    """What the caller shows."""
    given, bearer = header(scope, b"x-api-key"), header(scope, b"authorization")
    return Credentials.of_headers(given, bearer, scope[CONNECTION].certificate_of)


def timeout(scope: Scope) -> float | None:
    """How many seconds the caller waits. Raises InvalidRequest."""
    if not has_header(scope, b"x-request-timeout"):
        return None
    try:
        seconds = float(header(scope, b"x-request-timeout"))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest("X-Request-Timeout must be a number of seconds above 0")
    return seconds


def _check_name(scope: Scope) -> None:
    """A page of the web whose name was made to lead to this machine calls it by that name: no program here does."""
    try:
        name = urlsplit(f"//{header(scope, b'host')}").hostname or ""
    except ValueError:
        raise InvalidRequest("the header 'Host' is no name or address") from None
    if name and not is_loopback(name):
        raise PermissionDenied(
            f"without keys only programs of this machine are served, and they do not call it '{name[:64]}'; "
            "use localhost, or make a key with 'modelops keys create'"
        )


async def _quietly(work: Awaitable[T]) -> tuple[T | None, Exception | None]:
    """A failure is a result here: it is the endpoint's to report, not the task's owner's."""
    try:
        return await work, None
    except Exception as error:  # noqa: BLE001 - raised again by the endpoint
        return None, error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
