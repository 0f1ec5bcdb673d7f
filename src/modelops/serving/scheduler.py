"""Who gets a slot, what is loaded, what is refused: events in, effects out. Pure; the clock is passed in.

The pool feeds it every event and performs every effect, in order; nobody else touches it.

available → loading → loaded → unloading → available, with `restarting` after a crash and `failed` when it gave up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    EngineFailed,
    InsufficientMemory,
    ModelOpsError,
    Overloaded,
    shutting_down,
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
from modelops.serving.placement import Ledger

Phase = Literal["available", "loading", "loaded", "unloading", "restarting", "failed"]

#: Seconds before each restart in a row; after the last, the model is failed.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
#: Seconds after which a crash is no longer counted together with the one before.
STABLE_S = 60.0
#: Seconds for which requests to a failed model are refused before one may try to load it again.
FAILED_S = 15.0


@dataclass
class Model:
    """The state of one model. Read-only outside this module."""

    need: int
    slots: int
    phase: Phase = "available"
    active: set[int] = field(default_factory=set)
    queue: deque[int] = field(default_factory=deque)
    later: deque[int] = field(default_factory=deque)  # asked while it is unloading: they wait for the next engine
    loads: list[int] = field(default_factory=list)
    unloads: list[int] = field(default_factory=list)
    crashes: int = 0
    changed_at: float = 0.0
    error: ModelOpsError | None = None

    @property
    def idle(self) -> bool:
        """Loaded, and nobody uses it or waits for it."""
        return self.phase == "loaded" and not self.active and not self.queue

    def cooling_s(self, now: float) -> float:
        """Seconds for which requests are still refused because the model has failed."""
        return max(0.0, self.changed_at + FAILED_S - now) if self.phase == "failed" else 0.0

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self.queue) + len(self.later)


class Scheduler:
    """The state of all models and the ledger; `on` is the only way to change it."""

    def __init__(self, *, max_queue: int, autoload: bool, budget: int = 0) -> None:
        self.models: dict[str, Model] = {}
        self.ledger = Ledger()
        self._max_queue = max_queue
        self._autoload = autoload
        self._budget = budget  # bytes for all models together; 0: what the machine has
        self._draining = False

    def on(self, event: Event, now: float, free: int = 0) -> list[Effect]:
        """What follows from `event` at `now` seconds, with `free` bytes of memory that the machine shows as free."""
        if isinstance(event, Drain):
            self._draining = True
            return []
        if isinstance(event, Register):
            self.models[event.model] = Model(event.need, event.slots)
            return []
        return list(self._on(event, self.models[event.model], now, free))

    def _on(self, event: Event, model: Model, now: float, free: int) -> Iterator[Effect]:
        match event:
            case Ask(ticket, name):
                yield from self._ask(ticket, name, model, now, free)
            case Load(ticket, name):
                yield from self._load(ticket, name, model, now, free)
            case Unload(ticket, name, force):
                yield from self._unload(ticket, name, model, force)
            case Close(ticket, name):
                yield from self._close(ticket, name, model)
            case Loaded(name, memory):
                if model.phase != "loading":
                    return
                self._enter(model, "loaded", now)
                self.ledger.reserve(name, max(model.need, memory))
                yield from _grant_all(model.loads)
                yield from _fill(model)
            case LoadFailed(name, error):
                if model.phase != "loading":
                    return
                self.ledger.release(name)
                if model.crashes:
                    yield from self._crashed(name, model, error, now)
                else:
                    yield from self._fail(model, error, now)
            case Exited(name, reason):
                if model.phase != "loaded":
                    return  # it is being unloaded: Stop and Stopped follow when its last request has ended
                self.ledger.release(name)
                model.active.clear()
                if now - model.changed_at > STABLE_S:
                    model.crashes = 0
                yield from self._crashed(name, model, EngineFailed(f"the engine of '{name}' {reason}"), now)
            case Stopped(name):
                self.ledger.release(name)
                model.active.clear()
                model.crashes = 0
                self._enter(model, "available", now)
                yield from _grant_all(model.unloads)
                model.queue, model.later = model.later, deque()
                if model.loads or (model.queue and self._autoload):
                    yield from self._begin(name, model, now, free)
                else:
                    yield from _refuse_all(model, _not_loaded(name))
            case RestartDue(name):
                if model.phase != "restarting":
                    return
                if self._draining:
                    assert model.error is not None
                    yield from self._fail(model, model.error, now)  # or who waits for the restart would never hear
                else:
                    yield from self._begin(name, model, now, free)

    def _ask(self, ticket: int, name: str, model: Model, now: float, free: int) -> Iterator[Effect]:
        if self._draining:
            yield Refuse(ticket, shutting_down())
        elif model.phase == "loaded" and len(model.active) < model.slots:
            model.active.add(ticket)
            yield Grant(ticket)
        elif model.queued >= self._max_queue + (0 if model.phase in ("loaded", "unloading") else model.slots):
            # While there is no engine, those that will have a slot at once do not count as waiting.
            yield Refuse(
                ticket,
                Overloaded(f"{model.queued} requests already wait for '{name}'; try again", retry_after_s=1.0),
            )
        elif left := model.cooling_s(now):
            assert model.error is not None
            yield Refuse(ticket, _again(model.error, left))
        elif model.phase in ("available", "failed") and not self._autoload:
            yield Refuse(ticket, _not_loaded(name))
        elif model.phase == "unloading":
            model.later.append(ticket)
        else:
            model.queue.append(ticket)
            if model.phase in ("available", "failed"):
                yield from self._begin(name, model, now, free)

    def _load(self, ticket: int, name: str, model: Model, now: float, free: int) -> Iterator[Effect]:
        if self._draining:
            yield Refuse(ticket, shutting_down())
        elif model.phase == "loaded":
            yield Refuse(ticket, AlreadyLoaded(f"'{name}' is already loaded"))
        else:
            model.loads.append(ticket)
            if model.phase in ("available", "failed", "restarting"):
                yield from self._begin(name, model, now, free)

    def _unload(self, ticket: int, name: str, model: Model, force: bool) -> Iterator[Effect]:
        if model.phase == "available":
            yield Refuse(ticket, Conflict(f"'{name}' is not loaded"))
            return
        if model.phase == "loading" and not force:
            yield Refuse(ticket, Conflict(f"'{name}' is being loaded; wait for it, or unload it with force"))
            return
        gone = Overloaded(f"'{name}' was unloaded", retry_after_s=1.0)
        if model.phase in ("failed", "restarting"):
            model.phase, model.error, model.crashes = "available", None, 0
            yield Grant(ticket)
            yield from _refuse_all(model, gone)
            return
        model.unloads.append(ticket)
        stopping = model.phase == "unloading" and not model.active and not model.queue
        model.phase = "unloading"
        if force:
            for granted in sorted(model.active):
                yield Revoke(granted, gone)
            model.active.clear()
            yield from _refuse_all(model, gone)
        if not stopping and not model.active and not model.queue:
            yield Stop(name)

    def _close(self, ticket: int, name: str, model: Model) -> Iterator[Effect]:
        for waiting in (model.queue, model.later, model.loads, model.unloads):
            if ticket in waiting:
                waiting.remove(ticket)
        held = ticket in model.active
        model.active.discard(ticket)
        if model.phase in ("loaded", "unloading"):
            yield from _fill(model)
        if held and model.phase == "unloading" and not model.active and not model.queue:
            yield Stop(name)

    def _begin(self, name: str, model: Model, now: float, free: int) -> Iterator[Effect]:
        idle = frozenset(other for other, state in self.models.items() if state.idle)
        if bill := self.ledger.bill(model.need, self._free(free), idle):
            error = InsufficientMemory(bill.sentence(name), details=bill.details())
            # Memory may come back any moment: the next request is not made to wait as after a broken engine.
            self._enter(model, "available", now)
            model.crashes = 0
            yield from _refuse_all(model, error)
            return
        self.ledger.reserve(name, model.need)
        self._enter(model, "loading", now)
        yield Start(name)

    def _free(self, device: int) -> int:
        """What may be reserved now, of the `device` bytes that the machine shows as free and of the budget."""
        # What is being loaded has been reserved, but the machine does not show it yet.
        held = self.ledger.reserved
        free = device - sum(size for name, size in held.items() if self.models[name].phase == "loading")
        return min(free, self._budget - sum(held.values())) if self._budget else free

    def _crashed(self, name: str, model: Model, error: ModelOpsError, now: float) -> Iterator[Effect]:
        model.crashes += 1
        if model.crashes > len(BACKOFF_S) or self._draining:
            yield from self._fail(model, error, now)
            return
        self._enter(model, "restarting", now)
        model.error = error
        yield Wake(name, BACKOFF_S[model.crashes - 1])

    def _fail(self, model: Model, error: ModelOpsError, now: float) -> Iterator[Effect]:
        self._enter(model, "failed", now)
        model.error, model.crashes = error, 0
        yield from _refuse_all(model, error)

    def _enter(self, model: Model, phase: Phase, now: float) -> None:
        model.phase, model.changed_at, model.error = phase, now, None


def _fill(model: Model) -> Iterator[Effect]:
    while model.queue and len(model.active) < model.slots:
        ticket = model.queue.popleft()
        model.active.add(ticket)
        yield Grant(ticket)


def _grant_all(tickets: list[int]) -> Iterator[Effect]:
    for ticket in tickets:
        yield Grant(ticket)
    tickets.clear()


def _refuse_all(model: Model, error: ModelOpsError) -> Iterator[Effect]:
    for ticket in [*model.queue, *model.loads]:
        yield Refuse(ticket, error)
    model.queue.clear()
    model.loads.clear()


def _not_loaded(name: str) -> Conflict:
    return Conflict(f"'{name}' is not loaded, and models.autoload is off; load it first")


def _again(error: ModelOpsError, seconds: float) -> ModelOpsError:
    return type(error)(
        f"{error.message} (not tried again for {seconds:.0f} s)", retry_after_s=seconds, details=error.details
    )
