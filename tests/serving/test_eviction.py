"""Who is evicted, and how a start waits for it: what it costs, who is chosen, what happens while it goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.api.errors import Conflict, EngineFailed, InsufficientMemory, Overloaded
from modelops.serving.events import Candidate, Drain, Grant, Refuse, Register, Start, Stop
from modelops.serving.placement import MB, Holder, Layout, Plan, Wants, eviction_cost, place
from serving.needs import machine, need
from serving.scenes import (
    NEED,
    Like,
    Scene,
    ask,
    broken,
    close,
    crash,
    down,
    forgotten,
    load,
    register,
    start,
    stop,
    unload,
    up,
    wanted,
)

SECONDS = st.floats(0, 1e6)
KEEP_ALIVE = st.none() | st.floats(0, 1e6)


# --- what it costs ---
@given(SECONDS, SECONDS, SECONDS, KEEP_ALIVE)
def test_what_takes_longer_to_load_again_costs_no_less(
    one: float, other: float, idle: float, keep: float | None
) -> None:
    cheap, dear = (eviction_cost(reload_s=size, idle_s=idle, keep_alive_s=keep) for size in sorted((one, other)))
    assert 0 <= cheap <= dear


@given(SECONDS, SECONDS, SECONDS, KEEP_ALIVE)
def test_what_has_been_idle_for_longer_costs_no_more(
    one: float, other: float, reload: float, keep: float | None
) -> None:
    dear, cheap = (eviction_cost(reload_s=reload, idle_s=idle, keep_alive_s=keep) for idle in sorted((one, other)))
    assert 0 <= cheap <= dear


def test_the_cost_is_told_apart() -> None:
    def cost(reload_s: float = 10.0, idle_s: float = 10.0, keep_alive_s: float | None = 60.0) -> float:
        return eviction_cost(reload_s=reload_s, idle_s=idle_s, keep_alive_s=keep_alive_s)

    assert cost() < cost(reload_s=11)
    assert cost() < cost(idle_s=9)
    assert cost() < cost(keep_alive_s=61) < cost(keep_alive_s=None)
    assert cost(idle_s=59) > cost(idle_s=60) == cost(idle_s=61) == cost(keep_alive_s=0) == 0


# --- who is chosen ---
@pytest.mark.parametrize(
    ("held", "needed", "evicted"),
    [
        pytest.param({"a": (2.0, 60), "b": (1.0, 60)}, 60, ("b",), id="the cheapest that does"),
        pytest.param({"a": (1.0, 60), "b": (2.0, 60)}, 61, ("a", "b"), id="as many as it takes, the cheapest first"),
        pytest.param({"a": (1.0, 10), "b": (2.0, 10), "c": (3.0, 60)}, 60, ("c",), id="none that does not help"),
        pytest.param({"a": (1.0, 60), "b": (1.1, 60), "c": (1.5, 99)}, 99, ("c",), id="one dear rather than two cheap"),
        pytest.param({"a": (9.0, 60), "b": (1.0, 30), "c": (1.0, 30)}, 60, ("b", "c"), id="two cheap rather than one"),
        pytest.param({"b": (1.0, 60), "a": (1.0, 60)}, 60, ("a",), id="of equals always the same"),
        pytest.param({"a": (0.0, 60), "b": (0.0, 60)}, 60, ("a",), id="no more for nothing"),
        pytest.param({"a": (None, 60), "b": (5.0, 60)}, 60, ("b",), id="never what has to stay"),
        pytest.param({"a": (None, 60), "b": (5.0, 59)}, 60, None, id="not for what does not help enough"),
        pytest.param({"a": (0.0, 0), "b": (5.0, 60)}, 60, ("b",), id="what holds nothing"),
        pytest.param({"a": (0.0, 0)}, 60, None, id="only what holds nothing"),
    ],
)
def test_who_is_evicted(
    held: dict[str, tuple[float | None, int]], needed: int, evicted: tuple[str, ...] | None
) -> None:
    holders = [Holder(model, {"cpu": size}, cost) for model, (cost, size) in held.items()]
    found = place(Wants(need(host=needed)), machine(0), holders)
    assert (found.evict if isinstance(found, Plan) else None) == evicted


def test_only_what_holds_the_device_that_is_short_is_evicted() -> None:
    holders = [Holder("elsewhere", {"gpu0": 99, "cpu": 99}, 0.0), Holder("here", {"gpu1": 99}, 9.0)]
    wants = Wants(need([50], host=10, output=50), gpu_layers=2)
    assert place(wants, machine(10, 0, 10), holders[1:]) == Plan(Layout({"cpu": 10, "gpu1": 100}, (0, 2)), ("here",))
    assert place(wants, machine(10, -50, 10), holders) == Plan(Layout({"cpu": 10, "gpu1": 100}, (0, 2)), ("here",))


# --- how the start waits ---
def full(autoload: bool = True) -> Scene:
    """A machine for two models, with "a" (cheaper to load again) and "b" loaded and idle; "m" is not."""
    made = Scene(
        register("a", reload_s=1), register("b", reload_s=2), register(), size=2 * NEED + 50 * MB, autoload=autoload
    )
    made.tell(load(101, "a"), up(1, "a"), load(102, "b"), up(2, "b"))
    return made


def test_the_start_waits_until_who_was_evicted_is_gone() -> None:
    made = full()
    assert made.tell(ask(1)) == [forgotten("a"), stop(1, "a"), wanted()]
    assert (made.phase("a"), made.phase(), made.phase("b")) == ("unloading", "loading", "loaded")
    assert made.reserved == {1: 100, 2: 100, 3: 100}, "reserved before it starts"
    assert made.tell(down(1, "a")) == [start(4), wanted()]
    assert made.reserved == {2: 100, 4: 100}
    assert made.phase("a") == "available"
    assert made.tell(up(4)) == [Grant(1, 4)]


def test_the_reason_of_the_stop_names_who_needs_the_memory() -> None:
    made = full()
    effects = made.scheduler.on(ask(1), made.now, made.room)
    assert Stop("a", 1, "'m' needs its memory", "memory") in effects


def test_the_start_waits_for_all_of_them() -> None:
    made = full()
    made.tell(register(size=2 * NEED))
    assert made.tell(load(1)) == [forgotten("a"), stop(1, "a"), forgotten("b"), stop(2, "b"), wanted()]
    assert made.tell(down(2, "b")) == []
    assert made.tell(down(1, "a")) == [start(4, size=2 * NEED), wanted()]


def test_who_is_used_is_not_evicted() -> None:
    made = full()
    made.tell(ask(9, "a"))
    assert made.tell(ask(1))[0] == forgotten("b")


def test_who_is_pinned_is_not_evicted() -> None:
    made = Scene(register("a", pinned=True), register(), load(9, "a"), up(1, "a"), size=NEED)
    assert made.tell(ask(1)) == [Refuse(1, Like(InsufficientMemory, "held: 'a' 100 MB"))]


def test_who_has_been_idle_for_longer_goes_first() -> None:
    made = full()
    made.after(10).tell(ask(9, "a"), close(9, "a"))
    assert made.after(1).tell(ask(1))[0] == forgotten("b")


def test_a_request_that_ended_just_now_does_not_keep_its_model() -> None:
    made = full()
    made.tell(ask(9, "a"), ask(8, "b"))
    assert made.tell(ask(1)) == [Refuse(1, Like(InsufficientMemory))]
    made.tell(close(8, "b"))
    assert made.tell(ask(2))[0] == forgotten("b")


def test_a_model_that_is_asked_while_it_is_evicted_is_served_by_its_next_engine() -> None:
    made = full()
    made.tell(ask(1))
    assert made.tell(ask(9, "a")) == []
    # Who waited for the memory comes first; then "a" is loaded again, for which "b" has to go.
    effects = made.tell(down(1, "a"))
    assert effects == [start(4), wanted(), forgotten("b"), stop(2, "b"), wanted("a")]
    assert made.tell(up(4)) == [Grant(1, 4)]
    assert made.tell(down(2, "b")) == [start(6, "a"), wanted("a")]
    assert made.tell(up(6, "a")) == [Grant(9, 6)]


def test_without_autoload_it_is_refused() -> None:
    made = full(autoload=False)
    made.tell(load(1))
    assert made.tell(ask(9, "a")) == []
    assert made.tell(down(1, "a")) == [start(4), wanted(), Refuse(9, Like(Conflict, "not loaded"))]


def test_an_unload_of_a_model_that_is_evicted_joins() -> None:
    made = full()
    made.tell(ask(1))
    assert made.tell(unload(9, "a")) == []
    assert made.tell(unload(10, "a", force=True)) == []
    assert made.tell(down(1, "a")) == [Grant(9), Grant(10), start(4), wanted()]


def test_another_place_is_found_when_others_took_the_memory_meanwhile() -> None:
    made = full()
    made.tell(ask(1))
    made.others = 60 * MB
    assert made.tell(down(1, "a")) == [forgotten("b"), stop(2, "b"), wanted()]
    assert made.tell(down(2, "b")) == [start(5), wanted()]


def test_it_is_refused_when_others_took_more_than_can_be_evicted() -> None:
    made = full()
    made.tell(ask(1), load(2))
    made.tell(ask(9, "b"))
    made.others = 51 * MB
    error = Like(InsufficientMemory, "'m' needs 100 MB and 99 MB are free (held: 'b' 100 MB; other programs: 51 MB)")
    assert made.tell(down(1, "a")) == [Refuse(1, error), Refuse(2, error), forgotten()]
    assert made.phase() == "available"
    assert made.scheduler.models["m"].engine is None
    assert made.reserved == {2: 100}


def test_a_load_that_waits_can_be_undone_and_is_never_started() -> None:
    made = full()
    made.tell(ask(1))
    assert made.tell(unload(2, force=True)) == [forgotten(), Refuse(1, Like(Overloaded, "unloaded")), stop(3)]
    assert made.tell(down(1, "a")) == []
    assert made.tell(down(3)) == [Grant(2)]
    assert made.reserved == {2: 100}


def test_the_memory_of_what_is_evicted_is_not_given_to_two() -> None:
    made = full()
    made.tell(register("c"), register("d"), ask(1))
    assert made.tell(ask(2, "c")) == [forgotten("b"), stop(2, "b"), wanted("c")], "there is more to be had"
    assert made.tell(ask(3, "d")) == [Refuse(3, Like(InsufficientMemory))], "and no more"
    assert made.tell(down(2, "b")) == []
    assert made.tell(down(1, "a")) == [start(5), wanted(), start(6, "c"), wanted("c")]


def test_what_is_being_unloaded_is_waited_for_rather_than_refused() -> None:
    made = full()
    made.tell(ask(9, "b"), unload(10, "a"))
    assert made.tell(ask(1)) == [wanted()], "nobody is evicted, and it does not fit yet"
    assert made.reserved == {1: 100, 2: 100, 3: 100}
    assert made.tell(down(1, "a")) == [Grant(10), start(4), wanted()]


def test_what_is_being_unloaded_is_not_waited_for_without_need() -> None:
    made = full()
    made.size += NEED - 50 * MB
    made.tell(unload(10, "a"))
    assert made.tell(ask(1)) == [start(3), wanted()]


def test_who_is_evicted_is_waited_for_alone_where_that_will_do() -> None:
    made = Scene(register("a", 30 * MB), register("b", 2 * NEED), register(size=150 * MB), size=2 * NEED + 30 * MB)
    made.tell(load(101, "a"), up(1, "a", memory=0), load(102, "b"), up(2, "b"), unload(9, "a"))
    assert made.tell(load(1)) == [forgotten("b"), stop(2, "b"), wanted()]
    assert made.tell(down(2, "b")) == [start(4, size=150 * MB), wanted()]


def on_gpu(model: str, size: int) -> Register:
    """One layer, and nothing beside it."""
    return Register(model, Candidate(1, Wants(need([size])), slots=1))


def test_only_the_device_that_is_short_is_waited_for() -> None:
    made = Scene(on_gpu("a", 100), on_gpu("b", 60), on_gpu("m", 100), gpus=(100, 60), size=0)
    made.tell(load(101, "a"), up(1, "a", memory=0), load(102, "b"), up(2, "b", memory=0))
    made.tell(unload(9, "a"), unload(10, "b"))
    assert made.tell(load(1)) == [wanted()]
    assert made.tell(down(1, "a")) == [Grant(9), Start("m", 4, 1, Layout({"cpu": 0, "gpu0": 100}, (2, 0))), wanted()]


def test_no_device_is_waited_for_that_is_not_taken() -> None:
    made = Scene(on_gpu("a", 100), on_gpu("m", 60), gpus=(100, 60), size=0)
    made.tell(load(101, "a"), up(1, "a", memory=0), unload(9, "a"))
    assert made.tell(load(1)) == [Start("m", 2, 1, Layout({"cpu": 0, "gpu1": 60}, (0, 2))), wanted()]


def test_what_a_model_gives_up_for_its_own_next_engine_is_not_given_away() -> None:
    made = full()
    made.tell(ask(9, "b"), unload(10, "a"), load(11, "a"))
    assert made.tell(ask(1)) == [Refuse(1, Like(InsufficientMemory))]
    assert made.tell(down(1, "a")) == [Grant(10), start(3, "a"), wanted("a")]


def test_a_load_that_failed_gives_its_memory_back_to_the_next() -> None:
    made = full()
    made.tell(ask(1), down(1, "a"))
    assert made.tell(broken(4)) == [Refuse(1, Like(EngineFailed)), forgotten()]
    assert made.tell(ask(9, "a")) == [start(5, "a"), wanted("a")]


def test_what_crashes_while_it_is_evicted_is_not_restarted() -> None:
    made = full()
    made.tell(ask(1))
    assert made.tell(crash(1, "a")) == []
    assert made.tell(down(1, "a")) == [start(4), wanted()]


def test_a_drain_starts_what_was_accepted_and_waits_for_memory() -> None:
    made = full()
    made.tell(ask(1), Drain())
    assert made.tell(down(1, "a")) == [start(4), wanted()]
