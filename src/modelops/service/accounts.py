"""What is kept of each call that has ended: the counters, one line of the log, the end of its span.

Nothing else counts calls; what it counts them by was noted in their records by whoever learnt it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from modelops.metrics import Metrics
from modelops.metrics.families import (
    BY_PROTOCOL,
    ERRORS,
    FIRST_TOKEN,
    LATENCY,
    OPERATION_DURATION,
    REFUSALS,
    REQUEST_DURATION,
    REQUESTS,
    TOKEN_TIME,
    UNKNOWN,
)
from modelops.service.call import Call, Record

#: One line for each call: the area `requests` of the settings.
log = logging.getLogger("modelops.requests")

#: Codes of calls that were not let in, whatever they asked for.
_REFUSED = frozenset(
    ("unauthenticated", "permission_denied", "rate_limited", "overloaded", "too_large", "insufficient_memory")
)
_LONGEST_TEXT = 2000  # characters of a prompt or an answer, where those are logged


class Accounts:
    """Keeps them. `knows` tells whether a name is a registered model's: others make no series."""

    def __init__(self, metrics: Metrics, knows: Callable[[str], bool], *, prompts: bool) -> None:
        self._metrics = metrics
        self._knows = knows
        self._prompts = prompts

    def close(self, call: Call) -> None:
        """The call is over: all that is sent of its answer is sent."""
        took = time.perf_counter() - call.record.began
        if self._metrics.enabled:
            self._count(call.protocol, call.record, took)
        # What is no operation anybody may ask for, without a key and without end.
        worth = call.record.acts or (call.record.error is not None and call.record.operation)
        level = logging.INFO if worth else logging.DEBUG
        if log.isEnabledFor(level):
            self._tell(level, call, took)
        _end(call.record)

    def _count(self, protocol: str, record: Record, took: float) -> None:
        count, observe, code = self._metrics.count, self._metrics.observe, record.code
        model = record.model if self._knows(record.model) else UNKNOWN
        if family := BY_PROTOCOL.get(protocol):
            count(family, code)
        observe(REQUEST_DURATION, took, protocol)
        if record.operation:
            observe(OPERATION_DURATION, took, record.operation)
        if record.error and code in _REFUSED:
            count(REFUSALS, model, record.error.reason)
        if not record.asks:
            return
        count(REQUESTS, model, protocol, code)
        if record.error:
            count(ERRORS, model, code)
        if record.latency_s is not None and code == "ok":
            observe(LATENCY, record.latency_s, model)
        if record.first_token_s is not None:
            observe(FIRST_TOKEN, record.first_token_s, model)
        if record.token_s is not None:
            observe(TOKEN_TIME, record.token_s, model)

    def _tell(self, level: int, call: Call, took: float) -> None:
        record, code = call.record, call.record.code
        fields: dict[str, Any] = {"request_id": record.request_id, "protocol": call.protocol, "code": code}
        if record.error and record.error.reason != code:
            fields["reason"] = record.error.reason
        noted = {
            "peer": call.peer,
            "key": record.caller,
            "model": record.model,
            "version": record.version,
            "trace_id": record.span.trace_id,
        }
        fields |= {name: value for name, value in noted.items() if value}
        fields["ms"] = round(took * 1000, 1)
        if record.queued_s is not None:
            fields["queued_ms"] = round(record.queued_s * 1000, 1)
        if record.first_token_s is not None:
            fields["first_token_ms"] = round(record.first_token_s * 1000, 1)
        if record.asks:
            fields |= {"prompt_tokens": record.prompt_tokens, "tokens": record.tokens}
        if self._prompts and record.asks:
            fields |= {"prompt": record.prompt[:_LONGEST_TEXT], "answer": record.answer[:_LONGEST_TEXT]}
        if record.streamed:
            fields["stream"] = True
        if record.attempts > 1:
            fields["attempts"] = record.attempts
        log.log(level, "%s %s", record.operation or call.wanted or "nothing known", code, extra=fields)


def _end(record: Record) -> None:
    """Of its span: what was learnt since it began is said there too."""
    learnt = {
        "modelops.caller": record.caller,
        "modelops.model": record.model,
        "modelops.version": record.version,
    }
    record.span.note({name: value for name, value in learnt.items() if value})
    record.span.end("" if record.code == "ok" else record.code)
