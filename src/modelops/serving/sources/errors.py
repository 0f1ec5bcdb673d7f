"""What goes wrong in a fetch and has no class in the contract's own errors."""

from __future__ import annotations

from modelops.api.errors import DiskFull, ModelOpsError

__all__ = ["DiskFull", "FetchFailed"]


class FetchFailed(ModelOpsError):
    """The file could not be fetched: the other side failed, or sent what it should not have sent."""

    code = "engine_failed"
