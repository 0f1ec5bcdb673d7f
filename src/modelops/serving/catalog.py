"""Which models and versions exist. Owns the registrations; knows nothing of what is loaded.

A model is a name with versions v1, v2, …; a version is a file under one of the model roots. Files found under the roots
at start are registered under their own names.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hashlib
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from modelops.api.errors import Conflict, InvalidRequest, ModelOpsError, NotFound
from modelops.api.types import ModelType
from modelops.serving import gguf, layers, sources
from modelops.serving.arrivals import Arrivals, Progress
from modelops.serving.wishes import Wish
from modelops.settings import ModelEntry
from modelops.store.models import ModelQueries, VersionRow
from modelops.store.residents import ResidentQueries
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

_NO_ENTRY = ModelEntry()
_POLICY = sources.Policy()
_POOLING_RANK = 4  # llama.cpp's LLAMA_POOLING_TYPE_RANK
#: What a model may be called; a file of another name is not found by itself.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


@dataclass(frozen=True)
class Version:
    """One version of a model. `shown_path` is its file relative to its root: what callers may see and send back."""

    model_name: str
    number: int
    model_type: ModelType
    file: Path
    shown_path: str
    digest: str
    size: int = 0
    mtime_ns: int = 0
    registered_at: float = 0.0
    source: str = ""

    @property
    def label(self) -> str:
        """How callers name it."""
        return f"v{self.number}"


@dataclass
class _Model:
    versions: dict[int, Version] = field(default_factory=dict)
    active: int = 0
    previous: int = 0


class Catalog:
    """The registered models. `roots` are absolute, with links resolved; downloads go to the first one."""

    def __init__(
        self,
        queries: ModelQueries,
        residents: ResidentQueries,
        roots: Sequence[Path],
        arrivals: Arrivals,
        entries: Mapping[str, ModelEntry] = MappingProxyType({}),
        policy: sources.Policy = _POLICY,
    ) -> None:
        self._queries = queries
        self._residents = residents
        self._arrivals = arrivals
        self._entries = entries
        self._policy = policy
        self._aliases = {alias: name for name, entry in entries.items() for alias in entry.aliases}
        self._roots = [root.resolve() for root in roots]
        self._models: dict[str, _Model] = {}
        self._known: dict[tuple[str, str, str, int, int], int] = {}  # what makes a version → its number
        self._files: set[Path] = set()
        self._registering = asyncio.Lock()  # two registrations of one file must find each other
        self._tasks = Tasks("catalogue")  # what is written is remembered too, whoever asked has gone or not

    async def open(self) -> None:
        """Read the state file, then register what has been put under the roots since."""
        for row in await self._queries.versions():
            self._remember(row)
            self._models[row.model_name].active = row.number
        for chosen in await self._residents.all():
            model = self._models.get(chosen.model_name)
            if model and chosen.active in model.versions:
                model.active, model.previous = chosen.active, chosen.previous
        await self.refresh()
        for name, entry in self._entries.items():
            if name in self._models and not any(self._is_as_written(of, entry) for of in self.versions(name)):
                log.warning(
                    "'%s' was registered before, and not as the catalogue says now: it stays as it was; register that "
                    "as its next version and activate it, or remove '%s' to let it begin anew",
                    *(name, name),
                    extra={"model": name},
                )

    async def close(self) -> None:
        """Write what is still to be written."""
        await self._tasks.finish()

    async def refresh(self) -> None:
        """Register the files that have been put under the roots since the last look."""
        for file in await asyncio.to_thread(self._scan):
            if name := gguf.model_name(file):
                await self._discover(name, file)

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._models)

    def knows(self, name: str) -> bool:
        """Whether `name` is registered."""
        return name in self._models

    def preloaded(self) -> list[str]:
        """The models that the catalogue file wants loaded at the start."""
        return [name for name, entry in self._entries.items() if entry.preload]

    def active(self, name: str) -> Version:
        """The version that answers for `name`. Raises NotFound."""
        try:
            model = self._models[name]
        except KeyError:
            close = difflib.get_close_matches(name, [*self._models, *self._entries, *self._aliases], n=1)
            hint = f"did you mean '{close[0]}'?" if close else "the listing of all models tells those that there are"
            raise NotFound(f"there is no model '{name}'; {hint}") from None
        return model.versions[model.active]

    def known(self, version: Version) -> Version:
        """`version` with what has been learnt of it since, such as its digest."""
        model = self._models.get(version.model_name)
        return model.versions.get(version.number, version) if model else version

    def versions(self, name: str) -> list[Version]:
        """All versions of `name`, oldest first. Raises NotFound."""
        self.active(name)
        return sorted(self._models[name].versions.values(), key=lambda version: version.number)

    def version(self, name: str, label: str) -> Version:
        """The version of `name` called `label`, such as "v2"; its file is as it was. Raises NotFound, Conflict."""
        found = next((version for version in self.versions(name) if version.label == label), None)
        if found is None:
            known = ", ".join(version.label for version in self.versions(name))
            raise NotFound(f"'{name}' has no version '{label[:32]}'; it has {known}")
        if not found.file.is_file():
            raise NotFound(f"the file of '{name}' {label} is gone: '{found.shown_path}'")
        if _replaced(found):
            raise Conflict(f"the file of '{name}' {label} was replaced: '{found.shown_path}' is another version now")
        return found

    def previous(self, name: str) -> Version:
        """The version that answered before the present one. Raises NotFound, Conflict."""
        self.active(name)
        number = self._models[name].previous
        if not number:
            raise Conflict(f"'{name}' has had no other version active before")
        return self.version(name, f"v{number}")

    async def activate(self, version: Version) -> None:
        """From now on `version` answers for its name, after a restart too. Raises Conflict where it is gone."""
        model = self._models.get(version.model_name)
        if model is None or version.number not in model.versions:
            raise Conflict(f"'{version.model_name}' {version.label} was removed meanwhile")
        if model.active != version.number:
            model.active, model.previous = version.number, model.active
            note = self._residents.set_active(version.model_name, model.active, model.previous)
            await self._tasks.whole(f"activate {version.model_name} {version.label}", note)

    def chosen(self, name: str) -> tuple[int, int]:
        """The numbers of the version that answers, and of the one that did before, 0 for none. Raises NotFound."""
        self.active(name)
        return self._models[name].active, self._models[name].previous

    async def remove(self, versions: Sequence[Version]) -> int:
        """Forget `versions`, delete their files where they are in the downloads' folder and nobody else's, and return
        the bytes that this gave back. The one that answers goes only with all others of its model."""
        return await self._tasks.whole("remove", self._erase(self._forget(versions)))

    def _forget(self, versions: Sequence[Version]) -> list[Version]:
        """Those of `versions` that are still there and may go. All at once: whoever looks finds a model as it was, with
        what is left of it, or not at all."""
        wanted: dict[str, set[int]] = {}
        for version in versions:
            wanted.setdefault(version.model_name, set()).add(version.number)
        gone: list[Version] = []
        for name, numbers in wanted.items():
            if model := self._models.get(name):
                numbers &= model.versions.keys()
                if numbers != model.versions.keys():
                    numbers.discard(model.active)
                gone += [model.versions.pop(number) for number in sorted(numbers)]
                if not model.versions:
                    del self._models[name]
        keys = {(version.model_name, version.number) for version in gone}
        self._known = {key: number for key, number in self._known.items() if (key[0], number) not in keys}
        return gone

    async def _erase(self, versions: Sequence[Version]) -> int:
        freed = 0
        async with self._registering:  # who registers one of them again begins when they are gone
            for name in {version.model_name for version in versions} - self._models.keys():
                await self._residents.remove(name)
            for version in versions:
                await self._queries.remove(version.model_name, version.number)
                others = (found.file for model in self._models.values() for found in model.versions.values())
                if version.file not in others and version.file.is_relative_to(self._roots[0]):
                    self._files.discard(version.file)
                    freed += await asyncio.to_thread(_delete, version.file)
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
        abandoned, more = await asyncio.to_thread(sources.prune, self._roots[0])
        removed = [f"{version.model_name} {version.label}" for version in gone]
        return [*removed, *(f"the abandoned fetch of {name}" for name in abandoned)], freed + more

    async def register(self, name: str, path: str, model_type: ModelType) -> Version:
        """The version for the file or source `path`, registered if it is new; active if it is its name's first.

        Raises InvalidRequest for a path outside the roots or a file that is no model, NotFound for none at all.
        """
        if sources.is_source(path):
            source = sources.parse(path)
            file = await self._fetched(name, source)
            return await self._register(name, file, model_type, _key(source))
        file = await asyncio.to_thread(self._resolve, path)
        return await self._register(name, file, model_type)

    async def peek(self, name: str, path: str, model_type: ModelType) -> Version:
        """What `register` would give, without registering it: where it would be new its number is 0. Raises as that;
        Conflict for a source that is still to be fetched."""
        if sources.is_source(path):
            file = await self._present(sources.parse(path))
            if file is None:
                raise Conflict("what has not been fetched cannot be looked at; register it first")
        else:
            file = await asyncio.to_thread(self._resolve, path)
        return await self._known_or_new(name, file, model_type)

    async def peek_retyped(self, version: Version, model_type: ModelType) -> Version:
        """What `retyped` would give, as `peek`."""
        return await self._known_or_new(version.model_name, version.file, model_type)

    async def _known_or_new(self, name: str, file: Path, model_type: ModelType) -> Version:
        size, mtime_ns = await asyncio.to_thread(_identity, file)
        number = self._known.get((name, model_type, str(file), size, mtime_ns))
        if number:
            return self._models[name].versions[number]
        return Version(name, 0, model_type, file, self._shown(file), "", size, mtime_ns)

    async def retyped(self, version: Version, model_type: ModelType) -> Version:
        """The version of the same file that is served as `model_type`, registered if it is new."""
        return await self._register(version.model_name, version.file, model_type)

    async def digest(self, version: Version) -> Version:
        """`version` with its digest, computed and recorded on the first call. Reads the whole file once."""
        if version.digest:
            return version
        stop = threading.Event()
        try:
            value = f"sha256:{await asyncio.to_thread(sources.sha256_of, gguf.parts(version.file), stop)}"
        finally:
            stop.set()  # a thread outlives its task's cancellation: the end would wait for a large file to be read
        note = self._queries.set_digest(version.model_name, version.number, value)
        await self._tasks.whole(f"note the digest of {version.model_name}", note)
        known = replace(version, digest=value)
        model = self._models.get(version.model_name)
        if model and version.number in model.versions:  # it may have been removed since
            model.versions[version.number] = known
        return known

    async def _register(self, name: str, file: Path, model_type: ModelType, source: str = "") -> Version:
        work = self._registered(name, file, model_type, source)
        return await self._tasks.whole(f"register {name}", work, expected=(ModelOpsError,))

    async def _registered(self, name: str, file: Path, model_type: ModelType, source: str) -> Version:
        async with self._registering:
            try:
                size, mtime_ns = await asyncio.to_thread(_identity, file)
            except OSError:  # removed just now, by somebody else
                raise NotFound(f"the file of '{name}' is gone") from None
            identity = (name, model_type, str(file), size, mtime_ns)
            if identity not in self._known:
                row = VersionRow(
                    model_name=name,
                    number=0,
                    model_type=model_type,
                    file=str(file),
                    size=size,
                    mtime_ns=mtime_ns,
                    digest="",
                    registered_at=time.time(),
                    source=source,
                )
                added = await self._queries.add(row)
                if name not in self._models:  # its first: after a restart it is still the one that answers
                    await self._residents.set_active(name, added.number, 0)
                self._remember(added)
                label = self._models[name].versions[added.number].label
                told = {"model": name, "version": label, "file": file.name, "bytes": size}
                log.info("registered %s from %s", name, file.name, extra=told)
            return self._models[name].versions[self._known[identity]]

    def _remember(self, row: VersionRow) -> None:
        file = Path(row.file)
        model = self._models.setdefault(row.model_name, _Model())
        model.versions[row.number] = Version(
            model_name=row.model_name,
            number=row.number,
            model_type=row.model_type,  # type: ignore[arg-type] # only valid types are written
            file=file,
            shown_path=self._shown(file),
            digest=row.digest,
            size=row.size,
            mtime_ns=row.mtime_ns,
            registered_at=row.registered_at,
            source=row.source,
        )
        model.active = model.active or row.number
        self._known[(row.model_name, row.model_type, row.file, row.size, row.mtime_ns)] = row.number
        self._files.add(file)

    def _shown(self, file: Path) -> str:
        root = next((root for root in self._roots if file.is_relative_to(root)), None)
        return str(file.relative_to(root)) if root else file.name

    async def find(self, name: str, *, fetch: bool = False) -> Version:
        """As `active`, but a model whose file was put under a root or replaced since the last look is registered first.

        With `fetch` one that the catalogue file names is fetched where that is needed. Raises InvalidRequest where
        there is a new file, and it is no model.
        """
        if name not in self._models and NAME.fullmatch(name):
            for file in await asyncio.to_thread(self._scan, name):
                await self._discover(name, file, strict=True)
        entry = self._entries.get(name)
        if name not in self._models and entry and entry.source and not fetch:
            raise NotFound(
                f"'{name}' is named in the catalogue and has not been fetched yet; its first load fetches it"
            )
        if name not in self._models and entry and (entry.source or entry.file):
            await self.register(name, entry.source or entry.file, entry.type)
        if await asyncio.to_thread(_replaced, self.active(name)):
            await self._discover(name, self.active(name).file)
        return self.active(name)

    def _scan(self, name: str = "") -> list[Path]:
        """The files under the roots that may be models, or those that may be the model `name`."""
        patterns = [f"{name}.gguf", f"{name}-00001-of-*.gguf"] if name else ["*.gguf"]
        found = (file for root in self._roots for pattern in patterns for file in sorted(root.glob(pattern)))
        return [file for file in found if file.is_file()]

    async def _discover(self, name: str, entry: Path, *, strict: bool = False) -> None:
        file = entry.resolve()
        # A file that was replaced is a new version of its model. Another file of a known name is left alone, and so is
        # a file that somebody has registered under another name.
        ours = self.active(name).file == file if name in self._models else file not in self._files
        if not ours or not NAME.fullmatch(name):
            return
        if not self._inside(file):
            told = {"model": name, "file": entry.name}
            log.warning("skipping %s: the link leads out of the model roots", entry.name, extra=told)
            return
        try:
            header = await asyncio.to_thread(gguf.read_header, file)
            _check(header, file)
        except ModelOpsError as error:
            if strict:
                raise
            told = {"model": name, "file": entry.name}
            log.warning("skipping a file under the model roots: %s", error, extra=told)
        else:
            known = name in self._models
            found = await self._register(name, file, self.active(name).model_type if known else natural_type(header))
            await self.activate(found)

    def wish(self, name: str) -> Wish:
        """How `name` is to be run where no caller says so."""
        return wish_of(self._entries.get(name, _NO_ENTRY))

    def entry(self, name: str) -> ModelEntry:
        """What the catalogue file says of `name`."""
        return self._entries.get(name, _NO_ENTRY)

    def resolve(self, name: str) -> str:
        """The model that `name`, which may be an alias, means."""
        return self._aliases.get(name, name)

    def _is_as_written(self, version: Version, entry: ModelEntry) -> bool:
        """Whether the version is what the catalogue's entry names."""
        if "type" in entry.model_fields_set and version.model_type != entry.type:
            return False
        try:
            if entry.source:
                source = sources.parse(entry.source)
                fetched_otherwise = not version.source and version.file.name == source.name
                return fetched_otherwise or version.source == _key(source)
            return not entry.file or any((root / entry.file).resolve() == version.file for root in self._roots)
        except (ModelOpsError, OSError, RuntimeError, ValueError):  # what is no source and no path
            return False

    def _inside(self, file: Path) -> bool:
        return any(file.is_relative_to(root) for root in self._roots)

    def _resolve(self, path: str) -> Path:
        """The file that `path` means: absolute, or relative to a root. Links are resolved before it is judged."""
        try:
            candidates = [(root / path).resolve() for root in self._roots]
            candidates = [file for file in candidates if sources.PARTIAL not in file.parts]
            inside = [file for file in candidates if self._inside(file)]
            file = next((file for file in inside if file.is_file()), None)
        except (OSError, RuntimeError, ValueError):  # a link to itself, a name that no file system takes
            raise InvalidRequest("model_path is no path") from None
        if not inside:
            raise InvalidRequest(
                "model_path leads outside the model roots; put the file under one of them, or add its folder to "
                "models.roots"
            )
        if file is None:
            raise NotFound("there is no such file under the model roots")
        _check(gguf.read_header(file), file)
        return file

    async def _present(self, source: sources.Source) -> Path | None:
        """The file that the source was fetched to before."""
        known = [version for model in self._models.values() for version in model.versions.values()]
        for version in known:
            if version.source == _key(source) and await asyncio.to_thread(_unchanged, version):
                return version.file
        return None

    async def _fetched(self, name: str, source: sources.Source) -> Path:
        """The source's file: the one that it was fetched to before, else it is fetched now."""
        if present := await self._present(source):
            return present
        target = self._roots[0] / source.name
        if target.exists() and not await asyncio.to_thread(sources.has_digest, target, source.sha256):
            # Another source's, or somebody's own: files of one name may be different models.
            target = target.with_name(source.file_name(f"{gguf.model_name(target)}-{_key(source)[:8]}"))
        bring = partial(_fetch, source, target, self._policy)
        return await self._arrivals.bring(source.identity, name, "fetching", bring)


