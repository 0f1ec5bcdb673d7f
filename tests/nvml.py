"""NVIDIA's library, simulated: cards that tell what they are told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from modelops.serving.placement import MB


class Nvml:
    """NVIDIA's library, as much of it as is asked: `cards` are what it tells, `refused` (function, card) what not."""

    NVML_TEMPERATURE_GPU = 0
    nvmlMemory_v2 = 0x02000028  # noqa: N815

    class NVMLError(Exception):
        """What every function raises."""

    def __init__(self, *cards: dict[str, Any], refused: set[tuple[str, int]] | None = None) -> None:
        self.cards = cards
        self.refused = refused or set()

    def told(self, function: str, card: int) -> Any:
        if (function, card) in self.refused:
            raise self.NVMLError("Not Supported")
        return self.cards[card].get(function)

    def nvmlInit(self) -> None:  # noqa: N802
        self.told("init", 0)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self.told("count", 0)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        self.told("handle", number)
        return number

    def nvmlDeviceGetMemoryInfo(self, handle: int | None, version: int = 0) -> Any:  # noqa: N802
        if handle is None:
            raise self.NVMLError("Invalid Argument")
        total, free = self.told("memory", handle)
        if not version:  # what the driver keeps for itself counts as used
            return SimpleNamespace(total=total, free=free, used=total - free)
        assert version == self.nvmlMemory_v2
        kept = self.told("reserved", handle) or 0
        return SimpleNamespace(version=version, total=total, reserved=kept, free=free, used=total - free - kept)

    def nvmlDeviceGetName(self, handle: int) -> Any:  # noqa: N802
        return self.told("name", handle or 0)

    def nvmlDeviceGetUUID(self, handle: int) -> Any:  # noqa: N802
        return self.told("uuid", handle or 0)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.told("processes", handle or 0)]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.told("busy", handle or 0), memory=99)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:  # noqa: N802
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self.told("heat", handle or 0)


A100: dict[str, Any] = {
    "name": "A100",
    "uuid": "GPU-a1",
    "memory": (40 * MB, 30 * MB),
    "processes": [(7, 4 * MB), (8, 5 * MB), (7, MB)],
    "busy": 60,
    "heat": 55,
}
T4: dict[str, Any] = {"name": b"T4", "memory": (16 * MB, 16 * MB), "processes": [(9, None)], "busy": 0, "heat": 30}
T4["uuid"] = b"GPU-b2"
