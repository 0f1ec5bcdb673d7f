"""What somebody types, entry by entry: one line, or several; edited with the terminal's line editor, and remembered."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_MOST = 1000  # lines that are remembered
_QUOTES = '"""'
_COMMAND = re.compile(r"/[\w-]+([^\S\n].*)?")  # no path, and nothing that was pasted with several lines


class Entry(NamedTuple):
    """What was typed; a `command` is one line, not quoted, that begins with a slash and a word."""

    text: str
    command: bool


class Dropped(Exception):
    """Ctrl-D before the last line of an entry."""


def entry(line: Callable[[str], str]) -> Entry:
    """The next entry, of as many lines as it has: one that ends in a backslash goes on in the next, and what begins
    with three quotes goes on until three quotes end a line. `line` gives a line for a prompt. Raises EOFError where
    there are no more, Dropped where there are no more of this one."""
    first = line(">>> ")
    try:
        text = _whole(first, line)
    except EOFError:
        raise Dropped from None
    return Entry(text, text == first and bool(_COMMAND.fullmatch(text.rstrip())))


def _whole(text: str, line: Callable[[str], str]) -> str:
    """An entry that begins with the line `text`, without its marks."""
    if text.lstrip().startswith(_QUOTES):
        lines = [text.lstrip().removeprefix(_QUOTES)]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(line("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")
    lines = [text]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(line("... "))
    return "\n".join(lines)


def state_folder() -> Path:
    """Where programs keep for this user what they remember."""
    configured = os.environ.get("XDG_STATE_HOME", "")  # one that is not absolute is to be ignored
    return (Path(configured) if configured.startswith("/") else Path.home() / ".local" / "state") / "modelops"


class Keyboard:
    """Lines from a terminal. What was typed comes back with the arrow keys, in later runs too if there is a `memory`:
    a file that only its user can read."""

    def __init__(self, memory: Path | None) -> None:
        self._memory = memory
        with contextlib.suppress(ImportError):  # a Python without it edits nothing
            import readline

            readline.set_auto_history(True)
            for line in self._remembered():
                readline.add_history(line)

    def line(self, prompt: str) -> str:
        """The next line. Raises EOFError after Ctrl-D, KeyboardInterrupt after Ctrl-C."""
        text = input(prompt)
        if text.strip():
            self._remember(text)
        return text

    def _remembered(self) -> list[str]:
        """The latest lines; a file that has grown to twice as many is cut."""
        if not self._memory or not self._memory.is_file():
            return []
        try:
            lines = self._memory.read_text(encoding="utf-8", errors="replace").splitlines()
            if len(lines) > 2 * _MOST:
                _write(self._memory, os.O_TRUNC, lines[-_MOST:])
        except OSError:
            return []
        return lines[-_MOST:]

    def _remember(self, line: str) -> None:
        if not self._memory:
            return
        try:
            self._memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self._memory, os.O_APPEND, [line])
        except OSError:
            self._memory = None  # to talk is what was asked for


def _write(file: Path, how: int, lines: list[str]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | how, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as opened:
        os.fchmod(descriptor, 0o600)
        opened.writelines(f"{line}\n" for line in lines)
