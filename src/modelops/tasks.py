"""Tasks with a name and an owner. The only place that may start one.

A task that fails is logged with its name; `Tasks.close` ends what its owner started, so that nothing runs on after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one owner."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(
        self, name: str, work: Coroutine[Any, Any, Any], *, expected: tuple[type[Exception], ...] = ()
    ) -> asyncio.Task[Any]:
        """Run `work` until it ends or the owner closes; a failure is logged, unless it is one that was `expected`."""
        task = asyncio.create_task(work, name=f"{self._owner}: {name}")  # noqa: TID251 - the one place
        self._running.add(task)
        task.add_done_callback(partial(self._ended, expected))
        return task

    async def whole(self, name: str, work: Coroutine[Any, Any, T], *, expected: tuple[type[Exception], ...] = ()) -> T:
        """The result of `work`, which is done to its end also where who waits for it is cancelled meanwhile."""
        result: T = await asyncio.shield(self.start(name, work, expected=expected))
        return result

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        while self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(self._running)

    async def finish(self) -> None:
        """Wait until every task has ended by itself."""
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, expected: tuple[type[Exception], ...], task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, expected):
            log.error("task failed: %s", task.get_name(), exc_info=error, extra={"task": task.get_name()})
