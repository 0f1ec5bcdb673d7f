"""How goals of the type `serving` are pursued. Pure.

The present way of running the model is measured first; where it meets the targets, that is all. Else weight formats,
single settings and what has helped together are tried (see `space` and `narrowing`), always beside the present way, and
the best is measured against it once more, in pairs, before it is applied and watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelops.api.goals import ServingObjective
from modelops.goals import retries
from modelops.goals.narrowing import SEARCHED, Search, progress
from modelops.goals.retries import TRIES
from modelops.goals.space import Measured
from modelops.goals.targets import Probed, ServingFacts, result, versions_of, weights_of
from modelops.goals.values import Act, Action, Decision, End, Ending, ModelSeen, Pursued, Seen, Step, Wait

__all__ = ["Probed", "ServingFacts", "decide", "give_up"]

#: So many failures of the model's engine more than when another way was applied are that way's.
_FAILURES = 3
#: So many probes in a row that it does not answer, too.
_UNANSWERED = 3
#: So long after the watch the answer to a probe is waited for that could tell of a model that hangs.
_LONGER_S = 60.0
#: So long a way that is to be tried is waited for that does not fit at this moment.
_ROOM_S = 60.0
_NO_ROOM = "what is to be tried does not fit at this moment"


def decide(goal: Pursued, seen: Seen) -> Decision:
    """What follows."""
    objective, facts = goal.objective, seen.facts
    assert isinstance(objective, ServingObjective)
    applied = goal.last("apply")
    if applied:
        return _after(goal, seen, objective, applied)
    if not isinstance(facts, ServingFacts):
        return Wait("it waits until its model can be looked at")
    if why := _tired(goal):
        return give_up(goal, seen, Ending("failed", why))
    search = Search(goal, objective, facts)
    decision = search.next()
    if wait := _short(goal, seen, search, decision):
        return wait
    if isinstance(decision, End):
        return _cleared(goal, seen, decision)
    if isinstance(decision, Act) and decision.heavy and seen.refusal and not seen.taken:
        return Wait(seen.refusal, seconds=5.0)
    if not isinstance(decision, Act):
        return decision
    if decision.action.kind == "apply":
        return _applying(decision, objective, seen)
    again = retries.pause(goal, seen, decision.action.kind, decision.action.arguments)
    return again or replace(decision, progress=progress(goal.steps))


def _short(goal: Pursued, seen: Seen, search: Search, decision: Decision) -> Wait | None:
    """What is decided on for want of memory alone is waited for: as long as nothing could be measured now, or for a
    while, as others may give it back."""
    ends = isinstance(decision, End) and bool(search.left_out)
    if seen.refusal and (ends or search.short):
        if seen.taken:
            return Wait(f"it waits for its turn: {_NO_ROOM}", turn=True)
        return Wait(seen.refusal, seconds=5.0)
    last = goal.last()
    if search.short and last and seen.elapsed_s - (last.ended_s or 0.0) < _ROOM_S:
        return Wait(_NO_ROOM, seconds=5.0)
    return None


def give_up(goal: Pursued, seen: Seen, ending: Ending) -> Decision:
    """What is to be cleared away, and then the end: what was applied and is still watched is undone."""
    assert isinstance(goal.objective, ServingObjective)
    if ending.status == "completed":  # what was applied, if anything, has passed its watch
        return _cleared(goal, seen, End(ending.status, ending.why, result(goal)))
    applied, restored = goal.last("apply"), goal.all("restore")
    undone = any(not step.error for step in restored)
    if applied and not undone and len(restored) < TRIES and _is_ours(applied, restored, seen):
        back = _back(goal.objective, applied, restored, seen)
        if again := retries.once_more(goal, seen, "restore", back, f"{ending.why}: undone"):
            return replace(again, ending=ending) if isinstance(again, Act) else again
    why = ending.why
    if restored and not undone:
        why += f"; what was applied could not be undone: {restored[-1].error}"
    return _cleared(goal, seen, End(ending.status, why, {**result(goal), "applied": {}}))


def _back(objective: ServingObjective, applied: Step, restored: Sequence[Step], seen: Seen) -> dict[str, Any]:
    """Where to: how it was before. What has failed in the applied way, and was loaded before, is loaded again."""
    given, model = applied.action.arguments, _model(objective, seen)
    failed = model.status == "failed" or any(step.action.arguments.get("load") for step in restored)
    return {
        **{name: given[name] for name in ("version", "wish", "tuned")},
        "applied": applied.result.get("version", ""),
        "load": failed and bool(given.get("loaded")),
    }


def _is_ours(applied: Step, restored: Sequence[Step], seen: Seen) -> bool:
    """Whether what answers is what was applied: what somebody has activated since, or has asked to forget, is not
    touched. Where it was tried already to undo it, what answers may be what was before, and the rest is still to be
    done."""
    if _probed(seen).forgotten:
        return False
    labels = {"", str(applied.result.get("version", ""))}
    if restored and len(labels) > 1:
        labels.add(str(applied.action.arguments["version"]))
    return len(labels) == 1 or all(model.version in labels for model in seen.models.values())


def _probed(seen: Seen) -> Probed:
    """What has become of what was applied; it is watched without, where no facts can be had."""
    return seen.facts if isinstance(seen.facts, Probed) else Probed()


def _model(objective: ServingObjective, seen: Seen) -> ModelSeen:
    return seen.models.get(objective.model_name, ModelSeen(objective.model_name))


def _cleared(goal: Pursued, seen: Seen, end: End) -> Decision:
    """The files that were made go before the end, which follows whether they could be deleted or not."""
    made = weights_of(goal)
    undone = goal.last("restore")  # what was applied is of no use from then on
    discarded = [step for step in goal.all("discard") if undone is None or step.number > undone.number]
    if not made or any(not step.error for step in discarded):
        return end
    if len(discarded) >= TRIES:
        return replace(end, why=f"{end.why}; what was made is left: {discarded[-1].error}")
    keeps = end.result.get("applied", {}).get("version", "")
    given = {"weights": made, "versions": versions_of(goal), "keep": keeps}
    why = "files that were made to be measured are not needed any more"
    act = Act(Action("discard", given), why, ending=Ending(end.status, end.why))
    return retries.pause(goal, seen, "discard", given) or act


def _tired(goal: Pursued) -> str:
    """Why nothing more is tried, where a measurement has failed again and again."""
    last = goal.all("measure")[-TRIES:]
    if len(last) == TRIES and all(step.error for step in last):
        return f"it could not be measured: {last[-1].error}"
    return ""


def _applying(decision: Act, objective: ServingObjective, seen: Seen) -> Act:
    """With what the model's failures are counted from, and whether it is loaded."""
    model = _model(objective, seen)
    loaded = model.status not in ("available", "failed")
    arguments = {**decision.action.arguments, "failures": model.failures, "loaded": loaded}
    return replace(decision, action=replace(decision.action, arguments=arguments), progress=SEARCHED)


