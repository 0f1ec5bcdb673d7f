"""What every engine is asked for and answers, whichever program it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineSpec:
    """How one model is to be run.

    `context_length` is in tokens for each slot; `gpu_layers` is -1 for "the engine decides"; `load_timeout_s` and
    `stop_timeout_s` bound the start and the end.
    """

    model_name: str
    file: Path
    executable: str
    slots: int
    context_length: int
    threads: int
    batch_size: int
    cache_ram_mb: int
    gpu_layers: int
    load_timeout_s: float
    stop_timeout_s: float


@dataclass(frozen=True)
class Prompt:
    """One request to an engine. `seed` None means a different answer each time (unless `temperature` is 0)."""

    text: str
    system: str
    raw: bool
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one has `tokens`, the number generated in all, and an empty text."""

    text: str
    tokens: int | None = None
