"""Models that goals keep: what evicts them, what does not, what a bill says of them, and when they are let go."""

from __future__ import annotations

import asyncio

import pytest

from modelops.api.errors import InsufficientMemory
from modelops.serving.events import Event, Grant, Grown, Keep, Look, Refuse, Share
from modelops.serving.placement import HOST, MB, Bill, Holder, Plan, Wants, place, together
from serving.house import Make, Shown
from serving.needs import machine, need
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
    forgotten,
    idle,
    load,
    register,
    start,
    stop,
    unload,
    up,
    wake,
)


def keep(**names: int) -> Keep:
    return Keep(names)


def two(*kept: Keep, size: int = 250 * MB) -> Scene:
    """`a` and `b` are loaded and fill the machine; `m` is known, and has no room."""
    made = Scene(register("a", reload_s=0.1), register("b", reload_s=9), register(), *kept, size=size)
    made.tell(load(1, "a"), up(1, "a"), load(2, "b"), up(2, "b"))
    return made


# --- who is evicted ---
def test_what_is_kept_is_not_evicted_though_it_is_the_cheapest() -> None:
    assert two().tell(ask(3))[0] == forgotten("a")
    assert two(keep(a=1)).tell(ask(3))[0] == forgotten("b")


def test_where_all_are_kept_the_bill_says_so() -> None:
    made = two(keep(a=1, b=1))
    (refused,) = made.tell(ask(3))
    assert refused == Refuse(3, Like(InsufficientMemory, "'a' 100 MB, kept by a goal; 'b' 100 MB, kept by a goal"))
    assert isinstance(refused, Refuse)
    assert "cancel a goal that keeps one" in refused.error.message
    assert made.phase("a") == made.phase("b") == "loaded"


def test_what_is_kept_with_a_higher_number_evicts_what_is_with_a_lower_but_only_where_nothing_else_will_do() -> None:
    assert two(keep(a=1, b=2, m=2)).tell(ask(3))[:2] == [forgotten("a"), stop(1, "a")]
    assert two(keep(a=1, m=2)).tell(ask(3))[:2] == [forgotten("b"), stop(2, "b")], "nobody keeps b"
    assert two(keep(a=2, b=2, m=2)).tell(ask(3)) == [Refuse(3, Like(InsufficientMemory))], (
        "of equals who is there stays"
    )
    assert two(keep(a=1, b=1)).tell(ask(3)) == [Refuse(3, Like(InsufficientMemory))], "nobody keeps m"


def test_what_is_in_use_stays_also_for_what_is_kept() -> None:
    made = two(keep(m=9))
    made.tell(ask(3, "a"), ask(4, "b"))
    assert made.tell(load(5)) == [Refuse(5, Like(InsufficientMemory))]


def test_it_is_kept_from_whenever_it_is_known_and_as_long_as_it_is_said() -> None:
    made = Scene(keep(a=0), size=250 * MB)
    made.tell(register("a"), register("b"), register(), load(1, "a"), up(1, "a"), load(2, "b"), up(2, "b"))
    assert made.tell(ask(3))[0] == forgotten("b")
    made.tell(down(2, "b"), up(3), close(3), keep())
    assert made.tell(ask(4, "b"))[0] == forgotten("a")


def test_an_unload_that_is_asked_for_is_done() -> None:
    assert two(keep(a=1)).tell(unload(3, "a")) == [forgotten("a"), stop(1, "a")]


# --- coming back ---
def test_what_is_kept_and_was_refused_is_loaded_as_soon_as_there_is_room() -> None:
    made = two(keep(m=1))
    made.tell(ask(3, "a"), ask(4, "b"))
    assert made.tell(load(5)) == [Refuse(5, Like(InsufficientMemory))]
    assert made.tell(close(3, "a"))[:2] == [forgotten("a"), stop(1, "a")]
    assert made.tell(down(1, "a"))[0] == start(4)
    assert made.tell(up(4)) == []
    assert made.phase() == "loaded"


