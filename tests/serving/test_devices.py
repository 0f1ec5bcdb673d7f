from __future__ import annotations

import os

from modelops.serving import devices


def test_the_host_has_memory_and_a_name() -> None:
    host = devices.host()
    assert host.name
    assert 0 < host.available_bytes < host.total_bytes
    assert host.used_bytes + host.available_bytes == host.total_bytes
    assert host.cpu_percent >= 0


def test_available_memory_is_the_hosts() -> None:
    assert 0 < devices.available_bytes() < devices.host().total_bytes


def test_usable_cores_follow_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= devices.usable_cores() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert devices.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
