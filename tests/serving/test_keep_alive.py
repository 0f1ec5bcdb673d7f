"""How long a model stays without requests, and what a restart is told to bring back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from modelops.serving.events import Ask, Drain, Event, Grant, Residency, Residents
from modelops.serving.scheduler import BACKOFF_S
from serving.scenes import (
    NEED,
    Scene,
    ask,
    broken,
    close,
    crash,
    down,
    due,
    forgotten,
    idle,
    load,
    register,
    start,
    stop,
    swap,
    unload,
    up,
    wake,
    wanted,
)

LEAVES = [forgotten(), stop(1)]


def scene(*events: Event, keep_alive_s: float | None = 60, pinned: bool = False, slots: int = 2) -> Scene:
    return Scene(register(keep_alive_s=keep_alive_s, pinned=pinned, slots=slots), load(1), up(1), *events)


# --- how long it stays ---
def test_it_counts_from_the_load_while_nobody_has_asked() -> None:
    made = Scene(register(keep_alive_s=60), load(1))
    assert made.tell(up(1)) == [Grant(1), wake(60)]
    assert made.after(59.9).tell(idle()) == []
    assert made.after(0.1).tell(idle()) == LEAVES
    assert made.phase() == "unloading"


def test_it_counts_from_the_end_of_the_last_request() -> None:
    made = scene(ask(2), ask(3))
    assert made.after(100).tell(idle()) == [], "it is used"
    assert made.tell(close(2)) == [], "it is used still"
    assert made.after(100).tell(close(3)) == [wake(60)]
    assert made.after(59).tell(idle()) == [], "what was sent for an earlier request does nothing"
    assert made.after(1).tell(idle()) == LEAVES


def test_a_request_in_time_begins_it_anew() -> None:
    made = scene()
    assert made.after(59).tell(ask(2), close(2)) == [wake(60)]
    assert made.after(1).tell(idle()) == []


def test_a_timer_that_is_a_hair_early_is_not_early() -> None:
    assert scene().after(59.995).tell(idle()) == LEAVES


def test_who_waits_for_a_slot_keeps_it() -> None:
    made = scene(ask(2), ask(3), slots=1)
    assert made.tell(close(2)) == [Grant(3, 1)]
    assert made.tell(close(3)) == [wake(60)]


def test_a_keep_alive_of_0_ends_with_the_last_request() -> None:
    made = Scene(register(keep_alive_s=0, slots=1), ask(1), ask(2))
    assert made.tell(up(1)) == [Grant(1, 1)]
    assert made.tell(close(1)) == [Grant(2, 1)]
    assert made.tell(close(2)) == LEAVES


def test_with_a_keep_alive_of_0_and_nobody_who_waits_any_more_it_leaves_at_once() -> None:
    made = Scene(register(keep_alive_s=0), ask(1), close(1))
    assert made.tell(up(1)) == LEAVES


def test_what_was_loaded_on_purpose_with_a_keep_alive_of_0_stays_for_its_first_answer() -> None:
    made = Scene(register(keep_alive_s=0), load(1))
    assert made.tell(up(1)) == [Grant(1)]
    assert made.tell(ask(2), close(2)) == LEAVES


def test_it_still_does_after_a_restart_and_a_failed_swap_and_in_spite_of_an_old_timer() -> None:
    loaded = (register(keep_alive_s=0), load(1), up(1))
    made = Scene(*loaded, swap(2), size=3 * NEED)
    assert made.tell(broken(2))[1:] == []
    made = Scene(*loaded, crash(1), down(1), due())
    assert made.tell(up(2)) == []
    assert made.tell(ask(2), close(2)) == [forgotten(), stop(2)]
    made = Scene(register(keep_alive_s=10), load(1), up(1), unload(2), down(1), *loaded[:2], up(2))
    assert made.after(10).tell(idle()) == []
    made = Scene(*loaded, ask(2), swap(3, keep_alive_s=0), up(2), size=3 * NEED)
    assert made.tell(close(2)) == [stop(1)], "the next one has not answered yet"
    assert made.tell(ask(4), close(4)) == [forgotten(), stop(2)]


def test_and_is_the_first_to_be_evicted() -> None:
    made = Scene(register("a", keep_alive_s=0, reload_s=99), register("b", reload_s=0.1), register(), size=2 * NEED)
    made.tell(load(1, "a"), up(1, "a"), load(2, "b"), up(2, "b"))
    assert made.tell(ask(3))[0] == forgotten("a")


def test_without_one_it_stays() -> None:
    made = scene(ask(2), keep_alive_s=None)
    assert made.tell(close(2)) == []
    assert made.after(1e9).tell(idle()) == []


def test_pinned_it_stays_whatever_it_and_its_requests_bring() -> None:
    made = scene(ask(2, keep_alive_s=0), keep_alive_s=5, pinned=True)
    assert made.tell(close(2)) == []
    assert made.after(1e9).tell(idle()) == []


def test_a_requests_own_holds_until_the_next_request() -> None:
    made = scene(ask(2, keep_alive_s=5))
    assert made.tell(close(2)) == [wake(5)]
    assert made.after(4).tell(ask(3), close(3)) == [wake(60)], "the next one brought none"
    assert made.after(5).tell(idle()) == [], "the first one's is forgotten"
    assert made.after(55).tell(idle()) == LEAVES


def test_of_several_requests_the_last_to_end_decides() -> None:
    made = scene(ask(2, keep_alive_s=5), ask(3, keep_alive_s=7))
    made.tell(close(3))
    assert made.tell(close(2)) == [wake(5)]


def test_a_requests_own_may_be_longer_and_for_ever() -> None:
    for seconds in (0.5, 600):
        assert scene(ask(2, keep_alive_s=seconds)).tell(close(2)) == [wake(seconds)]
    made = scene()
    assert made.tell(Ask(2, "m", Residency(None)), close(2)) == []
    assert made.after(1e9).tell(idle()) == []


def test_a_requests_own_of_0_ends_it_at_once() -> None:
    assert scene(ask(2, keep_alive_s=0)).tell(close(2)) == LEAVES


def test_what_a_request_brought_that_never_had_a_slot_does_not_hold() -> None:
    made = scene(ask(2), ask(3, keep_alive_s=0), slots=1)
    made.tell(close(3))
    assert made.tell(close(2)) == [wake(60)]
    assert made.scheduler.models["m"].asked == {}


def test_a_requests_own_ends_with_the_engine() -> None:
    made = scene(ask(2, keep_alive_s=5), close(2), unload(3), down(1), load(4))
    assert made.tell(up(2)) == [Grant(4), wake(60)]


def test_a_request_on_the_engine_that_was_replaced_counts() -> None:
    made = scene(ask(2), swap(3, keep_alive_s=60))
    assert made.tell(up(2)) == [Grant(3)], "the model is in use"
    assert made.after(100).tell(idle()) == []
    assert made.tell(close(2)) == [stop(1), wake(60)]
    assert made.after(60).tell(idle()) == [forgotten(), stop(2)]


def test_the_crash_of_the_engine_that_was_replaced_is_the_end_of_its_requests() -> None:
    made = scene(ask(2), swap(3, keep_alive_s=60), up(2))
    assert made.tell(crash(1)) == [stop(1), wake(60)]
    assert made.after(60).tell(idle()) == [forgotten(), stop(2)]


def test_it_ends_after_a_crash_too() -> None:
    made = scene(ask(2), crash(1), close(2), down(1), due())
    assert made.after(10).tell(up(2)) == [wake(60)]


def test_an_end_that_comes_late_finds_nothing_to_end() -> None:
    for events in ([unload(2)], [unload(2), down(1)], [crash(1)], [unload(2), down(1), ask(3)]):
        assert scene(*events).after(60).tell(idle()) == []


def test_who_asks_while_it_leaves_is_served_by_the_next_engine() -> None:
    made = scene()
    made.after(60).tell(idle(), ask(2))
    assert made.tell(down(1)) == [start(2), wanted()]


def test_what_is_over_its_keep_alive_is_evicted_first() -> None:
    made = Scene(register("a", keep_alive_s=5, reload_s=99), register("b", reload_s=0.1), register(), size=2 * NEED)
    made.tell(load(1, "a"), up(1, "a"), load(2, "b"), up(2, "b"))
    assert made.after(6).tell(ask(3))[0] == forgotten("a")


# --- what a restart brings back ---
def brought_back(events: Sequence[Event], others: int = 0) -> list[bool]:
    """Every change of whether a restart brings "m" back."""
    made = Scene(register(keep_alive_s=60), register("other"), size=NEED)
    told = []
    for event in events:
        made.others = others if event == due() else 0
        if event == idle():
            made.after(60)
        told += [effect.wanted for effect in made.tell(event) if isinstance(effect, Residents) and effect.model == "m"]
    return told


LOADED = (load(1), up(1))


@pytest.mark.parametrize(
    ("events", "told"),
    [
        pytest.param(LOADED, [True], id="what is loaded"),
        pytest.param([*LOADED, unload(2), down(1)], [True, False], id="not what was unloaded"),
        pytest.param([*LOADED, unload(2), load(3), down(1)], [True, False, True], id="what was loaded again"),
        pytest.param([*LOADED, idle()], [True, False], id="not what is over its keep-alive"),
        pytest.param([*LOADED, ask(2, "other")], [True, False], id="not what was evicted"),
        pytest.param([*LOADED, crash(1)], [True], id="what crashed once"),
        pytest.param([*LOADED, crash(1), due(), up(2)], [True, True], id="what was restarted"),
        pytest.param([*LOADED, crash(1), unload(2)], [True, False], id="not what was unloaded before its restart"),
        pytest.param([load(1), broken(1)], [True, False], id="not what failed"),
        pytest.param([load(1), broken(1), unload(2)], [True, False], id="and is told once"),
        pytest.param([load(1), unload(2, force=True)], [True, False], id="not what was unloaded before it was loaded"),
        pytest.param([*LOADED, swap(2, drain_first=True), down(1)], [True, True], id="what is replaced"),
        pytest.param([*LOADED, Drain(), crash(1)], [True], id="what crashes at the end of the coordinator"),
        pytest.param([*LOADED, crash(1), Drain(), due()], [True], id="what is not restarted at its end"),
        pytest.param([load(1, "other"), up(1, "other"), ask(2)], [True], id="what waits for memory"),
    ],
)
def test_what_a_restart_brings_back(events: Sequence[Event], told: list[bool]) -> None:
    assert brought_back(events) == told


def test_not_what_has_no_room_for_its_restart() -> None:
    assert brought_back([*LOADED, crash(1), due()], others=1) == [True, False]


def test_not_what_failed_for_good() -> None:
    tries = [event for number in range(len(BACKOFF_S)) for event in (due(), broken(number + 2))]
    assert brought_back([*LOADED, crash(1), *tries]) == [True] * (len(BACKOFF_S) + 1) + [False]


def test_what_does_not_fit_was_never_wanted() -> None:
    assert not any(isinstance(effect, Residents) for effect in Scene(register(), size=NEED - 1).tell(load(1)))
