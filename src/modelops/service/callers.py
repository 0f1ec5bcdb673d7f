"""Who is at the door: the keys as they are in the state file now, and each caller's rates."""

from __future__ import annotations

import asyncio
import logging
import time

from modelops.access import Caller, Credentials, Keyring
from modelops.service.rates import Rates
from modelops.store.keys import KeyQueries
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: How often the state file is looked at: a key that was revoked is refused after that at the latest.
_LOOK_S = 0.25


class Callers:
    """Identifies callers. `open` reads the keys and keeps them fresh until `close`."""

    def __init__(self, queries: KeyQueries, rates: Rates) -> None:
        self.rates = rates
        self._queries = queries
        self._ring = Keyring()
        self._tasks = Tasks("callers")

    @property
    def need_keys(self) -> bool:
        """Whether there is a key, so that everybody needs one."""
        return self._ring.closed

    async def open(self) -> None:
        """Read the keys."""
        await self._queries.changed()  # before they are read: what is written meanwhile is read again
        self._ring = Keyring(await self._queries.all())
        self._tasks.start("watch keys", self._watch())

    async def close(self) -> None:
        """End the watching."""
        await self._tasks.close()
        await self._queries.close()
        await self.rates.close()

    def identify(self, shown: Credentials) -> Caller:
        """Who shows that. Raises Unauthenticated."""
        return self._ring.identify(shown, time.time())

    async def _watch(self) -> None:
        lost = False
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if await self._queries.changed() or lost:
                    self._ring = Keyring(await self._queries.all())
                if lost:
                    log.info("the keys can be read again")
                lost = False
            except Exception:
                if not lost:
                    log.exception(
                        "the keys cannot be read from the state file; until they can, those known so far hold"
                    )
                lost = True
                await asyncio.sleep(4 * _LOOK_S)
