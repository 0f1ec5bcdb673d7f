"""The door: one method for each operation of the operations table, the same for every transport.

Checks the request's meaning, fixes its deadline, delegates. Knows no wire format; owns no state of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import modelops
from modelops.api import types
from modelops.api.errors import DeadlineExceeded, InternalError, ModelOpsError
from modelops.engines.base import Piece, Prompt
from modelops.serving import devices
from modelops.serving.catalog import Catalog, Version, check_type
from modelops.serving.placement import MB
from modelops.serving.pool import Pool, View
from modelops.serving.tuning import Wish
from modelops.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One call as its transport received it.

    `received` is when the request had been read, on the performance counter; `timeout_s` is how long its caller will
    wait, None for "as long as the server lets it".
    """

    request_id: str
    protocol: str
    timeout_s: float | None = None
    received: float = field(default_factory=time.perf_counter)

    @property
    def latency_ms(self) -> float:
        """From the request fully read until now."""
        return round((time.perf_counter() - self.received) * 1000, 3)


class Coordinator:
    """Every operation. Each raises ModelOpsError and nothing else."""

    def __init__(self, settings: Settings, catalog: Catalog, pool: Pool) -> None:
        self._settings = settings
        self._catalog = catalog
        self._pool = pool
        self._started = time.monotonic()
        self._version = modelops.__version__
        #: What each part says of itself; filled by whoever starts the part.
        self.components: dict[str, Callable[[], str]] = {}

    # --- inference ---
    async def infer(self, call: Call, request: types.InferenceRequest) -> types.InferenceResponse:
        """The whole answer. An answer that was cut short is an error here: nothing has been sent yet."""
        answer = _Answer(call)
        async with contextlib.aclosing(self._generate(call, request, answer)) as pieces:
            async for _ in pieces:
                pass
        return answer.response()

    async def infer_stream(self, call: Call, request: types.InferenceRequest) -> AsyncGenerator[types.InferenceChunk]:
        """The answer as it is made; the last chunk is `done` and holds the whole.

        Raises only before the first chunk: an answer that is cut short later ends with a last chunk that says so.
        Closing the generator frees the engine's slot.
        """
        answer = _Answer(call)
        async with contextlib.aclosing(self._generate(call, request, answer)) as pieces:
            try:
                async for piece in pieces:
                    yield types.InferenceChunk(text=piece.text)
            except ModelOpsError as error:
                if not answer.parts:
                    raise
                answer.error = error
        yield types.InferenceChunk(done=True, final=answer.response())

    async def _generate(self, call: Call, request: types.InferenceRequest, answer: _Answer) -> AsyncGenerator[Piece]:
        """The pieces that hold text; what they add up to is collected in `answer`."""
        deadline = self._deadline(call)
        prompt = Prompt(
            text=request.input_text,
            system=request.system,
            raw=request.raw,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=tuple(request.stop_sequences),
            seed=request.seed,
        )
        async with self._pool.lease(request.model_name, deadline) as lease:
            answer.version = lease.version.label
            async with contextlib.aclosing(lease.generate(prompt)) as pieces:
                while True:
                    try:
                        # Around each step, not around the loop: between steps the caller's own code runs.
                        async with asyncio.timeout_at(deadline):
                            piece = await anext(pieces)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        raise DeadlineExceeded("the time ran out while the model was answering") from None
                    answer.add(piece)
                    if piece.text:
                        yield piece

    # --- models ---
    async def load_model(self, call: Call, request: types.ModelLoadRequest) -> types.ModelLoadReply:
        """Register the model where needed, and load it."""
        check_type(request.model_type)
        deadline = self._deadline(call)
        wish = Wish(request.quantization, request.gpu_layers)
        if request.model_path:
            try:
                async with asyncio.timeout_at(deadline):
                    version = await self._catalog.register(request.model_name, request.model_path, request.model_type)
            except TimeoutError:
                raise DeadlineExceeded("the time ran out while the model was fetched") from None
        else:
            version = await self._catalog.find(request.model_name)
        if not request.wait:
            view = await self._pool.start_load(version, wish)
            return _loaded(view, f"loading '{request.model_name}'; GET /models/{request.model_name} tells the rest")
        view = await self._pool.load(version, wish, deadline)
        return _loaded(view, f"'{request.model_name}' is loaded")

    async def unload_model(self, call: Call, request: types.ModelUnloadRequest) -> types.ModelUnloadReply:
        """Unload the model; its registration stays."""
        freed = await self._pool.unload(request.model_name, force=request.force, deadline=self._deadline(call))
        return types.ModelUnloadReply(message=f"'{request.model_name}' is unloaded", memory_freed_mb=freed // MB)

    async def list_models(self, _: Call, request: types.ListModelsRequest) -> types.ModelList:
        """What is resident or on its way, or with `all` everything that is registered."""
        if request.all:
            await self._catalog.refresh()
        views = [view for view in self._pool.views() if request.all or view.status != "available"]
        return types.ModelList(models=[_info(view) for view in views])

    async def get_model(self, _: Call, request: types.GetModelRequest) -> types.ModelInfo:
        """One model as it stands."""
        await self._catalog.find(request.model_name)
        return _info(self._pool.view(request.model_name))

    # --- the system ---
    async def status(self, _: Call, __: types.Empty) -> types.SystemStatus:
        """The machine and what runs on it."""
        host = devices.host()
        views = self._pool.views()
        return types.SystemStatus(
            uptime_seconds=round(time.monotonic() - self._started, 3),
            cpu_usage_percent=host.cpu_percent,
            memory_used_mb=host.used_bytes // MB,
            memory_total_mb=host.total_bytes // MB,
            devices=[
                types.DeviceStatus(
                    device="cpu",
                    name=host.name,
                    total_mb=host.total_bytes // MB,
                    used_mb=host.used_bytes // MB,
                    reserved_mb=self._pool.reserved_bytes() // MB,
                    utilization_percent=host.cpu_percent,
                )
            ],
            models_loaded=sum(view.status == "loaded" for view in views),
            active_requests=sum(view.active for view in views),
            queued_requests=sum(view.queued for view in views),
            version=self._version,
        )

    async def health(self, _: Call, __: types.Empty) -> types.HealthResponse:
        """Healthy while everything serves; degraded while a part or a model does not; unhealthy without any part."""
        components = {name: say() for name, say in self.components.items()}
        down = [name for name, state in components.items() if state != "healthy"]
        failed = [view.version.model_name for view in self._pool.views() if view.status == "failed"]
        components["models"] = f"degraded: failed: {', '.join(failed)}" if failed else "healthy"
        status: types.HealthStatus = "healthy"
        if down or failed:
            status = "unhealthy" if len(down) == len(self.components) else "degraded"
        return types.HealthResponse(
            status=status, timestamp=datetime.now(UTC), components=components, version=self._version
        )

    def _deadline(self, call: Call) -> float:
        longest = self._settings.server.request_timeout_s
        allowed = longest if call.timeout_s is None else min(longest, call.timeout_s)
        return asyncio.get_running_loop().time() + allowed - call.latency_ms / 1000


@dataclass
class _Answer:
    """What an answer adds up to."""

    call: Call
    version: str = ""
    tokens: int | None = None
    parts: list[str] = field(default_factory=list)
    error: ModelOpsError | None = None

    def add(self, piece: Piece) -> None:
        if piece.text:
            self.parts.append(piece.text)
        if piece.tokens is not None:
            self.tokens = piece.tokens

    def response(self) -> types.InferenceResponse:
        return types.InferenceResponse(
            output_text="".join(self.parts),
            # Without the engine's own count, which comes last, each part was one token or more.
            tokens_generated=len(self.parts) if self.tokens is None else self.tokens,
            latency_ms=self.call.latency_ms,
            model_version=self.version,
            success=self.error is None,
            error_message=self.error.message if self.error else "",
        )


def internal(call: Call, error: Exception) -> InternalError:
    """What a caller is told of a fault of ours; the log has the rest, under the same request id."""
    log.error("request %s over %s failed", call.request_id, call.protocol, exc_info=error)
    return InternalError(f"internal error; the server's log has the reason under request {call.request_id}")


def _loaded(view: View, message: str) -> types.ModelLoadReply:
    return types.ModelLoadReply(message=message, model_version=view.version.label, memory_usage_mb=view.memory_mb)


def _info(view: View) -> types.ModelInfo:
    version: Version = view.version
    return types.ModelInfo(
        model_name=version.model_name,
        model_version=version.label,
        model_type=version.model_type,
        model_path=version.shown_path,
        status=view.status,
        memory_usage_mb=view.memory_mb,
        gpu_layers=view.gpu_layers,
        context_length=view.context_length,
        loaded_at=view.loaded_at,
        last_used_at=view.last_used_at,
        active_requests=view.active,
        queued_requests=view.queued,
        message=view.message,
        digest=version.digest,
    )
