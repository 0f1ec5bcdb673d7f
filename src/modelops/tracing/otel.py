"""Traces as OpenTelemetry has them, sent to a collector (OTLP over HTTP) by a thread of the SDK's.

The only module that knows OpenTelemetry. Nothing of it is global: no provider is set, and the context of a span is what
it was made from. A collector that is down, slow or wrong costs the spans, and nobody's time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from modelops.tracing import NOTHING, Attributes, Kind, Span, Tracing, unrecorded

log = logging.getLogger(__name__)

_SERVICE = "modelops-coordinator"
_LAST_S = 1.5  # for what is left at the end
_LONGEST_VALUE = 32_768  # characters of an attribute: what waits for the collector waits in memory
_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_PROPAGATOR = TraceContextTextMapPropagator()  # takes a `tracestate` of 512 characters at most


class OpenTelemetry(Tracing):
    """Sends what it records to `<endpoint>/v1/traces`.

    Of the traces that begin here `sample_ratio` are recorded; of the others those whose callers record theirs. Raises
    ValueError for an endpoint that cannot be used. The standard variables (`OTEL_EXPORTER_OTLP_HEADERS`,
    `OTEL_RESOURCE_ATTRIBUTES`, …) say the rest.
    """

    def __init__(self, endpoint: str, *, sample_ratio: float, version: str) -> None:
        _check(endpoint)
        # It tells each of its own troubles each time, and what callers wrote into their `tracestate`.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _Exporter(f"{endpoint.rstrip('/')}/v1/traces")
        named = {"service.name": _SERVICE, "service.version": version, **OTELResourceDetector().detect().attributes}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create(named),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_span_attribute_length=_LONGEST_VALUE),
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("modelops", version)

    def begin(self, name: str, attributes: Attributes, carrier: Mapping[str, str], began_ns: int) -> Span:
        """As `Tracing` has it. A `traceparent` that is none begins a new trace."""
        caller = _PROPAGATOR.extract(carrier, Context())
        span = self._tracer.start_span(name, caller, SpanKind.SERVER, attributes, start_time=began_ns)
        if not span.is_recording():
            context = span.get_span_context()
            return unrecorded(format_trace_id(context.trace_id) if context.is_valid else "")
        return _Recorded(self._tracer, span)

    def close(self) -> None:
        """Hand over what has been recorded, to a collector that takes it within a moment."""
        if not self._exporter.takes:
            self._exporter.shutdown()  # nor would it take the last ones, and each is tried for seconds
        # The SDK would wait for half a minute.
        ending = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        ending.start()
        ending.join(_LAST_S)
        self._exporter.shutdown()


class _Recorded:
    """A span that is recorded."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: Tracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def child(self, name: str, attributes: Attributes = NOTHING, kind: Kind = "internal") -> Span:
        context = set_span_in_context(self._span, Context())
        return _Recorded(self._tracer, self._tracer.start_span(name, context, _KINDS[kind], attributes))

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def end(self, error: str = "") -> None:
        if error and self._span.is_recording():
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _Exporter(SpanExporter):
    """Sends spans, in the thread that calls it, and tells the log when the collector ceases to take them, and when it
    takes them again."""

    def __init__(self, url: str) -> None:
        self.takes = True
        self._answered = 0
        self._ended = False
        session = requests.Session()
        session.hooks["response"].append(self._note)
        self._otlp = OTLPSpanExporter(url, session=session)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them, for ten seconds at most."""
        self._answered = 0
        result = self._otlp.export(spans)
        takes = result is SpanExportResult.SUCCESS
        if takes != self.takes and not self._ended:
            self.takes = takes
            if takes:
                log.info("the collector takes traces again")
            else:
                why = f"it answers {self._answered}" if self._answered else "it does not answer"
                log.warning("the collector does not take traces (%s): they are lost meanwhile", why)
        return result

    def shutdown(self) -> None:
        """Send nothing more, and give up what is being tried again."""
        if not self._ended:
            self._ended = True
            self._otlp.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return True

    def _note(self, response: requests.Response, *_: object, **__: object) -> None:
        self._answered = response.status_code


def _check(endpoint: str) -> None:
    """Raises ValueError. The address is not told again: it may hold a password."""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    written = endpoint.isascii() and endpoint.isprintable() and not set(endpoint) & set(" ?#\\")
    if not usable or not written:
        raise ValueError("tracing.otlp_endpoint is no address of a collector; one is written http://host:4318")
