"""Loads that goals of the type `availability` begin: in the background, since a file may have to be fetched or made.

It owns the loads of each model from when they are begun until the pool has begun them, and those that failed before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from modelops.api.errors import AlreadyLoaded, ModelOpsError
from modelops.goals.availability import pause_after
from modelops.serving.catalog import Catalog
from modelops.serving.pool import Pool
from modelops.serving.wishes import Wish
from modelops.tasks import Tasks

_FAULT = "a fault of the server; its log has the reason"


@dataclass
class Loading:
    """The loads of one model: the last one, how many in a row have failed before the pool had begun them, why the last
    did, and when, on the loop's clock, the next may be begun."""

    task: asyncio.Task[None] | None = None
    failures: int = 0
    why: str = ""
    again_at: float = 0.0

    @property
    def under_way(self) -> bool:
        """Whether one was begun, and not yet by the pool."""
        return self.task is not None and not self.task.done()


class Loads:
    """Begins loads, of each model one at a time."""

    def __init__(self, catalog: Catalog, pool: Pool) -> None:
        self._catalog, self._pool = catalog, pool
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks("loads of goals")
        self._of: dict[str, Loading] = {}

    async def close(self) -> None:
        """Begin none any more. What the pool has begun it goes on with."""
        await self._tasks.close()

    def of(self, name: str) -> Loading:
        """The loads of the model."""
        return self._of.get(name) or Loading()

    def wish(self, name: str) -> Wish:
        """How the model is loaded."""
        return self._pool.wish(name) or self._catalog.wish(name)

    def begin(self, name: str) -> None:
        """Begin to load the model, unless that is under way."""
        loading = self._of.setdefault(name, Loading())
        if not loading.under_way:
            loading.task = self._tasks.start(f"load {name}", self._load(name, loading))

    def keep(self, names: Collection[str]) -> None:
        """Forget all but the loads of these models; one that is under way ends, unless the pool has begun it."""
        for name in self._of.keys() - set(names):
            if task := self._of.pop(name).task:
                task.cancel()

    async def _load(self, name: str, loading: Loading) -> None:
        loading.failures, loading.why = loading.failures + 1, _FAULT
        try:
            version = await self._catalog.find(name, fetch=True)
            await self._pool.start_load(version, self.wish(name))
            loading.failures, loading.why = 0, ""
        except ModelOpsError as error:
            loading.why = error.message
            if isinstance(error, AlreadyLoaded) or self._pool.waits(name):  # it is loaded as soon as there is room
                loading.failures = 0
        finally:
            if loading.failures:
                loading.again_at = self._loop.time() + pause_after(loading.failures)
