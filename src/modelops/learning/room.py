"""Where a trainer runs. Looks; nothing is reserved."""

from __future__ import annotations

from modelops.learning import support
from modelops.learning.costs import Cost
from modelops.serving.devices import Machine
from modelops.serving.memory import DRIVER_BYTES
from modelops.serving.placement import HOST, Plan
from modelops.serving.pool import Pool
from modelops.settings import Settings

#: RAM of a trainer on a GPU: its libraries, and CUDA's.
CUDA_BYTES = 3 << 30


def gpu_bytes(settings: Settings, machine: Machine, pool: Pool, cost: Cost) -> int:
    """How much of a GPU a trainer of that cost takes; 0 where it is to run on the CPU."""
    gpus = [device for device in machine.devices() if device.device != HOST]
    device = settings.learning.device
    if device == "cpu" or not gpus or not support.trains_on_gpus():
        return 0
    wanted = cost.memory_bytes + DRIVER_BYTES
    fits = isinstance(pool.preview_loan("training", CUDA_BYTES, wanted), Plan)
    return wanted if fits or device == "gpu" else 0
