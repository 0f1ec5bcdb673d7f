"""REST: HTTP/1.1 with JSON, server-sent events for streams, problem+json for errors."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import logging
import math
import re
import socket
import uuid
from collections.abc import Coroutine, Iterable
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelops.api import types
from modelops.api.errors import InvalidRequest, ModelOpsError, NotAvailable, NotFound, TooLarge
from modelops.api.operations import OPERATIONS, Operation, Stream
from modelops.api.planned import PLANNED, Planned
from modelops.service import Call, Coordinator, internal
from modelops.tasks import Tasks
from modelops.transports import openapi

log = logging.getLogger(__name__)

#: The table from codes to HTTP statuses.
STATUS: dict[str, int] = {code: status for code, (status, _) in openapi.STATUS.items()}

_LONGEST_HEAD = 64 * 1024  # bytes of request line and headers together
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SWAGGER = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css"></head><body><div id="ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "/openapi.json", dom_id: "#ui", deepLinking: true}})</script></body></html>"""


class Gone(Exception):
    """The client has closed the connection: nobody is left to answer."""


class RestServer:
    """Listens on one address; `start` returns when it accepts connections, `stop` when the last has ended."""

    def __init__(self, coordinator: Coordinator, host: str, port: int, max_body_bytes: int) -> None:
        self._host = host
        self._port = port
        self._tasks = Tasks("rest")
        self._app = application(coordinator, max_body_bytes, self._tasks)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where to reach it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def state(self) -> str:
        """For health."""
        return "healthy" if self._serving and not self._serving.done() else "unhealthy: not listening"

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=2048)
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._serving = self._tasks.start("serve", self._server.serve(sockets=[listener]))
        # The listener accepts from its creation on: a connection that comes before the server's first turn waits.

    async def stop(self) -> None:
        """Close every connection and end."""
        if self._server and self._serving:
            self._server.should_exit = True
            await asyncio.wait([self._serving])
        await self._tasks.close()


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a bound on the request line and the headers, which neither it nor its parser has."""

    _in_head = True
    _head_bytes = 0
    _messages = 0

    def data_received(self, data: bytes) -> None:
        before = self._messages
        super().data_received(data)
        # A block in which a head, or a whole message, has ended is not one that a head grows by.
        if self._in_head and self._messages == before:
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD and not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
                self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._messages += 1
        super().on_message_complete()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield  # signals are the application's


def application(coordinator: Coordinator, max_body_bytes: int, tasks: Tasks) -> Starlette:
    """The ASGI application: every operation, what is planned, the document and its page."""
    from swagger_ui_bundle import swagger_ui_path

    document = JSONResponse(openapi.document())
    page = HTMLResponse(_SWAGGER.format(title=html.escape("ModelOps Coordinator")))
    routes: list[BaseRoute] = [
        Route(
            operation.route.path,
            _Endpoint(coordinator, operation, max_body_bytes, tasks),
            methods=[operation.route.method],
        )
        for operation in OPERATIONS
    ]
    routes += [Route(planned.path, _Later(planned), methods=[planned.method]) for planned in PLANNED]
    routes += [
        Route("/openapi.json", document, methods=["GET"]),
        Route("/docs", page, methods=["GET"]),
        Mount("/docs/assets", StaticFiles(directory=swagger_ui_path)),
    ]
    app = Starlette(routes=_by_path(routes), exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False  # a path that is not documented is told so
    return app


def _by_path(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """Routes of one path merged into one that knows all methods, so that 405 and Allow are right."""
    merged: dict[str, dict[str, Route]] = {}
    rest: list[BaseRoute] = []
    for route in routes:
        if isinstance(route, Route):
            merged.setdefault(route.path, {}).update(dict.fromkeys(route.methods or (), route))
        else:
            rest.append(route)
    return [Route(path, _Methods(by), methods=list(by)) for path, by in merged.items()] + rest


class _Methods:
    def __init__(self, by_method: dict[str, Route]) -> None:
        self._apps = {method: route.app for method, route in by_method.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._apps[scope["method"]](scope, receive, send)


class _Later:
    """A route of a later release."""

    def __init__(self, planned: Planned) -> None:
        self._what = f"{planned.method} {planned.path}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = NotAvailable(f"{self._what} comes with a later release")
        await problem(error, _request_id(scope))(scope, receive, send)


class _Endpoint:
    """One operation over HTTP."""

    def __init__(self, coordinator: Coordinator, operation: Operation, max_body_bytes: int, tasks: Tasks) -> None:
        self._coordinator = coordinator
        self._operation = operation
        self._max_body_bytes = max_body_bytes
        self._tasks = tasks
        self._method = getattr(coordinator, operation.name, None)  # none: it answers in chunks only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(_request_id(scope), "rest")
        try:
            try:
                fields = await self._fields(scope, receive)
                call = Call(call.request_id, "rest", timeout_s=_timeout(scope))
                request = self._operation.request.parse(fields)
                if (stream := self._operation.stream) and (stream.always or getattr(request, "stream", False)):
                    await self._until_gone(receive, self._stream(call, stream, request, send))
                    return
                assert self._method is not None
                answer = await self._until_gone(receive, self._method(call, request))
                body = answer.model_dump_json().encode()
                response = Response(body, _status(self._operation, request), media_type="application/json")
                response.headers["x-request-id"] = call.request_id
            except ModelOpsError as error:
                response = problem(error, call.request_id)
            except Gone:
                raise
            except Exception as error:  # noqa: BLE001 - the last line of defence: it answers, and logs all
                response = problem(internal(call, error), call.request_id)
            await response(scope, receive, send)
        except Gone:
            log.debug("request %s: the client is gone", call.request_id)

    async def _fields(self, scope: Scope, receive: Receive) -> object:
        """Body, query and path as one mapping of the request's fields."""
        route = self._operation.route
        fields: dict[str, Any] = dict(scope.get("path_params", {}))
        if route.method == "POST":
            body = types.from_json(await self._body(scope, receive))
            if not isinstance(body, dict):
                raise InvalidRequest("the body must be a JSON object")
            for name, value in fields.items():
                if body.get(name, value) != value:
                    raise InvalidRequest(f"'{name}' in the body is not the one in the path; leave it out")
            fields = body | fields
        for name, value in _query(scope["query_string"]):
            if name not in route.query:
                known = f"known: {', '.join(route.query)}" if route.query else "there are none here"
                raise InvalidRequest(f"unknown query parameter '{name[:64]}'; {known}")
            fields[name] = _boolean(name, value)
        return fields

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        kind = _header(scope, b"content-type").split(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps a web page in the user's browser from calling a server on loopback.
            raise InvalidRequest("send the body as JSON, with the header 'Content-Type: application/json'")
        declared = _header(scope, b"content-length")
        limit = self._max_body_bytes
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)

    async def _stream(self, call: Call, stream: Stream, request: Any, send: Send) -> None:
        """Server-sent events; the status line waits for the first chunk, so that early errors have their own."""
        async with contextlib.aclosing(getattr(self._coordinator, stream.method)(call, request)) as chunks:
            begun = False
            async for chunk in chunks:
                if not begun:
                    headers = [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-store"),
                        (b"x-request-id", call.request_id.encode()),
                    ]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    begun = True
                event = b"data: %b\n\n" % chunk.model_dump_json(exclude_none=True).encode()
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_gone(self, receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`; cancels it and raises Gone when the client closes the connection first."""
        working = self._tasks.start(self._operation.name, _quietly(work))
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
        result, error = working.result()
        if error:
            raise error
        return result


def _status(operation: Operation, request: types.Request) -> int:
    if getattr(request, "dry_run", False):
        return 200
    return 202 if getattr(request, "wait", True) is False else operation.route.status


async def _quietly(work: Coroutine[Any, Any, Any]) -> tuple[Any, Exception | None]:
    """A failure is a result here: it is the endpoint's to report, not the task's owner's."""
    try:
        return await work, None
    except Exception as error:  # noqa: BLE001 - raised again by the endpoint
        return None, error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def problem(error: ModelOpsError, request_id: str, status: int = 0) -> Response:
    """The error as RFC 9457 says, with `success` and `error_message` for clients that only know InferenceResponse."""
    status = status or STATUS[error.code]
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
        "success": False,
        "error_message": error.message,
    }
    headers = {"x-request-id": request_id}
    if error.details:
        body["details"] = error.details
    if error.retry_after_s is not None:
        body["retry_after_s"] = round(error.retry_after_s, 3)
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    encoded = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(encoded, status, headers, media_type="application/problem+json")


async def _http_error(request: Any, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        said: ModelOpsError = NotFound(
            f"there is nothing at {request.url.path[:100]!r}; the operations are listed at /docs"
        )
    else:
        said = InvalidRequest(f"{request.method} is not offered at this path")
    response = problem(said, _request_id(request.scope), error.status_code)
    response.headers.update(error.headers or {})
    return response


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _request_id(scope: Scope) -> str:
    given = _header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _timeout(scope: Scope) -> float | None:
    given = _header(scope, b"x-request-timeout")
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest("X-Request-Timeout must be a number of seconds above 0")
    return seconds


def _query(raw: bytes) -> list[tuple[str, str]]:
    from urllib.parse import parse_qsl

    return parse_qsl(raw.decode("latin-1"), keep_blank_values=True)


def _boolean(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"query parameter '{name}' must be true or false")
    return value.lower() in ("true", "1")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request is over {limit} bytes")
