"""What goals of each type do and see in a simulation: jobs, versions, ways of running, loads, on one small machine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, cast

from goals.simulation import Model, Refused
from modelops.api.goals import AvailabilityObjective, QualityObjective, ServingObjective
from modelops.goals import availability
from modelops.goals.attempts import SIGNIFICANT, JobSeen, QualityFacts, reaches
from modelops.goals.availability import AvailabilityFacts, Held, Tally
from modelops.goals.space import Measured, Way
from modelops.goals.targets import ServingFacts
from modelops.goals.values import End, Pursued, Step
from modelops.serving.gguf import Header


@dataclass
class Machine:
    """Memory, of which other programs take some, now more and now less; and whatever may go wrong, from a seed."""

    seed: int
    memory_mb: int = 1000

    def free_mb(self, now: float) -> int:
        return self.memory_mb - int(self.chance("others", int(now / 400)) * 900)

    def chance(self, *of: object) -> float:
        """From 0 to 1, the same for the same."""
        return Random(f"{self.seed} {of}").random()


# --- quality ---
@dataclass
class Version:
    """How good a version is, and which goal's job has made it, if one has."""

    score: float
    regression: float
    made_by: str = ""


@dataclass
class Job:
    goal_id: str
    model: str
    version: str  # that is judged, or trained from
    kind: str
    parameters: Mapping[str, Any]
    began: float
    until: float
    status: str = "running"
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    def seen(self, now: float) -> JobSeen:
        progress = min(1.0, (now - self.began) / (self.until - self.began))
        return JobSeen(cast(Any, self.status), progress, "", self.error, self.result)


