"""REST: HTTP/1.1 with JSON, server-sent events for streams, problem+json for errors."""

from __future__ import annotations

import contextlib
import html
import logging
import re
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from modelops.api import messages
from modelops.api.errors import (
    InvalidRequest,
    ModelOpsError,
    NotFound,
    Overloaded,
)
from modelops.api.operations import METRICS, OPERATIONS, Operation
from modelops.service import Call, Coordinator, internal
from modelops.tasks import Tasks
from modelops.transports import openai, openapi
from modelops.transports.endpoint import CALL, Endpoint, EventStream, admit, has_header, header
from modelops.transports.http import HttpServer
from modelops.transports.listening import Listening
from modelops.transports.problems import problem

log = logging.getLogger(__name__)

#: Headers of W3C Trace Context.
_TRACE = ("traceparent", "tracestate")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SWAGGER = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css"></head><body><div id="ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "/openapi.json", dom_id: "#ui", deepLinking: true}})</script></body></html>"""

# A page that shows this one in a frame could have its reader press buttons that they do not see.
_UNFRAMED = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY"}


class RestServer:
    """Listens on one address; `start` returns when it accepts connections, `stop` when the last has ended."""

    def __init__(self, coordinator: Coordinator, listening: Listening, port: int) -> None:
        self._listening = listening
        self._tasks = Tasks("rest")
        app = _Followed(coordinator, application(coordinator, listening, self._tasks))
        self._server = HttpServer(
            app, listening, port, leaving=lambda: coordinator.draining, refused=partial(_refused, coordinator)
        )

    @property
    def address(self) -> str:
        """Where to reach it."""
        host = self._listening.host
        scheme = "https" if self._listening.certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._server.port}"

    @property
    def state(self) -> str:
        """For health."""
        return "healthy" if self._server.listens else "unhealthy: not listening"

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        await self._server.start()

    async def stop(self) -> None:
        """Close every connection and end."""
        await self._server.stop()
        await self._tasks.close()


def _refused(coordinator: Coordinator, error: ModelOpsError, request_id: str) -> None:
    """What the server below the application has refused counts as well."""
    call = Call(request_id, "rest", wanted="no request")
    with coordinator.following(call):
        call.failed(error)


class _Followed:
    """Every request, from its head to the last byte of its answer, whatever it asks for."""

    def __init__(self, coordinator: Coordinator, app: ASGIApp) -> None:
        self._coordinator = coordinator
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = {name: value for name in _TRACE if (value := header(scope, name.encode()))}
        wanted = f"{scope['method']} {scope['path'][:100]}"
        call = Call(
            _request_id(scope),
            "rest",
            trace=trace,
            peer=str((scope["client"] or ("",))[0]),
            wanted=wanted,
            idempotency_key=header(scope, b"idempotency-key") if has_header(scope, b"idempotency-key") else None,
        )
        scope[CALL] = call
        with self._coordinator.following(call):
            await self._app(scope, receive, send)


def application(coordinator: Coordinator, listening: Listening, tasks: Tasks) -> Starlette:
    """The ASGI application: every operation, the document and its page."""
    from swagger_ui_bundle import swagger_ui_path

    document = JSONResponse(openapi.document())
    page = HTMLResponse(_SWAGGER.format(title=html.escape("ModelOps Coordinator")), headers=_UNFRAMED)
    routes: list[BaseRoute] = [
        Route(
            operation.route.path,
            _Endpoint(coordinator, operation, listening, tasks),
            methods=[operation.route.method],
        )
        for operation in OPERATIONS
    ]
    routes += openai.routes(coordinator, listening, tasks)
    routes += [
        Route(METRICS.path, _Metrics(coordinator, listening), methods=["GET"]),
        Route("/health/live", _Probe(lambda: ""), methods=["GET"]),
        Route("/health/ready", _Probe(coordinator.not_ready), methods=["GET"]),
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


class _Probe:
    """For whoever decides whether to restart a coordinator, or to send it work: 204, or 503 with the reason."""

    def __init__(self, why_not: Callable[[], str]) -> None:
        self._why_not = why_not

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why_not = self._why_not()
        if why_not:
            response = _refusal(scope, Overloaded(why_not, retry_after_s=1.0, reason="not_ready"))
        else:
            response = Response(status_code=204)
        await response(scope, receive, send)


class _Metrics:
    """The page for Prometheus."""

    def __init__(self, coordinator: Coordinator, listening: Listening) -> None:
        self._coordinator = coordinator
        self._listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = await admit(self._coordinator, scope, METRICS, self._listening)
            response = Response(await self._coordinator.metrics(call), media_type=METRICS.content_type)
        except ModelOpsError as error:
            response = _refusal(scope, error)
        except Exception as error:  # noqa: BLE001 - the last line of defence: it answers, and logs all
            response = _refusal(scope, internal(scope[CALL], error))
        await response(scope, receive, send)


class _Endpoint(Endpoint):
    """One operation in our own words."""

    async def fields(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Body, query and path as one mapping of the request's fields."""
        route = self.operation.route
        fields: dict[str, Any] = dict(scope.get("path_params", {}))
        if route.method == "POST":
            body = await self.body(scope, receive)
            for name, value in fields.items():
                if body.get(name, value) != value:
                    raise InvalidRequest(f"'{name}' in the body is not the one in the path; leave it out")
            fields = body | fields
        for name, value in _query(scope["query_string"]):
            if name not in route.query:
                known = f"known: {', '.join(route.query)}" if route.query else "there are none here"
                raise InvalidRequest(f"unknown query parameter '{name[:64]}'; {known}")
            fields[name] = _typed(self.operation.request, name, value)
        if (stream := self.operation.stream) and stream.after and (last := header(scope, b"last-event-id")):
            self.operation.request.parse(fields)  # what the header takes the place of is checked all the same
            fields[stream.after] = _number("the header 'Last-Event-ID'", last)  # sent by who comes back: the later word
        return fields

    async def answer(self, call: Call, fields: dict[str, Any], send: Send) -> Response | None:
        """Whole, or in chunks where it is asked for so."""
        request = self.operation.request.parse(fields)
        if (stream := self.operation.stream) and (stream.always or getattr(request, "stream", False)):
            events = EventStream(call, send)
            chunks = self.coordinator.chunks(call, self.operation, request)
            told = events.watched(chunks, self._tasks) if stream.always else chunks
            async with contextlib.aclosing(chunks), contextlib.aclosing(told):
                async for chunk in told:
                    await events.event(
                        chunk.model_dump_json(exclude_none=True).encode(), getattr(chunk, "number", None)
                    )
            await events.end()
            return None
        answer = await self.coordinator.perform(call, self.operation, request)
        body = _whole(answer, self.operation.route.array).encode()
        response = Response(body, _status(self.operation, request), media_type="application/json")
        response.headers["x-request-id"] = call.request_id
        return response

    def refusal(self, scope: Scope, error: ModelOpsError) -> Response:
        """As RFC 9457 says."""
        return _refusal(scope, error)


