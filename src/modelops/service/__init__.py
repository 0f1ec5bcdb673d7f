"""The door: one method for each operation of the operations table, the same for every transport.

Checks who calls and the request's meaning, fixes its deadline, delegates. Knows no wire format; owns no state of its
own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from modelops.access import Credentials, check
from modelops.api.operations import Operation
from modelops.api.planned import Planned
from modelops.api.types import Request, Response
from modelops.service.call import Call, Parts, internal
from modelops.service.inference import Inference
from modelops.service.models import Models
from modelops.service.system import System


class Coordinator(Inference, Models, System):
    """Every operation. Each raises ModelOpsError and nothing else.

    A transport asks `admit` first, and then calls `perform` or `chunks` with the call that it got; what was not
    admitted is not performed.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._parts = parts

    @property
    def needs_keys(self) -> bool:
        """Whether callers have to show a key, or a certificate."""
        return self._parts.callers.need_keys

    async def admit(self, call: Call, operation: Operation | Planned, shown: Credentials) -> Call:
        """The call, with its caller. Raises Unauthenticated, PermissionDenied, RateLimited.

        Nothing of the request needs to have been read before.
        """
        caller = self._parts.callers.identify(shown)
        check(caller, operation.scope, operation.name)
        if operation.scope is not None:
            await self._parts.callers.rates.admit(caller, spends_tokens=operation.scope == "infer")
        return replace(call, caller=caller, admitted=operation.name)

    async def perform(self, call: Call, operation: Operation, request: Request) -> Any:
        """The whole answer."""
        _only_admitted(call, operation)
        return await getattr(self, operation.name)(call, request)

    def chunks(self, call: Call, operation: Operation, request: Request) -> AsyncGenerator[Response]:
        """The answer in chunks. Closing the generator ends the work."""
        _only_admitted(call, operation)
        assert operation.stream is not None
        generator: AsyncGenerator[Response] = getattr(self, operation.stream.method)(call, request)
        return generator


def _only_admitted(call: Call, operation: Operation) -> None:
    if call.admitted != operation.name:
        fault = RuntimeError(f"'{operation.name}' was to be performed for a call admitted to '{call.admitted}'")
        raise internal(call, fault)


__all__ = ["Call", "Coordinator", "Credentials", "Parts", "internal"]
