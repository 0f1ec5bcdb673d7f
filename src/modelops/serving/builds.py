"""From a version and how it is wished to what an engine is started from: tuned, estimated, and a candidate to place.

Owns the builds that are in use or may be soon. Decides nothing about what is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from modelops.api.errors import Conflict, EngineFailed, InvalidRequest, ModelOpsError, NotFound
from modelops.engines.llama_cpp import find_executable
from modelops.engines.sight import Sight
from modelops.serving.adapters import Adapters
from modelops.serving.catalog import Catalog, Version
from modelops.serving.devices import Device, Machine
from modelops.serving.estimates import Estimate, Estimates, with_adapters
from modelops.serving.events import Candidate
from modelops.serving.placement import HOST, Layout, Wants
from modelops.serving.quantised import Borrow, Quantised
from modelops.serving.tuning import Tuned, laid_out, tune
from modelops.serving.wishes import Wish
from modelops.settings import EngineSettings

log = logging.getLogger(__name__)

#: How fast a file is read from a disk, to know what losing a model costs before it was ever loaded.
_READ_BYTES_PER_S = 500e6
_KEPT = 100  # the newest builds are kept even where nobody uses them yet


@dataclass(frozen=True)
class Build:
    """A version, and how it is run. `device` is the kind that it is estimated for: "gpu" where GPUs may take some.

    `adapters` are loaded beside it; `chosen` is the one among them that is to be active when it is.
    """

    version: Version
    wish: Wish
    tuned: Tuned
    estimate: Estimate
    candidate: Candidate
    device: str = "cpu"
    adapters: tuple[Version, ...] = ()
    chosen: Version | None = None


class Builds:
    """Makes builds, each with a number of its own, and keeps them."""

    def __init__(
        self,
        settings: EngineSettings,
        machine: Machine,
        quantised: Quantised,
        estimates: Estimates,
        adapters: Adapters,
        catalog: Catalog,
        sight: Sight,
    ) -> None:
        self._settings = settings
        self._adapters = adapters
        self._catalog = catalog
        self._machine = machine
        self._quantised = quantised
        self._estimates = estimates
        self._sight = sight
        self._numbers = itertools.count(1)
        self._known: dict[int, Build] = {}

    def get(self, number: int) -> Build | None:
        """The build `number`; None where it is none, or was forgotten."""
        return self._known.get(number)

    def choice(self, build: Build) -> Version | None:
        """The adapter that is to be active now that `build` is loaded for the first time; None where it was before."""
        self._known[build.candidate.build] = replace(build, chosen=None)
        return build.chosen

    def wished(self, build: Build, wish: Wish) -> Build:
        """`build`, wished so from now on; what it is started from is the same."""
        self._known[build.candidate.build] = replace(build, wish=wish)
        return self._known[build.candidate.build]

    def number(self) -> int:
        """A number that no build has or will have: for a candidate that is no model."""
        return next(self._numbers)

    async def gpus(self) -> list[Device]:
        """The GPUs that models may be placed on: those of the machine, unless the engine can use none."""
        there = [device for device in self._machine.devices() if device.device != HOST]
        if not there or there[0].simulated:
            return there
        try:
            executable = await asyncio.to_thread(find_executable, self._settings.executable)
        except EngineFailed:  # whoever builds is told
            return there
        return [] if await self._sight.blind(executable) else there

    async def make(self, version: Version, wish: Wish, borrow: Borrow | None, chosen: Version | None = None) -> Build:
        """A build of `version` with the adapters that answer beside it, of which `chosen` is to be one. Quantised
        weights are made where they are wished, in memory that `borrow` holds; with None they are only looked at. Raises
        ModelOpsError where it cannot be served."""
        async with self._served(version, wish, borrow) as file:
            while True:
                adapters = await self._adapters.beside(version, chosen)
                try:
                    build = await self._make(version, wish, replace(version, file=file), adapters, chosen)
                except ModelOpsError:  # if not of an adapter that was removed just now, it is of the model
                    if await asyncio.to_thread(lambda: all(map(self._adapters.there, adapters))):  # noqa: B023
                        raise
                else:
                    if borrow:  # nothing is started from one that is only looked at
                        self._known[build.candidate.build] = build
                    return build

    @contextlib.asynccontextmanager
    async def _served(self, version: Version, wish: Wish, borrow: Borrow | None) -> AsyncIterator[Path]:
        if not wish.quantization:
            yield version.file
        elif borrow:
            yield await self._quantised.file(version, borrow)
        else:
            async with self._quantised.look(version) as file:
                yield file

    async def _make(
        self, version: Version, wish: Wish, served: Version, adapters: tuple[Version, ...], chosen: Version | None
    ) -> Build:
        gpus = await self.gpus()
        cores, settings = self._machine.cores, self._settings
        draft = await self._draft(version, wish)
        guessing = wish if draft or wish.tuning.speculation != "draft" else _guessing_nothing(wish)
        work = functools.partial(tune, served, guessing, settings, cores, gpus=bool(gpus), adapters=adapters)
        tuned = await asyncio.to_thread(work, draft=draft.file if draft else None)
        kind = "gpu" if tuned.need.driver else "cpu"
        if gpus:  # what the estimate is of: all of it on the largest GPU, or all of it in RAM
            largest = max(gpus, key=lambda device: device.total)
            units = len(tuned.need.units) if kind == "gpu" else 0
            split = tuple(units if device is largest else 0 for device in gpus)
            tuned = replace(tuned, spec=laid_out(tuned.spec, Layout({}, split), [device.uuid for device in gpus]))
        bare = replace(tuned.spec, adapters=(), speculation="", draft=None)
        estimate = await self._estimates.estimate(bare, tuned.header, tuned.bare, kind)
        estimate = with_adapters(estimate, tuned.bare, tuned.need)
        extra, driver = estimate.total - tuned.need.total, estimate.need.driver
        smaller = [[(way, need.corrected(extra, driver)) for way, need in group] for group in tuned.alternatives]
        number, others = next(self._numbers), [*adapters, *([draft] if draft else [])]
        candidate = Candidate(
            build=number,
            wants=Wants(estimate.need, wish.offloaded if gpus else 0, tuple(map(tuple, smaller))),
            slots=tuned.spec.slots,
            reload_s=0.5 + tuned.header.weight_bytes / _READ_BYTES_PER_S,
            recipe=(version.number, wish, tuple((beside.model_name, beside.number) for beside in others)),
        )
        return Build(version, wish, tuned, estimate, candidate, kind, adapters, chosen)

    async def _draft(self, version: Version, wish: Wish) -> Version | None:
        """The version that is to guess ahead; none where it is gone: a model that was tuned is served without it, and
        answers the same. Raises InvalidRequest where it cannot guess."""
        tuning = wish.tuning
        if tuning.speculation != "draft":
            return None
        try:
            draft = await self._catalog.find(tuning.draft)
            await asyncio.to_thread(self._catalog.version, tuning.draft, draft.label)
        except (Conflict, NotFound) as error:
            name = version.model_name
            log.warning("nothing guesses ahead of '%s': %s", name, error.message, extra={"model": name})
            return None
        if draft.base or draft.model_type != "llm":
            raise InvalidRequest(f"'{tuning.draft}' is no model that generates, and cannot be a draft model")
        return draft

    def keep(self, used: Collection[int]) -> None:
        """Forget all but the builds that are `used` and the newest, which may be just about to be registered."""
        newest = max(self._known, default=0)
        self._known = {key: build for key, build in self._known.items() if key in used or key > newest - _KEPT}


def _guessing_nothing(wish: Wish) -> Wish:
    return replace(wish, tuning=replace(wish.tuning, speculation="", draft=""))
