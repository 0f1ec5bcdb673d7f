"""The only writer of what is loaded: what callers want of it, and what anybody may look at.

Everybody else asks for a lease, or reads a frozen view for display. How it is done is `engine_room`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    DeadlineExceeded,
    ModelOpsError,
    NotFound,
    shutting_down,
)
from modelops.engines.base import EngineBroke
from modelops.metrics import Metrics
from modelops.metrics.families import QUEUE_WAIT, SWAP_DURATION
from modelops.serving.adapting import Adapting
from modelops.serving.builds import Build
from modelops.serving.catalog import Catalog, Version
from modelops.serving.devices import Machine
from modelops.serving.engine_room import EngineRoom, Remember
from modelops.serving.estimates import Estimates
from modelops.serving.events import (
    ANYBODY,
    Ask,
    Candidate,
    Close,
    Keep,
    Load,
    Register,
    Residency,
    Share,
    Swap,
    Unload,
)
from modelops.serving.loans import Loan
from modelops.serving.meter import Meter
from modelops.serving.placement import Bill, Plan, Wants, freed, together
from modelops.serving.quantised import Quantised
from modelops.serving.running import Running
from modelops.serving.state import Model
from modelops.serving.views import Lease, View, adapter_view, view_of
from modelops.serving.wishes import Wish
from modelops.settings import Settings
from modelops.tracing import NO_SPAN, Span, acting_for, current, part

#: Raises where it is not wanted any more. It is asked last, when nothing is waited for before it takes effect.
Confirm = Callable[[], None]


def _wanted() -> None:
    """Whatever has become of the model meanwhile."""


class Pool(EngineRoom):
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
        super().__init__(settings, catalog, machine, quantised, estimates, metrics, runtime_dir, remember)
        self._meter = Meter()
        self._tickets = itertools.count(1)
        self.adapting = Adapting(catalog, self.adapters, self, settings.models.max_queue)

    async def close(self) -> None:
        """Stop every engine; nothing of them is left when it returns. What is still in flight is told why it ends."""
        await self.adapting.close()
        await super().close()

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
        """A slot of `name`'s engine until the context is left; loads the model where that is needed and allowed. Of an
        adapter that is its model's engine, as soon as it holds the adapter.

        `deadline` is on the loop's clock; `keep_alive_s` holds once the request has ended, negative for ever, None as
        the model's own. `share` says whose the request is; `prompt_bytes` (of UTF-8) and `answer_tokens` (at most) how
        much it asks for; the wait is a part of `span`. Raises ModelOpsError where there will be no slot: Overloaded
        where the queue is full, or the model has failed lately, with when to come back.
        """
        began = time.perf_counter()
        ticket = next(self._tickets)
        closing: Close | None = None
        self._asking[ticket] = None
        adapter = self._catalog.active(name) if self._catalog.is_adapter(name) else None
        model = adapter.engine_name if adapter else name  # whose engine it is
        residency = None if keep_alive_s is None else Residency(keep_alive_s if keep_alive_s >= 0 else None)
        ask = Ask(ticket, model, residency, share, prompt_bytes, answer_tokens)
        try:
            try:
                with part(span, "queue", {"modelops.model": name}) as waiting, acting_for(waiting):
                    while True:
                        if adapter:
                            await self.adapting.held(name, deadline)
                        await self._prepare(model, deadline)
                        closing = Close(ticket, model)
                        number = await self._wait(ticket, ask, deadline, f"waiting for a slot of '{name}'")
                        if why := self._asking[ticket]:
                            raise why
                        running = self._running.get(number)
                        index = self._index(running, adapter)
                        if adapter is None or running is None or index is not None:
                            break
                        self._dispatch(closing)  # an engine without the adapter: asked again when there is one with it
                        closing = None
            finally:  # also of those who never got one
                waited_for = name if self._catalog.knows(name) else model
                self._metrics.observe(QUEUE_WAIT, time.perf_counter() - began, waited_for)
            if running is None:  # it ended between the grant and our turn
                raise EngineBroke(f"the engine of '{model}' ended; try again", "its engine ended")
            running.last_used_at = datetime.now(UTC)
            expected = self._scheduler.models[model].pace.prompt_tokens(prompt_bytes)
            version = running.build.version if index is None else running.adapters[index]
            lease = Lease(version, running.engine, lambda: self._asking[ticket], expected, index)
            self._meter.began(name, ticket, lambda: lease.usage)
            try:
                yield lease
            finally:
                self._meter.ended(name, ticket)
                closing = Close(ticket, model, lease.outcome, lease.usage)
            self._measure(ticket)
        finally:
            del self._asking[ticket]
            if closing is not None:
                self._dispatch(closing)

    def _index(self, running: Running | None, adapter: Version | None) -> int | None:
        """The number that the engine has for the adapter: in the version that was active when it was asked for, or
        one that is now."""
        if running is None or adapter is None:
            return None
        name = adapter.model_name
        active = self._catalog.active(name).number if self._catalog.is_adapter(name) else adapter.number
        return running.adapter(name, {adapter.number, active})

    async def load(self, version: Version, wish: Wish, deadline: float) -> View:
        """Load `version`; joins a load that is running, to which `wish` says how long the model stays, and no more.

        An adapter is loaded with its model. Raises AlreadyLoaded, InsufficientMemory, EngineFailed, …
        """
        if version.base:
            return await self.adapting.load(version, wish, deadline)
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
        if version.base:
            return await self.adapting.start_load(version, wish)
        ticket = await self._begin_load(version, wish)
        future = self._waiting[ticket] = self._loop.create_future()
        self._spans[ticket] = current()
        future.add_done_callback(lambda done: self._forget(ticket, done))
        self._dispatch(Load(ticket, version.model_name))
        if future.done():
            await future
        await self._noted()
        return self.view(version.model_name)

    async def activate(
        self,
        version: Version,
        *,
        wish: Wish | None = None,
        drain_first: bool,
        deadline: float,
        confirm: Confirm = _wanted,
    ) -> None:
        """Let `version` answer for its name from now on, run as `wish` says, or with None as before; where it is
        loaded, as `swap` does, and else from its next load on.

        With a wish what is under way, such as a restart, is waited for. Raises what `confirm` does, and leaves all as
        it is then; Conflict for an adapter with a wish: it is run as its model is.
        """
        name = version.model_name
        if version.base:
            if wish:
                raise Conflict(f"'{name}' is an adapter, and is run as '{version.engine_name}' is")
            confirm()
            await self.adapting.activate(version, drain_first=drain_first, deadline=deadline)
            return
        if wish:
            await self._rest(name, deadline)
        if self.resident(name):
            running = self.current(name)
            otherwise = wish is not None and (running is None or running.build.wish != wish)
            if otherwise or self.view(name).version.number != version.number:
                await self.swap(version, wish, drain_first=drain_first, deadline=deadline, confirm=confirm)
        confirm()
        await self._catalog.activate(version)
        if self.resident(name):
            return
        if wish:
            self._wishes[name] = wish
        model = self._scheduler.models.get(name)
        # What made it fail as it was run before is not held against it; what waits for room is not loaded as it was.
        if model and (wish or model.short):
            await self._register(version, wish or self._wishes.get(name) or self._catalog.wish(name))

    async def swap(
        self,
        version: Version,
        wish: Wish | None = None,
        *,
        drain_first: bool,
        deadline: float,
        confirm: Confirm = _wanted,
    ) -> View:
        """Serve the loaded model by `version` from now on, without a failed request, run as `wish` says, or with None
        as the present one; it may be the present version, run otherwise. A restart runs it so too.

        The new engine is started beside the old one, which ends when its last request has; with `drain_first` after it.
        What has begun goes on when its caller leaves or its time runs out: the version that serves is the active one.
        Raises Conflict where the model is not loaded, NotFound where its draft model is not there, InsufficientMemory
        where both do not fit, and what `confirm` does.
        """
        name, began = version.model_name, time.perf_counter()
        running = self.current(name)
        if running is None:
            raise Conflict(f"'{name}' is not loaded")
        if wish and wish.tuning.draft:
            self._catalog.active(wish.tuning.draft)
        try:
            async with asyncio.timeout_at(deadline):
                build = await self._build(version, running.build.wish if wish is None else wish)
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while '{name}' {version.label} was prepared") from None
        self._catalog.version(name, version.label)  # it may have been removed meanwhile
        ticket = next(self._tickets)
        event = Swap(ticket, name, build.candidate, build.wish.residency(self._settings.models.keep_alive), drain_first)
        work = self._swap(event, version, began, confirm)
        swapping = self._tasks.start(f"swap {name}", work, expected=(ModelOpsError,))
        await asyncio.wait([swapping], timeout=max(0.0, deadline - self._loop.time()))
        if not swapping.done():
            raise DeadlineExceeded(f"the time ran out while activating '{name}' {version.label}")
        if swapping.cancelled():
            raise shutting_down()
        swapping.result()
        return self.view(name)

    async def _rest(self, name: str, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while not self.at_rest(name):
                    await self.turned()
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while '{name}' was on its way to another state") from None

    async def _swap(self, event: Swap, version: Version, began: float, confirm: Confirm) -> None:
        while self.adapting.following(event.model) and not self.at_rest(event.model):
            await self.turned()
        confirm()
        await self._wait(event.ticket, event, None, f"activating '{event.model}' {version.label}")
        self._metrics.observe(SWAP_DURATION, time.perf_counter() - began, event.model)
        model, build = self._scheduler.models[event.model], self._builds.get(event.candidate.build)
        if build and model.wanted and model.candidate.build == event.candidate.build:
            self._noting = self._remember(event.model, build.wish)
        await self._catalog.activate(version)
        await self._noted()

    async def exchange(self, name: str, running: Running, chosen: Version | None, *, drain_first: bool) -> bool:
        """Let the active version of the model `name` be served, in the place of `running`, by an engine with the
        adapters that there are now, of which `chosen` is to be one and active from then on.

        False: something else became of the model before that began. Raises as `swap`.
        """
        began, version = time.perf_counter(), self._catalog.active(name)
        build = await self._build(version, running.build.wish, chosen)
        await asyncio.to_thread(self._catalog.version, name, version.label)  # it may have been replaced meanwhile
        if not self.at_rest(name) or self.current(name) is not running:
            return False
        ticket = next(self._tickets)
        event = Swap(ticket, name, build.candidate, build.wish.residency(self._settings.models.keep_alive), drain_first)
        await self._wait(ticket, event, None, f"waiting for the adapters of '{name}'")
        self._metrics.observe(SWAP_DURATION, time.perf_counter() - began, name)
        return True

    async def unload(self, name: str, *, force: bool, deadline: float) -> int:
        """Unload `name` and return the bytes given back, after its requests in flight unless `force`."""
        self.adapting.refuse_unload(name)
        model = self._scheduler.models.get(name)
        if model is None or (model.phase == "available" and model.breaker.until is None):
            self._catalog.active(name)
            raise Conflict(f"'{name}' is not loaded")
        held = sum(self._scheduler.books.held(name).values())
        ticket = next(self._tickets)
        await self._wait(ticket, Unload(ticket, name, force), deadline, f"unloading '{name}'")
        await self._noted()
        return held

    async def untune(self, name: str) -> None:
        """Forget how `name` was tuned, if it was: from its next load on it is run as configured. Raises AlreadyLoaded
        where it is loaded, or on its way, as it was tuned; NotFound."""
        if self._catalog.tuned(name) is None:
            return
        engine = self._engine_name(name)
        if self.resident(name):
            raise AlreadyLoaded(f"'{engine}' is loaded as it was tuned; unload it, and load it untuned then")
        self._wishes.pop(engine, None)
        await self._catalog.set_tuned(name, None)

    def in_use(self, name: str) -> set[int]:
        """The numbers of the versions of `name` that engines run, are about to run, or still finish with."""
        builds = {engine.candidate.build for engine in self._scheduler.engines.values() if engine.model == name}
        model = self._scheduler.models.get(name)
        if model and (model.short or model.phase not in ("available", "failed")):
            builds |= {model.candidate.build, *([model.fallback[0].build] if model.fallback else [])}
        return {build.version.number for build in map(self._builds.get, builds) if build}

    @contextlib.asynccontextmanager
    async def borrow(self, name: str, size: int, on_gpu: int = 0) -> AsyncIterator[Loan]:
        """Hold `size` bytes of RAM, and `on_gpu` of one GPU, for what is no model, called `name`; idle models may go
        for it.

        Raises InsufficientMemory.
        """
        loan, number = Loan(size, on_gpu), self._builds.number()
        title = f"{name} #{number}"  # two may be for the same thing
        candidate = Candidate(build=number, wants=loan.wants(name), slots=0)
        self._loans[title] = loan
        self._dispatch(Register(title, candidate, Residency(pinned=True)))
        ticket, longest = next(self._tickets), self._loop.time() + self._settings.server.request_timeout_s
        try:
            await self._wait(ticket, Load(ticket, title), longest, f"waiting for the memory of {name}")
            yield loan
        finally:
            self._dispatch(Unload(next(self._tickets), title, force=True))
            del self._loans[title]

    def preview_loan(self, name: str, size: int, on_gpu: int = 0) -> Plan | Bill:
        """What `borrow` would do now; nothing is done."""
        candidate = Candidate(build=self._builds.number(), wants=Loan(size, on_gpu).wants(name), slots=0)
        return self._scheduler.books.preview(candidate, name, self._loop.time(), self._room())

    async def preview(self, version: Version, wish: Wish) -> tuple[Build, Plan | Bill]:
        """What loading `version` would do now; nothing is done. Of an adapter: what loading its model would."""
        if version.base:
            version = await self.adapters.base(version)
        build = await self._builds.make(version, wish, None)
        return build, self._scheduler.books.preview(
            build.candidate, version.model_name, self._loop.time(), self._room()
        )

    def keep(self, names: Mapping[str, int]) -> None:
        """From now on these models, and no others, are kept as pinned ones are, whether or not they are loaded now; one
        with a higher number may evict one with a lower. An adapter is kept with its model."""
        kept: dict[str, int] = {}
        for name, number in names.items():
            engine = self._engine_name(name)
            kept[engine] = max(number, kept.get(engine, number))
        if kept != self._scheduler.books.kept:
            self._dispatch(Keep(kept))

    def waits(self, name: str) -> bool:
        """Whether `name` is kept, was refused for want of memory, and is loaded as soon as there is room."""
        model = self._scheduler.models.get(self._engine_name(name))
        return model is not None and model.short

    @property
    def kept(self) -> Mapping[str, int]:
        """What `keep` was told last, by the names of the engines' models."""
        return self._scheduler.books.kept

    async def unfit(self, versions: Mapping[str, Version]) -> tuple[str, Bill] | None:
        """The first of these models that has no place beside those before it, were nothing else loaded, with the
        bill; None where all have one. Raises ModelOpsError where one cannot be served."""
        wants: dict[str, Wants] = {}
        for name, version in versions.items():
            build, _ = await self.preview(version, self.wish(name) or self._catalog.wish(name))
            wants.setdefault(build.version.model_name, build.candidate.wants)
        books = self._scheduler.books
        free = freed(books.free(self._room()), books.ledger.reserved.values())
        return together(wants, free, cpu_layers=books.cpu_layers)

    # --- what anybody may look at ---
    def view(self, name: str) -> View:
        """The model as it stands. Raises NotFound."""
        version = self._catalog.active(name)
        if version.base:
            base = version.engine_name
            if not self._catalog.knows(base):
                return View(version, "available", base=base)
            coming = self.adapting.following(base)
            return adapter_view(version, self.view(base), self.current(base), self._meter.of(name), coming=coming)
        model = self._scheduler.models.get(name)
        if model is None:
            return View(version, "available")
        running = self.current(name)
        if running:
            version = self._catalog.known(running.build.version)
        usage = self._meter.total(name)
        return view_of(version, model, running, self._scheduler.books.held(name), usage, self._loop.time())

    def resident(self, name: str) -> bool:
        """Whether `name` is loaded, or on its way to be, or to go."""
        model = self._scheduler.models.get(self._engine_name(name))
        return model is not None and model.phase not in ("available", "failed")

    def wish(self, name: str) -> Wish | None:
        """How `name` was wished when it was last loaded; None if it never was."""
        return self._wishes.get(self._engine_name(name))

    def _engine_name(self, name: str) -> str:
        return self._catalog.active(name).engine_name if self._catalog.is_adapter(name) else name

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
                    if version.base:  # a moment ago there was nothing of that name
                        raise NotFound(f"there was no model '{name}' when it was asked for; there is now")
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
        self._join(name, build, wish)
        return next(self._tickets)

    def _join(self, name: str, build: Build, wish: Wish) -> None:
        """Whoever joins a load that is running has a say in how long the model stays, and in that alone."""
        model, joined = self._scheduler.models[name], build.wish.joined(wish)
        if model.phase == "loaded" or joined == build.wish:
            return
        build = self._builds.wished(build, joined)
        running = self.current(name)
        if running and running.build.candidate == build.candidate:
            running.build = build
        self._dispatch(Register(name, build.candidate, joined.residency(self._settings.models.keep_alive)))
        if model.wanted:
            self._noting = self._remember(name, joined)

    async def _register(self, version: Version, wish: Wish) -> None:
        """Make `version` the one that the next load of its name starts."""
        build = await self._build(version, wish)
        name = version.model_name
        model = self._scheduler.models.get(name)
        self._catalog.version(name, version.label)  # it may have been removed meanwhile
        if model is None or model.phase in ("available", "failed"):
            self._dispatch(Register(name, build.candidate, wish.residency(self._settings.models.keep_alive)))

    async def _build(self, version: Version, wish: Wish, chosen: Version | None = None) -> Build:
        models = self._scheduler.models.values()
        used = {model.candidate.build for model in models}
        used |= {engine.candidate.build for engine in self._scheduler.engines.values()}
        self._builds.keep(used | {model.fallback[0].build for model in models if model.fallback})
        return await self._builds.make(version, wish, self.borrow, chosen)

    # --- helpers ---
    def _forget(self, ticket: int, future: asyncio.Future[int]) -> None:
        del self._waiting[ticket], self._spans[ticket]
        if not future.cancelled():
            future.exception()  # the model's own state tells it
