"""What a caller, or the catalogue, may wish of how a model is run. Pure values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from modelops.engines.base import CacheType, FlashAttention, Speculation
from modelops.serving.events import Residency


@dataclass(frozen=True)
class Tuning:
    """How an engine computes, beside what a caller may ask of a load; zeros and "" leave it to the settings.

    `draft` is the registered model that guesses ahead, where `speculation` is "draft".
    """

    batch_size: int = 0
    threads: int = 0
    flash_attention: FlashAttention = ""
    speculation: Speculation = ""
    draft: str = ""


@dataclass(frozen=True)
class Wish:
    """What a caller may ask of a load, as in ModelLoadRequest, and how it was tuned; zeros and None leave it to the
    settings."""

    quantization: bool = False
    gpu_layers: int = 0
    context_length: int = 0
    slots: int = 0
    cache_type: CacheType | None = None
    keep_alive_s: float | None = None  # negative: stays
    pinned: bool = False
    tuning: Tuning = Tuning()

    @property
    def offloaded(self) -> int | None:
        """Units for GPUs, None for "placed automatically": the API says 0 for that, and -1 for none."""
        return {0: None, -1: 0}.get(self.gpu_layers, self.gpu_layers)

    @property
    def said(self) -> dict[str, Any]:
        """What it says of slots, cache type and tuning, by name; what is left to the settings is not in it."""
        named = {"slots": self.slots, "cache_type": self.cache_type, **asdict(self.tuning)}
        return {name: value for name, value in named.items() if value}

    def residency(self, keep_alive_s: float) -> Residency:
        """How long the model stays; `keep_alive_s` where it does not say, a negative one for ever."""
        keep = keep_alive_s if self.keep_alive_s is None else self.keep_alive_s
        return Residency(keep if keep >= 0 else None, self.pinned)

    def joined(self, later: Wish) -> Wish:
        """As it is, for one that comes while it is loaded: pinned where either is, with the keep-alive that was said
        last."""
        keep = self.keep_alive_s if later.keep_alive_s is None else later.keep_alive_s
        return replace(self, keep_alive_s=keep, pinned=self.pinned or later.pinned)

    def to_json(self) -> str:
        """For the state file."""
        return json.dumps({key: value for key, value in asdict(self).items() if value != asdict(Wish())[key]})

    @classmethod
    def from_json(cls, text: str) -> Wish:
        """What `to_json` wrote; what another release wrote and this one does not know is left out."""
        fields = json.loads(text)
        known = {key: fields[key] for key in cls.__dataclass_fields__ if key in fields}
        if tuning := known.get("tuning"):
            known["tuning"] = Tuning(**{key: tuning[key] for key in Tuning.__dataclass_fields__ if key in tuning})
        return cls(**known)
