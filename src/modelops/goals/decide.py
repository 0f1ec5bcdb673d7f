"""Every decision about goals: from a goal, its steps so far and what is observed to what follows. Pure.

What all goals share is here: whose turn it is, limits, models that are gone. What each type does is its own module's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from modelops.api.goals import AvailabilityObjective, QualityObjective
from modelops.goals import availability, quality, serving
from modelops.goals.values import CANCELLED, Act, Decision, Ending, Pursued, Seen, Wait


class Way(Protocol):
    """How goals of one type are pursued."""

    def decide(self, goal: Pursued, seen: Seen) -> Decision:
        """What follows."""

    def give_up(self, goal: Pursued, seen: Seen, ending: Ending) -> Decision:
        """What is to be cleared away, one action after another, and then the end, with the best that was reached."""


def way(goal: Pursued) -> Way:
    """How the goal is pursued."""
    if isinstance(goal.objective, QualityObjective):
        return quality
    if isinstance(goal.objective, AvailabilityObjective):
        return availability
    return serving


def models_of(goal: Pursued) -> tuple[str, ...]:
    """The models that the goal is about."""
    objective = goal.objective
    return tuple(objective.models) if isinstance(objective, AvailabilityObjective) else (objective.model_name,)


def changed_by(goal: Pursued) -> str:
    """The model that the goal changes, and that no two goals change at once; empty: it changes none."""
    return "" if isinstance(goal.objective, AvailabilityObjective) else goal.objective.model_name


def decide(goal: Pursued, seen: Seen, pursued: Way | None = None) -> Decision:
    """What follows. A step that is under way is not decided about again: it is ended first, under its key."""
    pursued, ending = pursued or way(goal), ended_by(goal, seen)
    if ending:
        decision = pursued.give_up(goal, seen, ending)
    elif seen.holder:
        return Wait(f"it waits for {seen.holder}, which changes the same model")
    else:
        decision = pursued.decide(goal, seen)
    if isinstance(decision, Act) and decision.heavy and not seen.turn:
        return Wait(f"it waits for its turn; next: {decision.why}", turn=True)
    return decision


def ended_by(goal: Pursued, seen: Seen) -> Ending | None:
    """Why the goal is to end, where its objective is not what decides it."""
    if seen.ending:
        return seen.ending
    if seen.cancelled is not None:
        return Ending("cancelled", seen.cancelled or CANCELLED)
    if seen.overdue and not _ends_by_itself(goal):
        return Ending("failed", "it was not completed by its target_completion")
    if goal.limits.max_seconds is not None and seen.elapsed_s >= goal.limits.max_seconds:
        return Ending("failed", f"it was not completed within limits.max_seconds ({goal.limits.max_seconds:g})")
    if gone := _gone(models_of(goal), seen):
        return Ending("failed", f"the model '{gone}' was removed")
    return None


def _ends_by_itself(goal: Pursued) -> bool:
    """Whether the objective has an end of its own, which its target_completion is not before."""
    return isinstance(goal.objective, AvailabilityObjective) and goal.objective.until is not None


def _gone(names: Iterable[str], seen: Seen) -> str:
    return next((name for name in names if name in seen.models and not seen.models[name].registered), "")
