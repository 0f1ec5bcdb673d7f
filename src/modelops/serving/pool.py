"""The only writer of what is loaded: feeds the scheduler, performs its effects, owns the engines.

Every change goes through `_dispatch`, a plain function on the event loop's thread: where there is no `await` there is
no interleaving, so there is no lock. Everybody else asks for a lease, or reads a frozen view for display.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

from modelops.api.errors import (
    Conflict,
    DeadlineExceeded,
    InternalError,
    ModelOpsError,
    shutting_down,
)
from modelops.engines.base import EngineBroke
from modelops.engines.llama_cpp import Engine
from modelops.metrics import Metrics
from modelops.metrics.families import EVICTIONS, LOAD_DURATION, LOAD_FAILURES, QUEUE_WAIT, SWAP_DURATION
from modelops.serving.admission import Bounds
from modelops.serving.builds import Build, Builds
from modelops.serving.catalog import Catalog, Version
from modelops.serving.devices import Machine
from modelops.serving.estimates import Estimates
from modelops.serving.events import (
    ANYBODY,
    BEGINNERS,
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
    Load,
    Loaded,
    LoadFailed,
    Refuse,
    Register,
    Residency,
    Residents,
    Revoke,
    Room,
    Share,
    Start,
    Stop,
    Stopped,
    Swap,
    Unload,
    Wake,
)
from modelops.serving.memory import Need
from modelops.serving.meter import Meter
from modelops.serving.placement import HOST, MB, Bill, Layout, Plan, Wants
from modelops.serving.quantised import Quantised
from modelops.serving.running import Running, room
from modelops.serving.scheduler import Scheduler
from modelops.serving.state import Model
from modelops.serving.tuning import laid_out
from modelops.serving.turns import Turns
from modelops.serving.views import Lease, View, view_of
from modelops.serving.wishes import Wish
from modelops.settings import Settings
from modelops.tasks import Tasks
from modelops.tracing import NO_SPAN, Span, acting_for, current, part

log = logging.getLogger(__name__)

#: Longest wait at the end for answers that were cut short to tell their callers.
_LAST_WORDS_S = 1.0
#: Longest wait for a GPU to show the memory of a process that is gone: drivers lag.
_SHOWN_FREE_S = 5.0
_SHOWN_FREE_POLL_S = 0.02
#: Told which models a restart has to load again: the name, and how it was wished; None: not any more. What it returns
#: is done when that is written.
Remember = Callable[[str, Wish | None], asyncio.Task[None] | None]


class Pool:
    """Loads, serves and unloads the catalog's models."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        machine: Machine,
        quantised: Quantised,
        estimates: Estimates,
        metrics: Metrics,
        runtime_dir: Path,
        remember: Remember = lambda name, wish: None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._machine = machine
        self._estimates = estimates
        self._metrics = metrics
        self._meter = Meter()
        self._runtime_dir = runtime_dir
        self._remember = remember
        self._noting: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks("pool")
        self._scheduler = Scheduler(
            Bounds(settings.models.max_queue, settings.models.max_queued_tokens),
            autoload=settings.models.autoload,
            budget=settings.memory.budget_mb * MB,
            cpu_layers=settings.memory.cpu_layers,
        )
        self._builds = Builds(settings.engine, machine, quantised, estimates)
        self._running: dict[int, Running] = {}
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._spans: dict[int, Span] = {}  # of those that wait
        self._asking: dict[int, ModelOpsError | None] = {}  # requests, and why their slot was taken away
        self._wishes: dict[str, Wish] = {}  # of what was loaded: how its name is loaded again
        self._tickets = itertools.count(1)
        self._numbers = itertools.count(1)
        self._timers: dict[tuple[str, type], asyncio.TimerHandle] = {}
        self._turns = Turns(machine.cores, self._pause)
        self._idle: asyncio.Event | None = None

    # --- what callers want ---
    @contextlib.asynccontextmanager
    async def lease(
        self,
        name: str,
        deadline: float,
        keep_alive_s: float | None = None,
        *,
        share: Share = ANYBODY,
        prompt_bytes: int = 0,
        answer_tokens: int = 0,
        span: Span = NO_SPAN,
    ) -> AsyncIterator[Lease]:
        """A slot of `name`'s engine until the context is left; loads the model where that is needed and allowed.

        `deadline` is on the loop's clock; `keep_alive_s` holds once the request has ended, negative for ever, None as
        the model's own. `share` says whose the request is; `prompt_bytes` (of UTF-8) and `answer_tokens` (at most) how
        much it asks for; the wait is a part of `span`. Raises ModelOpsError where there will be no slot: Overloaded
        where the queue is full, or the model has failed lately, with when to come back.
        """
        began = time.perf_counter()
        ticket = next(self._tickets)
        closing: Close | None = None
        self._asking[ticket] = None
        residency = None if keep_alive_s is None else Residency(keep_alive_s if keep_alive_s >= 0 else None)
        ask = Ask(ticket, name, residency, share, prompt_bytes, answer_tokens)
        try:
            try:
                with part(span, "queue", {"modelops.model": name}) as waiting, acting_for(waiting):
                    await self._prepare(name, deadline)
                    closing = Close(ticket, name)
                    number = await self._wait(ticket, ask, deadline, f"waiting for a slot of '{name}'")
            finally:  # also of those who never got one
                self._metrics.observe(QUEUE_WAIT, time.perf_counter() - began, name)
            if why := self._asking[ticket]:
                raise why
            running = self._running.get(number)
            if running is None:  # it ended between the grant and our turn
                raise EngineBroke(f"the engine of '{name}' ended; try again", "its engine ended")
            running.last_used_at = datetime.now(UTC)
            expected = self._scheduler.models[name].pace.prompt_tokens(prompt_bytes)
            lease = Lease(running.build.version, running.engine, lambda: self._asking[ticket], expected)
            self._meter.began(name, ticket, lambda: lease.usage)
            try:
                yield lease
            finally:
                self._meter.ended(name, ticket)
                closing = Close(ticket, name, lease.outcome, lease.usage)
            self._measure(ticket)
        finally:
            del self._asking[ticket]
            if closing is not None:
                self._dispatch(closing)

    async def load(self, version: Version, wish: Wish, deadline: float) -> View:
        """Load `version`; joins a load that is running. Raises AlreadyLoaded, InsufficientMemory, EngineFailed, …"""
        try:
            async with asyncio.timeout_at(deadline):
                ticket = await self._begin_load(version, wish)
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while the load of '{version.model_name}' was prepared") from None
        await self._wait(ticket, Load(ticket, version.model_name), deadline, f"loading '{version.model_name}'")
        await self._noted()
        return self.view(version.model_name)

    async def start_load(self, version: Version, wish: Wish) -> View:
        """Begin to load `version` and return at once; the view tells the rest. Refusals are raised as in `load`."""
        ticket = await self._begin_load(version, wish)
        future = self._waiting[ticket] = self._loop.create_future()
        self._spans[ticket] = current()
        future.add_done_callback(lambda done: self._forget(ticket, done))
        self._dispatch(Load(ticket, version.model_name))
        if future.done():
            await future
        await self._noted()
        return self.view(version.model_name)

    async def swap(self, version: Version, *, drain_first: bool, deadline: float) -> View:
        """Serve the loaded model by `version` from now on, without a failed request; it is wished as the present one.

        The new engine is started beside the old one, which ends when its last request has; with `drain_first` after it.
        What has begun goes on when its caller leaves or its time runs out: the version that serves is the active one.
        Raises Conflict where the model is not loaded, InsufficientMemory where both do not fit.
        """
        name, began = version.model_name, time.perf_counter()
        running = self._current(name)
        if running is None:
            raise Conflict(f"'{name}' is not loaded")
        try:
            async with asyncio.timeout_at(deadline):
                build = await self._build(version, running.build.wish)
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while '{name}' {version.label} was prepared") from None
        self._catalog.version(name, version.label)  # it may have been removed meanwhile
        ticket = next(self._tickets)
        event = Swap(ticket, name, build.candidate, _residency(build.wish, self._settings), drain_first)
        swapping = self._tasks.start(f"swap {name}", self._swap(event, version, began), expected=(ModelOpsError,))
        await asyncio.wait([swapping], timeout=max(0.0, deadline - self._loop.time()))
        if not swapping.done():
            raise DeadlineExceeded(f"the time ran out while activating '{name}' {version.label}")
        if swapping.cancelled():
            raise shutting_down()
        swapping.result()
        return self.view(name)

    async def _swap(self, event: Swap, version: Version, began: float) -> None:
        await self._wait(event.ticket, event, None, f"activating '{event.model}' {version.label}")
        self._metrics.observe(SWAP_DURATION, time.perf_counter() - began, event.model)
        await self._catalog.activate(version)

    async def unload(self, name: str, *, force: bool, deadline: float) -> int:
        """Unload `name` and return the bytes given back, after its requests in flight unless `force`."""
        model = self._scheduler.models.get(name)
        if model is None or (model.phase == "available" and model.breaker.until is None):
            self._catalog.active(name)
            raise Conflict(f"'{name}' is not loaded")
        held = sum(self._held(name).values())
        ticket = next(self._tickets)
        await self._wait(ticket, Unload(ticket, name, force), deadline, f"unloading '{name}'")
        await self._noted()
        return held

    def in_use(self, name: str) -> set[int]:
        """The numbers of the versions of `name` that engines run, are about to run, or still finish with."""
        builds = {engine.candidate.build for engine in self._scheduler.engines.values() if engine.model == name}
        model = self._scheduler.models.get(name)
        if model and model.phase not in ("available", "failed"):
            builds |= {model.candidate.build, *([model.fallback[0].build] if model.fallback else [])}
        return {build.version.number for build in map(self._builds.get, builds) if build}

    @contextlib.asynccontextmanager
    async def borrow(self, name: str, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes of RAM for what is no model, called `name`; idle models may go for it.

        Raises InsufficientMemory.
        """
        number = self._builds.number()
        wants = Wants(Need(layers=(), output=0, tied=0, host=size, compute=0, parts={name: size}), gpu_layers=0)
        loan = f"{name} #{number}"  # two may be for the same thing
        self._dispatch(Register(loan, Candidate(build=number, wants=wants, slots=0), Residency(pinned=True)))
        ticket, longest = next(self._tickets), self._loop.time() + self._settings.server.request_timeout_s
        try:
            await self._wait(ticket, Load(ticket, loan), longest, f"waiting for the memory of {name}")
            yield
        finally:
            self._dispatch(Unload(next(self._tickets), loan, force=True))

    async def preview(self, version: Version, wish: Wish) -> tuple[Build, Plan | Bill]:
        """What loading `version` would do now; nothing is done."""
        build = await self._builds.make(version, wish, None)
        return build, self._scheduler.books.preview(
            build.candidate, version.model_name, self._loop.time(), self._room()
        )

    # --- what anybody may look at ---
    def view(self, name: str) -> View:
        """The model as it stands. Raises NotFound."""
        version = self._catalog.active(name)
        model = self._scheduler.models.get(name)
        if model is None:
            return View(version, "available")
        running = self._current(name)
        if running:
            version = self._catalog.known(running.build.version)
        usage = self._meter.total(name)
        return view_of(version, model, running, self._held(name), usage, self._loop.time())

    def resident(self, name: str) -> bool:
        """Whether `name` is loaded, or on its way to be, or to go."""
        model = self._scheduler.models.get(name)
        return model is not None and model.phase not in ("available", "failed")

    def wish(self, name: str) -> Wish | None:
        """How `name` was wished when it was last loaded; None if it never was."""
        return self._wishes.get(name)

    def views(self) -> list[View]:
        """Every registered model as it stands, by name."""
        return [self.view(name) for name in self._catalog.names()]

    def reserved(self) -> dict[str, int]:
        """What the ledger holds of each device of which it holds anything, in bytes."""
        held: dict[str, int] = {}
        for sizes in self._scheduler.ledger.reserved.values():
            for device, size in sizes.items():
                held[device] = held.get(device, 0) + size
        return held

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
        for timer in self._timers.values():
            timer.cancel()
        self._turns.end()
        await asyncio.gather(*(running.engine.stop() for running in self._running.values()))
        await self.drain(_LAST_WORDS_S)
        self._turns.end()

    # --- the one writer ---
    def _dispatch(self, event: Event) -> None:
        for effect in self._scheduler.on(event, self._loop.time(), self._room_for(event)):
            self._perform(effect)
        self._turns.busy(
            {
                number: running.build.tuned.spec.threads
                for number, running in self._running.items()
                if (engine := self._scheduler.engines.get(number)) and engine.active and not running.layout.gpu_layers
            }
        )
        if self._idle and not self._busy():
            self._idle.set()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Grant(ticket, engine):
                if (future := self._waiting.get(ticket)) and not future.done():
                    future.set_result(engine)
            case Refuse(ticket, error):
                if (future := self._waiting.get(ticket)) and not future.done():
                    future.set_exception(error)
            case Revoke(ticket, error):
                self._asking[ticket] = error
            case Start(name, number, chosen, layout):
                if (build := self._builds.get(chosen)) is None:  # a loan: memory without an engine
                    self._loop.call_soon(self._dispatch, Loaded(name, number, {}))
                    return
                running = self._running[number] = self._prepared(build, layout)
                running.starting = self._tasks.start(
                    f"load {name}", self._start(name, number, running, self._beginner(name))
                )
            case Stop(name, number, why, reason):
                if number in self._running:  # or it is a loan, or was never started
                    self._metrics.count(EVICTIONS, name, reason)
                self._tasks.start(f"unload {name}", self._stop(name, number, why))
            case Wake(event, seconds):
                key = (event.model, type(event))
                if timer := self._timers.pop(key, None):
                    timer.cancel()
                self._timers[key] = self._loop.call_later(seconds, self._dispatch, event)
            case Residents(name, wanted):
                if known := self._builds.get(self._scheduler.models[name].candidate.build):
                    self._noting = self._remember(name, known.wish if wanted else None)

    def _prepared(self, build: Build, layout: Layout) -> Running:
        uuids = [device.uuid for device in self._machine.devices() if device.device != HOST]
        spec = laid_out(build.tuned.spec, layout, uuids)
        return Running(build, layout, Engine(spec, self._runtime_dir / f"{next(self._numbers)}.sock"))

    def _beginner(self, name: str) -> Span:
        """Of whoever has waited longest for what is loaded now. What comes back after a crash is loaded for nobody,
        unless somebody asks for the load."""
        model = self._scheduler.models[name]
        waiting = model.swaps or [*model.loads, *(() if model.crashes else model.queue)]
        return self._spans.get(min(waiting, default=0), NO_SPAN)

    async def _start(self, name: str, number: int, running: Running, beginner: Span) -> None:
        engine, version = running.engine, running.build.version
        about = {"model": name, "version": version.label}
        log.info("loading %s %s", name, version.label, extra=about)
        began = time.perf_counter()
        try:
            with part(beginner, f"load {name}", {"modelops.model": name, "modelops.version": version.label}):
                await engine.start()
        except ModelOpsError as error:
            log.warning("loading %s failed: %s", name, error, extra=about)
            self._failed(name, number, error)
            return
        except Exception:
            log.exception("loading %s failed", name, extra=about)
            self._failed(name, number, InternalError(f"loading '{name}' failed; the log has the reason"))
            return
        running.loaded(datetime.now(UTC))
        took = time.perf_counter() - began
        self._metrics.observe(LOAD_DURATION, took, name)
        log.info("loaded %s in %.1f s", name, took, extra=about | {"seconds": round(took, 3)})
        self._tasks.start(f"watch {name}", self._watch(name, number, running))
        self._wishes[name] = running.build.wish
        try:
            with contextlib.suppress(Conflict):  # forgotten while it was loaded: it goes with its engine
                await self._catalog.activate(version)
        finally:  # it is loaded, whether or not that can be written
            self._dispatch(Loaded(name, number, running.holds(self._machine.devices())))
        await self._catalog.digest(version)

    def _failed(self, name: str, number: int, error: ModelOpsError) -> None:
        if not self._scheduler.engines[number].stopping:  # else Stopped follows, and the record is still needed
            del self._running[number]
        self._metrics.count(LOAD_FAILURES, name, error.code)
        self._dispatch(LoadFailed(name, number, error))

    async def _watch(self, name: str, number: int, running: Running) -> None:
        ended = await running.engine.exited()
        engine = self._scheduler.engines.get(number)
        if engine is None or engine.stopping:
            return
        log.warning("the engine of %s %s", name, ended.reason, extra={"model": name, "engine": number})
        self._dispatch(Exited(name, number, ended.reason))

    async def _stop(self, name: str, number: int, why: str) -> None:
        running = self._running.get(number)  # none: it was never started
        try:
            if running:
                if running.starting and not running.starting.done():
                    running.starting.cancel()
                    await asyncio.wait([running.starting])
                pids = running.pids | running.engine.pids()
                await running.engine.stop()
                await self._shown_free(pids)
                version = running.build.version.label
                log.info("unloaded %s %s: %s", name, version, why, extra={"model": name, "version": version})
        except Exception:
            # What waits for its memory is told all the same, and looks again.
            log.exception("unloading %s failed", name, extra={"model": name})
        self._running.pop(number, None)  # not before it is gone: `close` must find one that is still ending
        self._dispatch(Stopped(name, number))

    async def _shown_free(self, pids: set[int]) -> None:
        """Wait until no GPU counts the processes, that are gone, any more."""
        deadline = self._loop.time() + _SHOWN_FREE_S
        while any(pids & device.used_by.keys() for device in self._machine.devices()):
            if self._loop.time() > deadline:
                log.warning("a GPU still counts the memory of an engine that is gone")
                return
            await asyncio.sleep(_SHOWN_FREE_POLL_S)

    def _pause(self, number: int, paused: bool) -> None:
        if running := self._running.get(number):
            running.engine.pause() if paused else running.engine.resume()

    # --- preparing a load ---
    async def _prepare(self, name: str, deadline: float) -> None:
        """See that the load which a request for `name` may begin is one of the version that is active now."""
        model = self._scheduler.models.get(name)
        if model and (model.phase not in ("available", "failed") or self._refuses(name, model)):
            return
        version = None
        try:
            async with asyncio.timeout_at(deadline):
                while version is None or self._catalog.active(name).number != version.number:  # another was activated
                    version = await self._catalog.find(name, fetch=True)
                    await self._register(version, self._wishes.get(name) or self._catalog.wish(name))
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while looking at the file of '{name}'") from None

    def _refuses(self, name: str, model: Model) -> bool:
        """Whether a request would be refused because of what has failed, which another version has not."""
        if model.breaker.lets(self._loop.time()):
            return False
        build = self._builds.get(model.candidate.build)
        return build is not None and build.version.number == self._catalog.active(name).number

    async def _begin_load(self, version: Version, wish: Wish) -> int:
        name = version.model_name
        model = self._scheduler.models.get(name)
        if model is None or model.phase in ("available", "failed"):
            await self._register(version, wish)
        candidate = self._scheduler.models[name].candidate  # another version's, where its load began meanwhile
        build = self._builds.get(candidate.build)
        assert build is not None, "the build of a candidate that is registered is kept"
        present = build.version
        if present.number != version.number:
            raise Conflict(f"'{name}' {present.label} is loaded; activate {version.label} to replace it")
        return next(self._tickets)

    async def _register(self, version: Version, wish: Wish) -> None:
        """Make `version` the one that the next load of its name starts."""
        build = await self._build(version, wish)
        name = version.model_name
        model = self._scheduler.models.get(name)
        self._catalog.version(name, version.label)  # it may have been removed meanwhile
        if model is None or model.phase in ("available", "failed"):
            self._dispatch(Register(name, build.candidate, _residency(wish, self._settings)))

    async def _build(self, version: Version, wish: Wish) -> Build:
        models = self._scheduler.models.values()
        used = {model.candidate.build for model in models}
        used |= {engine.candidate.build for engine in self._scheduler.engines.values()}
        self._builds.keep(used | {model.fallback[0].build for model in models if model.fallback})
        return await self._builds.make(version, wish, self.borrow)

    # --- helpers ---
    async def _wait(self, ticket: int, event: Event, deadline: float | None, what: str) -> int:
        """Dispatch `event` and wait for its ticket's Grant; the engine's number, where it is a slot that was granted.

        Raises what it was refused with, or DeadlineExceeded.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting[ticket], self._spans[ticket] = future, current()
        try:
            self._dispatch(event)
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while {what}") from None
        finally:
            del self._waiting[ticket], self._spans[ticket]

    async def _noted(self) -> None:
        """Wait until the state file holds what a restart has to bring back: nobody is told before that it will."""
        if self._noting and not self._noting.done():
            await asyncio.wait([self._noting])

    def _forget(self, ticket: int, future: asyncio.Future[int]) -> None:
        del self._waiting[ticket], self._spans[ticket]
        if not future.cancelled():
            future.exception()  # the model's own state tells it

    def _busy(self) -> bool:
        return any(model.active or model.queued for model in self._scheduler.models.values())

    def _current(self, name: str) -> Running | None:
        model = self._scheduler.models.get(name)
        return self._running.get(model.engine.number) if model and model.engine else None

    def _held(self, name: str) -> dict[str, int]:
        """Bytes that the ledger holds for all engines of `name`, for each device."""
        held: dict[str, int] = {}
        for engine in self._scheduler.engines.values():
            if engine.model == name:
                for device, size in self._scheduler.ledger.reserved.get(engine.number, {}).items():
                    held[device] = held.get(device, 0) + size
        return held

    def _room_for(self, event: Event) -> Room:
        """The room, looked at only for events that can begin a load."""
        if not isinstance(event, BEGINNERS):
            return NO_ROOM
        if isinstance(event, Ask) and self._scheduler.models[event.model].phase == "loaded":
            return NO_ROOM
        return self._room()

    def _room(self) -> Room:
        return room(self._machine.devices(), self._running, self._settings.memory)

    def _measure(self, ticket: int) -> None:
        """After its first answer an engine has touched most of what it takes: what that is, the next estimate knows.

        What GPUs hold for it may grow later, too: it is looked at again now and then.
        """
        engine = next((engine for engine in self._scheduler.engines.values() if ticket in engine.active), None)
        running = self._running.get(engine.number) if engine else None
        if engine is None or running is None or not running.look(self._loop.time()):
            return
        devices = self._machine.devices()
        self._dispatch(Grown(engine.model, engine.number, running.holds(devices)))
        if not running.measured and (taken := running.taken(devices)):
            tuned = running.build.tuned
            measuring = self._estimates.loaded(tuned.spec, tuned.header, tuned.need, taken, running.build.device)
            self._tasks.start(f"measure {engine.model}", measuring)
        running.measured = True


def _residency(wish: Wish, settings: Settings) -> Residency:
    keep = settings.models.keep_alive if wish.keep_alive_s is None else wish.keep_alive_s
    return Residency(keep if keep >= 0 else None, wish.pinned)
