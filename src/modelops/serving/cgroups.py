"""What the container, or the service's unit, lets this process have: memory and cores, of cgroup v1 and v2. Reads only.

A limit anywhere up the tree binds, so every level is asked. In a container whose own tree starts at its group, the
path in /proc leads nowhere, and the root of the mount is the group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Version 1 writes "no limit" as a number near 2**63.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Limits:
    """`memory_free` and `memory_limit` in bytes, `cores` in whole cores; None where nothing binds."""

    memory_limit: int | None = None
    memory_free: int | None = None
    cores: int | None = None


def read(root: Path = Path("/")) -> Limits:
    """The limits now. Anything that cannot be read binds nothing."""
    limits: list[int] = []
    frees: list[int] = []
    for folder in _groups(root, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < _UNLIMITED:
            limits.append(limit)
            # Pages of files that nobody has touched lately are given back when somebody needs the room.
            frees.append(max(0, limit - used + _reclaimable(folder)))
    cores = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder))]
    return Limits(
        memory_limit=min(limits, default=None),
        memory_free=min(frees, default=None),
        cores=max(1, math.floor(min(cores))) if cores else None,
    )


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all above it, version 2 and the version 1 tree of `controller`."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not names:
            mount = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        while True:
            yield folder
            if folder == mount or not folder.is_relative_to(mount):
                break
            folder = folder.parent


def _number(folder: Path, *names: str) -> int | None:
    for name in names:
        if text := _text(folder / name).strip():
            return int(text) if text.isdecimal() else None  # version 2 says "max"
    return None


def _reclaimable(folder: Path) -> int:
    lines = _text(folder / "memory.stat").splitlines()
    stat = dict(line.split(" ", 1) for line in lines if " " in line)
    value = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return int(value) if value.isdecimal() else 0


def _quota(folder: Path) -> float | None:
    """Cores that the group may use at once: its time over the period."""
    match _text(folder / "cpu.max").split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
            return int(quota) / int(period)
    v1_quota, v1_period = _number(folder, "cpu.cfs_quota_us"), _number(folder, "cpu.cfs_period_us")
    return v1_quota / v1_period if v1_quota and v1_period else None


def _text(file: Path) -> str:
    """What the file says; nothing where it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
