"""What tests of goals of quality share: rows that the tiny model learns in a second, and goals that ask for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from chaos.callers import client, programs
from modelops.api.goals import Goal
from modelops.client import Client
from support import Served, wait_until

ENV = {"MODELOPS_LEARNING__THREADS": "1", "MODELOPS_LEARNING__RESUME_AFTER_S": "0.2"}
TRAIN = [{"prompt": f"the colour of {n}?", "completion": "red"} for n in range(24)]
HELD_OUT = [{"prompt": f"colour of {n}", "completion": "red"} for n in range(24)]
REGRESSION = [{"prompt": f"the shape of {n}?", "completion": "round"} for n in range(4)]
PARAMETERS = {"steps": 30, "batch_size": 4, "rank": 4, "learning_rate": 0.01, "max_length": 64}
#: Nobody waits for the end of it.
LONG = {**PARAMETERS, "steps": 100_000}
OBJECTIVE = {
    "type": "quality",
    "model_name": "tiny",
    "train_dataset": TRAIN,
    "eval_dataset": HELD_OUT,
    "regression_dataset": REGRESSION,
    "target": 0.9,
    "max_tokens": 4,
    "watch_seconds": 1.0,
    "parameters": PARAMETERS,
}
LONGEST_S = 120.0


@contextlib.contextmanager
def asking(served: Served) -> Iterator[Client]:
    with client(served) as asked:
        yield asked


def wished(asked: Client, limits: dict[str, Any] | None = None, **fields: Any) -> Goal:
    """A new goal: the tiny model knows the colours."""
    return asked.create_goal("colours", OBJECTIVE | fields, limits=limits or {})


def ended(asked: Client, goal_id: str) -> Goal:
    """The goal, when it has ended."""
    wait_until(lambda: asked.get_goal(goal_id).completed_at, LONGEST_S, "the end of the goal")
    return asked.get_goal(goal_id)


def actions(goal: Goal) -> list[str]:
    """What was done for it, in order."""
    return [step.action for step in goal.steps]


def at(asked: Client, goal_id: str, action: str) -> Goal:
    """The goal, when its newest step is that, and done."""

    def there() -> Goal | None:
        goal = asked.get_goal(goal_id)
        assert not goal.completed_at, goal.error_message
        newest = goal.steps[-1] if goal.steps else None
        return goal if newest and newest.action == action and newest.completed_at else None

    found: Goal = wait_until(there, LONGEST_S, f"the step {action}")
    return found


def nothing_is_left(served: Served, asked: Client) -> None:
    """No job runs, no goal or job has files, and nothing runs but what serves."""
    assert all(job.status not in ("pending", "running") for job in asked.list_jobs())
    for folder in ("learning/jobs", "goals"):  # whoever sees the end may see it a moment before
        wait_until(partial(_is_empty, served.data_dir / folder), what=f"that {folder} is empty")
    assert len(programs(served)) <= 1


def _is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())
