"""An engine that was started, and what the machine shows that engines take: looked at, never decided about."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from modelops.engines.llama_cpp import Engine
from modelops.serving.builds import Build
from modelops.serving.catalog import Version
from modelops.serving.devices import Device
from modelops.serving.estimates import Taken, unused_bytes
from modelops.serving.events import Room
from modelops.serving.placement import HOST, MB, Layout
from modelops.settings import MemorySettings

#: Between two looks at what an engine takes of GPUs.
_LOOK_AGAIN_S = 60.0


@dataclass
class Running:
    """An engine that was started."""

    build: Build
    layout: Layout
    engine: Engine
    adapters: tuple[Version, ...] = ()  # in the order of their numbers: those of its build that were there
    starting: asyncio.Task[None] | None = None
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None
    pids: set[int] = field(default_factory=set)  # when it was loaded
    at_load: int = 0  # bytes of RAM that it had taken before its first request
    measured: bool = False
    seen: int = 0  # bytes that it was last seen to hold, on all devices; 0: not known
    looked_at: float = 0.0  # on the clock of whoever looks

    def loaded(self, now: datetime) -> None:
        """It answers: what it has taken so far is noted."""
        self.loaded_at, self.pids, self.at_load = now, self.engine.pids(), self.engine.taken_bytes()

    def adapter(self, name: str, numbers: Collection[int]) -> int | None:
        """The number that the engine has for the adapter `name`, in one of those versions; None where it has none."""
        found = (
            index for index, held in enumerate(self.adapters) if held.model_name == name and held.number in numbers
        )
        return next(found, None)

    def look(self, now: float) -> bool:
        """Whether to look at what it takes: after its first answer, and on GPUs every minute that it serves."""
        due = not self.measured or (self.layout.gpu_layers > 0 and now - self.looked_at > _LOOK_AGAIN_S)
        if due:
            self.looked_at = now
        return due

    def holds(self, devices: Sequence[Device]) -> dict[str, int]:
        """Bytes of each device that its processes are shown to hold: of RAM, and of GPUs that tell.

        Of RAM that is what is resident, but for the weights that it has mapped and copied; never less than what it has
        taken for good, though the machine may have taken such pages back already.
        """
        tuned, projection = self.build.tuned, self.build.estimate.projection
        unused = unused_bytes(projection, tuned.header, tuned.need, self.at_load, self.layout.gpu_layers)
        held = {HOST: max(self.engine.taken_bytes(), self.engine.memory_bytes() - unused)}
        held |= {device: size for device, size in self._on_gpus(devices).items() if size}
        told = len(held) > 1 or not self.layout.gpu_layers  # a container's GPUs may not tell which is whose
        self.seen = sum(held.values()) if told else 0
        return held

    def taken(self, devices: Sequence[Device]) -> Taken | None:
        """What it has taken after its first answer, but for adapters; None where that says nothing of the next one like
        it."""
        layout, need = self.layout, self.build.tuned.need
        if self.build.device == "gpu" and not layout.gpu_layers:
            return None  # it was estimated with a driver that it does without
        if self.engine.spec.speculation:
            return None  # how much of that is for its guesses is not known
        loras = need.total - self.build.tuned.bare.total
        if loras and (layout.gpu_layers or self.adapters != self.build.adapters):
            return None  # how much of that is theirs is not known
        shown = sum(self._on_gpus(devices).values())
        units = sum(need.units[len(need.units) - layout.gpu_layers :])
        several = sum(count > 0 for count in layout.split)
        visiting = need.visiting if layout.gpu_layers < len(need.units) else 0
        per_gpu = (shown - units) // several - visiting if shown and several else 0
        answered = self.engine.taken_bytes()
        return Taken(self.at_load - loras, answered - loras, layout.gpu_layers, max(0, per_gpu))

    def _on_gpus(self, devices: Sequence[Device]) -> dict[str, int]:
        pids = self.engine.pids()
        return {
            device.device: sum(size for pid, size in device.used_by.items() if pid in pids)
            for device in devices
            if device.device != HOST and not device.simulated
        }

    def counted(self, devices: Sequence[Device]) -> dict[str, int]:
        """Bytes of each device that it has taken of what was reserved, and that the device therefore shows as used.

        Simulated devices do not show what engines take. Inside a container the driver names other processes' numbers:
        then what is loaded counts as taken.
        """
        assumed = self.layout.reserve if self.loaded_at and self.engine.pids() else {}
        found = {gpu: shown or assumed.get(gpu, 0) for gpu, shown in self._on_gpus(devices).items()}
        if any(device.device == HOST and not device.simulated for device in devices):
            found[HOST] = self.engine.taken_bytes()
        return found


def room(devices: Sequence[Device], running: Mapping[int, Running], memory: MemorySettings) -> Room:
    """What may be reserved on each device, and what engines have taken already."""
    spare = {device.device: memory.reserve_mb if device.device == HOST else memory.gpu_reserve_mb for device in devices}
    free = {device.device: device.free - spare[device.device] * MB for device in devices}
    most = {device.device: device.total - device.withheld - spare[device.device] * MB for device in devices}
    return Room(free, {number: one.counted(devices) for number, one in running.items()}, most)
