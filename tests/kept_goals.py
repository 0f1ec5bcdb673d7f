"""Goals that are in a coordinator's state file before it begins, as an earlier one left them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from modelops.goals.memory import Kept, written
from modelops.goals.values import Action, Step
from modelops.metrics import Metrics
from modelops.store.database import open_database
from modelops.store.goals import EventRow, GoalQueries, GoalRow

#: The id of one that has ended.
REACHED = "reached"
CREATED = 1.7e9


def request(objective: dict[str, Any], **others: Any) -> dict[str, Any]:
    """What is kept of a request for this."""
    kept = {"description": "", "limits": {}, "metadata": {}, "warnings": [], "digests": {}, "asked": ""}
    return {**kept, "objective": objective, **others}


def memo(*steps: Step) -> dict[str, Any]:
    """What is remembered of these steps, each of which began and ended when its goal was active for so long."""
    kept = (
        Kept(step, CREATED + 1 + step.began_s, None if step.ended_s is None else CREATED + 1 + step.ended_s)
        for step in steps
    )
    return {str(each.step.number): written(each) for each in kept}


QUALITY = {
    "type": "quality",
    "model_name": "quick",
    "train_dataset_path": "train.jsonl",
    "eval_dataset_path": "eval.jsonl",
    "metric": "exact_match",
    "target": 0.95,
}
STEPS = (
    Step(1, Action("baseline"), "nothing is known of it yet", 0.0, 10.0, {"job_id": "j1", "exact_match": 0.25}),
    Step(
        2,
        Action("train", {"parameters": {"epochs": 3.0}, "from_version": "v1"}),
        "it is under its target",
        10.0,
        100.5,
        {"job_id": "j2", "model_version": "v2"},
    ),
    Step(3, Action("promote", {"model_version": "v2"}), "it reaches the target", 100.5, 101.0, {"model_version": "v2"}),
)
GOAL = GoalRow(
    REACHED,
    created_at=CREATED,
    title="capitals are known",
    goal_type="quality",
    status="completed",
    priority=2,
    request=request(QUALITY, description="größer", limits={"max_jobs": 3}, metadata={"team": "search"}),
    memo=memo(*STEPS),
    progress=1.0,
    metrics={"jobs": 1, "exact_match": 0.975},
    result={
        "model_version": "v2",
        "before": {"exact_match": 0.25, "rows": None, "sample": {"seconds": 9.5}},
        "after": {"exact_match": 0.975},
        "tried": [
            {"model_version": "v2", "exact_match": 0.975, "parameters": {"epochs": 3}},
            {"model_version": "v3", "exact_match": None, "reason": "", "rows": []},
        ],
    },
    target_completion=CREATED + 3600,
    started_at=CREATED + 1,
    completed_at=CREATED + 165,
    attempts=1,
)
EVENTS = (
    EventRow(REACHED, 1, CREATED + 1, "step", step="baseline", message="nothing is known of it yet"),
    EventRow(REACHED, 2, CREATED + 5, "progress", step="baseline", metrics={"rows": 1, "total_rows": 2}),
    EventRow(REACHED, 3, CREATED + 165, "state", message="completed"),
)


def keep_goal(data_dir: Path, goal: GoalRow = GOAL, events: Sequence[EventRow] = EVENTS) -> None:
    """Put the goal there, with what has happened to it."""

    async def kept(queries: GoalQueries) -> None:
        await queries.add(goal)
        for event in events:
            told = {"step": event.step, "message": event.message, "metrics": event.metrics}
            await queries.tell(goal.id, event.at, event.kind, **told)  # type: ignore[arg-type] # each is of its own

    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    asyncio.run(write_goals(data_dir, kept))


async def write_goals(data_dir: Path, write: Callable[[GoalQueries], Awaitable[object]]) -> None:
    """Write to the state file, as another coordinator that pursues goals would; also while one has it."""
    database = await open_database(data_dir / "state.db", Metrics(enabled=False))
    try:
        await write(GoalQueries(database))
    finally:
        await database.dispose()
