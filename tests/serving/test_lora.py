"""Which files are taken for adapters of a model: those with which its engine would start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from adapters import make_adapter, shapes
from ggufs import make
from modelops.api.errors import InvalidRequest
from modelops.serving import lora
from support import tiny_gguf

Q = "blk.0.attn_q.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make(tmp_path / "base.gguf", layers=2, width=64, heads=4, kv_heads=2)


def write(target: Path, tensors: Mapping[str, tuple[int, ...]], **entries: str) -> Path:
    """A file with these tensors, the lengths of whose rows come first."""
    writer = gguf.GGUFWriter(target, entries.pop("architecture", "llama"))
    writer.add_type(entries.pop("type", "adapter"))
    writer.add_string("adapter.type", entries.pop("adapter", "lora"))
    writer.add_float32("adapter.lora.alpha", 4.0)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape[::-1], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_an_adapter_of_any_of_the_models_weights_is_taken(tmp_path: Path, base: Path) -> None:
    names = [name for name, shape in shapes(base).items() if len(shape) == 2]
    assert len(names) > 10
    assert "token_embd.weight" in names
    lora.check(make_adapter(tmp_path / "x.gguf", base, names=names), base)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({f"{Q}.lora_a": (32, 2), f"{Q}.lora_b": (2, 64)}, f"there '{Q}' is 32 by 64, here 64 by 64"),
        ({f"{Q}.lora_a": (64, 2), f"{Q}.lora_b": (2, 32)}, f"there '{Q}' is 64 by 32, here 64 by 64"),
        ({f"{Q}.lora_a": (64, 2), f"{Q}.lora_b": (3, 64)}, f"the two halves of '{Q}' in 'x.gguf' do not fit together"),
        ({f"{Q}.lora_a": (64, 2)}, f"holds only half of what it changes '{Q}' by"),
        ({f"{Q}.lora_b": (2, 64)}, f"holds only half of what it changes '{Q}' by"),
        ({f"{Q}.lora_a": (64,), f"{Q}.lora_b": (2, 64)}, "holds only half"),
        ({Q: (64, 64)}, f"holds '{Q}', which is of no LoRA adapter"),
        ({"blk.7.x.lora_a": (64, 2), "blk.7.x.lora_b": (2, 64)}, "changes 'blk.7.x', which the model does not have"),
        ({"token_embd.weight.lora_a": (64, 2), "token_embd.weight.lora_b": (2, 512)}, "do not fit|made for another"),
    ],
)
def test_what_no_engine_would_start_with_is_refused(
    tmp_path: Path, base: Path, tensors: dict[str, tuple[int, ...]], why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why):
        lora.check(write(tmp_path / "x.gguf", tensors), base)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"architecture": "qwen3"}, "is an adapter for the architecture 'qwen3', not 'llama'"),
        ({"type": "model"}, "'x.gguf' is no LoRA adapter"),
        ({"adapter": "other"}, "'x.gguf' is no LoRA adapter"),
    ],
)
def test_what_says_that_it_is_something_else_is_refused(
    tmp_path: Path, base: Path, entries: dict[str, str], why: str
) -> None:
    fitting: dict[str, tuple[int, ...]] = {f"{Q}.lora_a": (64, 2), f"{Q}.lora_b": (2, 64)}
    lora.check(write(tmp_path / "good.gguf", fitting), base)
    with pytest.raises(InvalidRequest, match=why):
        lora.check(write(tmp_path / "x.gguf", fitting, **entries), base)


def test_what_is_cut_short_or_gone_is_refused(tmp_path: Path, base: Path) -> None:
    file = make_adapter(tmp_path / "x.gguf", base)
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 100):
        file.write_bytes(whole[:length])
        with pytest.raises(InvalidRequest, match=r"'x\.gguf' is no usable GGUF file"):
            lora.check(file, base)
    file.unlink()
    with pytest.raises(InvalidRequest, match=r"'x\.gguf' cannot be read"):
        lora.check(file, base)


def test_a_model_in_parts_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    files = [tiny_gguf(tmp_path / f"m-0000{number}-of-00002.gguf", split__count=2) for number in (1, 2)]
    lora.check(make_adapter(tmp_path / "x.gguf", files[1]), files[0])
