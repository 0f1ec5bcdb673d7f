"""The life of models: register, load, activate, watch, unload, remove."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from modelops.api import types
from modelops.api.errors import AlreadyLoaded, Conflict, DeadlineExceeded, InsufficientMemory, NotFound, Overloaded
from modelops.service import told
from modelops.service.call import Call, Parts
from modelops.serving import sources
from modelops.serving.catalog import Version
from modelops.serving.formats import FOLDER, Formats
from modelops.serving.placement import MB, Bill, Plan
from modelops.serving.wishes import Wish

#: How often a watched model is looked at.
_LOOK_S = 0.2
#: What grows while a request is answered: no change that anybody would want to be told of at every look.
_COUNTERS = {"tokens_generated": 0, "prompt_tokens": 0}


class _About(Protocol):
    @property
    def model_name(self) -> str: ...


class Models:
    """The operations on models."""

    _parts: Parts

    # --- loading ---
    async def load_model(self, call: Call, request: types.ModelLoadRequest) -> types.ModelLoadReply:
        """Register the model where needed, and load it; with `dry_run` only say what would be done."""
        name, deadline = self._name(request), self._parts.deadline(call)
        if sources.is_source(request.model_path) and not request.wait and not request.dry_run:
            sources.parse(request.model_path)  # what is wrong with it is told now
            self._parts.arrivals.begin(name, "loading", lambda _: self._fetch_and_load(request, name))
            return types.ModelLoadReply(message=f"fetching '{name}'; GET /models/{name}/events tells the rest")
        try:
            async with asyncio.timeout_at(deadline):
                version = await self._version(request, name)
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while the file of '{name}' was fetched") from None
        wish = await self._wish(request, name)
        if request.dry_run:
            return await self._dry_run(version, wish)
        if not request.wait and wish.quantization and not version.base and await self._parts.quantised.would(version):
            self._parts.arrivals.begin(name, "loading", lambda _: self._parts.pool.start_load(version, wish))
            return types.ModelLoadReply(
                message=f"quantising '{name}'; GET /models/{name}/events tells the rest", model_version=version.label
            )
        if not request.wait:
            view = await self._parts.pool.start_load(version, wish)
            return told.loaded(view, f"loading '{name}'; GET /models/{name} tells the rest")
        view = await self._parts.pool.load(version, wish, deadline)
        self._parts.arrivals.forget(name)
        return told.loaded(view, f"'{name}' is loaded")

    async def unload_model(self, call: Call, request: types.ModelUnloadRequest) -> types.ModelUnloadReply:
        """Unload the model; its registration stays."""
        name, deadline = self._name(request), self._parts.deadline(call)
        if self._parts.arrivals.coming(name) and not self._parts.pool.resident(name):
            if not request.force:
                raise Conflict(f"the file of '{name}' is on its way; wait for it, or unload it with force")
            await self._parts.arrivals.end(name, Overloaded(f"'{name}' was unloaded", retry_after_s=1.0))
            return types.ModelUnloadReply(message=f"the file of '{name}' does not come any more")
        if self._parts.arrivals.of(name) and name not in self._parts.catalog.names():
            self._parts.arrivals.forget(name)
            return types.ModelUnloadReply(message=f"the failure of '{name}' is forgotten")
        freed = await self._parts.pool.unload(name, force=request.force, deadline=deadline)
        return types.ModelUnloadReply(message=f"'{request.model_name}' is unloaded", memory_freed_mb=freed // MB)

    async def _version(self, request: types.ModelLoadRequest, name: str) -> Version:
        """The version to load, registered where it is new, unless it is only to be looked at."""
        catalog, dry = self._parts.catalog, request.dry_run
        if request.model_path:
            return await (catalog.peek if dry else catalog.register)(name, request.model_path, request.model_type)
        version = await catalog.find(name, fetch=not dry)
        if "model_type" not in request.model_fields_set or request.model_type == version.model_type:
            return version
        return await (catalog.peek_retyped if dry else catalog.retyped)(version, request.model_type)

    async def _fetch_and_load(self, request: types.ModelLoadRequest, name: str) -> None:
        version = await self._parts.catalog.register(name, request.model_path, request.model_type)
        await self._parts.pool.start_load(version, await self._wish(request, name))

    async def _wish(self, request: types.ModelLoadRequest, name: str) -> Wish:
        """How it is to be run. Where that is `untuned`, how it was tuned is forgotten, unless this is a dry run."""
        if request.untuned and not request.dry_run:
            await self._parts.pool.untune(name)
        return _wish(request, self._parts.catalog.wish(name, untuned=request.untuned))

    async def _dry_run(self, version: Version, wish: Wish) -> types.ModelLoadReply:
        name = version.model_name
        if name in self._parts.catalog.names() and self._parts.pool.view(name).status == "loaded":
            raise AlreadyLoaded(f"'{name}' is already loaded")
        build, found = await self._parts.pool.preview(version, wish)
        if isinstance(found, Bill):
            raise InsufficientMemory(found.sentence(version.model_name), details=found.details())
        plan = told.plan(build, found)
        evicting = f" after {' and '.join(plan.evict)} went" if plan.evict else ""
        if wish.quantization and not version.base and (copy := await self._parts.quantised.would(version)):
            evicting += f", quantised first ({copy.target_bytes // MB} MB of disk)"
        return types.ModelLoadReply(
            message=f"'{version.model_name}' would be loaded{evicting}; nothing was done",
            model_version=version.label if version.number else "",  # it has none before it is registered
            memory_usage_mb=sum(device.memory_mb for device in plan.devices),
            plan=plan,
        )

    # --- looking ---
    async def list_models(self, _: Call, request: types.ListModelsRequest) -> types.ModelList:
        """What is resident or on its way, or with `all` everything that is registered."""
        if request.all:
            await self._parts.catalog.refresh()
        names = {*self._parts.catalog.names(), *self._parts.arrivals.names()}
        models = [self._info(name) for name in names]
        return told.by_name(model for model in models if request.all or model.status != "available")

    async def get_model(self, _: Call, request: types.GetModelRequest) -> types.ModelInfo:
        """One model as it stands."""
        name = self._name(request)
        if not self._parts.arrivals.of(name):
            await self._parts.catalog.find(name)
        return self._info(name)

    async def watch_model(self, call: Call, request: types.WatchModelRequest) -> AsyncGenerator[types.ModelEvent]:
        """The model whenever something about it has changed, until it rests, or the time is up."""
        seen = await self.get_model(call, types.GetModelRequest(model_name=request.model_name))
        shown, deadline = None, self._parts.deadline(call)
        while seen.status in ("loading", "unloading") and asyncio.get_running_loop().time() < deadline:
            if (told_of := seen.model_copy(update=_COUNTERS)) != shown:
                yield types.ModelEvent(model=seen)
                shown = told_of
            await asyncio.sleep(_LOOK_S)
            try:
                seen = self._info(seen.model_name)
            except NotFound:  # it never came, or was removed
                seen = seen.model_copy(update={"status": "available", "message": "", "progress": 0.0})
        yield types.ModelEvent(model=seen, done=True)

    async def explain_model(self, _: Call, request: types.ExplainModelRequest) -> types.ModelExplanation:
        """Where the model's memory goes, run as it is, or as it would be run now."""
        name = self._name(request)
        version = await self._parts.catalog.find(name)
        wish = self._parts.pool.wish(name) or self._parts.catalog.wish(name)
        build, found = await self._parts.pool.preview(version, wish)
        if layout := self._parts.pool.view(name).layout:
            found = Plan(layout)
        need, estimate = build.tuned.need, build.estimate
        return types.ModelExplanation(
            model_name=version.model_name,
            model_version=version.label,
            computed=[types.MemoryLine(name=name, mb=_mb(size)) for name, size in need.parts.items()],
            computed_mb=_mb(need.total),
            projected_mb=_mb(estimate.projected or 0),
            measured_mb=_mb(estimate.measured or 0),
            correction_mb=_mb(estimate.correction or 0),
            chosen_mb=_mb(estimate.total),
            chosen_from=estimate.source,
            per_gpu_mb=_mb(estimate.need.per_gpu) if estimate.need.driver else 0.0,
            plan=None if isinstance(found, Bill) else told.plan(build, found),
            refusal=found.sentence(version.model_name) if isinstance(found, Bill) else "",
        )

    # --- versions ---
    async def list_versions(self, _: Call, request: types.ListVersionsRequest) -> types.VersionList:
        """The model's versions, oldest first."""
        name = self._name(request)
        await self._parts.catalog.find(name)
        return types.VersionList(versions=self._versions(name))

    async def register_version(self, call: Call, request: types.RegisterVersionRequest) -> types.ModelVersion:
        """Register the file or source as the next version; active only if it is the first."""
        name, path = self._name(request), request.model_path
        if not request.wait and sources.is_source(path):
            sources.parse(path)
            register = self._parts.catalog.register
            self._parts.arrivals.begin(name, "registering", lambda _: register(name, path, request.model_type))
            return types.ModelVersion(model_name=name, model_version="", model_type=request.model_type)
        try:
            async with asyncio.timeout_at(self._parts.deadline(call)):
                version = await self._parts.catalog.register(name, path, request.model_type)
        except TimeoutError:
            raise DeadlineExceeded(f"the time ran out while the file of '{name}' was fetched") from None
        return next(found for found in self._versions(name) if found.model_version == version.label)

    async def activate_version(self, call: Call, request: types.ActivateVersionRequest) -> types.ModelInfo:
        """Let the version answer from now on; where the model is loaded, without a failed request."""
        version = await asyncio.to_thread(self._parts.catalog.version, self._name(request), request.model_version)
        return await self._activate(call, version, drain_first=request.drain_first)

    async def roll_back(self, call: Call, request: types.RollBackRequest) -> types.ModelInfo:
        """Let the version that was active before answer again."""
        version = await asyncio.to_thread(self._parts.catalog.previous, self._name(request))
        return await self._activate(call, version, drain_first=request.drain_first)

    async def remove_version(self, _: Call, request: types.RemoveVersionRequest) -> types.Removal:
        """Forget a version or all, and delete the files that are the coordinator's own."""
        name, label = self._name(request), request.model_version
        catalog = self._parts.catalog
        active = catalog.active(name)
        chosen = [found for found in catalog.versions(name) if label in ("all", found.label)]
        if not chosen:
            raise NotFound(f"'{name}' has no version '{label}'")
        pool = self._parts.pool
        used = pool.in_use(name)  # of an adapter never: its model's engine is replaced by one without it
        if busy := next((found for found in chosen if found.number in used), None):
            how = "kept by a goal; cancel that" if name in pool.kept else "loaded; unload it"
            raise Conflict(f"'{name}' {busy.label} is {how} first")
        if active in chosen and len(catalog.versions(name)) > len(chosen):
            raise Conflict(f"{active.label} answers for '{name}'; activate another version first")
        if adapters := await pool.adapters.orphaned(chosen):
            names = ", ".join(f"'{found.model_name}' {found.label}" for found in adapters)
            raise Conflict(f"adapters were made for what would be removed: {names}; remove them first")
        working = await self._parts.jobs.in_use()
        if busy := next((found for found in chosen if (name, found.label) in working), None):
            job_id = working[name, busy.label]
            raise Conflict(
                f"'{name}' {busy.label} is trained or judged by the learning job {job_id}; cancel that, or wait until "
                "it has ended",
                details={"job_id": job_id},
            )
        freed = await catalog.remove(chosen, pool.unused)
        if not catalog.knows(name):
            self._parts.metrics.forget(name)
        self._parts.arrivals.forget(name)
        return types.Removal(removed=[f"{name} {found.label}" for found in chosen], freed_mb=freed // MB)

    async def prune(self, _: Call, __: types.Empty) -> types.Removal:
        """Remove what nothing needs."""
        catalog = self._parts.catalog
        removed, freed = await catalog.prune()
        versions = [version for name in catalog.names() for version in catalog.versions(name)]
        digests = {version.digest for version in versions}
        copies, more = await asyncio.to_thread(self._parts.quantised.prune, digests)
        formats = Formats(catalog, self._parts.settings.data_dir / FOLDER)
        written, much = await asyncio.to_thread(formats.prune, digests)
        bases, most = await asyncio.to_thread(self._parts.jobs.prune, await self._trained(versions))
        removed += [*copies, *written, *bases]
        return types.Removal(removed=removed, freed_mb=(freed + more + much + most) // MB)

    async def _activate(self, call: Call, version: Version, *, drain_first: bool) -> types.ModelInfo:
        await self._parts.pool.activate(version, drain_first=drain_first, deadline=self._parts.deadline(call))
        return self._info(version.model_name)

    # --- helpers ---
    async def _trained(self, versions: Sequence[Version]) -> set[str]:
        """The digests of those of `versions` that jobs, or goals, which have not ended train."""
        jobs, goals = await self._parts.jobs.in_use(), await self._parts.goals.trained()
        return {
            version.digest
            for version in versions
            if version.model_name in goals or (version.model_name, version.label) in jobs
        }

    def _name(self, request: _About) -> str:
        return self._parts.catalog.resolve(request.model_name)

    def _info(self, name: str) -> types.ModelInfo:
        present = None
        if name in self._parts.catalog.names():
            present = told.info(self._parts.pool.view(name), self._parts.catalog.tuned(name))
        if arrival := self._parts.arrivals.of(name):
            found = told.arriving(arrival, name, present)
        else:
            found = present or told.info(self._parts.pool.view(name))
        return found.model_copy(update={"aliases": self._parts.catalog.aliases(name)})

    def _versions(self, name: str) -> list[types.ModelVersion]:
        catalog = self._parts.catalog
        active, previous = catalog.chosen(name)
        return [told.version(found, active=active, previous=previous) for found in catalog.versions(name)]


def _mb(size: int) -> float:
    return round(size / MB, 2)


def _wish(request: types.ModelLoadRequest, otherwise: Wish) -> Wish:
    """What the request wishes; what it leaves out is as the catalogue has it."""
    return Wish(
        quantization=request.quantization or otherwise.quantization,
        gpu_layers=request.gpu_layers or otherwise.gpu_layers,
        context_length=request.context_length or otherwise.context_length,
        slots=request.slots or otherwise.slots,
        cache_type=request.cache_type or otherwise.cache_type,
        tuning=otherwise.tuning,
        keep_alive_s=otherwise.keep_alive_s if request.keep_alive is None else request.keep_alive,
        pinned=otherwise.pinned if request.pin is None else request.pin,
    )
