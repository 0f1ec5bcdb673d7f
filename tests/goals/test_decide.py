"""What all types of goals share: when they end, whom they wait for, and whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from modelops.api.goals import GoalLimits, objective_of
from modelops.goals import availability, decide, quality, serving
from modelops.goals.values import Act, Action, Decision, End, Ending, ModelSeen, Pursued, Seen, Wait

OBJECTIVES: dict[str, dict[str, Any]] = {
    "quality": {"type": "quality", "model_name": "one", "target": 0.5},
    "serving": {"type": "serving", "model_name": "one"},
    "availability": {"type": "availability", "models": ["one", "two"]},
}
LIGHT = Act(Action("look"), "it looks")
HEAVY = Act(Action("train"), "it learns", heavy=True)
CLEARING = Act(Action("clear"), "it clears away")


@dataclass
class Scripted:
    """A way of pursuing that says what it was told to, and keeps what it was asked."""

    next: Decision = LIGHT
    clearing: Decision | None = None  # none: it has ended
    asked: list[str] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def decide(self, goal: Pursued, seen: Seen) -> Decision:
        self.asked.append("decide")
        return self.next

    def give_up(self, goal: Pursued, seen: Seen, ending: Ending) -> Decision:
        self.asked.append("give_up")
        self.endings.append(ending)
        return self.clearing or End(ending.status, ending.why)


@pytest.fixture
def way() -> Scripted:
    return Scripted()


def goal(kind: str = "quality", **limits: Any) -> Pursued:
    return Pursued("g", objective_of(OBJECTIVES[kind]), GoalLimits(**limits))


def test_each_type_has_its_way() -> None:
    assert decide.way(goal("quality")) is quality
    assert decide.way(goal("serving")) is serving
    assert decide.way(goal("availability")) is availability


def test_a_goal_is_about_its_models() -> None:
    assert decide.models_of(goal("quality")) == ("one",)
    assert decide.models_of(goal("serving")) == ("one",)
    assert decide.models_of(goal("availability")) == ("one", "two")


def test_what_its_type_says_follows(way: Scripted) -> None:
    assert decide.decide(goal(), Seen(), way) is LIGHT
    way.next = End("completed", "it is as good as it should be", {"score": 1})
    assert decide.decide(goal(), Seen(), way) is way.next


@pytest.mark.parametrize("turn", [True, False])
def test_heavy_work_waits_for_its_turn_and_nothing_else_does(way: Scripted, turn: bool) -> None:
    assert decide.decide(goal(), Seen(turn=turn), way) is LIGHT
    way.next = HEAVY
    decision = decide.decide(goal(), Seen(turn=turn), way)
    if turn:
        assert decision is HEAVY
    else:
        assert decision == Wait("it waits for its turn; next: it learns", turn=True)


def test_who_waits_for_its_turn_does_not_keep_it(way: Scripted) -> None:
    way.next = HEAVY
    decision = decide.decide(goal(), Seen(turn=False), way)
    assert isinstance(decision, Wait) and not decision.working


def test_it_waits_for_the_goal_that_changes_the_same_model(way: Scripted) -> None:
    decision = decide.decide(goal(), Seen(holder="the goal 'faster' (a1)"), way)
    assert decision == Wait("it waits for the goal 'faster' (a1), which changes the same model")
    assert way.asked == []


@pytest.mark.parametrize("reason", ["not needed", ""])
def test_a_cancelled_goal_clears_away_and_ends(way: Scripted, reason: str) -> None:
    way.clearing = CLEARING
    assert decide.decide(goal(), Seen(cancelled=reason), way) is CLEARING
    way.clearing = None
    assert decide.decide(goal(), Seen(cancelled=reason), way) == End("cancelled", reason or "it was cancelled")
    assert way.asked == ["give_up", "give_up"]


def test_it_is_cancelled_also_while_another_holds_its_model(way: Scripted) -> None:
    assert decide.decide(goal(), Seen(cancelled="", holder="another"), way) == End("cancelled", "it was cancelled")


def test_clearing_away_that_is_heavy_waits_as_well(way: Scripted) -> None:
    way.clearing = HEAVY
    assert isinstance(decide.decide(goal(), Seen(cancelled="", turn=False), way), Wait)
    assert decide.decide(goal(), Seen(cancelled="", turn=True), way) is HEAVY


def test_why_it_ends_was_decided_once(way: Scripted) -> None:
    before = Ending("failed", "it took too long")
    assert decide.decide(goal(), Seen(ending=before, cancelled="too late"), way) == End("failed", before.why)


def test_what_it_changes_no_other_changes() -> None:
    assert decide.changed_by(goal("quality")) == decide.changed_by(goal("serving")) == "one"
    assert decide.changed_by(goal("availability")) == ""


def test_it_has_failed_when_its_date_has_passed(way: Scripted) -> None:
    assert decide.decide(goal(), Seen(overdue=True), way) == End(
        "failed", "it was not completed by its target_completion"
    )


@pytest.mark.parametrize(("elapsed", "ends"), [(0.0, False), (59.9, False), (60.0, True), (1e9, True)])
def test_it_has_failed_when_it_was_active_for_so_long(way: Scripted, elapsed: float, ends: bool) -> None:
    decision = decide.decide(goal(max_seconds=60), Seen(elapsed_s=elapsed), way)
    if ends:
        assert decision == End("failed", "it was not completed within limits.max_seconds (60)")
    else:
        assert decision is LIGHT


def test_without_a_limit_no_time_is_too_long(way: Scripted) -> None:
    assert decide.decide(goal(), Seen(elapsed_s=1e12), way) is LIGHT


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_it_has_failed_when_its_model_was_removed(way: Scripted, kind: str) -> None:
    seen = Seen(models={"one": ModelSeen("one", registered=False), "two": ModelSeen("two")})
    assert decide.decide(goal(kind), seen, way) == End("failed", "the model 'one' was removed")


def test_each_of_several_models_must_be_there(way: Scripted) -> None:
    seen = Seen(models={"one": ModelSeen("one"), "two": ModelSeen("two", registered=False)})
    assert decide.decide(goal("availability"), seen, way) == End("failed", "the model 'two' was removed")


def test_other_models_are_no_concern_of_it(way: Scripted) -> None:
    seen = Seen(models={"one": ModelSeen("one"), "two": ModelSeen("two", registered=False)})
    assert decide.decide(goal("quality"), seen, way) is LIGHT


@given(
    kind=some.sampled_from(sorted(OBJECTIVES)),
    cancelled=some.none() | some.text(max_size=3),
    overdue=some.booleans(),
    elapsed=some.floats(0, 100),
    limit=some.none() | some.floats(1, 99),
    registered=some.booleans(),
    holder=some.sampled_from(["", "another"]),
    ending=some.sampled_from([None, Ending("failed", "before"), Ending("cancelled", "before")]),
    turn=some.booleans(),
    next=some.sampled_from([LIGHT, HEAVY, Wait("it waits", working=True), End("completed", "done")]),
    clearing=some.sampled_from([None, CLEARING, HEAVY]),
)
def test_whatever_is_seen_the_rules_hold(
    kind: str,
    cancelled: str | None,
    overdue: bool,
    elapsed: float,
    limit: float | None,
    registered: bool,
    holder: str,
    ending: Ending | None,
    turn: bool,
    next: Decision,
    clearing: Decision | None,
) -> None:
    way = Scripted(next, clearing)
    pursued = goal(kind, max_seconds=limit)
    seen = Seen(elapsed, overdue, cancelled, turn, holder, ending=ending, models={"one": ModelSeen("one", registered)})
    decision = decide.decide(pursued, seen, way)
    over = limit is not None and elapsed >= limit
    ends = bool(ending) or cancelled is not None or overdue or over or not registered
    # One thing is asked, once, and nothing while another goal has the model.
    assert way.asked == (["give_up"] if ends else [] if holder else ["decide"])
    # What was decided before stays; else whoever was cancelled ends cancelled, whatever else is true of it.
    status = ending.status if ending else "cancelled" if cancelled is not None else "failed"
    assert [each.status for each in way.endings] == ([status] if ends else [])
    assert not isinstance(decision, Act) or turn or not decision.heavy
    if isinstance(decision, End):
        assert decision.status == (way.endings[0].status if ends else "completed")
