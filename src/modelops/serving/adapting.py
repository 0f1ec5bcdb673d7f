"""Sees that engines hold the adapters that the catalogue has for their models, and who may be answered by which.

An engine's adapters are fixed when it is started. Where there are others, a new engine with those is started beside the
present one and takes its place, as another version's would; nobody who asks notices. The catalogue says which they are;
what is loaded is the pool's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    ModelOpsError,
    NotFound,
    Overloaded,
    shutting_down,
)
from modelops.serving.adapters import Adapters
from modelops.serving.catalog import Catalog, Version
from modelops.serving.running import Running
from modelops.serving.views import View
from modelops.serving.wishes import Wish
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: For so long no engine is started again for the sake of adapters with which one did not come up, unless they change.
_COOL_DOWN_S = 5.0


class Host(Protocol):
    """The pool, as far as it is asked from here."""

    def current(self, name: str) -> Running | None:
        """The engine that requests for the model go to, or will when it is loaded."""

    def at_rest(self, name: str) -> bool:
        """Whether nothing is about to become of the model: its engine serves, or it has none."""

    async def turned(self) -> None:
        """Wait until something became of any model."""

    async def exchange(self, name: str, running: Running, chosen: Version | None, *, drain_first: bool) -> bool:
        """Let the model's active version be served, in the place of `running`, by an engine with the adapters that
        there are now, of which `chosen` is to be one and active from then on. False: something else became of the
        model before that began."""

    async def load(self, version: Version, wish: Wish, deadline: float) -> View:
        """As the pool's."""

    async def start_load(self, version: Version, wish: Wish) -> View:
        """As the pool's."""

    def view(self, name: str) -> View:
        """As the pool's."""