async def _fetch(source: sources.Source, target: Path, policy: sources.Policy, progress: Progress) -> Path:
    if target.exists():  # by its digest it is the source's, or by its name: it was fetched, and then not registered
        return target
    await sources.fetch(source, target, progress, policy)
    try:
        _check(await asyncio.to_thread(gguf.read_header, target), target)
    except InvalidRequest:
        for file in source.targets(target):
            file.unlink(missing_ok=True)
        raise
    return target


def _check(header: gguf.Header, file: Path) -> None:
    if header.adapter:
        raise InvalidRequest(f"'{file.name}' is an adapter, which is no model by itself")


def _key(source: sources.Source) -> str:
    """What a source is known again by: its address may hold a secret."""
    return hashlib.sha256(source.identity.encode()).hexdigest()


def _identity(file: Path) -> tuple[int, int]:
    """What another file in its place, or in that of one of its parts, would not have: size, and latest change."""
    stats = [part.stat() for part in gguf.parts(file)]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def _unchanged(version: Version) -> bool:
    try:
        return _identity(version.file) == (version.size, version.mtime_ns)
    except OSError:
        return False


def _replaced(version: Version) -> bool:
    """Whether another file stands where the version's was."""
    try:
        return _identity(version.file) != (version.size, version.mtime_ns)
    except OSError:
        return False


def _delete(file: Path) -> int:
    """Remove the file, or all parts of a split model; the bytes that this gave back."""
    freed = 0
    for part in gguf.parts(file):
        with contextlib.suppress(FileNotFoundError):
            size = part.stat().st_size
            part.unlink()
            freed += size
    return freed


def wish_of(entry: ModelEntry) -> Wish:
    """How the model of that entry is to be run where no caller says so."""
    return Wish(
        quantization=entry.quantization,
        gpu_layers=entry.gpu_layers,
        context_length=entry.context_length,
        slots=entry.slots,
        cache_type=entry.cache_type,
        keep_alive_s=entry.keep_alive,
        pinned=entry.pin,
    )


def natural_type(header: gguf.Header) -> ModelType:
    """What a file is for, by what it says of itself: how it pools tells whether, and for what, it was trained to."""
    if header.pooling == _POOLING_RANK:
        return "reranker"
    return "embedding" if header.pooling > 0 or header.architecture in layers.WITHOUT_CACHE else "llm"
