"""Wakes whoever waits for something new about durable work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Bell:
    """Rings for one piece of work, by its id, for all who wait for it."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    def ring(self, row_id: str) -> None:
        """There is something new."""
        for event in self._waiting.get(row_id, ()):
            event.set()

    def close(self) -> None:
        """Nobody waits any more."""
        self.closed = True
        for row_id in self._waiting:
            self.ring(row_id)

    @contextlib.contextmanager
    def hearing(self, row_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever it rings for that work."""
        event = asyncio.Event()
        self._waiting.setdefault(row_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[row_id].discard(event)
            if not self._waiting[row_id]:
                del self._waiting[row_id]
