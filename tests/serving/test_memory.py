from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufs import make
from modelops.serving.gguf import Header, read_header
from modelops.serving.layers import Layer
from modelops.serving.memory import DRIVER_BYTES, LIBRARY_BYTES, MB, Need, more_driver, need
from modelops.serving.placement import MB as PLACEMENT_MB

HEADER = Header(
    architecture="llama",
    name="",
    context_length=4096,
    embedding_length=512,
    feed_forward=1024,
    query_length=512,
    state_length=0,
    vocabulary=1000,
    merges=500,
    blocks=(Layer(weights=2_000_000, keys=256, values=128),) * 10,
    input_bytes=1_000_000,
    output_bytes=3_000_000,
    other_bytes=5,
    tied=False,
    copied_input=False,
    reordered_bytes=0,
    experts=(0, 0),
    pooling=-1,
    adapter=False,
    quantised=True,
    chat_template="{{ messages }}",
    file_bytes=25_000_000,
    digest="",
)


def of(header: Header = HEADER, **wanted: Any) -> Need:
    usual = {"slots": 2, "context_length": 1024, "batch_size": 128, "cache_ram_mb": 0}
    return need(header, **usual | wanted)


def test_each_part_follows_the_shapes() -> None:
    found = of(cache_ram_mb=3)
    assert found.parts["weights"] == 24_000_005
    assert found.parts["kv cache"] == 10 * (256 + 128) * 2 * 2 * 1024
    assert found.parts["compute"] == found.compute == 128 * (1024 * 2 + (5 * 512 + 3 * 1024) * 4)
    assert found.parts["outputs"] == 1000 * (2 * 16 + 4)
    assert found.parts["prompt cache"] == 3 * MB == 3 * PLACEMENT_MB
    assert found.parts["process"] > LIBRARY_BYTES
    assert found.layers == (2_000_000 + (256 + 128) * 2 * 2 * 1024,) * 10
    assert found.output == 3_000_000
    assert found.total == sum(found.parts.values()) == sum(found.layers) + found.output + found.host + found.compute


@pytest.mark.parametrize(("length", "cells"), [(1, 256), (256, 256), (257, 512), (1000, 1024)])
def test_a_context_is_padded_for_each_slot(length: int, cells: int) -> None:
    assert of(context_length=length, slots=3).parts["kv cache"] == 10 * 384 * 2 * cells * 3