def _after(goal: Pursued, seen: Seen, objective: ServingObjective, applied: Step) -> Decision:
    """What follows once a way was applied."""
    if applied.error:
        # Where something else answers by now it was half done, or it is what somebody has chosen.
        untouched = not goal.last("restore") and _model(objective, seen).version == applied.action.arguments["version"]
        again = retries.once_more(goal, seen, "apply", applied.action.arguments, applied.why) if untouched else None
        return again or give_up(goal, seen, Ending("failed", f"the best way could not be applied: {applied.error}"))
    if goal.last("restore"):
        ending = Ending("failed", str(goal.all("restore")[0].why.removesuffix(": undone")))
        return give_up(goal, seen, ending)
    model, probed = _model(objective, seen), _probed(seen)
    if probed.forgotten:
        why = "a load asked for it untuned while the applied way was watched, and it is left so"
        return give_up(goal, seen, Ending("failed", why))
    if not _is_ours(applied, (), seen):
        why = f"another version ({model.version}) was activated while the applied way was watched"
        return give_up(goal, seen, Ending("failed", why))
    if model.status == "failed":
        return give_up(goal, seen, Ending("failed", f"the model failed in the applied way: {model.message}"))
    failures = model.failures - int(applied.action.arguments.get("failures", 0))
    if failures < 0:  # counted anew since the coordinator started
        failures = model.failures
    if failures >= _FAILURES:
        return give_up(goal, seen, Ending("failed", "the model's engine failed again and again in the applied way"))
    if probed.unanswered >= _UNANSWERED:
        why = f"the model did not answer {probed.unanswered} probes in a row in the applied way"
        return give_up(goal, seen, Ending("failed", why))
    left = (applied.ended_s or 0.0) + objective.watch_seconds - seen.elapsed_s
    if left > 0:
        part = min(1 - left / max(left, objective.watch_seconds), 0.9)
        done = round(SEARCHED + (1 - SEARCHED) * part, 2)
        return Wait("the applied way is watched", seconds=min(left, 1.0), progress=done)
    if (probed.asking or probed.unanswered) and left > -_LONGER_S:
        return Wait("the applied way was watched; it is still to answer a probe", seconds=0.5)
    told = result(goal)
    return _cleared(goal, seen, End("completed", f"{told['changes']}: {_gained(told)}", told))


def _gained(told: Mapping[str, Any]) -> str:
    present, best = (Measured.from_json(told[name]["measured"]) for name in ("present", "best"))
    return (
        f"{told['gain']:.2f} times as good as before ({present.tokens_per_second:.1f} tokens per second, p95 "
        f"{present.p95_latency_ms:.0f} ms before; {best.tokens_per_second:.1f}, {best.p95_latency_ms:.0f} ms now)"
    )
