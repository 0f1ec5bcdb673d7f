"""A model in a pool with real processes for engines, with a version that answers, and one that was made for a goal."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from learning.asked import pooled
from modelops.api.goals import QualityObjective
from modelops.goals.attempts import QualityFacts
from modelops.goals.doing import Tools
from modelops.goals.training import QualityDoer
from modelops.goals.values import Action, Pursued, Step
from modelops.learning.assembly import Learning
from modelops.metrics import Metrics
from modelops.serving.devices import ThisMachine
from modelops.settings import Settings
from modelops.store.database import open_database
from modelops.store.jobs import JobQueries
from serving.house import House
from support import tiny_gguf

OBJECTIVE = QualityObjective(type="quality", model_name="a", target=0.9)
TRAINED = Step(1, Action("train", {"parameters": {}, "from_version": "v1"}), "", 0.0, 1.0, {"job_id": "ours"})
PROMOTE = {"version": "v2", "from_version": "v1"}


async def nothing(kind: str, message: str, metrics: Mapping[str, Any] | None = None) -> None:
    pass


@dataclass
class Scene:
    """A model with a version that answers, and one that was made for a goal."""

    house: House
    doer: QualityDoer
    folder: Path
    queries: JobQueries
    learning: Learning
    steps: tuple[Step, ...] = (TRAINED,)

    @property
    def goal(self) -> Pursued:
        return Pursued("g", OBJECTIVE, steps=self.steps)

    @property
    def active(self) -> str:
        return self.house.catalog.active("a").label

    async def do(self, kind: str, **arguments: Any) -> Mapping[str, Any]:
        """The result of a step, which is remembered."""
        step = Step(len(self.steps) + 1, Action(kind, arguments), "because", 1.0)
        result = await self.doer.perform(self.goal, step, self.folder, nothing)
        self.steps += (Step(step.number, step.action, "because", 1.0, 2.0, result),)
        return result

    async def facts(self) -> QualityFacts:
        return await self.doer.facts(self.goal, self.folder)


@contextlib.asynccontextmanager
async def scene(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    request_timeout_s: float = 600.0,
    model: Path | None = None,
    **behaviour: Any,
) -> AsyncIterator[Scene]:
    async with pooled(folder, patch, behaviour, model=model) as house:
        server = {"request_timeout_s": request_timeout_s}
        settings = Settings.model_validate({"data_dir": folder, "server": server})
        other = tiny_gguf(folder / "made.gguf", general__name="made")
        await house.catalog.publish("a", other, "llm", {"job_id": "ours"})
        await house.catalog.publish("a", tiny_gguf(folder / "more.gguf", general__name="more"), "llm", {"job_id": "x"})
        database = await open_database(folder / "state.db")
        metrics, machine = Metrics(), ThisMachine()
        queries = JobQueries(database)
        learning = Learning(settings, queries, house.catalog, house.pool, machine, metrics, folder)
        tools = Tools(
            *(settings, house.catalog, house.pool, machine),
            *(learning.jobs, learning.engines, learning.yielding, metrics),
        )
        doer = QualityDoer(tools)
        try:
            yield Scene(house, doer, folder, queries, learning)
        finally:
            await learning.close()
            await doer.close()
            await database.dispose()