@pytest.mark.parametrize(("cache_type", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_a_cache_is_as_large_as_its_numbers(cache_type: str, bits: float) -> None:
    assert of(cache_type=cache_type).parts["kv cache"] == 10 * 384 * 2 * 1024 * bits / 8


def test_a_window_keeps_its_tokens_and_a_step_and_never_more_than_the_context() -> None:
    windowed = replace(HEADER, blocks=(*HEADER.blocks[:2], *[replace(HEADER.blocks[0], window=500)] * 8))
    found = of(windowed, context_length=4096)
    assert found.parts["kv cache"] == 2 * 384 * 2 * 4096 * 2
    assert found.parts["kv cache (windows)"] == 8 * 384 * 2 * 768 * 2  # 500 + 128, padded
    assert of(windowed, context_length=512).parts["kv cache (windows)"] == 8 * 384 * 2 * 512 * 2


def test_a_state_is_kept_for_each_slot_whatever_the_context_and_once_more_to_go_back_to() -> None:
    recurrent = replace(HEADER, blocks=(Layer(weights=9, keys=0, values=0, state=1000),) * 4)
    for length in (256, 32768):
        found = of(recurrent, context_length=length, slots=3, checkpoints=1)
        assert (found.parts["recurrent state"], found.parts["state copies"]) == (12_000, 12_000)
        assert "state copies" not in of(recurrent, context_length=length, slots=3).parts
        assert "kv cache" not in found.parts
        assert found.layers == (3009,) * 4


def test_what_fills_later_is_told_apart() -> None:
    recurrent = replace(HEADER, blocks=(Layer(weights=9, keys=0, values=0, state=1000),) * 4)
    assert of(recurrent, checkpoints=5, cache_ram_mb=1).later == 4 * 2 * 4000 + MB
    assert of().later == 0


def test_a_tied_head_costs_a_gpu_a_copy_and_ram_one_only_where_it_is_reordered() -> None:
    tied = replace(HEADER, tied=True, output_bytes=100)
    assert (of().tied, of(tied).tied) == (0, 1_000_000)
    assert of(replace(tied, copied_input=True)).total == of(tied).total + 1_000_000


@pytest.mark.parametrize(
    ("architecture", "state", "experts", "more"),
    [
        ("llama", 0, 0, False),
        ("qwen3moe", 0, 8, True),
        ("mamba", 1024, 0, True),
        ("granitehybrid", 1024, 0, True),
        ("lfm2", 1024, 0, False),
        ("lfm2moe", 1024, 4, True),
    ],
)
def test_of_which_kinds_a_gpus_driver_keeps_more(architecture: str, state: int, experts: int, more: bool) -> None:
    header = replace(HEADER, architecture=architecture, state_length=state, experts=(4 * experts, experts))
    assert (more_driver(header) > 0) is more
    assert of(header, on_gpu=True).driver == DRIVER_BYTES + more_driver(header)


def test_adapters_come_on_top() -> None:
    adapter = replace(HEADER, adapter=True, blocks=(), input_bytes=0, output_bytes=0, other_bytes=7_000_000)
    assert of(adapters=[adapter, adapter]).total == of().total + 14_000_000


def test_a_correction_is_a_part_and_stays_in_ram() -> None:
    found = of().corrected(-123)
    assert found.total == of().total - 123 == sum(found.parts.values())
    assert found.parts["correction"] == -123
    assert (found.layers, found.output, found.compute) == (of().layers, of().output, of().compute)
    assert of().corrected(0) == of()


@pytest.mark.parametrize(
    "more",
    [
        of(slots=3),
        of(context_length=1025),
        of(batch_size=129),
        of(cache_ram_mb=1),
        of(replace(HEADER, blocks=(*HEADER.blocks, HEADER.blocks[0]))),
        of(replace(HEADER, vocabulary=1001)),
        of(replace(HEADER, merges=501)),
        of(replace(HEADER, feed_forward=2048)),
        of(replace(HEADER, experts=(8, 2))),
        of(replace(HEADER, other_bytes=6)),
    ],
)
def test_more_of_anything_needs_more(more: Need) -> None:
    assert more.total > of().total


#: What llama.cpp was seen to reserve for these files: (cache and state, computing), in MiB.
RESERVED: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "llama": ({}, (64, 32)),
    "qwen3": ({"tied": True, "head": 128}, (128, 32)),
    "gemma2": ({"tied": True, "entries": {"attention.sliding_window": 512}}, (40, 33)),
    "cohere2": ({"tied": True, "entries": {"attention.sliding_window": 1024}}, (34, 35.5)),
    "mamba": ({}, (2.375, 30.3)),
    "lfm2": ({"tied": True}, (32.1, 32)),
    "granitehybrid": ({"tied": True}, (40.2, 37.6)),
    "deepseek2": ({}, (72, 54)),
    "qwen3moe": ({"feed_forward": 384, "experts": (16, 4)}, (64, 31)),
}


@pytest.mark.parametrize("architecture", RESERVED)
def test_the_formula_says_what_the_engine_reserves(tmp_path: Path, architecture: str) -> None:
    shape, (context, compute) = RESERVED[architecture]
    usual: dict[str, Any] = {"layers": 8, "width": 1024, "feed_forward": 3072, "heads": 16, "kv_heads": 4}
    header = read_header(make(tmp_path / "m.gguf", architecture, **usual | shape))
    found = of(header, context_length=4096, batch_size=512)
    parts = found.parts
    kept = sum(parts.get(name, 0) for name in ("kv cache", "kv cache (windows)", "recurrent state"))
    assert kept / MB == pytest.approx(context, rel=0.01)
    assert found.compute / MB == pytest.approx(compute, rel=0.15)


def test_the_default_model_needs_what_was_measured(smollm2: Path) -> None:
    """526 MB were measured with 4 slots of 4,096 tokens and steps of 128."""
    assert of(read_header(smollm2), slots=4, context_length=4096).total / MB == pytest.approx(526, rel=0.03)
