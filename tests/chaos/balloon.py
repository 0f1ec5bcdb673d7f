"""Another process that takes memory and gives it back: `python balloon.py` holds as many MB as each line it reads says.

It answers each line when the memory is taken, or given back, for real.
"""

from __future__ import annotations

import contextlib
import mmap
import subprocess
import sys
from collections.abc import Iterator

MB = 2**20


class Balloon:
    """The process, from the outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.mb = 0

    def hold(self, mb: int) -> None:
        """Have it hold `mb` in all; returns when it does."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{mb}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{mb}\n"
        self.mb = mb


@contextlib.contextmanager
def balloon() -> Iterator[Balloon]:
    """One that holds nothing yet."""
    argv = [sys.executable, "-S", __file__]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Balloon(process)
        finally:
            process.kill()


def main() -> None:
    held: mmap.mmap | None = None
    for line in sys.stdin:
        if held:
            held.close()
            held = None
        if size := int(line) * MB:
            held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for start in range(0, size, mmap.PAGESIZE):
                held[start] = 1
        print(line, end="", flush=True)


if __name__ == "__main__":
    main()
