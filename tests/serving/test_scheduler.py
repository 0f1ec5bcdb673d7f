"""The scheduler as tables, then as a machine that is fed everything in every order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    EngineFailed,
    InsufficientMemory,
    ModelOpsError,
    Overloaded,
)
from modelops.serving.events import (
    Ask,
    Close,
    Drain,
    Effect,
    Event,
    Exited,
    Grant,
    Load,
    Loaded,
    LoadFailed,
    Refuse,
    Register,
    RestartDue,
    Revoke,
    Start,
    Stop,
    Stopped,
    Unload,
    Wake,
)
from modelops.serving.placement import MB
from modelops.serving.scheduler import BACKOFF_S, FAILED_S, STABLE_S, Phase, Scheduler

NEED, FREE = 100 * MB, 250 * MB


class Like(ModelOpsError):
    """Equal to every error of exactly this class whose message holds these words."""

    def __init__(self, kind: type[ModelOpsError], words: str = "") -> None:
        super().__init__(words)
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return type(other) is self.kind and self.message in str(other)

    __hash__ = None  # type: ignore[assignment]


def ask(ticket: int) -> Ask:
    return Ask(ticket, "m")


def load(ticket: int) -> Load:
    return Load(ticket, "m")


def unload(ticket: int, force: bool = False) -> Unload:
    return Unload(ticket, "m", force)


def close(ticket: int) -> Close:
    return Close(ticket, "m")


#: What happens to the model "m", which serves two requests at once and lets two more wait.
UP = Loaded("m", 80 * MB)
BROKEN = LoadFailed("m", EngineFailed("no such tensor"))
CRASH = Exited("m", "was killed by SIGKILL")
DOWN = Stopped("m")
DUE = RestartDue("m")
START, STOP = Start("m"), Stop("m")

#: Ways to each phase.
LOADED = (load(1), UP)
BUSY = (*LOADED, ask(2), ask(3))
QUEUED = (*BUSY, ask(4))
STOPPING = (*LOADED, unload(9))
CRASHED = (*QUEUED, CRASH)
FAILED = (load(1), BROKEN)

#: id: (what was before, what happens, what follows, the phase after it)
TABLE: dict[str, tuple[Sequence[Event], Event, list[Effect], Phase]] = {
    # available
    "the first ask loads": ((), ask(1), [START], "loading"),
    "a load loads": ((), load(1), [START], "loading"),
    "what is not loaded cannot be unloaded": ((), unload(1), [Refuse(1, Like(Conflict, "not loaded"))], "available"),
    "a late result changes nothing": ((), UP, [], "available"),
    "a late failure changes nothing": ((), BROKEN, [], "available"),
    "a late end changes nothing": ((), CRASH, [], "available"),
    "a late restart changes nothing": ((), DUE, [], "available"),
    "an unknown ticket closes without effect": ((), close(7), [], "available"),
    # loading
    "an ask joins the running load": ([ask(1)], ask(2), [], "loading"),
    "a load joins the running load": ([ask(1)], load(2), [], "loading"),
    "ready: loads are told, then slots are filled in order": (
        [ask(1), load(2), ask(3)],
        UP,
        [Grant(2), Grant(1), Grant(3)],
        "loaded",
    ),
    "who went while it loaded gets no slot": ([ask(1), ask(2), close(1)], UP, [Grant(2)], "loaded"),
    "a load goes on without its caller": ([load(1), close(1)], UP, [], "loaded"),
    "a failed load refuses all who wait": (
        [ask(1), load(2), ask(3)],
        BROKEN,
        [Refuse(ticket, Like(EngineFailed, "no such tensor")) for ticket in (1, 3, 2)],
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
        [Refuse(1, Like(Overloaded)), Refuse(2, Like(Overloaded)), STOP],
        "unloading",
    ),
    "an undone load that was ready after all": ([ask(1), unload(2, force=True)], UP, [], "unloading"),
    "an undone load that failed after all": ([ask(1), unload(2, force=True)], BROKEN, [], "unloading"),
    # loaded
    "a free slot is granted at once": (LOADED, ask(2), [Grant(2)], "loaded"),
    "over capacity an ask waits": (BUSY, ask(4), [], "loaded"),
    "over the queue's bound an ask is refused": (
        [*QUEUED, ask(5)],
        ask(6),
        [Refuse(6, Like(Overloaded, "try again"))],
        "loaded",
    ),
    "a freed slot goes to who waits longest": ([*QUEUED, ask(5)], close(2), [Grant(4)], "loaded"),
    "a freed slot does not go to who went": ([*QUEUED, ask(5), close(4)], close(2), [Grant(5)], "loaded"),
    "who waits may go": (QUEUED, close(4), [], "loaded"),
    "an unknown ticket frees no slot": (QUEUED, close(7), [], "loaded"),
    "what is loaded is not loaded again": (LOADED, load(2), [Refuse(2, Like(AlreadyLoaded))], "loaded"),
    "an idle model is unloaded at once": (LOADED, unload(9), [STOP], "unloading"),
    "unloading waits for who is served": (BUSY, unload(9), [], "unloading"),
    "force takes the slots and refuses the queue": (
        QUEUED,
        unload(9, force=True),
        [Revoke(2, Like(Overloaded)), Revoke(3, Like(Overloaded)), Refuse(4, Like(Overloaded)), STOP],
        "unloading",
    ),
    "a crash is restarted at once; who waits goes on waiting": (QUEUED, CRASH, [Wake("m", 0.0)], "restarting"),
    # unloading
    "who waited before the unload is still served": ([*QUEUED, unload(9)], close(2), [Grant(4)], "unloading"),
    "the last who is served lets it go": ([*BUSY, unload(9), close(2)], close(3), [STOP], "unloading"),
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
        [Revoke(2, Like(Overloaded)), Revoke(3, Like(Overloaded)), STOP],
        "unloading",
    ),
    "an engine that is stopped is not stopped again": (STOPPING, unload(10, force=True), [], "unloading"),
    "an engine that ends while it is unloaded is not restarted": ([*BUSY, unload(9)], CRASH, [], "unloading"),
    "unloaded: every unload is told": ([*STOPPING, unload(10)], DOWN, [Grant(9), Grant(10)], "available"),
    "unloaded: who asked since is served by a new engine": ([*STOPPING, ask(10)], DOWN, [Grant(9), START], "loading"),
    "unloaded: who went since brings no new engine": (
        [*STOPPING, ask(10), close(10)],
        DOWN,
        [Grant(9)],
        "available",
    ),
    "unloaded: a load since then loads": ([*STOPPING, load(10)], DOWN, [Grant(9), START], "loading"),
    "unloaded: the unload's caller is gone": ([*STOPPING, close(9)], DOWN, [], "available"),
    # restarting
    "an ask waits for the restart": ([*LOADED, CRASH], ask(2), [], "restarting"),
    "a load does not wait for the pause": (CRASHED, load(5), [START], "loading"),
    "after the pause it starts": (CRASHED, DUE, [START], "loading"),
    "restarted: who waited is served": ([*CRASHED, DUE], UP, [Grant(4)], "loaded"),
    "a slot of the dead engine is closed without effect": (CRASHED, close(2), [], "restarting"),
    "a restart that fails is tried again later": ([*CRASHED, DUE], BROKEN, [Wake("m", BACKOFF_S[1])], "restarting"),
    "a restart is called off by an unload": (
        CRASHED,
        unload(9),
        [Grant(9), Refuse(4, Like(Overloaded, "unloaded"))],
        "available",
    ),
    "a restart that was called off does not happen": ([*CRASHED, unload(9)], DUE, [], "available"),
    # failed
    "a failed model refuses for a while": (FAILED, ask(2), [Refuse(2, Like(EngineFailed, "no such tensor"))], "failed"),
    "a load tries a failed model at once": (FAILED, load(2), [START], "loading"),
    "a failed model can be put away": (FAILED, unload(2), [Grant(2)], "available"),
    # draining
    "a drain refuses asks": ([*LOADED, Drain()], ask(2), [Refuse(2, Like(Overloaded, "shutting down"))], "loaded"),
    "a drain refuses loads": ([Drain()], load(1), [Refuse(1, Like(Overloaded, "shutting down"))], "available"),
    "a drain serves who was accepted": ([*QUEUED, Drain()], close(2), [Grant(4)], "loaded"),
    "a drain ends a load for who was accepted": ([ask(1), Drain()], UP, [Grant(1)], "loaded"),
    "a drain restarts nothing": ([*QUEUED, Drain()], CRASH, [Refuse(4, Like(EngineFailed, "SIGKILL"))], "failed"),
    "a drain answers who waits for a restart": (
        [*CRASHED, Drain()],
        DUE,
        [Refuse(4, Like(EngineFailed, "SIGKILL"))],
        "failed",
    ),
}


def scheduler(before: Sequence[Event] = (), *, autoload: bool = True) -> Scheduler:
    made = Scheduler(max_queue=2, autoload=autoload)
    for event in (Register("m", NEED, slots=2), *before):
        made.on(event, now=0.0, free=FREE)
    return made


@pytest.mark.parametrize(("before", "event", "effects", "phase"), TABLE.values(), ids=TABLE)
def test_event_has_effects(before: Sequence[Event], event: Event, effects: list[Effect], phase: Phase) -> None:
    made = scheduler(before)
    assert made.on(event, now=0.0, free=FREE) == effects
    assert made.models["m"].phase == phase
    assert set(made.ledger.reserved) == ({"m"} if phase in ("loading", "loaded", "unloading") else set())


@pytest.mark.parametrize(
    ("before", "event", "effects"),
    [
        pytest.param((), ask(1), [Refuse(1, Like(Conflict, "models.autoload is off"))], id="an ask is refused"),
        pytest.param((), load(1), [START], id="a load loads"),
        pytest.param([*STOPPING, ask(5)], DOWN, [Grant(9), Refuse(5, Like(Conflict))], id="no engine after an unload"),
        pytest.param([*STOPPING, ask(5), load(6)], DOWN, [Grant(9), START], id="but for a load"),
        pytest.param(CRASHED, DUE, [START], id="a crash is restarted"),
    ],
)
def test_without_autoload(before: Sequence[Event], event: Event, effects: list[Effect]) -> None:
    assert scheduler(before, autoload=False).on(event, now=0.0, free=FREE) == effects


@pytest.mark.parametrize(
    ("before", "event", "refused"),
    [
        pytest.param((), ask(1), [1], id="ask"),
        pytest.param((), load(1), [1], id="load"),
        pytest.param([*STOPPING, ask(5), load(6)], DOWN, [5, 6], id="reload after an unload"),
        pytest.param(CRASHED, DUE, [4], id="restart"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_bill(before: Sequence[Event], event: Event, refused: list[int]) -> None:
    made = scheduler(before)
    made.on(Register("other", 30 * MB, slots=1), now=0.0)
    made.on(Load(20, "other"), now=0.0, free=FREE)
    made.on(Loaded("other", 40 * MB), now=0.0)

    effects = [effect for effect in made.on(event, now=0.0, free=NEED - 1) if effect != Grant(9)]

    assert effects == [Refuse(ticket, Like(InsufficientMemory, "'m' needs 100 MB")) for ticket in refused]
    assert isinstance(effects[0], Refuse)
    assert effects[0].error.details == {
        "needed_mb": "100",
        "free_mb": "99",
        "reserved_mb": "40",
        "evictable_mb": "40",
        "held_mb.other": "40",
    }
    assert made.models["m"].phase == "available"
    assert made.on(ask(30), now=0.0, free=NEED) == [START], "the next one is not made to wait"
    assert made.on(BROKEN, now=0.0) == [Refuse(30, Like(EngineFailed))], "and counts as a first load, not a restart"


def test_the_ledger_holds_the_need_from_the_start_and_then_what_was_measured_if_that_is_more() -> None:
    made = scheduler([load(1)])
    assert made.ledger.reserved == {"m": NEED}
    made.on(Loaded("m", 80 * MB), now=0.0)
    assert made.ledger.reserved == {"m": NEED}

    made = scheduler([load(1)])
    made.on(Loaded("m", 130 * MB), now=0.0)
    assert made.ledger.reserved == {"m": 130 * MB}


def test_restarts_in_a_row_pause_longer_each_time_and_the_last_one_fails() -> None:
    made = scheduler(QUEUED)
    pauses = []
    effects = made.on(CRASH, now=1.0)
    while isinstance(effects[0], Wake):
        pauses.append(effects[0].seconds)
        assert made.on(DUE, now=1.0, free=FREE) == [START]
        effects = made.on(BROKEN, now=1.0)
    assert tuple(pauses) == BACKOFF_S
    assert effects == [Refuse(4, Like(EngineFailed, "no such tensor"))]
    assert made.models["m"].phase == "failed"


@pytest.mark.parametrize(
    ("served_s", "pause"), [(STABLE_S, BACKOFF_S[1]), (STABLE_S + 1, BACKOFF_S[0])], ids=["soon", "long after"]
)
def test_a_crash_counts_together_with_the_one_before_only_when_it_comes_soon(served_s: float, pause: float) -> None:
    made = scheduler([*LOADED, CRASH, DUE, UP])
    assert made.on(CRASH, now=served_s) == [Wake("m", pause)]


def test_unloading_forgets_the_crashes() -> None:
    made = scheduler([*LOADED, CRASH, DUE, UP, unload(9), DOWN, load(10), UP])
    assert made.on(CRASH, now=0.0) == [Wake("m", BACKOFF_S[0])]


def test_a_failed_model_says_when_to_try_again_and_then_lets_one_try() -> None:
    made = scheduler(FAILED)
    (refused,) = made.on(ask(2), now=FAILED_S - 5, free=FREE)
    assert isinstance(refused, Refuse)
    assert refused.error.retry_after_s == 5
    assert made.on(ask(3), now=FAILED_S, free=FREE) == [START]
    assert made.on(ask(4), now=FAILED_S, free=FREE) == []


def test_models_do_not_share_slots_or_queues() -> None:
    made = scheduler([*QUEUED, ask(5)])
    made.on(Register("other", NEED, slots=1), now=0.0)
    made.on(Load(20, "other"), now=0.0, free=FREE)
    assert made.on(Loaded("other", 0), now=0.0) == [Grant(20)]
    assert made.on(Ask(21, "other"), now=0.0) == [Grant(21)]
    assert made.on(Close(21, "other"), now=0.0) == []


# --- everything, in every order ---
SLOTS = {"a": 1, "b": 2, "c": 3}
CAPACITY = 250
NAMES = st.sampled_from(sorted(SLOTS))


@dataclass
class Ticket:
    """One call and how often it was answered."""

    model: str
    kind: Literal["ask", "load", "unload"]
    open: bool = True
    answers: int = 0


class Pools(RuleBasedStateMachine):
    """A pool without processes: it performs each effect some time later, in any order and with any result."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.calls: dict[int, Ticket] = {}
        self.granted: dict[int, str] = {}  # who holds a slot, as callers know it
        self.held: dict[str, int] = {}  # what each engine takes
        self.pending: list[Start | Stop | Wake] = []
        self.running: set[str] = set()
        self.made = Scheduler(max_queue=2, autoload=True)

    @initialize(autoload=st.booleans(), max_queue=st.integers(1, 4))
    def begin(self, autoload: bool, max_queue: int) -> None:
        self.made = Scheduler(max_queue=max_queue, autoload=autoload)
        for name, slots in SLOTS.items():
            self.made.on(Register(name, 100, slots), self.now)

    def tell(self, event: Event) -> None:
        for effect in self.made.on(event, self.now, CAPACITY - sum(self.held.values())):
            match effect:
                case Grant(ticket) | Refuse(ticket, _):
                    call = self.calls[ticket]
                    call.answers += 1
                    assert call.open, f"{ticket} was answered after its caller had gone"
                    assert call.answers == 1, f"{ticket} was answered twice"
                    if call.kind == "ask" and isinstance(effect, Grant):
                        assert call.model in self.running, "a slot of no engine"
                        self.granted[ticket] = call.model
                case Revoke(ticket, _):
                    del self.granted[ticket]
                case Start(name):
                    assert name not in self.running, "two engines of one model"
                    assert not {Start(name), Stop(name)} & set(self.pending), "two engines of one model"
                    self.held[name] = 100
                    self.pending.append(effect)
                case Stop(name):
                    assert name in self.running or Start(name) in self.pending, "nothing to stop"
                    assert effect not in self.pending, "stopped twice"
                    self.pending.append(effect)
                case Wake():
                    self.pending.append(effect)

    def call(self, kind: Literal["ask", "load", "unload"], name: str) -> int:
        number = len(self.calls) + 1
        self.calls[number] = Ticket(name, kind)
        return number

    # --- callers ---
    @rule(target=tickets, name=NAMES)
    def ask(self, name: str) -> int:
        number = self.call("ask", name)
        self.tell(Ask(number, name))
        return number

    @rule(target=tickets, name=NAMES)
    def load(self, name: str) -> int:
        if self.made.models[name].phase in ("available", "failed"):  # what the pool does before it loads
            self.tell(Register(name, 100, SLOTS[name]))
        number = self.call("load", name)
        self.tell(Load(number, name))
        return number

    @rule(target=tickets, name=NAMES, force=st.booleans())
    def unload(self, name: str, force: bool) -> int:
        number = self.call("unload", name)
        self.tell(Unload(number, name, force))
        return number

    @rule(number=consumes(tickets))
    def close(self, number: int) -> None:
        self.hang_up(number)

    def hang_up(self, number: int) -> None:
        self.calls[number].open = False
        self.granted.pop(number, None)
        self.tell(Close(number, self.calls[number].model))

    # --- engines ---
    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 9), good=st.booleans(), memory=st.integers(50, 120))
    def perform(self, which: int, good: bool, memory: int) -> None:
        effect = self.pending.pop(which % len(self.pending))
        name = effect.model
        match effect:
            case Wake():
                self.tell(RestartDue(name))
            case Stop():
                self.pending = [other for other in self.pending if other != Start(name)]
                self.running.discard(name)
                del self.held[name]
                self.tell(Stopped(name))
            case Start() if good:
                self.running.add(name)
                if Stop(name) not in self.pending:
                    self.held[name] = max(100, memory)
                self.tell(Loaded(name, memory))
            case Start() if Stop(name) not in self.pending:
                del self.held[name]
                self.tell(LoadFailed(name, EngineFailed("as told")))
            case Start():  # it failed while it was being stopped: the stop reports it
                self.tell(LoadFailed(name, EngineFailed("as told")))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2))
    def crash(self, which: int) -> None:
        name = sorted(self.running)[which % len(self.running)]
        if self.made.models[name].phase == "loaded":
            self.running.discard(name)
            del self.held[name]
            self.granted = {ticket: model for ticket, model in self.granted.items() if model != name}
        self.tell(Exited(name, "was killed by SIGKILL"))  # while it is unloaded, the stop reports it

    # --- the rest of the world ---
    @rule(seconds=st.sampled_from([0.1, FAILED_S, STABLE_S + 1]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(really=st.integers(0, 9))
    def drain(self, really: int) -> None:
        if really == 9:
            self.tell(Drain())

    @invariant()
    def slots_are_held_by_those_who_were_granted_one(self) -> None:
        for name, model in self.made.models.items():
            assert len(model.active) <= SLOTS[name]
            assert model.active == {ticket for ticket, of in self.granted.items() if of == name}

    @invariant()
    def the_ledger_holds_what_the_engines_take(self) -> None:
        assert self.made.ledger.reserved == self.held

    @invariant()
    def nobody_waits_where_nothing_will_happen(self) -> None:
        for model in self.made.models.values():
            if model.phase in ("available", "failed"):
                assert not (model.queue or model.later or model.loads or model.unloads or model.crashes)

    def teardown(self) -> None:
        """All that was begun is carried out, and everybody who was served hangs up: then nothing is left over."""
        while self.pending or self.granted:
            while self.pending:
                self.perform(0, good=True, memory=100)
            for number in list(self.granted):
                self.hang_up(number)
        assert [number for number, call in self.calls.items() if call.open and not call.answers] == []
        for name, model in self.made.models.items():
            assert model.phase in ("available", "loaded", "failed"), f"'{name}' is stuck"
            assert not (model.active or model.queue or model.later or model.loads or model.unloads)


TestPools = Pools.TestCase
TestPools.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# --- memory ---
def test_a_model_is_loaded_again_into_the_memory_that_it_gives_back() -> None:
    made = Scheduler(max_queue=2, autoload=True, budget=NEED)
    for event in (Register("m", NEED, slots=1), ask(1), Loaded("m", 0), unload(2), ask(3), Close(1, "m")):
        made.on(event, now=0.0, free=FREE)
    assert made.on(Stopped("m"), now=0.0, free=FREE) == [Grant(2), START]


def test_what_another_model_is_about_to_take_is_not_free() -> None:
    made = Scheduler(max_queue=2, autoload=True)
    for event in (Register("other", NEED, slots=1), Register("m", NEED, slots=1), Ask(1, "other")):
        made.on(event, now=0.0, free=2 * NEED - 1)
    assert made.on(ask(2), now=0.0, free=2 * NEED - 1) == [Refuse(2, Like(InsufficientMemory))]
    made.on(Loaded("other", 0), now=0.0)  # from now on the machine itself shows what it takes
    assert made.on(ask(3), now=0.0, free=NEED) == [START]
