"""Feeds the scheduler with what happens, performs its effects, and owns the engines: the lower half of the pool.

Every change goes through `_dispatch`, a plain function on the event loop's thread: where there is no `await` there is
no interleaving, so there is no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from modelops.api.errors import (
    Conflict,
    DeadlineExceeded,
    InternalError,
    ModelOpsError,
    shutting_down,
)
from modelops.engines.llama_cpp import Engine
from modelops.engines.sight import Sight
from modelops.metrics import Metrics
from modelops.metrics.families import EVICTIONS, LOAD_DURATION, LOAD_FAILURES
from modelops.serving.adapters import Adapters
from modelops.serving.admission import Bounds
from modelops.serving.builds import Build, Builds
from modelops.serving.catalog import Catalog, Version
from modelops.serving.devices import Device, Machine
from modelops.serving.estimates import Estimates
from modelops.serving.events import (
    NO_ROOM,
    Ask,
    Close,
    Drain,
    Effect,
    Event,
    Exited,
    Grant,
    Grown,
    Loaded,
    LoadFailed,
    Look,
    Refuse,
    Residents,
    Revoke,
    Room,
    Start,
    Stop,
    Stopped,
    Wake,
)
from modelops.serving.loans import Loan
from modelops.serving.placement import HOST, MB, Layout
from modelops.serving.quantised import Quantised
from modelops.serving.running import Running, room
from modelops.serving.scheduler import Scheduler
from modelops.serving.tuning import laid_out
from modelops.serving.turns import Turns
from modelops.serving.wishes import Wish
from modelops.settings import Settings
from modelops.tasks import Tasks
from modelops.tracing import NO_SPAN, Span, current, part

log = logging.getLogger("modelops.serving.pool")  # the whole is known as the pool

#: Longest wait at the end for answers that were cut short to tell their callers.
_LAST_WORDS_S = 1.0
#: Longest wait for a GPU to show the memory of a process that is gone: drivers lag.
_SHOWN_FREE_S = 5.0
_SHOWN_FREE_POLL_S = 0.02
#: While a kept model waits for room, how often it is looked for where no engine gives any back: others may.
_LOOK_S = 1.0
#: Told which models a restart has to load again: the name, and how it was wished; None: not any more. What it returns
#: is done when that is written.
Remember = Callable[[str, Wish | None], asyncio.Task[None] | None]


class EngineRoom:
    """The engines, the scheduler that decides about them, and who waits for what it says."""

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
        self.adapters = Adapters(catalog)
        sight = Sight(self._tasks)
        self._builds = Builds(settings.engine, machine, quantised, estimates, self.adapters, catalog, sight)
        self._running: dict[int, Running] = {}
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._spans: dict[int, Span] = {}  # of those that wait
        self._asking: dict[int, ModelOpsError | None] = {}  # requests, and why their slot was taken away
        self._wishes: dict[str, Wish] = {}  # of what was loaded: how its name is loaded again
        self._numbers = itertools.count(1)
        self._timers: dict[tuple[str, type], asyncio.TimerHandle] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._turns = Turns(machine.cores, self._pause)
        self._idle: asyncio.Event | None = None
        self._loans: dict[str, Loan] = {}
        self._was_busy = False
        #: Told whenever requests begin, wait, and when the last has ended.
        self.on_busy: Callable[[bool], None] = lambda busy: None
        self._turn = asyncio.Event()

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
        for timer in (*self._timers.values(), *([self._looking] if self._looking else [])):
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
        if (busy := self._busy()) != self._was_busy:
            self._was_busy = busy
            self.on_busy(busy)
        if self._idle and not busy:
            self._idle.set()
        if self._looking is None and self._scheduler.books.short:
            self._looking = self._loop.call_later(_LOOK_S, self._look)
        if not isinstance(event, Ask | Close | Grown | Look):
            self._turn.set()
            self._turn = asyncio.Event()

    def _look(self) -> None:
        self._looking = None
        if self._scheduler.books.short:
            self._dispatch(Look())

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
                if loan := self._loans.get(name):  # memory without an engine
                    loan.number, loan.layout = number, layout
                if (build := self._builds.get(chosen)) is None:
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
        # A restart comes long after its build was made: by then an adapter may have been removed.
        adapters = tuple(adapter for adapter in build.adapters if self.adapters.there(adapter))
        files = tuple(self._catalog.known(adapter).file for adapter in adapters)
        spec = replace(laid_out(build.tuned.spec, layout, uuids), adapters=files)
        return Running(build, layout, Engine(spec, self._runtime_dir / f"{next(self._numbers)}.sock"), adapters)

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
                if version.published:  # an engine may take what was damaged for a model, and answer anything
                    await asyncio.to_thread(self._catalog.known(version).check)
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
        try:
            for answers in (version, self._builds.choice(running.build)):
                with contextlib.suppress(Conflict):  # forgotten while it was loaded: it goes with its engine
                    if answers:
                        await self._catalog.activate(answers)
        finally:  # it is loaded, whether or not that can be written
            self._wishes[name] = running.build.wish
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

    # --- looking ---
    async def gpus(self) -> list[Device]:
        """The GPUs that models may be placed on: those of the machine, unless the engine can use none."""
        return await self._builds.gpus()

    def at_rest(self, name: str) -> bool:
        """Whether nothing is about to become of the model: its engine serves, or it has none."""
        model = self._scheduler.models.get(name)
        if model is None or model.phase in ("available", "failed"):
            return True
        return model.phase == "loaded" and model.incoming is None

    async def turned(self) -> None:
        """Wait until something became of any model."""
        await self._turn.wait()

    async def unused(self, versions: Sequence[Version]) -> None:
        """Wait until no engine is being started with one of these adapters: then none reads their files any more."""
        keys = {(version.model_name, version.number) for version in versions}
        reading = [
            running.starting
            for running in self._running.values()
            if running.starting and any((held.model_name, held.number) in keys for held in running.adapters)
        ]
        if reading:
            await asyncio.wait(reading)

    def _busy(self) -> bool:
        models = self._scheduler.models.values()
        return any(not ask.share.quiet for model in models for ask in model.asked.values())

    def current(self, name: str) -> Running | None:
        """The engine that requests for the model go to, or will when it is loaded."""
        model = self._scheduler.models.get(name)
        return self._running.get(model.engine.number) if model and model.engine else None

    def _room_for(self, event: Event) -> Room:
        """The room, looked at only for events that can begin a load."""
        return self._room() if self._scheduler.books.needs_room(event) else NO_ROOM

    def _room(self) -> Room:
        devices = self._machine.devices()
        found = room(devices, self._running, self._settings.memory)
        lent = {loan.number: loan.counted(devices) for loan in self._loans.values() if loan.number}
        return replace(found, taken={**found.taken, **lent}) if lent else found

    # --- waiting ---
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

    # --- measuring ---
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
            measuring = self._estimates.loaded(tuned.spec, tuned.header, tuned.bare, taken, running.build.device)
            self._tasks.start(f"measure {engine.model}", measuring)
        running.measured = True
