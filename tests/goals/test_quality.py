"""What follows in a goal of quality: by a table, and in worlds where anything may happen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelops.api.goals import GoalLimits, QualityObjective
from modelops.goals.decide import decide
from modelops.goals.quality import JobSeen, QualityFacts, gate
from modelops.goals.values import Act, Action, End, Ending, ModelSeen, Pursued, Seen, Step, Wait

OBJECTIVE = QualityObjective(type="quality", model_name="m", metric="exact_match", target=0.9, watch_seconds=10)
PERPLEXITY = OBJECTIVE.model_copy(update={"metric": "perplexity", "target": 5.0})


def scores(
    after: float | None = 0.95,
    before: float = 0.1,
    p_loses: float | None = 1.0,
    regression: tuple[float, float] | None = (0.6, 0.6),
    metric: str = "exact_match",
) -> dict[str, Any]:
    held_out: dict[str, Any] = {"before": {metric: before}, "after": {} if after is None else {metric: after}}
    if p_loses is not None:
        held_out["paired"] = {metric: {"wins": 1, "losses": 9, "ties": 0, "p_loses": p_loses, "test": "mcnemar"}}
    found = {"held_out": held_out}
    if regression:
        found["regression"] = {"before": {metric: regression[0]}, "after": {metric: regression[1]}}
    return found


def trained(version: str = "v2", base: str = "v1", **scored: Any) -> JobSeen:
    result = {"model_version": version, "base_version": base, "scores": scores(**scored)}
    return JobSeen("completed", 1.0, result=result)


def judged(version: str, score: float) -> JobSeen:
    return JobSeen("completed", 1.0, result={"model_version": version, "scores": {"exact_match": score}})


# --- the gate ---
@pytest.mark.parametrize(
    ("job", "outcome", "reason"),
    [
        (trained(), "passed", ""),
        (trained(after=0.9), "passed", ""),
        (trained(after=0.89), "under", "exact_match of the held-out rows is 0.89, and 0.9 is wanted"),
        (trained(after=None), "under", "is unknown"),
        (trained(after=float("nan")), "under", "is unknown"),
        (trained(p_loses=0.049), "lost", "it loses to v1 on the held-out rows: 1 are better and 9 worse (p = 0.049)"),
        (trained(p_loses=0.05), "passed", ""),
        (trained(p_loses=None), "lost", "it is not known whether it loses to v1"),
        (trained(regression=(0.6, 0.58)), "passed", ""),
        (trained(regression=(0.6, 0.57)), "lost", "exact_match was 0.6 and is 0.57, and 0.02 may be lost"),
        (trained(regression=None), "lost", "it is not known what the regression rows have lost"),
        (JobSeen("failed", error="the loss is no number"), "failed", "has not succeeded: the loss is no number"),
        (JobSeen("cancelled"), "failed", "has not succeeded: cancelled"),
    ],
)
def test_the_gate(job: JobSeen, outcome: str, reason: str) -> None:
    found = gate(OBJECTIVE, job, "v1", "v1", regression=True)
    assert (found.passed, found.outcome) == (outcome == "passed", outcome)
    assert reason in "; ".join(found.reasons)
    assert not gate(OBJECTIVE, job, "v1", "v3", regression=True).passed, "it was compared with another"


def test_the_gate_for_perplexity_which_is_better_where_it_is_lower() -> None:
    def passed(**given: Any) -> bool:
        job = trained(metric="perplexity", **given)
        return gate(PERPLEXITY, job, "v1", "v1", regression=True).passed

    assert passed(after=5.0, regression=(10.0, 10.2))
    assert not passed(after=5.1, regression=(10.0, 10.2))
    assert not passed(after=4.0, regression=(10.0, 10.3))


# --- by the table ---
def step(number: int, kind: str, ended: float = 1.0, error: str = "", job: str = "", **arguments: Any) -> Step:
    result = {"job_id": job} if job else {}
    return Step(number, Action(kind, arguments), "", 0.0, ended, result, error)


BASELINE = step(1, "baseline", job="b", version="v1")
TRAIN = step(2, "train", job="t", parameters={}, from_version="v1")
PROMOTE = replace(
    step(3, "promote", 100.0, version="v2", from_version="v1"), result={"failures": 2, "loaded": True, "version": "v2"}
)
CONFIRM = step(4, "confirm", 112.0, job="c", version="v2")
JOBS = {"b": judged("v1", 0.1), "t": trained()}
RUNNING = JobSeen("running", 0.5)


def found(*steps: Step, version: str = "v1", elapsed: float = 200.0, **more: Any) -> Act | Wait | End:
    """What follows."""
    made = frozenset({"v2"} if TRAIN in steps else ())
    models = {"m": ModelSeen("m", version=version, status=more.pop("status", "loaded"), **more.pop("model", {}))}
    facts = QualityFacts(**{"jobs": JOBS, "regression": True, "made": made} | more.pop("facts", {}))
    seen = Seen(elapsed_s=elapsed, models=models, facts=facts, **more)
    return decide(Pursued("g", OBJECTIVE, steps=steps), seen)


def act(decision: Act | Wait | End) -> tuple[str, Mapping[str, Any]]:
    assert isinstance(decision, Act), decision
    assert decision.why
    return decision.action.kind, decision.action.arguments


def test_first_the_served_model_is_judged() -> None:
    decision = found(facts={"jobs": {}, "made": frozenset()})
    assert act(decision) == ("baseline", {"version": "v1"})
    assert isinstance(decision, Act)
    assert decision.heavy


def test_what_reaches_the_target_already_is_not_trained() -> None:
    decision = found(BASELINE, facts={"jobs": {"b": judged("v1", 0.92)}, "made": frozenset()})
    assert isinstance(decision, End)
    assert decision.status == "completed"
    assert "nothing was trained" in decision.why
    assert decision.result["best"] == {"version": "v1", "score": 0.92}


def test_a_training_follows_and_keeps_the_turn_while_it_runs() -> None:
    assert act(found(BASELINE)) == ("train", {"parameters": {}, "from_version": "v1"})
    decision = found(BASELINE, TRAIN, facts={"jobs": JOBS | {"t": RUNNING}})
    assert isinstance(decision, Wait)
    assert decision.working


def test_what_passes_is_promoted_watched_judged_and_then_it_is_the_end() -> None:
    assert act(found(BASELINE, TRAIN)) == ("promote", {"version": "v2", "from_version": "v1"})
    watching = found(BASELINE, TRAIN, PROMOTE, version="v2", elapsed=109.0, facts={"answered": 8})
    assert isinstance(watching, Wait)
    assert watching.why == "v2 answers, and is watched for 10 s"
    assert (watching.progress, watching.metrics) == (0.94, {"probes": 8})
    assert not watching.working, "others may have their turn"
    assert act(found(BASELINE, TRAIN, PROMOTE, version="v2", elapsed=110.0)) == ("confirm", {"version": "v2"})
    assert isinstance(
        found(BASELINE, TRAIN, PROMOTE, CONFIRM, version="v2", facts={"jobs": JOBS | {"c": RUNNING}}), Wait
    )
    end = found(BASELINE, TRAIN, PROMOTE, CONFIRM, version="v2", facts={"jobs": JOBS | {"c": judged("v2", 0.94)}})
    assert isinstance(end, End)
    assert end.status == "completed"
    assert end.result["promoted"] == "v2"
    assert end.result["baseline"] == {"version": "v1", "score": 0.1}
    assert end.result["best"] == {"version": "v2", "score": 0.95}
    assert end.result["served_score"] == 0.94
    assert end.result["p_loses"] == 1.0
    assert end.result["regression"] == {"before": 0.6, "after": 0.6}


BAD: list[dict[str, Any]] = [
    {"status": "failed", "model": {"message": "its engine crashed"}},
    {"model": {"failures": 5}},
    {"facts": {"unanswered": 3}},
    {"facts": {"jobs": JOBS | {"c": judged("v2", 0.5)}}},
    {"facts": {"jobs": JOBS | {"c": judged("v2", 0.94)}}, "status": "failed"},
]


@pytest.mark.parametrize("bad", BAD)
def test_what_fails_in_the_watch_is_rolled_back_at_once(bad: dict[str, Any]) -> None:
    steps = (BASELINE, TRAIN, PROMOTE, *([CONFIRM] if "jobs" in bad.get("facts", {}) else []))
    decision = found(*steps, version="v2", elapsed=101.0, **bad)
    assert act(decision) == ("roll_back", {"version": "v2", "from_version": "v1", "loaded": True})
    assert isinstance(decision, Act)
    assert not decision.heavy, "that waits for nobody's turn"
    undone = replace(step(5, "roll_back", 102.0, version="v2"), why=decision.why)
    end = found(*steps, undone, elapsed=103.0, **bad)
    assert isinstance(end, End)
    assert (end.status, end.why) == ("failed", decision.why)
    assert end.result["promoted"] == ""


def test_what_is_damaged_in_the_watch_is_rolled_back_before_it_fails_and_not_kept() -> None:
    damaged: dict[str, Any] = {"facts": {"damaged": frozenset({"v2"})}}
    decision = found(BASELINE, TRAIN, PROMOTE, version="v2", elapsed=101.0, **damaged)
    assert act(decision)[0] == "roll_back"
    assert isinstance(decision, Act)
    assert decision.why == "v2 was damaged when it was served: its file is gone, or not what was published any more"
    undone = replace(step(4, "roll_back", 102.0, version="v2"), why=decision.why)
    damaged = {"facts": {"damaged": frozenset({"v2"})}}
    assert act(found(BASELINE, TRAIN, PROMOTE, undone, **damaged)) == ("discard", {"versions": ["v2"]})


def test_fewer_failures_than_that_are_nothing() -> None:
    decision = found(
        *(BASELINE, TRAIN, PROMOTE), version="v2", elapsed=101.0, model={"failures": 4}, facts={"unanswered": 2}
    )
    assert isinstance(decision, Wait)
    counted_anew = found(BASELINE, TRAIN, PROMOTE, version="v2", elapsed=101.0, model={"failures": 1})
    assert isinstance(counted_anew, Wait)


def test_another_version_that_is_activated_in_the_watch_is_left_as_it_is() -> None:
    end = found(BASELINE, TRAIN, PROMOTE, version="v7", elapsed=101.0, facts={"made": frozenset()})
    assert isinstance(end, End)
    assert end.status == "failed"
    assert "v7 was activated while v2 was watched" in end.why


def test_another_version_that_is_activated_before_is_judged_anew() -> None:
    assert act(found(BASELINE, TRAIN, version="v7")) == ("baseline", {"version": "v7"})
    running = found(BASELINE, TRAIN, version="v7", facts={"jobs": JOBS | {"t": RUNNING}})
    assert act(running) == ("cancel_job", {"job_id": "t"})
    told = step(3, "cancel_job", job_id="t")
    back = found(BASELINE, TRAIN, told, facts={"jobs": JOBS | {"t": JobSeen("cancelled")}, "made": frozenset()})
    assert act(back) == ("train", {"parameters": {}, "from_version": "v1"}), "v1 is active again, and was judged"
    again = step(3, "baseline", job="b2", version="v7")
    decision = found(BASELINE, TRAIN, again, version="v7", facts={"jobs": JOBS | {"b2": judged("v7", 0.2)}})
    assert act(decision) == ("train", {"parameters": {}, "from_version": "v7"})


def test_what_does_not_pass_is_tried_otherwise_until_the_limit() -> None:
    jobs = JOBS | {"t": trained(after=0.5)}
    decision = found(BASELINE, TRAIN, facts={"jobs": jobs})
    assert act(decision) == ("train", {"parameters": {"epochs": 6.0}, "from_version": "v1"})
    assert isinstance(decision, Act)
    assert "exact_match of the held-out rows is 0.5, and 0.9 is wanted; next epochs 6" in decision.why
    end = found(BASELINE, TRAIN, facts={"jobs": jobs, "max_jobs": 1})
    assert isinstance(end, End)
    assert end.status == "failed"
    assert "0.5 at best, with v2, and 0.9 is wanted; after 1 of at most 1 trainings" in end.why
    none = found(BASELINE, facts={"max_jobs": 0, "made": frozenset()})
    assert isinstance(none, End)
    assert "it may train nothing" in none.why


def test_of_a_failure_the_best_is_kept_and_the_others_are_deleted() -> None:
    second = step(3, "train", job="t2", parameters={"epochs": 6.0}, from_version="v1")
    jobs = JOBS | {"t": trained(after=0.5), "t2": trained("v3", after=0.4)}
    goes_on = found(BASELINE, TRAIN, second, facts={"jobs": jobs, "made": frozenset({"v2", "v3"})})
    assert act(goes_on) == ("discard", {"versions": ["v3"]}), "the disk is not filled with what nobody wants"
    more: dict[str, Any] = {"facts": {"jobs": jobs, "max_jobs": 2, "made": frozenset({"v2", "v3"})}}
    assert act(found(BASELINE, TRAIN, second, **more)) == ("discard", {"versions": ["v3"]})
    assert act(found(BASELINE, TRAIN, second, **more, cancelled="enough")) == ("discard", {"versions": ["v2", "v3"]})
    worse = {"t": trained(after=0.05), "t2": trained("v3", after=0.04)}
    more["facts"]["jobs"] = JOBS | worse
    assert act(found(BASELINE, TRAIN, second, **more)) == ("discard", {"versions": ["v2", "v3"]}), "none is any good"


def test_what_was_decided_on_when_it_begins_to_clear_away_is_how_it_ends() -> None:
    bad = found(BASELINE, TRAIN, PROMOTE, version="v2", elapsed=101.0, facts={"unanswered": 3})
    assert isinstance(bad, Act) and bad.action.kind == "roll_back"
    assert bad.ending == Ending("failed", "v2 did not answer 3 probes in a row")
    jobs = {"jobs": JOBS | {"c": judged("v2", 0.94)}, "made": frozenset({"v2", "v3"})}
    done = found(BASELINE, TRAIN, PROMOTE, CONFIRM, version="v2", facts=jobs)
    assert act(done) == ("discard", {"versions": ["v3"]})
    assert isinstance(done, Act) and done.ending and done.ending.status == "completed"
    jobs["made"] = frozenset({"v2"})
    late: dict[str, Any] = {"ending": done.ending, "cancelled": "too late", "overdue": True, "status": "failed"}
    end = found(BASELINE, TRAIN, PROMOTE, CONFIRM, version="v2", facts=jobs, **late)
    assert isinstance(end, End)
    assert (end.status, end.why, end.result["promoted"]) == ("completed", done.ending.why, "v2")
    between = found(BASELINE, TRAIN, facts={"jobs": JOBS | {"t": trained(after=0.5)}})
    assert isinstance(between, Act) and between.action.kind == "train" and between.ending is None


def test_what_could_not_be_discarded_is_told() -> None:
    def tries(count: int) -> list[Step]:
        return [step(3 + number, "discard", 10.0, "v2 runs still", versions=["v2"]) for number in range(count)]

    assert act(found(BASELINE, TRAIN, *tries(2), cancelled="no more")) == ("discard", {"versions": ["v2"]})
    end = found(BASELINE, TRAIN, *tries(3), cancelled="no more")
    assert isinstance(end, End)
    assert (end.status, end.why) == ("cancelled", "no more; left: v2: v2 runs still")


def test_a_cancelled_goal_takes_back_what_is_not_confirmed_and_ends_its_jobs() -> None:
    running = JOBS | {"c": RUNNING}
    steps = BASELINE, TRAIN, PROMOTE, CONFIRM
    more: dict[str, Any] = {"facts": {"jobs": running}, "cancelled": "enough"}
    assert act(found(*steps, version="v2", **more))[0] == "roll_back"
    undone = step(5, "roll_back", version="v2")
    assert act(found(*steps, undone, **more)) == ("cancel_job", {"job_id": "c"})
    told = step(6, "cancel_job", job_id="c")
    assert isinstance(found(*steps, undone, told, **more), Wait)
    more["facts"] = {"jobs": JOBS | {"c": JobSeen("cancelled")}}
    assert act(found(*steps, undone, told, **more)) == ("discard", {"versions": ["v2"]})
    end = found(*steps, undone, told, cancelled="enough", facts=more["facts"] | {"made": frozenset()})
    assert isinstance(end, End)
    assert (end.status, end.why) == ("cancelled", "enough")


def test_a_promotion_that_was_interrupted_and_done_all_the_same_is_taken_back() -> None:
    half = step(3, "promote", 10.0, "interrupted", version="v2", from_version="v1")
    arguments = {"version": "v2", "from_version": "v1", "loaded": False}
    assert act(found(BASELINE, TRAIN, half, version="v2", cancelled="enough")) == ("roll_back", arguments)
    assert act(found(BASELINE, TRAIN, half, cancelled="enough")) == ("roll_back", arguments), "it may still be going on"
    undone = step(4, "roll_back", 11.0, version="v2")
    assert act(found(BASELINE, TRAIN, half, undone, cancelled="enough")) == ("discard", {"versions": ["v2"]})


def test_a_job_that_was_begun_when_its_step_was_interrupted_is_ended() -> None:
    half = step(2, "train", 10.0, "interrupted", parameters={}, from_version="v1")
    decision = found(BASELINE, half, cancelled="enough", facts={"jobs": JOBS | {"stray": RUNNING}})
    assert act(decision) == ("cancel_job", {"job_id": "stray"})


def test_a_job_that_a_person_cancels_ends_the_goal() -> None:
    stopped = JobSeen("cancelled", error="not now")
    end = found(BASELINE, TRAIN, facts={"jobs": JOBS | {"t": stopped}, "made": frozenset()})
    assert isinstance(end, End)
    assert end.why == "its training was cancelled: not now"


def test_what_cannot_be_done_is_tried_again_later_and_then_given_up() -> None:
    def failed(number: int, ended: float) -> Step:
        return step(number, "train", ended, "no room on the disk", parameters={}, from_version="v1")

    assert isinstance(found(BASELINE, failed(2, 10.0), elapsed=11.0), Wait)
    assert act(found(BASELINE, failed(2, 10.0), elapsed=12.0))[0] == "train"
    made: dict[str, Any] = {"facts": {"made": frozenset()}}
    end = found(BASELINE, failed(2, 10.0), failed(3, 12.0), failed(4, 16.0), elapsed=17.0, **made)
    assert isinstance(end, End)
    assert end.why == "train could not be done: no room on the disk"


def test_a_version_that_cannot_be_promoted_is_not_good_enough() -> None:
    tries = [step(3 + n, "promote", 10.0, "it does not start", version="v2", from_version="v1") for n in range(3)]
    decision = found(BASELINE, TRAIN, *tries)
    assert act(decision)[0] == "train"
    assert isinstance(decision, Act)
    assert "it could not be promoted: it does not start" in decision.why


# --- in any world ---
@dataclass
class World:
    """A machine in which anything may happen, and what is done for the goal in it, as the doer does it."""

    data: st.DataObject
    max_jobs: int
    version: str = "v1"
    status: str = "loaded"
    failures: int = 0
    unanswered: int = 0
    elapsed: float = 0.0
    registered: bool = True
    refusal: str = ""
    cancelled: str | None = None
    steps: list[Step] = field(default_factory=list)
    begun: dict[str, Action] = field(default_factory=dict)  # what each job is for
    jobs: dict[str, JobSeen] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    versions: int = 1

    def seen(self) -> Seen:
        facts = QualityFacts(dict(self.jobs), frozenset(self.made), 0, self.unanswered, self.max_jobs, regression=True)
        model = ModelSeen("m", self.registered, self.version, self.status, failures=self.failures)
        return Seen(self.elapsed, cancelled=self.cancelled, refusal=self.refusal, models={"m": model}, facts=facts)

    def goal(self) -> Pursued:
        return Pursued("g", OBJECTIVE, GoalLimits(max_seconds=10_000), steps=tuple(self.steps))

    def happens(self) -> None:
        """Something, or nothing, happens of itself."""
        what = self.data.draw(
            st.sampled_from([*["nothing"] * 12, "other", "failed", "crash", "mute", "refuse", "fits"])
        )
        if what == "other":
            self.version = f"w{self.data.draw(st.integers(1, 3))}"
        elif what == "failed":
            self.status = self.data.draw(st.sampled_from(["failed", "loaded", "available"]))
        elif what == "crash":
            self.failures += self.data.draw(st.integers(1, 4))
        elif what == "mute":
            self.unanswered = self.data.draw(st.integers(0, 4))
        elif what in ("refuse", "fits"):
            self.refusal = "no room" if what == "refuse" else ""
        for job_id, job in self.jobs.items():
            if not job.ended and self.data.draw(st.booleans()):
                self.jobs[job_id] = self.outcome(job_id)

    def outcome(self, job_id: str) -> JobSeen:
        if self.data.draw(st.integers(0, 5)) == 0:
            return JobSeen("failed", error="it broke")
        score = self.data.draw(st.sampled_from([0.05, 0.5, 0.89, 0.9, 0.95, float("nan")]))
        own = self.begun[job_id]
        if own.kind != "train":
            return judged(own.arguments["version"], score)
        self.versions += 1
        self.made.add(f"v{self.versions}")
        lost = self.data.draw(st.sampled_from([1.0, 1.0, 0.2, 0.01]))
        after = self.data.draw(st.sampled_from([0.6, 0.6, 0.5]))
        base = own.arguments["from_version"]
        return trained(f"v{self.versions}", base, after=score, p_loses=lost, regression=(0.6, after))

    def do(self, decision: Act) -> None:
        """As the doer would."""
        kind, arguments = decision.action.kind, decision.action.arguments
        result: dict[str, Any] = {}
        error = ""
        if kind in ("baseline", "train", "confirm", "promote") and self.data.draw(st.integers(0, 19)) == 0:
            self.cancelled, error = "enough", "interrupted"  # it may have been done all the same
        elif self.data.draw(st.integers(0, 9)) == 0:
            error = "it could not be done"
        if error and not (error == "interrupted" and self.data.draw(st.booleans())):
            pass
        elif kind in ("baseline", "train", "confirm"):
            job_id = f"j{len(self.steps)}"
            self.jobs[job_id], self.begun[job_id] = JobSeen("pending"), decision.action
            result = {} if error else {"job_id": job_id}
        elif kind == "promote":
            self.version, self.unanswered, self.status = arguments["version"], 0, "loaded"
            result = {} if error else {"failures": self.failures, "loaded": True}
        elif kind == "roll_back":
            if self.version == arguments["version"]:  # what somebody else has chosen stays
                self.version, self.status = arguments["from_version"], "loaded"
        elif kind == "cancel_job":
            self.jobs[arguments["job_id"]] = JobSeen("cancelled", error="for the goal")
        elif kind == "discard":
            self.made -= set(arguments["versions"])
        self.elapsed += 1.0
        number = len(self.steps) + 1
        self.steps.append(Step(number, decision.action, decision.why, self.elapsed - 1, self.elapsed, result, error))

    def sensible(self, decision: Act) -> None:
        """What must hold of every action."""
        kind, arguments, why = decision.action.kind, decision.action.arguments, decision.why
        assert why
        assert not (decision.heavy and self.refusal), "it acts though it does not fit"
        under_way = [job for job in self.jobs.values() if not job.ended]
        promoted = any(each.action.kind == "promote" and not each.error for each in self.steps)
        if kind in ("baseline", "train"):
            assert not under_way
            assert not promoted
            assert decision.heavy
            assert arguments["version" if kind == "baseline" else "from_version"] == self.version
            begun = [each for each in self.steps if each.action.kind == "train" and not each.error]
            assert kind == "baseline" or len(begun) < self.max_jobs
            same = [each for each in begun if each.action.arguments == arguments]
            assert kind == "baseline" or all(self.jobs[each.result["job_id"]].status == "cancelled" for each in same)
        elif kind == "promote":
            job = next(job for job in self.jobs.values() if job.result.get("model_version") == arguments["version"])
            assert gate(OBJECTIVE, job, arguments["from_version"], self.version, regression=True).passed
            assert not promoted
        elif kind == "confirm":
            assert promoted
            assert self.version == arguments["version"]
            assert not under_way
        elif kind == "roll_back":
            last = next(each for each in reversed(self.steps) if each.action.kind == "promote")
            since = [each for each in self.steps if each.number > last.number and each.action.kind == "roll_back"]
            assert self.version == arguments["version"] or (last.error and not since), "it may be going on"
        elif kind == "discard":
            assert self.version not in arguments["versions"]
            assert set(arguments["versions"]) <= self.made
        else:
            assert kind == "cancel_job"
            assert not self.jobs[arguments["job_id"]].ended


@settings(max_examples=150)
@given(st.data(), st.integers(0, 4), st.integers(0, 200))
def test_whatever_happens_it_acts_sensibly_and_ends_within_its_limits(
    data: st.DataObject, max_jobs: int, cancel_after: int
) -> None:
    world = World(data, max_jobs)
    for turn in range(3000):
        if turn < 150:  # then the world is quiet
            world.happens()
        else:
            world.refusal = ""
            for job_id, job in world.jobs.items():
                if not job.ended:
                    world.jobs[job_id] = JobSeen("failed", error="it is over")
        if turn == cancel_after and cancel_after < 100:
            world.cancelled = "enough"
        decision = decide(world.goal(), world.seen())
        if isinstance(decision, End):
            ended(world, decision)
            return
        if isinstance(decision, Act):
            world.sensible(decision)
            world.do(decision)
        else:
            assert decision.why
            assert decision.seconds > 0
            world.elapsed += max(decision.seconds, 0.5)
    pytest.fail("it does not end")


def ended(world: World, end: End) -> None:
    """What must hold at the end."""
    assert end.why
    assert all(job.ended for job in world.jobs.values()), "nothing of it runs on"
    served = end.result["promoted"]
    undone = [each for each in world.steps if each.action.kind == "roll_back"]
    gave_up = len([each for each in undone if each.error]) >= 3
    promoted = [each for each in world.steps if each.action.kind == "promote" and each.error in ("", "interrupted")]
    if promoted and not served and not gave_up:
        assert world.version != promoted[-1].action.arguments["version"], "what is not confirmed does not answer"
    assert end.status != "completed" or world.version == served or not served
    discards = [each for each in world.steps if each.action.kind == "discard" and each.error]
    if len(discards) < 3:
        left = world.made - {world.version}
        assert len(left) <= (end.status == "failed"), "nothing is left but the best of a failure"
    assert len([each for each in world.steps if each.action.kind == "train" and not each.error]) <= world.max_jobs
