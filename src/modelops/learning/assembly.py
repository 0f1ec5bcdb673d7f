"""Puts the parts of learning together: started after the pool, and closed before it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from modelops.durable.bell import Bell
from modelops.engines.process import kill_leftovers
from modelops.learning.child import PROGRAM
from modelops.learning.engines import OwnEngines
from modelops.learning.folders import Folders
from modelops.learning.jobs import Jobs
from modelops.learning.runner import Runner
from modelops.learning.work import Works
from modelops.learning.yielding import Yielding
from modelops.metrics import Metrics
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Machine
from modelops.serving.pool import Pool
from modelops.settings import Settings
from modelops.store.jobs import JobQueries


class Learning:
    """All parts of learning. `jobs` can be asked from the beginning; they are worked on from `start` to `close`.

    `listeners` are called with the id of each job about which there is something new.
    """

    def __init__(
        self,
        settings: Settings,
        queries: JobQueries,
        catalog: Catalog,
        pool: Pool,
        machine: Machine,
        metrics: Metrics,
        runtime_dir: Path,
    ) -> None:
        self._queries = queries
        self._folders = folders = Folders(settings.data_dir.resolve() / "learning")
        self.yielding, self._bell = Yielding(settings.learning.resume_after_s), Bell()
        pool.on_busy = self.yielding.busy
        self.engines = OwnEngines(settings, machine, runtime_dir)
        self.listeners: list[Callable[[str], None]] = []
        works = Works(
            settings, queries, catalog, pool, self.engines, self.yielding, folders, machine, changed=self._changed
        )
        self._runner = Runner(
            queries,
            works,
            metrics,
            # The same after a restart: the data folder is one coordinator's alone.
            owner=hashlib.sha256(str(settings.data_dir.resolve()).encode()).hexdigest()[:16],
            at_once=settings.learning.max_parallel_jobs,
            changed=self._changed,
        )
        self.jobs = Jobs(settings, queries, catalog, pool, folders, metrics, self._bell, self._runner, machine)

    async def clear(self) -> None:
        """Clear away what a killed predecessor has left. Before anybody can create a job."""
        self._folders.jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A trainer of a coordinator that was killed ends with it; one that has not yet would write beside the next.
        await asyncio.to_thread(kill_leftovers, f"{self._folders.jobs.resolve()}/", PROGRAM[-1])
        await asyncio.to_thread(self._folders.sweep, await self._queries.unfinished())

    async def start(self) -> None:
        """Go on with what was under way, and begin what waits."""
        await self._runner.start()

    async def close(self) -> None:
        """Stop; what is under way goes back to the queue. Done twice it is done once."""
        await self._runner.close()
        await self.jobs.close()

    def _changed(self, job_id: str) -> None:
        self._bell.ring(job_id)
        for listener in self.listeners:
            listener(job_id)