def test_its_place_is_kept_for_it_meanwhile_and_whoever_is_refused_is_told() -> None:
    made = two(keep(m=1), size=300 * MB)
    made.tell(register("c"), ask(3, "a"), ask(4, "b"))
    made.others = 50 * MB
    assert made.tell(load(5)) == [Refuse(5, Like(InsufficientMemory))]
    made.others = 0
    made.tell(register("c", 60 * MB))
    (refused,) = [effect for effect in made.tell(load(6, "c")) if isinstance(effect, Refuse)]
    assert refused == Refuse(6, Like(InsufficientMemory, "'m' 100 MB, kept by a goal")), "there are 100 MB"


def test_an_engine_that_is_about_to_be_restarted_keeps_its_place() -> None:
    made = Scene(register(), register("b"), keep(m=1), load(1), up(1), size=150 * MB)
    made.tell(crash(1), down(1))
    assert made.phase() == "restarting"
    assert made.tell(ask(2, "b")) == [Refuse(2, Like(InsufficientMemory, "'m' 100 MB, kept by a goal"))]
    assert made.tell(due())[0] == start(2)
    made.tell(up(2), keep(), crash(2), down(2))
    assert made.tell(ask(3, "b"))[0] == start(3, "b"), "nobody keeps it any more"


def test_nobody_waits_for_what_has_no_place_at_all() -> None:
    made = Scene(register("big", 300 * MB), register(), keep(big=1))
    assert made.tell(load(1, "big")) == [Refuse(1, Like(InsufficientMemory))]
    assert made.tell(load(2))[0] == start(1)
    made = two(keep(a=5, b=5, m=1))
    made.tell(register("c", 50 * MB))
    assert made.tell(load(3)) == [Refuse(3, Like(InsufficientMemory))]
    assert made.tell(load(4, "c"))[0] == start(3, "c", 50 * MB), "what goes before m keeps its place"


def test_what_is_let_go_waits_no_more() -> None:
    made = two(keep(m=1))
    made.tell(ask(3, "a"), ask(4, "b"), load(5), keep())
    assert made.tell(close(3, "a")) == []


# --- when it is looked for room ---
def test_what_waits_for_room_is_loaded_when_it_is_looked_at_and_others_have_given_some_back() -> None:
    made = two(keep(m=1), size=350 * MB)
    made.others = 100 * MB
    made.tell(ask(3, "a"), ask(4, "b"), load(5))
    assert made.tell(Look()) == []
    made.others = 0
    assert start(3) in made.tell(Look())
    assert made.tell(Look()) == []


def test_only_what_may_make_room_is_looked_at_for_it() -> None:
    made = two(keep(m=1, b=1))

    def looked_at(*events: Event) -> list[bool]:
        return [made.scheduler.books.needs_room(event) for event in events]

    made.tell(ask(3, "a"), ask(4, "a"), ask(5, "b"))
    assert not any(looked_at(close(3, "a"), up(1, "a"), Look(), unload(9, "a"), keep(a=1))), "nobody waits"
    assert looked_at(load(6)) == [True]
    made.tell(load(6))
    assert looked_at(close(3, "a")) == [False], "another request is in flight"
    assert looked_at(close(5, "b")) == [False], "it stays when it is idle"
    assert not any(looked_at(ask(7, "a"), Grown("a", 1, {}), idle("a"), register("c")))
    assert all(looked_at(down(1, "a"), crash(1, "a"), broken(1, "a"), unload(9, "a"), Look(), keep(m=1)))
    made.tell(close(3, "a"))
    assert looked_at(close(4, "a")) == [True], "it is idle then"


# --- its keep-alive ---
def test_no_keep_alive_ends_it() -> None:
    made = Scene(register(keep_alive_s=60), keep(m=0), load(1))
    assert made.tell(up(1)) == [Grant(1)]
    assert made.after(100).tell(idle()) == []
    assert made.tell(ask(2, keep_alive_s=0), close(2)) == []