class Adapting:
    """Of all models. At most `most` requests wait for the next engine of one."""

    def __init__(self, catalog: Catalog, adapters: Adapters, host: Host, most: int) -> None:
        self._catalog = catalog
        self._adapters = adapters
        self._host = host
        self._most = most
        self._tasks = Tasks("adapters")
        self._following: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, float] = {}  # until when the last attempt's failure is everybody's
        self._waiting: Counter[str] = Counter()
        catalog.adapters_changed = self.follow

    async def close(self) -> None:
        """Begin nothing any more."""
        self._catalog.adapters_changed = lambda name: None
        await self._tasks.close()

    def follow(self, name: str) -> None:
        """The engine of the model `name`, if it has one, gets the adapters that the catalogue has now."""
        self._failed.pop(name, None)
        if self._host.current(name) or not self._host.at_rest(name):
            self._join(name)

    def following(self, name: str) -> bool:
        """Whether it is about to get others."""
        task = self._following.get(name)
        return task is not None and not task.done()

    def _join(self, name: str) -> asyncio.Task[None]:
        if not self.following(name) and asyncio.get_running_loop().time() >= self._failed.get(name, 0.0):
            self._following[name] = self._tasks.start(name, self._follow(name), expected=(ModelOpsError,))
        return self._following[name]

    async def _follow(self, name: str) -> None:
        try:
            while running := await self._resting(name):
                version = self._catalog.active(name)
                wanted = await self._adapters.beside(version)
                if running.build.version.number == version.number and _keys(running.adapters) == _keys(wanted):
                    return
                if self._host.current(name) is running:
                    await self._host.exchange(name, running, None, drain_first=False)
        except ModelOpsError as error:
            if isinstance(error, EngineFailed | DeadlineExceeded):  # others may be over any moment
                self._failed[name] = asyncio.get_running_loop().time() + _COOL_DOWN_S
            log.warning("the adapters of '%s' are as they were: %s", name, error.message, extra={"model": name})
            raise

    async def _resting(self, name: str) -> Running | None:
        """Its engine, once nothing is about to become of it; None where it has none."""
        while not self._host.at_rest(name):
            await self._host.turned()
        return self._host.current(name)

    # --- requests ---
    async def held(self, name: str, deadline: float) -> None:
        """Wait until a request for the adapter `name` may be asked: the engine that it would go to holds the adapter,
        or is yet to be started.

        Raises NotFound where there is none any more, Conflict where its model answers by another file than it was made
        for, what kept the engine from being replaced, DeadlineExceeded.
        """
        while True:
            adapter = self._catalog.active(name)
            if not adapter.base:
                raise NotFound(f"'{name}' is no adapter any more")
            base = adapter.engine_name
            running = self._host.current(base)
            if running and running.adapter(name, [adapter.number]) is not None:
                return
            try:
                async with asyncio.timeout_at(deadline):
                    await self._adapters.base(adapter)
                    if self._host.current(base) is None:
                        return
                    await self._wait(base)
            except TimeoutError:
                raise DeadlineExceeded(f"the time ran out while waiting for an engine with '{name}'") from None

    async def _wait(self, base: str) -> None:
        if self._waiting[base] >= self._most:
            raise Overloaded(
                f"{self._waiting[base]} requests already wait for the next engine of '{base}'; try again",
                retry_after_s=1.0,
                reason="queue_full",
            )
        self._waiting[base] += 1
        try:
            task = self._join(base)
            await asyncio.wait([task])
        finally:
            self._waiting[base] -= 1
        if task.cancelled():
            raise shutting_down()
        task.result()

    # --- the life of an adapter ---
    async def activate(self, adapter: Version, *, drain_first: bool, deadline: float) -> None:
        """Let that version of an adapter answer from now on; where its model is loaded, without a failed request. What
        has begun goes on when its caller leaves. Raises Conflict where its model answers by another file."""
        what = f"activate {adapter.model_name} {adapter.label}"
        task = self._tasks.start(what, self._activate(adapter, drain_first), expected=(ModelOpsError,))
        await asyncio.wait([task], timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        if not task.done():
            raise DeadlineExceeded(f"the time ran out while activating '{adapter.model_name}' {adapter.label}")
        if task.cancelled():
            raise shutting_down()
        task.result()

    async def _activate(self, adapter: Version, drain_first: bool) -> None:
        name, base = adapter.model_name, adapter.engine_name
        await self._adapters.base(adapter)
        while running := await self._resting(base):
            if running.adapter(name, [adapter.number]) is not None:
                break
            if await self._host.exchange(base, running, adapter, drain_first=drain_first):
                break
        await self._catalog.activate(adapter)

    async def load(self, adapter: Version, wish: Wish, deadline: float) -> View:
        """Load the adapter's model, if that is not loaded, with the adapter. Raises AlreadyLoaded where it is there."""
        name = adapter.model_name
        base = await self._adapters.base(adapter)
        try:
            await self._host.load(base, wish, deadline)
        except AlreadyLoaded:
            self._refuse_loaded(adapter)
        await self.held(name, deadline)
        return self._host.view(name)

    async def start_load(self, adapter: Version, wish: Wish) -> View:
        """Begin what `load` does."""
        base = await self._adapters.base(adapter)
        try:
            await self._host.start_load(base, wish)
        except AlreadyLoaded:
            self._refuse_loaded(adapter)
        self.follow(adapter.engine_name)
        return self._host.view(adapter.model_name)

    def _refuse_loaded(self, adapter: Version) -> None:
        running = self._host.current(adapter.engine_name)
        if running and running.adapter(adapter.model_name, [adapter.number]) is not None:
            raise AlreadyLoaded(f"'{adapter.model_name}' is already loaded") from None

    def refuse_unload(self, name: str) -> None:
        """Raises Conflict, and says what to do, where `name` is an adapter, which has no engine of its own."""
        if self._catalog.is_adapter(name):
            base = self._catalog.active(name).engine_name
            raise Conflict(f"'{name}' is served by the engine of '{base}'; unload '{base}', or remove '{name}'")


def _keys(versions: Sequence[Version]) -> list[tuple[str, int]]:
    return [(version.model_name, version.number) for version in versions]
