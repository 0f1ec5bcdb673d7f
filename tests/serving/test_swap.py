"""A model's engine is replaced: beside the present one or after it, and everything that can go wrong meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from modelops.api.errors import Conflict, EngineFailed, InsufficientMemory, Overloaded
from modelops.serving.events import Drain, Effect, Event, Grant, Refuse, Revoke
from modelops.serving.placement import MB
from serving.scenes import (
    NEED,
    Like,
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
    restart,
    start,
    stop,
    swap,
    unload,
    up,
    wake,
    wanted,
)

# The model "m" (build 1) serves two requests at once; build 2 is to take its place.
LOADED = (load(1), up(1))
BUSY = (*LOADED, ask(2), ask(3))
QUEUED = (*BUSY, ask(4))
SWAPPING = (*QUEUED, swap(5))
SWAPPED = (*SWAPPING, up(2))
DRAINING = (*QUEUED, swap(5, drain_first=True))
GONE = Like(Overloaded, "unloaded")
ON_ITS_WAY = Like(Conflict, "on its way to another state")

#: id: (what was before, what happens, what follows, the phase after it, the engines that are left)
TABLE: dict[str, tuple[Sequence[Event], Event, list[Effect], str, set[int]]] = {
    # beside the present one
    "the next engine is started beside": (QUEUED, swap(5), [start(2, build=2)], "loaded", {1, 2}),
    "an ask meanwhile goes to the present one": ([*LOADED, swap(5)], ask(6), [Grant(6, 1)], "loaded", {1, 2}),
    "a freed slot too": (SWAPPING, close(2), [Grant(4, 1)], "loaded", {1, 2}),
    "ready: the swap is told, and who waits is served by the next one": (
        SWAPPING,
        up(2),
        [Grant(5), Grant(4, 2)],
        "loaded",
        {1, 2},
    ),
    "ready, and the present one is idle: it goes": (
        [*LOADED, swap(5)],
        up(2),
        [Grant(5), stop(1)],
        "loaded",
        {1, 2},
    ),
    "a new request goes to the next one": ([*SWAPPED, close(4)], ask(6), [Grant(6, 2)], "loaded", {1, 2}),
    "a request in flight ends on the old one": (SWAPPED, close(2), [], "loaded", {1, 2}),
    "the old one goes with its last request": ([*SWAPPED, close(2)], close(3), [stop(1)], "loaded", {1, 2}),
    "and is gone": ([*SWAPPED, close(2), close(3)], down(1), [], "loaded", {2}),
    "a swap back while the old one still ends": (
        [*SWAPPED],
        swap(6, build=1),
        [start(3, build=1)],
        "loaded",
        {1, 2, 3},
    ),
    # what fails
    "a swap that fails leaves the present one": (
        SWAPPING,
        broken(2),
        [Refuse(5, Like(EngineFailed, "no such tensor"))],
        "loaded",
        {1},
    ),
    "and it still serves": ([*SWAPPING, broken(2)], close(2), [Grant(4, 1)], "loaded", {1}),
    "and can be swapped again": ([*SWAPPING, broken(2)], swap(6), [start(3, build=2)], "loaded", {1, 3}),
    "the present one crashes: the next takes its place": (SWAPPING, crash(1), [stop(1)], "loading", {1, 2}),
    "and serves who waited": ([*SWAPPING, crash(1), down(1)], up(2), [Grant(5), Grant(4, 2)], "loaded", {2}),
    "and an ask since then": (
        [*SWAPPING, crash(1), down(1), ask(6)],
        up(2),
        [Grant(5), Grant(4, 2), Grant(6, 2)],
        "loaded",
        {2},
    ),
    "and a load joins it": ([*SWAPPING, crash(1), down(1)], load(6), [], "loading", {2}),
    "and fails too: the swap is told, and the one before is restarted for who waits": (
        [*SWAPPING, crash(1), down(1)],
        broken(2),
        [Refuse(5, Like(EngineFailed, "no such tensor")), restart(0.0)],
        "restarting",
        set(),
    ),
    "as what it was": ([*SWAPPING, crash(1), down(1), broken(2)], due(), [start(3), wanted()], "loading", {3}),
    "the old one crashes: its requests are lost, no others": (SWAPPED, crash(1), [stop(1)], "loaded", {1, 2}),
    "and close without effect": ([*SWAPPED, crash(1), close(2), down(1)], close(3), [], "loaded", {2}),
    "the next one crashes while the old one ends": (SWAPPED, crash(2), [stop(2), restart(0.0)], "restarting", {1, 2}),
    "and is restarted beside it": (
        [*SWAPPED, crash(2), down(2)],
        due(),
        [start(3, build=2), wanted()],
        "loading",
        {1, 3},
    ),
    # what is refused
    "a second swap": (SWAPPING, swap(6), [Refuse(6, ON_ITS_WAY)], "loaded", {1, 2}),
    "a swap of what is not loaded": ((), swap(6), [Refuse(6, ON_ITS_WAY)], "available", set()),
    "a swap of what is loading": ([load(1)], swap(6), [Refuse(6, ON_ITS_WAY)], "loading", {1}),
    "a swap of what is being unloaded": ([*BUSY, unload(9)], swap(6), [Refuse(6, ON_ITS_WAY)], "unloading", {1}),
    "a swap while draining": (
        [*LOADED, Drain()],
        swap(6),
        [Refuse(6, Like(Overloaded, "shutting down"))],
        "loaded",
        {1},
    ),
    # a drain in the middle
    "a drain lets the swap end": ([*SWAPPING, Drain()], up(2), [Grant(5), Grant(4, 2)], "loaded", {1, 2}),
    "a drain, and the present one crashes": ([*SWAPPING, Drain()], crash(1), [stop(1)], "loading", {1, 2}),
    # an unload in the middle
    "an unload does not undo a swap": (
        SWAPPING,
        unload(9),
        [Refuse(9, Like(Conflict, "unload it with force"))],
        "loaded",
        {1, 2},
    ),
    "but with force": (
        SWAPPING,
        unload(9, force=True),
        [forgotten(), Revoke(2, GONE), Revoke(3, GONE), Refuse(4, GONE), Refuse(5, GONE), stop(2), stop(1)],
        "unloading",
        {1, 2},
    ),
    "and waits for both": ([*SWAPPING, unload(9, force=True)], down(1), [], "unloading", {2}),
    "and is told then": ([*SWAPPING, unload(9, force=True), down(1)], down(2), [Grant(9)], "available", set()),
    "and it can be loaded and swapped again": (
        [*SWAPPING, unload(9, force=True), down(1), down(2), load(6), up(3)],
        swap(7),
        [start(4, build=2)],
        "loaded",
        {3, 4},
    ),
    "a next one that is ready after all": ([*SWAPPING, unload(9, force=True)], up(2), [], "unloading", {1, 2}),
    "a next one that failed after all": ([*SWAPPING, unload(9, force=True)], broken(2), [], "unloading", {1, 2}),
    # an unload while the old one ends
    "an unload waits for the requests of both": ([*SWAPPED, unload(9)], close(4), [stop(2)], "unloading", {1, 2}),
    "the last of them lets it go": (
        [*SWAPPED, unload(9), close(4), down(2), close(2)],
        close(3),
        [stop(1)],
        "unloading",
        {1},
    ),
    "unloaded with the last engine": (
        [*SWAPPED, unload(9), close(4), down(2), close(2), close(3)],
        down(1),
        [Grant(9)],
        "available",
        set(),
    ),
    "unloaded with the crash of the last engine": (
        [*SWAPPED, unload(9), close(4), down(2), crash(1)],
        down(1),
        [Grant(9)],
        "available",
        set(),
    ),
    "who asked since is served after it": (
        [*SWAPPED, unload(9), close(4), down(2), ask(10), crash(1)],
        down(1),
        [Grant(9), start(3, build=2), wanted()],
        "loading",
        {3},
    ),
    "force takes the slots of the old one too": (
        SWAPPED,
        unload(9, force=True),
        [forgotten(), Revoke(4, GONE), Revoke(2, GONE), Revoke(3, GONE), stop(1), stop(2)],
        "unloading",
        {1, 2},
    ),
    "force hastens an unload of which only the old one is left": (
        [*SWAPPED, unload(9), close(4), down(2)],
        unload(10, force=True),
        [Revoke(2, GONE), Revoke(3, GONE), stop(1)],
        "unloading",
        {1},
    ),
    "a restart is called off while the old one still serves": (
        [*SWAPPED, ask(6), ask(7), crash(2), down(2)],
        unload(9),
        [forgotten(), Refuse(7, GONE)],
        "unloading",
        {1},
    ),
    "and the unload waits for it": (
        [*SWAPPED, crash(2), down(2), unload(9), close(2)],
        close(3),
        [stop(1)],
        "unloading",
        {1},
    ),
    "or hastens it": (
        [*SWAPPED, crash(2), down(2)],
        unload(9, force=True),
        [forgotten(), Revoke(2, GONE), Revoke(3, GONE), stop(1)],
        "unloading",
        {1},
    ),
    # after the present one
    "drain first: the present one is waited for": (QUEUED, swap(5, drain_first=True), [], "unloading", {1}),
    "drain first: an idle one goes at once": (LOADED, swap(5, drain_first=True), [stop(1)], "unloading", {1}),
    "drain first: who waited is still served by it": (DRAINING, close(2), [Grant(4, 1)], "unloading", {1}),
    "drain first: it goes with its last request": (
        [*DRAINING, close(2), close(3)],
        close(4),
        [stop(1)],
        "unloading",
        {1},
    ),
    "drain first: then the next one is started": (
        [*DRAINING, close(2), close(3), close(4)],
        down(1),
        [start(2, build=2), wanted()],
        "loading",
        {2},
    ),
    "drain first: who asked since is served by the next one": (
        [*DRAINING, ask(6), close(2), close(3), close(4), down(1)],
        up(2),
        [Grant(5), Grant(6, 2)],
        "loaded",
        {2},
    ),
    "drain first: an unload meanwhile is told": (
        [*LOADED, swap(5, drain_first=True), unload(9)],
        down(1),
        [Grant(9), start(2, build=2), wanted()],
        "loading",
        {2},
    ),
    "drain first: force ends the swap too": (
        DRAINING,
        unload(9, force=True),
        [forgotten(), Revoke(2, GONE), Revoke(3, GONE), Refuse(4, GONE), Refuse(5, GONE), stop(1)],
        "unloading",
        {1},
    ),
    "drain first: a failed load is told": (
        [*LOADED, swap(5, drain_first=True), down(1)],
        broken(2),
        [Refuse(5, Like(EngineFailed)), forgotten()],
        "failed",
        set(),
    ),
}


def scene(*before: Event, size: int = 350 * MB) -> Scene:
    return Scene(register(), *before, size=size)


@pytest.mark.parametrize(("before", "event", "effects", "phase", "left"), TABLE.values(), ids=TABLE)
def test_event_has_effects(
    before: Sequence[Event], event: Event, effects: list[Effect], phase: str, left: set[int]
) -> None:
    made = scene(*before)
    assert made.tell(event) == effects
    assert made.phase() == phase
    assert made.scheduler.ledger.reserved.keys() == made.scheduler.engines.keys() == left


def test_what_does_not_fit_beside_says_so_and_offers_to_drain_first() -> None:
    made = scene(*BUSY, size=2 * NEED - 1)
    (refused,) = made.tell(swap(5))
    assert isinstance(refused, Refuse)
    assert refused.error == Like(InsufficientMemory, "'m' needs 100 MB and 99 MB are free (held: 'm' 100 MB)")
    assert refused.error == Like(InsufficientMemory, "with drain_first the present one ends before")
    assert refused.error.details["needed_mb"] == "100"
    assert made.reserved == {1: 100}
    assert made.tell(swap(6, drain_first=True), close(2), close(3)) == [stop(1)]
    assert made.tell(down(1)) == [start(2, build=2), wanted()]
    assert made.tell(up(2)) == [Grant(6)]


def test_the_present_one_is_not_evicted_for_the_next() -> None:
    made = scene(*LOADED, size=NEED)
    assert made.tell(swap(5)) == [Refuse(5, Like(InsufficientMemory))]
    assert made.phase() == "loaded"


def test_a_third_model_is_evicted_for_the_next() -> None:
    made = scene(*LOADED, register("idle"), load(6, "idle"), up(2, "idle"), size=2 * NEED)
    assert made.tell(swap(7)) == [forgotten("idle"), stop(2, "idle")]
    assert made.tell(ask(8)) == [Grant(8, 1)], "meanwhile the present one serves"
    assert made.tell(down(2, "idle")) == [start(4, build=2)]
    assert made.tell(up(4)) == [Grant(7)]
    assert made.reserved == {1: 100, 4: 100}


def evicting(keep_alive_s: float | None = None) -> Scene:
    """The swap of "m" waits until "idle" is gone."""
    return scene(
        register(keep_alive_s=keep_alive_s),
        *LOADED,
        register("idle"),
        load(6, "idle"),
        up(2, "idle"),
        swap(7),
        size=2 * NEED,
    )


def test_others_take_the_memory_of_the_next() -> None:
    made = evicting()
    made.others = 1
    assert made.tell(down(2, "idle")) == [Refuse(7, Like(InsufficientMemory, "drain_first"))]
    assert made.phase() == "loaded"
    assert made.reserved == {1: 100}
    assert made.tell(ask(8)) == [Grant(8, 1)]


def test_the_present_one_crashes_while_the_next_waits_for_memory() -> None:
    made = evicting()
    assert made.tell(ask(8), crash(1)) == [stop(1)]
    assert made.phase() == "loading"
    assert made.tell(down(2, "idle")) == [start(4, build=2), wanted()]
    assert made.tell(up(4)) == [Grant(7)]


def test_and_then_it_does_not_fit() -> None:
    made = evicting()
    made.tell(ask(8), ask(9), ask(10), crash(1))
    made.others = NEED + 1
    error = Like(InsufficientMemory)
    assert made.tell(down(2, "idle")) == [Refuse(7, error), Refuse(10, error), forgotten()]
    assert made.phase() == "available"
    assert made.reserved == {1: 100}
    assert made.tell(down(1)) == []
    assert made.reserved == {}


def test_what_was_to_be_replaced_comes_back_where_the_next_does_not_fit_any_more() -> None:
    made = scene(*LOADED, register("idle"), load(6, "idle"), up(2, "idle"), swap(7, size=120 * MB), size=220 * MB)
    made.tell(ask(8), ask(9), ask(10), crash(1), down(1))
    made.others = 110 * MB  # 100 MB fit, 120 do not
    assert made.tell(down(2, "idle")) == [Refuse(7, Like(InsufficientMemory)), start(4), wanted()]
    assert made.tell(up(4)) == [Grant(10, 4)]


def test_the_next_one_ends_before_it_is_told_that_it_was_ready() -> None:
    made = scene(*SWAPPING)
    assert made.tell(crash(2)) == [Refuse(5, Like(EngineFailed, "the next engine of 'm'")), stop(2)]
    assert made.tell(up(2), down(2)) == []
    assert made.phase() == "loaded"
    assert made.reserved == {1: 100}
    assert made.tell(close(2)) == [Grant(4, 1)], "the present one serves"
    assert made.tell(swap(6)) == [start(3, build=2)]


def test_what_a_crashed_engine_held_is_others_to_have() -> None:
    made = Scene(register(), *LOADED, crash(1), load(2), register("other"), size=250 * MB)
    assert made.tell(load(3, "other")) == [wanted("other")], "waits until it is seen to be free"
    assert made.tell(down(1)) == [start(4, "other"), wanted("other")]


def test_force_undoes_a_swap_that_waits_for_memory() -> None:
    made = evicting()
    assert made.tell(unload(9, force=True)) == [forgotten(), Refuse(7, GONE), stop(3), stop(1)]
    assert made.tell(down(2, "idle"), down(3), down(1)) == [Grant(9)]
    assert made.reserved == {}


def test_a_model_that_is_being_replaced_is_not_evicted() -> None:
    made = scene(*LOADED, swap(5), register("other"), size=2 * NEED)
    assert made.tell(ask(6, "other")) == [Refuse(6, Like(InsufficientMemory))]


def test_a_model_whose_old_engine_still_answers_is_in_use() -> None:
    made = scene(*LOADED, ask(2), swap(5), up(2), register("other"), size=2 * NEED)
    assert made.tell(ask(6, "other")) == [Refuse(6, Like(InsufficientMemory))]
    made.tell(close(2), down(1))
    assert made.tell(ask(7, "other"))[0] == start(3, "other")
    assert made.tell(up(3, "other"), register("third"), ask(8, "third"))[0] == forgotten()


def test_the_memory_of_the_old_one_counts_for_others_once_it_goes() -> None:
    made = scene(*LOADED, swap(5), up(2), register("other"), size=2 * NEED)
    assert made.tell(load(6, "other")) == [wanted("other")], "waits for the old one"
    assert made.tell(down(1)) == [start(4, "other"), wanted("other")]


def test_the_requests_of_both_are_counted() -> None:
    model = scene(*SWAPPED, ask(6), ask(7)).scheduler.models["m"]
    assert (model.active, model.queued) == (4, 1)


def test_the_next_ones_slots_count_from_the_swap_on() -> None:
    made = scene(register(slots=1), *LOADED, ask(2), ask(3), swap(5))
    assert made.tell(up(2)) == [Grant(5), Grant(3, 2)]
    assert made.tell(ask(6)) == [Grant(6, 2)]


@pytest.mark.parametrize("drain_first", [False, True])
def test_the_next_ones_keep_alive_holds_from_the_swap_on(drain_first: bool) -> None:
    made = scene(register(keep_alive_s=60), *LOADED, swap(5, keep_alive_s=7, drain_first=drain_first))
    if drain_first:
        made.tell(down(1))
    assert wake(7) in made.tell(up(2))


def test_a_failed_swap_changes_no_keep_alive() -> None:
    made = scene(register(keep_alive_s=60), *BUSY, swap(5, keep_alive_s=7), broken(2), close(2))
    assert made.tell(close(3)) == [wake(60)]


@pytest.mark.parametrize("waits_for_memory", [False, True])
def test_a_failed_swap_does_not_lose_the_end_of_the_keep_alive(waits_for_memory: bool) -> None:
    made = evicting(60) if waits_for_memory else scene(register(keep_alive_s=60), *LOADED, swap(5))
    assert made.after(61).tell(idle()) == [], "it is being replaced"
    made.others = 1
    failed = made.tell(down(2, "idle") if waits_for_memory else broken(2))
    assert failed[1:] == [wake(60)], "the swap was a use"
    assert made.after(60).tell(idle()) == [forgotten(), stop(1)]