def test_a_timer_that_was_set_before_does_nothing_while_it_is_kept() -> None:
    made = Scene(register(keep_alive_s=60), load(1), up(1), keep(m=0))
    assert made.after(60).tell(idle()) == []


def test_let_go_its_keep_alive_counts_from_then_on() -> None:
    made = Scene(register(keep_alive_s=60), keep(m=0), load(1), up(1))
    assert made.after(100).tell(keep()) == [wake(60)]
    assert made.after(59).tell(idle()) == []
    assert made.after(1).tell(idle()) == [forgotten(), stop(1)]


def test_let_go_with_none_left_it_leaves_at_once_and_in_use_when_that_ends() -> None:
    made = Scene(register(keep_alive_s=0), keep(m=0), ask(1))
    assert made.tell(up(1), close(1)) == []
    assert made.tell(keep()) == [forgotten(), stop(1)]
    made = Scene(register(keep_alive_s=0), keep(m=0), ask(1), up(1))
    assert made.tell(keep()) == []
    assert made.tell(close(1)) == [forgotten(), stop(1)]


def test_saying_it_again_changes_nothing() -> None:
    made = Scene(register(keep_alive_s=60), keep(m=0), load(1), up(1))
    assert made.tell(keep(m=0)) == []
    assert made.tell(keep(m=3)) == []


# --- placing ---
def test_evicting_what_is_kept_costs_more_than_all_else_together() -> None:
    free, wants = machine(0), Wants(need(host=60))
    holders = [Holder("kept", {HOST: 60}, 1e9, kept=True), *(Holder(f"m{n}", {HOST: 20}, 1000.0) for n in range(3))]
    plan = place(wants, free, holders)
    assert isinstance(plan, Plan)
    assert plan.evict == ("m0", "m1", "m2")


def test_together_the_first_without_a_place_is_named() -> None:
    wants = {name: Wants(need(host=40 * MB)) for name in ("a", "b", "c")}
    assert together(wants, machine(120 * MB)) is None
    found = together(wants, machine(119 * MB))
    assert found
    name, bill = found
    assert (name, bill.kept, bill.evictable) == ("c", ("a", "b"), {HOST: 0})


# --- what learns goes on beside what only looks ---
def test_a_look_teaches_nothing_of_how_long_requests_take() -> None:
    made = Scene(register(), load(1), up(1))
    pace = made.scheduler.models["m"].pace
    made.tell(ask(2))
    before = made.scheduler.models["m"].pace
    assert before == pace
    quiet = ask(3)
    made.tell(type(quiet)(3, "m", share=Share("looks", 0.1, quiet=True)))
    made.after(1).tell(answered(3))
    assert made.scheduler.models["m"].pace == pace
    made.tell(answered(2))
    assert made.scheduler.models["m"].pace != pace


def test_what_was_evicted_for_a_kept_one_is_loaded_again_where_there_is_room() -> None:
    made = two(keep(a=1, b=2, m=2))
    assert made.tell(ask(3), down(1, "a"))[0] == start(4)
    made.tell(up(4), close(3), keep(a=1, b=2), register("a"))
    assert made.tell(load(4, "a"))[:2] == [forgotten(), stop(4)]
    assert made.tell(down(4))[0] == start(6, "a")
    assert made.tell(up(6, "a")) == [Grant(4)]


# --- the pool ---
async def test_a_pool_keeps_models_against_a_storm(make: Make) -> None:
    house = await make(memory={"budget_mb": 70}, models={"keep_alive": 0.05})
    house.pool.keep({"a": 1})
    await house.load("a")
    pid = house.pool.view("a").engine_pid
    for _ in range(3):
        with pytest.raises(InsufficientMemory, match="kept by a goal"):
            await house.ask("b")
    await asyncio.sleep(0.1)  # longer than its keep-alive
    assert house.pool.view("a").engine_pid == pid
    house.pool.keep({})
    await house.until(lambda view: view.status == "available")
    assert await house.ask("b") == "w0 w1 w2 "


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    made = Shown()
    monkeypatch.setattr("serving.house.ThisMachine", lambda: made)
    return made


