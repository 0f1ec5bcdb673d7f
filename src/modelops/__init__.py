"""ModelOps Coordinator: one server for the language models of a machine, and the client to it."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelops.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, so that `import modelops` and `modelops --help` stay quick.
    if name in ("Client", "AsyncClient"):
        from modelops import client

        return getattr(client, name)
    if name == "__version__":
        return metadata.version("modelops-coordinator")
    raise AttributeError(f"module 'modelops' has no attribute '{name}'")
