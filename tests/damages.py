"""What becomes of files that nobody should write to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def truncated(file: Path) -> None:
    """The second half is gone."""
    os.truncate(file, file.stat().st_size // 2)


def garbage(file: Path) -> None:
    """Nothing of it is as it was, but its size."""
    _overwrite(file, 0)


def spoiled(file: Path) -> None:
    """Its last quarter is garbage: of a model some weights, so that an engine still takes it for one."""
    _overwrite(file, file.stat().st_size * 3 // 4)


def deleted(file: Path) -> None:
    """It is gone."""
    file.unlink()


DAMAGES: tuple[Damage, ...] = (truncated, garbage, spoiled, deleted)


def _overwrite(file: Path, begin: int) -> None:
    """In place, as whoever has it open, or mapped, sees."""
    with file.open("r+b") as stream:
        stream.seek(begin)
        stream.write(b"\xa5" * (file.stat().st_size - begin))