async def test_while_a_kept_model_waits_for_room_requests_are_answered_without_a_look_at_the_devices(
    make: Make, shown: Shown
) -> None:
    house = await make()
    await house.load("b")
    house.pool.keep({"a": 2, "b": 2})
    shown.less = 2**60
    with pytest.raises(InsufficientMemory):
        await house.load("a")
    await house.ask("b")  # with the first answer it is measured
    began, shown.looks = asyncio.get_running_loop().time(), 0
    for _ in range(20):
        await house.ask("b")
    assert house.pool.waits("a")
    assert shown.looks <= 2 * (1 + asyncio.get_running_loop().time() - began)
    shown.less = 0
    freed = asyncio.get_running_loop().time()
    await house.until(lambda view: view.status == "loaded")
    assert asyncio.get_running_loop().time() - freed < 3, "nobody has asked for anything"


async def test_what_waits_for_room_is_in_use(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    house.pool.keep({"a": 1})
    async with house.lease("b"):
        assert house.pool.in_use("a") == set()
        with pytest.raises(InsufficientMemory):
            await house.ask("a")
        assert house.pool.waits("a")
        assert house.pool.in_use("a") == {1}, "its file is not to be removed"
        house.pool.keep({})
        assert (house.pool.waits("a"), house.pool.in_use("a")) == (False, set())


async def test_the_same_again_is_no_event(make: Make) -> None:
    house = await make()
    house.pool.keep({"a": 1, "nobody": 2})
    turned = asyncio.ensure_future(house.pool.turned())
    await asyncio.sleep(0)
    house.pool.keep({"nobody": 2, "a": 1})
    await asyncio.sleep(0)
    assert not turned.done()
    house.pool.keep({"a": 2})
    await turned
    assert house.pool.kept == {"a": 2}


async def test_what_cannot_be_held_together_is_told_without_loading_anything(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    versions = {name: house.catalog.active(name) for name in ("a", "b")}
    assert await house.pool.unfit({"a": versions["a"]}) is None
    found = await house.pool.unfit(versions)
    assert found
    name, bill = found
    assert (name, isinstance(bill, Bill), bill.kept) == ("b", True, ("a",))
    await house.load("b")
    again = await house.pool.unfit(versions)
    assert again
    assert again[0] == "b", "what is loaded now changes nothing"
    assert house.starts == 1


async def test_a_quiet_request_makes_the_pool_not_busy(make: Make) -> None:
    house = await make()
    told: list[bool] = []
    house.pool.on_busy = told.append
    await house.load("a")
    deadline = asyncio.get_running_loop().time() + 20
    async with house.pool.lease("a", deadline, share=Share("looks", 0.1, quiet=True)):
        pass
    assert told == []
    await house.ask("a")
    assert told == [True, False]


async def test_what_waits_for_room_is_loaded_in_the_version_that_was_activated_meanwhile(make: Make) -> None:
    house = await make(memory={"budget_mb": 70})
    first = house.catalog.active("a")
    other = house.catalog.active("b")
    second = await house.catalog.register("a", other.shown_path, "llm")
    house.pool.keep({"a": 1})
    async with house.pool.lease("b", asyncio.get_running_loop().time() + 20):
        with pytest.raises(InsufficientMemory):
            await house.ask("a")
        await house.pool.activate(second, drain_first=False, deadline=asyncio.get_running_loop().time() + 20)
    await house.until(lambda view: view.status == "loaded")
    assert house.pool.view("a").version.number == second.number != first.number
    assert house.catalog.active("a").number == second.number
