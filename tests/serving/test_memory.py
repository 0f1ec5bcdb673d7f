from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelops.serving.gguf import Header, read_header
from modelops.serving.memory import Need, need
from modelops.serving.placement import MB

HEADER = Header(
    architecture="llama",
    name="",
    layers=10,
    context_length=4096,
    embedding_length=512,
    kv_heads=4,
    key_length=64,
    value_length=32,
    vocabulary=1000,
    weight_bytes=50_000_000,
    quantised=True,
    chat_template=True,
)


def of(header: Header = HEADER, *, slots: int = 2, context: int = 1000, batch: int = 128, cache: int = 0) -> Need:
    return need(header, slots=slots, context_length=context, batch_size=batch, cache_ram_mb=cache)


def test_each_part_follows_the_shapes() -> None:
    found = of(cache=3)
    assert found.weights == 50_000_000
    assert found.kv_cache == 10 * 4 * (64 + 32) * 2 * 2 * 1000
    assert found.compute == 128 * (1000 + 16 * 512) * 4
    assert found.prompt_cache == 3 * MB
    assert found.total == 50_000_000 + found.kv_cache + found.compute + found.process + 3 * MB


@pytest.mark.parametrize(
    "more",
    [
        of(slots=3),
        of(context=1001),
        of(batch=129),
        of(cache=1),
        of(replace(HEADER, layers=11)),
        of(replace(HEADER, kv_heads=5)),
        of(replace(HEADER, vocabulary=1001)),
        of(replace(HEADER, weight_bytes=50_000_001)),
    ],
)
def test_more_of_anything_needs_more(more: Need) -> None:
    assert more.total > of().total


def test_the_default_model_needs_what_was_measured(smollm2: Path) -> None:
    """485 MB were measured with 4 slots of 4,096 tokens."""
    found = of(read_header(smollm2), slots=4, context=4096, batch=128)
    assert 485 * 0.9 < found.total / MB < 485 * 1.35
