"""The scheduler's books: what it knows of each model and each engine. Written by the scheduler only. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from modelops.api.errors import ModelOpsError
from modelops.serving.breaker import Breaker
from modelops.serving.events import (
    BEGINNERS,
    Ask,
    Candidate,
    Close,
    Event,
    Keep,
    Loaded,
    LoadFailed,
    Look,
    Residency,
    Room,
    StopReason,
    Unload,
)
from modelops.serving.fair import FairQueue
from modelops.serving.pace import Pace
from modelops.serving.placement import HOST, Bill, CpuLayers, Holder, Layout, Ledger, Plan, eviction_cost, freed, place

Phase = Literal["available", "loading", "loaded", "unloading", "restarting", "failed"]

#: Evicting what is kept costs more than all that nobody keeps.
_KEPT_COST = 1e9


@dataclass
class Engine:
    """One engine, from the reservation of its memory until the devices show it free."""

    number: int
    model: str
    candidate: Candidate
    layout: Layout
    active: set[int] = field(default_factory=set)  # tickets that hold a slot
    blocked_on: set[int] = field(default_factory=set)  # engines that must be gone before it is started
    stopping: bool = False
    # Of what is to take another's place: the model's own from then on.
    residency: Residency = field(default_factory=Residency)
    # When a request's failure was last held against it, and who was in flight then: they have the same cause.
    failed_at: float | None = None
    excused: set[int] = field(default_factory=set)

    @property
    def has_slot(self) -> bool:
        """Whether one more request can be answered."""
        return len(self.active) < self.candidate.slots


@dataclass
class Model:
    """One model. `engine` is the one that new requests go to; `incoming` is to take its place; `retiring` were replaced
    and finish what they have, or ended by themselves and are being cleared away."""

    candidate: Candidate
    residency: Residency
    phase: Phase = "available"
    engine: Engine | None = None
    incoming: Engine | None = None
    retiring: dict[int, Engine] = field(default_factory=dict)
    queue: FairQueue = field(default_factory=FairQueue)  # held: asked while it is unloading, for the next engine
    loads: list[int] = field(default_factory=list)
    swaps: list[int] = field(default_factory=list)
    fallback: tuple[Candidate, Residency] | None = None  # what a swap was to replace, and what ended meanwhile
    unloads: list[int] = field(default_factory=list)
    leaving: StopReason = "requested"  # why it is unloading
    keep: Residency | None = None  # of the last request that brought its own
    kept: int | None = None  # somebody keeps it; a higher number goes before
    short: bool = False  # it is kept, and was refused for want of memory: it is loaded as soon as there is room
    place: Mapping[str, int] | None = None  # what was reserved for it last
    asked: dict[int, Ask] = field(default_factory=dict)  # by ticket: requests that wait or are served
    granted: dict[int, float] = field(default_factory=dict)  # by ticket: when it was given its slot
    breaker: Breaker = field(default_factory=Breaker)
    pace: Pace = field(default_factory=Pace)
    appointment: float = 0.0  # when whoever was refused last was told to come back
    crashes: int = 0
    changed_at: float = 0.0
    idle_since: float = 0.0
    error: ModelOpsError | None = None
    wanted: bool = False  # a restart has to bring it back
    unanswered: bool = False  # it was loaded on purpose, and nobody has been answered since

    @property
    def idle(self) -> bool:
        """Loaded, and nobody uses it or waits for it."""
        return self.phase == "loaded" and not self.active and not self.queue and not self.incoming

    @property
    def coming(self) -> bool:
        """It is kept, and about to come back: nobody who goes behind it takes its place."""
        return self.kept is not None and (self.short or self.phase == "restarting")

    @property
    def engine_active(self) -> set[int]:
        """Tickets that hold a slot of the engine that new requests go to."""
        return self.engine.active if self.engine else set()

    @property
    def active(self) -> int:
        """Requests that hold a slot of any of its engines."""
        return len(self.engine_active) + sum(len(engine.active) for engine in self.retiring.values())

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self.queue)

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds that it stays after its last request; None: until memory is needed."""
        if self.residency.pinned or self.kept is not None:
            return None
        return (self.keep or self.residency).keep_alive_s

    def load_s(self, now: float) -> float:
        """Seconds until it is expected to be loaded, were it begun now where it is not; 0 where it is."""
        if self.phase == "loaded":
            return 0.0
        begun = now - self.changed_at if self.phase == "loading" else 0.0
        return max(0.0, self.candidate.reload_s - begun)

    def becomes(self, candidate: Candidate, residency: Residency) -> None:
        """This is what its next engine is. Another recipe than before has not failed yet: its breaker is closed."""
        if candidate.recipe != self.candidate.recipe:
            self.breaker.close()
        self.candidate, self.residency, self.keep = candidate, residency, None

    def cost(self, now: float, asking: int | None = None) -> float | None:
        """What evicting it costs, for a model that is kept with the number `asking`; None where it must stay."""
        if not self.idle or self.residency.pinned:
            return None
        cost = eviction_cost(
            reload_s=self.candidate.reload_s, idle_s=max(0.0, now - self.idle_since), keep_alive_s=self.keep_alive_s
        )
        if self.kept is None:
            return cost
        return None if asking is None or self.kept >= asking else _KEPT_COST + cost