def _whole(answer: messages.Response, array: str) -> str:
    """The answer as JSON; of one that is an array, what is in it."""
    if not array:
        return answer.model_dump_json()
    items: list[messages.Response] = getattr(answer, array)
    return f"[{','.join(item.model_dump_json() for item in items)}]"


def _status(operation: Operation, request: messages.Request) -> int:
    if getattr(request, "dry_run", False):
        return 200
    return 202 if getattr(request, "wait", True) is False else operation.route.status


async def _http_error(request: Any, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if openai.theirs(request.scope["path"]):
        headers = error.headers or {}
        response = openai.unrouted(request.scope, error.status_code, headers.get("Allow", ""))
        response.headers.update(headers)
        return response
    if error.status_code == 404:
        path = request.scope["path"]  # its `url` is made with the header Host, which may be no name at all
        said: ModelOpsError = NotFound(f"there is nothing at {path[:100]!r}; the operations are listed at /docs")
    else:
        said = InvalidRequest(f"{request.method} is not offered at this path")
    response = _refusal(request.scope, said, error.status_code)
    response.headers.update(error.headers or {})
    return response


def _refusal(scope: Scope, error: ModelOpsError, status: int = 0) -> Response:
    call: Call = scope[CALL]
    call.failed(error)
    return problem(error, call.request_id, status)


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _query(raw: bytes) -> list[tuple[str, str]]:
    from urllib.parse import parse_qsl

    return parse_qsl(raw.decode("latin-1"), keep_blank_values=True)


def _typed(request: type[messages.Request], name: str, value: str) -> bool | int | str:
    """What stands in the query, as the request's field of that name takes it."""
    kind = request.model_fields[name].annotation
    if kind is int:
        return _number(f"query parameter '{name}'", value)
    if kind is not bool:
        return value
    if value.lower() not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"query parameter '{name}' must be true or false")
    return value.lower() in ("true", "1")


def _number(what: str, value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", value):
        raise InvalidRequest(f"{what} must be a whole number")
    return int(value)
