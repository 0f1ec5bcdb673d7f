"""What tests of the loop share: a type of goal that does nothing but count what it was asked, on a real state file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelops.api.goals import CreateGoalRequest, Goal, GoalLimits, GoalPlan
from modelops.durable.bell import Bell
from modelops.goals.doing import HELD_OUT, Checked, Tell
from modelops.goals.folders import Folders
from modelops.goals.goals import Goals
from modelops.goals.runner import Runner
from modelops.goals.turning import Changing, Turning
from modelops.goals.values import Act, Action, Decision, End, Ending, ModelSeen, Pursued, Seen, Step, Wait
from modelops.goals.work import Works
from modelops.learning import datasets
from modelops.metrics import Metrics
from modelops.settings import GoalsSettings, Settings
from modelops.store.database import open_database
from modelops.store.goals import GoalQueries

OWNER = "one"
ROWS = datasets.read([{"prompt": "2 and 2?", "completion": "4"}], "evaluate", "eval_dataset")
#: What is done for a goal, in order; what begins with "heavy" takes its turn.
SCRIPT = ("look", "heavy train", "promote")


@dataclass
class World:
    """What outlives a coordinator: what was asked, and what has come of it, by goal and number of the step."""

    asked: list[tuple[str, int, str]] = field(default_factory=list)
    effects: dict[tuple[str, int], str] = field(default_factory=dict)
    doubled: list[tuple[str, int]] = field(default_factory=list)

    def of(self, goal_id: str) -> list[str]:
        """What was done for a goal, in order."""
        return [kind for (goal, _), kind in sorted(self.effects.items()) if goal == goal_id]


async def _nothing() -> None:
    return None


@dataclass
class CountingDoer:
    """Does what it is asked once for each `(goal, number)`, and counts. `point` is awaited before and after; `hold` as
    long as a step of that kind is done; `fails` are kinds that cannot be done, and why; `refuses` says why nothing
    heavy fits now."""

    world: World = field(default_factory=World)
    script: Sequence[str] = SCRIPT
    point: Callable[[], Awaitable[None]] = _nothing
    hold: Callable[[Pursued, Step], Awaitable[None]] | None = None
    fails: Mapping[str, Exception] = field(default_factory=dict)
    refuses: Callable[[Pursued], str] = lambda goal: ""
    gone: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    async def check(self, objective: Any, limits: GoalLimits) -> Checked:
        if getattr(objective, "eval_dataset", None):
            return Checked(objective, GoalPlan(steps=list(self.script)), ("a warning",), {HELD_OUT: ROWS})
        return Checked(objective, GoalPlan(steps=list(self.script)))

    async def facts(self, goal: Pursued, folder: Path) -> Any:
        await self.point()
        return len(self.world.effects)

    async def refusal(self, goal: Pursued, folder: Path) -> str:
        return self.refuses(goal)

    async def perform(self, goal: Pursued, step: Step, folder: Path, tell: Tell) -> Mapping[str, Any]:
        key = (goal.goal_id, step.number)
        self.world.asked.append((*key, step.action.kind))
        await self.point()
        if step.action.kind in self.fails:
            raise self.fails[step.action.kind]
        if self.hold:
            await self.hold(goal, step)
        if self.world.effects.setdefault(key, step.action.kind) != step.action.kind:
            self.world.doubled.append(key)
        await self.point()
        await tell("log", f"{step.action.kind} is done", {"done": step.number})
        return {"job_id": f"job {step.number}"} if step.action.kind.startswith("heavy") else {}

    async def ended(self, goal: Pursued) -> None:
        self.gone.append(goal.goal_id)

    # --- how it is pursued: the side that decides ---
    def decide(self, goal: Pursued, seen: Seen) -> Decision:
        self.seen.append(seen)
        if seen.facts is None:
            return Wait(seen.refusal, 0.01)
        if failed := next((step for step in goal.steps if step.error), None):
            return End("failed", failed.error, {"reached": len(goal.steps) - 1})
        done = len(goal.steps)
        if done == len(self.script):
            return End("completed", "all of it is done", {"reached": done})
        kind = self.script[done]
        if kind.startswith("heavy") and seen.refusal and not seen.taken:
            return Wait(seen.refusal, 0.01)
        if kind == "wait":
            return Wait("nothing is to be done", 3600, metrics={"looks": 1})
        so_far = done / len(self.script)
        return Act(Action(kind, {"which": done}), f"{kind} comes next", kind.startswith("heavy"), progress=so_far)

    def give_up(self, goal: Pursued, seen: Seen, ending: Ending) -> Decision:
        self.seen.append(seen)
        if goal.last("clear") is None:
            return Act(Action("clear"), f"what was begun is cleared away: {ending.why}")
        return End(ending.status, ending.why, {"reached": len(goal.steps) - 1})


@dataclass
class Pursuing:
    """A coordinator's pursuit of goals, without a pool: `models` are those that are registered."""

    goals: Goals
    runner: Runner
    works: Works
    queries: GoalQueries
    folders: Folders
    metrics: Metrics

    async def create(
        self, model: str = "m", kind: str = "quality", *, key: str | None = None, rows: bool = False, **more: Any
    ) -> Goal:
        """A new goal."""
        return await self.goals.create(request(model, kind, rows=rows, **more), caller="", key=key)

    async def end(self, goal_id: str, seconds: float = 20.0) -> Goal:
        """The goal, when it has ended."""
        deadline = asyncio.get_running_loop().time() + seconds
        async for event in self.goals.watch(goal_id, 0, deadline):
            if event.goal:
                assert event.goal.completed_at, f"it has not ended: {event.goal}"
                return event.goal
        raise AssertionError("the last event has the goal")


