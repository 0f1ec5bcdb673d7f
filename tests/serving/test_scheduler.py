"""The life of one model as a table: what was before, what happens, what follows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from modelops.api.errors import AlreadyLoaded, Conflict, EngineFailed, InsufficientMemory, Overloaded
from modelops.serving.events import (
    Candidate,
    Drain,
    Effect,
    Event,
    Grant,
    Grown,
    Refuse,
    Register,
    Revoke,
    Room,
    Start,
    Wake,
)
from modelops.serving.placement import HOST, MB, Bill, Layout, Plan, Wants
from modelops.serving.scheduler import BACKOFF_S, STABLE_S, Scheduler
from modelops.serving.state import Phase
from serving.needs import need
from serving.scenes import (
    BOUNDS,
    NEED,
    Like,
    Scene,
    ask,
    broken,
    candidate,
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
    unload,
    up,
    wanted,
)

# The model "m" serves two requests at once and lets two more wait. Ways to each phase:
LOADED = (load(1), up(1))
BUSY = (*LOADED, ask(2), ask(3))
QUEUED = (*BUSY, ask(4))
STOPPING = (*LOADED, unload(9))
CRASHED = (*QUEUED, crash(1), down(1))
FAILED = (load(1), broken(1))
GONE = Like(Overloaded, "unloaded")

#: id: (what was before, what happens, what follows, the phase after it)
TABLE: dict[str, tuple[Sequence[Event], Event, list[Effect], Phase]] = {
    # available
    "the first ask loads": ((), ask(1), [start(1), wanted()], "loading"),
    "a load loads": ((), load(1), [start(1), wanted()], "loading"),
    "what is not loaded cannot be unloaded": ((), unload(1), [Refuse(1, Like(Conflict, "not loaded"))], "available"),
    "a late result changes nothing": ((), up(1), [], "available"),
    "a late failure changes nothing": ((), broken(1), [], "available"),
    "a late crash changes nothing": ((), crash(1), [], "available"),
    "a late end changes nothing": ((), down(1), [], "available"),
    "a late restart changes nothing": ((), due(), [], "available"),
    "a late end of a keep-alive changes nothing": ((), idle(), [], "available"),
    "an unknown ticket closes without effect": ((), close(7), [], "available"),
    # loading
    "an ask joins the running load": ([ask(1)], ask(2), [], "loading"),
    "a load joins the running load": ([ask(1)], load(2), [], "loading"),
    "ready: loads are told, then slots are filled in order": (
        [ask(1), load(2), ask(3)],
        up(1),
        [Grant(2), Grant(1, 1), Grant(3, 1)],
        "loaded",
    ),
    "another engine's result changes nothing": ([ask(1)], up(2), [], "loading"),
    "who went while it loaded gets no slot": ([ask(1), ask(2), close(1)], up(1), [Grant(2, 1)], "loaded"),
    "a load goes on without its caller": ([load(1), close(1)], up(1), [], "loaded"),
    "a failed load refuses all who wait": (
        [ask(1), load(2), ask(3)],
        broken(1),
        [*(Refuse(ticket, Like(EngineFailed, "no such tensor")) for ticket in (1, 3, 2)), forgotten()],
        "failed",
    ),
    "the queue is bounded while it loads, beside those that will have a slot": (
        [ask(1), ask(2), ask(3), ask(4)],
        ask(5),
        [Refuse(5, Like(Overloaded, "4 requests already wait"))],
        "loading",
    ),
    "a load is not undone without force": ([ask(1)], unload(2), [Refuse(2, Like(Conflict, "force"))], "loading"),
    "a load is undone with force": (
        [ask(1), load(2)],
        unload(3, force=True),
        [forgotten(), Refuse(1, GONE), Refuse(2, GONE), stop(1)],
        "unloading",
    ),
    "an undone load that was ready after all": ([ask(1), unload(2, force=True)], up(1), [], "unloading"),
    "an undone load that failed after all": ([ask(1), unload(2, force=True)], broken(1), [], "unloading"),
    # loaded
    "a free slot is granted at once": (LOADED, ask(2), [Grant(2, 1)], "loaded"),
    "over capacity an ask waits": (BUSY, ask(4), [], "loaded"),
    "over the queue's bound an ask is refused": (
        [*QUEUED, ask(5)],
        ask(6),
        [Refuse(6, Like(Overloaded, "try again"))],
        "loaded",
    ),
    "a freed slot goes to who waits longest": ([*QUEUED, ask(5)], close(2), [Grant(4, 1)], "loaded"),
    "a freed slot does not go to who went": ([*QUEUED, ask(5), close(4)], close(2), [Grant(5, 1)], "loaded"),
    "who waits may go": (QUEUED, close(4), [], "loaded"),
    "an unknown ticket frees no slot": (QUEUED, close(7), [], "loaded"),
    "what is loaded is not loaded again": (LOADED, load(2), [Refuse(2, Like(AlreadyLoaded))], "loaded"),
    "an idle model is unloaded at once": (LOADED, unload(9), [forgotten(), stop(1)], "unloading"),
    "unloading waits for who is served": (BUSY, unload(9), [forgotten()], "unloading"),
    "force takes the slots and refuses the queue": (
        QUEUED,
        unload(9, force=True),
        [forgotten(), Revoke(2, GONE), Revoke(3, GONE), Refuse(4, GONE), stop(1)],
        "unloading",
    ),
    "a crash is restarted at once; who waits goes on waiting": (
        QUEUED,
        crash(1),
        [stop(1), restart(0.0)],
        "restarting",
    ),
    "another engine's crash changes nothing": (QUEUED, crash(2), [], "loaded"),
    # unloading
    "who waited before the unload is still served": ([*QUEUED, unload(9)], close(2), [Grant(4, 1)], "unloading"),
    "the last who is served lets it go": ([*BUSY, unload(9), close(2)], close(3), [stop(1)], "unloading"),
    "a revoked slot is closed without effect": ([*BUSY, unload(9, force=True)], close(2), [], "unloading"),
    "an ask during the unload waits for the next engine": ([*BUSY, unload(9)], ask(4), [], "unloading"),
    "the queue is bounded while it unloads": (
        [*BUSY, unload(9), ask(4), ask(5)],
        ask(6),
        [Refuse(6, Like(Overloaded))],
        "unloading",
    ),
    "a second unload joins the first": (STOPPING, unload(10), [], "unloading"),
    "force hastens an unload": (
        [*BUSY, unload(9)],
        unload(10, force=True),
        [Revoke(2, GONE), Revoke(3, GONE), stop(1)],
        "unloading",
    ),
    "an engine that is stopped is not stopped again": (STOPPING, unload(10, force=True), [], "unloading"),
    "an engine that ends while it is unloaded is not restarted": ([*BUSY, unload(9)], crash(1), [], "unloading"),
    "its end follows when its last request has ended": (
        [*BUSY, unload(9), crash(1), close(2)],
        close(3),
        [stop(1)],
        "unloading",
    ),
    "unloaded: every unload is told": ([*STOPPING, unload(10)], down(1), [Grant(9), Grant(10)], "available"),
    "unloaded: who asked since is served by a new engine": (
        [*STOPPING, ask(10)],
        down(1),
        [Grant(9), start(2), wanted()],
        "loading",
    ),
    "unloaded: who went since brings no new engine": (
        [*STOPPING, ask(10), close(10)],
        down(1),
        [Grant(9)],
        "available",
    ),
    "unloaded: a load since then loads": (
        [*STOPPING, load(10)],
        down(1),
        [Grant(9), start(2), wanted()],
        "loading",
    ),
    "unloaded: the unload's caller is gone": ([*STOPPING, close(9)], down(1), [], "available"),
    # restarting
    "an ask waits for the restart": ([*LOADED, crash(1), down(1)], ask(2), [], "restarting"),
    "a load does not wait for the pause": (CRASHED, load(5), [start(2), wanted()], "loading"),
    "after the pause it starts": (CRASHED, due(), [start(2), wanted()], "loading"),
    "restarted: who waited is served": ([*CRASHED, due()], up(2), [Grant(4, 2)], "loaded"),
    "a slot of the dead engine is closed without effect": (CRASHED, close(2), [], "restarting"),
    "a restart that fails is tried again later": ([*CRASHED, due()], broken(2), [restart(BACKOFF_S[1])], "restarting"),
    "a restart is called off by an unload": (
        CRASHED,
        unload(9),
        [forgotten(), Refuse(4, GONE), Grant(9)],
        "available",
    ),
    "a restart that was called off does not happen": ([*CRASHED, unload(9)], due(), [], "available"),
    # failed
    "a failed model refuses for a while": (FAILED, ask(2), [Refuse(2, Like(Overloaded, "no such tensor"))], "failed"),
    "a load tries a failed model at once": (FAILED, load(2), [start(2), wanted()], "loading"),
    "a failed model can be put away": (FAILED, unload(2), [Grant(2)], "available"),
    # draining
    "a drain refuses asks": ([*LOADED, Drain()], ask(2), [Refuse(2, Like(Overloaded, "shutting down"))], "loaded"),
    "a drain refuses loads": ([Drain()], load(1), [Refuse(1, Like(Overloaded, "shutting down"))], "available"),
    "a drain serves who was accepted": ([*QUEUED, Drain()], close(2), [Grant(4, 1)], "loaded"),
    "a drain ends a load for who was accepted": ([ask(1), Drain()], up(1), [Grant(1, 1)], "loaded"),
    "a drain restarts nothing, and forgets nothing": (
        [*QUEUED, Drain()],
        crash(1),
        [stop(1), Refuse(4, Like(EngineFailed, "SIGKILL"))],
        "failed",
    ),
    "a drain answers who waits for a restart": (
        [*CRASHED, Drain()],
        due(),
        [Refuse(4, Like(EngineFailed, "SIGKILL"))],
        "failed",
    ),
    "a drain lets an unload end": ([*STOPPING, Drain()], down(1), [Grant(9)], "available"),
}


def scene(*before: Event, autoload: bool = True) -> Scene:
    return Scene(register(), *before, autoload=autoload)


@pytest.mark.parametrize(("before", "event", "effects", "phase"), TABLE.values(), ids=TABLE)
def test_event_has_effects(before: Sequence[Event], event: Event, effects: list[Effect], phase: Phase) -> None:
    made = scene(*before)
    assert made.tell(event) == effects
    assert made.phase() == phase
    held = made.scheduler.ledger.reserved
    assert len(held) == (phase in ("loading", "loaded", "unloading") or stop(1) in effects)
    assert held.keys() == made.scheduler.engines.keys()


@pytest.mark.parametrize(
    ("before", "event", "effects"),
    [
        pytest.param((), ask(1), [Refuse(1, Like(Conflict, "models.autoload is off"))], id="an ask is refused"),
        pytest.param((), load(1), [start(1), wanted()], id="a load loads"),
        pytest.param([load(1)], ask(2), [], id="an ask joins it"),
        pytest.param(
            [*STOPPING, ask(5)], down(1), [Grant(9), Refuse(5, Like(Conflict))], id="no engine after an unload"
        ),
        pytest.param([*STOPPING, ask(5), load(6)], down(1), [Grant(9), start(2), wanted()], id="but for a load"),
        pytest.param(CRASHED, due(), [start(2), wanted()], id="a crash is restarted"),
    ],
)
def test_without_autoload(before: Sequence[Event], event: Event, effects: list[Effect]) -> None:
    assert scene(*before, autoload=False).tell(event) == effects


@pytest.mark.parametrize(
    ("before", "event", "refused"),
    [
        pytest.param((), ask(1), [1], id="ask"),
        pytest.param((), load(1), [1], id="load"),
        pytest.param([*STOPPING, ask(5), load(6)], down(1), [5, 6], id="reload after an unload"),
        pytest.param(CRASHED, due(), [4, forgotten()], id="restart"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_bill(
    before: Sequence[Event], event: Event, refused: list[int | Effect]
) -> None:
    made = scene(*before)
    made.tell(register("other", 30 * MB), load(20, "other"))
    made.tell(up(made.latest, "other", memory=40 * MB), ask(21, "other"))
    made.others = made.size - 40 * MB - 99 * MB

    effects = [effect for effect in made.tell(event) if effect != Grant(9)]

    error = Like(
        InsufficientMemory, "'m' needs 100 MB and 99 MB are free (held: 'other' 40 MB; other programs: 111 MB)"
    )
    assert effects == [Refuse(one, error) if isinstance(one, int) else one for one in refused]
    assert made.phase() == "available"
    assert not made.scheduler.models["m"].engine
    made.others = 0
    effects = made.tell(ask(30))
    assert effects == [start(made.latest), wanted()], "the next one is not made to wait"
    failed = made.tell(broken(made.latest))
    assert failed == [Refuse(30, Like(EngineFailed)), forgotten()], "a first load, not a restart"


def test_the_bill_goes_with_the_error() -> None:
    (refused,) = Scene(register(), size=99 * MB).tell(ask(1))
    assert isinstance(refused, Refuse)
    assert refused.error.details["needed_mb"] == "100"
    assert refused.error.details["free_mb.cpu"] == "99"


def test_the_ledger_holds_the_need_from_the_start_and_then_what_was_measured_if_that_is_more() -> None:
    assert scene(load(1)).reserved == {1: 100}
    assert scene(load(1), up(1, memory=80 * MB)).reserved == {1: 100}
    assert scene(load(1), up(1, memory=130 * MB)).reserved == {1: 130}


def test_what_an_engine_is_seen_to_take_later_is_held_too() -> None:
    made = scene(*LOADED)
    assert made.tell(Grown("m", 1, {"cpu": 90 * MB})) == []
    assert made.reserved == {1: 100}
    assert made.tell(Grown("m", 1, {"cpu": 130 * MB, "gpu7": 5 * MB})) == []
    assert made.reserved == {1: 130}
    made.tell(unload(9), Grown("m", 1, {"cpu": 170 * MB}), Grown("m", 2, {"cpu": 170 * MB}))
    assert made.reserved == {1: 130}, "it is going, and another is not there"


def test_restarts_in_a_row_pause_longer_each_time_and_the_last_one_fails() -> None:
    made = scene(*QUEUED)
    pauses, engine = [], 1
    cleared, *effects = made.after(1).tell(crash(1))
    assert cleared == stop(1)
    made.tell(down(1))
    while isinstance(effects[0], Wake):
        pauses.append(effects[0].seconds)
        engine += 1
        assert made.tell(due()) == [start(engine), wanted()]
        effects = made.tell(broken(engine))
    assert tuple(pauses) == BACKOFF_S
    assert effects == [Refuse(4, Like(EngineFailed, "no such tensor")), forgotten()]
    assert made.phase() == "failed"


@pytest.mark.parametrize(
    ("served_s", "pause"), [(STABLE_S, BACKOFF_S[1]), (STABLE_S + 1, BACKOFF_S[0])], ids=["soon", "long after"]
)
def test_a_crash_counts_together_with_the_one_before_only_when_it_comes_soon(served_s: float, pause: float) -> None:
    made = scene().after(1000)
    made.tell(*LOADED, crash(1), down(1), due(), up(2))
    assert made.after(served_s).tell(crash(2)) == [stop(2), restart(pause)]


def test_unloading_forgets_the_crashes() -> None:
    made = scene(*LOADED, crash(1), down(1), due(), up(2), unload(9), down(2), load(10), up(3))
    assert made.tell(crash(3)) == [stop(3), restart(BACKOFF_S[0])]


def test_models_do_not_share_slots_or_queues() -> None:
    made = scene(*QUEUED, ask(5))
    assert made.tell(register("other", slots=1), load(20, "other"), up(2, "other")) == [Grant(20)]
    assert made.tell(ask(21, "other")) == [Grant(21, 2)]
    assert made.tell(close(21, "other")) == []


# --- memory ---
def test_what_a_crashed_engine_held_is_free_when_the_devices_show_it() -> None:
    made = Scene(register(), *LOADED, crash(1), size=NEED)
    assert made.reserved == {1: 100}
    assert made.tell(due()) == [wanted()], "planned, and waits for the dead one's memory"
    assert made.reserved == {1: 100, 2: 100}
    assert made.tell(down(1)) == [start(3), wanted()]
    assert made.reserved == {3: 100}


def test_a_model_is_loaded_again_into_the_memory_that_it_gives_back() -> None:
    made = Scene(register(), ask(1), up(1), unload(2), ask(3), close(1), budget=NEED)
    assert made.tell(down(1)) == [Grant(2), start(2), wanted()]


def test_what_another_model_is_about_to_take_is_not_free() -> None:
    made = Scene(register("other"), register(), size=2 * NEED - 1)
    made.tell(ask(1, "other"))
    made.started.clear()  # it has not taken anything yet
    assert made.tell(ask(2)) == [Refuse(2, Like(InsufficientMemory, "99 MB are free"))]
    made.size += 1
    assert made.tell(ask(3)) == [start(2), wanted()]


def test_the_budget_binds_however_much_is_free() -> None:
    made = Scene(register("other", 30 * MB), register(), size=999 * MB, budget=2 * NEED - 1)
    made.tell(ask(1, "other"), up(1, "other", memory=NEED))
    assert made.tell(ask(2)) == [Refuse(2, Like(InsufficientMemory, "99 MB are free"))]


def test_a_device_that_is_not_shown_any_more_is_not_counted_on() -> None:
    """A GPU that does not answer for once: what engines hold of it makes it no place for others."""
    made = Scheduler(BOUNDS, autoload=True)
    wants = Wants(need([50], host=10))
    for name in ("other", "m"):
        made.on(Register(name, Candidate(1, wants, slots=1)), now=0.0)
    with_gpu = Room({"cpu": 10, "gpu0": 50}, {})
    assert made.on(load(1, "other"), 0.0, with_gpu)[0] == Start("other", 1, 1, Layout({"cpu": 10, "gpu0": 50}, (2,)))
    made.on(up(1, "other", memory=10), 0.0)
    without = Room({"cpu": 60}, {1: {"cpu": 10, "gpu0": 50}})
    assert made.on(load(2), 0.0, without)[0] == Start("m", 2, 1, Layout({"cpu": 60}))


def test_a_preview_does_nothing_and_says_what_a_load_would_do() -> None:
    made = scene(*LOADED)
    preview = made.scheduler.books.preview
    assert preview(candidate(), "n", 0.0, made.room) == Plan(Layout({"cpu": NEED}))
    bigger = candidate(size=2 * NEED)
    assert preview(bigger, "n", 0.0, made.room) == Plan(Layout({"cpu": 2 * NEED}), ("m",))
    assert isinstance(preview(bigger, "m", 0.0, made.room, beside=True), Bill)
    assert preview(bigger, "m", 0.0, made.room, after=True) == Plan(Layout({"cpu": 2 * NEED}))
    assert made.reserved == {1: 100}
    assert made.phase() == "loaded"


@pytest.mark.parametrize(
    ("size", "others", "budget", "never", "of_others"),
    [
        pytest.param(2 * NEED, 0, 0, False, 0, id="what models hold may be free one day"),
        pytest.param(3 * NEED, NEED, 0, False, NEED, id="and what other programs hold"),
        pytest.param(2 * NEED - 1, NEED, 0, True, NEED - 1, id="not what the machine does not have"),
        pytest.param(9 * NEED, NEED, 2 * NEED - 1, True, 0, id="nor what is over the budget"),
        pytest.param(3 * NEED, 2 * NEED, 2 * NEED, False, NEED, id="of others only what models might have is told"),
    ],
)
def test_a_bill_says_what_others_hold_and_whether_it_will_ever_fit(
    size: int, others: int, budget: int, never: bool, of_others: int
) -> None:
    made = Scene(register("other"), ask(1, "other"), up(1, "other"), size=size, budget=budget)
    made.others = others
    bill = made.scheduler.books.preview(candidate(size=2 * NEED), "m", 0.0, made.room)
    assert isinstance(bill, Bill)
    assert (bill.never, bill.others[HOST]) == (never, of_others)
    told = f"held: 'other' 100 MB; other programs: {of_others // MB} MB)"
    assert (told in bill.sentence("m")) == bool(of_others)
    assert bill.details()["others_mb"] == str(of_others // MB)


def test_one_gpu_that_is_too_small_is_not_helped_by_the_ram() -> None:
    made = Scene(size=9 * NEED, gpus=(NEED,))
    wants = Wants(need(output=2 * NEED, host=1), gpu_layers=1)
    found = made.scheduler.books.preview(Candidate(1, wants, slots=1), "m", 0.0, made.room)
    assert isinstance(found, Bill) and found.never
