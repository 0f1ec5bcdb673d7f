"""The door: one method for each operation of the operations table, the same for every transport.

Checks who calls and the request's meaning, fixes its deadline, delegates, and counts what becomes of it. Knows no wire
format; owns no state of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from modelops.access import Credentials, check
from modelops.api.errors import DeadlineExceeded, InvalidRequest
from modelops.api.messages import Request, Response
from modelops.api.operations import Door, Operation
from modelops.service.accounts import Accounts
from modelops.service.call import Call, Parts, internal
from modelops.service.goals import Goals
from modelops.service.inference import Inference
from modelops.service.learning import Learning
from modelops.service.models import Models
from modelops.service.system import System
from modelops.tracing import acting_for

#: Clocks of two machines, or two libraries, do not end a time at the same moment.
_HAIR_S = 0.05
_LONGEST_KEY = 255


class Coordinator(Inference, Models, Learning, Goals, System):
    """Every operation. Each raises ModelOpsError and nothing else.

    A transport keeps each call in `following`, asks `admit` first, and then calls `perform` or `chunks` with the call
    that it got; what was not admitted is not performed.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._parts = parts
        self._accounts = Accounts(parts.metrics, parts.catalog.knows, prompts=parts.settings.log.prompts)

    @property
    def needs_keys(self) -> bool:
        """Whether callers have to show a key, or a certificate."""
        return self._parts.callers.need_keys

    @contextlib.contextmanager
    def following(self, call: Call) -> Iterator[None]:
        """The time of the call, from its arrival until all of its answer is handed over: then it is counted.

        What it ended by is told with `Call.failed` and `Call.gone`. A context that is cancelled was left by its caller;
        any other error that leaves it, before the caller was told one, is a fault of ours.
        """
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self._left(call)
            raise
        except Exception as error:
            if call.record.error is None:  # nobody has been told: whoever called us tells it, in its own words
                call.failed(internal(call, error))
            raise
        finally:
            self._accounts.close(call)

    def _left(self, call: Call) -> None:
        """Nobody waits any more. Where the time that the caller gave it is over, that is why."""
        if call.record.error is not None:
            return
        if call.timeout_s is not None and time.perf_counter() - call.record.began >= call.timeout_s - _HAIR_S:
            call.failed(DeadlineExceeded("its caller's time ran out"))
        else:
            call.gone()

    async def admit(self, call: Call, door: Door, shown: Credentials) -> Call:
        """The call, with its caller. Raises Unauthenticated, PermissionDenied, RateLimited.

        Nothing of the request needs to have been read before.
        """
        record = call.record
        record.operation, record.acts, record.asks = door.name, door.acts, door.scope == "infer"
        about = {
            "modelops.operation": door.name,
            "modelops.protocol": call.protocol,
            "modelops.request_id": call.request_id,
        }
        record.span = self._parts.tracing.begin(door.name, about, call.trace, record.began_ns)
        caller = self._parts.callers.identify(shown)
        record.caller = caller.name
        check(caller, door.scope, door.name)
        if door.scope is not None:
            await self._parts.callers.rates.admit(caller, spends_tokens=record.asks)
        return replace(call, caller=caller, admitted=door.name)

    async def perform(self, call: Call, operation: Operation, request: Request) -> Any:
        """The whole answer."""
        self._begin(call, operation, request)
        with acting_for(call.record.span):
            return await getattr(self, operation.name)(call, request)

    def chunks(self, call: Call, operation: Operation, request: Request) -> AsyncGenerator[Response]:
        """The answer in chunks. Closing the generator ends the work."""
        self._begin(call, operation, request)
        assert operation.stream is not None
        call.record.streamed = True
        generator: AsyncGenerator[Response] = getattr(self, operation.stream.method)(call, request)
        return generator

    def several(
        self, call: Call, operation: Operation, questions: Sequence[Request], n: int, *, whole: bool
    ) -> AsyncGenerator[tuple[int, Any]]:
        """`n` answers to each of the questions, numbered, in chunks, or only the last chunk of each.

        They are one call, and take one place: see `Inference.infer_several`.
        """
        self._begin(call, operation, questions[0])
        call.record.streamed = not whole
        generator: AsyncGenerator[tuple[int, Any]]
        generator = getattr(self, f"{operation.name}_several")(call, questions, n, whole=whole)
        return generator

    def _begin(self, call: Call, operation: Operation, request: Request) -> None:
        if call.admitted != operation.name:
            fault = RuntimeError(f"'{operation.name}' was to be performed for a call admitted to '{call.admitted}'")
            raise internal(call, fault)
        if operation.creates and call.idempotency_key is not None:
            _check_key(call.idempotency_key)
        if name := getattr(request, "model_name", ""):
            call.record.model = self._parts.catalog.resolve(name)


def _check_key(key: str) -> None:
    if not (1 <= len(key) <= _LONGEST_KEY and key.isprintable()):
        raise InvalidRequest(f"an idempotency key is 1 to {_LONGEST_KEY} printable characters")


__all__ = ["Call", "Coordinator", "Credentials", "Parts", "internal"]