class Learning:
    """Jobs take minutes, and some fail. What a training gives depends on its parameters, and on luck."""

    def __init__(self, machine: Machine, models: Mapping[str, Model]) -> None:
        self._machine, self._models = machine, models
        self.versions = {name: {"v1": Version(self._luck(name) * 0.6, 0.9)} for name in models}
        self.jobs: dict[str, Job] = {}  # by goal and number
        self.promoted: dict[str, str] = {}  # by model, what its goal has promoted last
        self.before: dict[str, str] = {}  # by model, what was active before

    def _luck(self, *of: object) -> float:
        return self._machine.chance("learning", *of)

    def facts(self, goal: Pursued, now: float) -> QualityFacts:
        self.go_on(now)
        objective = _quality(goal)
        begun = {f"{goal.goal_id}-{step.number}" for step in goal.steps if step.done}
        mine = {key: job for key, job in self.jobs.items() if key in begun}
        unwell = self._models[objective.model_name].status == "failed"
        most = goal.limits.max_jobs
        return QualityFacts(
            jobs={key: job.seen(now) for key, job in mine.items()},
            made=frozenset(self._made(goal)),
            answered=int(now) % 7,
            unanswered=3 if unwell else 0,
            max_jobs=6 if most is None else most,
            regression=True,
        )

    def _made(self, goal: Pursued) -> list[str]:
        return [label for label, one in self.versions[_quality(goal).model_name].items() if one.made_by == goal.goal_id]

    def refusal(self, goal: Pursued, now: float) -> str:
        return "" if self._machine.free_mb(now) >= 300 else "300 MB are needed"

    def heavy(self, now: float) -> Sequence[str]:
        self.go_on(now)
        return sorted({job.goal_id for job in self.jobs.values() if job.status == "running"})

    def begin(self, goal: Pursued, step: Step, now: float) -> float:
        """Some of it is done at once, some in the end: whoever is killed or interrupted between may find either."""
        if self._luck("soon", goal.goal_id, step.number) < 0.5 and not self._refused(goal, step):
            with contextlib.suppress(Refused):
                self._do(goal, step, now)
        return 0.1 + 4 * self._luck("lasts", goal.goal_id, step.number)

    def result(self, goal: Pursued, step: Step, now: float) -> Mapping[str, Any]:
        if self._refused(goal, step):
            raise Refused("it could not be done this time")
        return self._do(goal, step, now)

    def _refused(self, goal: Pursued, step: Step) -> bool:
        return self._luck("refused", goal.goal_id, step.number) < 0.05

    def _do(self, goal: Pursued, step: Step, now: float) -> Mapping[str, Any]:
        """Done twice, it has been done once."""
        name, given = _quality(goal).model_name, step.action.arguments
        model, key = self._models[name], f"{goal.goal_id}-{step.number}"
        match step.action.kind:
            case "baseline" | "confirm" | "train":
                if not model.registered:
                    raise Refused("the model was removed")
                if key not in self.jobs:
                    train = step.action.kind == "train"
                    lasts = (60 + 600 * self._luck("job", key)) if train else 20.0
                    parameters = given.get("parameters", {})
                    self.jobs[key] = Job(
                        goal.goal_id, name, model.active, step.action.kind, parameters, now, now + lasts
                    )
                return {"job_id": key}
            case "cancel_job":
                job = self.jobs[given["job_id"]]
                if job.status == "running":
                    job.status, job.error, job.until = "cancelled", "cancelled", now
                return {}
            case "promote":
                if model.active not in (given["version"], given["from_version"]):
                    raise Refused(f"{model.active} is active now")
                if model.active != given["version"]:
                    self._check(goal, given["version"], given["from_version"])
                    model.active = given["version"]
                return {"loaded": True, "failures": model.failures}
            case "roll_back":
                if model.active == given["version"]:
                    model.active, model.status = given["from_version"], "loaded"
                return {}
            case "discard":
                for label in given["versions"]:
                    assert label != model.active, f"{goal.goal_id} discards {label}, which is active"
                    if label in self.versions[name]:
                        assert self.versions[name][label].made_by == goal.goal_id, f"{label} is not its own"
                        del self.versions[name][label]
                return {}
        raise AssertionError(step.action.kind)

    def _check(self, goal: Pursued, label: str, before: str) -> None:
        """Nothing is promoted that has not passed."""
        objective, known = _quality(goal), self.versions[_quality(goal).model_name]
        new, old = known[label], known[before]
        assert new.made_by == goal.goal_id, f"{goal.goal_id} promotes {label}, which is not its own"
        assert reaches(objective, new.score), f"{label} does not reach the target, and is promoted"
        assert old.regression - new.regression <= objective.regression_tolerance + 1e-9, f"{label} has forgotten"
        assert _p_loses(old.score, new.score) >= SIGNIFICANT, f"{label} loses to {before}, and is promoted"

    def go_on(self, now: float) -> None:
        """What has ended by now, has."""
        for key, job in self.jobs.items():
            if job.status == "running" and job.until <= now:
                self._end(key, job)

    def _end(self, key: str, job: Job) -> None:
        known, model = self.versions[job.model], self._models[job.model]
        if not model.registered or job.version not in known or self._luck("fails", key) < 0.1:
            job.status, job.error = "failed", "loss is no number"
            return
        before = known[job.version]
        job.status = "completed"
        if job.kind != "train":
            answers = model.active
            job.result = {"model_version": answers, "scores": {"exact_match": known[answers].score}}
            return
        epochs, rate = float(job.parameters.get("epochs", 3)), float(job.parameters.get("learning_rate", 5e-4))
        if rate > 8e-3:
            job.status, job.error = "failed", "loss is no number"
            return
        learnt = 1 - math.exp(-epochs * rate / 3e-3)
        score = min(1.0, before.score + (1 - before.score) * learnt * self._luck("can", job.model) + 0.05)
        score = round(score - 0.3 * (self._luck("spoilt", key) < 0.2), 2)
        regression = round(before.regression - 0.02 * epochs * rate / 3e-3 * 2 * self._luck("forgets", key), 3)
        label = f"v{len(self.versions[job.model]) + 100 + int(1e6 * self._luck('label', key))}"
        known[label] = Version(score, regression, job.goal_id)
        wins, losses = _rows(before.score, score)
        paired = {
            "wins": wins,
            "losses": losses,
            "ties": 0,
            "p_loses": _p_loses(before.score, score),
            "test": "mcnemar",
        }
        held_out = {"before": before.score, "after": score}
        job.result = {
            "model_version": label,
            "base_version": job.version,
            "scores": {
                "held_out": {when: {"exact_match": each} for when, each in held_out.items()}
                | {"paired": {"exact_match": paired}},
                "regression": {"before": {"exact_match": before.regression}, "after": {"exact_match": regression}},
            },
        }

    def left(self, goal: Pursued, end: End, now: float) -> Sequence[str]:
        self.go_on(now)
        model = self._models[_quality(goal).model_name]
        left = [
            f"the job {key}"
            for key, job in self.jobs.items()
            if job.goal_id == goal.goal_id and job.status == "running"
        ]
        if not model.registered:
            return left
        made = self._made(goal)
        confirmed = end.status == "completed" or end.result.get("promoted") == model.active
        if confirmed and not reaches(_quality(goal), self.versions[model.name][model.active].score):
            left.append(f"{model.active}, which does not reach the target")
        if model.active in made and not confirmed:
            left.append(f"{model.active}, promoted and not confirmed")
        most = 1 if end.status == "failed" else 0
        if len(others := [label for label in made if label != model.active]) > most:
            left.append(f"the versions {others}")
        if len(goal.all("train")) > (6 if goal.limits.max_jobs is None else goal.limits.max_jobs) + 3:
            left.append("more trainings than it may have")
        return left


