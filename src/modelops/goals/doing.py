"""What is done for goals: the port between deciding and doing, which each type of goal has a side of.

Whoever does decides nothing: what is to be done was decided, and recorded, before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelops.api.goals import GoalEventKind, GoalLimits, GoalPlan, Objective
from modelops.goals.values import Pursued, Step
from modelops.learning.datasets import Dataset, Example
from modelops.learning.engines import OwnEngines
from modelops.learning.jobs import Jobs
from modelops.learning.yielding import Yielding
from modelops.metrics import Metrics
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Machine
from modelops.serving.pool import Pool
from modelops.settings import Settings

#: Names of a goal's files of rows, in its folder.
TRAIN, HELD_OUT, REGRESSION, TEXT = "train.jsonl", "eval.jsonl", "regression.jsonl", "text.jsonl"
REQUESTS = "requests.jsonl"


@dataclass(frozen=True)
class Tools:
    """What is done with."""

    settings: Settings
    catalog: Catalog
    pool: Pool
    machine: Machine
    jobs: Jobs
    engines: OwnEngines
    yielding: Yielding
    metrics: Metrics


@dataclass(frozen=True)
class Checked:
    """A goal that can be pursued, as far as can be known. `objective` has the models' own names, and no rows: those are
    in `files`, by the name of the file that they are to be written to."""

    objective: Objective
    plan: GoalPlan
    warnings: tuple[str, ...] = ()
    files: Mapping[str, Dataset[Example]] = field(default_factory=dict)


class Tell(Protocol):
    """Tells whoever watches the goal."""

    async def __call__(self, kind: GoalEventKind, message: str, metrics: Mapping[str, Any] | None = None) -> None:
        """Add an event; `metrics` are kept in the goal's own as well."""


class Doer(Protocol):
    """Does what goals of one type need."""

    async def check(self, objective: Any, limits: GoalLimits) -> Checked:
        """The goal, checked before it is created. Raises ModelOpsError, with what is wrong."""

    async def facts(self, goal: Pursued, folder: Path) -> Any:
        """What its decisions see beside models and time (`Seen.facts`): looked at, and nothing changed."""

    async def refusal(self, goal: Pursued, folder: Path) -> str:
        """Why what it would take next does not fit into this machine at this moment; empty where it does."""

    async def perform(self, goal: Pursued, step: Step, folder: Path, tell: Tell) -> Mapping[str, Any]:
        """Do the step; its result. Done again under the same `(goal_id, number)` it has been done once: it may have
        been half done when a coordinator ended. Raises ModelOpsError where it cannot be done. Can be cancelled."""

    async def ended(self, goal: Pursued) -> None:
        """The goal has ended: give back what was held for it, such as models that were kept. May be called twice."""
