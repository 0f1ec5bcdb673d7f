"""Looks at a coordinator, and what two of them tell of the time between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelops.api.types import HealthResponse, ModelInfo, SystemStatus
    from modelops.client import Client


@dataclass(frozen=True)
class Look:
    """A coordinator as it was at one moment: the machine, and the models that are loaded or on their way."""

    status: SystemStatus
    models: list[ModelInfo]
    health: HealthResponse

    @property
    def at(self) -> datetime:
        """When that was, by the coordinator's clock: ours may be another one."""
        return self.health.timestamp


@dataclass(frozen=True)
class Rate:
    """Tokens per second: of answers that were written, and of prompts that were read."""

    written: float = 0.0
    read: float = 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.written + other.written, self.read + other.read)

    def as_json(self) -> dict[str, float]:
        """By the names of the counters."""
        return {"tokens_generated": round(self.written, 2), "prompt_tokens": round(self.read, 2)}


@dataclass(frozen=True)
class Rates:
    """Means of `seconds`; 0: nothing is known. `models` has each model of the later look."""

    seconds: float = 0.0
    total: Rate = field(default_factory=Rate)
    models: Mapping[str, Rate] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        models = {name: rate.as_json() for name, rate in self.models.items()}
        return {"seconds": round(self.seconds, 3)} | self.total.as_json() | {"models": models}


def look(client: Client) -> Look:
    """One look, now."""
    return Look(client.status(), client.models(), client.health())


def rates(before: Look, after: Look) -> Rates:
    """What was written and read between two looks. None is negative.

    After a restart of the coordinator its counters began at 0: then it is what it did since.
    """
    restarted = after.status.uptime_seconds < before.status.uptime_seconds
    seconds = after.status.uptime_seconds - (0.0 if restarted else before.status.uptime_seconds)
    if seconds <= 0:
        return Rates()
    known = {model.model_name: model for model in before.models}

    def rate(old: SystemStatus | ModelInfo | None, new: SystemStatus | ModelInfo) -> Rate:
        if restarted:
            return Rate(new.tokens_generated / seconds, new.prompt_tokens / seconds)
        if old is None:  # it had tokens of earlier, nobody knows how many
            return Rate()
        written, read = new.tokens_generated - old.tokens_generated, new.prompt_tokens - old.prompt_tokens
        return Rate(max(0, written) / seconds, max(0, read) / seconds)

    models = {model.model_name: rate(known.get(model.model_name), model) for model in after.models}
    return Rates(seconds, rate(before.status, after.status), models)
