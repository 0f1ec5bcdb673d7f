"""The only writer of what is loaded: feeds the scheduler, performs its effects, owns the engines.

Every change goes through `_dispatch`, a plain function on the event loop's thread: where there is no `await` there is
no interleaving, so there is no lock. Everybody else asks for a lease, or reads a frozen view for display.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from modelops.api.errors import (
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    InternalError,
    ModelOpsError,
    shutting_down,
)
from modelops.api.types import ModelStatus
from modelops.engines.base import Piece, Prompt
from modelops.engines.llama_cpp import Engine
from modelops.serving import devices
from modelops.serving.catalog import Catalog, Version
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
from modelops.serving.scheduler import Phase, Scheduler
from modelops.serving.tuning import Tuned, Wish, tune
from modelops.settings import Settings
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: What callers are told of each phase.
_STATUS: dict[Phase, ModelStatus] = {
    "available": "available",
    "loading": "loading",
    "loaded": "loaded",
    "unloading": "unloading",
    "restarting": "loading",
    "failed": "failed",
}
#: Longest wait at the end for answers that were cut short to tell their callers.
_LAST_WORDS_S = 1.0


@dataclass
class _Resident:
    """What the pool keeps of a model beside the scheduler's state."""

    version: Version
    tuned: Tuned
    wish: Wish
    engine: Engine | None = None
    starting: asyncio.Task[None] | None = None
    restart: asyncio.TimerHandle | None = None
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None


@dataclass(frozen=True)
class View:
    """One model as it stands, for display only: a decision made from it would be late."""

    version: Version
    status: ModelStatus
    memory_mb: int = 0
    gpu_layers: int = 0
    context_length: int = 0
    slots: int = 0
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None
    active: int = 0
    queued: int = 0
    message: str = ""
    engine_pid: int = 0


