"""A collector: takes spans as OpenTelemetry's does (OTLP over HTTP), and keeps them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from support import wait_until

KINDS = {
    trace_pb2.Span.SPAN_KIND_SERVER: "server",
    trace_pb2.Span.SPAN_KIND_CLIENT: "client",
    trace_pb2.Span.SPAN_KIND_INTERNAL: "internal",
}


@dataclass(frozen=True)
class Seen:
    """A span as it was sent; times are in nanoseconds since 1970."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    began: int
    ended: int
    failed: bool
    attributes: Mapping[str, Any]
    events: Mapping[str, int]
    resource: Mapping[str, Any]

    @property
    def error(self) -> str:
        """What it failed by; empty where it did not."""
        assert self.failed == ("error.type" in self.attributes)
        return str(self.attributes.get("error.type", ""))


@dataclass(frozen=True)
class Context:
    """A trace that a client began, and its own span in it."""

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def carried(self, flags: str = "01") -> dict[str, str]:
        """What the client sends."""
        return {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags}", "tracestate": "theirs=1"}


class Collector:
    """What was sent so far; answers as told."""

    def __init__(self) -> None:
        self.status = 200
        self.asked = 0
        self.headers: dict[str, str] = {}
        self.goes_on = threading.Event()  # where it is not set, nobody is answered
        self.goes_on.set()
        self._spans: list[Seen] = []
        self.url = ""

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """What one request sent."""
        self.asked += 1
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.goes_on.wait(60)
        if self.status != 200:
            return
        assert path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _values(group.resource.attributes)
            self._spans += [_seen(span, resource) for scope in group.scope_spans for span in scope.spans]

    def spans(self) -> list[Seen]:
        """All, in the order in which they ended."""
        return sorted(self._spans, key=lambda span: span.ended)

    def of(self, context: Context) -> Trace:
        """The trace of a call that was made with `context` and is over."""
        wait_until(
            lambda: any(span.parent_id == context.span_id for span in self._spans), what="the end of the call's span"
        )
        return Trace([span for span in self.spans() if span.trace_id == context.trace_id], context.span_id)


class Trace:
    """The spans of one trace below `parent_id`, of which there is one root."""

    def __init__(self, spans: list[Seen], parent_id: str = "") -> None:
        self.spans = spans
        (self.root,) = self.below(parent_id)

    def below(self, span_id: str) -> list[Seen]:
        return sorted((span for span in self.spans if span.parent_id == span_id), key=lambda span: span.began)

    def named(self, name: str) -> Seen:
        (span,) = (span for span in self.spans if span.name == name)
        return span

    def tree(self, span: Seen | None = None) -> dict[str, Any]:
        """The names, each with those of its parts, by when they began; no two parts may be called the same."""
        return {part.name: self.tree(part) for part in self.below((span or self.root).span_id)}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # who sent it has gone

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield collector
        finally:
            collector.goes_on.set()
            server.shutdown()
            thread.join()


def _seen(span: trace_pb2.Span, resource: Mapping[str, Any]) -> Seen:
    return Seen(
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        state=span.trace_state,
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_values(span.attributes),
        events={event.name: event.time_unix_nano for event in span.events},
        resource=resource,
    )


def _values(pairs: Any) -> dict[str, Any]:
    named: list[KeyValue] = list(pairs)
    return {pair.key: _value(pair.value) for pair in named}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind
    found = getattr(value, kind)
    return [_value(one) for one in found.values] if kind == "array_value" else found
