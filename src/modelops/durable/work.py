"""One piece of durable work, from a claim on."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class Lost(Exception):
    """Somebody else works on it by now."""


@dataclass(frozen=True)
class Ended:
    """How work has ended. `why` is the error of what failed, and the reason of what was cancelled."""

    status: Literal["completed", "failed", "cancelled"]
    result: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def error(self) -> str:
        """What the row has as its error."""
        return "" if self.status == "completed" else self.why


class Work(ABC):
    """What is done for one row; `run` does what is left of it."""

    def __init__(self) -> None:
        self._looking = asyncio.Event()
        self.cancel_reason: str | None = None

    @abstractmethod
    async def run(self) -> Ended:
        """Do what is left. Raises ModelOpsError where it cannot be done: it has failed then; Lost."""

    @property
    def whole(self) -> bool:
        """Whether what it does at this moment must be done to its end, whoever has the row by now."""
        return False

    def asked_to_end(self, reason: str) -> bool:
        """Somebody wants it to end. True: `run` is to be cancelled for that. False: it ends by itself, with the row
        its own until then; it may look at `cancel_reason` at any time."""
        self.cancel_reason = reason
        return True

    def look(self) -> None:
        """See at once what others want of it."""
        self._looking.set()

    async def looked_at(self, seconds: float) -> None:
        """Wait until somebody wants it to be looked at, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._looking.wait()
        self._looking.clear()
