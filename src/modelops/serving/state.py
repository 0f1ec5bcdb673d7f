"""The scheduler's books: what it knows of each model and each engine. Written by the scheduler only. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from modelops.api.errors import ModelOpsError
from modelops.serving.events import Candidate, Residency
from modelops.serving.placement import Layout, eviction_cost

Phase = Literal["available", "loading", "loaded", "unloading", "restarting", "failed"]

#: Seconds for which requests to a failed model are refused before one may try to load it again.
FAILED_S = 15.0


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

    @property
    def has_slot(self) -> bool:
        """Whether one more request can be answered."""
        return len(self.active) < self.candidate.slots


@dataclass
class Model:
    """One model. `engine` is the one that new requests go to; `incoming` is to take its place; `retiring` were replaced
    and finish what they have."""

    candidate: Candidate
    residency: Residency
    phase: Phase = "available"
    engine: Engine | None = None
    incoming: Engine | None = None
    retiring: dict[int, Engine] = field(default_factory=dict)
    queue: deque[int] = field(default_factory=deque)
    later: deque[int] = field(default_factory=deque)  # asked while it is unloading: they wait for the next engine
    loads: list[int] = field(default_factory=list)
    swaps: list[int] = field(default_factory=list)
    unloads: list[int] = field(default_factory=list)
    keep: Residency | None = None  # of the last request that brought its own
    asked: dict[int, Residency] = field(default_factory=dict)  # by ticket: what its request brought
    crashes: int = 0
    changed_at: float = 0.0
    idle_since: float = 0.0
    error: ModelOpsError | None = None
    wanted: bool = False  # a restart has to bring it back

    @property
    def idle(self) -> bool:
        """Loaded, and nobody uses it or waits for it."""
        return self.phase == "loaded" and not self.active and not self.queue and not self.incoming

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
        return len(self.queue) + len(self.later)

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds that it stays after its last request; None: until memory is needed."""
        if self.residency.pinned:
            return None
        return (self.keep or self.residency).keep_alive_s

    def cooling_s(self, now: float) -> float:
        """Seconds for which requests are still refused because the model has failed."""
        return max(0.0, self.changed_at + FAILED_S - now) if self.phase == "failed" else 0.0

    def cost(self, now: float) -> float | None:
        """What evicting it costs; None where it must stay."""
        if not self.idle or self.residency.pinned:
            return None
        return eviction_cost(
            reload_s=self.candidate.reload_s, idle_s=max(0.0, now - self.idle_since), keep_alive_s=self.keep_alive_s
        )
