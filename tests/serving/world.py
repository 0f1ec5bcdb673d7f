"""A pool without processes, in virtual time: it performs each effect when it is told to, in any order, with any result.

After every event it holds the scheduler to what must always be so; `run_out` to what must be so in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelops.api.errors import EngineFailed, InsufficientMemory, Overloaded
from modelops.serving.admission import Bounds
from modelops.serving.breaker import LONGEST_S
from modelops.serving.events import (
    NO_ROOM,
    Ask,
    Candidate,
    Close,
    Drain,
    Effect,
    Event,
    Exited,
    Grant,
    IdleDue,
    Keep,
    Load,
    Loaded,
    LoadFailed,
    Look,
    Outcome,
    Refuse,
    Register,
    Residency,
    Residents,
    RestartDue,
    Revoke,
    Room,
    Share,
    Start,
    Stop,
    Stopped,
    Swap,
    Unload,
    Usage,
    Wake,
)
from modelops.serving.placement import HOST, CpuLayers, Plan, Wants, place
from modelops.serving.scheduler import Scheduler
from modelops.serving.state import Engine, Model
from serving.needs import machine, need

SIZES = machine(600, 300, 200)
#: Of each queue.
BOUNDS = Bounds(requests=3, prompt_tokens=500)


LEFT, NOTHING = Outcome(), Usage()


def _candidate(build: int, wants: Wants, slots: int, reload_s: float = 1.0) -> Candidate:
    return Candidate(build, wants, slots, reload_s, recipe=build)


#: Each model as it is, and as the version that takes its place.
CANDIDATES: Mapping[str, tuple[Candidate, Candidate]] = {
    "small": (
        _candidate(1, Wants(need([30, 30], output=10, host=10, compute=5)), slots=1),
        _candidate(2, Wants(need([50, 50], output=10, host=10, compute=5)), slots=2),
    ),
    "large": (
        _candidate(3, Wants(need([60] * 5, output=20, tied=10, host=30, compute=10)), slots=2, reload_s=5),
        _candidate(4, Wants(need([40] * 5, output=20, tied=10, host=30, compute=10), gpu_layers=4), slots=2),
    ),
    "host": (
        _candidate(5, Wants(need([100], host=150), gpu_layers=0), slots=3, reload_s=2),
        _candidate(6, Wants(need([100], host=300), gpu_layers=0), slots=3),
    ),
    "exact": (
        _candidate(7, Wants(need([70, 70, 70], host=20, compute=20), gpu_layers=99), slots=1),
        _candidate(8, Wants(need([70, 70, 70], host=20, compute=20), gpu_layers=2), slots=1),
    ),
}


@dataclass
class Call:
    """One ticket and how often it was answered."""

    model: str
    open: bool = True
    answers: int = 0
    ask: Ask | None = None  # of a request
    tokens: int = 0  # of its prompt, as they were estimated when it asked


@dataclass
class Process:
    """An engine that was started, until the scheduler has heard that it is gone. `takes`: of each device."""

    model: str
    reserve: Mapping[str, int]
    state: Literal["starting", "serving", "dead"] = "starting"
    takes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What a world begins with. `shown`: the GPUs show what engines take of them, as simulated ones do not.

    `drain_after` so many events the coordinator begins to end; 0: never.
    """

    residencies: Mapping[str, Residency]
    cpu_layers: CpuLayers = "before_eviction"
    budget: int = 0
    autoload: bool = True
    shown: bool = True
    drain_after: int = 0


