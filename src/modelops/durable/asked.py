"""What the same request has again: so that one which is repeated under its idempotency key is told from another."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from modelops.api.messages import Request


def digest(request: Request) -> str:
    """The same for the same request, however it came; of free-form objects protobuf keeps no order of the fields, and
    of numbers not whether they were written as whole ones."""
    asked = json.dumps(_alike(request.model_dump(mode="json")), sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def _alike(value: Any) -> Any:
    """The value with each number that is whole as such: 1.0 is 1."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _alike(each) for name, each in value.items()}
        case list():
            return [_alike(each) for each in value]
    return value
