"""The limits of a container or a unit: trees of files as the kernel shows them, in a folder of the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from modelops.serving import cgroups
from modelops.serving.cgroups import Limits

GROUP = "sys/fs/cgroup"
#: What version 1 writes where nothing is limited.
V1_UNLIMITED = str(2**63 - 4096)

#: id: (the files, the limits)
TREES: dict[str, tuple[Mapping[str, str], Limits]] = {
    "no groups at all": ({}, Limits()),
    # version 2
    "v2: nothing limited": (
        {"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/memory.max": "max\n", f"{GROUP}/a/memory.current": "5\n"},
        Limits(),
    ),
    "v2: memory": (
        {"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/memory.max": "100\n", f"{GROUP}/a/memory.current": "30\n"},
        Limits(memory_limit=100, memory_free=70),
    ),
    "v2: pages of files are given back": (
        {
            "proc/self/cgroup": "0::/a\n",
            f"{GROUP}/a/memory.max": "100\n",
            f"{GROUP}/a/memory.current": "90\n",
            f"{GROUP}/a/memory.stat": "anon 30\nfile 60\ninactive_file 50\nactive_file 10\n",
        },
        Limits(memory_limit=100, memory_free=60),
    ),
    "v2: more is used than allowed": (
        {"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/memory.max": "100\n", f"{GROUP}/a/memory.current": "130\n"},
        Limits(memory_limit=100, memory_free=0),
    ),
    "v2: a limit further up binds": (
        {
            "proc/self/cgroup": "0::/a/b/c\n",
            f"{GROUP}/a/b/c/memory.max": "max\n",
            f"{GROUP}/a/b/c/memory.current": "1\n",
            f"{GROUP}/a/b/memory.max": "100\n",
            f"{GROUP}/a/b/memory.current": "10\n",
            f"{GROUP}/a/memory.max": "200\n",
            f"{GROUP}/a/memory.current": "150\n",
        },
        Limits(memory_limit=100, memory_free=50),
    ),
    "v2: the root of the mount is the group": (
        {"proc/self/cgroup": "0::/\n", f"{GROUP}/memory.max": "100\n", f"{GROUP}/memory.current": "30\n"},
        Limits(memory_limit=100, memory_free=70),
    ),
    "v2: the path leads nowhere, and the root of the mount is the group": (
        {"proc/self/cgroup": "0::/docker/0123\n", f"{GROUP}/memory.max": "100\n", f"{GROUP}/memory.current": "30\n"},
        Limits(memory_limit=100, memory_free=70),
    ),
    "v2: a path with colons": (
        {"proc/self/cgroup": "0::/a:b:c\n", f"{GROUP}/a:b:c/cpu.max": "200000 100000\n"},
        Limits(cores=2),
    ),
    "v2: the path leads out of the mount": (
        {"proc/self/cgroup": "0::/../other\n", f"{GROUP}/memory.max": "100\n", f"{GROUP}/memory.current": "30\n"},
        Limits(memory_limit=100, memory_free=70),
    ),
    "v2: cores": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/cpu.max": "250000 100000\n"}, Limits(cores=2)),
    "v2: less than a core": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/cpu.max": "50000 100000\n"}, Limits(cores=1)),
    "v2: all cores": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/cpu.max": "max 100000\n"}, Limits()),
    "v2: fewer cores further up": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{GROUP}/a/b/cpu.max": "800000 100000\n",
            f"{GROUP}/a/cpu.max": "300000 100000\n",
        },
        Limits(cores=3),
    ),
    # version 1
    "v1: nothing limited": (
        {
            "proc/self/cgroup": "5:memory:/a\n3:cpu,cpuacct:/a\n",
            f"{GROUP}/memory/a/memory.limit_in_bytes": V1_UNLIMITED,
            f"{GROUP}/memory/a/memory.usage_in_bytes": "5\n",
            f"{GROUP}/cpu/a/cpu.cfs_quota_us": "-1\n",
            f"{GROUP}/cpu/a/cpu.cfs_period_us": "100000\n",
        },
        Limits(),
    ),
    "v1: memory and cores": (
        {
            "proc/self/cgroup": "12:pids:/x\n5:memory:/a\n3:cpuacct,cpu:/b\n1:name=systemd:/c\n",
            f"{GROUP}/memory/a/memory.limit_in_bytes": "100\n",
            f"{GROUP}/memory/a/memory.usage_in_bytes": "90\n",
            f"{GROUP}/memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 40\n",
            f"{GROUP}/cpu/b/cpu.cfs_quota_us": "450000\n",
            f"{GROUP}/cpu/b/cpu.cfs_period_us": "100000\n",
        },
        Limits(memory_limit=100, memory_free=50, cores=4),
    ),
    "v1: a limit further up binds": (
        {
            "proc/self/cgroup": "5:memory:/a/b\n",
            f"{GROUP}/memory/a/b/memory.limit_in_bytes": V1_UNLIMITED,
            f"{GROUP}/memory/a/b/memory.usage_in_bytes": "1\n",
            f"{GROUP}/memory/memory.limit_in_bytes": "100\n",
            f"{GROUP}/memory/memory.usage_in_bytes": "30\n",
        },
        Limits(memory_limit=100, memory_free=70),
    ),
    "both versions": (
        {
            "proc/self/cgroup": "5:memory:/a\n0::/a\n",
            f"{GROUP}/memory/a/memory.limit_in_bytes": "100\n",
            f"{GROUP}/memory/a/memory.usage_in_bytes": "30\n",
            f"{GROUP}/a/cpu.max": "200000 100000\n",
        },
        Limits(memory_limit=100, memory_free=70, cores=2),
    ),
    # what cannot be read
    "lines that are none": (
        {"proc/self/cgroup": "\n0\n0:\nx:y\n:::\nmemory\n0::/a\n", f"{GROUP}/a/cpu.max": "200000 100000"},
        Limits(cores=2),
    ),
    "bytes that are no text": (
        {"proc/self/cgroup": "0::/a\n\udcff", f"{GROUP}/a/cpu.max": "200000 100000"},
        Limits(cores=2),
    ),
    "a limit without a use": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/memory.max": "100\n"}, Limits()),
    "a use without a limit": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/memory.current": "100\n"}, Limits()),
    "numbers that are none": (
        {
            "proc/self/cgroup": "0::/a\n",
            f"{GROUP}/a/memory.max": "many\n",
            f"{GROUP}/a/memory.current": "\n",
            f"{GROUP}/a/cpu.max": "100000\n",
        },
        Limits(),
    ),
    "statistics that are none": (
        {
            "proc/self/cgroup": "0::/a\n",
            f"{GROUP}/a/memory.max": "100\n",
            f"{GROUP}/a/memory.current": "30\n",
            f"{GROUP}/a/memory.stat": "\udcff\ninactive_file\ninactive_file x\n",
        },
        Limits(memory_limit=100, memory_free=70),
    ),
    "quotas that are none": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/cpu.max": "100000 0\n"}, Limits()),
    "too many words": ({"proc/self/cgroup": "0::/a\n", f"{GROUP}/a/cpu.max": "1 2 3\n"}, Limits()),
}


@pytest.mark.parametrize(("files", "limits"), TREES.values(), ids=TREES)
def test_the_limits_of_a_tree(files: Mapping[str, str], limits: Limits, tmp_path: Path) -> None:
    for path, text in files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode(errors="surrogateescape"))
    assert cgroups.read(tmp_path) == limits


def test_a_folder_in_place_of_a_file_binds_nothing(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n")
    for name in ("memory.max", "memory.current", "memory.stat", "cpu.max"):
        (tmp_path / GROUP / "a" / name).mkdir(parents=True)
    assert cgroups.read(tmp_path) == Limits()


def test_this_process_can_be_read() -> None:
    found = cgroups.read()
    assert found.cores is None or found.cores >= 1
    assert (found.memory_limit is None) == (found.memory_free is None)
    assert found.memory_limit is None or found.memory_free is None or 0 <= found.memory_free <= found.memory_limit
