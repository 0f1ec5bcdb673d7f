"""Which models can be fine-tuned here, and whether what that takes is installed.

Decided by a file's header alone, without PyTorch: at the creation of a job, and not when it has trained for an hour.
Transformers reads more architectures than these; of each of these it is tested that it computes what the engine does,
that a LoRA's tensors are called and ordered as the engine wants them, and that nothing in the file is passed over.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelops.api.errors import InvalidRequest
from modelops.serving import gguf
from modelops.serving.gguf_reader import BadGguf, Table, read_table

#: What is said where `installed` is false.
MISSING = "learning needs the extra: pip install 'modelops-coordinator[learning]' (make install-learning)"
_PACKAGES = ("torch", "transformers", "peft", "trl")

#: What the gguf package turns into plain numbers: all types but integers, doubles and two that files no longer hold.
_READABLE = {0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 29, 30, 34, 35, 39}


@dataclass(frozen=True)
class Architecture:
    """How a GGUF of an architecture holds what Transformers knows.

    `permuted`: the rows of q and k stand in another order. `head_length` is the only one that Transformers takes such
    a file to have, or to scale its attention by; 0 if it reads it there, -1 if it takes the width divided by the heads.
    `biases`: the ends of the
    names of those that both know.
    """

    permuted: bool = False
    head_length: int = 0
    biases: tuple[str, ...] = ()


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(permuted=True),
    "qwen2": Architecture(head_length=-1, biases=("attn_q.bias", "attn_k.bias", "attn_v.bias")),
    "qwen3": Architecture(head_length=128),
    "gemma2": Architecture(head_length=256),
    "gemma3": Architecture(head_length=256),
}


def installed() -> bool:
    """Whether the extra `learning` is there. Imports nothing."""
    return all(importlib.util.find_spec(name) for name in _PACKAGES)


def trains_on_gpus() -> bool:
    """Whether the PyTorch that is there was built for GPUs. Imports nothing."""
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def check(file: Path) -> None:
    """Raises InvalidRequest where the model in `file` cannot be trained, or not be converted: what is in the way, and
    what would do. Also where it is no whole GGUF.
    """
    name = file.name
    header = gguf.read_header(file)
    if len(gguf.parts(file)) > 1:
        raise InvalidRequest(f"'{name}' is in parts, which Transformers does not read; join them with llama-gguf-split")
    try:
        with file.open("rb") as stream:
            table = read_table(stream, file.stat().st_size)
    except (BadGguf, OSError):
        raise InvalidRequest(f"'{name}' cannot be read") from None
    if why := _obstacle(header, table):
        raise InvalidRequest(f"'{name}' cannot be fine-tuned: {why}")


def _obstacle(header: gguf.Header, table: Table) -> str:
    """What is in the way; empty if nothing is."""
    known = ARCHITECTURES.get(header.architecture)
    if header.adapter:
        return "it is an adapter; name the model that it belongs to"
    if header.experts[0]:
        return "it is a mixture of experts, whose adapters the engine does not take; choose a dense model"
    if not known:
        return (
            f"its architecture is '{header.architecture}'; what can be is of the architecture "
            f"{', '.join(ARCHITECTURES)}, and not a mixture of experts"
        )
    if unreadable := sorted({tensor.kind for tensor in table.tensors} - _READABLE):
        return f"its weights are of the type {unreadable[0]}, which is not read; choose a file of Q8_0 or of a K type"
    return _passed_over(known, header.architecture, table)


def _passed_over(known: Architecture, architecture: str, table: Table) -> str:
    """What Transformers would not see in the file, or see otherwise than the engine."""

    def value(key: str) -> Any:
        return table.values.get(f"{architecture}.{key}")

    for tensor in table.tensors:
        if tensor.name.startswith("rope_"):
            return "Transformers does not read how its positions are scaled (rope_freqs); choose a model without that"
        if tensor.name.endswith(".bias") and not tensor.name.endswith(known.biases or ("\0",)):
            return f"Transformers does not read its '{tensor.name}'; choose a model without such"
    unscaled = {
        "rope.scaling.type": (None, "none"),
        "rope.scaling.factor": (None, 1.0),
        "rope.scale_linear": (None, 1.0),
    }
    if any(value(key) not in none for key, none in unscaled.items()):
        return "Transformers does not read how its positions are scaled (rope.scaling); choose a model without that"
    width, heads = value("embedding_length"), value("attention.head_count")
    if not all(isinstance(number, int) and number > 0 for number in (width, heads)):
        return "its layers have different numbers of heads; choose a model whose layers are all alike"
    length = value("attention.key_length") or width // heads
    wrong: dict[str, Callable[[], bool]] = {
        "attention.head_count_kv": lambda: not isinstance(value("attention.head_count_kv") or heads, int),
        "attention.key_length": lambda: (
            bool(known.head_length) and length != (known.head_length if known.head_length > 0 else width // heads)
        ),
        "attention.value_length": lambda: (value("attention.value_length") or length) != length,
        "rope.dimension_count": lambda: (value("rope.dimension_count") or length) != length,
    }
    for key, is_wrong in wrong.items():
        if is_wrong():
            return f"Transformers does not read its {architecture}.{key}; choose a model of the usual shape"
    return ""
