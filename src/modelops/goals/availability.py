"""How goals of the type `availability` are pursued: what is not loaded is loaded again, probes are counted. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modelops.api.goals import AvailabilityObjective
from modelops.goals.values import Act, Action, Decision, End, Ending, ModelSeen, Pursued, Seen, Step, Wait

#: Seconds between two loads of a model; each that could not be begun doubles them.
PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
_LOOK_S = 1.0
#: So long after its time a model is waited for that does not answer just then, as it has crashed a moment ago.
GRACE_S = 30.0
#: Of how many recoveries, the newest, the 95th percentile is computed.
_RECENT = 200


@dataclass(frozen=True)
class Tally:
    """What was counted of one model. An outage begins when a model that has answered does not any more, and ends when
    it is loaded again, as soon as a probe has shown that it answers. Times are seconds of one clock."""

    probes: int = 0
    answered: int = 0
    recoveries: int = 0
    longest_s: float = 0.0
    recent_s: tuple[float, ...] = ()  # how long the newest outages were
    up: bool = False  # loaded, and asked
    down_at: float | None = None  # since when there is an outage
    up_at: float | None = None  # since when it is loaded again, without a probe so far

    def seen(self, now: float, *, up: bool) -> Tally:
        """It was looked at: whether it is loaded, and asked."""
        if not up:
            down_at = now if self.down_at is None and self.answered else self.down_at
            return replace(self, up=False, down_at=down_at, up_at=None)
        again = not self.up and self.down_at is not None
        return replace(self, up=True, up_at=now if again else self.up_at)

    def probed(self, began: float, now: float, *, answered: bool) -> Tally:
        """A probe that began then has ended."""
        if not answered:
            down_at = began if self.down_at is None and self.answered else self.down_at
            # One that was asked before it was loaded again tells nothing of it as it is now.
            up_at = self.up_at if self.up_at is not None and began < self.up_at else None
            return replace(self, probes=self.probes + 1, down_at=down_at, up_at=up_at)
        told = replace(self, probes=self.probes + 1, answered=self.answered + 1, down_at=None, up_at=None)
        if self.down_at is None:
            return told
        took = max(0.0, (now if self.up_at is None else self.up_at) - self.down_at)
        return replace(
            told,
            recoveries=self.recoveries + 1,
            longest_s=max(self.longest_s, took),
            recent_s=(*self.recent_s, took)[-_RECENT:],
        )

    def restarted(self, at: float) -> Tally:
        """The coordinator began at that time: what had answered before does not then."""
        return replace(self, up=False, down_at=at if self.answered else None, up_at=None)

    def written(self) -> dict[str, Any]:
        """For the goal's metrics."""
        return {
            "probes": self.probes,
            "answered": self.answered,
            "recoveries": self.recoveries,
            "longest_recovery_s": round(self.longest_s, 3),
            "recovery_s": [round(took, 3) for took in self.recent_s],
        }

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Tally:
        """What `written` wrote."""
        return cls(
            probes=int(written.get("probes", 0)),
            answered=int(written.get("answered", 0)),
            recoveries=int(written.get("recoveries", 0)),
            longest_s=float(written.get("longest_recovery_s", 0.0)),
            recent_s=tuple(map(float, written.get("recovery_s", ()))),
        )


@dataclass(frozen=True)
class Held:
    """What is seen of a model that is to be held. `why` the last probe was not answered; `prepared`: a load was begun,
    and its file is fetched or made; `failed`: why it is not loaded before `waits_s` are over; `refused`: why it has no
    place, with the bill; `asked`: it is loaded as soon as there is room, as was asked for; `before`: models that keep
    it from that, each with the id of the goal that keeps it and goes first."""

    tally: Tally = Tally()
    why: str = ""
    prepared: bool = False
    failed: str = ""
    waits_s: float = 0.0
    refused: str = ""
    asked: bool = False
    before: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AvailabilityFacts:
    """What is seen of all its models; `left_s` until its time is over, None where it has no end."""

    models: Mapping[str, Held] = field(default_factory=dict)
    left_s: float | None = None


def decide(goal: Pursued, seen: Seen) -> Decision:
    """Load what is not loaded, as soon as it may be; else say how it is."""
    if seen.facts is None and seen.refusal:  # what is decided by could not be seen
        return Wait(seen.refusal)
    facts = _facts(seen)
    if facts.left_s is not None and facts.left_s <= 0:
        end = _over(goal, seen, facts)
        if end.status == "completed" or facts.left_s <= -GRACE_S:
            return end
    tallies = tallies_of(goal, seen)
    told = []
    for name in names_of(goal):
        state = _state(goal, name, seen, facts.models.get(name, Held()))
        if state is None:
            again = "again, " if goal.last("load") else ""
            return Act(Action("load", {"model_name": name}), f"'{name}' is not loaded; it is loaded {again}and kept")
        told.append(state)
    metrics = counted(tallies.values()) | {"models": {name: tally.written() for name, tally in tallies.items()}}
    fine = "it is loaded and answers" if len(told) == 1 else f"all {len(told)} models are loaded and answer"
    progress = (
        None if facts.left_s is None else round(seen.elapsed_s / max(seen.elapsed_s + max(facts.left_s, 0.0), 1e-9), 2)
    )
    return Wait("; ".join(filter(None, told)) or fine, _LOOK_S, progress=progress, metrics=metrics)


