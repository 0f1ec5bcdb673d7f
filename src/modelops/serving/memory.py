"""How much memory a model needs. Pure: shapes and settings in, bytes out."""

from __future__ import annotations

from dataclasses import dataclass

from modelops.serving.gguf import Header

_F16 = 2
_F32 = 4
#: Code, threads' stacks, tokenizer and HTTP server of an engine that has read its model; measured with a 0.1 GB model.
_PROCESS_BYTES = 80 * 2**20


@dataclass(frozen=True)
class Need:
    """The memory of one engine, in bytes, part by part."""

    weights: int
    kv_cache: int
    compute: int
    process: int
    prompt_cache: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.kv_cache + self.compute + self.process + self.prompt_cache


def need(header: Header, *, slots: int, context_length: int, batch_size: int, cache_ram_mb: int) -> Need:
    """What an engine takes with `slots` contexts of `context_length` tokens each.

    The KV cache holds, for each layer, token and key/value head, one key and one value of 16-bit numbers. The compute
    buffers hold, for each token of a step, its logits and a few rows as wide as the model.
    """
    per_token = header.layers * header.kv_heads * (header.key_length + header.value_length) * _F16
    return Need(
        weights=header.weight_bytes,
        kv_cache=per_token * slots * context_length,
        compute=batch_size * (header.vocabulary + 16 * header.embedding_length) * _F32,
        process=_PROCESS_BYTES,
        prompt_cache=cache_ram_mb * 2**20,
    )
