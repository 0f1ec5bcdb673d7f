"""How goals of the type `quality` are pursued. Pure.

Measure what is served; train, and see whether that may be promoted; promote, watch, and measure what is served again.
Each decision follows from the steps so far, so that whoever goes on after a crash decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from modelops.api.goals import QualityObjective
from modelops.goals import retries
from modelops.goals.attempts import (
    GONE,
    SIGNIFICANT,
    Attempt,
    Gate,
    JobSeen,
    QualityFacts,
    attempts,
    gate,
    number,
    reaches,
    said,
    shown,
    so_far,
    summed_up,
    told,
    wanted,
    worth_keeping,
)
from modelops.goals.retries import TRIES
from modelops.goals.search import changed, next_parameters
from modelops.goals.values import Act, Action, Decision, End, Ending, ModelSeen, Pursued, Seen, Step, Wait

__all__ = ["GONE", "SIGNIFICANT", "Attempt", "Gate", "JobSeen", "QualityFacts", "decide", "gate", "give_up"]

_MOST_BASELINES = 20
#: What a served version may do while it is watched, and no more: failures on its breaker, probes without an answer.
_MOST_FAILURES = _MOST_UNANSWERED = 3
_LOOK_S, _LOOK_CLOSELY_S = 1.0, 0.25


def decide(goal: Pursued, seen: Seen) -> Decision:
    """What follows."""
    if seen.facts is None and seen.refusal:  # what is decided by could not be seen
        return Wait(seen.refusal)
    view = _View(goal, seen)
    decision = view.watched(view.promoted) if view.promoted else view.sought()
    if isinstance(decision, Act) and decision.heavy and seen.refusal and not seen.taken:
        return Wait(f"it does not fit at this moment: {seen.refusal}", seconds=5.0)
    return view.keeping_turn(decision)


def give_up(goal: Pursued, seen: Seen, ending: Ending) -> Decision:
    """What is to be cleared away, and then the end."""
    view = _View(goal, seen)
    return view.keeping_turn(view.cleared(ending.status, ending.why))


class _View:
    """A goal and what is seen of it, as its decisions are made from it."""

    def __init__(self, goal: Pursued, seen: Seen) -> None:
        assert isinstance(goal.objective, QualityObjective)
        self.goal, self.seen, self.objective = goal, seen, goal.objective
        self.facts: QualityFacts = seen.facts if isinstance(seen.facts, QualityFacts) else QualityFacts()
        self.model = seen.models.get(self.objective.model_name, ModelSeen(self.objective.model_name, registered=False))
        self.active = self.model.version
        self.attempts = attempts(goal, self.objective, self.facts, self.active)
        self.promoted = next((step for step in reversed(goal.all("promote")) if step.done and not step.error), None)

    def keeping_turn(self, decision: Decision) -> Decision:
        """Whatever it waits for: while a job of its is under way, nobody else does what is heavy."""
        steps = self.goal.all("baseline", "train", "confirm")
        busy = any(step.done and not step.error and not self.facts.job(step).ended for step in steps)
        return replace(decision, working=True) if busy and isinstance(decision, Wait) else decision

    # --- until a version may be promoted ---
    def sought(self) -> Decision:
        """Nothing is promoted yet."""
        for step in self.goal.all("baseline", "train"):
            if step.done and not step.error and not self.facts.job(step).ended:
                return self._under_way(step)
        baseline = self._baseline()
        if not isinstance(baseline, float):
            return baseline
        if reaches(self.objective, baseline):
            trained = "" if self.attempts else "; nothing was trained"
            why = f"{self.active} reaches the target: {self._said(baseline)}{trained}"
            return self.cleared("completed", why)
        mine = [each for each in self.attempts if each.base == self.active and not self._asked(each.job_id)]
        newest = mine[-1] if mine else None
        if newest and newest.gate.passed:
            promotion = self._promotion(newest)
            if promotion:
                return promotion
        if newest and newest.job.status == "cancelled":
            return self.cleared("failed", f"its training was cancelled: {newest.job.error}")
        return self._training(baseline, [self._refused(each) for each in mine])

    def _under_way(self, step: Step) -> Decision:
        job, training = self.facts.job(step), step.action.kind == "train"
        given = "from_version" if training else "version"
        version = str(step.action.arguments[given])
        if training and version != self.active:
            return self._cancelled(
                str(step.result["job_id"]), f"it is trained from {version}, and {self.active} is active now"
            )
        what = f"training {len(self.attempts)} from {version}" if training else f"{version} is judged"
        done = (0.1 + 0.7 * (len(self.attempts) - 1 + job.progress) / max(1, self.facts.max_jobs)) if training else 0.05
        waits = f"; {job.message}" if job.message else ""
        why = f"{what}: learning job {step.result['job_id']} is {job.status}{waits}"
        return Wait(why, _LOOK_S, True, round(done, 2))

    def _baseline(self) -> float | Decision:
        """How good the active version is, or what is to be done to know it."""
        every = self.goal.all("baseline")
        mine = [step for step in every if step.action.arguments["version"] == self.active and not step.error]
        for failures, step in enumerate(reversed(mine), 1):
            job = self.facts.job(step)
            score = number(job.result, "scores", self.objective.metric)
            if job.status == "completed" and job.result.get("model_version") == self.active and score is not None:
                return score
            if job.status == "cancelled":
                return self.cleared("failed", f"its evaluation was cancelled: {job.error}")
            if failures >= TRIES:
                why = job.error or "another version answered"
                return self.cleared("failed", f"{self.active} could not be judged: {why}")
        if len(every) >= _MOST_BASELINES:
            return self.cleared("failed", "another version was activated again and again: nothing can be compared")
        why = f"first it is measured how good {self.active} is: of {self.objective.metric} {wanted(self.objective)}"
        if self.attempts:
            why = f"{self.active} is active now, and the trainings so far were compared with {self.attempts[-1].base}"
        return self._do("baseline", {"version": self.active}, why, heavy=True)

    def _training(self, baseline: float, mine: list[Attempt]) -> Decision:
        reached, count = so_far(self.objective, self.attempts, self.active, baseline), len(self.attempts)
        if count >= self.facts.max_jobs:
            trained = f"after {count} of at most {self.facts.max_jobs} trainings" if count else "it may train nothing"
            return self.cleared("failed", f"the target was not reached: {reached}; {trained}")
        parameters = next_parameters(self.objective.parameters, [each.tried() for each in mine])
        if parameters is None:
            return self.cleared("failed", f"the target was not reached: {reached}; nothing is left to try")
        if act := self._tidied(self._best_made()):  # each takes as much of the disk as the model
            return act
        why = f"{self.active} does not reach the target: {self._said(baseline)}"
        if mine:
            next_ = changed(mine[-1].parameters, parameters)
            why = f"training {count}: {'; '.join(mine[-1].gate.reasons)}; next {next_}"
        return self._do("train", {"parameters": parameters, "from_version": self.active}, why, heavy=True)

    def _promotion(self, attempt: Attempt) -> Decision | None:
        if self._refusal(attempt):
            return None
        arguments = {"version": attempt.version, "from_version": attempt.base}
        p_loses = told(attempt, self.objective)["p_loses"]
        why = f"{attempt.version} passes: {self._said(attempt.score)}, and it does not lose to {attempt.base}"
        return self._do("promote", arguments, f"{why} (p = {shown(p_loses)})", give_up=False)

    def _refusal(self, attempt: Attempt) -> str:
        """Why its version could not be promoted, tried often enough."""
        arguments = {"version": attempt.version, "from_version": attempt.base}
        failed = [step for step in self.goal.all("promote") if step.error and step.action.arguments == arguments]
        return failed[-1].error if len(failed) >= TRIES else ""

    def _refused(self, attempt: Attempt) -> Attempt:
        """The attempt; one that passed and could not be promoted has failed."""
        if attempt.gate.passed and (why := self._refusal(attempt)):
            return replace(attempt, gate=Gate(False, (f"it could not be promoted: {why}",), "failed"))
        return attempt

    # --- when one is promoted ---
    def watched(self, promote: Step) -> Decision:
        """A version was promoted, and answers."""
        version = str(promote.action.arguments["version"])
        if undone := self._after(promote, "roll_back"):
            return self.cleared("failed", undone[-1].why)
        if bad := self._bad(promote):
            return self.cleared("failed", bad)
        began = promote.ended_s or 0.0
        left = self.objective.watch_seconds - (self.seen.elapsed_s - began)
        if left > 0:
            done = round(0.95 - 0.1 * left / self.objective.watch_seconds, 2)
            why = f"{version} answers, and is watched for {self.objective.watch_seconds:g} s"
            return Wait(why, min(left, _LOOK_CLOSELY_S), progress=done, metrics={"probes": self.facts.answered})
        judged = [step for step in self._after(promote, "confirm") if not step.error]
        if judged and not self.facts.job(judged[-1]).ended:
            job = self.facts.job(judged[-1])
            done = round(0.95 + 0.04 * job.progress, 2)
            return Wait(f"{version} is judged as it is served", _LOOK_CLOSELY_S, True, done)
        if judged and (score := self._confirmed(promote)) is not None:
            return self.cleared("completed", f"{version} is served, and reaches the target: {self._said(score)}")
        why = f"{version} answered {self.facts.answered} probes; now the held-out rows, as it is served"
        return self._do("confirm", {"version": version}, why, heavy=True)

    def _bad(self, promote: Step) -> str:
        """What is wrong with the version that is served, if anything."""
        version, model = str(promote.action.arguments["version"]), self.model
        if self.active != version:
            return f"{self.active} was activated while {version} was watched, and is left as it is"
        if version in self.facts.damaged:  # what runs may answer still; what is started next will not
            return f"{version} was damaged when it was served: its file is gone, or not what was published any more"
        failures = model.failures - int(promote.result.get("failures", 0))
        if failures < 0:  # counted anew since the coordinator started
            failures = model.failures
        if model.status == "failed":
            return f"{version} failed when it was served: {model.message or 'its engine does not run'}"
        if failures >= _MOST_FAILURES:
            return f"{version} failed {failures} times when it was served: {model.message or 'its engine broke'}"
        if self.facts.unanswered >= _MOST_UNANSWERED:
            return f"{version} did not answer {self.facts.unanswered} probes in a row"
        judged = [self.facts.job(step) for step in self._after(promote, "confirm") if not step.error]
        if judged and judged[-1].status == "completed" and self._confirmed(promote) is None:
            score = number(judged[-1].result, "scores", self.objective.metric)
            return f"{version} does not reach the target as it is served: {self._said(score)}"
        if judged and judged[-1].status == "cancelled":
            return f"the evaluation of {version} was cancelled: {judged[-1].error}"
        failed = [job for job in judged if job.status == "failed"]
        if len(failed) >= TRIES:
            return f"{version} could not be judged as it is served: {failed[-1].error}"
        return ""

    def _confirmed(self, promote: Step) -> float | None:
        """The score of what is served, where it was judged, and reaches the target."""
        for step in self._after(promote, "confirm"):
            job = self.facts.job(step)
            score = number(job.result, "scores", self.objective.metric)
            answered = job.result.get("model_version") == promote.action.arguments["version"]
            if job.status == "completed" and answered and reaches(self.objective, score):
                return score
        return None

    # --- the end ---
    def cleared(self, status: Literal["completed", "failed", "cancelled"], why: str) -> Decision:
        """What is under way is ended, what was promoted and not confirmed is undone, what was made is deleted unless
        it is the best of a failure; then it is the end. Whatever comes meanwhile, it is that end."""
        decision = self._clearing(status, why)
        return replace(decision, ending=Ending(status, why)) if isinstance(decision, Act) else decision

    def _clearing(self, status: Literal["completed", "failed", "cancelled"], why: str) -> Decision:
        promote, reached = self.promoted or self._half_promoted(), status == "completed"
        confirmed = self._confirmed(promote) if promote and (reached or not self._bad(promote)) else None
        if promote and confirmed is None and not (reached and self.promoted):
            # First of all: callers are answered by it, or will be, where its swap was interrupted and goes on.
            going_on = promote.error and not self._after(promote, "roll_back")
            if going_on or self.active == promote.action.arguments["version"]:
                arguments = dict(promote.action.arguments) | {"loaded": bool(promote.result.get("loaded"))}
                if act := retries.once_more(self.goal, self.seen, "roll_back", arguments, why):
                    return act
            if (undone := self._after(promote, "roll_back")) and undone[-1].error:
                why = f"{why}; it could not be rolled back: {undone[-1].error}"
        for job_id, job in self.facts.jobs.items():
            if not job.ended:
                return self._cancelled(job_id, why)
        kept = self._best_made() if status == "failed" else ""
        if act := self._tidied(kept):
            return act
        if left := self._not_kept(kept):
            failed = self.goal.last("discard")
            why = f"{why}; left: {', '.join(left)}" + (f": {failed.error}" if failed and failed.error else "")
        return End(status, why, self._result(confirmed))

    def _half_promoted(self) -> Step | None:
        """A promotion that was interrupted, and may have been done all the same; nothing was begun since."""
        last = self.goal.last("baseline", "train", "promote")
        return last if last and last.error and last.action.kind == "promote" else None

    def _tidied(self, kept: str) -> Act | Wait | None:
        """Delete the versions that were made and do not answer, but that one."""
        gone = self._not_kept(kept)
        if not gone:
            return None
        rest = f"; {kept} is the best, and kept" if kept else ""
        why = f"{', '.join(gone)} {'were' if len(gone) > 1 else 'was'} made for this goal, and not promoted{rest}"
        return retries.once_more(self.goal, self.seen, "discard", {"versions": gone}, why)

    def _not_kept(self, kept: str) -> list[str]:
        """The versions that were made, and are neither that one nor what answers."""
        return sorted(self.facts.made - {self.active, kept}) if self.model.registered else []

    def _best_made(self) -> str:
        return worth_keeping(self.objective, self.attempts, self.facts.made - self.facts.damaged)

    def _cancelled(self, job_id: str, why: str) -> Decision:
        """End the job."""
        act = (
            None
            if self._asked(job_id)
            else retries.once_more(self.goal, self.seen, "cancel_job", {"job_id": job_id}, why)
        )
        return act or Wait(f"learning job {job_id} ends: {why}", _LOOK_CLOSELY_S, working=True)

    def _asked(self, job_id: str) -> bool:
        """Whether its job was told to end, for this goal."""
        asked = self.goal.all("cancel_job")
        return any(step.action.arguments["job_id"] == job_id and step.done and not step.error for step in asked)

    def _result(self, confirmed: float | None) -> dict[str, Any]:
        judged = [step for step in self.goal.all("baseline") if not step.error]
        scores = [number(self.facts.job(step).result, "scores", self.objective.metric) for step in judged]
        versions = [str(step.action.arguments["version"]) for step in judged]
        found = [self._refused(each) for each in self.attempts]
        promoted = self.promoted.action.arguments["version"] if self.promoted and confirmed is not None else ""
        told = summed_up(self.objective, found, zip(versions, scores, strict=True))
        return told | {"promoted": promoted, "served_score": confirmed}

    # --- helpers ---
    def _do(
        self, kind: str, arguments: Mapping[str, Any], why: str, *, heavy: bool = False, give_up: bool = True
    ) -> Decision:
        """Do it; what could not be done is tried again, later and later, and then given up."""
        act = Act(Action(kind, arguments), why, heavy)
        failed = retries.failed(self.goal, kind, arguments)
        if give_up and len(failed) >= TRIES:
            return self.cleared("failed", f"{kind} could not be done: {failed[-1].error}")
        return retries.pause(self.goal, self.seen, kind, arguments) or act

    def _after(self, promote: Step, kind: str) -> tuple[Step, ...]:
        return tuple(step for step in self.goal.all(kind) if step.number > promote.number and step.done)

    def _said(self, score: float | None) -> str:
        return said(self.objective, score)
