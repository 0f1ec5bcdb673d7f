"""Files that are there whole, or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PARTIAL = ".partial"


def write(file: Path, data: bytes) -> None:
    """Write the file so that it is there whole, or not at all, whatever happens. Raises OSError."""
    with whole(file) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Where to write what is to be `file`: it gets its name when all of it is on the disk, and is gone where that
    fails. Several processes may write the same file at once: each its own, and the last one stays. What a killed one
    has left of it is removed. Raises OSError.
    """
    sweep(file.parent, file.name)
    partial, held = _begun(file)
    with held:
        try:
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync(file.parent)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed processes have left in the folder of files that they were writing, or of the one called
    `name`. Raises OSError.
    """
    for partial in folder.glob(f"{glob.escape(name) or '*'}.*{_PARTIAL}"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), partial.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def _begun(file: Path) -> tuple[Path, BinaryIO]:
    """A new file beside it, and what holds that until it is closed, or the process is killed."""
    while True:
        partial = file.with_name(f"{file.name}.{secrets.token_hex(8)}{_PARTIAL}")
        held = partial.open("xb")
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            if partial.exists():  # else it was swept before it was held
                return partial, held
        except BaseException:
            partial.unlink(missing_ok=True)
            held.close()
            raise
        held.close()


def sync(folder: Path) -> None:
    """Down to the disk with what was renamed in it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
