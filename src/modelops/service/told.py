"""What callers are told of models, versions and plans: from the core's values to the contract's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from modelops.api import types
from modelops.serving.arrivals import Arrival
from modelops.serving.builds import Build
from modelops.serving.catalog import Version
from modelops.serving.placement import HOST, MB, Plan
from modelops.serving.views import View
from modelops.serving.wishes import Wish


def loaded(view: View, message: str) -> types.ModelLoadReply:
    """The answer to a load."""
    held = sum(view.memory.values()) // MB
    return types.ModelLoadReply(message=message, model_version=view.version.label, memory_usage_mb=held)


def info(view: View, tuned: Wish | None = None) -> types.ModelInfo:
    """A model as it stands, and how it was tuned."""
    version = view.version
    return types.ModelInfo(
        model_name=version.model_name,
        model_version=version.label,
        model_type=version.model_type,
        model_path=version.shown_path,
        status=view.status,
        memory_usage_mb=sum(view.memory.values()) // MB,
        gpu_layers=view.gpu_layers,
        context_length=view.context_length,
        loaded_at=view.loaded_at,
        last_used_at=view.last_used_at,
        active_requests=view.active,
        queued_requests=view.queued,
        message=view.message,
        digest=version.digest,
        slots=view.slots,
        cache_type=view.cache_type,
        devices={device: size // MB for device, size in view.memory.items()},
        pinned=view.pinned,
        expires_at=view.expires_at,
        tokens_generated=view.usage.answer_tokens,
        prompt_tokens=view.usage.prompt_tokens,
        breaker=view.breaker.state,
        tuned=tuned.said if tuned else {},
    )


def arriving(arrival: Arrival[object], name: str, present: types.ModelInfo | None) -> types.ModelInfo:
    """A model whose file is on its way, or has failed to come; `present` is what there is of it already."""
    if present and arrival.error:
        return present.model_copy(update={"message": present.message or arrival.message})
    if present and present.status != "available":
        return present
    state: types.ModelStatus = "failed" if arrival.error else "loading"
    told = {"status": state, "message": arrival.message, "progress": round(arrival.progress, 4)}
    return (present or types.ModelInfo(model_name=name)).model_copy(update=told)


def plan(build: Build, found: Plan) -> types.LoadPlan:
    """How a model would be run."""
    spec, layout = build.tuned.spec, found.layout
    gpus = [device for device in layout.reserve if device != HOST]
    layers = dict(zip(gpus, filter(None, layout.split), strict=True))
    layers[HOST] = len(build.tuned.need.layers) + 1 - layout.gpu_layers
    return types.LoadPlan(
        needed_mb=build.estimate.total // MB,
        devices=[
            types.DevicePlan(device=device, memory_mb=size // MB, layers=layers.get(device, 0))
            for device, size in layout.reserve.items()
        ],
        evict=list(found.evict),
        context_length=spec.context_length,
        slots=spec.slots,
        cache_type=spec.cache_type,
        threads=spec.threads,
    )


def version(found: Version, *, active: int, previous: int) -> types.ModelVersion:
    """One version; `active` and `previous` are the numbers of those that answer, or did before."""
    return types.ModelVersion(
        model_name=found.model_name,
        model_version=found.label,
        model_type=found.model_type,
        model_path=found.shown_path,
        digest=found.digest,
        size_mb=found.size // MB,
        registered_at=datetime.fromtimestamp(found.registered_at, UTC),
        active=found.number == active,
        previous=found.number == previous,
        base=found.base,
        lineage=dict(found.lineage),
    )


def by_name(models: Iterable[types.ModelInfo]) -> types.ModelList:
    """The models in the order of their names."""
    return types.ModelList(models=sorted(models, key=lambda model: model.model_name))