def _quality(goal: Pursued) -> QualityObjective:
    assert isinstance(goal.objective, QualityObjective)
    return goal.objective


def _rows(before: float, after: float) -> tuple[int, int]:
    change = round((after - before) * 50)
    return max(change, 0) + 2, max(-change, 0) + 2


def _p_loses(before: float, after: float) -> float:
    """The exact one-sided test of McNemar."""
    wins, losses = _rows(before, after)
    rows = wins + losses
    return sum(math.comb(rows, count) for count in range(losses, rows + 1)) / float(2**rows)


# --- serving ---
@dataclass(frozen=True)
class Facts(ServingFacts):
    """Without a file: each slot takes 50 MB."""

    def bytes(self, way: Way) -> int:
        return (100 + 50 * way.slots) * 2**20


class Serving:
    """Each setting makes a model faster or slower, by chance."""

    def __init__(self, machine: Machine, models: Mapping[str, Model]) -> None:
        self._machine, self._models = machine, models
        self.ways: dict[tuple[str, str], Way] = {}  # of each version of each model
        self.kinds: dict[tuple[str, str], str] = {}  # what their weights were rewritten as
        self.files: dict[str, set[str]] = {}  # by goal, what was rewritten
        self.original: dict[str, tuple[str, Way]] = {}

    def _luck(self, *of: object) -> float:
        return self._machine.chance("serving", *of)

    def _way(self, name: str) -> Way:
        return self.ways.get((name, self._models[name].active), Way(weights="", slots=2))

    def facts(self, goal: Pursued, now: float) -> ServingFacts | None:
        name = _serving(goal).model_name
        model = self._models[name]
        if not model.registered:
            return None
        return Facts(
            version=model.active,
            present=self._way(name),
            wish="{}",
            tuned="",
            header=cast(Header, None),
            context_length=2048,
            cores=2,
            room_bytes=10_000 * 2**20,
            sizes={kind: 0 for kind in ("Q8_0", "Q4_0") if kind != self.kinds.get((name, model.active))},
        )

    def refusal(self, goal: Pursued, now: float) -> str:
        return "" if self._machine.free_mb(now) >= 400 else "400 MB are needed"

    def heavy(self, now: float) -> Sequence[str]:
        return []  # it is heavy only while a step is done

    def begin(self, goal: Pursued, step: Step, now: float) -> float:
        kind = step.action.kind
        if kind != "measure" and self._luck("soon", goal.goal_id, step.number) < 0.5:
            with contextlib.suppress(Refused):
                self._do(goal, step)
        return {"measure": 5.0 * len(step.action.arguments.get("ways", [])), "rewrite": 40.0}.get(kind, 3.0)

    def result(self, goal: Pursued, step: Step, now: float) -> Mapping[str, Any]:
        if self._luck("refused", goal.goal_id, step.number) < 0.05:
            raise Refused("it could not be done this time")
        return self._do(goal, step)

    def _do(self, goal: Pursued, step: Step) -> Mapping[str, Any]:
        name, given = _serving(goal).model_name, step.action.arguments
        model = self._models[name]
        if not model.registered:
            raise Refused("the model was removed")
        match step.action.kind:
            case "rewrite":
                kept = self._luck("kept", name, given["weights"], given["cache_type"]) < 0.6
                if kept and given["weights"]:
                    self.files.setdefault(goal.goal_id, set()).add(given["weights"])
                return {"kept": kept, "increase": 0.0 if kept else 0.5}
            case "measure":
                ways = [Way.from_json(each) for each in given["ways"]]
                return {"measured": [self._measured(name, way, goal, step, given["pairs"]) for way in ways]}
            case "apply":
                self.original.setdefault(goal.goal_id, (model.active, self._way(name)))
                way = Way.from_json(given["way"])
                label = given["version"]
                if way.weights:
                    label = f"v{goal.goal_id}.{step.number}"
                    self.kinds[name, label] = way.weights
                self.ways[name, label] = replace(way, weights="")
                model.active = label
                return {"version": label}
            case "restore":
                if given["applied"] and model.active not in (given["applied"], given["version"]):
                    return {"version": model.active, "left": True}
                if goal.goal_id in self.original:
                    label, way = self.original[goal.goal_id]
                    model.active, model.status = label, "loaded"
                    self.ways[name, label] = way
                return {}
            case "discard":
                self.files.pop(goal.goal_id, None)
                self.kinds = {key: kind for key, kind in self.kinds.items() if not self._is_left(goal, *key)}
                return {}
        raise AssertionError(step.action.kind)

    def _is_left(self, goal: Pursued, name: str, label: str) -> bool:
        """Whether the goal has made that version, and it does not answer."""
        return label.startswith(f"v{goal.goal_id}.") and self._models[name].active != label

    def _measured(self, name: str, way: Way, goal: Pursued, step: Step, pairs: int) -> Mapping[str, Any]:
        if self._luck("unfit", name, way) < 0.1 and way != self._way(name):
            return {"error": "its engine did not start"}
        samples = [self._sample(name, way, goal, step, number) for number in range(pairs)]
        return samples[0] | ({"samples": samples} if pairs > 1 else {})

    def _sample(self, name: str, way: Way, goal: Pursued, step: Step, number: int) -> dict[str, Any]:
        speed = 1.0
        for setting, value in way.to_json().items():
            speed *= 0.85 + 0.4 * self._luck(name, setting, value)
        speed *= 0.98 + 0.04 * self._luck("noise", goal.goal_id, step.number, way, number)
        return Measured(speed, 100 * speed, 1000 * speed, 2000 / speed, 100 + 50 * way.slots, 8, 5.0).to_json()

    def left(self, goal: Pursued, end: End, now: float) -> Sequence[str]:
        model = self._models[_serving(goal).model_name]
        left = [f"files of {goal.goal_id}"] if self.files.get(goal.goal_id) and model.registered else []
        left += [f"the version {key}" for key in self.kinds if self._is_left(goal, *key) and model.registered]
        if end.status != "completed" and model.registered and goal.goal_id in self.original:
            label, way = self.original[goal.goal_id]
            mine = model.active == label or model.active.startswith(f"v{goal.goal_id}.")
            if mine and (model.active != label or self._way(model.name) != way):
                left.append(f"{model.active}, applied and not undone")
        return left


