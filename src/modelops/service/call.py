"""One call, and what all parts of the service share."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from modelops.access import STRANGER, Caller
from modelops.api.errors import InternalError
from modelops.service.callers import Callers
from modelops.serving.arrivals import Arrivals
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Machine
from modelops.serving.pool import Pool
from modelops.serving.quantised import Quantised
from modelops.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One call as its transport received it.

    `received` is when the request had been read, on the performance counter; `timeout_s` is how long its caller will
    wait, None for "as long as the server lets it". `caller` and `admitted`, the name of the operation that it may
    perform, are set by `Coordinator.admit` and by nobody else.
    """

    request_id: str
    protocol: str
    timeout_s: float | None = None
    received: float = field(default_factory=time.perf_counter)
    caller: Caller = STRANGER
    admitted: str = ""

    @property
    def latency_ms(self) -> float:
        """From the request fully read until now."""
        return round((time.perf_counter() - self.received) * 1000, 3)


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

    def deadline(self, call: Call) -> float:
        """When `call` must be answered, on the loop's clock: the caller's own bound or the server's."""
        longest = self.settings.server.request_timeout_s
        allowed = longest if call.timeout_s is None else min(longest, call.timeout_s)
        return asyncio.get_running_loop().time() + allowed - call.latency_ms / 1000


def internal(call: Call, error: Exception) -> InternalError:
    """What a caller is told of a fault of ours; the log has the rest, under the same request id."""
    log.error("request %s over %s failed", call.request_id, call.protocol, exc_info=error)
    return InternalError(f"internal error; the server's log has the reason under request {call.request_id}")
