"""More is asked than a model can answer, or it fails: who waits, who gives way, who is refused and for how long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from modelops.api.errors import EngineFailed, Overloaded
from modelops.serving.breaker import COOL_DOWN_S, FAILURES
from modelops.serving.events import Close, Effect, Event, Grant, Refuse, Stopped
from serving.scenes import (
    Like,
    Scene,
    answered,
    ask,
    broken,
    close,
    crash,
    down,
    due,
    failed,
    forgotten,
    load,
    register,
    restart,
    start,
    stop,
    swap,
    unload,
    up,
    wanted,
)

# The model "m" serves two requests at once and lets two more wait, with 1,000 tokens.
LOADED = (load(1), up(1))
BUSY = (*LOADED, ask(2), ask(3))
FULL = Like(Overloaded, "already wait")
RESTS = Like(Overloaded, "'m' has failed")
TRIED = Like(Overloaded, "one request is trying it now")


def scene(*before: Event, slots: int = 2, reload_s: float = 1.0) -> Scene:
    return Scene(register(slots=slots, reload_s=reload_s), *before)


def seconds(effects: Sequence[Effect]) -> float:
    """When the one who is refused is told to come back."""
    (refused,) = effects
    assert isinstance(refused, Refuse)
    assert refused.error.retry_after_s is not None
    return refused.error.retry_after_s


# --- whose turn it is ---
def test_a_slot_goes_to_the_caller_who_was_served_least() -> None:
    made = scene(*LOADED, ask(2, caller="a", answer=100), ask(3, caller="a", answer=100), ask(4, caller="a"))
    made.tell(ask(5, caller="b"))
    assert made.tell(close(2)) == [Grant(4, 1)], "both stand at the same level, and that one came first"
    made.tell(ask(6, caller="a"))
    assert made.tell(close(3)) == [Grant(5, 1)], "then it is the other's turn"


def test_what_was_used_is_what_counts() -> None:
    made = scene(*LOADED, ask(2, caller="a"), ask(3, caller="b"))
    made.tell(ask(4, caller="a", answer=10), ask(5, caller="b", answer=10))
    assert made.tell(answered(2, prompt=5, answer=500)) == [Grant(5, 1)]


def test_an_answer_is_expected_to_be_as_long_as_the_models_answers_are() -> None:
    made = scene(*LOADED, ask(2, answer=1000), answered(2, prompt=10, answer=20), ask(3, answer=1000))
    assert made.scheduler.models["m"].queue.counters == {"": 20.0}


# --- how many may wait ---
def test_a_caller_that_fills_the_queue_gives_way_to_another() -> None:
    made = scene(*BUSY, ask(4, caller="greedy"), ask(5, caller="greedy"))
    assert made.tell(ask(6, caller="greedy")) == [Refuse(6, FULL)]
    assert made.tell(ask(7, caller="other")) == [Refuse(5, FULL)]
    assert made.tell(ask(8, caller="third")) == [Refuse(8, FULL)], "both have one"
    assert made.tell(ask(9, caller="third", weight=2)) == [Refuse(4, FULL)], "of whom one has half as much to say"
    assert made.tell(close(2), close(3)) == [Grant(9, 1)]


def test_the_tokens_that_wait_are_bounded_but_for_one_who_waits_alone() -> None:
    made = scene(*BUSY, ask(4, tokens=5000))
    assert made.tell(ask(5, tokens=1)) == [Refuse(5, Like(Overloaded, "about 5000 tokens"))]
    made = scene(*BUSY, ask(4, tokens=500), ask(5, tokens=501))
    assert len(made.scheduler.models["m"].queue) == 1


def test_while_it_loads_those_that_will_have_a_slot_are_not_counted() -> None:
    made = scene(ask(1, tokens=900), ask(2, tokens=900))
    assert made.tell(ask(3, tokens=1)) == [Refuse(3, FULL)]
    assert made.tell(up(1)) == [Grant(1, 1), Grant(2, 1)]


def test_who_waits_for_the_next_engine_counts_too() -> None:
    made = scene(*BUSY, ask(4), unload(9), ask(5, caller="a"))
    assert made.tell(ask(6, caller="a")) == [Refuse(6, FULL)]


# --- when to come back ---
def test_each_who_is_refused_is_told_a_later_time() -> None:
    made = scene(*LOADED, ask(2)).after(3)
    made.tell(answered(2), ask(3), ask(4), ask(5), ask(6))
    assert [seconds(made.tell(ask(ticket))) for ticket in range(7, 12)] == [1.5, 3.0, 4.5, 6.0, 6.0]
    assert seconds(made.after(2).tell(ask(20))) == 5.5, "what was told before counts, less what has gone"
    assert seconds(made.after(100).tell(ask(21))) == 1.5


def test_while_it_loads_the_rest_of_the_load_is_added() -> None:
    made = scene(ask(1), ask(2), ask(3), ask(4), reload_s=10)
    assert seconds(made.after(4).tell(ask(5))) == 6.5
    assert seconds(made.after(9).tell(ask(6))) == 0.5, "it takes longer than was expected"


# --- the breaker ---
def sick(made: Scene, times: int = FAILURES, first: int = 100) -> list[Effect]:
    """So many requests, one after another, whose engine fails them."""
    effects: list[Effect] = []
    for ticket in range(first, first + times):
        made.tell(ask(ticket))
        effects = made.tell(failed(ticket))
    return effects


def test_an_engine_that_fails_its_requests_is_not_asked_for_a_while() -> None:
    made = scene(*LOADED)
    sick(made)
    assert made.phase() == "loaded"
    assert seconds(made.after(5).tell(ask(2))) == COOL_DOWN_S - 5
    assert made.tell(ask(3)) == [Refuse(3, RESTS)]
    assert made.tell(ask(4)) == [Refuse(4, Like(Overloaded, "its engine answered 500"))]


def test_then_one_tries_it() -> None:
    made = scene(*LOADED)
    sick(made)
    made.after(COOL_DOWN_S)
    assert made.tell(ask(2)) == [Grant(2, 1)]
    assert made.tell(ask(3)) == [Refuse(3, TRIED)]
    assert made.tell(failed(2)) == []
    assert seconds(made.tell(ask(4))) == 2 * COOL_DOWN_S
    made.after(2 * COOL_DOWN_S).tell(ask(5))
    assert made.tell(close(5)) == [], "it went without a word"
    assert made.tell(ask(6)) == [Grant(6, 1)], "so the next one tries"
    made.tell(answered(6))
    assert made.tell(ask(7)) == [Grant(7, 1)]
    assert made.tell(ask(8)) == [Grant(8, 1)]


@pytest.mark.parametrize("ends", [close, answered])
def test_what_callers_do_wrong_opens_nothing(ends: type[Close]) -> None:
    made = scene(*LOADED)
    for ticket in range(100, 150):
        made.tell(ask(ticket), ends(ticket, "m"))
    assert made.tell(ask(2)) == [Grant(2, 1)]


def test_an_answer_between_failures_is_a_sign_of_life() -> None:
    made = scene(*LOADED)
    for round_ in range(5):
        sick(made, FAILURES - 1, first=100 * round_ + 100)
        made.tell(ask(100 * round_ + 50), answered(100 * round_ + 50))
    assert made.tell(ask(2)) == [Grant(2, 1)]


def test_who_waits_is_told_when_it_opens() -> None:
    made = scene(*LOADED)
    sick(made, FAILURES - 1)
    made.tell(ask(2), ask(3), ask(4), ask(5))
    assert made.tell(failed(2)) == [Refuse(4, RESTS), Refuse(5, RESTS)]
    assert made.tell(answered(3)) == []
    assert made.tell(ask(6)) == [Refuse(6, RESTS)], "that one had begun before"


def test_requests_that_fail_together_fail_once() -> None:
    made = scene(*LOADED, slots=9)
    made.tell(*(ask(ticket) for ticket in range(10, 19)))
    made.tell(*(failed(ticket) for ticket in range(10, 18)))
    assert made.scheduler.models["m"].breaker.failures == 1
    made.tell(ask(20), failed(20), failed(18))
    assert made.scheduler.models["m"].breaker.failures == 2


@pytest.mark.parametrize("first", ["crash", "requests"])
def test_a_crash_is_one_failure_whoever_tells_it_first(first: str) -> None:
    made = scene(*BUSY)
    told: list[Event] = [failed(2), failed(3)]
    told.insert(0 if first == "crash" else 2, crash(1))
    made.tell(*told)
    breaker = made.scheduler.models["m"].breaker
    assert (breaker.failures, breaker.total) == (1, 1)


def test_a_crash_long_after_a_failure_is_another_one() -> None:
    made = scene(*LOADED)
    sick(made, 1)
    made.after(60).tell(crash(1))
    assert made.scheduler.models["m"].breaker.failures == 2


def test_crashes_open_it_too_and_the_engine_is_restarted_meanwhile() -> None:
    made = scene().after(1000)
    made.tell(*LOADED)
    for engine in range(1, FAILURES + 1):
        made.tell(ask(10 * engine), ask(10 * engine + 1), ask(10 * engine + 2))
        effects = made.after(100).tell(crash(engine))  # each long after the one before: restarts are not given up
        if engine < FAILURES:
            assert effects == [stop(engine), restart(0.0)]
            made.tell(*(failed(10 * engine + number) for number in range(2)))
            made.tell(down(engine), due(), up(engine + 1), close(10 * engine + 2))
    assert effects == [Refuse(10 * FAILURES + 2, Like(Overloaded, "SIGKILL")), stop(FAILURES), restart(0.0)]
    made.tell(down(FAILURES), due(), up(FAILURES + 1))
    assert made.phase() == "loaded"
    assert made.tell(ask(2)) == [Refuse(2, RESTS)], "a good load is no answer"
    assert made.after(COOL_DOWN_S).tell(ask(3)) == [Grant(3, FAILURES + 1)]


# --- loads that fail ---
def test_after_a_failed_load_one_request_tries_another() -> None:
    made = scene(load(1), broken(1))
    assert seconds(made.after(COOL_DOWN_S - 5).tell(ask(2))) == 5
    assert made.after(5).tell(ask(3)) == [start(2), wanted()]
    assert made.tell(ask(4)) == [Refuse(4, TRIED)]
    assert made.tell(broken(2)) == [Refuse(3, Like(EngineFailed, "no such tensor")), forgotten()]
    assert seconds(made.tell(close(3), ask(5))) == 2 * COOL_DOWN_S


def test_where_it_leaves_the_next_one_joins_the_load() -> None:
    made = scene(load(1), broken(1)).after(COOL_DOWN_S)
    assert made.tell(ask(3), close(3), ask(4)) == []
    assert made.tell(ask(5)) == [Refuse(5, TRIED)]
    assert made.tell(up(2)) == [Grant(4, 2)]


def test_a_good_load_makes_good_for_a_failed_one() -> None:
    made = scene(load(1), broken(1), load(2), up(2))
    assert made.tell(ask(3)) == [Grant(3, 2)]
    assert made.tell(ask(4)) == [Grant(4, 2)]


def test_a_load_that_fails_again_and_again_is_not_tried_in_a_storm() -> None:
    made = scene(load(1), broken(1))
    assert made.tell(load(2)) == [start(2), wanted()], "the second time at once"
    made.tell(broken(2))
    (refused,) = made.tell(load(3))
    assert refused == Refuse(3, Like(Overloaded, "unload it with force"))
    assert seconds([refused]) == 2 * COOL_DOWN_S
    assert made.after(2 * COOL_DOWN_S).tell(load(4)) == [start(3), wanted()]
    made.tell(broken(3))
    assert seconds(made.tell(load(5))) == 4 * COOL_DOWN_S


@pytest.mark.parametrize("force", [False, True])
def test_unloading_what_has_failed_forgets_it(force: bool) -> None:
    made = scene(load(1), broken(1), load(2), broken(2), unload(3, force=force))
    assert made.phase() == "available"
    assert made.tell(load(4)) == [start(3), wanted()]


def test_unloading_with_force_forgets_it_whatever_it_is() -> None:
    made = scene(*LOADED)
    sick(made)
    assert made.tell(unload(2, force=True), down(1)) == [Grant(2)]
    assert made.tell(ask(3)) == [start(2), wanted()]


def test_it_is_not_forgotten_when_the_model_merely_goes_but_force_forgets_it_then_too() -> None:
    made = scene(*LOADED)
    sick(made)
    made.tell(unload(2), down(1))
    assert made.tell(ask(3)) == [Refuse(3, RESTS)]
    assert made.tell(unload(4, force=True)) == [Grant(4)]
    assert made.tell(ask(5)) == [start(2), wanted()]


def test_another_version_has_not_failed_yet() -> None:
    made = scene(load(1), broken(1), register(build=2))
    assert made.tell(ask(2)) == [start(2, build=2), wanted()]
    assert made.tell(ask(3)) == []
    made = Scene(register(), *LOADED, size=10**9)
    sick(made)
    made.tell(swap(2), up(2), Stopped("m", 1))
    assert made.tell(ask(3)) == [Grant(3, 2)]


def test_but_the_same_one_registered_again_has() -> None:
    made = scene(load(1), broken(1), register(build=1))
    assert made.tell(ask(2)) == [Refuse(2, RESTS)]


def test_how_the_old_engine_ends_says_nothing_of_the_new_one() -> None:
    made = Scene(register(), *LOADED, ask(2), ask(3), swap(4), up(2), size=10**9)
    made.tell(failed(2), crash(1))
    assert made.scheduler.models["m"].breaker.failures == 0


def test_restarts_that_are_given_up_open_it() -> None:
    made = scene(*BUSY, crash(1), down(1))
    for engine in range(2, 7):
        made.tell(due(), broken(engine))
    assert made.phase() == "failed"
    assert seconds(made.tell(ask(9))) == COOL_DOWN_S
