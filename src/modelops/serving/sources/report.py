"""What the fetching process tells the one that started it: lines of JSON."""

from __future__ import annotations

import json
import time
from typing import TextIO

_EVERY_S = 0.05  # between two lines of progress: a bar needs no more


class Report:
    """Progress over all files of a fetch.

    `before` are the bytes of files that are whole, `more` whether others follow the one at hand, `total` the bytes of
    all, 0 while nobody said.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.before = 0
        self.more = False
        self.total = 0
        self._told = 0.0

    def begin(self, done: int, total: int) -> None:
        """From now on bytes must come, or it is a stall; of the file at hand `done` of `total` are here."""
        self._told = 0.0  # the first bytes are told at once: a bar that moves says that something comes
        self.line("begin", self.before + done, self._of(total))

    def progress(self, done: int, total: int) -> None:
        """Bytes have come."""
        now = time.monotonic()
        if now - self._told >= _EVERY_S or done == total:
            self._told = now
            self.line("progress", self.before + done, self._of(total))

    def busy(self) -> None:
        """What follows is work on this machine, or waiting on purpose: it does not count as a stall."""
        self.line("busy")

    def _of(self, total: int) -> int:
        return self.total or (self.before + total if total and not self.more else 0)

    def waiting(self, done: int, total: int) -> None:
        """Another process fetches; it is that far."""
        self.line("waiting", done, total)

    def line(self, kind: str, *values: object) -> None:
        """Anything that the other side knows."""
        self._stream.write(json.dumps([kind, *values]) + "\n")
        self._stream.flush()
