"""What came of each training for a goal of quality: may it be promoted, which is the best, what is told. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelops.api.goals import QualityObjective
from modelops.api.learning import JobStatus
from modelops.goals.search import Outcome, Tried
from modelops.goals.values import Pursued, Step

#: So improbable is what chance alone does, that it is taken for a loss.
SIGNIFICANT = 0.05
#: Sums of floating-point numbers differ by less.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class JobSeen:
    """A learning job of the goal's. `message` is why it waits."""

    status: JobStatus
    progress: float = 0.0
    message: str = ""
    error: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.status not in ("pending", "running")


#: What is seen of a job that is not there any more.
GONE = JobSeen("failed", error="the learning job is gone")


@dataclass(frozen=True)
class QualityFacts:
    """What is looked at for a goal of quality.

    `jobs` are those that were begun for it, also in steps that were interrupted before that was written. `made` are
    the labels of the versions that its jobs have published, and that are registered still; `damaged` those of any
    published version of the model whose file is gone, or not what was published any more. `answered` and `unanswered`
    count the probes since the last promotion, the latter in a row.
    """

    jobs: Mapping[str, JobSeen] = field(default_factory=dict)
    made: frozenset[str] = frozenset()
    answered: int = 0
    unanswered: int = 0
    max_jobs: int = 6
    regression: bool = False  # there are regression rows
    damaged: frozenset[str] = frozenset()

    def job(self, step: Step) -> JobSeen:
        """The job that the step began."""
        return self.jobs.get(str(step.result.get("job_id", "")), GONE)


@dataclass(frozen=True)
class Gate:
    """Whether a version may be promoted; if not, `reasons` tell all that is against it."""

    passed: bool
    reasons: tuple[str, ...]
    outcome: Outcome


