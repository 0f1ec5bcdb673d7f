"""Memory of the ledger that is lent to what is no model: to quantise, to train, to judge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from modelops.serving.devices import Device
from modelops.serving.memory import Need
from modelops.serving.placement import HOST, Layout, Wants


@dataclass
class Loan:
    """`size` bytes of RAM, and `on_gpu` bytes of one GPU.

    Whoever has it sets `taken`: the bytes of RAM that it has taken by now, which the machine therefore shows as used;
    and `pids`, whose use of a GPU is its.
    `layout` says which GPU it is, once it was granted.
    """

    size: int
    on_gpu: int = 0
    taken: Callable[[], int] = lambda: 0
    pids: Callable[[], Collection[int]] = tuple
    number: int = 0  # in the ledger; 0: not granted
    layout: Layout | None = None

    def wants(self, name: str) -> Wants:
        """What placement is asked for."""
        need = Need(layers=(), output=self.on_gpu, tied=0, host=self.size, compute=0, parts={name: self.size})
        return Wants(need, gpu_layers=1 if self.on_gpu else 0)

    def counted(self, devices: Sequence[Device]) -> dict[str, int]:
        """What it has taken, for each device that shows it."""
        pids, found = self.pids(), {}
        for device in devices:
            if device.simulated:
                continue
            if device.device == HOST:
                found[HOST] = min(self.taken(), self.size)
            elif held := (self.layout.reserve if self.layout else {}).get(device.device, 0):
                shown = sum(size for pid, size in device.used_by.items() if pid in pids)
                # Inside a container the driver names other processes' numbers: then what runs has all that is its own.
                found[device.device] = min(shown or (held if pids else 0), held)
        return found

    def gpu(self, devices: Sequence[Device]) -> str:
        """The driver's name for the GPU that it has a part of, or its number where that is not known; "" for none."""
        gpus = [device for device in devices if device.device != HOST]
        split = self.layout.split if self.layout else ()
        return next((gpu.uuid or str(at) for at, gpu in enumerate(gpus) if at < len(split) and split[at]), "")