def _serving(goal: Pursued) -> ServingObjective:
    assert isinstance(goal.objective, ServingObjective)
    return goal.objective


# --- availability ---
class Keeping:
    """Models are loaded in seconds, where there is room; and what has an end, ends."""

    def __init__(self, machine: Machine, models: Mapping[str, Model]) -> None:
        self._machine, self._models = machine, models
        self.until: dict[str, float] = {}
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.loads = 0

    def facts(self, goal: Pursued, now: float) -> AvailabilityFacts:
        held = {}
        for name in availability.names_of(goal):
            model, key = self._models[name], (goal.goal_id, name)
            up = model.registered and model.status == "loaded"
            tally = self.tallies.get(key, Tally()).seen(now, up=up).probed(now, now, answered=up)
            self.tallies[key] = tally
            refused = "" if up or self._machine.free_mb(now) >= model.memory_mb else f"{model.memory_mb} MB are needed"
            held[name] = Held(tally, "" if up else "it is not loaded", refused=refused)
        until = self.until.get(goal.goal_id)
        return AvailabilityFacts(held, None if until is None else until - now)

    def refusal(self, goal: Pursued, now: float) -> str:
        return ""

    def heavy(self, now: float) -> Sequence[str]:
        return []

    def begin(self, goal: Pursued, step: Step, now: float) -> float:
        return 2.0

    def result(self, goal: Pursued, step: Step, now: float) -> Mapping[str, Any]:
        model = self._models[step.action.arguments["model_name"]]
        if not model.registered or self._machine.chance("load", goal.goal_id, step.number) < 0.2:
            raise Refused("it could not be loaded")
        assert isinstance(goal.objective, AvailabilityObjective)
        self.loads += model.status != "loaded"
        model.status, model.message = "loaded", ""
        return {"model_version": model.active}

    def left(self, goal: Pursued, end: End, now: float) -> Sequence[str]:
        return []
