"""What the machine has now: memory, cores, load. Read fresh on every call; decides nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Host:
    """The host's memory in bytes and its load in percent since the last look."""

    name: str
    total_bytes: int
    available_bytes: int
    cpu_percent: float

    @property
    def used_bytes(self) -> int:
        """What is not available."""
        return self.total_bytes - self.available_bytes


def host() -> Host:
    """The host now."""
    memory = psutil.virtual_memory()
    return Host(
        name=f"{platform.machine()} RAM",
        total_bytes=memory.total,
        available_bytes=memory.available,
        cpu_percent=psutil.cpu_percent(),
    )


def available_bytes() -> int:
    """Host memory that can be taken without swapping."""
    return int(psutil.virtual_memory().available)


def usable_cores() -> int:
    """Physical cores that this process may run on: at least one, at most as many as its affinity allows."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
