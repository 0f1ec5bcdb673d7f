"""Goals as callers are told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from modelops.api.goals import Goal, GoalStatus, GoalStep
from modelops.goals import memory
from modelops.goals.memory import Kept
from modelops.learning.jobs import PRIORITIES
from modelops.store.goals import GoalRow


def told(row: GoalRow, newest: int = 0) -> Goal:
    """The goal as callers see it, with so many of its steps, the newest; 0: all."""
    remembered, request = memory.read(row.memo), row.request
    begun = row.status == "pending" and row.attempts > 0  # it waits to be gone on with: it is active all the same
    status: GoalStatus = "active" if begun else row.status  # type: ignore[assignment] # only valid ones are written
    return Goal(
        goal_id=row.id,
        title=row.title,
        description=request["description"],
        priority=next(name for name, value in PRIORITIES.items() if value == row.priority),
        objective=_objective(request),
        limits=dict(request["limits"]),
        status=status,
        progress=1.0 if status == "completed" else min(1.0, max(0.0, row.progress)),
        steps=[_step(kept) for kept in remembered.kept[-newest:]],
        learning_job_ids=list(memory.jobs_of(remembered.steps)),
        result=dict(row.result),
        error_message=row.error,
        created_at=_time(row.created_at),
        started_at=_time(row.started_at) if row.started_at else None,
        completed_at=_time(row.completed_at) if row.completed_at else None,
        target_completion=_time(row.target_completion) if row.target_completion else None,
        metadata=dict(request["metadata"]),
        message=row.message if status == "active" else "",
        warnings=list(request["warnings"]),
        metrics=dict(row.metrics),
        attempts=row.attempts,
    )


def _objective(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be reached; of requests that were given, how many there are."""
    objective: dict[str, Any] = dict(request["objective"])
    if count := request.get("requests"):
        objective["workload"] = {**objective["workload"], "requests": count}
    return objective


def _step(kept: Kept) -> GoalStep:
    step = kept.step
    return GoalStep(
        number=step.number,
        action=step.action.kind,
        reason=step.why,
        started_at=_time(kept.at),
        completed_at=_time(kept.ended_at) if kept.ended_at else None,
        arguments=dict(step.action.arguments),
        result=dict(step.result),
        error_message=step.error,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
