"""What every engine is asked for and answers, whichever program it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modelops.api.errors import EngineFailed

#: What the numbers of the KV cache are stored as: 16 bits, or about 8.5 or 4.5.
CacheType = Literal["f16", "q8_0", "q4_0"]
Task = Literal["generate", "embed", "rerank"]
FlashAttention = Literal["", "on", "off"]  # empty: as the engine decides
#: How tokens are guessed ahead of the model: not, from what was said before, or by a smaller model.
Speculation = Literal["", "ngram", "draft"]


class EngineBroke(EngineFailed):
    """An engine that ran broke off, crashed, hung, or answered what no engine should; it may have begun to answer.

    `reason` may be told to other callers too: nothing of the request is in it.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class EngineSpec:
    """How one model is to be run.

    `context_length` is in tokens for each slot; `gpu_layers` is -1 for "the engine decides", and counts the output as
    one layer more; `gpus` are those that the engine sees, by UUID, None for all that there are; `tensor_split` says how
    many of its layers each of them takes, empty for "the engine decides";
    `load_timeout_s` and `stop_timeout_s` bound the start and the end; one that says nothing for `stall_timeout_s`
    seconds while it is asked is hung.
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
    gpus: tuple[str, ...] | None = None
    tensor_split: tuple[int, ...] = ()
    cache_type: CacheType = "f16"
    context_checkpoints: int = 0  # copies of windows and states that each slot may keep, to go back in a prompt
    task: Task = "generate"
    stall_timeout_s: float = 60.0
    pooling: Literal["", "mean"] = ""  # how the tokens of a text become one vector; empty: as the file says
    flash_attention: FlashAttention = ""
    speculation: Speculation = ""
    draft: Path | None = None  # the model that guesses ahead, where `speculation` is "draft"
    adapters: tuple[Path, ...] = ()  # LoRAs that requests may be answered with, one at a time

    @property
    def step_size(self) -> int:
        """Tokens that are computed at once: of an answer's prompt a part, of a text to embed or to score all."""
        return min(self.batch_size, 512) if self.task == "generate" else self.batch_size


@dataclass(frozen=True)
class Prompt:
    """One request to an engine. `seed` None means a different answer each time (unless `temperature` is 0).

    `messages`, as OpenAI writes them, are instead of `text` and `system`, and the arguments of their calls are objects;
    `options` are what else the engine is
    told, in its own words. `max_tokens` 0: as many as the context has room for. `adapter` is the number of that of the
    spec's adapters which it is answered with; None: with none.
    """

    text: str
    system: str
    raw: bool
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None
    messages: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter: int | None = None


@dataclass(frozen=True)
class CallPart:
    """A part of the function call number `index` of an answer."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Likely:
    """A token of an answer with the logarithm of its probability, and those of others in its place."""

    token: str
    logprob: float
    utf8: tuple[int, ...] = ()  # its bytes, which may be a part of a character's
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one has `tokens`, the number generated in all, and an empty text.

    `prompt_tokens`: of the prompt, where the engine says it: those that it has read so far, and in the last piece all.
    """

    text: str
    tokens: int | None = None
    prompt_tokens: int = 0
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    likely: tuple[Likely, ...] = ()
    finish: str = ""  # why the answer ended, as OpenAI says it

    @property
    def says(self) -> bool:
        """Whether there is anything in it of the answer itself."""
        return bool(self.text or self.reasoning or self.calls or self.likely)
