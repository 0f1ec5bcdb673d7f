"""Which models and versions exist. Owns the registrations; knows nothing of what is loaded.

A model is a name with versions v1, v2, …; a version is a file under one of the model roots. Files found under the roots
at start are registered under their own names.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelops.api.errors import InvalidRequest, ModelOpsError, NotAvailable, NotFound
from modelops.api.types import ModelType
from modelops.serving import gguf, sources
from modelops.store.models import ModelQueries, VersionRow

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


@dataclass(frozen=True)
class Version:
    """One version of a model. `shown_path` is its file relative to its root: what callers may see and send back."""

    model_name: str
    number: int
    model_type: ModelType
    file: Path
    shown_path: str
    digest: str

    @property
    def label(self) -> str:
        """How callers name it."""
        return f"v{self.number}"


@dataclass
class _Model:
    versions: dict[int, Version] = field(default_factory=dict)
    active: int = 0


class Catalog:
    """The registered models. `roots` are absolute, with links resolved; downloads go to the first one."""

    def __init__(self, queries: ModelQueries, roots: Sequence[Path]) -> None:
        self._queries = queries
        self._roots = [root.resolve() for root in roots]
        self._models: dict[str, _Model] = {}
        self._known: dict[tuple[str, str, int, int], int] = {}  # (name, file, size, mtime) → version's number
        self._files: set[Path] = set()
        self._registering = asyncio.Lock()  # two registrations of one file must find each other

    async def open(self) -> None:
        """Read the state file, then register what has been put under the roots since."""
        for row in await self._queries.versions():
            self._remember(row)
        await self.refresh()

    async def refresh(self) -> None:
        """Register the files that have been put under the roots since the last look."""
        for file in await asyncio.to_thread(self._scan):
            await self._discover(file.name.removesuffix(".gguf"), file)

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._models)

    def active(self, name: str) -> Version:
        """The version that answers for `name`. Raises NotFound."""
        try:
            model = self._models[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._models, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "the listing of all models tells those that there are"
            raise NotFound(f"there is no model '{name}'; {hint}") from None
        return model.versions[model.active]

    async def register(self, name: str, path: str, model_type: ModelType) -> Version:
        """The version for the file or source `path`, registered if it is new, active from now on.

        Raises InvalidRequest for a path outside the roots or a file that is no model, NotFound for none at all.
        """
        if sources.is_source(path):
            file = await self._fetch(path)
        else:
            file = await asyncio.to_thread(self._resolve, path)
        return await self._register(name, file, model_type)

    async def digest(self, version: Version) -> Version:
        """`version` with its digest, computed and recorded on the first call. Reads the whole file once."""
        if version.digest:
            return version
        stop = threading.Event()
        try:
            value = f"sha256:{await asyncio.to_thread(sources.sha256, version.file, stop)}"
        finally:
            stop.set()  # a thread outlives its task's cancellation: the end would wait for a large file to be read
        await self._queries.set_digest(version.model_name, version.number, value)
        known = replace(version, digest=value)
        self._models[version.model_name].versions[version.number] = known
        return known

    async def _register(self, name: str, file: Path, model_type: ModelType) -> Version:
        async with self._registering:
            stat = await asyncio.to_thread(file.stat)
            identity = (name, str(file), stat.st_size, stat.st_mtime_ns)
            if identity not in self._known:
                row = VersionRow(
                    model_name=name,
                    number=0,
                    model_type=model_type,
                    file=str(file),
                    size=stat.st_size,
                    mtime_ns=stat.st_mtime_ns,
                    digest="",
                    registered_at=time.time(),
                )
                self._remember(await self._queries.add(row))
                log.info("registered %s from %s", name, file.name)
            model = self._models[name]
            model.active = self._known[identity]
            return model.versions[model.active]

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
        )
        model.active = row.number
        self._known[(row.model_name, row.file, row.size, row.mtime_ns)] = row.number
        self._files.add(file)

    def _shown(self, file: Path) -> str:
        root = next((root for root in self._roots if file.is_relative_to(root)), None)
        return str(file.relative_to(root)) if root else file.name

    async def find(self, name: str) -> Version:
        """As `active`, but a model whose file was put under a root since the last look is registered first.

        Raises InvalidRequest where there is such a file, and it is no model.
        """
        if name not in self._models and _NAME.fullmatch(name):
            for root in self._roots:
                file = root / f"{name}.gguf"
                if await asyncio.to_thread(file.is_file):
                    await self._discover(name, file, strict=True)
        version = self.active(name)
        if await asyncio.to_thread(version.file.is_file):  # a file that was replaced is a new version
            return await self._register(name, version.file, version.model_type)
        return version

    def _scan(self) -> list[Path]:
        return [file for root in self._roots for file in sorted(root.glob("*.gguf")) if file.is_file()]

    async def _discover(self, name: str, entry: Path, *, strict: bool = False) -> None:
        file = entry.resolve()
        # A file that was replaced is a new version of its model. Another file of a known name is left alone, and so is
        # a file that somebody has registered under another name.
        ours = self.active(name).file == file if name in self._models else file not in self._files
        if not ours or not _NAME.fullmatch(name):
            return
        if not self._inside(file):
            log.warning("skipping %s: the link leads out of the model roots", entry.name)
            return
        try:
            await asyncio.to_thread(gguf.read_header, file)
        except ModelOpsError as error:
            if strict:
                raise
            log.warning("skipping a file under the model roots: %s", error)
        else:
            await self._register(name, file, "llm")

    def _inside(self, file: Path) -> bool:
        return any(file.is_relative_to(root) for root in self._roots)

    def _resolve(self, path: str) -> Path:
        """The file that `path` means: absolute, or relative to a root. Links are resolved before it is judged."""
        try:
            candidates = [(root / path).resolve() for root in self._roots]
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
        gguf.read_header(file)
        return file

    async def _fetch(self, text: str) -> Path:
        source = sources.parse(text)
        target = self._roots[0] / Path(source.file).name
        if target.exists():
            same = await asyncio.to_thread(sources.has_digest, target, source.sha256)
            if same:
                return target
            raise InvalidRequest(
                f"a file '{target.name}' is already under the model roots, and nothing says that it is this one; load "
                "it by its path, or remove it"
            )
        await sources.fetch(source, target, lambda _done, _total: None)
        try:
            await asyncio.to_thread(gguf.read_header, target)
        except InvalidRequest:
            target.unlink()
            raise
        return target


def check_type(model_type: ModelType) -> None:
    """Raises NotAvailable for the types that this release does not serve."""
    if model_type != "llm":
        raise NotAvailable(f"this release serves models of type 'llm'; '{model_type}' comes with a later one")
