"""Files on their way: what is being fetched or quantised, how far it is, and why it failed.

Two callers who want the same share one piece of work, which ends early when nobody waits for it any more. Owns nothing
on disk: what the work leaves behind is its own business.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from modelops.api.errors import ModelOpsError, shutting_down
from modelops.tasks import Tasks

T = TypeVar("T")
#: Called with (bytes so far, bytes in all; 0 when unknown).
Progress = Callable[[int, int], None]
_MB = 2**20


@dataclass
class Arrival(Generic[T]):
    """One piece of work for the model `name`. `what` is a word for people: fetching, quantising."""

    name: str
    what: str
    done: int = 0
    total: int = 0
    waiting: int = 0
    error: ModelOpsError | None = None
    task: asyncio.Task[T] | None = None

    @property
    def progress(self) -> float:
        """From 0 to 1; 0 where the whole is not known."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def message(self) -> str:
        """How it stands, for people."""
        if self.error:
            return self.error.message
        if not self.done and not self.total:
            return self.what
        return f"{self.what}: {self.done // _MB} MB" + (f" of {self.total // _MB} MB" if self.total else "")


class Arrivals:
    """All that is on its way, and of what failed in the background, the last of each model until it is tried again."""

    def __init__(self) -> None:
        self._tasks = Tasks("arrivals")
        self._running: dict[str, Arrival[Any]] = {}  # by what they bring
        self._failed: dict[str, Arrival[Any]] = {}  # by model
        self._numbers = itertools.count(1)

    def of(self, name: str) -> Arrival[Any] | None:
        """What is on its way for the model `name`, the latest piece of work; or what failed to come."""
        running = next((arrival for arrival in reversed(self._running.values()) if arrival.name == name), None)
        return running or self._failed.get(name)

    def names(self) -> set[str]:
        """The models that something is on its way for, or failed to come."""
        return {arrival.name for arrival in self._running.values()} | self._failed.keys()

    def forget(self, name: str) -> None:
        """The failure of `name` is of no interest any more."""
        self._failed.pop(name, None)

    def begin(self, name: str, what: str, work: Callable[[Progress], Awaitable[object]]) -> None:
        """Do `work`, which nobody waits for: `of` tells how it stands from now on, and why it failed."""
        self._begin(f"{what} {name} {next(self._numbers)}", name, what, work, kept=True).waiting = 1

    def coming(self, name: str) -> bool:
        """Whether something is on its way for the model `name`."""
        return any(arrival.name == name for arrival in self._running.values())

    async def end(self, name: str, error: ModelOpsError) -> None:
        """End all work for the model `name`; who waits for it is told `error`."""
        tasks = []
        for arrival in self._running.values():
            if arrival.name == name and arrival.task:
                arrival.error = error
                arrival.task.cancel()
                tasks.append(arrival.task)
        if tasks:
            await asyncio.wait(tasks)

    async def bring(self, key: str, name: str, what: str, work: Callable[[Progress], Awaitable[T]]) -> T:
        """The result of `work`, or of the one that is already running for `key`; raises what it raises."""
        while (given_up := self._running.get(key)) and not given_up.waiting and given_up.task:
            await asyncio.wait([given_up.task])  # nobody wanted it any more: it is just ending
        arrival = self._begin(key, name, what, work)
        assert arrival.task is not None
        arrival.waiting += 1
        try:
            return await asyncio.shield(arrival.task)
        except asyncio.CancelledError:
            us = asyncio.current_task()
            if us and not us.cancelling():  # the work was ended, and not who waits for it
                raise arrival.error or shutting_down() from None
            raise
        finally:
            arrival.waiting -= 1
            if not arrival.waiting:
                arrival.task.cancel()

    async def close(self) -> None:
        """End all work; who waits for it is told so."""
        await self._tasks.close()

    def _begin(
        self, key: str, name: str, what: str, work: Callable[[Progress], Awaitable[T]], *, kept: bool = False
    ) -> Arrival[T]:
        if key in self._running:
            return self._running[key]
        arrival = self._running[key] = Arrival[T](name, what)
        self._failed.pop(name, None)

        def progress(done: int, total: int) -> None:
            arrival.done, arrival.total = done, total

        async def run() -> T:
            try:
                return await work(progress)
            except ModelOpsError as error:
                arrival.error = error
                if kept:
                    self._failed[name] = arrival
                raise
            finally:
                ended()

        def ended(_: object = None) -> None:
            if self._running.get(key) is arrival:
                del self._running[key]

        arrival.task = self._tasks.start(f"{what} {name}", run(), expected=(ModelOpsError,))
        arrival.task.add_done_callback(ended)  # a task that is cancelled before its first step never gets to its end
        return arrival