@dataclass
class Books:
    """All models, all engines, and what of each device is theirs."""

    budget: int = 0  # bytes of RAM for all models together; 0: what the machine has
    cpu_layers: CpuLayers = "before_eviction"
    models: dict[str, Model] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)  # also of models that are not known yet
    engines: dict[int, Engine] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    def preview(
        self, candidate: Candidate, name: str, now: float, room: Room, *, beside: bool = False, after: bool = False
    ) -> Plan | Bill:
        """What a load of `candidate` as the model `name` would do now. What is being stopped counts as gone.

        `beside`: the model's present engine stays until the new one is there. `after`: all its engines are gone before.
        A bill says whether it would ever fit, and what other programs hold.
        """
        gone = self.going(name)
        if after:
            gone |= {number: self.ledger.reserved[number] for number, of in self.engines.items() if of.model == name}
        free = freed(self.free(room), gone.values())
        holders = self._holders(now, gone, self.kept.get(name))
        for claim in self.claims(name, free, gone):
            holders.append(claim)
            free = {device: size - claim.held.get(device, 0) for device, size in free.items()}
        if beside:
            holders = [replace(who, cost=None) if who.model == name else who for who in holders]
        found = place(candidate.wants, free, holders, cpu_layers=self.cpu_layers)
        if isinstance(found, Plan):
            return found
        most = self.most(room)
        ever = isinstance(place(candidate.wants, most, (), cpu_layers=self.cpu_layers), Plan)
        held = freed(found.free, [found.reserved])
        return replace(found, never=not ever, others={device: max(0, most[device] - held[device]) for device in held})

    def claims(self, asking: str, free: Mapping[str, int], gone: Collection[int] = ()) -> list[Holder]:
        """What is not for the model `asking` of what is free: the places of kept models that go before it and are about
        to come back, where they fit once all that goes behind them has gone. Nobody gives way to what cannot be."""
        left, found = dict(free), list[Holder]()
        first = [(model.kept, name) for name, model in self.models.items() if model.coming and model.kept is not None]
        for kept, name in sorted(first, key=lambda each: (-each[0], each[1])):
            model = self.models[name]
            place = model.place or ({HOST: model.candidate.wants.need.total} if left.keys() == {HOST} else {})
            most = freed(left, self._behind(kept, gone))
            fits = all(size <= most.get(device, 0) for device, size in place.items())
            if place and fits and name != asking and kept > self.kept.get(asking, -1):
                found.append(Holder(name, place, kept=True))
                left = {device: size - place.get(device, 0) for device, size in left.items()}
        return found

    def _behind(self, kept: int, gone: Collection[int]) -> list[Mapping[str, int]]:
        """What engines hold that are not `gone`, of models that go behind one which is kept with that number."""
        return [
            self.ledger.reserved[number]
            for number, engine in self.engines.items()
            if number not in gone and not (model := self.models[engine.model]).residency.pinned
            if model.kept is None or model.kept < kept
        ]

    @property
    def short(self) -> bool:
        """Whether a model that is kept waits for room."""
        return any(model.short for model in self.models.values())

    def needs_room(self, event: Event) -> bool:
        """Whether the event, which is still to come, may begin a load: of its own model, or, where memory is given back
        or what holds it becomes idle, of a kept one that waits for room."""
        if isinstance(event, BEGINNERS):
            return not isinstance(event, Ask) or self.models[event.model].phase != "loaded"
        if not self.short:
            return False
        if isinstance(event, Close):
            return self._last_of_all(event)
        return isinstance(event, Look | Keep | Loaded | LoadFailed | Unload)

    def _last_of_all(self, close: Close) -> bool:
        """Whether an engine that may go, or is about to, is left without a request."""
        model = self.models[close.model]
        going = [*model.retiring.values(), *([model.engine] if model.engine and model.phase == "unloading" else [])]
        if any(engine.active == {close.ticket} for engine in going):
            return True
        first = max(other.kept for other in self.models.values() if other.short and other.kept is not None)
        stays = model.residency.pinned or (model.kept is not None and model.kept >= first)
        # Where it has failed, those that wait may be refused.
        waiting = 0 if close.outcome.kind == "failed" else model.queued
        return not stays and model.active + waiting <= 1

    def free(self, room: Room) -> dict[str, int]:
        """What may be reserved on each device now."""
        free = dict(room.free)
        for number, sizes in self.ledger.reserved.items():
            taken = room.taken.get(number, {})
            for device in sizes.keys() & free.keys():
                # What is reserved and not taken yet is not free, although the machine shows it so.
                free[device] -= max(0, sizes[device] - taken.get(device, 0))
        if self.budget:
            free[HOST] = min(free.get(HOST, 0), self.budget - self.ledger.total(HOST))
        return free

    def held(self, name: str) -> dict[str, int]:
        """Bytes that the ledger holds for all engines of `name`, for each device."""
        held: dict[str, int] = {}
        for engine in self.engines.values():
            if engine.model == name:
                for device, size in self.ledger.reserved.get(engine.number, {}).items():
                    held[device] = held.get(device, 0) + size
        return held

    def most(self, room: Room) -> dict[str, int]:
        """What could be reserved on each device if nothing were, and other programs held nothing."""
        free = freed(self.free(room), self.ledger.reserved.values())
        most = {device: max(size, room.most.get(device, 0)) for device, size in free.items()}
        if self.budget:
            most[HOST] = min(most.get(HOST, 0), self.budget)
        return most

    def _holders(self, now: float, gone: Collection[int], asking: int | None) -> list[Holder]:
        """Who holds what, and what evicting it costs for one that is kept with the number `asking`, but for the engines
        that are `gone`."""
        holders = []
        for number, sizes in self.ledger.reserved.items():
            if number not in gone:
                engine = self.engines[number]
                model = self.models[engine.model]
                cost = model.cost(now, asking) if model.engine is engine else None
                holders.append(Holder(engine.model, sizes, cost, kept=model.kept is not None))
        return holders

    def going(self, asking: str) -> dict[int, Mapping[str, int]]:
        """What the engines hold that are being stopped, but for another model's that is to be loaded after them."""

        def promised(model: Model) -> bool:
            return model.phase == "unloading" and bool(model.loads)

        return {
            number: self.ledger.reserved[number]
            for number, engine in self.engines.items()
            if engine.stopping and (engine.model == asking or not promised(self.models[engine.model]))
        }

    def seen(self, engine: Engine, memory: Mapping[str, int]) -> None:
        """The engine was seen to take `memory` bytes on each device: it holds no less from now on.

        The devices know better than any estimate; but what an engine has not touched yet is still its own.
        """
        held = self.ledger.reserved[engine.number]
        self.ledger.reserve(engine.number, {device: max(size, memory.get(device, 0)) for device, size in held.items()})

    def gone(self, number: int) -> None:
        """The engine is no more, nor what it held."""
        self.ledger.release(number)
        del self.engines[number]
