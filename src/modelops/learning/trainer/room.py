"""No room: how a full disk and a full memory look to the libraries that meet them, and what is said of it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelops.learning.trainer.report import Failed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: A library that could not write does not always say why: with less than this left it was the disk.
_NOTHING_LEFT = 1 << 20


def is_disk(error: BaseException, folder: Path) -> bool:
    """Whether the error is of a full disk, which `folder` is on."""
    if any(isinstance(each, OSError) and each.errno in _FULL for each in _chain(error)):
        return True
    return shutil.disk_usage(folder).free < _NOTHING_LEFT


def is_memory(error: BaseException) -> bool:
    """Whether the error is of memory that could not be had, on the device or beside it."""
    for each in _chain(error):
        if isinstance(each, MemoryError) or (isinstance(each, OSError) and each.errno == errno.ENOMEM):
            return True
        if type(each).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(each):
            return True
    return False


def disk_full(folder: Path) -> Failed:
    """What is said of a full disk."""
    free = shutil.disk_usage(folder).free >> 20
    return Failed(
        "disk_full",
        f"there is no room on the disk of the data folder: {free} MB are free; make room, or train with a lower rank",
    )


def no_memory() -> Failed:
    """What is said of memory that could not be had."""
    return Failed(
        "no_memory",
        "the memory was not enough; lower batch_size, max_length or rank, or unload models that are not needed",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
