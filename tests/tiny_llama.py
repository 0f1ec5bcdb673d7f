"""A model that is trained in a second: a Llama of two layers with random weights, which talks in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
#: What is joined, so that there is something to join.
MERGES = ("t h", "i s", "th e", "Ġ i", "Ġi s", "Ġ o")

Weights = Mapping[str, "np.ndarray[Any, np.dtype[np.float32]]"]


def weights(seed: int = 1, architecture: str = "llama") -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Random weights, by the name of their tensor, rows last."""
    chance = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return chance.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    found = {"token_embd.weight": matrix(len(tokens()), WIDTH), "output_norm.weight": np.ones(WIDTH, np.float32)}
    for layer in range(LAYERS):
        named = {
            "attn_norm": np.ones(WIDTH, np.float32),
            "attn_q": matrix(WIDTH, WIDTH),
            "attn_k": matrix(WIDTH * KV_HEADS // HEADS, WIDTH),
            "attn_v": matrix(WIDTH * KV_HEADS // HEADS, WIDTH),
            "attn_output": matrix(WIDTH, WIDTH),
            "ffn_norm": np.ones(WIDTH, np.float32),
            "ffn_gate": matrix(HIDDEN, WIDTH),
            "ffn_up": matrix(HIDDEN, WIDTH),
            "ffn_down": matrix(WIDTH, HIDDEN),
        }
        if architecture == "phi3":
            named["attn_qkv"] = np.concatenate([named.pop(f"attn_{one}") for one in "qkv"])
            named["ffn_up"] = np.concatenate([named.pop("ffn_gate"), named["ffn_up"]])
        found |= {f"blk.{layer}.{name}.weight": value for name, value in named.items()}
    return found


def write(
    target: Path,
    *,
    template: str = CHATML,
    kind: str = "F32",
    given: Weights | None = None,
    architecture: str = "llama",
    begins: bool = False,
) -> Path:
    """The model as a GGUF that Transformers reads and llama.cpp runs; matrices are of the ggml type `kind`. A phi3 has
    the same weights, joined otherwise. With `begins` every text begins with a token for that.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(target, architecture)
    writer.add_name("a tiny llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens()) - len(SPECIAL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(begins)
    if template:
        writer.add_chat_template(template)
    for name, values in (given or weights(architecture=architecture)).items():
        stored = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def tokens() -> list[str]:
    """The vocabulary: special tokens, the bytes as GPT-2 writes them, and what is joined of them."""
    return [*SPECIAL, *_bytes(), *(merge.replace(" ", "") for merge in MERGES)]


def _bytes() -> list[str]:
    """Each byte as a letter that can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(unseen)) for byte in range(256)]
