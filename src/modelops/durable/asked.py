"""What the same request has again: so that one which is repeated under its idempotency key is told from another."""

from __future__ import annotations

import hashlib
import json

from modelops.api.messages import Request


def digest(request: Request) -> str:
    """The same for the same request, however it came; protobuf keeps no order of the fields of free-form objects."""
    asked = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
