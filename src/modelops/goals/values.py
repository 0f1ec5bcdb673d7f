"""What is known of a goal when it is decided what follows, and what can follow. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modelops.api.goals import GoalLimits, Objective

#: Why a goal ends that was cancelled without a reason.
CANCELLED = "it was cancelled"


@dataclass(frozen=True)
class Action:
    """One thing that is done for a goal: `kind` says which, `arguments` with what; all of it can be written as JSON.

    Done again with the same key, `(goal, number of the step)`, it has been done once.
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """An action that was decided on, and what came of it. `began_s` and `ended_s` are seconds of the goal's active
    time; without an end it is under way, or was when the coordinator ended: then it is done again, under its key."""

    number: int
    action: Action
    why: str
    began_s: float
    ended_s: float | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""  # why it could not be done

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.ended_s is not None


@dataclass(frozen=True)
class Pursued:
    """A goal, and all that was done for it, in order."""

    goal_id: str
    objective: Objective
    limits: GoalLimits = field(default_factory=GoalLimits)
    priority: int = 1  # higher goes first
    steps: tuple[Step, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)  # what is counted meanwhile; see `Wait.metrics`

    def last(self, *kinds: str) -> Step | None:
        """The last step of one of these kinds, or of any."""
        return next((step for step in reversed(self.steps) if not kinds or step.action.kind in kinds), None)

    def all(self, *kinds: str) -> tuple[Step, ...]:
        """The steps of these kinds, in order."""
        return tuple(step for step in self.steps if step.action.kind in kinds)


@dataclass(frozen=True)
class ModelSeen:
    """A model that a goal is about. `version` is the label of the active one, `serving` that of the engine's, empty
    where none runs; `failures` counts the failures on its breaker; `message` is why it failed."""

    name: str
    registered: bool = True
    version: str = ""
    status: str = "available"
    serving: str = ""
    message: str = ""
    failures: int = 0
    memory_mb: int = 0


@dataclass(frozen=True)
class Ending:
    """The goal is to end so: what is under way, or left, is cleared away first."""

    status: Literal["completed", "failed", "cancelled"]
    why: str


@dataclass(frozen=True)
class Seen:
    """What is observed before it is decided what follows.

    `elapsed_s` is how long the goal has been active, by a clock that nobody sets. `turn`: heavy work may be begun now,
    it is this goal's turn. `holder`: words for the goal that changes the same model, and goes first. `refusal`: why
    what the goal would take next does not fit at this moment. `taken`: it is another's turn, and what does not fit may
    well do so when that is over. `facts` is what the goal's type sees besides.
    """

    elapsed_s: float = 0.0
    overdue: bool = False  # target_completion has passed
    cancelled: str | None = None  # why, where somebody wants it to end
    turn: bool = True
    holder: str = ""
    refusal: str = ""
    taken: bool = False
    ending: Ending | None = None  # it has been decided before that it is to end, and so it stays
    models: Mapping[str, ModelSeen] = field(default_factory=dict)
    facts: Any = None


# --- what can follow ---
@dataclass(frozen=True)
class Act:
    """Do this next, because `why`. `heavy`: it takes much of the machine, and waits for the goal's turn. `progress` is
    how far the goal is by then, where that is known. `ending`: it clears away before that end, which stays."""

    action: Action
    why: str
    heavy: bool = False
    progress: float | None = None
    ending: Ending | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing is to be done now, because `why`; look again after so many seconds, or when something has changed.

    `working`: something heavy that was begun for the goal is under way, so it keeps its turn. `turn`: it is that which
    it waits for. `metrics` are noted with the goal's own.
    """

    why: str
    seconds: float = 1.0
    working: bool = False
    progress: float | None = None
    turn: bool = False
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """The goal has ended; `result` tells what was reached, and `why` how."""

    status: Literal["completed", "failed", "cancelled"]
    why: str
    result: Mapping[str, Any] = field(default_factory=dict)


Decision = Act | Wait | End
