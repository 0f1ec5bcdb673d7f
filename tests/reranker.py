"""A reranker that a real engine runs: a BERT of random weights, small enough to be made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFWriter, PoolingType

WIDTH, HIDDEN, LAYERS, HEADS, CONTEXT = 32, 64, 2, 4, 256
WORDS = ["rain", "falls", "from", "clouds", "the", "sun", "shines", "a", "cat", "sleeps", "paris", "is", "in", "france"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def reranker_gguf(target: Path, seed: int = 1) -> Path:
    """Write the model to `target`; the same seed makes the same model."""
    chance = np.random.default_rng(seed)
    # As converters write WordPiece: a word's beginning is marked, and not its continuation.
    tokens = [*_SPECIAL, *(f"▁{word}" for word in WORDS)]

    def some(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return chance.normal(0.0, 0.5, shape).astype(np.float32)

    tensors = {
        "token_embd.weight": some(len(tokens), WIDTH),
        "position_embd.weight": some(CONTEXT, WIDTH),
        "token_types.weight": some(2, WIDTH),
        **_norm("token_embd_norm"),
        "cls.weight": some(WIDTH, WIDTH),
        "cls.bias": some(WIDTH),
        "cls.output.weight": some(1, WIDTH),
        "cls.output.bias": some(1),
    }
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors |= {f"{block}.{name}.weight": some(WIDTH, WIDTH), f"{block}.{name}.bias": some(WIDTH)}
        tensors |= {f"{block}.ffn_up.weight": some(HIDDEN, WIDTH), f"{block}.ffn_up.bias": some(HIDDEN)}
        tensors |= {f"{block}.ffn_down.weight": some(WIDTH, HIDDEN), f"{block}.ffn_down.bias": some(WIDTH)}
        tensors |= _norm(f"{block}.attn_output_norm") | _norm(f"{block}.layer_output_norm")

    target.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(target, "bert")
    writer.add_name("a small reranker")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.RANK)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3] * len(_SPECIAL) + [1] * len(WORDS))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _norm(name: str) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}
