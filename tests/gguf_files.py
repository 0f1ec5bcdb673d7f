"""GGUF files for quantising, written by the gguf package and not by us: small, large, and the default model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

import ggufs

Weights = Mapping[str, "np.ndarray[Any, np.dtype[np.float32]]"]
WIDTH, HIDDEN, LAYERS, HEADS = 64, 96, 2, 4


def llama_weights(seed: int = 1) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Random weights of a small model of the architecture "llama": by the name of its tensor, rows last."""
    chance = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return chance.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    weights = {"token_embd.weight": matrix(len(_tokens()[0]), WIDTH)}
    for layer in range(LAYERS):
        named = {
            "attn_norm": np.ones(WIDTH, np.float32),
            "attn_q": matrix(WIDTH, WIDTH),
            "attn_k": matrix(WIDTH // 2, WIDTH),
            "attn_v": matrix(WIDTH // 2, WIDTH),
            "attn_output": matrix(WIDTH, WIDTH),
            "ffn_norm": np.ones(WIDTH, np.float32),
            "ffn_gate": matrix(HIDDEN, WIDTH),
            "ffn_up": matrix(HIDDEN, WIDTH),
            "ffn_down": matrix(WIDTH, HIDDEN),
        }
        weights |= {f"blk.{layer}.{name}.weight": value for name, value in named.items()}
    return weights | {"output_norm.weight": np.ones(WIDTH, np.float32), "output.weight": weights["token_embd.weight"]}


def llama_gguf(
    target: Path,
    kind: str = "F16",
    *,
    weights: Weights | None = None,
    alignment: int = 32,
    tensors_per_part: int = 0,
    empty_first: bool = False,
) -> Path:
    """A small model that a real engine runs, with a vocabulary of bytes; matrices are of the ggml type `kind`.

    With `tensors_per_part` it is split into as many files as that takes; the first one, whose path is returned, may be
    without tensors.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(target, "llama", split_max_tensors=tensors_per_part, small_first_shard=empty_first)
    tokens, types = _tokens()
    writer.add_name("a small llama")
    writer.add_file_type(1)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    # Of every type that an entry can have, one that no engine knows.
    for number, value_type in enumerate(GGUFValueType):
        if value_type not in (GGUFValueType.ARRAY, GGUFValueType.STRING):
            writer.add_key_value(f"test.{value_type.name.lower()}", number % 2, value_type)
    writer.add_key_value("test.text", "Zwölf Boxkämpfer 🥊", GGUFValueType.STRING)
    writer.add_key_value("test.texts", ["", "b\nc"], GGUFValueType.ARRAY, GGUFValueType.STRING)
    writer.add_key_value("test.many", list(range(2000)), GGUFValueType.ARRAY, GGUFValueType.UINT16)
    for name, values in (weights or llama_weights()).items():
        stored = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
    _finish(writer)
    return target if target.exists() else next(target.parent.glob(f"{target.stem}-00001-of-*.gguf"))


def _tokens() -> tuple[list[str], list[int]]:
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *(f"<extra{n}>" for n in range(29))]
    return tokens, [2, 3, 3, *([6] * 256), *([1] * 29)]


def plain_gguf(source: Path, target: Path) -> Path:
    """The model `source` as it would be had it never been quantised: every matrix as F16."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    ours = ("general.architecture", "general.file_type", "general.quantization_version")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ours:
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(1)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        stored = GGMLQuantizationType.F16 if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quantize(values, stored), raw_dtype=stored)
    _finish(writer)
    return target


def templated_gguf(source: Path, target: Path, template: str) -> Path:
    """The model `source` with another chat template; without any where that is empty."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "tokenizer.chat_template"):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    if template:
        writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_shape=tensor.data.shape, raw_dtype=tensor.tensor_type)
    _finish(writer)
    return target


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sparse_gguf(target: Path, weights: int) -> Path:
    """A file of one F16 matrix of `weights` zeros that takes no room on the disk, however many they are."""
    matrix: ggufs.Tensors = {"token_embd.weight": ((4096, weights // 4096), "f16")}
    return ggufs.write(target, {"general.architecture": "llama"}, matrix)
