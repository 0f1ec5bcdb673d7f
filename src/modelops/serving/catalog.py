"""Which models and versions exist. Owns the registrations; knows nothing of what is loaded.

A model is a name with versions v1, v2, …; a version is a file under one of the model roots. Files found under the roots
at start are registered under their own names. A name whose versions are adapters is a model as any other for callers;
it is called after the model that they change, `base:adapter`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelops.api.errors import Conflict, InvalidRequest, ModelOpsError, NotFound
from modelops.api.types import ModelType
from modelops.serving import gguf, lora, model_files, sources
from modelops.serving.arrivals import Arrivals
from modelops.serving.model_files import Roots
from modelops.serving.registry import Model, Registry, Version, tuned_part, wish_of
from modelops.serving.wishes import Wish
from modelops.settings import ModelEntry
from modelops.store.models import ModelQueries, VersionRow
from modelops.store.residents import ResidentQueries
from modelops.tasks import Tasks

__all__ = ["NAME", "Catalog", "Unused", "Version", "wish_of"]

log = logging.getLogger(__name__)

_POLICY = sources.Policy()
#: What a model may be called; a file of another name is not found by itself.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


#: Returns when no engine that is being started reads these versions' files any more.
Unused = Callable[[Sequence[Version]], Awaitable[None]]
_PUBLISHED = "published"  # in the first root: what jobs have made; not looked into for models


class Catalog(Registry):
    """The registered models, kept. `roots` are absolute, with links resolved; downloads go to the first one."""

    def __init__(
        self,
        queries: ModelQueries,
        residents: ResidentQueries,
        roots: Sequence[Path],
        arrivals: Arrivals,
        entries: Mapping[str, ModelEntry] = MappingProxyType({}),
        policy: sources.Policy = _POLICY,
    ) -> None:
        super().__init__(entries)
        self._queries = queries
        self._residents = residents
        self._arrivals = arrivals
        self._policy = policy
        self._roots = Roots(roots)
        self._files: set[Path] = set()
        self._registering = asyncio.Lock()  # two registrations of one file must find each other
        self._tasks = Tasks("catalogue")  # what is written is remembered too, whoever asked has gone or not
        #: Called with the name of a model when other adapters than before answer beside it.
        self.adapters_changed: Callable[[str], None] = lambda name: None

    async def open(self) -> None:
        """Read the state file, then register what has been put under the roots since."""
        for row in await self._queries.versions():
            self._remember(await self._recognised(row))
            self._models[row.model_name].active = row.number
        for chosen in await self._residents.all():
            model = self._models.get(chosen.model_name)
            if model and chosen.active in model.versions:
                model.active, model.previous = chosen.active, chosen.previous
            if model and chosen.tuned:
                self._tuned[chosen.model_name] = Wish.from_json(chosen.tuned)
        await self.refresh()
        for name, entry in self._entries.items():
            if name in self._models and not any(self._is_as_written(of, entry) for of in self.versions(name)):
                log.warning(
                    "'%s' was registered before, and not as the catalogue says now: it stays as it was; register that "
                    "as its next version and activate it, or remove '%s' to let it begin anew",
                    *(name, name),
                    extra={"model": name},
                )

    async def _recognised(self, row: VersionRow) -> VersionRow:
        """The row. What was published is known by its digest: where only its file's time has changed, as in a copy of
        the data folder, that is noted."""
        if not self._holds_published(Path(row.file)):
            return row
        found = await asyncio.to_thread(_as_it_is, row)
        if found != row:
            await self._queries.set_file(found)
        return found

    async def close(self) -> None:
        """Write what is still to be written."""
        await self._tasks.finish()

    async def refresh(self) -> None:
        """Register the files that have been put under the roots since the last look."""
        for file in await asyncio.to_thread(self._roots.scan):
            if name := gguf.model_name(file):
                await self._discover(name, file)

    async def activate(self, version: Version) -> None:
        """From now on `version` answers for its name, after a restart too. Raises Conflict where it is gone."""
        model = self._models.get(version.model_name)
        if model is None or version.number not in model.versions:
            raise Conflict(f"'{version.model_name}' {version.label} was removed meanwhile")
        if model.active != version.number:
            model.active, model.previous = version.number, model.active
            self._tell([version])
            note = self._residents.set_active(version.model_name, model.active, model.previous)
            await self._tasks.whole(f"activate {version.model_name} {version.label}", note)

    async def set_tuned(self, name: str, wish: Wish | None) -> None:
        """From now on `name` is run so where no caller says otherwise, after a restart too; with None as the catalogue
        file says. Only slots, cache type and tuning of `wish` are kept. Raises NotFound."""
        name = self.active(name).engine_name
        self.active(name)
        tuned = tuned_part(wish) if wish else Wish()
        if tuned == self._tuned.get(name, Wish()):
            return
        if tuned == Wish():
            del self._tuned[name]
        else:
            self._tuned[name] = tuned
        note = self._residents.set_tuned(name, "" if tuned == Wish() else tuned.to_json())
        await self._tasks.whole(f"note how {name} was tuned", note)

    async def remove(self, versions: Sequence[Version], unused: Unused | None = None) -> int:
        """Forget `versions`, delete their files where they are in the downloads' folder and nobody else's, and return
        the bytes that this gave back. The one that answers goes only with all others of its model.

        Files are deleted once what `unused` returns for them is done.
        """
        gone = self._forget(versions)
        self._tell(gone)
        return await self._tasks.whole("remove", self._erase(gone, unused))

    def _tell(self, versions: Sequence[Version]) -> None:
        for name in {version.engine_name for version in versions if version.base}:
            self.adapters_changed(name)

    async def _erase(self, versions: Sequence[Version], unused: Unused | None = None) -> int:
        freed = 0
        if unused:
            await unused(versions)
        async with self._registering:  # who registers one of them again begins when they are gone
            for name in {version.model_name for version in versions} - self._models.keys():
                await self._residents.remove(name)
            for version in versions:
                await self._queries.remove(version.model_name, version.number)
                others = (found.file for model in self._models.values() for found in model.versions.values())
                if version.file not in others and version.file.is_relative_to(self._roots.own):
                    self._files.discard(version.file)
                    freed += await asyncio.to_thread(model_files.delete, version.file)
        return freed

    async def prune(self) -> tuple[list[str], int]:
        """Remove registrations whose file is gone, and abandoned downloads; what was removed, and the bytes freed."""
        without = [
            version
            for model in list(self._models.values())
            for version in list(model.versions.values())
            if not await asyncio.to_thread(version.file.is_file)
        ]
        # Which of them answer is looked at now: it may have changed meanwhile.
        answering = {(name, model.active) for name, model in self._models.items()}
        gone = self._forget([found for found in without if (found.model_name, found.number) not in answering])
        freed = await self._tasks.whole("prune", self._erase(gone))
        abandoned, more = await asyncio.to_thread(sources.prune, self._roots.own)
        removed = [f"{version.model_name} {version.label}" for version in gone]
        return [*removed, *(f"the abandoned fetch of {name}" for name in abandoned)], freed + more

    async def register(self, name: str, path: str, model_type: ModelType) -> Version:
        """The version for the file or source `path`, registered if it is new; active if it is its name's first.

        Raises InvalidRequest for a path outside the roots or a file that is no model, NotFound for none at all.
        """
        self._refuse_adapter(name)
        if sources.is_source(path):
            source = sources.parse(path)
            file = await self._fetched(name, source)
            return await self._register(name, file, model_type, _key(source))
        file = await asyncio.to_thread(self._roots.resolve, path)
        return await self._register(name, file, model_type)

    async def peek(self, name: str, path: str, model_type: ModelType) -> Version:
        """What `register` would give, without registering it: where it would be new its number is 0. Raises as that;
        Conflict for a source that is still to be fetched."""
        self._refuse_adapter(name)
        if sources.is_source(path):
            file = await self._present(sources.parse(path))
            if file is None:
                raise Conflict("what has not been fetched cannot be looked at; register it first")
        else:
            file = await asyncio.to_thread(self._roots.resolve, path)
        return await self._known_or_new(name, file, model_type)

    async def peek_retyped(self, version: Version, model_type: ModelType) -> Version:
        """What `retyped` would give, as `peek`."""
        self._refuse_adapter(version.model_name)
        return await self._known_or_new(version.model_name, version.file, model_type)

    async def _known_or_new(self, name: str, file: Path, model_type: ModelType) -> Version:
        size, mtime_ns = await asyncio.to_thread(model_files.identity, file)
        number = self._known.get((name, model_type, str(file), size, mtime_ns))
        if number:
            return self._models[name].versions[number]
        return Version(name, 0, model_type, file, self._roots.shown(file), "", size, mtime_ns)

    async def retyped(self, version: Version, model_type: ModelType) -> Version:
        """The version of the same file that is served as `model_type`, registered if it is new."""
        self._refuse_adapter(version.model_name)
        return await self._register(version.model_name, version.file, model_type)

    async def digest(self, version: Version) -> Version:
        """`version` with its digest, computed and recorded on the first call, which reads the whole file. Raises
        NotFound where that is gone."""
        if version.digest:
            return version
        stop = threading.Event()
        try:
            value = await asyncio.to_thread(model_files.sha256, version.file, stop)
        except FileNotFoundError:
            raise NotFound(f"the file of '{version.model_name}' {version.label} is gone") from None
        finally:
            stop.set()  # a thread outlives its task's cancellation: the end would wait for a large file to be read
        note = self._queries.set_digest(version.model_name, version.number, value)
        await self._tasks.whole(f"note the digest of {version.model_name}", note)
        known = replace(version, digest=value)
        model = self._models.get(version.model_name)
        if model and version.number in model.versions:  # it may have been removed since
            model.versions[version.number] = known
        return known

    async def publish(
        self, name: str, file: Path, model_type: ModelType, lineage: Mapping[str, Any] = MappingProxyType({})
    ) -> Version:
        """The next version of `name`: the whole model in `file`, which is kept among the coordinator's own files. It
        answers if it is its name's first. The same file published again is the same version.

        Raises InvalidRequest for a file that is no model, Conflict where `name` is that of adapters, DiskFull.
        """
        model_files.check(await asyncio.to_thread(gguf.read_header, file), file)
        return await self._publish(Version(name, 0, model_type, file, "", "", lineage=lineage))

    async def publish_adapter(
        self, name: str, base: Version, file: Path, lineage: Mapping[str, Any] = MappingProxyType({})
    ) -> Version:
        """As `publish`, the LoRA adapter in `file`, which was made for the file of `base`. Its `name` is that of the
        base, a colon, and what the adapter is called. Raises InvalidRequest also for an adapter of another model."""
        base = await self.digest(base)
        found = Version(name, 0, base.model_type, file, "", "", base=base.digest, lineage=lineage)
        if not NAME.fullmatch(name) or found.engine_name != base.model_name or name.endswith(":"):
            raise InvalidRequest(f"an adapter of '{base.model_name}' is called '{base.model_name}:' and a name")
        if base.base or base.model_type != "llm":
            raise InvalidRequest(f"'{base.model_name}' {base.label} generates nothing that an adapter could change")
        await asyncio.to_thread(lora.check, file, base.file)
        return await self._publish(found)

    async def _publish(self, version: Version) -> Version:
        name, stop = version.model_name, threading.Event()
        try:
            digest = await asyncio.to_thread(model_files.sha256, version.file, stop)
        finally:
            stop.set()
        work = self._published(replace(version, digest=digest))
        return await self._tasks.whole(f"publish {name}", work, expected=(ModelOpsError,))

    async def _published(self, version: Version) -> Version:
        name = version.model_name
        async with self._registering:
            if name in self._models and self.is_adapter(name) != bool(version.base):
                kind = "an adapter" if self.is_adapter(name) else "a model"
                raise Conflict(f"'{name}' is {kind} already; publish this under another name")
            present = self._models[name].versions.values() if name in self._models else ()
            same = next((found for found in present if _same(found, version)), None)
            there = same is not None and await asyncio.to_thread(same.unchanged)
            if same and there:
                return same
            folder = self._roots.own / _PUBLISHED
            file = await asyncio.to_thread(model_files.place, version.file, folder, name, version.digest)
            size, mtime_ns = await asyncio.to_thread(model_files.identity, file)
            row = VersionRow(
                *(name, version.number, version.model_type, str(file), size, mtime_ns, version.digest, time.time()),
                base=version.base,
                lineage=_lineage(version),
            )
            return await (self._move(same, row) if same else self._add(row))

    async def _move(self, version: Version, row: VersionRow) -> Version:
        """The version with its file where the row says: it is the same, and was lost where it was."""
        row = replace(row, number=version.number, registered_at=version.registered_at, lineage=_lineage(version))
        await self._queries.set_file(row)
        if (model := self._models.get(version.model_name)) and version.number in model.versions:
            self._remember(row)
            self._tell([version])
        return self.known(version)

    async def _register(self, name: str, file: Path, model_type: ModelType, source: str = "") -> Version:
        work = self._registered(name, file, model_type, source)
        return await self._tasks.whole(f"register {name}", work, expected=(ModelOpsError,))

    async def _registered(self, name: str, file: Path, model_type: ModelType, source: str) -> Version:
        async with self._registering:
            try:
                size, mtime_ns = await asyncio.to_thread(model_files.identity, file)
            except OSError:  # removed just now, by somebody else
                raise NotFound(f"the file of '{name}' is gone") from None
            number = self._known.get((name, model_type, str(file), size, mtime_ns))
            if number:
                return self._models[name].versions[number]
            self._refuse_adapter(name)
            return await self._add(
                VersionRow(name, 0, model_type, str(file), size, mtime_ns, "", time.time(), source=source)
            )

    async def _add(self, row: VersionRow) -> Version:
        """The next version of its name, which answers if it is the first. The lock is held."""
        name = row.model_name
        added = await self._queries.add(row)
        if name not in self._models:  # its first: after a restart it is still the one that answers
            await self._residents.set_active(name, added.number, 0)
        self._remember(added)
        version = self._models[name].versions[added.number]
        file = version.file.name
        told = {"model": name, "version": version.label, "file": file, "bytes": version.size}
        log.info("registered %s from %s", name, file, extra=told)
        self._tell([version])
        return version

    def _remember(self, row: VersionRow) -> None:
        file = Path(row.file)
        model = self._models.setdefault(row.model_name, Model())
        model.versions[row.number] = Version(
            model_name=row.model_name,
            number=row.number,
            model_type=row.model_type,  # type: ignore[arg-type] # only valid types are written
            file=file,
            shown_path=self._roots.shown(file),
            digest=row.digest,
            size=row.size,
            mtime_ns=row.mtime_ns,
            registered_at=row.registered_at,
            source=row.source,
            base=row.base,
            lineage=json.loads(row.lineage) if row.lineage else {},
            published=self._holds_published(file),
        )
        model.active = model.active or row.number
        self._known[(row.model_name, row.model_type, row.file, row.size, row.mtime_ns)] = row.number
        self._files.add(file)

    def _holds_published(self, file: Path) -> bool:
        return file.is_relative_to(self._roots.own / _PUBLISHED)

    async def find(self, name: str, *, fetch: bool = False) -> Version:
        """As `active`, but a model whose file was put under a root or replaced since the last look is registered first.
        One that was published is not replaced: what else stands there is damage.

        With `fetch` one that the catalogue file names is fetched where that is needed. Raises InvalidRequest where
        there is a new file, and it is no model.
        """
        if name not in self._models and NAME.fullmatch(name):
            for file in await asyncio.to_thread(self._roots.scan, name):
                await self._discover(name, file, strict=True)
        if self.is_adapter(name) or (name in self._models and self.active(name).published):
            return self.active(name)
        entry = self._entries.get(name)
        if name not in self._models and entry and entry.source and not fetch:
            raise NotFound(
                f"'{name}' is named in the catalogue and has not been fetched yet; its first load fetches it"
            )
        if name not in self._models and entry and (entry.source or entry.file):
            await self.register(name, entry.source or entry.file, entry.type)
        if await asyncio.to_thread(self.active(name).replaced):
            await self._discover(name, self.active(name).file)
        return self.active(name)

    async def _discover(self, name: str, entry: Path, *, strict: bool = False) -> None:
        file = entry.resolve()
        # A file that was replaced is a new version of its model. Another file of a known name is left alone, and so is
        # a file that somebody has registered under another name.
        ours = self.active(name).file == file if name in self._models else file not in self._files
        if not ours or not NAME.fullmatch(name):
            return
        if not self._roots.hold(file):
            told = {"model": name, "file": entry.name}
            log.warning("skipping %s: the link leads out of the model roots", entry.name, extra=told)
            return
        try:
            header = await asyncio.to_thread(gguf.read_header, file)
            model_files.check(header, file)
        except ModelOpsError as error:
            if strict:
                raise
            told = {"model": name, "file": entry.name}
            log.warning("skipping a file under the model roots: %s", error, extra=told)
        else:
            known = name in self._models
            found = await self._register(
                name, file, self.active(name).model_type if known else model_files.natural_type(header)
            )
            await self.activate(found)

    def _is_as_written(self, version: Version, entry: ModelEntry) -> bool:
        """Whether the version is what the catalogue's entry names."""
        if "type" in entry.model_fields_set and version.model_type != entry.type:
            return False
        try:
            if entry.source:
                source = sources.parse(entry.source)
                fetched_otherwise = not version.source and version.file.name == source.name
                return fetched_otherwise or version.source == _key(source)
            return not entry.file or any((root / entry.file).resolve() == version.file for root in self._roots.folders)
        except (ModelOpsError, OSError, RuntimeError, ValueError):  # what is no source and no path
            return False

    async def _present(self, source: sources.Source) -> Path | None:
        """The file that the source was fetched to before."""
        known = [version for model in self._models.values() for version in model.versions.values()]
        for version in known:
            if version.source == _key(source) and await asyncio.to_thread(version.unchanged):
                return version.file
        return None

    async def _fetched(self, name: str, source: sources.Source) -> Path:
        """The source's file: the one that it was fetched to before, else it is fetched now."""
        if present := await self._present(source):
            return present
        target = self._roots.own / source.name
        if target.exists() and not await asyncio.to_thread(sources.has_digest, target, source.sha256):
            # Another source's, or somebody's own: files of one name may be different models.
            target = target.with_name(source.file_name(f"{gguf.model_name(target)}-{_key(source)[:8]}"))
        bring = partial(model_files.fetch, source, target, self._policy)
        return await self._arrivals.bring(source.identity, name, "fetching", bring)


def _as_it_is(row: VersionRow) -> VersionRow:
    """The row with the time of its file, where that is the same and only younger or older."""
    file = Path(row.file)
    try:
        size, mtime_ns = model_files.identity(file)
    except OSError:
        return row
    touched = size == row.size and mtime_ns != row.mtime_ns
    same = touched and sources.has_digest(file, row.digest.removeprefix("sha256:"))
    return replace(row, mtime_ns=mtime_ns) if same else row


def _lineage(version: Version) -> str:
    return json.dumps(dict(version.lineage)) if version.lineage else ""


def _same(one: Version, other: Version) -> bool:
    """Whether both are of the same content, and for the same."""
    known = bool(one.digest) and one.digest == other.digest
    return known and (one.model_type, one.base) == (other.model_type, other.base)


def _key(source: sources.Source) -> str:
    """What a source is known again by: its address may hold a secret."""
    return hashlib.sha256(source.identity.encode()).hexdigest()
