"""What a check finds."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `wrong` keeps a coordinator from starting or serving; a warning does not.

    `mend` says what to do about it, and is empty only where all is well.
    """

    area: str
    name: str
    state: State
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Area:
    """Makes the findings of one area."""

    name: str

    def ok(self, name: str, found: str) -> Finding:
        """All is well, or as it was asked for."""
        return Finding(self.name, name, "ok", found)

    def warning(self, name: str, found: str, mend: str) -> Finding:
        """It works, and perhaps not as somebody thinks."""
        return Finding(self.name, name, "warning", found, mend)

    def wrong(self, name: str, found: str, mend: str) -> Finding:
        """It does not work so."""
        return Finding(self.name, name, "wrong", found, mend)

    def refused(self, name: str, message: str, mend: str) -> Finding:
        """What a start would refuse with `message`: behind its first semicolon, if any, stands what to do."""
        found, _, told = message.partition("; ")
        return self.wrong(name, found, told or mend)


def mb(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**20:,.{0 if size >= 10 * 2**20 else 1}f} MB"


def gb(size: int) -> str:
    """Many bytes for a person."""
    return f"{size / 2**30:,.1f} GB"


def count(number: int, what: str) -> str:
    """ "1 model", "2 models"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def typed(path: Path) -> str:
    """A path as it is typed in a command."""
    return shlex.quote(str(path))
