"""What families have that are read when /metrics is asked for: from frozen views and devices to plain numbers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import modelops
from modelops.metrics import Readings
from modelops.metrics import families as of
from modelops.serving.devices import Device
from modelops.serving.placement import MB
from modelops.serving.views import View

_STATES = {"closed": 0, "open": 1, "half_open": 2}


def of_models(views: Sequence[View]) -> Readings:
    """Of those models that anybody has wanted: what is only registered has nothing to show."""
    used = [view for view in views if view.used]
    models = [view for view in used if not view.base]  # an adapter has its model's queue, slots and breaker
    engines = [view for view in models if view.layout]

    def by_model(views: Sequence[View], value: Callable[[View], float]) -> dict[tuple[str, ...], float]:
        return {(view.version.model_name,): value(view) for view in views}

    return {
        of.MODELS_LOADED: {(): sum(view.status == "loaded" for view in used)},
        of.MODEL_MEMORY: {
            (view.version.model_name, device): size / MB for view in used for device, size in view.memory.items()
        },
        of.MEMORY_PREDICTED: by_model(engines, lambda view: view.predicted),
        of.MEMORY_MEASURED: by_model([view for view in engines if view.measured], lambda view: view.measured),
        of.TOKENS: by_model(used, lambda view: view.usage.answer_tokens),
        of.PROMPT_TOKENS: by_model(used, lambda view: view.usage.prompt_tokens),
        of.BREAKER_STATE: by_model(models, lambda view: _STATES[view.breaker.state]),
        of.BREAKER_FAILURES: by_model(models, lambda view: view.breaker.failures),
        of.ACTIVE: by_model(models, lambda view: view.active),
        of.QUEUED: by_model(models, lambda view: view.queued),
        of.SLOTS: by_model(engines, lambda view: view.slots),
    }


def of_machine(devices: Sequence[Device], cpu_percent: float, data_dir: Path, reserved: Mapping[str, int]) -> Readings:
    """Of the host and its GPUs, which are the devices but the first. `reserved`: bytes of each, by the ledger."""
    host, *gpus = devices
    disk = shutil.disk_usage(data_dir)
    return {
        of.SYSTEM_CPU: {(): cpu_percent},
        of.SYSTEM_MEMORY: {(): host.used},
        of.SYSTEM_MEMORY_TOTAL: {(): host.total},
        of.SYSTEM_DISK: {(): disk.used},
        of.SYSTEM_DISK_TOTAL: {(): disk.used + disk.free},
        of.STATE_FILE_SIZE: {(): sum(map(_size, (data_dir / "state.db", data_dir / "state.db-wal")))},
        of.GPU_TOTAL: {(gpu.device,): gpu.total / MB for gpu in gpus},
        of.GPU_USED: {(gpu.device,): gpu.used / MB for gpu in gpus},
        of.GPU_FREE: {(gpu.device,): gpu.free for gpu in gpus},
        of.GPU_UTILIZATION: {
            (gpu.device,): gpu.utilization_percent for gpu in gpus if gpu.utilization_percent is not None
        },
        of.GPU_TEMPERATURE: {
            (gpu.device,): gpu.temperature_celsius for gpu in gpus if gpu.temperature_celsius is not None
        },
        of.RESERVED: {(device.device,): reserved.get(device.device, 0) for device in (host, *gpus)},
    }


def of_process(goals_active: int) -> Readings:
    """Of this process; to be asked on the event loop."""
    return {
        of.BUILD: {(modelops.__version__,): 1},
        of.LOOP_TASKS: {(): len(asyncio.all_tasks())},
        of.GOALS_ACTIVE: {(): goals_active},
    }


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0
