"""The command `modelops` in a terminal of its own, as somebody who types and watches."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

from cli.command import environment
from support import wait_until

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"  # the alternate screen
CURSOR = "\x1b[?25h"
_HOME = "\x1b[H"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The terminal is the program's own only if nobody else's: so it is taken in the new process, before the program begins.
_START = """
import os, sys
os.login_tty(os.open(sys.argv[1], os.O_RDWR))
if sys.argv[2]:
    os.dup2(os.open(sys.argv[2], os.O_RDONLY), 0)
os.execv(sys.executable, [sys.executable, "-m", "modelops.cli", *sys.argv[3:]])
"""


class Terminal:
    """A terminal in which a command runs."""

    def __init__(self, ours: int, theirs: int, process: subprocess.Popen[bytes]) -> None:
        self._ours, self._theirs, self.process = ours, theirs, process
        self._settings = self._now()
        self._output = b""

    @property
    def output(self) -> str:
        """All that was written so far."""
        self._read()
        return self._output.decode(errors="replace")

    def picture(self) -> str:
        """What was drawn last, in plain text."""
        return _ESCAPES.sub("", self.output.rpartition(_HOME)[2].partition(LEFT)[0]).replace("\r", "")

    def shows(self, pattern: str) -> str:
        """Wait until the picture has the pattern; the picture."""
        return str(wait_until(lambda: re.search(pattern, told := self.picture(), re.MULTILINE) and told, what=pattern))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def resize(self, width: int, height: int) -> None:
        """Make it so large."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def restored(self) -> bool:
        """Whether the screen, the cursor and the keyboard are as they were before the command."""
        screen = self.output.count(ENTERED) == self.output.count(LEFT)
        return screen and self.output.rfind(CURSOR) > self.output.rfind("\x1b[?25l") and self._now() == self._settings

    def ended(self) -> int:
        """Wait until the command has ended; its exit status."""

        def over() -> bool:
            self._read()  # or it could not write on
            return self.process.poll() is not None

        wait_until(over, what="the command's end")
        return self.process.wait()

    def _read(self) -> None:
        while select.select([self._ours], [], [], 0)[0]:
            self._output += os.read(self._ours, 65_536)

    def _now(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)


@contextlib.contextmanager
def terminal(
    *arguments: str, url: str, size: tuple[int, int] = (80, 24), stdin: str = "", **env: str
) -> Iterator[Terminal]:
    """The command in a new terminal; it reads the file `stdin` where one is named, else the keyboard."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _START, os.ttyname(theirs), stdin, *arguments],
            env=environment(url, TERM="xterm-256color", COLUMNS="", LINES="", **env),  # as large as it is
        ) as process:
            running = Terminal(ours, theirs, process)
            running.resize(*size)
            try:
                yield running
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        os.close(ours)
        os.close(theirs)