@dataclass(frozen=True)
class Attempt:
    """A training, which was begun from the version `base`, and what came of it."""

    step: Step
    base: str
    job: JobSeen
    gate: Gate
    score: float | None  # on the held-out rows; None: it has none

    @property
    def job_id(self) -> str:
        """Its learning job."""
        return str(self.step.result.get("job_id", ""))

    @property
    def version(self) -> str:
        """What it has published, if anything."""
        return str(self.job.result.get("model_version", ""))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Those that it was begun with."""
        parameters: Mapping[str, Any] = self.step.action.arguments["parameters"]
        return parameters

    def tried(self) -> Tried:
        """What the search is told of it."""
        return Tried(self.parameters, self.gate.outcome)


# --- scores ---
def regression_metric(objective: QualityObjective) -> str:
    """How the regression rows are judged."""
    return objective.regression_metric or objective.metric


def number(scores: object, *path: str) -> float | None:
    """The finite number there, if there is one."""
    for name in path:
        scores = scores.get(name) if isinstance(scores, Mapping) else None
    known = isinstance(scores, int | float) and not isinstance(scores, bool) and math.isfinite(scores)
    return float(scores) if known and isinstance(scores, int | float) else None


def reaches(objective: QualityObjective, score: float | None) -> bool:
    """Whether the target is reached with that score."""
    if score is None:
        return False
    if objective.metric == "perplexity":
        return score <= objective.target + _ROUNDING
    return score >= objective.target - _ROUNDING


def better(objective: QualityObjective, one: float, other: float) -> bool:
    """Whether `one` is the better score."""
    return one < other - _ROUNDING if objective.metric == "perplexity" else one > other + _ROUNDING


def wanted(objective: QualityObjective) -> str:
    """The target in words."""
    most = "at most " if objective.metric == "perplexity" else ""
    return f"{most}{objective.target:g} is wanted"


def shown(score: float | None) -> str:
    """A score in words."""
    return "unknown" if score is None else f"{score:.4g}"


def said(objective: QualityObjective, score: float | None) -> str:
    """A score of the held-out rows in words, beside the target."""
    return f"{objective.metric} of the held-out rows is {shown(score)}, and {wanted(objective)}"


# --- the gate ---
def gate(objective: QualityObjective, job: JobSeen, base: str, active: str, *, regression: bool) -> Gate:
    """Whether what the job has made of the version `base` may answer in the place of the `active` one.

    It reaches the target; on the same rows it does not lose to what it was made of; the regression rows lose no more
    than they may; and what it was compared with is what answers now. What is not known counts against it.
    """
    if job.status != "completed":
        return Gate(False, (f"the training has not succeeded: {job.error or job.status}",), "failed")
    scores, metric = job.result.get("scores", {}), objective.metric
    under: list[str] = []
    lost: list[str] = []
    after = number(scores, "held_out", "after", metric)
    if not reaches(objective, after):
        under.append(said(objective, after))
    lost += _loses(scores, metric, base)
    if regression:
        lost += _forgets(objective, scores)
    reasons = under + lost
    if base != active:
        reasons.append(f"it was made of {base}, and {active} is active now")
    outcome: Outcome = "lost" if lost else "under" if under else "passed"
    return Gate(not reasons, tuple(reasons), outcome)


def _loses(scores: object, metric: str, base: str) -> Iterable[str]:
    p_loses = number(scores, "held_out", "paired", metric, "p_loses")
    if p_loses is None:
        yield f"it is not known whether it loses to {base} on the held-out rows"
    elif p_loses < SIGNIFICANT:
        won, gone = (number(scores, "held_out", "paired", metric, name) for name in ("wins", "losses"))
        yield (
            f"it loses to {base} on the held-out rows: {won or 0:g} are better and {gone or 0:g} worse "
            f"(p = {p_loses:.2g})"
        )


def _forgets(objective: QualityObjective, scores: object) -> Iterable[str]:
    metric, may = regression_metric(objective), objective.regression_tolerance
    before, after = (number(scores, "regression", when, metric) for when in ("before", "after"))
    if before is None or after is None:
        yield "it is not known what the regression rows have lost"
        return
    loss = after / before - 1 if metric == "perplexity" else before - after
    if loss > may + _ROUNDING:
        was = f"{metric} was {shown(before)} and is {shown(after)}"
        yield f"the regression rows have lost: {was}, and {may:g} may be lost"


# --- all of them ---
def attempts(goal: Pursued, objective: QualityObjective, facts: QualityFacts, active: str) -> tuple[Attempt, ...]:
    """The trainings that were begun, in order; the gate of each as it is now."""
    found = []
    for step in goal.all("train"):
        if step.done and not step.error:
            job = facts.job(step)
            base = str(job.result.get("base_version") or step.action.arguments["from_version"])
            score = number(job.result, "scores", "held_out", "after", objective.metric)
            passed = gate(objective, job, base, active, regression=facts.regression)
            found.append(Attempt(step, base, job, passed, score))
    return tuple(found)


def best(objective: QualityObjective, found: Iterable[Attempt]) -> Attempt | None:
    """The one with the best score, if it is one that may be promoted or none may: losing elsewhere is no success."""
    scored = [each for each in found if each.score is not None and each.version]
    kept = [each for each in scored if each.gate.outcome in ("passed", "under")] or scored
    chosen = None
    for each in kept:
        if chosen is None or better(objective, each.score or 0.0, chosen.score or 0.0):
            chosen = each
    return chosen


def worth_keeping(objective: QualityObjective, found: Iterable[Attempt], made: Collection[str]) -> str:
    """The best version of those that were made and are there still, if it is better than what it was made of."""
    chosen = best(objective, found)
    if chosen is None or chosen.version not in made:
        return ""
    before = number(chosen.job.result, "scores", "held_out", "before", objective.metric)
    return chosen.version if before is None or better(objective, chosen.score or 0.0, before) else ""


def so_far(objective: QualityObjective, found: Iterable[Attempt], active: str, baseline: float) -> str:
    """The best that was reached, in words."""
    chosen = best(objective, found)
    if chosen is None or not better(objective, chosen.score or 0.0, baseline):
        return f"{objective.metric} is {shown(baseline)} with {active}, and {wanted(objective)}"
    most = f"{shown(chosen.score)} at best, with {chosen.version}"
    return f"{objective.metric} was {most}, and {wanted(objective)}"


def told(attempt: Attempt, objective: QualityObjective) -> dict[str, Any]:
    """The attempt's line in the result of the goal."""
    scores = attempt.job.result.get("scores", {})
    other, passed = regression_metric(objective), attempt.gate.outcome == "passed"
    return {
        "job_id": attempt.job_id,
        "version": attempt.version,
        "from_version": attempt.base,
        "parameters": dict(attempt.parameters),
        "score_before": number(scores, "held_out", "before", objective.metric),
        "score": attempt.score,
        "p_loses": number(scores, "held_out", "paired", objective.metric, "p_loses"),
        "regression_before": number(scores, "regression", "before", other),
        "regression_after": number(scores, "regression", "after", other),
        "passed": passed,
        "reasons": [] if passed else list(attempt.gate.reasons),
        "seconds": number(attempt.job.result, "seconds"),
    }


def summed_up(
    objective: QualityObjective, found: Sequence[Attempt], baselines: Iterable[tuple[str, float | None]]
) -> dict[str, Any]:
    """What was reached: the versions that were measured before, with their scores, and all that was trained."""
    known = [(version, score) for version, score in baselines if score is not None]
    version, score = known[-1] if known else ("", None)
    chosen = best(objective, found)
    line = told(chosen, objective) if chosen else {}
    top = {"version": version, "score": score}
    if chosen and (score is None or better(objective, chosen.score or 0.0, score)):
        top = {"version": chosen.version, "score": chosen.score}
    return {
        "metric": objective.metric,
        "target": objective.target,
        "baseline": {"version": version, "score": score},
        "best": top,
        "p_loses": line.get("p_loses"),
        "regression": {when: line.get(f"regression_{when}") for when in ("before", "after")},
        "attempts": [told(each, objective) for each in found],
    }
