"""Makes GGUF files of any shape for tests and benchmarks: whole and loadable, with weights of zero in a sparse file.

A file of 3 GB is made in milliseconds and takes no space on a disk that knows holes. An engine reads, maps and runs
it like any other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Metadata = Mapping[str, "str | int | float | bool | Sequence[int] | Sequence[float] | Sequence[str]"]
Tensors = dict[str, tuple[tuple[int, ...], str]]

#: name → (number in the file, values in a block, bytes of a block)
TYPES = {"f32": (0, 1, 4), "f16": (1, 1, 2), "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q8_0": (8, 32, 34)}
TYPES |= {"q4_k": (12, 256, 144), "q6_k": (14, 256, 210), "mxfp4": (39, 32, 17)}
_ALIGNMENT = 32


def write(target: Path, metadata: Metadata, tensors: Tensors) -> Path:
    """A GGUF of version 3 with these entries and tensors, whose weights are a hole in the file."""
    data = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        kind, encoded = _value(value)
        data += _text(key) + struct.pack("<I", kind) + encoded
    offset = 0
    for name, (shape, kind_name) in tensors.items():
        kind, block, width = TYPES[kind_name]
        data += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-math.prod(shape) // block * width // _ALIGNMENT) * _ALIGNMENT
    data += b"\0" * (-len(data) % _ALIGNMENT)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + offset)
    return target


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return (4, struct.pack("<I", value)) if value >= 0 else (5, struct.pack("<i", value))
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, _text(value)
    if all(isinstance(each, int) for each in value):
        return 9, struct.pack(f"<IQ{len(value)}i", 5, len(value), *value)
    inner = _value(value[0])[0]
    return 9, struct.pack("<IQ", inner, len(value)) + b"".join(_value(each)[1] for each in value)


def vocabulary(size: int) -> dict[str, Any]:
    """A tokenizer of `size` tokens that takes any text: bytes, and words that hardly occur."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [f"\N{LOWER ONE EIGHTH BLOCK}w{index}" for index in range(size - len(texts))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [float(-index) for index in range(size)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (size - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def make(
    target: Path,
    architecture: str = "llama",
    *,
    layers: int = 2,
    width: int = 256,
    feed_forward: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    head: int = 0,
    words: int = 512,
    kind: str = "q8_0",
    tied: bool = False,
    experts: tuple[int, int] = (0, 0),
    context: int = 32768,
    entries: Mapping[str, Any] = {},
) -> Path:
    """A model of `architecture` that llama.cpp loads; `entries` are added under the architecture's name.

    Known are llama, qwen3, qwen3moe, gemma2, gemma3, cohere2, mamba, lfm2, granitehybrid and deepseek2. Of hybrid ones
    every second layer is recurrent.
    """
    head = head or width // heads
    own: dict[str, Any] = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": feed_forward,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.layer_norm_epsilon": 1e-6,
        "vocab_size": words,
    }
    tensors: Tensors = {"token_embd.weight": ((width, words), kind)}
    norm = "token_embd_norm.weight" if architecture == "lfm2" else "output_norm.weight"
    tensors[norm] = ((width,), "f32")
    if not tied:
        tensors["output.weight"] = ((width, words), kind)
    for index in range(layers):
        recurrent = architecture == "mamba" or (architecture in ("lfm2", "granitehybrid") and index % 2 == 0)
        block: Tensors = {"attn_norm.weight": ((width,), "f32")}
        if recurrent:
            block |= _recurrent(architecture, width, own, kind)
        elif architecture == "deepseek2":
            block |= _compressed(width, heads, own, kind)
        else:
            block |= {
                "attn_q.weight": ((width, heads * head), kind),
                "attn_k.weight": ((width, kv_heads * head), kind),
                "attn_v.weight": ((width, kv_heads * head), kind),
                "attn_output.weight": ((heads * head, width), kind),
            }
            if architecture in ("qwen3", "qwen3moe", "gemma3", "lfm2"):
                block |= {"attn_q_norm.weight": ((head,), "f32"), "attn_k_norm.weight": ((head,), "f32")}
        if architecture in ("gemma2", "gemma3"):
            block |= {"post_attention_norm.weight": ((width,), "f32"), "post_ffw_norm.weight": ((width,), "f32")}
        if architecture not in ("mamba", "cohere2"):
            block |= {"ffn_norm.weight": ((width,), "f32")}
        if experts[0] and architecture != "deepseek2":
            block |= {
                "ffn_gate_inp.weight": ((width, experts[0]), "f32"),
                "ffn_gate_exps.weight": ((width, feed_forward, experts[0]), kind),
                "ffn_up_exps.weight": ((width, feed_forward, experts[0]), kind),
                "ffn_down_exps.weight": ((feed_forward, width, experts[0]), kind),
            }
        elif architecture != "mamba":
            block |= {
                "ffn_gate.weight": ((width, feed_forward), kind),
                "ffn_up.weight": ((width, feed_forward), kind),
                "ffn_down.weight": ((feed_forward, width), kind),
            }
        tensors |= {f"blk.{index}.{name}": tensor for name, tensor in block.items()}
    if architecture in ("lfm2", "granitehybrid"):
        own["attention.head_count_kv"] = [0 if index % 2 == 0 else kv_heads for index in range(layers)]
    if experts[0]:
        own |= {"expert_count": experts[0], "expert_used_count": experts[1], "expert_feed_forward_length": feed_forward}
    if architecture == "cohere2":
        own["logit_scale"] = 1.0
    own |= entries
    metadata = {"general.architecture": architecture, "general.name": target.stem} | vocabulary(words)
    return write(target, metadata | {f"{architecture}.{key}": value for key, value in own.items()}, tensors)


