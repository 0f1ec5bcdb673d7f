"""Makes LoRA adapters for tests: random ones, which change what a model says to something else for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from modelops.serving.gguf_reader import read_table

_EMBEDDINGS = "token_embd.weight"


def shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """The weights of the model in the file, as its table has them."""
    with base.open("rb") as stream:
        return {tensor.name: tensor.shape for tensor in read_table(stream, base.stat().st_size).tensors}


def make_adapter(
    target: Path,
    base: Path,
    *,
    seed: int = 0,
    names: Sequence[str] = (_EMBEDDINGS,),
    rank: int = 2,
    scale: float = 1.0,
    architecture: str = "llama",
) -> Path:
    """An adapter for the model in `base`, whose weights `names` it changes by random ones times `scale`."""
    random, known = np.random.default_rng(seed), shapes(base)
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for name in names:
        width, height = known[name]
        a, b = (rank, width), (height, rank)  # numpy says the longest first
        if name == _EMBEDDINGS:
            a, b = (height, rank), (width, rank)
        for half, shape in (("lora_a", a), ("lora_b", b)):
            values = random.standard_normal(shape) / np.sqrt(width) * (scale if half == "lora_b" else 1.0)
            writer.add_tensor(f"{name}.{half}", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
