"""Finds the coordinator that runs on a data folder, without asking it and without taking its lock."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

#: A line of /proc/locks: kind, process, and the device and the number of the file that is locked.
_LOCK = re.compile(
    r"\d+: FLOCK +ADVISORY +WRITE (?P<pid>\d+) (?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+):(?P<inode>\d+) "
)


@dataclass(frozen=True)
class Coordinator:
    """A process that holds a data folder."""

    pid: int

    def tree(self) -> list[psutil.Process]:
        """It and all below it: engines and their guards. Empty where it has ended, or may not be looked at."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.Error:
            return []

    def listens(self) -> list[tuple[str, int]]:
        """The addresses and ports that it listens on, as far as we may know."""
        try:
            found = psutil.Process(self.pid).net_connections("tcp")
        except (psutil.Error, OSError):
            return []
        return sorted((one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN)


def find_coordinator(data_dir: Path, locks: Path = Path("/proc/locks")) -> Coordinator | None:
    """The coordinator that holds the lock on that folder; None where there is none that can be seen from here."""
    file = data_dir / "lock"
    try:
        held = file.stat()
        lines = locks.read_text().splitlines()
    except OSError:
        return None
    for pid, device, inode in _write_locks(lines):
        # Some file systems tell processes another device than they tell the kernel.
        if inode == held.st_ino and (device == held.st_dev or _opened(pid, file)):
            return Coordinator(pid)
    return None


def _write_locks(lines: list[str]) -> Iterator[tuple[int, int, int]]:
    for line in lines:
        if found := _LOCK.match(line):
            yield int(found["pid"]), os.makedev(int(found["major"], 16), int(found["minor"], 16)), int(found["inode"])


def _opened(pid: int, file: Path) -> bool:
    try:
        return any(Path(opened.path) == file.resolve() for opened in psutil.Process(pid).open_files())
    except psutil.Error:
        return False
