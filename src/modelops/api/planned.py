"""What the specification promises and this release does not do yet: announced with its shape, answered with 501."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from modelops.api.learning import Priority
from modelops.api.operations import Scope
from modelops.api.types import Request, Response

GoalStatus = Literal["pending", "active", "completed", "failed", "cancelled"]


class CreateGoalRequest(Request):
    """An objective to be pursued."""

    title: str
    description: str = ""
    priority: Priority = "medium"
    objective: dict[str, Any]
    target_completion: datetime | None = None
    limits: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class Goal(Response):
    """A goal, as it stands."""

    goal_id: str
    title: str
    description: str = ""
    priority: Priority = "medium"
    objective: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    status: GoalStatus
    progress: float = Field(0.0, ge=0, le=1)
    steps: list[dict[str, Any]] = []
    learning_job_ids: list[str] = []
    result: dict[str, Any] = {}
    error_message: str = ""
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    target_completion: datetime | None = None
    metadata: dict[str, Any] = {}


@dataclass(frozen=True)
class Planned:
    """A route that answers 501 until its release. `many`: the answer is a plain array."""

    name: str
    scope: Scope
    method: Literal["GET", "POST"]
    path: str
    summary: str
    status: int
    description: str
    response: type[Response]
    request: type[Request] | None = None
    many: bool = False

    @property
    def acts(self) -> bool:
        """Whether it does more than look."""
        return self.method != "GET"


PLANNED: tuple[Planned, ...] = (
    Planned(
        "list_goals", "goals", "GET", "/goals", "List active goals", 200, "List of goals", response=Goal, many=True
    ),
    Planned(
        "create_goal",
        "goals",
        "POST",
        "/goals",
        "Create a new goal",
        201,
        "Goal created successfully",
        request=CreateGoalRequest,
        response=Goal,
    ),
)
