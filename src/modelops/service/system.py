"""The machine and the coordinator's own health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import modelops
from modelops.access import STRANGER
from modelops.api import types
from modelops.api.errors import DeadlineExceeded, NotFound
from modelops.service.call import Call, Parts
from modelops.service.readings import of_machine, of_models, of_process
from modelops.serving.devices import CpuMeter
from modelops.serving.placement import HOST, MB

#: Longest that somebody waits for a page: as long as Prometheus does by default.
_PAGE_S = 10.0


class System:
    """The operations about the whole."""

    _parts: Parts

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._cpu, self._cpu_of_pages = CpuMeter(), CpuMeter()
        # Others may hold all threads of the loop's own pool for long: for as long as a large file is hashed.
        self._pages = ThreadPoolExecutor(1, "metrics")
        self._page: asyncio.Future[bytes] | None = None  # that is being made
        #: What each part says of itself; filled by whoever starts the part.
        self.components: dict[str, Callable[[], str]] = {}
        #: Set at the end: what was accepted is finished, and nobody should send more.
        self.draining = False

    async def status(self, _: Call, __: types.Empty) -> types.SystemStatus:
        """The machine and what runs on it."""
        devices, busy = self._parts.machine.devices(), self._cpu.percent()
        views, reserved = self._parts.pool.views(), self._parts.pool.reserved()
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
                    reserved_mb=reserved.get(device.device, 0) // MB,
                    utilization_percent=busy if device.device == HOST else device.utilization_percent or 0.0,
                    temperature_celsius=device.temperature_celsius or 0.0,
                )
                for device in devices
            ],
            models_loaded=sum(view.status == "loaded" for view in views),
            active_requests=sum(view.active for view in views if not view.base),  # an adapter's are its model's too
            queued_requests=sum(view.queued for view in views),
            learning_jobs_running=self._parts.jobs.running,
            goals_active=self._parts.goals.active,
            version=modelops.__version__,
            tokens_generated=sum(view.usage.answer_tokens for view in views),
            prompt_tokens=sum(view.usage.prompt_tokens for view in views),
        )

    async def metrics(self, _: Call) -> bytes:
        """The page for Prometheus; who asks while one is made gets that one.

        Raises NotFound where metrics.enabled is off, DeadlineExceeded where a device does not answer.
        """
        if not self._parts.metrics.enabled:
            raise NotFound("nothing is counted here: metrics.enabled is off")
        if self._page is None or self._page.done():
            self._page = self._begin_page()
        try:
            async with asyncio.timeout(_PAGE_S):
                return await asyncio.shield(self._page)
        except TimeoutError:
            raise DeadlineExceeded(f"the devices of this machine were not read within {_PAGE_S:g} s") from None

    def _begin_page(self) -> asyncio.Future[bytes]:
        parts = self._parts
        reserved = parts.pool.reserved()
        models = of_models(parts.pool.views()) | of_process(parts.goals.active)

        def page() -> bytes:  # takes longer than others should wait
            devices, cpu = parts.machine.devices(), self._cpu_of_pages.percent()
            return parts.metrics.page(models | of_machine(devices, cpu, parts.settings.data_dir, reserved))

        return asyncio.get_running_loop().run_in_executor(self._pages, page)

    def close(self) -> None:
        """Nothing is asked any more."""
        self._pages.shutdown(wait=False, cancel_futures=True)

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