@dataclass
class Lease:
    """A slot of a loaded model, held from admission to the last byte. `version` is the one that answers."""

    version: Version
    engine: Engine
    revoked: Callable[[], ModelOpsError | None]

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Piece]:
        """The engine's answer, piece by piece; raises the reason instead of the engine's where the slot was taken."""
        try:
            async with contextlib.aclosing(self.engine.generate(prompt)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineFailed:
            if why := self.revoked():
                raise why from None
            raise


class Pool:
    """The engines of this machine. `runtime_dir` is a short path of our own for their sockets."""

    def __init__(self, settings: Settings, catalog: Catalog, runtime_dir: Path) -> None:
        self._settings = settings
        self._catalog = catalog
        self._runtime_dir = runtime_dir
        self._scheduler = Scheduler(
            max_queue=settings.models.max_queue,
            autoload=settings.models.autoload,
            budget=settings.memory.budget_mb * MB,
        )
        self._residents: dict[str, _Resident] = {}
        self._tickets = itertools.count(1)
        self._sockets = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._asking: dict[int, ModelOpsError | None] = {}  # requests, from their ticket to the last byte: why revoked
        self._tasks = Tasks("pool")
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Event | None = None

    # --- what callers ask ---
    @contextlib.asynccontextmanager
    async def lease(self, name: str, deadline: float) -> AsyncIterator[Lease]:
        """A slot of `name`, loading it first where needed; `deadline` is in the loop's time. Raises ModelOpsError."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._prepare(name)
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while looking at the file of '{name}'") from None
        ticket = next(self._tickets)
        self._asking[ticket] = None
        try:
            await self._wait(ticket, Ask(ticket, name), deadline, f"waiting for a slot of '{name}'")
            resident = self._residents[name]
            if why := self._asking[ticket]:
                raise why
            if resident.engine is None:  # it ended between the grant and our turn
                raise EngineFailed(f"the engine of '{name}' ended; try again")
            resident.last_used_at = datetime.now(UTC)
            yield Lease(resident.version, resident.engine, lambda: self._asking[ticket])
        finally:
            del self._asking[ticket]
            self._dispatch(Close(ticket, name))

    async def load(self, version: Version, wish: Wish, deadline: float) -> View:
        """Load `version`; joins a load that is running. Raises AlreadyLoaded, InsufficientMemory, EngineFailed, …"""
        ticket = await self._begin_load(version, wish)
        await self._wait(ticket, Load(ticket, version.model_name), deadline, f"loading '{version.model_name}'")
        return self.view(version.model_name)

    async def start_load(self, version: Version, wish: Wish) -> View:
        """Begin to load `version` and return at once; the view tells the rest. Refusals are raised as in `load`."""
        ticket = await self._begin_load(version, wish)
        future = self._waiting[ticket] = self._loop.create_future()
        future.add_done_callback(lambda done: self._forget(ticket, done))
        self._dispatch(Load(ticket, version.model_name))
        if future.done():
            await future
        return self.view(version.model_name)

    async def unload(self, name: str, *, force: bool, deadline: float) -> int:
        """Unload `name` and return the bytes given back, after its requests in flight unless `force`."""
        self._catalog.active(name)
        if name not in self._residents:
            raise Conflict(f"'{name}' is not loaded")
        held = self._scheduler.ledger.reserved.get(name, 0)
        ticket = next(self._tickets)
        await self._wait(ticket, Unload(ticket, name, force), deadline, f"unloading '{name}'")
        return held

    # --- what anybody may look at ---
    def view(self, name: str) -> View:
        """The model as it stands. Raises NotFound."""
        version = self._catalog.active(name)
        resident = self._residents.get(name)
        if resident is None:
            return View(version, "available")
        model = self._scheduler.models[name]
        status = _STATUS[model.phase]
        return View(
            version=version if status == "available" else resident.version,
            status=status,
            memory_mb=self._scheduler.ledger.reserved.get(name, 0) // MB,
            gpu_layers=resident.wish.gpu_layers,
            context_length=resident.tuned.spec.context_length,
            slots=resident.tuned.spec.slots,
            loaded_at=resident.loaded_at if resident.engine else None,
            last_used_at=resident.last_used_at,
            active=len(model.active),
            queued=model.queued,
            message=model.error.message if model.error else "",
            engine_pid=resident.engine.pid if resident.engine else 0,
        )

    def views(self) -> list[View]:
        """Every registered model as it stands, by name."""
        return [self.view(name) for name in self._catalog.names()]

    def reserved_bytes(self) -> int:
        """What the ledger holds in all."""
        return sum(self._scheduler.ledger.reserved.values())

    # --- the end ---
    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait until the accepted ones have ended, `seconds` at most."""
        self._dispatch(Drain())
        deadline = self._loop.time() + seconds
        while self._busy() and (left := deadline - self._loop.time()) > 0:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._idle.wait()

    async def close(self) -> None:
        """Stop every engine; nothing of them is left when it returns. What is still in flight is told why it ends."""
        self._dispatch(Drain())
        gone = shutting_down()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(gone)
        self._asking = dict.fromkeys(self._asking, gone)
        await self._tasks.close()
        engines = [resident.engine for resident in self._residents.values() if resident.engine]
        await asyncio.gather(*(engine.stop() for engine in engines))
        await self.drain(_LAST_WORDS_S)

    # --- the one writer ---
    def _dispatch(self, event: Event) -> None:
        for effect in self._scheduler.on(event, self._loop.time(), self._free_bytes(event)):
            self._perform(effect)
        if self._idle and not self._busy():
            self._idle.set()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Grant(ticket):
                if (future := self._waiting.get(ticket)) and not future.done():
                    future.set_result(None)
            case Refuse(ticket, error):
                if (future := self._waiting.get(ticket)) and not future.done():
                    future.set_exception(error)
            case Revoke(ticket, error):
                self._asking[ticket] = error
            case Start(name):
                resident = self._residents[name]
                resident.starting = self._tasks.start(f"load {name}", self._start(name, resident))
            case Stop(name):
                self._tasks.start(f"unload {name}", self._stop(name, self._residents[name]))
            case Wake(name, seconds):
                if timer := self._residents[name].restart:
                    timer.cancel()
                self._residents[name].restart = self._loop.call_later(seconds, self._dispatch, RestartDue(name))

    async def _start(self, name: str, resident: _Resident) -> None:
        engine = Engine(resident.tuned.spec, self._runtime_dir / f"{next(self._sockets)}.sock")
        log.info("loading %s %s", name, resident.version.label)
        began = self._loop.time()
        try:
            await engine.start()
        except ModelOpsError as error:
            log.warning("loading %s failed: %s", name, error)
            self._dispatch(LoadFailed(name, error))
            return
        except Exception:
            log.exception("loading %s failed", name)
            self._dispatch(LoadFailed(name, InternalError(f"loading '{name}' failed; the log has the reason")))
            return
        resident.engine = engine
        resident.loaded_at = datetime.now(UTC)
        log.info("loaded %s in %.1f s", name, self._loop.time() - began)
        self._tasks.start(f"watch {name}", self._watch(name, resident, engine))
        self._dispatch(Loaded(name, engine.memory_bytes()))
        resident.version = await self._catalog.digest(resident.version)

    async def _watch(self, name: str, resident: _Resident, engine: Engine) -> None:
        ended = await engine.exited()
        if resident.engine is engine and self._scheduler.models[name].phase == "loaded":
            log.warning("the engine of %s %s", name, ended.reason)
            resident.engine = None
            self._dispatch(Exited(name, ended.reason))
            await engine.stop()  # nothing runs any more: this closes the connections and removes the socket

    async def _stop(self, name: str, resident: _Resident) -> None:
        if resident.starting and not resident.starting.done():
            resident.starting.cancel()
            await asyncio.wait([resident.starting])
        if resident.engine:
            await resident.engine.stop()
            resident.engine = None  # not before it is gone: `close` must find one that is still ending
        log.info("unloaded %s", name)
        self._dispatch(Stopped(name))

    # --- helpers ---
    async def _prepare(self, name: str) -> None:
        """See that the load which a request for `name` may begin is one of the version that is active now."""
        model = self._scheduler.models.get(name)
        if model is None or (model.phase in ("available", "failed") and not model.cooling_s(self._loop.time())):
            resident = self._residents.get(name)
            await self._tune(await self._catalog.find(name), resident.wish if resident else Wish())

    async def _begin_load(self, version: Version, wish: Wish) -> int:
        name = version.model_name
        if name not in self._residents or self._scheduler.models[name].phase in ("available", "failed"):
            await self._tune(version, wish)
        resident = self._residents[name]  # another version's, where its load began meanwhile
        if resident.version.number != version.number:
            raise Conflict(f"'{name}' {resident.version.label} is loaded; unload it before {version.label}")
        return next(self._tickets)

    async def _tune(self, version: Version, wish: Wish) -> None:
        """Make `version` the one that the next load of its name starts."""
        tuned = await asyncio.to_thread(tune, version, wish, self._settings.engine)
        name = version.model_name
        model = self._scheduler.models.get(name)
        if model is None or model.phase in ("available", "failed"):
            self._residents[name] = _Resident(version, tuned, wish)
            self._dispatch(Register(name, tuned.need.total, tuned.spec.slots))

    async def _wait(self, ticket: int, event: Event, deadline: float, what: str) -> None:
        """Dispatch `event` and wait for its ticket's Grant; raises what it was refused with, or DeadlineExceeded."""
        future = self._waiting[ticket] = self._loop.create_future()
        try:
            self._dispatch(event)
            async with asyncio.timeout_at(deadline):
                await future
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while {what}") from None
        finally:
            del self._waiting[ticket]

    def _forget(self, ticket: int, future: asyncio.Future[None]) -> None:
        del self._waiting[ticket]
        if not future.cancelled():
            future.exception()  # the model's own state tells it

    def _busy(self) -> bool:
        return any(model.active or model.queued for model in self._scheduler.models.values())

    def _free_bytes(self, event: Event) -> int:
        """Memory that the machine shows as free, less the reserve. Looked at only for events that can begin a load."""
        if not isinstance(event, Ask | Load | Stopped | RestartDue):
            return 0
        if isinstance(event, Ask) and self._scheduler.models[event.model].phase == "loaded":
            return 0
        return devices.available_bytes() - self._settings.memory.reserve_mb * MB
