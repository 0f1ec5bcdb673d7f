"""Small models with random weights, of each architecture that can be fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

import tiny_llama

WIDTH, HIDDEN, HEADS, KV_HEADS = 64, 128, 4, 2
#: Qwen 3's heads have the one length that Transformers expects; Gemma's attention is scaled for heads of 256.
HEAD = {"llama": 16, "qwen2": 16, "qwen3": 128, "gemma2": 256, "gemma3": 256}
#: The last of Gemma 3's sees all that came before, the others a window.
LAYERS = {"llama": 2, "qwen2": 2, "qwen3": 2, "gemma2": 2, "gemma3": 6}


def write(
    target: Path,
    architecture: str,
    *,
    kind: str = "F32",
    entries: Mapping[str, tuple[Any, GGUFValueType]] | None = None,
    template: str = tiny_llama.CHATML,
    seed: int = 1,
) -> Path:
    """A model that both Transformers and llama.cpp read; matrices are of the ggml type `kind`. `entries` are added."""
    target.parent.mkdir(parents=True, exist_ok=True)
    head = HEAD[architecture]
    writer = GGUFWriter(target, architecture)
    writer.add_name(f"a tiny {architecture}")
    writer.add_block_count(LAYERS[architecture])
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e6 if architecture == "gemma3" else 1e4)
    writer.add_vocab_size(len(tiny_llama.tokens()))
    if architecture == "llama":
        writer.add_rope_dimension_count(head)
    else:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(32)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    for key, (value, value_type) in (entries or {}).items():
        writer.add_key_value(key, value, value_type)
    _add_tokenizer(writer)
    writer.add_chat_template(template)
    for name, values in _weights(architecture, seed).items():
        stored = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add_tokenizer(writer: GGUFWriter) -> None:
    tokens = tiny_llama.tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(tiny_llama.SPECIAL) + [1] * (len(tokens) - len(tiny_llama.SPECIAL)))
    writer.add_token_merges(list(tiny_llama.MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)


def _weights(architecture: str, seed: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """By the name of their tensor, rows last; norms are not all ones, as they would be of a model without any."""
    chance = np.random.default_rng(seed)
    head = HEAD[architecture]

    def matrix(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return chance.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    def vector(length: int, about: float) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (about + chance.normal(0.0, 0.2, length)).astype(np.float32)

    found = {"token_embd.weight": matrix(len(tiny_llama.tokens()), WIDTH), "output_norm.weight": vector(WIDTH, 1.0)}
    for layer in range(LAYERS[architecture]):
        named = {
            "attn_norm.weight": vector(WIDTH, 1.0),
            "attn_q.weight": matrix(HEADS * head, WIDTH),
            "attn_k.weight": matrix(KV_HEADS * head, WIDTH),
            "attn_v.weight": matrix(KV_HEADS * head, WIDTH),
            "attn_output.weight": matrix(WIDTH, HEADS * head),
            "ffn_norm.weight": vector(WIDTH, 1.0),
            "ffn_gate.weight": matrix(HIDDEN, WIDTH),
            "ffn_up.weight": matrix(HIDDEN, WIDTH),
            "ffn_down.weight": matrix(WIDTH, HIDDEN),
        }
        if architecture == "qwen2":
            named |= {"attn_q.bias": vector(HEADS * head, 0.0), "attn_k.bias": vector(KV_HEADS * head, 0.0)}
            named |= {"attn_v.bias": vector(KV_HEADS * head, 0.0)}
        if architecture in ("qwen3", "gemma3"):
            named |= {"attn_q_norm.weight": vector(head, 1.0), "attn_k_norm.weight": vector(head, 1.0)}
        if architecture.startswith("gemma"):
            named |= {"post_attention_norm.weight": vector(WIDTH, 1.0), "post_ffw_norm.weight": vector(WIDTH, 1.0)}
        found |= {f"blk.{layer}.{name}": value for name, value in named.items()}
    return found
