"""The messages of ZMQ: JSON as docs/spec/api.md has it, checked on the way in, made on the way out."""

from __future__ import annotations

import re
from typing import Any

from modelops.api.errors import InvalidRequest, ModelOpsError
from modelops.api.operations import OPERATIONS, Operation
from modelops.service import Call

#: ZMQ answers carry the neutral code itself; the table exists so that one test covers all transports.
STATUS: dict[str, str] = {
    code: code
    for code in (
        *("invalid_request", "unauthenticated", "permission_denied", "not_found", "conflict", "too_large"),
        *("rate_limited", "internal", "not_implemented", "engine_failed", "overloaded", "deadline_exceeded"),
        "insufficient_memory",
    )
}

ACTIONS: dict[str, Operation] = {operation.action: operation for operation in OPERATIONS}
_KINDS: dict[str, tuple[type, ...]] = {
    "action": (str,),
    "request_id": (str,),
    "timestamp": (str,),
    "stream": (bool,),
    "timeout_s": (int, float),
    "api_key": (str,),
    "traceparent": (str,),
    "tracestate": (str,),
}
#: Fields of W3C Trace Context.
TRACE = ("traceparent", "tracestate")
_ENVELOPE = (*_KINDS, "payload")
_FIND_REQUEST_ID = re.compile(rb'"request_id"\s*:\s*"([^"\\\x00-\x1f]{1,128})"')
_FIND_ACTION = re.compile(rb'"action"\s*:\s*"(\w+)"', re.ASCII)


def envelope(message: Any) -> dict[str, Any]:
    """The message, its own fields checked. Raises InvalidRequest."""
    if not isinstance(message, dict):
        raise InvalidRequest("a message is a JSON object with 'action' and 'payload'")
    for name in message:
        if name not in _ENVELOPE:
            raise InvalidRequest(f"unknown field '{str(name)[:64]}' beside the payload; known: {', '.join(_ENVELOPE)}")
    for name, kinds in _KINDS.items():
        if name in message and type(message[name]) not in kinds:
            raise InvalidRequest(f"'{name}' has the wrong type")
    if message.get("timeout_s", 1) <= 0:
        raise InvalidRequest("'timeout_s' must be above 0")
    if len(message.get("request_id", "")) > 128:
        raise InvalidRequest("'request_id' is over 128 characters")
    action = message.get("action", "")
    if action not in ACTIONS and action != "cancel":
        known = ", ".join([*ACTIONS, "cancel"])
        raise InvalidRequest(f"unknown action '{action[:64]}'; known: {known}")
    return message


def find_request_id(body: memoryview) -> str:
    """The request's id, found without reading the rest: it is echoed even when the rest is unreadable."""
    found = _FIND_REQUEST_ID.search(bytes(body[:4096])) or _FIND_REQUEST_ID.search(bytes(body[-4096:]))
    return found[1].decode("utf-8", "replace") if found else ""


def advice(body: memoryview) -> str:
    """What to do about a message that is too large to be read, as far as its beginning tells."""
    found = _FIND_ACTION.search(bytes(body[:4096]))
    operation = ACTIONS.get(found[1].decode()) if found else None
    return operation.too_large if operation else ""


def done(call: Call, result: Any) -> dict[str, Any]:
    """An answer, but for its request id."""
    return {
        "success": True,
        "result": result,
        "error": None,
        "latency_ms": call.latency_ms,
    }


def piece(call: Call, chunk: Any) -> dict[str, Any]:
    """A chunk of a stream; the last one is marked, and fails where the answer was cut short."""
    answer = done(call, chunk.model_dump(mode="json", exclude_none=True)) | {"done": chunk.done}
    if (final := getattr(chunk, "final", None)) and not final.success:
        answer |= {"success": False, "error": final.error_message}
    return answer


def failed(call: Call, error: ModelOpsError) -> dict[str, Any]:
    """A refusal, but for its request id."""
    call.failed(error)
    answer: dict[str, Any] = {
        "success": False,
        "result": None,
        "error": error.message,
        "code": STATUS[error.code],
        "latency_ms": call.latency_ms,
        "done": True,
    }
    if error.retry_after_s is not None:
        answer["retry_after_s"] = round(error.retry_after_s, 3)
    if error.details:
        answer["details"] = error.details
    return answer
