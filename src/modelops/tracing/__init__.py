"""Spans: what a call waits for, and for how long, as a tree that begins with its caller's own.

The rest of the program sees `Span`, and nothing of OpenTelemetry: `otel` alone imports it, where a collector is named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Literal, Protocol

from modelops.api.errors import InternalError, ModelOpsError

#: What may be said of a span.
Value = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, Value]
NOTHING: Attributes = MappingProxyType({})
Kind = Literal["server", "client", "internal"]


class Span(Protocol):
    """A stretch of time with a name, begun when it is made."""

    @property
    def trace_id(self) -> str:
        """Of the trace, in hexadecimal, also where it is not sampled; empty where there is none."""

    def child(self, name: str, attributes: Attributes = NOTHING, kind: Kind = "internal") -> Span:
        """A part of it, which begins now."""

    def note(self, attributes: Attributes) -> None:
        """Say more of it."""

    def event(self, name: str) -> None:
        """Something happens now."""

    def end(self, error: str = "") -> None:
        """It ends now, where it has not; `error` is the kind of its failure."""


class _Unrecorded:
    __slots__ = ("trace_id",)

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id

    def child(self, name: str, attributes: Attributes = NOTHING, kind: Kind = "internal") -> Span:
        return self

    def note(self, attributes: Attributes) -> None:
        pass

    def event(self, name: str) -> None:
        pass

    def end(self, error: str = "") -> None:
        pass


def unrecorded(trace_id: str) -> Span:
    """A span of which nothing is kept, nor of its parts."""
    return _Unrecorded(trace_id)


NO_SPAN = unrecorded("")
_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


class Tracing:
    """Begins traces; this one records nothing."""

    def begin(self, name: str, attributes: Attributes, carrier: Mapping[str, str], began_ns: int) -> Span:
        """The span of a call that came at `began_ns` (nanoseconds since 1970). `carrier` holds its caller's
        `traceparent` and `tracestate` (W3C Trace Context), where it sent them and in whatever state."""
        return NO_SPAN

    def close(self) -> None:
        """Hand over what has been recorded. Blocks for two seconds at most."""


@contextlib.contextmanager
def part(span: Span, name: str, attributes: Attributes = NOTHING, kind: Kind = "internal") -> Iterator[Span]:
    """A part of `span`, as long as the context is open. Where it is left by an error, that is what it ends with."""
    begun, error = span.child(name, attributes, kind), "cancelled"
    try:
        yield begun
        error = ""
    except ModelOpsError as refusal:
        error = refusal.code
        raise
    except Exception:
        error = InternalError.code
        raise
    finally:
        begun.end(error)


@contextlib.contextmanager
def acting_for(span: Span) -> Iterator[None]:
    """What is begun in here, also as a task, is begun for `span`."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Span:
    """What this task was begun for."""
    return _current.get()