def give_up(goal: Pursued, seen: Seen, ending: Ending) -> Decision:
    """Nothing is to be cleared away but that they are kept, which ends with the goal."""
    return End(ending.status, ending.why, result(goal, seen))


def _over(goal: Pursued, seen: Seen, facts: AvailabilityFacts) -> End:
    """Its time is over. It is reached where each of its models has answered, and does so still."""
    told = result(goal, seen)
    share = f"its time (until) is over: {told['answered']} of {told['probes']} probes were answered"
    wrong = []
    for name in names_of(goal):
        state = _state(goal, name, seen, facts.models.get(name, Held()))
        if state is None:
            wrong.append(f"'{name}' is not loaded")
        elif state:
            wrong.append(state)
        elif not told["models"][name]["answered"]:
            wrong.append(f"'{name}' is loaded, and has never answered a probe")
    if wrong:
        return End("failed", f"{share}; {'; '.join(wrong)}", told)
    return End("completed", share, told)


def result(goal: Pursued, seen: Seen) -> dict[str, Any]:
    """What is told at the end: what was counted, of all models together and of each."""
    tallies = tallies_of(goal, seen)
    return counted(tallies.values()) | {"models": {name: counted([tally]) for name, tally in tallies.items()}}


def names_of(goal: Pursued) -> tuple[str, ...]:
    """The models that are to be held."""
    assert isinstance(goal.objective, AvailabilityObjective)
    return tuple(goal.objective.models)


def tallies_of(goal: Pursued, seen: Seen | None = None) -> dict[str, Tally]:
    """What was counted of each model: as it is seen, else as the goal has noted it."""
    noted, held = goal.metrics.get("models", {}), _facts(seen).models if seen else {}
    return {name: held[name].tally if name in held else Tally.read(noted.get(name, {})) for name in names_of(goal)}


def counted(tallies: Iterable[Tally]) -> dict[str, Any]:
    """What was counted of these models together."""
    every = list(tallies)
    probes, answered = sum(each.probes for each in every), sum(each.answered for each in every)
    recent = sorted(took for each in every for took in each.recent_s)
    return {
        "probes": probes,
        "answered": answered,
        "share": round(answered / probes, 6) if probes else 0.0,
        "recoveries": sum(each.recoveries for each in every),
        "p95_recovery_s": round(recent[math.ceil(0.95 * len(recent)) - 1], 3) if recent else 0.0,
        "longest_recovery_s": round(max((each.longest_s for each in every), default=0.0), 3),
    }


def pause_s(goal: Pursued, name: str, elapsed_s: float) -> float:
    """Seconds until the next load of the model may be begun, after those that there were."""
    loads = _loads(goal, name)
    if not loads:
        return 0.0
    failed = next((count for count, step in enumerate(reversed(loads)) if not step.error), len(loads))
    return max(0.0, (loads[-1].ended_s or 0.0) + pause_after(failed) - elapsed_s)


def pause_after(failures: int) -> float:
    """Seconds before the next load of a model, after so many in a row that failed before its engine was started."""
    pause: float = min(PAUSE_S * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)
    return pause


def _loads(goal: Pursued, name: str) -> list[Step]:
    """The loads of the model that were begun, or could not be."""
    return [step for step in goal.all("load") if step.action.arguments.get("model_name") == name and step.done]


def _state(goal: Pursued, name: str, seen: Seen, held: Held) -> str | None:
    """How the model is, in words, empty where all is well; None: it is to be loaded now."""
    model = seen.models.get(name, ModelSeen(name))
    if model.status == "loaded":
        return f"'{name}' is loaded and does not answer: {held.why}" if held.why else ""
    if model.status not in ("available", "failed"):
        return f"'{name}' is on its way ({model.status})"
    if held.prepared:
        return f"'{name}' is on its way (its file is prepared)"
    paused = held.waits_s > 0 or pause_s(goal, name, seen.elapsed_s) > 0
    if held.refused and not held.asked and not paused:
        return None
    if held.refused and held.before:
        others = ", ".join(f"'{other}' (kept by the goal {goal_id})" for other, goal_id in held.before.items())
        return f"'{name}' cannot be held: it gives way to {others}, which goes first: {held.refused}"
    if held.refused:
        return f"'{name}' cannot be held: {held.refused}"
    if paused:
        last = next((step for step in reversed(_loads(goal, name)) if step.error), None)
        why = held.failed or (last.error if last else "")
        return f"'{name}' is loaded again after a pause{f': {why}' if why else ''}"
    return None


def _facts(seen: Seen) -> AvailabilityFacts:
    return seen.facts if isinstance(seen.facts, AvailabilityFacts) else AvailabilityFacts()
