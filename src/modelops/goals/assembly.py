"""Puts together what pursues goals: started after the pool and learning, and closed before them."""

from __future__ import annotations

import asyncio
import hashlib

from modelops.api.goals import GoalType
from modelops.durable.bell import Bell
from modelops.goals.doing import Doer, Tools
from modelops.goals.folders import Folders
from modelops.goals.goals import Goals
from modelops.goals.keeping import AvailabilityDoer
from modelops.goals.observing import Observer
from modelops.goals.recording import readable
from modelops.goals.runner import Runner
from modelops.goals.training import QualityDoer
from modelops.goals.tuning import ServingDoer
from modelops.goals.turning import Changing, Turning
from modelops.goals.work import Works
from modelops.learning.assembly import Learning
from modelops.metrics import Metrics
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Machine
from modelops.serving.pool import Pool
from modelops.settings import Settings
from modelops.store.goals import GoalQueries


class Pursuit:
    """All parts of it. `goals` can be asked from the beginning; they are pursued from `start` to `close`."""

    def __init__(
        self,
        settings: Settings,
        queries: GoalQueries,
        catalog: Catalog,
        pool: Pool,
        machine: Machine,
        learning: Learning,
        metrics: Metrics,
    ) -> None:
        tools = Tools(settings, catalog, pool, machine, learning.jobs, learning.engines, learning.yielding, metrics)
        doers: dict[GoalType, Doer] = {
            "quality": (quality := QualityDoer(tools)),
            "serving": (serving := ServingDoer(tools)),
            "availability": (keeping := AvailabilityDoer(tools)),
        }
        self._quality, self._serving, self._keeping = quality, serving, keeping
        self._queries = queries
        self._folders = folders = Folders(settings.data_dir.resolve() / "goals")
        bell, seen = Bell(), Observer(catalog, pool)
        works = Works(queries, doers, folders, seen, Turning(), Changing(), metrics, changed=bell.ring)
        # The same after a restart: the data folder is one coordinator's alone.
        owner = hashlib.sha256(str(settings.data_dir.resolve()).encode()).hexdigest()[:16]
        self._runner = Runner(works, owner=owner, at_once=settings.goals.max_active)
        learning.listeners.append(self._runner.hear)
        self.goals = Goals(settings, queries, doers, folders, metrics, bell, self._runner)

    async def clear(self) -> None:
        """Clear away what a killed predecessor has left. Before anybody can create a goal."""
        self._folders.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(self._folders.sweep, await self._queries.unfinished())

    async def keep(self) -> None:
        """Keep what goals kept before. Before anything is loaded that could take its place."""
        rows = [row for row in await self._queries.all(None) if row.goal_type == "availability" and row.attempts]
        self._keeping.begin(goal for _, goal in readable(reversed(rows)))

    async def start(self) -> None:
        """Go on with what was under way, and begin what waits."""
        await self._runner.start()

    async def close(self) -> None:
        """Stop; what is under way goes back to the queue. Done twice it is done once."""
        await self._runner.close()
        await self._quality.close()
        await self._serving.close()
        await self._keeping.close()
        await self.goals.close()
