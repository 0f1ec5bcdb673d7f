"""A goal whose training has ended: it is promoted, watched, and judged again, by the loop that pursues goals, in a pool
with real processes for engines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from goals.promoting import OBJECTIVE, TRAINED, Scene, scene
from goals.pursued import Pursuing, pursuing, until
from modelops.api.goals import Goal
from modelops.goals import decide, memory
from modelops.goals.memory import Kept
from modelops.goals.observing import Observer
from modelops.goals.values import Action, Step
from modelops.learning import datasets
from modelops.store.goals import GoalRow
from modelops.store.jobs import JobRow

BASELINE = Step(1, Action("baseline", {"version": "v1"}), "", 0.0, 1.0, {"job_id": "before"})
SCORES = {
    "before": {"exact_match": 0.0},
    "after": {"exact_match": 1.0},
    "paired": {"exact_match": {"wins": 2, "losses": 0, "ties": 0, "p_loses": 1.0, "test": "mcnemar"}},
}
#: What the engine here says, and something else.
RIGHT, WRONG = "w0", "something else"


@dataclass
class Watched:
    scene: Scene
    pursuing: Pursuing

    async def goal(self) -> Goal:
        return await self.pursuing.goals.get("g")

    async def at(self, action: str) -> None:
        """Wait until it is done."""

        async def done() -> bool:
            return any(step.action == action and step.completed_at for step in (await self.goal()).steps)

        while not await done():
            await until(lambda: True)

    async def ended(self) -> Goal:
        return await self.pursuing.end("g")

    @property
    def labels(self) -> list[str]:
        return [version.label for version in self.scene.house.catalog.versions("a")]


@contextlib.asynccontextmanager
async def watched(
    folder: Path, patch: pytest.MonkeyPatch, *, watch_seconds: float, wanted: str = RIGHT, **behaviour: Any
) -> AsyncIterator[Watched]:
    """A goal that was judged, and trained for, and now goes on."""
    async with scene(folder, patch, tokens=1, **behaviour) as made:
        observer, listeners = Observer(made.house.catalog, made.house.pool), made.learning.listeners
        async with pursuing(folder, made.doer, started=False, way=decide.way, models=observer) as pursued:  # type: ignore[arg-type] # a real one
            listeners.append(pursued.runner.hear)
            rows = datasets.read([{"prompt": f"{n}?", "completion": wanted} for n in range(4)], "evaluate", "rows")
            pursued.folders.write("g", {"train.jsonl": rows, "eval.jsonl": rows})
            for name, kind, result in (
                ("before", "evaluate", {"model_version": "v1", "scores": {"exact_match": 0.0}}),
                ("ours", "lora", {"model_version": "v2", "base_version": "v1", "scores": {"held_out": SCORES}}),
            ):
                row = JobRow(id=name, job_type=kind, model_name="a", created_at=1.0, status="completed", result=result)
                await made.queries.add(row)
            trained = Step(2, TRAINED.action, "", 1.0, 2.0, TRAINED.result)
            memo = {str(step.number): memory.written(Kept(step, 1.0, 2.0)) for step in (BASELINE, trained)}
            objective = OBJECTIVE.model_copy(update={"watch_seconds": watch_seconds, "max_tokens": 1})
            request: dict[str, Any] = {"objective": objective.model_dump(mode="json"), "limits": {}, "digests": {}}
            request |= {"description": "", "metadata": {}, "warnings": [], "asked": ""}
            await pursued.queries.add(
                GoalRow("g", created_at=time.time(), title="g", goal_type="quality", request=request, memo=memo)
            )
            await made.house.load()
            await made.learning.clear()
            await made.learning.start()
            await pursued.runner.start()
            yield Watched(made, pursued)


def actions(goal: Goal) -> list[str]:
    return [step.action for step in goal.steps[2:]]


async def test_what_answers_in_the_watch_and_is_judged_well_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path, monkeypatch, watch_seconds=0.5) as made:
        goal = await made.ended()
        assert (goal.status, actions(goal)) == ("completed", ["promote", "confirm"]), goal.error_message
        assert (goal.result["promoted"], goal.result["served_score"]) == ("v2", 1.0)
        assert goal.metrics["probes"] >= 1
        assert made.scene.active == "v2"


async def test_what_is_judged_badly_as_it_is_served_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path, monkeypatch, watch_seconds=0.0, wanted=WRONG) as made:
        goal = await made.ended()
        assert (goal.status, actions(goal)) == ("failed", ["promote", "confirm", "roll_back"]), goal.error_message
        assert "v2 does not reach the target as it is served" in goal.error_message
        assert made.scene.active == "v1"
        assert made.labels == ["v1", "v2", "v3"], "the best is kept"


async def test_what_dies_again_and_again_is_taken_back_within_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path, monkeypatch, watch_seconds=300.0) as made:
        await made.at("promote")
        house, killed = made.scene.house, set[int]()
        for _ in range(3):
            await house.until(lambda view: view.status == "loaded" and view.engine_pid not in killed)
            killed.add(house.pool.view("a").engine_pid)
            psutil.Process(house.pool.view("a").engine_pid).kill()
        await house.until(lambda view: view.status != "loaded" or view.breaker.failures >= 3)
        killed_at = time.time()
        goal = await made.ended()
        assert (goal.status, actions(goal)) == ("failed", ["promote", "roll_back"]), goal.error_message
        assert "v2 failed 3 times when it was served" in goal.error_message
        assert goal.steps[-1].started_at.timestamp() - killed_at < 2.0
        view = house.pool.view("a")
        assert (made.scene.active, view.status, view.version.label) == ("v1", "loaded", "v1")


async def test_a_goal_that_is_cancelled_in_the_watch_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path, monkeypatch, watch_seconds=300.0) as made:
        await made.at("promote")
        await made.pursuing.goals.cancel("g", "enough")
        goal = await made.ended()
        assert (goal.status, goal.error_message) == ("cancelled", "enough")
        assert actions(goal) == ["promote", "roll_back", "discard"]
        assert (made.scene.active, made.labels) == ("v1", ["v1", "v3"])


async def test_a_goal_that_is_cancelled_while_it_promotes_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path, monkeypatch, watch_seconds=300.0, load_s=0.5) as made:

        async def promoting() -> bool:
            return actions(await made.goal()) == ["promote"]

        while not await promoting():
            await until(lambda: True)
        await made.pursuing.goals.cancel("g", "enough")
        goal = await made.ended()
        assert goal.status == "cancelled"
        assert (made.scene.active, made.labels) == ("v1", ["v1", "v3"])
