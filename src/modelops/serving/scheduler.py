"""Who gets a slot, what is loaded, evicted, replaced and refused: events in, effects out. Pure; the clock is passed in.

The pool feeds it every event and performs every effect, in order; nobody else touches it.

available → loading → loaded → unloading → available, with `restarting` after a crash and `failed` when it gave up.
Memory is reserved when a load is decided; the start waits until what was evicted for it is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    EngineFailed,
    InsufficientMemory,
    ModelOpsError,
    Overloaded,
    shutting_down,
)
from modelops.serving.admission import Bounds, admit, crashed, not_loading, settle
from modelops.serving.answers import (
    fall_back,
    fill,
    forget,
    grant_all,
    not_loaded,
    refuse_all,
    refuse_swaps,
)
from modelops.serving.breaker import Cause
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
    Grown,
    IdleDue,
    Keep,
    Load,
    Loaded,
    LoadFailed,
    Look,
    Refuse,
    Register,
    Residency,
    Residents,
    RestartDue,
    Revoke,
    Room,
    Start,
    Stop,
    Stopped,
    StopReason,
    Swap,
    Unload,
    Wake,
)
from modelops.serving.placement import Bill, CpuLayers, Plan, freed
from modelops.serving.state import Books, Engine, Model, Phase

#: Seconds before each restart in a row; after the last, the model is failed.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
#: Seconds after which a crash is no longer counted together with the one before.
STABLE_S = 60.0


class Scheduler:
    """The state of all models and the ledger; `on` is the only way to change it."""

    def __init__(
        self, bounds: Bounds, *, autoload: bool, budget: int = 0, cpu_layers: CpuLayers = "before_eviction"
    ) -> None:
        self.books = Books(budget, cpu_layers)
        self.models, self.engines, self.ledger = self.books.models, self.books.engines, self.books.ledger
        self._numbers = itertools.count(1)
        self._bounds = bounds
        self._autoload = autoload
        self._draining = False

    def on(self, event: Event, now: float, room: Room = NO_ROOM) -> list[Effect]:
        """What follows from `event` at `now` seconds, with the `room` that the machine shows."""
        if isinstance(event, Drain):
            self._draining = True
            return []
        if isinstance(event, Register):
            self._register(event)
            return []
        if isinstance(event, Keep):
            effects = list(self._keep(event.names, now))
        elif isinstance(event, Look):
            effects = []
        else:
            effects = list(self._on(event, self.models[event.model], now, room))
        return [*effects, *self._let_in(now, room)]

    def _register(self, event: Register) -> None:
        kept = self.books.kept.get(event.model)
        model = self.models.setdefault(event.model, Model(event.candidate, event.residency, kept=kept))
        model.becomes(event.candidate, event.residency)

    def _keep(self, names: Mapping[str, int], now: float) -> Iterator[Effect]:
        self.books.kept = dict(names)
        for name, model in self.models.items():
            before, model.kept = model.kept, names.get(name)
            model.short = model.short and model.kept is not None
            if before is not None and model.kept is None:
                yield from self._idle(name, model, now)  # its keep-alive counts from now on

    def _let_in(self, now: float, room: Room) -> Iterator[Effect]:
        """Load what is kept and has waited for room, as soon as there is some; who goes first comes first."""
        if room is NO_ROOM or self._draining:
            return
        for _, name in sorted((-(model.kept or 0), name) for name, model in self.models.items() if model.short):
            model = self.models[name]
            if isinstance(self.books.preview(model.candidate, name, now, room), Plan):
                yield from self._begin(name, model, now, room)

    def _on(self, event: Event, model: Model, now: float, room: Room) -> Iterator[Effect]:
        match event:
            case Ask():
                yield from self._ask(event, model, now, room)
            case Load(ticket, name):
                yield from self._load(ticket, name, model, now, room)
            case Swap():
                yield from self._swap(event, model, now, room)
            case Unload(ticket, name, force):
                yield from self._unload(ticket, name, model, force)
            case Close():
                yield from self._close(event, model, now)
            case Loaded(name, number, memory):
                engine = self.engines.get(number)
                if engine is None or engine.stopping:
                    return
                self.books.seen(engine, memory)
                yield from self._loaded(name, model, engine, now)
            case Grown(name, number, memory):
                if (engine := self.engines.get(number)) and not engine.stopping:
                    self.books.seen(engine, memory)
            case LoadFailed(name, number, error):
                engine = self.engines.get(number)
                if engine is None or engine.stopping:
                    return
                self.books.gone(number)
                yield from self._load_failed(name, model, engine, error, now)
            case Exited(name, number, reason):
                yield from self._exited(name, model, number, reason, now, room)
            case Stopped(name, number):
                yield from self._stopped(name, model, number, now, room)
            case RestartDue(name):
                if model.phase != "restarting":
                    return
                if self._draining:
                    assert model.error is not None
                    # Or who waits for it would never hear.
                    yield from self._fail(name, model, model.error, now, "requests")
                else:
                    yield from self._begin(name, model, now, room)
            case IdleDue(name):
                stays = model.keep_alive_s
                if stays == 0 and model.unanswered:
                    return
                # A clock's ticks and a timer's are not the same: a hair too early is not too early.
                if model.idle and stays is not None and now - model.idle_since >= stays - 0.01:
                    yield from self._leave(name, model, "its keep-alive is over", "keep_alive")

    # --- requests ---
    def _ask(self, ask: Ask, model: Model, now: float, room: Room) -> Iterator[Effect]:
        if self._draining:
            yield Refuse(ask.ticket, shutting_down())
            return
        admitted = yield from admit(ask, model, now, self._bounds, autoload=self._autoload)
        if admitted and model.phase in ("available", "failed"):
            yield from self._begin(ask.model, model, now, room)

    def _close(self, close: Close, model: Model, now: float) -> Iterator[Effect]:
        ticket = close.ticket
        for waiting in (model.queue, model.loads, model.swaps, model.unloads):
            if ticket in waiting:
                waiting.remove(ticket)
        engines = [model.engine, *model.retiring.values()]
        engine = next((engine for engine in engines if engine and ticket in engine.active), None)
        if engine:
            engine.active.discard(ticket)
            model.keep = model.asked[ticket].residency
            if engine is model.engine:
                model.unanswered = False
            elif not engine.active:
                yield from self._stop(engine, "it was replaced", "replaced")
        yield from settle(close, model, engine, now)
        if model.phase in ("loaded", "unloading"):
            yield from fill(model, now)
        if model.phase == "unloading":
            yield from self._stop_when_done(model, "unloaded", model.leaving)
        else:
            yield from self._idle(close.model, model, now)

    def _idle(self, name: str, model: Model, now: float) -> Iterator[Effect]:
        """Whoever has just become idle stays for its keep-alive."""
        if not model.idle:
            return
        model.idle_since = now
        stays = model.keep_alive_s
        if stays == 0 and model.unanswered:
            return  # it was loaded for an answer, which is still to come
        if stays is not None and stays <= 0:
            yield from self._leave(name, model, "its keep-alive is 0", "keep_alive")
        elif stays is not None:
            yield Wake(IdleDue(name), stays)

    # --- loads ---
    def _load(self, ticket: int, name: str, model: Model, now: float, room: Room) -> Iterator[Effect]:
        if self._draining:
            yield Refuse(ticket, shutting_down())
        elif model.phase == "loaded":
            yield Refuse(ticket, AlreadyLoaded(f"'{name}' is already loaded"))
        elif model.phase in ("available", "failed") and not model.breaker.lets_load(now):
            yield Refuse(ticket, not_loading(name, model, now))
        else:
            model.loads.append(ticket)
            if model.phase in ("available", "failed", "restarting"):
                yield from self._begin(name, model, now, room)

    def _swap(self, swap: Swap, model: Model, now: float, room: Room) -> Iterator[Effect]:
        ticket, name = swap.ticket, swap.model
        if self._draining:
            yield Refuse(ticket, shutting_down())
        elif model.phase != "loaded" or model.incoming:
            yield Refuse(ticket, Conflict(f"'{name}' is on its way to another state; try again when it is loaded"))
        elif swap.drain_first:
            plan = self.books.preview(swap.candidate, name, now, room, after=True)
            if isinstance(plan, Bill):  # better to know before the present one ends
                yield Refuse(ticket, InsufficientMemory(plan.sentence(name), details=plan.details()))
                return
            model.becomes(swap.candidate, swap.residency)
            model.loads.append(ticket)
            self._enter(model, "unloading", now)
            model.leaving = "replaced"
            yield from self._stop_when_done(model, "another version follows", "replaced")
        else:
            model.swaps.append(ticket)
            yield from self._begin_swap(name, model, swap.candidate, swap.residency, now, room)

    def _begin_swap(
        self, name: str, model: Model, candidate: Candidate, residency: Residency, now: float, room: Room
    ) -> Iterator[Effect]:
        plan = self.books.preview(candidate, name, now, room, beside=True)
        if isinstance(plan, Bill):
            both = "both versions do not fit side by side; with drain_first the present one ends before"
            error = InsufficientMemory(f"{plan.sentence(name)}; {both}", details=plan.details())
            yield from refuse_swaps(model, error)
            return
        model.incoming = yield from self._reserve(name, candidate, plan, now, room)
        model.incoming.residency = residency

    def _begin(self, name: str, model: Model, now: float, room: Room) -> Iterator[Effect]:
        plan = self.books.preview(model.candidate, name, now, room)
        if isinstance(plan, Bill):
            error = InsufficientMemory(plan.sentence(name), details=plan.details())
            if model.fallback:
                yield from fall_back(model, error)
                yield from self._begin(name, model, now, room)
                return
            # Memory may come back any moment: the next request is not made to wait as after a broken engine.
            self._enter(model, "available", now)
            model.short = model.kept is not None
            model.crashes = 0
            yield from refuse_all(model, error)
            yield from forget(name, model)
            return
        self._enter(model, "loading", now)
        model.short, model.place = False, plan.layout.reserve
        model.engine = yield from self._reserve(name, model.candidate, plan, now, room)
        model.wanted = True
        yield Residents(name, wanted=True)

    def _reserve(
        self, name: str, candidate: Candidate, plan: Plan, now: float, room: Room
    ) -> Generator[Effect, None, Engine]:
        """Take the plan's memory, and start once what it evicts is gone, and what else is going that it waits for."""
        free = self.books.free(room)
        going = self.books.going(name)
        engine = Engine(next(self._numbers), name, candidate, plan.layout)
        self.engines[engine.number] = engine
        self.ledger.reserve(engine.number, plan.layout.reserve)
        for victim in plan.evict:
            evicted = self.models[victim].engine
            assert evicted is not None
            engine.blocked_on.add(evicted.number)
            yield from self._leave(victim, self.models[victim], f"'{name}' needs its memory", "memory")
        free = freed(free, [self.ledger.reserved[number] for number in engine.blocked_on])
        short = [device for device, size in plan.layout.reserve.items() if size > free.get(device, 0)]
        engine.blocked_on |= {number for number, held in going.items() if any(held.get(device) for device in short)}
        if not engine.blocked_on:
            yield Start(name, engine.number, candidate.build, engine.layout)
        return engine

    def _loaded(self, name: str, model: Model, engine: Engine, now: float) -> Iterator[Effect]:
        asked_for = bool(model.loads or model.swaps)
        if engine is model.incoming:
            present = model.engine
            assert present is not None
            self._become(model, engine)
            model.retiring[present.number] = present
            yield from grant_all(model.swaps)
            if not present.active:
                yield from self._stop(present, "it was replaced", "replaced")
        else:
            self._enter(model, "loaded", now)
            model.fallback = None
            model.breaker.loaded()
            yield from grant_all(model.loads)
        model.unanswered = model.unanswered or asked_for
        yield from fill(model, now)
        yield from self._idle(name, model, now)

    def _load_failed(
        self, name: str, model: Model, engine: Engine, error: ModelOpsError, now: float
    ) -> Iterator[Effect]:
        if engine is model.incoming:
            model.incoming = None
            yield from refuse_swaps(model, error)
            yield from self._idle(name, model, now)
            return
        model.engine = None
        if model.fallback:
            yield from fall_back(model, error)
            yield from self._restart(name, model, error, now, "requests")
            return
        model.breaker.load_failed()
        if model.crashes:
            yield from self._restart(name, model, error, now, "load")
        else:
            yield from self._fail(name, model, error, now, "load")

    # --- ends ---
    def _unload(self, ticket: int, name: str, model: Model, force: bool) -> Iterator[Effect]:
        forgets = force and model.breaker.until is not None
        if model.phase == "available" and not model.retiring and not forgets:
            yield Refuse(ticket, Conflict(f"'{name}' is not loaded"))
            return
        if (model.phase == "loading" or model.incoming) and not force:
            yield Refuse(ticket, Conflict(f"'{name}' is being loaded; wait for it, or unload it with force"))
            return
        yield from forget(name, model)
        gone = Overloaded(f"'{name}' was unloaded", retry_after_s=1.0, reason="unloaded")
        if model.phase in ("available", "failed", "restarting"):  # no engine is left but what was replaced
            model.phase, model.error, model.crashes = "available", None, 0
            model.breaker.close()
            yield from refuse_all(model, gone)
            if not model.retiring:
                yield Grant(ticket)
                return
        model.unloads.append(ticket)
        model.phase, model.leaving = "unloading", "requested"
        if force:
            model.breaker.close()
            for engine in [model.engine, *model.retiring.values()]:
                for granted in sorted(engine.active if engine else ()):
                    yield Revoke(granted, gone)
                if engine:
                    engine.active.clear()
            yield from refuse_all(model, gone)
            for engine in [model.incoming, *model.retiring.values()]:
                if engine:
                    model.retiring[engine.number] = engine
                    yield from self._stop(engine, "unloaded", "requested")
            model.incoming = None
        yield from self._stop_when_done(model, "unloaded", "requested")

    def _leave(self, name: str, model: Model, why: str, reason: StopReason) -> Iterator[Effect]:
        """An idle model goes."""
        assert model.engine is not None
        model.phase = "unloading"
        yield from forget(name, model)
        yield from self._stop(model.engine, why, reason)

    def _stop_when_done(self, model: Model, why: str, reason: StopReason) -> Iterator[Effect]:
        if model.engine and not model.engine.active and not model.queue.ready:
            yield from self._stop(model.engine, why, reason)

    def _stop(self, engine: Engine, why: str, reason: StopReason) -> Iterator[Effect]:
        if not engine.stopping:
            engine.stopping = True
            yield Stop(engine.model, engine.number, why, reason)

    def _exited(self, name: str, model: Model, number: int, reason: str, now: float, room: Room) -> Iterator[Effect]:
        engine = self.engines.get(number)
        if engine is None or engine.stopping:
            return
        if model.phase == "unloading" and engine is model.engine:
            return  # Stop and Stopped follow when its last request has ended
        if engine is model.engine:
            yield from crashed(name, model, engine, reason, now)
        engine.active.clear()
        if engine is model.incoming:  # it answered, and ended before that was told
            model.incoming, model.retiring[number] = None, engine
            yield from refuse_swaps(model, EngineFailed(f"the next engine of '{name}' {reason}"))
        yield from self._stop(engine, reason, "crashed")  # nothing of it runs any more: its memory is seen to be free
        if engine is not model.engine:
            yield from self._idle(name, model, now)
            return
        model.retiring[number] = engine
        if now - model.changed_at > STABLE_S:
            model.crashes = 0
        model.engine = None
        if model.incoming:  # what was to take its place does so as soon as it can
            model.fallback = model.candidate, model.residency
            self._become(model, model.incoming)
            self._enter(model, "loading", now)
            model.loads += model.swaps
            model.swaps.clear()
        else:
            error = EngineFailed(f"the engine of '{name}' {reason}")
            yield from self._restart(name, model, error, now, "requests")

    def _stopped(self, name: str, model: Model, number: int, now: float, room: Room) -> Iterator[Effect]:
        if number not in self.engines:
            return
        self.books.gone(number)
        if model.retiring.pop(number, None) is None:
            model.engine, model.crashes, model.keep, model.unanswered = None, 0, None, False
            if model.fallback:
                model.becomes(*model.fallback)
                model.fallback = None
        yield from self._left(name, model, number, now, room)

    def _left(self, name: str, model: Model, number: int, now: float, room: Room) -> Iterator[Effect]:
        """The engine `number` is gone. With the last one of a model its unload is over, and the next load begins."""
        if model.phase == "unloading" and not model.engine and not model.retiring:
            self._enter(model, "available", now)
            yield from grant_all(model.unloads)
        # Who waited for this memory comes first: it was promised.
        yield from self._unblock(number, now, room)
        if model.phase == "available":
            model.queue.release()
            if model.loads or (model.queue and self._autoload):
                yield from self._begin(name, model, now, room)
            else:
                yield from refuse_all(model, not_loaded(name))
                yield from forget(name, model)

    def _unblock(self, number: int, now: float, room: Room) -> Iterator[Effect]:
        """Start what waited for the engine `number` to be gone, if it still fits: others may have taken the memory."""
        for engine in [engine for engine in self.engines.values() if number in engine.blocked_on]:
            engine.blocked_on.discard(number)
            if engine.blocked_on or engine.stopping:
                continue
            model = self.models[engine.model]
            self.books.gone(engine.number)
            if engine is model.incoming:
                model.incoming = None
                yield from self._begin_swap(engine.model, model, engine.candidate, engine.residency, now, room)
                yield from self._idle(engine.model, model, now)
            else:
                model.engine = None
                yield from self._begin(engine.model, model, now, room)

    # --- helpers ---
    def _become(self, model: Model, engine: Engine) -> None:
        """What was to take the place of the model's engine does."""
        model.engine, model.incoming = engine, None
        model.becomes(engine.candidate, engine.residency)

    def _restart(self, name: str, model: Model, error: ModelOpsError, now: float, cause: Cause) -> Iterator[Effect]:
        """It crashed, or its restart failed: the next attempt comes after a pause, or never."""
        model.crashes += 1
        if model.crashes > len(BACKOFF_S) or self._draining:
            yield from self._fail(name, model, error, now, cause)
            return
        self._enter(model, "restarting", now)
        model.error = error
        yield Wake(RestartDue(name), BACKOFF_S[model.crashes - 1])

    def _fail(self, name: str, model: Model, error: ModelOpsError, now: float, cause: Cause) -> Iterator[Effect]:
        self._enter(model, "failed", now)
        model.error, model.crashes = error, 0
        model.breaker.trip(now, error.message, cause)
        yield from refuse_all(model, error)
        if not self._draining:  # the end of the coordinator forgets nothing
            yield from forget(name, model)

    def _enter(self, model: Model, phase: Phase, now: float) -> None:
        model.phase, model.changed_at, model.error = phase, now, None
