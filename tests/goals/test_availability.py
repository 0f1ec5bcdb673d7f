"""What follows for goals of the type `availability`, decided; and what is counted of probes and outages."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.api.goals import AvailabilityObjective
from modelops.api.types import ModelStatus
from modelops.goals import decide as every
from modelops.goals.availability import (
    GRACE_S,
    LONGEST_PAUSE_S,
    PAUSE_S,
    AvailabilityFacts,
    Held,
    Tally,
    counted,
    decide,
    pause_s,
    tallies_of,
)
from modelops.goals.values import Act, Action, End, ModelSeen, Pursued, Seen, Step, Wait

STATUSES = get_args(ModelStatus)
BILL = "'m' needs 100 MB and 50 MB are free"


def goal(*names: str, steps: tuple[Step, ...] = (), metrics: dict[str, Any] | None = None, **fields: Any) -> Pursued:
    objective = AvailabilityObjective.parse({"type": "availability", "models": list(names or ["m"]), **fields})
    return Pursued("g", objective, steps=steps, metrics=metrics or {})


def seen(
    status: str = "loaded", *, elapsed_s: float = 100.0, left_s: float | None = None, name: str = "m", **held: Any
) -> Seen:
    facts = AvailabilityFacts({name: Held(**held)}, left_s)
    return Seen(elapsed_s, models={name: ModelSeen(name, status=status)}, facts=facts)


def loads(*errors: str, ended_s: float = 100.0, name: str = "m") -> tuple[Step, ...]:
    """Loads of the model, the last of which ended then; what is said of one is why it could not be begun."""
    return tuple(
        Step(number, Action("load", {"model_name": name}), "", 0.0, ended_s, error=error)
        for number, error in enumerate(errors, start=1)
    )


# --- what follows ---
@pytest.mark.parametrize(
    ("status", "held", "follows"),
    [
        ("loaded", {}, "it is loaded and answers"),
        ("loaded", {"why": "it hangs"}, "'m' is loaded and does not answer: it hangs"),
        ("loading", {"why": "it hangs"}, "'m' is on its way (loading)"),
        ("unloading", {}, "'m' is on its way (unloading)"),
        ("available", {}, None),
        ("failed", {}, None),
        ("failed", {"waits_s": 3.0, "failed": "no such tensor"}, "'m' is loaded again after a pause: no such tensor"),
        ("available", {"waits_s": 3.0}, "'m' is loaded again after a pause"),
        ("available", {"refused": BILL}, None),
        ("available", {"refused": BILL, "asked": True}, f"'m' cannot be held: {BILL}"),
        (
            "available",
            {"refused": BILL, "asked": True, "before": {"a": "g1", "b": "g2"}},
            f"'m' cannot be held: it gives way to 'a' (kept by the goal g1), 'b' (kept by the goal g2), which goes "
            f"first: {BILL}",
        ),
        ("loaded", {"refused": BILL}, "it is loaded and answers"),
    ],
)
def test_what_follows(status: str, held: dict[str, Any], follows: str | None) -> None:
    decision = every.decide(goal(), seen(status, **held))
    if follows is None:
        assert decision == Act(Action("load", {"model_name": "m"}), "'m' is not loaded; it is loaded and kept")
    else:
        assert isinstance(decision, Wait)
        assert decision.why == follows


def test_of_many_each_that_is_not_well_is_named_and_one_that_can_be_loaded_is() -> None:
    facts = AvailabilityFacts({"a": Held(), "b": Held(refused=BILL, asked=True), "c": Held(why="it hangs")})
    models = {name: ModelSeen(name, status="loaded") for name in ("a", "c")} | {"b": ModelSeen("b")}
    now = Seen(models=models, facts=facts)
    decision = decide(goal("a", "b", "c"), now)
    assert isinstance(decision, Wait)
    assert decision.why == f"'b' cannot be held: {BILL}; 'c' is loaded and does not answer: it hangs"
    freed = replace(now, facts=replace(facts, models={**facts.models, "b": Held()}))
    decision = decide(goal("a", "b", "c", steps=loads("", name="b", ended_s=-9)), freed)
    assert isinstance(decision, Act)
    assert (decision.action.arguments, "loaded again" in decision.why) == ({"model_name": "b"}, True)
    well = replace(freed, models={name: ModelSeen(name, status="loaded") for name in "abc"})
    decision = decide(goal("a", "b", "c"), replace(well, facts=AvailabilityFacts()))
    assert isinstance(decision, Wait)
    assert decision.why == "all 3 models are loaded and answer"


# --- pauses ---
def test_each_load_that_could_not_be_begun_doubles_the_pause() -> None:
    assert pause_s(goal(), "m", 0) == 0
    assert pause_s(goal(steps=loads("")), "m", 100) == PAUSE_S
    assert pause_s(goal(steps=loads("", "no", "no")), "m", 100) == 4 * PAUSE_S
    assert pause_s(goal(steps=loads("no", "no", "")), "m", 100) == PAUSE_S, "it was begun since"
    assert pause_s(goal(steps=loads(*["no"] * 90)), "m", 100) == LONGEST_PAUSE_S
    assert pause_s(goal("m", "x", steps=loads("no", name="x")), "m", 100) == 0, "another's"


def test_the_pause_is_waited_for_and_says_why() -> None:
    made = goal(steps=loads("no disk", ended_s=98))
    assert decide(made, seen("available", elapsed_s=99)) == decide(made, seen("available", elapsed_s=99.9))
    decision = decide(made, seen("available", elapsed_s=99))
    assert isinstance(decision, Wait)
    assert decision.why == "'m' is loaded again after a pause: no disk"
    assert isinstance(decide(made, seen("available", elapsed_s=100)), Act)


# --- the end ---
def test_when_its_time_is_over_it_is_completed_with_what_was_counted_of_all_and_of_each() -> None:
    one = Tally(probes=8, answered=6, recoveries=2, longest_s=4.0, recent_s=(4.0, 1.0))
    facts = AvailabilityFacts({"a": Held(one), "b": Held(Tally(probes=2, answered=2))}, left_s=-0.1)
    models = {name: ModelSeen(name, status="loaded") for name in ("a", "b")}
    decision = decide(goal("a", "b"), Seen(models=models, facts=facts))
    recovered = {"recoveries": 2, "p95_recovery_s": 4.0, "longest_recovery_s": 4.0}
    well = {"recoveries": 0, "p95_recovery_s": 0.0, "longest_recovery_s": 0.0}
    assert decision == End(
        "completed",
        "its time (until) is over: 8 of 10 probes were answered",
        {
            "probes": 10,
            "answered": 8,
            "share": 0.8,
            **recovered,
            "models": {
                "a": {"probes": 8, "answered": 6, "share": 0.75, **recovered},
                "b": {"probes": 2, "answered": 2, "share": 1.0, **well},
            },
        },
    )


@pytest.mark.parametrize(
    ("status", "answered", "held", "said"),
    [
        ("available", 0, {"refused": BILL, "asked": True}, f"'b' cannot be held: {BILL}"),
        ("available", 7, {}, "'b' is not loaded"),
        ("failed", 7, {"waits_s": 3.0, "failed": "no disk"}, "'b' is loaded again after a pause: no disk"),
        ("loading", 7, {}, "'b' is on its way (loading)"),
        ("loaded", 7, {"why": "it hangs"}, "'b' is loaded and does not answer: it hangs"),
        ("loaded", 0, {}, "'b' is loaded, and has never answered a probe"),
    ],
)
def test_what_was_never_held_or_is_not_when_its_time_is_over_fails_it(
    status: str, answered: int, held: dict[str, Any], said: str
) -> None:
    facts = AvailabilityFacts(
        {"a": Held(Tally(probes=9, answered=9)), "b": Held(Tally(probes=9, answered=answered), **held)}, left_s=-GRACE_S
    )
    models = {"a": ModelSeen("a", status="loaded"), "b": ModelSeen("b", status=status)}
    decision = every.decide(goal("a", "b"), Seen(models=models, facts=facts))
    assert isinstance(decision, End)
    share = f"its time (until) is over: {9 + answered} of 18 probes were answered"
    assert (decision.status, decision.why) == ("failed", f"{share}; {said}")
    assert decision.result["models"]["b"]["answered"] == answered


def test_a_model_that_has_crashed_when_its_time_is_over_may_come_back() -> None:
    tally = Tally(probes=9, answered=8)
    assert isinstance(decide(goal(), seen("available", left_s=-0.1, tally=tally)), Act)
    decision = decide(goal(), seen("loading", left_s=0.1 - GRACE_S, tally=tally))
    assert isinstance(decision, Wait)
    assert (decision.why, decision.progress) == ("'m' is on its way (loading)", 1.0)
    back = decide(goal(), seen(left_s=0.1 - GRACE_S, tally=tally))
    assert isinstance(back, End) and back.status == "completed"


def test_with_an_end_of_its_own_the_target_completion_is_none() -> None:
    until = goal(until="2027-01-31T12:00:00Z")
    assert isinstance(every.decide(until, replace(seen(left_s=-0.1, tally=Tally(1, 1)), overdue=True)), End)
    due = every.decide(until, replace(seen("loading", left_s=-0.1), overdue=True))
    assert isinstance(due, Wait), "it is waited for"
    over = every.decide(goal(), replace(seen(), overdue=True))
    assert isinstance(over, End) and over.status == "failed"


def test_before_that_it_tells_how_far_it_is_and_without_an_end_it_does_not() -> None:
    decision = decide(goal(), seen(elapsed_s=30, left_s=90))
    assert isinstance(decision, Wait)
    assert decision.progress == 0.25
    decision = decide(goal(), seen())
    assert isinstance(decision, Wait)
    assert decision.progress is None


def test_cancelled_it_ends_at_once_with_what_was_noted_also_where_nothing_is_seen() -> None:
    noted = {"models": {"m": Tally(probes=4, answered=3).written()}}
    decision = every.decide(goal(metrics=noted), Seen(cancelled="enough", facts=None))
    assert isinstance(decision, End)
    assert (decision.status, decision.why, decision.result["share"]) == ("cancelled", "enough", 0.75)


def test_a_model_that_was_removed_fails_it() -> None:
    decision = every.decide(goal(), Seen(models={"m": ModelSeen("m", registered=False)}, facts=AvailabilityFacts()))
    assert isinstance(decision, End)
    assert (decision.status, decision.why) == ("failed", "the model 'm' was removed")


# --- counting ---
def test_an_outage_lasts_until_it_is_loaded_again_and_a_probe_has_shown_that() -> None:
    made = Tally().seen(0, up=True).probed(0, 1, answered=True)
    made = made.seen(10, up=False).seen(11, up=False).seen(12.5, up=True).seen(13, up=True)
    assert made.recoveries == 0, "nobody knows yet that it answers"
    made = made.probed(15, 16, answered=True)
    assert (made.recoveries, made.recent_s, made.longest_s, made.down_at) == (1, (2.5,), 2.5, None)
    assert made.probed(20, 21, answered=True).recoveries == 1


def test_loaded_and_silent_is_an_outage_too_from_the_probe_that_was_not_answered() -> None:
    made = Tally().seen(0, up=True).probed(0, 1, answered=True).probed(5, 8, answered=False)
    made = made.seen(9, up=True).probed(10, 13, answered=False).seen(14, up=True).probed(15, 16, answered=True)
    assert (made.recoveries, made.recent_s) == (1, (11,))


def test_back_and_silent_has_not_come_back() -> None:
    made = Tally().seen(0, up=True).probed(0, 1, answered=True).seen(10, up=False).seen(12, up=True)
    made = made.probed(13, 14, answered=False).seen(15, up=True).probed(18, 19, answered=True)
    assert made.recent_s == (9,)


def test_a_probe_of_before_does_not_make_an_outage_longer() -> None:
    tally = Tally().seen(0.0, up=True).probed(0.0, 0.5, answered=True)
    tally = tally.seen(10.0, up=False).seen(12.0, up=True).probed(9.0, 13.0, answered=False)
    assert tally.probed(18.0, 18.5, answered=True).recent_s == (2.0,)
    assert tally.probed(14.0, 15.0, answered=False).probed(18.0, 18.5, answered=True).recent_s == (8.5,)


def test_what_never_answered_has_no_outage() -> None:
    made = Tally().seen(0, up=False).seen(5, up=True).probed(5, 6, answered=True)
    assert (made.recoveries, made.answered) == (0, 1)


def test_a_restart_of_the_coordinator_is_an_outage_from_its_beginning() -> None:
    assert Tally().restarted(100).down_at is None
    made = Tally(probes=1, answered=1).restarted(100).seen(101, up=False).seen(103, up=True)
    assert made.probed(104, 105, answered=True).recent_s == (3,)
    loaded_already = Tally(probes=1, answered=1).restarted(100).seen(102, up=True).probed(104, 105, answered=True)
    assert loaded_already.recent_s == (2,)


@pytest.mark.parametrize(("count", "p95"), [(1, 1.0), (10, 10.0), (20, 19.0), (100, 95.0)])
def test_the_95th_percentile(count: int, p95: float) -> None:
    tally = Tally(recent_s=tuple(float(number) for number in range(1, count + 1)))
    assert counted([tally])["p95_recovery_s"] == p95


# --- what always holds ---
HELD = st.builds(
    Held,
    why=st.sampled_from(["", "it hangs"]),
    failed=st.sampled_from(["", "broken"]),
    waits_s=st.sampled_from([0.0, 5.0]),
    refused=st.sampled_from(["", BILL]),
    asked=st.booleans(),
    before=st.sampled_from([{}, {"x": "g1"}]),
)
ERRORS = st.lists(st.sampled_from(["", "no"]), max_size=12)
#: What happens to a model: looked at, and whether it is up; probed, and whether it answers; a restart.
EVENTS = st.lists(st.tuples(st.sampled_from(["look", "probe", "restart"]), st.booleans(), st.floats(0.01, 10)))


@given(
    st.lists(st.tuples(st.sampled_from(STATUSES), HELD, ERRORS), min_size=1, max_size=4),
    st.floats(0, 1000),
    st.none() | st.floats(-2 * GRACE_S, 100),
)
def test_it_loads_only_what_is_not_loaded_nor_on_its_way_and_may_be(
    models: list[tuple[str, Held, list[str]]], elapsed_s: float, left_s: float | None
) -> None:
    names = [f"m{number}" for number in range(len(models))]
    steps = tuple(
        step for name, (_, _, errors) in zip(names, models, strict=True) for step in loads(*errors, name=name)
    )
    made = goal(*names, steps=steps)
    facts = AvailabilityFacts({name: held for name, (_, held, _) in zip(names, models, strict=True)}, left_s)
    of = {name: ModelSeen(name, status=status) for name, (status, _, _) in zip(names, models, strict=True)}
    decision = every.decide(made, Seen(elapsed_s, models=of, facts=facts))
    if left_s is None or left_s > 0:
        assert not isinstance(decision, End)
    elif left_s <= -GRACE_S:
        assert isinstance(decision, End)
    may = {
        name
        for name, held in facts.models.items()
        if of[name].status in ("available", "failed")
        and not (held.refused and held.asked)
        and not held.waits_s
        and pause_s(made, name, elapsed_s) == 0
    }
    if isinstance(decision, Act):
        assert not decision.heavy
        assert decision.action.arguments["model_name"] in may
    elif isinstance(decision, Wait):
        assert not may
        assert 0 < decision.seconds <= 1
        for name in names:
            if of[name].status in ("available", "failed"):
                assert f"'{name}'" in decision.why, "who is not loaded is told, with the reason"
                assert not facts.models[name].refused or f"'{name}' cannot be held" in decision.why


@given(ERRORS, st.floats(0, 1e4))
def test_a_pause_is_over_at_last_and_grows_with_failures(errors: list[str], later: float) -> None:
    made = goal(steps=loads(*errors))
    assert 0 <= pause_s(made, "m", 100 + later) <= LONGEST_PAUSE_S
    assert pause_s(made, "m", 100 + LONGEST_PAUSE_S) == 0
    assert pause_s(goal(steps=loads(*errors, "no")), "m", 100) >= pause_s(made, "m", 100)


@given(EVENTS)
def test_counts_add_up_and_survive_being_written(events: list[tuple[str, bool, float]]) -> None:
    tally, now = Tally(), 0.0
    down: float | None = None  # when it was first seen not to answer
    for kind, good, seconds in events:
        before, began, now = tally, now, now + seconds
        if kind == "restart":
            tally = Tally.read(json.loads(json.dumps(tally.written()))).restarted(now)
            assert tally.written() == before.written()
            down = now if tally.answered else None
        elif kind == "look":
            tally = tally.seen(now, up=good)
            down = now if not good and down is None and tally.answered else down
        else:
            tally = tally.probed(began, now, answered=good)
            assert (tally.probes, tally.answered) == (before.probes + 1, before.answered + good)
            if good:
                assert tally.recoveries - before.recoveries == (down is not None)
                if down is not None:
                    assert -1e-9 <= tally.recent_s[-1] <= now - down + 1e-9, "no longer than it was away"
                down = None
            elif tally.answered and down is None:
                down = began
        assert tally.down_at == down
        assert tally.answered <= tally.probes
        assert tally.recoveries <= tally.answered
        assert tally.longest_s == pytest.approx(max(tally.recent_s, default=0.0), abs=2e-3)
    total = counted([tally, tally])
    assert (total["probes"], total["recoveries"]) == (2 * tally.probes, 2 * tally.recoveries)
    assert 0 <= total["share"] <= 1
    assert total["p95_recovery_s"] <= total["longest_recovery_s"] + 2e-3


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.builds(Tally, st.integers(0, 9)), min_size=2))
def test_what_it_notes_is_what_it_goes_on_from(tallies: dict[str, Tally]) -> None:
    facts = AvailabilityFacts({name: Held(tally) for name, tally in tallies.items()})
    models = {name: ModelSeen(name, status="loaded") for name in tallies}
    decision = decide(goal("a", "b"), Seen(models=models, facts=facts))
    assert isinstance(decision, Wait)
    noted = json.loads(json.dumps(dict(decision.metrics)))
    again = goal("a", "b", metrics=noted)
    assert {name: tally.written() for name, tally in tallies_of(again).items()} == {
        name: tally.written() for name, tally in tallies.items()
    }
    assert not any(math.isnan(value) for value in noted.values() if isinstance(value, float))
