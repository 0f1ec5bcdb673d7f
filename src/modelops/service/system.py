"""The machine and the coordinator's own health."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import modelops
from modelops.access import STRANGER
from modelops.api import types
from modelops.service.call import Call, Parts
from modelops.serving.devices import cpu_percent
from modelops.serving.placement import HOST, MB


class System:
    """The operations about the whole."""

    _parts: Parts

    def __init__(self) -> None:
        self._started = time.monotonic()
        #: What each part says of itself; filled by whoever starts the part.
        self.components: dict[str, Callable[[], str]] = {}
        #: Set at the end: what was accepted is finished, and nobody should send more.
        self.draining = False

    async def status(self, _: Call, __: types.Empty) -> types.SystemStatus:
        """The machine and what runs on it."""
        devices, busy = self._parts.machine.devices(), cpu_percent()
        views = self._parts.pool.views()
        return types.SystemStatus(
            uptime_seconds=round(time.monotonic() - self._started, 3),
            cpu_usage_percent=busy,
            memory_used_mb=devices[0].used // MB,
            memory_total_mb=devices[0].total // MB,
            devices=[
                types.DeviceStatus(
                    device=device.device,
                    name=device.name,
                    total_mb=device.total // MB,
                    used_mb=device.used // MB,
                    reserved_mb=self._parts.pool.reserved(device.device) // MB,
                    utilization_percent=busy if device.device == HOST else device.utilization_percent,
                    temperature_celsius=device.temperature_celsius,
                )
                for device in devices
            ],
            models_loaded=sum(view.status == "loaded" for view in views),
            active_requests=sum(view.active for view in views),
            queued_requests=sum(view.queued for view in views),
            version=modelops.__version__,
        )

    def not_ready(self) -> str:
        """Why no work should be sent here; empty: it may. A model that fails, or is not loaded, is no reason."""
        if self.draining:
            return "the coordinator is shutting down"
        return "; ".join(f"{name}: {state}" for name, say in self.components.items() if (state := say()) != "healthy")

    async def health(self, call: Call, _: types.Empty) -> types.HealthResponse:
        """Healthy while everything serves; degraded while a part or a model does not; unhealthy without any part.

        Who shows no key where others need one is told the status only.
        """
        components = {name: say() for name, say in self.components.items()}
        down = [name for name, state in components.items() if state != "healthy"]
        views = self._parts.pool.views()
        failed = [it.version.model_name for it in views if it.status == "failed" or it.breaker.state != "closed"]
        components["models"] = f"degraded: failed: {', '.join(failed)}" if failed else "healthy"
        status: types.HealthStatus = "healthy"
        if down or failed:
            status = "unhealthy" if len(down) == len(self.components) else "degraded"
        if call.caller is STRANGER:
            return types.HealthResponse(status=status, timestamp=datetime.now(UTC))
        return types.HealthResponse(
            status=status, timestamp=datetime.now(UTC), components=components, version=modelops.__version__
        )
