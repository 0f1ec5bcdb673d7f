"""The whole terminal for one picture: drawn over, keys read as they are pressed, and all as it was at the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import NoReturn

from rich.console import Console, RenderableType
from rich.live import Live

#: The key that stops a program in its terminal; here it is read like any other.
STOP = "\x1a"
_CC = 6  # in what termios tells: the control characters


class Screen:
    """What a program that has the terminal does with it."""

    def __init__(self, console: Console, live: Live, woken: int, reads: bool) -> None:
        self._console, self._live, self._woken, self._reads = console, live, woken, reads

    @property
    def width(self) -> int:
        """Columns, now."""
        return self._console.width

    @property
    def height(self) -> int:
        """Lines, now."""
        return self._console.height

    def draw(self, picture: RenderableType) -> None:
        """Show this and nothing else."""
        self._live.update(picture, refresh=True)

    def pressed(self, seconds: float) -> str:
        """The keys that are pressed within that time, when the first one is; "" at its end, or where the size of the
        terminal has changed before."""
        keyboard = [sys.stdin.fileno()] if self._reads else []
        ready, _, _ = select.select([self._woken, *keyboard], [], [], max(0.0, seconds))
        if self._woken in ready:
            os.read(self._woken, 4096)
        if not set(keyboard) & set(ready):
            return ""
        keys = os.read(keyboard[0], 4096)
        self._reads = bool(keys)
        return keys.decode(errors="replace")


def is_terminal() -> bool:
    """Whether somebody watches what is drawn."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


@contextlib.contextmanager
def full_screen() -> Iterator[Screen]:
    """Take the terminal, and give it back as it was; also where SIGTERM ends the program."""
    console = Console()
    reads = sys.stdin.isatty()
    with (
        _single_keys() if reads else contextlib.nullcontext(),
        _woken_by_signals() as woken,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        yield Screen(console, live, woken, reads)


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Keys come at once and are not echoed; Ctrl-Z is one of them, Ctrl-C is still a signal."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    changed = termios.tcgetattr(keyboard)
    changed[_CC][termios.VSUSP] = b"\0"
    termios.tcsetattr(keyboard, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)


@contextlib.contextmanager
def _woken_by_signals() -> Iterator[int]:
    """A descriptor that can be read when a signal has come: one waits for it and for keys together."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers: dict[int, Callable[[int, object], None]] = {signal.SIGWINCH: lambda *_: None, signal.SIGTERM: _end}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    woken_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)
