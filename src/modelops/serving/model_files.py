"""Files of models: the roots that they lie under, how they are known again, and how they come and go.

Knows nothing of registrations.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from modelops.api.errors import DiskFull, InvalidRequest, NotFound
from modelops.api.types import ModelType
from modelops.serving import gguf, layers, sources
from modelops.serving.arrivals import Progress

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POOLING_RANK = 4  # llama.cpp's LLAMA_POOLING_TYPE_RANK


class Roots:
    """The folders that models may lie under, with links resolved. The first one is `own`: downloads go there, and what
    is under it is the coordinator's own to delete."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder.resolve() for folder in folders]

    @property
    def own(self) -> Path:
        """Where downloads go."""
        return self.folders[0]

    def scan(self, name: str = "") -> list[Path]:
        """The files right under the roots that may be models, or those that may be the model `name`."""
        patterns = [f"{name}.gguf", f"{name}-00001-of-*.gguf"] if name else ["*.gguf"]
        found = (file for root in self.folders for pattern in patterns for file in sorted(root.glob(pattern)))
        return [file for file in found if file.is_file()]

    def hold(self, file: Path) -> bool:
        """Whether `file`, with links resolved, is under one of them."""
        return any(file.is_relative_to(root) for root in self.folders)

    def shown(self, file: Path) -> str:
        """`file` as callers may see it: relative to its root."""
        root = next((root for root in self.folders if file.is_relative_to(root)), None)
        return str(file.relative_to(root)) if root else file.name

    def resolve(self, path: str) -> Path:
        """The model's file that `path` means: absolute, or relative to a root. Links are resolved before it is judged.

        Raises InvalidRequest for a path outside or a file that is no model, NotFound for none at all.
        """
        try:
            candidates = [(root / path).resolve() for root in self.folders]
            candidates = [file for file in candidates if sources.PARTIAL not in file.parts]
            inside = [file for file in candidates if self.hold(file)]
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
        check(gguf.read_header(file), file)
        return file


def check(header: gguf.Header, file: Path) -> None:
    """Raises InvalidRequest where the file of that header is no model by itself."""
    if header.adapter:
        raise InvalidRequest(f"'{file.name}' is an adapter, which is no model by itself")


def natural_type(header: gguf.Header) -> ModelType:
    """What a file is for, by what it says of itself: how it pools tells whether, and for what, it was trained to."""
    if header.pooling == _POOLING_RANK:
        return "reranker"
    return "embedding" if header.pooling > 0 or header.architecture in layers.WITHOUT_CACHE else "llm"


def identity(file: Path) -> tuple[int, int]:
    """What another file in its place, or in that of one of its parts, would not have: size, and latest change."""
    stats = [part.stat() for part in gguf.parts(file)]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


async def fetch(source: sources.Source, target: Path, policy: sources.Policy, progress: Progress) -> Path:
    """`target`, to which `source` is fetched, unless it is there. What turns out to be no model goes again."""
    if target.exists():  # by its digest it is the source's, or by its name: it was fetched, and then not registered
        return target
    await sources.fetch(source, target, progress, policy)
    try:
        check(await asyncio.to_thread(gguf.read_header, target), target)
    except InvalidRequest:
        for file in source.targets(target):
            file.unlink(missing_ok=True)
        raise
    return target


def sha256(file: Path, stop: threading.Event) -> str:
    """The digest of the file, or of all parts of a split model, as a version has it."""
    return f"sha256:{sources.sha256_of(gguf.parts(file), stop)}"


def place(file: Path, folder: Path, name: str, digest: str) -> Path:
    """A copy of `file` in `folder`, under a name that `name` and its `digest` make; what is in it stays where it is.

    It is there whole or not at all. The same file twice is the same place. Raises DiskFull.
    """
    if file.resolve().is_relative_to(folder):
        return file.resolve()
    # No colon: a name may have one, and some programs take what follows it in an argument for something else.
    plain = digest.removeprefix("sha256:")
    target = folder / f"{name.replace(':', '-')}-{plain[:16]}.gguf"
    if sources.has_digest(target, plain):  # it may be another version's too, which knows it by its latest change
        return target
    new = folder / f".{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, new)  # no link: whoever made it may write it anew, in its place
        _synced(new)
        new.replace(target)
        _synced(folder)
    except OSError as error:
        new.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise DiskFull(
                f"there is no room on the disk of the models for '{name}'; free some, and try again"
            ) from None
        raise
    return target


def _synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete(file: Path) -> int:
    """Remove the file, or all parts of a split model; the bytes that this gave back."""
    freed = 0
    for part in gguf.parts(file):
        with contextlib.suppress(FileNotFoundError):
            size = part.stat().st_size
            part.unlink()
            freed += size
    return freed
