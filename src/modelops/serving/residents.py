"""What a restart has to bring back: notes which models are loaded, and loads them again at the next start.

The list is written as it changes: an unload, an eviction or the end of a keep-alive takes a model off it; the end of
the coordinator, however it comes, does not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from modelops.api.errors import ModelOpsError
from modelops.serving.catalog import Catalog
from modelops.serving.pool import Pool
from modelops.serving.wishes import Wish
from modelops.store.residents import ModelRow, ResidentQueries
from modelops.tasks import Tasks

log = logging.getLogger(__name__)


class Residents:
    """The list of what is wanted. `close` waits until all of it is written."""

    def __init__(self, queries: ResidentQueries) -> None:
        self.queries = queries
        self._tasks = Tasks("residents")
        self._restoring = Tasks("restore")
        self._fetching = Tasks("fetch")

    def remember(self, name: str, wish: Wish | None) -> asyncio.Task[None]:
        """`name` is loaded so, or with None is not wanted any more; done when that, and all before, is written."""
        written = wish.to_json() if wish else "{}"
        write = self.queries.set_wanted(name, wanted=wish is not None, wish=written, at=time.time())
        return self._tasks.start(f"note {name}", write)

    def restore(self, catalog: Catalog, pool: Pool, rows: Iterable[ModelRow]) -> None:
        """Begin to load what was loaded, and what the catalogue wants, one after another.

        Pinned models and those that goals keep come first, then the one that was loaded last. What must be fetched
        first keeps nobody waiting.
        """
        wanted = {name: catalog.wish(name) for name in reversed(catalog.preloaded())}
        wanted |= {row.model_name: Wish.from_json(row.wish) for row in rows if row.wanted}
        order = list(wanted.items())[::-1]
        order.sort(key=lambda found: not (found[1].pinned or found[0] in pool.kept))
        here = set(catalog.names())
        present = [(name, wish) for name, wish in order if name in here or not catalog.entry(name).source]
        if present:
            self._restoring.start("load", self._load(catalog, pool, present))
        for name, wish in order:
            if (name, wish) not in present:
                self._fetching.start(f"fetch {name}", self._load(catalog, pool, [(name, wish)]))

    async def begun(self) -> None:
        """Wait until all that `restore` loads is on its way, but for what must be fetched first."""
        await self._restoring.finish()

    async def close(self) -> None:
        """Write what is still to be written."""
        await self._fetching.close()
        await self._restoring.close()
        await self._tasks.finish()

    async def _load(self, catalog: Catalog, pool: Pool, wanted: list[tuple[str, Wish]]) -> None:
        names = [name for name, _ in wanted]
        log.info("loading %s", ", ".join(names), extra={"models": names})
        for name, wish in wanted:
            try:
                if not pool.resident(name):  # its first caller may have been faster
                    await pool.start_load(await catalog.find(name, fetch=True), wish)
            except ModelOpsError as error:
                told = {"model": name, "code": error.code}
                log.warning("%s is wanted and was not loaded: %s", name, error.message, extra=told)
