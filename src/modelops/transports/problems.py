"""What a refusal looks like over HTTP, whoever refuses: an operation, a route, or the server below them."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from modelops.api.errors import ModelOpsError
from modelops.transports import openapi

#: The table from codes to HTTP statuses.
STATUS: dict[str, int] = {code: status for code, (status, _) in openapi.STATUS.items()}


def problem(error: ModelOpsError, request_id: str, status: int = 0) -> Response:
    """The error as RFC 9457 says, with `success` and `error_message` for clients that only know InferenceResponse."""
    status = status or STATUS[error.code]
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
        "success": False,
        "error_message": error.message,
    }
    headers = {"x-request-id": request_id}
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 wants one with every 401
    if error.details:
        body["details"] = error.details
    if error.retry_after_s is not None:
        body["retry_after_s"] = round(error.retry_after_s, 3)
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    encoded = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(encoded, status, headers, media_type="application/problem+json")