def _recurrent(architecture: str, width: int, own: dict[str, Any], kind: str) -> Tensors:
    """A layer with a state; its shapes go into `own`."""
    if architecture == "lfm2":
        own["shortconv.l_cache"] = 3
        return {
            "shortconv.conv.weight": ((3, width), "f32"),
            "shortconv.in_proj.weight": ((width, 3 * width), kind),
            "shortconv.out_proj.weight": ((width, width), kind),
        }
    inner, state, rank = 2 * width, 16 if architecture == "mamba" else 128, width // 16
    own |= {"ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank}
    if architecture == "mamba":
        return {
            "ssm_in.weight": ((width, 2 * inner), kind),
            "ssm_conv1d.weight": ((4, inner), "f32"),
            "ssm_conv1d.bias": ((inner,), "f32"),
            "ssm_x.weight": ((inner, rank + 2 * state), kind),
            "ssm_dt.weight": ((rank, inner), "f32"),
            "ssm_dt.bias": ((inner,), "f32"),
            "ssm_a": ((state, inner), "f32"),
            "ssm_d": ((inner,), "f32"),
            "ssm_out.weight": ((inner, width), kind),
        }
    own |= {"ssm.group_count": 1, "ssm.time_step_rank": (rank := inner // 64)}
    return {
        "ssm_in.weight": ((width, 2 * inner + 2 * state + rank), kind),
        "ssm_conv1d.weight": ((4, inner + 2 * state), "f32"),
        "ssm_conv1d.bias": ((inner + 2 * state,), "f32"),
        "ssm_dt.bias": ((rank,), "f32"),
        "ssm_a": ((1, rank), "f32"),
        "ssm_d": ((1, rank), "f32"),
        "ssm_norm.weight": ((inner, 1), "f32"),
        "ssm_out.weight": ((inner, width), kind),
    }


def _compressed(width: int, heads: int, own: dict[str, Any], kind: str) -> Tensors:
    """Multi-head latent attention: one short vector is kept for all heads."""
    latent, rope, nope, value, query = 512, 64, 128, 128, 256
    own |= {
        "attention.head_count_kv": 1,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "attention.kv_lora_rank": latent,
        "attention.q_lora_rank": query,
        "rope.dimension_count": rope,
        "leading_dense_block_count": own["block_count"],
        "expert_feed_forward_length": own["feed_forward_length"],
        "expert_shared_count": 0,
    }
    return {
        "attn_q_a.weight": ((width, query), kind),
        "attn_q_a_norm.weight": ((query,), "f32"),
        "attn_q_b.weight": ((query, heads * (nope + rope)), kind),
        "attn_kv_a_mqa.weight": ((width, latent + rope), kind),
        "attn_kv_a_norm.weight": ((latent,), "f32"),
        "attn_k_b.weight": ((nope, latent, heads), kind),
        "attn_v_b.weight": ((latent, value, heads), kind),
        "attn_output.weight": ((heads * value, width), kind),
    }
