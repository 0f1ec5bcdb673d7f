"""What the machine has now: memory, GPUs, cores, load. Read fresh on every call; decides nothing."""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from modelops.serving import cgroups
from modelops.serving.placement import HOST, MB

log = logging.getLogger(__name__)

#: Of all cores together: the system counts in hundredths of a second, and says little of less.
_SHORTEST_S = 0.2

_SIMULATED = re.compile(r"(?P<device>cpu|gpu\d+)=(?P<total>\d+)(/(?P<used>\d+))?")


@dataclass(frozen=True)
class Device:
    """One device, "cpu" for the host's RAM and "gpu0", "gpu1", … in NVML's order. Sizes in bytes.

    `used_by` is what each process holds, where the device tells; `uuid` is the driver's name for a GPU, which no other
    has; what a card does not tell is None; `simulated` devices do not show what engines take. `withheld` is what a
    GPU's driver keeps for itself, where it tells: nobody uses it, and nobody can have it.
    """

    device: str
    name: str
    total: int
    free: int
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    used_by: Mapping[int, int] = field(default_factory=dict)
    uuid: str = ""
    simulated: bool = False
    withheld: int = 0

    @property
    def used(self) -> int:
        """What programs hold, as `nvidia-smi` says it. Not what is not free: see `withheld`."""
        return self.total - self.free - self.withheld


class Machine(Protocol):
    """Where models are placed."""

    @property
    def cores(self) -> int:
        """Cores that engines may keep busy at once: at least one."""

    def devices(self) -> tuple[Device, ...]:
        """Every device now, the host first."""


class ThisMachine:
    """The host, bounded by its container, and its NVIDIA GPUs."""

    def __init__(self) -> None:
        self._nvml = _nvml()

    @property
    def cores(self) -> int:
        """Physical cores that this process may run on, as its affinity and its container's quota allow."""
        return usable_cores()

    def devices(self) -> tuple[Device, ...]:
        """The host and every GPU now."""
        return (host(), *_gpus(self._nvml))


class SimulatedMachine:
    """A machine with the given devices, each written `gpu0=24000` or `gpu0=24000/3000` (MB in all, MB that others use).

    Without "cpu" among them the host is the real one. Engines still run on the real machine.
    """

    def __init__(self, written: Sequence[str]) -> None:
        """Raises ValueError for what is no list of devices."""
        self._devices = tuple(sorted((_simulated(text) for text in written), key=_number))
        gpus = [device.device for device in self._devices if device.device != HOST]
        if len(self._devices) - len(gpus) > 1 or gpus != [f"gpu{number}" for number in range(len(gpus))]:
            raise ValueError("GPUs are numbered from gpu0 on, each device once")

    @property
    def cores(self) -> int:
        """As on the real machine: the engines run there."""
        return usable_cores()

    def devices(self) -> tuple[Device, ...]:
        """The devices as written."""
        real = () if any(device.device == HOST for device in self._devices) else (host(),)
        return (*real, *self._devices)


def host(root: Path = Path("/")) -> Device:
    """The host's RAM now, or what the container leaves of it; what can be taken without swapping is free.

    `root` is where the container's limits are found.
    """
    memory, limits = psutil.virtual_memory(), cgroups.read(root)
    total = min(memory.total, limits.memory_limit or memory.total)
    free = memory.available if limits.memory_free is None else min(memory.available, limits.memory_free)
    return Device(HOST, f"{platform.machine()} RAM", total, min(free, total))


class CpuMeter:
    """How busy the host's cores are: each reader has its own, or they would shorten each other's time."""

    def __init__(self) -> None:
        self._before = _cpu_seconds()
        self._percent = 0.0

    def percent(self) -> float:
        """Since the last call; as then, where that was just now."""
        now = _cpu_seconds()
        busy, whole = now[0] - self._before[0], now[1] - self._before[1]
        if whole >= _SHORTEST_S:
            self._before, self._percent = now, max(0.0, min(100.0, 100 * busy / whole))
        return round(self._percent, 1)


def _cpu_seconds() -> tuple[float, float]:
    """Seconds of all cores together: busy, and all."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # What guests used is in what users did.
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return whole - idle, whole


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may keep busy: bounded by its affinity and by its container's quota."""
    allowed = len(os.sched_getaffinity(0))
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical, cgroups.read(root).cores or allowed))


def _simulated(text: str) -> Device:
    match = _SIMULATED.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is no simulated device; one is written gpu0=24000 or gpu0=24000/3000, in MB")
    total, used = int(match["total"]) * MB, int(match["used"] or 0) * MB
    return Device(match["device"], "simulated", total, max(0, total - used), simulated=True)


def _number(device: Device) -> int:
    return -1 if device.device == HOST else int(device.device[3:])


# --- NVIDIA ---
def _nvml() -> Any:
    """The library, or None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _gpus(nvml: Any) -> list[Device]:
    if nvml is None:
        return []
    try:
        found = [_gpu(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        log.warning("the GPUs cannot be read: %s", error)
        return []
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: Sequence[Device], written: str | None) -> list[Device]:
    """Those of `gpus` that a CUDA_VISIBLE_DEVICES as `written` lets programs see; None: all.

    Read as CUDA reads it: numbers, here those of nvidia-smi, or beginnings of UUIDs, up to the first that names none.
    """
    if written is None:
        return list(gpus)
    seen = set()
    for name in map(str.strip, written.split(",")):
        named = [gpu for gpu in gpus if gpu.device == f"gpu{name}" or (name and gpu.uuid.startswith(name))]
        if len(named) != 1:
            break
        seen.add(named[0].device)
    return [gpu for gpu in gpus if gpu.device in seen]


def _gpu(nvml: Any, number: int) -> Device:
    """A card that does not tell its memory has none: nothing is placed there, and the others keep their numbers."""
    handle = _told(nvml, lambda: nvml.nvmlDeviceGetHandleByIndex(number), None)
    memory = _memory(nvml, handle)
    name = _told(nvml, lambda: nvml.nvmlDeviceGetName(handle), "NVIDIA")
    uuid = _told(nvml, lambda: nvml.nvmlDeviceGetUUID(handle), "")
    used_by: dict[int, int] = {}
    for process in _told(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle), ()):
        used_by[process.pid] = used_by.get(process.pid, 0) + (process.usedGpuMemory or 0)
    busy = _told(nvml, lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu), None)
    heat = _told(nvml, lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)), None)
    return Device(
        f"gpu{number}",
        _text(name),
        int(memory.total) if memory else 0,
        int(memory.free) if memory else 0,
        utilization_percent=busy,
        temperature_celsius=heat,
        used_by=used_by,
        uuid=_text(uuid),
        withheld=int(getattr(memory, "reserved", 0)),
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """What a card tells of its memory; None: nothing. Old drivers do not tell what they keep for themselves."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError, AttributeError, TypeError):
        return _told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle), None)


def _text(told: Any) -> str:
    return told.decode() if isinstance(told, bytes) else str(told)


def _told(nvml: Any, ask: Any, otherwise: Any) -> Any:
    """What a card answers, or `otherwise`: not every card tells everything."""
    try:
        return ask()
    except nvml.NVMLError:
        return otherwise
