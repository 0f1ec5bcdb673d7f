"""One call, and what all parts of the service share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelops.access import STRANGER, Caller
from modelops.api.errors import InternalError, ModelOpsError
from modelops.goals.goals import Goals
from modelops.learning.jobs import Jobs
from modelops.metrics import Metrics
from modelops.service.callers import Callers
from modelops.serving.arrivals import Arrivals
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Machine
from modelops.serving.pool import Pool
from modelops.serving.quantised import Quantised
from modelops.settings import Settings
from modelops.tracing import NO_SPAN, Span, Tracing

log = logging.getLogger(__name__)


@dataclass
class Record:
    """What is known of a call when it ends: each part is noted by whoever learns it, the rest is as it was.

    Times are on the performance counter, but for `began_ns`, which is of the day. `acts`: it does more than look.
    `asks`: it asks a model. `model` is as the caller called it, or what that is an alias of.
    """

    request_id: str = ""
    began: float = field(default_factory=time.perf_counter)
    began_ns: int = field(default_factory=time.time_ns)
    operation: str = ""
    acts: bool = False
    asks: bool = False
    streamed: bool = False
    attempts: int = 1
    caller: str = ""
    model: str = ""
    version: str = ""
    error: ModelOpsError | None = None
    gone: bool = False
    prompt_tokens: int = 0
    tokens: int = 0
    queued_s: float | None = None
    first_token_s: float | None = None  # since the request was read
    token_s: float | None = None  # between two tokens
    latency_s: float | None = None  # of what was answered
    prompt: str = ""
    answer: str = ""
    span: Span = NO_SPAN

    @property
    def code(self) -> str:
        """How it ended: ok, cancelled, or the error's code."""
        if self.gone:
            return "cancelled"
        return self.error.code if self.error else "ok"


@dataclass(frozen=True)
class Call:
    """One call as its transport received it.

    `received` is when the request had been read, on the performance counter; `timeout_s` is how long its caller will
    wait, None for "as long as the server lets it"; `trace` its trace context, as it was sent; `peer` the address that
    it came from; `wanted` what was asked for, in its transport's words, where that may be no operation. `caller` and
    `admitted`, the name of the operation that it may perform, are set by `Coordinator.admit` and by nobody else.
    `idempotency_key` is what its caller calls it, so that a create which is repeated creates nothing more.
    """

    request_id: str
    protocol: str
    timeout_s: float | None = None
    received: float = field(default_factory=time.perf_counter)
    trace: Mapping[str, str] = field(default_factory=dict)
    caller: Caller = STRANGER
    admitted: str = ""
    record: Record = field(default_factory=Record)
    peer: str = ""
    wanted: str = ""
    idempotency_key: str | None = None

    def __post_init__(self) -> None:
        self.record.request_id = self.request_id

    @property
    def latency_ms(self) -> float:
        """From the request fully read until now."""
        return round((time.perf_counter() - self.received) * 1000, 3)

    def failed(self, error: ModelOpsError) -> None:
        """Its caller is told so."""
        self.record.error = error

    def gone(self) -> None:
        """Its caller has left: nobody is told anything."""
        self.record.gone = True


@dataclass(frozen=True)
class Parts:
    """What the operations are performed with."""

    settings: Settings
    catalog: Catalog
    machine: Machine
    pool: Pool
    arrivals: Arrivals
    quantised: Quantised
    callers: Callers
    metrics: Metrics
    tracing: Tracing
    jobs: Jobs
    goals: Goals

    def deadline(self, call: Call) -> float:
        """When `call` must be answered, on the loop's clock: the caller's own bound or the server's."""
        longest = self.settings.server.request_timeout_s
        allowed = longest if call.timeout_s is None else min(longest, call.timeout_s)
        return asyncio.get_running_loop().time() + allowed - call.latency_ms / 1000


def internal(call: Call, error: Exception) -> InternalError:
    """What a caller is told of a fault of ours; the log has the rest, under the same request id."""
    log.error(
        "request %s over %s failed",
        call.request_id,
        call.protocol,
        exc_info=error,
        extra={"request_id": call.request_id},
    )
    return InternalError(f"internal error; the server's log has the reason under request {call.request_id}")
