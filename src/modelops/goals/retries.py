"""What cannot be done is tried again, later and later, and then given up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelops.goals.values import Act, Action, Pursued, Seen, Step, Wait

TRIES = 3
_PAUSE_S = 2.0  # before the second; twice as long before the next


def failed(goal: Pursued, kind: str, arguments: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps that did just this, and could not, in a row at the end."""
    found: list[Step] = []
    for step in reversed(goal.steps):
        if step.action.kind != kind or step.action.arguments != arguments or not step.error:
            break
        found.insert(0, step)
    return tuple(found)


def pause(goal: Pursued, seen: Seen, kind: str, arguments: Mapping[str, Any]) -> Wait | None:
    """How long it is waited before that is tried again; None: no longer."""
    if found := failed(goal, kind, arguments):
        left = (found[-1].ended_s or 0.0) + _PAUSE_S * 2 ** (len(found) - 1) - seen.elapsed_s
        if left > 0:
            return Wait(f"{kind} is tried again soon: {found[-1].error}", left)
    return None


def once_more(goal: Pursued, seen: Seen, kind: str, arguments: Mapping[str, Any], why: str) -> Act | Wait | None:
    """Do it; None where it could not be done, often enough, or was done and did not help."""
    tried = [step for step in goal.all(kind) if step.action.arguments == arguments]
    if len(tried) >= TRIES:
        return None
    return pause(goal, seen, kind, arguments) or Act(Action(kind, arguments), why)
