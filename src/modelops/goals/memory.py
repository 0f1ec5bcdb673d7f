"""What is remembered of a goal in its row, as JSON: its steps by their numbers, and why it is to end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelops.goals.values import Action, Ending, Step

#: Where it is kept why the goal is to end; all other names are numbers of steps.
ENDING = "ending"


@dataclass(frozen=True)
class Kept:
    """A step as it is kept. Times are seconds since the epoch, for people; `heavy`: it has taken the goal's turn."""

    step: Step
    at: float
    ended_at: float | None = None
    heavy: bool = False


@dataclass(frozen=True)
class Memory:
    """All that is remembered; `ending` was decided on before the step `since` and all that follow, which clear away."""

    kept: tuple[Kept, ...] = ()
    ending: Ending | None = None
    since: int = 0

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, in order."""
        return tuple(kept.step for kept in self.kept)

    @property
    def under_way(self) -> Kept | None:
        """The step that has not ended."""
        return self.kept[-1] if self.kept and not self.kept[-1].step.done else None

    @property
    def heavy(self) -> bool:
        """Whether what was done last is heavy, and may be under way still."""
        return bool(self.kept) and self.kept[-1].heavy

    @property
    def next_number(self) -> int:
        """The number of the next step."""
        return self.kept[-1].step.number + 1 if self.kept else 1

    def clears(self, step: Step) -> bool:
        """Whether the step clears away what an ending has left: nothing interrupts it."""
        return self.ending is not None and step.number >= self.since

    def begun(self, kept: Kept, most: int) -> tuple[Memory, tuple[str, ...]]:
        """With a step more; of all only the newest `most` are kept. And the numbers of those that are not."""
        kept_all = (*self.kept, kept)
        return replace(self, kept=kept_all[-most:]), tuple(str(old.step.number) for old in kept_all[:-most])

    def ended(self, step: Step, at: float) -> Memory:
        """With the end of the step that was under way."""
        *before, last = self.kept
        return replace(self, kept=(*before, replace(last, step=step, ended_at=at)))

    def ending_with(self, ending: Ending) -> Memory:
        """With why the goal is to end; of two reasons the first."""
        return self if self.ending else replace(self, ending=ending, since=self.next_number)

    def written(self) -> dict[str, Any]:
        """Why the goal is to end, as JSON."""
        assert self.ending
        return {"status": self.ending.status, "why": self.ending.why, "since": self.since}


def read(memo: Mapping[str, Any]) -> Memory:
    """What was written."""
    kept = tuple(_read(memo[number]) for number in sorted(memo.keys() - {ENDING}, key=int))
    if ENDING not in memo:
        return Memory(kept)
    ending = memo[ENDING]
    return Memory(kept, Ending(ending["status"], ending["why"]), ending["since"])


def jobs_of(steps: Iterable[Step]) -> tuple[str, ...]:
    """The learning jobs that steps have begun, each once."""
    found = (step.result.get("job_id") for step in steps)
    return tuple(dict.fromkeys(job for job in found if isinstance(job, str) and job))


def written(kept: Kept) -> dict[str, Any]:
    """The step as JSON."""
    step = kept.step
    return {
        "number": step.number,
        "action": step.action.kind,
        "arguments": dict(step.action.arguments),
        "why": step.why,
        "began_s": step.began_s,
        "ended_s": step.ended_s,
        "result": dict(step.result),
        "error": step.error,
        "at": kept.at,
        "ended_at": kept.ended_at,
        "heavy": kept.heavy,
    }


def _read(kept: Mapping[str, Any]) -> Kept:
    step = Step(
        kept["number"],
        Action(kept["action"], kept["arguments"]),
        kept["why"],
        kept["began_s"],
        kept["ended_s"],
        kept["result"],
        kept["error"],
    )
    return Kept(step, kept["at"], kept["ended_at"], kept["heavy"])