class World:
    """Models on a machine with two GPUs, and another process that takes and gives back memory."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = 0.0
        self.calls: dict[int, Call] = {}
        self.slots: dict[int, int] = {}  # which engine's slot a ticket holds, as its caller knows it
        self.processes: dict[int, Process] = {}
        self.started: set[int] = set()  # all engines that ever were
        self.unanswered: set[str] = set()  # models that were loaded on purpose, and have not answered since
        self.stopped: set[int] = set()
        self.stops: dict[int, str] = {}  # engines that are to be stopped: of which model
        self.timers: dict[tuple[str, type], tuple[float, RestartDue | IdleDue]] = {}
        self.others = dict.fromkeys(SIZES, 0)
        self.wanted: set[str] = set()
        self.events = 0
        self.made = Scheduler(
            BOUNDS, autoload=settings.autoload, budget=settings.budget, cpu_layers=settings.cpu_layers
        )
        for name, residency in settings.residencies.items():
            self.tell(Register(name, CANDIDATES[name][0], residency))

    # --- the machine ---
    def room(self) -> Room:
        """What it shows."""
        taken = {
            number: {device: size for device, size in process.takes.items() if self.settings.shown or device == HOST}
            for number, process in self.processes.items()
        }
        free = {
            device: size - self.others[device] - sum(takes.get(device, 0) for takes in taken.values())
            for device, size in SIZES.items()
        }
        return Room(free, taken)

    def left(self, device: str, engines: set[int]) -> int:
        """What nobody has of `device` when these engines have all that was reserved for them, and no others are."""
        reserved = self.made.ledger.reserved

        def share(number: int) -> int:
            takes = self.processes[number].takes.get(device, 0) if number in self.processes else 0
            return max(reserved[number].get(device, 0), takes)

        left = SIZES[device] - self.others[device] - sum(share(number) for number in engines)
        if self.settings.budget and device == HOST:
            left = min(left, self.settings.budget - sum(reserved[number].get(HOST, 0) for number in engines))
        return left

    def another_process(self, device: str, part: float) -> None:
        """It has that part of what engines have not taken."""
        taken = sum(process.takes.get(device, 0) for process in self.processes.values())
        self.others[device] = int((SIZES[device] - taken) * part)
        self.tell(Look())

    # --- events and effects ---
    def tell(self, event: Event) -> None:
        """What follows is kept, to be performed later."""
        self.events += 1
        if self.events == self.settings.drain_after:
            self.made.on(Drain(), self.now)
        unused = {name for name, model in self.made.models.items() if not model.active and not model.queued}
        before = set(self.made.engines)
        assert not isinstance(event, Drain)
        about = "" if isinstance(event, Keep | Look) else event.model
        model, kept = self.made.models.get(about), event.names if isinstance(event, Keep) else self.made.books.kept
        waited = self._waiting(event.model) if isinstance(event, Ask) else {}
        let, failures = (model.breaker.lets(self.now), model.breaker.total) if model else (True, 0)
        effects = self.made.on(event, self.now, self.room() if self.made.books.needs_room(event) else NO_ROOM)
        for effect in effects:
            match effect:
                case Grant(ticket, engine):
                    self._answered(ticket)
                    if engine:
                        assert ticket in self.made.engines[engine].active
                        self.slots[ticket] = engine
                    else:
                        self.unanswered.add(self.calls[ticket].model)
                case Refuse(ticket):
                    self._answered(ticket)
                case Revoke(ticket):
                    assert self.slots.pop(ticket)
                case Start():
                    self._started(effect)
                case Stop(name, number, why, reason):
                    assert number not in self.stopped, "stopped twice"
                    assert number in self.processes or self.made.engines[number].blocked_on, "nothing to stop"
                    assert not self.made.engines[number].active, "stopped in mid-use"
                    if reason == "memory":
                        done = isinstance(event, Close) and name == about  # it was its last request
                        assert name in unused or done, "evicted in use"
                        asking = why.split("'")[1]
                        assert name not in kept or kept[name] < kept.get(asking, -1), "evicted, and it is kept"
                    assert reason != "keep_alive" or name not in self.made.books.kept, "it is kept"
                    self.stopped.add(number)
                    self.stops[number] = name
                case Wake(due, seconds):
                    self.timers[due.model, type(due)] = self.now + seconds, due
                case Residents(name, wanted):
                    self.wanted = self.wanted | {name} if wanted else self.wanted - {name}
        if len(before - self.made.engines.keys()) < 2:
            self._refused_with_reason(event, effects)
        if not isinstance(event, Register):  # after which a load follows
            self._check_short()
        if model:
            assert 0 <= model.breaker.total - failures <= 1, "one failure is one"
            self._in_turn(about)
        if model and isinstance(event, Ask):
            self._admitted(event, model, effects, waited, let=let)

    def _check_short(self) -> None:
        """Whoever is kept, and waits for room, has none."""
        for name, model in self.made.models.items():
            if model.short:
                assert model.kept is not None
                assert model.phase == "available"
                if not self._draining:
                    plan = self.made.books.preview(model.candidate, name, self.now, self.room())
                    assert not isinstance(plan, Plan), "there is room for what is kept"

    def _waiting(self, name: str) -> dict[int, Ask]:
        """Requests for the model that nobody has answered."""
        return {
            number: call.ask
            for number, call in self.calls.items()
            if call.ask and call.model == name and call.open and not call.answers
        }

    def _in_turn(self, name: str) -> None:
        """Of each caller those that came first were granted first."""
        waiting = self._waiting(name)
        first = {ask.share.caller: number for number, ask in reversed(waiting.items())}
        for number in self.slots:
            call = self.calls[number]
            if call.ask and call.model == name:
                assert number < first.get(call.ask.share.caller, number + 1), "out of turn"

    def _admitted(self, ask: Ask, model: Model, effects: list[Effect], waited: Mapping[int, Ask], *, let: bool) -> None:
        """It was let in where it may be, within the bounds, and whoever gave way for it had more than it has."""
        refused = {effect.ticket: effect.error for effect in effects if isinstance(effect, Refuse)}
        waiting = self._waiting(ask.model)
        tokens = sum(self.calls[number].tokens for number in waiting)
        if not let:
            assert isinstance(refused[ask.ticket], Overloaded), "its breaker is not closed"
            assert (refused[ask.ticket].retry_after_s or 0) > 0
        if ask.ticket in waiting:
            at_once = 0 if model.phase in ("loaded", "unloading") else model.candidate.slots
            assert len(waiting) <= BOUNDS.requests + at_once
            assert tokens <= BOUNDS.prompt_tokens or len(waiting) <= max(1, at_once)
        gave_way = refused.keys() & waited.keys() - {ask.ticket}
        if gave_way and ask.ticket in waiting:
            mine = [number for number, each in waiting.items() if each.share.caller == ask.share.caller]
            for other in gave_way:
                assert isinstance(refused[other], Overloaded)
                assert (refused[other].retry_after_s or 0) > 0
                caller = waited[other].share.caller
                theirs = [number for number, each in waited.items() if each.share.caller == caller]
                assert caller != ask.share.caller
                assert any(more > less for more, less in zip(self._held(theirs), self._held(mine), strict=True))

    def _answered(self, ticket: int) -> None:
        self.calls[ticket].answers += 1
        assert self.calls[ticket].answers == 1, "answered twice"
        assert self.calls[ticket].open, "answered after it was closed"

    def _started(self, effect: Start) -> None:
        assert effect.engine not in self.started, "started twice"
        engine, engines = self.made.engines[effect.engine], self.made.engines
        assert not engine.blocked_on, "started before what it waits for is gone"
        assert self.made.ledger.reserved[effect.engine] == effect.layout.reserve, "not reserved"
        now = {number for number in self.processes if number in engines}
        later = {number for number, other in engines.items() if not other.stopping} - {effect.engine}
        for device, size in effect.layout.reserve.items():
            assert size == 0 or size <= self.left(device, now), "over what the device has"
            assert size == 0 or size <= self.left(device, later), "over what it will have"
        self.started.add(effect.engine)
        self.processes[effect.engine] = Process(effect.model, effect.layout.reserve)

    def _refused_with_reason(self, event: Event, effects: list[Effect]) -> None:
        """Whoever is refused for want of memory has no place, even when all that may go is gone."""
        short = {
            self.calls[effect.ticket].model
            for effect in effects
            if isinstance(effect, Refuse) and isinstance(effect.error, InsufficientMemory)
        }
        for name in short if len(short) == 1 else ():
            model = self.made.models[name]
            if isinstance(event, Swap):
                wants = event.candidate.wants
            elif model.phase == "available":
                wants = model.candidate.wants
            else:
                return  # a swap that had waited: its candidate is forgotten
            stay = {number for number, engine in self.made.engines.items() if not self._may_go(engine, name)}
            if isinstance(event, Swap) and event.drain_first:
                stay -= {number for number, engine in self.made.engines.items() if engine.model == name}
            free = {device: self.left(device, stay) for device in SIZES}
            going = [number for number in self.made.engines if number not in stay]
            for claim in self.made.books.claims(name, free, going):
                free = {device: size - claim.held.get(device, 0) for device, size in free.items()}
            assert not isinstance(place(wants, free, (), cpu_layers=self.settings.cpu_layers), Plan), "there is a place"

    def _may_go(self, engine: Engine, asking: str) -> bool:
        model = self.made.models[engine.model]
        if engine.stopping:
            return engine.model == asking or not (model.phase == "unloading" and model.loads)
        kept = self.made.books.kept
        stays = model.residency.pinned or (engine.model in kept and kept[engine.model] >= kept.get(asking, -1))
        return engine is model.engine and model.idle and not stays and engine.model != asking

    def _held(self, tickets: list[int]) -> tuple[float, float]:
        """Requests and tokens by weight."""
        calls = [(self.calls[ticket].tokens, ask) for ticket in tickets if (ask := self.calls[ticket].ask)]
        return sum(1 / ask.share.weight for _, ask in calls), sum(size / ask.share.weight for size, ask in calls)

    # --- callers ---
    def _call(self, name: str) -> int:
        number = len(self.calls) + 1
        self.calls[number] = Call(name)
        return number

    def ask(self, name: str, residency: Residency | None, share: Share, prompt_bytes: int, answer: int) -> int:
        """A request; returns its ticket."""
        number = self._call(name)
        self.calls[number].tokens = self.made.models[name].pace.prompt_tokens(prompt_bytes)
        ask = self.calls[number].ask = Ask(number, name, residency, share, prompt_bytes, answer)
        self.tell(ask)
        return number

    def load(self, name: str, residency: Residency) -> int:
        """A load, registered before as the pool does it."""
        if self.made.models[name].phase in ("available", "failed"):
            self.tell(Register(name, CANDIDATES[name][0], residency))
        number = self._call(name)
        self.tell(Load(number, name))
        return number

    def keep(self, names: Mapping[str, int]) -> None:
        """These are kept, and no others."""
        self.tell(Keep(names))

    def swap(self, name: str, which: int, residency: Residency, *, drain_first: bool) -> int:
        """Another engine for the model."""
        number = self._call(name)
        self.tell(Swap(number, name, CANDIDATES[name][which], residency, drain_first))
        return number

    def unload(self, name: str, *, force: bool) -> int:
        """An unload."""
        number = self._call(name)
        self.tell(Unload(number, name, force))
        if force:
            assert self.made.models[name].breaker.lets(self.now), "force forgets every failure"
        return number

    def hang_up(self, ticket: int, outcome: Outcome = LEFT, usage: Usage = NOTHING) -> None:
        """The ticket's caller is done, or gone. What became of it is told of who held a slot, or just lost it."""
        call = self.calls[ticket]
        call.open = False
        model = self.made.models[call.model]
        served = call.ask is not None and ticket in model.granted
        if self.slots.pop(ticket, 0) == (model.engine.number if model.engine else -1):
            self.unanswered.discard(call.model)
        self.tell(Close(ticket, call.model, outcome, usage) if served else Close(ticket, call.model))

    # --- engines ---
    def starting(self) -> list[int]:
        """Engines that were started and have not answered yet."""
        return [number for number, process in self.processes.items() if process.state == "starting"]

    def serving(self) -> list[int]:
        """Engines that answer."""
        return [number for number, process in self.processes.items() if process.state == "serving"]

    def grow(self, number: int, part: float) -> bool:
        """The engine takes so much of what was reserved for it, or more than that; but no more than there is."""
        process = self.processes[number]
        takes = {
            device: int(size * (part if self.settings.shown else min(part, 1.0)))
            for device, size in process.reserve.items()
        }
        for device, size in takes.items():
            taken = sum(other.takes.get(device, 0) for other in self.processes.values() if other is not process)
            if size > SIZES[device] - self.others[device] - taken:
                return False
        process.takes = takes
        return True

    def ready(self, number: int, part: float, *, good: bool = True) -> None:
        """The engine answers, or fails, as it does when there is less memory than it takes."""
        process = self.processes[number]
        if good and self.grow(number, part):
            process.state = "serving"
            self.tell(Loaded(process.model, number, process.takes))
            return
        process.state, process.takes = "dead", {}
        if number not in self.stops:
            del self.processes[number]
        self.tell(LoadFailed(process.model, number, EngineFailed("as told")))

    def gone(self, number: int) -> None:
        """What was to be stopped is."""
        name = self.stops.pop(number)
        self.processes.pop(number, None)
        self.tell(Stopped(name, number))

    def crash(self, number: int) -> None:
        """The engine ends by itself."""
        process = self.processes[number]
        process.state = "dead"
        # A GPU's driver is late: it shows the memory as taken until the engine is `gone`.
        process.takes = {device: size for device, size in process.takes.items() if device != HOST}
        model = self.made.models[process.model]
        engine = self.made.engines[number]
        if not engine.stopping and not (model.phase == "unloading" and engine is model.engine):
            self.slots = {ticket: of for ticket, of in self.slots.items() if of != number}
        self.tell(Exited(process.model, number, "was killed by SIGKILL"))

    # --- time ---
    def wait(self, seconds: float) -> None:
        """Time goes on, and what is due then is told."""
        end = self.now + seconds
        while due := min(
            (timer for timer in self.timers.values() if timer[0] <= end), key=lambda of: of[0], default=()
        ):
            self.now, event = max(self.now, due[0]), due[1]
            del self.timers[event.model, type(event)]
            self.tell(event)
        self.now = end

    # --- what must be so ---
    def check(self) -> None:
        """What always holds."""
        self._check_engines()
        for name, model in self.made.models.items():
            requests = [ticket for ticket in self.calls if ticket in model.queue]
            assert len(requests) == len(model.queue)
            waiting = [*requests, *model.loads, *model.swaps, *model.unloads]
            calls = {number for number, call in self.calls.items() if call.model == name}
            assert sorted(waiting) == sorted(
                number for number in calls if self.calls[number].open and not self.calls[number].answers
            ), "everybody who was not answered waits, and nobody else"
            there, away = model.phase in ("loading", "loaded"), model.phase in ("available", "failed", "restarting")
            assert there <= (model.engine is not None) <= (not away)
            if model.phase in ("available", "failed"):
                assert not waiting
                assert not model.crashes
            assert not model.swaps or model.incoming
            assert model.queue.ready == len(model.queue) or model.phase == "unloading"
            self._check_breaker(model)
            assert model.phase != "unloading" or model.engine or model.retiring, "nothing will end it"
            assert model.phase != "restarting" or (name, RestartDue) in self.timers, "nothing will restart it"
            assert not model.queue.ready or model.phase != "loaded" or not model.engine or not model.engine.has_slot
            if model.idle and model.keep_alive_s == 0:
                assert name in self.unanswered, "it has answered, or was not loaded on purpose, and stays"
            elif model.idle and model.keep_alive_s is not None:
                due, _ = self.timers[name, IdleDue]
                assert self.now - 0.01 <= due <= model.idle_since + model.keep_alive_s + 0.01, "it stays too long"
            assert (name in self.wanted) >= (there or model.phase == "restarting")
            assert (name in self.wanted) <= (model.phase not in ("available", "failed") or self._draining)

    def _check_breaker(self, model: Model) -> None:
        breaker = model.breaker
        assert breaker.state(self.now) != "open" or not model.queue, "they wait for what is not asked"
        assert breaker.probe is None or self.calls[breaker.probe].open, "it waits for somebody who is gone"
        assert breaker.left_s(self.now) <= LONGEST_S
        served = {ticket for ticket, at in model.granted.items() if at <= self.now}
        assert served >= model.engine_active
        assert all(self.calls[ticket].open for ticket in served)

    @property
    def _draining(self) -> bool:
        return 0 < self.settings.drain_after <= self.events

    def _check_engines(self) -> None:
        engines, reserved = self.made.engines, self.made.ledger.reserved
        assert reserved.keys() == engines.keys(), "the ledger holds what lives"
        owned = [
            engine.number
            for model in self.made.models.values()
            for engine in (model.engine, model.incoming, *model.retiring.values())
            if engine
        ]
        assert sorted(owned) == sorted(engines), "every engine is one model's"
        assert self.processes.keys() <= engines.keys()
        assert set(self.slots.values()) <= engines.keys()
        for number, engine in engines.items():
            assert engine.stopping == (number in self.stops)
            assert engine.stopping or engine.blocked_on <= self.stops.keys(), "nothing will start it"
            assert engine.stopping or engine.blocked_on or number in self.processes, "it was not started"
            assert engine.active == {ticket for ticket, of in self.slots.items() if of == number}
            assert len(engine.active) <= engine.candidate.slots
            process = self.processes.get(number)
            serves = process is not None and process.state == "serving" and not engine.stopping
            for device, size in reserved[number].items():
                assert size >= engine.layout.reserve[device]
                assert not process or not serves or size >= process.takes.get(device, 0), "less than is taken"

    def run_out(self) -> None:
        """All that was begun is carried out, and everybody who was served hangs up: then nothing is left over."""
        for _ in range(1000):
            if starting := self.starting():
                self.ready(starting[0], part=1.0)
            elif self.stops:
                self.gone(min(self.stops))
            elif self.slots:
                self.hang_up(min(self.slots))
            elif self.timers:
                self.wait(max(0.0, min(due for due, _ in self.timers.values()) - self.now))
            else:
                break
            self.check()
        else:
            raise AssertionError("it does not come to rest")
        assert [number for number, call in self.calls.items() if call.open and not call.answers] == []
        for name, model in self.made.models.items():
            assert model.phase in ("available", "loaded", "failed"), f"'{name}' is stuck"
            assert not model.retiring
            calls = {number for number, call in self.calls.items() if call.open}
            assert model.asked.keys() <= calls
            assert model.granted.keys() <= calls
            assert model.granted or not model.queue.counters, "who is not here is forgotten"
