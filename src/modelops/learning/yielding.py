"""Serving comes first: what learns on the cores that serve stands still while requests are answered.

Owns who is paused. Told by the pool when requests begin and end; knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol


class Pausable(Protocol):
    """What can stand still."""

    def pause(self) -> None:
        """Stop where it stands."""

    def resume(self) -> None:
        """Go on."""


class Yielding:
    """Pauses all that gives way as soon as there are requests, and lets it go on `resume_after_s` after the last."""

    def __init__(self, resume_after_s: float) -> None:
        self._resume_after_s = resume_after_s
        self._giving: list[Pausable] = []
        self._timer: asyncio.TimerHandle | None = None
        self.paused = False

    def busy(self, busy: bool) -> None:
        """There are requests now, or none any more."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if busy and not self.paused:
            self.paused = True
            for work in self._giving:
                work.pause()
        elif not busy and self.paused:
            self._timer = asyncio.get_running_loop().call_later(self._resume_after_s, self._resume)

    @contextlib.contextmanager
    def giving_way(self, work: Pausable) -> Iterator[None]:
        """`work` gives way as long as the context is open."""
        self._giving.append(work)
        if self.paused:
            work.pause()
        try:
            yield
        finally:
            self._giving.remove(work)
            work.resume()  # so that it can be ended

    def _resume(self) -> None:
        self._timer = None
        self.paused = False
        for work in self._giving:
            work.resume()
