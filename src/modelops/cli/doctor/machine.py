"""The machine: cores, memory, GPUs, open files, as a coordinator would find them now."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from modelops.cli.doctor.coordinator import Coordinator
from modelops.cli.doctor.findings import Area, Finding, count, gb, mb
from modelops.serving import cgroups
from modelops.serving.devices import Device, ThisMachine, usable_cores
from modelops.serving.placement import HOST

AREA = Area("machine")
_FEW_FILES = 4096  # a connection is an open file, and server.max_connections is 1000 for each of three transports
_LITTLE = 2**30  # bytes of RAM: a small model with its engine takes half of it


def this_machine(running: Coordinator | None) -> Iterator[Finding]:
    """What there is, and how much of it is free."""
    yield _cores()
    host, *gpus = ThisMachine().devices()
    yield _memory(host)
    yield from graphics(gpus, {process.pid for process in running.tree()} if running else set())
    yield _files()


def _cores() -> Finding:
    usable, allowed = usable_cores(), len(os.sched_getaffinity(0))
    physical = psutil.cpu_count(logical=False) or allowed
    quota = cgroups.read().cores
    if usable == physical:
        return AREA.ok("cores", f"{count(usable, 'core')}, all of them usable")
    why = f"the container's quota is {quota}" if quota == usable else "this process may run on no others"
    return AREA.ok("cores", f"{usable} of {count(physical, 'core')} are usable: {why}")


def _memory(host: Device) -> Finding:
    limit, all_of_it = cgroups.read().memory_limit, psutil.virtual_memory().total
    bound = f" (the container's limit; the machine has {gb(all_of_it)})" if limit and limit < all_of_it else ""
    swap = psutil.swap_memory().total
    told = f"{gb(host.free)} of {gb(host.total)} are free{bound}; {f'{gb(swap)} of swap' if swap else 'no swap'}"
    if host.free < _LITTLE:
        return AREA.warning("memory", told, "end programs that hold much of it: ps aux --sort=-rss | head")
    return AREA.ok("memory", told)


def graphics(gpus: list[Device], ours: set[int]) -> Iterator[Finding]:
    """Each GPU, and what other processes than `ours` hold of it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpus and hidden is not None:
        told = f"none is seen: CUDA_VISIBLE_DEVICES is '{hidden}'"
        if hidden.split(",")[0].strip() in ("", "-1"):  # somebody wants it so
            yield AREA.ok("GPU", told)
        else:
            mend = "name one as 'nvidia-smi -L' does, or unset it to use all; -1 says that none is wanted"
            yield AREA.warning("GPU", f"{told}, which begins with no GPU of this machine", mend)
    elif not gpus and Path("/dev/nvidiactl").exists():
        broken = "there is an NVIDIA driver, and it does not answer"
        yield AREA.warning("GPU", broken, "see what 'nvidia-smi' says; in a container, start that with access to GPUs")
    elif not gpus:
        yield AREA.ok("GPU", "no NVIDIA GPU: models run on the CPU")
    for gpu in gpus:
        told = f"{gpu.name}, {mb(gpu.free)} of {mb(gpu.total)} are free"
        others = {pid: size for pid, size in gpu.used_by.items() if pid not in ours}
        if others:
            holders = ", ".join(f"{_named(pid)} {mb(size)}" for pid, size in sorted(others.items()))
            told += f"; other programs hold {holders}"
        if gpu.total:
            yield AREA.ok(gpu.device, told)
        else:
            yield AREA.warning(gpu.device, f"{gpu.name} does not tell its memory", "see what 'nvidia-smi' says")


def _named(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return f"process {pid}"


def _files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < _FEW_FILES:
        told = f"at most {hard} at once, connections among them"
        mend = "raise it: LimitNOFILE=65536 in the service's unit, or 'hard nofile 65536' in /etc/security/limits.conf"
        return AREA.warning("open files", told, mend)
    return AREA.ok("open files", f"at most {hard:,}" if hard > 0 else "no limit")


def holds(running: Coordinator | None, devices: tuple[Device, ...]) -> dict[str, int]:
    """What the engines of the running coordinator hold of each device; it could take that for another model."""
    engines = running.tree()[1:] if running else []
    if not engines:
        return {}
    held = {HOST: sum(map(_own_memory, engines))}
    pids = {process.pid for process in engines}
    for gpu in devices:
        if gpu.device != HOST and not gpu.simulated:
            held[gpu.device] = sum(size for pid, size in gpu.used_by.items() if pid in pids)
    return held


def _own_memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0
