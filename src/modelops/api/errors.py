"""Every way in which a call can fail, each with one neutral code.

An error's message is for the caller: it tells what happened, why, and what to do next. It never holds a stack
trace, a path outside the model roots, or another caller's data. Each transport has one table from these codes to
its own status; a test proves that no code is missing from any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ModelOpsError(Exception):
    """Base of every error that a caller may see.

    `retry_after_s` is how many seconds to wait before the same call may succeed; None where waiting alone
    does not help. `details` are machine-readable strings for programs that want more than the message. `reason` is for
    the operator, who counts them: one word for what lies behind the code, where that is not enough.
    """

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        details: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})
        self.reason = reason or self.code


class InternalError(ModelOpsError):
    """A fault of ours. The log has the rest; the caller gets the request id to quote."""


class InvalidRequest(ModelOpsError):
    """Malformed, or out of the documented bounds."""

    code = "invalid_request"


class Unauthenticated(ModelOpsError):
    """No key, or a wrong one."""

    code = "unauthenticated"


class PermissionDenied(ModelOpsError):
    """The key lacks the scope."""

    code = "permission_denied"


class NotFound(ModelOpsError):
    """Unknown model, job or goal."""

    code = "not_found"


class Conflict(ModelOpsError):
    """The thing is in a state that does not allow this."""

    code = "conflict"


class AlreadyLoaded(Conflict):
    """The model is loaded: nothing was done."""


class TooLarge(ModelOpsError):
    """The request's body is over the limit."""

    code = "too_large"


def too_large(limit: int, to_do: str = "") -> TooLarge:
    """A request of more than `limit` bytes, and what to do about it."""
    return TooLarge(f"the request is over {limit} bytes (server.max_body_bytes)" + (f"; {to_do}" if to_do else ""))


class RateLimited(ModelOpsError):
    """The caller is over its own rate."""

    code = "rate_limited"


class EngineFailed(ModelOpsError):
    """The engine broke, or answered what no engine should."""

    code = "engine_failed"


class Overloaded(ModelOpsError):
    """The queue is full, the breaker is open, or the coordinator is draining."""

    code = "overloaded"


def shutting_down() -> Overloaded:
    """What everybody is told who asks, or still waits, at the end."""
    return Overloaded("the coordinator is shutting down", retry_after_s=5.0, reason="draining")


class DeadlineExceeded(ModelOpsError):
    """The caller's time, or the server's own bound, ran out."""

    code = "deadline_exceeded"


class InsufficientMemory(ModelOpsError):
    """The model does not fit; `details` hold the bill."""

    code = "insufficient_memory"


class DiskFull(InsufficientMemory):
    """The disk has no room for a file; `details` hold `resource` "disk", and the bytes where they are known."""


class NotAvailable(ModelOpsError):
    """This release does not do that yet."""

    code = "not_implemented"


def _leaves(cls: type[ModelOpsError]) -> list[type[ModelOpsError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _leaves(sub))]


#: code → the class that a client raises for it.
BY_CODE: dict[str, type[ModelOpsError]] = {
    cls.code: cls for cls in reversed(_leaves(ModelOpsError)) if cls not in (ModelOpsError, AlreadyLoaded, DiskFull)
}