def request(model: str = "m", kind: str = "quality", *, rows: bool = False, **more: Any) -> CreateGoalRequest:
    """A request for a goal."""
    objective: dict[str, Any] = {"type": kind, "model_name": model}
    if kind == "quality":
        objective["target"] = 0.5
    if kind == "availability":
        objective = {"type": kind, "models": [model]}
    if rows:
        objective["eval_dataset"] = [{"prompt": "2 and 2?", "completion": "4"}]
    return CreateGoalRequest.parse({"title": f"of {model}", "objective": objective, **more})


def registered(names: Iterable[str]) -> dict[str, ModelSeen]:
    """Models that are all there, but for those whose names begin with "gone"."""
    return {name: ModelSeen(name, registered=not name.startswith("gone")) for name in names}


@contextlib.asynccontextmanager
async def pursuing(
    folder: Path,
    doer: CountingDoer,
    *,
    at_once: int = 64,
    started: bool = True,
    max_pending: int = 100,
    asking: type[GoalQueries] = GoalQueries,
    **works: Any,
) -> AsyncIterator[Pursuing]:
    """Goals that are pursued while the context is open."""
    metrics, bell, folders = Metrics(), Bell(), Folders(folder / "goals")
    database = await open_database(folder / "state.db")
    queries = asking(database)
    doers = {"quality": doer, "serving": doer, "availability": doer}
    parts: dict[str, Any] = {"turning": Turning(), "models": registered, "way": lambda _: doer, **works}
    made = Works(queries, doers, folders, changing=Changing(), metrics=metrics, changed=bell.ring, **parts)  # type: ignore[arg-type] # each by its type
    runner = Runner(made, owner=OWNER, at_once=at_once)
    settings = Settings(data_dir=folder, goals=GoalsSettings(max_pending=max_pending))
    goals = Goals(settings, queries, doers, folders, metrics, bell, runner)  # type: ignore[arg-type] # as above
    try:
        if started:
            await runner.start()
        yield Pursuing(goals, runner, made, queries, folders, metrics)
    finally:
        await runner.close()
        await goals.close()
        await database.dispose()


async def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = 10.0) -> Any:
    """The first true value of `condition`, looked at between what else happens on the loop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not (value := condition()):
                await asyncio.sleep(0.002)
            return value
    raise AssertionError(f"{what} did not come true within {seconds} s")
