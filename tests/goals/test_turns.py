"""Whose turn it is: the most urgent first, and nobody starves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelops.goals.turning import Changing, Claim, Turning
from modelops.goals.turns import LEVELS, PATIENCE, Waiting, first
from modelops.goals.turns import given as after

priorities = st.integers(0, LEVELS)


def order(waiting: tuple[Waiting, ...]) -> list[str]:
    """Who goes, one after the other, where nobody comes meanwhile."""
    gone = []
    while chosen := first(waiting):
        gone.append(chosen.goal_id)
        waiting = after(waiting, chosen)
    return gone


def test_nobody_waits_and_nobody_goes() -> None:
    assert first(()) is None


def test_the_most_urgent_goes_first_and_of_one_priority_who_came_first() -> None:
    waiting = (Waiting("low", 0, 1), Waiting("late", 3, 4), Waiting("soon", 3, 3), Waiting("high", 2, 2))
    assert order(waiting) == ["soon", "late", "high", "low"]


def test_who_was_passed_over_often_enough_goes_before_newcomers_who_are_more_urgent() -> None:
    waiting: tuple[Waiting, ...] = (Waiting("low", 0, 0),)
    gone = []
    for number in range(1, PATIENCE + 2):
        waiting = (*waiting, Waiting(f"{number}", 1, number))
        chosen = first(waiting)
        assert chosen
        gone.append(chosen.goal_id)
        waiting = after(waiting, chosen)
    assert gone == ["1", "2", "3", "4", "low"]


@given(st.lists(priorities, min_size=1, max_size=30))
def test_everybody_goes_once(given_priorities: list[int]) -> None:
    waiting = tuple(Waiting(f"{number}", priority, number) for number, priority in enumerate(given_priorities))
    assert Counter(order(waiting)) == Counter(each.goal_id for each in waiting)


@given(st.lists(priorities, max_size=20), priorities, st.lists(st.lists(priorities, max_size=3), max_size=80))
def test_however_many_come_meanwhile_nobody_is_passed_over_more_often_than_is_said(
    before: list[int], priority: int, coming: list[list[int]]
) -> None:
    waiting = tuple(Waiting(f"{number}", each, number) for number, each in enumerate(before))
    mine = Waiting("mine", priority, len(before))
    waiting, since, passed = (*waiting, mine), len(before), 0
    for newcomers in [*coming, *[[LEVELS]] * (LEVELS * PATIENCE + len(before) + 2)]:
        for each in newcomers:
            since += 1
            waiting = (*waiting, Waiting(f"{since}", each, since))
        chosen = first(waiting)
        if chosen and chosen.goal_id == "mine":
            break
        if chosen:
            waiting, passed = after(waiting, chosen), passed + 1
    else:
        raise AssertionError(f"it was passed over {passed} times, and still waits")
    assert passed <= LEVELS * PATIENCE + len(before) + 1


# --- the turn itself ---
def test_one_has_it_and_whoever_gets_it_next_is_woken_once() -> None:
    turning, woken = Turning(), []
    assert turning.ask("a", 1, lambda: woken.append("a"))
    assert not turning.ask("b", 1, lambda: woken.append("b"))
    assert not turning.ask("c", 3, lambda: woken.append("c"))
    assert not turning.ask("b", 1, lambda: woken.append("b"))
    assert turning.has("a")
    assert turning.wanted
    turning.give_back("a")
    assert woken == ["a", "c"]
    assert turning.has("c")
    turning.give_back("c")
    assert turning.has("b")
    assert not turning.wanted


def test_who_could_not_use_it_has_its_place_when_it_asks_again_and_no_sooner() -> None:
    turning = Turning()
    assert turning.ask("a", 3, lambda: None)
    assert not turning.ask("first", 3, lambda: None)
    assert not turning.ask("second", 3, lambda: None)
    turning.give_back("a")
    assert turning.has("first")
    turning.give_back("first")
    assert turning.has("second"), "it is not held for who does not ask"
    assert turning.taken("first") and not turning.taken("second")
    for late in ("third", "first"):
        assert not turning.ask(late, 3, lambda: None)
    turning.give_back("second")
    assert turning.has("first")
    assert turning.ask("first", 3, lambda: None, working=True)
    turning.give_back("first")
    assert turning.has("third")
    for late in ("fourth", "first"):
        assert not turning.ask(late, 3, lambda: None)
    turning.give_back("third")
    assert turning.has("fourth"), "the first has worked, and comes anew"


def test_who_is_to_work_again_waits_as_one_that_comes_now_and_the_most_urgent_goes_first() -> None:
    turning, order = Turning(), list[str]()
    priorities = {"critical": 3, "low": 0}
    assert turning.ask("critical", 3, lambda: None)
    assert not turning.ask("low", 0, lambda: None)
    for _ in range(2 * (LEVELS * PATIENCE + 1)):
        holder = next(each for each in priorities if turning.has(each))
        order.append(holder)
        assert turning.ask(holder, priorities[holder], lambda: None, working=True)
        assert turning.hand_on(holder, priorities[holder], lambda: None) == turning.has(holder)
    assert order == [*["critical"] * LEVELS * PATIENCE, "low"] * 2


def test_of_one_priority_they_take_turns() -> None:
    turning, order = Turning(), list[str]()
    for each in "abc":
        turning.ask(each, 1, lambda: None)
    for _ in range(6):
        holder = next(each for each in "abc" if turning.has(each))
        order.append(holder)
        assert turning.ask(holder, 1, lambda: None, working=True)
        turning.hand_on(holder, 1, lambda: None)
    assert "".join(order) == "abcabc"


def test_only_by_who_works_others_are_passed_over() -> None:
    for working in (False, True):
        turning, late = Turning(), "0"
        assert turning.ask("a", 1, lambda: None)
        assert not turning.ask("low", 0, lambda: None)
        before = "a"
        for number in range(PATIENCE + 1):
            late = f"{number}"
            assert not turning.ask(late, 1, lambda: None)
            turning.give_back(before)
            if turning.has("low"):
                break
            assert not working or turning.ask(late, 1, lambda: None, working=True)
            before = late
        assert (turning.has("low"), late) == (working, f"{PATIENCE}")


def test_who_leaves_the_queue_for_a_while_was_passed_over_all_the_same() -> None:
    turning, before = Turning(), "a"
    assert turning.ask("a", 1, lambda: None)
    assert not turning.ask("low", 0, lambda: None)
    for number in range(PATIENCE):
        assert not turning.ask(f"{number}", 1, lambda: None)
        turning.give_back(before)
        before = f"{number}"
        assert turning.ask(before, 1, lambda: None, working=True)
    turning.give_back("low")
    assert not turning.ask("late", 1, lambda: None)
    assert not turning.ask("low", 0, lambda: None)
    turning.give_back(before)
    assert turning.has("low")
    turning.gone("low")
    assert turning.has("late")


def test_who_has_it_keeps_it_and_who_leaves_the_queue_is_passed_by() -> None:
    turning = Turning()
    assert turning.ask("a", 0, lambda: None)
    assert not turning.ask("b", 3, lambda: None)
    assert turning.ask("a", 0, lambda: None)
    turning.give_back("b")
    turning.give_back("a")
    assert not turning.has("b")


def test_what_is_heavy_already_goes_before_all_that_wait() -> None:
    turning = Turning()
    turning.expect("killed")
    assert not turning.ask("urgent", 3, lambda: None)
    assert turning.ask("killed", 0, lambda: None, working=True)
    turning.give_back("killed")
    assert turning.has("urgent")


def test_who_is_expected_and_does_not_need_it_holds_nobody_up() -> None:
    turning = Turning()
    turning.expect("killed")
    assert not turning.ask("next", 1, lambda: None)
    turning.give_back("killed")
    assert turning.has("next")
    turning.give_back("next")
    turning.expect("killed")
    assert turning.ask("killed", 1, lambda: None)


# --- who changes which model ---
def test_who_has_begun_goes_first_else_the_most_urgent_else_the_oldest() -> None:
    changing = Changing()
    changing.come(Claim("old", "m", 1, 1))
    changing.come(Claim("new", "m", 1, 2))
    changing.come(Claim("other", "n", 0, 3))
    assert (changing.holder("old"), changing.holder("new"), changing.holder("other")) == ("", "the goal old", "")
    changing.come(Claim("urgent", "m", 3, 4))
    assert changing.holder("old") == "the goal urgent"
    changing.begin("old")
    assert (changing.holder("old"), changing.holder("urgent")) == ("", "the goal old")
    changing.gone("old")
    assert (changing.holder("new"), changing.holder("urgent")) == ("the goal urgent", "")


def test_what_changes_no_model_waits_for_nobody() -> None:
    changing = Changing()
    changing.come(Claim("a", "", 3, 1))
    changing.come(Claim("b", "", 0, 2))
    changing.begin("b")
    assert changing.holder("b") == changing.holder("a") == ""
