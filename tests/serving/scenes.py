"""What tests of the scheduler share: models "m" and others on one device, each event by a short name.

Engines get their numbers in the order in which they are started, from 1 on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from modelops.api.errors import EngineFailed, ModelOpsError
from modelops.serving.admission import Bounds
from modelops.serving.events import (
    Ask,
    Candidate,
    Close,
    Effect,
    Event,
    Exited,
    IdleDue,
    Load,
    Loaded,
    LoadFailed,
    Outcome,
    Register,
    Residency,
    Residents,
    RestartDue,
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
from modelops.serving.placement import HOST, MB, Layout, Wants
from modelops.serving.scheduler import Scheduler
from serving.needs import machine, need

NEED = 100 * MB
#: Of each queue.
BOUNDS = Bounds(requests=2, prompt_tokens=1000)


class Like(ModelOpsError):
    """Equal to every error of exactly this class whose message holds these words."""

    def __init__(self, kind: type[ModelOpsError], words: str = "") -> None:
        super().__init__(words)
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return type(other) is self.kind and self.message in str(other)

    __hash__ = None  # type: ignore[assignment]


# --- events ---
def ask(
    ticket: int,
    model: str = "m",
    keep_alive_s: float | None = None,
    *,
    caller: str = "",
    weight: float = 1.0,
    tokens: int = 0,
    answer: int = 0,
) -> Ask:
    """`tokens`: of its prompt, as long as nothing has been learnt of the model."""
    residency = None if keep_alive_s is None else Residency(keep_alive_s)
    return Ask(ticket, model, residency, Share(caller, weight), 4 * tokens, answer)


def load(ticket: int, model: str = "m") -> Load:
    return Load(ticket, model)


def unload(ticket: int, model: str = "m", *, force: bool = False) -> Unload:
    return Unload(ticket, model, force)


def close(ticket: int, model: str = "m") -> Close:
    return Close(ticket, model)


def answered(ticket: int, model: str = "m", *, prompt: int = 1, answer: int = 1) -> Close:
    return Close(ticket, model, Outcome("answered"), Usage(prompt, answer))


def failed(ticket: int, model: str = "m") -> Close:
    return Close(ticket, model, Outcome("failed", "its engine answered 500"))


def up(engine: int, model: str = "m", memory: int = 80 * MB) -> Loaded:
    return Loaded(model, engine, {HOST: memory})


def broken(engine: int, model: str = "m") -> LoadFailed:
    return LoadFailed(model, engine, EngineFailed("no such tensor"))


def crash(engine: int, model: str = "m") -> Exited:
    return Exited(model, engine, "was killed by SIGKILL")


def down(engine: int, model: str = "m") -> Stopped:
    return Stopped(model, engine)


def due(model: str = "m") -> RestartDue:
    return RestartDue(model)


def idle(model: str = "m") -> IdleDue:
    return IdleDue(model)


def candidate(build: int = 1, size: int = NEED, slots: int = 2, reload_s: float = 1.0) -> Candidate:
    return Candidate(build, Wants(need(host=size)), slots, reload_s, recipe=build)


def register(
    model: str = "m",
    size: int = NEED,
    *,
    slots: int = 2,
    build: int = 1,
    reload_s: float = 1.0,
    keep_alive_s: float | None = None,
    pinned: bool = False,
) -> Register:
    return Register(model, candidate(build, size, slots, reload_s), Residency(keep_alive_s, pinned))


def swap(
    ticket: int,
    model: str = "m",
    size: int = NEED,
    *,
    build: int = 2,
    keep_alive_s: float | None = None,
    drain_first: bool = False,
) -> Swap:
    return Swap(ticket, model, candidate(build, size), Residency(keep_alive_s), drain_first)


# --- effects ---
def start(engine: int, model: str = "m", size: int = NEED, *, build: int = 1) -> Start:
    return Start(model, engine, build, Layout({HOST: size}))


def stop(engine: int, model: str = "m") -> Stop:
    """What is compared with `plain` effects: why it is stopped is for the log."""
    return Stop(model, engine, "", "requested")


def wanted(model: str = "m") -> Residents:
    return Residents(model, wanted=True)


def forgotten(model: str = "m") -> Residents:
    return Residents(model, wanted=False)


def restart(seconds: float, model: str = "m") -> Wake:
    return Wake(RestartDue(model), seconds)


def wake(seconds: float, model: str = "m") -> Wake:
    return Wake(IdleDue(model), seconds)


def plain(effects: Iterable[Effect]) -> list[Effect]:
    """The effects without why engines are stopped."""
    return [replace(effect, why="", reason="requested") if isinstance(effect, Stop) else effect for effect in effects]


class Scene:
    """A scheduler that is told events on a machine with `size` bytes of RAM, of which `others` take some, and GPUs.

    Engines take what is reserved for them as soon as they are started, and give it back when they are gone.
    """

    def __init__(
        self,
        *events: Event,
        size: int = 250 * MB,
        gpus: Sequence[int] = (),
        autoload: bool = True,
        budget: int = 0,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.scheduler = Scheduler(bounds, autoload=autoload, budget=budget)
        self.size = size
        self.gpus = gpus
        self.others = 0
        self.now = 0.0
        self.started: set[int] = set()  # those that live
        self.latest = 0
        self.tell(*events)

    def tell(self, *events: Event) -> list[Effect]:
        """What follows from the last of the events."""
        effects: list[Effect] = []
        for event in events:
            if isinstance(event, Stopped | LoadFailed | Exited):
                self.started.discard(event.engine)
            effects = plain(self.scheduler.on(event, self.now, self.room))
            started = {effect.engine for effect in effects if isinstance(effect, Start)}
            self.started |= started
            self.latest = max(self.latest, *started, 0)
        return effects

    def after(self, seconds: float) -> Scene:
        """The same, so much later."""
        self.now += seconds
        return self

    @property
    def taken(self) -> dict[int, Mapping[str, int]]:
        """What the engines take."""
        return {number: held for number, held in self.scheduler.ledger.reserved.items() if number in self.started}

    @property
    def room(self) -> Room:
        """What the machine shows."""
        free = machine(self.size - self.others, *self.gpus)
        for held in self.taken.values():
            for device, size in held.items():
                free[device] -= size
        return Room(free, self.taken, most=machine(self.size, *self.gpus))

    @property
    def reserved(self) -> dict[int, int]:
        """What the ledger holds, in MB, for each engine."""
        return {number: held[HOST] // MB for number, held in self.scheduler.ledger.reserved.items()}

    def phase(self, model: str = "m") -> str:
        """What `model` is."""
        return self.scheduler.models[model].phase
