"""Which layers look back how far, by architecture, as llama.cpp's sources have it."""

from __future__ import annotations

from typing import Any

import pytest

from modelops.serving.layers import Layer, layers


def of(architecture: str, count: int = 8, **values: Any) -> tuple[Layer, ...]:
    """Layers of 10 bytes with 4 heads of 16, 2 of them for keys and values, and `values`, with "__" for a dot."""
    usual = {"embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2}
    known = usual | {key.replace("__", "."): value for key, value in values.items()}

    def number(key: str, default: int) -> int:
        value = known.get(key, default)
        return int(max(value) if isinstance(value, list) else value)

    def numbers(key: str, default: int) -> list[int]:
        value = known.get(key, default)
        return value if isinstance(value, list) else [value] * count

    return layers(architecture, [10] * count, number, numbers)


def windows(architecture: str, count: int = 8, window: int = 100, **values: Any) -> list[int]:
    return [layer.window for layer in of(architecture, count, attention__sliding_window=window, **values)]


def test_plain_attention_keeps_a_key_and_a_value_of_each_head() -> None:
    assert of("llama") == (Layer(weights=10, keys=32, values=32),) * 8
    assert of("llama", attention__key_length=24, attention__value_length=8)[0] == Layer(10, keys=48, values=16)
    assert of("no such thing")[0] == Layer(10, keys=32, values=32)


def test_heads_may_differ_from_layer_to_layer() -> None:
    assert [layer.keys for layer in of("deci", 3, attention__head_count_kv=[1, 0, 4])] == [16, 0, 64]


@pytest.mark.parametrize(
    ("architecture", "full"),
    [("gemma2", {1, 3, 5, 7}), ("gemma3", {5}), ("cohere2", {3, 7}), ("gpt-oss", {1, 3, 5, 7}), ("cohere2moe", {0, 4})],
)
def test_some_layers_look_back_through_a_window(architecture: str, full: set[int]) -> None:
    assert {index for index, window in enumerate(windows(architecture)) if window == 0} == full


def test_a_file_may_say_itself_which_layers_have_a_window() -> None:
    assert windows("gemma3", 4, attention__sliding_window_pattern=2) == [100, 0, 100, 0]
    assert windows("gemma4", 4, attention__sliding_window_pattern=[1, 1, 1, 0]) == [100, 100, 100, 0]


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen2"])
def test_a_window_that_llama_cpp_does_not_heed_is_none(architecture: str) -> None:
    assert windows(architecture) == [0] * 8


def test_llama4_looks_back_8192_tokens_unless_it_has_no_window() -> None:
    assert windows("llama4", 4) == [8192, 8192, 8192, 0]
    assert windows("llama4", 4, window=0) == [0] * 4


def test_layers_with_a_window_may_have_other_heads() -> None:
    found = of("gemma3", 6, attention__sliding_window=9, attention__key_length_swa=8)
    assert [layer.keys for layer in found] == [16] * 5 + [32]


def test_latent_attention_keeps_keys_only() -> None:
    mla = {"attention__key_length_mla": 192, "attention__value_length_mla": 128, "attention__head_count_kv": 1}
    assert of("deepseek2", 1, attention__key_length=576, **mla) == (Layer(10, keys=576, values=0),)


@pytest.mark.parametrize("architecture", ["bert", "modern-bert", "nomic-bert"])
def test_an_encoder_keeps_nothing(architecture: str) -> None:
    assert {(layer.keys, layer.values) for layer in of(architecture)} == {(0, 0)}


def test_layers_may_share_the_caches_of_others_or_only_predict() -> None:
    assert [layer.keys for layer in of("gemma4", 4, attention__shared_kv_layers=3)] == [32, 0, 0, 0]
    assert [layer.keys for layer in of("glm4moe", 3, nextn_predict_layers=1)] == [32, 32, 0]


MAMBA = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16}


def test_a_recurrent_layer_keeps_a_state_and_no_tokens() -> None:
    assert set(of("mamba", **MAMBA)) == {Layer(10, 0, 0, state=(3 * 128 + 16 * 128) * 4)}
    grouped = of("mamba2", 1, ssm__group_count=2, **MAMBA)
    assert grouped[0].state == (3 * (128 + 2 * 2 * 16) + 16 * 128) * 4
    assert of("rwkv7", 1, wkv__head_size=16)[0] == Layer(10, 0, 0, state=(2 * 64 + 64 * 16) * 4)


def test_a_hybrid_has_either_by_layer() -> None:
    found = of("lfm2", 2, attention__head_count_kv=[0, 2], shortconv__l_cache=3)
    assert found == (Layer(10, 0, 0, state=2 * 64 * 4), Layer(10, keys=32, values=32))
    assert [layer.state > 0 for layer in of("qwen3next", 4, **MAMBA)] == [True, True, True, False]
    assert [layer.keys > 0 for layer in of("qwen3next", 4, **MAMBA)] == [False, False, False, True]
    both = of("falcon-h1", 1, **MAMBA)[0]
    assert both.state > 0
    assert both.keys > 0
